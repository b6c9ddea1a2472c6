//! Damage on real disks: a stopped node whose files rotted comes back whole, from the other nodes, or says what to do.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::common::{self, Dev, run, wait_for};

/// Enough for several segments of 64 KiB, in several entries each.
pub(crate) fn cluster(nodes: u16) -> (Dev, Vec<u8>) {
    cluster_of(nodes, 16)
}

pub(crate) fn cluster_of(nodes: u16, parts: usize) -> (Dev, Vec<u8>) {
    let dev = Dev::start(nodes, &["wal.segment_bytes=65536"]);
    let mut all = Vec::new();
    for part in 0..parts {
        all.extend(append(&dev, part));
    }
    (dev, all)
}

pub(crate) fn append(dev: &Dev, part: usize) -> Vec<u8> {
    let line = |number: usize| format!("{part} {number:08} {}\n", "x".repeat(number % 200));
    let lines: String = (0..200).map(line).collect();
    dev.run_with(&["append", "--batch", "20"], lines.as_bytes()).expect(0);
    lines.into_bytes()
}

pub(crate) fn data(dev: &Dev, node: &str) -> PathBuf {
    dev.dir.join(node).join("data")
}

/// A node that does not lead.
pub(crate) fn follower(dev: &Dev) -> String {
    let leader = dev.leader();
    (1..=dev.nodes).map(|node| format!("n{node}")).find(|node| *node != leader).expect("more than one node")
}

/// Entries with records and their segments, as `inspect` tells them: the segment's state, its name, the entry.
pub(crate) fn entries(dir: &Path) -> Vec<(String, String, Value)> {
    let done = run(["wal", "inspect", "--json", "--entries", dir.to_str().expect("UTF-8")]).expect(0);
    let lines: Vec<Value> = done.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let segments = lines[0]["segments"].as_array().expect("segments");
    let state = |name: &Value| segments.iter().find(|it| it["segment"] == *name).expect("its segment")["state"].clone();
    let entry = |entry: &Value| {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        (text(&state(&entry["segment"])), text(&entry["segment"]), entry.clone())
    };
    lines[1..].iter().filter(|line| line["kind"] == "records").map(entry).collect()
}

/// The `nth` sealed segment that holds entries, and one of them from its middle.
pub(crate) fn sealed(dir: &Path, nth: usize) -> (PathBuf, Value) {
    let all = entries(dir);
    let mut names: Vec<&String> = all.iter().filter(|it| it.0 == "sealed").map(|it| &it.1).collect();
    names.dedup();
    let name = names.get(nth).unwrap_or_else(|| panic!("{} sealed segments", names.len()));
    let inside: Vec<&Value> = all.iter().filter(|it| it.1 == **name).map(|it| &it.2).collect();
    (dir.join(format!("{name}.seg")), inside[inside.len() / 2].clone())
}

/// An entry of the active segment with others behind it.
fn active(dir: &Path) -> (PathBuf, Value) {
    let all = entries(dir);
    let inside: Vec<&(String, String, Value)> = all.iter().filter(|it| it.0 == "active").collect();
    assert!(inside.len() >= 4, "{} entries in the active segment", inside.len());
    let (_, name, entry) = inside[inside.len() / 2];
    (dir.join(format!("{name}.seg")), entry.clone())
}

pub(crate) fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("its file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
}

fn body_of(entry: &Value) -> u64 {
    entry["at"].as_u64().expect("a place") + 200
}

/// What a node has logged: under `graven dev`, and started by hand.
pub(crate) fn log(dev: &Dev, node: &str) -> String {
    let read = |file: &str| fs::read_to_string(dev.dir.join(node).join(file)).unwrap_or_default();
    read("graven.log") + &read("by-hand.log")
}

pub(crate) fn state(dev: &Dev, node: &str) -> Value {
    let status = dev.status();
    let nodes = status["nodes"].as_array().expect("nodes");
    nodes.iter().find(|it| it["name"] == node).cloned().unwrap_or(Value::Null)
}

/// Waits until the node has mended its log, is whole, and gives what all give.
fn wait_whole(dev: &Dev, node: &str, all: &[u8]) {
    let deadline = Instant::now() + common::PATIENCE;
    loop {
        let state = state(dev, node);
        if log(dev, node).contains("mended") && state["state"] == "ok" {
            assert_eq!(state["recovering"], Value::Null, "{state}");
            let read = dev.run(&["read", "--node", node]);
            assert!(all.starts_with(&read.stdout), "{node} served a wrong byte");
            if read.code() == 0 && read.stdout == all {
                return;
            }
        }
        assert!(Instant::now() < deadline, "{node} is not whole: {state}; {}", log(dev, node));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Stops a node in order and verifies every byte of its log.
pub(crate) fn verify_stopped(dev: &Dev, node: &str) {
    let pid = dev.node_pid(node).expect("runs");
    common::signal(pid, Signal::TERM);
    wait_for("the node to be gone", || (!common::is_running(pid)).then_some(()));
    run(["wal", "verify", data(dev, node).to_str().expect("UTF-8")]).expect(0);
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("list").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            found.extend(files(&entry));
        } else if !entry.ends_with("LOCK") {
            found.insert(entry.clone(), fs::read(entry).expect("read"));
        }
    }
    found
}

#[test]
fn a_node_whose_files_rotted_comes_back_whole() {
    let (mut dev, mut all) = cluster(3);
    let node = follower(&dev);
    let dir = data(&dev, &node);
    for (part, what) in ["body", "opening", "footer", "active", "missing", "header"].into_iter().enumerate() {
        while what == "active" && entries(&dir).iter().filter(|it| it.0 == "active").count() < 4 {
            all.extend(append(&dev, 50));
            wait_for("the node to follow", || (dev.run(&["read", "--node", &node]).stdout == all).then_some(()));
        }
        dev.kill(&node);
        let (path, entry) = if what == "active" { active(&dir) } else { sealed(&dir, 1) };
        match what {
            "body" | "active" => flip(&path, body_of(&entry)),
            "header" => flip(&path, entry["at"].as_u64().expect("a place") + 70),
            "opening" => flip(&path, 20),
            "footer" => flip(&path, fs::metadata(&path).expect("there").len() - 50),
            _ => fs::remove_file(&path).expect("removed"),
        }
        eprintln!("{what}: {}", path.display());
        dev.start_node(&node);
        all.extend(append(&dev, 100 + part));
        wait_whole(&dev, &node, &all);
        verify_stopped(&dev, &node);
        dev.start_node(&node);
    }
}

/// The third node is whole and cannot lead alone: what it has is enough all the same.
#[test]
fn two_nodes_with_damage_in_different_places_heal_from_the_third() {
    let (mut dev, mut all) = cluster(3);
    let nodes = ["n1", "n2", "n3"];
    nodes.iter().for_each(|node| dev.kill(node));
    for (node, nth) in [("n1", 1), ("n2", 3)] {
        let (path, _) = sealed(&data(&dev, node), nth);
        fs::remove_file(path).expect("removed");
    }
    nodes.iter().for_each(|node| dev.start_node(node));
    for node in ["n1", "n2"] {
        wait_whole(&dev, node, &all);
    }
    all.extend(append(&dev, 100));
    for node in ["n1", "n2"] {
        verify_stopped(&dev, node);
        dev.start_node(node);
    }
}

/// Nobody is whole, and the node that could lead is not even there: each has what another lacks.
#[test]
fn nodes_none_of_which_is_whole_heal_from_each_other() {
    for damaged in [2, 3] {
        let (mut dev, mut all) = cluster_of(3, 32);
        let nodes = ["n1", "n2", "n3"];
        nodes.iter().for_each(|node| dev.kill(node));
        // Segments end at about the same entries on all of them.
        for (node, nth) in nodes.iter().zip([1, 4, 7]).take(damaged) {
            let (path, entry) = sealed(&data(&dev, node), nth);
            eprintln!("{node}: {} is gone, with entry {}", path.display(), entry["index"]);
            fs::remove_file(path).expect("removed");
        }
        nodes[..damaged].iter().for_each(|node| dev.start_node(node));
        nodes[..damaged].iter().for_each(|node| wait_whole(&dev, node, &all));
        all.extend(append(&dev, 100));
        nodes[..damaged].iter().for_each(|node| verify_stopped(&dev, node));
    }
}

/// Its log would be of no use to a follower that is behind, and its disk is in doubt.
#[test]
fn a_leader_that_finds_damage_hands_over_and_leads_again_when_it_is_mended() {
    let (dev, all) = cluster(3);
    let leader = dev.leader();
    let (path, entry) = sealed(&data(&dev, &leader), 1);
    flip(&path, body_of(&entry));
    // Whoever reads finds it.
    dev.run(&["read", "--node", &leader]);
    wait_for("another leader", || (dev.leader() != leader).then_some(()));
    wait_whole(&dev, &leader, &all);
    let said = log(&dev, &leader);
    assert!(said.contains("neither votes nor leads") && said.contains("votes again"), "{said}");
    wait_for("the leadership to come back", || (dev.run(&["transfer", &leader]).code() == 0).then_some(()));
    verify_stopped(&dev, &leader);
}

/// Two of three know of damage that only the third could mend. Neither gives its vote, and when the third is there all goes on.
#[test]
fn nodes_that_know_of_damage_do_not_vote_until_it_is_mended() {
    let (mut dev, mut all) = cluster(3);
    let first = dev.leader();
    let others: Vec<String> = ["n1", "n2", "n3"].map(str::to_owned).into_iter().filter(|it| *it != first).collect();
    let [away, second] = others.as_slice() else { panic!("three nodes") };
    dev.kill(away);
    let index = sealed(&data(&dev, &first), 1).1["index"].clone();
    for node in [&first, second] {
        let dir = data(&dev, node);
        let (_, name, entry) = entries(&dir).into_iter().find(|it| it.2["index"] == index).expect("the entry");
        flip(&dir.join(format!("{name}.seg")), body_of(&entry));
    }
    for node in [&first, second] {
        dev.run(&["read", "--node", node]).expect(6);
        wait_for("the damage to be told", || log(&dev, node).contains("neither votes nor leads").then_some(()));
        wait_for("the state to be told", || (state(&dev, node)["state"] == "damaged").then_some(()));
    }
    // One of them still leads, as nobody can take it; both go on to acknowledge what comes: it is whole.
    all.extend(append(&dev, 50));
    let leader = dev.leader();
    let follower = others.iter().chain([&first]).find(|node| **node != leader && *node != away).expect("the third");
    dev.kill(&leader);
    dev.start_node(&leader);
    // Opened, it knows nothing of the damage before it has read all of its log, which it does first.
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        let status = dev.status();
        let leads = status["nodes"].as_array().expect("nodes").iter().any(|it| it["role"] == "leader");
        assert!(!leads, "{follower} voted, or stood: {status}");
        std::thread::sleep(Duration::from_millis(50));
    }
    dev.start_node(away);
    wait_whole(&dev, &leader, &all);
    wait_whole(&dev, follower, &all);
    append(&dev, 100);
    [&leader, follower].iter().for_each(|node| verify_stopped(&dev, node));
}

/// Appends and trims so much that the first files go on every node.
pub(crate) fn trimmed() -> (Dev, Vec<u8>) {
    let (dev, all) = cluster_of(3, 32);
    let before = 200 * 24;
    dev.run(&["trim", "--before", &before.to_string()]).expect(0);
    for node in ["n1", "n2", "n3"] {
        let first = || run(["wal", "inspect", "--json", data(&dev, node).to_str().expect("UTF-8")]).text();
        wait_for("the first files to go", || {
            let seen: Value = serde_json::from_str(&first()).expect("JSON");
            seen["segments"]
                .as_array()
                .is_some_and(|all| all.iter().all(|it| it["segment"] != format!("{:016x}", 1)))
                .then_some(())
        });
    }
    let kept = all.split_inclusive(|byte| *byte == b'\n').skip(before).flatten().copied().collect();
    (dev, kept)
}

pub(crate) fn checkpoints(dir: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(dir).expect("list").map(|entry| entry.expect("an entry").path());
    let is_one = |path: &PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        name.starts_with("checkpoint-") && !name.contains('.')
    };
    names.filter(is_one).collect()
}

#[test]
fn damaged_checkpoints_of_a_trimmed_log_are_fetched_from_another_node() {
    let (mut dev, mut all) = trimmed();
    let node = follower(&dev);
    let dir = data(&dev, &node);
    dev.kill(&node);
    let damaged = checkpoints(&dir);
    assert!(!damaged.is_empty());
    damaged.iter().for_each(|path| flip(path, 150));
    let done = run(["wal", "verify", dir.to_str().expect("UTF-8")]).expect(6);
    assert!(done.stderr.contains("checkpoint-"), "{}", done.stderr);
    dev.start_node(&node);
    all.extend(append(&dev, 100));
    wait_whole(&dev, &node, &all);
    for path in &damaged {
        let aside = PathBuf::from(format!("{}.damaged", path.display()));
        assert!(aside.exists(), "{} is kept", aside.display());
    }
    verify_stopped(&dev, &node);
    dev.start_node(&node);
    all.extend(append(&dev, 101));
    wait_for("the node to follow", || (dev.run(&["read", "--node", &node]).stdout == all).then_some(()));
}

#[test]
fn missing_first_files_are_fetched_from_the_other_nodes() {
    for is_trimmed in [false, true] {
        let (mut dev, mut all) = if is_trimmed { trimmed() } else { cluster(3) };
        let node = follower(&dev);
        let dir = data(&dev, &node);
        dev.kill(&node);
        let (first, _) = sealed(&dir, 0);
        eprintln!("{}", first.display());
        fs::remove_file(&first).expect("removed");
        let done = run(["wal", "verify", dir.to_str().expect("UTF-8")]).expect(6);
        let name = first.file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(done.stderr.contains(&name), "{}", done.stderr);
        dev.start_node(&node);
        all.extend(append(&dev, 100));
        wait_whole(&dev, &node, &all);
        verify_stopped(&dev, &node);
    }
}

/// Entries that only this node ever had, and that nobody acknowledged: they rotted, and nothing is lost with them.
#[test]
fn entries_that_nobody_has_and_nobody_acknowledged_are_given_up() {
    // A leader that hears nobody stops after an election timeout: long enough for it to take something first.
    let mut dev = Dev::start(3, &["wal.segment_bytes=65536", "raft.election_ms=3000"]);
    let mut all: Vec<u8> = (0..8).flat_map(|part| append(&dev, part)).collect();
    let leader = dev.leader();
    let others: Vec<String> = ["n1", "n2", "n3"].map(str::to_owned).into_iter().filter(|it| *it != leader).collect();
    let dir = data(&dev, &leader);
    // Under a session that is open before: what opens one would wait for the others.
    let mut command = dev.command(&["append", "--acks", "--batch", "1"]);
    let mut appending =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    let mut input = appending.stdin.take().expect("piped");
    let mut acks = BufReader::new(appending.stdout.take().expect("piped"));
    input.write_all(b"the last one that is acknowledged\n").expect("it reads");
    all.extend(b"the last one that is acknowledged\n");
    acks.read_line(&mut String::new()).expect("an acknowledgement");
    let before = entries(&dir).last().expect("entries").2["index"].as_u64().expect("a number");
    others.iter().for_each(|node| dev.kill(node));
    for number in 0..5 {
        input.write_all(format!("{number} {}\n", "y".repeat(900)).as_bytes()).expect("it reads");
        wait_for("the leader to take it", || {
            let last = entries(&dir).last().expect("entries").2["index"].as_u64().expect("a number");
            (last > before + number).then_some(())
        });
    }
    appending.kill().expect("it runs");
    appending.wait().expect("it ends");
    dev.kill(&leader);
    let lost = entries(&dir).into_iter().filter(|it| it.2["index"].as_u64() > Some(before)).collect::<Vec<_>>();
    eprintln!("{} entries that only {leader} has", lost.len());
    let [(_, name, entry), .., _] = lost.as_slice() else { panic!("{} entries are too few", lost.len()) };
    flip(&dir.join(format!("{name}.seg")), body_of(entry));
    others.iter().for_each(|node| dev.start_node(node));
    all.extend(append(&dev, 100));
    dev.start_node(&leader);
    for part in 101..106 {
        all.extend(append(&dev, part));
    }
    wait_for("the node to be whole", || {
        let is_ok = state(&dev, &leader)["state"] == "ok";
        (is_ok && dev.run(&["read", "--node", &leader]).stdout == all).then_some(())
    });
    assert!(log(&dev, &leader).contains("kept aside"), "{}", log(&dev, &leader));
    verify_stopped(&dev, &leader);
}

/// While nobody can be asked a node says where it is damaged, serves nothing, and heals as soon as somebody is there.
#[test]
fn a_damaged_node_waits_for_the_others_and_says_so() {
    let (mut dev, all) = cluster(3);
    let nodes = ["n1", "n2", "n3"];
    nodes.iter().for_each(|node| dev.kill(node));
    let (path, entry) = sealed(&data(&dev, "n3"), 1);
    fs::remove_file(&path).expect("removed");
    dev.start_node("n3");
    let status = wait_for("the state to be told", || {
        let status = state(&dev, "n3");
        (status["state"] == "damaged").then_some(status)
    });
    let range = &status["recovering"];
    let index = entry["index"].as_u64();
    assert!(range["first"].as_u64() <= index && range["last"].as_u64() >= index, "entry {index:?}: {status}");
    assert!(path.to_string_lossy().contains(range["segment"].as_str().expect("a segment")), "{status}");
    assert_eq!(status["role"], "unknown", "{status}");
    let read = dev.run(&["read", "--node", "n3", "--json", "--timeout", "5s"]).expect(3);
    assert_eq!((read.error()["code"].as_str(), read.stdout.len()), (Some("unavailable"), 0), "{}", read.stderr);
    dev.run_with(&["append", "--timeout", "1s"], b"x\n").expect(3);
    dev.start_node("n1");
    dev.start_node("n2");
    wait_whole(&dev, "n3", &all);
}

#[test]
fn damage_that_nobody_can_mend_ends_the_node_and_changes_nothing() {
    let (mut dev, _) = cluster(3);
    let nodes = ["n1", "n2", "n3"];
    nodes.iter().for_each(|node| dev.kill(node));
    let index = sealed(&data(&dev, "n3"), 1).1["index"].clone();
    for node in nodes {
        let dir = data(&dev, node);
        let (_, name, _) = entries(&dir).into_iter().find(|it| it.2["index"] == index).expect("the entry");
        fs::remove_file(dir.join(format!("{name}.seg"))).expect("removed");
    }
    dev.start_node("n1");
    dev.start_node("n2");
    let before = files(&data(&dev, "n3"));
    let config = dev.config("n3");
    let error = run(["start", "--config", config.to_str().expect("UTF-8"), "--json"]).expect(6).error();
    let message = error["message"].as_str().expect("a sentence");
    assert_eq!(error["code"], "damaged", "{error}");
    for word in ["graven member replace n3 n3-2 --address", "n1", "n2", "segment"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    assert!(files(&data(&dev, "n3")) == before, "a file has changed");
}

#[test]
fn a_node_that_is_alone_says_at_once_what_to_do() {
    let (dev, _) = cluster(1);
    dev.kill("n1");
    let dir = data(&dev, "n1");
    fs::remove_file(sealed(&dir, 1).0).expect("removed");
    let before = files(&dir);
    let config = dev.config("n1");
    let done = run(["start", "--config", config.to_str().expect("UTF-8"), "--json"]).expect(6);
    assert_eq!(done.text(), "", "it never was ready");
    let message = done.error()["message"].as_str().expect("a sentence").to_owned();
    assert!(message.contains("--accept-data-loss") && message.contains("alone"), "{message}");
    assert!(files(&dir) == before, "a file has changed");
}

/// Nobody looks for it: a reader meets it, is told, and it is mended.
#[test]
fn rot_that_a_reader_meets_in_a_running_node_is_not_served_and_is_mended() {
    let (mut dev, all) = cluster(3);
    let node = follower(&dev);
    let config = dev.config(&node);
    let text = fs::read_to_string(&config).expect("its configuration");
    dev.kill(&node);
    let text = text.replace("[wal]\n", "[wal]\nscrub_bytes_per_second = 0\n");
    assert!(text.contains("scrub"), "{text}");
    fs::write(&config, text).expect("written");
    let (path, entry) = sealed(&data(&dev, &node), 1);
    dev.start_node(&node);
    wait_for("the node to follow", || (dev.run(&["read", "--node", &node]).stdout == all).then_some(()));
    flip(&path, body_of(&entry));
    let read = dev.run(&["read", "--node", &node, "--json"]).expect(6);
    assert_eq!(read.error()["code"], "damaged", "{}", read.stderr);
    let given = String::from_utf8(read.stdout).expect("UTF-8").lines().count();
    assert!(given > 0 && given < all.split(|byte| *byte == b'\n').count(), "{given} records before the damage");
    wait_whole(&dev, &node, &all);
    verify_stopped(&dev, &node);
}
