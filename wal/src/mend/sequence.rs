//! What the log says, with gaps where nobody can tell: the entries that count, out of all that can still be read.
//!
//! Segments are gone through in the order in which they were written. Three things make a place certain: an entry whose chain
//! continues the entry before it, the opening of a segment and its footer, both of which name the last entry before them with its
//! chain. Between two certain places there may be a gap, and then the entry behind it, or the opening, says what must be at its
//! end: whatever is put in must lead there by chain.
//!
//! In damaged bytes there may have been entries that replaced some of those before. So where the log goes on in another term than
//! it had before the damage, the gap begins behind the last entry that was known to be committed. (In the same term it does not: a
//! leader never replaces an entry of its own, so an entry of that term had those before it in front of it. Raft paper, 5.3, the
//! log matching property.)

use graven_frame::Header;

use crate::error::{OpenError, SegmentId};
use crate::log::follows;
use crate::mend::After;
use crate::mend::survey::{Broken, Part, Run, Segment};
use crate::types::{HardState, LogBase};

/// The entries that count, in order.
pub(crate) struct Sequence {
    /// The entry before the first one.
    pub(crate) base: LogBase,
    pub(crate) pieces: Vec<Piece>,
    /// Segment in which the log started anew, if it did.
    pub(crate) reset_in: Option<u64>,
    /// Damage that costs no entry.
    pub(crate) spare: Vec<Broken>,
    pub(crate) known_commit: u64,
    /// The highest hard state found.
    pub(crate) hard_state: HardState,
    /// Places where a later hard state may have stood.
    pub(crate) hidden: Vec<Broken>,
    /// Damage was passed since the last certain place; entries up to here were certain before it.
    doubt: Option<u64>,
    passed: Vec<Broken>,
    any_damage: bool,
    /// An entry that continues one before the first segment: segment, place, index.
    unanchored: Option<(u64, u64, u64)>,
}

/// A part of the log.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    Run(Run),
    Gap(Gap),
}

/// Entries that cannot be read.
#[derive(Debug, Clone)]
pub(crate) struct Gap {
    pub(crate) before: LogBase,
    pub(crate) first: u64,
    /// `None` at the end of the log.
    pub(crate) last: Option<u64>,
    pub(crate) after: Option<After>,
    pub(crate) places: Vec<Broken>,
    /// Entries above were written into the damaged places and nowhere else.
    pub(crate) only_above: u64,
}

impl Piece {
    pub(crate) fn first(&self) -> u64 {
        match self {
            Piece::Run(run) => run.head.index,
            Piece::Gap(gap) => gap.first,
        }
    }

    /// The last entry, where it is known.
    pub(crate) fn tail(&self) -> Option<LogBase> {
        match self {
            Piece::Run(run) => Some(run.tail),
            Piece::Gap(gap) => match gap.after {
                Some(After::Base(base)) => Some(base),
                _ => None,
            },
        }
    }
}

/// Reads an entry of a run again, and says where its record ends.
pub(crate) type ReadAgain<'a> = dyn Fn(&Run, u64) -> Result<(LogBase, u64), OpenError> + 'a;

impl Sequence {
    pub(crate) fn new(base: LogBase) -> Sequence {
        Sequence {
            base,
            pieces: Vec::new(),
            reset_in: None,
            spare: Vec::new(),
            known_commit: 0,
            hard_state: HardState::default(),
            hidden: Vec::new(),
            doubt: None,
            passed: Vec::new(),
            any_damage: false,
            unanchored: None,
        }
    }

    /// Takes in the next segment.
    ///
    /// # Errors
    /// [`OpenError::WrongChain`] where every sum is right and the pieces are not of one log; the disk's.
    pub(crate) fn segment(&mut self, segment: &Segment, first: bool, again: &ReadAgain<'_>) -> Result<(), OpenError> {
        let id = segment.id;
        if let Some(opening) = &segment.opening {
            if !first {
                self.anchor(opening.base, id, again)?;
            }
            self.known_commit = self.known_commit.max(opening.known_commit);
            self.vouch(opening.hard_state);
        } else if first {
            // Nothing but this opening said what the hard state was before the first record.
            let (from, to, room) = (0, 0, super::NO_LAST);
            self.hidden.push(Broken { segment: id, from, to, room, frames_only: false, what: "the first opening" });
        }
        for (part, commit) in &segment.parts {
            match part {
                Part::Hidden(broken) => {
                    self.any_damage = true;
                    self.known_commit = self.known_commit.max(*commit);
                    let certain = self.known_commit.max(self.base.index);
                    self.doubt = Some(self.doubt.map_or(certain, |before| before.min(certain)));
                    self.passed.push(*broken);
                    if !broken.frames_only {
                        self.hidden.push(*broken);
                    }
                }
                // Where the log begins is certain only when its first entry continues what is taken for it.
                Part::Spare(broken) if first && segment.opening.is_none() && broken.from == 0 => {
                    self.any_damage = true;
                    self.doubt = Some(self.base.index);
                    self.passed.push(*broken);
                }
                Part::Spare(broken) => {
                    self.any_damage = true;
                    self.spare.push(*broken);
                }
                Part::Run(run) => self.run(run, again)?,
                Part::HardState(hard_state) => self.vouch(*hard_state),
                Part::Sealed(tail, hard_state) => {
                    self.anchor(*tail, id, again)?;
                    self.vouch(*hard_state);
                }
                Part::Reset(base) => self.reset(*base, id),
            }
            self.known_commit = self.known_commit.max(*commit);
        }
        Ok(())
    }

    /// At the end of the log.
    ///
    /// # Errors
    /// As [`Sequence::segment`].
    pub(crate) fn close(&mut self) -> Result<(), OpenError> {
        if let Some((segment, at, index)) = self.unanchored {
            return Err(OpenError::WrongChain { segment: SegmentId(segment), at, index });
        }
        if self.doubt.take().is_none() {
            return Ok(());
        }
        let places = std::mem::take(&mut self.passed);
        let before = self.tail();
        let Some(before) = before else { return Ok(()) };
        if places.iter().all(|place| place.room < super::LEAST_FRAME_RECORD) && self.known_commit <= before.index {
            self.spare.extend(places);
            return Ok(());
        }
        let gap = Gap { before, first: before.index + 1, last: None, after: None, places, only_above: before.index };
        self.pieces.push(Piece::Gap(gap));
        Ok(())
    }

    /// Ends the log before entry `from`, with which a gap begins: nobody has what was in it. `false` when none begins there, or one of
    /// its entries is known to be committed.
    ///
    /// # Errors
    /// As [`Sequence::segment`].
    pub(crate) fn end_before(&mut self, from: u64, again: &ReadAgain<'_>) -> Result<bool, OpenError> {
        let gap = self.pieces.iter().find_map(|piece| match piece {
            Piece::Gap(gap) if gap.first == from => Some(gap.clone()),
            _ => None,
        });
        let Some(gap) = gap.filter(|_| from > self.known_commit) else { return Ok(false) };
        self.cut(from, again)?;
        // What was cut away is not spare: it is all one gap now.
        self.spare.retain(|broken| !gap.places.contains(broken));
        self.pieces.push(Piece::Gap(Gap { last: None, after: None, ..gap }));
        Ok(true)
    }

    /// The last entry, where it is known.
    pub(crate) fn tail(&self) -> Option<LogBase> {
        self.pieces.last().map_or(Some(self.base), Piece::tail)
    }

    /// A hard state that was written behind everything before.
    fn vouch(&mut self, hard_state: HardState) {
        self.hard_state = crate::repair::higher(self.hard_state, hard_state);
        self.hidden.clear();
    }

    fn reset(&mut self, base: LogBase, segment: u64) {
        for piece in std::mem::take(&mut self.pieces) {
            self.drop_piece(piece);
        }
        self.certain_again();
        (self.base, self.reset_in, self.unanchored) = (base, Some(segment), None);
    }

    fn drop_piece(&mut self, piece: Piece) {
        if let Piece::Gap(gap) = piece {
            // No entry is missed there any more; the bytes are wrong all the same.
            self.spare.extend(gap.places);
        }
    }

    /// Nothing that counts was lost in what was passed.
    fn certain_again(&mut self) {
        self.doubt = None;
        let passed = std::mem::take(&mut self.passed);
        self.spare.extend(passed);
    }

    fn run(&mut self, run: &Run, again: &ReadAgain<'_>) -> Result<(), OpenError> {
        let head = &run.head;
        let wrong = || OpenError::WrongChain { segment: SegmentId(run.segment), at: run.from, index: head.index };
        if head.index <= self.base.index {
            if self.reset_in.is_none() {
                // Right only if the log starts anew behind it.
                self.unanchored = Some((run.segment, run.from, head.index));
                return Ok(());
            }
            return Err(wrong());
        }
        if self.unanchored.is_some() {
            return Ok(());
        }
        match self.known(head.index - 1, again)? {
            Known::Entry(before) if follows(&before, head).is_ok() => {
                self.cut(head.index, again)?;
                self.certain_again();
            }
            Known::InGap if self.doubt.is_none() => {
                self.cut(head.index, again)?;
                if let Some(Piece::Gap(gap)) = self.pieces.last_mut() {
                    (gap.last, gap.after) = (Some(head.index - 1), Some(After::Entry(*head)));
                }
            }
            _ if self.doubt.is_none() => return Err(wrong()),
            _ => self.open_gap(head.index - 1, head.term, After::Entry(*head), again, &wrong)?,
        }
        self.pieces.push(Piece::Run(run.clone()));
        Ok(())
    }

    /// The log ended with this entry here.
    fn anchor(&mut self, base: LogBase, segment: u64, again: &ReadAgain<'_>) -> Result<(), OpenError> {
        let wrong = || OpenError::WrongChain { segment: SegmentId(segment), at: 0, index: base.index };
        if self.unanchored.is_some() {
            return Ok(());
        }
        if self.tail() == Some(base) {
            self.certain_again();
            return Ok(());
        }
        if base.index >= self.base.index
            && self.any_damage
            && let Known::Entry(there) = self.known(base.index, again)?
            && there == base
        {
            self.cut(base.index + 1, again)?;
            self.certain_again();
            return Ok(());
        }
        if self.doubt.is_none() {
            return Err(wrong());
        }
        self.open_gap(base.index, base.term, After::Base(base), again, &wrong)
    }

    /// A gap up to `last`, behind which the log goes on in `term`.
    fn open_gap(
        &mut self,
        last: u64,
        term: u64,
        after: After,
        again: &ReadAgain<'_>,
        wrong: &dyn Fn() -> OpenError,
    ) -> Result<(), OpenError> {
        let certain = self.doubt.unwrap_or(self.base.index).max(self.base.index);
        let only_above = self.last_known_index();
        self.cut(last + 1, again)?;
        let floor = match self.tail() {
            Some(tail) if tail.term == term && tail.index < last => tail.index,
            _ => certain,
        };
        if floor >= last || last <= self.base.index {
            return Err(wrong());
        }
        self.cut(floor + 1, again)?;
        let mut places = Vec::new();
        let mut above = only_above;
        // A gap whose end was cut away, or never known, goes on into this one.
        while let Some(Piece::Gap(gap)) = self.pieces.last() {
            if matches!(gap.after, Some(After::Base(_))) {
                break;
            }
            places.splice(0..0, gap.places.iter().copied());
            above = above.max(gap.only_above);
            self.pieces.pop();
        }
        places.append(&mut self.passed);
        let before = self.tail().ok_or_else(wrong)?;
        self.doubt = None;
        let gap =
            Gap { before, first: before.index + 1, last: Some(last), after: Some(after), places, only_above: above };
        self.pieces.push(Piece::Gap(gap));
        Ok(())
    }

    /// The highest index that something readable has.
    fn last_known_index(&self) -> u64 {
        match self.pieces.last() {
            Some(Piece::Run(run)) => run.tail.index,
            Some(Piece::Gap(gap)) => gap.last.unwrap_or(gap.before.index),
            None => self.base.index,
        }
    }

    fn known(&self, index: u64, again: &ReadAgain<'_>) -> Result<Known, OpenError> {
        if index == self.base.index {
            return Ok(Known::Entry(self.base));
        }
        let after = self.pieces.partition_point(|piece| piece.first() <= index);
        let Some(piece) = after.checked_sub(1).map(|at| &self.pieces[at]) else { return Ok(Known::Nothing) };
        match (piece, piece.tail()) {
            (_, Some(tail)) if tail.index == index => Ok(Known::Entry(tail)),
            (Piece::Run(run), Some(tail)) if index < tail.index => {
                again(run, index).map(|(base, _)| Known::Entry(base))
            }
            (Piece::Gap(gap), _) if gap.last.is_none_or(|last| index <= last) => Ok(Known::InGap),
            _ => Ok(Known::Nothing),
        }
    }

    /// Entries from `from` on do not count any more.
    fn cut(&mut self, from: u64, again: &ReadAgain<'_>) -> Result<(), OpenError> {
        while self.pieces.last().is_some_and(|piece| piece.first() >= from) {
            if let Some(piece) = self.pieces.pop() {
                self.drop_piece(piece);
            }
        }
        match self.pieces.last_mut() {
            Some(Piece::Run(run)) if run.tail.index >= from => (run.tail, run.to) = again(run, from - 1)?,
            Some(Piece::Gap(gap)) if gap.last.is_none_or(|last| last >= from) => {
                (gap.last, gap.after) = (Some(from - 1), None);
            }
            // Its end was known only by the entry behind it.
            Some(Piece::Gap(gap)) if matches!(gap.after, Some(After::Entry(_))) => gap.after = None,
            _ => {}
        }
        Ok(())
    }
}

/// What is known of an entry.
enum Known {
    Entry(LogBase),
    InGap,
    Nothing,
}

/// What an entry asks of the one before it.
pub(crate) fn asks(after: &After, before: &LogBase) -> Result<(), &'static str> {
    match after {
        After::Base(base) if base == before => Ok(()),
        After::Base(_) => Err("it is not the entry that the segment behind was opened after"),
        After::Entry(head) => follows_by(before, head),
    }
}

fn follows_by(before: &LogBase, head: &Header) -> Result<(), &'static str> {
    follows(before, head).map_err(|_| "the entry behind it does not continue it")
}
