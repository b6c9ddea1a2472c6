//! The append stream's bytes, laid out by hand: they are the hot path, and never pass through a serializer.
//!
//! Client to node, after the kind byte, again and again: [`GROUP_PREFIX_BYTES`] of prefix, then the group.
//! Node to client, again and again: [`ANSWER_BYTES`] of answer, then its text if it has one. Little endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use graven_frame::{GROUP_HEADER_BYTES, MAX_GROUP_BYTES};

use super::{ErrorCode, Failure, LeaderView, Outcome};
use crate::wire;

/// Before each group: its length (u32) and the CRC32 of all its bytes (u32).
pub const GROUP_PREFIX_BYTES: usize = 8;
/// An answer: code u8, outcome u8, text length u16, count u32, session u64, sequence u64, three numbers u64.
pub const ANSWER_BYTES: usize = 48;
/// The longest text of an answer: a sentence, or a name and an address.
pub const MAX_ANSWER_TEXT_BYTES: usize = 1024;

/// What an append got: the same as the library's `Ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Offset of the first record.
    pub first: u64,
    /// Offset of the last record.
    pub last: u64,
    /// Number of records: `last - first + 1`.
    pub records: u64,
    /// The term in which they were committed.
    pub term: u64,
    /// Their time: milliseconds since 1970, given by the leader.
    pub timestamp: u64,
}

/// Why a group was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// This node does not lead; nothing was taken. The client goes on at the leader.
    NotLeader(LeaderView),
    /// The sequence number leaves a gap; nothing was taken. The client repeats from the first unanswered group.
    Gap {
        /// The sequence number that would have been right.
        expected: u64,
    },
    /// Nothing was taken, for a reason that passes by itself. The client repeats.
    Again,
    /// The group may or may not survive: leadership was lost. The client repeats at the new leader.
    Unsure,
    /// Final: the session cannot go on.
    Failed(Failure),
}

/// One answer on an append stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The group's session; 0 with sequence 0 when the answer is for the whole stream.
    pub session: u64,
    /// The group's sequence number.
    pub sequence: u64,
    /// What became of it.
    pub result: Result<Ack, Rejection>,
}

const CODE_ACK: u8 = 0;
const CODE_NOT_LEADER: u8 = 200;
const CODE_GAP: u8 = 201;
const CODE_AGAIN: u8 = 202;
const CODE_UNSURE: u8 = 203;
/// Which of the three numbers are details of a failure, in this order.
const DETAIL_KEYS: [&str; 3] = ["next_offset", "limit", "fence"];

/// Encodes the prefix of a group.
#[must_use]
pub fn encode_prefix(len: usize, crc: u32) -> [u8; GROUP_PREFIX_BYTES] {
    debug_assert!(len <= MAX_GROUP_BYTES, "groups are bounded when they are built");
    let mut bytes = [0; GROUP_PREFIX_BYTES];
    bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
    bytes[4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Decodes a prefix into length and CRC; `None` when no group can have this length.
#[must_use]
pub fn decode_prefix(bytes: [u8; GROUP_PREFIX_BYTES]) -> Option<(usize, u32)> {
    let mut bytes = &bytes[..];
    let len = bytes.get_u32_le() as usize;
    (GROUP_HEADER_BYTES..=MAX_GROUP_BYTES).contains(&len).then(|| (len, bytes.get_u32_le()))
}

/// Appends an answer's bytes to `out`.
pub fn encode_answer(answer: &Answer, out: &mut BytesMut) {
    let mut text = Bytes::new();
    let mut outcome = Outcome::Refused;
    let (code, count, numbers) = match &answer.result {
        // A group has at most u32::MAX records: its count field says so.
        Ok(ack) => (CODE_ACK, ack.records as u32, [ack.first, ack.term, ack.timestamp]),
        Err(Rejection::NotLeader(view)) => {
            // Names and addresses are bounded where they are configured. A view that does not fit is left out: the client
            // then waits for the one that is pushed.
            text = wire::encode::<MAX_ANSWER_TEXT_BYTES>(view).unwrap_or_default().into();
            (CODE_NOT_LEADER, 0, [view.term, 0, 0])
        }
        Err(Rejection::Gap { expected }) => (CODE_GAP, 0, [*expected, 0, 0]),
        Err(Rejection::Again) => (CODE_AGAIN, 0, [0; 3]),
        Err(Rejection::Unsure) => (CODE_UNSURE, 0, [0; 3]),
        Err(Rejection::Failed(failure)) => {
            outcome = failure.outcome;
            text = Bytes::copy_from_slice(failure.message.as_bytes());
            let number =
                ErrorCode::ALL.iter().position(|code| *code == failure.code).unwrap_or(ErrorCode::ALL.len() - 1);
            // Numbers travel plus one, zero is none.
            let numbers = DETAIL_KEYS.map(|key| failure.number(key).map_or(0, |number| number.saturating_add(1)));
            (number as u8 + 1, 0, numbers)
        }
    };
    let text = truncated(&text);
    out.reserve(ANSWER_BYTES + text.len());
    out.put_u8(code);
    out.put_u8(u8::from(outcome == Outcome::Unknown));
    out.put_u16_le(text.len() as u16);
    out.put_u32_le(count);
    out.put_u64_le(answer.session);
    out.put_u64_le(answer.sequence);
    numbers.iter().for_each(|number| out.put_u64_le(*number));
    out.put_slice(text);
}

/// Takes one answer from the front of `bytes`; `Ok(None)` when more bytes are needed.
///
/// # Errors
/// A sentence, when the bytes cannot be an answer.
pub fn decode_answer(bytes: &mut BytesMut) -> Result<Option<Answer>, &'static str> {
    if bytes.len() < ANSWER_BYTES {
        return Ok(None);
    }
    let text_len = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
    if text_len > MAX_ANSWER_TEXT_BYTES {
        return Err("the text of an answer is too long");
    }
    if bytes.len() < ANSWER_BYTES + text_len {
        return Ok(None);
    }
    let code = bytes.get_u8();
    let outcome = if bytes.get_u8() == 0 { Outcome::Refused } else { Outcome::Unknown };
    bytes.advance(2);
    let count = bytes.get_u32_le();
    let (session, sequence) = (bytes.get_u64_le(), bytes.get_u64_le());
    let numbers = [bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le()];
    let text = bytes.split_to(text_len);
    let result = match code {
        CODE_ACK => Ok(decode_ack(count, numbers)?),
        CODE_NOT_LEADER => {
            let unknown = LeaderView { term: numbers[0], ..LeaderView::default() };
            Err(Rejection::NotLeader(wire::decode::<MAX_ANSWER_TEXT_BYTES, _>(&text).unwrap_or(unknown)))
        }
        CODE_GAP => Err(Rejection::Gap { expected: numbers[0] }),
        CODE_AGAIN => Err(Rejection::Again),
        CODE_UNSURE => Err(Rejection::Unsure),
        number => {
            let code = number.checked_sub(1).and_then(|at| ErrorCode::ALL.get(usize::from(at)));
            let code = *code.ok_or("an answer has an unknown code")?;
            let mut failure = Failure::refused(code, String::from_utf8_lossy(&text));
            failure.outcome = outcome;
            for (key, number) in DETAIL_KEYS.iter().zip(numbers).filter(|(_, number)| *number > 0) {
                failure = failure.with(key, number - 1);
            }
            Err(Rejection::Failed(failure))
        }
    };
    Ok(Some(Answer { session, sequence, result }))
}

fn decode_ack(count: u32, [first, term, timestamp]: [u64; 3]) -> Result<Ack, &'static str> {
    let last = u64::from(count).checked_sub(1).and_then(|more| first.checked_add(more));
    let last = last.ok_or("an acknowledgement covers no record")?;
    Ok(Ack { first, last, records: u64::from(count), term, timestamp })
}

/// Cuts a text at a character border, so that it fits.
fn truncated(text: &[u8]) -> &[u8] {
    if text.len() <= MAX_ANSWER_TEXT_BYTES {
        return text;
    }
    let mut end = MAX_ANSWER_TEXT_BYTES;
    while end > 0 && text[end] & 0xC0 == 0x80 {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(result: Result<Ack, Rejection>) {
        let answer = Answer { session: 7, sequence: 9, result };
        let mut bytes = BytesMut::new();
        encode_answer(&answer, &mut bytes);
        let whole = bytes.clone();
        for cut in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..cut]);
            assert_eq!(decode_answer(&mut part), Ok(None), "cut at {cut}");
            assert_eq!(part.len(), cut, "an incomplete answer is left as it is");
        }
        assert_eq!(decode_answer(&mut bytes), Ok(Some(answer)));
        assert!(bytes.is_empty());
    }

    #[test]
    fn every_answer_survives_its_encoding() {
        round_trip(Ok(Ack { first: 5, last: 7, records: 3, term: 2, timestamp: 11 }));
        let view = LeaderView { term: 3, leader: Some("n2".to_owned()), address: Some("127.0.0.1:1".to_owned()) };
        round_trip(Err(Rejection::NotLeader(view)));
        round_trip(Err(Rejection::Gap { expected: 4 }));
        round_trip(Err(Rejection::Again));
        round_trip(Err(Rejection::Unsure));
        for code in ErrorCode::ALL {
            let failure = Failure::unknown(code, "what, where, what to do").with("next_offset", 0);
            round_trip(Err(Rejection::Failed(failure)));
        }
    }

    #[test]
    fn impossible_answers_and_prefixes_are_refused() {
        let mut no_record = BytesMut::zeroed(ANSWER_BYTES);
        assert!(decode_answer(&mut no_record).is_err());
        let mut unknown_code = BytesMut::zeroed(ANSWER_BYTES);
        unknown_code[0] = 199;
        assert!(decode_answer(&mut unknown_code).is_err());
        let mut long_text = BytesMut::zeroed(ANSWER_BYTES);
        long_text[2..4].copy_from_slice(&u16::MAX.to_le_bytes());
        assert!(decode_answer(&mut long_text).is_err());
        assert_eq!(decode_prefix(encode_prefix(MAX_GROUP_BYTES, 5)), Some((MAX_GROUP_BYTES, 5)));
        assert_eq!(decode_prefix([0; GROUP_PREFIX_BYTES]), None);
        assert_eq!(decode_prefix([0xFF; GROUP_PREFIX_BYTES]), None);
    }
}
