//! The read-only memory map of a segment: the only place with `unsafe`.
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
