//! Write a Penstock transform.
//!
//! ```
//! use penstock_plugin::{About, Change, Error, Interest, Output, Setting, Settings, Table, Transform};
//!
//! struct Payloads {
//!     topic: String,
//! }
//!
//! impl Transform for Payloads {
//!     fn about() -> About {
//!         About::new("Writes payloads to one topic.")
//!             .setting(Setting::text("topic").default("payloads").doc("where to"))
//!     }
//!
//!     fn configure(settings: &Settings) -> Result<Self, Error> {
//!         Ok(Self { topic: settings.get("topic").unwrap_or("payloads").to_owned() })
//!     }
//!
//!     fn interest(&mut self, table: &Table) -> Result<Interest, Error> {
//!         table.columns(&["id", "payload"])
//!     }
//!
//!     fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
//!         out.record(&self.topic)
//!             .key(change.get::<&str>("id")?)
//!             .value(change.column_ref("payload")?);
//!         Ok(())
//!     }
//! }
//!
//! penstock_plugin::export_plugin!(Payloads);
//! ```
//!
//! Build it as a `cdylib` for `wasm32-unknown-unknown` (or as a component for `wasm32-wasip2`) and name the
//! file in pipeline.toml. One instance serves one shard, one batch at a time. After a panic, a missed deadline
//! or a memory overrun a new instance is made, so state in `self` is a cache, never a record.
//!
//! [`testing`] runs a transform natively, in a unit test.

mod about;
mod change;
mod log;
mod output;
mod settings;
mod table;
pub mod testing;
mod value;

use penstock_plugin_encoding::{OutputWriter, Rows};

pub use about::{About, Setting};
pub use change::{Change, Elements};
pub use log::{Level, write_log};
pub use output::{Output, RecordOutput};
pub use penstock_plugin_encoding as encoding;
pub use penstock_plugin_encoding::{
    ColumnKind, ColumnRef, ColumnTag, CqlType, CqlValue, Field, Operation, record_table,
};
pub use settings::Settings;
pub use table::{Column, Handle, Interest, Lookup, Table};
pub use uuid::Uuid;
pub use value::{FromCql, Text, Timestamp};

/// The raw contract, for a plugin that speaks it without this SDK's help.
#[allow(missing_docs, unsafe_code, unreachable_pub, clippy::all)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../plugins/wit",
        world: "plugin",
        pub_export_macro: true,
        export_macro_name: "export_bindings",
        default_bindings_module: "penstock_plugin::bindings",
    });
}

/// The contract of what a plugin says of itself; a world of its own, since a plugin may leave it out.
#[allow(missing_docs, unsafe_code, unreachable_pub, clippy::all)]
pub mod describing {
    wit_bindgen::generate!({
        path: "../../plugins/wit",
        world: "describes-itself",
        pub_export_macro: true,
        export_macro_name: "export_description",
        default_bindings_module: "penstock_plugin::describing",
    });
}

/// Why something failed: settings that are refused, a change that can never succeed, or (see [`Error::retry`]) one that
/// cannot be worked on yet.
///
/// Any error turns into it with `?`; [`Error::new`] and [`bail!`] make one from text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    message: String,
    is_retry: bool,
}

impl Error {
    /// An error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            is_retry: false,
        }
    }

    /// The same, but not for good: from [`Transform::process`] it asks to be handed the change again later, and with it what
    /// comes after it, so that the order is kept. What was written for the change is taken back. Each try is a failure
    /// for the transform's breaker; pauses, and how many tries there are, are its retry policy's. It is a dead letter only
    /// where that policy has an end (`max_attempts`), which it has not by default.
    #[must_use]
    pub fn retry(mut self) -> Self {
        self.is_retry = true;
        self
    }

    /// Whether it asks for another try.
    pub fn is_retry(&self) -> bool {
        self.is_retry
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

// `Error` itself does not implement `std::error::Error`, which would forbid this.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}

/// Returns an [`Error`] made of a format string.
#[macro_export]
macro_rules! bail {
    ($($arg:tt)+) => {
        return Err($crate::Error::new(format!($($arg)+)))
    };
}

/// A transform.
pub trait Transform: Sized + 'static {
    /// What it does, and the settings that it takes. `penstock validate` then checks them with their place in the
    /// file, and `penstock plugin inspect` prints them; [`configure`](Self::configure) only sees settings that are
    /// of their type. By default nothing is said, and whatever is set is handed on.
    fn about() -> About {
        About::default()
    }

    /// Makes an instance from `[transform.settings]`. An error refuses the settings: nothing is run with them.
    fn configure(settings: &Settings) -> Result<Self, Error>;

    /// Says which columns of a table are wanted; the fewer, the faster. Called before the first change of each
    /// version of a table. By default all of them.
    fn interest(&mut self, table: &Table) -> Result<Interest, Error> {
        let _ = table;
        Ok(Interest::All)
    }

    /// Makes what it wants of a change, which is never an image or the end of a range: those are reached
    /// through it. Writing nothing drops the change. An error dead-letters it (or what `on_error` says), takes
    /// back what was written for it, and leaves the other changes alone; [`Error::retry`] says "not yet" instead.
    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error>;
}

/// Drives a [`Transform`]: what [`export_plugin!`] and [`testing`] share.
#[derive(Debug)]
pub struct Runtime<T> {
    transform: T,
    tables: Vec<Table>,
    /// Of the last output, for each row of its input: what the next one is given room for.
    bytes_a_row: usize,
}

/// No more room is made before it is needed: rows may be large once.
const MOST_ROOM: usize = 1 << 20;

impl<T: Transform> Runtime<T> {
    /// Configures the transform.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        T::about().check(settings)?;
        Ok(Self {
            transform: T::configure(settings)?,
            tables: Vec::new(),
            bytes_a_row: 64,
        })
    }

    /// Asks the transform for its interest and remembers the table.
    pub fn open_table(&mut self, table: Table) -> Result<Interest, Error> {
        let interest = self.transform.interest(&table)?;
        self.tables.retain(|t| t.id != table.id);
        self.tables.push(table);
        Ok(interest)
    }

    /// Processes an encoded batch into an encoded output.
    pub fn process(&mut self, batch: Vec<u8>) -> Result<Vec<u8>, Error> {
        let rows = Rows::of_host(batch)?;
        let room = self.bytes_a_row.saturating_mul(rows.len()).min(MOST_ROOM);
        let mut out = Output::new(OutputWriter::with_capacity(room));
        for (index, row) in (0..).zip(rows.iter()) {
            if !row.is_change() {
                continue;
            }
            out.start(index);
            let processed = match Change::of_row(&rows, &self.tables, row, index) {
                Some(change) => self.transform.process(&change, &mut out),
                None => Err(Error::new("its table was never opened")),
            };
            match processed {
                Ok(()) => {}
                Err(error) if error.is_retry() => {
                    out.retry(error.message());
                    break;
                }
                Err(error) => out.refuse(error.message()),
            }
        }
        let out = out.finish();
        // Rows of a batch differ a little, and those of the next from these.
        self.bytes_a_row = out.len() / rows.len().max(1) * 9 / 8 + 8;
        Ok(out)
    }
}

/// Makes a [`Transform`] the plugin of this crate. Its name and version are the crate's.
#[macro_export]
macro_rules! export_plugin {
    ($transform:ty) => {
        // Natively only its unit tests use it.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn(&$crate::Settings) -> Result<$crate::Runtime<$transform>, $crate::Error> =
            $crate::Runtime::<$transform>::new;

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::bindings::exports::penstock::plugin::transform as contract;

            ::std::thread_local! {
                static RUNTIME: ::std::cell::RefCell<Option<$crate::Runtime<$transform>>> =
                    const { ::std::cell::RefCell::new(None) };
            }

            struct Plugin;

            impl contract::Guest for Plugin {
                fn configure(settings: Vec<contract::Setting>) -> Result<contract::Info, String> {
                    $crate::log_panics();
                    let settings = settings.into_iter().map(|s| (s.key, s.value)).collect();
                    let runtime = $crate::Runtime::new(&settings).map_err(|e| e.to_string())?;
                    RUNTIME.set(Some(runtime));
                    Ok(contract::Info {
                        name: env!("CARGO_PKG_NAME").to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                        encoding: $crate::encoding::ENCODING_VERSION,
                    })
                }

                fn open_table(table: contract::Table) -> Result<contract::Interest, String> {
                    RUNTIME.with_borrow_mut(|runtime| {
                        let runtime = runtime.as_mut().ok_or("not configured")?;
                        let table = $crate::Table::try_from(table).map_err(|e| e.to_string())?;
                        let interest = runtime.open_table(table).map_err(|e| e.to_string())?;
                        Ok(interest.into())
                    })
                }

                fn process(batch: Vec<u8>) -> Result<Vec<u8>, String> {
                    RUNTIME.with_borrow_mut(|runtime| {
                        let runtime = runtime.as_mut().ok_or("not configured")?;
                        runtime.process(batch).map_err(|e| e.to_string())
                    })
                }
            }

            impl $crate::describing::exports::penstock::plugin::description::Guest for Plugin {
                fn describe() -> $crate::describing::exports::penstock::plugin::description::About {
                    <$transform as $crate::Transform>::about().into()
                }
            }

    $crate::bindings::export_bindings!(Plugin with_types_in $crate::bindings);
    $crate::describing::export_description!(Plugin with_types_in $crate::describing);
        };
    };
}

/// Sends panics, with their place, to the host's log. [`export_plugin!`] calls it.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        write_log(Level::Error, format_args!("{info}"));
    }));
}
