//! Directories that were wiped, mixed up or copied: refused by the node itself or by its peers, with the way out.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::common::{Dev, Done, PATIENCE, finish, free_base_port, graven, run, wait_for, wait_for_exit};
use crate::member::{Load, is_whole, voters};

/// A node that a test started itself; ended when dropped.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Started {
    /// Runs a command that becomes a node, until it is ready.
    fn ready(command: &mut Command) -> Started {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut started = Started(child);
        let mut line = String::new();
        BufReader::new(started.0.stdout.take().expect("piped")).read_line(&mut line).expect("stdout is read");
        assert_eq!(line, "ready\n", "{}", started.last_words());
        started
    }

    /// What it wrote to stderr until it ended.
    fn last_words(&mut self) -> String {
        let mut text = String::new();
        let _ = self.0.stderr.take().expect("piped").read_to_string(&mut text);
        text
    }
}

/// A line that a message told to type, as a command: word by word, as a shell takes a line without quotes.
fn typed(line: &str) -> Command {
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some("graven"), "{line}");
    let mut command = graven();
    command.args(words);
    command
}

/// The lines that the refused start of `dir` tells to type.
fn told(config: &Path) -> Vec<String> {
    let config = config.to_str().expect("UTF-8");
    let refused = run(["start", "--config", config]).expect(2);
    let lines: Vec<String> =
        refused.stderr.lines().filter_map(|line| line.strip_prefix("  ")).map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{}", refused.stderr);
    let json = run(["start", "--config", config, "--json"]).expect(2).error();
    assert_eq!(json["details"]["commands"], Value::from(lines.clone()));
    lines
}

fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    let done: Done = finish(command.arg("-a").arg(from).arg(to), b"");
    done.expect(0);
}

#[test]
fn a_wiped_node_comes_back_by_the_lines_that_its_start_prints_and_no_append_fails() {
    let dev = Dev::start(3, &[]);
    let load = Load::start(&dev);
    wait_for("records to lose", || dev.status()["nodes"][1]["next_offset"].as_u64().filter(|next| *next > 100));
    dev.kill("n2");
    let data = dev.dir.join("n2/data");
    std::fs::remove_dir_all(&data).expect("wiped");
    let config = dev.config("n2");
    let lines = told(&config);
    // Empty, and somebody else's: the same way out.
    std::fs::create_dir(&data).expect("made");
    assert_eq!(told(&config), lines);
    std::fs::remove_dir(&data).expect("removed");
    run(["init", "--dir", dev.dir.join("other").to_str().expect("UTF-8"), "--node", "n2=127.0.0.1:9000"]).expect(0);
    copy(&dev.dir.join("other/n2/data"), &data);
    assert_eq!(told(&config), lines);
    assert!(dev.status()["nodes"][1]["reachable"] == false, "none of these is heard by anybody");

    finish(&mut typed(&lines[0]), b"").expect(0);
    let _node = Started::ready(&mut typed(&lines[1]));
    finish(&mut typed(&lines[2]), b"").expect(0);
    assert_eq!(voters(&dev), ["n1", "n3", "n2-2"]);
    // Typed again, as after a lost answer: done already.
    finish(&mut typed(&lines[2]), b"").expect(0);
    let written = load.end();
    is_whole(&dev, "n2-2", written);
    // Its vote counts: the cluster goes on with it and one other.
    dev.kill(if dev.leader() == "n1" { "n1" } else { "n3" });
    dev.run_with(&["append", "--timeout", "30s"], b"after\n").expect(0);
}

#[test]
fn without_the_authority_beside_it_the_lines_name_what_only_the_operator_knows() {
    let dev = Dev::start(1, &[]);
    let host = tempfile::tempdir().expect("a temporary directory");
    copy(&dev.dir.join("n1"), host.path());
    std::fs::remove_dir_all(host.path().join("n1/data")).expect("wiped");
    let lines = told(&host.path().join("n1/graven.toml"));
    let address = format!("127.0.0.1:{}", dev.base_port);
    assert_eq!(lines[0], format!("graven init --join n1-2={address} --dir DIR"));
    assert_eq!(lines[2], format!("graven member replace n1 n1-2 --address {address}"));
}

/// Copies n3's whole directory and gives the copy ports of its own; answers its configuration and its client address.
fn copied(dev: &Dev) -> (PathBuf, String) {
    let place = dev.dir.join("copy");
    copy(&dev.dir.join("n3"), &place);
    let base = free_base_port(1);
    let config = place.join("graven.toml");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    let old = dev.base_port + 20;
    let text = text.replace(&format!(":{old}\""), &format!(":{base}\""));
    let text = text.replace(&format!(":{}\"", old + 1), &format!(":{}\"", base + 1));
    std::fs::write(&config, text).expect("written");
    (config, format!("127.0.0.1:{}", base + 1))
}

#[test]
fn a_second_process_from_a_copied_directory_is_refused_by_the_cluster_and_ends() {
    // Timeouts that no busy machine reaches: the term goes up only if somebody makes it.
    let mut dev = Dev::start(3, &["raft.election_ms=4000"]);
    dev.run_with(&["append"], b"0\n1\n2\n").expect(0);
    if dev.leader() == "n3" {
        dev.run(&["transfer", "n1", "--timeout", "30s"]).expect(0);
    }
    dev.kill("n3");
    let (config, client) = copied(&dev);
    dev.start_node("n3");
    is_whole(&dev, "n3", 3);
    let before = dev.status();
    let leader = dev.leader();

    let mut second = Started::ready(graven().arg("start").arg("--config").arg(&config));
    // It says so when it is asked.
    let text = std::fs::read_to_string(&dev.client).expect("a client's file");
    let file = dev.dir.join("copy.toml");
    let endpoints = format!("endpoints = {{ n3 = \"{client}\" }}");
    let lines: Vec<&str> =
        text.lines().map(|line| if line.starts_with("endpoints") { &endpoints } else { line }).collect();
    std::fs::write(&file, lines.join("\n")).expect("written");
    let trouble = wait_for("the copy to say what its peers hold against it", || {
        let done = finish(graven().arg("--client").arg(&file).args(["status", "--json"]), b"");
        let status: Value = serde_json::from_slice(&done.stdout).ok()?;
        let mine = status["nodes"].as_array()?.iter().find(|node| node["trouble"].is_string())?;
        Some(mine["trouble"].as_str()?.to_owned())
    });
    assert!(trouble.contains("node 3 runs already") && trouble.contains("copy"), "{trouble}");
    // It does not go on for ever: a supervisor that obeys exit 2 leaves it alone.
    assert_eq!(wait_for_exit(&mut second.0, PATIENCE).code(), Some(2));
    let words = second.last_words();
    let last = words.lines().last().unwrap_or_default();
    assert!(last.starts_with("graven: ") && last.contains("node 3 runs already, in another process"), "{words}");
    assert!(words.contains("a peer refused our connection"), "{words}");

    // Nobody was disturbed: same leader, same term, the real n3 follows.
    dev.run_with(&["append"], b"3\n").expect(0);
    is_whole(&dev, "n3", 4);
    let after = dev.status();
    assert_eq!((&after["leader"], &after["nodes"][0]["term"]), (&Value::from(leader), &before["nodes"][0]["term"]));
    assert_eq!(after["nodes"][2]["pid"], before["nodes"][2]["pid"]);
    assert_eq!(after["nodes"][2]["trouble"], Value::Null);
}
