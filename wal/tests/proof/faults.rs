//! Calls that fail: each changing call of every script, with each error, and each read of an open.

use graven_wal::sim::{Fault, Op, SimDisk};
use graven_wal::{AppendError, HardState, OpenError, PrepareState, Wal};

use crate::common::{grow, new_log, options, records};
use crate::crashes::recover;
use crate::script::{Ended, Model, Script, look};

/// Fails every changing call of a script once, then restarts, with and without a crash; returns how often the log
/// closed and how often it went on.
pub(crate) fn every_failing_call(script: &Script) -> Result<(u64, u64), String> {
    let start = script.fresh_disk(3);
    let whole = start.copy();
    drop(script.run(&whole, &mut Model::new()));
    let (mut closed, mut went_on) = (0, 0);
    for nth in 1..=whole.changes() {
        for fault in [Fault::Io, Fault::Full, Fault::Short] {
            let disk = start.copy();
            let mut model = Model::new();
            disk.fail_change(nth, fault);
            let context =
                |what: &str, error| format!("{}, call {nth} fails with {fault:?}, {what}: {error}", script.name);
            match script.run(&disk, &mut model) {
                Ended::Whole(_) => went_on += 1,
                Ended::Closed(_) => closed += 1,
                // An open that failed changed nothing it could not change again.
                Ended::NotOpened(_) => {}
            }
            for (number, crash) in
                [disk.crash_keeping(|_| true), disk.crash_keeping(|_| false), disk.crash(nth)].iter().enumerate()
            {
                recover(crash, &script.options, &model).map_err(|error| context(&format!("crash {number}"), error))?;
            }
            recover(&disk, &script.options, &model).map_err(|error| context("restart", error))?;
        }
    }
    Ok((closed, went_on))
}

/// The first error is the last call: nothing is written after it, and nothing is promised.
pub(crate) fn failed_sync_is_final() -> Result<(), String> {
    let disk = SimDisk::new(5);
    let mut wal = new_log(&disk);
    let frames = grow(&mut wal, 4, 900);
    disk.fail_nth(Op::Sync, 1, Fault::Io);
    let refused = [wal.sync(), wal.sync(), wal.append(&[]), wal.write_sync_point()];
    if !refused.iter().all(|result| matches!(result, Err(AppendError::Closed { operation: "sync", .. }))) {
        return Err(format!("not closed: {refused:?}"));
    }
    let refused = (wal.set_hard_state(HardState { term: 9, vote: None }), wal.prepare(1).map(drop));
    if !matches!(refused, (Err(AppendError::Closed { .. }), Err(AppendError::Closed { .. }))) {
        return Err(format!("not closed: {refused:?}"));
    }
    drop(wal);
    let open = |disk: &SimDisk| {
        let (wal, recovered) = Wal::open(disk.clone(), options()).map_err(|error| error.to_string())?;
        look(&wal.reader(), &recovered).map(|found| found.frames)
    };
    if open(&disk.crash_keeping(|_| true))?.len() != 1 {
        return Err("the injector kept what it should lose".to_owned());
    }
    if open(&disk)?[1..] != frames {
        return Err("the page cache shows entries that the open does not".to_owned());
    }
    if open(&disk.crash_keeping(|_| false))?[1..] != frames {
        return Err("served after a restart, lost by a crash".to_owned());
    }
    Ok(())
}

/// Each read of an open fails, or comes back short: the open says so, and changes nothing.
pub(crate) fn every_failing_read_of_an_open() -> Result<u64, String> {
    let disk = SimDisk::new(9);
    let mut wal = new_log(&disk);
    grow(&mut wal, 12, 2000);
    wal.set_hard_state(HardState { term: 4, vote: Some(2) }).map_err(|error| error.to_string())?;
    grow(&mut wal, 2, 100);
    drop(wal);
    let expected = {
        let (wal, recovered) = Wal::open(disk.copy(), options()).map_err(|error| error.to_string())?;
        look(&wal.reader(), &recovered)?
    };
    for (nth, fault) in (1..1000).flat_map(|nth| [(nth, Fault::Io), (nth, Fault::Short)]) {
        let failing = disk.copy();
        failing.fail_nth(Op::Read, nth, fault);
        let before: Vec<_> = failing.names().iter().map(|name| failing.bytes_of(name)).collect();
        match Wal::open(failing.clone(), options()) {
            Err(OpenError::Io { .. }) => {
                let after: Vec<_> = failing.names().iter().map(|name| failing.bytes_of(name)).collect();
                if before != after {
                    return Err(format!("read {nth} failed with {fault:?}, and bytes changed"));
                }
            }
            // So many reads are not made: this fault hit none.
            Ok(_) if nth > 8 => return Ok(nth - 1),
            Ok((wal, recovered)) => {
                return Err(format!("read {nth} failed with {fault:?}, unseen: {recovered:?} {wal:?}"));
            }
            Err(error) => return Err(format!("read {nth} failed with {fault:?}: {error}")),
        }
        let (wal, recovered) = Wal::open(failing, options()).map_err(|error| error.to_string())?;
        if look(&wal.reader(), &recovered)? != expected {
            return Err(format!("after read {nth} had failed with {fault:?}: {recovered:?}"));
        }
    }
    Err("an open makes more reads than this test tries".to_owned())
}

#[test]
fn every_failing_call_closes_the_log_or_is_refused() {
    let (mut closed, mut went_on) = (0, 0);
    for script in Script::all() {
        let counts = every_failing_call(&script).unwrap_or_else(|error| panic!("{error}"));
        closed += counts.0;
        went_on += counts.1;
    }
    println!("{closed} calls closed the log, after {went_on} it went on");
    assert!(closed > 200 && went_on > 5);
}

#[test]
fn failed_sync_closes_the_log_and_a_restart_writes_again() {
    failed_sync_is_final().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn failed_read_of_an_open_is_an_error() {
    let reads = every_failing_read_of_an_open().unwrap_or_else(|error| panic!("{error}"));
    println!("{reads} reads");
}

#[test]
fn failed_write_closes_the_log() {
    for fault in [Fault::Io, Fault::Full, Fault::Short] {
        let disk = SimDisk::new(6);
        let mut wal = new_log(&disk);
        let frame = records(&wal.tail(), 1, 100);
        disk.fail_nth(Op::Write, 1, fault);
        assert!(matches!(
            wal.append(std::slice::from_ref(&frame)),
            Err(AppendError::Closed { operation: "write", .. })
        ));
        assert!(matches!(wal.append(&[frame]), Err(AppendError::Closed { .. })));
        assert_eq!(wal.reader().last_index(), 1, "nothing of it is visible");
    }
}

/// On a full disk records are refused before votes and trims have no place to go.
pub(crate) fn full_disk_keeps_room_for_votes() -> Result<(), String> {
    let disk = SimDisk::new(7);
    let mut wal = new_log(&disk);
    // The reserve is there once segments were made ready.
    while wal.prepare(1 << 20).map_err(|error| error.to_string())? == PrepareState::More {}
    disk.full(Some(disk.used_bytes()));
    loop {
        let frame = records(&wal.tail(), wal.tail().term, 900);
        match wal.append(&[frame]) {
            Ok(()) => wal.sync().map_err(|error| error.to_string())?,
            Err(AppendError::DiskFull { .. }) => break,
            Err(error) => return Err(error.to_string()),
        }
    }
    if !wal.disk_full() || !wal.has_reserve() {
        return Err("records took the reserve".to_owned());
    }
    for term in 2..4 {
        wal.set_hard_state(HardState { term, vote: Some(1) }).map_err(|error| format!("a vote: {error}"))?;
        wal.sync().map_err(|error| error.to_string())?;
    }
    Ok(())
}
