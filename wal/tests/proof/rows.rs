//! Rows of the recovery table for which the bytes must be forged: nothing that this crate writes looks like that.

use graven_frame::{Frame, Kind};
use graven_wal::sim::{SimDisk, Unsynced};
use graven_wal::{LogBase, OpenError, Wal, inspect};

use crate::common::{base, control, first, grow, new_log, options, records};
use crate::script::look;

const SEGMENT: &str = "0000000000000001.seg";

/// Where the last record of an entry stands, and the byte behind it.
fn place(disk: &SimDisk, index: u64) -> (usize, usize) {
    let entries = inspect::entries(disk).expect("a log").map(|entry| entry.expect("intact"));
    let entry = entries.filter(|entry| entry.header.index == index).last().expect("there");
    let at = entry.at as usize;
    (at, at + (64 + entry.header.frame_len()).next_multiple_of(64))
}

/// The end of what is written.
fn end(disk: &SimDisk) -> usize {
    let bytes = disk.bytes_of(SEGMENT).expect("there");
    bytes.iter().rposition(|byte| *byte != 0).map_or(4096, |last| last + 1).next_multiple_of(64)
}

/// Writes the record of a frame at `at`, as one of the segment with this salt would be: every sum is right.
fn forge(disk: &SimDisk, at: usize, frame: &[u8], salt: Option<u64>, watermark: u64, known_commit: u64) {
    disk.edit(SEGMENT, |bytes| {
        let own_salt = u64::from_le_bytes(bytes[24..32].try_into().expect("eight bytes"));
        let mut prefix = b"GRVR".to_vec();
        prefix.extend_from_slice(&[1, 0, 0, 0]);
        for number in [salt.unwrap_or(own_salt), 1, at as u64, watermark, known_commit] {
            prefix.extend_from_slice(&number.to_le_bytes());
        }
        prefix.extend_from_slice(&frame[92..96]);
        prefix.extend_from_slice(&frame[56..60]);
        prefix.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        prefix.extend_from_slice(&crc32fast::hash(&prefix).to_le_bytes());
        bytes[at..at + 64].copy_from_slice(&prefix);
        bytes[at + 64..at + 64 + frame.len()].copy_from_slice(frame);
    });
}

fn encoded(frame: &Frame) -> Vec<u8> {
    [frame.head().to_vec(), frame.body().concat().to_vec()].concat()
}

/// A log of a few entries, synced and not closed.
fn log() -> (SimDisk, Vec<Frame>, LogBase) {
    let disk = SimDisk::new(31);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    frames.extend(grow(&mut wal, 4, 100));
    wal.sync().expect("no fault");
    let tail = wal.tail();
    (disk, frames, tail)
}

fn entries(disk: &SimDisk) -> Result<Vec<Frame>, String> {
    let (wal, recovered) = Wal::open(disk.clone(), options()).map_err(|error| error.to_string())?;
    Ok(look(&wal.reader(), &recovered)?.frames)
}

/// Row: frame, link none. Its index is one that is there, and its chain continues nothing.
pub(crate) fn frame_that_continues_nothing_is_named() -> Result<(), String> {
    let (disk, frames, _) = log();
    let mut wrong = base(&frames[1]);
    wrong.chain = graven_frame::Chain(77);
    forge(&disk, end(&disk), &encoded(&records(&wrong, 2, 30)), None, 0, 0);
    match Wal::open(disk.clone(), options()) {
        Err(OpenError::WrongChain { index: 3, at, .. }) if at as usize + 320 > end(&disk) - 320 => Ok(()),
        other => Err(format!("an entry that continues nothing: {other:?}")),
    }
}

/// Row: frame, link settled. It continues the entry before it, and would replace one that is known to be committed.
pub(crate) fn settled_entry_is_not_replaced() -> Result<(), String> {
    let (disk, frames, tail) = log();
    let next = records(&tail, 1, 30);
    forge(&disk, end(&disk), &encoded(&next), None, 0, 4);
    let allowed = disk.copy();
    forge(&allowed, end(&allowed), &encoded(&records(&base(&frames[3]), 2, 30)), None, 0, 0);
    if entries(&allowed)?.len() != 5 {
        return Err("an entry behind what is settled may be replaced".to_owned());
    }
    forge(&disk, end(&disk), &encoded(&records(&base(&frames[2]), 2, 30)), None, 0, 0);
    match Wal::open(disk, options()) {
        Err(OpenError::WrongChain { index: 4, .. }) => Ok(()),
        other => Err(format!("an entry known to be committed was replaced: {other:?}")),
    }
}

/// Whole records behind a torn one are of this life of the segment: left there, they would stand right behind the record
/// that takes the torn one's place.
pub(crate) fn cut_records_are_not_met_again() -> Result<(), String> {
    let disk = SimDisk::new(8);
    let mut wal = new_log(&disk);
    wal.sync().map_err(|error| error.to_string())?;
    grow(&mut wal, 3, 600);
    drop(wal);
    let (at, _) = place(&disk, 2);
    disk.rot(SEGMENT, at as u64 + 300, |byte| *byte ^= 1);
    let (mut wal, recovered) = Wal::open(disk.clone(), options()).map_err(|error| error.to_string())?;
    if recovered.last_index != 1 || recovered.report.torn_bytes == 0 {
        return Err(format!("nothing vouches for these entries: {recovered:?}"));
    }
    let new = records(&wal.tail(), 2, 600);
    wal.append(std::slice::from_ref(&new)).map_err(|error| error.to_string())?;
    wal.sync().map_err(|error| error.to_string())?;
    drop(wal);
    if entries(&disk)? != [first(), new] {
        return Err("records that were cut are back".to_owned());
    }
    Ok(())
}

#[test]
fn row_frame_that_continues_nothing() {
    frame_that_continues_nothing_is_named().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn row_settled_entry_at_recovery() {
    settled_entry_is_not_replaced().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn row_cut_records() {
    cut_records_are_not_met_again().unwrap_or_else(|error| panic!("{error}"));
}

/// Row: newer. A frame inside a segment whose version, or a required feature, this software does not know.
#[test]
fn row_newer_frame_inside_a_segment() {
    for (at, byte) in [(4, 2), (8, 1)] {
        let (disk, _, tail) = log();
        let mut frame = encoded(&control(&tail, 1, Kind::Noop, b"from the future"));
        frame[at] = byte;
        let crc = crc32fast::hash(&frame[..92]).to_le_bytes();
        frame[92..96].copy_from_slice(&crc);
        forge(&disk, end(&disk), &frame, None, 0, 0);
        let before = disk.bytes_of(SEGMENT);
        let refused = Wal::open(disk.clone(), options());
        assert!(matches!(refused, Err(OpenError::NewerVersion { seen: 2, known: 1, .. })), "{refused:?}");
        assert_eq!(disk.bytes_of(SEGMENT), before, "nothing of it is cut");
    }
}

/// Row: stale, unproven. A record of an earlier life stands where one of ours should, and ours follow: of one write the
/// first sectors are missing, in a file that was recycled.
#[test]
fn row_stale_before_unproven_is_torn() {
    let (disk, frames, tail) = log();
    let at = end(&disk);
    let lost = records(&tail, 1, 100);
    forge(&disk, at, &encoded(&lost), Some(99), 0, 0);
    forge(&disk, end(&disk), &encoded(&records(&base(&lost), 1, 100)), None, 0, 0);
    let (wal, recovered) = Wal::open(disk.clone(), options()).expect("nothing vouches for it");
    assert!(recovered.report.torn_bytes > 300 && recovered.report.saved_as.is_some(), "{:?}", recovered.report);
    assert_eq!(look(&wal.reader(), &recovered).expect("intact").frames, frames);
}

/// Row: stale, proven. The same, and a later record vouches for the place.
#[test]
fn row_stale_before_proven_is_damage() {
    let (disk, _, tail) = log();
    let at = end(&disk);
    let lost = records(&tail, 1, 100);
    forge(&disk, at, &encoded(&lost), Some(99), 0, 0);
    let next = end(&disk);
    forge(&disk, next, &encoded(&records(&base(&lost), 1, 100)), None, next as u64, 0);
    let before = disk.bytes_of(SEGMENT);
    match Wal::open(disk.clone(), options()) {
        Err(OpenError::Damaged(damage)) => {
            assert_eq!((damage.from, damage.to), (at as u64, next as u64), "{damage}");
            assert_eq!((damage.first_index, damage.last_index), (tail.index + 1, tail.index + 1), "{damage}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.bytes_of(SEGMENT), before);
}

/// Row: zeroes, proven.
#[test]
fn row_zeroes_before_proven_are_damage() {
    let (disk, _, tail) = log();
    let at = end(&disk);
    let lost = records(&tail, 1, 100);
    let next = at + (64 + encoded(&lost).len()).next_multiple_of(64);
    forge(&disk, next, &encoded(&records(&base(&lost), 1, 100)), None, next as u64, 0);
    match Wal::open(disk, options()) {
        Err(OpenError::Damaged(damage)) => assert_eq!((damage.from, damage.to), (at as u64, next as u64), "{damage}"),
        other => panic!("{other:?}"),
    }
}

/// Row: frame, unanchored. The log's first segment begins with an entry that supersedes one released before it: right
/// when the log starts anew behind it, and only then.
#[test]
fn row_unanchored_entry_needs_a_reset_behind_it() {
    for with_reset in [true, false] {
        let disk = SimDisk::new(4);
        let mut wal = new_log(&disk);
        grow(&mut wal, 4, 2500);
        let keep = LogBase::after(&wal.reader().header(3).expect("there"));
        let segments = wal.stats().segments;
        let mut tail = keep;
        // The superseding entry is the one that opens the next segment.
        while wal.stats().segments == segments {
            let new = records(&tail, wal.tail().term + 1, 2500);
            wal.append(std::slice::from_ref(&new)).expect("continues entry 3");
            tail = if wal.stats().segments == segments { base(&new) } else { tail };
            if wal.stats().segments == segments && tail.index > 4 {
                tail = keep;
            }
        }
        if with_reset {
            wal.reset(LogBase { index: 50, ..wal.tail() }).expect("room");
            grow(&mut wal, 1, 50);
        }
        wal.sync().expect("no fault");
        if with_reset {
            wal.release_before(50).expect("no fault");
            drop(wal);
            let (_, recovered) = Wal::open(disk, options()).expect("it starts anew");
            assert_eq!((recovered.first_index, recovered.last_index), (51, 51));
        } else {
            drop(wal);
            disk.lose(SEGMENT);
            let opened = Wal::open(disk, options());
            assert!(matches!(opened, Err(OpenError::WrongChain { .. } | OpenError::Damaged(_))), "{opened:?}");
        }
    }
}

const SECOND: &str = "0000000000000002.seg";

/// A log that went on in its second segment with one append that was not synced, and the entries before it.
fn rotated_and_not_synced() -> (SimDisk, Wal<SimDisk>, Vec<Frame>) {
    let disk = SimDisk::new(12);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    frames.extend(grow(&mut wal, 4, 2500));
    wal.sync().expect("no fault");
    assert_eq!(wal.stats().rotations, 0);
    grow(&mut wal, 1, 900);
    assert_eq!(wal.stats().rotations, 1);
    (disk, wal, frames)
}

/// Of the first write into a segment only the records survived: it was not acknowledged, and its bytes go aside.
#[test]
fn row_records_without_their_opening_are_an_unfinished_write() {
    let (disk, wal, frames) = rotated_and_not_synced();
    let unsynced = disk.unsynced();
    let of_opening =
        |thing: &Unsynced| matches!(thing, Unsynced::Sector(name, sector) if name == SECOND && *sector < 8);
    assert!(unsynced.iter().any(of_opening) && !unsynced.iter().all(of_opening), "{unsynced:?}");
    let lost = disk.crash_keeping(|nth| !of_opening(&unsynced[nth]));
    drop(wal);
    let record = lost.bytes_of(SECOND).expect("there")[4096..].to_vec();
    let found = inspect::scan(&lost).expect("a log");
    assert!(found.torn_bytes > 4096 && found.damage.is_empty(), "{found:?}");
    let (mut wal, recovered) = Wal::open(lost.clone(), options()).expect("no damage");
    assert_eq!(look(&wal.reader(), &recovered).expect("intact").frames, frames);
    assert_eq!(recovered.report.torn_bytes, found.torn_bytes);
    let kept = lost.bytes_of(&recovered.report.saved_as.expect("saved")).expect("there");
    assert_eq!(kept[4096..], record[..kept.len() - 4096], "every byte of it is kept");
    // The segment is used after all, and nothing of the first attempt is met in it.
    let new = grow(&mut wal, 1, 100);
    wal.close().expect("no fault");
    let (wal, recovered) = Wal::open(lost, options()).expect("closed");
    assert_eq!((recovered.report.torn_bytes, recovered.last_index), (0, 6));
    assert_eq!(wal.reader().frame(6).expect("there"), new[0]);
}

/// The same bytes are gone, and a record that was written after a sync of the segment is there.
#[test]
fn row_opening_lost_under_records_that_were_synced_is_damage() {
    let (disk, mut wal, _) = rotated_and_not_synced();
    wal.sync().expect("no fault");
    wal.write_sync_point().expect("no fault");
    drop(wal);
    disk.edit(SECOND, |bytes| bytes[..4096].fill(0));
    let before = disk.bytes_of(SECOND);
    match Wal::open(disk.clone(), options()) {
        Err(OpenError::Damaged(damage)) => assert_eq!((damage.segment.0, damage.from, damage.to), (2, 0, 4096)),
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.bytes_of(SECOND), before);
}

/// Records in a segment say that the one before it was closed: if it is not, it lost something that was durable.
#[test]
fn row_unfinished_write_behind_a_segment_that_is_not_closed_is_damage() {
    let (disk, wal, frames) = rotated_and_not_synced();
    let unsynced = disk.unsynced();
    let lost = disk.crash_keeping(
        |nth| !matches!(&unsynced[nth], Unsynced::Sector(name, sector) if name == SECOND && *sector < 8),
    );
    drop(wal);
    let (_, end) = place(&lost, frames.len() as u64);
    lost.edit(SEGMENT, |bytes| bytes[end..].fill(0));
    match Wal::open(lost.clone(), options()) {
        Err(OpenError::Damaged(damage)) => {
            assert_eq!((damage.segment.0, damage.from, damage.to), (1, end as u64, 16 << 10), "{damage}");
        }
        other => panic!("{other:?}"),
    }
    // With consent the log ends where it still can be read, and the write that was not finished is out of the way.
    let plan = inspect::repair(&lost, inspect::Consent::AcceptDataLoss).expect("a plan");
    assert_eq!((plan.keeps, plan.moved.len()), (Some((1, frames.len() as u64)), 1), "{plan:?}");
    assert_eq!(entries(&lost), Ok(frames));
}
