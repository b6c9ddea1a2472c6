//! What goes wrong with a snapshot's file.

use std::io;

use super::format::BODY_FORMAT_VERSION;

/// Why a snapshot was not written, read or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The disk failed.
    #[error("cannot {operation} {file}: {cause}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        file: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Going on would take space that is kept for the log. Nothing of the snapshot is left.
    #[error("cannot go on writing {file}: {free} bytes are free, {keep} of them are kept for the log; make room")]
    Full {
        /// The file.
        file: String,
        /// Bytes free.
        free: u64,
        /// Bytes that must stay free.
        keep: u64,
    },
    /// The bytes are not those of a snapshot, or not of this one.
    #[error("{file} is not usable: {flaw}")]
    Flawed {
        /// The file.
        file: String,
        /// What is wrong with it.
        flaw: BodyFlaw,
    },
    /// The body does not have the length that was announced. Nothing of it is left.
    #[error("the body of {file} has {have} bytes, {expected} were announced")]
    Length {
        /// The file.
        file: String,
        /// Bytes there, or bytes offered when it was refused.
        have: u64,
        /// Bytes announced or the most there can be.
        expected: u64,
    },
    /// What was sent as a chunk is not that chunk, or not the one that is due. Nothing of it was taken; the right one is still wanted.
    #[error("what was sent as chunk {number} for {file} is not what belongs there; ask another node")]
    Refused {
        /// The file.
        file: String,
        /// The number it was sent under.
        number: u64,
    },
    /// It is not all there yet.
    #[error("{file} is not whole: chunk {wanted} is missing")]
    Incomplete {
        /// The file.
        file: String,
        /// The next chunk wanted.
        wanted: u64,
    },
    /// An earlier error ended it.
    #[error("{file} was given up after an earlier error; begin it anew")]
    Closed {
        /// The file.
        file: String,
    },
}

impl BodyError {
    /// Whether it is only that the disk has no room: nothing is left of what was being written, and the disk is to be trusted.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            BodyError::Io { cause, .. } => is_full(cause),
            BodyError::Full { .. } => true,
            _ => false,
        }
    }

    /// Whether the bytes in a file are wrong: it should be set aside ([`super::set_aside`]) and fetched from another node. One that newer
    /// software wrote is not damaged.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, BodyError::Flawed { flaw, .. } if !matches!(flaw, BodyFlaw::Newer { .. }))
    }

    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, BodyError::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound)
    }
}

fn is_full(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<BodyError> for io::Error {
    /// Keeps what [`BodyError::is_full`] and the disk's kind say; flaws become `InvalidData`.
    fn from(error: BodyError) -> io::Error {
        let kind = match &error {
            BodyError::Io { cause, .. } => cause.kind(),
            BodyError::Full { .. } => io::ErrorKind::StorageFull,
            BodyError::Flawed { .. } => io::ErrorKind::InvalidData,
            BodyError::Length { .. } => io::ErrorKind::InvalidInput,
            BodyError::Refused { .. } => io::ErrorKind::InvalidData,
            BodyError::Incomplete { .. } | BodyError::Closed { .. } => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// What is wrong with bytes that should be a snapshot's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyFlaw {
    /// Fewer bytes than it must have.
    #[error("it is cut off after {have} bytes")]
    Short {
        /// Bytes there.
        have: u64,
    },
    /// It does not begin like a snapshot.
    #[error("it does not begin like a snapshot")]
    Magic,
    /// A checksum does not hold.
    #[error("the checksum of its {part} does not hold")]
    Sum {
        /// Which part.
        part: &'static str,
    },
    /// A chunk is not what was written at its place.
    #[error("its chunk {number} is not what was written")]
    Chunk {
        /// Which one, from 0.
        number: u64,
    },
    /// All chunks hold, and together they are not the body that was written.
    #[error("its body has digest {have:016x}, {expected:016x} was written")]
    Digest {
        /// Of the body as it is.
        have: u64,
        /// By the footer, or by whoever announced it.
        expected: u64,
    },
    /// Lengths contradict each other or pass a bound.
    #[error("its {part} has an impossible length")]
    Length {
        /// Which part.
        part: &'static str,
    },
    /// A field has a value that cannot be.
    #[error("its {part} is impossible")]
    Field {
        /// Which one.
        part: &'static str,
    },
    /// It is another snapshot than its file's name says, or than was asked for.
    #[error("it is another snapshot than its name says")]
    Other,
    /// Newer software wrote it.
    #[error(
        "it has format version {version} with features {features:#x}, this version reads {BODY_FORMAT_VERSION} and none; upgrade first"
    )]
    Newer {
        /// Its version.
        version: u32,
        /// Its required features.
        features: u32,
    },
}

pub(super) fn failed(operation: &'static str, file: &str) -> impl FnOnce(io::Error) -> BodyError {
    let file = file.to_owned();
    move |cause| BodyError::Io { operation, file, cause }
}

pub(super) fn flawed(file: &str) -> impl FnOnce(BodyFlaw) -> BodyError {
    let file = file.to_owned();
    move |flaw| BodyError::Flawed { file, flaw }
}
