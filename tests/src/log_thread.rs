//! The log thread of a node: takes the jobs that wait, is done a sync later, and uses idle moments as the daemon does. And
//! how it fails.

use graven::replica::Chore;
use graven::replica::disk::{DiskError, DiskReport, Saved};
use graven_frame::Frame;
use graven_wal::AppendError;

use crate::check::{Checked, Violation, reserve};
use crate::cluster::{Cluster, Event};

impl Cluster {
    pub(crate) fn on_disk_start(&mut self, node: u64, life: u64) -> Checked {
        let slow = self.profile.slow_sync;
        let lag = self.node(node).lag_us();
        let takes = if self.healed_at.is_none() && self.rng.chance(slow) {
            let most = if self.rng.chance(50) { 2_500_000 } else { 50_000 };
            self.stats.stalls += 1;
            self.rng.below(most)
        } else if lag > 0 {
            self.rng.between(lag, 6 * lag)
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
        let hangs_until = self.node(node).hangs_until;
        if now_us < hangs_until {
            self.schedule(hangs_until, Event::DiskDone { node, life });
            return Ok(());
        }
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        if let Some(power) = process.doomed {
            self.crash(node, power);
            return Ok(());
        }
        let jobs: Vec<_> = process.running.iter().cloned().collect();
        let had_reserve = process.wal.has_reserve();
        let ran = match process.run_disk() {
            Ok(ran) => ran,
            Err(error) => {
                let first = jobs.iter().flat_map(|job| &job.frames).map(|frame| frame.header().index).min();
                self.checkers.durability.doubted(node, first.unwrap_or(u64::MAX));
                return self.on_disk_error(node, &error);
            }
        };
        reserve::kept(node, had_reserve, process.wal.has_reserve(), &jobs)?;
        let more = !process.queue.is_empty();
        process.disk_busy = more || !process.running.is_empty();
        let again = process.disk_busy;
        let report = process.reported;
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
            match &job.chore {
                Some(Chore::Install(checkpoint)) if done && ran.saved.has(checkpoint.base.index) => {
                    self.checkers.installed(node, &checkpoint.base)?;
                    self.begins_elsewhere(node, checkpoint.base.next_offset)?;
                    if let Some(process) = self.node_mut(node).alive(life) {
                        process.first_seen = process.reader.first_index();
                    }
                }
                Some(Chore::Save(saved)) if done && ran.saved.has(saved.base.index) => self.stats.checkpoints += 1,
                Some(Chore::Release(_)) if done => self.stats.releases += 1,
                _ => {}
            }
        }
        self.check_front(node, life)?;
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
        self.input_of(node, life, |replica, now| replica.disk_done(now, report))
    }

    /// The log thread has nothing to do: sync points and the preparation of segments have their turn.
    pub(crate) fn on_disk_idle(&mut self, node: u64, life: u64) -> Checked {
        let (now_us, hangs_until) = (self.now_us, self.node(node).hangs_until);
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        if process.disk_busy {
            return Ok(());
        }
        if now_us < hangs_until {
            self.schedule(hangs_until, Event::DiskIdle { node, life });
            return Ok(());
        }
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        if let Err(error) = process.use_idle() {
            return self.on_disk_error(node, &error);
        }
        self.check_front(node, life)?;
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        let before = process.reported;
        process.reported = DiskReport { room: process.wal.room(), waits: false, saved: Saved::default(), ..before };
        let report = process.reported;
        let pause = if process.released.is_some() {
            Some(200)
        } else {
            (report.room.is_full() || process.wal.sync_point_due()).then_some(5_000)
        };
        if let Some(pause) = pause {
            self.schedule(self.now_us + pause, Event::DiskIdle { node, life });
        }
        if report != before {
            return self.input_of(node, life, |replica, now| replica.disk_done(now, report));
        }
        Ok(())
    }

    /// Segments at the front of a log go one at a time: after each, what is left must be enough.
    fn check_front(&mut self, node: u64, life: u64) -> Checked {
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        let first = process.reader.first_index();
        if std::mem::replace(&mut process.first_seen, first) == first {
            return Ok(());
        }
        let before = first.checked_sub(2).map(|at| self.checkers.log().get(at as usize));
        let offset = before.map_or(0, |frame| frame.map_or(u64::MAX, Frame::next_offset));
        self.checkers.holds(node, offset)?;
        self.released_to(node, offset)
    }

    /// The log is closed for good: the process ends, as the daemon's does, with or without a loss of power.
    fn on_disk_error(&mut self, node: u64, error: &DiskError) -> Checked {
        self.trace.line(self.now_us, format_args!("n{node} {error}"));
        if !matches!(
            error,
            DiskError::Log(AppendError::Closed { .. }) | DiskError::Checkpoint(_) | DiskError::Marker(_)
        ) {
            return Err(Violation { property: "disk", detail: format!("node {node}: the log refuses a job: {error}") });
        }
        self.stats.failed_syncs += 1;
        let power = self.rng.chance(500);
        self.crash(node, power);
        Ok(())
    }
}
