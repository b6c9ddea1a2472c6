//! Nodes of different versions: the level of the cluster, and directories of a newer format.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use graven::config::NodeConfig;
use graven::init::{NewCluster, NewNode, Setting};
use graven::node::StartError;
use graven::{ApplyError, Client, ClientConfig, Node, Record, StateMachine, WriteSnapshot};

use crate::common::{Dev, PATIENCE, free_base_port, run};

/// A state machine that is of no interest.
#[derive(Debug)]
struct Nothing;

impl WriteSnapshot for Nothing {
    fn write(self, _out: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }
}

impl StateMachine for Nothing {
    type Response = ();
    type Snapshot = Nothing;

    fn apply(&mut self, batch: &[Record], out: &mut Vec<()>) -> Result<(), ApplyError> {
        out.extend(batch.iter().map(|_| ()));
        Ok(())
    }

    fn snapshot(&mut self) -> Nothing {
        Nothing
    }

    fn restore(_reader: &mut dyn io::Read) -> io::Result<Nothing> {
        Ok(Nothing)
    }
}

async fn start(file: &Path, feature_level: u32) -> Result<Node<Nothing>, StartError> {
    let mut config = NodeConfig::load(file).expect("made by init");
    config.feature_level = feature_level;
    Node::start(config, Nothing).await
}

/// Three nodes' configurations, and the client's file.
fn cluster(dir: &Path) -> (Vec<PathBuf>, PathBuf) {
    let base = free_base_port(3);
    let node = |number: u16| NewNode::parse(&format!("n{number}=127.0.0.1:{}", base + number * 10 - 10)).expect("good");
    let settings = vec![Setting::parse("wal.segment_bytes=1M").expect("good")];
    let new = NewCluster { dir: dir.to_owned(), nodes: (1..=3).map(node).collect(), settings };
    let made = new.create().expect("made");
    (made.node_files, made.client_file)
}

/// The level in force as each node has it.
async fn levels(client: &Client) -> Vec<Option<u32>> {
    client.status().await.nodes.iter().map(|node| node.feature_level).collect()
}

async fn wait_for_level(client: &Client, level: u32) {
    let reached = async {
        while levels(client).await != [Some(level); 3] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.expect("the level is in force everywhere");
}

#[test]
fn the_level_is_that_of_the_oldest_member_and_software_that_is_older_still_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (files, client_file) = cluster(dir.path());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let first = start(&files[0], 3).await.expect("starts");
        let second = start(&files[1], 3).await.expect("starts");
        let older = start(&files[2], 2).await.expect("starts");
        let client = Client::connect(ClientConfig::load(&client_file).expect("a file")).await.expect("connects");
        // All three are heard, and one of them knows level 2 only.
        client.append(["one"]).await.expect("appended");
        wait_for_level(&client, 2).await;
        let told = async {
            loop {
                let health = client.node_health("n1").await.expect("answers");
                let mut known: Vec<u32> = health.peers.iter().map(|peer| peer.feature_level).collect();
                known.sort_unstable();
                if known == [2, 3] {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.expect("n1 knows what both others announced");
        client.append(["two"]).await.expect("appended");
        assert_eq!(levels(&client).await, [Some(2); 3], "the oldest member keeps the level down");

        // It is upgraded: the level goes up by itself, and stays up while members are away.
        older.shutdown().await;
        let newer = start(&files[2], 4).await.expect("starts");
        wait_for_level(&client, 3).await;
        client.append(["three"]).await.expect("appended");
        newer.shutdown().await;
        match start(&files[2], 2).await {
            Err(error @ StartError::FeatureLevel { in_force: 3, known: 2 }) => {
                assert!(error.to_string().contains("start a newer graven"), "{error}");
            }
            other => panic!("software that does not know level 3 is refused: {other:?}"),
        }
        let again = start(&files[2], 3).await.expect("starts");
        wait_for_level(&client, 3).await;
        for node in [again, second, first] {
            node.shutdown().await;
        }
    });
}

/// Gives a segment's opening another version, with the checksum that belongs to it.
fn set_version(segment: &Path, version: u32) {
    let mut bytes = std::fs::read(segment).expect("a segment");
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32(&bytes[..4092]);
    bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(segment, bytes).expect("written");
}

/// CRC-32 as in FORMAT.md, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[test]
fn a_directory_of_a_newer_format_is_refused_with_both_versions_and_left_alone() {
    let dev = Dev::start(1, &[]);
    dev.run_with(&["append"], b"record\n").expect(0);
    dev.kill("n1");
    let segment = dev.dir.join("n1/data/0000000000000001.seg");
    set_version(&segment, 7);
    let before = std::fs::read(&segment).expect("a segment");
    let config = dev.config("n1");
    let config = config.to_str().expect("UTF-8");
    let refused = run(["start", "--config", config]).expect(2);
    assert!(refused.stderr.contains("format version 7") && refused.stderr.contains("reads is 1"), "{}", refused.stderr);
    let data = dev.dir.join("n1/data");
    let verified = run(["wal", "verify", data.to_str().expect("UTF-8")]);
    assert!(verified.code() == 2 && verified.stderr.contains("format version 7"), "{verified:?}");
    assert!(std::fs::read(&segment).expect("a segment") == before, "not a byte was changed");
    set_version(&segment, 1);
    let mut dev = dev;
    dev.start_node("n1");
    assert_eq!(dev.run(&["read"]).expect(0).stdout, b"record\n");
}
