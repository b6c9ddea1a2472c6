//! Look-ups land where a walk through everything would.

mod common;

use common::{IDENTITY, Random, base, control, first, read_all, records};
use graven_frame::{Frame, Kind};
use graven_wal::sim::SimDisk;
use graven_wal::{HardState, Options, Wal};

/// Entries of all sizes, some superseded several times over, hard states between them, in segments of several stretches.
fn tangled(seed: u64) -> (Wal<SimDisk>, Vec<Frame>) {
    let mut random = Random(seed);
    let disk = SimDisk::new(seed);
    let options = Options { segment_bytes: 600 << 10, ..Options::default() };
    Wal::create(disk.clone(), IDENTITY, options.clone(), &[first()]).expect("empty");
    let (mut wal, _) = Wal::open(disk, options).expect("just created");
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
    (wal, all)
}

#[test]
fn every_entry_offset_and_time_is_found_in_a_tangled_log() {
    for seed in 0..6 {
        let (wal, all) = tangled(seed);
        let reader = wal.reader();
        assert_eq!(read_all(&reader), all, "seed {seed}");
        for frame in &all {
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
}
