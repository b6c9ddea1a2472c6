//! Where bytes from outside come in, as functions that a fuzzer or a property test can call: they must neither panic nor
//! take more memory than their limits, whatever the bytes are.
//!
//! Called by the targets in `fuzz/` and by the tests of this crate; of no use to anybody else.

use bytes::Bytes;
use graven_frame::{Body, Frame, Group, HeaderSpec, Kind, decode_header};

use crate::format::{
    FORMAT_VERSION, Footer, OPENING_BYTES, Opening, OpeningFound, POINT_BYTES, PREFIX_BYTES, Point, Prefix, PrefixFound,
};
use crate::sim::SimDisk;
use crate::types::{HardState, Identity, LogBase, Options};
use crate::{Wal, inspect};

/// A frame as it comes from a peer, a client or a disk.
pub fn frame(bytes: &[u8]) {
    let _ = decode_header(bytes);
    let owned = Bytes::copy_from_slice(bytes);
    if let Ok((frame, used)) = Frame::parse(owned.clone()) {
        assert!(used <= bytes.len() && used == frame.encoded_len(), "a frame ends inside its bytes");
        if frame.verify(None).is_ok() && frame.check_groups().is_ok() && frame.header().kind == Kind::Records {
            let records = frame.records().map_while(Result::ok).count();
            assert_eq!(records as u32, frame.header().count, "groups that were checked hold what the header says");
        }
        let _ = frame.records().take_while(Result::is_ok).count();
    }
    // In two pieces as well, as it may arrive.
    let (one, two) = owned.split_at(bytes.len() / 3);
    let pieces = Body::from_chunks(vec![Bytes::copy_from_slice(one), Bytes::copy_from_slice(two)]);
    let (whole, split) = (Group::parse(Body::from(owned.clone())), Group::parse(pieces));
    assert_eq!(whole.is_ok(), split.is_ok(), "chunks do not matter");
    if let Ok(group) = whole {
        let _ = group.records().count();
    }
}

/// A record prefix, and the payloads that stand behind one.
pub fn prefix(bytes: &[u8]) {
    if let Some(Ok(block)) = bytes.get(..PREFIX_BYTES).map(TryInto::try_into)
        && let PrefixFound::Good(prefix) = Prefix::decode(block)
    {
        assert_eq!(Prefix::decode(&prefix.encode()), PrefixFound::Good(prefix), "read as it was written");
        let _ = (prefix.position.checked_add(u64::from(prefix.payload_len)), prefix.second_copy_of(0));
    }
    if let Some(footer) = Footer::decode(bytes, 0) {
        let items = footer.runs.len() * 16 + footer.memberships.len() * 8 + footer.points.len() * 32;
        assert!(items <= bytes.len(), "a footer holds no more than its bytes");
        let points: Vec<Point> = bytes[bytes.len() - footer.points.len() * POINT_BYTES..]
            .chunks_exact(POINT_BYTES)
            .filter_map(|bytes| Some(Point::decode(bytes.first_chunk()?)))
            .collect();
        assert_eq!(Footer::decode(&footer.encode(&points), 0), Some(footer), "read as it was written");
    }
}

/// The first block of a segment.
pub fn opening(bytes: &[u8]) {
    match Opening::decode(bytes) {
        OpeningFound::Good(opening) => {
            assert_eq!(Opening::decode(&opening.encode()), OpeningFound::Good(opening), "read as it was written");
        }
        OpeningFound::Newer(seen) => assert!(seen > FORMAT_VERSION),
        OpeningFound::Zero => assert!(bytes.iter().take(OPENING_BYTES as usize).all(|byte| *byte == 0)),
        OpeningFound::Bad => {}
    }
}

/// A data directory: a small log, changed as the bytes say. What opens is read, appended to and opened again.
pub fn recovery(bytes: &[u8]) {
    let Some(disk) = small_log() else { return };
    change(&disk, bytes);
    let options = Options { segment_bytes: 16 << 10, ..Options::default() };
    let _ = inspect::verify(&disk);
    if let Ok(entries) = inspect::entries(&disk) {
        // A walk goes forward: the files hold no more entries than this.
        assert!(entries.take(10_000).count() < 10_000, "the listing comes to an end");
    }
    let Ok((mut wal, recovered)) = Wal::open(disk.clone(), options.clone()) else { return };
    let reader = wal.reader();
    let readable = |index: u64| reader.frame(index).is_ok_and(|frame| frame.verify(None).is_ok());
    let span = recovered.first_index..=recovered.last_index;
    let all = span.clone().take(100).filter(|index| readable(*index)).count();
    let frame = noop(&wal.tail());
    let appended = frame.is_some_and(|frame| wal.append(&[frame]).is_ok() && wal.sync().is_ok());
    drop(wal);
    let (wal, again) = match Wal::open(disk.crash_keeping(|_| false), options) {
        Ok(opened) => opened,
        Err(error) => panic!("what was opened once opens again, not: {error}; {recovered:?}"),
    };
    let reader = wal.reader();
    let readable = |index: u64| reader.frame(index).is_ok_and(|frame| frame.verify(None).is_ok());
    assert_eq!(again.last_index, recovered.last_index + u64::from(appended), "{recovered:?}");
    assert_eq!(span.take(100).filter(|index| readable(*index)).count(), all, "{recovered:?}");
}

fn noop(before: &LogBase) -> Option<Frame> {
    let (index, term) = (before.index.checked_add(1)?, before.term.max(1));
    let timestamp_ms = before.timestamp_ms;
    let spec = HeaderSpec { kind: Kind::Noop, term, index, base_offset: before.next_offset, count: 0, timestamp_ms };
    let body = Body::default();
    let crc = body.crc();
    Some(Frame::seal(spec, before.chain, body, crc))
}

/// Three segments, a hard state, control entries.
fn small_log() -> Option<SimDisk> {
    let disk = SimDisk::new(1);
    let options = Options { segment_bytes: 16 << 10, ..Options::default() };
    let identity = Identity { cluster: 1, node: 1, incarnation: 1 };
    Wal::create(disk.clone(), identity, options.clone(), &[noop(&LogBase::default())?]).ok()?;
    let (mut wal, _) = Wal::open(disk.clone(), options).ok()?;
    for term in 2..8 {
        wal.append(&[noop(&wal.tail())?]).ok()?;
        wal.set_hard_state(HardState { term, vote: Some(1) }).ok()?;
        wal.append(&[noop(&wal.tail())?]).ok()?;
        wal.sync().ok()?;
        wal.note_commit(wal.last_index());
    }
    wal.close().ok()?;
    Some(disk)
}

/// Writes pieces of `bytes` into the files: each is a file's number, a place in units of 16 bytes, a length, and whether the
/// sums around it are made right again, as somebody who knows the format would.
fn change(disk: &SimDisk, mut bytes: &[u8]) {
    let names: Vec<String> = disk.names().into_iter().filter(|name| name.ends_with(".seg")).collect();
    while let [file, low, high, how, rest @ ..] = bytes {
        let at = usize::from(u16::from_le_bytes([*low, *high])) * 16;
        let len = usize::from(how >> 2).min(rest.len());
        let (piece, behind) = rest.split_at(len);
        let name = &names[usize::from(*file) % names.len()];
        disk.edit(name, |all| match how & 3 {
            3 => all.truncate(at),
            kind => {
                let end = (at + piece.len()).min(all.len());
                if at < end {
                    all[at..end].copy_from_slice(&piece[..end - at]);
                    if kind > 0 {
                        mend(all, at);
                    }
                }
            }
        });
        bytes = behind;
    }
}

/// Makes the sum of the opening, or of the prefix at this place, right.
fn mend(all: &mut [u8], at: usize) {
    let (start, len) = match at {
        at if at < OPENING_BYTES as usize => (0, OPENING_BYTES as usize - 4),
        at => (at / PREFIX_BYTES * PREFIX_BYTES, PREFIX_BYTES - 4),
    };
    if let Some(block) = all.get_mut(start..start + len + 4) {
        let crc = crc32fast::hash(&block[..len]);
        block[len..].copy_from_slice(&crc.to_le_bytes());
    }
}
