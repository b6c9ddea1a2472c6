//! Embedded nodes whose state machines are saved: the log goes, restarts are short, and whoever was away is given a state.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use graven::config::NodeConfig;
use graven::init::{NewCluster, NewNode, Setting};
use graven::{ApplyError, Consistency, Node, Record, StateMachine, WriteSnapshot};

use crate::common::{PATIENCE, free_base_port};

/// Remembers how many records there were and what they were, and how many of them this life of it was given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ledger {
    records: u64,
    sum: u64,
    applied_here: u64,
}

impl WriteSnapshot for Ledger {
    fn write(self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.records.to_le_bytes())?;
        out.write_all(&self.sum.to_le_bytes())
    }
}

impl StateMachine for Ledger {
    type Response = u64;
    type Snapshot = Ledger;

    fn apply(&mut self, batch: &[Record], out: &mut Vec<u64>) -> Result<(), ApplyError> {
        for record in batch {
            if record.offset != self.records {
                return Err(ApplyError(format!("offset {} after {} records", record.offset, self.records)));
            }
            self.records += 1;
            self.applied_here += 1;
            // Order counts: the same records in another order have another sum.
            self.sum =
                record.payload.iter().fold(self.sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            out.push(self.records);
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Ledger {
        *self
    }

    fn restore(reader: &mut dyn Read) -> io::Result<Ledger> {
        let mut word = || {
            let mut bytes = [0; 8];
            reader.read_exact(&mut bytes).map(|()| u64::from_le_bytes(bytes))
        };
        Ok(Ledger { records: word()?, sum: word()?, applied_here: 0 })
    }
}

/// The configurations of a cluster with small segments and frequent snapshots.
fn cluster(dir: &Path, nodes: u16) -> Vec<PathBuf> {
    let base = free_base_port(nodes);
    let node = |number: u16| NewNode::parse(&format!("n{number}=127.0.0.1:{}", base + number * 10 - 10)).expect("good");
    let setting = |text: &str| Setting::parse(text).expect("good");
    let settings = vec![setting("wal.segment_bytes=64K"), setting("snapshot.bytes=64K")];
    NewCluster { dir: dir.to_owned(), nodes: (1..=nodes).map(node).collect(), settings }
        .create()
        .expect("made")
        .node_files
}

async fn start(file: &Path) -> Node<Ledger> {
    Node::start(NodeConfig::load(file).expect("made by init"), Ledger::default()).await.expect("starts")
}

async fn start_all(files: &[PathBuf]) -> Vec<Node<Ledger>> {
    let mut nodes = Vec::new();
    for file in files {
        nodes.push(start(file).await);
    }
    nodes
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("it never came that {what}"));
}

/// Proposes records of 200 bytes at whoever leads, `count` of them, several at a time.
async fn propose(nodes: &[Node<Ledger>], count: usize) {
    until("a node leads", || nodes.iter().any(Node::leads)).await;
    let mut done = 0;
    while done < count {
        let Some(leader) = nodes.iter().find(|node| node.leads()) else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let batch: Vec<_> =
            (done..count.min(done + 50)).filter_map(|number| leader.propose(format!("{number:0200}")).ok()).collect();
        for proposal in batch {
            done += usize::from(proposal.await.is_ok());
        }
    }
}

async fn ledger(node: &Node<Ledger>) -> Ledger {
    until("somebody leads", || node.leader().is_some()).await;
    node.query(Consistency::Linearizable, |ledger| *ledger).await.expect("a leader confirms it")
}

fn states_in(config: &Path) -> Vec<PathBuf> {
    let dir = NodeConfig::load(config).expect("made by init").data_dir;
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    let mut states: Vec<_> = entries
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("state-")))
        .collect();
    states.sort();
    states
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

#[test]
fn a_restart_goes_on_from_the_newest_snapshot_and_the_log_before_it_is_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = cluster(dir.path(), 3);
    runtime().block_on(async {
        let nodes = start_all(&files).await;
        propose(&nodes, 4000).await;
        until("all let go of their first records", || nodes.iter().all(|node| node.status().first_offset > 1000)).await;
        let before = ledger(&nodes[0]).await;
        assert!(before.records >= 4000, "{before:?}");
        for node in nodes {
            node.shutdown().await;
        }
        for file in &files {
            let kept = states_in(file).len();
            assert!((1..=2).contains(&kept), "{kept} snapshots are kept");
        }
        let nodes = start_all(&files).await;
        for node in &nodes {
            let after = ledger(node).await;
            assert_eq!((after.records, after.sum), (before.records, before.sum));
            assert!(after.applied_here < before.records / 2, "only the tail was applied again: {after:?}");
        }
        propose(&nodes, 10).await;
        for node in nodes {
            node.shutdown().await;
        }
    });
}

#[test]
fn a_damaged_snapshot_is_kept_aside_and_the_one_before_it_used() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = cluster(dir.path(), 1);
    runtime().block_on(async {
        let nodes = start_all(&files).await;
        propose(&nodes, 3000).await;
        until("two snapshots are kept", || states_in(&files[0]).len() == 2).await;
        let before = ledger(&nodes[0]).await;
        for node in nodes {
            node.shutdown().await;
        }
        let states = states_in(&files[0]);
        let newest = states.last().expect("a snapshot");
        let mut bytes = std::fs::read(newest).expect("a file");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(newest, bytes).expect("written");
        let nodes = start_all(&files).await;
        let after = ledger(&nodes[0]).await;
        assert_eq!((after.records, after.sum), (before.records, before.sum));
        let aside = newest.with_file_name(format!("{}.damaged", newest.file_name().expect("a name").to_string_lossy()));
        assert!(aside.exists(), "{} is kept", aside.display());
        for node in nodes {
            node.shutdown().await;
        }
    });
}

#[test]
fn a_node_that_was_away_for_long_is_given_a_state_and_the_tail() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = cluster(dir.path(), 3);
    runtime().block_on(async {
        let mut nodes = start_all(&files).await;
        propose(&nodes, 100).await;
        let away = nodes.pop().expect("three");
        let name = format!("n{}", files.len());
        away.shutdown().await;
        propose(&nodes, 5000).await;
        until("the others let go of what it lacks", || nodes.iter().all(|node| node.status().first_offset > 2000))
            .await;
        let back = start(&files[2]).await;
        let all = ledger(&nodes[0]).await;
        let there = ledger(&back).await;
        assert_eq!((there.records, there.sum), (all.records, all.sum), "{name} has what the others have");
        assert!(there.applied_here < 3000, "most came with a state: {there:?}");
        assert_eq!(states_in(&files[2]).len(), 1, "it is its own snapshot now");
        nodes.push(back);
        propose(&nodes, 500).await;
        for node in nodes {
            node.shutdown().await;
        }
    });
}
