//! The sink's guard: turns what is seen of the brokers into the breaker's successes and failures.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::RedpandaSink;
use crate::policy::breaker::State as Breaker;
use crate::policy::stage::Permit;
use crate::reach::{self, Found};
use crate::sink::flight::{Oldest, Window};
use crate::sink::rounds::{self, Met, Rounds};
use crate::sink::trouble::{Cause, Help};
use crate::sink::watch::{Act, Sight, Watch};

/// How often the guard looks, as a share of `sink.attempt_timeout`, within these bounds.
const LOOKS: u32 = 20;
const LOOK_BOUNDS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// What is said when they are late.
const NOTHING: &str = "no acknowledgement for more than 1 s, though they answer";
/// Acknowledgements that were late are as usual again after this long.
const WELL: Duration = Duration::from_secs(1);

/// What the guard keeps from look to look.
#[derive(Default)]
struct Guard {
    watch: Watch,
    probe: Option<Permit>,
    rounds: Rounds,
    /// The brokers were seen to be back, and the breaker has not looked yet.
    is_back: bool,
    /// When a batch was late last, and what was told of it.
    late: Option<(Instant, Arc<str>)>,
}

/// One look at the windows and the breaker.
struct Looked {
    sight: Sight,
    oldest: Option<(Oldest, Arc<Window>)>,
    breaker: Breaker,
}

impl RedpandaSink {
    /// Watches the age of the oldest unacknowledged batch ([`crate::sink::watch`]), and asks the brokers whether they
    /// are there ([`crate::sink::rounds`]). Never returns: the coordinator drives it beside the shards. Without it an
    /// outage opens no breaker.
    pub async fn guard(&self) {
        tokio::join!(self.look_after(), self.follow_security());
    }

    async fn look_after(&self) {
        // What the one before told of, be it that it crashed or that a rebuild ended it, this one takes back.
        self.troubles.clear(&Cause::Acknowledgements);
        let mut guard = Guard {
            rounds: Rounds::after(self.troubles.has(&Cause::Brokers)),
            ..Guard::default()
        };
        let mut asking: Option<BoxFuture<'_, Met>> = None;
        let mut checking: Option<BoxFuture<'_, ()>> = None;
        loop {
            tokio::select! {
                () = ended(&mut checking) => checking = None,
                () = self.again.notified(), if checking.is_none() => {
                    checking = Some(self.look_at_ours_again().boxed());
                }
                met = ended(&mut asking) => {
                    asking = None;
                    let act = guard.rounds.end(Instant::now(), met);
                    self.heed(&mut guard, act);
                }
                () = self.hint.notified() => guard.rounds.hint(),
                () = tokio::time::sleep(self.look_every()) => {}
            }
            let seen = self.look(&mut guard);
            if asking.is_none() && guard.rounds.is_due(seen) {
                let all = guard.rounds.is_late(seen);
                guard.rounds.begin();
                asking = Some(self.ask(all).boxed());
            }
        }
    }

    pub(super) fn look_every(&self) -> Duration {
        let timeout = self.live.borrow().sink.attempt_timeout;
        (timeout / LOOKS).clamp(LOOK_BOUNDS.0, LOOK_BOUNDS.1)
    }

    fn see(&self) -> Looked {
        let oldest = self
            .windows()
            .into_iter()
            .filter_map(|w| Some((w.oldest()?, w)))
            .min_by_key(|(o, _)| o.submitted);
        let breaker = self.policies.snapshot();
        let sight = Sight {
            now: Instant::now(),
            oldest: oldest.as_ref().map(|(o, _)| *o),
            acks: self
                .traffic
                .lock()
                .values()
                .map(|l| l.snapshot().batches)
                .sum(),
            timeout: self.live.borrow().sink.attempt_timeout,
            half_open: (breaker.breaker == Breaker::HalfOpen).then_some(breaker.since),
        };
        Looked {
            sight,
            oldest,
            breaker: breaker.breaker,
        }
    }

    fn look(&self, guard: &mut Guard) -> rounds::Sight {
        let Looked {
            sight,
            oldest,
            breaker,
        } = self.see();
        let silence = |age: Duration| {
            let oldest = humantime::format_duration(Duration::from_millis(age.as_millis() as u64));
            format!("no acknowledgement: the oldest batch has been waiting for {oldest}")
        };
        match guard.watch.look(sight) {
            Act::Rest => {}
            Act::Strike(batch, age) => {
                // A half-open breaker counts its probe alone: the permit tells. A closed one counts every attempt,
                // and the batch keeps its permit: acknowledged after all, it ends the run of failures.
                let probe = (breaker != Breaker::Closed).then(|| {
                    oldest
                        .as_ref()
                        .and_then(|(_, w)| w.take_permit(batch.batch))
                });
                match probe.flatten() {
                    Some(permit) => permit.failure(silence(age)),
                    None => self.policies.record_failure(silence(age)),
                }
            }
            Act::Probe => {
                if let Ok(permit) = self.policies.try_admit() {
                    guard.probe = Some(permit);
                    guard.watch.probing(sight.now, sight.acks);
                }
            }
            Act::ProbePassed(batches) => {
                let mut permit = guard.probe.take();
                // Each batch that came through is a success of its own.
                for _ in 0..batches {
                    let Some(passed) = permit.take() else { break };
                    passed.success();
                    if self.policies.snapshot().breaker == Breaker::HalfOpen {
                        permit = self.policies.try_admit().ok();
                    }
                }
            }
            Act::ProbeFailed => {
                if let Some(permit) = guard.probe.take() {
                    permit.failure(silence(sight.timeout));
                }
            }
        }
        if guard.is_back {
            self.policies.look_again();
            guard.is_back = self.policies.snapshot().breaker == Breaker::Open;
        }
        if !guard.watch.is_probing() {
            // Nothing is out any more: the place in half-open goes to a new batch.
            drop(guard.probe.take());
        }
        let waits = oldest
            .as_ref()
            .map(|(o, _)| sight.now.saturating_duration_since(o.submitted));
        self.tell_of_waiting(guard, sight.now, waits, breaker);
        rounds::Sight {
            now: sight.now,
            oldest: oldest.map(|(o, _)| sight.now.saturating_duration_since(o.submitted)),
            timeout: sight.timeout,
            closed: breaker == Breaker::Closed,
        }
    }

    /// A wait for acknowledgements has a reason as soon as it is none of the usual ones, long before it is a failure.
    fn tell_of_waiting(
        &self,
        guard: &mut Guard,
        now: Instant,
        waits: Option<Duration>,
        breaker: Breaker,
    ) {
        let told_otherwise = breaker != Breaker::Closed || self.troubles.has(&Cause::Brokers);
        let late = waits.is_some_and(|waits| waits >= rounds::PATIENCE) && !told_otherwise;
        if late {
            let reason: Arc<str> = match self.topics.thin() {
                Some(thin) => format!("{NOTHING}: {thin}").into(),
                None => NOTHING.into(),
            };
            if guard.late.as_ref().is_none_or(|(_, told)| *told != reason) {
                self.troubles
                    .raise(Cause::Acknowledgements, Help::None, reason.clone());
            }
            guard.late = Some((now, reason));
        } else if let Some((last, _)) = &guard.late
            && (told_otherwise || now.saturating_duration_since(*last) >= WELL)
        {
            guard.late = None;
            self.troubles.clear(&Cause::Acknowledgements);
        }
    }

    /// What a round says of the breaker.
    fn heed(&self, guard: &mut Guard, act: rounds::Act) {
        let Looked {
            oldest, breaker, ..
        } = self.see();
        match act {
            rounds::Act::Fail { reason, first } => {
                guard.is_back = false;
                if first {
                    self.troubles.raise(Cause::Brokers, Help::None, &*reason);
                }
                if breaker != Breaker::HalfOpen {
                    self.policies.record_failure(reason);
                    return;
                }
                // The probe is as good as failed: what is out meets the same.
                guard.watch.decided();
                let out = || oldest.and_then(|(o, w)| w.take_permit(o.batch));
                let probe = guard.probe.take().or_else(out);
                if let Some(permit) = probe.or_else(|| self.policies.try_admit().ok()) {
                    permit.failure(reason);
                }
            }
            rounds::Act::Back => {
                self.troubles.clear(&Cause::Brokers);
                guard.is_back = breaker == Breaker::Open;
                if oldest.is_none() && breaker == Breaker::Closed {
                    self.policies.record_success();
                }
            }
            // With nothing to send, an answer is all that there is to go by.
            rounds::Act::Rest if oldest.is_none() && breaker == Breaker::HalfOpen => {
                if let Ok(permit) = self.policies.try_admit() {
                    permit.success();
                }
            }
            rounds::Act::Rest => {}
        }
    }

    /// One round: whether the brokers take connections and answer. `all`: whether every topic in use is there, too;
    /// else only the checkpoints are looked for, which nobody may be writing now.
    async fn ask(&self, all: bool) -> Met {
        let within = Rounds::patience(self.live.borrow().sink.attempt_timeout);
        let addresses = self.addresses.lock().clone();
        match reach::look(&addresses).await {
            Found::Refused(reason) => return Met::Refusal(reason),
            Found::Silent(reason) => return Met::Silence(reason),
            Found::Open => {}
        }
        let topic = self.checkpoint_topic();
        let wanted = (!all).then(|| topic.clone());
        match self.topics.metadata_within(wanted, within).await {
            Ok(found) => {
                self.note_addresses(&found);
                let made = self.topics.review(&found, all, within).await;
                if made.iter().any(|made| **made == *topic) {
                    self.ends.made_again();
                }
                Met::Answer
            }
            Err(error) => {
                let said = self.security.get().explain_all(&addresses).await;
                let said = said.unwrap_or_else(|| format!("connected, but no answer: {error}"));
                Met::Silence(format!("{}: {said}", addresses.join(", ")))
            }
        }
    }
}

async fn ended<T>(asking: &mut Option<BoxFuture<'_, T>>) -> T {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}
