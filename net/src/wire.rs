//! The one place where control messages become bytes and bytes become control messages.
//!
//! Messages are bincode 2 (`config::standard`: little endian, variable-length integers) with a size limit that is part of the type of
//! the call, so that nobody decodes without one: a length inside the bytes that promises more than `LIMIT` is refused before anything
//! is allocated for it. Bytes left over behind a message are refused too: they are a newer format or an attack, never padding.
//!
//! Record bytes never pass through here. Frames and append headers are laid out by hand (`PROTOCOL.md`).

use serde::{Serialize, de::DeserializeOwned};

/// Encodes `value`, refusing what the other side's [`decode`] with the same `LIMIT` would refuse.
///
/// # Errors
/// [`WireError::TooLarge`] when the encoding exceeds `LIMIT`; nothing is kept.
pub fn encode<const LIMIT: usize>(value: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let bytes = bincode::serde::encode_to_vec(value, bincode::config::standard())
        .map_err(|cause| WireError::Encode(cause.to_string()))?;
    if bytes.len() > LIMIT {
        return Err(WireError::TooLarge { size: bytes.len(), limit: LIMIT });
    }
    Ok(bytes)
}

/// Decodes the one message that `bytes` is.
///
/// # Errors
/// When `bytes` is longer than `LIMIT`, is not a `T`, promises more than `LIMIT`, or goes on behind the message.
pub fn decode<const LIMIT: usize, T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    if bytes.len() > LIMIT {
        return Err(WireError::TooLarge { size: bytes.len(), limit: LIMIT });
    }
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, config).map_err(|cause| WireError::Malformed(cause.to_string()))?;
    if used != bytes.len() {
        return Err(WireError::Trailing { used, size: bytes.len() });
    }
    Ok(value)
}

/// Why a control message could not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The message exceeds the limit both sides agreed on.
    #[error("control message has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The value cannot be encoded.
    #[error("control message cannot be encoded: {0}")]
    Encode(String),
    /// The bytes are not such a message.
    #[error("control message is malformed: {0}; the other side may run another version of graven")]
    Malformed(String),
    /// The message ended before its bytes did.
    #[error("control message of {size} bytes ends at byte {used}; the other side may run a newer version of graven")]
    Trailing {
        /// Bytes the message took.
        used: usize,
        /// Bytes there were.
        size: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_decoded() {
        let value = (7_u64, String::from("stone"), vec![1_u8, 2, 3]);
        let bytes = encode::<64>(&value).unwrap();
        assert_eq!(decode::<64, (u64, String, Vec<u8>)>(&bytes).unwrap(), value);
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode::<64>(&7_u64).unwrap();
        bytes.push(0);
        assert_eq!(decode::<64, u64>(&bytes), Err(WireError::Trailing { used: 1, size: 2 }));
    }

    #[test]
    fn length_that_promises_more_than_the_limit_is_refused_before_it_is_allocated() {
        // A vector of 2^60 bytes, in bincode's 9-byte form of a large integer.
        let mut bytes = vec![253];
        bytes.extend_from_slice(&(1_u64 << 60).to_le_bytes());
        assert!(matches!(decode::<64, Vec<u8>>(&bytes), Err(WireError::Malformed(_))));
    }

    #[test]
    fn message_over_the_limit_is_refused_on_both_sides() {
        let large = vec![0_u8; 65];
        assert!(matches!(encode::<64>(&large), Err(WireError::TooLarge { limit: 64, .. })));
        assert!(matches!(decode::<64, Vec<u8>>(&large), Err(WireError::TooLarge { size: 65, limit: 64 })));
    }
}
