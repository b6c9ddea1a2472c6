//! `graven trim` on real nodes: what readers are told, what is freed, who catches up from behind the beginning.

use crate::bare::Bare;
use crate::common::wait_for;

/// So small that a few megabytes are a hundred of them.
const TINY_SEGMENTS: &str = "\n[wal]\nsegment_bytes = \"64K\"\n";

/// Records of 1,000 bytes, numbered from `from` on.
fn records(from: u64, count: u64) -> Vec<u8> {
    let record = |number: u64| format!("{number:08} {}\n", "x".repeat(991));
    (from..from + count).flat_map(|number| record(number).into_bytes()).collect()
}

fn append(bare: &Bare, from: u64, count: u64) {
    bare.run(&["append", "--timeout", "30s"], &records(from, count)).expect(0);
}

fn first_number(bare: &Bare, args: &[&str]) -> u64 {
    let text = bare.run(args, b"").expect(0).text();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{text:?}"))
}

#[test]
fn the_log_begins_at_the_trim_on_all_nodes_and_its_files_go() {
    let mut bare = Bare::made(3, TINY_SEGMENTS);
    bare.start_all();
    append(&bare, 0, 6_000);
    bare.wait_for_equal_offsets();
    let segments = |node: u16| bare.says(node, "segments").as_u64().expect("a number");
    let before = segments(1);

    let beyond = bare.run(&["--json", "trim", "--before", "6001"], b"").expect(4).error();
    assert_eq!(
        (beyond["code"].as_str(), beyond["details"]["next_offset"].as_u64()),
        (Some("out_of_range"), Some(6_000))
    );
    assert_eq!(bare.run(&["--json", "trim", "--before", "5000"], b"").expect(0).text(), "{\"first_offset\":5000}\n");
    for node in 1..=3 {
        wait_for("the first offset", || (bare.says(node, "first_offset") == 5_000).then_some(()));
        wait_for("files that go", || (bare.says(node, "segments").as_u64() < Some(before / 2)).then_some(()));
    }
    // What is trimmed already stays as it is.
    assert_eq!(bare.run(&["--json", "trim", "--before", "7"], b"").expect(0).text(), "{\"first_offset\":5000}\n");

    let below = bare.run(&["--json", "read", "--from", "4999"], b"").expect(4).error();
    assert_eq!((below["code"].as_str(), below["details"]["first_offset"].as_u64()), (Some("trimmed"), Some(5_000)));
    assert_eq!(first_number(&bare, &["read", "--count", "1"]), 5_000);
    assert_eq!(first_number(&bare, &["read", "--from", "10", "--skip-trimmed", "--count", "1"]), 5_000);

    // A restart begins with the newest checkpoint, and every session and record is where it was.
    for node in 1..=3 {
        bare.kill(node);
        bare.start(node, &[]);
    }
    append(&bare, 6_000, 10);
    assert_eq!(bare.wait_for_equal_offsets(), 6_010);
    let all = bare.run(&["read"], b"").expect(0).stdout;
    assert_eq!(all, records(5_000, 1_010));
}

#[test]
fn a_node_that_was_away_too_long_is_given_a_checkpoint_and_holds_what_the_others_hold() {
    let mut bare = Bare::made(3, TINY_SEGMENTS);
    bare.start_all();
    append(&bare, 0, 100);
    bare.wait_for_equal_offsets();
    bare.kill(3);
    append(&bare, 100, 6_000);
    bare.run(&["trim", "--before", "5500"], b"").expect(0);
    for node in 1..=2 {
        wait_for("files that go", || (bare.says(node, "segments").as_u64() < Some(40)).then_some(()));
    }
    bare.start(3, &[]);
    assert_eq!(bare.wait_for_equal_offsets(), 6_100);
    wait_for("the first offset", || (bare.says(3, "first_offset") == 5_500).then_some(()));
    let held = bare.run(&["read", "--node", "n3"], b"").expect(0).stdout;
    assert_eq!(held, records(5_500, 600));
    // It votes and stands like any other: with another node down it is needed.
    bare.kill(1);
    append(&bare, 6_100, 10);
    bare.lead(3);
    append(&bare, 6_110, 10);
    bare.kill(3);
    bare.start(3, &[]);
    bare.start(1, &[]);
    assert_eq!(bare.wait_for_equal_offsets(), 6_120);
}
