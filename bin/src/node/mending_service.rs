//! What a node says to clients and other nodes while its log is being mended: how it stands, and that it serves nothing.

use std::path::PathBuf;
use std::time::Instant;

use graven_frame::{Frame, Group};
use graven_net::bulk::{BulkIdentity, BulkSource, Refusal, Wanted};
use graven_net::peer::Roster;
use graven_net::server::{
    AppendReply, Busy, Caller, ErrorCode, Failure, Feed, FeedItem, LeaderView, MemberReport, NodeReport, NodeStatus,
    Opened, Rejection, Request, Response, Service, SubscribeRequest,
};
use graven_net::tls::{NodeIdentity, TlsIdentity};
use graven_raft::NodeId;
use tokio::sync::watch;

use super::bulk::Health;
use super::peers_file::Peer;
use super::service::free_bytes;
use crate::config::NodeConfig;

/// How far the mending is.
#[derive(Debug, Clone)]
pub(super) struct Phase {
    pub(super) health: Health,
    pub(super) peers: Vec<Peer>,
    /// 0 while it is not read yet.
    pub(super) incarnation: u128,
    /// First and last entry of each hole, as they were found.
    pub(super) holes: Vec<(u64, u64)>,
}

/// The listener's side of a node that is no replica yet.
#[derive(Debug)]
pub(super) struct RecoveringService {
    me: NodeIdentity,
    tls: TlsIdentity,
    started: Instant,
    data_dir: PathBuf,
    client_address: String,
    peer_address: String,
    phase: watch::Receiver<Phase>,
    leader: watch::Sender<LeaderView>,
}

impl RecoveringService {
    pub(super) fn new(
        config: &NodeConfig,
        tls: &TlsIdentity,
        me: &NodeIdentity,
        phase: watch::Receiver<Phase>,
    ) -> RecoveringService {
        RecoveringService {
            me: me.clone(),
            tls: tls.clone(),
            started: Instant::now(),
            data_dir: config.data_dir.clone(),
            client_address: config.advertise.client.clone(),
            peer_address: config.advertise.peer.clone(),
            phase,
            leader: watch::Sender::new(LeaderView::default()),
        }
    }

    fn unavailable(&self) -> Failure {
        let message = format!(
            "node {} is recovering: its log is damaged and is being mended from the other nodes; ask one of them",
            self.me.name
        );
        Failure::refused(ErrorCode::Unavailable, message)
            .with("node", self.me.name.as_str())
            .with("state", "recovering")
    }

    fn report(&self) -> NodeReport {
        let phase = self.phase.borrow().clone();
        let me = MemberReport {
            name: self.me.name.clone(),
            id: self.me.node,
            address: Some(self.client_address.clone()),
            peer_address: Some(self.peer_address.clone()),
        };
        let other = |peer: &Peer| MemberReport {
            name: peer.name.clone(),
            id: peer.id,
            address: Some(peer.address.clone()),
            peer_address: None,
        };
        let known = (phase.incarnation != 0).then(|| format!("{:032x}", phase.incarnation));
        let status = NodeStatus {
            id: Some(self.me.node),
            peer_address: Some(self.peer_address.clone()),
            reachable: true,
            state: Some(phase.health.state),
            disk_free_bytes: free_bytes(&self.data_dir),
            incarnation: known,
            pid: Some(std::process::id()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            uptime_ms: Some(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)),
            certificate_expires: Some(self.tls.current().not_after().to_string()),
            recovering: phase.health.range.clone(),
            ..NodeStatus::unreachable(self.me.name.clone(), Some(self.client_address.clone()))
        };
        NodeReport {
            status,
            cluster_id: format!("{:032x}", self.me.cluster),
            leader: None,
            members: std::iter::once(me).chain(phase.peers.iter().map(other)).collect(),
        }
    }
}

impl Service for RecoveringService {
    type Feed = NoFeed;

    fn append(&self, _group: Group, reply: AppendReply) -> Result<(), Busy> {
        // Nothing was taken, and another node leads: the client goes there with all it has.
        reply.done(Err(Rejection::NotLeader(LeaderView::default())));
        Ok(())
    }

    async fn ready(&self) {}

    async fn unary(&self, _caller: Caller, request: Request) -> Response {
        match request {
            Request::NodeStatus => Response::NodeStatus(Box::new(self.report())),
            Request::Damage => Response::Damage(self.phase.borrow().health.range.clone()),
            _ => Response::Failed(self.unavailable()),
        }
    }

    async fn subscribe(&self, _caller: Caller, _request: SubscribeRequest) -> Result<Opened<NoFeed>, Failure> {
        Err(self.unavailable())
    }

    fn leader(&self) -> watch::Receiver<LeaderView> {
        self.leader.subscribe()
    }
}

/// No subscription is accepted, so nothing is ever asked of it.
#[derive(Debug)]
pub(super) struct NoFeed;

impl Feed for NoFeed {
    async fn next(&mut self, _max_bytes: usize) -> FeedItem {
        FeedItem::Done
    }
}

/// What it gives other nodes: nothing, for now.
#[derive(Debug)]
pub(super) struct NothingYet {
    cluster: u128,
    node: u64,
    phase: watch::Receiver<Phase>,
}

impl NothingYet {
    pub(super) fn new(me: &NodeIdentity, phase: watch::Receiver<Phase>) -> NothingYet {
        NothingYet { cluster: me.cluster, node: me.node, phase }
    }
}

impl BulkSource for NothingYet {
    fn local(&self) -> BulkIdentity {
        BulkIdentity { cluster: self.cluster, node: self.node, incarnation: self.phase.borrow().incarnation }
    }

    fn roster(&self) -> Roster {
        // The certificate vouches for the cluster and the id; beyond that everybody is told the same: later.
        Roster { newest: NodeId(0), ..Roster::default() }
    }

    fn frames(&self, wanted: Wanted, _max_bytes: usize) -> Result<Vec<Frame>, Refusal> {
        // Two nodes that lack the same must not wait for each other; segments end at different entries on each.
        let lacks = |(first, last): &(u64, u64)| *first <= wanted.last && wanted.first <= *last;
        if self.phase.borrow().holes.iter().any(lacks) {
            return Err(Refusal::Damaged { index: wanted.first });
        }
        Err(Refusal::Busy)
    }
}
