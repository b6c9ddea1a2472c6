//! What nodes say about themselves. The JSON form is a contract: every key is always there, `null` when not known.

use serde::{Deserialize, Serialize};

/// The answer of `graven status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// 32 hexadecimal digits; `None` when no node answered.
    pub cluster_id: Option<String>,
    /// The name of the node that leads, as far as the newest term heard of.
    pub leader: Option<String>,
    /// Every node known, by name.
    pub nodes: Vec<NodeStatus>,
}

/// What a node says about itself, or what is known of a node that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node's name.
    pub name: String,
    /// Its id in this cluster.
    pub id: Option<u64>,
    /// Where clients reach it, `host:port`.
    pub address: Option<String>,
    /// Where peers reach it, `host:port`.
    pub peer_address: Option<String>,
    /// Whether it answered.
    pub reachable: bool,
    /// What it does in the cluster.
    pub role: NodeRole,
    /// Its health.
    pub state: Option<NodeState>,
    /// Its current term.
    pub term: Option<u64>,
    /// The last entry known to be committed.
    pub commit_index: Option<u64>,
    /// The last entry written.
    pub last_index: Option<u64>,
    /// The last entry on stable storage.
    pub durable_index: Option<u64>,
    /// The last entry applied.
    pub applied_index: Option<u64>,
    /// The first committed record's offset.
    pub first_offset: Option<u64>,
    /// The offset behind the last committed record.
    pub next_offset: Option<u64>,
    /// Log files.
    pub segments: Option<u64>,
    /// Bytes in log files.
    pub bytes: Option<u64>,
    /// Free bytes on the filesystem of the data directory.
    pub disk_free_bytes: Option<u64>,
    /// The life of its data directory, 32 hexadecimal digits.
    pub incarnation: Option<String>,
    /// Process id.
    pub pid: Option<u32>,
    /// Version of the software.
    pub version: Option<String>,
    /// Time since the process started.
    pub uptime_ms: Option<u64>,
    /// When its certificate ends, RFC 3339.
    pub certificate_expires: Option<String>,
    /// How long the oldest write to its log has been waiting for the disk; 0 when none waits.
    pub disk_stalled_ms: Option<u64>,
    /// Its clock when it answered, in milliseconds since 1970.
    pub clock_ms: Option<u64>,
    /// The cluster's feature level as its log has it.
    pub feature_level: Option<u32>,
    /// What its peers hold against it, in a sentence: that it is a second process of one node, for example.
    pub trouble: Option<String>,
    /// The damage that is being mended, or waits for it, when `state` is `recovering` or `damaged`. Not in the bytes of a
    /// report: [`Request::Damage`](super::Request::Damage) asks for it.
    #[serde(with = "beside")]
    pub recovering: Option<DamagedRange>,
    /// How it keeps up, as the leader sees it; `None` for the leader itself. Not in the bytes of a report either:
    /// [`Request::Followers`](super::Request::Followers) asks the leader for it.
    #[serde(with = "beside")]
    pub behind: Option<Behind>,
}

/// How a follower keeps up with its leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Behind {
    /// Entries of the leader's log that it is not known to have on stable storage.
    pub lag_entries: u64,
    /// Checkpoints that it had to be offered since this leader leads, because the entries that it needed were gone.
    pub checkpoints: u64,
    /// For how long what it lacks has been growing, in milliseconds; 0 when it does not.
    pub growing_ms: u64,
}

impl Behind {
    /// Whether it keeps falling behind, and not just has for a moment.
    #[must_use]
    pub fn keeps_falling(&self) -> bool {
        self.checkpoints >= CHECKPOINTS_WORTH_TELLING || self.growing_ms >= GROWING_WORTH_TELLING_MS
    }
}

/// One is what a node needs that was away for long; with a second one the first did not help.
const CHECKPOINTS_WORTH_TELLING: u64 = 2;
/// A burst is copied before this, by a follower that can keep up at all.
const GROWING_WORTH_TELLING_MS: u64 = 10_000;

/// The first damage in a node's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedRange {
    /// First entry that cannot be read.
    pub first: u64,
    /// Last such entry; `None` when nobody knows how far it goes. Below `first` when no entry is lost.
    pub last: Option<u64>,
    /// The segment, as its file is called.
    pub segment: String,
    /// First damaged byte in the file.
    pub from: u64,
    /// Byte behind the last one.
    pub to: u64,
}

/// A field that stands in JSON, and takes no byte on the wire: nodes of earlier versions know nothing of it.
mod beside {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() { value.serialize(to) } else { to.serialize_unit() }
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        if from.is_human_readable() { Option::deserialize(from) } else { <()>::deserialize(from).map(|()| None) }
    }
}

impl NodeStatus {
    /// A node that did not answer.
    #[must_use]
    pub fn unreachable(name: impl Into<String>, address: Option<String>) -> NodeStatus {
        NodeStatus {
            name: name.into(),
            id: None,
            address,
            peer_address: None,
            reachable: false,
            role: NodeRole::Unknown,
            state: None,
            term: None,
            commit_index: None,
            last_index: None,
            durable_index: None,
            applied_index: None,
            first_offset: None,
            next_offset: None,
            segments: None,
            bytes: None,
            disk_free_bytes: None,
            incarnation: None,
            pid: None,
            version: None,
            uptime_ms: None,
            certificate_expires: None,
            disk_stalled_ms: None,
            clock_ms: None,
            feature_level: None,
            trouble: None,
            recovering: None,
            behind: None,
        }
    }
}

/// What a node does in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Takes appends.
    Leader,
    /// Copies the leader's log, votes.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Copies the leader's log, has no vote.
    Learner,
    /// Not known.
    Unknown,
}

/// A node's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// All is well.
    Ok,
    /// Its log is being completed; it has no vote until then.
    Recovering,
    /// Damage was found that peers have not repaired yet.
    Damaged,
    /// No room for records; reads, votes and trims go on.
    DiskFull,
}

/// One node's answer to [`Request::NodeStatus`](super::Request::NodeStatus).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node itself.
    pub status: NodeStatus,
    /// The cluster, 32 hexadecimal digits.
    pub cluster_id: String,
    /// Who leads in `status.term`, as far as this node knows.
    pub leader: Option<String>,
    /// Every member, itself included.
    pub members: Vec<MemberReport>,
}

/// A member as another node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReport {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u64,
    /// Where clients reach it, when known.
    pub address: Option<String>,
    /// Where peers reach it.
    pub peer_address: Option<String>,
}

/// Counters of one node's process, for measurements: take them before and after, and subtract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeStats {
    /// Resident memory that belongs to no file.
    pub rss_anon_bytes: u64,
    /// CPU time used, user and system, in microseconds.
    pub cpu_us: u64,
    /// Syncs of the log.
    pub syncs: u64,
    /// Frames written.
    pub frames: u64,
    /// Bytes written to the log.
    pub written_bytes: u64,
    /// Terms in which this node won an election.
    pub elections: u64,
    /// Append groups acknowledged.
    pub appends_acked: u64,
    /// Records acknowledged.
    pub records_acked: u64,
}

/// Where the committed log begins and ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Offset of the first record.
    pub first_offset: u64,
    /// Offset behind the last committed record.
    pub next_offset: u64,
    /// The answering node's term.
    pub term: u64,
    /// Who leads, as far as the answering node knows.
    pub leader: Option<String>,
    /// The node that answered; it has applied everything below `next_offset`.
    pub node: String,
}
