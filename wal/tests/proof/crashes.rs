//! Power cuts: at every disk call of every script, with every subset of what was not synced where those are few.

use graven_wal::sim::SimDisk;
use graven_wal::{HardState, OpenError, Options, Wal};

use crate::common::{IDENTITY, Random, base, first, options, records};
use crate::long;
use crate::script::{Ended, Model, Script, look};

/// How much is tried.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// All subsets of so many unsynced things are tried, of more only some.
    pub(crate) exhaustive: usize,
    pub(crate) samples: u64,
    /// One crash in so many is followed by crashes at every call of its recovery.
    pub(crate) again_every: u64,
}

impl Effort {
    pub(crate) fn of_this_run() -> Effort {
        if long() {
            Effort { exhaustive: 10, samples: 2000, again_every: 16 }
        } else {
            Effort { exhaustive: 6, samples: 24, again_every: 12 }
        }
    }
}

/// What was tried.
#[derive(Default, Debug)]
pub(crate) struct Tried {
    pub(crate) cuts: u64,
    pub(crate) crashes: u64,
    pub(crate) whole: u64,
    pub(crate) recovery_crashes: u64,
}

/// Opens what a crash left, and checks everything that was promised about it.
pub(crate) fn recover(disk: &SimDisk, options: &Options, model: &Model) -> Result<(), String> {
    let (mut wal, recovered) = Wal::open(disk.clone(), options.clone()).map_err(|error| format!("open: {error}"))?;
    let found = look(&wal.reader(), &recovered)?;
    model.check(&found)?;
    // Whatever the open told is durable by now: whoever acts on it may lose power at once.
    let gone = disk.crash_keeping(|_| false);
    let (again, told) = Wal::open(gone, options.clone()).map_err(|error| format!("open after an open: {error}"))?;
    if look(&again.reader(), &told)? != found {
        return Err(format!("what an open told was not durable: {recovered:?}, then {told:?}"));
    }
    drop(again);
    let mut all = found.frames.clone();
    let mut before = wal.tail();
    for _ in 0..3 {
        all.push(records(&before, before.term.max(1), 3000));
        before = base(&all[all.len() - 1]);
    }
    let more = wal.append(&all[found.frames.len()..]);
    more.map_err(|error| format!("append after recovery: {error}"))?;
    let hard_state = HardState { term: found.hard_state.term + 1, vote: Some(9) };
    wal.set_hard_state(hard_state).map_err(|error| format!("hard state after recovery: {error}"))?;
    wal.sync().map_err(|error| format!("sync after recovery: {error}"))?;
    drop(wal);
    let after = disk.crash_keeping(|nth| nth % 2 == 0);
    let (wal, told) = Wal::open(after, options.clone()).map_err(|error| format!("second open: {error}"))?;
    let second = look(&wal.reader(), &told)?;
    if second.frames != all || second.hard_state != hard_state {
        return Err(format!("synced after recovery and lost: {told:?}"));
    }
    Ok(())
}

/// The crashes to try of a disk.
fn subsets(disk: &SimDisk, effort: Effort, seed: u64) -> Vec<SimDisk> {
    let unsynced = disk.unsynced().len();
    if unsynced <= effort.exhaustive {
        return (0..1_u64 << unsynced).map(|mask| disk.crash_keeping(|nth| mask >> nth & 1 == 1)).collect();
    }
    let mut random = Random(seed);
    let all_but_some = |random: &mut Random| {
        let odds = 1 + random.below(7);
        disk.crash_keeping(|_| random.below(8) < odds)
    };
    let mut some: Vec<_> = (0..effort.samples).map(|_| all_but_some(&mut random)).collect();
    some.push(disk.crash_keeping(|_| true));
    some.push(disk.crash_keeping(|_| false));
    some.push(disk.crash_keeping(|nth| nth + 1 < unsynced));
    some.push(disk.crash_keeping(|nth| nth > 0));
    some
}

/// Cuts the power at every call of opening a crashed log.
fn crash_recovery(crashed: &SimDisk, options: &Options, model: &Model, tried: &mut Tried) -> Result<(), String> {
    let whole = crashed.copy();
    Wal::open(whole.clone(), options.clone()).map_err(|error| format!("open: {error}"))?;
    for cut in 0..whole.changes() {
        let once_more = crashed.copy();
        once_more.power_off_after(cut);
        let _ = Wal::open(once_more.clone(), options.clone()).map(drop);
        for (number, crash) in [
            once_more.crash_keeping(|_| true),
            once_more.crash_keeping(|_| false),
            once_more.crash_keeping(|nth| nth % 2 == 0),
            once_more.crash(cut),
        ]
        .iter()
        .enumerate()
        {
            tried.recovery_crashes += 1;
            recover(crash, options, model)
                .map_err(|error| format!("power cut after {cut} calls of recovery, crash {number}: {error}"))?;
        }
    }
    Ok(())
}

/// Crashes at every call of a script.
pub(crate) fn every_crash(script: &Script, seed: u64, effort: Effort) -> Result<Tried, String> {
    let name = &script.name;
    let start = script.fresh_disk(seed);
    let whole = start.copy();
    let mut model = Model::new();
    match script.run(&whole, &mut model) {
        Ended::Whole(wal) => {
            let last = model.now().frames.last().map_or(model.now().base, |frame| frame.header().index);
            if wal.last_index() != last || wal.hard_state() != model.now().hard_state {
                return Err(format!("{name}: {wal:?} without a fault, the model has {last}"));
            }
        }
        Ended::Closed(error) | Ended::NotOpened(error) => return Err(format!("{name}, without a fault: {error}")),
    }
    let mut tried = Tried::default();
    for cut in 0..=whole.changes() {
        let disk = start.copy();
        let mut model = Model::new();
        disk.power_off_after(cut);
        drop(script.run(&disk, &mut model));
        tried.cuts += 1;
        tried.whole += u64::from(disk.unsynced().len() <= effort.exhaustive);
        for (number, crash) in subsets(&disk, effort, seed << 32 | cut).iter().enumerate() {
            tried.crashes += 1;
            let context = |error| format!("{name}, seed {seed}, power cut after {cut} calls, crash {number}: {error}");
            // The recovery of a copy, so that the crash can be looked at again.
            recover(&crash.copy(), &script.options, &model).map_err(context)?;
            if (tried.crashes + cut).is_multiple_of(effort.again_every) {
                crash_recovery(crash, &script.options, &model, &mut tried).map_err(context)?;
            }
        }
    }
    Ok(tried)
}

/// Crashes at every call of making a log: there is none, or a whole one.
pub(crate) fn every_crash_of_creation() -> Result<u64, String> {
    let mut crashes = 0;
    for cut in 0..8 {
        let disk = SimDisk::new(cut);
        disk.power_off_after(cut);
        let created = Wal::create(disk.clone(), IDENTITY, options(), &[first()]).is_ok();
        let unsynced = disk.unsynced().len().min(12);
        for mask in 0..1_u64 << unsynced {
            let after = disk.crash_keeping(|nth| mask >> nth.min(63) & 1 == 1);
            let context = format!("power cut after {cut} calls, crash {mask:b}, created {created}");
            crashes += 1;
            match Wal::open(after.clone(), options()) {
                Ok((wal, recovered)) => {
                    let found = look(&wal.reader(), &recovered).map_err(|error| format!("{context}: {error}"))?;
                    if found.frames != [first()] {
                        return Err(format!("{context}: {recovered:?}"));
                    }
                }
                Err(OpenError::Empty) if !created => {
                    Wal::create(after.clone(), IDENTITY, options(), &[first()])
                        .map_err(|error| format!("{context}: {error}"))?;
                    Wal::open(after, options()).map_err(|error| format!("{context}: {error}"))?;
                }
                Err(error) => return Err(format!("{context}: {error}")),
            }
        }
    }
    Ok(crashes)
}

#[test]
fn crash_at_every_call_of_every_script_keeps_what_was_synced() {
    for script in Script::all() {
        let tried = every_crash(&script, 1, Effort::of_this_run()).unwrap_or_else(|error| panic!("{error}"));
        println!("{}: {tried:?}", script.name);
        assert!(tried.cuts > 10 && tried.recovery_crashes > 0, "{}: {tried:?}", script.name);
    }
}

#[test]
fn crash_at_every_call_of_random_workloads_keeps_what_was_synced() {
    let seeds = if long() { 60 } else { 6 };
    let effort = Effort { samples: if long() { 100 } else { 3 }, again_every: 40, ..Effort::of_this_run() };
    for seed in 0..seeds {
        let script = Script::random(seed, 40);
        let tried = every_crash(&script, seed, effort).unwrap_or_else(|error| panic!("{error}\n{script:?}"));
        println!("{}: {tried:?}", script.name);
    }
}

#[test]
fn crash_while_creating_leaves_no_log_or_a_whole_one() {
    let crashes = every_crash_of_creation().unwrap_or_else(|error| panic!("{error}"));
    println!("{crashes} crashes");
    assert!(crashes > 30);
}
