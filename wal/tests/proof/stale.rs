//! Bytes of an earlier life of a segment, with every sum right, never come back.

use graven_frame::Frame;
use graven_wal::sim::SimDisk;
use graven_wal::{HardState, RealDisk, Wal};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::common::{IDENTITY, Random, first, grow, new_log, options};
use crate::long;
use crate::script::look;

const SEGMENT: &str = "0000000000000001.seg";

/// A log of one segment: entries of these lengths with a hard state among them, and how it ends.
fn life(seed: u64, lens: &[usize], synced: bool) -> (SimDisk, Vec<Frame>) {
    let disk = SimDisk::new(seed);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    for (nth, len) in lens.iter().enumerate() {
        if nth == 1 {
            wal.set_hard_state(HardState { term: 3, vote: Some(1) }).expect("room");
        }
        frames.extend(grow(&mut wal, 1, *len));
    }
    if synced {
        wal.close().expect("no fault");
    }
    (disk, frames)
}

/// Lays what a second life of the first segment wrote over what the first one left, and opens that.
///
/// The bytes of the earlier life stand at their own places in a segment of the same number: only the salt tells them
/// from records of this one. `torn` cuts sectors out of the later life's last write.
fn old_life_stays_dead(old: &[usize], new: &[usize], shift: u64, torn: u64, seed: u64) -> Result<(), String> {
    let (before, _) = life(seed, old, true);
    let (disk, frames) = life(seed + 1, new, torn == 0);
    let left = before.bytes_of(SEGMENT).expect("there");
    let written = disk.bytes_of(SEGMENT).expect("there");
    let used = written.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1).next_multiple_of(64);
    let mut random = Random(seed ^ torn);
    disk.edit(SEGMENT, |bytes| {
        let end = left.len().min(bytes.len());
        if used < end {
            bytes[used..end].copy_from_slice(&left[used..end]);
        }
        // Also at places that are not their own, and in place of sectors of the last write that never got there.
        let from = 4096 + (random.below(64) * 64) as usize;
        let to = used + (shift * 64) as usize;
        if from + 256 <= left.len() && to + 256 <= bytes.len() && shift > 0 {
            bytes[to..to + 256].copy_from_slice(&left[from..from + 256]);
        }
        for _ in 0..torn {
            let sector = (8 + random.below((used as u64 / 512).saturating_sub(7).max(1))) as usize * 512;
            let end = (sector + 512).min(left.len()).min(bytes.len());
            if sector < end {
                bytes[sector..end].copy_from_slice(&left[sector..end]);
            }
        }
    });
    let (wal, recovered) = match Wal::open(disk, options()) {
        Ok(opened) => opened,
        // Vouched for and overwritten: that is damage, and was named.
        Err(graven_wal::OpenError::Damaged(_)) if torn > 0 => return Ok(()),
        Err(error) => return Err(format!("the later life cannot be opened: {error}")),
    };
    let found = look(&wal.reader(), &recovered)?;
    if !frames.starts_with(&found.frames) {
        return Err(format!("entries of an earlier life came back: {recovered:?}"));
    }
    if torn == 0 && found.frames.len() != frames.len() {
        return Err(format!("what was synced is gone: {recovered:?}"));
    }
    let later = new.len() > 1 && torn == 0;
    let hard_state = if later { HardState { term: 3, vote: Some(1) } } else { HardState { term: 1, vote: None } };
    if torn == 0 && recovered.hard_state != hard_state {
        return Err(format!("a hard state of an earlier life came back: {:?}", recovered.hard_state));
    }
    Ok(())
}

/// Over many lengths, places and cuts.
pub(crate) fn no_old_life_comes_back(cases: u32) -> Result<(), String> {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let lens = || prop::collection::vec(0_usize..1500, 1..6);
    let same = prop::bool::weighted(0.5);
    let strategy = (lens(), lens(), same, 0_u64..20, 0_u64..4, any::<u32>());
    let run = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    )
    .run(&strategy, |(old, new, same, shift, torn, seed)| {
        // Equal beginnings make the boundaries of both lives coincide: the next record of the old one stands right where the
        // new one ends.
        let new = if same { old[..old.len().div_ceil(2)].to_vec() } else { new };
        let shift = if same { 0 } else { shift };
        old_life_stays_dead(&old, &new, shift, torn, seed.into()).map_err(TestCaseError::fail)
    });
    run.map_err(|error| error.to_string())
}

#[test]
fn records_of_an_earlier_life_never_come_back() {
    no_old_life_comes_back(if long() { 50_000 } else { 600 }).unwrap_or_else(|error| panic!("{error}"));
}

/// Bytes that somebody borrowed never change: not when their segment is released, and not when its file is used again.
pub(crate) fn borrowed_bytes_never_change() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let disk = RealDisk::open(dir.path());
    let text = |error: &dyn std::fmt::Display| error.to_string();
    Wal::create(disk.clone(), IDENTITY, options(), &[first()]).map_err(|error| text(&error))?;
    let (mut wal, _) = Wal::open(disk, options()).map_err(|error| text(&error))?;
    let written = grow(&mut wal, 4, 900);
    let borrowed = wal.reader().frames(2, 5, usize::MAX).map_err(|error| text(&error))?;
    for _ in 0..12 {
        grow(&mut wal, 6, 1900);
        wal.sync().map_err(|error| text(&error))?;
        wal.release_before(wal.last_index()).map_err(|error| text(&error))?;
    }
    if wal.stats().recycled == 0 {
        return Err("no segment was used again".to_owned());
    }
    match borrowed == written && borrowed.iter().all(|frame| frame.verify(None).is_ok()) {
        true => Ok(()),
        false => Err("bytes changed while they were borrowed".to_owned()),
    }
}

/// A log in used files, closed in good order, opens without a word about torn writes.
pub(crate) fn end_in_a_used_file_is_clean() -> Result<(), String> {
    for len in (0..1500).step_by(67) {
        let disk = SimDisk::new(len);
        let mut wal = new_log(&disk);
        for _ in 0..8 {
            grow(&mut wal, 6, 1900);
            wal.sync().map_err(|error| error.to_string())?;
            wal.release_before(wal.last_index()).map_err(|error| error.to_string())?;
        }
        grow(&mut wal, 1, len as usize);
        wal.close().map_err(|error| error.to_string())?;
        let (_, recovered) = Wal::open(disk, options()).map_err(|error| error.to_string())?;
        if recovered.report.torn_bytes > 0 {
            return Err(format!("closed in good order, and {:?}", recovered.report));
        }
    }
    Ok(())
}

#[test]
fn borrowed_bytes_outlive_their_segment() {
    borrowed_bytes_never_change().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn clean_end_in_a_used_file() {
    end_in_a_used_file_is_clean().unwrap_or_else(|error| panic!("{error}"));
}
