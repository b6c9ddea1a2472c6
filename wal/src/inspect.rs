//! Looking at a log without opening it: nothing is locked, changed or made durable, but by [`repair`] with consent.
//!
//! [`scan`] reads what an open would read; [`verify`] reads every record, and wants the log to be closed; [`entries`]
//! lists what is in the files, superseded entries too. All of them read with positional reads. On the log of a running
//! node the end may be seen in the middle of a write, and look torn.

use std::sync::atomic::Ordering;

use graven_frame::Header;

use crate::disk::{Disk, DiskFile};
use crate::error::{Damage, OpenError, SegmentId};
use crate::format::{OPENING_BYTES, Opening, segment_name};
use crate::open::{LOCK_NAME, Surveyed, check_successor, identify, io_at, judge, list_segments, refuse, survey};
use crate::recovery::SegmentVerdict;
use crate::replay::{Replay, Why};
use crate::scan::{Content, Probe, Scanner};
use crate::types::{HardState, Identity, LogBase, Options, TermRun};

pub use crate::repair::{Consent, RepairPlan, repair};

/// What is in a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Whose log it is.
    pub identity: Identity,
    /// The segments in order, the prepared ones last.
    pub segments: Vec<SegmentInfo>,
    /// The last hard state.
    pub hard_state: HardState,
    /// The entry before the first one held.
    pub base: LogBase,
    /// The last entry.
    pub tail: LogBase,
    /// The highest commit index that the log itself proves.
    pub known_commit: u64,
    /// The terms of the entries held.
    pub term_runs: Vec<TermRun>,
    /// Damage that cost entries.
    pub damage: Vec<Damage>,
    /// Damage that cost nothing, because the same facts stand elsewhere.
    pub healed: Vec<Damage>,
    /// Bytes at the end that an open would cut as an unfinished write.
    pub torn_bytes: u64,
    /// Bytes behind the end that are left over from an earlier life of the last segment's file.
    pub stale_bytes: u64,
}

/// One segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number.
    pub id: SegmentId,
    /// Length of its file.
    pub file_bytes: u64,
    /// What it is used for.
    pub state: SegmentState,
    /// Tells its records from those of an earlier life of the file; 0 while it is prepared.
    pub salt: u64,
    /// The entry behind which it was opened.
    pub opened_at: LogBase,
    /// The hard state when it was opened.
    pub hard_state: HardState,
    /// First and last entry in it that were not superseded.
    pub entries: Option<(u64, u64)>,
    /// Byte behind the last record.
    pub written: u64,
    /// Everything below was proven to be durable by what is in the log.
    pub proven: u64,
}

/// What a segment is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentState {
    /// Full; others follow it.
    Sealed,
    /// The last one with records.
    Active,
    /// Made ready, not begun; it may hold what is left of an earlier life.
    Prepared,
}

/// One entry found in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryInfo {
    /// The segment.
    pub segment: SegmentId,
    /// Where its record starts.
    pub at: u64,
    /// Its header.
    pub header: Header,
}

/// Looks at a log as an open would: the last segment completely, the others by their footers.
///
/// # Errors
/// As opening, but damage is listed in the result and a held lock does not matter.
pub fn scan<D: Disk>(disk: &D) -> Result<Inspection, OpenError> {
    examine(disk, false)
}

/// Reads and checks every byte of a closed log.
///
/// # Errors
/// [`OpenError::Locked`] when somebody is writing to it, else as [`scan`].
pub fn verify<D: Disk>(disk: &D) -> Result<Inspection, OpenError> {
    list_segments(disk)?;
    if let Some(pid) = disk.lock_holder(LOCK_NAME).map_err(io_at("look at the lock of", 0, 0))? {
        return Err(OpenError::Locked { pid });
    }
    examine(disk, true)
}

fn examine<D: Disk>(disk: &D, deep: bool) -> Result<Inspection, OpenError> {
    let surveyed = survey(disk, &list_segments(disk)?)?;
    let identity = identify(&surveyed, &Options::default())?;
    let verdicts = judge(&surveyed, &identity);
    let begun: Vec<(&Surveyed, SegmentVerdict)> =
        surveyed.iter().zip(verdicts.iter().copied()).filter(|(_, verdict)| verdict.is_begun()).collect();
    let mut replay = Replay { deep, ..Replay::new() };
    let mut damage = Vec::new();
    let mut segments = Vec::new();
    for (at, (segment, verdict)) in begun.iter().enumerate() {
        let next = begun.get(at + 1).map(|(next, _)| *next).filter(|next| next.id == segment.id + 1);
        let read = match (verdict, segment.good()) {
            (SegmentVerdict::Use, Some(opening)) => {
                let next = next.filter(|next| next.is_own());
                replay.segment(disk, opening, segment.len, next.and_then(Surveyed::good))
            }
            _ => Err(refuse(segment, *verdict, &replay, next)),
        };
        match read {
            Ok(()) => {}
            Err(OpenError::Damaged(found)) => {
                damage.push(found);
                replay.holes = true;
                // Go on where the next segment says it starts.
                if let Some(next) = next.and_then(Surveyed::good) {
                    (replay.tail, replay.index.last) = (next.base, next.base.index);
                    replay.last_segment = segment.id;
                }
            }
            Err(error) => return Err(error),
        }
        if let Some(opening) = segment.good() {
            segments.push(begun_info(opening, segment.len, next.is_some()));
        }
    }
    if let Some(ended) = &replay.ended {
        match check_successor(ended, &replay, &surveyed) {
            Err(OpenError::Damaged(found)) => damage.push(found),
            checked => checked?,
        }
    }
    if damage.is_empty() {
        replay.check_anchored()?;
    }
    for segment in &replay.index.segments {
        if let Some(info) = segments.iter_mut().find(|info| info.id.0 == segment.view.id) {
            info.entries = segment.range();
            info.written = segment.view.written.load(Ordering::Relaxed);
            info.proven = info.written;
        }
    }
    let mut torn_bytes = 0;
    if let (Some(ended), Some(info)) = (&replay.ended, segments.last_mut()) {
        info.proven = ended.proven;
        if let Why::Torn { used_to } = ended.why {
            torn_bytes = used_to - ended.at;
        }
    }
    let prepared = surveyed.iter().zip(&verdicts).filter(|(_, verdict)| !verdict.is_begun());
    torn_bytes += prepared.clone().map(|(segment, _)| segment.used_to).sum::<u64>();
    segments.extend(prepared.map(|(segment, _)| prepared_info(segment)));
    Ok(Inspection {
        identity,
        segments,
        hard_state: replay.hard_state,
        base: replay.index.base,
        tail: replay.tail,
        known_commit: replay.known_commit.min(replay.tail.index),
        term_runs: replay.index.term_runs(),
        damage,
        stale_bytes: replay.report.stale_bytes,
        healed: replay.report.healed,
        torn_bytes,
    })
}

fn begun_info(opening: &Opening, file_bytes: u64, followed: bool) -> SegmentInfo {
    SegmentInfo {
        id: SegmentId(opening.segment),
        file_bytes,
        state: if followed { SegmentState::Sealed } else { SegmentState::Active },
        salt: opening.salt,
        opened_at: opening.base,
        hard_state: opening.hard_state,
        entries: None,
        written: OPENING_BYTES,
        proven: OPENING_BYTES,
    }
}

fn prepared_info(segment: &Surveyed) -> SegmentInfo {
    SegmentInfo {
        id: SegmentId(segment.id),
        file_bytes: segment.len,
        state: SegmentState::Prepared,
        salt: 0,
        opened_at: LogBase::default(),
        hard_state: HardState::default(),
        entries: None,
        written: 0,
        proven: 0,
    }
}

/// All entries in the files in the order they were written, superseded ones too; damaged places as [`OpenError::Damaged`]
/// where they are met.
///
/// # Errors
/// When there is no log, or it cannot be read at all.
pub fn entries<D: Disk>(disk: &D) -> Result<Entries<D>, OpenError> {
    let surveyed = survey(disk, &list_segments(disk)?)?;
    let openings = surveyed.iter().filter_map(Surveyed::good).copied().collect::<Vec<_>>();
    Ok(Entries { disk: disk.clone(), openings: openings.into_iter(), batch: Vec::new().into_iter() })
}

/// Iterator over the entries in the files; holds one segment's headers at a time.
pub struct Entries<D: Disk> {
    disk: D,
    openings: std::vec::IntoIter<Opening>,
    batch: std::vec::IntoIter<Result<EntryInfo, OpenError>>,
}

impl<D: Disk> std::fmt::Debug for Entries<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entries({} segments to go)", self.openings.len())
    }
}

impl<D: Disk> Iterator for Entries<D> {
    type Item = Result<EntryInfo, OpenError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.batch.next() {
                return Some(entry);
            }
            let opening = self.openings.next()?;
            let mut batch = Vec::new();
            if let Err(error) = list(&self.disk, &opening, &mut batch) {
                batch.push(Err(error));
            }
            self.batch = batch.into_iter();
        }
    }
}

fn list<D: Disk>(disk: &D, opening: &Opening, batch: &mut Vec<Result<EntryInfo, OpenError>>) -> Result<(), OpenError> {
    let id = opening.segment;
    let file = disk.open(&segment_name(id), None).map_err(io_at("open", id, 0))?;
    let len = file.len().map_err(io_at("open", id, 0))?.min(opening.capacity);
    let mut scanner = Scanner::new(&file, id, Some(opening.salt), len);
    let (mut at, mut next_index) = (OPENING_BYTES, opening.base.index + 1);
    loop {
        match scanner.probe(at).map_err(io_at("read", id, at))? {
            Probe::Good(record) => {
                at = record.end;
                match record.content {
                    Content::Frame(header) => {
                        next_index = header.index + 1;
                        batch.push(Ok(EntryInfo { segment: SegmentId(id), at: record.position, header }));
                    }
                    Content::Footer(_) => return Ok(()),
                    _ => {}
                }
            }
            Probe::Newer(seen) => {
                return Err(OpenError::NewerVersion {
                    segment: SegmentId(id),
                    seen,
                    known: crate::format::FORMAT_VERSION,
                });
            }
            Probe::Zero | Probe::Stale | Probe::Bad(_) => {
                let behind = scanner.behind(at).map_err(io_at("read", id, at))?;
                let (Some(next), true) = (behind.next, behind.watermark > at) else { return Ok(()) };
                let last_index = behind.next_entry.map_or(next_index, |next| next.index - 1);
                let what = "no valid record";
                batch.push(Err(OpenError::Damaged(Damage {
                    segment: SegmentId(id),
                    from: at,
                    to: next,
                    first_index: next_index,
                    last_index,
                    what,
                })));
                at = next;
            }
        }
    }
}
