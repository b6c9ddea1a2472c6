//! A second reader, written from FORMAT.md alone in another language, reads the same out of the same bytes.

use std::path::Path;
use std::process::Command;

use graven_frame::{Frame, Kind};
use graven_wal::{HardState, LogBase, RealDisk, Wal};

use crate::common::{IDENTITY, control, first, grow, options, read_all, records};
use crate::skipped;

/// What the other reader says about a directory; `None` where it cannot run.
fn other_reader(dir: &Path) -> Option<Result<Vec<String>, String>> {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/read_log.py");
    let output = Command::new("python3").arg(tool).arg(dir).output().ok()?;
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Some(match output.status.success() {
        true => Ok(said.lines().map(str::to_owned).collect()),
        false => Err(complained.into_owned()),
    })
}

/// The same lines from our own reader, without the sums of payloads.
fn own_reader(frames: &[Frame], hard_state: HardState) -> Vec<String> {
    let mut lines = Vec::new();
    for frame in frames {
        let header = frame.header();
        if header.kind != Kind::Records {
            lines.push(format!("control {} {} {}", header.index, header.term, header.kind as u8));
            continue;
        }
        for record in frame.records().map(|record| record.expect("intact")) {
            let len = record.payload.len();
            lines.push(format!("record {} {} {} {len}", header.index, header.term, record.offset));
        }
    }
    lines.push(format!("hard-state {} {}", hard_state.term, hard_state.vote.unwrap_or(0)));
    lines
}

fn compare(dir: &Path, frames: &[Frame], hard_state: HardState) -> bool {
    let Some(said) = other_reader(dir) else { return false };
    let said = said.unwrap_or_else(|error| panic!("{error}"));
    // The last field of a record is the sum of its payload.
    let cut = |line: &String| match line.strip_prefix("record ") {
        Some(record) => format!("record {}", record.rsplit_once(' ').map_or(record, |(rest, _)| rest)),
        None => line.clone(),
    };
    assert_eq!(said.iter().map(cut).collect::<Vec<_>>(), own_reader(frames, hard_state));
    true
}

#[test]
fn reader_written_from_the_format_alone_reads_the_same() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = RealDisk::open(dir.path());
    Wal::create(disk.clone(), IDENTITY, options(), &[first()]).expect("empty");
    let (mut wal, _) = Wal::open(disk, options()).expect("just created");
    let check = |wal: &Wal<RealDisk>| compare(dir.path(), &read_all(&wal.reader()), wal.hard_state());
    if !check(&wal) {
        return skipped("reader_written_from_the_format_alone_reads_the_same", "no python3");
    }
    grow(&mut wal, 5, 700);
    wal.set_hard_state(HardState { term: 5, vote: Some(3) }).expect("room");
    grow(&mut wal, 9, 2300);
    wal.sync().expect("healthy disk");
    assert!(check(&wal) && wal.stats().rotations > 0);
    let keep = LogBase::after(&wal.reader().header(9).expect("there"));
    wal.append(&[records(&keep, 6, 0)]).expect("supersedes");
    let trim = control(&wal.tail(), 6, Kind::Trim, b"4");
    wal.append(&[trim]).expect("room");
    wal.set_hard_state(HardState { term: 7, vote: None }).expect("room");
    wal.sync().expect("healthy disk");
    wal.write_sync_point().expect("healthy disk");
    assert!(check(&wal));
    // Released segments are used again: what they held is no part of the log.
    for _ in 0..3 {
        grow(&mut wal, 9, 2300);
        wal.sync().expect("healthy disk");
        wal.release_before(wal.last_index() - 3).expect("healthy disk");
        assert!(check(&wal));
    }
    assert!(wal.stats().recycled > 0);
    wal.reset(LogBase { index: 900, next_offset: 5000, ..wal.tail() }).expect("room");
    grow(&mut wal, 2, 10);
    wal.close().expect("healthy disk");
    let (wal, _) = Wal::open(RealDisk::open(dir.path()), options()).expect("closed in good order");
    assert!(check(&wal));
}

#[test]
fn reader_written_from_the_format_alone_reads_the_golden_log() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden-v1");
    let Some(said) = other_reader(&golden) else {
        return skipped("reader_written_from_the_format_alone_reads_the_golden_log", "no python3");
    };
    let said = said.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(said.len(), 6 + 4 * 3 + 1, "{said:#?}");
    assert_eq!(said[0], "control 1 1 3");
    assert_eq!(said[said.len() - 1], "hard-state 4 0");
    // The sums of "carved", as printed by sha256sum, and of nothing.
    assert_eq!(said[3], format!("record 4 2 0 6 {CARVED}"));
    assert!(said[5].ends_with(&format!(" 0 {NOTHING}")), "{}", said[5]);
}

const CARVED: &str = "8617f5197b193bf5250675dad9735f729b692e616045c0a77b665d578ed59b9b";
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
