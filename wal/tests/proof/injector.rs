//! The simulated disk does what it is there for: it loses what was not synced. A crash test on a disk that keeps
//! everything proves nothing.

use std::io::{ErrorKind, IoSlice};

use graven_wal::sim::{Fault, Op, SECTOR_BYTES, SimDisk, Unsynced};
use graven_wal::{Disk, DiskFile, WriteMode};

const NAME: &str = "file";

/// A disk with one durable file of four sectors of ones.
fn disk() -> SimDisk {
    let disk = SimDisk::new(7);
    let file = disk.create(NAME, WriteMode::Buffered).expect("new");
    file.write_at(0, &[1; 4 * SECTOR_BYTES]).expect("no fault");
    file.sync_data().expect("no fault");
    disk.sync_dir().expect("no fault");
    disk
}

fn sectors(disk: &SimDisk) -> Vec<u8> {
    disk.bytes_of(NAME).expect("there").chunks(SECTOR_BYTES).map(|sector| sector[0]).collect()
}

#[test]
fn unsynced_sectors_are_lost_in_every_combination() {
    let disk = disk();
    let file = disk.open(NAME, Some(WriteMode::Buffered)).expect("there");
    file.write_at(100, &[2; 3 * SECTOR_BYTES]).expect("no fault");
    let unsynced = disk.unsynced();
    assert_eq!(unsynced, [0, 1, 2, 3].map(|sector| Unsynced::Sector(NAME.to_owned(), sector)));
    let found: std::collections::BTreeSet<_> = (0..16)
        .map(|mask| {
            let bytes = disk.crash_keeping(|nth| mask >> nth & 1 == 1).bytes_of(NAME).expect("there");
            // Each sector is the old one or the new one, as a whole.
            for (sector, bytes) in bytes.chunks(SECTOR_BYTES).enumerate() {
                let new = mask >> sector & 1 == 1;
                let written = 100 + SECTOR_BYTES * sector..(100 + SECTOR_BYTES * sector + SECTOR_BYTES);
                assert_eq!(bytes.contains(&2), new && !written.is_empty(), "sector {sector} of crash {mask:b}");
            }
            bytes
        })
        .collect();
    assert_eq!(found.len(), 16, "all subsets are different");
    let by_seed: std::collections::BTreeSet<_> = (0..200).map(|seed| disk.crash(seed).bytes_of(NAME)).collect();
    assert!(by_seed.len() >= 14, "seeds reach {} of 16", by_seed.len());
    file.sync_data().expect("no fault");
    assert!(disk.unsynced().is_empty());
    assert_eq!(disk.crash_keeping(|_| false).bytes_of(NAME), disk.bytes_of(NAME), "what was synced stays");
}

#[test]
fn unsynced_names_are_lost() {
    let disk = disk();
    disk.create("new", WriteMode::Buffered).expect("new");
    disk.rename(NAME, "renamed").expect("there");
    disk.remove("new").expect("there");
    assert_eq!(disk.unsynced().iter().filter(|thing| matches!(thing, Unsynced::Name(_))).count(), 3);
    assert_eq!(disk.crash_keeping(|_| false).names(), [NAME], "creation, rename and removal are gone");
    assert_eq!(disk.crash_keeping(|nth| nth == 0).names(), [NAME, "new"]);
    assert_eq!(disk.crash_keeping(|nth| nth == 1).names(), ["renamed"]);
    assert_eq!(disk.crash_keeping(|_| true).names(), ["renamed"]);
    disk.sync_dir().expect("no fault");
    assert_eq!(disk.crash_keeping(|_| false).names(), ["renamed"]);
}

#[test]
fn unsynced_growth_is_lost() {
    let disk = disk();
    let file = disk.open(NAME, Some(WriteMode::Buffered)).expect("there");
    file.allocate(1 << 20).expect("no fault");
    let len = |disk: &SimDisk| disk.open(NAME, None).and_then(|file| file.len()).expect("there");
    assert_eq!(len(&disk), 1 << 20);
    assert_eq!(len(&disk.crash_keeping(|_| false)), 4 * SECTOR_BYTES as u64);
    assert_eq!(len(&disk.crash_keeping(|_| true)), 1 << 20);
}

/// The lie that five databases believed: the error comes once, then syncs succeed and reads show the bytes, and a crash takes
/// them away.
#[test]
fn failed_sync_is_reported_once_and_then_lies() {
    let disk = disk();
    let file = disk.open(NAME, Some(WriteMode::Buffered)).expect("there");
    file.write_at(0, &[2; SECTOR_BYTES]).expect("no fault");
    disk.fail_nth(Op::Sync, 1, Fault::Io);
    assert!(file.sync_data().is_err());
    file.sync_data().expect("the second one lies");
    assert_eq!(sectors(&disk), [2, 1, 1, 1], "reads show it");
    assert_eq!(sectors(&disk.crash_keeping(|_| true)), [1, 1, 1, 1], "no crash keeps it");
    file.write_at(0, &[2; SECTOR_BYTES]).expect("no fault");
    file.sync_data().expect("no fault");
    assert_eq!(sectors(&disk.crash_keeping(|_| false)), [2, 1, 1, 1], "written again it stays");
}

#[test]
fn the_nth_call_fails_and_no_other() {
    for fault in [Fault::Io, Fault::Full] {
        let disk = disk();
        let file = disk.open(NAME, Some(WriteMode::Buffered)).expect("there");
        disk.fail_nth(Op::Write, 2, fault);
        disk.fail_change(4, fault);
        let kinds: Vec<_> = (0..5).map(|_| file.write_at(0, b"x").map_err(|error| error.kind())).collect();
        let kind = if fault == Fault::Full { ErrorKind::StorageFull } else { ErrorKind::Other };
        assert_eq!(kinds, [Ok(()), Err(kind), Ok(()), Err(kind), Ok(())]);
    }
}

#[test]
fn short_writes_and_short_reads_are_short() {
    let (mut shorter, mut partial) = (0, 0);
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let file = disk.create(NAME, WriteMode::Buffered).expect("new");
        disk.fail_nth(Op::Write, 1, Fault::Short);
        let error = file.write_vectored_at(0, &mut [IoSlice::new(&[1; 600]), IoSlice::new(&[2; 600])]);
        assert_eq!(error.map_err(|error| error.kind()), Err(ErrorKind::WriteZero));
        let written = disk.bytes_of(NAME).expect("there").len();
        assert!(written <= 1200);
        partial += usize::from(written > 0 && written < 1200);
        file.write_at(0, &[3; 1200]).expect("no fault");
        disk.fail_nth(Op::Read, 1, Fault::Short);
        let mut bytes = [0; 1200];
        shorter += usize::from(file.read_at(0, &mut bytes).expect("no error") < 1200);
        assert_eq!(file.read_at(0, &mut bytes).expect("no error"), 1200);
    }
    assert!(shorter == 20 && partial > 10, "{shorter} short reads, {partial} writes of a part");
}

#[test]
fn power_off_stops_every_change_and_no_read() {
    let disk = disk();
    let file = disk.open(NAME, Some(WriteMode::Buffered)).expect("there");
    disk.power_off_after(1);
    file.write_at(0, &[2; SECTOR_BYTES]).expect("the last one");
    assert!(file.sync_data().is_err() && disk.sync_dir().is_err() && disk.remove(NAME).is_err());
    assert!(
        file.write_at(0, b"x").is_err() && file.allocate(9).is_err() && disk.create("n", WriteMode::Buffered).is_err()
    );
    let mut byte = [0];
    file.read_exact_at(600, &mut byte).expect("reads go on");
    assert_eq!(sectors(&disk.crash_keeping(|_| false)), [1, 1, 1, 1]);
}

#[test]
fn full_disk_refuses_growth_only() {
    let disk = disk();
    let file = disk.open(NAME, Some(WriteMode::Buffered)).expect("there");
    disk.full(Some(disk.used_bytes()));
    file.write_at(0, &[2; 4 * SECTOR_BYTES]).expect("no growth");
    let refused = file.write_at(0, &[2; 5 * SECTOR_BYTES]);
    assert_eq!(refused.map_err(|error| error.kind()), Err(ErrorKind::StorageFull));
    assert_eq!(file.allocate(1 << 20).map_err(|error| error.kind()), Err(ErrorKind::StorageFull));
    disk.full(None);
    file.allocate(1 << 20).expect("room again");
}
