//! One node of a transcript: a real [`Core`] with a small driver around it.
//!
//! The driver does what a daemon does (bodies, storage, state machine, messages), but only when a directive says so: outputs of the
//! core are staged until the node's Ready is processed. Where the transcripts' protocol leaves a choice that ours takes otherwise,
//! the driver makes theirs out of what a network and a clock may do at any time:
//!
//! - a pre-vote that was refused by enough is over;
//! - without pre-vote, the questions are answered with yes on the spot;
//! - without check-quorum, an election timeout passes at a voter before it is asked;
//! - a message of a passed term is answered only where they answer it; the answer may always be lost;
//! - a leader's first heartbeat is lost, because theirs sends none;
//! - a leader that is removed names an heir, and nobody hears it, because theirs names none;
//! - an answer to a heartbeat shows that the lane stands, so what was on its way is given up for lost;
//! - to forget its leader, a node is started again.

mod ready;
mod receive;
mod time;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use graven_raft::quorum::{self, Verdict};
use graven_raft::{
    Config, Core, HardState, Index, LogId, Membership, Message, NodeId, Output, ProgressState, ProposeError, Restored,
    Role, Term, Tick, Write, invariants,
};

use super::disk::Disk;
use super::wire::{Body, Item, Payload, Snapshot, Wire, kind_of};

/// One tick of a transcript in microseconds of the core, when somebody waits for time to pass.
const TICK_US: u64 = 1_000_000;
/// Three ticks: what transcripts have as the least election timeout.
pub(crate) const ELECTION_TICKS: u64 = 3;
const ELECTION_US: u64 = ELECTION_TICKS * TICK_US;
/// Longer than any transcript: appends, reads and the disk never time out by themselves.
const NEVER_US: u64 = 1 << 60;

/// How a node was created.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) inflight: usize,
    pub(crate) async_writes: bool,
    pub(crate) pre_vote: bool,
    pub(crate) check_quorum: bool,
    pub(crate) one_commit_per_ready: bool,
    pub(crate) unchecked_changes: bool,
    pub(crate) lease_reads: bool,
}

/// What a Ready prints of a node's standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) role: Role,
    pub(crate) leader: Option<NodeId>,
    pub(crate) hard: HardState,
    pub(crate) commit: Index,
}

/// Writes that go to the disk together, and what leaves after them.
#[derive(Debug, Default)]
struct Job {
    writes: Vec<(Write, Vec<Item>)>,
    after: Vec<Wire>,
}

/// When the node's patience with its leader ends, counted in ticks.
#[derive(Debug, Default)]
struct Timer {
    due: Option<Tick>,
    elapsed: u64,
    patience: u64,
    pinned: Option<u64>,
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) core: Core,
    pub(crate) options: Options,
    pub(crate) disk: Disk,
    /// The facts that the last Ready told.
    pub(crate) printed: Facts,
    /// The index of the snapshot that was last sent to each follower.
    pub(crate) sent_snapshots: BTreeMap<NodeId, Index>,
    /// When this node began to lead, or last looked who answers it: who was not heard since is inactive.
    pub(crate) active_since: Tick,
    /// Where the snapshot ends that was last installed here.
    pub(crate) installed: Index,
    /// Stopped leading because it was outside of the membership, in this term.
    pub(crate) led_outside: Option<Term>,
    /// Contradictions and alarms that no transcript expects.
    pub(crate) alarms: Vec<String>,
    clock: Tick,
    timer: Timer,
    bodies: BTreeMap<Index, Body>,
    incoming: BTreeMap<Index, Body>,
    messages: Vec<Wire>,
    job: Job,
    install: Option<(NodeId, Term, Snapshot)>,
    applying: Index,
    pub(crate) append_work: VecDeque<AppendWork>,
    pub(crate) apply_work: VecDeque<Vec<Item>>,
    /// What this node heard in its last pre-vote.
    pre_votes: BTreeMap<NodeId, bool>,
    /// Reported as unreachable, and not heard of since.
    lost_lanes: BTreeSet<NodeId>,
    /// Messages of the storage thread to this node that were not delivered yet.
    reports_under_way: usize,
    /// Heartbeats leave only when time made them.
    ticking: bool,
}

/// One job of the storage thread.
pub(crate) struct AppendWork(Job);

impl Node {
    pub(crate) fn new(id: NodeId, options: Options, bootstrap: Snapshot) -> Node {
        let base = bootstrap.id;
        let memberships = if base.index == Index(0) {
            Vec::new()
        } else {
            vec![(base.index, Membership { outgoing: Default::default(), ..bootstrap.membership.clone() })]
        };
        let restored = Restored {
            first: base.index.next(),
            base,
            last: base.index,
            memberships,
            commit: base.index,
            applied: base.index,
            ..Restored::default()
        };
        let clock = Tick(1);
        let core = Core::new(config(id, &options), restored, clock);
        let printed = facts_of(&core);
        let mut node = Node {
            id,
            core,
            options,
            disk: Disk::new(bootstrap),
            printed,
            sent_snapshots: BTreeMap::new(),
            active_since: clock,
            installed: Index(0),
            led_outside: None,
            alarms: Vec::new(),
            clock,
            timer: Timer::default(),
            bodies: BTreeMap::new(),
            incoming: BTreeMap::new(),
            messages: Vec::new(),
            job: Job::default(),
            install: None,
            applying: base.index,
            append_work: VecDeque::new(),
            apply_work: VecDeque::new(),
            pre_votes: BTreeMap::new(),
            lost_lanes: BTreeSet::new(),
            reports_under_way: 0,
            ticking: false,
        };
        node.drain();
        node
    }

    /// This node's standing, in the transcripts' words: theirs ends a pre-vote that cannot be won any more, ours goes on listening.
    pub(crate) fn facts(&self) -> Facts {
        let mut facts = facts_of(&self.core);
        let vote = |node| if node == self.id { Some(true) } else { self.pre_votes.get(&node).copied() };
        let lost = quorum::verdict(self.core.membership(), vote) == Some(Verdict::Lost);
        if facts.role == Role::PreCandidate && lost {
            facts.role = Role::Follower;
        }
        facts
    }

    /// Every membership this node knows of, by where it stands: of its log, and of the snapshots it applied or was sent.
    pub(crate) fn memberships(&self) -> BTreeMap<Index, &Membership> {
        let snapshots = self.disk.memberships();
        let bodies = self.bodies.iter().filter_map(|(&at, body)| Some((at, body.membership()?)));
        snapshots.chain(bodies).collect()
    }

    /// One input at the next moment; its outputs are staged.
    fn input<T>(&mut self, input: impl FnOnce(&mut Core, Tick) -> T) -> T {
        self.clock = self.clock.after(1);
        let before = self.core.clone();
        let result = input(&mut self.core, self.clock);
        self.drain();
        self.look(&before);
        result
    }

    /// What holds in every step of a core holds here too. A log may end in a term that its node has not seen: that is how
    /// transcripts begin, and it is over with the first term change.
    fn look(&mut self, before: &Core) {
        let born = self.core.term() < self.core.last_id().term;
        let state = if born { Ok(()) } else { invariants::check_state(&self.core) };
        if let Err(broken) = state.and_then(|()| invariants::check_step(before, &self.core)) {
            self.alarms.push(format!("node {}: {broken}", self.id));
        }
        if before.role() != Role::Leader && self.core.role() == Role::Leader {
            self.active_since = self.clock;
            self.timer.elapsed = 0;
        }
        let outside = !self.core.membership().contains(self.id);
        if before.role() == Role::Leader && self.core.role() == Role::Follower && outside {
            self.led_outside = Some(before.term());
        }
        if before.role() != self.core.role() || before.term() != self.core.term() {
            self.timer.pinned = None;
        }
    }

    fn drain(&mut self) {
        let mut appends = Vec::new();
        loop {
            while let Some(output) = self.core.poll() {
                match output {
                    Output::Send { message: Message::Heartbeat { .. }, .. } if !self.ticking => {}
                    Output::Send { message: Message::TimeoutNow { .. }, .. } if self.core.transferring().is_none() => {}
                    Output::Send { to, message } => {
                        let wire = self.wire(to, kind_of(&message), Payload::Message(message));
                        self.messages.push(wire);
                    }
                    Output::SendAfterPersist { to, message } => {
                        let wire = self.wire(to, kind_of(&message), Payload::Message(message));
                        self.job.after.push(wire);
                    }
                    Output::Noop { id } => {
                        self.incoming.insert(id.index, Body::Data(String::new()));
                    }
                    Output::Persist(write) => self.stage(write),
                    Output::Append { .. } => appends.push(output),
                    Output::Truncated { from } => {
                        self.bodies.split_off(&from);
                    }
                    Output::SnapshotNeeded { to } => {
                        let snapshot = self.snapshot_for(to);
                        self.messages.push(snapshot);
                    }
                    Output::Alarm(alarm) => self.alarms.push(format!("node {}: {alarm:?}", self.id)),
                    // Snapshots go their own way here.
                    Output::InstallOffered { .. }
                    | Output::Commit { .. }
                    | Output::Role { .. }
                    | Output::ReadReady { .. }
                    | Output::ReadFailed { .. }
                    | Output::TransferDone { .. } => {}
                }
            }
            if appends.is_empty() {
                break;
            }
            for append in std::mem::take(&mut appends) {
                self.feed(append);
            }
        }
        self.incoming.clear();
        self.note_timer();
    }

    fn wire(&self, to: NodeId, kind: &'static str, payload: Payload) -> Wire {
        Wire { from: self.id, to, kind, payload }
    }

    fn stage(&mut self, write: Write) {
        let mut items = Vec::new();
        if let Some(range) = write.entries.clone() {
            for index in range.start().0..=range.end().0 {
                let index = Index(index);
                if let Some(body) = self.incoming.remove(&index) {
                    self.bodies.insert(index, body);
                }
                items.extend(self.item(index));
            }
        }
        self.job.writes.push((write, items));
    }

    fn item(&self, index: Index) -> Option<Item> {
        let term = self.core.term_at(index)?;
        let body = self.bodies.get(&index).or_else(|| self.incoming.get(&index))?.clone();
        Some(Item { id: LogId { term, index }, body })
    }

    /// Attaches all there is and counts each append as one byte, so that bytes in flight are appends in flight.
    fn feed(&mut self, append: Output) {
        let Output::Append { to, prev, first, last, commit, request, epoch, term, .. } = append else { return };
        let items: Vec<Item> = (first.0..=last.0).filter_map(|index| self.item(Index(index))).collect();
        let end = items.last().map_or(prev.index, |item| item.id.index);
        let head = graven_raft::AppendHead { term, prev, prev_chain: 0, commit, request, epoch };
        let wire = self.wire(to, "MsgApp", Payload::Append(head, items));
        self.messages.push(wire);
        self.core.sent(self.clock, to, request, end, 1, epoch);
    }

    /// The newest state there is, for a follower that needs what is no longer in the log.
    pub(crate) fn snapshot_for(&mut self, to: NodeId) -> Wire {
        let snapshot = self.disk.newest().clone();
        self.sent_snapshots.insert(to, snapshot.id.index);
        self.wire(to, "MsgSnap", Payload::Snapshot(self.core.term(), snapshot))
    }

    pub(crate) fn propose(&mut self, body: Body) -> Result<(), String> {
        if self.core.role() != Role::Leader {
            let Some(leader) = self.core.leader() else { return Err("raft proposal dropped".to_owned()) };
            let wire = self.wire(leader, "MsgProp", Payload::Propose(body));
            self.messages.push(wire);
            return Ok(());
        }
        let meta = body.meta();
        if meta.membership.is_some() && !self.core.is_established() {
            // Ours changes no membership before an entry of its term is committed. Alone it needs no more than its own disk for that,
            // which writes at once.
            self.write_early();
        }
        // What is proposed is sent to everybody there, also where a lane was lost.
        for lost in std::mem::take(&mut self.lost_lanes) {
            self.input(|core, now| core.reachable(now, lost));
        }
        let index = self.core.last_id().index.next();
        self.incoming.insert(index, body);
        match self.input(|core, now| core.propose(now, meta)) {
            Ok(_) => Ok(()),
            Err(ProposeError::MembershipPending | ProposeError::MembershipUnsafe { .. }) => {
                // A change that may not be made now leaves an empty entry.
                self.propose(Body::Data(String::new()))
            }
            Err(_) => Err("raft proposal dropped".to_owned()),
        }
    }

    pub(crate) fn transfer(&mut self, to: NodeId) {
        if self.core.role() == Role::Leader {
            let begun = self.input(|core, now| core.transfer(now, to));
            if begun.is_ok() {
                self.timer.elapsed = 0;
            }
        }
    }

    pub(crate) fn report_unreachable(&mut self, to: NodeId) {
        let replicates = self.core.progress().any(|one| one.node == to && one.state == ProgressState::Replicate);
        if replicates {
            self.input(|core, now| core.unreachable(now, to));
            self.lost_lanes.insert(to);
        }
    }

    /// Gives up entries up to `last`, which is applied.
    pub(crate) fn compact(&mut self, last: Index) {
        self.disk.compact(last);
        self.input(|core, now| core.trimmed(now, last));
    }

    /// Starts the node again: it has its log, term and vote, and knows no leader. `false` when something is still to be written.
    pub(crate) fn forget_leader(&mut self) -> bool {
        if self.core.role() != Role::Follower || self.core.leader().is_none() || self.options.lease_reads {
            return true;
        }
        if self.core.oldest_unsynced().is_some() || self.install.is_some() {
            return false;
        }
        let (base, last) = (self.core.base(), self.core.last_id().index);
        let mut term_runs: Vec<(Term, Index)> = Vec::new();
        for index in (base.index.0 + 1..=last.0).map(Index) {
            let term = self.core.term_at(index).unwrap_or_default();
            if term_runs.last().is_none_or(|run| run.0 != term) {
                term_runs.push((term, index));
            }
        }
        let restored = Restored {
            hard_state: self.core.hard_state(),
            first: base.index.next(),
            base,
            term_runs,
            last,
            memberships: self.core.memberships().to_vec(),
            commit: self.core.commit(),
            applied: self.core.applied_index(),
        };
        self.core = Core::new(config(self.id, &self.options), restored, self.clock);
        // Its patience goes on from where it was.
        self.timer.due = self.election_due();
        self.drain();
        true
    }
}

fn config(id: NodeId, options: &Options) -> Config {
    Config {
        heartbeat_us: 1,
        election_us: ELECTION_US,
        append_timeout_us: NEVER_US,
        read_timeout_us: NEVER_US,
        window_bytes: u64::MAX,
        window_messages: options.inflight,
        disk_stall_us: NEVER_US,
        disk_dead_us: NEVER_US,
        ..Config::new(id, id.0)
    }
}

fn facts_of(core: &Core) -> Facts {
    Facts { role: core.role(), leader: core.leader(), hard: core.hard_state(), commit: core.commit() }
}
