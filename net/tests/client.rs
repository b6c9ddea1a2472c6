//! The client library against real listeners with a fake cluster behind them.
#![cfg(feature = "peer")]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::Cluster;
use graven_net::client::{
    AppendOptions, Batch, Client, ClientConfig, Consistency, ErrorCode, Item, NodeRole, Outcome, Start,
    SubscribeOptions, Subscription,
};
use graven_net::protocol::{ALPN, CLOSE_PROTOCOL, Hello, StreamKind};
use graven_net::tls::{Authority, Role, TlsFiles, TlsIdentity, server_name};
use graven_net::wire;

mod fake;

/// Reads records until `count` are there; fails on a gap or a repetition.
async fn read(stream: &mut Subscription, count: usize) -> Vec<String> {
    let mut payloads = Vec::new();
    let mut next = None;
    while payloads.len() < count {
        match stream.next().await.expect("the subscription goes on").expect("no error") {
            Item::Records(records) => {
                for record in &records {
                    assert_eq!(*next.get_or_insert(record.offset), record.offset, "exactly once, in order");
                    next = Some(record.offset + 1);
                    payloads.push(String::from_utf8(record.payload.to_vec()).unwrap());
                }
            }
            Item::Progress { .. } | Item::CaughtUp { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    payloads
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("r{number}")).collect()
}

/// An election that takes its time.
fn elect_later(cluster: &Cluster, leader: &'static str) {
    let world = cluster.world.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(80)).await;
        fake::elect(&world, Some(leader));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_acknowledgements_come_in_order() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let (mut sender, mut acks) = client.appender().await.unwrap().split();
    let sending = tokio::spawn(async move {
        for pair in numbered(2000).chunks(2) {
            sender.send(pair).await.unwrap();
            assert!(sender.in_flight() <= 256);
        }
    });
    let mut next = 0;
    while let Some(ack) = acks.next().await {
        let ack = ack.unwrap();
        assert_eq!((ack.first, ack.last, ack.records), (next, next + 1, 2));
        next += 2;
    }
    sending.await.unwrap();
    assert_eq!(next, 2000);
    assert_eq!(cluster.stored(), numbered(2000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_of_many_tasks_are_stored_in_call_order_under_one_session() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let calls: Vec<_> = numbered(600)
        .into_iter()
        .map(|record| {
            let client = client.clone();
            Box::pin(async move { client.append([record]).await.unwrap().first })
        })
        .collect();
    let firsts = futures_util::future::join_all(calls).await;
    assert_eq!(firsts, (0..600).collect::<Vec<u64>>());
    assert_eq!(cluster.stored(), numbered(600));
    assert_eq!(cluster.world.lock().unwrap().opened, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_moves_in_mid_stream_doubles_nothing_and_loses_nothing() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let mut appender = client.appender().await.unwrap();
    let records = numbered(3000);
    for (number, record) in records.iter().enumerate() {
        match number {
            // The old leader stores, and its answers are lost.
            500 => {
                cluster.faults("n1").lose_acks.store(true, Ordering::SeqCst);
                elect_later(&cluster, "n2");
            }
            // Nobody leads for a while; meanwhile the window fills.
            1200 => {
                cluster.elect(None);
                elect_later(&cluster, "n3");
            }
            // The leader dies.
            2000 => {
                cluster.kill("n3");
                elect_later(&cluster, "n2");
            }
            // The leader goes down in order.
            2500 => {
                cluster.elect(Some("n1"));
                cluster.faults("n1").lose_acks.store(false, Ordering::SeqCst);
                cluster.stop("n2").await;
            }
            _ => {}
        }
        appender.send([record]).await.unwrap();
    }
    let last = appender.finish().await.unwrap().unwrap();
    assert_eq!(last.last, 2999);
    assert_eq!(cluster.stored(), records);
    assert!(cluster.world.lock().unwrap().duplicates > 0, "something was sent again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append_to_a_silent_leader_of_the_past_moves_on_before_the_timeout() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.append(["first"]).await.unwrap();
    cluster.faults("n1").deaf.store(true, Ordering::SeqCst);
    let append = tokio::spawn({
        let client = client.clone();
        async move { client.append(["second"]).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let elected = Instant::now();
    cluster.elect(Some("n2"));
    assert_eq!(append.await.unwrap().unwrap().first, 1);
    assert!(elected.elapsed() < Duration::from_secs(2), "{:?}", elected.elapsed());
    assert_eq!(cluster.stored(), ["first", "second"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscription_resumes_after_its_server_is_killed_and_restarted() {
    let mut cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let records = numbered(900);
    client.append(&records[..300]).await.unwrap();
    let mut stream = client.subscribe(Start::Beginning).await.unwrap();
    let mut seen = read(&mut stream, 100).await;
    cluster.kill("n1");
    cluster.restart("n1").await;
    client.append(&records[300..600]).await.unwrap();
    seen.extend(read(&mut stream, 600 - seen.len()).await);
    cluster.stop("n1").await;
    cluster.restart("n1").await;
    client.append(&records[600..]).await.unwrap();
    seen.extend(read(&mut stream, 900 - seen.len()).await);
    assert_eq!(seen, records);
    let notices = stream.take_notices();
    assert!(notices.iter().any(|notice| notice.contains("went on at offset 600")), "{notices:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscription_goes_on_at_another_node() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.append(["a", "b"]).await.unwrap();
    let mut stream = client.subscribe(Start::Offset(1)).await.unwrap();
    assert_eq!(read(&mut stream, 1).await, ["b"]);
    cluster.kill("n1");
    cluster.elect(Some("n2"));
    client.append(["c"]).await.unwrap();
    assert_eq!(read(&mut stream, 1).await, ["c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pinned_subscription_waits_for_its_node_and_gives_up_in_time() {
    let mut cluster = Cluster::start(2).await;
    let mut config = cluster.config("pinned", Role::Append);
    config.timeout = Duration::from_millis(800);
    let client = cluster.connect(config).await.unwrap();
    client.append(["a"]).await.unwrap();
    let mut options = SubscribeOptions::new(Start::Beginning);
    options.node = Some("n2".to_owned());
    let mut stream = client.subscribe_with(options.clone()).await.unwrap();
    assert_eq!(read(&mut stream, 1).await, ["a"]);
    cluster.kill("n2");
    let failure = loop {
        match stream.next().await.unwrap() {
            Ok(Item::CaughtUp { .. } | Item::Progress { .. }) => {}
            Ok(other) => panic!("unexpected {other:?}"),
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.code(), ErrorCode::Unavailable);
    assert!(stream.next().await.is_none());
    options.node = Some("n9".to_owned());
    assert_eq!(client.subscribe_with(options).await.unwrap_err().code(), ErrorCode::Usage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrupted_frame_is_an_error_and_no_data() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    client.append(["precious"]).await.unwrap();
    cluster.faults("n1").corrupt.store(true, Ordering::SeqCst);
    let mut stream = client.subscribe(Start::Beginning).await.unwrap();
    let failure = stream.next().await.unwrap().unwrap_err();
    assert_eq!(failure.code(), ErrorCode::Damaged);
    assert!(stream.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frame_left_out_by_a_node_is_an_error() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    for record in numbered(3) {
        client.append([record]).await.unwrap();
    }
    cluster.faults("n1").skip_frame.store(true, Ordering::SeqCst);
    let mut stream = client.subscribe(Start::Beginning).await.unwrap();
    let failure = stream.next().await.unwrap().unwrap_err();
    assert_eq!((failure.code(), failure.failure().number("next_offset")), (ErrorCode::Damaged, Some(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscription_gives_exactly_the_range_asked_for() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    client.append(numbered(10)).await.unwrap();
    for (start, from) in [(Start::Offset(3), 3), (Start::Last(7), 3), (Start::Time(1003), 3), (Start::Beginning, 0)] {
        let mut options = SubscribeOptions::new(start);
        options.until = Some(6);
        let mut stream = client.subscribe_with(options).await.unwrap();
        assert_eq!(stream.from(), from);
        let mut offsets = Vec::new();
        while let Some(item) = stream.next().await {
            if let Item::Records(records) = item.unwrap() {
                assert_eq!(records.len(), records.iter().count());
                offsets.extend(records.iter().map(|record| record.offset));
            }
        }
        assert_eq!(offsets, (from..6).collect::<Vec<_>>());
    }
    let beyond = client.subscribe(Start::Offset(11)).await.unwrap_err();
    assert_eq!((beyond.code(), beyond.failure().number("next_offset")), (ErrorCode::OutOfRange, Some(10)));
    let mut at_end = client.subscribe(Start::Offset(10)).await.unwrap();
    assert!(matches!(at_end.next().await, Some(Ok(Item::CaughtUp { next_offset: 10 }))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trimmed_range_is_an_item_or_an_error_and_never_silence() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    client.append(numbered(10)).await.unwrap();
    cluster.world.lock().unwrap().first_offset = 4;
    let failure = client.subscribe(Start::Offset(2)).await.unwrap_err();
    assert_eq!((failure.code(), failure.failure().number("first_offset")), (ErrorCode::Trimmed, Some(4)));
    let mut options = SubscribeOptions::new(Start::Offset(2));
    options.skip_trimmed = true;
    let mut stream = client.subscribe_with(options).await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(Item::Trimmed { from: 2, to: 4 }))));
    assert_eq!(read(&mut stream, 6).await, numbered(10)[4..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn next_that_is_cancelled_loses_nothing() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let mut stream = client.subscribe(Start::Beginning).await.unwrap();
    let writer = tokio::spawn({
        let client = client.clone();
        async move {
            for record in numbered(500) {
                client.append([record]).await.unwrap();
            }
        }
    });
    let (mut seen, mut cancelled) = (Vec::new(), 0);
    while seen.len() < 500 {
        // Whatever is not there at the first look is given up: each record takes a round trip, so that is nearly every look.
        let item = tokio::select! {
            biased;
            item = stream.next() => item,
            () = std::future::ready(()) => {
                cancelled += 1;
                tokio::time::sleep(Duration::from_micros(50)).await;
                continue;
            }
        };
        if let Item::Records(records) = item.unwrap().unwrap() {
            seen.extend(records.iter().map(|record| String::from_utf8(record.payload.to_vec()).unwrap()));
        }
    }
    writer.await.unwrap();
    assert_eq!(seen, numbered(500));
    assert!(cancelled > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_allow_what_the_table_says() {
    let cluster = Cluster::start(1).await;
    let reader = cluster.connect(cluster.config("reader", Role::Read)).await.unwrap();
    let writer = cluster.connect(cluster.config("writer", Role::Append)).await.unwrap();
    let admin = cluster.connect(cluster.config("admin", Role::Admin)).await.unwrap();
    let refused = reader.append(["no"]).await.unwrap_err();
    assert_eq!((refused.code(), refused.outcome()), (ErrorCode::Forbidden, Outcome::Refused));
    writer.append(["yes"]).await.unwrap();
    for client in [&reader, &writer] {
        assert_eq!(client.transfer("n1").await.unwrap_err().code(), ErrorCode::Forbidden);
    }
    admin.transfer("n1").await.unwrap();
    for client in [&reader, &writer, &admin] {
        assert_eq!(client.bounds(Consistency::Linearizable, None).await.unwrap().next_offset, 1);
        assert_eq!(read(&mut client.subscribe(Start::Beginning).await.unwrap(), 1).await, ["yes"]);
    }
    assert_eq!(cluster.stored(), ["yes"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_that_cannot_be_sent_is_refused_before_sending() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let refused = client.append([vec![0; 10], vec![0; (1 << 20) + 1]]).await.unwrap_err();
    assert_eq!((refused.code(), refused.outcome()), (ErrorCode::TooLarge, Outcome::Refused));
    assert_eq!(refused.failure().number("position"), Some(1));
    assert_eq!(client.append(Batch::new()).await.unwrap_err().code(), ErrorCode::Usage);
    let mut appender = client.appender().await.unwrap();
    assert_eq!(appender.send([vec![0; 2 << 20]]).await.unwrap_err().code(), ErrorCode::TooLarge);
    appender.send(["fine"]).await.unwrap();
    appender.finish().await.unwrap();
    assert_eq!(cluster.stored(), ["fine"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeout_tells_whether_the_append_may_have_happened() {
    let cluster = Cluster::start(2).await;
    let mut config = cluster.config("hasty", Role::Append);
    config.timeout = Duration::from_millis(500);
    let client = cluster.connect(config).await.unwrap();
    client.append(["first"]).await.unwrap();
    // Nobody leads: every node says so, none takes it.
    cluster.elect(None);
    let refused = client.append(["never"]).await.unwrap_err();
    assert_eq!((refused.code(), refused.outcome()), (ErrorCode::Unavailable, Outcome::Refused));
    cluster.elect(Some("n1"));
    // The leader stores it and says nothing.
    cluster.faults("n1").lose_acks.store(true, Ordering::SeqCst);
    let unknown = client.append(["perhaps"]).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.outcome()), (ErrorCode::Timeout, Outcome::Unknown));
    cluster.faults("n1").lose_acks.store(false, Ordering::SeqCst);
    client.append(["last"]).await.unwrap();
    assert_eq!(cluster.stored(), ["first", "perhaps", "last"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_session_is_renewed_when_nothing_was_in_doubt_and_told_when_it_was() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let mut appender = client.appender().await.unwrap();
    appender.send(["a"]).await.unwrap();
    assert_eq!(appender.next_ack().await.unwrap().unwrap().first, 0);
    client.append(["b"]).await.unwrap();
    cluster.world.lock().unwrap().sessions.clear();
    // A plain append goes on under a new session; an appender's user must know that its session is gone.
    assert_eq!(client.append(["c"]).await.unwrap().first, 2);
    appender.send(["d"]).await.unwrap();
    let expired = appender.next_ack().await.unwrap().unwrap_err();
    assert_eq!((expired.code(), expired.outcome()), (ErrorCode::SessionExpired, Outcome::Refused));
    assert!(appender.next_ack().await.is_none());
    assert_eq!(appender.send(["e"]).await.unwrap_err().code(), ErrorCode::SessionExpired);
    assert_eq!(cluster.stored(), ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflict_names_the_next_offset_and_leaves_the_client_usable() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let expect = |offset| AppendOptions { expect: Some(offset), ..AppendOptions::default() };
    assert_eq!(client.append_with(["a"], expect(0)).await.unwrap().first, 0);
    let conflict = client.append_with(["b"], expect(0)).await.unwrap_err();
    assert_eq!((conflict.code(), conflict.outcome()), (ErrorCode::Conflict, Outcome::Refused));
    assert_eq!(conflict.failure().number("next_offset"), Some(1));
    assert_eq!(client.append_with(["c"], expect(1)).await.unwrap().first, 1);
    client.append(["d"]).await.unwrap();
    assert_eq!(cluster.stored(), ["a", "c", "d"]);
    assert_eq!(cluster.world.lock().unwrap().opened, 2, "a conflict costs no session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_behind_a_refused_one_are_refused_too() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let mut appender = client.appender().await.unwrap();
    appender.send(["a"]).await.unwrap();
    appender.send_with(["b"], AppendOptions { expect: Some(9), fence: None }).await.unwrap();
    let _ = appender.send(["c"]).await;
    assert_eq!(appender.next_ack().await.unwrap().unwrap().first, 0);
    assert_eq!(appender.next_ack().await.unwrap().unwrap_err().code(), ErrorCode::Conflict);
    assert_eq!(appender.finish().await.unwrap_err().code(), ErrorCode::Conflict);
    assert_eq!(cluster.stored(), ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_that_is_busy_bounds_what_the_server_holds() {
    let cluster = Cluster::start(1).await;
    let mut config = cluster.config("bulk", Role::Append);
    config.window_bytes = 64 << 20;
    let client = cluster.connect(config).await.unwrap();
    let mut appender = client.appender().await.unwrap();
    cluster.faults("n1").busy.store(true, Ordering::SeqCst);
    for _ in 0..40 {
        appender.send([vec![7; 1 << 20]]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    let held = cluster.server("n1").stats().unanswered_bytes;
    assert!(held < 3 << 20, "one group is offered, and no other is read: {held}");
    cluster.faults("n1").busy.store(false, Ordering::SeqCst);
    cluster.faults("n1").not_busy.notify_one();
    assert_eq!(appender.finish().await.unwrap().unwrap().last, 39);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_reader_does_not_grow_the_server() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let mut appender = client.appender().await.unwrap();
    for number in 0..48u8 {
        appender.send([vec![number; 1 << 20]]).await.unwrap();
    }
    appender.finish().await.unwrap();
    let mut stream = client.subscribe(Start::Beginning).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let given = cluster.faults("n1").frames_given.load(Ordering::SeqCst);
    assert!(given <= 12, "window of the client, of QUIC, and one in hand: {given} MiB");
    let mut offsets = 0;
    while offsets < 48 {
        if let Item::Records(records) = stream.next().await.unwrap().unwrap() {
            for record in &records {
                assert!(record.offset == offsets && record.payload.iter().all(|byte| u64::from(*byte) == offsets));
                offsets += 1;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_certificates_are_unauthenticated_at_once() {
    let cluster = Cluster::start(2).await;
    let stranger = Authority::create(fake::CLUSTER).unwrap();
    let (certificate, key) = (cluster.path("stranger.crt"), cluster.path("stranger.key"));
    stranger.issue_client("stranger", Role::Admin).unwrap().save(&certificate, &key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    stranger.save(dir.path()).unwrap();
    let config = cluster.config("native", Role::Admin);
    // Their authority is not ours: we refuse them. Both authorities are known to us: they refuse us.
    let both = dir.path().join("both.crt");
    let ours = std::fs::read_to_string(cluster.path("ca.crt")).unwrap();
    std::fs::write(&both, ours + stranger.certificate_pem()).unwrap();
    for ca in [dir.path().join("ca.crt"), both] {
        let config = ClientConfig::new(config.endpoints.clone(), ca, certificate.clone(), key.clone());
        let begun = Instant::now();
        let refused = Client::connect(config).await.unwrap_err();
        assert_eq!((refused.code(), refused.outcome()), (ErrorCode::Unauthenticated, Outcome::Refused), "{refused}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
}

/// A certificate is refused where n1 is expected and n2 answers.
async fn cluster_with_a_refused_leader(told: &str) -> (Cluster, Client) {
    let cluster = Cluster::start(3).await;
    cluster.misdirect("n1", told);
    cluster.elect(Some("n1"));
    let mut config = cluster.config("misled", Role::Admin);
    config.endpoints.insert("n1".to_owned(), cluster.nodes["n2"].2.to_string());
    config.timeout = Duration::from_secs(20);
    let client = cluster.connect(config).await.unwrap();
    (cluster, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_whose_certificate_is_refused_ends_an_append_before_the_timeout() {
    let (cluster, client) = cluster_with_a_refused_leader("n2").await;
    let begun = Instant::now();
    let refused = client.append(["x"]).await.unwrap_err();
    assert_eq!((refused.code(), refused.outcome()), (ErrorCode::Unauthenticated, Outcome::Refused), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let said = refused.to_string();
    assert!(said.starts_with("n1 leads and cannot be used: ") && said.contains("another one was expected"), "{said}");
    assert!(!said.contains("Other"), "{said}");
    // What any node can do goes on.
    client.bounds(Consistency::Local, None).await.unwrap();
    cluster.elect(Some("n3"));
    while client.leader().as_deref() != Some("n3") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.append(["y"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append_waits_for_the_successor_of_a_refused_leader() {
    let (cluster, client) = cluster_with_a_refused_leader("n2").await;
    elect_later(&cluster, "n3");
    client.append(["x"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_refused_at_one_address_is_used_at_another() {
    let (cluster, client) = cluster_with_a_refused_leader("n1").await;
    client.append(["x"]).await.unwrap();
    assert_eq!(cluster.stored(), ["x"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_know_no_leader_are_named_beside_dead_ones() {
    let mut cluster = Cluster::start(2).await;
    cluster.elect(None);
    cluster.kill("n1");
    let mut config = cluster.config("orphan", Role::Admin);
    config.timeout = Duration::from_secs(2);
    let said = cluster.connect(config).await.unwrap().append(["x"]).await.unwrap_err().to_string();
    assert!(said.contains("node n1 at") && said.contains("cannot be reached"), "{said}");
    assert!(said.contains("node n2 at") && said.contains("answers and knows no leader"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_cluster_is_unavailable() {
    let mut cluster = Cluster::start(2).await;
    let mut config = cluster.config("lonely", Role::Read);
    config.timeout = Duration::from_millis(300);
    cluster.kill("n1");
    cluster.kill("n2");
    assert_eq!(cluster.connect(config.clone()).await.unwrap_err().code(), ErrorCode::Unavailable);
    let status = Client::lazy(config).unwrap().status().await;
    assert_eq!((status.cluster_id, status.leader), (None, None));
    assert!(status.nodes.iter().all(|node| !node.reachable && node.role == NodeRole::Unknown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_asks_every_member_also_those_only_named_by_others() {
    let mut cluster = Cluster::start(3).await;
    let mut config = cluster.config("curious", Role::Read);
    config.endpoints = BTreeMap::from_iter(config.endpoints.into_iter().filter(|(name, _)| name == "n2"));
    let client = cluster.connect(config).await.unwrap();
    cluster.kill("n3");
    let status = client.status().await;
    assert_eq!(status.cluster_id.as_deref(), Some("00000000000000000000000000c0ffee"));
    assert_eq!(status.leader.as_deref(), Some("n1"));
    let reachable: Vec<_> = status.nodes.iter().map(|node| (&*node.name, node.reachable)).collect();
    assert_eq!(reachable, [("n1", true), ("n2", true), ("n3", false)]);
    assert_eq!(client.node_stats("n2").await.unwrap().frames, 0);
    assert_eq!(client.node_stats("n9").await.unwrap_err().code(), ErrorCode::Usage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfer_is_asked_of_the_leader_wherever_it_is() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    cluster.elect(Some("n3"));
    client.transfer("n2").await.unwrap();
    assert_eq!(cluster.world.lock().unwrap().leader.as_deref(), Some("n2"));
    client.append(["at n2"]).await.unwrap();
    assert_eq!(client.leader().as_deref(), Some("n2"));
    client.close().await;
    let late = client.append(["late"]).await.unwrap_err();
    assert_eq!((late.code(), late.outcome()), (ErrorCode::Unavailable, Outcome::Refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_protocol_cost_their_sender_the_connection_and_nobody_else() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let config = cluster.config("fuzzer", Role::Append);
    let tls = TlsFiles { ca: config.ca, certificate: config.certificate, key: config.key };
    let crypto = TlsIdentity::load(tls).unwrap().current().quic_client(ALPN).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = cluster.server("n1").local_address();
    let hello = Hello { oldest: 1, newest: 9, feature_level: 1, software: String::new() };
    let hello = wire::encode::<1024>(&hello).unwrap();
    let impossible_length = [&[StreamKind::Append as u8][..], &[0xFF; 8]].concat();
    let zeros = [&[StreamKind::Append as u8][..], &64u32.to_le_bytes(), &[0; 68]].concat();
    let no_request = [StreamKind::Unary as u8, 0xFF, 0xFF];
    for bytes in [&impossible_length[..], &zeros, &no_request, &[77]] {
        let config = quinn::ClientConfig::new(crypto.clone());
        let connection = endpoint.connect_with(config, address, &server_name("n1")).unwrap().await.unwrap();
        for bytes in [&[&[StreamKind::Hello as u8], &hello[..]].concat(), bytes] {
            let (mut send, mut recv) = connection.open_bi().await.unwrap();
            send.write_all(bytes).await.unwrap();
            send.finish().unwrap();
            let _ = recv.read_to_end(1024).await;
        }
        match connection.closed().await {
            quinn::ConnectionError::ApplicationClosed(close) => assert_eq!(close.error_code, CLOSE_PROTOCOL.into()),
            other => panic!("unexpected {other} for {bytes:?}"),
        }
    }
    client.append(["fine"]).await.unwrap();
    assert_eq!(cluster.stored(), ["fine"]);
}

/// A node whose own log is damaged says so; the reader goes on where it is whole, and hears of damage only when nobody has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_goes_on_at_a_node_whose_log_is_whole() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let (mut sender, mut acks) = client.appender().await.unwrap().split();
    for record in numbered(30) {
        sender.send([record]).await.unwrap();
        acks.next().await.unwrap().unwrap();
    }
    // Damage at different places, so that wherever it starts it has to move on, and once more.
    for (node, from) in [("n1", 10), ("n2", 20)] {
        cluster.faults(node).damaged_from.store(from, Ordering::SeqCst);
    }
    for _ in 0..5 {
        let mut stream = client.subscribe(Start::Beginning).await.unwrap();
        assert_eq!(read(&mut stream, 30).await, numbered(30));
    }
    let mut pinned = SubscribeOptions::new(Start::Beginning);
    pinned.node = Some("n1".to_owned());
    let mut stream = client.subscribe_with(pinned).await.unwrap();
    assert_eq!(read(&mut stream, 10).await, numbered(10));
    let code = loop {
        if let Err(error) = stream.next().await.expect("an error") {
            break error.code();
        }
    };
    assert_eq!(code, ErrorCode::Damaged);
    cluster.faults("n3").damaged_from.store(15, Ordering::SeqCst);
    let mut stream = client.subscribe(Start::Beginning).await.unwrap();
    assert_eq!(read(&mut stream, 20).await, numbered(20), "each gives what it has");
    let code = loop {
        if let Err(error) = stream.next().await.expect("an error") {
            break error.code();
        }
    };
    assert_eq!(code, ErrorCode::Damaged, "nobody has the rest");
}
