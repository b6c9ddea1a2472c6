//! Why something was not mended.

use std::io;

use crate::error::{OpenError, SegmentId};
use crate::mend::marker::MarkerError;

/// Why something was not mended. What is in place is as damaged as before, or mended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MendError {
    /// Refused: ask for this entry again, or ask another node; [`Mender::wanted`] says from which entry on.
    #[error("entry {index} does not go into the hole: {what}; fetch it from another node")]
    Refused {
        /// The entry.
        index: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// Refused: entries go into a group of damaged segments in order.
    #[error("hole {hole} cannot be filled before hole {first}")]
    Order {
        /// The hole.
        hole: usize,
        /// The one to be filled first.
        first: usize,
    },
    /// There is no hole of this number.
    #[error("there is no hole {hole}")]
    NoSuchHole {
        /// The number.
        hole: usize,
    },
    /// The end of the log is whole, or damage before it is not mended yet.
    #[error("the log has no damaged end to cut, or damage before it that must be mended first")]
    NoTail,
    /// The end of the log cannot be filled: nobody knows how far it went. Cut it.
    #[error("the hole is the damaged end of the log, which cannot be filled; cut it and let a leader replace it")]
    Tail,
    /// The segment is not one that can be mended while the log is open.
    #[error("segment {segment} cannot be mended while the log is open: {what}; stop the node and start it again")]
    NotSealed {
        /// The segment.
        segment: SegmentId,
        /// Why not.
        what: &'static str,
    },
    /// The segment was let go of: nothing is left to mend.
    #[error("segment {segment} is no part of the log any more")]
    Gone {
        /// The segment.
        segment: SegmentId,
    },
    /// Nothing is wrong with the segment, when all of it is read again.
    #[error("nothing is wrong with segment {segment}")]
    Whole {
        /// The segment.
        segment: SegmentId,
    },
    /// Bytes that could be read when the log was looked at cannot be read any more. Begin again.
    #[error("segment {segment} byte {at} has changed since the log was looked at; begin again")]
    Changed {
        /// The segment.
        segment: SegmentId,
        /// Where.
        at: u64,
    },
    /// The file that says that the log lost its end.
    #[error(transparent)]
    Marker(#[from] MarkerError),
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] OpenError),
    /// The disk said no. Nothing was put in place by this call but whole segments; it may be tried again from the beginning.
    #[error("cannot {operation} segment {segment} at byte {at}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The segment; 0 for the directory itself.
        segment: SegmentId,
        /// Where.
        at: u64,
        /// The disk's answer.
        #[source]
        cause: io::Error,
    },
}

pub(super) fn io_of(operation: &'static str, id: u64) -> impl FnOnce(io::Error) -> MendError {
    move |cause| MendError::Io { operation, segment: SegmentId(id), at: 0, cause }
}
