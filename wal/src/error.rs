//! What can go wrong, one type per operation, each naming the place and the next step.

use std::fmt;
use std::io;
use std::sync::Arc;

/// A segment's number; its file is named by 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u64);

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Bytes that are not what was written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: SegmentId,
    /// First damaged byte in its file.
    pub from: u64,
    /// Byte behind the last damaged one.
    pub to: u64,
    /// First entry that cannot be read because of it.
    pub first_index: u64,
    /// Last such entry; below `first_index` when no entry is lost.
    pub last_index: u64,
    /// What is wrong.
    pub what: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} bytes {}..{}: {}", self.segment, self.from, self.to, self.what)?;
        if self.first_index <= self.last_index {
            write!(f, " (entries {} to {})", self.first_index, self.last_index)?;
        }
        Ok(())
    }
}

/// Why a log could not be created. A directory that was empty before holds no log afterwards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// There is something in the directory already; choose another or remove it yourself.
    #[error("the data directory is not empty: it holds {found}")]
    NotEmpty {
        /// One of the things in it.
        found: String,
    },
    /// Somebody else is working in the directory.
    #[error("the data directory is locked by process {pid}")]
    Locked {
        /// Who holds it; 0 when unknown.
        pid: u32,
    },
    /// A setting this version cannot follow.
    #[error("setting {setting}: {why}")]
    Config {
        /// The setting.
        setting: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The first entries do not make a log.
    #[error("first entries refused: {0}")]
    First(&'static str),
    /// The disk said no.
    #[error("cannot {operation} in the data directory")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The disk's answer.
        #[source]
        cause: io::Error,
    },
}

/// Why a log could not be opened. Nothing was changed or deleted, unless the error is [`OpenError::Io`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such directory.
    #[error("the data directory does not exist; create the log first")]
    Missing,
    /// The directory is there, the log is not.
    #[error("the data directory holds no log; create it first")]
    Empty,
    /// The directory holds other things.
    #[error("the data directory is not a log: it holds {found}, and no segment")]
    NotALog {
        /// One of the things in it.
        found: String,
    },
    /// Written by newer software.
    #[error("segment {segment} has format version {seen}, the newest this version reads is {known}; upgrade first")]
    NewerVersion {
        /// The segment.
        segment: SegmentId,
        /// The version found.
        seen: u32,
        /// The newest version understood.
        known: u32,
    },
    /// The log belongs to another cluster or node, or segments of several were mixed.
    #[error(
        "segment {segment} belongs to cluster {found_cluster:032x} node {found_node}, not to cluster {cluster:032x} node {node}"
    )]
    WrongCluster {
        /// The segment.
        segment: SegmentId,
        /// Cluster found in it.
        found_cluster: u128,
        /// Node found in it.
        found_node: u64,
        /// Cluster expected.
        cluster: u128,
        /// Node expected.
        node: u64,
    },
    /// The log's identity was being changed, and that is not complete ([`crate::adopt`]).
    #[error("this log was being given another identity, by `graven recover`, which did not end; run that again")]
    ChangingIdentity,
    /// What says which identity the log was being given cannot be used.
    #[error("the file adopting in the data directory cannot be used: {what}")]
    Journal {
        /// Why not.
        what: &'static str,
    },
    /// A segment between others is gone.
    #[error(
        "segment {segment} is missing (entries from {first_index}); restore its file, or rebuild this node from its peers"
    )]
    MissingSegment {
        /// The segment.
        segment: SegmentId,
        /// First entry that is missing with it.
        first_index: u64,
    },
    /// Bytes are not what was written.
    #[error("the log is damaged: {0}; nothing was changed, the entries can be fetched from peers")]
    Damaged(Damage),
    /// All checks hold, but an entry does not follow the one before it: this log was put together from others.
    #[error("segment {segment} byte {at}: entry {index} does not continue the log before it")]
    WrongChain {
        /// The segment.
        segment: SegmentId,
        /// Where its record starts.
        at: u64,
        /// The entry.
        index: u64,
    },
    /// The end of the log is an unfinished write, which must be cut, and a copy of it finds no room. Nothing was changed.
    #[error(
        "segment {segment} ends in an unfinished write of {bytes} bytes at byte {at}, and the disk has no room to keep a copy of it; free {bytes} bytes and open again"
    )]
    NoRoomForCut {
        /// The segment.
        segment: SegmentId,
        /// Where the write began.
        at: u64,
        /// Its length, as far as it is known.
        bytes: u64,
    },
    /// Somebody else is working in the directory.
    #[error("the data directory is locked by process {pid}")]
    Locked {
        /// Who holds it; 0 when unknown.
        pid: u32,
    },
    /// A setting this version cannot follow.
    #[error("setting {setting}: {why}")]
    Config {
        /// The setting.
        setting: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The disk said no. Opening may be tried again.
    #[error("cannot {operation} segment {segment} at byte {at}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The segment; 0 for the directory itself.
        segment: SegmentId,
        /// Where.
        at: u64,
        /// The disk's answer.
        #[source]
        cause: io::Error,
    },
}

/// Why something was not written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// Unknown outcome for what was not synced yet: the log is closed since an earlier I/O error, for good. Open it again.
    #[error("log is closed after a failed {operation} on segment {segment} at byte {at}")]
    Closed {
        /// What failed.
        operation: &'static str,
        /// The segment; 0 for the directory itself.
        segment: SegmentId,
        /// Where.
        at: u64,
        /// The disk's answer.
        #[source]
        cause: Arc<io::Error>,
    },
    /// Refused, nothing was written: only the reserve for control entries is left. Free space; it clears by itself.
    #[error("the disk is full: no room for another segment of {segment_bytes} bytes")]
    DiskFull {
        /// What the next segment would need.
        segment_bytes: u64,
    },
    /// Refused, nothing was written: the entry does not continue the one before it.
    #[error("entry {index} does not continue entry {} ({what})", index - 1)]
    WrongChain {
        /// The entry.
        index: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// Refused, nothing was written: there would be a hole.
    #[error("entry {index} cannot follow entry {last}")]
    Gap {
        /// The entry.
        index: u64,
        /// The last one there.
        last: u64,
    },
    /// Refused, nothing was written: the entry would replace one that is committed or already trimmed.
    #[error("entry {index} would replace a settled one: entries up to {settled} are committed or trimmed")]
    Settled {
        /// The entry.
        index: u64,
        /// The last entry that must not change.
        settled: u64,
    },
    /// Refused, nothing was written: terms and votes are never taken back.
    #[error("hard state of term {term} would go back behind {current:?}")]
    HardStateBack {
        /// The term offered.
        term: u64,
        /// What stands.
        current: crate::HardState,
    },
    /// The entry that should be read to continue from it could not be.
    #[error("entry {index} cannot be read to continue from it: {cause}")]
    Unreadable {
        /// The entry.
        index: u64,
        /// Why.
        cause: Arc<ReadError>,
    },
}

/// Why an entry cannot be read here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The entry is before the first one held.
    #[error("entry {index} is gone: the log starts at {first}")]
    Trimmed {
        /// The entry asked for.
        index: u64,
        /// The first one held.
        first: u64,
    },
    /// The entry is not written yet.
    #[error("entry {index} is not there: the log ends at {last}")]
    NotYet {
        /// The entry asked for.
        index: u64,
        /// The last one written.
        last: u64,
    },
    /// The bytes are not what was written.
    #[error("damaged: {0}")]
    Damaged(Damage),
}
