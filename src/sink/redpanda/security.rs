//! How clients of the brokers connect: with TLS, and as whom. The one place where that becomes librdkafka's properties.
//!
//! librdkafka reads certificates and keys when a client is made, and never again. So what was rotated is tried with a
//! client of its own first; once it is taken, whoever has a client makes another at the next boundary: a shard's
//! producer between two transactions, who follows the checkpoints at the next look. The consumer group's member alone
//! keeps its client, since another would be another member: it is told a new password, and has another client only when
//! its connection broke and cannot be made again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::client::{self, Quiet};
use super::{RedpandaSink, native};
use crate::config::settings::{self, SaslMechanism};
use crate::reach;
use crate::sink::SinkError;
use crate::sink::trouble::{Cause, Help};
use crate::tls::Trust;
use crate::words::Word;

/// What is refused is tried again after this long: the other side may be rotated a moment later.
const AGAIN: Duration = Duration::from_secs(2);
/// A login takes no longer.
const LOGIN: Duration = Duration::from_secs(10);
/// A token whose end cannot be read from it is asked for again after this long.
const TOKEN_LASTS: Duration = Duration::from_secs(300);

/// With what a client connects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Security {
    trust: Option<Trust>,
    mechanism: Option<SaslMechanism>,
    username: Option<String>,
    password: Option<settings::Secret>,
    token: Option<settings::Secret>,
}

impl Security {
    pub(super) fn of(sink: &settings::Sink) -> Self {
        Self {
            trust: sink.tls.trust(),
            mechanism: sink.sasl,
            username: sink.username.clone(),
            password: sink.password.clone(),
            token: sink.token.clone(),
        }
    }

    pub(super) fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }

    pub(super) fn mechanism(&self) -> Option<SaslMechanism> {
        self.mechanism
    }

    pub(super) fn is_plain(&self) -> bool {
        self.trust.is_none() && self.mechanism.is_none()
    }

    /// Sets it.
    pub(super) fn apply(&self, config: &mut ClientConfig) {
        config.set(
            "security.protocol",
            match (&self.trust, self.mechanism) {
                (None, None) => "plaintext",
                (Some(_), None) => "ssl",
                (None, Some(_)) => "sasl_plaintext",
                (Some(_), Some(_)) => "sasl_ssl",
            },
        );
        if let Some(trust) = &self.trust {
            match &trust.authorities {
                Some(pem) => config.set("ssl.ca.pem", pem),
                None => config.set("ssl.ca.location", "probe"),
            };
            let identity = [
                ("ssl.certificate.pem", &trust.certificate),
                ("ssl.key.pem", &trust.key),
                ("ssl.key.password", &trust.key_password),
            ];
            for (name, value) in identity {
                if let Some(value) = value {
                    config.set(name, value);
                }
            }
            let names = if trust.verify_hostname {
                "https"
            } else {
                "none"
            };
            config.set("ssl.endpoint.identification.algorithm", names);
        }
        let Some(mechanism) = self.mechanism else {
            return;
        };
        config.set("sasl.mechanism", mechanism.word());
        if mechanism != SaslMechanism::OauthBearer {
            config.set(
                "sasl.username",
                self.username.as_deref().unwrap_or_default(),
            );
            let password = self.password.as_ref().map_or("", |p| p.expose());
            config.set("sasl.password", password);
        }
    }

    /// Looks who is at a broker's address, and whether they take this, before librdkafka does: it would only say that
    /// nobody answered in time.
    pub(super) async fn explain(&self, address: &str) -> Result<(), String> {
        reach::kafka(address, self.trust.as_ref(), self.mechanism.map(Word::word)).await
    }

    /// … the first of several that says why, where anything but plain connections is wanted.
    pub(super) async fn explain_all(&self, addresses: &[String]) -> Option<String> {
        if self.is_plain() {
            return None;
        }
        for address in addresses {
            if let Err(reason) = self.explain(address).await {
                return Some(reason);
            }
        }
        None
    }

    /// What a client says when librdkafka asks it for a token.
    pub(super) fn token(&self) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        let token = self.token.as_ref().ok_or("there is no sink.token_file")?;
        let (principal, expires) = claims(token.expose());
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let expires = expires.unwrap_or_else(|| now + TOKEN_LASTS);
        if expires <= now {
            return Err(
                "the token of sink.token_file is over: whoever issues it has to write another"
                    .into(),
            );
        }
        Ok(OAuthToken {
            token: token.expose().to_owned(),
            principal_name: principal.unwrap_or_else(|| "penstock".to_owned()),
            lifetime_ms: i64::try_from(expires.as_millis()).unwrap_or(i64::MAX),
        })
    }
}

/// Whom a JWT is about, and until when it holds; of what is none, nothing.
fn claims(token: &str) -> (Option<String>, Option<Duration>) {
    use base64::Engine as _;
    let read = || -> Option<serde_json::Value> {
        let claims = token.split('.').nth(1)?;
        let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims);
        serde_json::from_slice(&json.ok()?).ok()
    };
    let claims = read().unwrap_or_default();
    let subject = claims["sub"].as_str().map(str::to_owned);
    let expires = claims["exp"]
        .as_f64()
        .filter(|at| at.is_finite() && *at >= 0.0);
    (
        subject,
        expires.and_then(|at| Duration::try_from_secs_f64(at).ok()),
    )
}

/// What is in force, and how often that changed. A cheap handle.
#[derive(Clone, Debug, Default)]
pub(super) struct InForce(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    security: RwLock<Arc<Security>>,
    version: AtomicU64,
}

impl InForce {
    pub(super) fn new(security: Security) -> Self {
        let shared = Shared::default();
        *shared.security.write() = Arc::new(security);
        Self(Arc::new(shared))
    }

    pub(super) fn get(&self) -> Arc<Security> {
        self.0.security.read().clone()
    }

    /// Counts what was in force.
    pub(super) fn version(&self) -> u64 {
        self.0.version.load(Relaxed)
    }

    fn replace(&self, security: Security) {
        *self.0.security.write() = Arc::new(security);
        self.0.version.fetch_add(1, Relaxed);
    }

    /// Gives a client whose queue nobody polls its token, where it needs one.
    pub(super) fn hand_token<C: ClientContext>(
        &self,
        client: &rdkafka::client::Client<C>,
    ) -> Result<(), SinkError> {
        let security = self.get();
        if security.mechanism != Some(SaslMechanism::OauthBearer) {
            return Ok(());
        }
        let token = security
            .token()
            .map_err(|e| SinkError::Client(e.to_string()))?;
        native::set_token(client, &token)
    }

    /// Gives a client that stays the password that is in force.
    pub(super) fn hand_password<C: ClientContext>(
        &self,
        client: &rdkafka::client::Client<C>,
    ) -> Result<(), SinkError> {
        let security = self.get();
        match (security.mechanism, &security.username, &security.password) {
            (Some(SaslMechanism::OauthBearer) | None, ..) => Ok(()),
            (Some(_), Some(username), Some(password)) => {
                native::set_credentials(client, username, password.expose())
            }
            (Some(_), ..) => Ok(()),
        }
    }
}

impl RedpandaSink {
    /// What every client starts from, as it is to connect now.
    pub(super) fn base(&self) -> ClientConfig {
        let mut config = self.base.clone();
        self.security.get().apply(&mut config);
        config
    }

    /// Why none of the brokers at these addresses can be used with this, if that can be found out.
    pub(super) async fn why_not(
        &self,
        addresses: &[String],
        security: &Security,
    ) -> Option<String> {
        // One that is down is none of the credentials' business, as long as another takes them.
        let met = addresses.iter().map(|address| async move {
            let met = security.explain(address).await;
            met.map_err(|reason| format!("{address}: {reason}"))
        });
        let met = futures::future::join_all(met).await;
        if met.iter().all(Result::is_err) {
            let reasons: Vec<String> = met.into_iter().filter_map(Result::err).collect();
            return (!reasons.is_empty()).then(|| reasons.join("; "));
        }
        let mut config = self.base.clone();
        let quiet = Quiet::of(&InForce::new(security.clone()));
        security.apply(&mut config);
        let login = super::blocking(move || login(&config, quiet)).await;
        login
            .unwrap_or(Err("the login was not finished".to_owned()))
            .err()
    }

    /// Tries what was rotated, and puts it in force once the brokers take it. Never returns: the sink's guard drives it.
    pub(super) async fn follow_security(&self) {
        let mut live = self.live.clone();
        loop {
            let wanted = Security::of(&live.borrow_and_update().sink);
            let mut again = None;
            if wanted == *self.security.get() {
                self.troubles.clear(&Cause::Login);
            } else {
                let addresses = self.addresses.lock().clone();
                match self.why_not(&addresses, &wanted).await {
                    None => {
                        self.security.replace(wanted);
                        if let Err(error) = self.renew_admin() {
                            tracing::warn!(%error, "no client for questions by the new credentials");
                        }
                        tracing::info!("the new credentials are in force, with no connection cut");
                        self.troubles.clear(&Cause::Login);
                    }
                    Some(reason) => {
                        let reason = format!(
                            "the new credentials are not in force, the old ones go on: {reason}"
                        );
                        self.troubles.raise(Cause::Login, Help::None, reason);
                        again = Some(AGAIN);
                    }
                }
            }
            tokio::select! {
                changed = live.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                () = tokio::time::sleep(again.unwrap_or(Duration::MAX)), if again.is_some() => {}
            }
        }
    }

    pub(super) fn renew_admin(&self) -> Result<(), SinkError> {
        let mut asking = self.base();
        if !self.topics.makes_by_asking() {
            asking.set("allow.auto.create.topics", "false");
        }
        let quiet = Quiet::hinting(&self.security, self.hint.clone());
        let admin: rdkafka::admin::AdminClient<Quiet> = asking
            .create_with_context(quiet)
            .map_err(client::creation)?;
        self.security.hand_token(admin.inner())?;
        self.topics.ask_with(admin);
        Ok(())
    }
}

/// Logs in once. Blocks.
fn login(config: &ClientConfig, quiet: Quiet) -> Result<(), String> {
    let reader = client::reader(config, "penstock.login");
    let consumer: BaseConsumer<Quiet> = reader
        .create_with_context(quiet.clone())
        .map_err(|e| client::creation(e).to_string())?;
    let begun = Instant::now();
    let mut last = "no answer in time".to_owned();
    while begun.elapsed() < LOGIN {
        // What asks for a token, and what tells of a refusal.
        while let Some(told) = consumer.poll(Duration::ZERO) {
            if let Err(error) = told {
                let said = quiet.last_error().unwrap_or_else(|| error.to_string());
                if let KafkaError::MessageConsumption(Code::Authentication | Code::SSL) = error {
                    return Err(plainly(&said));
                }
                last = said;
            }
        }
        if consumer
            .fetch_metadata(None, Duration::from_millis(500))
            .is_ok()
        {
            return Ok(());
        }
    }
    Err(plainly(&last))
}

/// librdkafka's words for a refused login, without where and how it came to them.
pub(super) fn plainly(said: &str) -> String {
    let text = said.split(" (after ").next().unwrap_or(said).trim();
    let text = text
        .rsplit_once("SASL authentication error: ")
        .map_or(text, |(_, why)| why);
    if text.to_lowercase().contains("authentication failed")
        || text.to_lowercase().contains("invalid credentials")
        || text.contains("SASL SCRAM")
    {
        return format!(
            "the login is refused ({text}): check sink.username and the password or token"
        );
    }
    text.to_owned()
}
