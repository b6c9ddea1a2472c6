//! The thread that owns the log: it writes, syncs, and prepares segments while nothing else waits.
//!
//! It takes all jobs that are queued, writes them, syncs once and reports once: the longer a sync takes, the more share the
//! next. The first error ends it: the log is closed for the life of the process, nothing more is reported as durable.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use graven_wal::{PrepareState, RealDisk, Wal};
use tokio::sync::mpsc::Sender;
use tracing::warn;

use super::counters::Counters;
use crate::replica::DiskJob;
use crate::replica::disk::{self, DiskError, DiskReport};

/// What goes to the log thread.
#[derive(Debug)]
pub(super) enum LogInput {
    /// A job.
    Job(DiskJob),
    /// Something else to do with the log, between two jobs.
    Errand(Errand),
}

/// A bounded piece of work that only the log's owner can do. It answers by itself.
pub(super) struct Errand(Box<Work>);

type Work = dyn FnOnce(&mut Wal<RealDisk>) + Send;

impl Errand {
    pub(super) fn new(work: impl FnOnce(&mut Wal<RealDisk>) + Send + 'static) -> Errand {
        Errand(Box::new(work))
    }
}

impl std::fmt::Debug for Errand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Errand")
    }
}

/// What comes back.
#[derive(Debug)]
pub(super) enum LogReport {
    /// Jobs up to this one are durable.
    Done(DiskReport),
    /// The log failed and is closed.
    Failed(DiskError),
}

/// Jobs written together at most: bounds the memory that one sync vouches for, and the time until the next report.
const BATCH_BYTES: usize = 8 << 20;
/// A sync-point record follows this long after a sync with nothing queued: it shrinks the window in which rot looks like a
/// torn tail to 10 ms.
const SYNC_POINT_AFTER: Duration = Duration::from_millis(8);
/// Preparation goes on in steps of this size, so that a job never waits longer than such a step takes.
const PREPARE_STEP_BYTES: u64 = 256 << 10;
/// Pause between steps of preparation: the device is shared with the syncs of other nodes.
const PREPARE_PAUSE: Duration = Duration::from_millis(4);
/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);
/// How often an idle log looks whether there is something to do.
const IDLE: Duration = Duration::from_secs(1);

/// Runs until the channel is closed or the log fails. A closed channel closes the log in order.
pub(super) fn run(
    wal: Wal<RealDisk>,
    jobs: &Receiver<LogInput>,
    reports: &Sender<LogReport>,
    counters: &Arc<Counters>,
) {
    let mut thread = LogThread {
        wal,
        queue: VecDeque::new(),
        done: 0,
        full: false,
        preparing: true,
        behind_bytes: 0,
        released: None,
    };
    if let Err(error) = thread.work(jobs, reports, counters).and_then(|()| Ok(thread.wal.close()?)) {
        // When nobody listens any more the process is ending anyway, and nothing was acknowledged.
        let _ = reports.blocking_send(LogReport::Failed(error));
    }
}

struct LogThread {
    wal: Wal<RealDisk>,
    queue: VecDeque<DiskJob>,
    done: u64,
    full: bool,
    preparing: bool,
    /// Bytes appended for which no byte of the next segment was prepared yet.
    behind_bytes: u64,
    /// Entries up to here are let go of, and files of them are left.
    released: Option<u64>,
}

impl LogThread {
    fn work(
        &mut self,
        jobs: &Receiver<LogInput>,
        reports: &Sender<LogReport>,
        counters: &Counters,
    ) -> Result<(), DiskError> {
        loop {
            match jobs.recv_timeout(self.pause()) {
                Ok(LogInput::Job(job)) => self.gather(job, jobs),
                Ok(LogInput::Errand(errand)) => (errand.0)(&mut self.wal),
                Err(RecvTimeoutError::Timeout) => self.idle()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            // A disk that turned out to be full in an idle moment is told of as well.
            if !self.queue.is_empty() || self.full || self.wal.disk_full() {
                let appended: usize = self.queue.iter().map(bytes_of).sum();
                let began = Instant::now();
                let ran = disk::run(&mut self.wal, &mut self.queue)?;
                if ran.done.is_some() {
                    counters.sync_times.note(began.elapsed());
                }
                self.done = ran.done.unwrap_or(self.done);
                self.released = ran.released.or(self.released);
                let report =
                    DiskReport { sequence: self.done, room: self.wal.room(), waits: ran.disk_full, saved: ran.saved };
                self.note_room(report.waits || report.room.is_full());
                self.count(counters);
                if reports.blocking_send(LogReport::Done(report)).is_err() {
                    return Ok(());
                }
                self.behind_bytes += appended as u64;
                self.preparing |= appended > 0;
            }
            // One between two batches: each costs a sync of the directory, and a trim may free a thousand.
            disk::let_go_step(&mut self.wal, &mut self.released)?;
            // Under steady load there is no idle moment; preparation then goes on as fast as the log grows.
            while self.preparing && self.behind_bytes >= PREPARE_STEP_BYTES {
                self.prepare()?;
            }
        }
    }

    fn pause(&self) -> Duration {
        if self.released.is_some() {
            Duration::ZERO
        } else if self.full {
            FULL_RETRY
        } else if self.wal.sync_point_due() {
            SYNC_POINT_AFTER
        } else if self.preparing {
            PREPARE_PAUSE
        } else {
            IDLE
        }
    }

    fn gather(&mut self, first: DiskJob, jobs: &Receiver<LogInput>) {
        let mut bytes = bytes_of(&first);
        self.queue.push_back(first);
        while bytes < BATCH_BYTES
            && let Ok(input) = jobs.try_recv()
        {
            match input {
                LogInput::Job(job) => {
                    bytes += bytes_of(&job);
                    self.queue.push_back(job);
                }
                LogInput::Errand(errand) => (errand.0)(&mut self.wal),
            }
        }
    }

    fn idle(&mut self) -> Result<(), DiskError> {
        if self.released.is_some() {
            // It goes on behind this.
            return Ok(());
        }
        if self.wal.sync_point_due() {
            return Ok(self.wal.write_sync_point()?);
        }
        self.prepare()
    }

    fn prepare(&mut self) -> Result<(), DiskError> {
        self.behind_bytes = self.behind_bytes.saturating_sub(PREPARE_STEP_BYTES);
        self.preparing = matches!(self.wal.prepare(PREPARE_STEP_BYTES)?, PrepareState::More);
        Ok(())
    }

    fn note_room(&mut self, full: bool) {
        if full != self.full {
            warn!("{}", if full { "the disk is full: appends wait for room" } else { "the disk has room again" });
        }
        self.full = full;
    }

    fn count(&self, counters: &Counters) {
        let stats = self.wal.stats();
        counters.syncs.set(stats.syncs);
        counters.frames.set(stats.frames);
        counters.written_bytes.set(stats.bytes_written);
    }
}

fn bytes_of(job: &DiskJob) -> usize {
    job.frames.iter().map(graven_frame::Frame::encoded_len).sum()
}
