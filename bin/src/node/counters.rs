//! What a node counts: plain atomics, written where things happen, read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one node since its start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Syncs of the log.
    pub syncs: Counter,
    /// Frames written to the log.
    pub frames: Counter,
    /// Bytes written to the log.
    pub written_bytes: Counter,
    /// Elections this node won.
    pub elections: Counter,
    /// Appends acknowledged by this node as leader.
    pub appends_acked: Counter,
    /// Records in them.
    pub records_acked: Counter,
    /// Loads for followers that were behind the ring of recent frames.
    pub cold_loads: Counter,
    /// Appends that were not sent because a lane was full or down.
    pub appends_dropped: Counter,
}

/// A number that only its owner raises and anybody reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Raises it by `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Sets it to what is counted elsewhere.
    pub fn set(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }

    /// Its value.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What this process used: resident anonymous memory in bytes, and CPU time in microseconds. Zero where the system does
/// not tell.
#[must_use]
pub(super) fn process_usage() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let anon = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0);
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let cpu_us =
        u64::try_from(usage.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(usage.tv_nsec).unwrap_or(0) / 1000;
    (anon * 1024, cpu_us)
}
