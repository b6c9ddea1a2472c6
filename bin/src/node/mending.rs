//! The phase before a node with a damaged log can start: its listener says `recovering`, and the holes are closed with frames of
//! the other nodes.
//!
//! In this phase there is no replica and no endpoint for peers: nothing votes, nothing is acknowledged, no record is served. Other nodes
//! that mend theirs are given what is right in this log, so nodes none of which is whole heal from each other. The log is as it was
//! until a hole is closed, and then only that part of it is another. When every other node has answered and none has what is missing,
//! the node ends and says what to do; as long as one cannot be reached, it goes on asking. One thing is given up: entries that every
//! other node's whole log says it never had, above all that is known to be committed. They are taken for a lost end.
//!
//! The same for the checkpoint with which a trimmed log begins, when it is damaged.

use std::sync::Arc;
use std::time::Duration;

use graven_frame::Frame;
use graven_net::bulk::BulkIdentity;
use graven_net::server::{DamagedRange, NodeState, Server, ServerConfig};
use graven_net::tls::{Identity as Certified, NodeIdentity, TlsIdentity};
use graven_snapshot::Checkpoint;
use graven_wal::mend::{self, Filled, Hole as Found, MendError, Mender, SoundFrames};
use graven_wal::{LogBase, OpenError, RealDisk};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::bulk::Health;
use super::bulk_fetch::{Fetcher, Hole, Round};
use super::checkpoints;
use super::engine::{Engine, StartError, check_certificate, load_tls, log_options, reset_key};
use super::mending_service::{Phase, RecoveringBulk, RecoveringService};
use super::peers_file::{self, Peer};
use crate::config::NodeConfig;
use crate::members::Members;
use crate::replica::restore::{self, CUT_CHECKPOINTS, RestoreError};

/// The first pause between two rounds of asking everybody, and the longest one.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Starts a node; a log that is damaged is mended first, and the listener answers meanwhile: `announce` is called once it does.
///
/// # Errors
/// [`StartError`].
pub(super) async fn start(
    config: NodeConfig,
    state_machine: bool,
    mut announce: impl FnMut(),
) -> Result<Engine, StartError> {
    mend_what_was_left(&config, &mut announce).await?;
    for _ in 0..HEALS_MAX {
        match Engine::start(config.clone(), state_machine).await {
            Ok(engine) => return Ok(engine),
            Err(cause) if may_help(&cause) => {
                error!("the log needs mending: {cause}");
                heal(&config, Patience::Whole, &mut announce).await?;
            }
            Err(cause) => return Err(cause),
        }
    }
    Engine::start(config, state_machine).await
}

/// Mends what the node's last life found and could not mend while it ran. That life went on with it, and so may this one: when nobody has
/// what is missing, or somebody who may have it is down, the node starts as it is.
///
/// # Errors
/// Anything but that the damage stays.
async fn mend_what_was_left(config: &NodeConfig, announce: &mut impl FnMut()) -> Result<(), StartError> {
    let disk = RealDisk::open(&config.data_dir);
    if !waiting(|| mend::is_asked(&disk)) {
        return Ok(());
    }
    info!("damage was found that can be mended only now: the whole log is read");
    match heal(config, Patience::OneRound, announce).await {
        Ok(()) => {}
        Err(cause @ StartError::Unmendable { .. }) => warn!("the node starts as it is: {cause}"),
        Err(cause) => return Err(cause),
    }
    // What is still damaged is found again, and then asked for again.
    waiting(|| mend::unask(&disk)).map_err(|cause| StartError::Mending {
        dir: config.data_dir.clone(),
        cause: format!("the wish to mend it cannot be taken back: {cause}"),
    })
}

/// How long damage is mended before the node starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Until it is mended, or nobody can: the node does not start with it.
    Whole,
    /// Until everybody who can be reached was asked once.
    OneRound,
}

/// One heal closes every hole that was found. A second one is for what broke meanwhile; more would go around in circles.
const HEALS_MAX: usize = 2;

/// How long a node that gives up goes on to answer others: longer than the longest pause between two rounds of theirs, with some time to
/// find those that are down.
const LINGER: Duration = Duration::from_secs(12);

/// Whether a node that did not start for this reason may start when its log is mended.
fn may_help(cause: &StartError) -> bool {
    match cause {
        StartError::Log { source, .. } => {
            matches!(source, OpenError::Damaged(_) | OpenError::MissingSegment { .. } | OpenError::WrongChain { .. })
        }
        StartError::Restore { source, .. } => {
            matches!(source, RestoreError::FilesMissing { .. } | RestoreError::Headless { .. } | RestoreError::Read(_))
        }
        StartError::Read { .. } => true,
        _ => false,
    }
}

/// Mends the log of the node that `config` describes. `announce` is called once its listener answers.
///
/// # Errors
/// [`StartError::Unmendable`] and [`StartError::InDoubt`] when this is not the way out; anything that keeps a node from starting.
async fn heal(config: &NodeConfig, patience: Patience, announce: impl FnMut()) -> Result<(), StartError> {
    let tls = load_tls(config)?;
    check_certificate(config, &tls)?;
    let Certified::Node(me) = tls.current().identity().clone() else {
        return Err(damaged_beyond(config, Vec::new(), "its certificate is no node's".to_owned(), Alone::No));
    };
    let peers = peers_file::read(config);
    let health = Health { state: NodeState::Recovering, range: None };
    let (phase, phase_end) =
        watch::channel(Phase { health, peers: peers.clone(), incarnation: 0, sound: None, base: 0 });
    let mut healing = Healing { config, patience, tls, me, peers, phase, phase_end, server: None, announce };
    let healed = healing.run().await;
    if let Err(cause @ StartError::Unmendable { .. }) = &healed
        && healing.server.is_some()
        && patience == Patience::Whole
    {
        // Whoever lacks the same must hear this node's answer too, or would wait for it for ever.
        error!("{cause}; this node answers others for {} s more, and ends", LINGER.as_secs());
        tokio::time::sleep(LINGER).await;
    }
    if let Some(server) = healing.server.take() {
        server.close().await;
    }
    healed
}

struct Healing<'a, F: FnMut()> {
    config: &'a NodeConfig,
    patience: Patience,
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
            phase.base = mender.base().index;
        });
        self.show(&mender);
        let holes = mender.holes().to_vec();
        holes.iter().for_each(|hole| error!("the log is damaged: {}", hole));
        if self.peers.is_empty() && (mender.has_damaged_tail() || holes.iter().any(Found::needs_frames)) {
            let why = "this node is alone in its cluster: nobody else has these entries".to_owned();
            return Err(damaged_beyond(self.config, holes, why, Alone::Yes));
        }
        self.maybe_listen().await?;
        let local = BulkIdentity { cluster: identity.cluster, node: identity.node, incarnation: identity.incarnation };
        let fetcher = Fetcher { local, tls: self.tls.clone() };
        self.close_holes(&fetcher, &mut mender).await?;
        self.maybe_fetch_checkpoint(&fetcher, &mender).await?;
        if let Some(kept) = mender.kept_before_tail() {
            // Before the cut: a start that finds a log shorter than its checkpoint would take that for a lost end, and stop there.
            let disk = RealDisk::open(&self.config.data_dir);
            waiting(|| graven_snapshot::move_above(&disk, kept, CUT_CHECKPOINTS))
                .map_err(|cause| self.unsaved(&cause))?;
            // Which entries were acknowledged there nobody can tell: the marker keeps this node from voting until it has them again.
            let marker = waiting(|| mender.cut_tail()).map_err(|cause| self.failed(&cause))?;
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
        let bulk = Arc::new(RecoveringBulk::new(self.config, &self.me, self.phase_end.clone()));
        self.server = Some(Server::start_with_bulk(server, self.tls.clone(), service, bulk).await?);
        (self.announce)();
        Ok(())
    }

    async fn survey(&self) -> Result<Mender<RealDisk>, StartError> {
        let disk = RealDisk::open(&self.config.data_dir);
        let options = log_options(self.config, &self.tls);
        let open = move || {
            let origin = restore::origin(&disk);
            let mut mender = Mender::open_behind(disk.clone(), options, origin)?;
            mender.note_committed(restore::committed_by_checkpoints(&disk));
            Ok(mender)
        };
        let opened = tokio::task::spawn_blocking(open).await;
        let opened = opened.map_err(|cause| StartError::Thread(std::io::Error::other(cause)))?;
        opened.map_err(|source| StartError::Log { dir: self.config.data_dir.clone(), source })
    }

    async fn close_holes(&self, fetcher: &Fetcher, mender: &mut Mender<RealDisk>) -> Result<(), StartError> {
        let (mut pause, mut turn) = (PAUSE_MIN, 0);
        while let Some(wanted) = mender.wanted() {
            let hole = mender.holes().get(wanted.hole).cloned();
            let range = hole.as_ref().map(range_of);
            self.say(NodeState::Recovering, range.clone());
            let mut open = Open { mender: &mut *mender, number: wanted.hole };
            match fetcher.round(&self.peers, &mut turn, &mut open).await.map_err(|cause| self.failed(&cause))? {
                Round::Closed => {
                    info!("entries {} to {} were fetched and put in their place", wanted.first, wanted.last);
                    self.show(mender);
                    pause = PAUSE_MIN;
                }
                Round::Nobody { sentences, never } => {
                    let said = sentences.join("; ");
                    if !(never && waiting(|| mender.give_up(wanted.hole)).is_ok()) {
                        let left = mender.holes().get(wanted.hole..).unwrap_or_default().to_vec();
                        let why = format!("no other node has what fits there ({said})");
                        return Err(damaged_beyond(self.config, left, why, Alone::No));
                    }
                    warn!(
                        "entries from {} on were never committed as far as anybody knows, and no other node has them ({said}): the log \
                         is ended before them, and what stands behind is kept aside",
                        hole.map_or(wanted.first, |hole| hole.first)
                    );
                    self.show(mender);
                }
                Round::Later(sentences) if self.patience == Patience::OneRound => {
                    let why = format!("not every node could be asked ({})", sentences.join("; "));
                    let left = mender.holes().get(wanted.hole..).unwrap_or_default().to_vec();
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

    /// Sees to it that a log that was trimmed has a checkpoint to begin with: this node's own, or one that another node made.
    async fn maybe_fetch_checkpoint(&self, fetcher: &Fetcher, mender: &Mender<RealDisk>) -> Result<(), StartError> {
        let wanted = Beginning::of(mender);
        let disk = RealDisk::open(&self.config.data_dir);
        if waiting(|| wanted.is_there(&disk)) || self.peers.is_empty() {
            return Ok(());
        }
        let base = wanted.base.index;
        error!(
            "the checkpoint with which this log begins, behind entry {base}, cannot be used: another node's is fetched"
        );
        let mut pause = PAUSE_MIN;
        loop {
            let (mut sentences, mut all_answered) = (Vec::new(), true);
            for peer in &self.peers {
                let config = fetcher.config_for(peer);
                match checkpoints::fetch_from(config, &fetcher.tls, base).await {
                    Ok(found) if waiting(|| wanted.takes(&found)) => {
                        waiting(|| graven_snapshot::save(&disk, &found)).map_err(|cause| self.unsaved(&cause))?;
                        let index = found.base.index;
                        info!("the checkpoint at entry {index} of node {} takes the place of this node's", peer.name);
                        return Ok(());
                    }
                    Ok(found) => {
                        let index = found.base.index;
                        sentences
                            .push(format!("the checkpoint at entry {index} of node {} is not of this log", peer.name));
                    }
                    Err(cause) => {
                        all_answered &= cause.is_final();
                        sentences.push(cause.to_string());
                    }
                }
            }
            let said = sentences.join("; ");
            if all_answered {
                return Err(StartError::Unmendable {
                    dir: self.config.data_dir.clone(),
                    damage: format!("the checkpoint of what was before entry {} cannot be used", base + 1),
                    why: format!("no other node has one that fits ({said})"),
                    alone: false,
                });
            }
            self.say(NodeState::Damaged, None);
            warn!("a checkpoint is fetched as soon as a node that has one is reached: {said}");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
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

    /// Lets other nodes have what is right in this log.
    fn show(&self, mender: &Mender<RealDisk>) {
        self.phase.send_modify(|phase| phase.sound = Some(mender.sound_frames()));
    }

    fn unsaved(&self, cause: &graven_snapshot::CheckpointError) -> StartError {
        StartError::Mending { dir: self.config.data_dir.clone(), cause: cause.to_string() }
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
        waiting(|| self.mender.fill(self.number, frames))
    }
}

/// What a checkpoint must be for a log to begin with it.
struct Beginning {
    cluster: u128,
    base: LogBase,
    sound: SoundFrames<RealDisk>,
}

impl Beginning {
    fn of(mender: &Mender<RealDisk>) -> Beginning {
        Beginning { cluster: mender.identity().cluster, base: mender.base(), sound: mender.sound_frames() }
    }

    /// Whether the log needs none, or has one.
    fn is_there(&self, disk: &RealDisk) -> bool {
        if self.base.index == 0 {
            return true;
        }
        let stored = graven_snapshot::stored(disk).unwrap_or_default();
        stored.into_iter().any(|index| {
            index >= self.base.index && graven_snapshot::load(disk, index).is_ok_and(|found| self.takes(&found))
        })
    }

    /// Whether the log goes on behind it: of this cluster, and made of the very entry that stands there.
    fn takes(&self, found: &Checkpoint) -> bool {
        let index = found.base.index;
        if found.cluster != self.cluster || index < self.base.index {
            return false;
        }
        if index == self.base.index {
            return found.base == self.base;
        }
        let frames = self.sound.frames(index, index, 1).unwrap_or_default();
        frames.first().is_some_and(|frame| LogBase::after(frame.header()) == found.base)
    }
}

/// Runs what reads, writes and syncs. On a runtime of several threads the listener goes on meanwhile; on that of a program with one thread
/// for everything it waits.
fn waiting<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
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
