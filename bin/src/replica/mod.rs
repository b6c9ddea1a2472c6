//! A whole node minus threads, sockets and clocks.
//!
//! [`Replica`] holds the Raft core, the view of the log, the session table and everybody who waits for an answer. Inputs
//! change its state (messages, requests, completions of disk jobs, time); [`Replica::poll`] drains what is to be done. It
//! makes no disk call and starts nothing: it hands out [`DiskJob`]s in order and takes their completions. The daemon carries
//! inputs and effects between threads; the simulator runs the very same code on simulated time, network and disk.
//!
//! What decides the promises is in here:
//!
//! - an append is answered when its entry is committed, and the core counts a node only after its disk reported;
//! - votes, requests for votes and acknowledgements wait for the disk job they rest on;
//! - received frames are checked against the chain of the log before the core hears of them;
//! - readers see an entry when it is committed and durable on this node.

mod acks;
mod checkpoint;
pub mod cursors;
pub mod disk;
pub mod effect;
mod entry;
mod features;
pub mod feed;
mod feeding;
pub mod fold;
mod install;
mod intake;
pub mod laggards;
pub mod log;
mod membership;
pub mod names;
mod pace;
mod pins;
#[doc(hidden)]
pub mod planted;
mod received;
mod recovering;
mod report;
pub mod restore;
mod retention;
mod room;
pub mod sessions;
pub mod snapshots;
mod status;
mod tables;
mod trim;
mod turns;

use std::collections::{HashMap, VecDeque};

use graven_frame::{Body, Frame, FrameError, Group, HeaderSpec, Kind};
use graven_raft::{
    AppendHead, Core, Index, LogId, Membership, Message, NodeId, Output, ProposeError, Role, Term, Tick, Write,
};
use graven_snapshot::Checkpoint;
use graven_wal::{Room, Waypoint};

use crate::config::Retention;
use crate::members::Members;
use acks::Acks;
use checkpoint::{Checkpoints, State};
pub use checkpoint::{Kept, StateError};
pub use effect::{Alarm, Answer, Chore, DiskJob, Effect, Fetch, Load, Now, Rejection, RequestId, View};
use entry::{apply_to_sessions, entry_meta, members_of};
use feeding::Feeding;
use install::Installs;
use intake::{Intake, Wanted};
use log::{LogView, Mark};
use membership::{Changing, Growth};
use pace::Pace;
use planted::{Bug, is_planted};
use received::Refused;
pub use recovering::LostEnd;
use recovering::Recovering;
use report::Reports;
use retention::Keeper;
use sessions::Sessions;
use snapshots::{Pictures, StatesKept};
#[doc(hidden)]
pub use status::Footprint;
use tables::Tables;

/// Recent frames kept in memory for followers: four windows of 1 MiB, so that a follower that pauses for a moment is fed
/// without touching the disk. More would cost several times as much memory: see [`log::LogView::release`].
pub const RING_BYTES: usize = 4 << 20;
/// A log that has not grown for so long keeps no recent frames in memory.
const QUIET_US: u64 = 1_000_000;

/// Settings of a replica.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// Settings of the Raft core, this node's id among them.
    pub raft: graven_raft::Config,
    /// Bytes of recent frames kept in memory.
    pub ring_bytes: usize,
    /// Whether a state machine reports [`Replica::applied`]; without one, readable is applied.
    pub state_machine: bool,
    /// The cluster's id: checkpoints of others are refused.
    pub cluster: u128,
    /// Bytes of log after which a checkpoint is made.
    pub checkpoint_bytes: u64,
    /// What this node lost with the end of its log: until it has everything that it may once have acknowledged, it neither votes nor stands.
    pub recovering: Option<LostEnd>,
    /// When old records are trimmed while this node leads.
    pub retention: Retention,
}

/// What a node finds on its disk when it starts.
#[derive(Debug, Clone)]
pub struct Restored {
    /// Term and vote.
    pub hard_state: graven_raft::HardState,
    /// The entry before the first one held: index 0 unless the log was trimmed.
    pub base: Mark,
    /// The terms of the entries held, with the first index of each.
    pub term_runs: Vec<(Term, Index)>,
    /// The highest index known to be committed.
    pub known_commit: u64,
    /// The last entry's index.
    pub last_index: u64,
    /// The newest checkpoint that can be used.
    pub checkpoint: Option<Checkpoint>,
    /// All that are durable, oldest first.
    pub kept: Vec<Kept>,
    /// Places in the log up to where the frames begin that are read at the start.
    pub waypoints: Vec<Waypoint>,
    /// The pictures of applications whose files are durable, by their ids.
    pub pictures: Vec<u64>,
    /// The durable snapshots of this node's own state machine.
    pub states: StatesKept,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Replica {
    config: ReplicaConfig,
    core: Core,
    log: LogView,
    first_offset: u64,
    tables: Tables,
    reports: Reports,
    keeper: Option<Keeper>,
    pictures: Pictures,
    checkpoints: Checkpoints,
    installs: Installs,
    pins: pins::Pins,
    laggards: laggards::Laggards,
    recovering: Option<Recovering>,
    /// Damage in the log is known.
    damaged: bool,
    sessions: Sessions,
    /// The members in the log, from the newest committed ones on.
    members: Vec<(u64, Members)>,
    /// Counts their changes.
    members_version: u64,
    changing: Changing,
    features: features::Features,
    growth: Growth,
    intake: Intake,
    pace: Pace,
    /// Moves of cursors that wait for the disk.
    moves: cursors::Waiting,
    acks: Acks,
    /// Frames of the input in hand, until the core says which of them are new.
    stash: VecDeque<Frame>,
    jobs: VecDeque<Job>,
    job_sequence: u64,
    durable: u64,
    /// The commit index as far as outputs were drained: the core's own may already speak of entries that the log's view, and
    /// the disk, get with a later output.
    committed: u64,
    /// Messages that wait for a disk job.
    held: VecDeque<(u64, NodeId, Message)>,
    loads: HashMap<u64, Feeding>,
    next_token: u64,
    next_round: u64,
    transfers: Vec<(NodeId, RequestId)>,
    applied: u64,
    disk_full: bool,
    /// What the disk has room for, behind all jobs.
    room: Room,
    diverged: bool,
    /// The last index, and since when it stands.
    quiet: (u64, Tick),
    effects: VecDeque<Effect>,
    ready: Vec<acks::Ready>,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    sequence: u64,
    /// What the core is told when it is done: term and last entry.
    persist: Option<(Term, Index)>,
    /// First index written, when it writes entries.
    first: Option<u64>,
    after: After,
    /// Bytes of its frames.
    bytes: usize,
}

/// What else comes of a job that is done.
#[derive(Debug, Clone, Copy)]
enum After {
    Nothing,
    /// A checkpoint of this node was to be saved.
    Saved(Kept),
    /// A checkpoint of another node was to be installed.
    Installed,
}

impl Replica {
    /// A replica over the log that `restored` and `frames` describe. `frames` are the entries behind the checkpoint, all of them if
    /// there is none, in order.
    ///
    /// # Errors
    /// What reading a frame returned, a frame that does not decode, or a checkpoint that does not.
    pub fn new<E: From<FrameError> + From<StateError>>(
        config: ReplicaConfig,
        restored: &Restored,
        frames: impl IntoIterator<Item = Result<Frame, E>>,
        now: Now,
    ) -> Result<Replica, E> {
        let state = restored.checkpoint.as_ref().map(|checkpoint| State::decode(&checkpoint.state)).transpose()?;
        let start = restored.checkpoint.as_ref().map_or(restored.base, |checkpoint| checkpoint.base.into());
        let mut log = LogView::new(start, config.ring_bytes);
        let (mut first_offset, mut members, mut sessions, mut tables, mut grown) = match state {
            Some(State { first_offset, members_index, members, sessions, tables }) => {
                (first_offset, vec![(members_index, members)], sessions, tables, 0)
            }
            None => (0, Vec::new(), Sessions::default(), Tables::default(), 0),
        };
        let mut keeper = Keeper::found(config.retention, &restored.waypoints, start);
        for frame in frames {
            let frame = frame?;
            let index = frame.header().index;
            apply_to_sessions(&mut sessions, &frame)?;
            if let Some(found) = members_of(&frame)? {
                members.push((index, found));
            }
            tables.note(&frame)?;
            grown += frame.encoded_len() as u64;
            log.push(frame);
            if index <= restored.known_commit {
                Keeper::passes(keeper.as_mut(), &log, index);
                log.advance_readable(index);
                log.shrink(index);
            }
        }
        let commit = log.readable().index;
        first_offset = first_offset.max(restored.base.next_offset).max(tables.trims.pass(commit).unwrap_or(0));
        tables.pass(commit);
        sessions.commit(commit);
        forget_older(&mut members, commit);
        // A state machine is given everything from the first entry on.
        let applied = if config.state_machine { restored.base.index } else { commit };
        let mut core = core_of(&config, restored, &log, &members, applied, now);
        let recovering = config.recovering.map(Recovering::new);
        if recovering.is_some() && !is_planted(Bug::LostEndVotes) {
            core.abstain(now.tick, true);
        }
        let checkpoints = Checkpoints::found(restored.kept.clone(), grown, restored.base.index);
        Ok(Replica {
            durable: log.last().index,
            committed: commit,
            applied,
            first_offset,
            tables,
            reports: Reports::found(&restored.pictures, restored.states.newest),
            keeper,
            pictures: Pictures::found(restored.pictures.iter().copied(), restored.states),
            checkpoints,
            installs: Installs::default(),
            pins: pins::Pins::default(),
            laggards: laggards::Laggards::default(),
            recovering,
            damaged: false,
            config,
            core,
            log,
            sessions,
            members,
            members_version: 1,
            changing: Changing::default(),
            features: features::Features::default(),
            growth: Growth::default(),
            intake: Intake::default(),
            pace: Pace::default(),
            moves: cursors::Waiting::default(),
            acks: Acks::default(),
            stash: VecDeque::new(),
            jobs: VecDeque::new(),
            job_sequence: 0,
            held: VecDeque::new(),
            loads: HashMap::new(),
            next_token: 0,
            next_round: 0,
            transfers: Vec::new(),
            disk_full: false,
            room: Room::plenty(),
            diverged: false,
            quiet: (0, now.tick),
            effects: VecDeque::new(),
            ready: Vec::new(),
        })
    }

    /// Takes in that time has passed.
    pub fn tick(&mut self, now: Now) {
        self.core.tick(now.tick);
        self.maybe_release_ring(now.tick);
        self.make_offers(now.tick);
        self.look_at_followers(now.tick);
        self.maybe_report(now);
        self.settle(now);
    }

    fn maybe_release_ring(&mut self, now: Tick) {
        let last = self.log.last().index;
        if self.quiet.0 != last {
            self.quiet = (last, now);
        } else if now.since(self.quiet.1) >= QUIET_US {
            self.log.release(self.durable);
        }
    }

    /// When [`Replica::tick`] must be called at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let own = [
            self.changing.deadline(),
            self.installs.deadline(),
            self.report_deadline(),
            self.pictures.deadline(),
            self.retention_deadline(),
        ];
        self.core.next_deadline().into_iter().chain(own.into_iter().flatten()).min()
    }

    /// Takes in a control message from a peer.
    pub fn receive(&mut self, now: Now, from: NodeId, message: Message) {
        if self.diverged {
            return;
        }
        let report = match &message {
            Message::Report { term, report } => Some((*term, report.clone())),
            _ => None,
        };
        self.core.receive(now.tick, from, message);
        if let Some((_, report)) = report.filter(|(term, _)| *term == self.core.term()) {
            self.on_report(now, from, report);
        }
        self.settle(now);
    }

    /// Takes in frames from the node that leads. Their header and body checksums have been verified; that they follow each
    /// other, and what this node's log has, is checked here.
    pub fn receive_append(&mut self, now: Now, from: NodeId, head: AppendHead, frames: Vec<Frame>) {
        if self.diverged || self.installs.is_installing() {
            return;
        }
        if let Some(recovering) = &mut self.recovering {
            recovering.counted_on(&head);
        }
        let mut entries = match self.check_append(&head, &frames) {
            Ok(entries) => entries,
            Err(alarm) => {
                self.diverged |= matches!(alarm, Refused::Diverged(_));
                self.effects.push_back(Effect::Alarm(match alarm {
                    Refused::Diverged(index) => Alarm::Diverged { index, peer: from },
                    Refused::Malformed(reason) => Alarm::BadAppend { peer: from, reason },
                }));
                return;
            }
        };
        entries.truncate(self.frames_with_room(&frames));
        self.stash = frames.into();
        self.core.receive_append(now.tick, from, head, entries);
        self.settle(now);
        self.stash.clear();
    }

    /// Takes in an append of whoever embeds this node; see [`Replica::append_of`].
    pub fn append(&mut self, request: RequestId, group: Group) {
        self.append_of(0, request, group);
    }

    /// Takes in an append of `client`; [`Replica::flush`] puts it into the log. The answer comes as an effect. Clients take turns; what one of
    /// them wants goes in in the order in which it came.
    pub fn append_of(&mut self, client: u64, request: RequestId, group: Group) {
        if let Some(rejection) = self.refusal() {
            return self.answer(request, Err(rejection));
        }
        let header = group.header();
        if header.count == 0 || header.session.is_some() != header.sequence.is_some() {
            return self.answer(request, Err(Rejection::Malformed));
        }
        self.pace.arrives(client);
        self.intake.push(client, Wanted::Append(request, group));
    }

    /// Takes in a client's wish for a session.
    pub fn open_session(&mut self, now: Now, request: RequestId) {
        if let Some(rejection) = self.refusal() {
            return self.answer(request, Err(rejection));
        }
        // All sessions take their turns together: whoever opens many waits behind its own.
        self.intake.push(0, Wanted::Session(request));
        self.settle(now);
    }

    /// Takes in a linearizable read: answered with an offset past every append acknowledged before now.
    pub fn read_index(&mut self, now: Now, request: RequestId) {
        if is_planted(Bug::StaleRead) {
            let next_offset = self.log.readable().next_offset;
            return self.answer(request, Ok(Answer::ReadIndex { next_offset }));
        }
        let round = self.fresh_round();
        match self.core.read(now.tick, round) {
            Ok(()) => self.acks.read(round, request),
            Err(_) => self.answer(request, Err(Rejection::ReadFailed)),
        }
        self.settle(now);
    }

    /// Takes in the wish that `to` should lead.
    pub fn transfer(&mut self, now: Now, request: RequestId, to: NodeId) {
        if self.core.role() != Role::Leader {
            let leader = self.core.leader();
            let answer =
                if leader == Some(to) { Ok(Answer::Transferred) } else { Err(Rejection::NotLeader { leader }) };
            return self.answer(request, answer);
        }
        if to == self.config.raft.id {
            return self.answer(request, Ok(Answer::Transferred));
        }
        match self.core.transfer(now.tick, to) {
            Ok(()) => self.transfers.push((to, request)),
            Err(_) => self.answer(request, Err(Rejection::TransferFailed)),
        }
        self.settle(now);
    }

    fn durable_up_to(&mut self, now: Now, sequence: u64, saved: disk::Saved) {
        while let Some(job) = self.jobs.front().copied()
            && job.sequence <= sequence
        {
            self.jobs.pop_front();
            if let Some((term, last)) = job.persist {
                self.durable = self.durable.max(last.0);
                self.core.durable(now.tick, term, last);
            }
            match job.after {
                After::Nothing => {}
                After::Saved(kept) => self.on_saved(kept, saved.has(kept.index)),
                After::Installed => self.on_installed(now, saved),
            }
        }
        // A later job may supersede what an earlier one wrote: its entries are not the log's any more.
        let superseded = self.jobs.iter().filter_map(|job| job.first).min().unwrap_or(u64::MAX);
        let superseded = if is_planted(Bug::StaleDurableReport) { u64::MAX } else { superseded };
        self.durable = self.durable.min(superseded - 1).min(self.log.last().index);
        while let Some((after, _, _)) = self.held.front()
            && *after <= sequence
        {
            if let Some((_, to, message)) = self.held.pop_front() {
                self.effects.push_back(Effect::Send { to, message });
            }
        }
    }

    /// Takes in that the state machine has applied everything up to `index`.
    pub fn applied(&mut self, now: Now, index: u64) {
        self.applied = self.applied.max(index);
        self.core.applied(now.tick, Index(self.applied));
        self.settle(now);
    }

    /// Takes in that what was sent to `peer` may be lost.
    pub fn unreachable(&mut self, now: Now, peer: NodeId) {
        self.core.unreachable(now.tick, peer);
        self.settle(now);
    }

    /// Takes in that `peer` can be reached again.
    pub fn reachable(&mut self, now: Now, peer: NodeId) {
        self.core.reachable(now.tick, peer);
        self.settle(now);
    }

    /// Puts what arrived with [`Replica::append`] into the log, as far as the disk is free for it. Called once after a
    /// burst of appends, so that they share a frame.
    pub fn flush(&mut self, now: Now) {
        self.settle(now);
    }

    /// The next thing to do, in order; `None` when all is done.
    #[must_use]
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn refusal(&self) -> Option<Rejection> {
        if self.core.role() != Role::Leader || self.diverged {
            return Some(Rejection::NotLeader { leader: self.core.leader() });
        }
        self.no_room()
    }

    fn answer(&mut self, request: RequestId, answer: Result<Answer, Rejection>) {
        self.effects.push_back(Effect::Answer { request, answer });
    }

    fn fresh_round(&mut self) -> u64 {
        self.next_round += 1;
        self.next_round
    }

    /// Carries out what the core wants, and proposes while the disk is free, until neither has more.
    fn settle(&mut self, now: Now) {
        loop {
            while let Some(output) = self.core.poll() {
                self.on_output(now, output);
            }
            self.maybe_begin_change(now);
            let proposed = self.propose_waiting(now)
                || self.maybe_leave_joint(now)
                || self.maybe_raise_level(now)
                || self.maybe_commit_picture(now)
                || self.maybe_trim_behind_states(now)
                || self.maybe_retain(now);
            if !proposed {
                break;
            }
        }
        self.note_growth(now.tick);
        self.advance_readable(now);
        self.maybe_recovered(now.tick);
        while let Some(output) = self.core.poll() {
            self.on_output(now, output);
        }
        for (request, answer) in std::mem::take(&mut self.ready) {
            self.answer(request, answer);
        }
    }

    fn on_output(&mut self, now: Now, output: Output) {
        match output {
            Output::Send { to, message } => self.effects.push_back(Effect::Send { to, message }),
            Output::SendAfterPersist { to, message } => match self.jobs.back() {
                Some(job) if !is_planted(Bug::PromiseBeforeSync) => self.held.push_back((job.sequence, to, message)),
                _ => self.effects.push_back(Effect::Send { to, message }),
            },
            Output::Persist(write) => self.persist(now, &write),
            Output::Append { to, prev, first, last, max_bytes, commit, request, epoch, term } => {
                let prev_chain = self.log.mark(prev.index.0).map_or(0, |mark| mark.chain.0);
                let head = AppendHead { term, prev, prev_chain, commit, request, epoch };
                let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
                self.feed(now.tick, Feeding { to, head, first: first.0, last: last.0, max_bytes });
            }
            Output::Commit { up_to } => {
                self.committed = up_to.0;
                self.members_version += u64::from(forget_older(&mut self.members, up_to.0));
                self.acks.committed(up_to.0, &mut self.ready);
            }
            Output::Role { role, term, leader } => {
                self.on_role(role, term, leader);
                self.core.abstain(now.tick, self.abstains());
            }
            Output::ReadReady { id, index } => {
                self.acks.round_confirmed(id, index.0, self.committed, &mut self.ready);
            }
            Output::ReadFailed { id } => self.acks.round_failed(id, &mut self.ready),
            // Its frame is sealed when the persist that follows asks for it.
            Output::Noop { .. } => {}
            Output::Truncated { from } => self.truncate(from.0),
            Output::TransferDone { to, ok } => self.on_transfer_done(to, ok),
            Output::Alarm(alarm) => self.on_core_alarm(&alarm),
            Output::SnapshotNeeded { to } => self.on_snapshot_needed(now.tick, to),
            Output::InstallOffered { from, base } => self.on_offer(from, base),
        }
    }

    fn on_role(&mut self, role: Role, term: Term, leader: Option<NodeId>) {
        if role != Role::Leader {
            let rejection = Rejection::LostLeadership { leader };
            self.give_up_change(leader, &rejection);
            self.give_up_uploads(&rejection);
            if !is_planted(Bug::AcksSurviveDeposition) {
                self.acks.deposed(&rejection, &mut self.ready);
            }
            for request in self.intake.drain_requests().chain(self.moves.drain_requests()) {
                self.ready.push((request, Err(Rejection::NotLeader { leader })));
            }
            self.loads.clear();
            self.pace.forget();
            self.installs.forget_offers();
            self.pins.forget();
            self.laggards.forget();
        } else {
            self.growth.forget();
        }
        self.forget_reports();
        self.effects.push_back(Effect::Role { role, term, leader });
    }

    fn on_transfer_done(&mut self, to: NodeId, ok: bool) {
        let answer = if ok { Ok(Answer::Transferred) } else { Err(Rejection::TransferFailed) };
        let (done, waiting): (Vec<_>, Vec<_>) = self.transfers.drain(..).partition(|(target, _)| *target == to || ok);
        self.transfers = waiting;
        self.ready.extend(done.into_iter().map(|(_, request)| (request, answer.clone())));
    }

    fn on_core_alarm(&mut self, alarm: &graven_raft::Alarm) {
        let alarm = match alarm {
            graven_raft::Alarm::DiskDead { .. } => Alarm::DiskStalled,
            graven_raft::Alarm::Diverged { from, index, .. } => Alarm::Diverged { index: index.0, peer: *from },
            other => Alarm::Core(format!("{other:?}")),
        };
        self.diverged |= matches!(alarm, Alarm::Diverged { .. });
        self.effects.push_back(Effect::Alarm(alarm));
    }

    fn truncate(&mut self, from: u64) {
        self.log.truncate(from);
        self.tables.truncate(from);
        if !is_planted(Bug::SessionsNotRolledBack) {
            self.sessions.truncate(from);
        }
        while self.members.last().is_some_and(|(index, _)| *index >= from) {
            self.members.pop();
            self.members_version += 1;
        }
        self.durable = self.durable.min(from - 1);
        // Whoever supersedes them may fall before a majority has what it wrote, and one who has them lead again.
        self.doubt_pictures();
    }

    /// Turns what the core wants durable into a disk job, and takes its frames into the log's view.
    fn persist(&mut self, now: Now, write: &Write) {
        let mut frames = Vec::new();
        if let Some(range) = &write.entries {
            for index in range.start().0..=range.end().0 {
                let (frame, fresh) = self.frame_for(index, write.term, now);
                if fresh && !is_planted(Bug::SessionsNotRebuilt) {
                    // Its groups were verified on receipt; a frame that does not decode is a peer's lie and changes no session.
                    let _ = apply_to_sessions(&mut self.sessions, &frame);
                }
                // As above; what came over the network was looked into before the core heard of it.
                let _ = self.tables.note(&frame);
                if let Ok(Some(members)) = members_of(&frame) {
                    self.members.push((index, members));
                    self.members_version += 1;
                }
                self.growth.grew(frame.encoded_len());
                self.checkpoints.grown += frame.encoded_len() as u64;
                self.log.push(frame.clone());
                frames.push(frame);
            }
        }
        self.job_sequence += 1;
        let job = Job {
            sequence: self.job_sequence,
            persist: Some((write.term, write.last)),
            first: write.entries.as_ref().map(|range| range.start().0),
            bytes: frames.iter().map(Frame::encoded_len).sum(),
            after: After::Nothing,
        };
        self.reckon(&job);
        self.jobs.push_back(job);
        self.effects.push_back(Effect::Disk(DiskJob {
            sequence: self.job_sequence,
            commit: self.committed.min(self.log.last().index),
            hard_state: write.hard_state.map(|state| match is_planted(Bug::VoteForgotten) {
                true => graven_raft::HardState { vote: None, ..state },
                false => state,
            }),
            frames,
            chore: None,
        }));
    }

    /// Proposes an entry of `kind` with this body, and takes it into the log. Returns its index.
    fn propose_control(
        &mut self,
        now: Now,
        kind: Kind,
        body: Vec<u8>,
        membership: Option<Membership>,
    ) -> Result<u64, ProposeError> {
        let last = self.log.last();
        let spec = HeaderSpec {
            kind,
            term: self.core.term().0,
            index: last.index + 1,
            base_offset: last.next_offset,
            count: 0,
            timestamp_ms: self.stamp(now),
        };
        let body = Body::from_chunks(vec![body.into()]);
        let crc = body.crc();
        let frame = Frame::seal(spec, last.chain, body, crc);
        let id = self.core.propose(now.tick, entry_meta(kind, frame.encoded_len(), membership))?;
        assert_eq!(id.index.0, spec.index, "the core's log and the replica's differ");
        self.stash.clear();
        self.stash.push_back(frame);
        while let Some(output) = self.core.poll() {
            self.on_output(now, output);
        }
        Ok(spec.index)
    }

    /// The frame of an entry that the core just took in, and whether the session table has still to hear of it. What is not
    /// in the stash is the no-op with which this node opens its term.
    fn frame_for(&mut self, index: u64, term: Term, now: Now) -> (Frame, bool) {
        if let Some(first) = self.stash.front().map(|frame| frame.header().index)
            && let Some(frame) = index.checked_sub(first).and_then(|at| self.stash.get(usize::try_from(at).ok()?))
        {
            let own = self.core.role() == Role::Leader;
            return (frame.clone(), !own);
        }
        assert_eq!(self.core.role(), Role::Leader, "an entry at {index} whose bytes nobody brought");
        let last = self.log.last();
        let spec = HeaderSpec {
            kind: Kind::Noop,
            term: term.0,
            index,
            base_offset: last.next_offset,
            count: 0,
            timestamp_ms: self.stamp_of_noop(now),
        };
        (Frame::seal(spec, last.chain, Body::default(), 0), true)
    }

    fn advance_readable(&mut self, now: Now) {
        let commit = if is_planted(Bug::ReadableBeforeCommit) { u64::MAX } else { self.core.commit().0 };
        let readable = commit.min(self.durable);
        Keeper::passes(self.keeper.as_mut(), &self.log, readable);
        if self.log.advance_readable(readable) && !self.config.state_machine {
            self.applied = readable;
            self.core.applied(now.tick, Index(readable));
        }
        self.log.shrink(self.durable);
        // Not at the commit, which may be ahead: a checkpoint of what is readable here needs the table as it was there.
        self.sessions.commit(self.log.readable().index);
        self.advance_first_offset();
        self.tables.pass(self.log.readable().index);
        self.maybe_fetch_pictures(now.tick);
        self.maybe_checkpoint();
        self.maybe_release(now.tick);
        let at = self.log.readable();
        self.pace.readable(at.index, now.tick);
        self.acks.readable(at.index, at.next_offset, &mut self.ready);
    }
}

fn core_of(
    config: &ReplicaConfig,
    restored: &Restored,
    log: &LogView,
    members: &[(u64, Members)],
    applied: u64,
    now: Now,
) -> Core {
    let restored = graven_raft::Restored {
        hard_state: restored.hard_state,
        first: Index(restored.base.index + 1),
        base: LogId { term: Term(restored.base.term), index: Index(restored.base.index) },
        term_runs: restored.term_runs.clone(),
        last: Index(log.last().index),
        memberships: members.iter().map(|(index, members)| (Index(*index), members.membership())).collect(),
        commit: Index(log.readable().index),
        applied: Index(applied),
    };
    Core::new(config.raft.clone(), restored, now.tick)
}

/// Drops members that no truncation can bring back in force: those before the newest that are committed. Returns whether
/// there were any.
fn forget_older(members: &mut Vec<(u64, Members)>, commit: u64) -> bool {
    let committed = members.partition_point(|(index, _)| *index <= commit);
    members.drain(..committed.saturating_sub(1)).count() > 0
}
