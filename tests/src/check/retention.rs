//! Retention takes what is too much or too old, and nothing else, whatever a leader's clock shows.

use std::time::Duration;

use graven::config::Retention;
use graven_frame::{Frame, Kind};
use graven_wal::Room;

use super::{Checked, violated};
use crate::clock::WALL_START_MS;

/// Bytes that are kept in simulated clusters.
const KEEP_BYTES: u64 = 48 << 10;
/// What a leader that was restarted counts beside entries: what lies in its segments, terms and votes, what was superseded, 64 bytes behind each
/// sync. Entries here are a few hundred bytes, many synced alone, in small segments. One in its first life counts entries and nothing else.
const BESIDE_BYTES: u64 = KEEP_BYTES / 2;
/// How long records are kept.
const KEEP_MS: u64 = 6_000;
/// How much too old a record may look: clocks that are in step are up to a second off, for stamps and for trims.
const SLACK_MS: u64 = 2_000;

/// The settings of every node.
#[must_use]
pub fn settings() -> Retention {
    Retention { bytes: Some(KEEP_BYTES), age: Some(Duration::from_millis(KEEP_MS)), ..Retention::default() }
}

/// What is committed, and of what age it says it is.
#[derive(Debug, Default)]
pub struct Kept {
    /// Of each entry: offset of the record after it, bytes up to its end, its timestamp.
    entries: Vec<(u64, u64, u64)>,
    first_offset: u64,
    /// Trims for which only age speaks.
    pub by_age: u64,
}

impl Kept {
    /// `frame` is committed, after all before it, at simulated time `now_us`. All trims are by retention. `restarted` says whether the node that
    /// led then had been started more than once, or is not known.
    ///
    /// # Errors
    /// It trims what was to be kept.
    pub fn committed(&mut self, frame: &Frame, now_us: u64, restarted: bool) -> Checked {
        let bytes = self.entries.last().map_or(0, |(_, bytes, _)| *bytes);
        if frame.header().kind == Kind::Trim {
            let body = frame.body().concat();
            let before = body.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
            self.trims(before, bytes, now_us, restarted)?;
        }
        let timestamp_ms = frame.header().timestamp_ms;
        self.entries.push((frame.next_offset(), bytes + Room::bytes_of(frame.encoded_len()), timestamp_ms));
        Ok(())
    }

    fn trims(&mut self, before: u64, bytes: u64, now_us: u64, restarted: bool) -> Checked {
        if before <= self.first_offset {
            return Ok(());
        }
        self.first_offset = before;
        // The last entry of which a record goes.
        let at = self.entries.partition_point(|(next, _, _)| *next < before);
        let Some((_, upto, since_ms)) = self.entries.get(at).copied() else { return Ok(()) };
        let (stay, age_ms) = (bytes - upto, (WALL_START_MS + now_us / 1000).saturating_sub(since_ms));
        let too_much = stay + if restarted { BESIDE_BYTES } else { 0 } >= KEEP_BYTES;
        self.by_age += u64::from(!too_much);
        if !too_much && age_ms + SLACK_MS < KEEP_MS {
            let kept = format!("{stay} of {KEEP_BYTES} bytes stay, and it is {age_ms} of {KEEP_MS} ms old");
            return violated("retention", format!("the record before offset {before} is trimmed: {kept}"));
        }
        Ok(())
    }
}
