//! The records of one append call.

use std::fmt;

use graven_frame::{Group, GroupBuilder, GroupHeaderSpec, RecordError};

use crate::protocol::{ErrorCode, Failure};

/// Records to append together: contiguous offsets, all or nothing. Encoded as they are pushed, and never again.
#[derive(Default)]
pub struct Batch {
    builder: GroupBuilder,
    largest: usize,
    /// The first record that did not fit, when the batch was made from a collection.
    overflow: Option<(u32, RecordError)>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a record.
    ///
    /// # Errors
    /// When it is larger than any record may be, or the batch is full; the batch is unchanged then.
    pub fn push(&mut self, payload: impl AsRef<[u8]>) -> Result<(), RecordError> {
        self.push_with_meta(b"", payload)
    }

    /// Adds a record with `meta` bytes (0 to 64 KiB), which graven carries and never looks at.
    ///
    /// # Errors
    /// As [`Batch::push`].
    pub fn push_with_meta(&mut self, meta: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> Result<(), RecordError> {
        self.builder.push(meta.as_ref(), payload.as_ref())?;
        self.largest = self.largest.max(payload.as_ref().len());
        Ok(())
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.builder.count() as usize
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.builder.count() == 0
    }

    /// Bytes it takes on the wire and on disk, headers included.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.builder.len_bytes()
    }

    /// Whether it may be sent at all.
    pub(super) fn check(mut self, max_record_bytes: usize) -> Result<Batch, Failure> {
        if let Some((position, cause)) = self.overflow {
            return Err(Failure::refused(ErrorCode::TooLarge, format!("record {position} of the batch: {cause}"))
                .with("position", u64::from(position)));
        }
        if self.is_empty() {
            return Err(Failure::refused(ErrorCode::Usage, "a batch needs at least one record"));
        }
        if self.largest > max_record_bytes {
            let group = self.builder.finish(GroupHeaderSpec::default());
            let sizes = group.records().map(|record| record.payload.len());
            let (position, size) = sizes.enumerate().find(|(_, size)| *size > max_record_bytes).unwrap_or_default();
            let message = format!(
                "record {position} of the batch has {size} bytes, the limit is {max_record_bytes} (max_record_bytes)"
            );
            return Err(Failure::refused(ErrorCode::TooLarge, message)
                .with("position", position as u64)
                .with("size", size as u64)
                .with("limit", max_record_bytes as u64));
        }
        Ok(self)
    }

    pub(super) fn seal(&mut self, spec: GroupHeaderSpec) -> Group {
        self.builder.finish(spec)
    }

    /// The records of a group that was not taken, to be sent under another session.
    pub(super) fn of_group(group: &Group) -> Batch {
        group.records().map(|record| (record.meta, record.payload)).fold(Batch::new(), |mut batch, (meta, payload)| {
            batch.note(meta, payload);
            batch
        })
    }

    fn note(&mut self, meta: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) {
        if self.overflow.is_none()
            && let Err(cause) = self.push_with_meta(meta, payload)
        {
            self.overflow = Some((self.builder.count(), cause));
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} records, {} bytes)", self.len(), self.len_bytes())
    }
}

/// What can be appended: a [`Batch`], or a collection of anything that is bytes. A record that is too large makes the
/// append fail, not the conversion.
pub trait IntoBatch {
    /// The records as a batch.
    fn into_batch(self) -> Batch;
}

impl IntoBatch for Batch {
    fn into_batch(self) -> Batch {
        self
    }
}

impl<T: AsRef<[u8]>> IntoBatch for &[T] {
    fn into_batch(self) -> Batch {
        self.iter().collect()
    }
}

impl<T: AsRef<[u8]>> IntoBatch for &Vec<T> {
    fn into_batch(self) -> Batch {
        self.iter().collect()
    }
}

impl<T: AsRef<[u8]>> IntoBatch for Vec<T> {
    fn into_batch(self) -> Batch {
        self.iter().collect()
    }
}

impl<T: AsRef<[u8]>, const N: usize> IntoBatch for [T; N] {
    fn into_batch(self) -> Batch {
        self.iter().collect()
    }
}

impl<T: AsRef<[u8]>, const N: usize> IntoBatch for &[T; N] {
    fn into_batch(self) -> Batch {
        self.iter().collect()
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for Batch {
    fn from_iter<I: IntoIterator<Item = T>>(records: I) -> Batch {
        let mut batch = Batch::new();
        records.into_iter().for_each(|record| batch.note(b"", record));
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_moving_to_another_session() {
        let mut batch = Batch::new();
        batch.push_with_meta("m", "one").unwrap();
        batch.push("").unwrap();
        let group = batch.seal(GroupHeaderSpec { session: Some(1), sequence: Some(1), ..Default::default() });
        let again =
            Batch::of_group(&group).seal(GroupHeaderSpec { session: Some(9), sequence: Some(4), ..Default::default() });
        assert_eq!(again.header().session, Some(9));
        assert!(group.records().eq(again.records()));
    }

    #[test]
    fn oversize_record_is_named_by_its_position() {
        let failure = ["ab", "abcd"].into_batch().check(3).unwrap_err();
        assert_eq!(
            (failure.code, failure.number("position"), failure.number("size")),
            (ErrorCode::TooLarge, Some(1), Some(4))
        );
        assert_eq!(Batch::new().check(3).unwrap_err().code, ErrorCode::Usage);
    }
}
