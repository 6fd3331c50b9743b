//! What the doctor looks at on ScyllaDB's side.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use penstock_plugin_encoding::ColumnKind;
use scylla::client::session::Session;
use scylla::cluster::metadata::Strategy;
use scylla::statement::{Consistency as Level, Statement};
use scylla::value::CqlTimeuuid;

use super::SourceError;
use super::link::Link;
use super::log::LogTable;
use super::place::places;
use super::questions::{CDC_OPTIONS, CdcOptions};
use super::schema;
use super::secure::Credentials;
use crate::change::{Column, TableSchema, timeuuid_us};
use crate::config::settings::{Consistency, Settings, Source};
use crate::finding::Finding;
use crate::reach::{self, Step};

/// Two clocks that differ by more than this are not both right.
const SKEW: Duration = Duration::from_secs(1);
/// A table's changes should outlive an outage of this length.
const SHORT_TTL: Duration = Duration::from_secs(3600);

/// What is found of ScyllaDB, and the changes' time to live: the shortest of all tables.
#[derive(Debug, Default)]
pub struct Examined {
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// `None`: not known, or none expires.
    pub ttl: Option<Duration>,
    /// The tables that are there.
    pub tables: Vec<Table>,
}

/// A table, and which images of its changes its log has.
#[derive(Debug)]
pub struct Table {
    /// As changes have it.
    pub schema: Arc<TableSchema>,
    /// What a row was before.
    pub preimages: bool,
    /// What it is after.
    pub postimages: bool,
}

/// Looks at these nodes, and at the tables that the settings name. Changes nothing.
pub async fn examine(nodes: &[String], settings: &Settings) -> Examined {
    let mut examined = Examined::default();
    let source = &settings.source;
    let trust = Credentials::of(source).trust;
    let looks = nodes
        .iter()
        .map(|node| reach::walk(node, trust.as_ref(), reach::Ask::Cql));
    let met = futures::future::join_all(looks).await;
    let all_fail = met.iter().all(Result::is_err);
    for (node, met) in nodes.iter().zip(met) {
        let Err((step, found)) = met else { continue };
        let (code, help) = match step {
            Step::Dns => ("dns", "check source.nodes, and what resolves names here"),
            Step::Tcp => (
                "tcp",
                "check source.nodes, that the node runs, and what filters connections between",
            ),
            Step::Tls => ("tls", "see [source.tls]"),
            Step::Protocol => (
                "cql",
                "check that this is ScyllaDB's port for CQL, and [source.tls]",
            ),
        };
        examined.findings.push(match all_fail {
            true => Finding::error(code, node, found, help),
            // The driver learns the others' addresses from any that answers.
            false => Finding::warning(code, node, found, help),
        });
    }
    if all_fail {
        return examined;
    }
    let link = match Link::connect(nodes, source).await {
        Ok(link) => link,
        Err(error) => {
            let code = match error {
                SourceError::Refused { .. } => "login",
                SourceError::NoSuchPlace { .. } => "datacenter",
                _ => "cql",
            };
            examined
                .findings
                .push(told(code, &nodes.join(", "), &error));
            return examined;
        }
    };
    let session = link.session();
    skew(&session, &mut examined.findings).await;
    pinned(places(&session).into_keys(), source, &mut examined.findings);
    replication(&session, source, &mut examined.findings);
    for table in &source.tables {
        let full = format!("{}.{table}", source.keyspace);
        let log = LogTable::new(&source.keyspace, table);
        if let Err(error) = log.find(&session.get_cluster_state()) {
            let code = match error {
                SourceError::MissingKeyspace { .. } => "keyspace",
                SourceError::NoCdc { .. } => "cdc",
                _ => "table",
            };
            examined.findings.push(told(code, &full, &error));
            continue;
        }
        match options(&session, &source.keyspace, table).await {
            Ok(options) => {
                look_at_options(&full, &options, settings, &mut examined);
                let schema = schema(&session, &source.keyspace, table);
                examined.tables.extend(schema.map(|schema| Table {
                    schema: Arc::new(schema),
                    preimages: options.preimages,
                    postimages: options.postimages,
                }));
            }
            Err(error) => examined.findings.push(told("table", &full, &error)),
        }
    }
    examined
}

/// Whether reads are pinned to a data centre where there are several.
fn pinned(there: impl Iterator<Item = String>, source: &Source, findings: &mut Vec<Finding>) {
    let there: Vec<String> = there.collect();
    if there.len() > 1 && source.datacenter.is_none() {
        let found = format!(
            "there are several ({}), and any of them is read",
            there.join(", ")
        );
        let help = "set source.datacenter to the one that is written to, or one that lags is read with holes";
        findings.push(Finding::warning(
            "datacenter",
            &source.keyspace,
            found,
            help,
        ));
    }
}

/// An error's own words say what would help after the first semicolon.
fn told(code: &'static str, about: &str, error: &SourceError) -> Finding {
    let text = error.to_string();
    let (found, help) = match text.rsplit_once("; ") {
        Some((found, help)) => (found.to_owned(), help.to_owned()),
        None => (text.clone(), "see what ScyllaDB's log says".to_owned()),
    };
    Finding::error(code, about, found, help)
}

async fn options(
    session: &Session,
    keyspace: &str,
    table: &str,
) -> Result<CdcOptions, SourceError> {
    const WHAT: &str = "cannot read the table's cdc options";
    let mut statement = Statement::new(CDC_OPTIONS);
    statement.set_consistency(Level::One);
    let rows = session
        .query_unpaged(statement, (keyspace, table))
        .await
        .map_err(SourceError::execute(WHAT))?
        .into_rows_result()
        .map_err(|e| SourceError::answer(WHAT, e))?;
    CdcOptions::read(WHAT, &rows)
}

fn look_at_options(table: &str, options: &CdcOptions, settings: &Settings, into: &mut Examined) {
    if !options.enabled {
        into.findings.push(Finding::warning(
            "cdc",
            table,
            "change capture is switched off: only what the log still has is read",
            format!("ALTER TABLE {table} WITH cdc = {{'enabled': true}}"),
        ));
    }
    let Some(ttl) = options.ttl else {
        return;
    };
    into.ttl = Some(into.ttl.map_or(ttl, |known| known.min(ttl)));
    let horizon = settings.source.late_horizon;
    if ttl < SHORT_TTL.max(horizon * 2) {
        into.findings.push(Finding::warning(
            "ttl",
            table,
            format!(
                "its changes are gone after {}: a longer outage of either side loses them",
                humantime::format_duration(ttl)
            ),
            format!("ALTER TABLE {table} WITH cdc = {{'enabled': true, 'ttl': 86400}}"),
        ));
    }
}

/// A table's columns, the key's first and in its order.
fn schema(session: &Session, keyspace: &str, table: &str) -> Option<TableSchema> {
    let state = session.get_cluster_state();
    let found = state.get_keyspace(keyspace)?.tables.get(table)?;
    let base = schema::base(found);
    let mut columns: Vec<_> = base.iter().collect();
    let rank = |kind: ColumnKind| match kind {
        ColumnKind::PartitionKey => 0,
        ColumnKind::ClusteringKey => 1,
        _ => 2,
    };
    columns.sort_by_key(|(name, column)| (rank(column.kind), column.order, **name));
    let columns = columns.into_iter().map(|(name, column)| Column {
        name: (*name).to_owned(),
        cql_type: schema::type_text(column.typ),
        kind: column.kind,
    });
    Some(TableSchema {
        id: 1,
        keyspace: keyspace.to_owned(),
        name: table.to_owned(),
        columns: columns.collect(),
    })
}

/// What time a node thinks it is.
async fn skew(session: &Session, into: &mut Vec<Finding>) {
    let mut statement = Statement::new("SELECT now() FROM system.local");
    statement.set_consistency(Level::One);
    let sent = SystemTime::now();
    let Ok(result) = session.query_unpaged(statement, ()).await else {
        return;
    };
    let received = SystemTime::now();
    let Ok(rows) = result.into_rows_result() else {
        return;
    };
    let Ok((now,)) = rows.single_row::<(CqlTimeuuid,)>() else {
        return;
    };
    into.extend(differs(sent, timeuuid_us(now.as_ref()), received));
}

/// A clock that said `theirs` (µs since the Unix epoch) between the two times of this machine's.
fn differs(sent: SystemTime, theirs: i64, received: SystemTime) -> Option<Finding> {
    let micros = |at: SystemTime| {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    };
    // Between the two this machine's clock would have said the same.
    let off = (micros(sent) - theirs).max(theirs - micros(received));
    let off = Duration::from_micros(u64::try_from(off).ok()?);
    (off > SKEW).then(|| {
        Finding::warning(
            "clock",
            "ScyllaDB",
            format!(
                "its clock and this machine's differ by {:.1} s",
                off.as_secs_f64()
            ),
            "have both keep time by NTP: lags and headroom are told by this machine's clock",
        )
    })
}

/// Whether the consistency of the reads fits how often the keyspace is kept.
fn replication(session: &Session, source: &Source, into: &mut Vec<Finding>) {
    let state = session.get_cluster_state();
    let Some(keyspace) = state.get_keyspace(&source.keyspace) else {
        return;
    };
    let (copies, local) = match &keyspace.strategy {
        Strategy::SimpleStrategy { replication_factor } => {
            (*replication_factor, *replication_factor)
        }
        Strategy::NetworkTopologyStrategy {
            datacenter_repfactors: each,
        } => (
            each.values().sum(),
            each.values().copied().min().unwrap_or_default(),
        ),
        _ => return,
    };
    let needs = match source.consistency {
        Consistency::One | Consistency::LocalOne => 1,
        Consistency::Two => 2,
        Consistency::Three => 3,
        Consistency::Quorum => copies / 2 + 1,
        Consistency::LocalQuorum => local / 2 + 1,
        Consistency::All => copies,
    };
    let about = format!("keyspace {}", source.keyspace);
    if needs > copies {
        into.push(Finding::error(
            "consistency",
            about,
            format!("it keeps {copies} copies, and source.consistency needs {needs} to answer"),
            "set source.consistency = \"quorum\", or raise the replication factor",
        ));
    } else if copies > 1 && needs * 2 <= local.max(1) {
        into.push(Finding::warning(
            "consistency",
            about,
            format!(
                "it keeps {copies} copies, and one of them that answers may lack what was written at quorum"
            ),
            "set source.consistency = \"quorum\" or \"local-quorum\"",
        ));
    } else if copies > 1 && needs == copies && source.consistency != Consistency::All {
        into.push(Finding::warning(
            "consistency",
            about,
            format!(
                "it keeps {copies} copies, and all have to answer: one node down stops the reading"
            ),
            "keep three copies",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_differ_by_what_the_way_cannot_explain() {
        let at = |ms: u64| UNIX_EPOCH + Duration::from_millis(1_000_000 + ms);
        let found = |sent, theirs: i64, received| {
            let theirs = 1_000_000_000 + theirs * 1000;
            differs(at(sent), theirs, at(received)).map(|f| f.found)
        };
        assert_eq!(found(0, 900, 0), None, "within a second");
        assert_eq!(
            found(0, 5_500, 5_000),
            None,
            "the answer was long on its way"
        );
        let differ = |s: &str| Some(format!("its clock and this machine's differ by {s} s"));
        assert_eq!(found(0, 3_500, 1_000), differ("2.5"));
        assert_eq!(found(10_000, 4_000, 10_100), differ("6.0"));
    }
}
