//! The course of a run: faults for some thousand events, then peace, in which everything must get done.
//!
//! Peace is tried as well. With a cut that stays, whoever can still gather a quorum must get on with it (thesis 6.2, the bridge node
//! whose patience an old leader must not keep). A node that was cut off, or hears nobody, must not depose a leader that has a quorum
//! (thesis 9.6, 4.2.3). A node that is started while nobody appends must catch up without new entries to carry it.

use crate::check::liveness::{self, Left};
use crate::check::{Checked, Violation};
use crate::cluster::Cluster;
use crate::disks::{FULL_DISKS, HUNG_DISKS};
use crate::node::Node;
use crate::rot::Sick;

/// Runs that go on, healed, under a cut that stays; in thousandths.
const LASTING_CUTS: u64 = 500;
/// Runs in which a node is cut off from a leader that nothing else is wrong with; in thousandths.
const OUTSIDERS: u64 = 500;
/// Longer than the longest election timeout: what was begun while faults went on has shown by then.
const SETTLING_US: u64 = 700_000;

impl Cluster {
    /// Lets everything run for `steps` events, faults included, then heals all and demands that all work gets done.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn run(&mut self, steps: u64) -> Checked {
        self.schedule_faults();
        while self.stats.steps < steps {
            self.step()?;
        }
        self.heal();
        self.settle()?;
        // Which cuts leave a quorum is known for members that do not change.
        if self.profile.member_us == 0 && self.rng.chance(LASTING_CUTS) {
            self.live_with_a_cut()?;
        }
        if self.rng.chance(OUTSIDERS) {
            self.keep_a_leader()?;
        }
        let (full, hung) = (self.rng.chance(FULL_DISKS), self.rng.chance(HUNG_DISKS));
        let settled = self.profile.member_us == 0 && self.nodes.len() > 2;
        if settled && full {
            self.live_with_full_disks()?;
        }
        if settled && hung {
            self.live_with_hung_disks()?;
        }
        // Nobody appends any more: whoever starts again must find its way without new entries to carry it.
        let node = self.rng.between(1, self.nodes.len() as u64 + 1);
        let power = self.rng.chance(500);
        self.crash(node, power);
        self.healed_at = Some(self.now_us);
        self.run_until_done()?;
        self.checkers.linearizable()
    }

    /// Runs until nothing is left to do, and compares what all nodes read back.
    ///
    /// # Errors
    /// The property that does not hold; liveness among them.
    pub fn run_until_done(&mut self) -> Checked {
        self.settle()?;
        self.trace.line(self.now_us, format_args!("done"));
        self.read_back()
    }

    pub(crate) fn settle(&mut self) -> Checked {
        let healed = *self.healed_at.get_or_insert(self.now_us);
        let mut looked = 0;
        loop {
            self.step()?;
            if self.now_us < looked + 5_000 {
                continue;
            }
            looked = self.now_us;
            let left = self.left();
            if left.is_nothing() {
                return Ok(());
            }
            liveness::progress(self.now_us - healed, &left)?;
        }
    }

    /// Lets everything run until `until` says so.
    ///
    /// # Errors
    /// The property that does not hold; liveness when that takes longer than a healed cluster gets.
    pub fn run_while(&mut self, mut going: impl FnMut(&Cluster) -> bool) -> Checked {
        let began = self.now_us;
        while going(self) {
            self.step()?;
            let left = Left { leaderless: true, ..Left::default() };
            liveness::progress(self.now_us - began, &left)?;
        }
        Ok(())
    }

    /// Lets everything run for `us`.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn run_for(&mut self, us: u64) -> Checked {
        let until = self.now_us + us;
        while self.now_us < until {
            self.step()?;
        }
        Ok(())
    }

    /// One cut stays, and somebody can still gather a quorum: writers must get done all the same.
    fn live_with_a_cut(&mut self) -> Checked {
        let nodes = self.nodes.len() as u64;
        let one = self.rng.between(1, nodes + 1);
        let shape = self.network.lasting_cut(nodes, self.leader().unwrap_or(one));
        self.trace.line(self.now_us, format_args!("a cut that stays: {shape}"));
        self.stats.partitions += 1;
        self.finish_writers();
        let began = self.now_us;
        loop {
            self.step()?;
            let clients = self.left().clients;
            if clients.is_empty() {
                break;
            }
            liveness::progress(self.now_us - began, &Left { clients, ..Left::default() })?;
        }
        self.trace.line(self.now_us, format_args!("the cut ends"));
        self.network.heal();
        self.healed_at = Some(self.now_us);
        self.settle()
    }

    /// A node is cut off, or only deaf, for a while, and comes back: the leader must still be the same, in the same term.
    fn keep_a_leader(&mut self) -> Checked {
        self.run_for(SETTLING_US)?;
        let before = self.leads();
        let crashes = self.stats.crashes;
        let Some((leader, _)) = before else { return Ok(()) };
        let nodes = self.nodes.len() as u64;
        let outsider = (leader - 1 + self.rng.between(1, nodes)) % nodes + 1;
        let voters = self.members().map(|members| members.membership().voters).unwrap_or_default();
        let left = voters.iter().filter(|voter| voter.0 != outsider).count();
        if outsider == leader || left * 2 <= voters.len() {
            // It is needed.
            return Ok(());
        }
        let deaf = self.rng.chance(500);
        self.trace.line(self.now_us, format_args!("n{outsider} is cut off, only deaf {deaf}"));
        for peer in (1..=nodes).filter(|peer| *peer != outsider) {
            self.network.cut(peer, outsider);
            if !deaf {
                self.network.cut(outsider, peer);
            }
        }
        self.stats.partitions += 1;
        let away = self.rng.between(300_000, 1_500_000);
        self.run_for(away)?;
        self.network.heal();
        self.run_for(SETTLING_US)?;
        // A disk fault that was ordered before all healed may be met only now, and end a process.
        if self.stats.crashes == crashes {
            liveness::undisturbed(before, self.leads(), outsider)?;
        }
        self.healed_at = Some(self.now_us);
        self.settle()
    }

    /// Who leads the newest term, and which that is.
    fn leads(&self) -> Option<(u64, u64)> {
        let leader = self.leader()?;
        Some((leader, self.replica(leader)?.view().term.0))
    }

    pub(crate) fn left(&self) -> Left {
        let entries = self.checkers.log().len() as u64;
        let records = self.checkers.committed_records();
        let shows = |node: &Node| node.process.as_ref().map_or(0, |process| process.replica.view().readable_index);
        let members = self.members();
        let belongs = |node: &&Node| members.is_none_or(|members| members.by_id(node.id).is_some());
        let changing = members.is_some_and(graven::members::Members::is_joint);
        let behind =
            self.nodes.iter().filter(belongs).map(|node| (node.id, shows(node))).filter(|(_, shown)| *shown != entries);
        let readers = (0..self.followers.len()).filter(|at| self.checkers.reader_next(*at) != records);
        Left {
            clients: self.writers.iter().filter(|writer| !writer.is_finished()).map(|writer| writer.id).collect(),
            readers: readers.map(|at| at as u64).collect(),
            nodes: behind.collect(),
            leaderless: self.leader().is_none(),
            changing,
            pictures: self.without_pictures(),
            damaged: self.sick.as_ref().filter(|_| self.profile.scrubs).map(Sick::node),
        }
    }

    pub(crate) fn read_back(&self) -> Checked {
        for node in &self.nodes {
            let Some(process) = &node.process else { continue };
            let last = process.replica.view().readable_index;
            let mut frames = Vec::new();
            let first = process.reader.first_index();
            for index in first..=last {
                match process.reader.frame(index) {
                    Ok(frame) => frames.push(frame),
                    Err(error) => {
                        let detail = format!("node {} cannot read entry {index}: {error}", node.id);
                        return Err(Violation { property: "P2", detail });
                    }
                }
            }
            self.checkers.read_back(node.id, first, &frames)?;
        }
        Ok(())
    }
}
