//! Clusters whose nodes a test starts in its own way: on small disks, under a tracer.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{self, Done, finish, graven, is_running, signal, wait_for, wait_for_exit};

/// Segments of one mebibyte, so that a little data goes through many. The first one of a log is made by `init`, with 64.
pub(crate) const SMALL_SEGMENTS: &str = "\n[wal]\nsegment_bytes = \"1M\"\n";

/// See the module's documentation. What is left of it ends when dropped.
pub(crate) struct Bare {
    pub(crate) dir: PathBuf,
    nodes: Vec<Option<Child>>,
    /// Holds the mount namespace in which the nodes' directories are small file systems.
    mounts: Option<Child>,
    _temp: TempDir,
}

impl Bare {
    /// The files of a cluster of nodes n1, n2 and so on; none of them runs.
    pub(crate) fn made(nodes: u16, settings: &str) -> Bare {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = temp.path().join("cluster");
        let base = common::free_base_port(nodes);
        let mut init = graven();
        init.arg("init").arg("--dir").arg(&dir);
        for node in 1..=nodes {
            init.arg("--node").arg(format!("n{node}=127.0.0.1:{}", base + 10 * (node - 1)));
        }
        finish(&mut init, b"").expect(0);
        for node in 1..=nodes {
            let config = dir.join(format!("n{node}/graven.toml"));
            let text = std::fs::read_to_string(&config).expect("graven.toml");
            assert!(!text.contains("\n[wal]") && !text.contains("\n[raft]"), "init writes neither section");
            std::fs::write(&config, format!("{text}{settings}")).expect("written");
        }
        Bare { dir, nodes: (0..nodes).map(|_| None).collect(), mounts: None, _temp: temp }
    }

    /// The nodes of a cluster whose files are there already, below `temp`; none of them runs.
    pub(crate) fn over(dir: PathBuf, nodes: u16, temp: TempDir) -> Bare {
        Bare { dir, nodes: (0..nodes).map(|_| None).collect(), mounts: None, _temp: temp }
    }

    /// One node more, whose files are there already.
    pub(crate) fn grow(&mut self) {
        self.nodes.push(None);
    }

    /// Puts each node's directory on a file system of its own of this many mebibytes, in a mount namespace that goes with the
    /// test. `Err` says why that is not possible here.
    pub(crate) fn mount(&mut self, mebibytes: &[u32]) -> Result<(), String> {
        let mut script = String::from("mount --make-rprivate / || exit 1\n");
        for (node, size) in (1..).zip(mebibytes) {
            script += &format!(
                "cp -a n{node} n{node}.made && mount -t tmpfs -o size={size}m none n{node} && \
                 cp -a n{node}.made/. n{node}/ && rm -r n{node}.made || exit 1\n"
            );
        }
        script += "echo mounted\nexec cat\n";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script]).current_dir(&self.dir);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.map_err(|error| format!("unshare: {error}"))?;
        let mut line = String::new();
        let _ = BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line);
        if line != "mounted\n" {
            let _ = child.kill();
            let _ = child.wait();
            return Err("mounting small file systems in a mount namespace of its own is not allowed here".to_owned());
        }
        self.mounts = Some(child);
        Ok(())
    }

    /// A file of a node, as this process can reach it.
    pub(crate) fn path(&self, node: u16, file: &str) -> PathBuf {
        let path = self.dir.join(format!("n{node}")).join(file);
        match &self.mounts {
            Some(child) => PathBuf::from(format!("/proc/{}/root{}", child.id(), path.display())),
            None => path,
        }
    }

    /// Takes `bytes` of a node's disk away; all there is, when there is less.
    pub(crate) fn fill(&self, node: u16, bytes: u64) {
        self.fill_with(node, "ballast", bytes);
    }

    /// Takes all that is left of a node's disk.
    pub(crate) fn fill_more(&self, node: u16, name: &str) {
        self.fill_with(node, name, u64::MAX);
    }

    fn fill_with(&self, node: u16, name: &str, bytes: u64) {
        use std::os::unix::fs::FileExt;
        let file = File::create(self.path(node, name)).expect("room for a name");
        let page = [7; 4096];
        for at in (0..bytes).step_by(page.len()) {
            if file.write_all_at(&page, at).is_err() {
                return;
            }
        }
    }

    /// Gives back what [`Bare::fill`] took.
    pub(crate) fn free(&self, node: u16) {
        std::fs::remove_file(self.path(node, "ballast")).expect("space is freed");
    }

    /// Starts a node and waits until it is ready. `wrapper` is a command that becomes the node, or runs it.
    pub(crate) fn start(&mut self, node: u16, wrapper: &[&str]) {
        let line = self.try_start(node, wrapper);
        assert_eq!(line, "ready\n", "n{node}: {}", self.words(node));
    }

    /// Starts a node; what it says on stdout first, nothing when it ends before.
    pub(crate) fn try_start(&mut self, node: u16, wrapper: &[&str]) -> String {
        let mut words: Vec<String> = match &self.mounts {
            Some(child) => vec!["nsenter".into(), format!("--mount=/proc/{}/ns/mnt", child.id()), "--".into()],
            None => Vec::new(),
        };
        words.extend(wrapper.iter().map(|word| (*word).to_owned()));
        words.push(env!("CARGO_BIN_EXE_graven").into());
        let mut command = Command::new(&words[0]);
        let config = self.dir.join(format!("n{node}/graven.toml"));
        command.args(&words[1..]).arg("start").arg("--config").arg(config);
        let log = File::create(self.log(node)).expect("a log");
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
        let mut child = child.expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("stdout is read");
        self.nodes[usize::from(node) - 1] = Some(child);
        line
    }

    fn log(&self, node: u16) -> PathBuf {
        self.dir.join(format!("n{node}.log"))
    }

    /// What a node wrote to stderr in this life.
    pub(crate) fn words(&self, node: u16) -> String {
        std::fs::read_to_string(self.log(node)).unwrap_or_default()
    }

    /// The lines a user was to read, without the log.
    pub(crate) fn complaints(&self, node: u16) -> Vec<String> {
        self.words(node).lines().filter(|line| line.starts_with("graven:")).map(str::to_owned).collect()
    }

    /// A node's process, also under a tracer.
    pub(crate) fn pid(&self, node: u16) -> Option<i32> {
        let text = std::fs::read_to_string(self.path(node, "graven.pid")).ok()?;
        text.trim().parse().ok().filter(|pid| is_running(*pid))
    }

    /// Ends a node without warning, and waits until it is gone.
    pub(crate) fn kill(&mut self, node: u16) {
        signal(self.pid(node).expect("it runs"), Signal::KILL);
        self.wait(node, common::PATIENCE);
    }

    /// Waits until a node's process has ended.
    pub(crate) fn wait(&mut self, node: u16, within: Duration) -> ExitStatus {
        let mut child = self.nodes[usize::from(node) - 1].take().expect("it was started");
        wait_for_exit(&mut child, within)
    }

    /// Whether the process that was started is still there.
    pub(crate) fn has_ended(&mut self, node: u16) -> bool {
        let child = self.nodes[usize::from(node) - 1].as_mut().expect("it was started");
        child.try_wait().expect("wait").is_some()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = graven();
        command.arg("--client").arg(self.dir.join("client.toml")).args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str], input: &[u8]) -> Done {
        finish(&mut self.command(args), input)
    }

    pub(crate) fn status(&self) -> Value {
        let done = self.run(&["status", "--json"], b"");
        serde_json::from_slice(&done.stdout).expect("JSON")
    }

    /// What status says about one node.
    pub(crate) fn says(&self, node: u16, key: &str) -> Value {
        let name = format!("n{node}");
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("nodes");
        nodes.iter().find(|entry| entry["name"] == name.as_str()).map_or(Value::Null, |entry| entry[key].clone())
    }

    /// The number of the node that leads.
    pub(crate) fn leader(&self) -> Option<u16> {
        self.status()["leader"].as_str()?.strip_prefix('n')?.parse().ok()
    }

    /// Starts all nodes, and makes n1 the leader.
    pub(crate) fn start_all(&mut self) {
        for node in 1..=self.nodes.len() as u16 {
            self.start(node, &[]);
        }
        self.lead(1);
    }

    /// Moves the leadership to this node.
    pub(crate) fn lead(&self, node: u16) {
        wait_for("a leader", || self.leader());
        let name = format!("n{node}");
        wait_for("the leadership to move", || (self.run(&["transfer", &name], b"").code() == 0).then_some(()));
    }

    /// Waits until all nodes that run show the same end of the log; returns it.
    pub(crate) fn wait_for_equal_offsets(&self) -> u64 {
        wait_for("equal offsets on all nodes", || {
            let status = self.status();
            let nodes = status["nodes"].as_array().expect("nodes").clone();
            let mut offsets = nodes.iter().map(|node| node["next_offset"].as_u64());
            let first = offsets.next().flatten()?;
            offsets.all(|offset| offset == Some(first)).then_some(first)
        })
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        for node in 1..=self.nodes.len() as u16 {
            // Under a tracer the node is a process of its own and outlives it.
            if let Some(pid) = self.pid(node) {
                let pid = rustix::process::Pid::from_raw(pid);
                let _ = pid.map(|pid| rustix::process::kill_process(pid, Signal::KILL));
            }
        }
        for child in self.nodes.iter_mut().flatten().chain(self.mounts.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            (1..=self.nodes.len() as u16).for_each(|node| show_tail(&self.log(node)));
        }
    }
}

fn show_tail(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    eprintln!("--- {}", path.display());
    lines.iter().skip(lines.len().saturating_sub(30)).for_each(|line| eprintln!("{line}"));
}

/// Says why a test does not run here; with `GRAVEN_NO_SKIP=1` that is a failure.
pub(crate) fn skipped(why: &str) {
    assert!(std::env::var_os("GRAVEN_NO_SKIP").is_none(), "SKIPPED: {why}");
    eprintln!("SKIPPED: {why}");
}

/// Whether a command does anything here.
pub(crate) fn works(command: &str, args: &[&str]) -> bool {
    let mut command = Command::new(command);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Whether system calls can be held up and made to fail.
pub(crate) fn can_trace() -> bool {
    works("strace", &["-qq", "-f", "-o", "/dev/null", "-e", "inject=fdatasync:delay_enter=1", "true"])
}

/// Numbered lines of 200 bytes.
pub(crate) fn lines(first: usize, count: usize) -> Vec<u8> {
    (first..first + count).flat_map(|number| format!("{number:08} {}\n", "x".repeat(190)).into_bytes()).collect()
}
