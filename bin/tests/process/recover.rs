//! A majority is gone for good: the survivor becomes the first node of a new cluster, by the lines that the command prints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{Dev, Done, run, wait_for};
use crate::member::{is_whole, new_node, voters};

/// Records of the large log.
const LINES: u64 = 200_000;
const NODES: [&str; 3] = ["n1", "n2", "n3"];

fn recover(dev: &Dev, args: &[&str]) -> Done {
    let config = dev.config("n1");
    run(["recover", "--config", config.to_str().expect("UTF-8")].iter().chain(args))
}

/// Every file below a directory, with its bytes.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(tree(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).expect("readable"));
        }
    }
    found
}

/// A cluster whose nodes are all down, with `lines` numbered records.
fn fallen(lines: u64, settings: &[&str]) -> Dev {
    let dev = Dev::start(3, settings);
    let input: String = (0..lines).map(|line| format!("{line}\n")).collect();
    dev.run_with(&["append"], input.as_bytes()).expect(0);
    is_whole(&dev, "n1", lines);
    fall(&dev);
    dev
}

/// Ends all nodes.
fn fall(dev: &Dev) {
    NODES.iter().for_each(|name| dev.kill(name));
    // The lock goes with the last thread of a process, a moment after the process is gone for others.
    let data = dev.dir.join("n1/data");
    wait_for("the lock to be free", || (run(["wal", "verify", data.to_str()?]).code() == 0).then_some(()));
}

/// The line of the output that begins like this.
fn line<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start:?} in {text}"))
}

#[test]
fn a_survivor_becomes_a_cluster_that_grows_back_to_three() {
    // More than goes in one message: a new node holds a part of it, with the members of before, for a while.
    let mut dev = fallen(LINES, &["wal.segment_bytes=1M"]);
    let home = dev.dir.clone();
    let old_client = dev.client.clone();
    let old_files =
        ["ca.crt", "node.crt", "node.key"].map(|name| std::fs::read(home.join("n1").join(name)).expect("there"));

    // Without consent it only speaks.
    let before = tree(&home.join("n1"));
    let told = recover(&dev, &[]).expect(2);
    assert_eq!(tree(&home.join("n1")), before, "nothing was changed");
    for word in ["next offset 200000", "graven wal inspect", "may lose", "highest term", "session_expired"] {
        assert!(told.text().contains(word), "{word}: {}", told.text());
    }
    assert!(
        told.stderr.contains("nothing was changed") && told.stderr.contains("--accept-data-loss"),
        "{}",
        told.stderr
    );
    let json = recover(&dev, &["--json"]).expect(2).error();
    assert_eq!(json["details"]["plan"]["next_offset"], LINES);

    let done = recover(&dev, &["--accept-data-loss"]).expect(0).text();
    let dir = home.join("n1/recovered-1");
    assert!(done.contains(dir.to_str().expect("UTF-8")), "{done}");
    for (name, bytes) in ["ca.crt", "node.crt", "node.key"].iter().zip(&old_files) {
        assert_eq!(&std::fs::read(dir.join("certificates.before").join(name)).expect("kept"), bytes, "{name}");
        assert_ne!(&std::fs::read(home.join("n1").join(name)).expect("new"), bytes, "{name}");
    }
    assert!(line(&done, "graven start").contains("n1/graven.toml"));
    assert!(line(&done, "graven init --join").contains("recovered-1"));

    // It leads alone, with everything it had.
    dev.start_node("n1");
    (dev.dir, dev.client) = (dir.clone(), dir.join("client.toml"));
    assert_eq!(dev.leader(), "n1");
    is_whole(&dev, "n1", LINES);
    dev.run_with(&["append"], format!("{LINES}\n").as_bytes()).expect(0);
    assert_eq!(voters(&dev), ["n1"]);
    // Neither is it needed again.
    let running = run(["recover", "--config", home.join("n1/graven.toml").to_str().expect("UTF-8")]).expect(2);
    let pid = running.stderr.split("process ").nth(1).and_then(|rest| rest.split(';').next()).map(str::to_owned);
    assert!(pid.is_some_and(|pid| pid.parse::<u32>().is_ok()), "{}", running.stderr);

    // Clients of the old cluster are refused.
    let old_client = old_client.to_str().expect("UTF-8");
    run(["read", "--client", old_client, "--timeout", "20s"]).expect(5);

    // What is beside any authority is beside this one.
    let at = dir.to_str().expect("UTF-8");
    run(["certs", "client", "loader", "--role", "append", "--dir", at]).expect(0);
    let loader = dir.join("client-loader/client.toml");
    run(["read", "--client", loader.to_str().expect("UTF-8")]).expect(0);
    run(["certs", "node", "n1", "--address", "127.0.0.1", "--dir", at]).expect(0);
    run(["certs", "check", home.join("n1/node.crt").to_str().expect("UTF-8")]).expect(0);

    // Three again.
    for name in ["n4", "n5"] {
        let address = new_node(&mut dev, name);
        let config = std::fs::read_to_string(dev.config(name)).expect("a configuration");
        assert!(config.contains("segment_bytes = \"1M\""), "settings are those of the survivor: {config}");
        dev.run(&["member", "add", name, "--address", &address]).expect(0);
        dev.run(&["member", "promote", name]).expect(0);
    }
    assert_eq!(voters(&dev), ["n1", "n4", "n5"]);
    is_whole(&dev, "n4", LINES + 1);
    let ids: Vec<u64> =
        dev.status()["nodes"].as_array().expect("nodes").iter().filter_map(|n| n["id"].as_u64()).collect();
    assert!(ids == [1, 4, 5], "an id is never given again: {ids:?}");

    // A member of the old cluster comes back: nobody takes it for one of this one's.
    let before = dev.status();
    dev.dir.clone_from(&home);
    dev.start_node("n2");
    dev.dir = dir;
    let log = home.join("n2/by-hand.log");
    wait_for("the old member to be told why", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().any(|line| line.contains("another cluster") || line.contains("certificate")).then_some(())
    });
    dev.run_with(&["append"], format!("{}\n", LINES + 1).as_bytes()).expect(0);
    is_whole(&dev, "n5", LINES + 2);
    let after = dev.status();
    assert_eq!((&after["leader"], &after["nodes"][0]["term"]), (&before["leader"], &before["nodes"][0]["term"]));
    // The survivor is no longer needed either.
    let pid = dev.status()["nodes"][0]["pid"].as_i64().expect("a process");
    crate::common::signal(i32::try_from(pid).expect("a pid"), rustix::process::Signal::KILL);
    dev.run_with(&["append", "--timeout", "30s"], b"5\n").expect(0);
}

#[test]
fn a_node_that_runs_or_is_damaged_or_needs_nobody_is_refused() {
    let dev = fallen(50, &[]);
    // Damage: the middle of the first segment's records.
    let segment = dev.dir.join("n1/data/0000000000000001.seg");
    let whole = std::fs::read(&segment).expect("a segment");
    let mut bytes = whole.clone();
    bytes[4096 + 80] ^= 1;
    std::fs::write(&segment, &bytes).expect("written");
    for args in [&["--accept-data-loss"][..], &[]] {
        let refused = recover(&dev, args).expect(6);
        assert!(refused.stderr.contains("graven wal verify"), "{}", refused.stderr);
    }
    assert_eq!(std::fs::read(&segment).expect("a segment"), bytes, "nothing was changed");
    std::fs::write(&segment, &whole).expect("written");
    recover(&dev, &["--accept-data-loss"]).expect(0);
    let again = recover(&dev, &["--accept-data-loss"]).expect(2);
    assert!(again.stderr.contains("only voter"), "{}", again.stderr);
    run(["recover", "--config", "/nonexistent/graven.toml", "--accept-data-loss"]).expect(2);
}

#[test]
fn an_interrupted_recovery_is_gone_on_with_and_nothing_starts_meanwhile() {
    let mut dev = fallen(20, &[]);
    let old_key = std::fs::read(dev.dir.join("n1/node.key")).expect("a key");
    // In the way when the certificates are replaced, after the log has its new identity.
    let obstacle = dev.dir.join("n1/node.recover-new");
    std::fs::create_dir(&obstacle).expect("made");
    let failed = recover(&dev, &["--accept-data-loss"]).expect(1);
    assert!(failed.stderr.contains("run the same command again"), "{}", failed.stderr);
    let config = dev.config("n1");
    let config = config.to_str().expect("UTF-8");
    let start = run(["start", "--config", config]).expect(2);
    assert!(start.stderr.contains("graven recover --config"), "{}", start.stderr);
    let data = dev.dir.join("n1/data");
    let verify = run(["wal", "verify", data.to_str().expect("UTF-8")]).expect(2);
    assert!(verify.stderr.contains("graven recover"), "{}", verify.stderr);
    let asked = recover(&dev, &[]).expect(2);
    assert!(asked.stderr.contains("interrupted"), "{}", asked.stderr);
    std::fs::remove_dir(&obstacle).expect("removed");
    recover(&dev, &["--accept-data-loss"]).expect(0);
    let dir = dev.dir.join("n1/recovered-1");
    assert_eq!(
        std::fs::read(dir.join("certificates.before/node.key")).expect("kept"),
        old_key,
        "the first run kept it"
    );
    assert!(!dev.dir.join("n1/recovered-2").exists());
    dev.start_node("n1");
    (dev.dir, dev.client) = (dir.clone(), dir.join("client.toml"));
    is_whole(&dev, "n1", 20);
    dev.run_with(&["append"], b"20\n").expect(0);
}

#[test]
fn a_trimmed_log_keeps_its_checkpoints_and_gives_them_to_new_nodes() {
    let mut dev = Dev::start(3, &["wal.segment_bytes=64K"]);
    let text = |from: u64| (from..6000).map(|line| format!("{line:060}\n")).collect::<String>();
    dev.run_with(&["append"], text(0).as_bytes()).expect(0);
    dev.run(&["trim", "--before", "5000"]).expect(0);
    let first = dev.dir.join("n1/data/0000000000000001.seg");
    wait_for("the log to be let go of", || (!first.exists()).then_some(()));
    fall(&dev);
    let told = recover(&dev, &[]).expect(2).text();
    assert!(!told.contains("entries 1.."), "{told}");
    recover(&dev, &["--accept-data-loss"]).expect(0);
    dev.start_node("n1");
    let dir = dev.dir.join("n1/recovered-1");
    (dev.dir, dev.client) = (dir.clone(), dir.join("client.toml"));
    dev.leader();
    assert_eq!(dev.run(&["read", "--from", "5000"]).expect(0).text(), text(5000));
    // The new node begins with a checkpoint: what was before it is nowhere.
    let address = new_node(&mut dev, "n4");
    dev.run(&["member", "add", "n4", "--address", &address]).expect(0);
    dev.run(&["member", "promote", "n4", "--timeout", "30s"]).expect(0);
    let read = wait_for("the new node to answer", || {
        let read = dev.run(&["read", "--from", "5000", "--until", "6000", "--node", "n4"]);
        (read.code() == 0).then_some(read)
    });
    assert_eq!(read.text(), text(5000));
}
