//! The network of the labs: it tells requests from replies, loses either, is late with either, and counts.
//!
//! What is counted as a request is everything a node says of itself: votes and pre-votes asked for, appends, heartbeats, commit
//! notices (one way, no reply), orders to stand, questions for a read index. The labs know two of these as RPCs; to count all
//! makes their limits tighter. Replies are what answers one of them. Bytes are those of requests and replies, sent or lost.
//! Frames count with their encoded length; heads and control messages with the length of their JSON, which is longer than what a
//! lane carries.

use graven_frame::Frame;
use graven_raft::{AppendHead, Message};
use serde::Serialize;

use crate::rng::Rng;

/// Nodes there may be, and one unused place because ids start at 1.
const PLACES: usize = 8;
/// Requests and replies lost in an unreliable network, in thousandths.
const LOSS: u64 = 100;
/// How late a request may be in an unreliable network.
const SHORT_DELAY_US: u64 = 27_000;
/// Replies that are very late under long reordering, in nine hundredths.
const LONG_REORDERING: u64 = 600;

/// See the module's documentation.
#[derive(Debug)]
pub struct Traffic {
    rng: Rng,
    connected: [bool; PLACES],
    reliable: bool,
    long_reordering: bool,
    /// When the last message of each link arrives: a reliable network keeps order.
    arrives: [[u64; PLACES]; PLACES],
    sent: [u64; PLACES],
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Request,
    Reply,
}

impl Traffic {
    /// A reliable network in which everybody is connected.
    #[must_use]
    pub fn new(rng: Rng) -> Traffic {
        Traffic {
            rng,
            connected: [true; PLACES],
            reliable: true,
            long_reordering: false,
            arrives: [[0; PLACES]; PLACES],
            sent: [0; PLACES],
            bytes: 0,
        }
    }

    /// Whether `node` reaches the others and is reached.
    #[must_use]
    pub fn is_connected(&self, node: u64) -> bool {
        self.connected[node as usize]
    }

    /// Connects `node` to all who are connected, or cuts it off from all.
    pub fn set_connected(&mut self, node: u64, connected: bool) {
        self.connected[node as usize] = connected;
    }

    /// An unreliable network delays requests by up to 27 ms, so that they overtake each other, and loses a tenth of the
    /// requests and a tenth of the replies.
    pub fn set_reliable(&mut self, reliable: bool) {
        self.reliable = reliable;
    }

    /// Two thirds of the replies come 200 to 2,200 ms late.
    pub fn set_long_reordering(&mut self, on: bool) {
        self.long_reordering = on;
    }

    /// Requests sent by `node` so far.
    #[must_use]
    pub fn requests(&self, node: u64) -> u64 {
        self.sent[node as usize]
    }

    /// Requests sent by all so far.
    #[must_use]
    pub fn total_requests(&self) -> u64 {
        self.sent.iter().sum()
    }

    /// Bytes sent by all so far.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.bytes
    }

    /// When a control message sent now arrives, if it does.
    pub(crate) fn message(&mut self, now_us: u64, from: u64, to: u64, message: &Message) -> Option<u64> {
        let class = match message {
            Message::PreVoteReply { .. }
            | Message::VoteReply { .. }
            | Message::AppendReply { .. }
            | Message::HeartbeatReply { .. }
            | Message::ReadIndexReply { .. }
            | Message::InstallReply { .. } => Class::Reply,
            Message::PreVote { .. }
            | Message::Vote { .. }
            | Message::Heartbeat { .. }
            | Message::Commit { .. }
            | Message::TimeoutNow { .. }
            | Message::ReadIndex { .. }
            | Message::Install { .. }
            | Message::Report { .. } => Class::Request,
        };
        self.pass(now_us, from, to, class, encoded(message))
    }

    /// When an append sent now arrives, if it does.
    pub(crate) fn append(
        &mut self,
        now_us: u64,
        from: u64,
        to: u64,
        head: &AppendHead,
        frames: &[Frame],
    ) -> Option<u64> {
        let bytes = encoded(head) + frames.iter().map(Frame::encoded_len).sum::<usize>();
        self.pass(now_us, from, to, Class::Request, bytes)
    }

    fn pass(&mut self, now_us: u64, from: u64, to: u64, class: Class, bytes: usize) -> Option<u64> {
        let (source, target) = (from as usize, to as usize);
        self.bytes += bytes as u64;
        self.sent[source] += u64::from(class == Class::Request);
        if !self.connected[source] || !self.connected[target] {
            return None;
        }
        let at = now_us + self.rng.between(40, 200);
        if self.reliable && !self.long_reordering {
            let at = at.max(self.arrives[source][target]);
            self.arrives[source][target] = at;
            return Some(at);
        }
        if !self.reliable && self.rng.chance(LOSS) {
            return None;
        }
        match class {
            Class::Request if !self.reliable => Some(at + self.rng.below(SHORT_DELAY_US)),
            Class::Reply if self.long_reordering && self.rng.below(900) < LONG_REORDERING => {
                let most = 1 + self.rng.below(2_000_000);
                Some(at + 200_000 + self.rng.below(most))
            }
            Class::Request | Class::Reply => Some(at),
        }
    }
}

fn encoded(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |bytes| bytes.len())
}

#[cfg(test)]
mod tests {
    use graven_raft::{Index, Term};

    use super::*;

    fn beat(round: u64) -> Message {
        Message::Heartbeat { term: Term(1), commit: Index(1), round }
    }

    fn answer(round: u64) -> Message {
        Message::HeartbeatReply { term: Term(1), round, last: Index(1), verified: Index(1), disk_full: false }
    }

    #[test]
    fn a_reliable_network_keeps_order_and_loses_nothing_and_a_cut_is_both_ways() {
        let mut traffic = Traffic::new(Rng::new(1));
        let mut last = 0;
        for round in 0..1_000 {
            let at = traffic.message(round, 1, 2, &beat(round)).expect("nothing is lost");
            assert!(at >= last);
            last = at;
        }
        traffic.set_connected(2, false);
        assert_eq!(traffic.message(0, 1, 2, &beat(0)), None);
        assert_eq!(traffic.message(0, 2, 1, &beat(0)), None);
        assert!(traffic.message(0, 1, 3, &beat(0)).is_some());
    }

    #[test]
    fn an_unreliable_network_loses_a_tenth_each_way_and_reorders_requests() {
        let mut traffic = Traffic::new(Rng::new(2));
        traffic.set_reliable(false);
        let requests: Vec<_> = (0..10_000).filter_map(|at| traffic.message(at, 1, 2, &beat(at))).collect();
        let replies: Vec<_> = (0..10_000).filter_map(|at| traffic.message(at, 2, 1, &answer(at))).collect();
        for (name, arrived) in [("requests", &requests), ("replies", &replies)] {
            assert!((8_800..9_200).contains(&arrived.len()), "{} {name} arrive", arrived.len());
        }
        assert!(requests.windows(2).any(|pair| pair[0] > pair[1] + 20_000));
        assert!(requests.iter().zip(0..).all(|(at, _)| *at < 10_000 + 27_200));
    }

    #[test]
    fn long_reordering_holds_two_thirds_of_the_replies_back_and_no_request() {
        let mut traffic = Traffic::new(Rng::new(3));
        traffic.set_long_reordering(true);
        let late = |at: &Option<u64>| at.is_some_and(|at| at >= 200_000);
        let replies = (0..9_000).map(|_| traffic.message(0, 2, 1, &answer(1))).filter(late).count();
        assert!((5_700..6_300).contains(&replies), "{replies} of 9,000 are late");
        assert_eq!((0..9_000).map(|_| traffic.message(0, 1, 2, &beat(1))).filter(late).count(), 0);
    }

    #[test]
    fn requests_are_counted_by_sender_and_bytes_for_all() {
        let mut traffic = Traffic::new(Rng::new(4));
        let _ = traffic.message(0, 1, 2, &beat(1));
        let one = traffic.total_bytes();
        let _ = traffic.message(0, 2, 1, &answer(1));
        assert_eq!((traffic.requests(1), traffic.requests(2), traffic.total_requests()), (1, 0, 1));
        assert!(one > 20 && traffic.total_bytes() > one);
    }
}
