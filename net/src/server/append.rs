//! One append stream: groups in, answers out.
//!
//! A group is read in the chunks in which it arrives; they are not joined unless it has many small records. Its length is
//! bounded and charged to the connection's and the server's budget before its bytes are read.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use graven_frame::Group;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::answers::Answers;
use super::{Busy, ErrorCode, Failure, Rejection, Service};
use crate::protocol::append::{GROUP_PREFIX_BYTES, decode_prefix};
use crate::protocol::budget::Budget;
use crate::protocol::chunks::{Chunks, body_for, peek};

/// What the append streams of one connection share.
pub(super) struct Appends {
    pub(super) connection: Arc<Budget>,
    /// Shared with the client's other connections.
    pub(super) client: Arc<Budget>,
    /// Its number.
    pub(super) number: u64,
    pub(super) server: Arc<Budget>,
    /// Streams that may still be opened.
    pub(super) streams: Semaphore,
    /// The largest record taken.
    pub(super) max_record_bytes: usize,
    /// Becomes true when the node goes down: no more groups are read, those taken are answered.
    pub(super) draining: watch::Receiver<bool>,
}

/// Serves an append stream to its end.
///
/// # Errors
/// A sentence, when the client's bytes are not append groups: the connection is then closed.
pub(super) async fn serve<S: Service>(
    service: &S,
    appends: &Appends,
    mut send: quinn::SendStream,
    recv: quinn::RecvStream,
) -> Result<(), String> {
    let Ok(_stream) = appends.streams.try_acquire() else {
        return Err(format!("more than {STREAMS_MAX} append streams on one connection"));
    };
    let answers = Arc::new(Answers::default());
    let _closed = CloseOnDrop(&answers);
    let mut draining = appends.draining.clone();
    let reader = async {
        let ended = tokio::select! {
            ended = read_groups(service, appends, &answers, recv) => ended,
            _ = draining.wait_for(|draining| *draining) => Ok(()),
        };
        answers.finish();
        ended
    };
    let writer = write_answers(&answers, &mut send);
    tokio::pin!(reader, writer);
    let ended = tokio::select! {
        ended = &mut reader => ended,
        // The client reads no more answers: there is nobody to serve.
        () = &mut writer => return Ok(()),
    };
    if ended.is_ok() {
        writer.await;
    }
    ended
}

/// Refuses a whole append stream.
pub(super) async fn refuse(rejection: Rejection, mut send: quinn::SendStream) {
    let answers = Answers::default();
    answers.push_for_stream(rejection);
    answers.finish();
    write_answers(&answers, &mut send).await;
}

async fn write_answers(answers: &Answers, send: &mut quinn::SendStream) {
    while let Some(bytes) = answers.next().await {
        if send.write_chunk(bytes.freeze()).await.is_err() {
            return;
        }
    }
    if send.finish().is_ok() {
        // Closing the connection would throw away what the client has not received yet.
        let _ = send.stopped().await;
    }
}

async fn read_groups<S: Service>(
    service: &S,
    appends: &Appends,
    answers: &Arc<Answers>,
    mut recv: quinn::RecvStream,
) -> Result<(), String> {
    let mut chunks = Chunks::default();
    loop {
        let prefix = loop {
            if let Some(prefix) = chunks.take_array::<GROUP_PREFIX_BYTES>() {
                break prefix;
            }
            if fill(&mut chunks, &mut recv).await == 0 {
                return Ok(());
            }
        };
        let (len, crc) = decode_prefix(prefix).ok_or("the length of an append group is impossible")?;
        answers.room().await;
        let connection = appends.connection.charge(len + GROUP_OVERHEAD_BYTES).await;
        let client = appends.client.charge(len + GROUP_OVERHEAD_BYTES).await;
        let server = appends.server.charge(len + GROUP_OVERHEAD_BYTES).await;
        // Until then all of it must be there, however steadily it drips.
        let deadline = Instant::now() + GROUP_STALL + Duration::from_secs((len / GROUP_BYTES_PER_SECOND) as u64);
        let mut pieces = 0;
        let parts = loop {
            if pieces > PIECES_FREE + chunks.len() / PIECE_BYTES {
                return Err(format!("an append group of {len} bytes comes in pieces of a few bytes"));
            }
            if let Some(parts) = chunks.take(len) {
                break parts;
            }
            // A group that was begun and never ends would hold its charge for good.
            match tokio::time::timeout_at(deadline.min(Instant::now() + GROUP_STALL), fill(&mut chunks, &mut recv))
                .await
            {
                Ok(0) => return Ok(()),
                Ok(count) => pieces += count,
                Err(_) => return Err(format!("an append group of {len} bytes stopped half-way")),
            }
        };
        let group = parse(parts, crc)?;
        let (Some(session), Some(sequence)) = (group.header().session, group.header().sequence) else {
            return Err("an append group has no session".to_owned());
        };
        let reply = answers.reply(appends.number, (session, sequence), [connection, client, server]);
        if let Some(size) = too_large(&group, appends.max_record_bytes) {
            let limit = appends.max_record_bytes;
            let message = format!("a record has {size} bytes, the limit is {limit} (max_record_bytes)");
            let failure = Failure::refused(ErrorCode::TooLarge, message).with("limit", limit as u64);
            reply.done(Err(Rejection::Failed(failure)));
            continue;
        }
        let mut offer = (group, reply);
        while let Err(Busy(back)) = service.append(offer.0, offer.1) {
            offer = *back;
            service.ready().await;
        }
    }
}

pub(crate) fn parse(parts: Vec<Bytes>, crc: u32) -> Result<Group, String> {
    // The count stands behind the length. It is only a guess at the work here: `Group` checks it.
    let count = peek::<8>(&parts).map_or(0, |head| u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
    Group::parse_checked(body_for(parts, count as usize), crc).map_err(|cause| cause.to_string())
}

/// The size of a record that is over the limit. Groups smaller than the limit are not looked into.
pub(crate) fn too_large(group: &Group, limit: usize) -> Option<usize> {
    if group.body().len() <= limit {
        return None;
    }
    group.records().map(|record| record.payload.len()).find(|size| *size > limit)
}

/// Reads what is there, and tells in how many pieces it came; 0 when the stream ended or broke.
async fn fill(chunks: &mut Chunks, recv: &mut quinn::RecvStream) -> usize {
    let mut parts = [const { Bytes::new() }; CHUNKS_A_READ];
    match recv.read_chunks(&mut parts).await {
        Ok(Some(count)) => {
            parts.into_iter().take(count).for_each(|part| chunks.push(part));
            count
        }
        Ok(None) | Err(_) => 0,
    }
}

struct CloseOnDrop<'a>(&'a Answers);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The slowest client there is: 512 kbit/s. What comes more slowly holds a place in the bounds for nothing.
const GROUP_BYTES_PER_SECOND: usize = 64 << 10;
/// Append streams of one connection. A client needs one, and a second while it leaves the first; each may hold a window of bytes
/// that nobody has read.
pub(super) const STREAMS_MAX: usize = 8;
/// What a group costs besides its bytes: its place in queues, and its answer.
const GROUP_OVERHEAD_BYTES: usize = 256;
/// As many packets as one receive batch brings on most systems.
const CHUNKS_A_READ: usize = 32;
/// Each packet costs this node as much as one that is full. A client's packets are, but for the ends of what it writes: after so many
/// pieces there must be so many bytes in each of them, on the average.
const PIECES_FREE: usize = 256;
const PIECE_BYTES: usize = 64;
/// A client writes a whole group at once; so long without a byte of it means the client is gone or means harm.
const GROUP_STALL: Duration = Duration::from_secs(10);
