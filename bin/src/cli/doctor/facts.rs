//! What `graven doctor` looks at, before anybody says what it means.

use std::collections::BTreeMap;

use graven_net::client::{ClusterStatus, MemberList, NodeHealth};
use graven_net::protocol::{PlaceHealth, SyncHealth, Usage};

/// Everything that was seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// This host's clock, in milliseconds since 1970.
    pub(super) now_ms: u64,
    /// A cluster, through a client.
    pub(super) cluster: Option<ClusterFacts>,
    /// A node's own files, on this host.
    pub(super) files: Option<FileFacts>,
}

/// A cluster as its nodes tell about it.
#[derive(Debug, Clone)]
pub(super) struct ClusterFacts {
    /// What the nodes said at first.
    pub(super) earlier: ClusterStatus,
    /// What they said [`super::LOOK_AGAIN`] later.
    pub(super) status: ClusterStatus,
    /// What those said that were asked how they are.
    pub(super) nodes: BTreeMap<String, NodeFacts>,
    /// The members as the leader has them; `None` without one.
    pub(super) members: Option<MemberList>,
    /// The client's own certificate and key.
    pub(super) client: Credentials,
    /// Why one side does not take the other's certificate.
    pub(super) refused: Option<String>,
}

/// One node's answer, and this host's clock around it.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeFacts {
    pub(super) health: NodeHealth,
    pub(super) asked_ms: u64,
    pub(super) answered_ms: u64,
}

impl NodeFacts {
    /// How far the node's clock is ahead of this host's, in milliseconds, and how wrong that may be.
    pub(super) fn clock(&self) -> (i64, i64) {
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let way = signed(self.answered_ms.saturating_sub(self.asked_ms));
        (signed(self.health.clock_ms) - signed(self.asked_ms) - way / 2, way / 2 + 1)
    }
}

/// Certificates and keys of one holder.
#[derive(Debug, Clone, Default)]
pub(super) struct Credentials {
    /// RFC 3339.
    pub(super) certificate_expires: Option<String>,
    /// RFC 3339.
    pub(super) ca_expires: Option<String>,
    /// Private keys that others on the host may read.
    pub(super) readable_keys: Vec<String>,
}

/// A node as its files are, whether it runs or not.
#[derive(Debug, Clone)]
pub(super) struct FileFacts {
    pub(super) name: String,
    /// Its configuration, as it was named.
    pub(super) config: String,
    pub(super) data_dir: String,
    pub(super) place: PlaceHealth,
    /// A few syncs of a small file in the data directory.
    pub(super) syncs: Option<SyncHealth>,
    pub(super) credentials: Credentials,
    pub(super) log: LogIs,
    /// Files that the running process has open.
    pub(super) open_files: Option<Usage>,
}

/// What a look at a log came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LogIs {
    /// In use by a process; not read.
    Running,
    /// Every byte was checked.
    Whole {
        /// Bytes of an unfinished write at its end.
        torn_bytes: u64,
    },
    /// Damage, each in a sentence.
    Damaged(Vec<String>),
    /// Missing, empty, or somebody else's.
    NotOurs(String),
    /// Of a newer format.
    Newer(String),
    /// It could not be read.
    Unreadable(String),
}
