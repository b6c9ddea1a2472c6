//! Segments made ready ahead of the active one, so that an append neither changes file metadata nor reads the disk.
//!
//! A prepared segment has its final name and its space from the start; what it lacks is an opening block of its own.
//! Preparing is idle work in paced steps: first the space of all segments is taken, so that an append that outruns the
//! rest still finds one, then they are zero-filled, which writes every byte a second time and shares the device with
//! syncs. A recycled segment was written in its earlier life and needs none of that; it is only made resident, because
//! writing a part of a page that is not would read the disk. The last segment in the pool is the reserve of a full disk:
//! only hard states and control entries may take it.

use std::collections::VecDeque;
use std::io;

use crate::disk::{DIRECT_BYTES, Disk, DiskFile, WriteMode};
use crate::error::SegmentId;
use crate::format::segment_name;
use crate::planted::{Bug, is_planted};
use crate::types::{Counters, Options, PrepareState, SyncMethod};

/// An I/O error and where it happened.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) operation: &'static str,
    pub(crate) segment: SegmentId,
    pub(crate) at: u64,
    pub(crate) cause: io::Error,
}

impl Failure {
    pub(crate) fn is_full(&self) -> bool {
        matches!(self.cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// Adds the place to an error.
    pub(crate) fn at(operation: &'static str, segment: u64, at: u64) -> impl FnOnce(io::Error) -> Failure {
        move |cause| Failure { operation, segment: SegmentId(segment), at, cause }
    }
}

/// A segment file without an opening block.
pub(crate) struct Prepared<F> {
    pub(crate) id: u64,
    pub(crate) file: F,
    pub(crate) capacity: u64,
    /// Whether records of an earlier life are in it.
    pub(crate) recycled: bool,
    /// Bytes that were written at least once since the file got its space.
    pub(crate) filled: u64,
    /// Bytes of a recycled file that were made resident.
    warmed: u64,
}

impl<F> Prepared<F> {
    fn fresh(id: u64, file: F, capacity: u64) -> Prepared<F> {
        Prepared { id, file, capacity, recycled: false, filled: 0, warmed: 0 }
    }

    /// Whether appending to it changes no metadata of the file.
    fn is_filled(&self) -> bool {
        self.filled == self.capacity
    }

    fn is_ready(&self) -> bool {
        self.is_filled() && (!self.recycled || self.warmed == self.capacity)
    }
}

/// A segment file without an opening of its own, as found when the log is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FoundPrepared {
    pub(crate) id: u64,
    pub(crate) len: u64,
    /// It has the opening of a segment that was released.
    pub(crate) recycled: bool,
    /// Byte behind what a crash left of the first write into it; 0 when there was none.
    pub(crate) unfinished_to: u64,
}

/// The segments ahead, in the order in which they will be used.
pub(crate) struct Pool<D: Disk> {
    disk: D,
    mode: WriteMode,
    segment_bytes: u64,
    target: usize,
    /// Segments kept at most, recycled ones included.
    most: usize,
    /// Whether recycled segments are made resident: who writes around the page cache needs nothing in it.
    warms: bool,
    next_id: u64,
    waiting: VecDeque<Prepared<D::File>>,
    no_space: bool,
}

/// One write or read of preparation is at most this long, so that a sync does not wait for long behind it.
const STEP_BYTES: usize = 256 << 10;
static ZEROES: Zeroes = Zeroes([0; STEP_BYTES]);

/// On a boundary from which they can be written around the page cache.
#[repr(align(4096))]
struct Zeroes([u8; STEP_BYTES]);

impl<D: Disk> Pool<D> {
    pub(crate) fn new(disk: D, mode: WriteMode, options: &Options, next_id: u64) -> Pool<D> {
        let target = options.prepared_segments.max(1);
        let most = options.recycled_segments.max(target);
        let waiting = VecDeque::new();
        let (segment_bytes, warms) = (options.segment_bytes, options.sync != SyncMethod::Direct);
        Pool { disk, mode, segment_bytes, target, most, warms, next_id, waiting, no_space: false }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether the next step of preparation is to take space.
    pub(crate) fn wants_space(&self) -> bool {
        self.waiting.len() < self.target
    }

    /// Whether the last attempt to take space failed.
    pub(crate) fn no_space(&self) -> bool {
        self.no_space
    }

    /// Takes over a file that was prepared, or recycled, before the log was opened; it must be the next in line.
    pub(crate) fn adopt(&mut self, found: &FoundPrepared, file: D::File, counters: &Counters) {
        debug_assert_eq!(found.id, self.next_id);
        self.next_id = found.id + 1;
        Counters::add(&counters.bytes_on_disk, found.len);
        self.waiting.push_back(if found.recycled {
            self.recycled(found.id, file, found.len)
        } else {
            // How far its zero-filling came is unknown, and an opening block may have been begun, perhaps over the one of an
            // earlier life: fill it again, and until that is done take what is in it for older records.
            Prepared { recycled: true, ..Prepared::fresh(found.id, file, found.len) }
        });
    }

    fn recycled(&self, id: u64, file: D::File, capacity: u64) -> Prepared<D::File> {
        let warmed = if self.warms { 0 } else { capacity };
        Prepared { id, file, capacity, recycled: true, filled: capacity, warmed }
    }

    /// Takes in the file of a released segment that nobody reads any more, if there is use for it; `false` when not.
    ///
    /// Nothing is written to it here: its old opening, which names a segment below all others, tells recovery that it is
    /// a prepared one, and the new opening with a new salt is synced before the first record.
    pub(crate) fn recycle(&mut self, id: u64, capacity: u64, counters: &Counters) -> Result<bool, Failure> {
        // On a full disk the space is worth more to others than a file that will be needed at some later time.
        let most = if self.no_space { self.target } else { self.most };
        if capacity != self.segment_bytes || self.waiting.len() >= most {
            return Ok(false);
        }
        let (name, next) = (segment_name(self.next_id), self.next_id);
        // Power fails before the directory is durable: the file has its old name and every byte of its old life, and
        // will be released again, or it has the new one.
        self.disk.rename(&segment_name(id), &name).map_err(Failure::at("recycle", id, 0))?;
        if !is_planted(Bug::RemovalUnsynced) {
            self.disk.sync_dir().map_err(Failure::at("sync the directory for", id, 0))?;
        }
        let file = self.disk.open(&name, Some(self.mode)).map_err(Failure::at("open", next, 0))?;
        self.no_space = false;
        self.next_id += 1;
        Counters::add(&counters.recycled, 1);
        self.waiting.push_back(self.recycled(next, file, capacity));
        Ok(true)
    }

    /// Sees to it that the next segments have these capacities, and that `spare` more follow. Takes space only where
    /// something is missing.
    pub(crate) fn ensure(&mut self, capacities: &[u64], spare: usize, counters: &Counters) -> Result<(), Failure> {
        while self.waiting.len() < capacities.len() + spare {
            Counters::add(&counters.late_allocations, 1);
            self.create(counters)?;
        }
        for (at, capacity) in capacities.iter().enumerate() {
            let prepared = &mut self.waiting[at];
            let wanted = (*capacity).max(self.segment_bytes);
            if prepared.capacity < wanted {
                // Power fails behind this: an opening that says more bytes than the file has would look like damage.
                let made = prepared.file.allocate(wanted).and_then(|()| prepared.file.sync_data());
                if let Err(cause) = made {
                    return Err(self.failed(Failure::at("allocate", self.waiting[at].id, wanted)(cause)));
                }
                Counters::add(&counters.bytes_on_disk, wanted - prepared.capacity);
                prepared.capacity = wanted;
            }
        }
        Ok(())
    }

    /// The next segment; [`Pool::ensure`] must have been asked for it.
    pub(crate) fn take(&mut self, counters: &Counters) -> Option<Prepared<D::File>> {
        let prepared = self.waiting.pop_front()?;
        if !prepared.is_filled() {
            Counters::add(&counters.unprepared_rotations, 1);
        }
        Some(prepared)
    }

    /// One step of idle work: makes one file, or writes at most `budget` zeroes and syncs them.
    pub(crate) fn prepare(&mut self, budget: u64, counters: &Counters) -> Result<PrepareState, Failure> {
        let step = if self.waiting.len() < self.target {
            self.create(counters)
        } else {
            match self.waiting.iter_mut().find(|prepared| !prepared.is_ready()) {
                Some(prepared) if prepared.is_filled() => warm(prepared, budget),
                Some(prepared) => fill(prepared, budget, counters),
                None => Ok(()),
            }
        };
        match step {
            Ok(()) => {}
            // There is no room, or a file system that promised it did not keep it.
            Err(failure) if failure.is_full() => {
                self.no_space = true;
                return Ok(PrepareState::DiskFull);
            }
            Err(failure) => return Err(failure),
        }
        let done = self.waiting.len() >= self.target && self.waiting.iter().all(Prepared::is_ready);
        // Released segments were kept for reuse: nothing is wanted of the disk any more.
        self.no_space &= !done;
        Ok(if done { PrepareState::Ready } else { PrepareState::More })
    }

    fn create(&mut self, counters: &Counters) -> Result<(), Failure> {
        let id = self.next_id;
        let name = segment_name(id);
        // A file left by an attempt that failed half-way, whose removal failed as well, holds nothing.
        let created = match self.disk.create(&name, self.mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.disk.open(&name, Some(self.mode)),
            created => created,
        };
        // Its length is durable before the segment before it is sealed: from then on a file that is missing or shorter is
        // one that was lost, see `check_successor`.
        let made = created.and_then(|file| {
            file.allocate(self.segment_bytes)?;
            file.sync_data()?;
            Ok(file)
        });
        let file = match made {
            Ok(file) => file,
            Err(cause) => {
                // Give back what was taken. If that fails too, the leftover is found and used at the next open.
                let _ = self.disk.remove(&name);
                return Err(self.failed(Failure::at("create", id, 0)(cause)));
            }
        };
        // Power fails before this: the file may be gone, and with it nothing, because no record was let into it yet.
        if !is_planted(Bug::DirectorySyncSkipped) {
            self.disk.sync_dir().map_err(Failure::at("sync the directory for", id, 0))?;
        }
        self.no_space = false;
        self.next_id += 1;
        Counters::add(&counters.bytes_on_disk, self.segment_bytes);
        Counters::add(&counters.created, 1);
        self.waiting.push_back(Prepared::fresh(id, file, self.segment_bytes));
        Ok(())
    }

    fn failed(&mut self, failure: Failure) -> Failure {
        self.no_space |= failure.is_full();
        failure
    }
}

fn fill<F: DiskFile>(prepared: &mut Prepared<F>, budget: u64, counters: &Counters) -> Result<(), Failure> {
    let Prepared { id, file, capacity, filled, .. } = prepared;
    *filled = zero_fill(file, *id, (*filled, *capacity), budget, counters)?;
    Ok(())
}

/// Writes at most `budget` zeroes from the start of a range, and syncs them; returns where it ended.
pub(crate) fn zero_fill<F: DiskFile>(
    file: &F,
    id: u64,
    (from, to): (u64, u64),
    budget: u64,
    counters: &Counters,
) -> Result<u64, Failure> {
    // Whole blocks, as far as there are any: a direct write takes no less.
    let stop = to.min(to.min(from.saturating_add(budget.max(1))).next_multiple_of(DIRECT_BYTES));
    let mut at = from;
    while at < stop {
        let some = (stop - at).min(STEP_BYTES as u64);
        file.write_at(at, &ZEROES.0[..some as usize]).map_err(Failure::at("zero-fill", id, at))?;
        at += some;
        Counters::add(&counters.bytes_prepared, some);
    }
    // Step by step, so that no single sync has a whole segment to write.
    file.sync_data().map_err(Failure::at("sync", id, at))?;
    Counters::add(&counters.preparing_syncs, 1);
    Ok(at)
}

fn warm<F: DiskFile>(prepared: &mut Prepared<F>, budget: u64) -> Result<(), Failure> {
    let stop = prepared.capacity.min(prepared.warmed.saturating_add(budget.max(1)));
    let mut buffer = vec![0; STEP_BYTES.min((stop - prepared.warmed) as usize)];
    while prepared.warmed < stop {
        let some = buffer.len().min((stop - prepared.warmed) as usize);
        let read = prepared.file.read_exact_at(prepared.warmed, &mut buffer[..some]);
        read.map_err(Failure::at("read", prepared.id, prepared.warmed))?;
        prepared.warmed += some as u64;
    }
    Ok(())
}
