//! The entry points of the fuzzer under random bytes: nothing panics, and no length from outside is believed before it is
//! bounded.

use std::process::Command;

use graven_wal::fuzzing;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::common::{control, first, records};
use crate::{long, skipped};

fn runner(cases: u32) -> TestRunner {
    let config =
        Config { cases: if long() { cases * 100 } else { cases }, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// Some bytes, made of valid ones by a few changes or wholly random.
fn changed(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = valid.len();
    let edits = prop::collection::vec((0..len, any::<u8>()), 0..6);
    let some = (edits, 0..=len).prop_map(move |(edits, cut)| {
        let mut bytes = valid.clone();
        edits.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        bytes.truncate(cut.max(len / 2));
        bytes
    });
    prop_oneof![some, prop::collection::vec(any::<u8>(), 0..300)]
}

/// Makes the sum over the first `covered` bytes right: what lies behind that check must hold as well.
fn summed(mut bytes: Vec<u8>, covered: usize) -> Vec<u8> {
    if bytes.len() >= covered + 4 {
        let crc = crc32fast::hash(&bytes[..covered]).to_le_bytes();
        bytes[covered..covered + 4].copy_from_slice(&crc);
    }
    bytes
}

fn frame_bytes() -> Vec<u8> {
    let frame = records(&crate::common::base(&first()), 2, 60);
    [frame.head().to_vec(), frame.body().concat().to_vec()].concat()
}

#[test]
fn arbitrary_frames() {
    let run = runner(3000).run(&(changed(frame_bytes()), any::<bool>()), |(bytes, mend)| {
        fuzzing::frame(&if mend { summed(bytes, 92) } else { bytes });
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn arbitrary_prefixes_and_footers() {
    let mut valid = b"GRVR".to_vec();
    valid.extend_from_slice(&[1, 0, 0, 0]);
    valid.resize(300, 0);
    let run = runner(5000).run(&(changed(valid), any::<bool>()), |(bytes, mend)| {
        fuzzing::prefix(&if mend { summed(bytes, 60) } else { bytes });
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn arbitrary_openings() {
    let mut valid = b"GRVNSEG\0\x01".to_vec();
    valid.resize(4096, 0);
    let run = runner(800).run(&(changed(valid), any::<bool>()), |(bytes, mend)| {
        fuzzing::opening(&if mend { summed(bytes, 4092) } else { bytes });
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn arbitrary_changes_to_a_directory() {
    let edit = (0_u8..4, 0_u16..1100, any::<u8>(), prop::collection::vec(any::<u8>(), 0..64)).prop_map(
        |(file, place, how, bytes)| {
            let [low, high] = place.to_le_bytes();
            // The length goes with the bytes, so that the next edit starts behind them.
            let how = (how & 3) | (bytes.len() as u8) << 2;
            [vec![file, low, high, how], bytes].concat()
        },
    );
    let edits = prop::collection::vec(edit, 0..5);
    let run = runner(1500).run(&edits, |edits| {
        fuzzing::recovery(&edits.concat());
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
}

/// Lengths that claim gigabytes, with every sum right, in a process that may not have as much: it would be killed if one
/// of them were believed before it is bounded.
#[test]
fn claimed_lengths_take_no_memory() {
    const LIMITED: &str = "GRAVEN_LIMITED_MEMORY";
    if std::env::var_os(LIMITED).is_some() {
        for len in [u32::MAX, 1 << 31, 1 << 30, (17 << 20) + 1] {
            let mut frame = frame_bytes();
            frame[16..20].copy_from_slice(&len.to_le_bytes());
            fuzzing::frame(&summed(frame, 92));
            let mut prefix = b"GRVR\x05\0\0\0".to_vec();
            prefix.resize(300, 0);
            prefix[56..60].copy_from_slice(&len.to_le_bytes());
            fuzzing::prefix(&summed(prefix.clone(), 60));
            for count in [8, 16, 24] {
                let mut footer = vec![0; 300];
                footer[count..count + 8].copy_from_slice(&u64::from(len).to_le_bytes());
                fuzzing::prefix(&footer);
            }
            // The first record behind the opening of the first file, and its opening's capacity.
            for place in [4096_u16 + 48, 72] {
                let [low, high] = (place / 16).to_le_bytes();
                let mut edit = vec![0, low, high, 1 | 16 << 2];
                edit.extend_from_slice(&[len.to_le_bytes(); 4].concat());
                fuzzing::recovery(&edit);
            }
        }
        return;
    }
    let binary = std::env::current_exe().expect("this test");
    let limited = Command::new("sh")
        .args(["-c", "ulimit -v 700000 && exec \"$0\" \"$@\""])
        .arg(binary)
        .args(["--exact", "arbitrary::claimed_lengths_take_no_memory", "--test-threads=1"])
        .env(LIMITED, "1")
        .output();
    match limited {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => skipped("claimed_lengths_take_no_memory", &format!("no shell to limit memory with: {error}")),
    }
}

/// Control bodies belong to others: any bytes go in and come out.
#[test]
fn arbitrary_control_bodies_are_kept() {
    let frame = control(&crate::common::base(&first()), 1, graven_frame::Kind::Session, b"\0\xFFGRVR\x01");
    fuzzing::frame(&[frame.head().to_vec(), frame.body().concat().to_vec()].concat());
}

/// What random changes found once.
#[test]
fn changes_that_were_not_survived_once() {
    // An opening whose base does not fit the entries in its segment.
    fuzzing::recovery(&[[0, 5, 0, 69].as_slice(), &[0; 16], &[1]].concat());
    // A hard state that names the opening as its first copy's place, and has lost its second copy.
    fuzzing::recovery(&[2, 3, 1, 5, 0]);
    // A log that goes on behind the last number there is.
    fuzzing::recovery(&[[10, 6, 0, 0x75].as_slice(), &[0xFF; 20], &[0]].concat());
}
