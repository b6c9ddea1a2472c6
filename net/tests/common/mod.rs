//! A cluster's certificates in a temporary directory, and planes that use them.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{collections::BTreeMap, fs, net::SocketAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
use graven_frame::{Body, Chain, Frame, HeaderSpec, Kind};
use graven_net::{
    peer::{PeerConfig, PeerEvent, PeerPlane, Roster, RosterEntry},
    tls::{Authority, Issued, TlsFiles, TlsIdentity, Validity},
    transport::ResetKey,
};
use graven_raft::{AppendHead, Index, LogId, Message, NodeId, Term};
use tokio::{sync::mpsc, time::timeout};

pub(crate) const CLUSTER: u128 = 0x9ec5;
/// Longer than any of this takes on a busy machine; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One cluster's authority and the files of its members.
pub(crate) struct House {
    pub(crate) authority: Authority,
    dir: tempfile::TempDir,
}

impl House {
    pub(crate) fn new() -> Self {
        Self { authority: Authority::create(CLUSTER).unwrap(), dir: tempfile::tempdir().unwrap() }
    }

    /// The same house, whose authority issues certificates for `validity`.
    pub(crate) fn with_validity(self, validity: Validity) -> Self {
        Self { authority: self.authority.with_validity(validity), ..self }
    }

    /// The same house under another authority.
    pub(crate) fn with_authority(self, authority: Authority) -> Self {
        Self { authority, ..self }
    }

    pub(crate) fn files(&self, stem: &str, issued: &Issued) -> TlsFiles {
        let path = |end: &str| -> PathBuf { self.dir.path().join(format!("{stem}.{end}")) };
        let files = TlsFiles { ca: path("ca"), certificate: path("crt"), key: path("key") };
        fs::write(&files.ca, self.authority.certificate_pem()).unwrap();
        fs::write(&files.certificate, &issued.certificate_pem).unwrap();
        fs::write(&files.key, &issued.key_pem).unwrap();
        files
    }

    pub(crate) fn node_files(&self, id: u64) -> TlsFiles {
        self.files(&name(id), &self.authority.issue_node(&name(id), id, ["127.0.0.1"]).unwrap())
    }

    pub(crate) fn node(&self, id: u64) -> TlsIdentity {
        TlsIdentity::load(self.node_files(id)).unwrap()
    }
}

pub(crate) fn name(id: u64) -> String {
    format!("n{id}")
}

pub(crate) fn incarnation(id: u64) -> u128 {
    u128::from(id) << 64
}

pub(crate) fn config(id: u64) -> PeerConfig {
    let listen = "127.0.0.1:0".parse().unwrap();
    PeerConfig {
        reset_key: Some(ResetKey([u8::try_from(id).unwrap(); 32])),
        ..PeerConfig::new(listen, CLUSTER, NodeId(id), incarnation(id))
    }
}

pub(crate) fn entry(id: u64, address: SocketAddr) -> (NodeId, RosterEntry) {
    (NodeId(id), RosterEntry { name: name(id), address: address.to_string(), incarnation: incarnation(id) })
}

pub(crate) fn roster(entries: impl IntoIterator<Item = (NodeId, RosterEntry)>) -> Roster {
    // Nobody is newer: a test that wants guests says so.
    Roster { members: entries.into_iter().collect::<BTreeMap<_, _>>(), newest: NodeId(u64::MAX) }
}

/// A plane and the events it told.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) plane: PeerPlane,
    pub(crate) events: mpsc::Receiver<PeerEvent>,
}

impl Node {
    pub(crate) async fn start(config: PeerConfig, tls: TlsIdentity) -> Self {
        let (sender, events) = mpsc::channel(64);
        let id = config.node.0;
        let plane = PeerPlane::start(config, tls, roster([]), sender).await.unwrap();
        Self { id, plane, events }
    }

    pub(crate) fn entry(&self) -> (NodeId, RosterEntry) {
        entry(self.id, self.plane.local_address())
    }

    pub(crate) async fn event(&mut self) -> PeerEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("no event came").expect("plane is gone")
    }

    /// The first event that `wanted` makes something of; those before it are dropped.
    pub(crate) async fn wait<T>(&mut self, mut wanted: impl FnMut(PeerEvent) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self.event().await) {
                return found;
            }
        }
    }

    pub(crate) async fn wait_up(&mut self, id: u64) {
        self.wait(|event| matches!(event, PeerEvent::Up { node } if node.0 == id).then_some(())).await;
    }

    pub(crate) async fn wait_down(&mut self, id: u64) -> String {
        self.wait(|event| match event {
            PeerEvent::Down { node, reason } if node.0 == id => Some(reason),
            _ => None,
        })
        .await
    }
}

/// Nodes 1 to `count`, all of them up towards all others.
pub(crate) async fn cluster(house: &House, count: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    for id in 1..=count {
        nodes.push(Node::start(config(id), house.node(id)).await);
    }
    let all: Vec<_> = nodes.iter().map(Node::entry).collect();
    for node in &nodes {
        node.plane.set_roster(roster(all.clone()));
    }
    for node in &mut nodes {
        let mut missing = count - 1;
        while missing > 0 {
            node.wait(|event| matches!(event, PeerEvent::Up { .. }).then_some(())).await;
            missing -= 1;
        }
    }
    nodes
}

/// A message that carries `number`.
pub(crate) fn message(number: u64) -> Message {
    Message::VoteReply { term: Term(number), granted: true }
}

pub(crate) fn head(request: u64) -> AppendHead {
    AppendHead {
        term: Term(7),
        prev: LogId { term: Term(6), index: Index(request) },
        prev_chain: 5,
        commit: Index(3),
        request,
        epoch: 1,
    }
}

/// A frame with a body of `chunks`, of a kind whose body is nobody's business on the way.
pub(crate) fn frame(index: u64, chunks: Vec<Bytes>) -> Frame {
    let body = Body::from_chunks(chunks);
    let crc = body.crc();
    let spec = HeaderSpec { kind: Kind::Session, term: 7, index, base_offset: index, count: 0, timestamp_ms: index };
    Frame::seal(spec, Chain::START, body, crc)
}

/// Bytes that differ everywhere and from one `seed` to the next.
pub(crate) fn bytes(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect::<Vec<u8>>().into()
}
