//! What can be wrong with what a client sends.

/// A frame or body that breaks the protocol; answered with `Protocol_error` (0x000A).
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    /// The body ends within a field.
    #[error("truncated frame: a {what} of {wanted} bytes where {left} are left")]
    Truncated {
        what: &'static str,
        wanted: usize,
        left: usize,
    },
    /// A length below zero where none is allowed.
    #[error("negative length of a {0}")]
    Negative(&'static str),
    /// A string that is not UTF-8.
    #[error("a string is not valid UTF-8")]
    NotUtf8,
    /// Any version but 4.
    #[error("Invalid or unsupported protocol version: {0}")]
    Version(u8),
    /// An opcode that a server does not take.
    #[error("Unknown opcode {0:#04x}")]
    Opcode(u8),
    /// A body longer than the bound.
    #[error("request size too large: {size} bytes (limit {limit})")]
    TooLarge { size: usize, limit: usize },
    /// A compressed body that cannot be inflated, or comes before `STARTUP` agreed on it.
    #[error("cannot decompress the frame: {0}")]
    Compression(String),
    /// Anything but `OPTIONS` and `STARTUP` on a fresh connection.
    #[error("Unexpected message {0}, expecting STARTUP or OPTIONS")]
    NotStarted(&'static str),
    /// Something in a body that the protocol does not have.
    #[error("{0}")]
    Malformed(String),
}
