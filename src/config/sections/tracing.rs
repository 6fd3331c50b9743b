//! `[tracing]`: where traces go, and which changes have one.

use std::path::PathBuf;

use crate::config::key::Fallback::{Absent, Value};
use crate::config::key::Kind;
use crate::config::key::ReloadClass::Live;
use crate::config::rules;
use crate::config::section::section;
use crate::config::value::Secret;
use crate::words::{Word, words};

words! {
    /// `tracing.protocol`
    pub enum OtlpProtocol {
        /// OTLP over HTTP, in Protocol Buffers.
        Http = "http",
        /// OTLP over gRPC.
        Grpc = "grpc",
    }
}

impl Tracing {
    /// What goes with each request, by name.
    pub fn headers(&self) -> Vec<(String, String)> {
        let secret = self.secret_headers.as_ref().map(Secret::expose);
        let pairs = rules::header_pairs(secret.unwrap_or_default());
        let mut headers: Vec<(String, String)> = pairs
            .filter_map(Result::ok)
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        if let Some(token) = &self.token {
            headers.push((
                "authorization".to_owned(),
                format!("Bearer {}", token.expose()),
            ));
        }
        headers
    }
}

section! {
    /// `[tracing]`
    pub struct Tracing {
        /// Where spans go by OTLP, such as a collector beside it; absent: nothing is traced. Without a path it is
        /// /v1/traces over HTTP
        endpoint: Option<String> = { Kind::Text(rules::collector), Absent, Live, r#""http://otel-collector:4318""# },
        /// How it is spoken to
        protocol: OtlpProtocol = { Kind::Choice(OtlpProtocol::WORDS), Value(r#""http""#), Live, r#""grpc""# },
        /// Share of the requests and changes that come without a trace context for which a trace is begun, 0 to 1; one
        /// that comes with a context is traced if that says so
        sampling: f64 = { Kind::Float(0.0, 1.0), Value("0.01"), Live, "0.1" },
        /// The column of a table that holds the W3C trace context of a change, where a table has it; else a header
        /// traceparent that a transform sets counts
        column: String = { Kind::Text(rules::nonempty), Value(r#""traceparent""#), Live, r#""trace_context""# },
        /// Bearer token for the collector, by PENSTOCK_TRACING__TOKEN only
        token: Option<Secret> = { Kind::Secret, Absent, Live, r#""…""# },
        /// A file with the token; a newline at its end is not part of it
        token_file: Option<PathBuf> = { Kind::Path, Absent, Live, r#""/run/secrets/otlp-token""# },
        /// Headers for the collector, name=value, separated by commas or lines, by PENSTOCK_TRACING__SECRET_HEADERS only
        secret_headers: Option<Secret> = { Kind::Secret, Absent, Live, r#""…""# },
        /// A file with the headers
        secret_headers_file: Option<PathBuf> = { Kind::Path, Absent, Live, r#""/run/secrets/otlp-headers""# },
    }
}
