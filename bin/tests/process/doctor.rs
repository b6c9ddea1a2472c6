//! `graven doctor` on real nodes: what is provoked is found, by name and with the exit status that belongs to it.

use std::os::unix::fs::{FileExt, PermissionsExt};

use serde_json::Value;

use crate::common::{Dev, Done, finish, graven, run, wait_for};

/// What depends on the machine that the tests run on, and not on what a test did.
const OF_THE_MACHINE: [&str; 11] = [
    "socket_buffers",
    "slow_sync",
    "disk_space",
    "memory_disk",
    "network_disk",
    "open_files",
    "disk_stalled",
    "lag",
    "elections",
    "clock",
    "no_health",
];

/// The findings, as level, code and node, and each with what to do.
fn findings(done: &Done) -> Vec<(String, String, Option<String>)> {
    let value: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    assert!(!value["checked"].as_array().expect("a list").is_empty());
    let found = value["findings"].as_array().expect("a list").iter().map(|finding| {
        let text = |key: &str| finding[key].as_str().map(str::to_owned);
        assert!(text("what").is_some() && text("do").is_some_and(|advice| !advice.is_empty()), "{finding}");
        (text("level").expect("a level"), text("code").expect("a code"), text("node"))
    });
    found.filter(|(_, code, _)| !OF_THE_MACHINE.contains(&code.as_str())).collect()
}

fn finding(level: &str, code: &str, node: Option<&str>) -> (String, String, Option<String>) {
    (level.to_owned(), code.to_owned(), node.map(str::to_owned))
}

#[test]
fn a_cluster_is_well_until_nodes_are_missing() {
    let mut dev = Dev::start(3, &[]);
    dev.run_with(&["append"], b"record\n").expect(0);
    let doctor = |dev: &Dev| dev.run(&["doctor", "--json"]);
    wait_for("the nodes to reach each other", || findings(&doctor(&dev)).is_empty().then_some(()));
    let words = dev.run(&["doctor"]).text();
    assert!(words.contains("looked at leader, client certificate, members, n1 ("), "{words}");

    dev.kill("n2");
    wait_for("a leader", || (dev.run(&["status"]).code() == 0).then_some(()));
    let done = doctor(&dev).expect(3);
    assert_eq!(findings(&done), [finding("error", "unreachable", Some("n2"))]);
    dev.kill("n3");
    let nobody = wait_for("the leader to give up", || {
        let done = doctor(&dev);
        (findings(&done).len() == 3).then_some(done)
    });
    let without = finding("error", "no_leader", None);
    assert_eq!(
        findings(&nobody),
        [without, finding("error", "unreachable", Some("n2")), finding("error", "unreachable", Some("n3"))]
    );
    assert_eq!(nobody.code(), 3);
    // Two of three are back: one voter is not enough, two are, and that is all there is to say.
    dev.start_node("n2");
    dev.start_node("n3");
    wait_for("the cluster to be well again", || findings(&doctor(&dev)).is_empty().then_some(()));
}

#[test]
fn a_client_that_is_refused_is_told_why() {
    let dev = Dev::start(1, &[]);
    let other = dev.dir.join("other");
    let dir = other.to_str().expect("UTF-8");
    run(["init", "--dir", dir, "--node", &format!("n1=127.0.0.1:{}", dev.base_port)]).expect(0);
    let done =
        finish(graven().arg("--client").arg(other.join("client.toml")).args(["doctor", "--json"]), b"").expect(5);
    assert!(findings(&done).contains(&finding("error", "certificate_refused", None)));
    // The cluster itself has one voter, which is said.
    assert_eq!(findings(&dev.run(&["doctor", "--json"])), [finding("warning", "few_voters", None)]);
}

#[test]
fn a_nodes_files_are_looked_at_whether_it_runs_or_not() {
    let dev = Dev::start(1, &[]);
    dev.run_with(&["append", "--chunk", "64K"], &vec![7; 1 << 20]).expect(0);
    // What is written after a sync proves that the bytes before it were complete: the last write of all can be damaged or unfinished.
    dev.run_with(&["append"], b"more\n").expect(0);
    let config = dev.config("n1");
    let doctor = || run(["doctor", "--json", "--config", config.to_str().expect("UTF-8")]);
    assert_eq!(findings(&doctor()), []);
    dev.kill("n1");
    let gone = [finding("note", "not_running", Some("n1"))];
    // What is left of the process is taken away a moment later.
    wait_for("a node that is gone", || (findings(&doctor()) == gone).then_some(()));

    let key = dev.dir.join("n1/node.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("set");
    assert!(findings(&doctor()).contains(&finding("warning", "readable_keys", Some("n1"))));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("set");

    let segment = dev.dir.join("n1/data/0000000000000001.seg");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&segment).expect("a segment");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 300_000).expect("read");
    file.write_all_at(&[!byte[0]], 300_000).expect("written");
    let damaged = doctor().expect(6);
    assert_eq!(findings(&damaged), [finding("error", "damaged", Some("n1"))]);
    assert!(String::from_utf8_lossy(&damaged.stdout).contains("segment 0000000000000001 bytes"), "{damaged:?}");

    std::fs::remove_dir_all(dev.dir.join("n1/data")).expect("wiped");
    assert_eq!(findings(&doctor().expect(2)), [finding("error", "data_directory", Some("n1"))]);
    let left: Vec<_> =
        std::fs::read_dir(dev.dir.join("n1")).expect("there").flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("doctor")), "{left:?}");
}
