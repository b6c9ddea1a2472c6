//! What can be seen of a node from its files and the system they are on, whether it runs or not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use graven_net::protocol::{PlaceHealth, Usage};
use graven_net::tls;

use crate::config::{NodeConfig, SyncMode};

/// Segments that the log prepares ahead of the one it writes to: one is the reserve of a full disk.
const PREPARED_SEGMENTS: u64 = 2;
/// Space that the log takes ahead for what a start may cut.
const CUT_AREA_BYTES: u64 = 1 << 20;

/// The node's files and the file system below its data directory. Asks the disk, so it may take as long as a disk may.
#[must_use]
pub fn place(config: &NodeConfig) -> PlaceHealth {
    let disk = rustix::fs::statvfs(&config.data_dir).ok();
    let bytes = |blocks: Option<(u64, u64)>| blocks.map_or(0, |(count, size)| count.saturating_mul(size));
    let (cut_files, cut_bytes, quarantined) = left_over(&config.data_dir);
    PlaceHealth {
        filesystem: filesystem(&config.data_dir),
        total_bytes: bytes(disk.as_ref().map(|disk| (disk.f_blocks, disk.f_frsize))),
        free_bytes: bytes(disk.as_ref().map(|disk| (disk.f_bavail, disk.f_frsize))),
        reserve_bytes: config.wal.segment_bytes.saturating_mul(PREPARED_SEGMENTS),
        sync: sync_word(config.wal.sync).to_owned(),
        cut_files,
        cut_bytes,
        quarantined,
        readable_keys: readable_keys([config.tls.key.as_path()]),
    }
}

/// The word for it in `graven.toml`.
fn sync_word(mode: SyncMode) -> &'static str {
    match mode {
        SyncMode::Fdatasync => "fdatasync",
        SyncMode::Dsync => "dsync",
        SyncMode::Direct => "direct",
        SyncMode::None => "none",
    }
}

/// What starts and repairs have put aside in a data directory: number and bytes of cut files, names of quarantine directories.
fn left_over(dir: &Path) -> (u64, u64, Vec<String>) {
    let (mut files, mut bytes, mut quarantined) = (0, 0, Vec::new());
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let len = entry.metadata().map_or(0, |meta| meta.len());
        // The file `cut` is always there, with space taken ahead; what is longer has something in it.
        let kept = match name.as_str() {
            "cut" => len.saturating_sub(CUT_AREA_BYTES),
            name if name.starts_with("cut-") => len,
            _ => 0,
        };
        if kept > 0 {
            files += 1;
            bytes += kept;
        } else if name.starts_with("quarantine") {
            quarantined.push(name);
        }
    }
    quarantined.sort();
    (files, bytes, quarantined)
}

/// Those of these private keys that others than their owner and group may read.
#[must_use]
pub fn readable_keys<'a>(keys: impl IntoIterator<Item = &'a Path>) -> Vec<String> {
    let is_readable = |key: &&Path| fs::metadata(key).is_ok_and(|meta| meta.permissions().mode() & 0o007 != 0);
    keys.into_iter().filter(is_readable).map(|key| key.display().to_string()).collect()
}

/// When the certificate in `file` ends, RFC 3339; of several the first to end. `None` when there is none to read.
#[must_use]
pub fn expires(file: &Path) -> Option<String> {
    let reports = tls::check([file]).ok()?;
    reports.into_iter().map(|report| report.not_after).min().map(|at| at.to_string())
}

/// Files that the process has open, and how many it may have. `None` where the system does not tell.
#[must_use]
pub fn open_files(pid: u32) -> Option<Usage> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    let limit = limit.map(|limit| limit.parse().unwrap_or(u64::MAX))?;
    let used = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    Some(Usage { used, limit })
}

/// The kind of file system that `dir` is on, or `unknown`.
#[cfg(target_os = "linux")]
fn filesystem(dir: &Path) -> String {
    // The numbers are the kernel's (linux/magic.h).
    const KINDS: [(u64, &str); 14] = [
        (0xef53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683e, "btrfs"),
        (0xf2f5_2010, "f2fs"),
        (0x2fc1_2fc1, "zfs"),
        (0x794c_7630, "overlay"),
        (0x0102_1994, "tmpfs"),
        (0x8584_58f6, "ramfs"),
        (0x6969, "nfs"),
        (0xff53_4d42, "cifs"),
        (0xfe53_4d42, "smb2"),
        (0x0102_1997, "9p"),
        (0x6573_5546, "fuse"),
        (0x00c3_6400, "ceph"),
    ];
    let Ok(stat) = rustix::fs::statfs(dir) else { return "unknown".to_owned() };
    // The type's width differs from one architecture to the next; the numbers are 32 bits of it.
    let number = (stat.f_type as u64) & 0xffff_ffff;
    KINDS
        .iter()
        .find(|(kind, _)| *kind == number)
        .map_or_else(|| format!("{number:#x}"), |(_, name)| (*name).to_owned())
}

/// The kind of file system that `dir` is on, or `unknown`.
#[cfg(not(target_os = "linux"))]
fn filesystem(_dir: &Path) -> String {
    "unknown".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_aside_is_counted_and_the_log_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["0000000000000001.seg", "cut-0001", "cut-0002", "LOCK"] {
            fs::write(dir.path().join(name), b"12345").expect("written");
        }
        fs::write(dir.path().join("cut"), vec![0; 1 << 20]).expect("written");
        fs::create_dir(dir.path().join("quarantine-1")).expect("made");
        assert_eq!(left_over(dir.path()), (2, 10, vec!["quarantine-1".to_owned()]));
    }

    #[test]
    fn keys_that_others_may_read_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = dir.path().join("node.key");
        fs::write(&key, b"secret").expect("written");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("set");
        assert!(readable_keys([key.as_path()]).is_empty());
        fs::set_permissions(&key, fs::Permissions::from_mode(0o604)).expect("set");
        assert_eq!(readable_keys([key.as_path()]), [key.display().to_string()]);
    }

    #[test]
    fn this_process_has_files_open_and_a_limit() {
        let usage = open_files(std::process::id());
        assert!(usage.is_none_or(|usage| usage.used > 2 && usage.used <= usage.limit), "{usage:?}");
    }
}
