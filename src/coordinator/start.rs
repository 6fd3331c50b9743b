//! The start of the pipeline, however long what it needs from outside is away.
//!
//! What is wrong with the configuration or the plugins ends the start. What is wrong outside (nobody answers, a right is
//! refused, a table or a topic is not there yet) is waited for, as it would be later: the process is up, says what it
//! waits for in the log and in health, is not ready, takes a changed configuration, and obeys a stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::child::Stage;
use super::handle::Phase;
use super::pipeline::Pipeline;
use super::shutdown::Signals;
use super::{Coordinator, Stopping};
use crate::config::Settings;
use crate::orders::Service;
use crate::sink::SinkError;
use crate::sink::redpanda::membership::Member;
use crate::source::SourceError;

/// Between two tries: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// How often it is looked what the start waits for.
const LOOKS: Duration = Duration::from_millis(100);

/// A pipeline that is connected and open, and not running yet.
pub(super) struct Begun {
    pipeline: Pipeline,
    member: Option<Member>,
    orders: Option<Service>,
}

/// What the start waits for.
pub(super) struct PutOff {
    reason: String,
}

impl Coordinator {
    /// Makes everything that is to run; touches nothing of the coordinator.
    pub(super) fn beginning(&self) -> impl Future<Output = anyhow::Result<Begun>> + use<> {
        let settings = self.live.borrow().clone();
        let (live, policies, shared) = (self.live.clone(), self.policies.clone(), self.is_shared());
        let (admin, more) = (
            self.admin_address(),
            (self.shared.spans().clone(), self.orders_counted.clone()),
        );
        // Which shards are those of one that shares them, the group has yet to say.
        let own = match shared {
            true => Vec::new(),
            false => (0..settings.pipeline.shards.get()).collect(),
        };
        let connected = Pipeline::connect(
            self.feeds.subscribe(),
            self.policies.clone(),
            (self.parts.clone(), self.plugins.clone()),
            self.shared.spans().clone(),
            own,
            None,
        );
        async move {
            let pipeline = connected.await?;
            pipeline.sink.listens_at(admin);
            let (member, own) = match shared {
                true => (Some(pipeline.sink.member().await?), Vec::new()),
                false => (None, pipeline.numbers().collect()),
            };
            pipeline.open(own, None).await?;
            let orders = match settings.orders.enabled {
                true => {
                    let policies = policies.stage(&Stage::Orders);
                    Some(Service::start(&settings, live, policies, more, None).await?)
                }
                false => None,
            };
            Ok(Begun {
                pipeline,
                member,
                orders,
            })
        }
    }

    /// … for the first time. Nothing else is there yet that would look at health meanwhile.
    pub(super) async fn first_beginning(&mut self) -> anyhow::Result<Begun> {
        let mut beginning = std::pin::pin!(self.beginning());
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                begun = &mut beginning => return begun,
                () = tokio::time::sleep(LOOKS) => {}
            }
            let stages = self.policies.all();
            let waits = stages.iter().any(|(_, p)| p.waits().longest().is_some());
            if waits || told {
                self.check_health();
            }
            told = waits;
        }
    }

    /// Starts every child of it.
    pub(super) fn begin(&mut self, begun: Begun) {
        self.run_pipeline(Arc::new(begun.pipeline));
        if begun.orders.is_some() {
            self.run_orders(begun.orders);
        }
        self.shared.set_phase(Phase::Running);
        if let Some(member) = begun.member {
            self.join(member);
        }
        if self.put_off.take().is_some() {
            self.health.begun();
        }
        self.publish();
        tracing::info!(
            children = self.supervisor.status().len(),
            took = ?self.started.elapsed(),
            "all supervised stages started"
        );
    }

    /// Notes why the pipeline is not started yet.
    ///
    /// # Errors
    /// It is nothing that heals by itself or by someone's help outside.
    pub(super) fn put_off(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        let Some(stage) = heals(&error) else {
            return Err(error);
        };
        let reason = format!("{error:#}");
        if self.put_off.as_ref().is_none_or(|p| p.reason != reason) {
            tracing::warn!(%stage, reason, "waiting for what the pipeline needs");
        }
        self.health.waits(stage, &reason);
        self.put_off = Some(PutOff { reason });
        self.check_health();
        self.publish();
        Ok(())
    }

    /// Goes on with a start that was put off, until it is done.
    ///
    /// # Errors
    /// A stop was asked for meanwhile, or called for.
    pub(super) async fn begin_late(&mut self, signals: &mut Signals) -> Result<(), Stopping> {
        let mut pause = PAUSES.0;
        while self.put_off.is_some() {
            if self.pause(pause, signals).await? {
                pause = PAUSES.0;
            }
            let beginning = self.beginning();
            match self.meanwhile(signals, beginning).await? {
                // No change of the configuration is under way.
                None => {}
                Some(Ok(begun)) => self.begin(begun),
                Some(Err(error)) => {
                    if let Err(error) = self.put_off(error) {
                        // It could be loaded, so it is what was changed meanwhile; the next change may mend it.
                        let reason = format!("{error:#}");
                        tracing::error!(reason, "the pipeline cannot be started");
                        self.health.waits(Stage::Sink, &reason);
                    }
                }
            }
            pause = (pause * 2).min(PAUSES.1);
        }
        Ok(())
    }

    /// Waits for so long, or for another configuration, which is put in force; says whether one was.
    async fn pause(&mut self, pause: Duration, signals: &mut Signals) -> Result<bool, Stopping> {
        let until = Instant::now() + pause;
        loop {
            if self.asked.1 || !self.asked.0.is_empty() {
                self.turn(signals).await?;
                return Ok(true);
            }
            tokio::select! {
                attended = self.attend(signals, true) => {
                    if attended? {
                        self.reload("a source of it changed", signals).await?;
                        return Ok(true);
                    }
                }
                () = tokio::time::sleep_until(until) => return Ok(false),
            }
            self.publish();
        }
    }

    /// Puts settings in force that nothing runs by yet.
    ///
    /// # Errors
    /// The plugins' engine cannot be made by them.
    pub(super) fn take_up(&mut self, new: &Arc<Settings>) -> anyhow::Result<()> {
        if !self.plugins.suffices(new) {
            self.plugins = self.parts.plugins(new)?;
        }
        self.feeds.send(new);
        self.reloads.sender.send_replace(new.clone());
        Ok(())
    }
}

/// Whose trouble it is, if it is outside of this process and its configuration.
fn heals(error: &anyhow::Error) -> Option<Stage> {
    if let Some(error) = error.downcast_ref::<SinkError>() {
        return error.heals().then_some(Stage::Sink);
    }
    let source = error.downcast_ref::<SourceError>()?;
    source.is_retryable().then_some(Stage::Source)
}
