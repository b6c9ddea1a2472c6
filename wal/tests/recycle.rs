//! Segments that are let go and used again: nothing of their earlier life comes back, and nobody reads the next one through
//! what was borrowed from it.

mod common;

use common::{IDENTITY, Random, base, first, grow, new_log, options, read_all, records};
use graven_frame::Frame;
use graven_wal::sim::SimDisk;
use graven_wal::{Disk, HardState, Options, PrepareState, RealDisk, Wal, inspect};

fn prepared<D: Disk>(wal: &mut Wal<D>) {
    while wal.prepare(1 << 20).expect("no fault") == PrepareState::More {}
}

/// Grows the log by about a segment and lets go of everything but the last entries.
fn turn<D: Disk>(wal: &mut Wal<D>, entries: usize) -> Vec<Frame> {
    let frames = grow(wal, entries, 1500);
    wal.sync().expect("no fault");
    wal.note_commit(wal.last_index());
    wal.release_before(wal.last_index().saturating_sub(4)).expect("no fault");
    prepared(wal);
    frames
}

#[test]
fn log_that_is_trimmed_as_it_grows_makes_no_new_files() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = RealDisk::open(dir.path());
    let options = Options { segment_bytes: 256 << 10, ..Options::default() };
    Wal::create(disk.clone(), IDENTITY, options.clone(), &[first()]).expect("empty");
    let (mut wal, _) = Wal::open(disk.clone(), options.clone()).expect("just created");
    prepared(&mut wal);
    for _ in 0..8 {
        turn(&mut wal, 100);
    }
    let before = wal.stats();
    for _ in 0..40 {
        turn(&mut wal, 100);
    }
    let after = wal.stats();
    assert!(after.rotations > before.rotations + 15, "{after:?}");
    assert_eq!(after.created, before.created, "files made in steady state");
    assert_eq!(after.bytes_prepared, before.bytes_prepared, "zeroes written in steady state");
    assert_eq!((after.late_allocations, after.unprepared_rotations, after.held_bytes), (0, 0, 0), "{after:?}");
    assert_eq!(after.bytes_on_disk, before.bytes_on_disk);
    let kept = read_all(&wal.reader());
    wal.close().expect("no fault");
    let found = inspect::verify(&disk).expect("closed");
    assert!(found.damage.is_empty() && found.healed.is_empty() && found.torn_bytes == 0, "{found:?}");
    let (wal, recovered) = Wal::open(disk, options).expect("clean");
    assert_eq!(read_all(&wal.reader()), kept);
    assert_eq!((recovered.report.torn_bytes, recovered.report.rewritten_bytes), (0, 64), "{:?}", recovered.report);
}

#[test]
fn borrowed_segment_is_removed_and_not_recycled() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = RealDisk::open(dir.path());
    let options = Options { segment_bytes: 64 << 10, ..Options::default() };
    Wal::create(disk.clone(), IDENTITY, options.clone(), &[first()]).expect("empty");
    let (mut wal, _) = Wal::open(disk, options).expect("just created");
    prepared(&mut wal);
    let written = grow(&mut wal, 1, 1500);
    let reader = wal.reader();
    let borrowed = reader.frame(2).expect("there");
    for _ in 0..10 {
        turn(&mut wal, 40);
    }
    assert_eq!(borrowed, written[0], "what was borrowed does not change");
    let stats = reader.stats();
    assert_eq!((stats.held_segments, stats.held_bytes), (1, 64 << 10), "{stats:?}");
    assert!(stats.held_bytes < stats.held_limit_bytes);
    assert_eq!(wal.stats().held_bytes, 64 << 10);
    drop(borrowed);
    assert_eq!(reader.stats().held_bytes, 0);
    prepared(&mut wal);
    assert_eq!(wal.stats().held_bytes, 0);
}

/// Power fails at every single call to the disk while the log turns over; what is found is a log whose entries are those
/// that were written, at least up to the last sync.
#[test]
fn power_cut_anywhere_while_segments_are_recycled() {
    let run = |disk: &SimDisk| -> (Vec<Frame>, u64) {
        let mut all = vec![first()];
        let mut synced = 1;
        let Ok((mut wal, _)) = Wal::open(disk.clone(), options()) else { return (all, synced) };
        for term in 1..=5 {
            for _ in 0..6 {
                let frame = records(&base(all.last().expect("first")), term, 1800);
                let Ok(()) = wal.append(std::slice::from_ref(&frame)) else { return (all_with(all, frame), synced) };
                all.push(frame);
                if wal.sync().is_err() {
                    return (all, synced);
                }
                synced = wal.last_index();
                wal.note_commit(synced);
                if wal.release_before(synced - 1).is_err() || wal.prepare(8 << 10).is_err() {
                    return (all, synced);
                }
            }
            if wal.set_hard_state(HardState { term, vote: Some(term) }).is_err() {
                return (all, synced);
            }
        }
        (all, synced)
    };
    let start = SimDisk::new(77);
    Wal::create(start.clone(), IDENTITY, options(), &[first()]).expect("empty");
    let whole = start.copy();
    run(&whole);
    let mut recycled_seen = 0;
    for cut in 0..whole.changes() {
        for seed in 0..4 {
            let disk = start.copy();
            disk.power_off_after(cut);
            let (all, synced) = run(&disk);
            let after = disk.crash(seed);
            let context = format!("cut {cut} seed {seed}");
            let (mut wal, recovered) =
                Wal::open(after.clone(), options()).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(recovered.last_index >= synced, "{context}: {} of {synced}", recovered.last_index);
            let read = read_all(&wal.reader());
            let from = recovered.first_index as usize - 1;
            assert_eq!(read, all[from..recovered.last_index as usize], "{context}");
            recycled_seen += u64::from(recovered.report.stale_bytes > 0);
            // And it goes on.
            grow(&mut wal, 12, 1800);
            let kept = read_all(&wal.reader());
            wal.close().expect("no fault");
            let (wal, recovered) = Wal::open(after, options()).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(recovered.report.torn_bytes, 0, "{context}");
            assert_eq!(read_all(&wal.reader()), kept, "{context}");
        }
    }
    assert!(recycled_seen > 50, "{recycled_seen} logs ended in a recycled segment");
}

fn all_with(mut all: Vec<Frame>, frame: Frame) -> Vec<Frame> {
    all.push(frame);
    all
}

/// A log whose active segment was recycled, closed.
fn recycled_log() -> (SimDisk, Vec<Frame>, String) {
    let disk = SimDisk::new(5);
    let mut wal = new_log(&disk);
    prepared(&mut wal);
    while wal.stats().recycled < 3 || wal.stats().rotations < 12 {
        turn(&mut wal, 4);
    }
    turn(&mut wal, 1);
    let kept = read_all(&wal.reader());
    wal.close().expect("no fault");
    let found = inspect::verify(&disk).expect("closed");
    let active = found.segments.iter().find(|segment| segment.state == inspect::SegmentState::Active);
    let name = format!("{}.seg", active.expect("there").id);
    (disk, kept, name)
}

#[test]
fn clean_end_in_front_of_older_records_is_no_torn_write() {
    let (disk, kept, _) = recycled_log();
    let (wal, recovered) = Wal::open(disk, options()).expect("clean");
    assert!(recovered.report.stale_bytes > 0, "{:?}", recovered.report);
    assert_eq!((recovered.report.torn_bytes, &recovered.report.saved_as), (0, &None));
    assert_eq!(read_all(&wal.reader()), kept);
}

/// Without a valid prefix an unfinished write looks like the remains of earlier records; the end mark before it tells.
#[test]
fn unfinished_write_over_older_records_is_saved_and_cut() {
    let (disk, kept, name) = recycled_log();
    let end = inspect::scan(&disk)
        .expect("a log")
        .segments
        .iter()
        .filter_map(|one| one.entries.map(|_| one.written))
        .next_back();
    let end = end.expect("written");
    let mut random = Random(9);
    for at in end..end + 300 {
        let byte = random.below(256) as u8;
        disk.rot(&name, at, |there| *there = byte);
    }
    let found = inspect::scan(&disk).expect("a log");
    assert!(found.torn_bytes >= 300 && found.torn_bytes <= 4096 + 64, "{found:?}");
    let (wal, recovered) = Wal::open(disk.clone(), options()).expect("torn is no damage");
    assert_eq!(recovered.report.torn_bytes, found.torn_bytes);
    assert!(recovered.report.saved_as.is_some());
    assert_eq!(read_all(&wal.reader()), kept);
    wal.close().expect("no fault");
    let (_, recovered) = Wal::open(disk, options()).expect("clean");
    assert_eq!(recovered.report.torn_bytes, 0);
}
