//! A cluster in memory behind real listeners: one log, one leader, sessions with deduplication, and faults on demand.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use graven_frame::{Body, Chain, Frame, Group, HeaderSpec, Kind};
use graven_net::client::{Client, ClientConfig, ConnectError};
use graven_net::protocol::snapshot::CHUNK_BYTES;
use graven_net::server::{
    Ack, AppendReply, BackupHead, BackupRequest, Bounds, Busy, Caller, ErrorCode, Failure, Feed, FeedItem, GetRequest,
    LeaderView, MemberReport, NodeReport, NodeRole, NodeState, NodeStats, NodeStatus, Opened, OpenedBackup,
    OpenedSnapshot, PutAnswer, PutRequest, Rejection, Request, Response, Server, ServerConfig, Service, SnapshotBody,
    SnapshotInfo, SnapshotSink, Start, SubscribeRequest,
};
use graven_net::tls::{Authority, Role, TlsFiles, TlsIdentity};
use tokio::sync::{Notify, watch};

/// More than a client receives ahead of whoever reads from it.
const ZEROES_CHUNKS: usize = 64;

/// The snapshot that every node gives.
struct Zeroes;

impl SnapshotBody for Zeroes {
    fn chunk(&mut self, _number: u64) -> Result<Bytes, Failure> {
        Ok(vec![0; CHUNK_BYTES].into())
    }
}

/// A snapshot that a node takes: it counts the bytes, and is gone when it is dropped.
struct Taken {
    bytes: u64,
    request: PutRequest,
    under_way: Arc<AtomicUsize>,
}

impl SnapshotSink for Taken {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Pin<Box<dyn Future<Output = PutAnswer> + Send>> {
        let PutRequest { name, offset, .. } = self.request.clone();
        let info = SnapshotInfo { name, id: 1, offset, bytes: self.bytes, digest: 0, timestamp: 0 };
        Box::pin(async { PutAnswer::Done(info) })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

pub const CLUSTER: u128 = 0xC0FFEE;

/// What all nodes share: as if replication were perfect and at once.
#[derive(Default)]
pub struct World {
    pub frames: Vec<Frame>,
    pub payloads: Vec<Vec<u8>>,
    pub first_offset: u64,
    pub term: u64,
    pub leader: Option<String>,
    pub sessions: HashMap<u64, BTreeMap<u64, Ack>>,
    pub opened: u64,
    pub duplicates: u64,
    addresses: BTreeMap<String, SocketAddr>,
    views: Vec<watch::Sender<LeaderView>>,
}

impl World {
    fn view(&self) -> LeaderView {
        let address = self.leader.as_ref().and_then(|leader| self.addresses.get(leader));
        LeaderView { term: self.term, leader: self.leader.clone(), address: address.map(ToString::to_string) }
    }

    /// What the replica does with a group.
    fn judge(&mut self, group: &Group) -> Result<Ack, Rejection> {
        let header = *group.header();
        let (Some(id), Some(sequence)) = (header.session, header.sequence) else {
            panic!("the server let {header:?} in")
        };
        let Some(session) = self.sessions.get(&id) else {
            return Err(Rejection::Failed(Failure::refused(ErrorCode::SessionExpired, "session expired")));
        };
        let last = session.last_key_value().map_or(0, |(last, _)| *last);
        if sequence <= last {
            self.duplicates += 1;
            return Ok(session[&sequence]);
        }
        if sequence > last + 1 {
            return Err(Rejection::Gap { expected: last + 1 });
        }
        let next = self.payloads.len() as u64;
        if header.expected_offset.is_some_and(|expected| expected != next) {
            let failure = Failure::refused(ErrorCode::Conflict, "next offset is another").with("next_offset", next);
            return Err(Rejection::Failed(failure));
        }
        let spec = HeaderSpec {
            kind: Kind::Records,
            term: self.term,
            index: self.frames.len() as u64 + 2,
            base_offset: next,
            count: header.count,
            timestamp_ms: 1000 + next,
        };
        let prev = self.frames.last().map_or(Chain::START, |frame| frame.header().chain);
        self.frames.push(Frame::seal(spec, prev, group.body().clone(), group.crc()));
        self.payloads.extend(group.records().map(|record| record.payload.to_vec()));
        let records = u64::from(header.count);
        let ack = Ack { first: next, last: next + records - 1, records, term: self.term, timestamp: 1000 + next };
        self.sessions.entry(id).or_default().insert(sequence, ack);
        Ok(ack)
    }
}

/// Faults of one node.
#[derive(Default)]
pub struct Faults {
    /// Appends are stored and never answered.
    pub lose_acks: AtomicBool,
    /// Appends are neither stored nor answered.
    pub deaf: AtomicBool,
    /// Appends are not taken for now.
    pub busy: AtomicBool,
    /// Frames are damaged on their way out.
    pub corrupt: AtomicBool,
    /// The node's own log is damaged from this offset on; 0: it is whole.
    pub damaged_from: AtomicU64,
    /// Leave out one frame in the middle.
    pub skip_frame: AtomicBool,
    pub not_busy: Notify,
    /// Frames of a backup after which it stops without a word; 0: it does not.
    pub backup_stops_after: AtomicUsize,
    /// Backups it was asked for.
    pub backups_asked: AtomicUsize,
    /// Frames a feed was asked for.
    pub frames_given: AtomicUsize,
    /// Uploads that are under way.
    pub uploads: Arc<AtomicUsize>,
    limbo: Mutex<Vec<AppendReply>>,
}

#[derive(Clone)]
pub struct Node {
    pub name: String,
    world: Arc<Mutex<World>>,
    committed: Arc<watch::Sender<u64>>,
    pub faults: Arc<Faults>,
    view: watch::Receiver<LeaderView>,
}

impl Service for Node {
    type Feed = FakeFeed;

    fn append(&self, group: Group, reply: AppendReply) -> Result<(), Busy> {
        if self.faults.busy.load(Ordering::SeqCst) {
            return Err(Busy(Box::new((group, reply))));
        }
        let mut world = self.world.lock().unwrap();
        if self.faults.deaf.load(Ordering::SeqCst) {
            self.faults.limbo.lock().unwrap().push(reply);
            return Ok(());
        }
        if world.leader.as_ref() != Some(&self.name) {
            reply.done(Err(Rejection::NotLeader(world.view())));
            return Ok(());
        }
        let judged = world.judge(&group);
        self.committed.send_replace(world.payloads.len() as u64);
        drop(world);
        if self.faults.lose_acks.load(Ordering::SeqCst) {
            self.faults.limbo.lock().unwrap().push(reply);
        } else {
            reply.done(judged);
        }
        Ok(())
    }

    async fn ready(&self) {
        self.faults.not_busy.notified().await;
    }

    async fn unary(&self, _caller: Caller, request: Request) -> Response {
        let mut world = self.world.lock().unwrap();
        let leads = world.leader.as_ref() == Some(&self.name);
        match request {
            Request::OpenSession if leads => {
                world.opened += 1;
                let session = world.opened;
                world.sessions.insert(session, BTreeMap::new());
                Response::SessionOpened { session }
            }
            Request::Transfer { node } if leads && world.addresses.contains_key(&node) => {
                drop(world);
                elect(&self.world, Some(&node));
                Response::Transferred
            }
            Request::OpenSession | Request::Transfer { .. } => Response::NotLeader(world.view()),
            Request::Bounds { .. } => Response::Bounds(Bounds {
                first_offset: world.first_offset,
                next_offset: world.payloads.len() as u64,
                term: world.term,
                leader: world.leader.clone(),
                node: self.name.clone(),
            }),
            Request::NodeStats => {
                Response::NodeStats(NodeStats { frames: world.frames.len() as u64, ..Default::default() })
            }
            Request::NodeStatus => Response::NodeStatus(Box::new(self.report(&world, leads))),
            other => Response::Failed(Failure::refused(ErrorCode::Usage, format!("unexpected {other:?}"))),
        }
    }

    async fn put_snapshot(&self, _caller: Caller, request: PutRequest) -> Result<Box<dyn SnapshotSink>, PutAnswer> {
        self.faults.uploads.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Taken { bytes: 0, request, under_way: self.faults.uploads.clone() }))
    }

    async fn get_snapshot(&self, _caller: Caller, request: GetRequest) -> Result<OpenedSnapshot, Failure> {
        let bytes = (ZEROES_CHUNKS * CHUNK_BYTES) as u64;
        let info = SnapshotInfo { name: request.name, id: 1, offset: 0, bytes, digest: 0, timestamp: 0 };
        Ok(OpenedSnapshot { info, chunks: ZEROES_CHUNKS as u64, body: Box::new(Zeroes) })
    }

    async fn subscribe(&self, _caller: Caller, request: SubscribeRequest) -> Result<Opened<FakeFeed>, Failure> {
        let world = self.world.lock().unwrap();
        let next_offset = world.payloads.len() as u64;
        let from = match request.start {
            Start::Beginning => world.first_offset,
            Start::End => next_offset,
            Start::Offset(offset) => offset,
            Start::Last(count) => next_offset.saturating_sub(count).max(world.first_offset),
            Start::Time(time) => time.saturating_sub(1000),
            other => panic!("unexpected {other:?}"),
        };
        if from > next_offset && !request.resume {
            let message = format!("offset {from} is beyond the end");
            return Err(Failure::refused(ErrorCode::OutOfRange, message).with("next_offset", next_offset));
        }
        if from < world.first_offset && !request.skip_trimmed {
            let failure = Failure::refused(ErrorCode::Trimmed, format!("offset {from} was trimmed"));
            return Err(failure.with("first_offset", world.first_offset));
        }
        let feed = FakeFeed {
            next: from,
            until: request.until,
            caught_up: false,
            node: self.clone(),
            committed: self.committed.subscribe(),
        };
        Ok(Opened { from, feed })
    }

    async fn backup(&self, _caller: Caller, request: BackupRequest) -> Result<OpenedBackup, Failure> {
        self.faults.backups_asked.fetch_add(1, Ordering::SeqCst);
        let world = self.world.lock().unwrap();
        let (first, last) = match request {
            BackupRequest::Begin => (2, world.frames.len() as u64 + 1),
            BackupRequest::Resume { first, last } => (first, last),
        };
        let (sender, frames) = tokio::sync::mpsc::channel(1 + world.frames.len());
        let wanted = world.frames.iter().filter(|frame| (first..=last).contains(&frame.header().index));
        let most = match self.faults.backup_stops_after.load(Ordering::SeqCst) {
            0 => usize::MAX,
            most => most,
        };
        let corrupt = self.faults.corrupt.load(Ordering::SeqCst);
        for frame in wanted.take(most) {
            let frame = if corrupt { corrupted(frame) } else { frame.clone() };
            sender.try_send(Ok(vec![frame])).unwrap();
        }
        let (first_offset, next_offset) = (world.first_offset, world.payloads.len() as u64);
        let head = BackupHead { cluster: CLUSTER, first, last, first_offset, next_offset, checkpoint_bytes: 0 };
        Ok(OpenedBackup { head, checkpoint: Default::default(), frames })
    }

    fn leader(&self) -> watch::Receiver<LeaderView> {
        self.view.clone()
    }
}

impl Node {
    fn report(&self, world: &World, leads: bool) -> NodeReport {
        let address = world.addresses[&self.name].to_string();
        let status = NodeStatus {
            id: Some(1),
            role: if leads { NodeRole::Leader } else { NodeRole::Follower },
            state: Some(NodeState::Ok),
            term: Some(world.term),
            ..NodeStatus::unreachable(self.name.clone(), Some(address))
        };
        let members = world.addresses.iter().enumerate().map(|(id, (name, address))| MemberReport {
            name: name.clone(),
            id: id as u64 + 1,
            address: Some(address.to_string()),
            peer_address: None,
        });
        NodeReport {
            status,
            cluster_id: format!("{CLUSTER:032x}"),
            leader: world.leader.clone(),
            members: members.collect(),
        }
    }
}

pub struct FakeFeed {
    next: u64,
    until: Option<u64>,
    caught_up: bool,
    node: Node,
    committed: watch::Receiver<u64>,
}

impl FakeFeed {
    fn step(&mut self) -> Option<FeedItem> {
        let world = self.node.world.lock().unwrap();
        if self.until.is_some_and(|until| self.next >= until) {
            return Some(FeedItem::Done);
        }
        if self.next < world.first_offset {
            let from = std::mem::replace(&mut self.next, world.first_offset);
            return Some(FeedItem::Trimmed { from, to: self.next });
        }
        let damaged = self.node.faults.damaged_from.load(Ordering::SeqCst);
        if damaged > 0 && self.next >= damaged {
            return Some(FeedItem::End(Failure::refused(ErrorCode::Damaged, format!("{} is damaged", self.node.name))));
        }
        let at = world.frames.partition_point(|frame| frame.next_offset() <= self.next);
        let Some(frame) = world.frames.get(at) else {
            let first = !std::mem::replace(&mut self.caught_up, true);
            return first.then_some(FeedItem::CaughtUp { next_offset: self.next });
        };
        self.caught_up = false;
        self.next = frame.next_offset();
        self.node.faults.frames_given.fetch_add(1, Ordering::SeqCst);
        let frame = if self.node.faults.corrupt.load(Ordering::SeqCst) { corrupted(frame) } else { frame.clone() };
        if self.node.faults.skip_frame.swap(false, Ordering::SeqCst) {
            return Some(FeedItem::Frames(Vec::new()));
        }
        Some(FeedItem::Frames(vec![frame]))
    }
}

impl Feed for FakeFeed {
    async fn next(&mut self, _max_bytes: usize) -> FeedItem {
        loop {
            self.committed.borrow_and_update();
            if let Some(item) = self.step() {
                return item;
            }
            match tokio::time::timeout(Duration::from_secs(1), self.committed.changed()).await {
                Ok(Ok(())) => {}
                _ => return FeedItem::Progress { next_offset: self.next },
            }
        }
    }
}

fn corrupted(frame: &Frame) -> Frame {
    let mut body = BytesMut::from(&frame.body().concat()[..]);
    let last = body.len() - 1;
    body[last] ^= 1;
    let head = frame.head()[..].try_into().unwrap();
    Frame::from_parts(&head, Body::from(body.freeze())).unwrap()
}

/// Makes `leader` lead in a new term, and tells every node.
pub fn elect(world: &Arc<Mutex<World>>, leader: Option<&str>) {
    let mut world = world.lock().unwrap();
    world.term += 1;
    world.leader = leader.map(str::to_owned);
    let view = world.view();
    world.views.iter().for_each(|views| drop(views.send_replace(view.clone())));
}

/// A cluster of fake nodes on loopback.
pub struct Cluster {
    pub world: Arc<Mutex<World>>,
    pub nodes: BTreeMap<String, (Node, Option<Server>, SocketAddr)>,
    committed: Arc<watch::Sender<u64>>,
    pub authority: Authority,
    tune: fn(&mut ServerConfig),
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts nodes n1..nN; n1 leads.
    pub async fn start(count: usize) -> Cluster {
        Cluster::tuned(count, |_| {}).await
    }

    /// The same with other bounds.
    pub async fn tuned(count: usize, tune: fn(&mut ServerConfig)) -> Cluster {
        let mut cluster = Cluster {
            world: Arc::default(),
            nodes: BTreeMap::new(),
            committed: Arc::new(watch::Sender::new(0)),
            authority: Authority::create(CLUSTER).unwrap(),
            tune,
            dir: tempfile::tempdir().unwrap(),
        };
        cluster.authority.save(cluster.dir.path()).unwrap();
        for id in 1..=count {
            let name = format!("n{id}");
            let issued = cluster.authority.issue_node(&name, id as u64, ["127.0.0.1"]).unwrap();
            issued.save(cluster.path(&format!("{name}.crt")), cluster.path(&format!("{name}.key"))).unwrap();
            let (views, view) = watch::channel(LeaderView::nobody(0));
            cluster.world.lock().unwrap().views.push(views);
            let node = Node {
                name: name.clone(),
                world: cluster.world.clone(),
                committed: cluster.committed.clone(),
                faults: Arc::default(),
                view,
            };
            let server = cluster.listen(&node, "127.0.0.1:0".parse().unwrap()).await;
            let address = server.local_address();
            cluster.world.lock().unwrap().addresses.insert(name.clone(), address);
            cluster.nodes.insert(name, (node, Some(server), address));
        }
        elect(&cluster.world, Some("n1"));
        cluster
    }

    async fn listen(&self, node: &Node, address: SocketAddr) -> Server {
        let tls = TlsIdentity::load(self.files(&node.name)).unwrap();
        // A server that was dropped gives its port back when quinn's task has ended.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut config = ServerConfig::new(address);
            (self.tune)(&mut config);
            match Server::start(config, tls.clone(), node.clone()).await {
                Ok(server) => return server,
                Err(cause) => assert!(Instant::now() < deadline, "{cause}"),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends a node at once.
    pub fn kill(&mut self, name: &str) {
        drop(self.nodes.get_mut(name).unwrap().1.take());
    }

    /// Ends a node in order.
    pub async fn stop(&mut self, name: &str) {
        let server = self.nodes.get_mut(name).unwrap().1.take();
        server.unwrap().close().await;
    }

    /// Starts it again at its address.
    pub async fn restart(&mut self, name: &str) {
        let (node, _, address) = &self.nodes[name];
        let server = self.listen(node, *address).await;
        self.nodes.get_mut(name).unwrap().1 = Some(server);
    }

    pub fn elect(&self, leader: Option<&str>) {
        elect(&self.world, leader);
    }

    /// Nodes tell clients the address of another node for this one.
    pub fn misdirect(&self, name: &str, to: &str) {
        let address = self.nodes[to].2;
        self.world.lock().unwrap().addresses.insert(name.to_owned(), address);
    }

    pub fn faults(&self, name: &str) -> &Faults {
        &self.nodes[name].0.faults
    }

    pub fn server(&self, name: &str) -> &Server {
        self.nodes[name].1.as_ref().unwrap()
    }

    /// A client configuration with a fresh certificate.
    pub fn config(&self, name: &str, role: Role) -> ClientConfig {
        let (certificate, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        self.authority.issue_client(name, role).unwrap().save(&certificate, &key).unwrap();
        let endpoints = self.nodes.iter().map(|(name, (.., address))| (name.clone(), address.to_string())).collect();
        let mut config = ClientConfig::new(endpoints, self.path("ca.crt"), certificate, key);
        config.timeout = Duration::from_secs(5);
        config
    }

    pub async fn client(&self) -> Client {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("c{}", NUMBER.fetch_add(1, Ordering::SeqCst));
        self.connect(self.config(&name, Role::Admin)).await.unwrap()
    }

    pub async fn connect(&self, config: ClientConfig) -> Result<Client, ConnectError> {
        Client::connect(config).await
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn files(&self, name: &str) -> TlsFiles {
        TlsFiles {
            ca: self.path("ca.crt"),
            certificate: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
        }
    }

    /// Everything stored, as text.
    pub fn stored(&self) -> Vec<String> {
        let world = self.world.lock().unwrap();
        world.payloads.iter().map(|payload| String::from_utf8_lossy(payload).into_owned()).collect()
    }
}
