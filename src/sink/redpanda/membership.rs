//! This instance's part in the consumer group by which instances of a pipeline share its shards out.
//!
//! The group `penstock.<pipeline>` is subscribed to the checkpoint topic: owning partition *n* means owning shard
//! *n*. Nothing is read here and no offset is committed; the group is all that is wanted of it. What it says is
//! told to whoever runs the shards, and a partition is given back only when its shard has been let go of, or when
//! that takes too long.
//!
//! Classic protocol. `cooperative-sticky`, so that shards that stay where they are go on meanwhile ([KIP-429]); a
//! stand-in whose group is never ready again after it gets `range`, which takes every shard from everybody at every
//! change. All members of a group must say the same, so this goes by the broker and by nothing else. Members are
//! dynamic: a static one ([KIP-345]) sends no LeaveGroup, so a clean stop would leave its shards to nobody for a
//! session's length.
//!
//! Membership fences nobody: a member that is cut off knows of it later than the others. The producer's epoch does.
//!
//! [KIP-345]: https://cwiki.apache.org/confluence/display/KAFKA/KIP-345%3A+Introduce+static+membership+protocol+to+reduce+consumer+rebalances
//! [KIP-429]: https://cwiki.apache.org/confluence/display/KAFKA/KIP-429%3A+Kafka+Consumer+Incremental+Rebalance+Protocol

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::client::{self, Quiet};
use super::security::InForce;
use super::{RedpandaSink, classify};
use crate::sink::SinkError;

/// How long one look for news takes at most; a stop waits for it.
const POLL: Duration = Duration::from_millis(50);
/// Heartbeats a session: members learn of a change by the answer to one, so these bound how fast shards move.
const HEARTBEATS: u32 = 20;
/// … within these bounds.
const HEARTBEAT_BOUNDS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(3));
/// How many sessions the group waits for a member that has yet to give back what it owned. More than one, which is
/// how long that member takes at most.
const REBALANCE_SESSIONS: u32 = 3;

/// What the group decided about this instance's shards.
#[derive(Debug)]
pub enum Assignment {
    /// These are ours now.
    Assigned(BTreeSet<u32>),
    /// These go to somebody else once they are settled, committed and let go of: then send, or drop, `done`.
    Revoked {
        /// Which.
        shards: BTreeSet<u32>,
        /// When they are to be let go of, settled or not: a moment later they are given back.
        until: Instant,
        /// Who waits for it.
        done: oneshot::Sender<()>,
    },
    /// These are somebody else's already: the group has not heard of us for too long.
    Lost(BTreeSet<u32>),
}

/// How this instance stands with the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// It has its share, which may be none.
    pub joined: bool,
    /// Since when that is so, or is not.
    pub since: Instant,
    /// The shards that are its own.
    pub owned: BTreeSet<u32>,
    /// What is in the way, if something is.
    pub trouble: Option<String>,
}

impl Default for Standing {
    /// From now on it waits for its share.
    fn default() -> Self {
        Self {
            joined: false,
            since: Instant::now(),
            owned: BTreeSet::new(),
            trouble: None,
        }
    }
}

/// Who takes part in the group.
pub struct Member {
    /// Without what it connects with, which may change meanwhile.
    config: ClientConfig,
    security: InForce,
    topic: String,
    /// How long shards that go to somebody else may take to be settled. After that they are given back nevertheless.
    patience: Duration,
}

impl PartialEq for Member {
    /// Whether they would take part alike, so that one need not leave for the other to join.
    fn eq(&self, other: &Self) -> bool {
        (self.config.config_map(), &self.topic) == (other.config.config_map(), &other.topic)
    }
}

impl RedpandaSink {
    /// Who takes part for the pipeline of these settings.
    ///
    /// # Errors
    /// The checkpoint topic cannot be found or made, or it has another number of partitions than the pipeline has
    /// shards: then instances would not agree on which keys a shard has.
    pub async fn member(&self) -> Result<Member, SinkError> {
        let partitions = self.checkpoint_partitions().await?;
        let (name, shards, session, static_id) = {
            let pipeline = &self.live.borrow().pipeline;
            (
                pipeline.name.clone(),
                pipeline.shards.get(),
                pipeline.session_timeout,
                pipeline.group_instance_id.clone(),
            )
        };
        let topic = self.checkpoint_topic();
        if partitions != shards {
            return Err(SinkError::Shards {
                topic,
                partitions,
                shards,
            });
        }
        let assignor = match self.topics.takes_incremental_rebalances() {
            true => "cooperative-sticky",
            false => "range",
        };
        let heartbeat = (session / HEARTBEATS).clamp(HEARTBEAT_BOUNDS.0, HEARTBEAT_BOUNDS.1);
        let ms = |span: Duration| span.as_millis().to_string();
        let mut config = client::reader(&self.base, &format!("penstock.{name}"));
        config
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", assignor)
            .set("session.timeout.ms", ms(session))
            .set("heartbeat.interval.ms", ms(heartbeat))
            // To the group it is how long a change may take its members.
            .set("max.poll.interval.ms", ms(session * REBALANCE_SESSIONS))
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "false")
            .set("auto.offset.reset", "latest");
        if let Some(id) = &static_id {
            config.set("group.instance.id", id);
        }
        Ok(Member {
            config,
            security: self.security.clone(),
            topic,
            patience: session,
        })
    }
}

/// What librdkafka says of the group, for the loop that polls it.
struct Told {
    quiet: Quiet,
    rebalances: Mutex<VecDeque<(Rebalance, TopicPartitionList)>>,
    /// From here on whatever is to be given back is given back at once.
    leaving: AtomicBool,
}

#[derive(Clone, Copy)]
enum Rebalance {
    Assign,
    Revoke,
}

impl ClientContext for Told {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(
        &self,
        _: Option<&str>,
    ) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.quiet.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.quiet.note(&error, reason);
    }
}

impl ConsumerContext for Told {
    /// Only notes it: the group waits until `assign` or `unassign` is called.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        error: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let what = match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assign,
            _ => Rebalance::Revoke,
        };
        if self.leaving.load(Relaxed) {
            let answered = match what {
                Rebalance::Assign => take(consumer, &TopicPartitionList::new()),
                Rebalance::Revoke => give_back(consumer, partitions),
            };
            if let Err(error) = answered {
                tracing::debug!(%error, "leaving the group");
            }
            return;
        }
        self.rebalances.lock().push_back((what, partitions.clone()));
    }
}

/// Nothing is read: the offsets say the end, and even that is not fetched.
fn take(consumer: &BaseConsumer<Told>, added: &TopicPartitionList) -> Result<(), KafkaError> {
    let mut added = added.clone();
    added.set_all_offsets(Offset::End)?;
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(&added)?,
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(&added)?,
    }
    if added.count() == 0 {
        return Ok(());
    }
    consumer.pause(&added)
}

fn give_back(consumer: &BaseConsumer<Told>, gone: &TopicPartitionList) -> Result<(), KafkaError> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(gone),
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
    }
}

fn shards(partitions: &TopicPartitionList) -> BTreeSet<u32> {
    let numbers = partitions.elements();
    let numbers = numbers.iter().map(|p| p.partition());
    numbers.filter_map(|p| u32::try_from(p).ok()).collect()
}

/// What letting go of a shard at the last moment may take.
const MARGIN: Duration = Duration::from_millis(500);

/// Shards that are being let go of.
struct Leaving {
    partitions: TopicPartitionList,
    done: oneshot::Receiver<()>,
    until: Instant,
}

/// Why a client takes part no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// It left, or nobody listens.
    Left,
    /// It cannot connect with what it was made with, and there is something newer.
    Outdated,
}

/// Whoever ran the shards is gone, so nobody takes part for it any more.
struct NobodyListens;

impl Member {
    /// Takes part until `stop`; then gives everything back at once and leaves. Blocks, for as long as that takes:
    /// for a thread of its own.
    ///
    /// # Errors
    /// What ends the membership for good: it is to be begun anew. What passes, a group that cannot be found or may
    /// not be joined yet, is waited for, and told in [`Standing::trouble`].
    pub fn take_part(
        &self,
        changes: &mpsc::Sender<Assignment>,
        standing: &watch::Sender<Standing>,
        stop: &CancellationToken,
    ) -> Result<(), SinkError> {
        loop {
            let ended = self.take_part_once(changes, standing, stop)?;
            if ended == Ended::Left {
                return Ok(());
            }
        }
    }

    fn take_part_once(
        &self,
        changes: &mpsc::Sender<Assignment>,
        standing: &watch::Sender<Standing>,
        stop: &CancellationToken,
    ) -> Result<Ended, SinkError> {
        let told = Told {
            quiet: Quiet::of(&self.security),
            rebalances: Mutex::default(),
            leaving: AtomicBool::new(false),
        };
        let version = self.security.version();
        let mut config = self.config.clone();
        self.security.get().apply(&mut config);
        let consumer: BaseConsumer<Told> =
            config.create_with_context(told).map_err(client::creation)?;
        let mut leaving = None;
        let ended = consumer
            .subscribe(&[&self.topic])
            .map_err(failed)
            .and_then(|()| self.follow(&consumer, version, changes, standing, stop, &mut leaving));
        let owned = standing.send_replace(Standing::default()).owned;
        if !matches!(ended, Ok(Ended::Left)) && !owned.is_empty() {
            // Nobody listens only where everything is being stopped.
            tell(changes, Assignment::Lost(owned)).ok();
        }
        consumer.context().leaving.store(true, Relaxed);
        let waiting = std::mem::take(&mut *consumer.context().rebalances.lock());
        let waiting = waiting.into_iter().map(|(_, partitions)| partitions);
        for partitions in leaving.map(|l| l.partitions).into_iter().chain(waiting) {
            if let Err(error) = give_back(&consumer, &partitions) {
                tracing::debug!(%error, "leaving the group");
            }
        }
        // It leaves the group, and waits until that is said.
        drop(consumer);
        tracing::info!("left the group that shares the shards out");
        ended
    }

    fn follow(
        &self,
        consumer: &BaseConsumer<Told>,
        mut version: u64,
        changes: &mpsc::Sender<Assignment>,
        standing: &watch::Sender<Standing>,
        stop: &CancellationToken,
        leaving: &mut Option<Leaving>,
    ) -> Result<Ended, SinkError> {
        let made_with = version;
        while !stop.is_cancelled() {
            let current = self.security.version();
            if current != version {
                self.security.hand_password(consumer.client())?;
                version = current;
            }
            match consumer.poll(POLL) {
                // Another certificate takes another client, and that is another member.
                Some(Err(error))
                    if version != made_with
                        && classify::is_refused_connection(&error)
                        && error.rdkafka_error_code() == Some(RDKafkaErrorCode::SSL) =>
                {
                    return Ok(Ended::Outdated);
                }
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                    return Err(failed(error));
                }
                Some(Err(error)) => trouble(standing, &error, &consumer.context().quiet),
                // A record that came before the pause was in force; it is for those who read checkpoints.
                Some(Ok(_)) | None => {}
            }
            let news = consumer.context().rebalances.lock().pop_front();
            let heard = match news {
                Some((Rebalance::Assign, partitions)) => {
                    take(consumer, &partitions).map_err(failed)?;
                    assigned(changes, standing, shards(&partitions))
                }
                Some((Rebalance::Revoke, partitions)) if consumer.assignment_lost() => {
                    let heard = lost(changes, standing, shards(&partitions));
                    give_back(consumer, &partitions).map_err(failed)?;
                    heard
                }
                Some((Rebalance::Revoke, partitions)) => {
                    let (told, done) = oneshot::channel();
                    let until = Instant::now() + self.patience;
                    let change = Assignment::Revoked {
                        shards: shards(&partitions),
                        until,
                        done: told,
                    };
                    *leaving = Some(Leaving {
                        partitions,
                        done,
                        until: until + MARGIN,
                    });
                    revoked(changes, standing, change)
                }
                None => Ok(()),
            };
            if heard.is_err() {
                return Ok(Ended::Left);
            }
            let Some(going) = leaving else { continue };
            let is_done = !matches!(
                going.done.try_recv(),
                Err(oneshot::error::TryRecvError::Empty)
            );
            let late = going.until <= Instant::now();
            if late && !is_done {
                tracing::warn!(
                    shards = ?shards(&going.partitions),
                    within = ?self.patience,
                    "shards were not let go of in time, and are given back"
                );
            }
            if is_done || late || consumer.assignment_lost() {
                give_back(consumer, &going.partitions).map_err(failed)?;
                *leaving = None;
            }
        }
        Ok(Ended::Left)
    }
}

fn failed(error: KafkaError) -> SinkError {
    SinkError::Group {
        reason: error.to_string(),
        class: classify::class(&error),
    }
}

fn assigned(
    changes: &mpsc::Sender<Assignment>,
    standing: &watch::Sender<Standing>,
    shards: BTreeSet<u32>,
) -> Result<(), NobodyListens> {
    let mut owned = 0;
    standing.send_modify(|standing| {
        if !standing.joined {
            (standing.joined, standing.since) = (true, Instant::now());
        }
        standing.trouble = None;
        standing.owned.extend(&shards);
        owned = standing.owned.len();
    });
    tracing::info!(?shards, owned, "shards assigned to this instance");
    tell(changes, Assignment::Assigned(shards))
}

fn revoked(
    changes: &mpsc::Sender<Assignment>,
    standing: &watch::Sender<Standing>,
    change: Assignment,
) -> Result<(), NobodyListens> {
    if let Assignment::Revoked { shards, .. } = &change {
        tracing::info!(?shards, "shards go to another instance");
        disown(standing, shards);
    }
    tell(changes, change)
}

fn lost(
    changes: &mpsc::Sender<Assignment>,
    standing: &watch::Sender<Standing>,
    shards: BTreeSet<u32>,
) -> Result<(), NobodyListens> {
    tracing::warn!(
        ?shards,
        "shards were lost: the group did not hear of this instance in time"
    );
    disown(standing, &shards);
    standing.send_modify(|standing| {
        (standing.joined, standing.since) = (false, Instant::now());
    });
    tell(changes, Assignment::Lost(shards))
}

fn disown(standing: &watch::Sender<Standing>, shards: &BTreeSet<u32>) {
    standing.send_modify(|standing| standing.owned.retain(|shard| !shards.contains(shard)));
}

fn tell(changes: &mpsc::Sender<Assignment>, change: Assignment) -> Result<(), NobodyListens> {
    changes.blocking_send(change).map_err(|_| NobodyListens)
}

/// Something is in the way, which librdkafka tries again by itself.
fn trouble(standing: &watch::Sender<Standing>, error: &KafkaError, quiet: &Quiet) {
    let reason = match quiet.last_error() {
        Some(last) => format!("{error} ({last})"),
        None => error.to_string(),
    };
    let news = standing.send_if_modified(|standing| {
        let news = standing.trouble.as_ref() != Some(&reason);
        standing.trouble = Some(reason.clone());
        news
    });
    if news {
        tracing::warn!(reason, "trouble with the group that shares the shards out");
    }
}
