//! A whole cluster on simulated time: a queue of events ordered by (time, number), and nothing else that could decide what
//! comes next.
//!
//! Every event is one input to one node or client. After it, everything the node wants done is carried out or scheduled, and
//! every checker looks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use graven::members::{Member, MemberRole, Members};
use graven::replica::{Alarm, Answer, Effect, Load, Now, Rejection, Replica, RequestId};
use graven_frame::{Body, Chain, Frame, Group, HeaderSpec, Kind};
use graven_raft::invariants::check_step;
use graven_raft::{AppendHead, Message, NodeId, Role};

use crate::check::liveness::{self, Left};
use crate::check::{Checked, Checkers, Violation};
use crate::client::{Follower, Wish, Writer};
use crate::faults::Fault;
use crate::network::Network;
use crate::node::Node;
use crate::profile::Profile;
use crate::report::Stats;
use crate::rng::Rng;
use crate::trace::Trace;

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
    writers: Vec<Writer>,
    followers: Vec<Follower>,
    requests: Vec<Request>,
    /// Answers to requests from outside, by request, until they are fetched.
    pub(crate) answered: BTreeMap<u64, Result<Answer, Rejection>>,
    pub(crate) next_request: u64,
    /// When the last message between a writer and a node arrives.
    client_lanes: Vec<[u64; 16]>,
    pub(crate) healed_at: Option<u64>,
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
    Start { node: u64 },
    Request { node: u64, request: u64 },
    Answer { request: u64, answer: Result<Answer, Rejection> },
    Writer { at: usize },
    Follower { at: usize },
    Read,
    Fault(Fault),
    Wake,
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

/// Somebody who waits for an answer.
#[derive(Debug, Clone)]
enum Request {
    /// Number 0 is nobody's.
    None,
    Open {
        writer: usize,
    },
    Append {
        writer: usize,
        group: Group,
    },
    Read {
        floor: u64,
    },
    Transfer {
        to: u64,
    },
    /// Of somebody who is none of the simulated clients and looks for the answer himself.
    Outside {
        group: Group,
    },
}

/// Readers of the stream in every run.
const FOLLOWERS: usize = 2;

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
        let writers: Vec<_> = (0..rng.between(1, 4)).map(|id| Writer::new(id, nodes, rng.fork())).collect();
        let mut cluster = Cluster {
            now_us: 0,
            sequence: 0,
            events: BinaryHeap::new(),
            network,
            nodes: (1..=nodes).map(|id| Node::new(id, rng.draw(), &first)).collect(),
            checkers: Checkers::new(nodes, FOLLOWERS),
            client_lanes: vec![[0; 16]; writers.len()],
            writers,
            followers: (0..FOLLOWERS).map(|_| Follower::new()).collect(),
            requests: vec![Request::None],
            answered: BTreeMap::new(),
            next_request: 0,
            healed_at: None,
            steps_checked: rng.chance(150),
            stats: Stats::default(),
            trace,
            rng,
            profile,
        };
        // The first entry was synced by whoever made the data directories.
        for id in 1..=nodes {
            cluster.checkers.durability.synced(id, &first);
            cluster.schedule(cluster.now_us + id, Event::Start { node: id });
        }
        for at in 0..FOLLOWERS {
            cluster.schedule(2_000, Event::Follower { at });
        }
        cluster
    }

    /// Lets everything run for `steps` events, faults included, then heals all and demands that all work gets done.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn run(&mut self, steps: u64) -> Checked {
        self.schedule_faults();
        while self.stats.steps < steps {
            self.step()?;
        }
        self.heal();
        self.run_until_done()?;
        // Nobody appends any more: whoever starts again must find its way without new entries to carry it.
        let node = self.rng.between(1, self.nodes.len() as u64 + 1);
        let power = self.rng.chance(500);
        self.crash(node, power);
        self.healed_at = Some(self.now_us);
        self.run_until_done()
    }

    /// Runs until nothing is left to do, and compares what all nodes read back.
    ///
    /// # Errors
    /// The property that does not hold; liveness among them.
    pub fn run_until_done(&mut self) -> Checked {
        let healed = *self.healed_at.get_or_insert(self.now_us);
        let mut looked = 0;
        loop {
            self.step()?;
            if self.now_us < looked + 5_000 {
                continue;
            }
            looked = self.now_us;
            let left = self.left();
            if left.is_nothing() {
                break;
            }
            liveness::progress(self.now_us - healed, &left)?;
        }
        self.trace.line(self.now_us, format_args!("done"));
        self.read_back()
    }

    /// Lets everything run until `until` says so.
    ///
    /// # Errors
    /// The property that does not hold; liveness when that takes longer than a healed cluster gets.
    pub fn run_while(&mut self, mut going: impl FnMut(&Cluster) -> bool) -> Checked {
        let began = self.now_us;
        while going(self) {
            self.step()?;
            let left = Left { leaderless: true, ..Left::default() };
            liveness::progress(self.now_us - began, &left)?;
        }
        Ok(())
    }

    /// The node that leads the newest term, if any node leads.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        let replicas = self.nodes.iter().filter_map(|node| Some((node.id, &node.process.as_ref()?.replica)));
        let leaders = replicas.filter(|(_, replica)| replica.leads());
        leaders.max_by_key(|(_, replica)| replica.view().term).map(|(id, _)| id)
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

    /// How many records are committed.
    #[must_use]
    pub fn committed_records(&self) -> u64 {
        self.checkers.committed_records()
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

    fn after(&mut self, low_us: u64, high_us: u64, event: Event) {
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
        self.stats.steps += 1;
        match next.event {
            Event::Message { from, to, message } => {
                self.trace.line(next.at, format_args!("n{from}->n{to} {message:?}"));
                self.input(to, |replica, now| replica.receive(now, NodeId(from), message))
            }
            Event::Append { from, to, head, frames } => {
                self.trace.line(next.at, format_args!("n{from}->n{to} {head:?} +{}", frames.len()));
                self.input(to, |replica, now| replica.receive_append(now, NodeId(from), head, frames))
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
            Event::Fault(fault) => self.on_fault(fault),
            // Time reaches a moment at which somebody outside wants to look.
            Event::Wake => Ok(()),
        }
    }

    fn input(&mut self, node: u64, with: impl FnOnce(&mut Replica, Now)) -> Checked {
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
                        _ => {}
                    }
                    let arrivals = self.network.send_message(self.now_us, node, to.0, &message);
                    for at in arrivals.second.into_iter().chain(arrivals.first) {
                        self.schedule(at, Event::Message { from: node, to: to.0, message: message.clone() });
                    }
                }
                Effect::SendAppend { to, head, frames } => {
                    let arrivals = self.network.send_append(self.now_us, node, to.0, &head, &frames);
                    for at in arrivals.second.into_iter().chain(arrivals.first) {
                        self.schedule(at, Event::Append { from: node, to: to.0, head, frames: frames.clone() });
                    }
                }
                Effect::Disk(job) => {
                    for frame in &job.frames {
                        self.checkers.writing(node, frame)?;
                    }
                    let Some(process) = self.node_mut(node).process.as_mut() else { continue };
                    process.queue.push_back(job);
                    if !std::mem::replace(&mut process.disk_busy, true) {
                        self.after(0, 30, Event::DiskStart { node, life });
                    }
                }
                Effect::Load(load) => self.after(50, 800, Event::Loaded { node, life, load }),
                Effect::Answer { request, answer } => answers.push((request, answer)),
                Effect::Role { role, term, leader } => {
                    self.trace.line(self.now_us, format_args!("n{node} is {role:?} in term {term}, leader {leader:?}"));
                    if role == Role::Leader {
                        self.stats.elections += 1;
                        self.checkers.elected(node, term.0)?;
                        if self.rng.chance(self.profile.depose) {
                            self.after(0, 30_000, Event::Fault(Fault::Depose(node)));
                        }
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

    /// Lets the checkers look at `node`, and sees to its next tick.
    fn look(&mut self, node: u64) -> Checked {
        let now_us = self.now_us;
        let place = &mut self.nodes[node as usize - 1];
        let life = place.life;
        let Some(process) = place.process.as_mut() else { return Ok(()) };
        process.replica.check();
        let view = process.replica.view();
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
        self.checkers.committed(node, view.term.0, view.commit_index)?;
        self.checkers.readable(node, view.readable_index, view.next_offset)
    }

    fn on_alarm(&mut self, node: u64, alarm: &Alarm) -> Checked {
        self.trace.line(self.now_us, format_args!("n{node} alarm {alarm:?}"));
        match alarm {
            // A slow disk is one of the faults.
            Alarm::Core(words) if words.contains("DiskStalled") => Ok(()),
            other => Err(Violation { property: "alarm", detail: format!("node {node} raised {other:?}") }),
        }
    }

    fn on_tick(&mut self, node: u64, life: u64) -> Checked {
        let now_us = self.now_us;
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        if process.tick_at != Some(now_us) {
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
        self.input_of(node, life, |replica, now| replica.applied(now, index))
    }

    fn on_loaded(&mut self, node: u64, life: u64, load: Load) -> Checked {
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        let frames = process.reader.frames(load.first, load.last, load.max_bytes).unwrap_or_default();
        self.trace
            .line(self.now_us, format_args!("n{node} loads {} from {}: {}", load.token, load.first, frames.len()));
        self.input_of(node, life, |replica, now| replica.loaded(now, load.token, frames))
    }

    fn on_start(&mut self, node: u64) -> Checked {
        let (now_us, drift) = (self.now_us, self.profile.drift);
        let mut rng = self.rng.fork();
        let place = self.node_mut(node);
        if place.process.is_some() {
            return Ok(());
        }
        let (recovered, frames) = match place.start(&mut rng, now_us, drift) {
            Ok(found) => found,
            Err(error) => return self.on_failed_start(node, &error),
        };
        self.trace.line(
            self.now_us,
            format_args!("n{node} starts: {} entries, {:?}", recovered.last_index, recovered.hard_state),
        );
        let hard_state = recovered.hard_state;
        self.checkers.durability.recovered_hard_state(node, hard_state.term, hard_state.vote)?;
        self.checkers.started(node, &frames, recovered.known_commit)?;
        self.carry_out(node)
    }

    fn on_request(&mut self, node: u64, request: u64) -> Checked {
        let life = self.node(node).life;
        let id = RequestId(request);
        match self.requests[request as usize].clone() {
            Request::None => Ok(()),
            Request::Open { .. } => self.input(node, |replica, now| replica.open_session(now, id)),
            Request::Append { group, .. } => {
                let Some(process) = self.node_mut(node).process.as_mut() else { return Ok(()) };
                if !std::mem::replace(&mut process.flushing, true) {
                    self.after(0, 60, Event::Flush { node, life });
                }
                self.input(node, |replica, _| replica.append(id, group))
            }
            Request::Read { .. } => {
                let floor = self.checkers.read_began();
                self.requests[request as usize] = Request::Read { floor };
                self.input(node, |replica, now| replica.read_index(now, id))
            }
            Request::Transfer { to } => self.input(node, |replica, now| replica.transfer(now, id, NodeId(to))),
            Request::Outside { group } => self.input(node, |replica, now| {
                replica.append(id, group);
                replica.flush(now);
            }),
        }
    }

    /// Gives `group` to `node` at once. The answer comes into `answered` under the number returned.
    pub(crate) fn append_from_outside(&mut self, node: u64, group: Group) -> Result<u64, Violation> {
        self.next_request += 1;
        self.requests.push(Request::Outside { group });
        self.on_request(node, self.next_request)?;
        Ok(self.next_request)
    }

    /// `node` answers a request: the moment at which its promises must hold.
    fn on_answer(&mut self, node: u64, request: RequestId, answer: Result<Answer, Rejection>) -> Checked {
        self.trace.line(self.now_us, format_args!("n{node} answers {}: {answer:?}", request.0));
        let unexpected = |answer| {
            Err(Violation { property: "answers", detail: format!("node {node} answers {request:?} with {answer:?}") })
        };
        let (writer, group) = match &self.requests[request.0 as usize] {
            Request::Open { writer } => (*writer, None),
            Request::Append { writer, group } => (*writer, Some(group)),
            Request::Read { floor } => {
                return match answer {
                    Ok(Answer::ReadIndex { next_offset }) => self.checkers.read_answered(*floor, next_offset),
                    Ok(other) => unexpected(Ok(other)),
                    Err(_) => Ok(()),
                };
            }
            Request::Transfer { .. } => return Ok(()),
            Request::Outside { group } => {
                if let Ok(Answer::Appended(placed)) = answer {
                    self.checkers.acknowledged(placed.index, placed.first, group)?;
                    self.stats.acked += 1;
                }
                self.answered.insert(request.0, answer);
                return Ok(());
            }
            Request::None => return unexpected(answer),
        };
        match (group, answer.clone()) {
            (Some(group), Ok(Answer::Appended(placed))) => {
                let header = group.header();
                if placed.count != header.count || Some(placed.sequence) != header.sequence {
                    return unexpected(answer);
                }
                self.checkers.acknowledged(placed.index, placed.first, group)?;
                self.stats.acked += 1;
            }
            (None, Ok(Answer::SessionOpened { session })) => self.checkers.session_opened(session)?,
            (Some(group), Err(Rejection::Conflict { .. } | Rejection::Fenced { .. })) => {
                self.checkers.refused(group)?
            }
            // No session of these clients is old enough to be forgotten.
            (_, Ok(_) | Err(Rejection::SessionExpired | Rejection::Malformed)) => return unexpected(answer),
            (_, Err(_)) => {}
        }
        if self.rng.chance(self.profile.client_loss) {
            return Ok(());
        }
        let at = self.lane(writer, node as usize + 8);
        self.schedule(at, Event::Answer { request: request.0, answer });
        Ok(())
    }

    /// When the next message on a lane of a client arrives: its stream keeps order.
    fn lane(&mut self, writer: usize, lane: usize) -> u64 {
        let at = (self.now_us + self.rng.between(30, 300)).max(self.client_lanes[writer][lane]);
        self.client_lanes[writer][lane] = at;
        at
    }

    fn on_writer(&mut self, at: usize) -> Checked {
        let committed = self.checkers.committed_records();
        let mut wishes = Vec::new();
        let writer = &mut self.writers[at];
        writer.act(self.now_us, committed, &mut self.next_request, &mut wishes);
        let (target, pause) = (writer.target, writer.pause_us());
        for (request, wish) in wishes {
            self.requests.push(match wish {
                Wish::Open => Request::Open { writer: at },
                Wish::Append(group) => Request::Append { writer: at, group },
            });
            if !self.rng.chance(self.profile.client_loss) {
                let arrives = self.lane(at, target as usize);
                self.schedule(arrives, Event::Request { node: target, request });
            }
        }
        self.schedule(self.now_us + pause, Event::Writer { at });
        Ok(())
    }

    fn ask(&mut self, node: u64, request: Request) {
        self.next_request += 1;
        self.requests.push(request);
        self.after(30, 300, Event::Request { node, request: self.next_request });
    }

    /// Asks `node` to hand leadership to `to`.
    pub(crate) fn ask_transfer(&mut self, node: u64, to: u64) {
        self.ask(node, Request::Transfer { to });
    }

    fn on_read(&mut self) -> Checked {
        let any = self.rng.between(1, self.nodes.len() as u64 + 1);
        // Who was deposed and does not know it is the one to ask.
        let leads = |node: &&Node| node.process.as_ref().is_some_and(|process| process.replica.leads());
        let oldest = self.nodes.iter().filter(leads).min_by_key(|node| {
            let replica = node.process.as_ref().map(|process| &process.replica);
            replica.map(|replica| replica.view().term)
        });
        let oldest = oldest.map_or(any, |node| node.id);
        let node = if self.rng.chance(400) { oldest } else { any };
        self.ask(node, Request::Read { floor: 0 });
        self.after(1_000, 30_000, Event::Read);
        Ok(())
    }

    fn on_follower(&mut self, at: usize) -> Checked {
        self.after(2_000, 30_000, Event::Follower { at });
        let count = self.nodes.len() as u64;
        let next = self.checkers.reader_next(at);
        let moves = self.rng.chance(30);
        let stale = self.rng.chance(300);
        let other = self.rng.between(1, count + 1);
        let follower = &mut self.followers[at];
        if moves || follower.feed.is_none() || self.nodes[follower.node as usize - 1].alive(follower.life).is_none() {
            follower.node = other;
            follower.life = self.nodes[other as usize - 1].life;
            follower.feed = Some(graven::replica::feed::Feed::new(next));
            follower.view = None;
        }
        let Some(process) = self.nodes[follower.node as usize - 1].process.as_ref() else {
            follower.feed = None;
            return Ok(());
        };
        let Some(feed) = &mut follower.feed else { return Ok(()) };
        // The view that a reader's task has may be an old one.
        let news = process.replica.view();
        let view = follower.view.filter(|_| stale).unwrap_or(news);
        follower.view = Some(news);
        for _ in 0..4 {
            match feed.step(&view) {
                graven::replica::feed::Step::Read => {
                    let frames = feed.read(&process.reader, &view, 4096).map_err(|error| Violation {
                        property: "P4",
                        detail: format!("node {} cannot read for its reader at {next}: {error}", follower.node),
                    })?;
                    for frame in &frames {
                        self.checkers.delivered(at, frame)?;
                    }
                }
                graven::replica::feed::Step::CaughtUp { next_offset } => {
                    self.checkers.caught_up(at, next_offset, view.next_offset)?;
                }
                graven::replica::feed::Step::Wait => break,
                graven::replica::feed::Step::Trimmed { from, to } => {
                    let detail = format!("reader {at} is told that {from} to {to} were trimmed; nothing was");
                    return Err(Violation { property: "P4", detail });
                }
            }
        }
        Ok(())
    }

    /// Lets writers finish: each makes a few more appends, to show that the healed cluster takes them.
    pub(crate) fn finish_writers(&mut self) {
        for writer in &mut self.writers {
            writer.finish_after(3);
        }
    }

    fn left(&self) -> Left {
        let entries = self.checkers.log().len() as u64;
        let records = self.checkers.committed_records();
        let shows = |node: &Node| node.process.as_ref().map_or(0, |process| process.replica.view().readable_index);
        let behind = self.nodes.iter().map(|node| (node.id, shows(node))).filter(|(_, shown)| *shown != entries);
        let readers = (0..self.followers.len()).filter(|at| self.checkers.reader_next(*at) != records);
        Left {
            clients: self.writers.iter().filter(|writer| !writer.is_finished()).map(|writer| writer.id).collect(),
            readers: readers.map(|at| at as u64).collect(),
            nodes: behind.collect(),
            leaderless: self.leader().is_none(),
        }
    }

    pub(crate) fn read_back(&self) -> Checked {
        for node in &self.nodes {
            let Some(process) = &node.process else { continue };
            let mut frames = Vec::new();
            for index in 1..=process.replica.view().readable_index {
                match process.reader.frame(index) {
                    Ok(frame) => frames.push(frame),
                    Err(error) => {
                        let detail = format!("node {} cannot read entry {index}: {error}", node.id);
                        return Err(Violation { property: "P2", detail });
                    }
                }
            }
            self.checkers.read_back(node.id, &frames)?;
        }
        Ok(())
    }
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
    let members = Members { nodes: (1..=nodes).map(member).collect() };
    let body = Body::from_chunks(vec![members.encode().unwrap_or_default().into()]);
    let crc = body.crc();
    let spec = HeaderSpec { kind: Kind::Membership, term: 1, index: 1, base_offset: 0, count: 0, timestamp_ms: 0 };
    Frame::seal(spec, Chain::START, body, crc)
}
