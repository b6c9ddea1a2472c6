//! Logs of several nodes that are damaged at different places: each takes from the others what it lacks, before any of them opens.

mod common;

use common::{Random, base, first, grow, new_log, options, read_all};
use graven_frame::Frame;
use graven_wal::mend::{Marker, MendError, Mender, NotGiven, holes_of};
use graven_wal::sim::SimDisk;
use graven_wal::{HardState, LogBase, Wal, inspect};

fn segment(id: u64) -> String {
    format!("{id:016x}.seg")
}

/// A closed log of several segments with nothing known to be committed but up to `commit`.
fn log(commit: u64) -> (SimDisk, Vec<Frame>) {
    let disk = SimDisk::new(31);
    let mut wal = new_log(&disk);
    let mut frames = vec![first()];
    for term in 2..8 {
        frames.extend(grow(&mut wal, 6, 1900));
        wal.note_commit(commit.min(wal.last_index()));
        wal.set_hard_state(HardState { term, vote: Some(term) }).expect("room");
        wal.sync().expect("no fault");
    }
    assert!(wal.stats().segments > 5);
    wal.close().expect("no fault");
    (disk, frames)
}

/// A byte in the body of each entry of a segment, with the entry's number.
fn inside(disk: &SimDisk, id: u64) -> Vec<(u64, u64)> {
    let entries = inspect::entries(disk).expect("a log").map(|entry| entry.expect("intact"));
    entries.filter(|entry| entry.segment.0 == id).map(|entry| (entry.header.index, entry.at + 300)).collect()
}

/// Every mender takes from the others what they give, in turns, until nothing is wanted or a round brings nothing.
fn exchange(menders: &mut [Mender<SimDisk>]) -> bool {
    loop {
        let mut moved = false;
        for me in 0..menders.len() {
            for other in 0..menders.len() {
                let Some(wanted) = menders[me].wanted().filter(|_| me != other) else { continue };
                let Ok(frames) = menders[other].sound_frames().frames(wanted.first, wanted.last, 3000) else {
                    continue;
                };
                menders[me].fill(wanted.hole, &frames).expect("they fit");
                moved = true;
            }
        }
        if !moved {
            return menders.iter().all(|mender| mender.wanted().is_none());
        }
    }
}

#[test]
fn three_logs_with_disjoint_damage_heal_from_each_other() {
    let (whole, frames) = log(u64::MAX);
    for seed in 0..20_u64 {
        let mut random = Random(seed);
        // Entries are dealt to the three: what one lacks the others have.
        let mut disks = [whole.copy(), whole.copy(), whole.copy()];
        for id in 1..5 {
            for (index, at) in inside(&whole, id) {
                if index > 1 && random.below(3) > 0 {
                    let who = random.below(3) as usize;
                    disks[who].rot(&segment(id), at, |byte| *byte ^= 4);
                }
            }
        }
        let mut menders: Vec<_> =
            disks.iter_mut().map(|disk| Mender::open(disk.clone(), options()).expect("readable")).collect();
        let holes: Vec<usize> = menders.iter().map(|mender| mender.holes().len()).collect();
        assert!(exchange(&mut menders), "seed {seed}: holes {holes:?}");
        for (mender, disk) in menders.into_iter().zip(&disks) {
            assert_eq!(mender.finish().expect("no fault").left, [], "seed {seed}");
            let (wal, _) = Wal::open(disk.clone(), options()).expect("whole");
            assert!(read_all(&wal.reader()) == frames, "seed {seed}");
        }
    }
}

#[test]
fn what_a_damaged_log_gives_is_what_was_written_and_its_hole_is_named() {
    let (disk, frames) = log(u64::MAX);
    let last = frames.len() as u64;
    let (index, at) = inside(&disk, 3)[2];
    disk.rot(&segment(3), at, |byte| *byte ^= 1);
    let mut mender = Mender::open(disk.clone(), options()).expect("readable");
    let sound = mender.sound_frames();
    for wanted in 1..=last {
        match sound.frames(wanted, u64::MAX, 5000) {
            Err(refusal) => assert_eq!((wanted, refusal), (index, NotGiven::Damaged { index })),
            Ok(given) => {
                assert_ne!(wanted, index);
                let from = wanted as usize - 1;
                assert_eq!(given, frames[from..from + given.len()]);
                assert!(given.len() <= 2 || wanted == 1, "{} frames", given.len());
            }
        }
    }
    assert_eq!(sound.frames(last + 1, u64::MAX, 1), Err(NotGiven::NotYet { last }));
    assert_eq!(sound.frames(0, 9, 1), Err(NotGiven::Trimmed { first: 1 }));
    // It rots on while it serves.
    let (rotten, at) = inside(&log(u64::MAX).0, 2)[1];
    disk.rot(&segment(2), at, |byte| *byte ^= 1);
    assert_eq!(sound.frames(rotten, rotten, 1), Err(NotGiven::Damaged { index: rotten }));
    disk.rot(&segment(2), at, |byte| *byte ^= 1);
    mender.fill(0, &frames[index as usize - 1..index as usize]).expect("fits");
    let sound = mender.sound_frames();
    for wanted in 1..=last {
        assert_eq!(sound.frames(wanted, wanted, 1).expect("whole now"), frames[wanted as usize - 1..wanted as usize]);
    }
}

/// Which files are gone, and where the log began.
#[test]
fn missing_first_files_are_a_hole_and_are_made_anew() {
    for lost in 1..4 {
        let (disk, frames) = log(u64::MAX);
        (1..=lost).for_each(|id| disk.lose(&segment(id)));
        assert_eq!(holes_of(&disk, None).expect("readable"), [], "it looks like one that was trimmed");
        let holes = holes_of(&disk, Some(LogBase::default())).expect("readable");
        assert_eq!((holes.len(), holes[0].first), (1, 1), "{holes:?}");
        assert_eq!(holes[0].places.len() as u64, lost, "{holes:?}");
        let mut mender = Mender::open_behind(disk.clone(), options(), Some(LogBase::default())).expect("readable");
        while let Some(wanted) = mender.wanted() {
            mender.fill(wanted.hole, &frames[wanted.first as usize - 1..wanted.last as usize]).expect("fits");
        }
        assert!(mender.hard_state_certain());
        assert_eq!(mender.finish().expect("no fault").left, []);
        let (wal, recovered) = Wal::open(disk.clone(), options()).expect("whole");
        assert_eq!(recovered.base.index, 0);
        assert!(read_all(&wal.reader()) == frames, "{lost} files");
        drop(wal);
        assert_eq!(inspect::verify(&disk).expect("a log").damage, []);
    }
}

#[test]
fn missing_first_file_of_a_trimmed_log_is_made_anew_from_where_it_was_let_go_of() {
    let (disk, frames) = log(u64::MAX);
    let (mut wal, _) = Wal::open(disk.clone(), options()).expect("whole");
    let let_go = inside(&disk, 3)[1].0;
    wal.release_before(let_go + 1).expect("no fault");
    wal.close().expect("no fault");
    let names = disk.names();
    assert!(!names.contains(&segment(2)) && names.contains(&segment(3)), "{names:?}");
    disk.lose(&segment(3));
    let origin = base(&frames[let_go as usize - 1]);
    let mut mender = Mender::open_behind(disk.clone(), options(), Some(origin)).expect("readable");
    let wanted = mender.wanted().expect("a hole");
    assert_eq!(wanted.first, let_go + 1);
    mender.fill(wanted.hole, &frames[wanted.first as usize - 1..wanted.last as usize]).expect("fits");
    assert_eq!(mender.finish().expect("no fault").left, []);
    let (wal, recovered) = Wal::open(disk.clone(), options()).expect("whole");
    assert_eq!(recovered.base, origin);
    assert!(read_all(&wal.reader()) == frames[let_go as usize..]);
}

/// The opening of the first file of a trimmed log says where it begins. Damaged, the log begins where it was let go of.
#[test]
fn damaged_first_opening_of_a_trimmed_log_is_made_anew_from_where_it_was_let_go_of() {
    for nth in 0..3 {
        for also in [false, true] {
            let (disk, frames) = log(u64::MAX);
            let places = inside(&disk, 3);
            let let_go = places[0].0 - 1 + nth;
            let (mut wal, _) = Wal::open(disk.clone(), options()).expect("whole");
            wal.release_before(let_go + 1).expect("no fault");
            wal.close().expect("no fault");
            disk.rot(&segment(3), 100, |byte| *byte ^= 1);
            if also {
                disk.rot(&segment(3), places[nth as usize].1, |byte| *byte ^= 1);
            }
            let origin = base(&frames[let_go as usize - 1]);
            let mut mender = Mender::open_behind(disk.clone(), options(), Some(origin)).expect("readable");
            assert_eq!(mender.wanted().is_some(), also, "{:?}", mender.holes());
            while let Some(wanted) = mender.wanted() {
                assert_eq!(wanted.first, let_go + 1);
                mender.fill(wanted.hole, &frames[wanted.first as usize - 1..wanted.last as usize]).expect("fits");
            }
            assert_eq!(mender.finish().expect("no fault").left, []);
            let (wal, recovered) = Wal::open(disk.clone(), options()).expect("whole");
            assert_eq!(recovered.base, origin);
            assert!(read_all(&wal.reader()) == frames[let_go as usize..]);
        }
    }
}

#[test]
fn hole_above_the_known_commit_is_given_up_and_one_below_is_not() {
    let whole = log(u64::MAX).1.len() as u64;
    for commit in [3, 12, 17] {
        for (id, nth) in [(3, 0), (3, 2), (4, 1), (5, 0)] {
            let (disk, frames) = log(commit);
            let places = inside(&disk, id);
            let (index, at) = places[nth.min(places.len() - 1)];
            disk.rot(&segment(id), at, |byte| *byte ^= 1);
            let files = disk.names();
            let mut mender = Mender::open(disk.clone(), options()).expect("readable");
            let wanted = mender.wanted().expect("a hole");
            assert_eq!((wanted.first, wanted.last), (index, index));
            if index <= mender.known_commit() {
                assert!(matches!(mender.give_up(wanted.hole), Err(MendError::NoTail)));
                continue;
            }
            mender.give_up(wanted.hole).expect("nobody has it");
            assert_eq!((mender.wanted(), mender.has_damaged_tail()), (None, true));
            assert_eq!(disk.names(), files, "nothing was changed");
            let marker = mender.cut_tail().expect("the end");
            assert_eq!((marker.last_kept, marker.highest_index), (index - 1, whole));
            let mended = mender.finish().expect("no fault");
            assert_eq!(mended.left, []);
            assert_eq!(Marker::read(&disk).expect("there"), Some(marker));
            let quarantine = mended.quarantine.expect("what was cut");
            for name in files.iter().filter(|name| name.ends_with(".seg") && **name >= segment(id)) {
                let kept = disk.names().contains(&format!("{quarantine}/{name}"));
                assert!(kept || disk.names().contains(name), "{name} is kept");
            }
            let (mut wal, recovered) = Wal::open(disk.clone(), options()).expect("it opens");
            assert_eq!((recovered.last_index, recovered.hard_state.term), (index - 1, 7));
            assert!(read_all(&wal.reader()) == frames[..index as usize - 1]);
            let more = grow(&mut wal, 9, 1900);
            wal.sync().expect("no fault");
            wal.close().expect("no fault");
            assert_eq!(inspect::verify(&disk).expect("a log").damage, []);
            let (wal, _) = Wal::open(disk.clone(), options()).expect("it opens");
            assert!(read_all(&wal.reader()) == [&frames[..index as usize - 1], &more].concat());
        }
    }
}
