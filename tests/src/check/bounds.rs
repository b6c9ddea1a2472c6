//! P11: what a node keeps in memory stays within its bounds, whatever clients, followers or the disk do.
//!
//! | what | bound |
//! |---|---|
//! | recent frames | the ring's size, and all that is not readable yet |
//! | marks | one for each entry above the readable index |
//! | what can be taken back of the session table | one for each entry above the readable index |
//! | sessions, results | [`SESSIONS_MAX`], [`RESULTS_MAX`] |
//! | appends in flight to a follower | its window of messages; its window of bytes and one append |
//! | loads of old frames | [`LOADS_PER_FOLLOWER`] for each follower |
//! | wishes to hand over | one |
//! | offers of a checkpoint | one for each follower |
//! | words about snapshots, files to fetch | one for each entry above the readable index; [`SNAPSHOTS_MAX`] |
//! | disk jobs, held messages | [`JOBS_MAX`], [`HELD_MAX`] |
//! | requests | [`REQUESTS_MAX`], the budget of the driver |
//! | effects, answers | none, once they were fetched |
//! | frames of the input | the one that was proposed last |

use graven::replica::Footprint;
use graven::replica::names::NAMES_MAX;
use graven::replica::sessions::{RESULTS_MAX, SESSIONS_MAX};
use graven::replica::snapshots::UPLOADS_MAX;
use graven_raft::Follower;

use super::{Checked, violated};

/// Each new attempt to feed a follower may begin one while an earlier one is still being read; an attempt takes at least
/// the append timeout of 500 ms, and a load here at most a pause of the process.
pub const LOADS_PER_FOLLOWER: usize = 16;
/// A job is a term change, or what came while the one before was written. A disk that stands still for 30 s ends the
/// process, and in 30 s there are at most 200 terms of 150 ms, each with a window of appends.
pub const JOBS_MAX: usize = 1024;
/// At most one answer for each message of a peer that rests on a job: a window of appends for each term, and every vote asked for
/// again while the disk stands still.
pub const HELD_MAX: usize = 2048;
/// Two files for each name, and uploads that wait.
pub const SNAPSHOTS_MAX: usize = 2 * NAMES_MAX + UPLOADS_MAX;
/// The daemon takes requests within a budget of bytes; these writers have 24 appends in flight, and send them again every
/// 60 ms at the soonest while a disk stands still for 2.5 s or a process for 3 s.
pub const REQUESTS_MAX: usize = 4096;
/// The largest frame these writers can cause: four records of 90,000 bytes.
const FRAME_MAX: u64 = 400_000;

/// The settings that bounds follow from, and where a node stands.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Bytes of the ring.
    pub ring_bytes: usize,
    /// Bytes in flight to a follower.
    pub window_bytes: u64,
    /// Other nodes.
    pub peers: usize,
    /// The end of its log.
    pub last: u64,
    /// The newest entry that readers may see.
    pub readable: u64,
}

/// Compares what `node` holds with the bounds.
///
/// # Errors
/// Something is above its bound.
pub fn check(node: u64, held: &Footprint, standing: &Standing, followers: impl Iterator<Item = Follower>) -> Checked {
    let above_readable = (standing.last - standing.readable) as usize;
    let bounds = [
        ("bytes of recent frames", held.ring_bytes, standing.ring_bytes + held.tail_bytes),
        ("marks", held.marks, above_readable),
        ("entries to take back", held.undo, above_readable),
        ("sessions", held.sessions, SESSIONS_MAX),
        ("results", held.results, RESULTS_MAX),
        ("loads", held.loads, LOADS_PER_FOLLOWER * standing.peers),
        ("wishes to hand over", held.transfers, 1),
        ("offers of a checkpoint", held.offers, standing.peers),
        ("words about snapshots", held.names, above_readable + SNAPSHOTS_MAX),
        ("disk jobs", held.jobs, JOBS_MAX),
        ("held messages", held.held, HELD_MAX),
        ("requests", held.intake + held.waiting, REQUESTS_MAX),
        ("things not fetched", held.undrained, 0),
        ("frames of the input", held.stash, 1),
    ];
    if let Some((what, is, most)) = bounds.into_iter().find(|(_, is, most)| is > most) {
        return violated("P11", format!("node {node} holds {is} {what}, the bound is {most}"));
    }
    for follower in followers {
        if follower.inflight_bytes > standing.window_bytes + FRAME_MAX {
            let (to, bytes, most) = (follower.node, follower.inflight_bytes, standing.window_bytes);
            return violated("P11", format!("node {node} has {bytes} bytes in flight to {to}, its window is {most}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use graven_raft::{Index, NodeId, ProgressState, Tick};

    use super::*;

    const STANDING: Standing = Standing { ring_bytes: 1000, window_bytes: 500, peers: 2, last: 10, readable: 7 };

    fn holds(held: Footprint) -> Checked {
        check(1, &held, &STANDING, std::iter::empty())
    }

    #[test]
    fn each_thing_above_its_bound_is_seen() {
        holds(Footprint::default()).expect("nothing");
        let within = Footprint { ring_bytes: 1000, marks: 3, undo: 2, loads: 32, transfers: 1, ..Footprint::default() };
        holds(within).expect("at the bounds");
        holds(Footprint { ring_bytes: 1001, ..within }).expect_err("the ring");
        holds(Footprint { ring_bytes: 1500, tail_bytes: 500, ..within }).expect("some of it is not readable yet");
        holds(Footprint { marks: 4, ..within }).expect_err("marks");
        holds(Footprint { undo: 4, ..within }).expect_err("undo");
        holds(Footprint { sessions: SESSIONS_MAX + 1, ..within }).expect_err("sessions");
        holds(Footprint { results: RESULTS_MAX + 1, ..within }).expect_err("results");
        holds(Footprint { loads: 33, ..within }).expect_err("loads");
        holds(Footprint { transfers: 2, ..within }).expect_err("transfers");
        holds(Footprint { offers: 3, ..within }).expect_err("offers");
        holds(Footprint { jobs: JOBS_MAX + 1, ..within }).expect_err("jobs");
        holds(Footprint { held: HELD_MAX + 1, ..within }).expect_err("held messages");
        holds(Footprint { intake: REQUESTS_MAX, waiting: 1, ..within }).expect_err("requests");
        holds(Footprint { undrained: 1, ..within }).expect_err("effects");
        holds(Footprint { stash: 2, ..within }).expect_err("frames of the input");
    }

    #[test]
    fn a_window_that_is_not_kept_is_seen() {
        let follower = |inflight_bytes| Follower {
            node: NodeId(2),
            matched: Index(0),
            next: Index(1),
            state: ProgressState::Replicate,
            inflight_bytes,
            heard: Tick(0),
            round: 0,
            lost: None,
            full: false,
        };
        let checked = |bytes| check(1, &Footprint::default(), &STANDING, std::iter::once(follower(bytes)));
        checked(500 + FRAME_MAX).expect("one append more than the window");
        checked(501 + FRAME_MAX).expect_err("more");
    }
}
