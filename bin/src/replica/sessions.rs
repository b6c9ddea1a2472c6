//! The session table: what makes a retried append land once (P7).
//!
//! The table is a function of the log: every node derives the same one from the same entries. It is kept at the *end* of the
//! log, uncommitted tail included, beside an undo list for each uncommitted entry; a truncation plays the list backwards, a
//! commit drops it. So a new leader holds the right table the moment it is elected.
//!
//! What is judged against the uncommitted tail may still be undone. Whoever answers from a judgement waits until everything
//! up to the judged index is committed; that rule lives in [`super::acks`].
//!
//! Bounds, all by log position and never by a clock, so that all nodes evict alike: [`SESSIONS_MAX`] sessions,
//! [`RESULTS_PER_SESSION`] remembered results each, [`RESULTS_MAX`] in all; the session whose last append lies deepest in the
//! log goes first. Source: Raft thesis section 6.3.

use std::collections::{BTreeSet, HashMap, VecDeque};

use graven_frame::GroupHeader;

use super::checkpoint::Fields;
use super::planted::{Bug, is_planted};

/// Sessions kept at most. A client holds one or a few, a command of the CLI one; 4,096 busy at once need 4,096 processes.
pub const SESSIONS_MAX: usize = 4096;
/// Results kept for each session: twice what a client may have in flight, so that any retry finds its first answer.
pub const RESULTS_PER_SESSION: usize = 512;
/// Results kept in all sessions together: 40 bytes each, so about 10 MiB.
pub const RESULTS_MAX: usize = 262_144;

/// What an append of a session got when it entered the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// The append's sequence number in its session.
    pub sequence: u64,
    /// Index of the entry that holds it.
    pub index: u64,
    /// Offset of its first record.
    pub first: u64,
    /// How many records it has.
    pub count: u32,
    /// Term of the entry.
    pub term: u64,
    /// Leader's timestamp of the entry, in milliseconds since the epoch.
    pub timestamp_ms: u64,
}

/// What the table says of an append that wants to enter the log now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may enter.
    Accept,
    /// It is in the log already, there.
    Duplicate(Placed),
    /// The session is not (or no longer) known, or the result of this sequence is forgotten.
    Expired,
    /// A sequence number was skipped; `expected` is the next one.
    Gap {
        /// The sequence number that the session must use next.
        expected: u64,
    },
    /// The first record would not land at the expected offset.
    Conflict {
        /// Where it would land.
        next_offset: u64,
    },
    /// A higher fencing token has been seen.
    Fenced {
        /// That token.
        fence: u64,
    },
}

/// See the module's documentation.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    table: HashMap<u64, Session>,
    /// (index of last activity, session), oldest first.
    by_activity: BTreeSet<(u64, u64)>,
    results: usize,
    fence: u64,
    undo: VecDeque<(u64, Vec<Undo>)>,
}

#[derive(Debug, Clone, Default)]
struct Session {
    last_sequence: u64,
    active_at: u64,
    results: VecDeque<Placed>,
}

#[derive(Debug, Clone)]
enum Undo {
    Opened { id: u64 },
    Evicted { id: u64, session: Session },
    Appended { id: u64, active_at: u64, forgotten: Option<Placed> },
    Fence { before: u64 },
}

impl Sessions {
    /// Judges an append that would become the next thing in the log, its first record landing at `next_offset`.
    #[must_use]
    pub fn judge(&self, group: &GroupHeader, next_offset: u64) -> Verdict {
        if let Some(id) = group.session {
            let sequence = group.sequence.unwrap_or(0);
            let Some(session) = self.table.get(&id) else { return Verdict::Expired };
            if sequence <= session.last_sequence {
                let found = session.results.iter().rev().find(|placed| placed.sequence == sequence);
                return found.map_or(Verdict::Expired, |placed| Verdict::Duplicate(*placed));
            }
            if sequence > session.last_sequence + 1 {
                return Verdict::Gap { expected: session.last_sequence + 1 };
            }
        }
        if group.expected_offset.is_some_and(|expected| expected != next_offset) {
            return Verdict::Conflict { next_offset };
        }
        if group.fence.is_some_and(|fence| fence < self.fence) {
            return Verdict::Fenced { fence: self.fence };
        }
        Verdict::Accept
    }

    /// Takes in that the entry at `index` opened a session; the session's id is that index.
    pub fn open(&mut self, index: u64) {
        let mut undo = Vec::new();
        self.table.insert(index, Session { active_at: index, ..Session::default() });
        self.by_activity.insert((index, index));
        undo.push(Undo::Opened { id: index });
        self.evict(&mut undo);
        self.remember(index, undo);
    }

    /// Takes in that the entry at `index` voids every session opened before it. The highest fence stays: whoever was shut out stays so.
    pub fn void(&mut self, index: u64) {
        let mut undo = Vec::new();
        while let Some((_, id)) = self.by_activity.pop_first() {
            if let Some(session) = self.table.remove(&id) {
                undo.push(Undo::Evicted { id, session });
            }
        }
        self.results = 0;
        self.remember(index, undo);
    }

    /// Takes in that `group` is in the log, as told by `placed`.
    pub fn append(&mut self, group: &GroupHeader, placed: Placed) {
        let mut undo = Vec::new();
        if let Some(fence) = group.fence.filter(|fence| *fence > self.fence) {
            undo.push(Undo::Fence { before: self.fence });
            self.fence = fence;
        }
        if let Some(id) = group.session
            && let Some(session) = self.table.get_mut(&id)
        {
            let active_at = session.active_at;
            session.active_at = placed.index;
            session.last_sequence = placed.sequence;
            session.results.push_back(placed);
            self.results += 1;
            let forgotten =
                if session.results.len() > RESULTS_PER_SESSION { session.results.pop_front() } else { None };
            self.results -= usize::from(forgotten.is_some());
            if active_at != placed.index {
                self.by_activity.remove(&(active_at, id));
                self.by_activity.insert((placed.index, id));
            }
            undo.push(Undo::Appended { id, active_at, forgotten });
            self.evict(&mut undo);
        }
        self.remember(placed.index, undo);
    }

    /// Forgets how to undo everything up to `index`: it is committed.
    pub fn commit(&mut self, index: u64) {
        while !is_planted(Bug::UndoKept) && self.undo.front().is_some_and(|(at, _)| *at <= index) {
            self.undo.pop_front();
        }
    }

    /// Undoes everything from `index` on: those entries are gone from the log.
    pub fn truncate(&mut self, index: u64) {
        while let Some((at, _)) = self.undo.back()
            && *at >= index
        {
            let Some((_, list)) = self.undo.pop_back() else { break };
            for step in list.into_iter().rev() {
                self.take_back(step);
            }
        }
    }

    /// The table as it was after the entry at `index`, which is committed; entries above it are not.
    #[must_use]
    pub fn as_of(&self, index: u64) -> Sessions {
        let mut then = self.clone();
        then.truncate(index + 1);
        then.undo.clear();
        then
    }

    /// Appends the table's bytes, as `checkpoint` describes them. Nothing may be left to undo.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.fence.to_le_bytes());
        out.extend((self.table.len() as u32).to_le_bytes());
        let ids: BTreeSet<u64> = self.table.keys().copied().collect();
        for (id, session) in ids.into_iter().filter_map(|id| Some((id, self.table.get(&id)?))) {
            for number in [id, session.last_sequence, session.active_at] {
                out.extend(number.to_le_bytes());
            }
            out.extend((session.results.len() as u32).to_le_bytes());
            for placed in &session.results {
                let Placed { sequence, index, first, count, term, timestamp_ms } = *placed;
                for number in [sequence, index, first, u64::from(count), term, timestamp_ms] {
                    out.extend(number.to_le_bytes());
                }
            }
        }
    }

    /// Reads what [`Sessions::encode`] wrote; `None` when it is something else.
    pub(super) fn decode(from: &mut Fields<'_>) -> Option<Sessions> {
        let mut sessions = Sessions { fence: from.u64()?, ..Sessions::default() };
        let count = from.u32()? as usize;
        if count > SESSIONS_MAX {
            return None;
        }
        for _ in 0..count {
            let id = from.u64()?;
            let mut session = Session { last_sequence: from.u64()?, active_at: from.u64()?, results: VecDeque::new() };
            for _ in 0..from.u32().filter(|results| *results as usize <= RESULTS_PER_SESSION)? {
                let (sequence, index, first) = (from.u64()?, from.u64()?, from.u64()?);
                let (count, term, timestamp_ms) = (u32::try_from(from.u64()?).ok()?, from.u64()?, from.u64()?);
                session.results.push_back(Placed { sequence, index, first, count, term, timestamp_ms });
            }
            sessions.results += session.results.len();
            sessions.by_activity.insert((session.active_at, id));
            if sessions.table.insert(id, session).is_some() {
                return None;
            }
        }
        (sessions.results <= RESULTS_MAX && sessions.by_activity.len() == sessions.table.len()).then_some(sessions)
    }

    /// How many sessions are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Sessions, results in all of them, and entries that can be taken back.
    pub(super) fn footprint(&self) -> (usize, usize, usize) {
        (self.table.len(), self.results, self.undo.len())
    }

    /// Whether no session is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    fn remember(&mut self, index: u64, mut undo: Vec<Undo>) {
        if undo.is_empty() {
            return;
        }
        match self.undo.back_mut() {
            Some((at, list)) if *at == index => list.append(&mut undo),
            _ => self.undo.push_back((index, undo)),
        }
    }

    fn evict(&mut self, undo: &mut Vec<Undo>) {
        while (self.table.len() > SESSIONS_MAX || self.results > RESULTS_MAX) && self.table.len() > 1 {
            let Some((_, id)) = self.by_activity.pop_first() else { return };
            if let Some(session) = self.table.remove(&id) {
                self.results -= session.results.len();
                undo.push(Undo::Evicted { id, session });
            }
        }
    }

    fn take_back(&mut self, step: Undo) {
        match step {
            Undo::Opened { id } => {
                if let Some(session) = self.table.remove(&id) {
                    self.by_activity.remove(&(session.active_at, id));
                    self.results -= session.results.len();
                }
            }
            Undo::Evicted { id, session } => {
                self.by_activity.insert((session.active_at, id));
                self.results += session.results.len();
                self.table.insert(id, session);
            }
            Undo::Appended { id, active_at, forgotten } => {
                let Some(session) = self.table.get_mut(&id) else { return };
                self.by_activity.remove(&(session.active_at, id));
                self.by_activity.insert((active_at, id));
                session.active_at = active_at;
                session.results.pop_back();
                session.last_sequence -= 1;
                self.results -= 1;
                if let Some(placed) = forgotten {
                    session.results.push_front(placed);
                    self.results += 1;
                }
            }
            Undo::Fence { .. } if is_planted(Bug::FenceNotRolledBack) => {}
            Undo::Fence { before } => self.fence = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(session: u64, sequence: u64) -> GroupHeader {
        GroupHeader {
            len: 64,
            count: 1,
            session: Some(session),
            sequence: Some(sequence),
            expected_offset: None,
            fence: None,
        }
    }

    fn placed(sequence: u64, index: u64) -> Placed {
        Placed { sequence, index, first: index * 10, count: 1, term: 1, timestamp_ms: 0 }
    }

    #[test]
    fn a_retry_finds_its_first_place_and_a_skipped_sequence_is_a_gap() {
        let mut sessions = Sessions::default();
        sessions.open(5);
        assert_eq!(sessions.judge(&group(5, 1), 0), Verdict::Accept);
        sessions.append(&group(5, 1), placed(1, 6));
        assert_eq!(sessions.judge(&group(5, 1), 0), Verdict::Duplicate(placed(1, 6)));
        assert_eq!(sessions.judge(&group(5, 3), 0), Verdict::Gap { expected: 2 });
        assert_eq!(sessions.judge(&group(9, 1), 0), Verdict::Expired);
    }

    #[test]
    fn truncation_takes_back_everything_above_and_nothing_below() {
        let mut sessions = Sessions::default();
        sessions.open(5);
        sessions.append(&group(5, 1), placed(1, 6));
        sessions.commit(6);
        sessions.append(&group(5, 2), placed(2, 7));
        sessions.append(&GroupHeader { fence: Some(9), ..group(5, 3) }, placed(3, 7));
        sessions.open(8);
        sessions.truncate(7);
        assert_eq!(sessions.judge(&group(5, 2), 0), Verdict::Accept);
        assert_eq!(sessions.judge(&GroupHeader { fence: Some(1), ..group(5, 2) }, 0), Verdict::Accept);
        assert_eq!(sessions.judge(&group(8, 1), 0), Verdict::Expired);
        assert_eq!(sessions.judge(&group(5, 1), 0), Verdict::Duplicate(placed(1, 6)));
    }

    #[test]
    fn the_entry_of_a_recovery_voids_sessions_and_no_other_membership_does() {
        use graven_frame::{Body, Chain, Frame, HeaderSpec, Kind};
        let members = crate::members::Members::default();
        let sealed = |bytes: Vec<u8>| {
            let body = Body::from_chunks(vec![bytes.into()]);
            let crc = body.crc();
            let kind = Kind::Membership;
            let spec = HeaderSpec { kind, term: 3, index: 9, base_offset: 70, count: 0, timestamp_ms: 0 };
            Frame::seal(spec, Chain::START, body, crc)
        };
        let mut sessions = Sessions::default();
        sessions.open(5);
        crate::replica::entry::apply_to_sessions(&mut sessions, &sealed(members.encode().expect("small")))
            .expect("whole");
        assert_eq!(sessions.judge(&group(5, 1), 0), Verdict::Accept);
        let voiding = sealed(members.encode_voiding_sessions().expect("small"));
        crate::replica::apply_to_sessions(&mut sessions, &voiding).expect("whole");
        assert_eq!(sessions.judge(&group(5, 1), 0), Verdict::Expired);
    }

    #[test]
    fn void_sessions_expire_and_come_back_when_the_entry_is_truncated() {
        let mut sessions = Sessions::default();
        sessions.open(5);
        sessions.append(&GroupHeader { fence: Some(9), ..group(5, 1) }, placed(1, 6));
        sessions.open(7);
        sessions.commit(7);
        sessions.void(8);
        assert_eq!(sessions.judge(&group(5, 1), 0), Verdict::Expired);
        assert_eq!(sessions.judge(&group(7, 1), 0), Verdict::Expired);
        assert_eq!(sessions.footprint().0, 0);
        sessions.open(9);
        assert_eq!(sessions.judge(&GroupHeader { fence: Some(8), ..group(9, 1) }, 0), Verdict::Fenced { fence: 9 });
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        sessions.as_of(9).encode(&mut kept);
        sessions.truncate(8);
        assert_eq!(sessions.judge(&group(5, 1), 0), Verdict::Duplicate(placed(1, 6)));
        assert_eq!(sessions.judge(&group(7, 1), 0), Verdict::Accept);
        sessions.as_of(7).encode(&mut gone);
        assert_ne!(kept, gone);
    }

    #[test]
    fn the_session_idle_for_the_longest_stretch_of_log_is_evicted_and_comes_back_on_truncation() {
        let mut sessions = Sessions::default();
        for index in 1..=SESSIONS_MAX as u64 {
            sessions.open(index);
        }
        sessions.append(&group(1, 1), placed(1, 10_000));
        sessions.commit(10_000);
        sessions.open(10_001);
        assert_eq!(sessions.judge(&group(2, 1), 0), Verdict::Expired);
        assert_eq!(sessions.judge(&group(1, 2), 0), Verdict::Accept);
        assert_eq!(sessions.len(), SESSIONS_MAX);
        sessions.truncate(10_001);
        assert_eq!(sessions.judge(&group(2, 1), 0), Verdict::Accept);
    }

    #[test]
    fn results_of_one_session_are_bounded_and_old_ones_answer_expired() {
        let mut sessions = Sessions::default();
        sessions.open(1);
        for sequence in 1..=RESULTS_PER_SESSION as u64 + 1 {
            sessions.append(&group(1, sequence), placed(sequence, sequence + 1));
        }
        assert_eq!(sessions.judge(&group(1, 1), 0), Verdict::Expired);
        assert!(matches!(sessions.judge(&group(1, 2), 0), Verdict::Duplicate(_)));
    }

    #[test]
    fn an_expected_offset_and_a_fence_are_judged_after_the_sequence() {
        let mut sessions = Sessions::default();
        sessions.open(1);
        let mut header = GroupHeader { expected_offset: Some(7), fence: Some(3), ..group(1, 1) };
        assert_eq!(sessions.judge(&header, 8), Verdict::Conflict { next_offset: 8 });
        assert_eq!(sessions.judge(&header, 7), Verdict::Accept);
        sessions.append(&header, placed(1, 2));
        assert!(matches!(sessions.judge(&header, 8), Verdict::Duplicate(_)));
        header = GroupHeader { fence: Some(2), ..group(1, 2) };
        assert_eq!(sessions.judge(&header, 8), Verdict::Fenced { fence: 3 });
    }
}
