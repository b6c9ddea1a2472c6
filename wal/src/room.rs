//! How much a nearly full disk still takes.

use crate::format::{OPENING_BYTES, extent};

/// What there is room for on the disk: a value to reckon with while jobs are under way, not a promise.
///
/// As long as space for the next segment can be had there is no limit. From the first time that fails, what counts is what was
/// prepared before, without the last segment, which is the reserve for hard states and control entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// `None`: no limit is known.
    left: Option<Left>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    /// Bytes in the active segment.
    active: u64,
    /// Segments behind it, without the reserve.
    segments: u64,
    segment_bytes: u64,
    full: bool,
}

impl Default for Room {
    fn default() -> Room {
        Room::plenty()
    }
}

impl Room {
    /// No limit is known.
    #[must_use]
    pub fn plenty() -> Room {
        Room { left: None }
    }

    /// Room for `active` bytes in the active segment and for `segments` more; less than `margin` bytes, or an eighth of a segment,
    /// counts as full.
    pub(crate) fn left(active: u64, segments: u64, segment_bytes: u64, margin: u64) -> Room {
        let full = active.saturating_add(segments.saturating_mul(segment_bytes)) < margin.max(segment_bytes / 8);
        Room { left: Some(Left { active: active.saturating_sub(closing(active)), segments, segment_bytes, full }) }
    }

    /// Bytes that a frame of `frame_len` bytes takes in a segment.
    #[must_use]
    pub fn bytes_of(frame_len: usize) -> u64 {
        extent(frame_len)
    }

    /// Whether no more records should be asked for. What is on its way is still taken as far as [`Room::takes`] says.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.left.is_some_and(|left| left.full)
    }

    /// Whether a frame of `frame_len` bytes finds room behind all that were asked for before; takes the room if so. On the safe
    /// side: the log may have a little more.
    pub fn takes(&mut self, frame_len: usize) -> bool {
        let Some(left) = &mut self.left else { return true };
        let bytes = extent(frame_len);
        let fresh = left.segment_bytes.saturating_sub(OPENING_BYTES + closing(left.segment_bytes));
        if bytes <= left.active {
            left.active -= bytes;
        } else if bytes <= fresh && left.segments > 0 {
            left.segments -= 1;
            left.active = fresh - bytes;
        } else {
            return false;
        }
        true
    }
}

/// What the closing records of a segment may take when `bytes` more have gone into it: a fixed part and a few terms, and a point of
/// 32 bytes for each 128 KiB, twice.
fn closing(bytes: u64) -> u64 {
    1024 + bytes / 2048
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_spent_frame_by_frame_and_never_the_reserve() {
        let mut room = Room::left(10 << 10, 1, 64 << 10, 8 << 20);
        assert!(room.is_full(), "less than the margin");
        assert!(room.takes(8 << 10), "in the active segment");
        assert!(room.takes(8 << 10), "in the next one");
        assert!(room.takes(40 << 10));
        assert!(!room.takes(20 << 10), "the rest is the reserve");
        assert!(room.takes(1 << 10), "a smaller one still fits");
        assert!(!room.takes(64 << 10), "larger than a segment");
    }

    #[test]
    fn without_a_limit_everything_fits() {
        let mut room = Room::plenty();
        assert!(room.takes(usize::MAX / 2) && !room.is_full());
        assert!(!Room::left(0, 3, 64 << 20, 8 << 20).is_full(), "three segments are more than the margin");
    }
}
