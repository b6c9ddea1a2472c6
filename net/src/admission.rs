//! Which handshakes are begun, and how often: what keeps strangers from taking a node's time and places.
//!
//! Until a handshake is done its sender is nobody, and each costs the node a signature, two verifications and some tens of
//! kilobytes. So there are a number of places, taken for a few seconds at most, and a rate.
//!
//! | places taken | within the rate | address proven | what happens |
//! |---|---|---|---|
//! | under half | yes | - | begins |
//! | half or more | - | no | must prove its address first (QUIC Retry), which leaves nothing here |
//! | - | no | no | the same |
//! | half or more, not all | yes | yes | begins |
//! | all | yes | yes | begins in the place of another: the oldest of the source that holds most of them |
//! | - | no | yes | not heard; its sender tries again by itself |
//!
//! Rates hold for all and for each source, a source having half of what all have: one host cannot use up what the others need.
//! Whoever waits in places to keep others out loses them first, and an honest handshake is done long before its turn comes.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How many handshakes at once, and how often a new one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// At the same time.
    pub(crate) places: usize,
    /// Begun in each second, after a burst.
    pub(crate) per_second: u32,
    /// Begun at once after a quiet time: everybody who was connected comes back.
    pub(crate) burst: u32,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Oldest first.
    open: Vec<Open>,
    next: u64,
    all: Bucket,
    /// Two for each source, by a hash that nobody outside can compute. Sources that share one have the other.
    cells: Vec<Bucket>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Open {
    number: u64,
    source: Source,
    evicted: Arc<Notify>,
}

/// Where a handshake comes from, as far as addresses are given out: a host, or an IPv6 subscriber's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Source {
    fn of(address: SocketAddr) -> Source {
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => Source::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Source::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// What becomes of a first packet.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Its handshake begins.
    Begin(Place),
    /// It must prove its address first.
    Prove,
    /// It is not heard.
    Ignore,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Arc<Admission> {
        let now = Instant::now();
        let cell = Bucket::new(limits.per_second.div_ceil(4), limits.burst.div_ceil(4), now);
        let state = State {
            open: Vec::with_capacity(limits.places),
            next: 0,
            all: Bucket::new(limits.per_second, limits.burst, now),
            cells: vec![cell; CELLS],
            hasher: RandomState::new(),
        };
        Arc::new(Admission { limits, state: Mutex::new(state) })
    }

    /// Decides about a first packet from `address`, which was `proven` by a Retry or not.
    pub(crate) fn judge(self: &Arc<Self>, address: SocketAddr, proven: bool, now: Instant) -> Verdict {
        let source = Source::of(address);
        let mut state = self.lock();
        let may_not = if proven { Verdict::Ignore } else { Verdict::Prove };
        if !proven && state.open.len() >= self.limits.places / 2 {
            return may_not;
        }
        let hash = state.hasher.hash_one(source);
        let mine = [hash, hash >> 32].map(|half| (half % CELLS as u64) as usize);
        if !state.all.has_one(now) || !mine.into_iter().any(|cell| state.cells[cell].take(now)) {
            return may_not;
        }
        state.all.take(now);
        if state.open.len() >= self.limits.places {
            state.evict();
        }
        let (number, evicted) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        state.open.push(Open { number, source, evicted: evicted.clone() });
        Verdict::Begin(Place { admission: self.clone(), number, evicted })
    }

    /// Handshakes under way.
    #[cfg(test)]
    fn open(&self) -> usize {
        self.lock().open.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes room: the oldest of the source that holds the most places, the one that came first among equals.
    fn evict(&mut self) {
        let held = |source: Source| self.open.iter().filter(|open| open.source == source).count();
        let most = self.open.iter().map(|open| held(open.source)).max().unwrap_or(0);
        let found = self.open.iter().position(|open| held(open.source) == most);
        if let Some(at) = found {
            self.open.remove(at).evicted.notify_one();
        }
    }
}

/// One of the places; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    number: u64,
    evicted: Arc<Notify>,
}

impl Place {
    /// Resolves when the place was given to another.
    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.lock().open.retain(|open| open.number != self.number);
    }
}

/// So much in each second, and so much at once after a quiet time.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    per_second: f64,
    burst: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn new(per_second: u32, burst: u32, now: Instant) -> Bucket {
        let burst = f64::from(burst.max(1));
        Bucket { per_second: f64::from(per_second), burst, level: burst, at: now }
    }

    fn has_one(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.per_second).min(self.burst);
        self.at = self.at.max(now);
        self.level >= 1.0
    }

    /// Takes one, if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let has_one = self.has_one(now);
        self.level -= f64::from(u8::from(has_one));
        has_one
    }

    /// How long until there is one.
    pub(crate) fn wait(&mut self, now: Instant) -> Duration {
        if self.has_one(now) {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64((1.0 - self.level) / self.per_second).unwrap_or(Duration::MAX)
    }

    /// Whether nothing was taken for so long that it is as if nothing ever was.
    pub(crate) fn is_full(&mut self, now: Instant) -> bool {
        self.has_one(now) && self.level >= self.burst
    }
}

/// Lines that strangers can cause: some at once, then one in each second, and the number of those left out with the next one.
#[derive(Debug)]
pub(crate) struct Lines(Mutex<(Bucket, u64)>);

impl Default for Lines {
    fn default() -> Lines {
        Lines(Mutex::new((Bucket::new(LINES_PER_SECOND, LINES_AT_ONCE, Instant::now()), 0)))
    }
}

impl Lines {
    /// Whether a line may be written now, and how many were left out before it.
    pub(crate) fn may_write(&self) -> Option<u64> {
        let (bucket, left_out) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bucket.take(Instant::now()) {
            return Some(std::mem::take(left_out));
        }
        *left_out += 1;
        None
    }
}

/// Cells for sources: 40 bytes each. Two hosts share both of theirs once in a million.
const CELLS: usize = 1024;
/// An operator reads what is wrong in the first lines; a disk must not fill up with more of the same.
const LINES_PER_SECOND: u32 = 1;
const LINES_AT_ONCE: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], 4433))
    }

    fn admission(places: usize, per_second: u32, burst: u32) -> Arc<Admission> {
        Admission::new(Limits { places, per_second, burst })
    }

    fn begin(admission: &Arc<Admission>, host: u8, proven: bool, now: Instant) -> Place {
        match admission.judge(at(host), proven, now) {
            Verdict::Begin(place) => place,
            other => panic!("host {host}: {other:?}"),
        }
    }

    fn is_evicted(place: &Place) -> bool {
        use std::task::{Context, Poll, Waker};
        let evicted = std::pin::pin!(place.evicted());
        matches!(evicted.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()))
    }

    #[test]
    fn unproven_addresses_take_no_more_than_half() {
        let (admission, now) = (admission(8, 1000, 1000), Instant::now());
        let held: Vec<Place> = (0..4).map(|host| begin(&admission, host, false, now)).collect();
        assert!(matches!(admission.judge(at(9), false, now), Verdict::Prove));
        let proven = begin(&admission, 9, true, now);
        assert_eq!(admission.open(), 5);
        drop((held, proven));
        assert_eq!(admission.open(), 0);
    }

    #[test]
    fn full_places_are_taken_from_the_source_that_holds_most_and_oldest_first() {
        let (admission, now) = (admission(8, 1000, 1000), Instant::now());
        let honest = begin(&admission, 1, true, now);
        let greedy: Vec<Place> = (0..7).map(|_| begin(&admission, 2, true, now)).collect();
        let newcomer = begin(&admission, 3, true, now);
        assert_eq!(greedy.iter().map(is_evicted).collect::<Vec<_>>(), [true, false, false, false, false, false, false]);
        assert!(!is_evicted(&honest) && !is_evicted(&newcomer));
        // The greedy one itself gets its own oldest place.
        let _again = begin(&admission, 2, true, now);
        assert!(is_evicted(&greedy[1]) && !is_evicted(&honest));
        assert_eq!(admission.open(), 8);
        drop(greedy);
        assert_eq!(admission.open(), 3, "a place that was taken away is not given back twice");
    }

    #[test]
    fn one_source_uses_up_its_own_rate_and_not_that_of_others() {
        let (admission, start) = (admission(1000, 8, 40), Instant::now());
        let begun = |now| matches!(admission.judge(at(1), true, now), Verdict::Begin(_));
        // Half of all, or a quarter if its two cells happen to be one.
        let at_once = (0..100).filter(|_| begun(start)).count();
        assert!(at_once == 20 || at_once == 10, "{at_once}");
        assert!(matches!(admission.judge(at(1), false, start), Verdict::Prove));
        assert!(!begun(start + Duration::from_millis(100)) && begun(start + Duration::from_secs(1)));
        let others = (2..7).filter(|host| matches!(admission.judge(at(*host), true, start), Verdict::Begin(_))).count();
        assert!(others >= 4, "{others}");
    }

    #[test]
    fn bucket_tells_how_long_to_wait() {
        let now = Instant::now();
        let mut bucket = Bucket::new(4, 2, now);
        assert!(bucket.is_full(now) && bucket.take(now) && bucket.take(now) && !bucket.take(now));
        assert_eq!(bucket.wait(now), Duration::from_millis(250));
        assert!(bucket.take(now + Duration::from_millis(250)));
        assert!(!bucket.is_full(now + Duration::from_millis(500)) && bucket.is_full(now + Duration::from_secs(1)));
    }

    #[test]
    fn lines_left_out_are_counted() {
        let lines = Lines::default();
        let written = (0..100).filter(|_| lines.may_write().is_some()).count();
        assert!((20..25).contains(&written), "{written}");
        lines.0.lock().unwrap().0.level = 1.0;
        assert_eq!(lines.may_write(), Some(100 - written as u64));
    }
}
