//! Bringing a follower up whose entries are gone everywhere: it gets a checkpoint, then plain replication (Raft paper 7).
//!
//! The leader offers the oldest checkpoint it has until it is answered. The follower fetches it beside everything else, checks it whole,
//! and has the log thread put it in the log's place. While that job is under way its log is neither what it was nor what it will be:
//! it takes no appends, does not vote and does not stand.
//!
//! On the disk: the checkpoint is durable under a name that counts for nothing; the log starts anew behind it; it gets its
//! name. Power fails anywhere: a start finds the log as it was, or anew with its checkpoint ([`super::restore`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use graven_raft::{Index, LogId, NodeId, Output, Role, Term, Tick};
use graven_snapshot::Checkpoint;

use super::checkpoint::{Kept, State};
use super::disk::Saved;
use super::effect::{Alarm, Chore, Effect, Fetch, Now};
use super::log::LogView;
use super::planted::{Bug, is_planted};
use super::retention::Keeper;
use super::{After, Replica};

/// How often an offer that was not answered is made again. A fetch takes as long as it takes; asked again meanwhile, the follower
/// has it under way.
const OFFER_EVERY_US: u64 = 500_000;

/// Installs, here and at followers.
#[derive(Debug, Default)]
pub(super) struct Installs {
    /// Followers that need one, and when it is offered (again).
    offers: BTreeMap<NodeId, Tick>,
    fetching: Option<Fetch>,
    installing: Option<Installing>,
}

#[derive(Debug)]
struct Installing {
    from: NodeId,
    checkpoint: Arc<Checkpoint>,
    state: State,
}

impl Installs {
    /// Whether this node's log is being replaced.
    pub(super) fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Tick> {
        self.offers.values().min().copied()
    }

    /// The leadership is over, and with it its offers.
    pub(super) fn forget_offers(&mut self) {
        self.offers.clear();
    }

    pub(super) fn offers(&self) -> usize {
        self.offers.len()
    }
}

fn base_of(checkpoint: &Checkpoint) -> LogId {
    LogId { term: Term(checkpoint.base.term), index: Index(checkpoint.base.index) }
}

impl Replica {
    /// A follower needs entries that are gone.
    pub(super) fn on_snapshot_needed(&mut self, now: Tick, to: NodeId) {
        // One that could not be installed is not offered again before its time.
        self.installs.offers.entry(to).or_insert(now);
        self.make_offers(now);
    }

    /// Offers checkpoints to whoever waits for one and was not offered it lately.
    pub(super) fn make_offers(&mut self, now: Tick) {
        let base = self.core.base().index.0;
        let mut kept = self.checkpoints.kept.iter().find(|kept| kept.index >= base).copied();
        if is_planted(Bug::NewestOffered) {
            kept = self.checkpoints.kept.last().copied();
        }
        let due: Vec<NodeId> = self.installs.offers.iter().filter(|(_, at)| **at <= now).map(|(to, _)| *to).collect();
        for to in due {
            // None yet: one that is on its way to the disk comes.
            let waits = kept.is_none_or(|Kept { index, term, .. }| {
                self.core.offer_install(now, to, LogId { term: Term(term), index: Index(index) })
            });
            if waits {
                if kept.is_some_and(|kept| self.pins.offered(to, kept.index, now)) {
                    self.laggards.offered(to);
                }
                self.installs.offers.insert(to, now.after(OFFER_EVERY_US));
            } else {
                self.installs.offers.remove(&to);
            }
        }
    }

    /// The leader offers what this node lacks.
    pub(super) fn on_offer(&mut self, from: NodeId, base: LogId) {
        if self.installs.is_installing() || self.installs.fetching.is_some() {
            return;
        }
        self.next_token += 1;
        let fetch = Fetch { token: self.next_token, from, base };
        self.installs.fetching = Some(fetch);
        self.effects.push_back(Effect::Fetch(fetch));
    }

    /// Takes in the checkpoint of [`Effect::Fetch`]; `None` when it could not be had.
    pub fn fetched(&mut self, now: Now, token: u64, checkpoint: Option<Checkpoint>) {
        let Some(fetch) = self.installs.fetching.take_if(|fetch| fetch.token == token) else { return };
        let fits =
            |checkpoint: &Checkpoint| checkpoint.cluster == self.config.cluster && base_of(checkpoint) == fetch.base;
        let usable =
            checkpoint.filter(fits).and_then(|checkpoint| Some((State::decode(&checkpoint.state).ok()?, checkpoint)));
        // Meanwhile another leader may have brought the entries themselves.
        let wanted = self.core.role() == Role::Follower && fetch.base.index > self.core.commit();
        match usable {
            Some((state, checkpoint)) if wanted && self.core.term_at(fetch.base.index) != Some(fetch.base.term) => {
                let checkpoint = Arc::new(checkpoint);
                self.core.abstain(now.tick, true);
                self.chore(Chore::Install(Arc::clone(&checkpoint)), After::Installed);
                self.installs.installing = Some(Installing { from: fetch.from, checkpoint, state });
            }
            Some(_) => {}
            None => {
                let words = format!(
                    "the checkpoint at entry {} was not had from node {}; it is tried again",
                    fetch.base.index.0, fetch.from.0
                );
                self.effects.push_back(Effect::Alarm(Alarm::Core(words)));
                self.core.answer_install(now.tick, fetch.from, fetch.base, false);
            }
        }
        self.settle(now);
    }

    /// The log starts anew behind the checkpoint, durably; or the disk had no room, and it is as it was.
    pub(super) fn on_installed(&mut self, now: Now, saved: Saved) {
        let Some(Installing { from, checkpoint, state }) = self.installs.installing.take() else { return };
        let base = base_of(&checkpoint);
        let saved = saved.has(base.index.0);
        if saved {
            let mark = checkpoint.base.into();
            self.log = LogView::new(mark, self.config.ring_bytes);
            if !is_planted(Bug::InstallKeepsSessions) {
                self.sessions = state.sessions;
            }
            self.keeper = Keeper::found(self.config.retention, &[], mark);
            self.tables.replace(state.tables);
            self.doubt_pictures();
            self.stash.clear();
            self.first_offset = self.first_offset.max(state.first_offset).max(mark.next_offset);
            if !is_planted(Bug::InstallKeepsMembers) {
                self.members = vec![(state.members_index, state.members)];
            }
            self.members_version += 1;
            self.durable = mark.index;
            self.committed = mark.index;
            if !self.config.state_machine {
                self.applied = mark.index;
            }
            self.checkpoints.installed(Kept::of(&checkpoint.base));
            let membership = self.members.iter().map(|(index, members)| (Index(*index), members.membership()));
            self.core.installed(now.tick, base, membership.collect());
            while let Some(output) = self.core.poll() {
                // What it speaks of left the log's view above.
                if !matches!(output, Output::Truncated { .. }) {
                    self.on_output(now, output);
                }
            }
        }
        self.core.abstain(now.tick, self.abstains());
        self.core.answer_install(now.tick, from, base, saved);
    }
}
