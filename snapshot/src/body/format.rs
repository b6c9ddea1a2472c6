//! A snapshot's bytes: header, chunks, footer.

use std::fmt;

use xxhash_rust::xxh3::Xxh3Default;

use super::error::BodyFlaw;

/// The version this code writes, and the newest it reads.
pub const BODY_FORMAT_VERSION: u32 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 128;
/// Body bytes in every chunk but the last. Large enough that its head and a disk call weigh nothing, small enough to hold a few in
/// memory, and to lose one when a connection breaks.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Length and checksum before a chunk's bytes.
pub const CHUNK_HEAD_BYTES: usize = 8;
/// The largest body: 8 TiB, half of what the file systems in use take in one file.
pub const BODY_BYTES_MAX: u64 = 8 << 40;
/// The longest name.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of an encoded [`Info`].
pub const INFO_BYTES: usize = HEADER_BYTES + FOOTER_BYTES;
pub(super) const FOOTER_BYTES: usize = 40;
const MAGIC: &[u8; 8] = b"GRVNSNAP";
const DONE: &[u8; 8] = b"GRVNDONE";
const NAME_AT: usize = 57;

/// The name under which an application keeps its snapshots: 1 to 64 of `A-Z a-z 0-9 . _ -`. The empty one, [`Name::OWN`], is that of the state
/// machine inside a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Name(String);

/// A name that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a snapshot cannot be named {0:?}: 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ - are needed")]
pub struct NameError(String);

impl Name {
    /// Of the state machine inside a node.
    pub const OWN: Name = Name(String::new());

    /// The name of an application's snapshots.
    ///
    /// # Errors
    /// [`NameError`]: empty, too long, or with other characters.
    pub fn new(name: &str) -> Result<Name, NameError> {
        match !name.is_empty() && is_name(name.as_bytes()) {
            true => Ok(Name(name.to_owned())),
            false => Err(NameError(name.chars().take(NAME_BYTES_MAX).collect())),
        }
    }

    /// Its characters; none for [`Name::OWN`].
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is [`Name::OWN`].
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_name(bytes: &[u8]) -> bool {
    bytes.len() <= NAME_BYTES_MAX && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The cluster whose records it is made of.
    pub cluster: u128,
    /// Its own number: random, never 0.
    pub id: u64,
    /// Whose state it is.
    pub name: Name,
    /// It is the state after all records below this offset; the next record to read is this one.
    pub offset: u64,
    /// Timestamp of the record before `offset`, milliseconds since the epoch; 0 when there is none.
    pub timestamp_ms: u64,
}

/// The name of the file of the snapshot with this id, if it is one with a name.
#[must_use]
pub fn file_of(id: u64) -> String {
    format!("{SNAPSHOT_PREFIX}{id:016x}")
}

/// The id in the name of a file, if it is that of a snapshot with a name.
#[must_use]
pub fn id_of(file_name: &str) -> Option<u64> {
    let id = u64::from_str_radix(file_name.strip_prefix(SNAPSHOT_PREFIX)?, 16).ok()?;
    (file_of(id) == file_name).then_some(id)
}

/// The name of the file of a node's own state at this offset.
#[must_use]
pub fn own_file_at(offset: u64) -> String {
    format!("{STATE_PREFIX}{offset:016x}")
}

impl Header {
    /// The name of its file: `snapshot-` and the id, or `state-` and the offset for a node's own state, in 16 hexadecimal digits.
    #[must_use]
    pub fn file_name(&self) -> String {
        match self.name.is_own() {
            true => own_file_at(self.offset),
            false => file_of(self.id),
        }
    }

    /// The name of its file while it is written.
    pub(super) fn unfinished_name(&self) -> String {
        match self.name.is_own() {
            // Only one is made at a time.
            true => format!("{OWN_UNFINISHED}{UNFINISHED}"),
            false => self.file_name() + UNFINISHED,
        }
    }

    /// The name of its file while it is received.
    pub(super) fn partial_name(&self) -> String {
        self.file_name() + PARTIAL
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let name = self.name.0.as_bytes();
        let fields: [(usize, &[u8]); 9] = [
            (0, MAGIC),
            (8, &BODY_FORMAT_VERSION.to_le_bytes()),
            (12, &0u32.to_le_bytes()),
            (16, &self.cluster.to_le_bytes()),
            (32, &self.id.to_le_bytes()),
            (40, &self.offset.to_le_bytes()),
            (48, &self.timestamp_ms.to_le_bytes()),
            // A name has at most 64 bytes.
            (56, &[name.len() as u8]),
            (NAME_AT, name),
        ];
        for (at, field) in fields {
            bytes[at..at + field.len()].copy_from_slice(field);
        }
        seal(&mut bytes);
        bytes
    }

    /// Reads what [`Header::encode`] made; every byte is checked.
    ///
    /// # Errors
    /// [`BodyFlaw`].
    pub fn decode(bytes: &[u8]) -> Result<Header, BodyFlaw> {
        let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(BodyFlaw::Short { have: bytes.len() as u64 })?;
        if !header.starts_with(MAGIC) {
            return Err(BodyFlaw::Magic);
        }
        if !is_sealed(header) {
            return Err(BodyFlaw::Sum { part: "header" });
        }
        let (version, features) = (u32::from_le_bytes(field(header, 8)), u32::from_le_bytes(field(header, 12)));
        if version != BODY_FORMAT_VERSION || features != 0 {
            return Err(BodyFlaw::Newer { version, features });
        }
        let name_end = NAME_AT + usize::from(header[56]);
        let (name, zero) = match header[..HEADER_BYTES - 4].split_at_checked(name_end) {
            Some((before, zero)) => (&before[NAME_AT..], zero),
            None => return Err(BodyFlaw::Length { part: "name" }),
        };
        if !is_name(name) || zero.iter().any(|byte| *byte != 0) {
            return Err(BodyFlaw::Field { part: "name" });
        }
        let id = u64::from_le_bytes(field(header, 32));
        if id == 0 {
            return Err(BodyFlaw::Field { part: "id" });
        }
        Ok(Header {
            cluster: u128::from_le_bytes(field(header, 16)),
            id,
            name: Name(String::from_utf8_lossy(name).into_owned()),
            offset: u64::from_le_bytes(field(header, 40)),
            timestamp_ms: u64::from_le_bytes(field(header, 48)),
        })
    }
}

/// A whole snapshot: what it is of, and what its body is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// What it is of.
    pub header: Header,
    /// Bytes of the body.
    pub bytes: u64,
    /// XXH3-64 of the body, by [`Digest`].
    pub digest: u64,
}

impl Info {
    /// How many chunks the body has; all but the last are full.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.bytes.div_ceil(CHUNK_BYTES as u64)
    }

    /// Bytes of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.footer_at() + FOOTER_BYTES as u64
    }

    /// Body bytes in the chunk `number`; 0 behind the last one.
    #[must_use]
    pub fn chunk_bytes(&self, number: u64) -> usize {
        let before = number.saturating_mul(CHUNK_BYTES as u64);
        self.bytes.saturating_sub(before).min(CHUNK_BYTES as u64) as usize
    }

    /// Its bytes for another node: header and footer, one behind the other.
    #[must_use]
    pub fn encode(&self) -> [u8; INFO_BYTES] {
        let mut bytes = [0; INFO_BYTES];
        let header = self.header.encode();
        bytes[..HEADER_BYTES].copy_from_slice(&header);
        bytes[HEADER_BYTES..].copy_from_slice(&self.footer(&header));
        bytes
    }

    /// Reads what [`Info::encode`] made; every byte is checked.
    ///
    /// # Errors
    /// [`BodyFlaw`].
    pub fn decode(bytes: &[u8]) -> Result<Info, BodyFlaw> {
        let have = bytes.len() as u64;
        let (header, footer) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(BodyFlaw::Short { have })?;
        let parsed = Header::decode(header)?;
        let footer: &[u8; FOOTER_BYTES] = match footer.try_into() {
            Ok(footer) => footer,
            Err(_) if footer.len() < FOOTER_BYTES => return Err(BodyFlaw::Short { have }),
            Err(_) => return Err(BodyFlaw::Length { part: "footer" }),
        };
        if !footer.starts_with(DONE) || !is_sealed(footer) || footer[32..36] != header[HEADER_BYTES - 4..] {
            return Err(BodyFlaw::Sum { part: "footer" });
        }
        let bytes = u64::from_le_bytes(field(footer, 16));
        let info = Info { header: parsed, bytes, digest: u64::from_le_bytes(field(footer, 24)) };
        let claimed = u64::from_le_bytes(field(footer, 8));
        match bytes <= BODY_BYTES_MAX && claimed == info.file_bytes() {
            true => Ok(info),
            false => Err(BodyFlaw::Length { part: "footer" }),
        }
    }

    pub(super) fn footer_at(&self) -> u64 {
        HEADER_BYTES as u64 + self.bytes + self.chunks() * CHUNK_HEAD_BYTES as u64
    }

    /// The footer vouches for the header, too.
    pub(super) fn footer(&self, header: &[u8; HEADER_BYTES]) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        bytes[..8].copy_from_slice(DONE);
        bytes[8..16].copy_from_slice(&self.file_bytes().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.digest.to_le_bytes());
        bytes[32..36].copy_from_slice(&field::<4>(header, HEADER_BYTES - 4));
        seal(&mut bytes);
        bytes
    }
}

/// Where the chunk `number` begins, with its head.
pub(super) fn chunk_at(number: u64) -> u64 {
    HEADER_BYTES as u64 + number * (CHUNK_HEAD_BYTES + CHUNK_BYTES) as u64
}

/// The head of a chunk. Its sum stands for the place as well as for the bytes: a chunk of another snapshot, or of another place in this
/// one, is not taken for the one that belongs there.
pub(super) fn chunk_head(id: u64, number: u64, bytes: &[u8]) -> [u8; CHUNK_HEAD_BYTES] {
    // A chunk has at most 1 MiB.
    let len = (bytes.len() as u32).to_le_bytes();
    let mut sum = crc32fast::Hasher::new();
    let mut place = [0; 20];
    place[..8].copy_from_slice(&id.to_le_bytes());
    place[8..16].copy_from_slice(&number.to_le_bytes());
    place[16..].copy_from_slice(&len);
    sum.update(&place);
    sum.update(bytes);
    let mut head = [0; CHUNK_HEAD_BYTES];
    head[..4].copy_from_slice(&len);
    head[4..].copy_from_slice(&sum.finalize().to_le_bytes());
    head
}

/// Whether `chunk`, with its head, is the chunk `number` of this snapshot.
pub(super) fn chunk_holds(info: &Info, number: u64, chunk: &[u8]) -> bool {
    let Some((head, bytes)) = chunk.split_first_chunk::<CHUNK_HEAD_BYTES>() else { return false };
    number < info.chunks()
        && bytes.len() == info.chunk_bytes(number)
        && *head == chunk_head(info.header.id, number, bytes)
}

/// XXH3-64 over a body as it streams by: what [`Info::digest`] is.
///
/// It tells a body that was written from one that was not, against rot and mistakes and not against somebody who wants to deceive;
/// who may write is a matter of certificates. It costs about as much as reading the bytes from memory once, and 64 bits over the 32
/// of every chunk leave nothing to chance.
#[derive(Clone, Default)]
pub struct Digest(Xxh3Default);

impl Digest {
    /// Of no bytes yet.
    #[must_use]
    pub fn new() -> Digest {
        Digest::default()
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all bytes so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.digest()
    }

    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> u64 {
        xxhash_rust::xxh3::xxh3_64(bytes)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({:016x})", self.value())
    }
}

/// `N` bytes at `at`, which lie within the block.
fn field<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[at..at + N]);
    bytes
}

/// Puts the sum of the others into the last four bytes.
fn seal(block: &mut [u8]) {
    if let Some((before, sum)) = block.split_last_chunk_mut::<4>() {
        *sum = crc32fast::hash(before).to_le_bytes();
    }
}

fn is_sealed(block: &[u8]) -> bool {
    block.split_last_chunk::<4>().is_some_and(|(before, sum)| crc32fast::hash(before) == u32::from_le_bytes(*sum))
}

pub(super) const SNAPSHOT_PREFIX: &str = "snapshot-";
pub(super) const STATE_PREFIX: &str = "state-";
/// Behind the name of a file that is being written.
pub(super) const UNFINISHED: &str = ".new";
pub(super) const OWN_UNFINISHED: &str = "state";
/// Behind the name of a file that is being received.
pub(super) const PARTIAL: &str = ".part";
/// Behind the name of a file that was set aside.
pub(super) const DAMAGED: &str = ".damaged";
