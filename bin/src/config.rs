//! `graven.toml`: what one node is told about itself.
//!
//! The file is parsed strictly: a key this version does not know is an error that names its line, because a setting that is
//! silently ignored is a setting somebody relies on. Sizes are integers or strings such as `"64M"` (K, M, G = 1024), and
//! relative paths are relative to the file, so that a node's directory can be copied to its host as a whole.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// One node's configuration, checked and with all paths resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeConfig {
    /// The file this was read from, absolute; `graven.pid` is written beside it.
    pub file: PathBuf,
    /// The node's name, unique in its cluster.
    pub name: String,
    /// Where the log lives; made by `graven init`, never by `graven start`.
    pub data_dir: PathBuf,
    /// The sockets this node binds.
    pub listen: Listen,
    /// Where others reach it.
    pub advertise: Advertise,
    /// Its certificate and the authority it trusts.
    pub tls: TlsFiles,
    /// Timing of elections.
    pub raft: RaftSection,
    /// How the log is written.
    pub wal: WalSection,
    /// Bounds on what clients may do.
    pub limits: Limits,
    /// When old records are trimmed by themselves.
    pub retention: Retention,
    /// When a state machine is saved.
    pub snapshot: SnapshotSection,
    /// What is logged to stderr, and how.
    pub log: LogSection,
    /// The highest cluster feature level this node takes part in: that of this software. No setting of the file; a program
    /// that embeds nodes lowers it to see how a cluster of mixed versions behaves.
    #[doc(hidden)]
    pub feature_level: u32,
}

/// `[listen]`: the UDP sockets a node binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// For the other nodes.
    pub peer: SocketAddr,
    /// For clients.
    pub client: SocketAddr,
}

/// `[advertise]`: `HOST:PORT` where others reach this node. Left out, the listen addresses are advertised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertise {
    /// For the other nodes.
    pub peer: String,
    /// For clients.
    pub client: String,
}

/// `[tls]`: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The cluster's authority.
    pub ca: PathBuf,
    /// This node's certificate.
    pub certificate: PathBuf,
    /// The key that belongs to the certificate.
    pub key: PathBuf,
}

/// `[raft]`: timing of elections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftSection {
    /// How often an idle leader speaks up.
    pub heartbeat_ms: u64,
    /// The shortest silence after which a follower stands for election; the longest is twice that.
    pub election_ms: u64,
    /// A leader whose oldest unsynced write is older than this hands over.
    pub disk_stall_ms: u64,
}

/// `[wal]`: how the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalSection {
    /// Size of a segment file.
    pub segment_bytes: u64,
    /// How written bytes are made durable.
    pub sync: SyncMode,
    /// How fast a running node re-reads its sealed segments to find bytes that rotted; a quarter of it after the first pass since
    /// the start. 0: not at all.
    pub scrub_bytes_per_second: u64,
}

/// How written bytes are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    /// Write, then `fdatasync`.
    Fdatasync,
    /// Every write returns when durable (`O_DSYNC`).
    Dsync,
    /// Write around the page cache (`O_DIRECT`), then `fdatasync`; Linux only. Keeps the segment that is written to in memory.
    Direct,
    /// Not at all: a power failure loses acknowledged records. Needs `unsafe_no_sync = true` beside it.
    None,
}

/// `[limits]`: bounds on what clients may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The largest record accepted.
    pub max_record_bytes: usize,
    /// Bytes of appends that may wait in this node before clients are slowed down.
    pub queue_bytes: usize,
    /// Client connections held at the same time.
    pub connections: usize,
}

/// `[retention]`: when old records are trimmed by themselves; never, unless set. The leader goes by its own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Keep at least this many bytes of log, and not much more.
    pub bytes: Option<u64>,
    /// Records that are older go.
    pub age: Option<Duration>,
    /// Thousandths of the log's records that one trim by age may take away.
    pub share_thousandths: u32,
}

impl Default for Retention {
    fn default() -> Retention {
        // A quarter: a mistake with clocks or with the setting is seen before the rest goes.
        Retention { bytes: None, age: None, share_thousandths: 250 }
    }
}

impl Retention {
    /// Whether anything is trimmed by itself.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.bytes.is_some() || self.age.is_some()
    }
}

/// `[snapshot]`: when an embedded state machine is saved, whatever comes first, and how snapshots travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotSection {
    /// After so many bytes of log, from 64K.
    pub bytes: u64,
    /// After so many entries, when set.
    pub entries: Option<u64>,
    /// After so long, when set and there was an entry.
    pub age: Option<Duration>,
    /// Bytes a second at most in which this node takes snapshots in, from clients and from other nodes; 0 sets no bound.
    pub transfer_rate: u64,
}

/// `[log]`: what is logged to stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSection {
    /// One of `off`, `error`, `warn`, `info`, `debug`, `trace`.
    pub level: String,
    /// For people or for machines.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// Not TOML, an unknown or missing key, or a value of the wrong type.
    #[error("{}: line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// A value outside of what makes sense.
    #[error("{}: {key} {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, with its section: `wal.segment_bytes`.
        key: &'static str,
        /// What it is and what it must be.
        reason: String,
    },
}

impl NodeConfig {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// [`ConfigError`], each a sentence that names the file and the line or key.
    pub fn load(path: impl AsRef<Path>) -> Result<NodeConfig, ConfigError> {
        let path = path.as_ref();
        let read = |cause| ConfigError::Read { path: path.to_owned(), cause };
        let text = std::fs::read_to_string(path).map_err(read)?;
        let file = std::path::absolute(path).map_err(read)?;
        NodeConfig::parse(&text, &file)
    }

    /// Checks `text`, which was read from `file`.
    ///
    /// # Errors
    /// As [`NodeConfig::load`].
    pub fn parse(text: &str, file: &Path) -> Result<NodeConfig, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: file.to_owned(),
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', ", "),
        })?;
        let fail = |key: &'static str, reason: String| ConfigError::Value { path: file.to_owned(), key, reason };
        let dir = file.parent().unwrap_or(Path::new("."));
        let config = NodeConfig {
            file: file.to_owned(),
            name: raw.name,
            data_dir: dir.join(raw.data_dir),
            advertise: Advertise {
                peer: advertised(raw.advertise.peer, raw.listen.peer).map_err(|why| fail("advertise.peer", why))?,
                client: advertised(raw.advertise.client, raw.listen.client)
                    .map_err(|why| fail("advertise.client", why))?,
            },
            listen: Listen { peer: raw.listen.peer, client: raw.listen.client },
            tls: TlsFiles {
                ca: dir.join(raw.tls.ca),
                certificate: dir.join(raw.tls.certificate),
                key: dir.join(raw.tls.key),
            },
            raft: RaftSection {
                heartbeat_ms: raw.raft.heartbeat_ms,
                election_ms: raw.raft.election_ms,
                disk_stall_ms: raw.raft.disk_stall_ms,
            },
            wal: WalSection {
                segment_bytes: raw.wal.segment_bytes.0,
                sync: raw.wal.sync,
                scrub_bytes_per_second: raw.wal.scrub_bytes_per_second.0,
            },
            limits: Limits {
                max_record_bytes: clamp_usize(raw.limits.max_record_bytes.0),
                queue_bytes: clamp_usize(raw.limits.queue_bytes.0),
                connections: raw.limits.connections,
            },
            retention: raw.retention.checked().map_err(|why| fail("retention.share", why))?,
            snapshot: SnapshotSection {
                bytes: raw.snapshot.bytes.0,
                entries: raw.snapshot.entries,
                age: raw.snapshot.age.map(|age| age.0),
                transfer_rate: raw.snapshot.transfer_rate.0,
            },
            log: LogSection { level: raw.log.level, format: raw.log.format },
            feature_level: graven_net::protocol::FEATURE_LEVEL,
        };
        check_name(&config.name).map_err(|why| fail("name", why))?;
        if raw.version != CONFIG_VERSION {
            return Err(fail("version", format!("is {}, this graven reads version {CONFIG_VERSION}", raw.version)));
        }
        if config.wal.sync == SyncMode::None && !raw.wal.unsafe_no_sync {
            let why = "\"none\" loses acknowledged records at a power failure; if you want that, set wal.unsafe_no_sync = true";
            return Err(fail("wal.sync", why.to_owned()));
        }
        config.check_ranges().map_err(|(key, why)| fail(key, why))?;
        Ok(config)
    }

    fn check_ranges(&self) -> Result<(), (&'static str, String)> {
        let range = |key, value: u64, low: u64, high: u64, show: fn(u64) -> String| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err((key, format!("is {}, it must be {} to {}", show(value), show(low), show(high))))
        };
        let plain = |value: u64| value.to_string();
        range("raft.heartbeat_ms", self.raft.heartbeat_ms, 1, 10_000, plain)?;
        range("raft.election_ms", self.raft.election_ms, 10, 60_000, plain)?;
        if self.raft.heartbeat_ms * 2 > self.raft.election_ms {
            let why = format!(
                "is {}, it must be at most half of raft.election_ms ({})",
                self.raft.heartbeat_ms, self.raft.election_ms
            );
            return Err(("raft.heartbeat_ms", why));
        }
        range("raft.disk_stall_ms", self.raft.disk_stall_ms, 50, 30_000, plain)?;
        range("wal.segment_bytes", self.wal.segment_bytes, 64 << 10, 4 << 30, show_size)?;
        range("limits.max_record_bytes", self.limits.max_record_bytes as u64, 1, 16 << 20, show_size)?;
        range("limits.queue_bytes", self.limits.queue_bytes as u64, 1 << 20, 4 << 30, show_size)?;
        if self.limits.queue_bytes < self.limits.max_record_bytes {
            return Err((
                "limits.queue_bytes",
                "is below limits.max_record_bytes: the largest record would never fit".to_owned(),
            ));
        }
        range("limits.connections", self.limits.connections as u64, 1, 65_536, plain)?;
        range("snapshot.bytes", self.snapshot.bytes, 64 << 10, u64::MAX >> 1, show_size)?;
        if let Some(entries) = self.snapshot.entries {
            range("snapshot.entries", entries, 1, u64::MAX, plain)?;
        }
        if let Some(age) = self.snapshot.age {
            range("snapshot.age", age.as_secs(), 1, 365 * 86_400, |s| format!("{s}s"))?;
        }
        if let Some(bytes) = self.retention.bytes {
            range("retention.bytes", bytes, 1 << 20, u64::MAX >> 1, show_size)?;
        }
        if let Some(age) = self.retention.age {
            range("retention.age", age.as_secs(), 1, 100 * 365 * 86_400, |s| format!("{s}s"))?;
        }
        if self.listen.peer == self.listen.client && self.listen.peer.port() != 0 {
            return Err(("listen.client", format!("is {}, the same as listen.peer", self.listen.client)));
        }
        if !LOG_LEVELS.contains(&self.log.level.as_str()) {
            return Err((
                "log.level",
                format!("is \"{}\", it must be one of {}", self.log.level, LOG_LEVELS.join(", ")),
            ));
        }
        Ok(())
    }

    /// Where a running node writes its process id: beside the configuration.
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.file.with_file_name("graven.pid")
    }
}

/// The version of the configuration file that this program reads.
pub const CONFIG_VERSION: u32 = 1;

const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A name is a directory, a label in a certificate's DNS name and a word in a table.
///
/// # Errors
/// The rest of a sentence that begins with what is named.
pub fn check_name(name: &str) -> Result<(), String> {
    if graven_net::tls::check_name(name).is_err() {
        return Err(format!(
            "is {name:?}, it must be 1 to 40 letters, digits, - or _, with a letter or digit at both ends"
        ));
    }
    if name == "ca" {
        return Err("is \"ca\", which is the directory of the authority; take another one".to_owned());
    }
    Ok(())
}

/// Splits `HOST:PORT`; an IPv6 host stands in brackets.
///
/// # Errors
/// A sentence without its subject.
pub fn split_address(address: &str) -> Result<(&str, u16), String> {
    let wrong = || format!("is {address:?}, it must be HOST:PORT");
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|h| h.parse::<std::net::Ipv6Addr>().is_ok()).ok_or_else(wrong)?,
        None if host.contains(':') => return Err(wrong()),
        None => host,
    };
    let shape = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:".contains(&b));
    if shape { Ok((host, port)) } else { Err(wrong()) }
}

fn advertised(given: Option<String>, listen: SocketAddr) -> Result<String, String> {
    match given {
        Some(address) => split_address(&address).map(|_| ()).map(|()| address),
        None if is_unspecified(listen.ip()) => {
            Err(format!("is missing and {listen} is no address that others can reach; set it to HOST:PORT"))
        }
        None => Ok(listen.to_string()),
    }
}

fn is_unspecified(ip: IpAddr) -> bool {
    ip.is_unspecified()
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|b| **b == b'\n').count() + 1
}

fn clamp_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    version: u32,
    name: String,
    data_dir: PathBuf,
    listen: RawListen,
    #[serde(default)]
    advertise: RawAdvertise,
    tls: RawTls,
    #[serde(default)]
    raft: RawRaft,
    #[serde(default)]
    wal: RawWal,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    retention: RawRetention,
    #[serde(default)]
    snapshot: RawSnapshot,
    #[serde(default)]
    log: RawLog,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    peer: SocketAddr,
    client: SocketAddr,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawAdvertise {
    peer: Option<String>,
    client: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRaft {
    heartbeat_ms: u64,
    election_ms: u64,
    disk_stall_ms: u64,
}

impl Default for RawRaft {
    fn default() -> RawRaft {
        RawRaft { heartbeat_ms: 50, election_ms: 150, disk_stall_ms: 1000 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawWal {
    segment_bytes: Size,
    sync: SyncMode,
    unsafe_no_sync: bool,
    scrub_bytes_per_second: Size,
}

impl Default for RawWal {
    fn default() -> RawWal {
        RawWal {
            segment_bytes: Size(64 << 20),
            sync: SyncMode::Fdatasync,
            unsafe_no_sync: false,
            scrub_bytes_per_second: Size(32 << 20),
        }
    }
}

/// What a network of 1 Gbit/s carries, and a small part of what disks and faster networks do: a transfer takes its time and is not noticed.
const TRANSFER_RATE: u64 = 100 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    max_record_bytes: Size,
    queue_bytes: Size,
    connections: usize,
}

impl Default for RawLimits {
    fn default() -> RawLimits {
        RawLimits { max_record_bytes: Size(1 << 20), queue_bytes: Size(64 << 20), connections: 1024 }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawRetention {
    bytes: Option<Size>,
    age: Option<Age>,
    share: Option<f64>,
}

impl RawRetention {
    /// Or what is wrong with the share.
    fn checked(self) -> Result<Retention, String> {
        let mut retention =
            Retention { bytes: self.bytes.map(|it| it.0), age: self.age.map(|it| it.0), ..Retention::default() };
        if let Some(share) = self.share {
            if !(0.01..=1.0).contains(&share) {
                return Err(format!("is {share}, it must be 0.01 to 1"));
            }
            if retention.age.is_none() {
                return Err("is set without retention.age, and is for that alone".to_owned());
            }
            retention.share_thousandths = (share * 1000.0) as u32;
        }
        Ok(retention)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSnapshot {
    bytes: Size,
    entries: Option<u64>,
    age: Option<Age>,
    transfer_rate: Size,
}

impl Default for RawSnapshot {
    fn default() -> RawSnapshot {
        // Four segments: a restart applies at most so much again, and a state of a gigabyte is written once for each of them.
        RawSnapshot { bytes: Size(256 << 20), entries: None, age: None, transfer_rate: Size(TRANSFER_RATE) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLog {
    level: String,
    format: LogFormat,
}

impl Default for RawLog {
    fn default() -> RawLog {
        RawLog { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Reads a size: digits, then nothing or one of K, M, G (1024).
///
/// # Errors
/// A sentence.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: digits, then nothing or one of K, M, G");
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// Reads a length of time: digits and one of ms, s, m, h, d.
///
/// # Errors
/// A sentence.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a length of time: digits and one of ms, s, m, h, d");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..at].parse().map_err(|_| wrong())?;
    let unit_ms: u64 = match &text[at..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(wrong)
}

/// A size as people write it: `64M`, `1500`.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
        if bytes >> shift > 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// A size in the file: an integer, or a string with a unit.
struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size: an integer or a string such as \"64M\"")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Size, E> {
                u64::try_from(value).map(Size).map_err(|_| E::custom("a size cannot be negative"))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Size, E> {
                Ok(Size(value))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Size, E> {
                parse_size(value).map(Size).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

/// A length of time in the file: `"7d"`.
struct Age(Duration);

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Age, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map(Age).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
version = 1
name = "n1"
data_dir = "data"
[listen]
peer = "127.0.0.1:5470"
client = "127.0.0.1:5471"
[tls]
ca = "ca.crt"
certificate = "node.crt"
key = "/etc/graven/node.key"
"#;

    fn parse(text: &str) -> Result<NodeConfig, ConfigError> {
        NodeConfig::parse(text, Path::new("/srv/n1/graven.toml"))
    }

    fn message(extra: &str) -> String {
        parse(&format!("{GOOD}{extra}")).expect_err("must be refused").to_string()
    }

    #[test]
    fn defaults_are_filled_in_and_paths_are_relative_to_the_file() {
        let config = parse(GOOD).expect("good");
        assert_eq!(config.data_dir, Path::new("/srv/n1/data"));
        assert_eq!(config.tls.ca, Path::new("/srv/n1/ca.crt"));
        assert_eq!(config.tls.key, Path::new("/etc/graven/node.key"));
        assert_eq!(config.advertise.client, "127.0.0.1:5471");
        assert_eq!((config.raft.heartbeat_ms, config.raft.election_ms), (50, 150));
        assert_eq!(
            config.wal,
            WalSection { segment_bytes: 64 << 20, sync: SyncMode::Fdatasync, scrub_bytes_per_second: 32 << 20 }
        );
        assert_eq!(config.limits.max_record_bytes, 1 << 20);
        assert_eq!(config.pid_file(), Path::new("/srv/n1/graven.pid"));
    }

    #[test]
    fn unknown_key_names_its_line() {
        assert!(
            message("[wal]\nsegment_size = 5\n")
                .starts_with("/srv/n1/graven.toml: line 13: unknown field `segment_size`")
        );
        let top = parse(&GOOD.replace("name =", "colour = 3\nname =")).expect_err("unknown").to_string();
        assert!(top.contains("line 3: unknown field `colour`"), "{top}");
    }

    #[test]
    fn sizes_are_integers_or_strings_with_a_unit() {
        let config = parse(&format!("{GOOD}[wal]\nsegment_bytes = 65536\n[limits]\nmax_record_bytes = \"16M\"\n"))
            .expect("good");
        assert_eq!((config.wal.segment_bytes, config.limits.max_record_bytes), (65536, 16 << 20));
        assert!(message("[wal]\nsegment_bytes = \"64 MB\"\n").contains("line 13: \"64 MB\" is not a size"));
        assert!(message("[wal]\nsegment_bytes = -1\n").contains("line 13: a size cannot be negative"));
    }

    #[test]
    fn values_out_of_range_name_the_key_and_the_range() {
        let cases = [
            ("[wal]\nsegment_bytes = \"63K\"", "wal.segment_bytes is 63K, it must be 64K to 4G"),
            ("[wal]\nsegment_bytes = \"5G\"", "wal.segment_bytes is 5G, it must be 64K to 4G"),
            ("[limits]\nmax_record_bytes = \"17M\"", "limits.max_record_bytes is 17M, it must be 1 to 16M"),
            ("[raft]\nheartbeat_ms = 80", "raft.heartbeat_ms is 80, it must be at most half of raft.election_ms (150)"),
            ("[log]\nlevel = \"loud\"", "log.level is \"loud\", it must be one of off, error"),
            ("[wal]\nsync = \"none\"", "wal.sync \"none\" loses acknowledged records"),
        ];
        for (extra, expected) in cases {
            let message = message(extra);
            assert!(message.contains(expected), "{extra}: {message}");
        }
    }

    #[test]
    fn unsafe_sync_needs_its_flag() {
        let config = parse(&format!("{GOOD}[wal]\nsync = \"none\"\nunsafe_no_sync = true\n")).expect("allowed");
        assert_eq!(config.wal.sync, SyncMode::None);
    }

    #[test]
    fn unspecified_listen_address_needs_an_advertised_one() {
        let text = GOOD.replace("127.0.0.1:5471", "0.0.0.0:5471");
        assert!(parse(&text).expect_err("no address").to_string().contains("advertise.client is missing"));
        let config = parse(&format!("{text}[advertise]\nclient = \"log-1.example:5471\"\n")).expect("good");
        assert_eq!(config.advertise.client, "log-1.example:5471");
    }

    #[test]
    fn addresses_split_into_host_and_port() {
        assert_eq!(split_address("host-1:5470"), Ok(("host-1", 5470)));
        assert_eq!(split_address("[::1]:5470"), Ok(("::1", 5470)));
        for wrong in ["host", "host:", ":5470", "host:99999", "::1:5470", "[host]:1", "a b:1", ""] {
            assert!(split_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn retention_is_by_bytes_by_age_or_both() {
        let retention = |extra: &str| parse(&format!("{GOOD}[retention]\n{extra}")).map(|config| config.retention);
        let by = |bytes, age: Option<u64>, share_thousandths| Retention {
            bytes,
            age: age.map(Duration::from_secs),
            share_thousandths,
        };
        assert_eq!(retention("bytes = \"64G\"").expect("good"), by(Some(64 << 30), None, 250));
        for (age, secs) in [("7d", 7 * 86_400), ("12h", 43_200), ("30m", 1_800), ("90s", 90)] {
            assert_eq!(retention(&format!("age = \"{age}\"")).expect("good"), by(None, Some(secs), 250));
        }
        let both = retention("bytes = 1048576\nage = \"1h\"\nshare = 0.5").expect("good");
        assert_eq!(both, by(Some(1 << 20), Some(3_600), 500));
        assert!(!parse(GOOD).expect("good").retention.is_set());
    }

    #[test]
    fn a_retention_that_makes_no_sense_is_refused() {
        let cases = [
            ("bytes = \"1023K\"", "retention.bytes is 1023K, it must be 1M to"),
            ("bytes = \"many\"", "line 13: \"many\" is not a size"),
            ("age = \"0s\"", "retention.age is 0s, it must be 1s to"),
            ("age = \"week\"", "line 13: \"week\" is not a length of time"),
            ("records = 5", "line 13: unknown field `records`"),
            ("bytes = \"1G\"\nshare = 0.5", "retention.share is set without retention.age"),
            ("age = \"7d\"\nshare = 0", "retention.share is 0, it must be 0.01 to 1"),
            ("age = \"7d\"\nshare = 1.5", "retention.share is 1.5, it must be 0.01 to 1"),
            ("age = \"7d\"\nshare = nan", "retention.share is NaN, it must be 0.01 to 1"),
        ];
        for (extra, expected) in cases {
            let message = message(&format!("[retention]\n{extra}\n"));
            assert!(message.contains(expected), "{extra}: {message}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "5", "s", "-1s", "1.5s", "1w", "99999999999999999999s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
