//! Settings for tests that need a few of them and the rest to be there.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use penstock::config::settings::*;
use tokio::sync::watch;

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not zero")
}

/// A pipeline of this name with a sink at these brokers.
pub fn settings(name: &str, brokers: &str, shards: u32) -> Settings {
    Settings {
        pipeline: Pipeline {
            name: name.to_owned(),
            delivery: Delivery::AtLeastOnce,
            shards: n(shards),
            instances: Instances::One,
            session_timeout: Duration::from_secs(10),
            max_in_flight: n(10_000),
            batch_size: n(256),
        },
        source: Source {
            nodes: Nodes::Embedded,
            keyspace: "ks".into(),
            tables: vec!["t".into()],
            start_from: StartFrom::Earliest,
            poll_interval: Duration::from_millis(100),
            window: Duration::from_secs(10),
            safety_interval: Duration::from_secs(1),
            read_timeout: Duration::from_secs(10),
            page_size: n(1000),
            concurrency: n(4),
            consistency: Consistency::LocalQuorum,
            username: None,
            password: None,
            policies: Policies::default(),
        },
        transforms: Vec::new(),
        sink: Sink {
            brokers: Nodes::At(brokers.split(',').map(str::to_owned).collect()),
            properties: BTreeMap::new(),
            attempt_timeout: Duration::from_secs(10),
            topic: "{table}".into(),
            topics: Topics {
                create: true,
                partitions: n(4),
                replication_factor: None,
                properties: BTreeMap::new(),
            },
            checkpoint_interval: Duration::from_secs(1),
            commit_interval: Duration::from_millis(100),
            username: None,
            password: None,
            policies: Policies::default(),
        },
        dead_letter: DeadLetter {
            topic: format!("{name}.dead-letters"),
            max: n(100),
            within: Duration::from_secs(60),
            policies: Policies::default(),
        },
        orders: Orders {
            enabled: false,
            listen: ([127, 0, 0, 1], 0).into(),
            keyspace: "ks".into(),
            outbox_ttl: Duration::from_secs(86_400),
            request_timeout: Duration::from_secs(5),
            policies: Policies::default(),
        },
        admin: Admin {
            enabled: false,
            listen: ([127, 0, 0, 1], 0).into(),
            token: None,
            metrics_token: None,
        },
        health: Health {
            check_interval: Duration::from_secs(10),
            report_interval: Duration::from_secs(30),
            stalled_after: Duration::from_secs(60),
            critical: Vec::new(),
            headroom_degraded: 0.5,
            headroom_unhealthy: 0.2,
            open_breaker: OpenBreaker::Degraded,
        },
        shutdown: Shutdown {
            timeout: Duration::from_secs(30),
        },
        log: Log {
            filter: "info".into(),
            format: LogFormat::Text,
        },
        reload: Reload {
            watch: false,
            poll_interval: Duration::from_secs(10),
            debounce: Duration::from_millis(100),
        },
        embedded: Embedded {
            scylla_listen: ([127, 0, 0, 1], 0).into(),
            redpanda_listen: ([127, 0, 0, 1], 0).into(),
            vnodes: n(4),
            shards_per_vnode: n(2),
        },
    }
}

/// As the modules take them; the sender retunes.
pub fn live(settings: Settings) -> (watch::Sender<Arc<Settings>>, LiveSettings) {
    watch::channel(Arc::new(settings))
}
