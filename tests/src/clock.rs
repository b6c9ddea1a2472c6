//! Clocks of the nodes: each starts where it likes, runs a little fast or slow, and tells the time of day as it likes.

use graven::replica::Now;
use graven_raft::Tick;

use crate::rng::Rng;

/// The clock of one life of a node.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started_us: u64,
    first_tick: u64,
    /// Thousandths of the true speed.
    rate: u64,
    wall_ms: u64,
}

/// 2026-01-01, from which the wall clocks deviate.
pub(crate) const WALL_START_MS: u64 = 1_767_225_600_000;

impl Clock {
    /// A clock that starts at simulated time `now_us`. `drift` is how many thousandths it may be fast or slow.
    pub fn start(rng: &mut Rng, now_us: u64, drift: u64) -> Clock {
        Clock {
            started_us: now_us,
            first_tick: rng.below(1 << 40),
            rate: 1000 - drift + rng.below(2 * drift + 1),
            // Up to ten seconds off: nothing may depend on it.
            wall_ms: WALL_START_MS + rng.below(20_000),
        }
    }

    /// The same clock, off by up to a second, or by up to ten years into either direction.
    #[must_use]
    pub fn off(self, rng: &mut Rng, years: bool) -> Clock {
        const TEN_YEARS_MS: u64 = 315_576_000_000;
        let most = if years { TEN_YEARS_MS } else { 1_000 };
        Clock { wall_ms: WALL_START_MS - most + rng.below(2 * most), ..self }
    }

    /// What it shows at simulated time `now_us`.
    #[must_use]
    pub fn now(&self, now_us: u64) -> Now {
        let elapsed = now_us.saturating_sub(self.started_us);
        Now { tick: Tick(self.first_tick + elapsed * self.rate / 1000), wall_ms: self.wall_ms + now_us / 1000 }
    }

    /// The first simulated time at which it shows `tick` or later.
    #[must_use]
    pub fn reaches(&self, tick: Tick) -> u64 {
        self.started_us + (tick.0.saturating_sub(self.first_tick) * 1000).div_ceil(self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_at_which_a_tick_is_reached_is_the_first() {
        let mut rng = Rng::new(1);
        for _ in 0..100 {
            let clock = Clock::start(&mut rng, 5_000, 50);
            let tick = Tick(clock.now(5_000).tick.0 + rng.below(1_000_000));
            let at = clock.reaches(tick);
            assert!(clock.now(at).tick >= tick);
            assert!(at == 5_000 || clock.now(at - 1).tick < tick);
        }
    }
}
