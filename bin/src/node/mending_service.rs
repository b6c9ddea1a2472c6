//! What a node says to clients and other nodes while its log is being mended: how it stands, that it serves no records, and to nodes
//! that mend theirs the entries that it has.

use std::path::PathBuf;
use std::time::Instant;

use graven_frame::{Frame, Group};
use graven_net::bulk::{BulkIdentity, BulkSource, CheckpointReader, Only, Refusal, Wanted};
use graven_net::peer::Roster;
use graven_net::server::{
    AppendReply, Busy, Caller, ErrorCode, Failure, Feed, FeedItem, LeaderView, MemberReport, NodeReport, NodeStatus,
    Opened, Rejection, Request, Response, Service, SubscribeRequest,
};
use graven_net::tls::{NodeIdentity, TlsIdentity};
use graven_raft::NodeId;
use graven_wal::RealDisk;
use graven_wal::mend::{NotGiven, SoundFrames};
use tokio::sync::watch;

use super::bulk::Health;
use super::checkpoints::{open_checkpoint, wanted_from};
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
    /// What can be given to others meanwhile; `None` while it is not read yet.
    pub(super) sound: Option<SoundFrames<RealDisk>>,
    /// The last entry before those that the log has.
    pub(super) base: u64,
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

/// What it gives other nodes: the entries that are right, so that nodes none of which is whole heal from each other.
#[derive(Debug)]
pub(super) struct RecoveringBulk {
    cluster: u128,
    node: u64,
    data_dir: PathBuf,
    phase: watch::Receiver<Phase>,
}

impl RecoveringBulk {
    pub(super) fn new(config: &NodeConfig, me: &NodeIdentity, phase: watch::Receiver<Phase>) -> RecoveringBulk {
        RecoveringBulk { cluster: me.cluster, node: me.node, data_dir: config.data_dir.clone(), phase }
    }
}

impl BulkSource for RecoveringBulk {
    fn local(&self) -> BulkIdentity {
        BulkIdentity { cluster: self.cluster, node: self.node, incarnation: self.phase.borrow().incarnation }
    }

    fn roster(&self) -> Roster {
        // The certificate vouches for the cluster and the id. Who of them is a member this node may not know now; what it gives, it
        // gives to nodes of its cluster only.
        Roster { newest: NodeId(0), ..Roster::default() }
    }

    fn frames(&self, wanted: Wanted, max_bytes: usize) -> Result<Vec<Frame>, Refusal> {
        // Entries that are on its disk; which of them are committed it knows of none for sure.
        if wanted.only != Only::Durable {
            return Err(Refusal::Busy);
        }
        let sound = self.phase.borrow().sound.clone().ok_or(Refusal::Busy)?;
        sound.frames(wanted.first, wanted.last, max_bytes).map_err(|why| match why {
            NotGiven::Trimmed { first } => Refusal::Trimmed { first },
            NotGiven::NotYet { last } => Refusal::NotYet { last },
            _ => Refusal::Damaged { index: wanted.first },
        })
    }

    fn checkpoint_from(&self, place: &[u8]) -> Result<Box<dyn CheckpointReader>, Refusal> {
        let (base, known) = (self.phase.borrow().base, self.phase.borrow().sound.is_some());
        if !known {
            return Err(Refusal::Busy);
        }
        open_checkpoint(&self.data_dir, wanted_from(place, base)).0.map_err(Refusal::from)
    }
}
