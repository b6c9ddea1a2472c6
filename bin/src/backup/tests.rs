use std::fs;
use std::path::Path;

use graven_frame::{Body, Chain, GroupBuilder, GroupHeaderSpec, HeaderSpec, Kind};

use super::*;
use crate::members::{Member, MemberRole, Members};
use crate::replica::fold::Fold;
use graven_frame::Frame;

const CLUSTER: u128 = 0xfeed_0000_0000_0000_0000_0000_0000_0001;

fn members() -> Members {
    let member = Member {
        id: 1,
        name: "n1".to_owned(),
        peer_address: "127.0.0.1:1".to_owned(),
        client_address: "127.0.0.1:2".to_owned(),
        incarnation: [7; 16],
        role: MemberRole::Voter,
    };
    Members { nodes: vec![member], feature_level: 2 }
}

fn seal(before: Option<&Frame>, kind: Kind, count: u32, body: Body) -> Frame {
    let (index, offset, chain) = before.map_or((1, 0, Chain::START), |before| {
        let header = before.header();
        (header.index + 1, header.next_offset(), header.chain)
    });
    let spec = HeaderSpec { kind, term: 3, index, base_offset: offset, count, timestamp_ms: 1000 + index };
    let crc = body.crc();
    Frame::seal(spec, chain, body, crc)
}

/// A membership, then records.
fn log(entries: usize) -> Vec<Frame> {
    let body = Body::from_chunks(vec![members().encode().expect("small").into()]);
    let mut frames = vec![seal(None, Kind::Membership, 0, body)];
    for number in 1..entries {
        let mut builder = GroupBuilder::new();
        builder.push(b"", format!("record {number}").as_bytes()).expect("small");
        let group = builder.finish(GroupHeaderSpec::default());
        let frame = seal(frames.last(), Kind::Records, group.header().count, group.body().clone());
        frames.push(frame);
    }
    frames
}

fn write(dir: &Path, checkpoint: &[u8], frames: &[Frame], file_bytes: u64) -> Manifest {
    let mut writer = Writer::create(dir, CLUSTER, checkpoint, file_bytes).expect("empty");
    frames.iter().for_each(|frame| writer.push(frame).expect("room"));
    let last = frames.last().expect("entries").header();
    writer.finish(last.index, 0, last.next_offset()).expect("whole")
}

/// The checkpoint before entry `index`.
fn checkpoint_before(frames: &[Frame], index: u64) -> Vec<u8> {
    let mut fold = Fold::new(None).expect("nothing");
    frames.iter().filter(|frame| frame.header().index < index).for_each(|frame| fold.push(frame).expect("follows"));
    fold.checkpoint(CLUSTER).expect("members").encode()
}

#[test]
fn what_is_written_is_read_back() {
    let home = tempfile::tempdir().expect("a directory");
    let frames = log(40);
    for (name, from, file_bytes) in [("a", 1, FILE_BYTES), ("b", 1, 1000), ("c", 11, 1000), ("d", 2, 1)] {
        let dir = home.path().join(name);
        let checkpoint = if from > 1 { checkpoint_before(&frames, from) } else { Vec::new() };
        let wanted = &frames[from as usize - 1..];
        let manifest = write(&dir, &checkpoint, wanted, file_bytes);
        let backup = Backup::open(&dir).expect("a backup");
        assert_eq!(backup.manifest(), &manifest);
        let read: Vec<Frame> = backup.frames().collect::<Result<_, _>>().expect("whole");
        assert_eq!(read, wanted);
        let fold = backup.verify(|_| ()).expect("whole");
        assert_eq!((fold.at().index, fold.members()), (40, Some(&members())));
        assert_eq!(backup.checkpoint().expect("whole").map_or(Vec::new(), |found| found.encode()), checkpoint);
        let many = manifest.frames.len();
        assert!(if file_bytes == FILE_BYTES { many == 1 } else { many > 3 }, "{many} files");
    }
}

#[test]
fn every_changed_bit_and_every_cut_is_found_and_its_file_is_named() {
    let home = tempfile::tempdir().expect("a directory");
    let (dir, frames) = (home.path().join("a"), log(8));
    write(&dir, &checkpoint_before(&frames, 3), &frames[2..], 400);
    let names: Vec<String> = fs::read_dir(&dir)
        .expect("there")
        .map(|it| it.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    assert!(names.len() >= 4, "{names:?}");
    let damage = || Backup::open(&dir).and_then(|backup| backup.verify(|_| ())).map(drop);
    for name in names {
        let path = dir.join(&name);
        let whole = fs::read(&path).expect("a file");
        let expect = |bytes: &[u8], at: u64| {
            fs::write(&path, bytes).expect("written");
            match damage() {
                Err(BackupError::Damaged { damage, .. }) => {
                    assert_eq!(damage.file, name);
                    assert!(name == MANIFEST || (damage.from <= at && at < damage.to), "{damage} at {at}");
                }
                other => panic!("{name}, byte {at}: {other:?}"),
            }
        };
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            expect(&bytes, at as u64);
            expect(&whole[..at], at as u64);
        }
        expect(&[&whole[..], b"x"].concat(), whole.len() as u64);
        fs::remove_file(&path).expect("removed");
        match damage() {
            Err(BackupError::Damaged { damage, .. }) => assert_eq!((damage.file, damage.from), (name.clone(), 0)),
            Err(BackupError::Unfinished { .. }) => assert_eq!(name, MANIFEST),
            other => panic!("{other:?}"),
        }
        fs::write(&path, &whole).expect("written");
        damage().expect("whole again");
    }
}

#[test]
fn a_file_of_another_backup_of_the_same_log_is_found() {
    let home = tempfile::tempdir().expect("a directory");
    let (a, b, mut frames) = (home.path().join("a"), home.path().join("b"), log(8));
    write(&a, &[], &frames, 600);
    let last = frames.len() - 1;
    frames[last] = seal(Some(&frames[last - 1]), Kind::Noop, 0, Body::default());
    write(&b, &[], &frames, 600);
    let name = Backup::open(&a).expect("a backup").manifest().frames.last().expect("a file").name.clone();
    fs::copy(b.join(&name), a.join(&name)).expect("copied");
    let found = Backup::open(&a).expect("its manifest is whole").verify(|_| ());
    assert!(matches!(found, Err(BackupError::Damaged { damage, .. }) if damage.file == name));
}

#[test]
fn what_is_given_up_leaves_nothing_and_what_was_killed_is_told_apart() {
    let home = tempfile::tempdir().expect("a directory");
    let (dir, frames) = (home.path().join("deep/er"), log(6));
    let mut writer = Writer::create(&dir, CLUSTER, &[], 100).expect("made");
    writer.push(&frames[0]).expect("room");
    writer.push(&frames[1]).expect("room");
    assert!(matches!(Backup::open(&dir), Err(BackupError::Unfinished { .. })));
    assert!(matches!(writer.push(&frames[3]), Err(BackupError::Source(_))), "entry 3 is missing");
    drop(writer);
    assert!(!dir.exists());
    assert!(matches!(Backup::open(&dir), Err(BackupError::Missing { .. })));

    // A directory that was there stays, and one with anything in it is not touched.
    fs::create_dir(&dir).expect("made");
    let mut writer = Writer::create(&dir, CLUSTER, &[], 100).expect("empty");
    writer.push(&frames[0]).expect("room");
    assert!(matches!(writer.finish(2, 0, 0), Err(BackupError::Source(_))), "it said that there are two");
    assert_eq!(fs::read_dir(&dir).expect("there").count(), 0);
    fs::write(dir.join("mine"), b"x").expect("written");
    assert!(matches!(Writer::create(&dir, CLUSTER, &[], 100), Err(BackupError::NotEmpty { .. })));
    assert!(matches!(Backup::open(&dir), Err(BackupError::Missing { .. })));
}

#[test]
fn a_newer_manifest_is_refused_by_name() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = home.path().join("a");
    let mut manifest = write(&dir, &[], &log(3), FILE_BYTES);
    manifest.version = 2;
    fs::write(dir.join(MANIFEST), manifest.encode().expect("text")).expect("written");
    assert!(matches!(Backup::open(&dir), Err(BackupError::Newer { version: 2, .. })));
    // One that was written by hand, with a right digest.
    manifest.version = 1;
    manifest.next_offset += 1;
    fs::write(dir.join(MANIFEST), manifest.encode().expect("text")).expect("written");
    let found = Backup::open(&dir).expect("it makes sense").verify(|_| ());
    assert!(matches!(found, Err(BackupError::Damaged { damage, .. }) if damage.file == MANIFEST));
    manifest.frames[0].first_index = 2;
    fs::write(dir.join(MANIFEST), manifest.encode().expect("text")).expect("written");
    assert!(matches!(Backup::open(&dir), Err(BackupError::Damaged { .. })));
}
