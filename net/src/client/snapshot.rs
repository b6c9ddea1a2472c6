//! Snapshots of applications: putting one, getting one, and the reader of one.
//!
//! A body is put in one go: what was read from its source cannot be read again, so it is sent only when the leader has said that it
//! wants it. It is got from any node, chunk by chunk; a lost node costs at most the chunk that was on its way. Each goes over a connection of its
//! own.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::dial::Link;
use super::{Client, Inner, RequestError, unexpected};
use crate::planted::{Bug, is_planted};
use crate::protocol::snapshot::{
    BLOCK_BYTES, BlockHead, BodyDigest, CHUNK_BYTES, END_BYTES, GetAnswer, GetRequest, PutAnswer, PutRequest,
    SnapshotEntry, SnapshotInfo, chunk_head, decode_end, end_block, message_block,
};
use crate::protocol::{ErrorCode, Failure, MAX_MESSAGE_BYTES, Request, Response, StreamKind};
use crate::transport::WRITE_CHUNK_BYTES;
use crate::wire;

impl Client {
    /// Puts a snapshot of an application: its state after all records below `offset`, read from `body` to its end.
    ///
    /// Returns when a majority of the nodes holds it, durably. From then on `name` means this one, and the log before `offset` is not needed
    /// for it any more: the next record is the one at `offset`. `name` has 1 to 64 letters, digits, `.`, `_` and `-`, and begins with a letter,
    /// a digit or `_`. Nothing is read from `body` before the leader has said that it takes it. Needs the role append.
    ///
    /// # Errors
    /// `out_of_range`: `offset` is not committed yet. `trimmed`: it lies before the first record. `conflict`: the name has a snapshot of a
    /// later offset, another one of that name is being put, there are too many names, or a later one overtook it. `disk_full`: no room on the
    /// leader's disk. `timeout`: `body` gave nothing for 30 s. `usage`: the name is none, or reading `body` failed. `unavailable`: no
    /// leader, or it was lost in the middle. Unless [`RequestError::outcome`] is *unknown*, nothing of it is kept; when it is unknown, look at
    /// [`Client::snapshots`] or put it again, which is always safe.
    ///
    /// # Cancel safety
    /// Dropped before the end of `body` was sent, nothing is kept. Later, it may become committed all the same. `body` may have been read in part.
    pub async fn put_snapshot(
        &self,
        name: &str,
        offset: u64,
        body: impl AsyncRead + Send + Unpin,
    ) -> Result<SnapshotInfo, RequestError> {
        self.put_snapshot_sized(name, offset, None, body).await
    }

    /// [`Client::put_snapshot`] with the number of bytes in `body`, so that a disk without room for them is told before any is sent.
    ///
    /// # Errors
    /// As [`Client::put_snapshot`]; `usage` when `body` has another number of bytes.
    ///
    /// # Cancel safety
    /// As [`Client::put_snapshot`].
    pub async fn put_snapshot_sized(
        &self,
        name: &str,
        offset: u64,
        bytes: Option<u64>,
        body: impl AsyncRead + Send + Unpin,
    ) -> Result<SnapshotInfo, RequestError> {
        let request = PutRequest { name: name.to_owned(), offset, bytes };
        let accepted = Upload::accepted(&self.inner, &request).await?;
        Ok(accepted.send(body, bytes, self.inner.network.timeout).await?)
    }

    /// Gets the committed snapshot of this name: what it is, and a reader of its body. Asked of any node; the reader goes on at another one
    /// when the node is lost or its copy is damaged.
    ///
    /// # Errors
    /// `out_of_range`: no snapshot has that name. `unavailable`: no node that holds it was reached within the timeout.
    ///
    /// # Cancel safety
    /// Dropped, nothing is left.
    pub async fn get_snapshot(&self, name: &str) -> Result<(SnapshotInfo, SnapshotReader), RequestError> {
        let opened = Download::open(&self.inner, name).await?;
        Ok((opened.info.clone(), opened.read()))
    }

    /// The snapshots there are, by name: those that are committed, and those on their way to it. A name with both is listed twice.
    ///
    /// # Errors
    /// `unavailable` or `timeout` when no node answers.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotEntry>, RequestError> {
        match self.inner.ask(None, &Request::Snapshots).await? {
            Response::Snapshots(list) => Ok(list),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Ends a name: its snapshot goes from all nodes, and no longer holds trims up. Needs the role admin.
    ///
    /// # Errors
    /// `out_of_range`: no snapshot has that name, perhaps because an earlier try of this call was carried out. `unavailable` or `timeout` when
    /// there is no leader; `forbidden`.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting, not what was asked for.
    pub async fn drop_snapshot(&self, name: &str) -> Result<(), RequestError> {
        match self.inner.network.ask_leader(&Request::DropSnapshot { name: name.to_owned() }).await? {
            Response::SnapshotDropped => Ok(()),
            other => Err(unexpected(&other).into()),
        }
    }
}

/// What comes from one node.
struct Incoming {
    link: Arc<Link>,
    recv: quinn::RecvStream,
}

async fn open(link: Arc<Link>, kind: StreamKind, message: &[u8]) -> Result<(quinn::SendStream, Incoming), String> {
    if link.feature_level < SNAPSHOTS_LEVEL {
        return Err(format!("node {} runs software without snapshots; upgrade it", link.name));
    }
    let lost = |cause: &dyn fmt::Display| link.lost(&cause.to_string());
    let (mut send, recv) = link.connection.open_bi().await.map_err(|cause| lost(&cause))?;
    send.write_all(&[kind as u8]).await.map_err(|cause| lost(&cause))?;
    send.write_all(message).await.map_err(|cause| lost(&cause))?;
    Ok((send, Incoming { link, recv }))
}

impl Incoming {
    async fn next(&mut self) -> Result<(BlockHead, Vec<u8>), String> {
        let lost = |cause: &dyn fmt::Display| self.link.lost(&cause.to_string());
        let mut head = [0; BLOCK_BYTES];
        self.recv.read_exact(&mut head).await.map_err(|cause| lost(&cause))?;
        let head = BlockHead::decode(head).map_err(|cause| lost(&cause))?;
        let mut bytes = vec![0; head.len()];
        self.recv.read_exact(&mut bytes).await.map_err(|cause| lost(&cause))?;
        match head.holds(&bytes) {
            true => Ok((head, bytes)),
            false => Err(lost(&"a block that is not what its checksum says")),
        }
    }

    async fn message<T: DeserializeOwned>(&mut self) -> Result<T, String> {
        match self.next().await? {
            (BlockHead::Message { .. }, bytes) => self.decode(&bytes),
            _ => Err(self.link.lost("no message where one was due")),
        }
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, String> {
        wire::decode::<MAX_MESSAGE_BYTES, T>(bytes).map_err(|cause| self.link.lost(&cause.to_string()))
    }
}

fn encode(message: &impl Serialize) -> Result<Vec<u8>, Failure> {
    wire::encode::<MAX_MESSAGE_BYTES>(message)
        .map_err(|cause| Failure::refused(ErrorCode::Usage, format!("the request cannot be sent: {cause}")))
}

fn unavailable(sentence: impl Into<String>) -> Failure {
    Failure::refused(ErrorCode::Unavailable, sentence)
}

/// A snapshot that the leader takes.
struct Upload {
    send: quinn::SendStream,
    incoming: Incoming,
}

impl Upload {
    /// Asks whoever leads, until it says yes or no.
    async fn accepted(inner: &Arc<Inner>, request: &PutRequest) -> Result<Upload, Failure> {
        let network = &inner.network;
        let message = message_block(&encode(request)?);
        let deadline = Instant::now() + network.timeout;
        let mut passing = None;
        loop {
            if let Some(failure) = network.leader_verdict() {
                return Err(failure);
            }
            let attempt = async {
                let leader = network.view().borrow().leader.clone();
                let link = match leader {
                    Some(leader) => network.link_to(&leader).await.map_err(|failure| failure.message)?,
                    None => {
                        network.any_link(None).await.map_err(|failure| failure.message)?;
                        return Err("no leader is known".to_owned());
                    }
                };
                let link = network.apart(&link).await.map_err(|failure| failure.message)?;
                let (send, mut incoming) = open(link.clone(), StreamKind::PutSnapshot, &message).await?;
                let answer = tokio::select! {
                    answer = incoming.message::<PutAnswer>() => answer?,
                    () = network.superseded_for_a_while(&link) => return Err("another node leads now".to_owned()),
                };
                Ok((Upload { send, incoming }, answer))
            };
            match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Ok((upload, PutAnswer::Go))) => return Ok(upload),
                Ok(Ok((_, PutAnswer::NotLeader(view)))) => network.merge_view(&view),
                Ok(Ok((_, PutAnswer::Failed(failure)))) if failure.code == ErrorCode::Unavailable => {
                    passing = Some(failure);
                }
                Ok(Ok((_, PutAnswer::Failed(failure)))) => return Err(failure),
                Ok(Ok((_, PutAnswer::Done(_)))) => {
                    passing = Some(unavailable("the leader answered before the snapshot"))
                }
                Ok(Err(sentence)) => passing = Some(unavailable(sentence)),
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(passing.unwrap_or_else(|| network.gave_up(false)));
            }
            network.pause().await;
        }
    }

    /// Sends the body and waits until it is committed.
    async fn send(
        self,
        mut body: impl AsyncRead + Send + Unpin,
        bytes: Option<u64>,
        patience: Duration,
    ) -> Result<SnapshotInfo, Failure> {
        let Upload { mut send, mut incoming } = self;
        let link = incoming.link.clone();
        // It never asks for anything while the body is on its way: an answer then is the end of it.
        let mut answer = Box::pin(async move { incoming.message::<PutAnswer>().await });
        let mut digest = BodyDigest::default();
        loop {
            let chunk = tokio::select! {
                biased;
                early = &mut answer => return early_end(early, &link),
                chunk = next_chunk(&mut body) => chunk,
            };
            let chunk = chunk.map_err(|cause| {
                let message = format!("the snapshot's source cannot be read: {cause}; nothing was kept");
                Failure::refused(ErrorCode::Usage, message)
            })?;
            digest.update(&chunk);
            let (total, value) = digest.value();
            let is_end = chunk.is_empty();
            if bytes.is_some_and(|bytes| total > bytes || (is_end && total != bytes)) {
                let message = format!("the snapshot has {total} bytes or more, {} were announced", bytes.unwrap_or(0));
                return Err(Failure::refused(ErrorCode::Usage, message));
            }
            let value = value ^ u64::from(is_planted(Bug::DigestWrong));
            let head = if is_end { end_block(total, value) } else { chunk_head(&chunk) };
            let write = async {
                send.write_chunk(head).await?;
                if is_end { Ok(()) } else { write_pieces(&mut send, chunk).await }
            };
            // A last answer may wait behind a stream that the node has stopped reading: it says why.
            let written = tokio::select! {
                biased;
                early = &mut answer => return early_end(early, &link),
                written = tokio::time::timeout(patience, write) => written,
            };
            match written {
                Ok(Ok(())) if is_end => break,
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    let early = tokio::time::timeout(LAST_WORD, &mut answer).await;
                    let silent = || Err(link.lost("it took nothing more of the snapshot"));
                    return early_end(early.unwrap_or_else(|_| silent()), &link);
                }
            }
        }
        // Finished, or the node has it all and answered: the answer tells.
        let _ = send.finish();
        match answer.await {
            Ok(PutAnswer::Done(info)) => Ok(info),
            Ok(PutAnswer::Failed(failure)) => Err(failure),
            Ok(PutAnswer::NotLeader(_)) => {
                Err(unavailable(format!("node {} led no longer when the snapshot had come; put it again", link.name)))
            }
            Ok(PutAnswer::Go) => Err(Failure::unknown(ErrorCode::Internal, "the node gave an answer of another kind")),
            Err(lost) => Err(Failure::unknown(
                ErrorCode::Unavailable,
                format!(
                    "{lost}; whether the snapshot is taken shows in `graven snapshot list`, and putting it again is safe"
                ),
            )),
        }
    }
}

/// What an answer means that comes before the end of the body was sent.
fn early_end(answer: Result<PutAnswer, String>, link: &Link) -> Result<SnapshotInfo, Failure> {
    match answer {
        Ok(PutAnswer::Failed(failure)) => Err(failure),
        Ok(PutAnswer::NotLeader(_)) => Err(unavailable(format!("node {} leads no longer; put it again", link.name))),
        Ok(PutAnswer::Go | PutAnswer::Done(_)) => {
            Err(Failure::unknown(ErrorCode::Internal, "the node gave an answer of another kind"))
        }
        Err(lost) => Err(unavailable(format!("{lost}; nothing of the snapshot was kept, put it again"))),
    }
}

/// The next chunk of a source: full unless it is the last one, empty at the end.
async fn next_chunk(body: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    while chunk.len() < CHUNK_BYTES {
        let mut room = (&mut *body).take((CHUNK_BYTES - chunk.len()) as u64);
        if room.read_buf(&mut chunk).await? == 0 {
            break;
        }
    }
    Ok(chunk.into())
}

/// quinn keeps a piece whole until all of it is acknowledged.
async fn write_pieces(send: &mut quinn::SendStream, mut bytes: Bytes) -> Result<(), quinn::WriteError> {
    while !bytes.is_empty() {
        send.write_chunk(bytes.split_to(bytes.len().min(WRITE_CHUNK_BYTES))).await?;
    }
    Ok(())
}

/// A snapshot that a node is giving, from some chunk on.
pub(super) struct Download {
    inner: Arc<Inner>,
    pub(super) info: SnapshotInfo,
    incoming: Option<Incoming>,
    /// The next chunk.
    chunk: u64,
    digest: BodyDigest,
    /// The node that failed last.
    avoid: Vec<String>,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").field("info", &self.info).field("chunk", &self.chunk).finish_non_exhaustive()
    }
}

/// What the next block of a download is.
enum Piece {
    Chunk(Bytes),
    End,
}

impl Download {
    /// Opens the snapshot that this name means, on any node.
    pub(super) async fn open(inner: &Arc<Inner>, name: &str) -> Result<Download, Failure> {
        let request = GetRequest { name: name.to_owned(), id: None, chunk: 0 };
        let (info, incoming) =
            connect(inner, &request, &mut Vec::new(), Instant::now() + inner.network.timeout).await?;
        Ok(Download {
            inner: inner.clone(),
            info,
            incoming: Some(incoming),
            chunk: 0,
            digest: BodyDigest::default(),
            avoid: Vec::new(),
        })
    }

    /// The same from its beginning, not opened yet.
    fn anew(inner: Arc<Inner>, info: SnapshotInfo) -> Download {
        Download { inner, info, incoming: None, chunk: 0, digest: BodyDigest::default(), avoid: Vec::new() }
    }

    pub(super) fn read(self) -> SnapshotReader {
        let (chunks, received) = mpsc::channel(CHUNKS_AHEAD);
        let task = tokio::spawn(self.run(chunks)).abort_handle();
        SnapshotReader { chunks: received, chunk: Bytes::new(), ended: false, task }
    }

    async fn run(mut self, chunks: mpsc::Sender<Result<Bytes, Failure>>) {
        loop {
            // Room first: what nobody reads is not fetched, and a node that gave up on a slow reader is asked again only then.
            let Ok(place) = chunks.reserve().await else { return };
            match self.next().await {
                Ok(Piece::Chunk(bytes)) => place.send(Ok(bytes)),
                Ok(Piece::End) => {
                    // What tells the end from a task that died.
                    place.send(Ok(Bytes::new()));
                    return;
                }
                Err(failure) => {
                    place.send(Err(failure));
                    return;
                }
            }
        }
    }

    /// The next chunk, from this node or another one.
    async fn next(&mut self) -> Result<Piece, Failure> {
        let deadline = Instant::now() + self.inner.network.timeout;
        loop {
            let mut incoming = match self.incoming.take() {
                Some(incoming) => incoming,
                None => {
                    let (name, id) = (self.info.name.clone(), Some(self.info.id));
                    let request = GetRequest { name, id, chunk: self.chunk };
                    let (info, incoming) = connect(&self.inner, &request, &mut self.avoid, deadline).await?;
                    if (info.id, info.bytes, info.digest) != (self.info.id, self.info.bytes, self.info.digest) {
                        let message = format!("node {} gives another snapshot than was asked for", incoming.link.name);
                        return Err(Failure::refused(ErrorCode::Internal, message));
                    }
                    incoming
                }
            };
            let silent = incoming.link.lost("silent in the middle of a snapshot");
            let block = tokio::time::timeout(SILENCE, incoming.next()).await.unwrap_or(Err(silent));
            let lost = match block {
                Ok((BlockHead::Chunk { .. }, bytes)) => {
                    self.digest.update(&bytes);
                    self.chunk += 1;
                    self.avoid.clear();
                    self.incoming = Some(incoming);
                    return Ok(Piece::Chunk(bytes.into()));
                }
                Ok((BlockHead::End { .. }, bytes)) => return self.end(&bytes),
                Ok((BlockHead::Message { .. }, bytes)) => match incoming.decode::<GetAnswer>(&bytes) {
                    Ok(GetAnswer::Failed(failure)) if goes_elsewhere(&failure) => failure.message,
                    Ok(GetAnswer::Failed(failure)) => return Err(failure),
                    Ok(GetAnswer::Begin(_)) => incoming.link.lost("a second beginning"),
                    Err(lost) => lost,
                },
                Err(lost) => lost,
            };
            tracing::debug!("{lost}; going on with chunk {}", self.chunk);
            self.avoid.push(incoming.link.name.clone());
            if Instant::now() >= deadline {
                return Err(unavailable(lost));
            }
        }
    }

    fn end(&self, bytes: &[u8]) -> Result<Piece, Failure> {
        let told = bytes.first_chunk::<END_BYTES>().copied().map(decode_end);
        let (info, have) = (&self.info, self.digest.value());
        if told == Some(have) && have == (info.bytes, info.digest) {
            return Ok(Piece::End);
        }
        let message =
            format!("the snapshot {} came with {} bytes that are not what was put; get it again", info.name, have.0);
        Err(Failure::refused(ErrorCode::Damaged, message))
    }
}

/// Whether another node may do what this one cannot.
fn goes_elsewhere(failure: &Failure) -> bool {
    matches!(
        failure.code,
        ErrorCode::Unavailable | ErrorCode::Timeout | ErrorCode::Damaged | ErrorCode::Unauthenticated
    )
}

/// A node that gives what is asked for. Nodes that do not are put into `avoid`.
async fn connect(
    inner: &Arc<Inner>,
    request: &GetRequest,
    avoid: &mut Vec<String>,
    deadline: Instant,
) -> Result<(SnapshotInfo, Incoming), Failure> {
    let network = &inner.network;
    let message = encode(request)?;
    let mut passing = None;
    loop {
        let mut asked = None;
        let attempt = async {
            let link = network.any_link_but(|name| avoid.iter().any(|other| other == name)).await?;
            asked = Some(link.name.clone());
            let link = network.apart(&link).await?;
            let (mut send, mut incoming) = open(link, StreamKind::GetSnapshot, &message).await.map_err(unavailable)?;
            // Stopped already: the answer says why.
            let _ = send.finish();
            match tokio::time::timeout(ACCEPT_TIMEOUT, incoming.message::<GetAnswer>()).await {
                Ok(Ok(GetAnswer::Begin(info))) => Ok((info, incoming)),
                Ok(Ok(GetAnswer::Failed(failure))) => Err(failure),
                Ok(Err(lost)) => Err(unavailable(lost)),
                Err(_) => Err(unavailable(incoming.link.lost("no answer"))),
            }
        };
        match tokio::time::timeout_at(deadline, attempt).await {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(failure)) if goes_elsewhere(&failure) => passing = Some(failure),
            Ok(Err(failure)) => return Err(failure),
            Err(_) => {}
        }
        if let Some(name) = asked {
            avoid.push(name);
            if network.names().iter().all(|name| avoid.contains(name)) {
                // Everybody was asked: the first ones may be able to by now.
                avoid.clear();
            }
        }
        if let Some(failure) = network.verdict() {
            return Err(failure);
        }
        if Instant::now() >= deadline {
            return Err(passing.unwrap_or_else(|| network.gave_up(false)));
        }
        network.pause().await;
    }
}

/// The body of a snapshot on its way: an [`AsyncRead`].
///
/// It holds a few chunks of at most 1 MiB; what is not read is not fetched. It goes on at another node when one is lost. An error carries the
/// [`Failure`]: `conflict` when the snapshot was dropped or replaced while it was being read, `damaged` when what came is not what was put, and
/// `unavailable`. The end is reported only when all bytes came and have the right digest. Dropped, it stops.
#[derive(Debug)]
pub struct SnapshotReader {
    chunks: mpsc::Receiver<Result<Bytes, Failure>>,
    /// What is left of the chunk that is being read.
    chunk: Bytes,
    ended: bool,
    task: AbortHandle,
}

impl AsyncRead for SnapshotReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.chunk.is_empty() && !self.ended {
            match ready!(self.chunks.poll_recv(cx)) {
                Some(Ok(chunk)) => {
                    self.ended = chunk.is_empty();
                    self.chunk = chunk;
                }
                Some(Err(failure)) => return Poll::Ready(Err(io_error(failure))),
                None => return Poll::Ready(Err(io_error(unavailable("the snapshot is not read any further")))),
            }
        }
        let some = self.chunk.len().min(buf.remaining());
        buf.put_slice(&self.chunk[..some]);
        self.chunk.advance(some);
        Poll::Ready(Ok(()))
    }
}

impl Drop for SnapshotReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn io_error(failure: Failure) -> io::Error {
    let kind = match failure.code {
        ErrorCode::Damaged => io::ErrorKind::InvalidData,
        ErrorCode::Conflict | ErrorCode::OutOfRange => io::ErrorKind::NotFound,
        ErrorCode::Timeout => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, failure)
}

/// A snapshot in a subscription: the state after all records below [`SnapshotItem::offset`]. It takes the place of whatever state there was;
/// the next record is the one at that offset. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SnapshotItem {
    /// Its name.
    pub name: String,
    /// The first record that it does not cover.
    pub offset: u64,
    /// All that is known of it.
    pub info: SnapshotInfo,
    inner: Arc<Inner>,
    opened: Arc<Mutex<Option<Download>>>,
}

impl SnapshotItem {
    pub(super) fn new(download: Download) -> SnapshotItem {
        let (info, inner) = (download.info.clone(), download.inner.clone());
        let opened = Arc::new(Mutex::new(Some(download)));
        SnapshotItem { name: info.name.clone(), offset: info.offset, info, inner, opened }
    }

    /// Its body, from the beginning. It need not be read; records come all the same. The first reader has the snapshot open: a newer one that
    /// takes its place does not disturb it while its node lives. Must be called on a tokio runtime.
    #[must_use]
    pub fn reader(&self) -> SnapshotReader {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).take();
        opened.unwrap_or_else(|| Download::anew(self.inner.clone(), self.info.clone())).read()
    }
}

/// The level from which on nodes know what a snapshot is.
const SNAPSHOTS_LEVEL: u32 = 2;
/// Chunks received ahead of the reader.
const CHUNKS_AHEAD: usize = 1;
/// How long a node may take to open a snapshot: it makes sure which one is the newest first.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
/// A node that gives no chunk for so long is left: its disk hangs, or the way to it.
const SILENCE: Duration = Duration::from_secs(10);
/// How long is waited for the reason when a node takes no more of a snapshot.
const LAST_WORD: Duration = Duration::from_secs(1);
