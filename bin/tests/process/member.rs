//! Members that come and go while clients work.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::common::{Dev, PATIENCE, free_base_port, run, wait_for, wait_for_exit};

/// Makes and starts a node that is no member yet; answers its address.
pub(crate) fn new_node(dev: &mut Dev, name: &str) -> String {
    let address = format!("127.0.0.1:{}", free_base_port(1));
    let join = format!("{name}={address}");
    run(["init", "--join", &join, "--dir", dev.dir.to_str().expect("UTF-8")]).expect(0);
    dev.start_node(name);
    list_endpoint(dev, name);
    address
}

/// Adds the node to the client's file, as `member add` tells people to.
fn list_endpoint(dev: &Dev, name: &str) {
    let config = std::fs::read_to_string(dev.config(name)).expect("a configuration");
    let config: toml::Table = config.parse().expect("TOML");
    let endpoint = &config["advertise"]["client"];
    let text = std::fs::read_to_string(&dev.client).expect("a client's file");
    let with = text.replacen("endpoints = { ", &format!("endpoints = {{ {name} = {endpoint}, "), 1);
    assert_ne!(with, text);
    std::fs::write(&dev.client, with).expect("written");
}

/// Name and role of each member, and whether a change is under way.
fn members(dev: &Dev) -> (Vec<(String, String)>, bool) {
    let list: Value = serde_json::from_slice(&dev.run(&["member", "list", "--json"]).expect(0).stdout).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let entries = list["members"].as_array().expect("members").iter();
    let members = entries.map(|member| (text(&member["name"]), text(&member["role"]))).collect();
    (members, list["changing"].as_bool().expect("a boolean"))
}

pub(crate) fn voters(dev: &Dev) -> Vec<String> {
    let (members, changing) = members(dev);
    assert!(!changing, "a change that was answered is over: {members:?}");
    members.into_iter().filter(|(_, role)| role == "voter").map(|(name, _)| name).collect()
}

/// Numbered lines, appended until told to stop.
pub(crate) struct Load {
    child: Child,
    stop: Arc<AtomicBool>,
    feeder: JoinHandle<u64>,
    acks: JoinHandle<u64>,
}

impl Load {
    pub(crate) fn start(dev: &Dev) -> Load {
        let mut child = dev
            .command(&["append", "--acks", "--timeout", "30s"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let feeder = std::thread::spawn(move || {
            let mut lines = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..10 {
                    writeln!(stdin, "{lines}").expect("the command reads");
                    lines += 1;
                }
                // A pace, so that the log stays small: nothing waits for it.
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            lines
        });
        let acks = std::thread::spawn(move || {
            let ranges = stdout.lines().map(|line| line.expect("a line"));
            ranges.fold(0, |next, range| {
                let (first, last) = range.split_once("..").expect("F..L");
                assert_eq!(first.parse(), Ok(next), "acknowledged out of order");
                last.parse::<u64>().expect("an offset") + 1
            })
        });
        Load { child, stop, feeder, acks }
    }

    /// Ends the input; answers how many lines were appended, all of which must be acknowledged.
    pub(crate) fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let lines = self.feeder.join().expect("feeds");
        let status = wait_for_exit(&mut self.child, PATIENCE);
        let mut stderr = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("stderr is read");
        assert_eq!(status.code(), Some(0), "no append fails under a session: {stderr}");
        assert_eq!(self.acks.join().expect("counts"), lines);
        lines
    }
}

pub(crate) fn is_whole(dev: &Dev, node: &str, lines: u64) {
    wait_for("the node to have everything", || {
        let read = dev.run(&["read", "--node", node, "--until", &lines.to_string(), "--format", "raw"]);
        let text = (read.code() == 0).then(|| read.text())?;
        (text.lines().count() as u64 == lines).then(|| {
            assert!(text.lines().zip(0..).all(|(line, number)| line == number.to_string()), "{node} has other records");
        })
    });
}

#[test]
fn all_nodes_are_replaced_under_load_and_no_append_fails() {
    let mut dev = Dev::start(3, &[]);
    let load = Load::start(&dev);
    let n4 = new_node(&mut dev, "n4");
    dev.run(&["member", "add", "n4", "--address", &n4]).expect(0);
    assert_eq!(members(&dev).0.last(), Some(&("n4".to_owned(), "learner".to_owned())));
    // Asked for again, as after a lost answer: done already.
    dev.run(&["member", "add", "n4", "--address", &n4]).expect(0);
    dev.run(&["member", "promote", "n4"]).expect(0);
    assert_eq!(voters(&dev), ["n1", "n2", "n3", "n4"]);
    let leader = dev.leader();
    dev.run(&["member", "remove", &leader]).expect(0);
    let mut left: Vec<_> =
        ["n1", "n2", "n3", "n4"].map(str::to_owned).into_iter().filter(|name| *name != leader).collect();
    assert_eq!(voters(&dev), left);
    for new in ["n5", "n6"] {
        // Whoever leads goes last: the first replacement is of a follower, then of the leader.
        let leader = dev.leader();
        let is_wanted =
            |name: &&String| (new == "n6") == (**name == leader) && ["n1", "n2", "n3"].contains(&name.as_str());
        let old = left.iter().find(is_wanted).or_else(|| left.iter().find(|name| *name != "n4")).expect("one").clone();
        let address = new_node(&mut dev, new);
        let replace = ["member", "replace", &old, new, "--address", &address];
        dev.run(&replace).expect(0);
        dev.run(&replace).expect(0);
        left.retain(|name| *name != old);
        left.push(new.to_owned());
        assert_eq!(voters(&dev), left);
    }
    let lines = load.end();
    for node in ["n4", "n5", "n6"] {
        is_whole(&dev, node, lines);
    }
}

#[test]
fn a_node_that_was_away_while_all_others_were_replaced_comes_back() {
    let mut dev = Dev::start(3, &[]);
    dev.run_with(&["append"], b"0\n1\n2\n").expect(0);
    dev.kill("n3");
    for (old, new) in [("n1", "n4"), ("n2", "n5")] {
        let address = new_node(&mut dev, new);
        dev.run(&["member", "replace", old, new, "--address", &address]).expect(0);
    }
    dev.kill("n1");
    dev.kill("n2");
    dev.run_with(&["append"], b"3\n").expect(0);
    // It knows n1, n2 and itself. Who leads now is newer than all it knows.
    dev.start_node("n3");
    is_whole(&dev, "n3", 4);
    // And its vote counts: with one of the two others gone, it is needed.
    let leader = dev.leader();
    dev.kill(&leader);
    dev.run_with(&["append"], b"4\n").expect(0);
    is_whole(&dev, "n3", 5);
}

#[test]
fn what_would_lose_the_quorum_is_refused() {
    let dev = Dev::start(3, &[]);
    dev.run_with(&["append"], b"0\n").expect(0);
    let leader = dev.leader();
    let mut others = ["n1", "n2", "n3"].into_iter().filter(|name| *name != leader);
    let (dead, alive) = (others.next().expect("a follower"), others.next().expect("a follower"));
    dev.kill(dead);
    let refused = wait_for("the leader to miss it", || {
        let done = dev.run(&["member", "remove", alive, "--json"]);
        (done.code() != 0).then_some(done)
    })
    .expect(4);
    assert_eq!(refused.error()["code"], "conflict");
    assert!(refused.stderr.contains("only 1 of the 2 voters"), "{}", refused.stderr);
    assert_eq!(voters(&dev), ["n1", "n2", "n3"]);
    dev.run(&["member", "remove", dead]).expect(0);
    // Two are left: taking one out is refused no more, both are alive.
    dev.run(&["member", "remove", alive]).expect(0);
    let last = dev.run(&["member", "remove", &leader]).expect(4);
    assert!(last.stderr.contains("only voter"), "{}", last.stderr);
    dev.run_with(&["append"], b"1\n").expect(0);
}

#[test]
fn members_are_asked_for_by_name_and_by_who_may() {
    let mut dev = Dev::start(3, &[]);
    let unknown = dev.run(&["member", "remove", "n9"]).expect(2);
    assert!(unknown.stderr.contains("n1, n2, n3"), "{}", unknown.stderr);
    dev.run(&["member", "promote", "n9"]).expect(2);
    dev.run(&["member", "replace", "n9", "n8", "--address", "127.0.0.1:9"]).expect(2);
    dev.run(&["member", "add", "n4", "--address", "nowhere"]).expect(2);
    // Nobody is there.
    let address = format!("127.0.0.1:{}", free_base_port(1));
    let silent = dev.run(&["member", "add", "n4", "--address", &address, "--timeout", "1s"]).expect(3);
    assert!(silent.stderr.contains("graven init --join n4="), "{}", silent.stderr);
    // A learner that is dead never catches up.
    let address = new_node(&mut dev, "n4");
    dev.run(&["member", "add", "n4", "--address", &address]).expect(0);
    dev.kill("n4");
    dev.run_with(&["append"], b"0\n").expect(0);
    let behind = dev.run(&["member", "promote", "n4", "--timeout", "1s", "--json"]).expect(4).error();
    assert!(behind["message"].as_str().expect("a sentence").contains("n4"), "{behind}");
    dev.run(&["member", "remove", "n4"]).expect(0);
    // A node that is in no cluster but its own is not taken in under its certificate.
    let other = Dev::start(1, &[]);
    let foreign = format!("127.0.0.1:{}", other.base_port);
    dev.run(&["member", "add", "n1", "--address", &foreign]).expect(5);
    // Appending is no right to change who votes.
    let dir = dev.dir.to_str().expect("UTF-8");
    run(["certs", "client", "loader", "--role", "append", "--dir", dir]).expect(0);
    let loader = dev.dir.join("client-loader/client.toml");
    let loader = loader.to_str().expect("UTF-8");
    run(["member", "list", "--client", loader]).expect(0);
    run(["member", "remove", "n1", "--client", loader]).expect(5);
    assert_eq!(voters(&dev), ["n1", "n2", "n3"]);
}
