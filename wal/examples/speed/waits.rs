//! What somebody who waits for the log notices: group sync, rotation, a shared disk, and segments that were written before.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use graven_wal::{Options, RealDisk, Wal};

use crate::group::{self, Joining, Measured, WRITERS, Writers, quantile};
use crate::{
    FILE_BYTES, Fallible, PART_AT_MOST, body, drop_cached, frames, median, new_log, new_log_in, prepare, zeroed,
};

fn timed(work: impl FnOnce() -> Fallible<()>) -> Fallible<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Lets everything go that is committed, and makes the next segments ready.
fn rest(wal: &mut Wal<RealDisk>) -> Fallible<()> {
    wal.note_commit(wal.last_index());
    wal.release_before(wal.last_index())?;
    prepare(wal)
}

/// 64 requests of 256 B that wait at the same time, and one alone, all through a log thread, in turns. Sealing the frames is part
/// of all.
pub(crate) fn group(dir: &Path) -> Fallible<()> {
    const TURN: Duration = Duration::from_millis(250);
    let short = Joining::Awaited(Duration::from_micros(30));
    let ways = [
        (Writers::InFlight(1), Joining::Queued),
        (Writers::InFlight(WRITERS), Joining::Queued),
        (Writers::InFlight(WRITERS), short),
        (Writers::Threads(WRITERS), Joining::Queued),
        (Writers::Threads(WRITERS), short),
    ];
    let mut wal = new_log(dir)?;
    let body = body(256)?;
    prepare(&mut wal)?;
    let mut measured: Vec<Measured> = ways.iter().map(|_| Measured::default()).collect();
    for _ in 0..16 {
        for ((writers, joining), measured) in ways.iter().zip(&mut measured) {
            let done = group::round(&mut wal, &body, *writers, *joining, TURN, measured);
            done.map_err(|error| error.to_string())?;
        }
    }
    println!("group sync of 256 B, every wait measured:");
    for ((writers, joining), of) in ways.iter().zip(&measured) {
        println!("  {writers:?}, {joining:?}: {}; {:.1} times one writer", of.told(), of.rate() / measured[0].rate());
    }
    Ok(())
}

/// Synced appends to a log that rotates often, in turns with one that hardly ever does: small segments and the default ones.
pub(crate) fn rotation(dir: &Path) -> Fallible<()> {
    let small = Options { segment_bytes: 1 << 20, ..Options::default() };
    rotations_of(&dir.join("small"), 16 << 10, &small, 20_000)?;
    rotations_of(&dir.join("default"), 256 << 10, &Options::default(), 26_000)
}

fn rotations_of(dir: &Path, bytes: usize, options: &Options, appends: usize) -> Fallible<()> {
    let large = Options { segment_bytes: 1 << 30, prepared_segments: 1, ..Options::default() };
    let mut logs = [new_log_in(&dir.join("often"), options)?, new_log_in(&dir.join("rarely"), &large)?];
    let body = body(bytes)?;
    for wal in &mut logs {
        prepare(wal)?;
    }
    let (mut times, mut rotating) = ([Vec::new(), Vec::new()], Vec::new());
    let begun = Instant::now();
    while times[1].len() < appends && begun.elapsed() < 3 * PART_AT_MOST {
        for (nth, wal) in logs.iter_mut().enumerate() {
            let frame = frames(wal.tail(), &body, 1);
            let rotations = wal.stats().rotations;
            let time = timed(|| {
                wal.append(&frame)?;
                Ok(wal.sync()?)
            })?;
            let rotated = wal.stats().rotations > rotations;
            if nth == 0 || !rotated {
                times[nth].push(time);
            }
            if nth == 0 && rotated {
                rotating.push(time);
            }
            rest(wal)?;
        }
    }
    println!(
        "synced append {} KiB, segments of {} MiB, in turns with one segment:",
        bytes >> 10,
        options.segment_bytes >> 20
    );
    for (wal, times) in logs.iter().zip(&times) {
        let stats = wal.stats();
        println!(
            "  p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us, longest {:.0} us of {}; {} rotations, {} sealed ahead, {} recycled, {} made, {} late allocations, {} unprepared",
            quantile(times, 0.5) * 1e6,
            quantile(times, 0.99) * 1e6,
            quantile(times, 0.999) * 1e6,
            quantile(times, 1.0) * 1e6,
            times.len(),
            stats.rotations,
            stats.sealed_ahead,
            stats.recycled,
            stats.created,
            stats.late_allocations,
            stats.unprepared_rotations,
        );
    }
    println!(
        "  an append that rotates: p50 {:.0} us, p99 {:.0} us; p99.9 with rotations / without {:.2}",
        quantile(&rotating, 0.5) * 1e6,
        quantile(&rotating, 0.99) * 1e6,
        quantile(&times[0], 0.999) / quantile(&times[1], 0.999),
    );
    Ok(())
}

/// A synced write of 4 KiB alone, and beside two others that do the same on the same disk: logs, and raw files.
pub(crate) fn shared_disk(dir: &Path) -> Fallible<()> {
    const TURN: Duration = Duration::from_millis(400);
    let mut logs = Vec::new();
    let mut raws = Vec::new();
    for nth in 0..3 {
        let mut wal = new_log_in(&dir.join(format!("log{nth}")), &Options::default())?;
        prepare(&mut wal)?;
        logs.push(wal);
        raws.push((zeroed(&dir.join(format!("raw{nth}")), 0)?, 0));
    }
    let body = body(4 << 10)?;
    let bytes = vec![7_u8; 4 << 10];
    let log_once = |wal: &mut Wal<RealDisk>| {
        let frame = frames(wal.tail(), &body, 1);
        let time = timed(|| {
            wal.append(&frame)?;
            Ok(wal.sync()?)
        });
        time.unwrap_or(f64::NAN)
    };
    let raw_once = |(file, at): &mut (File, u64)| {
        *at = (*at + 4096) % FILE_BYTES;
        timed(|| Ok(file.write_all_at(&bytes, *at).and_then(|()| file.sync_data())?)).unwrap_or(f64::NAN)
    };
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..6 {
        times[0].extend(together(&mut logs[..1], &log_once, TURN));
        times[1].extend(together(&mut raws[..1], &raw_once, TURN));
        times[2].extend(together(&mut logs, &log_once, TURN));
        times[3].extend(together(&mut raws, &raw_once, TURN));
        for wal in &mut logs {
            rest(wal)?;
        }
    }
    for (what, times) in ["log alone", "raw alone", "log beside two", "raw beside two"].iter().zip(&times) {
        println!(
            "synced 4 KiB, {what}: p50 {:.0} us, p99 {:.0} us of {}",
            quantile(times, 0.5) * 1e6,
            quantile(times, 0.99) * 1e6,
            times.len()
        );
    }
    Ok(())
}

/// The same work again and again, each on a thread of its own; how long each took, by all of them.
fn together<T: Send>(all: &mut [T], once: &(impl Fn(&mut T) -> f64 + Sync), turn: Duration) -> Vec<f64> {
    let until = Instant::now() + turn;
    let each = |one: &mut T| {
        let mut times = Vec::new();
        while Instant::now() < until {
            times.push(once(one));
        }
        times
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter_mut().map(|one| scope.spawn(move || each(one))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    })
}

/// `pwrite` and `fdatasync`, placed as the log places records, on a file that was zero-filled, one that was full of
/// records, and one whose records are not in memory.
pub(crate) fn recycled(dir: &Path) -> Fallible<()> {
    const KINDS: [&str; 3] = ["zero-filled", "written before, resident", "written before, not resident"];
    let make = |nth: usize| -> Fallible<File> {
        let file = zeroed(&dir.join(format!("kind{nth}")), 0)?;
        if nth > 0 {
            for at in 0..FILE_BYTES >> 20 {
                file.write_all_at(&vec![at as u8 | 1; 1 << 20], at << 20)?;
            }
            file.sync_all()?;
        }
        if nth == 2 {
            drop_cached(&dir.join("kind2"))?;
        }
        Ok(file)
    };
    for (size, count) in [(4 << 10, 3000), (64 << 10, 1600), (1 << 20, 360)] {
        let bytes = vec![7_u8; size];
        let mut times = [const { Vec::new() }; 3];
        let mut files = [make(0)?, make(1)?, make(2)?];
        let (mut at, mut round) = (0, 0);
        let begun = Instant::now();
        while round < count && begun.elapsed() < PART_AT_MOST {
            let step = size as u64 + 192;
            if at + step > FILE_BYTES {
                at = 0;
                files = [make(0)?, make(1)?, make(2)?];
            }
            for nth in (0..3).map(|nth| (nth + round) % 3) {
                let file = &files[nth];
                times[nth].push(timed(|| Ok(file.write_all_at(&bytes, at).and_then(|()| file.sync_data())?))?);
            }
            at += step;
            round += 1;
        }
        println!("segment file, {size} B, {round} writes each:");
        for (kind, times) in KINDS.iter().zip(times) {
            println!("  {kind}: {:.0} us, p99 {:.0} us", median(times.clone()) * 1e6, quantile(&times, 0.99) * 1e6);
        }
    }
    Ok(())
}
