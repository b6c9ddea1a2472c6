//! P4: a reader gets every record once and in order, whatever nodes it reads from.

use graven_frame::Frame;

use super::records::Records;
use super::{Checked, violated};

/// Where each reader stands.
#[derive(Debug)]
pub struct Feeds {
    next: Vec<u64>,
    /// Records delivered.
    pub checked: u64,
}

impl Feeds {
    /// For `readers` readers, who begin at offset 0.
    #[must_use]
    pub fn new(readers: usize) -> Feeds {
        Feeds { next: vec![0; readers], checked: 0 }
    }

    /// The next offset `reader` waits for.
    #[must_use]
    pub fn next(&self, reader: usize) -> u64 {
        self.next[reader]
    }

    /// `reader` was handed `frame`. It drops what it has, as a client does; only a first frame may begin below that.
    ///
    /// # Errors
    /// A record is missing, or is not the one committed at its offset.
    pub fn delivered(&mut self, reader: usize, frame: &Frame, records: &Records) -> Checked {
        let next = self.next[reader];
        let (base, end) = (frame.header().base_offset, frame.next_offset());
        if base > next || end <= next {
            return violated("P4", format!("reader {reader} waits for offset {next} and is handed {base} to {end}"));
        }
        for record in frame.records() {
            let Ok(record) = record else {
                return violated("P4", format!("reader {reader} is handed a frame that does not decode: {record:?}"));
            };
            records.holds(record.offset, &record.meta, &record.payload)?;
        }
        self.checked += end - next;
        self.next[reader] = end;
        Ok(())
    }

    /// `reader` was told that the records `gap` were trimmed, when the log began at `first`. It goes on behind them.
    ///
    /// # Errors
    /// They were not, or it is not what it waits for.
    pub fn trimmed(&mut self, reader: usize, gap: (u64, u64), first: u64) -> Checked {
        let (next, (from, to)) = (self.next[reader], gap);
        if from != next || to <= from || to > first {
            let told = format!("is told that {from} to {to} were trimmed; the log begins at {first}");
            return violated("P4", format!("reader {reader} waits for offset {next}, {told}"));
        }
        self.next[reader] = to;
        Ok(())
    }

    /// `reader` was told that it has everything below `told`, by a node that shows records up to `next_offset`.
    ///
    /// # Errors
    /// It was told wrong.
    pub fn caught_up(&self, reader: usize, told: u64, next_offset: u64) -> Checked {
        if told != self.next[reader] || told != next_offset {
            let next = self.next[reader];
            return violated(
                "P4",
                format!("reader {reader} waits for {next}, is told {told}, the node shows {next_offset}"),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{frame, group};
    use super::*;

    #[test]
    fn skipped_doubled_and_altered_records_are_seen() {
        let first = frame(None, 1, &[group(0, 0, &["a", "b"])]);
        let second = frame(Some(&first), 1, &[group(0, 0, &["c"])]);
        let altered = frame(None, 1, &[group(0, 0, &["a", "x"])]);
        let mut records = Records::default();
        records.committed(&first);
        records.committed(&second);
        let mut feeds = Feeds::new(1);
        feeds.delivered(0, &second, &records).expect_err("skips the first");
        feeds.delivered(0, &altered, &records).expect_err("altered");
        feeds.delivered(0, &first, &records).expect("the first");
        feeds.delivered(0, &first, &records).expect_err("doubled");
        feeds.caught_up(0, 2, 3).expect_err("one more is there");
        feeds.trimmed(0, (2, 3), 2).expect_err("it was not");
        feeds.trimmed(0, (1, 3), 3).expect_err("it waits for another one");
        feeds.delivered(0, &second, &records).expect("the second");
        feeds.caught_up(0, 3, 3).expect("all");
        assert_eq!(feeds.checked, 3);
    }
}
