//! Which aborted transactions a fetch answer tells of.
//!
//! A client of committed records drops what a listed producer wrote from the listed offset on, until it meets the marker
//! that ends that transaction. A broker therefore lists those only that end at or behind the offset asked for. `noida-db`
//! 0.2.3 lists every one that the partition ever had (`handle_fetch` in its `kafka/engine.rs`). Whoever reads from the
//! beginning meets the markers and sees all; whoever *follows*, and is past a marker already, drops all that this
//! producer commits from then on, for ever. So the ones that are over are taken out here.

use std::collections::HashMap;
use std::io;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{
    ApiKey, FetchRequest, FetchResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable};
use kafka_protocol::records::RecordBatchDecoder;
use noida::kafka::engine::Engine;
use parking_lot::Mutex;

/// `isolation.level=read_committed`; others are told of no aborted transactions.
const COMMITTED: i8 = 1;

/// What a client of committed records asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    version: i16,
    /// From which offset on.
    from: HashMap<(TopicName, i32), i64>,
}

/// An aborted transaction of a partition, by its producer and its first offset.
type Transaction = (TopicName, i32, i64, i64);

/// Knows where aborted transactions end.
pub(crate) struct Aborted {
    engine: Engine,
    /// The offset of its marker, which never changes while the topic is there. One each for what a partition keeps: its
    /// log is in memory too.
    ends: Mutex<HashMap<Transaction, i64>>,
}

impl Aborted {
    pub(crate) fn new(engine: Engine) -> Self {
        let ends = Mutex::default();
        Self { engine, ends }
    }

    /// A fetch as it was sent, without its length; `None`: it is not for committed records.
    pub(crate) fn asked(frame: Bytes) -> io::Result<Option<Asked>> {
        let mut rest = frame;
        let version = rest.get(2..4).ok_or_else(|| invalid("too short"))?;
        let version = i16::from_be_bytes([version[0], version[1]]);
        RequestHeader::decode(&mut rest, ApiKey::Fetch.request_header_version(version))
            .map_err(invalid)?;
        let request = FetchRequest::decode(&mut rest, version).map_err(invalid)?;
        let of_topic = |topic: FetchTopic| {
            let name = topic.topic;
            let from = move |p: FetchPartition| ((name.clone(), p.partition), p.fetch_offset);
            topic.partitions.into_iter().map(from)
        };
        let committed = request.isolation_level == COMMITTED;
        Ok(committed.then(|| Asked {
            version,
            from: request.topics.into_iter().flat_map(of_topic).collect(),
        }))
    }

    /// The answer, without its length, as it ought to be.
    pub(crate) fn mended(&self, frame: Bytes, asked: &Asked) -> io::Result<Bytes> {
        let (mut rest, version) = (frame.clone(), asked.version);
        let head = ApiKey::Fetch.response_header_version(version);
        let header = ResponseHeader::decode(&mut rest, head).map_err(invalid)?;
        let mut answer = FetchResponse::decode(&mut rest, version).map_err(invalid)?;
        let mut changed = false;
        for topic in &mut answer.responses {
            for partition in &mut topic.partitions {
                let place = (topic.topic.clone(), partition.partition_index);
                if let Some(&from) = asked.from.get(&place) {
                    changed |= self.only_those_ahead(place.0, partition, from);
                }
            }
        }
        if !changed {
            return Ok(frame);
        }
        let mut bytes = BytesMut::with_capacity(frame.remaining());
        header.encode(&mut bytes, head).map_err(invalid)?;
        answer.encode(&mut bytes, version).map_err(invalid)?;
        Ok(bytes.freeze())
    }

    /// Topics were deleted: others of their names have markers elsewhere.
    pub(crate) fn forget(&self) {
        self.ends.lock().clear();
    }

    fn only_those_ahead(&self, topic: TopicName, partition: &mut PartitionData, from: i64) -> bool {
        let index = partition.partition_index;
        let Some(listed) = &mut partition.aborted_transactions else {
            return false;
        };
        let before = listed.len();
        listed.retain(|one| {
            let first = one.first_offset;
            first >= from || {
                let end = self.end((topic.clone(), index, one.producer_id.0, first));
                end.is_none_or(|end| end >= from)
            }
        });
        listed.len() < before
    }

    /// Where a transaction's marker is: the first of its producer behind its beginning. `None`: not there yet.
    fn end(&self, transaction: Transaction) -> Option<i64> {
        if let Some(end) = self.ends.lock().get(&transaction) {
            return Some(*end);
        }
        let (topic, index, producer, first) = &transaction;
        let partition = FetchPartition::default()
            .with_partition(*index)
            .with_fetch_offset(*first);
        let topic = FetchTopic::default()
            .with_topic(topic.clone())
            .with_partitions(vec![partition]);
        let request = FetchRequest::default().with_topics(vec![topic]);
        let mut found = self.engine.handle_fetch(&request, 0);
        let mut records = found.responses.pop()?.partitions.pop()?.records?;
        let batches = RecordBatchDecoder::decode_batch_info(&mut records).ok()?;
        let is_end = |batch: &&_| {
            let batch: &kafka_protocol::records::BatchDecodeInfo = batch;
            batch.control && batch.producer_id == *producer && batch.min_offset > *first
        };
        let end = batches.iter().find(is_end)?.min_offset;
        self.ends.lock().insert(transaction, end);
        Some(end)
    }
}

fn invalid(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}
