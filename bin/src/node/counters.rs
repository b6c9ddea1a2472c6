//! What a node counts: plain atomics, written where things happen, read by whoever asks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use graven_net::protocol::{Behind, PeerHealth, SocketHealth, SyncHealth};

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
    /// How long the latest rounds of writing and syncing took.
    pub(super) sync_times: SyncTimes,
    /// The peers as the protocol thread saw them last.
    pub(super) peers: Mutex<PeersSeen>,
}

/// What the protocol thread knows of the peers, for whoever asks how the node is.
#[derive(Debug, Clone, Default)]
pub(super) struct PeersSeen {
    pub(super) socket: SocketHealth,
    pub(super) peers: Vec<PeerHealth>,
    /// How they keep up, when this node leads.
    pub(super) followers: Vec<(u64, Behind)>,
    /// What they hold against this node.
    pub(super) trouble: Option<String>,
}

impl Counters {
    /// The peers as they were seen last.
    pub(super) fn peers_seen(&self) -> PeersSeen {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes something about the peers.
    pub(super) fn note_peers(&self, note: impl FnOnce(&mut PeersSeen)) {
        note(&mut self.peers.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The latest durations, in microseconds.
#[derive(Debug, Default)]
pub(super) struct SyncTimes(Mutex<VecDeque<u64>>);

/// Rounds remembered: the slowest of a hundred is told from ten of them.
const SYNCS_KEPT: usize = 1024;

impl SyncTimes {
    pub(super) fn note(&self, took: Duration) {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() == SYNCS_KEPT {
            latest.pop_front();
        }
        latest.push_back(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn health(&self) -> SyncHealth {
        let latest = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        SyncHealth::of(latest)
    }
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
