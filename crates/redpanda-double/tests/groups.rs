//! Consumer groups behave as clients of Kafka's count on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ApiKey, CreateTopicsRequest, CreateTopicsResponse, GroupId, HeartbeatRequest,
    HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, OffsetCommitRequest,
    OffsetCommitResponse, SyncGroupRequest, SyncGroupResponse, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use redpanda_double::Broker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const MEMBER_ID_REQUIRED: i16 = 79;
const REBALANCE_IN_PROGRESS: i16 = 27;
const ILLEGAL_GENERATION: i16 = 22;
/// Far beyond what rounds take on a busy machine, and below the timeout of a rebalance.
const SOON: Duration = Duration::from_secs(40);

struct Member {
    connection: TcpStream,
    id: StrBytes,
    generation: i32,
}

impl Member {
    async fn connect(broker: &Broker) -> Self {
        Self {
            connection: TcpStream::connect(broker.addr()).await.unwrap(),
            id: StrBytes::default(),
            generation: -1,
        }
    }

    async fn ask<Q: Encodable, A: Decodable>(&mut self, key: ApiKey, version: i16, body: &Q) -> A {
        let mut frame = BytesMut::new();
        frame.extend((key as i16).to_be_bytes());
        frame.extend(version.to_be_bytes());
        frame.extend(7i32.to_be_bytes());
        frame.extend((-1i16).to_be_bytes());
        body.encode(&mut frame, version).unwrap();
        self.connection.write_u32(frame.len() as u32).await.unwrap();
        self.connection.write_all(&frame).await.unwrap();
        let len = self.connection.read_u32().await.unwrap();
        let mut answer = vec![0; len as usize];
        self.connection.read_exact(&mut answer).await.unwrap();
        let mut answer = Bytes::from(answer).slice(4..);
        A::decode(&mut answer, version).unwrap()
    }

    /// Joins, until a round is done.
    async fn join(&mut self) -> JoinGroupResponse {
        loop {
            let request = JoinGroupRequest::default()
                .with_group_id(group())
                .with_session_timeout_ms(60_000)
                .with_rebalance_timeout_ms(60_000)
                .with_member_id(self.id.clone())
                .with_protocol_type(StrBytes::from_static_str("consumer"))
                .with_protocols(vec![
                    JoinGroupRequestProtocol::default()
                        .with_name(StrBytes::from_static_str("range"))
                        .with_metadata(Bytes::from_static(b"same")),
                ]);
            let answer: JoinGroupResponse = self.ask(ApiKey::JoinGroup, 5, &request).await;
            self.id = answer.member_id.clone();
            self.generation = answer.generation_id;
            match answer.error_code {
                0 => return answer,
                MEMBER_ID_REQUIRED => {}
                other => panic!("joining: error {other}"),
            }
        }
    }

    /// Takes the round's assignment; `None`: another round has begun.
    async fn sync(&mut self, round: &JoinGroupResponse) -> Option<Bytes> {
        let all = round.members.iter().map(|m| {
            SyncGroupRequestAssignment::default()
                .with_member_id(m.member_id.clone())
                .with_assignment(Bytes::from(format!("for {}", m.member_id.as_str())))
        });
        let request = SyncGroupRequest::default()
            .with_group_id(group())
            .with_member_id(self.id.clone())
            .with_generation_id(self.generation)
            .with_assignments(all.collect());
        let answer: SyncGroupResponse = self.ask(ApiKey::SyncGroup, 3, &request).await;
        match answer.error_code {
            0 => Some(answer.assignment),
            REBALANCE_IN_PROGRESS | ILLEGAL_GENERATION => None,
            other => panic!("the assignment: error {other}"),
        }
    }

    /// A whole round, as often as it takes.
    async fn round(&mut self) -> JoinGroupResponse {
        loop {
            let joined = self.join().await;
            if let Some(assignment) = self.sync(&joined).await {
                assert_eq!(assignment, format!("for {}", self.id.as_str()));
                return joined;
            }
        }
    }

    async fn heartbeat(&mut self) -> i16 {
        let request = HeartbeatRequest::default()
            .with_group_id(group())
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone());
        let answer: HeartbeatResponse = self.ask(ApiKey::Heartbeat, 2, &request).await;
        answer.error_code
    }

    /// Commits an offset of partition 0 as of a generation.
    async fn commit(&mut self, generation: i32, offset: i64) -> i16 {
        let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
        let topic = OffsetCommitRequestTopic::default()
            .with_name(topic())
            .with_partitions(vec![partition]);
        let request = OffsetCommitRequest::default()
            .with_group_id(group())
            .with_generation_id_or_member_epoch(generation)
            .with_member_id(self.id.clone())
            .with_topics(vec![topic]);
        let answer: OffsetCommitResponse = self.ask(ApiKey::OffsetCommit, 7, &request).await;
        answer.topics[0].partitions[0].error_code
    }
}

fn group() -> GroupId {
    GroupId(StrBytes::from_static_str("g"))
}

fn topic() -> TopicName {
    TopicName(StrBytes::from_static_str("t"))
}

/// A cooperative rebalance: who has given something back joins again at once.
#[tokio::test(flavor = "multi_thread")]
async fn members_that_join_again_at_once_wedge_nobody() {
    let broker = Broker::start(ANY).await.unwrap();
    let mut members = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let mut member = Member::connect(&broker).await;
        members.spawn(async move {
            for _ in 0..15 {
                member.round().await;
            }
            // The others go on without this one.
            let request = kafka_protocol::messages::LeaveGroupRequest::default()
                .with_group_id(group())
                .with_member_id(member.id.clone());
            let _: kafka_protocol::messages::LeaveGroupResponse =
                member.ask(ApiKey::LeaveGroup, 2, &request).await;
        });
    }
    let all = timeout(SOON, async {
        while let Some(member) = members.join_next().await {
            member.unwrap();
        }
    });
    all.await.expect("a round that nobody ends");
    broker.shutdown().await;
}

/// Each of several that start together joins, and joins again whenever another has come: also right after a round of which
/// not all have heard.
#[tokio::test(flavor = "multi_thread")]
async fn members_that_start_together_share_one_round() {
    const MEMBERS: usize = 3;
    for start in [0, 5, 10, 15] {
        let broker = Broker::start(ANY).await.unwrap();
        let rounds = Arc::new(Mutex::new([-1; MEMBERS]));
        let mut members = tokio::task::JoinSet::new();
        for nth in 0..MEMBERS {
            let mut member = Member::connect(&broker).await;
            let rounds = Arc::clone(&rounds);
            members.spawn(async move {
                let are_one = || {
                    let rounds = rounds.lock().unwrap();
                    rounds[0] >= 0 && rounds.iter().all(|round| *round == rounds[0])
                };
                // The first hears of the second within 5 ms; the third comes soon after that.
                let after = [0, 30, 32 + start][nth];
                tokio::time::sleep(Duration::from_millis(after)).await;
                while !are_one() {
                    if member.generation < 0 || member.heartbeat().await == REBALANCE_IN_PROGRESS {
                        let joined = member.round().await;
                        rounds.lock().unwrap()[nth] = joined.generation_id;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        let all = timeout(SOON, async {
            while let Some(member) = members.join_next().await {
                member.unwrap();
            }
        });
        all.await.expect("a round that nobody ends");
        broker.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_partitions_back_may_commit_what_it_has_read() {
    let broker = Broker::start(ANY).await.unwrap();
    let mut first = Member::connect(&broker).await;
    let create = CreateTopicsRequest::default().with_topics(vec![
        CreatableTopic::default()
            .with_name(topic())
            .with_num_partitions(1)
            .with_replication_factor(1),
    ]);
    let _: CreateTopicsResponse = first.ask(ApiKey::CreateTopics, 2, &create).await;
    let joined = first.round().await;
    let before = joined.generation_id;
    assert_eq!(first.commit(before, 1).await, 0);
    assert_eq!(first.commit(before - 1, 1).await, ILLEGAL_GENERATION);
    let mut second = Member::connect(&broker).await;
    let second = tokio::spawn(async move {
        let joined = second.round().await;
        (second, joined)
    });
    timeout(SOON, async {
        while first.heartbeat().await != REBALANCE_IN_PROGRESS {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the rebalance is told of");
    // It revokes, commits, and only then joins again.
    assert_eq!(first.commit(before, 2).await, 0);
    let joined = first.round().await;
    let (mut second, theirs) = timeout(SOON, second).await.unwrap().unwrap();
    assert_eq!(joined.generation_id, theirs.generation_id);
    let members: BTreeSet<_> = joined
        .members
        .iter()
        .chain(&theirs.members)
        .collect::<Vec<_>>()
        .into_iter()
        .map(|m| m.member_id.as_str().to_owned())
        .collect();
    assert_eq!(members.len(), 2, "{members:?}");
    // Once it is done an old generation is one.
    assert_eq!(second.commit(before, 3).await, ILLEGAL_GENERATION);
    assert_eq!(second.commit(second.generation, 3).await, 0);
    broker.shutdown().await;
}
