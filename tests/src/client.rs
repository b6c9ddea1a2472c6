//! The workload: writers with sessions, and readers that follow the stream.
//!
//! A writer does what the client library does: it keeps several appends in flight, and when one is refused, lost or late it
//! sends everything that is not acknowledged again, in order, under the same session and sequence numbers, maybe to another
//! node.

use std::collections::VecDeque;

use graven::replica::feed::Feed;
use graven::replica::{Answer, Rejection, View};
use graven_frame::{Group, GroupBuilder, GroupHeaderSpec};

use crate::rng::Rng;

/// How long a writer waits for an answer before it tries another node: less than an election takes, or more.
const PATIENCE_US: [u64; 2] = [60_000, 400_000];

/// One writer.
#[derive(Debug)]
pub struct Writer {
    /// Its number.
    pub id: u64,
    /// The node it talks to.
    pub target: u64,
    nodes: u64,
    rng: Rng,
    /// Pause between its looks at the world.
    pace_us: u64,
    patience_us: u64,
    window: usize,
    session: Option<u64>,
    opening: Option<(u64, u64)>,
    next_sequence: u64,
    pending: VecDeque<Pending>,
    /// Appends it may still make; without a bound while faults go on.
    budget: Option<u64>,
    fences: bool,
    tiny: bool,
    /// Appends sent again.
    pub retries: u64,
}

#[derive(Debug)]
struct Pending {
    sequence: u64,
    group: Group,
    sent: Option<(u64, u64)>,
    acknowledged: bool,
}

/// What a writer wants sent, as this request, to its target.
#[derive(Debug, Clone)]
pub enum Wish {
    /// Open a session.
    Open,
    /// Append this.
    Append(Group),
}

impl Writer {
    /// A writer in a cluster of `nodes` nodes, whose appends are `tiny` or of all sizes.
    #[must_use]
    pub fn new(id: u64, nodes: u64, tiny: bool, mut rng: Rng) -> Writer {
        Writer {
            id,
            target: rng.between(1, nodes + 1),
            nodes,
            pace_us: *rng.pick(&[2_000, 8_000, 30_000]),
            patience_us: *rng.pick(&PATIENCE_US),
            // Many tiny ones: what a sync has still to cover is longer than a record of term and vote.
            window: if tiny { *rng.pick(&[8, 64, 128]) } else { *rng.pick(&[1, 4, 8]) },
            session: None,
            opening: None,
            next_sequence: 1,
            pending: VecDeque::new(),
            budget: None,
            fences: rng.chance(300),
            tiny,
            retries: 0,
            rng,
        }
    }

    /// When it looks at the world again.
    pub fn pause_us(&mut self) -> u64 {
        self.rng.between(self.pace_us / 2, self.pace_us * 3 / 2)
    }

    /// From now on it makes only this many new appends.
    pub fn finish_after(&mut self, appends: u64) {
        self.budget = Some(appends);
    }

    /// Its session, and an append of it that stands or waits to be acknowledged.
    #[must_use]
    pub fn unsettled(&self) -> Option<Group> {
        self.session.and(self.pending.back()).map(|pending| pending.group.clone())
    }

    /// Whether all it was to do is acknowledged.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.budget == Some(0) && self.pending.is_empty()
    }

    /// What it sends now. `committed` is an offset that the log has reached; `next_request` names what is sent.
    pub fn act(&mut self, now_us: u64, committed: u64, next_request: &mut u64, out: &mut Vec<(u64, Wish)>) {
        let mut name = || {
            *next_request += 1;
            *next_request
        };
        if self.session.is_none() {
            if self.opening.is_some_and(|(_, at)| now_us - at > self.patience_us) {
                self.opening = None;
                self.move_on(None);
            }
            if self.opening.is_none() && self.budget != Some(0) {
                let request = name();
                self.opening = Some((request, now_us));
                out.push((request, Wish::Open));
            }
            return;
        }
        if self.pending.iter().any(|pending| pending.sent.is_some_and(|(_, at)| now_us - at > self.patience_us)) {
            self.move_on(None);
            self.send_again();
        }
        // Its process dies now and then: what it sent may land or not, and nobody will ever ask.
        if self.budget.is_none() && self.rng.chance(4) {
            self.session = None;
            self.pending.clear();
            return;
        }
        let mut fresh = 1 + self.rng.below(if self.tiny { 24 } else { 3 });
        while fresh > 0 && self.pending.len() < self.window && self.budget != Some(0) {
            fresh -= 1;
            self.budget = self.budget.map(|left| left - 1);
            let group = self.make_group(committed);
            let sequence = self.next_sequence;
            self.next_sequence += 1;
            self.pending.push_back(Pending { sequence, group, sent: None, acknowledged: false });
        }
        for pending in self.pending.iter_mut().filter(|pending| pending.sent.is_none() && !pending.acknowledged) {
            let request = name();
            pending.sent = Some((request, now_us));
            out.push((request, Wish::Append(pending.group.clone())));
        }
    }

    /// An answer arrived.
    pub fn answered(&mut self, request: u64, answer: Result<Answer, Rejection>) {
        if self.opening.is_some_and(|(opening, _)| opening == request) {
            self.opening = None;
            match answer {
                Ok(Answer::SessionOpened { session }) => {
                    self.session = Some(session);
                    self.next_sequence = 1;
                }
                other => self.move_on(other.err()),
            }
            return;
        }
        // An answer to an earlier attempt counts only when it is good news.
        if let Ok(Answer::Appended(placed)) = answer {
            let found = self.pending.iter_mut().find(|pending| {
                pending.sequence == placed.sequence && pending.sent.is_some_and(|(current, _)| current == request)
            });
            if let Some(pending) = found {
                pending.acknowledged = true;
                pending.sent = None;
            }
            while self.pending.front().is_some_and(|pending| pending.acknowledged) {
                self.pending.pop_front();
            }
            return;
        }
        if !self.pending.iter().any(|pending| pending.sent.is_some_and(|(current, _)| current == request)) {
            return;
        }
        match answer {
            // What follows in the session can never land: begin another.
            Err(Rejection::Conflict { .. } | Rejection::Fenced { .. }) => {
                self.session = None;
                self.pending.clear();
            }
            Err(rejection) => {
                self.move_on(Some(rejection));
                self.send_again();
            }
            Ok(_) => {}
        }
    }

    fn send_again(&mut self) {
        for pending in &mut self.pending {
            self.retries += u64::from(pending.sent.is_some());
            pending.sent = None;
        }
    }

    fn move_on(&mut self, rejection: Option<Rejection>) {
        let told = match rejection {
            Some(Rejection::NotLeader { leader } | Rejection::LostLeadership { leader }) => {
                leader.map(|leader| leader.0)
            }
            // The right node, the wrong moment.
            Some(Rejection::Gap { .. } | Rejection::Transferring | Rejection::DiskFull) => Some(self.target),
            _ => None,
        };
        self.target = told.unwrap_or_else(|| self.rng.between(1, self.nodes + 1));
    }

    fn make_group(&mut self, committed: u64) -> Group {
        let mut builder = GroupBuilder::new();
        let records = if self.tiny { 1 } else { 1 + self.rng.below(4) };
        for at in 0..records {
            let mut payload = format!("w{}.{:?}.{}.{at}.", self.id, self.session, self.next_sequence).into_bytes();
            let padding = match self.rng.below(1000) {
                _ if self.tiny => 0,
                // Larger than the replication window, sometimes than a segment.
                0..2 => self.rng.below(90_000),
                2..30 => self.rng.below(3_000),
                _ => self.rng.below(120),
            };
            payload.resize(payload.len() + padding as usize, b'a' + (at as u8));
            let meta: &[u8] = if self.rng.chance(100) { b"meta" } else { b"" };
            if builder.push(meta, &payload).is_err() {
                break;
            }
        }
        // Never above what is committed: offsets only grow, so that a conflict is final.
        let expected_offset = self.rng.chance(30).then_some(committed);
        // They grow, but not strictly: about half of them meet a higher one.
        let fence = (self.fences && self.rng.chance(200)).then(|| 1 + committed / 16 + self.rng.below(16));
        builder.finish(GroupHeaderSpec {
            session: self.session,
            sequence: Some(self.next_sequence),
            expected_offset,
            fence,
        })
    }
}

/// One reader of the stream.
#[derive(Debug)]
pub struct Follower {
    /// The node it reads from, and the life of it.
    pub node: u64,
    /// That node's life.
    pub life: u64,
    /// Where it stands there; `None` when it must connect again.
    pub feed: Option<Feed>,
    /// What that node last said of itself.
    pub view: Option<View>,
}

impl Follower {
    /// A reader that is not connected.
    #[must_use]
    pub fn new() -> Follower {
        Follower { node: 1, life: 0, feed: None, view: None }
    }
}

impl Default for Follower {
    fn default() -> Follower {
        Follower::new()
    }
}
