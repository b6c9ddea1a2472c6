//! Retention: the leader trims what its settings say is too much or too old.
//!
//! What goes is decided once, by the leader, and becomes a trim like any other: all nodes agree on it. Every node remembers places in the part of
//! its log that readers see ([`Waypoint`]: offset, bytes before it, latest timestamp before it), so that whoever becomes leader can
//! decide without reading. There are at most [`PLACES_MAX`]; a restart takes them from the segments' indexes.
//!
//! **By bytes.** The newest place behind which at least so many bytes stay. No clock is asked.
//!
//! **By age.** A clock that is wrong by years must delete nothing. So two things are asked of clocks:
//!
//! - Entries are stamped by the leader's clock only as far as it fits the others': not below the highest time that a majority of the
//!   voters' clocks has reached, not further above it than [`CLOCKS_APART_MS`].
//! - A record goes when it is too old both by the leader's clock and by that time, while a majority of the clocks is within
//!   [`CLOCKS_APART_MS`] of the leader's. One trim takes at most a share of the records, and then there is a pause.
//!
//! Before the first reports of a new leader's followers have come it stamps records by its own clock. If that is ahead, records stay longer
//! than they should; if it is behind, they look as old as the entry before them.
//!
//! Never past what a named snapshot needs. Not on nodes with state machines: their snapshots say what may go.

use std::collections::VecDeque;

use graven_frame::Frame;
use graven_raft::{Membership, NodeId, Role, Tick, quorum};
use graven_wal::{Room, Waypoint};

use super::Replica;
use super::effect::Now;
use super::log::{LogView, Mark};
use super::planted::{Bug, is_planted};
use super::snapshots::NAMES_LEVEL;
use crate::config::Retention;

/// How far clocks may be apart that are believed. Clocks that are kept in step are within milliseconds; one that is not is off by more
/// than this soon.
const CLOCKS_APART_MS: u64 = 5_000;
/// A clock that was not heard of for so long, ten reports, is not counted.
const CLOCK_HEARD_US: u64 = 10_000_000;
/// Places remembered: four times as many as parts, for a log that may not be trimmed for a while. 32 KiB.
const PLACES_MAX: usize = 1024;
/// A place comes every so many parts of the bytes and of the time that are to be kept: what stays beyond them is at most one part.
const PARTS: u64 = 256;
/// The least bytes between places: fewer would make a trim of a few entries.
const STEP_BYTES_MIN: u64 = 16 << 10;
/// Bytes between places when only time counts.
const STEP_BYTES_AGE: u64 = 1 << 20;
/// How often it is asked what is too old, when nothing is appended.
const LOOK_EVERY_US: u64 = 1_000_000;
/// After a trim that took its whole share the next one by age comes when this part of the age has passed, an hour at most: time to see that
/// something is wrong.
const PAUSE_PARTS: u64 = 16;
const PAUSE_MAX_US: u64 = 3_600_000_000;

/// The places of a log, and what is to be kept of it.
#[derive(Debug)]
pub(super) struct Keeper {
    retention: Retention,
    /// Ascending, all behind the first offset.
    places: VecDeque<Waypoint>,
    /// The end of what readers see.
    end: Waypoint,
    /// Whether a place came since it was looked.
    has_news: bool,
    looked: Option<Tick>,
    /// No trim by age before this.
    paused_until: Option<Tick>,
}

impl Keeper {
    /// Places of the log up to `start`. `None` when everything is to be kept.
    pub(super) fn found(retention: Retention, places: &[Waypoint], start: Mark) -> Option<Keeper> {
        if !retention.is_set() {
            return None;
        }
        let Mark { index, next_offset, timestamp_ms, .. } = start;
        let bytes = places.last().map_or(0, |last| last.bytes);
        let end = Waypoint { index, next_offset, bytes, timestamp_ms };
        let mut keeper =
            Keeper { retention, places: VecDeque::new(), end, has_news: true, looked: None, paused_until: None };
        places.iter().for_each(|place| keeper.remember(*place));
        keeper.remember(end);
        Some(keeper)
    }

    /// Readers of `log` see entries up to `readable` now. Called before the log's view is told, whose frames it needs.
    pub(super) fn passes(keeper: Option<&mut Keeper>, log: &LogView, readable: u64) {
        let Some(keeper) = keeper else { return };
        for index in log.readable().index + 1..=readable.min(log.last().index) {
            if let Some(frame) = log.frame(index) {
                keeper.pass(frame);
            }
        }
    }

    fn pass(&mut self, frame: &Frame) {
        let mark = Mark::of(frame);
        self.extend(mark, Room::bytes_of(frame.encoded_len()));
    }

    fn extend(&mut self, mark: Mark, bytes: u64) {
        let last = self.places.back().copied().unwrap_or_default();
        // Before the entry: after it, what is old would have to wait for it.
        if self.step_ms().is_some_and(|step| mark.timestamp_ms.saturating_sub(last.timestamp_ms) >= step) {
            self.remember(self.end);
        }
        let Mark { index, next_offset, timestamp_ms, .. } = mark;
        self.end = Waypoint { index, next_offset, bytes: self.end.bytes + bytes, timestamp_ms };
        if self.end.bytes - self.places.back().map_or(0, |last| last.bytes) >= self.step_bytes() {
            self.remember(self.end);
        }
    }

    fn remember(&mut self, place: Waypoint) {
        if self.places.back().is_some_and(|last| last.index >= place.index) {
            return;
        }
        if self.places.len() == PLACES_MAX {
            // The older half is thinned out: the places that count are those near the amount that is to be kept.
            let mut nth = 0;
            self.places.retain(|_| {
                nth += 1;
                nth > PLACES_MAX / 2 || nth % 2 == 0
            });
        }
        self.places.push_back(place);
        self.has_news = true;
    }

    fn step_bytes(&self) -> u64 {
        self.retention.bytes.map_or(STEP_BYTES_AGE, |bytes| (bytes / PARTS).max(STEP_BYTES_MIN))
    }

    fn age_ms(&self) -> Option<u64> {
        self.retention.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }

    fn step_ms(&self) -> Option<u64> {
        self.age_ms().map(|age| age / PARTS)
    }

    fn forget_before(&mut self, first_offset: u64) {
        while self.places.front().is_some_and(|place| place.next_offset <= first_offset) {
            self.places.pop_front();
        }
    }

    /// The last place for which `may_go` holds; it holds for none behind one for which it does not.
    fn newest(&self, may_go: impl Fn(&Waypoint) -> bool) -> Option<u64> {
        let at = self.places.partition_point(|place| may_go(place));
        let place = at.checked_sub(1).and_then(|at| self.places.get(at)).copied();
        let place = if may_go(&self.end) { Some(self.end) } else { place };
        place.map(|place| place.next_offset)
    }

    /// Before which offset records are beyond the bytes that are to be kept.
    fn too_much(&self) -> Option<u64> {
        let keep = self.retention.bytes?;
        let keep = if is_planted(Bug::RetentionTakesMore) { keep / 2 } else { keep };
        let most = self.end.bytes.checked_sub(keep)?;
        self.newest(|place| place.bytes <= most)
    }

    /// Before which offset records are too old at `time_ms`, all of them.
    fn too_old(&self, time_ms: u64) -> Option<u64> {
        let before_ms = time_ms.checked_sub(self.age_ms()?)?;
        self.newest(|place| place.timestamp_ms < before_ms)
    }

    /// The same within the share of the records from `first` on that may go at once, and whether that was less.
    fn too_old_within_share(&self, first: u64, time_ms: u64) -> Option<(u64, bool)> {
        let before = self.too_old(time_ms)?;
        let records = u128::from(self.end.next_offset.saturating_sub(first));
        let share = records * u128::from(self.retention.share_thousandths) / 1000;
        // At least one, or the last few would stay for ever.
        let most = first + u64::try_from(share).unwrap_or(u64::MAX).max(1);
        Some((before.min(most), before > most))
    }

    fn pause_us(&self) -> u64 {
        let part = self.age_ms().unwrap_or(0).saturating_mul(1000) / PAUSE_PARTS;
        part.clamp(LOOK_EVERY_US, PAUSE_MAX_US)
    }
}

impl Replica {
    /// Trims what is too much or too old. Returns whether an entry was proposed.
    pub(super) fn maybe_retain(&mut self, now: Now) -> bool {
        let due = self.retention_deadline().is_some_and(|due| due <= now.tick)
            || self.keeper.as_ref().is_some_and(|keeper| keeper.has_news);
        if !due || !self.retains() {
            return false;
        }
        let first = self.first_offset;
        if let Some(keeper) = &mut self.keeper {
            (keeper.has_news, keeper.looked) = (false, Some(now.tick));
            keeper.forget_before(first);
        }
        // One at a time, whoever wanted it.
        if self.tables.trims.highest() > first {
            return false;
        }
        let time_ms = self.time_to_trim_by(now);
        let Some(keeper) = &self.keeper else { return false };
        let may_age = keeper.paused_until.is_none_or(|until| until <= now.tick);
        let aged = time_ms.filter(|_| may_age).and_then(|time_ms| keeper.too_old_within_share(first, time_ms));
        let Some(wanted) = keeper.too_much().max(aged.map(|(before, _)| before)) else { return false };
        let before = wanted.min(self.needed_by_snapshot().map_or(u64::MAX, |(_, offset)| offset));
        if before <= first || self.propose_trim(now, before).is_err() {
            return false;
        }
        if aged.is_some_and(|(_, cut)| cut)
            && let Some(keeper) = &mut self.keeper
        {
            keeper.paused_until = Some(now.tick.after(keeper.pause_us()));
        }
        true
    }

    /// Whether retention is this node's to decide.
    fn retains(&self) -> bool {
        let leads = self.core.role() == Role::Leader && !self.diverged;
        leads && !self.config.state_machine && self.feature_level() >= NAMES_LEVEL
    }

    /// When [`Replica::maybe_retain`] must be asked again though nothing is appended.
    pub(super) fn retention_deadline(&self) -> Option<Tick> {
        let keeper = self.keeper.as_ref().filter(|_| self.retains())?;
        Some(keeper.looked.map_or(Tick(0), |looked| looked.after(LOOK_EVERY_US)))
    }

    /// What the clock of a voter shows now, as far as this leader was told.
    fn clock_of(&self, now: Now, node: NodeId) -> Option<u64> {
        if node == self.id() {
            return Some(now.wall_ms);
        }
        let heard = self.reports.heard().get(&node)?;
        let since_us = now.tick.since(heard.at.tick);
        (since_us <= CLOCK_HEARD_US).then(|| heard.report.wall_ms.saturating_add(since_us / 1000))
    }

    /// The highest time that the clocks of a majority of the voters have reached; `None` before that many were heard of.
    fn majority_time(&self, now: Now) -> Option<u64> {
        majority_time(self.core.membership(), |node| self.clock_of(now, node))
    }

    /// The time by which records are too old, while enough clocks agree with this one.
    fn time_to_trim_by(&self, now: Now) -> Option<u64> {
        time_to_trim_by(self.core.membership(), now.wall_ms, |node| self.clock_of(now, node))
    }

    /// The timestamp of the next entry: see the module's documentation.
    pub(super) fn stamp(&self, now: Now) -> u64 {
        let own = match self.majority_time(now) {
            Some(time) if !is_planted(Bug::AgeBelievesLeader) => own_within(now.wall_ms, time),
            _ => now.wall_ms,
        };
        own.max(self.log.last().timestamp_ms)
    }

    /// The same for the entry with which a leader opens its term: nobody was heard of yet, and nobody asks how old it is.
    pub(super) fn stamp_of_noop(&self, now: Now) -> u64 {
        let unsure = self.feature_level() >= NAMES_LEVEL && self.majority_time(now).is_none();
        if unsure { self.log.last().timestamp_ms } else { self.stamp(now) }
    }
}

fn majority_time(membership: &Membership, clock: impl Fn(NodeId) -> Option<u64>) -> Option<u64> {
    quorum::reached(membership, clock).flatten()
}

fn time_to_trim_by(membership: &Membership, own_ms: u64, clock: impl Fn(NodeId) -> Option<u64>) -> Option<u64> {
    if is_planted(Bug::AgeBelievesLeader) {
        return Some(own_ms);
    }
    let agrees = |node| clock(node).is_some_and(|clock| clock.abs_diff(own_ms) <= CLOCKS_APART_MS);
    let time = majority_time(membership, &clock).filter(|_| quorum::agreed(membership, agrees))?;
    Some(time.min(own_ms))
}

fn own_within(own_ms: u64, majority_ms: u64) -> u64 {
    own_ms.clamp(majority_ms, majority_ms.saturating_add(CLOCKS_APART_MS))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use graven_frame::Chain;

    use super::*;

    const YEAR_MS: u64 = 365 * 86_400_000;
    const NOW_MS: u64 = 60 * YEAR_MS;

    fn mark(index: u64, timestamp_ms: u64) -> Mark {
        Mark { index, term: 1, chain: Chain::START, next_offset: index * 10, timestamp_ms }
    }

    fn keeper(bytes: Option<u64>, age_ms: Option<u64>) -> Keeper {
        let retention = Retention { bytes, age: age_ms.map(Duration::from_millis), ..Retention::default() };
        Keeper::found(retention, &[], mark(0, 0)).expect("it is set")
    }

    #[test]
    fn at_least_the_bytes_asked_for_stay_and_at_most_one_part_more() {
        for (keep, entry) in [(1 << 20, 1_000), (64 << 20, 50_000), (1 << 20, 3_000_000)] {
            let mut keeper = keeper(Some(keep), None);
            let mut before = 0;
            for index in 1..=20_000 {
                keeper.extend(mark(index, 0), entry);
                let total = index * entry;
                before = keeper.too_much().unwrap_or(before).max(before);
                let stay = total - before / 10 * entry;
                assert!(stay >= keep.min(total), "{stay} of {keep} after {index}");
                assert!(stay < keep + keeper.step_bytes() + 2 * entry, "{stay} of {keep} after {index}");
                assert!(keeper.places.len() <= PLACES_MAX);
                if index % 7 == 0 {
                    keeper.forget_before(before);
                }
            }
        }
    }

    #[test]
    fn places_are_found_again_after_a_restart() {
        let places: Vec<Waypoint> = (1..5_000)
            .map(|nth| Waypoint { index: nth, next_offset: nth * 10, bytes: nth << 16, timestamp_ms: nth })
            .collect();
        let retention = Retention { bytes: Some(1 << 20), ..Retention::default() };
        let mut keeper = Keeper::found(retention, &places, mark(4_999, 4_999)).expect("it is set");
        assert!(keeper.places.len() <= PLACES_MAX);
        assert_eq!(keeper.too_much(), Some((4_999 - 16) * 10));
        keeper.extend(mark(5_000, 5_000), 1 << 16);
        assert_eq!(keeper.too_much(), Some((5_000 - 16) * 10));
    }

    #[test]
    fn what_is_older_than_the_age_goes_and_nothing_younger() {
        let mut keeper = keeper(None, Some(256_000));
        for (index, at_ms) in [(1, 1_000), (2, 1_500), (3, 90_000), (4, 90_001), (5, 400_000)] {
            keeper.extend(mark(index, at_ms), 100);
        }
        for (now_ms, expected) in [
            (256_000, None),
            (257_000, None),
            (257_001, Some(10)),
            (257_500, Some(10)),
            (257_501, Some(20)),
            (346_000, Some(20)),
            (346_001, Some(30)),
            (346_002, Some(40)),
            (656_000, Some(40)),
            (656_001, Some(50)),
        ] {
            assert_eq!(keeper.too_old(now_ms).filter(|before| *before > 0), expected, "at {now_ms}");
        }
    }

    #[test]
    fn one_trim_by_age_takes_a_share_and_the_last_record_goes_too() {
        let mut keeper = keeper(None, Some(1_000));
        (1..=100).for_each(|index| keeper.extend(mark(index, index), 100));
        assert_eq!(keeper.too_old_within_share(0, NOW_MS), Some((250, true)));
        assert_eq!(keeper.too_old_within_share(250, NOW_MS), Some((437, true)));
        assert_eq!(keeper.too_old_within_share(998, NOW_MS), Some((999, true)));
        assert_eq!(keeper.too_old_within_share(999, NOW_MS), Some((1_000, false)));
        assert_eq!(keeper.too_old_within_share(980, 500), None, "the time before the age");
    }

    fn voters(count: u64) -> Membership {
        Membership { voters: (1..=count).map(NodeId).collect(), ..Membership::default() }
    }

    #[test]
    fn a_clock_that_is_wrong_by_years_deletes_nothing() {
        for wrong in
            [NOW_MS - 30 * YEAR_MS, NOW_MS - YEAR_MS, NOW_MS - 6_000, NOW_MS + 6_000, NOW_MS + 10 * YEAR_MS, u64::MAX]
        {
            for count in [3, 5, 7] {
                let clock = |node: NodeId| Some(if node.0 == 1 { wrong } else { NOW_MS + node.0 });
                assert_eq!(time_to_trim_by(&voters(count), wrong, clock), None, "a leader at {wrong} of {count}");
                // Nor does it keep the others from deleting, by their time.
                let time = time_to_trim_by(&voters(count), NOW_MS + 2, clock).expect("a majority agrees");
                assert!(time.abs_diff(NOW_MS) < 10 && time <= NOW_MS + 2, "{time}");
                let stamp = own_within(wrong, majority_time(&voters(count), clock).expect("all are heard"));
                assert!((NOW_MS..NOW_MS + 10 + CLOCKS_APART_MS).contains(&stamp), "{stamp} by a leader at {wrong}");
            }
        }
    }

    #[test]
    fn a_leader_that_hears_too_few_clocks_deletes_nothing() {
        let alone = |node: NodeId| (node.0 == 1).then_some(NOW_MS);
        assert_eq!(time_to_trim_by(&voters(3), NOW_MS, alone), None);
        assert_eq!(time_to_trim_by(&voters(1), NOW_MS, alone), Some(NOW_MS), "its clock is all there is");
        let two = |node: NodeId| (node.0 <= 2).then_some(NOW_MS);
        assert_eq!(time_to_trim_by(&voters(3), NOW_MS, two), Some(NOW_MS));
        assert_eq!(time_to_trim_by(&voters(4), NOW_MS, two), None);
    }
}
