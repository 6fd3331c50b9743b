//! A plugin at work in one shard: a store of its own, reused from batch to batch.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use penstock_plugin_encoding::{ENCODING_VERSION, OLDEST_VERSION, Projection, record_table};
use wasmtime::{Store, Trap};

use super::contract;
use super::contract::exports::penstock::plugin::transform as guest;
use super::contract::penstock::plugin::{host, types};
use super::engine::TICK;
use super::limits::Limiter;
use super::plugin::{Plugin, PluginError, REBUILD};
use crate::change::{ColumnKind, TableSchema};
use crate::config::settings::Limits;
use crate::transform::guest::{Code, Fault, Guest, Interest};
use crate::transform::voice::{Urgency, Voice};

/// A guest that starts has this long, however little a batch may take: a deadline is of the wall clock, a busy machine holds
/// up more than the guest, and a plugin that does not start at the pipeline's start ends it.
const STARTING: Duration = Duration::from_secs(2);

/// The limits of a guest that starts.
pub(super) fn starting(limits: Limits) -> Limits {
    Limits {
        deadline: limits.deadline.max(STARTING),
        ..limits
    }
}

/// What a guest says of a change is cut there: it is kept once for each change that it concerns.
const MAX_MESSAGE: usize = 4 << 10;

/// A guest's words, in bounds.
pub(crate) fn shortened(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        message.push('…');
        // The room that it took goes with it.
        message.shrink_to_fit();
    }
    message
}

/// What the host keeps for a guest.
pub(super) struct HostState {
    limiter: Limiter,
    voice: Arc<Voice>,
    /// The last line that the guest logged as an error in this call: a panic's text.
    last_error: Option<String>,
}

impl HostState {
    pub(super) fn new(voice: Arc<Voice>, limits: Limits) -> Self {
        Self {
            limiter: Limiter::new(limits.memory),
            voice,
            last_error: None,
        }
    }

    pub(super) fn limiter(&mut self) -> &mut dyn wasmtime::ResourceLimiter {
        &mut self.limiter
    }
}

impl host::Host for HostState {
    fn log(&mut self, level: host::Level, mut message: String) {
        let urgency = match level {
            host::Level::Error => Urgency::Error,
            host::Level::Warn => Urgency::Warn,
            host::Level::Info => Urgency::Info,
            host::Level::Debug => Urgency::Debug,
        };
        self.voice.say(urgency, &message);
        if level == host::Level::Error {
            // The room that a long one took goes with what was cut.
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            message.shrink_to_fit();
            self.last_error = Some(message);
        }
    }
}

impl types::Host for HostState {}

/// A configured guest.
pub(crate) struct Instance {
    store: Store<HostState>,
    guest: contract::Plugin,
    says_it_is: String,
    /// Few: a table a version.
    interests: Vec<(u32, Interest)>,
    /// It has processed nothing yet.
    fresh: bool,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").finish_non_exhaustive()
    }
}

impl Instance {
    /// Instantiates and configures a guest, within [`STARTING`] each, or the deadline of a batch if that is longer.
    pub(crate) fn new(
        plugin: &Plugin,
        voice: Arc<Voice>,
        settings: &BTreeMap<String, String>,
        limits: Limits,
    ) -> Result<Self, PluginError> {
        let limits = starting(limits);
        let path = || plugin.path().to_owned();
        let start = |fault: Fault| PluginError::Start {
            path: path(),
            reason: fault.to_string(),
        };
        let mut store = Store::new(plugin.engine.wasmtime(), HostState::new(voice, limits));
        store.limiter(HostState::limiter);
        let instantiated = plugin.instantiate(&mut store, limits).map_err(start)?;
        // Nothing of the guest runs: its functions are looked up.
        let guest = contract::Plugin::new(&mut store, &instantiated).map_err(|e| {
            let reason =
                format!("a function of it takes or gives something else ({e:#}); {REBUILD}");
            PluginError::World {
                path: path(),
                reason,
            }
        })?;
        let setting = |(key, value): (&String, &String)| guest::Setting {
            key: key.clone(),
            value: value.clone(),
        };
        let settings: Vec<_> = settings.iter().map(setting).collect();
        arm(&mut store, limits);
        let answer = guest
            .penstock_plugin_transform()
            .call_configure(&mut store, &settings);
        let info = answer
            .map_err(|e| start(fault(&mut store, limits, &e)))?
            .map_err(|message| PluginError::Configure {
                path: path(),
                message: shortened(message),
            })?;
        if !(OLDEST_VERSION..=ENCODING_VERSION).contains(&info.encoding) {
            return Err(PluginError::Encoding {
                path: path(),
                found: info.encoding,
            });
        }
        Ok(Self {
            store,
            guest,
            says_it_is: shortened(format!("{} {}", info.name, info.version)),
            interests: Vec::new(),
            fresh: true,
        })
    }

    /// Its name and version, as it told them.
    pub(super) fn says_it_is(&self) -> &str {
        &self.says_it_is
    }
}

impl Guest for Instance {
    fn is_fresh(&self) -> bool {
        self.fresh
    }

    fn memory_in_use(&self) -> u64 {
        self.store.data().limiter.used
    }

    fn interest(&self, table: u32) -> Option<&Interest> {
        let (_, interest) = self.interests.iter().find(|(id, _)| *id == table)?;
        Some(interest)
    }

    fn open_table(&mut self, table: &TableSchema, limits: Limits) -> Result<Interest, Fault> {
        if let Some(known) = self.interest(table.id) {
            return Ok(known.clone());
        }
        let column = |(name, cql_type, kind): (&str, &str, ColumnKind)| types::Column {
            name: name.to_owned(),
            cql_type: cql_type.to_owned(),
            kind: match kind {
                ColumnKind::PartitionKey => types::ColumnKind::PartitionKey,
                ColumnKind::ClusteringKey => types::ColumnKind::ClusteringKey,
                ColumnKind::Static => types::ColumnKind::StaticColumn,
                ColumnKind::Regular => types::ColumnKind::Regular,
            },
        };
        let columns = table.columns.iter();
        let columns = columns.map(|c| column((&c.name, &c.cql_type, c.kind)));
        let described = guest::Table {
            id: table.id,
            keyspace: table.keyspace.clone(),
            name: table.name.clone(),
            columns: columns.collect(),
        };
        arm(&mut self.store, limits);
        let answer = self
            .guest
            .penstock_plugin_transform()
            .call_open_table(&mut self.store, &described);
        let interest = match answer {
            Err(e) => return Err(fault(&mut self.store, limits, &e)),
            Ok(Ok(guest::Interest::Ignore)) => Interest::Ignore,
            Ok(Ok(guest::Interest::All)) => Interest::All,
            Ok(Ok(guest::Interest::Columns(columns))) => {
                let mut mask = vec![false; table.columns.len()];
                let unknown = columns.iter().find(|c| usize::from(**c) >= mask.len());
                if let Some(unknown) = unknown {
                    Interest::Refused(format!(
                        "open-table asked for column {unknown} of {}.{}, which has {} columns",
                        table.keyspace,
                        table.name,
                        mask.len()
                    ))
                } else {
                    columns.iter().for_each(|c| mask[usize::from(*c)] = true);
                    Interest::Columns(Arc::new(Projection::new(mask)))
                }
            }
            Ok(Err(message)) => Interest::Refused(shortened(message)),
        };
        self.interests.push((table.id, interest.clone()));
        Ok(interest)
    }

    fn process(&mut self, batch: &[u8], limits: Limits) -> Result<Vec<u8>, Fault> {
        arm(&mut self.store, limits);
        self.fresh = false;
        let answer = self
            .guest
            .penstock_plugin_transform()
            .call_process(&mut self.store, batch);
        match answer {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(message)) => Err(Fault::Error(shortened(message))),
            Err(e) => Err(fault(&mut self.store, limits, &e)),
        }
    }
}

/// Makes the store ready for a call under these limits.
pub(super) fn arm(store: &mut Store<HostState>, limits: Limits) {
    let ticks = limits.deadline.as_nanos().div_ceil(TICK.as_nanos());
    // The first tick may come at once.
    store.set_epoch_deadline(
        u64::try_from(ticks)
            .unwrap_or(u64::MAX / 2)
            .saturating_add(1),
    );
    let state = store.data_mut();
    state.last_error = None;
    state.limiter.memory = limits.memory;
}

pub(super) fn fault(
    store: &mut Store<HostState>,
    limits: Limits,
    error: &wasmtime::Error,
) -> Fault {
    let state = store.data_mut();
    let trap = error.downcast_ref::<Trap>();
    if state.limiter.overrun {
        Fault::Memory(limits.memory)
    } else if trap == Some(&Trap::Interrupt) {
        Fault::Deadline(limits.deadline)
    } else {
        let reason = trap.map_or_else(|| error.root_cause().to_string(), Trap::to_string);
        match state.last_error.take() {
            Some(said) => Fault::Trap(format!("{reason}: {said}")),
            None => Fault::Trap(reason),
        }
    }
}

/// The schema of the pseudo-table of records.
pub(crate) fn record_schema() -> TableSchema {
    let column = |(name, cql_type): (&str, &str)| crate::change::Column {
        name: name.to_owned(),
        cql_type: cql_type.to_owned(),
        kind: ColumnKind::Regular,
    };
    TableSchema {
        id: record_table::ID,
        keyspace: record_table::KEYSPACE.to_owned(),
        name: record_table::NAME.to_owned(),
        columns: record_table::COLUMNS.map(column).to_vec(),
    }
}
