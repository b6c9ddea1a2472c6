//! What can still be read of each segment, in the order in which it was written.

use graven_frame::{Header, Kind};

use crate::disk::DiskFile;
use crate::error::{OpenError, SegmentId};
use crate::format::{FORMAT_VERSION, Footer, OPENING_BYTES, Opening, PREFIX_BYTES, TRAILER_BYTES};
use crate::log::follows;
use crate::mend::NO_LAST;
use crate::open::{SHORTER, io_at};
use crate::scan::{Content, NextGood, Probe, Record, Scanner};
use crate::types::{HardState, LogBase};

/// Entries that follow each other, in one segment, every byte of them right.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) segment: u64,
    pub(crate) salt: u64,
    /// Where the first entry's record starts, and the byte behind the last one's.
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) head: Header,
    pub(crate) tail: LogBase,
}

/// Bytes that are not what was written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) segment: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// How many bytes of records there were at most.
    pub(crate) room: u64,
    /// The prefix of each record in it is whole and says that it is a frame: nothing else stood there.
    pub(crate) frames_only: bool,
    pub(crate) what: &'static str,
}

/// One thing in a segment.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Run(Run),
    HardState(HardState),
    Reset(LogBase),
    /// The footer: where the segment ended.
    Sealed(LogBase, HardState),
    /// Entries or hard states may have stood here.
    Hidden(Broken),
    /// Nothing is lost with these bytes: the same facts stand elsewhere.
    Spare(Broken),
}

/// One segment of a log.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: u64,
    /// Whether there is a file.
    pub(crate) there: bool,
    pub(crate) len: u64,
    pub(crate) opening: Option<Opening>,
    pub(crate) salt: Option<u64>,
    /// Whether another segment was begun behind it.
    pub(crate) closed: bool,
    /// Each part with the highest known commit index that was read up to it.
    pub(crate) parts: Vec<(Part, u64)>,
    pub(crate) footer: Option<Footer>,
    /// Byte behind the last record.
    pub(crate) end: u64,
    /// Membership entries: place and length of their frames, and the index.
    pub(crate) memberships: Vec<(u64, usize, u64)>,
    /// The highest index and term of all entries seen.
    pub(crate) highest: (u64, u64),
}

/// What is wrong with the end of a log.
const REFUSED_END: &str = "the medium refuses to read the end of the log";

/// Segments that are not there, or not any more.
pub(crate) fn lost_segment(id: u64, closed: bool, what: &'static str) -> Segment {
    let broken = Broken { segment: id, from: 0, to: 0, room: NO_LAST, frames_only: false, what };
    let mut lost = empty(id, None, 0, closed);
    lost.there = false;
    lost.parts.push((Part::Hidden(broken), 0));
    lost
}

fn empty(id: u64, opening: Option<Opening>, len: u64, closed: bool) -> Segment {
    Segment {
        id,
        there: true,
        len,
        salt: opening.map(|opening| opening.salt),
        opening,
        closed,
        parts: Vec::new(),
        footer: None,
        end: OPENING_BYTES,
        memberships: Vec::new(),
        highest: (0, 0),
    }
}

/// Reads one segment's file. `closed` says that another segment was begun behind it, so that all of it is proven; `refused` whether the
/// medium refused to read a byte at or behind a place.
///
/// # Errors
/// The disk's, where the file itself cannot be used, and [`OpenError::NewerVersion`].
pub(crate) fn read_segment<F: DiskFile>(
    file: &F,
    id: u64,
    opening: Option<Opening>,
    closed: bool,
    refused: &dyn Fn(u64) -> bool,
) -> Result<Segment, OpenError> {
    let len = file.len().map_err(io_at("open", id, 0))?;
    let mut segment = empty(id, opening, len, closed);
    if opening.is_none() {
        let (from, to) = (0, OPENING_BYTES);
        let what = if len < OPENING_BYTES { SHORTER } else { "the opening block is damaged" };
        segment.parts.push((Part::Spare(Broken { segment: id, from, to, room: 0, frames_only: false, what }), 0));
    }
    let capacity = opening.map_or(len.max(OPENING_BYTES), |opening| opening.capacity);
    let mut walk = Walk {
        scanner: Scanner::new(file, id, segment.salt, len.min(capacity)),
        known_commit: opening.map_or(0, |opening| opening.known_commit),
        watermark: None,
        refused,
        records_to: if len < capacity { len } else { capacity - TRAILER_BYTES.min(capacity) },
        capacity,
        segment,
    };
    walk.run()?;
    if closed {
        walk.check_trailer()?;
    } else if opening.is_none() && walk.segment.parts.len() == 1 {
        // It was begun, and nothing in it is its own any more.
        walk.hide(OPENING_BYTES, capacity, "no record of this segment is left");
    }
    let Walk { mut segment, .. } = walk;
    segment.memberships.sort_unstable_by_key(|(_, _, index)| *index);
    Ok(segment)
}

struct Walk<'a, F> {
    scanner: Scanner<'a, F>,
    segment: Segment,
    known_commit: u64,
    /// The highest watermark of all records, looked for when the first broken one is met.
    watermark: Option<u64>,
    refused: &'a dyn Fn(u64) -> bool,
    /// Where records end at the latest.
    records_to: u64,
    capacity: u64,
}

impl<F: DiskFile> Walk<'_, F> {
    fn run(&mut self) -> Result<(), OpenError> {
        let id = self.segment.id;
        while self.segment.end + PREFIX_BYTES as u64 <= self.records_to {
            let at = self.segment.end;
            match self.scanner.probe(at).map_err(io_at("read", id, at))? {
                Probe::Good(record) => {
                    if self.take(record) {
                        return Ok(());
                    }
                }
                Probe::Newer(seen) => {
                    return Err(OpenError::NewerVersion { segment: SegmentId(id), seen, known: FORMAT_VERSION });
                }
                probe => {
                    if !self.pass(at, &probe)? {
                        return Ok(());
                    }
                }
            }
        }
        // The records went on to the end of what there is.
        if self.segment.closed || self.segment.len < self.capacity {
            self.hide(self.segment.end, self.capacity.max(self.segment.end), SHORTER);
        }
        Ok(())
    }

    /// Takes in a record; `true` when it ends the segment.
    fn take(&mut self, record: Record) -> bool {
        let id = self.segment.id;
        self.segment.salt = Some(record.prefix.salt);
        self.scanner.salt = Some(record.prefix.salt);
        self.segment.end = record.end;
        self.known_commit = self.known_commit.max(record.known_commit);
        if let (Some((from, to)), true) = (record.healed, self.segment.closed) {
            let what = "one of two copies of a hard state is damaged";
            self.push(Part::Spare(Broken { segment: id, from, to, room: 0, frames_only: false, what }));
        }
        match record.content {
            Content::Frame(header) => self.take_frame(&record.prefix, header, record.end),
            Content::HardState(hard_state) => self.push(Part::HardState(hard_state)),
            Content::Reset(base) => self.push(Part::Reset(base)),
            Content::SyncPoint => {}
            Content::Trailer(_) => return true,
            Content::Footer(footer) => {
                self.known_commit = self.known_commit.max(footer.known_commit);
                self.push(Part::Sealed(footer.tail, footer.hard_state));
                self.segment.footer = Some(footer);
                return true;
            }
        }
        false
    }

    fn take_frame(&mut self, prefix: &crate::format::Prefix, header: Header, end: u64) {
        let position = prefix.position;
        if header.kind == Kind::Membership {
            self.segment.memberships.push((position + PREFIX_BYTES as u64, header.frame_len(), header.index));
        }
        let (index, term) = self.segment.highest;
        self.segment.highest = (index.max(header.index), term.max(header.term));
        let known = self.known_commit;
        if let Some((Part::Run(run), commit)) = self.segment.parts.last_mut()
            && follows(&run.tail, &header).is_ok()
        {
            (run.tail, run.to, *commit) = (LogBase::after(&header), end, known);
            return;
        }
        let tail = LogBase::after(&header);
        let run = Run { segment: prefix.segment, salt: prefix.salt, from: position, to: end, head: header, tail };
        self.push(Part::Run(run));
    }

    /// Goes on behind a place where no record stands; `false` when nothing more follows.
    fn pass(&mut self, at: u64, probe: &Probe) -> Result<bool, OpenError> {
        let id = self.segment.id;
        let next = self.scanner.next_good(at, self.records_to).map_err(io_at("read", id, at))?;
        let short = self.segment.there && self.segment.len < self.capacity;
        if !self.segment.closed && !self.is_proven(at)? {
            if short {
                self.pass_short_end(at, probe, next.is_some());
            } else if *probe != Probe::Zero && (self.refused)(at) {
                // What cannot be read may be what vouches for the rest. No crash leaves such bytes.
                self.hide(at, self.capacity.max(at), REFUSED_END);
            }
            return Ok(false);
        }
        let what = match probe {
            Probe::Bad(what) => what,
            Probe::Zero => "zeroes where a record was",
            _ => "an older record where a newer one was",
        };
        match next {
            Some(NextGood::Record(position)) => {
                self.hide(at, position, what);
                let frames_only = self.scanner.frames_fill(at, position).map_err(io_at("read", id, at))?;
                if let Some((Part::Hidden(broken), _)) = self.segment.parts.last_mut() {
                    broken.frames_only = frames_only;
                }
                self.segment.end = position;
                Ok(true)
            }
            Some(NextGood::SecondCopy(prefix, hard_state)) => {
                self.hide(at, prefix.position, what);
                self.known_commit = self.known_commit.max(prefix.known_commit);
                self.push(Part::HardState(hard_state));
                self.segment.end = prefix.end();
                Ok(true)
            }
            None => {
                let behind = self.scanner.behind(at).map_err(io_at("read", id, at))?;
                let used_to = behind.cut_to(at).max(at + PREFIX_BYTES as u64).min(self.records_to.max(at));
                self.hide(at, if short { self.capacity } else { used_to }, if short { SHORTER } else { what });
                if let Some((Part::Hidden(broken), _)) = self.segment.parts.last_mut() {
                    // What was written further on may read as nothing now.
                    broken.room = self.capacity.max(at) - at;
                }
                Ok(false)
            }
        }
    }

    /// The end of the last segment, whose file lost some of its bytes.
    fn pass_short_end(&mut self, at: u64, probe: &Probe, more: bool) {
        if *probe == Probe::Zero && !more {
            // Records stand one behind the other: where the next one would be there is none.
            let (id, len, capacity) = (self.segment.id, self.segment.len, self.capacity);
            self.push(Part::Spare(Broken {
                segment: id,
                from: len,
                to: capacity,
                room: 0,
                frames_only: false,
                what: SHORTER,
            }));
        } else {
            self.hide(at, self.capacity, SHORTER);
        }
    }

    /// Whether a record behind says that everything up to there had been synced.
    fn is_proven(&mut self, at: u64) -> Result<bool, OpenError> {
        let id = self.segment.id;
        let watermark = match self.watermark {
            Some(watermark) => watermark,
            None => self.scanner.behind(at).map_err(io_at("read", id, at))?.watermark,
        };
        self.watermark = Some(watermark);
        Ok(watermark > at)
    }

    fn hide(&mut self, from: u64, to: u64, what: &'static str) {
        let segment = self.segment.id;
        let room = to.saturating_sub(from);
        self.push(Part::Hidden(Broken { segment, from, to, room, frames_only: false, what }));
    }

    fn push(&mut self, part: Part) {
        self.segment.parts.push((part, self.known_commit));
    }

    /// Of a segment that was closed: its trailer leads to its footer.
    fn check_trailer(&mut self) -> Result<(), OpenError> {
        let (id, capacity) = (self.segment.id, self.capacity);
        if self.segment.footer.is_none() || self.segment.opening.is_none() && self.segment.len < OPENING_BYTES {
            return Ok(());
        }
        let at = capacity - TRAILER_BYTES;
        let probe = if self.segment.len < capacity {
            Probe::Bad(SHORTER)
        } else {
            self.scanner.probe(at).map_err(io_at("read", id, at))?
        };
        let footer_at = |found: u64| {
            let footer = self.segment.footer.as_ref();
            footer.is_some_and(|footer| {
                let len = Footer::payload_len(footer.runs.len(), footer.memberships.len(), footer.points.len());
                found + crate::format::extent(len) == self.segment.end
            })
        };
        match probe {
            Probe::Good(Record { content: Content::Trailer(found), .. }) if footer_at(found) => {}
            _ => {
                let what = "the trailer is damaged";
                self.push(Part::Spare(Broken {
                    segment: id,
                    from: at,
                    to: capacity,
                    room: 0,
                    frames_only: false,
                    what,
                }));
            }
        }
        Ok(())
    }
}

/// Reads the entry `index` of a run again: the place behind which the log goes on there, and the byte behind its record.
///
/// # Errors
/// The disk's, and [`OpenError::Damaged`] when the run is not any more what it was.
pub(crate) fn entry_of<F: DiskFile>(file: &F, run: &Run, index: u64) -> Result<(LogBase, u64), OpenError> {
    let id = run.segment;
    let len = file.len().map_err(io_at("open", id, 0))?;
    let mut scanner = Scanner::new(file, id, Some(run.salt), len);
    let mut at = run.from;
    while at < run.to {
        let Probe::Good(record) = scanner.probe(at).map_err(io_at("read", id, at))? else { break };
        at = record.end;
        if let Content::Frame(header) = &record.content
            && header.index == index
        {
            return Ok((LogBase::after(header), record.end));
        }
    }
    Err(OpenError::Damaged(crate::error::Damage {
        segment: SegmentId(id),
        from: at,
        to: run.to,
        first_index: index,
        last_index: index,
        what: "bytes that were right a moment ago are not any more",
    }))
}

/// What of a run stands behind the entry `origin`, if that entry is in it as it is said to be.
///
/// # Errors
/// The disk's, and [`OpenError::Damaged`] when the run is not any more what it was.
pub(crate) fn behind<F: DiskFile>(file: &F, run: &Run, origin: &LogBase) -> Result<Option<Run>, OpenError> {
    let (base, _) = entry_of(file, run, origin.index)?;
    if base != *origin {
        return Ok(None);
    }
    let id = run.segment;
    let len = file.len().map_err(io_at("open", id, 0))?;
    let mut scanner = Scanner::new(file, id, Some(run.salt), len);
    let mut at = run.from;
    while at < run.to {
        let Probe::Good(record) = scanner.probe(at).map_err(io_at("read", id, at))? else { break };
        if let Content::Frame(head) = record.content
            && head.index == origin.index + 1
        {
            return Ok(Some(Run { from: at, head, ..run.clone() }));
        }
        at = record.end;
    }
    Ok(None)
}
