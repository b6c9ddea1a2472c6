//! The scrubber of a running node, as `node/scrub.rs` of the daemon has it: it reads sealed segments bit by bit, and mends what rotted
//! with frames of other nodes, while the node goes on taking entries, without a vote. Readers that run into damage first say so.
//!
//! What is not real: the pace, and that a segment which can be mended only while its log is closed has its node started again, as a person
//! would.

use std::collections::BTreeMap;

use graven_wal::mend::{self, MendError, SealedMender, SealedStep};
use graven_wal::sim::SimDisk;
use graven_wal::{ScrubError, ScrubPosition, SegmentId};

use crate::check::Checked;
use crate::cluster::{Cluster, Event};

/// Bytes read at a time.
const STEP_BYTES: u64 = 8 << 10;
/// Until damage that nobody could mend is tried again.
const AGAIN_US: u64 = 20_000;
/// For so long damage keeps a node from voting: time enough for others to be reached, and not for ever.
const ABSTAIN_MAX_US: u64 = 3_000_000;
/// A node that cannot mend itself while it runs is started again.
const RESTART_US: u64 = 400_000;

/// What the scrubber of one process knows.
#[derive(Default)]
pub(crate) struct Scrub {
    position: ScrubPosition,
    /// When the pass that is under way began.
    began_us: u64,
    /// When the last pass began that found nothing wrong.
    clean_from_us: Option<u64>,
    /// Whether this one did, so far.
    clean: bool,
    broken: BTreeMap<SegmentId, Broken>,
    mender: Option<(SegmentId, SealedMender<SimDisk>)>,
    /// Whether the replica was told of damage.
    told: bool,
}

#[derive(Clone, Copy)]
struct Broken {
    since_us: u64,
    again_us: u64,
    /// Every other node has answered, and none has what is missing.
    hopeless: bool,
}

impl Scrub {
    /// Whether everything was read and found whole since `since_us`.
    pub(crate) fn is_clean_since(&self, since_us: u64) -> bool {
        self.broken.is_empty() && self.clean_from_us.is_some_and(|from| from > since_us)
    }

    /// Something is wrong in `segment`.
    fn found(&mut self, segment: SegmentId, now_us: u64) {
        self.clean = false;
        self.broken.entry(segment).or_insert(Broken { since_us: now_us, again_us: now_us, hopeless: false });
    }
}

impl Cluster {
    /// A reader could not use entry `index` of `node`.
    pub(crate) fn suspect(&mut self, node: u64, index: u64) {
        let now_us = self.now_us;
        if let Some(process) = &mut self.node_mut(node).process
            && let Some(segment) = process.reader.segment_of(index)
        {
            process.scrub.found(segment, now_us);
        }
    }

    /// The scrubber's turn.
    pub(crate) fn on_scrub(&mut self, node: u64, life: u64) -> Checked {
        let now_us = self.now_us;
        let hangs_until = self.node(node).hangs_until;
        if now_us < hangs_until {
            self.schedule(hangs_until, Event::Scrub { node, life });
            return Ok(());
        }
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        let mending = process.scrub.mender.take();
        let doomed = process.doomed.filter(|_| mending.is_some());
        if let Some(power) = doomed {
            self.crash(node, power);
            return Ok(());
        }
        let due = process.scrub.broken.iter().find(|(_, broken)| broken.again_us <= now_us).map(|(id, _)| *id);
        let done = match (mending, due) {
            (Some((segment, mender)), _) => self.go_on_mending(node, segment, mender),
            (None, Some(segment)) => match process.wal.mend_sealed(segment) {
                Ok(mender) => {
                    process.scrub.mender = Some((segment, mender));
                    Ok(())
                }
                Err(error) => Err((segment, error)),
            },
            (None, None) => {
                self.scrub_step(node);
                Ok(())
            }
        };
        if let Err((segment, error)) = done {
            self.on_unmended(node, segment, &error);
        }
        let busy = self.node_mut(node).alive(life).is_some_and(|process| process.scrub.mender.is_some());
        let (low, high) = if busy { (100, 2_000) } else { (500, 4_000) };
        self.after(low, high, Event::Scrub { node, life });
        self.tell_damage(node, life)
    }

    /// Reads on.
    fn scrub_step(&mut self, node: u64) {
        let now_us = self.now_us;
        let Some(process) = &mut self.node_mut(node).process else { return };
        let scrub = &mut process.scrub;
        match process.reader.scrub(scrub.position, STEP_BYTES) {
            Ok(step) => {
                scrub.position = step.next.unwrap_or_default();
                if step.next.is_none() {
                    if scrub.clean {
                        scrub.clean_from_us = Some(scrub.began_us);
                    }
                    (scrub.clean, scrub.began_us) = (true, now_us);
                }
            }
            Err(ScrubError::Damaged { damage, skip }) => {
                scrub.position = skip;
                scrub.found(damage.segment, now_us);
                self.stats.scrubbed += 1;
                self.trace.line(now_us, format_args!("n{node} finds while it runs: {damage}"));
            }
            // The disk's own errors are met where they matter.
            Err(_) => scrub.clean = false,
        }
    }

    fn go_on_mending(
        &mut self,
        node: u64,
        segment: SegmentId,
        mut mender: SealedMender<SimDisk>,
    ) -> Result<(), (SegmentId, MendError)> {
        let now_us = self.now_us;
        let at = |error| (segment, error);
        match mender.step().map_err(at)? {
            SealedStep::More => {}
            SealedStep::Wants { first, last } => {
                let (mut moved, mut answered) = (false, 0);
                for peer in self.peers_of(node) {
                    let Some(frames) = self.give_frames(peer, node, (first, last)) else { continue };
                    answered += 1;
                    match mender.fill(&frames) {
                        Ok(filled) if filled.done || filled.next > first => moved = true,
                        Ok(_) => continue,
                        Err(error @ MendError::Refused { .. }) => {
                            self.trace.line(now_us, format_args!("n{peer}: {error}"));
                            continue;
                        }
                        Err(error) => return Err(at(error)),
                    }
                    break;
                }
                if !moved {
                    self.trace.line(now_us, format_args!("n{node} gets nothing of {first}..={last}"));
                    let hopeless = answered == self.nodes.len() - 1;
                    self.put_off(node, segment, hopeless);
                    return Ok(());
                }
            }
            SealedStep::Ready => {
                let Some(process) = &mut self.node_mut(node).process else { return Ok(()) };
                match process.wal.finish_sealed(mender) {
                    Ok(_) => {}
                    Err(MendError::Io { .. }) => {
                        // Whether the swap is durable nobody knows, and the log is closed.
                        let power = self.rng.chance(500);
                        self.crash(node, power);
                        return Ok(());
                    }
                    Err(error) => return Err(at(error)),
                }
                process.scrub.broken.remove(&segment);
                self.stats.scrub_mended += 1;
                self.trace.line(now_us, format_args!("n{node} mended segment {segment} while it ran"));
                return Ok(());
            }
        }
        if let Some(process) = &mut self.node_mut(node).process {
            process.scrub.mender = Some((segment, mender));
        }
        Ok(())
    }

    /// Mending did not go on, because of `error`.
    fn on_unmended(&mut self, node: u64, segment: SegmentId, error: &MendError) {
        self.trace.line(self.now_us, format_args!("n{node} does not mend segment {segment}: {error}"));
        match error {
            MendError::Whole { .. } | MendError::Gone { .. } => {
                if let Some(process) = &mut self.node_mut(node).process {
                    process.scrub.broken.remove(&segment);
                }
            }
            _ => self.put_off(node, segment, false),
        }
    }

    /// A segment stays damaged for now. When that lasts, the node is started again: what the others let go of it may then let go of too.
    fn put_off(&mut self, node: u64, segment: SegmentId, hopeless: bool) {
        let now_us = self.now_us;
        let Some(process) = &mut self.node_mut(node).process else { return };
        let Some(broken) = process.scrub.broken.get_mut(&segment) else { return };
        (broken.again_us, broken.hopeless) = (now_us + AGAIN_US, hopeless);
        if now_us >= broken.since_us + RESTART_US {
            let asked = mend::ask_at_start(process.wal.disk());
            self.crash(node, asked.is_err());
        }
    }

    /// Tells the replica whether damage keeps it from voting.
    fn tell_damage(&mut self, node: u64, life: u64) -> Checked {
        let now_us = self.now_us;
        let Some(process) = self.node_mut(node).alive(life) else { return Ok(()) };
        let keeps = |broken: &Broken| !broken.hopeless && now_us < broken.since_us + ABSTAIN_MAX_US;
        let damaged = process.scrub.broken.values().any(keeps);
        let told = std::mem::replace(&mut process.scrub.told, damaged);
        if damaged || told {
            return self.input_of(node, life, |replica, now| replica.note_damage(now, damaged));
        }
        Ok(())
    }
}
