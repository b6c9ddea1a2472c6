//! A log that refuses to open opens again, with consent, and nothing is thrown away.

mod common;

use common::{first, grow, new_log, options, read_all};
use graven_frame::Frame;
use graven_wal::inspect::{self, Consent, repair};
use graven_wal::sim::SimDisk;
use graven_wal::{HardState, OpenError, RealDisk, Wal};

/// Four segments; the last hard state is in the last one.
fn log() -> (SimDisk, Vec<Frame>, HardState) {
    let disk = SimDisk::new(21);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    for term in 2..=5 {
        frames.extend(grow(&mut wal, 5, 1900));
        wal.set_hard_state(HardState { term, vote: Some(term) }).expect("room");
        wal.sync().expect("no fault");
    }
    wal.close().expect("no fault");
    (disk, frames, HardState { term: 5, vote: Some(5) })
}

fn segment(id: u64) -> String {
    format!("{id:016x}.seg")
}

/// Without the zeroes at the end.
fn without_end(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    bytes
}

/// Ways to damage the log; each makes it refuse to open.
fn damages() -> Vec<(&'static str, SimDisk)> {
    let (disk, _, _) = log();
    let place = |index: u64| {
        let entries = inspect::entries(&disk).expect("a log").map(|entry| entry.expect("intact"));
        entries
            .filter(|entry| entry.header.index == index)
            .last()
            .map(|entry| (entry.segment.0, entry.at))
            .expect("there")
    };
    let damaged = |what: &'static str, change: &dyn Fn(&SimDisk)| {
        let copy = disk.copy();
        change(&copy);
        assert!(Wal::open(copy.copy(), options()).is_err(), "{what}");
        (what, copy)
    };
    let (last, at) = place(20);
    let (middle, inside) = place(9);
    assert!(last > middle && middle > 1, "entries are spread over segments");
    vec![
        damaged("an entry in the active segment", &|disk| disk.rot(&segment(last), at + 200, |byte| *byte ^= 4)),
        damaged("an opening", &|disk| disk.rot(&segment(middle), 100, |byte| *byte ^= 4)),
        damaged("the last opening", &|disk| disk.rot(&segment(last), 100, |byte| *byte ^= 4)),
        damaged("an entry and the footer of a sealed segment", &|disk| {
            disk.rot(&segment(middle), inside + 200, |byte| *byte ^= 4);
            disk.rot(&segment(middle), (16 << 10) - 100, |byte| *byte ^= 4);
        }),
        damaged("a lost segment", &|disk| disk.lose(&segment(middle))),
    ]
}

#[test]
fn log_that_opens_needs_no_repair() {
    let (disk, frames, hard_state) = log();
    for consent in [Consent::DryRun, Consent::AcceptDataLoss] {
        let plan = repair(&disk, consent).expect("a log");
        assert_eq!((plan.reason, plan.cut, plan.quarantine, plan.done), (None, None, None, false));
        assert_eq!((plan.keeps, plan.hard_state), (Some((1, frames.len() as u64)), hard_state));
    }
}

#[test]
fn repaired_log_opens_with_what_was_before_the_damage_and_the_highest_hard_state() {
    let (_, frames, hard_state) = log();
    for (what, disk) in damages() {
        let before = disk.copy();
        let planned = repair(&disk, Consent::DryRun).unwrap_or_else(|error| panic!("{what}: {error}"));
        for name in before.names() {
            assert_eq!(before.bytes_of(&name), disk.bytes_of(&name), "{what}: a dry run changes nothing");
        }
        let done = repair(&disk, Consent::AcceptDataLoss).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(done.done && planned.reason == done.reason && planned.keeps == done.keeps, "{what}: {done:?}");
        assert_eq!(done.loses.map(|(_, last)| last), Some(frames.len() as u64), "{what}");
        let (mut wal, recovered) = Wal::open(disk.clone(), options()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(recovered.hard_state, hard_state, "{what}");
        assert_eq!(done.keeps, Some((1, recovered.last_index)), "{what}");
        assert_eq!(read_all(&wal.reader()), frames[..recovered.last_index as usize], "{what}");
        // Every byte that was there is there, in its place or aside.
        let quarantine = done.quarantine.expect("used");
        for name in before.names().into_iter().filter(|name| name.ends_with(".seg")) {
            let aside = disk.bytes_of(&format!("{quarantine}/{name}")).map(without_end);
            let there = before.bytes_of(&name).map(without_end);
            // A segment that was only prepared has nothing to keep.
            let empty = there.as_ref().is_none_or(Vec::is_empty);
            assert!(
                empty || aside == there || disk.bytes_of(&name).map(without_end) == there,
                "{what}: {name} is gone"
            );
        }
        grow(&mut wal, 12, 1900);
        wal.close().expect("no fault");
        let found = inspect::verify(&disk).expect("closed");
        assert!(found.damage.is_empty() && found.healed.is_empty(), "{what}: {found:?}");
    }
}

#[test]
fn power_cut_anywhere_in_a_repair_leaves_a_log_that_can_be_repaired() {
    let (_, frames, hard_state) = log();
    for (what, damaged) in damages() {
        let whole = damaged.copy();
        repair(&whole, Consent::AcceptDataLoss).expect("no fault");
        for cut in 0..whole.changes() {
            for seed in 0..3 {
                let disk = damaged.copy();
                disk.power_off_after(cut);
                repair(&disk, Consent::AcceptDataLoss).expect_err("no power");
                let after = disk.crash(seed);
                let context = format!("{what}, cut {cut}, seed {seed}");
                repair(&after, Consent::AcceptDataLoss).unwrap_or_else(|error| panic!("{context}: {error}"));
                let (wal, recovered) = Wal::open(after, options()).unwrap_or_else(|error| panic!("{context}: {error}"));
                assert_eq!(recovered.hard_state, hard_state, "{context}");
                assert_eq!(read_all(&wal.reader()), frames[..recovered.last_index as usize], "{context}");
                assert!(recovered.last_index >= 5, "{context}: {}", recovered.last_index);
            }
        }
    }
}

#[test]
fn log_without_a_start_cannot_be_repaired_and_is_left_alone() {
    let (disk, _, _) = log();
    disk.rot(&segment(1), 100, |byte| *byte ^= 4);
    let before = disk.names();
    assert!(matches!(repair(&disk, Consent::AcceptDataLoss), Err(OpenError::Damaged(_))));
    assert_eq!(disk.names(), before);
}

/// On a real directory: the end of the only segment was cut off.
#[test]
fn shortened_file_keeps_the_entries_before_its_end() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = RealDisk::open(dir.path());
    Wal::create(disk.clone(), common::IDENTITY, options(), &[first()]).expect("empty");
    let (mut wal, _) = Wal::open(disk.clone(), options()).expect("just created");
    let mut frames = vec![first()];
    frames.extend(grow(&mut wal, 4, 600));
    wal.set_hard_state(HardState { term: 3, vote: None }).expect("room");
    wal.close().expect("no fault");
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join(segment(1))).expect("there");
    file.set_len(6500).expect("shorter");
    let plan = repair(&disk, Consent::AcceptDataLoss).expect("repairable");
    let (wal, recovered) = Wal::open(disk, options()).expect("repaired");
    assert_eq!(plan.keeps, Some((1, recovered.last_index)));
    assert!(recovered.last_index >= 3, "{plan:?}");
    assert_eq!(read_all(&wal.reader()), frames[..recovered.last_index as usize]);
    assert!(dir.path().join(plan.quarantine.expect("used")).join(segment(1)).exists());
}
