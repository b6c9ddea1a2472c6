//! Named cursors on real nodes: kept through whatever the log is kept through, moved by many at once, bounded.

use graven::{Client, ClientConfig, ErrorCode};

use crate::common::{Dev, Done, wait_for};

/// So small that a few megabytes are a hundred of them, and checkpoints come soon.
const TINY_SEGMENTS: &str = "wal.segment_bytes=64K";

/// Runs `work` with a client of the cluster.
fn with_client<T>(dev: &Dev, work: impl AsyncFnOnce(Client) -> T) -> T {
    let config = ClientConfig::load(&dev.client).expect("a client's configuration");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async { work(Client::connect(config).await.expect("connected")).await })
}

fn append(dev: &Dev, records: usize) {
    let line = format!("{}\n", "x".repeat(999));
    for _ in 0..records.div_ceil(500) {
        dev.run_with(&["append", "--batch", "20", "--timeout", "30s"], line.repeat(records.min(500)).as_bytes())
            .expect(0);
    }
}

fn get(dev: &Dev, name: &str) -> Done {
    dev.run(&["--json", "cursor", "get", name])
}

fn stands_at(dev: &Dev, name: &str, offset: u64) {
    let found: serde_json::Value = serde_json::from_slice(&get(dev, name).expect(0).stdout).expect("JSON");
    assert_eq!(found, serde_json::json!({"name": name, "offset": offset}));
}

fn says(dev: &Dev, node: &str, key: &str) -> Option<u64> {
    let status = dev.status();
    status["nodes"].as_array()?.iter().find(|it| it["name"] == *node)?[key].as_u64()
}

#[test]
fn a_cursor_is_set_listed_and_dropped_and_what_makes_no_sense_is_exit_4() {
    let dev = Dev::start(1, &[]);
    append(&dev, 10);
    let missing = get(&dev, "billing").expect(4).error();
    assert_eq!(missing["code"], "out_of_range");
    dev.run(&["cursor", "set", "billing", "7"]).expect(0);
    assert_eq!(dev.run(&["cursor", "get", "billing"]).expect(0).text(), "7\n");
    // The admin may take it back.
    dev.run(&["cursor", "set", "billing", "3"]).expect(0);
    stands_at(&dev, "billing", 3);
    let beyond = dev.run(&["--json", "cursor", "set", "billing", "11"]).expect(4).error();
    assert_eq!((beyond["code"].as_str(), beyond["details"]["next_offset"].as_u64()), (Some("out_of_range"), Some(10)));
    assert_eq!(dev.run(&["--json", "cursor", "set", "a/b", "1"]).expect(2).error()["code"], "usage");
    dev.run(&["cursor", "set", "audit", "10"]).expect(0);
    let list: serde_json::Value =
        serde_json::from_slice(&dev.run(&["--json", "cursor", "list"]).expect(0).stdout).expect("JSON");
    let all = serde_json::json!([{"name": "audit", "offset": 10}, {"name": "billing", "offset": 3}]);
    assert_eq!(list["cursors"], all);
    dev.run(&["cursor", "drop", "audit"]).expect(0);
    dev.run(&["cursor", "drop", "audit"]).expect(4);
    get(&dev, "audit").expect(4);
    stands_at(&dev, "billing", 3);
}

#[test]
fn cursors_survive_leaders_restarts_checkpoints_and_installs() {
    let mut dev = Dev::start(3, &[TINY_SEGMENTS]);
    append(&dev, 100);
    dev.run(&["cursor", "set", "early", "40"]).expect(0);
    dev.run(&["cursor", "set", "moved", "50"]).expect(0);

    // The leader dies: whoever follows it knows both.
    let leader = dev.leader();
    dev.kill(&leader);
    wait_for("another leader", || (get(&dev, "early").code() == 0).then_some(()));
    stands_at(&dev, "early", 40);
    dev.run(&["cursor", "set", "moved", "60"]).expect(0);

    // It is away until what it lacks is gone, then given a checkpoint: the only place where the moves before it stand.
    append(&dev, 5_000);
    let bytes = wait_for("a status", || says(&dev, &dev.leader(), "bytes"));
    dev.run(&["trim", "--before", "4500"]).expect(0);
    for node in ["n1", "n2", "n3"].into_iter().filter(|node| *node != leader) {
        wait_for("files that go", || says(&dev, node, "bytes").filter(|now| *now < bytes / 2));
    }
    dev.start_node(&leader);
    wait_for("the checkpoint", || (says(&dev, &leader, "next_offset") == Some(5_100)).then_some(()));
    wait_for("the leadership", || (dev.run(&["transfer", &leader]).code() == 0).then_some(()));
    // A trim moves no cursor.
    stands_at(&dev, "early", 40);
    stands_at(&dev, "moved", 60);
    let trimmed = dev.run(&["--json", "read", "--from", "40"]).expect(4).error();
    assert_eq!(trimmed["code"], "trimmed");

    for node in ["n1", "n2", "n3"] {
        dev.kill(node);
    }
    for node in ["n1", "n2", "n3"] {
        dev.start_node(node);
    }
    wait_for("a leader", || (get(&dev, "moved").code() == 0).then_some(()));
    stands_at(&dev, "early", 40);
    stands_at(&dev, "moved", 60);
}

#[test]
fn two_consumers_of_one_cursor_never_take_it_back_also_while_leaders_change() {
    let dev = Dev::start(3, &[]);
    append(&dev, 500);
    with_client(&dev, async |client| {
        let advance = |client: Client, step: usize| async move {
            let cursor = client.cursor("shared");
            let mut before = 0;
            for offset in (0..=500).step_by(step) {
                let at = cursor.advance(offset).await.expect("advanced");
                assert!(at >= offset && at >= before, "{at} after {before}, at least {offset} wanted");
                let seen = cursor.get().await.expect("read").expect("it is there");
                assert!(seen >= at, "{seen} was seen after {at} was acknowledged");
                before = seen;
            }
        };
        let both = [tokio::spawn(advance(client.clone(), 5)), tokio::spawn(advance(client.clone(), 4))];
        let push = async {
            for node in ["n1", "n2", "n3"] {
                // One that is just behind is refused; the others are enough.
                let _ = client.transfer(node).await;
                tokio::time::sleep(std::time::Duration::from_millis(30)).await;
            }
        };
        push.await;
        for consumer in both {
            consumer.await.expect("a consumer that saw its cursor go back");
        }
        assert_eq!(client.cursor("shared").get().await.expect("read"), Some(500));
        assert_eq!(client.cursor("shared").advance(7).await.expect("stays"), 500);
    });
}

#[test]
fn there_are_at_most_1024_cursors_and_a_list_has_all_of_them() {
    let dev = Dev::start(1, &[]);
    append(&dev, 10);
    with_client(&dev, async |client| {
        let mut made = tokio::task::JoinSet::new();
        for at in 0..1_024 {
            let cursor = client.cursor(format!("{at:04}-{}", "x".repeat(59)));
            made.spawn(async move { cursor.advance(at % 11).await });
        }
        while let Some(done) = made.join_next().await {
            done.expect("no panic").expect("advanced");
        }
        let error = client.cursor("one-more").advance(1).await.expect_err("there are enough");
        assert_eq!(error.code(), ErrorCode::Conflict);
        let all = client.cursors().await.expect("listed");
        assert_eq!(all.len(), 1_024);
        assert!(
            all.iter()
                .enumerate()
                .all(|(at, (name, offset))| { name.starts_with(&format!("{at:04}-")) && *offset == at as u64 % 11 })
        );
        assert_eq!(client.cursor(all[3].0.clone()).remove().await.expect("dropped"), Some(3));
        client.cursor("one-more").advance(1).await.expect("there is room");
    });
}
