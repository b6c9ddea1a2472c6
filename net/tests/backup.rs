//! Copying a log through the client library: nodes that are lost, damaged, or asked by the wrong people.
#![cfg(feature = "peer")]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]

use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::Cluster;
use graven_frame::Frame;
use graven_net::client::{BackupStream, Client, ErrorCode};
use graven_net::tls::Role;

mod fake;

/// Entries of the log, one record each.
const ENTRIES: usize = 50;

async fn filled(nodes: usize) -> (Cluster, Client) {
    let cluster = Cluster::start(nodes).await;
    let client = cluster.client().await;
    for number in 0..ENTRIES {
        client.append([format!("record {number}")]).await.unwrap();
    }
    (cluster, client)
}

/// Takes what is left.
async fn rest(stream: &mut BackupStream) -> Result<Vec<Frame>, ErrorCode> {
    let mut frames = Vec::new();
    while let Some(frame) = stream.next().await {
        frames.push(frame.map_err(|error| error.code())?);
    }
    assert!(stream.next().await.is_none(), "an end is an end");
    Ok(frames)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_stop_or_are_damaged_are_left_and_nothing_is_missing_or_doubled() {
    let (cluster, client) = filled(3).await;
    // Each gives a few entries at a time; one of them gives wrong bytes only.
    for name in ["n1", "n2"] {
        cluster.faults(name).backup_stops_after.store(7, Ordering::SeqCst);
    }
    cluster.faults("n3").corrupt.store(true, Ordering::SeqCst);
    let mut stream = client.backup(None).await.unwrap();
    let frames = rest(&mut stream).await.expect("two of three are whole");
    assert!(frames == cluster.world.lock().unwrap().frames);
    assert!(!stream.take_notices().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_meanwhile_is_not_in_it() {
    let (cluster, client) = filled(1).await;
    cluster.faults("n1").backup_stops_after.store(7, Ordering::SeqCst);
    let mut stream = client.backup(None).await.unwrap();
    client.append(["later"]).await.unwrap();
    assert_eq!(rest(&mut stream).await.expect("whole").len(), ENTRIES);
    assert_eq!(stream.head().next_offset, ENTRIES as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_has_only_damage_to_give_says_so_and_does_not_try_for_ever() {
    let (cluster, client) = filled(2).await;
    for name in ["n1", "n2"] {
        cluster.faults(name).corrupt.store(true, Ordering::SeqCst);
    }
    let mut stream = client.backup(None).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), rest(&mut stream)).await.expect("it gives up");
    assert_eq!(ended, Err(ErrorCode::Damaged));
    // A node that is named is the only one that is asked.
    let mut stream = client.backup(Some("n2")).await.unwrap();
    let before = cluster.faults("n1").backups_asked.load(Ordering::SeqCst);
    assert_eq!(rest(&mut stream).await, Err(ErrorCode::Damaged));
    assert_eq!(cluster.faults("n1").backups_asked.load(Ordering::SeqCst), before);
    assert_eq!(client.backup(Some("n9")).await.unwrap_err().code(), ErrorCode::Usage);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_gets_it() {
    let (cluster, _) = filled(1).await;
    for (name, role) in [("reader", Role::Read), ("writer", Role::Append)] {
        let client = cluster.connect(cluster.config(name, role)).await.unwrap();
        let error = client.backup(None).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Forbidden, "{error}");
    }
    assert_eq!(cluster.faults("n1").backups_asked.load(Ordering::SeqCst), 0, "the service never heard of them");
}
