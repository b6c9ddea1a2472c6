//! Entries that follow each other, and logs to put them in.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use bytes::Bytes;
use graven_frame::{Body, Chain, Frame, GroupBuilder, GroupHeaderSpec, HeaderSpec, Kind};
use graven_wal::sim::SimDisk;
use graven_wal::{Disk, Identity, LogBase, LogReader, Options, Wal};

pub(crate) const IDENTITY: Identity = Identity { cluster: 0xC1, node: 1, incarnation: 0x1AC };

pub(crate) fn options() -> Options {
    Options { segment_bytes: 16 << 10, ..Options::default() }
}

/// The entry behind `before`.
pub(crate) fn control(before: &LogBase, term: u64, kind: Kind, body: &'static [u8]) -> Frame {
    let body = Body::from(Bytes::from_static(body));
    let spec = HeaderSpec {
        kind,
        term,
        index: before.index + 1,
        base_offset: before.next_offset,
        count: 0,
        timestamp_ms: before.timestamp_ms + 1,
    };
    let crc = body.crc();
    Frame::seal(spec, before.chain, body, crc)
}

/// A records entry behind `before` with one record of `len` bytes.
pub(crate) fn records(before: &LogBase, term: u64, len: usize) -> Frame {
    let mut builder = GroupBuilder::new();
    let fill = (before.index as u8).wrapping_mul(7).wrapping_add(term as u8);
    builder.push(b"", &vec![fill; len]).expect("small record");
    let group = builder.finish(GroupHeaderSpec::default());
    let spec = HeaderSpec {
        kind: Kind::Records,
        term,
        index: before.index + 1,
        base_offset: before.next_offset,
        count: 1,
        timestamp_ms: before.timestamp_ms + 1,
    };
    Frame::seal(spec, before.chain, group.body().clone(), group.crc())
}

pub(crate) fn first() -> Frame {
    control(&LogBase { chain: Chain::START, ..LogBase::default() }, 1, Kind::Membership, b"one voter")
}

pub(crate) fn base(frame: &Frame) -> LogBase {
    LogBase::after(frame.header())
}

/// A new log with its first entry, open.
pub(crate) fn new_log(disk: &SimDisk) -> Wal<SimDisk> {
    Wal::create(disk.clone(), IDENTITY, options(), &[first()]).expect("empty disk");
    Wal::open(disk.clone(), options()).expect("just created").0
}

/// Appends `count` records entries of `len` bytes and returns them.
pub(crate) fn grow<D: Disk>(wal: &mut Wal<D>, count: usize, len: usize) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut before = wal.tail();
    for _ in 0..count {
        let frame = records(&before, before.term, len);
        before = base(&frame);
        frames.push(frame);
    }
    wal.append(&frames).expect("room");
    frames
}

/// All entries, each verified against the one before.
pub(crate) fn read_all(reader: &LogReader) -> Vec<Frame> {
    let (first, last) = (reader.first_index(), reader.last_index());
    if last < first {
        return Vec::new();
    }
    let frames = reader.frames(first, last, usize::MAX).expect("readable");
    if let Some(missing) = (first + frames.len() as u64..=last).next() {
        panic!("entry {missing} of {first}..={last}: {:?}", reader.frame(missing));
    }
    for pair in frames.windows(2) {
        pair[1].verify(Some(pair[0].header().chain)).expect("intact");
    }
    frames
}

/// SplitMix64, so that a seed means the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }
}
