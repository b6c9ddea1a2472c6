//! Fetching from real listeners that break off, hold damage, or have nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use graven_frame::{Frame, Group};
use graven_net::bulk::{BulkSource, CheckpointReader, SnapshotReader, Wanted};
use graven_net::peer::{Roster, RosterEntry};
use graven_net::server::{
    AppendReply, Busy, Caller, ErrorCode, Failure, Feed, FeedItem, LeaderView, Opened, Request, Response, Server,
    ServerConfig, Service, SubscribeRequest,
};
use graven_net::tls::{Authority, TlsFiles};
use graven_raft::NodeId;
use graven_snapshot::body::{BodyWriter, CHUNK_BYTES, Header, Name, verify};
use tokio::sync::watch;

use super::*;
use crate::node::snapshot_source::SnapshotSource;

mod killed;
mod speed;

const CLUSTER: u128 = 0x9ec5;
/// The node that fetches.
const SELF: u64 = 9;
const MIB: u64 = CHUNK_BYTES as u64;

struct NoService;

struct NoFeed;

impl Feed for NoFeed {
    async fn next(&mut self, _max_bytes: usize) -> FeedItem {
        FeedItem::Done
    }
}

impl Service for NoService {
    type Feed = NoFeed;

    fn append(&self, group: Group, reply: AppendReply) -> Result<(), Busy> {
        Err(Busy(Box::new((group, reply))))
    }

    async fn ready(&self) {
        std::future::pending().await
    }

    async fn unary(&self, _caller: Caller, _request: Request) -> Response {
        Response::Failed(Failure::refused(ErrorCode::Internal, "nothing here"))
    }

    async fn subscribe(&self, _caller: Caller, _request: SubscribeRequest) -> Result<Opened<NoFeed>, Failure> {
        Err(Failure::refused(ErrorCode::Internal, "nothing here"))
    }

    fn leader(&self) -> watch::Receiver<LeaderView> {
        watch::channel(LeaderView::default()).1
    }
}

/// A node with snapshots and nothing else, which counts the chunks it gives.
struct Giver {
    node: u64,
    source: SnapshotSource,
    given: Arc<AtomicU64>,
}

impl BulkSource for Giver {
    fn local(&self) -> BulkIdentity {
        BulkIdentity { cluster: CLUSTER, node: self.node, incarnation: 1 }
    }

    fn roster(&self) -> Roster {
        let entry =
            |id: u64| (NodeId(id), RosterEntry { name: format!("n{id}"), address: String::new(), incarnation: 0 });
        Roster { members: (1..=SELF).map(entry).collect::<BTreeMap<_, _>>(), newest: NodeId(SELF) }
    }

    fn frames(&self, _wanted: Wanted, _max_bytes: usize) -> Result<Vec<Frame>, Refusal> {
        Err(Refusal::Busy)
    }

    fn checkpoint(&self) -> Result<Box<dyn CheckpointReader>, Refusal> {
        Err(Refusal::NoCheckpoint)
    }

    fn snapshots(&self) -> Result<Vec<Bytes>, Refusal> {
        self.source.heads()
    }

    fn snapshot(&self, wanted: SnapshotWanted) -> Result<Box<dyn SnapshotReader>, Refusal> {
        Ok(Box::new(Counted(self.source.open(wanted)?, self.given.clone())))
    }
}

struct Counted(Box<dyn SnapshotReader>, Arc<AtomicU64>);

impl SnapshotReader for Counted {
    fn head(&self) -> &[u8] {
        self.0.head()
    }

    fn chunks(&self) -> u64 {
        self.0.chunks()
    }

    fn chunk(&mut self, number: u64) -> Result<Bytes, Refusal> {
        let chunk = self.0.chunk(number)?;
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(chunk)
    }
}

/// A cluster's authority, and a directory for each of its nodes.
struct House {
    authority: Authority,
    dir: tempfile::TempDir,
    lost: Arc<AtomicU64>,
}

impl House {
    fn new() -> House {
        let (authority, dir) = (Authority::create(CLUSTER).unwrap(), tempfile::tempdir().unwrap());
        House { authority, dir, lost: Arc::default() }
    }

    fn disk(&self, node: u64) -> RealDisk {
        let path = self.dir.path().join(format!("n{node}"));
        std::fs::create_dir_all(&path).unwrap();
        RealDisk::open(path)
    }

    fn tls(&self, node: u64) -> TlsIdentity {
        let issued = self.authority.issue_node(&format!("n{node}"), node, ["127.0.0.1"]).unwrap();
        let files = tls_files(self.dir.path(), node);
        std::fs::write(&files.ca, self.authority.certificate_pem()).unwrap();
        std::fs::write(&files.certificate, &issued.certificate_pem).unwrap();
        std::fs::write(&files.key, &issued.key_pem).unwrap();
        TlsIdentity::load(files).unwrap()
    }

    async fn serve(&self, node: u64, address: Option<SocketAddr>, given: &Arc<AtomicU64>) -> (Server, Peer) {
        let config = ServerConfig::new(address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap()));
        let lost = self.lost.clone();
        let lost = Box::new(move |id| lost.store(id, Ordering::SeqCst));
        let giver = Giver { node, source: SnapshotSource::new(self.disk(node), lost), given: given.clone() };
        let server = Server::start_with_bulk(config, self.tls(node), NoService, Arc::new(giver)).await.unwrap();
        let address = server.local_address().to_string();
        (server, Peer { name: format!("n{node}"), id: node, address })
    }

    fn fetcher(&self, bytes_per_second: u64) -> SnapshotFetcher {
        fetcher(self.disk(SELF), self.tls(SELF), bytes_per_second)
    }

    /// Puts the same snapshot on each of these nodes.
    fn put(&self, nodes: &[u64], name: Name, bytes: u64) -> Info {
        let header = Header { cluster: CLUSTER, id: 77, name, offset: 500, timestamp_ms: 3 };
        let body: Vec<u8> = (0..bytes).map(|at| (at.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect();
        let write = |node: &u64| {
            let mut writer = BodyWriter::create(&self.disk(*node), header.clone(), Options::default()).unwrap();
            writer.put(&body).unwrap();
            writer.finish().unwrap()
        };
        let written: Vec<Info> = nodes.iter().map(write).collect();
        written[0].clone()
    }

    fn check(&self, info: &Info) {
        assert_eq!(verify(&self.disk(SELF), &info.header.file_name()).unwrap(), *info);
        let names = std::fs::read_dir(self.disk(SELF).path()).unwrap().count();
        assert_eq!(names, 1, "nothing half is left");
    }
}

fn tls_files(dir: &Path, node: u64) -> TlsFiles {
    let path = |end: &str| dir.join(format!("n{node}.{end}"));
    TlsFiles { ca: path("ca"), certificate: path("crt"), key: path("key") }
}

fn fetcher(disk: RealDisk, tls: TlsIdentity, bytes_per_second: u64) -> SnapshotFetcher {
    SnapshotFetcher {
        local: BulkIdentity { cluster: CLUSTER, node: SELF, incarnation: 1 },
        tls,
        disk,
        bytes_per_second,
        keep_free_bytes: 0,
        pause: Duration::from_millis(20),
    }
}

fn name() -> Name {
    Name::new("orders").unwrap()
}

const ANY: &(dyn Fn(&Info) -> bool + Send + Sync) = &|_| true;

/// A receiver that is killed ten times, each time in the middle: in all the sender gives less than 1.1 times the size, and what is on its way
/// when the receiver dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_killed_ten_times_goes_on_where_it_stood() {
    let house = House::new();
    let info = house.put(&[1], name(), 60 * MIB + 17);
    let given = Arc::default();
    let (server, peer) = house.serve(1, None, &given).await;
    let peers = move || vec![peer.clone()];
    let part = house.disk(SELF).path().join(info.header.file_name() + ".part");
    for life in 1..=10 {
        let fetcher = house.fetcher(0);
        let target = life * 5;
        let fetching = fetcher.fetch(SnapshotWanted::Id(77), &peers, ANY);
        tokio::select! {
            fetched = fetching => panic!("killed too late in life {life}: {fetched:?}"),
            () = async { while given.load(Ordering::SeqCst) < target { tokio::task::yield_now().await } } => {}
        }
        assert!(part.exists(), "what was received is kept");
    }
    let fetched = house.fetcher(0).fetch(SnapshotWanted::Id(77), &peers, ANY).await.unwrap();
    assert_eq!(fetched, info);
    house.check(&info);
    let given = given.load(Ordering::SeqCst);
    println!("{given} chunks read by the sender for a snapshot of {}", info.chunks());
    // Each time at most: one read ahead, one in the window, one on its way to the receiver's disk, one in its buffer.
    assert!(given <= info.chunks() + 10 * 4, "{given} chunks");
    server.close().await;
}

/// The connection is lost again and again because the sender goes away and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_goes_on_at_the_chunk_that_is_missing() {
    let house = House::new();
    let info = house.put(&[1], name(), 40 * MIB);
    let given: Arc<AtomicU64> = Arc::default();
    let (mut server, peer) = house.serve(1, None, &given).await;
    let address = server.local_address();
    let fetcher = house.fetcher(0);
    let fetching = tokio::spawn(async move {
        let peers = || vec![peer.clone()];
        fetcher.fetch(SnapshotWanted::Id(77), &peers, ANY).await
    });
    for life in 1..=5 {
        while given.load(Ordering::SeqCst) < life * 6 {
            tokio::task::yield_now().await;
        }
        server.close().await;
        server = house.serve(1, Some(address), &given).await.0;
    }
    assert_eq!(fetching.await.unwrap().unwrap(), info);
    house.check(&info);
    let given = given.load(Ordering::SeqCst);
    assert!(given <= info.chunks() + 5 * 4, "{given} chunks");
    server.close().await;
}

/// What is damaged at one peer is set aside there, before a wrong byte leaves; the rest comes from another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_at_the_sender_is_set_aside_and_another_peer_is_asked() {
    let house = House::new();
    let info = house.put(&[1, 2], name(), 9 * MIB + 1);
    let file = house.disk(1).path().join(info.header.file_name());
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[5 * CHUNK_BYTES] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (first, second) = (Arc::default(), Arc::default());
    let (one, peer_one) = house.serve(1, None, &first).await;
    let (two, peer_two) = house.serve(2, None, &second).await;
    let peers = move || vec![peer_one.clone(), peer_two.clone()];
    let fetched = house.fetcher(0).fetch(SnapshotWanted::Id(77), &peers, ANY).await.unwrap();
    assert_eq!(fetched, info);
    house.check(&info);
    assert_eq!((first.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (4, 6), "nothing was sent twice");
    assert!(!file.exists() && file.with_extension("damaged").exists());
    assert_eq!(house.lost.load(Ordering::SeqCst), 77);
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_a_machine_is_the_newest_at_or_above_an_offset() {
    let house = House::new();
    let info = house.put(&[1], Name::OWN, MIB);
    let older = Header { offset: 300, id: 5, ..info.header.clone() };
    BodyWriter::create(&house.disk(1), older, Options::default()).unwrap().finish().unwrap();
    let (server, peer) = house.serve(1, None, &Arc::default()).await;
    let peers = move || vec![peer.clone()];
    let fetcher = house.fetcher(0);
    let none = fetcher.fetch(SnapshotWanted::Own { offset: 501 }, &peers, ANY).await;
    assert!(matches!(none, Err(FetchError::Nobody(_))), "{none:?}");
    assert_eq!(fetcher.fetch(SnapshotWanted::Own { offset: 200 }, &peers, ANY).await.unwrap(), info);
    house.check(&info);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_has_or_what_does_not_fit_is_told_in_a_sentence() {
    let house = House::new();
    let info = house.put(&[1], name(), 10);
    let (server, peer) = house.serve(1, None, &Arc::default()).await;
    let there = peer.clone();
    let peers = move || vec![there.clone()];
    let fetcher = house.fetcher(0);
    let missing = fetcher.fetch(SnapshotWanted::Id(78), &peers, ANY).await.unwrap_err().to_string();
    assert!(missing.contains("n1") && missing.contains("no such snapshot"), "{missing}");
    let other = fetcher.fetch(SnapshotWanted::Id(77), &peers, &|info| info.digest == 1).await.unwrap_err().to_string();
    assert!(other.contains("n1") && other.contains("another snapshot"), "{other}");
    assert_eq!(std::fs::read_dir(house.disk(SELF).path()).unwrap().count(), 0);
    server.close().await;
    let gone = Peer { address: "127.0.0.1:9".to_owned(), ..peer };
    let mut fetcher = house.fetcher(0);
    fetcher.pause = Duration::from_millis(1);
    drop(info);
    let later = tokio::time::timeout(Duration::from_secs(60), async {
        // Nobody listens there: dialling takes a few seconds each time, so one answer is enough here.
        let mut received = None;
        let goal = Goal { wanted: SnapshotWanted::Id(77), fits: ANY };
        matches!(fetcher.ask(&gone, goal, &mut received).await, Err(Ended::Away(_)))
    });
    assert!(later.await.unwrap(), "it may be there later");
}

/// A rate is kept, and the disk's room for the log is not touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_and_the_room_of_the_log_are_kept() {
    let house = House::new();
    let info = house.put(&[1], name(), 3 * MIB);
    let (server, peer) = house.serve(1, None, &Arc::default()).await;
    let peers = move || vec![peer.clone()];
    let mut fetcher = house.fetcher(0);
    fetcher.keep_free_bytes = u64::MAX;
    let full = fetcher.fetch(SnapshotWanted::Id(77), &peers, ANY).await.unwrap_err();
    assert!(matches!(&full, FetchError::Own(error) if error.is_full()), "{full}");
    assert_eq!(std::fs::read_dir(house.disk(SELF).path()).unwrap().count(), 0);
    let start = std::time::Instant::now();
    house.fetcher(6 * MIB).fetch(SnapshotWanted::Id(77), &peers, ANY).await.unwrap();
    // Slower than asked for is no mistake; the last piece is not waited for.
    assert!(start.elapsed() > Duration::from_millis(400), "{:?}", start.elapsed());
    house.check(&info);
    server.close().await;
}
