//! Snapshots of applications: what a node does for those with names, and what its own state machine's are good for.
//!
//! A picture with a name comes from a client to the leader, durably, and is then offered in the log. Every node that reads of it
//! fetches it ([`Effect::FetchPicture`]), and tells its leader what it holds. The leader says in the log that it is committed when a majority of the voters
//! holds it; any leader may, so that an upload survives the one who took it. What the table no longer names is removed.
//!
//! A state machine's own snapshots stay where they are taken. Each node tells the leader up to where it has one; what a majority of the voters no
//! longer needs is trimmed, and each node lets go of its log only up to its own.

use std::collections::{BTreeMap, BTreeSet};

use graven_frame::Kind;
use graven_raft::{NodeId, ProposeError, Role, Tick, quorum};

use super::Replica;
use super::effect::{Answer, Effect, Now, Rejection, RequestId};
use super::names::{Directory, Picture, Word, is_name};
use super::planted::{Bug, is_planted};

/// The level from which on names and cursors may stand in the log.
pub(super) const NAMES_LEVEL: u32 = 2;
/// How soon a picture that could not be fetched is tried again: whoever has it may be restarting.
const FETCH_AGAIN_US: u64 = 500_000;
/// Uploads that wait for their commit at most: each holds a file that is not spread yet.
pub const UPLOADS_MAX: usize = 16;

/// The durable snapshots of a node's own state machine, by the offsets of what follows them. Zero: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatesKept {
    /// Of the newest. A majority of these is what the log is trimmed to.
    pub newest: u64,
    /// Of the oldest that a start can fall back on: a node keeps its log from there on, for the day on which the newest does not read back.
    pub oldest: u64,
}

/// What this node knows of pictures' files, and who waits for one.
#[derive(Debug, Default)]
pub(super) struct Pictures {
    /// Pictures whose file is durable here.
    held: BTreeSet<u64>,
    /// The one that is being fetched.
    fetching: Option<u64>,
    /// When those that could not be fetched are tried again.
    again: BTreeMap<u64, Tick>,
    /// Uploads whose client waits, by picture.
    uploads: BTreeMap<u64, (String, RequestId)>,
    /// The names' version that was looked at last.
    seen: u64,
    /// Whether held files that the log does not name are kept: entries that name them may be on other nodes, and come.
    unsure: bool,
    /// From this offset on the state machine of this node needs records.
    pub(super) state_needs: u64,
}

impl Pictures {
    /// What a start found.
    pub(super) fn found(held: impl IntoIterator<Item = u64>, states: StatesKept) -> Pictures {
        let held = held.into_iter().collect();
        Pictures { held, unsure: true, seen: u64::MAX, state_needs: states.oldest, ..Pictures::default() }
    }

    pub(super) fn deadline(&self) -> Option<Tick> {
        if self.fetching.is_some() { None } else { self.again.values().copied().min() }
    }

    pub(super) fn waiting(&self) -> usize {
        self.uploads.len() + self.again.len()
    }
}

impl Replica {
    /// The names that readers of this node see.
    #[must_use]
    pub fn names(&self) -> &Directory {
        self.tables.names.visible()
    }

    /// Counts the changes of [`Replica::names`].
    #[must_use]
    pub fn names_version(&self) -> u64 {
        self.tables.names.version()
    }

    /// The pictures whose files are durable here.
    #[must_use]
    pub fn held(&self) -> &BTreeSet<u64> {
        &self.pictures.held
    }

    /// The pictures that this node's log speaks of, committed or not.
    #[must_use]
    pub fn named_pictures(&self) -> BTreeSet<u64> {
        self.tables.names.pictures()
    }

    /// Whether a picture of `name` at `offset` may come: asked before its bytes are taken.
    ///
    /// # Errors
    /// Why not. It is judged once more when they are there.
    pub fn may_offer(&self, name: &str, offset: u64) -> Result<(), Rejection> {
        if self.core.role() != Role::Leader || self.diverged {
            return Err(Rejection::NotLeader { leader: self.core.leader() });
        }
        if self.feature_level() < NAMES_LEVEL {
            return Err(Rejection::Level { needed: NAMES_LEVEL });
        }
        if !is_name(name) {
            return Err(Rejection::Malformed);
        }
        let next_offset = self.log.readable().next_offset;
        if offset > next_offset {
            return Err(Rejection::Beyond { next_offset });
        }
        let first_offset = self.first_offset.max(self.tables.trims.highest());
        if offset < first_offset {
            return Err(Rejection::TrimmedAway { first_offset });
        }
        let latest = self.tables.names.latest();
        let current = latest.get(name).and_then(|named| named.current);
        if let Some(current) = current.filter(|current| offset < current.offset) {
            return Err(Rejection::OlderSnapshot { current: current.offset });
        }
        let full = !latest.has_room() && latest.get(name).is_none();
        if full || self.pictures.uploads.len() >= UPLOADS_MAX {
            return Err(Rejection::TooManySnapshots);
        }
        if self.pictures.uploads.values().any(|(uploading, _)| uploading == name) {
            return Err(Rejection::SnapshotComing);
        }
        Ok(())
    }

    /// Takes in a picture whose file is durable on this node. Answered when a majority of the voters holds it and the name means it.
    pub fn offer(&mut self, now: Now, request: RequestId, name: String, picture: Picture) {
        if let Err(rejection) = self.may_offer(&name, picture.offset) {
            self.effects.push_back(Effect::ForgetPicture(picture.id));
            return self.answer(request, Err(rejection));
        }
        match self.propose_control(now, Kind::Snapshot, Word::Offer(name.clone(), picture).encode(), None) {
            Ok(_) => {
                self.pictures.held.insert(picture.id);
                self.pictures.uploads.insert(picture.id, (name, request));
                self.tell_held();
            }
            Err(error) => {
                self.effects.push_back(Effect::ForgetPicture(picture.id));
                self.answer(request, Err(self.not_proposed(&error)));
            }
        }
        self.settle(now);
    }

    /// Takes in the wish that a name stands for nothing any more. Answered once that is committed.
    pub fn drop_snapshot(&mut self, now: Now, request: RequestId, name: &str) {
        if self.core.role() != Role::Leader || self.diverged {
            return self.answer(request, Err(Rejection::NotLeader { leader: self.core.leader() }));
        }
        if self.tables.names.latest().get(name).is_none() {
            self.hold(now, self.log.last().index, vec![(request, Err(Rejection::NoSuchSnapshot))]);
        } else {
            match self.propose_control(now, Kind::Snapshot, Word::Drop(name.to_owned()).encode(), None) {
                Ok(index) => self.acks.on_commit(index, request, Answer::SnapshotDropped),
                Err(error) => self.answer(request, Err(self.not_proposed(&error))),
            }
        }
        self.settle(now);
    }

    /// Takes in what became of [`Effect::FetchPicture`]: whether its file is durable here now.
    pub fn picture_fetched(&mut self, now: Now, id: u64, fetched: bool) {
        self.pictures.fetching.take_if(|fetching| *fetching == id);
        if fetched {
            self.pictures.held.insert(id);
            self.pictures.again.remove(&id);
            self.tell_held();
        } else {
            self.pictures.again.insert(id, now.tick.after(FETCH_AGAIN_US));
        }
        self.pictures.seen = u64::MAX;
        self.settle(now);
    }

    /// Takes in that the file of a picture is gone or damaged: it is fetched again.
    pub fn picture_lost(&mut self, now: Now, id: u64) {
        if self.pictures.held.remove(&id) {
            self.pictures.seen = u64::MAX;
            self.tell_held();
        }
        self.settle(now);
    }

    /// Takes in which snapshots of this node's state machine are durable.
    pub fn states_kept(&mut self, now: Now, kept: StatesKept) {
        self.reports.change(|own| own.snapshot = kept.newest);
        self.pictures.state_needs = kept.oldest;
        self.settle(now);
    }

    pub(super) fn not_proposed(&self, error: &ProposeError) -> Rejection {
        match error {
            ProposeError::Transferring { .. } => Rejection::Transferring,
            _ => Rejection::NotLeader { leader: self.core.leader() },
        }
    }

    /// The offset from which on records must stay for a snapshot with a name, and which.
    pub(super) fn needed_by_snapshot(&self) -> Option<(String, u64)> {
        let latest = self.tables.names.latest();
        let (name, offset) = latest.lowest()?;
        if is_planted(Bug::TrimPastSnapshot) { None } else { Some((name.to_owned(), offset)) }
    }

    fn tell_held(&mut self) {
        let held = self.pictures.held.iter().copied().collect();
        self.reports.change(|own| own.held = held);
    }

    /// Fetches what is named and not here, removes what is here and not named.
    pub(super) fn maybe_fetch_pictures(&mut self, now: Tick) {
        let due = self.pictures.deadline().is_some_and(|due| due <= now);
        // Of a term that it led itself in an earlier life, others may have entries that it lost.
        let sure = self.pictures.unsure && self.core.leader().is_some() && self.knows_its_term();
        if self.pictures.seen == self.tables.names.version() && !due && !sure {
            return;
        }
        self.pictures.seen = self.tables.names.version();
        if sure {
            self.pictures.unsure = false;
        }
        let latest = self.tables.names.latest().ids();
        if !self.pictures.unsure {
            // What an entry takes away is needed until that entry can no longer be lost.
            let kept = if is_planted(Bug::PictureGoneEarly) { latest.clone() } else { self.tables.names.pictures() };
            let gone: Vec<u64> = self.pictures.held.difference(&kept).copied().collect();
            for id in gone {
                self.pictures.held.remove(&id);
                self.effects.push_back(Effect::ForgetPicture(id));
                self.tell_held();
            }
        }
        self.pictures.again.retain(|id, _| latest.contains(id));
        self.settle_uploads();
        if self.pictures.fetching.is_some() {
            return;
        }
        let visible = self.tables.names.visible().clone();
        let wanted = visible.iter().flat_map(|(name, named)| {
            let both = named.current.into_iter().chain(named.offered);
            both.map(move |picture| (name, picture))
        });
        for (name, picture) in wanted {
            let waits = self.pictures.again.get(&picture.id).is_some_and(|again| *again > now);
            if !waits && !self.pictures.held.contains(&picture.id) && latest.contains(&picture.id) {
                self.pictures.fetching = Some(picture.id);
                self.effects.push_back(Effect::FetchPicture { name: name.to_owned(), picture });
                return;
            }
        }
    }

    /// Whether this node has seen, committed, an entry of its leader's own term: then it has all that was committed before (Raft paper 5.4.3).
    fn knows_its_term(&self) -> bool {
        let readable = self.log.readable();
        readable.term == self.core.term().0 && readable.index > 0
    }

    /// Tells those whose picture will not be committed any more: another one of the name came, or the name is dropped.
    fn settle_uploads(&mut self) {
        let latest = self.tables.names.latest();
        let lives = |id: &u64, name: &str| {
            let named = latest.get(name);
            named.is_some_and(|named| [named.current, named.offered].iter().flatten().any(|it| it.id == *id))
        };
        let gone: Vec<u64> =
            self.pictures.uploads.iter().filter(|(id, (name, _))| !lives(id, name)).map(|(id, _)| *id).collect();
        for id in gone {
            if let Some((_, request)) = self.pictures.uploads.remove(&id) {
                self.ready.push((request, Err(Rejection::SnapshotReplaced)));
            }
        }
    }

    /// Says in the log that an offered picture is committed, when a majority of the voters holds it. Returns whether it did.
    pub(super) fn maybe_commit_picture(&mut self, now: Now) -> bool {
        if self.core.role() != Role::Leader || !self.knows_its_term() {
            return false;
        }
        let names = &self.tables.names;
        let ready = names.visible().iter().find_map(|(name, named)| {
            let offered = named.offered.filter(|offered| !names.is_settling(offered.id))?;
            self.is_held_by_majority(offered.id).then(|| (name.to_owned(), offered))
        });
        let Some((name, picture)) = ready else { return false };
        let Ok(index) = self.propose_control(now, Kind::Snapshot, Word::Commit(name, picture.id).encode(), None) else {
            return false;
        };
        if let Some((_, request)) = self.pictures.uploads.remove(&picture.id) {
            self.acks.on_commit(index, request, Answer::SnapshotNamed { offset: picture.offset });
        }
        true
    }

    fn is_held_by_majority(&self, id: u64) -> bool {
        let holds = |node: NodeId| match node == self.id() {
            true => self.pictures.held.contains(&id),
            false => self.reports.heard().get(&node).is_some_and(|heard| heard.report.held.binary_search(&id).is_ok()),
        };
        is_planted(Bug::PictureUnspread) || quorum::agreed(self.core.membership(), holds)
    }

    /// Trims what a majority of the voters has in snapshots of its state machines. Returns whether an entry was proposed.
    pub(super) fn maybe_trim_behind_states(&mut self, now: Now) -> bool {
        if !self.config.state_machine || self.core.role() != Role::Leader || self.feature_level() < NAMES_LEVEL {
            return false;
        }
        let saved = |node: NodeId| match node == self.id() {
            true => self.reports.own().snapshot,
            false => self.reports.heard().get(&node).map_or(0, |heard| heard.report.snapshot),
        };
        let Some(mut before) = quorum::reached(self.core.membership(), saved) else { return false };
        if is_planted(Bug::TrimBeforeMajority) {
            before = self.reports.own().snapshot;
        }
        before = before.min(self.log.readable().next_offset);
        if let Some((_, needed)) = self.needed_by_snapshot() {
            before = before.min(needed);
        }
        before > self.first_offset.max(self.tables.trims.highest()) && self.propose_trim(now, before).is_ok()
    }

    /// The log begins anew, or lost entries to a leader whose own are not committed yet: files that it does not name may be named by what
    /// follows.
    pub(super) fn doubt_pictures(&mut self) {
        self.pictures.unsure = true;
        self.pictures.seen = u64::MAX;
    }

    /// The leadership is lost: an upload under way may be ended by the next leader.
    pub(super) fn give_up_uploads(&mut self, rejection: &Rejection) {
        for (_, request) in std::mem::take(&mut self.pictures.uploads).into_values() {
            self.ready.push((request, Err(rejection.clone())));
        }
    }
}
