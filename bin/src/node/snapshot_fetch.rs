//! Fetching a snapshot from whoever has it.
//!
//! Peers are asked in turn. What was received stays in its file, chunk by chunk verified, so that a lost connection, another peer or a
//! restart of this node goes on with the first chunk that is missing. A peer that breaks off after it gave something is asked again at
//! once; when nobody gives anything, all are asked again after a pause, a few times.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use graven_net::bulk::{
    BulkClient, BulkConfig, BulkError, BulkIdentity, Refusal, SnapshotResume, SnapshotStream, SnapshotWanted,
};
use graven_net::tls::TlsIdentity;
use graven_snapshot::body::{self, BodyError, Info, Options, Partial};
use graven_wal::RealDisk;
use tokio::sync::mpsc;

use super::engine::Shared;
use super::peers_file::Peer;

/// Who fetches, and where to.
#[derive(Debug, Clone)]
pub(super) struct SnapshotFetcher {
    pub(super) local: BulkIdentity,
    pub(super) tls: TlsIdentity,
    pub(super) disk: RealDisk,
    /// Bytes a second at most; 0 sets no bound.
    pub(super) bytes_per_second: u64,
    /// Bytes that must stay free on the disk for the log.
    pub(super) keep_free_bytes: u64,
    /// Between two rounds in which nobody gave anything, at first.
    pub(super) pause: Duration,
}

/// Why a snapshot was not fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// Everybody has answered: nobody has it.
    #[error("no other node has it: {}", .0.join("; "))]
    Nobody(Vec<String>),
    /// Somebody could not be asked. What was received is kept.
    #[error("it could not be had yet: {}", .0.join("; "))]
    Later(Vec<String>),
    /// This node's own disk.
    #[error(transparent)]
    Own(#[from] BodyError),
}

/// Why one peer did not give all of it.
enum Ended {
    /// It has not what fits.
    Lacks(String),
    /// It cannot be asked now, or no more.
    Away(String),
    Own(BodyError),
}

type Received = Option<Partial<RealDisk>>;

/// What is fetched.
#[derive(Clone, Copy)]
struct Goal<'a> {
    wanted: SnapshotWanted,
    fits: &'a (dyn Fn(&Info) -> bool + Send + Sync),
}

impl Goal<'_> {
    fn is(&self, cluster: u128, info: &Info) -> bool {
        let header = &info.header;
        let asked = match self.wanted {
            SnapshotWanted::Id(id) => !header.name.is_own() && header.id == id,
            SnapshotWanted::Own { offset } => header.name.is_own() && header.offset >= offset,
        };
        asked && header.cluster == cluster && (self.fits)(info)
    }
}

impl SnapshotFetcher {
    pub(super) fn of(shared: &Shared) -> SnapshotFetcher {
        let identity = shared.identity;
        SnapshotFetcher {
            local: BulkIdentity { cluster: identity.cluster, node: identity.node, incarnation: identity.incarnation },
            tls: shared.tls.clone(),
            disk: RealDisk::open(&shared.config.data_dir),
            bytes_per_second: shared.config.snapshot.transfer_rate,
            // A segment to write, one to prepare, and the margin below which the log calls its disk full.
            keep_free_bytes: 2 * shared.config.wal.segment_bytes + LOG_MARGIN_BYTES,
            pause: PAUSE,
        }
    }

    /// Fetches a snapshot that `fits`; it is durable under its name when this returns.
    ///
    /// # Errors
    /// [`FetchError`]. What was received is kept for the next time, unless this node's disk failed.
    ///
    /// # Cancel safety
    /// What was received stays in its file.
    pub(super) async fn fetch(
        &self,
        wanted: SnapshotWanted,
        peers: &(dyn Fn() -> Vec<Peer> + Send + Sync),
        fits: &(dyn Fn(&Info) -> bool + Send + Sync),
    ) -> Result<Info, FetchError> {
        let goal = Goal { wanted, fits };
        let mut received = self.begun(goal).await?;
        let (mut idle, mut pause) = (0, self.pause);
        loop {
            let (mut sentences, mut all_answered, mut progress) = (Vec::new(), true, false);
            for peer in peers() {
                let ended = loop {
                    let before = count(&received);
                    match self.ask(&peer, goal, &mut received).await {
                        Ok(info) => return Ok(info),
                        Err(Ended::Away(_)) if count(&received) > before => progress = true,
                        Err(ended) => break ended,
                    }
                };
                match ended {
                    Ended::Own(error) => return Err(error.into()),
                    Ended::Lacks(sentence) => sentences.push(sentence),
                    Ended::Away(sentence) => {
                        all_answered = false;
                        sentences.push(sentence);
                    }
                }
            }
            if progress {
                (idle, pause) = (0, self.pause);
            } else if all_answered {
                return Err(FetchError::Nobody(sentences));
            } else {
                idle += 1;
                if idle == IDLE_ROUNDS_MAX {
                    return Err(FetchError::Later(sentences));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// What an earlier life of this node has received of it.
    async fn begun(&self, goal: Goal<'_>) -> Result<Received, BodyError> {
        let disk = self.disk.clone();
        let found = blocking(move || body::partials(&disk)).await?;
        let fitting = found.into_iter().filter(|info| goal.is(self.local.cluster, info));
        match fitting.max_by_key(|info| info.header.offset) {
            Some(info) => self.open(info).await.map(Some),
            None => Ok(None),
        }
    }

    async fn open(&self, info: Info) -> Result<Partial<RealDisk>, BodyError> {
        let (disk, keep_free_bytes) = (self.disk.clone(), self.keep_free_bytes);
        blocking(move || Partial::open(&disk, info, Options { keep_free_bytes, ..Options::default() })).await
    }

    /// Asks one peer for what is missing. What it gave is in `received` when it did not give all.
    async fn ask(&self, peer: &Peer, goal: Goal<'_>, received: &mut Received) -> Result<Info, Ended> {
        let mut config = BulkConfig::new(peer.address.as_str(), peer.name.as_str(), peer.id, self.local);
        config.bytes_per_second = self.bytes_per_second;
        let client = BulkClient::connect(config, &self.tls).await?;
        let mut stream = client.snapshot(goal.wanted, resume(received), u64::MAX).await?;
        let info = Info::decode(stream.head()).map_err(|flaw| peer.lacks(format_args!("what it has: {flaw}")))?;
        if !goal.is(self.local.cluster, &info) || stream.chunks() != info.chunks() {
            return Err(peer.lacks("it has another snapshot than the one that is wanted"));
        }
        if received.as_ref().is_none_or(|partial| *partial.info() != info) {
            *received = Some(self.open(info.clone()).await?);
        }
        if stream.at() != next(received) {
            // Its file was begun before, or is of another snapshot than what was asked for: from here on it is known.
            stream = client.snapshot(goal.wanted, resume(received), u64::MAX).await?;
            if *stream.head() != info.encode().as_slice() || stream.at() != next(received) {
                return Err(Ended::Away(format!("node {} changed its mind; ask again", peer.name)));
            }
        }
        let Some(partial) = received.take() else { return Err(peer.lacks("nothing was begun")) };
        let (partial, ended) = receive(peer, stream, partial).await?;
        if let Err(ended) = ended {
            *received = Some(partial);
            return Err(ended);
        }
        match blocking(move || partial.finish()).await {
            Ok(info) => Ok(info),
            Err(error @ BodyError::Flawed { .. }) => Err(peer.lacks(error)),
            Err(error) => Err(Ended::Own(error)),
        }
    }
}

/// Writes what comes, on a thread that may wait for the disk, until the stream ends. What was received comes back in any case but one: the
/// disk failed.
async fn receive(
    peer: &Peer,
    mut stream: SnapshotStream,
    mut partial: Partial<RealDisk>,
) -> Result<(Partial<RealDisk>, Result<(), Ended>), Ended> {
    let (sender, mut chunks) = mpsc::channel::<(u64, Bytes)>(CHUNKS_AHEAD);
    let writing = tokio::task::spawn_blocking(move || {
        while let Some((number, chunk)) = chunks.blocking_recv() {
            if let Err(error) = partial.accept(number, &chunk) {
                return (partial, Err(error));
            }
        }
        (partial, Ok(()))
    });
    let ended = loop {
        // A chunk that is fully here and has no place to go is lost with this process, and sent again: none is asked for before there is one.
        let Ok(place) = sender.reserve().await else {
            // It stopped writing, and says why below.
            break Ok(());
        };
        match stream.next().await {
            None => break Ok(()),
            Some(Err(error)) => break Err(Ended::from(error)),
            Some(Ok(chunk)) => place.send(chunk),
        }
    };
    drop(sender);
    let (partial, written) = writing.await.map_err(|cause| Ended::Away(cause.to_string()))?;
    match written {
        Ok(()) => Ok((partial, ended)),
        Err(error @ BodyError::Refused { .. }) => Ok((partial, Err(peer.lacks(error)))),
        Err(error) => Err(Ended::Own(error)),
    }
}

fn resume(received: &Received) -> Option<SnapshotResume> {
    let partial = received.as_ref()?;
    Some(SnapshotResume { head: Bytes::copy_from_slice(&partial.info().encode()), chunk: next(received) })
}

fn next(received: &Received) -> u64 {
    received.as_ref().map_or(0, |partial| partial.wanted().unwrap_or(partial.info().chunks()))
}

/// For seeing whether a peer gave anything.
fn count(received: &Received) -> u64 {
    received.as_ref().map_or(0, Partial::received_bytes)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BodyError> + Send + 'static,
) -> Result<T, BodyError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(cause) => Err(BodyError::Io {
            operation: "wait for",
            file: "a snapshot's file".to_owned(),
            cause: std::io::Error::other(cause),
        }),
    }
}

impl Peer {
    fn lacks(&self, what: impl fmt::Display) -> Ended {
        Ended::Lacks(format!("node {}: {what}", self.name))
    }
}

impl From<BulkError> for Ended {
    fn from(error: BulkError) -> Ended {
        match &error {
            BulkError::Refused { refusal: Refusal::Busy, .. } | BulkError::Unreachable { .. } => {
                Ended::Away(error.to_string())
            }
            // Whoever does not talk to this node, or not sense, has nothing for it; an older one does not understand the question.
            _ => Ended::Lacks(error.to_string()),
        }
    }
}

impl From<BodyError> for Ended {
    fn from(error: BodyError) -> Ended {
        Ended::Own(error)
    }
}

/// Chunks that were received and wait for the disk: one is written, one is ready.
const CHUNKS_AHEAD: usize = 1;
/// A node that restarts is back after about this.
const PAUSE: Duration = Duration::from_millis(500);
/// Nobody is asked less often than this while a fetch goes on.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// About half a minute without anything: then whoever wanted it decides anew what it wants.
const IDLE_ROUNDS_MAX: u32 = 8;
/// As much as the log's own margin.
const LOG_MARGIN_BYTES: u64 = 16 << 20;

#[cfg(test)]
mod tests;
