//! The scrubber: re-reads sealed segments at a set rate, and mends what rotted with frames of other nodes.
//!
//! It reads with `pread` on a thread of its own and holds nobody up: what must happen on the log's thread, making a replacement known
//! and swapping it in, goes there as an [`Errand`] between two jobs. A reader that runs into damage first says so ([`Suspects`]), and
//! that place is looked at next. The active segment is not its business: what rots there is found when the node starts.
//!
//! [`Suspects`]: super::bulk::Suspects

use std::collections::BTreeMap;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use graven_frame::Frame;
use graven_net::bulk::Pace;
use graven_net::server::NodeState;
use graven_wal::mend::{Filled, MendError, SealedMender, SealedStep};
use graven_wal::{Damage, LogReader, RealDisk, ScrubError, ScrubPosition, SegmentId, Wal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::bulk::Health;
use super::bulk_fetch::{Fetcher, Hole, Round};
use super::log_thread::{Errand, LogInput};
use super::peers_file;
use crate::members::Members;

/// Bytes read at a time: a fraction of what a disk does in the time a write may wait behind it.
const STEP_BYTES: u64 = 256 << 10;
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
    #[error("this node is alone in its cluster")]
    Alone,
    #[error("the log is closed")]
    Closed,
}

/// Runs until `stopped` says so.
pub(super) fn run(scrubber: Scrubber, mut stopped: watch::Receiver<bool>) {
    // Its own runtime: fetches must not depend on one that is being shut down.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => return error!("damage is not looked for while this node runs: {cause}"),
    };
    runtime.block_on(async {
        let state = State { scrubber, broken: BTreeMap::new(), turn: 0, position: ScrubPosition::default() };
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = state.run() => {}
        }
    });
}

struct State {
    scrubber: Scrubber,
    /// Damage found and not mended, and when to try again.
    broken: BTreeMap<SegmentId, (Damage, Instant)>,
    /// Whom to ask first.
    turn: usize,
    position: ScrubPosition,
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
            let due = self.broken.values().map(|(_, at)| *at).min();
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
        match self.scrubber.reader.scrub(self.position, STEP_BYTES) {
            Ok(step) => {
                let wait = pace.take(usize::try_from(step.bytes).unwrap_or(usize::MAX), Instant::now());
                match step.next {
                    Some(next) => {
                        self.position = next;
                        wait
                    }
                    None => {
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
        self.broken.insert(damage.segment, (damage, Instant::now()));
        self.retry().await;
    }

    /// Mends what is known to be broken and due.
    async fn retry(&mut self) {
        let now = Instant::now();
        let due: Vec<Damage> = self.broken.values().filter(|(_, at)| *at <= now).map(|(it, _)| it.clone()).collect();
        for damage in due {
            self.scrubber.health.send_replace(Health::mending(&damage));
            match self.mend(damage.segment).await {
                Ok(()) => {
                    info!("segment {} is mended", damage.segment);
                    self.broken.remove(&damage.segment);
                }
                Err(why) => {
                    warn!("segment {} cannot be mended now: {why}", damage.segment);
                    self.broken.insert(damage.segment, (damage, Instant::now() + RETRY));
                }
            }
        }
        self.tell();
    }

    fn tell(&self) {
        let health = match self.broken.values().next() {
            None => Health::whole(),
            Some((damage, _)) => Health { state: NodeState::Damaged, ..Health::mending(damage) },
        };
        self.scrubber.health.send_if_modified(|told| {
            let changed = *told != health;
            *told = health;
            changed
        });
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
        let peers = peers_file::others(&self.scrubber.members.borrow(), self.scrubber.fetcher.local.node);
        if peers.is_empty() {
            return Err(Unmended::Alone);
        }
        match self.scrubber.fetcher.round(&peers, &mut self.turn, mending).await? {
            Round::Closed => Ok(()),
            Round::Nobody(sentences) | Round::Later(sentences) => Err(Unmended::Nobody(sentences)),
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
