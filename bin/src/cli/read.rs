//! `graven read`: records to stdout, and following new ones.
//!
//! First the bounds of the log are asked for: `end` is the leader's commit when the command starts. Then one subscription brings the
//! records, and everything that waits in the buffer is written before each wait.

use std::future::Future;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use futures_util::FutureExt;
use graven_net::client::{Bounds, Client, Consistency, Item, Records, Start, SubscribeOptions, Subscription};
use tokio::sync::oneshot;

use super::Global;
use super::context::{self, Signals, note};
use super::error::{CliResult, ErrorCode, Failure};
use super::out::{self, ClosedWatch, Out};
use super::render;

/// Arguments of `graven read`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  graven read --from -3\n  graven read --follow --from end --format json")]
pub(crate) struct ReadArgs {
    /// start, end, OFFSET, -N (the last N) or @TIME (RFC 3339)
    #[arg(long, value_name = "WHERE", default_value = "start", allow_hyphen_values = true, value_parser = parse_from)]
    from: From,
    /// end, or the OFFSET before which to stop [default: end, without --follow]
    #[arg(long, value_name = "WHERE", value_parser = parse_until)]
    until: Option<Until>,
    /// At most so many records
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Wait for new records
    #[arg(short, long)]
    follow: bool,
    /// From this node only
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Fail rather than read without a leader
    #[arg(long)]
    linearizable: bool,
    /// Start at the first record there is when the one asked for was trimmed
    #[arg(long)]
    skip_trimmed: bool,
    /// raw (a line a record), json (an object a line), hex, or none (only how many)
    #[arg(long, value_enum, hide_possible_values = true)]
    format: Option<Format>,
    /// Nothing after each record
    #[arg(long)]
    no_newline: bool,
    /// NUL after each record
    #[arg(short = '0', conflicts_with = "no_newline")]
    nul: bool,
}

/// Where to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Start,
    End,
    Offset(u64),
    Last(u64),
    Time(u64),
}

/// Where to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    End,
    Offset(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    // Not doc comments: with them `--help` of this command alone would put empty lines between all its options.
    Raw,
    Json,
    Hex,
    None,
}

fn parse_from(text: &str) -> Result<From, String> {
    let wrong = || format!("{text:?} is not start, end, OFFSET, -N or @TIME");
    if let Some(time) = text.strip_prefix('@') {
        return parse_time(time).map(From::Time);
    }
    if let Some(last) = text.strip_prefix('-') {
        return parse_number(last).map(From::Last).ok_or_else(wrong);
    }
    match text {
        "start" => Ok(From::Start),
        "end" => Ok(From::End),
        _ => parse_number(text).map(From::Offset).ok_or_else(wrong),
    }
}

fn parse_until(text: &str) -> Result<Until, String> {
    match text {
        "end" => Ok(Until::End),
        _ => parse_number(text).map(Until::Offset).ok_or_else(|| format!("{text:?} is not end or OFFSET")),
    }
}

fn parse_number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

/// Milliseconds since 1970 of an RFC 3339 time, rounded up: the first record not older is asked for.
fn parse_time(text: &str) -> Result<u64, String> {
    let time: jiff::Timestamp = text
        .parse()
        .map_err(|_| format!("@{text} is not a time; write it as @2026-01-31T12:00:00Z, with Z or an offset"))?;
    let past_ms = i64::from(time.subsec_nanosecond() % 1_000_000 > 0);
    Ok(u64::try_from(time.as_millisecond() + past_ms).unwrap_or(0))
}

/// Runs the command.
pub(crate) fn run(args: &ReadArgs, global: &Global) -> CliResult {
    context::block_on(global, read(args, global))
}

async fn read(args: &ReadArgs, global: &Global) -> CliResult {
    let stopped = stop_by_signal(args.follow)?;
    let out = Out::stdout()?;
    let watch = out.watch();
    let format = args.format.unwrap_or(if global.json { Format::Json } else { Format::Raw });
    let ending = match format {
        _ if args.no_newline => None,
        _ if args.nul => Some(0),
        _ => Some(b'\n'),
    };
    let left = args.count.unwrap_or(u64::MAX);
    let mut printer = Printer { out, format, ending, json: global.json, printed: 0, left, from_time: 0 };
    let result = tokio::select! {
        biased;
        result = follow(args, global, &mut printer, watch.as_ref()) => result,
        _ = stopped => if args.follow { Ok(()) } else { Err(interrupted()) },
    };
    match result {
        Err(Failure::StdoutClosed) => Ok(()),
        Err(failure) => {
            printer.out.flush()?;
            Err(failure)
        }
        Ok(()) => printer.finish(),
    }
}

fn interrupted() -> Failure {
    Failure::new(ErrorCode::Unavailable, "interrupted before the last record was printed")
}

/// Resolves at SIGINT or SIGTERM, which end a follow well and anything else early.
fn stop_by_signal(follow: bool) -> CliResult<oneshot::Receiver<()>> {
    let mut signals = Signals::install()?;
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(async move {
        signals.recv().await;
        let _ = stop.send(());
        // The main thread may be inside a write that nobody reads; then it never gets to see this. Leave without it.
        std::thread::spawn(move || {
            std::thread::sleep(LAST_WRITE);
            std::process::exit(if follow { 0 } else { i32::from(ErrorCode::Unavailable.exit_code()) });
        });
    });
    Ok(stopped)
}

/// How long the last write may take after a signal.
const LAST_WRITE: Duration = Duration::from_secs(1);

async fn follow(args: &ReadArgs, global: &Global, printer: &mut Printer, watch: Option<&ClosedWatch>) -> CliResult {
    if printer.left == 0 {
        return Ok(());
    }
    let client = context::connect(global).await?;
    if let Some(name) = &args.node {
        if !client.nodes().contains(name) {
            // It may have been taken in after the client's file was written: the nodes know.
            let _ = client.status().await;
        }
        let known = client.nodes();
        if !known.contains(name) {
            return Err(context::unknown_node(name, &known));
        }
    }
    let (bounds, pin) = bounds(&client, args, global).await?;
    let Some(plan) = plan(args, &bounds)? else { return Ok(()) };
    if let Some((from, to)) = plan.trimmed {
        printer.trimmed(from, to, global)?;
    }
    if let From::Time(time) = args.from {
        printer.from_time = time;
    }
    let mut options = SubscribeOptions::new(plan.start);
    options.until = plan.until;
    options.node = pin;
    options.skip_trimmed = args.skip_trimmed;
    let subscription = subscribe(&client, options, global.timeout).await?;
    let wait = if args.follow { None } else { Some(global.timeout) };
    stream(subscription, printer, plan.until, wait, watch, global).await
}

/// Subscribes. The start was checked against the leader's end of the log: a node that says it lies beyond is only behind.
async fn subscribe(client: &Client, options: SubscribeOptions, patience: Duration) -> CliResult<Subscription> {
    let deadline = Instant::now() + patience;
    loop {
        match client.subscribe_with(options.clone()).await {
            Ok(subscription) => return Ok(subscription),
            Err(error) if error.code() == ErrorCode::OutOfRange && Instant::now() < deadline => {
                tokio::time::sleep(BEHIND_FOR).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A follower is behind its leader by about a heartbeat.
const BEHIND_FOR: Duration = Duration::from_millis(20);

/// The bounds of the log and the node to read from, if it matters.
async fn bounds(client: &Client, args: &ReadArgs, global: &Global) -> CliResult<(Bounds, Option<String>)> {
    let pinned = args.node.as_deref();
    if args.linearizable {
        let bounds = client.bounds(Consistency::Linearizable, pinned).await?;
        return Ok((bounds, args.node.clone()));
    }
    let patience = LEADER_PATIENCE.min(global.timeout);
    match tokio::time::timeout(patience, client.bounds(Consistency::Linearizable, pinned)).await {
        Ok(Ok(bounds)) => return Ok((bounds, args.node.clone())),
        Ok(Err(error)) if !matches!(error.code(), ErrorCode::Unavailable | ErrorCode::Timeout) => {
            return Err(error.into());
        }
        Ok(Err(_)) | Err(_) => {}
    }
    let bounds = client.bounds(Consistency::Local, pinned).await?;
    note(
        global,
        &format!("no leader answers; these are the records {} knows to be committed, there may be more", bounds.node),
    );
    // Another node may know less and would never get there without a leader.
    let node = bounds.node.clone();
    Ok((bounds, Some(node)))
}

/// An election takes a fraction of a second; longer than this means that a majority is gone.
const LEADER_PATIENCE: Duration = Duration::from_secs(3);

/// What to subscribe to.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    start: Start,
    until: Option<u64>,
    /// A range asked for that is gone, when that is accepted.
    trimmed: Option<(u64, u64)>,
}

/// Makes positions of what was asked for; `None` when there is nothing to read.
fn plan(args: &ReadArgs, bounds: &Bounds) -> CliResult<Option<Plan>> {
    let (first, next) = (bounds.first_offset, bounds.next_offset);
    let offset = match args.from {
        From::Start => first,
        From::End => next,
        From::Last(count) => next.saturating_sub(count).max(first),
        From::Offset(offset) if offset > next => {
            let message = format!(
                "offset {offset} is beyond the end of the log, the next record gets {next}; start at or below it"
            );
            return Err(Failure::new(ErrorCode::OutOfRange, message).with("next_offset", next));
        }
        From::Offset(offset) if offset < first && !args.skip_trimmed => {
            let message =
                format!("offset {offset} was trimmed, the first record is {first}; start there or give --skip-trimmed");
            return Err(Failure::new(ErrorCode::Trimmed, message).with("first_offset", first));
        }
        From::Offset(offset) => offset,
        From::Time(_) => first,
    };
    let until = match args.until {
        Some(Until::Offset(until)) if args.follow => Some(until),
        Some(Until::Offset(until)) => Some(until.min(next)),
        Some(Until::End) => Some(next),
        None if args.follow => None,
        None => Some(next),
    };
    if until.is_some_and(|until| until <= offset) {
        return Ok(None);
    }
    let begin = offset.max(first);
    let trimmed = (offset < begin).then(|| (offset, until.map_or(begin, |until| until.min(begin))));
    let start = match args.from {
        From::Time(time) => Start::Time(time),
        _ => Start::Offset(begin),
    };
    Ok(Some(Plan { start, until, trimmed }))
}

async fn stream(
    mut subscription: Subscription,
    printer: &mut Printer,
    until: Option<u64>,
    patience: Option<Duration>,
    watch: Option<&ClosedWatch>,
    global: &Global,
) -> CliResult {
    let ends = |next: u64| until.is_some_and(|until| next >= until);
    loop {
        let item = match subscription.next().now_or_never() {
            Some(item) => item,
            None => {
                printer.out.flush()?;
                let item = wait(subscription.next(), patience, watch).await?;
                subscription.take_notices().iter().for_each(|line| note(global, line));
                item
            }
        };
        match item {
            None => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(Item::Records(records))) => {
                printer.records(&records, until)?;
                if printer.left == 0 || ends(records.last() + 1) {
                    return Ok(());
                }
            }
            Some(Ok(Item::Trimmed { from, to })) => {
                printer.trimmed(from, to, global)?;
                if ends(to) {
                    return Ok(());
                }
            }
            Some(Ok(Item::Progress { next_offset } | Item::CaughtUp { next_offset })) if ends(next_offset) => {
                return Ok(());
            }
            Some(Ok(_)) => {}
        }
    }
}

async fn wait<T>(
    next: impl Future<Output = T>,
    patience: Option<Duration>,
    watch: Option<&ClosedWatch>,
) -> CliResult<T> {
    let timed = async {
        match patience {
            Some(patience) => tokio::time::timeout(patience, next).await.map_err(|_| {
                let message =
                    format!("no record arrived for {patience:?}; is the node alive? raise --timeout to wait longer");
                Failure::new(ErrorCode::Timeout, message)
            }),
            None => Ok(next.await),
        }
    };
    tokio::select! {
        biased;
        item = timed => item,
        () = out::closed(watch) => Err(Failure::StdoutClosed),
    }
}

struct Printer {
    out: Out,
    format: Format,
    ending: Option<u8>,
    json: bool,
    printed: u64,
    left: u64,
    /// Records older than this are skipped, until one is not.
    from_time: u64,
}

impl Printer {
    fn records(&mut self, records: &Records, until: Option<u64>) -> CliResult {
        let until = until.unwrap_or(u64::MAX);
        for record in records.iter() {
            if record.offset >= until || self.left == 0 {
                break;
            }
            if record.timestamp < self.from_time {
                continue;
            }
            self.from_time = 0;
            self.left -= 1;
            self.printed += 1;
            let buffer = self.out.buffer();
            match self.format {
                Format::None => continue,
                Format::Raw => buffer.extend_from_slice(&record.payload),
                Format::Hex => render::hex(buffer, &record.payload),
                Format::Json => {
                    render::json_record(buffer, record.offset, record.timestamp, &record.meta, &record.payload)
                }
            }
            if self.format != Format::Json {
                self.out.buffer().extend(self.ending);
            }
            self.out.maybe_flush()?;
        }
        Ok(())
    }

    fn trimmed(&mut self, from: u64, to: u64, global: &Global) -> CliResult {
        if self.format == Format::Json {
            let line = serde_json::json!({"trimmed": {"from": from, "to": to}});
            self.out.line(&line.to_string())
        } else {
            note(global, &format!("records {from} to {} were trimmed, going on at {to}", to.saturating_sub(1)));
            Ok(())
        }
    }

    fn finish(&mut self) -> CliResult {
        if self.format == Format::None {
            let count = self.printed;
            let line = if self.json { serde_json::json!({"records": count}).to_string() } else { count.to_string() };
            return self.out.line(&line);
        }
        self.out.flush()
    }
}
