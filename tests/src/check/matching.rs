//! Log matching: two entries of equal index and term are equal, and so is everything before them (Raft paper, figure 3).
//!
//! Holds a copy of each node's log as the node handed it to its disk.

use std::collections::HashMap;

use graven_frame::{Chain, Frame};

use super::{Checked, violated};

/// See the module's documentation.
#[derive(Debug)]
pub struct Matching {
    logs: Vec<Vec<Frame>>,
    /// Chain of the first entry seen with a term and index; never iterated.
    seen: HashMap<(u64, u64), Chain>,
}

impl Matching {
    /// For nodes 1 to `nodes`.
    #[must_use]
    pub fn new(nodes: u64) -> Matching {
        Matching { logs: (0..=nodes).map(|_| Vec::new()).collect(), seen: HashMap::new() }
    }

    /// The log of `node`, from index 1 on.
    #[must_use]
    pub fn log(&self, node: u64) -> &[Frame] {
        &self.logs[node as usize]
    }

    /// `node` starts with this log.
    ///
    /// # Errors
    /// It holds an entry that another log has otherwise.
    pub fn restarted(&mut self, node: u64, frames: &[Frame]) -> Checked {
        self.logs[node as usize].clear();
        frames.iter().try_for_each(|frame| self.writing(node, frame))
    }

    /// `node` writes `frame`, in place of whatever it had from its index on.
    ///
    /// # Errors
    /// The frame does not continue the log, or another log has another entry of this index and term.
    pub fn writing(&mut self, node: u64, frame: &Frame) -> Checked {
        let header = frame.header();
        let log = &mut self.logs[node as usize];
        let index = header.index as usize;
        if index == 0 || index > log.len() + 1 {
            return violated("log matching", format!("node {node} writes index {index} after {}", log.len()));
        }
        log.truncate(index - 1);
        let (before, next_offset) =
            log.last().map_or((Chain::START, 0), |last| (last.header().chain, last.next_offset()));
        if header.chain_after(before) != header.chain || header.base_offset != next_offset {
            return violated("log matching", format!("node {node}: entry {index} does not continue the log before it"));
        }
        let chain = *self.seen.entry((header.term, header.index)).or_insert(header.chain);
        if chain != header.chain {
            return violated(
                "log matching",
                format!("node {node}: entry {index} of term {} is another than elsewhere", header.term),
            );
        }
        log.push(frame.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{frame, group};
    use super::*;

    #[test]
    fn different_entries_of_one_index_and_term_are_seen() {
        let mut matching = Matching::new(2);
        let first = frame(None, 1, &[]);
        for node in [1, 2] {
            matching.writing(node, &first).expect("equal");
        }
        let one = frame(Some(&first), 1, &[group(0, 0, &["a"])]);
        let two = frame(Some(&first), 1, &[group(0, 0, &["b"])]);
        matching.writing(1, &one).expect("the first");
        matching.writing(2, &two).expect_err("the second");
    }

    #[test]
    fn a_log_with_a_hole_or_a_wrong_past_is_seen() {
        let mut matching = Matching::new(1);
        let first = frame(None, 1, &[]);
        let second = frame(Some(&first), 1, &[]);
        let third = frame(Some(&second), 2, &[]);
        matching.writing(1, &first).expect("the first");
        matching.writing(1, &third).expect_err("a hole");
        let other = frame(Some(&first), 2, &[]);
        matching.writing(1, &other).expect("another second");
        matching.writing(1, &third).expect_err("its past is the first second");
    }
}
