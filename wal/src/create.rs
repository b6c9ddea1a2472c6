//! Making a new log.

use graven_frame::{Frame, Kind};

use crate::cut::{self, CUT_AREA};
use crate::disk::{Disk, DiskFile, LockError, WriteMode};
use crate::error::CreateError;
use crate::format::{OPENING_BYTES, Opening, Prefix, RecordKind, extent, segment_name};
use crate::log::{follows, head_crc, settled_options};
use crate::open::{LOCK_NAME, NO_DIRECT, knows_direct};
use crate::planted::{Bug, is_planted};
use crate::types::{HardState, Identity, LogBase, Options, SyncMethod};

/// The first segment has this name until all of it is durable.
pub(crate) const UNFINISHED: &str = "first.new";

pub(crate) fn create<D: Disk>(
    disk: &D,
    identity: Identity,
    options: &Options,
    first: &[Frame],
) -> Result<(), CreateError> {
    let options = settled_options(options).map_err(|(setting, why)| CreateError::Config { setting, why })?;
    check_empty(disk)?;
    let _lock = disk.lock(LOCK_NAME).map_err(|error| match error {
        LockError::Held { pid } => CreateError::Locked { pid },
        LockError::Io(cause) => CreateError::Io { operation: "take the lock", cause },
    })?;
    // Once more: somebody may have been faster.
    check_empty(disk)?;
    let bytes = first_segment(disk, identity, &options, first)?;
    let io = |operation| move |cause| CreateError::Io { operation, cause };
    disk.remove_unfinished(UNFINISHED).map_err(io("remove an unfinished log"))?;
    let file = disk.create(UNFINISHED, WriteMode::Buffered).map_err(io("create the first segment"))?;
    file.allocate(options.segment_bytes).map_err(io("allocate the first segment"))?;
    file.write_at(0, &bytes).map_err(io("write the first segment"))?;
    if !is_planted(Bug::FirstSegmentUnsynced) {
        file.sync_data().map_err(io("sync the first segment"))?;
    }
    if options.sync == SyncMethod::Direct && !knows_direct(disk, UNFINISHED).map_err(io("open the first segment"))? {
        disk.remove(UNFINISHED).map_err(io("remove the first segment"))?;
        return Err(CreateError::Config { setting: "sync", why: NO_DIRECT });
    }
    cut::reserve(disk).map_err(io("take space for cut bytes"))?;
    // Power fails before the directory is durable: the segment has its final name with all of its bytes, or it does not
    // have it, and then there is no log.
    disk.rename(UNFINISHED, &segment_name(1)).map_err(io("name the first segment"))?;
    disk.sync_dir().map_err(io("sync the directory"))
}

/// Our own leftovers do not count: the lock file, the space for cut bytes, and a first segment that was never finished.
fn check_empty<D: Disk>(disk: &D) -> Result<(), CreateError> {
    let names = disk.list().map_err(|cause| CreateError::Io { operation: "list", cause })?;
    match names.into_iter().find(|name| ![LOCK_NAME, CUT_AREA, UNFINISHED].contains(&name.as_str())) {
        Some(found) => Err(CreateError::NotEmpty { found }),
        None => Ok(()),
    }
}

fn first_segment<D: Disk>(
    disk: &D,
    identity: Identity,
    options: &Options,
    first: &[Frame],
) -> Result<Vec<u8>, CreateError> {
    if identity.node == 0 {
        return Err(CreateError::First("node ids count from 1"));
    }
    let salt = disk.random().map_err(|cause| CreateError::Io { operation: "draw a salt", cause })?;
    let term = first.first().map_or(0, |frame| frame.header().term);
    let opening = Opening {
        segment: 1,
        salt,
        identity,
        capacity: options.segment_bytes,
        hard_state: HardState { term, vote: None },
        base: LogBase::default(),
        known_commit: 0,
    };
    let mut bytes = opening.encode();
    let mut before = LogBase::default();
    for frame in first {
        let header = frame.header();
        if header.kind == Kind::Records {
            return Err(CreateError::First("a log starts with control entries"));
        }
        follows(&before, header).map_err(CreateError::First)?;
        frame.verify(Some(before.chain)).map_err(|_| CreateError::First("a body is damaged"))?;
        let position = bytes.len() as u64;
        let prefix = Prefix {
            kind: RecordKind::Frame,
            copy: 0,
            salt,
            segment: 1,
            position,
            // The opening and the records are synced together, and the segment gets its name only then.
            watermark: 0,
            known_commit: 0,
            head_crc: head_crc(frame.head()),
            body_crc: header.body_crc,
            payload_len: frame.encoded_len() as u32,
        };
        bytes.extend_from_slice(&prefix.encode());
        bytes.extend_from_slice(frame.head());
        bytes.extend_from_slice(&frame.body().concat());
        bytes.resize((position + extent(frame.encoded_len())) as usize, 0);
        before = LogBase::after(header);
    }
    // Half a segment: the closing records have room, whatever the entries are.
    if bytes.len() as u64 > OPENING_BYTES + options.segment_bytes / 2 {
        return Err(CreateError::First("more than half a segment"));
    }
    Ok(bytes)
}
