//! `graven wal` on the directory of a node that really ran.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Dev, Done, run};

/// A node that took some records, over several segments: what waits together is one entry, so they come in several calls.
fn node() -> Dev {
    let dev = Dev::start(1, &["wal.segment_bytes=65536"]);
    for part in 0..10 {
        let line = |number: usize| format!("{part} {number:08} {}\n", "x".repeat(number));
        let lines: String = (0..200).map(line).collect();
        dev.run_with(&["append"], lines.as_bytes()).expect(0);
    }
    dev
}

fn stopped() -> Dev {
    let mut dev = node();
    assert!(dev.stop().success());
    dev
}

fn data(dev: &Dev) -> PathBuf {
    dev.dir.join("n1/data")
}

fn wal(command: &[&str], dir: &Path) -> Done {
    run(["wal"].iter().chain(command).copied().chain([dir.to_str().expect("UTF-8")]))
}

fn json(done: &Done) -> Vec<Value> {
    let text = done.text();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("list").map(|entry| entry.expect("an entry"));
    let files = entries.filter(|entry| entry.path().is_file());
    files
        .map(|entry| (entry.file_name().into_string().expect("UTF-8"), fs::read(entry.path()).expect("read")))
        .collect()
}

/// An entry with records from the middle of the log, as `inspect --entries` tells it.
fn entry_in_a_sealed_segment(dir: &Path) -> Value {
    let lines = json(&wal(&["inspect", "--json", "--entries"], dir).expect(0));
    let sealed: Vec<&Value> =
        lines[0]["segments"].as_array().expect("segments").iter().filter(|s| s["state"] == "sealed").collect();
    assert!(sealed.len() >= 2, "{}", lines[0]);
    let segment = &sealed[1]["segment"];
    let mut found = lines[1..].iter().filter(|entry| entry["segment"] == *segment && entry["kind"] == "records");
    found.next_back().expect("an entry").clone()
}

fn segment_file(dir: &Path, segment: &Value) -> PathBuf {
    let segment = segment.as_str().expect("a name");
    let names = fs::read_dir(dir).expect("list").map(|entry| entry.expect("an entry").path());
    let mut named =
        names.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(segment)));
    named.next().expect("its file")
}

fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).expect("read");
    bytes[usize::try_from(at).expect("small")] ^= 0x10;
    fs::write(path, bytes).expect("written");
}

#[test]
fn a_running_node_is_inspected_and_not_verified() {
    let dev = node();
    let pid = dev.node_pid("n1").expect("runs");
    let found = json(&wal(&["inspect", "--json"], &data(&dev)).expect(0));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["next_offset"], 2000);
    assert!(found[0]["term"].as_u64() >= Some(1) && found[0]["vote"] == 1, "{}", found[0]);
    for command in [&["verify", "--json"][..], &["repair", "--json"], &["repair", "--json", "--accept-data-loss"]] {
        let error = wal(command, &data(&dev)).expect(2).error();
        assert_eq!(error["details"]["pid"], pid, "{error}");
        assert!(error["message"].as_str().expect("text").contains(&pid.to_string()), "{error}");
    }
}

#[test]
fn a_sound_log_is_verified_and_left_alone() {
    let dev = stopped();
    let before = files(&data(&dev));
    let text = wal(&["verify"], &data(&dev)).expect(0).text();
    assert!(text.contains("sealed") && text.contains("offsets 0..") && text.contains("verified: "), "{text}");
    let found = json(&wal(&["verify", "--json"], &data(&dev)).expect(0));
    assert_eq!((&found[0]["next_offset"], &found[0]["torn_bytes"]), (&Value::from(2000), &Value::from(0)));
    let lines = json(&wal(&["inspect", "--json", "--entries"], &data(&dev)).expect(0));
    let mut indexes = lines[1..].iter().map(|entry| entry["index"].as_u64().expect("an index"));
    assert!((1..=lines.len() as u64 - 1).eq(indexes.by_ref()), "all entries, in order");
    let records: u64 = lines[1..]
        .iter()
        .map(|entry| entry["next_offset"].as_u64().expect("next") - entry["first_offset"].as_u64().expect("first"))
        .sum();
    assert_eq!(records, 2000);
    let mut reached = 0;
    for segment in lines[0]["segments"].as_array().expect("segments").iter().filter(|s| s["state"] != "prepared") {
        assert_eq!(segment["first_offset"], reached, "{segment}");
        reached = segment["next_offset"].as_u64().expect("an offset");
    }
    assert_eq!(reached, 2000);
    let people = wal(&["inspect", "--entries"], &data(&dev)).expect(0).text();
    assert!(people.lines().any(|line| line.starts_with("entry 1 term 1 membership")), "{people}");
    assert!(files(&data(&dev)) == before, "nothing was written");
}

#[test]
fn a_flipped_bit_is_named() {
    let dev = stopped();
    let dir = data(&dev);
    let entry = entry_in_a_sealed_segment(&dir);
    let at = entry["at"].as_u64().expect("a place") + 200;
    flip(&segment_file(&dir, &entry["segment"]), at);
    let before = files(&dir);
    let done = wal(&["verify", "--json"], &dir).expect(6);
    let error = done.error();
    assert_eq!(error["code"], "damaged");
    let damage = &error["details"]["damage"];
    assert_eq!(damage["segment"], entry["segment"], "{error}");
    assert!(damage["from"].as_u64() <= Some(at) && damage["to"].as_u64() > Some(at), "byte {at}: {damage}");
    assert_eq!((&damage["first_index"], &damage["last_index"]), (&entry["index"], &entry["index"]), "{damage}");
    let people = wal(&["verify"], &dir).expect(6).stderr;
    for named in
        [entry["segment"].as_str().expect("a name").to_owned(), damage["from"].to_string(), entry["index"].to_string()]
    {
        assert!(people.contains(&named), "{named}: {people}");
    }
    assert!(people.contains("`graven start`") && people.contains("`graven wal repair --accept-data-loss "), "{people}");
    let holes = error["details"]["holes"].as_array().expect("holes");
    assert_eq!((holes.len(), &holes[0]["from"]), (1, &damage["from"]), "{error}");
    assert!(files(&dir) == before, "nothing was written");
}

/// Two entries, a footer and a lost file: each is named, with its bytes and entries.
#[test]
fn every_hole_is_named() {
    let dev = stopped();
    let dir = data(&dev);
    let found = &json(&wal(&["verify", "--json"], &dir).expect(0))[0];
    let sealed: Vec<&Value> =
        found["segments"].as_array().expect("segments").iter().filter(|found| found["state"] == "sealed").collect();
    assert!(sealed.len() > 2, "{found}");
    let entry = entry_in_a_sealed_segment(&dir);
    assert_ne!(entry["segment"], sealed[2]["segment"]);
    flip(&segment_file(&dir, &entry["segment"]), entry["at"].as_u64().expect("a place") + 200);
    fs::remove_file(segment_file(&dir, &sealed[2]["segment"])).expect("removed");
    let done = wal(&["verify", "--json"], &dir).expect(6);
    let holes = done.error()["details"]["holes"].as_array().expect("holes").clone();
    let lost = holes.iter().find(|hole| hole["segment"] == sealed[2]["segment"]).expect("the lost file is named");
    assert_eq!(
        (&lost["first_index"], &lost["last_index"]),
        (&sealed[2]["first_index"], &sealed[2]["last_index"]),
        "{lost}"
    );
    let flipped = holes.iter().find(|hole| hole["segment"] == entry["segment"]).expect("the entry is named");
    assert_eq!((&flipped["first_index"], &flipped["last_index"]), (&entry["index"], &entry["index"]), "{flipped}");
    let lines = wal(&["verify"], &dir).expect(6).text();
    assert_eq!(lines.lines().filter(|line| line.starts_with("hole: segment ")).count(), 2, "{lines}");
}

#[test]
fn a_repair_needs_consent_and_keeps_every_byte() {
    let mut dev = stopped();
    let dir = data(&dev);
    let sound = wal(&["repair"], &dir).expect(0).text();
    assert!(sound.contains("nothing to repair"), "{sound}");
    let entry = entry_in_a_sealed_segment(&dir);
    let index = entry["index"].as_u64().expect("an index");
    flip(&segment_file(&dir, &entry["segment"]), entry["at"].as_u64().expect("a place") + 200);
    let before = files(&dir);

    for consent in [&["repair", "--json"][..], &["repair", "--json", "--dry-run"]] {
        let done = wal(consent, &dir).expect(6);
        let plan = &json(&done)[0];
        assert_eq!((&plan["done"], &plan["cut"]["segment"]), (&Value::from(false), &entry["segment"]), "{plan}");
        assert_eq!(plan["keeps"]["last_index"], index - 1, "{plan}");
        assert_eq!(plan["loses"]["first_index"], index, "{plan}");
        assert!(files(&dir) == before, "nothing was written");
    }
    wal(&["repair", "--dry-run", "--accept-data-loss"], &dir).expect(2);
    assert!(files(&dir) == before, "nothing was written");

    let plan = &json(&wal(&["repair", "--json", "--accept-data-loss"], &dir).expect(0))[0];
    assert_eq!(plan["done"], true, "{plan}");
    let kept = files(&dir.join(plan["quarantine"].as_str().expect("a directory")));
    let cut = plan["cut"]["segment"].as_str().expect("a segment");
    for name in plan["moved"].as_array().expect("segments").iter().filter_map(Value::as_str).chain([cut]) {
        let bytes = before.iter().find(|(file, _)| file.starts_with(name)).expect("was there").1;
        assert!(kept.values().any(|found| found == bytes), "{name} is kept aside");
    }
    let found = &json(&wal(&["verify", "--json"], &dir).expect(0))[0];
    assert_eq!((&found["last_index"], &found["term"]), (&Value::from(index - 1), &plan["term"]));
    assert!(wal(&["repair"], &dir).expect(0).text().contains("nothing to repair"));
    dev.start_node("n1");
}

#[test]
fn an_unfinished_write_at_the_end_is_no_damage() {
    let dev = stopped();
    let dir = data(&dev);
    let found = &json(&wal(&["inspect", "--json"], &dir).expect(0))[0];
    let active =
        found["segments"].as_array().expect("segments").iter().find(|s| s["state"] == "active").expect("active");
    let path = segment_file(&dir, &active["segment"]);
    let mut bytes = fs::read(&path).expect("read");
    let end = usize::try_from(active["written"].as_u64().expect("a place")).expect("small");
    bytes[end..end + 100].fill(0xee);
    fs::write(&path, bytes).expect("written");
    let done = wal(&["verify"], &dir).expect(0);
    assert!(done.text().contains("unfinished write at the end: "), "{}", done.text());
    assert!(json(&wal(&["verify", "--json"], &dir).expect(0))[0]["torn_bytes"].as_u64() >= Some(100));
}

#[test]
fn a_directory_without_a_log_is_a_usage_error() {
    let temp = tempfile::tempdir().expect("a directory");
    for command in ["inspect", "verify", "repair"] {
        wal(&[command], &temp.path().join("missing")).expect(2);
        wal(&[command], temp.path()).expect(2);
        assert_eq!(fs::read_dir(temp.path()).expect("list").count(), 0, "{command} makes nothing");
    }
}
