//! The options after `WITH`.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use crate::{
    cql::ast::{self, PropertyValue},
    engine::{
        cdc,
        error::CqlError,
        schema::{TableOptions, TableSchema},
    },
};

pub(super) fn set_options(
    options: &mut TableOptions,
    properties: &ast::Properties,
) -> Result<(), CqlError> {
    const MAPS: [&str; 6] = [
        "caching",
        "compaction",
        "compression",
        "cdc",
        "tablets",
        "per_partition_rate_limit",
    ];
    const VALUES: [&str; 14] = [
        "bloom_filter_fp_chance",
        "crc_check_chance",
        "dclocal_read_repair_chance",
        "read_repair_chance",
        "max_index_interval",
        "memtable_flush_period_in_ms",
        "min_index_interval",
        "speculative_retry",
        "paxos_grace_seconds",
        "default_time_to_live",
        "gc_grace_seconds",
        "comment",
        "id",
        "synchronous_updates",
    ];
    for (name, value) in properties {
        let name = name.to_lowercase();
        match value {
            PropertyValue::Map(entries)
                if MAPS.contains(&name.as_str()) || name == "tombstone_gc" =>
            {
                let map: BTreeMap<String, String> = entries.iter().cloned().collect();
                match name.as_str() {
                    "cdc" => options.cdc = cdc::parse_options(&map)?,
                    "tombstone_gc" => {
                        let known = options.maps.entry(name).or_default();
                        known.extend(map);
                    }
                    "compaction" => drop(options.maps.insert(name, compaction(map)?)),
                    _ => drop(options.maps.insert(name, map)),
                }
            }
            PropertyValue::Text(text) if VALUES.contains(&name.as_str()) => {
                let seconds = || {
                    text.parse::<i32>().ok().filter(|n| *n >= 0).ok_or_else(|| {
                        CqlError::config(format!("Invalid integer value {text} for '{name}'"))
                    })
                };
                match name.as_str() {
                    "default_time_to_live" => options.default_ttl = seconds()?,
                    "gc_grace_seconds" => options.gc_grace_seconds = seconds()?,
                    "comment" => options.comment = text.clone(),
                    "speculative_retry" => {
                        options.values.insert(name, speculative_retry(text)?);
                    }
                    _ => drop(options.values.insert(name, text.clone())),
                }
            }
            _ if MAPS.contains(&name.as_str()) || VALUES.contains(&name.as_str()) => {
                return Err(CqlError::syntax(format!(
                    "Invalid value for property '{name}'"
                )));
            }
            _ => return Err(CqlError::syntax(format!("Unknown property '{name}'"))),
        }
    }
    Ok(())
}

/// A compaction strategy by its short name.
fn compaction(mut map: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, CqlError> {
    const PACKAGE: &str = "org.apache.cassandra.db.compaction.";
    let Some(class) = map.get_mut("class") else {
        return Err(CqlError::config(
            "Missing sub-option 'class' for the 'compaction' option.",
        ));
    };
    if let Some(short) = class.strip_prefix(PACKAGE) {
        *class = short.to_owned();
    }
    Ok(map)
}

/// `speculative_retry` as it is kept (`speculative_retry::from_sstring`).
fn speculative_retry(text: &str) -> Result<String, CqlError> {
    let upper = text.to_uppercase();
    let number = |suffix: &str| upper.strip_suffix(suffix).map(str::parse::<f64>);
    let unknown = || CqlError::config(format!("cannot convert {text} to speculative_retry"));
    if upper == "NONE" || upper == "ALWAYS" {
        return Ok(upper);
    }
    if let Some(percentile) = number("PERCENTILE") {
        let percentile = percentile.map_err(|_| unknown())?;
        if !(0.0..=100.0).contains(&percentile) {
            return Err(CqlError::config(format!(
                "Invalid value {text} for PERCENTILE option 'speculative_retry': must be between (0.0 and 100.0)"
            )));
        }
        return Ok(format!("{percentile:.1}PERCENTILE"));
    }
    match number("MS") {
        Some(Ok(ms)) if ms.is_finite() && ms >= 0.0 => Ok(format!("{ms:.2}ms")),
        _ => Err(unknown()),
    }
}

pub(super) fn sets(properties: &ast::Properties, name: &str) -> bool {
    properties.iter().any(|(n, _)| n.eq_ignore_ascii_case(name))
}

/// What an `ALTER TABLE` cannot set (`alter_table_statement::prepare_schema_update`).
pub(super) fn refuse_options(
    table: &TableSchema,
    properties: &ast::Properties,
) -> Result<(), CqlError> {
    if sets(properties, "id") {
        return Err(CqlError::config("Cannot alter table id."));
    }
    let text = |name: &str| {
        properties.iter().find_map(|(n, value)| match value {
            PropertyValue::Text(text) if n.eq_ignore_ascii_case(name) => Some(text.as_str()),
            _ => None,
        })
    };
    if table.counter && text("default_time_to_live").is_some_and(|t| t != "0") {
        return Err(CqlError::invalid(
            "Cannot set default_time_to_live on a table with counters",
        ));
    }
    Ok(())
}

pub(super) fn map_of(
    properties: &ast::Properties,
    name: &str,
) -> Result<Option<IndexMap<String, String>>, CqlError> {
    match properties
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
    {
        None => Ok(None),
        Some((_, PropertyValue::Map(entries))) => Ok(Some(entries.iter().cloned().collect())),
        Some((_, PropertyValue::Text(_))) => Err(CqlError::syntax(format!(
            "Invalid value for property '{name}'. It should be a map."
        ))),
    }
}
