//! Two ways that were tried: sums over what was received as it lies or after a copy, and segments of other sizes.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use graven_frame::Body;
use graven_wal::{Options, PrepareState};

use crate::group::quantile;
use crate::{Fallible, PART_AT_MOST, ROUNDS, body, cpu, frames, median, new_log_in};

/// The sum over a body that came in chunks: over the chunks as they lie, after joining them, and over joined ones.
pub(crate) fn received() {
    for (what, len, chunk) in
        [("1 MiB in chunks of 1,200 B", 1 << 20, 1200), ("64 KiB in chunks of 1,200 B", 64 << 10, 1200)]
    {
        let bytes: Vec<u8> = (0..len).map(|at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let parts = bytes.chunks(chunk).map(Bytes::copy_from_slice).collect();
        let (split, joined) = (Body::from_chunks(parts), Body::from(Bytes::from(bytes)));
        let mut rates = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (way, rates) in rates.iter_mut().enumerate() {
                let start = cpu();
                let times = (64 << 20) / len;
                for _ in 0..times {
                    black_box(match way {
                        0 => split.crc(),
                        1 => Body::from(split.concat()).crc(),
                        _ => joined.crc(),
                    });
                }
                rates.push((times * len) as f64 / (cpu() - start) / 1e9);
            }
        }
        let [lying, copied, whole] = rates.map(median);
        println!(
            "sum over {what}: {lying:.1} GB/s as they lie, {copied:.1} GB/s joined first, {whole:.1} GB/s in one piece (CPU time)"
        );
    }
}

/// Synced appends of 64 KiB to logs with segments of different sizes, in turns; nothing is prepared in between but as a busy
/// log does it, as fast as it grows.
pub(crate) fn segment_sizes(dir: &Path) -> Fallible<()> {
    const SIZES_MB: [u64; 4] = [4, 16, 64, 256];
    let body = body(64 << 10)?;
    let mut logs = Vec::new();
    for size in SIZES_MB {
        let options = Options { segment_bytes: size << 20, ..Options::default() };
        let mut wal = new_log_in(&dir.join(format!("log{size}")), &options)?;
        while wal.prepare(16 << 20)? == PrepareState::More {}
        logs.push(wal);
    }
    let (mut times, mut whole) = (vec![Vec::new(); SIZES_MB.len()], vec![0.0; SIZES_MB.len()]);
    let begun = Instant::now();
    while times[0].len() < 12_000 && begun.elapsed() < 3 * PART_AT_MOST {
        for (nth, wal) in logs.iter_mut().enumerate() {
            let frame = frames(wal.tail(), &body, 1);
            let start = Instant::now();
            wal.append(&frame)?;
            wal.sync()?;
            times[nth].push(start.elapsed().as_secs_f64());
            if wal.tail().index.is_multiple_of(4) {
                wal.note_commit(wal.last_index());
                wal.release_before(wal.last_index())?;
                wal.prepare(256 << 10)?;
            }
            whole[nth] += start.elapsed().as_secs_f64();
        }
    }
    for (nth, size) in SIZES_MB.iter().enumerate() {
        let (times, stats) = (&times[nth], logs[nth].stats());
        println!(
            "synced append 64 KiB, segments of {size} MiB: p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us; {:.0} MB/s with preparation; {} rotations, {} recycled, {} made, {} late allocations, {} unprepared",
            quantile(times, 0.5) * 1e6,
            quantile(times, 0.99) * 1e6,
            quantile(times, 0.999) * 1e6,
            (times.len() << 16) as f64 / whole[nth] / 1e6,
            stats.rotations,
            stats.recycled,
            stats.created,
            stats.late_allocations,
            stats.unprepared_rotations,
        );
    }
    Ok(())
}
