//! Chaos: a cluster of real processes on a network that is cut, with clients whose every call is written down.
//!
//! Nodes are children of this program, each running graven's daemon in a network namespace of its own (`wires`, `nodes`).
//! While faults come and go (`storm`), clients append, read and follow (`clients`); in the end all is healed, the whole log is
//! read from every node and from every node's files, and compared with what clients were told (`history`, `files`).

pub mod clients;
pub mod files;
pub mod history;
#[cfg(test)]
mod history_tests;
pub mod nodes;
pub mod payload;
pub mod scratch;
pub mod storm;
pub mod wires;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use graven::{Client, ClientConfig, Consistency};
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use self::clients::{Company, Watch};
use self::history::Journal;
use self::nodes::{Nodes, name};
use self::payload::batch;
use self::storm::{PROGRESS, Stop, Storm, Tally};
use self::wires::{Spaces, Wires};
use crate::check::Violation;
use crate::rng::Rng;

/// How long a run goes on after its time for the kinds of faults that have not come yet.
const OVERTIME: Duration = Duration::from_secs(120);
/// How long calls may take to return once all is healed: the most patient client waits ten seconds for progress.
const RETURN: Duration = Duration::from_secs(60);
/// How long all nodes and followers may take to have everything, once all is healed.
const CONVERGENCE: Duration = Duration::from_secs(60);
/// Lines of what happened that are shown beside a violation.
const LAST_EVENTS: usize = 40;
/// Under this number appends the run itself.
const CONDUCTOR: u32 = u32::MAX;

/// What to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long faults come.
    pub time: Duration,
    /// What they are.
    pub seed: u64,
    /// Nodes; without, the seed decides between 3 and 5.
    pub nodes: Option<u64>,
    /// Where everything is kept. Without, a directory that is removed unless something is wrong.
    pub dir: Option<PathBuf>,
    /// Whether this process is in a network namespace of its own.
    pub namespaces: bool,
    /// Whether the log is trimmed meanwhile, so that who was away too long is given a checkpoint.
    pub trims: bool,
}

/// What was done, and what was found. One line of JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// How long faults came.
    pub minutes: f64,
    /// Nodes.
    pub nodes: u64,
    /// Whether each node had a network namespace of its own.
    pub namespaces: bool,
    /// What went wrong.
    #[serde(flatten)]
    pub tally: Tally,
    /// Append calls that were acknowledged.
    pub appends_ok: u64,
    /// Append calls that did not happen.
    pub appends_refused: u64,
    /// Append calls that may have happened.
    pub appends_unknown: u64,
    /// Linearizable reads answered, refusals that tell the log's length among them.
    pub reads: u64,
    /// Records given to followers.
    pub subscription_records: u64,
    /// Trims that were acknowledged.
    pub trims: u64,
    /// Terms after the first in which there was a leader.
    pub leader_changes: u64,
    /// The longest time in which no append was acknowledged.
    pub longest_append_gap_ms: u64,
    /// The longest such time in which some node could have led.
    pub longest_gap_with_quorum_ms: u64,
    /// What must not be.
    pub violations: Vec<String>,
}

/// How a run ended.
#[derive(Debug)]
pub enum Ended {
    /// It ran to its end.
    Done(Report),
    /// The user ended it.
    Asked,
}

/// What is going on, for people: on stderr, and in a file.
struct Events {
    began: Instant,
    file: std::fs::File,
    path: PathBuf,
}

impl Events {
    fn tell(&self, what: &str) {
        let line = format!("{:9.3} {what}\n", self.began.elapsed().as_secs_f64());
        // Nobody may be reading.
        let _ = std::io::stderr().write_all(line.as_bytes());
        let _ = (&self.file).write_all(line.as_bytes());
    }

    fn last(&self) -> String {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_EVENTS)..].join("\n")
    }
}

/// Runs a storm; `asked` says whether the user wants it to end.
///
/// # Errors
/// It could not begin: a sentence.
pub fn run(settings: &Settings, asked: &AtomicBool) -> Result<Ended, String> {
    let mut rng = Rng::new(settings.seed);
    let count = settings.nodes.unwrap_or(if rng.chance(500) { 3 } else { 5 });
    let home = scratch::Home::open(settings.dir.as_deref())?;
    let path = home.path().join("events.log");
    let events = Events { began: Instant::now(), file: nodes::notes(&path)?, path };
    let wires = match settings.namespaces {
        true => Wires::Spaces(Spaces::open(count)?),
        false => Wires::loopback(count, || rng.draw())?,
    };
    let nodes = Nodes::create(&home.path().join("cluster"), count, wires)?;
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = threads.map_err(|cause| format!("no runtime: {cause}"))?;
    let mut config = ClientConfig::load(&nodes.client_file).map_err(|cause| cause.to_string())?;
    config.timeout = PROGRESS;
    let journal = Arc::new(Journal::default());
    let company = Company { config, nodes: count, journal, trims: settings.trims };
    let watch = Watch::default();
    let storm = Storm::new(nodes, settings.time, watch.clone(), company.journal.clone(), rng.fork());
    let mut run = Run { settings, runtime, company, storm, events, leader_changes: 0, longest_gap_ms: 0 };
    run.events.tell(&format!("seed {}, {count} nodes, in {}", settings.seed, home.path().display()));
    let ended = run.all(watch, &mut rng, &|| asked.load(Ordering::Relaxed));
    if matches!(ended, Err(Stop::Asked)) {
        drop(run);
        home.remove();
        return Ok(Ended::Asked);
    }
    if let Err(Stop::Violation(violation)) = ended {
        run.company.journal.violated(violation);
    }
    let report = run.report();
    if report.violations.is_empty() {
        drop(run);
        home.remove();
    } else {
        run.tell_what_broke(&report);
        home.keep();
    }
    Ok(Ended::Done(report))
}

struct Run<'a> {
    settings: &'a Settings,
    runtime: Runtime,
    company: Company,
    storm: Storm,
    events: Events,
    leader_changes: u64,
    longest_gap_ms: u64,
}

impl Run<'_> {
    /// The whole run. What breaks a property without ending the run goes to the journal.
    fn all(&mut self, watch: Watch, rng: &mut Rng, asked: &dyn Fn() -> bool) -> Result<(), Stop> {
        let journal = self.company.journal.clone();
        for node in 1..=self.company.nodes {
            self.storm.nodes.start(node).map_err(|detail| wrong("process", detail))?;
        }
        self.append_one()?;
        self.events.tell("the first append is acknowledged");
        journal.begin_gaps();
        let _guard = self.runtime.enter();
        let watching = self.runtime.spawn(watch.run(self.company.clone()));
        let (writers, followers) = clients::start(&self.company, rng);
        let outcome = self.weather(asked);
        // Whatever came of it, nothing is cut and all run from here on.
        self.longest_gap_ms = journal.longest_gap_ms();
        watching.abort();
        outcome?;
        self.settle(writers, followers)?;
        let gap = self.longest_gap_ms;
        self.events.tell(&format!("all have everything; the longest time without an acknowledgement was {gap} ms"));
        self.read_everywhere()?;
        let log = journal.log();
        self.storm.nodes.end().map_err(|detail| wrong("process", detail))?;
        self.events.tell("all nodes have ended; reading their files");
        let directories: Vec<_> = (1..=self.company.nodes).map(|node| self.storm.nodes.data_dir(node)).collect();
        let mut terms = journal.terms();
        match files::compare(&directories, log.len() as u64) {
            Ok(more) => terms.extend(more),
            Err(violation) => journal.violated(violation),
        }
        self.leader_changes = (terms.len() as u64).saturating_sub(1);
        let (appends, reads) = journal.calls();
        self.events.tell(&format!("checking {} appends and {} reads", appends.len(), reads.len()));
        history::check(&appends, &reads, &log).into_iter().for_each(|violation| journal.violated(violation));
        Ok(())
    }

    /// Rounds of faults until the time is up and every kind has come.
    fn weather(&mut self, asked: &dyn Fn() -> bool) -> Result<(), Stop> {
        let journal = self.company.journal.clone();
        let end = Instant::now() + self.settings.time;
        while Instant::now() < end || (!self.storm.missing().is_empty() && Instant::now() < end + OVERTIME) {
            self.storm.round(asked, &|what| self.events.tell(what))?;
            if !journal.violations().is_empty() {
                // No more faults: what happened last is what broke it. The rest is looked at all the same.
                break;
            }
        }
        Ok(())
    }

    /// Appends until one is acknowledged.
    fn append_one(&self) -> Result<u64, Stop> {
        let (config, journal) = (self.company.config.clone(), self.company.journal.clone());
        let one = async move {
            let client = Client::connect(config).await.map_err(|error| wrong("liveness", error.to_string()))?;
            let append = journal.call(CONDUCTOR, 1, None);
            let answer = client.append(batch(append, 1)).await;
            journal.answer(append, &answer);
            client.close().await;
            answer.map(|ack| ack.last + 1).map_err(|error| wrong("liveness", error.to_string()))
        };
        self.runtime.block_on(one)
    }

    /// Ends the clients: every call must return. Then all nodes and followers must have everything.
    fn settle(&self, mut writers: JoinSet<()>, mut followers: JoinSet<()>) -> Result<(), Stop> {
        let (journal, company) = (&self.company.journal, &self.company);
        journal.closing.store(true, Ordering::Relaxed);
        let ended = async |set: &mut JoinSet<()>, within, what: &str| {
            let all = async {
                while let Some(ended) = set.join_next().await {
                    ended.map_err(|cause| wrong("answers", format!("{what} panicked: {cause}")))?;
                }
                Ok(())
            };
            let late = || Err(wrong("liveness", format!("{what} not done {within:?} after all was healed")));
            tokio::time::timeout(within, all).await.unwrap_or_else(|_| late())
        };
        self.runtime.block_on(ended(&mut writers, RETURN, "writers"))?;
        let until = self.append_one()?;
        journal.until.store(until, Ordering::Relaxed);
        self.runtime.block_on(ended(&mut followers, CONVERGENCE, "followers"))?;
        let deadline = Instant::now() + CONVERGENCE;
        self.runtime.block_on(async {
            let client = Client::lazy(company.config.clone()).map_err(|error| wrong("liveness", error.to_string()))?;
            for node in 1..=company.nodes {
                loop {
                    let bounds = client.bounds(Consistency::Local, Some(&name(node))).await;
                    match bounds {
                        Ok(bounds) if bounds.next_offset == until => break,
                        _ if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(50)).await,
                        other => return Err(wrong("liveness", format!("n{node} has not all {until}: {other:?}"))),
                    }
                }
            }
            client.close().await;
            Ok(())
        })
    }

    /// Reads the whole log from each node: all begin where the last trim says, and give the same.
    fn read_everywhere(&self) -> Result<(), Stop> {
        let (company, until) = (&self.company, self.company.journal.until.load(Ordering::Relaxed));
        let journal = &company.journal;
        self.runtime.block_on(async {
            let client = Client::lazy(company.config.clone()).map_err(|error| wrong("liveness", error.to_string()))?;
            let mut firsts = BTreeSet::new();
            for node in 1..=company.nodes {
                let bounds = client.bounds(Consistency::Local, Some(&name(node))).await;
                let first = bounds.map_err(|error| wrong("P2", format!("n{node}: {error}")))?.first_offset;
                firsts.insert(first);
                journal.begins_exactly(&format!("n{node}"), first).map_err(Stop::Violation)?;
                clients::read_all(&client, node, first, until, journal).await.map_err(Stop::Violation)?;
                self.events.tell(&format!("n{node} gives all records from {first} to {until}"));
            }
            client.close().await;
            let least = journal.trims().0;
            if firsts.len() == 1 && firsts.first().is_some_and(|first| *first >= least) {
                return Ok(());
            }
            Err(wrong("P2", format!("nodes begin at {firsts:?}, trimmed is up to {least}")))
        })
    }

    fn report(&self) -> Report {
        let journal = &self.company.journal;
        let [appends_ok, appends_refused, appends_unknown, reads] = journal.counts();
        let subscription_records = journal.subscription_records.load(Ordering::Relaxed);
        let violations = journal.violations();
        let mut words: Vec<_> =
            violations.iter().map(|violation| format!("{}: {}", violation.property, violation.detail)).collect();
        if words.is_empty() {
            let promised = [
                ("appends_ok", appends_ok),
                ("appends_refused", appends_refused),
                ("appends_unknown", appends_unknown),
                ("reads", reads),
                ("subscription_records", subscription_records),
                ("leader_changes", self.leader_changes),
            ];
            let zeros = promised.iter().filter(|(_, count)| *count == 0).map(|(name, _)| (*name).to_owned());
            let zeros = zeros.chain((self.settings.trims && journal.trims().1 == 0).then(|| "trims".to_owned()));
            let zeros = zeros.chain(self.storm.missing().into_iter().map(|kind| format!("{kind:?}")));
            words.extend(zeros.map(|name| format!("promise: a zero where more is promised: {name}")));
        }
        Report {
            seed: self.settings.seed,
            minutes: self.settings.time.as_secs_f64() / 60.0,
            nodes: self.company.nodes,
            namespaces: self.settings.namespaces,
            tally: self.storm.tally,
            appends_ok,
            appends_refused,
            appends_unknown,
            reads,
            subscription_records,
            trims: journal.trims().1,
            leader_changes: self.leader_changes,
            longest_append_gap_ms: self.longest_gap_ms,
            longest_gap_with_quorum_ms: self.storm.longest_stall_ms(),
            violations: words,
        }
    }

    fn tell_what_broke(&self, report: &Report) {
        eprintln!("the last events:\n{}", self.events.last());
        report.violations.iter().for_each(|what| self.events.tell(&format!("VIOLATION {what}")));
        let directory = self.events.path.parent().unwrap_or(Path::new("."));
        eprintln!("seed {}; everything is kept in {}", self.settings.seed, directory.display());
        if let Err(cause) = self.write_calls(&directory.join("calls.jsonl")) {
            eprintln!("the calls could not be written: {cause}");
        }
    }

    /// All calls, one a line, for whoever looks for the cause.
    fn write_calls(&self, path: &Path) -> Result<(), String> {
        let file = std::fs::File::create(path).map_err(|cause| cause.to_string())?;
        let mut out = std::io::BufWriter::new(file);
        let (appends, reads) = self.company.journal.calls();
        for (number, append) in appends.iter().enumerate() {
            let line = serde_json::to_string(append).map_err(|cause| cause.to_string())?;
            writeln!(out, "{{\"append\":{number},\"call\":{line}}}").map_err(|cause| cause.to_string())?;
        }
        for read in reads {
            let (called, answered, length) = (read.called, read.answered, read.length);
            writeln!(out, "{{\"read\":{{\"called\":{called},\"answered\":{answered},\"length\":{length}}}}}")
                .map_err(|cause| cause.to_string())?;
        }
        out.flush().map_err(|cause| cause.to_string())
    }
}

fn wrong(property: &'static str, detail: String) -> Stop {
    Stop::Violation(Violation { property, detail })
}
