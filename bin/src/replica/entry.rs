//! What a node reads out of an entry.

use graven_frame::{Frame, FrameError, GroupHeader, Kind};
use graven_raft::{Entry, EntryKind, EntryMeta, Index, LogId, Membership, Term};

use super::sessions::{Placed, Sessions};
use super::tables::Tables;
use crate::members::{Members, voids_sessions};

/// What the core must know of a frame. Looks into the body, so that an entry that nobody could use is never stored.
pub(super) fn entry_of(frame: &Frame) -> Result<Entry, FrameError> {
    let header = frame.header();
    frame.check_groups()?;
    Tables::check(frame)?;
    let id = LogId { term: Term(header.term), index: Index(header.index) };
    Ok(Entry {
        id,
        meta: entry_meta(header.kind, frame.encoded_len(), members_of(frame)?.as_ref().map(Members::membership)),
    })
}

pub(super) fn entry_meta(kind: Kind, bytes: usize, membership: Option<Membership>) -> EntryMeta {
    let kind = match kind {
        Kind::Records => EntryKind::Records,
        Kind::Noop => EntryKind::Noop,
        Kind::Membership => EntryKind::Membership,
        Kind::Trim => EntryKind::Trim,
        Kind::Session => EntryKind::Session,
        Kind::Snapshot => EntryKind::Snapshot,
        Kind::Cursor => EntryKind::Cursor,
    };
    EntryMeta { kind, bytes: u32::try_from(bytes).unwrap_or(u32::MAX), membership }
}

pub(super) fn members_of(frame: &Frame) -> Result<Option<Members>, FrameError> {
    if frame.header().kind != Kind::Membership {
        return Ok(None);
    }
    Members::decode(&frame.body().concat()).map(Some).map_err(|_| FrameError::Malformed { what: "membership", at: 0 })
}

/// Tells the session table of an entry that another node made, or that was found on disk.
pub(super) fn apply_to_sessions(sessions: &mut Sessions, frame: &Frame) -> Result<(), FrameError> {
    let header = frame.header();
    match header.kind {
        Kind::Session => sessions.open(header.index),
        Kind::Membership if voids_sessions(&frame.body().concat()) => sessions.void(header.index),
        Kind::Records => {
            let mut first = header.base_offset;
            for group in frame.groups() {
                let group = group?;
                let group = group.header();
                sessions.append(group, placed(group, header.index, first, header.term, header.timestamp_ms));
                first += u64::from(group.count);
            }
        }
        _ => {}
    }
    Ok(())
}

pub(super) fn placed(group: &GroupHeader, index: u64, first: u64, term: u64, timestamp_ms: u64) -> Placed {
    Placed { sequence: group.sequence.unwrap_or(0), index, first, count: group.count, term, timestamp_ms }
}
