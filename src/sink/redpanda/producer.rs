//! A producer and the window of what it has under way; both are replaced together.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use tokio::sync::{Notify, watch};

use super::RedpandaSink;
use super::classify::{self, Refusal};
use super::client::{self, Quiet};
use super::header_list::HeaderList;
use super::parts;
use super::polling::Polled;
use super::raw::{Answered, Delivered, Message, Raw};
use super::reader::Ended;
use super::security::InForce;
use crate::sink::SinkError;
use crate::sink::flight::{Counters, Report, Snapshot, Submission, Tag, Window};
use crate::sink::trouble::Troubles;

/// How far the checkpoint topic is written. What is appended to a topic has ever higher offsets, so a lower one says that
/// the topic is not the one that it was: another instance, or somebody else, has made it again.
#[derive(Debug)]
pub(super) struct Ends {
    topic: String,
    last: Mutex<HashMap<i32, i64>>,
    remade: watch::Sender<u64>,
}

impl Ends {
    /// Of this topic; counts there how often it was made again.
    pub(super) fn new(topic: String, remade: watch::Sender<u64>) -> Self {
        Self {
            topic,
            last: Mutex::default(),
            remade,
        }
    }

    /// It was made again here.
    pub(super) fn made_again(&self) {
        self.last.lock().clear();
        self.remade.send_modify(|n| *n += 1);
    }

    /// A record of the topic.
    fn acknowledged(&self, partition: i32, offset: i64) {
        let before = self.last.lock().insert(partition, offset);
        if before.is_some_and(|before| offset <= before) {
            tracing::warn!(
                topic = self.topic,
                partition,
                "the topic was made again by somebody else"
            );
            self.last.lock().retain(|p, _| *p == partition);
            self.remade.send_modify(|n| *n += 1);
        }
    }
}

/// What became of records comes in here: acknowledgements on the threads of the brokers, the rest on the producer's own.
pub(super) struct Reports {
    window: Arc<Window>,
    quiet: Quiet,
    troubles: Troubles,
    ends: Arc<Ends>,
    /// What the producer connects with, and which version of it was in force when it was made.
    security: (InForce, u64),
}

impl ClientContext for Reports {
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
        let (security, made_with) = &self.security;
        if classify::is_refused_connection(&error) && security.version() != *made_with {
            // With what was rotated meanwhile another producer may be let in; this one will not.
            self.window.fail(SinkError::Reset);
        }
    }
}

impl Answered for Reports {
    fn delivered(&self, message: &Delivered<'_>) {
        let report = if message.offset() >= 0 {
            if self.troubles.are_any() {
                self.troubles.accepted(&message.topic());
            }
            if message.is_for(&self.ends.topic) {
                self.ends
                    .acknowledged(message.partition(), message.offset());
            }
            Report::Acked
        } else {
            // Only taken for delivered because something later of the same producer was. But a broker takes any
            // first sequence of a producer, so what was refused before it may be nowhere (KAFKA-15591): a place in
            // the partition is the proof. Where it was delivered after all, it is repeated.
            Report::Failed(SinkError::Delivery {
                topic: message.topic().into_owned(),
                reason: "what was sent after it was acknowledged, it was not".into(),
                class: crate::policy::Class::Retryable,
            })
        };
        self.window.report(Tag::from_usize(message.tag()), report);
    }

    fn failed(&self, error: &KafkaError, topic: &str, tag: usize) {
        let topic = topic.to_owned();
        let report = if classify::refused(error) {
            Report::Failed(SinkError::Refused {
                topic,
                reason: error.to_string(),
            })
        } else if classify::is_purged(error) {
            Report::Failed(SinkError::Purged { topic })
        } else {
            match classify::delivery(error) {
                Refusal::Content => Report::Suspect {
                    reason: error.to_string(),
                    too_large: classify::is_size(error),
                },
                Refusal::Other(class) => Report::Failed(SinkError::Delivery {
                    topic,
                    reason: match self.quiet.last_error() {
                        Some(last) => format!("{error} ({last})"),
                        None => error.to_string(),
                    },
                    class,
                }),
            }
        };
        self.window.report(Tag::from_usize(tag), report);
    }
}

/// What of a shard outlives its producers: the counters, and the window in use for whoever looks on.
#[derive(Debug)]
pub(super) struct Traffic {
    counters: Arc<Counters>,
    window: Mutex<Arc<Window>>,
    troubles: Troubles,
    ends: Arc<Ends>,
    security: InForce,
    ended: Arc<Ended>,
    /// Rung when a producer complains about a connection: whoever has something to send is the first to know.
    hint: Arc<Notify>,
}

impl Traffic {
    /// Of this sink: it waits for the same, and connects with the same.
    pub(super) fn of(sink: &RedpandaSink) -> Self {
        let counters = Arc::<Counters>::default();
        let window = Mutex::new(Arc::new(Window::new(Arc::clone(&counters))));
        Self {
            counters,
            window,
            troubles: sink.troubles.clone(),
            ends: Arc::clone(&sink.ends),
            security: sink.security.clone(),
            ended: Arc::clone(&sink.ended),
            hint: Arc::clone(&sink.hint),
        }
    }

    pub(super) fn window(&self) -> Arc<Window> {
        Arc::clone(&self.window.lock())
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let window = self.window();
        let oldest = window.oldest().map(|o| o.submitted);
        self.counters.snapshot(window.messages(), oldest)
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    fn renew(&self) -> Arc<Window> {
        let window = Arc::new(Window::new(Arc::clone(&self.counters)));
        *self.window.lock() = Arc::clone(&window);
        window
    }
}

/// One record on its way to librdkafka.
pub(super) struct Outgoing<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: Option<i32>,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: Option<HeaderList>,
    /// Milliseconds since the Unix epoch; `None`: now.
    pub(super) timestamp: Option<i64>,
}

/// How librdkafka took a record.
pub(super) enum Handed {
    Taken,
    /// The queue is full; the headers come back.
    Full(Option<HeaderList>),
    /// A report about it was made: it is poison, or it broke the window.
    Reported,
}

pub(super) struct Producer {
    config: ClientConfig,
    /// Of the credentials in it.
    version: u64,
    traffic: Arc<Traffic>,
    window: Arc<Window>,
    /// Always there but while it is being replaced.
    client: Option<Polled<Reports>>,
    /// It has been answered by a broker that the cluster named.
    pub(super) is_connected: Arc<AtomicBool>,
}

impl Producer {
    pub(super) fn new(
        (config, version): (ClientConfig, u64),
        traffic: Arc<Traffic>,
    ) -> Result<Self, SinkError> {
        let window = traffic.renew();
        let client = Some(create(&config, version, &window, &traffic)?);
        Ok(Self {
            config,
            version,
            traffic,
            window,
            client,
            is_connected: Arc::default(),
        })
    }

    /// Whether other credentials are in force than those that the producer was made with.
    pub(super) fn is_outdated(&self) -> bool {
        self.traffic.security.version() != self.version
    }

    pub(super) fn window(&self) -> &Arc<Window> {
        &self.window
    }

    pub(super) fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    pub(super) fn client(&self) -> Result<&Polled<Reports>, SinkError> {
        self.client.as_ref().ok_or(SinkError::Reset)
    }

    /// Hands one record over; [`Submission::expect`] was called for it.
    pub(super) fn hand(&self, tag: Tag, out: Outgoing<'_>) -> Result<Handed, SinkError> {
        let topic = out.topic;
        let message = Message {
            topic,
            partition: out.partition,
            key: out.key,
            value: out.value,
            timestamp: out.timestamp,
            tag: tag.to_usize(),
        };
        let Err((error, headers)) = self.client()?.send(&message, out.headers) else {
            return Ok(Handed::Taken);
        };
        if let KafkaError::MessageProduction(Code::QueueFull) = error {
            return Ok(Handed::Full(headers));
        }
        // librdkafka looked at this record alone, so what it refuses for its content is refused for good.
        let report = match classify::delivery(&error) {
            // It says "Broker", which has not seen it.
            Refusal::Content if classify::is_size(&error) => {
                let headers = headers.unwrap_or_else(|| HeaderList::of(&[]));
                let size = parts::size(out.key, out.value, &headers);
                let name = client::LARGEST_MESSAGE;
                let takes = client::largest_message(self.config.get(name));
                Report::Poison(format!(
                    "it has {size} bytes, and the client takes {takes} ({name} in sink.properties)"
                ))
            }
            Refusal::Content => Report::Poison(error.to_string()),
            Refusal::Other(class) => Report::Failed(SinkError::Delivery {
                topic: topic.to_owned(),
                reason: error.to_string(),
                class,
            }),
        };
        self.window.report(tag, report);
        Ok(Handed::Reported)
    }

    /// Waits until a full queue has room again.
    pub(super) async fn room(&self) -> Result<(), SinkError> {
        self.traffic.counters().waited();
        match self.window.messages() {
            // All are reported on, and librdkafka has yet to free them.
            0 => tokio::time::sleep(Duration::from_millis(1)).await,
            // Waking at every report would be one wake-up a record.
            out => self.window.room(out * 3 / 4).await?,
        }
        Ok(())
    }

    /// Hands one record over, waiting while the queue is full.
    pub(super) async fn send(
        &self,
        submission: &Submission<'_>,
        index: u32,
        out: Outgoing<'_>,
    ) -> Result<(), SinkError> {
        let tag = Tag::new(submission.id, index);
        let Outgoing {
            topic,
            partition,
            key,
            value,
            mut headers,
            timestamp,
        } = out;
        loop {
            submission.expect(1);
            let out = Outgoing {
                topic,
                partition,
                key,
                value,
                headers,
                timestamp,
            };
            match self.hand(tag, out)? {
                Handed::Taken | Handed::Reported => return Ok(()),
                Handed::Full(back) => {
                    submission.unexpect(1);
                    headers = back;
                    self.room().await?;
                }
            }
        }
    }

    /// Whether librdkafka says that this producer is of no more use.
    pub(super) fn is_finished(&self) -> bool {
        self.client
            .as_ref()
            .is_none_or(|p| p.client().fatal_error().is_some())
    }

    /// Whoever looks on sees this one's window: another producer of the lane may have been there since it was made.
    pub(super) fn show(&self) {
        *self.traffic.window.lock() = Arc::clone(&self.window);
    }

    /// A new producer with the same window: nothing is under way.
    pub(super) async fn replace_producer(&mut self) -> Result<(), SinkError> {
        self.close().await;
        self.traffic.counters().reset();
        let made = create(&self.config, self.version, &self.window, &self.traffic)?;
        self.client = Some(made);
        self.is_connected = Arc::default();
        Ok(())
    }

    /// … made otherwise.
    pub(super) async fn replace_producer_with(
        &mut self,
        made: (ClientConfig, u64),
    ) -> Result<(), SinkError> {
        (self.config, self.version) = made;
        self.replace_producer().await
    }

    /// Lets go of everything under way. After it no report comes in any more.
    pub(super) async fn stop(&mut self) {
        self.window.fail(SinkError::Reset);
        self.close().await;
    }

    /// Starts over after [`Self::stop`], with a new window.
    pub(super) async fn restart(&mut self) -> Result<(), SinkError> {
        self.window = self.traffic.renew();
        self.replace_producer().await
    }

    /// … made otherwise.
    pub(super) async fn restart_with(
        &mut self,
        made: (ClientConfig, u64),
    ) -> Result<(), SinkError> {
        (self.config, self.version) = made;
        self.restart().await
    }

    /// Ends the producer. librdkafka's threads take up to half a second to end, so not on a runtime thread.
    pub(super) async fn close(&mut self) {
        if let Some(producer) = self.client.take() {
            super::blocking(move || {
                producer.purge();
                drop(producer);
            })
            .await;
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.window.fail(SinkError::Reset);
        // A purge waits for each of librdkafka's threads, which look once a second where they have no descriptors to be woken
        // by: whoever lets go of many, a start that is ended, is not to wait for one after the other.
        if let Some(client) = self.client.take() {
            self.traffic.ended.end(client);
        }
    }
}

fn create(
    config: &ClientConfig,
    version: u64,
    window: &Arc<Window>,
    traffic: &Traffic,
) -> Result<Polled<Reports>, SinkError> {
    let reports = Reports {
        troubles: traffic.troubles.clone(),
        ends: Arc::clone(&traffic.ends),
        window: Arc::clone(window),
        quiet: Quiet::hinting(&traffic.security, Arc::clone(&traffic.hint)),
        security: (traffic.security.clone(), version),
    };
    Polled::new(Raw::new(config, reports).map_err(client::creation)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_offset_tells_that_the_topic_is_another_one() {
        let remade = watch::Sender::new(0);
        let ends = Ends::new("c".into(), remade.clone());
        for offset in [0, 1, 7] {
            ends.acknowledged(0, offset);
            ends.acknowledged(1, offset);
        }
        assert_eq!(*remade.borrow(), 0);
        ends.acknowledged(1, 0);
        ends.acknowledged(0, 0);
        ends.acknowledged(0, 1);
        assert_eq!(*remade.borrow(), 1, "it is said once");
        ends.made_again();
        ends.acknowledged(0, 0);
        assert_eq!(*remade.borrow(), 2, "whoever makes it again knows");
    }
}
