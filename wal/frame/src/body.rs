//! A frame's body: the chunks in which its bytes arrived, read as if they were one.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use crc32fast::Hasher;

/// Bytes in one or more chunks. Clones share the chunks.
#[derive(Clone)]
pub struct Body {
    chunks: Chunks,
    len: usize,
}

/// Most bodies are one chunk, and then no allocation is needed to hold it.
#[derive(Clone)]
enum Chunks {
    One(Bytes),
    Many(Arc<[Bytes]>),
}

impl Body {
    /// A body of these chunks in this order. Empty chunks are dropped.
    #[must_use]
    pub fn from_chunks(mut chunks: Vec<Bytes>) -> Body {
        chunks.retain(|chunk| !chunk.is_empty());
        match chunks.len() {
            0 => Body::default(),
            1 => Body::from(chunks.swap_remove(0)),
            _ => Body { len: chunks.iter().map(Bytes::len).sum(), chunks: Chunks::Many(chunks.into()) },
        }
    }

    /// The chunks in order.
    #[must_use]
    pub fn chunks(&self) -> &[Bytes] {
        match &self.chunks {
            Chunks::One(chunk) if chunk.is_empty() => &[],
            Chunks::One(chunk) => std::slice::from_ref(chunk),
            Chunks::Many(chunks) => chunks,
        }
    }

    /// Total length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// CRC32 over all bytes.
    #[must_use]
    pub fn crc(&self) -> u32 {
        let mut hasher = Hasher::new();
        for chunk in self.chunks() {
            hasher.update(chunk);
        }
        hasher.finalize()
    }

    /// The bytes of `range`: shared when one chunk holds them all, joined by a copy otherwise.
    ///
    /// # Panics
    /// When the range is not within the body.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.len, "slice {range:?} of a body of {} bytes", self.len);
        if let Chunks::One(chunk) = &self.chunks {
            return chunk.slice(range);
        }
        let mut parts = self.parts(range.clone());
        let Some(first) = parts.next() else {
            return Bytes::new();
        };
        if first.len() == range.len() {
            return first;
        }
        let mut joined = BytesMut::with_capacity(range.len());
        joined.extend_from_slice(&first);
        parts.for_each(|part| joined.extend_from_slice(&part));
        joined.freeze()
    }

    /// The bytes of `range` as a body of shared chunks; nothing is copied.
    ///
    /// # Panics
    /// When the range is not within the body.
    #[must_use]
    pub fn share(&self, range: Range<usize>) -> Body {
        assert!(range.start <= range.end && range.end <= self.len, "share {range:?} of a body of {} bytes", self.len);
        match &self.chunks {
            Chunks::One(chunk) => Body::from(chunk.slice(range)),
            Chunks::Many(_) => Body::from_chunks(self.parts(range).collect()),
        }
    }

    /// All bytes in one piece: shared when there is one chunk, joined by a copy otherwise.
    #[must_use]
    pub fn concat(&self) -> Bytes {
        self.slice(0..self.len)
    }

    /// Copies `into.len()` bytes from `at`; `false` when the body ends before.
    pub(crate) fn copy_to(&self, at: usize, into: &mut [u8]) -> bool {
        let Some(end) = at.checked_add(into.len()).filter(|end| *end <= self.len) else {
            return false;
        };
        if let Chunks::One(chunk) = &self.chunks {
            into.copy_from_slice(&chunk[at..end]);
            return true;
        }
        let mut filled = 0;
        for part in self.parts(at..end) {
            into[filled..filled + part.len()].copy_from_slice(&part);
            filled += part.len();
        }
        true
    }

    fn parts(&self, range: Range<usize>) -> impl Iterator<Item = Bytes> + '_ {
        let mut start = 0;
        self.chunks().iter().filter_map(move |chunk| {
            let (from, to) = (range.start.max(start), range.end.min(start + chunk.len()));
            let part = (from < to).then(|| chunk.slice(from - start..to - start));
            start += chunk.len();
            part
        })
    }
}

impl Default for Body {
    fn default() -> Body {
        Body::from(Bytes::new())
    }
}

impl From<Bytes> for Body {
    fn from(chunk: Bytes) -> Body {
        Body { len: chunk.len(), chunks: Chunks::One(chunk) }
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Body) -> bool {
        self.len == other.len && self.chunks().iter().flatten().eq(other.chunks().iter().flatten())
    }
}

impl Eq for Body {}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes in {} chunks)", self.len, self.chunks().len())
    }
}

/// The CRC32 of two byte strings one after the other, from the CRC of each.
///
/// ```
/// let (a, b) = (b"gra", b"ven");
/// let whole = graven_frame::combine_crc(crc32fast::hash(a), crc32fast::hash(b), b.len());
/// assert_eq!(whole, crc32fast::hash(b"graven"));
/// ```
#[must_use]
pub fn combine_crc(a: u32, b: u32, len_b: usize) -> u32 {
    let mut hasher = Hasher::new_with_initial(a);
    hasher.combine(&Hasher::new_with_initial_len(b, len_b as u64));
    hasher.finalize()
}
