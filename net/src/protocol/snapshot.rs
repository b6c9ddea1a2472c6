//! The bytes of snapshots on their way from and to a client: blocks of one shape in both directions.
//!
//! A block is [`BLOCK_BYTES`] of head (tag u8, three zero bytes, length u32, CRC32 u32 of what follows, little endian), then `length`
//! bytes. A body is cut into chunks of at most [`CHUNK_BYTES`]; behind the last one stands the body's length and its digest.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use super::{Failure, LeaderView, MAX_MESSAGE_BYTES};

/// Bytes before each block.
pub const BLOCK_BYTES: usize = 12;
/// The largest chunk, and the size of all chunks of a stored body but its last one.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Bytes behind the head of an end: length of the body and its digest.
pub const END_BYTES: usize = 16;

/// A snapshot of an application, as the cluster names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// Drawn at random for each snapshot that was put.
    pub id: u64,
    /// It is the state after all records below this offset; the next record is this one.
    pub offset: u64,
    /// Bytes of its body.
    pub bytes: u64,
    /// XXH3-64 of its body.
    pub digest: u64,
    /// When it was taken in: milliseconds since 1970, by the leader's clock.
    pub timestamp: u64,
}

/// Whether a name means a snapshot already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SnapshotState {
    /// A majority holds it: whoever asks for the name gets this one.
    Committed,
    /// It is being copied to the nodes, to take the place of the one before it.
    Spreading,
}

/// One line of a list of snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEntry {
    /// What it is.
    pub info: SnapshotInfo,
    /// Whether its name means it.
    pub state: SnapshotState,
}

/// What a client sends to put a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutRequest {
    /// The name: 1 to 64 letters, digits, `.`, `_` and `-`, the first of them no dot and no dash.
    pub name: String,
    /// The state is that after all records below this offset.
    pub offset: u64,
    /// Bytes of the body, when they are known: then a disk without room is told before any is sent.
    pub bytes: Option<u64>,
}

/// What a node answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum PutAnswer {
    /// The body may come. Always first when the snapshot is wanted; another answer follows the end.
    Go,
    /// It is committed: a majority holds it, durably.
    Done(SnapshotInfo),
    /// Nothing was taken: the node does not lead.
    NotLeader(LeaderView),
    /// It failed. What was sent is not kept unless the outcome says that this is not known.
    Failed(Failure),
}

/// What a client sends to get a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetRequest {
    /// The name.
    pub name: String,
    /// Only this one, of which the client has the first chunks.
    pub id: Option<u64>,
    /// The first chunk that is wanted.
    pub chunk: u64,
}

/// What a node answers, before the chunks, or instead of more of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GetAnswer {
    /// The chunks follow, from the one that was asked for, and then the end.
    Begin(SnapshotInfo),
    /// There is nothing, or no more.
    Failed(Failure),
}

/// The head of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockHead {
    /// A bincode message of this length follows.
    Message {
        /// Bytes of the message.
        len: usize,
        /// Their CRC32.
        crc: u32,
    },
    /// A chunk of the body follows.
    Chunk {
        /// Its bytes, at least one.
        len: usize,
        /// Their CRC32.
        crc: u32,
    },
    /// The body is complete: its length and digest follow.
    End {
        /// CRC32 of both.
        crc: u32,
    },
}

impl BlockHead {
    /// Bytes that follow the head.
    #[must_use]
    pub fn len(self) -> usize {
        match self {
            BlockHead::Message { len, .. } | BlockHead::Chunk { len, .. } => len,
            BlockHead::End { .. } => END_BYTES,
        }
    }

    /// Never: something always follows a head.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether these are the bytes that were meant.
    #[must_use]
    pub fn holds(self, bytes: &[u8]) -> bool {
        let (BlockHead::Message { crc, .. } | BlockHead::Chunk { crc, .. } | BlockHead::End { crc }) = self;
        bytes.len() == self.len() && crc32fast::hash(bytes) == crc
    }

    /// Decodes a head; every length is bounded before anything is read for it.
    ///
    /// # Errors
    /// A sentence, when the bytes cannot be a head.
    pub fn decode(bytes: [u8; BLOCK_BYTES]) -> Result<BlockHead, &'static str> {
        let [tag, zeros @ .., l0, l1, l2, l3, c0, c1, c2, c3] = bytes;
        let (len, crc) = (u32::from_le_bytes([l0, l1, l2, l3]) as usize, u32::from_le_bytes([c0, c1, c2, c3]));
        if zeros != [0; 3] {
            return Err("a block of a snapshot begins with bytes that must be zero");
        }
        match tag {
            1 if (1..=MAX_MESSAGE_BYTES).contains(&len) => Ok(BlockHead::Message { len, crc }),
            2 if (1..=CHUNK_BYTES).contains(&len) => Ok(BlockHead::Chunk { len, crc }),
            3 if len == END_BYTES => Ok(BlockHead::End { crc }),
            1..=3 => Err("a block of a snapshot has an impossible length"),
            _ => Err("a block of a snapshot has an unknown tag"),
        }
    }
}

/// A message as a block.
#[must_use]
pub fn message_block(message: &[u8]) -> Bytes {
    block(1, message)
}

/// The head of a chunk with these bytes, at most [`CHUNK_BYTES`] of them.
#[must_use]
pub fn chunk_head(bytes: &[u8]) -> Bytes {
    head(2, bytes).freeze()
}

/// The end of a body.
#[must_use]
pub fn end_block(total: u64, digest: u64) -> Bytes {
    let mut bytes = [0; END_BYTES];
    bytes[..8].copy_from_slice(&total.to_le_bytes());
    bytes[8..].copy_from_slice(&digest.to_le_bytes());
    block(3, &bytes)
}

/// Length and digest of a body, from behind the head of its end.
#[must_use]
pub fn decode_end(bytes: [u8; END_BYTES]) -> (u64, u64) {
    let number = |at: usize| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(eight)
    };
    (number(0), number(8))
}

fn head(tag: u8, bytes: &[u8]) -> BytesMut {
    let mut head = BytesMut::with_capacity(BLOCK_BYTES);
    head.put_u8(tag);
    head.put_bytes(0, 3);
    // Every caller's bytes are bounded far below.
    head.put_u32_le(bytes.len() as u32);
    head.put_u32_le(crc32fast::hash(bytes));
    head
}

fn block(tag: u8, bytes: &[u8]) -> Bytes {
    let mut block = head(tag, bytes);
    block.extend_from_slice(bytes);
    block.freeze()
}

/// XXH3-64 of a body, chunk by chunk.
#[derive(Clone, Default)]
pub struct BodyDigest {
    state: Xxh3Default,
    bytes: u64,
}

impl BodyDigest {
    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// How many bytes there were, and their digest.
    #[must_use]
    pub fn value(&self) -> (u64, u64) {
        (self.bytes, self.state.digest())
    }
}

impl std::fmt::Debug for BodyDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BodyDigest").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(block: &[u8]) -> Result<BlockHead, &'static str> {
        BlockHead::decode(block[..BLOCK_BYTES].try_into().expect("a head has its size"))
    }

    #[test]
    fn every_block_survives_its_encoding() {
        let message = message_block(b"go");
        assert!(decode(&message).is_ok_and(|head| head.len() == 2 && head.holds(&message[BLOCK_BYTES..])));
        let chunk = vec![7; CHUNK_BYTES];
        let head = decode(&chunk_head(&chunk)).expect("a head");
        assert!(head.holds(&chunk) && !head.holds(&chunk[1..]) && !head.holds(&vec![8; CHUNK_BYTES]));
        let end = end_block(70_000, 0xfeed);
        assert!(decode(&end).is_ok_and(|head| head.holds(&end[BLOCK_BYTES..])));
        assert_eq!(decode_end(end[BLOCK_BYTES..].try_into().expect("an end")), (70_000, 0xfeed));
    }

    #[test]
    fn impossible_heads_are_refused() {
        let lens = [(0, 1), (4, 1), (1, 0), (1, 1 << 17), (2, 0), (2, CHUNK_BYTES as u32 + 1), (3, 15), (3, 17)];
        for (tag, len) in lens {
            let mut bytes = [0; BLOCK_BYTES];
            bytes[0] = tag;
            bytes[4..8].copy_from_slice(&u32::to_le_bytes(len));
            assert!(BlockHead::decode(bytes).is_err(), "tag {tag}, length {len}");
        }
        let mut bytes = *end_block(1, 1).first_chunk().expect("a head");
        bytes[2] = 1;
        assert!(BlockHead::decode(bytes).is_err());
    }
}
