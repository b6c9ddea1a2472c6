//! The dialling side: keeps both lanes towards one peer up, and writes what is queued for it.
//!
//! One task per lane goes around: dial, say hello, write until the connection is lost, wait a little, dial again. The wait is short at first
//! and grows to two seconds; it ends early when the roster changes, and when the peer itself connects to us, which is how a restarted node
//! is back within a round trip.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use graven_raft::NodeId;
use quinn::{Connection, ConnectionError, VarInt, WriteError};
use tokio::{sync::Notify, task::JoinHandle, time::timeout};

use super::{
    CLOSE_EXPIRED, CLOSE_NORMAL, CLOSE_PROTOCOL, CLOSE_REFUSED, CLOSE_RETIRED, Lane, PeerEvent, Refusal, RefusedBy,
    RosterEntry, SendError, SendResult, Shared,
    append::Gather,
    hello::{self, HelloError, Reply, Welcome, check_incarnation},
    lives::Seen,
    lock,
    queue::{AppendQueue, ControlQueue, Next},
    refusals::{close, refused_certificate},
    stats::{Counters, LaneStats, LinkStats},
};
use crate::{
    tls::{ALPN_PEER, Identity, UnixTime, Verified, server_name},
    transport::Profile,
};

/// One peer, as we send to it.
pub(super) struct Peer {
    node: NodeId,
    pub(super) control: ControlQueue,
    pub(super) append: AppendQueue,
    pub(super) counters: Counters,
    links: Mutex<Links>,
    /// Where it was dialled last.
    dialled: Mutex<Option<SocketAddr>>,
    kick: [Notify; 2],
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Links {
    control: Option<Link>,
    append: Option<Link>,
    feature_level: Option<u32>,
}

struct Link {
    connection: Connection,
    boot: u64,
}

impl Links {
    fn lane(&mut self, lane: Lane) -> &mut Option<Link> {
        match lane {
            Lane::Control => &mut self.control,
            Lane::Append => &mut self.append,
        }
    }

    fn both_up(&self) -> bool {
        self.control.is_some() && self.append.is_some()
    }
}

impl Peer {
    pub(super) fn start(shared: &Arc<Shared>, node: NodeId) -> Arc<Self> {
        let peer = Arc::new(Self {
            node,
            control: ControlQueue::default(),
            append: AppendQueue::default(),
            counters: Counters::default(),
            links: Mutex::default(),
            dialled: Mutex::default(),
            kick: [Notify::new(), Notify::new()],
            tasks: Mutex::default(),
        });
        let run = |lane| shared.runtime.spawn(run_lane(Arc::downgrade(shared), peer.clone(), lane));
        *lock(&peer.tasks) = vec![run(Lane::Control), run(Lane::Append)];
        peer
    }

    /// Ends both lanes for good; they are over when the tasks were awaited.
    pub(super) fn stop(&self) -> Vec<JoinHandle<()>> {
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.iter().for_each(JoinHandle::abort);
        self.control.set_up(false);
        self.append.set_up(false);
        let mut links = lock(&self.links);
        for link in [links.control.take(), links.append.take()].into_iter().flatten() {
            close(&link.connection, CLOSE_NORMAL, "no longer a peer");
        }
        tasks
    }

    /// The peer reached us: it is worth dialling now. Connections to an earlier life of it are dead, whatever they look like.
    pub(super) fn reached_us(&self, boot: u64) {
        let mut links = lock(&self.links);
        for lane in [Lane::Control, Lane::Append] {
            if let Some(stale) = links.lane(lane).as_ref().filter(|link| link.boot != boot) {
                close(&stale.connection, CLOSE_RETIRED, "peer restarted");
            }
        }
        self.kick.iter().for_each(Notify::notify_one);
    }

    /// The address that was dialled last.
    pub(super) fn dialled(&self) -> Option<SocketAddr> {
        *lock(&self.dialled)
    }

    /// The connections to it that stand.
    pub(super) fn seen(&self) -> Vec<Seen> {
        let links = lock(&self.links);
        let both = [links.control.as_ref(), links.append.as_ref()];
        let seen = |link: &Link| Seen { connection: link.connection.clone(), boot: link.boot, dialled: true };
        both.into_iter().flatten().map(seen).collect()
    }

    pub(super) fn feature_level(&self) -> Option<u32> {
        lock(&self.links).feature_level
    }

    pub(super) fn count_full(&self, result: SendResult) -> SendResult {
        if matches!(result, Err(SendError::Full { .. })) {
            self.counters.queue_full.add(1);
        }
        result
    }

    pub(super) fn stats(&self) -> LinkStats {
        let links = lock(&self.links);
        let counters = &self.counters;
        LinkStats {
            up: links.both_up(),
            feature_level: links.feature_level.unwrap_or(0),
            messages_sent: counters.messages_sent.value(),
            messages_received: counters.messages_received.value(),
            appends_sent: counters.appends_sent.value(),
            appends_received: counters.appends_received.value(),
            bytes_sent: counters.bytes_sent.value(),
            bytes_received: counters.bytes_received.value(),
            queue_full: counters.queue_full.value(),
            queued_bytes: self.append.queued_bytes() as u64,
            reconnects: counters.connections.value().saturating_sub(2),
            control: links.control.as_ref().map(|link| LaneStats::of(&link.connection)),
            append: links.append.as_ref().map(|link| LaneStats::of(&link.connection)),
        }
    }

    fn set_queue_up(&self, lane: Lane, up: bool) {
        match lane {
            Lane::Control => self.control.set_up(up),
            Lane::Append => self.append.set_up(up),
        }
    }

    /// Notes that `lane` is up; answers whether both are now.
    fn lane_up(&self, lane: Lane, dialled: &Dialled) -> bool {
        self.counters.connections.add(1);
        self.set_queue_up(lane, true);
        let mut links = lock(&self.links);
        links.feature_level = Some(dialled.welcome.feature_level);
        *links.lane(lane) = Some(Link { connection: dialled.connection.clone(), boot: dialled.welcome.boot });
        links.both_up()
    }

    /// Notes that `lane` is down; answers whether both were up until now.
    fn lane_down(&self, lane: Lane) -> bool {
        self.set_queue_up(lane, false);
        let mut links = lock(&self.links);
        let were_up = links.both_up();
        *links.lane(lane) = None;
        were_up
    }
}

/// A connection on which both sides know who the other is.
struct Dialled {
    connection: Connection,
    welcome: Welcome,
    certificate_expires: UnixTime,
}

async fn run_lane(shared: Weak<Shared>, peer: Arc<Peer>, lane: Lane) {
    let mut backoff = Backoff::default();
    // How long this peer has said that we are not who we claim to be.
    let mut disowned = None;
    let Some(mut roster) = shared.upgrade().map(|shared| shared.roster.subscribe()) else { return };
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let Some(entry) = roster.borrow_and_update().members.get(&peer.node).cloned() else { return };
        match dial(&shared, &peer, lane, &entry, backoff.attempts).await {
            Ok(dialled) => {
                disowned = None;
                let since = Instant::now();
                serve(&shared, &peer, lane, dialled, &entry).await;
                backoff.connected_for(since.elapsed());
            }
            Err(DialError::Refused { address, by, refusal }) => {
                if by == RefusedBy::Them && refusal.disowns() {
                    if shared.verdicts.is_final(&mut disowned) {
                        shared.tell(PeerEvent::Disowned { by: peer.node, refusal: refusal.clone() }).await;
                    }
                } else {
                    disowned = None;
                }
                shared.tell_refused(Some(peer.node), address, by, refusal).await;
            }
            Err(cause) => tracing::debug!(node = peer.node.0, lane = lane.as_str(), "cannot dial: {cause}"),
        }
        drop(shared);
        let [control, append] = &peer.kick;
        let kick = if lane == Lane::Control { control } else { append };
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = kick.notified() => {}
            changed = roster.changed() => if changed.is_err() { return },
        }
    }
}

async fn serve(shared: &Shared, peer: &Arc<Peer>, lane: Lane, dialled: Dialled, entry: &RosterEntry) {
    shared.told.forget(peer.node, RefusedBy::Us);
    shared.told.forget(peer.node, RefusedBy::Them);
    let both_up = peer.lane_up(lane, &dialled);
    // Whoever answers where the membership has the node is the node: other lives that were heard while nobody answered are not.
    let _ended_beside_us = shared.incoming.displace(peer.node, dialled.welcome.boot);
    let guard = DownGuard { peer, lane, connection: &dialled.connection };
    if both_up {
        shared.tell(PeerEvent::Up { node: peer.node }).await;
    }
    let mut roster = shared.roster.subscribe();
    let moved = async {
        // Another address, name or incarnation: whoever this connection goes to, it is not whom the roster means.
        let same = |roster: &Arc<super::Roster>| roster.members.get(&peer.node) == Some(entry);
        let _plane_gone = roster.wait_for(|roster| !same(roster)).await;
    };
    let reason = tokio::select! {
        error = dialled.connection.closed() => reason_of(&error),
        error = write(peer, lane, &dialled.connection) => {
            close(&dialled.connection, CLOSE_PROTOCOL, "write failed");
            match error {
                LaneError::Write(WriteError::ConnectionLost(error)) => reason_of(&error),
                other => other.to_string(),
            }
        }
        () = expiry(dialled.certificate_expires) => {
            close(&dialled.connection, CLOSE_EXPIRED, "certificate expired");
            format!("its certificate expired at {}", dialled.certificate_expires)
        }
        () = moved => {
            close(&dialled.connection, CLOSE_NORMAL, "roster changed");
            "the roster changed".to_owned()
        }
    };
    if guard.down() {
        tracing::info!(node = peer.node.0, lane = lane.as_str(), "lane is down: {reason}");
        let reason = format!("{} lane: {reason}", lane.as_str());
        shared.tell(PeerEvent::Down { node: peer.node, reason }).await;
    }
}

/// A lane is down when its task ends, in whatever way.
struct DownGuard<'a> {
    peer: &'a Peer,
    lane: Lane,
    connection: &'a Connection,
}

impl DownGuard<'_> {
    fn down(self) -> bool {
        let were_up = self.peer.lane_down(self.lane);
        std::mem::forget(self);
        were_up
    }
}

impl Drop for DownGuard<'_> {
    fn drop(&mut self) {
        self.peer.lane_down(self.lane);
        close(self.connection, CLOSE_NORMAL, "lane given up");
    }
}

async fn write(peer: &Peer, lane: Lane, connection: &Connection) -> LaneError {
    let ended = match lane {
        Lane::Control => write_control(peer, connection).await,
        Lane::Append => write_appends(peer, connection).await,
    };
    match ended {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

async fn write_control(peer: &Peer, connection: &Connection) -> Result<std::convert::Infallible, LaneError> {
    let mut stream = connection.open_uni().await?;
    loop {
        let (bytes, messages) = peer.control.next().await;
        let len = bytes.len() as u64;
        timeout(WRITE_STALL, stream.write_chunk(bytes)).await.map_err(|_| LaneError::Stalled)??;
        peer.counters.messages_sent.add(messages);
        peer.counters.bytes_sent.add(len);
    }
}

async fn write_appends(peer: &Peer, connection: &Connection) -> Result<std::convert::Infallible, LaneError> {
    let mut gather = Gather::default();
    let mut current = peer.append.generation();
    loop {
        let mut stream = connection.open_uni().await?;
        current = loop {
            match peer.append.next(current).await {
                Next::Reset { generation } => break generation,
                Next::Write { appends, generation } => {
                    let bytes: usize = appends.iter().map(|append| append.bytes).sum();
                    appends.iter().for_each(|append| gather.append(&append.head, &append.frames));
                    let mut pieces = gather.take();
                    tokio::select! {
                        written = timeout(WRITE_STALL, stream.write_all_chunks(&mut pieces)) => {
                            written.map_err(|_| LaneError::Stalled)??;
                        }
                        () = peer.append.outdated(generation) => break peer.append.generation(),
                    }
                    peer.append.written(generation, bytes);
                    peer.counters.appends_sent.add(appends.len() as u64);
                    peer.counters.bytes_sent.add(bytes as u64);
                }
            }
        };
        // What is on its way is dropped on both sides; the receiver never sees half a message, because it sees the reset first.
        let _already_closed = stream.reset(STREAM_RESET);
    }
}

async fn dial(
    shared: &Shared,
    peer: &Peer,
    lane: Lane,
    entry: &RosterEntry,
    attempt: u32,
) -> Result<Dialled, DialError> {
    let address = resolve(shared, &entry.address, attempt).await?;
    *lock(&peer.dialled) = Some(address);
    let profile = match lane {
        Lane::Control => Profile::peer_control(),
        Lane::Append => Profile::peer_append(shared.config.window_bytes),
    };
    let crypto = shared.tls.current().quic_client(ALPN_PEER).map_err(|cause| DialError::Config(cause.to_string()))?;
    let mut config = quinn::ClientConfig::new(crypto);
    config.transport_config(Profile { mtu: shared.config.mtu, ..profile }.build());
    let connecting = shared
        .endpoint
        .connect_with(config, address, &server_name(&entry.name))
        .map_err(|cause| DialError::Config(cause.to_string()))?;
    let greet = async {
        let connection = connecting.await?;
        // Dropped on every way out but the last: an unfinished connection is closed and not left to idle out.
        let mut half_open = CloseOnDrop(Some(connection.clone()));
        let greeted = greet(shared, peer, lane, entry, connection).await;
        if greeted.is_ok() {
            half_open.0 = None;
        }
        greeted
    };
    match timeout(DIAL_TIMEOUT, greet).await {
        Err(_) => Err(DialError::TimedOut { address }),
        Ok(Ok(dialled)) => Ok(dialled),
        Ok(Err(GreetError::Refused(by, refusal))) => Err(DialError::Refused { address, by, refusal }),
        Ok(Err(GreetError::Hello(cause))) => Err(match connection_error(&cause).and_then(refused_certificate) {
            Some((by, refusal)) => DialError::Refused { address, by, refusal },
            None => DialError::Failed { address, cause: cause.to_string() },
        }),
    }
}

async fn greet(
    shared: &Shared,
    peer: &Peer,
    lane: Lane,
    entry: &RosterEntry,
    connection: Connection,
) -> Result<Dialled, GreetError> {
    let refuse = |refusal: Refusal| {
        close(&connection, CLOSE_REFUSED, &refusal.to_string());
        GreetError::Refused(RefusedBy::Us, refusal)
    };
    let verified = Verified::of(&connection).map_err(|cause| refuse(Refusal::Certificate(cause.to_string())))?;
    match &verified.identity {
        Identity::Node(it) if it.node == peer.node.0 => {}
        Identity::Node(it) => {
            return Err(refuse(Refusal::CertificateOfOther { certificate: it.node, hello: peer.node.0 }));
        }
        other => return Err(refuse(Refusal::NotANode(other.to_string()))),
    }
    let (mut send, mut receive) = connection.open_bi().await.map_err(HelloError::from)?;
    hello::write_hello(&mut send, &shared.local.hello(peer.node, lane)).await?;
    match hello::read_reply(&mut receive).await? {
        Reply::Refused(refusal) => Err(GreetError::Refused(RefusedBy::Them, refusal)),
        Reply::Welcome(welcome) => {
            if welcome.node != peer.node {
                return Err(refuse(Refusal::WrongNode { expected: peer.node.0, seen: welcome.node.0 }));
            }
            check_incarnation(peer.node, entry.incarnation, welcome.incarnation).map_err(&refuse)?;
            Ok(Dialled { welcome, certificate_expires: verified.not_after, connection: connection.clone() })
        }
    }
}

/// The address to try: the one of several that is this attempt's turn, so that a host with a dead address is reached at the next one.
async fn resolve(shared: &Shared, address: &str, attempt: u32) -> Result<SocketAddr, DialError> {
    if let Ok(address) = address.parse() {
        return Ok(address);
    }
    let failed = |what: String| DialError::Resolve { address: address.to_owned(), what };
    let found = timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(address))
        .await
        .map_err(|_| failed("no answer from name resolution".to_owned()))?
        .map_err(|cause| failed(cause.to_string()))?;
    let ours_is_v4 = shared.config.listen.is_ipv4();
    let usable: Vec<SocketAddr> = found.filter(|it| it.is_ipv4() || !ours_is_v4).collect();
    let turn = usize::try_from(attempt).unwrap_or(0).checked_rem(usable.len());
    turn.and_then(|turn| usable.get(turn).copied()).ok_or_else(|| failed("no usable address".to_owned()))
}

/// Waits until a certificate expires. Looks again from time to time: clocks are set, and timers do not know.
pub(super) async fn expiry(not_after: UnixTime) {
    while UnixTime::now() <= not_after {
        let left = u64::try_from(not_after.0.saturating_sub(UnixTime::now().0)).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(left.saturating_add(1).min(EXPIRY_LOOK_SECONDS))).await;
    }
}

/// How a connection ended, as an operator would say it.
fn reason_of(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => "no packet arrived within the idle timeout".to_owned(),
        ConnectionError::Reset => "the peer restarted and knows nothing of this connection".to_owned(),
        ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_RETIRED => {
            "the peer took a newer connection; is a copy of this node running?".to_owned()
        }
        ConnectionError::ApplicationClosed(close) => {
            format!("closed by the peer: {}", String::from_utf8_lossy(&close.reason).escape_debug())
        }
        other => refused_certificate(other).map_or_else(|| other.to_string(), |(_, refusal)| refusal.to_string()),
    }
}

pub(super) fn connection_error(error: &HelloError) -> Option<&ConnectionError> {
    use quinn::{ReadError, ReadExactError};
    match error {
        HelloError::Connection(error)
        | HelloError::Write(WriteError::ConnectionLost(error))
        | HelloError::Read(ReadExactError::ReadError(ReadError::ConnectionLost(error))) => Some(error),
        _ => None,
    }
}

/// Closes a connection that did not come to anything.
pub(super) struct CloseOnDrop(pub(super) Option<Connection>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            close(&connection, CLOSE_NORMAL, "given up");
        }
    }
}

/// Waits between attempts: a few quick ones, then doubling to the longest.
#[derive(Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    fn connected_for(&mut self, time: Duration) {
        // Two nodes of one identity retire each other's connections for ever; they shall do it slowly.
        if time >= STABLE_AFTER {
            self.attempts = 0;
        }
    }

    fn next(&mut self) -> Duration {
        let doublings = self.attempts.saturating_sub(QUICK_ATTEMPTS).min(16);
        self.attempts = self.attempts.saturating_add(1);
        let wait = BACKOFF_FIRST.saturating_mul(1 << doublings).min(BACKOFF_LONGEST);
        wait.mul_f64(rand::random_range(0.5..1.0))
    }
}

#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error("{0}")]
    Write(#[from] WriteError),
    #[error("quinn took nothing for {} s", WRITE_STALL.as_secs())]
    Stalled,
}

impl From<ConnectionError> for LaneError {
    fn from(error: ConnectionError) -> Self {
        Self::Write(WriteError::ConnectionLost(error))
    }
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{address}: refused: {refusal}")]
    Refused { address: SocketAddr, by: RefusedBy, refusal: Refusal },
    #[error("{address}: no answer")]
    TimedOut { address: SocketAddr },
    #[error("{address}: {cause}")]
    Failed { address: SocketAddr, cause: String },
    #[error("{address}: {what}")]
    Resolve { address: String, what: String },
    #[error("{0}")]
    Config(String),
}

enum GreetError {
    Refused(RefusedBy, Refusal),
    Hello(HelloError),
}

impl<E: Into<HelloError>> From<E> for GreetError {
    fn from(error: E) -> Self {
        Self::Hello(error.into())
    }
}

const STREAM_RESET: VarInt = VarInt::from_u32(1);
/// Handshake and hello take three round trips; a host that needs longer is tried again.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that reads nothing for this long while its connection lives is better dialled anew: quinn has had stalls that only that ends.
const WRITE_STALL: Duration = Duration::from_secs(15);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(2);
/// Attempts at the first wait: a restarting node is back within a few.
const QUICK_ATTEMPTS: u32 = 4;
const STABLE_AFTER: Duration = Duration::from_secs(2);
const EXPIRY_LOOK_SECONDS: u64 = 60;
