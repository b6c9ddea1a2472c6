//! Making a damaged log openable again, with the consent of whoever owns it.
//!
//! A log is repaired by ending it before the damage: what is behind was acknowledged, and is lost here. So nothing is done
//! before somebody has seen the plan, nothing is deleted (all of it goes to a `quarantine-<n>` beside the log), and whoever has
//! peers with these entries rebuilds the node from them instead.
//!
//! The hard state is never taken back: the highest term, and the vote in it, that stands anywhere in the directory goes into
//! the repaired log.
//!
//! The order of the changes, each durable before the next: a copy of the segment where the log will end; its replacement,
//! complete, in its place; the segments behind it, moved. Power may fail between any two: the log then still refuses to
//! open, or it is repaired, and repairing again finds everything it needs.

use std::io;

use graven_frame::{HEADER_BYTES, decode_header};

use crate::disk::{Disk, DiskFile, LockError, WriteMode};
use crate::error::{OpenError, SegmentId};
use crate::format::{
    BOUNDARY, Footer, OPENING_BYTES, Opening, PREFIX_BYTES, Prefix, PrefixFound, RecordKind, SMALL_PAYLOAD,
    SMALL_RECORD, TRAILER_BYTES, TWIN_BLOCK, decode_hard_state, encode_hard_state, extent, segment_name,
};
use crate::open::{
    LOCK_NAME, SHORTER, Surveyed, check_successor, identify, io_at, judge, list_segments, refuse, survey,
};
use crate::recovery::SegmentVerdict;
use crate::replay::Replay;
use crate::types::{HardState, LogBase, Options};

/// Whether to do what the plan says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// Only say what would be done.
    DryRun,
    /// Do it: entries are lost here, as far as no peer has them.
    AcceptDataLoss,
}

/// What repairing does, or would do, to a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairPlan {
    /// What is wrong with the log; `None` when every byte is what was written, and nothing is to be done.
    pub reason: Option<String>,
    /// First and last entry that the log has afterwards; `None` when it has none.
    pub keeps: Option<(u64, u64)>,
    /// First and last entry that were written behind that, as far as it can still be seen.
    pub loses: Option<(u64, u64)>,
    /// The highest term and vote found anywhere, which the log has afterwards.
    pub hard_state: HardState,
    /// The segment in which the log ends afterwards and the byte from which its content is cut; the byte is 0 when none of its
    /// content is kept. A copy of its file is kept aside.
    pub cut: Option<(SegmentId, u64)>,
    /// Segments that are moved aside as a whole.
    pub moved: Vec<SegmentId>,
    /// The directory in the data directory that keeps all of it.
    pub quarantine: Option<String>,
    /// Whether it was done.
    pub done: bool,
}

/// Directories that keep what was cut are named like this, with a number.
const QUARANTINE: &str = "quarantine-";
/// The replacement of a segment, until it is complete.
const REPLACEMENT: &str = "repaired.new";
/// Bytes moved at once.
const STEP_BYTES: usize = 1 << 20;

/// Says what would make a damaged log whole again, and does it with consent. The log must be closed.
///
/// # Errors
/// As [`crate::Wal::open`], where it is no damage that keeps the log from opening, or nothing of it could be kept.
pub fn repair<D: Disk>(disk: &D, consent: Consent) -> Result<RepairPlan, OpenError> {
    list_segments(disk)?;
    let _lock = match consent {
        Consent::DryRun => match disk.lock_holder(LOCK_NAME).map_err(io_at("look at the lock of", 0, 0))? {
            Some(pid) => return Err(OpenError::Locked { pid }),
            None => None,
        },
        Consent::AcceptDataLoss => Some(disk.lock(LOCK_NAME).map_err(|error| match error {
            LockError::Held { pid } => OpenError::Locked { pid },
            LockError::Io(cause) => io_at("take the lock of", 0, 0)(cause),
        })?),
    };
    let (mut plan, work) = plan(disk)?;
    if let (Some(work), Consent::AcceptDataLoss) = (work, consent) {
        work.run(disk, &plan)?;
        plan.done = true;
    }
    Ok(plan)
}

/// What is needed to do what a plan says.
struct Work {
    /// The opening of the segment in which the log will end.
    opening: Opening,
    /// Its bytes up to here are kept.
    kept: u64,
    /// Items in the footer that the segment will get one day: it must have room for it.
    footer_bytes: u64,
    /// Where the log will end.
    known_commit: u64,
    /// Whether the file of that segment is there.
    there: bool,
}

fn plan<D: Disk>(disk: &D) -> Result<(RepairPlan, Option<Work>), OpenError> {
    let surveyed = survey(disk, &list_segments(disk)?)?;
    let identity = identify(&surveyed, &Options::default())?;
    let verdicts = judge(&surveyed, &identity);
    let begun: Vec<(&Surveyed, SegmentVerdict)> =
        surveyed.iter().zip(verdicts.iter().copied()).filter(|(_, verdict)| verdict.is_begun()).collect();
    // Every byte: damage in a sealed segment does not keep the log from opening, but whoever reads it meets it.
    let mut replay = Replay { deep: true, ..Replay::new() };
    let Err(reason) = read(disk, &begun, &mut replay, &surveyed) else {
        let (base, tail) = (replay.index.base, replay.tail);
        return Ok((plan_of(None, base, tail, replay.hard_state), None));
    };
    let Some((segment, at)) = place_of(disk, &reason, &mut replay, &surveyed)? else { return Err(reason) };
    let file = surveyed.iter().find(|found| found.id == segment);
    let opening = begun
        .iter()
        .find(|(found, verdict)| found.id == segment && *verdict == SegmentVerdict::Use && at >= OPENING_BYTES)
        .and_then(|(found, _)| found.good());
    if opening.is_none() && replay.index.segments.iter().all(|before| before.view.id >= segment) {
        // Nothing stands before the damage.
        return Err(reason);
    }
    let last = replay.index.segments.last().filter(|last| last.view.id == segment);
    let mut plan = plan_of(Some(reason.to_string()), replay.index.base, replay.tail, replay.hard_state);
    let mut highest = 0;
    for found in surveyed.iter().filter(|found| found.id >= segment) {
        let from = if found.id == segment && opening.is_some() { at } else { OPENING_BYTES };
        let seen = seen_in(disk, found, from)?;
        highest = highest.max(seen.highest_index);
        plan.hard_state = higher(plan.hard_state, seen.hard_state);
    }
    for opening in surveyed.iter().filter_map(Surveyed::good) {
        plan.hard_state = higher(plan.hard_state, opening.hard_state);
        highest = highest.max(opening.base.index);
    }
    plan.loses = (highest > replay.tail.index).then_some((replay.tail.index + 1, highest));
    plan.cut = Some((SegmentId(segment), if opening.is_some() { at } else { 0 }));
    // Behind the place where the log will end, an unfinished write is one more thing that may not be there.
    let written = surveyed.iter().zip(&verdicts).filter(|(_, verdict)| **verdict != SegmentVerdict::Prepared);
    plan.moved = written.map(|(found, _)| SegmentId(found.id)).filter(|id| id.0 > segment).collect();
    plan.quarantine = Some(quarantine_name(disk)?);
    let items = last.map_or((0, 0, 0), |last| (last.runs.len(), last.memberships.len(), last.points.len()));
    let fresh = Opening {
        segment,
        salt: disk.random().map_err(io_at("draw a salt for", segment, 0))?,
        identity,
        capacity: replay.index.segments.last().map_or(0, |before| before.capacity),
        hard_state: plan.hard_state,
        base: replay.tail,
        known_commit: replay.known_commit.min(replay.tail.index),
    };
    let work = Work {
        opening: opening.copied().unwrap_or(fresh),
        kept: if opening.is_some() { at } else { OPENING_BYTES },
        footer_bytes: extent(Footer::payload_len(items.0 + 1, items.1 + 1, items.2 + 1)),
        known_commit: replay.known_commit.min(replay.tail.index),
        there: file.is_some(),
    };
    Ok((plan, Some(work)))
}

fn plan_of(reason: Option<String>, base: LogBase, tail: LogBase, hard_state: HardState) -> RepairPlan {
    RepairPlan {
        reason,
        keeps: (tail.index > base.index).then_some((base.index + 1, tail.index)),
        loses: None,
        hard_state,
        cut: None,
        moved: Vec::new(),
        quarantine: None,
        done: false,
    }
}

/// Reads as an open does, up to what makes it refuse.
fn read<D: Disk>(
    disk: &D,
    begun: &[(&Surveyed, SegmentVerdict)],
    replay: &mut Replay,
    surveyed: &[Surveyed],
) -> Result<(), OpenError> {
    for (at, (segment, verdict)) in begun.iter().enumerate() {
        let next = begun.get(at + 1).map(|(next, _)| *next);
        let opening = match (verdict, segment.good()) {
            (SegmentVerdict::Use, Some(opening)) => opening,
            _ => return Err(refuse(segment, *verdict, replay, next)),
        };
        let next = next.filter(|next| next.id == segment.id + 1 && next.is_own()).and_then(Surveyed::good);
        replay.segment(disk, opening, segment.len, next)?;
    }
    match &replay.ended {
        Some(ended) => check_successor(ended, replay, surveyed)?,
        None => return Err(OpenError::Empty),
    }
    replay.check_anchored()
}

/// The segment and the byte where the log must end so that what is wrong is not in it any more; `None` when there is no such
/// place.
fn place_of<D: Disk>(
    disk: &D,
    reason: &OpenError,
    replay: &mut Replay,
    surveyed: &[Surveyed],
) -> Result<Option<(u64, u64)>, OpenError> {
    Ok(match reason {
        OpenError::Damaged(damage) if damage.what == SHORTER => {
            let found = surveyed.iter().find(|found| found.id == damage.segment.0 && found.is_own());
            let Some((found, opening)) = found.and_then(|found| Some((found, found.good()?))) else {
                return Ok(Some((damage.segment.0, 0)));
            };
            // What is left of it is read as if it had been made that short.
            let short = Opening { capacity: found.len, ..*opening };
            match replay.segment(disk, &short, found.len, None) {
                Ok(()) => replay.ended.as_ref().map(|ended| (found.id, ended.at)),
                Err(OpenError::Damaged(damage)) => Some((found.id, damage.from)),
                Err(error) => return Err(error),
            }
        }
        OpenError::Damaged(damage) => Some((damage.segment.0, damage.from)),
        OpenError::MissingSegment { segment, .. } => Some((segment.0, 0)),
        // An entry that was found wrong only in the end is no place to end at: what was read after it rests on it.
        OpenError::WrongChain { segment, at, .. } if replay.unanchored.is_none() => Some((segment.0, *at)),
        _ => None,
    })
}

/// What can still be seen behind the place where a log will end.
#[derive(Default)]
struct Seen {
    hard_state: HardState,
    highest_index: u64,
}

/// Looks for hard states and entries on every boundary of a segment. Only right sums count; the salt must be the segment's if that is
/// known, and else the segment's number is enough: a vote too many is remembered rather than one too few.
fn seen_in<D: Disk>(disk: &D, found: &Surveyed, from: u64) -> Result<Seen, OpenError> {
    let mut seen = Seen::default();
    let file = disk.open(&segment_name(found.id), None).map_err(io_at("open", found.id, 0))?;
    let salt = found.good().filter(|_| found.is_own()).map(|opening| opening.salt);
    let mut window = vec![0; STEP_BYTES + RECORD_HEAD];
    let mut start = from.next_multiple_of(BOUNDARY);
    while start < found.len {
        let read = file.read_at(start, &mut window).map_err(io_at("read", found.id, start))?;
        for step in (0..read.min(STEP_BYTES)).step_by(BOUNDARY as usize) {
            let Some(place) = window[..read].get(step..step + RECORD_HEAD) else { break };
            let Some(PrefixFound::Good(prefix)) = place.first_chunk().map(Prefix::decode) else { continue };
            let ours = prefix.segment == found.id && salt.is_none_or(|salt| salt == prefix.salt);
            if !ours || prefix.position != start + step as u64 {
                continue;
            }
            let payload = &place[PREFIX_BYTES..];
            match prefix.kind {
                RecordKind::HardState if crc32fast::hash(&payload[..SMALL_PAYLOAD]) == prefix.body_crc => {
                    if let Some(hard_state) = decode_hard_state(&payload[..SMALL_PAYLOAD]) {
                        seen.hard_state = higher(seen.hard_state, hard_state);
                    }
                }
                RecordKind::Frame => {
                    if let Ok(header) = decode_header(payload) {
                        seen.highest_index = seen.highest_index.max(header.index);
                    }
                }
                _ => {}
            }
        }
        start += STEP_BYTES as u64;
    }
    Ok(seen)
}

/// A prefix and as much behind it as must be seen of a hard state or an entry.
const RECORD_HEAD: usize = PREFIX_BYTES + HEADER_BYTES;

/// The one of two hard states that must not be forgotten: of the higher term, and in one term the vote.
pub(crate) fn higher(one: HardState, other: HardState) -> HardState {
    if (other.term, other.vote.is_some()) > (one.term, one.vote.is_some()) { other } else { one }
}

pub(crate) fn quarantine_name<D: Disk>(disk: &D) -> Result<String, OpenError> {
    let names = disk.list().map_err(io_at("list", 0, 0))?;
    let taken = |number: u64| names.iter().any(|name| name.split('/').next() == Some(&format!("{QUARANTINE}{number}")));
    let number = (1..).find(|number| !taken(*number)).unwrap_or(u64::MAX);
    Ok(format!("{QUARANTINE}{number}"))
}

impl Work {
    fn run<D: Disk>(&self, disk: &D, plan: &RepairPlan) -> Result<(), OpenError> {
        let Some(quarantine) = &plan.quarantine else { return Ok(()) };
        let id = self.opening.segment;
        let name = segment_name(id);
        disk.create_dir(quarantine).map_err(io_at("make a directory for", id, 0))?;
        disk.sync_dir().map_err(io_at("sync the directory for", id, 0))?;
        if self.there {
            let kept_as = format!("{quarantine}/{name}");
            copy(disk, &name, &kept_as).map_err(io_at("keep a copy of", id, 0))?;
            disk.sync_subdir(quarantine).map_err(io_at("sync the directory for", id, 0))?;
        }
        self.replace(disk, &name, plan.hard_state).map_err(io_at("replace", id, self.kept))?;
        // Power fails from here on: the log ends where it should, with its hard state, and some of the segments behind are still
        // there. They do not continue it, so it refuses to open, and another repair moves them.
        for SegmentId(behind) in plan.moved.iter().rev() {
            let from = segment_name(*behind);
            disk.rename(&from, &format!("{quarantine}/{from}")).map_err(io_at("move", *behind, 0))?;
        }
        disk.sync_subdir(quarantine).map_err(io_at("sync the directory for", id, 0))?;
        disk.sync_dir().map_err(io_at("sync the directory for", id, 0))
    }

    /// Puts a segment with what is kept, and the hard state behind it, in the place of the damaged one.
    fn replace<D: Disk>(&self, disk: &D, name: &str, hard_state: HardState) -> io::Result<()> {
        disk.remove_unfinished(REPLACEMENT)?;
        let id = self.opening.segment;
        let payload = encode_hard_state(hard_state);
        let prefix = Prefix {
            kind: RecordKind::HardState,
            copy: 0,
            salt: self.opening.salt,
            segment: id,
            position: self.kept,
            // The file gets its name only when all of it is durable.
            watermark: self.kept,
            known_commit: self.known_commit,
            head_crc: (self.kept / BOUNDARY) as u32,
            body_crc: crc32fast::hash(&payload),
            payload_len: payload.len() as u32,
        };
        let (at, record) = prefix.both_copies(hard_state);
        // The place may have been the last one in the segment: what must be written next still fits in a longer one.
        let room = record.len() as u64 + 4 * TWIN_BLOCK + SMALL_RECORD + self.footer_bytes + TRAILER_BYTES;
        let capacity = self.opening.capacity.max((self.kept + room).next_multiple_of(TWIN_BLOCK));
        let file = disk.create(REPLACEMENT, WriteMode::Buffered)?;
        file.allocate(capacity)?;
        file.write_at(0, &Opening { capacity, ..self.opening }.encode())?;
        if self.kept > OPENING_BYTES {
            copy_range(&disk.open(name, None)?, &file, OPENING_BYTES, self.kept)?;
        }
        file.write_at(at, &record)?;
        file.sync_data()?;
        disk.rename(REPLACEMENT, name)?;
        disk.sync_dir()
    }
}

fn copy<D: Disk>(disk: &D, from: &str, to: &str) -> io::Result<()> {
    let source = disk.open(from, None)?;
    let copy = disk.create(to, WriteMode::Buffered)?;
    copy_range(&source, &copy, 0, source.len()?)?;
    copy.sync_data()
}

pub(crate) fn copy_range<F: DiskFile>(source: &F, copy: &F, from: u64, to: u64) -> io::Result<()> {
    let mut buffer = vec![0; STEP_BYTES.min((to - from) as usize)];
    let mut next = from;
    while next < to {
        let some = buffer.len().min((to - next) as usize);
        source.read_exact_at(next, &mut buffer[..some])?;
        copy.write_at(next, &buffer[..some])?;
        next += some as u64;
    }
    Ok(())
}
