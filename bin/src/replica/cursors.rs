//! Named cursors: where consumers stand in the log.
//!
//! A cursor is a name and an offset: of the record that its consumer wants next. An `Advance` never takes it back; a `Set` puts it anywhere
//! in the log, a `Drop` ends it. A cursor holds no trim back, and a trim moves no cursor: whoever goes on from one that lies
//! before the first offset is told that what it wants is trimmed.
//!
//! What clients want gathers while the leader's last write is in flight, and shares an entry, as appends do. The leader judges by
//! the cursors at the end of its log. Nodes judge again, alike, where an entry takes effect: an entry takes no cursor back that
//! is only to be advanced, names no more than there may be, and reaches past no record.
//!
//! An entry's body, little-endian: version (4: 1), number of moves (4: 1 to 1,024), and for each: what (1: 1 advance, 2 set, 3 drop), length of
//! the name (1), offset (8; of a drop zero), the name. In a checkpoint: number of cursors (4), and for each, ascending by name: length of the name (1),
//! offset (8), the name.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use graven_frame::{Frame, FrameError, Kind};
use graven_raft::Role;

use super::Replica;
use super::checkpoint::Fields;
use super::effect::{Answer, Now, Rejection, RequestId};
use super::names::is_name;
use super::planted::{Bug, is_planted};
use super::snapshots::NAMES_LEVEL;

const ENTRY_VERSION: u32 = 1;
/// Cursors at most. Every checkpoint holds all of them: with the longest names, 75 KiB.
pub const CURSORS_MAX: usize = 1024;
/// Moves that share an entry at most: with the longest names, 75 KiB, less than a frame of records.
const MOVES_MAX: usize = 1024;
/// Moves that wait at most: as many as inputs may wait for the thread that makes them. What is more is refused, and passes.
const WAITING_MAX: usize = 16_384;

/// What a client wants done to a cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Forward to an offset; where it stands when it is there or further already.
    Advance(String, u64),
    /// To an offset, be it back.
    Set(String, u64),
    /// Away.
    Drop(String),
}

impl Move {
    /// The cursor's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Move::Advance(name, _) | Move::Set(name, _) | Move::Drop(name) => name,
        }
    }

    fn offset(&self) -> Option<u64> {
        match self {
            Move::Advance(_, offset) | Move::Set(_, offset) => Some(*offset),
            Move::Drop(_) => None,
        }
    }

    /// Where the cursor stands behind this move, given where it stood; `None`: there is none.
    fn of(&self, before: Option<u64>) -> Option<u64> {
        match self {
            Move::Advance(_, offset) if is_planted(Bug::CursorGoesBack) => Some(*offset),
            Move::Advance(_, offset) => before.max(Some(*offset)),
            Move::Set(_, offset) => Some(*offset),
            Move::Drop(_) => None,
        }
    }

    /// What whoever wanted this is told.
    fn answer(&self, before: Option<u64>) -> Answer {
        match self.of(before) {
            Some(offset) => Answer::CursorAt { offset },
            None => Answer::CursorDropped { offset: before },
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let what = match self {
            Move::Advance(..) => 1,
            Move::Set(..) => 2,
            Move::Drop(_) => 3,
        };
        out.extend([what, self.name().len() as u8]);
        out.extend(self.offset().unwrap_or(0).to_le_bytes());
        out.extend(self.name().as_bytes());
    }

    fn decode(from: &mut Fields<'_>) -> Option<Move> {
        let [what, len] = from.bytes(2)?.try_into().ok()?;
        let offset = from.u64()?;
        let name = name_of(from.bytes(len.into())?)?;
        match what {
            1 => Some(Move::Advance(name, offset)),
            2 => Some(Move::Set(name, offset)),
            3 if offset == 0 => Some(Move::Drop(name)),
            _ => None,
        }
    }
}

fn name_of(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok().filter(|name| is_name(name))
}

fn body_of(moves: &[Move]) -> Vec<u8> {
    let mut out = [ENTRY_VERSION.to_le_bytes(), (moves.len() as u32).to_le_bytes()].concat();
    moves.iter().for_each(|it| it.encode(&mut out));
    out
}

fn decode_body(body: &[u8]) -> Option<Vec<Move>> {
    let mut from = Fields::new(body);
    let (version, count) = (from.u32()?, from.u32()? as usize);
    if version != ENTRY_VERSION || !(1..=MOVES_MAX).contains(&count) {
        return None;
    }
    let moves: Option<Vec<Move>> = (0..count).map(|_| Move::decode(&mut from)).collect();
    moves.filter(|_| from.rest().is_empty())
}

/// The moves in an entry, when it is one of cursors.
pub(super) fn moves_of(frame: &Frame) -> Result<Option<Vec<Move>>, FrameError> {
    if frame.header().kind != Kind::Cursor {
        return Ok(None);
    }
    decode_body(&frame.body().concat()).map(Some).ok_or(FrameError::Malformed { what: "cursor entry", at: 0 })
}

/// Cursors by name, as of some entry.
type Table = BTreeMap<String, u64>;

/// An entry of moves: its index, the offset behind the records before it, the moves.
#[derive(Debug)]
struct Moved(u64, u64, Vec<Move>);

impl Moved {
    fn apply(&self, table: &mut Table) {
        let Moved(_, next_offset, moves) = self;
        for it in moves {
            let before = table.get(it.name()).copied();
            let has_room = before.is_some() || table.len() < CURSORS_MAX;
            match it.of(before) {
                Some(offset) if has_room && it.offset().is_some_and(|wanted| wanted <= *next_offset) => {
                    table.insert(it.name().to_owned(), offset);
                }
                Some(_) => {}
                None => drop(table.remove(it.name())),
            }
        }
    }
}

/// The cursors that readers see, and what is in the log behind that.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    visible: Table,
    ahead: VecDeque<Moved>,
    /// As they are at the end of the log.
    latest: Table,
    /// Counts what became visible.
    version: u64,
}

impl Cursors {
    /// Takes in a frame that is in the log now.
    pub(super) fn note(&mut self, frame: &Frame) -> Result<(), FrameError> {
        if let Some(moves) = moves_of(frame)? {
            let moved = Moved(frame.header().index, frame.header().base_offset, moves);
            moved.apply(&mut self.latest);
            self.ahead.push_back(moved);
        }
        Ok(())
    }

    /// Everything from `index` on is gone from the log.
    pub(super) fn truncate(&mut self, index: u64) {
        let kept = self.ahead.partition_point(|Moved(at, ..)| *at < index);
        if kept == self.ahead.len() || is_planted(Bug::CursorsNotRolledBack) {
            return;
        }
        self.ahead.truncate(kept);
        self.latest.clone_from(&self.visible);
        self.ahead.iter().for_each(|moved| moved.apply(&mut self.latest));
    }

    /// Entries up to `index` may be seen.
    pub(super) fn pass(&mut self, index: u64) {
        while self.ahead.front().is_some_and(|Moved(at, ..)| *at <= index)
            && let Some(moved) = self.ahead.pop_front()
        {
            moved.apply(&mut self.visible);
            self.version += 1;
        }
    }

    /// These cursors in place of ours; whoever counts versions sees that something changed.
    pub(super) fn replaced(&mut self, by: Cursors) -> Cursors {
        let version = self.version + 1;
        match is_planted(Bug::InstallKeepsCursors) {
            true => Cursors { version, ..std::mem::take(self) },
            false => Cursors { version, ..by },
        }
    }

    /// The bytes of what readers see, if there is any.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        if self.visible.is_empty() || is_planted(Bug::CursorsForgotten) {
            return None;
        }
        let mut out = (self.visible.len() as u32).to_le_bytes().to_vec();
        for (name, offset) in &self.visible {
            out.push(name.len() as u8);
            out.extend(offset.to_le_bytes());
            out.extend(name.as_bytes());
        }
        Some(out)
    }

    /// Reads what [`Cursors::encode`] wrote.
    pub(super) fn decode(from: &mut Fields<'_>) -> Option<Cursors> {
        let mut visible = Table::new();
        let count = from.u32()? as usize;
        for _ in 0..Some(count).filter(|count| (1..=CURSORS_MAX).contains(count))? {
            let [len]: [u8; 1] = from.bytes(1)?.try_into().ok()?;
            let offset = from.u64()?;
            let name = name_of(from.bytes(len.into())?)?;
            if visible.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return None;
            }
            visible.insert(name, offset);
        }
        Some(Cursors { latest: visible.clone(), visible, ..Cursors::default() })
    }
}

/// Moves that wait for the disk.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<(RequestId, Move)>);

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn drain_requests(&mut self) -> impl Iterator<Item = RequestId> + '_ {
        self.0.drain(..).map(|(request, _)| request)
    }
}

/// An entry in the making, and the cursors it touched, as they are behind it.
#[derive(Default)]
struct Draft {
    moves: Vec<Move>,
    touched: BTreeMap<String, Option<u64>>,
    waiting: Vec<(RequestId, Answer)>,
    judged: Vec<(RequestId, Result<Answer, Rejection>)>,
}

impl Draft {
    /// How many cursors there are behind it.
    fn count(&self, latest: &Table) -> usize {
        let (new, gone) = self.touched.iter().fold((0, 0), |(new, gone), (name, at)| {
            let was = latest.contains_key(name);
            (new + usize::from(!was && at.is_some()), gone + usize::from(was && at.is_none()))
        });
        latest.len() + new - gone
    }

    fn judge(&mut self, latest: &Table, next_offset: u64, request: RequestId, wanted: Move) {
        let touched = self.touched.get(wanted.name()).copied();
        let before = touched.unwrap_or_else(|| latest.get(wanted.name()).copied());
        let behind = wanted.of(before);
        let answer = wanted.answer(before);
        if wanted.offset().is_some_and(|offset| offset > next_offset) {
            self.judged.push((request, Err(Rejection::Beyond { next_offset })));
        } else if behind == before {
            self.judged.push((request, Ok(answer)));
        } else if before.is_none() && self.count(latest) >= CURSORS_MAX {
            self.judged.push((request, Err(Rejection::TooManyCursors)));
        } else {
            self.touched.insert(wanted.name().to_owned(), behind);
            self.waiting.push((request, answer));
            self.moves.push(wanted);
        }
    }
}

impl Replica {
    /// Takes in a client's wish to move a cursor. Answered with where it stands once that is committed. Moves that come while the disk is busy share an entry.
    pub fn move_cursor(&mut self, now: Now, request: RequestId, wanted: Move) {
        match self.may_move(&wanted) {
            Err(rejection) => self.answer(request, Err(rejection)),
            Ok(()) => {
                self.moves.0.push_back((request, wanted));
                self.settle(now);
            }
        }
    }

    fn may_move(&self, wanted: &Move) -> Result<(), Rejection> {
        if !is_name(wanted.name()) {
            return Err(Rejection::CursorName);
        }
        if let Some(rejection) = self.refusal() {
            return Err(rejection);
        }
        if self.feature_level() < NAMES_LEVEL {
            return Err(Rejection::Level { needed: NAMES_LEVEL });
        }
        if self.moves.len() >= WAITING_MAX { Err(Rejection::CursorsBusy) } else { Ok(()) }
    }

    /// Where a cursor stands, as readers of this node see it.
    #[must_use]
    pub fn cursor(&self, name: &str) -> Option<u64> {
        self.tables.cursors.visible.get(name).copied()
    }

    /// The cursors behind a name, ascending, as readers of this node see them; all of them behind the empty name.
    pub fn cursors_after<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, u64)> {
        let range = (Bound::Excluded(name), Bound::Unbounded);
        self.tables.cursors.visible.range::<str, _>(range).map(|(name, offset)| (name.as_str(), *offset))
    }

    /// Counts the changes of the cursors that readers see.
    #[must_use]
    pub fn cursors_version(&self) -> u64 {
        self.tables.cursors.version
    }

    /// Makes one entry of the moves that wait. Returns its bytes, 0 when nothing of them needs to enter the log.
    pub(super) fn propose_moves(&mut self, now: Now) -> usize {
        if self.moves.len() == 0 || self.core.role() != Role::Leader {
            return 0;
        }
        let last = self.log.last();
        let mut draft = Draft::default();
        while draft.moves.len() < MOVES_MAX
            && let Some((request, wanted)) = self.moves.0.pop_front()
        {
            draft.judge(&self.tables.cursors.latest, last.next_offset, request, wanted);
        }
        if draft.moves.is_empty() {
            self.hold(now, last.index, draft.judged);
            return 0;
        }
        let body = body_of(&draft.moves);
        let bytes = body.len();
        match self.propose_control(now, Kind::Cursor, body, None) {
            Ok(index) => {
                draft.waiting.into_iter().for_each(|(request, answer)| self.acks.on_commit(index, request, answer));
                self.hold(now, index, draft.judged);
                bytes
            }
            Err(error) => {
                let rejection = self.not_proposed(&error);
                let waiting = draft.waiting.into_iter().map(|(request, _)| request);
                let requests = waiting.chain(draft.judged.into_iter().map(|(request, _)| request));
                self.ready.extend(requests.map(|request| (request, Err(rejection.clone()))));
                0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use graven_frame::{Body, Chain, HeaderSpec};

    use super::*;

    fn frame(index: u64, next_offset: u64, body: Vec<u8>) -> Frame {
        let spec =
            HeaderSpec { kind: Kind::Cursor, term: 1, index, base_offset: next_offset, count: 0, timestamp_ms: 0 };
        let body = Body::from_chunks(vec![body.into()]);
        let crc = body.crc();
        Frame::seal(spec, Chain::START, body, crc)
    }

    fn advance(name: &str, offset: u64) -> Move {
        Move::Advance(name.into(), offset)
    }

    fn set(name: &str, offset: u64) -> Move {
        Move::Set(name.into(), offset)
    }

    fn gone(name: &str) -> Move {
        Move::Drop(name.into())
    }

    fn table(cursors: &[(&str, u64)]) -> Table {
        cursors.iter().map(|(name, offset)| ((*name).to_owned(), *offset)).collect()
    }

    /// Entries 1, 2, .. of a log whose next record gets offset 100.
    fn cursors(entries: &[&[Move]]) -> Cursors {
        let mut cursors = Cursors::default();
        for (index, moves) in (1..).zip(entries) {
            cursors.note(&frame(index, 100, body_of(moves))).expect("well formed");
        }
        cursors
    }

    #[test]
    fn moves_are_read_back_and_others_refused() {
        let moves = vec![advance("a", 7), set("b.c", 0), gone("x-1"), advance(&"y".repeat(64), u64::MAX)];
        let body = body_of(&moves);
        assert_eq!(moves_of(&frame(3, 9, body.clone())), Ok(Some(moves)));
        for end in 0..body.len() {
            assert!(moves_of(&frame(3, 9, body[..end].to_vec())).is_err(), "cut at {end}");
        }
        for at in [0, 4, 8, 9] {
            let mut other = body.clone();
            other[at] ^= 0x40;
            assert!(moves_of(&frame(3, 9, other)).is_err(), "byte {at}");
        }
        assert!(moves_of(&frame(3, 9, [body, vec![0]].concat())).is_err());
        assert!(moves_of(&frame(3, 9, body_of(&[]))).is_err());
        for name in ["", "-a", ".a", "a/b", "ä", &"x".repeat(65)] {
            assert!(moves_of(&frame(3, 9, body_of(&[advance(name, 1)]))).is_err(), "{name:?}");
        }
    }

    #[test]
    fn an_advance_never_goes_back_and_a_set_does() {
        let mut cursors =
            cursors(&[&[advance("a", 10), advance("b", 5)], &[advance("a", 3)], &[set("a", 4), gone("b"), gone("c")]]);
        cursors.pass(1);
        assert_eq!(cursors.visible, table(&[("a", 10), ("b", 5)]));
        cursors.pass(2);
        assert_eq!(cursors.visible, table(&[("a", 10), ("b", 5)]));
        cursors.pass(3);
        assert_eq!(cursors.visible, table(&[("a", 4)]));
    }

    #[test]
    fn a_truncation_takes_back_what_it_took_out_of_the_log() {
        let mut cursors = cursors(&[&[advance("a", 10)], &[advance("a", 20)], &[gone("a")]]);
        cursors.pass(1);
        assert_eq!(cursors.latest, table(&[]));
        cursors.truncate(3);
        assert_eq!(cursors.latest, table(&[("a", 20)]));
        cursors.truncate(2);
        cursors.pass(9);
        assert_eq!((&cursors.visible, &cursors.latest), (&table(&[("a", 10)]), &table(&[("a", 10)])));
    }

    #[test]
    fn what_makes_no_sense_is_ignored_by_all_alike() {
        let many: Vec<Move> = (0..CURSORS_MAX).map(|at| advance(&format!("n{at}"), 1)).collect();
        let beyond = [advance("n0", 101), set("n1", 101), advance("n2", 100), advance("one-more", 1)];
        let mut cursors = cursors(&[&many, &beyond]);
        cursors.pass(2);
        let at = |name: &str| cursors.visible.get(name).copied();
        assert_eq!((at("n0"), at("n1"), at("n2"), at("one-more")), (Some(1), Some(1), Some(100), None));
        assert_eq!(cursors.visible.len(), CURSORS_MAX);
    }

    #[test]
    fn a_checkpoint_has_what_readers_see() {
        let mut cursors = cursors(&[&[advance("a", 10), set("b", 0)], &[advance("a", 20)]]);
        assert_eq!(cursors.encode(), None);
        cursors.pass(1);
        let bytes = cursors.encode().expect("cursors");
        let back = Cursors::decode(&mut Fields::new(&bytes)).expect("whole");
        assert_eq!((&back.visible, &back.latest), (&cursors.visible, &cursors.visible));
        for end in 0..bytes.len() {
            assert!(Cursors::decode(&mut Fields::new(&bytes[..end])).is_none(), "cut at {end}");
        }
        let mut more = bytes;
        more[..4].copy_from_slice(&1025u32.to_le_bytes());
        assert!(Cursors::decode(&mut Fields::new(&more)).is_none());
    }

    #[test]
    fn moves_that_share_an_entry_are_judged_in_their_order() {
        let latest = table(&[("a", 10), ("b", 5)]);
        let mut draft = Draft::default();
        let wanted =
            [advance("a", 9), advance("a", 12), advance("a", 11), gone("b"), gone("b"), set("a", 1), set("c", 101)];
        for (request, wanted) in (1..).zip(wanted) {
            draft.judge(&latest, 100, RequestId(request), wanted);
        }
        assert_eq!(draft.moves, [advance("a", 12), gone("b"), set("a", 1)]);
        let at = |offset| Answer::CursorAt { offset };
        let waiting =
            [(RequestId(2), at(12)), (RequestId(4), Answer::CursorDropped { offset: Some(5) }), (RequestId(6), at(1))];
        assert_eq!(draft.waiting, waiting);
        let judged = [
            (RequestId(1), Ok(at(10))),
            (RequestId(3), Ok(at(12))),
            (RequestId(5), Ok(Answer::CursorDropped { offset: None })),
            (RequestId(7), Err(Rejection::Beyond { next_offset: 100 })),
        ];
        assert_eq!(draft.judged, judged);
    }

    #[test]
    fn there_are_only_so_many_and_a_drop_makes_room_in_the_same_entry() {
        let latest: Table = (0..CURSORS_MAX).map(|at| (format!("n{at}"), 1)).collect();
        let mut draft = Draft::default();
        for (request, wanted) in (1..).zip([advance("new", 1), gone("n0"), advance("new", 1), advance("newer", 1)]) {
            draft.judge(&latest, 100, RequestId(request), wanted);
        }
        assert_eq!(draft.moves, [gone("n0"), advance("new", 1)]);
        let refused = |request| (RequestId(request), Err(Rejection::TooManyCursors));
        assert_eq!(draft.judged, [refused(1), refused(4)]);
    }
}
