//! Clients that mean harm, against real listeners: refused or held back, and nobody else is the worse for it.
#![cfg(feature = "peer")]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use attacker::{Attacker, crypto, exchange, host};
use fake::Cluster;
use graven_frame::{Group, GroupBuilder, GroupHeaderSpec};
use graven_net::fuzzing;
use graven_net::protocol::append::encode_prefix;
use graven_net::protocol::{
    ALPN, CLOSE_BUSY, CLOSE_PROTOCOL, CLOSE_UNAUTHENTICATED, MAX_REQUEST_BYTES, Request, StreamKind,
};
use graven_net::server::{Start, SubscribeRequest};
use graven_net::tls::{Authority, Issued, Role, Validity};
use graven_net::wire;
use quinn::ConnectionError;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::time::timeout;

#[path = "common/attacker.rs"]
mod attacker;
mod fake;

fn is_long() -> bool {
    std::env::var_os("GRAVEN_LONG").is_some()
}

fn with(issued: &Issued) -> Arc<QuicClientConfig> {
    crypto(ALPN, Some((&issued.certificate_pem, &issued.key_pem)))
}

/// An attacker with a client's certificate of this cluster.
fn insider(cluster: &Cluster, from: u8, name: &str, role: Role) -> Attacker {
    Attacker::new(host(from), with(&cluster.authority.issue_client(name, role).unwrap()))
}

fn closed_with(reason: &ConnectionError) -> Option<u64> {
    match reason {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code.into_inner()),
        _ => None,
    }
}

fn tagged(kind: StreamKind, bytes: &[u8]) -> Vec<u8> {
    [&[kind as u8][..], bytes].concat()
}

fn subscribe_from_start() -> Vec<u8> {
    let request = SubscribeRequest { start: Start::Beginning, until: None, skip_trimmed: true, resume: false };
    tagged(StreamKind::Subscribe, &wire::encode::<64>(&request).unwrap())
}

fn group(session: u64, sequence: u64, payload: &[u8]) -> Group {
    let mut builder = GroupBuilder::new();
    builder.push(b"", payload).unwrap();
    builder.finish(GroupHeaderSpec { session: Some(session), sequence: Some(sequence), ..GroupHeaderSpec::default() })
}

fn on_stream(group: &Group) -> Vec<u8> {
    [&encode_prefix(group.body().len(), group.crc())[..], &group.body().concat()].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_are_no_clients_of_this_cluster_are_refused() {
    let cluster = Cluster::start(1).await;
    let address = cluster.server("n1").local_address();
    let (day, now) = (Duration::from_secs(86_400), SystemTime::now());
    let last_year = Validity { not_before: now - day * 400, not_after: now - day * 30 };
    let next_year = Validity { not_before: now + day * 300, not_after: now + day * 400 };
    let ours = |validity| Authority::load(cluster.path("")).unwrap().with_validity(validity);
    let client = |authority: &Authority| with(&authority.issue_client("c", Role::Admin).unwrap());
    let cases = [
        ("none", crypto(ALPN, None)),
        ("another authority of the same cluster id", client(&Authority::create(fake::CLUSTER).unwrap())),
        ("another cluster", client(&Authority::create(7).unwrap())),
        ("expired", client(&ours(last_year))),
        ("not yet valid", client(&ours(next_year))),
        ("a node's", with(&cluster.authority.issue_node("n1", 1, ["127.0.0.1"]).unwrap())),
    ];
    for (case, crypto) in cases {
        let refused = Attacker::new(host(2), crypto).client(address).await;
        let reason = refused.err().unwrap_or_else(|| panic!("{case}: taken"));
        let by_tls = matches!(reason, ConnectionError::ConnectionClosed(_));
        assert!(by_tls || closed_with(&reason) == Some(CLOSE_UNAUTHENTICATED.into()), "{case}: {reason}");
    }
    assert_eq!(cluster.server("n1").stats().connections, 0);
    cluster.client().await.append(["fine"]).await.unwrap();
}

/// Carries datagrams between one client and `to`, each `late` after it came. Ends when `stop` is set.
fn far_away(to: SocketAddr, late: Duration, stop: Arc<AtomicBool>) -> SocketAddr {
    let near = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let far = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = near.local_addr().unwrap();
    far.connect(to).unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let (mut waiting, mut client, mut buffer) = (std::collections::VecDeque::new(), None, [0; 65536]);
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            while let Ok((len, from)) = near.recv_from(&mut buffer) {
                client = Some(from);
                waiting.push_back((Instant::now() + late, true, buffer[..len].to_vec()));
            }
            while let Ok(len) = far.recv(&mut buffer) {
                waiting.push_back((Instant::now() + late, false, buffer[..len].to_vec()));
            }
            while waiting.front().is_some_and(|due: &(Instant, bool, Vec<u8>)| due.0 <= Instant::now()) {
                let Some((_, outward, bytes)) = waiting.pop_front() else { break };
                // What is not taken is lost, as on any network.
                let _ = match (outward, client) {
                    (true, _) => far.send(&bytes),
                    (false, Some(client)) => near.send_to(&bytes, client),
                    (false, None) => Ok(0),
                };
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    address
}

/// The port is free when `close` returns: a connection to somebody far away lingers in QUIC for seconds, and does not keep it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_was_closed_gives_its_port_back_at_once() {
    let mut cluster = Cluster::start(1).await;
    let address = cluster.server("n1").local_address();
    let stop = Arc::new(AtomicBool::new(false));
    let relay = far_away(address, Duration::from_millis(200), stop.clone());
    let issued = cluster.authority.issue_client("far", Role::Admin).unwrap();
    let attacker = Attacker::new(host(1), with(&issued));
    let _connection = attacker.client(relay).await.unwrap();
    // And one in the middle of its handshake.
    let unfinished = attacker::begin_handshakes(host(66), address, &client_of_nobody(), 1, Duration::ZERO, &stop);
    assert_eq!(unfinished.sent, 1);
    cluster.stop("n1").await;
    std::net::UdpSocket::bind(address).unwrap();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// Ten thousand in the full size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_finish_do_not_keep_others_out() {
    let cluster = Cluster::tuned(1, |config| config.max_handshakes = 16).await;
    let address = cluster.server("n1").local_address();
    let count = if is_long() { 10_000 } else { 1500 };
    let stranger = client_of_nobody();
    let stop = Arc::new(AtomicBool::new(false));
    let flood = std::thread::spawn({
        let stop = stop.clone();
        move || attacker::begin_handshakes(host(66), address, &stranger, count, Duration::from_micros(400), &stop)
    });
    let mut served = 0;
    while !flood.is_finished() || served == 0 {
        let client = cluster.client().await;
        client.append([format!("r{served}")]).await.unwrap();
        client.close().await;
        served += 1;
    }
    let begun = flood.join().unwrap();
    assert!(begun.sent == count && begun.proven > 0, "{begun:?}");
    assert_eq!(cluster.stored().len(), served);
    println!("{begun:?}, {served} clients served meanwhile");
}

fn client_of_nobody() -> Arc<QuicClientConfig> {
    with(&Authority::create(7).unwrap().issue_client("nobody", Role::Admin).unwrap())
}

/// Every position of every message of a client, with what a byte, a length or a number can be at its worst.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_every_position_harms_nobody() {
    let cluster = Cluster::tuned(1, |config| config.handshake_timeout = Duration::from_secs(20)).await;
    let address = cluster.server("n1").local_address();
    let client = cluster.client().await;
    client.append(["before"]).await.unwrap();
    let attacker = insider(&cluster, 2, "garbage", Role::Append);
    let mut connection = attacker.client(address).await.unwrap();
    let (mut tried, mut closed) = (0, 0);
    // Positions are gone through in full in the long run, else every few of them.
    let step = if is_long() { 1 } else { 5 };
    for message in messages() {
        for at in (0..message.len()).step_by(step) {
            for worst in [&[0xFF][..], &[0], &[0xFF; 8], &(1_u64 << 63).to_le_bytes(), &[253, 0xFF, 0xFF, 0xFF]] {
                let mut bytes = message.clone();
                bytes.iter_mut().skip(at).zip(worst).for_each(|(to, by)| *to = *by);
                if bytes == message || bytes[0] == StreamKind::Hello as u8 {
                    continue;
                }
                // Subscriptions go on by themselves: nobody waits for their end.
                let _ = timeout(Duration::from_millis(20), exchange(&connection, &bytes)).await;
                tried += 1;
                if let Some(reason) = connection.close_reason() {
                    assert_eq!(closed_with(&reason), Some(CLOSE_PROTOCOL.into()), "{reason}");
                    closed += 1;
                    connection = attacker.client(address).await.unwrap();
                }
            }
        }
    }
    client.append(["after"]).await.unwrap();
    assert_eq!(cluster.stored(), ["before", "after"]);
    assert!(closed > 10, "{closed} of {tried}");
    println!("{tried} messages, {closed} connections closed");
}

/// Each message of a client with its kind before it.
fn messages() -> Vec<Vec<u8>> {
    let requests = fuzzing::seeds("client_request").into_iter().filter_map(|seed| match seed[0] {
        1 => Some(tagged(StreamKind::Unary, &seed[1..])),
        2 => Some(tagged(StreamKind::Subscribe, &seed[1..])),
        _ => None,
    });
    // Its CRC is right, and its session is not.
    let group = tagged(StreamKind::Append, &on_stream(&group(77, 1, b"stone")));
    requests.chain([group]).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_that_is_none_ends_the_connection() {
    let cluster = Cluster::tuned(1, |config| config.handshake_timeout = Duration::from_millis(500)).await;
    let address = cluster.server("n1").local_address();
    let attacker = insider(&cluster, 2, "rude", Role::Append);
    let hello = attacker::hello();
    let cases = [
        ("no byte", vec![]),
        ("half of it", hello[..hello.len() / 2].to_vec()),
        ("another kind", tagged(StreamKind::Unary, &hello[1..])),
        ("too long", tagged(StreamKind::Hello, &vec![0; MAX_REQUEST_BYTES + 1])),
        ("a text of 2^63 bytes", [&hello[..4], &[253], &(1_u64 << 63).to_le_bytes()].concat()),
        ("no common version", [&[StreamKind::Hello as u8][..], &[9, 9, 1, 0]].concat()),
    ];
    for (case, bytes) in cases {
        let connection = attacker.dial(address).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        if case != "half of it" && case != "no byte" {
            send.finish().unwrap();
        }
        let reason = timeout(attacker::PATIENCE, connection.closed()).await.unwrap_or_else(|_| panic!("{case}: open"));
        assert_eq!(closed_with(&reason), Some(CLOSE_PROTOCOL.into()), "{case}: {reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_never_end_or_are_too_long_end_the_connection() {
    let cluster = Cluster::tuned(1, |config| config.handshake_timeout = Duration::from_millis(500)).await;
    let address = cluster.server("n1").local_address();
    let client = cluster.client().await;
    let attacker = insider(&cluster, 2, "slow", Role::Read);
    for (case, kind, len) in [
        ("half a request", StreamKind::Unary, 100),
        ("half a subscription", StreamKind::Subscribe, MAX_REQUEST_BYTES - 1),
        ("too long", StreamKind::Unary, MAX_REQUEST_BYTES + 1),
    ] {
        let connection = attacker.client(address).await.unwrap();
        let mut streams = Vec::new();
        for _ in 0..10 {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            // What follows a stream that ended the connection is not taken any more.
            let _ = send.write_all(&tagged(kind, &vec![0; len])).await;
            streams.push((send, recv));
        }
        let reason = timeout(attacker::PATIENCE, connection.closed()).await.unwrap_or_else(|_| panic!("{case}: open"));
        assert_eq!(closed_with(&reason), Some(CLOSE_PROTOCOL.into()), "{case}: {reason}");
    }
    client.append(["fine"]).await.unwrap();
}

/// Ten seconds of waiting: in the full size only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_that_stops_half_way_ends_the_connection_and_frees_its_charge() {
    let cluster = Cluster::start(1).await;
    let attacker = insider(&cluster, 2, "slow", Role::Append);
    let connection = attacker.client(cluster.server("n1").local_address()).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let whole = tagged(StreamKind::Append, &on_stream(&group(1, 1, &vec![7; 1 << 20])));
    send.write_all(&whole[..1000]).await.unwrap();
    let held = || cluster.server("n1").stats().unanswered_bytes;
    while held() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!((1 << 20..2 << 20).contains(&held()), "charged by what it announced");
    if is_long() {
        let reason = timeout(attacker::PATIENCE, connection.closed()).await.expect("stays open").to_string();
        assert!(reason.contains("stopped half-way"), "{reason}");
    } else {
        connection.close(0_u32.into(), b"");
    }
    while held() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Packets of one byte each cost as much as full ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_in_pieces_of_a_byte_ends_the_connection() {
    let cluster = Cluster::start(1).await;
    let attacker = insider(&cluster, 2, "thin", Role::Append);
    let connection = attacker.client(cluster.server("n1").local_address()).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let whole = tagged(StreamKind::Append, &on_stream(&group(1, 1, &[7; 60_000])));
    let mut sent = 0;
    while connection.close_reason().is_none() && sent < whole.len() {
        let _ = send.write_all(&whole[sent..=sent]).await;
        sent += 1;
        // A packet of its own.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let reason = timeout(attacker::PATIENCE, connection.closed()).await.expect("stays open").to_string();
    assert!(reason.contains("pieces of a few bytes"), "{reason}");
    assert!(sent < 5000, "{sent} bytes");
    assert_eq!(cluster.server("n1").stats().unanswered_bytes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_reads_no_answers_is_not_read_any_further() {
    const BATCH: u64 = 1000;
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let mut attacker = insider(&cluster, 2, "deaf", Role::Append);
    attacker.window_bytes = 2048;
    let connection = attacker.client(cluster.server("n1").local_address()).await.unwrap();
    let (mut send, _unread) = connection.open_bi().await.unwrap();
    send.write_all(&[StreamKind::Append as u8]).await.unwrap();
    let mut sent = 0;
    // Each is refused, because there is no such session, and costs its sender 80 bytes and the node an answer.
    while sent < 300_000 {
        let groups: Vec<u8> = (sent..sent + BATCH).flat_map(|number| on_stream(&group(77, number + 1, b"x"))).collect();
        if timeout(Duration::from_secs(2), send.write_all(&groups)).await.is_err() {
            break;
        }
        sent += BATCH;
    }
    // A MiB of answers of 63 bytes, then what fits into the windows and buffers between here and there.
    println!("{sent} groups were taken");
    assert!(sent < 70_000, "{sent} groups, and as many answers held");
    client.append(["fine"]).await.unwrap();
    assert_eq!(cluster.stored(), ["fine"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_append_streams_than_a_client_needs_end_the_connection() {
    let cluster = Cluster::start(1).await;
    let attacker = insider(&cluster, 2, "wide", Role::Append);
    let connection = attacker.client(cluster.server("n1").local_address()).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..9 {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        let _ = send.write_all(&[StreamKind::Append as u8]).await;
        streams.push((send, recv));
    }
    let reason = timeout(attacker::PATIENCE, connection.closed()).await.expect("stays open");
    assert_eq!(closed_with(&reason), Some(CLOSE_PROTOCOL.into()), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_cannot_take_all_connections_and_subscriptions() {
    let cluster = Cluster::tuned(1, |config| {
        config.max_connections = 8;
        config.max_subscriptions = 8;
    })
    .await;
    let address = cluster.server("n1").local_address();
    let attacker = insider(&cluster, 2, "greedy", Role::Read);
    let mut connections = Vec::new();
    let refused = loop {
        match attacker.client(address).await {
            Ok(connection) => connections.push(connection),
            Err(reason) => break reason,
        }
    };
    assert_eq!(connections.len(), 6);
    assert_eq!(closed_with(&refused), Some(CLOSE_BUSY.into()), "{refused}");
    let (mut begun, mut failed, mut streams) = (0, 0, Vec::new());
    for _ in 0..20 {
        let (mut send, mut recv) = connections[0].open_bi().await.unwrap();
        send.write_all(&subscribe_from_start()).await.unwrap();
        send.finish().unwrap();
        let mut tag = [0];
        timeout(attacker::PATIENCE, recv.read_exact(&mut tag)).await.unwrap().unwrap();
        match tag[0] {
            1 => begun += 1,
            7 => failed += 1,
            other => panic!("item {other}"),
        }
        streams.push((send, recv));
    }
    assert_eq!((begun, failed), (6, 14));
    let stats = cluster.server("n1").stats();
    assert_eq!((stats.connections, stats.subscriptions), (6, 6));
    // There is room for others, and what the attacker lets go is free again.
    let client = cluster.client().await;
    client.append(["fine"]).await.unwrap();
    drop(client.subscribe(Start::Beginning).await.unwrap());
    connections.iter().for_each(|connection| connection.close(0_u32.into(), b""));
    while cluster.server("n1").stats().connections > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_one_client_are_held_back_and_those_of_others_are_not() {
    let cluster = Cluster::start(1).await;
    let attacker = insider(&cluster, 2, "opener", Role::Append);
    let connection = attacker.client(cluster.server("n1").local_address()).await.unwrap();
    let request = tagged(StreamKind::Unary, &wire::encode::<64>(&Request::OpenSession).unwrap());
    let begun = Instant::now();
    let openers: Vec<_> = (0..100)
        .map(|_| {
            let (connection, request) = (connection.clone(), request.clone());
            tokio::spawn(async move {
                loop {
                    exchange(&connection, &request).await;
                }
            })
        })
        .collect();
    let opened = || cluster.world.lock().unwrap().opened;
    while opened() < 512 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let client = cluster.client().await;
    client.append(["fine"]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (opened, passed) = (opened(), begun.elapsed());
    openers.iter().for_each(tokio::task::JoinHandle::abort);
    // So many at once, so many in each second since, and that of the honest client.
    let limit = 512 + passed.as_secs() * 64 + 64 + 2;
    assert!(opened <= limit, "{opened} sessions in {passed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn low_roles_get_nothing_more_however_they_ask() {
    let cluster = Cluster::start(1).await;
    let address = cluster.server("n1").local_address();
    let reader = insider(&cluster, 2, "reader", Role::Read).client(address).await.unwrap();
    let appender = insider(&cluster, 3, "appender", Role::Append).client(address).await.unwrap();
    let forbidden = |answer: &[u8]| String::from_utf8_lossy(answer).contains("has the role");
    let unary = |request: &Request| tagged(StreamKind::Unary, &wire::encode::<1024>(request).unwrap());
    for request in fuzzing::seeds("client_request").into_iter().filter(|seed| seed[0] == 1) {
        let request: Request = wire::decode::<MAX_REQUEST_BYTES, _>(&request[1..]).unwrap();
        let needed = graven_net::protocol::role_needed(graven_net::protocol::Action::Unary(&request));
        assert_eq!(forbidden(&exchange(&reader, &unary(&request)).await), needed > Role::Read, "{request:?}");
        assert_eq!(forbidden(&exchange(&appender, &unary(&request)).await), needed > Role::Append, "{request:?}");
    }
    let group = tagged(StreamKind::Append, &on_stream(&group(1, 1, b"no")));
    assert!(forbidden(&exchange(&reader, &group).await));
    assert!(cluster.stored().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_are_begun_and_not_ended_leave_room_for_others() {
    let cluster = Cluster::tuned(1, |config| config.total_bytes = 8 << 20).await;
    let address = cluster.server("n1").local_address();
    let attacker = insider(&cluster, 2, "dripping", Role::Append);
    let begun = tagged(StreamKind::Append, &encode_prefix(2 << 20, 0));
    let mut held = Vec::new();
    for _ in 0..4 {
        let connection = attacker.client(address).await.unwrap();
        for _ in 0..4 {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            send.write_all(&begun).await.unwrap();
            held.push((connection.clone(), send, recv));
        }
    }
    let used = || cluster.server("n1").stats().unanswered_bytes;
    while used() < 4 << 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.client().await.append([vec![7; 1 << 20]]).await.unwrap();
    assert!(used() <= 6 << 20, "three quarters: {}", used());
}
