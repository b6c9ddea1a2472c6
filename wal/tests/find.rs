//! Look-ups land where a walk through everything would.

mod common;

use common::{IDENTITY, Random, base, control, first, read_all, records};
use graven_frame::{Frame, Kind};
use graven_wal::inspect::SegmentInfo;
use graven_wal::sim::SimDisk;
use graven_wal::{HardState, Options, ReadError, Wal};

/// Entries of all sizes, some superseded several times over, hard states between them, in segments of several stretches.
fn tangled(seed: u64) -> (SimDisk, Wal<SimDisk>, Vec<Frame>) {
    let mut random = Random(seed);
    let disk = SimDisk::new(seed);
    Wal::create(disk.clone(), IDENTITY, large(), &[first()]).expect("empty");
    let (mut wal, _) = Wal::open(disk.clone(), large()).expect("just created");
    let mut all = vec![first()];
    let mut term = 1;
    for _ in 0..3000 {
        if random.below(60) == 0 {
            term += 1;
            wal.set_hard_state(HardState { term, vote: None }).expect("room");
            let back = random.below(40).min(all.len() as u64 - 1) as usize;
            all.truncate(all.len() - back);
        }
        let before = base(all.last().expect("the first"));
        let frame = match random.below(12) {
            0 => control(&before, term, Kind::Noop, b"control entries have no offset"),
            1 => records(&before, term, random.below(9000) as usize),
            2 if random.below(20) == 0 => records(&before, term, 200_000),
            _ => records(&before, term, random.below(200) as usize),
        };
        wal.append(std::slice::from_ref(&frame)).expect("room");
        all.push(frame);
    }
    wal.sync().expect("no fault");
    (disk, wal, all)
}

/// Segments with several stretches between two points each.
fn large() -> Options {
    Options { segment_bytes: 600 << 10, ..Options::default() }
}

/// What was written by this process, and what an open finds: there all points but the last segment's are in footers.
#[test]
fn every_entry_offset_and_time_is_found_in_a_tangled_log() {
    for seed in 0..6 {
        let (disk, wal, all) = tangled(seed);
        find_all(&wal, &all, seed);
        assert!(wal.stats().rotations > 1, "seed {seed}: {:?}", wal.stats());
        wal.close().expect("no fault");
        let (mut wal, _) = Wal::open(disk, large()).expect("closed");
        find_all(&wal, &all, seed);
        // A superseding entry that reaches back into a sealed segment makes its footer say too much.
        let keep = all.len() * 2 / 3;
        let mut all = all[..keep].to_vec();
        all.push(records(&base(&all[keep - 1]), wal.tail().term + 1, 700));
        wal.append(&all[keep..]).expect("continues an entry that is not settled");
        find_all(&wal, &all, seed);
    }
}

fn find_all(wal: &Wal<SimDisk>, all: &[Frame], seed: u64) {
    let reader = wal.reader();
    assert_eq!(read_all(&reader), all, "seed {seed}");
    for frame in all {
        let header = frame.header();
        let found = reader.header(header.index).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(found, *header, "seed {seed}");
        let time = reader.index_of_time(header.timestamp_ms).expect("intact");
        assert_eq!(time, Some(header.index), "seed {seed}: times differ by one");
        if header.kind == Kind::Records {
            let at = reader.index_of_offset(header.base_offset).expect("intact");
            assert_eq!(at, Some(header.index), "seed {seed} offset {}", header.base_offset);
        }
    }
    let tail = wal.tail();
    assert_eq!(reader.index_of_offset(tail.next_offset), Ok(None));
    assert_eq!(reader.index_of_time(tail.timestamp_ms + 1), Ok(None));
}

/// A footer is checked when the log is opened, and read again at each look-up: what rots in between is named, and nothing
/// else is found in place of the entry.
#[test]
fn footer_that_rots_while_the_log_is_open_is_named() {
    let (disk, wal, all) = tangled(3);
    wal.close().expect("no fault");
    let segments = graven_wal::inspect::verify(&disk).expect("closed").segments;
    // One of which nothing was superseded later.
    let whole = |pair: &&[SegmentInfo]| pair[0].entries.is_some_and(|(_, last)| last == pair[1].opened_at.index);
    let sealed = &segments.windows(2).find(whole).expect("some")[0];
    let name = format!("{}.seg", sealed.id);
    let (_, last) = sealed.entries.expect("checked");
    let (wal, _) = Wal::open(disk.clone(), large()).expect("closed");
    let reader = wal.reader();
    // The points are the last thing in the footer, and the footer the last thing that was written.
    let mut named = 0;
    for back in 1..=128 {
        for flip in [1, 0x80] {
            let at = sealed.written - back;
            disk.rot(&name, at, |byte| *byte ^= flip);
            for frame in all.iter().filter(|frame| frame.header().index <= last) {
                match reader.header(frame.header().index) {
                    Ok(found) => assert_eq!(found, *frame.header()),
                    Err(ReadError::Damaged(damage)) => {
                        assert_eq!(damage.segment, sealed.id, "{damage}");
                        named += 1;
                    }
                    Err(error) => panic!("byte {at}: {error}"),
                }
            }
            disk.rot(&name, at, |byte| *byte ^= flip);
        }
    }
    println!("{named} look-ups named it");
    assert!(named > 100);
}
