//! Reading a segment file record by record with positional reads, trusting nothing.
//!
//! Used by recovery, verification and inspection: a bad sector is an error here and not a signal.

use std::io;

use graven_frame::{FrameError, HEADER_BYTES, Header, decode_header};

use crate::disk::DiskFile;
use crate::format::{
    BOUNDARY, Footer, OPENING_BYTES, PREFIX_BYTES, Prefix, PrefixFound, RecordKind, SMALL_PAYLOAD, TWIN_BLOCK,
    decode_hard_state, decode_reset, decode_trailer, is_zero, twin_of,
};
use crate::log::head_crc;
use crate::planted::{Bug, is_planted};
use crate::recovery::RecordsIn;
use crate::types::{HardState, LogBase};

/// A segment file under examination.
pub(crate) struct Scanner<'a, F> {
    file: &'a F,
    pub(crate) segment: u64,
    /// `None` when the opening is lost: then records of any life of this segment count.
    pub(crate) salt: Option<u64>,
    pub(crate) len: u64,
    start: u64,
    window: Vec<u8>,
    /// Bytes read at once.
    pub(crate) at_once: usize,
}

/// What stands at a boundary.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Probe {
    /// Nothing but zeroes where a prefix would be.
    Zero,
    /// No valid record; says what is wrong.
    Bad(&'static str),
    /// The record of an earlier life of this file.
    Stale,
    /// Written by newer software.
    Newer(u32),
    /// A record whose every check holds.
    Good(Record),
}

/// A valid record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) position: u64,
    pub(crate) end: u64,
    pub(crate) watermark: u64,
    pub(crate) known_commit: u64,
    pub(crate) content: Content,
    /// The prefix, or that of the copy that was used.
    pub(crate) prefix: Prefix,
    /// Bytes that were wrong although the record is whole: one of the copies of a hard state.
    pub(crate) healed: Healed,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Frame(Header),
    HardState(HardState),
    SyncPoint,
    Reset(LogBase),
    Footer(Footer),
    /// Where the footer is.
    Trailer(u64),
}

/// What is behind a place where no valid record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Behind {
    /// The first record of ours.
    pub(crate) next: Option<u64>,
    /// The first entry of ours.
    pub(crate) next_entry: Option<Header>,
    /// The highest watermark among the records of ours.
    pub(crate) watermark: u64,
    /// Byte behind the last one that is not zero.
    pub(crate) used_to: u64,
    /// Byte behind the last record of ours, the broken one at the place itself included.
    pub(crate) ours_to: u64,
    /// Whether there are records of an earlier life of the file.
    pub(crate) stale: bool,
}

impl Behind {
    /// Byte behind what an unfinished write at `at` may have left.
    pub(crate) fn cut_to(&self, at: u64) -> u64 {
        if self.stale {
            // What is not zero here may be older than this life of the file: take what is surely of it, and the block in
            // which the write began.
            self.ours_to.max((at + BOUNDARY).next_multiple_of(TWIN_BLOCK)).min(self.used_to.max(at))
        } else {
            self.used_to
        }
    }
}

/// Bytes read at once, if nothing else is asked for.
pub(crate) const WINDOW_BYTES: usize = 1 << 20;

impl<'a, F: DiskFile> Scanner<'a, F> {
    pub(crate) fn new(file: &'a F, segment: u64, salt: Option<u64>, len: u64) -> Scanner<'a, F> {
        Scanner { file, segment, salt, len, start: 0, window: Vec::new(), at_once: WINDOW_BYTES }
    }

    /// Up to `len` bytes from `at`; fewer at the end of the file.
    pub(crate) fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let len = len.min(self.len.saturating_sub(at) as usize);
        let inside = at >= self.start && at + len as u64 <= self.start + self.window.len() as u64;
        if !inside {
            let want = len.max(self.at_once).min(self.len.saturating_sub(at) as usize);
            self.window.resize(want, 0);
            self.start = at;
            let read = self.file.read_at(at, &mut self.window)?;
            // All of it lies inside the file: zeroes in place of what did not come would look like the end of the log.
            if read < want {
                self.window.clear();
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let from = (at - self.start) as usize;
        Ok(&self.window[from..(from + len).min(self.window.len())])
    }

    /// Examines the boundary `at`.
    pub(crate) fn probe(&mut self, at: u64) -> io::Result<Probe> {
        let found = match self.bytes(at, PREFIX_BYTES)?.first_chunk() {
            Some(bytes) => Prefix::decode(bytes),
            None => PrefixFound::Zero,
        };
        let broken = match found {
            PrefixFound::Good(prefix) => match self.place(&prefix, at) {
                Place::Ours => match self.content(&prefix)? {
                    Ok((content, healed)) => return Ok(Probe::Good(record(&prefix, prefix.end(), content, healed))),
                    Err(Flaw::Bad(what)) => Probe::Bad(what),
                    Err(Flaw::Newer(seen)) => Probe::Newer(seen),
                },
                Place::Stale => Probe::Stale,
                Place::Moved => Probe::Bad("a record that belongs to another place"),
            },
            PrefixFound::Zero => Probe::Zero,
            PrefixFound::Bad => Probe::Bad("no record prefix"),
        };
        match broken {
            Probe::Newer(_) => Ok(broken),
            _ => Ok(self.twin(at)?.unwrap_or(broken)),
        }
    }

    /// Whether the bytes from one boundary to the other are those of frames, by their prefixes: whatever became of the rest of them.
    pub(crate) fn frames_fill(&mut self, from: u64, to: u64) -> io::Result<bool> {
        let mut at = from;
        while at < to {
            let found = self.bytes(at, PREFIX_BYTES)?.first_chunk().map(Prefix::decode);
            match found {
                Some(PrefixFound::Good(prefix))
                    if prefix.kind == RecordKind::Frame && matches!(self.place(&prefix, at), Place::Ours) =>
                {
                    at = prefix.end();
                }
                _ => return Ok(false),
            }
        }
        Ok(at == to)
    }

    /// The second copy of a hard state whose first one should be at `at`.
    fn twin(&mut self, at: u64) -> io::Result<Option<Probe>> {
        let second = twin_of(at);
        let Some(PrefixFound::Good(prefix)) = self.bytes(second, PREFIX_BYTES)?.first_chunk().map(Prefix::decode)
        else {
            return Ok(None);
        };
        let of_this =
            prefix.kind == RecordKind::HardState && prefix.copy == 1 && u64::from(prefix.head_crc) * BOUNDARY == at;
        if !of_this || !matches!(self.place(&prefix, second), Place::Ours) {
            return Ok(None);
        }
        let Some(hard_state) = self.small(&prefix)?.as_ref().and_then(|payload| decode_hard_state(payload)) else {
            return Ok(None);
        };
        let healed = Some((at, at + (PREFIX_BYTES + SMALL_PAYLOAD) as u64));
        Ok(Some(Probe::Good(Record {
            position: at,
            ..record(&prefix, prefix.end(), Content::HardState(hard_state), healed)
        })))
    }

    fn place(&self, prefix: &Prefix, at: u64) -> Place {
        if prefix.segment != self.segment || self.is_of_another_life(prefix) {
            Place::Stale
        } else if prefix.position != at {
            Place::Moved
        } else {
            Place::Ours
        }
    }

    fn is_ours(&self, prefix: &Prefix) -> bool {
        matches!(self.place(prefix, prefix.position), Place::Ours)
    }

    fn is_of_another_life(&self, prefix: &Prefix) -> bool {
        self.salt.is_some_and(|salt| salt != prefix.salt) && !is_planted(Bug::SaltForgotten)
    }

    fn content(&mut self, prefix: &Prefix) -> io::Result<Result<(Content, Healed), Flaw>> {
        if prefix.end() > self.len {
            return Ok(Err(Flaw::Bad("a record longer than its segment")));
        }
        let whole = |content: Option<Content>| {
            content.map(|content| (content, None)).ok_or(Flaw::Bad("record content is damaged"))
        };
        Ok(match prefix.kind {
            RecordKind::Frame => self.frame(prefix)?.map(|header| (Content::Frame(header), None)),
            // The lost copy is written again where the prefix says that the first one stands: only if that is here.
            RecordKind::HardState if prefix.copy == 0 && u64::from(prefix.head_crc) * BOUNDARY != prefix.position => {
                Err(Flaw::Bad("a hard state that names another place"))
            }
            RecordKind::HardState if prefix.copy == 0 => {
                let (first, second) = (self.small(prefix)?, self.second_copy(prefix)?);
                let healed = match (&first, second) {
                    (Some(_), true) => None,
                    (Some(_), false) => Some((twin_of(prefix.position), prefix.end())),
                    (None, _) => Some((prefix.position, prefix.position + (PREFIX_BYTES + SMALL_PAYLOAD) as u64)),
                };
                // With a bad first payload the caller tries the second copy on its own.
                let content = first.as_ref().and_then(|payload| decode_hard_state(payload)).map(Content::HardState);
                content.map(|content| (content, healed)).ok_or(Flaw::Bad("hard state is damaged"))
            }
            RecordKind::HardState => Err(Flaw::Bad("the second copy of a hard state without the first")),
            RecordKind::SyncPoint => whole((prefix.payload_len == 0).then_some(Content::SyncPoint)),
            RecordKind::Reset => {
                whole(self.small(prefix)?.as_ref().and_then(|payload| decode_reset(payload)).map(Content::Reset))
            }
            RecordKind::Trailer => {
                whole(self.small(prefix)?.as_ref().and_then(|payload| decode_trailer(payload)).map(Content::Trailer))
            }
            RecordKind::Footer => {
                let at = prefix.position + PREFIX_BYTES as u64;
                let payload = self.bytes(at, prefix.payload_len as usize)?;
                let intact = crc32fast::hash(payload) == prefix.body_crc;
                whole(intact.then(|| Footer::decode(payload, at)).flatten().map(Content::Footer))
            }
        })
    }

    fn frame(&mut self, prefix: &Prefix) -> io::Result<Result<Header, Flaw>> {
        let bytes = self.bytes(prefix.position + PREFIX_BYTES as u64, prefix.payload_len as usize)?;
        let header = match decode_header(bytes) {
            Ok(header) => header,
            Err(FrameError::NewerVersion { seen, .. }) => return Ok(Err(Flaw::Newer(seen.into()))),
            Err(FrameError::UnknownFeature { .. }) => {
                return Ok(Err(Flaw::Newer(u32::from(graven_frame::FORMAT_VERSION) + 1)));
            }
            Err(_) => return Ok(Err(Flaw::Bad("frame header is damaged"))),
        };
        let same = header.frame_len() == prefix.payload_len as usize
            && header.body_crc == prefix.body_crc
            && head_crc(bytes) == prefix.head_crc;
        Ok(if !same {
            Err(Flaw::Bad("another frame than its record says"))
        } else if bytes.len() != header.frame_len()
            || (crc32fast::hash(&bytes[HEADER_BYTES..]) != header.body_crc && !is_planted(Bug::LengthBeforeCrc))
        {
            Err(Flaw::Bad("frame body is damaged"))
        } else {
            Ok(header)
        })
    }

    fn small(&mut self, prefix: &Prefix) -> io::Result<Option<[u8; SMALL_PAYLOAD]>> {
        if prefix.payload_len as usize != SMALL_PAYLOAD {
            return Ok(None);
        }
        let payload = self.bytes(prefix.position + PREFIX_BYTES as u64, SMALL_PAYLOAD)?.first_chunk().copied();
        Ok(payload.filter(|payload| crc32fast::hash(payload) == prefix.body_crc))
    }

    fn second_copy(&mut self, first: &Prefix) -> io::Result<bool> {
        let second = twin_of(first.position);
        let Some(PrefixFound::Good(prefix)) = self.bytes(second, PREFIX_BYTES)?.first_chunk().map(Prefix::decode)
        else {
            return Ok(false);
        };
        let expected = Prefix { copy: 1, position: second, ..*first };
        Ok(prefix == expected && self.small(&prefix)?.is_some())
    }

    /// Searches every boundary behind `at` to the end of the file.
    pub(crate) fn behind(&mut self, at: u64) -> io::Result<Behind> {
        let mut behind = Behind { used_to: at, ours_to: at, ..Behind::default() };
        let file_end = self.len;
        let mut next = at;
        while next < self.len {
            let (segment, salt) = (self.segment, self.salt);
            let bytes = self.bytes(next, WINDOW_BYTES)?;
            if bytes.is_empty() {
                break;
            }
            let len = bytes.len();
            if !is_zero(bytes) {
                let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                behind.used_to = next + used as u64;
                let mut entries = Vec::new();
                for (step, place) in bytes.chunks(BOUNDARY as usize).enumerate() {
                    let position = next + step as u64 * BOUNDARY;
                    if !Prefix::looks_like(place) {
                        continue;
                    }
                    let Some(PrefixFound::Good(prefix)) = place.first_chunk().map(Prefix::decode) else { continue };
                    if prefix.segment != segment
                        || (salt.is_some_and(|salt| salt != prefix.salt) && !is_planted(Bug::SaltForgotten))
                        || prefix.position != position
                    {
                        behind.stale |= prefix.position == position;
                        continue;
                    }
                    behind.ours_to = behind.ours_to.max(prefix.end().min(file_end));
                    if position == at {
                        continue;
                    }
                    behind.next = behind.next.or(Some(position));
                    behind.watermark = behind.watermark.max(prefix.watermark);
                    if prefix.kind == RecordKind::Frame && entries.is_empty() {
                        entries.push(position);
                    }
                }
                if let (None, Some(entry)) = (behind.next_entry, entries.first()) {
                    let head = self.bytes(entry + PREFIX_BYTES as u64, HEADER_BYTES)?;
                    behind.next_entry = decode_header(head).ok();
                }
            }
            next += len as u64;
        }
        Ok(behind)
    }

    /// The first whole record of ours behind `at` and before `to`. A second copy of a hard state counts, whose first one is gone; the
    /// trailer does not.
    pub(crate) fn next_good(&mut self, at: u64, to: u64) -> io::Result<Option<NextGood>> {
        let mut next = at + BOUNDARY;
        while next < to {
            let bytes = self.bytes(next, WINDOW_BYTES)?;
            let len = bytes.len() as u64;
            let mut candidates = Vec::new();
            for (step, place) in bytes.chunks(BOUNDARY as usize).enumerate() {
                let position = next + step as u64 * BOUNDARY;
                if position >= to || !Prefix::looks_like(place) {
                    continue;
                }
                if let Some(PrefixFound::Good(prefix)) = place.first_chunk().map(Prefix::decode)
                    && prefix.position == position
                    && prefix.kind != RecordKind::Trailer
                {
                    candidates.push(prefix);
                }
            }
            for prefix in candidates {
                if !self.is_ours(&prefix) {
                    continue;
                }
                if prefix.kind == RecordKind::HardState && prefix.copy == 1 {
                    if let Some(hard_state) =
                        self.small(&prefix)?.as_ref().and_then(|payload| decode_hard_state(payload))
                    {
                        return Ok(Some(NextGood::SecondCopy(prefix, hard_state)));
                    }
                } else if let Probe::Good(_) = self.probe(prefix.position)? {
                    return Ok(Some(NextGood::Record(prefix.position)));
                }
            }
            if len == 0 {
                break;
            }
            next += len.next_multiple_of(BOUNDARY);
        }
        Ok(None)
    }

    /// Records of this segment in a file without its opening, and the byte behind what a first write into it may have left.
    pub(crate) fn records(&mut self) -> io::Result<(RecordsIn, u64)> {
        let whole = self.len;
        let start = OPENING_BYTES.min(whole);
        self.len = whole.min(NEAR_START);
        let near = self.behind(start);
        self.len = whole;
        if near?.ours_to <= start {
            return Ok((RecordsIn::None, 0));
        }
        let behind = self.behind(start)?;
        // The first one is not among those behind it; what its watermark says, theirs say as well, unless it is alone.
        let first = match self.bytes(start, PREFIX_BYTES)?.first_chunk().map(Prefix::decode) {
            Some(PrefixFound::Good(prefix)) if matches!(self.place(&prefix, start), Place::Ours) => prefix.watermark,
            _ => 0,
        };
        let proven = behind.watermark.max(first) > 0 && !is_planted(Bug::LostOpeningCut);
        Ok((if proven { RecordsIn::Proven } else { RecordsIn::Unproven }, behind.cut_to(start)))
    }
}

/// What [`Scanner::next_good`] found.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NextGood {
    /// A record at this place.
    Record(u64),
    /// What is left of a hard state.
    SecondCopy(Prefix, HardState),
}

impl NextGood {
    /// Where it stands.
    pub(crate) fn position(&self) -> u64 {
        match self {
            NextGood::Record(position) => *position,
            NextGood::SecondCopy(prefix, _) => prefix.position,
        }
    }
}

/// Records start right behind the opening; where the first sixteen blocks hold none there are none.
const NEAR_START: u64 = 64 << 10;

/// The range of bytes that were wrong and did not matter.
type Healed = Option<(u64, u64)>;

/// What is wrong with the content of a record whose prefix is right.
enum Flaw {
    Bad(&'static str),
    Newer(u32),
}

enum Place {
    Ours,
    Stale,
    Moved,
}

fn record(prefix: &Prefix, end: u64, content: Content, healed: Healed) -> Record {
    Record {
        position: prefix.position,
        end,
        watermark: prefix.watermark,
        known_commit: prefix.known_commit,
        prefix: *prefix,
        content,
        healed,
    }
}
