//! `graven bench fsync`: the shape of its figures, its warnings, and that nothing stays behind. No figure is judged here.

use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::tempdir;

use crate::common::{PATIENCE, graven, run, signal, wait_for, wait_for_exit};

fn fsync(dir: &Path, options: &[&str]) -> Vec<String> {
    let dir = dir.to_str().expect("UTF-8");
    let args = ["bench", "fsync", "--dir", dir, "--size", "4M", "--seconds", "0.005"];
    args.iter().chain(options).map(|arg| (*arg).to_owned()).collect()
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).expect("list").next().is_none()
}

/// What every row has, in sane values.
fn check_row(row: &Value) {
    let text = |key: &str| row[key].as_str().unwrap_or_else(|| panic!("{key}: {row}"));
    let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"));
    assert!(["pwrite+fdatasync", "dsync", "direct+dsync", "msync"].contains(&text("method")), "{row}");
    assert!(["nothing", "fallocate", "zero-fill", "recycled"].contains(&text("prepared")), "{row}");
    assert!([512.0, 4096.0, 65_536.0, 1_048_576.0].contains(&number("batch_bytes")), "{row}");
    let times = ["p50_us", "p99_us", "p999_us", "max_us"].map(number);
    assert!(times[0] >= 1.0 && times.is_sorted(), "{row}");
    let syncs = number("syncs_per_second");
    let expected = syncs * number("batch_bytes") / 1e6;
    assert!(syncs > 0.0 && (number("mb_per_second") - expected).abs() <= expected * 0.1 + 0.001, "{row}");
}

fn check_report(report: &Value) {
    for key in ["filesystem", "device", "mount_options", "write_cache"] {
        assert!(report[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {report}");
    }
    assert!(report["warnings"].is_array());
    let raw = report["raw"].as_array().expect("raw");
    raw.iter().for_each(check_row);
    let wal = report["wal"].as_array().expect("wal");
    for row in wal {
        check_row(row);
        check_row(&row["raw_same_method"]);
        assert!(raw.contains(&row["raw_same_method"]), "{row}");
        for key in ["method", "prepared", "batch_bytes"] {
            assert_eq!(row[key], row["raw_same_method"][key]);
        }
        let rate = |row: &Value| row["syncs_per_second"].as_f64().expect("a rate");
        let share = rate(row) / rate(&row["raw_same_method"]);
        assert!((row["share"].as_f64().expect("share") - share).abs() < 0.01 + share * 0.01, "{row}");
    }
}

fn rows<'a>(report: &'a Value, list: &str, method: &str, prepared: &str) -> Vec<&'a Value> {
    let all = report[list].as_array().expect("rows").iter();
    all.filter(|row| row["method"] == method && row["prepared"] == prepared).collect()
}

#[test]
fn fsync_says_everything_its_interface_names() {
    let temp = tempdir().expect("a directory");
    let done = run(fsync(temp.path(), &["--json"])).expect(0);
    assert_eq!(done.text().lines().count(), 1);
    let report: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    check_report(&report);
    for list in ["raw", "wal"] {
        assert_eq!(rows(&report, list, "pwrite+fdatasync", "zero-fill").len(), 4, "{report}");
    }
    assert!(is_empty(temp.path()), "nothing stays behind");
}

#[test]
fn fsync_full_measures_every_combination() {
    let temp = tempdir().expect("a directory");
    let done = run(fsync(temp.path(), &["--json", "--full"])).expect(0);
    let report: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    check_report(&report);
    for method in ["pwrite+fdatasync", "dsync", "msync"] {
        for prepared in ["nothing", "fallocate", "zero-fill", "recycled"] {
            assert_eq!(rows(&report, "raw", method, prepared).len(), 4, "{method} {prepared}");
        }
    }
    for method in ["pwrite+fdatasync", "dsync"] {
        assert_eq!(rows(&report, "wal", method, "zero-fill").len(), 4, "{method}");
    }
    assert!(is_empty(temp.path()), "nothing stays behind");
}

#[test]
fn fsync_is_tables_and_histograms_for_people() {
    let temp = tempdir().expect("a directory");
    let text = run(fsync(temp.path(), &["--quick"])).expect(0).text();
    assert!(text.contains("SYNCS/S") && text.contains("SHARE") && text.contains("P99.9"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("log pwrite+fdatasync") && line.contains('|')), "{text}");
}

#[test]
fn fsync_says_plainly_that_memory_is_no_disk() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let in_memory = mounts.lines().any(|line| line.contains(" /dev/shm ") && line.contains(" - tmpfs "));
    // Not every system has memory mounted at a place known beforehand.
    let Some(temp) = in_memory.then(|| tempfile::tempdir_in("/dev/shm").ok()).flatten() else { return };
    let done = run(fsync(temp.path(), &["--json"])).expect(0);
    let report: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(report["filesystem"], "tmpfs");
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("tmpfs"), "{warnings}");
}

#[test]
fn fsync_that_is_interrupted_cleans_up() {
    let temp = tempdir().expect("a directory");
    let dir = temp.path().to_str().expect("UTF-8");
    let mut command = graven();
    command.args(["bench", "fsync", "--dir", dir, "--size", "8M", "--full", "--seconds", "60"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    wait_for("its files", || (!is_empty(temp.path())).then_some(()));
    signal(i32::try_from(child.id()).expect("a process id"), Signal::INT);
    assert_eq!(wait_for_exit(&mut child, PATIENCE).code(), Some(3));
    assert!(is_empty(temp.path()), "nothing stays behind");
}

#[test]
fn fsync_needs_a_directory() {
    let temp = tempdir().expect("a directory");
    let done = run(fsync(&temp.path().join("missing"), &[])).expect(2);
    assert!(done.stderr.contains("no such directory"), "{}", done.stderr);
    run(["bench", "fsync", "--quick", "--full"]).expect(2);
    run(["bench", "fsync", "--seconds", "never"]).expect(2);
}

#[test]
fn quic_alone_is_measured_between_two_processes() {
    let args = ["bench", "quic", "--bytes", "1M", "--seconds", "0.02", "--rounds", "1", "--mtu", "1452,6500"];
    let told = run(args.iter().chain(&["--window", "256K,1M", "--json"])).expect(0).text();
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let rows = told["settings"].as_array().expect("rows");
    let of = |row: &Value| (row["mtu"].as_u64(), row["window_bytes"].as_u64());
    let expected =
        [(1452, 256 << 10), (6500, 256 << 10), (1452, 1 << 20)].map(|(mtu, window)| (Some(mtu), Some(window)));
    assert_eq!(rows.iter().map(of).collect::<Vec<_>>(), expected);
    for row in rows {
        assert!(row["datagram_bytes"].as_u64() <= row["mtu"].as_u64(), "{row}");
        for figure in ["p50_us", "p99_us", "send_mb_per_second", "receive_mb_per_second"] {
            assert!(row[figure].as_f64().expect("a figure") > 0.0, "{figure} of {row}");
        }
    }
    assert_eq!(run(args).expect(0).text().lines().count(), 5);
    run(["bench", "quic", "--window", "1K"]).expect(2);
}
