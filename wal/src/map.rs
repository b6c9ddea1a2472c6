//! The read-only memory map of a segment, and the memory that stands in its place while it is written around the page cache:
//! the only place with `unsafe`.
//!
//! Segments are written by positional writes and read here. What makes that sound:
//!
//! - slices exist only over bytes below the segment's written mark, and the log is physically append-only: those bytes
//!   never change again as long as anybody borrows them;
//! - a data directory is locked, and nothing in this crate truncates a segment file, so mapped bytes do not go away;
//! - the map lives as long as the last `Bytes` that borrows it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};

use crate::disk::{DiskMap, Lease};

/// A mapped segment file.
pub(crate) struct FileMap {
    raw: Arc<MmapRaw>,
    /// All bytes that were below the written mark when somebody last asked for more: most reads are slices of it.
    known: RwLock<Bytes>,
}

/// The content of a segment that is written around the page cache ([`crate::WriteMode::Direct`]): readers see it here until
/// the segment is sealed and its file can be mapped, and writes take their whole blocks from here.
///
/// One piece of address space as large as the segment; pages are taken when they are first written, and stay for the next
/// segment if nobody borrows from them then. So memory is bounded by a segment, plus what is written of sealed ones from which
/// somebody still borrows. What is behind the written mark may be left over from the segment before: it is zeroed where it is
/// written.
pub(crate) struct Mirror {
    raw: Arc<MmapRaw>,
}

impl Mirror {
    /// Zeroes, as long as a segment of this capacity.
    pub(crate) fn new(capacity: u64) -> io::Result<Mirror> {
        let len = usize::try_from(capacity).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let raw = MmapRaw::from(MmapOptions::new().len(len).map_anon()?);
        // A direct write holds on to each page it writes from: with large ones there are few. It is only a wish.
        #[cfg(target_os = "linux")]
        let _ = raw.advise(memmap2::Advice::HugePage);
        Ok(Mirror { raw: Arc::new(raw) })
    }

    /// Whether nobody can read from it any more, so that another segment may have it.
    pub(crate) fn is_unborrowed(&mut self) -> bool {
        // `get_mut` for the same reason as in `FileMap::is_unborrowed`.
        Arc::get_mut(&mut self.raw).is_some()
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.raw.len() as u64
    }

    /// Zeroes the bytes `from..to`, which are not below the written mark.
    pub(crate) fn zero(&mut self, from: u64, to: u64) {
        let (from, to) = (from as usize, to as usize);
        assert!(from <= to && to <= self.raw.len(), "bytes {from}..{to} of a segment of {}", self.raw.len());
        // SAFETY: as in `Mirror::put`: inside the live, writable mapping (asserted above), above the written mark, and not
        // borrowed.
        unsafe { std::ptr::write_bytes(self.raw.as_mut_ptr().add(from), 0, to - from) };
    }

    /// A view for readers of the bytes below the written mark.
    pub(crate) fn view(&self) -> Arc<dyn DiskMap> {
        Arc::new(FileMap { raw: Arc::clone(&self.raw), known: RwLock::new(Bytes::new()) })
    }

    /// Puts the slices one behind the other at `at`, which is not below the written mark: nobody can read these bytes yet.
    pub(crate) fn put<'a>(&mut self, at: u64, slices: impl Iterator<Item = &'a [u8]>) {
        let mut next = at as usize;
        for slice in slices {
            assert!(slice.len() <= self.raw.len().saturating_sub(next), "{} bytes at {next} of a segment", slice.len());
            // SAFETY: `next + slice.len()` is inside the live mapping (asserted above), which is private to this process and
            // writable. Views give out slices below the written mark only, and these bytes are not below it (the caller's
            // promise, which the log keeps by writing at the mark), so no reference to them exists but through
            // `Mirror::block`, and `&mut self` excludes that. `slice` cannot overlap: it is not from above the mark either.
            unsafe {
                std::ptr::copy_nonoverlapping(slice.as_ptr(), self.raw.as_mut_ptr().add(next), slice.len());
            }
            next += slice.len();
        }
    }

    /// The bytes `from..to`, for writing them to the file.
    pub(crate) fn block(&self, from: u64, to: u64) -> &[u8] {
        let (from, to) = (from as usize, to as usize);
        assert!(from <= to && to <= self.raw.len(), "bytes {from}..{to} of a segment of {}", self.raw.len());
        // SAFETY: inside the live mapping (asserted above). Bytes below the written mark never change; those above are changed
        // by `Mirror::put` only, which needs `&mut self`, while this borrow holds `&self`.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr().add(from), to - from) }
    }
}

/// The first `len` bytes of a map.
struct Written {
    raw: Arc<MmapRaw>,
    len: usize,
}

impl AsRef<[u8]> for Written {
    fn as_ref(&self) -> &[u8] {
        debug_assert!(self.len <= self.raw.len());
        // SAFETY: the pointer is the start of a live mapping of at least `len` bytes (checked in `FileMap::slice`), which
        // `self.raw` keeps mapped and which nobody truncates (the directory is locked). The bytes are below the written
        // mark, so no write changes them while this slice lives.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr(), self.len) }
    }
}

impl FileMap {
    pub(crate) fn new(file: &File, len: u64) -> io::Result<FileMap> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let raw = MmapOptions::new().len(len).map_raw_read_only(file)?;
        Ok(FileMap { raw: Arc::new(raw), known: RwLock::new(Bytes::new()) })
    }

    fn upto(&self, to: u64, written: u64) -> Bytes {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        if to <= known.len() as u64 {
            return known;
        }
        assert!(
            to <= written && written <= self.raw.len() as u64,
            "read up to byte {to}, written {written}, mapped {}",
            self.raw.len()
        );
        let more = Bytes::from_owner(Written { raw: Arc::clone(&self.raw), len: written as usize });
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = more.clone();
        more
    }
}

impl DiskMap for FileMap {
    fn slice(&self, from: u64, to: u64, written: u64) -> Bytes {
        self.upto(to, written).slice(from as usize..to as usize)
    }

    fn copy(&self, at: u64, into: &mut [u8], written: u64) {
        let end = at + into.len() as u64;
        assert!(
            end <= written && written <= self.raw.len() as u64,
            "read up to byte {end}, written {written}, mapped {}",
            self.raw.len()
        );
        // SAFETY: `at..end` lies inside the live mapping and below the written mark (checked above), so no write changes
        // these bytes now; `into` is borrowed mutably and cannot overlap a read-only mapping.
        unsafe { std::ptr::copy_nonoverlapping(self.raw.as_ptr().add(at as usize), into.as_mut_ptr(), into.len()) };
    }

    fn populate(&self, from: u64, to: u64) {
        let to = to.min(self.raw.len() as u64);
        if from >= to {
            return;
        }
        let start = from - from % PAGE;
        #[cfg(target_os = "linux")]
        if self.raw.advise_range(memmap2::Advice::PopulateRead, start as usize, (to - start) as usize).is_ok() {
            return;
        }
        for at in (start..to).step_by(PAGE as usize) {
            // SAFETY: `at < to <= raw.len()`, so the byte is inside the live mapping. A volatile read of one byte that a
            // positional write may be changing in the page cache: its value is not used.
            let _ = unsafe { std::ptr::read_volatile(self.raw.as_ptr().add(at as usize)) };
        }
    }

    fn lease(&self) -> Lease {
        let raw: Arc<dyn std::any::Any + Send + Sync> = Arc::clone(&self.raw) as _;
        Arc::downgrade(&raw)
    }

    fn is_unborrowed(&mut self) -> bool {
        *self.known.get_mut().unwrap_or_else(PoisonError::into_inner) = Bytes::new();
        // `get_mut` and not a count: it orders everything that was read through the last borrowed bytes before what the
        // file's next life writes there. A lease is weak and would make it fail, so it is asked only where none is kept.
        Arc::get_mut(&mut self.raw).is_some()
    }
}

/// The smallest page of the systems we run on; a smaller step only reads a page twice.
const PAGE: u64 = 4096;
