//! What the Raft labs of MIT 6.5840 ask of an implementation, asked of this one: the real replica over the real log, in the
//! simulator's cluster, under all of its checkers.
//!
//! A lab disconnects, crashes and restarts servers, gives commands to those who lead, and looks at what each of them has
//! applied. Here a command is an append of one record without a session; its position is the record's offset, which starts at 0
//! where the labs' index starts at 1 (control entries take no offset); "applied" is what the server's own readers get from it,
//! through the feed that a follower of the stream has: committed, and synced on that very disk. Servers that are down are not
//! asked, whatever they had applied. A restart finds what its disk kept; half of the crashes lose power, and with it what was
//! not synced. See [`traffic`] for the network and for what is counted.
//!
//! Time is simulated; the pauses and the limits are the labs' own, made for elections of up to a second. They are generous to
//! elections of 150 to 300 ms, so some tests demand more.
//!
//! `GRAVEN_LAB_SEED=N cargo test -p graven-tests --test labs NAME` runs one seed alone, and `GRAVEN_LAB_TRACE=1` prints what
//! happens in it; `GRAVEN_LONG=1` runs many more seeds.

mod applied;
pub mod task;
pub mod traffic;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use graven::replica::{Answer, Rejection, View};
use graven_frame::{GroupBuilder, GroupHeaderSpec};

use crate::check::{Checked, Violation, violated};
use crate::cluster::{Cluster, Event};
use crate::profile::Profile;
use crate::rng::Rng;
use crate::trace::{Trace, TraceTo};
use applied::Applied;
use task::Task;
use traffic::Traffic;

/// A thousandth of a second, in the simulator's microseconds.
pub const MS: u64 = 1_000;
/// What the labs allow an election. Theirs are slow on purpose; ours take a third of it.
pub const ELECTION_US: u64 = 1_000 * MS;
/// What a whole test may take.
pub const LIMIT_US: u64 = 120_000 * MS;
/// What a healed cluster gets to show the same log everywhere.
const SETTLE_US: u64 = 10_000 * MS;
/// How long a node waits at most to hear that a lane is gone: the labs' "long delays".
const LANE_NEWS_US: u64 = 7_000 * MS;

/// A cluster under the hands of a lab.
pub struct Lab {
    cluster: Cluster,
    servers: u64,
    rng: Rng,
    applied: Vec<Applied>,
    tasks: Vec<Task>,
    next_command: u64,
}

/// How long the servers' patience is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// The defaults: heartbeats every 50 ms, elections after 150 to 300 ms.
    Default,
    /// The defaults, but appends and windows are drawn anew for each life, mostly tiny: entries travel one by one, so that a leader
    /// can be lost with any part of its log on a majority.
    TinyWindows,
    /// What the labs ask of their students: ten heartbeats a second, and elections after less than two seconds. For the network
    /// whose replies take up to 2.2 s: who waits for less gives up most of his elections and leaderships.
    OfTheLabs,
}

impl Pace {
    fn configure(self) -> Option<fn(&mut graven_raft::Config)> {
        match self {
            Pace::Default => Some(|_| {}),
            Pace::TinyWindows => None,
            Pace::OfTheLabs => Some(|raft| (raft.heartbeat_us, raft.election_us) = (100 * MS, 800 * MS)),
        }
    }
}

/// A command that a leader took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// The leader's term.
    pub term: u64,
    request: u64,
}

impl Lab {
    /// The servers of `setting`, up and connected.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn new(seed: u64, setting: Setting, trace: TraceTo) -> Result<Lab, Violation> {
        let Setting { servers, reliable, pace, states, .. } = setting;
        let mut rng = Rng::new(seed);
        let profile = Profile { states, ..Profile::CALM };
        let mut cluster = Cluster::idle(rng.draw(), servers, profile, Trace::new(trace));
        let mut traffic = Traffic::new(rng.fork());
        traffic.set_reliable(reliable);
        cluster.network.traffic = Some(traffic);
        // Whatever the pace, segments and ring are small.
        cluster.nodes.iter_mut().for_each(|node| node.configure = pace.configure());
        let applied = (0..=servers).map(|_| Applied::default()).collect();
        let mut lab = Lab { cluster, servers, rng, applied, tasks: Vec::new(), next_command: 0 };
        lab.sleep(MS)?;
        Ok(lab)
    }

    /// How many servers there are; they are numbered from 1.
    #[must_use]
    pub fn servers(&self) -> u64 {
        self.servers
    }

    /// The server `steps` after `server`, the first one following the last.
    #[must_use]
    pub fn after(&self, server: u64, steps: u64) -> u64 {
        (server - 1 + steps) % self.servers + 1
    }

    /// Chance, for the test.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// Any server.
    pub fn any(&mut self) -> u64 {
        self.rng.between(1, self.servers + 1)
    }

    /// A command that no other is equal to.
    pub fn command(&mut self) -> Bytes {
        self.next_command += 1;
        format!("{}.{:016x}", self.next_command, self.rng.draw()).into()
    }

    /// The same, of `len` bytes.
    pub fn long_command(&mut self, len: usize) -> Bytes {
        let mut bytes = self.command().to_vec();
        while bytes.len() < len {
            bytes.push(b'a' + self.rng.below(26) as u8);
        }
        bytes.into()
    }

    /// Simulated time since the start, in microseconds.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.cluster.now_us
    }

    /// The network, to look at its counters and to change its manners.
    ///
    /// # Panics
    /// Never: a lab has one.
    pub fn traffic(&mut self) -> &mut Traffic {
        let Some(traffic) = &mut self.cluster.network.traffic else { unreachable!("a lab has its own network") };
        traffic
    }

    /// Lets simulated time pass; clients in the background go on meanwhile.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn sleep(&mut self, us: u64) -> Checked {
        let until = self.now_us() + us;
        loop {
            let wake = self.tasks.iter().map(Task::wakes_at).min().unwrap_or(until).min(until);
            self.run_until(wake)?;
            let now = self.now_us();
            for mut task in std::mem::take(&mut self.tasks) {
                if task.wakes_at() > now || !task.go_on(self)? {
                    self.tasks.push(task);
                }
            }
            if now >= until {
                return Ok(());
            }
        }
    }

    fn run_until(&mut self, at: u64) -> Checked {
        self.cluster.schedule(at, Event::Wake);
        while self.now_us() < at {
            self.cluster.step()?;
        }
        Ok(())
    }

    /// Starts something that goes on beside the test.
    pub fn spawn(&mut self, task: Task) {
        self.tasks.push(task);
    }

    /// Waits until everything that was spawned has come to its end.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn join(&mut self) -> Checked {
        while !self.tasks.is_empty() {
            self.sleep(20 * MS)?;
        }
        Ok(())
    }

    /// Whether the process of `server` is up.
    #[must_use]
    pub fn is_up(&self, server: u64) -> bool {
        self.cluster.replica(server).is_some()
    }

    /// Whether `server` is up and reaches others.
    pub fn is_live(&mut self, server: u64) -> bool {
        self.is_up(server) && self.traffic().is_connected(server)
    }

    /// What `server` says of itself, while it is up.
    #[must_use]
    pub fn view(&self, server: u64) -> Option<View> {
        Some(self.cluster.replica(server)?.view())
    }

    /// Whether `server` is up and leads, in its own eyes.
    #[must_use]
    pub fn leads(&self, server: u64) -> bool {
        self.cluster.replica(server).is_some_and(graven::replica::Replica::leads)
    }

    /// Cuts `server` off from all others. Some of them are told of the lost lane, soon or much later.
    pub fn disconnect(&mut self, server: u64) {
        self.traffic().set_connected(server, false);
        self.tell_lanes(server, false);
    }

    /// Connects `server` to all who are connected.
    pub fn connect(&mut self, server: u64) {
        self.traffic().set_connected(server, true);
        self.tell_lanes(server, true);
    }

    /// From now on the process of `server` takes in everything `lag_us` late, for as long as it lives.
    pub fn slow_down(&mut self, server: u64, lag_us: u64) {
        if let Some(process) = &mut self.cluster.node_mut(server).process {
            process.lag_us = Some(lag_us);
        }
    }

    fn tell_lanes(&mut self, server: u64, stands: bool) {
        for other in (1..=self.servers).filter(|other| *other != server) {
            for (node, peer) in [(server, other), (other, server)] {
                if self.rng.chance(500) {
                    let at = self.now_us() + if stands { 0 } else { self.rng.below(LANE_NEWS_US) };
                    let life = self.cluster.node(node).life;
                    self.cluster.schedule(at, Event::Lane { node, life, peer, stands });
                }
            }
        }
    }

    /// Ends the process of `server`; half of the time its disk loses power too.
    pub fn shut_down(&mut self, server: u64) {
        let power = self.rng.chance(500);
        self.cluster.stop(server, power);
        self.traffic().set_connected(server, false);
    }

    /// Starts `server` on what its disk kept, and connects it.
    ///
    /// # Errors
    /// The property that does not hold: its log does not open.
    pub fn restart(&mut self, server: u64) -> Checked {
        self.cluster.schedule(self.cluster.now_us, Event::Start { node: server });
        self.run_until(self.now_us() + 10)?;
        self.traffic().set_connected(server, true);
        Ok(())
    }

    /// Gives `command` to `server`, connected or not. `None` when it does not take it: it is down, or does not lead.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn start(&mut self, server: u64, command: &Bytes) -> Result<Option<Started>, Violation> {
        let Some(view) = self.view(server) else { return Ok(None) };
        let mut builder = GroupBuilder::new();
        if let Err(error) = builder.push(&[], command) {
            return Err(Violation { property: "lab", detail: format!("a command that is no record: {error}") });
        }
        let request = self.cluster.append_from_outside(server, builder.finish(GroupHeaderSpec::default()))?;
        if let Some(Err(Rejection::NotLeader { .. })) = self.cluster.answered.get(&request) {
            return Ok(None);
        }
        Ok(Some(Started { term: view.term.0, request }))
    }

    /// The answer to `started`, once there is one.
    #[must_use]
    pub fn answer(&self, started: Started) -> Option<Result<Answer, Rejection>> {
        self.cluster.answered.get(&started.request).cloned()
    }

    /// Looks for a leader among those who are live, ten times in about five seconds.
    ///
    /// # Errors
    /// There is none, or there are two in one term.
    pub fn check_one_leader(&mut self) -> Result<u64, Violation> {
        for _ in 0..10 {
            let pause = self.rng.between(450, 550) * MS;
            self.sleep(pause)?;
            let mut leaders: Vec<(u64, u64)> = Vec::new();
            for server in (1..=self.servers).filter(|server| self.leads(*server)).collect::<Vec<_>>() {
                if self.is_live(server)
                    && let Some(view) = self.view(server)
                {
                    leaders.push((view.term.0, server));
                }
            }
            leaders.sort_unstable();
            if let Some(pair) = leaders.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                let detail = format!("term {} is led by {} and {}", pair[0].0, pair[0].1, pair[1].1);
                return Err(Violation { property: "one leader", detail });
            }
            if let Some((_, leader)) = leaders.last() {
                return Ok(*leader);
            }
        }
        Err(Violation { property: "one leader", detail: "nobody leads".into() })
    }

    /// No live server leads.
    ///
    /// # Errors
    /// One does.
    pub fn check_no_leader(&mut self) -> Checked {
        for server in 1..=self.servers {
            if self.is_live(server) && self.leads(server) {
                return violated("no leader", format!("server {server} leads"));
            }
        }
        Ok(())
    }

    /// The term of all live servers.
    ///
    /// # Errors
    /// They are in different ones.
    pub fn check_terms(&mut self) -> Result<u64, Violation> {
        let live: Vec<u64> = (1..=self.servers).filter(|server| self.is_live(*server)).collect();
        let terms: Vec<u64> = live.iter().filter_map(|server| Some(self.view(*server)?.term.0)).collect();
        match terms.first() {
            Some(first) if terms.iter().all(|term| term == first) => Ok(*first),
            _ => Err(Violation { property: "terms", detail: format!("servers {live:?} are in terms {terms:?}") }),
        }
    }

    /// How many servers that are up have applied something at `offset`, and what.
    ///
    /// # Errors
    /// They applied different commands, or one that was given up.
    pub fn committed_at(&mut self, offset: u64) -> Result<(u64, Option<Bytes>), Violation> {
        let (mut count, mut found) = (0, None::<Bytes>);
        for server in 1..=self.servers {
            let Some(process) = &self.cluster.node(server).process else { continue };
            let node = self.cluster.node(server);
            let state = (node.states.newest, self.cluster.checkers_log());
            let applied = &mut self.applied[server as usize];
            applied.catch_up(server, node.life, process, state)?;
            let Some(command) = applied.at(offset) else { continue };
            if found.as_ref().is_some_and(|found| found != command) {
                let detail = format!("server {server} applied another command at {offset} than those before it");
                return Err(Violation { property: "agreement", detail });
            }
            count += 1;
            found = Some(command.clone());
        }
        Ok((count, found))
    }

    /// Where `command` stands, as far as a server that is up has applied it, and how many have.
    ///
    /// # Errors
    /// Servers applied different commands there.
    pub fn find(&mut self, command: &Bytes) -> Result<Option<(u64, u64)>, Violation> {
        for server in 1..=self.servers {
            let Some(process) = &self.cluster.node(server).process else { continue };
            let node = self.cluster.node(server);
            let state = (node.states.newest, self.cluster.checkers_log());
            let applied = &mut self.applied[server as usize];
            applied.catch_up(server, node.life, process, state)?;
            if let Some(offset) = applied.offset_of(command) {
                return Ok(Some((offset, self.committed_at(offset)?.0)));
            }
        }
        Ok(None)
    }

    /// The offset at which `command` stands in the log of `server`, committed or not, and written there.
    #[must_use]
    pub fn written(&self, server: u64, command: &Bytes) -> Option<u64> {
        let process = self.cluster.node(server).process.as_ref()?;
        let view = process.replica.view();
        (1..=view.last_index).rev().find_map(|index| {
            let frame = process.reader.frame(index).ok()?;
            let mut records = frame.records().filter_map(Result::ok);
            records.find(|record| record.payload == *command).map(|record| record.offset)
        })
    }

    /// A whole agreement: gives `command` to whoever leads, and waits until `expected` servers have applied it. With `retry` it
    /// is given again after two seconds; in all it may take ten. Returns its offset.
    ///
    /// # Errors
    /// It was not agreed on, or another property does not hold.
    pub fn one(&mut self, command: &Bytes, expected: u64, retry: bool) -> Result<u64, Violation> {
        let mut agreement = task::Agreement::new(self, command.clone(), expected, retry);
        loop {
            if let Some(offset) = agreement.go_on(self)? {
                return Ok(offset);
            }
            self.sleep(agreement.wakes_at() - self.now_us())?;
        }
    }

    /// The same with a new command.
    ///
    /// # Errors
    /// See [`Lab::one`].
    pub fn agree(&mut self, expected: u64, retry: bool) -> Result<u64, Violation> {
        let command = self.command();
        self.one(&command, expected, retry)
    }

    /// Waits until `expected` servers have applied something at `offset`; returns it. `None` when a server moved past `term`
    /// before.
    ///
    /// # Errors
    /// It takes more than 25 s.
    pub fn wait(&mut self, offset: u64, expected: u64, term: Option<u64>) -> Result<Option<Bytes>, Violation> {
        let began = self.now_us();
        let mut pause = 10 * MS;
        loop {
            let (count, found) = self.committed_at(offset)?;
            if count >= expected {
                return Ok(found);
            }
            if self.now_us() - began > 25_000 * MS {
                let detail = format!("{count} servers applied something at {offset}, {expected} were to");
                return Err(Violation { property: "agreement", detail });
            }
            self.sleep(pause)?;
            pause = (pause * 2).min(1_000 * MS);
            let past = |server| self.view(server).is_some_and(|view| Some(view.term.0) > term);
            if term.is_some() && (1..=self.servers).any(past) {
                return Ok(None);
            }
        }
    }

    /// What servers did with snapshots: those saved, the times that a log was let go of, and those that were put in the place of a log.
    #[must_use]
    pub fn snapshots(&self) -> (u64, u64, u64) {
        let stats = &self.cluster.stats;
        (stats.states, stats.releases, stats.installs)
    }

    /// Nobody has applied anything at `offset`.
    ///
    /// # Errors
    /// Somebody has.
    pub fn check_no_agreement(&mut self, offset: u64) -> Checked {
        match self.committed_at(offset)? {
            (0, _) => Ok(()),
            (count, _) => violated("no agreement", format!("{count} servers applied something at {offset}")),
        }
    }

    /// `found` is `wanted`.
    ///
    /// # Errors
    /// It is not.
    pub fn check_equal<T: PartialEq + std::fmt::Debug>(what: &'static str, found: T, wanted: T) -> Checked {
        if found == wanted { Ok(()) } else { violated(what, format!("found {found:?}, wanted {wanted:?}")) }
    }

    /// The end of a test: it kept its time, and when all are up and connected they come to show the same log, which is what
    /// their files hold.
    fn finish(&mut self) -> Checked {
        if self.now_us() > LIMIT_US {
            return violated("limit", format!("took {} ms, {} were allowed", self.now_us() / MS, LIMIT_US / MS));
        }
        self.join()?;
        self.traffic().set_reliable(true);
        self.traffic().set_long_reordering(false);
        for server in 1..=self.servers {
            if !self.is_up(server) {
                self.restart(server)?;
            }
            self.connect(server);
        }
        let command = self.command();
        let offset = self.one(&command, self.servers, true)?;
        let began = self.now_us();
        while (1..=self.servers).any(|server| self.view(server).is_none_or(|view| view.next_offset <= offset)) {
            if self.now_us() - began > SETTLE_US {
                return violated("liveness", "not all servers show the last record".into());
            }
            self.sleep(20 * MS)?;
        }
        self.cluster.read_back()
    }
}

/// What a run did, for those who want to see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Simulated time, in milliseconds.
    pub ms: u64,
    /// Requests sent by servers.
    pub requests: u64,
    /// Bytes sent by servers.
    pub bytes: u64,
    /// Records committed.
    pub records: u64,
}

/// What a test runs on, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Servers.
    pub servers: u64,
    /// Whether the network is reliable at first.
    pub reliable: bool,
    /// How long the servers' patience is.
    pub pace: Pace,
    /// Records after which each server takes a snapshot, by which the log is trimmed; 0: never.
    pub states: u64,
    /// Seeds at smoke size.
    pub seeds: u64,
}

/// Runs one lab test with many seeds: those of `setting`, twenty times as many under `GRAVEN_LONG=1`, or the one in
/// `GRAVEN_LAB_SEED`. Prints the most that any seed spent.
///
/// # Panics
/// When a property does not hold, naming the seed and how to run it alone.
pub fn run(name: &str, setting: Setting, test: fn(&mut Lab) -> Checked) {
    let smoke = setting.seeds;
    let alone = std::env::var("GRAVEN_LAB_SEED").ok().and_then(|seed| seed.parse().ok());
    let times = if std::env::var("GRAVEN_LONG").is_ok_and(|value| value == "1") { 20 } else { 1 };
    let seeds = alone.map_or(0..smoke * times, |seed: u64| seed..seed + 1);
    let told = alone.is_some() && std::env::var_os("GRAVEN_LAB_TRACE").is_some();
    let trace = if told { TraceTo::Output } else { TraceTo::Hash };
    let (mut most, count) = (Spent::default(), seeds.end - seeds.start);
    for seed in seeds {
        match run_seed(seed, setting, trace, test) {
            Ok(spent) => {
                most.ms = most.ms.max(spent.ms);
                most.requests = most.requests.max(spent.requests);
                most.bytes = most.bytes.max(spent.bytes);
                most.records = most.records.max(spent.records);
            }
            Err(Violation { property, detail }) => panic!(
                "{name}, seed {seed}: {property} does not hold: {detail}\n\
                 run it alone: GRAVEN_LAB_SEED={seed} GRAVEN_LAB_TRACE=1 cargo test -p graven-tests {name} -- --nocapture"
            ),
        }
    }
    println!("{name}: {count} seeds, at most {most:?}");
}

/// The first of the seeds of `setting` with which `test` does not hold, and what it is.
pub fn first_violation(setting: Setting, test: fn(&mut Lab) -> Checked) -> Option<(u64, Violation)> {
    (0..setting.seeds).find_map(|seed| Some((seed, run_seed(seed, setting, TraceTo::Hash, test).err()?)))
}

/// One seed; what panics in it is a property that does not hold.
fn run_seed(seed: u64, setting: Setting, trace: TraceTo, test: fn(&mut Lab) -> Checked) -> Result<Spent, Violation> {
    let ended = catch_unwind(AssertUnwindSafe(|| run_lab(seed, setting, trace, test)));
    ended.unwrap_or_else(|panic| Err(Violation { property: "invariant", detail: crate::words_of(panic.as_ref()) }))
}

fn run_lab(seed: u64, setting: Setting, trace: TraceTo, test: fn(&mut Lab) -> Checked) -> Result<Spent, Violation> {
    let mut lab = Lab::new(seed, setting, trace)?;
    test(&mut lab)?;
    let spent = Spent {
        ms: lab.now_us() / MS,
        requests: lab.traffic().total_requests(),
        bytes: lab.traffic().total_bytes(),
        records: lab.cluster.committed_records(),
    };
    lab.finish()?;
    Ok(spent)
}
