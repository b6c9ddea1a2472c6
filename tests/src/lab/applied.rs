//! What one server has applied: the records that its own readers get, in order, from the beginning of each of its lives.

use std::collections::HashMap;

use bytes::Bytes;
use graven::replica::feed::{Feed, Step};
use graven_frame::Frame;
use graven_wal::ReadError;

use crate::check::{Checked, violated};
use crate::node::Process;

/// Bytes read at a time: a few frames, so that a long log takes several reads.
const READ_BYTES: usize = 16 << 10;

/// The newest snapshot of a server's state machine: the state after all records below an offset, and the committed log that it was made of.
pub(super) type State<'a> = (u64, &'a [Frame]);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Applied {
    life: u64,
    feed: Option<Feed>,
    commands: Vec<Bytes>,
    /// The offset of the snapshot that it went on from.
    restored: u64,
    /// Where a command stands first. Only looked into, never walked.
    first: HashMap<Bytes, u64>,
}

impl Applied {
    /// Applies what `process`, the life `life` of `server`, shows its readers by now.
    ///
    /// # Errors
    /// Its files do not read, or offsets have a hole.
    pub(super) fn catch_up(&mut self, server: u64, life: u64, process: &Process, state: State<'_>) -> Checked {
        if self.life != life || self.feed.is_none() {
            *self = Applied { life, ..Applied::default() };
            self.restore(state);
        }
        let mut view = process.replica.view();
        // What is trimmed for readers is still there for the state machine, as far as its snapshots do not hold it.
        view.first_offset = 0;
        while let Some(feed) = &mut self.feed
            && feed.step(&view) == Step::Read
        {
            let frames = match feed.read(&process.reader, &view, READ_BYTES) {
                Ok(frames) => frames,
                Err(ReadError::Trimmed { .. }) if state.0 > self.commands.len() as u64 => {
                    self.restore(state);
                    continue;
                }
                Err(error) => return violated("P4", format!("server {server} does not read its own log: {error}")),
            };
            for record in frames.iter().flat_map(|frame| frame.records()) {
                match record {
                    Ok(record) if record.offset == self.commands.len() as u64 => {
                        self.first.entry(record.payload.clone()).or_insert(record.offset);
                        self.commands.push(record.payload);
                    }
                    other => {
                        let next = self.commands.len();
                        return violated("P3", format!("server {server} applies {other:?} at {next}"));
                    }
                }
            }
        }
        // A snapshot may be ahead of what a server knows to be committed when it starts.
        if self.commands.len() as u64 != view.next_offset.max(self.restored) {
            let applied = self.commands.len();
            return violated("P4", format!("server {server} applied {applied} records, it shows {}", view.next_offset));
        }
        Ok(())
    }

    /// Goes on from a snapshot.
    fn restore(&mut self, (offset, log): State<'_>) {
        let records = log.iter().take_while(|frame| frame.header().base_offset < offset).flat_map(Frame::records);
        self.commands = records.filter_map(Result::ok).map(|record| record.payload).take(offset as usize).collect();
        self.first.clear();
        for (command, at) in self.commands.iter().zip(0..) {
            self.first.entry(command.clone()).or_insert(at);
        }
        self.feed = Some(Feed::new(offset));
        self.restored = offset;
    }

    /// The command at `offset`.
    pub(super) fn at(&self, offset: u64) -> Option<&Bytes> {
        self.commands.get(usize::try_from(offset).ok()?)
    }

    /// Where `command` stands first.
    pub(super) fn offset_of(&self, command: &Bytes) -> Option<u64> {
        self.first.get(command).copied()
    }
}
