//! Certificates made as they are needed, and a door that speaks TLS in front of a server that does not.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslAcceptor, SslMethod, SslVerifyMode};
use openssl::symm::Cipher;
use openssl::x509::extension::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509Name};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_openssl::SslStream;
use tokio_util::sync::CancellationToken;

fn key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
    PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key")
}

fn name(text: &str) -> X509Name {
    let mut name = X509Name::builder().expect("a name");
    name.append_entry_by_text("CN", text).expect("a name");
    name.build()
}

fn builder(of: &str, key: &PKey<Private>, from: i64, until: i64) -> openssl::x509::X509Builder {
    let now = std::time::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_secs() as i64;
    let at = |days: i64| Asn1Time::from_unix(now + days * 86_400).expect("a time");
    let mut serial = BigNum::new().expect("a number");
    let some = openssl::bn::MsbOption::MAYBE_ZERO;
    serial.rand(120, some, false).expect("random");
    let mut made = X509::builder().expect("a certificate");
    made.set_version(2).expect("version 3");
    made.set_serial_number(&serial.to_asn1_integer().expect("a number"))
        .expect("a number");
    made.set_subject_name(&name(of)).expect("a name");
    made.set_not_before(&at(from)).expect("a time");
    made.set_not_after(&at(until)).expect("a time");
    made.set_pubkey(key).expect("a key");
    made
}

/// Who signs certificates.
pub struct Authority {
    certificate: X509,
    key: PKey<Private>,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(of: &str) -> Self {
        let key = key();
        let mut made = builder(of, &key, -2, 365);
        made.set_issuer_name(&name(of)).expect("a name");
        let constraints = BasicConstraints::new().critical().ca().build();
        made.append_extension(constraints.expect("an extension"))
            .expect("an extension");
        let usage = KeyUsage::new().key_cert_sign().crl_sign().build();
        made.append_extension(usage.expect("an extension"))
            .expect("an extension");
        made.sign(&key, MessageDigest::sha256()).expect("signed");
        Self {
            certificate: made.build(),
            key,
        }
    }

    /// Its own certificate, as PEM.
    pub fn pem(&self) -> String {
        pem(self.certificate.to_pem())
    }

    /// For these hosts and addresses, good for this many days; below zero: over since then.
    pub fn issue(&self, of: &str, hosts: &[&str], days: i64) -> Identity {
        let key = key();
        let mut made = builder(of, &key, -30, days);
        made.set_issuer_name(self.certificate.subject_name())
            .expect("a name");
        let usage = ExtendedKeyUsage::new().server_auth().client_auth().build();
        made.append_extension(usage.expect("an extension"))
            .expect("an extension");
        if !hosts.is_empty() {
            let mut names = SubjectAlternativeName::new();
            for host in hosts {
                match host.parse::<IpAddr>() {
                    Ok(_) => names.ip(host),
                    Err(_) => names.dns(host),
                };
            }
            let context = made.x509v3_context(Some(&self.certificate), None);
            let names = names.build(&context).expect("an extension");
            made.append_extension(names).expect("an extension");
        }
        made.sign(&self.key, MessageDigest::sha256())
            .expect("signed");
        Identity {
            certificate: pem(made.build().to_pem()),
            key: pem(key.private_key_to_pem_pkcs8()),
        }
    }
}

impl Identity {
    /// Its key, encrypted.
    pub fn locked(&self, password: &str) -> String {
        let key = PKey::private_key_from_pem(self.key.as_bytes()).expect("a key");
        let cipher = Cipher::aes_256_cbc();
        pem(key.private_key_to_pem_pkcs8_passphrase(cipher, password.as_bytes()))
    }

    /// Key and certificate in one, as Java has it.
    pub fn together(&self) -> String {
        format!("{}{}", self.key, self.certificate)
    }
}

fn pem(made: Result<Vec<u8>, openssl::error::ErrorStack>) -> String {
    String::from_utf8(made.expect("PEM")).expect("PEM is text")
}

/// Speaks TLS in front of a server whose clients do not ask it for its address.
pub struct Door {
    pub address: SocketAddr,
    acceptor: Arc<Mutex<SslAcceptor>>,
    open: Arc<Mutex<CancellationToken>>,
    _ends: tokio_util::sync::DropGuard,
}

fn acceptor(identity: &Identity, clients: &[&Authority]) -> SslAcceptor {
    let mut made = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).expect("TLS");
    let certificate = X509::from_pem(identity.certificate.as_bytes()).expect("a certificate");
    let key = PKey::private_key_from_pem(identity.key.as_bytes()).expect("a key");
    made.set_certificate(&certificate).expect("a certificate");
    made.set_private_key(&key).expect("its key");
    if !clients.is_empty() {
        let mut store = X509StoreBuilder::new().expect("a store");
        for authority in clients {
            store
                .add_cert(authority.certificate.clone())
                .expect("an authority");
        }
        made.set_verify_cert_store(store.build()).expect("a store");
        made.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        made.set_session_id_context(b"door").expect("a context");
    }
    made.build()
}

impl Door {
    /// With this certificate; with `clients`, who comes needs one by one of them.
    pub async fn before(server: SocketAddr, identity: &Identity, clients: &[&Authority]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port on loopback");
        Self::at(listener, server, identity, clients)
    }

    /// In front of a broker of its own, which says that its address is the door's.
    pub async fn before_broker(identity: &Identity, clients: &[&Authority]) -> Self {
        let (front, back) = crate::broker::embedded();
        front.set_nonblocking(true).expect("a listener");
        let front = TcpListener::from_std(front).expect("a listener");
        Self::at(front, back, identity, clients)
    }

    fn at(
        listener: TcpListener,
        server: SocketAddr,
        identity: &Identity,
        clients: &[&Authority],
    ) -> Self {
        let end = CancellationToken::new();
        let door = Self {
            address: listener.local_addr().expect("an address"),
            acceptor: Arc::new(Mutex::new(acceptor(identity, clients))),
            open: Arc::default(),
            _ends: end.clone().drop_guard(),
        };
        let (acceptor, open) = (door.acceptor.clone(), door.open.clone());
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = end.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else { continue };
                let ssl = Ssl::new(acceptor.lock().context()).expect("TLS");
                let until = open.lock().child_token();
                let end = end.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = end.cancelled() => {}
                        () = until.cancelled() => {}
                        () = pass(stream, ssl, server) => {}
                    }
                });
            }
        });
        door
    }

    /// From now on with another certificate, and for other clients.
    pub fn set(&self, identity: &Identity, clients: &[&Authority]) {
        *self.acceptor.lock() = acceptor(identity, clients);
    }

    /// Cuts every connection; who comes anew is let in.
    pub fn cut(&self) {
        std::mem::take(&mut *self.open.lock()).cancel();
    }
}

async fn pass(stream: TcpStream, ssl: Ssl, server: SocketAddr) {
    let Ok(mut stream) = SslStream::new(ssl, stream) else {
        return;
    };
    if Pin::new(&mut stream).accept().await.is_err() {
        return;
    }
    if let Ok(mut server) = TcpStream::connect(server).await {
        // Whoever ends it ends it.
        tokio::io::copy_bidirectional(&mut stream, &mut server)
            .await
            .ok();
    }
}
