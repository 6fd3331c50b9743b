//! Which shards are this instance's: all of them, or those that the consumer group gives it.
//!
//! The group's news come from a child that takes part in it ([`Stage::Membership`]). A shard that is assigned is opened
//! by a child of its own ([`Stage::Opening`]), however long the brokers are away, and then runs like any other; one that
//! goes to another instance is drained, committed and released before its partition is given back; one that is lost is
//! let go of at once. All others go on meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::child::{ChildId, Stage};
use super::handle::Phase;
use super::membership::Membership;
use super::pipeline::Pipeline;
use super::shard::Shard;
use super::shutdown::Signals;
use super::supervisor::{ChildScope, ChildSpec, on_a_thread};
use super::{Coordinator, Drained, Stopping, names};
use crate::config::settings::{Delivery, Instances};
use crate::crash::Crash;
use crate::policy::stage::StagePolicies;
use crate::sink::SinkError;
use crate::sink::redpanda::membership::{Assignment, Member, Standing};

/// News of the group that wait to be seen to; it has no more before the first has been.
const NEWS: usize = 16;

/// A shard that its child has opened.
struct Opened {
    /// Of [`Sharing::owned`]: what was opened for an earlier ownership is of no use.
    turn: u64,
    shard: Arc<Shard>,
}

/// The group's news, and what is ours.
pub(super) struct Sharing {
    changes: Option<mpsc::Receiver<Assignment>>,
    opened: (mpsc::Sender<Opened>, mpsc::Receiver<Opened>),
    pending: VecDeque<Todo>,
    /// Shards that go to others as soon as the process has drained, and who waits for it.
    going: Vec<oneshot::Sender<()>>,
    /// By shard, since which turn it is ours.
    owned: BTreeMap<u32, u64>,
    /// … and of which turn it is being opened.
    opening: BTreeMap<u32, u64>,
    turn: u64,
    /// Shards that others have taken, and whose children may still be here.
    taken: BTreeSet<u32>,
    member: Option<Arc<Member>>,
}

/// What is to be seen to.
enum Todo {
    /// The group decided something.
    Group(Assignment),
    /// The broker says that another producer has taken this shard, whatever the group says.
    Fenced(u32),
}

/// What [`Sharing::next`] heard.
pub(super) struct News(Heard);

enum Heard {
    Assignment(Assignment),
    Opened(Opened),
}

impl Sharing {
    pub(super) fn new() -> Self {
        Self {
            changes: None,
            opened: mpsc::channel(NEWS),
            pending: VecDeque::new(),
            going: Vec::new(),
            owned: BTreeMap::new(),
            opening: BTreeMap::new(),
            turn: 0,
            taken: BTreeSet::new(),
            member: None,
        }
    }

    /// Waits for news of the group. Cancel-safe.
    pub(super) async fn next(&mut self) -> News {
        let change = async {
            match &mut self.changes {
                Some(changes) => match changes.recv().await {
                    Some(change) => change,
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = change => News(Heard::Assignment(change)),
            Some(opened) = self.opened.1.recv() => News(Heard::Opened(opened)),
        }
    }

    /// Everything that ran here is drained: whatever others wait for is theirs.
    pub(super) fn settled(&mut self) {
        self.pending.clear();
        self.going.clear();
        self.taken.clear();
    }

    fn own(&mut self, shard: u32) {
        self.turn += 1;
        self.owned.insert(shard, self.turn);
    }
}

impl Coordinator {
    /// Whether this instance is one of several.
    pub(super) fn is_shared(&self) -> bool {
        self.live.borrow().pipeline.instances == Instances::Shared
    }

    /// The shards of a pipeline that are to be open here.
    pub(super) fn own_shards(&self, pipeline: &Pipeline) -> Vec<u32> {
        match self.is_shared() {
            true => self.sharing.owned.keys().copied().collect(),
            false => pipeline.numbers().collect(),
        }
    }

    /// Takes part in the group from here on. One that took part before leaves; what it owned is to be drained by then.
    pub(super) fn join(&mut self, member: Member) {
        if self.live.borrow().pipeline.delivery == Delivery::AtLeastOnce {
            tracing::warn!(
                "with delivery = \"at-least-once\" nothing keeps an instance that was held up from writing after its shards \
                 went to another, so keys may see older records again; \"exactly-once\" would do"
            );
        }
        self.supervisor.retire(|id| id.stage == Stage::Membership);
        let (changes, news) = mpsc::channel(NEWS);
        let membership = Arc::new(Membership::default());
        self.sharing.changes = Some(news);
        self.sharing.owned.clear();
        self.sharing.settled();
        let member = Arc::new(member);
        self.sharing.member = Some(member.clone());
        self.shared.set_membership(membership.clone());
        self.supervisor
            .start(ChildSpec::new(Stage::Membership, move |scope| {
                take_part(member.clone(), changes.clone(), membership.clone(), scope)
            }));
    }

    /// Whether the member that takes part would have to leave for this one to join.
    pub(super) fn joins_anew(&self, member: &Member) -> bool {
        self.sharing.member.as_deref() != Some(member)
    }

    /// Sees to every change of what is ours that was heard of.
    ///
    /// # Errors
    /// A stop was asked for meanwhile, or called for.
    pub(super) async fn see_to_shards(&mut self, signals: &mut Signals) -> Result<(), Stopping> {
        while let Some(todo) = self.sharing.pending.pop_front() {
            match todo {
                Todo::Group(change) => self.rebalance(change, signals).await?,
                Todo::Fenced(shard) => self.give_in(shard).await,
            }
        }
        Ok(())
    }

    /// Another process has taken over what a child works for. Where there is room for one process, this one ends;
    /// where several share, it lets go of the shard.
    pub(super) fn relieved(&mut self, child: &ChildId, cause: &str) -> Option<Stopping> {
        self.sharing.taken.extend(child.shard);
        match (self.is_shared(), child.shard) {
            (true, Some(shard)) => {
                tracing::warn!(%child, cause, "let go of a shard that another instance has taken");
                self.sharing.pending.push_back(Todo::Fenced(shard));
                None
            }
            _ => {
                tracing::error!(
                    %child,
                    cause,
                    "another process runs this pipeline, so this one stops: pipeline.instances is \"one\""
                );
                Some(Stopping::Fenced)
            }
        }
    }

    /// If the group stands by it that the shard is ours, whoever took it has yet to hear so: it is given a session's time,
    /// which is when it is no member any more.
    async fn give_in(&mut self, shard: u32) {
        self.sharing.taken.remove(&shard);
        self.let_shards_go(&BTreeSet::from([shard])).await;
        if self.sharing.owned.contains_key(&shard) {
            self.sharing.own(shard);
            let session = self.live.borrow().pipeline.session_timeout;
            self.open_missing(session);
        }
    }

    /// Lets go of the shards that others have taken: what their other children hold nobody here takes any more, and a drain
    /// would wait for it until its deadline.
    pub(super) async fn let_taken_go(&mut self) {
        let taken = std::mem::take(&mut self.sharing.taken);
        if !taken.is_empty() {
            self.let_shards_go(&taken).await;
        }
    }

    /// Sees to what was heard as far as that takes no time.
    pub(super) fn hear(&mut self, News(heard): News) {
        match heard {
            Heard::Assignment(change) => self.sharing.pending.push_back(Todo::Group(change)),
            Heard::Opened(opened) => self.opened(opened),
        }
    }

    /// While everything else goes on.
    async fn rebalance(
        &mut self,
        change: Assignment,
        signals: &mut Signals,
    ) -> Result<(), Stopping> {
        match change {
            Assignment::Assigned(shards) => {
                for shard in shards {
                    self.sharing.own(shard);
                }
                self.open_missing(Duration::ZERO);
                self.check_health();
                Ok(())
            }
            Assignment::Revoked {
                shards,
                until,
                done,
            } => self.hand_on(&shards, until, done, signals).await,
            Assignment::Lost(shards) => {
                self.disown(&shards);
                self.let_shards_go(&shards).await;
                tracing::warn!(?shards, "let go of lost shards");
                Ok(())
            }
        }
    }

    async fn hand_on(
        &mut self,
        shards: &BTreeSet<u32>,
        until: Instant,
        done: oneshot::Sender<()>,
        signals: &mut Signals,
    ) -> Result<(), Stopping> {
        let began = Instant::now();
        self.disown(shards);
        let pipeline = self.shared.pipeline();
        let open = pipeline.iter().flat_map(|p| p.shards());
        let open: Vec<Arc<Shard>> = open.filter(|s| shards.contains(&s.number)).collect();
        match self.drain_shards(&open, until.into(), signals).await {
            Drained::All => {}
            Drained::Late => {
                let of_shards = |id: &ChildId| open.iter().any(|s| s.owns(id));
                let unfinished = names(self.supervisor.unfinished(of_shards));
                tracing::warn!(
                    unfinished,
                    "not drained in time: the next owner goes on from the checkpoint"
                );
            }
            Drained::Stopped => {
                // They are drained with everything else.
                self.sharing.going.push(done);
                return Err(Stopping::Asked);
            }
        }
        Crash::MidHandOver.here();
        self.let_shards_go(shards).await;
        tracing::info!(?shards, took = ?began.elapsed(), "shards handed on");
        // Nobody waits for it any more if the group has lost patience.
        done.send(()).ok();
        match self.failed_for_good {
            true => Err(Stopping::Failed),
            false => Ok(()),
        }
    }

    fn disown(&mut self, shards: &BTreeSet<u32>) {
        self.sharing
            .owned
            .retain(|shard, _| !shards.contains(shard));
        if let Some(membership) = self.shared.membership() {
            membership
                .waiting
                .lock()
                .retain(|shard, _| !shards.contains(shard));
        }
    }

    /// Ends whatever works for these shards, and gives them up.
    async fn let_shards_go(&mut self, shards: &BTreeSet<u32>) {
        let of_shards = |id: &ChildId| id.shard.is_some_and(|s| shards.contains(&s));
        self.supervisor.remove(of_shards).await;
        if let Some(pipeline) = self.shared.pipeline() {
            for shard in shards {
                pipeline.release(*shard);
            }
        }
    }

    /// Gives up those shards of a pipeline that are not ours any more. None of their children runs.
    pub(super) fn release_others(&self, pipeline: &Pipeline) {
        let own = self.own_shards(pipeline);
        for shard in pipeline.shards() {
            if !own.contains(&shard.number) {
                pipeline.release(shard.number);
            }
        }
    }

    /// Has those of our shards opened, after this time, that are neither open nor being opened. Not while the pipeline is being replaced: the new one is
    /// asked for it.
    pub(super) fn open_missing(&mut self, after: Duration) {
        let Some(pipeline) = self.shared.pipeline() else {
            return;
        };
        if !self.is_shared() || self.shared.phase() != Phase::Running {
            return;
        }
        let Some(membership) = self.shared.membership() else {
            return;
        };
        let open: BTreeSet<u32> = pipeline.shards().iter().map(|s| s.number).collect();
        for (&number, &turn) in &self.sharing.owned {
            let id = ChildId::of_shard(Stage::Opening, number);
            let is_opening = self.sharing.opening.get(&number) == Some(&turn);
            if open.contains(&number) || is_opening {
                continue;
            }
            self.sharing.opening.insert(number, turn);
            let opening = Opening {
                pipeline: pipeline.clone(),
                number,
                turn,
                after,
                membership: membership.clone(),
                policies: self.policies.stage(&Stage::Sink),
                opened: self.sharing.opened.0.clone(),
            };
            self.supervisor.retire(|other| *other == id);
            self.supervisor
                .start(ChildSpec::new(id, move |scope| opening.clone().run(scope)));
        }
    }

    fn opened(&mut self, Opened { turn, shard }: Opened) {
        let number = shard.number;
        let opening = ChildId::of_shard(Stage::Opening, number);
        self.supervisor.retire(|id| *id == opening);
        let current = self.sharing.owned.get(&number) == Some(&turn);
        let (Some(pipeline), true, Phase::Running) =
            (self.shared.pipeline(), current, self.shared.phase())
        else {
            tracing::debug!(shard = number, "opened, and not ours any more");
            return;
        };
        Crash::MidTakeOver.here();
        for child in shard.children(&pipeline, &self.failed.0) {
            self.supervisor.start(child);
        }
        pipeline.adopt(shard);
        self.sharing.taken.remove(&number);
        tracing::info!(shard = number, "shard taken over");
    }

    /// Whatever is being opened is opened for a pipeline that another one replaces.
    pub(super) fn forget_openings(&mut self) {
        for turn in self.sharing.owned.values_mut() {
            self.sharing.turn += 1;
            *turn = self.sharing.turn;
        }
    }
}

/// What a child needs to open a shard.
#[derive(Clone)]
struct Opening {
    pipeline: Arc<Pipeline>,
    number: u32,
    turn: u64,
    after: Duration,
    membership: Arc<Membership>,
    policies: StagePolicies,
    opened: mpsc::Sender<Opened>,
}

impl Opening {
    async fn run(self, scope: ChildScope) -> anyhow::Result<()> {
        let shard = tokio::select! {
            shard = self.open() => shard?,
            () = scope.drain.cancelled() => return Ok(()),
        };
        let opened = Opened {
            turn: self.turn,
            shard: Arc::new(shard),
        };
        // Without a coordinator there is nobody to run it.
        self.opened.send(opened).await.ok();
        Ok(())
    }

    /// However long the brokers are away.
    async fn open(&self) -> Result<Shard, SinkError> {
        if !self.after.is_zero() {
            let why = "another instance has taken it".to_owned();
            self.membership.waiting.lock().insert(self.number, why);
            tokio::time::sleep(self.after).await;
        }
        let mut attempt = 0;
        loop {
            let error = match Shard::open(&self.pipeline, self.number).await {
                Ok(shard) => {
                    self.membership.waiting.lock().remove(&self.number);
                    return Ok(shard);
                }
                Err(error) => error,
            };
            let (reason, shard) = (error.to_string(), self.number);
            self.membership.waiting.lock().insert(shard, reason);
            if !error.heals() {
                return Err(error);
            }
            attempt += 1;
            tracing::warn!(shard, %error, attempt, "the shard could not be opened yet");
            if !self.policies.back_off(attempt).await {
                return Err(error);
            }
        }
    }
}

/// The child that takes part in the group, on a thread that may block.
async fn take_part(
    member: Arc<Member>,
    changes: mpsc::Sender<Assignment>,
    membership: Arc<Membership>,
    scope: ChildScope,
) -> anyhow::Result<()> {
    // An earlier one that panicked has told nobody that what it owned is gone.
    let owned = membership.standing.send_replace(Standing::default()).owned;
    if !owned.is_empty() {
        changes.send(Assignment::Lost(owned)).await?;
    }
    let takes_part = {
        let membership = membership.clone();
        on_a_thread(scope, move |stop| {
            member.take_part(&changes, &membership.standing, stop)
        })
    };
    tokio::select! {
        ended = takes_part => ended,
        never = membership.tell_of_waiting() => match never {},
    }
}
