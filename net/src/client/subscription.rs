//! Following the log: nothing twice, nothing skipped, whatever happens to nodes and connections.
//!
//! A task per subscription reads frames, checks them, and fills a channel bounded in bytes; when it is full the stream is not
//! read, QUIC's flow control stops the node, and nothing grows anywhere. When the connection ends the task goes on at the next
//! offset, on any node. Invariants, kept by [`Cursor`]:
//!
//! - what is delivered is exactly `[from, until)`, in order, except ranges for which a [`Item::Trimmed`] was delivered;
//! - frames of one stream continue each other; a gap, an overlap or a wrong CRC ends the subscription with an error.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use graven_frame::{Frame, HEADER_BYTES, Kind};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::dial::Link;
use super::snapshot::{Download, SnapshotItem};
use super::{Inner, StreamError};
use crate::planted::{Bug, is_planted};
use crate::protocol::budget::{Budget, Charge};
use crate::protocol::chunks::{Chunks, body_for};
use crate::protocol::feed::{ITEM_BYTES, ItemHead, Start, SubscribeRequest};
use crate::protocol::{ErrorCode, Failure, MAX_MESSAGE_BYTES, StreamKind};
use crate::wire;

/// What a subscription gives.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Item {
    /// Records with consecutive offsets, continuing the last ones.
    Records(Records),
    /// Records from `from` to before `to` are gone; the next record is `to`.
    Trimmed {
        /// First offset missing.
        from: u64,
        /// First offset there.
        to: u64,
    },
    /// The snapshot of [`Start::Snapshot`]: the state after all records below its offset, in place of all that was given before. First, and
    /// again when the reader was so slow that records it had not got were trimmed behind a newer snapshot. The next record is at its offset.
    Snapshot(SnapshotItem),
    /// Nothing new for a while: everything below this offset was given.
    Progress {
        /// Where the subscription stands.
        next_offset: u64,
    },
    /// Everything committed when the node made this item was given.
    CaughtUp {
        /// Where the subscription stands.
        next_offset: u64,
    },
}

/// Records that arrived together. Cheap to clone: the bytes are shared.
#[derive(Debug, Clone)]
pub struct Records {
    frame: Frame,
    from: u64,
    to: u64,
}

impl Records {
    /// The records of `frame` from offset `from` on; `None` when it has none there.
    ///
    /// # Errors
    /// When its groups do not decode.
    pub fn of_frame(frame: Frame, from: u64) -> Result<Option<Records>, graven_frame::FrameError> {
        frame.check_groups()?;
        let (from, to) = (from.max(frame.header().base_offset), frame.next_offset());
        Ok((from < to).then_some(Records { frame, from, to }))
    }

    /// The records in order.
    #[must_use]
    pub fn iter(&self) -> RecordsIter<'_> {
        RecordsIter { records: self.frame.records(), from: self.from, to: self.to }
    }

    /// Number of records, at least one.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "there is always a record")]
    pub fn len(&self) -> usize {
        // A frame has at most u32::MAX records.
        (self.to - self.from) as usize
    }

    /// Offset of the first record.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.from
    }

    /// Offset of the last record.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.to - 1
    }

    /// The term in which they were committed.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.frame.header().term
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = Record;
    type IntoIter = RecordsIter<'a>;

    fn into_iter(self) -> RecordsIter<'a> {
        self.iter()
    }
}

/// Iterator over [`Records`].
#[derive(Debug)]
pub struct RecordsIter<'a> {
    records: graven_frame::Records<'a>,
    from: u64,
    to: u64,
}

impl Iterator for RecordsIter<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        loop {
            // The frame's groups were checked before it was delivered, so that no error is left here.
            let record = self.records.next()?.ok()?;
            if record.offset >= self.to {
                return None;
            }
            if record.offset >= self.from {
                let (offset, timestamp) = (record.offset, record.timestamp_ms);
                return Some(Record { offset, timestamp, meta: record.meta, payload: record.payload });
            }
        }
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its position, dense from 0.
    pub offset: u64,
    /// When the leader took it: milliseconds since 1970, never decreasing.
    pub timestamp: u64,
    /// What its writer put beside it, usually nothing.
    pub meta: Bytes,
    /// The record.
    pub payload: Bytes,
}

/// How to follow the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscribeOptions {
    /// Where to start.
    pub start: Start,
    /// Only from this node; else from any, and from another one when it fails.
    pub node: Option<String>,
    /// Stop before this offset.
    pub until: Option<u64>,
    /// Where records were trimmed, give [`Item::Trimmed`] and go on; else that is an error.
    pub skip_trimmed: bool,
    /// Bytes received ahead of the reader.
    pub window_bytes: usize,
}

impl SubscribeOptions {
    /// From `start`, for ever, on any node.
    #[must_use]
    pub fn new(start: Start) -> SubscribeOptions {
        SubscribeOptions { start, node: None, until: None, skip_trimmed: false, window_bytes: 4 << 20 }
    }
}

/// Records as they are committed. A [`Stream`], also without one: [`Subscription::next`].
///
/// Ends with `None` when `until` is reached, and after an error.
#[derive(Debug)]
pub struct Subscription {
    items: mpsc::Receiver<(Delivery, Charge)>,
    notices: Option<mpsc::Receiver<String>>,
    from: u64,
    task: AbortHandle,
    /// Keeps the client's connections.
    _inner: Arc<Inner>,
}

type Delivery = Result<Item, StreamError>;

impl Subscription {
    /// The next item.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Item, StreamError>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The next item if one is there already.
    pub fn try_next(&mut self) -> Option<Result<Item, StreamError>> {
        self.items.try_recv().ok().map(|(item, _)| item)
    }

    /// The offset at which it started.
    #[must_use]
    pub fn from(&self) -> u64 {
        self.from
    }

    /// Sentences for people since the last call: lost nodes and where it went on. Bounded; old ones win.
    pub fn take_notices(&mut self) -> Vec<String> {
        let Some(notices) = &mut self.notices else { return Vec::new() };
        std::iter::from_fn(|| notices.try_recv().ok()).collect()
    }

    /// The same as they come, for a task of its own. `None` when taken before.
    pub fn notices(&mut self) -> Option<mpsc::Receiver<String>> {
        self.notices.take()
    }
}

impl Stream for Subscription {
    type Item = Result<Item, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // The charge is dropped here: the item is the user's from now on, and the next one may come in.
        Poll::Ready(ready!(self.items.poll_recv(cx)).map(|(item, _)| item))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens a subscription: returns when a node has accepted it.
pub(super) async fn open(inner: Arc<Inner>, options: SubscribeOptions) -> Result<Subscription, Failure> {
    let mut follower = Follower::new(inner.clone(), options);
    let snapshot = follower.snapshot().await?;
    let reader = follower.connect().await?;
    let from = follower.cursor.next.unwrap_or_default();
    let (items, received) = mpsc::channel(ITEMS);
    let (notices, noticed) = mpsc::channel(NOTICES);
    let out = Out { items, notices, budget: Budget::new(follower.options.window_bytes) };
    // A subscription that is dropped ends its task, and with it the task's hold on the client.
    let task = tokio::spawn(follower.run(snapshot, reader, out)).abort_handle();
    Ok(Subscription { items: received, notices: Some(noticed), from, task, _inner: inner })
}

/// The task's way to its user.
struct Out {
    items: mpsc::Sender<(Delivery, Charge)>,
    notices: mpsc::Sender<String>,
    budget: Arc<Budget>,
}

impl Out {
    /// Waits for room; `false` when the user has gone.
    async fn give(&self, item: Delivery, bytes: usize) -> bool {
        let charge = self.budget.charge(bytes).await;
        self.items.send((item, charge)).await.is_ok()
    }
}

/// Why a stream ended.
pub(super) enum End {
    /// All was delivered, or the user has gone.
    Done,
    /// Go on elsewhere, or here on a new connection.
    Lost(String),
    /// The node's own log is damaged where the reader stands: go on at one whose log is whole there.
    Damaged(Failure),
    /// The next record is trimmed, and a snapshot stands for it.
    Behind(Failure),
    /// There is no going on.
    Failed(Failure),
}

impl End {
    /// What a node's failure means for the stream.
    pub(super) fn of(failure: Failure) -> End {
        match failure.code {
            // This node cannot for now; another one may.
            ErrorCode::Unavailable | ErrorCode::Timeout => End::Lost(failure.message),
            ErrorCode::Damaged => End::Damaged(failure),
            _ => End::Failed(failure),
        }
    }
}

struct Follower {
    inner: Arc<Inner>,
    options: SubscribeOptions,
    cursor: Cursor,
    /// The node that failed last.
    avoid: Option<String>,
    /// When the last item came, or a stream that gave items was lost: from then on the timeout runs.
    progress: Instant,
    /// A node has accepted the subscription before.
    begun: bool,
    /// Nodes whose logs are damaged where the reader stands.
    damaged: BTreeSet<String>,
}

impl Follower {
    fn new(inner: Arc<Inner>, options: SubscribeOptions) -> Follower {
        let next = match options.start {
            Start::Offset(offset) => Some(offset),
            _ => None,
        };
        let cursor = Cursor { next, until: options.until, stream: None };
        Follower {
            inner,
            options,
            cursor,
            avoid: None,
            progress: Instant::now(),
            begun: false,
            damaged: BTreeSet::new(),
        }
    }

    /// Opens the snapshot with which the subscription begins, if it does with one: the records from its offset on are what comes next.
    async fn snapshot(&mut self) -> Result<Option<SnapshotItem>, Failure> {
        let Start::Snapshot(name) = &self.options.start else { return Ok(None) };
        let download = Download::open(&self.inner, name).await?;
        let offset = download.info.offset + u64::from(is_planted(Bug::SeamOffByOne));
        self.cursor.next = Some(offset);
        // It is committed: a node that has not come so far waits for it.
        self.begun = true;
        Ok(Some(SnapshotItem::new(download)))
    }

    /// Gets a snapshot behind which the log goes on: the next record of the one before was trimmed.
    async fn newer_snapshot(&mut self, mut cause: Failure) -> Result<SnapshotItem, Failure> {
        let Start::Snapshot(name) = self.options.start.clone() else { return Err(cause) };
        let deadline = Instant::now() + self.inner.network.timeout;
        while Instant::now() < deadline {
            match Download::open(&self.inner, &name).await {
                Ok(download) if Some(download.info.offset) > self.cursor.next => {
                    self.cursor.next = Some(download.info.offset);
                    self.cursor.stream = None;
                    return Ok(SnapshotItem::new(download));
                }
                // Of a node that does not know the newest one yet.
                Ok(_) => {}
                Err(failure) => cause = failure,
            }
            self.inner.network.pause().await;
        }
        Err(cause)
    }

    async fn run(mut self, mut snapshot: Option<SnapshotItem>, mut reader: Reader, out: Out) {
        loop {
            if let Some(snapshot) = snapshot.take()
                && !out.give(Ok(Item::Snapshot(snapshot)), ITEM_COST_BYTES).await
            {
                return;
            }
            let (link, opened) = (reader.link.clone(), Instant::now());
            let lost = match self.read(reader, &out).await {
                End::Done => return,
                End::Failed(failure) => {
                    out.give(Err(failure.into()), ITEM_COST_BYTES).await;
                    return;
                }
                End::Lost(sentence) => sentence,
                End::Behind(failure) => match self.newer_snapshot(failure).await {
                    Ok(newer) => {
                        let sentence =
                            format!("records before the newer snapshot at offset {} are trimmed", newer.offset);
                        snapshot = Some(newer);
                        sentence
                    }
                    Err(failure) => {
                        out.give(Err(failure.into()), ITEM_COST_BYTES).await;
                        return;
                    }
                },
                End::Damaged(failure) => match self.another_whole(&link.name, failure) {
                    Ok(sentence) => sentence,
                    Err(failure) => {
                        out.give(Err(failure.into()), ITEM_COST_BYTES).await;
                        return;
                    }
                },
            };
            if self.progress > opened {
                self.progress = Instant::now();
            } else {
                // Accepted and lost without an item: not again at once.
                self.inner.network.pause().await;
            }
            self.avoid = Some(link.name.clone());
            reader = match self.connect().await {
                Ok(reader) => reader,
                Err(failure) => {
                    out.give(Err(failure.into()), ITEM_COST_BYTES).await;
                    return;
                }
            };
            let next = self.cursor.next.unwrap_or_default();
            let notice = format!("{}; went on at offset {next} from node {}", link.lost(&lost), reader.link.name);
            // Nobody reads notices: then nobody misses this one.
            let _ = out.notices.try_send(notice);
        }
    }

    /// Gets a stream that was accepted, from the node pinned or from any, within the timeout.
    async fn connect(&mut self) -> Result<Reader, Failure> {
        let network = self.inner.network.clone();
        let deadline = self.progress + network.timeout;
        let mut trouble = None;
        loop {
            match tokio::time::timeout_at(deadline, self.try_connect()).await {
                Ok(Ok(reader)) => return Ok(reader),
                Ok(Err(End::Failed(failure))) => return Err(failure),
                Ok(Err(End::Lost(sentence))) => trouble = Some(sentence),
                Ok(Err(End::Damaged(failure))) => {
                    let node = self.avoid.clone().unwrap_or_default();
                    trouble = Some(self.another_whole(&node, failure)?);
                }
                Ok(Err(End::Behind(failure))) => return Err(failure),
                Ok(Err(End::Done)) | Err(_) => {}
            }
            if let Some(failure) = network.verdict() {
                return Err(failure);
            }
            if Instant::now() >= deadline {
                let trouble = trouble.unwrap_or_else(|| network.trouble());
                let waited = network.timeout.as_secs_f32();
                let message = format!("no node gave the log within {waited} s: {trouble}");
                return Err(Failure::refused(ErrorCode::Unavailable, message));
            }
            network.pause().await;
        }
    }

    /// Notes that the node's log is damaged where the reader stands. The failure comes back when there is nobody else to ask: the
    /// node is pinned, or was asked again because every other one is damaged there too.
    fn another_whole(&mut self, node: &str, failure: Failure) -> Result<String, Failure> {
        if self.options.node.is_some() || !self.damaged.insert(node.to_owned()) {
            return Err(failure);
        }
        Ok(failure.message)
    }

    async fn try_connect(&mut self) -> Result<Reader, End> {
        let network = &self.inner.network;
        let link = match &self.options.node {
            Some(node) => network.link_to(node).await,
            None => {
                let avoid = |name: &str| self.avoid.as_deref() == Some(name) || self.damaged.contains(name);
                network.any_link_but(avoid).await
            }
        };
        let link = link.map_err(|failure| match failure.code {
            ErrorCode::Unavailable => End::Lost(failure.message),
            // Other nodes may be of another mind; `verdict` speaks when none is.
            ErrorCode::Unauthenticated if self.options.node.is_none() => End::Lost(failure.message),
            _ => End::Failed(failure),
        })?;
        let request = SubscribeRequest {
            start: self.cursor.next.map_or_else(|| self.options.start.clone(), Start::Offset),
            until: self.options.until,
            skip_trimmed: self.options.skip_trimmed,
            resume: self.begun,
        };
        self.avoid = Some(link.name.clone());
        let opened = tokio::time::timeout(ACCEPT_TIMEOUT, Reader::open(link, &request)).await;
        let (reader, from) =
            opened.unwrap_or_else(|_| Err(End::Lost("the subscription was not answered".to_owned())))?;
        self.cursor.begin(from);
        self.begun = true;
        self.avoid = None;
        Ok(reader)
    }

    async fn read(&mut self, mut reader: Reader, out: &Out) -> End {
        while !self.cursor.is_done() {
            let head = match self.head(&mut reader).await {
                Ok(head) => head,
                Err(end) => return end,
            };
            self.progress = Instant::now();
            let (item, bytes) = match head {
                ItemHead::Frame { len } => match self.frame(&mut reader, len).await {
                    Ok(Some(item)) => (item, len),
                    Ok(None) => continue,
                    Err(end) => return end,
                },
                ItemHead::Trimmed { to, .. } if self.is_behind(to) => {
                    let message = format!("records before offset {to} are trimmed, and no newer snapshot is there");
                    return End::Behind(Failure::refused(ErrorCode::Trimmed, message).with("first_offset", to));
                }
                ItemHead::Trimmed { from, to } => match self.cursor.trimmed(from, to) {
                    Some((from, to)) => (Item::Trimmed { from, to }, 0),
                    None => continue,
                },
                ItemHead::Progress { .. } => {
                    if self.is_left_behind(&reader.link) {
                        return End::Lost("it is cut off from the leader".to_owned());
                    }
                    (Item::Progress { next_offset: self.cursor.next.unwrap_or_default() }, 0)
                }
                ItemHead::CaughtUp { next_offset } => {
                    if self.cursor.next.is_some_and(|next| next < next_offset) {
                        return End::Failed(
                            reader.damage(self.cursor.next.unwrap_or_default(), "it skipped records up to its end"),
                        );
                    }
                    (Item::CaughtUp { next_offset: self.cursor.next.unwrap_or_default() }, 0)
                }
                ItemHead::Begin { .. } => {
                    return End::Failed(reader.damage(self.cursor.next.unwrap_or_default(), "a second beginning"));
                }
                ItemHead::Done => {
                    return End::Failed(
                        reader.damage(self.cursor.next.unwrap_or_default(), "it ended before the end asked for"),
                    );
                }
                ItemHead::Failed { len } => return reader.failure(len).await,
            };
            if matches!(item, Item::Records(_)) {
                self.damaged.clear();
            }
            if !out.give(Ok(item), bytes + ITEM_COST_BYTES).await {
                return End::Done;
            }
        }
        End::Done
    }

    /// Waits for an item. A node that is silent is left: at once when it does not know of the newest leader, for then it is
    /// dead or cut off; else when it has missed several times of saying where it stands.
    async fn head(&self, reader: &mut Reader) -> Result<ItemHead, End> {
        let mut waited = Duration::ZERO;
        while waited < SILENCE {
            // Dropped while it waits, reading a head loses nothing.
            if let Ok(head) = tokio::time::timeout(GLANCE, reader.head()).await {
                return head;
            }
            waited += GLANCE;
            if self.is_left_behind(&reader.link) {
                return Err(End::Lost("silent while another node leads".to_owned()));
            }
        }
        Err(End::Lost(format!("silent for {} s", SILENCE.as_secs())))
    }

    /// Reads and checks one frame; `None` when it has nothing that is wanted.
    async fn frame(&mut self, reader: &mut Reader, len: usize) -> Result<Option<Item>, End> {
        let (head, body) = reader.frame(len).await?;
        let next = self.cursor.next.unwrap_or_default();
        let damage = |what: &str| End::Failed(reader.damage(next, what));
        let header = graven_frame::decode_header(&head).map_err(|cause| damage(&cause.to_string()))?;
        if header.frame_len() != len {
            return Err(damage("a frame's length differs from its item's"));
        }
        let items = header.count as usize;
        let frame = Frame::from_parts(&head, body_for(body, items)).map_err(|cause| damage(&cause.to_string()))?;
        frame.verify(None).and_then(|()| frame.check_groups()).map_err(|cause| damage(&cause.to_string()))?;
        let range = self.cursor.frame(&frame).map_err(|sentence| damage(&sentence))?;
        Ok(range.map(|(from, to)| Item::Records(Records { frame, from, to })))
    }

    /// Whether records are gone for which a snapshot stands.
    fn is_behind(&self, first_offset: u64) -> bool {
        let wants_snapshot = matches!(self.options.start, Start::Snapshot(_));
        wants_snapshot && self.cursor.next.is_none_or(|next| next < first_offset)
    }

    /// Whether the node knows less about the leader than we do: a node cut off from the others commits nothing.
    fn is_left_behind(&self, link: &Link) -> bool {
        let known = self.inner.network.view().borrow().clone();
        self.options.node.is_none() && known.leader.is_some() && link.view.borrow().term < known.term
    }
}

/// Where a subscription stands.
#[derive(Debug)]
struct Cursor {
    /// The next offset to deliver; unknown until a node has resolved the start.
    next: Option<u64>,
    until: Option<u64>,
    /// Where the last frame of the current stream ended.
    stream: Option<u64>,
}

impl Cursor {
    /// A node accepted the subscription at `from`. When that is not where we stand, a trimmed range must follow: frames
    /// that start elsewhere are refused.
    fn begin(&mut self, from: u64) {
        self.stream = None;
        self.next.get_or_insert(from);
    }

    fn is_done(&self) -> bool {
        matches!((self.next, self.until), (Some(next), Some(until)) if next >= until)
    }

    /// Takes in a frame; the range of it to deliver.
    fn frame(&mut self, frame: &Frame) -> Result<Option<(u64, u64)>, String> {
        let header = frame.header();
        let (base, end) = (header.base_offset, header.next_offset());
        if let Some(expected) = self.stream.replace(end)
            && expected != base
        {
            return Err(format!("a frame starts at offset {base}, the one before it ended at {expected}"));
        }
        let next = self.next.unwrap_or(base);
        if base > next {
            return Err(format!("offsets {next} to {} are missing", base - 1));
        }
        if header.kind != Kind::Records {
            return Ok(None);
        }
        let to = end.min(self.until.unwrap_or(u64::MAX));
        if to <= next {
            return Ok(None);
        }
        self.next = Some(to);
        Ok(Some((next, to)))
    }

    /// Takes in that a range is gone; the part of it that is news.
    fn trimmed(&mut self, from: u64, to: u64) -> Option<(u64, u64)> {
        self.stream = None;
        let next = self.next.unwrap_or(from);
        if to <= next {
            return None;
        }
        // `from` above `next` would leave a hole between them: the range is told from where we stand.
        self.next = Some(to);
        Some((next, to))
    }
}

/// One stream from one node.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) link: Arc<Link>,
    recv: quinn::RecvStream,
    chunks: Chunks,
}

impl Reader {
    async fn open(link: Arc<Link>, request: &SubscribeRequest) -> Result<(Reader, u64), End> {
        let mut reader = Reader::begin(link, StreamKind::Subscribe, request).await?;
        match reader.head().await? {
            ItemHead::Begin { from } => Ok((reader, from)),
            ItemHead::Failed { len } => Err(reader.failure(len).await),
            _ => Err(End::Lost("a subscription without a beginning".to_owned())),
        }
    }

    /// Sends what a stream of this kind begins with.
    pub(super) async fn begin(link: Arc<Link>, kind: StreamKind, request: &impl Serialize) -> Result<Reader, End> {
        let lost = |cause: &dyn std::fmt::Display| End::Lost(cause.to_string());
        let (mut send, recv) = link.connection.open_bi().await.map_err(|cause| lost(&cause))?;
        let request = wire::encode::<MAX_MESSAGE_BYTES>(request).map_err(|cause| lost(&cause))?;
        let mut chunks = [Bytes::copy_from_slice(&[kind as u8]), request.into()];
        send.write_all_chunks(&mut chunks).await.map_err(|cause| lost(&cause))?;
        send.finish().map_err(|cause| lost(&cause))?;
        Ok(Reader { link, recv, chunks: Chunks::default() })
    }

    /// The head of an item that must not be long in coming.
    pub(super) async fn head_in_time(&mut self) -> Result<ItemHead, End> {
        while self.chunks.len() < ITEM_BYTES {
            self.fill_in_time().await?;
        }
        self.head().await
    }

    /// The next `len` bytes; the caller bounds them.
    pub(super) async fn bytes(&mut self, len: usize) -> Result<Bytes, End> {
        while self.chunks.len() < len {
            self.fill_in_time().await?;
        }
        Ok(self.chunks.take(len).unwrap_or_default().concat().into())
    }

    async fn head(&mut self) -> Result<ItemHead, End> {
        loop {
            if let Some(bytes) = self.chunks.take_array::<ITEM_BYTES>() {
                let bad = |sentence| End::Failed(Failure::refused(ErrorCode::Internal, self.link.lost(sentence)));
                return ItemHead::decode(bytes).map_err(bad);
            }
            self.fill().await?;
        }
    }

    pub(super) async fn frame(&mut self, len: usize) -> Result<([u8; HEADER_BYTES], Vec<Bytes>), End> {
        // The length was bounded when the item's head was decoded.
        while self.chunks.len() < len {
            self.fill_in_time().await?;
        }
        let parts = self.chunks.take_array::<HEADER_BYTES>().zip(self.chunks.take(len - HEADER_BYTES));
        parts.ok_or_else(|| End::Lost("a frame was cut short".to_owned()))
    }

    /// The failure with which a node ended the stream.
    pub(super) async fn failure(&mut self, len: usize) -> End {
        while self.chunks.len() < len {
            if let Err(end) = self.fill_in_time().await {
                return end;
            }
        }
        let bytes: Vec<u8> = self.chunks.take(len).unwrap_or_default().concat();
        match wire::decode::<MAX_MESSAGE_BYTES, Failure>(&bytes) {
            Ok(failure) => End::of(failure),
            Err(cause) => End::Lost(cause.to_string()),
        }
    }

    async fn fill_in_time(&mut self) -> Result<(), End> {
        let silent = || End::Lost(format!("silent for {} s", SILENCE.as_secs()));
        tokio::time::timeout(SILENCE, self.fill()).await.unwrap_or_else(|_| Err(silent()))
    }

    async fn fill(&mut self) -> Result<(), End> {
        let mut parts = [const { Bytes::new() }; CHUNKS_A_READ];
        match self.recv.read_chunks(&mut parts).await {
            Ok(Some(count)) => {
                parts.into_iter().take(count).for_each(|part| self.chunks.push(part));
                Ok(())
            }
            Ok(None) => Err(End::Lost("the stream ended".to_owned())),
            Err(cause) => Err(End::Lost(cause.to_string())),
        }
    }

    /// The failure for bytes that are not what they should be.
    fn damage(&self, next: u64, what: &str) -> Failure {
        let message = format!(
            "node {} gave damaged data at offset {next}: {what}; read from another node (--node), and check this one with `graven wal verify`",
            self.link.name
        );
        Failure::refused(ErrorCode::Damaged, message).with("node", self.link.name.as_str()).with("next_offset", next)
    }
}

/// Items on their way to the user; their bytes are bounded by the window.
const ITEMS: usize = 256;
/// Notices not read; more than a user wants to see.
const NOTICES: usize = 16;
/// What an item costs besides its bytes: its place in queues.
const ITEM_COST_BYTES: usize = 256;
/// As many packets as one receive batch brings on most systems.
const CHUNKS_A_READ: usize = 32;
/// A node says every second where it stands; silent for so long, it or the way to it is gone.
const SILENCE: Duration = Duration::from_secs(5);
/// How often a silent node's knowledge of the leader is looked at: longer than the push of a new leader takes to arrive.
const GLANCE: Duration = Duration::from_millis(250);
/// How long a node may take to accept a subscription: finding a start by time reads its log.
pub(super) const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
