//! The accepting side: handshakes within bounds, the decision who is welcome, and reading what welcome peers send.
//!
//! Before the handshake is done a sender is nobody: all it can hold is one of the places of [`HANDSHAKES`] for [`HANDSHAKE_TIMEOUT`]
//! ([`crate::admission`]). Datagrams that begin no handshake are dropped by quinn and leave nothing behind. After it a peer holds at
//! most one connection per lane: a newer one retires the older. What was received and not yet taken by the driver is bounded in bytes.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use graven_raft::{Message, NodeId};
use quinn::{Connection, Incoming, ReadError, VarInt};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::{
    CLOSE_EXPIRED, CLOSE_NORMAL, CLOSE_PROTOCOL, CLOSE_REFUSED, CLOSE_RETIRED, CONTROL_MESSAGE_BYTES_MAX, Held, Lane,
    PeerEvent, Refusal, RefusedBy, RosterEntry, Shared,
    append::{AppendReadError, read_append},
    chunks::{ChunkError, ChunkReader},
    hello::{self, Hello, HelloError, Reply},
    lives::{self, Seen},
    lock,
    outgoing::{CloseOnDrop, Peer, connection_error, expiry},
    refusals::{close, refused_certificate},
};
use crate::{
    admission::{Admission, Limits, Verdict},
    tls::{UnixTime, Verified},
    wire,
};

/// The connections we accepted, one per peer and lane.
#[derive(Default)]
pub(super) struct Registry {
    slots: Mutex<HashMap<(NodeId, Lane), Slot>>,
    /// Held while one connection takes another one's place: whoever comes second retires the first, whole.
    replacing: tokio::sync::Mutex<()>,
}

struct Slot {
    connection: Connection,
    /// The life of the peer that dialled it.
    boot: u64,
    entry: RosterEntry,
    reader: JoinHandle<()>,
}

impl Slot {
    fn retire(&self, code: VarInt, reason: &str) {
        self.reader.abort();
        close(&self.connection, code, reason);
    }
}

impl Registry {
    pub(super) fn stop(&self) -> Vec<JoinHandle<()>> {
        let slots = std::mem::take(&mut *lock(&self.slots));
        let retired = slots.into_values().map(|slot| {
            slot.retire(CLOSE_NORMAL, "node is stopping");
            slot.reader
        });
        retired.collect()
    }

    fn take(&self, key: (NodeId, Lane)) -> Option<Slot> {
        lock(&self.slots).remove(&key)
    }

    /// The connections of `node`.
    pub(super) fn seen(&self, node: NodeId) -> Vec<Seen> {
        let slots = lock(&self.slots);
        let of_node = slots.iter().filter(|((from, _), _)| *from == node);
        of_node.map(|(_, slot)| Seen { connection: slot.connection.clone(), boot: slot.boot, dialled: false }).collect()
    }

    /// Ends the connections of every life of `node` but `boot`; what they had sent is handed over no more once the readers returned
    /// here are over.
    pub(super) fn displace(&self, node: NodeId, boot: u64) -> Vec<JoinHandle<()>> {
        let mut slots = lock(&self.slots);
        let keys: Vec<_> =
            slots.iter().filter(|((from, _), slot)| *from == node && slot.boot != boot).map(|(key, _)| *key).collect();
        let displaced = keys.iter().filter_map(|key| slots.remove(key)).map(|slot| {
            slot.reader.abort();
            lives::close_displaced(&slot.connection);
            slot.reader
        });
        displaced.collect()
    }
}

pub(super) async fn accept(shared: Arc<Shared>) {
    let admission = Admission::new(HANDSHAKES);
    let mut handshakes = JoinSet::new();
    while let Some(incoming) = shared.endpoint.accept().await {
        while handshakes.try_join_next().is_some() {}
        match admission.judge(incoming.remote_address(), incoming.remote_address_validated(), Instant::now()) {
            Verdict::Begin(place) => {
                let shared = shared.clone();
                handshakes.spawn(async move {
                    tokio::select! {
                        () = greet(&shared, incoming) => {}
                        () = place.evicted() => shared.turned_away.add(1),
                    }
                });
            }
            // Fails only for an address that is validated.
            Verdict::Prove => drop(incoming.retry()),
            Verdict::Ignore => {
                shared.turned_away.add(1);
                incoming.ignore();
            }
        }
    }
}

/// Cuts off accepted connections of whoever the roster no longer means.
pub(super) async fn follow_roster(shared: Arc<Shared>) {
    let mut roster = shared.roster.subscribe();
    while roster.changed().await.is_ok() {
        let roster = roster.borrow_and_update().clone();
        lock(&shared.incoming.slots).retain(|(node, _), slot| {
            let means = roster.members.get(node).is_some_and(|entry| {
                let same_life = entry.incarnation == slot.entry.incarnation || slot.entry.incarnation == 0;
                entry.name == slot.entry.name && same_life
            });
            if !means {
                slot.retire(CLOSE_REFUSED, "no longer a member");
            }
            means
        });
    }
}

async fn greet(shared: &Arc<Shared>, incoming: Incoming) {
    let address = incoming.remote_address();
    let exchange = async {
        let connection = incoming.accept()?.await?;
        let mut half_open = CloseOnDrop(Some(connection.clone()));
        let greeted = answer(shared, &connection, address).await?;
        half_open.0 = None;
        Ok::<_, HelloError>(greeted.map(|greeted| (greeted, connection)))
    };
    match timeout(HANDSHAKE_TIMEOUT, exchange).await {
        Ok(Ok(Some((greeted, connection)))) => welcome(shared, greeted, connection).await,
        Ok(Ok(None)) => {}
        Ok(Err(cause)) => match connection_error(&cause).and_then(refused_certificate) {
            Some((by, refusal)) => shared.tell_refused(None, address, by, refusal).await,
            None => tracing::debug!(%address, "handshake failed: {cause}"),
        },
        Err(_) => tracing::debug!(%address, "handshake took too long"),
    }
}

/// A dialler that is welcome.
struct Greeted {
    hello: Hello,
    verified: Verified,
    /// Other lives of it, whose place it takes.
    over: Vec<u64>,
}

/// Hears the hello and answers it. `None`: refused, and told so.
async fn answer(
    shared: &Arc<Shared>,
    connection: &Connection,
    address: SocketAddr,
) -> Result<Option<Greeted>, HelloError> {
    let (mut send, mut receive) = connection.accept_bi().await?;
    let heard = hello::read_hello(&mut receive).await?;
    let from = heard.as_ref().ok().map(|hello| hello.from);
    let judged = heard.and_then(|hello| {
        let verified = Verified::of(connection).map_err(|cause| Refusal::Certificate(cause.to_string()))?;
        let judged = shared.local.judge(&hello, &verified, &shared.roster.borrow())?;
        if let Some(guest) = judged.guest
            && !shared.take_guest(hello.from, guest.clone())
        {
            return Err(Refusal::NotMember { node: hello.from.0, name: guest.name });
        }
        Ok((hello, verified, judged.welcome))
    });
    let judged = match judged {
        Ok((hello, verified, welcome)) => {
            let over = lives::judge(shared, &hello, address).await;
            over.map(|over| (Greeted { hello, verified, over }, welcome))
        }
        Err(refusal) => Err(refusal),
    };
    match judged {
        Ok((greeted, welcome)) => {
            hello::write_reply(&mut send, &Reply::Welcome(welcome)).await?;
            Ok(Some(greeted))
        }
        Err(refusal) => {
            // The claimed id is told only if it is a peer's: a stranger's word names nobody.
            let known = from.filter(|from| shared.roster.borrow().members.contains_key(from));
            let reply = Reply::Refused(refusal.clone());
            shared.tell_refused(known, address, RefusedBy::Us, refusal.clone()).await;
            hello::write_reply(&mut send, &reply).await?;
            // A close discards what is under way, so the other side, which now knows, closes first.
            let _closed_by_them = timeout(REFUSAL_WAIT, connection.closed()).await;
            close(connection, CLOSE_REFUSED, &refusal.to_string());
            Ok(None)
        }
    }
}

async fn welcome(shared: &Arc<Shared>, greeted: Greeted, connection: Connection) {
    let Greeted { hello, verified, over } = greeted;
    let key = (hello.from, hello.lane);
    let replacing = shared.incoming.replacing.lock().await;
    let entry = shared.roster.borrow().members.get(&hello.from).cloned();
    let (Some(entry), Ok(peer)) = (entry, shared.peer(hello.from)) else {
        close(&connection, CLOSE_REFUSED, "no longer a member");
        return;
    };
    if let Some(other) = shared.incoming.unjudged(hello.from, hello.boot, &over) {
        // Both said hello in the same moment, and nobody has judged between them: the later one is judged when it dials again.
        close(&connection, CLOSE_REFUSED, &lives::other_life(hello.from, &other.connection).to_string());
        return;
    }
    for reader in shared.incoming.displace(hello.from, hello.boot) {
        let _aborted = reader.await;
    }
    if let Some(older) = shared.incoming.take(key) {
        older.retire(CLOSE_RETIRED, "a newer connection took over");
        // Its reader is over before the new one starts: nothing of the older connection is delivered after something of the newer.
        let _aborted = older.reader.await;
    }
    shared.told.forget(hello.from, RefusedBy::Us);
    peer.reached_us(hello.boot);
    let reader = read_lane(shared.clone(), peer, hello.from, hello.lane, connection.clone(), verified.not_after);
    let reader = shared.runtime.spawn(reader);
    lock(&shared.incoming.slots).insert(key, Slot { connection, boot: hello.boot, entry, reader });
    drop(replacing);
}

async fn read_lane(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    from: NodeId,
    lane: Lane,
    connection: Connection,
    expires: UnixTime,
) {
    let read = async {
        loop {
            // One stream after the other: a sender that resets one goes on with the next.
            let mut reader = ChunkReader::new(connection.accept_uni().await?);
            let ended = match lane {
                Lane::Control => read_messages(&shared, &peer, from, &mut reader).await,
                Lane::Append => read_appends(&shared, &peer, from, &mut reader).await,
            };
            match ended {
                Ok(()) | Err(ReadLaneError::Chunk(ChunkError::Read(ReadError::Reset(_)))) => {}
                Err(error) => {
                    reader.refuse(CLOSE_PROTOCOL);
                    return Err::<std::convert::Infallible, _>(error);
                }
            }
        }
    };
    tokio::select! {
        ended = read => {
            let error = match ended {
                Err(error) => error,
                Ok(never) => match never {},
            };
            if let Some(violation) = error.violation() {
                if let Some(left_out) = shared.told.may_write() {
                    tracing::warn!(node = from.0, lane = lane.as_str(), left_out, "connection of a peer is closed: {violation}");
                }
                close(&connection, CLOSE_PROTOCOL, &violation);
            }
        }
        () = expiry(expires) => {
            tracing::warn!(node = from.0, lane = lane.as_str(), "connection of a peer is closed: its certificate expired at {expires}");
            close(&connection, CLOSE_EXPIRED, &format!("certificate expired at {expires}"));
        }
    }
}

async fn read_messages(
    shared: &Shared,
    peer: &Peer,
    from: NodeId,
    reader: &mut ChunkReader,
) -> Result<(), ReadLaneError> {
    while let Some(len) = reader.next_u32().await? {
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        if size > CONTROL_MESSAGE_BYTES_MAX {
            return Err(ReadLaneError::TooLarge { size });
        }
        let message: Message = wire::decode::<CONTROL_MESSAGE_BYTES_MAX, _>(&reader.bytes(size).await?)?;
        peer.counters.messages_received.add(1);
        peer.counters.bytes_received.add(size as u64 + 4);
        shared.events.send(PeerEvent::Message { from, message }).await.map_err(|_| ReadLaneError::DriverGone)?;
    }
    Ok(())
}

async fn read_appends(
    shared: &Shared,
    peer: &Peer,
    from: NodeId,
    reader: &mut ChunkReader,
) -> Result<(), ReadLaneError> {
    while let Some((head, frames, bytes)) = read_append(reader).await? {
        peer.counters.appends_received.add(1);
        peer.counters.bytes_received.add(bytes as u64);
        let held = Held(shared.received.charge(bytes).await);
        shared
            .events
            .send(PeerEvent::Append { from, head, frames, held })
            .await
            .map_err(|_| ReadLaneError::DriverGone)?;
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum ReadLaneError {
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error(transparent)]
    Append(AppendReadError),
    #[error(transparent)]
    Message(#[from] wire::WireError),
    #[error("control message of {size} bytes, the limit is {CONTROL_MESSAGE_BYTES_MAX}")]
    TooLarge { size: usize },
    #[error("driver is gone")]
    DriverGone,
    #[error("{0}")]
    Connection(#[from] quinn::ConnectionError),
}

impl From<AppendReadError> for ReadLaneError {
    fn from(error: AppendReadError) -> Self {
        match error {
            AppendReadError::Chunk(error) => Self::Chunk(error),
            other => Self::Append(other),
        }
    }
}

impl ReadLaneError {
    /// What the sender did wrong, if that is why reading ended.
    fn violation(&self) -> Option<String> {
        match self {
            Self::Connection(_) | Self::DriverGone | Self::Chunk(ChunkError::Read(ReadError::ConnectionLost(_))) => {
                None
            }
            other => Some(other.to_string()),
        }
    }
}

/// Both lanes of six peers that all restart, twice. Each handshake takes the thread that heartbeats live on for about a millisecond:
/// however many strangers come, they get a few percent of it.
const HANDSHAKES: Limits = Limits { places: 24, per_second: 24, burst: 48 };
/// A handshake and a hello across continents take less than a second.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a refused peer has to take note before the connection is closed over it.
const REFUSAL_WAIT: Duration = Duration::from_millis(500);
/// First packets that wait for a decision, before `accept` sees them.
pub(super) const WAITING_MAX: usize = 32;
/// What one of them may have buffered: a client's first flight with a certificate chain.
pub(super) const WAITING_BYTES_MAX: u64 = 16 << 10;
