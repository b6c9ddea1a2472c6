//! The directory of a development cluster: is it ours, is somebody using it, what was it made with.
//!
//! `dev.json` says what the cluster was made with, and whether making it was finished. `dev.lock` is locked by the `graven dev` that
//! runs on it and names the processes it started, so that the next one can tell a node that is still on its way out from one that
//! somebody started by hand.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

use super::super::error::{CliResult, Failure};
use super::super::init;
use crate::config::NodeConfig;
use crate::init::{NewCluster, NewNode, Setting, restore_client_files};

/// What the command line asks for; `None` is whatever is there, else the default.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) dir: PathBuf,
    pub(crate) nodes: Option<u16>,
    pub(crate) base_port: Option<u16>,
    pub(crate) settings: Vec<Setting>,
}

/// A directory that is ours, and locked.
pub(crate) struct Home {
    /// Absolute.
    pub(crate) dir: PathBuf,
    pub(crate) record: Record,
    lock: File,
    /// What the last `graven dev` here had started.
    pub(crate) earlier: BTreeMap<String, i32>,
    /// Files that clients need were missing and were made again.
    pub(crate) restored: bool,
}

/// What a development cluster was made with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) nodes: u16,
    pub(crate) base_port: u16,
    complete: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    nodes: BTreeMap<String, i32>,
}

const RECORD_FILE: &str = "dev.json";
const LOCK_FILE: &str = "dev.lock";
const DEFAULT_NODES: u16 = 3;
const DEFAULT_BASE_PORT: u16 = 5470;
/// Between the first ports of two nodes.
const PORT_STEP: u16 = 10;

impl Home {
    /// Makes the cluster, or finds it as it was left.
    pub(crate) fn open(wish: &Wish) -> CliResult<Home> {
        let dir = std::path::absolute(&wish.dir).map_err(|error| cannot("use", &wish.dir, &error))?;
        let names = entries(&dir)?;
        let ours = names.iter().any(|name| name == RECORD_FILE);
        if !ours && names.iter().any(|name| name != LOCK_FILE && name != ".gitignore") {
            let message =
                format!("{} is not empty and was not made by `graven dev`; choose another with --dir", dir.display());
            return Err(Failure::usage(message));
        }
        if !ours {
            let record = Record::wanted(wish);
            record.check()?;
            // Before anything is made: a port in use leaves no trace.
            record.check_ports(|_| true)?;
            fs::create_dir_all(&dir).map_err(|error| cannot("make", &dir, &error))?;
            let home = Home::lock(dir, record)?;
            return home.make(wish);
        }
        let record = Record::read(&dir)?;
        let mut home = Home::lock(dir, record)?;
        if home.record.complete {
            home.check_wish(wish)?;
            home.restored = restore_client_files(&home.dir, &home.record.new_nodes()?).map_err(init::failure)?;
            return Ok(home);
        }
        // An earlier `graven dev` ended while it made the cluster: no node ever ran, so nothing is lost.
        home.clear()?;
        let record = Record::wanted(wish);
        record.check()?;
        record.check_ports(|_| true)?;
        Home { record, ..home }.make(wish)
    }

    fn lock(dir: PathBuf, record: Record) -> CliResult<Home> {
        let path = dir.join(LOCK_FILE);
        let open = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut lock = open.map_err(|error| cannot("open", &path, &error))?;
        let taken = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        let mut text = String::new();
        lock.read_to_string(&mut text).map_err(|error| cannot("read", &path, &error))?;
        let holder: Holder = serde_json::from_str(&text).unwrap_or_default();
        if taken.is_err() {
            let message = format!(
                "another `graven dev` (pid {}) runs on {}; stop it or choose another --dir",
                holder.pid,
                dir.display()
            );
            return Err(Failure::usage(message).with("pid", holder.pid));
        }
        let dir = fs::canonicalize(&dir).map_err(|error| cannot("use", &dir, &error))?;
        let mut home = Home { dir, record, lock, earlier: holder.nodes, restored: false };
        home.note_started(&BTreeMap::new())?;
        Ok(home)
    }

    /// Says in the lock file which processes were started.
    pub(crate) fn note_started(&mut self, nodes: &BTreeMap<String, i32>) -> CliResult {
        let holder = Holder { pid: std::process::id(), nodes: nodes.clone() };
        let text = serde_json::to_string(&holder).map_err(|error| Failure::internal(error.to_string()))?;
        let mut write = || -> io::Result<()> {
            self.lock.rewind()?;
            self.lock.set_len(0)?;
            self.lock.write_all(text.as_bytes())
        };
        write().map_err(|error| cannot("write", &self.dir.join(LOCK_FILE), &error))
    }

    fn make(mut self, wish: &Wish) -> CliResult<Home> {
        self.record.complete = false;
        let made = self.make_files(wish);
        if let Err(failure) = made {
            // Nothing is left behind of a cluster that could not be made, for example because of a wrong --set.
            let _ = self.clear();
            for name in [RECORD_FILE, LOCK_FILE, ".gitignore"] {
                let _ = fs::remove_file(self.dir.join(name));
            }
            let _ = fs::remove_dir(&self.dir);
            return Err(failure);
        }
        Ok(self)
    }

    fn make_files(&mut self, wish: &Wish) -> CliResult {
        let ignore = self.dir.join(".gitignore");
        fs::write(&ignore, "*\n").map_err(|error| cannot("write", &ignore, &error))?;
        self.record.write(&self.dir)?;
        let nodes = self.record.new_nodes()?;
        let cluster = NewCluster { dir: self.dir.clone(), nodes, settings: wish.settings.clone() };
        cluster.create().map_err(init::failure)?;
        self.record.complete = true;
        self.record.write(&self.dir)
    }

    /// Removes what an unfinished run made.
    fn clear(&self) -> CliResult {
        for name in entries(&self.dir)? {
            if [RECORD_FILE, LOCK_FILE, ".gitignore"].contains(&name.as_str()) {
                continue;
            }
            let path = self.dir.join(&name);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|error| cannot("remove", &path, &error))?;
        }
        Ok(())
    }

    fn check_wish(&self, wish: &Wish) -> CliResult {
        let differs = |flag: &str, asked: u16, has: u16| {
            let dir = self.dir.display();
            Err(Failure::usage(format!(
                "{dir} was made with {flag} {has}, not {asked}; leave the flag out or choose another --dir"
            )))
        };
        match (wish.nodes, wish.base_port) {
            (Some(nodes), _) if nodes != self.record.nodes => return differs("--nodes", nodes, self.record.nodes),
            (_, Some(port)) if port != self.record.base_port => {
                return differs("--base-port", port, self.record.base_port);
            }
            _ => {}
        }
        for at in 0..self.record.nodes {
            self.check_settings(&self.config_file(at), &wish.settings)?;
        }
        Ok(())
    }

    fn check_settings(&self, file: &Path, settings: &[Setting]) -> CliResult {
        if settings.is_empty() {
            return Ok(());
        }
        let text = fs::read_to_string(file).map_err(|error| cannot("read", file, &error))?;
        let table: toml::Table =
            toml::from_str(&text).map_err(|error| Failure::config(format!("{}: {error}", file.display())))?;
        for setting in settings {
            let mut parts = setting.key.split('.');
            let first = parts.next().and_then(|part| table.get(part));
            let found = parts.fold(first, |value, part| value.and_then(|value| value.get(part)));
            if found != Some(&setting.value) {
                let has = found.map_or_else(|| "not set".to_owned(), ToString::to_string);
                let message = format!(
                    "--set {}={} contradicts {} ({has}); edit that file, or choose another --dir",
                    setting.key,
                    setting.value,
                    file.display()
                );
                return Err(Failure::usage(message));
            }
        }
        Ok(())
    }

    /// A node's configuration.
    pub(crate) fn config_file(&self, at: u16) -> PathBuf {
        self.dir.join(node_name(at)).join("graven.toml")
    }

    /// What clients need.
    pub(crate) fn client_file(&self) -> PathBuf {
        self.dir.join("client.toml")
    }

    /// The process that runs this node now, if there is one.
    pub(crate) fn running(&self, at: u16) -> Option<i32> {
        let config = NodeConfig::load(self.config_file(at)).ok()?;
        running_pid(&config.pid_file())
    }
}

/// The process in a pid file, if it lives and is a graven.
fn running_pid(file: &Path) -> Option<i32> {
    let number: i32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    let alive = Pid::from_raw(number).is_some_and(|pid| test_kill_process(pid).is_ok());
    // A number is used again after a reboot: then it is some other program.
    let named = fs::read_to_string(format!("/proc/{number}/cmdline")).map_or(true, |line| line.contains("start"));
    (alive && named && !is_zombie(number)).then_some(number)
}

/// Ended, but nobody has asked for its exit status yet.
fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

impl Record {
    fn wanted(wish: &Wish) -> Record {
        Record {
            version: 1,
            nodes: wish.nodes.unwrap_or(DEFAULT_NODES),
            base_port: wish.base_port.unwrap_or(DEFAULT_BASE_PORT),
            complete: false,
        }
    }

    fn read(dir: &Path) -> CliResult<Record> {
        let path = dir.join(RECORD_FILE);
        let text = fs::read_to_string(&path).map_err(|error| cannot("read", &path, &error))?;
        // An empty file is one whose writer lost power: nothing was made yet.
        if text.trim().is_empty() {
            return Ok(Record { version: 1, nodes: DEFAULT_NODES, base_port: DEFAULT_BASE_PORT, complete: false });
        }
        let wrong = |why: String| Failure::config(format!("{}: {why}; choose another --dir", path.display()));
        let record: Record = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if record.version != 1 {
            return Err(wrong(format!("made by a graven with version {} of this file", record.version)));
        }
        Ok(record)
    }

    fn write(&self, dir: &Path) -> CliResult {
        let path = dir.join(RECORD_FILE);
        let fresh = dir.join(format!("{RECORD_FILE}.new"));
        let text = serde_json::to_string(self).map_err(|error| Failure::internal(error.to_string()))?;
        let write = || -> io::Result<()> {
            let mut file = File::create(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|error| cannot("write", &path, &error))
    }

    fn check(&self) -> CliResult {
        let last = u32::from(self.base_port) + u32::from(PORT_STEP) * u32::from(self.nodes.saturating_sub(1)) + 2;
        if self.base_port == 0 || last > u32::from(u16::MAX) {
            return Err(Failure::usage(format!(
                "--base-port {} leaves no room for the ports of {} nodes",
                self.base_port, self.nodes
            )));
        }
        Ok(())
    }

    fn new_nodes(&self) -> CliResult<Vec<NewNode>> {
        let node = |at| NewNode::at(&node_name(at), &format!("127.0.0.1:{}", self.port(at)));
        (0..self.nodes).map(node).collect::<Result<_, _>>().map_err(Failure::usage)
    }

    /// The first port of a node.
    pub(crate) fn port(&self, at: u16) -> u16 {
        self.base_port + PORT_STEP * at
    }

    /// Refuses ports that something else holds, for the nodes that will be started.
    pub(crate) fn check_ports(&self, starts: impl Fn(u16) -> bool) -> CliResult {
        for at in (0..self.nodes).filter(|at| starts(*at)) {
            for port in [self.port(at), self.port(at) + 1] {
                if let Err(error) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) {
                    let message = format!(
                        "port {port} (UDP, for {}) is not free: {error}; choose others with --base-port",
                        node_name(at)
                    );
                    return Err(Failure::usage(message).with("port", port));
                }
            }
        }
        Ok(())
    }
}

/// The name of the node at this position, from 0.
pub(crate) fn node_name(at: u16) -> String {
    format!("n{}", at + 1)
}

fn entries(dir: &Path) -> CliResult<Vec<String>> {
    let list = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        list => list.map_err(|error| cannot("use", dir, &error))?,
    };
    list.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(|error| cannot("use", dir, &error))
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot {what} {}: {error}", path.display()))
}
