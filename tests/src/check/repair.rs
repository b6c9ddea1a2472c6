//! The cost of finding where two logs part: a tail of T terms costs at most T + 1 refusals (Raft paper 5.3, the optimisation
//! with conflict terms).
//!
//! Counted are refusals of appends that begin inside the follower's log, each place once: a lost answer is asked for again. Of
//! appends that were under way together, of one epoch, only the lowest counts: where lanes reorder, those behind it are refused for the
//! same reason. That a log is merely too short is told by its length and costs nothing more.

use std::collections::{BTreeMap, BTreeSet};

use graven_frame::Frame;

use super::{Checked, violated};

/// The lowest place where an append was refused, by epoch.
type Places = BTreeMap<u64, u64>;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Repair {
    /// By follower, its life and the leader's term: the terms in its tail when it first refused, and by epoch the lowest place
    /// where it did.
    refused: BTreeMap<(u64, u64, u64), (u64, Places)>,
}

impl Repair {
    /// `follower`, in life `life`, refuses an append of the leader of `term`, of this epoch, that begins after the entry at `prev`.
    /// These are their logs.
    ///
    /// # Errors
    /// It has refused too often.
    pub fn refused(
        &mut self,
        (follower, life): (u64, u64),
        term: u64,
        (epoch, prev): (u64, u64),
        theirs: &[Frame],
        leaders: &[Frame],
    ) -> Checked {
        if prev > theirs.len() as u64 {
            return Ok(());
        }
        let (tail, places) = self
            .refused
            .entry((follower, life, term))
            .or_insert_with(|| (terms_in_tail(theirs, leaders), BTreeMap::new()));
        places.entry(epoch).and_modify(|lowest| *lowest = prev.min(*lowest)).or_insert(prev);
        let places: BTreeSet<_> = places.values().collect();
        if places.len() as u64 > *tail + 1 {
            return violated(
                "repair cost",
                format!(
                    "node {follower} refuses appends of term {term} at {places:?}; its log parts from the leader's in {tail} terms"
                ),
            );
        }
        Ok(())
    }
}

/// How many terms stand in what `theirs` has beyond what it shares with `leaders`.
fn terms_in_tail(theirs: &[Frame], leaders: &[Frame]) -> u64 {
    let chain = |log: &[Frame], at: usize| log.get(at).map(|frame| frame.header().chain);
    // Equal chains mean equal logs up to there: the border is found by halving.
    let (mut equal, mut differs) = (0, theirs.len().min(leaders.len()));
    while equal < differs {
        let middle = (equal + differs) / 2;
        if chain(theirs, middle) == chain(leaders, middle) { equal = middle + 1 } else { differs = middle }
    }
    let terms: BTreeSet<_> = theirs[equal..].iter().map(|frame| frame.header().term).collect();
    terms.len() as u64
}

#[cfg(test)]
mod tests {
    use super::super::testing::frame;
    use super::*;

    fn log(terms: &[u64]) -> Vec<Frame> {
        let mut frames: Vec<Frame> = Vec::new();
        for term in terms {
            frames.push(frame(frames.last(), *term, &[]));
        }
        frames
    }

    #[test]
    fn one_step_back_at_a_time_is_seen() {
        let (theirs, leaders) = (log(&[1, 2, 2, 2, 3, 3]), log(&[1, 4, 4, 4, 4, 4, 5]));
        assert_eq!(terms_in_tail(&theirs, &leaders), 2);
        let mut repair = Repair::default();
        for (epoch, prev) in [(1, 6), (3, 5), (5, 4)] {
            repair.refused((1, 1), 5, (epoch, prev), &theirs, &leaders).expect("three for two terms");
            repair.refused((1, 1), 5, (epoch + 1, prev), &theirs, &leaders).expect("asked again");
        }
        repair.refused((1, 1), 5, (6, 5), &theirs, &leaders).expect("under way with one that counted");
        repair.refused((1, 1), 5, (7, 7), &theirs, &leaders).expect("too short is no refusal of this kind");
        repair.refused((2, 1), 5, (7, 3), &theirs, &leaders).expect("another node");
        repair.refused((1, 1), 5, (7, 3), &theirs, &leaders).expect_err("the fourth place");
    }

    #[test]
    fn terms_are_counted_behind_the_shared_part_only() {
        assert_eq!(terms_in_tail(&log(&[1, 2, 3]), &log(&[1, 2, 3, 4])), 0);
        assert_eq!(terms_in_tail(&log(&[1, 2, 3]), &log(&[1])), 2);
        assert_eq!(terms_in_tail(&log(&[1, 2]), &log(&[2, 2])), 2);
    }
}
