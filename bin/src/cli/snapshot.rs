//! `graven snapshot`: states of applications, kept beside the log.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use graven_net::client::{Client, SnapshotEntry, SnapshotInfo, SnapshotReader, SnapshotState};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::context::{self, Signals, note};
use super::error::{CliResult, ErrorCode, Failure, Outcome};
use super::out::Out;
use super::{Global, out};

/// Arguments of `graven snapshot`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Keep the state of an application, so that the log before it may be trimmed
    #[command(
        after_help = "Example: graven snapshot put orders --offset 70000 orders.db\n\nReturns when a majority of the nodes holds it. Until a newer one is put, or the name is dropped, nothing behind that offset is trimmed."
    )]
    Put {
        /// The application's name for its snapshots
        name: String,
        /// The state is that after all records below this offset
        #[arg(long, value_name = "OFFSET")]
        offset: u64,
        /// The state; `-` or none is stdin
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Write the newest snapshot of a name to stdout, or to a file
    #[command(
        after_help = "Example: graven snapshot get orders --output orders.db\n\nGo on behind it with `graven read --from OFFSET`; the offset is told on stderr, or with --json beside --output."
    )]
    Get {
        /// The name
        name: String,
        /// Into this file, which is there only when all of it came
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Show the snapshots
    List,
    /// End a name: its snapshot goes from all nodes and no longer holds trims up
    #[command(after_help = "Example: graven snapshot drop orders")]
    Drop {
        /// The name
        name: String,
    },
}

/// Times that a file is put when leaders are lost in the middle of it.
const PUT_TRIES: usize = 3;
/// Work shorter than this needs no bar.
const LONG: Duration = Duration::from_secs(1);
/// Bytes of a snapshot written out at a time.
const WRITE_BYTES: usize = 256 << 10;

/// Runs the command.
pub(crate) fn run(args: &SnapshotArgs, global: &Global) -> CliResult {
    match &args.what {
        What::Put { name, offset, file } => {
            let file = file.as_deref().filter(|file| *file != Path::new("-"));
            // Before the cluster is even asked for: a mistyped name is told at once.
            let size = file.map(regular).transpose()?.flatten();
            context::block_on(global, put(name, *offset, file, size, global))
        }
        What::Get { name, output } => context::block_on(global, get(name, output.as_deref(), global)),
        What::List => context::block_on(global, async {
            let client = context::connect(global).await?;
            list(&client.snapshots().await?, global)
        }),
        What::Drop { name } => context::block_on(global, async {
            let client = context::connect(global).await?;
            client.drop_snapshot(name).await?;
            if global.json {
                return out::print_line(&json!({"name": name}).to_string());
            }
            note(global, &format!("no snapshot is named {name} any more"));
            Ok(())
        }),
    }
}

/// The size of a file that can be read again from its beginning.
fn regular(file: &Path) -> CliResult<Option<u64>> {
    let found = std::fs::metadata(file).map_err(|cause| unreadable(file, &cause))?;
    if found.is_dir() {
        return Err(Failure::usage(format!("{} is a directory; name a file", file.display())));
    }
    Ok(found.is_file().then_some(found.len()))
}

fn unreadable(file: &Path, cause: &std::io::Error) -> Failure {
    Failure::usage(format!("cannot read {}: {cause}; nothing was sent", file.display()))
}

async fn put(name: &str, offset: u64, file: Option<&Path>, size: Option<u64>, global: &Global) -> CliResult {
    let mut signals = Signals::install()?;
    let client = context::connect(global).await?;
    let mut tries = 0;
    let info = loop {
        tries += 1;
        let put = tokio::select! {
            put = put_once(&client, name, offset, file, size, global) => put,
            () = signals.recv() => {
                return Err(Failure::new(ErrorCode::Unavailable, "interrupted").with_outcome(Outcome::Unknown));
            }
        };
        match put {
            Ok(info) => break info,
            // What is in a file is there for another try; a pipe is read only once.
            Err(Failure::Error(error))
                if error.code == ErrorCode::Unavailable
                    && error.outcome == Outcome::Refused
                    && size.is_some()
                    && tries < PUT_TRIES =>
            {
                note(global, &format!("{}; from the beginning", error.message));
            }
            Err(failure) => return Err(failure),
        }
    };
    if global.json {
        return out::print_line(&describe(&info).to_string());
    }
    note(global, &format!("{} holds the state below offset {}, {} bytes", info.name, info.offset, info.bytes));
    Ok(())
}

async fn put_once(
    client: &Client,
    name: &str,
    offset: u64,
    file: Option<&Path>,
    size: Option<u64>,
    global: &Global,
) -> CliResult<SnapshotInfo> {
    let bar = Bar::new(global, size);
    let info = match file {
        Some(path) => {
            let file = tokio::fs::File::open(path).await.map_err(|cause| unreadable(path, &cause))?;
            client.put_snapshot_sized(name, offset, size, Shown { inner: file, bar }).await?
        }
        None => client.put_snapshot(name, offset, Shown { inner: tokio::io::stdin(), bar }).await?,
    };
    Ok(info)
}

async fn get(name: &str, output: Option<&Path>, global: &Global) -> CliResult {
    let mut signals = Signals::install()?;
    let client = context::connect(global).await?;
    let (info, reader) = client.get_snapshot(name).await?;
    let mut body = Shown { inner: reader, bar: Bar::new(global, Some(info.bytes)) };
    let interrupted = || Failure::new(ErrorCode::Unavailable, "interrupted");
    match output {
        None => {
            let mut out = Out::stdout()?;
            tokio::select! {
                written = to_stdout(&mut body, &mut out) => written?,
                () = signals.recv() => return Err(interrupted()),
            }
        }
        Some(path) => {
            let mut part = Part::create(path)?;
            tokio::select! {
                written = part.fill(&mut body) => written?,
                () = signals.recv() => return Err(interrupted()),
            }
            part.publish()?;
            if global.json {
                return out::print_line(&describe(&info).to_string());
            }
        }
    }
    note(global, &format!("the state below offset {}; go on with `graven read --from {}`", info.offset, info.offset));
    Ok(())
}

async fn to_stdout(body: &mut Shown<SnapshotReader>, out: &mut Out) -> CliResult {
    let mut bytes = vec![0; WRITE_BYTES];
    loop {
        let read = body.read(&mut bytes).await.map_err(read_failed)?;
        if read == 0 {
            return out.flush();
        }
        out.buffer().extend_from_slice(&bytes[..read]);
        out.maybe_flush()?;
    }
}

/// What ended the reading of a snapshot, as it came from the cluster.
fn read_failed(cause: std::io::Error) -> Failure {
    let failure = cause.get_ref().and_then(|inner| inner.downcast_ref::<graven_net::protocol::Failure>()).cloned();
    failure.map_or_else(|| Failure::internal(format!("reading the snapshot ended: {cause}")), Failure::from)
}

/// A file that gets its name when it is whole; dropped before, it is removed.
struct Part<'a> {
    path: &'a Path,
    temporary: PathBuf,
    file: Option<std::fs::File>,
}

impl<'a> Part<'a> {
    fn create(path: &'a Path) -> CliResult<Part<'a>> {
        let Some(name) = path.file_name() else {
            return Err(Failure::usage(format!("{} is no name of a file", path.display())));
        };
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}.part", std::process::id()));
        let temporary = path.with_file_name(temporary);
        let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = made.map_err(|cause| Failure::usage(format!("cannot write {}: {cause}", temporary.display())))?;
        Ok(Part { path, temporary, file: Some(file) })
    }

    async fn fill(&mut self, body: &mut Shown<SnapshotReader>) -> CliResult {
        let mut bytes = vec![0; WRITE_BYTES];
        loop {
            let read = body.read(&mut bytes).await.map_err(read_failed)?;
            if read == 0 {
                return Ok(());
            }
            let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(&bytes[..read]));
            written.map_err(|cause| self.not_written(&cause))?;
        }
    }

    fn publish(mut self) -> CliResult {
        let Some(file) = self.file.take() else { return Ok(()) };
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let published = file
            .sync_all()
            .and_then(|()| std::fs::rename(&self.temporary, self.path))
            .and_then(|()| std::fs::File::open(dir)?.sync_all());
        published.map_err(|cause| {
            let _ = std::fs::remove_file(&self.temporary);
            self.not_written(&cause)
        })
    }

    fn not_written(&self, cause: &std::io::Error) -> Failure {
        let code = match cause.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::DiskFull,
            _ => ErrorCode::Internal,
        };
        Failure::new(code, format!("cannot write {}: {cause}", self.path.display()))
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn describe(info: &SnapshotInfo) -> Value {
    json!({
        "name": info.name,
        "id": format!("{:016x}", info.id),
        "offset": info.offset,
        "bytes": info.bytes,
        "digest": format!("{:016x}", info.digest),
        "timestamp": info.timestamp,
    })
}

fn list(entries: &[SnapshotEntry], global: &Global) -> CliResult {
    if global.json {
        let of = |entry: &SnapshotEntry| {
            let mut line = describe(&entry.info);
            line["state"] = json!(entry.state);
            line
        };
        return out::print_line(&json!({"snapshots": entries.iter().map(of).collect::<Vec<_>>()}).to_string());
    }
    if entries.is_empty() {
        note(global, "there are no snapshots; `graven snapshot put NAME --offset O FILE` makes one");
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["NAME", "OFFSET", "BYTES", "PUT", "STATE"]);
    for SnapshotEntry { info, state } in entries {
        let put = i64::try_from(info.timestamp).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let put = put.map(|time| format!("{time:.0}")).unwrap_or_default();
        let state = match state {
            SnapshotState::Committed => "committed",
            _ => "spreading",
        };
        table.add_row([&info.name, &info.offset.to_string(), &info.bytes.to_string(), &put, state]);
    }
    out::print(&format!("{}\n", table.trim_fmt()))
}

/// A bar on a terminal, once the work turns out to be long.
struct Bar {
    bar: Option<ProgressBar>,
    size: u64,
    done: u64,
    started: Instant,
    wanted: bool,
}

impl Bar {
    fn new(global: &Global, size: Option<u64>) -> Bar {
        let wanted = !global.quiet && !global.json && size.is_some() && std::io::stderr().is_terminal();
        Bar { bar: None, size: size.unwrap_or(0), done: 0, started: Instant::now(), wanted }
    }

    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if !self.wanted || self.started.elapsed() < LONG {
            return;
        }
        let size = self.size;
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}") {
                bar.set_style(style);
            }
            bar
        });
        bar.set_position(self.done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A reader whose bytes move a bar.
struct Shown<R> {
    inner: R,
    bar: Bar,
}

impl<R: AsyncRead + Unpin> AsyncRead for Shown<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.bar.add((buf.filled().len() - before) as u64);
        polled
    }
}
