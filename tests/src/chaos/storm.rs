//! The faults: drawn from a seed, several at a time, each with its own end; then a pause in which work must get done.
//!
//! A storm goes in rounds. A round draws one to three faults from a deck that holds each kind once and is shuffled anew when it is
//! empty, so that none is forgotten; begins them one after another; and ends when the last one has healed. After that every
//! way is open and every node runs, and an append that is called from then on must be acknowledged within [`PROGRESS`]. While faults
//! last, acknowledgements may stop for [`STALL`] at most as long as some node could lead: it runs, clients reach it, and it and
//! enough others for a majority reach each other.
//!
//! The seed decides kinds, nodes, pauses and lengths. It does not decide what the processes make of it: a run cannot be repeated
//! step by step, but the same faults come in the same order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::clients::Watch;
use super::history::Journal;
use super::nodes::Nodes;
use super::wires::CLIENTS;
use crate::check::Violation;
use crate::rng::Rng;

/// How long the cluster may take to acknowledge an append once all is healed. An election takes half a second, connections
/// that were cut are noticed in five; the rest is for a machine with fewer cores than there are processes.
pub const PROGRESS: Duration = Duration::from_secs(30);
/// How long acknowledgements may stop while somebody could lead. Faults that last longer are drawn, see [`long`].
pub const STALL: Duration = Duration::from_secs(12);
/// Runs that are shorter draw no faults that last longer than some elections: they have every kind to go through.
const LONG_FROM: Duration = Duration::from_secs(60);
/// How often things that are due are looked for.
const TICK: Duration = Duration::from_millis(5);
/// How long a fault that wants a leader waits for one.
const LEADER_WAIT: Duration = Duration::from_secs(5);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Two halves that cannot reach each other.
    Partition,
    /// Something that is heard and does not hear, or the reverse.
    OneWay,
    /// The leader is cut off from all other nodes.
    Isolated,
    /// Two halves that cannot reach each other, and one node that reaches both.
    Bridge,
    /// A process or two are killed and start again.
    Kill,
    /// A process or two stand still for a while.
    Stop,
    /// All are killed at once.
    KillAll,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 7] =
        [Kind::Partition, Kind::OneWay, Kind::Isolated, Kind::Bridge, Kind::Kill, Kind::Stop, Kind::KillAll];

    /// Whether it needs links that can be cut.
    #[must_use]
    pub fn cuts(self) -> bool {
        matches!(self, Kind::Partition | Kind::OneWay | Kind::Isolated | Kind::Bridge)
    }
}

/// How often each kind happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// [`Kind::Partition`].
    pub partitions: u64,
    /// [`Kind::OneWay`].
    pub one_way: u64,
    /// [`Kind::Isolated`].
    pub isolated: u64,
    /// [`Kind::Bridge`].
    pub bridges: u64,
    /// Processes killed.
    pub kills: u64,
    /// Processes stopped.
    pub stops: u64,
    /// [`Kind::KillAll`].
    pub kill_alls: u64,
}

impl Tally {
    /// How often a kind happened.
    #[must_use]
    pub fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Partition => self.partitions,
            Kind::OneWay => self.one_way,
            Kind::Isolated => self.isolated,
            Kind::Bridge => self.bridges,
            Kind::Kill => self.kills,
            Kind::Stop => self.stops,
            Kind::KillAll => self.kill_alls,
        }
    }

    fn add(&mut self, plan: &Plan) {
        match plan.kind {
            Kind::Partition => self.partitions += 1,
            Kind::OneWay => self.one_way += 1,
            Kind::Isolated => self.isolated += 1,
            Kind::Bridge => self.bridges += 1,
            Kind::Kill => self.kills += plan.nodes.len() as u64,
            Kind::Stop => self.stops += plan.nodes.len() as u64,
            Kind::KillAll => self.kill_alls += 1,
        }
    }
}

/// What a fault may choose from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scene {
    /// Nodes of the cluster, numbered from 1.
    pub nodes: u64,
    /// Those that run.
    pub up: Vec<u64>,
    /// The one that leads, as far as known.
    pub leader: Option<u64>,
    /// Whether faults may last long.
    pub long: bool,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its kind.
    pub kind: Kind,
    /// Ways that are cut: from, to.
    pub cuts: Vec<(u64, u64)>,
    /// Processes that are killed or stopped, and for how long.
    pub nodes: Vec<(u64, Duration)>,
    /// How long the cuts last.
    pub lasts: Duration,
}

impl Plan {
    /// Draws a fault of this kind; `None` when there is nobody to do it to.
    #[must_use]
    pub fn draw(kind: Kind, scene: &Scene, rng: &mut Rng) -> Option<Plan> {
        let mut everybody: Vec<u64> = (1..=scene.nodes).collect();
        shuffle(&mut everybody, rng);
        let leader = scene.leader.filter(|_| rng.chance(500));
        let lasts = if scene.long && rng.chance(120) { long } else { rest };
        let mut cuts = Vec::new();
        let mut nodes = Vec::new();
        match kind {
            Kind::Partition => {
                let minority = 1 + rng.below(scene.nodes / 2) as usize;
                // Half of the time the leader is on the smaller side.
                everybody.sort_by_key(|node| Some(*node) != leader);
                let (few, many) = everybody.split_at(minority);
                both_ways(&mut cuts, few, many);
                if rng.chance(250) {
                    both_ways(&mut cuts, few, &[CLIENTS]);
                }
            }
            Kind::OneWay => {
                let one = leader.unwrap_or(everybody[0]);
                everybody.retain(|node| *node != one);
                if rng.chance(300) {
                    everybody.truncate(1);
                }
                let hears = rng.chance(500);
                cuts.extend(everybody.iter().map(|other| if hears { (one, *other) } else { (*other, one) }));
            }
            Kind::Isolated => {
                let leader = scene.leader?;
                everybody.retain(|node| *node != leader);
                both_ways(&mut cuts, &[leader], &everybody);
                if rng.chance(300) {
                    both_ways(&mut cuts, &[leader], &[CLIENTS]);
                }
            }
            Kind::Bridge => {
                let halves = &everybody[1..];
                let (left, right) = halves.split_at(halves.len() / 2);
                both_ways(&mut cuts, left, right);
            }
            Kind::Kill | Kind::Stop => {
                let mut victims = everybody;
                victims.sort_by_key(|node| Some(*node) != leader);
                victims.retain(|node| scene.up.contains(node));
                victims.truncate(1 + rng.below(2) as usize);
                nodes.extend(victims.into_iter().map(|node| (node, lasts(kind, rng))));
            }
            Kind::KillAll => nodes.extend(scene.up.iter().map(|node| (*node, lasts(kind, rng)))),
        }
        let plan = Plan { kind, cuts, nodes, lasts: lasts(kind, rng) };
        (!plan.cuts.is_empty() || !plan.nodes.is_empty()).then_some(plan)
    }

    fn words(&self) -> String {
        let ms = |lasts: &Duration| lasts.as_millis();
        if self.nodes.is_empty() {
            return format!("{:?} for {} ms: cut {:?}", self.kind, ms(&self.lasts), self.cuts);
        }
        let nodes: Vec<_> = self.nodes.iter().map(|(node, lasts)| format!("n{node} for {} ms", ms(lasts))).collect();
        format!("{:?} {}", self.kind, nodes.join(", "))
    }
}

/// How long a fault of this kind lasts: mostly some elections.
fn rest(kind: Kind, rng: &mut Rng) -> Duration {
    Duration::from_millis(match kind {
        Kind::Stop => rng.between(50, 1_500),
        Kind::Kill | Kind::KillAll => rng.between(0, 2_000),
        _ => rng.between(300, 3_000),
    })
}

/// How long a fault lasts that is to outlast connections, and the patience of those who wait for an acknowledgement.
fn long(kind: Kind, rng: &mut Rng) -> Duration {
    Duration::from_millis(match kind {
        Kind::KillAll => rng.between(0, 2_000),
        Kind::Stop | Kind::Kill => rng.between(3_000, 9_000),
        _ => rng.between(4_000, 20_000),
    })
}

fn both_ways(cuts: &mut Vec<(u64, u64)>, left: &[u64], right: &[u64]) {
    for a in left {
        cuts.extend(right.iter().flat_map(|b| [(*a, *b), (*b, *a)]));
    }
}

fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for at in (1..items.len()).rev() {
        items.swap(at, rng.below(at as u64 + 1) as usize);
    }
}

/// What ends a fault.
#[derive(Debug, Clone, Copy)]
enum Cure {
    Mend(u64, u64),
    Start(u64),
    GoOn(u64),
}

/// The faults of a run, and the nodes they happen to.
#[derive(Debug)]
pub struct Storm {
    /// The nodes.
    pub nodes: Nodes,
    /// What happened so far.
    pub tally: Tally,
    rng: Rng,
    kinds: Vec<Kind>,
    deck: Vec<Kind>,
    cures: Vec<(Instant, Cure)>,
    watch: Watch,
    journal: Arc<Journal>,
    /// Since when somebody could lead.
    possible: Option<u64>,
    /// The longest time without an acknowledgement in which somebody could lead, in nanoseconds.
    longest_stall: u64,
    long: bool,
}

/// Why a storm cannot go on.
#[derive(Debug)]
pub enum Stop {
    /// A property does not hold.
    Violation(Violation),
    /// The user wants it to end.
    Asked,
}

impl Storm {
    /// A storm over these nodes that is to take `time`; `watch` knows who leads, `journal` what is acknowledged.
    #[must_use]
    pub fn new(nodes: Nodes, time: Duration, watch: Watch, journal: Arc<Journal>, rng: Rng) -> Storm {
        let cuttable = nodes.wires.can_be_cut();
        let kinds = Kind::ALL.into_iter().filter(|kind| cuttable || !kind.cuts()).collect();
        Storm {
            nodes,
            tally: Tally::default(),
            rng,
            kinds,
            deck: Vec::new(),
            cures: Vec::new(),
            watch,
            journal,
            possible: None,
            longest_stall: 0,
            long: time >= LONG_FROM,
        }
    }

    /// The longest time without an acknowledgement in which somebody could lead, in milliseconds.
    #[must_use]
    pub fn longest_stall_ms(&self) -> u64 {
        self.longest_stall / 1_000_000
    }

    /// The node that leads, as far as is known of those that run.
    fn leader(&self) -> Option<u64> {
        self.watch.leader().filter(|leader| self.nodes.up().contains(leader))
    }

    /// Whether some node could lead and be heard by clients.
    fn somebody_could_lead(&self) -> bool {
        let up = self.nodes.up();
        let open = |a: u64, b: u64| a == b || !(self.nodes.wires.is_cut(a, b) || self.nodes.wires.is_cut(b, a));
        let majority = self.nodes.count() as usize / 2 + 1;
        up.iter().any(|node| open(*node, CLIENTS) && up.iter().filter(|other| open(*node, **other)).count() >= majority)
    }

    /// Looks whether acknowledgements have stopped for too long.
    fn check_progress(&mut self) -> Result<(), Stop> {
        if !self.somebody_could_lead() {
            self.possible = None;
            return Ok(());
        }
        let now = self.journal.now();
        let since = *self.possible.get_or_insert(now);
        let stall = now.saturating_sub(since.max(self.journal.last_ack()));
        self.longest_stall = self.longest_stall.max(stall);
        if u128::from(stall) <= STALL.as_nanos() {
            return Ok(());
        }
        let detail = format!("no append is acknowledged within {} s, though somebody could lead", STALL.as_secs());
        Err(Stop::Violation(Violation { property: "liveness", detail }))
    }

    /// The kinds that this storm promises and that have not happened yet.
    #[must_use]
    pub fn missing(&self) -> Vec<Kind> {
        self.kinds.iter().copied().filter(|kind| self.tally.of(*kind) == 0).collect()
    }

    /// One round: faults, healing, progress, a pause.
    ///
    /// # Errors
    /// A node ended unasked, or no progress was made; or `asked` to stop.
    pub fn round(&mut self, asked: &dyn Fn() -> bool, tell: &dyn Fn(&str)) -> Result<(), Stop> {
        for _ in 0..self.rng.between(1, 4) {
            self.begin(asked, tell)?;
            let pause = Duration::from_millis(self.rng.below(1_200));
            self.wait(asked, |_| pause)?;
        }
        while let Some(last) = self.cures.iter().map(|(due, _)| *due).max() {
            self.wait(asked, |now| last.saturating_duration_since(now))?;
        }
        let journal = self.journal.clone();
        let healed = journal.now();
        tell("healed");
        let deadline = Instant::now() + PROGRESS;
        while !journal.acknowledged_since(healed) {
            if Instant::now() > deadline {
                let detail = format!("no append is acknowledged within {} s after healing", PROGRESS.as_secs());
                return Err(Stop::Violation(Violation { property: "liveness", detail }));
            }
            self.wait(asked, |_| TICK)?;
        }
        tell(&format!("progress {} ms after healing", (journal.now() - healed) / 1_000_000));
        let pause = Duration::from_millis(self.rng.between(100, 1_000));
        self.wait(asked, |_| pause)
    }

    /// Begins a fault of the next kind in the deck.
    fn begin(&mut self, asked: &dyn Fn() -> bool, tell: &dyn Fn(&str)) -> Result<(), Stop> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            shuffle(&mut self.deck, &mut self.rng);
        }
        let Some(kind) = self.deck.pop() else { return Ok(()) };
        if kind == Kind::Isolated {
            // Without a leader nobody is isolated; the ones that others cut off are led again in a moment.
            let deadline = Instant::now() + LEADER_WAIT;
            while self.leader().is_none() && Instant::now() < deadline {
                self.wait(asked, |_| TICK)?;
            }
        }
        let scene = Scene { nodes: self.nodes.count(), up: self.nodes.up(), leader: self.leader(), long: self.long };
        let Some(plan) = Plan::draw(kind, &scene, &mut self.rng) else {
            tell(&format!("{kind:?} finds nobody"));
            return Ok(());
        };
        tell(&plan.words());
        self.tally.add(&plan);
        self.carry_out(&plan).map_err(broken)
    }

    fn carry_out(&mut self, plan: &Plan) -> Result<(), String> {
        let now = Instant::now();
        for (from, to) in &plan.cuts {
            self.nodes.wires.cut(*from, *to)?;
            self.cures.push((now + plan.lasts, Cure::Mend(*from, *to)));
        }
        for (node, lasts) in &plan.nodes {
            let cure = if plan.kind == Kind::Stop {
                self.nodes.stop(*node)?;
                Cure::GoOn(*node)
            } else {
                self.nodes.kill(*node)?;
                Cure::Start(*node)
            };
            self.cures.push((now + *lasts, cure));
        }
        Ok(())
    }

    /// Lets time pass, and ends what is due meanwhile.
    fn wait(&mut self, asked: &dyn Fn() -> bool, long: impl Fn(Instant) -> Duration) -> Result<(), Stop> {
        let until = Instant::now() + long(Instant::now());
        loop {
            let now = Instant::now();
            let (due, left) = std::mem::take(&mut self.cures).into_iter().partition(|(due, _)| *due <= now);
            self.cures = left;
            self.cure(due).map_err(broken)?;
            self.nodes.check().map_err(broken)?;
            self.check_progress()?;
            if asked() {
                return Err(Stop::Asked);
            }
            if now >= until {
                return Ok(());
            }
            std::thread::sleep(TICK.min(until - now));
        }
    }

    fn cure(&mut self, due: Vec<(Instant, Cure)>) -> Result<(), String> {
        for (_, cure) in due {
            match cure {
                Cure::Mend(from, to) => self.nodes.wires.mend(from, to)?,
                Cure::Start(node) => self.nodes.start(node)?,
                Cure::GoOn(node) => self.nodes.go_on(node)?,
            }
        }
        Ok(())
    }
}

fn broken(detail: String) -> Stop {
    Stop::Violation(Violation { property: "process", detail })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn scenes() -> impl Iterator<Item = (u64, Scene)> {
        (0..600).map(|seed| {
            let nodes = if seed % 2 == 0 { 3 } else { 5 };
            let leader = (seed % 7 != 0).then_some(1 + seed % nodes);
            (
                seed,
                Scene {
                    nodes,
                    up: (1..=nodes).filter(|node| node + seed % 3 != 3).collect(),
                    leader,
                    long: seed % 5 == 0,
                },
            )
        })
    }

    fn cuts_of(kind: Kind) -> impl Iterator<Item = (Scene, BTreeSet<(u64, u64)>)> {
        scenes().filter_map(move |(seed, scene)| {
            let plan = Plan::draw(kind, &scene, &mut Rng::new(seed))?;
            assert!(plan.nodes.is_empty() && plan.lasts >= Duration::from_millis(300));
            assert!(plan.cuts.iter().all(|(from, to)| from != to));
            let cuts: BTreeSet<_> = plan.cuts.iter().copied().collect();
            assert_eq!(cuts.len(), plan.cuts.len(), "each way once: {plan:?}");
            Some((scene, cuts))
        })
    }

    fn between_nodes(cuts: &BTreeSet<(u64, u64)>) -> BTreeSet<(u64, u64)> {
        cuts.iter().copied().filter(|(from, to)| *from != CLIENTS && *to != CLIENTS).collect()
    }

    /// Everybody whom `node` can talk with, both ways, directly.
    fn friends(scene: &Scene, cuts: &BTreeSet<(u64, u64)>, node: u64) -> BTreeSet<u64> {
        let open = |other: &u64| !cuts.contains(&(node, *other)) && !cuts.contains(&(*other, node));
        (1..=scene.nodes).filter(open).collect()
    }

    #[test]
    fn a_partition_has_two_halves_cut_both_ways_and_a_majority() {
        for (scene, cuts) in cuts_of(Kind::Partition) {
            assert!(cuts.iter().all(|(from, to)| cuts.contains(&(*to, *from))), "both ways: {cuts:?}");
            let halves: BTreeSet<_> = (1..=scene.nodes).map(|node| friends(&scene, &cuts, node)).collect();
            assert_eq!(halves.len(), 2, "{cuts:?}");
            assert_eq!(halves.iter().map(BTreeSet::len).sum::<usize>() as u64, scene.nodes, "{cuts:?}");
        }
    }

    #[test]
    fn a_one_way_cut_leaves_the_way_back() {
        for (_, cuts) in cuts_of(Kind::OneWay) {
            assert!(cuts.iter().all(|(from, to)| !cuts.contains(&(*to, *from))), "{cuts:?}");
            let (senders, hearers): (BTreeSet<_>, BTreeSet<_>) = cuts.iter().copied().unzip();
            assert!(senders.len() == 1 || hearers.len() == 1, "one node is deaf, or not heard: {cuts:?}");
        }
    }

    #[test]
    fn an_isolated_leader_is_alone_and_the_others_are_not() {
        for (scene, cuts) in cuts_of(Kind::Isolated) {
            let leader = scene.leader.expect("only with a leader");
            assert_eq!(friends(&scene, &cuts, leader), [leader].into());
            assert_eq!(between_nodes(&cuts).len() as u64, 2 * (scene.nodes - 1), "nothing else is cut");
        }
    }

    #[test]
    fn a_bridge_joins_two_halves_that_do_not_reach_each_other() {
        for (scene, cuts) in cuts_of(Kind::Bridge) {
            let sizes: Vec<_> = (1..=scene.nodes).map(|node| friends(&scene, &cuts, node).len() as u64).collect();
            assert_eq!(sizes.iter().filter(|size| **size == scene.nodes).count(), 1, "one sees all: {cuts:?}");
            assert_eq!(sizes.iter().filter(|size| **size == scene.nodes / 2 + 1).count() as u64, scene.nodes - 1);
        }
    }

    #[test]
    fn only_processes_that_run_are_killed_and_stopped() {
        for kind in [Kind::Kill, Kind::Stop, Kind::KillAll] {
            for (seed, scene) in scenes() {
                let plan = Plan::draw(kind, &scene, &mut Rng::new(seed)).expect("some run");
                assert!(plan.cuts.is_empty() && plan.nodes.iter().all(|(node, _)| scene.up.contains(node)), "{plan:?}");
                assert!(kind != Kind::KillAll || plan.nodes.len() == scene.up.len());
            }
            let nobody = Scene { nodes: 3, up: Vec::new(), leader: None, long: false };
            assert_eq!(Plan::draw(kind, &nobody, &mut Rng::new(1)), None);
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_faults() {
        for (seed, scene) in scenes() {
            let draw = || Kind::ALL.map(|kind| Plan::draw(kind, &scene, &mut Rng::new(seed)));
            assert_eq!(draw(), draw());
        }
    }
}
