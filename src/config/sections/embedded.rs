//! `[embedded]`: the stand-ins in the process.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use crate::config::key::Fallback::Value;
use crate::config::key::Kind;
use crate::config::key::ReloadClass::Refused;
use crate::config::section::section;

section! {
    /// `[embedded]`: the in-process stand-ins
    pub struct Embedded {
        /// Where the ScyllaDB stand-in listens; port 0: any
        scylla_listen: SocketAddr = { Kind::Address, Value(r#""127.0.0.1:0""#), Refused, r#""127.0.0.1:9042""# },
        /// Where the Redpanda stand-in listens; port 0: any
        redpanda_listen: SocketAddr = { Kind::Address, Value(r#""127.0.0.1:0""#), Refused, r#""127.0.0.1:9092""# },
        /// CQL streams of the stand-in are laid out as vnodes × shards
        vnodes: NonZeroU32 = { Kind::Int(1, 4096), Value("4"), Refused, "4" },
        /// Streams a vnode
        shards_per_vnode: NonZeroU32 = { Kind::Int(1, 256), Value("2"), Refused, "2" },
    }
}
