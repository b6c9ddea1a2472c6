//! graven's own log as what is measured: one frame a batch, one sync a frame.

use std::path::Path;

use graven_frame::{
    Body, Chain, Frame, GROUP_HEADER_BYTES, GroupBuilder, GroupHeaderSpec, HeaderSpec, Kind, RECORD_HEADER_BYTES,
};
use graven_wal::{AppendError, CreateError, Identity, Options, PrepareState, RealDisk, SyncMethod, Wal};

use super::measure::{Stop, Target};
use super::raw::Method;
use crate::cli::error::{CliResult, ErrorCode, Failure};

/// An open log that takes batches.
pub(super) struct LogTarget {
    wal: Wal<RealDisk>,
    chain: Chain,
    next_index: u64,
    next_offset: u64,
    body: Body,
    body_crc: u32,
    stop: Stop,
}

/// The log's way for a raw method, if it has one.
pub(super) fn sync_method(method: Method) -> Option<SyncMethod> {
    match method {
        Method::Fdatasync => Some(SyncMethod::Fdatasync),
        Method::Dsync => Some(SyncMethod::Dsync),
        Method::DirectDsync => Some(SyncMethod::Direct),
        Method::Msync => None,
    }
}

/// Zeroes written in one step of preparation, each of them a moment to stop at.
const STEP_BYTES: u64 = 4 << 20;

impl LogTarget {
    /// Makes a log in `dir`, which is empty, and brings it to its first zero-filled segment; `None` when this version of
    /// the log does not have the method.
    pub(super) fn make(dir: &Path, sync: SyncMethod, segment_bytes: u64, stop: &Stop) -> CliResult<Option<LogTarget>> {
        let options = Options { segment_bytes, sync, ..Options::default() };
        let spec = HeaderSpec { kind: Kind::Noop, term: 1, index: 1, base_offset: 0, count: 0, timestamp_ms: 0 };
        let first = Frame::seal(spec, Chain::START, Body::default(), Body::default().crc());
        let chain = first.header().chain;
        let identity = Identity { cluster: 1, node: 1, incarnation: 1 };
        match Wal::create(RealDisk::open(dir), identity, options.clone(), &[first]) {
            Ok(()) => {}
            Err(CreateError::Config { .. }) => return Ok(None),
            Err(error) => return Err(failure(&error)),
        }
        let (wal, _) = Wal::open(RealDisk::open(dir), options).map_err(|error| failure(&error))?;
        let stop = stop.clone();
        let mut log = LogTarget { wal, chain, next_index: 2, next_offset: 0, body: Body::default(), body_crc: 0, stop };
        // The segment that a log is made with was not written before: leave it, without a sync for each batch.
        log.begin(super::LARGEST_BATCH)?;
        log.rest()?;
        while log.wal.stats().rotations == 0 {
            log.stop.check()?;
            log.append()?;
        }
        log.wal.sync().map_err(append_failure)?;
        log.rest()?;
        Ok(Some(log))
    }

    /// From now on batches of this size.
    pub(super) fn begin(&mut self, batch_bytes: usize) -> CliResult {
        let payload = vec![0xa5; batch_bytes.saturating_sub(GROUP_HEADER_BYTES + RECORD_HEADER_BYTES)];
        let mut builder = GroupBuilder::new();
        builder.push(&[], &payload).map_err(|error| failure(&error))?;
        let group = builder.finish(GroupHeaderSpec::default());
        // As in a node: the sum over a group's bytes is known before the frame around it is sealed.
        (self.body, self.body_crc) = (group.body().clone(), group.crc());
        Ok(())
    }

    fn append(&mut self) -> CliResult {
        let spec = HeaderSpec {
            kind: Kind::Records,
            term: 1,
            index: self.next_index,
            base_offset: self.next_offset,
            count: 1,
            timestamp_ms: 0,
        };
        let frame = Frame::seal(spec, self.chain, self.body.clone(), self.body_crc);
        self.chain = frame.header().chain;
        self.wal.append(std::slice::from_ref(&frame)).map_err(append_failure)?;
        self.next_index += 1;
        self.next_offset += 1;
        Ok(())
    }
}

impl Target for LogTarget {
    fn ready(&mut self) -> CliResult<bool> {
        Ok(true)
    }

    fn write_synced(&mut self) -> CliResult {
        self.append()?;
        self.wal.sync().map_err(append_failure)
    }

    /// What a node does when it is idle: gives back what nobody needs, and prepares segments.
    fn rest(&mut self) -> CliResult {
        self.wal.release_before(self.wal.last_index()).map_err(append_failure)?;
        while self.wal.prepare(STEP_BYTES).map_err(append_failure)? == PrepareState::More {
            self.stop.check()?;
        }
        Ok(())
    }
}

fn append_failure(error: AppendError) -> Failure {
    match error {
        AppendError::DiskFull { .. } => Failure::new(ErrorCode::DiskFull, format!("graven's log: {error}")),
        _ => failure(&error),
    }
}

fn failure(error: &dyn std::error::Error) -> Failure {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    Failure::internal(format!("graven's log: {error}{cause}"))
}
