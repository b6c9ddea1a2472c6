//! `graven trim` on real nodes: what readers are told, what is freed, who catches up from behind the beginning.

use crate::common::{Dev, Done, wait_for};

/// So small that a few megabytes are a hundred of them.
const TINY_SEGMENTS: &str = "wal.segment_bytes=64K";

struct Cluster(Dev);

impl Cluster {
    fn start() -> Cluster {
        Cluster(Dev::start(3, &[TINY_SEGMENTS]))
    }

    fn run(&self, args: &[&str]) -> Done {
        self.0.run(args)
    }

    fn says(&self, node: u16, key: &str) -> Option<u64> {
        let status: serde_json::Value = serde_json::from_slice(&self.run(&["status", "--json"]).stdout).expect("JSON");
        let name = format!("n{node}");
        status["nodes"].as_array()?.iter().find(|it| it["name"] == *name)?[key].as_u64()
    }

    fn wait_for_equal_offsets(&self, next: u64) {
        let all = |node| self.says(node, "next_offset") == Some(next);
        wait_for("equal offsets on all nodes", || (1..=3).all(all).then_some(()));
    }

    fn kill(&self, node: u16) {
        self.0.kill(&format!("n{node}"));
    }

    fn start_node(&mut self, node: u16) {
        self.0.start_node(&format!("n{node}"));
    }

    fn lead(&self, node: u16) {
        let name = format!("n{node}");
        wait_for("the leadership to move", || (self.run(&["transfer", &name]).code() == 0).then_some(()));
    }
}

/// Records of 1,000 bytes, numbered from `from` on.
fn records(from: u64, count: u64) -> Vec<u8> {
    let record = |number: u64| format!("{number:08} {}\n", "x".repeat(991));
    (from..from + count).flat_map(|number| record(number).into_bytes()).collect()
}

/// In pieces: a checkpoint, without which no file goes, is made of what is committed, and one call may commit megabytes at once.
fn append(cluster: &Cluster, from: u64, count: u64) {
    for from in (from..from + count).step_by(500) {
        append_piece(cluster, from, 500.min(count));
    }
}

fn append_piece(cluster: &Cluster, from: u64, count: u64) {
    cluster.0.run_with(&["append", "--batch", "20", "--timeout", "30s"], &records(from, count)).expect(0);
}

fn first_number(cluster: &Cluster, args: &[&str]) -> u64 {
    let text = cluster.run(args).expect(0).text();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{text:?}"))
}

#[test]
fn the_log_begins_at_the_trim_on_all_nodes_and_its_files_go() {
    let mut cluster = Cluster::start();
    append(&cluster, 0, 6_000);
    cluster.wait_for_equal_offsets(6_000);
    let before = cluster.says(1, "bytes").expect("a number");

    let beyond = cluster.run(&["--json", "trim", "--before", "6001"]).expect(4).error();
    assert_eq!(
        (beyond["code"].as_str(), beyond["details"]["next_offset"].as_u64()),
        (Some("out_of_range"), Some(6_000))
    );
    assert_eq!(cluster.run(&["--json", "trim", "--before", "5000"]).expect(0).text(), "{\"first_offset\":5000}\n");
    for node in 1..=3 {
        wait_for("the first offset", || (cluster.says(node, "first_offset") == Some(5_000)).then_some(()));
        wait_for("files that go", || cluster.says(node, "bytes").filter(|bytes| *bytes < before / 2));
    }
    // What is trimmed already stays as it is.
    assert_eq!(cluster.run(&["--json", "trim", "--before", "7"]).expect(0).text(), "{\"first_offset\":5000}\n");

    let below = cluster.run(&["--json", "read", "--from", "4999"]).expect(4).error();
    assert_eq!((below["code"].as_str(), below["details"]["first_offset"].as_u64()), (Some("trimmed"), Some(5_000)));
    assert_eq!(first_number(&cluster, &["read", "--count", "1"]), 5_000);
    assert_eq!(first_number(&cluster, &["read", "--from", "10", "--skip-trimmed", "--count", "1"]), 5_000);

    // A restart begins with the newest checkpoint, and every session and record is where it was.
    for node in 1..=3 {
        cluster.kill(node);
        cluster.start_node(node);
    }
    append(&cluster, 6_000, 10);
    cluster.wait_for_equal_offsets(6_010);
    let all = cluster.run(&["read"]).expect(0).stdout;
    assert_eq!(all, records(5_000, 1_010));
}

#[test]
fn a_node_that_was_away_too_long_is_given_a_checkpoint_and_holds_what_the_others_hold() {
    let mut cluster = Cluster::start();
    append(&cluster, 0, 100);
    cluster.wait_for_equal_offsets(100);
    cluster.kill(3);
    append(&cluster, 100, 6_000);
    cluster.run(&["trim", "--before", "5500"]).expect(0);
    for node in 1..=2 {
        wait_for("files that go", || cluster.says(node, "bytes").filter(|bytes| *bytes < 3 << 20));
    }
    cluster.start_node(3);
    cluster.wait_for_equal_offsets(6_100);
    wait_for("the first offset", || (cluster.says(3, "first_offset") == Some(5_500)).then_some(()));
    let held = cluster.run(&["read", "--node", "n3"]).expect(0).stdout;
    assert_eq!(held, records(5_500, 600));
    // It votes and stands like any other: with another node down it is needed.
    cluster.kill(1);
    append(&cluster, 6_100, 10);
    cluster.lead(3);
    append(&cluster, 6_110, 10);
    cluster.kill(3);
    cluster.start_node(3);
    cluster.start_node(1);
    cluster.wait_for_equal_offsets(6_120);
}
