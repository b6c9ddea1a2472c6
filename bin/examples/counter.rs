//! Three nodes in one process, over real QUIC, each with a state machine that adds up numbers.
//!
//! ```sh
//! cargo run --release --example counter
//! ```
//!
//! It proposes numbers, asks each node for a linearizable sum, stops all of them, starts them again from their logs, and
//! asks once more.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use graven::config::NodeConfig;
use graven::init::{NewCluster, NewNode};
use graven::node::{ApplyError, Node, StateMachine, WriteSnapshot};
use graven::{Consistency, Record};

#[derive(Default)]
struct Counter {
    sum: u64,
}

struct CounterSnapshot(u64);

impl WriteSnapshot for CounterSnapshot {
    fn write(self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(&self.0.to_le_bytes())
    }
}

impl StateMachine for Counter {
    type Response = u64;
    type Snapshot = CounterSnapshot;

    fn apply(&mut self, batch: &[Record], out: &mut Vec<u64>) -> Result<(), ApplyError> {
        for record in batch {
            // Whoever may append can append anything: what is no number counts for nothing, on every node alike.
            let number = std::str::from_utf8(&record.payload).ok().and_then(|text| text.parse::<u64>().ok());
            self.sum = self.sum.wrapping_add(number.unwrap_or(0));
            out.push(self.sum);
        }
        Ok(())
    }

    fn snapshot(&mut self) -> CounterSnapshot {
        CounterSnapshot(self.sum)
    }

    fn restore(reader: &mut dyn Read) -> std::io::Result<Counter> {
        let mut bytes = [0; 8];
        reader.read_exact(&mut bytes)?;
        Ok(Counter { sum: u64::from_le_bytes(bytes) })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("graven-counter-{}", std::process::id()));
    let result = run(&dir).await;
    std::fs::remove_dir_all(&dir)?;
    result
}

async fn run(dir: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let nodes = free_ports(3)?;
    let nodes = nodes.into_iter().zip(1..).map(|(port, n)| NewNode {
        name: format!("n{n}"),
        host: "127.0.0.1".to_owned(),
        port,
    });
    let created = NewCluster { dir: dir.to_owned(), nodes: nodes.collect(), settings: Vec::new() }.create()?;

    let nodes = start_all(&created.node_files).await?;
    let leader = leader_of(&nodes).await?;
    for number in 1..=100_u64 {
        let sum = leader.propose(number.to_string())?.await?;
        assert_eq!(sum, number * (number + 1) / 2);
    }
    for node in &nodes {
        let sum = node.query(Consistency::Linearizable, |counter| counter.sum).await?;
        println!("a node counts {sum}");
        assert_eq!(sum, 5050);
    }

    println!("stopping all nodes and starting them again from their logs");
    for node in nodes {
        node.shutdown().await;
    }
    let nodes = start_all(&created.node_files).await?;
    leader_of(&nodes).await?;
    for node in &nodes {
        let sum = node.query(Consistency::Linearizable, |counter| counter.sum).await?;
        println!("a node counts {sum}");
        assert_eq!(sum, 5050);
    }
    for node in nodes {
        node.shutdown().await;
    }
    Ok(())
}

async fn start_all(files: &[PathBuf]) -> Result<Vec<Node<Counter>>, Box<dyn std::error::Error>> {
    let mut nodes = Vec::new();
    for file in files {
        nodes.push(Node::start(NodeConfig::load(file)?, Counter::default()).await?);
    }
    Ok(nodes)
}

/// The node that leads, once there is one.
async fn leader_of(nodes: &[Node<Counter>]) -> Result<&Node<Counter>, Box<dyn std::error::Error>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        if let Some(node) = nodes.iter().find(|node| node.leads()) {
            return Ok(node);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err("no leader within 30 s".into())
}

/// Ports P with P and P+1 free: a node listens for peers on the first and for clients on the second.
fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let mut held = Vec::new();
    let mut ports = Vec::new();
    while ports.len() < count {
        let first = UdpSocket::bind("127.0.0.1:0")?;
        let port = first.local_addr()?.port();
        if let Some(next) = port.checked_add(1)
            && let Ok(second) = UdpSocket::bind(("127.0.0.1", next))
        {
            ports.push(port);
            held.push(second);
        }
        held.push(first);
    }
    Ok(ports)
}
