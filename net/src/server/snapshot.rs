//! Snapshots from clients and to them. Bytes are read and written here; the disk is behind [`SnapshotSink`] and [`SnapshotBody`].
//!
//! In either direction two chunks are held: one is on its way to or from the disk, one to or from the client.

use std::time::Duration;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::task::JoinHandle;

use super::accounts::DOWNLOADS_SHARE;
use super::connection::{Shared, check};
use super::{Caller, ErrorCode, Failure, OpenedSnapshot, Service, SnapshotBody, SnapshotSink};
use crate::protocol::snapshot::{
    BLOCK_BYTES, BlockHead, BodyDigest, END_BYTES, GetAnswer, GetRequest, PutAnswer, PutRequest, chunk_head,
    decode_end, end_block, message_block,
};
use crate::protocol::{Action, MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES};
use crate::transport::WRITE_CHUNK_BYTES;
use crate::wire;

/// Takes a snapshot in. `Err` is a sentence for a client that broke the protocol.
pub(super) async fn put<S: Service>(
    shared: &Shared<S>,
    caller: Caller,
    mut send: quinn::SendStream,
    mut recv: quinn::RecvStream,
) -> Result<(), String> {
    // Whoever gives up stops the answers: what was taken is let go of then.
    let stopped = send.stopped();
    let taking = async {
        let answer = take(shared, caller, &mut send, &mut recv).await?;
        // The client writes until it hears of it.
        let _ = recv.stop(0u32.into());
        if say(&mut send, &answer).await && send.finish().is_ok() {
            let _ = send.stopped().await;
        }
        Ok(())
    };
    tokio::select! {
        taken = taking => taken,
        _ = stopped => Ok(()),
    }
}

async fn take<S: Service>(
    shared: &Shared<S>,
    caller: Caller,
    send: &mut quinn::SendStream,
    recv: &mut quinn::RecvStream,
) -> Result<PutAnswer, String> {
    let Ok(asked) = tokio::time::timeout(shared.handshake_timeout, read_block(recv, MAX_REQUEST_BYTES)).await else {
        return Err("a snapshot was announced and not described".to_owned());
    };
    let Some((BlockHead::Message { .. }, bytes)) = asked? else {
        return Err("a snapshot without a description".into());
    };
    let request: PutRequest = decode(&bytes)?;
    if let Err(failure) = check(&caller, Action::PutSnapshot) {
        return Ok(PutAnswer::Failed(failure));
    }
    let mut sink = match shared.service.put_snapshot(caller, request).await {
        Ok(sink) => Writing::Idle(sink),
        Err(answer) => return Ok(answer),
    };
    if !say(send, &PutAnswer::Go).await {
        return Ok(PutAnswer::Failed(gave_up()));
    }
    let mut digest = BodyDigest::default();
    loop {
        let idle = shared.upload_idle;
        let Ok(block) = tokio::time::timeout(idle, read_block(recv, usize::MAX)).await else {
            let message =
                format!("the snapshot stopped coming for {} s and was given up; put it again", idle.as_secs_f32());
            return Ok(PutAnswer::Failed(Failure::refused(ErrorCode::Timeout, message)));
        };
        let (head, bytes) = match block? {
            Some(block) => block,
            None => return Ok(PutAnswer::Failed(gave_up())),
        };
        if !head.holds(&bytes) {
            return Ok(PutAnswer::Failed(damaged("a chunk of the snapshot is not what its checksum says")));
        }
        let ready = match sink.ready().await {
            Ok(ready) => ready,
            Err(failure) => return Ok(PutAnswer::Failed(failure)),
        };
        match head {
            BlockHead::Chunk { .. } => {
                digest.update(&bytes);
                sink = Writing::begin(ready, bytes);
            }
            BlockHead::End { .. } => {
                let end = bytes.first_chunk::<END_BYTES>().copied().map(decode_end);
                if end != Some(digest.value()) {
                    let_go(ready);
                    return Ok(PutAnswer::Failed(damaged("the snapshot is not what its length and digest say")));
                }
                return Ok(ready.finish().await);
            }
            BlockHead::Message { .. } => return Err("a message inside a snapshot".to_owned()),
        }
    }
}

fn gave_up() -> Failure {
    Failure::refused(ErrorCode::Unavailable, "the snapshot was given up half-way; put it again")
}

fn damaged(what: &str) -> Failure {
    Failure::refused(ErrorCode::Damaged, format!("{what}; nothing was kept, put it again"))
}

/// A sink that waits for bytes, or for the disk.
enum Writing {
    Idle(Box<dyn SnapshotSink>),
    Busy(JoinHandle<(Box<dyn SnapshotSink>, Result<(), Failure>)>),
}

impl Writing {
    fn begin(mut sink: Box<dyn SnapshotSink>, bytes: Vec<u8>) -> Writing {
        Writing::Busy(tokio::task::spawn_blocking(move || {
            let put = sink.put(&bytes);
            (sink, put)
        }))
    }

    async fn ready(self) -> Result<Box<dyn SnapshotSink>, Failure> {
        match self {
            Writing::Idle(sink) => Ok(sink),
            Writing::Busy(writing) => match writing.await {
                Ok((sink, Ok(()))) => Ok(sink),
                Ok((sink, Err(failure))) => {
                    let_go(sink);
                    Err(failure)
                }
                Err(cause) => {
                    Err(Failure::refused(ErrorCode::Internal, format!("writing the snapshot ended: {cause}")))
                }
            },
        }
    }
}

/// Drops a sink where it may wait for the disk.
fn let_go(sink: Box<dyn SnapshotSink>) {
    drop(tokio::task::spawn_blocking(move || drop(sink)));
}

/// Gives a snapshot to a client.
pub(super) async fn get<S: Service>(
    shared: &Shared<S>,
    caller: Caller,
    request: GetRequest,
    send: &mut quinn::SendStream,
) {
    let failed = |failure| GetAnswer::Failed(failure);
    if let Err(failure) = check(&caller, Action::GetSnapshot) {
        say(send, &failed(failure)).await;
        return;
    }
    let share = shared.accounts.downloads(&caller.name);
    let Ok(_share) = share.try_acquire() else {
        let message = format!(
            "the node gives {} {DOWNLOADS_SHARE} snapshots at the same time; ask another one, or when one of them has come",
            caller.name
        );
        say(send, &failed(Failure::refused(ErrorCode::Unavailable, message))).await;
        return;
    };
    let Ok(_place) = shared.downloads.try_acquire() else {
        let message = format!("the node gives {DOWNLOADS_MAX} snapshots at the same time; ask another one, or later");
        say(send, &failed(Failure::refused(ErrorCode::Unavailable, message))).await;
        return;
    };
    let first = request.chunk;
    let OpenedSnapshot { info, chunks, body } = match shared.service.get_snapshot(caller, request).await {
        Ok(opened) if first <= opened.chunks => opened,
        Ok(_) => {
            say(send, &failed(Failure::refused(ErrorCode::Usage, "the snapshot has fewer chunks"))).await;
            return;
        }
        Err(failure) => {
            say(send, &failed(failure)).await;
            return;
        }
    };
    let end = end_block(info.bytes, info.digest);
    if !say(send, &GetAnswer::Begin(info)).await {
        return;
    }
    let mut ahead = (first < chunks).then(|| read(body, first));
    for number in first..chunks {
        let Some(reading) = ahead.take() else { return };
        match reading.await {
            Ok((body, Ok(chunk))) => {
                ahead = (number + 1 < chunks).then(|| read(body, number + 1));
                if !write(send, chunk_head(&chunk)).await || !write(send, chunk).await {
                    return;
                }
            }
            Ok((_, Err(failure))) => {
                say(send, &failed(failure)).await;
                return;
            }
            Err(_) => return,
        }
    }
    write(send, end).await;
}

type Reading = JoinHandle<(Box<dyn SnapshotBody>, Result<Bytes, Failure>)>;

fn read(mut body: Box<dyn SnapshotBody>, number: u64) -> Reading {
    tokio::task::spawn_blocking(move || {
        let chunk = body.chunk(number);
        (body, chunk)
    })
}

/// The next block and its bytes, which are not checked yet; `None` when the client gave the stream up.
async fn read_block(recv: &mut quinn::RecvStream, most: usize) -> Result<Option<(BlockHead, Vec<u8>)>, String> {
    let mut head = [0; BLOCK_BYTES];
    if recv.read_exact(&mut head).await.is_err() {
        return Ok(None);
    }
    let head = BlockHead::decode(head)?;
    if head.len() > most {
        return Err(format!("a client's message has more than {most} bytes"));
    }
    let mut bytes = vec![0; head.len()];
    match recv.read_exact(&mut bytes).await {
        Ok(()) => Ok(Some((head, bytes))),
        Err(_) => Ok(None),
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    wire::decode::<MAX_REQUEST_BYTES, T>(bytes).map_err(|cause| cause.to_string())
}

/// Sends an answer; `false` when nobody takes it.
async fn say<T: Serialize>(send: &mut quinn::SendStream, answer: &T) -> bool {
    let Ok(bytes) = wire::encode::<MAX_MESSAGE_BYTES>(answer) else { return false };
    write(send, message_block(&bytes)).await
}

/// Hands the bytes to quinn, piece by piece: it keeps a piece whole until all of it is acknowledged.
async fn write(send: &mut quinn::SendStream, mut bytes: Bytes) -> bool {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(WRITE_CHUNK_BYTES));
        match tokio::time::timeout(READER_STALL, send.write_chunk(piece)).await {
            Ok(Ok(())) => {}
            _ => return false,
        }
    }
    true
}

/// Snapshots given to clients at the same time: each holds two chunks and an open file.
pub(super) const DOWNLOADS_MAX: usize = 16;
/// A client that takes nothing for so long is given up; it goes on at the chunk that it wants next when it wants one.
const READER_STALL: Duration = Duration::from_secs(30);
