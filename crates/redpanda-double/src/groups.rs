//! What consumer groups need beside what the broker does.
//!
//! - A request to join, or for an assignment, looks every 20 ms whether the group's round is done. A round that is done and
//!   begins anew between two looks is missed: whoever asked waits for a round that waits for it, until the rebalance times
//!   out. That meets members who join again at once (cooperative rebalances), and those of several that start together. So
//!   whoever goes on with a round, or begins the next one, waits until the others have heard of it.
//! - The generation is raised when a rebalance begins, where Kafka's is when it ends. So a member that commits before it
//!   gives its partitions back, as it should, was told that its generation is over: what it had read was read again by
//!   whoever got the partition. So its commit is given the group's generation.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiKey, DescribeGroupsRequest, GroupId, JoinGroupRequest, OffsetCommitRequest,
    OffsetCommitResponse, RequestHeader, SyncGroupRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable};
use noida::kafka::engine::Engine;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

/// How long whoever goes on waits for who may not have heard. Those look every 20 ms, on threads of their own; a group
/// in which somebody waits for something else is held up by this much.
const PATIENCE: Duration = Duration::from_secs(1);
/// Each member that leaves while the others join raises the generation once more: more at a time are not looked for.
const LEFT_AT_ONCE: i32 = 16;
/// Kafka's error codes.
const ILLEGAL_GENERATION: i16 = 22;

/// The requests of groups that are under way.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    waiting: Mutex<HashMap<(Wait, GroupId), usize>>,
    answered: Notify,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wait {
    Join,
    Sync,
}

/// A request that is under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    groups: Arc<Groups>,
    key: (Wait, GroupId),
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = self.groups.waiting.lock();
        if let Some(n) = waiting.get_mut(&self.key) {
            *n -= 1;
            if *n == 0 {
                waiting.remove(&self.key);
            }
        }
        self.groups.answered.notify_waiters();
    }
}

impl Groups {
    /// A request to join or for an assignment, as it was sent, without its length: returns when it may be passed on.
    pub(crate) async fn turn(
        self: &Arc<Self>,
        engine: &Engine,
        wait: Wait,
        frame: Bytes,
    ) -> io::Result<Waiting> {
        let group = match wait {
            Wait::Join => {
                decode::<JoinGroupRequest>(frame, ApiKey::JoinGroup)?
                    .2
                    .group_id
            }
            Wait::Sync => {
                decode::<SyncGroupRequest>(frame, ApiKey::SyncGroup)?
                    .2
                    .group_id
            }
        };
        let heard = async {
            loop {
                let answered = self.answered.notified();
                if !self.keeps(engine, wait, &group) {
                    return;
                }
                answered.await;
            }
        };
        // Past it the round is not what they wait for.
        drop(timeout(PATIENCE, heard).await);
        let key = (wait, group);
        *self.waiting.lock().entry(key.clone()).or_default() += 1;
        Ok(Waiting {
            groups: self.clone(),
            key,
        })
    }

    /// Whether others have yet to hear of a round that such a request would go on from.
    fn keeps(&self, engine: &Engine, wait: Wait, group: &GroupId) -> bool {
        let is_waiting = |wait| self.waiting.lock().contains_key(&(wait, group.clone()));
        // Who waits for an assignment has joined; who still waits for a round that is over has not heard so. While one is
        // under way, it is this request that the others wait for.
        match wait {
            Wait::Join => {
                is_waiting(Wait::Sync) || is_waiting(Wait::Join) && !rebalances(engine, group)
            }
            Wait::Sync => is_waiting(Wait::Join),
        }
    }
}

/// A commit of offsets, without its length, as it ought to be.
pub(crate) fn commit(engine: &Engine, frame: Bytes) -> io::Result<Bytes> {
    let (header, version, mut request) =
        decode::<OffsetCommitRequest>(frame.clone(), ApiKey::OffsetCommit)?;
    let generation = request.generation_id_or_member_epoch;
    if generation < 0 || !rebalances(engine, &request.group_id) {
        return Ok(frame);
    }
    for newer in generation..=generation.saturating_add(LEFT_AT_ONCE) {
        request.generation_id_or_member_epoch = newer;
        // It is taken here, and then once more, in its turn: the same offsets.
        if !refused(&engine.handle_offset_commit(&request, version)) {
            if newer == generation {
                return Ok(frame);
            }
            let mut mended = BytesMut::new();
            let head = ApiKey::OffsetCommit.request_header_version(version);
            header.encode(&mut mended, head).map_err(invalid)?;
            request.encode(&mut mended, version).map_err(invalid)?;
            return Ok(mended.freeze());
        }
    }
    Ok(frame)
}

/// Whether its members are joining.
fn rebalances(engine: &Engine, group: &GroupId) -> bool {
    let asked = DescribeGroupsRequest::default().with_groups(vec![group.clone()]);
    let found = engine.handle_describe_groups(&asked, 0);
    found
        .groups
        .iter()
        .any(|g| g.group_state.as_str() == "PreparingRebalance")
}

fn refused(answer: &OffsetCommitResponse) -> bool {
    let mut partitions = answer.topics.iter().flat_map(|t| &t.partitions);
    partitions.any(|p| p.error_code == ILLEGAL_GENERATION)
}

fn decode<R: Decodable>(frame: Bytes, key: ApiKey) -> io::Result<(RequestHeader, i16, R)> {
    let mut rest = frame;
    let version = rest.get(2..4).ok_or_else(|| invalid("too short"))?;
    let version = i16::from_be_bytes([version[0], version[1]]);
    let head = key.request_header_version(version);
    let header = RequestHeader::decode(&mut rest, head).map_err(invalid)?;
    let request = R::decode(&mut rest, version).map_err(invalid)?;
    Ok((header, version, request))
}

fn invalid(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}
