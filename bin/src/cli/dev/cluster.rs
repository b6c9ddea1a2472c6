//! The processes of a development cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use graven_net::client::{Client, ClientConfig};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use super::super::error::{CliResult, ErrorCode, Failure};
use super::home::{Home, node_name};
use super::log::{self, RotatingLog};

/// A running development cluster.
pub(crate) struct Cluster {
    home: Home,
    nodes: Vec<NodeProcess>,
    events: mpsc::Receiver<(u16, Event)>,
    events_in: mpsc::Sender<(u16, Event)>,
}

/// One node, as far as we started it.
struct NodeProcess {
    at: u16,
    pid: Option<Pid>,
    ready: bool,
    /// Held open: the node ends when it closes, which it does in whatever way we end.
    _stdin: Option<ChildStdin>,
}

/// What a node process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Recovered and listening.
    Ready,
    /// Ended.
    Exited(ExitStatus),
}

/// Recovery reads the active segment, and the authority to make certificates costs nothing; this is for slow machines.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// An election takes a fraction of a second; this is for slow machines.
const LEADER_WITHIN: Duration = Duration::from_secs(30);
/// A node stops within 10 s; two more for the machine.
const STOPPED_WITHIN: Duration = Duration::from_secs(12);
/// Each node says at most two things; nobody waits for room.
const EVENTS: usize = 32;

impl Cluster {
    /// Starts every node that does not run already.
    pub(crate) async fn start(home: Home) -> CliResult<Cluster> {
        let (events_in, events) = mpsc::channel(EVENTS);
        let mut cluster = Cluster { home, nodes: Vec::new(), events, events_in };
        cluster.wait_for_earlier().await;
        let running: Vec<bool> = (0..cluster.home.record.nodes).map(|at| cluster.home.running(at).is_some()).collect();
        cluster.home.record.check_ports(|at| !running[usize::from(at)])?;
        let mut started = BTreeMap::new();
        for at in 0..cluster.home.record.nodes {
            let node = if running[usize::from(at)] { NodeProcess::foreign(at) } else { cluster.spawn(at)? };
            if let Some(pid) = node.pid {
                started.insert(node_name(at), pid.as_raw_nonzero().get());
            }
            cluster.nodes.push(node);
        }
        cluster.home.note_started(&started)?;
        Ok(cluster)
    }

    /// A `graven dev` that was killed leaves nodes that notice and drain; they are about to free their directories.
    async fn wait_for_earlier(&self) {
        let deadline = Instant::now() + STOPPED_WITHIN;
        let draining = |at: u16| {
            let pid = self.home.running(at);
            pid.is_some() && pid == self.home.earlier.get(&node_name(at)).copied()
        };
        while Instant::now() < deadline && (0..self.home.record.nodes).any(draining) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn spawn(&self, at: u16) -> CliResult<NodeProcess> {
        let name = node_name(at);
        let failed = |error: std::io::Error| Failure::internal(format!("cannot start node {name}: {error}"));
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("start").arg("--config").arg(self.home.config_file(at)).arg("--exit-with-stdin");
        // In a group of its own: Ctrl-C in the terminal is for us, and we stop the nodes in order.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(failed)?;
        let log = RotatingLog::open(&self.log_file(at)).map_err(failed)?;
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(log::pump(stderr, log));
        }
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let stdin = child.stdin.take();
        tokio::spawn(watch(at, child, self.events_in.clone()));
        Ok(NodeProcess { at, pid, ready: false, _stdin: stdin })
    }

    fn log_file(&self, at: u16) -> PathBuf {
        self.home.dir.join(node_name(at)).join("graven.log")
    }

    /// Waits until every node is ready or has ended, and enough of them are ready.
    pub(crate) async fn wait_ready(&mut self) -> CliResult {
        let deadline = Instant::now() + READY_WITHIN;
        let mut ended = Vec::new();
        while self.nodes.iter().any(|node| node.pid.is_some() && !node.ready) {
            let event = tokio::time::timeout_at(deadline.into(), self.events.recv()).await;
            let Ok(Some((at, event))) = event else {
                let late = self.nodes.iter().find(|node| node.pid.is_some() && !node.ready).map_or(0, |node| node.at);
                let message = format!(
                    "{} is not ready after {READY_WITHIN:?}; see {}",
                    node_name(late),
                    self.log_file(late).display()
                );
                return Err(Failure::new(ErrorCode::Timeout, message));
            };
            self.note(at, event);
            if let Event::Exited(status) = event {
                ended.push((at, status));
            }
        }
        let majority = usize::from(self.home.record.nodes) / 2 + 1;
        match ended.first() {
            Some((at, status)) if self.alive() < majority => Err(self.ended_early(*at, *status)),
            _ => Ok(()),
        }
    }

    /// The nodes that run, ours and others'.
    pub(crate) fn alive(&self) -> usize {
        let ours = self.nodes.iter().filter(|node| node.pid.is_some()).count();
        ours + self.nodes.iter().filter(|node| node.pid.is_none() && self.home.running(node.at).is_some()).count()
    }

    fn ended_early(&self, at: u16, status: ExitStatus) -> Failure {
        let code = match status.code() {
            Some(2) => ErrorCode::Config,
            Some(6) => ErrorCode::Damaged,
            _ => ErrorCode::Internal,
        };
        let log = self.log_file(at);
        let said = log::last_line(&log).map(|line| format!(": {line}")).unwrap_or_default();
        Failure::new(
            code,
            format!("node {} ended before it was ready ({status}){said}; see {}", node_name(at), log.display()),
        )
    }

    /// What a node does next; remembers it.
    pub(crate) async fn event(&mut self) -> (u16, Event) {
        // A sender is held by ourselves, so the channel never ends.
        let Some((at, event)) = self.events.recv().await else { return std::future::pending().await };
        self.note(at, event);
        (at, event)
    }

    fn note(&mut self, at: u16, event: Event) {
        if let Some(node) = self.nodes.get_mut(usize::from(at)) {
            match event {
                Event::Ready => node.ready = true,
                Event::Exited(_) => node.pid = None,
            }
        }
    }

    /// Asks the nodes who leads until one says so.
    pub(crate) async fn leader(&self) -> CliResult<String> {
        let config = ClientConfig::load(self.home.client_file()).map_err(|error| Failure::config(error.to_string()))?;
        let deadline = Instant::now() + LEADER_WITHIN;
        let client = Client::connect(config).await?;
        let leader = loop {
            if let Some(leader) = client.status().await.leader {
                break leader;
            }
            if Instant::now() > deadline {
                let message =
                    format!("no leader after {LEADER_WITHIN:?}; see the logs under {}", self.home.dir.display());
                return Err(Failure::new(ErrorCode::Unavailable, message));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        client.close().await;
        Ok(leader)
    }

    /// The directory and what it was made with.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// Asks every node we started to stop.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits until every node we started has ended; those that do not are ended.
    pub(crate) async fn stopped(&mut self) {
        let deadline = Instant::now() + STOPPED_WITHIN;
        while self.nodes.iter().any(|node| node.pid.is_some()) {
            if tokio::time::timeout_at(deadline.into(), self.event()).await.is_err() {
                self.signal(Signal::KILL);
                let _ = tokio::time::timeout(Duration::from_secs(1), self.event()).await;
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        for pid in self.nodes.iter().filter_map(|node| node.pid) {
            // Ours and not yet waited for, so the number cannot be somebody else's.
            let _ = kill_process(pid, signal);
        }
    }
}

impl NodeProcess {
    /// A node that somebody started by hand: it is left alone.
    fn foreign(at: u16) -> NodeProcess {
        NodeProcess { at, pid: None, ready: true, _stdin: None }
    }
}

/// Reads what a node prints until it ends.
async fn watch(at: u16, mut child: Child, events: mpsc::Sender<(u16, Event)>) {
    if let Some(stdout) = child.stdout.take() {
        let events = events.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if line.trim_end() == "ready" {
                    let _ = events.send((at, Event::Ready)).await;
                }
            }
        });
    }
    if let Ok(status) = child.wait().await {
        let _ = events.send((at, Event::Exited(status))).await;
    }
}
