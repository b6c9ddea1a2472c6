//! What followers tell their leader beside the protocol: how their clocks stand and which snapshots they hold.
//!
//! Nothing of it is needed for agreement. It tells the leader when others can do without the log, and when clocks can be believed: both are
//! things that are only ever decided by an entry. A report that is lost is followed by another one.

use std::collections::BTreeMap;

use graven_raft::{Message, NodeId, Report, Role, Tick};

use super::Replica;
use super::effect::{Effect, Now};

/// How often a follower reports. The leader's decisions that rest on it (a trim behind snapshots, retention) are not urgent, and a
/// message a second costs nothing.
const REPORT_EVERY_US: u64 = 1_000_000;
/// A report is sent at once when there is news, but not more often than this.
const NEWS_EVERY_US: u64 = 50_000;
/// The level from which on every node can read a report.
const REPORTS_LEVEL: u32 = 2;
/// Ids in a report that are looked at: what is held beyond that many is not needed by anybody.
pub(super) const HELD_MAX: usize = 256;

/// A report, and when it came.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) at: Now,
    pub(super) report: Report,
}

/// What this node told and was told.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// This node's own snapshots, by which it reports.
    own: Report,
    has_news: bool,
    sent: Option<Tick>,
    /// What members told this leader, in its term.
    heard: BTreeMap<NodeId, Heard>,
}

impl Reports {
    /// What a start found.
    pub(super) fn found(held: &[u64], snapshot: u64) -> Reports {
        let own = Report { wall_ms: 0, snapshot, held: held.to_vec() };
        Reports { own, ..Reports::default() }
    }

    /// Changes what this node says of its snapshots.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Report)) {
        let before = self.own.clone();
        change(&mut self.own);
        self.has_news |= self.own != before;
    }

    pub(super) fn own(&self) -> &Report {
        &self.own
    }

    /// What others told this leader since it leads.
    pub(super) fn heard(&self) -> &BTreeMap<NodeId, Heard> {
        &self.heard
    }

    /// A leader that was told nothing yet is told at once.
    fn due(&self) -> Tick {
        let every = if self.has_news { NEWS_EVERY_US } else { REPORT_EVERY_US };
        self.sent.map_or(Tick(0), |sent| sent.after(every))
    }
}

impl Replica {
    /// Tells the leader how this node stands, when it is time.
    pub(super) fn maybe_report(&mut self, now: Now) {
        let Some(leader) = self.core.leader().filter(|leader| *leader != self.id()) else { return };
        if self.feature_level() < REPORTS_LEVEL || self.reports.due() > now.tick {
            return;
        }
        let report = Report { wall_ms: now.wall_ms, ..self.reports.own.clone() };
        self.reports.sent = Some(now.tick);
        self.reports.has_news = false;
        let message = Message::Report { term: self.core.term(), report };
        self.effects.push_back(Effect::Send { to: leader, message });
    }

    /// When [`Replica::maybe_report`] has something to do.
    pub(super) fn report_deadline(&self) -> Option<Tick> {
        let follows = self.core.leader().is_some_and(|leader| leader != self.id());
        (follows && self.feature_level() >= REPORTS_LEVEL).then(|| self.reports.due())
    }

    /// Takes in what a member tells this leader.
    pub(super) fn on_report(&mut self, now: Now, from: NodeId, mut report: Report) {
        let known = self.members().is_some_and(|members| members.present().any(|member| member.id == from.0));
        if self.core.role() == Role::Leader && known {
            report.held.truncate(HELD_MAX);
            self.reports.heard.insert(from, Heard { at: now, report });
        }
    }

    /// The leadership changed: what was told is of the past, and the new leader is told at once.
    pub(super) fn forget_reports(&mut self) {
        self.reports.heard.clear();
        self.reports.sent = None;
    }
}
