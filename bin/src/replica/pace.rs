//! How much may be on its way into the log at a time, while more than one client appends.
//!
//! What one client has under way stands before the next append of every other one: entries are written, sent and acknowledged in order. Alone
//! a client may fill the windows of all followers. Beside others, only as much is under way as hardly lengthens the time from proposal to
//! commit: the amount grows while that time stays near the shortest one seen with little under way, and shrinks when it does not (as
//! TCP Vegas does it, Brakmo and Peterson 1995, 3.2). What "little" takes is learned anew in each [`LEARN_EVERY_US`], with the least
//! amount under way: the disk and the network are others by then.

use std::collections::VecDeque;

use graven_raft::Tick;

/// Clients are taken to be several for so long after another one appended than before: a client that appends once a second counts.
const SHARED_US: u64 = 2_000_000;
/// How long a shortest time is believed.
const LEARN_EVERY_US: u64 = 1_000_000;
/// The least and the most bytes under way.
const LEAST_BYTES: usize = 64 << 10;
const MOST_BYTES: usize = 1 << 20;
/// What is added when entries were committed in time.
const STEP_BYTES: usize = 16 << 10;
/// Times remembered. Entries beyond them are not timed; there are rarely more than a few under way.
const UNDER_WAY_MAX: usize = 64;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Pace {
    last_client: Option<u64>,
    /// Another client appended since [`Pace::look`].
    another: bool,
    shared_until: Tick,
    /// Entries that were proposed and are not readable yet: index, and when.
    under_way: VecDeque<(u64, Tick)>,
    shortest_us: Option<u64>,
    learned: Tick,
    /// Entries up to this one were proposed before the amount was last changed downwards, and say nothing about it.
    settled: u64,
    bytes: usize,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            last_client: None,
            another: false,
            shared_until: Tick(0),
            under_way: VecDeque::new(),
            shortest_us: None,
            learned: Tick(0),
            settled: 0,
            bytes: LEAST_BYTES,
        }
    }
}

impl Pace {
    /// An append of `client` came.
    pub(super) fn arrives(&mut self, client: u64) {
        self.another |= self.last_client.replace(client).is_some_and(|last| last != client);
    }

    /// Takes in who came, before [`Pace::limit`] is asked.
    pub(super) fn look(&mut self, now: Tick) {
        if std::mem::take(&mut self.another) {
            if now >= self.shared_until {
                self.learn(now);
            }
            self.shared_until = now.after(SHARED_US);
        }
    }

    /// How many bytes may be under way, when there is a bound beside that for a client alone.
    pub(super) fn limit(&self, now: Tick) -> Option<usize> {
        (now < self.shared_until).then_some(self.bytes)
    }

    /// Entry `index` was proposed.
    pub(super) fn proposed(&mut self, index: u64, now: Tick) {
        if self.under_way.len() < UNDER_WAY_MAX {
            self.under_way.push_back((index, now));
        }
    }

    /// Entries up to `index` are committed and can be read.
    pub(super) fn readable(&mut self, index: u64, now: Tick) {
        let mut newest = None;
        while let Some(first) = self.under_way.front().copied().filter(|first| first.0 <= index) {
            newest = Some(first);
            self.under_way.pop_front();
        }
        let Some((index, since)) = newest.filter(|newest| newest.0 > self.settled && now < self.shared_until) else {
            return;
        };
        let took_us = now.0.saturating_sub(since.0);
        let shortest_us = self.shortest_us.map_or(took_us, |shortest| shortest.min(took_us));
        self.shortest_us = Some(shortest_us);
        if now >= self.learned.after(LEARN_EVERY_US) {
            self.settled = self.last_under_way(index);
            self.learn(now);
        } else if took_us > shortest_us + shortest_us / 2 {
            self.settled = self.last_under_way(index);
            self.bytes = (self.bytes - self.bytes / 4).max(LEAST_BYTES);
        } else {
            self.bytes = (self.bytes + STEP_BYTES).min(MOST_BYTES);
        }
    }

    /// The entries under way will not be committed by this node.
    pub(super) fn forget(&mut self) {
        self.under_way.clear();
        self.settled = 0;
    }

    fn learn(&mut self, now: Tick) {
        self.shortest_us = None;
        self.learned = now;
        self.bytes = LEAST_BYTES;
    }

    fn last_under_way(&self, index: u64) -> u64 {
        self.under_way.back().map_or(index, |last| last.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of all that may be under way, on a disk that takes `fixed_us` and a microsecond for every `bytes_a_us`.
    fn rounds(pace: &mut Pace, now: &mut u64, index: &mut u64, count: usize, fixed_us: u64, bytes_a_us: u64) {
        for _ in 0..count {
            *index += 1;
            pace.arrives(*index % 2);
            pace.look(Tick(*now));
            let bytes = pace.limit(Tick(*now)).unwrap_or(4 << 20) as u64;
            pace.proposed(*index, Tick(*now));
            *now += fixed_us + bytes / bytes_a_us;
            pace.readable(*index, Tick(*now));
        }
    }

    #[test]
    fn a_client_alone_is_not_bounded_and_several_are() {
        let mut pace = Pace::default();
        pace.arrives(1);
        pace.arrives(1);
        pace.look(Tick(6));
        assert_eq!(pace.limit(Tick(7)), None);
        pace.arrives(2);
        pace.look(Tick(8));
        assert_eq!(pace.limit(Tick(9)), Some(LEAST_BYTES));
        assert_eq!(pace.limit(Tick(8 + SHARED_US)), None);
    }

    #[test]
    fn what_is_under_way_follows_what_the_disk_takes() {
        // A sync of 5 ms and a gigabyte a second: much may be under way. A sync of 0.3 ms and 100 MB/s: little.
        for (fixed_us, bytes_a_us, least, most) in
            [(5000, 1000, 512 << 10, MOST_BYTES), (300, 100, LEAST_BYTES, 256 << 10)]
        {
            let mut pace = Pace::default();
            let (mut now, mut index) = (0, 0);
            let mut seen = Vec::new();
            for _ in 0..400 {
                rounds(&mut pace, &mut now, &mut index, 1, fixed_us, bytes_a_us);
                seen.push(pace.bytes);
            }
            seen.sort_unstable();
            let usual = seen[seen.len() * 3 / 4];
            assert!((least..=most).contains(&usual), "{fixed_us} us, {bytes_a_us} bytes a us: {usual} bytes");
        }
    }

    #[test]
    fn entries_of_before_a_change_do_not_change_it_again() {
        let mut pace = Pace::default();
        let (mut now, mut index) = (0, 0);
        rounds(&mut pace, &mut now, &mut index, 100, 1000, 10_000);
        let before = pace.bytes;
        assert!(before > 4 * LEAST_BYTES);
        for late in 1..=4 {
            pace.proposed(index + late, Tick(now));
        }
        for late in 1..=4 {
            pace.readable(index + late, Tick(now + 9000 + late));
        }
        assert_eq!(pace.bytes, before - before / 4);
    }
}
