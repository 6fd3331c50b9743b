//! Transforms: what makes records of changes.
//!
//! A [`Chain`] belongs to one shard and is driven by it, one batch at a time, on a thread that may block. The
//! first transform sees changes; a later one sees the records of the one before, as rows of the pseudo-table
//! `penstock.record`, and the changes that were forwarded. A change that no transform routed is rendered as JSON.
//!
//! Invariants:
//! - Order is kept: what is made of a change stands where the change stood.
//! - A fault costs only the change that is to blame; `stage` finds it.
//! - Every change is accounted for: it has records, or is rejected, or counts as dropped.
//! - A guest reaches nothing but its own memory and our log, and none of its numbers is believed.

mod about;
mod draft;
mod guest;
mod refusals;
mod render;
mod report;
mod stage;
mod tap;
mod trace;
mod voice;
pub mod wasm;
mod when;

use std::sync::Arc;

pub use about::{About, SettingAbout, SettingKind};
pub use guest::{Code, Fault, Guest, Interest};
pub use report::{Spent, StageReport};
pub use tap::{Taken, TapFilter, Taps, TooManyTaps};
pub use trace::{Given, Passed, Plain, Step};
pub use voice::{Urgency, Voice};
pub use wasm::source::join as with_source;
pub use wasm::{Engine, EngineError, Facts, Plugin, PluginError, Prepared, TICK, Ticker, Wanted};

use crate::change::{Batch, Position, RecordBatch, Rejected, TableSchema};
use crate::config::settings::{LiveSettings, Settings};
use crate::policy::Class;
use draft::{Draft, Item};
use render::Renderer;
use stage::{Ran, Stage, Work};

/// A batch could not be processed. Nothing of it counts as done.
#[derive(Debug, thiserror::Error)]
pub enum TransformError {
    /// A change was refused and `on_error = "stop"`.
    #[error(
        "{stage} stops at {}: {error}",
        .position.map_or_else(|| "an unknown position".to_owned(), |p| p.to_string())
    )]
    Stopped {
        /// The stage.
        stage: Arc<str>,
        /// The change.
        position: Option<Position>,
        /// Why it was refused.
        error: String,
    },
    /// A plugin wants to be handed a change, and all after it, again later. The chain keeps the batch:
    /// [`Chain::go_on`].
    #[error("{stage} asked to be tried again: {error}")]
    NotYet {
        /// The stage.
        stage: Arc<str>,
        /// Its place in the chain.
        place: usize,
        /// What it said.
        error: String,
        /// How often it has said so of this change.
        tries: u32,
    },
    /// After a fault no new instance could be made.
    #[error("{stage} has no instance: {source}")]
    Instance {
        /// The stage.
        stage: Arc<str>,
        /// Why.
        source: PluginError,
    },
}

impl TransformError {
    /// What it means for the shard.
    pub fn class(&self) -> Class {
        match self {
            Self::Stopped { .. } => Class::Fatal,
            Self::Instance { .. } | Self::NotYet { .. } => Class::Retryable,
        }
    }

    /// The stage that failed.
    pub fn stage(&self) -> &Arc<str> {
        match self {
            Self::Stopped { stage, .. }
            | Self::NotYet { stage, .. }
            | Self::Instance { stage, .. } => stage,
        }
    }
}

/// There is no transform of this name in the chain.
#[derive(Debug, thiserror::Error)]
#[error("there is no transform {0:?} to replace")]
pub struct NoSuchTransform(pub String);

/// The transforms of one shard.
#[derive(Debug)]
pub struct Chain {
    stages: Vec<Stage>,
    live: LiveSettings,
    renderer: Renderer,
    tables: Vec<Arc<TableSchema>>,
    reports: Vec<StageReport>,
    taps: Option<Arc<Taps>>,
    /// A batch that a transform said "not yet" to.
    held: Option<Flow>,
}

/// A batch on its way through the chain.
#[derive(Debug)]
struct Flow {
    draft: Draft,
    /// The stage that is next.
    place: usize,
    work: Work,
    changes: usize,
    rejected: Vec<Rejected>,
}

/// A shard hands its chain to a thread that may block, and is handed successors from another.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Chain>();
    is_send::<Prepared>();
};

/// Table versions that are remembered for [`Chain::tables`]: a warm start for those that are in use.
const MAX_TABLES: usize = 256;

impl Chain {
    /// A chain of these transforms, in the order of the file. With none, every change is rendered.
    pub fn new(transforms: Vec<Prepared>, live: LiveSettings) -> Self {
        Self {
            stages: transforms.into_iter().map(Stage::new).collect(),
            live,
            renderer: Renderer::default(),
            tables: Vec::new(),
            reports: Vec::new(),
            taps: None,
            held: None,
        }
    }

    /// Shows what passes it to these.
    #[must_use]
    pub fn with_taps(self, taps: Arc<Taps>) -> Self {
        Self {
            taps: Some(taps),
            ..self
        }
    }

    /// Makes records of a batch. Blocks: at most some deadlines for each change that a plugin fails on.
    ///
    /// # Errors
    /// See [`TransformError`]; the shard goes back to its checkpoint then, but for [`TransformError::NotYet`].
    pub fn process(&mut self, batch: Batch) -> Result<RecordBatch, TransformError> {
        self.process_watched(batch, &|| {})
    }

    /// As [`Self::process`], with a `pulse` before each call of a plugin: a batch of many bad changes takes a
    /// deadline and more for each, and whoever looks on may take that for one call that hangs.
    ///
    /// # Errors
    /// See [`TransformError`].
    pub fn process_watched(
        &mut self,
        batch: Batch,
        pulse: &dyn Fn(),
    ) -> Result<RecordBatch, TransformError> {
        self.reports.clear();
        let settings = self.live.borrow().clone();
        for table in &batch.tables {
            if self.tables.iter().all(|known| known.id != table.id) {
                if self.tables.len() == MAX_TABLES {
                    self.tables.remove(0);
                }
                self.tables.push(table.clone());
            }
        }
        let items: Vec<Item> = stage::changes(&batch).map(Item::Change).collect();
        let draft = Draft::of(batch, settings.clone());
        if let Some(taps) = self.taps.as_deref().filter(|taps| taps.is_open()) {
            taps.show("source", &draft, &items, &mut self.renderer);
        }
        let flow = Flow {
            draft,
            place: 0,
            changes: items.len(),
            work: Work::new(items),
            rejected: Vec::new(),
        };
        self.run(flow, &settings, pulse)
    }

    /// Goes on with the batch that a transform said "not yet" to, from that transform on, or, with `give_up`, after the
    /// change, which is refused. [`Self::reports`] then begin with that transform. `None`: there is no such batch.
    ///
    /// # Errors
    /// See [`TransformError`].
    pub fn go_on(
        &mut self,
        give_up: bool,
        pulse: &dyn Fn(),
    ) -> Option<Result<RecordBatch, TransformError>> {
        let mut flow = self.held.take()?;
        self.reports.clear();
        if give_up {
            flow.work.give_up();
        }
        let settings = self.live.borrow().clone();
        Some(self.run(flow, &settings, pulse))
    }

    fn run(
        &mut self,
        mut flow: Flow,
        settings: &Settings,
        pulse: &dyn Fn(),
    ) -> Result<RecordBatch, TransformError> {
        self.held = None;
        let taps = self.taps.as_deref().filter(|taps| taps.is_open());
        while let Some(stage) = self.stages.get_mut(flow.place) {
            let work = std::mem::take(&mut flow.work);
            let ran = stage.run(&mut flow.draft, work, settings, pulse);
            self.reports.push(stage.report.clone());
            match ran? {
                Ran::Done(outcome) => {
                    if let Some(taps) = taps {
                        let (stage, items) = (&stage.report.stage, &outcome.items);
                        taps.show(stage, &flow.draft, items, &mut self.renderer);
                    }
                    flow.rejected.extend(outcome.rejected);
                    flow.work = Work::new(outcome.items);
                    flow.place += 1;
                }
                Ran::NotYet(work) => {
                    let (tries, error) = work.put_off();
                    let not_yet = TransformError::NotYet {
                        stage: stage.report.stage.clone(),
                        place: flow.place,
                        error: error.to_owned(),
                        tries,
                    };
                    flow.work = work;
                    self.held = Some(flow);
                    return Err(not_yet);
                }
            }
        }
        let Flow {
            mut draft,
            work,
            changes,
            mut rejected,
            ..
        } = flow;
        let items = work.into_items();
        let mut records = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Item::Record(record) => records.push(record),
                Item::Change(change) => {
                    let (sink, pipeline) = (&settings.sink, &settings.pipeline.name);
                    match self.renderer.render(&mut draft, change, sink, pipeline) {
                        Ok(record) => records.push(record),
                        Err(error) => rejected.push(Rejected {
                            source: change,
                            stage: "sink".into(),
                            error,
                            attempts: 1,
                        }),
                    }
                }
            }
        }
        if !rejected.is_empty() {
            rejected.sort_by_key(|r| r.source);
            let is_rejected =
                |source: u32| rejected.binary_search_by_key(&source, |r| r.source).is_ok();
            records.retain(|record| !is_rejected(record.source));
        }
        if let Some(taps) = taps {
            let items: Vec<Item> = records.iter().cloned().map(Item::Record).collect();
            taps.show("sink", &draft, &items, &mut self.renderer);
        }
        // Both are in the order of the changes, and none is in both.
        let done = records.chunk_by(|a, b| a.source == b.source).count()
            + rejected.chunk_by(|a, b| a.source == b.source).count();
        let mut made = draft.batch;
        made.dropped = (changes - done) as u32;
        made.records = records;
        made.rejected = rejected;
        Ok(made)
    }

    /// Lets a prepared instance take over from the transform of its name. To be called between two batches.
    pub fn swap(&mut self, prepared: Prepared) -> Result<(), NoSuchTransform> {
        let slot = self.stages.iter_mut().find(|s| s.name() == prepared.name());
        match slot {
            Some(slot) => {
                *slot = Stage::new(prepared);
                Ok(())
            }
            None => Err(NoSuchTransform(prepared.name().to_owned())),
        }
    }

    /// What each transform did with the last batch, in order: complete up to the one that failed, if one did.
    pub fn reports(&self) -> &[StageReport] {
        &self.reports
    }

    /// The table versions seen, for [`Prepared::new`] of a successor.
    pub fn tables(&self) -> &[Arc<TableSchema>] {
        &self.tables
    }

    /// Bytes of memory of all instances, as they are now.
    pub fn memory(&self) -> u64 {
        self.stages.iter().map(Stage::memory).sum()
    }

    /// The plugin that serves a transform.
    pub fn plugin(&self, transform: &str) -> Option<&Arc<dyn Code>> {
        let stage = self.stages.iter().find(|s| s.name() == transform)?;
        Some(stage.plugin())
    }
}
