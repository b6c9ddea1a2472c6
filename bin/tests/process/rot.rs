//! Rot and worse, on real disks: any bit of any file of a stopped node, a log that differs, and a node inside a program.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::{self, Dev, run, wait_for};
use crate::heal::{
    append, checkpoints, cluster, data, entries, flip, follower, log, sealed, state, trimmed, verify_stopped,
};

/// A log in which one acknowledged record is another, every sum of it right, as a disk that lies, or a copy put back, could leave it.
fn forge(dir: &Path) -> u64 {
    use graven_frame::{Chain, Frame, GroupBuilder, GroupHeaderSpec, HeaderSpec, Kind};
    use graven_wal::{Disk as _, LogBase, Options, RealDisk, Wal};
    let options = || Options { segment_bytes: 64 << 10, ..Options::default() };
    let (wal, found) = Wal::open(RealDisk::open(dir), options()).expect("whole");
    let reader = wal.reader();
    let mut frames: Vec<Frame> = Vec::new();
    let (mut next, last) = (found.first_index, found.last_index);
    while next <= last {
        let some = reader.frames(next, last, 1 << 20).expect("readable");
        next += some.len() as u64;
        frames.extend(some);
    }
    let at = frames.iter().rposition(|frame| frame.header().kind == Kind::Records).expect("records");
    let header = *frames[at].header();
    let before = LogBase::after(frames[at - 1].header());
    let mut builder = GroupBuilder::new();
    (0..header.count).for_each(|_| builder.push(b"", b"a record that nobody appended").expect("small"));
    let group = builder.finish(GroupHeaderSpec::default());
    let spec = HeaderSpec {
        kind: Kind::Records,
        term: header.term,
        index: header.index,
        base_offset: header.base_offset,
        count: header.count,
        timestamp_ms: header.timestamp_ms,
    };
    let forged = Frame::seal(spec, before.chain, group.body().clone(), group.crc());
    assert_ne!((forged.header().chain, forged.header().chain), (header.chain, Chain::START));
    frames.truncate(at);
    frames.push(forged);
    wal.close().expect("no fault");
    let disk = RealDisk::open(dir);
    for name in disk.list().expect("a list") {
        if fs::metadata(dir.join(&name)).expect("there").is_file() {
            fs::remove_file(dir.join(&name)).expect("removed");
        }
    }
    Wal::create(disk.clone(), found.identity, options(), &frames[..1]).expect("made");
    let (mut wal, _) = Wal::open(disk, options()).expect("whole");
    wal.set_hard_state(found.hard_state).expect("room");
    wal.append(&frames[1..]).expect("room");
    wal.sync().expect("no fault");
    // What it knew to be committed: its readers would be given the forged record.
    wal.note_commit(header.index);
    wal.close().expect("no fault");
    header.index
}

/// Equal index and term, another record: the node says so, stops, and does not come back.
#[test]
fn a_node_whose_log_differs_says_so_and_serves_nothing_more() {
    let (dev, mut all) = cluster(3);
    let node = follower(&dev);
    let others: Vec<String> = ["n1", "n2", "n3"].map(str::to_owned).into_iter().filter(|it| *it != node).collect();
    wait_for("the node to follow", || (dev.run(&["read", "--node", &node]).stdout == all).then_some(()));
    dev.kill(&node);
    let index = forge(&data(&dev, &node));
    let config = dev.config(&node);
    let start = || run(["start", "--config", config.to_str().expect("UTF-8"), "--json"]).expect(6);
    let message = start().error()["message"].as_str().expect("a sentence").to_owned();
    for word in ["differs", "entry", "graven member replace"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    let said = start();
    assert_eq!(said.text(), "", "it never was ready again");
    let message = said.error()["message"].as_str().expect("a sentence").to_owned();
    assert!(message.contains("differs") && message.contains("diverged"), "entry {index}: {message}");
    assert_eq!(state(&dev, &node)["reachable"], false);
    all.extend(append(&dev, 100));
    for other in &others {
        wait_for("the others to go on", || (dev.run(&["read", "--node", other]).stdout == all).then_some(()));
    }
}

/// What a flipped bit may hit in a data directory.
fn target(dir: &Path, kind: usize, random: &mut impl FnMut(u64) -> u64) -> Option<(&'static str, PathBuf, u64)> {
    let mut segments: Vec<(String, String)> = Vec::new();
    for (state, name, _) in entries(dir) {
        if segments.last().is_none_or(|last| last.1 != name) {
            segments.push((state, name));
        }
    }
    let path = |name: &str| dir.join(format!("{name}.seg"));
    let sealed: Vec<&String> = segments.iter().filter(|it| it.0 == "sealed").map(|it| &it.1).collect();
    let active = segments.iter().find(|it| it.0 == "active").map(|it| path(&it.1));
    let one = sealed.get(random(sealed.len() as u64) as usize).map(|name| path(name))?;
    let len = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    let all: Vec<PathBuf> = checkpoints(dir);
    Some(match kind % 10 {
        0 => ("the opening of a sealed segment", one, random(4096)),
        1 | 2 => ("the records of a sealed segment", one, 4096 + random(48 << 10)),
        3 => ("the end of a sealed segment", one.clone(), len(&one) - 1 - random(4096)),
        4 => ("the opening of the active segment", active?, random(4096)),
        5 => ("the records of the active segment", active?, 4096 + random(8192)),
        6 => {
            let checkpoint = all.get(random(all.len() as u64) as usize)?.clone();
            ("a checkpoint", checkpoint.clone(), random(len(&checkpoint)))
        }
        7 => ("the record of what was let go of", dir.join("released"), random(8192)),
        8 => ("the space for cut bytes", dir.join("cut"), random(len(&dir.join("cut")))),
        _ => ("the hint where the others are", dir.parent()?.join("peers.toml"), random(150)),
    })
}

/// Any bit of any file of a stopped node: it is named where it matters, and the node is whole again, or never was anything else.
#[test]
fn a_flipped_bit_anywhere_in_a_stopped_node_costs_nothing() {
    let seed: u64 = std::env::var("GRAVEN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("GRAVEN_SEED={seed}");
    let rounds = if std::env::var_os("GRAVEN_LONG").is_some() { 200 } else { 20 };
    let mut state_of = seed;
    let mut random = |limit: u64| {
        // SplitMix64, so that a seed means the same everywhere.
        state_of = state_of.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state_of ^ (state_of >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    };
    let (mut dev, all) = trimmed();
    let node = follower(&dev);
    let dir = data(&dev, &node);
    let verify = || run(["wal", "verify", dir.to_str().expect("UTF-8")]);
    let mut named = 0;
    for round in 0..rounds {
        verify_stopped(&dev, &node);
        let Some((what, path, at)) = target(&dir, round, &mut random) else { panic!("round {round}: nothing to hit") };
        let bit = random(8);
        println!("round {round}: bit {bit} of byte {at} of {}: {what}", path.display());
        let mut bytes = fs::read(&path).expect("readable");
        let Some(byte) = bytes.get_mut(at as usize) else {
            dev.start_node(&node);
            continue;
        };
        *byte ^= 1 << bit;
        fs::write(&path, bytes).expect("written");
        let done = verify();
        assert!([0, 6].contains(&done.code()), "round {round}: {}", done.stderr);
        if done.code() == 6 {
            named += 1;
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            assert!(done.stderr.contains(&name), "round {round}: {name} is not named: {}", done.stderr);
        }
        dev.start_node(&node);
        let deadline = Instant::now() + common::PATIENCE;
        loop {
            // Damage in a sealed segment is found when all of it has been read.
            let said = log(&dev, &node);
            let seen = said.rsplit("log opened").next().unwrap_or_default().contains("was read once");
            let state = state(&dev, &node);
            let read = dev.run(&["read", "--node", &node]);
            assert!(all.starts_with(&read.stdout), "round {round}: a wrong byte was served");
            if seen && state["state"] == "ok" && read.code() == 0 && read.stdout == all {
                break;
            }
            assert!(Instant::now() < deadline, "round {round}: {state}; {}; {said}", read.stderr);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    println!("{named} of {rounds} were damage");
    assert!(named >= rounds / 3, "{named} of {rounds}");
}

/// What tells where a trimmed log begins is kept in more than one place, and after each damage in all of them again.
#[test]
fn the_beginning_of_a_trimmed_log_outlasts_one_damage_after_the_other() {
    let (mut dev, all) = trimmed();
    let node = follower(&dev);
    let dir = data(&dev, &node);
    verify_stopped(&dev, &node);
    let released = dir.join("released");
    let first = sealed(&dir, 0).0;
    let base = checkpoints(&dir).into_iter().min().expect("a checkpoint");
    // The first block of the record, the checkpoint that was made of its entry, the other block, the opening of the first file.
    for (path, at) in [(&released, 40), (&base, 100), (&released, 4096 + 20), (&first, 1800)] {
        let mut bytes = fs::read(path).expect("readable");
        bytes[at] ^= 4;
        fs::write(path, bytes).expect("written");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let done = run(["wal", "verify", dir.to_str().expect("UTF-8")]).expect(6);
        assert!(done.stderr.contains(&name), "{name}: {}", done.stderr);
        dev.start_node(&node);
        wait_for("the node to be whole", || {
            let is_ok = state(&dev, &node)["state"] == "ok";
            (is_ok && dev.run(&["read", "--node", &node]).stdout == all).then_some(())
        });
        verify_stopped(&dev, &node);
    }
    dev.start_node(&node);
}

/// Damage that a running node could not mend is mended by its next start, which goes on with it when the others are down.
#[test]
fn what_could_not_be_mended_while_a_node_ran_is_mended_when_it_starts() {
    let (mut dev, all) = cluster(3);
    let node = follower(&dev);
    let dir = data(&dev, &node);
    wait_for("the node to follow", || (dev.run(&["read", "--node", &node]).stdout == all).then_some(()));
    verify_stopped(&dev, &node);
    let (path, entry) = sealed(&dir, 0);
    let asked = dir.join("mend-at-start");
    flip(&path, entry["at"].as_u64().expect("a place") + 200);
    fs::write(&asked, b"").expect("written");
    dev.start_node(&node);
    wait_for("the node to be whole", || {
        let is_ok = state(&dev, &node)["state"] == "ok";
        (is_ok && dev.run(&["read", "--node", &node]).stdout == all).then_some(())
    });
    assert!(log(&dev, &node).contains("the whole log is read") && !asked.exists());
    verify_stopped(&dev, &node);

    flip(&path, entry["at"].as_u64().expect("a place") + 200);
    fs::write(&asked, b"").expect("written");
    for other in ["n1", "n2", "n3"].into_iter().filter(|it| *it != node) {
        dev.kill(other);
    }
    dev.start_node(&node);
    wait_for("the node to start as it is", || log(&dev, &node).contains("the node starts as it is").then_some(()));
    wait_for("the node to answer", || (state(&dev, &node)["reachable"] == true).then_some(()));
    assert!(!asked.exists(), "asked for again when it is found again");
}

/// Counts what it is given.
#[derive(Debug)]
struct Counting(u64);

struct Never;

impl graven::WriteSnapshot for Never {
    fn write(self, _: &mut dyn std::io::Write) -> std::io::Result<()> {
        Ok(())
    }
}

impl graven::StateMachine for Counting {
    type Response = u64;
    type Snapshot = Never;

    fn apply(&mut self, batch: &[graven::Record], out: &mut Vec<u64>) -> Result<(), graven::ApplyError> {
        for _ in batch {
            self.0 += 1;
            out.push(self.0);
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Never {
        Never
    }

    fn restore(_: &mut dyn std::io::Read) -> std::io::Result<Counting> {
        Ok(Counting(0))
    }
}

/// A node inside a program mends its log before it starts, as the daemon does, on a runtime of one thread too.
#[test]
fn an_embedded_node_mends_its_log_before_it_starts() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (dev, _) = cluster(3);
    let node = follower(&dev);
    dev.kill(&node);
    fs::remove_file(sealed(&data(&dev, &node), 1).0).expect("removed");
    let config = |dev: &Dev, node: &str| graven::config::NodeConfig::load(dev.config(node)).expect("made by init");
    runtime.block_on(async {
        let started = graven::Node::start(config(&dev, &node), Counting(0)).await.expect("it mends and starts");
        let all = async {
            while started.query(graven::Consistency::Local, |it| it.0).await.expect("it runs") < 3200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(common::PATIENCE, all).await.expect("every record");
        started.shutdown().await;
    });
    run(["wal", "verify", data(&dev, &node).to_str().expect("UTF-8")]).expect(0);

    let (dev, _) = cluster(1);
    dev.kill("n1");
    fs::remove_file(sealed(&data(&dev, "n1"), 1).0).expect("removed");
    let refused = runtime.block_on(graven::Node::start(config(&dev, "n1"), Counting(0))).expect_err("it is alone");
    assert!(matches!(refused, graven::node::StartError::Unmendable { alone: true, .. }), "{refused}");
    assert!(refused.to_string().contains("nothing was deleted"), "{refused}");
}
