//! A rate limit in bytes a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets bytes pass at a steady rate. Shared by all that must stay below it together.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    /// When the bytes taken so far will have passed.
    busy_until: Mutex<Instant>,
}

impl Pace {
    /// A rate of `bytes_per_second`; 0 sets no bound.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second, busy_until: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may pass. What was not used in the past is not saved up.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the bytes count all the same.
    pub async fn pass(&self, bytes: usize) {
        let wait = self.take(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// How long `bytes` have to wait; they count as passed. For threads, which sleep by themselves.
    #[must_use]
    pub fn take(&self, bytes: usize, now: Instant) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let nanos = u128::from(bytes as u64) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(COST_MAX);
        let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = (*busy_until).max(now);
        *busy_until = begins + cost;
        begins.saturating_duration_since(now)
    }
}

/// One step never holds up the next for longer: a rate of a few bytes a second is a mistake, and must not outlast a shutdown.
const COST_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_for_those_before_them_and_nothing_is_saved_up() {
        let pace = Pace::new(1000);
        let start = Instant::now() + Duration::from_secs(1);
        assert_eq!(pace.take(500, start), Duration::ZERO);
        assert_eq!(pace.take(500, start), Duration::from_millis(500));
        assert_eq!(pace.take(1, start + Duration::from_secs(10)), Duration::ZERO);
        assert_eq!(pace.take(1, start + Duration::from_secs(10)), Duration::from_millis(1));
        assert_eq!(Pace::new(0).take(usize::MAX, start), Duration::ZERO);
    }
}
