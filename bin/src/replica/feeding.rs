//! Appends to followers: frames from memory, or from the log's files by way of the driver.

use graven_frame::Frame;
use graven_raft::{AppendHead, Index, NodeId, Role, Tick};

use super::Replica;
use super::effect::{Effect, Load, Now};

/// An append that the core wants sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Feeding {
    pub(super) to: NodeId,
    pub(super) head: AppendHead,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) max_bytes: usize,
}

impl Replica {
    /// Takes in the frames of [`Effect::Load`]; none when they could not be read.
    pub fn loaded(&mut self, now: Now, token: u64, frames: Vec<Frame>) {
        let Some(feeding) = self.loads.remove(&token) else { return };
        if self.core.term() != feeding.head.term || self.core.role() != Role::Leader {
            return;
        }
        if frames.is_empty() {
            self.core.unreachable(now.tick, feeding.to);
        } else {
            self.send_append(now.tick, &feeding, frames);
        }
        self.settle(now);
    }

    pub(super) fn feed(&mut self, tick: Tick, feeding: Feeding) {
        if feeding.first > feeding.last {
            return self.send_append(tick, &feeding, Vec::new());
        }
        let frames = self.log.frames(feeding.first, feeding.last, feeding.max_bytes);
        if !frames.is_empty() {
            return self.send_append(tick, &feeding, frames);
        }
        self.next_token += 1;
        let last = feeding.last.min(self.log.ring_first() - 1);
        let load = Load { token: self.next_token, first: feeding.first, last, max_bytes: feeding.max_bytes };
        self.loads.insert(self.next_token, feeding);
        self.effects.push_back(Effect::Load(load));
    }

    fn send_append(&mut self, tick: Tick, feeding: &Feeding, frames: Vec<Frame>) {
        let last = frames.last().map_or(feeding.head.prev.index, |frame| Index(frame.header().index));
        let bytes = frames.iter().map(Frame::encoded_len).sum::<usize>() as u64;
        self.core.sent(tick, feeding.to, feeding.head.request, last, bytes, feeding.head.epoch);
        self.effects.push_back(Effect::SendAppend { to: feeding.to, head: feeding.head, frames });
    }
}
