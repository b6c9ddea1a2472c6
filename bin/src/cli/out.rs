//! Stdout as one big buffer that is flushed before every wait.
//!
//! The standard library's handle looks for line ends in what passes through it; here millions of records a second pass through, so
//! writes go straight to the descriptor. A reader that has gone away ends the command silently.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::Notify;

use super::error::{CliResult, Failure, stdout_failed};

/// Buffered stdout.
pub(crate) struct Out {
    buffer: Vec<u8>,
    file: File,
}

/// Large enough that a write call costs nothing per record, small enough to stay in the cache.
const BUFFER_BYTES: usize = 256 << 10;

impl Out {
    /// Takes stdout.
    pub(crate) fn stdout() -> CliResult<Out> {
        let fd = io::stdout().as_fd().try_clone_to_owned().map_err(|error| stdout_failed(&error))?;
        Ok(Out { buffer: Vec::with_capacity(BUFFER_BYTES + (64 << 10)), file: File::from(fd) })
    }

    /// The buffer, to append to; call [`Out::maybe_flush`] after each record.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Writes the buffer out when it is large.
    pub(crate) fn maybe_flush(&mut self) -> CliResult {
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes the buffer out.
    pub(crate) fn flush(&mut self) -> CliResult {
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(Failure::StdoutClosed),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody else who holds this pipe made it non-blocking: wait for room the plain way.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(stdout_failed(&error)),
            }
        }
        self.buffer.clear();
        Ok(())
    }

    /// One line, flushed.
    pub(crate) fn line(&mut self, line: &str) -> CliResult {
        self.buffer.extend_from_slice(line.as_bytes());
        self.buffer.push(b'\n');
        self.flush()
    }

    /// Watches for the reader going away, so that an idle follow ends too.
    pub(crate) fn watch(&self) -> Option<ClosedWatch> {
        let fd = self.file.as_fd().try_clone_to_owned().ok()?;
        let gone = Arc::new(Notify::new());
        let tell = Arc::clone(&gone);
        let wait = move || {
            // Errors and hang-ups are reported without being asked for; a file or a terminal simply never has one.
            let mut fds = [PollFd::new(&fd, PollFlags::empty())];
            while let Ok(0) | Err(Errno::INTR) = poll(&mut fds, None) {}
            tell.notify_one();
        };
        std::thread::Builder::new().name("stdout".to_owned()).spawn(wait).ok()?;
        Some(ClosedWatch { gone })
    }
}

/// See [`Out::watch`].
pub(crate) struct ClosedWatch {
    gone: Arc<Notify>,
}

/// Resolves when nobody reads stdout any more; never without a watch.
pub(crate) async fn closed(watch: Option<&ClosedWatch>) {
    match watch {
        Some(watch) => watch.gone.notified().await,
        None => std::future::pending().await,
    }
}

/// Prints `text` at once, for commands whose whole output is a few lines.
pub(crate) fn print(text: &str) -> CliResult {
    let mut out = Out::stdout()?;
    out.buffer().extend_from_slice(text.as_bytes());
    out.flush()
}

/// Prints one line at once.
pub(crate) fn print_line(line: &str) -> CliResult {
    Out::stdout()?.line(line)
}
