//! What a rejection is called to clients.

use graven_net::server::{ErrorCode, Failure};

use crate::members::change::ChangeRefused;
use crate::replica::Rejection;

/// A rejection that ends a session's pipeline, as clients see it.
pub(super) fn failure(rejection: Rejection) -> Failure {
    match rejection {
        Rejection::Conflict { next_offset } => {
            let message = format!("the next record lands at offset {next_offset}, not at the expected one");
            Failure::refused(ErrorCode::Conflict, message).with("next_offset", next_offset)
        }
        Rejection::TrimBeyond { next_offset } => {
            let message = format!("nothing was trimmed: there is no record behind offset {next_offset} yet");
            Failure::refused(ErrorCode::OutOfRange, message).with("next_offset", next_offset)
        }
        Rejection::NeededBySnapshot { name, offset } => {
            let message = format!(
                "nothing was trimmed: the snapshot {name} goes on with the record at offset {offset}; trim before that, put a \
                 newer snapshot, or drop it with `graven snapshot drop {name}`"
            );
            Failure::refused(ErrorCode::Conflict, message).with("snapshot_offset", offset)
        }
        Rejection::Beyond { next_offset } => {
            let message = format!("that offset is not committed yet; the next record gets offset {next_offset}");
            Failure::refused(ErrorCode::OutOfRange, message).with("next_offset", next_offset)
        }
        Rejection::TrimmedAway { first_offset } => {
            let message = format!("records behind that offset are trimmed; the first record is at {first_offset}");
            Failure::refused(ErrorCode::Trimmed, message).with("first_offset", first_offset)
        }
        Rejection::OlderSnapshot { current } => {
            let message =
                format!("the snapshot of that name is of offset {current}, which is later; drop it first to go back");
            Failure::refused(ErrorCode::Conflict, message).with("snapshot_offset", current)
        }
        Rejection::SnapshotComing => Failure::refused(
            ErrorCode::Conflict,
            "another snapshot of that name is being taken in; wait for it and look at `graven snapshot list`",
        ),
        Rejection::TooManySnapshots => Failure::refused(
            ErrorCode::Conflict,
            "there are as many snapshots as there may be (64 names, 16 uploads); drop one that nobody needs",
        ),
        Rejection::SnapshotReplaced => Failure::refused(
            ErrorCode::Conflict,
            "a later snapshot of that name, or its end, came before this one was on a majority of the nodes",
        ),
        Rejection::NoSuchSnapshot => Failure::refused(
            ErrorCode::OutOfRange,
            "no snapshot has that name; `graven snapshot list` shows those that are there",
        ),
        Rejection::CursorName => Failure::refused(
            ErrorCode::Usage,
            "a cursor's name has 1 to 64 letters, digits, dots, dashes and underscores, and begins with none of dot and dash",
        ),
        Rejection::TooManyCursors => Failure::refused(
            ErrorCode::Conflict,
            "there are 1024 cursors, which is as many as there may be; drop one that nobody needs: `graven cursor list`",
        ),
        Rejection::CursorsBusy => {
            Failure::refused(ErrorCode::Unavailable, "too many cursors are being moved at once; try again in a moment")
        }
        Rejection::Level { needed } => Failure::refused(
            ErrorCode::Unavailable,
            format!(
                "not all nodes of the cluster know feature level {needed} yet; upgrade them, `graven doctor` says which"
            ),
        ),
        Rejection::Fenced { fence } => {
            let message = format!("a fencing token of {fence} has been used; this append carries a lower one");
            Failure::refused(ErrorCode::Fenced, message).with("fence", fence)
        }
        Rejection::SessionExpired => Failure::unknown(
            ErrorCode::SessionExpired,
            "the session is no longer known, so nobody can tell whether the append is in the log; read it and compare",
        ),
        Rejection::DiskFull => Failure::refused(
            ErrorCode::DiskFull,
            "a majority of the nodes has no room for records; free space on their disks, or give up old records with \
             `graven trim --before OFFSET`, and appends go on by themselves",
        ),
        Rejection::MembersChanging => Failure::refused(
            ErrorCode::Unavailable,
            "another change of the members is not over yet; see `graven member list`",
        ),
        Rejection::Change(why) => change_refused(&why),
        Rejection::Malformed => Failure::refused(ErrorCode::Usage, "the append has no record, or half a session"),
        Rejection::TransferFailed => Failure::refused(
            ErrorCode::Conflict,
            "the node cannot take the leadership: it is unknown, unreachable or too far behind; see `graven status`",
        ),
        Rejection::NotLeader { .. } => Failure::refused(ErrorCode::Unavailable, "this node does not lead"),
        Rejection::LostLeadership { .. } => {
            Failure::unknown(ErrorCode::Unavailable, "this node stopped leading before the outcome was certain")
        }
        Rejection::Transferring => Failure::refused(ErrorCode::Unavailable, "the leadership is being handed over"),
        Rejection::ReadFailed => {
            Failure::refused(ErrorCode::Unavailable, "no leader confirmed the read; check that a majority is up")
        }
        Rejection::Gap { expected } => {
            Failure::refused(ErrorCode::Conflict, format!("the session goes on with sequence {expected}"))
        }
    }
}

/// Why the members were not changed, as clients see it.
fn change_refused(why: &ChangeRefused) -> Failure {
    match why {
        ChangeRefused::Unknown { .. } => Failure::refused(ErrorCode::Usage, why.to_string()).with("unknown_member", 1),
        ChangeRefused::NotKnown => Failure::refused(ErrorCode::Usage, why.to_string()),
        ChangeRefused::Behind { entries, .. } => {
            Failure::refused(ErrorCode::Conflict, why.to_string()).with("behind_entries", *entries)
        }
        _ => Failure::refused(ErrorCode::Conflict, why.to_string()),
    }
}
