//! A disk in memory that can lose power, fail, fill up and rot.
//!
//! Every file has a live image, which reads see, and a durable one, which a crash keeps. A sync copies the sectors written
//! since the last one; a crash keeps an arbitrary subset of the sectors that were not synced, and of the creations,
//! renames and removals that were not. All choices come from seeds: the same calls give the same bytes. Nothing blocks
//! and no clock is read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::disk::{DIRECT_BYTES, Disk, DiskFile, DiskMap, Lease, LockError, WriteMode};

/// What a disk writes in one piece.
pub const SECTOR_BYTES: usize = 512;

/// A simulated directory. Clones are the same directory.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// A call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Creating a file.
    Create,
    /// Renaming a file.
    Rename,
    /// Removing a file.
    Remove,
    /// Syncing the directory.
    SyncDir,
    /// Taking space for a file.
    Allocate,
    /// Writing.
    Write,
    /// Syncing a file.
    Sync,
    /// Reading.
    Read,
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `EIO`. A failed write wrote an arbitrary part; a failed sync loses what was not durable: reads go on showing it,
    /// later syncs succeed, and a crash takes it away.
    Io,
    /// `ENOSPC`, with the same consequences.
    Full,
    /// A write stops after a part of its bytes (`WriteZero`), a read gives fewer bytes than there are and no error; any
    /// other call fails as with [`Fault::Io`].
    Short,
}

/// What one thing that was not synced is; a crash keeps it or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsynced {
    /// A creation, rename or removal, in the order they were made; the name it is about.
    Name(String),
    /// A sector of a file whose bytes differ from the durable ones: the file's name, and its number in it.
    Sector(String, u64),
    /// The file's growth.
    Length(String),
}

#[derive(Default)]
struct State {
    files: Vec<Image>,
    /// Names as reads see them, and as a crash keeps them.
    live: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    /// What happened to names since the last sync of the directory.
    pending: Vec<NameChange>,
    missing: bool,
    locked: bool,
    random: u64,
    capacity: Option<u64>,
    faults: Vec<(Op, u64, Fault)>,
    /// Calls that change something, by their number, that fail.
    change_faults: Vec<(u64, Fault)>,
    calls: BTreeMap<Op, u64>,
    changes: u64,
    power_off_after: Option<u64>,
    no_direct: bool,
}

#[derive(Default, Clone)]
struct Image {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Length and space taken; images may be shorter, the rest is zero.
    len: u64,
    durable_len: u64,
    dirty: BTreeSet<u64>,
}

#[derive(Clone)]
enum NameChange {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

impl SimDisk {
    /// An empty directory.
    #[must_use]
    pub fn new(seed: u64) -> SimDisk {
        SimDisk::with(State { random: seed, ..State::default() })
    }

    /// A directory that does not exist.
    #[must_use]
    pub fn missing() -> SimDisk {
        SimDisk::with(State { missing: true, ..State::default() })
    }

    fn with(state: State) -> SimDisk {
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the power cut leaves: everything synced, and of the rest what `seed` keeps. This directory itself goes on
    /// as if nothing had happened; faults, capacity and locks are not carried over.
    #[must_use]
    pub fn crash(&self, seed: u64) -> SimDisk {
        let state = self.state();
        let mut random = seed;
        let mut names = state.durable.clone();
        for change in &state.pending {
            if next_random(&mut random).is_multiple_of(2) {
                continue;
            }
            change.apply(&mut names);
        }
        let mut after = State { random: next_random(&mut random), ..State::default() };
        for (name, file) in names {
            let image = state.files[file].after_crash(&mut random);
            after.live.insert(name.clone(), after.files.len());
            after.durable.insert(name, after.files.len());
            after.files.push(image);
        }
        SimDisk::with(after)
    }

    /// Makes the `nth` call of this kind from now on fail, counted from 1.
    pub fn fail_nth(&self, op: Op, nth: u64, fault: Fault) {
        let mut state = self.state();
        let at = state.calls.get(&op).copied().unwrap_or(0) + nth;
        state.faults.push((op, at, fault));
    }

    /// What a crash now might lose, in a fixed order.
    #[must_use]
    pub fn unsynced(&self) -> Vec<Unsynced> {
        let state = self.state();
        let names = state.pending.iter().map(|change| match change {
            NameChange::Create(name, _) | NameChange::Rename(_, name) | NameChange::Remove(name) => {
                Unsynced::Name(name.clone())
            }
        });
        let mut found: Vec<_> = names.collect();
        for (file, name) in state.reachable() {
            let image = &state.files[file];
            found.extend(image.changed().map(|sector| Unsynced::Sector(name.clone(), sector)));
            if image.len > image.durable_len {
                found.push(Unsynced::Length(name));
            }
        }
        found
    }

    /// What a crash leaves that keeps exactly those things of [`SimDisk::unsynced`] for which `keep` says so, asked by their
    /// numbers in order. Faults and the power switch are not carried over.
    #[must_use]
    pub fn crash_keeping(&self, mut keep: impl FnMut(usize) -> bool) -> SimDisk {
        let state = self.state();
        let mut names = state.durable.clone();
        let mut number = 0..;
        let mut kept = || number.next().is_some_and(&mut keep);
        for change in &state.pending {
            if kept() {
                change.apply(&mut names);
            }
        }
        let mut images = BTreeMap::new();
        for (file, _) in state.reachable() {
            let image = &state.files[file];
            let mut bytes = image.durable.clone();
            for sector in image.changed() {
                if kept() {
                    copy_sector(&image.live, &mut bytes, sector);
                }
            }
            let len = if image.len <= image.durable_len || kept() { image.len } else { image.durable_len };
            bytes.truncate(len as usize);
            images.insert(
                file,
                Image { live: bytes.clone(), durable: bytes, len, durable_len: len, dirty: BTreeSet::new() },
            );
        }
        let mut after = State { random: state.random, ..State::default() };
        for (name, file) in names {
            let Some(image) = images.get(&file) else { continue };
            after.live.insert(name.clone(), after.files.len());
            after.durable.insert(name, after.files.len());
            after.files.push(image.clone());
        }
        SimDisk::with(after)
    }

    /// Makes the `nth` call from now on that changes something fail, counted from 1, whatever it is.
    pub fn fail_change(&self, nth: u64, fault: Fault) {
        let mut state = self.state();
        let at = state.changes + nth;
        state.change_faults.push((at, fault));
    }

    /// After this many more calls that change something, every further one fails: the power is gone. Then take
    /// [`SimDisk::crash`].
    pub fn power_off_after(&self, changes: u64) {
        let mut state = self.state();
        state.power_off_after = Some(state.changes + changes);
    }

    /// Calls so far that change something.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.state().changes
    }

    /// From now on no file can be written around the cache, as on file systems that do not know how.
    pub fn refuse_direct(&self) {
        self.state().no_direct = true;
    }

    /// Bounds the space of all files; `None` takes the bound away.
    pub fn full(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Space taken by all files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state().used()
    }

    /// Names of the files.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.state().live.keys().cloned().collect()
    }

    /// A copy of a file's bytes, written ones only; the rest of it is zero.
    #[must_use]
    pub fn bytes_of(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        state.live.get(name).map(|file| state.files[*file].live.clone())
    }

    /// Changes bytes behind everybody's back, durably: rot.
    pub fn rot(&self, name: &str, at: u64, change: impl Fn(&mut u8)) {
        let mut state = self.state();
        let Some(file) = state.live.get(name).copied() else { return };
        let image = &mut state.files[file];
        let at = at as usize;
        for bytes in [&mut image.live, &mut image.durable] {
            if bytes.len() <= at {
                bytes.resize(at + 1, 0);
            }
            change(&mut bytes[at]);
        }
    }

    /// Changes a file as a whole behind everybody's back, durably: all of its bytes, and its length. Makes it if there is
    /// none of that name.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let file = match state.live.get(name).copied() {
            Some(file) => file,
            None => {
                let file = state.files.len();
                state.files.push(Image::default());
                state.live.insert(name.to_owned(), file);
                state.durable.insert(name.to_owned(), file);
                file
            }
        };
        let image = &mut state.files[file];
        let mut bytes = std::mem::take(&mut image.live);
        bytes.resize(image.len as usize, 0);
        change(&mut bytes);
        let len = bytes.len() as u64;
        *image = Image { durable: bytes.clone(), live: bytes, len, durable_len: len, dirty: BTreeSet::new() };
    }

    /// Takes a file away, durably.
    pub fn lose(&self, name: &str) {
        let mut state = self.state();
        state.live.remove(name);
        state.durable.remove(name);
        state.pending.retain(|change| !matches!(change, NameChange::Create(created, _) if created == name));
    }

    /// A copy of the directory with the same bytes, without faults or locks, as after an orderly shutdown.
    #[must_use]
    pub fn copy(&self) -> SimDisk {
        let state = self.state();
        let mut after = State { random: state.random, ..State::default() };
        for (name, file) in &state.live {
            let mut image = state.files[*file].clone();
            image.sync();
            after.live.insert(name.clone(), after.files.len());
            after.durable.insert(name.clone(), after.files.len());
            after.files.push(image);
        }
        SimDisk::with(after)
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameChange::Create(name, file) => {
                names.insert(name.clone(), *file);
            }
            NameChange::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            NameChange::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

impl State {
    /// Files that have a name now, or may have one after a crash.
    fn reachable(&self) -> BTreeMap<usize, String> {
        let created = self.pending.iter().filter_map(|change| match change {
            NameChange::Create(name, file) => Some((*file, name.clone())),
            _ => None,
        });
        let named = self.durable.iter().chain(&self.live).map(|(name, file)| (*file, name.clone()));
        created.chain(named).collect()
    }

    fn used(&self) -> u64 {
        self.live.values().map(|file| self.files[*file].len).sum()
    }

    /// Counts a call, and says how it fails if it does.
    fn enter(&mut self, op: Op) -> Result<(), (Fault, io::Error)> {
        let call = self.calls.entry(op).or_default();
        *call += 1;
        let call = *call;
        if op != Op::Read {
            if self.power_off_after.is_some_and(|last| self.changes >= last) {
                return Err((Fault::Io, io::Error::other("the power is gone")));
            }
            self.changes += 1;
            let changes = self.changes;
            if let Some(at) = self.change_faults.iter().position(|(at, _)| *at == changes) {
                let (_, fault) = self.change_faults.swap_remove(at);
                return Err((fault, fault.error()));
            }
        }
        match self.faults.iter().position(|(what, at, _)| *what == op && *at == call) {
            Some(at) => {
                let (_, _, fault) = self.faults.swap_remove(at);
                Err((fault, fault.error()))
            }
            None => Ok(()),
        }
    }

    fn check(&mut self, op: Op) -> io::Result<()> {
        if self.missing {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.enter(op).map_err(|(_, error)| error)
    }

    fn file(&self, name: &str) -> io::Result<usize> {
        self.live.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Fault::Io => io::Error::other("simulated I/O error"),
            Fault::Full => io::ErrorKind::StorageFull.into(),
            Fault::Short => io::ErrorKind::WriteZero.into(),
        }
    }
}

impl Image {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = at as usize + bytes.len();
        if self.live.len() < end {
            // Zeroes behind the written part are not stored: preparing a segment costs nothing here.
            if bytes.iter().all(|byte| *byte == 0)
                && self.live.len() <= at as usize
                && self.durable.len() <= at as usize
            {
                self.len = self.len.max(end as u64);
                return;
            }
            self.live.resize(end, 0);
        }
        self.live[at as usize..end].copy_from_slice(bytes);
        self.len = self.len.max(end as u64);
        self.dirty.extend(at / SECTOR_BYTES as u64..=(end as u64 - 1) / SECTOR_BYTES as u64);
    }

    fn read(&self, at: u64, into: &mut [u8]) -> usize {
        let there = into.len().min(self.len.saturating_sub(at) as usize);
        let stored = self.live.get(at as usize..).unwrap_or_default();
        let copied = there.min(stored.len());
        into[..copied].copy_from_slice(&stored[..copied]);
        into[copied..there].fill(0);
        there
    }

    /// Sectors that were written since the last sync, and are not as they were.
    fn changed(&self) -> impl Iterator<Item = u64> {
        let sector = |bytes: &[u8], sector: u64| {
            let start = (sector as usize * SECTOR_BYTES).min(bytes.len());
            let mut copy = bytes[start..(start + SECTOR_BYTES).min(bytes.len())].to_vec();
            copy.resize(SECTOR_BYTES, 0);
            copy
        };
        self.dirty.iter().copied().filter(move |at| sector(&self.live, *at) != sector(&self.durable, *at))
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            copy_sector(&self.live, &mut self.durable, sector);
        }
        self.durable_len = self.len;
    }

    fn after_crash(&self, random: &mut u64) -> Image {
        let mut kept = self.durable.clone();
        // Some crashes keep nearly everything, some nearly nothing, some a mixture: each finds other bugs.
        let odds = next_random(random) % 5;
        for sector in &self.dirty {
            if next_random(random) % 4 < odds {
                copy_sector(&self.live, &mut kept, *sector);
            }
        }
        let len = if self.len > self.durable_len && next_random(random).is_multiple_of(2) {
            self.durable_len
        } else {
            self.len
        };
        kept.truncate(len as usize);
        Image { live: kept.clone(), durable: kept, len, durable_len: len, dirty: BTreeSet::new() }
    }
}

fn copy_sector(from: &[u8], to: &mut Vec<u8>, sector: u64) {
    let start = (sector as usize * SECTOR_BYTES).min(from.len());
    let end = (start + SECTOR_BYTES).min(from.len());
    if to.len() < end {
        to.resize(end, 0);
    }
    to[start..end].copy_from_slice(&from[start..end]);
}

/// SplitMix64: tiny, and the same on every machine and in every version of every crate.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        write!(f, "SimDisk({} files, {} changes)", state.live.len(), state.changes)
    }
}

/// An open simulated file.
pub struct SimFile {
    disk: SimDisk,
    file: usize,
    mode: WriteMode,
}

/// Held while a simulated directory is in use.
pub struct SimLock {
    disk: SimDisk,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().locked = false;
    }
}

/// The process id a simulated lock names.
const SIM_PID: u32 = 4711;

impl Disk for SimDisk {
    type File = SimFile;
    type Lock = SimLock;

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        if state.missing { Err(io::ErrorKind::NotFound.into()) } else { Ok(state.live.keys().cloned().collect()) }
    }

    fn create(&self, name: &str, mode: WriteMode) -> io::Result<SimFile> {
        let mut state = self.state();
        state.check(Op::Create)?;
        if state.live.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.files.len();
        state.files.push(Image::default());
        state.live.insert(name.to_owned(), file);
        state.pending.push(NameChange::Create(name.to_owned(), file));
        Ok(SimFile { disk: self.clone(), file, mode })
    }

    fn open(&self, name: &str, mode: Option<WriteMode>) -> io::Result<SimFile> {
        let state = self.state();
        if mode == Some(WriteMode::Direct) && state.no_direct {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let file = state.file(name)?;
        drop(state);
        Ok(SimFile { disk: self.clone(), file, mode: mode.unwrap_or_default() })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.check(Op::Rename)?;
        let file = state.file(from)?;
        state.live.remove(from);
        state.live.insert(to.to_owned(), file);
        state.pending.push(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.file(name)?;
        state.check(Op::Remove)?;
        state.live.remove(name);
        state.pending.push(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn create_dir(&self, _name: &str) -> io::Result<()> {
        // Names are flat here; one with a slash in it needs no directory.
        Ok(())
    }

    fn sync_subdir(&self, _name: &str) -> io::Result<()> {
        self.sync_dir()
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        match state.enter(Op::SyncDir) {
            Ok(()) => {
                state.durable = state.live.clone();
                state.pending.clear();
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    fn lock(&self, _name: &str) -> Result<SimLock, LockError> {
        let mut state = self.state();
        if state.missing {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        }
        if std::mem::replace(&mut state.locked, true) {
            return Err(LockError::Held { pid: SIM_PID });
        }
        Ok(SimLock { disk: self.clone() })
    }

    fn lock_holder(&self, _name: &str) -> io::Result<Option<u32>> {
        Ok(self.state().locked.then_some(SIM_PID))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.state();
        Ok(state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used())))
    }

    fn random(&self) -> io::Result<u64> {
        Ok(next_random(&mut self.state().random))
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.file].len)
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut state = self.disk.state();
        let into = match state.enter(Op::Read) {
            Ok(()) => into,
            Err((Fault::Short, _)) => {
                let some = next_random(&mut state.random) % (into.len() as u64).max(1);
                &mut into[..some as usize]
            }
            Err((_, error)) => return Err(error),
        };
        Ok(state.files[self.file].read(at, into))
    }

    fn write_vectored_at(&self, at: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let unit = DIRECT_BYTES as usize;
        let aligned =
            |slice: &IoSlice<'_>| slice.len().is_multiple_of(unit) && (slice.as_ptr() as usize).is_multiple_of(unit);
        if self.mode == WriteMode::Direct && !(at.is_multiple_of(DIRECT_BYTES) && slices.iter().all(aligned)) {
            // What the kernel says, and as final.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut state = self.disk.state();
        let failed = state.enter(Op::Write).err();
        let total: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        let (len, used) = (state.files[self.file].len, state.used());
        let grows = (at + total).saturating_sub(len);
        if failed.is_none() && state.capacity.is_some_and(|capacity| grows > 0 && used + grows > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // A write that fails has written some of it.
        let mut left = if failed.is_some() { next_random(&mut state.random) % (total + 1) } else { total };
        let mut next = at;
        for slice in slices.iter() {
            let some = left.min(slice.len() as u64) as usize;
            state.files[self.file].write(next, &slice[..some]);
            next += some as u64;
            left -= some as u64;
        }
        if let Some((_, error)) = failed {
            return Err(error);
        }
        if self.mode == WriteMode::Durable {
            state.files[self.file].sync();
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let power = state.power_off_after.is_some_and(|last| state.changes >= last);
        match state.enter(Op::Sync) {
            Ok(()) => {
                state.files[self.file].sync();
                Ok(())
            }
            Err((_, error)) => {
                if !power {
                    // The pages count as clean from now on, and the disk does not have them.
                    state.files[self.file].dirty.clear();
                }
                Err(error)
            }
        }
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.enter(Op::Allocate).map_err(|(_, error)| error)?;
        let grows = len.saturating_sub(state.files[self.file].len);
        if state.capacity.is_some_and(|capacity| grows > 0 && state.used() + grows > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let image = &mut state.files[self.file];
        image.len = image.len.max(len);
        Ok(())
    }

    fn map(&self, _len: u64) -> io::Result<Arc<dyn DiskMap>> {
        Ok(Arc::new(SimMap { disk: self.disk.clone(), file: self.file, lease: Arc::new(()) }))
    }
}

/// A view that copies.
struct SimMap {
    disk: SimDisk,
    file: usize,
    lease: Arc<()>,
}

impl DiskMap for SimMap {
    fn slice(&self, from: u64, to: u64, _written: u64) -> Bytes {
        let mut bytes = vec![0; (to - from) as usize];
        self.disk.state().files[self.file].read(from, &mut bytes);
        Bytes::from(bytes)
    }

    fn copy(&self, at: u64, into: &mut [u8], _written: u64) {
        self.disk.state().files[self.file].read(at, into);
    }

    fn populate(&self, _from: u64, _to: u64) {}

    fn lease(&self) -> Lease {
        let lease: Arc<dyn std::any::Any + Send + Sync> = Arc::clone(&self.lease) as _;
        Arc::downgrade(&lease)
    }

    fn is_unborrowed(&mut self) -> bool {
        // What was read is a copy: only another holder of the view could see the file's next life through it.
        true
    }
}
