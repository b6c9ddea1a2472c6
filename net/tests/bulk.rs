//! Fetching by number from a real listener, and from one that lies.
#![cfg(feature = "peer")]
#![allow(clippy::unwrap_used, missing_docs, dead_code, reason = "tests")]

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{CLUSTER, House, PATIENCE, bytes, entry, incarnation, name};
use graven_frame::{Body, Chain, Frame, Group, HEADER_BYTES, HeaderSpec, Kind};
use graven_net::bulk::{
    ALPN_BULK, BATCH_BYTES, BulkClient, BulkConfig, BulkError, BulkIdentity, BulkSource, CheckpointReader, Only,
    Refusal, STREAMS_MAX, Wanted,
};
use graven_net::peer::Roster;
use graven_net::server::{
    AppendReply, Busy, Caller, ErrorCode, Failure, Feed, FeedItem, LeaderView, Opened, Request, Response, Server,
    ServerConfig, Service, SubscribeRequest,
};
use graven_net::tls::{ALPN_CLIENT, Authority, Role, TlsIdentity, server_name};
use graven_raft::NodeId;
use tokio::sync::watch;
use tokio::time::timeout;

mod common;

/// A listener that has nothing for clients.
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

/// A log in memory, with a hole and an end, and a checkpoint that can be replaced.
struct Log {
    frames: Vec<Frame>,
    damaged: Option<u64>,
    committed: u64,
    given: AtomicU64,
    checkpoint: Mutex<Option<(Vec<u8>, Bytes)>>,
    newest: u64,
}

impl Log {
    fn new(frames: Vec<Frame>) -> Log {
        let committed = frames.len() as u64;
        Log { frames, damaged: None, committed, given: AtomicU64::new(0), checkpoint: Mutex::default(), newest: 3 }
    }
}

impl BulkSource for Log {
    fn local(&self) -> BulkIdentity {
        BulkIdentity { cluster: CLUSTER, node: 1, incarnation: incarnation(1) }
    }

    fn roster(&self) -> Roster {
        let address = "127.0.0.1:1".parse().unwrap();
        let members: BTreeMap<_, _> = (1..=3).map(|id| entry(id, address)).collect();
        Roster { members, newest: NodeId(self.newest) }
    }

    fn frames(&self, wanted: Wanted, max_bytes: usize) -> Result<Vec<Frame>, Refusal> {
        let end = if wanted.only == Only::Committed { self.committed } else { self.frames.len() as u64 };
        if self.damaged == Some(wanted.first) {
            return Err(Refusal::Damaged { index: wanted.first });
        }
        if wanted.first > end {
            return Err(Refusal::NotYet { last: end });
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        for frame in &self.frames[wanted.first as usize - 1..wanted.last.min(end) as usize] {
            bytes += frame.encoded_len();
            if (bytes > max_bytes && !found.is_empty()) || self.damaged == Some(frame.header().index) {
                break;
            }
            found.push(frame.clone());
        }
        self.given.fetch_add(found.iter().map(|frame| frame.encoded_len() as u64).sum(), Ordering::SeqCst);
        Ok(found)
    }

    fn checkpoint(&self) -> Result<Box<dyn CheckpointReader>, Refusal> {
        let (meta, bytes) = self.checkpoint.lock().unwrap().clone().ok_or(Refusal::NoCheckpoint)?;
        Ok(Box::new(File(meta, bytes)))
    }
}

struct File(Vec<u8>, Bytes);

impl CheckpointReader for File {
    fn meta(&self) -> &[u8] {
        &self.0
    }

    fn size(&self) -> u64 {
        self.1.len() as u64
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        into.copy_from_slice(&self.1[at..at + into.len()]);
        Ok(())
    }
}

fn chained(count: u64, body_bytes: usize) -> Vec<Frame> {
    let mut chain = Chain::START;
    let make = |index| {
        let body = Body::from(bytes(index, body_bytes));
        let crc = body.crc();
        let spec = HeaderSpec { kind: Kind::Session, term: 3, index, base_offset: 0, count: 0, timestamp_ms: index };
        let frame = Frame::seal(spec, chain, body, crc);
        chain = frame.header().chain;
        frame
    };
    (1..=count).map(make).collect()
}

async fn serve(house: &House, log: Arc<Log>) -> Server {
    let config = ServerConfig::new("127.0.0.1:0".parse().unwrap());
    Server::start_with_bulk(config, house.node(1), NoService, log).await.unwrap()
}

fn config(address: SocketAddr, from: u64) -> BulkConfig {
    let local = BulkIdentity { cluster: CLUSTER, node: from, incarnation: incarnation(from) };
    let mut config = BulkConfig::new(address.to_string(), name(1), 1, local);
    // A busy machine is not a silent node.
    (config.dial_timeout, config.stall_timeout) = (PATIENCE, PATIENCE);
    config
}

async fn connect(house: &House, server: &Server) -> BulkClient {
    BulkClient::connect(config(server.local_address(), 2), &house.node(2)).await.unwrap()
}

fn all(first: u64, last: u64) -> Wanted {
    Wanted { first, last, only: Only::Committed }
}

/// What a fetch gives, and with what it ends.
async fn fetch(client: &BulkClient, wanted: Wanted, max_bytes: u64) -> (Vec<Frame>, Option<BulkError>) {
    let mut stream = client.frames(wanted, max_bytes).await.unwrap();
    let mut frames = Vec::new();
    loop {
        match timeout(PATIENCE, stream.next()).await.expect("it goes on") {
            Some(Ok(frame)) => frames.push(frame),
            Some(Err(error)) => {
                assert!(stream.next().await.is_none(), "nothing follows an error");
                return (frames, Some(error));
            }
            None => return (frames, None),
        }
    }
}

fn refusal(error: Option<BulkError>) -> Refusal {
    match error {
        Some(BulkError::Refused { refusal, .. }) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_come_whole_and_in_order_and_a_lost_fetch_goes_on_elsewhere() {
    let house = House::new();
    let frames = chained(300, 20_000);
    let log = Arc::new(Log::new(frames.clone()));
    let server = serve(&house, log).await;
    let client = connect(&house, &server).await;
    let (found, error) = fetch(&client, all(1, 300), u64::MAX).await;
    assert_eq!((found == frames, error), (true, None));
    let (found, error) = fetch(&client, all(7, 7), u64::MAX).await;
    assert_eq!((found.as_slice(), error), (&frames[6..7], None));
    let (found, error) = fetch(&client, all(10, 300), 50_000).await;
    assert_eq!((found.len(), error), (3, None), "as many as were wanted, the last one over the edge");

    let mut stream = client.frames(all(1, 300), u64::MAX).await.unwrap();
    let mut got = Vec::new();
    for _ in 0..100 {
        got.push(stream.next().await.unwrap().unwrap());
    }
    server.close().await;
    let lost = loop {
        match stream.next().await.unwrap() {
            Ok(frame) => got.push(frame),
            Err(error) => break error,
        }
    };
    assert!(matches!(lost, BulkError::Unreachable { .. }), "{lost}");
    let server = serve(&house, Arc::new(Log::new(frames.clone()))).await;
    let client = connect(&house, &server).await;
    let (rest, error) = fetch(&client, all(got.len() as u64 + 1, 300), u64::MAX).await;
    assert_eq!(error, None);
    got.extend(rest);
    assert!(got == frames, "nothing twice, nothing left out");
}

/// Dropped between two polls, [`graven_net::bulk::FrameStream::next`] loses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_is_given_up_loses_nothing() {
    let house = House::new();
    let frames = chained(200, 9_000);
    let server = serve(&house, Arc::new(Log::new(frames.clone()))).await;
    let client = connect(&house, &server).await;
    let mut stream = client.frames(all(1, 200), u64::MAX).await.unwrap();
    let mut got = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Most of these waits end before a frame is there.
        match timeout(Duration::from_micros(50), stream.next()).await {
            Ok(Some(frame)) => got.push(frame.unwrap()),
            Ok(None) => break,
            Err(_) => assert!(Instant::now() < deadline),
        }
    }
    assert!(got == frames);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_does_not_have_is_refused_by_name() {
    let house = House::new();
    let mut log = Log::new(chained(20, 100));
    (log.damaged, log.committed) = (Some(5), 15);
    let server = serve(&house, Arc::new(log)).await;
    let client = connect(&house, &server).await;
    let (found, error) = fetch(&client, all(2, 20), u64::MAX).await;
    assert_eq!((found.len(), refusal(error)), (3, Refusal::Damaged { index: 5 }), "what is whole is given first");
    let (found, error) = fetch(&client, all(14, 20), u64::MAX).await;
    assert_eq!((found.len(), refusal(error)), (2, Refusal::NotYet { last: 15 }));
    let (found, error) = fetch(&client, Wanted { only: Only::Durable, ..all(14, 20) }, u64::MAX).await;
    assert_eq!((found.len(), error), (7, None));
    for nonsense in [all(0, 3), all(4, 3)] {
        assert!(matches!(refusal(fetch(&client, nonsense, 1).await.1), Refusal::Malformed(_)));
    }
    let none = client.checkpoint(None).await.err();
    assert_eq!(refusal(none), Refusal::NoCheckpoint);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_nodes_of_this_cluster_are_given_anything() {
    let house = House::new();
    let server = serve(&house, Arc::new(Log::new(chained(3, 10)))).await;
    let address = server.local_address();
    let unwelcome = async |config: BulkConfig, tls: &TlsIdentity| match BulkClient::connect(config, tls).await {
        Err(BulkError::Unwelcome { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let client = house.files("c", &house.authority.issue_client("loader", Role::Admin).unwrap());
    let reason = unwelcome(config(address, 2), &TlsIdentity::load(client).unwrap()).await;
    assert!(reason.contains("client loader") && reason.contains("only nodes"), "{reason}");

    let other = Authority::create(0xbad).unwrap();
    let other = House::new().with_authority(other);
    let reason = unwelcome(config(address, 2), &other.node(2)).await;
    assert!(reason.contains("certificate"), "{reason}");

    let mut wrong = config(address, 2);
    wrong.local.cluster = 5;
    assert!(unwelcome(wrong, &house.node(2)).await.contains("cluster"));
    let mut wrong = config(address, 2);
    wrong.local.incarnation = 5;
    assert!(unwelcome(wrong, &house.node(2)).await.contains("incarnation"));
    assert!(unwelcome(config(address, 3), &house.node(2)).await.contains("hello says node 3"));
    let mut wrong = config(address, 2);
    wrong.node = 3;
    assert!(unwelcome(wrong, &house.node(2)).await.contains("not node 3"));
    let mut wrong = config(address, 2);
    wrong.name = name(2);
    assert!(unwelcome(wrong, &house.node(2)).await.contains("another one was expected"));
    // A node that the roster does not know yet was taken in since.
    let newer = BulkClient::connect(config(address, 4), &house.node(4)).await.unwrap();
    assert_eq!(fetch(&newer, all(1, 3), u64::MAX).await.0.len(), 3);
}

/// The other way round: a node's certificate opens nothing for clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_no_client() {
    let house = House::new();
    let server = serve(&house, Arc::new(Log::new(chained(3, 10)))).await;
    let connection = raw(&house.node(2), server.local_address(), ALPN_CLIENT).await.1;
    let reason = timeout(PATIENCE, connection.closed()).await.unwrap().to_string();
    assert!(reason.contains("no client of this cluster"), "{reason}");
}

async fn raw(tls: &TlsIdentity, to: SocketAddr, alpn: &[u8]) -> (quinn::Endpoint, quinn::Connection) {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let quic = quinn::ClientConfig::new(tls.current().quic_client(alpn).unwrap());
    let connection = endpoint.connect_with(quic, to, &server_name(&name(1))).unwrap().await.unwrap();
    (endpoint, connection)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_costs_its_sender_the_connection_and_nobody_else_anything() {
    let house = House::new();
    let server = serve(&house, Arc::new(Log::new(chained(3, 10)))).await;
    let mut huge = b"GRVBULK\0\x01\0\x01\0".to_vec();
    huge.extend_from_slice(&u32::MAX.to_le_bytes());
    let mut newer = b"GRVBULK\0\x07\0\x09\0".to_vec();
    newer.extend_from_slice(&[0; 4]);
    for (hello, word) in [(bytes(1, 400).to_vec(), "begin"), (huge, "limit"), (newer, "versions")] {
        let (_endpoint, connection) = raw(&house.node(2), server.local_address(), ALPN_BULK).await;
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        // It may be refused before all of it is sent.
        let _ = send.write_all(&hello).await;
        let _ = send.finish();
        let reply = timeout(PATIENCE, receive.read_to_end(4096)).await.unwrap().unwrap_or_default();
        let closed = timeout(PATIENCE, connection.closed()).await.unwrap().to_string();
        assert!(closed.contains(word), "{word}: {closed} {reply:?}");
    }
    // Garbage where a request should be is answered on its own stream.
    let client = connect(&house, &server).await;
    let (_endpoint, connection) = raw(&house.node(2), server.local_address(), ALPN_BULK).await;
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&hello_bytes()).await.unwrap();
    send.finish().unwrap();
    receive.read_to_end(4096).await.unwrap();
    let mut long = u32::MAX.to_le_bytes().to_vec();
    long.extend_from_slice(&[7; 100]);
    let mut unknown = 2_u32.to_le_bytes().to_vec();
    unknown.extend_from_slice(&[250, 9]);
    for request in [long, unknown, vec![1, 0]] {
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(&request).await.unwrap();
        send.finish().unwrap();
        let answer = timeout(PATIENCE, receive.read_to_end(4096)).await.unwrap().unwrap();
        assert_eq!(answer[0], 3, "a refusal: {answer:?}");
    }
    assert_eq!(fetch(&client, all(1, 3), u64::MAX).await.0.len(), 3, "others are served all the same");
}

/// The hello of node 2 to node 1, laid out by hand.
fn hello_bytes() -> Vec<u8> {
    let body = graven_net::wire::encode::<2048>(&(CLUSTER, 2_u64, 1_u64, incarnation(2))).unwrap();
    let mut hello = b"GRVBULK\0\x01\0\x01\0".to_vec();
    hello.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    hello.extend_from_slice(&body);
    hello
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_a_window_and_not_the_log() {
    let house = House::new();
    let frames = chained(400, 100_000);
    let log = Arc::new(Log::new(frames.clone()));
    let server = serve(&house, log.clone()).await;
    let client = connect(&house, &server).await;
    let mut stream = client.frames(all(1, 400), u64::MAX).await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    let mut seen = 0;
    // Until the node has sent what it may.
    while log.given.load(Ordering::SeqCst) != seen {
        seen = log.given.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // The receiver's window, the sender's, what is in hand on both sides.
    let bound = (512 << 10) + (2 << 20) + 4 * BATCH_BYTES as u64;
    assert!(seen < bound, "{seen} bytes were taken from the log for a reader that stands still; bound {bound}");
    let mut got = 1;
    while let Some(frame) = stream.next().await {
        got += 1;
        assert_eq!(frame.unwrap(), frames[got - 1]);
    }
    assert_eq!(got, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_too_many_is_told_to_come_later() {
    let house = House::new();
    let server = serve(&house, Arc::new(Log::new(chained(200, 100_000)))).await;
    let client = connect(&house, &server).await;
    let mut held = Vec::new();
    for _ in 0..STREAMS_MAX {
        let mut stream = client.frames(all(1, 200), u64::MAX).await.unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        held.push(stream);
    }
    assert_eq!(refusal(fetch(&client, all(1, 1), 1).await.1), Refusal::Busy);
    drop(held);
    let deadline = Instant::now() + PATIENCE;
    while fetch(&client, all(1, 1), 1).await.1.is_some() {
        assert!(Instant::now() < deadline, "places are given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_resumed_as_long_as_it_is_the_same() {
    let house = House::new();
    let log = Arc::new(Log::new(chained(1, 10)));
    let old = bytes(1, 3 * BATCH_BYTES + 17);
    *log.checkpoint.lock().unwrap() = Some((b"old".to_vec(), old.clone()));
    let server = serve(&house, log.clone()).await;
    let client = connect(&house, &server).await;
    let mut stream = client.checkpoint(None).await.unwrap();
    assert_eq!((stream.meta(), stream.size(), stream.at()), (&b"old"[..], old.len() as u64, 0));
    let mut got = stream.next().await.unwrap().unwrap().to_vec();
    drop(stream);
    let mut stream = client.checkpoint(Some((b"old", got.len() as u64))).await.unwrap();
    assert_eq!(stream.at(), got.len() as u64);
    while let Some(piece) = stream.next().await {
        got.extend_from_slice(&piece.unwrap());
    }
    assert!(got == old);
    *log.checkpoint.lock().unwrap() = Some((b"new".to_vec(), bytes(2, 1000)));
    let mut stream = client.checkpoint(Some((b"old", 500))).await.unwrap();
    assert_eq!((stream.meta(), stream.at()), (&b"new"[..], 0), "another one starts anew");
    assert_eq!(stream.next().await.unwrap().unwrap(), bytes(2, 1000));
    assert!(stream.next().await.is_none());
}

/// A node of this cluster that answers with these bytes, whatever it is asked.
async fn liar(house: &House, answer: Vec<u8>) -> (quinn::Endpoint, SocketAddr) {
    let quic = quinn::ServerConfig::with_crypto(house.node(1).current().quic_server(ALPN_BULK).unwrap());
    let endpoint = quinn::Endpoint::server(quic, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = endpoint.local_addr().unwrap();
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        let connection = accepting.accept().await.unwrap().await.unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        receive.read_to_end(4096).await.unwrap();
        // Welcome {version, node, incarnation}.
        let body = graven_net::wire::encode::<64>(&(0_u32, 1_u16, 1_u64, incarnation(1))).unwrap();
        send.write_all(&u32::try_from(body.len()).unwrap().to_le_bytes()).await.unwrap();
        send.write_all(&body).await.unwrap();
        send.finish().unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        receive.read_to_end(1 << 20).await.unwrap();
        // The reader stops as soon as it has seen enough.
        let _ = send.write_all(&answer).await;
        connection.closed().await;
    });
    (endpoint, address)
}

fn block(frame: &Frame) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&u32::try_from(frame.encoded_len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(frame.head());
    frame.body().chunks().iter().for_each(|chunk| bytes.extend_from_slice(chunk));
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_wrong_is_handed_on() {
    let house = House::new();
    let frames = chained(3, 500);
    let good = block(&frames[0]);
    let flipped = |at: usize| {
        let mut bytes = block(&frames[1]);
        bytes[at] ^= 1;
        bytes
    };
    let unchained = {
        let body = Body::from(bytes(9, 500));
        let crc = body.crc();
        let spec = HeaderSpec { kind: Kind::Session, term: 3, index: 2, base_offset: 0, count: 0, timestamp_ms: 2 };
        block(&Frame::seal(spec, Chain(77), body, crc))
    };
    let padded = {
        let mut bytes = block(&frames[1]);
        bytes.push(0);
        let len = u32::try_from(frames[1].encoded_len() + 1).unwrap();
        bytes[1..5].copy_from_slice(&len.to_le_bytes());
        bytes
    };
    let lies: Vec<(&str, Vec<u8>)> = vec![
        ("a flipped body", flipped(5 + HEADER_BYTES + 100)),
        ("a flipped header", flipped(5 + 30)),
        ("another number", block(&frames[2])),
        ("another chain", unchained),
        ("a longer block than its frame", padded),
        ("a length of four gigabytes", vec![1, 255, 255, 255, 255]),
        ("an unknown block", vec![77, 0, 0, 0, 0]),
        ("a checkpoint's bytes", vec![5, 1, 0, 0, 0, 9]),
        ("a refusal that is none", vec![3, 2, 0, 0, 0, 255, 255]),
    ];
    for (what, lie) in lies {
        let (_endpoint, address) = liar(&house, [good.clone(), lie].concat()).await;
        let client = BulkClient::connect(config(address, 2), &house.node(2)).await.unwrap();
        let (found, error) = fetch(&client, all(1, 3), u64::MAX).await;
        assert!(found == frames[..1], "{what}: what was good before it is given");
        assert!(matches!(error, Some(BulkError::Malformed { .. })), "{what}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_falls_silent_is_given_up() {
    let house = House::new();
    let frames = chained(2, 500);
    let half = [block(&frames[0]), block(&frames[1])[..200].to_vec()].concat();
    let (_endpoint, address) = liar(&house, half).await;
    let mut config = config(address, 2);
    config.stall_timeout = Duration::from_millis(300);
    let client = BulkClient::connect(config, &house.node(2)).await.unwrap();
    let (found, error) = fetch(&client, all(1, 3), u64::MAX).await;
    assert_eq!(found.len(), 1);
    assert!(
        matches!(&error, Some(BulkError::Unreachable { reason, .. }) if reason.contains("nothing for")),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_does_not_outrun_its_rate() {
    let house = House::new();
    let server = serve(&house, Arc::new(Log::new(chained(20, 50_000)))).await;
    let mut config = config(server.local_address(), 2);
    config.bytes_per_second = 2_000_000;
    let client = BulkClient::connect(config, &house.node(2)).await.unwrap();
    let started = Instant::now();
    let (found, error) = fetch(&client, all(1, 20), u64::MAX).await;
    assert_eq!((found.len(), error), (20, None));
    // A megabyte at two a second; the last read need not wait for itself.
    let least = Duration::from_millis(300);
    assert!(started.elapsed() >= least, "{:?}", started.elapsed());
}

/// A listener without a source does not offer the protocol.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_source_cannot_be_asked() {
    let house = House::new();
    let config_of = ServerConfig::new("127.0.0.1:0".parse().unwrap());
    let server = Server::start(config_of, house.node(1), NoService).await.unwrap();
    let error = BulkClient::connect(config(server.local_address(), 2), &house.node(2)).await.err();
    assert!(matches!(error, Some(BulkError::Unreachable { .. })), "{error:?}");
}
