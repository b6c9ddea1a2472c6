//! The membership of a cluster as it stands in the log: who the nodes are and where they are reached.
//!
//! The body of a membership entry. `graven init` writes the first one, byte for byte the same, into every node's log, so that
//! all nodes begin with an equal index 1; later ones are proposed by the leader, as [`change`] makes them.

pub mod change;

use graven_raft::{Membership, NodeId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// All nodes of a cluster, in the order of their ids, and what all of them understand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// The nodes.
    pub nodes: Vec<Member>,
    /// The feature level in force: only what nodes of this level understand may stand in the log and on the wire. From 1, never
    /// lowered; the leader raises it when every member has announced a higher one.
    #[serde(skip, default = "first_level")]
    pub feature_level: u32,
}

impl Default for Members {
    fn default() -> Members {
        Members { nodes: Vec::new(), feature_level: first_level() }
    }
}

/// The highest feature level that this software knows; a cluster that it makes begins with it.
pub const NEWEST_LEVEL: u32 = graven_net::protocol::FEATURE_LEVEL;

/// The level of a membership that says none.
fn first_level() -> u32 {
    1
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id, from 1, never used again after the node is removed.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// `HOST:PORT` for the other nodes.
    pub peer_address: String,
    /// `HOST:PORT` for clients.
    pub client_address: String,
    /// The life of its data directory: a wiped or copied directory has another one and may not vote.
    pub incarnation: [u8; 16],
    /// Its say.
    pub role: MemberRole,
}

/// A member's say in the cluster. One byte in the log: 0 and 1 are what they were before changes were possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MemberRole {
    /// Receives the log, and has no vote.
    Learner = 0,
    /// Votes.
    Voter = 1,
    /// Votes among the incoming voters of a change under way, and will be a voter.
    Joining = 2,
    /// Votes among the outgoing voters of a change under way, and will be gone.
    Leaving = 3,
    /// Is gone. The newest node stays in the list as long as no newer one is added, so that its id is never given again.
    Removed = 4,
}

impl MemberRole {
    const ALL: [MemberRole; 5] =
        [MemberRole::Learner, MemberRole::Voter, MemberRole::Joining, MemberRole::Leaving, MemberRole::Removed];

    /// Its name for people and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            MemberRole::Learner => "learner",
            MemberRole::Voter => "voter",
            MemberRole::Joining => "joining",
            MemberRole::Leaving => "leaving",
            MemberRole::Removed => "removed",
        }
    }
}

impl Serialize for MemberRole {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(*self as u8)
    }
}

impl<'de> Deserialize<'de> for MemberRole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MemberRole, D::Error> {
        let number = u8::deserialize(deserializer)?;
        let role = MemberRole::ALL.into_iter().find(|role| *role as u8 == number);
        role.ok_or_else(|| serde::de::Error::custom(format!("role {number} of a member is not known here; upgrade")))
    }
}

/// Why the body of a membership entry cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MembersError {
    /// More nodes, or longer names, than an entry may carry.
    #[error(
        "membership of {bytes} bytes, the limit is {MAX_MEMBERS_BYTES}; remove nodes or shorten names and addresses"
    )]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
    },
    /// The bytes are no membership.
    #[error("membership entry cannot be decoded: {0}")]
    Malformed(String),
}

/// The word behind the feature level that voids the sessions.
const SESSIONS_VOID: u32 = 1;

/// Whether the body of a membership entry voids all sessions that were opened before it: it makes a survivor the first node of a new
/// cluster, and what was acknowledged under them may be lost.
#[must_use]
pub fn voids_sessions(body: &[u8]) -> bool {
    Members::read(body).is_ok_and(|(_, voids)| voids)
}

/// Seven nodes with the longest names and addresses take less than 5 KiB; twelve times that is still a small entry.
pub const MAX_MEMBERS_BYTES: usize = 64 << 10;

impl Members {
    /// The bytes of this membership.
    ///
    /// # Errors
    /// [`MembersError::TooLarge`].
    pub fn encode(&self) -> Result<Vec<u8>, MembersError> {
        let mut bytes = bincode::serde::encode_to_vec(self, layout())
            .map_err(|error| MembersError::Malformed(error.to_string()))?;
        // Level 1 has no bytes: the entry is what it was before there were levels, and software of that time reads it.
        if self.feature_level > first_level() {
            bytes.extend_from_slice(&self.feature_level.to_le_bytes());
        }
        if bytes.len() > MAX_MEMBERS_BYTES {
            return Err(MembersError::TooLarge { bytes: bytes.len() });
        }
        Ok(bytes)
    }

    /// The bytes of this membership in an entry that also voids all sessions ([`voids_sessions`]). What decodes them has the same
    /// members, and no trace of that: it holds for this entry, and for none that is made from it.
    ///
    /// # Errors
    /// [`MembersError::TooLarge`].
    pub fn encode_voiding_sessions(&self) -> Result<Vec<u8>, MembersError> {
        let mut bytes = self.encode()?;
        if self.feature_level == first_level() {
            bytes.extend_from_slice(&self.feature_level.to_le_bytes());
        }
        // Software that does not know the word refuses the entry: it would answer retries that nobody can vouch for.
        bytes.extend_from_slice(&SESSIONS_VOID.to_le_bytes());
        if bytes.len() > MAX_MEMBERS_BYTES {
            return Err(MembersError::TooLarge { bytes: bytes.len() });
        }
        Ok(bytes)
    }

    /// Reads what [`Members::encode`] or [`Members::encode_voiding_sessions`] wrote; trailing bytes are refused.
    ///
    /// # Errors
    /// [`MembersError`].
    pub fn decode(bytes: &[u8]) -> Result<Members, MembersError> {
        Members::read(bytes).map(|(members, _)| members)
    }

    /// The members, and whether the sessions are void.
    fn read(bytes: &[u8]) -> Result<(Members, bool), MembersError> {
        if bytes.len() > MAX_MEMBERS_BYTES {
            return Err(MembersError::TooLarge { bytes: bytes.len() });
        }
        let (mut members, used): (Members, usize) = bincode::serde::decode_from_slice(bytes, layout())
            .map_err(|error| MembersError::Malformed(error.to_string()))?;
        let rest = bytes.get(used..).unwrap_or_default();
        let words: Vec<u32> =
            rest.chunks_exact(4).filter_map(|word| word.try_into().ok().map(u32::from_le_bytes)).collect();
        let whole = rest.len().is_multiple_of(4);
        // One encoding for one membership: a word that says nothing is not written.
        let voids = match words.as_slice() {
            [] if whole => false,
            [level] if whole && *level > first_level() => false,
            [level, SESSIONS_VOID] if whole && *level >= first_level() => true,
            _ => return Err(MembersError::Malformed(format!("{} bytes follow it", rest.len()))),
        };
        members.feature_level = words.first().copied().unwrap_or(first_level());
        Ok((members, voids))
    }

    /// Everybody who belongs to the cluster.
    pub fn present(&self) -> impl Iterator<Item = &Member> {
        self.nodes.iter().filter(|member| member.role != MemberRole::Removed)
    }

    /// The member of this id.
    #[must_use]
    pub fn by_id(&self, id: u64) -> Option<&Member> {
        self.present().find(|member| member.id == id)
    }

    /// The member of this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Member> {
        self.present().find(|member| member.name == name)
    }

    /// The highest id that was ever given; 0 when nobody is known.
    #[must_use]
    pub fn newest_id(&self) -> u64 {
        self.nodes.iter().map(|member| member.id).max().unwrap_or(0)
    }

    /// Whether a change of voters is under way, so that two majorities decide.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        self.nodes.iter().any(|member| matches!(member.role, MemberRole::Joining | MemberRole::Leaving))
    }

    /// Who decides, as the core counts.
    #[must_use]
    pub fn membership(&self) -> Membership {
        let of = |roles: &[MemberRole]| {
            let with = self.nodes.iter().filter(|member| roles.contains(&member.role));
            with.map(|member| NodeId(member.id)).collect()
        };
        let outgoing: &[MemberRole] = if self.is_joint() { &[MemberRole::Voter, MemberRole::Leaving] } else { &[] };
        Membership {
            voters: of(&[MemberRole::Voter, MemberRole::Joining]),
            outgoing: of(outgoing),
            learners: of(&[MemberRole::Learner]),
        }
    }
}

impl Member {
    /// Its incarnation as a number.
    #[must_use]
    pub fn incarnation(&self) -> u128 {
        u128::from_le_bytes(self.incarnation)
    }
}

/// Fixed-width little-endian integers, like everything else on disk; the limit keeps a length field from allocating more.
fn layout() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MAX_MEMBERS_BYTES>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Members {
        let member = |id: u64| Member {
            id,
            name: format!("n{id}"),
            peer_address: format!("host-{id}:5470"),
            client_address: format!("host-{id}:5471"),
            incarnation: [id as u8; 16],
            role: MemberRole::Voter,
        };
        Members { nodes: (1..=3).map(member).collect(), ..Members::default() }
    }

    #[test]
    fn the_first_level_has_no_bytes_and_a_higher_one_is_read_back() {
        let plain = members();
        let mut raised = members();
        raised.feature_level = 2;
        let (before, after) = (plain.encode().expect("small"), raised.encode().expect("small"));
        assert_eq!(after, [before.as_slice(), &[2, 0, 0, 0]].concat());
        assert_eq!(Members::decode(&after).expect("whole").feature_level, 2);
        assert_eq!(Members::decode(&before).expect("whole").feature_level, 1);
        for wrong in [[0, 0, 0, 0], [1, 0, 0, 0]] {
            assert!(Members::decode(&[before.as_slice(), &wrong].concat()).is_err(), "one encoding for one membership");
        }
    }

    #[test]
    fn an_entry_that_voids_sessions_has_the_same_members_and_says_so_once() {
        for level in [1, 2] {
            let members = Members { feature_level: level, ..members() };
            let (plain, voiding) =
                (members.encode().expect("small"), members.encode_voiding_sessions().expect("small"));
            assert!(voids_sessions(&voiding) && !voids_sessions(&plain));
            assert_eq!(
                voiding.len(),
                Members { feature_level: 1, ..members.clone() }.encode().expect("small").len() + 8
            );
            assert!(voiding.ends_with(&[level as u8, 0, 0, 0, 1, 0, 0, 0]));
            let back = Members::decode(&voiding).expect("whole");
            assert_eq!(back, members);
            assert!(!voids_sessions(&back.settled().encode().expect("small")), "nothing of it goes on");
        }
        let before = members().encode().expect("small");
        for wrong in [[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 2, 0, 0, 0]] {
            let bytes = [before.as_slice(), &wrong].concat();
            assert!(Members::decode(&bytes).is_err() && !voids_sessions(&bytes), "{wrong:?}");
        }
        assert!(Members::decode(&[before.as_slice(), &[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]].concat()).is_err());
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let bytes = members().encode().expect("small");
        assert_eq!(Members::decode(&bytes).expect("whole"), members());
        assert_eq!(members().by_name("n2"), members().by_id(2));
    }

    #[test]
    fn cut_or_extended_bytes_are_refused() {
        let bytes = members().encode().expect("small");
        for end in 0..bytes.len() {
            assert!(Members::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(Members::decode(&longer).is_err());
    }

    /// A voter is the byte 1, as in logs that were written before members could change.
    #[test]
    fn roles_are_one_byte_and_unknown_ones_are_refused() {
        let mut members = Members { nodes: members().nodes[..1].to_vec(), ..Members::default() };
        let mut bytes = members.encode().expect("small");
        assert_eq!(bytes.last(), Some(&1));
        for (number, role) in (0..).zip(MemberRole::ALL) {
            members.nodes[0].role = role;
            assert_eq!(members.encode().expect("small").last(), Some(&number));
            assert_eq!(Members::decode(&members.encode().expect("small")).expect("whole"), members);
        }
        *bytes.last_mut().expect("not empty") = 5;
        assert!(Members::decode(&bytes).is_err());
    }

    #[test]
    fn a_change_under_way_has_two_sets_of_voters() {
        let mut members = members();
        let ids = |set: std::collections::BTreeSet<NodeId>| set.into_iter().map(|id| id.0).collect::<Vec<_>>();
        assert!(!members.membership().is_joint());
        members.nodes[0].role = MemberRole::Leaving;
        members.nodes[2].role = MemberRole::Joining;
        let joint = members.membership();
        assert_eq!((ids(joint.voters), ids(joint.outgoing), ids(joint.learners)), (vec![2, 3], vec![1, 2], vec![]));
    }

    #[test]
    fn a_huge_length_does_not_allocate() {
        assert!(Members::decode(&[0xff; 64]).is_err());
    }
}
