//! Appends on the wire: laid out by hand, so that record bytes are neither encoded nor joined.
//!
//! ```text
//! u32 length of the head | head (bincode AppendHead) | u32 number of frames | frames: 96-byte header, body
//! ```
//!
//! The sender hands quinn the frames' own `Bytes`; the receiver cuts frames out of the chunks quinn hands it. Every length is compared
//! with a constant of this file before anything is allocated or awaited for it.

use bytes::{Bytes, BytesMut};
use graven_frame::{Frame, FrameError, HEADER_BYTES, MAX_BODY_BYTES, decode_header};
use graven_raft::AppendHead;

use super::{
    SendError,
    chunks::{ChunkError, ChunkReader, ChunkSource},
};
use crate::{transport::WRITE_CHUNK_BYTES, wire};

/// Encodes what goes before the frames and checks that the receiver will take all of it. Answers the bytes and the whole message's length.
pub(crate) fn encode_head(head: &AppendHead, frames: &[Frame]) -> Result<(Bytes, usize), SendError> {
    let body = wire::encode::<APPEND_HEAD_BYTES_MAX>(head)?;
    let too_many = SendError::TooLarge { size: frames.len(), limit: APPEND_FRAMES_MAX };
    if frames.len() > APPEND_FRAMES_MAX {
        return Err(too_many);
    }
    let count = u32::try_from(frames.len()).map_err(|_| too_many)?;
    let size: usize = frames.iter().map(Frame::encoded_len).sum();
    if size > APPEND_BYTES_MAX {
        return Err(SendError::TooLarge { size, limit: APPEND_BYTES_MAX });
    }
    let mut bytes = BytesMut::with_capacity(body.len() + 8);
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes.extend_from_slice(&count.to_le_bytes());
    let total = bytes.len() + size;
    Ok((bytes.freeze(), total))
}

/// Collects the pieces of messages for quinn: large pieces as they are, small ones copied together.
///
/// quinn searches its pieces linearly for every packet it sends, so a few hundred bytes here and there cost more as pieces of their own
/// than as copies (`docs/decisions/transport.md`).
#[derive(Default)]
pub(super) struct Gather {
    pieces: Vec<Bytes>,
    small: BytesMut,
}

impl Gather {
    pub(super) fn append(&mut self, head: &Bytes, frames: &[Frame]) {
        self.push(head);
        for frame in frames {
            self.push(frame.head());
            for chunk in frame.body().chunks() {
                self.push(chunk);
            }
        }
    }

    fn push(&mut self, bytes: &Bytes) {
        if bytes.len() < COPY_BELOW_BYTES {
            if self.small.len() + bytes.len() > WRITE_CHUNK_BYTES {
                self.flush();
            }
            if self.small.capacity() == 0 {
                self.small.reserve(WRITE_CHUNK_BYTES);
            }
            self.small.extend_from_slice(bytes);
            return;
        }
        self.flush();
        let mut rest = bytes.clone();
        while rest.len() > WRITE_CHUNK_BYTES {
            self.pieces.push(rest.split_to(WRITE_CHUNK_BYTES));
        }
        self.pieces.push(rest);
    }

    fn flush(&mut self) {
        if !self.small.is_empty() {
            // A few small appends must not keep a whole chunk alive each until they are acknowledged.
            let piece = self.small.split();
            let wasteful = piece.len() * 2 < WRITE_CHUNK_BYTES;
            self.pieces.push(if wasteful { Bytes::copy_from_slice(&piece) } else { piece.freeze() });
        }
    }

    pub(super) fn take(&mut self) -> Vec<Bytes> {
        self.flush();
        std::mem::take(&mut self.pieces)
    }
}

/// Reads the next append. `None` when the stream ended between two of them.
pub(crate) async fn read_append<S: ChunkSource>(
    reader: &mut ChunkReader<S>,
) -> Result<Option<(AppendHead, Vec<Frame>, usize)>, AppendReadError> {
    let Some(head_len) = reader.next_u32().await? else { return Ok(None) };
    let head_len = bounded(head_len, APPEND_HEAD_BYTES_MAX, "append head")?;
    let head = reader.bytes(head_len).await?;
    let head: AppendHead = wire::decode::<APPEND_HEAD_BYTES_MAX, _>(&head)?;
    let count = bounded(reader.u32().await?, APPEND_FRAMES_MAX, "number of frames")?;
    // Not allocated by `count`: it is only a promise until the frames are there.
    let mut frames = Vec::new();
    let mut total = 0_usize;
    for _ in 0..count {
        let mut header = [0_u8; HEADER_BYTES];
        reader.copy(&mut header).await?;
        let body_len = bounded(decode_header(&header)?.body_len, MAX_BODY_BYTES, "frame body")?;
        total = total.saturating_add(HEADER_BYTES).saturating_add(body_len);
        if total > APPEND_BYTES_MAX {
            return Err(AppendReadError::TooLarge { what: "append", size: total, limit: APPEND_BYTES_MAX });
        }
        let frame = Frame::from_parts(&header, reader.body(body_len).await?)?;
        frame.verify(None)?;
        frames.push(frame);
    }
    Ok(Some((head, frames, total + head_len + 8)))
}

fn bounded(seen: u32, limit: usize, what: &'static str) -> Result<usize, AppendReadError> {
    let size = usize::try_from(seen).unwrap_or(usize::MAX);
    if size > limit {
        return Err(AppendReadError::TooLarge { what, size, limit });
    }
    Ok(size)
}

/// Why an append could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppendReadError {
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error("append head: {0}")]
    Head(#[from] wire::WireError),
    #[error("{what} of {size}, the limit is {limit}")]
    TooLarge { what: &'static str, size: usize, limit: usize },
    #[error("frame: {0}")]
    Frame(#[from] FrameError),
}

/// Seven integers of at most ten bytes, and room for later versions.
pub const APPEND_HEAD_BYTES_MAX: usize = 256;
/// Frames of one append: a leader that batches sends a handful, one that catches a follower up sends small old ones by the hundred.
pub const APPEND_FRAMES_MAX: usize = 4096;
/// Frames of one append together: the largest single frame, or a batch of a megabyte with one frame more than fits.
pub const APPEND_BYTES_MAX: usize = MAX_BODY_BYTES + (1 << 20);
/// Pieces below this are copied together before they are handed to quinn: measured, 1,420-byte pieces cost 10 to 20 % less CPU as copies, and
/// 6,431-byte pieces 13 % more (`docs/decisions/transport.md`).
const COPY_BELOW_BYTES: usize = 4 << 10;
