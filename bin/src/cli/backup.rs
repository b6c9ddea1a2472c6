//! `graven backup`: a running cluster's log in a directory, and whether such a directory is whole.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use graven_net::client::{BackupStream, Client};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::Global;
use super::context::{self, Signals, note, quoted};
use super::error::{CliResult, ErrorCode, Failure};
use super::out;
use crate::backup::{Backup, BackupError, FILE_BYTES, Manifest, Writer};

/// Arguments of `graven backup`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  graven backup /backup/2026-11-25\n  graven backup --verify /backup/2026-11-25\n\nEverything that is acknowledged when it begins is in it, and whatever else is committed then; appends go on meanwhile. It needs an admin's\ncertificate: sessions and trimmed records are in it too. `graven restore` makes a new cluster of it."
)]
pub(crate) struct BackupArgs {
    /// Where: a new or an empty directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Check every byte of a backup; no cluster is needed
    #[arg(long, conflicts_with = "node")]
    verify: bool,
    /// Copy from this node instead of any
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &BackupArgs, global: &Global) -> CliResult {
    if args.verify {
        let (backup, _) = verified(&args.dir, global)?;
        return told(&args.dir, backup.manifest(), "is whole", global);
    }
    context::block_on(global, async {
        let mut signals = Signals::install()?;
        // Whatever was written goes when the work is dropped.
        tokio::select! {
            made = make(args, global) => told(&args.dir, &made?, "was made", global),
            () = signals.recv() => Err(Failure::new(ErrorCode::Unavailable, "interrupted; nothing is left of the backup")),
        }
    })
}

/// Opens a backup and reads every byte of it.
pub(super) fn verified(dir: &Path, global: &Global) -> CliResult<(Backup, crate::replica::fold::Fold)> {
    let backup = Backup::open(dir).map_err(failure)?;
    let mut bar = Bar::new(global, backup.manifest().bytes, "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}");
    let fold = backup.verify(|bytes| bar.show(bytes, || "checked".to_owned())).map_err(failure);
    bar.clear();
    Ok((backup, fold?))
}

/// A log that is trimmed while it is copied may be let go of before the copy comes to it; then it is copied anew, from a later beginning.
const ATTEMPTS: usize = 3;

async fn make(args: &BackupArgs, global: &Global) -> CliResult<Manifest> {
    let client = context::connect(global).await?;
    for _ in 1..ATTEMPTS {
        match copy(&client, args, global).await {
            Err(Failure::Error(error)) if error.code == ErrorCode::Trimmed => {
                note(global, &format!("{}; once more", error.message));
            }
            done => return done,
        }
    }
    copy(&client, args, global).await
}

async fn copy(client: &Client, args: &BackupArgs, global: &Global) -> CliResult<Manifest> {
    let mut stream = client.backup(args.node.as_deref()).await?;
    let head = stream.head().clone();
    let mut writer = Writer::create(&args.dir, head.cluster, stream.checkpoint(), FILE_BYTES).map_err(failure)?;
    let mut bar = Bar::new(global, head.last + 1 - head.first, "{bar:30} {percent} % {msg} {elapsed}");
    let copied = fill(&mut stream, &mut writer, &mut bar, global).await;
    bar.clear();
    copied?;
    writer.finish(head.last, head.first_offset, head.next_offset).map_err(failure)
}

async fn fill(stream: &mut BackupStream, writer: &mut Writer, bar: &mut Bar, global: &Global) -> CliResult {
    let first = stream.head().first;
    while let Some(frame) = stream.next().await {
        stream.take_notices().iter().for_each(|notice| note(global, notice));
        let frame = frame?;
        writer.push(&frame).map_err(failure)?;
        bar.show(frame.header().index + 1 - first, || indicatif::HumanBytes(writer.bytes()).to_string());
    }
    Ok(())
}

fn told(dir: &Path, manifest: &Manifest, what: &str, global: &Global) -> CliResult {
    if global.json {
        return out::print_line(&json_of(dir, manifest).to_string());
    }
    let Manifest { first_offset, next_offset, bytes, cluster_id, .. } = manifest;
    let records = match manifest.records() {
        0 => format!("no records, the next one is {next_offset}"),
        count => format!("{count} records, {first_offset}..{}", next_offset - 1),
    };
    note(
        global,
        &format!("the backup in {} {what}: {records}, {bytes} bytes, of cluster {cluster_id:032x}", quoted(dir)),
    );
    skipped(manifest, global);
    Ok(())
}

/// Says which snapshots are missing.
pub(super) fn skipped(manifest: &Manifest, global: &Global) {
    let names = &manifest.skipped_snapshots;
    if !names.is_empty() {
        let names = names.join(", ");
        note(global, &format!("named snapshots are not in it; put these again after a restore: {names}"));
    }
}

/// What a backup is, for programs.
pub(super) fn json_of(dir: &Path, manifest: &Manifest) -> Value {
    json!({
        "dir": dir.display().to_string(),
        "cluster_id": format!("{:032x}", manifest.cluster_id),
        "created_ms": manifest.created_ms,
        "first_index": manifest.first_index,
        "last_index": manifest.last_index,
        "first_offset": manifest.first_offset,
        "next_offset": manifest.next_offset,
        "records": manifest.records(),
        "bytes": manifest.bytes,
        "files": manifest.frames.len() + usize::from(manifest.checkpoint.is_some()) + 1,
        "skipped_snapshots": manifest.skipped_snapshots,
    })
}

/// What a user can mend is exit 2, damage 6, a full disk 4.
pub(super) fn failure(error: BackupError) -> Failure {
    let sentence = error.to_string();
    match error {
        BackupError::Damaged { damage, .. } => Failure::new(ErrorCode::Damaged, sentence)
            .with("file", damage.file)
            .with("from", damage.from)
            .with("to", damage.to),
        BackupError::Source(_) => Failure::new(ErrorCode::Damaged, sentence),
        BackupError::Io { ref path, .. } if error.is_full() => {
            let next = "nothing is left of the backup; name a directory with more room";
            let message = format!("the disk under {} is full; {next}", path.display());
            Failure::new(ErrorCode::DiskFull, message)
        }
        BackupError::Io { cause, .. } if cause.kind() != std::io::ErrorKind::NotADirectory => {
            Failure::internal(sentence)
        }
        _ => Failure::usage(sentence),
    }
}

/// A bar on a terminal, once the work turns out to be long.
pub(super) struct Bar {
    bar: Option<ProgressBar>,
    size: u64,
    template: &'static str,
    started: Instant,
    wanted: bool,
}

/// Work shorter than this needs no bar.
const LONG: Duration = Duration::from_secs(1);

impl Bar {
    pub(super) fn new(global: &Global, size: u64, template: &'static str) -> Bar {
        let wanted = !global.quiet && !global.json && std::io::stderr().is_terminal();
        Bar { bar: None, size, template, started: Instant::now(), wanted }
    }

    pub(super) fn show(&mut self, position: u64, message: impl Fn() -> String) {
        if !self.wanted || self.started.elapsed() < LONG {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(self.size), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(self.template) {
                bar.set_style(style);
            }
            bar
        });
        bar.set_position(position);
        bar.set_message(message());
    }

    pub(super) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
