//! What goes wrong: crashes, partitions, disks that fail or dawdle, leadership pushed around. And the end of it.

use graven_wal::sim::{Fault as Fail, Op};

use crate::check::{Checked, Violation};
use crate::cluster::{Cluster, Event};
use crate::node::StartError;
use crate::profile::Profile;

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
            Fault::Mend | Fault::Room | Fault::Depose(_) | Fault::CutOff(_) => 0,
        }
    }

    pub(crate) fn schedule_faults(&mut self) {
        for fault in [Fault::Crash, Fault::Partition, Fault::Disk, Fault::Full, Fault::Transfer] {
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
        let nodes = self.nodes.len() as u64;
        let node = self.rng.between(1, nodes + 1);
        match fault {
            Fault::Crash => {
                // The leader is the most interesting one to lose.
                let node = if self.rng.chance(300) { self.leader().unwrap_or(node) } else { node };
                let power = self.rng.chance(self.profile.power);
                let in_write = self.rng.chance(400);
                match &mut self.node_mut(node).process {
                    Some(process) if in_write => process.doomed = Some(power),
                    _ => self.crash(node, power),
                }
                // The whole site loses power.
                if power && self.rng.chance(60) {
                    (1..=nodes).for_each(|node| self.crash(node, true));
                }
            }
            Fault::Partition => {
                self.network.heal();
                let shape = self.network.partition(nodes);
                self.stats.partitions += 1;
                self.trace.line(self.now_us, format_args!("partition: {shape}"));
                self.tell_lanes(false);
                let at = self.now_us + self.rng.between(20_000, 900_000);
                self.schedule(at, Event::Fault(Fault::Mend));
            }
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
                let at = self.now_us + self.rng.between(50_000, 700_000);
                self.schedule(at, Event::Fault(Fault::Room));
            }
            Fault::Depose(node) if self.rng.chance(500) => {
                let power = self.rng.chance(self.profile.power);
                self.crash(node, power);
            }
            Fault::Depose(node) | Fault::CutOff(node) => {
                self.trace.line(self.now_us, format_args!("n{node} is cut off"));
                self.network.isolate(node);
                self.stats.partitions += 1;
                let at = self.now_us + self.rng.between(20_000, 600_000);
                self.schedule(at, Event::Fault(Fault::Mend));
            }
            Fault::Room => self.nodes.iter().for_each(|node| node.disk.full(None)),
            Fault::Transfer => {
                let asked = self.leader().unwrap_or(node);
                let to = self.rng.between(1, nodes + 1);
                self.trace.line(self.now_us, format_args!("n{asked} is asked to hand over to n{to}"));
                self.ask_transfer(asked, to);
                // It leads on in its own eyes, while the one it called upon wins without asking for its patience.
                if self.rng.chance(400) {
                    let at = self.now_us + self.rng.between(300, 4_000);
                    self.schedule(at, Event::Fault(Fault::CutOff(asked)));
                }
            }
        }
        self.schedule_fault(fault);
        Ok(())
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
            let place = self.node_mut(node);
            place.disk = place.disk.crash(seed);
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

    pub(crate) fn on_disk_start(&mut self, node: u64, life: u64) -> Checked {
        let slow = self.profile.slow_sync;
        let takes = if self.healed_at.is_none() && self.rng.chance(slow) {
            let most = if self.rng.chance(50) { 2_500_000 } else { 50_000 };
            self.rng.below(most)
        } else {
            self.rng.between(60, 400)
        };
        let now_us = self.now_us;
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        let queued = std::mem::take(&mut process.queue);
        process.running.extend(queued);
        self.schedule(now_us + takes, Event::DiskDone { node, life });
        Ok(())
    }

    pub(crate) fn on_disk_done(&mut self, node: u64, life: u64) -> Checked {
        let now_us = self.now_us;
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        if let Some(power) = process.doomed {
            self.crash(node, power);
            return Ok(());
        }
        let jobs: Vec<_> = process.running.iter().cloned().collect();
        let ran = match process.run_disk() {
            Ok(ran) => ran,
            Err(error) => {
                let first = jobs.iter().flat_map(|job| &job.frames).map(|frame| frame.header().index).min();
                self.checkers.durability.doubted(node, first.unwrap_or(u64::MAX));
                return self.on_disk_error(node, &error);
            }
        };
        let more = !process.queue.is_empty();
        process.disk_busy = more || !process.running.is_empty();
        let again = process.disk_busy;
        let (done, full) = process.reported;
        // A job that waits for room may have its term and vote on the disk already.
        let waiting = process.running.front().map(|job| (job.sequence, job.hard_state));
        for job in &jobs {
            let done = ran.done.is_some_and(|done| job.sequence <= done);
            if let Some(hard_state) = job.hard_state
                && (done || waiting == Some((job.sequence, None)))
            {
                let vote = hard_state.vote.map(|node| node.0);
                self.checkers.durability.hard_state(node, hard_state.term.0, vote);
            }
            for frame in job.frames.iter().filter(|_| done) {
                self.checkers.durability.synced(node, frame);
            }
        }
        self.trace.line(now_us, format_args!("n{node} synced {:?}", ran.done));
        if again {
            let pause = if ran.disk_full { 2_000 } else { 20 };
            // Room is found by preparing a segment; the daemon does so between its attempts.
            if ran.disk_full
                && let Some(process) = self.node_mut(node).alive(life)
                && let Err(error) = process.use_idle()
            {
                return self.on_disk_error(node, &error);
            }
            self.schedule(now_us + pause, Event::DiskStart { node, life });
        } else {
            let at = now_us + self.rng.between(500, 10_000);
            self.schedule(at, Event::DiskIdle { node, life });
        }
        self.input_of(node, life, |replica, now| replica.disk_done(now, done, full))
    }

    /// The log thread has nothing to do: sync points and the preparation of segments have their turn.
    pub(crate) fn on_disk_idle(&mut self, node: u64, life: u64) -> Checked {
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        if process.disk_busy {
            return Ok(());
        }
        if let Err(error) = process.use_idle() {
            return self.on_disk_error(node, &error);
        }
        let (done, was_full) = process.reported;
        let full = was_full && process.wal.disk_full();
        process.reported.1 = full;
        if full || process.wal.sync_point_due() {
            self.schedule(self.now_us + 5_000, Event::DiskIdle { node, life });
        }
        if was_full && !full {
            return self.input_of(node, life, |replica, now| replica.disk_done(now, done, false));
        }
        Ok(())
    }

    /// The log is closed for good: the process ends, as the daemon's does, with or without a loss of power.
    fn on_disk_error(&mut self, node: u64, error: &graven_wal::AppendError) -> Checked {
        self.trace.line(self.now_us, format_args!("n{node} {error}"));
        if !matches!(error, graven_wal::AppendError::Closed { .. }) {
            return Err(Violation { property: "disk", detail: format!("node {node}: the log refuses a job: {error}") });
        }
        self.stats.failed_syncs += 1;
        let power = self.rng.chance(500);
        self.crash(node, power);
        Ok(())
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
        self.profile = Profile { client_loss: 0, slow_sync: 0, ..self.profile };
        for node in 1..=self.nodes.len() as u64 {
            self.node(node).disk.full(None);
            if self.node(node).process.is_none() {
                self.schedule(self.now_us + 1_000, Event::Start { node });
            }
        }
        self.finish_writers();
    }
}
