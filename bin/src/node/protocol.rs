//! The protocol thread: it owns the replica and the endpoint to the peers, and nothing else happens on it.
//!
//! One turn: take what has arrived, give it to the replica, carry out the effects, publish the view. No disk call and no
//! page fault of the log happens here; what is sent to followers is in memory already, or is loaded by another thread.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use graven_net::peer::{Held, PeerEvent, PeerPlane, RefusedBy};
use graven_net::protocol::Behind;
use graven_net::server::{Ack, LeaderView, PeerHealth, Rejection as Rejected, SocketHealth};
use graven_raft::{NodeId, Role, Tick};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use super::checkpoints::Wanted;
use super::counters::Counters;
use super::engine::{Fatal, roster_of};
use super::failure::failure;
use super::input::{Input, Reply, Waiter, Who};
use super::log_thread::{LogInput, LogReport};
use super::pictures::PictureTask;
use crate::members::Members;
use crate::replica::laggards::Lag;
use crate::replica::names::Directory;
use crate::replica::{Alarm, Answer, DiskJob, Effect, Load, Now, Rejection, Replica, RequestId, View};

/// Inputs taken in one turn at most, so that time is looked at between bursts.
const TURN_INPUTS: usize = 1024;
/// How often it is noted how the peers are: whoever asks sees what was true a moment ago.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A node that hands over before it stops waits this long for a successor.
const STEP_DOWN_MAX: Duration = Duration::from_secs(3);

/// The ends of all channels that the protocol thread holds.
pub(super) struct Channels {
    pub(super) inputs: mpsc::Receiver<Input>,
    pub(super) peers: mpsc::Receiver<PeerEvent>,
    pub(super) reports: mpsc::Receiver<LogReport>,
    pub(super) jobs: SyncSender<LogInput>,
    pub(super) loads: SyncSender<Load>,
    pub(super) fetches: mpsc::Sender<Wanted>,
    pub(super) pictures: mpsc::Sender<PictureTask>,
    pub(super) view: watch::Sender<View>,
    pub(super) leader: watch::Sender<LeaderView>,
    pub(super) members: watch::Sender<Members>,
    pub(super) names: watch::Sender<Arc<Directory>>,
    pub(super) fatal: mpsc::Sender<Fatal>,
}

/// See the module's documentation.
pub(super) struct Protocol {
    replica: Replica,
    plane: PeerPlane,
    channels: Channels,
    counters: Arc<Counters>,
    started: Instant,
    waiting: HashMap<RequestId, Waiting>,
    next_request: u64,
    members_version: u64,
    names_version: u64,
    stepping_down: Option<SteppingDown>,
    led_in: u64,
    /// What appends of this turn hold of the peers' bound on memory.
    arrived: Vec<Held>,
    /// The same of earlier turns, until the disk job that was the last one at that time is done.
    unsynced: VecDeque<(u64, Vec<Held>)>,
    /// The last job handed to the log thread, and the last one it reported.
    jobs: (u64, u64),
    /// When the peers were looked at for [`Counters`] last.
    looked: Option<Instant>,
    /// Term, leader and membership as last published.
    leadership: Option<(u64, Option<NodeId>, u64)>,
}

/// A hand-over before the node stops.
struct SteppingDown {
    until: Instant,
    answer: oneshot::Receiver<Result<Answer, Rejection>>,
    done: oneshot::Sender<()>,
}

/// Effects of a turn that came to nothing.
#[derive(Default)]
struct Undone {
    /// Peers whose lane did not take an append.
    lost: Vec<NodeId>,
    /// Loads that nobody took on.
    loads: Vec<u64>,
}

enum Waiting {
    Append(Waiter),
    Other(Reply),
}

/// Whether the thread goes on.
#[derive(PartialEq, Eq)]
enum Go {
    On,
    Stop,
}

impl Protocol {
    pub(super) fn new(
        replica: Replica,
        plane: PeerPlane,
        channels: Channels,
        counters: Arc<Counters>,
        started: Instant,
    ) -> Protocol {
        Protocol {
            replica,
            plane,
            channels,
            counters,
            started,
            waiting: HashMap::new(),
            next_request: 0,
            members_version: 0,
            names_version: 0,
            stepping_down: None,
            led_in: 0,
            arrived: Vec::new(),
            unsynced: VecDeque::new(),
            jobs: (0, 0),
            looked: None,
            leadership: None,
        }
    }

    /// Runs until it is told to stop or something fatal happens.
    pub(super) async fn run(mut self) {
        let mut inputs = Vec::with_capacity(TURN_INPUTS);
        let mut events = Vec::with_capacity(TURN_INPUTS);
        self.turn_end();
        loop {
            let deadline = self.deadline();
            tokio::select! {
                biased;
                report = self.channels.reports.recv() => match report {
                    Some(report) => if self.on_report(report) == Go::Stop { break },
                    None => break,
                },
                count = self.channels.peers.recv_many(&mut events, TURN_INPUTS) => if count == 0 { break },
                count = self.channels.inputs.recv_many(&mut inputs, TURN_INPUTS) => if count == 0 { break },
                () = tokio::time::sleep_until(deadline.into()) => {
                    let now = self.now();
                    self.replica.tick(now);
                }
            }
            for event in events.drain(..) {
                self.on_peer(event);
            }
            if self.on_inputs(&mut inputs) == Go::Stop {
                break;
            }
            self.turn_end();
        }
        self.plane.close().await;
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            tick: Tick(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)),
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn deadline(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(1);
        let wanted = self.replica.next_deadline().map_or(far, |tick| self.started + Duration::from_micros(tick.0));
        let wanted = match &self.stepping_down {
            Some(stepping) => wanted.min(stepping.until),
            None => wanted,
        };
        wanted.min(far)
    }

    fn on_report(&mut self, report: LogReport) -> Go {
        match report {
            LogReport::Done(report) => {
                let now = self.now();
                self.replica.disk_done(now, report);
                self.jobs.1 = report.sequence;
                while self.unsynced.front().is_some_and(|(last, _)| *last <= report.sequence) {
                    self.unsynced.pop_front();
                }
                Go::On
            }
            LogReport::Failed(cause) => {
                // Nobody is told anything from here on: what this node has not acknowledged, it never will.
                let _ = self.channels.fatal.try_send(Fatal::Log(cause));
                Go::Stop
            }
        }
    }

    fn on_peer(&mut self, event: PeerEvent) {
        let now = self.now();
        match event {
            PeerEvent::Message { from, message } => self.replica.receive(now, from, message),
            PeerEvent::Append { from, head, frames, held } => {
                self.replica.receive_append(now, from, head, frames);
                self.arrived.push(held);
            }
            PeerEvent::Up { node } => {
                debug!(node = node.0, "peer connected");
                self.counters.note_peers(|seen| seen.trouble = None);
                if let Some(level) = self.plane.feature_level(node) {
                    self.replica.announced(now, node, level);
                }
                self.replica.reachable(now, node);
            }
            PeerEvent::Down { node, reason } => {
                debug!(node = node.0, %reason, "peer disconnected");
                self.replica.unreachable(now, node);
            }
            PeerEvent::Refused { node, address, by, refusal } => {
                if by == RefusedBy::Them && refusal.disowns() {
                    self.counters.note_peers(|seen| seen.trouble = Some(refusal.to_string()));
                }
                let node = node.map(|node| node.0);
                match by {
                    RefusedBy::Us => warn!(node, %address, "connection of a peer refused: {refusal}"),
                    RefusedBy::Them => warn!(node, %address, "a peer refused our connection: {refusal}"),
                }
            }
            PeerEvent::Disowned { by, refusal } => {
                let fatal = Fatal::Disowned { by: by.0, refusal: refusal.to_string() };
                let _ = self.channels.fatal.try_send(fatal);
            }
            other => debug!("peer event {other:?}"),
        }
    }

    fn on_inputs(&mut self, inputs: &mut Vec<Input>) -> Go {
        let now = self.now();
        for input in inputs.drain(..) {
            match input {
                Input::Append(group, waiter) => {
                    let client = waiter.who.client();
                    let request = self.register(Waiting::Append(waiter));
                    self.replica.append_of(client, request, group);
                }
                Input::OpenSession(reply) => {
                    let request = self.register(Waiting::Other(reply));
                    self.replica.open_session(now, request);
                }
                Input::ReadIndex(reply) => {
                    let request = self.register(Waiting::Other(reply));
                    self.replica.read_index(now, request);
                }
                Input::Transfer(to, reply) => {
                    let request = self.register(Waiting::Other(reply));
                    self.replica.transfer(now, request, NodeId(to));
                }
                Input::ChangeMembers(change, reply) => {
                    let request = self.register(Waiting::Other(reply));
                    self.replica.change_members(now, request, &change);
                }
                Input::Trim(before, reply) => {
                    let request = self.register(Waiting::Other(reply));
                    self.replica.trim(now, request, before);
                }
                Input::MoveCursor(wanted, reply) => {
                    let request = self.register(Waiting::Other(reply));
                    self.replica.move_cursor(now, request, wanted);
                }
                // Whoever asked may have gone away.
                Input::Cursor(name, reply) => drop(reply.send(self.replica.cursor(&name))),
                Input::Cursors(after, count, reply) => {
                    let found = self.replica.cursors_after(&after).take(count);
                    let _ = reply.send(found.map(|(name, offset)| (name.to_owned(), offset)).collect());
                }
                Input::MayOffer(name, offset, reply) => {
                    // Whoever asked may have gone away.
                    let _ = reply.send(self.replica.may_offer(&name, offset).map(|()| Answer::Welcome));
                }
                Input::Offer(name, picture, reply) => {
                    let request = self.register(Waiting::Other(reply));
                    self.replica.offer(now, request, name, picture);
                }
                Input::DropSnapshot(name, reply) => {
                    let request = self.register(Waiting::Other(reply));
                    self.replica.drop_snapshot(now, request, &name);
                }
                Input::PictureFetched(id, fetched) => self.replica.picture_fetched(now, id, fetched),
                Input::PictureLost(id) => self.replica.picture_lost(now, id),
                Input::StatesKept(kept) => self.replica.states_kept(now, kept),
                Input::Fetched(token, checkpoint) => self.replica.fetched(now, token, checkpoint.map(|it| *it)),
                Input::CheckpointLost(index) => self.replica.checkpoint_lost(now, index),
                Input::Damaged(damaged) => self.replica.note_damage(now, damaged),
                Input::Applied(index) => self.replica.applied(now, index),
                Input::Loaded(token, frames) => self.replica.loaded(now, token, frames),
                Input::StepDown(done) => self.step_down(now, done),
                Input::Stop => return Go::Stop,
            }
        }
        Go::On
    }

    fn register(&mut self, waiting: Waiting) -> RequestId {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.waiting.insert(request, waiting);
        request
    }

    /// Hands the leadership to the follower that is furthest, so that clients wait for a message and not for a timeout.
    fn step_down(&mut self, now: Now, done: oneshot::Sender<()>) {
        let core = self.replica.core();
        let others = core.progress().filter(|follower| follower.node != self.replica.id());
        let best = others.filter(|other| core.membership().is_voter(other.node)).max_by_key(|other| other.matched);
        let Some(best) = best.filter(|_| self.replica.leads()) else {
            // Nothing to hand over, or nobody to take it.
            let _ = done.send(());
            return;
        };
        let (reply, answer) = oneshot::channel();
        let request = self.register(Waiting::Other(reply));
        self.replica.transfer(now, request, best.node);
        self.stepping_down = Some(SteppingDown { until: Instant::now() + STEP_DOWN_MAX, answer, done });
    }

    /// Tells whoever waits that the leadership is elsewhere, or that nobody took it.
    fn maybe_stepped_down(&mut self) {
        let Some(stepping) = &mut self.stepping_down else { return };
        let answered = !matches!(stepping.answer.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        if (answered || !self.replica.leads() || Instant::now() >= stepping.until)
            && let Some(stepping) = self.stepping_down.take()
        {
            let _ = stepping.done.send(());
        }
    }

    /// Carries out what the inputs of this turn caused, and publishes what changed.
    fn turn_end(&mut self) {
        let now = self.now();
        self.replica.flush(now);
        let mut undone = Undone::default();
        loop {
            // Before any answer: whoever is told that a read covers something finds it there.
            self.publish_names();
            while let Some(effect) = self.replica.poll() {
                self.carry_out(effect, &mut undone);
            }
            if undone.lost.is_empty() && undone.loads.is_empty() {
                break;
            }
            for peer in undone.lost.drain(..) {
                self.replica.unreachable(now, peer);
            }
            for token in undone.loads.drain(..) {
                self.replica.loaded(now, token, Vec::new());
            }
        }
        let arrived = std::mem::take(&mut self.arrived);
        if !arrived.is_empty() && self.jobs.0 > self.jobs.1 {
            self.unsynced.push_back((self.jobs.0, arrived));
        }
        self.publish();
        self.maybe_stepped_down();
    }

    fn carry_out(&mut self, effect: Effect, undone: &mut Undone) {
        match effect {
            Effect::Send { to, message } => {
                // Control messages may be lost: the protocol repeats what matters.
                let _ = self.plane.send(to, &message);
            }
            Effect::SendAppend { to, head, frames } => {
                if self.plane.send_append(to, head, frames).is_err() {
                    self.counters.appends_dropped.add(1);
                    if !undone.lost.contains(&to) {
                        undone.lost.push(to);
                    }
                }
            }
            Effect::Disk(job) => {
                self.jobs.0 = job.sequence;
                self.hand_to_disk(job);
            }
            Effect::Load(load) => self.load(load, undone),
            Effect::Fetch(fetch) => {
                // Whoever fetches answers later; nobody there to do it is an answer too.
                let guest = self.plane.guest(fetch.from);
                if self.channels.fetches.try_send((fetch, guest)).is_err() {
                    let now = self.now();
                    self.replica.fetched(now, fetch.token, None);
                }
            }
            Effect::FetchPicture { name, picture } => {
                if self.channels.pictures.try_send(PictureTask::Fetch { name, picture }).is_err() {
                    let now = self.now();
                    self.replica.picture_fetched(now, picture.id, false);
                }
            }
            // What finds no place in the queue is found, and removed, by the next start.
            Effect::ForgetPicture(id) => drop(self.channels.pictures.try_send(PictureTask::Forget(id))),
            Effect::Recovered => info!("this node has everything again that it may have acknowledged; it votes"),
            Effect::Answer { request, answer } => self.answer(request, answer),
            Effect::Role { role, term, leader } => self.on_role(role, term.0, leader),
            Effect::Alarm(alarm) => {
                error!("{alarm}");
                if Replica::must_stop(&alarm) {
                    let _ = self.channels.fatal.try_send(Fatal::Alarm(alarm));
                }
            }
        }
    }

    /// Never waits: while the disk hangs, heartbeats must go on.
    fn hand_to_disk(&mut self, job: DiskJob) {
        // A closed channel means that the log thread has failed; its report is on the way.
        if let Err(TrySendError::Full(_)) = self.channels.jobs.try_send(LogInput::Job(job)) {
            let _ = self.channels.fatal.try_send(Fatal::Alarm(Alarm::DiskStalled));
        }
    }

    /// Never waits: what cannot be read soon counts as not read, and is asked for again.
    fn load(&mut self, load: Load, undone: &mut Undone) {
        self.counters.cold_loads.add(1);
        if let Err(TrySendError::Full(load)) = self.channels.loads.try_send(load) {
            undone.loads.push(load.token);
        }
    }

    fn on_role(&mut self, role: Role, term: u64, leader: Option<NodeId>) {
        if role == Role::Leader && self.led_in != term {
            self.led_in = term;
            self.counters.elections.add(1);
            info!(term, "this node leads");
        } else if role != Role::Leader {
            info!(term, leader = leader.map(|node| node.0), "role {role:?}");
            for member in self.replica.members().into_iter().flat_map(Members::present) {
                self.plane.reset_append(NodeId(member.id));
            }
        }
    }

    fn answer(&mut self, request: RequestId, answer: Result<Answer, Rejection>) {
        match self.waiting.remove(&request) {
            Some(Waiting::Other(reply)) => {
                // Whoever asked may have gone away.
                let _ = reply.send(answer);
            }
            Some(Waiting::Append(waiter)) => self.answer_append(waiter, answer),
            None => debug!(request = request.0, "an answer nobody waits for"),
        }
    }

    fn answer_append(&mut self, waiter: Waiter, answer: Result<Answer, Rejection>) {
        let answer = match answer {
            Ok(Answer::Appended(placed)) => {
                self.counters.appends_acked.add(1);
                self.counters.records_acked.add(u64::from(placed.count));
                Ok(placed)
            }
            Ok(other) => {
                debug_assert!(false, "an append was answered {other:?}");
                Err(Rejection::SessionExpired)
            }
            Err(rejection) => Err(rejection),
        };
        let Waiter { who, permit } = waiter;
        match who {
            Who::Embedded(waiting) => waiting.done(answer),
            Who::Client(reply) => reply.done(match answer {
                Ok(placed) => Ok(Ack {
                    first: placed.first,
                    last: placed.first + u64::from(placed.count) - 1,
                    records: u64::from(placed.count),
                    term: placed.term,
                    timestamp: placed.timestamp_ms,
                }),
                Err(rejection) => Err(self.rejected(rejection)),
            }),
        }
        drop(permit);
    }

    fn rejected(&self, rejection: Rejection) -> Rejected {
        match rejection {
            Rejection::NotLeader { .. } => Rejected::NotLeader(self.leader_view()),
            Rejection::LostLeadership { .. } => Rejected::Unsure,
            Rejection::Gap { expected } => Rejected::Gap { expected },
            Rejection::Transferring | Rejection::ReadFailed => Rejected::Again,
            other => Rejected::Failed(failure(other)),
        }
    }

    fn leader_view(&self) -> LeaderView {
        let leader = self.replica.core().leader();
        let member = leader.and_then(|id| self.replica.members()?.by_id(id.0));
        LeaderView {
            term: self.replica.core().term().0,
            leader: member.map(|member| member.name.clone()),
            address: member.map(|member| member.client_address.clone()),
        }
    }

    fn publish_names(&mut self) {
        if self.names_version != self.replica.names_version() {
            self.names_version = self.replica.names_version();
            self.channels.names.send_replace(Arc::new(self.replica.names().clone()));
        }
    }

    fn publish(&mut self) {
        if self.members_version != self.replica.members_version() {
            self.members_version = self.replica.members_version();
            let members = self.replica.members().cloned().unwrap_or_default();
            self.plane.set_roster(roster_of(&self.replica.company()));
            if let Some((in_force, known)) = self.replica.outgrown() {
                let _ = self.channels.fatal.try_send(Fatal::FeatureLevel { in_force, known });
            }
            self.channels.members.send_replace(members);
        }
        self.publish_names();
        let view = self.replica.view();
        // Readers are woken only by what concerns them; the rest is there for whoever looks.
        self.channels.view.send_if_modified(|published| {
            let readers = |view: &View| (view.readable_index, view.first_offset, view.diverged);
            let changed = readers(published) != readers(&view);
            *published = view;
            changed
        });
        self.look_at_peers();
        let leadership = (view.term.0, view.leader, self.members_version);
        if self.leadership != Some(leadership) {
            self.leadership = Some(leadership);
            self.channels.leader.send_replace(self.leader_view());
        }
    }
}

impl Protocol {
    /// Notes how the peers are, for whoever asks, now and then.
    fn look_at_peers(&mut self) {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let stats = self.plane.stats();
        let size = |bytes: usize| bytes as u64;
        let peer = |(node, link): (&NodeId, &graven_net::peer::LinkStats)| PeerHealth {
            id: node.0,
            up: link.up,
            feature_level: link.feature_level,
            rtt_us: link.control.map(|lane| u64::try_from(lane.rtt.as_micros()).unwrap_or(u64::MAX)),
        };
        let behind = |lag: Lag| Behind {
            lag_entries: lag.entries,
            checkpoints: lag.checkpoints,
            growing_ms: lag.growing_us / 1000,
        };
        let followers = self.replica.lags().map(|(node, lag)| (node.0, behind(lag))).collect();
        self.counters.note_peers(|seen| {
            let socket = stats.socket;
            seen.socket =
                SocketHealth { wanted: size(socket.wanted), receive: size(socket.receive), send: size(socket.send) };
            seen.peers = stats.peers.iter().map(peer).collect();
            seen.followers = followers;
        });
    }
}
