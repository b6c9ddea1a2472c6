//! The frame codec: one log entry's bytes, the same on every disk, on the wire and at the stream client.
//!
//! - [`Frame`] is an entry in memory: a 96-byte [`Header`] and a [`Body`] in the chunks it arrived in.
//! - A records frame's body is one or more append [`Group`]s, each built once by the client ([`GroupBuilder`]).
//! - The header carries two checks of its own bytes: a CRC against accidents on this copy, and a [`Chain`] value that
//!   depends on every frame before it, so that equal (index, chain) on two nodes means equal logs.
//!
//! No I/O happens here, nothing is copied unless it straddles two chunks, and every length is bounded before it is used.
//! Checks come in the order in which they are needed: [`decode_header`] vouches for the header and its bounds,
//! [`Frame::verify`] for the body and the chain, [`Frame::check_groups`] for what the body says about itself.
//!
//! ```
//! use graven_frame::{Chain, Frame, GroupBuilder, GroupHeaderSpec, HeaderSpec, Kind};
//!
//! let mut builder = GroupBuilder::new();
//! builder.push(b"", b"hello")?;
//! let group = builder.finish(GroupHeaderSpec::default());
//! let spec = HeaderSpec { kind: Kind::Records, term: 1, index: 2, base_offset: 0, count: group.header().count, timestamp_ms: 7 };
//! let frame = Frame::seal(spec, Chain::START, group.body().clone(), group.crc());
//! frame.verify(Some(Chain::START))?;
//! let payloads: Vec<_> = frame.records().map(|record| record.map(|r| r.payload)).collect::<Result<_, _>>()?;
//! assert_eq!(&payloads[0][..], b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The bytes are described in `wal/FORMAT.md`, which is included in the documentation of `graven-wal`.

mod body;
mod frame;
mod group;
mod header;

pub use body::{Body, combine_crc};
pub use frame::{Frame, Groups, RecordRef, Records};
pub use group::{Group, GroupBuilder, GroupHeader, GroupHeaderSpec, GroupRecord, GroupRecords, RecordError};
pub use header::{Chain, Header, HeaderSpec, Kind, decode_header};

/// Bytes of an encoded [`Header`].
pub const HEADER_BYTES: usize = 96;
/// Bytes of an encoded [`GroupHeader`].
pub const GROUP_HEADER_BYTES: usize = 64;
/// Bytes before each record's meta and payload: their two lengths.
pub const RECORD_HEADER_BYTES: usize = 8;
/// The largest payload of one record.
pub const MAX_RECORD_BYTES: usize = 16 << 20;
/// The largest meta of one record.
pub const MAX_META_BYTES: usize = 64 << 10;
/// The largest append group: one largest record with its meta and all headers fits.
pub const MAX_GROUP_BYTES: usize = (16 << 20) + (128 << 10);
/// The largest body of a frame: groups that arrived together, or one largest group.
pub const MAX_BODY_BYTES: usize = MAX_GROUP_BYTES;
/// The highest index and offset. No log comes near it, and numbers above leave no room to count on.
pub const MAX_INDEX: u64 = u64::MAX >> 1;
/// The version of the frame format this code writes, and the newest it reads.
pub const FORMAT_VERSION: u8 = 1;
/// The required feature bits this code understands: none so far.
pub const KNOWN_FEATURES: u32 = 0;

/// Why bytes are not a valid frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// More bytes are needed; on disk or in a finished message this is damage.
    #[error("truncated: {need} bytes needed, {have} there")]
    Truncated {
        /// Bytes needed from the start of the item.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// These bytes do not start with a frame.
    #[error("no frame starts here (wrong magic)")]
    Magic,
    /// The header's own check does not hold: its bytes changed.
    #[error("frame header is damaged (CRC mismatch)")]
    HeaderCrc,
    /// Written by newer software in a format this version does not read.
    #[error("frame format version {seen} is newer than {known}, the newest this version reads; upgrade first")]
    NewerVersion {
        /// The version found.
        seen: u8,
        /// The newest version understood.
        known: u8,
    },
    /// Written with a feature that must be understood to read it.
    #[error("frame needs feature bit {bit}, which this version does not know; upgrade first")]
    UnknownFeature {
        /// The lowest unknown required bit.
        bit: u32,
    },
    /// The body's bytes changed.
    #[error("body of entry {index} is damaged (CRC mismatch)")]
    BodyCrc {
        /// Index of the entry.
        index: u64,
    },
    /// The group's bytes changed between its writer and here.
    #[error("append group is damaged (CRC mismatch)")]
    GroupCrc,
    /// The entry does not follow the one it was compared with.
    #[error("entry {index} does not continue the chain of the entry before it")]
    Chain {
        /// Index of the entry.
        index: u64,
    },
    /// A length is beyond its limit.
    #[error("{what} of {size} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its claimed size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Lengths or fields contradict each other.
    #[error("malformed at byte {at}: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Position in the item being read.
        at: usize,
    },
}
