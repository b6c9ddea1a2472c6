//! A running log: damage in sealed segments is found by reading them again, and mended while the log goes on.

mod common;

use common::{IDENTITY, first, grow, new_log, options, read_all};
use graven_frame::Frame;
use graven_wal::mend::{MendError, SealedMender, SealedStep};
use graven_wal::sim::SimDisk;
use graven_wal::{
    Damage, HardState, LogReader, RealDisk, ScrubError, ScrubPosition, SegmentId, SyncMethod, Wal, inspect,
};

fn segment(id: u64) -> String {
    format!("{id:016x}.seg")
}

/// A log of several segments, still open, and all of its entries.
fn log() -> (SimDisk, Wal<SimDisk>, Vec<Frame>) {
    let disk = SimDisk::new(31);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    for term in 2..6 {
        frames.extend(grow(&mut wal, 5, 1900));
        wal.set_hard_state(HardState { term, vote: Some(term) }).expect("room");
        wal.sync().expect("no fault");
    }
    assert!(wal.stats().segments > 3);
    (disk, wal, frames)
}

/// A byte in the body of an entry of a segment.
fn inside(disk: &SimDisk, id: u64) -> u64 {
    let mut entries = inspect::entries(disk).expect("a log").map(|entry| entry.expect("intact"));
    entries.find(|entry| entry.segment == SegmentId(id)).expect("some").at + 300
}

/// One round over everything: what was found, and how many bytes were read.
fn round(reader: &LogReader, max_bytes: u64) -> (Vec<Damage>, u64) {
    let (mut found, mut bytes, mut at) = (Vec::new(), 0, ScrubPosition::default());
    loop {
        match reader.scrub(at, max_bytes) {
            Ok(step) => {
                bytes += step.bytes;
                let Some(next) = step.next else { return (found, bytes) };
                assert_ne!(next, at, "it comes further");
                at = next;
            }
            Err(ScrubError::Damaged { damage, skip }) => {
                found.push(*damage);
                at = skip;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn every_flipped_byte_of_a_sealed_segment_is_found_by_a_scrub() {
    let (disk, wal, _) = log();
    let reader = wal.reader();
    let (found, bytes) = round(&reader, 1);
    assert_eq!(found, []);
    assert_eq!(round(&reader, u64::MAX), (Vec::new(), bytes), "the pace changes nothing");
    let name = segment(2);
    let content = disk.bytes_of(&name).expect("there");
    let written = inspect::scan(&disk).expect("a log").segments[1].written;
    let places = (0..4096).step_by(7).chain((4096..written).step_by(11)).chain((16 << 10) - 128..16 << 10);
    let mut seen = 0;
    for at in places {
        // Bytes that pad a record, or lie between the copies of a hard state, mean nothing.
        disk.rot(&name, at, |byte| *byte ^= 0x20);
        let (found, _) = round(&reader, 4096);
        let padding = content.get(at as usize).is_none_or(|byte| *byte == 0);
        assert!(found.len() == 1 || (found.is_empty() && padding), "byte {at}: {found:?}");
        for damage in &found {
            assert_eq!(damage.segment, SegmentId(2));
            assert!(damage.from < damage.to && damage.to > at / 64 * 64, "byte {at}: {damage}");
        }
        seen += found.len();
        disk.rot(&name, at, |byte| *byte ^= 0x20);
    }
    println!("{seen} found");
    assert!(seen > 1000);
}

/// The last segment is being written to: it is not read.
#[test]
fn scrub_reads_sealed_segments_only_and_passes_over_released_ones() {
    let (disk, mut wal, _) = log();
    let last = wal.stats().segments;
    disk.rot(&segment(last), 4096 + 70, |byte| *byte ^= 1);
    assert_eq!(round(&wal.reader(), 4096).0, []);
    let reader = wal.reader();
    let step = reader.scrub(ScrubPosition::default(), 2000).expect("intact");
    wal.note_commit(wal.last_index());
    wal.release_before(wal.last_index()).expect("no fault");
    let next = step.next.expect("more to do");
    assert!(reader.scrub(next, 2000).is_ok(), "the segment is gone, and that is no damage");
}

fn mend(mender: &mut SealedMender<SimDisk>, frames: &[Frame]) -> Result<u64, MendError> {
    let mut fed = 0;
    loop {
        match mender.step()? {
            SealedStep::More => {}
            SealedStep::Ready => return Ok(fed),
            SealedStep::Wants { first, last } => {
                let filled = mender.fill(&frames[first as usize - 1..first as usize])?;
                assert_eq!((filled.next, filled.done), (first + 1, first == last));
                fed += 1;
            }
        }
    }
}

#[test]
fn sealed_segment_is_mended_while_the_log_goes_on() {
    let entry = inside(&log().0, 2);
    for place in [100, entry, entry + 2048, (16 << 10) - 100] {
        let (disk, mut wal, mut frames) = log();
        let reader = wal.reader();
        let borrowed = reader.frame(7).expect("intact");
        disk.rot(&segment(2), place, |byte| *byte ^= 4);
        let damaged = disk.bytes_of(&segment(2));
        assert_eq!(round(&reader, 4096).0.len(), 1, "byte {place}");
        let mut mender = wal.mend_sealed(SegmentId(2)).expect("sealed");
        assert!(matches!(wal.mend_sealed(SegmentId(1)), Err(MendError::NotSealed { .. })), "one at a time");
        frames.extend(grow(&mut wal, 3, 1900));
        let fed = mend(&mut mender, &frames).unwrap_or_else(|error| panic!("byte {place}: {error}"));
        frames.extend(grow(&mut wal, 3, 1900));
        let quarantine = wal.finish_sealed(mender).expect("whole");
        assert_eq!(disk.bytes_of(&format!("{quarantine}/{}", segment(2))), damaged, "the damaged file is kept");
        println!("byte {place}: {fed} entries");
        assert_eq!(round(&reader, 4096).0, [], "byte {place}");
        assert_eq!(read_all(&reader), frames);
        assert_eq!(borrowed, frames[6], "what was borrowed before is still there");
        frames.extend(grow(&mut wal, 8, 1900));
        assert_eq!(read_all(&reader), frames);
        let hard_state = wal.hard_state();
        wal.close().expect("no fault");
        let after = disk.crash_keeping(|_| false);
        let verified = inspect::verify(&after).expect("a log");
        assert!(verified.damage.is_empty() && verified.healed.is_empty(), "{verified:?}");
        let (wal, recovered) = Wal::open(after, options()).expect("intact");
        assert_eq!((read_all(&wal.reader()), recovered.hard_state), (frames, hard_state));
    }
}

/// Entries of the mended segment that were superseded meanwhile stay gone.
#[test]
fn entries_superseded_while_a_segment_is_mended_stay_superseded() {
    let (disk, mut wal, mut frames) = log();
    disk.rot(&segment(2), inside(&disk, 2), |byte| *byte ^= 4);
    let mut mender = wal.mend_sealed(SegmentId(2)).expect("sealed");
    mend(&mut mender, &frames).expect("fits");
    let (first, last) = inspect::scan(&disk).expect("a log").segments[1].entries.expect("some");
    let keep = first + 1;
    assert!(keep < last);
    frames.truncate(keep as usize);
    let new = common::records(&common::base(&frames[keep as usize - 1]), 9, 50);
    wal.append(std::slice::from_ref(&new)).expect("continues");
    frames.push(new);
    wal.finish_sealed(mender).expect("whole");
    assert_eq!(read_all(&wal.reader()), frames);
    wal.close().expect("no fault");
    let (wal, _) = Wal::open(disk, options()).expect("intact");
    assert_eq!(read_all(&wal.reader()), frames);
}

#[test]
fn segment_released_while_it_is_mended_is_left_alone() {
    let (disk, mut wal, frames) = log();
    disk.rot(&segment(1), 4096 + 400, |byte| *byte ^= 4);
    let mut mender = wal.mend_sealed(SegmentId(1)).expect("sealed");
    mend(&mut mender, &frames).expect("fits");
    wal.note_commit(wal.last_index());
    wal.sync().expect("no fault");
    wal.release_before(wal.last_index()).expect("no fault");
    assert!(matches!(wal.finish_sealed(mender), Err(MendError::Gone { .. })));
    assert!(disk.names().iter().all(|name| !name.starts_with("mended-")), "{:?}", disk.names());
    grow(&mut wal, 3, 1900);
    assert!(wal.mend_sealed(SegmentId(1)).is_err(), "it is gone");
    let last = wal.stats().segments;
    assert!(wal.mend_sealed(SegmentId(last + 90)).is_err());
}

/// The same on a real file system, where a rename takes the file away under a map.
#[test]
fn sealed_segment_is_mended_on_a_real_disk() {
    for sync in [SyncMethod::Fdatasync, SyncMethod::Direct] {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = RealDisk::open(dir.path());
        let options = graven_wal::Options { sync, ..options() };
        match Wal::create(disk.clone(), IDENTITY, options.clone(), &[first()]) {
            Err(graven_wal::CreateError::Config { .. }) => {
                println!("SKIPPED {sync:?}: this file system cannot");
                continue;
            }
            created => created.expect("empty"),
        }
        let (mut wal, _) = Wal::open(disk, options.clone()).expect("just made");
        let mut frames = vec![first()];
        frames.extend(grow(&mut wal, 20, 1900));
        wal.sync().expect("no fault");
        let borrowed = wal.reader().frame(9).expect("intact");
        let path = dir.path().join(segment(2));
        let mut bytes = std::fs::read(&path).expect("there");
        bytes[5000] ^= 8;
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("there");
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes[5000..5001], 5000).expect("written");
        let found = wal.reader().scrub(ScrubPosition::default(), 1 << 20);
        let found = found.and_then(|step| wal.reader().scrub(step.next.expect("more"), 1 << 20));
        let Err(ScrubError::Damaged { damage, .. }) = found else { panic!("{sync:?}: {found:?}") };
        let mut mender = wal.mend_sealed(damage.segment).expect("sealed");
        loop {
            match mender.step().expect("mendable") {
                SealedStep::More => {}
                SealedStep::Ready => break,
                SealedStep::Wants { first, last } => {
                    mender.fill(&frames[first as usize - 1..last as usize]).expect("they fit");
                }
            }
        }
        wal.finish_sealed(mender).expect("whole");
        assert_eq!(read_all(&wal.reader()), frames);
        assert_eq!(borrowed, frames[8]);
        assert!(wal.reader().stats().held_segments <= 1);
        wal.close().expect("no fault");
        let (wal, _) = Wal::open(RealDisk::open(dir.path()), options).expect("intact");
        assert_eq!(read_all(&wal.reader()), frames);
    }
}
