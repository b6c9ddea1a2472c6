//! `graven dev` and the nodes it runs.

use std::io::Write;
use std::process::Stdio;

use rustix::process::Signal;

use crate::common::{Dev, PATIENCE, finish, is_running, signal, wait_for, wait_for_exit};

#[test]
fn records_come_back_in_order_and_survive_a_restart_of_all() {
    let mut dev = Dev::start(3, &["raft.election_ms=300"]);
    let done = dev.run_with(&["append", "--json"], b"one\n\ntwo\r\nthr\0ee\n\xff\nlast").expect(0);
    let ack: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!((ack["first"].as_u64(), ack["last"].as_u64(), ack["records"].as_u64()), (Some(0), Some(5), Some(6)));
    let expected = b"one\n\ntwo\r\nthr\0ee\n\xff\nlast\n";
    for node in ["n1", "n2", "n3"] {
        assert_eq!(dev.run(&["read", "--node", node]).expect(0).stdout, expected, "{node}");
    }
    assert!(dev.stop().success());
    assert!(dev.node_pid("n1").is_none(), "nodes are stopped with it");
    let ready = dev.resume(&["raft.election_ms=300"]).expect("resumes");
    assert!(
        ready.starts_with("ready: 3 nodes, leader n") && ready.ends_with(dev.client.to_str().expect("UTF-8")),
        "{ready}"
    );
    assert_eq!(dev.run(&["read"]).expect(0).stdout, expected);
    assert!(dev.stop().success());
    for name in ["client.toml", "client.key"] {
        std::fs::remove_file(dev.dir.join(name)).expect("removed");
        dev.resume(&[]).expect("makes it again");
        assert_eq!(dev.run(&["read"]).expect(0).stdout, expected);
        if name == "client.toml" {
            assert!(dev.stop().success());
        }
    }
    assert_eq!(dev.run(&["read", "--from", "-2", "--format", "json"]).expect(0).text().lines().count(), 2);
}

#[test]
fn a_second_dev_and_contradicting_flags_are_refused() {
    let mut dev = Dev::start(1, &[]);
    let pid = dev.pid().to_string();
    let dir = dev.dir.to_str().expect("UTF-8").to_owned();
    let done = finish(dev.command(&["dev", "--dir", &dir]).stdin(Stdio::null()), b"").expect(2);
    assert!(done.stderr.contains(&format!("pid {pid}")), "{}", done.stderr);
    assert!(dev.stop().success());
    for extra in [["--nodes", "3"], ["--base-port", "9990"], ["--set", "raft.election_ms=333"]] {
        let done = dev.run(&["dev", "--dir", &dir, extra[0], extra[1]]).expect(2);
        assert!(done.stderr.contains(extra[0]), "{}", done.stderr);
    }
}

#[test]
fn a_killed_node_is_started_by_hand_and_left_alone() {
    let mut dev = Dev::start(3, &["raft.election_ms=300"]);
    dev.run_with(&["append"], b"before\n").expect(0);
    let leader = dev.leader();
    dev.kill(&leader);
    dev.run_with(&["append"], b"while it is gone\n").expect(0);
    dev.start_node(&leader);
    let text = wait_for("the node to catch up", || {
        let done = dev.run(&["read", "--node", &leader]);
        (done.code() == 0 && done.text().lines().count() == 2).then(|| done.text())
    });
    assert_eq!(text, "before\nwhile it is gone\n");
    assert!(dev.stop().success());
    assert!(dev.node_pid(&leader).is_some(), "what was started by hand runs on");
}

#[test]
fn nodes_notice_that_dev_was_killed() {
    let mut dev = Dev::start(3, &[]);
    let pids: Vec<_> = ["n1", "n2", "n3"].iter().filter_map(|name| dev.node_pid(name)).collect();
    assert_eq!(pids.len(), 3);
    dev.kill_dev();
    wait_for("the nodes to end", || pids.iter().all(|pid| !is_running(*pid)).then_some(()));
    dev.resume(&[]).expect("resumes");
}

#[test]
fn a_follow_ends_well_by_a_signal_and_by_a_closed_pipe() {
    let dev = Dev::start(1, &[]);
    let follow = |count: Option<&str>| {
        let mut command = dev.command(&["read", "--follow"]);
        count.iter().for_each(|count| {
            command.args(["--count", count]);
        });
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts")
    };
    let mut waiting = follow(None);
    dev.run_with(&["append"], b"x\ny\n").expect(0);
    let mut counted = follow(Some("2"));
    assert!(wait_for_exit(&mut counted, PATIENCE).success());
    let mut line = [0; 4];
    std::io::Read::read_exact(waiting.stdout.as_mut().expect("piped"), &mut line).expect("both records");
    assert_eq!(&line, b"x\ny\n");
    signal(i32::try_from(waiting.id()).expect("a process id"), Signal::INT);
    assert_eq!(wait_for_exit(&mut waiting, PATIENCE).code(), Some(0));

    let mut idle = follow(None);
    std::io::Read::read_exact(idle.stdout.as_mut().expect("piped"), &mut line).expect("both records");
    drop(idle.stdout.take());
    assert_eq!(wait_for_exit(&mut idle, PATIENCE).code(), Some(0), "an idle follow sees its reader go");

    let long_lived = [&["status", "--watch"][..], &["append", "--acks"], &["read", "--follow", "--from", "end"]];
    for args in long_lived {
        let mut command = dev.command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        drop(child.stdout.take());
        assert_eq!(wait_for_exit(&mut child, PATIENCE).code(), Some(0), "{args:?}");
        let mut said = String::new();
        std::io::Read::read_to_string(child.stderr.as_mut().expect("piped"), &mut said).expect("stderr is read");
        assert_eq!(said, "", "{args:?}");
    }
    let mut watch =
        dev.command(&["status", "--watch"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts");
    std::io::Read::read_exact(watch.stdout.as_mut().expect("piped"), &mut [0; 8]).expect("a first table");
    signal(i32::try_from(watch.id()).expect("a process id"), Signal::TERM);
    assert_eq!(wait_for_exit(&mut watch, PATIENCE).code(), Some(0));
}

#[test]
fn each_line_is_delivered_as_it_comes() {
    let dev = Dev::start(1, &[]);
    let mut append =
        dev.command(&["append", "--acks"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut stdin = append.stdin.take().expect("piped");
    let mut acks = std::io::BufReader::new(append.stdout.take().expect("piped"));
    for number in 0..5 {
        writeln!(stdin, "line {number}").expect("written");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut acks, &mut line).expect("an acknowledgement");
        assert_eq!(line, format!("{number}..{number}\n"));
    }
    drop(stdin);
    assert!(wait_for_exit(&mut append, PATIENCE).success());
}

#[test]
fn errors_of_a_running_cluster_have_their_codes() {
    let dev = Dev::start(1, &[]);
    let json = |args: &[&str], input: &[u8], code| dev.run_with(args, input).expect(code).error();
    let input = [&b"a\nb\n"[..], &vec![b'x'; (1 << 20) + 1], b"\nc\n"].concat();
    let error = json(&["append", "--json"], &input, 4);
    assert_eq!(error["code"], "too_large");
    assert_eq!(error["details"]["acknowledged"], serde_json::json!({"first": 0, "last": 1, "records": 2}));
    assert_eq!(dev.run(&["read"]).expect(0).text(), "a\nb\n", "what came before is there, the rest is not");

    let error = json(&["append", "--json", "--expect", "7"], b"x\n", 4);
    assert_eq!((error["code"].as_str(), error["details"]["next_offset"].as_u64()), (Some("conflict"), Some(2)));
    assert!(error["details"]["acknowledged"].is_null());
    dev.run_with(&["append", "--expect", "2"], b"x\n").expect(0);

    let error = json(&["read", "--json", "--from", "4"], b"", 4);
    assert_eq!((error["code"].as_str(), error["details"]["next_offset"].as_u64()), (Some("out_of_range"), Some(3)));
    assert!(dev.run(&["read", "--from", "3"]).expect(0).stdout.is_empty());
    assert_eq!(dev.run(&["read", "--format", "none"]).expect(0).text(), "3\n");
    json(&["read", "--json", "--node", "n9"], b"", 2);
    assert_eq!(dev.status()["leader"], "n1");
    dev.run(&["transfer", "n1"]).expect(0);
}
