//! P2 and P3: the records of one append are contiguous and all there, and an acknowledged record is readable at its offset
//! byte for byte.

use bytes::Bytes;
use graven_frame::{Frame, Group, Kind};

use super::{Checked, violated};

/// The committed records by offset.
#[derive(Debug, Default)]
pub struct Records {
    records: Vec<(Bytes, Bytes)>,
}

impl Records {
    /// How many are committed: the next offset.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.records.len() as u64
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// `frame` is committed, after all before it; its offsets were checked by [`super::offsets`].
    pub fn committed(&mut self, frame: &Frame) {
        if frame.header().kind == Kind::Records {
            self.records.extend(frame.records().flatten().map(|record| (record.meta, record.payload)));
        }
    }

    /// `group` was acknowledged at offset `first`.
    ///
    /// # Errors
    /// Its records are not there.
    pub fn acknowledged(&self, first: u64, group: &Group) -> Checked {
        for (offset, record) in (first..).zip(group.records()) {
            self.holds(offset, &record.meta, &record.payload)?;
        }
        Ok(())
    }

    /// The committed record at `offset` has these bytes.
    ///
    /// # Errors
    /// It has others, or there is none.
    pub fn holds(&self, offset: u64, meta: &[u8], payload: &[u8]) -> Checked {
        match self.records.get(offset as usize) {
            Some((its_meta, its_payload)) if its_meta == meta && its_payload == payload => Ok(()),
            found => violated(
                "P2",
                format!(
                    "record {offset} was {:?}, is {:?}",
                    Bytes::copy_from_slice(payload),
                    found.map(|(_, payload)| payload)
                ),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{frame, group};
    use super::*;

    #[test]
    fn acknowledged_records_that_are_elsewhere_or_others_are_seen() {
        let mut records = Records::default();
        records.committed(&frame(None, 1, &[group(0, 0, &["a", "b"]), group(0, 0, &["c"])]));
        records.acknowledged(0, &group(0, 0, &["a", "b"])).expect("there");
        records.acknowledged(1, &group(0, 0, &["a", "b"])).expect_err("elsewhere");
        records.acknowledged(2, &group(0, 0, &["c", "d"])).expect_err("half of it");
        records.acknowledged(2, &group(0, 0, &["x"])).expect_err("other bytes");
    }
}
