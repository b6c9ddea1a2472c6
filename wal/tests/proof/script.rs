//! Scripted workloads, and a model of what the log may be after a crash in the middle of one.

use graven_frame::{Frame, Kind};
use graven_wal::sim::SimDisk;
use graven_wal::{AppendError, HardState, LogBase, LogReader, Options, Recovered, SyncMethod, Wal};

use crate::common::{IDENTITY, Random, base, control, first, options, records};

/// One call of the owner.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// So many entries with one record of so many bytes each, in one call.
    Append(usize, usize),
    /// A control entry.
    Control(Kind),
    /// The last so many entries are replaced by one of a higher term.
    Supersede(u64),
    Sync,
    SyncPoint,
    /// A higher term, with a vote or without.
    HardState(Option<u64>),
    /// The log starts anew, so many entries further on.
    Reset(u64),
    /// Notes the commit of everything durable but the last so many entries.
    Commit(u64),
    /// Lets go of everything but so many entries of what is known to be committed.
    Release(u64),
    /// Prepares segments until all are ready.
    Prepare,
    /// Closes the log and opens it again.
    Reopen,
}

/// A workload, and the settings it runs under.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) name: String,
    pub(crate) options: Options,
    pub(crate) steps: Vec<Step>,
}

impl Script {
    pub(crate) fn new(name: &str, steps: &[Step]) -> Script {
        Script { name: name.to_owned(), options: options(), steps: steps.to_vec() }
    }

    /// A workload of random steps; the same seed gives the same one.
    pub(crate) fn random(seed: u64, len: usize) -> Script {
        let mut random = Random(seed);
        let steps = (0..len).map(|_| match random.below(16) {
            0..=4 => Step::Append(1 + random.below(4) as usize, random.below(2500) as usize),
            5 => Step::Control(Kind::Noop),
            6 => Step::Supersede(1 + random.below(3)),
            7..=9 => Step::Sync,
            10 => Step::SyncPoint,
            11 => Step::HardState(Some(1 + random.below(3)).filter(|vote| *vote < 3)),
            12 => Step::Commit(random.below(3)),
            13 => Step::Release(random.below(4)),
            14 => Step::Prepare,
            _ if random.below(3) == 0 => Step::Reset(random.below(9)),
            _ => Step::Reopen,
        });
        let mut script = Script::new(&format!("random seed {seed}"), &steps.collect::<Vec<_>>());
        if seed % 3 == 2 {
            script.options.sync = SyncMethod::Direct;
        }
        script
    }

    /// The workloads that together touch every kind of call.
    pub(crate) fn all() -> Vec<Script> {
        use Step::{Append, Commit, Control, HardState, Prepare, Release, Reopen, Reset, Supersede, Sync, SyncPoint};
        let mut scripts = vec![
            Script::new(
                "append and vote",
                &[
                    Append(1, 100),
                    Sync,
                    Append(2, 700),
                    HardState(Some(2)),
                    Sync,
                    SyncPoint,
                    Append(1, 40),
                    HardState(None),
                    Control(Kind::Noop),
                ],
            ),
            Script::new(
                "rotate",
                &[
                    HardState(Some(1)),
                    Sync,
                    Append(3, 2500),
                    Append(3, 2500),
                    Sync,
                    Append(4, 3000),
                    HardState(Some(3)),
                    Sync,
                    Append(1, 20_000),
                    Sync,
                    Append(1, 10),
                ],
            ),
            Script::new(
                "supersede",
                &[
                    Append(4, 300),
                    Sync,
                    Commit(2),
                    Append(2, 500),
                    Supersede(2),
                    Append(1, 200),
                    Sync,
                    Supersede(1),
                    Append(6, 2400),
                    Sync,
                    Supersede(5),
                    Sync,
                    SyncPoint,
                ],
            ),
            Script::new(
                "reset and release",
                &[
                    Append(3, 2000),
                    Sync,
                    HardState(Some(2)),
                    Reset(40),
                    Append(2, 600),
                    Sync,
                    Commit(0),
                    Release(1),
                    Append(5, 2600),
                    Sync,
                    Commit(0),
                    Release(2),
                    HardState(None),
                    Sync,
                ],
            ),
            Script::new(
                "trim",
                &[
                    Prepare,
                    Append(6, 2600),
                    Sync,
                    Commit(0),
                    Control(Kind::Trim),
                    Sync,
                    Release(1),
                    Prepare,
                    Append(6, 2600),
                    Sync,
                    Commit(1),
                    Release(1),
                    Append(4, 2600),
                    Sync,
                    SyncPoint,
                ],
            ),
            Script::new(
                "reopen",
                &[
                    Append(2, 900),
                    Reopen,
                    Append(2, 900),
                    HardState(Some(1)),
                    Sync,
                    Append(1, 900),
                    Reopen,
                    Append(6, 2000),
                    Reopen,
                    Supersede(1),
                    Sync,
                ],
            ),
            // Small appends, each with its sync, over the end of a segment, in fresh and in used files: the footer goes with the last of
            // them, and the next opening with the first one behind it.
            Script::new(
                "seal ahead",
                &[
                    Prepare,
                    Append(3, 3000),
                    Append(1, 900),
                    Sync,
                    Append(1, 300),
                    Sync,
                    Append(1, 300),
                    Prepare,
                    Append(3, 2900),
                    Append(1, 900),
                    Sync,
                    SyncPoint,
                    Append(3, 3000),
                    Prepare,
                    Append(1, 900),
                    HardState(Some(1)),
                    Sync,
                    Commit(0),
                    Release(1),
                    Append(2, 3000),
                    Append(1, 2000),
                    Append(1, 900),
                    Sync,
                    Append(1, 300),
                    Sync,
                ],
            ),
            Script::new(
                "seal ahead and reopen",
                &[Prepare, Append(3, 3000), Append(1, 900), Sync, Reopen, Append(1, 300), Sync],
            ),
        ];
        let otherwise: Vec<_> = scripts
            .iter()
            .flat_map(|script| {
                let written = |way: &str, sync| Script {
                    name: format!("{}, {way}", script.name),
                    options: Options { sync, ..script.options.clone() },
                    steps: script.steps.clone(),
                };
                let dsync = ["rotate", "seal ahead"].contains(&script.name.as_str());
                let dsync = dsync.then(|| written("dsync", SyncMethod::Dsync));
                dsync.into_iter().chain([written("direct", SyncMethod::Direct)])
            })
            .collect();
        scripts.extend(otherwise);
        scripts
    }

    /// A new log for it.
    pub(crate) fn fresh_disk(&self, seed: u64) -> SimDisk {
        let disk = SimDisk::new(seed);
        Wal::create(disk.clone(), IDENTITY, self.options.clone(), &[first()]).expect("empty disk");
        disk
    }

    /// Runs until the end, or until the log closes.
    pub(crate) fn run(&self, disk: &SimDisk, model: &mut Model) -> Ended {
        let mut wal = match Wal::open(disk.clone(), self.options.clone()) {
            Ok((wal, _)) => wal,
            Err(error) => return Ended::NotOpened(error.to_string()),
        };
        for step in &self.steps {
            if let Step::Reopen = step {
                if wal.close().is_ok() {
                    model.synced();
                }
                wal = match Wal::open(disk.clone(), self.options.clone()) {
                    Ok((wal, _)) => wal,
                    Err(error) => return Ended::NotOpened(error.to_string()),
                };
                model.synced();
                continue;
            }
            let before = model.moments.len();
            match perform(*step, &mut wal, model) {
                Ok(()) => {}
                Err(error @ AppendError::Closed { .. }) => return Ended::Closed(error.to_string()),
                // Refused: nothing of it was written.
                Err(_) => model.moments.truncate(before),
            }
        }
        Ended::Whole(Box::new(wal))
    }
}

/// How a run came to its end.
pub(crate) enum Ended {
    Whole(Box<Wal<SimDisk>>),
    Closed(String),
    NotOpened(String),
}

fn perform(step: Step, wal: &mut Wal<SimDisk>, model: &mut Model) -> Result<(), AppendError> {
    match step {
        Step::Append(count, len) => {
            let mut before = wal.tail();
            let mut frames = Vec::new();
            for _ in 0..count {
                frames.push(records(&before, before.term.max(1), len));
                before = base(&frames[frames.len() - 1]);
            }
            append(wal, model, &frames)
        }
        Step::Control(kind) => {
            let frame = control(&wal.tail(), wal.tail().term.max(1), kind, b"control");
            append(wal, model, &[frame])
        }
        Step::Supersede(back) => {
            let tail = wal.tail();
            let settled = model.noted.max(model.now().base);
            let keep = tail.index.saturating_sub(back).max(settled).max(wal.reader().first_index());
            if keep >= tail.index {
                return Ok(());
            }
            let before = wal.reader().header(keep).map(|header| LogBase::after(&header));
            let Ok(before) = before else { return Ok(()) };
            append(wal, model, &[records(&before, tail.term + 1, 60)])
        }
        Step::Sync => {
            wal.sync()?;
            model.synced();
            Ok(())
        }
        Step::SyncPoint => {
            let due = wal.sync_point_due();
            wal.write_sync_point()?;
            if due {
                model.synced();
            }
            Ok(())
        }
        Step::HardState(vote) => {
            let hard_state = HardState { term: wal.hard_state().term + 1, vote };
            model.moments.push(Moment { hard_state, ..model.now().clone() });
            wal.set_hard_state(hard_state)
        }
        Step::Reset(further) => {
            let tail = wal.tail();
            let behind = LogBase {
                index: tail.index + further,
                chain: graven_frame::Chain(tail.chain.0 ^ 0x5E7),
                next_offset: tail.next_offset + further,
                ..tail
            };
            model.moments.push(Moment { frames: Vec::new(), base: behind.index, ..*model.now() });
            wal.reset(behind)
        }
        Step::Commit(but) => {
            model.noted = model.noted.max(wal.durable_index().saturating_sub(but));
            wal.note_commit(model.noted);
            Ok(())
        }
        Step::Release(but) => {
            let index = model.noted.saturating_sub(but);
            model.released = model.released.max(index);
            wal.release_before(index)?;
            Ok(())
        }
        Step::Prepare => {
            while wal.prepare(64 << 10)? == graven_wal::PrepareState::More {}
            Ok(())
        }
        Step::Reopen => Ok(()),
    }
}

fn append(wal: &mut Wal<SimDisk>, model: &mut Model, frames: &[Frame]) -> Result<(), AppendError> {
    frames.iter().for_each(|frame| model.push(frame));
    wal.append(frames)
}

/// What the log was at one moment.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Moment {
    pub(crate) frames: Vec<Frame>,
    /// The entry before the first one, as the log was created or reset; releases may have moved it up since.
    pub(crate) base: u64,
    pub(crate) hard_state: HardState,
}

/// The moments from the last sync to now; recovery must find one of them.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) moments: Vec<Moment>,
    /// Entries below may be gone.
    pub(crate) released: u64,
    pub(crate) noted: u64,
}

impl Model {
    pub(crate) fn new() -> Model {
        let start = Moment { frames: vec![first()], base: 0, hard_state: HardState { term: 1, vote: None } };
        Model { moments: vec![start], released: 1, noted: 0 }
    }

    pub(crate) fn now(&self) -> &Moment {
        self.moments.last().expect("never empty")
    }

    fn push(&mut self, frame: &Frame) {
        let mut next = self.now().clone();
        next.frames.retain(|there| there.header().index < frame.header().index);
        next.frames.push(frame.clone());
        self.moments.push(next);
    }

    pub(crate) fn synced(&mut self) {
        self.moments.drain(..self.moments.len() - 1);
    }

    /// Whether the log may be this after a crash now.
    pub(crate) fn check(&self, found: &Moment) -> Result<(), String> {
        let like = |moment: &&Moment| {
            let base = found.base;
            let may_start_here = base == moment.base || (base > moment.base && base < self.released.max(1));
            let held = moment.frames.iter().filter(|frame| frame.header().index > base);
            may_start_here && moment.hard_state == found.hard_state && held.eq(&found.frames)
        };
        let describe = |moment: &Moment| {
            let last = moment.frames.last().map_or(moment.base, |frame| frame.header().index);
            format!("{}..={last} {:?}", moment.base + 1, moment.hard_state)
        };
        if self.moments.iter().any(|moment| like(&moment)) {
            return Ok(());
        }
        let possible: Vec<_> = self.moments.iter().map(describe).collect();
        Err(format!("found {}, possible were {possible:?}, released below {}", describe(found), self.released))
    }
}

/// What an open found, with every entry read and verified against the one before; an error says what does not fit.
pub(crate) fn look(reader: &LogReader, recovered: &Recovered) -> Result<Moment, String> {
    let (first, last) = (recovered.first_index, recovered.last_index);
    if (first, last) != (reader.first_index(), reader.last_index()) || first != recovered.base.index + 1 {
        return Err(format!("the reader sees {reader:?}, the open told {first}..={last}"));
    }
    let mut before = recovered.base;
    let mut frames = Vec::new();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for index in first..=last {
        let frame = reader.frame(index).map_err(|error| format!("entry {index}: {error}"))?;
        frame.verify(Some(before.chain)).map_err(|error| format!("entry {index}: {error}"))?;
        let header = frame.header();
        if header.index != index || header.base_offset != before.next_offset || header.term < before.term {
            return Err(format!("entry {index} does not continue {before:?}: {header:?}"));
        }
        if runs.last().is_none_or(|run| run.0 != header.term) {
            runs.push((header.term, index));
        }
        before = base(&frame);
        frames.push(frame);
    }
    let told: Vec<_> = recovered.term_runs.iter().map(|run| (run.term, run.first_index)).collect();
    let tail = (recovered.last_term, recovered.last_chain, recovered.next_offset, recovered.last_timestamp_ms);
    if runs != told || tail != (before.term, before.chain, before.next_offset, before.timestamp_ms) {
        return Err(format!("the open told {told:?} {tail:?}, the entries say {runs:?} {before:?}"));
    }
    if recovered.known_commit > last {
        return Err(format!("known commit {} beyond the last entry {last}", recovered.known_commit));
    }
    Ok(Moment { frames, base: recovered.base.index, hard_state: recovered.hard_state })
}

/// The scripts reach what they are there for: a crash test of calls that are never made proves nothing.
#[test]
fn scripts_rotate_reuse_files_reset_and_release() {
    let (mut rotations, mut recycled, mut unprepared, mut moved_up, mut ahead) = (0, 0, 0, 0, 0);
    for script in Script::all() {
        let mut model = Model::new();
        match script.run(&script.fresh_disk(1), &mut model) {
            Ended::Whole(wal) => {
                let stats = wal.stats();
                rotations += stats.rotations;
                recycled += stats.recycled;
                unprepared += stats.unprepared_rotations;
                ahead += stats.sealed_ahead;
                moved_up += u64::from(wal.reader().first_index() > 1);
            }
            Ended::Closed(error) | Ended::NotOpened(error) => panic!("{}: {error}", script.name),
        }
    }
    println!(
        "{rotations} rotations, {unprepared} unprepared, {ahead} sealed ahead, {recycled} files used again, {moved_up} logs moved up"
    );
    assert!(rotations > 8 && recycled > 0 && unprepared > 0 && moved_up > 1 && ahead > 3);
}
