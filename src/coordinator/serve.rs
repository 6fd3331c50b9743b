//! Serves HTTP as a child: every connection is a task of the child's own, so that none outlives it. One that is
//! stopped, given up on or crashed takes its connections with it; one that drains, or is replaced, lets them finish
//! their requests.
//!
//! A connection on which nothing is being answered makes room for the next where there are many; so whoever connects
//! and says nothing, or says it slowly, keeps nobody out.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use tokio::task::{Id, JoinError, JoinSet};

use super::child::Stage;
use super::connection::{self, Limits, Peer};
use super::faults;
use super::listen::{Listening, accept};
use super::supervisor::{ChildScope, panic_message};

/// Pause after the system refused a connection, most likely for want of descriptors, and while there is no room.
const REFUSED: Duration = Duration::from_millis(100);

/// What is served, and to whom.
#[derive(Clone)]
pub struct Serving {
    /// Whose it is.
    pub stage: Stage,
    /// What answers.
    pub app: Router,
    /// Paths that are answered however busy everything is.
    pub probes: &'static [&'static str],
    /// Of a connection.
    pub limits: Limits,
}

impl Serving {
    /// Answers at this socket from here on, also over the connections of the services that it replaces.
    pub fn at(self, listening: &Listening) -> Self {
        let take_in = from_fn_with_state((self.limits, self.probes), connection::take_in);
        let app = self.app.layer(take_in);
        listening.answers(app.clone());
        Self { app, ..self }
    }
}

/// Serves until the child is told to drain; requests under way are finished, also those of connections that wait to
/// be accepted.
///
/// # Errors
/// None of its own: what the fault point of the stage is set to.
pub async fn serve(
    serving: Serving,
    listening: Arc<Listening>,
    scope: ChildScope,
) -> anyhow::Result<()> {
    let Serving {
        stage, app, limits, ..
    } = serving;
    let mut tasks = JoinSet::new();
    let mut peers = Peers {
        limits,
        open: HashMap::new(),
    };
    let mut doors: Vec<_> = listening.door().into_iter().collect();
    let mut draining = false;
    while !(draining && doors.is_empty() && tasks.is_empty()) {
        let room = peers.has_room();
        tokio::select! {
            biased;
            () = scope.drain.cancelled(), if !draining => {
                draining = true;
                match listening.is_replaced() {
                    // Who takes its place sees to whoever waits.
                    true => doors.clear(),
                    false => doors.iter_mut().for_each(|door| door.close(false)),
                }
                drop(listening.release());
            }
            Some(ended) = tasks.join_next_with_id() => peers.forget(&stage, ended),
            door = listening.adopted() => doors.push(door),
            accepted = accept(&mut doors), if room && !doors.is_empty() => {
                let Some(accepted) = accepted else {
                    continue;
                };
                let busy = scope.activity.busy();
                faults::point(&stage).await?;
                drop(busy);
                match accepted {
                    Ok(stream) => {
                        let (peer, listening) = (peers.admit(), listening.clone());
                        let task = tasks.spawn(connection::serve(
                            stream,
                            app.clone(),
                            peer.clone(),
                            limits,
                            scope.drain.clone(),
                            listening,
                        ));
                        peers.open.insert(task.id(), peer);
                        scope.activity.record(1);
                    }
                    Err(error) if is_of_the_connection(error.kind()) => {}
                    Err(error) => {
                        tracing::warn!(%stage, %error, "no connection could be accepted");
                        // Should it be descriptors that are wanting, here is one.
                        peers.evict(|_| true);
                        tokio::time::sleep(REFUSED).await;
                    }
                }
            }
            () = tokio::time::sleep(REFUSED), if !room => {}
        }
    }
    Ok(())
}

/// It was gone before it was accepted, which says nothing about the listener.
fn is_of_the_connection(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}

/// The connections that are open.
struct Peers {
    limits: Limits,
    open: HashMap<Id, Arc<Peer>>,
}

impl Peers {
    fn count(&self, spare: bool) -> usize {
        let staying = |p: &&Arc<Peer>| p.spare == spare && !p.is_evicted();
        self.open.values().filter(staying).count()
    }

    /// Whether one more can be let in, be it in the place of another.
    fn has_room(&self) -> bool {
        self.count(false) < self.limits.most
            || self.count(true) < self.limits.spare
            || self.open.values().any(|p| p.reluctance().is_some())
    }

    /// Makes room for one more.
    fn admit(&mut self) -> Arc<Peer> {
        let spare = self.count(false) >= self.limits.most && !self.evict(|p| !p.spare);
        if spare && self.count(true) >= self.limits.spare {
            self.evict(|p| p.spare);
        }
        Arc::new(Peer::new(spare))
    }

    /// Lets go of the one that idles longest; says whether there is one.
    fn evict(&mut self, of: impl Fn(&Peer) -> bool) -> bool {
        let idle = self.open.values().filter(|p| of(p));
        let longest = idle
            .filter_map(|p| Some((p.reluctance()?, p)))
            .min_by_key(|(reluctance, _)| *reluctance);
        if let Some((_, peer)) = longest {
            peer.evict();
        }
        longest.is_some()
    }

    fn forget(&mut self, stage: &Stage, ended: Result<(Id, ()), JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        self.open.remove(&id);
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            let panic = panic_message(panic.as_ref());
            tracing::error!(%stage, panic, "a request panicked; its connection is closed");
        }
    }
}

#[cfg(test)]
mod tests;
