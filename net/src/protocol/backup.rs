//! The backup stream's messages.
//!
//! The client sends one [`BackupRequest`] and finishes its side. The node answers with a length (u32, little-endian) and a
//! [`BackupReply`]; then the bytes of the checkpoint, if there is one; then items as on a subscribe stream, of which only frames,
//! the end and a failure occur.

use serde::{Deserialize, Serialize};

use super::Failure;

/// What a client wants of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupRequest {
    /// All of it, up to what is committed now, as a majority confirms.
    Begin,
    /// What a broken stream still owed.
    Resume {
        /// The first entry wanted.
        first: u64,
        /// The last one: that of the first answer. A node that does not have it yet waits until it has.
        last: u64,
    },
}

/// The answer to a [`BackupRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupReply {
    /// It follows.
    Accepted(BackupHead),
    /// It does not.
    Refused(Failure),
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHead {
    /// The cluster whose log it is.
    pub cluster: u128,
    /// The first entry that is given.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// The first offset that is not trimmed, as of the last entry.
    pub first_offset: u64,
    /// Offset behind the last record, as of the last entry.
    pub next_offset: u64,
    /// Bytes of the checkpoint that comes before the entries: what was true before the first of them. 0 when that is entry 1, and when a
    /// stream is resumed.
    pub checkpoint_bytes: u64,
}

/// The most bytes a checkpoint has: a state of 64 MiB and its checksums.
pub const CHECKPOINT_BYTES_MAX: u64 = 65 << 20;
