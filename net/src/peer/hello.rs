//! The first words on every peer connection: who dials whom, which lane it is, and in which version both go on.
//!
//! The dialler sends a [`Hello`] on the connection's only bidirectional stream and the acceptor answers a [`Reply`]. The certificates
//! were verified before; the hello is compared with them and with the roster, and every reason to refuse has a name of its own, because
//! "connection closed" is what an operator can do least with.

use graven_raft::NodeId;
use quinn::{RecvStream, SendStream};
use serde::{Deserialize, Serialize};

use super::{Roster, RosterEntry};
use crate::{
    tls::{Identity, Verified},
    wire,
};

/// What a connection carries. Each peer dials each other one once per lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Lane {
    /// Votes, heartbeats and answers: small, and nothing large before them.
    Control,
    /// Appends with their frames.
    Append,
}

impl Lane {
    /// Its name in a sentence.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Append => "append",
        }
    }
}

/// Why one side will not talk to the other. Retried all the same: what is wrong may be put right on either side.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A certificate was refused in the handshake.
    #[error("{0}")]
    Certificate(String),
    /// A client's certificate on the port for peers.
    #[error("{0} is on the port for peers; clients use the client port")]
    NotANode(String),
    /// The hello claims another node than the certificate names.
    #[error("certificate is of node {certificate}, the hello says node {hello}")]
    CertificateOfOther {
        /// Whom the certificate names.
        certificate: u64,
        /// Whom the hello names.
        hello: u64,
    },
    /// Of another cluster.
    #[error("node of cluster {seen}, this is cluster {expected}; check the address in the membership")]
    Cluster {
        /// Our cluster, in hex.
        expected: String,
        /// Theirs, in hex.
        seen: String,
    },
    /// The dialler meant another node.
    #[error("this is node {expected}, not node {seen}; check the address in the membership")]
    WrongNode {
        /// Who the acceptor is.
        expected: u64,
        /// Whom the dialler meant.
        seen: u64,
    },
    /// Not a member, or not under this name.
    #[error("node {node} ({name}) is not a member under that name here; if it was removed, stop it")]
    NotMember {
        /// The dialler's id.
        node: u64,
        /// The name in its certificate.
        name: String,
    },
    /// A member's id on another data directory: wiped, copied or restored.
    #[error(
        "node {node} has incarnation {seen}, the membership has {expected}: its data directory was replaced or copied; start it with its own, or make a new node with `graven init --join` and swap it in with `graven member replace`"
    )]
    Incarnation {
        /// Whose.
        node: u64,
        /// What the membership says, in hex.
        expected: String,
        /// What it says itself, in hex.
        seen: String,
    },
    /// No protocol version in common.
    #[error(
        "peer protocol versions {seen_min} to {seen_max} have nothing in common with {known_min} to {known_max}; upgrade one version at a time"
    )]
    Version {
        /// The refused side's oldest.
        seen_min: u16,
        /// The refused side's newest.
        seen_max: u16,
        /// The refusing side's oldest.
        known_min: u16,
        /// The refusing side's newest.
        known_max: u16,
    },
    /// Not the first words of a peer.
    #[error("hello is malformed: {0}")]
    Malformed(String),
    /// A second process of one node: its data directory was copied.
    #[error(
        "node {node} runs already, in another process that is heard at {address}: this one was started from a copy of its directory; stop it and remove the copy, or, if the other is the copy, stop that one"
    )]
    OtherLife {
        /// Whose.
        node: u64,
        /// Where the other process is.
        address: String,
    },
}

impl Refusal {
    /// Whether it says that the refused process is not the node it claims to be, so that trying again for long is of no use.
    #[must_use]
    pub fn disowns(&self) -> bool {
        matches!(self, Self::OtherLife { .. } | Self::Incarnation { .. })
    }
}

/// Who dials whom, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) cluster: u128,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) incarnation: u128,
    /// Random for each start of the process: tells a restarted peer from one that lost a connection.
    pub(crate) boot: u64,
    pub(crate) lane: Lane,
    pub(crate) feature_level: u32,
    /// Where the dialler is reached, for an acceptor that does not know it yet.
    pub(crate) advertised: String,
}

/// The acceptor's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    Welcome(Welcome),
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) version: u16,
    pub(crate) node: NodeId,
    pub(crate) incarnation: u128,
    pub(crate) boot: u64,
    pub(crate) feature_level: u32,
}

/// Who we are, for both sides of a hello.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    pub(crate) cluster: u128,
    pub(crate) node: NodeId,
    pub(crate) incarnation: u128,
    pub(crate) boot: u64,
    pub(crate) feature_level: u32,
    pub(crate) advertised: String,
}

/// Who is welcome.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) welcome: Welcome,
    /// Present when the dialler is newer than the roster.
    pub(crate) guest: Option<RosterEntry>,
}

impl Local {
    pub(crate) fn hello(&self, to: NodeId, lane: Lane) -> Hello {
        Hello {
            cluster: self.cluster,
            from: self.node,
            to,
            incarnation: self.incarnation,
            boot: self.boot,
            lane,
            feature_level: self.feature_level,
            advertised: self.advertised.clone(),
        }
    }

    /// The acceptor's decision: the certificate first, then what the hello claims, then the roster.
    pub(crate) fn judge(&self, hello: &Hello, verified: &Verified, roster: &Roster) -> Result<Judged, Refusal> {
        let Identity::Node(certificate) = &verified.identity else {
            return Err(Refusal::NotANode(verified.identity.to_string()));
        };
        if hello.cluster != self.cluster || certificate.cluster != self.cluster {
            let seen = if hello.cluster == self.cluster { certificate.cluster } else { hello.cluster };
            return Err(Refusal::Cluster { expected: hex(self.cluster), seen: hex(seen) });
        }
        if certificate.node != hello.from.0 {
            return Err(Refusal::CertificateOfOther { certificate: certificate.node, hello: hello.from.0 });
        }
        if hello.to != self.node {
            return Err(Refusal::WrongNode { expected: self.node.0, seen: hello.to.0 });
        }
        let is_newer = hello.from > roster.newest && hello.from != self.node;
        let entry = roster.members.get(&hello.from).filter(|entry| entry.name == certificate.name);
        let guest = match entry.filter(|_| hello.from != self.node) {
            // A guest is known by what it said last, not by what the log says: it may say something else.
            Some(entry) if !is_newer => {
                check_incarnation(hello.from, entry.incarnation, hello.incarnation)?;
                None
            }
            _ if is_newer => Some(RosterEntry {
                name: certificate.name.clone(),
                address: hello.advertised.clone(),
                incarnation: hello.incarnation,
            }),
            _ => return Err(Refusal::NotMember { node: hello.from.0, name: certificate.name.clone() }),
        };
        let welcome = Welcome {
            version: VERSION_MAX,
            node: self.node,
            incarnation: self.incarnation,
            boot: self.boot,
            feature_level: self.feature_level,
        };
        Ok(Judged { welcome, guest })
    }
}

/// Incarnation 0 in the roster is one that is not known yet.
pub(super) fn check_incarnation(node: NodeId, expected: u128, seen: u128) -> Result<(), Refusal> {
    if expected == 0 || expected == seen {
        return Ok(());
    }
    Err(Refusal::Incarnation { node: node.0, expected: hex(expected), seen: hex(seen) })
}

pub(super) async fn write_hello(stream: &mut SendStream, hello: &Hello) -> Result<(), HelloError> {
    let body = wire::encode::<HELLO_BYTES_MAX>(hello)?;
    let mut bytes = Vec::with_capacity(HELLO_FIXED_BYTES + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION_MIN.to_le_bytes());
    bytes.extend_from_slice(&VERSION_MAX.to_le_bytes());
    put_prefixed(&mut bytes, &body);
    stream.write_all(&bytes).await?;
    stream.finish().map_err(|_| HelloError::Closed)
}

/// Reads a hello.
pub(super) async fn read_hello(stream: &mut RecvStream) -> Result<Result<Hello, Refusal>, HelloError> {
    let mut fixed = [0_u8; HELLO_FIXED_BYTES];
    stream.read_exact(&mut fixed).await?;
    if let Err(refusal) = check_fixed(fixed) {
        return Ok(Err(refusal));
    }
    let body = match read_prefixed(stream).await {
        Err(HelloError::TooLarge(size)) => {
            return Ok(Err(Refusal::Malformed(format!("it has {size} bytes, the limit is {HELLO_BYTES_MAX}"))));
        }
        other => other?,
    };
    Ok(decode_hello(&body))
}

/// The version range stands before the part that versions may change, so that a newer peer is told "version" and not "malformed".
pub(crate) fn check_fixed(fixed: [u8; HELLO_FIXED_BYTES]) -> Result<(), Refusal> {
    let [magic @ .., a, b, c, d] = fixed;
    if magic != *MAGIC {
        return Err(Refusal::Malformed("it does not begin as a peer's".into()));
    }
    let (seen_min, seen_max) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    if seen_min > VERSION_MAX || seen_max < VERSION_MIN {
        return Err(Refusal::Version { seen_min, seen_max, known_min: VERSION_MIN, known_max: VERSION_MAX });
    }
    Ok(())
}

pub(crate) fn decode_hello(body: &[u8]) -> Result<Hello, Refusal> {
    wire::decode::<HELLO_BYTES_MAX, Hello>(body).map_err(|cause| Refusal::Malformed(cause.to_string()))
}

pub(super) async fn write_reply(stream: &mut SendStream, reply: &Reply) -> Result<(), HelloError> {
    let body = wire::encode::<HELLO_BYTES_MAX>(reply)?;
    let mut bytes = Vec::with_capacity(4 + body.len());
    put_prefixed(&mut bytes, &body);
    stream.write_all(&bytes).await?;
    stream.finish().map_err(|_| HelloError::Closed)
}

pub(super) async fn read_reply(stream: &mut RecvStream) -> Result<Reply, HelloError> {
    let body = read_prefixed(stream).await?;
    Ok(wire::decode::<HELLO_BYTES_MAX, Reply>(&body)?)
}

/// Why a hello was not exchanged, when nobody refused it.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    #[error("{0}")]
    Write(#[from] quinn::WriteError),
    #[error("{0}")]
    Read(#[from] quinn::ReadExactError),
    #[error("{0}")]
    Wire(#[from] wire::WireError),
    #[error("{0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("it has {0} bytes, the limit is {HELLO_BYTES_MAX}")]
    TooLarge(usize),
    #[error("its stream was closed")]
    Closed,
}

fn put_prefixed(bytes: &mut Vec<u8>, body: &[u8]) {
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX); // `body` was encoded under a limit far below.
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(body);
}

async fn read_prefixed(stream: &mut RecvStream) -> Result<Vec<u8>, HelloError> {
    let mut prefix = [0_u8; 4];
    stream.read_exact(&mut prefix).await?;
    let len = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if len > HELLO_BYTES_MAX {
        return Err(HelloError::TooLarge(len));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

fn hex(id: u128) -> String {
    format!("{id:032x}")
}

const MAGIC: &[u8; 8] = b"GRVPEER\0";
pub(crate) const HELLO_FIXED_BYTES: usize = 12;
/// Names are at most 40 bytes and a refusal is a sentence or two.
pub(crate) const HELLO_BYTES_MAX: usize = 2048;
/// Versions of the peer protocol this build speaks.
pub(super) const VERSION_MIN: u16 = 1;
pub(super) const VERSION_MAX: u16 = 1;

#[cfg(test)]
mod tests {
    use super::{super::RosterEntry, *};
    use crate::tls::{ClientIdentity, NodeIdentity, Role, UnixTime};

    const CLUSTER: u128 = 0xc1;

    fn node_certificate(cluster: u128, node: u64, name: &str) -> Verified {
        let identity = Identity::Node(NodeIdentity { cluster, node, name: name.into() });
        Verified { identity, not_after: UnixTime(0) }
    }

    fn local(node: u64) -> Local {
        let advertised = format!("h:{node}");
        Local { cluster: CLUSTER, node: NodeId(node), incarnation: 11, boot: 1, feature_level: 1, advertised }
    }

    fn roster() -> Roster {
        let entry = |node: u64, incarnation| {
            (NodeId(node), RosterEntry { name: format!("n{node}"), address: "h:1".into(), incarnation })
        };
        Roster { members: [entry(1, 11), entry(2, 22), entry(3, 0)].into(), newest: NodeId(9) }
    }

    fn judge(change: impl FnOnce(&mut Hello), certificate: &Verified) -> Result<Judged, Refusal> {
        let mut hello = Local { incarnation: 22, ..local(2) }.hello(NodeId(1), Lane::Control);
        change(&mut hello);
        local(1).judge(&hello, certificate, &roster())
    }

    #[test]
    fn member_with_its_certificate_is_welcome() {
        let judged = judge(|_| (), &node_certificate(CLUSTER, 2, "n2")).unwrap();
        assert_eq!((judged.welcome.node, judged.guest), (NodeId(1), None));
    }

    #[test]
    fn unknown_incarnation_is_taken_as_it_comes() {
        let change = |hello: &mut Hello| (hello.from, hello.incarnation) = (NodeId(3), 99);
        assert!(judge(change, &node_certificate(CLUSTER, 3, "n3")).is_ok());
    }

    #[test]
    fn newer_node_than_the_roster_is_a_guest_by_its_own_word() {
        let change = |hello: &mut Hello| (hello.from, hello.incarnation) = (NodeId(10), 77);
        let guest = judge(change, &node_certificate(CLUSTER, 10, "n10")).unwrap().guest.unwrap();
        assert_eq!((guest.name.as_str(), guest.address.as_str(), guest.incarnation), ("n10", "h:2", 77));
        let other = node_certificate(7, 10, "n10");
        assert!(matches!(judge(change, &other), Err(Refusal::Cluster { .. })));
    }

    #[test]
    fn every_mismatch_is_refused_under_its_own_name() {
        let own = node_certificate(CLUSTER, 2, "n2");
        let client = ClientIdentity { cluster: CLUSTER, name: "c".into(), role: Role::Admin };
        let client = Verified { identity: Identity::Client(client), not_after: UnixTime(0) };
        assert!(matches!(judge(|_| (), &client), Err(Refusal::NotANode(_))));
        assert!(matches!(judge(|h| h.cluster = 7, &own), Err(Refusal::Cluster { .. })));
        assert!(matches!(judge(|_| (), &node_certificate(7, 2, "n2")), Err(Refusal::Cluster { .. })));
        assert!(matches!(judge(|h| h.from = NodeId(3), &own), Err(Refusal::CertificateOfOther { .. })));
        assert!(matches!(judge(|h| h.to = NodeId(3), &own), Err(Refusal::WrongNode { .. })));
        assert!(matches!(judge(|h| h.incarnation = 23, &own), Err(Refusal::Incarnation { .. })));
        assert!(matches!(judge(|_| (), &node_certificate(CLUSTER, 2, "other")), Err(Refusal::NotMember { .. })));
        let stranger = node_certificate(CLUSTER, 9, "n9");
        assert!(matches!(judge(|h| h.from = NodeId(9), &stranger), Err(Refusal::NotMember { .. })));
        let myself = node_certificate(CLUSTER, 1, "n1");
        assert!(matches!(judge(|h| h.from = NodeId(1), &myself), Err(Refusal::NotMember { .. })));
    }
}
