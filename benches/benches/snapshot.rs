//! Snapshot files beside what the disk can do without them, in the same run and in turns: the ratios are what counts.
//!
//! - write: a body of the given size, durable under its name, beside plain writes of as many bytes and one sync;
//! - verify: every byte of it read and checked, beside plain reads, both from the medium and not from the cache;
//! - beside a log: how long a small write with its sync takes, 99 of 100 times, with no snapshot being written, with one being written by
//!   the default options, and beside plain writes that are only synced at their end.
//!
//! `cargo bench -p graven-benches --bench snapshot`; `GRAVEN_BENCH_MIB` sets the size, 512 by default.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use graven_snapshot::body::{BodyWriter, CHUNK_BYTES, Header, Name, Options, Pace, remove, verify};
use graven_wal::{Disk, DiskFile, RealDisk, WriteMode};

const PLAIN: &str = "plain";
const LOG: &str = "log";

fn main() {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let asked = std::env::var("GRAVEN_BENCH_MIB").ok().and_then(|mib| mib.parse().ok());
    // Next to nothing when it is run as a test.
    let (mib, pairs) = if is_bench { (asked.unwrap_or(512), 5) } else { (3, 1) };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let disk = RealDisk::open(dir.path());
    println!("{mib} MiB, medians of {pairs} pairs, load {}", load());
    // A disk that gives out its space only when it is first written to would make whoever comes first look slow.
    write(&disk, mib, Options::default());
    write_plain(&disk, mib);
    compare("write", mib, pairs, || write(&disk, mib, Options::default()), || write_plain(&disk, mib));
    compare("verify", mib, pairs, || check(&disk), || read_plain(&disk));
    beside_a_log(&disk, mib, if is_bench { 3 } else { 1 });
    println!("load {}", load());
}

fn compare(what: &str, mib: u64, pairs: usize, ours: impl Fn() -> Duration, plain: impl Fn() -> Duration) {
    let mut times: Vec<[Duration; 2]> = Vec::new();
    for pair in 0..pairs {
        // Whoever comes second may find a disk that is still busy: they take turns.
        times.push(if pair % 2 == 0 {
            [ours(), plain()]
        } else {
            let plain = plain();
            [ours(), plain]
        });
    }
    let rate = |time: Duration| mib as f64 / time.as_secs_f64();
    let [ours, plain] = [0, 1].map(|side| median(times.iter().map(|pair| rate(pair[side])).collect()));
    let ratio = median(times.iter().map(|pair| rate(pair[0]) / rate(pair[1])).collect());
    println!("{what}: {ours:.0} MiB/s, plain {plain:.0} MiB/s, ratio {ratio:.2}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn header() -> Header {
    Header { cluster: 1, id: 1, name: Name::new("bench").expect("a name"), offset: 1, timestamp_ms: 1 }
}

/// Bytes that no disk makes smaller.
fn chunk(salt: u64) -> Vec<u8> {
    let word =
        |at: u64| (at + salt).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (0..CHUNK_BYTES as u64 / 8).flat_map(|at| word(at).to_le_bytes()).collect()
}

fn write(disk: &RealDisk, mib: u64, options: Options) -> Duration {
    remove(disk, &header().file_name()).expect("removed");
    let piece = chunk(1);
    let start = Instant::now();
    let mut writer = BodyWriter::create(disk, header(), options).expect("room");
    for _ in 0..mib {
        writer.put(&piece).expect("room");
    }
    writer.finish().expect("room");
    start.elapsed()
}

fn write_plain(disk: &RealDisk, mib: u64) -> Duration {
    // There may be none.
    let _ = disk.remove(PLAIN);
    let piece = chunk(1);
    let start = Instant::now();
    let file = disk.create(PLAIN, WriteMode::Buffered).expect("a file");
    for number in 0..mib {
        file.write_at(number * CHUNK_BYTES as u64, &piece).expect("room");
    }
    file.sync_data().expect("synced");
    start.elapsed()
}

/// On Linux the hint takes bytes that are durable out of the cache.
fn cool(disk: &RealDisk, name: &str) {
    let file = disk.open(name, Some(WriteMode::Buffered)).expect("a file");
    file.sync_data().expect("synced");
    file.write_back(0, file.len().expect("a length"));
}

fn check(disk: &RealDisk) -> Duration {
    let name = header().file_name();
    cool(disk, &name);
    let start = Instant::now();
    verify(disk, &name).expect("whole");
    start.elapsed()
}

fn read_plain(disk: &RealDisk) -> Duration {
    cool(disk, PLAIN);
    let start = Instant::now();
    let file = disk.open(PLAIN, None).expect("a file");
    let mut piece = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        let read = file.read_at(at, &mut piece).expect("read");
        black_box(&piece);
        if read == 0 {
            return start.elapsed();
        }
        at += read as u64;
    }
}

fn beside_a_log(disk: &RealDisk, mib: u64, rounds: usize) {
    let file = disk.create(LOG, WriteMode::Buffered).expect("a file");
    file.write_at(0, &vec![0; LOG_BYTES as usize]).expect("room");
    file.sync_data().expect("synced");
    let mut figures: Vec<[Duration; 4]> = Vec::new();
    for _ in 0..rounds {
        let alone = p99_while(&file, || std::thread::sleep(Duration::from_millis(mib.min(2000))));
        let ours = p99_while(&file, || {
            write(disk, mib, Options::default());
        });
        let paced = p99_while(&file, || {
            write(disk, mib, Options { pace: Some(pace(PACE_BYTES)), ..Options::default() });
        });
        let plain = p99_while(&file, || {
            write_plain(disk, mib);
        });
        figures.push([alone, ours, paced, plain]);
    }
    let [alone, ours, paced, plain] =
        [0, 1, 2, 3].map(|side| median(figures.iter().map(|figure| figure[side].as_secs_f64() * 1e3).collect()));
    let ratio = |side: usize| {
        median(figures.iter().map(|figure| figure[side].as_secs_f64() / figure[0].as_secs_f64()).collect())
    };
    println!("p99 of a synced write of 4 KiB: alone {alone:.2} ms, beside a snapshot {ours:.2} ms ({:.1}x)", ratio(1));
    println!(
        "  at {} MiB/s {paced:.2} ms ({:.1}x); beside plain writes {plain:.2} ms ({:.1}x)",
        PACE_BYTES >> 20,
        ratio(2),
        ratio(3)
    );
}

/// A rate at which a snapshot of 1 GiB takes five seconds.
const PACE_BYTES: u64 = 200 << 20;

fn pace(bytes_per_second: u64) -> Pace {
    let (begin, mut total) = (Instant::now(), 0);
    Box::new(move |bytes| {
        total += bytes as u64;
        let due = Duration::from_secs_f64(total as f64 / bytes_per_second as f64);
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
    })
}

const LOG_BYTES: u64 = 16 << 20;

/// The time that 99 of 100 small writes with their sync take at most while `work` runs on another thread.
fn p99_while(file: &impl DiskFile, work: impl FnOnce() + Send) -> Duration {
    let done = AtomicBool::new(false);
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            work();
            done.store(true, Ordering::Release);
        });
        let record = [7; 4096];
        while times.is_empty() || !done.load(Ordering::Acquire) {
            let at = times.len() as u64 * record.len() as u64 % LOG_BYTES;
            let start = Instant::now();
            file.write_at(at, &record).expect("room");
            file.sync_data().expect("synced");
            times.push(start.elapsed());
        }
    });
    times.sort_unstable();
    times[(times.len() * 99 / 100).min(times.len() - 1)]
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(3).collect::<Vec<_>>().join(" ")
}
