//! What a node gives to somebody who copies the whole log.
//!
//! Everything is read on a thread made for it, a little ahead of what the client takes: cold segments wait for the disk, and a client that
//! is slow must not hold up others. Every frame is verified before it leaves, as for any reader.

use std::sync::Arc;

use graven_frame::Frame;
use graven_net::server::{BackupHead, BackupRequest, ErrorCode, Failure, OpenedBackup};
use graven_wal::{ReadError, RealDisk};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::bulk::whole;
use super::engine::Shared;
use super::service::{NodeService, read_index, unreadable};
use crate::backup;
use crate::replica::View;

/// Backups that a node gives at the same time: each has a thread, two batches in memory, and reads as fast as the disk.
pub(super) const BACKUPS_MAX: usize = 2;
/// Batches read ahead of the client.
const BATCHES: usize = 2;
/// Enough to amortise the hand-over, little to hold.
const BATCH_BYTES: usize = 256 << 10;

impl NodeService {
    pub(super) async fn open_backup(&self, request: BackupRequest) -> Result<OpenedBackup, Failure> {
        let Ok(permit) = Arc::clone(&self.backups).try_acquire_owned() else {
            let message = format!("this node gives {BACKUPS_MAX} backups already; ask another one");
            return Err(Failure::refused(ErrorCode::Unavailable, message));
        };
        let (first, last) = match request {
            BackupRequest::Begin => {
                read_index(&self.shared).await?;
                (None, 0)
            }
            BackupRequest::Resume { first, last } => {
                let mut views = self.shared.view.clone();
                let _ = views.wait_for(|view| view.readable_index >= last).await;
                (Some(first), last)
            }
        };
        let view = *self.shared.view.borrow();
        check(&view)?;
        let shared = Arc::clone(&self.shared);
        let begun = tokio::task::spawn_blocking(move || match first {
            Some(first) => Ok((first, last, Vec::new())),
            None => begin(&shared, &view),
        });
        let stopping = |_| Failure::refused(ErrorCode::Unavailable, "the node is stopping; ask another one");
        let (first, last, checkpoint) = begun.await.map_err(stopping)??;
        let (sender, frames) = mpsc::channel(BATCHES);
        let shared = Arc::clone(&self.shared);
        // Ends with the last frame, or when the client's end of the channel goes.
        tokio::task::spawn_blocking(move || give(&shared, first, last, &sender, permit));
        let head = BackupHead {
            cluster: self.shared.identity.cluster,
            first,
            last,
            first_offset: view.first_offset,
            next_offset: view.next_offset,
            checkpoint_bytes: checkpoint.len() as u64,
        };
        Ok(OpenedBackup { head, checkpoint: checkpoint.into(), frames })
    }
}

/// A node that is not whole has nothing that others could not give better.
fn check(view: &View) -> Result<(), Failure> {
    let what = match view {
        View { diverged: true, .. } => "differs from the others'",
        View { recovering: true, .. } => "is being brought back",
        _ => return Ok(()),
    };
    Err(Failure::refused(ErrorCode::Unavailable, format!("this node's log {what}; ask another one")))
}

/// The first and last entry to give, and the checkpoint before them.
fn begin(shared: &Shared, view: &View) -> Result<(u64, u64, Vec<u8>), Failure> {
    let (base, last) = (shared.reader.first_index() - 1, view.readable_index);
    if base == 0 {
        return Ok((1, last, Vec::new()));
    }
    let disk = RealDisk::open(&shared.config.data_dir);
    // One that was let go of meanwhile, or is damaged: the client asks again, here or elsewhere.
    let found = backup::beginning(&disk, base, view.first_offset, last).map_err(|cause| {
        let message = format!("this node cannot read what its log begins with: {cause}; ask another one");
        Failure::refused(ErrorCode::Unavailable, message)
    })?;
    if let Some(found) = found {
        return Ok((found.base.index + 1, last, found.encode()));
    }
    let message = "this node has no checkpoint of the beginning of its log; ask another one";
    Err(Failure::refused(ErrorCode::Unavailable, message))
}

/// Reads entries `first` to `last` and hands them over.
fn give(
    shared: &Shared,
    first: u64,
    last: u64,
    sender: &mpsc::Sender<Result<Vec<Frame>, Failure>>,
    _permit: OwnedSemaphorePermit,
) {
    let mut next = first;
    while next <= last {
        let batch = read(shared, next, last);
        let ends = batch.is_err();
        next = batch.as_ref().ok().and_then(|frames| frames.last()).map_or(next, |frame| frame.header().index + 1);
        if sender.blocking_send(batch).is_err() || ends {
            return;
        }
    }
}

/// The next frames, at least one.
fn read(shared: &Shared, next: u64, last: u64) -> Result<Vec<Frame>, Failure> {
    check(&shared.view.borrow())?;
    let frames = shared.reader.frames(next, last, BATCH_BYTES).map_err(|cause| {
        if let ReadError::Damaged(damage) = &cause {
            shared.suspects.tell(damage.first_index);
        }
        match cause {
            ReadError::Trimmed { .. } => {
                let message = format!("entry {next} was trimmed and let go of while the log was copied; begin anew");
                Failure::refused(ErrorCode::Trimmed, message)
            }
            cause => unreadable(&cause),
        }
    })?;
    let (frames, broken) = whole(frames);
    let Some(index) = broken else { return Ok(frames) };
    shared.suspects.tell(index);
    if frames.is_empty() {
        let message = format!("entry {index} of this node's log is not what was written; ask another node");
        return Err(Failure::refused(ErrorCode::Damaged, message).with("index", index));
    }
    Ok(frames)
}
