//! Received bytes in the chunks they came in, consumed from the front without joining them.
//!
//! A chunk keeps alive all of what it was received with: its datagram, and on most systems the batch of up to 64 KiB the datagram
//! came in. A sender that spreads its bytes thinly would have us hold a batch for each of them, so pieces below [`KEEP_FROM_BYTES`]
//! are copied together: what is held is then bounded by what was charged for it.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use graven_frame::Body;

/// A queue of bytes.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    queue: VecDeque<Bytes>,
    /// Small pieces that came last, behind the queue.
    tail: BytesMut,
    len: usize,
}

impl Chunks {
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.len += chunk.len();
        if chunk.len() >= KEEP_FROM_BYTES {
            self.flush();
            self.queue.push_back(chunk);
        } else {
            self.copy(&chunk);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes `N` bytes, or nothing when there are fewer.
    pub(crate) fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.len < N {
            return None;
        }
        let mut out = [0; N];
        let mut filled = 0;
        while filled < N {
            let part = self.take_front(N - filled)?;
            out[filled..filled + part.len()].copy_from_slice(&part);
            filled += part.len();
        }
        Some(out)
    }

    /// Takes `len` bytes as the chunks they are in, or nothing when there are fewer.
    pub(crate) fn take(&mut self, len: usize) -> Option<Vec<Bytes>> {
        if self.len < len {
            return None;
        }
        let mut taken = Vec::new();
        let mut left = len;
        while left > 0 {
            let part = self.take_front(left)?;
            left -= part.len();
            taken.push(part);
        }
        Some(taken)
    }

    /// At most `len` bytes of the first chunk; `None` when nothing is there.
    pub(crate) fn take_front(&mut self, len: usize) -> Option<Bytes> {
        let part = match self.queue.front_mut() {
            Some(front) if front.len() > len => front.split_to(len),
            Some(_) => self.queue.pop_front()?,
            None if self.tail.is_empty() => return None,
            None => self.tail.split_to(self.tail.len().min(len)).freeze(),
        };
        self.len -= part.len();
        if self.len == 0 {
            // Whoever waits for more holds no buffer meanwhile.
            *self = Chunks::default();
        }
        Some(part)
    }

    fn copy(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let room = self.tail.capacity() - self.tail.len();
            if room == 0 {
                // A lone piece gets what it needs, a run of them ever larger buffers.
                let next = (self.tail.len() * 2).clamp(piece.len(), COPY_BUFFER_BYTES);
                self.flush();
                self.tail = BytesMut::with_capacity(next);
                continue;
            }
            let part = room.min(piece.len());
            self.tail.extend_from_slice(&piece[..part]);
            piece.advance(part);
        }
    }

    /// Puts what was copied at the end of the queue; the rest of its buffer is used by what is copied next.
    fn flush(&mut self) {
        if !self.tail.is_empty() {
            self.queue.push_back(self.tail.split().freeze());
        }
    }
}

/// Pieces below this are copied: a copy of 4 KiB costs less than the buffers that many small pieces would keep alive, and no more
/// than handing them on one by one does (`docs/decisions/transport.md`).
pub(crate) const KEEP_FROM_BYTES: usize = 4 << 10;
/// Copied pieces share buffers of at most this: what one small group can keep alive.
const COPY_BUFFER_BYTES: usize = 32 << 10;

/// A body of these chunks, joined when walking `items` records through them would cost more than one copy.
///
/// Finding a record looks at each chunk (about a nanosecond); a copy moves about ten bytes in that time. Large records in
/// packet-sized chunks stay as they are, many small ones in many chunks are joined.
pub(crate) fn body_for(chunks: Vec<Bytes>, items: usize) -> Body {
    let len: usize = chunks.iter().map(Bytes::len).sum();
    if chunks.len() < 2 || items.saturating_mul(chunks.len()) < len / 10 {
        return Body::from_chunks(chunks);
    }
    let mut joined = BytesMut::with_capacity(len);
    chunks.iter().for_each(|chunk| joined.extend_from_slice(chunk));
    Body::from(joined.freeze())
}

/// Copies the first bytes of `chunks`; `None` when there are fewer than `N`.
#[cfg(feature = "peer")]
pub(crate) fn peek<const N: usize>(chunks: &[Bytes]) -> Option<[u8; N]> {
    let mut out = [0; N];
    let mut filled = 0;
    for chunk in chunks {
        let part = chunk.len().min(N - filled);
        out[filled..filled + part].copy_from_slice(&chunk[..part]);
        filled += part;
    }
    (filled == N).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_however_they_are_cut() {
        let bytes: Vec<u8> = (0..=255).collect();
        for cut in [1, 3, 7, 100, 256] {
            let mut chunks = Chunks::default();
            bytes.chunks(cut).for_each(|part| chunks.push(Bytes::copy_from_slice(part)));
            assert_eq!(chunks.take_array::<8>().unwrap(), bytes[..8]);
            let taken = chunks.take(200).unwrap();
            #[cfg(feature = "peer")]
            assert_eq!(peek::<4>(&taken).unwrap(), bytes[8..12]);
            assert_eq!(Body::from_chunks(taken).concat(), bytes[8..208]);
            assert_eq!(chunks.len(), 48);
            assert_eq!(chunks.take(49), None);
            assert_eq!(chunks.take_array::<48>().unwrap(), bytes[208..]);
            assert_eq!((chunks.len(), chunks.take_front(1)), (0, None));
        }
    }

    /// One byte in each packet, as a sender does that wants to be expensive.
    #[test]
    fn thin_pieces_do_not_keep_the_packets_they_came_in() {
        const PIECES: usize = 20_000;
        let mut chunks = Chunks::default();
        for at in 0..PIECES {
            let packet = Bytes::from(vec![at as u8; 1200]);
            chunks.push(packet.slice(600..601));
            assert!(packet.is_unique(), "nothing holds on to the packet");
        }
        let taken = chunks.take(PIECES).unwrap();
        assert!(taken.len() < 20, "{} pieces", taken.len());
        let expected: Vec<u8> = (0..PIECES).map(|at| at as u8).collect();
        assert_eq!(Body::from_chunks(taken).concat(), expected);
        assert_eq!(chunks.tail.capacity(), 0, "an empty queue holds no buffer");
        let large = Bytes::from(vec![1; KEEP_FROM_BYTES]);
        chunks.push(large.clone());
        assert_eq!(chunks.take(KEEP_FROM_BYTES).unwrap()[0].as_ptr(), large.as_ptr(), "large pieces are not copied");
    }

    #[test]
    fn bodies_of_many_small_records_are_joined_and_of_large_ones_are_not() {
        let chunks = || vec![Bytes::from(vec![0; 1000]); 100];
        assert_eq!(body_for(chunks(), 1).chunks().len(), 100);
        assert_eq!(body_for(chunks(), 1000).chunks().len(), 1);
    }
}
