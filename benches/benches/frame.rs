//! What the hot path does to every byte: sealing a frame around groups, parsing and verifying it.

#![allow(missing_docs, reason = "criterion's macros make public items")]

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use graven_frame::{Body, Chain, Frame, Group, GroupBuilder, GroupHeaderSpec, HeaderSpec, Kind, combine_crc};

const RECORD_BYTES: usize = 256;
const RECORDS: usize = 1000;

fn group(records: usize) -> Group {
    let mut builder = GroupBuilder::new();
    for _ in 0..records {
        builder.push(&[], &[7; RECORD_BYTES]).expect("small");
    }
    builder.finish(GroupHeaderSpec { session: Some(1), sequence: Some(1), ..GroupHeaderSpec::default() })
}

fn seal(groups: &[Group]) -> Frame {
    let mut chunks = Vec::with_capacity(groups.len());
    let mut crc = 0;
    for group in groups {
        crc = if chunks.is_empty() { group.crc() } else { combine_crc(crc, group.crc(), group.body().len()) };
        chunks.extend(group.body().chunks().iter().cloned());
    }
    let count = groups.iter().map(|group| group.header().count).sum();
    let spec = HeaderSpec { kind: Kind::Records, term: 1, index: 1, base_offset: 0, count, timestamp_ms: 0 };
    Frame::seal(spec, Chain::START, Body::from_chunks(chunks), crc)
}

fn joined(frame: &Frame) -> Bytes {
    let mut bytes = BytesMut::from(&frame.head()[..]);
    frame.body().chunks().iter().for_each(|chunk| bytes.extend_from_slice(chunk));
    bytes.freeze()
}

fn frames(criterion: &mut Criterion) {
    let mut bench = criterion.benchmark_group("frame");
    bench.throughput(Throughput::Bytes((RECORDS * RECORD_BYTES) as u64));
    bench.bench_function("encode one group of 1000 records of 256 B", |bench| bench.iter(|| group(RECORDS)));
    let small: Vec<Group> = (0..RECORDS).map(|_| group(1)).collect();
    // As when they have been verified on receipt.
    let checked: u64 = small.iter().map(|group| u64::from(group.crc())).sum();
    assert_ne!(checked, 0);
    bench.bench_function("seal 1000 groups of one record", |bench| bench.iter(|| seal(&small)));
    let one = joined(&seal(&[group(RECORDS)]));
    bench.bench_function("parse and verify one group of 1000", |bench| {
        bench.iter_batched(
            || one.clone(),
            |bytes| {
                let (frame, _) = Frame::parse(bytes).expect("whole");
                frame.verify(Some(Chain::START)).expect("intact");
                frame.records().count()
            },
            BatchSize::SmallInput,
        );
    });
    bench.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
