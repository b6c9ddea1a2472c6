//! Writing the segments of a group, as far as the entries for its gaps are there.

use std::io;

use graven_frame::{Frame, HEADER_BYTES};

use crate::disk::{Disk, DiskFile};
use crate::error::SegmentId;
use crate::format::{Opening, PREFIX_BYTES, extent, segment_name};
use crate::log::follows;
use crate::mend::MendError;
use crate::mend::patient::Patient;
use crate::mend::plan::{Group, Item, Target};
use crate::mend::replacement::Replacement;
use crate::mend::sequence::{Gap, asks};
use crate::mend::survey::Run;
use crate::planted::{Bug, is_planted};
use crate::scan::{Content, Probe, Scanner};
use crate::types::{Identity, LogBase};

/// A gap, and how far it is filled.
#[derive(Debug)]
pub(crate) struct Filling {
    pub(crate) gap: Gap,
    /// The last entry before the next one wanted.
    pub(crate) tail: LogBase,
    pub(crate) filled: bool,
    /// Bytes of the records of those entries that surely stood in the damaged place.
    pub(crate) extents: Vec<u64>,
}

impl Filling {
    pub(crate) fn new(gap: Gap) -> Filling {
        Filling { tail: gap.before, gap, filled: false, extents: Vec::new() }
    }

    pub(crate) fn start_over(&mut self) {
        (self.tail, self.filled) = (self.gap.before, false);
        self.extents.clear();
    }

    /// Whether this is the next entry of the gap; what does not fit, if not.
    pub(crate) fn check(&self, frame: &Frame) -> Result<(), Unfit> {
        let header = frame.header();
        if self.filled || self.gap.last.is_none_or(|last| header.index > last) {
            return Err(Unfit::Batch("no entry of this index is missing"));
        }
        if header.index != self.tail.index + 1 {
            return Err(Unfit::Batch("it is not the next one that is missing"));
        }
        if frame.verify(None).is_err() {
            return Err(Unfit::Batch("its body does not match its sum"));
        }
        follows(&self.tail, header).map_err(Unfit::Branch)?;
        match &self.gap.after {
            Some(after) if self.gap.last == Some(header.index) && !is_planted(Bug::MendEndUnchecked) => {
                asks(after, &LogBase::after(header)).map_err(Unfit::Branch)
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn took(&mut self, frame: &Frame) {
        let header = frame.header();
        self.tail = LogBase::after(header);
        self.filled = self.gap.last == Some(header.index);
        if header.index > self.gap.only_above {
            self.extents.push(extent(header.frame_len()));
        }
    }
}

/// Why a frame is not taken.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// Ask again for this one.
    Batch(&'static str),
    /// It is of another history than what was taken before, or than what is here: begin the gap anew.
    Branch(&'static str),
}

/// The segments of a group that are being written.
pub(crate) struct Builder<D: Disk> {
    target: usize,
    item: usize,
    current: Option<Replacement<D::File>>,
    tail: LogBase,
    /// A gap that goes on into the current segment from the one before, and how far it may go.
    carried: Option<(usize, u64)>,
    /// All that are whole.
    pub(crate) whole: Vec<Replacement<D::File>>,
}

/// What a builder waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Gap(usize),
    Done,
}

fn io_of(operation: &'static str, id: u64) -> impl FnOnce(io::Error) -> MendError {
    move |cause| MendError::Io { operation, segment: SegmentId(id), at: 0, cause }
}

impl<D: Disk> Builder<D> {
    pub(crate) fn new(group: &Group) -> Builder<D> {
        Builder { target: 0, item: 0, current: None, tail: group.start, carried: None, whole: Vec::new() }
    }

    /// Writes everything up to the next gap that is not filled.
    pub(crate) fn advance(
        &mut self,
        disk: &Patient<D>,
        plain: &D,
        identity: Identity,
        group: &Group,
        gaps: &[Filling],
    ) -> Result<At, MendError> {
        while let Some(target) = group.targets.get(self.target) {
            self.begin(plain, identity, target)?;
            if let Some((number, _)) = self.carried {
                if !gaps[number].filled {
                    return Ok(At::Gap(number));
                }
                self.carried = None;
            }
            match target.items.get(self.item) {
                Some(Item::Gap(number, _)) if !gaps[*number].filled => return Ok(At::Gap(*number)),
                Some(Item::Gap(..)) => self.item += 1,
                Some(Item::Run(run)) => {
                    self.copy(disk, run)?;
                    self.item += 1;
                }
                Some(Item::Reset(base)) => {
                    if let Some(current) = &mut self.current {
                        current.reset(*base).map_err(io_of("write the replacement of", target.id))?;
                    }
                    self.item += 1;
                }
                None => self.end(target, group.log_base)?,
            }
        }
        Ok(At::Done)
    }

    fn begin(&mut self, disk: &D, identity: Identity, target: &Target) -> Result<(), MendError> {
        if self.current.is_some() {
            return Ok(());
        }
        let salt = match target.salt {
            Some(salt) => salt,
            None => disk.random().map_err(io_of("draw a salt for", target.id))?,
        };
        let fresh = Opening {
            segment: target.id,
            salt,
            identity,
            capacity: target.capacity,
            hard_state: target.hard_states.0,
            base: self.tail,
            known_commit: target.known_commits.0.min(self.tail.index),
        };
        let opening = target.opening.map_or(fresh, |opening| Opening { base: self.tail, ..opening });
        let begun = Replacement::begin(disk, opening).map_err(io_of("begin the replacement of", target.id))?;
        self.current = Some(begun);
        Ok(())
    }

    fn end(&mut self, target: &Target, log_base: LogBase) -> Result<(), MendError> {
        let Some(mut current) = self.current.take() else { return Ok(()) };
        let (hard_state, commit) = (target.hard_states.1, target.known_commits.1);
        let ended = if target.closed {
            current.close(hard_state, commit.min(current.tail.index), log_base)
        } else {
            current.leave_open(hard_state, commit)
        };
        ended.map_err(io_of("write the replacement of", target.id))?;
        self.tail = current.tail;
        self.whole.push(current);
        (self.target, self.item) = (self.target + 1, 0);
        Ok(())
    }

    /// Copies entries that are there.
    fn copy(&mut self, disk: &Patient<D>, run: &Run) -> Result<(), MendError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let id = run.segment;
        let file = disk.open(&segment_name(id), None).map_err(io_of("open", id))?;
        let len = file.len().map_err(io_of("open", id))?;
        let mut scanner = Scanner::new(&file, id, Some(run.salt), len);
        let mut at = run.from;
        while at < run.to {
            let probe = scanner.probe(at).map_err(io_of("read", id))?;
            let Probe::Good(record) = probe else {
                return Err(MendError::Changed { segment: SegmentId(id), at });
            };
            if let Content::Frame(header) = &record.content {
                let frame_at = at + PREFIX_BYTES as u64;
                let bytes = scanner.bytes(frame_at, header.frame_len()).map_err(io_of("read", id))?;
                let pushed = current.push(header, std::iter::once(bytes), record.known_commit);
                pushed.map_err(io_of("write the replacement of", id))?;
            }
            at = record.end;
        }
        if current.tail != run.tail {
            return Err(MendError::Changed { segment: SegmentId(id), at });
        }
        Ok(())
    }

    /// Writes a fetched entry that was checked.
    pub(crate) fn push(
        &mut self,
        frame: &Frame,
        plain: &D,
        identity: Identity,
        group: &Group,
    ) -> Result<(), MendError> {
        let Some(target) = group.targets.get(self.target) else { return Ok(()) };
        let (gap, alone) = match (self.carried, target.items.get(self.item)) {
            (Some(carried), rest) => (Some(carried), rest.is_none()),
            (None, Some(Item::Gap(number, until))) => (Some((*number, *until)), target.items.len() == self.item + 1),
            _ => (None, false),
        };
        // What does not fit goes into the next segment, if that is of the same gap; the last one takes whatever is left.
        if let (Some((number, until)), Some(current)) = (gap, &self.current)
            && alone
            && target.id < until
            && current.tail.index > current.opening.base.index
            && !current.takes(frame.encoded_len())
        {
            self.end(target, group.log_base)?;
            if let Some(next) = group.targets.get(self.target) {
                self.begin(plain, identity, next)?;
                self.carried = Some((number, until));
            }
        }
        let Some(current) = &mut self.current else { return Ok(()) };
        let id = current.opening.segment;
        let head: &[u8] = &frame.head()[..HEADER_BYTES];
        let pieces = std::iter::once(head).chain(frame.body().chunks().iter().map(|chunk| &chunk[..]));
        let commit = current.known_commit;
        current.push(frame.header(), pieces, commit).map_err(io_of("write the replacement of", id))
    }
}
