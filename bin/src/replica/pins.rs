//! The log that a transfer's receiver needs next is kept by whoever leads, though it is trimmed.
//!
//! A follower whose entries are gone is given a checkpoint and then what follows it. While it fetches the one and is fed the other, trims go
//! on: they are committed entries, which all nodes agree on, and readers see them at once. What waits is this node's letting go of its
//! files. Without that a cluster that trims faster than a follower is fed gives it one checkpoint after the other, for ever.
//!
//! A pin is bounded by [`PIN_CHECKPOINTS_MAX`] and [`PIN_US_MAX`], and ends early when the follower is silent for [`PIN_SILENT_US`], when
//! this node's disk is full, and with the leadership. Past a bound the log is let go of, an alarm says so, and the follower is offered the
//! checkpoint with which the log then begins.

use std::collections::BTreeMap;

use graven_raft::{Follower, NodeId, ProgressState, Tick};

use super::Replica;
use super::checkpoint::Kept;
use super::effect::{Alarm, Effect};
use super::planted::{Bug, is_planted};

/// Log kept for transfers at most, in checkpoints; one is made each segment. At 64 MiB a segment this is 1 GiB: ten seconds of the
/// fastest appends, in which any checkpoint is fetched, and little against a disk that holds a log.
pub(super) const PIN_CHECKPOINTS_MAX: usize = 16;
/// And this long: what is fed for five minutes and has not come nearer by then is not going to.
pub(super) const PIN_US_MAX: u64 = 300_000_000;
/// A follower that restarts is back before this; one that stays away begins anew when it comes.
pub(super) const PIN_SILENT_US: u64 = 30_000_000;

/// What is kept for followers, by follower; at most one for each.
#[derive(Debug, Default)]
pub(super) struct Pins(BTreeMap<NodeId, Pin>);

#[derive(Debug, Clone, Copy)]
struct Pin {
    /// The checkpoint that was offered: what follows this entry is needed.
    index: u64,
    since: Tick,
}

/// Why a pin is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The follower needs nothing any more that is about to go, or cannot be waited for.
    Quietly,
    /// The transfer starts over: why.
    Loudly(&'static str),
}

impl Pins {
    /// A follower is offered the checkpoint that ends at `index`. Offered the same again, its time goes on.
    /// Returns whether it is another one than before.
    pub(super) fn offered(&mut self, to: NodeId, index: u64, now: Tick) -> bool {
        let new = self.0.get(&to).is_none_or(|pin| pin.index != index);
        if new {
            self.0.insert(to, Pin { index, since: now });
        }
        new
    }

    /// The leadership is over.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

impl Pin {
    /// The last entry that may go.
    fn position(&self, follower: &Follower) -> u64 {
        match follower.state {
            ProgressState::Snapshot => self.index,
            _ => self.index.max(follower.matched.0),
        }
    }

    fn judge(&self, follower: &Follower, now: Tick, kept: &[Kept], until: u64) -> Option<Over> {
        let position = self.position(follower);
        let newest = kept.last().map_or(until, |kept| kept.index);
        let held = kept.iter().filter(|kept| kept.index > position && kept.index <= until).count();
        if position >= newest || now.since(follower.heard) > PIN_SILENT_US {
            Some(Over::Quietly)
        } else if held > PIN_CHECKPOINTS_MAX {
            Some(Over::Loudly("more log came meanwhile than is kept for that"))
        } else if held > 0 && now.since(self.since) > PIN_US_MAX {
            Some(Over::Loudly("it takes longer than log is kept for that"))
        } else {
            None
        }
    }
}

impl Replica {
    /// The last entry up to which the log may go, of those up to `until`, for the transfers under way. Ends those that went on for too long.
    pub(super) fn unpinned(&mut self, now: Tick, until: u64) -> u64 {
        if is_planted(Bug::TransferUnpinned) {
            return until;
        }
        let (mut lowest, mut over) = (until, Vec::new());
        for (node, pin) in &self.pins.0 {
            let follower = self.core.progress().find(|follower| follower.node == *node);
            let ended = match &follower {
                Some(_) if self.disk_full => Some(Over::Loudly("the disk is full")),
                Some(follower) => pin.judge(follower, now, &self.checkpoints.kept, until),
                None => Some(Over::Quietly),
            };
            match (ended, follower) {
                (None, Some(follower)) => lowest = lowest.min(pin.position(&follower)),
                (ended, _) => over.push((*node, pin.index, ended)),
            }
        }
        for (node, index, ended) in over {
            self.pins.0.remove(&node);
            if let Some(Over::Loudly(why)) = ended {
                let words = format!(
                    "the transfer of the checkpoint at entry {index} and what follows it to node {} starts over from a newer one: {why}",
                    node.0
                );
                self.effects.push_back(Effect::Alarm(Alarm::Core(words)));
            }
        }
        lowest
    }
}

#[cfg(test)]
mod tests {
    use graven_raft::Index;

    use super::*;

    fn follower(state: ProgressState, matched: u64, heard: Tick) -> Follower {
        Follower {
            node: NodeId(2),
            matched: Index(matched),
            next: Index(matched + 1),
            state,
            inflight_bytes: 0,
            heard,
            round: 0,
            lost: None,
            full: false,
        }
    }

    fn kept(count: u64) -> Vec<Kept> {
        (1..=count).map(|nth| Kept { index: nth * 10, term: 1, next_offset: nth * 10 }).collect()
    }

    const PIN: Pin = Pin { index: 10, since: Tick(0) };

    #[test]
    fn what_follows_the_offered_checkpoint_is_kept_and_then_what_follows_the_last_entry_it_has() {
        let fetching = follower(ProgressState::Snapshot, 7, Tick(0));
        let fed = follower(ProgressState::Replicate, 27, Tick(0));
        assert_eq!((PIN.position(&fetching), PIN.position(&fed)), (10, 27));
        assert_eq!(PIN.judge(&fetching, Tick(1), &kept(4), 30), None);
        assert_eq!(PIN.judge(&fed, Tick(1), &kept(4), 30), None);
        let there = follower(ProgressState::Replicate, 40, Tick(0));
        assert_eq!(PIN.judge(&there, Tick(1), &kept(4), 30), Some(Over::Quietly), "it has what no release can take");
    }

    #[test]
    fn bytes_time_and_silence_end_it() {
        let at = Tick(PIN_US_MAX + 1);
        let fetching = |heard| follower(ProgressState::Snapshot, 7, heard);
        let most = PIN_CHECKPOINTS_MAX as u64 + 1;
        assert_eq!(PIN.judge(&fetching(Tick(0)), Tick(1), &kept(most), most * 10), None);
        let more = most + 1;
        assert!(matches!(PIN.judge(&fetching(Tick(0)), Tick(1), &kept(more), more * 10), Some(Over::Loudly(_))));
        assert!(matches!(PIN.judge(&fetching(at), at, &kept(4), 30), Some(Over::Loudly(_))));
        assert_eq!(PIN.judge(&fetching(at), at, &kept(4), 10), None, "nothing waits for it");
        assert_eq!(PIN.judge(&fetching(Tick(0)), Tick(PIN_SILENT_US + 1), &kept(4), 30), Some(Over::Quietly));
    }

    #[test]
    fn an_offer_made_again_goes_on_and_another_begins_anew() {
        let mut pins = Pins::default();
        pins.offered(NodeId(2), 10, Tick(5));
        pins.offered(NodeId(2), 10, Tick(9));
        assert_eq!(pins.0[&NodeId(2)].since, Tick(5));
        pins.offered(NodeId(2), 20, Tick(9));
        assert_eq!((pins.0[&NodeId(2)].index, pins.0[&NodeId(2)].since), (20, Tick(9)));
    }
}
