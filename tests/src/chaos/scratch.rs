//! Where a run keeps its files: a directory of its own that goes away with it, unless something is to be looked at.

use std::fs;
use std::path::{Path, PathBuf};

/// Directories of runs are called this and their process's id.
const PREFIX: &str = "graven-chaos-";
/// In a directory that belongs to a run and may be removed when the run is dead.
const MARK: &str = "may-be-removed";

/// A run's directory.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    own: bool,
}

impl Home {
    /// Makes `dir`, which must not exist, or one for this process in the system's directory for such things, where what dead runs
    /// left behind is removed on the way.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open(dir: Option<&Path>) -> Result<Home, String> {
        let (path, own) = match dir {
            Some(dir) => (std::path::absolute(dir).map_err(|cause| cause.to_string())?, false),
            None => {
                let all = std::env::temp_dir();
                sweep(&all);
                (all.join(format!("{PREFIX}{}", std::process::id())), true)
            }
        };
        fs::create_dir(&path).map_err(|cause| format!("cannot make {}: {cause}", path.display()))?;
        if own {
            fs::write(path.join(MARK), b"").map_err(|cause| format!("cannot write in {}: {cause}", path.display()))?;
        }
        Ok(Home { path, own })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, unless the user named it.
    pub fn remove(self) {
        if self.own
            && let Err(cause) = fs::remove_dir_all(&self.path)
        {
            eprintln!("cannot remove {}: {cause}", self.path.display());
        }
    }

    /// Keeps it for whoever looks for a cause.
    pub fn keep(self) {
        // Without its mark no later run removes it.
        let _ = fs::remove_file(self.path.join(MARK));
    }
}

/// Removes the directories of runs that were killed.
fn sweep(all: &Path) {
    let Ok(entries) = fs::read_dir(all) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse::<u32>().ok());
        let is_dead = pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if is_dead && entry.path().join(MARK).exists() {
            // Somebody else's, or gone meanwhile: it is only in the way.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_directories_of_dead_runs_are_swept() {
        let temp = tempfile::tempdir().expect("a directory");
        // Ids of processes end well below this.
        let make = |pid: u32, marked: bool| {
            let dir = temp.path().join(format!("{PREFIX}{pid}"));
            fs::create_dir(&dir).expect("made");
            if marked {
                fs::write(dir.join(MARK), b"").expect("marked");
            }
            dir
        };
        let (dead, kept) = (make(4_000_000_001, true), make(4_000_000_002, false));
        let alive = make(std::process::id(), true);
        sweep(temp.path());
        assert!(!dead.exists() && kept.exists() && alive.exists());
    }
}
