//! What a request that did not succeed is told: one shape for every answer, from the node to the user's terminal.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// Whether a write that failed may have happened all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It did not happen and will not.
    Refused,
    /// It may have happened, or may still.
    Unknown,
}

/// The kind of a failure. The names are a contract with scripts: they are what `--json` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The call cannot be right whatever the cluster does: an unknown node, an empty batch.
    Usage,
    /// A configuration file is missing, unreadable or wrong.
    Config,
    /// No node, or no leader, could be reached.
    Unavailable,
    /// Nodes answered, but the request made no progress in time.
    Timeout,
    /// A record or a batch is larger than allowed.
    TooLarge,
    /// The position asked for lies beyond the end of the log.
    OutOfRange,
    /// The position asked for was trimmed.
    Trimmed,
    /// A majority of the nodes has no room left for records.
    DiskFull,
    /// The next offset is not the one that was expected.
    Conflict,
    /// A higher fence was seen.
    Fenced,
    /// The session was forgotten; what it had in flight cannot be told apart from new appends any more.
    SessionExpired,
    /// One side refused the other's certificate.
    Unauthenticated,
    /// The certificate's role does not allow the request.
    Forbidden,
    /// Bytes are not what was written.
    Damaged,
    /// A defect in graven.
    Internal,
}

impl ErrorCode {
    /// The name in JSON output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::Usage => "usage",
            ErrorCode::Config => "config",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Timeout => "timeout",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::OutOfRange => "out_of_range",
            ErrorCode::Trimmed => "trimmed",
            ErrorCode::DiskFull => "disk_full",
            ErrorCode::Conflict => "conflict",
            ErrorCode::Fenced => "fenced",
            ErrorCode::SessionExpired => "session_expired",
            ErrorCode::Unauthenticated => "unauthenticated",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::Damaged => "damaged",
            ErrorCode::Internal => "internal",
        }
    }

    /// The exit code of a command that ends with this failure.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorCode::Internal => 1,
            ErrorCode::Usage | ErrorCode::Config => 2,
            ErrorCode::Unavailable | ErrorCode::Timeout => 3,
            ErrorCode::TooLarge
            | ErrorCode::OutOfRange
            | ErrorCode::Trimmed
            | ErrorCode::DiskFull
            | ErrorCode::Conflict
            | ErrorCode::Fenced
            | ErrorCode::SessionExpired => 4,
            ErrorCode::Unauthenticated | ErrorCode::Forbidden => 5,
            ErrorCode::Damaged => 6,
        }
    }

    /// Every code, in the order of its number on the wire (from 1).
    pub const ALL: [ErrorCode; 15] = [
        ErrorCode::Usage,
        ErrorCode::Config,
        ErrorCode::Unavailable,
        ErrorCode::Timeout,
        ErrorCode::TooLarge,
        ErrorCode::OutOfRange,
        ErrorCode::Trimmed,
        ErrorCode::DiskFull,
        ErrorCode::Conflict,
        ErrorCode::Fenced,
        ErrorCode::SessionExpired,
        ErrorCode::Unauthenticated,
        ErrorCode::Forbidden,
        ErrorCode::Damaged,
        ErrorCode::Internal,
    ];
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A number or a name that belongs to a failure. In JSON it is just that number or string.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum Detail {
    /// An offset, a term, a size.
    Number(u64),
    /// A node's name, an address.
    Text(String),
}

impl Serialize for Detail {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let readable = serializer.is_human_readable();
        match self {
            Detail::Number(number) if readable => serializer.serialize_u64(*number),
            Detail::Text(text) if readable => serializer.serialize_str(text),
            Detail::Number(number) => serializer.serialize_newtype_variant("Detail", 0, "Number", number),
            Detail::Text(text) => serializer.serialize_newtype_variant("Detail", 1, "Text", text),
        }
    }
}

impl From<u64> for Detail {
    fn from(number: u64) -> Detail {
        Detail::Number(number)
    }
}

impl From<&str> for Detail {
    fn from(text: &str) -> Detail {
        Detail::Text(text.to_owned())
    }
}

impl From<String> for Detail {
    fn from(text: String) -> Detail {
        Detail::Text(text)
    }
}

/// A failure as it travels: what kind, what to say, whether the request may have happened, and numbers for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind.
    pub code: ErrorCode,
    /// One sentence for people: what, where, what to do.
    pub message: String,
    /// Whether it may have happened all the same.
    pub outcome: Outcome,
    /// Numbers and names for programs: `next_offset`, `first_offset`, `limit`, `size`, ...
    pub details: BTreeMap<String, Detail>,
}

impl Failure {
    /// A failure of something that did not happen.
    pub fn refused(code: ErrorCode, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), outcome: Outcome::Refused, details: BTreeMap::new() }
    }

    /// A failure of something that may have happened.
    pub fn unknown(code: ErrorCode, message: impl Into<String>) -> Failure {
        Failure { outcome: Outcome::Unknown, ..Failure::refused(code, message) }
    }

    /// The same with one more detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Detail>) -> Failure {
        self.details.insert(key.to_owned(), value.into());
        self
    }

    /// A detail that is a number.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.details.get(key) {
            Some(Detail::Number(number)) => Some(*number),
            _ => None,
        }
    }
}
