//! Snapshots of applications in a run: with names, put by somebody outside, and those of the nodes' own state machines.
//!
//! A file is a number on the node's disk that outlives the process: whole or not there, as the directory functions of graven-snapshot
//! promise and show for themselves. What is decided about files is the replica's, and is what runs here.

use std::collections::BTreeMap;

use graven::replica::names::Picture;
use graven::replica::snapshots::StatesKept;
use graven::replica::{Answer, Rejection, Replica};

use crate::check::names::Meaning;
use crate::check::{Checked, Violation, violated};
use crate::cluster::Cluster;
use crate::workload::Request;

/// Few, so that they get in each other's way.
const NAMES: [&str; 3] = ["a", "b", "c"];

impl Cluster {
    /// Somebody puts a snapshot, mostly of something that is there, or drops a name.
    pub(crate) fn put_somewhere(&mut self, node: u64) {
        let node = if self.rng.chance(900) { self.leader().unwrap_or(node) } else { node };
        let name = (*self.rng.pick(&NAMES)).to_owned();
        if self.rng.chance(150) {
            return self.ask(node, Request::DropName { name });
        }
        let records = self.checkers.committed_records();
        let offset = if self.rng.chance(700) { self.rng.below(records + 1) } else { records + self.rng.below(3) };
        let id = self.rng.draw() | 1;
        self.ask(node, Request::Put { name, picture: Picture { id, offset, bytes: 1, digest: 1, timestamp_ms: 0 } });
    }

    /// A file rots, or is lost.
    pub(crate) fn lose_picture(&mut self, node: u64) -> Checked {
        // What nobody else has cannot come back.
        let elsewhere = |id: &u64| self.nodes.iter().any(|peer| peer.id != node && peer.pictures.contains(id));
        let held: Vec<u64> = self.node(node).pictures.iter().copied().filter(elsewhere).collect();
        if held.is_empty() {
            return Ok(());
        }
        let id = *self.rng.pick(&held);
        self.trace.line(self.now_us, format_args!("n{node} loses snapshot {id:x}"));
        self.node_mut(node).pictures.remove(&id);
        self.input(node, |replica, now| replica.picture_lost(now, id))
    }

    /// The file is durable on the leader before it is offered.
    pub(crate) fn on_put(&mut self, node: u64, request: u64, name: String, picture: Picture) -> Checked {
        let Some(process) = self.node_mut(node).process.as_mut() else { return Ok(()) };
        if process.replica.may_offer(&name, picture.offset).is_err() {
            return Ok(());
        }
        self.node_mut(node).pictures.insert(picture.id);
        self.checkers.names.held(node, picture.id);
        let id = graven::replica::RequestId(request);
        self.input(node, |replica, now| replica.offer(now, id, name, picture))
    }

    pub(crate) fn put_answered(&mut self, picture: Picture, answer: Result<Answer, Rejection>) -> Checked {
        match answer {
            Ok(Answer::SnapshotNamed { offset }) if offset == picture.offset => {
                self.stats.snapshots += 1;
                self.checkers.names.answered(picture.id)
            }
            Ok(other) => violated("answers", format!("a snapshot was answered with {other:?}")),
            Err(_) => Ok(()),
        }
    }

    /// The file of a snapshot comes from any node that has it and can be reached, or does not.
    pub(crate) fn on_picture_fetched(&mut self, node: u64, life: u64, id: u64) -> Checked {
        if self.node_mut(node).alive(life).is_none() {
            return Ok(());
        }
        let has = |peer: &&crate::node::Node| {
            peer.id != node
                && peer.process.is_some()
                && !self.network.is_cut(peer.id, node)
                && peer.pictures.contains(&id)
        };
        let found = self.nodes.iter().any(|peer| has(&peer));
        self.trace.line(self.now_us, format_args!("n{node} fetches snapshot {id:x}: {found}"));
        if found {
            self.node_mut(node).pictures.insert(id);
            self.checkers.names.held(node, id);
            self.stats.spread += 1;
        }
        self.input_of(node, life, |replica, now| replica.picture_fetched(now, id, found))
    }

    /// What `node` says of the names must be what is committed up to where it shows the log.
    pub(crate) fn check_names(&mut self, node: u64) -> Checked {
        let Some(process) = self.node_mut(node).process.as_mut() else { return Ok(()) };
        let version = process.replica.names_version();
        if process.names_seen == Some(version) {
            return Ok(());
        }
        process.names_seen = Some(version);
        let of = |picture: Option<Picture>| picture.map(|picture| (picture.id, picture.offset));
        let names: BTreeMap<String, Meaning> = process
            .replica
            .names()
            .iter()
            .map(|(name, named)| (name.to_owned(), (of(named.current), of(named.offered))))
            .collect();
        let readable = process.replica.view().readable_index;
        self.checkers.names.shows(node, readable, &names)
    }

    /// The nodes that do not have exactly the files that the names stand for.
    pub(crate) fn without_pictures(&self) -> Vec<u64> {
        let ids = self.checkers.names.ids();
        let holds = |replica: &Replica| *replica.held() == ids;
        if self.profile.picture_us == 0 {
            return Vec::new();
        }
        let nodes = self.nodes.iter().filter(|node| {
            let right = node.process.as_ref().is_some_and(|process| holds(&process.replica));
            !right || node.pictures != ids
        });
        nodes.map(|node| node.id).collect()
    }

    /// The state machine of `node` has applied everything below `offset`: every so many records it saves what it is.
    pub(crate) fn maybe_save_state(&mut self, node: u64, life: u64, offset: u64) -> Checked {
        let every = self.profile.states;
        if every == 0 || offset < self.node(node).states.newest + every {
            return Ok(());
        }
        let kept = StatesKept { newest: offset, oldest: self.node(node).states.newest };
        self.node_mut(node).states = kept;
        self.stats.states += 1;
        self.input_of(node, life, |replica, now| replica.states_kept(now, kept))
    }

    /// `node` let go of its log up to offset `first`: its state machine must be able to go on from a snapshot of its own.
    pub(crate) fn released_to(&self, node: u64, first: u64) -> Checked {
        let own = self.node(node).states.oldest;
        match self.profile.states > 0 && own < first {
            true => violated(
                "P2",
                format!(
                    "node {node} let go of its log up to {first}, the snapshot that its state machine can fall back on ends at {own}"
                ),
            ),
            false => Ok(()),
        }
    }

    /// The log of `node` begins at offset `first`, as another node made it: its state machine is given the state of one that has it.
    pub(crate) fn begins_elsewhere(&mut self, node: u64, first: u64) -> Checked {
        if self.profile.states == 0 || self.node(node).states.newest >= first {
            return Ok(());
        }
        let best = self.nodes.iter().map(|node| node.states.newest).max().unwrap_or(0);
        if best < first {
            let detail = format!("the log of node {node} begins at {first}, and no node has a state beyond {best}");
            return Err(Violation { property: "P2", detail });
        }
        let place = self.node_mut(node);
        let kept = StatesKept { newest: best, oldest: 0 };
        place.states = kept;
        let life = place.life;
        self.input_of(node, life, |replica, now| replica.states_kept(now, kept))
    }

    /// A committed trim to `before`, in a run where only state machines trim: a majority must have what it takes away.
    pub(crate) fn states_reach(&self, before: u64) -> Checked {
        let reached = self.nodes.iter().filter(|node| node.states.newest >= before).count();
        if self.profile.states > 0 && reached * 2 <= self.nodes.len() {
            return violated("P2", format!("trimmed up to {before}, and {reached} nodes have a snapshot of that"));
        }
        Ok(())
    }
}
