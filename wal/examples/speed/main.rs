//! How fast the log is, as ratios to the raw disk in the same run.
//!
//! `cargo run --release -p graven-wal --example speed -- DIR [PART]...`, with the parts listed in [`PARTS`].
//!
//! Rounds of the log and of the raw file take turns, so that what else the machine does falls on both; medians are printed.
//! DIR must be on the disk in question, and needs 2 GiB, 6 GiB for `open`, and 40 GiB free for `open-large`.

mod group;
mod tried;
mod waits;

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use graven_frame::{Body, Frame, GroupBuilder, GroupHeaderSpec, HeaderSpec, Kind};
use graven_wal::{Identity, LogBase, Options, PrepareState, RealDisk, SyncMethod, Wal, inspect};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const IDENTITY: Identity = Identity { cluster: 1, node: 1, incarnation: 1 };
const FILE_BYTES: u64 = 64 << 20;
const ROUNDS: usize = 15;
const PART_AT_MOST: Duration = Duration::from_secs(10);

const PARTS: &str = "append|group|rotate|shared|read|cold|open|open-large|lookup|raw|recycled|received|segments";

fn main() -> Fallible<()> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or_else(|| format!("usage: speed DIR [{PARTS}]..."))?).join("speed");
    let mut parts: Vec<String> = args.collect();
    if parts.is_empty() {
        parts = ["append", "read", "open", "lookup"].map(str::to_owned).to_vec();
    }
    println!("load {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    for part in parts {
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("log"))?;
        match part.as_str() {
            "append" => appends(&dir)?,
            "read" => reads(&dir)?,
            "group" => waits::group(&dir)?,
            "rotate" => waits::rotation(&dir)?,
            "shared" => waits::shared_disk(&dir)?,
            "recycled" => waits::recycled(&dir)?,
            "received" => tried::received(),
            "segments" => tried::segment_sizes(&dir)?,
            "cold" => cold_reads(&dir)?,
            "open" => opens(&dir, &[64, 1 << 10, 4 << 10])?,
            "open-large" => opens(&dir, &[64, 1 << 10, 4 << 10, 16 << 10])?,
            "lookup" => lookups(&dir)?,
            "raw" => raw_methods(&dir)?,
            other => return Err(format!("no part named {other}").into()),
        }
    }
    println!("RssAnon {} kB", rss_anon());
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn rss_anon() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// A body of one record of `len` bytes.
fn body(len: usize) -> Fallible<(Body, u32)> {
    let mut builder = GroupBuilder::new();
    builder.push(b"", &vec![7; len])?;
    let group = builder.finish(GroupHeaderSpec::default());
    Ok((group.body().clone(), group.crc()))
}

fn frames(before: LogBase, body: &(Body, u32), count: usize) -> Vec<Frame> {
    let mut before = before;
    let seal = |_| {
        let spec = HeaderSpec {
            kind: Kind::Records,
            term: 1,
            index: before.index + 1,
            base_offset: before.next_offset,
            count: 1,
            timestamp_ms: before.timestamp_ms + 1,
        };
        let frame = Frame::seal(spec, before.chain, body.0.clone(), body.1);
        before = LogBase::after(frame.header());
        frame
    };
    (0..count).map(seal).collect()
}

fn new_log(dir: &Path) -> Fallible<Wal<RealDisk>> {
    new_log_in(&dir.join("log"), &Options::default())
}

fn new_log_in(dir: &Path, options: &Options) -> Fallible<Wal<RealDisk>> {
    std::fs::create_dir_all(dir)?;
    let disk = RealDisk::open(dir);
    let first = Body::from(Bytes::from_static(b"first"));
    let crc = first.crc();
    let spec = HeaderSpec { kind: Kind::Membership, term: 1, index: 1, base_offset: 0, count: 0, timestamp_ms: 0 };
    let first = Frame::seal(spec, LogBase::default().chain, first, crc);
    Wal::create(disk.clone(), IDENTITY, options.clone(), &[first])?;
    Ok(Wal::open(disk, options.clone())?.0)
}

fn prepare(wal: &mut Wal<RealDisk>) -> Fallible<()> {
    while wal.prepare(16 << 20)? == PrepareState::More {}
    Ok(())
}

fn zeroed(path: &Path, flags: i32) -> Fallible<File> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
    for at in 0..FILE_BYTES >> 20 {
        file.write_all_at(&vec![0; 1 << 20], at << 20)?;
    }
    file.sync_all()?;
    Ok(OpenOptions::new().write(true).custom_flags(flags).open(path)?)
}

/// Synced appends one by one: the log by each method beside `pwrite` and `fdatasync` on a zero-filled file. They take turns write
/// by write, so that what else uses the disk falls on all.
fn appends(dir: &Path) -> Fallible<()> {
    const METHODS: [SyncMethod; 3] = [SyncMethod::Fdatasync, SyncMethod::Dsync, SyncMethod::Direct];
    for (size, count) in [(512, 4000), (4 << 10, 4000), (64 << 10, 1500), (1 << 20, 300)] {
        let _ = std::fs::remove_dir_all(dir.join("log"));
        let raw = zeroed(&dir.join("raw"), 0)?;
        let log = |sync: &SyncMethod| {
            let mut wal =
                new_log_in(&dir.join(format!("log/{sync:?}")), &Options { sync: *sync, ..Options::default() })?;
            prepare(&mut wal)?;
            Ok(wal)
        };
        let mut logs = METHODS.iter().map(log).collect::<Fallible<Vec<_>>>()?;
        let (body, bytes) = (body(size)?, vec![7_u8; size]);
        let (mut raw_at, mut raws) = (0, Vec::new());
        let (mut times, mut spent) = ([const { Vec::new() }; METHODS.len()], [0.0; METHODS.len()]);
        let begun = Instant::now();
        while raws.len() < count && begun.elapsed() < 2 * PART_AT_MOST {
            for (nth, wal) in logs.iter_mut().enumerate() {
                let frame = frames(wal.tail(), &body, 1);
                let (start, start_cpu) = (Instant::now(), cpu());
                wal.append(&frame)?;
                wal.sync()?;
                times[nth].push(start.elapsed().as_secs_f64());
                spent[nth] += cpu() - start_cpu;
                if wal.tail().index.is_multiple_of(100) {
                    wal.note_commit(wal.last_index());
                    wal.release_before(wal.last_index())?;
                    prepare(wal)?;
                }
            }
            if raw_at + size as u64 > FILE_BYTES {
                raw_at = 0;
            }
            let start = Instant::now();
            raw.write_all_at(&bytes, raw_at)?;
            raw.sync_data()?;
            raws.push(start.elapsed().as_secs_f64());
            raw_at += size as u64;
        }
        let sum = |times: &[f64]| times.iter().sum::<f64>();
        let (raw_sum, rounds, raw) = (sum(&raws), raws.len(), median(raws));
        println!(
            "synced append {size} B, {rounds} of each: raw {:.0} us ({:.1} MB/s)",
            raw * 1e6,
            size as f64 / raw / 1e6
        );
        for (nth, method) in METHODS.iter().enumerate() {
            let (log_sum, log, stats) = (sum(&times[nth]), median(times[nth].clone()), logs[nth].stats());
            println!(
                "  log, {method:?}: {:.0} us ({:.1} MB/s), CPU {:.0} us: raw/log {:.3} by medians, {:.3} by sums; {} rotations, {} recycled",
                log * 1e6,
                size as f64 / log / 1e6,
                spent[nth] / rounds as f64 * 1e6,
                raw / log,
                raw_sum / log_sum,
                stats.rotations,
                stats.recycled,
            );
        }
        println!("  RssAnon {} kB", rss_anon());
    }
    Ok(())
}

/// CPU time of this thread: what else the machine does makes no difference to it but by the caches.
fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Sequential reads of a warm log through the map.
fn reads(dir: &Path) -> Fallible<()> {
    for (size, count) in [(4 << 10, 64_000), (256 << 10, 1_000)] {
        let _ = std::fs::remove_dir_all(dir.join("log"));
        std::fs::create_dir_all(dir.join("log"))?;
        let mut wal = new_log(dir)?;
        let body = body(size)?;
        for _ in 0..count / 100 {
            wal.append(&frames(wal.tail(), &body, 100))?;
        }
        wal.sync()?;
        let reader = wal.reader();
        let total = reader.stats().bytes as f64;
        let (mut bare, mut verified, mut scanned) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for verify in [false, true] {
                let start = cpu();
                let (mut next, mut prev, mut sum) = (2, reader.frame(1)?.header().chain, 0_u64);
                while next <= reader.last_index() {
                    for frame in reader.frames(next, u64::MAX, 1 << 20)? {
                        if verify {
                            frame.verify(Some(prev))?;
                        } else {
                            sum = frame.body().chunks().iter().fold(sum, |sum, chunk| sum ^ touch(chunk));
                        }
                        prev = frame.header().chain;
                        next = frame.header().index + 1;
                    }
                }
                black_box(sum);
                let rate = total / (cpu() - start) / 1e9;
                if verify { verified.push(rate) } else { bare.push(rate) }
            }
        }
        wal.close()?;
        for _ in 0..ROUNDS {
            let start = cpu();
            let found = inspect::verify(&RealDisk::open(dir.join("log")))?;
            assert!(found.damage.is_empty());
            scanned.push(total / (cpu() - start) / 1e9);
        }
        println!(
            "sequential read, frames of {size} B, {:.0} MB: {:.1} GB/s every byte touched, {:.1} GB/s verified; recovery scan {:.1} GB/s (CPU time)",
            total / 1e6,
            median(bare),
            median(verified),
            median(scanned),
        );
    }
    Ok(())
}

/// Reads every byte, as a copy would.
fn touch(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).fold(0, |sum, eight| sum ^ u64::from_le_bytes(eight.try_into().unwrap_or_default()))
}

/// Lets go of a file's pages. Those that somebody has mapped and touched, or that are not written back, stay.
fn drop_cached(path: &Path) -> Fallible<()> {
    rustix::fs::fadvise(File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// Bytes that this process made the kernel fetch from disks.
fn fetched() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    line.and_then(|line| line.parse().ok()).unwrap_or(0)
}

fn segments(dir: &Path) -> Fallible<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        paths.push(entry?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "seg"));
    paths.sort();
    Ok(paths)
}

/// Sequential reads of a log that is not in the page cache, in turns with `dd` of the same segments.
fn cold_reads(dir: &Path) -> Fallible<()> {
    let mut wal = new_log(dir)?;
    let body = body(64 << 10)?;
    while wal.reader().stats().bytes < 760 << 20 {
        wal.append(&frames(wal.tail(), &body, 50))?;
    }
    wal.sync()?;
    let mut rates = [const { Vec::new() }; 3];
    for round in 0..9 {
        for way in (0..3).map(|way| (way + round) % 3) {
            // Opened anew, so that no page is mapped and can be dropped.
            wal.close()?;
            wal = Wal::open(RealDisk::open(dir.join("log")), Options::default())?.0;
            let reader = wal.reader();
            let paths = segments(&dir.join("log"))?;
            let used = &paths[..reader.stats().segments as usize];
            used.iter().try_for_each(|path| drop_cached(path))?;
            let before = fetched();
            let start = Instant::now();
            let mut bytes = 0;
            if way == 0 {
                for path in used {
                    let mut dd = std::process::Command::new("dd");
                    dd.args(["of=/dev/null", "bs=1M", "status=none"]).arg(format!("if={}", path.display()));
                    assert!(dd.status()?.success());
                    bytes += std::fs::metadata(path)?.len();
                }
            } else {
                let (mut next, mut sum) = (1, 0);
                while next <= reader.last_index() {
                    if way == 2 {
                        reader.populate(next, next + 63);
                    }
                    for frame in reader.frames(next, next + 63, 8 << 20)? {
                        sum = frame.body().chunks().iter().fold(sum, |sum, chunk| sum ^ touch(chunk));
                        bytes += frame.header().frame_len() as u64;
                        next = frame.header().index + 1;
                    }
                }
                black_box(sum);
            }
            assert!(way == 0 || fetched() - before >= bytes, "some of it was in the page cache");
            rates[way].push(bytes as f64 / start.elapsed().as_secs_f64() / 1e9);
        }
    }
    let [dd, plain, ahead] = rates.map(median);
    println!(
        "cold sequential read, frames of 64 KiB: dd {dd:.2} GB/s; log {plain:.2} GB/s ({:.2}), with populate before every 4 MiB {ahead:.2} GB/s ({:.2})",
        plain / dd,
        ahead / dd
    );
    Ok(())
}

/// A log of at least so many bytes, and its active segment always as full, since that is what opening reads.
fn grown(dir: &Path, size_mb: u64) -> Fallible<Wal<RealDisk>> {
    let mut wal = new_log_in(dir, &Options::default())?;
    let body = body(16 << 10)?;
    let (mut rotations, mut sealed) = (0, 0);
    loop {
        let bytes = wal.reader().stats().bytes;
        if bytes >= size_mb << 20 && (30 << 20..34 << 20).contains(&(bytes - sealed)) {
            break;
        }
        wal.append(&frames(wal.tail(), &body, 100))?;
        wal.sync()?;
        if wal.stats().rotations > rotations {
            (rotations, sealed) = (wal.stats().rotations, bytes);
        }
    }
    prepare(&mut wal)?;
    Ok(wal)
}

/// How long opening takes, with short and with long logs in turns.
fn opens(dir: &Path, sizes_mb: &[u64]) -> Fallible<()> {
    let free = rustix::fs::statvfs(dir)?;
    if sizes_mb.iter().any(|size| *size > 8 << 10) && free.f_bavail * free.f_frsize < 40 << 30 {
        println!("open a log of 16 GiB: left out, less than 40 GiB free");
        return Ok(());
    }
    let body = body(16 << 10)?;
    let dirs: Vec<PathBuf> = sizes_mb.iter().map(|size| dir.join(format!("log{size}"))).collect();
    let mut bytes = Vec::new();
    for (dir, size) in dirs.iter().zip(sizes_mb) {
        let wal = grown(dir, *size)?;
        bytes.push(wal.reader().stats().bytes);
        wal.close()?;
    }
    let mut times = vec![[const { Vec::new() }; 4]; dirs.len()];
    let mut anonymous = vec![0; dirs.len()];
    for _ in 0..ROUNDS {
        for (nth, dir) in dirs.iter().enumerate() {
            let mut open = |killed: usize| -> Fallible<Wal<RealDisk>> {
                let (start, start_cpu) = (Instant::now(), cpu());
                let (wal, _) = Wal::open(RealDisk::open(dir), Options::default())?;
                times[nth][killed].push(start.elapsed().as_secs_f64() * 1e3);
                times[nth][killed + 2].push((cpu() - start_cpu) * 1e3);
                anonymous[nth] = anonymous[nth].max(rss_anon());
                Ok(wal)
            };
            let mut wal = open(0)?;
            wal.append(&frames(wal.tail(), &body, 20))?;
            wal.sync()?;
            wal.append(&frames(wal.tail(), &body, 20))?;
            // As after a kill: written, not synced, nothing vouched for.
            drop(wal);
            let mut wal = open(1)?;
            wal.append(&frames(wal.tail(), &body, 1))?;
            anonymous[nth] = anonymous[nth].max(rss_anon());
            wal.close()?;
        }
    }
    for ((bytes, times), anonymous) in bytes.iter().zip(times).zip(anonymous) {
        let [clean, killed, clean_cpu, killed_cpu] = times.map(median);
        println!(
            "open a log of {} MB: {clean:.1} ms after a close (CPU {clean_cpu:.1}), {killed:.1} ms after a kill (CPU {killed_cpu:.1}), medians of {ROUNDS}; RssAnon with that and appending at most {anonymous} kB",
            bytes / 1_000_000,
        );
    }
    Ok(())
}

/// Random look-ups of an offset, and of an entry.
fn lookups(dir: &Path) -> Fallible<()> {
    let mut wal = new_log(dir)?;
    let body = body(100)?;
    while wal.reader().stats().bytes < 200 << 20 {
        wal.append(&frames(wal.tail(), &body, 5000))?;
    }
    wal.sync()?;
    let reader = wal.reader();
    let last = wal.tail().next_offset;
    let mut random = 1_u64;
    let mut draw = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % last
    };
    reader.populate(1, u64::MAX);
    let (mut offsets, mut entries) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = cpu();
        for _ in 0..20_000 {
            let offset = draw();
            assert_eq!(reader.index_of_offset(offset)?, Some(offset + 2));
        }
        offsets.push((cpu() - start) / 20_000.0 * 1e6);
        let start = cpu();
        for _ in 0..20_000 {
            black_box(reader.frame(draw() + 2)?);
        }
        entries.push((cpu() - start) / 20_000.0 * 1e6);
    }
    println!(
        "look-up in {last} records of 100 B: offset {:.2} us, entry {:.2} us (CPU time)",
        median(offsets),
        median(entries)
    );
    Ok(())
}

/// A way to get bytes to stable storage, without the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Fdatasync,
    /// As the log writes: behind one another at multiples of 64 bytes, so that most writes begin and end inside a page.
    FdatasyncUnaligned,
    FdatasyncOnAllocated,
    FdatasyncOnWriteZeroes,
    Dsync,
    DirectDsync,
    DirectFdatasync,
    RwfDsync,
}

/// Ways to get bytes to stable storage, one write of each after the other.
fn raw_methods(dir: &Path) -> Fallible<()> {
    use Way::{
        DirectDsync, DirectFdatasync, Dsync, Fdatasync, FdatasyncOnAllocated, FdatasyncOnWriteZeroes,
        FdatasyncUnaligned, RwfDsync,
    };
    let mut ways =
        vec![Fdatasync, FdatasyncUnaligned, FdatasyncOnAllocated, Dsync, DirectDsync, DirectFdatasync, RwfDsync];
    match allocated(&dir.join("z"), WRITE_ZEROES) {
        Ok(_) => ways.push(FdatasyncOnWriteZeroes),
        Err(error) => println!("FALLOC_FL_WRITE_ZEROES: {error}"),
    }
    for (size, count) in [(4 << 10, 1500), (64 << 10, 800), (1 << 20, 400)] {
        let memory = vec![7_u8; size + 4096];
        let skip = memory.as_ptr().align_offset(4096);
        let bytes = &memory[skip..skip + size];
        let mut files = ways.iter().map(|way| file_for(*way, dir)).collect::<Fallible<Vec<File>>>()?;
        let mut times = vec![Vec::new(); ways.len()];
        let mut places = vec![0; ways.len()];
        let begun = Instant::now();
        while times[0].len() < count && begun.elapsed() < PART_AT_MOST {
            for (nth, way) in ways.iter().enumerate() {
                let step = size as u64 + if *way == FdatasyncUnaligned { 192 } else { 0 };
                if places[nth] + step > FILE_BYTES {
                    places[nth] = 0;
                    if matches!(way, FdatasyncOnAllocated | FdatasyncOnWriteZeroes) {
                        files[nth] = file_for(*way, dir)?;
                    }
                }
                let (file, at) = (&files[nth], places[nth]);
                let start = Instant::now();
                match way {
                    Dsync | DirectDsync => file.write_all_at(bytes, at)?,
                    RwfDsync => {
                        let slices = [std::io::IoSlice::new(bytes)];
                        rustix::io::pwritev2(file, &slices, at, rustix::io::ReadWriteFlags::DSYNC)?;
                    }
                    _ => file.write_all_at(bytes, at).and_then(|()| file.sync_data())?,
                }
                times[nth].push(start.elapsed().as_secs_f64());
                places[nth] += step;
            }
        }
        let rounds = times[0].len();
        println!("raw, {size} B, medians of {rounds} writes each:");
        for (way, times) in ways.iter().zip(times) {
            let time = median(times);
            println!("  {way:?}: {:.0} us, {:.1} MB/s", time * 1e6, size as f64 / time / 1e6);
        }
    }
    Ok(())
}

/// `FALLOC_FL_WRITE_ZEROES`, from Linux 6.17 on.
const WRITE_ZEROES: u32 = 0x80;

fn allocated(path: &Path, flags: u32) -> Fallible<File> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::from_bits_retain(flags), 0, FILE_BYTES)?;
    file.sync_all()?;
    Ok(file)
}

fn file_for(way: Way, dir: &Path) -> Fallible<File> {
    let (dsync, direct) = (rustix::fs::OFlags::DSYNC.bits() as i32, rustix::fs::OFlags::DIRECT.bits() as i32);
    let path = dir.join(format!("{way:?}"));
    match way {
        Way::FdatasyncOnAllocated => allocated(&path, 0),
        Way::FdatasyncOnWriteZeroes => allocated(&path, WRITE_ZEROES),
        Way::Dsync => zeroed(&path, dsync),
        Way::DirectDsync => zeroed(&path, dsync | direct),
        Way::DirectFdatasync => zeroed(&path, direct),
        _ => zeroed(&path, 0),
    }
}
