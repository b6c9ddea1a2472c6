//! Reading sealed segments again while the log is used, to find what has changed on the medium before somebody needs it.
//!
//! Every byte that means something is read by `pread` and checked: opening, record prefixes, headers, bodies, the chain from entry to
//! entry, footer and trailer. Never through the map: a block that the medium refuses is an error here, and not a signal. What the
//! system has in its page cache is read from there, so a change on the medium is found when the cached bytes are gone.
//!
//! Nothing is locked while the disk is read, and nothing is held: the owner asks for one piece after the other, at its own pace.

use std::io;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, DiskMap};
use crate::error::{Damage, SegmentId};
use crate::format::{OPENING_BYTES, Opening, OpeningFound, TRAILER_BYTES, segment_name};
use crate::log::follows;
use crate::reader::LogReader;
use crate::scan::{Content, Probe, Scanner};
use crate::types::LogBase;

/// Opens segment files for reading; what a reader needs to know of its disk.
pub(crate) trait Files: Send + Sync {
    /// The file of a segment.
    fn open(&self, segment: u64) -> io::Result<Box<dyn DiskFile>>;
}

impl<D: Disk> Files for D {
    fn open(&self, segment: u64) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(Disk::open(self, &segment_name(segment), None)?))
    }
}

impl DiskFile for Box<dyn DiskFile> {
    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        (**self).read_at(at, into)
    }

    fn write_vectored_at(&self, at: u64, slices: &mut [io::IoSlice<'_>]) -> io::Result<()> {
        (**self).write_vectored_at(at, slices)
    }

    fn sync_data(&self) -> io::Result<()> {
        (**self).sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        (**self).allocate(len)
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn DiskMap>> {
        (**self).map(len)
    }
}

/// How far a round of scrubbing has come. The default is its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubPosition {
    /// The segment; the lowest one from this number on is read.
    segment: u64,
    /// Its salt, and the byte and the entry from which to go on; a segment that has another salt by now is read from its start.
    inside: Option<(u64, u64, LogBase)>,
}

/// What one step of scrubbing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubStep {
    /// Where to go on; `None` when all sealed segments are done. Then begin again from the default, when the time has come.
    pub next: Option<ScrubPosition>,
    /// Bytes that were read.
    pub bytes: u64,
}

/// What scrubbing found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScrubError {
    /// Bytes of a sealed segment are not what was written. Readers meet it when they come there; the segment can be mended while the
    /// log is open, see [`crate::mend::SealedMender`].
    #[error("{damage}")]
    Damaged {
        /// What, and where. The entries are those that the segment holds from there on, at most.
        damage: Box<Damage>,
        /// Where to go on: at the next segment.
        skip: ScrubPosition,
    },
    /// The file could not be opened: nothing is known of its content.
    #[error("cannot open segment {segment} to read it again")]
    Io {
        /// The segment.
        segment: SegmentId,
        /// The disk's answer.
        #[source]
        cause: io::Error,
    },
}

/// A sealed segment as the index knows it.
struct Sealed {
    id: u64,
    salt: u64,
    capacity: u64,
    opened_at: LogBase,
    /// Byte behind its footer.
    written: u64,
    /// What the next segment was opened behind.
    next: LogBase,
    /// The last entry that counts, for naming what is lost.
    last: u64,
}

impl LogReader {
    /// Reads about `max_bytes` of the sealed segments from a position on, at least one record. The segment that is written to is not read.
    ///
    /// Waits for the disk: not for a thread that has heartbeats to send. A segment that was released in the meantime is passed over.
    ///
    /// # Errors
    /// [`ScrubError::Damaged`] names segment, bytes and entries of the first thing that is wrong in a segment, and where to go on.
    pub fn scrub(&self, from: ScrubPosition, max_bytes: u64) -> Result<ScrubStep, ScrubError> {
        let Some(sealed) = self.sealed_from(from.segment) else { return Ok(ScrubStep { next: None, bytes: 0 }) };
        let start = from.inside.filter(|(salt, _, _)| from.segment == sealed.id && *salt == sealed.salt);
        let file = match self.files().open(sealed.id) {
            Ok(file) => file,
            Err(_) if !self.still_there(&sealed) => return Ok(step(Some(after(&sealed)), 0)),
            Err(cause) => return Err(ScrubError::Io { segment: SegmentId(sealed.id), cause }),
        };
        let mut scrub = Scrub {
            scanner: Scanner::new(&file, sealed.id, Some(sealed.salt), sealed.capacity),
            at: start.map_or(OPENING_BYTES, |(_, at, _)| at),
            tail: start.map_or(sealed.opened_at, |(_, _, tail)| tail),
            sealed: &sealed,
            bytes: 0,
        };
        scrub.scanner.at_once = (max_bytes.clamp(64 << 10, 1 << 20)) as usize;
        let found = if start.is_none() { scrub.opening() } else { Ok(()) };
        let found = found.and_then(|()| scrub.records(max_bytes));
        let bytes = scrub.bytes;
        match found {
            Ok(Some(inside)) => Ok(step(Some(ScrubPosition { segment: sealed.id, inside: Some(inside) }), bytes)),
            Ok(None) => Ok(step(Some(after(&sealed)), bytes)),
            // Its file was used for another segment, or mended, while it was read.
            Err(_) if !self.still_there(&sealed) => Ok(step(Some(after(&sealed)), bytes)),
            Err(damage) => Err(ScrubError::Damaged { damage: Box::new(damage), skip: after(&sealed) }),
        }
    }

    fn sealed_from(&self, from: u64) -> Option<Sealed> {
        let index = self.shared().read();
        let [sealed @ .., _] = index.segments.as_slice() else { return None };
        let nth = sealed.iter().position(|segment| segment.view.id >= from)?;
        let (segment, next) = (&sealed[nth], &index.segments[nth + 1]);
        Some(Sealed {
            id: segment.view.id,
            salt: segment.view.salt,
            capacity: segment.capacity,
            opened_at: segment.opened_at,
            written: segment.view.written(),
            next: next.opened_at,
            last: segment.range().map_or(0, |(_, last)| last),
        })
    }

    fn still_there(&self, sealed: &Sealed) -> bool {
        let index = self.shared().read();
        index.segments.iter().any(|segment| {
            (segment.view.id, segment.view.salt, segment.view.written()) == (sealed.id, sealed.salt, sealed.written)
        })
    }
}

fn step(next: Option<ScrubPosition>, bytes: u64) -> ScrubStep {
    ScrubStep { next, bytes }
}

fn after(sealed: &Sealed) -> ScrubPosition {
    ScrubPosition { segment: sealed.id + 1, inside: None }
}

struct Scrub<'a> {
    scanner: Scanner<'a, Box<dyn DiskFile>>,
    sealed: &'a Sealed,
    at: u64,
    tail: LogBase,
    bytes: u64,
}

impl Scrub<'_> {
    fn opening(&mut self) -> Result<(), Damage> {
        let sealed = self.sealed;
        let block = match self.scanner.bytes(0, OPENING_BYTES as usize) {
            Ok(block) => block,
            Err(error) => return Err(self.damage(0, OPENING_BYTES, refused(&error))),
        };
        let right = match Opening::decode(block) {
            OpeningFound::Good(opening) => {
                (opening.segment, opening.salt, opening.base) == (sealed.id, sealed.salt, sealed.opened_at)
            }
            _ => false,
        };
        self.bytes += OPENING_BYTES;
        if right { Ok(()) } else { Err(self.damage(0, OPENING_BYTES, "the opening block is damaged")) }
    }

    /// Goes on record by record; where to go on, or `None` at the end of the segment.
    fn records(&mut self, max_bytes: u64) -> Result<Option<(u64, u64, LogBase)>, Damage> {
        let mut any = false;
        while self.at < self.sealed.written {
            if any && self.bytes >= max_bytes {
                return Ok(Some((self.sealed.salt, self.at, self.tail)));
            }
            any = true;
            let at = self.at;
            let record = match self.scanner.probe(at) {
                Ok(Probe::Good(record)) => record,
                Ok(Probe::Bad(what)) => return Err(self.damage_at(at, what)),
                Ok(_) => return Err(self.damage_at(at, "no record where one was written")),
                Err(error) => return Err(self.damage_at(at, refused(&error))),
            };
            if let Some((from, to)) = record.healed {
                return Err(self.damage(from, to, "one of two copies of a hard state is damaged"));
            }
            self.bytes += record.end - at;
            self.at = record.end;
            match &record.content {
                // An entry that replaces an earlier one continues one further back; its sums were right.
                Content::Frame(header) if header.index > self.tail.index && follows(&self.tail, header).is_err() => {
                    return Err(self.damage(at, record.end, "the entry does not continue the one before it"));
                }
                Content::Frame(header) => self.tail = LogBase::after(header),
                Content::Reset(base) => self.tail = *base,
                Content::Footer(footer) if footer.tail != self.tail || footer.tail != self.sealed.next => {
                    return Err(self.damage(at, record.end, "the footer names another entry than the last one"));
                }
                Content::Footer(_) => return self.trailer(at).map(|()| None),
                _ => {}
            }
        }
        // A segment without a footer is read completely when the log is opened, and its damage was named there.
        Ok(None)
    }

    fn trailer(&mut self, footer_at: u64) -> Result<(), Damage> {
        let at = self.sealed.capacity - TRAILER_BYTES;
        self.bytes += TRAILER_BYTES;
        match self.scanner.probe(at) {
            Ok(Probe::Good(record)) if record.content == Content::Trailer(footer_at) => Ok(()),
            Ok(_) => Err(self.damage(at, self.sealed.capacity, "the trailer is damaged")),
            Err(error) => Err(self.damage(at, self.sealed.capacity, refused(&error))),
        }
    }

    /// Damage up to the next record that is whole.
    fn damage_at(&mut self, at: u64, what: &'static str) -> Damage {
        let next = self.scanner.next_good(at, self.sealed.written);
        let to = match next {
            Ok(Some(next)) => next.position(),
            _ => self.sealed.written,
        };
        let mut damage = self.damage(at, to, what);
        damage.first_index = self.tail.index + 1;
        damage.last_index = self.sealed.last;
        damage
    }

    fn damage(&self, from: u64, to: u64, what: &'static str) -> Damage {
        let (first_index, last_index) = (self.tail.index + 1, self.tail.index);
        Damage { segment: SegmentId(self.sealed.id), from, to, first_index, last_index, what }
    }
}

fn refused(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the file is shorter than it was made",
        _ => "the medium refuses to read it",
    }
}
