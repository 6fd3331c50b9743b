//! Records to Redpanda, acknowledgements back.
//!
//! [`redpanda`] is the only place that knows the driver; [`shared`] says what the pipeline knows of it. What a batch in flight is ([`flight`]), which headers
//! a record carries ([`headers`]) and when silence is a failure ([`watch`]) are told apart from it, so that
//! they are tested without a broker.

pub(crate) use crate::topic::is_name as is_topic_name;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use crate::change::RecordBatch;
use crate::checkpoint::{Checkpoints, Settlement};
use crate::dead_letter::DeadLetter;
use crate::policy::Class;
use crate::policy::stage::Permit;

mod counters;
pub mod flight;
pub mod headers;
pub mod redpanda;
pub mod rounds;
mod shared;
pub mod trouble;
pub mod watch;

pub use shared::{Ahead, LetterBox, Letters, Opened, Replay, Sink};

/// What goes wrong between a batch and its acknowledgement. Each message is one line.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SinkError {
    /// Nothing that speaks Kafka's protocol answered.
    #[error("no Redpanda or Kafka broker answers at {brokers}: {reason}")]
    Unreachable {
        /// As configured, separated by commas.
        brokers: String,
        /// Per address, what the connection attempt met.
        reason: String,
    },
    /// A property under `[sink] properties` that the sink sets itself, or that librdkafka does not take.
    #[error("sink.properties: {name}: {reason}")]
    Property {
        /// librdkafka's name of it.
        name: String,
        /// Why it is refused.
        reason: String,
    },
    /// librdkafka could not make a client of the settings.
    #[error("the Kafka client could not be created: {0}")]
    Client(String),
    /// A topic is missing, or could not be created or looked up.
    #[error("topic {topic}: {reason}")]
    Topic {
        /// Its name.
        topic: String,
        /// What the broker said.
        reason: String,
        /// From the broker's error code.
        class: Class,
    },
    /// librdkafka gave up on a record. The batch is not resent: the shard goes back to its checkpoint.
    #[error("delivery to {topic} failed: {reason}")]
    Delivery {
        /// The record's topic.
        topic: String,
        /// What the broker or librdkafka said.
        reason: String,
        /// From the error code.
        class: Class,
    },
    /// The brokers answered that they take no records of this topic now: a right, a quota, a policy. Nobody's content is
    /// to blame, and no outage: the shard goes back, and waits until they do.
    #[error("topic {topic}: records are refused: {reason}")]
    Refused {
        /// Its name.
        topic: String,
        /// What the broker said.
        reason: String,
    },
    /// librdkafka let go of a record because its transaction failed, for a reason that it tells whoever asks:
    /// [`Settle::explain`].
    #[error("a record for {topic} was let go of: its transaction failed")]
    Purged {
        /// The record's topic, which may have nothing to do with it.
        topic: String,
    },
    /// A topic takes smaller batches than the producer makes: the shard goes back, and on with another producer.
    #[error("a topic takes batches of {bytes} bytes at most: the producer is made anew for it")]
    Narrower {
        /// The topic's `max.message.bytes`.
        bytes: usize,
    },
    /// The broker refused a whole request for the content of one of its records, and did not say which. After
    /// the rewind each suspect is sent alone, so that the refusal names its record.
    #[error("the broker refused {records} records together for the content of one: {reason}")]
    Suspect {
        /// How many are under suspicion.
        records: usize,
        /// It is about the size of one, or of all.
        too_large: bool,
        /// What the broker said.
        reason: String,
    },
    /// The shard was reset, or its producer closed, while the batch was in flight.
    #[error("let go of unacknowledged: the shard's producer was reset")]
    Reset,
    /// A topic could not be read to its end.
    #[error("topic {topic} could not be read to its end: {reason}")]
    Read {
        /// Its name.
        topic: String,
        /// What was met last.
        reason: String,
        /// From the error code.
        class: Class,
    },
    /// A record that Penstock wrote itself cannot be understood.
    #[error("topic {topic}, partition {partition}, offset {offset}: not a {what}: {reason}")]
    Corrupt {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The record's offset.
        offset: i64,
        /// What it should be: `checkpoint`, `dead letter`.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The consumer group by which instances share the shards cannot be taken part in.
    #[error("the group that shares the shards out: {reason}")]
    Group {
        /// What the broker or librdkafka said.
        reason: String,
        /// From the error code.
        class: Class,
    },
    /// The checkpoint topic was made for another number of shards, on which instances that share would not agree.
    #[error(
        "topic {topic}: it has {partitions} partitions, and pipeline.shards is {shards}: instances that share must agree; \
         set shards to {partitions}, or raise it by running one instance alone with pipeline.instances = \"one\""
    )]
    Shards {
        /// Its name.
        topic: String,
        /// How many it has.
        partitions: u32,
        /// `pipeline.shards`
        shards: u32,
    },
    /// A stage made more dead letters than `[dead_letter]` allows: fail it. None of them was written.
    #[error(transparent)]
    Flood(#[from] crate::dead_letter::flood::Flooded),
    /// A transaction could not be begun, committed or aborted. Whether a commit happened, only the checkpoint topic
    /// knows: the shard goes on from what is read there.
    #[error("the transaction of shard {shard} could not be {what}: {reason}")]
    Transaction {
        /// Whose.
        shard: u32,
        /// `begun`, `committed`, `aborted`, or `taken over` when the shard is opened.
        what: &'static str,
        /// What the broker or librdkafka said.
        reason: String,
        /// From the error code.
        class: Class,
    },
    /// The brokers answered that this client may not write a shard: a right that somebody has to give.
    #[error("shard {shard} could not be {what}: the brokers refuse it: {reason}")]
    Forbidden {
        /// Which.
        shard: u32,
        /// As of [`SinkError::Transaction`].
        what: &'static str,
        /// What the broker said.
        reason: String,
    },
    /// Another producer took the shard over.
    #[error("shard {shard} was taken over by another instance of the pipeline: {reason}")]
    Fenced {
        /// Which.
        shard: u32,
        /// What the broker said.
        reason: String,
    },
}

impl SinkError {
    /// Whether it is outside of this process and its configuration: it heals by itself, or by someone's help there.
    pub fn heals(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Topic { .. }
            | Self::Delivery { .. }
            | Self::Refused { .. }
            | Self::Forbidden { .. }
            | Self::Purged { .. }
            | Self::Narrower { .. }
            | Self::Suspect { .. }
            | Self::Reset
            | Self::Read { .. }
            | Self::Transaction { .. }
            | Self::Group { .. } => true,
            Self::Property { .. }
            | Self::Client(_)
            | Self::Corrupt { .. }
            | Self::Shards { .. }
            | Self::Flood(_)
            | Self::Fenced { .. } => false,
        }
    }

    /// What the failure means for the work that met it.
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::Forbidden { .. }
            | Self::Purged { .. }
            | Self::Narrower { .. }
            | Self::Suspect { .. }
            | Self::Reset => Class::Retryable,
            Self::Topic { class, .. }
            | Self::Delivery { class, .. }
            | Self::Read { class, .. }
            | Self::Group { class, .. }
            | Self::Transaction { class, .. } => *class,
            Self::Property { .. }
            | Self::Client(_)
            | Self::Corrupt { .. }
            | Self::Shards { .. }
            | Self::Flood(_)
            | Self::Fenced { .. } => Class::Fatal,
        }
    }
}

/// A batch of which every record is acknowledged, but for those named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Records that the broker will never take, by index, with its reason: for the dead letters.
    pub poison: Vec<(u32, String)>,
}

/// Resolves once every record of a batch is acknowledged or refused for good, or the batch failed.
///
/// Dropping it changes nothing about the delivery.
#[derive(Debug)]
#[must_use = "a batch is not delivered before its ticket says so"]
pub struct Ticket(oneshot::Receiver<Result<Delivered, SinkError>>);

impl Ticket {
    pub(crate) fn new() -> (oneshot::Sender<Result<Delivered, SinkError>>, Self) {
        let (tx, rx) = oneshot::channel();
        (tx, Self(rx))
    }
}

impl Future for Ticket {
    type Output = Result<Delivered, SinkError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|r| r.unwrap_or(Err(SinkError::Reset)))
    }
}

/// How long what is handed over may wait for company, with so many shards: the fewer records each of them has at a time, the
/// more threads are woken for each record, and the longer it pays to wait.
pub(crate) fn company(shards: u32) -> Duration {
    const LEAST: Duration = Duration::from_millis(5);
    const MOST: Duration = Duration::from_millis(80);
    // With so many each has its full rounds.
    const FEW: u32 = 16;
    (LEAST * shards / FEW).clamp(LEAST, MOST)
}

/// A shard's sink: takes batches in order, and settlements that say what is to be true together.
///
/// With at-least-once delivery a settlement covers what was delivered, and more may be in flight meanwhile. An
/// *atomic* sink makes what it was handed visible with its settlement, all of it or nothing, so the lane settles when
/// nothing is in flight. After an error, of a call or of a ticket, the sink has a gap: [`Self::reset`] it, and go back.
pub trait Settle: Send {
    /// Whether records and letters are visible only with their settlement.
    fn is_atomic(&self) -> bool;

    /// Takes the shard: whoever had it before can do nothing any more. Says where an atomic one stands, but for one that
    /// had taken the shard before its checkpoints were read, where whoever read them knows; call it before anything else,
    /// and again after an error of it.
    fn open(&mut self) -> BoxFuture<'_, Result<Option<Standing>, SinkError>>;

    /// Looks at the topics of a batch: what each takes, and which it would have to wait for. `apart`: nothing else is
    /// handed over with it, so that a topic that refused records may be tried again by it. Cancel-safe.
    fn look(
        &self,
        batch: Arc<RecordBatch>,
        apart: bool,
    ) -> BoxFuture<'static, Result<Look, SinkError>>;

    /// Waits for leave for a batch: the rate limit, the breaker. Cancel-safe.
    fn leave(&self, batch: Arc<RecordBatch>) -> BoxFuture<'static, Result<Leave, SinkError>>;

    /// Waits until one of these topics, which a batch would have to wait for, may be tried again. Cancel-safe; holds
    /// nothing that others need.
    fn recovery(&self, topics: Vec<Arc<str>>) -> BoxFuture<'static, Recovery>;

    /// Hands a batch over; waits for room in the producer, and for nothing else. The ticket resolves with its
    /// delivery. `fits`: as [`Look::fits`].
    fn hand(
        &mut self,
        batch: Arc<RecordBatch>,
        fits: Vec<Fit>,
        leave: Leave,
    ) -> BoxFuture<'_, Result<Ticket, SinkError>>;

    /// Nothing more is coming for now: what was handed over need not wait for company. Waits for nothing. Said again while
    /// that is not acknowledged.
    fn hasten(&mut self) {}

    /// What the next settlement says, if nothing is handed over before it: an atomic sink may write it now, beside what it
    /// was handed, for nobody sees either before the settlement. Waits for nothing.
    fn foresee(&mut self, _settlement: &Settlement) {}

    /// Makes true, together, that these letters are kept (of an atomic sink; another is handed none), that the groups
    /// are there, and what was handed over before.
    fn settle<'a>(
        &'a mut self,
        letters: &'a [DeadLetter],
        settlement: &'a Settlement,
    ) -> BoxFuture<'a, Result<(), SinkError>>;

    /// What an error of a call or a ticket was for, where it only says what followed from that. To be asked before
    /// [`Self::reset`].
    fn explain(&mut self, error: SinkError) -> BoxFuture<'_, SinkError> {
        Box::pin(std::future::ready(error))
    }

    /// Lets go of everything since the last settlement, or, if not atomic, of what is in flight. Says where the shard
    /// stands if only the brokers know.
    fn reset(&mut self) -> BoxFuture<'_, Result<Option<Standing>, SinkError>>;

    /// Nothing is under way any more: whether it may be opened again as it is, by whoever goes on from what it settled last.
    /// [`Self::open`] asks nobody then.
    fn rest(&mut self) -> bool;

    /// Ends the producer without waiting for what is under way.
    fn close(&mut self) -> BoxFuture<'_, ()>;
}

/// Where a shard stands, as the brokers have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// What is committed.
    pub checkpoints: Checkpoints,
    /// This instance had the shard last. Else what is committed may be another's doing, even where it is just what this one
    /// was about to commit.
    pub is_ours: bool,
}

/// What a topic takes, as far as that is known before something is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Everything, for all that is known.
    Any,
    /// A record that is this large or less, as a batch of its own: the topic's `max.message.bytes`.
    Within(usize),
    /// Nothing, for its name.
    Never(Arc<str>),
}

/// What a batch's topics are like now.
#[derive(Debug, Default)]
pub struct Look {
    /// Per topic of the batch, what it takes.
    pub fits: Vec<Fit>,
    /// Topics of the batch, by index, that take nothing until somebody helps.
    pub waits: Vec<u32>,
    /// One of them refused records before, and is tried again.
    pub is_trial: bool,
}

/// A topic that may be tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Which.
    pub topic: Arc<str>,
    /// Whether it is well. Else only a record for it can tell.
    pub is_certain: bool,
}

/// Leave to hand one batch over.
#[derive(Debug, Default)]
pub struct Leave {
    /// Of the breaker.
    pub permit: Option<Permit>,
}

/// Where the embedded or configured brokers are, as librdkafka wants it.
pub(crate) fn join_brokers(brokers: &[String]) -> Arc<str> {
    brokers.join(",").into()
}
