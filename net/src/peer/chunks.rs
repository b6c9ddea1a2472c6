//! Reads lengths, headers and bodies out of a stream as the chunks quinn has them, without joining what need not be joined.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use graven_frame::Body;
use quinn::{ReadError, RecvStream, VarInt};

use super::append::body_of;

/// One ordered stream, read by one task: none of its futures may be dropped and called again.
pub(super) struct ChunkReader {
    stream: RecvStream,
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
}

impl ChunkReader {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, ready: VecDeque::new(), ready_bytes: 0 }
    }

    /// The next four bytes; `None` when the stream ended before the first of them.
    pub(super) async fn next_u32(&mut self) -> Result<Option<u32>, ChunkError> {
        if self.ready_bytes == 0 && !self.fetch().await? {
            return Ok(None);
        }
        self.u32().await.map(Some)
    }

    pub(super) async fn u32(&mut self) -> Result<u32, ChunkError> {
        let mut bytes = [0; 4];
        self.copy(&mut bytes).await?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Fills `into`.
    pub(super) async fn copy(&mut self, into: &mut [u8]) -> Result<(), ChunkError> {
        self.wait_for(into.len()).await?;
        let mut at = 0;
        while at < into.len() {
            let piece = self.take_front(into.len() - at);
            into[at..at + piece.len()].copy_from_slice(&piece);
            at += piece.len();
        }
        Ok(())
    }

    /// The next `len` bytes in one piece; for small things.
    pub(super) async fn bytes(&mut self, len: usize) -> Result<Bytes, ChunkError> {
        self.wait_for(len).await?;
        if self.ready.front().is_some_and(|front| front.len() >= len) {
            return Ok(self.take_front(len));
        }
        let mut joined = BytesMut::zeroed(len);
        self.copy(&mut joined).await?;
        Ok(joined.freeze())
    }

    /// The next `len` bytes in the chunks they arrived in. The caller has bounded `len`.
    pub(super) async fn body(&mut self, len: usize) -> Result<Body, ChunkError> {
        let mut chunks = Vec::new();
        let mut missing = len;
        while missing > 0 {
            if self.ready_bytes == 0 && !self.fetch().await? {
                return Err(ChunkError::Ended { missing });
            }
            let piece = self.take_front(missing);
            missing -= piece.len();
            chunks.push(piece);
        }
        Ok(body_of(chunks, len))
    }

    pub(super) fn refuse(&mut self, code: VarInt) {
        // A stream that is closed already needs no refusal.
        let _closed = self.stream.stop(code);
    }

    async fn wait_for(&mut self, len: usize) -> Result<(), ChunkError> {
        while self.ready_bytes < len {
            if !self.fetch().await? {
                return Err(ChunkError::Ended { missing: len - self.ready_bytes });
            }
        }
        Ok(())
    }

    /// At most `len` bytes of the first chunk.
    fn take_front(&mut self, len: usize) -> Bytes {
        let Some(front) = self.ready.front_mut() else { return Bytes::new() };
        let piece = if front.len() <= len { self.ready.pop_front().unwrap_or_default() } else { front.split_to(len) };
        self.ready_bytes -= piece.len();
        piece
    }

    /// `false` when the stream has ended.
    async fn fetch(&mut self) -> Result<bool, ChunkError> {
        let mut bufs: [Bytes; FETCH_CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let Some(count) = self.stream.read_chunks(&mut bufs).await? else { return Ok(false) };
        for chunk in bufs.into_iter().take(count).filter(|chunk| !chunk.is_empty()) {
            self.ready_bytes += chunk.len();
            self.ready.push_back(chunk);
        }
        Ok(true)
    }
}

/// Why a stream has no more of what was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChunkError {
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("stream ended {missing} bytes before the end of a message")]
    Ended { missing: usize },
}

/// Chunks taken from quinn under one lock; together at most a fraction of the stream's window.
const FETCH_CHUNKS: usize = 16;
