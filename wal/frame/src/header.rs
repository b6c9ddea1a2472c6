//! The frame header: what is known about an entry without reading its body.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    FORMAT_VERSION, FrameError, GROUP_HEADER_BYTES, HEADER_BYTES, KNOWN_FEATURES, MAX_BODY_BYTES, MAX_INDEX,
    RECORD_HEADER_BYTES,
};

/// A decoded frame header. Its own CRC and all its bounds held when it was decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the entry is.
    pub kind: Kind,
    /// Features a reader must know; unknown bits were refused.
    pub required_features: u32,
    /// Features a reader may ignore.
    pub optional_features: u32,
    /// Bytes of the body.
    pub body_len: u32,
    /// Records in the body; 0 for a control entry.
    pub count: u32,
    /// Raft term, from 1.
    pub term: u64,
    /// Raft index, from 1.
    pub index: u64,
    /// Offset of the first record, or of the next one for a control entry.
    pub base_offset: u64,
    /// The leader's clock when it sealed the frame, in milliseconds since 1970; never decreases along the log.
    pub timestamp_ms: u64,
    /// CRC32 of the body.
    pub body_crc: u32,
    /// Chain value of this entry.
    pub chain: Chain,
}

/// What a leader knows of an entry before it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderSpec {
    /// What the entry is.
    pub kind: Kind,
    /// Raft term, from 1.
    pub term: u64,
    /// Raft index, from 1.
    pub index: u64,
    /// Offset of the first record, or of the next one for a control entry.
    pub base_offset: u64,
    /// Records in the body; 0 for a control entry.
    pub count: u32,
    /// The leader's clock in milliseconds since 1970.
    pub timestamp_ms: u64,
}

/// What an entry is. Zero is no kind, so that zeroed bytes are no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Append groups with records.
    Records = 1,
    /// Opens a leader's term.
    Noop = 2,
    /// Changes who votes.
    Membership = 3,
    /// Moves the first offset.
    Trim = 4,
    /// Opens a session.
    Session = 5,
    /// Names or drops a snapshot.
    Snapshot = 6,
    /// Moves or drops a named cursor.
    Cursor = 7,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 7] =
        [Kind::Records, Kind::Noop, Kind::Membership, Kind::Trim, Kind::Session, Kind::Snapshot, Kind::Cursor];

    /// The kind with this number.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// A value that depends on every frame up to an entry: XXH3-64 over its header, with the previous chain value in it.
///
/// The header holds the body's CRC, so the chain covers bodies too. It is no defence against somebody who forges.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Chain(pub u64);

impl Chain {
    /// The chain before entry 1.
    pub const START: Chain = Chain(0);
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({:016x})", self.0)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

const MAGIC: [u8; 4] = *b"GRVF";
/// XXH3-64, the only chain algorithm so far.
const CHAIN_XXH3_64: u8 = 1;

const VERSION_AT: usize = 4;
const KIND_AT: usize = 5;
const CHAIN_ALGORITHM_AT: usize = 6;
const REQUIRED_AT: usize = 8;
const OPTIONAL_AT: usize = 12;
const BODY_LEN_AT: usize = 16;
const COUNT_AT: usize = 20;
const TERM_AT: usize = 24;
const INDEX_AT: usize = 32;
const BASE_OFFSET_AT: usize = 40;
const TIMESTAMP_AT: usize = 48;
const BODY_CRC_AT: usize = 56;
const CHAIN_AT: usize = 64;
const CRC_AT: usize = HEADER_BYTES - 4;
/// Bytes that are zero in version 1: one after the algorithm, four after the body CRC, and after the 8 used chain bytes.
const RESERVED: [std::ops::Range<usize>; 3] = [7..8, 60..64, 72..CRC_AT];

/// Decodes and checks a frame header from the start of `bytes`.
///
/// # Errors
/// The order of the checks is the order of trust: magic, version, CRC, features, then bounds.
pub fn decode_header(bytes: &[u8]) -> Result<Header, FrameError> {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(FrameError::Truncated { need: HEADER_BYTES, have: bytes.len() });
    };
    if head[..4] != MAGIC {
        return Err(FrameError::Magic);
    }
    let crc_holds = crc32fast::hash(&head[..CRC_AT]) == read_u32(head, CRC_AT);
    if head[VERSION_AT] > FORMAT_VERSION && crc_holds {
        return Err(FrameError::NewerVersion { seen: head[VERSION_AT], known: FORMAT_VERSION });
    }
    if !crc_holds {
        return Err(FrameError::HeaderCrc);
    }
    let header = Header {
        kind: Kind::from_u8(head[KIND_AT]).ok_or(FrameError::Malformed { what: "unknown entry kind", at: KIND_AT })?,
        required_features: read_u32(head, REQUIRED_AT),
        optional_features: read_u32(head, OPTIONAL_AT),
        body_len: read_u32(head, BODY_LEN_AT),
        count: read_u32(head, COUNT_AT),
        term: read_u64(head, TERM_AT),
        index: read_u64(head, INDEX_AT),
        base_offset: read_u64(head, BASE_OFFSET_AT),
        timestamp_ms: read_u64(head, TIMESTAMP_AT),
        body_crc: read_u32(head, BODY_CRC_AT),
        chain: Chain(read_u64(head, CHAIN_AT)),
    };
    let unknown = header.required_features & !KNOWN_FEATURES;
    if unknown != 0 {
        return Err(FrameError::UnknownFeature { bit: unknown.trailing_zeros() });
    }
    check_bounds(head, &header)?;
    Ok(header)
}

fn check_bounds(head: &[u8; HEADER_BYTES], header: &Header) -> Result<(), FrameError> {
    let malformed = |what, at| Err(FrameError::Malformed { what, at });
    if head[VERSION_AT] == 0 {
        return malformed("format version is zero", VERSION_AT);
    }
    if head[CHAIN_ALGORITHM_AT] != CHAIN_XXH3_64 {
        return malformed("unknown chain algorithm", CHAIN_ALGORITHM_AT);
    }
    for range in RESERVED {
        if head[range.clone()].iter().any(|byte| *byte != 0) {
            return malformed("reserved bytes are not zero", range.start);
        }
    }
    if header.body_len as usize > MAX_BODY_BYTES {
        return Err(FrameError::TooLarge {
            what: "frame body",
            size: header.body_len.into(),
            limit: MAX_BODY_BYTES as u64,
        });
    }
    if header.term == 0 {
        return malformed("term is zero", TERM_AT);
    }
    if header.index == 0 {
        return malformed("index is zero", INDEX_AT);
    }
    if header.index > MAX_INDEX {
        return malformed("index is beyond any log", INDEX_AT);
    }
    if header.base_offset.checked_add(header.count.into()).is_none_or(|next| next > MAX_INDEX) {
        return malformed("offsets are beyond any log", BASE_OFFSET_AT);
    }
    let least = GROUP_HEADER_BYTES as u64 + u64::from(header.count) * RECORD_HEADER_BYTES as u64;
    match header.kind {
        Kind::Records if header.count == 0 => malformed("records entry without a record", COUNT_AT),
        Kind::Records if u64::from(header.body_len) < least => {
            malformed("more records than the body can hold", COUNT_AT)
        }
        Kind::Records => Ok(()),
        _ if header.count != 0 => malformed("control entry with records", COUNT_AT),
        _ => Ok(()),
    }
}

impl Header {
    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut head = self.encode_with(self.chain);
        let crc = crc32fast::hash(&head[..CRC_AT]);
        head[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// The chain value this header must have when the entry before it has `prev`.
    #[must_use]
    pub fn chain_after(&self, prev: Chain) -> Chain {
        Chain(xxh3_64(&self.encode_with(prev)))
    }

    /// Offset of the record after this entry.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.base_offset + u64::from(self.count)
    }

    /// Bytes of the whole frame: header and body.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        HEADER_BYTES + self.body_len as usize
    }

    fn encode_with(&self, chain: Chain) -> [u8; HEADER_BYTES] {
        let mut head = [0; HEADER_BYTES];
        head[..4].copy_from_slice(&MAGIC);
        head[VERSION_AT] = FORMAT_VERSION;
        head[KIND_AT] = self.kind as u8;
        head[CHAIN_ALGORITHM_AT] = CHAIN_XXH3_64;
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(REQUIRED_AT, &self.required_features.to_le_bytes());
        put(OPTIONAL_AT, &self.optional_features.to_le_bytes());
        put(BODY_LEN_AT, &self.body_len.to_le_bytes());
        put(COUNT_AT, &self.count.to_le_bytes());
        put(TERM_AT, &self.term.to_le_bytes());
        put(INDEX_AT, &self.index.to_le_bytes());
        put(BASE_OFFSET_AT, &self.base_offset.to_le_bytes());
        put(TIMESTAMP_AT, &self.timestamp_ms.to_le_bytes());
        put(BODY_CRC_AT, &self.body_crc.to_le_bytes());
        put(CHAIN_AT, &chain.0.to_le_bytes());
        head
    }
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

pub(crate) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
