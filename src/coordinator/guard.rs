//! Keeps web pages of strangers from an interface that only this machine is to reach, and that asks for no token.
//!
//! A page in a browser on this machine can send requests to loopback in two ways. It makes a name of its own resolve
//! to 127.0.0.1 (DNS rebinding): the request then names that name as its `Host`. Or it asks `localhost` outright
//! (cross-site): the browser then says so in `Origin` or `Sec-Fetch-Site`. A program that is no browser names the
//! host that it was told, and no origin.

use std::net::IpAddr;
use std::sync::LazyLock;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Uri, header};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// 421: it is meant for somebody else.
    #[error(
        "the request names the host {0:?}, which is not this machine's: use localhost or 127.0.0.1"
    )]
    Host(String),
    /// 403: a page of somebody else sends it.
    #[error("a page of another site ({0}) may not ask this")]
    Origin(String),
}

/// Whether a request comes from a page of a stranger.
///
/// # Errors
/// Why it is refused.
pub fn check(request: &Request) -> Result<(), Foreign> {
    examine(request.method(), request.uri(), request.headers())
}

fn examine(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Foreign> {
    let text = |name| {
        headers
            .get(name)
            .map(|v: &header::HeaderValue| v.as_bytes())
    };
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // A request line with an authority outweighs the header (RFC 9112, 3.2.2), so both have to be ours.
    let mut named = None;
    for host in uri
        .authority()
        .map(|a| a.as_str().as_bytes())
        .into_iter()
        .chain(text(header::HOST))
    {
        let authority = Authority::try_from(host).ok();
        match authority.filter(|a| is_ours(a.host())) {
            Some(authority) => named = named.or(Some(authority)),
            None => return Err(Foreign::Host(lossy(host))),
        }
    }
    if let Some(origin) = text(header::ORIGIN) {
        let origin = lossy(origin);
        let own = named.is_some_and(|host| {
            let after_scheme = origin.split_once("://").map_or("", |(_, rest)| rest);
            host.as_str().eq_ignore_ascii_case(after_scheme)
        });
        if !own {
            return Err(Foreign::Origin(origin));
        }
    }
    let reads = method == Method::GET || method == Method::HEAD;
    match headers.get("sec-fetch-site").map(|v| v.as_bytes()) {
        Some(b"cross-site" | b"same-site") if !reads => {
            Err(Foreign::Origin("by Sec-Fetch-Site".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Whether a name stands for this machine whatever a name server says: a loopback address, `localhost` and what is
/// below it (RFC 6761, 6.3), or the machine's own name.
fn is_ours(host: &str) -> bool {
    static OWN_NAME: LazyLock<Option<String>> = LazyLock::new(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
        let name = name.trim().to_ascii_lowercase();
        (!name.is_empty()).then_some(name)
    });
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(host).parse::<IpAddr>() {
        return ip.to_canonical().is_loopback();
    }
    let name = host.to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    name == "localhost" || name.ends_with(".localhost") || OWN_NAME.as_deref() == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: Method, headers: &[(&str, &str)]) -> Result<(), Foreign> {
        let mut request = Request::builder().method(method).uri("/-/reload");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(axum::body::Body::empty()).unwrap())
    }

    #[test]
    fn only_names_of_this_machine_are_answered() {
        for host in [
            "localhost",
            "localhost:9180",
            "LocalHost.:9180",
            "penstock.localhost:9180",
            "127.0.0.1:9180",
            "127.8.9.1",
            "[::1]:9180",
            "[::ffff:127.0.0.1]:9180",
        ] {
            assert_eq!(asked(Method::POST, &[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9180",
            "localhost.evil.example",
            "notlocalhost",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]:9180",
            "a b",
            "",
        ] {
            let refused = asked(Method::GET, &[("host", host)]);
            assert_eq!(refused, Err(Foreign::Host(host.to_owned())), "{host}");
        }
        // A client that names no host is no browser.
        assert_eq!(asked(Method::POST, &[]), Ok(()));
    }

    #[test]
    fn only_pages_of_its_own_may_ask() {
        let host = ("host", "localhost:9180");
        for (origin, ours) in [
            ("http://localhost:9180", true),
            ("HTTP://LOCALHOST:9180", true),
            ("http://localhost:3000", false),
            ("http://localhost", false),
            ("http://127.0.0.1:9180", false),
            ("https://evil.example", false),
            ("null", false),
            ("", false),
        ] {
            for method in [Method::GET, Method::POST, Method::DELETE] {
                let answer = asked(method, &[host, ("origin", origin)]);
                assert_eq!(answer.is_ok(), ours, "{origin}");
            }
        }
        assert!(asked(Method::POST, &[("origin", "http://localhost:9180")]).is_err());
        for (site, ours) in [
            ("same-origin", true),
            ("none", true),
            ("cross-site", false),
            ("same-site", false),
        ] {
            let answer = asked(Method::POST, &[host, ("sec-fetch-site", site)]);
            assert_eq!(answer.is_ok(), ours, "{site}");
        }
        // A link on a page may lead here: whoever follows it reads the answer themselves.
        assert_eq!(
            asked(Method::GET, &[host, ("sec-fetch-site", "cross-site")]),
            Ok(())
        );
    }
}
