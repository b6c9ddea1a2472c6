//! P8, at once: a linearizable read sees every append that was acknowledged, by any node, before it began, all that an earlier
//! read saw, and nothing that is not committed. The whole history is looked at once more at the end, by
//! [`super::linearizability`]; this one stops a run at the step that breaks it.

use super::{Checked, violated};

/// How far answers reach.
#[derive(Debug, Default)]
pub struct Reads {
    answered: u64,
    /// Reads answered.
    pub checked: u64,
}

impl Reads {
    /// An append that ends before offset `end` was acknowledged.
    pub fn acknowledged(&mut self, end: u64) {
        self.answered = self.answered.max(end);
    }

    /// What a read that begins now must see at least.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.answered
    }

    /// A read that began at `floor` was answered with `next_offset`, while `committed` records are committed.
    ///
    /// # Errors
    /// It missed some, or saw too much.
    pub fn answered(&mut self, floor: u64, next_offset: u64, committed: u64) -> Checked {
        self.checked += 1;
        if next_offset < floor || next_offset > committed {
            return violated(
                "P8",
                format!(
                    "a read that began when {floor} records were acknowledged sees {next_offset}; committed are {committed}"
                ),
            );
        }
        self.answered = self.answered.max(next_offset);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_read_is_seen() {
        let mut reads = Reads::default();
        let early = reads.floor();
        reads.acknowledged(5);
        let late = reads.floor();
        reads.answered(early, 0, 6).expect("began before");
        reads.answered(late, 4, 6).expect_err("misses one");
        reads.answered(late, 7, 6).expect_err("sees too much");
        reads.answered(late, 6, 6).expect("sees all");
        reads.answered(reads.floor(), 5, 6).expect_err("an earlier read saw more");
    }
}
