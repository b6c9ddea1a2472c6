//! `[retention]` on real nodes: the disk stays small, what is kept can be read, what is old goes.

use serde_json::Value;

use crate::common::{Dev, wait_for};

/// So small that a few megabytes are a hundred of them.
const TINY_SEGMENTS: &str = "wal.segment_bytes=64K";

fn says(dev: &Dev, node: u16, key: &str) -> Option<u64> {
    let status: Value = dev.status();
    let name = format!("n{node}");
    status["nodes"].as_array()?.iter().find(|it| it["name"] == *name)?[key].as_u64()
}

/// Records of 1,000 bytes, numbered from `from` on.
fn records(from: u64, count: u64) -> Vec<u8> {
    let record = |number: u64| format!("{number:08} {}\n", "x".repeat(991));
    (from..from + count).flat_map(|number| record(number).into_bytes()).collect()
}

fn append(dev: &Dev, from: u64, count: u64) {
    for from in (from..from + count).step_by(500) {
        dev.run_with(&["append", "--batch", "20", "--timeout", "30s"], &records(from, 500)).expect(0);
    }
}

#[test]
fn the_disk_is_bounded_by_bytes_and_every_kept_record_can_be_read() {
    const RECORDS: u64 = 12_000;
    let mut dev = Dev::start(3, &[TINY_SEGMENTS, "retention.bytes=1M"]);
    append(&dev, 0, RECORDS / 2);
    // Whoever is restarted knows as well as before where to trim.
    for name in ["n1", "n2", "n3"] {
        dev.kill(name);
        dev.start_node(name);
    }
    append(&dev, RECORDS / 2, RECORDS / 2);
    for node in 1..=3 {
        wait_for("all records", || (says(&dev, node, "next_offset") == Some(RECORDS)).then_some(()));
        wait_for("equal first offsets", || {
            (says(&dev, node, "first_offset") == says(&dev, 1, "first_offset")).then_some(())
        });
        // What is kept, the part that comes on top, the segment before a checkpoint, the one that is written to.
        wait_for("a small log", || says(&dev, node, "bytes").filter(|bytes| *bytes < (1 << 20) + (768 << 10)));
    }
    let kept = |first: u64| (RECORDS - first) * 1_000;
    let first = wait_for("no more than is to be kept", || {
        // Appends that came together are one entry, of 256 KiB at most, and what goes ends with an entry.
        says(&dev, 1, "first_offset").filter(|first| kept(*first) <= (1 << 20) + (64 << 10) + (256 << 10))
    });
    assert!(kept(first) >= (1 << 20) - (64 << 10), "{first}: less than 1 MiB is kept");
    assert_eq!(dev.run(&["read"]).expect(0).stdout, records(first, RECORDS - first));
    let below = dev.run(&["--json", "read", "--from", "0"]).expect(4).error();
    assert_eq!((below["code"].as_str(), below["details"]["first_offset"].as_u64()), (Some("trimmed"), Some(first)));
}

#[test]
fn records_go_when_they_are_old_and_nobody_appends() {
    let dev = Dev::start(3, &[TINY_SEGMENTS, "retention.age=3s", "retention.share=0.5"]);
    append(&dev, 0, 500);
    assert_eq!(says(&dev, 1, "next_offset"), Some(500));
    for node in 1..=3 {
        wait_for("an empty log", || (says(&dev, node, "first_offset") == Some(500)).then_some(()));
    }
    append(&dev, 500, 500);
    assert_eq!(dev.run(&["read"]).expect(0).stdout, records(500, 500));
}
