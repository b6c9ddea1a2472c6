//! The log as the core knows it: where each term begins, where the log ends, and which memberships stand in it.
//!
//! Entry bodies never come here. A log of millions of entries is a handful of term runs, so that the conflict hint of
//! Raft paper 5.3 is a lookup. Invariants, checked by [`Log::check`]:
//!
//! - runs ascend strictly in term and in first index; the first run begins right after `base`, the last one at or below `last`;
//! - memberships ascend in index, none is above `last`.

use std::collections::VecDeque;

use crate::config::Restored;
use crate::message::ConflictHint;
use crate::planted::{Bug, is_planted};
use crate::types::{Index, LogId, Membership, Term};

#[derive(Debug, Clone)]
pub(crate) struct Log {
    base: LogId,
    last: Index,
    runs: VecDeque<Run>,
    memberships: Vec<(Index, Membership)>,
    nobody: Membership,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    term: Term,
    first: Index,
}

impl Log {
    pub(crate) fn restore(restored: &Restored) -> Self {
        let base = restored.base;
        let mut runs = VecDeque::new();
        let ends = restored.term_runs.iter().skip(1).map(|run| run.1).chain([restored.last.next()]);
        for (&(term, first), end) in restored.term_runs.iter().zip(ends) {
            if end > base.index.next() {
                let first = first.max(base.index.next());
                runs.push_back(Run { term, first });
            }
        }
        let log = Self {
            base,
            last: restored.last.max(base.index),
            runs,
            memberships: restored.memberships.clone(),
            nobody: Membership::default(),
        };
        debug_assert_eq!(log.check(), Ok(()));
        log
    }

    pub(crate) fn base(&self) -> LogId {
        self.base
    }

    pub(crate) fn last(&self) -> Index {
        self.last
    }

    pub(crate) fn last_id(&self) -> LogId {
        LogId { term: self.runs.back().map_or(self.base.term, |run| run.term), index: self.last }
    }

    /// The term of an entry; `None` below `base` and above `last`.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        if index < self.base.index || index > self.last {
            return None;
        }
        self.run_of(index).map(|run| run.term)
    }

    pub(crate) fn id_at(&self, index: Index) -> Option<LogId> {
        self.term_at(index).map(|term| LogId { term, index })
    }

    fn run_of(&self, index: Index) -> Option<Run> {
        // Nearly every question is about the term at work.
        if let Some(run) = self.runs.back().filter(|run| run.first <= index) {
            return Some(*run);
        }
        let after = self.runs.partition_point(|run| run.first <= index);
        after.checked_sub(1).map(|at| self.runs[at])
    }

    /// Adds one entry at the end.
    pub(crate) fn append(&mut self, term: Term, membership: Option<Membership>) -> Index {
        let index = self.last.next();
        match self.runs.back() {
            Some(run) if run.term == term => {}
            back => {
                debug_assert!(back.is_none_or(|run| run.term < term), "terms never go back in a log");
                self.runs.push_back(Run { term, first: index });
            }
        }
        if let Some(membership) = membership {
            self.memberships.push((index, membership));
        }
        self.last = index;
        index
    }

    /// Drops everything from `from` on; the membership before comes back in force (Raft paper 6).
    pub(crate) fn truncate(&mut self, from: Index) {
        debug_assert!(from > self.base.index && from <= self.last);
        while self.runs.back().is_some_and(|run| run.first >= from) {
            self.runs.pop_back();
        }
        while self.memberships.last().is_some_and(|entry| entry.0 >= from) && !is_planted(Bug::MembershipKept) {
            self.memberships.pop();
        }
        self.last = from.previous();
    }

    /// Forgets what lies at or below `base`, which is held. The membership in force there stays.
    pub(crate) fn trim(&mut self, base: Index) {
        let Some(id) = self.id_at(base).filter(|id| id.index > self.base.index) else {
            return;
        };
        while self.runs.get(1).is_some_and(|run| run.first <= base.next()) {
            self.runs.pop_front();
        }
        if let Some(run) = self.runs.front_mut() {
            run.first = base.next();
        }
        if base == self.last {
            self.runs.clear();
        }
        let below = self.memberships.partition_point(|entry| entry.0 <= base);
        self.memberships.drain(..below.saturating_sub(1));
        self.base = id;
    }

    /// Forgets the memberships that no truncation can bring back in force: those before the newest committed one.
    pub(crate) fn forget_memberships(&mut self, commit: Index) {
        let committed = self.memberships.partition_point(|entry| entry.0 <= commit);
        self.memberships.drain(..committed.saturating_sub(1));
    }

    /// Starts over right after `base`, as an install leaves it (Raft paper 7).
    pub(crate) fn reset(&mut self, base: LogId, memberships: Vec<(Index, Membership)>) {
        self.base = base;
        self.last = base.index;
        self.runs.clear();
        self.memberships = memberships;
    }

    /// The last entry at or before `index` whose term is not above `term`, with the first index of its term held here.
    pub(crate) fn hint(&self, index: Index, term: Term) -> ConflictHint {
        let mut end = index.min(self.last);
        for run in self.runs.iter().rev().filter(|run| run.first <= index) {
            if run.term <= term {
                let at = LogId { term: run.term, index: end };
                return ConflictHint { at, first: run.first };
            }
            end = run.first.previous();
        }
        ConflictHint { at: self.base, first: self.base.index }
    }

    /// Where a leader with this log looks next, after a follower refused with `hint`: the index of the entry before the
    /// next append. Each refusal steps over at least one whole term of either log.
    pub(crate) fn meet(&self, hint: ConflictHint) -> Index {
        if hint.at.index < self.base.index {
            // What the follower needs is trimmed here: there is nothing to compare, and only an install helps.
            return hint.at.index;
        }
        let ours = self.hint(hint.at.index, hint.at.term);
        if ours.at.term == hint.at.term {
            if ours.at.index >= hint.first {
                return ours.at.index;
            }
            // The follower's run of this term begins after ours ended: no entry of the run is shared, and below it the
            // follower holds only earlier terms.
            return ours.first.previous();
        }
        ours.at.index.min(hint.first.previous())
    }

    /// The membership in force: the last one in the log, committed or not (Raft paper 6).
    pub(crate) fn membership(&self) -> &Membership {
        if is_planted(Bug::MembershipOnCommit) {
            return self.memberships.first().map_or(&self.nobody, |entry| &entry.1);
        }
        self.memberships.last().map_or(&self.nobody, |entry| &entry.1)
    }

    /// Where the membership in force stands.
    pub(crate) fn membership_index(&self) -> Index {
        self.memberships.last().map_or(Index(0), |entry| entry.0)
    }

    pub(crate) fn memberships(&self) -> &[(Index, Membership)] {
        &self.memberships
    }

    /// Looks for a broken invariant.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.last < self.base.index {
            return Err(format!("last {} is below base {}", self.last, self.base));
        }
        if self.runs.is_empty() != (self.last == self.base.index) {
            return Err(format!("{} runs for entries {}..={}", self.runs.len(), self.base.index.next(), self.last));
        }
        if let Some(run) = self.runs.front().filter(|run| run.first != self.base.index.next()) {
            return Err(format!("the first run begins at {}, base is {}", run.first, self.base));
        }
        let ascending = self.runs.iter().zip(self.runs.iter().skip(1));
        if let Some((a, b)) = ascending.into_iter().find(|(a, b)| a.term >= b.term || a.first >= b.first) {
            return Err(format!("runs do not ascend: {a:?}, {b:?}"));
        }
        if self.runs.back().is_some_and(|run| run.first > self.last) {
            return Err(format!("the last run begins above last {}", self.last));
        }
        if self.memberships.windows(2).any(|pair| pair[0].0 >= pair[1].0) || self.membership_index() > self.last {
            return Err("memberships do not ascend, or pass the end".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(terms: &[u64]) -> Log {
        let mut log = Log::restore(&Restored::default());
        for &term in terms {
            log.append(Term(term), None);
        }
        log
    }

    #[test]
    fn terms_are_found_and_truncation_pops_runs() {
        let mut log = log(&[1, 1, 2, 2, 2, 5]);
        assert_eq!(log.term_at(Index(2)), Some(Term(1)));
        assert_eq!(log.term_at(Index(5)), Some(Term(2)));
        assert_eq!(log.term_at(Index(6)), Some(Term(5)));
        assert_eq!(log.term_at(Index(7)), None);
        log.truncate(Index(3));
        assert_eq!(log.last_id(), LogId { term: Term(1), index: Index(2) });
        assert_eq!(log.check(), Ok(()));
    }

    #[test]
    fn trim_keeps_the_membership_in_force() {
        let mut log = log(&[1]);
        log.append(Term(1), Some(Membership::of_voters([crate::NodeId(7)])));
        log.append(Term(3), None);
        log.append(Term(3), None);
        for base in 2..=4 {
            log.trim(Index(base));
            assert_eq!(log.check(), Ok(()), "base {base}");
            assert!(log.membership().is_voter(crate::NodeId(7)));
        }
        assert_eq!(log.last_id(), LogId { term: Term(3), index: Index(4) });
        assert_eq!(log.term_at(Index(4)), Some(Term(3)));
        assert_eq!(log.term_at(Index(3)), None);
    }

    /// Raft paper 5.3: one refusal steps over one term, of whichever log.
    #[test]
    fn hints_step_over_whole_terms_of_both_logs() {
        let leader = log(&[1, 1, 3, 3, 3, 3, 7]);
        let follower = log(&[1, 1, 2, 2, 2, 2, 2, 2]);
        // Asked about 6@3, the follower offers its run of term 2; the leader has none of it and goes before that run.
        let hint = follower.hint(Index(6), Term(3));
        assert_eq!(hint, ConflictHint { at: LogId { term: Term(2), index: Index(6) }, first: Index(3) });
        assert_eq!(leader.meet(hint), Index(2));
        // A leader without a run to step over goes before the follower's.
        assert_eq!(log(&[1, 1, 1, 1, 1, 1, 9]).meet(hint), Index(2));
        // A follower that is just short is met at its end.
        let short = log(&[1, 1, 3]);
        assert_eq!(leader.meet(short.hint(Index(6), Term(3))), Index(3));
    }
}
