//! The snapshots in a data directory.

use std::io;

use graven_wal::Disk;

use super::error::{BodyError, failed};
use super::format::{DAMAGED, Info, OWN_UNFINISHED, PARTIAL, SNAPSHOT_PREFIX, STATE_PREFIX, UNFINISHED};
use super::read::{info, info_of};

/// A snapshot's file in the directory.
#[derive(Debug)]
pub struct Stored {
    /// Its name.
    pub file: String,
    /// What it is by its header and footer, or why that cannot be said. Nothing is known of its chunks.
    pub info: Result<Info, BodyError>,
}

/// The snapshots in the directory, by file name. Named ones and a node's own.
///
/// # Errors
/// [`BodyError::Io`]: the directory cannot be read. What is wrong with one file stands in its [`Stored::info`].
pub fn stored<D: Disk>(disk: &D) -> Result<Vec<Stored>, BodyError> {
    let mut files: Vec<String> = names(disk)?.into_iter().filter(|name| is_body(name)).collect();
    files.sort_unstable();
    let found = files.into_iter().map(|file| Stored { info: info(disk, &file), file });
    // One that was removed between the two looks is not there.
    Ok(found.filter(|stored| !stored.info.as_ref().is_err_and(BodyError::is_missing)).collect())
}

/// Removes a snapshot; durable when this returns. There may be none of this name.
///
/// # Errors
/// [`BodyError::Io`].
///
/// # Panics
/// When the name is not that of a snapshot's file.
pub fn remove<D: Disk>(disk: &D, file_name: &str) -> Result<(), BodyError> {
    assert!(is_body(file_name), "{file_name} is no snapshot's file");
    remove_if_there(disk, file_name)?;
    disk.sync_dir().map_err(failed("sync the directory of", file_name))
}

/// Keeps a damaged snapshot under another name, so that nothing takes it for a good one and somebody may look at it. Returns that name.
/// Of [`ASIDE_MAX`] of the same file the last one is replaced.
///
/// # Errors
/// [`BodyError::Io`].
///
/// # Panics
/// When the name is not that of a snapshot's file.
pub fn set_aside<D: Disk>(disk: &D, file_name: &str) -> Result<String, BodyError> {
    assert!(is_body(file_name), "{file_name} is no snapshot's file");
    let taken = names(disk)?;
    let numbered = |number: u32| match number {
        1 => format!("{file_name}{DAMAGED}"),
        number => format!("{file_name}{DAMAGED}.{number}"),
    };
    let aside = (1..ASIDE_MAX).map(numbered).find(|name| !taken.contains(name)).unwrap_or_else(|| numbered(ASIDE_MAX));
    disk.rename(file_name, &aside).map_err(failed("rename", file_name))?;
    disk.sync_dir().map_err(failed("sync the directory of", file_name))?;
    Ok(aside)
}

/// A disk that rots under the same file again and again must not fill itself with what it broke.
pub const ASIDE_MAX: u32 = 4;

/// What a sweep did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files that were removed.
    pub removed: Vec<String>,
    /// Snapshots that were half received and are kept: [`super::Partial::open`] goes on with them.
    pub partial: Vec<Info>,
}

/// The snapshots that are half received: [`super::Partial::open`] goes on with them. Files that are not whole enough to tell are left out.
///
/// # Errors
/// [`BodyError::Io`]: the directory cannot be read.
pub fn partials<D: Disk>(disk: &D) -> Result<Vec<Info>, BodyError> {
    let mut names = names(disk)?;
    names.retain(|name| name.strip_suffix(PARTIAL).is_some_and(is_body));
    names.sort_unstable();
    let info = |name: &String| info_of(&disk.open(name, None).ok()?, name).ok();
    Ok(names.iter().filter_map(|name| info(name).filter(|info| info.header.partial_name() == *name)).collect())
}

/// Ends what a crash left, at the start of a node: files that were being written are removed, and files that were being received unless
/// `keep` says that they are still wanted. Touches nothing else.
///
/// # Errors
/// [`BodyError::Io`].
pub fn sweep<D: Disk>(disk: &D, mut keep: impl FnMut(&Info) -> bool) -> Result<Swept, BodyError> {
    let mut swept = Swept::default();
    let mut names = names(disk)?;
    names.sort_unstable();
    for name in names {
        let unfinished = name.strip_suffix(UNFINISHED).is_some_and(|of| of == OWN_UNFINISHED || is_body(of));
        let partial = name.strip_suffix(PARTIAL).filter(|of| is_body(of));
        if let Some(of) = partial {
            match disk.open(&name, None).map_err(failed("open", &name)).and_then(|file| info_of(&file, &name)) {
                Ok(info) if info.header.file_name() == of && keep(&info) => {
                    swept.partial.push(info);
                    continue;
                }
                Ok(_) | Err(BodyError::Flawed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if unfinished || partial.is_some() {
            remove_if_there(disk, &name)?;
            swept.removed.push(name);
        }
    }
    if !swept.removed.is_empty() {
        disk.sync_dir().map_err(failed("sync the directory of", SNAPSHOT_PREFIX))?;
    }
    Ok(swept)
}

pub(super) fn remove_if_there<D: Disk>(disk: &D, name: &str) -> Result<(), BodyError> {
    match disk.remove(name) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(failed("remove", name)(cause)),
        _ => Ok(()),
    }
}

fn names<D: Disk>(disk: &D) -> Result<Vec<String>, BodyError> {
    disk.list().map_err(failed("list the directory of", SNAPSHOT_PREFIX))
}

/// Whether it is the final name of a snapshot's file.
fn is_body(name: &str) -> bool {
    let number = name.strip_prefix(SNAPSHOT_PREFIX).or_else(|| name.strip_prefix(STATE_PREFIX));
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    number.is_some_and(|number| number.len() == 16 && number.bytes().all(is_digit))
}
