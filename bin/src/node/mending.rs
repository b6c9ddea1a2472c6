//! The phase before a node with a damaged log can start: its listener says `recovering`, and the holes are closed with frames of
//! the other nodes.
//!
//! In this phase there is no replica and no endpoint for peers: nothing votes, nothing is acknowledged, no record is served. Nothing
//! is given up either: the log is as it was until a hole is closed, and then only that part of it is another. When every other node
//! has answered and none has what is missing, the node ends and says what to do; as long as one cannot be reached, it goes on asking.

use std::sync::Arc;
use std::time::Duration;

use graven_frame::Frame;
use graven_net::bulk::BulkIdentity;
use graven_net::server::{DamagedRange, NodeState, Server, ServerConfig};
use graven_net::tls::{Identity as Certified, NodeIdentity, TlsIdentity};
use graven_wal::mend::{Filled, Hole as Found, MendError, Mender};
use graven_wal::{OpenError, RealDisk};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::bulk::Health;
use super::bulk_fetch::{Fetcher, Hole, Round};
use super::engine::{StartError, check_certificate, load_tls, log_options, reset_key};
use super::mending_service::{NothingYet, Phase, RecoveringService};
use super::peers_file::{self, Peer};
use crate::config::NodeConfig;
use crate::members::Members;

/// The first pause between two rounds of asking everybody, and the longest one.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Whether a node that did not start for this reason may start when its log is mended.
pub(super) fn may_help(cause: &StartError) -> bool {
    match cause {
        StartError::Log { source, .. } => {
            matches!(source, OpenError::Damaged(_) | OpenError::MissingSegment { .. } | OpenError::WrongChain { .. })
        }
        StartError::Read { .. } => true,
        _ => false,
    }
}

/// Mends the log of the node that `config` describes. `announce` is called once its listener answers.
///
/// # Errors
/// [`StartError::Unmendable`] and [`StartError::InDoubt`] when this is not the way out; anything that keeps a node from starting.
pub(super) async fn heal(config: &NodeConfig, announce: impl FnMut()) -> Result<(), StartError> {
    let tls = load_tls(config)?;
    check_certificate(config, &tls)?;
    let Certified::Node(me) = tls.current().identity().clone() else {
        return Err(damaged_beyond(config, Vec::new(), "its certificate is no node's".to_owned(), Alone::No));
    };
    let peers = peers_file::read(config);
    let health = Health { state: NodeState::Recovering, range: None };
    let (phase, phase_end) = watch::channel(Phase { health, peers: peers.clone(), incarnation: 0, holes: Vec::new() });
    let mut healing = Healing { config, tls, me, peers, phase, phase_end, server: None, announce };
    let healed = healing.run().await;
    if let Some(server) = healing.server.take() {
        server.close().await;
    }
    healed
}

struct Healing<'a, F: FnMut()> {
    config: &'a NodeConfig,
    tls: TlsIdentity,
    me: NodeIdentity,
    peers: Vec<Peer>,
    phase: watch::Sender<Phase>,
    phase_end: watch::Receiver<Phase>,
    server: Option<Server>,
    announce: F,
}

impl<F: FnMut()> Healing<'_, F> {
    async fn run(&mut self) -> Result<(), StartError> {
        // Reading every byte of a log takes a while. A node that is known to have company answers meanwhile; one that may be alone
        // ends without having called itself ready.
        self.maybe_listen().await?;
        let mut mender = self.survey().await?;
        if let Some(members) = newest_members(mender.memberships()) {
            self.peers = peers_file::others(&members, self.me.node);
        }
        let identity = mender.identity();
        self.phase.send_modify(|phase| {
            phase.peers.clone_from(&self.peers);
            phase.incarnation = identity.incarnation;
            phase.holes = mender.holes().iter().map(|hole| (hole.first, hole.last.unwrap_or(u64::MAX))).collect();
        });
        let holes = mender.holes().to_vec();
        holes.iter().for_each(|hole| error!("the log is damaged: {}", hole));
        if self.peers.is_empty() && (mender.has_damaged_tail() || holes.iter().any(Found::needs_frames)) {
            let why = "this node is alone in its cluster: nobody else has these entries".to_owned();
            return Err(damaged_beyond(self.config, holes, why, Alone::Yes));
        }
        self.maybe_listen().await?;
        let local = BulkIdentity { cluster: identity.cluster, node: identity.node, incarnation: identity.incarnation };
        let fetcher = Fetcher { local, tls: self.tls.clone() };
        self.close_holes(&fetcher, &mut mender, &holes).await?;
        if mender.has_damaged_tail() {
            // Which entries were acknowledged there nobody can tell: the marker keeps this node from voting until it has them again.
            let marker = tokio::task::block_in_place(|| mender.cut_tail()).map_err(|cause| self.failed(&cause))?;
            warn!(
                "the damage reaches to the log's end: it ends at entry {} now, and this node does not vote before a leader has brought it \
                 everything that it may have acknowledged",
                marker.last_kept
            );
        }
        self.finish(mender).await
    }

    /// Opens the listener, once there is anybody to heal from.
    async fn maybe_listen(&mut self) -> Result<(), StartError> {
        if self.server.is_some() || self.peers.is_empty() {
            return Ok(());
        }
        let mut server = ServerConfig::new(self.config.listen.client);
        server.reset_key = reset_key(self.config);
        server.max_connections = self.config.limits.connections;
        let service = RecoveringService::new(self.config, &self.tls, &self.me, self.phase_end.clone());
        let bulk = Arc::new(NothingYet::new(&self.me, self.phase_end.clone()));
        self.server = Some(Server::start_with_bulk(server, self.tls.clone(), service, bulk).await?);
        (self.announce)();
        Ok(())
    }

    async fn survey(&self) -> Result<Mender<RealDisk>, StartError> {
        let disk = RealDisk::open(&self.config.data_dir);
        let options = log_options(self.config, &self.tls);
        let opened = tokio::task::spawn_blocking(move || Mender::open(disk, options)).await;
        let opened = opened.map_err(|cause| StartError::Thread(std::io::Error::other(cause)))?;
        opened.map_err(|source| StartError::Log { dir: self.config.data_dir.clone(), source })
    }

    async fn close_holes(
        &self,
        fetcher: &Fetcher,
        mender: &mut Mender<RealDisk>,
        holes: &[Found],
    ) -> Result<(), StartError> {
        let (mut pause, mut turn) = (PAUSE_MIN, 0);
        while let Some(wanted) = mender.wanted() {
            let range = holes.get(wanted.hole).map(range_of);
            self.say(NodeState::Recovering, range.clone());
            let mut hole = Open { mender, number: wanted.hole };
            match fetcher.round(&self.peers, &mut turn, &mut hole).await.map_err(|cause| self.failed(&cause))? {
                Round::Closed => {
                    info!("entries {} to {} were fetched and put in their place", wanted.first, wanted.last);
                    self.phase.send_modify(|phase| {
                        let first = holes.get(wanted.hole).map(|hole| hole.first);
                        phase.holes.retain(|(begins, _)| Some(*begins) != first);
                    });
                    pause = PAUSE_MIN;
                }
                Round::Nobody(sentences) => {
                    let left = holes.get(wanted.hole..).unwrap_or_default().to_vec();
                    let why = format!("no other node has what fits there ({})", sentences.join("; "));
                    return Err(damaged_beyond(self.config, left, why, Alone::No));
                }
                Round::Later(sentences) => {
                    self.say(NodeState::Damaged, range);
                    warn!(
                        "entries {} to {} are fetched as soon as a node that has them is reached: {}",
                        wanted.first,
                        wanted.last,
                        sentences.join("; ")
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
        Ok(())
    }

    async fn finish(&self, mender: Mender<RealDisk>) -> Result<(), StartError> {
        let finished = tokio::task::spawn_blocking(move || mender.finish()).await;
        let finished = finished.map_err(|cause| StartError::Thread(std::io::Error::other(cause)))?;
        let mended = finished.map_err(|cause| self.failed(&cause))?;
        info!(
            entries = mended.entries,
            quarantine = mended.quarantine.as_deref().unwrap_or("-"),
            "the log is mended; what was damaged is kept in the quarantine"
        );
        if !mended.left.is_empty() {
            let why = "these places could not be mended".to_owned();
            return Err(damaged_beyond(self.config, mended.left, why, Alone::No));
        }
        if !mended.hard_state_certain {
            return Err(StartError::InDoubt { dir: self.config.data_dir.clone(), why: VOTE_IN_DOUBT.to_owned() });
        }
        Ok(())
    }

    fn say(&self, state: NodeState, range: Option<DamagedRange>) {
        self.phase.send_modify(|phase| phase.health = Health { state, range });
    }

    fn failed(&self, cause: &MendError) -> StartError {
        let cause = match std::error::Error::source(cause) {
            Some(source) => format!("{cause}: {source}"),
            None => cause.to_string(),
        };
        StartError::Mending { dir: self.config.data_dir.clone(), cause }
    }
}

/// Why a node whose damaged part may have held a vote does not start.
pub(super) const VOTE_IN_DOUBT: &str = "its entries are whole again, but a term or a vote may have stood in the damaged part: with it forgotten the node could vote twice";

/// One hole of a log that is being mended.
struct Open<'a> {
    mender: &'a mut Mender<RealDisk>,
    number: usize,
}

impl Hole for Open<'_> {
    fn wanted(&mut self) -> Result<Option<(u64, u64)>, MendError> {
        let wanted = self.mender.wanted().filter(|wanted| wanted.hole == self.number);
        Ok(wanted.map(|wanted| (wanted.first, wanted.last)))
    }

    fn fill(&mut self, frames: &[Frame]) -> Result<Filled, MendError> {
        // Writes, and syncs at the end of a hole: the listener goes on meanwhile on another thread.
        tokio::task::block_in_place(|| self.mender.fill(self.number, frames))
    }
}

/// The newest membership that can be read.
fn newest_members(frames: &[Frame]) -> Option<Members> {
    frames.iter().find_map(|frame| Members::decode(&frame.body().concat()).ok())
}

enum Alone {
    Yes,
    No,
}

fn damaged_beyond(config: &NodeConfig, holes: Vec<Found>, why: String, alone: Alone) -> StartError {
    let damage: Vec<String> = holes.iter().take(HOLES_TOLD).map(ToString::to_string).collect();
    let more = holes.len().saturating_sub(HOLES_TOLD);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    StartError::Unmendable {
        dir: config.data_dir.clone(),
        damage: format!("{}{more}", damage.join(", ")),
        why,
        alone: matches!(alone, Alone::Yes),
    }
}

/// Holes that a sentence names.
const HOLES_TOLD: usize = 4;

fn range_of(hole: &Found) -> DamagedRange {
    DamagedRange { first: hole.first, last: hole.last, segment: hole.segment.to_string(), from: hole.from, to: hole.to }
}
