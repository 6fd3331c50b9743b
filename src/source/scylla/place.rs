//! Where requests go: the data centre and the rack that they are pinned to, by the source and by the order service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use scylla::client::session::Session;
use scylla::policies::load_balancing::{DefaultPolicy, LoadBalancingPolicy};

use crate::config::settings::Source;

/// There is no node where requests are pinned to: the driver would only find nobody to ask.
pub(crate) struct NoSuchPlace {
    /// Data centre, and rack if one is named.
    pub(crate) wanted: String,
    /// The data centres that there are, each with its racks.
    pub(crate) there: String,
}

/// Without failover: another data centre may lag, and a log that is read there has holes.
pub(crate) fn policy(source: &Source) -> Arc<dyn LoadBalancingPolicy> {
    let asked = DefaultPolicy::builder();
    let asked = match (&source.datacenter, &source.rack) {
        (Some(dc), Some(rack)) => asked.prefer_datacenter_and_rack(dc.clone(), rack.clone()),
        (Some(dc), None) => asked.prefer_datacenter(dc.clone()),
        (None, _) => asked,
    };
    asked
        .permit_dc_failover(source.datacenter.is_none())
        .build()
}

/// The data centres that there are, each with its racks.
pub(super) fn places(session: &Session) -> BTreeMap<String, BTreeSet<String>> {
    let mut places = BTreeMap::<String, BTreeSet<String>>::new();
    for node in session.get_cluster_state().get_nodes_info() {
        let racks = places.entry(node.datacenter.clone().unwrap_or_default());
        racks.or_default().extend(node.rack.clone());
    }
    places
}

/// Whether there are nodes where requests are pinned to.
pub(crate) fn look(session: &Session, source: &Source) -> Result<(), NoSuchPlace> {
    let Some(dc) = &source.datacenter else {
        return Ok(());
    };
    let places = places(session);
    let racks = places.get(dc);
    let found = match &source.rack {
        Some(rack) => racks.is_some_and(|racks| racks.contains(rack)),
        None => racks.is_some(),
    };
    if found {
        return Ok(());
    }
    let there = places.iter().map(|(dc, racks)| {
        let racks: Vec<&str> = racks.iter().map(String::as_str).collect();
        format!("{dc} ({})", racks.join(", "))
    });
    Err(NoSuchPlace {
        wanted: match &source.rack {
            Some(rack) => format!("{dc} ({rack})"),
            None => dc.clone(),
        },
        there: there.collect::<Vec<_>>().join(", "),
    })
}
