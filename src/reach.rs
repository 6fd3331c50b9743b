//! Whether anybody listens at an address, told at once and in plain words, where a driver would only wait or log.

use std::time::Duration;

use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connecting to one address takes no longer.
const CONNECT: Duration = Duration::from_secs(3);
/// The first answer takes no longer.
const ANSWER: Duration = Duration::from_secs(5);
/// OPTIONS in version 4 of the native protocol, which every node answers to whoever asks.
const OPTIONS: [u8; 9] = [4, 0, 0, 0, 5, 0, 0, 0, 0];

/// Connects once to each `host:port`, all at a time.
///
/// # Errors
/// What each one met, in one line, when none of them took the connection.
pub(crate) async fn any(addresses: &[String]) -> Result<(), String> {
    let met = addresses
        .iter()
        .map(|a| async { connect(a).await.map(drop) });
    first_of(addresses, met).await.map(drop)
}

/// Asks each `host:port`, all at a time, whether it speaks CQL; gives those that do.
///
/// # Errors
/// What each one met, in one line, when none of them answered.
pub(crate) async fn cql(addresses: &[String]) -> Result<Vec<String>, String> {
    let met = addresses.iter().map(|a| async {
        let mut stream = connect(a).await?;
        let mut answer = [0];
        let asked = async {
            stream.write_all(&OPTIONS).await?;
            stream.read(&mut answer).await
        };
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(Ok(0)) => Err("closes the connection without an answer".to_owned()),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!(
                "takes connections and does not answer within {}",
                humantime::format_duration(ANSWER)
            )),
        }
    });
    first_of(addresses, met).await
}

/// Those that did well, or why none did. One that hangs is not waited for where others have done well.
async fn first_of(
    addresses: &[String],
    met: impl Iterator<Item = impl Future<Output = Result<(), String>>>,
) -> Result<Vec<String>, String> {
    let mut met: FuturesUnordered<_> = addresses
        .iter()
        .zip(met)
        .map(|(address, met)| async move { (address, met.await) })
        .collect();
    let (mut good, mut reasons) = (Vec::new(), Vec::new());
    while let Some((address, met)) = match good.is_empty() {
        true => met.next().await,
        // Whoever else has answered by now.
        false => met.next().now_or_never().flatten(),
    } {
        match met {
            Ok(()) => good.push(address.clone()),
            Err(reason) => reasons.push((address, format!("{address}: {reason}"))),
        }
    }
    if !good.is_empty() {
        return Ok(good);
    }
    reasons.sort_by_key(|(address, _)| addresses.iter().position(|a| a == *address));
    let reasons: Vec<String> = reasons.into_iter().map(|(_, reason)| reason).collect();
    Err(reasons.join("; "))
}

/// A look at an address that is known to have answered takes no longer: whoever listens takes a connection at once.
const LOOK: Duration = Duration::from_secs(1);
/// A connection that is still open after this long was not cut at once.
const HOLDS: Duration = Duration::from_millis(250);

/// What a look at several addresses found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Somebody takes connections.
    Open,
    /// Everyone refuses or cuts them at once: what each one met, in one line.
    Refused(String),
    /// Nobody takes one in time, and not everyone refuses it.
    Silent(String),
}

/// Connects once to each `host:port`, all at a time. For servers that wait for the client to speak first, as those of
/// Kafka's protocol do, with TLS or without.
pub(crate) async fn look(addresses: &[String]) -> Found {
    let looks = addresses.iter().map(|address| async move {
        let Ok(connected) = tokio::time::timeout(LOOK, open(address)).await else {
            return Found::Silent(format!("{address}: no connection in time"));
        };
        match connected {
            Err(reason) => Found::Refused(format!("{address}: {reason}")),
            Ok(mut stream) => match tokio::time::timeout(HOLDS, stream.read(&mut [0])).await {
                Ok(Ok(0) | Err(_)) => {
                    Found::Refused(format!("{address}: the connection is closed at once"))
                }
                Ok(Ok(_)) | Err(_) => Found::Open,
            },
        }
    });
    let found = futures::future::join_all(looks).await;
    if found.contains(&Found::Open) {
        return Found::Open;
    }
    let reasons = |wanted: fn(&Found) -> Option<&String>| {
        let reasons: Vec<&str> = found
            .iter()
            .filter_map(wanted)
            .map(String::as_str)
            .collect();
        reasons.join("; ")
    };
    let silent = reasons(|f| match f {
        Found::Silent(reason) => Some(reason),
        _ => None,
    });
    let refused = reasons(|f| match f {
        Found::Refused(reason) => Some(reason),
        _ => None,
    });
    match silent.is_empty() {
        true => Found::Refused(refused),
        false => Found::Silent(silent),
    }
}

async fn open(address: &str) -> Result<TcpStream, String> {
    let found = tokio::net::lookup_host(address).await;
    let found: Vec<_> = found
        .map_err(|e| format!("cannot be resolved: {e}"))?
        .collect();
    TcpStream::connect(&*found).await.map_err(|e| e.to_string())
}

async fn connect(address: &str) -> Result<TcpStream, String> {
    let attempt = open(address);
    match tokio::time::timeout(CONNECT, attempt).await {
        Ok(connected) => connected,
        Err(_) => Err(format!(
            "no connection within {}",
            humantime::format_duration(CONNECT)
        )),
    }
}
