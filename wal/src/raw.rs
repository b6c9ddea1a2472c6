//! Stores through a shared writable mapping, which the log itself never does: for `graven bench fsync`, which shows what
//! they cost beside positional writes.
//!
//! A store into a file whose blocks are not there yet takes them from the disk at that moment, and a full disk is then a
//! SIGBUS that ends the process. So whoever measures looks for room first, and nothing that matters is written this way.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};

/// A file mapped for reading and writing.
#[derive(Debug)]
pub struct MappedFile {
    map: MmapRaw,
}

impl MappedFile {
    /// Maps the first `len` bytes of a file that is open for reading and writing.
    ///
    /// # Errors
    /// `InvalidInput` when the file is shorter; else the system's.
    pub fn map(file: &File, len: u64) -> io::Result<MappedFile> {
        if file.metadata()?.len() < len {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is shorter than its mapping would be"));
        }
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(MappedFile { map: MmapOptions::new().len(len).map_raw(file)? })
    }

    /// Copies `bytes` to `at`; durable after [`MappedFile::sync`].
    ///
    /// # Panics
    /// When they do not fit into the mapping.
    pub fn store(&mut self, at: u64, bytes: &[u8]) {
        let fits = at.checked_add(bytes.len() as u64).is_some_and(|end| end <= self.map.len() as u64);
        assert!(fits, "store of {} bytes at {at} of {} mapped", bytes.len(), self.map.len());
        // SAFETY: `at + bytes.len()` is inside the live mapping (asserted above), which is writable because `map_raw` made
        // it so. No reference into the mapping exists: this type gives none out, and `&mut self` keeps other stores away.
        // `bytes` cannot overlap it for the same reason.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.as_mut_ptr().add(at as usize), bytes.len());
        }
    }

    /// Makes the bytes `at..at + len` durable (`msync` with `MS_SYNC`, on whole pages).
    ///
    /// # Errors
    /// The system's, also when the range is not inside the mapping.
    pub fn sync(&self, at: u64, len: usize) -> io::Result<()> {
        let at = usize::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.map.flush_range(at, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn stores_reach_the_file() {
        let mut file = tempfile::tempfile().expect("a file");
        assert!(MappedFile::map(&file, 8192).is_err(), "longer than the file");
        file.set_len(8192).expect("space");
        let mut mapped = MappedFile::map(&file, 8192).expect("mapped");
        mapped.store(5000, b"here");
        mapped.sync(5000, 4).expect("synced");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        assert_eq!(&bytes[5000..5004], b"here");
    }

    #[test]
    #[should_panic(expected = "store of 2 bytes at 4095")]
    fn stores_outside_are_refused() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(4096).expect("space");
        MappedFile::map(&file, 4096).expect("mapped").store(4095, b"xy");
    }
}
