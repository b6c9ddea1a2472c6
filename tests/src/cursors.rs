//! Consumers that keep their place in the log of a run, and somebody who sets and drops cursors under their hands.

use graven::replica::cursors::Move;
use graven::replica::{Answer, Rejection, RequestId};

use crate::check::cursors::Table;
use crate::check::{Checked, violated};
use crate::cluster::Cluster;
use crate::workload::Request;

/// Few, so that consumers get in each other's way.
const NAMES: [&str; 3] = ["a", "b", "c"];

impl Cluster {
    /// Somebody moves a cursor, mostly forward and mostly to what is there, or looks at one.
    pub(crate) fn move_somewhere(&mut self, node: u64) {
        let name = (*self.rng.pick(&NAMES)).to_owned();
        if self.rng.chance(300) {
            return self.ask(node, Request::Look { name, asked: 0 });
        }
        let node = if self.rng.chance(900) { self.leader().unwrap_or(node) } else { node };
        let records = self.checkers.committed_records();
        let offset = if self.rng.chance(800) { self.rng.below(records + 1) } else { records + self.rng.below(3) };
        let wanted = match self.rng.below(20) {
            0 => Move::Drop(name),
            1 | 2 => Move::Set(name, offset),
            _ => Move::Advance(name, offset),
        };
        self.ask(node, Request::Move { wanted, asked: 0 });
    }

    pub(crate) fn on_move(&mut self, node: u64, request: u64, wanted: Move) -> Checked {
        let asked = self.checkers.cursors.asked();
        self.requests[request as usize] = Request::Move { wanted: wanted.clone(), asked };
        self.input(node, |replica, now| replica.move_cursor(now, RequestId(request), wanted))
    }

    pub(crate) fn on_look(&mut self, node: u64, request: u64, name: String) -> Checked {
        let asked = self.checkers.cursors.asked();
        self.requests[request as usize] = Request::Look { name, asked };
        self.input(node, |replica, now| replica.read_index(now, RequestId(request)))
    }

    pub(crate) fn moved(&mut self, wanted: &Move, asked: usize, answer: Result<Answer, Rejection>) -> Checked {
        let at = match (wanted, answer) {
            (Move::Drop(_), Ok(Answer::CursorDropped { .. })) => None,
            (Move::Advance(_, to), Ok(Answer::CursorAt { offset })) if offset >= *to => Some(offset),
            (Move::Set(_, to), Ok(Answer::CursorAt { offset })) if offset == *to => Some(offset),
            (_, Ok(other)) => return violated("answers", format!("{wanted:?} was answered with {other:?}")),
            (Move::Advance(_, to) | Move::Set(_, to), Err(Rejection::Beyond { next_offset })) if next_offset >= *to => {
                return violated("answers", format!("{wanted:?} was refused, the log ends at {next_offset}"));
            }
            (_, Err(_)) => return Ok(()),
        };
        self.stats.cursors += 1;
        self.checkers.cursors.answered(asked, wanted.name(), at)
    }

    /// A linearizable look: `node` shows by now all that was acknowledged before.
    pub(crate) fn looked(
        &mut self,
        node: u64,
        name: &str,
        asked: usize,
        answer: &Result<Answer, Rejection>,
    ) -> Checked {
        let process = self.node(node).process.as_ref();
        match (answer, process) {
            (Ok(Answer::ReadIndex { .. }), Some(process)) => {
                self.checkers.cursors.seen(asked, name, process.replica.cursor(name))
            }
            (Ok(other), _) => violated("answers", format!("a read was answered with {other:?}")),
            (Err(_), _) => Ok(()),
        }
    }

    /// What `node` says of the cursors must be what is committed up to where it shows the log.
    pub(crate) fn check_cursors(&mut self, node: u64) -> Checked {
        let Some(process) = self.node_mut(node).process.as_mut() else { return Ok(()) };
        let version = process.replica.cursors_version();
        if process.cursors_seen == Some(version) {
            return Ok(());
        }
        process.cursors_seen = Some(version);
        let table: Table = process.replica.cursors_after("").map(|(name, offset)| (name.to_owned(), offset)).collect();
        let readable = process.replica.view().readable_index;
        self.checkers.cursors.shows(node, readable, &table)
    }
}
