//! The nodes: children of this program, each running graven's own daemon.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use graven::config::NodeConfig;
use graven::init::{Created, NewCluster, NewNode, Setting};
use graven::node::daemon;
use rustix::process::{Pid, Signal, kill_process};

use super::wires::Wires;

/// How long a node may take to end in order: the daemon itself gives up after ten seconds.
const END_MAX: Duration = Duration::from_secs(20);
/// Small segments, so that a short run goes through many.
const SEGMENT_BYTES: &str = "1M";
/// Lines of a node's log that are shown when it ends unasked.
const LAST_WORDS: usize = 5;

/// All nodes of the cluster, and what connects them. Dropped, all are killed.
#[derive(Debug)]
pub struct Nodes {
    /// What connects them.
    pub wires: Wires,
    home: PathBuf,
    files: Vec<PathBuf>,
    /// Where clients find them.
    pub client_file: PathBuf,
    lives: Vec<Life>,
}

#[derive(Debug)]
enum Life {
    Down,
    Up(Child),
    Stopped(Child),
}

/// A node's name.
#[must_use]
pub fn name(node: u64) -> String {
    format!("n{node}")
}

impl Nodes {
    /// Makes the files of a cluster of `count` nodes in `home`.
    ///
    /// # Errors
    /// A file could not be made.
    pub fn create(home: &Path, count: u64, wires: Wires) -> Result<Nodes, String> {
        let nodes = (1..=count).map(|node| NewNode::at(&name(node), &wires.address(node))).collect::<Result<_, _>>()?;
        let settings = vec![Setting::parse(&format!("wal.segment_bytes={SEGMENT_BYTES}"))?];
        let cluster = NewCluster { dir: home.to_owned(), nodes, settings };
        let Created { client_file, node_files, .. } = cluster.create().map_err(|cause| cause.to_string())?;
        let lives = (0..count).map(|_| Life::Down).collect();
        Ok(Nodes { wires, home: home.to_owned(), files: node_files, client_file, lives })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.lives.len() as u64
    }

    /// Those that run.
    #[must_use]
    pub fn up(&self) -> Vec<u64> {
        (1..).zip(&self.lives).filter(|(_, life)| matches!(life, Life::Up(_))).map(|(node, _)| node).collect()
    }

    /// Where a node's log lies.
    #[must_use]
    pub fn data_dir(&self, node: u64) -> PathBuf {
        self.home.join(name(node)).join("data")
    }

    /// Starts a node that is down.
    ///
    /// # Errors
    /// The system refuses, or the node runs.
    pub fn start(&mut self, node: u64) -> Result<(), String> {
        let at = self.at(node)?;
        if !matches!(self.lives[at], Life::Down) {
            return Err(format!("n{node} runs already"));
        }
        let failed = |cause: std::io::Error| format!("n{node} could not be started: {cause}");
        let log = OpenOptions::new().create(true).append(true).open(self.log_file(node)).map_err(failed)?;
        let mut command = self.wires.program_at(node)?;
        command.args(["node", "--parent", &std::process::id().to_string(), "--config"]).arg(&self.files[at]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.lives[at] = Life::Up(command.spawn().map_err(failed)?);
        Ok(())
    }

    /// Ends a node without warning and waits until it is gone.
    ///
    /// # Errors
    /// It had ended by itself, or the system refuses.
    pub fn kill(&mut self, node: u64) -> Result<(), String> {
        let at = self.at(node)?;
        match std::mem::replace(&mut self.lives[at], Life::Down) {
            Life::Down => Err(format!("n{node} does not run")),
            Life::Up(mut child) | Life::Stopped(mut child) => {
                if let Some(surprise) = self.surprise(node, &mut child) {
                    return Err(surprise);
                }
                child.kill().and_then(|()| child.wait()).map_err(|cause| format!("n{node}: {cause}"))?;
                Ok(())
            }
        }
    }

    /// Makes a running node stand still.
    ///
    /// # Errors
    /// It does not run.
    pub fn stop(&mut self, node: u64) -> Result<(), String> {
        let at = self.at(node)?;
        match std::mem::replace(&mut self.lives[at], Life::Down) {
            Life::Up(child) => {
                let stopped = signal(&child, Signal::STOP);
                self.lives[at] = Life::Stopped(child);
                stopped
            }
            other => {
                self.lives[at] = other;
                Err(format!("n{node} does not run"))
            }
        }
    }

    /// Lets a node go on; one that was killed meanwhile is left alone.
    ///
    /// # Errors
    /// The system refuses.
    pub fn go_on(&mut self, node: u64) -> Result<(), String> {
        let at = self.at(node)?;
        match std::mem::replace(&mut self.lives[at], Life::Down) {
            Life::Stopped(child) => {
                let gone_on = signal(&child, Signal::CONT);
                self.lives[at] = Life::Up(child);
                gone_on
            }
            other => {
                self.lives[at] = other;
                Ok(())
            }
        }
    }

    /// Looks whether a node has ended that nobody ended.
    ///
    /// # Errors
    /// It has; how, and its last words.
    pub fn check(&mut self) -> Result<(), String> {
        let mut lives = std::mem::take(&mut self.lives);
        let mut found = Ok(());
        for (node, life) in (1..).zip(&mut lives) {
            if let Life::Up(child) | Life::Stopped(child) = life
                && let Some(surprise) = self.surprise(node, child)
            {
                found = Err(surprise);
                *life = Life::Down;
            }
        }
        self.lives = lives;
        found
    }

    /// Asks all nodes to end in order, and waits for them.
    ///
    /// # Errors
    /// One did not, or ended with an error.
    pub fn end(&mut self) -> Result<(), String> {
        let mut failed = Vec::new();
        for life in &self.lives {
            if let Life::Up(child) | Life::Stopped(child) = life {
                signal(child, Signal::TERM)?;
                signal(child, Signal::CONT)?;
            }
        }
        for at in 0..self.lives.len() {
            let mut child = match std::mem::replace(&mut self.lives[at], Life::Down) {
                Life::Up(child) | Life::Stopped(child) => child,
                Life::Down => continue,
            };
            let node = at as u64 + 1;
            match wait(&mut child, END_MAX) {
                Some(status) if status.success() => {}
                Some(status) => failed.push(format!("n{node} ended with {status}: {}", self.last_words(node))),
                None => failed.push(format!("n{node} still runs {} s after SIGTERM", END_MAX.as_secs())),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    fn surprise(&self, node: u64, child: &mut Child) -> Option<String> {
        match child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("n{node} ended unasked with {status}: {}", self.last_words(node))),
            Err(cause) => Some(format!("n{node} cannot be waited for: {cause}")),
        }
    }

    fn last_words(&self, node: u64) -> String {
        let text = std::fs::read_to_string(self.log_file(node)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join(" | ")
    }

    fn log_file(&self, node: u64) -> PathBuf {
        self.home.join(name(node)).join("node.log")
    }

    fn at(&self, node: u64) -> Result<usize, String> {
        let at = usize::try_from(node).ok().and_then(|node| node.checked_sub(1));
        at.filter(|at| *at < self.lives.len()).ok_or_else(|| format!("there is no node {node}"))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for life in &mut self.lives {
            if let Life::Up(child) | Life::Stopped(child) = life {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn signal(child: &Child, signal: Signal) -> Result<(), String> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or("a process without an id")?;
    kill_process(pid, signal).map_err(|cause| format!("process {}: {cause}", child.id()))
}

/// Waits for a process; one that takes too long is killed, and there is no status.
fn wait(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + within;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// What a node's process does: `graven start`, through the library.
///
/// # Errors
/// A sentence: the node did not start, or had to stop.
pub fn serve(config: &Path, parent: u32) -> Result<(), String> {
    end_with(parent)?;
    let config = NodeConfig::load(config).map_err(|cause| cause.to_string())?;
    let level = config.log.level.parse().unwrap_or(tracing_subscriber::filter::LevelFilter::INFO);
    let log = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(std::io::stderr);
    log.try_init().map_err(|cause| cause.to_string())?;
    daemon::run(config, daemon::Options::default()).map_err(|cause| cause.to_string())
}

/// From here on this process is killed when `parent` ends, in whatever way; also while it stands still.
///
/// # Errors
/// It has ended already.
pub fn end_with(parent: u32) -> Result<(), String> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|cause| cause.to_string())?;
    let is = rustix::process::getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
    if is == Some(parent) { Ok(()) } else { Err(format!("process {parent}, which started this one, is gone")) }
}

/// Opens a file for notes, appending.
///
/// # Errors
/// The system refuses.
pub fn notes(path: &Path) -> Result<File, String> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|cause| format!("cannot write {}: {cause}", path.display()))
}
