//! One node: its disk, and while it is up, the process on it.
//!
//! A process is what the daemon is without threads and sockets: the replica, its log, and the queue between them. The log
//! thread is simulated: it wakes a moment after a job was queued, takes all that wait, and is done a sync later.

use std::collections::{BTreeSet, VecDeque};

use graven::config::Retention;
use graven::replica::disk::{self, DiskReport};
use graven::replica::snapshots::StatesKept;
use graven::replica::{DiskJob, Replica, ReplicaConfig, StateError};
use graven_frame::{Frame, FrameError};
use graven_raft::NodeId;
use graven_wal::sim::SimDisk;
use graven_wal::{Identity, LogReader, OpenError, Options, Recovered, Room, SyncMethod, Wal};

use crate::check::retention;
use crate::clock::Clock;
use crate::profile::Profile;
use crate::rng::Rng;
use crate::scrub::Scrub;

/// Small, so that a short run goes through many segments.
const SEGMENT_BYTES: [u64; 2] = [32 << 10, 64 << 10];
/// Small, so that followers that were away are fed from the files.
pub(crate) const RING_BYTES: usize = 16 << 10;
/// Half a small segment: now and then the next one is not ready.
const PREPARE_BYTES: u64 = 16 << 10;
/// Small, so that windows fill up.
pub(crate) const WINDOW_BYTES: u64 = 32 << 10;
/// Small, so that catching up takes several appends; so small that each frame goes alone.
const APPEND_BYTES: [u32; 3] = [200, 1 << 10, 8 << 10];
/// From one at a time to more than there ever are.
const WINDOW_MESSAGES: [usize; 4] = [1, 2, 8, 128];

/// The id of every simulated cluster.
const CLUSTER: u128 = 7;
/// Small, so that a short run makes many.
const CHECKPOINT_BYTES: u64 = 16 << 10;

/// See the module's documentation.
pub struct Node {
    /// Its id.
    pub id: u64,
    /// Its disk, which outlives the process.
    pub disk: SimDisk,
    /// Counts the processes.
    pub life: u64,
    /// The process, while it is up.
    pub process: Option<Process>,
    /// Changes the daemon's settings for each life. Without it, appends and windows are drawn anew each time, mostly tiny.
    pub(crate) configure: Option<fn(&mut graven_raft::Config)>,
    segment_bytes: u64,
    /// The cluster it belongs to.
    cluster: u128,
    /// The named snapshots whose files are on its disk, durably.
    pub(crate) pictures: BTreeSet<u64>,
    /// The snapshots of its state machine that are on its disk, durably.
    pub(crate) states: StatesKept,
    /// Until when the process stands still; it goes on by itself.
    pub paused_until: u64,
    /// Until when its disk finishes nothing.
    pub hangs_until: u64,
}

/// One life of a node.
pub struct Process {
    /// The replica.
    pub replica: Replica,
    /// Its log.
    pub wal: Wal<SimDisk>,
    /// Reads it.
    pub reader: LogReader,
    /// Its clock.
    pub clock: Clock,
    /// Jobs that wait for the log thread.
    pub queue: VecDeque<DiskJob>,
    /// Jobs that the log thread is at.
    pub running: VecDeque<DiskJob>,
    /// Whether the log thread will wake, or is at work.
    pub disk_busy: bool,
    /// Dies in its next write, and whether its disk loses power then.
    pub doomed: Option<bool>,
    /// What was reported last.
    pub reported: DiskReport,
    /// Whether this life is slow: each sync takes long, each message reaches it late, by this much.
    pub lag_us: Option<u64>,
    /// When the next tick comes.
    pub tick_at: Option<u64>,
    /// Whether a flush of gathered appends is on its way.
    pub flushing: bool,
    /// Whether a state machine stands above it.
    pub state_machine: bool,
    /// Whether that state machine is at work.
    pub applying: bool,
    /// The version of the names that the checkers looked at last.
    pub(crate) names_seen: Option<u64>,
    /// The version of the cursors that the checkers looked at last.
    pub(crate) cursors_seen: Option<u64>,
    /// The first entry that the checkers saw in its files.
    pub(crate) first_seen: u64,
    /// Entries up to here are let go of, and files of them are left.
    pub(crate) released: Option<u64>,
    /// Its scrubber.
    pub(crate) scrub: Scrub,
}

fn options(segment_bytes: u64) -> Options {
    Options { segment_bytes, ..Options::default() }
}

impl Node {
    /// How its log is opened.
    pub(crate) fn options(&self) -> Options {
        options(self.segment_bytes)
    }

    /// A node with a new log that holds `first`; one that joins later begins with an empty one.
    ///
    /// # Panics
    /// When the disk refuses, which this one does not.
    #[must_use]
    pub fn new(id: u64, seed: u64, first: Option<&Frame>) -> Node {
        Node::of_cluster(CLUSTER, id, seed, first)
    }

    /// The same, of this cluster.
    pub(crate) fn of_cluster(cluster: u128, id: u64, seed: u64, first: Option<&Frame>) -> Node {
        let disk = SimDisk::new(seed);
        let segment_bytes = *Rng::new(seed).pick(&SEGMENT_BYTES);
        let identity = Identity { cluster, node: id, incarnation: u128::from(id) };
        let created =
            Wal::create(disk.clone(), identity, options(segment_bytes), first.map_or(&[], std::slice::from_ref));
        assert!(created.is_ok(), "a simulated disk refuses a new log: {created:?}");
        Node {
            id,
            disk,
            life: 0,
            process: None,
            configure: None,
            segment_bytes,
            cluster,
            pictures: BTreeSet::new(),
            states: StatesKept::default(),
            paused_until: 0,
            hangs_until: 0,
        }
    }

    /// From here on it belongs to another cluster, as its disk says already.
    #[cfg(test)]
    pub(crate) fn join_cluster(&mut self, cluster: u128) {
        self.cluster = cluster;
    }

    /// Opens the disk and starts a process on what is found there. Returns what was found.
    ///
    /// # Errors
    /// Why the log does not open or does not read back.
    pub fn start(
        &mut self,
        rng: &mut Rng,
        now_us: u64,
        profile: &Profile,
    ) -> Result<(Recovered, Vec<Frame>), StartError> {
        let sync = if rng.chance(150) { SyncMethod::Dsync } else { SyncMethod::Fdatasync };
        let options = Options { sync, ..self.options() };
        let (wal, recovered) = Wal::open(self.disk.clone(), options).map_err(StartError::Open)?;
        let reader = wal.reader();
        let mut frames = Vec::new();
        for index in recovered.first_index..=recovered.last_index {
            let frame = reader.frame(index).map_err(|error| StartError::Read(format!("entry {index}: {error}")))?;
            frame.verify(None).map_err(|error| StartError::Read(format!("entry {index}: {error}")))?;
            frames.push(frame);
        }
        let (mut restored, _) = graven::replica::restore::restore(&self.disk, &recovered, &reader)
            .map_err(|error| StartError::Read(error.to_string()))?;
        restored.pictures = self.pictures.iter().copied().collect();
        restored.states = self.states;
        self.life += 1;
        let clock = Clock::start(rng, now_us, profile.drift);
        let clock = if profile.retention { clock.off(rng, self.id == 1) } else { clock };
        let mut raft = graven_raft::Config::new(NodeId(self.id), rng.draw());
        if let Some(configure) = self.configure {
            configure(&mut raft);
        } else {
            raft.window_bytes = WINDOW_BYTES;
            raft.max_append_bytes = if profile.tiny { APPEND_BYTES[0] } else { *rng.pick(&APPEND_BYTES) };
            raft.window_messages = *rng.pick(&WINDOW_MESSAGES);
        }
        let state_machine = (rng.chance(250) && !profile.retention) || profile.states > 0;
        let config = ReplicaConfig {
            raft,
            ring_bytes: RING_BYTES,
            state_machine,
            cluster: self.cluster,
            checkpoint_bytes: CHECKPOINT_BYTES,
            recovering: crate::rot::recovering(&self.disk)?,
            retention: if profile.retention { retention::settings() } else { Retention::default() },
        };
        let behind = frames.iter().filter(|frame| frame.header().index >= restored.next_index());
        let replica = Replica::new(config, &restored, behind.cloned().map(Ok::<_, FoundError>), clock.now(now_us))
            .map_err(|error| StartError::Read(error.0))?;
        self.process = Some(Process {
            replica,
            wal,
            reader,
            clock,
            queue: VecDeque::new(),
            running: VecDeque::new(),
            disk_busy: false,
            doomed: None,
            reported: DiskReport { sequence: 0, room: Room::plenty(), waits: false, saved: disk::Saved::default() },
            lag_us: None,
            tick_at: None,
            flushing: false,
            state_machine,
            applying: false,
            names_seen: None,
            cursors_seen: None,
            first_seen: recovered.first_index,
            released: None,
            scrub: Scrub::default(),
        });
        Ok((recovered, frames))
    }

    /// Until when its process stands still, if it does at `now_us`.
    #[must_use]
    pub fn paused_until(&self, now_us: u64) -> Option<u64> {
        (self.process.is_some() && now_us < self.paused_until).then_some(self.paused_until)
    }

    /// How late messages reach it.
    #[must_use]
    pub fn lag_us(&self) -> u64 {
        self.process.as_ref().and_then(|process| process.lag_us).unwrap_or(0)
    }

    /// The process of life `life`, if it is still up.
    pub fn alive(&mut self, life: u64) -> Option<&mut Process> {
        if self.life == life { self.process.as_mut() } else { None }
    }
}

impl Process {
    /// Does what the log thread had before it.
    ///
    /// # Errors
    /// The log's error; the log is closed.
    pub fn run_disk(&mut self) -> Result<disk::Ran, disk::DiskError> {
        let ran = disk::run(&mut self.wal, &mut self.running)?;
        let sequence = ran.done.unwrap_or(self.reported.sequence);
        self.released = ran.released.or(self.released);
        disk::let_go_step(&mut self.wal, &mut self.released)?;
        self.reported = DiskReport { sequence, room: self.wal.room(), waits: ran.disk_full, saved: ran.saved };
        Ok(ran)
    }

    /// Uses an idle moment of the log thread as the daemon does.
    ///
    /// # Errors
    /// The log's error; the log is closed.
    pub fn use_idle(&mut self) -> Result<(), disk::DiskError> {
        if self.released.is_some() {
            return disk::let_go_step(&mut self.wal, &mut self.released);
        }
        if self.wal.sync_point_due() {
            return Ok(self.wal.write_sync_point()?);
        }
        self.wal.prepare(PREPARE_BYTES)?;
        Ok(())
    }
}

/// Why a node does not start.
#[derive(Debug)]
pub enum StartError {
    /// Its log does not open.
    Open(OpenError),
    /// What is in it does not read back.
    Read(String),
}

/// What may be wrong with what a replica is given.
struct FoundError(String);

impl From<FrameError> for FoundError {
    fn from(error: FrameError) -> FoundError {
        FoundError(error.to_string())
    }
}

impl From<StateError> for FoundError {
    fn from(error: StateError) -> FoundError {
        FoundError(error.to_string())
    }
}
