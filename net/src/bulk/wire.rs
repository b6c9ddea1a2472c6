//! The bytes of a fetch: hello, request, and the blocks of an answer.

use quinn::{RecvStream, SendStream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{META_BYTES_MAX, Refusal, SNAPSHOT_CHUNK_BYTES_MAX, SNAPSHOT_HEAD_BYTES_MAX, SnapshotWanted, Wanted};
use crate::peer;
use crate::wire;

/// Who asks whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) cluster: u128,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) incarnation: u128,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    Welcome(Welcome),
    Refused(peer::Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub(super) version: u16,
    pub(super) node: u64,
    pub(super) incarnation: u128,
}

/// What is asked on a stream. New requests are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Frames, up to about so many bytes, at least one.
    Frames { wanted: Wanted, max_bytes: u64 },
    /// The newest checkpoint; from `at` on if it is still the one that says `meta` of itself, else from its beginning.
    Checkpoint { meta: Vec<u8>, at: u64 },
    /// The heads of all snapshots.
    Snapshots,
    /// A snapshot, up to so many chunks; from `chunk` on if it is the one with this head, else from its beginning.
    Snapshot { wanted: SnapshotWanted, head: Vec<u8>, chunk: u64, max_chunks: u64 },
}

/// What precedes the chunks of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotHead {
    pub(super) head: Vec<u8>,
    pub(super) chunks: u64,
    /// The number of the first chunk that follows.
    pub(super) chunk: u64,
}

/// What precedes the bytes of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CheckpointHead {
    pub(super) meta: Vec<u8>,
    pub(super) size: u64,
    /// The byte at which what follows begins.
    pub(super) at: u64,
}

/// What a block of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    /// One frame as it is on disk.
    Frame = 1,
    /// All that was asked for, or as much as was wanted, is given. No bytes; nothing follows.
    End = 2,
    /// No more is given, and why; nothing follows.
    Refused = 3,
    /// A [`CheckpointHead`].
    Checkpoint = 4,
    /// Bytes of the checkpoint.
    Bytes = 5,
    /// The head of a snapshot, in a list.
    Listed = 6,
    /// A [`SnapshotHead`].
    Snapshot = 7,
    /// A chunk of the snapshot.
    Chunk = 8,
}

impl Tag {
    pub(super) fn of(number: u8) -> Option<Tag> {
        Tag::ALL.into_iter().find(|tag| *tag as u8 == number)
    }

    const ALL: [Tag; 8] =
        [Tag::Frame, Tag::End, Tag::Refused, Tag::Checkpoint, Tag::Bytes, Tag::Listed, Tag::Snapshot, Tag::Chunk];

    /// The most bytes a block of this kind has.
    pub(super) fn limit(self) -> usize {
        match self {
            Tag::Frame => graven_frame::HEADER_BYTES + graven_frame::MAX_BODY_BYTES,
            Tag::End => 0,
            Tag::Refused => REFUSAL_BYTES_MAX,
            Tag::Checkpoint => META_BYTES_MAX + 32,
            Tag::Bytes => super::BATCH_BYTES,
            Tag::Listed => SNAPSHOT_HEAD_BYTES_MAX,
            Tag::Snapshot => SNAPSHOT_HEAD_BYTES_MAX + 32,
            Tag::Chunk => SNAPSHOT_CHUNK_BYTES_MAX,
        }
    }
}

/// The head of a block: tag and length.
pub(super) fn block_head(tag: Tag, len: usize) -> [u8; BLOCK_HEAD_BYTES] {
    let len = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    [tag as u8, len[0], len[1], len[2], len[3]]
}

/// Reads the head of a block; a sentence when it is none.
pub(super) fn decode_block_head(bytes: [u8; BLOCK_HEAD_BYTES]) -> Result<(Tag, usize), String> {
    let [tag, len @ ..] = bytes;
    let tag = Tag::of(tag).ok_or_else(|| format!("a block of the unknown kind {tag}"))?;
    let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
    if len > tag.limit() {
        return Err(format!("a block of {len} bytes, the limit of its kind ({tag:?}) is {}", tag.limit()));
    }
    Ok((tag, len))
}

/// The block that ends an answer with a refusal.
pub(super) fn refusal_block(refusal: &Refusal) -> Vec<u8> {
    let refusal = match refusal {
        // Its words are ours; whatever they quote is cut to what the block holds.
        Refusal::Malformed(words) => Refusal::Malformed(words.chars().take(WORDS_MAX).collect()),
        other => other.clone(),
    };
    let body = wire::encode::<REFUSAL_BYTES_MAX>(&refusal).unwrap_or_default();
    let mut block = block_head(Tag::Refused, body.len()).to_vec();
    block.extend_from_slice(&body);
    block
}

/// Writes the magic and the versions, then the hello. They stand before what later versions may change.
pub(super) async fn write_hello(stream: &mut SendStream, hello: &Hello) -> Result<(), String> {
    let body = wire::encode::<HELLO_BYTES_MAX>(hello).map_err(|cause| cause.to_string())?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION_MIN.to_le_bytes());
    bytes.extend_from_slice(&VERSION_MAX.to_le_bytes());
    put_prefixed(&mut bytes, &body);
    finish_with(stream, &bytes).await
}

/// Reads a hello: what the other side says, or what to refuse it with.
pub(super) async fn read_hello(stream: &mut RecvStream) -> Result<Result<Hello, peer::Refusal>, String> {
    let mut fixed = [0; HELLO_FIXED_BYTES];
    stream.read_exact(&mut fixed).await.map_err(|cause| cause.to_string())?;
    let [magic @ .., a, b, c, d] = fixed;
    if magic != *MAGIC {
        return Ok(Err(peer::Refusal::Malformed("it does not begin as a node's fetch".to_owned())));
    }
    let (seen_min, seen_max) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    if seen_min > VERSION_MAX || seen_max < VERSION_MIN {
        let (known_min, known_max) = (VERSION_MIN, VERSION_MAX);
        return Ok(Err(peer::Refusal::Version { seen_min, seen_max, known_min, known_max }));
    }
    Ok(read_prefixed::<HELLO_BYTES_MAX, Hello>(stream).await.map_err(peer::Refusal::Malformed))
}

/// Writes one message with its length, and ends the stream.
pub(super) async fn write_message<const LIMIT: usize>(
    stream: &mut SendStream,
    message: &impl Serialize,
) -> Result<(), String> {
    let body = wire::encode::<LIMIT>(message).map_err(|cause| cause.to_string())?;
    let mut bytes = Vec::with_capacity(4 + body.len());
    put_prefixed(&mut bytes, &body);
    finish_with(stream, &bytes).await
}

/// Reads one message with its length; a sentence when there is none.
pub(super) async fn read_prefixed<const LIMIT: usize, T: DeserializeOwned>(
    stream: &mut RecvStream,
) -> Result<T, String> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await.map_err(|cause| cause.to_string())?;
    let len = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if len > LIMIT {
        return Err(format!("it has {len} bytes, the limit is {LIMIT}"));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.map_err(|cause| cause.to_string())?;
    wire::decode::<LIMIT, T>(&body).map_err(|cause| cause.to_string())
}

async fn finish_with(stream: &mut SendStream, bytes: &[u8]) -> Result<(), String> {
    stream.write_all(bytes).await.map_err(|cause| cause.to_string())?;
    stream.finish().map_err(|cause| cause.to_string())
}

fn put_prefixed(bytes: &mut Vec<u8>, body: &[u8]) {
    // `body` was encoded under a limit far below.
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(body);
}

const MAGIC: &[u8; 8] = b"GRVBULK\0";
const HELLO_FIXED_BYTES: usize = 12;
pub(super) const BLOCK_HEAD_BYTES: usize = 5;
/// A refusal names two nodes or a sentence.
pub(super) const HELLO_BYTES_MAX: usize = 2048;
/// The meta of a checkpoint that is resumed, and a few numbers.
pub(super) const REQUEST_BYTES_MAX: usize = META_BYTES_MAX + 64;
const REFUSAL_BYTES_MAX: usize = 1024;
const WORDS_MAX: usize = 200;
/// Versions of this protocol that this build speaks.
pub(super) const VERSION_MIN: u16 = 1;
pub(super) const VERSION_MAX: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_longer_than_their_kind_allows_are_refused_before_anything_is_read() {
        assert_eq!(decode_block_head(block_head(Tag::Frame, 96)), Ok((Tag::Frame, 96)));
        for tag in Tag::ALL {
            assert!(decode_block_head(block_head(tag, tag.limit())).is_ok());
            assert!(decode_block_head(block_head(tag, tag.limit() + 1)).is_err());
        }
        assert!(decode_block_head([9, 0, 0, 0, 0]).is_err());
        assert!(decode_block_head([1, 255, 255, 255, 255]).is_err());
    }

    #[test]
    fn a_refusal_fits_its_block_whatever_it_quotes() {
        let block = refusal_block(&Refusal::Malformed("\u{1F5FF}".repeat(5000)));
        assert!(block.len() > BLOCK_HEAD_BYTES && block.len() < REFUSAL_BYTES_MAX);
    }
}
