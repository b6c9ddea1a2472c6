//! The bytes of a segment file around the frames. `FORMAT.md` describes them; this encodes and decodes them.

use graven_frame::{Chain, MAX_INDEX};

use crate::index::{Points, PointsInFile, ascend};
use crate::plan::MIN_SEGMENT_BYTES;
use crate::types::{HardState, Identity, LogBase, TermRun};

/// The version of the segment format this code writes, and the newest it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Bytes of the opening block: what a disk is most likely to write in one piece.
pub(crate) const OPENING_BYTES: u64 = 4096;
/// Records start on this boundary, so that a search after damage has few places to look at.
pub(crate) const BOUNDARY: u64 = 64;
/// Bytes of a record prefix.
pub(crate) const PREFIX_BYTES: usize = 64;
/// Bytes of the payload of hard-state, reset and trailer records.
pub(crate) const SMALL_PAYLOAD: usize = 64;
/// The two copies of a hard state lie in different blocks of this size.
pub(crate) const TWIN_BLOCK: u64 = 4096;
/// A small record: prefix and payload.
pub(crate) const SMALL_RECORD: u64 = PREFIX_BYTES as u64 + SMALL_PAYLOAD as u64;
/// The last bytes of a sealed segment say where its footer is.
pub(crate) const TRAILER_BYTES: u64 = SMALL_RECORD;
/// Bytes between two points of the sparse index: a look-up walks at most this many bytes of records.
pub(crate) const POINT_SPACING: u64 = 128 << 10;

pub(crate) const OPENING_MAGIC: [u8; 8] = *b"GRVNSEG\0";
/// Where an opening names cluster, incarnation and node.
pub(crate) const IDENTITY_AT: usize = 32;
/// Bytes of these three.
pub(crate) const IDENTITY_BYTES: usize = 40;
const PREFIX_MAGIC: [u8; 4] = *b"GRVR";
/// Bytes of a point in a footer.
pub(crate) const POINT_BYTES: usize = 32;
const FOOTER_FIXED: usize = 96;
const BASE_BYTES: usize = 48;

/// The first block of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) segment: u64,
    pub(crate) salt: u64,
    pub(crate) identity: Identity,
    pub(crate) capacity: u64,
    pub(crate) hard_state: HardState,
    pub(crate) base: LogBase,
    pub(crate) known_commit: u64,
}

/// What an opening block turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpeningFound {
    Zero,
    Bad,
    Newer(u32),
    Good(Opening),
}

impl Opening {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(OPENING_BYTES as usize);
        out.extend_from_slice(&OPENING_MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&0_u32.to_le_bytes());
        out.extend_from_slice(&self.segment.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&self.identity.cluster.to_le_bytes());
        out.extend_from_slice(&self.identity.incarnation.to_le_bytes());
        out.extend_from_slice(&self.identity.node.to_le_bytes());
        out.extend_from_slice(&self.capacity.to_le_bytes());
        put_hard_state(&mut out, self.hard_state);
        put_base(&mut out, &self.base);
        out.extend_from_slice(&self.known_commit.to_le_bytes());
        out.resize(OPENING_BYTES as usize - 4, 0);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(block: &[u8]) -> OpeningFound {
        if block.len() < OPENING_BYTES as usize {
            return if is_zero(block) { OpeningFound::Zero } else { OpeningFound::Bad };
        }
        let block = &block[..OPENING_BYTES as usize];
        if is_zero(block) {
            return OpeningFound::Zero;
        }
        let (content, crc) = block.split_at(OPENING_BYTES as usize - 4);
        if content[..8] != OPENING_MAGIC || crc32fast::hash(content).to_le_bytes() != *crc {
            return OpeningFound::Bad;
        }
        let mut from = Fields { bytes: content, at: 8 };
        let version = from.u32();
        // A required feature is a newer format by another name: whoever adds one gives it a bit in the second word.
        if version > FORMAT_VERSION || from.u32() != 0 {
            return OpeningFound::Newer(version.max(FORMAT_VERSION + 1));
        }
        let opening = Opening {
            segment: from.u64(),
            salt: from.u64(),
            identity: {
                let (cluster, incarnation) = (from.u128(), from.u128());
                Identity { cluster, incarnation, node: from.u64() }
            },
            capacity: from.u64(),
            hard_state: from.hard_state(),
            base: from.base(),
            known_commit: from.u64(),
        };
        // Numbers that no log has, although the sum is right: nobody may count on from there.
        let possible = is_possible(&opening.base) && opening.capacity >= MIN_SEGMENT_BYTES;
        if possible { OpeningFound::Good(opening) } else { OpeningFound::Bad }
    }
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordKind {
    Frame = 1,
    HardState = 2,
    SyncPoint = 3,
    Reset = 4,
    Footer = 5,
    Trailer = 6,
}

impl RecordKind {
    fn from_u8(number: u8) -> Option<RecordKind> {
        use RecordKind::{Footer, Frame, HardState, Reset, SyncPoint, Trailer};
        [Frame, HardState, SyncPoint, Reset, Footer, Trailer].into_iter().find(|kind| *kind as u8 == number)
    }
}

/// The local prefix of every record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) kind: RecordKind,
    /// 0, or 1 for the second copy of a hard state.
    pub(crate) copy: u8,
    pub(crate) salt: u64,
    pub(crate) segment: u64,
    pub(crate) position: u64,
    pub(crate) watermark: u64,
    pub(crate) known_commit: u64,
    pub(crate) head_crc: u32,
    pub(crate) body_crc: u32,
    pub(crate) payload_len: u32,
}

/// What the 64 bytes at a boundary turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PrefixFound {
    Zero,
    Bad,
    Good(Prefix),
}

impl Prefix {
    pub(crate) fn encode(&self) -> [u8; PREFIX_BYTES] {
        let mut out = [0; PREFIX_BYTES];
        out[..4].copy_from_slice(&PREFIX_MAGIC);
        out[4] = self.kind as u8;
        out[5] = self.copy;
        for (slot, number) in out[8..48].chunks_exact_mut(8).zip([
            self.salt,
            self.segment,
            self.position,
            self.watermark,
            self.known_commit,
        ]) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        out[48..52].copy_from_slice(&self.head_crc.to_le_bytes());
        out[52..56].copy_from_slice(&self.body_crc.to_le_bytes());
        out[56..60].copy_from_slice(&self.payload_len.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; PREFIX_BYTES]) -> PrefixFound {
        if bytes[..4] != PREFIX_MAGIC {
            return if is_zero(bytes) { PrefixFound::Zero } else { PrefixFound::Bad };
        }
        let mut from = Fields { bytes, at: 8 };
        let kind = RecordKind::from_u8(bytes[4]);
        let (Some(kind), true) = (kind, crc32fast::hash(&bytes[..60]).to_le_bytes() == bytes[60..]) else {
            return PrefixFound::Bad;
        };
        PrefixFound::Good(Prefix {
            kind,
            copy: bytes[5],
            salt: from.u64(),
            segment: from.u64(),
            position: from.u64(),
            watermark: from.u64(),
            known_commit: from.u64(),
            head_crc: from.u32(),
            body_crc: from.u32(),
            payload_len: from.u32(),
        })
    }

    /// Whether these bytes at least claim to be a prefix: the cheap first look of a search.
    pub(crate) fn looks_like(bytes: &[u8]) -> bool {
        bytes.starts_with(&PREFIX_MAGIC)
    }

    /// Whether this is the second copy of the hard state whose first copy stands, or stood, at `first`.
    pub(crate) fn second_copy_of(&self, first: u64) -> bool {
        self.kind == RecordKind::HardState && self.copy == 1 && u64::from(self.head_crc) * BOUNDARY == first
    }

    /// Both copies of the hard state of which this is one, as they are written: with the unused bytes between them.
    pub(crate) fn both_copies(&self, hard_state: HardState) -> (u64, Vec<u8>) {
        let first = u64::from(self.head_crc) * BOUNDARY;
        let second = twin_of(first);
        let payload = encode_hard_state(hard_state);
        let mut bytes = Prefix { copy: 0, position: first, ..*self }.encode().to_vec();
        bytes.extend_from_slice(&payload);
        bytes.resize((second - first) as usize, 0);
        bytes.extend_from_slice(&Prefix { copy: 1, position: second, ..*self }.encode());
        bytes.extend_from_slice(&payload);
        (first, bytes)
    }

    /// Byte behind the record, where the next one starts.
    pub(crate) fn end(&self) -> u64 {
        match (self.kind, self.copy) {
            (RecordKind::HardState, 0) => twin_of(self.position) + SMALL_RECORD,
            _ => self.position + extent(self.payload_len as usize),
        }
    }
}

/// Bytes that a record with this payload takes, up to the next boundary.
pub(crate) fn extent(payload_len: usize) -> u64 {
    (PREFIX_BYTES as u64 + payload_len as u64).next_multiple_of(BOUNDARY)
}

/// Where the second copy of the hard state at `position` starts: in the next block.
pub(crate) fn twin_of(position: u64) -> u64 {
    (position + SMALL_RECORD).next_multiple_of(TWIN_BLOCK)
}

pub(crate) fn encode_hard_state(hard_state: HardState) -> [u8; SMALL_PAYLOAD] {
    let mut out = Vec::with_capacity(SMALL_PAYLOAD);
    put_hard_state(&mut out, hard_state);
    small(out)
}

pub(crate) fn decode_hard_state(payload: &[u8]) -> Option<HardState> {
    (payload.len() == SMALL_PAYLOAD).then(|| Fields { bytes: payload, at: 0 }.hard_state())
}

pub(crate) fn encode_reset(base: &LogBase) -> [u8; SMALL_PAYLOAD] {
    let mut out = Vec::with_capacity(SMALL_PAYLOAD);
    put_base(&mut out, base);
    small(out)
}

pub(crate) fn decode_reset(payload: &[u8]) -> Option<LogBase> {
    (payload.len() == SMALL_PAYLOAD).then(|| Fields { bytes: payload, at: 0 }.base()).filter(is_possible)
}

/// Whether a log can go on behind this place.
fn is_possible(base: &LogBase) -> bool {
    base.index <= MAX_INDEX && base.next_offset <= MAX_INDEX
}

pub(crate) fn encode_trailer(footer_at: u64) -> [u8; SMALL_PAYLOAD] {
    small(footer_at.to_le_bytes().to_vec())
}

pub(crate) fn decode_trailer(payload: &[u8]) -> Option<u64> {
    (payload.len() == SMALL_PAYLOAD).then(|| Fields { bytes: payload, at: 0 }.u64())
}

fn small(mut out: Vec<u8>) -> [u8; SMALL_PAYLOAD] {
    out.resize(SMALL_PAYLOAD, 0);
    let mut payload = [0; SMALL_PAYLOAD];
    payload.copy_from_slice(&out);
    payload
}

/// A place from which a look-up walks on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) index: u64,
    pub(crate) position: u64,
    pub(crate) base_offset: u64,
    pub(crate) timestamp_ms: u64,
}

impl Point {
    pub(crate) fn encode(&self) -> [u8; POINT_BYTES] {
        let mut out = [0; POINT_BYTES];
        let numbers = [self.index, self.position, self.base_offset, self.timestamp_ms];
        for (slot, number) in out.chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8; POINT_BYTES]) -> Point {
        let mut from = Fields { bytes, at: 0 };
        Point { index: from.u64(), position: from.u64(), base_offset: from.u64(), timestamp_ms: from.u64() }
    }
}

/// What a segment holds, as seen from its end. Entries that a later one superseded are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Footer {
    /// Whether the log started anew inside this segment.
    pub(crate) reset: bool,
    /// The place behind which the log as this segment knows it goes on; the reset's if there was one.
    pub(crate) base: LogBase,
    /// The last entry, in this segment or before it.
    pub(crate) tail: LogBase,
    pub(crate) hard_state: HardState,
    pub(crate) known_commit: u64,
    pub(crate) runs: Vec<TermRun>,
    pub(crate) memberships: Vec<u64>,
    /// As read from a file they stay where they stand.
    pub(crate) points: Points,
}

impl Footer {
    /// Bytes of the payload with this many items.
    pub(crate) fn payload_len(runs: usize, memberships: usize, points: usize) -> usize {
        FOOTER_FIXED + 2 * BASE_BYTES + runs * 16 + memberships * 8 + points * POINT_BYTES
    }

    /// The payload of a segment that is still written to: its points are in memory.
    pub(crate) fn encode(&self, points: &[Point]) -> Vec<u8> {
        let len = Footer::payload_len(self.runs.len(), self.memberships.len(), points.len());
        let mut out = Vec::with_capacity(len);
        for number in
            [u64::from(self.reset), self.runs.len() as u64, self.memberships.len() as u64, points.len() as u64]
        {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_hard_state(&mut out, self.hard_state);
        out.extend_from_slice(&self.known_commit.to_le_bytes());
        out.resize(FOOTER_FIXED, 0);
        put_base(&mut out, &self.base);
        put_base(&mut out, &self.tail);
        for run in &self.runs {
            out.extend_from_slice(&run.term.to_le_bytes());
            out.extend_from_slice(&run.first_index.to_le_bytes());
        }
        for index in &self.memberships {
            out.extend_from_slice(&index.to_le_bytes());
        }
        for point in points {
            out.extend_from_slice(&point.encode());
        }
        debug_assert_eq!(out.len(), len);
        out
    }

    /// A footer whose payload stands at `at` in its file; `None` when its numbers cannot be those of a segment.
    pub(crate) fn decode(payload: &[u8], at: u64) -> Option<Footer> {
        if payload.len() < Footer::payload_len(0, 0, 0) {
            return None;
        }
        let mut from = Fields { bytes: payload, at: 0 };
        let reset = from.u64() != 0;
        let counts = [from.u64(), from.u64(), from.u64()].map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        // No count can be larger than the bytes there are: checked before the products below can overflow.
        if counts.iter().any(|count| *count > payload.len())
            || payload.len() != Footer::payload_len(counts[0], counts[1], counts[2])
        {
            return None;
        }
        let (hard_state, known_commit) = (from.hard_state(), from.u64());
        from.at = FOOTER_FIXED;
        let (base, tail) = (from.base(), from.base());
        let runs = (0..counts[0]).map(|_| TermRun { term: from.u64(), first_index: from.u64() }).collect();
        let memberships = (0..counts[1]).map(|_| from.u64()).collect();
        let points_at = at + from.at as u64;
        let points =
            payload[from.at..].chunks_exact(POINT_BYTES).filter_map(|bytes| Some(Point::decode(bytes.first_chunk()?)));
        let mut possible = ascend(points.clone());
        for point in points.clone() {
            possible &= point.position <= MAX_INDEX && point.index <= tail.index;
        }
        let points = match points.clone().next() {
            Some(first) => Points::InFile(PointsInFile { at: points_at, count: counts[2], first }),
            None => Points::default(),
        };
        let footer = Footer { reset, base, tail, hard_state, known_commit, runs, memberships, points };
        (possible && is_possible(&footer.base) && is_possible(&footer.tail)).then_some(footer)
    }
}

fn put_hard_state(out: &mut Vec<u8>, hard_state: HardState) {
    out.extend_from_slice(&hard_state.term.to_le_bytes());
    // Node ids count from 1, so zero is "no vote".
    out.extend_from_slice(&hard_state.vote.unwrap_or(0).to_le_bytes());
}

fn put_base(out: &mut Vec<u8>, base: &LogBase) {
    // The chain has 16 bytes in the format, of which XXH3-64 uses 8.
    for number in [base.index, base.term, base.chain.0, 0, base.next_offset, base.timestamp_ms] {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// Reads fields one after the other from bytes whose length was checked.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn u128(&mut self) -> u128 {
        u128::from_le_bytes(self.take())
    }

    fn hard_state(&mut self) -> HardState {
        HardState { term: self.u64(), vote: Some(self.u64()).filter(|node| *node != 0) }
    }

    fn base(&mut self) -> LogBase {
        let (index, term, chain) = (self.u64(), self.u64(), Chain(self.u64()));
        let _reserved = self.u64();
        LogBase { index, term, chain, next_offset: self.u64(), timestamp_ms: self.u64() }
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // In pieces that are looked at as a whole: a search for the first one that is not zero goes byte by byte.
    bytes.chunks(256).all(|piece| piece.iter().fold(0, |seen, byte| seen | byte) == 0)
}

/// The name of a segment's file.
pub(crate) fn segment_name(id: u64) -> String {
    format!("{id:016x}.seg")
}

/// The segment with this file name.
pub(crate) fn segment_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let canonical =
        digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    canonical.then(|| u64::from_str_radix(digits, 16).ok()).flatten().filter(|id| *id > 0)
}
