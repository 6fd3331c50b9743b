//! Lines of a plugin in Penstock's log.

use std::fmt;

/// How grave a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// Writes a line: what the macros [`error!`](crate::error), [`warn!`](crate::warn), [`info!`](crate::info) and
/// [`debug!`](crate::debug) do. In a native test it goes to standard error.
pub fn write_log(level: Level, message: fmt::Arguments<'_>) {
    #[cfg(target_arch = "wasm32")]
    {
        use crate::bindings::penstock::plugin::host;
        let level = match level {
            Level::Error => host::Level::Error,
            Level::Warn => host::Level::Warn,
            Level::Info => host::Level::Info,
            Level::Debug => host::Level::Debug,
        };
        host::log(level, &message.to_string());
    }
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{level:?}: {message}");
}

/// Logs an error.
#[macro_export]
macro_rules! error {
    ($($arg:tt)+) => { $crate::write_log($crate::Level::Error, format_args!($($arg)+)) };
}

/// Logs a warning.
#[macro_export]
macro_rules! warn {
    ($($arg:tt)+) => { $crate::write_log($crate::Level::Warn, format_args!($($arg)+)) };
}

/// Logs what a user may want to know.
#[macro_export]
macro_rules! info {
    ($($arg:tt)+) => { $crate::write_log($crate::Level::Info, format_args!($($arg)+)) };
}

/// Logs what only the plugin's author wants to know.
#[macro_export]
macro_rules! debug {
    ($($arg:tt)+) => { $crate::write_log($crate::Level::Debug, format_args!($($arg)+)) };
}
