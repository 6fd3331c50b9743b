//! Whether anybody listens at an address, told at once and in plain words, where a driver would only wait or log.

use std::time::Duration;

use tokio::net::TcpStream;

/// Connecting to one address takes no longer.
const CONNECT: Duration = Duration::from_secs(3);

/// Connects once to each `host:port`, all at a time.
///
/// # Errors
/// What each one met, in one line, when none of them took the connection.
pub(crate) async fn any(addresses: &[String]) -> Result<(), String> {
    let attempts = addresses.iter().map(|address| async move {
        connect(address)
            .await
            .map_err(|reason| format!("{address}: {reason}"))
    });
    let met = futures::future::join_all(attempts).await;
    if met.iter().any(Result::is_ok) {
        return Ok(());
    }
    let reasons: Vec<String> = met.into_iter().filter_map(Result::err).collect();
    Err(reasons.join("; "))
}

async fn connect(address: &str) -> Result<(), String> {
    let attempt = async {
        let found = tokio::net::lookup_host(address).await;
        let found: Vec<_> = found
            .map_err(|e| format!("cannot be resolved: {e}"))?
            .collect();
        TcpStream::connect(&*found).await.map_err(|e| e.to_string())
    };
    match tokio::time::timeout(CONNECT, attempt).await {
        Ok(connected) => connected.map(drop),
        Err(_) => Err(format!(
            "no connection within {}",
            humantime::format_duration(CONNECT)
        )),
    }
}
