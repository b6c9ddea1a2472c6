//! The properties, one file each. Every checker takes plain facts, so that its own tests can feed it a history that is bad.
//!
//! | property | file |
//! |---|---|
//! | at most one leader a term, one vote a node | [`elections`] |
//! | a leader only adds to its log | [`append_only`] |
//! | equal (index, term) means equal log up to there | [`matching`] |
//! | a later leader has every committed entry | [`completeness`] |
//! | no two nodes commit or show different entries at one index; neither index goes back | [`agreement`] |
//! | P1: what is acknowledged is synced on a majority; what was synced is found again | [`durability`] |
//! | P2, P3: records keep their bytes and offsets; groups stay whole | [`records`] |
//! | P3: offsets are dense | [`offsets`] |
//! | P4: a reader gets each record once, in order | [`feeds`] |
//! | P7: an append lands once; a refused one never | [`once`] |
//! | P8: a linearizable read sees what was acknowledged before it, at once | [`reads`] |
//! | P8: the whole history of appends and reads is linearizable, at the end | [`linearizability`] |
//! | P10: a refusal tells the truth about the committed log | [`refusals`] |
//! | P11: memory stays within its bounds | [`bounds`] |
//! | P2, P4: the log begins where committed trims say, and no file goes before | [`trims`] |
//! | P1, P2: a named snapshot is on a majority, and no trim takes what it goes on with | [`names`] |
//! | P1, P2, P8: a cursor stands where committed moves put it, and only a set or a drop takes it back | [`cursors`] |
//! | consecutive memberships' quorums meet; one change at a time | [`membership`] |
//! | a divergent tail is repaired in as many refusals as it has terms, and one | [`repair`] |
//! | records never take the segment that is kept for votes and control entries | [`reserve`] |
//! | when all is healed, all gets done; a leader is not deposed without a cause | [`liveness`] |

pub mod agreement;
pub mod append_only;
pub mod bounds;
pub mod completeness;
pub mod cursors;
pub mod durability;
pub mod elections;
pub mod feeds;
pub mod linearizability;
pub mod liveness;
pub mod matching;
pub mod membership;
pub mod names;
pub mod offsets;
pub mod once;
pub mod reads;
pub mod records;
pub mod refusals;
pub mod repair;
pub mod reserve;
pub mod retention;
pub mod trims;

use graven::members::change::MemberChange;
use graven::members::{Member, Members};
use graven::replica::Rejection;
use graven_frame::{Frame, Group, Kind};
use graven_raft::AppendHead;
use graven_wal::LogBase;

use linearizability::{History, Read};
use membership::Maker;

/// A property that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub property: &'static str,
    /// What was seen.
    pub detail: String,
}

/// Whether a property still holds.
pub type Checked = Result<(), Violation>;

/// Says that `property` does not hold.
pub(crate) fn violated(property: &'static str, detail: String) -> Checked {
    Err(Violation { property, detail })
}

/// All checkers of a run, and what they share.
#[derive(Debug)]
pub struct Checkers {
    /// The step that is being looked at: the clock of the recorded history.
    pub step: u64,
    elections: elections::Elections,
    append_only: append_only::AppendOnly,
    matching: matching::Matching,
    completeness: completeness::Completeness,
    agreement: agreement::Agreement,
    /// What the disks really hold.
    pub durability: durability::Durability,
    offsets: offsets::Offsets,
    records: records::Records,
    feeds: feeds::Feeds,
    once: once::Once,
    reads: reads::Reads,
    history: History,
    refusals: refusals::Refusals,
    changes: membership::Changes,
    repair: repair::Repair,
    trims: trims::Trims,
    /// Snapshots with names.
    pub names: names::Names,
    /// Named cursors.
    pub cursors: cursors::Cursors,
    voters: u64,
    /// Entries that the log began with when the cluster did. Bodies of snapshots that they name were elsewhere.
    inherited: u64,
    /// Membership changes that were committed.
    pub membership_changes: u64,
}

impl Checkers {
    /// Checkers of a cluster of `nodes` nodes and `readers` readers.
    #[must_use]
    pub fn new(nodes: u64, readers: usize) -> Checkers {
        Checkers {
            step: 0,
            elections: elections::Elections::default(),
            append_only: append_only::AppendOnly::new(nodes),
            matching: matching::Matching::new(nodes),
            completeness: completeness::Completeness::default(),
            agreement: agreement::Agreement::new(nodes),
            durability: durability::Durability::new(nodes),
            offsets: offsets::Offsets::default(),
            records: records::Records::default(),
            feeds: feeds::Feeds::new(readers),
            once: once::Once::default(),
            reads: reads::Reads::default(),
            history: History::default(),
            refusals: refusals::Refusals::default(),
            changes: membership::Changes::new(nodes),
            repair: repair::Repair::default(),
            trims: trims::Trims::default(),
            names: names::Names::default(),
            cursors: cursors::Cursors::default(),
            voters: nodes,
            inherited: 0,
            membership_changes: 0,
        }
    }

    /// What stood before `first` in the log of `node`, whose files begin behind the entry with this chain and offset: what was committed
    /// there, and nothing else.
    fn before(&self, node: u64, base: &LogBase) -> Result<Vec<Frame>, Violation> {
        let fail = |detail| Err(Violation { property: "P2", detail });
        let Some(before) = self.agreement.log().get(..base.index as usize) else {
            return fail(format!("the log of node {node} begins behind entry {}, which is not committed", base.index));
        };
        if before.last().is_some_and(|last| last.header().chain != base.chain) {
            return fail(format!(
                "the log of node {node} begins behind another entry {} than is committed",
                base.index
            ));
        }
        self.trims.holds(node, base.next_offset)?;
        Ok(before.to_vec())
    }

    /// `node` is about to put a checkpoint in the place of its log.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn installing(&mut self, node: u64, base: &LogBase) -> Checked {
        let before = self.before(node, base)?;
        // What it has of another log goes, now or at its next start.
        self.durability.diverges(node, &before);
        self.matching.restarted(node, &before)?;
        self.changes.restarted(node, membership::memberships_in(&before));
        Ok(())
    }

    /// `node` is the first of a new cluster, whose log begins with these frames; it has files of those behind the first `base`, and
    /// `commit` entries are committed there.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn inherits(&mut self, node: u64, frames: &[Frame], base: u64, commit: u64) -> Checked {
        self.inherited = frames.len() as u64;
        frames.iter().for_each(|frame| self.durability.synced(node, frame));
        self.matching.restarted(node, frames)?;
        self.changes.restarted(node, membership::memberships_in(frames));
        if let Some(last) = frames[..base as usize].last() {
            self.trims.inherits(base, last.next_offset());
        }
        self.committed(node, 0, commit)
    }

    /// `node` lost the end of its log, and has `frames` behind `base`.
    ///
    /// # Errors
    /// The log begins elsewhere than it may.
    pub fn lost_end(&mut self, node: u64, base: &LogBase, frames: &[Frame]) -> Checked {
        let mut left = self.before(node, base)?;
        left.extend(frames.iter().cloned());
        self.durability.lost_end(node, &left);
        Ok(())
    }

    /// The log of `node` begins behind `base` now, durably.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn installed(&mut self, node: u64, base: &LogBase) -> Checked {
        let before = self.before(node, base)?;
        before.iter().for_each(|frame| self.durability.synced(node, frame));
        Ok(())
    }

    /// `node` says that the log begins at offset `first`, and shows entries up to `readable`.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn begins(&self, node: u64, readable: u64, first: u64) -> Checked {
        self.trims.shows(node, readable, first)
    }

    /// The files of `node` hold records from `first` on.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn holds(&self, node: u64, first: u64) -> Checked {
        self.trims.holds(node, first)
    }

    /// A trim up to `before` was answered with `first`.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn trimmed(&self, before: u64, first: u64) -> Checked {
        self.trims.answered(before, first)
    }

    /// `reader` was told that the records `from` up to `to` were trimmed.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn told_trimmed(&mut self, reader: usize, from: u64, to: u64) -> Checked {
        self.feeds.trimmed(reader, (from, to), self.trims.first_offset())
    }

    /// `node` starts a life with these frames, which it found on its disk behind `base`, and believes `commit` to be committed.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn started(&mut self, node: u64, base: &LogBase, frames: &[Frame], commit: u64) -> Checked {
        let mut before = self.before(node, base)?;
        before.extend(frames.iter().cloned());
        let frames = before.as_slice();
        self.durability.recovered(node, frames)?;
        self.matching.restarted(node, frames)?;
        self.agreement.restarted(node);
        self.append_only.deposed(node);
        self.changes.restarted(node, membership::memberships_in(frames));
        // The first entry is committed by being everywhere from the start.
        if commit > self.agreement.log().len().max(1) as u64 {
            return violated(
                "state-machine safety",
                format!("node {node} finds {commit} committed; nobody committed it"),
            );
        }
        self.committed(node, 0, commit)
    }

    /// `node` asked its disk to write `frame`, in place of whatever it had from its index on. `maker` is there when it leads
    /// and made the entry itself.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn writing(&mut self, node: u64, frame: &Frame, maker: Option<Maker>) -> Checked {
        let header = frame.header();
        self.append_only.writing(node, header.index, header.term)?;
        self.agreement.overwriting(node, frame)?;
        // What a leader commits in this very step is looked at when the step is over.
        let committed = (self.agreement.log().len() as u64).max(maker.map_or(0, |maker| maker.commit));
        if membership::begins_a_cluster(frame) {
            // No quorum of before has a say any more.
            self.changes.restarted(node, Vec::new());
        }
        self.changes.writing(node, header.index, membership::membership_in(frame).as_ref(), committed, maker)?;
        self.matching.writing(node, frame)
    }

    /// `follower`, in the life that comes with it, refuses an append of `leader` with this head.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn append_refused(&mut self, follower: (u64, u64), leader: u64, head: &AppendHead) -> Checked {
        let (theirs, leaders) = (self.matching.log(follower.0), self.matching.log(leader));
        self.repair.refused(follower, head.term.0, (head.epoch, head.prev.index.0), theirs, leaders)
    }

    /// `node` does not lead, or does not lead any more.
    pub fn deposed(&mut self, node: u64) {
        self.append_only.deposed(node);
    }

    /// `node` leads `term`.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn elected(&mut self, node: u64, term: u64) -> Checked {
        self.elections.elected(node, term)?;
        self.append_only.elected(node, term, self.matching.log(node).len() as u64);
        self.completeness.elected(node, term, self.matching.log(node))
    }

    /// `voter` says that its vote in `term` is for `candidate`.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn voted(&mut self, voter: u64, term: u64, candidate: u64) -> Checked {
        self.elections.voted(voter, term, candidate)
    }

    /// `node`, in `term`, believes everything up to `commit` to be committed.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn committed(&mut self, node: u64, term: u64, commit: u64) -> Checked {
        let log = self.matching.log(node);
        let news = self.agreement.committed(node, commit, log)?;
        if news.is_empty() {
            return Ok(());
        }
        for index in news.clone() {
            let frame = &log[index as usize - 1];
            self.offsets.committed(frame)?;
            self.records.committed(frame);
            self.once.committed(frame, &mut self.history)?;
            self.refusals.committed(frame);
            self.trims.committed(frame)?;
            if index > self.inherited {
                self.names.committed(frame, self.voters)?;
            }
            self.cursors.committed(frame)?;
            self.membership_changes += u64::from(index > 1 && frame.header().kind == Kind::Membership);
        }
        let last = &log[news.end as usize - 2];
        self.completeness.committed(term, last);
        Ok(())
    }

    /// `node` shows readers everything up to entry `readable`, so up to offset `next_offset`.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn readable(&mut self, node: u64, readable: u64, next_offset: u64) -> Checked {
        self.agreement.readable(node, readable, next_offset)?;
        match self.agreement.entry(readable) {
            Some(frame) => self.durability.exposed(node, readable, frame.header().chain),
            None => Ok(()),
        }
    }

    /// A wish to change the members was answered as granted.
    ///
    /// # Errors
    /// No committed entry grants it.
    pub fn members_changed(&self, change: &MemberChange) -> Checked {
        let votes = |members: &Members, name: &str| members.by_name(name).is_some_and(Member::votes);
        let granted = |members: &Members| match change {
            MemberChange::Add(new) => members.by_id(new.id).is_some(),
            MemberChange::Promote { name } => votes(members, name),
            MemberChange::Remove { name } => members.by_name(name).is_none(),
            MemberChange::Replace { old, new } => members.by_name(old).is_none() && votes(members, new),
            _ => false,
        };
        let frames = self.agreement.log().iter().filter(|frame| frame.header().kind == Kind::Membership);
        let mut committed = frames.filter_map(|frame| Members::decode(&frame.body().concat()).ok());
        if committed.any(|members| granted(&members)) {
            return Ok(());
        }
        violated("P1", format!("{change:?} is answered as granted, and no committed entry grants it"))
    }

    /// An append was acknowledged by `leader`: `group` at `first`, in the entry at `index`.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn acknowledged(&mut self, leader: u64, index: u64, first: u64, group: &Group) -> Checked {
        let Some(frame) = self.agreement.entry(index) else {
            return violated("P1", format!("append acknowledged at index {index}, which is not committed"));
        };
        self.durability.acknowledged(index, frame.header().chain, self.changes.in_force(leader))?;
        self.records.acknowledged(first, group)?;
        self.once.acknowledged(group.header(), first)?;
        self.reads.acknowledged(first + u64::from(group.header().count));
        if let Some(key) = key_of(group) {
            self.history.append_answered(key, self.step);
        }
        Ok(())
    }

    /// A client sends an append, maybe again.
    pub fn called(&mut self, group: &Group) {
        if let Some(key) = key_of(group) {
            self.history.append_called(key, self.step, u64::from(group.header().count));
        }
    }

    /// An append that reached its node at `asked` was refused. Conflict and fenced are final: it never happens.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn refused(&mut self, group: &Group, rejection: Rejection, asked: Asked) -> Checked {
        let header = group.header();
        match rejection {
            Rejection::Conflict { next_offset } => {
                self.once.refused(header)?;
                self.refusals.conflict(header, next_offset)?;
                // It tells the length of the log, so it is a read of it.
                self.read_answered(asked, next_offset)
            }
            Rejection::Fenced { fence } => {
                self.once.refused(header)?;
                self.refusals.fenced(header, fence)
            }
            Rejection::Gap { expected } => self.refusals.gap(header, expected, asked.sequence),
            _ => Ok(()),
        }
    }

    /// A session was opened.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn session_opened(&mut self, session: u64) -> Checked {
        match self.agreement.entry(session).map(|frame| frame.header().kind) {
            Some(Kind::Session) => Ok(()),
            other => violated("P1", format!("session {session} acknowledged, but committed there is {other:?}")),
        }
    }

    /// A linearizable read begins: what it must see at least.
    #[must_use]
    pub fn read_began(&self) -> Asked {
        Asked { step: self.step, floor: self.reads.floor(), sequence: 0 }
    }

    /// An append reaches a node: what a refusal of it must know of at least.
    #[must_use]
    pub fn append_began(&self, group: &Group) -> Asked {
        let sequence = group.header().session.map_or(0, |session| self.once.last_acknowledged(session));
        Asked { sequence, ..self.read_began() }
    }

    /// The read that reached its node at `asked` was answered.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn read_answered(&mut self, asked: Asked, next_offset: u64) -> Checked {
        self.reads.answered(asked.floor, next_offset, self.records.len())?;
        self.history.read(Read { called: asked.step, answered: self.step, length: next_offset });
        Ok(())
    }

    /// At the end of a run: all that clients did and were told must be linearizable.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn linearizable(&self) -> Checked {
        self.history.check()
    }

    /// `reader` was handed `frame`.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn delivered(&mut self, reader: usize, frame: &Frame) -> Checked {
        self.feeds.delivered(reader, frame, &self.records)
    }

    /// `reader` was told that it has everything of a node that shows records up to `next_offset`.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn caught_up(&mut self, reader: usize, told: u64, next_offset: u64) -> Checked {
        self.feeds.caught_up(reader, told, next_offset)
    }

    /// The next offset `reader` waits for.
    #[must_use]
    pub fn reader_next(&self, reader: usize) -> u64 {
        self.feeds.next(reader)
    }

    /// Linearizable reads and records delivered to readers that were checked.
    #[must_use]
    pub fn reads_checked(&self) -> u64 {
        self.reads.checked + self.feeds.checked
    }

    /// Everything committed so far, from index 1 on.
    #[must_use]
    pub fn log(&self) -> &[Frame] {
        self.agreement.log()
    }

    /// How many records are committed.
    #[must_use]
    pub fn committed_records(&self) -> u64 {
        self.records.len()
    }

    /// At the end of a run: what `node` reads back from its files, from entry `first` on, must be what was committed, byte for byte.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn read_back(&self, node: u64, first: u64, frames: &[Frame]) -> Checked {
        self.agreement.read_back(node, first, frames)
    }
}

/// When a request reached its node, and what had been acknowledged by then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// The step.
    pub step: u64,
    /// The length of the log that somebody had been told of.
    pub floor: u64,
    /// Of an append: the highest sequence number of its session that had been acknowledged.
    pub sequence: u64,
}

fn key_of(group: &Group) -> Option<(u64, u64)> {
    Some((group.header().session?, group.header().sequence?))
}

#[cfg(test)]
pub(crate) mod testing {
    //! Frames for bad histories.

    use graven_frame::{Body, Chain, Frame, Group, GroupBuilder, GroupHeaderSpec, HeaderSpec, Kind};

    pub(crate) fn group(session: u64, sequence: u64, payloads: &[&str]) -> Group {
        let mut builder = GroupBuilder::new();
        for payload in payloads {
            builder.push(&[], payload.as_bytes()).expect("small");
        }
        let session = (session > 0).then_some(session);
        let sequence = session.map(|_| sequence);
        builder.finish(GroupHeaderSpec { session, sequence, ..GroupHeaderSpec::default() })
    }

    pub(crate) fn frame(prev: Option<&Frame>, term: u64, groups: &[Group]) -> Frame {
        let chunks = groups.iter().flat_map(|group| group.body().chunks().to_vec()).collect();
        let body = Body::from_chunks(chunks);
        let crc = body.crc();
        let spec = HeaderSpec {
            kind: if groups.is_empty() { Kind::Noop } else { Kind::Records },
            term,
            index: prev.map_or(1, |frame| frame.header().index + 1),
            base_offset: prev.map_or(0, Frame::next_offset),
            count: groups.iter().map(|group| group.header().count).sum(),
            timestamp_ms: 0,
        };
        Frame::seal(spec, prev.map_or(Chain::START, |frame| frame.header().chain), body, crc)
    }
}
