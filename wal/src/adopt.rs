//! Giving a log another identity: its entries become the beginning of another cluster's log.
//!
//! Every segment's opening names cluster, node and incarnation, and they must be equal. So that a crash between two of them
//! leaves no mixture that nobody can read, a journal is durable before the first one changes: the file `adopting`, with the identity
//! before and after. As long as it is there nothing but [`adopt`] opens the log. The caller removes it with [`settle`], when whatever
//! else must change with the identity is durable too.
//!
//! An opening is rewritten in place. Its identity and its checksum lie in different sectors, so a power cut leaves the one of before and
//! the other of after, either way round. Everything else in the block is the same before and after, so both sums are known, and a block
//! whose sum is one of the two is whole.

use std::io;

use crate::disk::{Disk, DiskFile, LockError, WriteMode};
use crate::error::OpenError;
use crate::format::{IDENTITY_AT, IDENTITY_BYTES, OPENING_BYTES, OPENING_MAGIC, segment_name};
use crate::log::{Wal, settled_options};
use crate::open::{LOCK_NAME, identify, io_at, list_segments_under_change, open_locked, survey};
use crate::planted::{Bug, is_planted};
use crate::types::{Identity, Options, Recovered};

/// The journal's name.
pub(crate) const JOURNAL: &str = "adopting";
/// Its name until it is whole.
pub(crate) const UNFINISHED_JOURNAL: &str = "adopting.new";
const MAGIC: [u8; 8] = *b"GRVNADO\0";
const VERSION: u32 = 1;
/// Magic 8, version 4, flags 4, both identities 40 each, reserved 28, CRC 4: one sector holds it.
const JOURNAL_BYTES: usize = 128;

/// A change of identity that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdentityChange {
    /// Whose log it was.
    pub from: Identity,
    /// Whose log it becomes.
    pub to: Identity,
}

/// The change that was begun and not completed; `None` when there is none. Takes no lock and changes nothing.
///
/// # Errors
/// [`OpenError::Journal`] when it was begun and the journal is damaged or newer, [`OpenError::Io`] when it cannot be read.
pub fn pending<D: Disk>(disk: &D) -> Result<Option<IdentityChange>, OpenError> {
    let file = match disk.open(JOURNAL, None) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io_at("open the journal of", 0, 0))?,
    };
    let mut bytes = [0; JOURNAL_BYTES];
    match file.read_exact_at(0, &mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(OpenError::Journal { what: "it is cut off" }),
        Err(error) => Err(io_at("read the journal of", 0, 0)(error)),
        Ok(()) => IdentityChange::decode(&bytes).map(Some),
    }
}

/// Makes the log that of `to`, and opens it; a change that was begun is gone on with, and then its identity holds instead of `to`:
/// [`Recovered::identity`] says whose log it is now. The log stays closed to everybody else until [`settle`].
///
/// Nothing is changed before the log was opened as what it is. [`Options::expect_cluster`] and [`Options::expect_node`] are not
/// looked at.
///
/// # Errors
/// As [`Wal::open`]. After an I/O error the change may be half done: call it again.
pub fn adopt<D: Disk>(disk: D, options: Options, to: Identity) -> Result<(Wal<D>, Recovered), OpenError> {
    let options = Options { expect_cluster: None, expect_node: None, ..options };
    let settled = settled_options(&options).map_err(|(setting, why)| OpenError::Config { setting, why })?;
    list_segments_under_change(&disk)?;
    let mut lock = disk.lock(LOCK_NAME).map_err(|error| match error {
        LockError::Held { pid } => OpenError::Locked { pid },
        LockError::Io(cause) => io_at("take the lock of", 0, 0)(cause),
    })?;
    let change = match pending(&disk)? {
        Some(change) => change,
        None => {
            // What an open cuts or mends is settled under the old name.
            let (wal, recovered) = open_locked(disk.clone(), settled.clone(), lock)?;
            lock = wal.into_lock();
            let change = IdentityChange { from: recovered.identity, to };
            change.write(&disk).map_err(io_at("write the journal of", 0, 0))?;
            change
        }
    };
    let ids = list_segments_under_change(&disk)?;
    for id in &ids {
        change.rewrite(&disk, *id, &settled)?;
    }
    // Nobody else's is among them.
    identify(&survey(&disk, &ids)?, &settled)?;
    open_locked(disk, settled, lock)
}

/// Removes the journal, durably: the log is that of its new identity, and opens as any other.
///
/// # Errors
/// The disk's; the journal may be there still.
pub fn settle<D: Disk>(wal: &mut Wal<D>) -> Result<(), OpenError> {
    wal.sync().map_err(|error| io_at("sync", 0, 0)(io::Error::other(error)))?;
    let disk = wal.disk();
    match disk.remove(JOURNAL) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_at("remove the journal of", 0, 0)(error));
        }
        _ => {}
    }
    disk.sync_dir().map_err(io_at("sync the directory for", 0, 0))
}

impl IdentityChange {
    /// Writes the journal, durably.
    fn write<D: Disk>(&self, disk: &D) -> io::Result<()> {
        disk.remove_unfinished(UNFINISHED_JOURNAL)?;
        let file = disk.create(UNFINISHED_JOURNAL, WriteMode::Buffered)?;
        file.write_at(0, &self.encode())?;
        file.sync_data()?;
        disk.rename(UNFINISHED_JOURNAL, JOURNAL)?;
        if is_planted(Bug::JournalUnsynced) { Ok(()) } else { disk.sync_dir() }
    }

    /// Puts the new identity into a segment's opening, durably; what has no opening of this log is left as it is.
    fn rewrite<D: Disk>(&self, disk: &D, id: u64, options: &Options) -> Result<(), OpenError> {
        let mode = options.sync.mode_of_others();
        let file = disk.open(&segment_name(id), Some(mode)).map_err(io_at("open", id, 0))?;
        if file.len().map_err(io_at("look at", id, 0))? < OPENING_BYTES {
            return Ok(());
        }
        let mut block = [0; OPENING_BYTES as usize];
        file.read_exact_at(0, &mut block).map_err(io_at("read", id, 0))?;
        let Some(after) = self.rewritten(&block) else { return Ok(()) };
        // Also where it stands already: whether it was synced nobody knows.
        file.write_at(0, &after).map_err(io_at("write", id, 0))?;
        if is_planted(Bug::IdentityUnsynced) { Ok(()) } else { file.sync_data().map_err(io_at("sync", id, 0)) }
    }

    /// The opening with the new identity; `None` when the block is no opening of this log.
    fn rewritten(&self, block: &[u8; OPENING_BYTES as usize]) -> Option<[u8; OPENING_BYTES as usize]> {
        let found = &block[IDENTITY_AT..IDENTITY_AT + IDENTITY_BYTES];
        let identities = [self.from, self.to].map(identity_bytes);
        if !block.starts_with(&OPENING_MAGIC) || !identities.iter().any(|ours| ours == found) {
            return None;
        }
        let [before, after] = identities.map(|identity| {
            let mut with = *block;
            with[IDENTITY_AT..IDENTITY_AT + IDENTITY_BYTES].copy_from_slice(&identity);
            let (content, sum) = with.split_at_mut(OPENING_BYTES as usize - SUM_BYTES);
            sum.copy_from_slice(&crc32fast::hash(content).to_le_bytes());
            with
        });
        let sum = |block: &[u8; OPENING_BYTES as usize]| block[OPENING_BYTES as usize - SUM_BYTES..].to_vec();
        [sum(&before), sum(&after)].contains(&sum(block)).then_some(after)
    }

    fn encode(&self) -> [u8; JOURNAL_BYTES] {
        let mut out = [0; JOURNAL_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..16 + IDENTITY_BYTES].copy_from_slice(&identity_bytes(self.from));
        out[16 + IDENTITY_BYTES..16 + 2 * IDENTITY_BYTES].copy_from_slice(&identity_bytes(self.to));
        let crc = crc32fast::hash(&out[..JOURNAL_BYTES - SUM_BYTES]);
        out[JOURNAL_BYTES - SUM_BYTES..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; JOURNAL_BYTES]) -> Result<IdentityChange, OpenError> {
        let (content, crc) = bytes.split_at(JOURNAL_BYTES - SUM_BYTES);
        if content[..8] != MAGIC || crc32fast::hash(content).to_le_bytes() != *crc {
            return Err(OpenError::Journal { what: "it is damaged" });
        }
        if content[8..12] != VERSION.to_le_bytes() || content[12..16] != [0; 4] {
            return Err(OpenError::Journal { what: "a newer version wrote it; upgrade first" });
        }
        let identity = |at: usize| identity_of(content[at..].first_chunk()?);
        match (identity(16), identity(16 + IDENTITY_BYTES)) {
            (Some(from), Some(to)) => Ok(IdentityChange { from, to }),
            _ => Err(OpenError::Journal { what: "it names no node" }),
        }
    }
}

/// Bytes of a checksum.
const SUM_BYTES: usize = 4;

/// An identity as an opening has it.
fn identity_bytes(identity: Identity) -> [u8; IDENTITY_BYTES] {
    let mut out = [0; IDENTITY_BYTES];
    out[..16].copy_from_slice(&identity.cluster.to_le_bytes());
    out[16..32].copy_from_slice(&identity.incarnation.to_le_bytes());
    out[32..].copy_from_slice(&identity.node.to_le_bytes());
    out
}

fn identity_of(bytes: &[u8; IDENTITY_BYTES]) -> Option<Identity> {
    let cluster = u128::from_le_bytes(*bytes.first_chunk()?);
    let incarnation = u128::from_le_bytes(*bytes[16..].first_chunk()?);
    let node = u64::from_le_bytes(*bytes[32..].first_chunk()?);
    (node > 0).then_some(Identity { cluster, node, incarnation })
}
