//! What one server has applied: the records that its own readers get, in order, from the beginning of each of its lives.

use std::collections::HashMap;

use bytes::Bytes;
use graven::replica::feed::{Feed, Step};

use crate::check::{Checked, violated};
use crate::node::Process;

/// Bytes read at a time: a few frames, so that a long log takes several reads.
const READ_BYTES: usize = 16 << 10;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Applied {
    life: u64,
    feed: Option<Feed>,
    commands: Vec<Bytes>,
    /// Where a command stands first. Only looked into, never walked.
    first: HashMap<Bytes, u64>,
}

impl Applied {
    /// Applies what `process`, the life `life` of `server`, shows its readers by now.
    ///
    /// # Errors
    /// Its files do not read, or offsets have a hole.
    pub(super) fn catch_up(&mut self, server: u64, life: u64, process: &Process) -> Checked {
        if self.life != life || self.feed.is_none() {
            *self = Applied { life, feed: Some(Feed::new(0)), ..Applied::default() };
        }
        let Some(feed) = &mut self.feed else { return Ok(()) };
        let view = process.replica.view();
        while feed.step(&view) == Step::Read {
            let frames = match feed.read(&process.reader, &view, READ_BYTES) {
                Ok(frames) => frames,
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
        if self.commands.len() as u64 != view.next_offset {
            let applied = self.commands.len();
            return violated("P4", format!("server {server} applied {applied} records, it shows {}", view.next_offset));
        }
        Ok(())
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
