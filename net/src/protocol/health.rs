//! What a node knows about its own condition and surroundings: the facts that `graven doctor` judges.

use serde::{Deserialize, Serialize};

/// The answer to [`Request::NodeHealth`](super::Request::NodeHealth). Facts only: what is well and what is not is for the asker to say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeHealth {
    /// The node's clock when it answered, in milliseconds since 1970.
    pub clock_ms: u64,
    /// The cluster's feature level as this node's log has it.
    pub feature_level: u32,
    /// The highest feature level that this node's software knows.
    pub feature_level_known: u32,
    /// Time since the process started, in milliseconds.
    pub uptime_ms: u64,
    /// Elections it won since its start.
    pub elections: u64,
    /// Bytes written to the log since its start.
    pub written_bytes: u64,
    /// Buffers of the peers' socket.
    pub socket: SocketHealth,
    /// Its latest syncs.
    pub syncs: SyncHealth,
    /// Each other member, as this node reaches it.
    pub peers: Vec<PeerHealth>,
    /// When its authority's certificate ends, RFC 3339.
    pub ca_expires: Option<String>,
    /// Files the process has open, and how many it may have.
    pub open_files: Option<Usage>,
    /// Its files and the disk below them; `None` when the disk did not answer in time.
    pub place: Option<PlaceHealth>,
    /// What its peers hold against it, in a sentence.
    pub trouble: Option<String>,
}

/// Sizes of socket buffers in bytes, each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SocketHealth {
    /// Asked for.
    pub wanted: u64,
    /// Granted to receive.
    pub receive: u64,
    /// Granted to send.
    pub send: u64,
}

/// How long writing and syncing took, in microseconds, over the latest of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SyncHealth {
    /// How many were looked at; 0 when there was none yet, and the rest is 0 too.
    pub count: u64,
    /// Half of them took at most this long.
    pub p50_us: u64,
    /// 99 of 100 took at most this long.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl SyncHealth {
    /// What these durations come to.
    #[must_use]
    pub fn of(mut took_us: Vec<u64>) -> SyncHealth {
        took_us.sort_unstable();
        let at = |percent: usize| {
            let rank = (took_us.len() * percent).div_ceil(100).saturating_sub(1);
            took_us.get(rank).copied().unwrap_or(0)
        };
        SyncHealth { count: took_us.len() as u64, p50_us: at(50), p99_us: at(99), max_us: at(100) }
    }
}

/// Another member, as one node reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PeerHealth {
    /// Its id.
    pub id: u64,
    /// Whether both lanes towards it are up.
    pub up: bool,
    /// The highest feature level that it told; 0 when it was never reached.
    pub feature_level: u32,
    /// Round trip to it, in microseconds, while it is reached.
    pub rtt_us: Option<u64>,
}

/// How much is used of what is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// In use.
    pub used: u64,
    /// The limit.
    pub limit: u64,
}

/// A node's files, and the file system that its data directory is on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlaceHealth {
    /// The kind of file system: `ext4`, `tmpfs`.
    pub filesystem: String,
    /// Its size in bytes.
    pub total_bytes: u64,
    /// Free there, for the node's user, in bytes.
    pub free_bytes: u64,
    /// What the log wants to find free at any time to go on, in bytes: two more segments.
    pub reserve_bytes: u64,
    /// How bytes are made durable: the setting `wal.sync`.
    pub sync: String,
    /// Files with bytes that a start cut from the log's end.
    pub cut_files: u64,
    /// Their size in bytes.
    pub cut_bytes: u64,
    /// Directories with damaged files that were put aside.
    pub quarantined: Vec<String>,
    /// Private keys that others on the host may read.
    pub readable_keys: Vec<String>,
}
