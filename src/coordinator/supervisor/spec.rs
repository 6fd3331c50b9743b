//! A child as the supervisor is given it: how it is started, what it is handed, and the errors that mean something to
//! its supervisor.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::activity::Activity;
use super::super::child::{ChildId, Stage};

/// What a child is given.
#[derive(Clone)]
pub struct ChildScope {
    /// Cancelled when the child is to finish what it holds and return.
    pub drain: CancellationToken,
    /// Where it shows what it does.
    pub activity: Arc<Activity>,
    /// The stages that were given up on.
    pub(super) failed: watch::Receiver<BTreeSet<Stage>>,
}

impl ChildScope {
    /// Waits until the child is to drain and `stage` was given up on: what it still has for that stage, nobody
    /// will take. It may then be let go of, for it is not checkpointed; a restart of the process makes good.
    ///
    /// Cancel-safe.
    pub async fn stranded(&self, stage: &Stage) {
        self.drain.cancelled().await;
        let mut failed = self.failed.clone();
        if failed
            .wait_for(|failed| failed.contains(stage))
            .await
            .is_err()
        {
            // The supervisor is gone, and with it whatever there was to drain.
            std::future::pending().await
        }
    }
}

/// The work of one incarnation.
pub type ChildFuture = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// A child and how to start it, again and again.
pub struct ChildSpec {
    /// Which it is, and whose policies it has.
    pub id: ChildId,
    /// Makes an incarnation.
    pub run: Box<dyn FnMut(ChildScope) -> ChildFuture + Send>,
}

impl ChildSpec {
    /// A child from a closure that returns a future.
    pub fn new<F, Fut>(id: impl Into<ChildId>, mut run: F) -> Self
    where
        F: FnMut(ChildScope) -> Fut + Send + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        Self {
            id: id.into(),
            run: Box::new(move |scope| Box::pin(run(scope))),
        }
    }
}

/// An error of a child that serves several stages, and the one whose doing it is.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
pub struct Blamed {
    /// Whose supervision policy it counts against.
    pub stage: Stage,
    /// What happened.
    pub error: anyhow::Error,
}

/// An error of a child whose work another process has taken over: it has not crashed, and to start it again would be
/// to fight for it.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct Relieved(pub anyhow::Error);

/// Does what blocks on a thread of its own, until the child is to drain.
///
/// # Errors
/// Those of the work, or that it panicked.
pub async fn on_a_thread<E: Into<anyhow::Error> + Send + 'static>(
    scope: ChildScope,
    work: impl FnOnce(&CancellationToken) -> Result<(), E> + Send + 'static,
) -> anyhow::Result<()> {
    // Stopped with this future too, not only by a drain: a thread cannot be aborted.
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let stopping = stop.clone();
    let mut thread = tokio::task::spawn_blocking(move || work(&stop));
    tokio::select! {
        ended = &mut thread => return ended?.map_err(Into::into),
        () = scope.drain.cancelled() => stopping.cancel(),
    }
    thread.await?.map_err(Into::into)
}
