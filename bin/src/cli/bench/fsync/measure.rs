//! Measuring in short slices, so that what else happens on the machine meets both sides of a comparison alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::cli::error::{CliResult, ErrorCode, Failure};

/// Set when somebody wants the command to end.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn check(&self) -> CliResult {
        if self.is_set() { Err(interrupted()) } else { Ok(()) }
    }
}

pub(super) fn interrupted() -> Failure {
    Failure::new(ErrorCode::Unavailable, "interrupted; the files of this measurement were removed")
}

/// What is measured.
pub(super) trait Target {
    /// Makes room for the next batch, outside the measured time; `false` when the slice should better end here.
    fn ready(&mut self) -> CliResult<bool>;

    /// Writes one batch and makes it durable.
    fn write_synced(&mut self) -> CliResult;

    /// Work that is not measured, between two slices.
    fn rest(&mut self) -> CliResult;
}

/// What one target did with one batch size.
pub(super) struct Figures {
    /// Of each sync, in nanoseconds.
    latencies: Histogram<u64>,
    /// Syncs a second, a slice each.
    rates: Vec<f64>,
}

/// The longest latency that is told apart: ten minutes.
const MAX_LATENCY_NS: u64 = 600_000_000_000;

impl Figures {
    pub(super) fn new() -> CliResult<Figures> {
        let latencies = Histogram::new_with_bounds(1, MAX_LATENCY_NS, 3);
        let latencies = latencies.map_err(|error| Failure::internal(error.to_string()))?;
        Ok(Figures { latencies, rates: Vec::new() })
    }

    /// The median of the slices.
    pub(super) fn syncs_per_second(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        match rates.len() {
            0 => 0.0,
            len if len % 2 == 1 => rates[len / 2],
            len => f64::midpoint(rates[len / 2 - 1], rates[len / 2]),
        }
    }

    /// Whole microseconds, at least one.
    pub(super) fn quantile_us(&self, quantile: f64) -> u64 {
        (self.latencies.value_at_quantile(quantile) / 1000).max(1)
    }

    pub(super) fn max_us(&self) -> u64 {
        (self.latencies.max() / 1000).max(1)
    }

    pub(super) fn latencies(&self) -> &Histogram<u64> {
        &self.latencies
    }

    /// Measures for `time` of the target's own time, or `most` batches.
    pub(super) fn slice(&mut self, target: &mut impl Target, time: Duration, most: u64, stop: &Stop) -> CliResult {
        let (mut spent, mut done) = (Duration::ZERO, 0_u64);
        while spent < time && done < most {
            stop.check()?;
            if !target.ready()? && done > 0 {
                break;
            }
            let begin = Instant::now();
            target.write_synced()?;
            let took = begin.elapsed();
            self.latencies.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1));
            spent += took;
            done += 1;
        }
        self.rates.push(done as f64 / spent.as_secs_f64().max(1e-9));
        target.rest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting {
        done: u64,
        room: u64,
    }

    impl Target for Counting {
        fn ready(&mut self) -> CliResult<bool> {
            Ok(!self.done.is_multiple_of(self.room))
        }

        fn write_synced(&mut self) -> CliResult {
            self.done += 1;
            Ok(())
        }

        fn rest(&mut self) -> CliResult {
            Ok(())
        }
    }

    #[test]
    fn a_slice_ends_by_its_batches_and_where_the_file_ends() {
        let mut figures = Figures::new().expect("bounds");
        let mut target = Counting { done: 0, room: 1000 };
        let hour = Duration::from_secs(3600);
        figures.slice(&mut target, hour, 7, &Stop::default()).expect("measured");
        assert_eq!(target.done, 7);
        let mut target = Counting { done: 0, room: 5 };
        figures.slice(&mut target, hour, 1000, &Stop::default()).expect("measured");
        assert_eq!(target.done, 5);
        assert_eq!(figures.latencies().len(), 12);
        assert!(figures.syncs_per_second() > 0.0 && figures.max_us() >= figures.quantile_us(0.5));
    }

    #[test]
    fn a_stopped_measurement_is_an_interruption() {
        let stop = Stop::default();
        stop.set();
        let mut target = Counting { done: 0, room: 5 };
        let ended = Figures::new().expect("bounds").slice(&mut target, Duration::from_secs(1), 9, &stop);
        assert_eq!((ended.map_err(|failure| failure.status()), target.done), (Err(3), 0));
    }

    #[test]
    fn the_rate_is_the_median() {
        let mut figures = Figures::new().expect("bounds");
        assert_eq!(figures.syncs_per_second(), 0.0);
        figures.rates = vec![9.0, 1.0, 5.0];
        assert_eq!(figures.syncs_per_second(), 5.0);
        figures.rates.push(7.0);
        assert_eq!(figures.syncs_per_second(), 6.0);
    }
}
