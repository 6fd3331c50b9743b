//! Whether anybody listens at an address, told at once and in plain words, where a driver would only wait or log.

use std::time::Duration;

use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::tls::{self, Trust};

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

/// Asks each `host:port`, all at a time, whether it speaks CQL, by TLS where there is something to trust; gives those
/// that do.
///
/// # Errors
/// What each one met, in one line, when none of them answered.
pub(crate) async fn cql(
    addresses: &[String],
    trust: Option<&Trust>,
) -> Result<Vec<String>, String> {
    let met = addresses.iter().map(|address| async move {
        let mut stream = speak(address, trust).await?;
        let mut answer = [0];
        let asked = async {
            stream.write_all(&OPTIONS).await?;
            stream.read_exact(&mut answer).await
        };
        let met = answered(asked, trust).await;
        // A response's version has the highest bit.
        match met {
            Ok(_) if answer[0] & 0x80 != 0 => Ok(()),
            met => Err(silent(address, trust, met.err(), "source").await),
        }
    });
    first_of(addresses, met).await
}

/// Asks a `host:port` whether it speaks Kafka's protocol, and whether clients log in there as this one is to.
///
/// # Errors
/// What it met, in one line, and what would help.
pub(crate) async fn kafka(
    address: &str,
    trust: Option<&Trust>,
    mechanism: Option<&str>,
) -> Result<(), String> {
    let mut stream = speak(address, trust).await?;
    let versions = answered(exchange(&mut stream, API_VERSIONS, 0, &[]), trust).await;
    if let Err(reason) = versions {
        return Err(silent(address, trust, Some(reason), "sink").await);
    }
    if mechanism.is_none() {
        // Of brokers alone, of no topic.
        let asked = exchange(&mut stream, METADATA, 1, &[0; 4]);
        if answered(asked, trust).await.is_ok() {
            return Ok(());
        }
        // Who has to log in first is cut off; then it says what it takes.
        stream = speak(address, trust).await?;
    }
    let wanted = mechanism.unwrap_or("PLAIN");
    let mut body = (wanted.len() as u16).to_be_bytes().to_vec();
    body.extend(wanted.as_bytes());
    let answer = answered(exchange(&mut stream, SASL_HANDSHAKE, 1, &body), trust).await;
    let (code, offered) = match (answer.map(|a| handshake_answer(&a)), mechanism) {
        (Ok(Some(answer)), _) => answer,
        // Without a word of it, it may be a broker that has no SASL.
        (_, None) => return Ok(()),
        (Ok(None), Some(_)) => return Err("answers SASL with what is no answer".to_owned()),
        (Err(reason), Some(_)) => return Err(format!("at SASL: {reason}")),
    };
    match (code, mechanism) {
        (0, Some(_)) => Ok(()),
        (0 | UNSUPPORTED_MECHANISM, None) => Err(format!(
            "wants a login (SASL; it offers {offered}): set sink.sasl and sink.username"
        )),
        (_, None) => Ok(()),
        (UNSUPPORTED_MECHANISM, Some(mechanism)) => Err(format!(
            "does not offer {mechanism}, but {offered}: set sink.sasl to one of these"
        )),
        (ILLEGAL_STATE, Some(_)) => {
            Err("asks nobody to log in there: leave sink.sasl out, or use another port".to_owned())
        }
        (code, Some(mechanism)) => Err(format!(
            "refuses {mechanism} with Kafka's error code {code}"
        )),
    }
}

/// How far somebody got on the way to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Its name has no address.
    Dns,
    /// It takes no connection.
    Tcp,
    /// It and this side do not agree on TLS.
    Tls,
    /// It does not speak what is wanted, or not to this client.
    Protocol,
}

/// What a server is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask<'a> {
    /// As [`cql`].
    Cql,
    /// As [`kafka`], with this mechanism.
    Kafka(Option<&'a str>),
}

/// Goes the whole way to one `host:port`, step by step.
///
/// # Errors
/// Where it ended, and why.
pub(crate) async fn walk(
    address: &str,
    trust: Option<&Trust>,
    ask: Ask<'_>,
) -> Result<(), (Step, String)> {
    if let Err(error) = tokio::net::lookup_host(address).await {
        return Err((Step::Dns, format!("cannot be resolved: {error}")));
    }
    let stream = connect(address).await.map_err(|e| (Step::Tcp, e))?;
    if let Some(trust) = trust {
        let shaken = tls::handshake(stream, trust, host(address)).await;
        shaken.map_err(|e| (Step::Tls, e))?;
    }
    match ask {
        Ask::Cql => cql(&[address.to_owned()], trust).await.map(drop),
        Ask::Kafka(mechanism) => kafka(address, trust, mechanism).await,
    }
    // A server says at its first answer only what it thinks of a client's certificate.
    .map_err(
        |e| match e.contains("certificate") || e.contains("speaks TLS") {
            true => (Step::Tls, e),
            false => (Step::Protocol, e),
        },
    )
}

/// The keys of three requests of Kafka's protocol.
const METADATA: u16 = 3;
const API_VERSIONS: u16 = 18;
const SASL_HANDSHAKE: u16 = 17;
/// Kafka's error codes for a mechanism that is not offered, and for a login where there is none.
const UNSUPPORTED_MECHANISM: i16 = 33;
const ILLEGAL_STATE: i16 = 34;
/// No answer to these requests is as large.
const LARGEST_ANSWER: usize = 64 * 1024;

async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    key: u16,
    version: u16,
    body: &[u8],
) -> std::io::Result<Vec<u8>> {
    let mut request = Vec::new();
    for part in [key, version, 0, 0] {
        request.extend(part.to_be_bytes());
    }
    request.extend(8_u16.to_be_bytes());
    request.extend(b"penstock");
    request.extend(body);
    stream
        .write_all(&(request.len() as u32).to_be_bytes())
        .await?;
    stream.write_all(&request).await?;
    stream.flush().await?;
    let size = stream.read_u32().await? as usize;
    if !(4..=LARGEST_ANSWER).contains(&size) {
        return Err(std::io::Error::other(
            "answers with what is not Kafka's protocol",
        ));
    }
    let mut answer = vec![0; size];
    stream.read_exact(&mut answer).await?;
    // Without the correlation id.
    Ok(answer.split_off(4))
}

/// The error code of an answer to SaslHandshake, and the mechanisms that are offered.
fn handshake_answer(answer: &[u8]) -> Option<(i16, String)> {
    let (code, rest) = answer.split_first_chunk::<2>()?;
    let (_, mut rest) = rest.split_first_chunk::<4>()?;
    let mut offered = Vec::new();
    while let Some((size, after)) = rest.split_first_chunk::<2>() {
        let (name, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*size)))?;
        offered.push(String::from_utf8_lossy(name).into_owned());
        rest = after;
    }
    let offered = match offered.is_empty() {
        true => "nothing".to_owned(),
        false => offered.join(", "),
    };
    Some((i16::from_be_bytes(*code), offered))
}

/// A connection, with TLS or without.
trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// With TLS 1.3 a server says after the handshake only what it thinks of the client's certificate: at once, if it does.
/// What is sent before that is heard may cost its words.
const OBJECTS: Duration = Duration::from_millis(100);

async fn speak(address: &str, trust: Option<&Trust>) -> Result<Box<dyn Duplex>, String> {
    let stream = connect(address).await?;
    let Some(trust) = trust else {
        return Ok(Box::new(stream));
    };
    let mut stream = tls::handshake(stream, trust, host(address)).await?;
    match tokio::time::timeout(OBJECTS, stream.read_u8()).await {
        Ok(Err(error)) => Err(tls::objection(&error.to_string(), trust)),
        // Neither protocol has the server speak first.
        Ok(Ok(_)) => Err("speaks first, and is not what was looked for".to_owned()),
        Err(_) => Ok(Box::new(stream)),
    }
}

/// The host of a `host:port`.
pub(crate) fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    bracketed.unwrap_or(host)
}

/// The first answer, in time.
async fn answered<T>(
    asked: impl Future<Output = std::io::Result<T>>,
    trust: Option<&Trust>,
) -> Result<T, String> {
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(match trust {
            Some(trust) => tls::objection(&error.to_string(), trust),
            _ if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                "closes the connection without an answer".to_owned()
            }
            _ => error.to_string(),
        }),
        Err(_) => Err(format!(
            "{SILENT} within {}",
            humantime::format_duration(ANSWER)
        )),
    }
}

const SILENT: &str = "takes connections and does not answer";

/// Why nobody answered as wanted: where this side speaks no TLS, the other may want it.
async fn silent(
    address: &str,
    trust: Option<&Trust>,
    reason: Option<String>,
    stage: &str,
) -> String {
    // TLS is not waited for: it takes what is none for an error at once.
    let silent = reason.as_deref().is_some_and(|r| r.starts_with(SILENT));
    if trust.is_none()
        && !silent
        && let Ok(stream) = connect(address).await
        && tls::is_spoken(stream).await
    {
        return format!("speaks TLS there: set {stage}.tls.enabled = true");
    }
    reason.unwrap_or_else(|| "answers with what is not its protocol".to_owned())
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
