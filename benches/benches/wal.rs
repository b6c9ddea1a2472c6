//! The log beside what the machine can do without it, in the same run and in turns: the ratios printed at the end are what
//! counts, since the figures themselves are those of this machine and this hour.
//!
//! - synced append: one entry and one sync, beside one write and one sync of the same bytes on an equally prepared file;
//! - group sync: 64 entries of 256 B that share a sync, beside one write of as many bytes; and 64 requests in flight to a log
//!   thread, each wait measured, beside one;
//! - sequential read, with and without verifying, beside summing and reading the same bytes;
//! - opening a log, beside reading and summing the bytes of the segment that is scanned;
//! - random lookup, beside a positional read of the same length at a known place.

#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use graven_frame::{Body, Chain, Frame, GroupBuilder, GroupHeaderSpec, HeaderSpec, Kind};
use graven_wal::{Disk, DiskFile, DiskMap, Identity, Options, PrepareState, RealDisk, Wal};
use tempfile::TempDir;

#[allow(dead_code, reason = "the speed program of the log uses more of it")]
#[path = "../../wal/examples/speed/group.rs"]
mod group;

use group::{Joining, Measured, WRITERS, Writers};

/// How much is written and measured: next to nothing when the benches are run as tests.
struct Scale {
    file_bytes: u64,
    log_bytes: usize,
    rounds: usize,
    round: Duration,
    samples: usize,
}

fn scale() -> Scale {
    if is_test() {
        Scale { file_bytes: 4 << 20, log_bytes: 1 << 20, rounds: 0, round: Duration::ZERO, samples: 10 }
    } else {
        let (rounds, round) = (15, Duration::from_millis(80));
        Scale { file_bytes: 64 << 20, log_bytes: 48 << 20, rounds, round, samples: 20 }
    }
}

/// As criterion decides it: `cargo bench` says `--bench`, `cargo test` does not.
fn is_test() -> bool {
    let arguments: Vec<String> = std::env::args().collect();
    arguments.iter().any(|argument| argument == "--test") || !arguments.iter().any(|argument| argument == "--bench")
}

/// A directory on the disk that holds the target directory; /tmp may be memory.
fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// Something that is done again and again, with work in between that is not measured.
trait Work {
    fn once(&mut self);

    fn rest(&mut self) {}
}

impl<F: FnMut()> Work for F {
    fn once(&mut self) {
        self();
    }
}

/// Rests come after so many repetitions.
const REST_EVERY: u64 = 16;

fn timed(work: &mut dyn Work, iterations: u64) -> Duration {
    let mut spent = Duration::ZERO;
    let mut left = iterations;
    while left > 0 {
        let some = left.min(REST_EVERY);
        let begin = Instant::now();
        for _ in 0..some {
            work.once();
        }
        spent += begin.elapsed();
        work.rest();
        left -= some;
    }
    spent
}

/// Repetitions a second.
fn rate(work: &mut dyn Work, time: Duration) -> f64 {
    let (mut spent, mut done) = (Duration::ZERO, 0);
    while done == 0 || spent < time {
        spent += timed(work, REST_EVERY);
        done += REST_EVERY;
    }
    done as f64 / spent.as_secs_f64()
}

/// Measures both for criterion, then in turns, and prints what `ours` reaches of `limit`.
fn beside(criterion: &mut Criterion, name: &str, bytes: u64, limit: &mut dyn Work, ours: &mut dyn Work) {
    let scale = scale();
    let mut bench = criterion.benchmark_group(name);
    bench.sample_size(scale.samples).throughput(Throughput::Bytes(bytes));
    bench.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    bench.bench_function("limit", |bench| bench.iter_custom(|iterations| timed(limit, iterations)));
    bench.bench_function("log", |bench| bench.iter_custom(|iterations| timed(ours, iterations)));
    bench.finish();
    if is_test() {
        return;
    }
    let mut ratios: Vec<f64> = Vec::new();
    for round in 0..scale.rounds {
        // Who goes first takes turns too.
        ratios.push(if round % 2 == 0 {
            let limit = rate(limit, scale.round);
            rate(ours, scale.round) / limit
        } else {
            let ours = rate(ours, scale.round);
            ours / rate(limit, scale.round)
        });
    }
    ratios.sort_by(f64::total_cmp);
    println!("{name}: {:.2} of the limit", ratios[ratios.len() / 2]);
}

/// A zero-filled file with a map open, written from front to end and again.
struct Raw {
    file: File,
    _map: Arc<dyn DiskMap>,
    size: u64,
    at: u64,
    batch: Vec<u8>,
}

impl Raw {
    fn new(dir: &Path) -> Raw {
        let size = scale().file_bytes;
        let path = dir.join("raw");
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path).expect("a file");
        let zeroes = vec![0; 1 << 20];
        for at in 0..size >> 20 {
            file.write_all_at(&zeroes, at << 20).expect("zeroes");
        }
        file.sync_all().expect("synced");
        let map = RealDisk::open(dir).open("raw", None).and_then(|file| file.map(size)).expect("mapped");
        Raw { file, _map: map, size, at: 0, batch: Vec::new() }
    }

    fn begin(&mut self, batch_bytes: usize) {
        (self.at, self.batch) = (0, vec![7; batch_bytes]);
    }
}

impl Work for Raw {
    fn once(&mut self) {
        if self.at + self.batch.len() as u64 > self.size {
            self.at = 0;
        }
        self.file.write_all_at(&self.batch, self.at).expect("written");
        self.file.sync_data().expect("synced");
        self.at += self.batch.len() as u64;
    }
}

/// A log, and the body of the entries it takes.
struct Log {
    wal: Wal<RealDisk>,
    chain: Chain,
    next_offset: u64,
    body: Body,
    body_crc: u32,
    /// Entries that share a sync.
    together: usize,
}

impl Log {
    fn new(dir: PathBuf) -> Log {
        std::fs::create_dir(&dir).expect("a directory");
        let spec = HeaderSpec { kind: Kind::Noop, term: 1, index: 1, base_offset: 0, count: 0, timestamp_ms: 0 };
        let first = Frame::seal(spec, Chain::START, Body::default(), Body::default().crc());
        let chain = first.header().chain;
        let options = Options { segment_bytes: scale().file_bytes, ..Options::default() };
        let identity = Identity { cluster: 1, node: 1, incarnation: 1 };
        Wal::create(RealDisk::open(&dir), identity, options.clone(), &[first]).expect("created");
        let (wal, _) = Wal::open(RealDisk::open(&dir), options).expect("opened");
        let mut log = Log { wal, chain, next_offset: 0, body: Body::default(), body_crc: 0, together: 1 };
        log.prepare();
        log
    }

    /// Entries of this many bytes, `together` of them a sync.
    fn begin(&mut self, batch_bytes: usize, together: usize) {
        let mut builder = GroupBuilder::new();
        builder.push(&[], &vec![7; batch_bytes.saturating_sub(72)]).expect("small");
        let group = builder.finish(GroupHeaderSpec::default());
        (self.body, self.body_crc, self.together) = (group.body().clone(), group.crc(), together);
    }

    fn append(&mut self) {
        let mut frames = Vec::with_capacity(self.together);
        for number in 0..self.together as u64 {
            let (index, base_offset) = (self.wal.last_index() + 1 + number, self.next_offset);
            let spec = HeaderSpec { kind: Kind::Records, term: 1, index, base_offset, count: 1, timestamp_ms: 0 };
            let frame = Frame::seal(spec, self.chain, self.body.clone(), self.body_crc);
            (self.chain, self.next_offset) = (frame.header().chain, base_offset + 1);
            frames.push(frame);
        }
        self.wal.append(&frames).expect("appended");
    }

    fn prepare(&mut self) {
        while self.wal.prepare(16 << 20).expect("prepared") == PrepareState::More {}
    }

    /// The segment a log is made with was never written: go on in a zero-filled one.
    fn leave_first_segment(&mut self) {
        self.begin(1 << 20, 1);
        while self.wal.stats().rotations == 0 {
            self.append();
        }
        self.wal.sync().expect("synced");
        self.rest();
    }
}

impl Work for Log {
    fn once(&mut self) {
        self.append();
        self.wal.sync().expect("synced");
    }

    fn rest(&mut self) {
        self.wal.release_before(self.wal.last_index()).expect("released");
        self.prepare();
    }
}

fn synced_appends(criterion: &mut Criterion) {
    let dir = directory();
    let mut raw = Raw::new(dir.path());
    let mut log = Log::new(dir.path().join("log"));
    log.leave_first_segment();
    for (name, size) in [("512 B", 512), ("4 KiB", 4 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)] {
        raw.begin(size);
        log.begin(size, 1);
        beside(criterion, &format!("synced append {name}"), size as u64, &mut raw, &mut log);
    }
}

fn group_sync(criterion: &mut Criterion) {
    const RECORD_BYTES: usize = 256;
    let dir = directory();
    let mut raw = Raw::new(dir.path());
    let mut log = Log::new(dir.path().join("log"));
    log.leave_first_segment();
    raw.begin(WRITERS * RECORD_BYTES);
    log.begin(RECORD_BYTES, WRITERS);
    let bytes = (WRITERS * RECORD_BYTES) as u64;
    beside(criterion, "group sync of 64 waiting writers of 256 B", bytes, &mut raw, &mut log);
    // And as a node has it: requests through a channel to a log thread, each wait measured.
    log.begin(RECORD_BYTES, 1);
    let body = (log.body.clone(), log.body_crc);
    let ways = [
        (Writers::InFlight(1), Joining::Queued),
        (Writers::InFlight(WRITERS), Joining::Queued),
        (Writers::InFlight(WRITERS), Joining::Awaited(Duration::from_micros(30))),
    ];
    let mut measured: Vec<Measured> = ways.iter().map(|_| Measured::default()).collect();
    for _ in 0..scale().rounds.max(1) {
        for ((writers, joining), measured) in ways.iter().zip(&mut measured) {
            group::round(&mut log.wal, &body, *writers, *joining, scale().round, measured).expect("a round");
        }
    }
    for ((writers, joining), of) in ways.iter().zip(&measured) {
        let times = of.rate() / measured[0].rate();
        println!("group sync, {writers:?}, {joining:?}: {}; {times:.1} times one writer", of.told());
    }
}

/// A closed log of entries of 4 KiB, and a file with as many bytes.
struct Written {
    dir: TempDir,
    log: PathBuf,
    flat: File,
    entries: u64,
    bytes: usize,
}

const ENTRY_BYTES: usize = 4 << 10;

fn written() -> Written {
    let dir = directory();
    let path = dir.path().join("log");
    let mut log = Log::new(path.clone());
    log.begin(ENTRY_BYTES, 1);
    let entries = (scale().log_bytes / ENTRY_BYTES) as u64;
    (0..entries).for_each(|_| log.append());
    log.wal.close().expect("closed");
    let bytes = entries as usize * ENTRY_BYTES;
    std::fs::write(dir.path().join("flat"), vec![7; bytes]).expect("written");
    let flat = File::open(dir.path().join("flat")).expect("opened");
    Written { dir, log: path, flat, entries, bytes }
}

impl Written {
    fn open(&self) -> Wal<RealDisk> {
        let options = Options { segment_bytes: scale().file_bytes, ..Options::default() };
        Wal::open(RealDisk::open(&self.log), options).expect("opened").0
    }

    /// Reads the flat file through a buffer that stays in the cache.
    fn read_flat(&self, mut each: impl FnMut(&[u8])) {
        let mut buffer = vec![0; 256 << 10];
        let mut at = 0;
        while at < self.bytes {
            let some = buffer.len().min(self.bytes - at);
            self.flat.read_exact_at(&mut buffer[..some], at as u64).expect("read");
            each(&buffer[..some]);
            at += some;
        }
    }
}

fn reads(criterion: &mut Criterion) {
    let written = written();
    let wal = written.open();
    let reader = wal.reader();
    let last = written.entries + 1;
    let walk = |check: &dyn Fn(&Frame)| {
        let mut next = 2;
        while next <= last {
            let frames = reader.frames(next, last, 1 << 20).expect("read");
            frames.iter().for_each(check);
            next += frames.len() as u64;
        }
    };
    let bytes = written.bytes as u64;
    let mut summed = || written.read_flat(sum);
    let mut verified = || walk(&|frame| frame.verify(None).expect("intact"));
    beside(criterion, "sequential read, verified", bytes, &mut summed, &mut verified);
    let mut copied = || {
        written.read_flat(|bytes| {
            black_box(bytes.len());
        });
    };
    let mut unverified = || {
        walk(&|frame| {
            black_box(frame.body().len());
        });
    };
    beside(criterion, "sequential read, unverified", bytes, &mut copied, &mut unverified);

    let mut places = Places::new(written.entries);
    let mut buffer = vec![0; ENTRY_BYTES];
    let mut direct = || {
        let at = places.next() * ENTRY_BYTES as u64;
        written.flat.read_exact_at(&mut buffer, at).expect("read");
        black_box(buffer[0]);
    };
    let mut places = Places::new(written.entries);
    let mut lookup = || {
        let frame = reader.frame(2 + places.next()).expect("read");
        black_box(frame.body().len());
    };
    beside(criterion, "random lookup of 4 KiB", ENTRY_BYTES as u64, &mut direct, &mut lookup);
}

fn recovery(criterion: &mut Criterion) {
    let written = written();
    let bytes = written.bytes as u64;
    let mut summed = || written.read_flat(sum);
    let mut open = || {
        black_box(written.open().last_index());
    };
    beside(criterion, "opening a log, its last segment scanned", bytes, &mut summed, &mut open);
    drop(written.dir);
}

/// The sum that guards a body.
fn sum(bytes: &[u8]) {
    black_box(crc32fast::hash(bytes));
}

/// The same places in the same order in every run.
struct Places {
    state: u64,
    below: u64,
}

impl Places {
    fn new(below: u64) -> Places {
        Places { state: 0x9e37_79b9_7f4a_7c15, below }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % self.below
    }
}

criterion_group!(benches, synced_appends, group_sync, reads, recovery);
criterion_main!(benches);
