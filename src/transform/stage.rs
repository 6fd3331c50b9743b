//! One transform of a chain: what it is sent, and how the one bad change is found when it fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use penstock_plugin_encoding::record_table;

use super::TransformError;
use super::draft::{Draft, Item, Made, NotYet};
use super::guest::{Code, Fault, Guest, Interest};
use super::refusals::{self, Refusals};
use super::report::StageReport;
use super::voice::Voice;
use super::wasm::encoding::Input;
use super::wasm::swap::{Prepared, records};
use super::when::When;
use crate::change::{Batch, Rejected, TableSchema};
use crate::config::settings::{Limits, OnError, Settings};

/// A transform at work in one shard.
#[derive(Debug)]
pub(super) struct Stage {
    name: String,
    stage: Arc<str>,
    /// That of all its instances.
    voice: Arc<Voice>,
    plugin: Arc<dyn Code>,
    settings: BTreeMap<String, String>,
    limits: Limits,
    on_error: OnError,
    /// The tables that it is for; `None`: all.
    tables: Option<Vec<String>>,
    /// … and the changes and records; `None`: all.
    when: Option<When>,
    /// `None` after a fault, until the next call.
    instance: Option<Box<dyn Guest>>,
    /// Whether the last call was the first of its instance.
    fresh: bool,
    records: Arc<TableSchema>,
    /// Tables that no instance could open, or that the plugin does not take.
    refused: Refusals,
    pub(super) report: StageReport,
}

/// What the stage made of a batch.
pub(super) struct Outcome {
    pub(super) items: Vec<Item>,
    pub(super) rejected: Vec<Rejected>,
}

/// Items on their way through a stage, which may want to be asked again later.
#[derive(Debug, Default)]
pub(super) struct Work {
    items: Vec<Item>,
    /// What became of the items before `next`.
    made: Vec<(u32, Made)>,
    attempts: BTreeMap<u32, u32>,
    /// The first item that is not done.
    next: u32,
    /// How often the stage said "not yet" to it, and with which words.
    tries: u32,
    said: String,
}

impl Work {
    pub(super) fn new(items: Vec<Item>) -> Self {
        Self {
            items,
            ..Self::default()
        }
    }

    pub(super) fn into_items(self) -> Vec<Item> {
        self.items
    }

    /// How often, and with which words, the stage put off the item that is next.
    pub(super) fn put_off(&self) -> (u32, &str) {
        (self.tries, &self.said)
    }

    /// The row of the change that is next.
    pub(super) fn source(&self) -> Option<u32> {
        Some(self.items.get(self.next as usize)?.source())
    }

    /// The item that is next was tried often enough: it is refused.
    pub(super) fn give_up(&mut self) {
        self.attempts.insert(self.next, self.tries);
        let said = std::mem::take(&mut self.said);
        self.made.push((self.next, Made::Refused(said)));
        self.next += 1;
        self.tries = 0;
    }
}

/// How far a stage came with its work.
pub(super) enum Ran {
    /// To the end.
    Done(Outcome),
    /// To an item that it wants to be asked for again later.
    NotYet(Work),
}

impl Stage {
    pub(super) fn new(prepared: Prepared) -> Self {
        let stage = prepared.voice.stage().clone();
        Self {
            stage: stage.clone(),
            voice: prepared.voice,
            name: prepared.name,
            plugin: prepared.plugin,
            settings: prepared.settings,
            limits: prepared.limits,
            on_error: OnError::DeadLetter,
            tables: None,
            when: None,
            instance: Some(prepared.instance),
            fresh: false,
            records: records(),
            refused: Refusals::default(),
            report: StageReport {
                stage,
                ..StageReport::default()
            },
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of its instance's memory.
    pub(super) fn memory(&self) -> u64 {
        self.instance
            .as_ref()
            .map_or(0, |guest| guest.memory_in_use())
    }

    pub(super) fn plugin(&self) -> &Arc<dyn Code> {
        &self.plugin
    }

    /// Runs the items through the plugin, from the first that is not done.
    pub(super) fn run(
        &mut self,
        draft: &mut Draft,
        mut work: Work,
        live: &Settings,
        pulse: &dyn Fn(),
    ) -> Result<Ran, TransformError> {
        let started = Instant::now();
        // Read at use, so that a retune needs nothing of us; a transform that the file no longer has keeps
        // what it had until the shard is rebuilt.
        if let Some(now) = live.transforms.iter().find(|t| t.name == self.name) {
            self.limits = now.limits;
            self.on_error = now.on_error;
            if self.tables != now.tables {
                self.tables.clone_from(&now.tables);
                self.refused.reconsider();
            }
            let same = match &self.when {
                Some(when) => when.is(now.when.as_ref()),
                None => now.when.is_none(),
            };
            if !same {
                self.when = now.when.clone().map(When::new);
                self.refused.reconsider();
            }
        }
        self.report = StageReport {
            stage: self.stage.clone(),
            items: work.items.len() as u32 - work.next,
            refuses: self.refused.told(),
            ..StageReport::default()
        };
        work.made.reserve(work.items.len());
        let wanted = self.wanted(draft, &mut work)?;
        let not_yet = self.isolate(draft, &mut work, &wanted, pulse)?;
        self.report.refuses = self.refused.told();
        let ran = match not_yet {
            None => Ran::Done(self.settle(draft, work)?),
            Some(NotYet { item, message }) => {
                // What is made of later ones without asking (they pass by) is found again.
                work.made.retain(|(made, _)| *made < item);
                self.report.items = item - work.next;
                self.report
                    .faults
                    .push(format!("asked to be tried again: {message}"));
                let before = if item == work.next { work.tries } else { 0 };
                (work.next, work.tries, work.said) = (item, before.saturating_add(1), message);
                Ran::NotYet(work)
            }
        };
        let done = Instant::now();
        self.report.lines_left_out = self.voice.left_out(done);
        self.report.elapsed = done - started;
        Ok(ran)
    }

    /// The instance, made anew if the last one had a fault.
    fn instance(&mut self) -> Result<&mut dyn Guest, TransformError> {
        if self.instance.is_none() {
            let (plugin, stage, limits) = (&self.plugin, &self.stage, self.limits);
            let make = || plugin.instance(&self.voice, &self.settings, limits);
            // It took its settings before; a deadline may be missed because the machine is busy.
            let renewed = make().or_else(|_| make());
            self.instance = Some(renewed.map_err(|source| TransformError::Instance {
                stage: stage.clone(),
                source,
            })?);
            self.report.renewed += 1;
        }
        Ok(self.instance.as_deref_mut().expect("made above"))
    }

    /// Opens the tables of the items and says which items the plugin is to see; what is to become of the
    /// others goes to `made`.
    fn wanted(&mut self, draft: &Draft, work: &mut Work) -> Result<Vec<u32>, TransformError> {
        let Work {
            items, made, next, ..
        } = work;
        let mut wanted = Vec::with_capacity(items.len());
        let mut last: Option<(u32, Interest)> = None;
        // Whether this transform is for a table of the source.
        let mut meant: Option<(u32, bool)> = None;
        for (item, index) in items.iter().zip(0..).skip(*next as usize) {
            if let Some(tables) = &self.tables {
                let rows = &draft.batch.source.rows;
                let origin = rows
                    .get(item.source() as usize)
                    .map_or(0, |row| row.table());
                let known = meant
                    .filter(|(id, _)| *id == origin)
                    .map(|(_, meant)| meant);
                let ours = known.unwrap_or_else(|| {
                    let table = draft.batch.source.table(origin);
                    table.is_some_and(|t| tables.contains(&t.name))
                });
                meant = Some((origin, ours));
                if !ours {
                    made.push((index, Made::Forward));
                    continue;
                }
            }
            if let Some(when) = &mut self.when {
                let other = match when.holds(draft, item) {
                    Ok(true) => None,
                    Ok(false) => Some(Made::Forward),
                    Err(error) => Some(Made::Refused(error)),
                };
                if let Some(other) = other {
                    made.push((index, other));
                    continue;
                }
            }
            let table = table_of(&draft.batch.source, item);
            if last.as_ref().is_none_or(|(id, _)| *id != table) {
                let interest = self.open(&draft.batch.source, table)?;
                last = Some((table, interest));
            }
            match last.as_ref().map(|(_, interest)| interest) {
                Some(Interest::Ignore) => made.push((index, Made::Forward)),
                Some(Interest::Refused(message)) => {
                    made.push((index, Made::Refused(message.clone())));
                }
                _ => wanted.push(index),
            }
        }
        Ok(wanted)
    }

    fn open(&mut self, batch: &Batch, table: u32) -> Result<Interest, TransformError> {
        if let Some((why, named)) = self.refused.failed_lately(table) {
            // Each batch that meets it is a failure of the transform: or its breaker would never open, and a plugin that cannot
            // open its table would drain it into the dead letters.
            if !self.report.faults.contains(&named) {
                self.report.faults.push(named);
            }
            return Ok(Interest::Refused(why));
        }
        match self.instance()?.interest(table) {
            // It is told by the table's name.
            None | Some(Interest::Refused(_)) => {}
            Some(known) => return Ok(known.clone()),
        }
        let schema = match table {
            record_table::ID => Some(self.records.clone()),
            id => batch.table(id).cloned(),
        };
        let Some(schema) = schema else {
            return Ok(Interest::Refused(format!(
                "table version {table} is not in the batch"
            )));
        };
        let limits = self.limits;
        let mut last = String::new();
        // Twice: a deadline may be missed because the machine was busy.
        for _ in 0..2 {
            match self.instance()?.open_table(&schema, limits) {
                Ok(interest) => {
                    match &interest {
                        Interest::Refused(why) => self.refused.answered(&schema, why),
                        _ => self.refused.opened(&schema),
                    }
                    return Ok(interest);
                }
                Err(fault) => {
                    last = format!("open-table: {fault}");
                    let (stage, table) = (&*self.stage, &*schema.name);
                    tracing::warn!(stage, table, %fault, "plugin failed to open a table");
                    self.report.faults.push(refusals::reason(&schema, &last));
                    self.instance = None;
                }
            }
        }
        self.refused.failed(&schema, &last);
        Ok(Interest::Refused(last))
    }

    /// Opens the tables of a part in the instance at hand, which may be a new one that knows none.
    fn open_all(
        &mut self,
        batch: &Batch,
        items: &[Item],
        chunk: &[u32],
    ) -> Result<Result<(), Fault>, TransformError> {
        let mut tables: Vec<u32> = Vec::new();
        for index in chunk {
            let table = table_of(batch, &items[*index as usize]);
            if !tables.contains(&table) {
                tables.push(table);
            }
        }
        // A table that fails takes the instance with it, and what was opened in it.
        loop {
            let instance = self.instance()?;
            let Some(table) = tables.iter().find(|t| instance.interest(**t).is_none()) else {
                return Ok(Ok(()));
            };
            if let Interest::Refused(message) = self.open(batch, *table)? {
                return Ok(Err(Fault::Error(message)));
            }
        }
    }

    /// Calls the plugin with all wanted items. When it fails, halves from the left until the one bad item is
    /// found, then goes on with parts that double. A bad item so costs at most log2(items) + 3 failed calls,
    /// and a run of bad ones one each.
    ///
    /// An item is to blame only for what it does to a fresh instance: one that has served others may fail over
    /// what they left in it (a leak that has come to the limit, a count that overflows).
    ///
    /// Ends where the plugin says "not yet".
    fn isolate(
        &mut self,
        draft: &mut Draft,
        work: &mut Work,
        wanted: &[u32],
        pulse: &dyn Fn(),
    ) -> Result<Option<NotYet>, TransformError> {
        let Work {
            items,
            made,
            attempts,
            ..
        } = work;
        let (mut at, mut size) = (0, wanted.len());
        // The ends of parts that failed as a whole and begin before `at`.
        let mut failed: Vec<usize> = Vec::new();
        let mut unexplained = None;
        // What the item at hand did alone, to an instance that may be to blame itself.
        let mut doubted: Option<Fault> = None;
        while at < wanted.len() {
            pulse();
            while failed.last().is_some_and(|end| *end <= at) {
                failed.pop();
            }
            let limit = failed.last().copied().unwrap_or(wanted.len());
            let end = cut(draft, items, wanted, at, size, limit);
            match self.call(draft, items, &wanted[at..end], made)? {
                Ok(Some(not_yet)) => {
                    self.report.faults.extend(unexplained);
                    return Ok(Some(not_yet));
                }
                Ok(None) => {
                    at = end;
                    size = size.saturating_mul(2);
                    match doubted.take() {
                        // The machine was busy.
                        None | Some(Fault::Deadline(_)) => {}
                        Some(fault) => {
                            unexplained.get_or_insert_with(|| fault.to_string());
                        }
                    }
                }
                Err(fault)
                    if end - at == 1
                        && doubted.is_none()
                        && self.is_in_doubt(&fault, failed.is_empty()) =>
                {
                    doubted = Some(fault);
                }
                Err(fault) if end - at == 1 => {
                    let doubts = u32::from(doubted.take().is_some());
                    let tries = failed.len() as u32 + 1 + doubts;
                    attempts.insert(wanted[at], tries);
                    made.push((wanted[at], Made::Refused(fault.to_string())));
                    if fault.counts() {
                        self.report.faults.push(fault.to_string());
                    }
                    // The failures around it are explained.
                    failed.clear();
                    unexplained = None;
                    at = end;
                    size = 1;
                }
                Err(fault) => {
                    tracing::debug!(
                        stage = &*self.stage,
                        changes = end - at,
                        %fault,
                        "plugin failed, looking for the change to blame"
                    );
                    if fault.counts() && unexplained.is_none() {
                        unexplained = Some(fault.to_string());
                    }
                    failed.push(end);
                    size = (end - at) / 2;
                }
            }
        }
        self.report.faults.extend(unexplained);
        Ok(None)
    }

    /// Whether something else than the one item of the last call may have caused its fault, so that it gets
    /// another try, on a fresh instance.
    fn is_in_doubt(&self, fault: &Fault, first: bool) -> bool {
        match fault {
            // The guest answered.
            Fault::Error(_) => false,
            _ if !self.fresh => true,
            // A deadline is one of the wall clock: the machine may have been busy. Whoever has been in one failed
            // call only gets another try, unless the plugin has shown that it does miss deadlines.
            Fault::Deadline(_) => first && self.report.faults.is_empty(),
            _ => false,
        }
    }

    /// One call of the guest.
    fn call(
        &mut self,
        draft: &mut Draft,
        items: &[Item],
        chunk: &[u32],
        made: &mut Vec<(u32, Made)>,
    ) -> Result<Result<Option<NotYet>, Fault>, TransformError> {
        if let Err(refused) = self.open_all(&draft.batch.source, items, chunk)? {
            return Ok(Err(refused));
        }
        let limits = self.limits;
        self.fresh = self.instance()?.is_fresh();
        let instance = self.instance()?;
        let whole = chunk.len() == items.len()
            && items.iter().all(|item| {
                let table = table_of(&draft.batch.source, item);
                matches!(item, Item::Change(_)) && instance.interest(table) == Some(&Interest::All)
            })
            && items.len() == changes(&draft.batch.source).count();
        let began = Instant::now();
        let input = if whole {
            Input::whole(&draft.batch, items)
        } else {
            Input::of_chunk(draft, items, chunk, |table| instance.interest(table))
        };
        let encoded = Instant::now();
        let output = instance.process(input.bytes(), limits);
        let called = Instant::now();
        let sent = input.sent();
        let result = output.and_then(|output| {
            let decoded = sent.decode(output, draft, items, made);
            decoded.map_err(Fault::Output)
        });
        let spent = &mut self.report.spent;
        spent.encode += encoded - began;
        spent.call += called - encoded;
        spent.decode += called.elapsed();
        if result.as_ref().is_err_and(Fault::counts) {
            // A trap leaves a guest in no known state, and one that lies is not to be trusted with more.
            self.instance = None;
        }
        Ok(result)
    }

    /// Puts what was made in order and applies `on_error`.
    fn settle(&mut self, draft: &Draft, work: Work) -> Result<Outcome, TransformError> {
        let Work {
            items,
            mut made,
            attempts,
            ..
        } = work;
        if !made.is_sorted_by_key(|(item, _)| *item) {
            made.sort_by_key(|(item, _)| *item);
        }
        let mut outcome = Outcome {
            items: Vec::with_capacity(made.len()),
            rejected: Vec::new(),
        };
        let mut refused: Vec<u32> = Vec::new();
        for (index, made) in made {
            let item = &items[index as usize];
            match made {
                Made::Record(record) => outcome.items.push(Item::Record(record)),
                Made::Forward => outcome.items.push(item.clone()),
                Made::Refused(error) => {
                    let source = item.source();
                    if refused.last() == Some(&source) {
                        continue;
                    }
                    refused.push(source);
                    match self.on_error {
                        OnError::DeadLetter => {
                            self.report.rejected += 1;
                            outcome.rejected.push(Rejected {
                                source,
                                stage: self.stage.clone(),
                                error,
                                attempts: attempts.get(&index).copied().unwrap_or(1),
                            });
                        }
                        OnError::Drop => self.report.dropped_on_error += 1,
                        OnError::Stop => {
                            return Err(TransformError::Stopped {
                                stage: self.stage.clone(),
                                position: draft
                                    .batch
                                    .source
                                    .positions
                                    .get(source as usize)
                                    .copied(),
                                error,
                            });
                        }
                    }
                }
            }
        }
        if !refused.is_empty() {
            // A change that is refused makes nothing at all, or its replay would make some of it twice.
            outcome
                .items
                .retain(|item| refused.binary_search(&item.source()).is_err());
        }
        Ok(outcome)
    }
}

/// The rows of a batch that are changes: no images, no ends of ranges, no context.
pub(super) fn changes(batch: &Batch) -> impl Iterator<Item = u32> + '_ {
    let rows = batch.rows.iter().zip(0..);
    rows.filter_map(|(row, index)| row.is_change().then_some(index))
}

fn table_of(batch: &Batch, item: &Item) -> u32 {
    match item {
        Item::Record(_) => record_table::ID,
        Item::Change(row) => batch.rows.get(*row as usize).map_or(0, |row| row.table()),
    }
}

/// Where a part of at most `size` items from `at` on ends: between two writes (one stream and time) if it can.
fn cut(
    draft: &Draft,
    items: &[Item],
    wanted: &[u32],
    at: usize,
    size: usize,
    limit: usize,
) -> usize {
    let want = at + size.max(1);
    if want >= limit {
        return limit;
    }
    let positions = &draft.batch.source.positions;
    let write = |i: usize| {
        let source = items[wanted[i] as usize].source();
        let position = positions.get(source as usize);
        position.map(|p| (p.stream, p.time))
    };
    let boundary = |&i: &usize| write(i - 1) != write(i);
    (at + 1..=want)
        .rev()
        .find(boundary)
        .or_else(|| (want + 1..limit).find(boundary))
        .unwrap_or(want)
}
