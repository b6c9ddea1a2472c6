//! Synced appends through the log, beside the same bytes written raw to an equally prepared file. The ratio is what counts.

#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use graven_frame::{Body, Chain, Frame, HeaderSpec, Kind};
use graven_wal::{Identity, Options, PrepareState, RealDisk, Wal};

const FILE_BYTES: u64 = 64 << 20;

fn control(index: u64, prev: Chain, body: &Bytes) -> Frame {
    let body = Body::from(body.clone());
    let crc = body.crc();
    let spec = HeaderSpec { kind: Kind::Snapshot, term: 1, index, base_offset: 0, count: 0, timestamp_ms: 0 };
    Frame::seal(spec, prev, body, crc)
}

fn raw_file(dir: &Path) -> File {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(dir.join("raw")).expect("a file");
    let zeroes = vec![0; 1 << 20];
    for at in 0..FILE_BYTES >> 20 {
        file.write_all_at(&zeroes, at << 20).expect("zeroes");
    }
    file.sync_all().expect("synced");
    file
}

fn appends(criterion: &mut Criterion) {
    // Not /tmp, which may be memory: the target directory is on a disk.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
    let raw = raw_file(dir.path());
    let mut raw_at = 0;
    let log = dir.path().join("log");
    std::fs::create_dir(&log).expect("a directory");
    let identity = Identity { cluster: 1, node: 1, incarnation: 1 };
    let first = control(1, Chain::START, &Bytes::from_static(b"first"));
    let mut chain = first.header().chain;
    Wal::create(RealDisk::open(&log), identity, Options::default(), &[first]).expect("created");
    let (mut wal, _) = Wal::open(RealDisk::open(&log), Options::default()).expect("opened");
    while wal.prepare(16 << 20).expect("prepared") == PrepareState::More {}

    let mut bench = criterion.benchmark_group("synced append");
    bench.sample_size(20);
    for size in [4 << 10, 64 << 10] {
        let bytes = Bytes::from(vec![7_u8; size]);
        bench.throughput(Throughput::Bytes(size as u64));
        bench.bench_function(format!("raw {size} B"), |bench| {
            bench.iter(|| {
                if raw_at + size as u64 > FILE_BYTES {
                    raw_at = 0;
                }
                raw.write_all_at(&bytes, raw_at).expect("written");
                raw.sync_data().expect("synced");
                raw_at += size as u64;
            });
        });
        bench.bench_function(format!("log {size} B"), |bench| {
            bench.iter(|| {
                let frame = control(wal.last_index() + 1, chain, &bytes);
                chain = frame.header().chain;
                wal.append(&[frame]).expect("appended");
                wal.sync().expect("synced");
            });
        });
    }
    bench.finish();
}

criterion_group!(benches, appends);
criterion_main!(benches);
