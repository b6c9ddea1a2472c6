//! A node's log file: what it writes to stderr, kept in three files of bounded size.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncReadExt};

/// A log file that moves to `NAME.1`, then `NAME.2`, when it is full.
pub(crate) struct RotatingLog {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

/// Three files of this size hold days of a healthy node and hours of a sick one.
const FILE_BYTES: u64 = 16 << 20;
/// `graven.log`, `graven.log.1`, `graven.log.2`.
const FILES: u32 = 3;

impl RotatingLog {
    /// Goes on at the end of what is there.
    pub(crate) fn open(path: &Path) -> io::Result<RotatingLog> {
        RotatingLog::with_limit(path, FILE_BYTES)
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<RotatingLog> {
        let file = fs::OpenOptions::new().append(true).create(true).open(path)?;
        let written = file.metadata()?.len();
        Ok(RotatingLog { path: path.to_owned(), file, written, limit })
    }

    /// Appends, in whole lines as far as the node wrote whole lines.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written > 0 && self.written + bytes.len() as u64 > self.limit {
            self.rotate()?;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            if number > 0 {
                name.push(format!(".{number}"));
            }
            PathBuf::from(name)
        };
        for number in (0..FILES - 1).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        *self = RotatingLog::with_limit(&self.path, self.limit)?;
        Ok(())
    }
}

/// Carries all of `from` into the log. When the log cannot be written the rest is read all the same: a node must not stand still
/// because nobody reads what it says.
pub(crate) async fn pump(mut from: impl AsyncRead + Unpin, mut log: RotatingLog) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let _ = log.write(&buffer[..read]);
    }
}

/// The last line of a log that says something.
pub(crate) fn last_line(path: &Path) -> Option<String> {
    let text = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned();
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_three_files_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("graven.log");
        let mut log = RotatingLog::with_limit(&path, 100).expect("a log");
        for number in 0..50 {
            log.write(format!("line number {number:>8}\n").as_bytes()).expect("written");
        }
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).expect("list").map(|e| e.expect("entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["graven.log", "graven.log.1", "graven.log.2"]);
        for name in names {
            assert!(fs::metadata(dir.path().join(name)).expect("meta").len() <= 100);
        }
        assert_eq!(last_line(&path).as_deref(), Some("line number       49"));
        let reopened = RotatingLog::with_limit(&path, 100).expect("again");
        assert!(reopened.written > 0, "goes on where it was");
    }
}
