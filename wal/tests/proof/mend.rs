//! Mending: whatever is damaged is read as it was, filled with what another node has, or cut with a word; and a crash in the middle of
//! it costs nothing.

use std::collections::BTreeMap;

use graven_frame::Frame;
use graven_wal::mend::{After, Hole, Marker, MendError, Mended, Mender};
use graven_wal::sim::{SECTOR_BYTES, SimDisk};
use graven_wal::{LogBase, OpenError, Wal, inspect};

use crate::common::{Random, records};
use crate::damage::{Specimen, segment_files, specimens, whole};
use crate::long;
use crate::script::look;

/// What it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Took {
    /// There was nothing to mend.
    Nothing,
    /// The last entries went together with all that vouched for them: they look like an unfinished write.
    Window,
    /// No entry was missing.
    NoFrames,
    Frames,
    /// The end was cut.
    Cut,
    /// Nobody can say any more whose log it is.
    Nobodys,
    /// Nobody can say any more where it began: entries are wanted that were released. Nothing was changed.
    Released,
}

/// Hands over what is missing, a few frames at a time, as often as something is.
fn feed(mender: &mut Mender<SimDisk>, frames: &[Frame]) -> Result<u64, String> {
    let mut fed = 0;
    while let Some(wanted) = mender.wanted() {
        let of = |index: u64| frames.iter().find(|frame| frame.header().index == index).cloned();
        let batch: Vec<Frame> = (wanted.first..=wanted.last).filter_map(of).take(2).collect();
        if batch.first().is_none_or(|frame| frame.header().index != wanted.first) {
            return Err(format!("entry {} is wanted, nobody ever wrote it: {:?}", wanted.first, mender.holes()));
        }
        let filled = mender.fill(wanted.hole, &batch).map_err(|error| format!("fill: {error}"))?;
        if filled.next != wanted.first + batch.len() as u64 {
            return Err(format!("{} frames of {wanted:?} were taken as {filled:?}", batch.len()));
        }
        fed += batch.len() as u64;
    }
    Ok(fed)
}

fn mend(disk: &SimDisk, specimen: &Specimen) -> Result<(Option<Marker>, u64, Mended, Vec<Hole>), String> {
    let opened = Mender::open(disk.clone(), specimen.options.clone());
    let mut mender = opened.map_err(|error| format!("open for mending: {error}"))?;
    let fed = feed(&mut mender, &specimen.content.frames)?;
    let mut marker = None;
    if mender.has_damaged_tail() {
        marker = Some(mender.cut_tail().map_err(|error| format!("cut: {error}"))?);
    }
    let holes = mender.holes().to_vec();
    let mended = mender.finish().map_err(|error| format!("finish: {error}"))?;
    if !mended.left.is_empty() || mended.entries != fed {
        return Err(format!("{fed} entries were handed over: {mended:?}"));
    }
    Ok((marker, fed, mended, holes))
}

/// Mends a damaged copy of the specimen, and wants the log as it was.
pub(crate) fn heal(specimen: &Specimen, changed: &SimDisk) -> Result<Took, String> {
    let before = segment_files(changed);
    // The last record vouches for those before it, and nothing for it.
    let (name, last) = &specimen.last;
    let proof = before.get(name).and_then(|bytes| bytes.get(*last as usize..));
    let window = proof != specimen.files[name].get(*last as usize..);
    match Mender::open(changed.clone(), specimen.options.clone()) {
        Ok(mender) if mender.holes().is_empty() => {
            drop(mender);
            return as_before(specimen, changed, None, true, window)
                .map(|whole| if whole { Took::Nothing } else { Took::Window });
        }
        // With the only opening.
        Err(OpenError::Damaged(damage)) if damage.what == "no segment has a valid opening" => return Ok(Took::Nobodys),
        Err(error) => return Err(format!("open for mending: {error}")),
        Ok(mender) if mender.holes().iter().any(|hole| hole.needs_frames() && hole.first <= specimen.content.base) => {
            drop(mender);
            let same = segment_files(changed) == before;
            return if same { Ok(Took::Released) } else { Err("looking at it changed it".to_owned()) };
        }
        Ok(_) => {}
    }
    if segment_files(changed) != before {
        return Err("looking at it changed it".to_owned());
    }
    let (marker, fed, mended, holes) = mend(changed, specimen)?;
    nothing_lost(changed, &before)?;
    as_before(specimen, changed, marker, mended.hard_state_certain, window)
        .map_err(|error| format!("{error}; {holes:?}"))?;
    let verified = inspect::verify(changed).map_err(|error| error.to_string())?;
    if !verified.damage.is_empty() || !verified.healed.is_empty() || verified.torn_bytes > 0 {
        return Err(format!("mended, and then {verified:?}"));
    }
    Ok(match (marker, fed) {
        (Some(_), _) => Took::Cut,
        (None, 0) => Took::NoFrames,
        (None, _) => Took::Frames,
    })
}

/// Every file is as it was, or a copy of it lies in quarantine.
fn nothing_lost(disk: &SimDisk, before: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    let names = disk.names();
    for (name, bytes) in before {
        let kept = |there: &&String| **there == *name || there.ends_with(&format!("/{name}"));
        if !names.iter().filter(kept).any(|there| whole(disk, there) == *bytes) {
            return Err(format!("{name} is not as it was, and no copy of it is in quarantine: {names:?}"));
        }
    }
    Ok(())
}

/// Opens the log and compares; `false` when its last entries look as if they had never been written.
fn as_before(
    specimen: &Specimen,
    disk: &SimDisk,
    cut: Option<Marker>,
    certain: bool,
    window: bool,
) -> Result<bool, String> {
    let marker = Marker::read(disk).map_err(|error| error.to_string())?;
    let (wal, recovered) =
        Wal::open(disk.clone(), specimen.options.clone()).map_err(|error| format!("open: {error}"))?;
    let found = look(&wal.reader(), &recovered)?;
    let wanted = &specimen.content;
    let memberships: Vec<u64> = found
        .frames
        .iter()
        .filter(|frame| frame.header().kind == graven_frame::Kind::Membership)
        .map(|frame| frame.header().index)
        .collect();
    if recovered.memberships != memberships || found.base != wanted.base {
        return Err(format!("memberships {:?} or base {} are not as before", recovered.memberships, found.base));
    }
    // Before a damaged end there may be entries that others had replaced there: none that is known to be committed.
    let same = found.frames.iter().zip(&wanted.frames).take_while(|(found, wanted)| found == wanted).count();
    let settled = recovered.known_commit.saturating_sub(found.base) as usize;
    if same < found.frames.len() && (cut.is_none() && !window || same < settled) {
        return Err(format!("other entries than before: {recovered:?}"));
    }
    let last = wanted.frames.last().map_or(wanted.base, |frame| frame.header().index);
    let shorter = same < wanted.frames.len();
    match cut {
        Some(cut)
            if marker != Some(cut) || cut.last_kept != recovered.last_index || cut.possible_index < last && !window =>
        {
            return Err(format!("cut behind {} of {last}, and the marker says {marker:?}", recovered.last_index));
        }
        None if shorter && !window => {
            return Err(format!("entries behind {} are gone without a word", recovered.last_index));
        }
        _ => {}
    }
    let uncertain = marker.is_some_and(|marker| !marker.hard_state_certain);
    if uncertain == certain && marker.is_some() || !certain && marker.is_none() {
        return Err(format!("the hard state is certain: {certain}, and the marker says {marker:?}"));
    }
    if certain && !window && found.hard_state != wanted.hard_state {
        return Err(format!("hard state {:?} was lost: {:?}", wanted.hard_state, found.hard_state));
    }
    Ok(!shorter)
}

type Counts = BTreeMap<Took, u64>;

/// Applies each change to a copy of the specimen and mends it.
fn each(specimen: &Specimen, changes: impl Iterator<Item = (String, SimDisk)>) -> Result<Counts, String> {
    let mut counts = Counts::new();
    for (what, changed) in changes {
        let took = heal(specimen, &changed).map_err(|error| format!("{what}: {error}"))?;
        *counts.entry(took).or_default() += 1;
    }
    Ok(counts)
}

/// Flips a bit of every `step`th byte that means something.
fn every_flip(specimen: &Specimen, step: u64) -> Result<Counts, String> {
    let places = specimen.segments().into_iter().flat_map(|name| {
        let len = specimen.files[&name].len() as u64;
        (0..len).map(move |at| (name.clone(), at))
    });
    let meant = places.filter(|(name, at)| specimen.means_something((name, *at, at + 1)) && at.is_multiple_of(step));
    let flips = meant.map(|(name, at)| {
        let changed = specimen.disk.copy();
        changed.rot(&name, at, |byte| *byte ^= 1 << (at % 8));
        (format!("{name} byte {at}"), changed)
    });
    each(specimen, flips)
}

#[test]
fn every_flipped_bit_is_mended() {
    for specimen in specimens() {
        let counts = every_flip(&specimen, if long() { 1 } else { 3 }).unwrap_or_else(|error| panic!("{error}"));
        println!("{counts:?}");
        assert!(counts[&Took::Frames] > 500 && counts[&Took::NoFrames] > 500 && counts[&Took::Cut] > 10, "{counts:?}");
        assert!(!counts.contains_key(&Took::Nobodys), "{counts:?}");
    }
}

#[test]
fn every_lost_sector_is_mended() {
    for specimen in specimens() {
        let sectors = specimen.segments().into_iter().flat_map(|name| {
            let sectors = specimen.files[&name].len() / SECTOR_BYTES;
            (0..sectors).map(move |sector| (name.clone(), sector * SECTOR_BYTES))
        });
        let zeroed = sectors.flat_map(|(name, at)| {
            [1, 3, 9].map(|count| {
                let changed = specimen.disk.copy();
                changed.edit(&name, |bytes| {
                    let to = bytes.len().min(at + count * SECTOR_BYTES);
                    bytes[at..to].fill(0);
                });
                (format!("{name} {count} sectors from byte {at}"), changed)
            })
        });
        println!("{:?}", each(&specimen, zeroed).unwrap_or_else(|error| panic!("{error}")));
    }
}

#[test]
fn every_shorter_or_lost_file_is_mended() {
    for specimen in specimens() {
        let names = specimen.segments();
        let step = if long() { 1 } else { 97 };
        let specimen = &specimen;
        let cuts = names.iter().flat_map(|name| {
            let len = specimen.files[name].len();
            let lengths = (0..len).filter(move |at| at % step == 0 || len - at < 4 || at % 4096 < 2);
            lengths.map(move |len| {
                let changed = specimen.disk.copy();
                changed.edit(name, |bytes| bytes.truncate(len));
                (format!("{name} cut to {len} bytes"), changed)
            })
        });
        println!("cut: {:?}", each(specimen, cuts).unwrap_or_else(|error| panic!("{error}")));
        let lost = names.iter().skip(1).map(|name| {
            let changed = specimen.disk.copy();
            changed.lose(name);
            (format!("{name} lost"), changed)
        });
        println!("lost: {:?}", each(specimen, lost).unwrap_or_else(|error| panic!("{error}")));
        let misplaced = names.iter().skip(1).map(|name| {
            let changed = specimen.disk.copy();
            changed.edit(name, |bytes| bytes.clone_from(&specimen.files[&names[0]]));
            (format!("{name} overwritten with {}", names[0]), changed)
        });
        println!("misplaced: {:?}", each(specimen, misplaced).unwrap_or_else(|error| panic!("{error}")));
    }
}

/// Two, three and many places at once, anywhere.
#[test]
fn any_number_of_places_is_mended() {
    for (nth, specimen) in specimens().iter().enumerate() {
        let mut random = Random(41 + nth as u64);
        let runs = if long() { 20_000 } else { 600 };
        let names = specimen.segments();
        let several = (0..runs).map(|run| {
            let changed = specimen.disk.copy();
            let mut what = format!("specimen {nth}, run {run}:");
            for _ in 0..2 + random.below(if run % 7 == 0 { 30 } else { 3 }) {
                let name = &names[random.below(names.len() as u64) as usize];
                let ranges = &specimen.meaning[name];
                let (from, to, _) = ranges[random.below(ranges.len() as u64) as usize];
                let at = from + random.below(to - from);
                changed.rot(name, at, |byte| *byte ^= 0x10);
                what.push_str(&format!(" {name}@{at}"));
            }
            (what, changed)
        });
        println!("{:?}", each(specimen, several).unwrap_or_else(|error| panic!("{error}")));
    }
}

/// Damage of several kinds, each with what the specimen needs to be mended.
fn damages(specimen: &Specimen) -> Vec<(&'static str, SimDisk)> {
    let names = specimen.segments();
    let entry = |segment: usize, nth: usize| {
        let ranges = &specimen.meaning[&names[segment]];
        ranges.iter().filter(|range| range.2.is_some()).nth(nth).map(|range| range.0 + 70).expect("an entry")
    };
    let damaged = |what: &'static str, change: &dyn Fn(&SimDisk)| {
        let copy = specimen.disk.copy();
        change(&copy);
        (what, copy)
    };
    let last = names.len() - 1;
    vec![
        damaged("an entry", &|disk| disk.rot(&names[0], entry(0, 0), |byte| *byte ^= 1)),
        damaged("two entries and a footer", &|disk| {
            disk.rot(&names[1], entry(1, 0), |byte| *byte ^= 1);
            disk.rot(&names[1], entry(1, 1), |byte| *byte ^= 1);
            disk.rot(&names[1], specimen.files[&names[1]].len() as u64 - 20, |byte| *byte ^= 1);
        }),
        damaged("a lost file", &|disk| disk.lose(&names[1])),
        damaged("an entry of the last segment", &|disk| disk.rot(&names[last], entry(last, 0), |byte| *byte ^= 1)),
        damaged("two neighbours", &|disk| {
            disk.rot(&names[0], entry(0, 1), |byte| *byte ^= 1);
            disk.rot(&names[1], 40, |byte| *byte ^= 1);
            disk.rot(&names[1], entry(1, 0), |byte| *byte ^= 1);
        }),
    ]
}

/// Cuts the power at every call of mending: what is left can be mended, and nothing of it was thrown away.
fn every_crash(specimen: &Specimen, what: &str, damaged: &SimDisk) -> Result<u64, String> {
    let whole = damaged.copy();
    mend(&whole, specimen).map_err(|error| format!("{what}: {error}"))?;
    let before = segment_files(damaged);
    let mut crashes = 0;
    for cut in 0..=whole.changes() {
        let disk = damaged.copy();
        disk.power_off_after(cut);
        let _ = mend(&disk, specimen);
        let mut random = Random(cut);
        let unsynced = disk.unsynced().len();
        let kept: Vec<SimDisk> = if unsynced <= 5 {
            (0..1_u64 << unsynced).map(|mask| disk.crash_keeping(|nth| mask >> nth & 1 == 1)).collect()
        } else {
            (0..10).map(|nth| disk.crash_keeping(|_| random.below(9) < nth)).collect()
        };
        for (number, crash) in kept.iter().enumerate() {
            crashes += 1;
            let context = |error| format!("{what}, power cut after {cut} calls, crash {number}: {error}");
            nothing_lost(crash, &before).map_err(context)?;
            let cut_before = Marker::read(crash).map_err(|error| context(error.to_string()))?;
            if let Ok((wal, recovered)) = Wal::open(crash.copy(), specimen.options.clone()) {
                let shorter =
                    recovered.last_index < specimen.content.frames.last().map_or(0, |last| last.header().index);
                if shorter && cut_before.is_none() {
                    return Err(context(format!("opens at {} without a word", recovered.last_index)));
                }
                drop(wal);
            }
            let (marker, _, mended, _) = mend(crash, specimen).map_err(context)?;
            nothing_lost(crash, &before).map_err(context)?;
            let certain = mended.hard_state_certain && cut_before.is_none_or(|marker| marker.hard_state_certain);
            as_before(specimen, crash, marker.or(cut_before), certain, false).map_err(context)?;
        }
    }
    Ok(crashes)
}

pub(crate) fn every_crash_of_mending() -> Result<u64, String> {
    let specimen = Specimen::plain();
    damages(&specimen).iter().map(|(what, damaged)| every_crash(&specimen, what, damaged)).sum()
}

pub(crate) fn every_crash_of_a_cut() -> Result<u64, String> {
    let specimen = Specimen::plain();
    let (name, last) = specimen.last.clone();
    // The last entry, before the sync point that vouches for it.
    let ranges = &specimen.meaning[&name];
    let entry = ranges.iter().rev().find(|range| range.2.is_some() && range.0 < last).expect("an entry").0;
    let damaged = specimen.disk.copy();
    damaged.rot(&name, entry + 100, |byte| *byte ^= 8);
    let mender = Mender::open(damaged.copy(), specimen.options.clone()).map_err(|error| error.to_string())?;
    if !mender.has_damaged_tail() {
        return Err(format!("no damaged end: {:?}", mender.holes()));
    }
    every_crash(&specimen, "a cut", &damaged)
}

#[test]
fn crash_at_every_call_of_mending_leaves_what_can_be_mended() {
    let crashes = every_crash_of_mending().unwrap_or_else(|error| panic!("{error}"));
    println!("{crashes} crashes");
    assert!(crashes > 300);
}

#[test]
fn crash_at_every_call_of_a_cut_leaves_the_end_or_the_marker() {
    let crashes = every_crash_of_a_cut().unwrap_or_else(|error| panic!("{error}"));
    println!("{crashes} crashes");
    assert!(crashes > 50);
}

/// Entries of another history fit at the start of a hole, and not at its end.
pub(crate) fn other_history_is_refused() -> Result<(), String> {
    let specimen = Specimen::plain();
    for (what, damaged) in damages(&specimen) {
        let before = segment_files(&damaged);
        let mut mender = Mender::open(damaged.clone(), specimen.options.clone()).map_err(|error| error.to_string())?;
        let Some(wanted) = mender.wanted() else { continue };
        let mut frames: Vec<Frame> = Vec::new();
        let mut place = mender.holes()[wanted.hole].before;
        for _ in wanted.first..=wanted.last {
            frames.push(records(&place, place.term.max(1), 33));
            place = LogBase::after(frames[frames.len() - 1].header());
        }
        match mender.fill(wanted.hole, &frames) {
            Err(MendError::Refused { index, .. }) if index == wanted.last => {}
            other => return Err(format!("{what}: entries of another history gave {other:?}")),
        }
        if segment_files(&damaged) != before {
            return Err(format!("{what}: a refused entry changed the log"));
        }
        // What was taken before the refusal is not held against the right ones.
        feed(&mut mender, &specimen.content.frames).map_err(|error| format!("{what}: {error}"))?;
        mender.finish().map_err(|error| error.to_string())?;
        as_before(&specimen, &damaged, None, true, false)?;
    }
    Ok(())
}

#[test]
fn entries_of_another_history_are_refused_at_the_end_of_the_hole() {
    other_history_is_refused().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn entries_that_are_damaged_too_many_or_out_of_order_are_refused() {
    let specimen = Specimen::plain();
    let (_, damaged) = damages(&specimen).swap_remove(2);
    let frames = &specimen.content.frames;
    let of = |index: u64| frames.iter().find(|frame| frame.header().index == index).cloned().expect("there");
    let mut mender = Mender::open(damaged.clone(), specimen.options.clone()).expect("a log");
    let wanted = mender.wanted().expect("entries are missing");
    assert!(wanted.last > wanted.first + 1, "{wanted:?}");
    let refused = |filled: Result<_, MendError>| matches!(filled, Err(MendError::Refused { .. }));
    let mut bytes = [&of(wanted.first).head()[..], &of(wanted.first).body().concat()].concat();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    let (rotten, _) = Frame::parse(bytes.into()).expect("its header is whole");
    assert!(refused(mender.fill(wanted.hole, &[rotten])), "a damaged body");
    assert!(refused(mender.fill(wanted.hole, &[of(wanted.first + 1)])), "not the next one");
    let filled = mender.fill(wanted.hole, &[of(wanted.first)]).expect("the right one");
    assert_eq!((filled.next, filled.done), (wanted.first + 1, false));
    assert!(refused(mender.fill(wanted.hole, &[of(wanted.first)])), "twice");
    assert_eq!(
        mender.wanted().map(|wanted| wanted.first),
        Some(wanted.first + 1),
        "a refusal of such kinds keeps what was taken"
    );
    assert!(matches!(mender.fill(99, &[]), Err(MendError::NoSuchHole { hole: 99 })));
    // Too few: nothing is put in place.
    let left = mender.finish().expect("no fault").left;
    assert!(left.iter().any(Hole::needs_frames), "{left:?}");
    assert!(Wal::open(damaged.copy(), specimen.options.clone()).is_err());
    let mut mender = Mender::open(damaged.clone(), specimen.options.clone()).expect("a log");
    let all: Vec<Frame> = (wanted.first..=wanted.last + 1).map(of).collect();
    assert!(refused(mender.fill(wanted.hole, &all)), "too many");
    assert!(matches!(mender.holes()[wanted.hole].after, Some(After::Base(_) | After::Entry(_))));
    feed(&mut mender, frames).expect("those before are kept");
    assert!(mender.finish().expect("no fault").left.is_empty());
    as_before(&specimen, &damaged, None, true, false).expect("as before");
}

/// A log whose end is an unfinished write has no holes.
#[test]
fn torn_log_has_no_holes() {
    let specimen = Specimen::plain();
    let (name, last) = specimen.last.clone();
    let torn = specimen.disk.copy();
    torn.rot(&name, last + 10, |byte| *byte ^= 1);
    let mender = Mender::open(torn, specimen.options.clone()).expect("a log");
    assert_eq!(mender.holes(), []);
    assert!(mender.wanted().is_none() && !mender.has_damaged_tail() && mender.hard_state_certain());
}

/// Whoever mends must find its peers, also when the first entries are gone.
#[test]
fn memberships_are_found_beside_the_damage() {
    let specimen = Specimen::plain();
    let damaged = specimen.disk.copy();
    damaged.rot(&specimen.segments()[0], 4096 + 100, |byte| *byte ^= 1);
    let mender = Mender::open(damaged, specimen.options.clone()).expect("a log");
    let found: Vec<u64> = mender.memberships().iter().map(|frame| frame.header().index).collect();
    assert!(found.len() >= 3 && found.is_sorted_by(|newer, older| newer > older), "{found:?}");
    assert!(!found.contains(&1), "{found:?}");
}
