//! TLS as the drivers are to speak it: what is trusted and shown, whether that is sound in itself, and what a handshake
//! that fails means, in words that say what would help.

use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509Ref, X509StoreContextRef, X509VerifyResult};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

/// Where systems keep the authorities that they trust: Debian and distroless images, Fedora, SUSE, Alpine and BSD.
const SYSTEM: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];

/// A handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// X509_V_ERR_IP_ADDRESS_MISMATCH
const WRONG_ADDRESS: i32 = 64;
/// X509_V_ERR_HOSTNAME_MISMATCH
const WRONG_HOST: i32 = 62;

/// What a connection by TLS is made with, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Trust {
    /// The authorities that are trusted; `None`: those of the system.
    pub authorities: Option<String>,
    /// What is shown to the server.
    pub certificate: Option<String>,
    /// The key of that.
    pub key: Option<String>,
    /// … and what it is encrypted with.
    pub key_password: Option<String>,
    /// The server's certificate has to name the host.
    pub verify_hostname: bool,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust(***)")
    }
}

/// Which of the files is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The authorities.
    Authorities,
    /// The client's certificate.
    Certificate,
    /// Its key, or the password of that.
    Key,
}

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unsound {
    /// Which.
    pub part: Part,
    /// Why, and what would do.
    pub reason: String,
}

fn unsound(part: Part) -> impl Fn(&str) -> Unsound {
    move |reason| Unsound {
        part,
        reason: reason.to_owned(),
    }
}

impl Trust {
    /// Whether all of it reads, fits together, and is not over.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), Unsound> {
        self.authorities()?;
        self.identity().map(drop)
    }

    fn authorities(&self) -> Result<Option<Vec<X509>>, Unsound> {
        let bad = unsound(Part::Authorities);
        let Some(text) = &self.authorities else {
            return Ok(None);
        };
        let all = X509::stack_from_pem(text.as_bytes()).unwrap_or_default();
        if all.is_empty() {
            return Err(bad("it holds no certificate in PEM"));
        }
        if let Some(date) = all.iter().map(|c| over(c)).collect::<Option<Vec<_>>>() {
            let last = date.last().map_or("", String::as_str);
            return Err(bad(&format!(
                "the authority's certificate expired on {last}"
            )));
        }
        Ok(Some(all))
    }

    /// The client's certificate with what it was signed by, and its key.
    fn identity(&self) -> Result<Option<(Vec<X509>, PKey<Private>)>, Unsound> {
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else {
            return Ok(None);
        };
        let bad = unsound(Part::Certificate);
        let chain = X509::stack_from_pem(certificate.as_bytes()).unwrap_or_default();
        let Some(own) = chain.first() else {
            return Err(bad("it holds no certificate in PEM"));
        };
        if let Some(date) = over(own) {
            return Err(bad(&format!("the certificate expired on {date}")));
        }
        let bad = unsound(Part::Key);
        let mut asked = false;
        let read = PKey::private_key_from_pem_callback(key.as_bytes(), |buffer| {
            asked = true;
            let password = self.key_password.as_deref().unwrap_or_default().as_bytes();
            let room = buffer
                .get_mut(..password.len())
                .ok_or_else(ErrorStack::get)?;
            room.copy_from_slice(password);
            Ok(password.len())
        });
        let key = match (read, asked, &self.key_password) {
            (Ok(key), ..) => key,
            (Err(_), true, None) => return Err(bad("it is encrypted, and no password is given")),
            (Err(_), true, Some(_)) => return Err(bad("the password does not open it")),
            (Err(_), false, _) => return Err(bad("it holds no private key in PEM")),
        };
        if !own.public_key().is_ok_and(|public| public.public_eq(&key)) {
            return Err(bad("it is not the key of the certificate"));
        }
        Ok(Some((chain, key)))
    }

    /// A client of it. Of a driver that looks for nothing but the address in a certificate: one that has one of these
    /// names will do, too.
    ///
    /// # Errors
    /// What cannot be used of it.
    pub fn connector(&self, names: &[String]) -> Result<SslConnectorBuilder, Unsound> {
        self.build(names, &Arc::default())
    }

    fn build(&self, names: &[String], met: &Arc<Met>) -> Result<SslConnectorBuilder, Unsound> {
        let bad = |part| move |error: ErrorStack| unsound(part)(&error.to_string());
        let mut builder =
            SslConnector::builder(SslMethod::tls_client()).map_err(bad(Part::Authorities))?;
        match self.authorities()? {
            Some(all) => {
                let store = || {
                    let mut store = X509StoreBuilder::new()?;
                    for one in all {
                        store.add_cert(one)?;
                    }
                    Ok(store.build())
                };
                builder.set_cert_store(store().map_err(bad(Part::Authorities))?);
            }
            // Built in as it is, OpenSSL does not know where this system keeps them.
            None => {
                if let Some(file) = SYSTEM.iter().find(|file| Path::new(file).is_file()) {
                    builder.set_ca_file(file).map_err(bad(Part::Authorities))?;
                }
            }
        }
        if let Some((chain, key)) = self.identity()? {
            let mut chain = chain.into_iter();
            if let Some(own) = chain.next() {
                builder
                    .set_certificate(&own)
                    .map_err(bad(Part::Certificate))?;
            }
            for signer in chain {
                builder
                    .add_extra_chain_cert(signer)
                    .map_err(bad(Part::Certificate))?;
            }
            builder.set_private_key(&key).map_err(bad(Part::Key))?;
        }
        let (names, met, hostname) = (names.to_vec(), Arc::clone(met), self.verify_hostname);
        builder.set_verify_callback(SslVerifyMode::PEER, move |good, context| {
            if good {
                return true;
            }
            let code = context.error().as_raw();
            let named = || {
                let certificate = context.current_cert();
                certificate.is_some_and(|c| names.iter().any(|name| is_for(c, name)))
            };
            if matches!(code, WRONG_ADDRESS | WRONG_HOST) && (!hostname || named()) {
                context.set_error(X509VerifyResult::OK);
                return true;
            }
            met.note(context);
            false
        });
        Ok(builder)
    }
}

/// Why a certificate was refused: the code, and the certificate.
#[derive(Default)]
struct Met(Mutex<Option<(X509VerifyResult, Option<X509>)>>);

impl Met {
    fn note(&self, context: &X509StoreContextRef) {
        let certificate = context.current_cert().map(ToOwned::to_owned);
        *self.0.lock() = Some((context.error(), certificate));
    }
}

/// Since when a certificate is over, if it is.
fn over(certificate: &X509Ref) -> Option<String> {
    let now = Asn1Time::days_from_now(0).ok()?;
    (certificate.not_after() < now).then(|| certificate.not_after().to_string())
}

/// The hosts and addresses that a certificate is for.
fn subjects(certificate: &X509Ref) -> Vec<String> {
    let named = certificate.subject_alt_names();
    let named = named.iter().flatten().filter_map(|name| {
        let address = || match name.ipaddress()? {
            bytes if bytes.len() == 4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            bytes => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        };
        let host = name.dnsname().map(shown);
        host.or_else(|| address().map(|a| a.to_string()))
    });
    named.collect()
}

/// Whether a certificate is for this host; `*` stands for a whole first label.
fn is_for(certificate: &X509Ref, host: &str) -> bool {
    subjects(certificate).iter().any(|subject| {
        let wild = || {
            let (_, rest) = host.split_once('.')?;
            Some(subject.strip_prefix("*.")?.eq_ignore_ascii_case(rest))
        };
        subject.eq_ignore_ascii_case(host) || wild().unwrap_or(false)
    })
}

/// On one line, whatever a certificate holds.
fn shown(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// Who a certificate is of, or by.
fn name_of(name: &openssl::x509::X509NameRef) -> String {
    let parts: Vec<String> = name
        .entries()
        .filter_map(|entry| Some(shown(&entry.data().to_string().ok()?)))
        .collect();
    match parts.is_empty() {
        true => "nobody".to_owned(),
        false => parts.join(", "),
    }
}

/// Speaks TLS over a connection to this host.
///
/// # Errors
/// In one line why it cannot be done, and what would help.
pub async fn handshake(
    stream: TcpStream,
    trust: &Trust,
    host: &str,
) -> Result<SslStream<TcpStream>, String> {
    let met = Arc::<Met>::default();
    let unusable = |e: ErrorStack| format!("TLS cannot be set up: {e}");
    let connector = trust.build(&[], &met).map_err(|e| e.to_string())?.build();
    let ssl = connector
        .configure()
        .map_err(unusable)?
        .verify_hostname(trust.verify_hostname)
        .into_ssl(host)
        .map_err(unusable)?;
    let mut stream = SslStream::new(ssl, stream).map_err(unusable)?;
    let shaken = tokio::time::timeout(HANDSHAKE, Pin::new(&mut stream).connect()).await;
    match shaken {
        Ok(Ok(())) => Ok(stream),
        Ok(Err(error)) => Err(match met.0.lock().take() {
            Some((code, certificate)) => refused(code, certificate.as_deref(), host),
            None => explain(&error.to_string(), trust),
        }),
        Err(_) => Err(format!(
            "takes the connection and does not answer to TLS within {}: is it a port without TLS?",
            humantime::format_duration(HANDSHAKE)
        )),
    }
}

/// Why the server's certificate is refused here.
fn refused(code: X509VerifyResult, certificate: Option<&X509Ref>, host: &str) -> String {
    let issuer = certificate.map_or_else(|| "somebody".to_owned(), |c| name_of(c.issuer_name()));
    match code.as_raw() {
        // X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, …_LOCALLY, …_UNABLE_TO_VERIFY_LEAF_SIGNATURE, self-signed
        2 | 18 | 19 | 20 | 21 => format!(
            "its certificate is by {issuer}, who is not trusted: name that authority's certificate in ca_file"
        ),
        10 => format!(
            "its certificate expired on {}: have the server renew it",
            certificate.map_or_else(|| "a day past".to_owned(), |c| c.not_after().to_string())
        ),
        9 => "its certificate is not valid yet: compare the clocks".to_owned(),
        WRONG_HOST | WRONG_ADDRESS => format!(
            "its certificate is for {}, not for {host}: connect by a name that it has, or set verify_hostname = false",
            match certificate.map(subjects).unwrap_or_default() {
                names if names.is_empty() => "no host".to_owned(),
                names => names.join(", "),
            }
        ),
        _ => format!("its certificate is refused: {}", code.error_string()),
    }
}

/// What OpenSSL's or a server's complaint means to who came with this.
pub fn explain(complaint: &str, trust: &Trust) -> String {
    let text = complaint.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let about_certificates = [
        "certificate required",
        "bad certificate",
        "certificate unknown",
        "alert number 116",
        "alert number 42",
        "alert number 46",
    ];
    if trust.certificate.is_none() && has(&about_certificates) {
        "it asks for a client certificate: set certificate_file and key_file".to_owned()
    } else if has(&["alert unknown ca", "alert number 48"]) {
        "it does not trust who signed the client certificate: have certificate_file be by an authority that it knows"
            .to_owned()
    } else if has(&["alert certificate expired", "alert number 45"]) {
        "it says that the client certificate expired: renew certificate_file".to_owned()
    } else if has(&about_certificates) {
        "it refuses the client certificate: have certificate_file be by an authority that it knows"
            .to_owned()
    } else if has(&[
        "wrong version number",
        "packet length too long",
        "record layer failure",
        "http request",
    ]) {
        "it does not speak TLS there: is it a port without TLS?".to_owned()
    } else if has(&["handshake failure", "protocol version", "no shared cipher"]) {
        format!("no TLS that both sides speak: {complaint}")
    } else if has(&["unexpected eof", "eof", "reset by peer", "closed"]) {
        "closes the connection during the TLS handshake: is it a port without TLS?".to_owned()
    } else {
        format!("the TLS handshake failed: {complaint}")
    }
}

/// What it means that a server ends a connection once TLS is spoken.
pub fn objection(complaint: &str, trust: &Trust) -> String {
    if complaint.contains("alert") {
        return explain(complaint, trust);
    }
    let text = complaint.to_lowercase();
    let ended = ["eof", "reset by peer", "closed", "broken pipe"];
    if !ended.iter().any(|word| text.contains(word)) {
        return complaint.to_owned();
    }
    let perhaps = match trust.certificate {
        None => "it asks for a client certificate: set certificate_file and key_file",
        Some(_) => "it does not trust who signed the client certificate",
    };
    format!("closes the connection after the TLS handshake; perhaps {perhaps}")
}

/// Whether whoever is at the other end of a connection speaks TLS at all. Trusts nobody, and says nothing.
pub async fn is_spoken(stream: TcpStream) -> bool {
    let asked = async {
        let mut builder = SslConnector::builder(SslMethod::tls_client()).ok()?;
        builder.set_verify(SslVerifyMode::NONE);
        let ssl = builder.build().configure().ok()?;
        let ssl = ssl.verify_hostname(false).use_server_name_indication(false);
        let mut stream = SslStream::new(ssl.into_ssl("any").ok()?, stream).ok()?;
        Some(match Pin::new(&mut stream).connect().await {
            Ok(()) => true,
            // An alert is TLS, too.
            Err(error) => error.to_string().contains("alert"),
        })
    };
    let asked = tokio::time::timeout(HANDSHAKE, asked).await;
    asked.ok().flatten().unwrap_or(false)
}
