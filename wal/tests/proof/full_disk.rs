//! A real file system that is full: a small one, made for this test in a mount namespace of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use graven_frame::{Frame, Kind};
use graven_wal::{AppendError, HardState, Options, PrepareState, RealDisk, Wal, inspect};

use crate::common::{IDENTITY, control, first, read_all, records};
use crate::skipped;

/// Where the small file system is, for the process inside.
const INSIDE: &str = "GRAVEN_SMALL_FILE_SYSTEM";
/// Room for some segments of the size below beside the space that is taken for cut bytes.
const FILE_SYSTEM_BYTES: u64 = 2 << 20;

fn options() -> Options {
    Options { segment_bytes: 64 << 10, ..Options::default() }
}

#[test]
fn full_file_system_refuses_records_and_keeps_going() {
    if let Some(dir) = std::env::var_os(INSIDE) {
        return fill(&PathBuf::from(dir));
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let user = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    let mount = format!("mount -t tmpfs -o size={FILE_SYSTEM_BYTES} tmpfs \"$1\" || exit 77; shift; exec \"$@\"");
    let output = Command::new("unshare")
        .args([user, "sh", "-c", &mount, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "full_disk::full_file_system_refuses_records_and_keeps_going", "--nocapture"])
        .env(INSIDE, dir.path())
        .output();
    let test = "full_file_system_refuses_records_and_keeps_going";
    match output {
        Err(error) => skipped(test, &format!("no unshare: {error}")),
        Ok(output) => {
            let said =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            // A signal, as a store through a map on a full disk would bring, has no code at all.
            match output.status.code() {
                Some(0) => print!("{said}"),
                Some(77 | 1) if !said.contains("panicked") => skipped(test, said.trim()),
                code => panic!("exit {code:?}: {said}"),
            }
        }
    }
}

/// Appends records of a kibibyte until the log says it is full.
fn fill_up(wal: &mut Wal<RealDisk>, kept: &mut Vec<Frame>) {
    for _ in 0..10_000 {
        let frame = records(&wal.tail(), wal.tail().term, 1000);
        match wal.append(std::slice::from_ref(&frame)) {
            Ok(()) => {
                wal.sync().expect("a full disk fails no sync");
                kept.push(frame);
            }
            Err(AppendError::DiskFull { .. }) => return,
            Err(error) => panic!("after {} entries: {error}", kept.len()),
        }
        let _ = wal.prepare(16 << 10).expect("a full disk closes nothing");
    }
    panic!("never full");
}

/// Prepares until there is nothing to do or no room.
fn prepare(wal: &mut Wal<RealDisk>) -> PrepareState {
    loop {
        match wal.prepare(64 << 10).expect("a full disk closes nothing") {
            PrepareState::More => {}
            state => return state,
        }
    }
}

/// Hard states and control entries go through, from the reserve.
fn vote_and_trim(wal: &mut Wal<RealDisk>, kept: &mut Vec<Frame>) {
    for _ in 0..4 {
        let term = wal.hard_state().term + 1;
        wal.set_hard_state(HardState { term, vote: Some(1) }).expect("from the reserve");
        let trim = control(&wal.tail(), wal.tail().term, Kind::Trim, b"");
        wal.append(std::slice::from_ref(&trim)).expect("from the reserve");
        wal.sync().expect("a full disk fails no sync");
        kept.push(trim);
    }
}

fn fill(dir: &Path) {
    let disk = RealDisk::open(dir);
    Wal::create(disk.clone(), IDENTITY, options(), &[first()]).expect("empty");
    let (mut wal, _) = Wal::open(disk.clone(), options()).expect("just created");
    let mut kept = vec![first()];
    fill_up(&mut wal, &mut kept);
    assert!(wal.disk_full(), "it says so");
    assert_eq!(read_all(&wal.reader()), kept, "every page of every map can be read");
    vote_and_trim(&mut wal, &mut kept);
    let filled = kept.len();

    // A restart on the full file system.
    wal.close().expect("a full disk fails no sync");
    let (mut wal, recovered) = Wal::open(disk.clone(), options()).expect("a full disk keeps no node from starting");
    assert_eq!(recovered.last_index, kept.len() as u64);
    vote_and_trim(&mut wal, &mut kept);

    // The trims free space.
    let last = wal.last_index();
    let first_held = wal.release_before(last).expect("healthy disk");
    assert!(first_held > 1);
    assert_eq!(prepare(&mut wal), PrepareState::Ready);
    assert!(!wal.disk_full(), "it clears by itself");
    fill_up(&mut wal, &mut kept);
    assert!(kept.len() > filled + 100, "{} entries went in after the trim", kept.len() - filled);

    // Somebody else takes what is left, and gives it back.
    let last = wal.last_index();
    wal.release_before(last).expect("healthy disk");
    let ballast = dir.join("ballast");
    let mut taken = 0;
    let file = std::fs::File::create(&ballast).expect("room for a name");
    while std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], taken).is_ok() {
        taken += 4096;
    }
    let before = kept.len();
    fill_up(&mut wal, &mut kept);
    assert!(wal.disk_full());
    vote_and_trim(&mut wal, &mut kept);
    std::fs::remove_file(&ballast).expect("there");
    drop(file);
    assert_eq!(prepare(&mut wal), PrepareState::Ready);
    let frame = records(&wal.tail(), wal.tail().term, 1000);
    wal.append(std::slice::from_ref(&frame)).expect("space was freed");
    kept.push(frame);
    let held = read_all(&wal.reader());
    assert!(kept.ends_with(&held), "what is held is what was appended");
    wal.close().expect("healthy disk");
    let found = inspect::verify(&disk).expect("closed");
    assert!(found.damage.is_empty() && found.torn_bytes == 0, "{found:?}");
    println!("{filled} entries filled the file system, {before} until it was filled again, {} in all", kept.len());
}
