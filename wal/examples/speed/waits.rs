//! What somebody who waits for the log notices: group sync, rotation, a shared disk, and segments that were written before.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use graven_wal::{Options, RealDisk, Wal};

use crate::{
    FILE_BYTES, Fallible, PART_AT_MOST, body, drop_cached, frames, median, new_log, new_log_in, prepare, zeroed,
};

/// The value that this part of them do not exceed.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() as f64 * part) as usize).min(sorted.len() - 1)]
}

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

const WRITERS: usize = 64;

/// 64 writers that share a sync, in turns with one that has its own. Sealing the frames is part of both.
///
/// The writers of a sync are taken to have come evenly spread over the one before it: each waits for the rest of that one
/// and for its own.
pub(crate) fn group(dir: &Path) -> Fallible<()> {
    let mut wal = new_log(dir)?;
    let body = body(256)?;
    prepare(&mut wal)?;
    let (mut alone, mut shared, mut syncs, mut waits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let begun = Instant::now();
    while shared.len() < 6000 && begun.elapsed() < PART_AT_MOST {
        for _ in 0..50 {
            alone.push(timed(|| {
                wal.append(&frames(wal.tail(), &body, 1))?;
                Ok(wal.sync()?)
            })?);
        }
        let mut before = None;
        for _ in 0..50 {
            let mut sync = 0.0;
            let whole = timed(|| {
                wal.append(&frames(wal.tail(), &body, WRITERS))?;
                sync = timed(|| Ok(wal.sync()?))?;
                Ok(())
            })?;
            if let Some(before) = before {
                waits.extend((0..WRITERS).map(|nth| before * (nth as f64 + 0.5) / WRITERS as f64 + whole));
            }
            before = Some(whole);
            shared.push(whole);
            syncs.push(sync);
        }
        rest(&mut wal)?;
    }
    let rate = |times: &[f64], records: usize| (times.len() * records) as f64 / times.iter().sum::<f64>();
    let (many, one) = (rate(&shared, WRITERS), rate(&alone, 1));
    let (sync, wait) = (quantile(&syncs, 0.5), quantile(&waits, 0.99));
    println!(
        "group sync of {WRITERS} x 256 B: {many:.0} records/s, one writer {one:.0}: {:.1} times ({:.1} by medians); sync p50 {:.0} us, p99 {:.0} us; wait p50 {:.0} us, p99 {:.0} us: {:.2} times the sync's p50 ({} syncs)",
        many / one,
        quantile(&alone, 0.5) * WRITERS as f64 / quantile(&shared, 0.5),
        sync * 1e6,
        quantile(&syncs, 0.99) * 1e6,
        quantile(&waits, 0.5) * 1e6,
        wait * 1e6,
        wait / sync,
        syncs.len(),
    );
    Ok(())
}

/// Synced appends of 16 KiB to a log that rotates every 63 of them, in turns with one that never does.
pub(crate) fn rotation(dir: &Path) -> Fallible<()> {
    const APPENDS: usize = 20_000;
    let small = Options { segment_bytes: 1 << 20, ..Options::default() };
    let large = Options { segment_bytes: 384 << 20, prepared_segments: 1, ..Options::default() };
    let mut logs = [new_log_in(&dir.join("small"), &small)?, new_log_in(&dir.join("large"), &large)?];
    let body = body(16 << 10)?;
    for wal in &mut logs {
        prepare(wal)?;
    }
    let (mut times, mut rotating) = ([Vec::new(), Vec::new()], Vec::new());
    let begun = Instant::now();
    while times[1].len() < APPENDS && begun.elapsed() < 2 * PART_AT_MOST {
        for (wal, times) in logs.iter_mut().zip(&mut times) {
            let frame = frames(wal.tail(), &body, 1);
            let rotations = wal.stats().rotations;
            let time = timed(|| {
                wal.append(&frame)?;
                Ok(wal.sync()?)
            })?;
            times.push(time);
            if wal.stats().rotations > rotations {
                rotating.push(time);
            }
            rest(wal)?;
        }
    }
    for (wal, times) in logs.iter().zip(&times) {
        let stats = wal.stats();
        println!(
            "synced append 16 KiB: p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us, longest {:.0} us of {}; {} rotations, {} recycled, {} made, {} late allocations, {} unprepared",
            quantile(times, 0.5) * 1e6,
            quantile(times, 0.99) * 1e6,
            quantile(times, 0.999) * 1e6,
            quantile(times, 1.0) * 1e6,
            times.len(),
            stats.rotations,
            stats.recycled,
            stats.created,
            stats.late_allocations,
            stats.unprepared_rotations,
        );
    }
    println!(
        "an append that rotates: p50 {:.0} us, p99 {:.0} us; p99.9 with rotations / without {:.2}",
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
