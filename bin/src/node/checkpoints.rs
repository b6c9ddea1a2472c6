//! Checkpoints between nodes: what this one gives, and fetching what it was offered.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use graven_net::bulk::{BulkClient, BulkConfig, BulkError, BulkIdentity, CheckpointReader, Refusal};
use graven_net::peer::RosterEntry;
use graven_net::tls::TlsIdentity;
use graven_snapshot::{Checkpoint, CheckpointError, Flaw, file_bytes_max};
use graven_wal::RealDisk;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::engine::Shared;
use super::input::Input;
use crate::replica::Fetch;

/// A checkpoint's file. It stays what it is while it is open, whatever becomes of its name.
struct OpenCheckpoint {
    file: File,
    size: u64,
    /// The last entry it covers.
    meta: [u8; 8],
}

impl CheckpointReader for OpenCheckpoint {
    fn meta(&self) -> &[u8] {
        &self.meta
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, at)
    }
}

/// The entry of which, or of a later one, a checkpoint is wanted: what the asker names, but none before `base`, where the log begins.
pub(super) fn wanted_from(place: &[u8], base: u64) -> u64 {
    <[u8; 8]>::try_from(place).map_or(base, |place| u64::from_le_bytes(place).max(base))
}

/// Why no checkpoint is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoCheckpoint {
    /// There is none.
    None,
    /// It could not be read now.
    Later,
}

impl From<NoCheckpoint> for Refusal {
    fn from(why: NoCheckpoint) -> Refusal {
        match why {
            NoCheckpoint::None => Refusal::NoCheckpoint,
            NoCheckpoint::Later => Refusal::Busy,
        }
    }
}

/// The oldest checkpoint of entry `from` or a later one that is what was saved, and the indexes of those that turned out not to be:
/// they have been set aside. Every byte is read before one is given, so no wrong one leaves a node.
pub(super) fn open_checkpoint(dir: &Path, from: u64) -> (Result<Box<dyn CheckpointReader>, NoCheckpoint>, Vec<u64>) {
    let disk = RealDisk::open(dir);
    let mut flawed = Vec::new();
    let Ok(stored) = graven_snapshot::stored(&disk) else { return (Err(NoCheckpoint::Later), flawed) };
    for index in stored.into_iter().filter(|index| *index >= from) {
        match open_whole(&disk, dir, index) {
            Ok(reader) => return (Ok(reader), flawed),
            Err(error) if is_damage(&error) => {
                set_aside(&disk, index, &error);
                flawed.push(index);
            }
            // One that was let go of between the look and now is asked for again.
            Err(_) => return (Err(NoCheckpoint::Later), flawed),
        }
    }
    (Err(if flawed.is_empty() { NoCheckpoint::None } else { NoCheckpoint::Later }), flawed)
}

/// Reads every byte of a checkpoint. Whether it is damaged: then it has been set aside.
pub(super) fn is_damaged(dir: &Path, index: u64) -> bool {
    let disk = RealDisk::open(dir);
    let Err(error) = graven_snapshot::load(&disk, index) else { return false };
    let damaged = is_damage(&error);
    if damaged {
        set_aside(&disk, index, &error);
    }
    damaged
}

fn is_damage(error: &CheckpointError) -> bool {
    matches!(error, CheckpointError::Flawed { flaw, .. } if !matches!(flaw, Flaw::Newer { .. }))
}

fn set_aside(disk: &RealDisk, index: u64, error: &CheckpointError) {
    match graven_snapshot::set_aside(disk, index) {
        Ok(name) => error!("the checkpoint at entry {index} is damaged: {error}; it is kept as {name}"),
        Err(cause) => error!("the checkpoint at entry {index} is damaged: {error}; {cause}"),
    }
}

/// Opens one, and reads all of it: the file that is open stays what it is, whatever becomes of its name.
fn open_whole(disk: &RealDisk, dir: &Path, index: u64) -> Result<Box<dyn CheckpointReader>, CheckpointError> {
    let name = graven_snapshot::name_of(index);
    let failed = |cause| CheckpointError::Io { operation: "open", name: name.clone(), cause };
    let file = File::open(dir.join(&name)).map_err(failed)?;
    graven_snapshot::load(disk, index)?;
    let size = file.metadata().map_err(failed)?.len();
    Ok(Box::new(OpenCheckpoint { file, size, meta: index.to_le_bytes() }))
}

/// Fetches what the replica is offered, one after the other, until the channel is closed.
pub(super) async fn fetch_all(shared: Arc<Shared>, mut fetches: mpsc::Receiver<Wanted>) {
    while let Some((wanted, guest)) = fetches.recv().await {
        let fetched = match fetch(&shared, &wanted, guest).await {
            Ok(checkpoint) => {
                info!(index = checkpoint.base.index, "fetched a checkpoint: the entries this node lacks are trimmed");
                Some(Box::new(checkpoint))
            }
            Err(cause) => {
                warn!("the checkpoint at entry {} was not fetched: {cause}", wanted.base.index.0);
                None
            }
        };
        if shared.inputs.send(Input::Fetched(wanted.token, fetched)).await.is_err() {
            return;
        }
    }
}

/// Why a checkpoint was not fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("node {0} is no member that this node knows")]
    Unknown(u64),
    #[error(transparent)]
    Bulk(#[from] BulkError),
    #[error("it has {size} bytes, the most there can be is {most}")]
    Large { size: u64, most: usize },
    #[error(transparent)]
    Flawed(#[from] Flaw),
}

impl FetchError {
    /// Whether asking again brings nothing else.
    pub(super) fn is_final(&self) -> bool {
        !matches!(
            self,
            FetchError::Bulk(
                BulkError::Refused { refusal: Refusal::Busy, .. }
                    | BulkError::Unreachable { .. }
                    | BulkError::Unwelcome { .. }
            )
        )
    }
}

/// What to fetch, and whoever offers it when that is no member known here.
pub(super) type Wanted = (Fetch, Option<RosterEntry>);

/// Name and client address of whoever is to be asked. A node that was just made knows no members: they stand in the log that it is to be
/// given, behind this checkpoint. Then it asks where the ports that `graven init` gives would have it; a certificate proves who answers.
fn whom(shared: &Shared, from: u64, guest: Option<RosterEntry>) -> Option<(String, String)> {
    if let Some(member) = shared.members.borrow().by_id(from) {
        return Some((member.name.clone(), member.client_address.clone()));
    }
    let guest = guest?;
    let (host, port) = guest.address.rsplit_once(':')?;
    let port = port.parse::<u16>().ok()?.checked_add(1)?;
    Some((guest.name, format!("{host}:{port}")))
}

async fn fetch(shared: &Shared, wanted: &Fetch, guest: Option<RosterEntry>) -> Result<Checkpoint, FetchError> {
    let identity = shared.identity;
    let local = BulkIdentity { cluster: identity.cluster, node: identity.node, incarnation: identity.incarnation };
    let (name, address) = whom(shared, wanted.from.0, guest).ok_or(FetchError::Unknown(wanted.from.0))?;
    let config = BulkConfig::new(address, name, wanted.from.0, local);
    fetch_from(config, &shared.tls, wanted.base.index.0).await
}

/// Fetches the oldest checkpoint that a node has of entry `from` or a later one.
pub(super) async fn fetch_from(config: BulkConfig, tls: &TlsIdentity, from: u64) -> Result<Checkpoint, FetchError> {
    let client = BulkClient::connect(config, tls).await?;
    let mut stream = client.checkpoint(Some((&from.to_le_bytes(), 0))).await?;
    let (size, most) = (stream.size(), file_bytes_max());
    if size > most as u64 {
        return Err(FetchError::Large { size, most });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    while let Some(chunk) = stream.next().await {
        bytes.extend(chunk?);
    }
    Ok(Checkpoint::decode(&bytes)?)
}
