//! Rot: bytes of a stopped node's log are not what was written any more. What the daemon does at a start happens here too: the damage is
//! told as holes, which are closed with frames of other nodes that fit on both ends; a log that lost its end is cut with a durable
//! word of it, and the node has no vote before it has everything again.
//!
//! One node at a time, and the next one not before it has its vote again: what rots everywhere is lost, and is nobody's fault.
//!
//! Two things that graven does not promise to survive are undone by giving the node its disk back as it was: rot in the last bytes
//! before a sync point, which looks like an unfinished write, and rot that may have taken a vote, after which a person replaces the node.

use graven::replica::{LostEnd, restore};
use graven_frame::Frame;
use graven_wal::mend::{Marker, MendError, Mender};
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
    /// Its disk before.
    before: SimDisk,
    /// What was in its log.
    found: Recovered,
    /// Whether the end of its log was cut since.
    cut: bool,
}

impl Sick {
    /// Whether it is this node, and its log lost its end.
    pub(crate) fn is_cut(&self, node: u64) -> bool {
        self.node == node && self.cut
    }

    /// Whether nothing is missing: neither an entry, nor the one that superseded another, nor a term or vote.
    fn is_whole(&self, found: &Recovered) -> bool {
        let end = |of: &Recovered| (of.last_index, of.last_chain, of.hard_state);
        end(found) == end(&self.found)
    }
}

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
    /// Bytes of a stopped node rot, if no other node suffers from that.
    pub(crate) fn rot_somewhere(&mut self, node: u64) {
        if self.sick.is_some() {
            return;
        }
        let power = self.rng.chance(self.profile.power);
        if self.node(node).process.is_some() {
            self.crash(node, power);
        }
        let before = self.node(node).disk.copy();
        let Ok((_, found)) = Wal::open(before.copy(), self.node(node).options()) else { return };
        let files: Vec<String> = before.names().into_iter().filter(|name| name.ends_with(SEGMENTS)).collect();
        if files.is_empty() {
            return;
        }
        for _ in 0..self.rng.between(1, 4) {
            let name = self.rng.pick(&files).clone();
            let len = before.bytes_of(&name).map_or(0, |bytes| bytes.len() as u64);
            let at = self.rng.below(len.max(1));
            let disk = &self.nodes[node as usize - 1].disk;
            if self.rng.chance(300) {
                // A sector that the medium gives back as zeroes.
                (at / 512 * 512..at / 512 * 512 + 512)
                    .filter(|at| *at < len)
                    .for_each(|at| disk.rot(&name, at, |byte| *byte = 0));
            } else {
                let bit = self.rng.below(8);
                disk.rot(&name, at, |byte| *byte ^= 1 << bit);
            }
            self.trace.line(self.now_us, format_args!("n{node} rots in {name} at {at}"));
        }
        self.stats.rots += 1;
        self.sick = Some(Sick { node, before, found, cut: false });
    }

    /// Whether a node that does not start, or starts with less than it had, is sick. If so, it is seen to.
    pub(crate) fn maybe_mend(
        &mut self,
        node: u64,
        started: Result<&Recovered, &StartError>,
    ) -> Result<bool, crate::check::Violation> {
        let Some(sick) = self.sick.as_ref().filter(|sick| sick.node == node) else { return Ok(false) };
        match started {
            Ok(found) if sick.cut || sick.is_whole(found) => return Ok(false),
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

    fn give_back(&mut self, node: u64) {
        if let Some(sick) = self.sick.take() {
            self.trace.line(self.now_us, format_args!("n{node} is given its disk back"));
            self.node_mut(node).disk = sick.before;
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
        if mender.holes().is_empty() {
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

    fn peers_of(&mut self, node: u64) -> Vec<u64> {
        let count = self.nodes.len() as u64;
        let first = self.rng.below(count);
        (0..count).map(|step| (first + step) % count + 1).filter(|peer| *peer != node).collect()
    }

    /// What `peer` gives of a range to `node`: frames that are durable there and verified. `None` when it cannot be reached.
    fn give_frames(&self, peer: u64, node: u64, (first, last): (u64, u64)) -> Option<Vec<Frame>> {
        let process = self.node(peer).process.as_ref().filter(|_| !self.network.is_cut(peer, node))?;
        let last = last.min(process.replica.view().durable_index);
        let frames = process.reader.frames(first, last.max(first), FETCH_BYTES).unwrap_or_default();
        Some(
            frames.into_iter().take_while(|frame| frame.header().index <= last && frame.verify(None).is_ok()).collect(),
        )
    }

    /// A node that has its vote again is not sick any more.
    pub(crate) fn maybe_well(&mut self, node: u64) -> Checked {
        let is_well = self.sick.as_ref().is_some_and(|sick| sick.node == node)
            && self.replica(node).is_some_and(|replica| !replica.view().recovering);
        if is_well {
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
