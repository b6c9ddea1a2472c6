//! Disks that are full and disks that fail, under a real node.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{self, Done, PATIENCE, finish, graven, wait_for, wait_for_exit};

/// A cluster of one node that a test starts in its own way.
struct Alone {
    temp: TempDir,
    node: Option<Child>,
}

impl Alone {
    fn made() -> Alone {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = temp.path().join("cluster");
        let address = format!("n1=127.0.0.1:{}", common::free_base_port(1));
        common::run(["init", "--dir", dir.to_str().expect("UTF-8"), "--node", &address]).expect(0);
        let config = dir.join("n1/graven.toml");
        let text = std::fs::read_to_string(&config).expect("graven.toml");
        assert!(!text.contains("\n[wal]"), "init writes no [wal] section");
        std::fs::write(&config, format!("{text}\n[wal]\nsegment_bytes = \"1M\"\n")).expect("written");
        Alone { temp, node: None }
    }

    fn dir(&self) -> PathBuf {
        self.temp.path().join("cluster")
    }

    fn config(&self) -> PathBuf {
        self.dir().join("n1/graven.toml")
    }

    /// Runs a command that becomes the node, and waits until it is ready.
    fn start(&mut self, command: &mut Command) {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("stdout is read");
        self.node = Some(child);
        assert_eq!(line, "ready\n", "{}", self.last_words());
    }

    fn start_plainly(&mut self) {
        let config = self.config();
        self.start(graven().arg("start").arg("--config").arg(config));
    }

    /// What the node wrote to stderr, once it has ended.
    fn last_words(&mut self) -> String {
        let Some(mut child) = self.node.take() else { return String::new() };
        let _ = child.kill();
        let mut text = String::new();
        let _ = child.stderr.take().expect("piped").read_to_string(&mut text);
        let _ = child.wait();
        text
    }

    fn run(&self, args: &[&str], input: &[u8]) -> Done {
        finish(graven().arg("--client").arg(self.dir().join("client.toml")).args(args), input)
    }

    fn status(&self) -> Value {
        let done = self.run(&["status", "--json"], b"");
        serde_json::from_slice(&done.stdout).expect("JSON")
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Under a tracer the node is a process of its own and outlives it.
        let pid = std::fs::read_to_string(self.dir().join("n1/graven.pid")).ok();
        if let Some(pid) = pid.and_then(|pid| pid.trim().parse().ok()).filter(|pid| common::is_running(*pid)) {
            common::signal(pid, rustix::process::Signal::KILL);
        }
        if let Some(child) = &mut self.node {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Says why a test does not run here; with `GRAVEN_NO_SKIP=1` that is a failure.
fn skipped(why: &str) {
    assert!(std::env::var_os("GRAVEN_NO_SKIP").is_none(), "SKIPPED: {why}");
    eprintln!("SKIPPED: {why}");
}

fn works(command: &str, args: &[&str]) -> bool {
    let mut command = Command::new(command);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn lines(count: usize) -> Vec<u8> {
    (0..count).flat_map(|number| format!("{number:08} {}\n", "x".repeat(190)).into_bytes()).collect()
}

#[test]
fn a_full_disk_refuses_appends_keeps_the_rest_going_and_clears_by_itself() {
    if !works("unshare", &["-m", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]) {
        return skipped("mounting a small filesystem in a mount namespace of its own is not allowed here");
    }
    let mut alone = Alone::made();
    let dir = alone.dir();
    // The node's whole directory lives on 100 MiB, 16 of which are taken by something else.
    let script = format!(
        "cp -a n1 n1.made && mount -t tmpfs -o size=100m none n1 && cp -a n1.made/. n1/ && \
         head -c 16777216 /dev/zero > n1/ballast && exec '{}' start --config n1/graven.toml",
        env!("CARGO_BIN_EXE_graven")
    );
    alone.start(Command::new("unshare").args(["-m", "sh", "-c", &script]).current_dir(&dir));
    let pid = alone.node.as_ref().expect("runs").id();

    let input = lines(600_000);
    let refused = alone.run(&["append", "--json", "--batch", "100"], &input).expect(4);
    let error = refused.error();
    assert_eq!((&error["code"], &error["outcome"]), (&Value::from("disk_full"), &Value::from("refused")), "{error}");
    let acknowledged = error["details"]["acknowledged"]["records"].as_u64().expect("some were acknowledged");

    let status = alone.status();
    assert_eq!(status["nodes"][0]["state"], "disk_full");
    assert_eq!(status["nodes"][0]["next_offset"], acknowledged, "refused means that nothing of it is in the log");
    let read = alone.run(&["read", "--linearizable"], b"").expect(0).stdout;
    assert!(input.starts_with(&read) && read.len() as u64 == acknowledged * 200, "reads go on");

    // What the node sees of the disk is seen through its own mount namespace.
    std::fs::remove_file(format!("/proc/{pid}/root{}", dir.join("n1/ballast").display())).expect("space is freed");
    wait_for("appends to resume", || (alone.run(&["append"], b"after\n").code() == 0).then_some(()));
    assert_eq!(alone.node.as_ref().expect("runs").id(), pid, "without a restart");
    assert_eq!(alone.status()["nodes"][0]["state"], "ok");
}

#[test]
fn a_failed_sync_ends_the_node_with_one_line_and_loses_nothing_acknowledged() {
    if !works("strace", &["-qq", "-o", "/dev/null", "true"]) {
        return skipped("strace, which injects the failure, is missing or not allowed here");
    }
    let mut alone = Alone::made();
    let config = alone.config();
    let inject = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=60+"];
    alone.start(
        Command::new("strace").args(inject).arg(env!("CARGO_BIN_EXE_graven")).arg("start").arg("--config").arg(&config),
    );
    // Each command opens a session and appends: two syncs at least.
    let mut acknowledged = Vec::new();
    let error = (0..100_u32).find_map(|number| {
        let line = format!("record {number}\n").into_bytes();
        let done = alone.run(&["append", "--json", "--timeout", "2s"], &line);
        if done.code() == 0 {
            acknowledged.extend(line);
            return None;
        }
        Some(done.expect(3).error())
    });
    let error = error.expect("syncs fail sooner or later");
    assert!(["unknown", "refused"].contains(&error["outcome"].as_str().expect("an outcome")), "{error}");
    let child = alone.node.as_mut().expect("ran");
    assert_eq!(wait_for_exit(child, PATIENCE).code(), Some(1));
    let words = alone.last_words();
    let complaints: Vec<&str> = words.lines().filter(|line| line.starts_with("graven:")).collect();
    assert_eq!(complaints.len(), 1, "{words}");
    assert!(complaints[0].contains("sync") && complaints[0].contains("segment"), "{words}");

    alone.start_plainly();
    let read = alone.run(&["read", "--linearizable"], b"").expect(0).stdout;
    assert!(read.starts_with(&acknowledged), "an acknowledged record is gone");
}

/// The log cannot tell a first segment that is missing from one that was given up; the node can.
#[test]
fn a_log_without_its_beginning_is_damage() {
    let mut alone = Alone::made();
    let data = alone.dir().join("n1/data");
    // Segments of 1 MiB after the first; make the first small enough to leave.
    alone.start_plainly();
    alone.run(&["append", "--chunk", "1M"], &vec![7; 70 << 20]).expect(0);
    drop(alone.node.take().map(|mut child| (child.kill(), child.wait())));
    std::fs::remove_file(data.join("0000000000000001.seg")).expect("the first segment");
    let config = alone.config();
    let done = common::run(["start", "--config", config.to_str().expect("UTF-8"), "--json"]).expect(6);
    assert!(done.stderr.contains("begins at entry"), "{}", done.stderr);
}
