//! A whole cluster in one thread: network, disks and clock are lists of things that will happen.
//!
//! Each node's disk keeps what was synced; what was not is lost in a crash, but for a prefix that made it by luck. After every input
//! to a core the crate's own invariants run; what spans nodes (Raft paper, figure 3) is checked here:
//! election safety when a leader is announced, leader completeness then too, log matching when a log changes, state machine
//! safety when a commit is announced.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use graven_raft::*;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

pub(crate) const MS: u64 = 1_000;

/// The seed to run alone, from `GRAVEN_RAFT_SEED`.
pub(crate) fn alone() -> Option<u64> {
    std::env::var("GRAVEN_RAFT_SEED").ok().and_then(|seed| seed.parse().ok())
}

/// The seeds of a random test: `count` from `first` on, twenty times as many under `GRAVEN_LONG=1`, or the one that runs alone.
pub(crate) fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    let times = if std::env::var("GRAVEN_LONG").is_ok_and(|value| value == "1") { 20 } else { 1 };
    alone().map_or(first..first + count * times, |seed| seed..seed + 1)
}

pub(crate) fn n(id: u64) -> NodeId {
    NodeId(id)
}

pub(crate) fn id(index: u64, term: u64) -> LogId {
    LogId { term: Term(term), index: Index(index) }
}

pub(crate) fn entry(index: u64, term: u64) -> Entry {
    Entry { id: id(index, term), meta: records() }
}

pub(crate) fn records() -> EntryMeta {
    EntryMeta::plain(EntryKind::Records, 100)
}

/// A core of node 1 whose log has these terms, in a cluster of `voters`, with everything durable.
pub(crate) fn core_of(voters: u64, terms: &[u64], hard: HardState) -> Core {
    let mut term_runs: Vec<(Term, Index)> = Vec::new();
    for (at, &term) in terms.iter().enumerate() {
        if term_runs.last().is_none_or(|run| run.0 != Term(term)) {
            term_runs.push((Term(term), Index(at as u64 + 1)));
        }
    }
    let restored = Restored {
        hard_state: hard,
        first: Index(1),
        term_runs,
        last: Index(terms.len() as u64),
        memberships: vec![(Index(1), Membership::of_voters((1..=voters).map(NodeId)))],
        ..Restored::default()
    };
    Core::new(Config::new(NodeId(1), 7), restored, Tick(0))
}

pub(crate) fn hard(term: u64) -> HardState {
    HardState { term: Term(term), vote: None }
}

pub(crate) fn head(term: u64, prev: LogId, commit: u64) -> AppendHead {
    AppendHead { term: Term(term), prev, prev_chain: 0, commit: Index(commit), request: 1, epoch: 1 }
}

/// Reports every persist among `outputs` as durable.
pub(crate) fn sync(core: &mut Core, now: Tick, outputs: &[Output]) {
    for output in outputs {
        if let Output::Persist(write) = output {
            core.durable(now, write.term, write.last);
        }
    }
}

/// Wins an election against nobody's resistance: node 2 says yes to everything.
pub(crate) fn lead(core: &mut Core, now: Tick) {
    core.tick(now);
    let campaign = core.term().next();
    core.receive(now, n(2), Message::PreVoteReply { term: core.term(), campaign, granted: true });
    let outputs = drain(core);
    sync(core, now, &outputs);
    core.receive(now, n(2), Message::VoteReply { term: core.term(), granted: true });
    assert_eq!(core.role(), Role::Leader);
}

pub(crate) fn drain(core: &mut Core) -> Vec<Output> {
    std::iter::from_fn(|| core.poll()).collect()
}

#[derive(Debug, Clone)]
pub(crate) enum Body {
    Message(Message),
    Append(AppendHead, Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) at: Tick,
    order: u64,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) body: Body,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) hard: HardState,
    pub(crate) base: LogId,
    pub(crate) base_membership: Option<(Index, Membership)>,
    pub(crate) entries: Vec<Entry>,
}

impl Disk {
    fn write(&mut self, write: &Write, entries: &[Entry]) {
        if let Some(hard) = write.hard_state {
            self.hard = hard;
        }
        if let Some(first) = entries.first() {
            self.entries.retain(|held| held.id.index < first.id.index);
            self.entries.extend_from_slice(entries);
        }
    }

    pub(crate) fn last(&self) -> LogId {
        self.entries.last().map_or(self.base, |entry| entry.id)
    }

    fn restored(&self, commit: Index) -> Restored {
        let mut term_runs: Vec<(Term, Index)> = Vec::new();
        let mut memberships: Vec<(Index, Membership)> = self.base_membership.clone().into_iter().collect();
        for entry in &self.entries {
            if term_runs.last().is_none_or(|run| run.0 != entry.id.term) {
                term_runs.push((entry.id.term, entry.id.index));
            }
            if let Some(membership) = &entry.meta.membership {
                memberships.push((entry.id.index, membership.clone()));
            }
        }
        Restored {
            hard_state: self.hard,
            first: self.base.index.next(),
            base: self.base,
            term_runs,
            last: self.last().index,
            memberships,
            commit: commit.min(self.last().index).max(self.base.index),
            applied: self.base.index,
        }
    }
}

#[derive(Debug)]
struct Unsynced {
    done: Tick,
    write: Write,
    entries: Vec<Entry>,
    after: Vec<(NodeId, Message)>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) core: Option<Core>,
    pub(crate) disk: Disk,
    /// The log as the driver sees it: written, perhaps not synced.
    pub(crate) view: Vec<Entry>,
    staged: BTreeMap<Index, Entry>,
    unsynced: VecDeque<Unsynced>,
    pub(crate) sync_us: u64,
    pub(crate) told: Vec<Output>,
    pub(crate) alarms: Vec<Alarm>,
    pub(crate) lives: u64,
    /// Roles in the order they were taken in this life, with their terms.
    pub(crate) roles: Vec<(Role, Term)>,
}

impl Node {
    pub(crate) fn held(&self, index: Index) -> Option<&Entry> {
        let first = self.view.first()?.id.index;
        self.view.get(index.0.checked_sub(first.0)? as usize)
    }
}

pub(crate) struct Cluster {
    pub(crate) now: Tick,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) packets: Vec<Packet>,
    order: u64,
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    pub(crate) latency_us: std::ops::Range<u64>,
    pub(crate) drop_percent: u32,
    pub(crate) double_percent: u32,
    pub(crate) random_sync: bool,
    pub(crate) rng: Xoshiro256PlusPlus,
    pub(crate) configure: fn(&mut Config),
    pub(crate) leaders: BTreeMap<Term, NodeId>,
    pub(crate) committed: Vec<LogId>,
    pub(crate) seed: u64,
    /// Appends sent, by receiver.
    pub(crate) appends: BTreeMap<NodeId, u64>,
    asked: BTreeMap<u64, u64>,
    pub(crate) reads_done: u64,
}

impl Cluster {
    /// `size` voters, each with the first membership entry durable, all started.
    pub(crate) fn new(size: u64, seed: u64) -> Self {
        Self::with(size, seed, |_| {})
    }

    pub(crate) fn with(size: u64, seed: u64, configure: fn(&mut Config)) -> Self {
        let first = Entry {
            id: id(1, 1),
            meta: EntryMeta {
                kind: EntryKind::Membership,
                bytes: 100,
                membership: Some(Membership::of_voters((1..=size).map(NodeId))),
            },
        };
        let disks = (1..=size).map(|node| {
            let hard = HardState { term: Term(1), vote: None };
            let disk = Disk { hard, entries: vec![first.clone()], ..Disk::default() };
            (NodeId(node), disk)
        });
        Self::from_disks(disks.collect(), seed, configure)
    }

    pub(crate) fn from_disks(disks: BTreeMap<NodeId, Disk>, seed: u64, configure: fn(&mut Config)) -> Self {
        let mut cluster = Self {
            now: Tick(1_000_000),
            nodes: BTreeMap::new(),
            packets: Vec::new(),
            order: 0,
            cut: BTreeSet::new(),
            latency_us: 1_000..1_001,
            drop_percent: 0,
            double_percent: 0,
            random_sync: false,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            configure,
            leaders: BTreeMap::new(),
            committed: Vec::new(),
            seed,
            appends: BTreeMap::new(),
            asked: BTreeMap::new(),
            reads_done: 0,
        };
        for (node, disk) in disks {
            cluster.add(node, disk);
        }
        cluster
    }

    pub(crate) fn add(&mut self, node: NodeId, disk: Disk) {
        let entry = Node {
            core: None,
            disk,
            view: Vec::new(),
            staged: BTreeMap::new(),
            unsynced: VecDeque::new(),
            sync_us: 500,
            told: Vec::new(),
            alarms: Vec::new(),
            lives: 0,
            roles: Vec::new(),
        };
        self.nodes.insert(node, entry);
        self.start(node, Index(0));
    }

    pub(crate) fn start(&mut self, node: NodeId, commit: Index) {
        let (seed, configure, now) = (self.seed, self.configure, self.now);
        let state = self.nodes.get_mut(&node).unwrap();
        state.lives += 1;
        state.roles = vec![(Role::Follower, state.disk.hard.term)];
        let mut config = Config::new(node, seed ^ (node.0 << 32) ^ (state.lives << 48));
        configure(&mut config);
        state.view = state.disk.entries.clone();
        state.core = Some(Core::new(config, state.disk.restored(commit), now));
        self.drain(node);
    }

    /// Power fails: of what was not synced some prefix may have reached the disk, unreported.
    pub(crate) fn crash(&mut self, node: NodeId) {
        let lucky = self.rng.random_range(0..=self.nodes[&node].unsynced.len());
        let state = self.nodes.get_mut(&node).unwrap();
        for unsynced in state.unsynced.drain(..).take(lucky) {
            state.disk.write(&unsynced.write, &unsynced.entries);
        }
        state.staged.clear();
        state.core = None;
    }

    pub(crate) fn core(&self, node: u64) -> &Core {
        self.nodes[&NodeId(node)].core.as_ref().unwrap()
    }

    /// One input to one core, with every check there is around it. `None` when the node is down.
    pub(crate) fn input<T>(&mut self, node: NodeId, input: impl FnOnce(&mut Core, Tick) -> T) -> Option<T> {
        let (now, seed) = (self.now, self.seed);
        let core = self.nodes.get_mut(&node)?.core.as_mut()?;
        let before = core.clone();
        let answer = input(core, now);
        let checked = invariants::check_state(core).and_then(|()| invariants::check_step(&before, core));
        assert_eq!(checked, Ok(()), "seed {seed}: node {node} at {now:?}");
        self.drain(node);
        Some(answer)
    }

    fn drain(&mut self, node: NodeId) {
        while let Some(output) = self.nodes.get_mut(&node).unwrap().core.as_mut().and_then(Core::poll) {
            self.perform(node, output);
        }
    }

    fn perform(&mut self, node: NodeId, output: Output) {
        let sync = if self.random_sync { self.rng.random_range(100..20_000) } else { self.nodes[&node].sync_us };
        let now = self.now;
        let state = self.nodes.get_mut(&node).unwrap();
        if let Output::Role { role, term, .. } = output {
            state.roles.push((role, term));
        }
        match output {
            Output::Send { to, message } => self.post(node, to, Body::Message(message)),
            Output::SendAfterPersist { to, message } => match state.unsynced.back_mut() {
                Some(last) => last.after.push((to, message)),
                None => self.post(node, to, Body::Message(message)),
            },
            Output::Noop { id } => {
                state.staged.insert(id.index, Entry { id, meta: EntryMeta::plain(EntryKind::Noop, 100) });
            }
            Output::Truncated { from } => state.view.retain(|entry| entry.id.index < from),
            Output::Persist(write) => {
                let range = write.entries.clone();
                let entries: Vec<Entry> = range
                    .into_iter()
                    .flat_map(|range| range.start().0..=range.end().0)
                    .map(|index| state.staged[&Index(index)].clone())
                    .collect();
                if let Some(first) = entries.first() {
                    let end = state.view.last().map_or(state.disk.base.index, |entry| entry.id.index);
                    assert_eq!(first.id.index, end.next(), "a superseding write without Truncated");
                    state.view.extend_from_slice(&entries);
                }
                let done = state.unsynced.back().map_or(now, |last| last.done).max(now).after(sync);
                state.unsynced.push_back(Unsynced { done, write, entries, after: Vec::new() });
                self.check_log_matching(node);
            }
            Output::Append { to, prev, first, last, max_bytes, commit, request, epoch, term } => {
                let mut bytes = 0;
                let wanted = state.view.iter().filter(|entry| (first..=last).contains(&entry.id.index));
                let fits = |entry: &&Entry| {
                    let fits = bytes == 0 || bytes + u64::from(entry.meta.bytes) <= max_bytes;
                    bytes += if fits { u64::from(entry.meta.bytes) } else { 0 };
                    fits
                };
                let entries: Vec<Entry> = wanted.take_while(fits).cloned().collect();
                let end = entries.last().map_or(prev.index, |entry| entry.id.index);
                let head = AppendHead { term, prev, prev_chain: 0, commit, request, epoch };
                *self.appends.entry(to).or_default() += 1;
                self.post(node, to, Body::Append(head, entries));
                self.input(node, |core, now| core.sent(now, to, request, end, bytes, epoch));
            }
            Output::Commit { up_to } => self.on_commit(node, up_to),
            Output::Role { role: Role::Leader, term, .. } => self.on_leader(node, term),
            Output::ReadReady { id, index } => {
                let floor = self.asked.remove(&id).unwrap_or(0);
                assert!(
                    index.0 >= floor,
                    "seed {}: read {id} at {index}, {floor} was committed when it began",
                    self.seed
                );
                self.reads_done += 1;
                self.nodes.get_mut(&node).unwrap().told.push(Output::ReadReady { id, index });
            }
            Output::Alarm(alarm) => state.alarms.push(alarm),
            output => state.told.push(output),
        }
    }

    fn post(&mut self, from: NodeId, to: NodeId, body: Body) {
        if self.cut.contains(&(from, to)) || self.rng.random_range(0..100) < self.drop_percent {
            return;
        }
        let copies = if self.rng.random_range(0..100) < self.double_percent { 2 } else { 1 };
        for _ in 0..copies {
            let at = self.now.after(self.rng.random_range(self.latency_us.clone()));
            self.order += 1;
            self.packets.push(Packet { at, order: self.order, from, to, body: body.clone() });
        }
    }

    /// State machine safety: what one node commits at an index, every node commits there.
    fn on_commit(&mut self, node: NodeId, up_to: Index) {
        let state = &self.nodes[&node];
        let applied = state.core.as_ref().map_or(0, |core| core.applied_index().0);
        for index in applied + 1..=up_to.0 {
            let Some(held) = state.held(Index(index)) else {
                assert!(index <= state.disk.base.index.0, "committed {index} is not held");
                continue;
            };
            match self.committed.get(index as usize - 1) {
                Some(committed) => assert_eq!(*committed, held.id, "seed {}: node {node} commits otherwise", self.seed),
                None => self.committed.push(held.id),
            }
        }
        self.input(node, |core, now| core.applied(now, up_to));
    }

    /// Election safety and leader completeness.
    fn on_leader(&mut self, node: NodeId, term: Term) {
        let seed = self.seed;
        let first = *self.leaders.entry(term).or_insert(node);
        assert_eq!(first, node, "seed {seed}: two leaders in term {term}");
        let core = self.nodes[&node].core.as_ref().unwrap();
        for committed in &self.committed {
            let held = core.term_at(committed.index);
            let trimmed = committed.index < core.base().index;
            assert!(
                trimmed || held == Some(committed.term),
                "seed {seed}: leader {node} of term {term} lacks {committed}"
            );
        }
    }

    /// Two logs that hold the same entry hold the same entries before it.
    fn check_log_matching(&self, node: NodeId) {
        let ours = &self.nodes[&node].view;
        for (other, state) in self.nodes.iter().filter(|(other, _)| **other != node) {
            let mut met = false;
            for entry in ours.iter().rev() {
                let Some(theirs) = state.held(entry.id.index) else { continue };
                met |= theirs.id == entry.id;
                assert!(
                    !met || theirs.id == entry.id,
                    "seed {}: logs of {node} and {other} differ below a match",
                    self.seed
                );
            }
        }
    }

    /// Lets everything happen that is due by `until`.
    pub(crate) fn run_until(&mut self, until: Tick) {
        while let Some(next) = self.next_event().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            self.happen();
        }
        self.now = self.now.max(until);
    }

    pub(crate) fn run_for(&mut self, us: u64) {
        self.run_until(self.now.after(us));
    }

    /// Runs until `done`, at most `us`; whether it came to that.
    pub(crate) fn run_while(&mut self, us: u64, mut done: impl FnMut(&Cluster) -> bool) -> bool {
        let until = self.now.after(us);
        while !done(self) {
            match self.next_event().filter(|next| *next <= until) {
                Some(next) => {
                    self.now = self.now.max(next);
                    self.happen();
                }
                None => {
                    self.now = until;
                    return done(self);
                }
            }
        }
        true
    }

    fn next_event(&self) -> Option<Tick> {
        let packets = self.packets.iter().map(|packet| packet.at);
        let running = self.nodes.values().filter_map(|node| node.core.as_ref());
        let deadlines = running.filter_map(Core::next_deadline);
        let syncs = self.nodes.values().filter_map(|node| node.unsynced.front()).map(|unsynced| unsynced.done);
        packets.chain(deadlines).chain(syncs).min()
    }

    fn happen(&mut self) {
        let now = self.now;
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in ids {
            while self.nodes[&node].unsynced.front().is_some_and(|unsynced| unsynced.done <= now) {
                self.sync_one(node);
            }
            let due = self.nodes[&node].core.as_ref().and_then(Core::next_deadline);
            if due.is_some_and(|due| due <= now) {
                self.input(node, |core, now| core.tick(now));
                let again = self.nodes[&node].core.as_ref().and_then(Core::next_deadline);
                assert!(
                    again.is_none_or(|again| again > now),
                    "seed {}: node {node} would spin at {again:?}",
                    self.seed
                );
            }
        }
        while let Some(at) = self.next_packet(now) {
            let packet = self.packets.swap_remove(at);
            self.deliver(packet);
        }
    }

    fn next_packet(&self, now: Tick) -> Option<usize> {
        let due = self.packets.iter().enumerate().filter(|(_, packet)| packet.at <= now);
        due.min_by_key(|(_, packet)| (packet.at, packet.order)).map(|(at, _)| at)
    }

    pub(crate) fn deliver(&mut self, packet: Packet) {
        let Packet { from, to, body, .. } = packet;
        if self.cut.contains(&(from, to)) || !self.nodes.contains_key(&to) {
            return;
        }
        match body {
            Body::Message(message) => {
                self.input(to, |core, now| core.receive(now, from, message));
            }
            Body::Append(head, entries) => {
                let state = self.nodes.get_mut(&to).unwrap();
                state.staged.extend(entries.iter().map(|entry| (entry.id.index, entry.clone())));
                self.input(to, |core, now| core.receive_append(now, from, head, entries));
            }
        }
    }

    /// The oldest write of a node becomes durable.
    pub(crate) fn sync_one(&mut self, node: NodeId) {
        let state = self.nodes.get_mut(&node).unwrap();
        let Some(done) = state.unsynced.pop_front() else { return };
        state.disk.write(&done.write, &done.entries);
        for (to, message) in done.after {
            self.post(node, to, Body::Message(message));
        }
        self.input(node, |core, now| core.durable(now, done.write.term, done.write.last));
    }

    pub(crate) fn unsynced(&self, node: u64) -> usize {
        self.nodes[&NodeId(node)].unsynced.len()
    }

    /// From now on writes of `node` take `sync_us`; those under way too.
    pub(crate) fn set_sync(&mut self, node: u64, sync_us: u64) {
        let now = self.now;
        let state = self.nodes.get_mut(&NodeId(node)).unwrap();
        state.sync_us = sync_us;
        for unsynced in &mut state.unsynced {
            unsynced.done = now.after(sync_us);
        }
    }

    // What tests ask for.

    pub(crate) fn propose(&mut self, node: u64) -> Result<LogId, ProposeError> {
        self.propose_meta(node, records())
    }

    pub(crate) fn propose_meta(&mut self, node: u64, meta: EntryMeta) -> Result<LogId, ProposeError> {
        let now = self.now;
        let state = self.nodes.get_mut(&NodeId(node)).unwrap();
        let core = state.core.as_mut().unwrap();
        let proposed = core.propose(now, meta.clone());
        if let Ok(id) = &proposed {
            state.staged.insert(id.index, Entry { id: *id, meta });
        }
        self.input(NodeId(node), |_, _| {});
        proposed
    }

    pub(crate) fn read(&mut self, node: u64, read: u64) -> Result<(), ReadError> {
        let floor = self.committed.len() as u64;
        self.asked.insert(read, floor);
        self.input(NodeId(node), |core, now| core.read(now, read)).unwrap_or(Err(ReadError::NoLeader))
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        let running = self.nodes.iter().filter_map(|(id, node)| node.core.as_ref().map(|core| (id, core)));
        let leading = running.filter(|(_, core)| core.role() == Role::Leader);
        leading.max_by_key(|(_, core)| core.term()).map(|(id, _)| id.0)
    }

    /// Runs until a leader has committed an entry of its term.
    pub(crate) fn elect(&mut self) -> u64 {
        let elected = self.run_while(5_000 * MS, |cluster| {
            cluster.leader().is_some_and(|leader| cluster.core(leader).is_established())
        });
        assert!(elected, "seed {}: no leader within 5 s", self.seed);
        self.leader().unwrap()
    }

    /// A leader, and the others.
    pub(crate) fn elect_and_others(&mut self) -> (u64, Vec<u64>) {
        let leader = self.elect();
        self.run_for(100 * MS);
        (leader, self.nodes.keys().map(|node| node.0).filter(|node| *node != leader).collect())
    }

    pub(crate) fn isolate(&mut self, node: u64) {
        let others: Vec<NodeId> = self.nodes.keys().copied().filter(|other| other.0 != node).collect();
        for other in others {
            self.cut_link(node, other.0);
        }
    }

    pub(crate) fn cut_link(&mut self, a: u64, b: u64) {
        self.cut.extend([(n(a), n(b)), (n(b), n(a))]);
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(crate) fn told(&mut self, node: u64) -> Vec<Output> {
        std::mem::take(&mut self.nodes.get_mut(&NodeId(node)).unwrap().told)
    }

    pub(crate) fn alarms(&mut self, node: u64) -> Vec<Alarm> {
        std::mem::take(&mut self.nodes.get_mut(&NodeId(node)).unwrap().alarms)
    }

    pub(crate) fn terms(&self, node: u64) -> Vec<u64> {
        self.nodes[&NodeId(node)].view.iter().map(|entry| entry.id.term.0).collect()
    }
}
