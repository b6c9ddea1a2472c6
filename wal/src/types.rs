//! The small types of the log's interface.

use std::sync::atomic::{AtomicU64, Ordering};

use graven_frame::Chain;

use crate::disk::WriteMode;

/// Who a data directory belongs to. Every segment carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id, drawn once when the cluster was made.
    pub cluster: u128,
    /// The node's id in it, from 1.
    pub node: u64,
    /// Drawn when this data directory was made: a wiped or copied directory is not the same node.
    pub incarnation: u128,
}

/// What a Raft node must never forget, and never take back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HardState {
    /// The highest term seen.
    pub term: u64,
    /// Who got this node's vote in that term; node ids count from 1.
    pub vote: Option<u64>,
}

/// Settings of a log.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of a segment file; a frame that needs more gets a larger one. Rounded up to 4 KiB, at least 16 KiB.
    pub segment_bytes: u64,
    /// How bytes get to stable storage.
    pub sync: SyncMethod,
    /// Segments kept ready ahead of the active one; the last of them is the reserve for a full disk. At least 1.
    pub prepared_segments: usize,
    /// Released segments are kept for reuse as long as no more than this many are ready; the others are removed. Above
    /// `prepared_segments`, so that a log that is trimmed as fast as it grows makes no new files.
    pub recycled_segments: usize,
    /// How many bytes of removed segments readers may keep on the disk by what they borrow. The log only counts, see
    /// [`ReaderStats::held_bytes`]: past it, whoever owns the readers closes the oldest one.
    pub held_limit_bytes: u64,
    /// Open only a log of this cluster.
    pub expect_cluster: Option<u128>,
    /// Open only the log of this node.
    pub expect_node: Option<u64>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 64 << 20,
            sync: SyncMethod::default(),
            prepared_segments: 2,
            recycled_segments: 4,
            held_limit_bytes: 1 << 30,
            expect_cluster: None,
            expect_node: None,
        }
    }
}

/// How bytes get to stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SyncMethod {
    /// Write, then `fdatasync` (`F_FULLFSYNC` on macOS).
    #[default]
    Fdatasync,
    /// Segments are opened with `O_DSYNC`: a write returns when its bytes are stable.
    Dsync,
    /// Write around the page cache (`O_DIRECT`), then `fdatasync`; Linux only, and not on every file system. What was written to the
    /// active segment is served from memory until the segment is sealed: up to [`Options::segment_bytes`] of it.
    Direct,
    /// Nothing is ever synced. A crash of the machine loses acknowledged records; for throwaway tests only.
    UnsafeNone,
}

impl SyncMethod {
    /// How the active segment is written.
    pub(crate) fn mode(self) -> WriteMode {
        match self {
            SyncMethod::Fdatasync | SyncMethod::UnsafeNone => WriteMode::Buffered,
            SyncMethod::Dsync => WriteMode::Durable,
            SyncMethod::Direct => WriteMode::Direct,
        }
    }

    /// How other segments are: preparation and repair write what the cache may well keep.
    pub(crate) fn mode_of_others(self) -> WriteMode {
        if self == SyncMethod::Direct { WriteMode::Buffered } else { self.mode() }
    }
}

/// An entry as the place behind which a log goes on. All zero is the place before entry 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogBase {
    /// Index of the entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Its chain value.
    pub chain: Chain,
    /// Offset of the record after it.
    pub next_offset: u64,
    /// Its timestamp.
    pub timestamp_ms: u64,
}

impl LogBase {
    /// The place behind the entry with this header.
    #[must_use]
    pub fn after(header: &graven_frame::Header) -> LogBase {
        LogBase {
            index: header.index,
            term: header.term,
            chain: header.chain,
            next_offset: header.next_offset(),
            timestamp_ms: header.timestamp_ms,
        }
    }
}

/// A place in the log, as far as space and time are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waypoint {
    /// The last entry before it.
    pub index: u64,
    /// Offset of the record after it.
    pub next_offset: u64,
    /// Bytes of log before it, from an origin that is the same for all that were asked for at once.
    pub bytes: u64,
    /// No entry before it has a later timestamp.
    pub timestamp_ms: u64,
}

/// Entries from `first_index` on, up to the next run, have this term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TermRun {
    /// The term.
    pub term: u64,
    /// Its first entry in this log.
    pub first_index: u64,
}

/// What opening a log found. Everything in here is on stable storage when `open` returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Whose log it is.
    pub identity: Identity,
    /// The last hard state.
    pub hard_state: HardState,
    /// The entry before the first one held; all zero when the log starts at entry 1.
    pub base: LogBase,
    /// First entry held: `base.index + 1`.
    pub first_index: u64,
    /// Last entry held; `base.index` when there is none.
    pub last_index: u64,
    /// Term of the last entry.
    pub last_term: u64,
    /// Chain value of the last entry.
    pub last_chain: Chain,
    /// Offset the next record gets.
    pub next_offset: u64,
    /// Timestamp of the last entry.
    pub last_timestamp_ms: u64,
    /// The highest commit index that the log itself proves; at most `last_index`.
    pub known_commit: u64,
    /// The terms of the entries held, in order.
    pub term_runs: Vec<TermRun>,
    /// Indexes of the membership entries held, in order.
    pub memberships: Vec<u64>,
    /// What had to be done, for the log line.
    pub report: RecoveryReport,
}

/// What recovery did. All zero after a clean close.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecoveryReport {
    /// Segments that were read completely; the others were known by their footers.
    pub scanned_segments: u64,
    /// Bytes of an unfinished write that were cut from the end, after a copy was saved.
    pub torn_bytes: u64,
    /// The file in the data directory that keeps the cut bytes.
    pub saved_as: Option<String>,
    /// Bytes at the end that were left over from an earlier life of the file.
    pub stale_bytes: u64,
    /// Bytes that were written again, because nothing proved that they had been synced.
    pub rewritten_bytes: u64,
    /// Damage that cost nothing, because the same facts stand elsewhere: the second copy of a hard state, or the
    /// records a footer summarises. The medium deserves a look.
    pub healed: Vec<crate::Damage>,
}

/// How far the segments ahead are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrepareState {
    /// All segments ahead are ready.
    Ready,
    /// There is more to do: call again when there is time.
    More,
    /// The disk has no room for another segment: call again later.
    DiskFull,
}

/// What the log did so far, since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WalStats {
    /// Syncs that were asked of the disk, those of preparation excepted.
    pub syncs: u64,
    /// Frames appended.
    pub frames: u64,
    /// Bytes written for frames, hard states, sync points, openings and footers; not the zeroes of preparation.
    pub bytes_written: u64,
    /// Bytes written to prepare segments.
    pub bytes_prepared: u64,
    /// Times the log went on in the next segment.
    pub rotations: u64,
    /// Segments whose footer was written together with the last records, so that the rotation behind it took no sync.
    pub sealed_ahead: u64,
    /// Syncs of preparation.
    pub preparing_syncs: u64,
    /// Rotations into a segment that had its space and was not zero-filled yet.
    pub unprepared_rotations: u64,
    /// Segments that an append had to take the space for, because preparation was not called in time.
    pub late_allocations: u64,
    /// Segment files that were made.
    pub created: u64,
    /// Released segments that were kept for reuse.
    pub recycled: u64,
    /// Bytes of removed segments that are still on the disk, because somebody borrows from them.
    pub held_bytes: u64,
    /// Segments in use.
    pub segments: u64,
    /// Bytes of all segment files, the prepared ones included.
    pub bytes_on_disk: u64,
}

/// What a reader can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReaderStats {
    /// Segments in use.
    pub segments: u64,
    /// Written bytes in them.
    pub bytes: u64,
    /// Removed segments that are still on the disk, because somebody borrows from them.
    pub held_segments: u64,
    /// Bytes of those.
    pub held_bytes: u64,
    /// How many there may be ([`Options::held_limit_bytes`]); past that the oldest reader should be closed.
    pub held_limit_bytes: u64,
}

/// The counters behind [`WalStats`], shared so that another thread may look.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) syncs: AtomicU64,
    pub(crate) frames: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) bytes_prepared: AtomicU64,
    pub(crate) rotations: AtomicU64,
    pub(crate) sealed_ahead: AtomicU64,
    pub(crate) preparing_syncs: AtomicU64,
    pub(crate) unprepared_rotations: AtomicU64,
    pub(crate) late_allocations: AtomicU64,
    pub(crate) created: AtomicU64,
    pub(crate) recycled: AtomicU64,
    pub(crate) held_bytes: AtomicU64,
    pub(crate) segments: AtomicU64,
    pub(crate) bytes_on_disk: AtomicU64,
}

impl Counters {
    /// The numbers now.
    #[must_use]
    pub fn load(&self) -> WalStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WalStats {
            syncs: load(&self.syncs),
            frames: load(&self.frames),
            bytes_written: load(&self.bytes_written),
            bytes_prepared: load(&self.bytes_prepared),
            rotations: load(&self.rotations),
            sealed_ahead: load(&self.sealed_ahead),
            preparing_syncs: load(&self.preparing_syncs),
            unprepared_rotations: load(&self.unprepared_rotations),
            late_allocations: load(&self.late_allocations),
            created: load(&self.created),
            recycled: load(&self.recycled),
            held_bytes: load(&self.held_bytes),
            segments: load(&self.segments),
            bytes_on_disk: load(&self.bytes_on_disk),
        }
    }

    pub(crate) fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn sub(counter: &AtomicU64, number: u64) {
        counter.fetch_sub(number, Ordering::Relaxed);
    }
}
