//! The subscribe stream's bytes.
//!
//! The client sends one [`SubscribeRequest`] and finishes its side. The node answers with items: [`ITEM_BYTES`] of head
//! (tag u8, 3 zero bytes, length u32, two numbers u64, little endian), then `length` bytes. A frame's bytes are those on disk.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use graven_frame::{HEADER_BYTES, MAX_BODY_BYTES};
use serde::{Deserialize, Serialize};

use super::MAX_MESSAGE_BYTES;

/// Bytes before each item.
pub const ITEM_BYTES: usize = 24;
/// The largest frame.
pub const MAX_FRAME_BYTES: usize = HEADER_BYTES + MAX_BODY_BYTES;

/// Where a subscription starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Start {
    /// The first record there is.
    Beginning,
    /// Behind every record acknowledged before the subscription began.
    End,
    /// This offset.
    Offset(u64),
    /// So many records before the end, or the first record when there are fewer.
    Last(u64),
    /// The first record not older than this: milliseconds since 1970.
    Time(u64),
    /// The snapshot of this name, and then the first record that it does not cover. The client library gets the snapshot and
    /// subscribes at its offset; a node that is asked for it refuses.
    Snapshot(String),
}

/// What a client sends to subscribe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribeRequest {
    /// Where to start.
    pub start: Start,
    /// Where to stop: this offset is not sent any more.
    pub until: Option<u64>,
    /// A start below the first record is answered by a `Trimmed` item, not by a failure.
    pub skip_trimmed: bool,
    /// The client was already given what stands before `start`, maybe by a node that is further ahead: when this node
    /// does not have it yet, it waits instead of answering `out_of_range`.
    pub resume: bool,
}

/// The head of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemHead {
    /// The subscription is accepted and starts at this offset. Always first.
    Begin {
        /// The first offset that will be sent.
        from: u64,
    },
    /// A whole frame of this length follows.
    Frame {
        /// Bytes of the frame.
        len: usize,
    },
    /// Records from `from` to before `to` are gone: the stream goes on at `to`.
    Trimmed {
        /// First offset missing.
        from: u64,
        /// First offset there.
        to: u64,
    },
    /// Nothing new below this offset.
    Progress {
        /// Where the stream stands.
        next_offset: u64,
    },
    /// Everything committed when the item was made has been sent.
    CaughtUp {
        /// Where the stream stands.
        next_offset: u64,
    },
    /// `until` is reached; nothing follows.
    Done,
    /// A failure of this length follows, and then nothing.
    Failed {
        /// Bytes of the encoded failure.
        len: usize,
    },
}

impl ItemHead {
    /// The head's bytes.
    #[must_use]
    pub fn encode(self) -> Bytes {
        let (tag, len, a, b) = match self {
            ItemHead::Begin { from } => (1, 0, from, 0),
            ItemHead::Frame { len } => (2, len, 0, 0),
            ItemHead::Trimmed { from, to } => (3, 0, from, to),
            ItemHead::Progress { next_offset } => (4, 0, next_offset, 0),
            ItemHead::CaughtUp { next_offset } => (5, 0, next_offset, 0),
            ItemHead::Done => (6, 0, 0, 0),
            ItemHead::Failed { len } => (7, len, 0, 0),
        };
        let mut bytes = BytesMut::with_capacity(ITEM_BYTES);
        bytes.put_u8(tag);
        bytes.put_bytes(0, 3);
        bytes.put_u32_le(len as u32);
        bytes.put_u64_le(a);
        bytes.put_u64_le(b);
        bytes.freeze()
    }

    /// Decodes a head.
    ///
    /// # Errors
    /// A sentence, when the bytes cannot be a head.
    pub fn decode(bytes: [u8; ITEM_BYTES]) -> Result<ItemHead, &'static str> {
        let mut bytes = &bytes[..];
        let tag = bytes.get_u8();
        bytes.advance(3);
        let len = bytes.get_u32_le() as usize;
        let (a, b) = (bytes.get_u64_le(), bytes.get_u64_le());
        match tag {
            1 => Ok(ItemHead::Begin { from: a }),
            2 if (HEADER_BYTES..=MAX_FRAME_BYTES).contains(&len) => Ok(ItemHead::Frame { len }),
            2 => Err("a frame has an impossible length"),
            3 if a < b => Ok(ItemHead::Trimmed { from: a, to: b }),
            3 => Err("a trimmed range is empty"),
            4 => Ok(ItemHead::Progress { next_offset: a }),
            5 => Ok(ItemHead::CaughtUp { next_offset: a }),
            6 => Ok(ItemHead::Done),
            7 if len <= MAX_MESSAGE_BYTES => Ok(ItemHead::Failed { len }),
            7 => Err("a failure is too long"),
            _ => Err("an item has an unknown tag"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_survives_its_encoding() {
        let heads = [
            ItemHead::Begin { from: 1 },
            ItemHead::Frame { len: MAX_FRAME_BYTES },
            ItemHead::Trimmed { from: 2, to: 5 },
            ItemHead::Progress { next_offset: 3 },
            ItemHead::CaughtUp { next_offset: u64::MAX },
            ItemHead::Done,
            ItemHead::Failed { len: 9 },
        ];
        for head in heads {
            let bytes: [u8; ITEM_BYTES] = head.encode()[..].try_into().expect("a head has its size");
            assert_eq!(ItemHead::decode(bytes), Ok(head));
        }
    }

    #[test]
    fn impossible_heads_are_refused() {
        for (tag, len) in [(0, 0), (8, 0), (2, 0), (2, u32::MAX), (3, 0), (7, u32::MAX)] {
            let mut bytes = [0; ITEM_BYTES];
            bytes[0] = tag;
            bytes[4..8].copy_from_slice(&u32::to_le_bytes(len));
            assert!(ItemHead::decode(bytes).is_err(), "tag {tag}, length {len}");
        }
    }
}
