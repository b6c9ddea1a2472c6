//! Full disks under real nodes: each node's directory is a small file system of its own.

use std::time::Instant;

use serde_json::Value;

use crate::bare::{Bare, SMALL_SEGMENTS, lines, skipped};
use crate::common::{Done, PATIENCE, wait_for};

/// A file system on which a log of this test fills up: its first segment of 64 MiB, the space kept for cut bytes, and some
/// segments of one.
const SMALL: u32 = 130;
/// One on which it does not.
const LARGE: u32 = 600;
/// Records of 200 bytes that a small file system with [`BALLAST`] on it does not take.
const TOO_MANY: usize = 520_000;
/// What something else takes of a small file system.
const BALLAST: u64 = 32 << 20;

/// A running cluster led by n1, in which the small nodes have little room left; `None`, and said why, where that cannot be had.
fn cluster(sizes: &[u32]) -> Option<Bare> {
    let mut bare = Bare::made(sizes.len() as u16, SMALL_SEGMENTS);
    if let Err(why) = bare.mount(sizes) {
        skipped(&why);
        return None;
    }
    for node in small(sizes) {
        bare.fill(node, BALLAST);
    }
    bare.start_all();
    Some(bare)
}

fn small(sizes: &[u32]) -> impl Iterator<Item = u16> {
    (1..).zip(sizes).filter(|(_, size)| **size == SMALL).map(|(node, _)| node)
}

fn pids(bare: &Bare, nodes: u16) -> Vec<Option<i32>> {
    (1..=nodes).map(|node| bare.pid(node)).collect()
}

fn is_full(bare: &Bare, node: u16) -> bool {
    bare.says(node, "state") == "disk_full"
}

/// The append was refused because of full disks; returns how many records of it were acknowledged.
#[track_caller]
fn refused_as_full(done: Done) -> u64 {
    let error = done.expect(4).error();
    assert_eq!((&error["code"], &error["outcome"]), (&Value::from("disk_full"), &Value::from("refused")), "{error}");
    error["details"]["acknowledged"]["records"].as_u64().unwrap_or(0)
}

#[test]
fn one_full_follower_stops_nobody_and_catches_up_when_it_has_room() {
    let Some(mut bare) = cluster(&[LARGE, LARGE, SMALL]) else { return };
    let before = pids(&bare, 3);
    let term = bare.says(1, "term");
    let text = lines(0, TOO_MANY);
    bare.run(&["append", "--batch", "500"], &text).expect(0);
    wait_for("the full node to say so", || is_full(&bare, 3).then_some(()));
    assert_eq!((bare.says(1, "state"), bare.says(2, "state")), ("ok".into(), "ok".into()));
    assert!(bare.says(3, "next_offset").as_u64() < Some(TOO_MANY as u64), "it has no room for all of it");
    assert_eq!((bare.leader(), bare.says(1, "term")), (Some(1), term), "a full follower is no reason for an election");

    // What the full node still lacks nobody else can vouch for now: a majority without room is told of at once, and not after a
    // timeout. A first append may have been let in before the leader noticed.
    bare.kill(2);
    wait_for("the full node to be what is missing", || {
        let done = bare.run(&["append", "--json", "--timeout", "3s"], b"more\n");
        (done.code() == 4).then(|| refused_as_full(done))
    });
    let began = Instant::now();
    refused_as_full(bare.run(&["append", "--json", "--timeout", "60s"], b"more\n"));
    assert!(began.elapsed() < PATIENCE / 4, "refused after {:?}", began.elapsed());
    let read = bare.run(&["read", "--linearizable", "--from", "0", "--count", "1"], b"").expect(0).stdout;
    assert!(read == text[..200], "reads go on");
    bare.start(2, &[]);
    wait_for("appends to go on", || (bare.run(&["append"], b"after\n").code() == 0).then_some(()));

    bare.free(3);
    bare.wait_for_equal_offsets();
    wait_for("the node to have room", || (!is_full(&bare, 3)).then_some(()));
    let after = pids(&bare, 3);
    assert_eq!((after[0], after[2]), (before[0], before[2]), "without a restart");
    let here = bare.run(&["read", "--node", "n3"], b"").expect(0).stdout;
    assert!(here.starts_with(&text), "every byte is there");
}

/// A leader that cannot store what it is sent must not stop those who can.
#[test]
fn a_full_leader_hands_over_to_a_node_with_room() {
    let Some(bare) = cluster(&[SMALL, LARGE, LARGE]) else { return };
    let before = pids(&bare, 3);
    let text = lines(0, TOO_MANY);
    bare.run(&["append", "--batch", "500"], &text).expect(0);
    let leader = wait_for("a leader with room", || bare.leader());
    assert_ne!(leader, 1);
    assert!(is_full(&bare, 1));
    bare.free(1);
    assert_eq!(bare.wait_for_equal_offsets(), TOO_MANY as u64);
    let here = bare.run(&["read", "--node", "n1"], b"").expect(0).stdout;
    assert!(here == text, "it caught up, byte for byte");
    assert_eq!(pids(&bare, 3), before, "without a restart");
}

#[test]
fn a_full_majority_refuses_appends_reads_on_and_resumes_without_a_restart() {
    let Some(bare) = cluster(&[LARGE, SMALL, SMALL]) else { return };
    let before = pids(&bare, 3);
    let text = lines(0, TOO_MANY);
    let acknowledged = refused_as_full(bare.run(&["append", "--json", "--batch", "500"], &text));
    assert!(acknowledged > 0, "some found room");
    let began = Instant::now();
    refused_as_full(bare.run(&["append", "--json", "--timeout", "60s"], b"no room\n"));
    assert!(began.elapsed() < PATIENCE / 4, "refused after {:?}, not after a timeout", began.elapsed());
    assert!(is_full(&bare, 2) && is_full(&bare, 3) && !is_full(&bare, 1));
    let read = bare.run(&["read", "--linearizable"], b"").expect(0).stdout;
    assert!(read == text[..acknowledged as usize * 200], "what was refused is not in the log, what was not is");
    bare.free(2);
    wait_for("appends to resume", || (bare.run(&["append"], b"after\n").code() == 0).then_some(()));
    bare.free(3);
    bare.wait_for_equal_offsets();
    assert_eq!(pids(&bare, 3), before, "without a restart");
}

/// The way out of full disks on which nothing else can be freed, down to the last byte: give up old records.
#[test]
fn a_trim_is_taken_by_full_disks_and_makes_room() {
    let Some(bare) = cluster(&[LARGE, SMALL, SMALL]) else { return };
    let before = pids(&bare, 3);
    let text = lines(0, TOO_MANY);
    let acknowledged = refused_as_full(bare.run(&["append", "--json", "--batch", "500"], &text));
    // Somebody else takes the rest.
    bare.fill_more(2, "rest");
    bare.fill_more(3, "rest");
    let keep = acknowledged - 1000;
    bare.run(&["trim", "--before", &keep.to_string()], b"").expect(0);
    wait_for("appends to resume", || (bare.run(&["append"], b"after\n").code() == 0).then_some(()));
    bare.wait_for_equal_offsets();
    wait_for("room on all nodes", || (!is_full(&bare, 2) && !is_full(&bare, 3)).then_some(()));
    for node in 1..=3 {
        assert_eq!(bare.says(node, "first_offset"), keep);
    }
    let read = bare.run(&["read", "--count", "1000"], b"").expect(0).stdout;
    assert!(read == lines(keep as usize, 1000), "what was kept is there");
    let more = lines(0, 20_000);
    bare.run(&["append", "--batch", "500"], &more).expect(0);
    assert_eq!(pids(&bare, 3), before, "without a restart");
}

#[test]
fn a_node_on_a_disk_without_a_free_byte_starts_votes_and_reads() {
    let Some(mut bare) = cluster(&[SMALL]) else { return };
    let text = lines(0, TOO_MANY);
    let acknowledged = refused_as_full(bare.run(&["append", "--json", "--batch", "500"], &text));
    bare.kill(1);
    bare.free(1);
    bare.fill(1, u64::MAX);
    let term = bare.says(1, "term");
    bare.start(1, &[]);
    wait_for("it to lead", || bare.leader());
    assert_ne!(bare.says(1, "term"), term, "a new term was written");
    wait_for("it to say that it is full", || is_full(&bare, 1).then_some(()));
    let read = bare.run(&["read", "--linearizable"], b"").expect(0).stdout;
    assert!(read == text[..acknowledged as usize * 200], "nothing is lost and nothing more is there");
    refused_as_full(bare.run(&["append", "--json"], b"no room\n"));
    bare.free(1);
    wait_for("appends to resume", || (bare.run(&["append"], b"after\n").code() == 0).then_some(()));
}

/// The names of a node's files of snapshots.
fn snapshots(bare: &Bare, node: u16) -> Vec<String> {
    let names = std::fs::read_dir(bare.path(node, "data")).expect("the data directory");
    let names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    names.filter(|name| name.starts_with("snapshot-")).collect()
}

#[test]
fn a_receiver_without_room_for_a_snapshot_stays_well_and_fetches_it_when_it_has_some() {
    let Some(mut bare) = cluster(&[LARGE, LARGE, SMALL]) else { return };
    bare.run(&["append"], b"record\n").expect(0);
    // More than is free there, and it takes part in the log all the same.
    let body = vec![7; 28 << 20];
    bare.run(&["snapshot", "put", "a", "--offset", "1"], &body).expect(0);
    wait_for("the full node to say that it has no room", || bare.words(3).contains("snapshot").then_some(()));
    bare.run(&["append"], b"more\n").expect(0);
    bare.wait_for_equal_offsets();
    assert_eq!(bare.says(3, "state"), "ok", "the log's room is not taken");
    assert_eq!(snapshots(&bare, 3), [""; 0]);
    bare.kill(3);
    bare.start(3, &[]);
    assert_eq!(snapshots(&bare, 3), [""; 0], "nothing is left");
    // And one who puts where the leader has no room gets one sentence.
    bare.lead(3);
    let refused = bare.run(&["snapshot", "put", "b", "--offset", "1", "--json"], &body).expect(4);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    assert_eq!(refused.error()["code"], "disk_full");
    assert_eq!(snapshots(&bare, 3), [""; 0]);
    bare.free(3);
    wait_for("the snapshot to come", || {
        let files = snapshots(&bare, 3);
        (files.len() == 1 && !files[0].contains('.')).then_some(())
    });
}
