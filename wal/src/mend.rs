//! Mending: damage in a log is found, told as holes, and closed with entries that another node has.
//!
//! Nothing is invented: an entry is taken only if its sums are right, its chain continues the entry before the hole, and the last one
//! leads to what stands behind it. Nothing is deleted: the file of a damaged segment is copied into a `quarantine-<n>` beside the log
//! before another takes its place. Nothing is changed before everything that a segment needs is there.
//!
//! - A closed log: [`Mender`] reads every byte, tells its [`Hole`]s and takes frames for them. [`crate::Wal::open`] reads the log
//!   afterwards as it would have before the damage: the same entries, byte for byte, the same hard state, base and memberships.
//! - A damaged end, of which nobody knows how far it went, cannot be filled. [`Mender::cut_tail`] ends the log before it, and leaves a
//!   [`Marker`]: until a leader has brought the log further the node may have acknowledged what it does not know.
//! - A running log: [`crate::LogReader::scrub`] finds damage in sealed segments, a [`SealedMender`] replaces one of them.
//!
//! # The hard state
//!
//! A term or a vote that was lost would let this node vote twice. Every opening, every footer and every hard-state record says
//! the last hard state before it, so only damage behind the last of those can hide one. There, the two copies of a hidden hard state
//! must both lie in the damaged bytes, and with them the border of blocks before the second copy: 128 bytes before it and 128 behind.
//! What else lies there is known by its length: the fetched entries of the hole, as records. If, whatever stood between those, no such
//! border fits into the rest, no hard state was hidden. Nor was one where the prefixes of the damaged records are whole, and each leads
//! to the next: they are frames then. Else [`Mender::hard_state_certain`] is `false`, the marker says so too, and
//! the node must not vote any more under its identity.

mod abandon;
pub(crate) mod asked;
mod build;
mod error;
mod marker;
mod patient;
mod plan;
mod replacement;
mod sealed;
mod sequence;
mod sound;
mod survey;

use bytes::Bytes;
use graven_frame::{Frame, HEADER_BYTES, Header};

use crate::disk::{Disk, DiskFile, LockError};
use crate::error::{OpenError, SegmentId};
use crate::format::{OPENING_BYTES, PREFIX_BYTES, TWIN_BLOCK, segment_name};
use crate::log::{follows, settled_options};
use crate::open::{LOCK_NAME, Surveyed, identify, io_at, judge, list_segments, survey};
use crate::planted::{Bug, is_planted};
use crate::recovery::RecordsIn;
use crate::types::{HardState, Identity, LogBase, Options};

use build::{At, Builder, Filling, Unfit};
use error::io_of;
use patient::Patient;
use plan::{Group, find_start, holes, plan};
use replacement::{keep_aside, put_in_place};
use sequence::Sequence;
use survey::{Broken, Run, Segment, entry_of, lost_segment, read_segment};

pub use asked::{ask_at_start, is_asked, unask};
pub use error::MendError;
pub(crate) use marker::{MARKER, UNFINISHED_MARKER};
pub use marker::{Marker, MarkerError};
pub(crate) use replacement::MENDED_PREFIX;
pub use sealed::{SealedMender, SealedStep};
pub use sound::{NotGiven, SoundFrames};

/// How many bytes of frames to hand over at once: more only takes more memory.
pub const BATCH_BYTES: usize = 4 << 20;
/// The most membership entries that [`Mender::memberships`] gives: the addresses of peers are in the newest ones.
pub const MOST_MEMBERSHIPS: usize = 32;
/// A membership entry longer than this is none that anybody wrote.
const MEMBERSHIP_BYTES: usize = 1 << 20;
/// Nobody knows how many bytes were there.
pub(crate) const NO_LAST: u64 = u64::MAX;
/// The record of the shortest entry.
pub(crate) const LEAST_FRAME_RECORD: u64 = (PREFIX_BYTES + HEADER_BYTES).next_multiple_of(64) as u64;
/// Half of a hard state's two copies: it lies on both sides of a border of blocks.
const COPY_BYTES: u64 = crate::format::SMALL_RECORD;

/// Bytes of a segment that are not what was written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The segment.
    pub segment: SegmentId,
    /// First byte in its file.
    pub from: u64,
    /// Byte behind the last one; not above `from` when the file is not there.
    pub to: u64,
}

/// Something that is wrong with a log, and what it takes to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// The segment of the first place.
    pub segment: SegmentId,
    /// First damaged byte in its file.
    pub from: u64,
    /// Byte behind the last damaged one there.
    pub to: u64,
    /// All places between which nothing is certain.
    pub places: Vec<Place>,
    /// First entry that is missing.
    pub first: u64,
    /// Last one; below `first` when none is missing, `None` at the end of the log, where nobody knows.
    pub last: Option<u64>,
    /// The entry before `first`; all zero when none is missing.
    pub before: LogBase,
    /// What stands behind the last one.
    pub after: Option<After>,
    /// What is wrong.
    pub what: &'static str,
}

impl Hole {
    /// Whether entries are missing.
    #[must_use]
    pub fn needs_frames(&self) -> bool {
        self.last.is_none_or(|last| last >= self.first)
    }
}

impl std::fmt::Display for Hole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (nth, place) in self.places.iter().enumerate() {
            let and = if nth > 0 { ", " } else { "" };
            match place.to > place.from {
                true => write!(f, "{and}segment {} bytes {}..{}", place.segment, place.from, place.to)?,
                false => write!(f, "{and}segment {}, the whole file", place.segment)?,
            }
        }
        write!(f, ": {}", self.what)?;
        match self.last {
            None => write!(f, " (entries from {} to the end of the log)", self.first),
            Some(last) if last >= self.first => write!(f, " (entries {} to {last})", self.first),
            Some(_) => write!(f, " (no entry is lost)"),
        }
    }
}

/// What stands behind a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The last entry of the hole must be exactly this one.
    Base(LogBase),
    /// The entry with this header must continue the last one of the hole.
    Entry(Header),
}

/// What is missing of a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its number.
    pub hole: usize,
    /// The next entry to hand over.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

/// How far a hole is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// The next entry to hand over.
    pub next: u64,
    /// Whether none is missing any more.
    pub done: bool,
}

/// What was mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// Entries that were put in.
    pub entries: u64,
    /// The directory in the data directory that keeps the damaged files; `None` when none was replaced.
    pub quarantine: Option<String>,
    /// Whether it is proven that no term or vote was lost. If not, the node must not vote any more; the [`Marker`] says so too.
    pub hard_state_certain: bool,
    /// What is damaged as before.
    pub left: Vec<Hole>,
}

/// Mends a closed log. Holds the directory's lock until it is dropped or [`Mender::finish`]ed.
pub struct Mender<D: Disk> {
    disk: D,
    patient: Patient<D>,
    identity: Identity,
    base: LogBase,
    known_commit: u64,
    hard_state: HardState,
    /// The highest index and term seen anywhere.
    highest: (u64, u64),
    holes: Vec<Hole>,
    /// The gap of each hole.
    gap_of: Vec<Option<usize>>,
    gaps: Vec<Filling>,
    groups: Vec<Group>,
    builders: Vec<Option<Builder<D>>>,
    in_place: Vec<bool>,
    hidden: Vec<Hidden>,
    memberships: Vec<Frame>,
    /// The entries that count and are right, in order.
    sound: Vec<Run>,
    options: Options,
    origin: Option<LogBase>,
    quarantine: Option<String>,
    entries: u64,
    _lock: D::Lock,
}

/// A place where a hard state may have stood of which nothing later tells.
struct Hidden {
    broken: Broken,
    /// The gap of which this is the only place.
    gap: Option<usize>,
    ruled_out: bool,
}

impl<D: Disk> Mender<D> {
    /// Takes the directory's lock and reads every byte of the log. Damage is no error here.
    ///
    /// # Errors
    /// As [`crate::Wal::open`] where there is no log, or it is locked, newer, or of another cluster or node;
    /// [`OpenError::Damaged`] when not one opening is left, so that nobody can say whose log it is; [`OpenError::WrongChain`] when its
    /// segments are not of one log.
    pub fn open(disk: D, options: Options) -> Result<Mender<D>, OpenError> {
        Mender::open_behind(disk, options, None)
    }

    /// The same of a log that is known to have begun behind the entry `origin`, or before it: one that begins later lost its first
    /// files, and that is a hole. A log that was never trimmed began behind the default.
    ///
    /// # Errors
    /// As [`Mender::open`].
    pub fn open_behind(disk: D, options: Options, origin: Option<LogBase>) -> Result<Mender<D>, OpenError> {
        let options = settled_options(&options).map_err(|(setting, why)| OpenError::Config { setting, why })?;
        list_segments(&disk)?;
        let lock = disk.lock(LOCK_NAME).map_err(|error| match error {
            LockError::Held { pid } => OpenError::Locked { pid },
            LockError::Io(cause) => io_at("take the lock of", 0, 0)(cause),
        })?;
        let patient = Patient::new(disk.clone());
        let found = examine(&patient, &options, origin)?;
        let memberships = memberships_of(&patient, &found.segments);
        let (identity, base) = (found.identity, found.sequence.base);
        let (known_commit, hard_state) = (found.sequence.known_commit, found.sequence.hard_state);
        let laid = lay_out(found, options.segment_bytes);
        Ok(Mender {
            disk,
            patient,
            identity,
            base,
            known_commit,
            hard_state,
            highest: laid.highest,
            holes: laid.holes,
            gap_of: laid.gap_of,
            gaps: laid.gaps,
            builders: laid.groups.iter().map(|_| None).collect(),
            in_place: vec![false; laid.groups.len()],
            groups: laid.groups,
            hidden: laid.hidden,
            memberships,
            sound: laid.sound,
            options,
            origin,
            quarantine: None,
            entries: 0,
            _lock: lock,
        })
    }

    /// What is wrong, in the order in which it lies in the files. A hole keeps its number and stays listed when it is mended.
    #[must_use]
    pub fn holes(&self) -> &[Hole] {
        &self.holes
    }

    /// What to fetch next: the lowest hole that misses entries and has an end. `None` when there is none.
    #[must_use]
    pub fn wanted(&self) -> Option<Wanted> {
        self.gap_of.iter().enumerate().find_map(|(hole, gap)| {
            let filling = &self.gaps[(*gap)?];
            let last = filling.gap.last.filter(|_| !filling.filled)?;
            Some(Wanted { hole, first: filling.tail.index + 1, last })
        })
    }

    /// Whether the end of the log is damaged, and nobody knows how far it went.
    #[must_use]
    pub fn has_damaged_tail(&self) -> bool {
        self.kept_before_tail().is_some()
    }

    /// The last entry before the damaged end, which [`Mender::cut_tail`] leaves.
    #[must_use]
    pub fn kept_before_tail(&self) -> Option<u64> {
        let tail = self.gaps.iter().find(|filling| filling.gap.last.is_none() && !filling.filled);
        tail.map(|tail| tail.gap.before.index)
    }

    /// Membership entries that can be read, newest first, at most [`MOST_MEMBERSHIPS`], superseded ones too: they say where the
    /// peers are that may have what is missing.
    #[must_use]
    pub fn memberships(&self) -> &[Frame] {
        &self.memberships
    }

    /// Whether it is proven that no term or vote was lost. Final when nothing is left to mend: as long as a hole is open that may
    /// hide one, it is `false`.
    #[must_use]
    pub fn hard_state_certain(&self) -> bool {
        self.hidden.iter().all(|hidden| hidden.ruled_out)
    }

    /// Whose log it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The entry before the first one.
    #[must_use]
    pub fn base(&self) -> LogBase {
        self.base
    }

    /// The highest hard state found.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The highest commit index that the log itself proves.
    #[must_use]
    pub fn known_commit(&self) -> u64 {
        self.known_commit
    }

    /// Takes the next entries of a hole, in order; [`Mender::wanted`] says from which on. With those that make a group of damaged segments
    /// whole, the group is put in place, durably. A hole that misses no entry is mended by no frames.
    ///
    /// # Errors
    /// [`MendError::Refused`] for the first frame that does not fit; those before it are kept, unless it shows that they are of
    /// another history, which begins the hole anew. Nothing in place is changed by a refusal.
    pub fn fill(&mut self, hole: usize, frames: &[Frame]) -> Result<Filled, MendError> {
        let Some(found) = self.holes.get(hole) else { return Err(MendError::NoSuchHole { hole }) };
        let (segment, first) = (found.segment.0, found.first);
        let group = self.groups.iter().position(|group| group.holds(segment)).ok_or(MendError::NoSuchHole { hole })?;
        let gap = self.gap_of[hole];
        if gap.is_some_and(|gap| self.gaps[gap].gap.last.is_none()) {
            return Err(MendError::Tail);
        }
        if self.in_place[group] {
            return frames.first().map_or(Ok(Filled { next: first, done: true }), |frame| {
                Err(MendError::Refused { index: frame.header().index, what: "the hole is mended" })
            });
        }
        let waits = self.advance(group)?;
        let filled = match (gap, waits) {
            (Some(gap), At::Gap(waits)) if gap == waits => self.put(group, gap, frames)?,
            (Some(gap), _) if self.gaps[gap].filled && frames.is_empty() => self.progress(gap),
            (Some(_), At::Gap(waits)) => {
                let first = self.gap_of.iter().position(|gap| *gap == Some(waits)).unwrap_or(0);
                return Err(MendError::Order { hole, first });
            }
            _ => match frames.first() {
                None => Filled { next: first, done: waits == At::Done },
                Some(frame) => {
                    let what = "no entry is missing there";
                    return Err(MendError::Refused { index: frame.header().index, what });
                }
            },
        };
        if self.advance(group)? == At::Done {
            self.put_in_place(group)?;
        }
        Ok(filled)
    }

    /// Ends the log before its damaged end. The marker is durable before anything is cut; what is cut is kept aside.
    ///
    /// # Errors
    /// [`MendError::NoTail`] when the end is not damaged, or damage before it is not mended yet; the disk's.
    pub fn cut_tail(&mut self) -> Result<Marker, MendError> {
        let tail = self.gaps.iter().position(|filling| filling.gap.last.is_none() && !filling.filled);
        let (Some(gap), None) = (tail, self.wanted()) else { return Err(MendError::NoTail) };
        let places = &self.gaps[gap].gap.places;
        let Some(segment) = places.first().map(|place| place.segment) else { return Err(MendError::NoTail) };
        let Some(group) = self.groups.iter().position(|group| group.holds(segment)) else {
            return Err(MendError::NoTail);
        };
        let room = places.iter().fold(0_u64, |sum, place| sum.saturating_add(place.room));
        if self.advance(group)? != At::Gap(gap) {
            return Err(MendError::NoTail);
        }
        for hidden in self.hidden.iter_mut().filter(|hidden| hidden.gap == Some(gap)) {
            hidden.ruled_out = !hides_pair(hidden.broken.from, hidden.broken.room, &[]);
        }
        let kept = self.gaps[gap].gap.before.index;
        let marker = Marker {
            last_kept: kept,
            highest_index: self.highest.0.max(kept),
            possible_index: if room == NO_LAST {
                u64::MAX
            } else {
                (kept + room / LEAST_FRAME_RECORD).max(self.highest.0)
            },
            highest_term: self.highest.1.max(self.hard_state.term),
            hard_state_certain: self.hard_state_certain(),
        };
        let marker = if is_planted(Bug::MarkerNotWritten) { marker } else { marker.write(&self.disk)? };
        self.gaps[gap].filled = true;
        if self.advance(group)? == At::Done {
            self.put_in_place(group)?;
        }
        Ok(marker)
    }

    /// Mends what needs no frames, and lets the directory go.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(mut self) -> Result<Mended, MendError> {
        for group in 0..self.groups.len() {
            if !self.in_place[group] && self.advance(group)? == At::Done {
                self.put_in_place(group)?;
            }
        }
        let left = |hole: &&Hole| {
            let there = |group: usize| self.groups[group].holds(hole.segment.0) && self.in_place[group];
            !(0..self.groups.len()).any(there)
        };
        Ok(Mended {
            entries: self.entries,
            quarantine: self.quarantine.clone(),
            hard_state_certain: self.hard_state_certain(),
            left: self.holes.iter().filter(left).cloned().collect(),
        })
    }

    fn progress(&self, gap: usize) -> Filled {
        let filling = &self.gaps[gap];
        Filled { next: filling.tail.index + 1, done: filling.filled }
    }

    fn advance(&mut self, group: usize) -> Result<At, MendError> {
        let builder = self.builders[group].get_or_insert_with(|| Builder::new(&self.groups[group]));
        builder.advance(&self.patient, &self.disk, self.identity, &self.groups[group], &self.gaps)
    }

    fn put(&mut self, group: usize, gap: usize, frames: &[Frame]) -> Result<Filled, MendError> {
        for frame in frames {
            let index = frame.header().index;
            match self.gaps[gap].check(frame) {
                Ok(()) => {}
                Err(Unfit::Batch(what)) => return Err(MendError::Refused { index, what }),
                Err(Unfit::Branch(what)) => {
                    // What was taken so far may be of another history: all of the group is written anew.
                    self.start_over(group);
                    return Err(MendError::Refused { index, what });
                }
            }
            let Some(builder) = &mut self.builders[group] else { break };
            builder.push(frame, &self.disk, self.identity, &self.groups[group])?;
            self.gaps[gap].took(frame);
            self.entries += 1;
        }
        if self.gaps[gap].filled {
            let extents = &self.gaps[gap].extents;
            for hidden in self.hidden.iter_mut().filter(|hidden| hidden.gap == Some(gap)) {
                hidden.ruled_out = !hides_pair(hidden.broken.from, hidden.broken.room, extents);
            }
        }
        Ok(self.progress(gap))
    }

    fn start_over(&mut self, group: usize) {
        self.builders[group] = None;
        let gaps = &mut self.gaps;
        for target in &self.groups[group].targets {
            for item in &target.items {
                if let plan::Item::Gap(number, _) = item {
                    gaps[*number].start_over();
                }
            }
        }
    }

    /// All segments of a group are written and durable beside the log.
    fn put_in_place(&mut self, group: usize) -> Result<(), MendError> {
        let targets: Vec<(u64, bool)> =
            self.groups[group].targets.iter().map(|target| (target.id, target.there)).collect();
        let uncertain = |hidden: &&Hidden| !hidden.ruled_out && self.groups[group].holds(hidden.broken.segment);
        if self.hidden.iter().any(|hidden| uncertain(&hidden)) {
            let tail = self.builders[group]
                .as_ref()
                .and_then(|builder| builder.whole.last())
                .map_or(0, |last| last.tail.index);
            let highest_term = self.highest.1.max(self.hard_state.term);
            let index = self.highest.0.max(tail);
            // Once the segment is whole nobody can see any more that a vote may have stood in it.
            Marker {
                last_kept: tail,
                highest_index: index,
                possible_index: index,
                highest_term,
                hard_state_certain: false,
            }
            .write(&self.disk)?;
        }
        if is_planted(Bug::OriginalRemovedFirst) {
            for (id, _) in targets.iter().filter(|(_, there)| *there) {
                self.disk.remove(&segment_name(*id)).map_err(io_of("remove", *id))?;
            }
        } else {
            self.keep(&targets)?;
        }
        for (id, _) in targets.iter().rev() {
            put_in_place(&self.disk, *id).map_err(io_of("put in place", *id))?;
        }
        self.in_place[group] = true;
        self.builders[group] = None;
        self.look_again(group);
        Ok(())
    }

    fn keep(&mut self, targets: &[(u64, bool)]) -> Result<(), MendError> {
        let quarantine = match &self.quarantine {
            Some(quarantine) => quarantine.clone(),
            None => crate::repair::quarantine_name(&self.disk)?,
        };
        self.disk.create_dir(&quarantine).map_err(io_of("make a directory for", 0))?;
        // The names of the replacements, too.
        self.disk.sync_dir().map_err(io_of("sync the directory for", 0))?;
        for (id, _) in targets.iter().filter(|(_, there)| *there) {
            keep_aside(&self.patient, &quarantine, *id).map_err(io_of("keep a copy of", *id))?;
        }
        self.quarantine = Some(quarantine);
        Ok(())
    }
}

impl<D: Disk> std::fmt::Debug for Mender<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mender").field("holes", &self.holes).field("in_place", &self.in_place).finish_non_exhaustive()
    }
}

/// Reads a closed log, changes nothing, and tells its holes. Takes no lock: the caller sees to it that nobody writes. `origin` is as
/// for [`Mender::open_behind`].
///
/// # Errors
/// As [`Mender::open`].
pub fn holes_of<D: Disk>(disk: &D, origin: Option<LogBase>) -> Result<Vec<Hole>, OpenError> {
    let options = Options::default();
    let found = examine(&Patient::new(disk.clone()), &options, origin)?;
    Ok(lay_out(found, options.segment_bytes).holes)
}

/// A log that was read as far as it can be.
struct Found {
    identity: Identity,
    segments: Vec<Segment>,
    sequence: Sequence,
    start: LogBase,
}

/// What is wrong with it, and what is to be written anew.
struct Laid {
    holes: Vec<Hole>,
    gap_of: Vec<Option<usize>>,
    gaps: Vec<Filling>,
    groups: Vec<Group>,
    hidden: Vec<Hidden>,
    sound: Vec<Run>,
    highest: (u64, u64),
}

fn lay_out(found: Found, segment_bytes: u64) -> Laid {
    let Found { segments, sequence, start, .. } = found;
    let plan = plan(&sequence, &segments, start, segment_bytes);
    let (holes, gap_of) = holes(&plan, &sequence.spare).into_iter().unzip();
    let gaps: Vec<Filling> = plan.gaps.into_iter().map(Filling::new).collect();
    let hidden = sequence.hidden.iter().map(|broken| hidden_in(broken, &gaps)).collect();
    let mut highest = (sequence.known_commit, sequence.hard_state.term);
    for segment in &segments {
        let named = segment.opening.map_or(0, |opening| opening.base.index);
        let sealed = segment.footer.as_ref().map_or(0, |footer| footer.tail.index);
        highest = (highest.0.max(segment.highest.0).max(named).max(sealed), highest.1.max(segment.highest.1));
    }
    let sound = sequence.pieces.into_iter().filter_map(|piece| match piece {
        sequence::Piece::Run(run) => Some(run),
        sequence::Piece::Gap(_) => None,
    });
    Laid { holes, gap_of, gaps, groups: plan.groups, hidden, sound: sound.collect(), highest }
}

fn examine<D: Disk>(patient: &Patient<D>, options: &Options, origin: Option<LogBase>) -> Result<Found, OpenError> {
    let surveyed = survey(patient, &list_segments(patient)?)?;
    let identity = identify(&surveyed, options)?;
    let mut segments = read_segments(patient, &surveyed, &identity)?;
    note_refused(patient, &mut segments);
    let mut start = find_start(&segments);
    if let Some(origin) = origin.filter(|origin| origin.index < start.index)
        && segments[0].id > 1
    {
        let behind = segments[0].id;
        // Where the log had its first entry the numbers of all its segments are known; where it was let go of, one of them.
        let lost = if origin.index == 0 { behind.saturating_sub(LOST_FIRST_MAX).max(1) } else { behind - 1 };
        segments.splice(0..0, (lost..behind).map(|id| lost_segment(id, true, "the file is missing")));
        start = origin;
    }
    if let Some(origin) = origin.filter(|origin| origin.index > 0)
        && !begins_behind(&segments[0], &start)
        && begin_behind(patient, &mut segments[0], &origin)?
    {
        start = origin;
    }
    let mut sequence = Sequence::new(start);
    let again = |run: &Run, index: u64| {
        let file = patient.open(&segment_name(run.segment), None).map_err(io_at("open", run.segment, 0))?;
        entry_of(&file, run, index)
    };
    for (nth, segment) in segments.iter().enumerate() {
        sequence.segment(segment, nth == 0, &again)?;
    }
    sequence.close()?;
    Ok(Found { identity, segments, sequence, start })
}

/// Whether it is certain that a segment begins behind this entry.
fn begins_behind(segment: &Segment, start: &LogBase) -> bool {
    let head = segment.parts.iter().find_map(|(part, _)| match part {
        survey::Part::Run(run) => Some(run.head),
        _ => None,
    });
    !segment.there || segment.opening.is_some() || head.is_some_and(|head| follows(start, &head).is_ok())
}

/// Takes from a segment that lost its opening the entries up to `origin`, which were let go of: what was before them nobody knows any more.
/// `false`, and nothing is taken, when that entry is not what stands there.
fn begin_behind<D: Disk>(patient: &Patient<D>, segment: &mut Segment, origin: &LogBase) -> Result<bool, OpenError> {
    let file = patient.open(&segment_name(segment.id), None).map_err(io_at("open", segment.id, 0))?;
    for (part, _) in &mut segment.parts {
        if let survey::Part::Run(run) = part
            && run.head.index <= origin.index
            && origin.index < run.tail.index
        {
            match survey::behind(&file, run, origin)? {
                Some(rest) => *run = rest,
                None => return Ok(false),
            }
        }
    }
    segment.parts.retain(|(part, _)| !matches!(part, survey::Part::Run(run) if run.tail.index <= origin.index));
    Ok(true)
}

/// Files at the beginning of a log that are made anew one by one; of more, the first takes what others would have. Each takes its full
/// length of disk.
const LOST_FIRST_MAX: u64 = 64;

/// Reads all segments that were begun, and says which are not there.
fn read_segments<D: Disk>(
    patient: &Patient<D>,
    surveyed: &[Surveyed],
    identity: &Identity,
) -> Result<Vec<Segment>, OpenError> {
    let verdicts = judge(surveyed, identity);
    let begun = surveyed.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_begun());
    let mut last = begun.map(|(segment, _)| segment.id).max().unwrap_or(surveyed[0].id);
    let read = |id: u64, closed: bool| match surveyed.iter().find(|segment| segment.id == id) {
        None => Ok(lost_segment(id, closed, "the file is missing")),
        Some(found) => {
            let opening = found.good().filter(|opening| opening.segment == id).copied();
            let file = patient.open(&segment_name(id), None).map_err(io_at("open", id, 0))?;
            read_segment(&file, id, opening, closed, &|at| patient.refuses(&segment_name(id), at))
        }
    };
    let mut end = read(last, false)?;
    let unfinished = |found: &&Surveyed| found.id > last && found.records != RecordsIn::None;
    let next = surveyed.iter().find(|segment| segment.id == last + 1);
    let written = surveyed.iter().filter(unfinished).map(|found| found.id).max();
    let sealed = end.footer.is_some();
    if let Some(written) = written.filter(|written| !(sealed && *written == last + 1)) {
        // Records of a later segment were written, so everything up to it was closed.
        last = written;
        end = read(last, false)?;
    } else if sealed && next.is_none_or(|next| next.len < OPENING_BYTES) {
        // Its file was there, with its length, before the seal. Whether it was begun nobody can tell.
        last += 1;
        end = match next {
            None => lost_segment(last, false, "the file is missing"),
            Some(next) => {
                let mut lost = lost_segment(last, false, crate::open::SHORTER);
                (lost.there, lost.len) = (true, next.len);
                lost
            }
        };
    }
    let mut segments = Vec::new();
    for id in surveyed[0].id..last {
        segments.push(read(id, true)?);
    }
    segments.push(end);
    Ok(segments)
}

/// A file with bytes that the medium refuses is not whole, also where nothing stands in them.
fn note_refused<D: Disk>(patient: &Patient<D>, segments: &mut [Segment]) {
    for refused in patient.refused() {
        let Some(segment) = segments.iter_mut().find(|segment| segment_name(segment.id) == refused.name) else {
            continue;
        };
        let known = segment.parts.iter().any(|(part, _)| match part {
            survey::Part::Hidden(broken) | survey::Part::Spare(broken) => {
                broken.from <= refused.from && refused.to <= broken.to
            }
            _ => false,
        });
        if !known {
            let what = "the medium refuses to read it";
            let broken =
                Broken { segment: segment.id, from: refused.from, to: refused.to, room: 0, frames_only: false, what };
            segment.parts.push((survey::Part::Spare(broken), 0));
        }
    }
}

fn memberships_of<D: Disk>(patient: &Patient<D>, segments: &[Segment]) -> Vec<Frame> {
    let mut found = Vec::new();
    for segment in segments.iter().rev() {
        let Ok(file) = patient.open(&segment_name(segment.id), None) else { continue };
        for (at, len, _) in segment.memberships.iter().rev().filter(|(_, len, _)| *len <= MEMBERSHIP_BYTES) {
            let mut bytes = vec![0; *len];
            if file.read_exact_at(*at, &mut bytes).is_err() {
                continue;
            }
            if let Ok((frame, _)) = Frame::parse(Bytes::from(bytes))
                && frame.verify(None).is_ok()
            {
                found.push(frame);
            }
            if found.len() == MOST_MEMBERSHIPS {
                return found;
            }
        }
    }
    found
}

fn hidden_in(broken: &Broken, gaps: &[Filling]) -> Hidden {
    let gap = gaps.iter().position(|filling| filling.gap.places.contains(broken));
    let alone = gap.filter(|gap| {
        let large = |place: &&Broken| place.room >= LEAST_FRAME_RECORD;
        gaps[*gap].gap.places.iter().filter(large).count() == 1
    });
    let ruled_out = alone.is_none() && !hides_pair(broken.from, broken.room, &[]);
    Hidden { broken: *broken, gap: alone, ruled_out }
}

/// Whether both copies of a hard state may have stood in `room` bytes from `from` on, beside records of these lengths.
fn hides_pair(from: u64, room: u64, extents: &[u64]) -> bool {
    let taken = extents.iter().fold(0_u64, |sum, extent| sum.saturating_add(*extent));
    // Records that would not all have fitted were not all there.
    let (rest, extents) = if taken <= room { (room - taken, extents) } else { (room, [].as_slice()) };
    let mut start = from;
    let borders = |start: u64| {
        let border = start.saturating_add(COPY_BYTES).checked_next_multiple_of(TWIN_BLOCK);
        border.is_some_and(|border| border.saturating_add(COPY_BYTES) <= start.saturating_add(rest))
    };
    if borders(start) {
        return true;
    }
    for extent in extents {
        start += extent;
        if borders(start) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hard state lies across a border of blocks: where none fits beside the entries, there was none.
    #[test]
    fn hidden_hard_state_needs_a_border_of_blocks_and_what_is_left_over() {
        assert!(!hides_pair(4096, 255, &[]), "too little for both copies");
        assert!(hides_pair(4096 - 128, 256, &[]), "just on both sides of a border");
        assert!(!hides_pair(4096, 4096, &[]), "no border inside but its ends");
        assert!(hides_pair(4096, 4096 + 128, &[]), "the first copy at the start of the block");
        assert!(!hides_pair(4096, 8192, &[8192]), "the entries fill it");
        assert!(!hides_pair(4096, 8192, &[8192 - 64]), "a sync point is left");
        assert!(hides_pair(4096, 8192 + 256, &[4096 - 128, 4096 + 128]), "between the two entries");
        assert!(!hides_pair(4096, 8192 + 256, &[4096, 4096]), "no entry ends before a border");
        assert!(hides_pair(4096, 8192 + 320, &[9000]), "entries that cannot all have been there prove nothing");
        assert!(hides_pair(0, NO_LAST, &[]), "nobody knows how many bytes there were");
        assert_eq!(LEAST_FRAME_RECORD, crate::format::extent(HEADER_BYTES));
    }
}
