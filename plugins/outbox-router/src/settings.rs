//! What the router may be told.

use penstock_plugin::{About, CqlType, Error, Handle, Setting, Settings, Table, bail};
use regex_lite::Regex;

/// The settings, described.
pub(crate) fn about() -> About {
    let column =
        |name: &str, default: &str, doc: &str| Setting::text(name).default(default).doc(doc);
    About::new("Routes the rows of an outbox table: a topic per aggregate type, keyed by aggregate id.")
        .setting(Setting::text("topic_prefix").default("").doc("stands before the routed topic"))
        .setting(Setting::texts("tables").doc("`table` or `keyspace.table`, the others pass by; all if it is not set"))
        .setting(column("aggregate_type_column", "aggregate_type", "text; what the topic is named by"))
        .setting(column("aggregate_id_column", "aggregate_id", "any type; its text form is the key"))
        .setting(column("event_id_column", "event_id", "any type; a header"))
        .setting(column("event_id_header", "event-id", "the header's name"))
        .setting(column("event_type_column", "event_type", "text; header `event-type`"))
        .setting(column("payload_column", "payload", "text or blob; the value"))
        .setting(column("trace_column", "traceparent", "text, optional; header `traceparent`"))
        .setting(Setting::text("timestamp_column").doc("a timestamp; the write's time where it is not set"))
        .setting(Setting::text("timestamp_header").doc("the header that has the event's time in ms; none if it is not set"))
        .setting(Setting::text("schema_version_column").doc("any type; header `schema-version`"))
        .setting(Setting::text("route_pattern").doc("a regular expression for the whole aggregate type; one that it does not match is the topic as it is"))
        .setting(Setting::text("route_replacement").default("$0").doc("what the topic is made of, e.g. `outbox.${name}`"))
        .setting(Setting::texts("additional").doc("`column:header[:alias]` or `column:envelope[:alias]`"))
        .setting(Setting::choice("additional_missing", &["error", "ignore"]).default("error").doc("a table without such a column"))
        .setting(Setting::choice("on_update", &["event", "warn", "drop", "error"]).default("drop").doc("an UPDATE of an outbox row"))
        .setting(Setting::choice("null_payload", &["tombstone", "ignore", "error"]).default("tombstone").doc("a payload that is null"))
        .setting(Setting::choice("empty_payload", &["keep", "tombstone"]).default("keep").doc("a payload of no bytes"))
        .setting(Setting::boolean("expand_json").default("true").doc("a JSON payload is JSON in its envelope, and not a string"))
}

/// What becomes of an UPDATE of an outbox row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Updates {
    Event,
    Warn,
    Drop,
    Error,
}

/// What becomes of a null payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Null {
    Tombstone,
    Ignore,
    Error,
}

/// Where an additional column goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Header,
    Envelope,
}

/// An additional column.
#[derive(Clone, Debug)]
pub(crate) struct Additional<T> {
    pub(crate) column: T,
    pub(crate) place: Place,
    pub(crate) alias: String,
}

/// The columns that every event has.
pub(crate) struct Columns<T> {
    pub(crate) aggregate_type: T,
    pub(crate) aggregate_id: T,
    pub(crate) event_id: T,
    pub(crate) event_type: T,
    pub(crate) payload: T,
    pub(crate) trace: T,
    pub(crate) timestamp: Option<T>,
    pub(crate) schema_version: Option<T>,
}

impl Columns<String> {
    pub(crate) fn in_table(&self, table: &Table) -> Columns<Handle> {
        let optional = |name: &Option<String>| name.as_ref().map(|name| table.handle(name));
        Columns {
            aggregate_type: table.handle(&self.aggregate_type),
            aggregate_id: table.handle(&self.aggregate_id),
            event_id: table.handle(&self.event_id),
            event_type: table.handle(&self.event_type),
            payload: table.handle(&self.payload),
            trace: table.handle(&self.trace),
            timestamp: optional(&self.timestamp),
            schema_version: optional(&self.schema_version),
        }
    }
}

/// How an aggregate type becomes a topic.
pub(crate) struct Rule {
    pattern: Regex,
    replacement: String,
}

impl Rule {
    /// Whole values are matched, as Kafka Connect's router does it; the replacement names groups that the pattern has.
    fn new(pattern: &str, replacement: &str) -> Result<Self, Error> {
        // By itself first: what closes a group that it did not open is no pattern.
        let whole = Regex::new(pattern).and_then(|_| Regex::new(&format!(r"\A(?:{pattern})\z")));
        let whole =
            whole.map_err(|e| Error::new(format!("setting `route_pattern` = {pattern:?}: {e}")))?;
        for group in groups(replacement) {
            let known = match group.parse::<usize>() {
                Ok(number) => number < whole.captures_len(),
                Err(_) => whole.capture_names().flatten().any(|name| name == group),
            };
            if !known {
                let names = whole.capture_names().enumerate();
                let names = names.map(|(n, name)| name.map_or(n.to_string(), str::to_owned));
                let names: Vec<String> = names.collect();
                bail!(
                    "setting `route_replacement` = {replacement:?}: `route_pattern` has no group `{group}`; there are: {} \
                     (`${{1}}` where letters follow, `$$` for a `$`)",
                    names.join(", ")
                );
            }
        }
        Ok(Self {
            pattern: whole,
            replacement: replacement.to_owned(),
        })
    }

    /// Appends the topic.
    pub(crate) fn apply(&self, aggregate_type: &str, topic: &mut String) -> Result<(), Error> {
        match self.pattern.captures(aggregate_type) {
            Some(groups) => groups.expand(&self.replacement, topic),
            None => topic.push_str(aggregate_type),
        }
        Ok(())
    }
}

/// The groups that a replacement names: `$1`, `$name`, `${name}`.
fn groups(replacement: &str) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), replacement);
    while let Some((_, after)) = rest.split_once('$') {
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}'))
        {
            found.push(name);
            rest = after;
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
            found.extend((!name.is_empty()).then_some(name));
            rest = after;
        }
    }
    found
}

/// All settings but the topic's prefix.
pub(crate) struct Options {
    pub(crate) tables: Option<Vec<String>>,
    pub(crate) columns: Columns<String>,
    pub(crate) id_header: String,
    pub(crate) timestamp_header: Option<String>,
    pub(crate) route: Option<Rule>,
    pub(crate) additional: Vec<Additional<String>>,
    pub(crate) missing_is_an_error: bool,
    pub(crate) updates: Updates,
    pub(crate) null: Null,
    pub(crate) empty_is_tombstone: bool,
    pub(crate) expand_json: bool,
}

impl Options {
    pub(crate) fn read(settings: &Settings) -> Result<Self, Error> {
        let tables = settings.get("tables");
        if tables
            .is_some_and(|t| !t.starts_with('[') && t.split(',').any(|name| name.trim().is_empty()))
        {
            bail!("setting `tables` has an empty name; leave it out to route every table");
        }
        let column = |key: &str, default: &str| match settings.get(key) {
            Some("") => Err(Error::new(format!("setting `{key}` is empty"))),
            name => Ok(name.unwrap_or(default).to_owned()),
        };
        let optional = |key: &str| match settings.get(key) {
            None => Ok(None),
            Some(_) => column(key, "").map(Some),
        };
        let additional = settings.texts("additional")?;
        Ok(Self {
            tables: tables
                .is_some()
                .then(|| settings.texts("tables"))
                .transpose()?,
            columns: Columns {
                aggregate_type: column("aggregate_type_column", "aggregate_type")?,
                aggregate_id: column("aggregate_id_column", "aggregate_id")?,
                event_id: column("event_id_column", "event_id")?,
                event_type: column("event_type_column", "event_type")?,
                payload: column("payload_column", "payload")?,
                trace: column("trace_column", "traceparent")?,
                timestamp: optional("timestamp_column")?,
                schema_version: optional("schema_version_column")?,
            },
            id_header: column("event_id_header", "event-id")?,
            timestamp_header: optional("timestamp_header")?,
            route: match settings.get("route_pattern") {
                None => None,
                Some(pattern) => Some(Rule::new(
                    pattern,
                    settings.get("route_replacement").unwrap_or("$0"),
                )?),
            },
            additional: additional
                .iter()
                .map(|text| Additional::parse(text))
                .collect::<Result<_, _>>()?,
            missing_is_an_error: settings.get("additional_missing") != Some("ignore"),
            updates: match settings.get("on_update") {
                Some("event") => Updates::Event,
                Some("warn") => Updates::Warn,
                Some("error") => Updates::Error,
                _ => Updates::Drop,
            },
            null: match settings.get("null_payload") {
                Some("ignore") => Null::Ignore,
                Some("error") => Null::Error,
                _ => Null::Tombstone,
            },
            empty_is_tombstone: settings.get("empty_payload") == Some("tombstone"),
            expand_json: settings.get("expand_json") != Some("false"),
        })
    }

    /// Whether a record's value is more than the payload's bytes.
    pub(crate) fn looks_at_payload(&self) -> bool {
        self.null != Null::Tombstone
            || self.empty_is_tombstone
            || self.additional.iter().any(|a| a.place == Place::Envelope)
    }

    /// Refuses a table whose payload is something else than text or bytes.
    pub(crate) fn check_payload(&self, table: &Table) -> Result<(), Error> {
        let (keyspace, name) = (&table.keyspace, &table.name);
        let column = table.column(&self.columns.payload);
        match column.and_then(|at| table.columns.get(usize::from(at))) {
            Some(column)
                if !matches!(
                    column.cql_type.thawed(),
                    CqlType::Text | CqlType::Ascii | CqlType::Blob
                ) =>
            {
                bail!(
                    "column `{}` of {keyspace}.{name} is of type {}: a payload is text or blob",
                    column.name,
                    column.cql_type
                )
            }
            _ => Ok(()),
        }
    }

    /// The additional columns of a table.
    pub(crate) fn additional_in(&self, table: &Table) -> Result<Vec<Additional<Handle>>, Error> {
        let mut found = Vec::new();
        for extra in &self.additional {
            if table.column(&extra.column).is_some() {
                found.push(Additional {
                    column: table.handle(&extra.column),
                    place: extra.place,
                    alias: extra.alias.clone(),
                });
            } else if self.missing_is_an_error {
                bail!(
                    "table {}.{} has no column `{}`, which `additional` names",
                    table.keyspace,
                    table.name,
                    extra.column
                );
            }
        }
        Ok(found)
    }
}

impl Additional<String> {
    fn parse(text: &str) -> Result<Self, Error> {
        let mut parts = text.split(':').map(str::trim);
        let (column, place, alias) = (parts.next(), parts.next(), parts.next());
        let place = match place {
            Some("header") => Place::Header,
            Some("envelope") => Place::Envelope,
            Some("partition") => bail!(
                "setting `additional`: {text:?}: no transform chooses partitions; the key does"
            ),
            _ => bail!(
                "setting `additional`: {text:?}: expected `column:place[:alias]`, with header or envelope for the place"
            ),
        };
        match column {
            Some(column) if !column.is_empty() && parts.next().is_none() => Ok(Self {
                column: column.to_owned(),
                place,
                alias: alias.unwrap_or(column).to_owned(),
            }),
            _ => bail!("setting `additional`: {text:?}: expected `column:place[:alias]`"),
        }
    }
}
