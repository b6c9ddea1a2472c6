//! One backup stream: everything a log has, to an admin.

use std::time::Duration;

use bytes::Bytes;
use graven_frame::Frame;
use tokio::sync::mpsc;

use super::subscribe::{fail as fail_item, pieces_of};
use super::{BackupRequest, Caller, Failure, Outcome, Service};
use crate::protocol::backup::{BackupHead, BackupReply};
use crate::protocol::feed::ItemHead;
use crate::protocol::{ErrorCode, MAX_MESSAGE_BYTES};
use crate::wire;

/// A backup that was accepted.
#[derive(Debug)]
pub struct OpenedBackup {
    /// What follows.
    pub head: BackupHead,
    /// The checkpoint, as many bytes as the head says.
    pub checkpoint: Bytes,
    /// The frames from `head.first` to `head.last`, verified, in batches of some hundred kilobytes; then nothing. Dropped when the
    /// client has gone.
    pub frames: mpsc::Receiver<Result<Vec<Frame>, Failure>>,
}

/// Serves a backup until the client has it or wants no more.
pub(super) async fn serve<S: Service>(
    service: &S,
    caller: Caller,
    request: BackupRequest,
    send: &mut quinn::SendStream,
) -> Result<(), Ended> {
    let OpenedBackup { head, checkpoint, mut frames } = match service.backup(caller, request).await {
        Ok(opened) => opened,
        Err(failure) => return refuse(failure, send).await,
    };
    let last = head.last;
    let mut given = head.first.saturating_sub(1);
    write(send, &mut [reply(&BackupReply::Accepted(head)), checkpoint]).await?;
    while let Some(batch) = frames.recv().await {
        let batch = match batch {
            Ok(batch) => batch,
            Err(failure) => return Ok(fail_item(failure, send).await?),
        };
        given = batch.last().map_or(given, |frame| frame.header().index);
        let mut pieces = pieces_of(&batch);
        drop(batch);
        write(send, &mut pieces).await?;
    }
    if given < last {
        let message = "the node is stopping; the backup goes on at another one";
        return Ok(fail_item(Failure::refused(ErrorCode::Unavailable, message), send).await?);
    }
    write(send, &mut [ItemHead::Done.encode()]).await
}

/// Says no.
pub(super) async fn refuse(mut failure: Failure, send: &mut quinn::SendStream) -> Result<(), Ended> {
    failure.outcome = Outcome::Refused;
    write(send, &mut [reply(&BackupReply::Refused(failure))]).await
}

/// Why a stream ended early.
pub(super) enum Ended {
    /// The client has gone.
    Gone,
    /// It reads nothing.
    Stalled,
}

impl From<quinn::WriteError> for Ended {
    fn from(_: quinn::WriteError) -> Ended {
        Ended::Gone
    }
}

fn reply(reply: &BackupReply) -> Bytes {
    let body = wire::encode::<MAX_MESSAGE_BYTES>(reply).unwrap_or_default();
    // The limit fits into the length.
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes.into()
}

/// Writes the pieces. A client that does not read keeps a thread of the node waiting: it is given up after a while.
async fn write(send: &mut quinn::SendStream, pieces: &mut [Bytes]) -> Result<(), Ended> {
    for piece in pieces {
        let mut rest = std::mem::take(piece);
        while !rest.is_empty() {
            let part = rest.split_to(rest.len().min(PART_BYTES));
            tokio::time::timeout(WRITE_STALL, send.write_chunk(part)).await.map_err(|_| Ended::Stalled)??;
        }
    }
    Ok(())
}

/// quinn keeps a chunk whole until its last byte is acknowledged.
const PART_BYTES: usize = 64 << 10;
/// A client that takes less than [`PART_BYTES`] in this time does not read.
const WRITE_STALL: Duration = Duration::from_secs(30);
