//! Whether a record's topic takes records now, and when one that does not may be tried again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::RedpandaSink;
use super::topics::Refusal;
use crate::policy::Class;
use crate::sink::trouble::{Cause, Help};
use crate::sink::{Fit, Recovery, SinkError};

/// A topic that is waited for is asked about again after this long at the latest.
const OTHERWISE: Duration = Duration::from_secs(1);

/// What is to be done with a record for a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It may be sent.
    There(Fit),
    /// … to see whether the topic takes records again.
    ToBeTried(Fit),
    /// It has to wait until someone has helped.
    Waits,
}

impl RedpandaSink {
    /// Makes sure that a topic takes records, as far as that takes no help. `apart`: one that refused records may be
    /// tried again if it is time.
    ///
    /// A question about it is an attempt like a batch: without an answer in `attempt_timeout` it failed. So an outage
    /// that meets a shard here opens the breaker too, and the shard keeps what it has in flight. An answer that someone
    /// has to help with is no failure of the brokers: what is for this topic waits, and the rest goes on.
    pub(super) async fn find_topic(&self, topic: &str, apart: bool) -> Result<Place, SinkError> {
        let cause = Cause::Topic(topic.into());
        let refused = self.troubles.again_at(&Cause::Writing(topic.into()));
        let now = Instant::now();
        if refused.is_some_and(|at| at > now || !apart)
            || self.troubles.help_at(&cause).is_some_and(|at| at > now)
        {
            return Ok(Place::Waits);
        }
        let place = |fit| match refused {
            Some(_) => Place::ToBeTried(fit),
            None => Place::There(fit),
        };
        let mut attempt = 0_u32;
        loop {
            if self.topics.knows(topic) {
                return Ok(place(self.fit(topic)));
            }
            let permit = self.gate().await;
            let (settings, within) = {
                let live = self.live.borrow();
                (live.sink.topics.clone(), live.sink.attempt_timeout)
            };
            let asked = self.topics.ensure_within(topic, &settings, within);
            let waits = self.policies.waits();
            let found = waits.during("look for a topic", asked).await;
            let error = match found {
                Ok(()) => {
                    permit.success();
                    self.troubles.clear(&cause);
                    return Ok(place(self.fit(topic)));
                }
                Err(Refusal::Never(reason)) => {
                    permit.success();
                    return Ok(Place::There(Fit::Never(reason.into())));
                }
                Err(Refusal::Help(reason)) => {
                    permit.success();
                    self.troubles.raise(cause, Help::Needed, reason);
                    return Ok(Place::Waits);
                }
                Err(Refusal::Outage(error)) => error,
            };
            if error.class() != Class::Retryable {
                return Err(error);
            }
            permit.failure(&error);
            attempt = attempt.saturating_add(1);
            if !self.policies.back_off(attempt).await {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "asking about a topic again");
        }
    }

    /// Waits until one of these topics may be tried again. It takes no leave of the breaker, which whoever waits for
    /// this may need: while that is not closed, nobody is asked.
    pub(super) async fn recovery(&self, topics: &[Arc<str>]) -> Recovery {
        loop {
            let now = Instant::now();
            let mut next = now + OTHERWISE;
            for topic in topics {
                let cause = Cause::Topic(Arc::clone(topic));
                let refused = self.troubles.again_at(&Cause::Writing(Arc::clone(topic)));
                let due = match refused {
                    Some(at) => at,
                    None => self.troubles.again_at(&cause).unwrap_or(now),
                };
                if due > now {
                    next = next.min(due);
                    continue;
                }
                let recovered = |is_certain| Recovery {
                    topic: Arc::clone(topic),
                    is_certain,
                };
                if refused.is_some() {
                    return recovered(false);
                }
                if !self.is_closed() {
                    continue;
                }
                let (settings, within) = {
                    let live = self.live.borrow();
                    (live.sink.topics.clone(), live.sink.attempt_timeout)
                };
                match self.topics.ensure_within(topic, &settings, within).await {
                    // A name that is refused for good makes letters of its records.
                    Ok(()) | Err(Refusal::Never(_)) => {
                        self.troubles.clear(&cause);
                        return recovered(true);
                    }
                    Err(Refusal::Help(reason)) => {
                        self.troubles.raise(cause.clone(), Help::Needed, reason);
                        let again = self.troubles.again_at(&cause);
                        next = next.min(again.unwrap_or(next));
                    }
                    Err(Refusal::Outage(error)) => {
                        tracing::debug!(%error, "asking about a topic again");
                    }
                }
            }
            tokio::time::sleep_until(next).await;
        }
    }

    /// What a topic takes. Compressed, a record is smaller than it is here, and nobody knows by how much.
    fn fit(&self, topic: &str) -> Fit {
        let compressed = self.live.borrow().sink.compresses();
        match self.topics.takes(topic) {
            Some(bytes) if !compressed => Fit::Within(bytes),
            _ => Fit::Any,
        }
    }
}
