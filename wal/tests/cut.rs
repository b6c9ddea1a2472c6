//! Bytes cut from the end of a log are kept, also on a full disk, or not cut.

mod common;

use common::{grow, new_log, options, read_all};
use graven_wal::sim::SimDisk;
use graven_wal::{OpenError, Wal};

const SEGMENT: &str = "0000000000000001.seg";

/// A closed log with bytes of an unfinished write behind its end, on a disk without room.
fn torn(disk: &SimDisk, fill: u8, len: u64) {
    let end = disk.bytes_of(SEGMENT).expect("there").iter().rposition(|byte| *byte != 0).expect("written") as u64;
    let end = end.next_multiple_of(64);
    for at in end..end + len {
        disk.rot(SEGMENT, at, |byte| *byte = fill);
    }
    disk.full(Some(disk.used_bytes()));
}

#[test]
fn full_disk_keeps_cut_bytes_one_after_the_other() {
    let disk = SimDisk::new(31);
    let mut wal = new_log(&disk);
    grow(&mut wal, 2, 100);
    wal.close().expect("no fault");
    for fill in 0xA0..0xA9 {
        torn(&disk, fill, 700);
        let (wal, recovered) = Wal::open(disk.clone(), options()).expect("room was taken ahead");
        assert_eq!((recovered.report.torn_bytes, recovered.report.saved_as.as_deref()), (700, Some("cut")));
        assert_eq!(read_all(&wal.reader()).len(), 3);
        drop(wal);
        let kept = disk.bytes_of("cut").expect("there");
        for earlier in 0xA0..=fill {
            assert_eq!(kept.iter().filter(|byte| **byte == earlier).count() / 700, 1, "{earlier:x}");
        }
    }
    assert!(disk.names().iter().all(|name| !name.starts_with("cut-")), "{:?}", disk.names());
}

#[test]
fn bytes_that_find_no_room_are_not_cut() {
    let disk = SimDisk::new(32);
    let mut wal = new_log(&disk);
    grow(&mut wal, 2, 100);
    wal.close().expect("no fault");
    disk.lose("cut");
    torn(&disk, 0xA5, 700);
    let before = disk.bytes_of(SEGMENT);
    match Wal::open(disk.clone(), options()) {
        Err(OpenError::NoRoomForCut { bytes: 700, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.bytes_of(SEGMENT), before);
    disk.full(None);
    let (_, recovered) = Wal::open(disk, options()).expect("room again");
    assert_eq!(recovered.report.torn_bytes, 700);
}

/// A node that crashes for years: the names in its directory stay few, and every cut byte is there.
#[test]
fn number_of_files_with_cut_bytes_is_bounded_and_none_is_lost() {
    let disk = SimDisk::new(33);
    let mut wal = new_log(&disk);
    grow(&mut wal, 2, 100);
    wal.close().expect("no fault");
    let cuts = 100_u64;
    let fill_of = |cut: u64| 0x80 | cut as u8;
    let (mut in_files, mut in_area) = (0, 0);
    for cut in 0..cuts {
        torn(&disk, fill_of(cut), 10_000 + cut);
        disk.full(None);
        let (wal, recovered) = Wal::open(disk.clone(), options()).expect("room");
        assert_eq!(read_all(&wal.reader()).len(), 3);
        match recovered.report.saved_as.as_deref() {
            Some("cut") => in_area += 1,
            Some(name) if name.starts_with("cut-") => in_files += 1,
            other => panic!("cut {cut}: {other:?}"),
        }
    }
    assert_eq!((in_files, in_area), (32, 68), "further ones go behind one another into one file");
    let names: Vec<_> = disk.names().into_iter().filter(|name| name.starts_with("cut")).collect();
    assert_eq!(names.len(), 33, "{names:?}");
    let kept: Vec<Vec<u8>> = names.iter().map(|name| disk.bytes_of(name).expect("there")).collect();
    for cut in 0..cuts {
        let run = vec![fill_of(cut); 10_000 + cut as usize];
        assert!(kept.iter().any(|bytes| bytes.windows(run.len()).any(|window| window == run)), "cut {cut} is lost");
    }
    // On a disk that is full by now there still is room for another one.
    torn(&disk, 0x7F, 10_900);
    let (_, recovered) = Wal::open(disk, options()).expect("room was taken ahead");
    assert_eq!(recovered.report.saved_as.as_deref(), Some("cut"));
}
