//! Clusters of real processes that are killed, stopped and moved while they work.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};

use rustix::process::Signal;

use crate::common::{self, Dev, PATIENCE, graven, signal, wait_for, wait_for_exit};

/// How much a test writes: smoke size, or the full one with `GRAVEN_LONG=1`.
fn sized(smoke: usize, long: usize) -> usize {
    if std::env::var_os("GRAVEN_LONG").is_some() { long } else { smoke }
}

/// Numbered lines of 100 to 300 bytes.
fn lines(count: usize) -> Vec<u8> {
    let mut text = Vec::new();
    for number in 0..count {
        let filler = 80 + (number * 7919) % 200;
        writeln!(text, "{number:012} {}", "x".repeat(filler)).expect("memory");
    }
    text
}

fn offsets(dev: &Dev) -> Vec<Option<u64>> {
    let status = dev.status();
    status["nodes"].as_array().expect("nodes").iter().map(|node| node["next_offset"].as_u64()).collect()
}

fn wait_for_equal_offsets(dev: &Dev) -> u64 {
    wait_for("equal offsets on all nodes", || {
        let offsets = offsets(dev);
        offsets[0].filter(|first| offsets.iter().all(|offset| *offset == Some(*first)))
    })
}

/// `graven append --acks` fed from memory; its acknowledgements are read line by line.
struct Appending {
    child: Child,
    acks: BufReader<std::process::ChildStdout>,
}

impl Appending {
    fn start(dev: &Dev, input: Vec<u8>, options: &[&str]) -> Appending {
        let mut command = dev.command(&["append", "--acks"]);
        let mut child = command
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        // The command may end first; what it did not take does not matter then.
        std::thread::spawn(move || stdin.write_all(&input));
        let acks = BufReader::new(child.stdout.take().expect("piped"));
        Appending { child, acks }
    }

    /// The next `F..L`, as first and last offset.
    fn next(&mut self) -> Option<(u64, u64)> {
        let mut line = String::new();
        self.acks.read_line(&mut line).expect("acks are read");
        let (first, last) = line.trim_end().split_once("..")?;
        Some((first.parse().expect("an offset"), last.parse().expect("an offset")))
    }

    fn end(mut self) -> (i32, String) {
        let status = wait_for_exit(&mut self.child, PATIENCE);
        let mut stderr = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("stderr is read");
        (status.code().unwrap_or(-1), stderr)
    }
}

#[test]
fn a_file_comes_back_byte_for_byte_from_every_node() {
    let dev = Dev::start(3, &[]);
    let text = lines(sized(5_000, 200_000));
    dev.run_with(&["append"], &text).expect(0);
    for node in ["n1", "n2", "n3"] {
        let read = dev.run(&["read", "--node", node, "--format", "raw"]).expect(0);
        assert!(read.stdout == text, "{node} gives other bytes");
    }
    let binary: Vec<u8> =
        (0..sized(8 << 20, 100 << 20) as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let from = wait_for_equal_offsets(&dev).to_string();
    dev.run_with(&["append", "--chunk", "65536"], &binary).expect(0);
    for node in ["n1", "n2", "n3"] {
        let read = dev.run(&["read", "--node", node, "--from", &from, "--no-newline"]).expect(0);
        assert!(read.stdout == binary, "{node} gives other bytes");
    }
}

#[test]
fn a_killed_leader_loses_nothing_and_doubles_nothing() {
    let mut dev = Dev::start(3, &[]);
    let count = sized(60_000, 1_000_000);
    let text = lines(count);
    let follow_count = count.to_string();
    let mut follow = dev
        .command(&["read", "--follow", "--format", "json", "--count", &follow_count])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let followed = BufReader::new(follow.stdout.take().expect("piped"));
    let followed = std::thread::spawn(move || followed.lines().map(|line| line.expect("a line")).collect::<Vec<_>>());

    // Small calls, so that many are in flight whenever the leader dies.
    let mut appending = Appending::start(&dev, text.clone(), &["--batch", "50"]);
    let mut next = 0;
    let mut killed = None;
    while let Some((first, last)) = appending.next() {
        assert_eq!(first, next, "acknowledged out of order");
        next = last + 1;
        if killed.is_none() && next > count as u64 / 4 {
            let leader = dev.leader();
            dev.kill(&leader);
            killed = Some(leader);
        }
    }
    let (code, stderr) = appending.end();
    assert_eq!((code, next), (0, count as u64), "{stderr}");
    let killed = killed.expect("the leader was killed under load");

    let read = dev.run(&["read"]).expect(0);
    assert!(read.stdout == text, "the log is not the input");
    wait_for_exit(&mut follow, PATIENCE);
    let followed = followed.join().expect("read");
    assert_eq!(followed.len(), count);
    for (offset, line) in followed.iter().enumerate() {
        assert!(line.starts_with(&format!("{{\"offset\":{offset},")), "follow has {line} at {offset}");
    }
    dev.start_node(&killed);
    assert_eq!(wait_for_equal_offsets(&dev), count as u64);
}

#[test]
fn killing_all_nodes_at_once_loses_no_acknowledged_record() {
    let mut dev = Dev::start(3, &[]);
    let text = lines(sized(60_000, 1_000_000));
    let mut appending = Appending::start(&dev, text.clone(), &["--batch", "50", "--timeout", "1s"]);
    let mut acknowledged = 0;
    while acknowledged < 5_000 {
        let (_, last) = appending.next().expect("still appending");
        acknowledged = last + 1;
    }
    let pids: Vec<i32> = ["n1", "n2", "n3"].iter().map(|name| dev.node_pid(name).expect("runs")).collect();
    for pid in pids {
        signal(pid, Signal::KILL);
    }
    while let Some((_, last)) = appending.next() {
        acknowledged = last + 1;
    }
    let (code, stderr) = appending.end();
    assert_eq!(code, 3, "{stderr}");
    for name in ["n1", "n2", "n3"] {
        wait_for("the node to be gone", || dev.node_pid(name).is_none().then_some(()));
        dev.start_node(name);
    }
    dev.leader();
    let log_end = wait_for_equal_offsets(&dev);
    assert!(log_end >= acknowledged, "{acknowledged} were acknowledged, {log_end} are there");
    let read = dev.run(&["read", "--linearizable"]).expect(0);
    assert!(text.starts_with(&read.stdout), "the log is not a prefix of the input");
}

#[test]
fn without_a_majority_reads_go_on_and_appends_wait_for_it() {
    let dev = Dev::start(3, &[]);
    dev.run_with(&["append"], b"before\n").expect(0);
    wait_for_equal_offsets(&dev);
    let stopped: Vec<i32> = ["n1", "n2"].iter().map(|name| dev.node_pid(name).expect("runs")).collect();
    stopped.iter().for_each(|pid| signal(*pid, Signal::STOP));
    let read = dev.run(&["read", "--node", "n3"]).expect(0);
    assert_eq!(read.stdout, b"before\n");
    assert!(!read.stderr.is_empty(), "without a leader a note says so");
    dev.run(&["read", "--node", "n3", "--linearizable", "--timeout", "2s"]).expect(3);
    let refused = dev.run_with(&["append", "--timeout", "2s", "--json"], b"lost or not\n").expect(3);
    assert!(["refused", "unknown"].contains(&refused.error()["outcome"].as_str().expect("an outcome")));
    // This one waits for the majority to come back.
    let waiting = Appending::start(&dev, b"after\n".to_vec(), &["--timeout", "50s"]);
    stopped.iter().for_each(|pid| signal(*pid, Signal::CONT));
    let (code, stderr) = waiting.end();
    assert_eq!(code, 0, "{stderr}");
    let read = String::from_utf8(dev.run(&["read", "--linearizable"]).expect(0).stdout).expect("text");
    assert!(read == "before\nafter\n" || read == "before\nlost or not\nafter\n", "{read}");
    wait_for_equal_offsets(&dev);
}

/// Ends its processes when a test is over, however it ends.
struct Nodes(Vec<Child>);

impl Drop for Nodes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_by_hand(config: &std::path::Path) -> (Child, String) {
    let mut command = graven();
    command.arg("start").arg("--config").arg(config);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("stdout is read");
    (child, line)
}

#[test]
fn directories_made_by_init_work_where_they_are_moved_to() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let (made, hosts) = (temp.path().join("made"), temp.path().join("hosts"));
    let base = common::free_base_port(3);
    let mut init = graven();
    init.arg("init").arg("--dir").arg(&made);
    for node in 0..3 {
        init.arg("--node").arg(format!("host{node}=127.0.0.1:{}", base + node * 10));
    }
    common::finish(&mut init, b"").expect(0);
    std::fs::create_dir(&hosts).expect("a directory");
    let mut nodes = Nodes(Vec::new());
    for node in 0..3 {
        let name = format!("host{node}");
        std::fs::rename(made.join(&name), hosts.join(&name)).expect("moved");
        let (child, line) = start_by_hand(&hosts.join(&name).join("graven.toml"));
        nodes.0.push(child);
        assert_eq!(line, "ready\n");
    }
    let client = made.join("client.toml");
    let client = client.to_str().expect("UTF-8");
    common::finish(graven().args(["--client", client, "append"]), b"one\ntwo\n").expect(0);
    let read = common::run(["--client", client, "read", "--linearizable"]).expect(0);
    assert_eq!(read.stdout, b"one\ntwo\n");
    // A second process on one of the directories is refused, and names the first.
    let second = common::run(["start", "--config", hosts.join("host0/graven.toml").to_str().expect("UTF-8")]).expect(2);
    assert!(second.stderr.contains(&nodes.0[0].id().to_string()), "{}", second.stderr);
}

#[test]
fn leadership_goes_where_it_is_sent_while_appends_go_on() {
    let dev = Dev::start(3, &[]);
    let text = lines(sized(40_000, 400_000));
    let mut appending = Appending::start(&dev, text.clone(), &["--batch", "20"]);
    appending.next().expect("an acknowledgement");
    for name in ["n1", "n2", "n3", "n1"] {
        dev.run(&["transfer", name, "--timeout", "20s"]).expect(0);
    }
    while appending.next().is_some() {}
    let (code, stderr) = appending.end();
    assert_eq!(code, 0, "{stderr}");
    assert!(dev.run(&["read"]).expect(0).stdout == text, "the log is not the input");
    let dead = if dev.leader() == "n2" { "n3" } else { "n2" };
    dev.kill(dead);
    dev.run(&["transfer", dead]).expect(4);
    dev.run(&["transfer", "nobody"]).expect(2);
}

#[test]
fn a_certificate_of_another_cluster_and_a_role_too_low_are_exit_5() {
    let dev = Dev::start(1, &[]);
    let temp = tempfile::tempdir().expect("a temporary directory");
    let other = temp.path().join("other");
    let dir = other.to_str().expect("UTF-8");
    common::run(["init", "--dir", dir, "--node", &format!("n1=127.0.0.1:{}", dev.base_port)]).expect(0);
    let client = other.join("client.toml");
    let refused = common::finish(graven().arg("--client").arg(&client).args(["append", "--json"]), b"x\n").expect(5);
    assert_eq!(refused.error()["code"], "unauthenticated");

    common::run(["certs", "client", "reader", "--role", "read", "--dir", dev.dir.to_str().expect("UTF-8")]).expect(0);
    let client = dev.dir.join("client-reader/client.toml");
    let forbidden = common::finish(graven().arg("--client").arg(&client).args(["append", "--json"]), b"x\n").expect(5);
    assert_eq!(forbidden.error()["code"], "forbidden");
    common::finish(graven().arg("--client").arg(&client).args(["read"]), b"").expect(0);
}

#[test]
fn an_acknowledgement_costs_a_sync_on_two_of_three_nodes() {
    let dev = Dev::start(3, &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let config = graven::ClientConfig::load(&dev.client).expect("client.toml");
        let client = graven::Client::connect(config).await.expect("connected");
        client.append(["opens the session"]).await.expect("appended");
        let syncs = async || {
            let mut sum = 0;
            for node in ["n1", "n2", "n3"] {
                sum += client.node_stats(node).await.expect("counters").syncs;
            }
            sum
        };
        let before = syncs().await;
        // One at a time: no two of them can share a sync.
        for number in 0..100_u32 {
            client.append([number.to_le_bytes()]).await.expect("appended");
        }
        let spent = syncs().await - before;
        assert!(spent >= 200, "100 acknowledgements one after the other, {spent} syncs on three nodes");
    });
}

#[test]
fn noise_on_both_ports_harms_nobody() {
    let dev = Dev::start(1, &[]);
    let pid = dev.node_pid("n1").expect("runs");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut seed = 1_u64;
    for _ in 0..20_000 {
        let mut noise = [0_u8; 1200];
        for byte in &mut noise {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (seed >> 56) as u8;
        }
        for port in [dev.base_port, dev.base_port + 1] {
            let _ = socket.send_to(&noise, ("127.0.0.1", port));
        }
    }
    dev.run_with(&["append"], b"still here\n").expect(0);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let anon =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next()?.parse::<u64>().ok());
    assert!(anon.is_none_or(|kib| kib < 64 << 10), "{anon:?} KiB after noise");
}

#[test]
fn a_record_over_the_limit_stops_the_input_there() {
    let dev = Dev::start(1, &["limits.max_record_bytes=1000"]);
    let mut input = b"small\n".to_vec();
    input.extend(vec![b'x'; 1001]);
    input.extend(b"\nnever sent\n");
    let refused = dev.run_with(&["append", "--json"], &input).expect(4);
    let error = refused.error();
    assert_eq!(error["code"], "too_large");
    assert_eq!(error["details"]["acknowledged"]["records"], 1);
    assert_eq!(dev.run(&["read"]).expect(0).stdout, b"small\n");
}
