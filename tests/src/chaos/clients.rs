//! The clients: sixteen who append and read, a few who follow, one who watches who leads.
//!
//! Writers differ in patience, so that outcomes differ too. They append plainly, under conditions that hold and that do not, in
//! bursts through an appender, and abandon calls half-way; they ask any node, or one in particular, how long the log is; now
//! and then one hangs up and comes back as a new client. The library sends again what has no answer, under its session. One
//! more writes little most of the time, and now and then more than a leader keeps in memory: whoever is cut off or down
//! meanwhile is brought up to date from the leader's files. And one trims the log, so that some of those find that what they miss
//! is gone, and are given a checkpoint.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use graven::{
    AppendError, AppendOptions, Client, ClientConfig, Consistency, Detail, ErrorCode, Failure, Item, NodeRole, Outcome,
    Start, SubscribeOptions, Subscription,
};
use tokio::task::JoinSet;

use super::history::Journal;
use super::nodes::name;
use super::payload::{FLOOD_PARTS, batch};
use crate::check::Violation;
use crate::check::linearizability::Read;
use crate::rng::Rng;

/// How many append and read.
pub const WRITERS: u32 = 16;
/// How many follow.
pub const FOLLOWERS: u32 = 4;
/// How long a writer waits without progress, by its number: some see every election as a failure, some hardly any.
const PATIENCE_MS: [u64; 4] = [500, 1_500, 4_000, 10_000];
/// Between two calls of a writer at most: sixteen of them stay within some thousand calls a second, so that a run of half an
/// hour fits in memory.
const PAUSE_MS: u64 = 25;
/// Records of one append at most.
const PARTS_MAX: u64 = 6;
/// Appends of one burst at most; well below what a session may have in flight.
const BURST_MAX: u64 = 40;
/// Appends of one flood, of a MiB each: around twice what a leader keeps in memory for followers that are a little behind.
const FLOOD: std::ops::Range<u64> = 5..13;
/// Between two floods, in milliseconds: a few in the shortest run.
const FLOOD_PAUSE_MS: std::ops::Range<u64> = 1_000..8_000;
/// Floods of a run at most: with five nodes, some GiB on disk.
const FLOODS_MAX: u32 = 60;
/// Between two trims, in milliseconds.
const TRIM_PAUSE_MS: std::ops::Range<u64> = 1_500..6_000;
/// Records that a trim leaves of those that somebody has read, at most: some are still wanted by slow followers, some are in the
/// segment that is written to.
const TRIM_LEAVES: u64 = 4_000;
/// How long anybody waits before trying again what failed at once.
const AGAIN: Duration = Duration::from_millis(50);
/// How often the watcher asks who leads.
const WATCH: Duration = Duration::from_millis(50);
/// How old an answer may be: a leader is gone after an election timeout or two.
const FRESH: Duration = Duration::from_millis(500);

/// What all clients of a run share.
#[derive(Debug, Clone)]
pub struct Company {
    /// How to reach the cluster.
    pub config: ClientConfig,
    /// Its nodes.
    pub nodes: u64,
    /// What happened.
    pub journal: Arc<Journal>,
    /// Whether one of them trims the log.
    pub trims: bool,
}

/// Starts all writers and followers.
#[must_use]
pub fn start(company: &Company, rng: &mut Rng) -> (JoinSet<()>, JoinSet<()>) {
    let (mut writers, mut followers) = (JoinSet::new(), JoinSet::new());
    for number in 0..WRITERS {
        writers.spawn(Writer { number, company: company.clone(), rng: rng.fork() }.run());
    }
    let trimmer = trim(company.clone(), rng.fork());
    if company.trims {
        writers.spawn(trimmer);
    }
    writers.spawn(Writer { number: WRITERS, company: company.clone(), rng: rng.fork() }.flood());
    for number in 0..FOLLOWERS {
        followers.spawn(Follower { number, company: company.clone(), rng: rng.fork(), next: 0 }.run());
    }
    (writers, followers)
}

struct Writer {
    number: u32,
    company: Company,
    rng: Rng,
}

impl Writer {
    async fn run(mut self) {
        let patience = PATIENCE_MS[self.number as usize % PATIENCE_MS.len()];
        while !self.company.journal.is_closing() {
            let mut config = self.company.config.clone();
            config.timeout = Duration::from_millis(patience);
            let Ok(client) = Client::connect(config).await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let calls = self.rng.between(20, 2_000);
            for _ in 0..calls {
                if self.company.journal.is_closing() {
                    break;
                }
                self.act(&client).await;
                tokio::time::sleep(Duration::from_millis(self.rng.below(PAUSE_MS))).await;
            }
            if self.rng.chance(500) {
                // Hangs up in the middle of a call.
                self.abandon(&client).await;
            }
            client.close().await;
        }
    }

    async fn act(&mut self, client: &Client) {
        match self.rng.below(100) {
            0..50 => self.append(client, AppendOptions::default()).await,
            50..65 => self.append_on_condition(client).await,
            65..85 => drop(self.read(client).await),
            85..93 => self.burst(client).await,
            93..97 => self.several(client).await,
            _ => self.abandon(client).await,
        }
    }

    fn parts(&mut self) -> u32 {
        // Mostly one, so that many appends share a frame.
        if self.rng.chance(600) { 1 } else { self.rng.between(1, PARTS_MAX + 1) as u32 }
    }

    async fn append(&mut self, client: &Client, options: AppendOptions) {
        let parts = self.parts();
        append(&self.company.journal, self.number, client, parts, options).await;
    }

    async fn append_on_condition(&mut self, client: &Client) {
        let Some(length) = self.read(client).await else { return };
        // What others append meanwhile makes most of them fail; those that are far off fail for certain.
        let expect = if self.rng.chance(200) { length + 1_000_000 } else { length };
        self.append(client, AppendOptions { expect: Some(expect), ..AppendOptions::default() }).await;
    }

    async fn read(&mut self, client: &Client) -> Option<u64> {
        let node = self.rng.chance(400).then(|| name(self.rng.between(1, self.company.nodes + 1)));
        let journal = &self.company.journal;
        let called = journal.now();
        let bounds = client.bounds(Consistency::Linearizable, node.as_deref()).await.ok()?;
        journal.read(Read { called, answered: journal.now(), length: bounds.next_offset });
        Some(bounds.next_offset)
    }

    /// Floods between long pauses.
    async fn flood(mut self) {
        let Ok(client) = Client::lazy(self.company.config.clone()) else { return };
        for _ in 0..FLOODS_MAX {
            let end =
                Instant::now() + Duration::from_millis(self.rng.between(FLOOD_PAUSE_MS.start, FLOOD_PAUSE_MS.end));
            while Instant::now() < end {
                if self.company.journal.is_closing() {
                    return;
                }
                tokio::time::sleep(AGAIN).await;
            }
            let appends = self.rng.between(FLOOD.start, FLOOD.end);
            self.send(&client, (0..appends).map(|_| FLOOD_PARTS).collect()).await;
        }
    }

    /// Many in flight under one session; the answers come in order.
    async fn burst(&mut self, client: &Client) {
        let appends = self.rng.between(2, BURST_MAX);
        let parts = (0..appends).map(|_| self.parts()).collect();
        self.send(client, parts).await;
    }

    /// Appends of so many records each, through an appender.
    async fn send(&mut self, client: &Client, appends: Vec<u32>) {
        let Ok(mut appender) = client.appender().await else { return };
        let journal = self.company.journal.clone();
        let mut waiting = VecDeque::new();
        for parts in appends {
            let append = journal.call(self.number, parts, None);
            match appender.send(batch(append, parts)).await {
                Ok(()) => waiting.push_back(append),
                Err(error) => {
                    // By its documentation this one was not sent.
                    journal.answer(append, &Err(error));
                    journal.refuse(append);
                    break;
                }
            }
        }
        while let Some(append) = waiting.pop_front() {
            let Some(answer) = appender.next_ack().await else {
                journal.violated(Violation { property: "answers", detail: format!("append {append} has no answer") });
                return;
            };
            let refused = answer.as_ref().err().map(|error| error.outcome() == Outcome::Refused);
            journal.answer(append, &answer);
            match refused {
                None => {}
                // Everything behind one that was refused was refused too; behind one that is unknown, all is.
                Some(true) => return waiting.into_iter().for_each(|append| journal.refuse(append)),
                Some(false) => return waiting.into_iter().for_each(|append| journal.give_up(append)),
            }
        }
    }

    /// Calls of one client at the same time.
    async fn several(&mut self, client: &Client) {
        let mut calls = JoinSet::new();
        for _ in 0..self.rng.between(2, 6) {
            let (journal, number, client, parts) =
                (self.company.journal.clone(), self.number, client.clone(), self.parts());
            calls.spawn(async move { append(&journal, number, &client, parts, AppendOptions::default()).await });
        }
        while calls.join_next().await.is_some() {}
    }

    /// Stops waiting for an append; it may land all the same.
    async fn abandon(&mut self, client: &Client) {
        let (parts, journal) = (self.parts(), &self.company.journal);
        let append = journal.call(self.number, parts, None);
        let patience = Duration::from_micros(self.rng.below(6_000));
        match tokio::time::timeout(patience, client.append(batch(append, parts))).await {
            Ok(answer) => journal.answer(append, &answer),
            Err(_) => journal.give_up(append),
        }
    }
}

async fn append(journal: &Journal, number: u32, client: &Client, parts: u32, options: AppendOptions) {
    let append = journal.call(number, parts, options.expect);
    let answer = client.append_with(batch(append, parts), options).await;
    if let Err(error) = &answer
        && !is_honest(error)
    {
        let detail = format!("append {append} failed with {} ({:?}): {error}", error.code(), error.outcome());
        journal.violated(Violation { property: "answers", detail });
    }
    journal.answer(append, &answer);
}

/// Whether nodes that die and networks that are cut explain this failure.
fn is_honest(error: &AppendError) -> bool {
    use ErrorCode::{Conflict, SessionExpired, Timeout, Unavailable};
    matches!(error.code(), Unavailable | Timeout | Conflict | SessionExpired)
}

/// Follows the log from its beginning. Half of them want it from one node, whatever state that is in, and then from another.
struct Follower {
    number: u32,
    company: Company,
    rng: Rng,
    /// The next offset it wants.
    next: u64,
}

impl Follower {
    async fn run(mut self) {
        let journal = self.company.journal.clone();
        // Follows no further once it was given something wrong: what comes after that tells nothing new.
        if let Err(violation) = self.follow_all(&journal).await {
            journal.violated(violation);
        }
    }

    async fn follow_all(&mut self, journal: &Journal) -> Result<(), Violation> {
        let client = Client::lazy(self.company.config.clone()).map_err(|error| self.wrong(&error))?;
        while !self.is_done() {
            let mut options = SubscribeOptions::new(Start::Offset(self.next));
            if self.number % 2 == 1 {
                options.node = Some(name(self.rng.between(1, self.company.nodes + 1)));
            }
            // Small enough to be full now and then.
            options.window_bytes = 64 << 10;
            // Some want to know when records were trimmed under them, some to have them skipped.
            options.skip_trimmed = self.number >= FOLLOWERS / 2;
            match client.subscribe_with(options).await {
                Ok(subscription) => self.follow(journal, subscription).await?,
                Err(error) if is_passing(error.code()) => tokio::time::sleep(AGAIN).await,
                Err(error) => self.failed(journal, error.failure())?,
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.next >= self.company.journal.until.load(Ordering::Relaxed)
    }

    fn wrong(&self, what: &dyn std::fmt::Display) -> Violation {
        let detail = format!("follower {} at offset {}: {what}", self.number, self.next);
        Violation { property: "P4", detail }
    }

    /// A subscription failed, or did not begin. What was trimmed is not waited for.
    fn failed(&mut self, journal: &Journal, failure: &Failure) -> Result<(), Violation> {
        match failure.details.get("first_offset") {
            Some(Detail::Number(first)) if failure.code == ErrorCode::Trimmed && *first > self.next => {
                journal.begins(&format!("follower {}", self.number), *first)?;
                self.next = *first;
                Ok(())
            }
            _ => Err(self.wrong(&format!("the subscription failed: {failure}"))),
        }
    }

    /// Reads on until it has enough of this subscription, or that ends.
    async fn follow(&mut self, journal: &Journal, mut subscription: Subscription) -> Result<(), Violation> {
        let who = format!("follower {}", self.number);
        let mut left = self.rng.between(50, 5_000);
        while left > 0 && !self.is_done() {
            // Nothing is lost when this is dropped.
            let item = match tokio::time::timeout(Duration::from_millis(200), subscription.next()).await {
                Ok(Some(item)) => item,
                Ok(None) => return Ok(()),
                Err(_) => continue,
            };
            left -= 1;
            match item {
                Ok(Item::Records(records)) => {
                    take(journal, &who, &mut self.next, &records)?;
                    journal.subscription_records.fetch_add(records.len() as u64, Ordering::Relaxed);
                }
                Ok(Item::Progress { next_offset } | Item::CaughtUp { next_offset }) if next_offset == self.next => {}
                Ok(Item::Trimmed { from, to }) if from == self.next && to > from => {
                    journal.begins(&who, to)?;
                    self.next = to;
                }
                Ok(other) => return Err(self.wrong(&format!("it is given {other:?}"))),
                Err(error) if is_passing(error.code()) => return Ok(()),
                Err(error) => return self.failed(journal, error.failure()),
            }
            if self.rng.chance(5) {
                // A reader that is slow for a moment.
                tokio::time::sleep(Duration::from_millis(self.rng.below(200))).await;
            }
        }
        Ok(())
    }
}

/// Takes in records that were given to a reader who stands at `next`.
fn take(journal: &Journal, who: &str, next: &mut u64, records: &graven::Records) -> Result<(), Violation> {
    for record in records {
        if record.offset != *next {
            let detail = format!("{who} waits for offset {next} and is given {}", record.offset);
            return Err(Violation { property: "P4", detail });
        }
        journal.delivered(who, record.offset, &record.meta, &record.payload)?;
        *next += 1;
    }
    Ok(())
}

/// Trims again and again what somebody has read.
async fn trim(company: Company, mut rng: Rng) {
    let Ok(client) = Client::lazy(company.config.clone()) else { return };
    let journal = &company.journal;
    while !journal.is_closing() {
        tokio::time::sleep(Duration::from_millis(rng.between(TRIM_PAUSE_MS.start, TRIM_PAUSE_MS.end))).await;
        let before = journal.known().saturating_sub(rng.below(TRIM_LEAVES));
        if before == 0 || journal.is_closing() {
            continue;
        }
        journal.trim(before);
        match client.trim(before).await {
            Ok(first) => journal.trimmed(before, first).unwrap_or_else(|violation| journal.violated(violation)),
            Err(error) if is_passing(error.code()) => {}
            Err(error) => {
                let detail = format!("a trim before {before}, which was read, failed: {error}");
                journal.violated(Violation { property: "answers", detail });
            }
        }
    }
}

/// Whether it may go well another time.
fn is_passing(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Unavailable | ErrorCode::Timeout)
}

/// Reads the whole log from one node, from `first` up to `until`, and compares it with what others were given.
///
/// # Errors
/// A record is not what other readers were given, or the node does not give it.
pub async fn read_all(client: &Client, node: u64, first: u64, until: u64, journal: &Journal) -> Result<(), Violation> {
    let who = format!("the reader of node {node}");
    let fail = |detail| Violation { property: "P2", detail };
    let mut next = first;
    if next == until {
        return Ok(());
    }
    let mut options = SubscribeOptions::new(Start::Offset(first));
    (options.node, options.until) = (Some(name(node)), Some(until));
    let subscription = client.subscribe_with(options).await;
    let mut subscription = subscription.map_err(|error| fail(format!("{who}: {error}")))?;
    while let Some(item) = subscription.next().await {
        match item {
            Ok(Item::Records(records)) => take(journal, &who, &mut next, &records)?,
            Ok(Item::Trimmed { from, to }) => return Err(fail(format!("{who}: {from} to {to} are trimmed"))),
            Ok(_) => {}
            Err(error) => return Err(fail(format!("{who} at offset {next}: {error}"))),
        }
    }
    if next == until { Ok(()) } else { Err(fail(format!("{who} is given {first} to {next}, not to {until}"))) }
}

/// Who leads, as far as the nodes say.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Mutex<BTreeMap<u64, Claim>>>);

/// What a node said last about itself.
#[derive(Debug, Clone, Copy)]
struct Claim {
    term: Option<u64>,
    leads: bool,
    at: Instant,
}

impl Watch {
    /// The node that leads in the newest term heard of a moment ago.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        let claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = claims.iter().filter(|(_, claim)| claim.leads && claim.at.elapsed() < FRESH);
        fresh.max_by_key(|(_, claim)| claim.term).map(|(node, _)| *node)
    }

    /// Asks every node again and again.
    pub async fn run(self, company: Company) {
        let Ok(client) = Client::lazy(company.config.clone()) else { return };
        let mut asking = JoinSet::new();
        for node in 1..=company.nodes {
            let (client, claims) = (client.clone(), self.0.clone());
            asking.spawn(async move {
                loop {
                    if let Ok(Ok(report)) = tokio::time::timeout(FRESH, client.node_report(&name(node))).await {
                        let (term, leads) = (report.status.term, report.status.role == NodeRole::Leader);
                        let claim = Claim { term, leads, at: Instant::now() };
                        claims.lock().unwrap_or_else(PoisonError::into_inner).insert(node, claim);
                    }
                    tokio::time::sleep(WATCH).await;
                }
            });
        }
        while asking.join_next().await.is_some() {}
    }
}
