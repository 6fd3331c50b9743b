//! What every shard has to know of the cluster, asked by one child and published: the generations of each
//! table, their streams, the options of the logs, the schema.
//!
//! The shards ask nobody. They look at what is published, and say what else they want to know; so a shard that
//! stands still holds up no answer that another one waits for, and a question is asked once, not once a shard.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::ScyllaSource;
use super::error::SourceError;
use super::gaps::{Emptied, News, Seen};
use super::generations::Generation;
use super::log::LogTable;
use super::{classify, clock};
use crate::change::StreamId;
use crate::policy::Class;
use crate::policy::breaker::State;

/// Bounds of how often the generations are looked at; half the safety interval between them. Windows never
/// pass what the last look says, so a new generation is never read over.
const POLL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A generation of vnodes is announced this long ahead at the least (ScyllaDB: twice its ring delay, a minute, and 5 s
/// more; it refuses writes that far ahead, which might belong to one that is not known yet). So windows may pass the last
/// look by it. One that was not announced in time loses nothing by it: its streams are its own, and are read from where it
/// begins. A tablet's stream may go on in the next generation, and would be read twice: it waits for the look.
const AHEAD_US: i64 = 1_000_000;
/// … which comes as often as the log is read then, but no more often than this.
const QUICK_LOOK: Duration = Duration::from_millis(5);

/// How soon it is seen that the breaker is open no longer.
const OPEN_LOOK: Duration = Duration::from_millis(100);
/// How soon a step of this machine's clock is seen.
const STEP_LOOK: Duration = Duration::from_millis(200);

/// The streams of a generation, by group: a vnode's together, each tablet's alone.
pub(super) type Streams = Arc<[Arc<[StreamId]>]>;

/// What is known of a table.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// Its generations, ascending.
    pub(super) generations: Arc<[Generation]>,
    /// A generation that starts before this time (µs since the Unix epoch) is in the list: ScyllaDB announces
    /// them ahead.
    pub(super) as_of_us: i64,
    /// There is a log to read.
    pub(super) has_log: bool,
    /// The streams of those that were asked for. None at all: ScyllaDB has not filled them in, or never will.
    pub(super) streams: BTreeMap<Generation, Streams>,
}

impl Known {
    /// Nothing yet.
    pub(super) fn nothing() -> Self {
        Self {
            generations: Arc::default(),
            as_of_us: i64::MIN,
            has_log: true,
            streams: BTreeMap::new(),
        }
    }
}

/// What the shards want to know of a table.
#[derive(Debug, Default)]
struct Wanted {
    streams_of: Mutex<BTreeSet<Generation>>,
    more: Notify,
}

/// What is known of all tables, in the order of `source.tables`.
#[derive(Debug)]
pub(super) struct Survey {
    known: watch::Sender<Vec<Arc<Known>>>,
    wanted: Vec<Wanted>,
    /// How often the schema was asked for, and which of these requests have been answered.
    schema: (watch::Sender<u64>, watch::Sender<u64>),
}

impl Survey {
    pub(super) fn new(tables: usize) -> Self {
        Self {
            known: watch::Sender::new((0..tables).map(|_| Arc::new(Known::nothing())).collect()),
            wanted: (0..tables).map(|_| Wanted::default()).collect(),
            schema: Default::default(),
        }
    }

    /// What is known of every table, as it changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Vec<Arc<Known>>> {
        self.known.subscribe()
    }

    /// What is known of a table now.
    pub(super) fn of(&self, table: usize) -> Option<Arc<Known>> {
        self.known.borrow().get(table).cloned()
    }

    fn publish(&self, table: usize, known: Known) {
        self.known.send_modify(|all| all[table] = Arc::new(known));
    }

    /// Has the streams of a generation asked for, if they are not known yet.
    pub(super) fn want(&self, table: usize, generation: Generation) {
        if let Some(wanted) = self.wanted.get(table)
            && wanted.streams_of.lock().insert(generation)
        {
            wanted.more.notify_one();
        }
    }

    /// Has a table looked at now.
    pub(super) fn look_now(&self, table: usize) {
        if let Some(wanted) = self.wanted.get(table) {
            wanted.more.notify_one();
        }
    }

    /// Waits until the schema has been read, all of it after this call. Cancel-safe.
    pub(super) async fn schema_anew(&self) {
        let (asked, answered) = &self.schema;
        let mut ticket = 0;
        asked.send_modify(|n| {
            *n += 1;
            ticket = *n;
        });
        until(&mut answered.subscribe(), ticket).await;
    }
}

/// Waits until the number is at least this. Its sender lives as long as the survey does.
async fn until(number: &mut watch::Receiver<u64>, least: u64) -> u64 {
    let reached = number.wait_for(|n| *n >= least).await.map(|n| *n);
    match reached {
        Ok(n) => n,
        Err(_) => std::future::pending().await,
    }
}

/// There for as long as the nodes are asked what time it is.
struct Asking<'a>(&'a ScyllaSource);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.clock.lock().asks(None);
    }
}

impl ScyllaSource {
    /// Asks, again and again, what the shards have to know. Ends only with what is no use trying again.
    pub(super) async fn keep_surveying(&self) -> Result<Infallible, SourceError> {
        let tables = self.tables.iter().enumerate();
        let tables = futures::future::try_join_all(tables.map(|(i, t)| self.follow(i, t)));
        tokio::try_join!(
            tables,
            self.follow_schema(),
            self.follow_clock(),
            self.follow_link(),
            self.glance()
        )
        .map(|(_, never, ..)| never)
    }

    /// Asks what time it is, now and then and whenever this machine's clock steps. Not by the stage's policies:
    /// that this is answered says nothing of the log. While it is not, there is doubt, which health tells.
    async fn follow_clock(&self) -> Result<Infallible, SourceError> {
        self.clock.lock().asks(Some(Instant::now()));
        let _asking = Asking(self);
        loop {
            let mut waited = Duration::ZERO;
            while waited < clock::ASK {
                tokio::time::sleep(STEP_LOOK).await;
                waited += STEP_LOOK;
                if self.clock.lock().look(clock::wall_us(), Instant::now()) {
                    break;
                }
            }
            if let Err(error) = self.ask_clock().await {
                tracing::debug!(%error, "the database does not say what time it is");
            }
        }
    }

    /// Looks once, ahead of those who will ask; what is not answered in this time they wait for.
    pub(super) async fn survey_once(&self, within: Duration) {
        let tables = self.tables.iter().enumerate();
        let looking = tables.map(|(index, table)| self.look(index, table));
        let looked = futures::future::try_join_all(looking);
        if let Ok(Err(error)) = tokio::time::timeout(within, looked).await {
            tracing::debug!(%error, "nothing is known of the tables yet");
        }
    }

    /// Of one table: a slow answer about it delays no other one's.
    async fn follow(&self, index: usize, table: &LogTable) -> Result<Infallible, SourceError> {
        loop {
            self.look(index, table).await?;
            let (pause, poll) = {
                let source = &self.live.borrow().source;
                (source.safety_interval / 2, source.poll_interval)
            };
            let until = Instant::now() + pause.clamp(POLL.0, POLL.1);
            loop {
                let is_quick = pause < POLL.0 && table.tablets.load(Relaxed);
                let quick = Instant::now() + poll.max(QUICK_LOOK);
                let next = if is_quick { until.min(quick) } else { until };
                tokio::select! {
                    () = tokio::time::sleep_until(next.into()) => {}
                    () = self.survey.wanted[index].more.notified() => break,
                }
                if next == until || !self.look_at_time(index, table).await? {
                    break;
                }
            }
        }
    }

    /// Looks whether the generations are still those that are known; if so, how far windows may go by that.
    async fn look_at_time(&self, index: usize, table: &LogTable) -> Result<bool, SourceError> {
        let (as_of_us, generations) = self.ask(|| self.generations(table)).await?;
        let known = self.survey.of(index);
        let Some(known) = known.filter(|known| known.generations == generations) else {
            return Ok(false);
        };
        let known = Known {
            as_of_us,
            ..(*known).clone()
        };
        self.survey.publish(index, known);
        Ok(true)
    }

    async fn look(&self, index: usize, table: &LogTable) -> Result<(), SourceError> {
        let capturing = self.ask(|| self.refresh_cdc_options(table)).await?;
        let ids = self.ask(|| self.ids(table)).await?;
        let seen = Seen {
            capturing,
            log: ids.log,
        };
        self.note_gap(table, seen);
        match self.emptied(ids).await {
            Ok(emptied) => self.note_emptied(table, emptied),
            // It takes a right of its own, where rights are asked for at all.
            Err(error) => tracing::debug!(%error, "it is not known whether tables are truncated"),
        }
        if table.has_appeared(seen.log.is_some()) {
            // How it is laid out is in no table of its own. What is not known after this is asked at the next look.
            self.ask(|| self.read_schema()).await?;
            if let Err(error) = table.find(&self.session().get_cluster_state()) {
                tracing::debug!(table = %table.full, %error, "its log is there, but not in the schema yet");
                return Ok(());
            }
            tracing::info!(table = %table.full, "the table has a change log now");
        }
        let (as_of_us, generations) = self.ask(|| self.generations(table)).await?;
        let mut streams = self
            .survey
            .of(index)
            .map_or_else(BTreeMap::new, |known| known.streams.clone());
        let wanted = {
            let mut wanted = self.survey.wanted[index].streams_of.lock();
            if let Some(oldest) = self.barrier.oldest(&table.full) {
                wanted.retain(|generation| *generation >= oldest);
            }
            // Most begin there: of the others it is known a look later.
            if wanted.is_empty() {
                wanted.extend(generations.last());
            }
            wanted.clone()
        };
        streams.retain(|generation, _| wanted.contains(generation));
        for generation in wanted {
            if streams.get(&generation).is_none_or(|s| s.is_empty()) {
                let found = self.ask(|| self.streams(table, generation)).await?;
                streams.insert(generation, found);
            }
        }
        let ahead_us = match table.tablets.load(Relaxed) {
            true => 0,
            false => AHEAD_US,
        };
        let known = Known {
            generations,
            as_of_us: as_of_us.saturating_add(ahead_us),
            has_log: seen.log.is_some(),
            streams,
        };
        self.survey.publish(index, known);
        Ok(())
    }

    /// Says what of a table's changes cannot be read, when that begins and when it is over.
    fn note_gap(&self, table: &LogTable, seen: Seen) {
        let now_us = self.now_us();
        // Before the other lock is taken: whoever asks for the status takes them in this order.
        let read_until_us = self.read_until_us().unwrap_or(now_us);
        let news = table.gaps.lock().see(seen, read_until_us, now_us);
        if let Some(news) = news {
            self.tell(table, news);
        }
    }

    /// Says that a table or its log was truncated.
    fn note_emptied(&self, table: &LogTable, emptied: Emptied) {
        let read_until_us = self.read_until_us().unwrap_or(self.now_us());
        let news = table.gaps.lock().see_emptied(emptied, read_until_us);
        news.into_iter().for_each(|news| self.tell(table, news));
    }

    fn tell(&self, table: &LogTable, news: News) {
        let time = |us: i64| {
            let since = Duration::from_micros(us.max(0).unsigned_abs());
            humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + since)
        };
        match news {
            News::Unsaid { at_us } => tracing::warn!(
                table = %table.full,
                at = %time(at_us),
                "the table was truncated, which its change log does not say: what was made of its rows is still there"
            ),
            News::Begins(trouble) => {
                let reason = self.trouble(table);
                tracing::warn!(table = %table.full, reason, "{trouble}");
            }
            News::Lost {
                why,
                from_us,
                until_us,
            } => tracing::warn!(
                table = %table.full,
                from = %time(from_us),
                until = %time(until_us),
                %why,
                "changes of this time could not be read, as far as they were not read before; going on"
            ),
        }
    }

    async fn read_schema(&self) -> Result<(), SourceError> {
        let session = self.session();
        let waits = self.policies.waits();
        let read = waits.during("read the schema", session.refresh_metadata());
        read.await.map_err(|e| SourceError::Metadata(Box::new(e)))
    }

    async fn follow_schema(&self) -> Result<Infallible, SourceError> {
        let (asked, answered) = &self.survey.schema;
        let mut asked = asked.subscribe();
        let mut done = 0;
        loop {
            done = until(&mut asked, done + 1).await;
            self.ask(|| self.read_schema()).await?;
            answered.send_replace(done);
        }
    }

    /// Asks until there is an answer. What fails counts for the stage's breaker, and nobody is asked while that is open;
    /// but an answer, which is of system tables, says nothing of the log: it ends no run of failures, and is a probe only
    /// where no read of a log is among what failed.
    async fn ask<T, F>(&self, question: impl Fn() -> F) -> Result<T, SourceError>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        let mut attempt = 0_u32;
        loop {
            while self.policies.snapshot().breaker == State::Open {
                tokio::time::sleep(OPEN_LOOK).await;
            }
            self.probe_waits().await;
            let error = match question().await {
                Ok(answer) => {
                    if self.policies.snapshot().breaker == State::HalfOpen
                        && self.glance.is_empty()
                        && let Ok(permit) = self.policies.try_admit()
                    {
                        permit.success();
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            self.failed(&error);
            if classify::classify(&error) != Class::Retryable {
                return Err(error);
            }
            self.policies.record_failure(&error);
            attempt = attempt.saturating_add(1);
            if !self.policies.back_off(attempt).await {
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_request_for_the_schema_is_not_answered_by_what_was_read_before_it() {
        let survey = Survey::new(1);
        let mut first = Box::pin(survey.schema_anew());
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(survey.schema_anew());
        assert!((&mut second).now_or_never().is_none());
        survey.schema.1.send_replace(1);
        assert!((&mut first).now_or_never().is_some());
        assert!((&mut second).now_or_never().is_none());
        survey.schema.1.send_replace(2);
        assert!((&mut second).now_or_never().is_some());
    }

    #[test]
    fn streams_are_asked_for_once_whoever_wants_them() {
        let survey = Survey::new(2);
        let asked = |table: usize| survey.wanted[table].more.notified().now_or_never();
        survey.want(1, 10);
        assert_eq!((asked(0), asked(1)), (None, Some(())));
        survey.want(1, 10);
        assert_eq!(asked(1), None);
        survey.want(1, 20);
        assert_eq!(asked(1), Some(()));
    }
}
