//! The scrubber: re-reads sealed segments at a set rate, and mends what rotted with frames of other nodes.
//!
//! It reads with `pread` on a thread of its own and holds nobody up: what must happen on the log's thread, making a replacement known
//! and swapping it in, goes there as an [`Errand`] between two jobs. A reader that runs into damage first says so ([`Suspects`]), and
//! that place is looked at next. The active segment is not its business: what rots there is found when the node starts.
//!
//! Opening a log reads little more than footers, so the first pass after a start is what finds what rotted before it: while nothing is
//! written to the log it takes half of what the disk can do. As long as damage is known and may be mended, the protocol thread is told, and
//! the node neither votes nor leads ([`crate::replica::Replica::note_damage`]).
//!
//! [`Suspects`]: super::bulk::Suspects

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use graven_frame::Frame;
use graven_net::bulk::Pace;
use graven_net::server::NodeState;
use graven_wal::mend::{self, Filled, MendError, SealedMender, SealedStep};
use graven_wal::{Damage, LogReader, RealDisk, ScrubError, ScrubPosition, SegmentId, Wal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::bulk::Health;
use super::bulk_fetch::{Fetcher, Hole, Round};
use super::checkpoints;
use super::counters::Counters;
use super::input::Input;
use super::log_thread::{Errand, LogInput};
use super::peers_file::{self, Peer};
use crate::members::Members;

/// Bytes read at a time: a fraction of what a disk does in the time a write may wait behind it.
const STEP_BYTES: u64 = 256 << 10;
/// The same while nothing is written, where the pause after each read is as long as the read.
const IDLE_STEP_BYTES: u64 = 1 << 20;
/// The log counts as idle when nothing was written to it for so long.
const IDLE_AFTER: Duration = Duration::from_millis(200);
/// For so long this node neither votes nor leads because of damage that was found. Mending takes seconds, once a node is reached that has
/// what is missing. A cluster whose leader and followers are all damaged at a place that nobody can give now would else stand still
/// for nothing: the end of each log, which elections are about, is whole.
const ABSTAIN_MAX: Duration = Duration::from_secs(60);
/// From the second pass on the rate is this much lower: what has been whole since the start rots in weeks, not in minutes.
const LATER_SLOWER: u64 = 4;
/// The shortest time from the end of one pass to the beginning of the next: a small log need not be read all day.
const PASS_PAUSE: Duration = Duration::from_secs(60);
/// How soon damage that nobody could mend is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Pause between steps of mending: the replacement shares the disk with the log.
const MEND_PAUSE: Duration = Duration::from_millis(2);

/// See the module's documentation.
pub(super) struct Scrubber {
    pub(super) reader: LogReader,
    pub(super) fetcher: Fetcher,
    pub(super) members: watch::Receiver<Members>,
    pub(super) jobs: SyncSender<LogInput>,
    pub(super) suspects: mpsc::Receiver<u64>,
    pub(super) health: watch::Sender<Health>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) data_dir: PathBuf,
    pub(super) counters: Arc<Counters>,
    /// 0: only what readers run into is looked at.
    pub(super) bytes_per_second: u64,
}

/// Why a damaged segment stays as it is for now.
#[derive(Debug, thiserror::Error)]
enum Unmended {
    #[error("{0}")]
    Mend(#[from] MendError),
    #[error("no node gave what fits: {}", .0.join("; "))]
    Nobody(Vec<String>),
    #[error("no node can be asked now: {}", .0.join("; "))]
    Later(Vec<String>),
    #[error("this node is alone in its cluster")]
    Alone,
    #[error("the log is closed")]
    Closed,
}

impl Unmended {
    /// Whether the next start may do better: what stands behind may change then too, and the log begin at its checkpoint.
    fn may_end_with_the_log_closed(&self) -> bool {
        matches!(self, Unmended::Nobody(_) | Unmended::Mend(MendError::NotSealed { .. }))
    }
}

/// Runs until `stopped` says so.
pub(super) fn run(scrubber: Scrubber, mut stopped: watch::Receiver<bool>) {
    // Its own runtime: fetches must not depend on one that is being shut down.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => return error!("damage is not looked for while this node runs: {cause}"),
    };
    runtime.block_on(async {
        let now = Instant::now();
        let state = State {
            scrubber,
            broken: BTreeMap::new(),
            turn: 0,
            position: ScrubPosition::default(),
            first_pass: true,
            written: (0, now),
            told: false,
        };
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = state.run() => {}
        }
    });
}

struct State {
    scrubber: Scrubber,
    /// Damage found and not mended.
    broken: BTreeMap<SegmentId, Broken>,
    /// Whom to ask first.
    turn: usize,
    position: ScrubPosition,
    first_pass: bool,
    /// Bytes written to the log as last seen, and since when.
    written: (u64, Instant),
    /// Whether the protocol thread was told of damage.
    told: bool,
}

/// Damage that is not mended.
struct Broken {
    damage: Damage,
    since: Instant,
    /// When to try again.
    again: Instant,
    /// Every node that could have what is missing has answered, and none has it; or there is no other node.
    hopeless: bool,
}

impl Broken {
    /// Whether this node's say in elections is to wait for it.
    fn keeps_from_voting(&self, now: Instant) -> bool {
        !self.hopeless && now.saturating_duration_since(self.since) < ABSTAIN_MAX
    }
}

impl State {
    async fn run(mut self) {
        let rate = self.scrubber.bytes_per_second;
        let (mut pace, mut next) = (Pace::new(rate), Instant::now());
        loop {
            let read = async {
                if rate == 0 {
                    return std::future::pending().await;
                }
                tokio::time::sleep_until(next.into()).await;
            };
            let due = self.broken.values().map(|broken| broken.again).min();
            let due = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(index) = self.scrubber.suspects.recv() => self.look_at(index).await,
                () = due => self.retry().await,
                () = read => {
                    let wait = self.step(&mut pace).await;
                    next = Instant::now() + wait;
                }
            }
        }
    }

    /// Reads on; how long to wait before the next step.
    async fn step(&mut self, pace: &mut Pace) -> Duration {
        let began = Instant::now();
        let idle = self.first_pass && self.is_idle(began);
        match self.scrubber.reader.scrub(self.position, if idle { IDLE_STEP_BYTES } else { STEP_BYTES }) {
            Ok(step) => {
                let now = Instant::now();
                let wait = match idle {
                    true => now - began,
                    false => pace.take(usize::try_from(step.bytes).unwrap_or(usize::MAX), now),
                };
                match step.next {
                    Some(next) => {
                        self.position = next;
                        wait
                    }
                    None => {
                        self.check_checkpoints(pace).await;
                        if std::mem::take(&mut self.first_pass) {
                            info!("every byte of the sealed segments was read once since the start");
                        }
                        self.position = ScrubPosition::default();
                        *pace = Pace::new((self.scrubber.bytes_per_second / LATER_SLOWER).max(1));
                        wait + PASS_PAUSE
                    }
                }
            }
            Err(ScrubError::Damaged { damage, skip }) => {
                self.position = skip;
                self.found(*damage).await;
                Duration::ZERO
            }
            Err(ScrubError::Io { segment, cause }) => {
                error!("segment {segment} cannot be opened to look for damage: {cause}; look at the disk");
                PASS_PAUSE
            }
            Err(cause) => {
                error!("looking for damage: {cause}");
                PASS_PAUSE
            }
        }
    }

    /// Reads the checkpoints again. One that is damaged is set aside, and the replica makes another.
    async fn check_checkpoints(&self, pace: &mut Pace) {
        let dir = &self.scrubber.data_dir;
        let Ok(stored) = graven_snapshot::stored(&RealDisk::open(dir)) else { return };
        for index in stored {
            let size = std::fs::metadata(dir.join(graven_snapshot::name_of(index))).map_or(0, |file| file.len());
            pace.pass(usize::try_from(size).unwrap_or(usize::MAX)).await;
            if checkpoints::is_damaged(dir, index) {
                // A closed channel: the node is stopping.
                let _ = self.scrubber.inputs.send(Input::CheckpointLost(index)).await;
            }
        }
    }

    /// A reader could not use entry `index`.
    async fn look_at(&mut self, index: u64) {
        let Some(segment) = self.scrubber.reader.segment_of(index) else { return };
        if self.broken.contains_key(&segment) {
            return;
        }
        let what = "an entry is not what was written";
        self.found(Damage { segment, from: 0, to: 0, first_index: index, last_index: index, what }).await;
    }

    async fn found(&mut self, damage: Damage) {
        error!("damage found in the log of this running node: {damage}; its entries are fetched from other nodes");
        let now = Instant::now();
        let hopeless = self.others().is_empty();
        self.broken.insert(damage.segment, Broken { damage, since: now, again: now, hopeless });
        self.retry().await;
    }

    /// Mends what is known to be broken and due.
    async fn retry(&mut self) {
        let now = Instant::now();
        let due: Vec<Damage> =
            self.broken.values().filter(|broken| broken.again <= now).map(|broken| broken.damage.clone()).collect();
        for damage in due {
            self.scrubber.health.send_replace(Health::mending(&damage));
            self.tell_protocol().await;
            match self.mend(damage.segment).await {
                Ok(()) => {
                    info!("segment {} is mended", damage.segment);
                    self.broken.remove(&damage.segment);
                }
                Err(Unmended::Mend(MendError::Gone { segment })) => {
                    info!("segment {segment} was let go of; nothing is left to mend");
                    self.broken.remove(&damage.segment);
                }
                Err(Unmended::Mend(MendError::Whole { segment })) => {
                    warn!("segment {segment} is whole when it is read again: a read failed once, look at the disk");
                    self.broken.remove(&damage.segment);
                }
                Err(why) => {
                    warn!("segment {} cannot be mended now: {why}", damage.segment);
                    if why.may_end_with_the_log_closed() {
                        self.ask_at_start();
                    }
                    if let Some(broken) = self.broken.get_mut(&damage.segment) {
                        broken.hopeless = matches!(why, Unmended::Nobody(_) | Unmended::Alone);
                        broken.again = Instant::now() + RETRY;
                    }
                }
            }
        }
        self.tell();
        self.tell_protocol().await;
    }

    /// Has the next start mend the log as a whole.
    fn ask_at_start(&self) {
        let disk = RealDisk::open(&self.scrubber.data_dir);
        if mend::is_asked(&disk) {
            return;
        }
        match mend::ask_at_start(&disk) {
            Ok(()) => warn!(
                "start this node again when the others are up: its log is mended as a whole then, before it takes part"
            ),
            Err(cause) => error!("cannot note that the next start shall mend the log: {cause}"),
        }
    }

    /// Tells the protocol thread whether damage keeps this node from voting; again and again while it does, so that a leader that could
    /// not hand over tries again.
    async fn tell_protocol(&mut self) {
        let now = Instant::now();
        let damaged = self.broken.values().any(|broken| broken.keeps_from_voting(now));
        if damaged != self.told {
            match damaged {
                true => warn!("this node neither votes nor leads until its log is mended"),
                false => info!("this node votes again"),
            }
        }
        if damaged || self.told {
            self.told = damaged;
            // A closed channel: the node is stopping.
            let _ = self.scrubber.inputs.send(Input::Damaged(damaged)).await;
        }
    }

    fn tell(&self) {
        let health = match self.broken.values().next() {
            None => Health::whole(),
            Some(broken) => Health { state: NodeState::Damaged, ..Health::mending(&broken.damage) },
        };
        self.scrubber.health.send_if_modified(|told| {
            let changed = *told != health;
            *told = health;
            changed
        });
    }

    /// Whether nothing was written to the log for a while.
    fn is_idle(&mut self, now: Instant) -> bool {
        let written = self.scrubber.counters.written_bytes.now();
        if written != self.written.0 {
            self.written = (written, now);
        }
        now.saturating_duration_since(self.written.1) >= IDLE_AFTER
    }

    fn others(&self) -> Vec<Peer> {
        peers_file::others(&self.scrubber.members.borrow(), self.scrubber.fetcher.local.node)
    }

    async fn mend(&mut self, segment: SegmentId) -> Result<(), Unmended> {
        let mender = self.on_log_thread(move |wal| wal.mend_sealed(segment)).await??;
        let mut mending = Mending { mender };
        loop {
            match mending.mender.step()? {
                SealedStep::More => tokio::time::sleep(MEND_PAUSE).await,
                SealedStep::Wants { .. } => self.fetch(&mut mending).await?,
                SealedStep::Ready => break,
            }
        }
        self.on_log_thread(move |wal| wal.finish_sealed(mending.mender)).await??;
        Ok(())
    }

    async fn fetch(&mut self, mending: &mut Mending) -> Result<(), Unmended> {
        let peers = self.others();
        if peers.is_empty() {
            return Err(Unmended::Alone);
        }
        match self.scrubber.fetcher.round(&peers, &mut self.turn, mending).await? {
            Round::Closed => Ok(()),
            Round::Nobody { sentences, .. } => Err(Unmended::Nobody(sentences)),
            Round::Later(sentences) => Err(Unmended::Later(sentences)),
        }
    }

    /// Runs something on the log's thread, between two jobs.
    async fn on_log_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Wal<RealDisk>) -> T + Send + 'static,
    ) -> Result<T, Unmended> {
        let (done, answer) = oneshot::channel();
        let errand = Errand::new(move |wal| drop(done.send(work(wal))));
        self.scrubber.jobs.send(LogInput::Errand(errand)).map_err(|_| Unmended::Closed)?;
        answer.await.map_err(|_| Unmended::Closed)
    }
}

/// A sealed segment for which a replacement is being made.
struct Mending {
    mender: SealedMender<RealDisk>,
}

impl Hole for Mending {
    fn wanted(&mut self) -> Result<Option<(u64, u64)>, MendError> {
        Ok(match self.mender.step()? {
            SealedStep::Wants { first, last } => Some((first, last)),
            _ => None,
        })
    }

    fn fill(&mut self, frames: &[Frame]) -> Result<Filled, MendError> {
        self.mender.fill(frames)
    }
}
