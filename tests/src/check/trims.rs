//! P2 and P4 across trims: the log begins where the committed trims say, on every node, and no file goes that may still be asked for.

use graven_frame::{Frame, Kind};

use super::{Checked, violated};

/// The trims that are committed.
#[derive(Debug, Default)]
pub struct Trims {
    /// Index of the entry, and the first offset from there on; both ascend.
    committed: Vec<(u64, u64)>,
}

impl Trims {
    /// `frame` is committed, after all before it, when the log has `records` records.
    ///
    /// # Errors
    /// It trims what is not there.
    pub fn committed(&mut self, frame: &Frame) -> Checked {
        if frame.header().kind != Kind::Trim {
            return Ok(());
        }
        let (index, end) = (frame.header().index, frame.header().base_offset);
        let body = frame.body().concat();
        let before = body.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let Some(before) = before.filter(|before| *before <= end) else {
            return violated("P2", format!("the entry at {index} trims up to {before:?}, the log has {end} records"));
        };
        let first = self.first_offset().max(before);
        self.committed.push((index, first));
        Ok(())
    }

    /// A new cluster's log begins at offset `first` from its start on, behind entry `index`: the trim that let it begin there may be lost. The
    /// first word of that counts.
    pub fn inherits(&mut self, index: u64, first: u64) {
        if self.committed.is_empty() {
            self.committed.push((index, first));
        }
    }

    /// Where the log begins, by all that is committed.
    #[must_use]
    pub fn first_offset(&self) -> u64 {
        self.committed.last().map_or(0, |(_, first)| *first)
    }

    /// Where the log begins, by what is committed up to `index`.
    #[must_use]
    pub fn first_offset_at(&self, index: u64) -> u64 {
        let known = self.committed.partition_point(|(at, _)| *at <= index);
        known.checked_sub(1).map_or(0, |at| self.committed[at].1)
    }

    /// `node`, which shows entries up to `readable`, says that the log begins at `first`. A node whose files begin later, because it
    /// knew more before, or was given a checkpoint, may say so.
    ///
    /// # Errors
    /// It hides records that were not trimmed, or shows trimmed ones.
    pub fn shows(&self, node: u64, readable: u64, first: u64) -> Checked {
        let (least, most) = (self.first_offset_at(readable), self.first_offset());
        if first < least || first > most {
            let range = format!("it is {least} there and {most} by all that is committed");
            return violated("P2", format!("node {node} at entry {readable} says the log begins at {first}; {range}"));
        }
        Ok(())
    }

    /// The files of `node` hold records from `first` on.
    ///
    /// # Errors
    /// There are less than what was not trimmed.
    pub fn holds(&self, node: u64, first: u64) -> Checked {
        if first > self.first_offset() {
            let trimmed = self.first_offset();
            return violated(
                "P2",
                format!("node {node} holds records from {first} on; trimmed is what is before {trimmed}"),
            );
        }
        Ok(())
    }

    /// A trim up to `before` was answered: the log begins at `first`.
    ///
    /// # Errors
    /// It does not.
    pub fn answered(&self, before: u64, first: u64) -> Checked {
        if first < before || first > self.first_offset() {
            let committed = self.first_offset();
            return violated("P1", format!("a trim up to {before} is answered with {first}; committed is {committed}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use graven_frame::{Body, HeaderSpec};

    use super::super::testing::{frame, group};
    use super::*;

    fn trim(prev: &Frame, before: u64) -> Frame {
        let body = Body::from_chunks(vec![[1, before].map(u64::to_le_bytes).concat().into()]);
        let (crc, header) = (body.crc(), prev.header());
        let (index, base_offset) = (header.index + 1, prev.next_offset());
        let spec = HeaderSpec { kind: Kind::Trim, term: 1, index, base_offset, count: 0, timestamp_ms: 0 };
        Frame::seal(spec, header.chain, body, crc)
    }

    #[test]
    fn records_hidden_or_gone_without_a_trim_are_seen() {
        let first = frame(None, 1, &[group(0, 0, &["a", "b", "c"])]);
        let second = trim(&first, 2);
        let mut trims = Trims::default();
        trims.committed(&trim(&first, 4)).expect_err("more than there is");
        trims.holds(1, 1).expect_err("nothing was trimmed");
        trims.committed(&second).expect("two of three");
        trims.holds(1, 2).expect("those");
        trims.holds(1, 3).expect_err("one too many");
        trims.shows(1, 2, 2).expect("right");
        trims.shows(1, 1, 0).expect("not there yet");
        trims.shows(1, 1, 2).expect("its files begin there");
        trims.shows(1, 2, 0).expect_err("shows trimmed records");
        trims.shows(1, 2, 3).expect_err("hides one");
        trims.answered(2, 2).expect("right");
        trims.answered(3, 2).expect_err("not so far");
        trims.answered(2, 3).expect_err("nobody committed that");
        assert_eq!((trims.first_offset_at(1), trims.first_offset_at(2)), (0, 2));
    }
}
