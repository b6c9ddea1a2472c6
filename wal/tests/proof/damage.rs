//! Damage: every bit, every cut, every sector, every file of a small log of several segments.
//!
//! Whatever is changed lies where nothing is promised, is healed from what stands elsewhere, or is named with its segment
//! and bytes. Nothing wrong is ever read as right, and an open that finds damage changes nothing.

use std::collections::BTreeMap;

use graven_frame::{Frame, Kind};
use graven_wal::sim::{SECTOR_BYTES, SimDisk};
use graven_wal::{
    Damage, Disk, DiskFile, HardState, Identity, OpenError, Options, ReadError, SyncMethod, Wal, inspect,
};

use crate::common::{IDENTITY, control, first, grow, new_log, options};
use crate::long;
use crate::script::{Moment, look};

/// A log, closed in good order, and where its bytes mean something.
pub(crate) struct Specimen {
    pub(crate) disk: SimDisk,
    pub(crate) content: Moment,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Byte ranges of records, openings and trailers; the entry, if it is one.
    pub(crate) meaning: BTreeMap<String, Vec<(u64, u64, Option<u64>)>>,
    /// The last record: nothing vouches for it, and it vouches for the rest.
    pub(crate) last: (String, u64),
    /// How it was written, and is opened.
    pub(crate) options: Options,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Nothing was promised about these bytes.
    Invisible,
    /// It looked like an unfinished write behind the last record that counts, and was cut with a word.
    Torn,
    /// The sector was lost that holds both the last entry and the sync point that vouches for it: to this node it looks
    /// as if neither had been written. FORMAT.md calls it the one window; the node's peers have the entry.
    Window,
    /// The same facts stand elsewhere, and it was reported.
    Healed,
    /// The open named it.
    Named,
    /// The open had no need of it; readers and verification named it.
    NamedByVerify,
}

/// What was changed: a file and a range of its bytes.
type Harm<'a> = (&'a str, u64, u64);

impl Specimen {
    /// Three segments with all kinds of records; few bytes of them are used, so that every one can be tried.
    pub(crate) fn plain() -> Specimen {
        let disk = SimDisk::new(21);
        Specimen::fill(&disk, new_log(&disk), options())
    }

    /// Written around the page cache, and opened for that.
    pub(crate) fn direct() -> Specimen {
        let disk = SimDisk::new(21);
        drop(new_log(&disk));
        let options = Options { sync: SyncMethod::Direct, ..options() };
        let (wal, _) = Wal::open(disk.clone(), options.clone()).expect("just created");
        Specimen::fill(&disk, wal, options)
    }

    /// The same in segments that had an earlier life.
    pub(crate) fn recycled() -> Specimen {
        let disk = SimDisk::new(22);
        let mut wal = new_log(&disk);
        grow(&mut wal, 24, 2500);
        wal.sync().expect("no fault");
        wal.release_before(wal.last_index()).expect("no fault");
        assert!(wal.stats().recycled > 2, "{:?}", wal.stats());
        // Out of the last new file.
        let recycled = wal.stats().recycled;
        for _ in 0..=wal.stats().created + recycled {
            grow(&mut wal, 1, 9000);
        }
        wal.sync().expect("no fault");
        wal.release_before(wal.last_index()).expect("no fault");
        Specimen::fill(&disk, wal, options())
    }

    fn fill(disk: &SimDisk, mut wal: Wal<SimDisk>, options: Options) -> Specimen {
        let term = wal.hard_state().term;
        for round in 1..4 {
            grow(&mut wal, 2, 150);
            // Its two copies lie in different blocks: each takes much room and few bytes.
            wal.set_hard_state(HardState { term: term + 2 * round, vote: Some(2) }).expect("room");
            let noop = control(&wal.tail(), wal.tail().term, Kind::Membership, b"two voters");
            wal.append(&[noop]).expect("room");
            wal.sync().expect("no fault");
            let before = graven_wal::LogBase::after(&wal.reader().header(wal.last_index() - 1).expect("there"));
            let new = crate::common::records(&before, wal.tail().term + 1, 90);
            wal.append(&[new]).expect("continues the entry before");
            wal.set_hard_state(HardState { term: term + 2 * round + 1, vote: None }).expect("room");
            wal.note_commit(wal.last_index() - 1);
            grow(&mut wal, 1, 40);
            wal.sync().expect("no fault");
        }
        wal.close().expect("no fault");
        let disk = disk.copy();
        let (wal, recovered) = Wal::open(disk.copy(), options.clone()).expect("closed in good order");
        let content = look(&wal.reader(), &recovered).expect("intact");
        let found = inspect::verify(&disk).expect("closed");
        assert!(found.damage.is_empty() && found.healed.is_empty() && found.torn_bytes == 0, "{found:?}");
        let files = segment_files(&disk);
        let begun = found.segments.iter().filter(|segment| segment.state != inspect::SegmentState::Prepared);
        let mut last = (String::new(), 0);
        let mut meaning = BTreeMap::new();
        for segment in begun {
            let name = format!("{}.seg", segment.id);
            let (ranges, end) = meaning_of(&files[&name]);
            last = (name.clone(), end);
            meaning.insert(name, ranges);
        }
        assert!(meaning.len() > 2, "{} segments", meaning.len());
        // Of records with the same index only the last one counts.
        let mut later = std::collections::BTreeSet::new();
        for range in
            meaning.values_mut().rev().flat_map(|ranges: &mut Vec<(u64, u64, Option<u64>)>| ranges.iter_mut().rev())
        {
            range.2 = range.2.filter(|index| later.insert(*index));
        }
        Specimen { disk, content, files, meaning, last, options }
    }

    /// Begun segments.
    pub(crate) fn segments(&self) -> Vec<String> {
        self.meaning.keys().cloned().collect()
    }

    pub(crate) fn means_something(&self, (name, from, to): Harm<'_>) -> bool {
        let changed = self.meaning.get(name);
        changed.is_some_and(|ranges| ranges.iter().any(|range| range.0 < to && from < range.1))
    }

    /// Entries of the log whose records were hit.
    fn entries_hit(&self, (name, from, to): Harm<'_>) -> Vec<u64> {
        let ranges = self.meaning.get(name).into_iter().flatten();
        ranges.filter(|range| range.0 < to && from < range.1).filter_map(|range| range.2).collect()
    }

    /// Opens and verifies a changed copy, and says what became of the change, or what is wrong about that.
    pub(crate) fn judge(&self, changed: &SimDisk, harm: Harm<'_>) -> Result<Outcome, String> {
        let before = segment_files(changed);
        let verified = inspect::verify(changed);
        let opened = Wal::open(changed.clone(), self.options.clone());
        let unchanged = || {
            let same = before.iter().all(|(name, bytes)| *bytes == whole(changed, name));
            if same { Ok(()) } else { Err("an open that found damage changed bytes".to_owned()) }
        };
        let (wal, recovered) = match opened {
            Err(OpenError::Damaged(damage)) => {
                unchanged()?;
                self.names(&damage, harm)?;
                return match verified {
                    Ok(found) if found.damage.is_empty() => Err(format!("{damage}, and verification saw nothing")),
                    _ => Ok(Outcome::Named),
                };
            }
            Err(error) => {
                unchanged()?;
                return Err(format!("refused: {error}"));
            }
            Ok(opened) => opened,
        };
        let mut unreadable = Vec::new();
        let reader = wal.reader();
        let last = self.content.frames.last().map_or(0, |frame| frame.header().index);
        let hit = self.entries_hit(harm);
        let took_the_proof = harm.0 == self.last.0 && harm.2 > self.last.1;
        let window = took_the_proof && (recovered.last_index + 1..=last).all(|index| hit.contains(&index));
        let last = if window { recovered.last_index } else { last };
        for frame in self.content.frames.iter().filter(|frame| frame.header().index <= last) {
            let index = frame.header().index;
            match reader.frame(index) {
                Ok(read) if read == *frame && read.verify(None).is_ok() => {}
                Ok(read) if read.verify(None).is_err() => unreadable.push(index),
                Ok(_) => return Err(format!("entry {index} reads as something else")),
                Err(ReadError::Damaged(damage)) => {
                    // A reader names the record at which it stopped on the way.
                    if format!("{}.seg", damage.segment) != harm.0 || damage.from >= harm.2 {
                        return Err(format!("reading entry {index}: changed was {harm:?}, named {damage}"));
                    }
                    unreadable.push(index);
                }
                Err(error) => return Err(format!("entry {index}: {error}")),
            }
        }
        if (recovered.base.index, recovered.last_index, recovered.hard_state)
            != (self.content.base, last, self.content.hard_state)
        {
            return Err(format!("accepted as {recovered:?}"));
        }
        self.nothing_deleted(changed, &before, recovered.report.torn_bytes)?;
        let found = verified.map_err(|error| format!("opened, but verification says {error}"))?;
        // Readers walk up to an entry: those behind a damaged one in its segment are out of their reach, though not lost.
        let reached = |index: &&u64| found.damage.iter().all(|damage| **index < damage.first_index);
        if let Some(index) = unreadable.iter().find(reached) {
            return Err(format!("entry {index} is lost, named were {:?}", found.damage));
        }
        for damage in found.damage.iter().chain(&found.healed) {
            self.names(damage, harm)?;
        }
        let report = &recovered.report;
        Ok(if last < self.content.frames.last().map_or(0, |frame| frame.header().index) {
            Outcome::Window
        } else if !found.damage.is_empty() {
            Outcome::NamedByVerify
        } else if !found.healed.is_empty() || !report.healed.is_empty() {
            Outcome::Healed
        } else if report.torn_bytes > 0 || found.torn_bytes > 0 {
            if harm.0 != self.last.0 || harm.2 <= self.last.1 {
                return Err(format!("{} bytes were cut that later records vouch for", report.torn_bytes));
            }
            Outcome::Torn
        } else if self.means_something(harm) && !self.same_there(&before, harm) {
            return Err("changed unseen".to_owned());
        } else {
            Outcome::Invisible
        })
    }

    fn same_there(&self, now: &BTreeMap<String, Vec<u8>>, (name, from, to): Harm<'_>) -> bool {
        let range = from as usize..to as usize;
        now.get(name).and_then(|bytes| bytes.get(range.clone())) == self.files[name].get(range)
    }

    /// Whether this is about what was changed: its segment, bytes that touch it, and the entries that it cost.
    fn names(&self, damage: &Damage, harm: Harm<'_>) -> Result<(), String> {
        let (name, from, to) = harm;
        let touches = damage.from < to && from < damage.to;
        // The first record that cannot be accepted may lie before: a hard state is damaged by its second copy's bytes.
        if format!("{}.seg", damage.segment) != name || !touches {
            return Err(format!("changed was {name} {from}..{to}, named {damage}"));
        }
        // How far the last segment went nobody else knows: then the first entry is named.
        let open_end = name == self.last.0 && damage.first_index == damage.last_index;
        if damage.what.starts_with("an entry that a later one continues") {
            // The open needed this one, and looked no further.
            return Ok(());
        }
        let missing = |index: &u64| *index < damage.first_index || (*index > damage.last_index && !open_end);
        let named = (name, from.max(damage.from), to.min(damage.to));
        match self.entries_hit(named).iter().find(|index| missing(index)) {
            Some(index) => Err(format!("entry {index} was hit, named {damage}")),
            _ => Ok(()),
        }
    }

    /// Bytes that were not changed by the test are not changed by the open, but for zeroes where an unfinished write was cut.
    fn nothing_deleted(&self, disk: &SimDisk, before: &BTreeMap<String, Vec<u8>>, torn: u64) -> Result<(), String> {
        for (name, bytes) in before {
            let after = whole(disk, name);
            let healthy = self.files.get(name);
            let differs = (0..bytes.len()).filter(|at| after.get(*at) != Some(&bytes[*at]));
            let unexplained: Vec<_> =
                differs.filter(|at| healthy.and_then(|bytes| bytes.get(*at)) != after.get(*at)).collect();
            if after.len() < bytes.len() || (!unexplained.is_empty() && torn == 0) {
                return Err(format!("{name}: the open changed bytes {unexplained:?}"));
            }
            let in_a_record = |at: &&usize| self.means_something((name, **at as u64, **at as u64 + 1));
            if let Some(at) = unexplained.iter().find(|at| in_a_record(at) && (**at as u64) < self.last.1) {
                return Err(format!("{name}: the open changed byte {at} of a record"));
            }
        }
        Ok(())
    }
}

/// All bytes of a file, with the zeroes at its end.
pub(crate) fn whole(disk: &SimDisk, name: &str) -> Vec<u8> {
    let mut bytes = disk.bytes_of(name).unwrap_or_default();
    let len = disk.open(name, None).and_then(|file| file.len()).expect("there");
    bytes.resize(len as usize, 0);
    bytes
}

/// The files that hold a log.
pub(crate) fn segment_files(disk: &SimDisk) -> BTreeMap<String, Vec<u8>> {
    let names = disk.names().into_iter().filter(|name| name.ends_with(".seg"));
    names.map(|name| (name.clone(), whole(disk, &name))).collect()
}

/// Where a segment's bytes mean something, by FORMAT.md alone; and where its last record starts.
fn meaning_of(bytes: &[u8]) -> (Vec<(u64, u64, Option<u64>)>, u64) {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (salt, capacity) = (u64_at(24), u64_at(72));
    let mut ranges = vec![(0, 4096, None)];
    let (mut at, mut last) = (4096_usize, 4096);
    while at + 64 <= capacity as usize
        && &bytes[at..at + 4] == b"GRVR"
        && u64_at(at + 8) == salt
        && u64_at(at + 24) == at as u64
    {
        let (kind, len) = (bytes[at + 4], u32_at(at + 56) as usize);
        let index = (kind == 1).then(|| u64_at(at + 64 + 32));
        ranges.push((at as u64, (at + 64 + len) as u64, index));
        last = at as u64;
        at = (at + 64 + len).next_multiple_of(64);
        if kind == 2 {
            let twin = at.next_multiple_of(4096);
            ranges.push((twin as u64, twin as u64 + 128, None));
            at = twin + 128;
        }
        if kind == 5 {
            ranges.push((capacity - 128, capacity, None));
            break;
        }
    }
    (ranges, last)
}

/// Counts of outcomes.
pub(crate) type Counts = BTreeMap<Outcome, u64>;

/// Flips `bits` of every `step`th byte of those that mean something, and of every `spare_step`th of the others.
pub(crate) fn every_flip(specimen: &Specimen, bits: &[u8], step: u64, spare_step: u64) -> Result<Counts, String> {
    let mut counts = Counts::new();
    for name in specimen.segments() {
        for at in 0..specimen.files[&name].len() as u64 {
            let step = if specimen.means_something((&name, at, at + 1)) { step } else { spare_step };
            if !at.is_multiple_of(step) {
                continue;
            }
            for bit in bits {
                let bit = if bits.len() == 1 { (at % 8) as u8 } else { *bit };
                let changed = specimen.disk.copy();
                changed.rot(&name, at, |byte| *byte ^= 1 << bit);
                let outcome = specimen.judge(&changed, (&name, at, at + 1));
                let outcome = outcome.map_err(|error| format!("{name} byte {at} bit {bit}: {error}"))?;
                *counts.entry(outcome).or_default() += 1;
            }
        }
    }
    Ok(counts)
}

/// Cuts every segment file short, at every `step`th length.
pub(crate) fn every_cut(specimen: &Specimen, step: usize) -> Result<Counts, String> {
    let mut counts = Counts::new();
    for name in specimen.segments() {
        let whole = specimen.files[&name].len();
        for len in (0..whole).filter(|len| len % step == 0 || whole - len < 4 || len % 4096 < 2) {
            let changed = specimen.disk.copy();
            changed.edit(&name, |bytes| bytes.truncate(len));
            let outcome = specimen.judge(&changed, (&name, len as u64, whole as u64));
            let outcome = outcome.map_err(|error| format!("{name} cut to {len} bytes: {error}"))?;
            *counts.entry(outcome).or_default() += 1;
        }
    }
    Ok(counts)
}

/// Zeroes every sector, and exchanges every two neighbours.
pub(crate) fn every_sector(specimen: &Specimen) -> Result<Counts, String> {
    let mut counts = Counts::new();
    for name in specimen.segments() {
        let sectors = specimen.files[&name].len() / SECTOR_BYTES;
        for sector in 0..sectors {
            let at = sector * SECTOR_BYTES;
            let zeroed = specimen.disk.copy();
            zeroed.edit(&name, |bytes| bytes[at..at + SECTOR_BYTES].fill(0));
            let outcome = specimen.judge(&zeroed, (&name, at as u64, (at + SECTOR_BYTES) as u64));
            let outcome = outcome.map_err(|error| format!("{name} sector {sector} zeroed: {error}"))?;
            *counts.entry(outcome).or_default() += 1;
            if sector + 1 < sectors {
                let swapped = specimen.disk.copy();
                swapped.edit(&name, |bytes| {
                    let (one, two) = bytes[at..at + 2 * SECTOR_BYTES].split_at_mut(SECTOR_BYTES);
                    one.swap_with_slice(two);
                });
                let outcome = specimen.judge(&swapped, (&name, at as u64, (at + 2 * SECTOR_BYTES) as u64));
                let outcome =
                    outcome.map_err(|error| format!("{name} sectors {sector} and next exchanged: {error}"))?;
                *counts.entry(outcome).or_default() += 1;
            }
        }
    }
    Ok(counts)
}

/// Files that are gone, doubled, exchanged, or somebody else's.
pub(crate) fn every_file(specimen: &Specimen) -> Result<u64, String> {
    let names = specimen.segments();
    let mut tried = 0;
    let mut expect = |what: String, changed: &SimDisk, right: &dyn Fn(&OpenError) -> bool| {
        tried += 1;
        let files = segment_files(changed);
        let verdict = match Wal::open(changed.clone(), options()) {
            Err(error) if right(&error) => Ok(()),
            Err(error) => Err(format!("{what}: {error}")),
            Ok((_, recovered)) => Err(format!("{what}: accepted as {recovered:?}")),
        };
        if files != segment_files(changed) {
            return Err(format!("{what}: files were changed"));
        }
        verdict
    };
    let id_of = |name: &str| u64::from_str_radix(&name[..16], 16).expect("a segment's name");
    for (nth, name) in names.iter().enumerate() {
        let bytes = specimen.files[name].clone();
        if nth > 0 {
            let changed = specimen.disk.copy();
            changed.lose(name);
            let missing = |error: &OpenError| matches!(error, OpenError::MissingSegment { segment, .. } if segment.0 == id_of(name));
            expect(format!("{name} removed"), &changed, &missing)?;
        }
        let last = id_of(&names[names.len() - 1]);
        for other in (id_of(&names[0])..last + 4).map(|id| format!("{id:016x}.seg")).filter(|other| other != name) {
            let changed = specimen.disk.copy();
            changed.edit(&other, |there| there.clone_from(&bytes));
            let named = |error: &OpenError| match error {
                OpenError::Damaged(damage) => damage.segment.0 == id_of(&other),
                OpenError::MissingSegment { segment, .. } => segment.0 > last,
                _ => false,
            };
            expect(format!("{name} copied to {other}"), &changed, &named)?;
        }
        for identity in [
            Identity { cluster: 0xD2, ..IDENTITY },
            Identity { node: 2, ..IDENTITY },
            Identity { incarnation: 0, ..IDENTITY },
        ] {
            let other = SimDisk::new(1);
            Wal::create(other.clone(), identity, options(), &[first()]).map_err(|error| error.to_string())?;
            let bytes = whole(&other, "0000000000000001.seg");
            let changed = specimen.disk.copy();
            changed.edit(name, |there| *there = bytes);
            let foreign = |error: &OpenError| matches!(error, OpenError::WrongCluster { .. });
            expect(format!("{name} of {identity:?}"), &changed, &foreign)?;
        }
    }
    // The lowest segment alone can go unseen: a release takes it away just so. What is left says where it starts.
    let changed = specimen.disk.copy();
    changed.lose(&names[0]);
    let (_, recovered) = Wal::open(changed, options()).map_err(|error| error.to_string())?;
    if recovered.first_index <= specimen.content.base + 1 {
        return Err(format!("the first segment is gone, and the log says {recovered:?}"));
    }
    Ok(tried)
}

fn bits() -> Vec<u8> {
    if long() { (0..8).collect() } else { vec![0] }
}

pub(crate) fn specimens() -> [Specimen; 3] {
    [Specimen::plain(), Specimen::recycled(), Specimen::direct()]
}

#[test]
fn every_flipped_bit_is_invisible_healed_or_named() {
    for specimen in specimens() {
        let counts =
            every_flip(&specimen, &bits(), 1, if long() { 1 } else { 61 }).unwrap_or_else(|error| panic!("{error}"));
        println!("{counts:?}");
        assert!(
            counts[&Outcome::Named] > 500 && counts[&Outcome::NamedByVerify] > 500 && counts[&Outcome::Healed] > 500
        );
    }
}

#[test]
fn every_cut_file_is_named() {
    for specimen in specimens() {
        let counts = every_cut(&specimen, if long() { 1 } else { 41 }).unwrap_or_else(|error| panic!("{error}"));
        println!("{counts:?}");
        assert!(counts.keys().all(|outcome| *outcome == Outcome::Named), "{counts:?}");
    }
}

#[test]
fn every_lost_or_misplaced_sector_is_invisible_healed_or_named() {
    for specimen in specimens() {
        let counts = every_sector(&specimen).unwrap_or_else(|error| panic!("{error}"));
        println!("{counts:?}");
    }
}

#[test]
fn every_lost_doubled_or_foreign_file_is_named() {
    for specimen in specimens() {
        let tried = every_file(&specimen).unwrap_or_else(|error| panic!("{error}"));
        println!("{tried} directories");
    }
}

/// The specimen is what it is meant to be: the checker sees a change of the content as such.
#[test]
fn specimen_is_judged_invisible_as_it_is() {
    for specimen in specimens() {
        let name = specimen.segments().pop().expect("some");
        assert_eq!(specimen.judge(&specimen.disk.copy(), (&name, 0, 0)), Ok(Outcome::Invisible));
        let frames: &[Frame] = &specimen.content.frames;
        assert!(frames.len() > 6 && specimen.meaning.len() > 2);
    }
}
