//! Where the figures come from: file system, device, mount options, write cache.

use std::fs;
use std::path::{Path, PathBuf};

/// A directory's place in the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) filesystem: String,
    pub(super) device: String,
    pub(super) mount_options: String,
    pub(super) write_cache: String,
}

/// Said where the system does not tell.
const UNKNOWN: &str = "unknown";

impl Place {
    /// What the system says about `dir`, which must exist.
    pub(super) fn of(dir: &Path) -> Place {
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let Some(mount) = mount_of(&mounts, &dir) else {
            let unknown = || UNKNOWN.to_owned();
            return Place {
                filesystem: unknown(),
                device: unknown(),
                mount_options: unknown(),
                write_cache: unknown(),
            };
        };
        Place {
            filesystem: mount.filesystem,
            device: mount.device,
            mount_options: mount.options,
            write_cache: queue_setting(&mount.number, "write_cache").unwrap_or_else(|| UNKNOWN.to_owned()),
        }
    }

    /// What a user should know about a sync here.
    pub(super) fn warnings(&self) -> Vec<String> {
        match self.filesystem.as_str() {
            "tmpfs" | "ramfs" => vec![format!(
                "this directory is in memory ({}): nothing here survives a power cut, and a sync does nothing; use --dir to name one on a disk",
                self.filesystem
            )],
            "overlay" => vec![
                "this directory is on an overlay file system: the figures include its layer; a data directory belongs on a volume of its own".to_owned(),
            ],
            name if ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs"].contains(&name) || name.starts_with("fuse") => {
                vec![format!("this directory is on {name}: whether a sync reaches a disk is up to the other side")]
            }
            _ => Vec::new(),
        }
    }
}

/// A word about other work on this machine: a sync that returns to a busy processor waits for its turn there.
pub(super) fn busy() -> Option<String> {
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let load: f64 = load.split(' ').next()?.parse().ok()?;
    let cores = std::thread::available_parallelism().ok()?.get();
    (load > cores as f64).then(|| {
        format!("this machine is busy (load {load} on {cores} cores): the figures are what was left of the disk")
    })
}

/// One line of mountinfo.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    number: String,
    filesystem: String,
    device: String,
    options: String,
}

/// The mount that `dir` is on: the longest mount point that is a prefix, the last of equals (it hides the others).
fn mount_of(mounts: &str, dir: &Path) -> Option<Mount> {
    let mut best: Option<(usize, Mount)> = None;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (&[_, _, number, _, point, own, ..], &[filesystem, device, ..]) = (left.as_slice(), right.as_slice())
        else {
            continue;
        };
        let point = PathBuf::from(unescape(point));
        let depth = point.components().count();
        if !dir.starts_with(&point) || best.as_ref().is_some_and(|(known, _)| *known > depth) {
            continue;
        }
        let mut options: Vec<&str> = own.split(',').collect();
        for option in right.get(2).unwrap_or(&"").split(',').filter(|option| !option.is_empty()) {
            if !options.contains(&option) {
                options.push(option);
            }
        }
        let mount = Mount {
            number: number.to_owned(),
            filesystem: filesystem.to_owned(),
            device: unescape(device),
            options: options.join(","),
        };
        best = Some((depth, mount));
    }
    best.map(|(_, mount)| mount)
}

/// Blanks and backslashes are written in octal in mountinfo.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                plain.push_str(&part[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

/// A setting of the block device with this number; a partition's are those of the disk it is on.
fn queue_setting(number: &str, setting: &str) -> Option<String> {
    let device = fs::canonicalize(Path::new("/sys/dev/block").join(number)).ok()?;
    [device.as_path(), device.parent()?]
        .iter()
        .find_map(|at| fs::read_to_string(at.join("queue").join(setting)).ok())
        .map(|text| text.trim().to_owned())
}

/// The unit in which unbuffered writes to `file` must come.
#[cfg(target_os = "linux")]
pub(super) fn direct_unit(file: &fs::File) -> usize {
    use std::os::linux::fs::MetadataExt;

    use rustix::fs::{AtFlags, StatxFlags, statx};
    if let Ok(found) = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        let told = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::DIOALIGN);
        if told && found.stx_dio_offset_align > 0 {
            return found.stx_dio_offset_align as usize;
        }
    }
    let number = file.metadata().map(|found| found.st_dev()).unwrap_or(0);
    let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    queue_setting(&number, "logical_block_size").and_then(|text| text.parse().ok()).unwrap_or(DIRECT_UNIT)
}

/// No device in use has larger blocks.
#[cfg(target_os = "linux")]
const DIRECT_UNIT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
31 27 0:30 / /mnt/with\\040blank rw,nosuid shared:1 - tmpfs tmpfs rw,size=4k
32 27 0:31 / /mnt rw - overlay overlay rw,lowerdir=/a,upperdir=/b
33 27 8:1 / /mnt rw,noatime - xfs /dev/sda1 rw,attr2
";

    #[test]
    fn a_directory_is_on_the_last_of_the_deepest_mounts() {
        let at = |dir: &str| mount_of(MOUNTS, Path::new(dir)).expect("a mount");
        let root = at("/home/x");
        assert_eq!(
            (root.filesystem.as_str(), root.device.as_str(), root.number.as_str()),
            ("ext4", "/dev/vda", "254:0")
        );
        assert_eq!(root.options, "rw,relatime,discard");
        assert_eq!(at("/mnt/data").filesystem, "xfs");
        assert_eq!(at("/mnt/with blank/y").filesystem, "tmpfs");
        assert_eq!(at("/mnt2").filesystem, "ext4");
        assert_eq!(mount_of("", Path::new("/")), None);
        assert_eq!(mount_of("nonsense\n1 2 3 - x\n", Path::new("/")), None);
    }

    #[test]
    fn memory_is_said_plainly() {
        let place = |filesystem: &str| Place {
            filesystem: filesystem.to_owned(),
            device: String::new(),
            mount_options: String::new(),
            write_cache: String::new(),
        };
        assert!(place("tmpfs").warnings()[0].contains("tmpfs"));
        assert!(place("overlay").warnings()[0].contains("overlay"));
        assert!(place("ext4").warnings().is_empty());
    }
}
