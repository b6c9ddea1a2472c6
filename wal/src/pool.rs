//! Segments made ready ahead of the active one, so that an append neither changes file metadata nor reads the disk.
//!
//! A prepared segment has its final name and its space from the start; what it lacks is an opening block. Preparing is
//! idle work in paced steps: zero-filling writes every byte a second time and shares the device with syncs. The last
//! segment in the pool is the reserve of a full disk: only hard states and control entries may take it.

use std::collections::VecDeque;
use std::io;

use crate::disk::{Disk, DiskFile, WriteMode};
use crate::error::SegmentId;
use crate::format::segment_name;
use crate::planted::{Bug, is_planted};
use crate::types::{Counters, PrepareState};

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
    /// Bytes that were filled with zeroes.
    zeroed: u64,
    ready: bool,
}

/// The segments ahead, in the order in which they will be used.
pub(crate) struct Pool<D: Disk> {
    disk: D,
    mode: WriteMode,
    segment_bytes: u64,
    target: usize,
    next_id: u64,
    waiting: VecDeque<Prepared<D::File>>,
    no_space: bool,
}

/// Zeroes are written from here; one write is at most this long, so that a sync does not wait for long behind it.
static ZEROES: [u8; 256 << 10] = [0; 256 << 10];

impl<D: Disk> Pool<D> {
    pub(crate) fn new(disk: D, mode: WriteMode, segment_bytes: u64, target: usize, next_id: u64) -> Pool<D> {
        Pool { disk, mode, segment_bytes, target: target.max(1), next_id, waiting: VecDeque::new(), no_space: false }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether the last attempt to take space failed.
    pub(crate) fn no_space(&self) -> bool {
        self.no_space
    }

    /// Takes over a file that an earlier life prepared; it must be the next in line.
    pub(crate) fn adopt(&mut self, id: u64, file: D::File, len: u64, counters: &Counters) {
        debug_assert_eq!(id, self.next_id);
        self.next_id = id + 1;
        Counters::add(&counters.bytes_on_disk, len);
        // How far its zero-filling came is unknown, and an opening block may have been begun: fill it again.
        self.waiting.push_back(Prepared { id, file, capacity: len, zeroed: 0, ready: false });
    }

    /// Sees to it that the next segments have these capacities, and that `spare` more follow. Takes space only where
    /// something is missing.
    pub(crate) fn ensure(&mut self, capacities: &[u64], spare: usize, counters: &Counters) -> Result<(), Failure> {
        while self.waiting.len() < capacities.len() + spare {
            self.create(counters)?;
        }
        for (at, capacity) in capacities.iter().enumerate() {
            let prepared = &mut self.waiting[at];
            let wanted = (*capacity).max(self.segment_bytes);
            if prepared.capacity < wanted {
                if let Err(cause) = prepared.file.allocate(wanted) {
                    return Err(self.failed(Failure::at("allocate", self.waiting[at].id, wanted)(cause)));
                }
                Counters::add(&counters.bytes_on_disk, wanted - prepared.capacity);
                (prepared.capacity, prepared.ready) = (wanted, false);
            }
        }
        Ok(())
    }

    /// The next segment; [`Pool::ensure`] must have been asked for it.
    pub(crate) fn take(&mut self, counters: &Counters) -> Option<Prepared<D::File>> {
        let prepared = self.waiting.pop_front()?;
        if !prepared.ready {
            Counters::add(&counters.unprepared_rotations, 1);
        }
        Some(prepared)
    }

    /// One step of idle work: writes at most `budget` zeroes, or makes one file.
    pub(crate) fn prepare(&mut self, budget: u64, counters: &Counters) -> Result<PrepareState, Failure> {
        if let Some(prepared) = self.waiting.iter_mut().find(|prepared| !prepared.ready) {
            match fill(prepared, budget, counters) {
                Ok(()) => {}
                // A file system that promised the space did not keep it.
                Err(failure) if failure.is_full() => {
                    self.no_space = true;
                    return Ok(PrepareState::DiskFull);
                }
                Err(failure) => return Err(failure),
            }
        } else if self.waiting.len() < self.target {
            match self.create(counters) {
                Ok(()) => {}
                Err(failure) if failure.is_full() => return Ok(PrepareState::DiskFull),
                Err(failure) => return Err(failure),
            }
        }
        let done = self.waiting.len() >= self.target && self.waiting.iter().all(|prepared| prepared.ready);
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
        let made = created.and_then(|file| file.allocate(self.segment_bytes).map(|()| file));
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
        self.waiting.push_back(Prepared { id, file, capacity: self.segment_bytes, zeroed: 0, ready: false });
        Ok(())
    }

    fn failed(&mut self, failure: Failure) -> Failure {
        self.no_space |= failure.is_full();
        failure
    }
}

fn fill<F: DiskFile>(prepared: &mut Prepared<F>, budget: u64, counters: &Counters) -> Result<(), Failure> {
    let stop = prepared.capacity.min(prepared.zeroed.saturating_add(budget.max(1)));
    while prepared.zeroed < stop {
        let some = (stop - prepared.zeroed).min(ZEROES.len() as u64);
        let zeroes = &ZEROES[..some as usize];
        prepared.file.write_at(prepared.zeroed, zeroes).map_err(Failure::at(
            "zero-fill",
            prepared.id,
            prepared.zeroed,
        ))?;
        prepared.zeroed += some;
        Counters::add(&counters.bytes_prepared, some);
    }
    if prepared.zeroed == prepared.capacity {
        prepared.file.sync_data().map_err(Failure::at("sync", prepared.id, 0))?;
        Counters::add(&counters.syncs, 1);
        prepared.ready = true;
    }
    Ok(())
}
