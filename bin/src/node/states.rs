//! Snapshots of a node's own state machine as files: written in the background, listed, fetched from other nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use graven_net::bulk::SnapshotWanted;
use graven_snapshot::body::{self, BodyError, BodyWriter, Header, Name, Options};
use graven_wal::RealDisk;
use tracing::{info, warn};

use super::embed::{Offset, WriteSnapshot};
use super::engine::Shared;
use super::input::Input;
use super::machine::Stoppable;
use super::peers_file;
use super::snapshot_fetch::{FetchError, SnapshotFetcher};
use crate::replica::snapshots::StatesKept;

/// How the files of a state machine's own snapshots are named.
const PREFIX: &str = "state-";
/// Snapshots kept: the newest, and the one before it, for the day on which the newest does not read back.
const KEPT: usize = 2;

/// Writes snapshots, one at a time, on a thread of its own.
pub(super) struct Saver<S> {
    tasks: Option<SyncSender<Save<S>>>,
    busy: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Save<S> {
    offset: Offset,
    timestamp_ms: u64,
    snapshot: S,
}

impl<S: WriteSnapshot> Saver<S> {
    pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<Saver<S>> {
        // One is handed over while none is being written, so the place is always free.
        let (tasks, queue) = sync_channel(1);
        let (busy, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (for_thread, is_busy, must_stop) = (Arc::clone(shared), Arc::clone(&busy), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("graven-state".to_owned())
            .spawn(move || write_all(&for_thread, &queue, &is_busy, &must_stop))?;
        Ok(Saver { tasks: Some(tasks), busy, stop, thread: Some(thread) })
    }

    /// Whether none is being written.
    pub(super) fn is_free(&self) -> bool {
        !self.busy.load(Ordering::Acquire)
    }

    /// Has a snapshot of everything below `offset` written. Call it when the saver is free.
    pub(super) fn save(&self, offset: Offset, timestamp_ms: u64, snapshot: S) {
        self.busy.store(true, Ordering::Release);
        if let Some(tasks) = &self.tasks {
            // A closed channel means that the thread is gone: its panic was printed, and the log is kept.
            let _ = tasks.try_send(Save { offset, timestamp_ms, snapshot });
        }
    }
}

impl<S> Drop for Saver<S> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            // A panic was printed where it happened.
            let _ = thread.join();
        }
    }
}

fn write_all<S: WriteSnapshot>(shared: &Shared, queue: &Receiver<Save<S>>, busy: &AtomicBool, stop: &AtomicBool) {
    let disk = RealDisk::open(&shared.config.data_dir);
    while let Ok(save) = queue.recv() {
        let offset = save.offset;
        match write(shared, &disk, save, stop) {
            Ok(bytes) => {
                info!(offset, bytes, "a snapshot of the state machine is durable");
                if let Err(cause) = forget_older(&disk) {
                    warn!("an older snapshot of the state machine stays: {cause}");
                }
                // An error means that the node stops; the next start looks for itself.
                let _ = shared.inputs.blocking_send(Input::StatesKept(kept(&disk)));
            }
            Err(_) if stop.load(Ordering::Relaxed) => {}
            Err(cause) => warn!("a snapshot of the state machine was not written, the log is kept: {cause}"),
        }
        busy.store(false, Ordering::Release);
    }
}

fn write<S: WriteSnapshot>(
    shared: &Shared,
    disk: &RealDisk,
    save: Save<S>,
    stop: &AtomicBool,
) -> Result<u64, Box<dyn std::error::Error>> {
    let header = Header {
        cluster: shared.identity.cluster,
        id: rand::random::<u64>().max(1),
        name: Name::OWN,
        offset: save.offset,
        timestamp_ms: save.timestamp_ms,
    };
    let mut out = Stoppable { out: BodyWriter::create(disk, header, Options::default())?, stop };
    save.snapshot.write(&mut out)?;
    Ok(out.out.finish()?.bytes)
}

/// The snapshots that a directory has of its own state machine, by their offsets, ascending. Damaged ones are left out.
pub(super) fn stored(disk: &RealDisk) -> Vec<(Offset, String)> {
    let stored = body::stored(disk).unwrap_or_else(|cause| {
        warn!("snapshots cannot be listed: {cause}");
        Vec::new()
    });
    let own = stored.into_iter().filter_map(|stored| match stored.info {
        Ok(info) if info.header.name.is_own() => Some((info.header.offset, stored.file)),
        _ => None,
    });
    let mut own: Vec<_> = own.collect();
    own.sort_unstable();
    own
}

/// Moves those out of the way whose beginning or end is damaged.
pub(super) fn set_damaged_aside(disk: &RealDisk) {
    for state in body::stored(disk).unwrap_or_default() {
        let Err(flaw) = state.info else { continue };
        if flaw.is_damage() && state.file.starts_with(PREFIX) {
            match body::set_aside(disk, &state.file) {
                Ok(name) => {
                    warn!("a snapshot of the state machine is damaged, {flaw}; it is kept as {name}, look at the disk")
                }
                Err(cause) => warn!("{flaw}; {cause}"),
            }
        }
    }
}

fn forget_older(disk: &RealDisk) -> Result<(), BodyError> {
    let own = stored(disk);
    let older = own.len().saturating_sub(KEPT);
    own.iter().take(older).try_for_each(|(_, file)| body::remove(disk, file))
}

/// The offset of the first record that this node's log can give; `None` while it has no entry.
pub(super) fn first_offset(shared: &Shared) -> Option<Offset> {
    let first = shared.reader.first_index();
    shared.reader.header(first).ok().map(|header| header.base_offset)
}

/// Up to where the newest and the oldest of them go.
pub(super) fn kept(disk: &RealDisk) -> StatesKept {
    let own = stored(disk);
    let offset = |state: Option<&(Offset, String)>| state.map_or(0, |(offset, _)| *offset);
    // The only one is not relied on before there is another.
    let oldest = if own.len() < KEPT { 0 } else { offset(own.first()) };
    StatesKept { newest: offset(own.last()), oldest }
}

/// Fetches the newest snapshot of a state machine that another node has, at or behind `least`. Returns its offset and its file here.
pub(super) async fn fetch(shared: &Shared, least: Offset) -> Result<(Offset, String), FetchError> {
    let peers = || peers_file::others(&shared.members.borrow(), shared.identity.node);
    let fits = move |found: &body::Info| found.header.name.is_own() && found.header.offset >= least;
    let wanted = SnapshotWanted::Own { offset: least };
    let found = SnapshotFetcher::of(shared).fetch(wanted, &peers, &fits).await?;
    Ok((found.header.offset, found.header.file_name()))
}
