//! The log in use: appending, superseding, rotating, filling up, reading beside the writer.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{IDENTITY, base, control, first, grow, new_log, options, read_all, records};
use graven_frame::Kind;
use graven_wal::sim::SimDisk;
use graven_wal::{
    AppendError, CreateError, Disk, HardState, LogBase, OpenError, Options, PrepareState, ReadError, RealDisk,
    SyncMethod, Wal, inspect,
};

fn real_log(options: &Options) -> (tempfile::TempDir, RealDisk, Wal<RealDisk>) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = RealDisk::open(dir.path());
    Wal::create(disk.clone(), IDENTITY, options.clone(), &[first()]).expect("empty");
    let (wal, _) = Wal::open(disk.clone(), options.clone()).expect("just created");
    (dir, disk, wal)
}

#[test]
fn real_directory_keeps_everything_across_segments_and_restarts() {
    for sync in [SyncMethod::Fdatasync, SyncMethod::Dsync, SyncMethod::Direct, SyncMethod::UnsafeNone] {
        let options = Options { sync, ..options() };
        if sync == SyncMethod::Direct && !temporary_files_are_on_a_disk() {
            continue;
        }
        let (_dir, disk, mut wal) = real_log(&options);
        let mut frames = vec![first()];
        for round in 0..12 {
            frames.extend(grow(&mut wal, 4, 900));
            wal.set_hard_state(HardState { term: 2 + round, vote: Some(3) }).expect("room");
            wal.sync().expect("healthy disk");
            wal.prepare(64 << 10).expect("healthy disk");
        }
        assert_eq!(read_all(&wal.reader()), frames);
        assert!(wal.stats().rotations > 2);
        wal.close().expect("healthy disk");
        let found = inspect::verify(&disk).expect("closed");
        assert!(found.damage.is_empty() && found.healed.is_empty() && found.torn_bytes == 0, "{found:?}");
        let (wal, recovered) = Wal::open(disk, options).expect("clean");
        assert_eq!(read_all(&wal.reader()), frames);
        assert_eq!(recovered.hard_state, HardState { term: 13, vote: Some(3) });
        assert_eq!(recovered.report.scanned_segments, 1, "the others are known by their footers");
    }
}

/// One vectored call of the system takes 1024 pieces; a batch may have more.
#[test]
fn batch_of_more_pieces_than_one_call_takes() {
    let (_dir, _disk, mut wal) = real_log(&Options { segment_bytes: 1 << 20, ..options() });
    let frames = grow(&mut wal, 900, 33);
    assert_eq!(wal.stats().rotations, 0);
    assert_eq!(read_all(&wal.reader())[1..], frames);
}

#[test]
fn frames_borrow_the_map_and_never_change() {
    let (_dir, _disk, mut wal) = real_log(&options());
    let written = grow(&mut wal, 3, 500);
    let reader = wal.reader();
    let early = reader.frame(2).expect("there");
    let again = reader.frame(2).expect("there");
    let pointer = |frame: &graven_frame::Frame| frame.body().chunks()[0].as_ptr();
    assert_eq!(pointer(&early), pointer(&again), "both borrow the same mapped bytes");
    assert_ne!(pointer(&early), pointer(&written[0]));
    assert_eq!(
        pointer(&early) as usize,
        early.head().as_ptr() as usize + early.head().len(),
        "head and body lie as in the file"
    );
    let bytes = early.body().concat().to_vec();
    // Superseded, rotated away from, its segment released and unlinked: the borrowed bytes stay what they were.
    let new = records(&base(&first()), 2, 500);
    wal.append(&[new]).expect("continues entry 1");
    grow(&mut wal, 30, 900);
    wal.sync().expect("healthy disk");
    assert!(wal.release_before(wal.last_index()).expect("healthy disk") > 2);
    drop(wal);
    assert_eq!(early.body().concat(), bytes);
    assert_eq!(early, written[0]);
}

#[test]
fn second_open_names_the_process_that_holds_the_log() {
    let (_dir, disk, wal) = real_log(&options());
    let me = std::process::id();
    assert!(matches!(Wal::open(disk.clone(), options()), Err(OpenError::Locked { pid }) if pid == me));
    assert!(matches!(inspect::verify(&disk), Err(OpenError::Locked { pid }) if pid == me));
    assert_eq!(inspect::scan(&disk).expect("needs no lock").tail.index, 1);
    drop(wal);
    assert!(Wal::open(disk, options()).is_ok());
}

#[test]
fn create_refuses_a_directory_in_use() {
    let (_dir, disk, _wal) = real_log(&options());
    assert!(matches!(Wal::create(disk, IDENTITY, options(), &[first()]), Err(CreateError::NotEmpty { .. })));
}

/// Whether they can be written around the page cache; else says that a part of a test is left out.
fn temporary_files_are_on_a_disk() -> bool {
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = Options { sync: SyncMethod::Direct, ..options() };
    match Wal::create(RealDisk::open(dir.path()), IDENTITY, options, &[first()]) {
        Ok(()) => true,
        Err(error) => {
            println!("SKIPPED direct: {}: {error}", dir.path().display());
            let strict = std::env::var_os("GRAVEN_NO_SKIP").is_some_and(|value| value == "1");
            assert!(!strict, "must run here: {error}");
            false
        }
    }
}

const DIRECT: &str = "O_DIRECT";

#[test]
fn direct_is_refused_in_a_sentence_where_the_file_system_cannot() {
    let options = Options { sync: SyncMethod::Direct, ..options() };
    let disk = SimDisk::new(0);
    disk.refuse_direct();
    let refused = Wal::create(disk.clone(), IDENTITY, options.clone(), &[first()]);
    assert!(
        matches!(refused, Err(CreateError::Config { setting: "sync", why }) if why.contains(DIRECT)),
        "{refused:?}"
    );
    // Nothing is left of it, and the other method goes.
    drop(new_log(&disk));
    let refused = Wal::open(disk.clone(), options.clone());
    assert!(matches!(refused, Err(OpenError::Config { setting: "sync", why }) if why.contains(DIRECT)), "{refused:?}");
    // A file system in memory, if there is one.
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        println!("SKIPPED the real one: no /dev/shm here");
        return;
    };
    let refused = Wal::create(RealDisk::open(dir.path()), IDENTITY, options, &[first()]);
    assert!(
        matches!(refused, Err(CreateError::Config { setting: "sync", why }) if why.contains(DIRECT)),
        "{refused:?}"
    );
}

/// One format: what is below the written mark is the same, however it got there. So all that is proven about damaged bytes holds
/// for both.
#[test]
fn direct_writes_leave_the_same_bytes_as_others() {
    let files = |sync| {
        let disk = SimDisk::new(91);
        let options = Options { sync, ..options() };
        Wal::create(disk.clone(), IDENTITY, options.clone(), &[first()]).expect("empty");
        let (mut wal, _) = Wal::open(disk.clone(), options.clone()).expect("just created");
        for round in 0..12 {
            while wal.prepare(16 << 10).expect("no fault") == PrepareState::More {}
            grow(&mut wal, 3, 700 + 211 * round);
            wal.set_hard_state(HardState { term: 2 + round as u64, vote: None }).expect("room");
            wal.sync().expect("no fault");
            wal.write_sync_point().expect("no fault");
            wal.note_commit(wal.last_index());
            if round % 4 == 3 {
                wal.release_before(wal.last_index() - 6).expect("no fault");
            }
        }
        let stats = wal.stats();
        assert!(stats.rotations > 3 && stats.recycled > 0, "{stats:?}");
        wal.close().expect("no fault");
        let written = inspect::verify(&disk).expect("closed").segments;
        let bytes = |segment: &inspect::SegmentInfo| {
            let all = disk.bytes_of(&format!("{}.seg", segment.id)).expect("there");
            if sync == SyncMethod::Direct && segment.state == inspect::SegmentState::Active {
                // The memory was that of an earlier segment: nothing of it may get here.
                let block = all.iter().take(segment.written.next_multiple_of(4096) as usize);
                assert!(block.skip(segment.written as usize).all(|byte| *byte == 0), "bytes behind the end");
            }
            all[..(segment.written as usize).min(all.len())].to_vec()
        };
        written.iter().map(|segment| (segment.id, bytes(segment))).collect::<Vec<_>>()
    };
    assert_eq!(files(SyncMethod::Fdatasync), files(SyncMethod::Direct));
}

/// Memory stands in for the active segment's file, and is let go when that can be read.
#[test]
fn direct_tail_is_read_from_memory_until_its_segment_is_sealed() {
    let disk = SimDisk::new(17);
    let options = Options { sync: SyncMethod::Direct, segment_bytes: 64 << 10, ..Options::default() };
    Wal::create(disk.clone(), IDENTITY, options.clone(), &[first()]).expect("empty");
    let (mut wal, _) = Wal::open(disk.clone(), options).expect("just created");
    let mut all = vec![first()];
    all.extend(grow(&mut wal, 5, 900));
    let reader = wal.reader();
    let early = reader.frame(3).expect("there");
    // The disk may say what it likes: what is not sealed is not read from there.
    let name = "0000000000000001.seg";
    let on_disk = disk.bytes_of(name).expect("there");
    disk.edit(name, |bytes| bytes.fill(0xEE));
    assert_eq!(read_all(&reader), all);
    disk.edit(name, |bytes| bytes[..on_disk.len()].copy_from_slice(&on_disk));
    disk.edit(name, |bytes| bytes[on_disk.len()..].fill(0));
    while wal.stats().rotations == 0 {
        all.extend(grow(&mut wal, 1, 9000));
    }
    assert_eq!(read_all(&reader), all);
    assert!(reader.stats().held_bytes > 5000, "{:?}: the borrowed frame keeps its memory", reader.stats());
    assert_eq!(early, all[2]);
    drop(early);
    assert_eq!(reader.stats().held_bytes, 0);
    disk.edit(name, |bytes| bytes[5000..6000].fill(0xEE));
    assert!((1..4).any(|index| reader.frame(index).map_or(true, |frame| frame.verify(None).is_err())));
}

#[test]
fn readers_on_other_threads_see_whole_entries_while_the_writer_appends() {
    let (_dir, _disk, mut wal) = real_log(&options());
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (reader, done) = (wal.reader(), Arc::clone(&done));
            std::thread::spawn(move || {
                let mut passes = 0_u64;
                while !done.load(Ordering::Relaxed) || passes == 0 {
                    let last = reader.last_index();
                    let frames = reader.frames(last.saturating_sub(20).max(1), last, 1 << 20).expect("written");
                    for pair in frames.windows(2) {
                        pair[1].verify(Some(pair[0].header().chain)).expect("whole");
                    }
                    passes += 1;
                }
                passes
            })
        })
        .collect();
    for _ in 0..300 {
        grow(&mut wal, 3, 400);
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().expect("no reader panicked") > 0);
    }
}

#[test]
fn entries_that_do_not_continue_the_log_are_refused_before_a_byte_is_written() {
    let disk = SimDisk::new(1);
    let mut wal = new_log(&disk);
    let frames = grow(&mut wal, 3, 10);
    let written = wal.stats().bytes_written;
    let far = records(&LogBase { index: 9, ..wal.tail() }, 1, 1);
    assert!(matches!(wal.append(&[far]), Err(AppendError::Gap { index: 10, last: 4 })));
    let other = records(&LogBase { chain: graven_frame::Chain(1), ..wal.tail() }, 1, 1);
    assert!(matches!(wal.append(&[other]), Err(AppendError::WrongChain { index: 5, .. })));
    let inside = records(&LogBase { chain: graven_frame::Chain(1), ..base(&frames[0]) }, 1, 1);
    assert!(matches!(wal.append(&[inside]), Err(AppendError::WrongChain { index: 3, .. })));
    wal.note_commit(3);
    let settled = records(&base(&frames[0]), 2, 1);
    assert!(matches!(wal.append(&[settled]), Err(AppendError::Settled { index: 3, settled: 3 })));
    assert!(matches!(wal.append(&[first()]), Err(AppendError::Settled { index: 1, .. })));
    wal.set_hard_state(HardState { term: 5, vote: Some(1) }).expect("room");
    assert!(matches!(wal.set_hard_state(HardState { term: 4, vote: None }), Err(AppendError::HardStateBack { .. })));
    assert!(matches!(wal.set_hard_state(HardState { term: 5, vote: Some(2) }), Err(AppendError::HardStateBack { .. })));
    assert!(wal.stats().bytes_written > written);
    assert_eq!(wal.last_index(), 4);
    grow(&mut wal, 1, 1);
}

#[test]
fn look_ups_by_index_offset_and_time() {
    let disk = SimDisk::new(1);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    for _ in 0..20 {
        let noop = control(&wal.tail(), 1, Kind::Noop, b"");
        wal.append(std::slice::from_ref(&noop)).expect("room");
        frames.push(noop);
        frames.extend(grow(&mut wal, 3, 700));
    }
    let reader = wal.reader();
    for frame in &frames {
        let header = frame.header();
        assert_eq!(reader.frame(header.index).expect("there"), *frame);
        assert_eq!(reader.index_of_time(header.timestamp_ms), Ok(Some(header.index)));
        if header.kind == Kind::Records {
            assert_eq!(reader.index_of_offset(header.base_offset), Ok(Some(header.index)));
        }
    }
    let last = frames.last().expect("some").header();
    assert_eq!(reader.index_of_offset(last.next_offset()), Ok(None));
    assert_eq!(reader.index_of_time(last.timestamp_ms + 1), Ok(None));
    assert_eq!(reader.frame(last.index + 1), Err(ReadError::NotYet { index: last.index + 1, last: last.index }));
    assert_eq!(reader.frame(0), Err(ReadError::Trimmed { index: 0, first: 1 }));
    assert_eq!(reader.frames(3, 40, 1).expect("there").len(), 1, "at least one");
    assert_eq!(reader.frames(3, 40, 3000).expect("there"), frames[2..6]);
    reader.populate(1, last.index);
}

#[test]
fn full_disk_refuses_records_keeps_a_reserve_for_control_entries_and_clears() {
    let disk = SimDisk::new(1);
    let mut wal = new_log(&disk);
    assert_eq!(prepare_all(&mut wal), PrepareState::Ready);
    disk.full(Some(disk.used_bytes()));
    let mut refused = false;
    for _ in 0..200 {
        let frame = records(&wal.tail(), 1, 900);
        match wal.append(&[frame]) {
            Ok(()) => wal.sync().expect("healthy disk"),
            Err(AppendError::DiskFull { .. }) => refused = true,
            Err(error) => panic!("{error}"),
        }
        let _ = wal.prepare(1 << 20).expect("a full disk closes nothing");
        if refused {
            break;
        }
    }
    assert!(refused && wal.disk_full());
    for term in 2..4 {
        wal.set_hard_state(HardState { term, vote: Some(1) }).expect("from the reserve");
        let trim = control(&wal.tail(), term, Kind::Trim, b"");
        wal.append(&[trim]).expect("from the reserve");
        wal.sync().expect("healthy disk");
    }
    let last = wal.last_index();
    assert!(wal.release_before(last).expect("healthy disk") > 1, "the trim frees segments");
    assert_eq!(prepare_all(&mut wal), PrepareState::Ready);
    assert!(!wal.disk_full());
    grow(&mut wal, 1, 900);
    wal.close().expect("healthy disk");
    assert_eq!(Wal::open(disk, options()).expect("clean").1.last_index, last + 1);
}

fn prepare_all(wal: &mut Wal<SimDisk>) -> PrepareState {
    loop {
        match wal.prepare(5000).expect("healthy disk") {
            PrepareState::More => {}
            state => return state,
        }
    }
}

#[test]
fn reset_starts_the_log_anew_and_survives_restarts() {
    let disk = SimDisk::new(1);
    let mut wal = new_log(&disk);
    grow(&mut wal, 12, 2000);
    let behind =
        LogBase { index: 500, term: 7, chain: graven_frame::Chain(0xABC), next_offset: 9000, timestamp_ms: 77 };
    wal.reset(behind).expect("room");
    wal.set_hard_state(HardState { term: 7, vote: None }).expect("room");
    let mut frames = grow(&mut wal, 3, 2000);
    frames.extend(grow(&mut wal, 9, 2000));
    wal.sync().expect("healthy disk");
    assert_eq!(wal.reader().frame(13), Err(ReadError::Trimmed { index: 13, first: 501 }));
    let before = wal.stats().segments;
    assert_eq!(wal.release_before(501).expect("healthy disk"), 501);
    assert!(wal.stats().segments < before);
    wal.close().expect("healthy disk");
    let (wal, recovered) = Wal::open(disk, options()).expect("clean");
    assert_eq!((recovered.base, recovered.first_index, recovered.last_index), (behind, 501, 512));
    assert_eq!(read_all(&wal.reader()), frames);
}

#[test]
fn sync_point_is_due_once_after_a_sync() {
    let disk = SimDisk::new(1);
    let mut wal = new_log(&disk);
    wal.write_sync_point().expect("healthy disk");
    assert!(!wal.sync_point_due());
    grow(&mut wal, 1, 10);
    assert!(!wal.sync_point_due(), "nothing is synced yet");
    wal.sync().expect("healthy disk");
    assert!(wal.sync_point_due());
    wal.write_sync_point().expect("healthy disk");
    assert!(!wal.sync_point_due());
    let syncs = wal.stats().syncs;
    wal.write_sync_point().expect("healthy disk");
    wal.sync().expect("healthy disk");
    assert_eq!(wal.stats().syncs, syncs, "nothing to do, nothing done");
}

/// Each start of an idle log adds a sync point. When the segment is full of them they go on in the next one: over its footer they would make it
/// look damaged.
#[test]
fn any_number_of_starts_leaves_room_for_the_footer() {
    let disk = SimDisk::new(1);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    frames.extend(grow(&mut wal, 4, 2000));
    for _ in 0..400 {
        wal.sync().expect("healthy disk");
        prepare_all(&mut wal);
        wal.write_sync_point().expect("healthy disk");
        drop(wal);
        wal = Wal::open(disk.clone(), options()).expect("clean").0;
    }
    assert!(wal.stats().segments > 1, "more sync points than one segment holds");
    frames.extend(grow(&mut wal, 12, 2000));
    assert_eq!(read_all(&wal.reader()), frames);
    drop(wal);
    let (wal, recovered) = Wal::open(disk, options()).expect("clean");
    assert_eq!((recovered.report.scanned_segments, &*recovered.report.healed), (1, &[][..]), "footers are whole");
    assert_eq!(read_all(&wal.reader()), frames);
}

#[test]
fn an_entry_larger_than_a_segment_gets_a_larger_one() {
    let disk = SimDisk::new(1);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    for len in [10, 100_000, 10, 40_000, 300_000, 10] {
        frames.extend(grow(&mut wal, 1, len));
        wal.sync().expect("healthy disk");
    }
    wal.close().expect("healthy disk");
    let (wal, _) = Wal::open(disk, options()).expect("clean");
    assert_eq!(read_all(&wal.reader()), frames);
}

#[test]
fn commit_notes_reach_the_disk_as_far_as_they_are_durable() {
    let disk = SimDisk::new(1);
    let mut wal = new_log(&disk);
    grow(&mut wal, 3, 10);
    wal.sync().expect("healthy disk");
    grow(&mut wal, 2, 10);
    wal.note_commit(6);
    wal.sync().expect("healthy disk");
    grow(&mut wal, 1, 10);
    drop(wal);
    let (_, recovered) = Wal::open(disk.clone(), options()).expect("clean");
    assert_eq!((recovered.known_commit, recovered.last_index), (6, 7));
    assert!(disk.lock("LOCK").is_ok(), "a dropped log lets the directory go");
}
