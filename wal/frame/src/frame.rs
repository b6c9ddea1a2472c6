//! A whole frame in memory, and the ways to make one and to look into it.

use bytes::Bytes;

use crate::group::{RecordCursor, decode_group_header};
use crate::{Body, Chain, FrameError, Group, HEADER_BYTES, Header, HeaderSpec, Kind, decode_header};

/// One log entry: its encoded header and its body in the chunks it arrived in. Clones share the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    header: Header,
    head: Bytes,
    body: Body,
}

impl Frame {
    /// Makes the frame that follows the entry with chain value `prev`.
    ///
    /// `body_crc` is trusted: a leader combines it from the CRCs the groups were checked with, so that no byte is read twice.
    ///
    /// # Panics
    /// When the spec and the body make a frame that every reader would refuse: this is the last moment before it is
    /// written and sent everywhere.
    #[must_use]
    pub fn seal(spec: HeaderSpec, prev: Chain, body: Body, body_crc: u32) -> Frame {
        let mut header = Header {
            kind: spec.kind,
            required_features: 0,
            optional_features: 0,
            body_len: u32::try_from(body.len()).unwrap_or(u32::MAX),
            count: spec.count,
            term: spec.term,
            index: spec.index,
            base_offset: spec.base_offset,
            timestamp_ms: spec.timestamp_ms,
            body_crc,
            chain: Chain::START,
        };
        header.chain = header.chain_after(prev);
        let head = header.encode();
        if let Err(error) = decode_header(&head) {
            panic!("sealing entry {} would make an invalid frame: {error}", spec.index);
        }
        Frame { header, head: Bytes::copy_from_slice(&head), body }
    }

    /// The decoded header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The encoded header, [`HEADER_BYTES`] long.
    #[must_use]
    pub fn head(&self) -> &Bytes {
        &self.head
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Bytes of header and body.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }

    /// Offset of the record after this entry.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.header.next_offset()
    }

    /// Checks the body's CRC, and the chain when the value of the entry before is given.
    ///
    /// # Errors
    /// [`FrameError::BodyCrc`] or [`FrameError::Chain`].
    pub fn verify(&self, prev: Option<Chain>) -> Result<(), FrameError> {
        if self.body.crc() != self.header.body_crc {
            return Err(FrameError::BodyCrc { index: self.header.index });
        }
        match prev {
            Some(prev) if self.header.chain_after(prev) != self.header.chain => {
                Err(FrameError::Chain { index: self.header.index })
            }
            _ => Ok(()),
        }
    }

    /// Walks all groups and records of a records entry, and compares their number with the header's.
    ///
    /// A frame that passed [`Frame::verify`] is what its leader made; this says that the leader made sense.
    ///
    /// # Errors
    /// The first thing that does not add up.
    pub fn check_groups(&self) -> Result<(), FrameError> {
        if self.header.kind != Kind::Records {
            return Ok(());
        }
        let mut count = 0;
        for group in self.groups() {
            count += u64::from(group?.header().count);
        }
        if count == u64::from(self.header.count) {
            Ok(())
        } else {
            Err(FrameError::Malformed { what: "groups hold another number of records than the header says", at: 0 })
        }
    }

    /// Takes the frame at the start of contiguous bytes; returns it and its length. Shares the bytes.
    ///
    /// The header is checked, the body's CRC is not: see [`Frame::verify`].
    ///
    /// # Errors
    /// As [`decode_header`], and [`FrameError::Truncated`] when the body is not all there.
    pub fn parse(bytes: Bytes) -> Result<(Frame, usize), FrameError> {
        let header = decode_header(&bytes)?;
        let len = header.frame_len();
        if bytes.len() < len {
            return Err(FrameError::Truncated { need: len, have: bytes.len() });
        }
        let frame =
            Frame { header, head: bytes.slice(..HEADER_BYTES), body: Body::from(bytes.slice(HEADER_BYTES..len)) };
        Ok((frame, len))
    }

    /// Joins a header and the body that came with it.
    ///
    /// # Errors
    /// As [`decode_header`], and when the body's length is not what the header says.
    pub fn from_parts(head: &[u8; HEADER_BYTES], body: Body) -> Result<Frame, FrameError> {
        let header = decode_header(head)?;
        if body.len() < header.body_len as usize {
            return Err(FrameError::Truncated { need: header.frame_len(), have: HEADER_BYTES + body.len() });
        }
        if body.len() > header.body_len as usize {
            return Err(FrameError::Malformed { what: "bytes behind the body", at: header.frame_len() });
        }
        Ok(Frame { header, head: Bytes::copy_from_slice(head), body })
    }

    /// The append groups of a records entry; none for a control entry. Ends after the first error.
    #[must_use]
    pub fn groups(&self) -> Groups<'_> {
        Groups { frame: self, at: self.first_group_at() }
    }

    /// The records of a records entry with their offsets; none for a control entry. Ends after the first error.
    #[must_use]
    pub fn records(&self) -> Records<'_> {
        Records { frame: self, at: self.first_group_at(), cursor: None, offset: self.header.base_offset }
    }

    /// Control entries have no groups: their walk starts behind the end.
    fn first_group_at(&self) -> usize {
        if self.header.kind == Kind::Records { 0 } else { self.body.len() }
    }
}

/// Iterator over the groups of a frame; see [`Frame::groups`].
#[derive(Debug)]
pub struct Groups<'a> {
    frame: &'a Frame,
    at: usize,
}

impl Iterator for Groups<'_> {
    type Item = Result<Group, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        let body = &self.frame.body;
        if self.at >= body.len() {
            return None;
        }
        let group = decode_group_header(body, self.at)
            .and_then(|header| Group::parse(body.share(self.at..self.at + header.len as usize)));
        self.at = match &group {
            Ok(group) => self.at + group.body().len(),
            Err(_) => body.len(),
        };
        Some(group)
    }
}

/// One record of a frame, with the offset it has in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordRef {
    /// Position in the log, dense from 0.
    pub offset: u64,
    /// The leader's clock when it sealed the entry.
    pub timestamp_ms: u64,
    /// Opaque side data, usually empty.
    pub meta: Bytes,
    /// The record.
    pub payload: Bytes,
}

/// Iterator over the records of a frame; see [`Frame::records`].
#[derive(Debug)]
pub struct Records<'a> {
    frame: &'a Frame,
    /// Where the next group starts.
    at: usize,
    /// The group being walked.
    cursor: Option<RecordCursor>,
    offset: u64,
}

impl Records<'_> {
    fn step(&mut self) -> Result<Option<RecordRef>, FrameError> {
        let Frame { header, body, .. } = self.frame;
        loop {
            if let Some(cursor) = &mut self.cursor {
                if let Some(at) = cursor.next_range(body)? {
                    if self.offset >= header.next_offset() {
                        return Err(FrameError::Malformed { what: "more records than the header says", at: self.at });
                    }
                    let record = at.record(body);
                    let offset = self.offset;
                    self.offset += 1;
                    let timestamp_ms = header.timestamp_ms;
                    return Ok(Some(RecordRef { offset, timestamp_ms, meta: record.meta, payload: record.payload }));
                }
                self.cursor = None;
            }
            if self.at >= body.len() {
                return if self.offset == header.next_offset() || self.frame.header.kind != Kind::Records {
                    Ok(None)
                } else {
                    Err(FrameError::Malformed { what: "fewer records than the header says", at: self.at })
                };
            }
            let group = decode_group_header(body, self.at)?;
            self.cursor = Some(RecordCursor::new(self.at, &group));
            self.at += group.len as usize;
        }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<RecordRef, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            // Whatever comes behind an error has no known offset.
            self.at = self.frame.body.len();
            self.cursor = None;
            self.offset = self.frame.header.next_offset();
        }
        step.transpose()
    }
}
