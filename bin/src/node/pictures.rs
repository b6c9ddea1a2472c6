//! The files of named snapshots: fetched from other nodes when the log speaks of one, removed when it does so no more.

use std::sync::Arc;

use graven_net::bulk::SnapshotWanted;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::engine::Shared;
use super::input::Input;
use super::peers_file;
use super::snapshot_fetch::SnapshotFetcher;
use crate::replica::names::Picture;

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

/// Does what the replica wants done, one after the other, until the channel is closed.
pub(super) async fn keep(shared: Arc<Shared>, mut tasks: mpsc::Receiver<PictureTask>) {
    while let Some(task) = tasks.recv().await {
        match task {
            PictureTask::Fetch { name, picture } => {
                let fetched = fetch(&shared, &name, picture).await;
                if shared.inputs.send(Input::PictureFetched(picture.id, fetched)).await.is_err() {
                    return;
                }
            }
            PictureTask::Forget(_) => {}
        }
    }
}

/// Whether the file is durable here now.
async fn fetch(shared: &Shared, name: &str, picture: Picture) -> bool {
    let peers = || peers_file::others(&shared.members.borrow(), shared.identity.node);
    let fits = move |found: &graven_snapshot::body::Info| {
        (found.header.offset, found.bytes, u128::from(found.digest)) == (picture.offset, picture.bytes, picture.digest)
    };
    let fetched = SnapshotFetcher::of(shared).fetch(SnapshotWanted::Id(picture.id), &peers, &fits).await;
    match &fetched {
        Ok(found) => info!(name, offset = picture.offset, bytes = found.bytes, "fetched a snapshot"),
        Err(cause) => warn!("the snapshot {name} of offset {} was not fetched: {cause}", picture.offset),
    }
    fetched.is_ok()
}
