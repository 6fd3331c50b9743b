//! Made-up plugins. What one does stands in its file, in words: `pass`, `to <topic>`, `refuses` (its settings), `traps`,
//! `opens nothing`, `declines` (every table).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_plugin_encoding::Rows;
use penstock_plugin_encoding::{Field, OutputWriter};
use sha2::{Digest, Sha256};

use super::super::plugins::Plugins;
use crate::change::TableSchema;
use crate::config::Settings;
use crate::config::settings::Limits;
use crate::transform::{Code, Fault, Guest, Interest, PluginError, Voice};

pub(super) struct Words;

impl Plugins for Words {
    fn load(&self, path: &Path) -> Result<Arc<dyn Code>, PluginError> {
        let words = std::fs::read_to_string(path).map_err(|error| PluginError::Read {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Arc::new(Plugin {
            path: path.to_owned(),
            digest: Sha256::digest(&words).into(),
            words: words.trim().to_owned(),
        }))
    }

    fn suffices(&self, _: &Settings) -> bool {
        true
    }
}

#[derive(Debug)]
struct Plugin {
    path: PathBuf,
    digest: [u8; 32],
    words: String,
}

impl Code for Plugin {
    fn path(&self) -> &Path {
        &self.path
    }

    fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    fn instance(
        &self,
        _: &Arc<Voice>,
        _: &BTreeMap<String, String>,
        _: Limits,
    ) -> Result<Box<dyn Guest>, PluginError> {
        match &*self.words {
            "refuses" => Err(PluginError::Configure {
                path: self.path.clone(),
                message: "not these settings".into(),
            }),
            words => Ok(Box::new(Instance {
                words: words.to_owned(),
                fresh: true,
                opened: Vec::new(),
            })),
        }
    }
}

#[derive(Debug)]
struct Instance {
    words: String,
    fresh: bool,
    opened: Vec<(u32, Interest)>,
}

impl Guest for Instance {
    fn is_fresh(&self) -> bool {
        self.fresh
    }

    fn memory_in_use(&self) -> u64 {
        0
    }

    fn interest(&self, table: u32) -> Option<&Interest> {
        let (_, interest) = self.opened.iter().find(|(id, _)| *id == table)?;
        Some(interest)
    }

    fn open_table(&mut self, table: &TableSchema, limits: Limits) -> Result<Interest, Fault> {
        let interest = match &*self.words {
            "opens nothing" => return Err(Fault::Deadline(limits.deadline)),
            "declines" => Interest::Refused("not this table".to_owned()),
            _ => Interest::All,
        };
        self.opened.push((table.id, interest.clone()));
        Ok(interest)
    }

    fn process(&mut self, batch: &[u8], _: Limits) -> Result<Vec<u8>, Fault> {
        self.fresh = false;
        let rows = Rows::parse(batch.to_vec()).map_err(|e| Fault::Error(e.to_string()))?;
        let mut output = OutputWriter::default();
        for row in 0..rows.len() as u32 {
            match self.words.strip_prefix("to ") {
                Some(topic) => {
                    output.record(row, topic);
                    output.value(Field::Bytes(b"v"));
                }
                None if self.words == "traps" => return Err(Fault::Trap("made up".into())),
                None => output.forward(row),
            }
        }
        Ok(output.finish())
    }
}
