//! A browser that gave the token: a cookie that proves it, and no more than that.
//!
//! The cookie is a digest over the token and a secret of this process. So nothing is kept, it opens nothing once the
//! token is another one or the process has been restarted, and the token cannot be read out of it.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, Method, header};
use sha2::{Digest, Sha256};

use crate::config::settings::Secret;

/// The cookie's name.
const COOKIE: &str = "penstock-session";

/// What a request that changes something says beside its cookie. A page of another site cannot set a header without
/// this one's leave, which nobody gets.
const OWN: &str = "x-penstock-page";

/// What cookies are made with.
#[derive(Clone)]
pub struct Sessions(Arc<[u8; 32]>);

impl Sessions {
    /// Makes a secret.
    pub fn new() -> Self {
        Self(Arc::new(rand::random()))
    }

    fn proof(&self, token: &Secret) -> String {
        let digest = Sha256::new()
            .chain_update(*self.0)
            .chain_update(token.expose());
        hex::encode(digest.finalize())
    }

    /// Whether a request comes from a browser that gave this token, and from the page if it changes anything.
    pub fn opens(&self, method: &Method, headers: &HeaderMap, token: &Secret) -> bool {
        let reads = method == Method::GET || method == Method::HEAD;
        if !reads && !headers.contains_key(OWN) {
            return false;
        }
        // Digests are compared, so that the time it takes says nothing about them.
        let wanted = Sha256::digest(self.proof(token));
        cookies(headers).any(|given| Sha256::digest(given) == wanted)
    }

    /// The cookie for who gave the token.
    pub fn cookie(&self, token: &Secret) -> HeaderValue {
        let text = format!(
            "{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict",
            self.proof(token)
        );
        HeaderValue::try_from(text).unwrap_or_else(|_| forgotten())
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new()
    }
}

/// The cookie that takes it back.
pub fn forgotten() -> HeaderValue {
    HeaderValue::from_static("penstock-session=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict")
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let all = headers.get_all(header::COOKIE).into_iter();
    let pairs = all.filter_map(|v| v.to_str().ok());
    pairs
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter_map(|(name, value)| (name == COOKIE).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(cookie: &HeaderValue, own: bool) -> HeaderMap {
        let text = cookie.to_str().expect("text");
        let pair = text.split(';').next().expect("a pair");
        let mut headers = HeaderMap::new();
        let sent = format!("other=1; {pair}");
        headers.insert(header::COOKIE, sent.try_into().expect("a value"));
        if own {
            headers.insert(OWN, HeaderValue::from_static("1"));
        }
        headers
    }

    #[test]
    fn a_cookie_opens_for_its_token_in_its_process_only() {
        let (token, other) = (Secret::new("one".to_owned()), Secret::new("two".to_owned()));
        let sessions = Sessions::new();
        let cookie = sessions.cookie(&token);
        let headers = given(&cookie, false);
        assert!(sessions.opens(&Method::GET, &headers, &token));
        assert!(!sessions.opens(&Method::GET, &headers, &other));
        assert!(!Sessions::new().opens(&Method::GET, &headers, &token));
        assert!(!sessions.opens(&Method::GET, &HeaderMap::new(), &token));
        let text = cookie.to_str().expect("text");
        assert!(text.contains("HttpOnly; SameSite=Strict"), "{text}");
        assert!(!text.contains("one"));
    }

    #[test]
    fn a_change_has_to_come_from_the_page() {
        let (token, sessions) = (Secret::new("one".to_owned()), Sessions::new());
        let cookie = sessions.cookie(&token);
        for method in [Method::POST, Method::DELETE] {
            assert!(!sessions.opens(&method, &given(&cookie, false), &token));
            assert!(sessions.opens(&method, &given(&cookie, true), &token));
        }
    }
}
