//! `graven append`: lines of files or of stdin become records.
//!
//! Three parties: the reading thread of `input`, a task that sends what waits, and here the acknowledgements, which arrive in
//! input order. After any end the log holds a prefix of the input, and what is told is how long that prefix is for certain.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use graven_net::client::{Ack, AckStream, AppendError, AppendOptions, AppendSender};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::Global;
use super::context::{self, Signals};
use super::error::{CliResult, ErrorCode, Failure, Outcome};
use super::input::{self, Cut, Grouping, Queue};
use super::out::{self, Out};

/// Arguments of `graven append`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  graven append /etc/services\n  tail -f app.log | graven append --acks")]
pub(crate) struct AppendArgs {
    /// Inputs; `-` or none is stdin
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Each input is one record
    #[arg(long, conflicts_with = "chunk")]
    whole: bool,
    /// Records of this size instead of lines
    #[arg(long, value_name = "BYTES", value_parser = parse_chunk)]
    chunk: Option<usize>,
    /// Records in one atomic call [default: what waits, up to 1M]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Print `FIRST..LAST` for each call as it is acknowledged
    #[arg(long)]
    acks: bool,
    /// Only if the first record gets this offset
    #[arg(long, value_name = "OFFSET")]
    expect: Option<u64>,
}

fn parse_chunk(text: &str) -> Result<usize, String> {
    match crate::config::parse_size(text)? {
        0 => Err("a record of no bytes never ends; give at least 1".to_owned()),
        size => usize::try_from(size).map_err(|_| format!("{text} is more than this machine can address")),
    }
}

/// Runs the command.
pub(crate) fn run(args: AppendArgs, global: &Global) -> CliResult {
    // Before anything is sent, and before the cluster is even asked for: a mistyped name leaves no trace.
    let sources = input::open_all(&args.files)?;
    if (args.files.is_empty() || args.files == [PathBuf::from("-")]) && std::io::stdin().is_terminal() {
        context::note(global, "each line typed is a record; Ctrl-D ends");
    }
    context::block_on(global, append(args, global, sources))
}

async fn append(args: AppendArgs, global: &Global, sources: Vec<input::Source>) -> CliResult {
    let mut signals = Signals::install()?;
    let client = tokio::select! {
        client = context::connect(global) => client?,
        () = signals.recv() => return Err(interrupted().with("acknowledged", Value::Null)),
    };
    let limit = client.max_record_bytes();
    let cut = match (args.whole, args.chunk) {
        (true, _) => Cut::Whole,
        (_, Some(size)) if size > limit => {
            let message = format!("--chunk {size} is more than max_record_bytes ({limit}); nothing was sent");
            return Err(Failure::new(ErrorCode::TooLarge, message)
                .with("limit", limit)
                .with("acknowledged", Value::Null));
        }
        (_, Some(size)) => Cut::Chunks(size),
        _ => Cut::Lines,
    };
    let appender = tokio::select! {
        appender = client.appender() => appender.map_err(|error| Failure::from(error).with("acknowledged", Value::Null))?,
        () = signals.recv() => return Err(interrupted().with("acknowledged", Value::Null)),
    };
    let (sender, acks) = appender.split();
    let size = sources.iter().map(|source| source.size).sum::<Option<u64>>();
    let queue = Queue::start(sources, cut, Grouping { records: args.batch, max_record_bytes: limit })?;
    let sending = tokio::spawn(send(Arc::clone(&queue), sender, args.expect));
    let mut run = Run {
        out: Out::stdout()?,
        tally: Tally::default(),
        progress: Progress::new(global, size),
        acks: args.acks,
        json: global.json,
    };
    let result = run.follow(acks, sending, &queue, &mut signals, global.timeout).await;
    run.progress.clear();
    match result {
        Ok(()) => run.finish(),
        Err(Failure::StdoutClosed) => Err(Failure::StdoutClosed),
        Err(failure) => Err(run.tally.stopped_by(failure)),
    }
}

/// Sends what waits until the input ends.
async fn send(queue: Arc<Queue>, mut sender: AppendSender, expect: Option<u64>) -> Result<(), Halted> {
    let mut options = AppendOptions { expect, fence: None };
    while let Some(batch) = queue.take().await.map_err(Halted::Input)? {
        let sent = sender.send_with(batch, options).await;
        options = AppendOptions::default();
        if let Err(error) = sent {
            queue.stop();
            return Err(Halted::Sending(error));
        }
    }
    Ok(())
}

/// Why sending ended early.
enum Halted {
    Input(Failure),
    Sending(AppendError),
}

fn interrupted() -> Failure {
    Failure::new(ErrorCode::Unavailable, "interrupted")
}

struct Run {
    out: Out,
    tally: Tally,
    progress: Progress,
    acks: bool,
    json: bool,
}

impl Run {
    /// Takes acknowledgements until all that was sent has one, or something ends it.
    async fn follow(
        &mut self,
        mut acks: AckStream,
        sending: JoinHandle<Result<(), Halted>>,
        queue: &Queue,
        signals: &mut Signals,
        grace: Duration,
    ) -> CliResult {
        let mut stopping = false;
        let mut deadline = pin!(tokio::time::sleep(FOREVER));
        // Whoever reads acknowledgements and goes away wants no more of them. Otherwise the input goes on to its end: only a
        // last line has nobody to read it.
        let watch = if self.acks { self.out.watch() } else { None };
        loop {
            tokio::select! {
                biased;
                ack = acks.next() => match ack {
                    Some(Ok(ack)) => self.on_ack(&ack, queue)?,
                    Some(Err(error)) => {
                        queue.stop();
                        return Err(error.into());
                    }
                    None => break,
                },
                () = signals.recv() => {
                    if stopping {
                        return Err(interrupted().with_outcome(Outcome::Unknown));
                    }
                    // What was sent is on its way: hear what became of it, but take no more.
                    stopping = true;
                    queue.stop();
                    deadline.set(tokio::time::sleep(grace));
                }
                () = out::closed(watch.as_ref()) => {
                    queue.stop();
                    return Err(Failure::StdoutClosed);
                }
                () = &mut deadline, if stopping => return Err(interrupted().with_outcome(Outcome::Unknown)),
            }
        }
        match sending.await {
            Ok(Ok(())) if stopping => Err(interrupted()),
            Ok(Ok(())) => Ok(()),
            Ok(Err(Halted::Input(failure))) => Err(failure),
            Ok(Err(Halted::Sending(error))) => Err(error.into()),
            Err(error) => Err(Failure::internal(format!("the sending task ended: {error}"))),
        }
    }

    fn on_ack(&mut self, ack: &Ack, queue: &Queue) -> CliResult {
        self.tally.add(ack);
        self.progress.show(queue.bytes_read(), self.tally.records);
        if !self.acks {
            return Ok(());
        }
        let line = if self.json {
            json!({"first": ack.first, "last": ack.last, "records": ack.records, "term": ack.term}).to_string()
        } else {
            format!("{}..{}", ack.first, ack.last)
        };
        self.out.line(&line)
    }

    /// The last line on stdout, when all went well.
    fn finish(&mut self) -> CliResult {
        if self.acks {
            return Ok(());
        }
        let tally = &self.tally;
        if self.json {
            let line = json!({"first": tally.first, "last": tally.last, "records": tally.records, "term": tally.term});
            return self.out.line(&line.to_string());
        }
        match (tally.first, tally.last) {
            (Some(first), Some(last)) => self.out.line(&format!("{first}..{last}")),
            _ => Ok(()),
        }
    }
}

/// What is certain so far.
#[derive(Default)]
struct Tally {
    first: Option<u64>,
    last: Option<u64>,
    records: u64,
    term: Option<u64>,
}

impl Tally {
    fn add(&mut self, ack: &Ack) {
        self.first.get_or_insert(ack.first);
        self.last = Some(ack.last);
        self.records += ack.records;
        self.term = Some(ack.term);
    }

    /// The failure, with how far the input got.
    fn stopped_by(&self, failure: Failure) -> Failure {
        let (value, said) = match (self.first, self.last) {
            (Some(first), Some(last)) => (
                json!({"first": first, "last": last, "records": self.records}),
                format!("acknowledged before that: {first}..{last} ({} records)", self.records),
            ),
            _ => (Value::Null, "nothing was acknowledged".to_owned()),
        };
        let mut failure = failure.with("acknowledged", value);
        if let Failure::Error(error) = &mut failure {
            error.message = format!("{}; {said}", error.message);
        }
        failure
    }
}

/// Longer than anybody waits; the timer behind it is armed for good only when it is needed.
const FOREVER: Duration = Duration::from_secs(365 * 86_400);

/// A bar on a terminal, once the work turns out to be long.
struct Progress {
    bar: Option<ProgressBar>,
    size: Option<u64>,
    started: Instant,
    wanted: bool,
}

/// Work shorter than this needs no bar.
const LONG: Duration = Duration::from_secs(1);

impl Progress {
    fn new(global: &Global, size: Option<u64>) -> Progress {
        // A stdin that is typed or followed has no end to show progress towards.
        let wanted = !global.quiet && !global.json && size.is_some() && std::io::stderr().is_terminal();
        Progress { bar: None, size, started: Instant::now(), wanted }
    }

    fn show(&mut self, bytes_read: u64, records: u64) {
        if !self.wanted || self.started.elapsed() < LONG {
            return;
        }
        let size = self.size.unwrap_or(0);
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        bar.set_position(bytes_read);
        bar.set_message(format!("{records} records acknowledged"));
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
