//! A log that gets another identity: whole afterwards, and after a power cut at any call it is whole when it was done again.

use crate::common::{IDENTITY, Random, first, grow, new_log, options, read_all};
use graven_frame::Frame;
use graven_wal::adopt::{IdentityChange, adopt, pending, settle};
use graven_wal::inspect;
use graven_wal::sim::SimDisk;
use graven_wal::{Disk as _, HardState, Identity, OpenError, Options, Wal, WriteMode};

const TO: Identity = Identity { cluster: 0xC2, node: 1, incarnation: 0x2AC };
/// What a second attempt would like, and must not get when the first one has begun.
const OTHER: Identity = Identity { cluster: 0xC3, node: 1, incarnation: 0x3AC };
const HARD_STATE: HardState = HardState { term: 7, vote: Some(3) };

/// Segments that were released and wait for reuse with their old openings, some that are in use, and some that are prepared.
fn log() -> (SimDisk, Vec<Frame>) {
    let disk = SimDisk::new(5);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    for _ in 0..6 {
        frames.extend(grow(&mut wal, 4, 1900));
        wal.sync().expect("no fault");
    }
    wal.release_before(12).expect("no fault");
    while wal.prepare(1 << 20).expect("no fault") == graven_wal::PrepareState::More {}
    wal.set_hard_state(HARD_STATE).expect("room");
    let kept = wal.reader().first_index() as usize - 1;
    wal.close().expect("no fault");
    assert!(kept > 0 && frames.len() - kept > 8, "{kept} of {} entries are released", frames.len());
    (disk, frames.split_off(kept))
}

/// Adopts and settles.
fn change(disk: &SimDisk, to: Identity) -> Result<Identity, OpenError> {
    let (mut wal, recovered) = adopt(disk.clone(), options(), to)?;
    settle(&mut wal)?;
    Ok(recovered.identity)
}

fn check(disk: &SimDisk, identity: Identity, frames: &[Frame], context: &str) {
    let expected = Options { expect_cluster: Some(identity.cluster), expect_node: Some(1), ..options() };
    let (wal, recovered) = Wal::open(disk.clone(), expected).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!((recovered.identity, recovered.hard_state), (identity, HARD_STATE), "{context}");
    assert_eq!(read_all(&wal.reader()), frames, "{context}");
    wal.close().unwrap_or_else(|error| panic!("{context}: {error}"));
    let found = inspect::verify(disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(found.damage.is_empty() && found.healed.is_empty(), "{context}: {found:?}");
}

#[test]
fn every_segment_gets_the_new_identity_and_nothing_else_changes() {
    let (disk, frames) = log();
    assert_eq!(change(&disk, TO).expect("no fault"), TO);
    assert_eq!(pending(&disk).expect("readable"), None);
    // Nothing of it waited for a sync that never came.
    check(&disk.crash_keeping(|_| false), TO, &frames, "power cut behind it");
    let refused = Wal::open(disk.clone(), Options { expect_cluster: Some(IDENTITY.cluster), ..options() });
    assert!(matches!(refused, Err(OpenError::WrongCluster { .. })), "the old cluster's");
    // The log goes on through the recycled segments.
    let (mut wal, _) = Wal::open(disk.clone(), options()).expect("whole");
    let mut all = frames;
    for _ in 0..4 {
        all.extend(grow(&mut wal, 4, 1900));
        wal.sync().expect("no fault");
    }
    wal.close().expect("no fault");
    check(&disk, TO, &all, "grown");
}

/// A journal that an earlier attempt did not finish is replaced by another of the same name: a rename that alone outlives a power cut must
/// not make the old one the journal.
#[test]
fn a_journal_that_was_never_finished_stays_none() {
    let (start, _) = log();
    start.create("adopting.new", WriteMode::Buffered).expect("no fault");
    start.sync_dir().expect("no fault");
    let whole = start.copy();
    change(&whole, TO).expect("no fault");
    for cut in 0..whole.changes() {
        let disk = start.copy();
        disk.power_off_after(cut);
        change(&disk, TO).expect_err("no power");
        for left in 0..disk.unsynced().len() {
            let after = disk.crash_keeping(|number| number == left);
            pending(&after).unwrap_or_else(|error| panic!("cut {cut}, only {left} is left: {error}"));
        }
    }
}

/// Power cuts at every call of the change, and at every call of going on with some of them.
pub(crate) fn every_crash_of_a_change() -> Result<(), String> {
    let (start, frames) = log();
    let whole = start.copy();
    change(&whole, TO).expect("no fault");
    let (mut begun, mut torn, mut again) = (0, 0, 0);
    for cut in 0..whole.changes() {
        let disk = start.copy();
        disk.power_off_after(cut);
        change(&disk, TO).expect_err("no power");
        let unsynced = disk.unsynced().len();
        let every = unsynced <= 9;
        let mut random = Random(cut);
        for number in 0..if every { 1 << unsynced } else { 64_u64 } {
            let crashed = disk.crash_keeping(|nth| if every { number >> nth & 1 == 1 } else { random.below(2) == 1 });
            let context = format!("cut {cut}, crash {number}, every one: {every}");
            let Some(found) = pending(&crashed).unwrap_or_else(|error| panic!("{context}: {error}")) else {
                // Not begun, or done: whose it is nobody asks twice.
                let (_, recovered) =
                    Wal::open(crashed.copy(), options()).unwrap_or_else(|error| panic!("{context}: {error}"));
                check(&crashed, recovered.identity, &frames, &context);
                continue;
            };
            begun += 1;
            assert_eq!(found, IdentityChange { from: IDENTITY, to: TO }, "{context}");
            assert!(matches!(Wal::open(crashed.copy(), options()), Err(OpenError::ChangingIdentity)), "{context}");
            assert!(matches!(inspect::scan(&crashed), Err(OpenError::ChangingIdentity)), "{context}");
            torn += u32::from(has_torn_opening(&crashed));
            // Power goes once more while it is gone on with.
            if number % 16 == 1 {
                let calls = {
                    let copy = crashed.copy();
                    change(&copy, OTHER).unwrap_or_else(|error| panic!("{context}: {error}"));
                    copy.changes()
                };
                for second in 0..calls {
                    let copy = crashed.copy();
                    copy.power_off_after(second);
                    change(&copy, OTHER).expect_err("no power");
                    let copy = copy.crash(second);
                    again += 1;
                    let context = format!("{context}, second cut {second}");
                    if pending(&copy).unwrap_or_else(|error| panic!("{context}: {error}")).is_some() {
                        change(&copy, OTHER).unwrap_or_else(|error| panic!("{context}: {error}"));
                    }
                    check(&copy, TO, &frames, &context);
                }
            }
            assert_eq!(change(&crashed, OTHER).unwrap_or_else(|error| panic!("{context}: {error}")), TO, "{context}");
            check(&crashed, TO, &frames, &context);
        }
    }
    println!("{begun} crashes in the middle, {torn} with a torn opening, {again} second crashes");
    if begun > 30 && torn > 10 && again > 100 { Ok(()) } else { Err("too few crashes".to_owned()) }
}

#[test]
fn power_cut_at_every_call_leaves_what_can_be_gone_on_with() {
    every_crash_of_a_change().unwrap_or_else(|error| panic!("{error}"));
}

/// Whether an opening has a sum that is not its own.
fn has_torn_opening(disk: &SimDisk) -> bool {
    disk.names().iter().filter(|name| name.ends_with(".seg")).any(|name| {
        let bytes = disk.bytes_of(name).expect("there");
        let (content, sum) = bytes[..4096].split_at(4092);
        content.iter().any(|byte| *byte != 0) && crc32fast::hash(content).to_le_bytes() != *sum
    })
}

#[test]
fn a_log_that_does_not_open_is_not_touched() {
    let (disk, _) = log();
    let lowest = disk.names().into_iter().find(|name| name.ends_with(".seg")).expect("segments");
    disk.rot(&lowest, 40, |byte| *byte ^= 1);
    let names = disk.names();
    assert!(change(&disk, TO).is_err());
    assert_eq!((disk.names(), pending(&disk).expect("readable")), (names, None));
}

#[test]
fn a_damaged_journal_is_told_and_nothing_is_guessed() {
    let (disk, _) = log();
    drop(adopt(disk.clone(), options(), TO).expect("no fault"));
    for at in 0..128 {
        let copy = disk.copy();
        copy.rot("adopting", at, |byte| *byte ^= 0x10);
        assert!(matches!(pending(&copy), Err(OpenError::Journal { .. })), "byte {at}");
        assert!(matches!(Wal::open(copy.copy(), options()), Err(OpenError::Journal { .. })), "byte {at}");
        assert!(matches!(change(&copy, TO), Err(OpenError::Journal { .. })), "byte {at}");
    }
}
