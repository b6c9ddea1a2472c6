//! The listening side: who is welcome, and what is written to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use graven_frame::Frame;
use graven_raft::NodeId;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::wire::{
    CheckpointHead, HELLO_BYTES_MAX, Hello, REQUEST_BYTES_MAX, Reply, Request, Tag, VERSION_MAX, Welcome, block_head,
    read_hello, read_prefixed, refusal_block, write_message,
};
use super::{
    BATCH_BYTES, BulkIdentity, BulkSource, CONNECTIONS_MAX, Pace, Refusal, STREAMS_MAX, WRITE_STALL, Wanted, snapshots,
};
use crate::peer::{self, Roster};
use crate::protocol::{CLOSE_BUSY, CLOSE_PROTOCOL, CLOSE_SHUTDOWN, CLOSE_UNAUTHENTICATED};
use crate::tls::{Identity, Verified};
use crate::transport::WRITE_CHUNK_BYTES;

/// What all fetches from this node share.
pub(crate) struct Bulk {
    pub(super) source: Arc<dyn BulkSource>,
    pub(super) pace: Pace,
    connections: Arc<AtomicUsize>,
    handshake_timeout: Duration,
    draining: watch::Receiver<bool>,
}

impl Bulk {
    pub(crate) fn new(
        source: Arc<dyn BulkSource>,
        bytes_per_second: u64,
        handshake_timeout: Duration,
        draining: watch::Receiver<bool>,
    ) -> Bulk {
        let connections = Arc::default();
        Bulk { source, pace: Pace::new(bytes_per_second), connections, handshake_timeout, draining }
    }
}

/// Serves a connection whose handshake is done, under the name of this protocol, until it ends.
pub(crate) async fn serve(bulk: Arc<Bulk>, connection: Connection) {
    let Some(_place) = Place::take(&bulk.connections) else {
        connection.close(CLOSE_BUSY.into(), b"the node serves as many other nodes as it can; ask again later");
        return;
    };
    let verified = match certificate_of(&connection) {
        Ok(verified) => verified,
        Err(sentence) => {
            tracing::info!(address = %connection.remote_address(), "fetch refused: {sentence}");
            connection.close(CLOSE_UNAUTHENTICATED.into(), sentence.as_bytes());
            return;
        }
    };
    match tokio::time::timeout(bulk.handshake_timeout, greet(&bulk, &connection, &verified)).await {
        Ok(Ok(())) => {}
        Ok(Err(sentence)) => {
            tracing::info!(from = %verified.identity, "fetch refused: {sentence}");
            // A close throws away what is under way, the refusal included: the other side, which now knows, closes first.
            let _ = tokio::time::timeout(REFUSAL_WAIT, connection.closed()).await;
            connection.close(CLOSE_PROTOCOL.into(), sentence.as_bytes());
            return;
        }
        Err(_) => {
            connection.close(CLOSE_PROTOCOL.into(), b"no hello in time");
            return;
        }
    }
    tracing::debug!(from = %verified.identity, "node connected for a fetch");
    let mut draining = bulk.draining.clone();
    tokio::select! {
        () = accept_streams(&bulk, &connection) => {}
        _ = draining.wait_for(|draining| *draining) => {
            // What is under way can be asked of another node, or of this one later.
            connection.close(CLOSE_SHUTDOWN.into(), b"the node is shutting down");
        }
    }
}

fn certificate_of(connection: &Connection) -> Result<Verified, String> {
    let verified = Verified::of(connection).map_err(|cause| cause.to_string())?;
    match verified.identity {
        Identity::Node(_) => Ok(verified),
        other => Err(format!("{other} asks for what only nodes of the cluster are given; use the client protocol")),
    }
}

async fn greet(bulk: &Bulk, connection: &Connection, verified: &Verified) -> Result<(), String> {
    let (mut send, mut receive) = connection.accept_bi().await.map_err(|cause| cause.to_string())?;
    let heard = read_hello(&mut receive).await?;
    let local = bulk.source.local();
    let judged = heard.and_then(|hello| judge(&hello, verified, local, &bulk.source.roster()));
    let reply = match &judged {
        Ok(()) => Reply::Welcome(Welcome { version: VERSION_MAX, node: local.node, incarnation: local.incarnation }),
        Err(refusal) => Reply::Refused(refusal.clone()),
    };
    write_message::<HELLO_BYTES_MAX>(&mut send, &reply).await?;
    judged.map_err(|refusal| refusal.to_string())
}

/// The certificate first, then what the hello claims, then the roster.
fn judge(hello: &Hello, verified: &Verified, local: BulkIdentity, roster: &Roster) -> Result<(), peer::Refusal> {
    let Identity::Node(certificate) = &verified.identity else {
        return Err(peer::Refusal::NotANode(verified.identity.to_string()));
    };
    let hex = |id: u128| format!("{id:032x}");
    if hello.cluster != local.cluster || certificate.cluster != local.cluster {
        let seen = if hello.cluster == local.cluster { certificate.cluster } else { hello.cluster };
        return Err(peer::Refusal::Cluster { expected: hex(local.cluster), seen: hex(seen) });
    }
    if certificate.node != hello.from {
        return Err(peer::Refusal::CertificateOfOther { certificate: certificate.node, hello: hello.from });
    }
    if hello.to != local.node {
        return Err(peer::Refusal::WrongNode { expected: local.node, seen: hello.to });
    }
    let from = NodeId(hello.from);
    if from > roster.newest && hello.from != local.node {
        return Ok(());
    }
    let member = roster.members.get(&from).filter(|member| member.name == certificate.name);
    let Some(member) = member.filter(|_| hello.from != local.node) else {
        return Err(peer::Refusal::NotMember { node: hello.from, name: certificate.name.clone() });
    };
    if member.incarnation != 0 && member.incarnation != hello.incarnation {
        let (expected, seen) = (hex(member.incarnation), hex(hello.incarnation));
        return Err(peer::Refusal::Incarnation { node: hello.from, expected, seen });
    }
    Ok(())
}

async fn accept_streams(bulk: &Arc<Bulk>, connection: &Connection) {
    let places = Arc::new(Semaphore::new(STREAMS_MAX));
    // Streams run as tasks that end with this set; QUIC's own limit bounds those that are only told to come later.
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => {
                let Ok((mut send, receive)) = accepted else { return };
                let (bulk, place) = (bulk.clone(), places.clone().try_acquire_owned());
                streams.spawn(async move {
                    let ended = match place {
                        Ok(_place) => answer(&bulk, &mut send, receive).await,
                        Err(_) => write(&mut send, refusal_block(&Refusal::Busy).into()).await,
                    };
                    match ended {
                        Ok(()) => { let _ = send.finish(); let _ = tokio::time::timeout(WRITE_STALL, send.stopped()).await; }
                        Err(sentence) => { tracing::debug!("fetch ended: {sentence}"); let _ = send.reset(CLOSE_PROTOCOL.into()); }
                    }
                });
            }
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn answer(bulk: &Bulk, send: &mut SendStream, mut receive: RecvStream) -> Result<(), String> {
    let request = read_prefixed::<REQUEST_BYTES_MAX, Request>(&mut receive);
    let request = match tokio::time::timeout(bulk.handshake_timeout, request).await {
        Ok(Ok(request)) => request,
        Ok(Err(words)) => return write(send, refusal_block(&Refusal::Malformed(words)).into()).await,
        Err(_) => return Err("no request in time".to_owned()),
    };
    let refused = match request {
        Request::Frames { wanted, max_bytes } => give_frames(bulk, send, wanted, max_bytes).await?,
        Request::Checkpoint { meta, at } => give_checkpoint(bulk, send, &meta, at).await?,
        Request::Snapshots => snapshots::give_list(bulk, send).await?,
        Request::Snapshot { wanted, head, chunk, max_chunks } => {
            snapshots::give(bulk, send, wanted, snapshots::Asked { head, chunk, max_chunks }).await?
        }
    };
    match refused {
        Some(refusal) => write(send, refusal_block(&refusal).into()).await,
        None => write(send, Bytes::copy_from_slice(&block_head(Tag::End, 0))).await,
    }
}

/// Writes frames until all are given or the source has no more; then why.
async fn give_frames(
    bulk: &Bulk,
    send: &mut SendStream,
    mut wanted: Wanted,
    max_bytes: u64,
) -> Result<Option<Refusal>, String> {
    if wanted.first == 0 || wanted.last < wanted.first {
        return Ok(Some(Refusal::Malformed(format!("entries {} to {}", wanted.first, wanted.last))));
    }
    let mut given = 0;
    while wanted.first <= wanted.last && (given == 0 || given < max_bytes) {
        let (source, ask) = (bulk.source.clone(), wanted);
        let room = usize::try_from(max_bytes - given.min(max_bytes)).unwrap_or(usize::MAX).min(BATCH_BYTES);
        let frames = match blocking(move || source.frames(ask, room)).await? {
            Ok(frames) if frames.is_empty() => return Ok(Some(Refusal::NotYet { last: wanted.first - 1 })),
            Ok(frames) => frames,
            Err(refusal) => return Ok(Some(refusal)),
        };
        for frame in &frames {
            given += frame.encoded_len() as u64;
            wanted.first = frame.header().index + 1;
            bulk.pace.pass(frame.encoded_len()).await;
            write_frame(send, frame).await?;
        }
    }
    Ok(None)
}

async fn write_frame(send: &mut SendStream, frame: &Frame) -> Result<(), String> {
    let mut head = block_head(Tag::Frame, frame.encoded_len()).to_vec();
    head.extend_from_slice(frame.head());
    let body = frame.body();
    if body.len() <= SMALL_BYTES {
        // Small pieces cost quinn more than a copy.
        body.chunks().iter().for_each(|chunk| head.extend_from_slice(chunk));
        return write(send, head.into()).await;
    }
    write(send, head.into()).await?;
    for chunk in body.chunks() {
        write(send, chunk.clone()).await?;
    }
    Ok(())
}

async fn give_checkpoint(bulk: &Bulk, send: &mut SendStream, meta: &[u8], at: u64) -> Result<Option<Refusal>, String> {
    let source = bulk.source.clone();
    let place = meta.to_vec();
    let reader = match blocking(move || source.checkpoint_from(&place)).await? {
        Ok(reader) => reader,
        Err(refusal) => return Ok(Some(refusal)),
    };
    let size = reader.size();
    let mut at = if reader.meta() == meta && at <= size { at } else { 0 };
    let head = CheckpointHead { meta: reader.meta().to_vec(), size, at };
    let head = crate::wire::encode::<{ super::META_BYTES_MAX + 32 }>(&head).map_err(|cause| cause.to_string())?;
    let mut block = block_head(Tag::Checkpoint, head.len()).to_vec();
    block.extend_from_slice(&head);
    write(send, block.into()).await?;
    let reader = Arc::new(std::sync::Mutex::new(reader));
    while at < size {
        let len = usize::try_from(size - at).unwrap_or(usize::MAX).min(BATCH_BYTES);
        let reader = reader.clone();
        let read = blocking(move || {
            let mut bytes = vec![0; len];
            let reader = reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            reader.read_at(at, &mut bytes).map(|()| bytes)
        });
        let bytes = read.await?.map_err(|cause| format!("the checkpoint cannot be read: {cause}"))?;
        bulk.pace.pass(len).await;
        write(send, Bytes::copy_from_slice(&block_head(Tag::Bytes, len))).await?;
        write(send, bytes.into()).await?;
        at += len as u64;
    }
    Ok(None)
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|cause| cause.to_string())
}

/// Hands the bytes to quinn, piece by piece: it keeps a piece whole until all of it is acknowledged.
pub(super) async fn write(send: &mut SendStream, mut bytes: Bytes) -> Result<(), String> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(WRITE_CHUNK_BYTES));
        match tokio::time::timeout(WRITE_STALL, send.write_chunk(piece)).await {
            Ok(written) => written.map_err(|cause| cause.to_string())?,
            Err(_) => return Err(format!("nothing was read for {} s", WRITE_STALL.as_secs())),
        }
    }
    Ok(())
}

/// One of the connections allowed.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Option<Place> {
        let more = |now| (now < CONNECTIONS_MAX).then_some(now + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok().then(|| Place(count.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long a refused node has to take note before the connection is closed over it.
const REFUSAL_WAIT: Duration = Duration::from_millis(500);
/// Bodies up to this are copied behind their header.
const SMALL_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::RosterEntry;
    use crate::tls::{ClientIdentity, NodeIdentity, Role, UnixTime};

    const LOCAL: BulkIdentity = BulkIdentity { cluster: 7, node: 1, incarnation: 11 };

    fn node(cluster: u128, node: u64, name: &str) -> Verified {
        let identity = Identity::Node(NodeIdentity { cluster, node, name: name.to_owned() });
        Verified { identity, not_after: UnixTime(0) }
    }

    fn judged(change: impl FnOnce(&mut Hello), verified: &Verified) -> Result<(), peer::Refusal> {
        let mut hello = Hello { cluster: 7, from: 2, to: 1, incarnation: 22 };
        change(&mut hello);
        let entry = |id: u64, incarnation| {
            (NodeId(id), RosterEntry { name: format!("n{id}"), address: String::new(), incarnation })
        };
        let roster = Roster { members: [entry(1, 11), entry(2, 22), entry(3, 0)].into(), newest: NodeId(5) };
        judge(&hello, verified, LOCAL, &roster)
    }

    #[test]
    fn members_and_newer_nodes_are_welcome_and_every_mismatch_has_its_name() {
        use peer::Refusal as R;
        let own = node(7, 2, "n2");
        assert_eq!(judged(|_| (), &own), Ok(()));
        assert_eq!(judged(|h| (h.from, h.incarnation) = (3, 9), &node(7, 3, "n3")), Ok(()));
        assert_eq!(judged(|h| (h.from, h.incarnation) = (6, 9), &node(7, 6, "n6")), Ok(()));
        let client = Identity::Client(ClientIdentity { cluster: 7, name: "c".to_owned(), role: Role::Admin });
        assert!(matches!(judged(|_| (), &Verified { identity: client, ..own.clone() }), Err(R::NotANode(_))));
        assert!(matches!(judged(|h| h.cluster = 8, &own), Err(R::Cluster { .. })));
        assert!(matches!(judged(|_| (), &node(8, 2, "n2")), Err(R::Cluster { .. })));
        assert!(matches!(judged(|h| h.from = 3, &own), Err(R::CertificateOfOther { .. })));
        assert!(matches!(judged(|h| h.to = 3, &own), Err(R::WrongNode { .. })));
        assert!(matches!(judged(|h| h.incarnation = 23, &own), Err(R::Incarnation { .. })));
        assert!(matches!(judged(|_| (), &node(7, 2, "other")), Err(R::NotMember { .. })));
        assert!(matches!(judged(|h| h.from = 4, &node(7, 4, "n4")), Err(R::NotMember { .. })));
        assert!(matches!(judged(|h| h.from = 1, &node(7, 1, "n1")), Err(R::NotMember { .. })));
    }
}
