//! The codec from outside: what goes in comes out, and what was changed on the way is noticed.

use bytes::Bytes;
use graven_frame::{
    Body, Chain, FORMAT_VERSION, Frame, FrameError, GROUP_HEADER_BYTES, Group, GroupBuilder, GroupHeaderSpec,
    HEADER_BYTES, HeaderSpec, Kind, MAX_BODY_BYTES, MAX_GROUP_BYTES, MAX_META_BYTES, MAX_RECORD_BYTES, RecordError,
    combine_crc, decode_header,
};
use proptest::prelude::*;

fn group(records: &[(Vec<u8>, Vec<u8>)], spec: GroupHeaderSpec) -> Group {
    let mut builder = GroupBuilder::new();
    for (meta, payload) in records {
        builder.push(meta, payload).expect("small records");
    }
    builder.finish(spec)
}

fn records_frame(groups: &[Group], index: u64, base_offset: u64, prev: Chain) -> Frame {
    let chunks = groups.iter().flat_map(|group| group.body().chunks().to_vec()).collect();
    let crc = groups.iter().fold(crc32fast::hash(b""), |crc, group| combine_crc(crc, group.crc(), group.body().len()));
    let count = groups.iter().map(|group| group.header().count).sum();
    Frame::seal(
        HeaderSpec { kind: Kind::Records, term: 3, index, base_offset, count, timestamp_ms: 1_000 },
        prev,
        Body::from_chunks(chunks),
        crc,
    )
}

fn small_frame() -> Frame {
    let one = group(
        &[(vec![], b"hello".to_vec()), (b"m".to_vec(), vec![])],
        GroupHeaderSpec { session: Some(4), sequence: Some(1), ..Default::default() },
    );
    let two = group(
        &[(vec![], b"again".to_vec())],
        GroupHeaderSpec { expected_offset: Some(2), fence: Some(9), ..Default::default() },
    );
    records_frame(&[one, two], 7, 0, Chain(11))
}

fn encoded(frame: &Frame) -> Vec<u8> {
    [frame.head().clone(), frame.body().concat()].concat()
}

/// Rewrites bytes of a header and makes its CRC hold again, as a writer of another version would.
fn patched(frame: &Frame, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut head = frame.head().to_vec();
    head[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32fast::hash(&head[..HEADER_BYTES - 4]);
    head[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    head
}

#[test]
fn frame_survives_encoding_and_names_its_records() {
    let frame = small_frame();
    let (parsed, used) = Frame::parse(Bytes::from(encoded(&frame))).expect("own bytes");
    assert_eq!(used, frame.encoded_len());
    assert_eq!(parsed, frame);
    parsed.verify(Some(Chain(11))).expect("unchanged");
    parsed.check_groups().expect("adds up");
    let records: Vec<_> = parsed.records().map(Result::unwrap).collect();
    assert_eq!(records.iter().map(|r| r.offset).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(records[0].payload, "hello");
    assert_eq!(records[1].meta, "m");
    assert_eq!(records[2].payload, "again");
    assert_eq!(parsed.next_offset(), 3);
    let groups: Vec<_> = parsed.groups().map(Result::unwrap).collect();
    assert_eq!(groups[0].header().session, Some(4));
    assert_eq!(groups[1].header().expected_offset, Some(2));
    assert_eq!(groups[1].header().fence, Some(9));
}

#[test]
fn every_flipped_bit_of_a_small_frame_is_noticed() {
    let bytes = encoded(&small_frame());
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let noticed = match Frame::parse(Bytes::from(changed)) {
            Err(_) => true,
            Ok((frame, _)) => frame.verify(Some(Chain(11))).is_err(),
        };
        assert!(noticed, "bit {bit} flipped unnoticed");
    }
}

#[test]
fn every_truncation_is_noticed() {
    let bytes = Bytes::from(encoded(&small_frame()));
    for len in 0..bytes.len() {
        assert!(matches!(Frame::parse(bytes.slice(..len)), Err(FrameError::Truncated { .. })), "cut at {len}");
    }
}

#[test]
fn zeroes_are_no_frame() {
    assert_eq!(decode_header(&[0; HEADER_BYTES]), Err(FrameError::Magic));
}

#[test]
fn newer_version_and_unknown_features_are_refused_by_name() {
    let frame = small_frame();
    let newer = FORMAT_VERSION + 1;
    assert_eq!(
        decode_header(&patched(&frame, 4, &[newer])),
        Err(FrameError::NewerVersion { seen: newer, known: FORMAT_VERSION })
    );
    assert_eq!(
        decode_header(&patched(&frame, 8, &(1_u32 << 5).to_le_bytes())),
        Err(FrameError::UnknownFeature { bit: 5 })
    );
    let optional =
        decode_header(&patched(&frame, 12, &(1_u32 << 5).to_le_bytes())).expect("optional features may be ignored");
    assert_eq!(optional.optional_features, 1 << 5);
}

#[test]
fn claims_of_the_header_are_bounded() {
    let frame = small_frame();
    let too_large = (MAX_BODY_BYTES as u32 + 1).to_le_bytes();
    assert!(matches!(decode_header(&patched(&frame, 16, &too_large)), Err(FrameError::TooLarge { .. })));
    assert!(matches!(decode_header(&patched(&frame, 20, &u32::MAX.to_le_bytes())), Err(FrameError::Malformed { .. })));
    for (at, bytes) in [
        (4, vec![0]),
        (5, vec![0]),
        (5, vec![7]),
        (6, vec![2]),
        (7, vec![1]),
        (20, vec![0; 4]),
        (24, vec![0; 8]),
        (32, vec![0; 8]),
        (40, vec![0xff; 8]),
        (60, vec![1]),
        (72, vec![1]),
        (91, vec![1]),
    ] {
        assert!(matches!(decode_header(&patched(&frame, at, &bytes)), Err(FrameError::Malformed { .. })), "byte {at}");
    }
}

#[test]
fn claims_of_a_group_are_bounded() {
    let good = group(&[(b"me".to_vec(), b"payload".to_vec())], GroupHeaderSpec::default()).body().concat();
    let change = |at: usize, number: u32| {
        let mut bytes = good.to_vec();
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        Group::parse(Body::from(Bytes::from(bytes)))
    };
    assert!(matches!(change(0, u32::MAX), Err(FrameError::TooLarge { .. })));
    assert!(matches!(change(0, good.len() as u32 - 1), Err(FrameError::Malformed { .. })));
    assert!(matches!(change(0, good.len() as u32 + 1), Err(FrameError::Truncated { .. })));
    assert!(matches!(change(4, 0), Err(FrameError::Malformed { .. })));
    assert!(matches!(change(4, 2), Err(FrameError::Malformed { .. } | FrameError::Truncated { .. })));
    assert!(matches!(change(8, 1), Err(FrameError::Malformed { .. })), "a session without a sequence");
    assert!(matches!(change(40, 1), Err(FrameError::Malformed { .. })), "reserved bytes");
    assert!(matches!(change(GROUP_HEADER_BYTES, MAX_RECORD_BYTES as u32 + 1), Err(FrameError::TooLarge { .. })));
    assert!(matches!(change(GROUP_HEADER_BYTES, 8), Err(FrameError::Truncated { .. })));
    assert!(matches!(change(GROUP_HEADER_BYTES, 6), Err(FrameError::Malformed { .. })));
    assert!(matches!(change(GROUP_HEADER_BYTES + 4, MAX_META_BYTES as u32 + 1), Err(FrameError::TooLarge { .. })));
}

#[test]
fn header_that_counts_other_records_than_its_groups_is_noticed() {
    let one = group(&[(vec![], b"a".to_vec()), (vec![], b"eight more".to_vec())], GroupHeaderSpec::default());
    for count in [1, 3] {
        let spec = HeaderSpec { kind: Kind::Records, term: 1, index: 1, base_offset: 5, count, timestamp_ms: 0 };
        let frame = Frame::seal(spec, Chain::START, one.body().clone(), one.crc());
        assert!(frame.check_groups().is_err());
        assert!(frame.records().any(|record| record.is_err()));
    }
}

#[test]
fn largest_record_fits_and_a_larger_one_is_refused() {
    let mut builder = GroupBuilder::new();
    let (meta, payload) = (vec![1; MAX_META_BYTES], vec![2; MAX_RECORD_BYTES + 1]);
    assert_eq!(
        builder.push(&[], &payload),
        Err(RecordError::PayloadTooLarge { size: payload.len(), limit: MAX_RECORD_BYTES })
    );
    assert!(matches!(builder.push(&vec![0; MAX_META_BYTES + 1], b""), Err(RecordError::MetaTooLarge { .. })));
    assert_eq!(builder.count(), 0);
    builder.push(&meta, &payload[1..]).expect("the largest record with the largest meta");
    assert!(matches!(builder.push(&meta, b""), Err(RecordError::GroupFull { .. })));
    assert!(builder.len_bytes() <= MAX_GROUP_BYTES);
    let group = builder.finish(GroupHeaderSpec::default());
    assert_eq!(Group::parse(group.body().clone()).expect("own bytes").records().len(), 1);
}

#[test]
fn builder_is_reusable() {
    let mut builder = GroupBuilder::new();
    for payload in [b"one".as_slice(), b"two"] {
        builder.push(b"", payload).unwrap();
        let group = builder.finish(GroupHeaderSpec::default());
        assert_eq!(group.records().map(|r| r.payload).collect::<Vec<_>>(), [payload]);
    }
}

#[test]
fn chain_depends_on_everything_before() {
    let frame = small_frame();
    assert_eq!(frame.verify(Some(Chain(12))), Err(FrameError::Chain { index: 7 }));
    let other = group(&[(vec![], b"other".to_vec())], GroupHeaderSpec::default());
    let (a, b) = (
        records_frame(std::slice::from_ref(&other), 8, 3, frame.header().chain),
        records_frame(&[other], 8, 3, Chain(1)),
    );
    assert_ne!(a.header().chain, b.header().chain);
    a.verify(Some(frame.header().chain)).expect("follows");
}

#[test]
fn control_entry_has_no_groups_whatever_its_body() {
    let body = Body::from(Bytes::from_static(b"opaque"));
    let crc = body.crc();
    let frame = Frame::seal(
        HeaderSpec { kind: Kind::Membership, term: 1, index: 1, base_offset: 4, count: 0, timestamp_ms: 0 },
        Chain::START,
        body,
        crc,
    );
    assert_eq!(frame.groups().count() + frame.records().count(), 0);
    frame.check_groups().expect("nothing to check");
    assert_eq!(frame.next_offset(), 4);
}

#[test]
fn group_with_another_crc_is_refused() {
    let group = group(&[(vec![], b"a".to_vec())], GroupHeaderSpec::default());
    assert!(Group::parse_checked(group.body().clone(), group.crc()).is_ok());
    assert!(matches!(Group::parse_checked(group.body().clone(), group.crc() ^ 1), Err(FrameError::GroupCrc)));
}

fn records_strategy() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    prop::collection::vec((prop::collection::vec(any::<u8>(), 0..12), prop::collection::vec(any::<u8>(), 0..60)), 1..8)
}

fn number() -> impl Strategy<Value = Option<u64>> {
    prop::option::of(1..u64::MAX)
}

/// Cuts bytes into chunks at pseudo-random places.
fn chunked(bytes: &Bytes, cuts: &[prop::sample::Index]) -> Body {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
    at.sort_unstable();
    Body::from_chunks(at.windows(2).map(|pair| bytes.slice(pair[0]..pair[1])).collect())
}

proptest! {
    #[test]
    fn groups_and_frames_round_trip_in_any_chunks(
        batches in prop::collection::vec((records_strategy(), number(), number(), number(), number()), 1..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let groups: Vec<Group> = batches.iter().map(|(records, session, sequence, expected_offset, fence)| {
            let both = session.zip(*sequence);
            group(records, GroupHeaderSpec { session: both.map(|b| b.0), sequence: both.map(|b| b.1), expected_offset: *expected_offset, fence: *fence })
        }).collect();
        let whole = records_frame(&groups, 2, 100, Chain(5));
        prop_assert_eq!(whole.body().crc(), crc32fast::hash(&whole.body().concat()));
        prop_assert_eq!(whole.header().body_crc, whole.body().crc());

        let head: [u8; HEADER_BYTES] = whole.head()[..].try_into().unwrap();
        let frame = Frame::from_parts(&head, chunked(&whole.body().concat(), &cuts)).unwrap();
        prop_assert_eq!(&frame, &whole);
        prop_assert!(frame.verify(Some(Chain(5))).is_ok());
        prop_assert!(frame.check_groups().is_ok());
        for (read, written) in frame.groups().zip(&groups) {
            let read = read.unwrap();
            prop_assert_eq!(read.header(), written.header());
            prop_assert_eq!(read.crc(), written.crc());
        }
        let read: Vec<_> = frame.records().map(Result::unwrap).collect();
        let written: Vec<_> = batches.iter().flat_map(|batch| &batch.0).collect();
        prop_assert_eq!(read.len(), written.len());
        for (at, (read, (meta, payload))) in read.iter().zip(written).enumerate() {
            prop_assert_eq!(read.offset, 100 + at as u64);
            prop_assert_eq!(&read.meta[..], &meta[..]);
            prop_assert_eq!(&read.payload[..], &payload[..]);
        }
    }

    #[test]
    fn slices_are_the_same_across_chunk_borders(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..9),
        ends in any::<(prop::sample::Index, prop::sample::Index)>(),
    ) {
        let bytes = Bytes::from(bytes);
        let body = chunked(&bytes, &cuts);
        let (a, b) = (ends.0.index(bytes.len() + 1), ends.1.index(bytes.len() + 1));
        let range = a.min(b)..a.max(b);
        prop_assert_eq!(body.slice(range.clone()), bytes.slice(range.clone()));
        prop_assert_eq!(body.share(range.clone()).concat(), bytes.slice(range));
        prop_assert_eq!(body.len(), bytes.len());
        prop_assert_eq!(body.crc(), crc32fast::hash(&bytes));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Frame::parse(Bytes::from(bytes.clone()));
        let _ = Group::parse(Body::from(Bytes::from(bytes.clone())));
        let crc = crc32fast::hash(&bytes);
        if bytes.len() >= GROUP_HEADER_BYTES + 8 {
            let frame = Frame::seal(HeaderSpec { kind: Kind::Records, term: 1, index: 1, base_offset: 0, count: 1, timestamp_ms: 0 }, Chain::START, Body::from(Bytes::from(bytes)), crc);
            let _ = frame.records().count() + frame.groups().count();
        }
    }
}
