//! What tests that start the binary share: running commands with a deadline, clusters in a temporary directory, waiting for conditions.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than any command of a test takes on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a command did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("stdout is UTF-8")
    }

    /// The exit code, with everything printed when it is another one.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Done {
        let stdout = String::from_utf8_lossy(&self.stdout);
        assert_eq!(self.code(), code, "stdout: {stdout}\nstderr: {}", self.stderr);
        self
    }

    /// The error object on stderr.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        let line = self.stderr.lines().last().unwrap_or_default();
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {}", self.stderr));
        value["error"].clone()
    }
}

/// The binary under test, which sees nothing of the machine's own clusters.
pub(crate) fn graven() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graven"));
    for name in ["GRAVEN_CLIENT", "XDG_CONFIG_HOME", "HOME"] {
        command.env_remove(name);
    }
    command
}

/// Runs `graven ARGS` to its end.
pub(crate) fn run(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Done {
    finish(graven().args(args), b"")
}

/// Runs a command to its end with this input; panics when it takes too long.
pub(crate) fn finish(command: &mut Command, input: &[u8]) -> Done {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("graven starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    thread::spawn(move || stdin.write_all(&input));
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let status = wait_for_exit(&mut child, PATIENCE);
    let stderr = String::from_utf8_lossy(&stderr.recv().expect("stderr")).into_owned();
    Done { status, stdout: stdout.recv().expect("stdout"), stderr }
}

fn collect(mut from: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (done, bytes) = mpsc::channel();
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        let _ = done.send(all);
    });
    bytes
}

/// Waits for a process; one that takes too long is killed and fails the test.
pub(crate) fn wait_for_exit(child: &mut Child, within: Duration) -> ExitStatus {
    let deadline = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("process {} still runs after {within:?}", child.id());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` gives something; panics, naming it, when it takes too long.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a process id"), signal).expect("the process is there");
}

/// Fields of /proc/PID/stat between the state and the number of threads.
const THREADS_AFTER_STATE: usize = 16;

pub(crate) fn is_running(pid: i32) -> bool {
    // Its first thread may be gone while another one, in a sync, still holds the lock of its directory. They are counted, not listed: a list
    // ends early when a thread that is on it ends meanwhile.
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let mut fields = rest.split(' ');
    let is_gone = fields.next().is_some_and(|state| ["Z", "X"].contains(&state));
    let threads: u32 = fields.nth(THREADS_AFTER_STATE).and_then(|count| count.parse().ok()).unwrap_or(0);
    !is_gone || threads > 1
}

/// A first port such that this many nodes find theirs free. Far from the range the system hands out by itself.
pub(crate) fn free_base_port(nodes: u16) -> u16 {
    wait_for("free ports", || {
        let base = 10_000 + rand::random::<u16>() % 20_000;
        let ports = (0..nodes).flat_map(|node| (0..3).map(move |port| base + node * 10 + port));
        let sockets: Vec<_> = ports.map(|port| UdpSocket::bind(("127.0.0.1", port))).collect();
        sockets.iter().all(Result::is_ok).then_some(base)
    })
}

/// A cluster run by `graven dev`; stopped, or killed, when dropped.
pub(crate) struct Dev {
    pub(crate) dir: PathBuf,
    pub(crate) client: PathBuf,
    pub(crate) base_port: u16,
    pub(crate) nodes: u16,
    child: Option<Child>,
    by_hand: Vec<Child>,
    _temp: TempDir,
}

impl Dev {
    /// Starts a new cluster and waits for its `ready` line.
    pub(crate) fn start(nodes: u16, settings: &[&str]) -> Dev {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = temp.path().join("cluster");
        let client = dir.join("client.toml");
        let mut dev = Dev { dir, client, base_port: 0, nodes, child: None, by_hand: Vec::new(), _temp: temp };
        wait_for("a cluster on free ports", || {
            dev.base_port = free_base_port(nodes);
            dev.resume(settings)
                .err()
                .filter(|line| !line.contains("is not free"))
                .map_or_else(|| dev.child.is_some().then_some(()), |line| panic!("graven dev failed: {line}"))
        });
        dev
    }

    /// Starts `graven dev` on the directory; the `ready` line, or what stderr said instead.
    pub(crate) fn resume(&mut self, settings: &[&str]) -> Result<String, String> {
        let mut command = graven();
        command.arg("dev").arg("--dir").arg(&self.dir);
        command.args(["--nodes", &self.nodes.to_string(), "--base-port", &self.base_port.to_string()]);
        settings.iter().for_each(|setting| {
            command.args(["--set", setting]);
        });
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let stderr = collect(child.stderr.take().expect("piped"));
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("stdout is read");
        if line.starts_with("ready: ") {
            self.child = Some(child);
            return Ok(line.trim_end().to_owned());
        }
        wait_for_exit(&mut child, PATIENCE);
        Err(String::from_utf8_lossy(&stderr.recv().expect("stderr")).into_owned())
    }

    /// The process of `graven dev`.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().expect("runs").id()).expect("a process id")
    }

    /// Stops `graven dev` with SIGTERM and tells how it ended.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        signal(self.pid(), Signal::TERM);
        let mut child = self.child.take().expect("runs");
        wait_for_exit(&mut child, PATIENCE)
    }

    /// Ends `graven dev` without warning.
    pub(crate) fn kill_dev(&mut self) {
        signal(self.pid(), Signal::KILL);
        let mut child = self.child.take().expect("runs");
        wait_for_exit(&mut child, PATIENCE);
    }

    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("graven.toml")
    }

    /// A node's process, from its pid file.
    pub(crate) fn node_pid(&self, name: &str) -> Option<i32> {
        let text = std::fs::read_to_string(self.dir.join(name).join("graven.pid")).ok()?;
        text.trim().parse().ok().filter(|pid| is_running(*pid))
    }

    /// Ends a node without warning and waits until it is gone.
    pub(crate) fn kill(&self, name: &str) {
        let pid = self.node_pid(name).expect("the node runs");
        signal(pid, Signal::KILL);
        wait_for("the node to be gone", || (!is_running(pid)).then_some(()));
    }

    /// Starts a node by hand and waits until it is ready.
    pub(crate) fn start_node(&mut self, name: &str) {
        let mut command = graven();
        command.arg("start").arg("--config").arg(self.config(name));
        let log = std::fs::File::create(self.dir.join(name).join("by-hand.log")).expect("a log");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("stdout is read");
        self.by_hand.push(child);
        let said = std::fs::read_to_string(self.dir.join(name).join("by-hand.log")).unwrap_or_default();
        assert_eq!(line, "ready\n", "{said}");
    }

    /// A client command of this cluster.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = graven();
        command.arg("--client").arg(&self.client).args(args);
        command
    }

    /// Runs a client command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Done {
        finish(&mut self.command(args), b"")
    }

    /// Runs a client command with this input.
    pub(crate) fn run_with(&self, args: &[&str], input: &[u8]) -> Done {
        finish(&mut self.command(args), input)
    }

    /// `graven status --json`.
    pub(crate) fn status(&self) -> Value {
        let done = self.run(&["status", "--json"]);
        serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
    }

    /// Waits for a leader and names it.
    pub(crate) fn leader(&self) -> String {
        wait_for("a leader", || self.status()["leader"].as_str().map(str::to_owned))
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        for child in self.by_hand.iter_mut().chain(self.child.as_mut()) {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        for mut child in self.by_hand.drain(..).chain(self.child.take()) {
            let deadline = Instant::now() + Duration::from_secs(15);
            while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
                thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            for node in 1..=self.nodes {
                show_tail(&self.dir.join(format!("n{node}/graven.log")));
                show_tail(&self.dir.join(format!("n{node}/by-hand.log")));
            }
        }
    }
}

/// The end of a log, for a test that failed.
fn show_tail(path: &Path) {
    let Ok(text) = std::fs::read_to_string(path) else { return };
    let lines: Vec<_> = text.lines().collect();
    eprintln!("--- {}", path.display());
    lines.iter().skip(lines.len().saturating_sub(30)).for_each(|line| eprintln!("{line}"));
}
