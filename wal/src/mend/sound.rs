//! Entries of a log that does not open, for other nodes that mend theirs: none whole, and each has what another lacks.
//!
//! What was found right when the log was looked at is read again, every sum and number checked, before it is given. A file that took
//! another's place meanwhile has its entries elsewhere: what is not found where it stood is not given.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use graven_frame::Frame;

use crate::disk::{Disk, DiskFile};
use crate::format::{OPENING_BYTES, Opening, OpeningFound, PREFIX_BYTES, segment_name};
use crate::mend::Mender;
use crate::mend::survey::{Part, Run, read_segment};
use crate::scan::{Content, Probe, Scanner};

/// Places remembered, so that whoever reads on does not make the file be read from its start: one for each of as many fetches.
const CURSORS_MAX: usize = 16;
/// Bytes read at once.
const WINDOW_BYTES: usize = 256 << 10;

/// The entries of a closed log that are what was written. A picture of one moment: take a new one when a hole was closed.
#[derive(Clone)]
pub struct SoundFrames<D: Disk> {
    disk: D,
    /// The entry before the first one.
    base: u64,
    /// The last entry; `None` when the end of the log is damaged and nobody knows it.
    end: Option<u64>,
    runs: Arc<[Run]>,
    cursors: Arc<Mutex<Vec<Cursor>>>,
}

/// The record of entry `index` begins at byte `at`, in the run that begins at `from` of `segment`.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    segment: u64,
    from: u64,
    index: u64,
    at: u64,
}

/// Why an entry is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotGiven {
    /// The log begins later.
    #[error("the log begins at entry {first}")]
    Trimmed {
        /// Its first entry.
        first: u64,
    },
    /// The log ends earlier.
    #[error("the log ends at entry {last}")]
    NotYet {
        /// Its last entry.
        last: u64,
    },
    /// It lies in a hole, or cannot be read any more.
    #[error("entry {index} is damaged here")]
    Damaged {
        /// The entry.
        index: u64,
    },
}

impl<D: Disk> SoundFrames<D> {
    /// The entries from `first` on, as many as fit into `max_bytes` and at least one, none above `last`; every sum and number of
    /// them was checked. Reads files: not for a thread that has heartbeats to send.
    ///
    /// # Errors
    /// [`NotGiven`] when the first of them cannot be given.
    pub fn frames(&self, first: u64, last: u64, max_bytes: usize) -> Result<Vec<Frame>, NotGiven> {
        if first <= self.base {
            return Err(NotGiven::Trimmed { first: self.base + 1 });
        }
        let after = self.runs.partition_point(|run| run.head.index <= first);
        let run = after.checked_sub(1).and_then(|at| self.runs.get(at)).filter(|run| first <= run.tail.index);
        let Some(run) = run else {
            return Err(match self.end {
                Some(end) if first > end => NotGiven::NotYet { last: end },
                _ => NotGiven::Damaged { index: first },
            });
        };
        match self.read(run, first, last.min(run.tail.index), max_bytes) {
            Ok(frames) if !frames.is_empty() => Ok(frames),
            _ => Err(NotGiven::Damaged { index: first }),
        }
    }

    fn read(&self, run: &Run, first: u64, last: u64, max_bytes: usize) -> io::Result<Vec<Frame>> {
        let file = self.disk.open(&segment_name(run.segment), None)?;
        let mut scanner = Scanner::new(&file, run.segment, Some(run.salt), file.len()?);
        scanner.at_once = WINDOW_BYTES;
        let (mut at, mut index) = self.cursor(run, first).unwrap_or((run.from, run.head.index));
        let (mut frames, mut bytes) = (Vec::<Frame>::new(), 0);
        while at < run.to && index <= last {
            let Probe::Good(record) = scanner.probe(at)? else { break };
            if let Content::Frame(header) = &record.content {
                if header.index != index {
                    break;
                }
                if index >= first {
                    let len = header.frame_len();
                    if !frames.is_empty() && bytes + len > max_bytes {
                        break;
                    }
                    let content = Bytes::copy_from_slice(scanner.bytes(at + PREFIX_BYTES as u64, len)?);
                    let before = frames.last().map(|frame| frame.header().chain);
                    let Ok((frame, _)) = Frame::parse(content) else { break };
                    if frame.header() != header || frame.verify(before).is_err() {
                        break;
                    }
                    bytes += len;
                    frames.push(frame);
                }
                index += 1;
            }
            at = record.end;
        }
        self.remember(Cursor { segment: run.segment, from: run.from, index, at });
        Ok(frames)
    }

    /// The place nearest before entry `first` of those that are remembered.
    fn cursor(&self, run: &Run, first: u64) -> Option<(u64, u64)> {
        let cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let of_run = |it: &&Cursor| (it.segment, it.from) == (run.segment, run.from) && it.index <= first;
        cursors.iter().filter(of_run).max_by_key(|it| it.index).map(|it| (it.at, it.index))
    }

    fn remember(&self, cursor: Cursor) {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        if cursors.len() == CURSORS_MAX {
            cursors.remove(0);
        }
        cursors.push(cursor);
    }
}

impl<D: Disk> std::fmt::Debug for SoundFrames<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SoundFrames").field("base", &self.base).field("end", &self.end).finish_non_exhaustive()
    }
}

impl<D: Disk> Mender<D> {
    /// The entries of this log that are what was written, to be given to others meanwhile, from any thread.
    #[must_use]
    pub fn sound_frames(&self) -> SoundFrames<D> {
        let read = self.sound.last().map_or(self.base.index, |run| run.tail.index);
        let named = self.gaps.iter().filter_map(|filling| filling.gap.last).max().unwrap_or(0);
        SoundFrames {
            disk: self.disk.clone(),
            base: self.base.index,
            end: (!self.has_damaged_tail()).then_some(read.max(named)),
            runs: self.sound.as_slice().into(),
            cursors: Arc::default(),
        }
    }

    /// The files of a group are others now: what stands where in them.
    pub(super) fn look_again(&mut self, group: usize) {
        let targets: Vec<(u64, bool)> =
            self.groups[group].targets.iter().map(|target| (target.id, target.closed)).collect();
        self.sound.retain(|run| !targets.iter().any(|(id, _)| *id == run.segment));
        for (id, closed) in targets {
            // What cannot be read is not given, and found again when the log is opened.
            self.sound.extend(runs_in(&self.disk, id, closed).unwrap_or_default());
        }
        self.sound.sort_by_key(|run| run.head.index);
    }
}

/// The entries of a segment that was just written anew: all of them count.
fn runs_in<D: Disk>(disk: &D, id: u64, closed: bool) -> Option<Vec<Run>> {
    let file = disk.open(&segment_name(id), None).ok()?;
    let mut block = vec![0; OPENING_BYTES as usize];
    file.read_exact_at(0, &mut block).ok()?;
    let OpeningFound::Good(opening) = Opening::decode(&block) else { return None };
    let segment = read_segment(&file, id, Some(opening), closed, &|_| false).ok()?;
    let runs = segment.parts.into_iter().filter_map(|(part, _)| match part {
        Part::Run(run) => Some(run),
        _ => None,
    });
    Some(runs.collect())
}
