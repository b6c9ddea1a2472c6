//! What is appended: records that say which append they belong to, and whose every byte follows from that.

use graven::Batch;
use xxhash_rust::xxh3::xxh3_64;

use crate::rng::Rng;

/// Append, part, parts, as they stand at the front of a record, and a hash of them: where nothing follows, they are all there is.
const HEAD_BYTES: usize = 24;
/// One record in so many is large: it fills many datagrams.
const LARGE_ONE_IN: u64 = 256;
const LARGE_BYTES: u64 = 128 << 10;
const SMALL_BYTES: u64 = 200;
/// An append of so many records or more is part of a flood: all its records are middling.
pub const FLOOD_PARTS: u32 = 32;
const FLOOD_BYTES: u64 = 32 << 10;
/// One record in so many has bytes beside it.
const META_ONE_IN: u64 = 8;

/// A record as its writer meant it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// What stands beside the record.
    pub meta: Vec<u8>,
    /// The record.
    pub bytes: Vec<u8>,
}

/// Which append a record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landed {
    /// The append's number in the journal.
    pub append: u64,
    /// The record's place in it, from 0.
    pub part: u32,
    /// Its records.
    pub parts: u32,
}

impl Landed {
    /// The record of this place.
    #[must_use]
    pub fn payload(&self) -> Payload {
        let mut rng = Rng::new(self.append << 8 ^ u64::from(self.part));
        let len = match rng.below(LARGE_ONE_IN) {
            _ if self.parts >= FLOOD_PARTS => FLOOD_BYTES,
            0 => rng.below(LARGE_BYTES),
            _ => rng.below(SMALL_BYTES),
        };
        let meta = if rng.below(META_ONE_IN) == 0 { rng.draw().to_le_bytes().to_vec() } else { Vec::new() };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + len as usize + 8);
        bytes.extend_from_slice(&self.append.to_le_bytes());
        bytes.extend_from_slice(&self.part.to_le_bytes());
        bytes.extend_from_slice(&self.parts.to_le_bytes());
        bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
        while bytes.len() < HEAD_BYTES + len as usize {
            bytes.extend_from_slice(&rng.draw().to_le_bytes());
        }
        bytes.truncate(HEAD_BYTES + len as usize);
        Payload { meta, bytes }
    }

    /// Which record this is, if it is one of ours to the last byte.
    #[must_use]
    pub fn read(meta: &[u8], bytes: &[u8]) -> Option<Landed> {
        let append = u64::from_le_bytes(*bytes.first_chunk()?);
        let part = u32::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
        let parts = u32::from_le_bytes(*bytes.get(12..)?.first_chunk()?);
        let landed = Landed { append, part, parts };
        let meant = landed.payload();
        (part < parts && meant.meta == meta && meant.bytes == bytes).then_some(landed)
    }
}

/// The records of one append.
#[must_use]
pub fn batch(append: u64, parts: u32) -> Batch {
    let mut batch = Batch::new();
    for part in 0..parts {
        let payload = Landed { append, part, parts }.payload();
        if let Err(cause) = batch.push_with_meta(&payload.meta, &payload.bytes) {
            unreachable!("{parts} records of at most {LARGE_BYTES} bytes fit in any batch: {cause}");
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_tells_where_it_belongs_and_one_wrong_byte_is_seen() {
        for append in 0..500 {
            let landed = Landed { append, part: 1, parts: if append == 7 { FLOOD_PARTS } else { 3 } };
            let Payload { meta, bytes } = landed.payload();
            assert_eq!(Landed::read(&meta, &bytes), Some(landed));
            for at in 0..bytes.len().min(64) {
                let mut wrong = bytes.clone();
                wrong[at] ^= 4;
                assert_eq!(Landed::read(&meta, &wrong), None, "append {append}, byte {at}");
            }
            assert_eq!(Landed::read(&meta, &bytes[..bytes.len() - 1]), None, "shorter");
            assert_eq!(Landed::read(b"x", &bytes), None, "other bytes beside it");
        }
    }
}
