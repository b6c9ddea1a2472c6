//! Disks that hang: a tracer holds up one system call of a running node's log thread, as a disk that does not answer would.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bare::{Bare, SMALL_SEGMENTS, lines, skipped};
use crate::common::{PATIENCE, signal, wait_for, wait_for_exit};

/// A leader hands over when its oldest write is this old (`disk_stall_ms`), and may take as long again and once more for it.
const MOVES_WITHIN: Duration = Duration::from_secs(3);

fn is_long() -> bool {
    std::env::var_os("GRAVEN_LONG").is_some()
}

/// A tracer that holds up the next call of this name of a node's log thread. Ends when dropped.
struct Hang {
    tracer: Child,
}

impl Hang {
    /// `Err` says why nothing can be held up here.
    fn of(pid: i32, call: &str, hangs: Duration) -> Result<Hang, String> {
        let thread = log_thread(pid);
        let inject = format!("inject={call}:delay_enter={}:when=1", hangs.as_micros());
        let mut command = Command::new("strace");
        command.args(["-p", &thread.to_string(), "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut tracer = child.map_err(|error| format!("strace, which holds up the call, is missing: {error}"))?;
        let mut said = String::new();
        let _ = BufReader::new(tracer.stderr.take().expect("piped")).read_line(&mut said);
        if !said.contains("attached") {
            let _ = tracer.kill();
            let _ = tracer.wait();
            return Err(format!("strace cannot attach to a process here: {}", said.trim()));
        }
        Ok(Hang { tracer })
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        let _ = self.tracer.kill();
        let _ = self.tracer.wait();
    }
}

/// The thread of a node that owns the log.
fn log_thread(pid: i32) -> i32 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let named = |task: &std::path::Path| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "graven-log")
    };
    let task = tasks.flatten().map(|task| task.path()).find(|task| named(task)).expect("it has a log thread");
    task.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number")
}

/// `graven append` that is given a line every few milliseconds, under one session.
struct Feeding {
    child: Child,
    stop: Arc<AtomicBool>,
    fed: JoinHandle<usize>,
    acks: JoinHandle<String>,
}

impl Feeding {
    fn start(bare: &Bare) -> Feeding {
        let mut command = bare.command(&["append", "--acks", "--timeout", "60s"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        let mut stdout = child.stdout.take().expect("piped");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let fed = std::thread::spawn(move || {
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) && stdin.write_all(&lines(count, 1)).is_ok() {
                count += 1;
                std::thread::sleep(Duration::from_millis(3));
            }
            count
        });
        let acks = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.read_to_string(&mut text);
            text
        });
        Feeding { child, stop, fed, acks }
    }

    /// Ends the input; all of it must have been acknowledged. Returns how many records that are.
    fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let count = self.fed.join().expect("no panic");
        let status = wait_for_exit(&mut self.child, PATIENCE);
        let mut stderr = String::new();
        let _ = self.child.stderr.take().expect("piped").read_to_string(&mut stderr);
        assert_eq!(status.code(), Some(0), "{stderr}");
        let acks = self.acks.join().expect("no panic");
        let last = acks.lines().last().and_then(|line| line.split_once("..")?.1.parse::<usize>().ok());
        assert_eq!(last.map(|last| last + 1), Some(count), "each line is one record");
        count
    }
}

fn cluster() -> Bare {
    let mut bare = Bare::made(3, SMALL_SEGMENTS);
    bare.start_all();
    bare
}

fn leader_but(bare: &Bare, not: u16) -> Option<u16> {
    bare.leader().filter(|leader| *leader != not)
}

/// A leader whose disk hangs for some seconds: another one leads before it answers again, nothing is lost or doubled, and the old
/// leader is a follower afterwards, in the same process.
fn hangs_for(call: &str, hangs: Duration) {
    let bare = cluster();
    let before = bare.pid(1);
    let feeding = Feeding::start(&bare);
    wait_for("appends to flow", || bare.says(1, "next_offset").as_u64().filter(|next| *next > 50));
    let began = Instant::now();
    let hang = match Hang::of(before.expect("it runs"), call, hangs) {
        Ok(hang) => hang,
        Err(why) => {
            feeding.end();
            return skipped(&why);
        }
    };
    let next = wait_for("another leader", || leader_but(&bare, 1));
    let moved = began.elapsed();
    println!("{call} hangs for {hangs:?}: n{next} leads after {moved:?}");
    assert!(moved < hangs, "the leadership moved only when the disk answered again, after {moved:?}");
    if is_long() {
        assert!(moved < MOVES_WITHIN, "the leadership moved after {moved:?}");
    }
    let waits = bare.says(1, "disk_stalled_ms").as_u64();
    assert!(began.elapsed() > hangs || waits >= Some(1000), "status tells that the disk hangs: {waits:?} ms");
    while began.elapsed() < hangs {
        std::thread::sleep(Duration::from_millis(50));
    }
    let count = feeding.end();
    drop(hang);
    assert_eq!(bare.wait_for_equal_offsets(), count as u64);
    assert_eq!((bare.pid(1), bare.says(1, "state")), (before, "ok".into()), "it rejoins by itself");
    for node in ["n1", "n2", "n3"] {
        let read = bare.run(&["read", "--node", node], b"").expect(0).stdout;
        assert!(read == lines(0, count), "{node} has each record once, in order");
    }
}

#[test]
fn a_leader_whose_syncs_hang_hands_over_and_rejoins() {
    hangs_for("fdatasync", Duration::from_secs(5));
}

#[test]
fn a_leader_whose_writes_hang_hands_over_and_rejoins() {
    hangs_for("pwritev", Duration::from_secs(5));
}

/// A hang that is over before anybody gives up costs nothing but its time.
#[test]
fn a_disk_that_hangs_for_less_than_the_bound_loses_nothing() {
    let bare = cluster();
    let feeding = Feeding::start(&bare);
    wait_for("appends to flow", || bare.says(1, "next_offset").as_u64().filter(|next| *next > 50));
    let hang = match Hang::of(bare.pid(1).expect("it runs"), "fdatasync", Duration::from_secs(1)) {
        Ok(hang) => hang,
        Err(why) => {
            feeding.end();
            return skipped(&why);
        }
    };
    std::thread::sleep(Duration::from_millis(1500));
    let count = feeding.end();
    drop(hang);
    assert_eq!(bare.wait_for_equal_offsets(), count as u64);
    let read = bare.run(&["read", "--linearizable"], b"").expect(0).stdout;
    assert!(read == lines(0, count), "each record once, in order");
}

/// Nobody can wait for a disk that never answers, and whoever stops a node least of all.
#[test]
fn a_node_whose_disk_hangs_can_be_stopped() {
    let mut bare = cluster();
    let pid = bare.pid(1).expect("it runs");
    let _hang = match Hang::of(pid, "fdatasync", Duration::from_secs(120)) {
        Ok(hang) => hang,
        Err(why) => return skipped(&why),
    };
    let feeding = Feeding::start(&bare);
    wait_for("its disk to hang", || bare.says(1, "disk_stalled_ms").as_u64().filter(|ms| *ms >= 500));
    let began = Instant::now();
    signal(pid, Signal::TERM);
    bare.wait(1, Duration::from_secs(20));
    println!("stopped {:?} after the signal", began.elapsed());
    wait_for("another leader", || leader_but(&bare, 1));
    let count = feeding.end();
    bare.start(1, &[]);
    assert_eq!(bare.wait_for_equal_offsets(), count as u64);
}

/// After half a minute the process gives up, with one sentence; started again, it catches up.
#[test]
fn a_node_whose_disk_hangs_for_a_minute_ends() {
    if !is_long() {
        eprintln!("SKIPPED: takes a minute; GRAVEN_LONG=1 runs it");
        return;
    }
    let mut bare = cluster();
    let feeding = Feeding::start(&bare);
    wait_for("appends to flow", || bare.says(1, "next_offset").as_u64().filter(|next| *next > 50));
    let began = Instant::now();
    let _hang = match Hang::of(bare.pid(1).expect("it runs"), "fdatasync", Duration::from_secs(60)) {
        Ok(hang) => hang,
        Err(why) => {
            feeding.end();
            return skipped(&why);
        }
    };
    wait_for("another leader", || leader_but(&bare, 1));
    println!("the leadership moved after {:?}", began.elapsed());
    assert!(began.elapsed() < MOVES_WITHIN, "after {:?}", began.elapsed());
    assert_eq!(bare.wait(1, PATIENCE).code(), Some(1));
    println!("the process ended after {:?}", began.elapsed());
    let complaints = bare.complaints(1);
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    assert!(complaints[0].contains("hangs"), "{complaints:?}");
    let count = feeding.end();
    bare.start(1, &[]);
    assert_eq!(bare.wait_for_equal_offsets(), count as u64);
}
