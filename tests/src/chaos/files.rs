//! What nodes that have ended keep in their files: equal logs, in which every append of a session stands once and in order.

use std::collections::BTreeSet;
use std::path::PathBuf;

use graven_frame::{Frame, Kind};
use graven_wal::{Options, RealDisk, Wal};

use crate::check::linearizability::History;
use crate::check::{Violation, offsets, once};

/// Entries read at a time.
const READ_BYTES: usize = 8 << 20;

/// Reads all logs and compares them, from their first entry to the last record: `records` of them. The number of terms.
///
/// # Errors
/// A log does not open, differs from another, or breaks a property by itself.
pub fn compare(directories: &[PathBuf], records: u64) -> Result<u64, Violation> {
    let mut chains = Vec::new();
    let mut terms = BTreeSet::new();
    for (node, directory) in (1..).zip(directories) {
        let fail = |property, detail: String| Violation { property, detail: format!("the files of n{node}: {detail}") };
        let opened = Wal::open(RealDisk::open(directory), Options::default());
        let (wal, _) = opened.map_err(|cause| fail("recovery", cause.to_string()))?;
        let reader = wal.reader();
        let mut book = Book::default();
        let (mut index, last) = (reader.first_index(), reader.last_index());
        while index <= last && book.next < records {
            let frames = reader.frames(index, last, READ_BYTES).map_err(|cause| fail("P2", cause.to_string()))?;
            for frame in &frames {
                if book.next >= records {
                    break;
                }
                book.take(frame).map_err(|found| fail(found.property, found.detail))?;
                terms.insert(frame.header().term);
            }
            index += frames.len() as u64;
        }
        if book.next != records {
            return Err(fail("P2", format!("{} of {records} records", book.next)));
        }
        if chains.is_empty() {
            chains = book.chains;
        } else if let Some(at) = (0..chains.len()).find(|at| book.chains.get(*at) != chains.get(*at)) {
            return Err(fail("P2", format!("entry {} differs from n1's", at + 1)));
        }
    }
    Ok(terms.len() as u64)
}

/// What is kept of a log while it is read.
#[derive(Default)]
struct Book {
    offsets: offsets::Offsets,
    once: once::Once,
    /// Which entry each is, with everything before it.
    chains: Vec<(u64, graven_frame::Chain)>,
    next: u64,
}

impl Book {
    fn take(&mut self, frame: &Frame) -> Result<(), Violation> {
        let header = frame.header();
        let damaged = |cause: &dyn std::fmt::Display| Violation {
            property: "P2",
            detail: format!("entry {} is damaged: {cause}", header.index),
        };
        frame.verify(None).map_err(|cause| damaged(&cause))?;
        self.offsets.committed(frame)?;
        self.once.committed(frame, &mut History::default())?;
        self.chains.push((header.index, header.chain));
        if header.kind == Kind::Records {
            self.next = frame.next_offset();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{frame, group};
    use graven_wal::Identity;

    fn log(dir: &std::path::Path, frames: &[Frame]) {
        let identity = Identity { cluster: 1, node: 1, incarnation: 1 };
        let options = Options { segment_bytes: 64 << 10, ..Options::default() };
        Wal::create(RealDisk::open(dir), identity, options.clone(), &frames[..1]).expect("made");
        let (mut wal, _) = Wal::open(RealDisk::open(dir), options).expect("opens");
        wal.append(&frames[1..]).expect("appended");
        wal.sync().expect("synced");
    }

    fn logs(all: &[&[Frame]]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let temp = tempfile::tempdir().expect("a directory");
        let directories: Vec<_> = (0..all.len()).map(|at| temp.path().join(at.to_string())).collect();
        for (directory, frames) in directories.iter().zip(all) {
            std::fs::create_dir(directory).expect("made");
            log(directory, frames);
        }
        (temp, directories)
    }

    #[test]
    fn logs_that_differ_miss_records_or_hold_an_append_twice_are_seen() {
        let start = frame(None, 1, &[]);
        let first = frame(Some(&start), 1, &[group(9, 1, &["a"])]);
        let second = frame(Some(&first), 3, &[group(9, 2, &["b"])]);
        let other = frame(Some(&first), 3, &[group(9, 2, &["x"])]);
        let again = frame(Some(&first), 3, &[group(9, 1, &["a"])]);
        let good = [start.clone(), first.clone(), second];
        let found = |all: &[&[Frame]]| {
            let (_temp, directories) = logs(all);
            compare(&directories, 2).map_err(|found| found.property)
        };
        assert_eq!(found(&[&good, &good]), Ok(2), "two terms");
        assert_eq!(found(&[&good, &[start.clone(), first.clone(), other]]), Err("P2"), "other bytes");
        assert_eq!(found(&[&good, &good[..2]]), Err("P2"), "a record is missing");
        assert_eq!(found(&[&[start, first, again]]), Err("P7"), "twice");
    }
}
