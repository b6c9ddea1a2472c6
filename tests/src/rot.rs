//! Rot: bytes of a node's log are not what was written any more. A running node finds that itself (`scrub.rs`). What the daemon does at a
//! start happens here too: the damage is
//! told as holes, which are closed with frames of other nodes that fit on both ends; a log that lost its end is cut with a durable
//! word of it, and the node has no vote before it has everything again.
//!
//! One node at a time, and the next one not before it has its vote again: what rots everywhere is lost, and is nobody's fault.
//!
//! Two things that graven does not promise to survive are undone by giving the node its disk back as it was: rot in the last bytes
//! before a sync point, which looks like an unfinished write, and rot that may have taken a vote, after which a person replaces the node.

use graven::replica::{LostEnd, restore};
use graven_frame::Frame;
use graven_wal::mend::{self, Marker, MendError, Mender};
use graven_wal::sim::SimDisk;
use graven_wal::{Recovered, Wal};

use crate::check::Checked;
use crate::cluster::{Cluster, Event};
use crate::node::StartError;

/// Bytes of frames asked for at a time.
const FETCH_BYTES: usize = 16 << 10;
/// How the files of a log are called.
const SEGMENTS: &str = ".seg";
/// Until a node tries again what nobody could give it.
const AGAIN_US: u64 = 20_000;

/// A node whose log rotted.
pub(crate) struct Sick {
    node: u64,
    since_us: u64,
    before: Before,
    /// Whether the end of its log was cut since.
    cut: bool,
}

/// What there was.
enum Before {
    /// Of a node that has not started since: its disk, what was in its log, and the bytes that rotted.
    Stopped(Box<(SimDisk, Recovered)>, Vec<Rotted>),
    /// Of one that has more now than it had then: the bytes that rotted.
    Running(Vec<Rotted>),
}

impl Sick {
    /// Which node.
    pub(crate) fn node(&self) -> u64 {
        self.node
    }

    /// Whether it is this node.
    pub(crate) fn is(&self, node: u64) -> bool {
        self.node == node
    }

    /// Whether it is this node, and its log lost its end.
    pub(crate) fn is_cut(&self, node: u64) -> bool {
        self.node == node && self.cut
    }

    /// Whether nothing is missing: neither an entry, nor the one that superseded another, nor a term or vote.
    fn is_whole(&self, found: &Recovered) -> bool {
        let end = |of: &Recovered| (of.last_index, of.last_chain, of.hard_state);
        match &self.before {
            Before::Stopped(before, _) => end(found) == end(&before.1),
            // Sealed segments rotted, behind which there is more: whether all that was synced is there the books say.
            Before::Running(_) => true,
        }
    }
}

/// File and place of a byte that rotted, and what it was.
type Rotted = (String, u64, u8);

/// What became of mending a log.
enum Mended {
    /// It is whole, or ends earlier, with its marker.
    Whole,
    /// Nobody who has what is missing can be reached.
    Later,
    /// It is more than graven promises to survive.
    Beyond,
}

impl Cluster {
    /// Bytes of a node rot, if no other node suffers from that: of a stopped one anywhere, of a running one in a sealed segment.
    pub(crate) fn rot_somewhere(&mut self, node: u64) {
        if self.sick.is_some() {
            return;
        }
        let runs = self.node(node).process.is_some();
        let before = if runs && self.profile.scrubs && self.rng.chance(700) {
            self.rot_running(node)
        } else {
            self.rot_stopped(node)
        };
        let Some(before) = before else { return };
        self.stats.rots += 1;
        self.sick = Some(Sick { node, since_us: self.now_us, before, cut: false });
    }

    fn rot_stopped(&mut self, node: u64) -> Option<Before> {
        let power = self.rng.chance(self.profile.power);
        if self.node(node).process.is_some() {
            self.crash(node, power);
        }
        let before = self.node(node).disk.copy();
        let (_, found) = Wal::open(before.copy(), self.node(node).options()).ok()?;
        let files: Vec<String> = before.names().into_iter().filter(|name| name.ends_with(SEGMENTS)).collect();
        if files.is_empty() {
            return None;
        }
        let mut rotted = Vec::new();
        for _ in 0..self.rng.between(1, 4) {
            let name = self.rng.pick(&files).clone();
            rotted.extend(self.rot_file(node, &name));
        }
        Some(Before::Stopped(Box::new((before, found)), rotted))
    }

    fn rot_running(&mut self, node: u64) -> Option<Before> {
        let process = self.node(node).process.as_ref()?;
        let (first, durable) = (process.reader.first_index(), process.replica.view().durable_index);
        let active = process.reader.segment_of(durable)?;
        let index = self.rng.between(first, durable + 1);
        let segment = self.node(node).process.as_ref()?.reader.segment_of(index).filter(|it| *it != active)?;
        let name = format!("{segment}{SEGMENTS}");
        let mut rotted = Vec::new();
        for _ in 0..self.rng.between(1, 3) {
            rotted.extend(self.rot_file(node, &name));
        }
        Some(Before::Running(rotted))
    }

    /// A bit of a file flips, or a sector reads as zeroes. Returns what stood there.
    fn rot_file(&mut self, node: u64, name: &str) -> Vec<Rotted> {
        let disk = self.node(node).disk.clone();
        let bytes = disk.bytes_of(name).unwrap_or_default();
        let at = self.rng.below((bytes.len() as u64).max(1));
        self.trace.line(self.now_us, format_args!("n{node} rots in {name} at {at}"));
        if self.rng.chance(300) {
            // A sector that the medium gives back as zeroes.
            let sector = at / 512 * 512;
            let there = (sector..sector + 512).zip(bytes.iter().skip(sector as usize));
            let before = there.map(|(at, byte)| (name.to_owned(), at, *byte)).collect::<Vec<_>>();
            before.iter().for_each(|(_, at, _)| disk.rot(name, *at, |byte| *byte = 0));
            return before;
        }
        let bit = self.rng.below(8);
        disk.rot(name, at, |byte| *byte ^= 1 << bit);
        bytes.get(at as usize).map(|byte| (name.to_owned(), at, *byte)).into_iter().collect()
    }

    /// Whether a node that does not start, or starts with less than it had, is sick. If so, it is seen to.
    pub(crate) fn maybe_mend(
        &mut self,
        node: u64,
        started: Result<&Recovered, &StartError>,
    ) -> Result<bool, crate::check::Violation> {
        let Some(sick) = self.sick.as_mut().filter(|sick| sick.node == node) else { return Ok(false) };
        match started {
            Ok(found) if sick.cut || sick.is_whole(found) => {
                // From here on it has more than its disk had then.
                if let Before::Stopped(_, rotted) = &mut sick.before {
                    sick.before = Before::Running(std::mem::take(rotted));
                }
                return Ok(false);
            }
            // The window of P5: no sync point followed the bytes that rotted.
            Ok(_) => self.give_back(node),
            Err(StartError::Open(graven_wal::OpenError::Io { .. })) => return Ok(false),
            Err(_) => match self.mend(node)? {
                Mended::Whole | Mended::Later => {}
                Mended::Beyond => self.give_back(node),
            },
        }
        self.node_mut(node).process = None;
        self.schedule(self.now_us + AGAIN_US, Event::Start { node });
        Ok(true)
    }

    /// Does before a start what the last life of `node` could not do while it ran. Whether the node does not start yet.
    pub(crate) fn mend_what_was_left(&mut self, node: u64) -> Result<bool, crate::check::Violation> {
        let disk = self.node(node).disk.clone();
        if !mend::is_asked(&disk) {
            return Ok(false);
        }
        match self.mend(node)? {
            // Not mended yet, it starts as it is, and finds the damage again.
            Mended::Whole | Mended::Later => {}
            Mended::Beyond => self.give_back(node),
        }
        let failed = mend::unask(&self.node(node).disk).is_err();
        if failed {
            self.schedule(self.now_us + AGAIN_US, Event::Start { node });
        }
        Ok(failed)
    }

    fn give_back(&mut self, node: u64) {
        if let Some(sick) = self.sick.take() {
            self.trace.line(self.now_us, format_args!("n{node} is given its disk back"));
            match sick.before {
                Before::Stopped(before, _) => self.node_mut(node).disk = before.0,
                Before::Running(rotted) => {
                    // In the order in which it happened, the later change knows only what the earlier one left.
                    let disk = &self.node(node).disk;
                    rotted.iter().rev().for_each(|(name, at, was)| disk.rot(name, *at, |byte| *byte = *was));
                }
            }
        }
    }

    /// Mends the log of `node` as far as others can be reached.
    fn mend(&mut self, node: u64) -> Result<Mended, crate::check::Violation> {
        let disk = self.node(node).disk.clone();
        let origin = restore::origin(&disk);
        let Ok(mut mender) = Mender::open_behind(disk.clone(), self.node(node).options(), origin) else {
            return Ok(Mended::Beyond);
        };
        mender.note_committed(restore::committed_by_checkpoints(&disk));
        if mender.holes().is_empty() && !mend::is_asked(&disk) {
            // The log looks whole, and a checkpoint knows of more: the window of P5 again, after which a person replaces the node.
            return Ok(Mended::Beyond);
        }
        for hole in mender.holes() {
            self.trace.line(self.now_us, format_args!("n{node} has a hole: {hole}"));
        }
        while let Some(wanted) = mender.wanted() {
            let mut moved = false;
            let (mut answered, others) = (0, self.nodes.len() - 1);
            for peer in self.peers_of(node) {
                let range = (wanted.first, wanted.last);
                let Some(frames) = self.give_frames(peer, node, range) else { continue };
                answered += 1;
                match mender.fill(wanted.hole, &frames) {
                    Ok(filled) if filled.done || filled.next > wanted.first => moved = true,
                    Ok(_) | Err(MendError::Refused { .. }) => continue,
                    Err(_) => return Ok(Mended::Beyond),
                }
                break;
            }
            if !moved && answered == others {
                // Every other node says that it never had them: they were never committed.
                if mender.give_up(wanted.hole).is_err() {
                    return Ok(Mended::Beyond);
                }
            } else if !moved {
                return Ok(Mended::Later);
            }
        }
        if let Some(kept) = mender.kept_before_tail() {
            if graven_snapshot::move_above(&disk, kept, restore::CUT_CHECKPOINTS).is_err() {
                return Ok(Mended::Beyond);
            }
            let Ok(marker) = mender.cut_tail() else { return Ok(Mended::Beyond) };
            self.trace.line(self.now_us, format_args!("n{node} lost the end of its log, behind {}", marker.last_kept));
            self.stats.cut_ends += 1;
            if let Some(sick) = &mut self.sick {
                sick.cut = true;
            }
        }
        let Ok(mended) = mender.finish() else { return Ok(Mended::Beyond) };
        self.trace.line(self.now_us, format_args!("n{node} is mended with {} entries", mended.entries));
        self.stats.mended += mended.entries;
        Ok(if mended.hard_state_certain && mended.left.is_empty() { Mended::Whole } else { Mended::Beyond })
    }

    pub(crate) fn peers_of(&mut self, node: u64) -> Vec<u64> {
        let count = self.nodes.len() as u64;
        let first = self.rng.below(count);
        (0..count).map(|step| (first + step) % count + 1).filter(|peer| *peer != node).collect()
    }

    /// What `peer` gives of a range to `node`: frames that are durable there and verified. `None` when it cannot be reached.
    pub(crate) fn give_frames(&self, peer: u64, node: u64, (first, last): (u64, u64)) -> Option<Vec<Frame>> {
        let process = self.node(peer).process.as_ref().filter(|_| !self.network.is_cut(peer, node))?;
        let last = last.min(process.replica.view().durable_index);
        let frames = process.reader.frames(first, last.max(first), FETCH_BYTES).unwrap_or_default();
        Some(
            frames.into_iter().take_while(|frame| frame.header().index <= last && frame.verify(None).is_ok()).collect(),
        )
    }

    /// A node that has its vote again is not sick any more. One that scrubs has read everything once more too, and found nothing wrong.
    pub(crate) fn maybe_well(&mut self, node: u64) -> Checked {
        let Some(since_us) = self.sick.as_ref().filter(|sick| sick.node == node).map(|sick| sick.since_us) else {
            return Ok(());
        };
        let is_well = self.node(node).process.as_ref().is_some_and(|process| {
            let is_whole = !self.profile.scrubs || process.scrub.is_clean_since(since_us);
            is_whole && !process.replica.view().recovering
        });
        if is_well {
            self.trace.line(self.now_us, format_args!("n{node} is well"));
            self.sick = None;
            self.checkers.durability.well(node);
        }
        Ok(())
    }
}

/// The entry that a log which lost its end must have again; an error when a vote may be lost with it.
pub(crate) fn recovering(disk: &SimDisk) -> Result<Option<LostEnd>, StartError> {
    match Marker::read(disk) {
        Ok(marker) if marker.as_ref().is_none_or(|marker| marker.hard_state_certain) => {
            Ok(marker.map(|marker| LostEnd { index: marker.highest_index, term: marker.highest_term }))
        }
        other => Err(StartError::Read(format!("a vote may be lost: {other:?}"))),
    }
}
