//! Lanes between nodes: control messages and appends, over QUIC.
//!
//! Every node dials every other one, once per [`Lane`], and sends only on connections it dialled; what it receives comes on connections it
//! accepted. So a connection has one direction and one owner, nobody negotiates which of two connections is the right one, and a control
//! message never waits behind an append (quinn's send window is per connection, whatever the priority of a stream).
//!
//! - Nothing here waits for the network in a caller's time: [`PeerPlane::send`] and [`PeerPlane::send_append`] queue or refuse.
//! - What is queued is bounded in bytes per peer; what is received is handed over a bounded channel, and while that is full the lane is not
//!   read, until the sender's own queue is full and its driver is told.
//! - A lane that is lost takes what was queued with it and [`PeerEvent::Down`] tells; it is dialled again until the roster drops the peer.
//! - Who the sender of a message is comes from its connection's certificate. No message says it.
//!
//! The bytes are described in `PROTOCOL.md`. Runs on the tokio runtime it was started in; a current-thread one is enough.

pub(crate) mod append;
pub(crate) mod chunks;
#[cfg(test)]
mod golden;
mod guests;
pub(crate) mod hello;
mod incoming;
mod lives;
mod outgoing;
mod queue;
mod refusals;
mod stats;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use graven_frame::Frame;
use graven_raft::{AppendHead, Message, NodeId};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

pub use append::{APPEND_BYTES_MAX, APPEND_FRAMES_MAX, APPEND_HEAD_BYTES_MAX};
pub use hello::{Lane, Refusal};
pub use stats::{LaneStats, LinkStats, PeerStats};

use crate::{
    drivers::Drivers,
    protocol::budget::{Budget, Charge},
    tls::{ALPN_PEER, Credentials, Identity, TlsError, TlsIdentity},
    transport::{self, Mtu, Profile, ResetKey, SOCKET_BUFFER_BYTES, SocketBuffers},
    wire,
};
use hello::Local;
use outgoing::Peer;
use refusals::Told;

/// How this node takes part in the peer plane.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// Where peers reach us; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Our cluster.
    pub cluster: u128,
    /// Our id.
    pub node: NodeId,
    /// The incarnation of our data directory.
    pub incarnation: u128,
    /// The newest cluster feature level this build can take part in.
    pub feature_level: u32,
    /// Where peers reach us, `host:port`, told to those that do not know us yet; empty: at the address that was bound.
    pub advertised: String,
    /// Kept in the data directory, so that peers notice at once that we restarted.
    pub reset_key: Option<ResetKey>,
    /// The largest datagrams to try.
    pub mtu: Mtu,
    /// Bytes of appends in flight to one peer, as Raft's flow control bounds them.
    pub window_bytes: u64,
    /// Bytes of appends that may wait here for one peer, beside what quinn has taken.
    pub queue_bytes: usize,
    /// Socket buffers to ask the system for.
    pub socket_buffer_bytes: usize,
}

impl PeerConfig {
    /// The configuration with every setting that has a default at its default.
    #[must_use]
    pub fn new(listen: SocketAddr, cluster: u128, node: NodeId, incarnation: u128) -> Self {
        Self {
            listen,
            cluster,
            node,
            incarnation,
            feature_level: 1,
            advertised: String::new(),
            reset_key: None,
            mtu: Mtu::Auto,
            window_bytes: WINDOW_BYTES,
            queue_bytes: QUEUE_BYTES,
            socket_buffer_bytes: SOCKET_BUFFER_BYTES,
        }
    }
}

/// Who may talk to us, and where they are. Replaced as a whole when the membership changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roster {
    /// Every other node; our own entry is ignored.
    pub members: BTreeMap<NodeId, RosterEntry>,
    /// The highest id that is known to have been given. Ids are given in order and once, so who comes with a higher one was
    /// taken in since, and who comes with a lower one and is no member was removed.
    pub newest: NodeId,
}

/// One node of the roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RosterEntry {
    /// Its name, which its certificate must carry.
    pub name: String,
    /// Where its peers reach it, `host:port`.
    pub address: String,
    /// The incarnation its data directory must have; 0 while that is not known.
    pub incarnation: u128,
}

/// What the plane tells its driver, in the order in which it happened on each connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum PeerEvent {
    /// Both lanes towards `node` are up: what is sent now may arrive.
    Up {
        /// The peer.
        node: NodeId,
    },
    /// A lane towards `node` was lost with everything on it. It is being dialled again.
    Down {
        /// The peer.
        node: NodeId,
        /// What happened, for a log line.
        reason: String,
    },
    /// A control message.
    Message {
        /// Whose connection it came on.
        from: NodeId,
        /// The message.
        message: Message,
    },
    /// An append. Each frame's header was decoded and its body's checksum verified; its place in the chain was not.
    Append {
        /// Whose connection it came on.
        from: NodeId,
        /// What goes before the frames.
        head: AppendHead,
        /// The frames, in the chunks they arrived in.
        frames: Vec<Frame>,
        /// Their part of [`RECEIVED_BYTES_MAX`]. To be kept for as long as the driver keeps the frames where they are not on disk.
        held: Held,
    },
    /// A connection was refused, by us or by them. Told once for each reason until that peer connects.
    Refused {
        /// The peer, when it is known which.
        node: Option<NodeId>,
        /// Where it is.
        address: SocketAddr,
        /// Which side refused.
        by: RefusedBy,
        /// Why.
        refusal: Refusal,
    },
    /// A peer has said for some seconds, at every attempt, that this process is not the node it claims to be. Told once: whoever
    /// goes on all the same is not heard by that peer.
    Disowned {
        /// Who says so.
        by: NodeId,
        /// Why.
        refusal: Refusal,
    },
}

/// A part of what appends that were received may take in memory; given back when dropped. While all of it is held, append lanes are
/// not read.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "kept for its drop")] Charge);

/// Which side refused a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusedBy {
    /// This node.
    Us,
    /// The other side.
    Them,
}

/// What a send came to. `Ok` is "queued": it may still be lost with its lane.
pub type SendResult = Result<(), SendError>;

/// Why nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// Not in the roster.
    #[error("node {} is not in the roster", node.0)]
    Unknown {
        /// The peer.
        node: NodeId,
    },
    /// The lane is down; [`PeerEvent::Up`] tells when it is up.
    #[error("node {} is not connected", node.0)]
    Disconnected {
        /// The peer.
        node: NodeId,
    },
    /// Too much waits already: the peer does not read, or the path is slow.
    #[error("{queued} bytes are waiting for node {} already", node.0)]
    Full {
        /// The peer.
        node: NodeId,
        /// Bytes that wait.
        queued: usize,
    },
    /// More than a peer would take.
    #[error("append of {size}, the limit is {limit}")]
    TooLarge {
        /// Bytes of its frames, or their number.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The message exceeds the limit of control messages.
    #[error(transparent)]
    Encode(#[from] wire::WireError),
}

/// Why the plane could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address cannot be bound.
    #[error("cannot listen for peers on {address}: {cause}; free the port or change `listen.peer`")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is not this node's.
    #[error("the certificate is of {found}, this is node {} of cluster {cluster:032x}; check [tls] certificate", node.0)]
    WrongCertificate {
        /// Whose it is.
        found: Identity,
        /// Our id.
        node: NodeId,
        /// Our cluster.
        cluster: u128,
    },
}

/// The running peer plane. Dropping it closes every connection.
pub struct PeerPlane {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    drivers: Arc<Drivers>,
}

/// What all tasks of a plane share.
struct Shared {
    config: PeerConfig,
    local: Local,
    tls: TlsIdentity,
    endpoint: quinn::Endpoint,
    buffers: SocketBuffers,
    events: mpsc::Sender<PeerEvent>,
    /// Bounds what appends that were received hold.
    received: Arc<Budget>,
    roster: watch::Sender<Arc<Roster>>,
    /// Who is newer than the roster and reached us: see [`guests`].
    guests: Mutex<guests::Guests>,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
    incoming: incoming::Registry,
    told: Told,
    verdicts: lives::Verdicts,
    turned_away: stats::Counter,
    runtime: Handle,
}

impl PeerPlane {
    /// Binds the socket, starts listening, and dials everyone in `roster`.
    ///
    /// Events go to `events`; its capacity bounds what was received and not yet processed. A driver that stops reading stops the lanes and
    /// nothing else.
    ///
    /// # Errors
    /// When the address is taken, or the certificate is not the one of this node.
    pub async fn start(
        config: PeerConfig,
        tls: TlsIdentity,
        roster: Roster,
        events: mpsc::Sender<PeerEvent>,
    ) -> Result<Self, StartError> {
        // Watched from before the first use: a replacement in between is seen as a change.
        let renewals = tls.watch();
        let credentials = tls.current();
        match credentials.identity() {
            Identity::Node(it) if it.node == config.node.0 && it.cluster == config.cluster => {}
            found => {
                let (node, cluster) = (config.node, config.cluster);
                return Err(StartError::WrongCertificate { found: found.clone(), node, cluster });
            }
        }
        let server = server_config(&config, &tls)?;
        let bind = |cause| StartError::Bind { address: config.listen, cause };
        let bound = transport::bind(config.listen, config.socket_buffer_bytes).map_err(bind)?;
        if bound.buffers.capped() {
            tracing::info!(?bound.buffers, "socket buffers are capped by the system; raise net.core.rmem_max and wmem_max");
        }
        let drivers = Arc::new(Drivers::default());
        let endpoint = quinn::Endpoint::new(
            transport::endpoint(config.mtu, config.reset_key.as_ref()),
            Some(server),
            bound.socket,
            drivers.clone(),
        )
        .map_err(bind)?;
        let local = Local {
            cluster: config.cluster,
            node: config.node,
            incarnation: config.incarnation,
            boot: rand::random(),
            feature_level: config.feature_level,
            advertised: match endpoint.local_addr() {
                Ok(bound) if config.advertised.is_empty() => bound.to_string(),
                _ => config.advertised.clone(),
            },
        };
        let shared = Arc::new(Shared {
            config,
            local,
            tls,
            endpoint,
            buffers: bound.buffers,
            events,
            received: Budget::new(RECEIVED_BYTES_MAX),
            roster: watch::Sender::new(Arc::default()),
            guests: Mutex::default(),
            peers: Mutex::default(),
            incoming: incoming::Registry::default(),
            told: Told::default(),
            verdicts: lives::Verdicts::default(),
            turned_away: stats::Counter::default(),
            runtime: Handle::current(),
        });
        let tasks = vec![
            tokio::spawn(incoming::accept(shared.clone())),
            tokio::spawn(incoming::follow_roster(shared.clone())),
            tokio::spawn(follow_credentials(shared.clone(), renewals)),
        ];
        let plane = Self { shared, tasks, drivers };
        plane.set_roster(roster);
        Ok(plane)
    }

    /// Replaces who may talk to us. New members are dialled at once, changed ones dialled again, dropped ones cut off; a dropped
    /// member's [`PeerEvent::Down`] is not told, since the driver dropped it.
    pub fn set_roster(&self, roster: Roster) {
        self.shared.set_roster(roster);
    }

    /// Queues a control message. Never waits; what cannot be queued is dropped, which Raft takes like a lost packet.
    ///
    /// # Errors
    /// [`SendError::Unknown`], [`SendError::Disconnected`], [`SendError::Full`]; [`SendError::Encode`] when it exceeds 64 KiB.
    pub fn send(&self, to: NodeId, message: &Message) -> SendResult {
        let peer = self.shared.peer(to)?;
        let bytes = wire::encode::<CONTROL_MESSAGE_BYTES_MAX>(message)?;
        peer.count_full(peer.control.push(to, &bytes))
    }

    /// Queues an append. Never waits, copies no frame; on an error nothing was queued.
    ///
    /// # Errors
    /// [`SendError::Unknown`], [`SendError::Disconnected`], [`SendError::Full`]; [`SendError::TooLarge`] for what no peer takes:
    /// more than [`APPEND_FRAMES_MAX`] frames or [`APPEND_BYTES_MAX`] bytes.
    pub fn send_append(&self, to: NodeId, head: AppendHead, frames: Vec<Frame>) -> SendResult {
        let peer = self.shared.peer(to)?;
        let (head, bytes) = append::encode_head(&head, &frames)?;
        let append = queue::Append { head, frames, bytes };
        peer.count_full(peer.append.push(to, self.shared.config.queue_bytes, append))
    }

    /// Drops what waits for `to` and gives up the append stream it was to go on, sent or not: after a step-down none of it is worth the
    /// time. What is sent next goes on a new stream.
    pub fn reset_append(&self, to: NodeId) {
        if let Ok(peer) = self.shared.peer(to) {
            peer.append.reset();
        }
    }

    /// Where peers reach us: the address asked for, with the port that was really taken.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.shared.endpoint.local_addr().unwrap_or(self.shared.config.listen)
    }

    /// The feature level `node` told when it was last reached.
    #[must_use]
    pub fn feature_level(&self, node: NodeId) -> Option<u32> {
        self.shared.peer(node).ok()?.feature_level()
    }

    /// Name and address of a node that is no member known here and reached this one all the same, as it gave them.
    #[must_use]
    pub fn guest(&self, node: NodeId) -> Option<RosterEntry> {
        lock(&self.shared.guests).get(node).cloned()
    }

    /// What was counted and measured.
    #[must_use]
    pub fn stats(&self) -> PeerStats {
        let peers = lock(&self.shared.peers);
        PeerStats {
            socket: self.shared.buffers,
            refused: self.shared.told.refused(),
            turned_away: self.shared.turned_away.value(),
            peers: peers.iter().map(|(node, peer)| (*node, peer.stats())).collect(),
        }
    }

    /// Closes every connection, tells the peers so, waits a moment until they know, and gives the port back.
    pub async fn close(mut self) {
        let tasks = self.stop();
        // Peers that do not answer notice by their own timeouts.
        let _silent_peers = timeout(CLOSE_WAIT, self.shared.endpoint.wait_idle()).await;
        for task in tasks {
            let _aborted = task.await;
        }
        let drivers = self.drivers.clone();
        drop(self);
        drivers.end().await;
    }

    /// Aborts every task and closes every connection; the tasks are over when they were awaited.
    fn stop(&mut self) -> Vec<JoinHandle<()>> {
        let mut tasks = std::mem::take(&mut self.tasks);
        tasks.iter().for_each(JoinHandle::abort);
        for (_, peer) in lock(&self.shared.peers).drain() {
            tasks.extend(peer.stop());
        }
        tasks.extend(self.shared.incoming.stop());
        self.shared.endpoint.close(CLOSE_NORMAL, b"node is stopping");
        tasks
    }
}

impl Drop for PeerPlane {
    fn drop(&mut self) {
        let _not_awaited = self.stop();
    }
}

impl Shared {
    /// Takes in the members, and keeps those guests that are still newer than all of them.
    fn set_roster(self: &Arc<Self>, roster: Roster) {
        let mut guests = lock(&self.guests);
        let roster = guests.under(roster);
        self.follow(roster);
    }

    /// Takes in somebody who is newer than the roster. `false` when there is no room for it.
    fn take_guest(self: &Arc<Self>, node: NodeId, entry: RosterEntry) -> bool {
        let mut guests = lock(&self.guests);
        let Some(roster) = guests.with(node, entry) else { return false };
        self.follow(roster);
        true
    }

    /// Starts, keeps and stops peers so that they are those of `roster`.
    fn follow(self: &Arc<Self>, roster: Roster) {
        let mut peers = lock(&self.peers);
        peers.retain(|node, peer| {
            let stays = roster.members.contains_key(node);
            if !stays {
                let _not_awaited = peer.stop();
            }
            stays
        });
        let new: Vec<NodeId> = roster
            .members
            .keys()
            .filter(|node| **node != self.local.node && !peers.contains_key(node))
            .copied()
            .collect();
        self.roster.send_replace(Arc::new(roster));
        for node in new {
            peers.insert(node, Peer::start(self, node));
        }
    }

    /// Where the membership has `node`, as a socket address: as written, or as its name was resolved last.
    fn member_address(&self, node: NodeId) -> Option<SocketAddr> {
        let written = self.roster.borrow().members.get(&node).and_then(|entry| entry.address.parse().ok());
        written.or_else(|| self.peer(node).ok()?.dialled())
    }

    fn peer(&self, node: NodeId) -> Result<Arc<Peer>, SendError> {
        lock(&self.peers).get(&node).cloned().ok_or(SendError::Unknown { node })
    }

    /// Tells the driver. Waits while it is behind; when it is gone there is nobody left to tell.
    async fn tell(&self, event: PeerEvent) {
        let _driver_gone = self.events.send(event).await;
    }

    async fn tell_refused(&self, node: Option<NodeId>, address: SocketAddr, by: RefusedBy, refusal: Refusal) {
        if self.told.is_new(node, address, by, &refusal) {
            // The driver says it aloud: it knows the log that the operator reads.
            let who = node.map_or_else(|| address.to_string(), |node| format!("node {} at {address}", node.0));
            match by {
                RefusedBy::Us => tracing::debug!("refused a connection from {who}: {refusal}"),
                RefusedBy::Them => tracing::debug!("{who} refused our connection: {refusal}"),
            }
            self.tell(PeerEvent::Refused { node, address, by, refusal }).await;
        }
    }
}

/// New certificates are used for the handshakes that begin after them; connections that stand keep what they were made with until it
/// expires.
async fn follow_credentials(shared: Arc<Shared>, mut renewals: watch::Receiver<Arc<Credentials>>) {
    while renewals.changed().await.is_ok() {
        match server_config(&shared.config, &shared.tls) {
            Ok(config) => shared.endpoint.set_server_config(Some(config)),
            Err(cause) => tracing::error!("new certificate is not used for peers: {cause}"),
        }
    }
}

fn server_config(config: &PeerConfig, tls: &TlsIdentity) -> Result<quinn::ServerConfig, TlsError> {
    let profile = Profile { mtu: config.mtu, keep_alive: None, ..Profile::peer_append(config.window_bytes) };
    let mut server = quinn::ServerConfig::with_crypto(tls.current().quic_server(ALPN_PEER)?);
    server
        .transport_config(profile.build())
        .migration(false)
        .max_incoming(incoming::WAITING_MAX)
        .incoming_buffer_size(incoming::WAITING_BYTES_MAX)
        .incoming_buffer_size_total(incoming::WAITING_BYTES_MAX * incoming::WAITING_MAX as u64);
    Ok(server)
}

/// No value behind these locks is left half changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Raft's default window for one follower.
pub const WINDOW_BYTES: u64 = 1 << 20;
/// One window may wait, and half of one more: what Raft retries meanwhile.
pub const QUEUE_BYTES: usize = (WINDOW_BYTES + WINDOW_BYTES / 2) as usize;
/// Appends of all peers together, from their arrival until they are on disk or refused: a leader sends a window of [`WINDOW_BYTES`] at a
/// time, and two leaders may overlap; the largest append there is fits three times. A larger one than fits passes alone.
pub const RECEIVED_BYTES_MAX: usize = 64 << 20;
/// The largest control message: a membership of seven nodes with long names has a few hundred bytes.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Long enough for one exchange across continents.
const CLOSE_WAIT: Duration = Duration::from_millis(300);

const CLOSE_NORMAL: quinn::VarInt = quinn::VarInt::from_u32(0);
const CLOSE_REFUSED: quinn::VarInt = quinn::VarInt::from_u32(1);
const CLOSE_RETIRED: quinn::VarInt = quinn::VarInt::from_u32(2);
const CLOSE_PROTOCOL: quinn::VarInt = quinn::VarInt::from_u32(3);
const CLOSE_EXPIRED: quinn::VarInt = quinn::VarInt::from_u32(4);
