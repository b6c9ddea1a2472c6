//! A cluster of real processes under faults, at smoke size; `GRAVEN_LONG=1` runs half an hour. `GRAVEN_CHAOS_SEED` picks the seed.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// As long as it takes to go through every kind of fault twice, more or less: the first kind of a deck that is dealt for the
/// second time meets what the others left behind.
const SMOKE_SECONDS: u64 = 20;
const LONG_SECONDS: u64 = 30 * 60;
/// Clients, nodes and holders of one run fill two cores; side by side they would measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn chaos(temp: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
    command.env("TMPDIR", temp).args(arguments).stdin(Stdio::null());
    command
}

/// Runs it to its end; the report. What it says is shown.
fn run(arguments: &[&str]) -> (bool, Value) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let temp = tempfile::tempdir().expect("a directory");
    let output = chaos(temp.path(), arguments).output().expect("chaos runs");
    let told = String::from_utf8_lossy(&output.stderr);
    eprintln!("{told}");
    let line = String::from_utf8_lossy(&output.stdout);
    eprintln!("{line}");
    if !output.status.success() {
        eprintln!("kept in {}", temp.keep().display());
        panic!("chaos ended with {}", output.status);
    }
    let report: Value = serde_json::from_str(line.trim_end()).expect("one line of JSON");
    assert_eq!(report["violations"], serde_json::json!([]));
    assert_eq!(temp.path().read_dir().expect("there").count(), 0, "nothing is left");
    (told.contains("SKIPPED"), report)
}

fn seed() -> String {
    std::env::var("GRAVEN_CHAOS_SEED").unwrap_or_else(|_| "1".to_owned())
}

/// Every fault, every kind of call, nothing lost, doubled, skipped or out of order.
#[test]
fn a_cluster_that_is_cut_killed_and_stopped_keeps_its_promises() {
    let long = std::env::var("GRAVEN_LONG").is_ok_and(|value| value == "1");
    let minutes = (if long { LONG_SECONDS } else { SMOKE_SECONDS }) as f64 / 60.0;
    let (skipped, report) = run(&["--seed", &seed(), "--minutes", &minutes.to_string()]);
    let mut promised = vec!["kills", "stops", "kill_alls", "appends_ok", "appends_refused", "appends_unknown", "reads"];
    promised.extend(["subscription_records", "leader_changes", "longest_append_gap_ms"]);
    if skipped {
        // It fails by itself where skipping is forbidden.
        assert_eq!(report["namespaces"], false);
    } else {
        assert_eq!(report["namespaces"], true);
        promised.extend(["partitions", "one_way", "isolated", "bridges"]);
    }
    for key in promised {
        assert!(report[key].as_u64().is_some_and(|count| count > 0), "{key} in {report}");
    }
}

/// What is left of it where there are no network namespaces.
#[test]
fn without_namespaces_processes_are_killed_and_stopped() {
    let (_, report) = run(&["--seed", &seed(), "--minutes", "0.05", "--loopback", "--nodes", "3"]);
    assert_eq!((&report["namespaces"], &report["nodes"]), (&Value::from(false), &Value::from(3)));
    for key in ["kills", "stops", "kill_alls"] {
        assert!(report[key].as_u64().is_some_and(|count| count > 0), "{key} in {report}");
    }
}

/// A run that is under way.
struct Running {
    child: Child,
    temp: tempfile::TempDir,
}

impl Running {
    /// Starts one and waits until all its nodes run.
    fn start() -> Running {
        let temp = tempfile::tempdir().expect("a directory");
        let mut command = chaos(temp.path(), &["--seed", "1", "--minutes", "10", "--nodes", "3"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("chaos runs");
        let mut lines = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("acknowledged") {
            line.clear();
            assert!(lines.read_line(&mut line).expect("read") > 0, "it ended early");
        }
        // Or it would wait for a reader.
        std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
        let running = Running { child, temp };
        assert!(running.processes() > 3, "the run itself and its nodes");
        running
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("it runs");
    }

    /// Processes of this run: its directory's name stands in their environment.
    fn processes(&self) -> usize {
        let mark = format!("TMPDIR={}", self.temp.path().display());
        let all = std::fs::read_dir("/proc").expect("procfs").flatten();
        let of_run = |environment: Vec<u8>| environment.windows(mark.len()).any(|window| window == mark.as_bytes());
        all.filter(|entry| std::fs::read(entry.path().join("environ")).is_ok_and(of_run)).count()
    }

    #[track_caller]
    fn expect_no_processes(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.processes() > 0 {
            assert!(Instant::now() < deadline, "{} processes are left", self.processes());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// An interrupted run takes its processes, its namespaces with them, and its directory away.
#[test]
fn an_interrupted_run_leaves_nothing() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut running = Running::start();
    running.signal(Signal::INT);
    let status = running.child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    running.expect_no_processes();
    assert_eq!(running.temp.path().read_dir().expect("there").count(), 0, "nothing is left");
}

/// One that is killed leaves its directory to the next one, and no process, not even those that stood still.
#[test]
fn a_killed_run_leaves_no_process() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut running = Running::start();
    running.signal(Signal::KILL);
    running.child.wait().expect("it is gone");
    running.expect_no_processes();
}
