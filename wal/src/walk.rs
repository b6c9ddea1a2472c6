//! From a point of the index to an entry: over record headers, in the map.
//!
//! A walk goes from record to record. Before it, [`approach`] guesses where in the stretch between two points the entry is,
//! and looks for a record there: one counts only if its prefix has a right sum and names this segment, its salt and its own
//! position, so that nothing in a payload is taken for one.
//!
//! Superseded entries keep their bytes, and a stretch may contain some; all of them have an index of at least the
//! stretch's `until`. (One with a lower index was replaced by an entry that got a point of its own, which is the next
//! point or one before it.) So below `until` indexes, offsets and times never decrease along the stretch.

use graven_frame::{HEADER_BYTES, Header, decode_header};

use crate::error::{Damage, ReadError, SegmentId};
use crate::format::{BOUNDARY, PREFIX_BYTES, Point, Prefix, PrefixFound, RecordKind, twin_of};
use crate::index::{Located, View};

/// A record met on a walk.
pub(crate) struct Met {
    pub(crate) header: Header,
    /// Where its frame starts.
    pub(crate) frame_at: u64,
}

/// A guess looks at this many bytes for the start of a record. Where records are longer on average there are few in a stretch,
/// and going from one to the next is faster.
const LOOK_BYTES: u64 = 4 << 10;
/// Nearer than this a walk costs no more than another guess.
const NEAR_BYTES: u64 = 1 << 10;
/// The same, in units of what is looked for.
const NEAR_KEYS: u64 = 3;
/// A guess aims this much too low: from below it can be walked to, from above not.
const AIM_LOW_BYTES: u64 = 512;

/// Moves a located place forward, to the entry with the highest key not above `wanted` or to one shortly before it. Changes nothing when
/// that is not cheap, or when something unexpected is met: the walk then says what.
pub(crate) fn approach(
    located: &mut Located,
    wanted: u64,
    key: impl Fn(&Header) -> u64,
    key_of: impl Fn(&Point) -> u64,
) {
    let written = located.view.written();
    let (mut low, mut high) = (located.position, located.next.map_or(written, |next| next.position).min(written));
    let entries = located.until.saturating_sub(located.index).max(1);
    if high.saturating_sub(low) / entries > LOOK_BYTES {
        return;
    }
    let (mut low_key, mut high_key) = (key_of(&located.point), located.next.as_ref().map(key_of));
    let mut guess = true;
    while high.saturating_sub(low) > NEAR_BYTES && wanted.saturating_sub(low_key) > NEAR_KEYS {
        // Guesses halve nothing when keys are spread unevenly: every other time the middle is taken.
        let aim = match high_key {
            Some(high_key) if guess && high_key > low_key => {
                let part = u128::from(high - low) * u128::from(wanted.saturating_sub(low_key).min(high_key - low_key))
                    / u128::from(high_key - low_key);
                (low + part as u64).saturating_sub(AIM_LOW_BYTES)
            }
            _ => low + (high - low) / 2,
        };
        guess = !guess;
        let aim = aim.clamp(low + 1, high - BOUNDARY).next_multiple_of(BOUNDARY);
        match record_behind(&located.view, aim, high.min(aim + LOOK_BYTES), written) {
            Some((at, header)) if header.index < located.until && key(&header) <= wanted => {
                (low, low_key) = (at, key(&header));
                (located.position, located.index) = (at, header.index);
            }
            Some((_, header)) => {
                high = aim;
                high_key = (header.index < located.until).then(|| key(&header)).or(high_key);
            }
            None => high = aim,
        }
    }
}

/// The first frame of this segment that starts in `from..to`.
fn record_behind(view: &View, from: u64, to: u64, written: u64) -> Option<(u64, Header)> {
    let mut at = from;
    let mut bytes = [0; PREFIX_BYTES + HEADER_BYTES];
    while at < to && at + bytes.len() as u64 <= written {
        let mut magic = [0; 4];
        view.map.copy(at, &mut magic, written);
        if !Prefix::looks_like(&magic) {
            at += BOUNDARY;
            continue;
        }
        view.map.copy(at, &mut bytes, written);
        let (prefix, head) = bytes.split_at(PREFIX_BYTES);
        let prefix = match prefix.first_chunk().map(Prefix::decode) {
            Some(PrefixFound::Good(prefix)) if is_at(&prefix, view, at) => prefix,
            _ => {
                at += BOUNDARY;
                continue;
            }
        };
        if prefix.kind == RecordKind::Frame {
            let header = decode_header(head).ok()?;
            return (header.frame_len() == prefix.payload_len as usize).then_some((at, header));
        }
        at = prefix.end();
    }
    None
}

fn is_at(prefix: &Prefix, view: &View, at: u64) -> bool {
    prefix.salt == view.salt && prefix.segment == view.id && prefix.position == at
}

/// Walks the frame records from a located place until `stop`, which must happen before `until`.
pub(crate) fn walk(located: &Located, mut stop: impl FnMut(&Met) -> bool) -> Result<Met, ReadError> {
    let view = &located.view;
    let written = view.written();
    let (mut at, mut index) = (located.position, located.index);
    loop {
        let damaged = |what| {
            Err(ReadError::Damaged(Damage {
                segment: SegmentId(view.id),
                from: at,
                to: at + PREFIX_BYTES as u64,
                first_index: index,
                last_index: index,
                what,
            }))
        };
        let mut bytes = [0; PREFIX_BYTES + HEADER_BYTES];
        if at + PREFIX_BYTES as u64 > written {
            return damaged("the segment ends before the entry");
        }
        // Control records may be shorter than a frame's header: what is behind the written mark is not looked at.
        let there = bytes.len().min((written - at) as usize);
        view.map.copy(at, &mut bytes[..there], written);
        let (prefix, head) = bytes.split_at(PREFIX_BYTES);
        let prefix = match prefix.first_chunk().map(Prefix::decode) {
            Some(PrefixFound::Good(prefix)) if is_at(&prefix, view, at) => prefix,
            _ => match second_copy(view, at, written) {
                // No entry is lost with the first copy of a hard state.
                Some(second) => {
                    at = second.end();
                    continue;
                }
                None => return damaged("no record where one was written"),
            },
        };
        if prefix.end() > written {
            return damaged("the segment ends inside the record");
        }
        if prefix.kind == RecordKind::Frame {
            let Ok(header) = decode_header(head) else { return damaged("frame header is damaged") };
            if header.index != index || header.frame_len() != prefix.payload_len as usize {
                return damaged("another entry stands there");
            }
            let met = Met { header, frame_at: at + PREFIX_BYTES as u64 };
            if stop(&met) {
                return Ok(met);
            }
            index += 1;
        }
        at = prefix.end();
    }
}

/// The second copy of a hard state whose first copy was at `at`.
fn second_copy(view: &View, at: u64, written: u64) -> Option<Prefix> {
    let second = twin_of(at);
    if second + PREFIX_BYTES as u64 > written {
        return None;
    }
    let mut bytes = [0; PREFIX_BYTES];
    view.map.copy(second, &mut bytes, written);
    match Prefix::decode(&bytes) {
        PrefixFound::Good(prefix)
            if prefix.salt == view.salt && prefix.position == second && prefix.second_copy_of(at) =>
        {
            Some(prefix)
        }
        _ => None,
    }
}
