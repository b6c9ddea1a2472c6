//! Two processes of one node: the planes of a node, of its restarts and of its copies, against one that judges between them.

#![cfg(feature = "peer")]
#![allow(clippy::unwrap_used, reason = "a test whose scene cannot be set has failed")]
#![allow(dead_code, reason = "the scene is shared with other tests")]

mod common;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use common::{House, Node, PATIENCE, config, entry, message, roster};
use graven_net::peer::{PeerConfig, PeerEvent, Refusal, RefusedBy};
use graven_raft::{Message, NodeId};

/// A life of node 2 that listens at `listen` and knows where node 1 is.
async fn life(house: &House, listen: SocketAddr, first: &Node) -> Node {
    let node = Node::start(PeerConfig { listen, ..config(2) }, house.node(2)).await;
    node.plane.set_roster(roster([first.entry()]));
    node
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A life on a runtime of its own, which can be taken away without a word, as a kill does.
struct Mortal {
    node: Node,
    runtime: tokio::runtime::Runtime,
}

impl Mortal {
    async fn start(house: &House, listen: SocketAddr, first: &Node) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (config, tls, first) = (PeerConfig { listen, ..config(2) }, house.node(2), first.entry());
        let started = runtime.spawn(async move {
            let node = Node::start(config, tls).await;
            node.plane.set_roster(roster([first]));
            node
        });
        Self { node: started.await.unwrap(), runtime }
    }

    /// Its sockets are closed and nobody is told.
    async fn kill(self) {
        let address = self.node.plane.local_address();
        let Self { node, runtime } = self;
        // What could still send a last word goes with the runtime; only then is the plane dropped.
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5))).await.unwrap();
        drop(node);
        while std::net::UdpSocket::bind(address).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Waits until a message of `from` with this number arrives.
async fn hears(node: &mut Node, from: u64, number: u64) {
    node.wait(|event| match event {
        PeerEvent::Message { from: who, message: Message::VoteReply { term, .. } } => {
            (who == NodeId(from) && term.0 == number).then_some(())
        }
        _ => None,
    })
    .await;
}

async fn refusal(node: &mut Node) -> Refusal {
    let refused = node.wait(|event| match event {
        PeerEvent::Refused { by: RefusedBy::Them, refusal, .. } => Some(refusal),
        _ => None,
    });
    // Other events may go on for ever.
    tokio::time::timeout(PATIENCE, refused).await.expect("never refused")
}

#[tokio::test]
async fn a_copy_is_refused_by_name_while_the_node_is_heard_and_is_told_so_for_good() {
    let house = House::new();
    let mut first = Node::start(config(1), house.node(1)).await;
    let mut second = life(&house, anywhere(), &first).await;
    first.plane.set_roster(roster([second.entry()]));
    first.wait_up(2).await;
    second.wait_up(1).await;

    let mut copy = life(&house, anywhere(), &first).await;
    let began = Instant::now();
    let refused = refusal(&mut copy).await;
    let living = second.plane.local_address().to_string();
    assert_eq!(refused, Refusal::OtherLife { node: 2, address: living.clone() });
    assert!(refused.to_string().contains(&living) && refused.disowns());
    // The node itself was not disturbed: nothing was dialled again, and both directions work.
    second.plane.send(NodeId(1), &message(1)).unwrap();
    hears(&mut first, 2, 1).await;
    first.plane.send(NodeId(2), &message(2)).unwrap();
    hears(&mut second, 1, 2).await;
    assert_eq!(first.plane.stats().peers[&NodeId(2)].reconnects, 0);
    assert_eq!(second.plane.stats().peers[&NodeId(1)].reconnects, 0);
    // And the copy is told when it is certain, not before a mistake would have passed.
    let (by, last) = copy
        .wait(|event| match event {
            PeerEvent::Disowned { by, refusal } => Some((by, refusal)),
            _ => None,
        })
        .await;
    assert_eq!((by, last), (NodeId(1), refused));
    assert!(began.elapsed() >= Duration::from_secs(6), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_killed_node_is_heard_again_at_its_address_and_elsewhere() {
    let house = House::new();
    let mut first = Node::start(config(1), house.node(1)).await;
    let second = Mortal::start(&house, anywhere(), &first).await;
    let address = second.node.plane.local_address();
    first.plane.set_roster(roster([second.node.entry()]));
    first.wait_up(2).await;
    second.kill().await;

    let mut again = Mortal::start(&house, address, &first).await;
    again.node.wait_up(1).await;
    again.node.plane.send(NodeId(1), &message(3)).unwrap();
    hears(&mut first, 2, 3).await;
    assert_eq!(again.node.plane.stats().refused, 0, "never refused at its own address");
    again.kill().await;

    // Elsewhere, while the connections of the killed life still look alive.
    let mut moved = life(&house, anywhere(), &first).await;
    moved.wait_up(1).await;
    moved.plane.send(NodeId(1), &message(4)).unwrap();
    hears(&mut first, 2, 4).await;
}

#[tokio::test]
async fn the_node_takes_its_place_back_from_a_copy_that_came_while_it_was_away() {
    let house = House::new();
    let mut first = Node::start(config(1), house.node(1)).await;
    let second = Mortal::start(&house, anywhere(), &first).await;
    let address = second.node.plane.local_address();
    first.plane.set_roster(roster([entry(2, address)]));
    first.wait_up(2).await;
    second.kill().await;
    let mut copy = life(&house, anywhere(), &first).await;
    copy.wait_up(1).await;
    copy.plane.send(NodeId(1), &message(5)).unwrap();
    hears(&mut first, 2, 5).await;

    let mut back = life(&house, address, &first).await;
    back.wait_up(1).await;
    back.plane.send(NodeId(1), &message(6)).unwrap();
    hears(&mut first, 2, 6).await;
    assert!(matches!(refusal(&mut copy).await, Refusal::OtherLife { node: 2, .. }));
    assert_eq!(back.plane.stats().refused, 0);
}
