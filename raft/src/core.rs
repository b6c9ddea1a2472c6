//! The core: its state, its clockwork, and the rules that hold in every role (Raft paper, figure 2, "Rules for Servers").

use std::collections::VecDeque;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::candidate::Ballot;
use crate::config::{Config, Restored};
use crate::log::Log;
use crate::message::Message;
use crate::output::{Alarm, Output};
use crate::persist::{DiskWatch, Pending};
use crate::planted::{Bug, is_planted};
use crate::progress::{Follower, Progress};
use crate::read_index::Reads;
use crate::room::RoomWatch;
use crate::transfer::Transfer;
use crate::types::{HardState, Index, LogId, Membership, NodeId, Role, Term, Tick};

/// One node's share of the protocol. Inputs change state; outputs are fetched with [`Core::poll`].
#[derive(Debug, Clone)]
pub struct Core {
    pub(crate) config: Config,
    rng: Xoshiro256PlusPlus,
    pub(crate) now: Tick,
    pub(crate) outputs: VecDeque<Output>,
    /// What was last told by `Output::Role`.
    told: (Role, Term, Option<NodeId>),

    pub(crate) hard: HardState,
    pub(crate) role: Role,
    pub(crate) leader: Option<NodeId>,

    pub(crate) log: Log,
    pub(crate) commit: Index,
    pub(crate) applied: Index,
    /// What was known to be committed at the start: until it is applied, this node does not stand for election.
    pub(crate) must_apply: Index,

    /// The end of what is known durable, for the log as it is now.
    pub(crate) durable: Index,
    /// Persists put out and not yet reported, oldest first.
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) disk: DiskWatch,
    pub(crate) room: RoomWatch,

    /// The end of what was found equal to the log of this term's leader.
    pub(crate) verified: Index,
    /// When this term's leader was last heard.
    pub(crate) heard_leader: Option<Tick>,
    pub(crate) election_due: Tick,
    pub(crate) ballot: Ballot,

    /// The followers; empty unless leading.
    pub(crate) progress: Vec<Progress>,
    pub(crate) next_request: u64,
    pub(crate) heartbeat_due: Tick,
    pub(crate) round: u64,
    /// The no-op that opened this leadership.
    pub(crate) term_start: Index,

    pub(crate) reads: Reads,
    pub(crate) transfer: Option<Transfer>,
    /// See [`Core::abstain`].
    pub(crate) abstaining: bool,
}

impl Core {
    /// Starts from what recovery found. Nothing is sent or decided before this.
    #[must_use]
    pub fn new(config: Config, restored: Restored, now: Tick) -> Core {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(config.seed);
        let first_token = rng.random();
        let log = Log::restore(&restored);
        let commit = restored.commit.min(log.last()).max(log.base().index);
        let mut core = Core {
            config,
            rng,
            now,
            outputs: VecDeque::new(),
            told: (Role::Follower, restored.hard_state.term, None),
            hard: restored.hard_state,
            role: Role::Follower,
            leader: None,
            commit,
            applied: restored.applied.min(commit),
            must_apply: commit,
            durable: log.last(),
            log,
            pending: VecDeque::new(),
            disk: DiskWatch::default(),
            room: RoomWatch::default(),
            verified: Index(0),
            heard_leader: None,
            election_due: now,
            ballot: Ballot::default(),
            progress: Vec::new(),
            next_request: 1,
            heartbeat_due: now,
            round: 0,
            term_start: Index(0),
            reads: Reads::new(first_token),
            transfer: None,
            abstaining: false,
        };
        core.restart_election_timer();
        if core.commit > core.applied {
            core.outputs.push_back(Output::Commit { up_to: core.commit });
        }
        core
    }

    /// Time passed. May be called at any time; must be called by [`Core::next_deadline`].
    pub fn tick(&mut self, now: Tick) {
        self.observe(now);
        self.tick_transfer();
        self.tick_disk();
        self.tick_room();
        self.tick_reads();
        if self.role == Role::Leader {
            self.tick_leader();
        } else if self.now >= self.election_due {
            if self.may_stand() {
                self.become_pre_candidate();
            } else {
                // Whoever asks this node is not sent to a leader that it has not heard of for so long.
                self.leader = None;
                self.tell_role();
            }
        }
    }

    /// When the next [`Core::tick`] is due. Changes with every input.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let waits = self.role != Role::Leader && (self.may_stand() || self.leader.is_some());
        let election = waits.then_some(self.election_due);
        let leading = (self.role == Role::Leader).then(|| self.leader_deadline());
        let transfer = self.transfer.as_ref().map(|transfer| transfer.deadline);
        let rest = [election, leading, transfer, self.reads.deadline(), self.disk_deadline()];
        rest.into_iter().flatten().min()
    }

    /// Takes in a message from a peer. Outputs it causes are fetched by [`Core::poll`].
    pub fn receive(&mut self, now: Tick, from: NodeId, message: Message) {
        self.observe(now);
        if from == self.config.id {
            return self.malformed(from, "a message from this node's own id");
        }
        if message.term() > Term::MAX {
            return self.malformed(from, "a term that no cluster reaches");
        }
        // Requests for votes decide for themselves whether they touch the term (thesis 9.6, 4.2.3).
        match message {
            Message::PreVote { campaign, last, .. } => {
                return self.on_pre_vote(from, campaign, last);
            }
            Message::Vote { term, last, transfer } => return self.on_vote(from, term, last, transfer),
            // Of a voter in an earlier term: it names the campaign that it is about. One that does not stand by itself, because
            // its own log does not show yet that it votes, would otherwise stay in its term, unheard, for ever.
            Message::PreVoteReply { term, campaign, granted } if term < self.hard.term => {
                return self.on_pre_vote_reply(from, campaign, granted);
            }
            _ => {}
        }
        let term = message.term();
        if term > self.hard.term {
            self.become_follower(term, None, None);
        } else if term < self.hard.term {
            return self.on_passed_term(from, &message);
        }
        if self.role == Role::Leader {
            self.on_heard(from);
        }
        match message {
            Message::PreVoteReply { campaign, granted, .. } => self.on_pre_vote_reply(from, campaign, granted),
            Message::VoteReply { granted, .. } => self.on_vote_reply(from, granted),
            Message::AppendReply { request, epoch, success, matched, last, hint, .. } => match (success, hint) {
                (true, _) => self.on_append_success(from, epoch, matched),
                (false, Some(hint)) => self.on_append_refused(from, request, epoch, last, hint),
                (false, None) => self.malformed(from, "a refused append without a hint"),
            },
            Message::Heartbeat { commit, round, .. } => self.on_heartbeat(from, commit, round),
            Message::HeartbeatReply { round, verified, disk_full, .. } => {
                self.on_heartbeat_reply(from, round, verified, disk_full);
            }
            Message::Commit { commit, .. } => self.on_commit(from, commit),
            Message::TimeoutNow { last, .. } => self.on_timeout_now(from, last),
            Message::ReadIndex { token, .. } => self.on_read_index(from, token),
            Message::ReadIndexReply { token, index, .. } => self.on_read_index_reply(from, token, index),
            Message::Install { base, .. } => self.on_install(from, base),
            Message::InstallReply { base, ok, .. } => self.on_install_reply(from, base, ok),
            Message::PreVote { .. } | Message::Vote { .. } | Message::Report { .. } => {}
        }
    }

    /// Answers a leader of a passed term, so that it learns and steps down; what else is late is dropped (Raft paper 5.1).
    fn on_passed_term(&mut self, from: NodeId, message: &Message) {
        let term = self.hard.term;
        let reply = match *message {
            Message::Heartbeat { round, .. } if is_planted(Bug::PassedRoundAnswered) => self.heartbeat_reply(round),
            // Its round is of another leadership: the sender may lead again by now, and has another round of that number.
            Message::Heartbeat { .. }
            | Message::Commit { .. }
            | Message::TimeoutNow { .. }
            | Message::Install { .. } => self.heartbeat_reply(0),
            Message::ReadIndex { token, .. } => Message::ReadIndexReply { term, token, index: None },
            _ => return,
        };
        self.send(from, reply);
    }

    /// Reports that the state machine has applied everything up to `index`.
    pub fn applied(&mut self, now: Tick, index: Index) {
        self.observe(now);
        let waited = self.applied < self.must_apply;
        self.applied = self.applied.max(index.min(self.commit));
        if waited && self.applied >= self.must_apply && self.role == Role::Follower && self.now >= self.election_due {
            self.restart_election_timer();
        }
    }

    /// While `abstains`, this node neither stands for election nor gives its vote. For a node whose log is being replaced by an
    /// install, or may lack entries that it once acknowledged: its log's end proves nothing then (Raft paper 5.4.1).
    pub fn abstain(&mut self, now: Tick, abstains: bool) {
        self.observe(now);
        if self.abstaining && !abstains {
            self.restart_election_timer();
        }
        self.abstaining = abstains;
    }

    /// Reports that the driver gave up entries up to `base` from the start of its log. They must be applied.
    pub fn trimmed(&mut self, now: Tick, base: Index) {
        self.observe(now);
        self.log.trim(base.min(self.applied));
    }

    /// The next thing to do, in the order it must be done; `None` when all is done.
    #[must_use]
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    // Shared by all roles.

    /// Follows `term`. A higher term than ours is persisted, with `vote` as the vote in it: `None` unless one is given now
    /// (Raft paper 5.1). Whoever led or stood stops.
    pub(crate) fn become_follower(&mut self, term: Term, vote: Option<NodeId>, leader: Option<NodeId>) {
        debug_assert!(term >= self.hard.term);
        let led = self.role == Role::Leader;
        if led {
            self.progress.clear();
            self.fail_reads();
        }
        let stood = self.role != Role::Follower;
        self.role = Role::Follower;
        self.leader = leader;
        if term > self.hard.term {
            self.enter_term(term, vote);
        }
        if stood {
            self.restart_election_timer();
        }
        self.tell_role();
    }

    /// Moves to a higher term: facts about the old one's leader end here.
    pub(crate) fn enter_term(&mut self, term: Term, vote: Option<NodeId>) {
        debug_assert!(term > self.hard.term);
        self.hard = HardState { term, vote };
        self.verified = Index(0);
        self.heard_leader = None;
        if vote.is_some() || !is_planted(Bug::TermNotPersisted) {
            self.persist_hard_state();
        }
    }

    /// Puts out role, term and leader when one of them changed. Reads that were forwarded to another leader fail here.
    pub(crate) fn tell_role(&mut self) {
        let now = (self.role, self.hard.term, self.leader);
        if now == self.told {
            return;
        }
        if (now.1, now.2) != (self.told.1, self.told.2) {
            self.fail_forwarded_reads();
        }
        self.told = now;
        self.outputs.push_back(Output::Role { role: now.0, term: now.1, leader: now.2 });
        self.settle_transfer();
    }

    /// Draws the next election timeout from `[e, 2e)` (Raft paper 5.2).
    pub(crate) fn restart_election_timer(&mut self) {
        let least = self.config.election_us.max(1);
        let timeout = self.rng.random_range(least..2 * least);
        self.election_due = self.now.after(timeout);
    }

    pub(crate) fn set_commit(&mut self, index: Index) {
        debug_assert!(index > self.commit && index <= self.log.last());
        self.commit = index;
        self.log.forget_memberships(index);
        self.outputs.push_back(Output::Commit { up_to: index });
    }

    pub(crate) fn observe(&mut self, now: Tick) {
        self.now = self.now.max(now);
    }

    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        self.outputs.push_back(Output::Send { to, message });
    }

    pub(crate) fn send_after_persist(&mut self, to: NodeId, message: Message) {
        self.outputs.push_back(Output::SendAfterPersist { to, message });
    }

    pub(crate) fn alarm(&mut self, alarm: Alarm) {
        self.outputs.push_back(Output::Alarm(alarm));
    }

    pub(crate) fn malformed(&mut self, from: NodeId, what: &'static str) {
        self.alarm(Alarm::Malformed { from, what });
    }
}

/// Views.
impl Core {
    /// This node's role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.hard.term
    }

    /// Term and vote, as last put out for persisting.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        self.hard
    }

    /// The leader of this term, when known.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// The highest index known to be committed.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// The end of what is known durable on this node, for the log as it is now.
    #[must_use]
    pub fn durable_index(&self) -> Index {
        self.durable
    }

    /// The highest index reported applied.
    #[must_use]
    pub fn applied_index(&self) -> Index {
        self.applied
    }

    /// The end of the log, durable or not.
    #[must_use]
    pub fn last_id(&self) -> LogId {
        self.log.last_id()
    }

    /// The entry before the first one held.
    #[must_use]
    pub fn base(&self) -> LogId {
        self.log.base()
    }

    /// The term of an entry; `None` when it is not held.
    #[must_use]
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// The membership in force: the last one in the log, committed or not.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        self.log.membership()
    }

    /// The memberships in the log with their indexes, ascending, from the newest committed one on; the last one is in force.
    #[must_use]
    pub fn memberships(&self) -> &[(Index, Membership)] {
        self.log.memberships()
    }

    /// The followers, when leading.
    pub fn progress(&self) -> impl Iterator<Item = Follower> + '_ {
        self.progress.iter().map(Progress::view)
    }

    /// The last heartbeat round that was sent to all in this leadership. A follower that answers a later one was alive after
    /// this moment.
    #[must_use]
    pub fn heartbeat_round(&self) -> u64 {
        self.round
    }

    /// Whom leadership is being handed to; proposals are refused meanwhile.
    #[must_use]
    pub fn transferring(&self) -> Option<NodeId> {
        let transfer = self.transfer.as_ref().filter(|_| self.role == Role::Leader);
        transfer.map(|transfer| transfer.to)
    }

    /// Whether a leader has committed an entry of its own term: before that it answers no reads and changes no membership.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.role == Role::Leader && self.commit >= self.term_start
    }

    /// Since when the oldest unreported persist waits.
    #[must_use]
    pub fn oldest_unsynced(&self) -> Option<Tick> {
        self.pending.front().map(|pending| pending.started)
    }

    /// Whether this node leads and the membership in force is committed in its term, so that another one may follow it: the one
    /// before can then not vanish under the next (thesis 4.1; Raft paper 6).
    #[must_use]
    pub fn may_change_membership(&self) -> bool {
        let settled = self.log.membership_index() <= self.commit && self.is_established();
        self.role == Role::Leader && (settled || is_planted(Bug::ChangeTooEarly))
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }
}
