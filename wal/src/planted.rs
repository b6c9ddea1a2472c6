//! Bugs that can be switched on, so that the tests of this crate can show that they see them.
//!
//! Off, and nothing but those tests switches one on. The switch belongs to the thread, so that tests beside each other do
//! not disturb one another; when off it costs a look at a thread-local at places that are about to ask the disk.

use std::cell::Cell;

/// One planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A segment made ready gets its name without a sync of the directory.
    DirectorySyncSkipped,
    /// The first segment gets its name before its bytes are durable.
    FirstSegmentUnsynced,
    /// An opening block is synced before it is written, and then taken to be durable.
    SyncBeforeWrite,
    /// A segment whose opening is lost is cut like an unfinished write, although records in it say that it was synced.
    LostOpeningCut,
    /// A direct write begins at the next whole block, and leaves the one that was begun as it is.
    TailBlockSkipped,
    /// A footer that was written ahead counts as durable.
    SealAheadBelieved,
    /// A record whose length fits is taken for whole; the sum over its body is not looked at.
    LengthBeforeCrc,
    /// A failed sync is tried again, and believed when it then succeeds.
    SyncRetried,
    /// Recovery trusts what the page cache shows after a failed sync, and writes nothing again.
    PageCacheTrusted,
    /// Records are told from those of an earlier life of the file by everything but the salt.
    SaltForgotten,
    /// Damage in the middle of the log is cut like an unfinished write.
    DamagedMiddleCut,
    /// What was cut from the end is left standing behind the log.
    CutLeftStanding,
    /// A new segment opens without the hard state, which goes with the segments before it.
    HardStateTrimmed,
    /// A segment's footer is written and not synced before the next one is begun.
    SealWithoutSync,
    /// Records never say how far the segment was durable.
    WatermarkStuck,
    /// Recovery lets an entry replace others whatever it continues.
    SupersedeUnchecked,
    /// Recovery lets an entry replace one that is known to be committed.
    SettledReplaced,
    /// Removed segments go in any order.
    RemovalUnsynced,
    /// A released segment is used again while somebody reads it.
    RecycledWhileRead,
    /// Writes into a used file do not end with zeroes.
    EndMarkOmitted,
    /// Records take the segment that is kept for hard states and control entries.
    ReserveSpent,
    /// Fetched entries are put in although what stands behind the hole does not continue them.
    MendEndUnchecked,
    /// The damaged end of a log is cut, and nothing says so.
    MarkerNotWritten,
    /// A replacement gets the name of the damaged segment before its bytes are durable.
    ReplacementUnsynced,
    /// A damaged segment is removed before its replacement has its place.
    OriginalRemovedFirst,
    /// A log gets another identity before the word of it is durable.
    JournalUnsynced,
    /// The word that a log gets another identity goes before that is durable.
    IdentityUnsynced,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 27] = [
        Bug::DirectorySyncSkipped,
        Bug::FirstSegmentUnsynced,
        Bug::SyncBeforeWrite,
        Bug::LostOpeningCut,
        Bug::SealAheadBelieved,
        Bug::TailBlockSkipped,
        Bug::LengthBeforeCrc,
        Bug::SyncRetried,
        Bug::PageCacheTrusted,
        Bug::SaltForgotten,
        Bug::DamagedMiddleCut,
        Bug::CutLeftStanding,
        Bug::HardStateTrimmed,
        Bug::SealWithoutSync,
        Bug::WatermarkStuck,
        Bug::SupersedeUnchecked,
        Bug::SettledReplaced,
        Bug::RemovalUnsynced,
        Bug::RecycledWhileRead,
        Bug::EndMarkOmitted,
        Bug::ReserveSpent,
        Bug::MendEndUnchecked,
        Bug::MarkerNotWritten,
        Bug::ReplacementUnsynced,
        Bug::OriginalRemovedFirst,
        Bug::JournalUnsynced,
        Bug::IdentityUnsynced,
    ];
}

/// Switches `bug` on in this thread, in place of any other.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether `bug` is switched on in this thread.
#[must_use]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
