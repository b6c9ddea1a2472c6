//! The thread of a state machine: it applies committed records, has the state saved now and then, and brings it back at a start.
//!
//! A snapshot is taken between two batches and written by a thread of its own, while records go on being applied. The log is let go of
//! behind it: what a start applies again is what came after the newest one. A machine that needs records that are gone here (this node
//! was away for long, and its log was put in its place by a checkpoint) begins anew with a state that another node saved.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use graven_net::client::Record;
use graven_net::server::{ErrorCode, Feed as _, FeedItem};
use graven_snapshot::body::{self, BodyReader};
use graven_wal::RealDisk;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::embed::{Command, NodeError, Offset, Query, StateMachine};
use super::engine::{Fatal, Shared};
use super::input::Input;
use super::service::NodeFeed;
use super::states::{self, Saver};

/// Bytes of records given to one `apply` call, about.
const APPLY_BYTES: usize = 256 << 10;
/// How soon a state machine tries again what its node could not do: read an entry that was found damaged, or get a state.
const RETRY: Duration = Duration::from_secs(1);

/// See the module's documentation.
struct MachineThread<'a, M: StateMachine> {
    machine: M,
    shared: &'a Arc<Shared>,
    feed: NodeFeed,
    next: Offset,
    expected: BTreeMap<Offset, oneshot::Sender<Result<M::Response, NodeError>>>,
    queries: BTreeMap<Offset, Vec<Query<M>>>,
    out: Vec<M::Response>,
    saver: Saver<M::Snapshot>,
    since: Since,
}

/// What was applied since the last snapshot was taken.
struct Since {
    bytes: u64,
    entries: u64,
    at: Instant,
    /// Timestamp of the newest record applied.
    timestamp_ms: u64,
}

impl Since {
    fn nothing(timestamp_ms: u64) -> Since {
        Since { bytes: 0, entries: 0, at: Instant::now(), timestamp_ms }
    }
}

/// What stops the thread.
enum Stop {
    /// The node stops.
    Node,
    /// The machine cannot go on.
    Failed(String),
}

pub(super) fn run<M: StateMachine>(
    machine: M,
    shared: &Arc<Shared>,
    commands: mpsc::Receiver<Command<M>>,
    fatal: &mpsc::Sender<Fatal>,
) {
    let run = std::panic::AssertUnwindSafe(|| {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(cause) => return Err(Stop::Failed(cause.to_string())),
        };
        let saver = Saver::start(shared).map_err(|cause| Stop::Failed(cause.to_string()))?;
        let next = machine.applied().unwrap_or(0);
        let feed = NodeFeed::of_machine(shared, next);
        let (expected, queries, since) = (BTreeMap::new(), BTreeMap::new(), Since::nothing(0));
        let thread = MachineThread { machine, shared, feed, next, expected, queries, out: Vec::new(), saver, since };
        runtime.block_on(thread.run(commands))
    });
    let result = std::panic::catch_unwind(run).unwrap_or_else(|_| Err(Stop::Failed("it panicked".to_owned())));
    if let Err(Stop::Failed(cause)) = result {
        let _ = fatal.try_send(Fatal::Machine(cause));
        let _ = shared.inputs.blocking_send(Input::Stop);
    }
}

impl<M: StateMachine> MachineThread<'_, M> {
    async fn run(mut self, mut commands: mpsc::Receiver<Command<M>>) -> Result<(), Stop> {
        if self.machine.applied().is_none() {
            self.begin_with_own_state();
        }
        loop {
            let item = tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => {
                        self.on_command(command);
                        continue;
                    }
                    None => return Ok(()),
                },
                item = self.feed.next(APPLY_BYTES) => item,
            };
            // Whoever waits for a record registered before the record became visible.
            while let Ok(command) = commands.try_recv() {
                self.on_command(command);
            }
            match item {
                FeedItem::Frames(frames) => self.apply(&frames).map_err(Stop::Failed)?,
                FeedItem::CaughtUp { .. } | FeedItem::Progress { .. } => self.report(),
                FeedItem::Done => return Ok(()),
                FeedItem::End(failure) if failure.code == ErrorCode::Unavailable => return Ok(()),
                FeedItem::Trimmed { .. } => self.begin_with_fetched_state().await?,
                FeedItem::End(failure) if failure.code == ErrorCode::Trimmed => self.begin_with_fetched_state().await?,
                // The scrubber was told and fetches it from another node; until then the machine lags behind.
                FeedItem::End(failure) if failure.code == ErrorCode::Damaged => {
                    error!("the state machine waits: {failure}");
                    tokio::time::sleep(RETRY).await;
                    self.feed = NodeFeed::of_machine(self.shared, self.next);
                }
                FeedItem::End(failure) => return Err(Stop::Failed(failure.message)),
            }
            self.maybe_save();
        }
    }

    fn on_command(&mut self, command: Command<M>) {
        match command {
            // The state that this node was given holds it already.
            Command::Expect(offset, response) if offset < self.next => drop(response.send(Err(NodeError::Skipped))),
            Command::Expect(offset, response) => {
                self.expected.insert(offset, response);
            }
            Command::Query(from, run) if from <= self.next => run(&self.machine),
            Command::Query(from, run) => self.queries.entry(from).or_default().push(run),
        }
    }

    fn apply(&mut self, frames: &[graven_frame::Frame]) -> Result<(), String> {
        for frame in frames {
            let mut batch = Vec::with_capacity(frame.header().count as usize);
            for record in frame.records() {
                let record = record.map_err(|cause| cause.to_string())?;
                if record.offset >= self.next {
                    batch.push(Record {
                        offset: record.offset,
                        timestamp: record.timestamp_ms,
                        meta: record.meta,
                        payload: record.payload,
                    });
                }
            }
            self.machine.apply(&batch, &mut self.out).map_err(|cause| cause.0)?;
            if self.out.len() != batch.len() {
                return Err(format!("{} records were applied, {} responses returned", batch.len(), self.out.len()));
            }
            for (record, response) in batch.iter().zip(self.out.drain(..)) {
                if let Some(waiting) = self.expected.remove(&record.offset) {
                    // Whoever proposed it may have gone away.
                    let _ = waiting.send(Ok(response));
                }
            }
            self.next = self.next.max(frame.next_offset());
            self.since.bytes += frame.encoded_len() as u64;
            self.since.entries += 1;
            self.since.timestamp_ms = frame.header().timestamp_ms;
        }
        self.answer_queries();
        self.report();
        Ok(())
    }

    fn answer_queries(&mut self) {
        while let Some(entry) = self.queries.first_entry()
            && *entry.key() <= self.next
        {
            entry.remove().into_iter().for_each(|run| run(&self.machine));
        }
    }

    /// Tells the replica how far the machine is. A full channel loses nothing: the next report says more.
    fn report(&self) {
        let _ = self.shared.inputs.try_send(Input::Applied(self.feed.passed()));
    }

    /// Takes a snapshot when enough was applied since the last one, and none is being written.
    fn maybe_save(&mut self) {
        let when = self.shared.config.snapshot;
        let due = self.since.bytes >= when.bytes
            || when.entries.is_some_and(|entries| self.since.entries >= entries)
            || when.age.is_some_and(|age| self.since.entries > 0 && self.since.at.elapsed() >= age);
        if due && self.saver.is_free() {
            let snapshot = self.machine.snapshot();
            self.saver.save(self.next, self.since.timestamp_ms, snapshot);
            self.since = Since::nothing(self.since.timestamp_ms);
        }
    }

    /// Goes on from the newest snapshot of this node that can be read.
    fn begin_with_own_state(&mut self) {
        let disk = RealDisk::open(&self.shared.config.data_dir);
        states::set_damaged_aside(&disk);
        for (offset, file) in states::stored(&disk).into_iter().rev() {
            match self.restore(&disk, &file, offset) {
                Ok(()) => {
                    info!(offset, "the state machine goes on from its snapshot");
                    return;
                }
                Err(cause) => warn!("a snapshot of the state machine is not used: {cause}"),
            }
        }
    }

    fn restore(&mut self, disk: &RealDisk, file: &str, offset: Offset) -> Result<(), String> {
        let read = || {
            let mut reader = BodyReader::open(disk, file)?;
            let timestamp_ms = reader.info().header.timestamp_ms;
            let machine = M::restore(&mut reader)?;
            // A machine that does not read to the end must not take a cut file for a whole one.
            std::io::copy(&mut reader, &mut std::io::sink())?;
            std::io::Result::Ok((machine, timestamp_ms))
        };
        match read() {
            Ok((machine, timestamp_ms)) => {
                self.machine = machine;
                self.skip_to(offset, timestamp_ms);
                Ok(())
            }
            Err(cause) => {
                // Only what is wrong with the file itself moves it out of the way: a machine that cannot read its own bytes is another matter.
                let kept = match body::verify(disk, file) {
                    Err(flaw) if flaw.is_damage() => body::set_aside(disk, file).ok(),
                    _ => None,
                };
                let kept = kept.map_or(String::new(), |name| format!("; it is kept as {name}, look at the disk"));
                Err(format!("{file}: {cause}{kept}"))
            }
        }
    }

    /// The machine holds everything below `offset` now.
    fn skip_to(&mut self, offset: Offset, timestamp_ms: u64) {
        self.next = offset;
        self.feed = NodeFeed::of_machine(self.shared, offset);
        self.since = Since::nothing(timestamp_ms);
        let later = self.expected.split_off(&offset);
        for (_, waiting) in std::mem::replace(&mut self.expected, later) {
            // The record is in the state; nobody here knows what the machine answered.
            let _ = waiting.send(Err(NodeError::Skipped));
        }
        self.answer_queries();
    }

    /// The log of this node begins behind what the machine has: another node's state takes it over the gap.
    async fn begin_with_fetched_state(&mut self) -> Result<(), Stop> {
        loop {
            if self.shared.inputs.is_closed() {
                return Err(Stop::Node);
            }
            let Some(first) = states::first_offset(self.shared) else {
                // Nothing stands behind the checkpoint yet.
                tokio::time::sleep(RETRY).await;
                continue;
            };
            if first <= self.next {
                self.feed = NodeFeed::of_machine(self.shared, self.next);
                return Ok(());
            }
            match states::fetch(self.shared, first).await {
                Ok((offset, file)) => {
                    let disk = RealDisk::open(&self.shared.config.data_dir);
                    match self.restore(&disk, &file, offset) {
                        Ok(()) => {
                            info!(offset, "the state machine goes on from a snapshot of another node");
                            let _ = self.shared.inputs.send(Input::StatesKept(states::kept(&disk))).await;
                            return Ok(());
                        }
                        Err(cause) => warn!("a snapshot of the state machine is not used: {cause}"),
                    }
                }
                Err(cause) => warn!("the state machine needs a snapshot at or behind offset {first}: {cause}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Lets a write end early when its node stops.
pub(super) struct Stoppable<'a, W> {
    pub(super) out: W,
    pub(super) stop: &'a AtomicBool,
}

impl<W: std::io::Write> std::io::Write for Stoppable<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("the node is stopping"));
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
