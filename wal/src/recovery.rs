//! What recovery makes of what it finds: two tables, each total.
//!
//! Nothing here reads or writes. [`crate::open`] looks, fills in a [`Found`] or [`FoundSegment`], and does what the
//! verdict says.
//!
//! A record is *proven* when something written later says that it had been synced: a watermark above it, or the opening
//! of the next segment. Bytes that were proven and are not right any more are damage. Bytes that nothing proves may be
//! what a crash left of an unfinished write; no append among them was ever acknowledged by this node.

use crate::planted::{Bug, is_planted};

/// What stands at the next record boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stands {
    /// Zeroes.
    Nothing,
    /// A record of an earlier life of the file, whole or not.
    Stale,
    /// Something that fails a check.
    Broken,
    /// A record of ours in a format of the future.
    Newer,
    /// A control record of ours: hard state, sync point, reset, footer.
    Control,
    /// A frame of ours.
    Frame,
}

/// How a frame fits the entries before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// It follows the last entry.
    Next,
    /// It follows an earlier entry that is not known to be settled.
    Earlier,
    /// It would replace an entry known to be committed.
    Settled,
    /// It follows an entry before the first segment held. So a log may begin that started anew further on.
    Unanchored,
    /// It follows nothing.
    None,
}

/// What is behind the boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BehindIt {
    /// Zeroes up to the end of the file.
    Nothing,
    /// Bytes, but no record at all.
    Bytes,
    /// Records of an earlier life of the file, none of ours.
    Stale,
    /// Records of ours, none of which proves that this place was synced.
    Unproven,
    /// Proof that this place was synced.
    Proven,
}

/// All that decides about one boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) stands: Stands,
    pub(crate) link: Link,
    pub(crate) behind: BehindIt,
}

/// What to do at a boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Take the record in and go on behind it.
    Accept,
    /// Take the frame in; the entries from its index on are gone.
    Supersede,
    /// The log ends here, in prepared space.
    End,
    /// The log ends here; what follows is left over from an earlier life of the file.
    EndBeforeStale,
    /// The log ends here; what follows is an unfinished write.
    Torn,
    /// Bytes that had been synced are not right.
    Damaged,
    /// The bytes are right, and not of this log.
    WrongChain,
    /// Newer software wrote this.
    NewerVersion,
}

/// The decision about one boundary. `link` matters for frames only, `behind` for everything that is not a good record.
///
/// | stands | link | behind | verdict |
/// |---|---|---|---|
/// | control | - | - | `Accept` |
/// | frame | next | - | `Accept` |
/// | frame | earlier | - | `Supersede` |
/// | frame | unanchored | - | `Supersede`, if the log starts anew behind it: else the open is refused at the end |
/// | frame | settled or none | - | `WrongChain`: every byte is right, so it is no torn write |
/// | newer | - | - | `NewerVersion` |
/// | nothing | - | nothing | `End` |
/// | nothing | - | stale | `EndBeforeStale`: in a recycled file every write ends with zeroes |
/// | stale | - | nothing, bytes or stale | `EndBeforeStale` |
/// | nothing | - | bytes or unproven | `Torn`: the first sectors of a write are missing |
/// | stale | - | unproven | `Torn` |
/// | broken | - | nothing, bytes, stale or unproven | `Torn` |
/// | nothing, stale, broken | - | proven | `Damaged` |
pub(crate) fn verdict(found: Found) -> Verdict {
    use BehindIt::{Bytes, Nothing, Proven, Unproven};
    match (found.stands, found.link, found.behind) {
        (Stands::Control, _, _) | (Stands::Frame, Link::Next, _) => Verdict::Accept,
        (Stands::Frame, Link::Earlier | Link::Unanchored, _) => Verdict::Supersede,
        (Stands::Frame, Link::Settled, _) if is_planted(Bug::SettledReplaced) => Verdict::Supersede,
        (Stands::Frame, Link::Settled | Link::None, _) => Verdict::WrongChain,
        (Stands::Newer, _, _) => Verdict::NewerVersion,
        (Stands::Nothing | Stands::Stale | Stands::Broken, _, Proven) if is_planted(Bug::DamagedMiddleCut) => {
            Verdict::Torn
        }
        (Stands::Nothing | Stands::Stale | Stands::Broken, _, Proven) => Verdict::Damaged,
        (Stands::Nothing, _, Nothing) => Verdict::End,
        (Stands::Nothing, _, BehindIt::Stale) | (Stands::Stale, _, Nothing | Bytes | BehindIt::Stale) => {
            Verdict::EndBeforeStale
        }
        (Stands::Nothing, _, Bytes | Unproven)
        | (Stands::Stale, _, Unproven)
        | (Stands::Broken, _, Nothing | Bytes | BehindIt::Stale | Unproven) => Verdict::Torn,
    }
}

/// What the first block of a segment file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpeningIs {
    /// Zeroes, or too short to be one.
    Absent,
    /// Something that fails its check.
    Broken,
    /// In a format of the future.
    Newer,
    /// Valid, of another cluster, node or data directory.
    Foreign,
    /// Valid, of another segment: the file was renamed or copied.
    Misplaced,
    /// Valid, of a segment that was released: the file waits for its next life.
    Recycled,
    /// Valid and ours.
    Ours,
}

/// Where a segment stands among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    /// The lowest one, or right behind the one before it.
    InLine,
    /// The number before it has no file.
    BehindGap,
}

/// All that decides about one segment file, before its records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FoundSegment {
    pub(crate) opening: OpeningIs,
    pub(crate) position: Position,
    /// A segment with a higher number has a valid opening, so this one must have had one.
    pub(crate) begun_later: bool,
    /// Records of this segment in it.
    pub(crate) records: RecordsIn,
}

/// Records of a segment in a file that has not, or not any more, the opening of that segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordsIn {
    /// None.
    None,
    /// Some, and none was written after a sync of this segment: the opening is synced together with the first of them, so it may
    /// be what a crash left of that write.
    Unproven,
    /// Some that were written after a sync, which made the opening durable.
    Proven,
}

/// What to do with a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentVerdict {
    /// Read it.
    Use,
    /// No record was ever let into it: it is a prepared one.
    Prepared,
    /// What a crash left of the first write into it. Kept aside, it is a prepared one.
    Unfinished,
    /// Its opening had been synced and is not right.
    Damaged,
    /// The one before it is gone.
    Missing,
    /// It belongs to somebody else.
    Foreign,
    /// Newer software wrote it.
    NewerVersion,
}

/// The decision about one segment file.
///
/// | opening | position | begun later | records | verdict |
/// |---|---|---|---|---|
/// | newer | - | - | - | `NewerVersion` |
/// | foreign | - | - | - | `Foreign` |
/// | misplaced | - | - | - | `Damaged` |
/// | ours | behind a gap | - | - | `Missing` |
/// | ours | in line | - | - | `Use` |
/// | absent, broken, recycled | behind a gap | yes | - | `Missing` |
/// | absent, broken, recycled | behind a gap | no | unproven, proven | `Missing` |
/// | absent, broken, recycled | in line | yes | - | `Damaged` |
/// | absent, broken, recycled | in line | no | proven | `Damaged` |
/// | absent, broken, recycled | in line | no | unproven | `Unfinished`, if the segment before it is the last one begun and is sealed: see `open::check_successor` |
/// | absent, broken, recycled | - | no | none | `Prepared` |
pub(crate) fn segment_verdict(found: FoundSegment) -> SegmentVerdict {
    match (found.opening, found.position, found.begun_later, found.records) {
        (OpeningIs::Newer, _, _, _) => SegmentVerdict::NewerVersion,
        (OpeningIs::Foreign, _, _, _) => SegmentVerdict::Foreign,
        (OpeningIs::Misplaced, _, _, _) => SegmentVerdict::Damaged,
        (OpeningIs::Ours, Position::BehindGap, _, _) => SegmentVerdict::Missing,
        (OpeningIs::Ours, Position::InLine, _, _) => SegmentVerdict::Use,
        (OpeningIs::Absent | OpeningIs::Broken | OpeningIs::Recycled, position, begun_later, records) => {
            match (position, begun_later, records) {
                (_, false, RecordsIn::None) => SegmentVerdict::Prepared,
                (Position::BehindGap, _, _) => SegmentVerdict::Missing,
                (Position::InLine, true, _) | (Position::InLine, false, RecordsIn::Proven) => SegmentVerdict::Damaged,
                (Position::InLine, false, RecordsIn::Unproven) => SegmentVerdict::Unfinished,
            }
        }
    }
}

impl SegmentVerdict {
    /// Whether the log has, or had, something in it that counts.
    pub(crate) fn is_begun(self) -> bool {
        !matches!(self, SegmentVerdict::Prepared | SegmentVerdict::Unfinished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDS: [Stands; 6] =
        [Stands::Nothing, Stands::Stale, Stands::Broken, Stands::Newer, Stands::Control, Stands::Frame];
    const LINKS: [Link; 5] = [Link::Next, Link::Earlier, Link::Settled, Link::Unanchored, Link::None];
    const BEHIND: [BehindIt; 5] =
        [BehindIt::Nothing, BehindIt::Bytes, BehindIt::Stale, BehindIt::Unproven, BehindIt::Proven];

    /// Every combination has one verdict, and the verdicts keep the promises that do not depend on the details.
    #[test]
    fn every_boundary_has_one_verdict() {
        for stands in STANDS {
            for link in LINKS {
                for behind in BEHIND {
                    let verdict = verdict(Found { stands, link, behind });
                    let good = matches!(stands, Stands::Control | Stands::Frame);
                    let goes_on = matches!(verdict, Verdict::Accept | Verdict::Supersede);
                    let cuts = matches!(verdict, Verdict::End | Verdict::EndBeforeStale | Verdict::Torn);
                    assert!(good || !goes_on, "{stands:?} {link:?} {behind:?}: only good records are taken in");
                    assert!(!(cuts && behind == BehindIt::Proven), "{stands:?} {link:?}: nothing proven is ever cut");
                    assert!(!(cuts && good), "{stands:?} {link:?} {behind:?}: no good record is ever cut");
                    assert!(
                        link != Link::Settled || verdict != Verdict::Supersede,
                        "nothing settled is ever superseded"
                    );
                }
            }
        }
    }

    #[test]
    fn every_segment_has_one_verdict() {
        use OpeningIs::{Absent, Broken, Foreign, Misplaced, Newer, Ours, Recycled};
        for opening in [Absent, Broken, Newer, Foreign, Misplaced, Recycled, Ours] {
            for position in [Position::InLine, Position::BehindGap] {
                let records = [RecordsIn::None, RecordsIn::Unproven, RecordsIn::Proven];
                for (begun_later, records) in records.iter().flat_map(|records| [(false, *records), (true, *records)]) {
                    let verdict = segment_verdict(FoundSegment { opening, position, begun_later, records });
                    assert!(
                        verdict != SegmentVerdict::Use || opening == Ours,
                        "{opening:?}: only our own segments are read"
                    );
                    assert!(
                        verdict != SegmentVerdict::Prepared || !(begun_later || records != RecordsIn::None),
                        "{opening:?}: nothing written is taken for prepared"
                    );
                    assert!(
                        verdict.is_begun() || !(begun_later || records == RecordsIn::Proven),
                        "{opening:?}: nothing that was durable is cut"
                    );
                    assert!(verdict.is_begun() || opening != Ours, "{opening:?}: what has its opening counts");
                }
            }
        }
    }
}
