//! Keyspaces: where their rows are kept, and whether their tables are made of tablets.
//!
//! Rules and messages: ScyllaDB `cql3/statements/{ks_prop_defs,create_keyspace_statement,
//! alter_keyspace_statement}.cc`, `locator/*_strategy.cc`, `db/tablet_options.cc`.

use std::{collections::BTreeMap, sync::Arc};

use indexmap::IndexMap;

use super::{Done, check_name, options::map_of, writable};
use crate::{
    cql::ast::{self, PropertyValue},
    engine::{
        ChangeKind, ChangeTarget, Engine, State,
        consistency::{DATA_CENTRE, replicas},
        error::CqlError,
        schema::{KeyspaceSchema, TableOptions},
    },
};

const PACKAGE: &str = "org.apache.cassandra.locator.";
const BY_DATA_CENTRE: &str = "NetworkTopologyStrategy";

impl Engine {
    pub(super) fn create_keyspace(
        &self,
        state: &mut State,
        create: &ast::CreateKeyspace,
    ) -> Result<Done, CqlError> {
        let name = &create.name;
        writable(name)?;
        check_name("Keyspace", name)?;
        let durable_writes = durable_writes(&create.properties)?.unwrap_or(true);
        let replication = strategy(map_of(&create.properties, "replication")?.unwrap_or_default())?;
        let default = self.options().tablets_by_default.then_some(0);
        let tablets = tablets(&create.properties)?.unwrap_or(default);
        refuse_tablets(&replication, tablets)?;
        if state.schema.keyspaces.contains_key(name) {
            return if create.if_not_exists {
                Ok(Done::nothing())
            } else {
                Err(CqlError::keyspace_exists(name))
            };
        }
        let keyspace = KeyspaceSchema {
            name: name.clone(),
            replication,
            durable_writes,
            tablets,
            internal: false,
            tables: BTreeMap::new(),
            types: BTreeMap::new(),
        };
        state
            .schema
            .keyspaces
            .insert(name.clone(), Arc::new(keyspace));
        Ok(Done::one(
            ChangeKind::Created,
            ChangeTarget::Keyspace,
            name,
            "",
        ))
    }

    pub(super) fn drop_keyspace(
        &self,
        state: &mut State,
        name: &str,
        if_exists: bool,
    ) -> Result<Done, CqlError> {
        writable(name)?;
        let Some(keyspace) = state.schema.keyspaces.remove(name) else {
            if if_exists {
                return Ok(Done::nothing());
            }
            return Err(CqlError::config(format!(
                "Cannot drop non existing keyspace '{name}'."
            )));
        };
        for table in keyspace.tables.values() {
            self.forget(state, table);
        }
        Ok(Done::one(
            ChangeKind::Dropped,
            ChangeTarget::Keyspace,
            name,
            "",
        ))
    }

    /// How many tablets a table of a keyspace with tablets has by what the two ask for: a power of two, as
    /// ScyllaDB's load balancer makes it once it has come to rest.
    pub(super) fn wanted_tablets(&self, keyspace: &KeyspaceSchema, table: &TableOptions) -> u32 {
        /// What one tablet is to hold, GiB (`target_tablet_size_in_bytes`).
        const TABLET_GB: u64 = 5;
        let hint = |name: &str| table.maps.get("tablets").and_then(|hints| hints.get(name));
        let number = |name: &str| hint(name).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let initial = match keyspace.tablets {
            None | Some(0) => self.options().initial_tablets,
            Some(initial) => initial,
        };
        let by_shard = hint("min_per_shard_tablet_count").and_then(|n| n.parse::<f64>().ok());
        let by_size = number("expected_data_size_in_gb").div_ceil(TABLET_GB);
        // To clients the node has one shard.
        let least = [
            number("min_tablet_count"),
            by_size,
            by_shard.map_or(0, |n| n.ceil() as u64),
        ];
        let least = least.into_iter().fold(u64::from(initial), u64::max);
        let count = least.clamp(1, MAX_TABLETS).next_power_of_two();
        match number("max_tablet_count") {
            0 => count as u32,
            most => count.min(1 << most.ilog2()) as u32,
        }
    }
}

/// More tablets than any test has a use for.
const MAX_TABLETS: u64 = 1 << 16;

/// `durable_writes`, if it is given; unknown options are refused.
fn durable_writes(properties: &ast::Properties) -> Result<Option<bool>, CqlError> {
    let mut durable = None;
    for (name, value) in properties {
        match (name.to_lowercase().as_str(), value) {
            ("replication" | "tablets" | "storage" | "consistency", _) => {}
            ("durable_writes", PropertyValue::Text(text)) => {
                durable = Some(text.eq_ignore_ascii_case("true"))
            }
            _ => return Err(CqlError::syntax(format!("Unknown property '{name}'"))),
        }
    }
    Ok(durable)
}

/// The `tablets` clause, if there is one: whether tables are made of tablets, and of how many at first.
fn tablets(properties: &ast::Properties) -> Result<Option<Option<u32>>, CqlError> {
    let Some(mut options) = map_of(properties, "tablets")? else {
        return Ok(None);
    };
    match options.shift_remove("enabled").as_deref() {
        None | Some("true") => {}
        Some("false") => return Ok(Some(None)),
        Some(other) => {
            return Err(CqlError::config(format!(
                "Tablets enabled value must be true or false; found: {other}"
            )));
        }
    }
    let initial = options.shift_remove("initial");
    let initial = initial.map_or(Ok(0), |initial| {
        initial.parse().map_err(|_| {
            CqlError::config(format!(
                "Initial tablets value should be numeric; found {initial}"
            ))
        })
    })?;
    match options.keys().next() {
        Some(name) => Err(CqlError::config(format!(
            "Unrecognized tablets option {name}"
        ))),
        None => Ok(Some(Some(initial))),
    }
}

/// Refuses tablets where the strategy has none.
fn refuse_tablets(
    replication: &IndexMap<String, String>,
    tablets: Option<u32>,
) -> Result<(), CqlError> {
    let class = replication.get("class").map_or("", String::as_str);
    let short = class.strip_prefix(PACKAGE).unwrap_or(class);
    if tablets.is_none() || short == BY_DATA_CENTRE {
        return Ok(());
    }
    Err(CqlError::config(format!(
        "{short} doesn't support tablet replication"
    )))
}

/// Refuses a table that is made of tablets and wants more copies than there are nodes.
pub(super) fn enough_nodes(keyspace: &KeyspaceSchema) -> Result<(), CqlError> {
    let copies = replicas(keyspace);
    if keyspace.tablets.is_none() || copies <= 1 {
        return Ok(());
    }
    Err(CqlError::config(format!(
        "Datacenter {DATA_CENTRE} doesn't have enough token-owning nodes for replication_factor={copies}"
    )))
}

/// Checks the `tablets` option of a table.
pub(super) fn check_hints(
    keyspace: &KeyspaceSchema,
    hints: &BTreeMap<String, String>,
) -> Result<(), CqlError> {
    if keyspace.tablets.is_none() {
        return Err(CqlError::config(
            "tablet options cannot be used when tablets are disabled for the keyspace",
        ));
    }
    for (name, value) in hints {
        let fits = match name.as_str() {
            "min_tablet_count" | "expected_data_size_in_gb" => {
                value.parse().is_ok_and(|n: i64| n >= 0)
            }
            "max_tablet_count" => value.parse().is_ok_and(|n: i64| n > 0),
            "min_per_shard_tablet_count" => value.parse().is_ok_and(|n: f64| n >= 0.0),
            "pow2_count" => ["true", "yes", "1", "false", "no", "0"]
                .iter()
                .any(|known| known.eq_ignore_ascii_case(value)),
            _ => return Err(CqlError::syntax(format!("Unknown tablet hint '{name}'"))),
        };
        if !fits {
            return Err(CqlError::config(format!(
                "Invalid value '{value}' for {name}"
            )));
        }
    }
    let number = |name: &str| hints.get(name).and_then(|n| n.parse::<u64>().ok());
    if let (Some(least), Some(most)) = (number("min_tablet_count"), number("max_tablet_count")) {
        let (from, to) = (
            least.clamp(1, MAX_TABLETS).next_power_of_two(),
            1_u64 << most.max(1).ilog2(),
        );
        if from > to {
            return Err(CqlError::config(format!(
                "Invalid tablet count range: min_tablet_count={least} (effective: {from}) and max_tablet_count={most} \
                 (effective: {to}) result in conflicting constraints after rounding to powers of 2."
            )));
        }
    }
    Ok(())
}

fn factor(value: &str) -> Result<u32, CqlError> {
    value.parse().map_err(|_| {
        CqlError::config(format!(
            "Replication factor must be numeric and non-negative, found '{value}'"
        ))
    })
}

/// The replication as it is kept: the class by its full name, a factor for the one data centre.
fn strategy(
    mut replication: IndexMap<String, String>,
) -> Result<IndexMap<String, String>, CqlError> {
    let class = replication.shift_remove("class");
    let class = class.as_deref().unwrap_or(BY_DATA_CENTRE);
    let short = class.strip_prefix(PACKAGE).unwrap_or(class);
    let mut kept = IndexMap::from([("class".to_owned(), format!("{PACKAGE}{short}"))]);
    match short {
        "SimpleStrategy" => {
            let given = replication.get("replication_factor").ok_or_else(|| {
                CqlError::config("SimpleStrategy requires a replication_factor strategy option.")
            })?;
            factor(given)?;
            kept.extend(replication);
        }
        BY_DATA_CENTRE => {
            // It means "in each data centre", and so does nothing at all: one copy in each rack.
            let each = replication.shift_remove("replication_factor");
            if each.is_some() || replication.is_empty() {
                let each = each.unwrap_or_else(|| "1".to_owned());
                factor(&each)?;
                replication.entry(DATA_CENTRE.to_owned()).or_insert(each);
            }
            for (name, copies) in replication {
                if name != DATA_CENTRE {
                    return Err(CqlError::config(format!(
                        "Unrecognized strategy option {{{name}}} passed to {PACKAGE}{BY_DATA_CENTRE}"
                    )));
                }
                if factor(&copies)? > 0 {
                    kept.insert(name, copies);
                }
            }
        }
        "LocalStrategy" | "EverywhereStrategy" => kept.extend(replication),
        _ => {
            return Err(CqlError::config(format!(
                "Unable to find replication strategy class '{PACKAGE}{short}'"
            )));
        }
    }
    Ok(kept)
}

pub(super) fn alter_keyspace(
    state: &mut State,
    alter: &ast::AlterKeyspace,
) -> Result<Done, CqlError> {
    let name = &alter.name;
    writable(name)?;
    let Some(keyspace) = state.schema.keyspaces.get_mut(name) else {
        if alter.if_exists {
            return Ok(Done::nothing());
        }
        return Err(CqlError::invalid(format!("Unknown keyspace {name}")));
    };
    let replication = map_of(&alter.properties, "replication")?;
    if let Some(replication) = &replication {
        if !replication.contains_key("class") && !replication.is_empty() {
            return Err(CqlError::config("Missing replication strategy class"));
        }
        if keyspace.tablets.is_some() && replication.contains_key("replication_factor") {
            return Err(CqlError::invalid(
                "'replication_factor' tag is not allowed when executing ALTER KEYSPACE with tablets, please list the \
                 DCs explicitly",
            ));
        }
    }
    let replication = replication.map(strategy).transpose()?;
    let durable = durable_writes(&alter.properties)?;
    let tablets = tablets(&alter.properties)?.unwrap_or(keyspace.tablets);
    if tablets.is_some() != keyspace.tablets.is_some() {
        return Err(CqlError::invalid(
            "Cannot alter replication strategy vnode/tablets flavor",
        ));
    }
    let mut changed = KeyspaceSchema::clone(keyspace);
    if let Some(replication) = replication {
        changed.replication = replication;
    }
    refuse_tablets(&changed.replication, tablets)?;
    changed.tablets = tablets;
    if let Some(durable) = durable {
        changed.durable_writes = durable;
    }
    if replicas(&changed) > replicas(keyspace) {
        enough_nodes(&changed)?;
    }
    *keyspace = Arc::new(changed);
    Ok(Done::one(
        ChangeKind::Updated,
        ChangeTarget::Keyspace,
        name,
        "",
    ))
}
