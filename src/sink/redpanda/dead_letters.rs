//! The dead-letter topic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rdkafka::config::ClientConfig;
use rdkafka::message::{BorrowedMessage, Headers, Message};

use super::header_list::HeaderList;
use super::producer::{Outgoing, Producer, Traffic};
use super::{RedpandaSink, client};
use crate::change::Position;
use crate::config::settings;
use crate::dead_letter::flood::Flood;
use crate::dead_letter::{Change, DeadLetter, Filter, Foreign, Listed, headers as names};
use crate::policy::Class;
use crate::policy::stage::{Permit, StagePolicies};
use crate::sink::flight::Snapshot;
use crate::sink::{SinkError, Ticket, headers};

/// Bytes that a dead letter may have: twice the largest mutation that ScyllaDB takes (16 MiB, half a commit log
/// segment), because its bytes are written as hex.
pub(super) const LARGEST: usize = 32 << 20;

/// How long a half-open breaker waits for a letter before it is closed without one.
const QUIET: Duration = Duration::from_secs(1);
/// Whoever asks for letters is told so when nothing comes for so long.
const ANSWERED: Duration = Duration::from_secs(3);
/// Records that are no letters, of which more than these are not told.
const MOST_FOREIGN: usize = 100;

/// Writes, lists and purges the dead letters of a pipeline.
pub struct DeadLetters {
    sink: Arc<RedpandaSink>,
    /// Of the stage `dead_letter`.
    policies: StagePolicies,
    /// In use; whoever writes has hold of it, and of no lock.
    producer: Mutex<Arc<Producer>>,
    traffic: Arc<Traffic>,
    pub(super) flood: Mutex<Flood>,
}

/// What letters are written with: a letter may be far larger than a record.
fn config(sink: &RedpandaSink) -> (ClientConfig, u64) {
    let (mut config, version) = sink.producer_config("dead-letters");
    config
        .set("message.max.bytes", LARGEST.to_string())
        .set(
            "queue.buffering.max.kbytes",
            (2 * LARGEST / 1024).to_string(),
        )
        .set("compression.type", "zstd");
    (config, version)
}

impl DeadLetters {
    /// Of the sink's pipeline; `policies` are those of the stage `dead_letter`.
    pub fn open(sink: &Arc<RedpandaSink>, policies: StagePolicies) -> Result<Self, SinkError> {
        let traffic = Arc::new(Traffic::of(sink));
        Ok(Self {
            sink: Arc::clone(sink),
            policies,
            producer: Mutex::new(Arc::new(Producer::new(config(sink), Arc::clone(&traffic))?)),
            traffic,
            flood: Mutex::default(),
        })
    }

    /// Keeps dead letters; back once all are acknowledged, so that a checkpoint may pass their changes. Waits
    /// and retries through outages as the stage `dead_letter` is set to.
    ///
    /// [`SinkError::Flood`]: the stage that made them made too many; none was written, and the stage is to
    /// fail.
    pub async fn write(&self, letters: &[DeadLetter]) -> Result<(), SinkError> {
        self.hold_back(letters)?;
        self.rewrite(letters).await
    }

    /// Whether these may be kept, at the rate that the stage is set to; whoever asks keeps them in a transaction of
    /// its own. Errors as [`Self::write`].
    pub async fn admit(&self, letters: &[DeadLetter]) -> Result<(), SinkError> {
        self.hold_back(letters)?;
        self.policies.throttle(letters.len() as u32).await;
        Ok(())
    }

    /// As [`Self::write`], of letters that were kept before: they are none that a stage has just made.
    pub async fn rewrite(&self, letters: &[DeadLetter]) -> Result<(), SinkError> {
        let records: Vec<_> = letters.iter().map(|l| (l.position, Some(l))).collect();
        self.put(&records).await?;
        letters.iter().for_each(DeadLetter::log);
        Ok(())
    }

    /// Closes the stage's breaker where no letter comes that would: for as long as this is awaited, half-open and idle,
    /// it is asked by a tombstone of a letter that there never was, which is what the topic is for, and leaves nothing
    /// in it. May be dropped at any point.
    pub async fn keep_closed(&self) {
        loop {
            let permit = self.policies.idle_probe(QUIET).await;
            let nothing = [(Position::NOWHERE, None)];
            if let Err(error) = self.attempt(permit, &self.topic(), &nothing).await {
                tracing::debug!(%error, "dead letters cannot be written yet");
            }
        }
    }

    fn hold_back(&self, letters: &[DeadLetter]) -> Result<(), SinkError> {
        let (max, within) = {
            let live = self.sink.live.borrow();
            (live.dead_letter.max.get(), live.dead_letter.within)
        };
        let mut by_stage: BTreeMap<&Arc<str>, Vec<Position>> = BTreeMap::new();
        for letter in letters {
            by_stage
                .entry(&letter.stage)
                .or_default()
                .push(letter.position);
        }
        let now = tokio::time::Instant::now().into_std();
        let mut flood = self.flood.lock();
        for (stage, changes) in by_stage {
            flood.admit(stage, &changes, max, within, now)?;
        }
        Ok(())
    }

    /// Letters, or tombstones, acknowledged.
    async fn put(&self, records: &[(Position, Option<&DeadLetter>)]) -> Result<(), SinkError> {
        if records.is_empty() {
            return Ok(());
        }
        self.policies.throttle(records.len() as u32).await;
        let topic = self.topic();
        for attempt in 1.. {
            let permit = self.policies.admit().await;
            let error = match self.attempt(permit, &topic, records).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // Each letter differs, so what is refused together is not sought out: compression and the limits
            // that the topic is made with leave room for all.
            let class = error.class();
            if class != Class::Retryable || !self.policies.back_off(attempt).await {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "writing dead letters again");
        }
        unreachable!("attempts do not run out")
    }

    async fn attempt(
        &self,
        permit: Permit,
        topic: &str,
        records: &[(Position, Option<&DeadLetter>)],
    ) -> Result<(), SinkError> {
        let mut ticket = match self.submit(topic, records).await {
            Ok(ticket) => ticket,
            Err(error) => {
                permit.failure(&error);
                return Err(error);
            }
        };
        let mut permit = Some(permit);
        // librdkafka goes on trying by itself: every attempt_timeout is a failed attempt, and none is resent.
        let outcome = loop {
            let timeout = self.sink.live.borrow().sink.attempt_timeout;
            match tokio::time::timeout(timeout, &mut ticket).await {
                Ok(outcome) => break outcome,
                Err(_) => match permit.take() {
                    Some(permit) => permit.failure("no acknowledgement of a dead letter"),
                    None => self
                        .policies
                        .record_failure("no acknowledgement of a dead letter"),
                },
            }
        };
        match outcome {
            Ok(delivered) => {
                match permit {
                    Some(permit) => permit.success(),
                    None => self.policies.record_success(),
                }
                match delivered.poison.into_iter().next() {
                    None => Ok(()),
                    Some((_, reason)) => Err(SinkError::Topic {
                        topic: topic.to_owned(),
                        reason: format!(
                            "a dead letter was refused ({reason}): raise its max.message.bytes"
                        ),
                        class: Class::Fatal,
                    }),
                }
            }
            Err(SinkError::Suspect { reason, .. }) => Err(SinkError::Topic {
                topic: topic.to_owned(),
                reason: format!(
                    "a dead letter was refused ({reason}): raise its max.message.bytes"
                ),
                class: Class::Fatal,
            }),
            Err(error) => {
                if let Some(permit) = permit {
                    permit.failure(&error);
                }
                Err(error)
            }
        }
    }

    async fn submit(
        &self,
        topic: &str,
        records: &[(Position, Option<&DeadLetter>)],
    ) -> Result<Ticket, SinkError> {
        self.sink.find_dead_letter_topic(topic).await?;
        let (producer, before) = self.producer()?;
        if let Some(before) = before {
            before.window().fail(SinkError::Reset);
            close_last(before).await;
        }
        let sent = self.send(&producer, topic, records).await;
        close_last(producer).await;
        sent
    }

    /// What to write with, and what was written with before, if that is of no more use.
    fn producer(&self) -> Result<(Arc<Producer>, Option<Arc<Producer>>), SinkError> {
        let mut producer = self.producer.lock();
        let is_broken = producer.window().broken().is_some();
        let is_replaceable = producer.is_outdated() && producer.window().messages() == 0;
        if !is_broken && !is_replaceable {
            return Ok((Arc::clone(&producer), None));
        }
        let made = Producer::new(config(&self.sink), Arc::clone(&self.traffic))?;
        self.traffic.counters().reset();
        let before = std::mem::replace(&mut *producer, Arc::new(made));
        Ok((Arc::clone(&producer), Some(before)))
    }

    /// Hands records over, waiting while the queue is full.
    async fn send(
        &self,
        producer: &Producer,
        topic: &str,
        records: &[(Position, Option<&DeadLetter>)],
    ) -> Result<Ticket, SinkError> {
        let window = Arc::clone(producer.window());
        let (submission, ticket) = window.open(None, None)?;
        let room = self.sink.letter_room(topic, LARGEST);
        for (index, (position, letter)) in (0u32..).zip(records) {
            let key = position.to_string();
            let value = letter.map(|l| l.change.to_json_within(room));
            let out = Outgoing {
                topic,
                partition: None,
                key: Some(key.as_bytes()),
                value: value.as_deref(),
                headers: letter.map(headers_of),
                timestamp: None,
            };
            producer.send(&submission, index, out).await?;
        }
        submission.seal();
        Ok(ticket)
    }

    fn topic(&self) -> String {
        self.sink.live.borrow().dead_letter.topic.clone()
    }

    /// The dead letters that a filter means, the oldest first.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<DeadLetter>, SinkError> {
        Ok(self.read(filter).await?.letters)
    }

    /// … and what else is in the topic: records of somebody else, or of a later version, which are left as they are.
    pub async fn read(&self, filter: &Filter) -> Result<Listed, SinkError> {
        let topic = self.topic();
        let reader = self.sink.reader();
        let filter = filter.clone();
        super::blocking(move || {
            // By position: the last record of a key is the letter, or the tombstone that took it away.
            let mut letters: BTreeMap<Vec<u8>, DeadLetter> = BTreeMap::new();
            let mut foreign: BTreeMap<Vec<u8>, Foreign> = BTreeMap::new();
            reader.read_from(None, &topic, ANSWERED, &BTreeMap::new(), |m| {
                let key = m.key().unwrap_or_default().to_vec();
                if m.payload().is_none() {
                    letters.remove(&key);
                    foreign.remove(&key);
                    return Ok(());
                }
                let letter = match read(m) {
                    Ok(letter) => letter,
                    Err(reason) => {
                        if foreign.len() < MOST_FOREIGN {
                            let place = format!("{topic}[{}]@{}", m.partition(), m.offset());
                            foreign.insert(key, Foreign { place, reason });
                        }
                        return Ok(());
                    }
                };
                if filter.matches(&letter) {
                    letters.insert(key, letter);
                } else {
                    letters.remove(&key);
                }
                Ok(())
            })?;
            let mut letters: Vec<_> = letters.into_values().collect();
            letters.sort_by_key(|l| (l.last_at, l.position.timestamp_us(), l.position.seq));
            letters.truncate(filter.limit.unwrap_or(usize::MAX));
            let foreign: Vec<_> = match filter.positions.is_empty() {
                true => foreign.into_values().collect(),
                false => Vec::new(),
            };
            if let Some(first) = foreign.first() {
                let (first, reason) = (&first.place, &first.reason);
                tracing::warn!(
                    topic,
                    records = foreign.len(),
                    first,
                    reason,
                    "records that are no dead letters are skipped"
                );
            }
            Ok(Listed { letters, foreign })
        })
        .await
        .unwrap_or(Err(SinkError::Reset))
    }

    /// The dead letter of a change.
    pub async fn get(&self, position: Position) -> Result<Option<DeadLetter>, SinkError> {
        let filter = Filter {
            positions: vec![position],
            ..Filter::default()
        };
        Ok(self.list(&filter).await?.pop())
    }

    /// Takes dead letters away; returns how many, and how many records were skipped that are none.
    pub async fn purge(&self, filter: &Filter) -> Result<(usize, usize), SinkError> {
        let Listed { letters, foreign } = self.read(filter).await?;
        let positions: Vec<_> = letters.iter().map(|l| l.position).collect();
        self.take_away(&positions).await?;
        Ok((letters.len(), foreign.len()))
    }

    /// Takes the dead letters of these changes away.
    pub async fn take_away(&self, positions: &[Position]) -> Result<(), SinkError> {
        let tombstones: Vec<_> = positions.iter().map(|p| (*p, None)).collect();
        self.put(&tombstones).await
    }

    /// Counts, queue fill and age.
    pub fn snapshot(&self) -> Snapshot {
        self.traffic.snapshot()
    }
}

/// Ends a producer that was replaced, when the last who writes with it lets go: off the runtime's threads, for it takes up
/// to half a second.
async fn close_last(producer: Arc<Producer>) {
    if let Some(mut producer) = Arc::into_inner(producer) {
        producer.stop().await;
    }
}

/// Bytes of a letter beside its value: its key, its headers with the longest error, and what a batch adds.
const BESIDE: usize = 8 << 10;

impl RedpandaSink {
    /// Bytes that the value of a letter may have: what its topic takes, and its producer makes. Where the error alone
    /// takes all of that, an abridgement is as small as a letter can be.
    pub(super) fn letter_room(&self, topic: &str, largest: usize) -> usize {
        let takes = self.topics.takes(topic).unwrap_or(largest);
        takes.min(largest).saturating_sub(BESIDE)
    }

    /// The largest message that a shard's producer makes.
    pub(super) fn largest_message(&self) -> usize {
        let live = self.live.borrow();
        let set = live.sink.properties.get(client::LARGEST_MESSAGE);
        client::largest_message(set.map(String::as_str))
    }

    /// Makes sure that the topic is there, with room for any letter.
    pub(super) async fn find_dead_letter_topic(&self, topic: &str) -> Result<(), SinkError> {
        if self.topics.knows(topic) {
            return Ok(());
        }
        let (settings, within) = {
            let live = self.live.borrow();
            let largest = LARGEST.to_string();
            let properties = [
                // Kept until purged: a tombstone takes a letter away, time does not.
                ("cleanup.policy", "compact"),
                ("max.message.bytes", &largest),
            ];
            let settings = settings::Topics {
                properties: properties.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                ..live.sink.topics.clone()
            };
            (settings, live.sink.attempt_timeout)
        };
        self.ensure_ours(topic, &settings, &[super::COMPACTED], within)
            .await
    }
}

pub(super) fn headers_of(letter: &DeadLetter) -> HeaderList {
    let attempts = letter.attempts.to_string();
    let time = |t: SystemTime| humantime::format_rfc3339_micros(t).to_string();
    let (position, first, last) = (
        letter.position.to_string(),
        time(letter.first_at),
        time(letter.last_at),
    );
    let derived = || headers::traceparent(&letter.position, true);
    let trace = letter.trace.map_or_else(derived, |trace| trace.text());
    let all = [
        (headers::POSITION, position.as_bytes()),
        (headers::TABLE, letter.table.as_bytes()),
        (headers::OPERATION, letter.operation.as_bytes()),
        (headers::TRACEPARENT, &trace[..]),
        (names::STAGE, letter.stage.as_bytes()),
        (names::ERROR, letter.short_error().as_bytes()),
        (names::ATTEMPTS, attempts.as_bytes()),
        (names::FIRST_AT, first.as_bytes()),
        (names::LAST_AT, last.as_bytes()),
        (names::PIPELINE, letter.pipeline.as_bytes()),
    ];
    HeaderList::of(&all.map(|(name, value)| (name.as_bytes(), Some(value))))
}

fn read(message: &BorrowedMessage<'_>) -> Result<DeadLetter, String> {
    let found = message.headers().ok_or("it has no headers")?;
    let text = |name: &str| -> Result<&str, String> {
        found
            .iter()
            .find(|h| h.key == name)
            .and_then(|h| std::str::from_utf8(h.value?).ok())
            .ok_or_else(|| format!("its header {name} is missing or not text"))
    };
    let time = |name| -> Result<SystemTime, String> {
        humantime::parse_rfc3339(text(name)?).map_err(|e| format!("its header {name}: {e}"))
    };
    Ok(DeadLetter {
        position: text(headers::POSITION)?
            .parse()
            .map_err(|e: crate::change::InvalidPosition| e.to_string())?,
        table: text(headers::TABLE)?.to_owned(),
        operation: text(headers::OPERATION)?.to_owned(),
        stage: text(names::STAGE)?.into(),
        error: text(names::ERROR)?.to_owned(),
        attempts: text(names::ATTEMPTS)?
            .parse()
            .map_err(|e| format!("its header {}: {e}", names::ATTEMPTS))?,
        first_at: time(names::FIRST_AT)?,
        last_at: time(names::LAST_AT)?,
        pipeline: text(names::PIPELINE)?.to_owned(),
        trace: None,
        change: Change::from_json(message.payload().unwrap_or_default())?,
    })
}
