//! Copying a whole log: from any node, going on at another one when that is lost.
//!
//! Everything is checked when it comes: sums, numbers, and that each frame continues the chain of the one before, also from one node to the
//! next. What the first frame continues only whoever reads the checkpoint can say.

use std::sync::Arc;

use bytes::Bytes;
use graven_frame::{Chain, Frame};
use tokio::time::Instant;

use super::error::RequestError;
use super::subscription::{ACCEPT_TIMEOUT, End, Reader};
use super::{Client, Inner};
use crate::protocol::backup::{BackupReply, BackupRequest, CHECKPOINT_BYTES_MAX};
use crate::protocol::chunks::body_for;
use crate::protocol::feed::ItemHead;
use crate::protocol::{ErrorCode, Failure, MAX_MESSAGE_BYTES, StreamKind};
use crate::wire;

pub use crate::protocol::backup::BackupHead;

/// A log as it comes in; see [`Client::backup`].
#[derive(Debug)]
pub struct BackupStream {
    inner: Arc<Inner>,
    node: Option<String>,
    head: BackupHead,
    checkpoint: Bytes,
    reader: Option<Reader>,
    /// The next entry, and what it continues.
    next: u64,
    prev: Option<Chain>,
    /// When something came last: from then on the timeout runs.
    progress: Instant,
    /// The node that failed last.
    avoid: Option<String>,
    /// What was wrong when the last stream was lost.
    trouble: Option<Failure>,
    notices: Vec<String>,
}

impl Client {
    /// Copies the log, control entries and what stands before its first entry included, up to what is committed when this is called: every
    /// append acknowledged before is in it. From `node`, or from any. Needs the role admin: it has everything in it, sessions too,
    /// and whoever can read it all could replay any of it.
    ///
    /// # Errors
    /// `unavailable` or `timeout` when no node gives it, or there is no leader; `forbidden`; `usage` for an unknown node.
    pub async fn backup(&self, node: Option<&str>) -> Result<BackupStream, RequestError> {
        let empty = BackupHead { cluster: 0, first: 0, last: 0, first_offset: 0, next_offset: 0, checkpoint_bytes: 0 };
        let mut stream = BackupStream {
            inner: self.inner.clone(),
            node: node.map(str::to_owned),
            head: empty,
            checkpoint: Bytes::new(),
            reader: None,
            next: 0,
            prev: None,
            progress: Instant::now(),
            avoid: None,
            trouble: None,
            notices: Vec::new(),
        };
        stream.connect(BackupRequest::Begin).await?;
        stream.next = stream.head.first;
        stream.prev = (stream.head.first == 1).then_some(Chain::START);
        Ok(stream)
    }
}

impl BackupStream {
    /// What it has.
    #[must_use]
    pub fn head(&self) -> &BackupHead {
        &self.head
    }

    /// The checkpoint before the first entry, as a node stores it. Empty when the first entry is entry 1.
    #[must_use]
    pub fn checkpoint(&self) -> &Bytes {
        &self.checkpoint
    }

    /// The next frame; `None` when all were given.
    ///
    /// # Errors
    /// `unavailable` when no node gave anything within the timeout; `trimmed` when the log was let go of meanwhile; `damaged` when
    /// what came is not what a log has. Nothing more comes then.
    ///
    /// # Cancel safety
    /// None: a future that is dropped may have taken bytes off the stream.
    pub async fn next(&mut self) -> Option<Result<Frame, RequestError>> {
        loop {
            if self.next > self.head.last {
                return None;
            }
            let Some(reader) = &mut self.reader else {
                // Streams that are accepted and bring nothing must not go on for ever.
                let spent = self.progress.elapsed() > self.inner.network.timeout;
                if let Some(failure) = self.trouble.take_if(|_| spent) {
                    return Some(Err(self.end(failure)));
                }
                let request = BackupRequest::Resume { first: self.next, last: self.head.last };
                match self.connect(request).await {
                    Ok(()) => continue,
                    Err(failure) => return Some(Err(self.end(failure))),
                }
            };
            match frame(reader, self.next, self.prev).await {
                Ok(frame) => {
                    self.progress = Instant::now();
                    self.next += 1;
                    self.prev = Some(frame.header().chain);
                    return Some(Ok(frame));
                }
                Err(End::Lost(sentence)) => self.lost(Failure::refused(ErrorCode::Unavailable, sentence)).await,
                Err(End::Damaged(failure)) if self.node.is_none() => self.lost(failure).await,
                Err(End::Damaged(failure) | End::Failed(failure) | End::Behind(failure)) => {
                    return Some(Err(self.end(failure)));
                }
                Err(End::Done) => self.lost(Failure::refused(ErrorCode::Unavailable, "it ended early")).await,
            }
        }
    }

    /// Sentences for people since the last call: lost nodes.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    async fn lost(&mut self, failure: Failure) {
        let Some(reader) = self.reader.take() else { return };
        self.avoid = Some(reader.link.name.clone());
        if self.notices.len() < NOTICES_MAX {
            self.notices.push(format!("{}; going on at entry {}", reader.link.lost(&failure.message), self.next));
        }
        self.trouble = Some(failure);
        self.inner.network.pause().await;
    }

    fn end(&mut self, failure: Failure) -> RequestError {
        self.next = u64::MAX;
        failure.into()
    }

    /// Gets a stream that was accepted, within the timeout.
    async fn connect(&mut self, request: BackupRequest) -> Result<(), Failure> {
        let network = self.inner.network.clone();
        let deadline = self.progress + network.timeout;
        let mut trouble = None;
        loop {
            match tokio::time::timeout_at(deadline, self.try_connect(request)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(End::Failed(failure) | End::Behind(failure))) => return Err(failure),
                Ok(Err(End::Lost(sentence))) => trouble = Some(sentence),
                Ok(Err(End::Damaged(failure))) => trouble = Some(failure.message),
                Ok(Err(End::Done)) | Err(_) => {}
            }
            if let Some(failure) = network.verdict() {
                return Err(failure);
            }
            if Instant::now() >= deadline {
                let trouble = trouble.unwrap_or_else(|| network.trouble());
                let waited = network.timeout.as_secs_f32();
                let message = format!("no node gave its log within {waited} s: {trouble}");
                return Err(Failure::refused(ErrorCode::Unavailable, message));
            }
            network.pause().await;
        }
    }

    async fn try_connect(&mut self, request: BackupRequest) -> Result<(), End> {
        let network = self.inner.network.clone();
        let link = match &self.node {
            Some(node) => network.link_to(node).await,
            None => network.any_link(self.avoid.as_deref()).await,
        };
        let link = link.map_err(|failure| match failure.code {
            ErrorCode::Unavailable => End::Lost(failure.message),
            // Other nodes may be of another mind; `verdict` speaks when none is.
            ErrorCode::Unauthenticated if self.node.is_none() => End::Lost(failure.message),
            _ => End::Failed(failure),
        })?;
        self.avoid = Some(link.name.clone());
        let opened = async {
            let mut reader = Reader::begin(link, StreamKind::Backup, &request).await?;
            let head = reply(&mut reader).await?;
            Ok((reader, head))
        };
        let opened = tokio::time::timeout(ACCEPT_TIMEOUT.max(network.timeout), opened).await;
        let (mut reader, head) =
            opened.unwrap_or_else(|_| Err(End::Lost("the request was not answered".to_owned())))?;
        match request {
            BackupRequest::Begin => {
                if head.first == 0 || head.first > head.last || head.checkpoint_bytes > CHECKPOINT_BYTES_MAX {
                    return Err(reader_says_nonsense(&reader));
                }
                // Bounded just above.
                self.checkpoint = reader.bytes(head.checkpoint_bytes as usize).await?;
                self.head = head;
            }
            BackupRequest::Resume { first, last } => {
                if (head.first, head.last, head.cluster, head.checkpoint_bytes) != (first, last, self.head.cluster, 0) {
                    return Err(reader_says_nonsense(&reader));
                }
            }
        }
        self.reader = Some(reader);
        Ok(())
    }
}

fn reader_says_nonsense(reader: &Reader) -> End {
    End::Lost(format!("node {} announced something else than was asked for", reader.link.name))
}

async fn reply(reader: &mut Reader) -> Result<BackupHead, End> {
    let malformed = |cause: String| End::Lost(format!("a malformed answer: {cause}"));
    let len = reader.bytes(4).await?;
    let len = <[u8; 4]>::try_from(&len[..]).map_or(u32::MAX, u32::from_le_bytes) as usize;
    if len > MAX_MESSAGE_BYTES {
        return Err(malformed(format!("{len} bytes")));
    }
    let bytes = reader.bytes(len).await?;
    match wire::decode::<MAX_MESSAGE_BYTES, BackupReply>(&bytes) {
        Ok(BackupReply::Accepted(head)) => Ok(head),
        Ok(BackupReply::Refused(failure)) => Err(End::of(failure)),
        Err(cause) => Err(malformed(cause.to_string())),
    }
}

/// The next frame on a stream: entry `next`, which continues `prev`.
async fn frame(reader: &mut Reader, next: u64, prev: Option<Chain>) -> Result<Frame, End> {
    let len = match reader.head_in_time().await? {
        ItemHead::Frame { len } => len,
        ItemHead::Failed { len } => return Err(reader.failure(len).await),
        _ => return Err(End::Lost("it ended before the last entry".to_owned())),
    };
    let (head, body) = reader.frame(len).await?;
    // Whoever gives it may be damaged, another one is not: a wrong frame is that node's trouble, not the copy's.
    let wrong = |what: String| {
        let message = format!("node {} gave a damaged entry {next}: {what}", reader.link.name);
        End::Damaged(Failure::refused(ErrorCode::Damaged, message))
    };
    let header = graven_frame::decode_header(&head).map_err(|cause| wrong(cause.to_string()))?;
    if header.frame_len() != len || header.index != next {
        return Err(wrong(format!("it says that it is entry {} of {} bytes", header.index, header.frame_len())));
    }
    let frame =
        Frame::from_parts(&head, body_for(body, header.count as usize)).map_err(|cause| wrong(cause.to_string()))?;
    frame.verify(prev).and_then(|()| frame.check_groups()).map_err(|cause| wrong(cause.to_string()))?;
    Ok(frame)
}

/// More notices than anybody reads.
const NOTICES_MAX: usize = 16;
