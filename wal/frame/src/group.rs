//! An append group: the records of one append call, encoded once by the client and never again.

use std::sync::OnceLock;

use bytes::{BufMut, Bytes, BytesMut};

use crate::header::{read_u32, read_u64};
use crate::{
    Body, FrameError, GROUP_HEADER_BYTES, MAX_GROUP_BYTES, MAX_META_BYTES, MAX_RECORD_BYTES, RECORD_HEADER_BYTES,
};

/// One append group whose lengths add up. Clones share the bytes.
#[derive(Debug, Clone)]
pub struct Group {
    header: GroupHeader,
    body: Body,
    /// Computed when first asked for: readers of a verified frame never need it.
    crc: OnceLock<u32>,
}

/// A decoded group header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupHeader {
    /// Bytes of the whole group, this header included.
    pub len: u32,
    /// Records in the group, at least one.
    pub count: u32,
    /// The session the append belongs to: the index of the entry that opened it.
    pub session: Option<u64>,
    /// Position in the session, from 1.
    pub sequence: Option<u64>,
    /// The append is refused unless its first record gets this offset.
    pub expected_offset: Option<u64>,
    /// The append is refused when a higher fence was seen, from 1.
    pub fence: Option<u64>,
}

/// What the writer of a group says about it besides its records. All `None` is a plain append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupHeaderSpec {
    /// See [`GroupHeader::session`].
    pub session: Option<u64>,
    /// See [`GroupHeader::sequence`].
    pub sequence: Option<u64>,
    /// See [`GroupHeader::expected_offset`]; `u64::MAX` cannot be expressed.
    pub expected_offset: Option<u64>,
    /// See [`GroupHeader::fence`].
    pub fence: Option<u64>,
}

/// One record of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRecord {
    /// Opaque side data, usually empty.
    pub meta: Bytes,
    /// The record.
    pub payload: Bytes,
}

impl Group {
    /// Takes a whole group: all of `body`, its header included.
    ///
    /// The bytes are trusted to be what was sent; compare [`Group::crc`], or use [`Group::parse_checked`].
    ///
    /// # Errors
    /// When a length is beyond its limit or they do not add up exactly.
    pub fn parse(body: Body) -> Result<Group, FrameError> {
        let header = decode_group_header(&body, 0)?;
        if header.len as usize != body.len() {
            return Err(FrameError::Malformed { what: "group length differs from its bytes", at: 0 });
        }
        let mut cursor = RecordCursor::new(0, &header);
        while cursor.next_range(&body)?.is_some() {}
        Ok(Group { header, body, crc: OnceLock::new() })
    }

    /// [`Group::parse`], refused unless the bytes have this CRC.
    ///
    /// # Errors
    /// [`FrameError::GroupCrc`], or as [`Group::parse`].
    pub fn parse_checked(body: Body, crc: u32) -> Result<Group, FrameError> {
        if body.crc() != crc {
            return Err(FrameError::GroupCrc);
        }
        let group = Group::parse(body)?;
        Ok(Group { crc: OnceLock::from(crc), ..group })
    }

    /// The decoded header.
    #[must_use]
    pub fn header(&self) -> &GroupHeader {
        &self.header
    }

    /// All bytes, the header included.
    #[must_use]
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// CRC32 over all bytes. Computed once.
    #[must_use]
    pub fn crc(&self) -> u32 {
        *self.crc.get_or_init(|| self.body.crc())
    }

    /// The records in order.
    #[must_use]
    pub fn records(&self) -> GroupRecords<'_> {
        GroupRecords { body: &self.body, cursor: RecordCursor::new(0, &self.header) }
    }
}

/// Iterator over the records of a [`Group`].
#[derive(Debug)]
pub struct GroupRecords<'a> {
    body: &'a Body,
    cursor: RecordCursor,
}

impl Iterator for GroupRecords<'_> {
    type Item = GroupRecord;

    fn next(&mut self) -> Option<GroupRecord> {
        // A `Group` was walked to its end when it was made, so no error is possible here.
        let at = self.cursor.next_range(self.body).ok().flatten()?;
        Some(at.record(self.body))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.cursor.left as usize, Some(self.cursor.left as usize))
    }
}

impl ExactSizeIterator for GroupRecords<'_> {}

/// Decodes the group header at `at`; the group is within the body when this returns.
pub(crate) fn decode_group_header(body: &Body, at: usize) -> Result<GroupHeader, FrameError> {
    let mut head = [0; GROUP_HEADER_BYTES];
    if !body.copy_to(at, &mut head) {
        return Err(FrameError::Truncated { need: at + GROUP_HEADER_BYTES, have: body.len() });
    }
    let some = |at: usize| Some(read_u64(&head, at)).filter(|number| *number != 0);
    let header = GroupHeader {
        len: read_u32(&head, 0),
        count: read_u32(&head, 4),
        session: some(8),
        sequence: some(16),
        expected_offset: some(24).map(|plus_one| plus_one - 1),
        fence: some(32),
    };
    if header.len as usize > MAX_GROUP_BYTES {
        return Err(FrameError::TooLarge {
            what: "append group",
            size: header.len.into(),
            limit: MAX_GROUP_BYTES as u64,
        });
    }
    if header.count == 0 {
        return Err(FrameError::Malformed { what: "group without a record", at: at + 4 });
    }
    let least = GROUP_HEADER_BYTES as u64 + u64::from(header.count) * RECORD_HEADER_BYTES as u64;
    if u64::from(header.len) < least {
        return Err(FrameError::Malformed { what: "more records than the group can hold", at: at + 4 });
    }
    if header.session.is_some() != header.sequence.is_some() {
        return Err(FrameError::Malformed { what: "session and sequence come together or not at all", at: at + 8 });
    }
    if head[40..].iter().any(|byte| *byte != 0) {
        return Err(FrameError::Malformed { what: "reserved bytes are not zero", at: at + 40 });
    }
    if at + header.len as usize > body.len() {
        return Err(FrameError::Truncated { need: at + header.len as usize, have: body.len() });
    }
    Ok(header)
}

/// Walks the records of one group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordCursor {
    at: usize,
    end: usize,
    left: u32,
}

/// Where one record stands.
pub(crate) struct RecordAt {
    meta: usize,
    payload: usize,
    end: usize,
}

impl RecordAt {
    pub(crate) fn record(&self, body: &Body) -> GroupRecord {
        GroupRecord { meta: body.slice(self.meta..self.payload), payload: body.slice(self.payload..self.end) }
    }
}

impl RecordCursor {
    /// Starts at the group whose header is at `start`; the header's length was checked against the body.
    pub(crate) fn new(start: usize, header: &GroupHeader) -> RecordCursor {
        RecordCursor { at: start + GROUP_HEADER_BYTES, end: start + header.len as usize, left: header.count }
    }

    /// The next record, `None` behind the last one, which must end where the group ends.
    pub(crate) fn next_range(&mut self, body: &Body) -> Result<Option<RecordAt>, FrameError> {
        if self.left == 0 {
            return if self.at == self.end {
                Ok(None)
            } else {
                Err(FrameError::Malformed { what: "bytes behind the last record of a group", at: self.at })
            };
        }
        let mut head = [0; RECORD_HEADER_BYTES];
        if self.at + RECORD_HEADER_BYTES > self.end || !body.copy_to(self.at, &mut head) {
            return Err(FrameError::Truncated { need: self.at + RECORD_HEADER_BYTES, have: self.end });
        }
        let (payload_len, meta_len) = (read_u32(&head, 0) as usize, read_u32(&head, 4) as usize);
        if payload_len > MAX_RECORD_BYTES {
            return Err(FrameError::TooLarge {
                what: "record",
                size: payload_len as u64,
                limit: MAX_RECORD_BYTES as u64,
            });
        }
        if meta_len > MAX_META_BYTES {
            return Err(FrameError::TooLarge {
                what: "record meta",
                size: meta_len as u64,
                limit: MAX_META_BYTES as u64,
            });
        }
        let meta = self.at + RECORD_HEADER_BYTES;
        let record = RecordAt { meta, payload: meta + meta_len, end: meta + meta_len + payload_len };
        if record.end > self.end {
            return Err(FrameError::Truncated { need: record.end, have: self.end });
        }
        self.at = record.end;
        self.left -= 1;
        Ok(Some(record))
    }
}

/// Builds append groups; reusable after each [`GroupBuilder::finish`].
#[derive(Debug, Default)]
pub struct GroupBuilder {
    buffer: BytesMut,
    count: u32,
}

impl GroupBuilder {
    /// An empty builder.
    #[must_use]
    pub fn new() -> GroupBuilder {
        GroupBuilder::default()
    }

    /// Adds a record, or nothing on an error.
    ///
    /// # Errors
    /// When the record, its meta, or the group with it would be too large.
    pub fn push(&mut self, meta: &[u8], payload: &[u8]) -> Result<(), RecordError> {
        if payload.len() > MAX_RECORD_BYTES {
            return Err(RecordError::PayloadTooLarge { size: payload.len(), limit: MAX_RECORD_BYTES });
        }
        if meta.len() > MAX_META_BYTES {
            return Err(RecordError::MetaTooLarge { size: meta.len(), limit: MAX_META_BYTES });
        }
        let size = self.len_bytes() + RECORD_HEADER_BYTES + meta.len() + payload.len();
        if size > MAX_GROUP_BYTES {
            return Err(RecordError::GroupFull { size, limit: MAX_GROUP_BYTES });
        }
        if self.buffer.is_empty() {
            self.buffer.put_bytes(0, GROUP_HEADER_BYTES);
        }
        // Both lengths were just compared with limits far below u32::MAX.
        self.buffer.put_u32_le(payload.len() as u32);
        self.buffer.put_u32_le(meta.len() as u32);
        self.buffer.put_slice(meta);
        self.buffer.put_slice(payload);
        self.count += 1;
        Ok(())
    }

    /// Bytes the group would have if finished now.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.buffer.len().max(GROUP_HEADER_BYTES)
    }

    /// Records pushed since the last finish.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The group of all records pushed; the builder is empty afterwards.
    ///
    /// # Panics
    /// When no record was pushed, or only one of session and sequence is given, or one of the given numbers is zero:
    /// such a group would be refused by every reader.
    pub fn finish(&mut self, spec: GroupHeaderSpec) -> Group {
        assert!(self.count > 0, "a group has at least one record");
        assert_eq!(spec.session.is_some(), spec.sequence.is_some(), "session and sequence come together");
        for number in [spec.session, spec.sequence, spec.fence] {
            assert_ne!(number, Some(0), "session, sequence and fence count from 1");
        }
        let mut buffer = self.buffer.split();
        let header = GroupHeader {
            len: buffer.len() as u32,
            count: std::mem::take(&mut self.count),
            session: spec.session,
            sequence: spec.sequence,
            expected_offset: spec.expected_offset,
            fence: spec.fence,
        };
        let expected_plus_one =
            spec.expected_offset.map(|offset| offset.checked_add(1).expect("no log reaches offset u64::MAX"));
        let numbers = [spec.session, spec.sequence, expected_plus_one, spec.fence];
        buffer[0..4].copy_from_slice(&header.len.to_le_bytes());
        buffer[4..8].copy_from_slice(&header.count.to_le_bytes());
        for (slot, number) in buffer[8..40].chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.unwrap_or(0).to_le_bytes());
        }
        Group { header, body: Body::from(buffer.freeze()), crc: OnceLock::new() }
    }
}

/// Why a record cannot join a group. The group is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The payload is beyond [`MAX_RECORD_BYTES`].
    #[error("record of {size} bytes is larger than the limit of {limit}")]
    PayloadTooLarge {
        /// Bytes of the payload.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The meta is beyond [`MAX_META_BYTES`].
    #[error("record meta of {size} bytes is larger than the limit of {limit}")]
    MetaTooLarge {
        /// Bytes of the meta.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The record fits into a group of its own, but not into this one.
    #[error("the batch would have {size} bytes with this record, the limit is {limit}; send what is there first")]
    GroupFull {
        /// Bytes the group would have.
        size: usize,
        /// The limit.
        limit: usize,
    },
}
