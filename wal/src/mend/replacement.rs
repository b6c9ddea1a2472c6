//! A segment written anew, beside the one whose place it takes.
//!
//! It holds the entries that count, in order, and says what the segment said: the same salt, the same entry before it, a footer if
//! others follow. It gets its name only when all of it is durable, so every record may say that everything before it is.

use std::io;

use graven_frame::{Header, Kind};

use crate::disk::{Disk, DiskFile, WriteMode};
use crate::format::{
    BOUNDARY, Footer, OPENING_BYTES, Opening, POINT_SPACING, PREFIX_BYTES, Point, Prefix, RecordKind, SMALL_RECORD,
    TRAILER_BYTES, TWIN_BLOCK, encode_hard_state, encode_reset, encode_trailer, extent, segment_name, twin_of,
};
use crate::log::head_crc;
use crate::planted::{Bug, is_planted};
use crate::types::{HardState, LogBase, TermRun};

/// Replacements have this name, with the segment's number, until they are whole.
pub(crate) const MENDED_PREFIX: &str = "mended-";

/// The name of the replacement of a segment.
pub(crate) fn replacement_name(id: u64) -> String {
    format!("{MENDED_PREFIX}{id:016x}.new")
}

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;
/// Room that a segment which takes further records must have: a hard state across blocks, a few entries, the closing records.
const MORE_ROOM: u64 = 4 * TWIN_BLOCK;

/// A segment that is being written.
pub(crate) struct Replacement<F> {
    file: F,
    pub(crate) opening: Opening,
    /// Where the next record goes.
    at: u64,
    buffer: Vec<u8>,
    allocated: u64,
    pub(crate) tail: LogBase,
    pub(crate) known_commit: u64,
    reset: Option<LogBase>,
    runs: Vec<TermRun>,
    memberships: Vec<u64>,
    points: Vec<Point>,
    /// Its footer, once it is closed, and where the points stand in the file.
    pub(crate) closed: Option<Closed>,
}

/// How a segment was closed.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    /// Its last entry.
    pub(crate) last: u64,
    pub(crate) points: Vec<Point>,
    pub(crate) points_at: u64,
    /// Byte behind the footer.
    pub(crate) end: u64,
    pub(crate) capacity: u64,
}

impl<F: DiskFile> Replacement<F> {
    /// Begins to write a segment that has this opening; `opening.capacity` is what it has at least.
    pub(crate) fn begin<D: Disk<File = F>>(disk: &D, opening: Opening) -> io::Result<Replacement<F>> {
        let name = replacement_name(opening.segment);
        disk.remove_unfinished(&name)?;
        let file = disk.create(&name, WriteMode::Buffered)?;
        file.allocate(opening.capacity)?;
        Ok(Replacement {
            file,
            opening,
            at: OPENING_BYTES,
            buffer: Vec::new(),
            allocated: opening.capacity,
            tail: opening.base,
            known_commit: opening.known_commit,
            reset: None,
            runs: Vec::new(),
            memberships: Vec::new(),
            points: Vec::new(),
            closed: None,
        })
    }

    /// Whether an entry of this length still leaves room for what must follow, without making the segment longer.
    pub(crate) fn takes(&self, frame_len: usize) -> bool {
        let end = self.at + extent(frame_len) + TWIN_BLOCK + 2 * SMALL_RECORD;
        end + self.closing_bytes() <= self.opening.capacity
    }

    fn closing_bytes(&self) -> u64 {
        let items = (self.runs.len() + 1, self.memberships.len() + 1, self.points.len() + 1);
        extent(Footer::payload_len(items.0, items.1, items.2)) + TRAILER_BYTES + SMALL_RECORD
    }

    /// Writes an entry behind the last one. `pieces` are the bytes of its frame; `known_commit` is what its record says.
    pub(crate) fn push<'a>(
        &mut self,
        header: &Header,
        pieces: impl Iterator<Item = &'a [u8]> + Clone,
        known_commit: u64,
    ) -> io::Result<()> {
        let head: Vec<u8> = pieces.clone().flatten().take(graven_frame::HEADER_BYTES).copied().collect();
        if head.len() < graven_frame::HEADER_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.known_commit = self.known_commit.max(known_commit);
        let (at, len) = (self.at, header.frame_len());
        let mut prefix = self.prefix(RecordKind::Frame, at, len, header.body_crc);
        prefix.head_crc = head_crc(&head);
        self.put(&prefix.encode())?;
        for piece in pieces {
            self.put(piece)?;
        }
        self.pad(at + extent(len))?;
        self.index(header, at);
        Ok(())
    }

    fn index(&mut self, header: &Header, at: u64) {
        if self.points.last().is_none_or(|point| at - point.position >= POINT_SPACING) {
            let (base_offset, timestamp_ms) = (header.base_offset, header.timestamp_ms);
            self.points.push(Point { index: header.index, position: at, base_offset, timestamp_ms });
        }
        if self.runs.last().is_none_or(|run| run.term != header.term) {
            self.runs.push(TermRun { term: header.term, first_index: header.index });
        }
        if header.kind == Kind::Membership {
            self.memberships.push(header.index);
        }
        self.tail = LogBase::after(header);
    }

    /// The log starts anew here.
    pub(crate) fn reset(&mut self, base: LogBase) -> io::Result<()> {
        self.small(RecordKind::Reset, &encode_reset(&base))?;
        (self.tail, self.reset) = (base, Some(base));
        Ok(())
    }

    /// Writes the hard state, if the opening does not say it, and the footer, and makes all of it durable.
    pub(crate) fn close(&mut self, hard_state: HardState, known_commit: u64, log_base: LogBase) -> io::Result<()> {
        self.known_commit = self.known_commit.max(known_commit);
        self.write_hard_state(hard_state)?;
        let footer = Footer {
            reset: self.reset.is_some(),
            base: self.reset.unwrap_or(log_base),
            tail: self.tail,
            hard_state,
            known_commit: self.known_commit,
            runs: self.runs.clone(),
            memberships: self.memberships.clone(),
            ..Footer::default()
        };
        let payload = footer.encode(&self.points);
        let at = self.at;
        let points_at = at + (PREFIX_BYTES + payload.len() - self.points.len() * crate::format::POINT_BYTES) as u64;
        let prefix = self.prefix(RecordKind::Footer, at, payload.len(), crc32fast::hash(&payload));
        self.put(&prefix.encode())?;
        self.put(&payload)?;
        let end = at + extent(payload.len());
        self.pad(end)?;
        let capacity = self.opening.capacity.max((end + TRAILER_BYTES).next_multiple_of(TWIN_BLOCK));
        let trailer = encode_trailer(at);
        let trailer_at = capacity - TRAILER_BYTES;
        let prefix = self.prefix(RecordKind::Trailer, trailer_at, trailer.len(), crc32fast::hash(&trailer));
        let trailer = [prefix.encode().as_slice(), &trailer].concat();
        self.settle(capacity, Some((trailer_at, trailer)))?;
        self.closed = Some(Closed { last: self.tail.index, points: self.points.clone(), points_at, end, capacity });
        Ok(())
    }

    /// Leaves the segment open for further records: writes the hard state and a record that vouches for everything, and makes
    /// all of it durable.
    pub(crate) fn leave_open(&mut self, hard_state: HardState, known_commit: u64) -> io::Result<()> {
        self.known_commit = self.known_commit.max(known_commit).min(self.tail.index);
        self.write_hard_state(hard_state)?;
        let prefix = self.prefix(RecordKind::SyncPoint, self.at, 0, crc32fast::hash(b""));
        self.put(&prefix.encode())?;
        let needed = self.at + MORE_ROOM + self.closing_bytes();
        self.settle(self.opening.capacity.max(needed.next_multiple_of(TWIN_BLOCK)), None)
    }

    /// The opening goes last: it says how long the file is.
    fn settle(&mut self, capacity: u64, trailer: Option<(u64, Vec<u8>)>) -> io::Result<()> {
        self.flush()?;
        if capacity > self.allocated {
            self.file.allocate(capacity)?;
            self.allocated = capacity;
        }
        if let Some((at, bytes)) = trailer {
            self.file.write_at(at, &bytes)?;
        }
        self.opening.capacity = capacity;
        self.file.write_at(0, &self.opening.encode())?;
        if is_planted(Bug::ReplacementUnsynced) { Ok(()) } else { self.file.sync_data() }
    }

    fn write_hard_state(&mut self, hard_state: HardState) -> io::Result<()> {
        if hard_state == self.opening.hard_state {
            return Ok(());
        }
        let payload = encode_hard_state(hard_state);
        let mut prefix = self.prefix(RecordKind::HardState, self.at, payload.len(), crc32fast::hash(&payload));
        prefix.head_crc = (self.at / BOUNDARY) as u32;
        let (_, record) = prefix.both_copies(hard_state);
        debug_assert_eq!(self.at + record.len() as u64, twin_of(self.at) + SMALL_RECORD);
        self.put(&record)
    }

    fn small(&mut self, kind: RecordKind, payload: &[u8]) -> io::Result<()> {
        let prefix = self.prefix(kind, self.at, payload.len(), crc32fast::hash(payload));
        self.put(&prefix.encode())?;
        self.put(payload)
    }

    fn prefix(&self, kind: RecordKind, position: u64, payload_len: usize, body_crc: u32) -> Prefix {
        Prefix {
            kind,
            copy: 0,
            salt: self.opening.salt,
            segment: self.opening.segment,
            position,
            watermark: self.at,
            known_commit: self.known_commit,
            head_crc: 0,
            body_crc,
            payload_len: payload_len as u32,
        }
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        let missing = (to - self.at) as usize;
        self.put(&[0; BOUNDARY as usize][..missing])
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        self.at += bytes.len() as u64;
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let from = self.at - self.buffer.len() as u64;
        if self.at > self.allocated {
            self.allocated = self.at.next_multiple_of(BUFFER_BYTES as u64);
            self.file.allocate(self.allocated)?;
        }
        self.file.write_at(from, &self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// A view of the written file.
    pub(crate) fn map(&self) -> io::Result<std::sync::Arc<dyn crate::disk::DiskMap>> {
        self.file.map(self.opening.capacity)
    }
}

/// Gives a whole replacement the segment's name. Durable when this returns.
pub(crate) fn put_in_place<D: Disk>(disk: &D, id: u64) -> io::Result<()> {
    disk.rename(&replacement_name(id), &segment_name(id))?;
    disk.sync_dir()
}

/// Keeps a copy of a segment's file in a directory beside the log; durable when this returns. What the medium refuses is kept as
/// what it reads as.
pub(crate) fn keep_aside<D: Disk>(disk: &D, quarantine: &str, id: u64) -> io::Result<()> {
    let name = segment_name(id);
    let source = disk.open(&name, None)?;
    let kept_as = format!("{quarantine}/{name}");
    match disk.remove(&kept_as) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let copy = disk.create(&kept_as, WriteMode::Buffered)?;
    crate::repair::copy_range(&source, &copy, 0, source.len()?)?;
    copy.sync_data()?;
    disk.sync_subdir(quarantine)
}
