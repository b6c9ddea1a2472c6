//! What goes wrong: crashes, partitions, disks that fail or dawdle, leadership pushed around. And the end of it.

use graven::members::MemberRole;
use graven::members::change::{MemberChange, NewMember};
use graven_wal::sim::{Fault as Fail, Op, SECTOR_BYTES, SimDisk, Unsynced};

use crate::check::{Checked, Violation};
use crate::cluster::{Cluster, Event};
use crate::node::StartError;
use crate::profile::Profile;
use crate::rng::Rng;

/// A fault that comes again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Crash,
    Partition,
    Mend,
    Disk,
    Full,
    Room,
    Transfer,
    Pause,
    /// The members change.
    Member,
    /// The log is trimmed.
    Trim,
    /// Somebody puts or drops a snapshot with a name, or the file of one is lost.
    Picture,
    /// Somebody moves a cursor or looks at one.
    Cursor,
    /// A stopped node's log rots.
    Rot,
    /// The node was just elected.
    Depose(u64),
    CutOff(u64),
}

impl Cluster {
    fn pause_of(&self, fault: Fault) -> u64 {
        match fault {
            Fault::Crash => self.profile.crash_us,
            Fault::Partition => self.profile.partition_us,
            Fault::Disk => self.profile.disk_fault_us,
            Fault::Transfer => self.profile.transfer_us,
            Fault::Full => self.profile.full_us,
            Fault::Pause => self.profile.pause_us,
            Fault::Member => self.profile.member_us,
            Fault::Trim => self.profile.trim_us,
            Fault::Rot => self.profile.rot_us,
            Fault::Picture => self.profile.picture_us,
            Fault::Cursor => self.profile.cursor_us,
            Fault::Mend | Fault::Room | Fault::Depose(_) | Fault::CutOff(_) => 0,
        }
    }

    pub(crate) fn schedule_faults(&mut self) {
        let all = [
            Fault::Crash,
            Fault::Partition,
            Fault::Disk,
            Fault::Full,
            Fault::Transfer,
            Fault::Pause,
            Fault::Member,
            Fault::Trim,
            Fault::Rot,
            Fault::Picture,
            Fault::Cursor,
        ];
        for fault in all {
            self.schedule_fault(fault);
        }
    }

    fn schedule_fault(&mut self, fault: Fault) {
        let pause = self.pause_of(fault);
        if pause > 0 {
            let at = self.now_us + self.rng.between(pause / 4, pause * 7 / 4);
            self.schedule(at, Event::Fault(fault));
        }
    }

    pub(crate) fn on_fault(&mut self, fault: Fault) -> Checked {
        if self.healed_at.is_some() {
            return Ok(());
        }
        let node = self.rng.between(1, self.nodes.len() as u64 + 1);
        match fault {
            Fault::Crash => self.crash_somebody(node),
            Fault::Partition => self.partition(),
            Fault::Mend => {
                self.trace.line(self.now_us, format_args!("partition ends"));
                self.tell_lanes(true);
                self.network.heal();
            }
            Fault::Disk => {
                let after = 1 + self.rng.below(3);
                let sync = self.rng.chance(600);
                self.trace.line(self.now_us, format_args!("disk of n{node} will fail, sync {sync}, after {after}"));
                self.node(node).disk.fail_nth(if sync { Op::Sync } else { Op::Write }, after, Fail::Io);
            }
            Fault::Full => {
                let room = self.rng.below(64 << 10);
                self.trace.line(self.now_us, format_args!("disk of n{node} is full"));
                let disk = &self.node(node).disk;
                disk.full(Some(disk.used_bytes() + room));
                self.stats.full_disks += 1;
                self.after(50_000, 700_000, Event::Fault(Fault::Room));
            }
            Fault::Room => self.nodes.iter().for_each(|node| node.disk.full(None)),
            Fault::Transfer => self.push_leadership(node),
            Fault::Pause => self.pause(node),
            Fault::Member => self.change_members(),
            Fault::Trim => self.trim_somewhere(node),
            Fault::Rot => self.rot_somewhere(node),
            Fault::Picture if self.rng.chance(80) => self.lose_picture(node)?,
            Fault::Picture => self.put_somewhere(node),
            Fault::Cursor => self.move_somewhere(node),
            Fault::Depose(node) => {
                let power = self.rng.chance(self.profile.power);
                self.crash(node, power);
            }
            Fault::CutOff(node) => self.cut_off(node),
        }
        self.schedule_fault(fault);
        Ok(())
    }

    /// Mostly asks who leads, and mostly for something that is there. What is behind the end may be there when it is asked for.
    fn trim_somewhere(&mut self, node: u64) {
        let node = if self.rng.chance(900) { self.leader().unwrap_or(node) } else { node };
        let records = self.checkers.committed_records();
        let before = match self.rng.below(4) {
            0 => records,
            1 => records + self.rng.below(20),
            _ => self.rng.below(records + 1),
        };
        self.ask_trim(node, before);
    }

    fn crash_somebody(&mut self, node: u64) {
        // The leader is the most interesting one to lose.
        let node = if self.rng.chance(300) { self.leader().unwrap_or(node) } else { node };
        let power = self.rng.chance(self.profile.power);
        let in_write = self.rng.chance(self.profile.in_write);
        match &mut self.node_mut(node).process {
            Some(process) if in_write => process.doomed = Some(power),
            _ => self.crash(node, power),
        }
        // The whole site loses power.
        if power && self.rng.chance(60) {
            (1..=self.nodes.len() as u64).for_each(|node| self.crash(node, true));
        }
    }

    fn partition(&mut self) {
        self.network.heal();
        let shape = self.network.partition(self.nodes.len() as u64);
        self.stats.partitions += 1;
        self.trace.line(self.now_us, format_args!("partition: {shape}"));
        self.tell_lanes(false);
        self.after(20_000, 900_000, Event::Fault(Fault::Mend));
    }

    fn push_leadership(&mut self, node: u64) {
        let asked = self.leader().unwrap_or(node);
        let to = self.rng.between(1, self.nodes.len() as u64 + 1);
        self.trace.line(self.now_us, format_args!("n{asked} is asked to hand over to n{to}"));
        self.stats.transfers += 1;
        self.ask_transfer(asked, to);
        // It leads on in its own eyes, while the one it called upon wins without asking for its patience.
        if self.rng.chance(400) {
            self.after(300, 4_000, Event::Fault(Fault::CutOff(asked)));
        }
    }

    /// Somebody is taken in, gets a vote, is replaced or goes; sometimes a wish that is against the rules.
    fn change_members(&mut self) {
        let Some((leader, members)) = self.leader().zip(self.members().cloned()) else { return };
        let of = |role: MemberRole| -> Vec<String> {
            members.present().filter(|member| member.role == role).map(|member| member.name.clone()).collect()
        };
        let (voters, learners) = (of(MemberRole::Voter), of(MemberRole::Learner));
        let newest = members.newest_id();
        let newcomer = (newest < self.nodes.len() as u64).then(|| newcomer(newest + 1));
        let Some(voter) = voters.get(self.rng.below(voters.len().max(1) as u64) as usize).cloned() else { return };
        let change = match (self.rng.below(10), learners.first().cloned(), newcomer) {
            (0..3, Some(name), _) => MemberChange::Promote { name },
            (3..7, Some(new), _) => MemberChange::Replace { old: voter, new },
            (7, Some(name), _) => MemberChange::Remove { name },
            (0..8, None, Some(new)) => MemberChange::Add(new),
            _ if voters.len() > 2 => MemberChange::Remove { name: voter },
            (_, _, Some(new)) => MemberChange::Add(new),
            _ => return,
        };
        let any = self.rng.between(1, self.nodes.len() as u64 + 1);
        let asked = if self.rng.chance(900) { leader } else { any };
        self.trace.line(self.now_us, format_args!("n{asked} is asked for {change:?}"));
        self.ask_change(asked, change.clone());
        // What is begun just before its leader goes is ended by the next one, or undone.
        if self.rng.chance(300) {
            self.after(0, 4_000, Event::Fault(Fault::Depose(leader)));
        }
        if self.rng.chance(200) {
            self.after(0, 4_000, Event::Fault(Fault::CutOff(leader)));
        }
    }

    /// The process of `node` stands still, mostly for as long as an election takes: it goes on as what it was.
    fn pause(&mut self, node: u64) {
        let node = if self.rng.chance(500) { self.leader().unwrap_or(node) } else { node };
        let most = *self.rng.pick(&[30_000, 500_000, 500_000, 3_000_000]);
        let until = self.now_us + self.rng.between(1_000, most);
        let place = self.node_mut(node);
        if place.process.is_some() {
            place.paused_until = until;
            self.stats.pauses += 1;
            self.trace.line(self.now_us, format_args!("n{node} stands still until {until}"));
        }
    }

    fn cut_off(&mut self, node: u64) {
        self.trace.line(self.now_us, format_args!("n{node} is cut off"));
        self.network.isolate(node);
        self.stats.partitions += 1;
        self.after(20_000, 600_000, Event::Fault(Fault::Mend));
    }

    /// What `node` says now ends after a few messages, and then it dies: tails of its term stay in a minority of the logs, and
    /// what a new leader brings of an old term arrives without its own.
    fn mute(&mut self, node: u64) {
        self.trace.line(self.now_us, format_args!("n{node} falls silent soon"));
        self.network.mute_after_few(node, self.nodes.len() as u64);
        self.stats.partitions += 1;
        self.after(5_000, 60_000, Event::Fault(Fault::Depose(node)));
        self.after(60_000, 300_000, Event::Fault(Fault::Mend));
    }

    /// `node` was just elected: some profiles do not leave it in peace. What it holds is in doubt the most while its first entries
    /// are on their way.
    pub(crate) fn maybe_depose(&mut self, node: u64) {
        if self.healed_at.is_some() || !self.rng.chance(self.profile.depose) {
            return;
        }
        self.stats.deposed += 1;
        let soon = 6 * self.profile.latency_us;
        match self.rng.below(5) {
            // At once: what it says as a leader is still to leave.
            0 | 1 => self.mute(node),
            2 => self.after(0, soon, Event::Fault(Fault::CutOff(node))),
            3 => self.after(0, soon, Event::Fault(Fault::Depose(node))),
            _ => self.after(0, 30_000, Event::Fault(Fault::Depose(node))),
        }
    }

    /// Some lanes notice soon that they are cut, some later, some never; the same when they stand again.
    fn tell_lanes(&mut self, stands: bool) {
        let nodes = self.nodes.len() as u64;
        for node in 1..=nodes {
            for peer in (1..=nodes).filter(|peer| *peer != node) {
                if self.network.is_cut(node, peer) && self.rng.chance(500) {
                    let at = self.now_us + self.rng.below(400_000);
                    let life = self.node(node).life;
                    self.schedule(at, Event::Lane { node, life, peer, stands });
                }
            }
        }
    }

    /// Ends the process of `node` and starts it again after a while; with `power`, what its disk had not synced is gone in part.
    pub fn crash(&mut self, node: u64, power: bool) {
        if self.stop(node, power) {
            let pause = if self.healed_at.is_some() { 1_000 } else { self.rng.between(1_000, self.profile.down_us) };
            self.schedule(self.now_us + pause, Event::Start { node });
        }
    }

    /// Ends the process of `node` for good, as a crash does. Whether there was one.
    pub(crate) fn stop(&mut self, node: u64, power: bool) -> bool {
        let half_written = self.rng.chance(600);
        let fails_in_write = self.rng.chance(300);
        let after = self.rng.below(4);
        let seed = self.rng.draw();
        let place = self.node_mut(node);
        let Some(mut process) = place.process.take() else { return false };
        place.paused_until = 0;
        let mut torn = false;
        if half_written && !process.running.is_empty() {
            // The log thread was in the middle of it: some writes are out, no sync has returned.
            if power && fails_in_write {
                place.disk.power_off_after(after);
            } else {
                place.disk.fail_nth(Op::Sync, 1, Fail::Io);
            }
            let first = process.running.iter().flat_map(|job| &job.frames).map(|frame| frame.header().index).min();
            let _ = process.run_disk();
            torn = power;
            if let Some(first) = first {
                self.checkers.durability.doubted(node, first);
            }
        }
        drop(process);
        if power {
            let flips = self.rng.chance(self.profile.flips);
            let mut rng = self.rng.fork();
            let place = self.node_mut(node);
            let after = place.disk.crash(seed);
            let before = std::mem::replace(&mut place.disk, after);
            if flips {
                self.stats.flips += flip_bits(&before, &self.node(node).disk, &mut rng);
            }
        }
        self.stats.crashes += 1;
        self.stats.torn_writes += u64::from(torn);
        self.trace.line(self.now_us, format_args!("n{node} crashes, power {power}, in a write {torn}"));
        self.tell_of_crash(node);
        true
    }

    fn tell_of_crash(&mut self, peer: u64) {
        for node in 1..=self.nodes.len() as u64 {
            if node != peer && self.rng.chance(500) {
                let at = self.now_us + self.rng.below(5_000);
                let life = self.node(node).life;
                self.schedule(at, Event::Lane { node, life, peer, stands: false });
            }
        }
    }

    pub(crate) fn on_failed_start(&mut self, node: u64, error: &StartError) -> Checked {
        self.trace.line(self.now_us, format_args!("n{node} does not start: {error:?}"));
        // Every I/O error comes from a fault that was ordered; met while the log is opened, it is used up now.
        if let StartError::Open(graven_wal::OpenError::Io { .. }) = error {
            self.schedule(self.now_us + 20_000, Event::Start { node });
            return Ok(());
        }
        Err(Violation { property: "recovery", detail: format!("node {node} does not start: {error:?}") })
    }

    /// Ends all faults: whoever is down starts, and everything that was begun must get done.
    pub fn heal(&mut self) {
        self.trace.line(self.now_us, format_args!("all heals"));
        self.healed_at = Some(self.now_us);
        self.network.calm();
        self.profile = Profile { client_loss: 0, slow_sync: 0, slow_lives: 0, pace: 1, ..self.profile };
        for node in 1..=self.nodes.len() as u64 {
            self.node(node).disk.full(None);
            match &mut self.node_mut(node).process {
                Some(process) => process.lag_us = None,
                None => self.schedule(self.now_us + 1_000, Event::Start { node }),
            }
        }
        self.finish_writers();
    }
}

/// A node that waits to be taken in, as it tells about itself.
pub(crate) fn newcomer(id: u64) -> NewMember {
    NewMember {
        id,
        name: format!("n{id}"),
        peer_address: format!("n{id}:1"),
        client_address: format!("n{id}:2"),
        incarnation: u128::from(id).to_le_bytes(),
    }
}

/// Flips one bit of `after`, which is what `before` became when power was lost, in a byte that was written and not synced, and
/// survived: what a medium may make of a sector that it was writing. Returns how many bits it flipped.
fn flip_bits(before: &SimDisk, after: &SimDisk, rng: &mut Rng) -> u64 {
    let sectors: Vec<_> = before.unsynced();
    let synced = before.crash_keeping(|_| false);
    for _ in 0..4_u64.min(sectors.len() as u64) {
        let Unsynced::Sector(name, sector) = rng.pick(&sectors) else { continue };
        let bytes = [before, &synced, after].map(|disk| disk.bytes_of(name).unwrap_or_default());
        let byte = |of: usize, at: usize| bytes[of].get(at).copied().unwrap_or(0);
        let from = *sector as usize * SECTOR_BYTES;
        let differ = |at: &usize| byte(0, *at) != byte(1, *at) && byte(2, *at) == byte(0, *at);
        let candidates: Vec<_> = (from..from + SECTOR_BYTES).filter(differ).collect();
        if !candidates.is_empty() {
            let bit = 1 << rng.below(8);
            after.rot(name, *rng.pick(&candidates) as u64, |byte| *byte ^= bit);
            return 1;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use graven_wal::{Disk, DiskFile, WriteMode};

    use super::*;

    #[test]
    fn only_what_was_written_and_not_synced_is_flipped() {
        let mut flipped = 0;
        for seed in 0..200 {
            let disk = SimDisk::new(seed);
            let file = disk.create("a", WriteMode::Buffered).expect("room");
            file.write_at(0, &[7; 700]).expect("room");
            file.sync_data().expect("no fault");
            disk.sync_dir().expect("no fault");
            file.write_at(700, &[9; 900]).expect("room");
            let after = disk.crash(seed);
            flipped += flip_bits(&disk, &after, &mut Rng::new(seed));
            let bytes = after.bytes_of("a").expect("its name is durable");
            assert!(bytes[..700].iter().all(|byte| *byte == 7), "seed {seed}: what was synced is not touched");
        }
        assert!(flipped > 50, "{flipped} flips prove little");
    }
}
