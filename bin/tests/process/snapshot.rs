//! Named snapshots on real nodes: what is put comes back, the log waits for it, and nothing is left of what came to nothing.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use graven::{Client, ClientConfig, ErrorCode, Item, Outcome, Start, SubscribeOptions, Subscription};
use graven_net::planted::{self, Bug};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::AsyncReadExt;

use crate::common::{self, Dev, PATIENCE, wait_for, wait_for_exit};

fn sized(smoke: usize, long: usize) -> usize {
    if std::env::var_os("GRAVEN_LONG").is_some() { long } else { smoke }
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut body = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill(&mut body[..]);
    body
}

/// The files of snapshots in a node's directory, whole or not.
fn files(dev: &Dev, node: &str) -> Vec<String> {
    let names = std::fs::read_dir(dev.dir.join(node).join("data")).expect("the data directory");
    let names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let mut names: Vec<String> = names.filter(|name| name.starts_with("snapshot-")).collect();
    names.sort_unstable();
    names
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Waits until every node holds so many snapshots and nothing half-way.
fn wait_for_files(dev: &Dev, count: usize) {
    let whole = |node: &str| {
        let files = files(dev, node);
        files.len() == count && files.iter().all(|file| !file.contains('.'))
    };
    wait_for("the snapshots on all nodes and nothing else", || NODES.iter().all(|node| whole(node)).then_some(()));
}

fn append(dev: &Dev, count: usize) {
    let text: Vec<u8> = (0..count).flat_map(|number| format!("record {number}\n").into_bytes()).collect();
    dev.run_with(&["append"], &text).expect(0);
}

/// A `put` that has its first bytes and waits for more.
fn hanging_put(dev: &Dev, name: &str, bytes: &[u8]) -> Child {
    let mut command = dev.command(&["snapshot", "put", name, "--offset", "1"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    let stdin = child.stdin.as_mut().expect("piped");
    stdin.write_all(bytes).expect("taken");
    let leader = dev.leader();
    wait_for("a file that is being written", || {
        files(dev, &leader).iter().any(|it| it.ends_with(".new")).then_some(())
    });
    child
}

#[test]
fn what_is_put_comes_back_and_the_log_waits_for_every_name() {
    let dev = Dev::start(3, &[]);
    append(&dev, 100);
    let (a, b) = (noise(1, 3 << 20), noise(2, 70_000));
    let file = dev.dir.join("b.state");
    std::fs::write(&file, &b).expect("written");
    dev.run_with(&["snapshot", "put", "a", "--offset", "40"], &a).expect(0);
    let put = dev.run(&["--json", "snapshot", "put", "b.2", "--offset", "60", file.to_str().expect("UTF-8")]).expect(0);
    let put: serde_json::Value = serde_json::from_slice(&put.stdout).expect("JSON");
    assert_eq!((put["offset"].as_u64(), put["bytes"].as_u64()), (Some(60), Some(70_000)), "{put}");
    wait_for_files(&dev, 2);

    let list: serde_json::Value =
        serde_json::from_slice(&dev.run(&["--json", "snapshot", "list"]).expect(0).stdout).expect("JSON");
    let line = |at: usize| {
        let line = &list["snapshots"][at];
        (line["name"].as_str(), line["offset"].as_u64(), line["bytes"].as_u64(), line["state"].as_str())
    };
    assert_eq!(line(0), (Some("a"), Some(40), Some(3 << 20), Some("committed")), "{list}");
    assert_eq!(line(1), (Some("b.2"), Some(60), Some(70_000), Some("committed")), "{list}");
    assert!(dev.run(&["snapshot", "get", "a"]).expect(0).stdout == a);
    let output = dev.dir.join("b.back");
    dev.run(&["snapshot", "get", "b.2", "--output", output.to_str().expect("UTF-8")]).expect(0);
    assert!(std::fs::read(&output).expect("there") == b);

    let refused = dev.run(&["--json", "trim", "--before", "41"]).expect(4).error();
    assert_eq!(refused["details"]["snapshot_offset"], 40, "{refused}");
    dev.run(&["trim", "--before", "40"]).expect(0);
    // A newer one, of nothing at all.
    dev.run_with(&["snapshot", "put", "a", "--offset", "80"], b"").expect(0);
    assert!(dev.run(&["snapshot", "get", "a"]).expect(0).stdout.is_empty());
    dev.run(&["trim", "--before", "60"]).expect(0);
    dev.run(&["trim", "--before", "61"]).expect(4);
    dev.run(&["snapshot", "drop", "b.2"]).expect(0);
    dev.run(&["trim", "--before", "80"]).expect(0);
    wait_for_files(&dev, 1);
    for node in NODES {
        dev.kill(node);
    }
    let mut dev = dev;
    for node in NODES {
        dev.start_node(node);
    }
    assert!(dev.run(&["snapshot", "get", "a"]).expect(0).stdout.is_empty());
    wait_for_files(&dev, 1);
}

#[test]
fn what_cannot_be_put_is_refused_with_one_sentence_and_leaves_nothing() {
    let dev = Dev::start(3, &[]);
    append(&dev, 100);
    dev.run_with(&["snapshot", "put", "a", "--offset", "50"], b"state").expect(0);
    let refused = |args: &[&str], code: i32, name: &str| {
        let done = dev.run_with(&[&["--json", "snapshot"], args].concat(), b"other").expect(code);
        let error = done.error();
        assert_eq!((error["code"].as_str(), error["outcome"].as_str()), (Some(name), Some("refused")), "{error}");
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
        error
    };
    let beyond = refused(&["put", "a", "--offset", "101"], 4, "out_of_range");
    assert_eq!(beyond["details"]["next_offset"], 100, "{beyond}");
    let older = refused(&["put", "a", "--offset", "49"], 4, "conflict");
    assert_eq!(older["details"]["snapshot_offset"], 50, "{older}");
    refused(&["get", "unknown"], 4, "out_of_range");
    refused(&["drop", "unknown"], 4, "out_of_range");
    for name in ["a/b", ".a", "", &"x".repeat(65)] {
        refused(&["put", name, "--offset", "60"], 2, "usage");
    }
    refused(&["put", "a", "--offset", "60", "no-such-file"], 2, "usage");
    let output = dev.dir.join("no-such-dir/file");
    refused(&["get", "a", "--output", output.to_str().expect("UTF-8")], 2, "usage");

    // Somebody who may only read, and somebody who may append: each gets as far as that.
    let dir = dev.dir.to_str().expect("UTF-8");
    for role in ["read", "append"] {
        common::run(["certs", "client", role, "--role", role, "--dir", dir]).expect(0);
    }
    let as_role = |role: &str, args: &[&str], code: i32| {
        let other = dev.dir.join(format!("client-{role}/client.toml"));
        let mut command = common::graven();
        command.arg("--json").arg("--client").arg(&other).arg("snapshot").args(args);
        let done = common::finish(&mut command, b"state").expect(code);
        if code == 5 {
            assert_eq!(done.error()["code"], "forbidden");
        }
    };
    as_role("read", &["put", "a", "--offset", "60"], 5);
    as_role("read", &["get", "a"], 0);
    as_role("append", &["put", "a", "--offset", "60"], 0);
    as_role("append", &["drop", "a"], 5);

    // One that hangs holds its name, and gives it back with whoever put it.
    let mut hanging = hanging_put(&dev, "slow", &noise(3, 2 << 20));
    refused(&["put", "slow", "--offset", "1"], 4, "conflict");
    hanging.kill().expect("runs");
    wait_for_exit(&mut hanging, PATIENCE);
    wait_for("the name to be free", || {
        (dev.run_with(&["snapshot", "put", "slow", "--offset", "2"], b"state").code() == 0).then_some(())
    });
    wait_for_files(&dev, 2);
}

#[test]
fn a_snapshot_for_which_no_disk_has_room_is_told_before_it_is_sent() {
    let dev = Dev::start(1, &[]);
    append(&dev, 10);
    let error = block_on(async {
        let client = connect(&dev).await;
        // Larger than any disk this runs on.
        let size = Some(1 << 42);
        client.put_snapshot_sized("a", 5, size, tokio::io::repeat(7)).await.expect_err("there is no room")
    });
    assert_eq!((error.code(), error.outcome()), (ErrorCode::DiskFull, Outcome::Refused), "{error}");
    assert_eq!(files(&dev, "n1"), [""; 0]);
}

/// A client that lies about its digest leaves nothing on a real node's disk, also after a restart; nor does one that stops half-way for ever,
/// which is given up after half a minute: that one is tried in long runs.
#[test]
fn uploads_that_lie_or_stop_leave_nothing() {
    let mut dev = Dev::start(1, &[]);
    append(&dev, 10);
    planted::plant(Some(Bug::DigestWrong));
    let error = block_on(async {
        let client = connect(&dev).await;
        client.put_snapshot("a", 5, &noise(6, 3 << 20)[..]).await.expect_err("another digest")
    });
    planted::plant(None);
    assert_eq!((error.code(), error.outcome()), (ErrorCode::Damaged, Outcome::Refused), "{error}");
    wait_for("nothing to be left", || files(&dev, "n1").is_empty().then_some(()));
    if std::env::var_os("GRAVEN_LONG").is_some() {
        let mut hanging = hanging_put(&dev, "a", &noise(7, 3 << 20));
        assert_eq!(wait_for_exit(&mut hanging, 2 * PATIENCE).code(), Some(3));
        let mut words = String::new();
        std::io::Read::read_to_string(hanging.stderr.as_mut().expect("piped"), &mut words).expect("UTF-8");
        assert!(words.lines().count() == 1 && words.contains("stopped coming"), "{words}");
        wait_for("nothing to be left", || files(&dev, "n1").is_empty().then_some(()));
    }
    dev.kill("n1");
    dev.start_node("n1");
    assert_eq!(files(&dev, "n1"), [""; 0]);
    dev.run_with(&["snapshot", "put", "a", "--offset", "5"], b"state").expect(0);
}

#[test]
fn a_leader_killed_in_the_middle_of_an_upload_leaves_nothing() {
    let mut dev = Dev::start(3, &[]);
    append(&dev, 100);
    let mut hanging = hanging_put(&dev, "a", &noise(4, 5 << 20));
    let leader = dev.leader();
    dev.kill(&leader);
    drop(hanging.stdin.take());
    let code = wait_for_exit(&mut hanging, PATIENCE).code();
    assert_eq!(code, Some(3));
    dev.start_node(&leader);
    wait_for_files(&dev, 0);
    let list = dev.run(&["--json", "snapshot", "list"]).expect(0).text();
    assert_eq!(list, "{\"snapshots\":[]}\n");
    // The name is free, and whoever leads now takes it.
    dev.run_with(&["snapshot", "put", "a", "--offset", "1"], b"state").expect(0);
}

#[test]
fn a_node_that_was_away_is_given_the_file_and_a_damaged_one_is_replaced() {
    let mut dev = Dev::start(3, &[]);
    append(&dev, 100);
    let leader = dev.leader();
    let away = NODES.into_iter().find(|node| *node != leader).expect("a follower");
    dev.kill(away);
    let body = noise(5, 3 << 20);
    // A leader that is lost meanwhile, on a busy machine, leaves the outcome unknown: putting it again is safe.
    wait_for("the snapshot to be taken", || {
        (dev.run_with(&["snapshot", "put", "a", "--offset", "70"], &body).code() == 0).then_some(())
    });
    dev.start_node(away);
    wait_for_files(&dev, 1);

    // A bit rots in the leader's copy.
    let leader = dev.leader();
    let file = files(&dev, &leader).remove(0);
    let path: PathBuf = dev.dir.join(&leader).join("data").join(&file);
    let mut bytes = std::fs::read(&path).expect("there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&path, &bytes).expect("written");
    // A client that is connected for a moment asks the leader first.
    block_on(async {
        let client = connect(&dev).await;
        let aside = format!("{file}.damaged");
        while !files(&dev, &leader).contains(&aside) {
            let mut got = Vec::new();
            let (_, mut reader) = client.get_snapshot("a").await.expect("some node has it");
            reader.read_to_end(&mut got).await.expect("all of it");
            assert!(got == body, "no wrong byte, and all of them");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    wait_for("the damaged file to be kept aside and replaced", || {
        let files = files(&dev, &leader);
        (files.len() == 2 && files[0] == file && files[1] == format!("{file}.damaged")).then_some(())
    });
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    // All on this thread: a bug planted here is seen by the client's tasks.
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

async fn connect(dev: &Dev) -> Client {
    Client::connect(ClientConfig::load(&dev.client).expect("client.toml")).await.expect("connects")
}

/// What a consumer makes of the log: all records one after the other.
#[derive(Default, PartialEq, Eq)]
struct State(Vec<u8>);

/// Behind a state, so that it takes many chunks.
const FILLER_BYTES: usize = 5 << 20;

impl State {
    fn apply(&mut self, record: &[u8]) {
        self.0.extend((record.len() as u32).to_le_bytes());
        self.0.extend(record);
    }

    fn of(records: &[Vec<u8>]) -> State {
        let mut state = State::default();
        records.iter().for_each(|record| state.apply(record));
        state
    }

    fn body(&self) -> Vec<u8> {
        let mut body = self.0.clone();
        body.resize(body.len() + FILLER_BYTES, 7);
        body
    }

    fn of_body(mut body: Vec<u8>) -> State {
        body.truncate(body.len() - FILLER_BYTES);
        State(body)
    }
}

/// A consumer that begins with a snapshot.
struct Consumer {
    stream: Subscription,
    state: State,
    next: u64,
    snapshots: Vec<u64>,
}

impl Consumer {
    async fn start(client: &Client) -> Consumer {
        let mut options = SubscribeOptions::new(Start::Snapshot("fold".into()));
        options.window_bytes = 64 << 10;
        let stream = client.subscribe_with(options).await.expect("a snapshot is there");
        Consumer { stream, state: State::default(), next: 0, snapshots: Vec::new() }
    }

    /// Takes items until the state covers `end`. `halfway` is called in the middle of the first snapshot.
    async fn follow(&mut self, end: u64, mut halfway: Option<&mut dyn FnMut()>) -> Result<(), String> {
        while self.next < end {
            let item = self.stream.next().await.ok_or("the stream ended")?.map_err(|error| error.to_string())?;
            match item {
                Item::Snapshot(snapshot) => {
                    let mut reader = snapshot.reader();
                    let mut body = vec![0; 1 << 20];
                    reader.read_exact(&mut body).await.map_err(|error| error.to_string())?;
                    if let Some(halfway) = halfway.take() {
                        halfway();
                    }
                    reader.read_to_end(&mut body).await.map_err(|error| error.to_string())?;
                    self.state = State::of_body(body);
                    self.next = snapshot.offset;
                    self.snapshots.push(snapshot.offset);
                }
                Item::Records(records) => {
                    for record in &records {
                        if record.offset != self.next {
                            return Err(format!("record {} where {} was due", record.offset, self.next));
                        }
                        self.state.apply(&record.payload);
                        self.next += 1;
                    }
                }
                Item::Trimmed { from, to } => return Err(format!("{from} to {to} are missing")),
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self, records: &[Vec<u8>]) -> Result<(), String> {
        let equal = self.state == State::of(records);
        if equal { Ok(()) } else { Err(format!("snapshot {:?} and tail are not the whole", self.snapshots)) }
    }
}

async fn append_some(client: &Client, rng: &mut StdRng, records: &mut Vec<Vec<u8>>) {
    for _ in 0..rng.random_range(2..6) {
        let batch: Vec<Vec<u8>> =
            (0..rng.random_range(1..40)).map(|_| noise(rng.random(), rng.random_range(0..300))).collect();
        client.append(batch.clone()).await.expect("acknowledged");
        records.extend(batch);
    }
}

/// Random logs and offsets: a snapshot and what follows it are the same as all records, for two consumers at once, while the log is trimmed
/// to the snapshot, and in the last round while the leader dies in the middle of it.
fn snapshot_and_tail_are_the_whole(dev: &mut Dev, seed: u64, rounds: usize) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    block_on(async {
        let client = connect(dev).await;
        let (mut records, mut offset) = (Vec::new(), 0);
        for round in 0..rounds {
            append_some(&client, &mut rng, &mut records).await;
            offset = rng.random_range(offset..=records.len() as u64);
            let body = State::of(&records[..offset as usize]).body();
            client.put_snapshot("fold", offset, &body[..]).await.map_err(|error| error.to_string())?;
            client.trim(offset).await.map_err(|error| error.to_string())?;
            let (mut one, mut two) = (Consumer::start(&client).await, Consumer::start(&client).await);
            append_some(&client, &mut rng, &mut records).await;
            let end = records.len() as u64;
            let leader = client.leader().ok_or("nobody leads")?;
            let dev = &*dev;
            let mut kill = || dev.kill(&leader);
            let halfway: Option<&mut dyn FnMut()> = if round + 1 == rounds { Some(&mut kill) } else { None };
            let followed = tokio::join!(one.follow(end, halfway), two.follow(end, None));
            followed.0?;
            followed.1?;
            one.check(&records)?;
            two.check(&records)?;
            // And it goes on under whoever leads now.
            append_some(&client, &mut rng, &mut records).await;
            one.follow(records.len() as u64, None).await?;
            one.check(&records)?;
        }
        Ok(())
    })
}

#[test]
fn a_snapshot_and_its_tail_equal_a_full_replay() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut dev = Dev::start(3, &[]);
    snapshot_and_tail_are_the_whole(&mut dev, seed, sized(3, 20)).expect("equal");
}

#[test]
fn a_seam_off_by_one_is_found() {
    let mut dev = Dev::start(3, &[]);
    planted::plant(Some(Bug::SeamOffByOne));
    let found = snapshot_and_tail_are_the_whole(&mut dev, 7, 1);
    planted::plant(None);
    let found = found.expect_err("the planted bug is seen");
    assert!(found.contains("was due") || found.contains("not the whole"), "{found}");
}

#[test]
fn a_consumer_whose_records_are_trimmed_goes_on_with_the_newer_snapshot() {
    let dev = Dev::start(3, &["wal.segment_bytes=64K"]);
    block_on(async {
        let client = connect(&dev).await;
        let mut records: Vec<Vec<u8>> = vec![b"first".to_vec()];
        client.append(records.clone()).await.expect("acknowledged");
        client.put_snapshot("fold", 1, &State::of(&records).body()[..]).await.expect("put");
        let mut slow = Consumer::start(&client).await;
        // More than is received ahead of a reader, here and in the node's windows.
        for number in 0..sized(200, 2_000) as u64 {
            let batch = vec![noise(number, 50_000)];
            client.append(batch.clone()).await.expect("acknowledged");
            records.extend(batch);
        }
        let newer = records.len() as u64 - 5;
        client.put_snapshot("fold", newer, &State::of(&records[..newer as usize]).body()[..]).await.expect("put");
        client.trim(newer).await.expect("trimmed");
        slow.follow(records.len() as u64, None).await.expect("goes on");
        slow.check(&records).expect("equal");
        assert_eq!(slow.snapshots, [1, newer]);
    });
}
