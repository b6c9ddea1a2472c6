//! The manifest: text that a person can read, with its own digest in the last line.

use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::{BackupError, Damage, FORMAT_VERSION};

/// Its name.
pub const MANIFEST: &str = "manifest.toml";
/// Its name until it is whole.
pub(super) const UNFINISHED: &str = "manifest.toml.new";
/// The most bytes it has: 200 for each file of 64 MiB are some 20 TiB of log.
pub(super) const BYTES_MAX: u64 = 64 << 20;
const SEAL: &str = "# xxh3-128 of everything above: ";

/// What a backup is, and what belongs to it. The keys of `manifest.toml`, see the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format's version.
    pub version: u32,
    /// The version of graven that made it.
    pub software: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// The cluster whose log it is.
    #[serde(with = "hex128")]
    pub cluster_id: u128,
    /// The first entry.
    pub first_index: u64,
    /// The last entry.
    pub last_index: u64,
    /// Its term.
    pub last_term: u64,
    /// The chain value before the first entry.
    #[serde(with = "hex64")]
    pub base_chain: u64,
    /// The chain value of the last entry.
    #[serde(with = "hex64")]
    pub last_chain: u64,
    /// The first record that readers see.
    pub first_offset: u64,
    /// Offset behind the last record.
    pub next_offset: u64,
    /// Bytes of all other files.
    pub bytes: u64,
    /// Snapshots that the cluster had and this does not.
    pub skipped_snapshots: Vec<String>,
    /// Empty in this version.
    pub snapshots: Vec<PlainFile>,
    /// What stands before the first entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PlainFile>,
    /// The entries.
    pub frames: Vec<FramesFile>,
}

/// A file of the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlainFile {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// XXH3-128 of its bytes.
    #[serde(with = "hex128")]
    pub digest: u128,
}

/// A file of frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FramesFile {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// XXH3-128 of its bytes.
    #[serde(with = "hex128")]
    pub digest: u128,
    /// Its first entry.
    pub first_index: u64,
    /// Its last entry.
    pub last_index: u64,
}

impl Manifest {
    /// Records that readers of it find.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.next_offset - self.first_offset
    }

    /// The file's bytes; a sentence when a number is larger than TOML has them.
    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        let mut text = toml::to_string(self).map_err(|error| error.to_string())?;
        let digest = xxh3_128(text.as_bytes());
        text.push_str(&format!("{SEAL}{digest:032x}\n"));
        Ok(text.into_bytes())
    }

    /// Reads what [`Manifest::encode`] wrote, every byte checked.
    pub(super) fn decode(bytes: &[u8], dir: &Path) -> Result<Manifest, BackupError> {
        let len = bytes.len() as u64;
        let damaged = |from: u64, what: &str| {
            let damage = Damage { file: MANIFEST.to_owned(), from, to: len, what: what.to_owned() };
            BackupError::Damaged { dir: dir.to_owned(), damage }
        };
        let seal_at = bytes.len().checked_sub(SEAL.len() + 33);
        let (text, seal) =
            seal_at.and_then(|at| bytes.split_at_checked(at)).ok_or_else(|| damaged(0, "it is cut off"))?;
        if !seal.starts_with(SEAL.as_bytes()) {
            return Err(damaged(text.len() as u64, "it does not end with its digest"));
        }
        if seal[SEAL.len()..] != *format!("{:032x}\n", xxh3_128(text)).as_bytes() {
            return Err(damaged(0, "its digest does not hold"));
        }
        // From here on it is what somebody wrote.
        let text = std::str::from_utf8(text).map_err(|_| damaged(0, "it is no text"))?;
        let table: toml::Table = text.parse().map_err(|_| damaged(0, "it is no TOML"))?;
        match table.get("version").and_then(toml::Value::as_integer).and_then(|version| u64::try_from(version).ok()) {
            Some(version) if version == u64::from(FORMAT_VERSION) => {}
            Some(version) => return Err(BackupError::Newer { dir: dir.to_owned(), version }),
            None => return Err(damaged(0, "it has no version")),
        }
        let manifest: Manifest =
            table.try_into().map_err(|error| damaged(0, &format!("it is not understood: {error}")))?;
        manifest.check().map_err(|what| damaged(0, what))?;
        Ok(manifest)
    }

    /// Whether it makes sense, as far as one can say without the files.
    fn check(&self) -> Result<(), &'static str> {
        let mut next = self.first_index;
        for file in &self.frames {
            if file.first_index != next || file.last_index < file.first_index || file.name != super::frames_name(next) {
                return Err("its files do not follow each other");
            }
            next = file.last_index.saturating_add(1);
        }
        let checkpoint = self.checkpoint.as_ref();
        if self.first_index == 0 || next != self.last_index.saturating_add(1) || self.frames.is_empty() {
            Err("its files are not its entries")
        } else if self.first_offset > self.next_offset {
            Err("its offsets contradict each other")
        } else if checkpoint.is_some() != (self.first_index > 1)
            || checkpoint.is_some_and(|it| it.name != super::CHECKPOINT)
        {
            Err("its checkpoint is not that of its first entry")
        } else if !self.snapshots.is_empty() {
            Err("it has snapshots, which this version does not know")
        } else {
            Ok(())
        }
    }
}

macro_rules! hex {
    ($name:ident, $number:ty, $digits:literal) => {
        mod $name {
            use serde::{Deserialize, Deserializer, Serializer, de::Error};

            pub(super) fn serialize<S: Serializer>(number: &$number, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&format!(concat!("{:0", $digits, "x}"), number))
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<$number, D::Error> {
                let text = String::deserialize(from)?;
                <$number>::from_str_radix(&text, 16).map_err(|_| D::Error::custom("no hexadecimal number"))
            }
        }
    };
}

hex!(hex128, u128, "32");
hex!(hex64, u64, "16");
