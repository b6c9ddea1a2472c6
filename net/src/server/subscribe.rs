//! One subscription: frames from the service's feed to the client, as they are on disk.

use bytes::Bytes;
use graven_frame::Frame;

use super::{Caller, Failure, Feed, FeedItem, Opened, Service, SubscribeRequest};
use crate::protocol::feed::ItemHead;
use crate::protocol::{MAX_MESSAGE_BYTES, Outcome};
use crate::wire;

/// Serves a subscription until the client has enough of it. `Err` is a sentence for the log.
pub(super) async fn serve<S: Service>(
    service: &S,
    caller: Caller,
    request: SubscribeRequest,
    send: &mut quinn::SendStream,
) -> Result<(), quinn::WriteError> {
    let Opened { from, mut feed } = match service.subscribe(caller, request).await {
        Ok(opened) => opened,
        Err(failure) => return fail(failure, send).await,
    };
    send.write_chunk(ItemHead::Begin { from }.encode()).await?;
    loop {
        // Asked only when everything before has gone into the window: a slow client costs one batch of borrowed frames.
        let head = match feed.next(BATCH_BYTES).await {
            FeedItem::Frames(frames) => {
                send.write_all_chunks(&mut chunks_of(&frames)).await?;
                continue;
            }
            FeedItem::Trimmed { from, to } => ItemHead::Trimmed { from, to },
            FeedItem::Progress { next_offset } => ItemHead::Progress { next_offset },
            FeedItem::CaughtUp { next_offset } => ItemHead::CaughtUp { next_offset },
            FeedItem::Done => ItemHead::Done,
            FeedItem::End(failure) => return fail(failure, send).await,
        };
        send.write_chunk(head.encode()).await?;
        if head == ItemHead::Done {
            return Ok(());
        }
    }
}

/// Ends the subscription with a failure.
pub(super) async fn fail(mut failure: Failure, send: &mut quinn::SendStream) -> Result<(), quinn::WriteError> {
    failure.outcome = Outcome::Refused;
    let bytes = wire::encode::<MAX_MESSAGE_BYTES>(&failure).unwrap_or_default();
    send.write_chunk(ItemHead::Failed { len: bytes.len() }.encode()).await?;
    send.write_chunk(bytes.into()).await
}

/// The frames' bytes with an item head before each; nothing is copied.
///
/// A chunk that borrows the mapped segment is cut into medium parts: quinn keeps a chunk whole until its last byte is
/// acknowledged and counts all of it against the send window until then.
fn chunks_of(frames: &[Frame]) -> Vec<Bytes> {
    let mut chunks = Vec::with_capacity(frames.len() * 3);
    for frame in frames {
        chunks.push(ItemHead::Frame { len: frame.encoded_len() }.encode());
        chunks.push(frame.head().clone());
        for chunk in frame.body().chunks() {
            let mut rest = chunk.clone();
            while rest.len() > CHUNK_BYTES {
                chunks.push(rest.split_to(CHUNK_BYTES));
            }
            chunks.push(rest);
        }
    }
    chunks
}

/// What the feed is asked for at a time: enough to amortise the asking, little against the window.
const BATCH_BYTES: usize = 256 << 10;
/// See [`chunks_of`].
const CHUNK_BYTES: usize = 64 << 10;
