//! Checkpoints between nodes: what this one gives, and fetching what it was offered.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use graven_net::bulk::{BulkClient, BulkConfig, BulkError, BulkIdentity, CheckpointReader, Refusal};
use graven_net::peer::RosterEntry;
use graven_snapshot::{Checkpoint, file_bytes_max};
use graven_wal::RealDisk;
use tokio::sync::mpsc;
use tracing::{info, warn};

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

/// The checkpoint with which the log of this node begins: the oldest one that it can still be followed from.
///
/// # Errors
/// There is none, or its file cannot be opened.
pub(super) fn first_checkpoint(shared: &Shared) -> Result<Box<dyn CheckpointReader>, Refusal> {
    let dir = &shared.config.data_dir;
    let before = shared.reader.first_index() - 1;
    let stored = graven_snapshot::stored(&RealDisk::open(dir)).map_err(|_| Refusal::NoCheckpoint)?;
    let index = stored.into_iter().find(|index| *index >= before).ok_or(Refusal::NoCheckpoint)?;
    // One that was let go of between the look and now is asked for again.
    let file = File::open(dir.join(graven_snapshot::name_of(index))).map_err(|_| Refusal::Busy)?;
    let size = file.metadata().map_err(|_| Refusal::Busy)?.len();
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
enum FetchError {
    #[error("node {0} is no member that this node knows")]
    Unknown(u64),
    #[error(transparent)]
    Bulk(#[from] BulkError),
    #[error("it has {size} bytes, the most there can be is {most}")]
    Large { size: u64, most: usize },
    #[error(transparent)]
    Flawed(#[from] graven_snapshot::Flaw),
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
    let client = BulkClient::connect(config, &shared.tls).await?;
    let mut stream = client.checkpoint(None).await?;
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
