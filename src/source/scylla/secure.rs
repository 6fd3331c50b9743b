//! How the driver connects: with TLS, and as whom. The source and the order service connect alike.

use scylla::client::session::OpenSsl010Config;
use scylla::client::session_builder::SessionBuilder;

use crate::config::settings;
use crate::reach;
use crate::tls::Trust;

/// With what the source connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    username: Option<String>,
    password: Option<settings::Secret>,
    pub(crate) trust: Option<Trust>,
}

impl Credentials {
    pub(crate) fn of(source: &settings::Source) -> Self {
        Self {
            username: source.username.clone(),
            password: source.password.clone(),
            trust: source.tls.trust(),
        }
    }

    /// Has a session connect so. The driver looks for nothing but a node's address in its certificate; one that has a
    /// name of `nodes` will do, too.
    ///
    /// # Errors
    /// What cannot be used of it.
    pub(crate) fn apply(
        &self,
        mut builder: SessionBuilder,
        nodes: &[String],
    ) -> Result<SessionBuilder, String> {
        if let Some(user) = &self.username {
            let password = self.password.as_ref().map_or("", |p| p.expose());
            builder = builder.user(user, password);
        }
        if let Some(trust) = &self.trust {
            let names: Vec<String> = nodes.iter().map(|n| reach::host(n).to_owned()).collect();
            let connector = trust.connector(&names).map_err(|e| e.to_string())?;
            builder = builder.tls_context(Some(OpenSsl010Config::new(connector)));
        }
        Ok(builder)
    }
}
