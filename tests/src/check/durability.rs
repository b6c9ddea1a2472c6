//! P1: an append is acknowledged only when a majority of disks hold it synced; what was synced is found again.
//!
//! The books are kept beside the real disk: an entry counts as synced when the call that wrote and synced it returned, and
//! never because a replica says so.

use std::collections::BTreeSet;

use graven_frame::{Chain, Frame};
use graven_raft::{Membership, NodeId};

use super::membership::is_quorum;
use super::{Checked, violated};

/// What the disk of one node holds for certain.
#[derive(Debug, Default, Clone)]
struct Synced {
    chains: Vec<Chain>,
    /// What it held before its log lost its end.
    lost: Vec<Chain>,
    term: u64,
    vote: Option<u64>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Durability {
    nodes: Vec<Synced>,
}

impl Durability {
    /// For nodes 1 to `nodes`.
    #[must_use]
    pub fn new(nodes: u64) -> Durability {
        Durability { nodes: vec![Synced::default(); nodes as usize + 1] }
    }

    /// `frame` is synced at `node`, in place of whatever stood from its index on.
    pub fn synced(&mut self, node: u64, frame: &Frame) {
        let chains = &mut self.nodes[node as usize].chains;
        chains.truncate(frame.header().index as usize - 1);
        chains.push(frame.header().chain);
    }

    /// The log of `node` is about to give way to one that begins with `frames`: what differs from them may be gone.
    pub fn diverges(&mut self, node: u64, frames: &[Frame]) {
        let chains = &mut self.nodes[node as usize].chains;
        let equal = chains.iter().zip(frames).take_while(|(chain, frame)| **chain == frame.header().chain).count();
        chains.truncate(equal);
    }

    /// `node` lost the end of its log, which begins with `frames` still. What it acknowledged before counts for its leader, and may: as long
    /// as it has no vote, whoever is elected has the votes of a majority without it, and with them what the others hold.
    pub fn lost_end(&mut self, node: u64, frames: &[Frame]) {
        let synced = &mut self.nodes[node as usize];
        if synced.lost.is_empty() {
            synced.lost.clone_from(&synced.chains);
        }
        self.diverges(node, frames);
    }

    /// `node` has its vote again: what it holds counts, and nothing else.
    pub fn well(&mut self, node: u64) {
        self.nodes[node as usize].lost.clear();
    }

    /// Term and vote are synced at `node`.
    pub fn hard_state(&mut self, node: u64, term: u64, vote: Option<u64>) {
        let synced = &mut self.nodes[node as usize];
        (synced.term, synced.vote) = (term, vote);
    }

    /// A write that begins with entry `first` may have reached the disk of `node` before it died: from there on, nothing
    /// is certain any more.
    pub fn doubted(&mut self, node: u64, first: u64) {
        self.nodes[node as usize].chains.truncate(first as usize - 1);
    }

    /// `node` found this log when it opened its disk. It is certain from here on: opening syncs it again.
    ///
    /// # Errors
    /// Something that was synced is not there.
    pub fn recovered(&mut self, node: u64, frames: &[Frame]) -> Checked {
        let synced = &mut self.nodes[node as usize];
        for (at, chain) in synced.chains.iter().enumerate() {
            if frames.get(at).is_none_or(|frame| frame.header().chain != *chain) {
                return violated(
                    "P1",
                    format!(
                        "node {node} synced {} entries and found {} again; the first one missing or changed is {}",
                        synced.chains.len(),
                        frames.len(),
                        at + 1
                    ),
                );
            }
        }
        synced.chains = frames.iter().map(|frame| frame.header().chain).collect();
        Ok(())
    }

    /// `node` found this term and vote when it opened its disk.
    ///
    /// # Errors
    /// They are older than what was synced, or the vote is another.
    pub fn recovered_hard_state(&mut self, node: u64, term: u64, vote: Option<u64>) -> Checked {
        let synced = &mut self.nodes[node as usize];
        let changed = term == synced.term && synced.vote.is_some() && vote != synced.vote;
        if term < synced.term || changed {
            return violated(
                "P1",
                format!(
                    "node {node} synced term {} and vote {:?} and found {term} and {vote:?}",
                    synced.term, synced.vote
                ),
            );
        }
        (synced.term, synced.vote) = (term, vote);
        Ok(())
    }

    /// An append in the entry at `index`, whose chain is `chain`, was acknowledged by a leader that had these memberships in
    /// force in turn while it took this step.
    ///
    /// # Errors
    /// The disks that hold it are no quorum of any of them.
    pub fn acknowledged(&self, index: u64, chain: Chain, in_force: &[(u64, Membership)]) -> Checked {
        let has = |chains: &[Chain]| chains.get(index as usize - 1) == Some(&chain);
        let holds = |node: &usize| has(&self.nodes[*node].chains) || has(&self.nodes[*node].lost);
        let holders: BTreeSet<_> = (1..self.nodes.len()).filter(holds).map(|node| NodeId(node as u64)).collect();
        if in_force.iter().any(|(_, membership)| is_quorum(membership, &holders)) {
            return Ok(());
        }
        violated(
            "P1",
            format!("append in entry {index} acknowledged, synced on {holders:?}, no quorum of {in_force:?}"),
        )
    }

    /// `node` shows readers everything up to entry `readable`, whose chain is `chain`.
    ///
    /// # Errors
    /// Its disk does not hold that for certain.
    pub fn exposed(&self, node: u64, readable: u64, chain: Chain) -> Checked {
        let held = &self.nodes[node as usize].chains;
        if held.get(readable as usize - 1) != Some(&chain) {
            return violated(
                "P2",
                format!("node {node} shows entry {readable}, its disk holds {} synced, or another entry", held.len()),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::frame;
    use super::*;

    #[test]
    fn a_lost_end_counts_until_its_node_has_a_vote_again() {
        let first = frame(None, 1, &[]);
        let log = [first.clone(), frame(Some(&first), 1, &[])];
        let chain = log[1].header().chain;
        let three = [(1, Membership::of_voters((1..=3).map(NodeId)))];
        let mut durability = Durability::new(3);
        for node in [1, 2] {
            log.iter().for_each(|frame| durability.synced(node, frame));
        }
        durability.lost_end(2, &log[..1]);
        durability.lost_end(2, &log[..1]);
        durability.recovered(2, &log[..1]).expect("that much was left");
        durability.acknowledged(2, chain, &three).expect("it has no vote");
        durability.exposed(2, 2, chain).expect_err("it is not there");
        durability.well(2);
        durability.acknowledged(2, chain, &three).expect_err("one of three");
    }

    #[test]
    fn an_acknowledgement_without_a_synced_majority_is_seen() {
        let first = frame(None, 1, &[]);
        let chain = first.header().chain;
        let of = |count: u64| [(1, Membership::of_voters((1..=count).map(NodeId)))];
        let mut durability = Durability::new(4);
        durability.synced(1, &first);
        durability.acknowledged(1, chain, &of(3)).expect_err("one of three");
        durability.exposed(2, 1, chain).expect_err("not on its own disk");
        durability.exposed(1, 1, Chain(7)).expect_err("another entry");
        durability.exposed(1, 1, chain).expect("right");
        durability.synced(2, &first);
        durability.acknowledged(1, chain, &of(3)).expect("two of three");
        durability.acknowledged(1, chain, &of(4)).expect_err("two of four");
        durability.acknowledged(1, chain, &[of(4), of(3)].concat()).expect("of the other one in force");
        durability.acknowledged(1, Chain(7), &of(3)).expect_err("another entry");
        let voters = |ids: &[u64]| ids.iter().map(|id| NodeId(*id)).collect();
        let joint = Membership { voters: voters(&[1, 3, 4]), outgoing: voters(&[1, 2]), ..Membership::default() };
        durability.acknowledged(1, chain, &[(1, joint)]).expect_err("a majority of one half only");
    }

    #[test]
    fn a_lost_synced_entry_or_vote_is_seen() {
        let first = frame(None, 1, &[]);
        let second = frame(Some(&first), 1, &[]);
        let mut durability = Durability::new(1);
        durability.synced(1, &first);
        durability.synced(1, &second);
        durability.recovered(1, std::slice::from_ref(&first)).expect_err("the second is gone");
        durability.doubted(1, 2);
        durability.recovered(1, &[first]).expect("it was being written over");
        durability.hard_state(1, 4, Some(2));
        durability.recovered_hard_state(1, 3, Some(2)).expect_err("an older term");
        durability.recovered_hard_state(1, 4, Some(1)).expect_err("another vote");
        durability.recovered_hard_state(1, 5, None).expect("a later write arrived");
    }
}
