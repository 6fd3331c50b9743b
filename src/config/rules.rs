//! The rules that texts of pipeline.toml keep: each says what would do instead where one is refused.

use crate::topic;

/// Says what would do instead where a text is refused.
pub(super) type Rule = fn(&str) -> Result<(), String>;

fn made_of(text: &str, longest: usize, legal: fn(char) -> bool) -> bool {
    !text.is_empty() && text.len() <= longest && text.chars().all(legal)
}

pub(super) fn nonempty(text: &str) -> Result<(), String> {
    if text.is_empty() {
        Err("a string that is not empty".into())
    } else {
        Ok(())
    }
}

pub(super) fn pipeline_name(text: &str) -> Result<(), String> {
    // It becomes part of topic names, the consumer group and transactional ids.
    if made_of(text, 64, |c| {
        c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
    }) {
        Ok(())
    } else {
        Err("1 to 64 ASCII letters, digits, '-' and '_'".into())
    }
}

pub(super) fn group_instance_id(text: &str) -> Result<(), String> {
    // As Kafka has it; it stands in names of members.
    if made_of(text, 200, |c| {
        c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
    }) {
        Ok(())
    } else {
        Err("1 to 200 ASCII letters, digits, '.', '-' and '_'".into())
    }
}

pub(super) fn transform_name(text: &str) -> Result<(), String> {
    if made_of(text, 64, |c| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_')
    }) {
        Ok(())
    } else {
        Err("1 to 64 lower-case ASCII letters, digits, '-' and '_'".into())
    }
}

/// A keyspace or a table as ScyllaDB names it, without quotes and with its case: word characters, 192 at most (48
/// before 2025.4); Alternator's have dots and hyphens too, and 222 characters. <https://docs.scylladb.com/manual/stable/cql/ddl.html>
pub(super) fn cql_name(text: &str) -> Result<(), String> {
    if text.ends_with("_scylla_cdc_log") {
        return Err("the base table: its log is found from it".into());
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if made_of(text, 222, legal) {
        Ok(())
    } else {
        Err("1 to 222 ASCII letters, digits, '_', '.' and '-', without quotes".into())
    }
}

pub(super) fn topic_name(text: &str) -> Result<(), String> {
    if topic::is_of_brokers(text) {
        Err("a topic that brokers do not write themselves".into())
    } else if topic::is_name(text) {
        Ok(())
    } else {
        Err(topic::RULE.into())
    }
}

pub(super) fn topic_template(text: &str) -> Result<(), String> {
    topic_name(&fill(text, "p", "k", "t")).map_err(|rule| {
        format!("{rule}, and the placeholders {{pipeline}}, {{keyspace}} and {{table}}")
    })
}

pub(super) fn dead_letter_template(text: &str) -> Result<(), String> {
    topic_name(&text.replace("{pipeline}", "p").replace("{keyspace}", "k"))
        .map_err(|rule| format!("{rule}, and the placeholders {{pipeline}} and {{keyspace}}"))
}

pub(super) fn stage_name(text: &str) -> Result<(), String> {
    // Which stages there are is a cross-check.
    nonempty(text)
}

pub(super) fn log_filter(text: &str) -> Result<(), String> {
    match tracing_subscriber::filter::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(()),
        Err(_) => Err("directives such as \"info,penstock::source=debug\"".into()),
    }
}

pub(super) fn node(text: &str) -> Result<(), String> {
    let rule = || Err("\"host:port\", such as \"10.0.0.1:9042\" or \"[::1]:9042\"".to_owned());
    let Some((host, port)) = text.rsplit_once(':') else {
        return rule();
    };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_ok = match bracketed {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => made_of(host, 253, |c| {
            c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
        }),
    };
    match port.parse::<u16>() {
        Ok(1..) if host_ok && port.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => rule(),
    }
}

/// Fills in a topic's placeholders.
pub(super) fn fill(template: &str, pipeline: &str, keyspace: &str, table: &str) -> String {
    template
        .replace("{pipeline}", pipeline)
        .replace("{keyspace}", keyspace)
        .replace("{table}", table)
}

/// `http://host:port`, with or without a path.
pub(super) fn collector(text: &str) -> Result<(), String> {
    let rule = || {
        Err("\"http://host:port\", such as \"http://otel-collector:4318\"; for TLS, a collector beside it".to_owned())
    };
    let Some(rest) = text.strip_prefix("http://") else {
        return rule();
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let legal = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '"');
    match node(host) {
        Ok(()) if path.chars().all(legal) => Ok(()),
        _ => rule(),
    }
}

/// `name=value`, separated by commas or lines; what is no header is an error that says which.
pub(super) fn header_pairs(text: &str) -> impl Iterator<Item = Result<(&str, &str), usize>> {
    let parts = text.split([',', '\n']).map(str::trim);
    let parts = parts.filter(|part| !part.is_empty()).zip(1..);
    parts.map(|(part, number)| {
        let (name, value) = part.split_once('=').ok_or(number)?;
        let (name, value) = (name.trim(), value.trim());
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let fits = made_of(name, 128, token) && made_of(value, 4096, |c| matches!(c, ' '..='~'));
        if fits { Ok((name, value)) } else { Err(number) }
    })
}
