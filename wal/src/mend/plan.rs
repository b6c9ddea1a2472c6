//! Which segments are written anew, and what goes into them.
//!
//! Every segment in which bytes are wrong is, and every one whose opening names an entry that the log will not have: a superseded
//! entry that cannot be fetched from anybody. Neighbours that depend on each other form a group, which is put in place as a whole,
//! from the last segment to the first. Power may fail between two: the later ones then already say what the damaged ones lead to,
//! and those are as damaged as before.

use crate::error::SegmentId;
use crate::format::Opening;
use crate::mend::sequence::{Gap, Piece, Sequence};
use crate::mend::survey::{Broken, Part, Run, Segment};
use crate::mend::{After, Hole, LEAST_FRAME_RECORD, Place};
use crate::repair::higher;
use crate::types::{HardState, LogBase};

/// A segment that is written anew.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) id: u64,
    /// Whether there is a file whose place it takes.
    pub(crate) there: bool,
    pub(crate) opening: Option<Opening>,
    pub(crate) salt: Option<u64>,
    /// Bytes that it has at least.
    pub(crate) capacity: u64,
    pub(crate) closed: bool,
    pub(crate) items: Vec<Item>,
    /// At its start, and at its end.
    pub(crate) hard_states: (HardState, HardState),
    pub(crate) known_commits: (u64, u64),
}

/// What goes into a segment, in order.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Reset(LogBase),
    Run(Run),
    /// The entries of this gap. Those that do not fit go on in the segments behind, up to the given one.
    Gap(usize, u64),
}

/// Segments that are put in place together.
#[derive(Debug)]
pub(crate) struct Group {
    /// The entry before the first of them.
    pub(crate) start: LogBase,
    /// The entry before the first one of the log, for the footers.
    pub(crate) log_base: LogBase,
    pub(crate) targets: Vec<Target>,
}

impl Group {
    pub(crate) fn holds(&self, segment: u64) -> bool {
        self.targets.iter().any(|target| target.id == segment)
    }
}

/// All that is to be done.
pub(crate) struct Plan {
    pub(crate) groups: Vec<Group>,
    pub(crate) gaps: Vec<Gap>,
}

/// Plans the mending of these segments. `start` is the entry before the first of them; a segment that is not there any more gets
/// `segment_bytes`.
pub(crate) fn plan(sequence: &Sequence, segments: &[Segment], start: LogBase, segment_bytes: u64) -> Plan {
    let gaps: Vec<Gap> = sequence
        .pieces
        .iter()
        .filter_map(|piece| match piece {
            Piece::Gap(gap) => Some(gap.clone()),
            Piece::Run(_) => None,
        })
        .collect();
    let mut plan = Plan { groups: Vec::new(), gaps };
    let mut known = (HardState::default(), 0);
    // The last entry before the segment, as it will be; `None` where it is known only when a gap is filled.
    let mut tail = Some(start);
    let mut group: Option<Group> = None;
    for (at, segment) in segments.iter().enumerate() {
        let before = segment
            .opening
            .map_or(known, |opening| (higher(known.0, opening.hard_state), opening.known_commit.max(known.1)));
        known = at_end(segment, before, segments.get(at + 1));
        let spanned =
            plan.gaps.iter().any(|gap| spans(gap).is_some_and(|(from, to)| from < segment.id && segment.id <= to));
        let fits = segment.opening.is_some_and(|opening| Some(opening.base) == tail);
        let damaged =
            !segment.there || segment.parts.iter().any(|(part, _)| matches!(part, Part::Hidden(_) | Part::Spare(_)));
        let continues = group.is_some() && (spanned || !fits);
        if !continues {
            plan.groups.extend(group.take());
        }
        if !(damaged || spanned || !fits) {
            tail = segment.footer.as_ref().map(|footer| footer.tail);
            continue;
        }
        let items = items_of(sequence, segment.id);
        let starts = tail;
        tail = match items.last() {
            Some(Item::Run(run)) => Some(run.tail),
            Some(Item::Reset(base)) => Some(*base),
            Some(Item::Gap(number, _)) => match plan.gaps[*number].after {
                Some(After::Base(base)) => Some(base),
                _ => None,
            },
            None => tail,
        };
        let target = Target {
            id: segment.id,
            there: segment.there,
            opening: segment.opening,
            salt: segment.salt,
            capacity: segment.opening.map_or(segment.len.max(segment_bytes), |opening| opening.capacity),
            // One that was sealed stays so: what stands in the file behind it counts as unfinished only then.
            closed: segment.closed || segment.footer.is_some(),
            items,
            hard_states: (before.0, known.0),
            known_commits: (segment.opening.map_or(before.1, |opening| opening.known_commit), known.1),
        };
        let log_base = sequence.base;
        group
            .get_or_insert_with(|| Group { start: starts.unwrap_or(start), log_base, targets: Vec::new() })
            .targets
            .push(target);
    }
    plan.groups.extend(group);
    plan
}

/// Hard state and known commit index at the end of a segment.
fn at_end(segment: &Segment, before: (HardState, u64), next: Option<&Segment>) -> (HardState, u64) {
    let (mut hard_state, mut commit) = before;
    for (part, known) in &segment.parts {
        commit = commit.max(*known);
        if let Part::HardState(found) | Part::Sealed(_, found) = part {
            hard_state = higher(hard_state, *found);
        }
    }
    if let Some(opening) = next.and_then(|next| next.opening) {
        hard_state = higher(hard_state, opening.hard_state);
    }
    (hard_state, commit)
}

/// First and last segment into which the entries of a gap go.
fn spans(gap: &Gap) -> Option<(u64, u64)> {
    Some((gap.places.first()?.segment, gap.places.last()?.segment))
}

fn items_of(sequence: &Sequence, segment: u64) -> Vec<Item> {
    let mut items = Vec::new();
    if sequence.reset_in == Some(segment) {
        items.push(Item::Reset(sequence.base));
    }
    let mut number = 0;
    for piece in &sequence.pieces {
        match piece {
            Piece::Run(run) if run.segment == segment => items.push(Item::Run(run.clone())),
            Piece::Run(_) => {}
            Piece::Gap(gap) => {
                if let Some((from, to)) = spans(gap)
                    && from == segment
                {
                    items.push(Item::Gap(number, to));
                }
                number += 1;
            }
        }
    }
    items
}

/// The holes that the owner is told of, in the order in which they lie in the files; for each the number of its gap, if it has one.
pub(crate) fn holes(plan: &Plan, spare: &[Broken]) -> Vec<(Hole, Option<usize>)> {
    let place = |broken: &Broken| Place { segment: SegmentId(broken.segment), from: broken.from, to: broken.to };
    let mut holes: Vec<(Hole, Option<usize>)> = Vec::new();
    for (number, gap) in plan.gaps.iter().enumerate() {
        // The one that surely can hold entries names the hole.
        let main = gap.places.iter().find(|broken| broken.room >= LEAST_FRAME_RECORD).or(gap.places.first());
        let Some(main) = main else { continue };
        let hole = Hole {
            segment: SegmentId(main.segment),
            from: main.from,
            to: main.to,
            places: gap.places.iter().map(place).collect(),
            first: gap.first,
            last: gap.last,
            before: gap.before,
            after: gap.after,
            what: main.what,
        };
        holes.push((hole, Some(number)));
    }
    let mut seen: Vec<Broken> = Vec::new();
    for broken in spare.iter().filter(|broken| plan.groups.iter().any(|group| group.holds(broken.segment))) {
        if seen.contains(broken) {
            continue;
        }
        seen.push(*broken);
        let hole = Hole {
            segment: SegmentId(broken.segment),
            from: broken.from,
            to: broken.to,
            places: vec![place(broken)],
            first: 1,
            last: Some(0),
            before: LogBase::default(),
            after: None,
            what: broken.what,
        };
        holes.push((hole, None));
    }
    holes.sort_by_key(|(hole, _)| (hole.segment, hole.from));
    holes
}

/// The entry before the first one, where the first segment's opening is lost: one that is named elsewhere and that the first entry
/// continues; else the highest one named below it. At worst the log is asked for from its beginning.
pub(crate) fn find_start(segments: &[Segment]) -> LogBase {
    let Some(first) = segments.first() else { return LogBase::default() };
    if let Some(opening) = &first.opening {
        return opening.base;
    }
    let head = first.parts.iter().find_map(|(part, _)| match part {
        Part::Run(run) => Some(run.head),
        _ => None,
    });
    let mut named: Vec<LogBase> =
        segments.iter().filter_map(|segment| segment.footer.as_ref()).map(|footer| footer.base).collect();
    named.push(LogBase::default());
    if let Some(base) = head.and_then(|head| named.iter().find(|base| crate::log::follows(base, &head).is_ok())) {
        return *base;
    }
    let below = head.map_or(u64::MAX, |head| head.index);
    let next =
        segments.iter().skip(1).find_map(|segment| segment.opening).map_or(u64::MAX, |opening| opening.base.index);
    let below = below.min(next.saturating_add(1));
    named.into_iter().filter(|base| base.index < below).max_by_key(|base| base.index).unwrap_or_default()
}
