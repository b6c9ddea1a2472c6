//! Snapshots between nodes: heads and chunks, whose bytes are opaque here.
//!
//! Chunks of one request follow each other on its stream without a question in between, so bandwidth times round trip is bounded by the
//! window alone; the next one is read from the disk while the one before is on its way. Whoever receives them checks each by its own
//! sum and goes on elsewhere, or later, with the one that is still missing.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use quinn::SendStream;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::client::{Blocks, BulkClient, BulkError};
use super::server::{Bulk, blocking, write};
use super::wire::{Request, SnapshotHead, Tag, block_head};
use super::{Refusal, SNAPSHOT_CHUNK_BYTES_MAX, SNAPSHOT_HEAD_BYTES_MAX, SNAPSHOTS_MAX};
use crate::wire;

/// Which snapshot is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotWanted {
    /// The named one with this id.
    Id(u64),
    /// The newest state of its own state machine, if it is at this offset or above.
    Own {
        /// The lowest offset that is of use.
        offset: u64,
    },
}

/// An open snapshot: it stays what it is until this is dropped, whatever becomes of its name.
pub trait SnapshotReader: Send + 'static {
    /// What it is, for whoever receives it; opaque here. At most [`SNAPSHOT_HEAD_BYTES_MAX`] bytes, different for each snapshot.
    fn head(&self) -> &[u8];

    /// How many chunks it has.
    fn chunks(&self) -> u64;

    /// The chunk `number`, which is below [`SnapshotReader::chunks`]: at most [`SNAPSHOT_CHUNK_BYTES_MAX`] bytes, and verified, since no
    /// wrong byte leaves a node.
    ///
    /// # Errors
    /// When it cannot be given.
    fn chunk(&mut self, number: u64) -> Result<Bytes, Refusal>;
}

/// What one has of a snapshot already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotResume {
    /// The head that it came with.
    pub head: Bytes,
    /// The first chunk that is missing.
    pub chunk: u64,
}

impl BulkClient {
    /// The heads of the snapshots that the node has.
    ///
    /// # Errors
    /// Any [`BulkError`].
    pub async fn snapshots(&self) -> Result<Vec<Bytes>, BulkError> {
        let mut blocks = self.ask(&Request::Snapshots).await?;
        let mut heads = Vec::new();
        while let Some((tag, head)) = blocks.next().await? {
            if tag != Tag::Listed || heads.len() == SNAPSHOTS_MAX {
                return Err(blocks.malformed("a list of snapshots that is none, or too long"));
            }
            heads.push(head);
        }
        Ok(heads)
    }

    /// Asks for a snapshot: for its head, and for up to `max_chunks` of its chunks. With `resume` they begin at the one that is missing
    /// if the node has the same snapshot; else at the first.
    ///
    /// # Errors
    /// As [`SnapshotStream::next`].
    pub async fn snapshot(
        &self,
        wanted: SnapshotWanted,
        resume: Option<SnapshotResume>,
        max_chunks: u64,
    ) -> Result<SnapshotStream, BulkError> {
        let (asked, chunk) = resume.map_or((Bytes::new(), 0), |resume| (resume.head, resume.chunk));
        let request = Request::Snapshot { wanted, head: asked.to_vec(), chunk, max_chunks };
        let mut blocks = self.ask(&request).await?;
        let Some((Tag::Snapshot, bytes)) = blocks.next().await? else {
            return Err(blocks.malformed("a snapshot without its head"));
        };
        let head = wire::decode::<HEAD_LIMIT, SnapshotHead>(&bytes);
        let head = head.map_err(|cause| blocks.malformed(&cause.to_string()))?;
        if head.chunk > head.chunks || (head.chunk != 0 && (head.chunk != chunk || head.head != asked)) {
            return Err(blocks.malformed("a snapshot that goes on where nothing was asked for"));
        }
        let end = head.chunks.min(head.chunk.saturating_add(max_chunks));
        Ok(SnapshotStream { blocks, head: head.head.into(), chunks: head.chunks, next: head.chunk, end })
    }
}

/// A snapshot on its way from one node.
#[derive(Debug)]
pub struct SnapshotStream {
    blocks: Blocks,
    head: Bytes,
    chunks: u64,
    next: u64,
    end: u64,
}

impl SnapshotStream {
    /// What it is.
    #[must_use]
    pub fn head(&self) -> &Bytes {
        &self.head
    }

    /// How many chunks it has.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// The number of the chunk that comes next.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.next
    }

    /// The next chunk and its number; `None` when all that were asked for are there. Its bytes are not checked here.
    ///
    /// # Errors
    /// Any [`BulkError`]; go on with [`BulkClient::snapshot`] at the first chunk that is missing.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Result<(u64, Bytes), BulkError>> {
        match self.blocks.next().await {
            Ok(Some((Tag::Chunk, bytes))) if self.next < self.end => {
                self.next += 1;
                Some(Ok((self.next - 1, bytes)))
            }
            Ok(Some((tag, _))) => Some(Err(self.blocks.malformed(&format!("{tag:?} inside a snapshot")))),
            Ok(None) if self.next < self.end => Some(Err(self.blocks.malformed("a snapshot that is cut short"))),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// From where on a snapshot is asked for.
pub(super) struct Asked {
    pub(super) head: Vec<u8>,
    pub(super) chunk: u64,
    pub(super) max_chunks: u64,
}

pub(super) async fn give_list(bulk: &Bulk, send: &mut SendStream) -> Result<Option<Refusal>, String> {
    let source = bulk.source.clone();
    let heads = match blocking(move || source.snapshots()).await? {
        Ok(heads) => heads,
        Err(refusal) => return Ok(Some(refusal)),
    };
    for head in heads.into_iter().take(SNAPSHOTS_MAX) {
        bulk.pace.pass(head.len()).await;
        write(send, Bytes::copy_from_slice(&block_head(Tag::Listed, head.len()))).await?;
        write(send, head).await?;
    }
    Ok(None)
}

/// Writes the head, and chunks until all that were asked for are given or one cannot be; then why.
pub(super) async fn give(
    bulk: &Bulk,
    send: &mut SendStream,
    wanted: SnapshotWanted,
    asked: Asked,
) -> Result<Option<Refusal>, String> {
    let source = bulk.source.clone();
    let reader = match blocking(move || source.snapshot(wanted)).await? {
        Ok(reader) => reader,
        Err(refusal) => return Ok(Some(refusal)),
    };
    let chunks = reader.chunks();
    let first = if reader.head() == asked.head && asked.chunk <= chunks { asked.chunk } else { 0 };
    let head = SnapshotHead { head: reader.head().to_vec(), chunks, chunk: first };
    let head = wire::encode::<HEAD_LIMIT>(&head).map_err(|cause| cause.to_string())?;
    let mut block = block_head(Tag::Snapshot, head.len()).to_vec();
    block.extend_from_slice(&head);
    write(send, block.into()).await?;
    let reader = Arc::new(Mutex::new(reader));
    let end = chunks.min(first.saturating_add(asked.max_chunks));
    let mut ahead = (first < end).then(|| read(&reader, first));
    for number in first..end {
        let Some(reading) = ahead.take() else { break };
        let chunk = match reading.await.map_err(|cause| cause.to_string())? {
            Ok(chunk) => chunk,
            Err(refusal) => return Ok(Some(refusal)),
        };
        ahead = (number + 1 < end).then(|| read(&reader, number + 1));
        bulk.pace.pass(chunk.len()).await;
        write(send, Bytes::copy_from_slice(&block_head(Tag::Chunk, chunk.len()))).await?;
        write(send, chunk).await?;
    }
    Ok(None)
}

/// Begins to read a chunk on a thread that may wait for a disk.
fn read(reader: &Arc<Mutex<Box<dyn SnapshotReader>>>, number: u64) -> JoinHandle<Result<Bytes, Refusal>> {
    let reader = reader.clone();
    tokio::task::spawn_blocking(move || {
        let chunk = reader.lock().unwrap_or_else(PoisonError::into_inner).chunk(number)?;
        match chunk.len() <= SNAPSHOT_CHUNK_BYTES_MAX {
            true => Ok(chunk),
            false => Err(Refusal::SnapshotDamaged { chunk: number }),
        }
    })
}

/// The head, its length and two numbers.
const HEAD_LIMIT: usize = SNAPSHOT_HEAD_BYTES_MAX + 32;
