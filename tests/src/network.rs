//! The network between nodes: latency, loss, doubling, reordering, and cuts that need not be symmetric.

use graven_frame::Frame;
use graven_raft::{AppendHead, Message};

use crate::lab::traffic::Traffic;
use crate::profile::Profile;
use crate::rng::Rng;

/// Nodes a cluster may have, those that come later included, and one unused place because ids start at 1.
const PLACES: usize = 12;

/// See the module's documentation.
#[derive(Debug)]
pub struct Network {
    rng: Rng,
    /// `cut[from][to]`: nothing passes that way.
    cut: [[bool; PLACES]; PLACES],
    /// `last_words[from][to]`: so many messages pass that way, and then none.
    last_words: [[Option<u64>; PLACES]; PLACES],
    /// When the last message of each link arrives; keeps order where nothing is reordered.
    arrives: [[u64; PLACES]; PLACES],
    latency_us: u64,
    loss: u64,
    doubling: u64,
    reordering: u64,
    /// Messages lost to chance or cuts.
    pub lost: u64,
    /// Takes the place of all of the above, and counts.
    pub(crate) traffic: Option<Traffic>,
    /// Messages that arrive twice.
    pub doubled: u64,
    /// Messages that keep no order.
    pub reordered: u64,
}

/// The simulated times at which the copies of one message arrive.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Arrivals {
    /// The message, unless it is lost.
    pub first: Option<u64>,
    /// A second copy.
    pub second: Option<u64>,
}

impl Network {
    /// A network that misbehaves as `profile` says.
    #[must_use]
    pub fn new(rng: Rng, profile: &Profile) -> Network {
        Network {
            rng,
            cut: [[false; PLACES]; PLACES],
            last_words: [[None; PLACES]; PLACES],
            arrives: [[0; PLACES]; PLACES],
            latency_us: profile.latency_us,
            loss: profile.loss,
            doubling: profile.doubling,
            reordering: profile.reordering,
            lost: 0,
            doubled: 0,
            reordered: 0,
            traffic: None,
        }
    }

    /// When `message` arrives, sent now, if it does.
    pub fn send_message(&mut self, now_us: u64, from: u64, to: u64, message: &Message) -> Arrivals {
        match &mut self.traffic {
            Some(traffic) => Arrivals { first: traffic.message(now_us, from, to, message), second: None },
            None => self.send(now_us, from, to),
        }
    }

    /// When an append arrives, sent now, if it does.
    pub fn send_append(&mut self, now_us: u64, from: u64, to: u64, head: &AppendHead, frames: &[Frame]) -> Arrivals {
        match &mut self.traffic {
            Some(traffic) => Arrivals { first: traffic.append(now_us, from, to, head, frames), second: None },
            None => self.send(now_us, from, to),
        }
    }

    /// When a message sent now arrives, if it does.
    pub fn send(&mut self, now_us: u64, from: u64, to: u64) -> Arrivals {
        let (source, target) = (from as usize, to as usize);
        if self.cut[source][target] || self.is_muted(source, target) || self.rng.chance(self.loss) {
            self.lost += 1;
            return Arrivals::default();
        }
        let mut at = now_us + self.rng.between(40, self.latency_us);
        if self.rng.chance(self.reordering) {
            at += self.rng.below(20_000);
            self.reordered += 1;
        } else {
            at = at.max(self.arrives[source][target]);
            self.arrives[source][target] = at;
        }
        let second = self.rng.chance(self.doubling);
        self.doubled += u64::from(second);
        let second = second.then(|| at + self.rng.below(50_000));
        Arrivals { first: Some(at), second }
    }

    /// Cuts the way from `from` to `to`.
    pub fn cut(&mut self, from: u64, to: u64) {
        self.cut[from as usize][to as usize] = true;
    }

    /// Whether nothing passes from `from` to `to`.
    #[must_use]
    pub fn is_cut(&self, from: u64, to: u64) -> bool {
        self.cut[from as usize][to as usize]
    }

    /// Cuts `node` off from all others, both ways.
    pub fn isolate(&mut self, node: u64) {
        for other in 1..PLACES as u64 {
            if other != node {
                self.cut(node, other);
                self.cut(other, node);
            }
        }
    }

    /// Mends all cuts.
    pub fn heal(&mut self) {
        self.cut = [[false; PLACES]; PLACES];
        self.last_words = [[None; PLACES]; PLACES];
    }

    /// Mends all cuts and stops misbehaving.
    pub fn calm(&mut self) {
        self.heal();
        (self.loss, self.doubling, self.reordering) = (0, 0, 0);
        self.latency_us = Profile::CALM.latency_us;
    }

    /// Cuts in a way that can stay: somebody can still gather a quorum of `nodes` nodes whose logs are equal. The one it is about
    /// is `leader`, who then hears nobody, or reaches one node that others reach as well. Returns the shape's name.
    pub fn lasting_cut(&mut self, nodes: u64, leader: u64) -> &'static str {
        let hub = leader % nodes + 1;
        let others = |of: u64| (1..=nodes).filter(move |node| *node != of);
        match self.rng.below(4) {
            0 => {
                self.isolate(leader);
                "the leader is alone"
            }
            1 => {
                others(leader).for_each(|peer| self.cut(peer, leader));
                "the leader hears nobody"
            }
            2 => {
                for from in others(hub) {
                    others(hub).filter(|to| *to != from).for_each(|to| self.cut(from, to));
                }
                "all reach a hub only"
            }
            _ => {
                for peer in others(leader).filter(|peer| *peer != hub) {
                    self.cut(peer, leader);
                    self.cut(leader, peer);
                }
                "the leader reaches a bridge only"
            }
        }
    }

    /// Lets a few more messages out of `node` to each of `nodes` nodes, or none, and cuts it then.
    pub fn mute_after_few(&mut self, node: u64, nodes: u64) {
        for peer in (1..=nodes).filter(|peer| *peer != node) {
            let few = if self.rng.chance(500) { 0 } else { self.rng.below(7) };
            self.last_words[node as usize][peer as usize] = Some(few);
        }
    }

    /// Whether a message may still leave, where only a few may; it is counted.
    fn is_muted(&mut self, from: usize, to: usize) -> bool {
        match &mut self.last_words[from][to] {
            None => false,
            Some(0) => true,
            Some(few) => {
                *few -= 1;
                false
            }
        }
    }

    /// Makes one of the shapes of partition among `nodes` nodes; returns its name.
    pub fn partition(&mut self, nodes: u64) -> &'static str {
        let one = self.rng.between(1, nodes + 1);
        let other = self.rng.between(1, nodes + 1);
        match self.rng.below(5) {
            0 => {
                self.isolate(one);
                "isolate"
            }
            1 => {
                let side = self.rng.draw();
                for from in 1..=nodes {
                    for to in 1..=nodes {
                        if (side >> from) & 1 != (side >> to) & 1 {
                            self.cut(from, to);
                        }
                    }
                }
                "halves"
            }
            // Hears all, is heard by nobody; or the other way round.
            2 => {
                let deaf = self.rng.chance(500);
                for peer in (1..=nodes).filter(|peer| *peer != one) {
                    let (from, to) = if deaf { (peer, one) } else { (one, peer) };
                    self.cut(from, to);
                }
                "one-way"
            }
            3 => {
                self.cut(one, other);
                self.cut(other, one);
                "pair"
            }
            // Everybody reaches the hub, nobody else reaches anybody.
            _ => {
                for from in (1..=nodes).filter(|node| *node != one) {
                    for to in (1..=nodes).filter(|node| *node != one && *node != from) {
                        self.cut(from, to);
                    }
                }
                "hub"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_one_way_and_is_healed() {
        let mut network = Network::new(Rng::new(1), &Profile::CALM);
        network.cut(1, 2);
        assert_eq!(network.send(0, 1, 2), Arrivals::default());
        assert!(network.send(0, 2, 1).first.is_some());
        network.heal();
        assert!(network.send(0, 1, 2).first.is_some());
    }

    #[test]
    fn a_calm_network_keeps_order() {
        let mut network = Network::new(Rng::new(2), &Profile::CALM);
        let mut last = 0;
        for now in 0..1000 {
            let at = network.send(now, 1, 2).first.expect("nothing is lost");
            assert!(at >= last);
            last = at;
        }
    }
}
