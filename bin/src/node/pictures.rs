//! The files of named snapshots: fetched from other nodes when the log speaks of one, removed when it does so no more.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::engine::Shared;
use super::input::Input;
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
            PictureTask::Fetch { picture, .. } => {
                if shared.inputs.send(Input::PictureFetched(picture.id, false)).await.is_err() {
                    return;
                }
            }
            PictureTask::Forget(_) => {}
        }
    }
}
