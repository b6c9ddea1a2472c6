//! State-machine safety: no two nodes commit, or show readers, different entries at one index; in one life of a node neither
//! index goes back, and nothing committed is written over (Raft paper, figure 3).

use std::ops::Range;

use graven_frame::Frame;

use super::{Checked, Violation, violated};

/// The log that is committed, as first seen, and how far each node has come.
#[derive(Debug)]
pub struct Agreement {
    log: Vec<Frame>,
    commit: Vec<u64>,
    readable: Vec<u64>,
}

impl Agreement {
    /// For nodes 1 to `nodes`.
    #[must_use]
    pub fn new(nodes: u64) -> Agreement {
        Agreement { log: Vec::new(), commit: vec![0; nodes as usize + 1], readable: vec![0; nodes as usize + 1] }
    }

    /// What is committed, from index 1 on.
    #[must_use]
    pub fn log(&self) -> &[Frame] {
        &self.log
    }

    /// The committed entry at `index`.
    #[must_use]
    pub fn entry(&self, index: u64) -> Option<&Frame> {
        self.log.get(usize::try_from(index).ok()?.checked_sub(1)?)
    }

    /// `node` begins a new life.
    pub fn restarted(&mut self, node: u64) {
        self.commit[node as usize] = 0;
        self.readable[node as usize] = 0;
    }

    /// `node`, whose log is `log`, believes that everything up to `commit` is committed. Returns the indexes nobody
    /// believed so of before.
    ///
    /// # Errors
    /// It went back, or is wrong.
    pub fn committed(&mut self, node: u64, commit: u64, log: &[Frame]) -> Result<Range<u64>, Violation> {
        let before = self.commit[node as usize];
        let fail = |detail| Err(Violation { property: "state-machine safety", detail });
        if commit < before {
            return fail(format!("commit index of node {node} goes back from {before} to {commit}"));
        }
        if commit > log.len() as u64 {
            return fail(format!("node {node} commits {commit}, its log ends at {}", log.len()));
        }
        self.commit[node as usize] = commit;
        let known = self.log.len() as u64;
        for index in before + 1..=commit.min(known) {
            let at = index as usize - 1;
            if log[at].header().chain != self.log[at].header().chain {
                return fail(format!("node {node} commits another entry at {index} than was committed before"));
            }
        }
        for index in known + 1..=commit {
            self.log.push(log[index as usize - 1].clone());
        }
        Ok(known + 1..self.log.len() as u64 + 1)
    }

    /// `node` writes `frame`: at or below its commit index that is wrong.
    ///
    /// # Errors
    /// See above.
    pub fn overwriting(&mut self, node: u64, frame: &Frame) -> Checked {
        let (index, commit) = (frame.header().index, self.commit[node as usize]);
        if index <= commit {
            return violated(
                "state-machine safety",
                format!("node {node} writes over entry {index}, its commit index is {commit}"),
            );
        }
        Ok(())
    }

    /// `node` shows readers everything up to entry `readable`, which ends before `next_offset`.
    ///
    /// # Errors
    /// It went back, is not committed, or its offset is wrong.
    pub fn readable(&mut self, node: u64, readable: u64, next_offset: u64) -> Checked {
        let before = self.readable[node as usize];
        let expected = if readable == 0 { Some(0) } else { self.entry(readable).map(Frame::next_offset) };
        if readable < before || readable > self.commit[node as usize] || expected != Some(next_offset) {
            return violated(
                "state-machine safety",
                format!(
                    "node {node} shows entries to {readable} and offset {next_offset}; before {before}, commit index {}, committed offset {expected:?}",
                    self.commit[node as usize]
                ),
            );
        }
        self.readable[node as usize] = readable;
        Ok(())
    }

    /// `node` reads these frames, from index `first` on, from its files.
    ///
    /// # Errors
    /// They are not what was committed.
    pub fn read_back(&self, node: u64, first: u64, frames: &[Frame]) -> Checked {
        for (read, committed) in frames.iter().zip(self.log.iter().skip(first as usize - 1)) {
            if read.head() != committed.head() || read.body().concat() != committed.body().concat() {
                return violated(
                    "P2",
                    format!("node {node} reads another entry at {} than was committed", committed.header().index),
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{frame, group};
    use super::*;

    fn logs() -> (Vec<Frame>, Vec<Frame>) {
        let first = frame(None, 1, &[]);
        let one = frame(Some(&first), 1, &[group(0, 0, &["a"])]);
        let two = frame(Some(&first), 2, &[group(0, 0, &["b"])]);
        (vec![first.clone(), one], vec![first, two])
    }

    #[test]
    fn two_entries_committed_at_one_index_are_seen() {
        let (one, two) = logs();
        let mut agreement = Agreement::new(2);
        assert_eq!(agreement.committed(1, 2, &one).expect("the first"), 1..3);
        assert!(agreement.committed(2, 1, &two).expect("equal so far").is_empty());
        agreement.committed(2, 2, &two).expect_err("another");
    }

    #[test]
    fn a_commit_index_that_goes_back_or_past_the_log_is_seen() {
        let (one, _) = logs();
        let mut agreement = Agreement::new(1);
        agreement.committed(1, 3, &one).expect_err("past the log");
        agreement.committed(1, 2, &one).expect("all");
        agreement.committed(1, 1, &one).expect_err("back");
        agreement.overwriting(1, &one[1]).expect_err("written over");
        agreement.restarted(1);
        agreement.committed(1, 1, &one).expect("a new life");
    }

    #[test]
    fn showing_what_is_not_committed_or_at_another_offset_is_seen() {
        let (one, two) = logs();
        let mut agreement = Agreement::new(1);
        agreement.committed(1, 1, &one).expect("the first");
        agreement.readable(1, 2, 1).expect_err("not committed");
        agreement.readable(1, 1, 1).expect_err("another offset");
        agreement.readable(1, 1, 0).expect("right");
        agreement.committed(1, 2, &one).expect("all");
        agreement.read_back(1, 1, &two).expect_err("other bytes");
        agreement.read_back(1, 1, &one).expect("right");
        agreement.read_back(1, 2, &one[1..]).expect("what is left");
        agreement.read_back(1, 1, &one[1..]).expect_err("another place");
    }
}
