//! Which release of Redpanda the brokers are, and what time it is there. Its admin API says both, where it is reached;
//! Kafka's protocol says neither, so of an Apache Kafka nothing is found.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::config::settings::Delivery;
use crate::finding::Finding;

/// Redpanda's default.
const PORT: u16 = 9644;
/// A firewall that lets nothing through is no finding, and costs this much.
const WITHIN: Duration = Duration::from_secs(2);
/// Two clocks that differ by more than this are not both right. The answer's time has whole seconds.
const SKEW: Duration = Duration::from_secs(2);
/// The release from which on no transaction stays open for ever (Redpanda's issues 30003, 30124 and 28360).
const MENDED: (u32, u32) = (26, 1);

/// A broker, as `/v1/brokers` has it.
#[derive(Debug, Deserialize)]
struct Broker {
    /// `v25.3.1 - <commit>`
    version: Option<String>,
}

/// What one of them said.
#[derive(Debug, Default)]
struct Said {
    versions: BTreeSet<String>,
    /// By how much its clock differs from this machine's, at least.
    off: Option<Duration>,
}

/// Looks at the brokers of these addresses.
pub(super) async fn look(brokers: &[String], delivery: Delivery, into: &mut Vec<Finding>) {
    let host = |broker: &String| broker.rsplit_once(':').map(|(host, _)| host.to_owned());
    let hosts: BTreeSet<String> = brokers.iter().filter_map(host).collect();
    let asked = hosts.iter().map(|host| ask(host, PORT));
    let said = futures::future::join_all(asked).await;
    let mut versions = BTreeSet::new();
    for (host, said) in hosts.iter().zip(said) {
        let Some(said) = said else { continue };
        into.extend(
            said.off
                .filter(|off| *off > SKEW)
                .map(|off| clock(host, off)),
        );
        versions.extend(said.versions);
    }
    let exact = delivery == Delivery::ExactlyOnce;
    let bad = versions.iter().filter(|version| exact && is_bad(version));
    into.extend(bad.map(|version| {
        Finding::warning(
            "release",
            format!("Redpanda {version}"),
            "a transaction may stay open there for ever, behind which readers of committed records stand still \
             (its issues 30003, 30124 and 28360)",
            "upgrade it to 26.1 or later",
        )
    }));
}

fn clock(host: &str, off: Duration) -> Finding {
    let found = format!(
        "its clock and this machine's differ by {} s at least",
        off.as_secs()
    );
    let help = "have both keep time by NTP: brokers refuse records from the future, and delete by a record's time";
    Finding::warning("clock", format!("Redpanda at {host}"), found, help)
}

/// Whether a release is one of those with that fault.
fn is_bad(version: &str) -> bool {
    let numbers = version.trim_start_matches('v').split(['.', ' ', '-']);
    let mut numbers = numbers.map(|n| n.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < MENDED,
        // What it does not say is not held against it.
        _ => false,
    }
}

/// `None`: nobody is there who speaks as Redpanda does.
async fn ask(host: &str, port: u16) -> Option<Said> {
    let http = reqwest::Client::builder().timeout(WITHIN).build().ok()?;
    let before = SystemTime::now();
    let answer = http
        .get(format!("http://{host}:{port}/v1/brokers"))
        .send()
        .await
        .ok()?;
    let after = SystemTime::now();
    let date = answer
        .headers()
        .get("date")
        .and_then(|date| date.to_str().ok());
    let off = date.and_then(|date| off(before, date, after));
    let brokers: Vec<Broker> = serde_json::from_str(&answer.text().await.ok()?).ok()?;
    let versions = brokers.into_iter().filter_map(|broker| broker.version);
    Some(Said {
        versions: versions.collect(),
        off,
    })
}

/// By how much a clock that says `date` between the two differs from the one that they are of.
fn off(before: SystemTime, date: &str, after: SystemTime) -> Option<Duration> {
    let date = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(date.as_second()).ok()?);
    let ahead = date.duration_since(after).unwrap_or_default();
    let behind = before.duration_since(date + Duration::from_secs(1));
    Some(ahead.max(behind.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn releases_before_the_mended_one_are_named() {
        for bad in ["v25.3.1 - 1a2b3c", "v24.2.18", "23.1.1"] {
            assert!(is_bad(bad), "{bad}");
        }
        for good in ["v26.1.0 - 1a2b3c", "v26.10.2", "v27.1.1-rc1", "dev", ""] {
            assert!(!is_bad(good), "{good}");
        }
    }

    #[test]
    fn a_clock_is_off_by_what_its_second_cannot_explain() {
        let at = |s: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        let date = "Thu, 01 Jan 1970 00:01:40 GMT";
        let is = |before, after| off(before, date, after).map(|off| off.as_secs());
        assert_eq!(is(at(100), at(100)), Some(0));
        assert_eq!(is(at(101), at(103)), Some(0), "100.9 was it");
        assert_eq!(is(at(90), at(95)), Some(5), "theirs is ahead");
        assert_eq!(is(at(111), at(112)), Some(10), "theirs is behind");
        assert_eq!(off(at(1), "yesterday", at(2)), None);
    }

    /// One that answers once, as Redpanda does.
    async fn answers(date: &str, body: &str) -> Option<Said> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.ok()?;
        let port = listener.local_addr().ok()?.port();
        let head = format!(
            "HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let answer = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.expect("a request");
            assert!(request[..read].starts_with(b"GET /v1/brokers "));
            stream
                .write_all((head + body).as_bytes())
                .await
                .expect("answered");
        };
        tokio::join!(ask("127.0.0.1", port), answer).0
    }

    #[tokio::test]
    async fn what_the_admin_api_says_is_read_and_anybody_elses_answer_is_nobodys() {
        let date = "Thu, 01 Jan 1970 00:01:40 GMT";
        let body = r#"[{"node_id":0,"num_cores":1,"membership_status":"active","version":"v25.3.1 - ab"}]"#;
        let said = answers(date, body).await.expect("it speaks");
        assert_eq!(said.versions, BTreeSet::from(["v25.3.1 - ab".to_owned()]));
        assert!(said.off.is_some_and(|off| off > SKEW));
        assert!(answers(date, "<html>").await.is_none());
        assert!(ask("127.0.0.1", 1).await.is_none(), "nobody listens");
    }
}
