//! `graven bench fsync`: what this disk does, for the ways to make bytes durable, and what is left of it through graven's log.
//!
//! Everything happens in a new directory under `--dir`, which goes away again however the command ends (but for a kill).
//! The log and the raw file beside it are measured in short slices in turns, on equally prepared files, and the figures are
//! medians over the slices: what else runs on the machine meets both.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use clap::Args;
use graven_wal::{Disk, RealDisk};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::log::LogTarget;
use self::measure::{Figures, Stop, interrupted};
use self::place::Place;
use self::raw::{Method, Prepared, RawFile, io_failure};
use self::show::{Pair, Report, Row};
use crate::cli::Global;
use crate::cli::context::{self, Signals};
use crate::cli::error::{CliResult, ErrorCode, Failure};
use crate::cli::out;
use crate::cli::status::human_size;

mod log;
mod measure;
mod place;
mod raw;
mod show;

/// Arguments of `graven bench fsync`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example: graven bench fsync --dir /var/lib/graven\n\nWithout --full: pwrite+fdatasync and direct+dsync on a zero-filled file, and graven's log, in less than 20 s.\nThe files are made for this and removed again."
)]
pub(super) struct FsyncBench {
    /// The directory whose disk is measured
    #[arg(long, value_name = "D", default_value = ".")]
    dir: PathBuf,
    /// The ways that matter most, in less than 20 s (the default)
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// All ways on files prepared in all ways
    #[arg(long)]
    full: bool,
    /// Bytes of the file that is written
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = crate::config::parse_size)]
    size: u64,
    /// Time for each way and batch size; without --full at most what 20 s in total allow
    #[arg(long, value_name = "T", default_value_t = 2.0, value_parser = super::parse_seconds)]
    seconds: f64,
}

/// From a record alone to what a bulk load makes of many.
const BATCHES: [usize; 4] = [512, 4 << 10, 64 << 10, LARGEST_BATCH];
/// The largest of them.
const LARGEST_BATCH: usize = 1 << 20;
/// A smaller file would be one batch after another on the same blocks.
const MIN_SIZE_BYTES: u64 = 4 << 20;
/// Segments of the log as in a node, unless the measured file is small.
const SEGMENT_BYTES: u64 = 64 << 20;
/// The active segment, what was written in a slice, and those ahead.
const LOG_SEGMENTS: u64 = 6;
/// What `--quick` stays below with everything, preparation and removal too.
const QUICK: Duration = Duration::from_secs(16);
/// Slices are this short, so that both sides of a comparison see the same machine.
const SLICE: Duration = Duration::from_millis(100);
/// A median of fewer slices says little.
const MIN_SLICES: usize = 3;
/// More syncs a second than any disk with a promise can do, batch by batch.
const TOO_GOOD: f64 = 100_000.0;

/// Runs the command.
pub(super) fn run(bench: &FsyncBench, global: &Global) -> CliResult {
    context::block_on(global, async {
        let mut signals = Signals::install()?;
        let scratch = Scratch::make(&bench.dir)?;
        let stop = Stop::default();
        let bar = progress(global);
        let session = Session::new(bench, scratch.path.clone(), stop.clone(), bar.clone())?;
        let mut work = pin!(tokio::task::spawn_blocking(move || session.measure()));
        let report = tokio::select! {
            done = &mut work => done.map_err(|error| Failure::internal(format!("the measurement ended: {error}")))?,
            () = signals.recv() => {
                stop.set();
                // A second signal does not wait for the disk.
                tokio::select! {
                    _ = &mut work => {}
                    () = signals.recv() => {}
                }
                Err(interrupted())
            }
        };
        bar.finish_and_clear();
        drop(scratch);
        let report = report?;
        if global.json { out::print_line(&report.json().to_string()) } else { out::print(&report.text()) }
    })
}

fn progress(global: &Global) -> ProgressBar {
    use std::io::IsTerminal;
    if global.quiet || global.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// A new directory; it goes away with what is in it.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn make(dir: &Path) -> CliResult<Scratch> {
        if !dir.is_dir() {
            return Err(Failure::usage(format!("--dir {}: there is no such directory", dir.display())));
        }
        let path = dir.join(format!("graven-bench-{:08x}", rand::random::<u32>()));
        std::fs::create_dir(&path).map_err(|error| io_failure(&format!("make {}", path.display()), &error))?;
        Ok(Scratch { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Twice, because a measurement that was not waited for may just be making a file.
        if std::fs::remove_dir_all(&self.path).is_err() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// One run of the command, on a thread of its own.
struct Session {
    dir: PathBuf,
    place: Place,
    full: bool,
    size: u64,
    segment_bytes: u64,
    each: Duration,
    deadline: Instant,
    warnings: Vec<String>,
    stop: Stop,
    bar: ProgressBar,
    /// Shares of the remaining time that are still to be given out.
    weight_left: u32,
}

impl Session {
    fn new(bench: &FsyncBench, dir: PathBuf, stop: Stop, bar: ProgressBar) -> CliResult<Session> {
        let place = Place::of(&bench.dir);
        let mut warnings = place.warnings();
        warnings.extend(place::busy());
        let mut size = bench.size.next_multiple_of(MIN_SIZE_BYTES);
        if bench.size < MIN_SIZE_BYTES {
            warnings.push(format!("--size is less than {0}: {0} are used", human_size(MIN_SIZE_BYTES)));
        }
        let free = RealDisk::open(&dir).free_bytes().map_err(|error| io_failure("look for free space", &error))?;
        let need = |size| size + LOG_SEGMENTS * segment_bytes(size);
        let wished = size;
        while need(size) > free && size > MIN_SIZE_BYTES {
            size = (size / 2).next_multiple_of(MIN_SIZE_BYTES);
        }
        if need(size) > free {
            let message = format!(
                "{} has {} free, and at least {} are needed",
                bench.dir.display(),
                human_size(free),
                human_size(need(size))
            );
            return Err(Failure::new(ErrorCode::DiskFull, message));
        }
        if size < wished {
            warnings.push(format!(
                "not enough space for {}: the disk has {} free, a file of {} is used",
                human_size(wished),
                human_size(free),
                human_size(size)
            ));
        }
        Ok(Session {
            dir,
            place,
            full: bench.full,
            size,
            segment_bytes: segment_bytes(size),
            each: Duration::from_secs_f64(bench.seconds),
            deadline: Instant::now() + QUICK,
            warnings,
            stop,
            bar,
            weight_left: 0,
        })
    }

    fn plan(&self) -> Vec<(Method, Prepared)> {
        if self.full {
            let all = Method::ALL.iter();
            return all.flat_map(|method| Prepared::ALL.map(|prepared| (*method, prepared))).collect();
        }
        vec![(Method::Fdatasync, Prepared::ZeroFill), (Method::DirectDsync, Prepared::ZeroFill)]
    }

    fn measure(mut self) -> CliResult<Report> {
        let plan = self.plan();
        self.weight_left = plan.iter().map(|cell| weight(*cell)).sum::<u32>() * BATCHES.len() as u32;
        self.bar.set_length(u64::from(self.weight_left));
        let (mut raw, mut wal) = (Vec::new(), Vec::new());
        for (method, prepared) in plan {
            self.measure_way(method, prepared, &mut raw, &mut wal)?;
        }
        self.judge(&raw);
        Ok(Report { place: self.place, warnings: self.warnings, raw, wal })
    }

    fn measure_way(
        &mut self,
        method: Method,
        prepared: Prepared,
        raw_rows: &mut Vec<Row>,
        pairs: &mut Vec<Pair>,
    ) -> CliResult {
        self.bar.set_message(format!("{} on {}: preparing", method.name(), prepared.name()));
        let share = weight((method, prepared));
        let Some(mut raw) = RawFile::make(self.dir.clone(), method, prepared, self.size, &self.stop)? else {
            let line = format!("{} is not known to this file system ({})", method.name(), self.place.filesystem);
            if !self.warnings.contains(&line) {
                self.warnings.push(line);
            }
            self.weight_left -= share * BATCHES.len() as u32;
            return Ok(());
        };
        let mut log = self.log(method, prepared)?;
        for batch_bytes in BATCHES {
            self.bar.set_message(format!(
                "{} on {}: {}",
                method.name(),
                prepared.name(),
                human_size(batch_bytes as u64)
            ));
            let time = self.time_for(if log.is_some() { 2 } else { 1 });
            raw.begin(batch_bytes)?;
            self.warn_rounded(method, batch_bytes, raw.written_bytes());
            let row = |figures| Row { method, prepared, batch_bytes, figures };
            match &mut log {
                Some(log) => {
                    log.begin(batch_bytes)?;
                    let (of_raw, of_log) = self.in_turns(&mut raw, log, batch_bytes, time)?;
                    pairs.push(Pair { log: row(of_log), raw_row: raw_rows.len() });
                    raw_rows.push(row(of_raw));
                }
                None => raw_rows.push(row(self.alone(&mut raw, batch_bytes, time)?)),
            }
            self.weight_left -= share;
            self.bar.inc(u64::from(share));
        }
        drop((raw, log));
        self.clear()
    }

    /// The log that is measured beside a raw way.
    fn log(&self, method: Method, prepared: Prepared) -> CliResult<Option<LogTarget>> {
        let (Some(sync), Prepared::ZeroFill) = (log::sync_method(method), prepared) else { return Ok(None) };
        let dir = self.dir.join("log");
        std::fs::create_dir(&dir).map_err(|error| io_failure(&format!("make {}", dir.display()), &error))?;
        LogTarget::make(&dir, sync, self.segment_bytes, &self.stop)
    }

    /// Time of the clock for the next batch size: with `--full` all that was asked for, else its part of what is left.
    fn time_for(&self, share: u32) -> Duration {
        let wanted = self.each * share;
        if self.full {
            return wanted;
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        wanted.min(left * share / self.weight_left.max(1))
    }

    fn alone(&self, raw: &mut RawFile, batch_bytes: usize, time: Duration) -> CliResult<Figures> {
        let mut figures = Figures::new()?;
        let (slice, most) = self.slice(batch_bytes, time);
        let begin = Instant::now();
        for done in 0.. {
            if done >= MIN_SLICES && begin.elapsed() >= time {
                break;
            }
            figures.slice(raw, slice, most, &self.stop)?;
        }
        Ok(figures)
    }

    fn in_turns(
        &self,
        raw: &mut RawFile,
        log: &mut LogTarget,
        batch_bytes: usize,
        time: Duration,
    ) -> CliResult<(Figures, Figures)> {
        let (mut of_raw, mut of_log) = (Figures::new()?, Figures::new()?);
        let (slice, most) = self.slice(batch_bytes, time);
        let begin = Instant::now();
        for done in 0.. {
            if done >= MIN_SLICES && begin.elapsed() >= time {
                break;
            }
            // Who goes first takes turns too.
            if done % 2 == 0 {
                of_raw.slice(raw, slice, most, &self.stop)?;
                of_log.slice(log, slice, most, &self.stop)?;
            } else {
                of_log.slice(log, slice, most, &self.stop)?;
                of_raw.slice(raw, slice, most, &self.stop)?;
            }
        }
        Ok((of_raw, of_log))
    }

    /// How long a slice is, and how many batches: not more than the log has segments ready for.
    fn slice(&self, batch_bytes: usize, time: Duration) -> (Duration, u64) {
        let most = (self.segment_bytes / 2 / batch_bytes as u64).max(1);
        (SLICE.min(time / (2 * MIN_SLICES as u32)), most)
    }

    fn warn_rounded(&mut self, method: Method, batch_bytes: usize, written_bytes: usize) {
        let line = format!(
            "{} writes whole blocks here: a batch of {batch_bytes} bytes is rounded up to {written_bytes}",
            method.name()
        );
        if written_bytes != batch_bytes && !self.warnings.contains(&line) {
            self.warnings.push(line);
        }
    }

    /// Says so when no disk can be this fast.
    fn judge(&mut self, rows: &[Row]) {
        let fastest = rows
            .iter()
            .filter(|row| row.batch_bytes == 4 << 10)
            .map(|row| (row.figures.syncs_per_second(), row.method))
            .max_by(|(one, _), (other, _)| one.total_cmp(other));
        if let Some((rate, method)) = fastest
            && rate > TOO_GOOD
        {
            self.warnings.push(format!(
                "{rate:.0} syncs a second ({} at 4 KiB) are too good to be real syncs: something between here and the medium answers before the bytes are safe",
                method.name()
            ));
        }
    }

    /// The next way starts in an empty directory.
    fn clear(&self) -> CliResult {
        let cleared = std::fs::remove_dir_all(&self.dir).and_then(|()| std::fs::create_dir(&self.dir));
        cleared.map_err(|error| io_failure(&format!("clear {}", self.dir.display()), &error))
    }
}

fn segment_bytes(size: u64) -> u64 {
    (size / 4).clamp(MIN_SIZE_BYTES, SEGMENT_BYTES)
}

/// A comparison takes twice the time.
fn weight((method, prepared): (Method, Prepared)) -> u32 {
    if prepared == Prepared::ZeroFill && log::sync_method(method).is_some() { 2 } else { 1 }
}
