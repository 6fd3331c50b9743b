//! `[source.tls]` and `[sink.tls]`: encrypted connections.

use std::path::PathBuf;

use crate::config::key::Fallback::{Absent, Value};
use crate::config::key::Kind;
use crate::config::key::ReloadClass::{Live, Rebuild};
use crate::config::section::section;
use crate::config::value::{Contents, Secret};
use crate::tls;

section! {
    /// `[<stage>.tls]`. The files are read with the configuration and watched with it: what stands in them anew is in
    /// force at the next connection.
    pub struct Tls {
        /// Connects by TLS, and sees that the server has a certificate by an authority that is trusted
        enabled: bool = { Kind::Bool, Value("false"), Rebuild, "true" },
        /// A PEM file with the authorities that are trusted; absent: those of the system
        ca_file: Option<Contents> = { Kind::File, Absent, Live, r#""/run/secrets/ca.pem""# },
        /// A PEM file with the certificate that is shown to the server, and what it was signed by
        certificate_file: Option<Contents> = { Kind::File, Absent, Live, r#""/run/secrets/tls.crt""# },
        /// A PEM file with the key of that certificate
        key_file: Option<Contents> = { Kind::File, Absent, Live, r#""/run/secrets/tls.key""# },
        /// The password of the key, by the environment only
        key_password: Option<Secret> = { Kind::Secret, Absent, Live, r#""…""# },
        /// A file with the password of the key; a newline at its end is not part of it
        key_password_file: Option<PathBuf> = { Kind::Path, Absent, Live, r#""/run/secrets/tls.password""# },
        /// The server's certificate has to name the host that is connected to
        verify_hostname: bool = { Kind::Bool, Value("true"), Live, "false" },
    }
}

impl Tls {
    /// What a connection is made with; `None`: without TLS.
    pub fn trust(&self) -> Option<tls::Trust> {
        let text = |file: &Option<Contents>| file.as_ref().map(|f| f.expose().to_owned());
        self.enabled.then(|| tls::Trust {
            authorities: text(&self.ca_file),
            certificate: text(&self.certificate_file),
            key: text(&self.key_file),
            key_password: self.key_password.as_ref().map(|p| p.expose().to_owned()),
            verify_hostname: self.verify_hostname,
        })
    }
}
