//! One subscription: frames from the service's feed to the client, as they are on disk.

use bytes::{Bytes, BytesMut};
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
                let mut pieces = pieces_of(&frames);
                drop(frames);
                send.write_all_chunks(&mut pieces).await?;
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

/// The frames' bytes with an item head before each. Small pieces are copied together, large ones shared.
///
/// A subscriber that does not read leaves these here: a piece of its own for each small frame would cost more than the frame. A
/// large chunk, which borrows the mapped segment, is cut into medium parts: quinn keeps a chunk whole until its last byte is
/// acknowledged and counts all of it against the send window until then.
pub(super) fn pieces_of(frames: &[Frame]) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut small = BytesMut::new();
    let mut push = |piece: &Bytes| {
        if small.len() + piece.len() > PIECE_BYTES || piece.len() >= SHARE_FROM_BYTES {
            pieces.extend((!small.is_empty()).then(|| std::mem::take(&mut small).freeze()));
        }
        if piece.len() < SHARE_FROM_BYTES {
            small.extend_from_slice(piece);
            return;
        }
        let mut rest = piece.clone();
        while rest.len() > PIECE_BYTES {
            pieces.push(rest.split_to(PIECE_BYTES));
        }
        pieces.push(rest);
    };
    for frame in frames {
        push(&ItemHead::Frame { len: frame.encoded_len() }.encode());
        push(frame.head());
        frame.body().chunks().iter().for_each(&mut push);
    }
    pieces.extend((!small.is_empty()).then(|| small.freeze()));
    pieces
}

/// What the feed is asked for at a time, and so what a subscriber that does not read holds here: the window before it is what keeps
/// a fast one busy.
const BATCH_BYTES: usize = 64 << 10;
/// The largest piece handed to quinn.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces below this are copied together (`docs/decisions/transport.md`).
const SHARE_FROM_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use graven_frame::{Body, Chain, HeaderSpec, Kind};

    use super::*;

    fn frame(index: u64, sizes: &[usize]) -> Frame {
        let body = Body::from_chunks(sizes.iter().map(|size| Bytes::from(vec![index as u8; *size])).collect());
        let crc = body.crc();
        let spec = HeaderSpec { kind: Kind::Session, term: 1, index, base_offset: 0, count: 0, timestamp_ms: 0 };
        Frame::seal(spec, Chain::START, body, crc)
    }

    #[test]
    fn small_frames_share_pieces_and_large_ones_are_not_copied() {
        let frames: Vec<Frame> = (1..=300).map(|index| frame(index, &[100])).chain([frame(7, &[200_000, 3])]).collect();
        let pieces = pieces_of(&frames);
        assert!(pieces.len() <= 8, "{}", pieces.len());
        let mut expected = Vec::new();
        for frame in &frames {
            expected.extend_from_slice(&ItemHead::Frame { len: frame.encoded_len() }.encode());
            expected.extend_from_slice(frame.head());
            expected.extend_from_slice(&frame.body().concat());
        }
        assert!(pieces.concat() == expected);
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES));
        let large = &frames[300].body().chunks()[0];
        assert!(pieces.iter().any(|piece| piece.as_ptr() == large.as_ptr()));
    }
}
