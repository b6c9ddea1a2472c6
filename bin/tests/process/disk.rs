//! Disks that fail under a real node: it ends with one line, and trusts nothing afterwards that was not proven.

use crate::bare::{Bare, SMALL_SEGMENTS, can_trace, skipped};
use crate::common::{PATIENCE, wait_for};

/// Runs a node whose calls of this name fail from the `when`th on, and appends to it until it ends; then starts it again on a disk
/// that works. One of `words` says what failed.
fn fails(call: &str, when: &str, words: &[&str]) {
    if !can_trace() {
        return skipped("strace, which injects the failure, is missing or not allowed here");
    }
    let mut bare = Bare::made(1, SMALL_SEGMENTS);
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error=EIO:when={when}"));
    // It may end before it is ready: making segments ready goes on from the first moment.
    let _ = bare.try_start(1, &["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]);
    let mut acknowledged = Vec::new();
    let mut number = 0;
    wait_for("the failure", || {
        let line = format!("record {number}\n").into_bytes();
        number += 1;
        let done = bare.run(&["append", "--json", "--timeout", "1s"], &line);
        if done.code() == 0 {
            acknowledged.extend(line);
        } else {
            let error = done.expect(3).error();
            assert!(["unknown", "refused"].contains(&error["outcome"].as_str().expect("an outcome")), "{error}");
        }
        bare.has_ended(1).then_some(())
    });
    assert_eq!(bare.wait(1, PATIENCE).code(), Some(1));
    let complaints = bare.complaints(1);
    assert_eq!(complaints.len(), 1, "{}", bare.words(1));
    let is_named = words.iter().any(|word| complaints[0].contains(word));
    assert!(is_named && complaints[0].contains("segment"), "{complaints:?}");

    bare.start(1, &[]);
    let read = bare.run(&["read", "--linearizable"], b"").expect(0).stdout;
    assert!(read.starts_with(&acknowledged), "an acknowledged record is gone");
}

#[test]
fn a_failed_sync_ends_the_node_with_one_line_and_loses_nothing_acknowledged() {
    fails("fdatasync", "100+", &["sync"]);
}

#[test]
fn a_failed_write_ends_the_node_with_one_line_and_loses_nothing_acknowledged() {
    // Behind all zeroes with which segments are made ready, some 330 writes.
    fails("pwritev", "450+", &["write", "zero-fill"]);
}

#[test]
fn a_failed_write_while_segments_are_made_ready_ends_the_node_with_one_line() {
    // Zeroes and records take turns then: whichever comes first.
    fails("pwritev", "60+", &["zero-fill", "write"]);
}

#[test]
fn a_failed_preparation_of_a_segment_ends_the_node_with_one_line() {
    fails("fallocate", "6+", &["create"]);
}

#[test]
fn a_failed_sync_of_the_directory_ends_the_node_with_one_line() {
    fails("fsync", "4+", &["directory"]);
}

/// The log cannot tell a first segment that is missing from one that was let go of; the record of what was let go of can, whatever
/// checkpoints are there.
#[test]
fn a_log_without_its_beginning_is_damage() {
    let mut bare = Bare::made(1, SMALL_SEGMENTS);
    // Segments of 1 MiB after the first; make the first small enough to leave.
    bare.start(1, &[]);
    bare.run(&["append", "--chunk", "1M"], &vec![7; 70 << 20]).expect(0);
    bare.kill(1);
    std::fs::remove_file(bare.path(1, "data/0000000000000001.seg")).expect("the first segment");
    assert_eq!(bare.try_start(1, &[]), "");
    assert_eq!(bare.wait(1, PATIENCE).code(), Some(6));
    assert!(bare.words(1).contains("begins at entry"), "{}", bare.words(1));
}
