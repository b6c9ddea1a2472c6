//! Reads lengths, headers and bodies out of a stream as the chunks quinn has them, without joining what need not be joined.

use std::{future::Future, time::Duration};

use bytes::{Bytes, BytesMut};
use graven_frame::Body;
use quinn::{ReadError, RecvStream, VarInt};

use crate::protocol::chunks::Chunks;

/// Where the chunks come from: a stream, or memory where a decoder is tried.
pub(crate) trait ChunkSource {
    /// Puts the next chunks into `bufs` and says how many; `None` when there are no more.
    fn read(&mut self, bufs: &mut [Bytes]) -> impl Future<Output = Result<Option<usize>, ReadError>> + Send;
}

impl ChunkSource for RecvStream {
    async fn read(&mut self, bufs: &mut [Bytes]) -> Result<Option<usize>, ReadError> {
        self.read_chunks(bufs).await
    }
}

/// One ordered stream, read by one task: none of its futures may be dropped and called again.
pub(crate) struct ChunkReader<S = RecvStream> {
    stream: S,
    ready: Chunks,
}

impl ChunkReader {
    pub(super) fn refuse(&mut self, code: VarInt) {
        // A stream that is closed already needs no refusal.
        let _closed = self.stream.stop(code);
    }
}

impl<S: ChunkSource> ChunkReader<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, ready: Chunks::default() }
    }

    /// The next four bytes; `None` when the stream ended before the first of them.
    pub(crate) async fn next_u32(&mut self) -> Result<Option<u32>, ChunkError> {
        if self.ready.len() == 0 && !self.fetch().await? {
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
            let piece = self.ready.take_front(into.len() - at).unwrap_or_default();
            into[at..at + piece.len()].copy_from_slice(&piece);
            at += piece.len();
        }
        Ok(())
    }

    /// The next `len` bytes in one piece; for small things.
    pub(super) async fn bytes(&mut self, len: usize) -> Result<Bytes, ChunkError> {
        let mut joined = BytesMut::zeroed(len);
        self.copy(&mut joined).await?;
        Ok(joined.freeze())
    }

    /// The next `len` bytes, large pieces as they arrived, small ones copied together. The caller has bounded `len`.
    pub(super) async fn body(&mut self, len: usize) -> Result<Body, ChunkError> {
        self.wait_for(len).await?;
        let mut chunks = self.ready.take(len).unwrap_or_default();
        if len < JOIN_BELOW_BYTES && chunks.len() > 1 {
            let mut joined = BytesMut::with_capacity(len);
            chunks.iter().for_each(|chunk| joined.extend_from_slice(chunk));
            chunks = vec![joined.freeze()];
        }
        Ok(Body::from_chunks(chunks))
    }

    async fn wait_for(&mut self, len: usize) -> Result<(), ChunkError> {
        while self.ready.len() < len {
            let missing = len - self.ready.len();
            match tokio::time::timeout(MESSAGE_STALL, self.fetch()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Err(ChunkError::Ended { missing }),
                Ok(Err(cause)) => return Err(cause),
                Err(_) => return Err(ChunkError::Stalled { missing }),
            }
        }
        Ok(())
    }

    /// `false` when the stream has ended.
    async fn fetch(&mut self) -> Result<bool, ChunkError> {
        let mut bufs: [Bytes; FETCH_CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let Some(count) = self.stream.read(&mut bufs).await? else { return Ok(false) };
        bufs.into_iter().take(count).filter(|chunk| !chunk.is_empty()).for_each(|chunk| self.ready.push(chunk));
        Ok(true)
    }
}

/// Why a stream has no more of what was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("stream ended {missing} bytes before the end of a message")]
    Ended { missing: usize },
    #[error("a message stopped {missing} bytes before its end, for {} s", MESSAGE_STALL.as_secs())]
    Stalled { missing: usize },
}

/// A peer hands a whole message to its transport at once: so long without a byte of the rest, and it is better dialled anew. What
/// has arrived of the message would be held for as long.
const MESSAGE_STALL: Duration = Duration::from_secs(10);
/// Chunks taken from quinn under one lock; together at most a fraction of the stream's window.
const FETCH_CHUNKS: usize = 16;
/// A small body in pieces is joined: each piece costs more to carry than to copy.
const JOIN_BELOW_BYTES: usize = 4 << 10;
