//! What nodes that have ended keep in their files: equal logs, in which every append of a session stands once and in order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use graven_frame::{Chain, Frame, Kind};
use graven_wal::{Options, RealDisk, Wal};

use crate::check::Violation;

/// Entries read at a time.
const READ_BYTES: usize = 8 << 20;

/// Reads all logs and compares what they share, up to the last record: there are `records` of them, trimmed ones included. The terms.
///
/// # Errors
/// A log does not open, differs from another, or breaks a property by itself.
pub fn compare(directories: &[PathBuf], records: u64) -> Result<BTreeSet<u64>, Violation> {
    let mut chains: BTreeMap<u64, (u64, Chain)> = BTreeMap::new();
    let mut terms = BTreeSet::new();
    for (node, directory) in (1..).zip(directories) {
        let fail = |property, detail| Violation { property, detail: format!("the files of n{node}: {detail}") };
        let book = read(directory, records).map_err(|found| fail(found.property, found.detail))?;
        for (index, term, chain) in book.entries {
            terms.insert(term);
            let (first, known) = chains.entry(index).or_insert((node, chain));
            if *known != chain {
                return Err(fail("P2", format!("entry {index} differs from that of n{first}")));
            }
        }
    }
    Ok(terms)
}

/// Reads one log.
fn read(directory: &Path, records: u64) -> Result<Book, Violation> {
    let fail = |property, detail| Violation { property, detail };
    let opened = Wal::open(RealDisk::open(directory), Options::default());
    let (wal, _) = opened.map_err(|cause| fail("recovery", cause.to_string()))?;
    let reader = wal.reader();
    let mut book = Book::default();
    let (mut index, last) = (reader.first_index(), reader.last_index());
    while index <= last && book.next.unwrap_or(0) < records {
        let frames = reader.frames(index, last, READ_BYTES).map_err(|cause| fail("P2", cause.to_string()))?;
        frames.iter().try_for_each(|frame| book.take(frame))?;
        index += frames.len() as u64;
    }
    match book.next {
        Some(next) if next >= records => Ok(book),
        next => Err(fail("P2", format!("it ends at {next:?}, the log at {records}"))),
    }
}

/// What is kept of a log while it is read.
#[derive(Default)]
struct Book {
    /// Index, term, and which entry it is with everything before it.
    entries: Vec<(u64, u64, Chain)>,
    /// The last number of each session. A log that was trimmed begins in the middle of some.
    numbers: BTreeMap<u64, u64>,
    next: Option<u64>,
}

impl Book {
    fn take(&mut self, frame: &Frame) -> Result<(), Violation> {
        let header = frame.header();
        let wrong = |property, detail| Err(Violation { property, detail: format!("entry {}: {detail}", header.index) });
        if let Err(cause) = frame.verify(None).and_then(|()| frame.check_groups()) {
            return wrong("P2", cause.to_string());
        }
        if self.next.is_some_and(|next| next != header.base_offset) {
            return wrong("P3", format!("it begins at offset {}, not {:?}", header.base_offset, self.next));
        }
        if header.kind == Kind::Records {
            let whole = self.entries.first().map_or(header.index, |(index, ..)| *index) == 1;
            for group in frame.groups().flatten() {
                let header = group.header();
                let (Some(session), Some(number)) = (header.session, header.sequence) else { continue };
                let last = self.numbers.insert(session, number);
                if last.map_or(whole && number != 1, |last| number != last + 1) {
                    return wrong("P7", format!("append {number} of session {session} comes after {last:?}"));
                }
            }
        }
        self.entries.push((header.index, header.term, header.chain));
        self.next = Some(frame.next_offset());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{frame, group};
    use graven_wal::Identity;

    fn log(dir: &Path, frames: &[Frame]) {
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
        assert_eq!(found(&[&good, &good]), Ok([1, 3].into()), "two terms");
        assert_eq!(found(&[&good, &[start.clone(), first.clone(), other]]), Err("P2"), "other bytes");
        assert_eq!(found(&[&good, &good[..2]]), Err("P2"), "a record is missing");
        assert_eq!(found(&[&[start, first, again]]), Err("P7"), "twice");
    }
}
