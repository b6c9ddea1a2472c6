//! Planes on loopback, each with certificates of its own, in one process.

#![cfg(feature = "peer")]
#![allow(clippy::unwrap_used, reason = "a test whose scene cannot be set has failed")]

mod common;

use std::{
    net::UdpSocket,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use common::{House, Node, PATIENCE, bytes, cluster, config, entry, frame, head, incarnation, message, name, roster};
use graven_frame::Frame;
use graven_net::{
    peer::{APPEND_FRAMES_MAX, PeerConfig, PeerEvent, PeerPlane, Refusal, RefusedBy, Roster, SendError, StartError},
    tls::{Reload, TlsIdentity, Validity},
};
use graven_raft::{Message, NodeId};
use tokio::{sync::mpsc, time::timeout};

/// Queues an append as soon as there is room for it.
async fn send_append(node: &Node, to: u64, request: u64, frames: &[Frame]) {
    let send = async {
        while let Err(cause) = node.plane.send_append(NodeId(to), head(request), frames.to_vec()) {
            assert!(matches!(cause, SendError::Full { .. }), "{cause}");
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, send).await.expect("queue stays full");
}

async fn wait_append(node: &mut Node) -> (NodeId, u64, Vec<Frame>) {
    node.wait(|event| match event {
        PeerEvent::Append { from, head, frames, .. } => Some((from, head.request, frames)),
        _ => None,
    })
    .await
}

async fn wait_refused(node: &mut Node, by: RefusedBy) -> (Option<NodeId>, Refusal) {
    node.wait(|event| match event {
        PeerEvent::Refused { node, by: who, refusal, .. } if who == by => Some((node, refusal)),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn three_planes_exchange_control_messages_in_order() {
    const EACH: u64 = 300;
    let house = House::new();
    let mut nodes = cluster(&house, 3).await;
    for number in 0..EACH {
        for from in &nodes {
            for to in (1..=3).filter(|to| *to != from.id) {
                from.plane.send(NodeId(to), &message(number)).unwrap();
            }
        }
    }
    for node in &mut nodes {
        let mut next = [0; 4];
        for _ in 0..2 * EACH {
            let (from, got) = node
                .wait(|event| match event {
                    PeerEvent::Message { from, message: Message::VoteReply { term, .. } } => Some((from.0, term.0)),
                    _ => None,
                })
                .await;
            let expected = &mut next[usize::try_from(from).unwrap()];
            assert_eq!(got, *expected, "from node {from}");
            *expected += 1;
        }
    }
    let stats = nodes[0].plane.stats();
    let link = &stats.peers[&NodeId(2)];
    assert!(link.up && link.messages_sent == EACH && link.messages_received == EACH, "{link:?}");
    assert!(link.control.is_some_and(|lane| lane.mtu >= 1200) && stats.socket.receive > 0);
    assert_eq!(nodes[0].plane.feature_level(NodeId(3)), Some(1));
    for node in nodes {
        node.plane.close().await;
    }
}

#[tokio::test]
async fn appends_of_mixed_sizes_arrive_in_order_and_byte_for_byte() {
    const TOTAL: usize = 64 << 20;
    let house = House::new();
    let mut nodes = cluster(&house, 2).await;
    let sizes = [0, 1, 95, 4096, 4095, 70_000, 1 << 20, 300, 256 << 10, 65_536, 65_537, 13];
    let make = |index: u64| {
        let size = sizes[usize::try_from(index).unwrap() % sizes.len()];
        let whole = bytes(index, size);
        // Every other body comes in uneven chunks, as bodies do that were received.
        if index.is_multiple_of(2) {
            frame(index, vec![whole])
        } else {
            frame(index, whole.chunks(6431).map(Bytes::copy_from_slice).collect())
        }
    };
    let mut receiver = nodes.pop().unwrap();
    let sender = nodes.pop().unwrap();
    let sending = async {
        let (mut sent, mut index, mut request) = (0, 1, 0);
        while sent < TOTAL {
            let frames: Vec<Frame> = (index..index + request % 5).map(make).collect();
            index += request % 5;
            sent += frames.iter().map(Frame::encoded_len).sum::<usize>();
            send_append(&sender, 2, request, &frames).await;
            request += 1;
        }
        (request, sent)
    };
    let receiving = async {
        let (mut received, mut index, mut request) = (0, 1, 0);
        while received < TOTAL {
            let (from, got, frames) = wait_append(&mut receiver).await;
            assert_eq!((from, got, frames.len() as u64), (NodeId(1), request, request % 5));
            for frame in &frames {
                let expected = make(index);
                assert_eq!(frame.head(), expected.head());
                assert!(frame.body().concat() == expected.body().concat(), "body of frame {index} differs");
                received += frame.encoded_len();
                index += 1;
            }
            request += 1;
        }
        (request, received)
    };
    let (sent, received) = tokio::join!(sending, receiving);
    assert_eq!(sent, received);
}

#[tokio::test]
async fn largest_append_is_taken_and_a_larger_one_is_not_queued() {
    let house = House::new();
    let mut nodes = cluster(&house, 2).await;
    let largest = frame(1, vec![bytes(1, graven_frame::MAX_BODY_BYTES)]);
    send_append(&nodes[0], 2, 1, std::slice::from_ref(&largest)).await;
    let (_, _, frames) = wait_append(&mut nodes[1]).await;
    assert!(frames[0].body().concat() == largest.body().concat());

    let two = vec![largest.clone(), largest];
    assert!(matches!(nodes[0].plane.send_append(NodeId(2), head(2), two), Err(SendError::TooLarge { .. })));
    let many = vec![frame(1, vec![]); APPEND_FRAMES_MAX + 1];
    assert!(matches!(nodes[0].plane.send_append(NodeId(2), head(3), many), Err(SendError::TooLarge { .. })));
    assert!(matches!(nodes[0].plane.send_append(NodeId(9), head(3), vec![]), Err(SendError::Unknown { .. })));
}

#[tokio::test]
async fn frame_with_a_damaged_body_closes_the_lane_and_is_not_handed_over() {
    let house = House::new();
    let mut nodes = cluster(&house, 2).await;
    let good = frame(1, vec![bytes(1, 5000)]);
    let head_bytes: [u8; graven_frame::HEADER_BYTES] = good.head()[..].try_into().unwrap();
    let bad = Frame::from_parts(&head_bytes, graven_frame::Body::from_chunks(vec![bytes(2, 5000)])).unwrap();
    nodes[0].plane.send_append(NodeId(2), head(1), vec![bad]).unwrap();
    let reason = nodes[0].wait_down(2).await;
    assert!(reason.contains("append lane") && reason.contains("frame"), "{reason}");
    nodes[0].wait_up(2).await;
    send_append(&nodes[0], 2, 2, std::slice::from_ref(&good)).await;
    let (_, request, _) = wait_append(&mut nodes[1]).await;
    assert_eq!(request, 2);
}

#[tokio::test]
async fn peer_that_does_not_read_fills_a_bounded_queue_and_no_more() {
    let house = House::new();
    let mut nodes = cluster(&house, 2).await;
    let frames = [frame(1, vec![bytes(1, 256 << 10)])];
    let (mut accepted, mut full_for) = (0_u64, 0);
    // Full for a hundred looks in a row, with time for everything under way in between: nothing moves any more.
    while full_for < 100 {
        match nodes[0].plane.send_append(NodeId(2), head(accepted), frames.to_vec()) {
            Ok(()) => (accepted, full_for) = (accepted + 1, 0),
            Err(SendError::Full { .. }) => full_for += 1,
            Err(other) => panic!("{other}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // 64 events in the channel, then windows and queue: some megabytes.
    assert!((64..64 + 40).contains(&accepted), "{accepted} appends were taken");
    let link = &nodes[0].plane.stats().peers[&NodeId(2)];
    assert!(link.queue_full >= 100 && link.queued_bytes <= 2 << 20, "{link:?}");
    // It reads again: everything that was accepted arrives.
    for expected in 0..accepted {
        let (_, request, _) = wait_append(&mut nodes[1]).await;
        assert_eq!(request, expected);
    }
}

#[tokio::test]
async fn reset_drops_what_waits_and_later_appends_get_through() {
    let house = House::new();
    let mut nodes = cluster(&house, 2).await;
    let frames = [frame(1, vec![bytes(1, 256 << 10)])];
    let mut stale = 0;
    while nodes[0].plane.send_append(NodeId(2), head(stale), frames.to_vec()).is_ok() || stale < 90 {
        stale += 1;
        tokio::task::yield_now().await;
        if stale > 100_000 {
            break;
        }
    }
    nodes[0].plane.reset_append(NodeId(2));
    assert_eq!(nodes[0].plane.stats().peers[&NodeId(2)].queued_bytes, 0);
    nodes[0].plane.send_append(NodeId(2), head(1_000_000), frames.to_vec()).unwrap();
    loop {
        if wait_append(&mut nodes[1]).await.1 == 1_000_000 {
            break;
        }
    }
    assert_eq!(nodes[0].plane.stats().peers[&NodeId(2)].reconnects, 0);
}

#[tokio::test]
async fn restarted_peer_is_reached_again_on_its_port() {
    let house = House::new();
    let mut nodes = cluster(&house, 2).await;
    let mut second = nodes.pop().unwrap();
    let mut first = nodes.pop().unwrap();
    let address = second.plane.local_address();
    second.plane.close().await;
    let reason = first.wait_down(2).await;
    assert!(reason.contains("node is stopping"), "{reason}");
    assert!(matches!(first.plane.send(NodeId(2), &message(1)), Err(SendError::Disconnected { .. })));

    second = Node::start(PeerConfig { listen: address, ..config(2) }, house.node(2)).await;
    second.plane.set_roster(roster([first.entry()]));
    first.wait_up(2).await;
    first.plane.send(NodeId(2), &message(2)).unwrap();
    let got =
        second.wait(|event| if let PeerEvent::Message { message, .. } = event { Some(message) } else { None }).await;
    assert_eq!(got, message(2));
    assert!(first.plane.stats().peers[&NodeId(2)].reconnects >= 1);
}

#[tokio::test]
async fn foreign_authority_is_refused_on_both_sides() {
    let (house, other) = (House::new(), House::new());
    let mut ours = Node::start(config(1), house.node(1)).await;
    let mut theirs = Node::start(config(2), other.node(2)).await;
    ours.plane.set_roster(roster([theirs.entry()]));
    let (node, refusal) = wait_refused(&mut ours, RefusedBy::Us).await;
    assert_eq!(node, Some(NodeId(2)));
    assert!(refusal.to_string().contains("node n2") && refusal.to_string().contains("not signed"), "{refusal}");
    let (_, refusal) = wait_refused(&mut theirs, RefusedBy::Them).await;
    assert!(refusal.to_string().contains("not signed"), "{refusal}");
}

#[tokio::test]
async fn wrong_incarnation_is_refused_and_named_on_both_sides() {
    let house = House::new();
    let mut first = Node::start(config(1), house.node(1)).await;
    let wiped = PeerConfig { incarnation: 0xbad, ..config(2) };
    let mut second = Node::start(wiped, house.node(2)).await;
    first.plane.set_roster(roster([second.entry()]));
    second.plane.set_roster(roster([first.entry()]));
    let named = |refusal: Refusal| assert!(matches!(refusal, Refusal::Incarnation { node: 2, .. }), "{refusal}");
    named(wait_refused(&mut first, RefusedBy::Us).await.1);
    named(wait_refused(&mut second, RefusedBy::Them).await.1);
    assert!(matches!(second.plane.send(NodeId(1), &message(1)), Err(SendError::Disconnected { .. })));
}

#[tokio::test]
async fn node_at_another_ones_address_is_refused_and_named() {
    let house = House::new();
    let mut first = Node::start(config(1), house.node(1)).await;
    let third = Node::start(config(3), house.node(3)).await;
    first.plane.set_roster(roster([entry(2, third.plane.local_address())]));
    let (node, refusal) = wait_refused(&mut first, RefusedBy::Us).await;
    assert_eq!(node, Some(NodeId(2)));
    assert!(refusal.to_string().contains("node n3 (id 3)"), "{refusal}");
}

#[tokio::test]
async fn stranger_with_a_valid_certificate_is_no_member() {
    let house = House::new();
    let mut first = Node::start(config(1), house.node(1)).await;
    let mut stranger = Node::start(config(9), house.node(9)).await;
    stranger.plane.set_roster(roster([first.entry()]));
    let (node, refusal) = wait_refused(&mut first, RefusedBy::Us).await;
    assert_eq!((node, refusal), (None, Refusal::NotMember { node: 9, name: name(9) }));
    assert!(matches!(wait_refused(&mut stranger, RefusedBy::Them).await.1, Refusal::NotMember { node: 9, .. }));
}

#[tokio::test]
async fn dropped_member_is_cut_off() {
    let house = House::new();
    let mut nodes = cluster(&house, 2).await;
    nodes[0].plane.set_roster(roster([]));
    assert!(matches!(nodes[0].plane.send(NodeId(2), &message(1)), Err(SendError::Unknown { .. })));
    let reason = nodes[1].wait_down(1).await;
    assert!(reason.contains("no longer a member"), "{reason}");
    assert!(matches!(wait_refused(&mut nodes[1], RefusedBy::Them).await.1, Refusal::NotMember { .. }));
    // And is welcome again once it is a member again.
    let entry = nodes[1].entry();
    nodes[0].plane.set_roster(roster([entry]));
    nodes[1].wait_up(1).await;
}

/// A node that was just made knows nobody; one that was away may know nobody who is there now.
#[tokio::test]
async fn node_newer_than_the_roster_is_heard_and_answered_until_the_members_are_known() {
    let house = House::new();
    let mut leader = Node::start(config(2), house.node(2)).await;
    let mut newcomer = Node::start(config(1), house.node(1)).await;
    newcomer.plane.set_roster(Roster::default());
    leader.plane.set_roster(roster([newcomer.entry()]));
    leader.wait_up(1).await;
    newcomer.wait_up(2).await;
    leader.plane.send(NodeId(1), &message(1)).unwrap();
    let heard = |event| match event {
        PeerEvent::Message { from, message } => Some((from.0, message)),
        _ => None,
    };
    assert_eq!(newcomer.wait(heard).await, (2, message(1)));
    newcomer.plane.send(NodeId(2), &message(2)).unwrap();
    assert_eq!(leader.wait(heard).await, (1, message(2)));
    // Node 2 was removed, says the log: ids up to 2 were given, and it is not among the members.
    newcomer.plane.set_roster(Roster { newest: NodeId(2), ..Roster::default() });
    leader.wait_down(1).await;
    assert!(matches!(wait_refused(&mut leader, RefusedBy::Them).await.1, Refusal::NotMember { .. }));
}

#[tokio::test]
async fn certificate_that_expired_is_named_with_its_date() {
    let day = Duration::from_secs(86_400);
    let now = SystemTime::now();
    let soon = Validity { not_before: now - day, not_after: now + Duration::from_secs(3) };
    let house = House::new().with_validity(soon);
    let tls = house.node(2);
    let expires = tls.current().not_after();
    let mut first = Node::start(config(1), house.node(1)).await;
    let mut second = Node::start(config(2), tls).await;
    first.plane.set_roster(roster([second.entry()]));
    second.plane.set_roster(roster([first.entry()]));
    let (_, refusal) = wait_refused(&mut first, RefusedBy::Us).await;
    let text = refusal.to_string();
    assert!(text.contains("expired") && text.contains(&expires.to_string()), "{text}");
    let reason = second.wait(|event| match event {
        PeerEvent::Refused { refusal, .. } => Some(refusal.to_string()),
        _ => None,
    });
    assert!(reason.await.contains("expired"));
}

#[tokio::test]
async fn replaced_certificate_is_used_for_the_next_handshake() {
    let house = House::new();
    let files = house.node_files(1);
    let tls = TlsIdentity::load(files.clone()).unwrap();
    let mut first = Node::start(config(1), tls.clone()).await;
    // A whole new authority on both sides: the old pair would be refused.
    let house = House::new();
    let fresh = house.node_files(1);
    for (from, to) in [(&fresh.ca, &files.ca), (&fresh.certificate, &files.certificate), (&fresh.key, &files.key)] {
        std::fs::copy(from, to).unwrap_or_else(|_| panic!("{} is gone", to.display()));
    }
    assert_eq!(tls.reload_if_changed().unwrap(), Reload::Replaced);
    let mut second = Node::start(config(2), house.node(2)).await;
    first.plane.set_roster(roster([second.entry()]));
    second.plane.set_roster(roster([first.entry()]));
    first.wait_up(2).await;
    second.wait_up(1).await;
}

#[tokio::test]
async fn certificate_of_another_node_does_not_start_a_plane() {
    let house = House::new();
    let (events, _) = mpsc::channel(1);
    let started = PeerPlane::start(config(1), house.node(2), Roster::default(), events).await;
    assert!(matches!(started.err(), Some(StartError::WrongCertificate { .. })));
}

#[tokio::test]
async fn garbage_on_the_port_does_no_harm() {
    let house = House::new();
    let mut nodes = cluster(&house, 2).await;
    let target = nodes[0].plane.local_address();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for seed in 0..2000_u64 {
        let len = usize::try_from(seed * 7 % 1400).unwrap() + 1;
        let mut datagram = bytes(seed, len).to_vec();
        // A third looks like QUIC's first packet, a third like a later one.
        match seed % 3 {
            0 => datagram[0] |= 0xc0,
            1 => datagram[0] = 0x40 | (datagram[0] & 0x3f),
            _ => {}
        }
        if seed % 3 == 0 && datagram.len() > 5 {
            datagram[1..5].copy_from_slice(&[0, 0, 0, 1]);
        }
        let _dropped_by_the_system = socket.send_to(&datagram, target);
        if seed % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    nodes[1].plane.send(NodeId(1), &message(5)).unwrap();
    let got =
        nodes[0].wait(|event| if let PeerEvent::Message { message, .. } = event { Some(message) } else { None }).await;
    assert_eq!(got, message(5));
    let stats = nodes[0].plane.stats();
    assert!(stats.peers[&NodeId(2)].up && stats.peers[&NodeId(2)].reconnects == 0);
    assert_eq!(incarnation(2), 2 << 64);
}

/// A process that was killed says no goodbye: its next life answers for it, because both have the same reset key.
#[tokio::test]
async fn killed_and_restarted_peer_is_noticed_by_its_reset() {
    let house = House::new();
    let mut first = Node::start(config(1), house.node(1)).await;
    let back = first.entry();
    let (tls, again) = (house.node(2), house.node(2));
    let (tell, told) = tokio::sync::oneshot::channel();
    let (die, dead) = tokio::sync::oneshot::channel::<()>();
    let life = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Driven until it dies: the other side's lanes may need its answers after its own are up.
        let node = runtime.block_on(async {
            let mut node = Node::start(config(2), tls).await;
            node.plane.set_roster(roster([back]));
            tell.send(node.entry()).unwrap();
            node.wait_up(1).await;
            dead.await.unwrap();
            node
        });
        // The runtime goes first: whatever the plane would still say finds no task that would send it.
        drop(runtime);
        drop(node);
    });
    let (id, entry) = told.await.unwrap();
    first.plane.set_roster(roster([(id, entry.clone())]));
    first.wait_up(2).await;
    // Each side counts itself connected once both of its lanes are; it dies when both do.
    die.send(()).unwrap();
    tokio::task::spawn_blocking(move || life.join().unwrap()).await.unwrap();
    let listen = entry.address.parse().unwrap();
    let second = Node::start(PeerConfig { listen, ..config(2) }, again).await;
    first.plane.send(NodeId(2), &message(1)).unwrap();
    let reason = first.wait_down(2).await;
    assert!(reason.contains("restarted"), "{reason}");
    second.plane.close().await;
}

/// The bytes of a hello as `PROTOCOL.md` has them, written by someone who is not the plane.
mod stranger {
    use super::{House, Node, PATIENCE};
    use graven_net::{
        tls::{ALPN_CLIENT, ALPN_PEER, Role, TlsIdentity, server_name},
        transport::{self, Mtu},
        wire,
    };
    use tokio::time::timeout;

    pub(super) struct Stranger {
        pub(super) connection: quinn::Connection,
        _endpoint: quinn::Endpoint,
    }

    pub(super) async fn dial(tls: &TlsIdentity, alpn: &[u8], node: &Node) -> Result<Stranger, String> {
        let bound = transport::bind("127.0.0.1:0".parse().unwrap(), 64 << 10).unwrap();
        let config = transport::endpoint(Mtu::Auto, None);
        let runtime = std::sync::Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(config, None, bound.socket, runtime).unwrap();
        let crypto = tls.current().quic_client(alpn).unwrap();
        let name = server_name(&super::name(node.id));
        let config = quinn::ClientConfig::new(crypto);
        let address = node.plane.local_address();
        let connecting = endpoint.connect_with(config, address, &name).unwrap();
        let connection =
            timeout(PATIENCE, connecting).await.expect("no handshake").map_err(|cause| cause.to_string())?;
        Ok(Stranger { connection, _endpoint: endpoint })
    }

    pub(super) fn client(house: &House) -> TlsIdentity {
        let issued = house.authority.issue_client("loader", Role::Admin).unwrap();
        TlsIdentity::load(house.files("loader", &issued)).unwrap()
    }

    pub(super) fn hello(versions: [u16; 2], from: u64, lane: u32) -> Vec<u8> {
        let body = (super::common::CLUSTER, from, 1_u64, super::incarnation(from), 77_u64, lane, 1_u32, "127.0.0.1:1");
        let body = wire::encode::<2048>(&body).unwrap();
        let mut bytes = b"GRVPEER\0".to_vec();
        bytes.extend_from_slice(&versions[0].to_le_bytes());
        bytes.extend_from_slice(&versions[1].to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    impl Stranger {
        /// Says `bytes` as the first words, and waits for the first byte of the answer: 0 is welcome, 1 is refused.
        pub(super) async fn greet(&self, bytes: &[u8]) -> u8 {
            let (mut send, mut receive) = self.connection.open_bi().await.unwrap();
            send.write_all(bytes).await.unwrap();
            let mut reply = [0; 5];
            timeout(PATIENCE, receive.read_exact(&mut reply)).await.expect("no reply").unwrap();
            reply[4]
        }

        /// Writes `bytes` on a new stream and answers with what the connection is closed for.
        pub(super) async fn violate(&self, bytes: &[u8]) -> String {
            let mut stream = self.connection.open_uni().await.unwrap();
            stream.write_all(bytes).await.unwrap();
            timeout(PATIENCE, self.connection.closed()).await.expect("stays open").to_string()
        }
    }

    #[tokio::test]
    async fn client_certificate_is_refused_and_named() {
        let house = House::new();
        let mut node = Node::start(super::config(1), house.node(1)).await;
        node.plane.set_roster(super::roster([super::entry(2, "127.0.0.1:1".parse().unwrap())]));
        let stranger = dial(&client(&house), ALPN_PEER, &node).await.unwrap();
        assert_eq!(stranger.greet(&hello([1, 1], 2, 0)).await, 1);
        let (_, refusal) = super::wait_refused(&mut node, super::RefusedBy::Us).await;
        assert!(matches!(&refusal, super::Refusal::NotANode(who) if who.contains("client loader")), "{refusal}");
        // A client that is merely lost is told where to go.
        let lost = dial(&client(&house), ALPN_CLIENT, &node).await;
        assert!(lost.is_err());
        let (_, refusal) = super::wait_refused(&mut node, super::RefusedBy::Us).await;
        assert!(refusal.to_string().contains("clients use the client port"), "{refusal}");
    }

    #[tokio::test]
    async fn other_versions_and_malformed_hellos_are_refused_by_name() {
        let house = House::new();
        let mut node = Node::start(super::config(1), house.node(1)).await;
        node.plane.set_roster(super::roster([super::entry(2, "127.0.0.1:1".parse().unwrap())]));
        let tls = house.node(2);
        let mut garbage = hello([1, 1], 2, 0);
        garbage[0] = b'X';
        let mut endless = hello([1, 1], 2, 0);
        endless[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut trailing = hello([1, 1], 2, 0);
        trailing[12] += 1;
        trailing.push(0);
        let cases = [
            (hello([2, 9], 2, 0), "versions 2 to 9"),
            (hello([1, 1], 3, 0), "certificate is of node 2"),
            (hello([1, 1], 2, 9), "malformed"),
            (garbage, "does not begin"),
            (endless, "limit is"),
            (trailing, "malformed"),
        ];
        for (bytes, words) in cases {
            let stranger = dial(&tls, ALPN_PEER, &node).await.unwrap();
            assert_eq!(stranger.greet(&bytes).await, 1, "{words}");
            let (_, refusal) = super::wait_refused(&mut node, super::RefusedBy::Us).await;
            assert!(refusal.to_string().contains(words), "{refusal}");
        }
    }

    #[tokio::test]
    async fn oversized_lengths_are_refused_before_anything_is_read_for_them() {
        let house = House::new();
        let node = Node::start(super::config(1), house.node(1)).await;
        node.plane.set_roster(super::roster([super::entry(2, "127.0.0.1:1".parse().unwrap())]));
        let tls = house.node(2);
        let control = |bytes: &[u8]| (0, bytes.to_vec());
        let append = |bytes: &[u8]| (1, bytes.to_vec());
        let head = wire::encode::<256>(&super::head(1)).unwrap();
        let mut good_head = u32::try_from(head.len()).unwrap().to_le_bytes().to_vec();
        good_head.extend_from_slice(&head);
        let many = [good_head.as_slice(), &4097_u32.to_le_bytes()].concat();
        let not_a_frame = [good_head.as_slice(), &1_u32.to_le_bytes(), &[7; 96]].concat();
        let cases = [
            (control(&65_537_u32.to_le_bytes()), "limit is 65536"),
            (control(&[1, 0, 0, 0, 250]), "malformed"),
            (append(&257_u32.to_le_bytes()), "limit is 256"),
            (append(&many), "number of frames"),
            (append(&not_a_frame), "frame"),
        ];
        for ((lane, bytes), words) in cases {
            let stranger = dial(&tls, ALPN_PEER, &node).await.unwrap();
            assert_eq!(stranger.greet(&hello([1, 1], 2, lane)).await, 0);
            let reason = stranger.violate(&bytes).await;
            assert!(reason.contains(words), "{reason}");
        }
    }

    #[tokio::test]
    async fn newer_connection_of_a_peer_retires_the_older() {
        let house = House::new();
        let mut node = Node::start(super::config(1), house.node(1)).await;
        node.plane.set_roster(super::roster([super::entry(2, "127.0.0.1:1".parse().unwrap())]));
        let tls = house.node(2);
        let older = dial(&tls, ALPN_PEER, &node).await.unwrap();
        assert_eq!(older.greet(&hello([1, 1], 2, 0)).await, 0);
        let other_lane = dial(&tls, ALPN_PEER, &node).await.unwrap();
        assert_eq!(other_lane.greet(&hello([1, 1], 2, 1)).await, 0);
        let newer = dial(&tls, ALPN_PEER, &node).await.unwrap();
        assert_eq!(newer.greet(&hello([1, 1], 2, 0)).await, 0);
        let reason = timeout(PATIENCE, older.connection.closed()).await.unwrap().to_string();
        assert!(reason.contains("newer connection"), "{reason}");
        assert!(other_lane.connection.close_reason().is_none());

        let body = wire::encode::<64>(&super::message(9)).unwrap();
        let mut bytes = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        let mut stream = newer.connection.open_uni().await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let got = node.wait(|event| match event {
            super::PeerEvent::Message { from, message } => Some((from.0, message)),
            _ => None,
        });
        assert_eq!(got.await, (2, super::message(9)));
    }
}
