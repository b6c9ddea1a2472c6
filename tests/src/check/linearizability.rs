//! P8: the recorded history of appends and reads is linearizable.
//!
//! The register is the log: an append of `count` records answers the offset of its first, a read answers the length. A history
//! is linearizable when every operation can be given one moment between its call and its answer (an append without an
//! answer: any moment after its call, or none) so that each answer is what the log was at that moment.
//!
//! In general that is a search. Here offsets decide the order: appends take effect in the order of their offsets, and a read
//! of `n` comes after the append that ends at `n` and before the one that begins there. Only the moments are left to find, and
//! giving each operation the earliest possible one is enough: if any choice works, the earliest does. So it is a sort and one
//! walk. Where an append without an answer landed is taken from the log, which the other checkers compare on all nodes.

use std::collections::BTreeMap;

use super::{Checked, violated};

/// An append: one call of a client, however often it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Append {
    /// When it was first sent.
    pub called: u64,
    /// When it was first answered with its offset, if ever.
    pub answered: Option<u64>,
    /// The offset of its first record, if it landed.
    pub first: Option<u64>,
    /// Its records.
    pub count: u64,
}

/// A read of the log's length, or a refused conditional append, which tells the length as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// When it was asked.
    pub called: u64,
    /// When it was answered.
    pub answered: u64,
    /// The length it told.
    pub length: u64,
}

/// What clients did and were told. Moments are numbers of steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// By session and sequence number.
    appends: BTreeMap<(u64, u64), Append>,
    reads: Vec<Read>,
}

impl History {
    /// The append of this session and number is sent; the first time counts.
    pub fn append_called(&mut self, key: (u64, u64), now: u64, count: u64) {
        self.appends.entry(key).or_insert(Append { called: now, answered: None, first: None, count });
    }

    /// The append stands in the log that is committed, at offset `first`.
    pub fn append_landed(&mut self, key: (u64, u64), first: u64) {
        if let Some(append) = self.appends.get_mut(&key) {
            append.first.get_or_insert(first);
        }
    }

    /// The append was answered with its offset; the first time counts.
    pub fn append_answered(&mut self, key: (u64, u64), now: u64) {
        if let Some(append) = self.appends.get_mut(&key) {
            append.answered.get_or_insert(now);
        }
    }

    /// A read, or a refusal that tells the length.
    pub fn read(&mut self, read: Read) {
        self.reads.push(read);
    }

    /// Looks for a moment for every operation.
    ///
    /// # Errors
    /// There is none for one of them.
    pub fn check(&self) -> Checked {
        check(self.appends.values(), &self.reads)
    }
}

/// See the module's documentation.
fn check<'a>(appends: impl Iterator<Item = &'a Append>, reads: &[Read]) -> Checked {
    let not = |what: String| violated("P8", format!("not linearizable: {what}"));
    let mut landed: Vec<_> = appends.filter_map(|append| Some((append.first?, append))).collect();
    landed.sort_unstable_by_key(|(first, _)| *first);
    let mut reads: Vec<_> = reads.iter().collect();
    reads.sort_by_key(|read| read.length);
    let mut reads = reads.into_iter().peekable();
    // The log's length, and the moment up to which all has been placed.
    let (mut length, mut now) = (0, 0);
    let mut appends = landed.into_iter();
    loop {
        let mut latest = now;
        while let Some(read) = reads.next_if(|read| read.length == length) {
            let at = now.max(read.called);
            if at > read.answered {
                return not(format!("{read:?} is told a length that was reached at {now} at the earliest"));
            }
            latest = latest.max(at);
        }
        now = latest;
        if let Some(read) = reads.peek().filter(|read| read.length < length) {
            return not(format!("{read:?} is told a length that the log never had"));
        }
        let Some((first, append)) = appends.next() else { break };
        if first != length {
            return not(format!("{append:?} stands at {first}, the log before it ends at {length}"));
        }
        now = now.max(append.called);
        if append.answered.is_some_and(|answered| now > answered) {
            return not(format!("{append:?} could take effect at {now} at the earliest"));
        }
        length += append.count;
    }
    match reads.next() {
        Some(read) => not(format!("{read:?} is told a length that the log never had")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn append(called: u64, answered: Option<u64>, first: u64, count: u64) -> Append {
        Append { called, answered, first: Some(first), count }
    }

    fn read(called: u64, answered: u64, length: u64) -> Read {
        Read { called, answered, length }
    }

    #[test]
    fn a_stale_read_is_seen() {
        let appends = [append(1, Some(2), 0, 1), append(3, Some(4), 1, 1)];
        check(appends.iter(), &[read(2, 6, 1)]).expect("asked before the second was answered");
        check(appends.iter(), &[read(5, 6, 1)]).expect_err("the second was answered before");
    }

    #[test]
    fn a_read_of_what_was_not_appended_yet_is_seen() {
        let appends = [append(5, Some(6), 0, 2)];
        check(appends.iter(), &[read(1, 2, 2)]).expect_err("answered before the append was called");
        check(appends.iter(), &[read(1, 7, 1)]).expect_err("half an append");
        check(appends.iter(), &[read(1, 7, 3)]).expect_err("more than there is");
    }

    #[test]
    fn two_reads_that_go_back_are_seen_though_the_append_between_them_has_no_answer() {
        let appends = [append(1, None, 0, 1)];
        check(appends.iter(), &[read(2, 3, 0), read(4, 5, 1)]).expect("it took effect between them");
        check(appends.iter(), &[read(2, 3, 1), read(4, 5, 0)]).expect_err("it cannot be taken back");
    }

    #[test]
    fn appends_whose_offsets_contradict_their_times_are_seen() {
        check([append(1, Some(2), 1, 1), append(3, Some(4), 0, 1)].iter(), &[])
            .expect_err("the later one stands first");
        check([append(1, Some(4), 1, 1), append(3, Some(5), 0, 1)].iter(), &[]).expect("both were under way");
        check([append(1, Some(4), 1, 1)].iter(), &[]).expect_err("a hole before it");
    }

    #[test]
    fn an_append_that_never_landed_constrains_nothing() {
        let lost = Append { called: 1, answered: None, first: None, count: 3 };
        check([lost, append(2, Some(3), 0, 1)].iter(), &[read(4, 5, 1)]).expect("fine");
    }

    /// Places operations one by one in every possible order; the textbook search (Wing and Gong).
    fn brute_force(appends: &[Append], reads: &[Read], left_appends: u32, left_reads: u32, length: u64) -> bool {
        let appends_left = || (0..appends.len()).filter(move |at| left_appends >> at & 1 == 1);
        let reads_left = || (0..reads.len()).filter(move |at| left_reads >> at & 1 == 1);
        if appends_left().all(|at| appends[at].first.is_none()) && left_reads == 0 {
            return true;
        }
        // Whoever is placed next must have been called before anybody else who is left was answered.
        let ends =
            appends_left().filter_map(|at| appends[at].answered).chain(reads_left().map(|at| reads[at].answered));
        let soonest = ends.min().unwrap_or(u64::MAX);
        let by_append = appends_left().any(|at| {
            let append = &appends[at];
            append.called <= soonest
                && append.first == Some(length)
                && brute_force(appends, reads, left_appends & !(1 << at), left_reads, length + append.count)
        });
        by_append
            || reads_left().any(|at| {
                let read = &reads[at];
                read.called <= soonest
                    && read.length == length
                    && brute_force(appends, reads, left_appends, left_reads & !(1 << at), length)
            })
    }

    #[test]
    fn the_walk_agrees_with_the_search_on_small_histories() {
        let (mut good, mut bad) = (0, 0);
        for seed in 0..60_000 {
            let mut rng = Rng::new(seed);
            let (mut appends, mut reads, mut next) = (Vec::new(), Vec::new(), 0);
            for _ in 0..rng.below(5) {
                let called = rng.below(12);
                let answered = rng.chance(700).then(|| called + rng.below(8));
                let count = 1 + rng.below(2);
                // Mostly dense, now and then a lie.
                let landed = answered.is_some() || rng.chance(500);
                let first = landed.then(|| if rng.chance(50) { rng.below(6) } else { next });
                next += if landed { count } else { 0 };
                appends.push(Append { called, answered, first, count });
            }
            for _ in 0..rng.below(4) {
                let called = rng.below(14);
                reads.push(Read { called, answered: called + rng.below(6), length: rng.below(next + 2) });
            }
            let found = check(appends.iter(), &reads).is_ok();
            let wanted = brute_force(&appends, &reads, (1 << appends.len()) - 1, (1 << reads.len()) - 1, 0);
            assert_eq!(found, wanted, "seed {seed}: {appends:?} {reads:?}");
            *if wanted { &mut good } else { &mut bad } += 1;
        }
        assert!(good > 2_000 && bad > 2_000, "{good} good and {bad} bad histories prove little");
    }
}
