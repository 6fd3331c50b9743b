//! `[pipeline]`: what the pipeline as a whole is.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::config::key::Fallback::{Absent, Required, Value};
use crate::config::key::Kind;
use crate::config::key::ReloadClass::{Live, Rebuild, Refused};
use crate::config::rules;
use crate::config::section::section;
use crate::words::{Word, words};

words! {
    /// `pipeline.delivery`
    pub enum Delivery {
        /// Records and checkpoint in one transaction. Refused by validation until it is built.
        ExactlyOnce = "exactly-once",
        /// A crash may repeat records.
        AtLeastOnce = "at-least-once",
    }
}

words! {
    /// `pipeline.instances`
    pub enum Instances {
        /// One alone, which has every shard.
        One = "one",
        /// As many as are started: they share the shards.
        Shared = "shared",
    }
}

section! {
    /// `[pipeline]`
    pub struct Pipeline {
        /// Names the topics, the consumer group and the transactions of this pipeline; two pipelines on one
        /// Redpanda must differ in it
        name: String = { Kind::Text(rules::pipeline_name), Required, Refused, r#""orders""# },
        /// What a crash may cost: exactly-once neither loses nor repeats, for readers with
        /// isolation.level=read_committed; at-least-once may repeat records
        delivery: Delivery = { Kind::Choice(Delivery::WORDS), Value(r#""exactly-once""#), Rebuild, r#""exactly-once""# },
        /// Ordered lanes from source to sink, and partitions of the checkpoint topic; instances share them
        shards: NonZeroU32 = { Kind::Int(1, 1024), Value("4"), Rebuild, "4" },
        /// Who runs this pipeline: one process alone, which has every shard, or as many as are started, which share
        /// the shards out by a consumer group
        instances: Instances = { Kind::Choice(Instances::WORDS), Value(r#""one""#), Refused, r#""shared""# },
        /// With instances = "shared": how long an instance may be silent before its shards go to the others; the
        /// brokers bound it too
        session_timeout: Duration = { Kind::Duration(6_000, 300_000), Value(r#""10s""#), Rebuild, r#""10s""# },
        /// With instances = "shared": makes this instance a static member of the group under this id, of which each
        /// instance needs its own: a restart within session_timeout moves no shard, and a stop leaves its shards with
        /// nobody for as long
        group_instance_id: Option<String> = { Kind::Text(rules::group_instance_id), Absent, Rebuild, r#""penstock-0""# },
        /// The most changes that one shard holds unacknowledged; bounds memory
        max_in_flight: NonZeroU32 = { Kind::Int(1, 1_000_000), Value("10000"), Live, "10000" },
        /// The most changes handed on together
        batch_size: NonZeroU32 = { Kind::Int(1, 100_000), Value("500"), Live, "500" },
    }
}
