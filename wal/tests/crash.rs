//! Power cuts at every disk call of a scripted workload.
//!
//! After each: every entry and hard state that a sync vouched for is there, the log is one that stood there at some
//! moment since that sync, and it can be appended to.

mod common;

use common::{IDENTITY, Random, base, control, first, grow, new_log, options, read_all, records};
use graven_frame::{Frame, Kind};
use graven_wal::sim::{Fault, Op, SimDisk};
use graven_wal::{AppendError, HardState, LogBase, OpenError, Wal};

/// What the log was at one moment.
#[derive(Clone, PartialEq, Debug)]
struct Moment {
    frames: Vec<Frame>,
    hard_state: HardState,
}

/// The moments from the last sync to now; recovery must find one of them.
struct Model {
    moments: Vec<Moment>,
    released: u64,
    noted: u64,
}

impl Model {
    fn new() -> Model {
        let start = Moment { frames: vec![first()], hard_state: HardState { term: 1, vote: None } };
        Model { moments: vec![start], released: 1, noted: 0 }
    }

    fn now(&self) -> &Moment {
        self.moments.last().expect("never empty")
    }

    fn push(&mut self, frame: &Frame) {
        let mut next = self.now().clone();
        next.frames.retain(|there| there.header().index < frame.header().index);
        next.frames.push(frame.clone());
        self.moments.push(next);
    }

    fn synced(&mut self) {
        self.moments.drain(..self.moments.len() - 1);
    }

    fn check(&self, found: &Moment, context: &str) {
        let first = found.frames.first().map_or(1, |frame| frame.header().index);
        assert!(
            first <= self.released,
            "{context}: entries below {first} are gone, released were those below {}",
            self.released
        );
        let like = |moment: &Moment| {
            let held: Vec<_> = moment.frames.iter().filter(|frame| frame.header().index >= first).cloned().collect();
            moment.hard_state == found.hard_state && held == found.frames
        };
        let describe = |moment: &Moment| format!("{} entries, {:?}", moment.frames.len(), moment.hard_state);
        let moments: Vec<_> = self.moments.iter().map(describe).collect();
        assert!(
            self.moments.iter().any(like),
            "{context}: found {} from {first}, possible were {moments:?}",
            describe(found)
        );
    }
}

/// Runs the workload of a seed until its end or the first error.
fn run(disk: &SimDisk, seed: u64, model: &mut Model) -> Result<(), AppendError> {
    let Ok((mut wal, _)) = Wal::open(disk.clone(), options()) else { return Ok(()) };
    let mut random = Random(seed);
    for _ in 0..60 {
        match random.below(12) {
            0..=4 => {
                let mut frames = Vec::new();
                let mut before = wal.tail();
                let settled = model.noted.max(1);
                let back = random.below(3);
                if random.below(4) == 0 && before.index.saturating_sub(back) > settled {
                    let header = wal.reader().header(before.index - back).expect("there");
                    before = LogBase::after(&header);
                }
                let term = wal.tail().term + random.below(2);
                for _ in 0..=random.below(4) {
                    let frame = if random.below(5) == 0 {
                        control(&before, term, Kind::Noop, b"")
                    } else {
                        records(&before, term, random.below(2500) as usize)
                    };
                    before = base(&frame);
                    frames.push(frame);
                }
                frames.iter().for_each(|frame| model.push(frame));
                wal.append(&frames)?;
            }
            5..=7 => {
                wal.sync()?;
                model.synced();
                if random.below(2) == 0 {
                    model.noted = wal.durable_index() - random.below(2).min(wal.durable_index() - 1);
                    wal.note_commit(model.noted);
                }
            }
            8 => {
                let current = wal.hard_state();
                let hard_state =
                    HardState { term: current.term + 1, vote: Some(1 + random.below(3)).filter(|vote| *vote < 3) };
                model.moments.push(Moment { hard_state, ..model.now().clone() });
                wal.set_hard_state(hard_state)?;
            }
            9 => {
                wal.prepare(6 << 10)?;
            }
            10 => wal.write_sync_point()?,
            _ => {
                let index = model.noted.saturating_sub(3);
                model.released = model.released.max(index).max(1);
                wal.release_before(index)?;
            }
        }
    }
    wal.close()?;
    model.synced();
    Ok(())
}

fn recover(disk: &SimDisk, model: &Model, context: &str) {
    let (mut wal, recovered) = Wal::open(disk.clone(), options()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let found = Moment { frames: read_all(&wal.reader()), hard_state: recovered.hard_state };
    model.check(&found, context);
    assert_eq!(
        recovered.last_index,
        found.frames.last().map_or(recovered.base.index, |frame| frame.header().index),
        "{context}"
    );
    assert!(recovered.known_commit <= recovered.last_index, "{context}");
    let more = grow(&mut wal, 3, 3000);
    wal.set_hard_state(HardState { term: found.hard_state.term + 1, vote: Some(9) }).expect("not back");
    wal.sync().expect("no fault");
    drop(wal);
    let again = disk.crash(1);
    let (wal, recovered) =
        Wal::open(again, options()).unwrap_or_else(|error| panic!("{context}, second time: {error}"));
    let all: Vec<_> = found.frames.iter().chain(&more).cloned().collect();
    assert_eq!(read_all(&wal.reader()), all, "{context}: entries synced after recovery");
    assert_eq!(recovered.hard_state.vote, Some(9), "{context}");
}

#[test]
fn power_cut_at_every_disk_call_keeps_what_was_synced() {
    for seed in 0..12 {
        let disk = SimDisk::new(seed);
        drop(new_log(&disk));
        let whole = disk.copy();
        let before = whole.changes();
        run(&whole, seed, &mut Model::new()).expect("no fault");
        for cut in 0..=whole.changes() - before {
            let disk = disk.copy();
            let mut model = Model::new();
            disk.power_off_after(cut);
            let _ = run(&disk, seed, &mut model);
            for crash in 0..3 {
                let context = format!("seed {seed}, power cut after {cut} calls, crash {crash}");
                recover(&disk.crash(seed << 32 | cut << 8 | crash), &model, &context);
            }
        }
    }
}

#[test]
fn power_cut_during_recovery_keeps_what_was_synced() {
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        drop(new_log(&disk));
        let mut model = Model::new();
        disk.power_off_after(20 + seed * 3);
        let _ = run(&disk, seed, &mut model);
        let crashed = disk.crash(seed);
        for cut in 0..12 {
            let once_more = crashed.copy();
            once_more.power_off_after(cut);
            let _ = Wal::open(once_more.clone(), options()).map(drop);
            recover(&once_more.crash(cut), &model, &format!("seed {seed}, power cut after {cut} calls of recovery"));
        }
    }
}

#[test]
fn crash_while_creating_leaves_no_log_or_a_whole_one() {
    for cut in 0..8 {
        for seed in 0..8 {
            let disk = SimDisk::new(seed);
            disk.power_off_after(cut);
            let created = Wal::create(disk.clone(), IDENTITY, options(), &[first()]).is_ok();
            let after = disk.crash(seed);
            match Wal::open(after.clone(), options()) {
                Ok((wal, _)) => assert_eq!(read_all(&wal.reader()), [first()]),
                Err(OpenError::Empty) if !created => {
                    Wal::create(after.clone(), IDENTITY, options(), &[first()]).expect("empty");
                    assert!(Wal::open(after, options()).is_ok());
                }
                Err(error) => panic!("cut {cut}, seed {seed}, created {created}: {error}"),
            }
        }
    }
}

/// A sync fails once, later ones succeed, reads show the new bytes, and a crash loses them. Whoever restarts the
/// process, serves what reads show, and then loses power, must still have it.
#[test]
fn restart_after_a_failed_sync_makes_what_it_serves_durable() {
    let disk = SimDisk::new(5);
    let mut wal = new_log(&disk);
    let frames = grow(&mut wal, 4, 900);
    disk.fail_nth(Op::Sync, 1, Fault::Io);
    assert!(matches!(wal.sync(), Err(AppendError::Closed { operation: "sync", .. })));
    assert!(matches!(wal.sync(), Err(AppendError::Closed { .. })), "never retried");
    assert!(matches!(wal.append(&[]), Err(AppendError::Closed { .. })));
    assert!(matches!(wal.set_hard_state(HardState { term: 9, vote: None }), Err(AppendError::Closed { .. })));
    assert!(matches!(wal.write_sync_point(), Err(AppendError::Closed { .. })));
    assert!(matches!(wal.prepare(1), Err(AppendError::Closed { .. })));
    drop(wal);
    assert_eq!(
        Wal::open(disk.crash(1), options()).expect("not damaged").1.last_index,
        1,
        "the injector really loses it"
    );
    let (wal, recovered) = Wal::open(disk.clone(), options()).expect("the page cache shows it all");
    assert_eq!(recovered.last_index, 5);
    drop(wal);
    let (wal, recovered) = Wal::open(disk.crash(1), options()).expect("not damaged");
    assert_eq!(recovered.last_index, 5);
    assert_eq!(read_all(&wal.reader())[1..], frames);
}

#[test]
fn failed_write_closes_the_log() {
    for fault in [Fault::Io, Fault::Full] {
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
