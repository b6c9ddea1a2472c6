//! A whole cluster on simulated time: a queue of events ordered by (time, number), and nothing else that could decide what
//! comes next.
//!
//! Every event is one input to one node or client. After it, everything the node wants done is carried out or scheduled, and
//! every checker looks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use graven::members::{Member, MemberRole, Members};
use graven::replica::{Alarm, Answer, Chore, DiskJob, Effect, Fetch, Load, Now, Rejection, Replica};
use graven_frame::{Body, Chain, Frame, HeaderSpec, Kind};
use graven_raft::invariants::check_step;
use graven_raft::{AppendHead, Message, NodeId, Role};
use graven_wal::ReadError;

use crate::check::membership::Maker;
use crate::check::retention::Kept;
use crate::check::{Checked, Checkers, Violation, bounds};
use crate::client::{Follower, Writer};
use crate::faults::Fault;
use crate::network::Network;
use crate::node::{Node, RING_BYTES, WINDOW_BYTES};
use crate::profile::Profile;
use crate::report::Stats;
use crate::rng::Rng;
use crate::rot::Sick;
use crate::trace::Trace;
use crate::workload::Request;

/// See the module's documentation.
pub struct Cluster {
    pub(crate) now_us: u64,
    sequence: u64,
    events: BinaryHeap<Reverse<Scheduled>>,
    pub(crate) rng: Rng,
    pub(crate) profile: Profile,
    pub(crate) network: Network,
    /// Node 1 stands at 0.
    pub(crate) nodes: Vec<Node>,
    pub(crate) checkers: Checkers,
    /// What retention left.
    pub(crate) kept: Kept,
    pub(crate) writers: Vec<Writer>,
    pub(crate) followers: Vec<Follower>,
    pub(crate) requests: Vec<Request>,
    pub(crate) next_request: u64,
    /// Answers to requests from outside, by request, until they are fetched.
    pub(crate) answered: BTreeMap<u64, Result<Answer, Rejection>>,
    /// When the last message between a writer and a node arrives.
    pub(crate) client_lanes: Vec<[u64; 2 * LANES]>,
    pub(crate) healed_at: Option<u64>,
    /// The append that is being taken in, when the input is one.
    /// The node whose log rotted.
    pub(crate) sick: Option<Sick>,
    appending: Option<(u64, AppendHead)>,
    /// Whether each step of the core is compared with the one before: costs a copy of the core, so some runs only.
    steps_checked: bool,
    /// What happened, in numbers.
    pub stats: Stats,
    /// What happened, line by line.
    pub trace: Trace,
}

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Event {
    Message { from: u64, to: u64, message: Message },
    Append { from: u64, to: u64, head: AppendHead, frames: Vec<Frame> },
    Lane { node: u64, life: u64, peer: u64, stands: bool },
    Tick { node: u64, life: u64 },
    Flush { node: u64, life: u64 },
    Applied { node: u64, life: u64, index: u64 },
    DiskStart { node: u64, life: u64 },
    DiskDone { node: u64, life: u64 },
    DiskIdle { node: u64, life: u64 },
    Loaded { node: u64, life: u64, load: Load },
    Fetched { node: u64, life: u64, fetch: Fetch },
    PictureFetched { node: u64, life: u64, id: u64 },
    Scrub { node: u64, life: u64 },
    Start { node: u64 },
    Request { node: u64, request: u64 },
    Answer { request: u64, answer: Result<Answer, Rejection> },
    Writer { at: usize },
    Follower { at: usize },
    Read,
    Wake,
    Fault(Fault),
}

impl Event {
    /// The node whose process it is for.
    fn node(&self) -> Option<u64> {
        match self {
            Event::Message { to, .. } | Event::Append { to, .. } => Some(*to),
            Event::Lane { node, .. }
            | Event::Tick { node, .. }
            | Event::Flush { node, .. }
            | Event::Applied { node, .. }
            | Event::DiskStart { node, .. }
            | Event::DiskDone { node, .. }
            | Event::DiskIdle { node, .. }
            | Event::Loaded { node, .. }
            | Event::Fetched { node, .. }
            | Event::PictureFetched { node, .. }
            | Event::Scrub { node, .. }
            | Event::Request { node, .. } => Some(*node),
            Event::Start { .. }
            | Event::Answer { .. }
            | Event::Writer { .. }
            | Event::Follower { .. }
            | Event::Read
            | Event::Wake
            | Event::Fault(_) => None,
        }
    }
}

struct Scheduled {
    at: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// Readers of the stream in every run.
const FOLLOWERS: usize = 2;
/// More than there are ids of nodes.
pub(crate) const LANES: usize = 12;
/// Nodes that wait to be taken in, in profiles whose members change.
const NEWCOMERS: u64 = 4;

impl Cluster {
    /// A cluster of `nodes` nodes, none of them started, and its clients.
    #[must_use]
    pub fn new(seed: u64, nodes: u64, profile: Profile, trace: Trace) -> Cluster {
        let mut cluster = Cluster::idle(seed, nodes, profile, trace);
        for at in 0..cluster.writers.len() {
            cluster.schedule(1_000, Event::Writer { at });
        }
        cluster.schedule(3_000, Event::Read);
        cluster
    }

    /// The same without anybody who asks it for anything; only the readers of the stream are there.
    #[must_use]
    pub(crate) fn idle(seed: u64, nodes: u64, profile: Profile, trace: Trace) -> Cluster {
        let mut rng = Rng::new(seed);
        let network = Network::new(rng.fork(), &profile);
        let first = first_frame(nodes);
        let members = nodes;
        let nodes = if profile.member_us > 0 { nodes.min(LANES as u64 - 1 - NEWCOMERS) + NEWCOMERS } else { nodes };
        let writers: Vec<_> =
            (0..rng.between(1, 4)).map(|id| Writer::new(id, nodes, profile.tiny, rng.fork())).collect();
        let mut cluster = Cluster {
            now_us: 0,
            sequence: 0,
            events: BinaryHeap::new(),
            network,
            nodes: (1..=nodes).map(|id| Node::new(id, rng.draw(), (id <= members).then_some(&first))).collect(),
            checkers: Checkers::new(nodes, FOLLOWERS),
            kept: Kept::default(),
            client_lanes: vec![[0; 2 * LANES]; writers.len()],
            writers,
            followers: (0..FOLLOWERS).map(|_| Follower::new()).collect(),
            requests: vec![Request::None],
            next_request: 0,
            answered: BTreeMap::new(),
            healed_at: None,
            appending: None,
            sick: None,
            steps_checked: rng.chance(150),
            stats: Stats::default(),
            trace,
            rng,
            profile,
        };
        // The first entry was synced by whoever made the data directories.
        for id in 1..=nodes {
            if id <= members {
                cluster.checkers.durability.synced(id, &first);
            }
            cluster.schedule(cluster.now_us + id, Event::Start { node: id });
        }
        for at in 0..FOLLOWERS {
            cluster.schedule(2_000, Event::Follower { at });
        }
        cluster
    }

    /// Nodes whose start was ordered and is not wanted.
    #[cfg(test)]
    pub(crate) fn forget_starts(&mut self, of: impl Fn(u64) -> bool) {
        self.events.retain(|Reverse(next)| !matches!(next.event, Event::Start { node } if of(node)));
    }

    /// The node that leads the newest term, if any node leads.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        let replicas = self.nodes.iter().filter_map(|node| Some((node.id, &node.process.as_ref()?.replica)));
        let leaders = replicas.filter(|(_, replica)| replica.leads());
        leaders.max_by_key(|(_, replica)| replica.view().term).map(|(id, _)| id)
    }

    /// The members, as the node that leads has them.
    pub(crate) fn members(&self) -> Option<&Members> {
        self.replica(self.leader()?)?.members()
    }

    /// The replica of `node`, while it is up.
    #[must_use]
    pub fn replica(&self, node: u64) -> Option<&Replica> {
        Some(&self.node(node).process.as_ref()?.replica)
    }

    /// Cuts and mends, for scenarios written by hand.
    pub fn network(&mut self) -> &mut Network {
        &mut self.network
    }

    /// Everything that is committed, from entry 1 on.
    pub(crate) fn checkers_log(&self) -> &[Frame] {
        self.checkers.log()
    }

    /// How many records are committed.
    #[must_use]
    pub fn committed_records(&self) -> u64 {
        self.checkers.committed_records()
    }

    /// Appends that writers sent again.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.writers.iter().map(|writer| writer.retries).sum()
    }

    pub(crate) fn node(&self, id: u64) -> &Node {
        &self.nodes[id as usize - 1]
    }

    pub(crate) fn node_mut(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    pub(crate) fn schedule(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse(Scheduled { at: at.max(self.now_us), sequence: self.sequence, event }));
    }

    pub(crate) fn after(&mut self, low_us: u64, high_us: u64, event: Event) {
        let at = self.now_us + self.rng.between(low_us, high_us);
        self.schedule(at, event);
    }

    /// The next event.
    ///
    /// # Errors
    /// The property that does not hold after it.
    pub fn step(&mut self) -> Checked {
        let Some(Reverse(next)) = self.events.pop() else {
            return Err(Violation { property: "liveness", detail: "nothing will ever happen".into() });
        };
        self.now_us = next.at;
        // A process that is paused gets everything at once when it goes on, in order.
        if let Some(until) = next.event.node().and_then(|node| self.node(node).paused_until(next.at)) {
            self.schedule(until, next.event);
            return Ok(());
        }
        self.stats.steps += 1;
        self.checkers.step = self.stats.steps;
        match next.event {
            Event::Message { from, to, message } => {
                self.trace.line(next.at, format_args!("n{from}->n{to} {message:?}"));
                self.input(to, |replica, now| replica.receive(now, NodeId(from), message))
            }
            Event::Append { from, to, head, frames } => {
                self.trace.line(next.at, format_args!("n{from}->n{to} {head:?} +{}", frames.len()));
                self.appending = Some((from, head));
                let checked = self.input(to, |replica, now| replica.receive_append(now, NodeId(from), head, frames));
                self.appending = None;
                checked
            }
            Event::Lane { node, life, peer, stands } => self.input_of(node, life, |replica, now| match stands {
                true => replica.reachable(now, NodeId(peer)),
                false => replica.unreachable(now, NodeId(peer)),
            }),
            Event::Tick { node, life } => self.on_tick(node, life),
            Event::Flush { node, life } => self.on_flush(node, life),
            Event::Applied { node, life, index } => self.on_applied(node, life, index),
            Event::DiskStart { node, life } => self.on_disk_start(node, life),
            Event::DiskDone { node, life } => self.on_disk_done(node, life),
            Event::DiskIdle { node, life } => self.on_disk_idle(node, life),
            Event::Loaded { node, life, load } => self.on_loaded(node, life, load),
            Event::Fetched { node, life, fetch } => self.on_fetched(node, life, fetch),
            Event::PictureFetched { node, life, id } => self.on_picture_fetched(node, life, id),
            Event::Scrub { node, life } => self.on_scrub(node, life),
            Event::Start { node } => self.on_start(node),
            Event::Request { node, request } => self.on_request(node, request),
            Event::Answer { request, answer } => {
                if let Request::Open { writer } | Request::Append { writer, .. } = self.requests[request as usize] {
                    self.writers[writer].answered(request, answer);
                }
                Ok(())
            }
            Event::Writer { at } => self.on_writer(at),
            Event::Follower { at } => self.on_follower(at),
            Event::Read => self.on_read(),
            // Time reaches a moment at which somebody outside wants to look.
            Event::Wake => Ok(()),
            Event::Fault(fault) => self.on_fault(fault),
        }
    }

    pub(crate) fn input(&mut self, node: u64, with: impl FnOnce(&mut Replica, Now)) -> Checked {
        let life = self.node(node).life;
        self.input_of(node, life, with)
    }

    /// Gives an input to the process of `life`, if it is still up, and carries out what comes of it.
    pub(crate) fn input_of(&mut self, node: u64, life: u64, with: impl FnOnce(&mut Replica, Now)) -> Checked {
        let (now_us, steps_checked) = (self.now_us, self.steps_checked);
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        let now = process.clock.now(now_us);
        let before = steps_checked.then(|| process.replica.core().clone());
        with(&mut process.replica, now);
        if let Some(before) = before
            && let Err(detail) = check_step(&before, process.replica.core())
        {
            return Err(Violation { property: "invariant", detail });
        }
        self.carry_out(node)
    }

    /// Carries out or schedules all that `node` wants done, then lets every checker look at it.
    fn carry_out(&mut self, node: u64) -> Checked {
        let life = self.node(node).life;
        let mut answers = Vec::new();
        let mut dead = false;
        while let Some(effect) = self.node_mut(node).process.as_mut().and_then(|process| process.replica.poll()) {
            match effect {
                Effect::Send { to, message } => {
                    match message {
                        Message::VoteReply { term, granted: true } => self.checkers.voted(node, term.0, to.0)?,
                        Message::Vote { term, .. } => self.checkers.voted(node, term.0, node)?,
                        Message::AppendReply { success: false, request, .. } => self.on_refusal(node, to.0, request)?,
                        _ => {}
                    }
                    let lag = self.node(to.0).lag_us();
                    let arrivals = self.network.send_message(self.now_us + lag, node, to.0, &message);
                    for at in arrivals.second.into_iter().chain(arrivals.first) {
                        self.schedule(at, Event::Message { from: node, to: to.0, message: message.clone() });
                    }
                }
                Effect::SendAppend { to, head, frames } => {
                    let lag = self.node(to.0).lag_us();
                    let arrivals = self.network.send_append(self.now_us + lag, node, to.0, &head, &frames);
                    for at in arrivals.second.into_iter().chain(arrivals.first) {
                        self.schedule(at, Event::Append { from: node, to: to.0, head, frames: frames.clone() });
                    }
                }
                Effect::Disk(job) => {
                    self.check_job(node, &job)?;
                    let Some(process) = self.node_mut(node).process.as_mut() else { continue };
                    process.queue.push_back(job);
                    if !std::mem::replace(&mut process.disk_busy, true) {
                        self.after(0, 30, Event::DiskStart { node, life });
                    }
                }
                Effect::Load(load) => self.after(50, 800, Event::Loaded { node, life, load }),
                Effect::Fetch(fetch) => self.after(200, 20_000, Event::Fetched { node, life, fetch }),
                Effect::FetchPicture { picture, .. } => {
                    self.after(200, 20_000, Event::PictureFetched { node, life, id: picture.id });
                }
                Effect::ForgetPicture(id) => {
                    self.nodes[node as usize - 1].pictures.remove(&id);
                }
                Effect::Recovered => {}
                Effect::Answer { request, answer } => answers.push((request, answer)),
                Effect::Role { role, term, leader } => {
                    self.trace.line(self.now_us, format_args!("n{node} is {role:?} in term {term}, leader {leader:?}"));
                    if role == Role::Leader {
                        self.stats.elections += 1;
                        self.checkers.elected(node, term.0)?;
                        self.maybe_depose(node);
                    } else {
                        self.checkers.deposed(node);
                    }
                }
                Effect::Alarm(Alarm::DiskStalled) => dead = true,
                Effect::Alarm(alarm) => self.on_alarm(node, &alarm)?,
            }
        }
        self.look(node)?;
        for (request, answer) in answers {
            self.on_answer(node, request, answer)?;
        }
        if dead {
            self.crash(node, false);
        }
        Ok(())
    }

    /// `node` refuses the append that it was just given.
    fn on_refusal(&mut self, node: u64, to: u64, request: u64) -> Checked {
        let Some((from, head)) = self.appending.filter(|(_, head)| head.request == request) else { return Ok(()) };
        let leads = |replica: &Replica| replica.leads() && replica.view().term == head.term;
        // An append of a passed term is refused for that alone.
        // One that begins behind its log tells that it is short: an install that found no room left it so.
        let follows = |replica: &Replica| {
            let view = replica.view();
            view.term == head.term && head.prev.index.0 <= view.last_index
        };
        if from != to || !self.replica(to).is_some_and(leads) || !self.replica(node).is_some_and(follows) {
            return Ok(());
        }
        let life = self.node(node).life;
        self.checkers.append_refused((node, life), to, &head)
    }

    /// Lets the checkers look at what `node` is about to write.
    fn check_job(&mut self, node: u64, job: &DiskJob) -> Checked {
        let Some(replica) = self.nodes[node as usize - 1].process.as_ref().map(|process| &process.replica) else {
            return Ok(());
        };
        let view = replica.view();
        let maker = Maker { commit: view.commit_index, established: replica.core().is_established() };
        if let Some(Chore::Install(checkpoint)) = &job.chore {
            self.stats.installs += 1;
            self.checkers.installing(node, &checkpoint.base)?;
        }
        for frame in &job.frames {
            let made = replica.leads() && frame.header().term == view.term.0;
            self.checkers.writing(node, frame, made.then_some(maker))?;
        }
        Ok(())
    }

    /// Lets the checkers look at `node`, and sees to its next tick.
    fn look(&mut self, node: u64) -> Checked {
        let now_us = self.now_us;
        let peers = self.nodes.len() - 1;
        let place = &mut self.nodes[node as usize - 1];
        let life = place.life;
        let Some(process) = place.process.as_mut() else { return Ok(()) };
        process.replica.check();
        let view = process.replica.view();
        let standing = bounds::Standing {
            ring_bytes: RING_BYTES,
            window_bytes: WINDOW_BYTES,
            peers,
            last: view.last_index,
            readable: view.readable_index,
        };
        bounds::check(node, &process.replica.footprint(), &standing, process.replica.core().progress())?;
        let mut tick_at = None;
        if let Some(deadline) = process.replica.next_deadline() {
            // A deadline that has passed is not asked for again at once, or time would stand still.
            let at = process.clock.reaches(deadline).max(now_us + 20);
            if process.tick_at.is_none_or(|pending| at < pending) {
                process.tick_at = Some(at);
                tick_at = Some(at);
            }
        }
        let applies = process.state_machine && !process.applying && view.applied_index < view.readable_index;
        process.applying |= applies;
        if let Some(at) = tick_at {
            self.schedule(at, Event::Tick { node, life });
        }
        if applies {
            self.after(0, 3_000, Event::Applied { node, life, index: view.readable_index });
        }
        let known = self.checkers.log().len();
        self.checkers.committed(node, view.term.0, view.commit_index)?;
        for frame in &self.checkers.log()[known..] {
            if self.profile.retention {
                let led = self.leader().is_some_and(|leader| {
                    let leads = self.replica(leader).is_some_and(|it| it.view().term.0 == frame.header().term);
                    leads && self.node(leader).life == 1
                });
                self.kept.committed(frame, self.now_us, !led)?;
            }
            if let Some(before) = trimmed_by(frame) {
                self.states_reach(before)?;
            }
        }
        self.check_names(node)?;
        self.maybe_well(node)?;
        self.check_cursors(node)?;
        self.checkers.begins(node, view.readable_index, view.first_offset)?;
        self.checkers.readable(node, view.readable_index, view.next_offset)
    }

    fn on_alarm(&mut self, node: u64, alarm: &Alarm) -> Checked {
        self.trace.line(self.now_us, format_args!("n{node} alarm {alarm:?}"));
        match alarm {
            // A slow disk is one of the faults.
            Alarm::Core(words) if words.contains("DiskStalled") => Ok(()),
            // So is a log that lost its end.
            Alarm::Core(words) if words.contains("FollowerLostEntries") && self.stats.cut_ends > 0 => Ok(()),
            // So is a peer that dies, or is cut off, before its checkpoint was fetched.
            Alarm::Core(words) if words.contains("checkpoint") => Ok(()),
            other => Err(Violation { property: "alarm", detail: format!("node {node} raised {other:?}") }),
        }
    }

    fn on_tick(&mut self, node: u64, life: u64) -> Checked {
        let now_us = self.now_us;
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        // One that was superseded by an earlier one; the one in force may be late, after a pause.
        if process.tick_at.is_none_or(|at| at > now_us) {
            return Ok(());
        }
        process.tick_at = None;
        self.input_of(node, life, Replica::tick)
    }

    fn on_flush(&mut self, node: u64, life: u64) -> Checked {
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        process.flushing = false;
        self.input_of(node, life, Replica::flush)
    }

    fn on_applied(&mut self, node: u64, life: u64, index: u64) -> Checked {
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        process.applying = false;
        let offset = self.checkers.log().get(index as usize - 1).map_or(0, Frame::next_offset);
        self.input_of(node, life, |replica, now| replica.applied(now, index))?;
        self.maybe_save_state(node, life, offset)
    }

    fn on_loaded(&mut self, node: u64, life: u64, load: Load) -> Checked {
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        let mut frames = match process.reader.frames(load.first, load.last, load.max_bytes) {
            Ok(frames) => frames,
            Err(error) => {
                if let ReadError::Damaged(damage) = error {
                    self.suspect(node, damage.first_index);
                }
                Vec::new()
            }
        };
        if let Some(index) = first_broken(&mut frames) {
            self.suspect(node, index);
        }
        self.trace
            .line(self.now_us, format_args!("n{node} loads {} from {}: {}", load.token, load.first, frames.len()));
        self.input_of(node, life, |replica, now| replica.loaded(now, load.token, frames))
    }

    /// A checkpoint comes over a lane of its own, or does not.
    fn on_fetched(&mut self, node: u64, life: u64, fetch: Fetch) -> Checked {
        let peer = self.node(fetch.from.0);
        let reached = peer.process.is_some() && !self.network.is_cut(peer.id, node);
        let found = reached.then(|| graven_snapshot::load(&peer.disk, fetch.base.index.0).ok()).flatten();
        let words = if found.is_some() { "fetches" } else { "does not get" };
        self.trace.line(self.now_us, format_args!("n{node} {words} checkpoint {:?} of n{}", fetch.base, fetch.from.0));
        self.input_of(node, life, |replica, now| replica.fetched(now, fetch.token, found))
    }

    fn on_start(&mut self, node: u64) -> Checked {
        let (now_us, profile) = (self.now_us, self.profile);
        let mut rng = self.rng.fork();
        let place = self.node_mut(node);
        if place.process.is_some() || self.mend_what_was_left(node)? {
            return Ok(());
        }
        let place = self.node_mut(node);
        let (recovered, frames) = match place.start(&mut rng, now_us, &profile) {
            Ok(found) => found,
            Err(error) => {
                if self.maybe_mend(node, Err(&error))? {
                    return Ok(());
                }
                return self.on_failed_start(node, &error);
            }
        };
        if self.maybe_mend(node, Ok(&recovered))? {
            return Ok(());
        }
        self.trace.line(
            self.now_us,
            format_args!("n{node} starts: {} entries, {:?}", recovered.last_index, recovered.hard_state),
        );
        if self.rng.chance(self.profile.slow_lives) {
            let lag = self.rng.between(1_000, 30_000);
            self.stats.slow_lives += 1;
            self.trace.line(self.now_us, format_args!("n{node} is slow, by {lag}"));
            if let Some(process) = &mut self.node_mut(node).process {
                process.lag_us = Some(lag);
            }
        }
        let hard_state = recovered.hard_state;
        self.checkers.durability.recovered_hard_state(node, hard_state.term, hard_state.vote)?;
        if self.sick.as_ref().is_some_and(|sick| sick.is_cut(node)) {
            // What replaced other entries may have been at the end that is lost, and those are back.
            self.checkers.lost_end(node, &recovered.base, &frames)?;
        }
        self.checkers.started(node, &recovered.base, &frames, recovered.known_commit)?;
        self.begins_elsewhere(node, recovered.base.next_offset)?;
        if self.profile.scrubs {
            let life = self.node(node).life;
            self.after(1_000, 20_000, Event::Scrub { node, life });
        }
        self.carry_out(node)
    }
}

/// Keeps the frames before the first one whose body is not what was written, and says which that was.
pub(crate) fn first_broken(frames: &mut Vec<Frame>) -> Option<u64> {
    let at = frames.iter().position(|frame| frame.verify(None).is_err())?;
    let index = frames[at].header().index;
    frames.truncate(at);
    Some(index)
}

/// The entry with which every log begins: the same on all nodes.
fn first_frame(nodes: u64) -> Frame {
    let member = |id| Member {
        id,
        name: format!("n{id}"),
        peer_address: format!("n{id}:1"),
        client_address: format!("n{id}:2"),
        incarnation: u128::from(id).to_le_bytes(),
        role: MemberRole::Voter,
    };
    let members = Members { nodes: (1..=nodes).map(member).collect(), feature_level: graven::members::NEWEST_LEVEL };
    let body = Body::from_chunks(vec![members.encode().unwrap_or_default().into()]);
    let crc = body.crc();
    let spec = HeaderSpec { kind: Kind::Membership, term: 1, index: 1, base_offset: 0, count: 0, timestamp_ms: 0 };
    Frame::seal(spec, Chain::START, body, crc)
}

/// The first offset that a trim asks for.
fn trimmed_by(frame: &Frame) -> Option<u64> {
    let body = (frame.header().kind == Kind::Trim).then(|| frame.body().concat())?;
    body.get(8..16)?.try_into().ok().map(u64::from_le_bytes)
}
