//! The CQL language: from text to [`ast::Parsed`], by ScyllaDB's grammar (`cql3/Cql.g`).

pub mod ast;
mod lexer;
mod parser;
mod type_name;

pub use crate::types::keywords::is_reserved;
pub use parser::{parse, parse_type};

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

impl ParseError {
    /// An error at a byte offset of a text.
    fn at(text: &str, offset: usize, message: impl Into<String>) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count();
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            line: narrow(line),
            column: narrow(column),
            message: message.into(),
        }
    }
}
