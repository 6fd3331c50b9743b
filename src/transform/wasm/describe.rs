//! What a plugin's file is made of, and what the plugin says of itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::types::ComponentItem;

use super::describing::exports::penstock::plugin::description as contract;
use super::describing::{DescribesItself, DescribesItselfPre};
use super::instance::{HostState, Instance, arm, fault, starting};
use super::plugin::{Plugin, PluginError};
use crate::change::TableSchema;
use crate::config::settings::Limits;
use crate::transform::about::{About, SettingAbout, SettingKind};
use crate::transform::guest::{Code, Guest, Interest};
use crate::transform::voice::Voice;

/// What can be seen of a plugin without running a change through it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The interfaces and functions that it asks for.
    pub imports: Vec<String>,
    /// Those that it has.
    pub exports: Vec<String>,
}

impl Plugin {
    /// What the component imports and exports, interfaces with their functions.
    pub fn facts(&self) -> Facts {
        let engine = self.engine.wasmtime();
        let component = self.pre.instance_pre().component();
        let kind = component.component_type();
        // An interface without functions is types only: nothing is called by it.
        let say = |name: &str, item: &ComponentItem| match item {
            ComponentItem::ComponentInstance(instance) => {
                let functions = instance.exports(engine).filter_map(|(name, item)| {
                    matches!(item.ty, ComponentItem::ComponentFunc(_)).then(|| name.to_owned())
                });
                let functions: Vec<String> = functions.collect();
                (!functions.is_empty()).then(|| format!("{name} ({})", functions.join(", ")))
            }
            _ => Some(name.to_owned()),
        };
        let sorted = |said: &mut dyn Iterator<Item = Option<String>>| {
            let mut said: Vec<String> = said.flatten().collect();
            said.sort_unstable();
            said
        };
        // The order in the file is the linker's, and another one after each build.
        Facts {
            imports: sorted(&mut kind.imports(engine).map(|(n, item)| say(n, &item.ty))),
            exports: sorted(&mut kind.exports(engine).map(|(n, item)| say(n, &item.ty))),
        }
    }

    /// What the plugin says of itself; `None` for one that says nothing, which is legal.
    ///
    /// # Errors
    /// It traps, or takes longer than its limits allow.
    pub fn describe(&self, limits: Limits) -> Result<Option<About>, PluginError> {
        if DescribesItselfPre::new(self.pre.instance_pre().clone()).is_err() {
            return Ok(None);
        }
        let limits = starting(limits);
        let mut store = Store::new(
            self.engine.wasmtime(),
            HostState::new(Arc::new(Voice::of("plugin")), limits),
        );
        store.limiter(HostState::limiter);
        let described = self.instantiate(&mut store, limits).and_then(|instance| {
            arm(&mut store, limits);
            DescribesItself::new(&mut store, &instance)
                .and_then(|guest| {
                    guest
                        .penstock_plugin_description()
                        .call_describe(&mut store)
                })
                .map_err(|e| fault(&mut store, limits, &e))
        });
        match described {
            Ok(about) => Ok(Some(About::from(about))),
            Err(fault) => Err(PluginError::Start {
                path: self.path().to_owned(),
                reason: fault.to_string(),
            }),
        }
    }

    /// The plugin's name and version, as it answers to these settings, and the columns that it wants of each table:
    /// `Ok(None)` all of them, `Err` why the table is refused.
    ///
    /// # Errors
    /// It refuses the settings, or fails.
    pub fn ask(
        &self,
        settings: &BTreeMap<String, String>,
        tables: &[Arc<TableSchema>],
        limits: Limits,
    ) -> Result<(String, Vec<Wanted>), PluginError> {
        let mut instance = Instance::new(self, Arc::new(Voice::of("plugin")), settings, limits)?;
        let mut wanted = Vec::new();
        for table in tables {
            let interest = instance.open_table(table, limits);
            let interest = interest.map_err(|fault| PluginError::Start {
                path: self.path().to_owned(),
                reason: fault.to_string(),
            })?;
            wanted.push(match interest {
                Interest::Ignore => Wanted::Nothing,
                Interest::All => Wanted::Everything,
                Interest::Refused(why) => Wanted::Refused(why),
                Interest::Columns(columns) => {
                    let named = table.columns.iter().zip(0..);
                    let named = named.filter(|(_, index)| columns.has(*index));
                    Wanted::Columns(named.map(|(column, _)| column.name.clone()).collect())
                }
            });
        }
        Ok((instance.says_it_is().to_owned(), wanted))
    }
}

/// What a plugin wants to be sent of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Its changes pass by.
    Nothing,
    /// Every column.
    Everything,
    /// These columns.
    Columns(Vec<String>),
    /// It cannot work with the table, and says why.
    Refused(String),
}

impl From<contract::About> for About {
    fn from(about: contract::About) -> Self {
        let setting = |s: contract::SettingAbout| SettingAbout {
            name: s.name,
            kind: match s.kind {
                contract::SettingType::Text => SettingKind::Text,
                contract::SettingType::Integer => SettingKind::Integer,
                contract::SettingType::Number => SettingKind::Number,
                contract::SettingType::Boolean => SettingKind::Boolean,
                contract::SettingType::Texts => SettingKind::Texts,
                contract::SettingType::Table => SettingKind::Table,
            },
            default: s.default,
            required: s.required,
            doc: s.doc,
            choices: s.choices,
        };
        Self {
            sdk: about.sdk,
            doc: about.doc,
            settings: about.settings.into_iter().map(setting).collect(),
            others: about.others,
        }
    }
}
