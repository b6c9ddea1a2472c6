//! Input of `graven append`: files and stdin, cut into records, gathered into batches.
//!
//! One thread reads and cuts; what it has found waits in a [`Queue`] until the sending side takes it. The sender takes whatever waits
//! as soon as it has room for a call, so a fast input makes large calls and a slow one is never held back for company.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use graven_net::client::Batch;
use tokio::sync::Notify;

use super::error::{CliResult, ErrorCode, Failure};

/// What makes a record of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// A line; only LF ends one.
    Lines,
    /// This many bytes; the last one may be shorter.
    Chunks(usize),
    /// All of it.
    Whole,
}

/// One input, open.
pub(crate) struct Source {
    name: String,
    reader: Box<dyn Read + Send>,
    /// For the progress bar; `None` when it cannot be known.
    pub(crate) size: Option<u64>,
}

/// Opens all inputs; none at all, or `-`, is stdin.
pub(crate) fn open_all(files: &[PathBuf]) -> CliResult<Vec<Source>> {
    let stdin = || Source { name: "stdin".to_owned(), reader: Box::new(io::stdin()), size: None };
    if files.is_empty() {
        return Ok(vec![stdin()]);
    }
    files
        .iter()
        .map(|path| {
            if path.as_os_str() == "-" {
                return Ok(stdin());
            }
            let failed =
                |error: io::Error| Failure::usage(format!("cannot open {}: {error}; nothing was sent", path.display()));
            let file = File::open(path).map_err(failed)?;
            let meta = file.metadata().map_err(failed)?;
            if meta.is_dir() {
                return Err(Failure::usage(format!("{} is a directory; nothing was sent", path.display())));
            }
            let size = meta.is_file().then_some(meta.len());
            Ok(Source { name: path.display().to_string(), reader: Box::new(file), size })
        })
        .collect()
}

/// How records become calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grouping {
    /// Records a call, when asked for.
    pub(crate) records: Option<u32>,
    /// The largest record the cluster takes.
    pub(crate) max_record_bytes: usize,
}

/// Batches between the reading thread and the sender.
pub(crate) struct Queue {
    state: Mutex<State>,
    /// Signalled when batches are taken.
    room: Condvar,
    /// Signalled when something arrives.
    arrived: Notify,
    /// Input bytes read so far.
    bytes_read: AtomicU64,
    grouping: Grouping,
}

#[derive(Default)]
struct State {
    batches: VecDeque<Open>,
    bytes: usize,
    end: Option<CliResult>,
    stopped: bool,
}

/// A batch that may still grow, as long as it is the last one.
struct Open {
    batch: Batch,
    records: u32,
    bytes: usize,
    since: Instant,
}

/// What waits makes one call up to this size: large enough for full disk and network speed, small enough to be retried cheaply.
const CALL_BYTES: usize = 1 << 20;
/// With `--batch` a call may be as large as a group can be; headers fit beside it.
const LARGE_CALL_BYTES: usize = 16 << 20;
/// Read but not yet sent: enough to keep the sender busy while the disk answers.
const WAITING_BYTES: usize = 4 << 20;
/// What a record costs beside its payload.
const RECORD_OVERHEAD: usize = graven_frame::RECORD_HEADER_BYTES;
/// With `--batch` an unfinished call waits this long for company; the promise is 20 ms.
const COMPANY: Duration = Duration::from_millis(10);

impl Queue {
    /// Starts the reading thread.
    pub(crate) fn start(sources: Vec<Source>, cut: Cut, grouping: Grouping) -> CliResult<Arc<Queue>> {
        let queue = Arc::new(Queue {
            state: Mutex::default(),
            room: Condvar::new(),
            arrived: Notify::new(),
            bytes_read: AtomicU64::new(0),
            grouping,
        });
        let feeding = Arc::clone(&queue);
        std::thread::Builder::new()
            .name("input".to_owned())
            .spawn(move || {
                let result = sources.into_iter().try_for_each(|source| feeding.feed(source, cut));
                feeding.lock().end = Some(match result {
                    Ok(()) => Ok(()),
                    Err(Halt::Stopped) => Ok(()),
                    Err(Halt::Failed(failure)) => Err(failure),
                });
                feeding.arrived.notify_one();
            })
            .map_err(|error| Failure::internal(format!("cannot start the reading thread: {error}")))?;
        Ok(queue)
    }

    /// The next call's records; `None` at the end of the input. An input error comes once, after all records before it.
    pub(crate) async fn take(&self) -> CliResult<Option<Batch>> {
        loop {
            let until = {
                let mut state = self.lock();
                match self.ready_at(&state) {
                    Some(at) if at <= Instant::now() => {
                        let Some(open) = state.batches.pop_front() else { return Ok(None) };
                        state.bytes -= open.bytes;
                        self.room.notify_one();
                        return Ok(Some(open.batch));
                    }
                    None if state.stopped => return Ok(None),
                    None if state.end.is_some() => return state.end.take().unwrap_or(Ok(())).map(|()| None),
                    at => at,
                }
            };
            match until {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at.into(), self.arrived.notified()).await;
                }
                None => self.arrived.notified().await,
            }
        }
    }

    /// When the first batch may leave; `None` when there is none.
    fn ready_at(&self, state: &State) -> Option<Instant> {
        let first = state.batches.front()?;
        let waits = match self.grouping.records {
            Some(records) => {
                state.batches.len() == 1 && first.records < records && state.end.is_none() && !state.stopped
            }
            None => false,
        };
        Some(if waits { first.since + COMPANY } else { first.since })
    }

    /// Takes no more input, and forgets what waits.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.batches.clear();
        state.bytes = 0;
        drop(state);
        self.room.notify_one();
        self.arrived.notify_one();
    }

    /// Input bytes read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feed(&self, mut source: Source, cut: Cut) -> Result<(), Halt> {
        let limit = self.grouping.max_record_bytes;
        let mut cutter = Cutter::new(cut, limit);
        loop {
            let room = cutter.room();
            let read = match source.reader.read(room) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let what = format!("cannot read {}: {error}; what was read before it is appended", source.name);
                    return Err(Halt::Failed(Failure::internal(what)));
                }
            };
            self.bytes_read.fetch_add(read as u64, Ordering::Relaxed);
            let mut state = self.wait_for_room()?;
            let result = if read == 0 {
                cutter.finish(|record| self.push(&mut state, record))
            } else {
                cutter.advance(read, |record| self.push(&mut state, record))
            };
            drop(state);
            self.arrived.notify_one();
            result.map_err(|TooLarge { size }| Halt::Failed(too_large(&source.name, size, limit)))?;
            if read == 0 {
                return Ok(());
            }
        }
    }

    fn wait_for_room(&self) -> Result<MutexGuard<'_, State>, Halt> {
        let mut state = self.lock();
        while state.bytes >= WAITING_BYTES && !state.stopped {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped { Err(Halt::Stopped) } else { Ok(state) }
    }

    fn push(&self, state: &mut State, record: &[u8]) -> Result<(), TooLarge> {
        let cost = record.len() + RECORD_OVERHEAD;
        let (most_records, most_bytes) = match self.grouping.records {
            Some(records) => (records, LARGE_CALL_BYTES),
            None => (u32::MAX, CALL_BYTES),
        };
        let fits =
            state.batches.back().is_some_and(|open| open.records < most_records && open.bytes + cost <= most_bytes);
        if !fits {
            state.batches.push_back(Open { batch: Batch::new(), records: 0, bytes: 0, since: Instant::now() });
        }
        if let Some(open) = state.batches.back_mut() {
            open.batch.push(record).map_err(|_| TooLarge { size: record.len() })?;
            open.records += 1;
            open.bytes += cost;
            state.bytes += cost;
        }
        Ok(())
    }
}

enum Halt {
    Stopped,
    Failed(Failure),
}

fn too_large(name: &str, size: usize, limit: usize) -> Failure {
    let message = format!(
        "a record of {name} has more than {limit} bytes (max_record_bytes); it and what follows it were not sent, use --chunk or raise the limit"
    );
    Failure::new(ErrorCode::TooLarge, message).with("limit", limit).with("size_at_least", size)
}

/// A record larger than the limit; all records before it were handed out.
#[derive(Debug, PartialEq, Eq)]
struct TooLarge {
    size: usize,
}

/// Cuts a stream of bytes into records within one buffer, which grows up to the largest record.
struct Cutter {
    cut: Cut,
    limit: usize,
    buffer: Vec<u8>,
    filled: usize,
    /// No record ends before this position.
    searched: usize,
}

/// One read; a pipe holds 64 KiB, a file fills it.
const READ_BYTES: usize = 256 << 10;

impl Cutter {
    fn new(cut: Cut, limit: usize) -> Cutter {
        Cutter { cut, limit, buffer: vec![0; READ_BYTES], filled: 0, searched: 0 }
    }

    /// Where to read to; never empty.
    fn room(&mut self) -> &mut [u8] {
        if self.filled == self.buffer.len() {
            // Bounded: a record over the limit is refused before the buffer doubles a second time past it.
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        &mut self.buffer[self.filled..]
    }

    /// Hands out the records that `read` more bytes complete.
    fn advance(&mut self, read: usize, mut each: impl FnMut(&[u8]) -> Result<(), TooLarge>) -> Result<(), TooLarge> {
        self.filled += read;
        let mut start = 0;
        match self.cut {
            Cut::Lines => {
                while let Some(at) = find_newline(&self.buffer[self.searched..self.filled]) {
                    let end = self.searched + at;
                    self.checked(start, end, &mut each)?;
                    start = end + 1;
                    self.searched = start;
                }
            }
            Cut::Chunks(size) => {
                while self.filled - start >= size {
                    self.checked(start, start + size, &mut each)?;
                    start += size;
                }
            }
            Cut::Whole => {}
        }
        self.buffer.copy_within(start..self.filled, 0);
        self.filled -= start;
        self.searched = self.filled;
        if self.filled > self.limit { Err(TooLarge { size: self.filled }) } else { Ok(()) }
    }

    /// Hands out what is left at the end of an input. A whole input is a record even when empty.
    fn finish(&mut self, mut each: impl FnMut(&[u8]) -> Result<(), TooLarge>) -> Result<(), TooLarge> {
        if self.filled > 0 || self.cut == Cut::Whole {
            self.checked(0, self.filled, &mut each)?;
        }
        self.filled = 0;
        self.searched = 0;
        Ok(())
    }

    fn checked(
        &self,
        start: usize,
        end: usize,
        each: &mut impl FnMut(&[u8]) -> Result<(), TooLarge>,
    ) -> Result<(), TooLarge> {
        if end - start > self.limit {
            return Err(TooLarge { size: end - start });
        }
        each(&self.buffer[start..end])
    }
}

/// The position of the first LF, eight bytes at a time.
fn find_newline(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    const LFS: u64 = ONES * b'\n' as u64;
    let (words, rest) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let differs = u64::from_le_bytes(*word) ^ LFS;
        // The lowest bit set marks the first zero byte; bits above it may be wrong, which nobody looks at.
        let zeros = differs.wrapping_sub(ONES) & !differs & HIGHS;
        if zeros != 0 {
            return Some(at * 8 + (zeros.trailing_zeros() / 8) as usize);
        }
    }
    rest.iter().position(|byte| *byte == b'\n').map(|at| words.len() * 8 + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` in pieces of `step` bytes.
    fn cut(how: Cut, limit: usize, input: &[u8], step: usize) -> (Vec<Vec<u8>>, Result<(), TooLarge>) {
        let mut cutter = Cutter::new(how, limit);
        let mut found = Vec::new();
        let mut rest = input;
        while !rest.is_empty() {
            let room = cutter.room();
            let (piece, later) = rest.split_at(step.min(room.len()).min(rest.len()));
            room[..piece.len()].copy_from_slice(piece);
            rest = later;
            let result = cutter.advance(piece.len(), |record| {
                found.push(record.to_vec());
                Ok(())
            });
            if result.is_err() {
                return (found, result);
            }
        }
        let result = cutter.finish(|record| {
            found.push(record.to_vec());
            Ok(())
        });
        (found, result)
    }

    #[test]
    fn only_lf_ends_a_line_and_an_unfinished_last_line_is_a_record() {
        let input = b"one\r\n\n\xff\0x\nlast";
        for step in 1..=input.len() {
            let (found, result) = cut(Cut::Lines, 100, input, step);
            assert_eq!(result, Ok(()));
            assert_eq!(found, [&b"one\r"[..], b"", b"\xff\0x", b"last"], "pieces of {step}");
        }
        assert_eq!(cut(Cut::Lines, 100, b"", 1).0, Vec::<Vec<u8>>::new());
        assert_eq!(cut(Cut::Lines, 100, b"a\n", 1).0, [b"a"]);
    }

    #[test]
    fn records_before_a_too_large_one_are_handed_out() {
        for step in 1..12 {
            let (found, result) = cut(Cut::Lines, 3, b"abc\nde\nabcd\nx\n", step);
            assert_eq!(found, [&b"abc"[..], b"de"], "pieces of {step}");
            assert!(result.is_err());
            assert!(cut(Cut::Lines, 3, b"abcd", step).1.is_err());
        }
    }

    #[test]
    fn chunks_and_whole_inputs() {
        for step in 1..8 {
            assert_eq!(cut(Cut::Chunks(3), 100, b"abcdefg", step).0, [&b"abc"[..], b"def", b"g"]);
            assert_eq!(cut(Cut::Whole, 100, b"a\nb\n", step).0, [b"a\nb\n"]);
        }
        assert_eq!(cut(Cut::Whole, 100, b"", 1).0, [b""]);
        assert!(cut(Cut::Whole, 3, b"abcd", 1).1.is_err());
    }

    #[test]
    fn newline_search_agrees_with_the_plain_one() {
        for length in 0..40 {
            for at in 0..=length {
                let mut bytes = vec![0x0bu8; length];
                if at < length {
                    bytes[at] = b'\n';
                }
                bytes.iter_mut().skip(at + 1).step_by(3).for_each(|b| *b = b'\n');
                assert_eq!(find_newline(&bytes), bytes.iter().position(|b| *b == b'\n'), "{bytes:?}");
            }
        }
    }

    #[test]
    fn lines_longer_than_one_read_are_kept_whole() {
        let input = vec![b'x'; READ_BYTES * 3 + 5];
        let (found, result) = cut(Cut::Lines, 1 << 20, &input, 100_000);
        assert_eq!((found.len(), result), (1, Ok(())));
        assert_eq!(found[0], input);
    }
}
