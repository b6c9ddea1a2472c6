//! Disks that are full or hang while nothing else is wrong: what a cluster owes its clients then.
//!
//! | disks | what must happen |
//! |---|---|
//! | full on fewer nodes than a majority, the leader among them or not | writers get done |
//! | full on a majority, then with room again | writers get done once there is room, without a restart |
//! | hanging on the leader, for some seconds | somebody else leads within [`MOVES_US`] of the stall's bound; writers get done |
//! | hanging on a majority, then not | writers get done once they answer |
//! | hanging for more than half a minute | the process ends; started again, it is like any other |

use crate::check::liveness::{self, Left};
use crate::check::{Checked, Violation, violated};
use crate::cluster::Cluster;

/// Runs in peace with full disks, in thousandths.
pub(crate) const FULL_DISKS: u64 = 150;
/// Runs in peace with a disk that hangs, in thousandths.
pub(crate) const HUNG_DISKS: u64 = 150;
/// From the moment when a leader's disk must be called stalled to the moment when another node leads.
pub(crate) const MOVES_US: u64 = 2_000_000;
/// Appends of each writer that fill a disk without room for another segment: a few hundred bytes each, two segments of 64 KiB.
const FILLING: u64 = 150;
/// How long a majority stays full, or its disks hang: longer than it takes to notice, and shorter than a writer waits.
const MAJORITY_US: u64 = 3_000_000;

impl Cluster {
    /// Leaves the disk of `node` room for `room` more bytes of files.
    pub fn fill_disk(&mut self, node: u64, room: u64) {
        self.trace.line(self.now_us, format_args!("disk of n{node} is full, but for {room}"));
        let disk = &self.node(node).disk;
        disk.full(Some(disk.used_bytes() + room));
        self.stats.full_disks += 1;
    }

    /// Takes back what [`Cluster::fill_disk`] did, on all nodes.
    pub fn free_disks(&mut self) {
        self.trace.line(self.now_us, format_args!("all disks have room"));
        self.nodes.iter().for_each(|node| node.disk.full(None));
    }

    /// The disk of `node` finishes nothing for the next `us`.
    pub fn hang_disk(&mut self, node: u64, us: u64) {
        self.trace.line(self.now_us, format_args!("disk of n{node} hangs for {us}"));
        self.node_mut(node).hangs_until = self.now_us + us;
        self.stats.stalls += 1;
    }

    /// The leader and as many others as `count` says, or `count` nodes without it.
    fn some_nodes(&mut self, count: u64, with_leader: bool) -> Vec<u64> {
        let nodes = self.nodes.len() as u64;
        let first = self.leader().unwrap_or(1) + u64::from(!with_leader);
        (first..first + count).map(|node| (node - 1) % nodes + 1).collect()
    }

    fn writers_finish_within(&mut self, us: u64, what: &str) -> Checked {
        let began = self.now_us;
        loop {
            self.step()?;
            let clients = self.left().clients;
            if clients.is_empty() {
                return Ok(());
            }
            if self.now_us - began > us {
                let detail = format!("{what}: after {} ms these writers are not done: {clients:?}", us / 1000);
                return Err(Violation { property: "liveness", detail });
            }
        }
    }

    /// Some disks are full, and nothing else is wrong.
    pub(crate) fn live_with_full_disks(&mut self) -> Checked {
        let nodes = self.nodes.len() as u64;
        let minority = (nodes - 1) / 2;
        let with_leader = self.rng.chance(500);
        let count = if self.rng.chance(500) { minority } else { minority + 1 };
        let full = self.some_nodes(count, with_leader);
        full.iter().for_each(|node| self.fill_disk(*node, 0));
        self.fill_writers(FILLING);
        if count <= minority {
            self.writers_finish_within(liveness::HEALED_US, "a minority of the disks is full")?;
            self.free_disks();
        } else {
            self.run_for(MAJORITY_US)?;
            self.free_disks();
            self.writers_finish_within(liveness::HEALED_US, "all disks have room again")?;
        }
        self.healed_at = Some(self.now_us);
        self.settle()
    }

    /// Disks hang, and nothing else is wrong.
    pub(crate) fn live_with_hung_disks(&mut self) -> Checked {
        let nodes = self.nodes.len() as u64;
        self.finish_writers();
        if self.rng.chance(500) {
            let Some(leader) = self.leader() else { return Ok(()) };
            let life = self.node(leader).life;
            let hangs = *self.rng.pick(&[4_000_000, 8_000_000, 33_000_000]);
            self.hang_disk(leader, hangs);
            let until = self.now_us + hangs;
            self.leadership_leaves(leader)?;
            self.writers_finish_within(liveness::HEALED_US, "the disk of a node that led hangs")?;
            self.run_for(until.saturating_sub(self.now_us) + 1_000)?;
            if hangs < 30_000_000 && self.node(leader).life > life {
                return violated("stalls", format!("a process ended though its disk hung for {hangs} us only"));
            }
        } else {
            let hung = self.some_nodes(nodes / 2 + 1, true);
            hung.iter().for_each(|node| self.hang_disk(*node, MAJORITY_US));
            self.run_for(MAJORITY_US)?;
            self.writers_finish_within(liveness::HEALED_US, "all disks answer again")?;
        }
        self.healed_at = Some(self.now_us);
        self.settle()
    }

    /// The disk of `leader` hangs: once it has something to write, somebody else leads before long.
    ///
    /// # Errors
    /// It still leads, or nobody does.
    pub fn leadership_leaves(&mut self, leader: u64) -> Checked {
        let mut waits_since = None;
        loop {
            self.step()?;
            if self.leader().is_some_and(|other| other != leader) {
                return Ok(());
            }
            let Some(replica) = self.replica(leader) else { return Ok(()) };
            if waits_since.is_none() && replica.view().unsynced_since.is_some() {
                waits_since = Some(self.now_us);
            }
            let Some(since) = waits_since else {
                if self.left().clients.is_empty() {
                    // Nobody wrote anything.
                    return Ok(());
                }
                continue;
            };
            let bound = replica.core().config().disk_stall_us + MOVES_US;
            if self.now_us - since > bound {
                let detail = format!("node {leader} leads on, its disk hangs for {} ms", (self.now_us - since) / 1000);
                return Err(Violation { property: "stalls", detail });
            }
        }
    }

    fn fill_writers(&mut self, appends: u64) {
        self.writers.iter_mut().for_each(|writer| writer.finish_after(appends));
    }

    /// Runs until `node` says that its disk is full.
    ///
    /// # Errors
    /// The property that does not hold; liveness when it takes too long.
    pub fn run_until_full(&mut self, node: u64) -> Checked {
        let began = self.now_us;
        while !self.replica(node).is_some_and(|replica| replica.view().disk_full) {
            self.step()?;
            liveness::progress(self.now_us - began, &Left { nodes: vec![(node, 0)], ..Left::default() })?;
        }
        Ok(())
    }
}
