//! Backups of running clusters, and the clusters that are made of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::bare::{Bare, can_trace, skipped, works};
use crate::common::{Dev, Done, finish, free_base_port, graven, run, wait_for};
use crate::member::Load;

/// So small that a few megabytes are a hundred of them.
const TINY_SEGMENTS: &str = "wal.segment_bytes=64K";

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn json(done: Done) -> Value {
    serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

/// `graven restore` into `dir`, with nodes n1 to nN on free ports.
fn restore_command(backup: &Path, dir: &Path, nodes: u16) -> Command {
    let base = free_base_port(nodes);
    let mut command = graven();
    command.args(["--json", "restore"]).arg(backup).arg("--dir").arg(dir).args(["--set", TINY_SEGMENTS]);
    for node in 1..=nodes {
        command.arg("--node").arg(format!("n{node}=127.0.0.1:{}", base + 10 * (node - 1)));
    }
    command
}

/// A running cluster made of a backup.
fn restored(backup: &Path, nodes: u16) -> (Bare, Value) {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let dir = temp.path().join("restored");
    let told = json(finish(&mut restore_command(backup, &dir, nodes), b"").expect(0));
    let mut bare = Bare::over(dir, nodes, temp);
    bare.start_all();
    (bare, told)
}

/// Every record that a node gives below `until`, with offset and time.
fn records(run: impl Fn(&[&str]) -> Done, until: u64) -> Vec<u8> {
    let until = until.to_string();
    run(&["read", "--format", "json", "--until", &until]).expect(0).stdout
}

/// A cluster of one node with a small log, and a backup of it.
fn small() -> (Dev, TempDir, PathBuf) {
    let dev = Dev::start(1, &[TINY_SEGMENTS]);
    for piece in 0..4 {
        dev.run_with(&["append"], format!("a record\nanother one of piece {piece}\n").as_bytes()).expect(0);
    }
    let temp = tempfile::tempdir().expect("a temporary directory");
    let backup = temp.path().join("backup");
    dev.run(&["backup", text(&backup)]).expect(0);
    (dev, temp, backup)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

#[test]
fn a_backup_under_load_is_a_prefix_and_becomes_clusters_with_every_record_at_its_place() {
    let dev = Dev::start(3, &[TINY_SEGMENTS]);
    let load = Load::start(&dev);
    let committed = || dev.status()["nodes"][0]["next_offset"].as_u64().filter(|next| *next > 2_000);
    let before = wait_for("some thousand records", committed);
    dev.run(&["cursor", "set", "billing", "1234"]).expect(0);
    let temp = tempfile::tempdir().expect("a temporary directory");
    let backup = temp.path().join("made/backup");
    let told = json(dev.run(&["--json", "backup", text(&backup)]).expect(0));
    let appended = load.end();
    let next = told["next_offset"].as_u64().expect("an offset");
    assert!((before..=appended).contains(&next), "what was committed before it began is in it: {told}");
    assert_eq!((told["first_offset"].as_u64(), told["records"].as_u64()), (Some(0), Some(next)));
    let checked = json(run(["--json", "backup", "--verify", text(&backup)]).expect(0));
    assert_eq!(checked, told);
    let original = records(|args| dev.run(args), next);
    assert_eq!(original.iter().filter(|byte| **byte == b'\n').count() as u64, next);

    for nodes in [1, 3] {
        let (mut bare, told) = restored(&backup, nodes);
        assert_ne!(told["cluster_id"], told["backup"]["cluster_id"]);
        for node in 1..=nodes {
            let name = format!("n{node}");
            let here = records(|args| bare.run(&[args, &["--node", &name]].concat(), b""), next);
            assert!(here == original, "{nodes} nodes, {name}: a record, an offset or a time differs");
        }
        let cursor = json(bare.run(&["--json", "cursor", "get", "billing"], b"").expect(0));
        assert_eq!(cursor["offset"], 1234);
        let acked = json(bare.run(&["append", "--json"], b"after\n").expect(0));
        assert_eq!(acked["first"].as_u64(), Some(next), "appends go on where the backup ends");
        // The old cluster's certificates are worth nothing here, and its nodes are nobody.
        let endpoints = std::fs::read_to_string(bare.dir.join("client.toml")).expect("a file");
        let endpoints = endpoints.lines().find(|line| line.starts_with("endpoints")).expect("endpoints").to_owned();
        let old = std::fs::read_to_string(&dev.client).expect("a file");
        let mixed: String = old
            .lines()
            .map(|line| if line.starts_with("endpoints") { endpoints.clone() } else { line.to_owned() } + "\n")
            .collect();
        let file = dev.dir.join(format!("mixed-{nodes}.toml"));
        std::fs::write(&file, mixed).expect("written");
        run(["read", "--client", text(&file), "--timeout", "20s"]).expect(5);
        let list = json(bare.run(&["member", "list", "--json"], b"").expect(0));
        let ids: Vec<u64> =
            list["members"].as_array().expect("members").iter().filter_map(|member| member["id"].as_u64()).collect();
        assert_eq!(ids, (4..4 + u64::from(nodes)).collect::<Vec<_>>(), "no id of the old cluster is given again");
        // It stands on its own: a restart finds everything again.
        for node in 1..=nodes {
            bare.kill(node);
        }
        bare.start_all();
        assert!(records(|args| bare.run(args, b""), next) == original);
    }
}

#[test]
fn a_trimmed_log_begins_where_it_began_and_new_nodes_get_all_of_it() {
    let dev = Dev::start(1, &[TINY_SEGMENTS]);
    let lines = |from: u64, to: u64| (from..to).map(|line| format!("{line:060}\n")).collect::<String>();
    for from in (0..6_000).step_by(500) {
        dev.run_with(&["append", "--batch", "20"], lines(from, from + 500).as_bytes()).expect(0);
    }
    dev.run(&["trim", "--before", "5000"]).expect(0);
    let first = dev.dir.join("n1/data/0000000000000001.seg");
    wait_for("the log to be let go of", || (!first.exists()).then_some(()));
    let temp = tempfile::tempdir().expect("a temporary directory");
    let backup = temp.path().join("backup");
    let told = json(dev.run(&["--json", "backup", text(&backup)]).expect(0));
    assert_eq!((told["first_offset"].as_u64(), told["next_offset"].as_u64()), (Some(5_000), Some(6_000)));
    assert!(told["first_index"].as_u64() > Some(1) && backup.join("checkpoint").exists(), "{told}");
    let original = records(|args| dev.run(args), 6_000);

    let (mut bare, _) = restored(&backup, 1);
    assert!(records(|args| bare.run(args, b""), 6_000) == original);
    let below = bare.run(&["--json", "read", "--from", "4999"], b"").expect(4).error();
    assert_eq!((below["code"].as_str(), below["details"]["first_offset"].as_u64()), (Some("trimmed"), Some(5_000)));

    // A node that is added meets every membership of the old cluster before those of its own.
    let address = format!("127.0.0.1:{}", free_base_port(1));
    run(["init", "--join", &format!("n2={address}"), "--dir", text(&bare.dir)]).expect(0);
    bare.grow();
    bare.start(2, &[]);
    bare.run(&["member", "add", "n2", "--address", &address], b"").expect(0);
    bare.run(&["member", "promote", "n2", "--timeout", "30s"], b"").expect(0);
    bare.run(&["append"], b"after\n").expect(0);
    bare.wait_for_equal_offsets();
    assert!(records(|args| bare.run(&[args, &["--node", "n2"]].concat(), b""), 6_000) == original);
    // Both are needed now, so each holds what the other relies on.
    bare.lead(2);
    bare.run(&["trim", "--before", "6001"], b"").expect(0);

    // And a backup of what was restored is a backup.
    let again = temp.path().join("again");
    let told = json(bare.run(&["--json", "backup", text(&again)], b"").expect(0));
    assert_eq!((told["first_offset"].as_u64(), told["next_offset"].as_u64()), (Some(6_001), Some(6_001)));
    let (bare, _) = restored(&again, 1);
    let acked = json(bare.run(&["append", "--json"], b"x\n").expect(0));
    assert_eq!(acked["first"], 6_001);
}

#[test]
fn a_changed_byte_anywhere_is_found_and_nothing_is_made_of_it() {
    let (_dev, temp, backup) = small();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for name in names(&backup) {
        files.insert(name.clone(), std::fs::read(backup.join(name)).expect("a file"));
    }
    assert!(files.contains_key("manifest.toml") && files.keys().any(|name| name.starts_with("frames-")));
    let target = temp.path().join("target");
    let mut random = seed;
    for round in 0..24 {
        // Weyl steps, mixed: any byte of any file.
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let draw = (random ^ (random >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 8;
        let (name, whole) = files.iter().nth(round % files.len()).expect("a file");
        let (at, bit) = ((draw >> 3) as usize % whole.len(), draw % 8);
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << bit;
        std::fs::write(backup.join(name), &bytes).expect("written");
        let done = run(["--json", "backup", "--verify", text(&backup)]);
        assert_eq!(done.code(), 6, "seed {seed}: bit {bit} of byte {at} of {name}: {done:?}");
        let error = done.error();
        let details = &error["details"];
        assert_eq!((error["code"].as_str(), details["file"].as_str()), (Some("damaged"), Some(name.as_str())));
        let range = details["from"].as_u64().expect("a byte")..details["to"].as_u64().expect("a byte");
        assert!(range.contains(&(at as u64)), "seed {seed}: byte {at} of {name} is not in {range:?}");
        if round < files.len() {
            finish(&mut restore_command(&backup, &target, 1), b"").expect(6);
            assert!(!target.exists(), "nothing is made of damage");
        }
        std::fs::write(backup.join(name), whole).expect("written");
    }
    run(["backup", "--verify", text(&backup)]).expect(0);
}

#[test]
fn what_is_in_the_way_or_was_not_finished_or_is_not_allowed_is_one_sentence() {
    let (dev, temp, backup) = small();
    let one = |done: Done, code: i32, words: &str| {
        let done = done.expect(code);
        let message = done.error()["message"].as_str().expect("a sentence").to_owned();
        assert!(message.contains(words) && !message.contains('\n'), "{message}");
    };
    let target = temp.path().join("target");
    let restore = |from: &Path| finish(&mut restore_command(from, &target, 1), b"");

    // Something in the way: neither touches it.
    one(dev.run(&["--json", "backup", text(&backup)]), 2, "is not empty");
    run(["backup", "--verify", text(&backup)]).expect(0);
    std::fs::create_dir(&target).expect("made");
    std::fs::write(target.join("mine"), b"mine").expect("written");
    one(restore(&backup), 2, "exists already");
    assert_eq!(names(&target), ["mine"]);
    std::fs::remove_dir_all(&target).expect("removed");

    // Roles below admin.
    for role in ["read", "append"] {
        run(["certs", "client", role, "--role", role, "--dir", text(&dev.dir)]).expect(0);
        let client = dev.dir.join(format!("client-{role}/client.toml"));
        let mut command = graven();
        command.args(["--json", "backup", text(&target), "--client", text(&client)]);
        one(finish(&mut command, b""), 5, "needs admin");
        assert!(!target.exists());
    }

    // No backup, half a backup.
    one(restore(&dev.dir), 2, "no backup");
    let manifest = backup.join("manifest.toml");
    let whole = std::fs::read(&manifest).expect("a manifest");
    std::fs::rename(&manifest, backup.join("manifest.toml.new")).expect("renamed");
    one(restore(&backup), 2, "unfinished");
    one(run(["--json", "backup", "--verify", text(&backup)]), 2, "unfinished");
    assert!(!target.exists());
    std::fs::write(&manifest, whole).expect("written");

    // A node that is named and is not there, and nodes that make no cluster.
    one(dev.run(&["--json", "backup", text(&target), "--node", "n9"]), 2, "n9");
    let twice = ["--json", "restore", text(&backup), "--dir", text(&target), "--node", "n1=127.0.0.1:7000"];
    one(run(twice.iter().chain(&["--node", "n1=127.0.0.1:7010"])), 2, "two nodes are called n1");
    assert!(!target.exists());
    // An empty directory is as good as none.
    std::fs::create_dir(&target).expect("made");
    finish(&mut restore_command(&backup, &target, 1), b"").expect(0);
}

#[test]
fn a_backup_that_is_killed_before_its_end_is_told_apart_and_one_that_is_stopped_leaves_nothing() {
    if !can_trace() {
        return skipped("strace, which ends the command at a chosen call, is missing or not allowed here");
    }
    let dev = Dev::start(1, &[TINY_SEGMENTS]);
    dev.run_with(&["append"], b"a record\n").expect(0);
    let temp = tempfile::tempdir().expect("a temporary directory");
    let made = |name: &str, signal: &str| {
        let backup = temp.path().join(name);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=rename"]);
        // The last step: the manifest gets its name.
        traced.arg("-e").arg(format!("inject=rename:error=EIO:signal={signal}:when=1"));
        traced.arg(env!("CARGO_BIN_EXE_graven")).arg("--client").arg(&dev.client).args(["backup", text(&backup)]);
        let done = finish(&mut traced, b"");
        assert_ne!(done.code(), 0, "{done:?}");
        backup
    };
    let killed = made("killed", "KILL");
    let left = names(&killed);
    assert!(left.iter().any(|name| name == "manifest.toml.new"), "{left:?}");
    let refused = run(["backup", "--verify", text(&killed)]).expect(2);
    assert!(refused.stderr.contains("unfinished"), "{}", refused.stderr);
    finish(&mut restore_command(&killed, &temp.path().join("target"), 1), b"").expect(2);
    assert!(!temp.path().join("target").exists());
    // Not by itself removed either: it is for people to say that nobody needs it.
    dev.run(&["backup", text(&killed)]).expect(2);
    assert_eq!(names(&killed).len(), left.len());

    let failed = made("failed", "WINCH");
    assert!(!failed.exists(), "what failed leaves nothing");
}

#[test]
fn a_full_disk_is_one_sentence_and_leaves_no_backup_and_no_cluster() {
    if !works("unshare", &["-m", "sh", "-c", "mount --make-rprivate / && mount -t tmpfs none /mnt"]) {
        return skipped("mounting small file systems in a mount namespace of its own is not allowed here");
    }
    let dev = Dev::start(1, &[TINY_SEGMENTS]);
    dev.run_with(&["append", "--batch", "100"], &format!("{}\n", "x".repeat(999)).repeat(3_000).into_bytes()).expect(0);
    let temp = tempfile::tempdir().expect("a temporary directory");
    // Runs a command whose last argument is a directory on a file system of this size; what is left there is printed.
    let on_small_disk = |size: &str, words: Vec<String>| {
        let place = temp.path().join("small");
        std::fs::create_dir_all(&place).expect("made");
        let script = format!(
            "mount --make-rprivate / && mount -t tmpfs -o size={size} none {0} && \"$@\"; code=$?; ls -A {0}; exit $code",
            text(&place)
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_graven"), "--json"]).args(words);
        finish(&mut command, b"").expect(4)
    };
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let place = temp.path().join("small/it");
    let done = on_small_disk("1m", words(&["--client", text(&dev.client), "backup", text(&place)]));
    assert_eq!((done.error()["code"].as_str(), done.text().as_str()), (Some("disk_full"), ""), "{done:?}");

    let backup = temp.path().join("backup");
    dev.run(&["backup", text(&backup)]).expect(0);
    let node = format!("n1=127.0.0.1:{}", free_base_port(1));
    let restore = ["restore", text(&backup), "--dir", text(&place), "--node", &node, "--set", TINY_SEGMENTS];
    for size in ["2m", "64k", "1m"] {
        let done = on_small_disk(size, words(&restore));
        assert_eq!((done.error()["code"].as_str(), done.text().as_str()), (Some("disk_full"), ""), "{size}: {done:?}");
    }
}
