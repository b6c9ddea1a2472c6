//! Snapshots between clients and nodes: uploads that are not what they say or stop, and clients that want everything.
#![cfg(feature = "peer")]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code, reason = "tests")]

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::Cluster;
use graven_net::client::{ErrorCode, Outcome};
use graven_net::planted::{self, Bug};
use graven_net::protocol::snapshot::CHUNK_BYTES;
use graven_net::tls::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

mod fake;

/// Longer than any of these takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until the leader holds no upload.
async fn nothing_is_held(cluster: &Cluster) {
    let until = Instant::now() + PATIENCE;
    while cluster.faults("n1").uploads.load(Ordering::SeqCst) > 0 {
        assert!(Instant::now() < until, "an upload is held");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

// On one thread: the bug planted here is seen by the client's tasks.
#[tokio::test]
async fn an_upload_with_a_wrong_digest_is_refused_and_nothing_is_kept() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let body = vec![7; CHUNK_BYTES + 3];
    let taken = client.put_snapshot("a", 0, &body[..]).await.expect("it is what it says");
    assert_eq!(taken.bytes, body.len() as u64);
    planted::plant(Some(Bug::DigestWrong));
    let refused = client.put_snapshot("a", 0, &body[..]).await;
    planted::plant(None);
    let refused = refused.expect_err("another digest");
    assert_eq!((refused.code(), refused.outcome()), (ErrorCode::Damaged, Outcome::Refused), "{refused}");
    nothing_is_held(&cluster).await;
    client.put_snapshot("a", 0, &body[..]).await.expect("the next one is taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_stops_half_way_for_ever_is_given_up() {
    let cluster = Cluster::tuned(1, |config| config.upload_idle = Duration::from_millis(300)).await;
    let client = cluster.client().await;
    // A chunk and a half, and then nothing, with the pipe open.
    let (mut source, pipe) = tokio::io::duplex(CHUNK_BYTES * 2);
    source.write_all(&vec![7; CHUNK_BYTES * 3 / 2]).await.unwrap();
    let refused = tokio::time::timeout(PATIENCE, client.put_snapshot("a", 0, pipe)).await.expect("it ends");
    let refused = refused.expect_err("it never came");
    assert_eq!((refused.code(), refused.outcome()), (ErrorCode::Timeout, Outcome::Refused), "{refused}");
    assert!(refused.to_string().contains("put it again"), "{refused}");
    nothing_is_held(&cluster).await;
    drop(source);
    client.put_snapshot("a", 0, &b"whole"[..]).await.expect("the next one is taken");
}

/// Three quarters of the places are the most that one client has, however many connections; others get theirs.
#[tokio::test(flavor = "multi_thread")]
async fn one_client_does_not_take_all_downloads() {
    let cluster = Cluster::start(1).await;
    let mut config = cluster.config("greedy", Role::Read);
    config.timeout = Duration::from_millis(500);
    let mut held = Vec::new();
    let refused = loop {
        let client = cluster.connect(config.clone()).await.unwrap();
        match client.get_snapshot("a").await {
            Ok((info, mut reader)) => {
                // It is on its way, and nobody reads more of it.
                reader.read_exact(&mut [0; 10]).await.unwrap();
                assert!(info.bytes > 0);
                held.push((client, reader));
            }
            Err(refused) => break refused,
        }
        assert!(held.len() < 16, "one client has all of them");
    };
    assert_eq!(held.len(), 12, "{refused}");
    assert_eq!(refused.code(), ErrorCode::Unavailable, "{refused}");
    assert!(refused.to_string().contains("greedy"), "{refused}");
    let (_, mut reader) = cluster.client().await.get_snapshot("a").await.expect("others are served");
    reader.read_exact(&mut [0; 10]).await.unwrap();
    held.pop();
    let until = Instant::now() + PATIENCE;
    while let Err(refused) = cluster.connect(config.clone()).await.unwrap().get_snapshot("a").await {
        assert!(Instant::now() < until, "its share is not given back: {refused}");
    }
}
