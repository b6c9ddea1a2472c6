//! The bugs that can be switched on, in the core, the replica and the log: their names, and who must see them.
//!
//! Each is one line of product code behind a switch that is off. A checker that does not see the bug it is there for is
//! no checker: `tests/planted.rs` demands that each is found within [`Planted::within`] seeds of the ordinary mixture, by a
//! property that speaks of it.

use graven::replica::planted as replica;
use graven_raft::planted as core;
use graven_wal::planted as wal;

use crate::profile::Profile;
use crate::{Outcome, Settings, run};

/// Where a bug is switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// In graven-raft.
    Core(core::Bug),
    /// In the replica.
    Replica(replica::Bug),
    /// In graven-wal.
    Wal(wal::Bug),
}

/// One bug.
#[derive(Debug, Clone, Copy)]
pub struct Planted {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its switch.
    pub switch: Switch,
    /// Seeds, from 0 on, after which it counts as overlooked.
    pub within: u64,
    /// The mix of faults it is looked for under; `None` is the ordinary mixture.
    pub profile: Option<Profile>,
    /// The properties by which it may be found.
    pub found_by: &'static [&'static str],
}

impl Planted {
    /// The bug of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Planted> {
        ALL.iter().copied().find(|planted| planted.name == name)
    }

    /// Runs seeds with the bug switched on, in this thread, until one finds it; `None` when `seeds` do not.
    #[must_use]
    pub fn hunt(&self, seeds: std::ops::Range<u64>, settings: &Settings) -> Option<Outcome> {
        self.plant();
        let settings = &Settings { profile: settings.profile.or(self.profile), ..*settings };
        let found = seeds.map(|seed| run(seed, settings)).find(|outcome| outcome.violation.is_some());
        unplant();
        found
    }

    /// Switches it on in this thread, in place of any other.
    pub fn plant(&self) {
        unplant();
        match self.switch {
            Switch::Core(bug) => core::plant(Some(bug)),
            Switch::Replica(bug) => replica::plant(Some(bug)),
            Switch::Wal(bug) => wal::plant(Some(bug)),
        }
    }
}

/// Switches all bugs off in this thread.
pub fn unplant() {
    core::plant(None);
    replica::plant(None);
    wal::plant(None);
}

const fn in_core(name: &'static str, bug: core::Bug, within: u64, found_by: &'static [&'static str]) -> Planted {
    Planted { name, switch: Switch::Core(bug), within, profile: None, found_by }
}

const fn in_replica(name: &'static str, bug: replica::Bug, within: u64, found_by: &'static [&'static str]) -> Planted {
    Planted { name, switch: Switch::Replica(bug), within, profile: None, found_by }
}

const fn in_wal(name: &'static str, bug: wal::Bug, within: u64, found_by: &'static [&'static str]) -> Planted {
    Planted { name, switch: Switch::Wal(bug), within, profile: None, found_by }
}

impl Planted {
    const fn under(self, profile: Profile) -> Planted {
        Planted { profile: Some(profile), ..self }
    }
}

/// All of them, in the order in which `sim --planted list` prints them.
pub const ALL: &[Planted] = &[
    in_core("old-term-commit", core::Bug::OldTermCommit, 600, &["leader completeness"]).under(Profile::DEPOSED),
    in_core("leader-counts-unsynced", core::Bug::LeaderCountsUnsynced, 100, &["P1"]),
    in_core("half-is-enough", core::Bug::HalfIsEnough, 100, &["P1"]),
    in_core("commit-beyond-verified", core::Bug::CommitBeyondVerified, 100, &["state-machine safety", "invariant"]),
    in_core("hint-ignored", core::Bug::HintIgnored, 100, &["repair cost"]),
    in_core("read-round-unconfirmed", core::Bug::ReadRoundUnconfirmed, 200, &["P8"]),
    in_core("passed-round-answered", core::Bug::PassedRoundAnswered, 100, &["alarm", "P8"]).under(Profile::PAUSES),
    in_core("read-before-own-entry", core::Bug::ReadBeforeOwnEntry, 100, &["P8"]),
    in_core("vote-for-shorter-log", core::Bug::VoteForShorterLog, 100, &["leader completeness"]),
    in_core("vote-twice", core::Bug::VoteTwice, 100, &["invariant", "election safety"]),
    in_core("vote-request-before-persist", core::Bug::VoteRequestBeforePersist, 200, &["election safety"]),
    in_core("vote-before-persist", core::Bug::VoteBeforePersist, 100, &["election safety"]),
    in_core("term-not-persisted", core::Bug::TermNotPersisted, 100, &["invariant"]),
    in_core("passed-term-taken", core::Bug::PassedTermTaken, 200, &["alarm", "state-machine safety"]),
    in_core("prev-unchecked", core::Bug::PrevUnchecked, 100, &["invariant", "log matching", "state-machine safety"]),
    in_core("truncates-what-agrees", core::Bug::TruncatesWhatAgrees, 100, &["invariant"]),
    in_core("check-quorum-off", core::Bug::CheckQuorumOff, 100, &["liveness"]),
    in_core("pre-vote-skipped", core::Bug::PreVoteSkipped, 100, &["stability"]),
    in_core("loyalty-off", core::Bug::LoyaltyOff, 300, &["stability"]),
    in_core("noop-skipped", core::Bug::NoopSkipped, 100, &["P8"]),
    in_core("watchdog-off", core::Bug::WatchdogOff, 100, &["liveness"]),
    in_core("change-too-early", core::Bug::ChangeTooEarly, 100, &["membership safety"]).under(Profile::MEMBERS),
    in_core("membership-on-commit", core::Bug::MembershipOnCommit, 200, &["liveness"]).under(Profile::MEMBERS),
    in_core("full-leader-stays", core::Bug::FullLeaderStays, 100, &["liveness"]),
    in_core("stall-unnoticed", core::Bug::StallUnnoticed, 100, &["stalls", "liveness"]),
    in_core("stall-counts-as-done", core::Bug::StallCountsAsDone, 100, &["P1", "invariant"]),
    in_core("membership-kept", core::Bug::MembershipKept, 100, &["invariant"]).under(Profile::MEMBERS),
    in_replica("ack-before-commit", replica::Bug::AckBeforeCommit, 100, &["P1"]),
    in_replica("promise-before-sync", replica::Bug::PromiseBeforeSync, 100, &["P1"]),
    in_replica("sync-skipped", replica::Bug::SyncSkipped, 100, &["P1"]),
    in_replica("vote-forgotten", replica::Bug::VoteForgotten, 300, &["election safety"]),
    in_replica("duplicate-lands", replica::Bug::DuplicateLands, 100, &["P7"]),
    in_replica("sessions-not-rolled-back", replica::Bug::SessionsNotRolledBack, 100, &["P11", "P2", "P7"]),
    in_replica("sessions-not-rebuilt", replica::Bug::SessionsNotRebuilt, 100, &["answers"]),
    in_replica("fence-not-rolled-back", replica::Bug::FenceNotRolledBack, 900, &["P10"]).under(Profile::TRANSFERS),
    in_replica("undo-kept", replica::Bug::UndoKept, 100, &["P11"]),
    in_replica("judged-too-early", replica::Bug::JudgedTooEarly, 100, &["P1", "P10"]),
    in_replica("deposed-judges", replica::Bug::DeposedJudges, 700, &["P8", "P10"]).under(Profile::PAUSES),
    in_replica("acks-survive-deposition", replica::Bug::AcksSurviveDeposition, 100, &["P1", "P2", "P7", "P10"]),
    in_replica("feed-skips", replica::Bug::FeedSkips, 100, &["P4"]),
    in_replica("stale-read", replica::Bug::StaleRead, 100, &["P8"]),
    in_replica("read-not-awaited", replica::Bug::ReadNotAwaited, 100, &["P8"]),
    in_replica("readable-before-commit", replica::Bug::ReadableBeforeCommit, 100, &["invariant"]),
    in_replica("stale-durable-report", replica::Bug::StaleDurableReport, 100, &["P2"]).under(Profile::DEPOSED),
    in_replica("ring-grows", replica::Bug::RingGrows, 100, &["P11"]),
    in_replica("full-not-cleared", replica::Bug::FullNotCleared, 100, &["liveness"]),
    in_replica("joint-kept", replica::Bug::JointKept, 100, &["liveness"]).under(Profile::MEMBERS),
    in_replica("trim-before-commit", replica::Bug::TrimBeforeCommit, 100, &["P2"]).under(Profile::TRIMS),
    in_replica("release-past-trim", replica::Bug::ReleasePastTrim, 100, &["P2", "P4"]).under(Profile::TRIMS),
    in_replica("install-keeps-sessions", replica::Bug::InstallKeepsSessions, 400, &["answers", "P7", "P11"])
        .under(Profile::TRIMS),
    in_replica("install-unsaved", replica::Bug::InstallUnsaved, 100, &["recovery"]).under(Profile::TRIMS),
    in_replica(
        "install-keeps-members",
        replica::Bug::InstallKeepsMembers,
        400,
        &["P1", "P2", "membership safety", "invariant"],
    )
    .under(Profile::MEMBERS),
    in_replica("install-keeps-log", replica::Bug::InstallKeepsLog, 100, &["P2", "recovery", "disk"])
        .under(Profile::TRIMS),
    in_replica("newest-offered", replica::Bug::NewestOffered, 100, &["P2"]).under(Profile::TRIMS),
    in_replica("names-judged-late", replica::Bug::NamesJudgedLate, 400, &["P2", "liveness"]).under(Profile::SNAPSHOTS),
    in_replica("names-forgotten", replica::Bug::NamesForgotten, 100, &["P2"]).under(Profile::SNAPSHOTS),
    in_replica("trim-past-snapshot", replica::Bug::TrimPastSnapshot, 100, &["P2"]).under(Profile::SNAPSHOTS),
    in_replica("picture-unspread", replica::Bug::PictureUnspread, 100, &["P1"]).under(Profile::SNAPSHOTS),
    in_replica("picture-gone-early", replica::Bug::PictureGoneEarly, 400, &["liveness"]).under(Profile::SNAPSHOTS),
    in_replica("cursor-goes-back", replica::Bug::CursorGoesBack, 100, &["P1", "P2", "answers"]).under(Profile::CURSORS),
    in_replica("cursors-not-rolled-back", replica::Bug::CursorsNotRolledBack, 100, &["P1", "P2", "P8"])
        .under(Profile::CURSORS),
    in_replica("cursors-forgotten", replica::Bug::CursorsForgotten, 100, &["P1", "P2", "P8"]).under(Profile::CURSORS),
    in_replica("install-keeps-cursors", replica::Bug::InstallKeepsCursors, 100, &["P1", "P2", "P8"])
        .under(Profile::CURSORS),
    in_replica("trim-before-majority", replica::Bug::TrimBeforeMajority, 100, &["P2"]).under(Profile::STATES),
    in_replica("release-past-state", replica::Bug::ReleasePastState, 100, &["P2"]).under(Profile::STATES),
    in_replica("age-believes-leader", replica::Bug::AgeBelievesLeader, 100, &["retention"]).under(Profile::RETENTION),
    in_replica("retention-takes-more", replica::Bug::RetentionTakesMore, 100, &["retention"]).under(Profile::RETENTION),
    in_replica("lost-end-votes", replica::Bug::LostEndVotes, 100, &["P1", "P2", "leader completeness"])
        .under(Profile::ROT),
    in_replica("recovered-early", replica::Bug::RecoveredEarly, 300, &["P1", "P2", "leader completeness"])
        .under(Profile::ROT),
    in_replica("recovered-untold", replica::Bug::RecoveredUntold, 1000, &["P1", "P2", "leader completeness"])
        .under(Profile::ROT),
    in_wal("marker-not-written", wal::Bug::MarkerNotWritten, 100, &["P1", "P2", "leader completeness"])
        .under(Profile::ROT),
    in_wal("replacement-unsynced", wal::Bug::ReplacementUnsynced, 300, &["recovery", "P1"]).under(Profile::SCRUB),
    in_wal("directory-sync-skipped", wal::Bug::DirectorySyncSkipped, 100, &["recovery"]),
    in_wal("sync-before-write", wal::Bug::SyncBeforeWrite, 100, &["recovery"]).under(Profile::DISKS),
    in_wal("length-before-crc", wal::Bug::LengthBeforeCrc, 100, &["recovery"]),
    in_wal("sync-retried", wal::Bug::SyncRetried, 100, &["recovery"]),
    in_wal("page-cache-trusted", wal::Bug::PageCacheTrusted, 100, &["recovery"]),
    in_wal("reserve-spent", wal::Bug::ReserveSpent, 100, &["reserve"]),
    in_wal("seal-without-sync", wal::Bug::SealWithoutSync, 100, &["recovery"]),
];
