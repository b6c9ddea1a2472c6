//! The golden directories of version 1: what was written once must be readable for ever, and the same calls give the bytes of
//! the last one.
//!
//! In the first one a segment's opening was synced before its first record, which says so; later the two share a sync, and the
//! record says that nothing of its segment was durable before. Both are version 1: every reader reads both.
//!
//! `cargo test -p graven-wal --test golden -- --nocapture` prints how the bytes differ if they do. To make the directory of
//! a *new* version, never of an old one, run it with `GRAVEN_WRITE_GOLDEN=<directory>` and check the files in.

mod common;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use graven_frame::{Body, Frame, GroupBuilder, GroupHeaderSpec, HeaderSpec, Kind, combine_crc};
use graven_wal::sim::SimDisk;
use graven_wal::{Disk, DiskFile, HardState, Identity, LogBase, Options, RealDisk, Wal, inspect};

const IDENTITY: Identity = Identity { cluster: 0x6772_6176_656e, node: 3, incarnation: 0x676f_6c64_656e };
/// The salts of the simulated disk come from this.
const SEED: u64 = 0x901d;
/// Small, so that a few entries need a second segment and the first one gets its footer.
const SEGMENT_BYTES: u64 = 16 << 10;

fn options() -> Options {
    Options { segment_bytes: SEGMENT_BYTES, ..Options::default() }
}

const GOLDEN: [&str; 2] = ["golden-v1", "golden-v1-later"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn control(before: &LogBase, term: u64, kind: Kind, body: &'static [u8]) -> Frame {
    let spec = HeaderSpec {
        kind,
        term,
        index: before.index + 1,
        base_offset: before.next_offset,
        count: 0,
        timestamp_ms: 1_700_000_000_000 + before.index,
    };
    Frame::seal(spec, before.chain, Body::from(Bytes::from_static(body)), crc32fast::hash(body))
}

/// Two groups: one of a session with a fence, one plain with a meta and an empty record.
fn records(before: &LogBase, term: u64, text: &str) -> Frame {
    let mut builder = GroupBuilder::new();
    builder.push(b"", text.as_bytes()).expect("small");
    let spec = GroupHeaderSpec {
        session: Some(3),
        sequence: Some(before.index),
        expected_offset: Some(before.next_offset),
        fence: Some(5),
    };
    let one = builder.finish(spec);
    builder.push(b"meta", text.repeat(40).as_bytes()).expect("small");
    builder.push(b"", b"").expect("small");
    let two = builder.finish(GroupHeaderSpec::default());
    let crc = combine_crc(one.crc(), two.crc(), two.body().len());
    let body = Body::from_chunks([one, two].iter().map(|group| group.body().concat()).collect());
    let spec = HeaderSpec {
        kind: Kind::Records,
        term,
        index: before.index + 1,
        base_offset: before.next_offset,
        count: 3,
        timestamp_ms: 1_700_000_000_000 + before.index,
    };
    Frame::seal(spec, before.chain, body, crc)
}

/// The entries of the golden log as they stand at its end.
fn contents() -> Vec<Frame> {
    let mut frames = vec![control(&LogBase::default(), 1, Kind::Membership, b"voters 1 2 3")];
    let push = |frames: &mut Vec<Frame>, make: &dyn Fn(&LogBase) -> Frame| {
        let before = frames.last().map(common::base).expect("not empty");
        frames.push(make(&before));
    };
    push(&mut frames, &|before| control(before, 2, Kind::Noop, b""));
    push(&mut frames, &|before| control(before, 2, Kind::Session, b"golden session"));
    for text in ["carved", "in", "stone"] {
        push(&mut frames, &|before| records(before, 2, text));
    }
    push(&mut frames, &|before| control(before, 4, Kind::Noop, b""));
    push(&mut frames, &|before| control(before, 4, Kind::Trim, b"3"));
    push(&mut frames, &|before| control(before, 4, Kind::Snapshot, b"kv 3"));
    push(&mut frames, &|before| {
        records(
            before,
            4,
            "An entry that is large enough not to find room behind the others, so that it opens the next segment.",
        )
    });
    frames
}

/// Writes the golden log. Its entry 7 of term 3 is superseded by the one of term 4.
fn write(disk: &SimDisk) {
    let frames = contents();
    Wal::create(disk.clone(), IDENTITY, options(), &frames[..1]).expect("empty");
    let (mut wal, _) = Wal::open(disk.clone(), options()).expect("just created");
    wal.set_hard_state(HardState { term: 2, vote: Some(3) }).expect("room");
    wal.append(&frames[1..6]).expect("room");
    wal.sync().expect("healthy");
    wal.note_commit(5);
    let superseded = control(&common::base(&frames[5]), 3, Kind::Noop, b"");
    wal.append(&[superseded]).expect("room");
    wal.set_hard_state(HardState { term: 4, vote: None }).expect("room");
    wal.append(&frames[6..9]).expect("room");
    wal.sync().expect("healthy");
    wal.write_sync_point().expect("healthy");
    wal.append(&frames[9..]).expect("room");
    wal.close().expect("healthy");
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("the golden directory")
        .map(|entry| entry.expect("readable").path())
        .map(|path| {
            (path.file_name().expect("a file").to_string_lossy().into_owned(), std::fs::read(&path).expect("readable"))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn golden_logs_are_read_as_they_were_written() {
    GOLDEN.iter().for_each(|name| is_read_as_it_was_written(&golden(name)));
}

fn is_read_as_it_was_written(golden: &Path) {
    let copy = tempfile::tempdir().expect("temporary directory");
    for (name, bytes) in files(golden) {
        std::fs::write(copy.path().join(name), bytes).expect("temporary file");
    }
    let disk = RealDisk::open(copy.path());
    let found = inspect::verify(&disk).expect("a log");
    assert!(found.damage.is_empty() && found.healed.is_empty() && found.torn_bytes == 0, "{found:?}");
    assert_eq!(found.segments.iter().filter(|segment| segment.state != inspect::SegmentState::Prepared).count(), 2);
    assert_eq!(inspect::entries(&disk).expect("a log").count(), 11, "the superseded one too");
    let (wal, recovered) = Wal::open(disk, options()).expect("a log");
    assert_eq!(common::read_all(&wal.reader()), contents());
    assert_eq!(recovered.identity, IDENTITY);
    assert_eq!(recovered.hard_state, HardState { term: 4, vote: None });
    assert_eq!(
        (recovered.first_index, recovered.last_index, recovered.next_offset, recovered.known_commit),
        (1, 10, 12, 5)
    );
    assert_eq!(recovered.memberships, [1]);
    assert_eq!(
        recovered.term_runs.iter().map(|run| (run.term, run.first_index)).collect::<Vec<_>>(),
        [(1, 1), (2, 2), (4, 7)]
    );
    let payloads: Vec<_> =
        wal.reader().frame(4).expect("there").records().map(|record| record.expect("intact")).collect();
    assert_eq!((payloads[0].offset, &payloads[0].payload[..]), (0, b"carved".as_slice()));
    assert_eq!(
        (&payloads[1].meta[..], payloads[1].payload.len(), payloads[2].payload.len()),
        (b"meta".as_slice(), 240, 0)
    );
}

#[test]
fn writing_the_same_again_gives_the_same_bytes() {
    let disk = SimDisk::new(SEED);
    write(&disk);
    let mut made = Vec::new();
    for name in disk.names().into_iter().filter(|name| name.ends_with(".seg")) {
        let mut bytes = disk.bytes_of(&name).expect("there");
        let len = disk.open(&name, None).and_then(|file| file.len()).expect("there");
        bytes.resize(len as usize, 0);
        made.push((name, bytes));
    }
    if let Some(dir) = std::env::var_os("GRAVEN_WRITE_GOLDEN") {
        std::fs::create_dir_all(&dir).expect("golden directory");
        for (name, bytes) in &made {
            std::fs::write(Path::new(&dir).join(name), bytes).expect("golden file");
        }
    }
    let golden = files(&golden(GOLDEN[GOLDEN.len() - 1]));
    assert_eq!(
        made.iter().map(|file| &file.0).collect::<Vec<_>>(),
        golden.iter().map(|file| &file.0).collect::<Vec<_>>()
    );
    for ((name, made), (_, golden)) in made.iter().zip(&golden) {
        let differs = made.iter().zip(golden).position(|(made, golden)| made != golden);
        assert_eq!(differs, None, "{name}: first different byte");
        assert_eq!(made.len(), golden.len(), "{name}");
    }
}
