//! Errors as a ScyllaDB node answers them: a native-protocol code and ScyllaDB's own wording.

use std::fmt;

use crate::types::CqlType;

/// What an `ERROR` frame carries besides its code and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErrorDetail {
    /// Nothing more.
    None,
    /// `Already_exists` (0x2400): the keyspace, and the table or an empty string.
    AlreadyExists {
        /// The keyspace that exists, or in which the table exists.
        keyspace: String,
        /// The table that exists; empty when it is the keyspace.
        table: String,
    },
    /// `Unavailable_exception` (0x1000).
    Unavailable {
        /// The consistency asked for, as the protocol numbers it.
        consistency: u16,
        /// Replicas that it needs.
        required: u32,
        /// Replicas that there are.
        alive: u32,
    },
    /// `Function_failure` (0x1400).
    FunctionFailure {
        /// Keyspace of the function.
        keyspace: String,
        /// Name of the function.
        function: String,
        /// CQL names of the argument types.
        arg_types: Vec<String>,
    },
}

/// An error of the CQL native protocol v4, section 9.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct CqlError {
    /// The native protocol's error code, e.g. `0x2200`.
    pub code: u32,
    /// What a client shows, worded as ScyllaDB words it.
    pub message: String,
    /// What the code's body has beyond the message.
    pub detail: ErrorDetail,
}

impl fmt::Display for CqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}: {}", self.code, self.message)
    }
}

/// `Server error`.
pub const SERVER_ERROR: u32 = 0x0000;
/// `Protocol_error`.
pub const PROTOCOL_ERROR: u32 = 0x000a;
/// `Unavailable_exception`: fewer replicas than the consistency needs.
pub const UNAVAILABLE: u32 = 0x1000;
/// `Function_failure`.
pub const FUNCTION_FAILURE: u32 = 0x1400;
/// `Syntax_error`.
pub const SYNTAX_ERROR: u32 = 0x2000;
/// `Unauthorized`.
pub const UNAUTHORIZED: u32 = 0x2100;
/// `Invalid`: a statement that parses but cannot be run.
pub const INVALID: u32 = 0x2200;
/// `Config_error`: a bad option of a keyspace or table.
pub const CONFIG_ERROR: u32 = 0x2300;
/// `Already_exists`.
pub const ALREADY_EXISTS: u32 = 0x2400;

impl CqlError {
    /// An error with no detail beyond its message.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            detail: ErrorDetail::None,
        }
    }

    /// 0x2200: the statement parses but cannot be run.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(INVALID, message)
    }

    /// 0x000A: what was sent is not the protocol.
    pub fn protocol(message: impl Into<String>) -> Self {
        Self::new(PROTOCOL_ERROR, message)
    }

    /// 0x2000: the statement does not parse.
    pub fn syntax(message: impl Into<String>) -> Self {
        Self::new(SYNTAX_ERROR, message)
    }

    /// 0x2300: a bad option.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(CONFIG_ERROR, message)
    }

    /// 0x2100: not allowed.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(UNAUTHORIZED, message)
    }

    /// 0x0000: what ScyllaDB answers for an exception it has no code for.
    pub fn server(message: impl Into<String>) -> Self {
        Self::new(SERVER_ERROR, message)
    }

    /// 0x2200: a table that does not exist.
    pub fn unconfigured_table(table: &str) -> Self {
        Self::invalid(format!("unconfigured table {table}"))
    }

    /// 0x1400: a function of one argument could not be run.
    pub fn function_failure(
        keyspace: &str,
        function: &str,
        argument: &CqlType,
        message: impl Into<String>,
    ) -> Self {
        Self {
            detail: ErrorDetail::FunctionFailure {
                keyspace: keyspace.into(),
                function: function.into(),
                arg_types: vec![argument.to_string()],
            },
            ..Self::new(FUNCTION_FAILURE, message)
        }
    }

    /// 0x2400 for a keyspace.
    pub fn keyspace_exists(keyspace: &str) -> Self {
        Self {
            code: ALREADY_EXISTS,
            message: format!("Cannot add existing keyspace \"{keyspace}\""),
            detail: ErrorDetail::AlreadyExists {
                keyspace: keyspace.into(),
                table: String::new(),
            },
        }
    }

    /// 0x2400 for a table.
    pub fn table_exists(keyspace: &str, table: &str) -> Self {
        Self {
            code: ALREADY_EXISTS,
            message: format!(
                "Cannot add already existing table \"{table}\" to keyspace \"{keyspace}\""
            ),
            detail: ErrorDetail::AlreadyExists {
                keyspace: keyspace.into(),
                table: table.into(),
            },
        }
    }
}
