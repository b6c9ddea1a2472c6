//! Opening a log: look at everything, decide by the tables of [`crate::recovery`], then make what is kept durable.
//!
//! Nothing is changed before everything was read and judged: whatever is wrong is still there to be examined.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::adopt::{self, JOURNAL, UNFINISHED_JOURNAL};
use crate::create::UNFINISHED;
use crate::cut::{self, CUT_AREA};
use crate::disk::{Disk, DiskFile, LockError, WriteMode};
use crate::error::{Damage, OpenError, SegmentId};
use crate::format::{FORMAT_VERSION, OPENING_BYTES, Opening, OpeningFound, TRAILER_BYTES, segment_name, segment_of};
use crate::index::{LogIndex, SegmentIndex, View};
use crate::log::{Active, Wal, settled_options};
use crate::map::Mirror;
use crate::mend::asked::ASKED;
use crate::mend::{MARKER, MENDED_PREFIX, UNFINISHED_MARKER};
use crate::planted::{Bug, is_planted};
use crate::pool::{FoundPrepared, Pool};
use crate::reader::Shared;
use crate::recovery::{FoundSegment, OpeningIs, Position, RecordsIn, SegmentVerdict, segment_verdict};
use crate::replay::{Ended, Replay, Why};
use crate::scan::Scanner;
use crate::types::{Counters, Identity, Options, Recovered, RecoveryReport, SyncMethod};

/// Held while the log is open; its content is the holder's process id.
pub(crate) const LOCK_NAME: &str = "LOCK";

/// What is wrong with a segment whose file lost its end.
pub(crate) const SHORTER: &str = "the file is shorter than it was made";

/// A segment file as found, before its records are read.
pub(crate) struct Surveyed {
    pub(crate) id: u64,
    pub(crate) len: u64,
    pub(crate) opening: OpeningFound,
    /// Records of the segment that the file's name says; looked for only where its opening is not.
    pub(crate) records: RecordsIn,
    /// Byte behind what the first write into it left, where there are such records.
    pub(crate) used_to: u64,
}

impl Surveyed {
    pub(crate) fn good(&self) -> Option<&Opening> {
        match &self.opening {
            OpeningFound::Good(opening) => Some(opening),
            _ => None,
        }
    }

    /// Whether the opening is valid, and of the segment that the file's name says.
    pub(crate) fn is_own(&self) -> bool {
        self.good().is_some_and(|opening| opening.segment == self.id)
    }
}

pub(crate) fn io_at(operation: &'static str, segment: u64, at: u64) -> impl FnOnce(io::Error) -> OpenError {
    move |cause| OpenError::Io { operation, segment: SegmentId(segment), at, cause }
}

pub(crate) fn open<D: Disk>(disk: D, options: Options) -> Result<(Wal<D>, Recovered), OpenError> {
    let options = settled_options(&options).map_err(|(setting, why)| OpenError::Config { setting, why })?;
    list_segments(&disk)?;
    let lock = disk.lock(LOCK_NAME).map_err(|error| match error {
        LockError::Held { pid } => OpenError::Locked { pid },
        LockError::Io(cause) => io_at("take the lock of", 0, 0)(cause),
    })?;
    list_segments(&disk)?;
    open_locked(disk, options, lock)
}

/// Opens a log whose lock is held, also one whose identity is being changed; `options` are settled.
pub(crate) fn open_locked<D: Disk>(disk: D, options: Options, lock: D::Lock) -> Result<(Wal<D>, Recovered), OpenError> {
    let ids = list_segments_under_change(&disk)?;
    check_direct(&disk, &segment_name(ids[0]), &options)?;
    let surveyed = survey(&disk, &ids)?;
    let identity = identify(&surveyed, &options)?;
    let verdicts = judge(&surveyed, &identity);
    let begun: Vec<&Surveyed> =
        surveyed.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_begun()).map(|(segment, _)| segment).collect();
    let mut replay = Replay::new();
    for (at, (segment, verdict)) in surveyed.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_begun()).enumerate()
    {
        let opening = match (verdict, segment.good()) {
            (SegmentVerdict::Use, Some(opening)) => opening,
            _ => return Err(refuse(segment, *verdict, &replay, begun.get(at + 1).copied())),
        };
        // Behind a gap nothing says how this one should end; the gap itself is the next thing found.
        let next =
            begun.get(at + 1).filter(|next| next.id == segment.id + 1 && next.is_own()).and_then(|next| next.good());
        replay.segment(&disk, opening, segment.len, next)?;
    }
    let Some(ended) = replay.ended.take() else { return Err(OpenError::Empty) };
    check_successor(&ended, &replay, &surveyed)?;
    replay.check_anchored()?;
    let prepared = surveyed.iter().zip(&verdicts).filter(|(_, verdict)| !verdict.is_begun());
    let prepared = prepared.map(|(segment, _)| FoundPrepared {
        id: segment.id,
        len: segment.len,
        recycled: segment.good().is_some_and(|opening| opening.capacity == segment.len),
        unfinished_to: segment.used_to,
    });
    let prepared: Vec<_> = prepared.collect();
    settle(disk, options, lock, identity, replay, &ended, &prepared)
}

/// Refuses the setting where the disk cannot do it, before anything is changed.
fn check_direct<D: Disk>(disk: &D, name: &str, options: &Options) -> Result<(), OpenError> {
    match options.sync {
        SyncMethod::Direct if !knows_direct(disk, name).map_err(io_at("open", 0, 0))? => {
            Err(OpenError::Config { setting: "sync", why: NO_DIRECT })
        }
        _ => Ok(()),
    }
}

/// Whether this file can be written around the page cache.
pub(crate) fn knows_direct<D: Disk>(disk: &D, name: &str) -> io::Result<bool> {
    match disk.open(name, Some(WriteMode::Direct)) {
        Ok(_) => Ok(true),
        Err(cause) if cause.kind() == io::ErrorKind::Unsupported => Ok(false),
        Err(cause) => Err(cause),
    }
}

/// Why `direct` is refused.
pub(crate) const NO_DIRECT: &str =
    "direct needs a file system that writes around its cache (O_DIRECT), and this one does not; use fdatasync";

/// The numbers of all segment files, ascending, of a log that is whole.
pub(crate) fn list_segments<D: Disk>(disk: &D) -> Result<Vec<u64>, OpenError> {
    if adopt::pending(disk)?.is_some() {
        return Err(OpenError::ChangingIdentity);
    }
    list_segments_under_change(disk)
}

/// The numbers of all segment files, ascending, of a log whose identity may be changing.
pub(crate) fn list_segments_under_change<D: Disk>(disk: &D) -> Result<Vec<u64>, OpenError> {
    let names = match disk.list() {
        Ok(names) => names,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Err(OpenError::Missing),
        Err(cause) => return Err(io_at("list", 0, 0)(cause)),
    };
    let mut ids: Vec<u64> = names.iter().filter_map(|name| segment_of(name)).collect();
    ids.sort_unstable();
    if ids.is_empty() {
        let ours = |name: &String| {
            [LOCK_NAME, CUT_AREA, UNFINISHED, MARKER, UNFINISHED_MARKER, ASKED, JOURNAL, UNFINISHED_JOURNAL]
                .contains(&name.as_str())
                || name.starts_with(MENDED_PREFIX)
        };
        return Err(match names.into_iter().find(|name| !ours(name)) {
            Some(found) => OpenError::NotALog { found },
            None => OpenError::Empty,
        });
    }
    Ok(ids)
}

/// Reads the first block of every segment.
pub(crate) fn survey<D: Disk>(disk: &D, ids: &[u64]) -> Result<Vec<Surveyed>, OpenError> {
    let mut surveyed = Vec::with_capacity(ids.len());
    for id in ids {
        let file = disk.open(&segment_name(*id), None).map_err(io_at("open", *id, 0))?;
        let len = file.len().map_err(io_at("open", *id, 0))?;
        let mut block = vec![0; OPENING_BYTES.min(len) as usize];
        file.read_exact_at(0, &mut block).map_err(io_at("read", *id, 0))?;
        let opening = Opening::decode(&block);
        let lost = match &opening {
            OpeningFound::Zero | OpeningFound::Bad => true,
            OpeningFound::Good(opening) => opening.segment != *id,
            OpeningFound::Newer(_) => false,
        };
        let (records, used_to) = match lost {
            true => Scanner::new(&file, *id, None, len).records().map_err(io_at("read", *id, OPENING_BYTES))?,
            false => (RecordsIn::None, 0),
        };
        surveyed.push(Surveyed { id: *id, len, opening, records, used_to });
    }
    Ok(surveyed)
}

/// Whose log this is: what the first readable opening says, if that is whom the settings expect.
pub(crate) fn identify(surveyed: &[Surveyed], options: &Options) -> Result<Identity, OpenError> {
    for segment in surveyed {
        if let OpeningFound::Newer(seen) = segment.opening {
            return Err(OpenError::NewerVersion { segment: SegmentId(segment.id), seen, known: FORMAT_VERSION });
        }
    }
    let Some(first) = surveyed.iter().find_map(Surveyed::good) else {
        let first = &surveyed[0];
        return Err(OpenError::Damaged(Damage {
            segment: SegmentId(first.id),
            from: 0,
            to: first.len.min(OPENING_BYTES),
            first_index: 1,
            last_index: 1,
            what: "no segment has a valid opening",
        }));
    };
    let found = first.identity;
    let (cluster, node) = (options.expect_cluster.unwrap_or(found.cluster), options.expect_node.unwrap_or(found.node));
    let foreign = |segment: u64, found: Identity| OpenError::WrongCluster {
        segment: SegmentId(segment),
        found_cluster: found.cluster,
        found_node: found.node,
        cluster,
        node,
    };
    for opening in surveyed.iter().filter_map(Surveyed::good) {
        let other = opening.identity;
        if (other.cluster, other.node) != (cluster, node) || other.incarnation != found.incarnation {
            return Err(foreign(opening.segment, other));
        }
    }
    Ok(found)
}

/// The verdict about each segment file.
pub(crate) fn judge(surveyed: &[Surveyed], identity: &Identity) -> Vec<SegmentVerdict> {
    let last_begun = surveyed.iter().rposition(Surveyed::is_own);
    let lowest = surveyed.iter().find(|segment| segment.is_own()).map_or(0, |segment| segment.id);
    let judge_one = |(at, segment): (usize, &Surveyed)| {
        let opening = match &segment.opening {
            OpeningFound::Zero => OpeningIs::Absent,
            OpeningFound::Bad => OpeningIs::Broken,
            OpeningFound::Newer(_) => OpeningIs::Newer,
            OpeningFound::Good(opening) if opening.identity != *identity => OpeningIs::Foreign,
            // Of a segment below all that are held: it was released. Any other one may be missed somewhere.
            OpeningFound::Good(opening) if opening.segment != segment.id && opening.segment < lowest => {
                OpeningIs::Recycled
            }
            OpeningFound::Good(opening) if opening.segment != segment.id => OpeningIs::Misplaced,
            OpeningFound::Good(_) => OpeningIs::Ours,
        };
        let in_line = at == 0 || surveyed[at - 1].id + 1 == segment.id;
        // The lowest segment of a log got its name or its place only after its opening was durable.
        let begun_later = at == 0 || last_begun.is_some_and(|last| last > at);
        let position = if in_line { Position::InLine } else { Position::BehindGap };
        segment_verdict(FoundSegment { opening, position, begun_later, records: segment.records })
    };
    surveyed.iter().enumerate().map(judge_one).collect()
}

/// Behind a sealed segment there is a file: it was made, with its length, before the seal was begun. Whether a segment was
/// begun in it cannot be told when it is gone or has lost its start.
///
/// And the first record of a segment was written only when the one before it was sealed and durable: an unfinished write into
/// any other one than the next of a sealed segment says that something is gone which was durable.
pub(crate) fn check_successor(ended: &Ended, replay: &Replay, surveyed: &[Surveyed]) -> Result<(), OpenError> {
    let (id, first_index) = (SegmentId(ended.view.id + 1), replay.tail.index + 1);
    let unfinished = |found: &&Surveyed| found.id > ended.view.id && found.records != RecordsIn::None;
    if let Some(found) = surveyed.iter().find(unfinished)
        && !(ended.sealed && found.id == id.0)
    {
        let (segment, from, to) =
            if ended.sealed { (id, 0, OPENING_BYTES) } else { (SegmentId(ended.view.id), ended.at, ended.capacity) };
        let what = "records of a later segment were written, and this one was not closed";
        return Err(OpenError::Damaged(Damage { segment, from, to, first_index, last_index: first_index, what }));
    }
    if !ended.sealed {
        return Ok(());
    }
    match surveyed.iter().find(|segment| segment.id == id.0) {
        None => Err(OpenError::MissingSegment { segment: id, first_index }),
        Some(found) if found.len < OPENING_BYTES => Err(OpenError::Damaged(Damage {
            segment: id,
            from: found.len,
            to: OPENING_BYTES,
            first_index,
            last_index: first_index,
            what: SHORTER,
        })),
        Some(_) => Ok(()),
    }
}

/// The error for a segment that cannot be used.
pub(crate) fn refuse(
    segment: &Surveyed,
    verdict: SegmentVerdict,
    replay: &Replay,
    next: Option<&Surveyed>,
) -> OpenError {
    let first_index = replay.tail.index + 1;
    match verdict {
        SegmentVerdict::Missing => {
            OpenError::MissingSegment { segment: SegmentId(replay.last_segment + 1), first_index }
        }
        _ => OpenError::Damaged(Damage {
            segment: SegmentId(segment.id),
            from: 0,
            to: OPENING_BYTES,
            first_index,
            last_index: next.and_then(Surveyed::good).map_or(first_index, |next| next.base.index),
            what: if segment.good().is_some() {
                "the file of another segment stands here"
            } else {
                "the opening block is damaged"
            },
        }),
    }
}

/// Makes what is kept durable, and puts the writer together.
fn settle<D: Disk>(
    disk: D,
    options: Options,
    lock: D::Lock,
    identity: Identity,
    mut replay: Replay,
    ended: &Ended,
    prepared: &[FoundPrepared],
) -> Result<(Wal<D>, Recovered), OpenError> {
    let mode = options.sync.mode_of_others();
    let id = ended.view.id;
    let file = disk.open(&segment_name(id), Some(mode)).map_err(io_at("open", id, 0))?;
    let counters = Arc::new(Counters::default());
    if let Why::Torn { used_to } = ended.why {
        cut::save(&disk, &file, id, (ended.at, used_to), &mut replay.report)?;
        wipe(&file, id, ended.at, used_to)?;
    }
    for (at, bytes) in &ended.repairs {
        file.write_at(*at, bytes).map_err(io_at("write", id, *at))?;
    }
    // A full disk is no reason not to open: it is one when there is something to cut, and no room to keep it.
    match cut::reserve(&disk) {
        Err(cause) if !matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            return Err(io_at("take space for cut bytes of", id, 0)(cause));
        }
        _ => {}
    }
    // After a failed sync the page cache may hold bytes as clean that the disk never got: only writing them again makes
    // the sync below mean something.
    replay.report.rewritten_bytes = rewrite(&file, id, ended.proven, ended.at)?;
    if ended.sealed {
        replay.report.rewritten_bytes += rewrite(&file, id, ended.capacity - TRAILER_BYTES, ended.capacity)?;
    }
    if options.sync != SyncMethod::UnsafeNone {
        file.sync_data().map_err(io_at("sync", id, 0))?;
        disk.sync_dir().map_err(io_at("sync the directory for", id, 0))?;
        Counters::add(&counters.syncs, 1);
    }
    let mut pool = Pool::new(disk.clone(), mode, &options, id + 1);
    take_prepared(&disk, &mut pool, id, prepared, mode, &mut replay.report, &counters)?;
    let (file, view, mirror) = reopen(&disk, file, ended, &options, &mut replay)?;
    let Replay { index, tail, hard_state, known_commit, report, .. } = replay;
    Counters::add(&counters.segments, index.segments.len() as u64);
    Counters::add(&counters.bytes_on_disk, index.segments.iter().map(|segment| segment.capacity).sum());
    let recovered = Recovered {
        identity,
        hard_state,
        base: index.base,
        first_index: index.base.index + 1,
        last_index: tail.index,
        last_term: tail.term,
        last_chain: tail.chain,
        next_offset: tail.next_offset,
        last_timestamp_ms: tail.timestamp_ms,
        known_commit: known_commit.min(tail.index),
        term_runs: index.term_runs(),
        memberships: index.segments.iter().flat_map(|segment| segment.memberships.iter().copied()).collect(),
        report,
    };
    debug_assert_eq!(index.check(), Ok(()));
    let active = Active {
        view,
        file,
        capacity: ended.capacity,
        written: ended.at,
        synced: ended.at,
        vouched: ended.proven,
        sealed: ended.sealed,
        // Whether the rest was ever written is unknown, unless older records say so.
        filled: if ended.recycled { ended.capacity } else { ended.at },
        recycled: ended.recycled,
        mirror,
    };
    let shared = Arc::new(Shared::new(index, options.held_limit_bytes, Box::new(disk.clone())));
    let wal = Wal {
        disk,
        options,
        identity,
        shared,
        active,
        pool,
        tail,
        hard_state,
        noted_commit: recovered.known_commit,
        durable_index: tail.index,
        counters,
        closed: None,
        staging: Vec::new(),
        retired: None,
        release_to: 0,
        mending: std::sync::Weak::new(),
        _lock: lock,
    };
    Ok((wal, recovered))
}

/// The file that takes the next records, and what readers see of it. What is written around the page cache is read from memory,
/// so what is there of the segment is brought into memory first.
#[allow(clippy::type_complexity, reason = "said once")]
fn reopen<D: Disk>(
    disk: &D,
    file: D::File,
    ended: &Ended,
    options: &Options,
    replay: &mut Replay,
) -> Result<(D::File, Arc<View>, Option<Mirror>), OpenError> {
    let id = ended.view.id;
    if options.sync != SyncMethod::Direct || ended.sealed {
        return Ok((file, Arc::clone(&ended.view), None));
    }
    let mut mirror = Mirror::new(ended.capacity).map_err(io_at("take memory for", id, 0))?;
    let mut buffer = vec![0; STEP_BYTES.min(ended.at as usize)];
    let mut next = 0;
    while next < ended.at {
        let some = buffer.len().min((ended.at - next) as usize);
        file.read_exact_at(next, &mut buffer[..some]).map_err(io_at("read", id, next))?;
        mirror.put(next, std::iter::once(&buffer[..some]));
        next += some as u64;
    }
    let written = AtomicU64::new(ended.at);
    let view = Arc::new(View { id, salt: ended.view.salt, map: mirror.view(), written });
    if let Some(segment) = replay.index.segments.last_mut() {
        segment.view = Arc::clone(&view);
    }
    let file = disk.open(&segment_name(id), Some(WriteMode::Direct)).map_err(io_at("open", id, 0))?;
    Ok((file, view, Some(mirror)))
}

/// Zeroes cut bytes: records of this life among them must not be met again behind new ones.
fn wipe<F: DiskFile>(file: &F, id: u64, at: u64, used_to: u64) -> Result<(), OpenError> {
    let zeroes = vec![0; STEP_BYTES.min((used_to - at) as usize)];
    let mut next = if is_planted(Bug::CutLeftStanding) { used_to } else { at };
    while next < used_to {
        let some = zeroes.len().min((used_to - next) as usize);
        file.write_at(next, &zeroes[..some]).map_err(io_at("write", id, next))?;
        next += some as u64;
    }
    Ok(())
}

fn rewrite<F: DiskFile>(file: &F, id: u64, from: u64, to: u64) -> Result<u64, OpenError> {
    let mut buffer = vec![0; STEP_BYTES.min(to.saturating_sub(from) as usize)];
    let mut next = if is_planted(Bug::PageCacheTrusted) { to } else { from };
    while next < to {
        let some = buffer.len().min((to - next) as usize);
        file.read_exact_at(next, &mut buffer[..some]).map_err(io_at("read", id, next))?;
        file.write_at(next, &buffer[..some]).map_err(io_at("write", id, next))?;
        next += some as u64;
    }
    Ok(to.saturating_sub(from))
}

/// Bytes moved at once when a segment is repaired.
const STEP_BYTES: usize = 1 << 20;

/// Takes over segments that an earlier life prepared. One that is not next in line would leave a hole when it is used.
fn take_prepared<D: Disk>(
    disk: &D,
    pool: &mut Pool<D>,
    active: u64,
    prepared: &[FoundPrepared],
    mode: WriteMode,
    report: &mut RecoveryReport,
    counters: &Counters,
) -> Result<(), OpenError> {
    let mut next = active + 1;
    let mut removed = false;
    for found in prepared {
        let id = found.id;
        if id == next {
            let file = disk.open(&segment_name(id), Some(mode)).map_err(io_at("open", id, 0))?;
            if found.unfinished_to > 0 {
                // The first write into it was never acknowledged. Its bytes go aside like those behind any other end.
                cut::save(disk, &file, id, (0, found.unfinished_to), report)?;
                wipe(&file, id, 0, found.unfinished_to)?;
                file.sync_data().map_err(io_at("sync", id, 0))?;
            }
            pool.adopt(found, file, counters);
            next += 1;
        } else {
            disk.remove(&segment_name(id)).map_err(io_at("remove", id, 0))?;
            removed = true;
        }
    }
    if removed { disk.sync_dir().map_err(io_at("sync the directory for", active, 0)) } else { Ok(()) }
}

/// A view of a segment whose bytes below `written` are settled.
pub(crate) fn view<F: DiskFile>(file: &F, opening: &Opening, written: u64) -> Result<Arc<View>, OpenError> {
    let map = file.map(opening.capacity).map_err(io_at("map", opening.segment, 0))?;
    Ok(Arc::new(View { id: opening.segment, salt: opening.salt, map, written: AtomicU64::new(written) }))
}

/// An index that knows one segment's place and nothing of its entries.
pub(crate) fn empty_segment(view: &Arc<View>, opening: &Opening) -> SegmentIndex {
    SegmentIndex::new(Arc::clone(view), opening.capacity, opening.base)
}

/// An index of no segments.
pub(crate) fn empty_index() -> LogIndex {
    LogIndex { base: crate::LogBase::default(), last: 0, segments: Vec::new() }
}
