//! Reading from a medium that refuses some of its blocks.
//!
//! Recovery takes a read error for what it is and refuses to open. Whoever mends wants to know what can still be read: here a
//! read that the medium refuses is repeated block by block, and what stays refused reads as [`REFUSED`], which is no record and
//! no prepared space. The ranges are remembered, because a file that has them is not whole, whatever stands in it.

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::{Disk, DiskFile, DiskMap, LockError, WriteMode};

/// What a refused byte reads as.
pub(crate) const REFUSED: u8 = 0xA5;
/// The page cache reads no less than this, so nothing smaller can be told apart.
const BLOCK_BYTES: u64 = 4096;
/// `EIO`, which is what a medium says of a block that it cannot read.
const EIO: i32 = 5;

/// A directory whose files can be read where the medium refuses.
#[derive(Clone)]
pub(crate) struct Patient<D> {
    disk: D,
    refused: Arc<Mutex<Vec<Refused>>>,
}

/// A range of a file that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) name: String,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl<D: Disk> Patient<D> {
    pub(crate) fn new(disk: D) -> Patient<D> {
        Patient { disk, refused: Arc::default() }
    }

    /// What could not be read so far.
    pub(crate) fn refused(&self) -> Vec<Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One of its files.
pub(crate) struct PatientFile<F> {
    file: F,
    name: String,
    refused: Arc<Mutex<Vec<Refused>>>,
}

impl<F: DiskFile> PatientFile<F> {
    fn note(&self, from: u64, to: u64) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) =
            refused.iter_mut().find(|there| there.name == self.name && there.to >= from && there.from <= to)
        {
            (last.from, last.to) = (last.from.min(from), last.to.max(to));
        } else {
            refused.push(Refused { name: self.name.clone(), from, to });
        }
    }

    fn by_blocks(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let there = self.file.len()?.saturating_sub(at).min(into.len() as u64) as usize;
        let mut done = 0;
        while done < there {
            let from = at + done as u64;
            let some = ((BLOCK_BYTES - from % BLOCK_BYTES) as usize).min(there - done);
            match self.file.read_at(from, &mut into[done..done + some]) {
                Ok(read) if read == some => {}
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if is_refusal(&error) => {
                    into[done..done + some].fill(REFUSED);
                    self.note(from, from + some as u64);
                }
                Err(error) => return Err(error),
            }
            done += some;
        }
        Ok(there)
    }
}

/// Whether the medium said this, and not the file system about a name or a right.
fn is_refusal(error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(number) => number == EIO,
        None => error.kind() == io::ErrorKind::Other,
    }
}

impl<F: DiskFile> DiskFile for PatientFile<F> {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        match self.file.read_at(at, into) {
            Err(error) if is_refusal(&error) => self.by_blocks(at, into),
            read => read,
        }
    }

    fn write_vectored_at(&self, at: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.file.write_vectored_at(at, slices)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn DiskMap>> {
        self.file.map(len)
    }
}

impl<D: Disk> Disk for Patient<D> {
    type File = PatientFile<D::File>;
    type Lock = D::Lock;

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&self, name: &str, mode: WriteMode) -> io::Result<Self::File> {
        let file = self.disk.create(name, mode)?;
        Ok(PatientFile { file, name: name.to_owned(), refused: Arc::clone(&self.refused) })
    }

    fn open(&self, name: &str, mode: Option<WriteMode>) -> io::Result<Self::File> {
        let file = self.disk.open(name, mode)?;
        Ok(PatientFile { file, name: name.to_owned(), refused: Arc::clone(&self.refused) })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn create_dir(&self, name: &str) -> io::Result<()> {
        self.disk.create_dir(name)
    }

    fn sync_subdir(&self, name: &str) -> io::Result<()> {
        self.disk.sync_subdir(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }

    fn lock(&self, name: &str) -> Result<Self::Lock, LockError> {
        self.disk.lock(name)
    }

    fn lock_holder(&self, name: &str) -> io::Result<Option<u32>> {
        self.disk.lock_holder(name)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    fn random(&self) -> io::Result<u64> {
        self.disk.random()
    }
}
