//! A node's threads, started and stopped as one.
//!
//! | thread | what it does |
//! |---|---|
//! | protocol | the replica and the peers' endpoint ([`super::protocol`]) |
//! | log | writes and syncs ([`super::log_thread`]) |
//! | load | reads old frames for followers ([`super::load_thread`]) |
//! | scrub | re-reads sealed segments, mends what rotted ([`super::scrub`]) |
//!
//! The client plane ([`super::service`]) runs beside them on a runtime of its own.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use graven_frame::FrameError;
use graven_net::bulk::BulkIdentity;
use graven_net::peer::{PeerConfig, PeerPlane, Roster, RosterEntry};
use graven_net::server::LeaderView;
use graven_net::tls::{Identity as Certified, TlsFiles, TlsIdentity};
use graven_net::transport::ResetKey;
use graven_raft::{NodeId, Tick};
use graven_wal::mend::Marker;
use graven_wal::{Disk, LogReader, ReadError, RealDisk, SyncMethod, Wal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use super::bulk::{Health, Suspects};
use super::bulk_fetch::Fetcher;
use super::counters::Counters;
use super::input::{Budget, INPUTS_MAX, Input};
use super::mending::VOTE_IN_DOUBT;
use super::pictures::{self, PICTURE_TASKS_MAX};
use super::protocol::{Channels, Protocol};
use super::scrub::{self, Scrubber};
use super::{checkpoints, divergence, load_thread, log_thread, peers_file, states};
use crate::config::{NodeConfig, SyncMode};
use crate::members::Members;
use crate::replica::disk::DiskError;
use crate::replica::names::Directory;
use crate::replica::restore::{self, RestoreError};
use crate::replica::{Alarm, LostEnd, Now, RING_BYTES, Replica, ReplicaConfig, StateError, View};

/// Peer events that may wait for the protocol thread: each holds at most an append of about 256 KiB, so 32 MiB; the lanes
/// stop reading then.
const PEER_EVENTS_MAX: usize = 128;
/// Jobs that may wait for the log thread. With 256 of them the replica takes no more entries; the rest is for votes, of which there
/// is one in an election timeout at most, while a disk that hangs for half a minute ends the process: it is never reached.
const JOBS_MAX: usize = 1024;
/// Loads that may wait: one or a few for each of at most six followers.
const LOADS_MAX: usize = 64;
/// Fetches of checkpoints that may wait: a replica has one under way.
const FETCHES_MAX: usize = 2;
/// Space kept ready ahead of the log, three times what a leader may have uncommitted: so a full disk is known, and told, before an
/// entry meets it. As much as the log's own margin, below which it calls the disk full.
const READY_BYTES: u64 = 16 << 20;
/// Reasons to stop that may wait: the first one stops the node, whatever others say meanwhile.
const FATALS_MAX: usize = 4;
/// Bytes of frames read at a time when a node starts.
const START_READ_BYTES: usize = 4 << 20;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The certificate, key or authority cannot be used.
    #[error(transparent)]
    Tls(#[from] graven_net::tls::TlsError),
    /// The certificate is somebody else's.
    #[error("{file}: {reason}; `graven certs check {file}` shows what it is", file = file.display())]
    WrongCertificate {
        /// The certificate's file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The log cannot be opened.
    #[error("{source}")]
    Log {
        /// Where it lives.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: graven_wal::OpenError,
    },
    /// The log opened, but reading it back failed.
    #[error("the log in {} cannot be read: {cause}", dir.display())]
    Read {
        /// Where it lives.
        dir: PathBuf,
        /// Why not.
        cause: String,
    },
    /// The log opened, and with the checkpoints beside it is nothing to start from.
    #[error("{}: {source}", dir.display())]
    Restore {
        /// Where it lives.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: RestoreError,
    },
    /// The cluster uses what this software does not know.
    #[error(
        "the cluster is at feature level {in_force}, this software knows levels up to {known}; start a newer graven here"
    )]
    FeatureLevel {
        /// The level in force, as this node's log has it.
        in_force: u32,
        /// The highest that is known.
        known: u32,
    },
    /// The log is damaged, and no other node has what would mend it.
    #[error("the log in {} is damaged: {damage}; nothing was deleted, and {why}", dir.display())]
    Unmendable {
        /// Where it lives.
        dir: PathBuf,
        /// The damaged places.
        damage: String,
        /// Why they stay damaged.
        why: String,
        /// Whether there is no other node.
        alone: bool,
    },
    /// The log is whole, and what this node promised may have been lost all the same.
    #[error("the log in {} was damaged: {why}", dir.display())]
    InDoubt {
        /// Where it lives.
        dir: PathBuf,
        /// What may be lost.
        why: String,
    },
    /// An earlier life of this node found that its log differs from another's.
    #[error("{} is not used any more: {why} (the file `diverged` in it says so)", dir.display())]
    Diverged {
        /// Where it lives.
        dir: PathBuf,
        /// What was found.
        why: String,
    },
    /// The disk failed while the log was being mended.
    #[error("the log in {} is damaged and cannot be mended: {cause}", dir.display())]
    Mending {
        /// Where it lives.
        dir: PathBuf,
        /// What the disk said.
        cause: String,
    },
    /// Retention is for nodes without a state machine.
    #[error("[retention] is set in {}, and the log of a state machine is trimmed behind its snapshots alone: remove the section and see [snapshot]", file.display())]
    Retention {
        /// The configuration.
        file: PathBuf,
    },
    /// A socket cannot be bound, or the peers' endpoint does not start.
    #[error(transparent)]
    Peers(#[from] graven_net::peer::StartError),
    /// The listener for clients does not start.
    #[error(transparent)]
    Clients(#[from] graven_net::server::StartError),
    /// The system refused a thread or a runtime.
    #[error("the system refused to start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// Why a running node must stop.
#[derive(Debug)]
pub enum Fatal {
    /// The log failed and is closed.
    Log(DiskError),
    /// The replica says so.
    Alarm(Alarm),
    /// The state machine failed.
    Machine(String),
    /// The cluster went to a feature level that this software does not know.
    FeatureLevel {
        /// The level in force.
        in_force: u32,
        /// The highest that is known.
        known: u32,
    },
    /// A peer says, and went on saying, that this process is not the node it claims to be.
    Disowned {
        /// Its id.
        by: u64,
        /// Why.
        refusal: String,
    },
}

impl std::fmt::Display for Fatal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fatal::Log(cause) => write!(f, "{cause}"),
            Fatal::Alarm(alarm) => write!(f, "{alarm}"),
            Fatal::Machine(cause) => write!(f, "the state machine failed: {cause}"),
            Fatal::FeatureLevel { in_force, known } => {
                StartError::FeatureLevel { in_force: *in_force, known: *known }.fmt(f)
            }
            Fatal::Disowned { by, refusal } => {
                write!(f, "node {by} does not take this process for its peer: {refusal}")
            }
        }
    }
}

/// What every part of a node may look at.
pub(super) struct Shared {
    pub(super) config: NodeConfig,
    pub(super) identity: graven_wal::Identity,
    pub(super) tls: TlsIdentity,
    pub(super) started: Instant,
    pub(super) reader: LogReader,
    pub(super) counters: Arc<Counters>,
    pub(super) budget: Arc<Budget>,
    pub(super) view: watch::Receiver<View>,
    pub(super) leader: watch::Receiver<LeaderView>,
    pub(super) members: watch::Receiver<Members>,
    pub(super) names: watch::Receiver<Arc<Directory>>,
    pub(super) health: watch::Receiver<Health>,
    pub(super) suspects: Suspects,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) reset_key: Option<ResetKey>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("name", &self.config.name)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// A node's running threads.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) fatal: mpsc::Receiver<Fatal>,
    /// For threads that join later: the state machine's.
    pub(super) fatal_sender: mpsc::Sender<Fatal>,
    threads: Vec<JoinHandle<()>>,
    stop_scrub: watch::Sender<bool>,
}

impl Engine {
    /// Opens the log and starts the threads. `state_machine` tells that somebody will report what is applied.
    pub(super) async fn start(config: NodeConfig, state_machine: bool) -> Result<Engine, StartError> {
        let started = Instant::now();
        let tls = load_tls(&config)?;
        check_certificate(&config, &tls)?;
        if let Some(why) = divergence::found(&config.data_dir) {
            return Err(StartError::Diverged { dir: config.data_dir.clone(), why });
        }
        let (wal, recovered) = open_log(&config, &tls)?;
        let identity = recovered.identity;
        let reader = wal.reader();
        let mut replica = restore(&config, wal.disk(), &recovered, &reader, state_machine)?;
        replica.knows_level(config.feature_level);
        if let Some((in_force, known)) = replica.outgrown() {
            return Err(StartError::FeatureLevel { in_force, known });
        }
        pictures::sweep(wal.disk(), &replica.named_pictures())
            .map_err(|cause| StartError::Restore { dir: config.data_dir.clone(), source: cause.into() })?;
        let members = replica.members().cloned().unwrap_or_default();
        let roster = roster_of(&replica.company());

        let (inputs, inputs_end) = mpsc::channel(INPUTS_MAX);
        let (peers, peers_end) = mpsc::channel(PEER_EVENTS_MAX);
        let (reports, reports_end) = mpsc::channel(JOBS_MAX);
        let (jobs, jobs_end) = sync_channel(JOBS_MAX);
        let (loads, loads_end) = sync_channel(LOADS_MAX);
        let (fetches, fetches_end) = mpsc::channel(FETCHES_MAX);
        let (view, view_end) = watch::channel(replica.view());
        let (leader, leader_end) = watch::channel(LeaderView::default());
        let (members_sender, members_end) = watch::channel(members);
        let (names, names_end) = watch::channel(Arc::new(replica.names().clone()));
        let (pictures, pictures_end) = mpsc::channel(PICTURE_TASKS_MAX);
        let (fatal_sender, fatal) = mpsc::channel(FATALS_MAX);
        let (health, health_end) = watch::channel(Health::whole());
        let (suspects, suspected) = Suspects::new();
        let counters = Arc::new(Counters::default());
        let scrubber = Scrubber {
            reader: reader.clone(),
            fetcher: Fetcher {
                local: BulkIdentity {
                    cluster: identity.cluster,
                    node: identity.node,
                    incarnation: identity.incarnation,
                },
                tls: tls.clone(),
            },
            members: members_end.clone(),
            jobs: jobs.clone(),
            suspects: suspected,
            health,
            inputs: inputs.clone(),
            data_dir: config.data_dir.clone(),
            counters: Arc::clone(&counters),
            bytes_per_second: config.wal.scrub_bytes_per_second,
        };
        let (stop_scrub, scrub_stopped) = watch::channel(false);
        let channels = Channels {
            inputs: inputs_end,
            peers: peers_end,
            reports: reports_end,
            jobs,
            loads,
            fetches,
            pictures,
            view,
            leader,
            members: members_sender,
            names,
            fatal: fatal_sender.clone(),
        };
        let shared = Arc::new(Shared {
            budget: Budget::new(config.limits.queue_bytes),
            identity,
            tls: tls.clone(),
            started,
            reader: reader.clone(),
            counters: Arc::clone(&counters),
            view: view_end,
            leader: leader_end,
            members: members_end,
            names: names_end,
            health: health_end,
            suspects: suspects.clone(),
            inputs: inputs.clone(),
            reset_key: reset_key(&config),
            config,
        });
        let mut threads = Vec::new();
        let peer_config = peer_config(&shared);
        threads.push(
            start_protocol(replica, peer_config, tls, roster, peers, channels, Arc::clone(&counters), started).await?,
        );
        threads.push(spawn("graven-log", move || log_thread::run(wal, &jobs_end, &reports, &counters))?);
        threads.push(spawn("graven-load", move || load_thread::run(&reader, &loads_end, &inputs, &suspects))?);
        threads.push(spawn("graven-scrub", move || scrub::run(scrubber, scrub_stopped))?);
        tokio::spawn(peers_file::keep(shared.members.clone(), shared.config.clone(), identity.node));
        tokio::spawn(checkpoints::fetch_all(Arc::clone(&shared), fetches_end));
        tokio::spawn(pictures::keep(Arc::clone(&shared), pictures_end));
        tokio::spawn(pictures::scrub(Arc::downgrade(&shared)));
        Ok(Engine { shared, fatal, fatal_sender, threads, stop_scrub })
    }

    /// Hands the leadership over if it is here; returns when it is elsewhere, or after a few seconds.
    pub(super) async fn step_down(&self) {
        let (done, handed) = oneshot::channel();
        if self.shared.inputs.send(Input::StepDown(done)).await.is_ok() {
            // An error means that the protocol thread is gone, and the leadership with it.
            let _ = handed.await;
        }
    }

    /// Ends the threads: the log is synced and closed. Blocks for as long as the disk needs.
    pub(super) fn stop(self) {
        let Engine { shared, threads, stop_scrub, .. } = self;
        // First: it holds an end of the log thread's queue, which closes the log when all are gone.
        stop_scrub.send_replace(true);
        // A full channel means that the thread is alive and reads; a closed one that it ended already.
        let _ = shared.inputs.blocking_send(Input::Stop);
        drop(shared);
        for thread in threads {
            // A panic was printed where it happened.
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(StartError::Thread)
}

#[allow(clippy::too_many_arguments, reason = "what one thread is given to own, once")]
async fn start_protocol(
    replica: Replica,
    peer_config: PeerConfig,
    tls: TlsIdentity,
    roster: Roster,
    peers: mpsc::Sender<graven_net::peer::PeerEvent>,
    channels: Channels,
    counters: Arc<Counters>,
    started: Instant,
) -> Result<JoinHandle<()>, StartError> {
    let (ready, is_ready) = oneshot::channel();
    let thread = spawn("graven-protocol", move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(cause) => return drop(ready.send(Err(StartError::Thread(cause)))),
        };
        runtime.block_on(async move {
            match PeerPlane::start(peer_config, tls, roster, peers).await {
                Ok(plane) => {
                    warn_of_small_buffers(&plane);
                    let _ = ready.send(Ok(()));
                    Protocol::new(replica, plane, channels, counters, started).run().await;
                }
                Err(cause) => drop(ready.send(Err(cause.into()))),
            }
        });
    })?;
    match is_ready.await {
        Ok(result) => result.map(|()| thread),
        Err(_) => Err(StartError::Thread(std::io::Error::other("the protocol thread ended at once"))),
    }
}

/// Segments to keep ready: the reserve, and space for [`READY_BYTES`].
fn prepared_segments(segment_bytes: u64) -> usize {
    1 + usize::try_from(READY_BYTES.div_ceil(segment_bytes.max(1))).unwrap_or(1)
}

fn warn_of_small_buffers(plane: &PeerPlane) {
    let socket = plane.stats().socket;
    if socket.capped() {
        warn!(
            "socket buffers of {} bytes to receive and {} to send were granted, {} are wanted: under load packets will be \
             dropped and sent again; raise net.core.rmem_max and net.core.wmem_max to {}",
            socket.receive, socket.send, socket.wanted, socket.wanted
        );
    }
}

/// This node's own certificate.
pub(super) fn load_tls(config: &NodeConfig) -> Result<TlsIdentity, StartError> {
    Ok(TlsIdentity::load(TlsFiles {
        ca: config.tls.ca.clone(),
        certificate: config.tls.certificate.clone(),
        key: config.tls.key.clone(),
    })?)
}

/// How this node's log is opened.
pub(super) fn log_options(config: &NodeConfig, tls: &TlsIdentity) -> graven_wal::Options {
    // Whose certificate this node has tells whose log it may touch: a foreign directory is refused before a byte of it changes.
    let (expect_cluster, expect_node) = match tls.current().identity() {
        Certified::Node(node) => (Some(node.cluster), Some(node.node)),
        _ => (None, None),
    };
    graven_wal::Options {
        expect_cluster,
        expect_node,
        prepared_segments: prepared_segments(config.wal.segment_bytes),
        segment_bytes: config.wal.segment_bytes,
        sync: match config.wal.sync {
            SyncMode::Fdatasync => SyncMethod::Fdatasync,
            SyncMode::Dsync => SyncMethod::Dsync,
            SyncMode::Direct => SyncMethod::Direct,
            SyncMode::None => SyncMethod::UnsafeNone,
        },
        ..graven_wal::Options::default()
    }
}

fn open_log(config: &NodeConfig, tls: &TlsIdentity) -> Result<(Wal<RealDisk>, graven_wal::Recovered), StartError> {
    let dir = config.data_dir.clone();
    let disk = RealDisk::open(&config.data_dir);
    read_marker(&disk, config)?;
    let (wal, recovered) =
        Wal::open(disk, log_options(config, tls)).map_err(|source| StartError::Log { dir: dir.clone(), source })?;
    let report = &recovered.report;
    info!(
        first = recovered.first_index,
        last = recovered.last_index,
        rewritten_bytes = report.rewritten_bytes,
        torn_bytes = report.torn_bytes,
        "log opened"
    );
    if let Some(file) = &report.saved_as {
        warn!(
            "an unfinished write of {} bytes was cut from the log's end; its bytes are kept in {file}",
            report.torn_bytes
        );
    }
    for damage in &report.healed {
        warn!("healed damage, look at the disk: {damage}");
    }
    Ok((wal, recovered))
}

/// A log that was mended may have lost what this node promised; the marker beside it says so, before anything votes. Returns the last entry
/// that this node must have again before it does.
fn read_marker<D: Disk>(disk: &D, config: &NodeConfig) -> Result<Option<LostEnd>, StartError> {
    let doubt = |why: String| Err(StartError::InDoubt { dir: config.data_dir.clone(), why });
    match Marker::read(disk) {
        Ok(None) => Ok(None),
        Ok(Some(marker)) if !marker.hard_state_certain => doubt(VOTE_IN_DOUBT.to_owned()),
        Ok(Some(marker)) => {
            warn!(
                "this log lost its end behind entry {}: no vote before a leader has brought what may have been acknowledged there",
                marker.last_kept
            );
            Ok(Some(LostEnd { index: marker.highest_index, term: marker.highest_term }))
        }
        Err(cause) => doubt(format!("what is left to say about it cannot be read: {cause}")),
    }
}

pub(super) fn check_certificate(config: &NodeConfig, tls: &TlsIdentity) -> Result<(), StartError> {
    let wrong = |reason: String| StartError::WrongCertificate { file: config.tls.certificate.clone(), reason };
    match tls.current().identity() {
        Certified::Node(node) if node.name != config.name => {
            Err(wrong(format!("the certificate is of node {}, this is node {}", node.name, config.name)))
        }
        Certified::Node(_) => Ok(()),
        other => Err(wrong(format!("a node's certificate is needed, this is the certificate of {other}"))),
    }
}

fn restore<D: Disk>(
    config: &NodeConfig,
    disk: &D,
    recovered: &graven_wal::Recovered,
    reader: &LogReader,
    state_machine: bool,
) -> Result<Replica, StartError> {
    let dir = config.data_dir.clone();
    let (mut restored, set_aside) =
        restore::restore(disk, recovered, reader).map_err(|source| StartError::Restore { dir: dir.clone(), source })?;
    for name in set_aside {
        warn!("a damaged checkpoint or snapshot was set aside as {name}; another one is used, look at the disk");
    }
    if state_machine {
        restored.states = states::kept(&RealDisk::open(&config.data_dir));
    }
    let mut raft = graven_raft::Config::new(NodeId(recovered.identity.node), rand::random());
    raft.heartbeat_us = config.raft.heartbeat_ms * 1000;
    raft.election_us = config.raft.election_ms * 1000;
    raft.disk_stall_us = config.raft.disk_stall_ms * 1000;
    let frames =
        Frames { reader, next: restored.next_index(), last: recovered.last_index, ready: Vec::new().into_iter() };
    let now = Now { tick: Tick(0), wall_ms: 0 };
    let replica_config = ReplicaConfig {
        raft,
        ring_bytes: RING_BYTES,
        state_machine,
        cluster: recovered.identity.cluster,
        checkpoint_bytes: config.wal.segment_bytes,
        recovering: read_marker(disk, config)?,
        retention: config.retention,
    };
    Replica::new::<FrameOrRead>(replica_config, &restored, frames, now)
        .map_err(|cause| StartError::Read { dir, cause: cause.to_string() })
}

#[derive(Debug, thiserror::Error)]
enum FrameOrRead {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    State(#[from] StateError),
}

/// All frames of the log, read a few megabytes at a time.
struct Frames<'a> {
    reader: &'a LogReader,
    next: u64,
    last: u64,
    ready: std::vec::IntoIter<graven_frame::Frame>,
}

impl Iterator for Frames<'_> {
    type Item = Result<graven_frame::Frame, FrameOrRead>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(frame) = self.ready.next() {
            return Some(Ok(frame));
        }
        if self.next > self.last {
            return None;
        }
        match self.reader.frames(self.next, self.last, START_READ_BYTES) {
            Ok(frames) => {
                self.next += frames.len() as u64;
                self.ready = frames.into_iter();
                self.ready.next().map(Ok)
            }
            Err(cause) => {
                self.next = self.last + 1;
                Some(Err(cause.into()))
            }
        }
    }
}

fn peer_config(shared: &Shared) -> PeerConfig {
    let mut config = PeerConfig::new(
        shared.config.listen.peer,
        shared.identity.cluster,
        NodeId(shared.identity.node),
        shared.identity.incarnation,
    );
    config.reset_key = shared.reset_key;
    config.feature_level = shared.config.feature_level;
    config.advertised.clone_from(&shared.config.advertise.peer);
    config
}

/// The key with which a restarted node tells its peers and clients at once that their connections are gone. Made at the
/// first start, beside the configuration; without one, they find out by their idle timeouts.
pub(super) fn reset_key(config: &NodeConfig) -> Option<ResetKey> {
    let path = config.file.with_file_name("reset.key");
    if let Ok(bytes) = std::fs::read(&path)
        && let Ok(key) = <[u8; 32]>::try_from(bytes.as_slice())
    {
        return Some(ResetKey(key));
    }
    let key: [u8; 32] = rand::random();
    let written = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    match written.and_then(|mut file| file.write_all(&key)) {
        Ok(()) => Some(ResetKey(key)),
        Err(cause) => {
            warn!("cannot write {}: {cause}; peers notice a restart a few seconds later", path.display());
            None
        }
    }
}

/// Who may talk to this node, as the membership has it.
pub(super) fn roster_of(members: &Members) -> Roster {
    let entry = |member: &crate::members::Member| {
        let entry = RosterEntry {
            name: member.name.clone(),
            address: member.peer_address.clone(),
            incarnation: member.incarnation(),
        };
        (NodeId(member.id), entry)
    };
    Roster { members: members.present().map(entry).collect(), newest: NodeId(members.newest_id()) }
}

/// How long a node that stops may take in all before it gives up waiting.
pub(super) const STOP_MAX: Duration = Duration::from_secs(9);
