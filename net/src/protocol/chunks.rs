//! Received bytes in the chunks they came in, consumed from the front without joining them.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use graven_frame::Body;

/// A queue of bytes.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    queue: VecDeque<Bytes>,
    len: usize,
}

impl Chunks {
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.len += chunk.len();
        self.queue.push_back(chunk);
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
            let front = self.queue.front_mut()?;
            let part = front.len().min(N - filled);
            front.copy_to_slice(&mut out[filled..filled + part]);
            filled += part;
            self.len -= part;
            if front.is_empty() {
                self.queue.pop_front();
            }
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
            let front = self.queue.front_mut()?;
            if front.len() > left {
                taken.push(front.split_to(left));
                left = 0;
            } else {
                left -= front.len();
                taken.extend(self.queue.pop_front());
            }
        }
        self.len -= len;
        Some(taken)
    }
}

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
        }
    }

    #[test]
    fn bodies_of_many_small_records_are_joined_and_of_large_ones_are_not() {
        let chunks = || vec![Bytes::from(vec![0; 1000]); 100];
        assert_eq!(body_for(chunks(), 1).chunks().len(), 100);
        assert_eq!(body_for(chunks(), 1000).chunks().len(), 1);
    }
}
