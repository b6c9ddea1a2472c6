//! Peers that mean harm, and strangers on the port for peers.
#![cfg(feature = "peer")]
#![allow(clippy::unwrap_used, dead_code, reason = "tests")]

#[path = "common/attacker.rs"]
mod attacker;
mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use attacker::{Attacker, crypto, host};
use bytes::Bytes;
use common::{CLUSTER, House, Node, config, entry, frame, head, incarnation, message, name, roster};
use graven_frame::Frame;
use graven_net::fuzzing;
use graven_net::peer::{APPEND_BYTES_MAX, PeerConfig, PeerEvent, RECEIVED_BYTES_MAX};
use graven_net::tls::{ALPN_PEER, Authority, Role};
use graven_net::wire;
use graven_raft::NodeId;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::time::timeout;

fn is_long() -> bool {
    std::env::var_os("GRAVEN_LONG").is_some()
}

/// The certificate of node `id`, in the wrong hands.
fn stolen(house: &House, id: u64) -> Arc<QuicClientConfig> {
    let issued = house.authority.issue_node(&name(id), id, ["127.0.0.1"]).unwrap();
    crypto(ALPN_PEER, Some((&issued.certificate_pem, &issued.key_pem)))
}

/// A hello as `PROTOCOL.md` has it: control is lane 0, append lane 1.
fn hello(from: u64, lane: u32) -> Vec<u8> {
    let body = (CLUSTER, from, 1_u64, incarnation(from), 77_u64, lane, 1_u32, "127.0.0.1:1");
    let body = wire::encode::<2048>(&body).unwrap();
    [b"GRVPEER\0\x01\0\x01\0", &u32::try_from(body.len()).unwrap().to_le_bytes()[..], &body].concat()
}

/// Says `bytes` as the first words; whether they were welcome. `None`: the connection was closed over them.
async fn greet(connection: &quinn::Connection, bytes: &[u8]) -> Option<bool> {
    let (mut send, mut receive) = connection.open_bi().await.ok()?;
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    let mut reply = [0; 5];
    timeout(attacker::PATIENCE, receive.read_exact(&mut reply)).await.expect("neither answered nor closed").ok()?;
    Some(reply[4] == 0)
}

async fn lane(attacker: &Attacker, to: SocketAddr, from: u64, lane: u32) -> quinn::Connection {
    let connection = attacker.dial(to).await.unwrap();
    assert_eq!(greet(&connection, &hello(from, lane)).await, Some(true));
    connection
}

/// A node that knows one other, which is the attacker, and drops what it is told.
async fn victim(house: &House) -> (SocketAddr, tokio::task::JoinHandle<()>, Arc<Node>) {
    let mut node = Node::start(config(1), house.node(1)).await;
    node.plane.set_roster(roster([entry(2, "127.0.0.1:1".parse().unwrap())]));
    let address = node.plane.local_address();
    let (sender, unused) = tokio::sync::mpsc::channel(1);
    drop(sender);
    let mut events = std::mem::replace(&mut node.events, unused);
    let reading = tokio::spawn(async move { while events.recv().await.is_some() {} });
    (address, reading, Arc::new(node))
}

/// Ten thousand in the full size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_finish_do_not_keep_a_restarted_peer_out() {
    let house = House::new();
    let mut first = Node::start(config(1), house.node(1)).await;
    let target = first.plane.local_address();
    let count = if is_long() { 10_000 } else { 1500 };
    let nobody = Authority::create(7).unwrap().issue_client("nobody", Role::Admin).unwrap();
    let nobody = crypto(ALPN_PEER, Some((&nobody.certificate_pem, &nobody.key_pem)));
    let flood = std::thread::spawn(move || {
        let stop = AtomicBool::new(false);
        attacker::begin_handshakes(host(66), target, &nobody, count, Duration::from_micros(400), &stop)
    });
    let mut restarts = 0;
    while !flood.is_finished() || restarts == 0 {
        let mut second = Node::start(config(2), house.node(2)).await;
        second.plane.set_roster(roster([first.entry()]));
        first.plane.set_roster(roster([second.entry()]));
        second.wait_up(1).await;
        first.wait_up(2).await;
        second.plane.send(NodeId(1), &message(restarts)).unwrap();
        let heard = first.wait(|event| match event {
            PeerEvent::Message { message, .. } => Some(message),
            _ => None,
        });
        assert_eq!(heard.await, message(restarts));
        restarts += 1;
        second.plane.close().await;
    }
    let begun = flood.join().unwrap();
    println!("{begun:?}, {restarts} restarts meanwhile, {} turned away", first.plane.stats().turned_away);
    assert!(begun.sent == count && begun.proven > 0, "{begun:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_every_position_of_a_hello_is_refused() {
    let house = House::new();
    let (target, reading, node) = victim(&house).await;
    // As many hosts as get in without waiting for one another's rate.
    let attackers: Vec<Attacker> = (2..6).map(|from| Attacker::new(host(from), stolen(&house, 2))).collect();
    let good = hello(2, 0);
    let step = if is_long() { 1 } else { 3 };
    let (mut refused, mut welcome) = (0, Vec::new());
    for (case, at) in (0..good.len()).step_by(step).enumerate() {
        let mut bytes = good.clone();
        bytes[at] ^= 0xA5;
        let connection = attackers[case % attackers.len()].dial(target).await.unwrap();
        match greet(&connection, &bytes).await {
            Some(true) => welcome.push(at),
            Some(false) | None => refused += 1,
        }
        connection.close(0_u32.into(), b"");
    }
    println!("{refused} refused, welcome with changes at {welcome:?} of {}", good.len());
    // Boot, feature level and address may be any: the certificate says who it is, the rest is judged.
    assert!(refused > 10 && welcome.iter().all(|at| *at > 40), "{welcome:?}");
    drop(node);
    reading.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_every_position_of_a_lane_ends_it_or_is_a_message() {
    let house = House::new();
    let (target, reading, node) = victim(&house).await;
    let attackers: Vec<Attacker> = (2..6).map(|from| Attacker::new(host(from), stolen(&house, 2))).collect();
    let control = fuzzing::seeds("peer_control").pop().unwrap();
    let append = fuzzing::seeds("peer_append")[0][1..].to_vec();
    let step = if is_long() { 1 } else { 17 };
    let (mut ended, mut case) = (0, 0);
    for (number, good) in [(0, control), (1, append)] {
        for at in (0..good.len()).step_by(step) {
            for worst in [&[0xFF; 4][..], &[253, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]] {
                let mut bytes = good.clone();
                bytes.iter_mut().skip(at).zip(worst).for_each(|(to, by)| *to = *by);
                let connection = lane(&attackers[case % attackers.len()], target, 2, number).await;
                case += 1;
                let mut stream = connection.open_uni().await.unwrap();
                let _ = stream.write_all(&bytes).await;
                let _ = stream.finish();
                // What is a message after all is delivered; the lane then waits for the next stream.
                let reason = timeout(Duration::from_millis(100), connection.closed()).await;
                ended += usize::from(reason.is_ok());
                connection.close(0_u32.into(), b"");
            }
        }
    }
    println!("{case} streams, {ended} connections ended");
    assert!(ended * 2 > case, "{ended} of {case}");
    // The lane still works for whoever behaves.
    let connection = lane(&attackers[0], target, 2, 0).await;
    let before = node.plane.stats().peers[&NodeId(2)].messages_received;
    let mut stream = connection.open_uni().await.unwrap();
    stream.write_all(&fuzzing::seeds("peer_control")[0]).await.unwrap();
    while node.plane.stats().peers[&NodeId(2)].messages_received == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(node);
    reading.abort();
}

/// A leader keeps to a window; whoever only has its certificate sends the largest there is, as fast as it is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_nobody_takes_are_bounded_in_bytes() {
    let house = House::new();
    let node = Node::start(config(1), house.node(1)).await;
    node.plane.set_roster(roster([entry(2, "127.0.0.1:1".parse().unwrap())]));
    let connection = lane(&Attacker::new(host(2), stolen(&house, 2)), node.plane.local_address(), 2, 1).await;
    let mut stream = connection.open_uni().await.unwrap();
    let bytes = append_of(&frame(1, vec![Bytes::from(vec![7; 8 << 20])]));
    let mut sent = 0;
    loop {
        let Ok(written) = timeout(Duration::from_secs(3), stream.write(&bytes[sent % bytes.len()..])).await else {
            break;
        };
        sent += written.unwrap();
        assert!(sent < 1 << 30, "as much as it likes");
    }
    println!("{} MiB were taken", sent >> 20);
    // What is held, one more in the making, and the windows on the way.
    assert!(sent < RECEIVED_BYTES_MAX + APPEND_BYTES_MAX + (8 << 20), "{sent}");
    assert!(sent > RECEIVED_BYTES_MAX / 2, "{sent}");
}

fn append_of(frame: &Frame) -> Vec<u8> {
    let head = wire::encode::<256>(&head(1)).unwrap();
    let prefix = u32::try_from(head.len()).unwrap().to_le_bytes();
    [&prefix[..], &head, &1_u32.to_le_bytes(), frame.head(), &frame.body().concat()].concat()
}

/// Ten seconds of waiting: in the full size only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_that_stops_half_way_ends_the_lane() {
    if !is_long() {
        println!("SKIPPED waiting ten seconds for a stalled message: only with GRAVEN_LONG=1");
        return;
    }
    let house = House::new();
    let (target, reading, node) = victim(&house).await;
    let connection = lane(&Attacker::new(host(2), stolen(&house, 2)), target, 2, 1).await;
    let mut stream = connection.open_uni().await.unwrap();
    let bytes = append_of(&frame(1, vec![Bytes::from(vec![7; 1 << 20])]));
    stream.write_all(&bytes[..1 << 19]).await.unwrap();
    let reason = timeout(attacker::PATIENCE, connection.closed()).await.expect("stays open").to_string();
    assert!(reason.contains("stopped"), "{reason}");
    drop(node);
    reading.abort();
}

/// What a refusal says may be the stranger's own words: however many there are, the driver hears a few.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_not_told_without_end() {
    let house = House::new();
    let mut node = Node::start(PeerConfig { ..config(1) }, house.node(1)).await;
    node.plane.set_roster(roster([entry(2, "127.0.0.1:1".parse().unwrap())]));
    let attackers: Vec<Attacker> = (2..6).map(|from| Attacker::new(host(from), stolen(&house, 2))).collect();
    let target = node.plane.local_address();
    for case in 0..48_u64 {
        let body = (u128::from(case) + 1, 2_u64, 1_u64, incarnation(2), 77_u64, 0_u32, 1_u32, "");
        let body = wire::encode::<2048>(&body).unwrap();
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        let bytes = [b"GRVPEER\0\x01\0\x01\0", &length[..], &body].concat();
        let connection = attackers[usize::try_from(case).unwrap() % 4].dial(target).await.unwrap();
        assert_eq!(greet(&connection, &bytes).await, Some(false));
        connection.close(0_u32.into(), b"");
    }
    let mut told = 0;
    while let Ok(event) = node.events.try_recv() {
        told += usize::from(matches!(event, PeerEvent::Refused { .. }));
    }
    assert!((20..40).contains(&told), "{told} told of {}", node.plane.stats().refused);
    assert_eq!(node.plane.stats().refused, 48);
}
