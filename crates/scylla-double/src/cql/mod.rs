//! The CQL language: from text to [`ast::Parsed`].

pub mod ast;
mod keywords;

pub use keywords::is_reserved;

/// A statement that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}:{column} {message}")]
pub struct ParseError {
    /// From 1.
    pub line: u32,
    /// From 0, in characters, as ANTLR counts them and so ScyllaDB's errors do.
    pub column: u32,
    /// What is wrong, as ScyllaDB says it.
    pub message: String,
}
