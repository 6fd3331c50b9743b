//! Serves HTTP as a child: every connection is a task of the child's own, so that none outlives it. One that is
//! stopped, given up on or crashed takes its connections with it; one that drains lets them finish their request.

use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::child::Stage;
use super::faults;
use super::supervisor::{ChildScope, panic_message};

/// Connections at a time; more wait in the socket's backlog. Far above what a client's pool opens, far below what
/// a process has descriptors for.
const MOST_CONNECTIONS: usize = 512;
/// Pause after the system refused a connection, most likely for want of descriptors.
const REFUSED: Duration = Duration::from_millis(100);

/// Serves until the child is told to drain; requests under way are finished.
///
/// # Errors
/// None of its own: what the fault point of the stage is set to.
pub async fn serve(
    stage: Stage,
    listener: Arc<TcpListener>,
    app: Router,
    scope: ChildScope,
) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < MOST_CONNECTIONS;
        tokio::select! {
            biased;
            () = scope.drain.cancelled() => break,
            Some(ended) = connections.join_next() => note(&stage, ended),
            accepted = listener.accept(), if room => {
                let busy = scope.activity.busy();
                faults::point(&stage).await?;
                drop(busy);
                match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(connection(stream, app.clone(), scope.drain.clone()));
                        scope.activity.record(1);
                    }
                    Err(error) if is_of_the_connection(error.kind()) => {}
                    Err(error) => {
                        tracing::warn!(%stage, %error, "no connection could be accepted");
                        tokio::time::sleep(REFUSED).await;
                    }
                }
            }
        }
    }
    // The address is free from here on; only who is connected is served to the end.
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        note(&stage, ended);
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

async fn connection(stream: TcpStream, app: Router, drain: CancellationToken) {
    // Answers are small and somebody waits for each.
    stream.set_nodelay(true).ok();
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
    );
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

fn note(stage: &Stage, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        let panic = panic_message(panic.as_ref());
        tracing::error!(%stage, panic, "a request panicked; its connection is closed");
    }
}
