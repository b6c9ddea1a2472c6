//! The membership of a cluster as it stands in the log: who the nodes are and where they are reached.
//!
//! The body of a membership entry. `graven init` writes the first one, byte for byte the same, into every node's log, so that
//! all nodes begin with an equal index 1; later ones are proposed by the leader.

use serde::{Deserialize, Serialize};

/// All nodes of a cluster, in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Members {
    /// The nodes.
    pub nodes: Vec<Member>,
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
    /// Whether it votes; a learner only receives.
    pub voter: bool,
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

/// Seven nodes with the longest names and addresses take less than 5 KiB; twelve times that is still a small entry.
pub const MAX_MEMBERS_BYTES: usize = 64 << 10;

impl Members {
    /// The bytes of this membership.
    ///
    /// # Errors
    /// [`MembersError::TooLarge`].
    pub fn encode(&self) -> Result<Vec<u8>, MembersError> {
        let bytes = bincode::serde::encode_to_vec(self, layout())
            .map_err(|error| MembersError::Malformed(error.to_string()))?;
        if bytes.len() > MAX_MEMBERS_BYTES {
            return Err(MembersError::TooLarge { bytes: bytes.len() });
        }
        Ok(bytes)
    }

    /// Reads what [`Members::encode`] wrote; trailing bytes are refused.
    ///
    /// # Errors
    /// [`MembersError`].
    pub fn decode(bytes: &[u8]) -> Result<Members, MembersError> {
        if bytes.len() > MAX_MEMBERS_BYTES {
            return Err(MembersError::TooLarge { bytes: bytes.len() });
        }
        let (members, used): (Members, usize) = bincode::serde::decode_from_slice(bytes, layout())
            .map_err(|error| MembersError::Malformed(error.to_string()))?;
        if used != bytes.len() {
            return Err(MembersError::Malformed(format!("{} bytes follow it", bytes.len() - used)));
        }
        Ok(members)
    }

    /// The node of this id.
    #[must_use]
    pub fn by_id(&self, id: u64) -> Option<&Member> {
        self.nodes.iter().find(|member| member.id == id)
    }

    /// The node of this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Member> {
        self.nodes.iter().find(|member| member.name == name)
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
            voter: true,
        };
        Members { nodes: (1..=3).map(member).collect() }
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

    #[test]
    fn a_huge_length_does_not_allocate() {
        assert!(Members::decode(&[0xff; 64]).is_err());
    }
}
