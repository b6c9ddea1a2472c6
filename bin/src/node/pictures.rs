//! The files of named snapshots: fetched from other nodes when the log speaks of one, removed when it does so no more, re-read now and then.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use graven_net::bulk::SnapshotWanted;
use graven_snapshot::body::{self, BodyReader, Info};
use graven_wal::{Disk, RealDisk};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::engine::Shared;
use super::input::Input;
use super::peers_file;
use super::snapshot_fetch::SnapshotFetcher;
use super::snapshot_service::lose;
use crate::replica::names::{Directory, Picture};

/// Tasks that may wait: one fetch is under way at a time, and a name's end removes two files at most.
pub(super) const PICTURE_TASKS_MAX: usize = 256;

/// Something to do with a picture's file.
#[derive(Debug)]
pub(super) enum PictureTask {
    /// Get it from another node.
    Fetch {
        /// Its name.
        name: String,
        /// Which one.
        picture: Picture,
    },
    /// Remove it.
    Forget(u64),
}

/// A fetch under way; it tells whether the file is durable here now, or why not.
type Fetching = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// What cannot be fetched is tried twice a second, for as long as a disk is full or a node is down: a line a minute says so.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Does what the replica wants done, until the channel is closed. Files are removed while another one is being fetched.
pub(super) async fn keep(shared: Arc<Shared>, mut tasks: mpsc::Receiver<PictureTask>) {
    let mut fetching: Option<(u64, Fetching)> = None;
    let mut names = shared.names.clone();
    let mut told: Option<(u64, Instant)> = None;
    loop {
        let wanted = fetching.as_ref().map(|(id, _)| *id);
        let (id, failed) = tokio::select! {
            task = tasks.recv() => match task {
                Some(PictureTask::Fetch { name, picture }) => {
                    // The replica wants one at a time; another one while this is under way takes its place.
                    fetching = Some((picture.id, Box::pin(fetch(Arc::clone(&shared), name, picture))));
                    continue;
                }
                Some(PictureTask::Forget(id)) => {
                    forget(&shared, id).await;
                    continue;
                }
                None => return,
            },
            (id, ended) = under_way(&mut fetching) => (id, ended.err()),
            // What became of it does not matter: its file is forgotten below.
            id = unwanted(&mut names, wanted) => (id, Some(String::new())),
        };
        fetching = None;
        let is_told = told.is_some_and(|(of, at)| of == id && at.elapsed() < TOLD_EVERY);
        let fetched = failed.is_none();
        let is_named = is_named(&names.borrow(), id);
        if !fetched && !is_named {
            // What was received of it helps nobody any more.
            forget(&shared, id).await;
        }
        if let Some(words) = failed.filter(|_| is_named && !is_told) {
            warn!("{words}");
            told = Some((id, Instant::now()));
        }
        if shared.inputs.send(Input::PictureFetched(id, fetched)).await.is_err() {
            return;
        }
    }
}

/// How the fetch under way ended; never when there is none.
async fn under_way(fetching: &mut Option<(u64, Fetching)>) -> (u64, Result<(), String>) {
    match fetching {
        Some((id, fetch)) => (*id, fetch.await),
        None => std::future::pending().await,
    }
}

/// Resolves when the log no longer speaks of the picture that is being fetched.
async fn unwanted(names: &mut watch::Receiver<Arc<Directory>>, id: Option<u64>) -> u64 {
    match id {
        Some(id) if names.wait_for(|names| !is_named(names, id)).await.is_ok() => id,
        _ => std::future::pending().await,
    }
}

fn is_named(names: &Directory, id: u64) -> bool {
    names.ids().contains(&id)
}

async fn fetch(shared: Arc<Shared>, name: String, picture: Picture) -> Result<(), String> {
    let (members, me) = (shared.members.clone(), shared.identity.node);
    let peers = move || peers_file::others(&members.borrow(), me);
    let fits = move |found: &Info| {
        (found.header.offset, found.bytes, u128::from(found.digest)) == (picture.offset, picture.bytes, picture.digest)
    };
    let fetched = SnapshotFetcher::of(&shared).fetch(SnapshotWanted::Id(picture.id), &peers, &fits).await;
    match fetched {
        Ok(found) => {
            info!(name, offset = picture.offset, bytes = found.bytes, "fetched a snapshot");
            Ok(())
        }
        Err(cause) => Err(format!("the snapshot {name} of offset {} was not fetched: {cause}", picture.offset)),
    }
}

/// Removes the file of a picture, and what was received of it.
async fn forget(shared: &Shared, id: u64) {
    let disk = RealDisk::open(&shared.config.data_dir);
    let removed = tokio::task::spawn_blocking(move || {
        let file = body::file_of(id);
        match disk.remove(&format!("{file}{PARTIAL}")) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(cause),
            _ => {}
        }
        body::remove(&disk, &file).map_err(std::io::Error::from)
    });
    if let Ok(Err(cause)) = removed.await {
        warn!("the file of a snapshot that nobody needs stays until the next start: {cause}");
    }
}

/// What a node finds when it starts: files that no entry of its log names and that were not finished are removed. Files that are whole stay:
/// entries that name them may be on other nodes.
///
/// # Errors
/// The directory cannot be read or changed.
pub(super) fn sweep<D: Disk>(disk: &D, named: &std::collections::BTreeSet<u64>) -> Result<(), body::BodyError> {
    let swept = body::sweep(disk, |info| named.contains(&info.header.id))?;
    if !swept.removed.is_empty() {
        info!("removed what was left of unfinished snapshots: {}", swept.removed.join(", "));
    }
    Ok(())
}

/// Re-reads the files of all pictures, one after the other and slowly, for as long as the node runs. What is damaged is set aside and fetched
/// again.
pub(super) async fn scrub(shared: std::sync::Weak<Shared>) {
    loop {
        tokio::time::sleep(SCRUB_EVERY).await;
        let Some(running) = shared.upgrade() else { return };
        let ids = running.names.borrow().ids();
        drop(running);
        for id in ids {
            scrub_one(&shared, id).await;
        }
    }
}

async fn scrub_one(shared: &std::sync::Weak<Shared>, id: u64) {
    let file = body::file_of(id);
    let Some(running) = shared.upgrade() else { return };
    let bytes_per_second = running.config.wal.scrub_bytes_per_second;
    if bytes_per_second == 0 {
        return;
    }
    let disk = RealDisk::open(&running.config.data_dir);
    drop(running);
    let own = file.clone();
    let Ok(mut opened) = tokio::task::spawn_blocking(move || BodyReader::open(&disk, &own)).await else { return };
    let mut number = 0;
    let cause = loop {
        let reader = match opened {
            Ok(reader) if number < reader.info().chunks() => reader,
            Ok(_) => return,
            Err(cause) => break cause,
        };
        let read = tokio::task::spawn_blocking(move || reader.read_chunk(number).map(|chunk| (reader, chunk.len())));
        match read.await {
            Ok(Ok((reader, len))) => {
                tokio::time::sleep(Duration::from_secs_f64(len as f64 / bytes_per_second as f64)).await;
                opened = Ok(reader);
            }
            Ok(Err(cause)) => break cause,
            Err(_) => return,
        }
        number += 1;
    };
    let Some(running) = shared.upgrade() else { return };
    // One that is not here is fetched, or was removed meanwhile.
    if !cause.is_missing() {
        drop(tokio::task::spawn_blocking(move || lose(&running, &file, id, &cause)).await);
    }
}

/// How the name of a file ends that is being received.
const PARTIAL: &str = ".part";
/// Between two rounds. A damaged copy is found when it is given away, too; this is for those that nobody asks for.
const SCRUB_EVERY: Duration = Duration::from_secs(15 * 60);
