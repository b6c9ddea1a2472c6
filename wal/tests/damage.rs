//! Changed bytes are named, or lie where nothing was promised; one test a row of the recovery tables.

mod common;

use common::{IDENTITY, base, control, first, grow, new_log, options, read_all, records};
use graven_frame::{Frame, Kind};
use graven_wal::sim::SimDisk;
use graven_wal::{Damage, Disk, HardState, Identity, OpenError, Options, Wal, inspect};

const SEGMENT: &str = "0000000000000001.seg";

/// A closed log with entries, a hard state and more entries, all of it vouched for.
fn closed_log() -> (SimDisk, Vec<Frame>) {
    let disk = SimDisk::new(3);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    frames.extend(grow(&mut wal, 2, 60));
    wal.set_hard_state(HardState { term: 4, vote: Some(2) }).expect("room");
    frames.extend(grow(&mut wal, 2, 100));
    wal.close().expect("no fault");
    (disk, frames)
}

fn used(disk: &SimDisk) -> usize {
    disk.bytes_of(SEGMENT).expect("there").iter().rposition(|byte| *byte != 0).expect("written") + 1
}

/// Where the record of the entry `index` stands.
fn place(disk: &SimDisk, index: u64) -> (String, u64) {
    let entry = inspect::entries(disk)
        .expect("a log")
        .map(|entry| entry.expect("intact"))
        .filter(|entry| entry.header.index == index)
        .last();
    entry.map(|entry| (format!("{}.seg", entry.segment), entry.at)).expect("there")
}

fn open_damage(disk: &SimDisk) -> Damage {
    match Wal::open(disk.clone(), options()) {
        Err(OpenError::Damaged(damage)) => damage,
        other => panic!("not called damage: {other:?}"),
    }
}

/// Each flip is in unused space, is called an unfinished write at the very end (the last sync point, which nothing
/// vouches for), or is named: as damage, or as damage that cost nothing.
#[test]
fn every_flipped_bit_is_named_or_changes_nothing() {
    let (disk, frames) = closed_log();
    let end = used(&disk);
    let last_record = end as u64 - 64;
    let hard_state = HardState { term: 4, vote: Some(2) };
    let (mut named, mut healed) = (0, 0);
    for at in 0..end as u64 + 256 {
        for bit in 0..8 {
            let flipped = disk.copy();
            flipped.rot(SEGMENT, at, |byte| *byte ^= 1 << bit);
            let context = format!("byte {at} bit {bit}");
            match Wal::open(flipped, options()) {
                Ok((wal, recovered)) => {
                    assert_eq!(read_all(&wal.reader()), frames, "{context}");
                    assert_eq!(recovered.hard_state, hard_state, "{context}");
                    if at >= last_record {
                        assert!(recovered.report.torn_bytes > 0, "{context}: cut without a word");
                    }
                    healed += usize::from(!recovered.report.healed.is_empty());
                }
                Err(OpenError::Damaged(damage)) => {
                    assert!(damage.from <= at && at < damage.to, "{context}: named {damage}");
                    assert!(at < last_record, "{context}");
                    named += 1;
                }
                Err(error) => panic!("{context}: {error}"),
            }
        }
    }
    println!("{named} flips named, {healed} healed by the second copy of a hard state");
    assert!(named > 8 * 4096 && healed >= 8 * 120, "named {named}, healed {healed}");
}

/// In a sealed segment nothing can be an unfinished write; what its footer hides from opening, verification finds.
#[test]
fn every_flipped_byte_of_a_sealed_segment_is_found_by_verification() {
    let disk = SimDisk::new(4);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    for _ in 0..9 {
        frames.extend(grow(&mut wal, 1, 1800));
    }
    wal.close().expect("no fault");
    assert!(disk.names().len() > 1, "more than one segment");
    let clean = inspect::verify(&disk).expect("closed");
    assert!(clean.damage.is_empty() && clean.healed.is_empty(), "{clean:?}");
    let written = disk.bytes_of(SEGMENT).expect("there");
    let mut quiet = Vec::new();
    for at in (0..written.len() as u64).step_by(3) {
        let flipped = disk.copy();
        flipped.rot(SEGMENT, at, |byte| *byte ^= 0x10);
        match inspect::verify(&flipped) {
            Ok(found) if found.damage.is_empty() && found.healed.is_empty() => quiet.push(at),
            Ok(_) | Err(OpenError::Damaged(_)) => {}
            Err(error) => panic!("byte {at}: {error}"),
        }
        if let Ok((wal, _)) = Wal::open(flipped, options()) {
            let reader = wal.reader();
            for frame in &frames {
                let index = frame.header().index;
                // Whoever gets a frame verifies it: then nothing wrong is taken for right.
                let read = reader.frame(index).ok().filter(|read| read.verify(None).is_ok());
                assert!(read.is_none_or(|read| read == *frame), "byte {at}: entry {index} reads as something else");
            }
        }
    }
    // Only what pads records, and the unused space before the trailer, may change unseen.
    assert!(quiet.iter().all(|at| written[*at as usize] == 0), "changed unseen: {quiet:?}");
}

#[test]
fn row_nothing_behind_is_the_end() {
    let (disk, frames) = closed_log();
    let (wal, recovered) = Wal::open(disk, options()).expect("clean");
    assert_eq!(read_all(&wal.reader()), frames);
    assert_eq!((recovered.report.torn_bytes, recovered.report.stale_bytes), (0, 0));
}

#[test]
fn row_stale_record_is_the_end() {
    let (disk, frames) = closed_log();
    // A whole, valid record of another life at the place where the next one would go.
    let other = SimDisk::new(99);
    let mut wal = new_log(&other);
    grow(&mut wal, 2, 60);
    wal.set_hard_state(HardState { term: 4, vote: Some(2) }).expect("room");
    grow(&mut wal, 2, 100);
    wal.close().expect("no fault");
    let (mut wal, _) = Wal::open(other.clone(), options()).expect("clean");
    grow(&mut wal, 1, 100);
    wal.close().expect("no fault");
    let bytes = other.bytes_of(SEGMENT).expect("there");
    let end = used(&disk) as u64;
    for (at, byte) in bytes.iter().enumerate().skip(end as usize) {
        disk.rot(SEGMENT, at as u64, |there| *there = *byte);
    }
    let (mut wal, recovered) = Wal::open(disk.clone(), options()).expect("clean");
    assert!(recovered.report.stale_bytes > 0 && recovered.report.torn_bytes == 0, "{:?}", recovered.report);
    let more = grow(&mut wal, 1, 100);
    wal.close().expect("no fault");
    let (wal, _) = Wal::open(disk, options()).expect("clean");
    assert_eq!(read_all(&wal.reader()), [frames, more].concat());
}

#[test]
fn row_broken_end_is_torn_and_saved() {
    let (disk, frames) = closed_log();
    let end = used(&disk) as u64;
    for at in end..end + 700 {
        disk.rot(SEGMENT, at, |byte| *byte = 0xA5);
    }
    let (wal, recovered) = Wal::open(disk.clone(), options()).expect("torn is no damage");
    assert_eq!(read_all(&wal.reader()), frames);
    assert_eq!(recovered.report.torn_bytes, 700);
    let saved = disk.bytes_of(&recovered.report.saved_as.expect("saved aside")).expect("there");
    assert_eq!(saved, [0xA5; 700]);
}

#[test]
fn row_zeroes_before_unproven_records_are_torn() {
    let disk = SimDisk::new(8);
    let mut wal = new_log(&disk);
    wal.sync().expect("no fault");
    grow(&mut wal, 3, 600);
    drop(wal);
    let (_, at) = place(&disk, 2);
    for byte in at..at + 512 {
        disk.rot(SEGMENT, byte, |byte| *byte = 0);
    }
    let (wal, recovered) = Wal::open(disk, options()).expect("nothing vouches for these entries");
    assert_eq!(recovered.last_index, 1);
    assert!(recovered.report.torn_bytes > 1200);
    drop(wal);
}

/// Whole records behind a torn one are of this life of the segment: left there, they would stand right behind the record
/// that takes the torn one's place.
#[test]
fn cut_records_are_not_met_again() {
    let disk = SimDisk::new(8);
    let mut wal = new_log(&disk);
    wal.sync().expect("no fault");
    grow(&mut wal, 3, 600);
    drop(wal);
    let (_, at) = place(&disk, 2);
    disk.rot(SEGMENT, at + 300, |byte| *byte ^= 1);
    let (mut wal, recovered) = Wal::open(disk.clone(), options()).expect("nothing vouches for these entries");
    assert_eq!(recovered.last_index, 1);
    let new = records(&wal.tail(), 2, 600);
    wal.append(std::slice::from_ref(&new)).expect("room");
    wal.sync().expect("no fault");
    drop(wal);
    let (wal, _) = Wal::open(disk, options()).expect("the old entry 3 is gone");
    assert_eq!(read_all(&wal.reader()), [first(), new]);
}

#[test]
fn row_records_below_a_later_watermark_are_damage() {
    let disk = SimDisk::new(8);
    let mut wal = new_log(&disk);
    grow(&mut wal, 3, 600);
    wal.sync().expect("no fault");
    grow(&mut wal, 1, 10);
    drop(wal);
    let (_, at) = place(&disk, 2);
    disk.rot(SEGMENT, at + 300, |byte| *byte ^= 1);
    let damage = open_damage(&disk);
    assert_eq!((damage.from, damage.first_index, damage.last_index), (at, 2, 2));
    let zeroed = disk.copy();
    for byte in at..at + 512 {
        zeroed.rot(SEGMENT, byte, |byte| *byte = 0);
    }
    assert_eq!(open_damage(&zeroed).from, at, "a lost sector as well");
    let found = inspect::scan(&disk).expect("a log");
    assert_eq!(found.damage, [damage]);
}

#[test]
fn row_frame_that_continues_nothing_is_named() {
    let disk = SimDisk::new(8);
    let mut wal = new_log(&disk);
    let here = control(&base(&first()), 1, Kind::Noop, b"one");
    wal.append(&[here]).expect("room");
    drop(wal);
    // The same place in a log whose entry 2 is another one; with this log's salt, and every check right.
    let twin = SimDisk::new(8);
    let mut wal = new_log(&twin);
    let elsewhere = control(&base(&first()), 1, Kind::Noop, b"two");
    let follow = records(&base(&elsewhere), 1, 10);
    wal.append(&[elsewhere, follow]).expect("room");
    drop(wal);
    let (_, at) = place(&twin, 3);
    let (bytes, ours) = (twin.bytes_of(SEGMENT).expect("there"), disk.bytes_of(SEGMENT).expect("there"));
    assert_eq!(bytes[..4096], ours[..4096], "the same seed makes the same salt");
    for (at, byte) in bytes.iter().enumerate().skip(at as usize) {
        disk.rot(SEGMENT, at as u64, |there| *there = *byte);
    }
    assert!(matches!(Wal::open(disk, options()), Err(OpenError::WrongChain { index: 3, .. })));
}

#[test]
fn row_superseding_frame_wins_over_what_stood_there() {
    let disk = SimDisk::new(8);
    let mut wal = new_log(&disk);
    let old = grow(&mut wal, 6, 2500);
    assert!(disk.names().len() > 1, "entry 2 is in another segment by now");
    let new = records(&base(&old[0]), 2, 10);
    wal.append(std::slice::from_ref(&new)).expect("continues entry 2");
    wal.close().expect("no fault");
    let (wal, recovered) = Wal::open(disk, options()).expect("clean");
    assert_eq!(read_all(&wal.reader()), [first(), old[0].clone(), new]);
    assert_eq!(recovered.term_runs.iter().map(|run| (run.term, run.first_index)).collect::<Vec<_>>(), [(1, 1), (2, 3)]);
}

#[test]
fn row_missing_segment_is_named() {
    let disk = SimDisk::new(8);
    let mut wal = new_log(&disk);
    grow(&mut wal, 20, 2500);
    wal.close().expect("no fault");
    let names = disk.names().into_iter().filter(|name| name.ends_with(".seg")).count();
    assert!(names > 3);
    disk.lose("0000000000000002.seg");
    match Wal::open(disk, options()) {
        Err(OpenError::MissingSegment { segment, first_index }) => {
            assert_eq!(segment.to_string(), "0000000000000002");
            assert!(first_index > 1);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn row_lost_opening_is_damage_when_records_follow() {
    for (segment, zero) in [(1, false), (1, true), (2, false), (2, true)] {
        let disk = SimDisk::new(8);
        let mut wal = new_log(&disk);
        grow(&mut wal, 20, 2500);
        wal.close().expect("no fault");
        let name = format!("{segment:016x}.seg");
        for at in 0..4096 {
            disk.rot(&name, at, |byte| *byte = if zero { 0 } else { *byte ^ 0xFF });
        }
        let damage = open_damage(&disk);
        assert_eq!((damage.segment.0, damage.from, damage.to), (segment, 0, 4096));
    }
}

#[test]
fn row_lost_opening_of_the_last_segment_is_damage_too() {
    let disk = SimDisk::new(8);
    let mut wal = new_log(&disk);
    grow(&mut wal, 6, 2500);
    wal.close().expect("no fault");
    let last = disk
        .names()
        .into_iter()
        .filter(|name| name.ends_with(".seg"))
        .rfind(|name| disk.bytes_of(name).is_some_and(|bytes| !bytes.is_empty()));
    disk.rot(&last.expect("there"), 40, |byte| *byte ^= 1);
    assert_eq!(open_damage(&disk).to, 4096);
}

#[test]
fn row_torn_opening_without_records_is_a_prepared_segment() {
    let disk = SimDisk::new(8);
    let mut wal = new_log(&disk);
    while wal.prepare(1 << 20).expect("no fault") != graven_wal::PrepareState::Ready {}
    let frames = grow(&mut wal, 2, 600);
    wal.close().expect("no fault");
    for at in 0..700 {
        disk.rot("0000000000000002.seg", at, |byte| *byte = 0x5A);
    }
    let (mut wal, _) = Wal::open(disk.clone(), options()).expect("clean");
    assert_eq!(read_all(&wal.reader())[1..], frames);
    grow(&mut wal, 10, 2500);
    wal.close().expect("no fault");
    assert_eq!(Wal::open(disk, options()).expect("clean").1.last_index, 13);
}

#[test]
fn row_foreign_segment_is_refused() {
    let (disk, _) = closed_log();
    let open = |options: Options| Wal::open(disk.clone(), options).map(drop);
    assert!(matches!(
        open(Options { expect_cluster: Some(5), ..options() }),
        Err(OpenError::WrongCluster { cluster: 5, .. })
    ));
    assert!(matches!(
        open(Options { expect_node: Some(2), ..options() }),
        Err(OpenError::WrongCluster { node: 2, .. })
    ));
    open(Options { expect_cluster: Some(IDENTITY.cluster), expect_node: Some(1), ..options() }).expect("its own");
    // A segment of another log, put behind ours.
    let other = SimDisk::new(1);
    Wal::create(other.clone(), Identity { cluster: 0xD2, ..IDENTITY }, options(), &[first()]).expect("empty");
    let bytes = other.bytes_of(SEGMENT).expect("there");
    let file = disk.create("0000000000000002.seg", graven_wal::WriteMode::Buffered).expect("new");
    graven_wal::DiskFile::write_at(&file, 0, &bytes).expect("no fault");
    assert!(matches!(open(options()), Err(OpenError::WrongCluster { found_cluster: 0xD2, .. })));
}

#[test]
fn row_renamed_segment_is_damage() {
    let (disk, _) = closed_log();
    disk.rename(SEGMENT, "0000000000000007.seg").expect("no fault");
    assert_eq!(open_damage(&disk).what, "the file of another segment stands here");
}

#[test]
fn row_newer_version_is_refused_by_name() {
    let (disk, _) = closed_log();
    let mut opening = disk.bytes_of(SEGMENT).expect("there")[..4092].to_vec();
    opening[8] = 2;
    let crc = crc32fast::hash(&opening).to_le_bytes();
    disk.rot(SEGMENT, 8, |byte| *byte = 2);
    for (at, crc) in crc.into_iter().enumerate() {
        disk.rot(SEGMENT, 4092 + at as u64, |byte| *byte = crc);
    }
    assert!(matches!(Wal::open(disk, options()), Err(OpenError::NewerVersion { seen: 2, known: 1, .. })));
}

#[test]
fn directories_without_a_log_are_told_apart() {
    assert!(matches!(Wal::open(SimDisk::missing(), options()), Err(OpenError::Missing)));
    assert!(matches!(Wal::open(SimDisk::new(0), options()), Err(OpenError::Empty)));
    let other = SimDisk::new(0);
    drop(other.create("thesis.txt", graven_wal::WriteMode::Buffered).expect("new"));
    assert!(matches!(Wal::open(other, options()), Err(OpenError::NotALog { found }) if found == "thesis.txt"));
}

#[test]
fn damaged_log_is_left_as_it_is() {
    let (disk, _) = closed_log();
    let (_, at) = place(&disk, 2);
    disk.rot(SEGMENT, at + 5, |byte| *byte ^= 1);
    let before = disk.bytes_of(SEGMENT);
    open_damage(&disk);
    assert_eq!(disk.bytes_of(SEGMENT), before);
    assert_eq!(disk.names(), [SEGMENT, "cut"], "the log, and the space for cut bytes");
}

#[test]
fn lost_footer_is_healed_from_the_records() {
    let disk = SimDisk::new(8);
    let mut wal = new_log(&disk);
    grow(&mut wal, 20, 2500);
    wal.close().expect("no fault");
    let len = disk.bytes_of(SEGMENT).expect("there").len() as u64;
    disk.rot(SEGMENT, len - 100, |byte| *byte ^= 1);
    let (wal, recovered) = Wal::open(disk, options()).expect("all records are there");
    assert_eq!(recovered.report.healed.len(), 1, "{:?}", recovered.report);
    assert_eq!(read_all(&wal.reader()).len(), 21);
}
