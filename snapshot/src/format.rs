//! A checkpoint's bytes.

use graven_frame::Chain;
use graven_wal::LogBase;
use xxhash_rust::xxh3::xxh3_64;

/// The version this code writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// The largest state: a session table of full size takes about 12 MiB.
pub const STATE_BYTES_MAX: usize = 64 << 20;
pub(crate) const HEADER_BYTES: usize = 128;
const FOOTER_BYTES: usize = 32;
const CHUNK_BYTES: usize = 1 << 20;
const CHUNK_HEAD: usize = 8;
const MAGIC: &[u8; 8] = b"GRVNCHKP";
const DONE: &[u8; 8] = b"GRVNDONE";

/// A place in the log, and the state there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The cluster whose log it is.
    pub cluster: u128,
    /// The last entry it covers.
    pub base: LogBase,
    /// The state after that entry, at most [`STATE_BYTES_MAX`] bytes.
    pub state: Vec<u8>,
}

/// What is wrong with bytes that should be a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// Fewer bytes than it must have.
    #[error("it is cut off: {need} bytes needed, {have} there")]
    Short {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// The file does not begin like a checkpoint.
    #[error("it does not begin like a checkpoint")]
    Magic,
    /// A checksum does not hold.
    #[error("the checksum of its {part} does not hold")]
    Sum {
        /// Which part.
        part: &'static str,
    },
    /// Lengths contradict each other or pass a bound.
    #[error("its {part} has an impossible length")]
    Length {
        /// Which part.
        part: &'static str,
    },
    /// Newer software wrote it.
    #[error(
        "it has format version {version} with features {features:#x}, this version reads {FORMAT_VERSION} and none; upgrade first"
    )]
    Newer {
        /// Its version.
        version: u32,
        /// Its required features.
        features: u32,
    },
}

/// The most bytes that a checkpoint's file can have.
#[must_use]
pub fn file_bytes_max() -> usize {
    file_bytes(STATE_BYTES_MAX)
}

fn file_bytes(state: usize) -> usize {
    HEADER_BYTES + state + state.div_ceil(CHUNK_BYTES) * CHUNK_HEAD + FOOTER_BYTES
}

impl Checkpoint {
    /// The bytes of its file.
    ///
    /// # Panics
    /// When the state is larger than [`STATE_BYTES_MAX`]: whoever makes one keeps its parts bounded.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.state.len() <= STATE_BYTES_MAX, "a state of {} bytes", self.state.len());
        let total = file_bytes(self.state.len());
        let mut bytes = Vec::with_capacity(total);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(self.cluster.to_le_bytes());
        bytes.extend(self.base.index.to_le_bytes());
        bytes.extend(self.base.term.to_le_bytes());
        bytes.extend(u128::from(self.base.chain.0).to_le_bytes());
        bytes.extend(self.base.next_offset.to_le_bytes());
        bytes.extend(self.base.timestamp_ms.to_le_bytes());
        bytes.extend((self.state.len() as u64).to_le_bytes());
        bytes.resize(HEADER_BYTES - 4, 0);
        push_crc(&mut bytes, 0);
        for chunk in self.state.chunks(CHUNK_BYTES) {
            bytes.extend((chunk.len() as u32).to_le_bytes());
            bytes.extend(crc32fast::hash(chunk).to_le_bytes());
            bytes.extend(chunk);
        }
        let digest = xxh3_64(&bytes);
        let footer_at = bytes.len();
        bytes.extend(DONE);
        bytes.extend((total as u64).to_le_bytes());
        bytes.extend(digest.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        push_crc(&mut bytes, footer_at);
        bytes
    }

    /// Reads what [`Checkpoint::encode`] wrote; every byte is checked.
    ///
    /// # Errors
    /// [`Flaw`].
    pub fn decode(bytes: &[u8]) -> Result<Checkpoint, Flaw> {
        let head = Head::decode(bytes)?;
        let total = file_bytes(head.state_bytes);
        if bytes.len() < total {
            return Err(Flaw::Short { need: total, have: bytes.len() });
        }
        if bytes.len() > total {
            return Err(Flaw::Length { part: "file" });
        }
        let (content, footer) = bytes.split_at(total - FOOTER_BYTES);
        let mut field = Fields(footer);
        let (done, len, digest) = (field.take::<8>()?, field.u64()?, field.u64()?);
        if done != *DONE || !crc_holds(footer) {
            return Err(Flaw::Sum { part: "footer" });
        }
        if len != total as u64 {
            return Err(Flaw::Length { part: "footer" });
        }
        if digest != xxh3_64(content) {
            return Err(Flaw::Sum { part: "content" });
        }
        let mut state = Vec::with_capacity(head.state_bytes);
        let mut rest = Fields(&content[HEADER_BYTES..]);
        while state.len() < head.state_bytes {
            let (len, crc) = (rest.u32()? as usize, rest.u32()?);
            if len != CHUNK_BYTES.min(head.state_bytes - state.len()) {
                return Err(Flaw::Length { part: "chunk" });
            }
            let chunk = rest.bytes(len)?;
            if crc32fast::hash(chunk) != crc {
                return Err(Flaw::Sum { part: "chunk" });
            }
            state.extend(chunk);
        }
        Ok(Checkpoint { cluster: head.cluster, base: head.base, state })
    }
}

/// A header.
pub(crate) struct Head {
    pub(crate) cluster: u128,
    pub(crate) base: LogBase,
    pub(crate) state_bytes: usize,
}

impl Head {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Head, Flaw> {
        let have = bytes.len();
        let header = bytes.get(..HEADER_BYTES).ok_or(Flaw::Short { need: HEADER_BYTES, have })?;
        let mut field = Fields(header);
        if field.take::<8>()? != *MAGIC {
            return Err(Flaw::Magic);
        }
        if !crc_holds(header) {
            return Err(Flaw::Sum { part: "header" });
        }
        let (version, features) = (field.u32()?, field.u32()?);
        if version != FORMAT_VERSION || features != 0 {
            return Err(Flaw::Newer { version, features });
        }
        let cluster = u128::from_le_bytes(field.take()?);
        let (index, term, chain, _) = (field.u64()?, field.u64()?, Chain(field.u64()?), field.u64()?);
        let (next_offset, timestamp_ms, state_bytes) = (field.u64()?, field.u64()?, field.u64()?);
        let state_bytes = usize::try_from(state_bytes).ok().filter(|bytes| *bytes <= STATE_BYTES_MAX);
        let state_bytes = state_bytes.ok_or(Flaw::Length { part: "state" })?;
        Ok(Head { cluster, base: LogBase { index, term, chain, next_offset, timestamp_ms }, state_bytes })
    }
}

fn push_crc(bytes: &mut Vec<u8>, from: usize) {
    let crc = crc32fast::hash(&bytes[from..]);
    bytes.extend(crc.to_le_bytes());
}

/// Whether the last four bytes are the sum of those before.
fn crc_holds(block: &[u8]) -> bool {
    block.split_last_chunk::<4>().is_some_and(|(before, crc)| crc32fast::hash(before) == u32::from_le_bytes(*crc))
}

/// Numbers one behind the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Flaw> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Flaw::Short { need: len, have: self.0.len() })?;
        self.0 = rest;
        Ok(taken)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let mut taken = [0; N];
        taken.copy_from_slice(self.bytes(N)?);
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, Flaw> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Flaw> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(state: usize) -> Checkpoint {
        let base = LogBase { index: 9, term: 3, chain: Chain(77), next_offset: 1234, timestamp_ms: 5 };
        Checkpoint { cluster: 0xfeed, base, state: (0..state).map(|at| (at % 251) as u8).collect() }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for state in [0, 1, 1000, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let whole = checkpoint(state);
            assert_eq!(Checkpoint::decode(&whole.encode()), Ok(whole), "{state} bytes");
        }
    }

    #[test]
    fn no_changed_bit_and_no_cut_goes_unnoticed() {
        let bytes = checkpoint(300).encode();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(Checkpoint::decode(&changed).is_err(), "bit {bit} of byte {at}");
            }
            assert!(Checkpoint::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(Checkpoint::decode(&longer), Err(Flaw::Length { part: "file" }));
    }

    #[test]
    fn a_newer_version_and_a_huge_length_are_refused_by_name() {
        let patched = |at: usize, with: &[u8]| {
            let mut bytes = checkpoint(10).encode();
            bytes[at..at + with.len()].copy_from_slice(with);
            let crc = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
            bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
            Checkpoint::decode(&bytes)
        };
        assert_eq!(patched(8, &[2]), Err(Flaw::Newer { version: 2, features: 0 }));
        assert_eq!(patched(12, &[4]), Err(Flaw::Newer { version: 1, features: 4 }));
        assert_eq!(patched(80, &[0xff; 8]), Err(Flaw::Length { part: "state" }));
    }
}
