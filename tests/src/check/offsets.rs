//! P3: offsets are dense. Every entry begins where the one before it ended, and its records add up.

use graven_frame::{Frame, Kind};

use super::{Checked, violated};

/// Where the committed log ends.
#[derive(Debug, Default)]
pub struct Offsets {
    next: u64,
}

impl Offsets {
    /// `frame` is committed, after all before it.
    ///
    /// # Errors
    /// Its offsets leave a hole, or its records do not add up.
    pub fn committed(&mut self, frame: &Frame) -> Checked {
        let (header, next) = (frame.header(), self.next);
        let (index, base) = (header.index, header.base_offset);
        if base != next {
            return violated("P3", format!("entry {index} begins at offset {base}, not {next}"));
        }
        let mut end = base;
        if header.kind == Kind::Records {
            for record in frame.records() {
                match record {
                    Ok(record) if record.offset == end => end += 1,
                    other => return violated("P3", format!("entry {index} at offset {end}: {other:?}")),
                }
            }
        } else if header.count != 0 {
            return violated("P3", format!("control entry {index} takes offsets"));
        }
        if end != frame.next_offset() {
            return violated("P3", format!("entry {index} ends at offset {end}, not {}", frame.next_offset()));
        }
        self.next = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{frame, group};
    use super::*;

    #[test]
    fn holes_in_the_offsets_are_seen() {
        let first = frame(None, 1, &[group(0, 0, &["a", "b"])]);
        let second = frame(Some(&first), 1, &[group(0, 0, &["c"])]);
        let mut offsets = Offsets::default();
        offsets.committed(&second).expect_err("begins at 2");
        offsets.committed(&first).expect("begins at 0");
        offsets.committed(&first).expect_err("begins at 0 again");
        offsets.committed(&second).expect("begins at 2");
    }
}
