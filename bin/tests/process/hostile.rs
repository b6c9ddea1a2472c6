//! Real nodes under attack: strangers, clients and a peer that mean harm. Each is refused or held back, memory stays under its
//! bound, and an honest client goes on.
//!
//! `GRAVEN_LONG=1` attacks for longer and prints what it does to the latency of honest appends, attack and quiet in turns;
//! `GRAVEN_ATTACKS=Flood,Requests` leaves out the others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use graven::{Client, ClientConfig};
use graven_frame::{GroupBuilder, GroupHeaderSpec};
use graven_net::fuzzing;
use graven_net::protocol::append::encode_prefix;
use graven_net::protocol::{ALPN, Request, StreamKind};
use graven_net::server::{Start, SubscribeRequest};
use graven_net::tls::{ALPN_PEER, Authority, Role, Validity};
use graven_net::wire;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::attacker::{Attacker, begin_handshakes, crypto, exchange, host, rss_anon};
use crate::common::{Dev, PATIENCE, wait_for};

/// Client connections each node takes in these tests.
const CONNECTIONS: usize = 64;
/// Appends each node queues.
const QUEUE_MIB: u64 = 8;
/// What a node may hold in all, in MiB, as `docs/decisions/hostile.md` adds it up: itself with sessions, ring and tail; windows;
/// appends on their way; smallest windows and streams of each connection; handshakes; subscriptions; appends of peers.
const BOUND_MIB: u64 = 128 + 128 + 65 + 2 * CONNECTIONS as u64 + 8 + 2 * CONNECTIONS as u64 / 8 + 64;

fn is_long() -> bool {
    std::env::var_os("GRAVEN_LONG").is_some()
}

fn start() -> Dev {
    Dev::start(3, &[&format!("limits.connections={CONNECTIONS}"), &format!("limits.queue_bytes=\"{QUEUE_MIB}M\"")])
}

fn authority(dev: &Dev) -> Authority {
    Authority::load(dev.dir.join("ca")).expect("the authority of the cluster")
}

/// The target and what an attacker needs to know of it.
struct Scene {
    dev: Dev,
    authority: Authority,
    clients: SocketAddr,
    peers: SocketAddr,
    pids: Vec<u32>,
}

impl Scene {
    fn new() -> Scene {
        let dev = start();
        let leader = dev.leader();
        let status = dev.status();
        let nodes = status["nodes"].as_array().expect("nodes");
        let node = nodes.iter().find(|node| node["name"] == leader.as_str()).expect("the leader");
        let address = |key: &str| node[key].as_str().and_then(|text| text.parse().ok()).expect("an address");
        let pids = nodes.iter().filter_map(|node| u32::try_from(node["pid"].as_u64()?).ok()).collect();
        let (clients, peers) = (address("address"), address("peer_address"));
        let flood = authority(&dev).issue_client("flood", Role::Append).expect("a certificate");
        flood.save(dev.dir.join("flood.crt"), dev.dir.join("flood.key")).expect("written");
        Scene { authority: authority(&dev), clients, peers, pids, dev }
    }

    fn insider(&self, from: u8, name: &str, role: Role) -> Attacker {
        let issued = self.authority.issue_client(name, role).expect("a certificate");
        Attacker::new(host(from), crypto(ALPN, Some((&issued.certificate_pem, &issued.key_pem))))
    }

    /// The largest of the nodes' memory, in MiB.
    fn memory_mib(&self) -> u64 {
        self.pids.iter().map(|pid| rss_anon(*pid) >> 20).max().unwrap_or(0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attack {
    /// Nothing, for comparison.
    Quiet,
    /// Handshakes on the port for clients that are left half-way.
    ClientHandshakes,
    /// The same on the port for peers.
    PeerHandshakes,
    /// As many subscriptions as there are to have, none of them read.
    UnreadSubscriptions,
    /// Requests and streams that stop half-way, on every connection there is to have.
    HalfSent,
    /// Groups of 16 MiB, announced on every stream and sent one byte a packet.
    ThinGroups,
    /// Groups that are refused, whose answers are not read.
    UnreadAnswers,
    /// A client that sends all it can.
    Flood,
    /// The same in groups of 16 KiB.
    FloodOfSmall,
    /// Status, bounds and sessions, asked for all the time.
    Requests,
}

const ATTACKS: [Attack; 9] = [
    Attack::ClientHandshakes,
    Attack::PeerHandshakes,
    Attack::UnreadSubscriptions,
    Attack::HalfSent,
    Attack::ThinGroups,
    Attack::UnreadAnswers,
    Attack::Flood,
    Attack::FloodOfSmall,
    Attack::Requests,
];

fn tagged(kind: StreamKind, bytes: &[u8]) -> Vec<u8> {
    [&[kind as u8][..], bytes].concat()
}

/// Connections of an insider, as many as it gets.
async fn all_connections(scene: &Scene, from: u8, name: &str, role: Role, window_bytes: u32) -> Vec<quinn::Connection> {
    let mut attacker = scene.insider(from, name, role);
    attacker.window_bytes = window_bytes;
    let mut connections = Vec::new();
    while connections.len() < CONNECTIONS {
        match attacker.client(scene.clients).await {
            Ok(connection) => connections.push(connection),
            Err(_full) => break,
        }
    }
    assert!(connections.len() >= CONNECTIONS / 2, "{} connections", connections.len());
    connections
}

/// Opens streams on `connection` and says `bytes` on each, without an end; holds them.
async fn hold_streams(connection: quinn::Connection, bytes: Vec<u8>, count: usize, is_ended: bool) {
    let mut held = Vec::new();
    for _ in 0..count {
        // Whoever is thrown out has reached what he could.
        let Ok((mut send, recv)) = connection.open_bi().await else { return };
        if send.write_all(&bytes).await.is_err() {
            return;
        }
        if is_ended {
            let _ = send.finish();
        }
        held.push((send, recv));
    }
    connection.closed().await;
}

/// Goes on until the task is dropped.
async fn attack(scene: Arc<Scene>, attack: Attack, stop: Arc<AtomicBool>) {
    let mut tasks = JoinSet::new();
    match attack {
        Attack::Quiet => {}
        Attack::ClientHandshakes => spawn_handshakes(&mut tasks, scene.clients, ALPN, &stop),
        Attack::PeerHandshakes => spawn_handshakes(&mut tasks, scene.peers, ALPN_PEER, &stop),
        Attack::UnreadSubscriptions => {
            let request = SubscribeRequest { start: Start::Beginning, until: None, skip_trimmed: true, resume: false };
            let request = tagged(StreamKind::Subscribe, &wire::encode::<64>(&request).expect("encodes"));
            for connection in all_connections(&scene, 2, "subscriber", Role::Read, 4 << 20).await {
                tasks.spawn(hold_streams(connection, request.clone(), 16, true));
            }
        }
        Attack::HalfSent => {
            for (at, connection) in
                all_connections(&scene, 2, "half", Role::Read, 1 << 20).await.into_iter().enumerate()
            {
                let kind = [StreamKind::Unary, StreamKind::Subscribe][at % 2];
                tasks.spawn(hold_streams(connection, tagged(kind, &[0; 4000]), 256, false));
            }
        }
        Attack::ThinGroups => {
            for _ in 0..CONNECTIONS {
                tasks.spawn(thin_groups(scene.clone()));
            }
        }
        Attack::UnreadAnswers => {
            for connection in all_connections(&scene, 2, "deaf", Role::Append, 4096).await {
                tasks.spawn(refused_groups(connection));
            }
        }
        Attack::Flood | Attack::FloodOfSmall => {
            for _ in 0..2 {
                tasks.spawn(flood(scene.clone(), if attack == Attack::Flood { 32 << 10 } else { 1 << 10 }));
            }
        }
        Attack::Requests => {
            for connection in all_connections(&scene, 2, "asker", Role::Append, 1 << 20).await.into_iter().take(8) {
                for request in [Request::NodeStatus, Request::Bounds { linearizable: true }, Request::OpenSession] {
                    let request = tagged(StreamKind::Unary, &wire::encode::<64>(&request).expect("encodes"));
                    let connection = connection.clone();
                    tasks.spawn(async move {
                        while connection.close_reason().is_none() {
                            exchange(&connection, &request).await;
                        }
                    });
                }
            }
        }
    }
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn spawn_handshakes(tasks: &mut JoinSet<()>, to: SocketAddr, alpn: &'static [u8], stop: &Arc<AtomicBool>) {
    let stranger = Authority::create(7).and_then(|authority| authority.issue_client("nobody", Role::Admin));
    let stranger = stranger.expect("a certificate");
    let crypto = crypto(alpn, Some((&stranger.certificate_pem, &stranger.key_pem)));
    let stop = stop.clone();
    tasks.spawn_blocking(move || {
        let begun = begin_handshakes(host(66), to, &crypto, 10_000, Duration::from_micros(500), &stop);
        println!("    {begun:?}");
    });
}

/// Thin groups on a connection, and on another one when that is ended.
async fn thin_groups(scene: Arc<Scene>) {
    let attacker = scene.insider(2, "thin", Role::Append);
    loop {
        match attacker.client(scene.clients).await {
            Ok(connection) => {
                let mut groups: JoinSet<()> = (0..8).map(|_| thin_group(connection.clone())).collect();
                while groups.join_next().await.is_some() {}
            }
            Err(_full) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A group of 16 MiB that never comes to its end, one byte in each packet.
async fn thin_group(connection: quinn::Connection) {
    let Ok((mut send, _recv)) = connection.open_bi().await else { return };
    let first = tagged(StreamKind::Append, &encode_prefix(16 << 20, 0));
    if send.write_all(&first).await.is_err() {
        return;
    }
    loop {
        if send.write_all(&[7]).await.is_err() {
            return;
        }
        // The packet leaves before the next byte comes.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Groups of a session that nobody opened.
async fn refused_groups(connection: quinn::Connection) {
    let mut sequence = 0;
    loop {
        let Ok((mut send, _unread)) = connection.open_bi().await else { return };
        let mut bytes = vec![StreamKind::Append as u8];
        loop {
            for _ in 0..100 {
                sequence += 1;
                let mut builder = GroupBuilder::new();
                builder.push(b"", b"x").expect("small");
                let spec = GroupHeaderSpec { session: Some(1), sequence: Some(sequence), ..GroupHeaderSpec::default() };
                let group = builder.finish(spec);
                bytes.extend_from_slice(&encode_prefix(group.body().len(), group.crc()));
                bytes.extend_from_slice(&group.body().concat());
            }
            if send.write_all(&std::mem::take(&mut bytes)).await.is_err() {
                break;
            }
        }
        if connection.close_reason().is_some() {
            return;
        }
    }
}

/// A client that follows the protocol and has too much to say.
async fn flood(scene: Arc<Scene>, record_bytes: usize) {
    let mut config = ClientConfig::load(&scene.dev.client).expect("a client's file");
    config.window_bytes = 64 << 20;
    // Somebody else than those who are measured.
    (config.certificate, config.key) = (scene.dev.dir.join("flood.crt"), scene.dev.dir.join("flood.key"));
    let Ok(client) = Client::connect(config).await else { return };
    let Ok(appender) = client.appender().await else { return };
    let (mut sender, mut acks) = appender.split();
    let batch = vec![vec![7_u8; record_bytes]; 16];
    let reading = async { while let Some(Ok(_)) = acks.next().await {} };
    let sending = async { while sender.send(&batch).await.is_ok() {} };
    tokio::join!(reading, sending);
}

/// What honest appends took while something went on, and how large a node got.
#[derive(Debug, Default)]
struct Seen {
    latencies: Vec<Duration>,
    memory_mib: u64,
}

impl Seen {
    fn percentile(&mut self, share: f64) -> Duration {
        self.latencies.sort_unstable();
        let at = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(at.min(self.latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// Honest clients append small records, a hundred times a second each, while `what` goes on for `time`.
async fn observe(scene: &Arc<Scene>, attackers: &Handle, honest: &Client, what: Attack, time: Duration) -> Seen {
    let stop = Arc::new(AtomicBool::new(false));
    // On threads of its own: what it does to the nodes is measured, not what it does to this process.
    let attacking = attackers.spawn(attack(scene.clone(), what, stop.clone()));
    // Under way before anything is measured.
    tokio::time::sleep(time / 4).await;
    let until = Instant::now() + time;
    let mut appending = JoinSet::new();
    for _ in 0..4 {
        let honest = honest.clone();
        appending.spawn(async move {
            let mut latencies = Vec::new();
            while Instant::now() < until || latencies.is_empty() {
                let begun = Instant::now();
                honest.append([[5_u8; 200]]).await.expect("an honest append is taken");
                latencies.push(begun.elapsed());
                tokio::time::sleep(Duration::from_millis(10).saturating_sub(begun.elapsed())).await;
            }
            latencies
        });
    }
    let mut seen = Seen::default();
    loop {
        seen.memory_mib = seen.memory_mib.max(scene.memory_mib());
        tokio::select! {
            done = appending.join_next() => match done {
                Some(latencies) => seen.latencies.extend(latencies.expect("appends do not panic")),
                None => break,
            },
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
    stop.store(true, Ordering::Relaxed);
    attacking.await.expect("attacks do not panic");
    seen
}

fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim_end().to_owned()
}

#[test]
fn attacks_are_held_back_memory_is_bounded_and_honest_clients_go_on() {
    let scene = Arc::new(Scene::new());
    // Something to read for those who will not read it.
    let text: Vec<u8> = (0..60_000).flat_map(|number| format!("{number:0>150}\n").into_bytes()).collect();
    scene.dev.run_with(&["append"], &text).expect(0);
    let build = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (runtime, attackers) = (build().expect("a runtime"), build().expect("a runtime"));
    let (time, rounds) = if is_long() { (Duration::from_secs(8), 3) } else { (Duration::from_millis(1200), 1) };
    runtime.block_on(async {
        let honest = Client::connect(ClientConfig::load(&scene.dev.client).expect("a client's file")).await;
        let honest = honest.expect("connects");
        let idle = scene.memory_mib();
        println!("load {}; idle {idle} MiB, bound {BOUND_MIB} MiB", load_average());
        let chosen = std::env::var("GRAVEN_ATTACKS").ok();
        let is_chosen = |what: &Attack| chosen.as_ref().is_none_or(|names| names.contains(&format!("{what:?}")));
        for what in ATTACKS.into_iter().filter(is_chosen) {
            let (mut ratios, mut worst) = (Vec::new(), 0);
            for _ in 0..rounds {
                let quiet_time = if is_long() { time } else { time / 4 };
                let mut quiet = observe(&scene, attackers.handle(), &honest, Attack::Quiet, quiet_time).await;
                let mut seen = observe(&scene, attackers.handle(), &honest, what, time).await;
                println!(
                    "  {what:?}: {} appends, p50 {:?} (quiet {:?}), p99 {:?} (quiet {:?}), {} MiB",
                    seen.latencies.len(),
                    seen.percentile(0.5),
                    quiet.percentile(0.5),
                    seen.percentile(0.99),
                    quiet.percentile(0.99),
                    seen.memory_mib
                );
                assert!(!seen.latencies.is_empty(), "{what:?}: nobody else got through");
                ratios.push(seen.percentile(0.99).as_secs_f64() / quiet.percentile(0.99).as_secs_f64());
                worst = worst.max(seen.memory_mib);
            }
            ratios.sort_by(f64::total_cmp);
            println!("{what:?}: p99 {:.2} times the quiet one, {worst} MiB", ratios[ratios.len() / 2]);
            assert!(worst <= BOUND_MIB, "{what:?}: {worst} MiB, the bound is {BOUND_MIB}");
        }
        println!("load {}", load_average());
        honest.close().await;
    });
    attackers.shutdown_timeout(PATIENCE);
    // All of them are as they were, and no attack left a record that is not whole.
    wait_for("all nodes to be well", || {
        let status = scene.dev.status();
        let nodes = status["nodes"].as_array()?;
        nodes.iter().all(|node| node["reachable"] == true && node["state"] == "ok").then_some(())
    });
    scene.dev.run(&["read", "--linearizable", "--count", "60000", "--format", "none"]).expect(0);
}

#[test]
fn certificates_that_do_not_fit_are_refused_by_both_ports() {
    let scene = Scene::new();
    let (day, now) = (Duration::from_secs(86_400), std::time::SystemTime::now());
    let expired = Validity { not_before: now - day * 400, not_after: now - day };
    let of = |authority: &Authority| authority.issue_client("c", Role::Admin).expect("a certificate");
    let node = |authority: &Authority| authority.issue_node("n1", 1, ["127.0.0.1"]).expect("a certificate");
    let foreign = Authority::create(scene.authority.cluster()).expect("an authority");
    let stale = authority(&scene.dev).with_validity(expired);
    let cases = [
        (ALPN, scene.clients, of(&foreign), "client of a foreign authority"),
        (ALPN, scene.clients, of(&stale), "expired client"),
        (ALPN, scene.clients, node(&scene.authority), "node on the port for clients"),
        (ALPN_PEER, scene.peers, node(&foreign), "node of a foreign authority"),
        (ALPN_PEER, scene.peers, node(&stale), "expired node"),
        (ALPN_PEER, scene.peers, of(&scene.authority), "client on the port for peers"),
        (ALPN, scene.peers, of(&scene.authority), "client that is lost"),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for (alpn, address, issued, case) in cases {
            let crypto = crypto(alpn, Some((&issued.certificate_pem, &issued.key_pem)));
            let attacker = Attacker::new(host(2), crypto);
            // Refused in the handshake, or closed over the first words.
            if let Ok(connection) = attacker.dial(address).await {
                exchange(&connection, &[0; 64]).await;
                let closed = tokio::time::timeout(PATIENCE, connection.closed()).await;
                let reason = closed.unwrap_or_else(|_| panic!("{case}: taken")).to_string();
                println!("{case}: {reason}");
            }
        }
    });
    scene.dev.run_with(&["append"], b"fine\n").expect(0);
}

/// A peer's certificate in the wrong hands can stop a cluster from agreeing, and must not bring a node down or into disorder.
#[test]
fn garbage_of_a_peer_whose_key_was_stolen_brings_no_node_down() {
    let scene = Scene::new();
    if scene.dev.leader() == "n3" {
        // A follower that has not caught up yet is refused.
        wait_for("n1 to lead", || scene.dev.run(&["transfer", "n1"]).status.success().then_some(()));
    }
    let status = scene.dev.status();
    let node = |name: &str| {
        let nodes = status["nodes"].as_array().expect("nodes");
        nodes.iter().find(|node| node["name"] == name).expect("a node").clone()
    };
    let incarnation = node("n3")["incarnation"].as_str().and_then(|hex| u128::from_str_radix(hex, 16).ok());
    let incarnation = incarnation.expect("an incarnation");
    scene.dev.kill("n3");
    let read = |file: &str| std::fs::read_to_string(scene.dev.dir.join("n3").join(file)).expect("a file of n3");
    let crypto = crypto(ALPN_PEER, Some((&read("node.crt"), &read("node.key"))));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for target in ["n1", "n2"] {
            let address = node(target)["peer_address"].as_str().and_then(|text| text.parse().ok()).expect("an address");
            let attacker = Attacker::new(host(3), crypto.clone());
            for (lane, seeds) in [(0_u32, fuzzing::seeds("peer_control")), (1, fuzzing::seeds("peer_append"))] {
                for seed in seeds {
                    let bytes = if lane == 1 { seed[1..].to_vec() } else { seed };
                    let connection = attacker.dial(address).await.expect("a node's certificate");
                    let id = node(target)["id"].as_u64().expect("an id");
                    let hello = (scene.authority.cluster(), 3_u64, id, incarnation, 77_u64, lane, 1_u32, "127.0.0.1:1");
                    let hello = wire::encode::<2048>(&hello).expect("encodes");
                    let len = u32::try_from(hello.len()).expect("short").to_le_bytes();
                    exchange(&connection, &[b"GRVPEER\0\x01\0\x01\0", &len[..], &hello].concat()).await;
                    let mut stream = connection.open_uni().await.expect("welcome");
                    let _ = stream.write_all(&bytes).await;
                    let _ = stream.finish();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    connection.close(0_u32.into(), b"");
                }
            }
        }
    });
    for name in ["n1", "n2"] {
        assert!(scene.dev.node_pid(name).is_some(), "{name} is down");
    }
    // Whatever term the messages named: the two that are left agree again.
    scene.dev.run_with(&["append", "--timeout", "30s"], b"fine\n").expect(0);
}
