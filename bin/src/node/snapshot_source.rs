//! Snapshots that this node gives to others: every chunk is checked before it leaves, and a file that is damaged is set aside.

use bytes::Bytes;
use graven_net::bulk::{Refusal, SNAPSHOTS_MAX, SnapshotReader, SnapshotWanted};
use graven_snapshot::body::{self, BodyError, BodyReader, INFO_BYTES};
use graven_wal::RealDisk;
use std::sync::Arc;
use tracing::{error, warn};

/// Told the id of a snapshot whose file is not usable any more. May wait.
pub(super) type Lost = Box<dyn Fn(u64) + Send + Sync>;

/// The snapshots in a data directory.
#[derive(Clone)]
pub(super) struct SnapshotSource {
    disk: RealDisk,
    lost: Arc<Lost>,
}

impl SnapshotSource {
    pub(super) fn new(disk: RealDisk, lost: Lost) -> SnapshotSource {
        SnapshotSource { disk, lost: Arc::new(lost) }
    }

    /// What each of them is.
    pub(super) fn heads(&self) -> Result<Vec<Bytes>, Refusal> {
        let stored = body::stored(&self.disk).map_err(|_| Refusal::Busy)?;
        let heads = stored.into_iter().filter_map(|stored| Some(Bytes::copy_from_slice(&stored.info.ok()?.encode())));
        Ok(heads.take(SNAPSHOTS_MAX).collect())
    }

    pub(super) fn open(&self, wanted: SnapshotWanted) -> Result<Box<dyn SnapshotReader>, Refusal> {
        let file = match wanted {
            SnapshotWanted::Id(id) => body::file_of(id),
            SnapshotWanted::Own { offset } => self.newest_own(offset)?,
        };
        match BodyReader::open(&self.disk, &file) {
            Ok(reader) => {
                let head = reader.info().encode();
                Ok(Box::new(Given { source: self.clone(), reader, head, file }))
            }
            Err(error) => Err(self.judge(&file, 0, &error)),
        }
    }

    fn newest_own(&self, offset: u64) -> Result<String, Refusal> {
        let stored = body::stored(&self.disk).map_err(|_| Refusal::Busy)?;
        let infos = stored.into_iter().filter_map(|stored| stored.info.ok());
        let own = infos.filter(|info| info.header.name.is_own() && info.header.offset >= offset);
        let newest = own.max_by_key(|info| info.header.offset);
        newest.map(|info| info.header.file_name()).ok_or(Refusal::NoSnapshot)
    }

    /// What to say of an error of this file; a damaged one is set aside first.
    fn judge(&self, file: &str, chunk: u64, error: &BodyError) -> Refusal {
        if error.is_missing() {
            return Refusal::NoSnapshot;
        }
        warn!("a snapshot was asked for and cannot be given: {error}");
        // Another reader may have found it before, and what has the name now be a good one that was fetched since.
        let damaged = error.is_damage() && body::verify(&self.disk, file).is_err_and(|error| error.is_damage());
        if damaged {
            match body::set_aside(&self.disk, file) {
                Ok(aside) => error!("the snapshot {file} is damaged and was set aside as {aside}"),
                Err(error) if error.is_missing() => {}
                Err(error) => error!("the snapshot {file} is damaged and cannot be set aside: {error}"),
            }
            if let Some(id) = body::id_of(file) {
                (self.lost)(id);
            }
        }
        Refusal::SnapshotDamaged { chunk }
    }
}

impl std::fmt::Debug for SnapshotSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotSource").field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// One that is being given.
struct Given {
    source: SnapshotSource,
    reader: BodyReader<RealDisk>,
    head: [u8; INFO_BYTES],
    file: String,
}

impl SnapshotReader for Given {
    fn head(&self) -> &[u8] {
        &self.head
    }

    fn chunks(&self) -> u64 {
        self.reader.info().chunks()
    }

    fn chunk(&mut self, number: u64) -> Result<Bytes, Refusal> {
        self.reader.encoded_chunk(number).map_err(|error| self.source.judge(&self.file, number, &error))
    }
}
