//! Going through the segments in order, rebuilding what the writer knew.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use graven_frame::Header;

use crate::disk::{Disk, DiskFile};
use crate::error::{Damage, OpenError, SegmentId};
use crate::format::{
    FORMAT_VERSION, Footer, OPENING_BYTES, Opening, POINT_BYTES, POINT_SPACING, TRAILER_BYTES, segment_name,
};
use crate::index::{LogIndex, View};
use crate::log::follows;
use crate::open::{SHORTER, empty_index, empty_segment, io_at, view};
use crate::planted::{Bug, is_planted};
use crate::recovery::{BehindIt, Found, Link, Stands, Verdict, verdict};
use crate::scan::{Behind, Content, Probe, Record, Scanner, WINDOW_BYTES};
use crate::types::{HardState, LogBase, RecoveryReport};

/// The state of the log as far as it was read.
pub(crate) struct Replay {
    pub(crate) index: LogIndex,
    pub(crate) tail: LogBase,
    pub(crate) hard_state: HardState,
    pub(crate) known_commit: u64,
    pub(crate) last_segment: u64,
    pub(crate) report: RecoveryReport,
    /// How the last segment ends.
    pub(crate) ended: Option<Ended>,
    /// Read every record, also where a footer knows them.
    pub(crate) deep: bool,
    /// Damage was passed over: what an entry continues may have been lost in it.
    pub(crate) holes: bool,
    /// An entry that supersedes one before the first segment held: segment, place and index. Right only when the log
    /// starts anew behind it, which is why the segments before could be released.
    pub(crate) unanchored: Option<(u64, u64, u64)>,
}

/// The end of the last segment.
pub(crate) struct Ended {
    pub(crate) view: Arc<View>,
    pub(crate) capacity: u64,
    /// Byte behind the last record that is kept.
    pub(crate) at: u64,
    /// Everything below was proven to be durable.
    pub(crate) proven: u64,
    pub(crate) sealed: bool,
    pub(crate) why: Why,
    /// Whether records of an earlier life of the file follow.
    pub(crate) recycled: bool,
    /// Hard states of which one copy is gone: where they stand, and the bytes that should stand there.
    pub(crate) repairs: Vec<(u64, Vec<u8>)>,
}

/// Why the log ends where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Clean,
    Torn { used_to: u64 },
}

/// What ended the walk through one segment.
struct Stop {
    at: u64,
    proven: u64,
    sealed: bool,
    repairs: Vec<(u64, Vec<u8>)>,
    healed: Vec<(u64, u64)>,
    /// The boundary where no record could be accepted, and what was wrong there.
    broken: Option<(Verdict, Behind, &'static str)>,
}

impl Replay {
    pub(crate) fn new() -> Replay {
        Replay {
            index: empty_index(),
            tail: LogBase::default(),
            hard_state: HardState::default(),
            known_commit: 0,
            last_segment: 0,
            report: RecoveryReport::default(),
            ended: None,
            deep: false,
            holes: false,
            unanchored: None,
        }
    }

    /// Takes in one segment; `next` is the opening of the one behind it, which proves that all of this one was synced.
    pub(crate) fn segment<D: Disk>(
        &mut self,
        disk: &D,
        opening: &Opening,
        len: u64,
        next: Option<&Opening>,
    ) -> Result<(), OpenError> {
        let id = opening.segment;
        if self.index.segments.is_empty() {
            self.index.base = opening.base;
            self.index.last = opening.base.index;
            self.tail = opening.base;
        } else if opening.base != self.tail {
            return Err(OpenError::WrongChain { segment: SegmentId(id), at: 0, index: opening.base.index });
        }
        self.last_segment = id;
        self.hard_state = opening.hard_state;
        self.known_commit = self.known_commit.max(opening.known_commit);
        if len < opening.capacity {
            let lost = next.map_or((self.tail.index + 1, self.tail.index + 1), |next| {
                self.lost_up_to(next.base.index, next.base.term)
            });
            return Err(self.damaged(id, len, opening.capacity, lost, SHORTER));
        }
        let file = disk.open(&segment_name(id), None).map_err(io_at("open", id, 0))?;
        let mut scanner = Scanner::new(&file, id, Some(opening.salt), opening.capacity);
        let view = view(&file, opening, opening.capacity)?;
        let known = match next {
            Some(next) => known_by_footer(&mut scanner, next)?,
            None => None,
        };
        let sealed_well = known.is_some();
        if let (Some((footer, end)), false) = (known, self.deep) {
            view.written.store(end, Ordering::Release);
            self.hard_state = footer.hard_state;
            self.known_commit = self.known_commit.max(footer.known_commit);
            self.tail = footer.tail;
            self.unanchored = self.unanchored.filter(|_| !footer.reset);
            self.index.push_sealed(empty_segment(&view, opening), footer);
            return Ok(());
        }
        self.report.scanned_segments += 1;
        self.index.segments.push(empty_segment(&view, opening));
        let stop = self.walk(disk, &mut scanner, next.is_some())?;
        self.report_healed(id, &stop, next.is_some());
        view.written.store(stop.at, Ordering::Release);
        match next {
            Some(next) => self.close_scanned(id, &stop, next, sealed_well),
            None => {
                self.end(view, opening.capacity, stop);
                Ok(())
            }
        }
    }

    /// At the end: whether every entry continued one that is held, or was left behind by a reset.
    pub(crate) fn check_anchored(&self) -> Result<(), OpenError> {
        match self.unanchored {
            Some((segment, at, index)) => Err(OpenError::WrongChain { segment: SegmentId(segment), at, index }),
            // Every sum is right, and still the segments are not of one log.
            None if self.index.check().is_err() => Err(OpenError::WrongChain {
                segment: SegmentId(self.index.segments.first().map_or(0, |segment| segment.view.id)),
                at: 0,
                index: self.index.base.index,
            }),
            None => Ok(()),
        }
    }

    /// A segment with a successor that was read record by record: its records must lead to where the successor starts.
    fn close_scanned(&mut self, id: u64, stop: &Stop, next: &Opening, sealed_well: bool) -> Result<(), OpenError> {
        if self.tail != next.base {
            let (to, what) =
                stop.broken.map_or((stop.at, "the segment does not lead to the next one"), |(_, behind, what)| {
                    (behind.next.unwrap_or(behind.used_to), what)
                });
            let lost = match stop.broken.and_then(|(_, behind, _)| behind.next_entry) {
                Some(entry) => self.lost_before(&entry),
                None => self.lost_up_to(next.base.index, next.base.term),
            };
            return Err(self.damaged(id, stop.at, to, lost, what));
        }
        let (from, to) = match stop.broken {
            Some((_, behind, _)) => (stop.at, behind.used_to.max(stop.at)),
            // The walk came to a footer that is whole, so it is the trailer that does not lead there.
            None => {
                let capacity = self.index.segments.last().map_or(stop.at, |segment| segment.capacity);
                (capacity.saturating_sub(TRAILER_BYTES), capacity)
            }
        };
        if sealed_well && stop.broken.is_none() {
            return Ok(());
        }
        let what = if sealed_well {
            "a control record is damaged; no entry is lost"
        } else {
            "the footer or trailer is damaged; all records before it are there"
        };
        let damage = Damage {
            segment: SegmentId(id),
            from,
            to,
            first_index: self.tail.index + 1,
            last_index: self.tail.index,
            what,
        };
        self.report.healed.push(damage);
        Ok(())
    }

    fn end(&mut self, view: Arc<View>, capacity: u64, stop: Stop) {
        let mut why = Why::Clean;
        let recycled = stop.broken.as_ref().is_some_and(|(_, behind, _)| behind.stale);
        match stop.broken {
            Some((Verdict::Torn, behind, _)) => why = Why::Torn { used_to: behind.cut_to(stop.at) },
            Some((Verdict::EndBeforeStale, behind, _)) => self.report.stale_bytes = behind.used_to - stop.at,
            _ => {}
        }
        self.ended = Some(Ended {
            view,
            capacity,
            at: stop.at,
            proven: stop.proven,
            sealed: stop.sealed,
            why,
            recycled,
            repairs: stop.repairs,
        });
    }

    /// Names copies of hard states that were lost after they had been synced. Where nothing proves that, a crash may have
    /// come between the two.
    fn report_healed(&mut self, id: u64, stop: &Stop, closed: bool) {
        let what = "one of two copies of a hard state is damaged; the other one was used";
        let (first_index, last_index) = (self.tail.index + 1, self.tail.index);
        for (from, to) in stop.healed.iter().copied().filter(|(from, _)| closed || *from < stop.proven) {
            self.report.healed.push(Damage { segment: SegmentId(id), from, to, first_index, last_index, what });
        }
    }

    /// Takes in records until one is not acceptable. `closed` says that everything in the segment is proven.
    fn walk<D: Disk>(&mut self, disk: &D, scanner: &mut Scanner<'_, D::File>, closed: bool) -> Result<Stop, OpenError> {
        let id = scanner.segment;
        let mut stop =
            Stop { at: OPENING_BYTES, proven: 0, sealed: false, repairs: Vec::new(), healed: Vec::new(), broken: None };
        loop {
            let at = stop.at;
            let probe = scanner.probe(at).map_err(io_at("read", id, at))?;
            let found = self.found(disk, scanner, &probe, &stop, closed)?;
            let (found, behind) = found;
            match (verdict(found), probe) {
                (Verdict::Accept | Verdict::Supersede, Probe::Good(record)) => {
                    if let (Link::Unanchored, Content::Frame(header)) = (found.link, &record.content) {
                        self.unanchored = Some((id, at, header.index));
                    }
                    stop.at = record.end;
                    stop.proven = stop.proven.max(record.watermark);
                    stop.sealed = self.take(&record);
                    if let (Content::HardState(hard_state), Some(range)) = (&record.content, record.healed) {
                        stop.repairs.push(record.prefix.both_copies(*hard_state));
                        stop.healed.push(range);
                    }
                    if stop.sealed {
                        return Ok(stop);
                    }
                }
                (Verdict::WrongChain, Probe::Good(Record { content: Content::Frame(header), .. })) => {
                    return Err(OpenError::WrongChain { segment: SegmentId(id), at, index: header.index });
                }
                (Verdict::NewerVersion, Probe::Newer(seen)) => {
                    return Err(OpenError::NewerVersion { segment: SegmentId(id), seen, known: FORMAT_VERSION });
                }
                (verdict, probe) => {
                    let what = match probe {
                        Probe::Bad(what) => what,
                        Probe::Zero => "zeroes where a record was",
                        _ => "an older record where a newer one was",
                    };
                    stop.broken = Some((verdict, behind, what));
                    // In a closed segment the successor says how far the entries go; there the caller decides.
                    if verdict == Verdict::Damaged && !closed {
                        let to = behind.next.unwrap_or(behind.used_to);
                        let unknown = (self.tail.index + 1, self.tail.index + 1);
                        let lost = behind.next_entry.map_or(unknown, |entry| self.lost_before(&entry));
                        return Err(self.damaged(id, at, to, lost, what));
                    }
                    return Ok(stop);
                }
            }
        }
    }

    /// Fills in what the table decides by.
    fn found<D: Disk>(
        &self,
        disk: &D,
        scanner: &mut Scanner<'_, D::File>,
        probe: &Probe,
        stop: &Stop,
        closed: bool,
    ) -> Result<(Found, Behind), OpenError> {
        let mut found = Found { stands: Stands::Control, link: Link::None, behind: BehindIt::Nothing };
        found.stands = match probe {
            Probe::Good(Record { content: Content::Frame(header), .. }) => {
                found.link = self.link(disk, scanner, header)?;
                Stands::Frame
            }
            Probe::Good(_) => Stands::Control,
            Probe::Newer(_) => Stands::Newer,
            Probe::Zero => Stands::Nothing,
            Probe::Stale => Stands::Stale,
            Probe::Bad(_) => Stands::Broken,
        };
        if matches!(found.stands, Stands::Frame | Stands::Control | Stands::Newer) {
            return Ok((found, Behind::default()));
        }
        let behind = scanner.behind(stop.at).map_err(io_at("read", scanner.segment, stop.at))?;
        found.behind = if closed || stop.proven.max(behind.watermark) > stop.at {
            BehindIt::Proven
        } else if behind.next.is_some() {
            BehindIt::Unproven
        } else if behind.stale {
            BehindIt::Stale
        } else if behind.used_to > stop.at {
            BehindIt::Bytes
        } else {
            BehindIt::Nothing
        };
        Ok((found, behind))
    }

    fn link<D: Disk>(&self, disk: &D, scanner: &mut Scanner<'_, D::File>, header: &Header) -> Result<Link, OpenError> {
        if follows(&self.tail, header).is_ok() {
            return Ok(Link::Next);
        }
        if header.index > self.tail.index {
            return Ok(Link::None);
        }
        if header.index <= self.index.base.index {
            let starts_here =
                self.index.segments.len() == 1 && !self.index.segments.iter().any(|segment| segment.reset);
            return Ok(match starts_here {
                true if header.index <= self.known_commit => Link::Settled,
                true => Link::Unanchored,
                false => Link::None,
            });
        }
        let before = match self.entry(disk, scanner, header.index - 1) {
            // Verification has named what is damaged there.
            Err(OpenError::Damaged(_)) if self.holes => return Ok(Link::Earlier),
            before => before?,
        };
        Ok(match before {
            Some(before) if follows(&before, header).is_err() && !is_planted(Bug::SupersedeUnchecked) => Link::None,
            None if self.holes => Link::Earlier,
            None => Link::None,
            Some(_) if header.index <= self.known_commit => Link::Settled,
            Some(_) => Link::Earlier,
        })
    }

    /// Reads the entry `index` again, as the place behind which the log goes on.
    fn entry<D: Disk>(
        &self,
        disk: &D,
        scanner: &mut Scanner<'_, D::File>,
        index: u64,
    ) -> Result<Option<LogBase>, OpenError> {
        if index == self.index.base.index {
            return Ok(Some(self.index.base));
        }
        let Some(stretch) = self.index.locate(index) else { return Ok(None) };
        let located = stretch.resolve(|point| point.index, index).map_err(OpenError::Damaged)?;
        let id = located.view.id;
        if id == scanner.segment {
            return walk_to(scanner, located.position, index);
        }
        let file = disk.open(&segment_name(id), None).map_err(io_at("open", id, 0))?;
        let len = file.len().map_err(io_at("open", id, 0))?;
        walk_to(&mut Scanner::new(&file, id, Some(located.view.salt), len), located.position, index)
    }

    /// Takes in a valid record; `true` when it seals the segment.
    fn take(&mut self, record: &Record) -> bool {
        self.known_commit = self.known_commit.max(record.known_commit);
        match &record.content {
            Content::Frame(header) => {
                self.index.push(header, record.position);
                self.tail = LogBase::after(header);
            }
            Content::HardState(hard_state) => self.hard_state = *hard_state,
            Content::Reset(base) => {
                self.index.reset(*base);
                self.tail = *base;
                self.unanchored = None;
                if let Some(segment) = self.index.segments.last_mut() {
                    segment.reset = true;
                }
            }
            Content::Footer(_) => return true,
            Content::SyncPoint | Content::Trailer(_) => {}
        }
        false
    }

    /// First and last entry that were lost between the last one read and this one.
    fn lost_before(&self, next: &Header) -> (u64, u64) {
        if follows(&self.tail, next).is_ok() {
            return (self.tail.index + 1, self.tail.index);
        }
        self.lost_up_to(next.index - 1, next.term)
    }

    /// The same, where the log goes on in this term behind the entry `last`. Another term says that what was lost may have
    /// superseded entries that were read; those known to be committed it did not.
    fn lost_up_to(&self, last: u64, term: u64) -> (u64, u64) {
        let settled = self.known_commit.max(self.index.base.index).min(self.tail.index);
        let superseded = term != self.tail.term || last < self.tail.index;
        (if superseded { settled + 1 } else { self.tail.index + 1 }, last)
    }

    fn damaged(
        &self,
        segment: u64,
        from: u64,
        to: u64,
        (first_index, last_index): (u64, u64),
        what: &'static str,
    ) -> OpenError {
        OpenError::Damaged(Damage { segment: SegmentId(segment), from, to, first_index, last_index, what })
    }
}

/// The footer of a sealed segment and the byte behind it, if both footer and trailer are intact and lead to `next`.
fn known_by_footer<F: DiskFile>(
    scanner: &mut Scanner<'_, F>,
    next: &Opening,
) -> Result<Option<(Footer, u64)>, OpenError> {
    let trailer_at = scanner.len - TRAILER_BYTES;
    // Not more than is needed: this is done for every sealed segment of a log.
    scanner.at_once = footer_bytes_at_most(scanner.len);
    let found = footer_by_trailer(scanner, trailer_at);
    scanner.at_once = WINDOW_BYTES;
    Ok(found?.filter(|(footer, _)| footer.tail == next.base))
}

/// What footer and trailer of a segment of this capacity take, but for one with very many terms or changes of membership.
fn footer_bytes_at_most(capacity: u64) -> usize {
    (capacity / POINT_SPACING) as usize * POINT_BYTES + FOOTER_MORE_BYTES
}

/// Room for the fixed parts, and for some terms and changes of membership.
const FOOTER_MORE_BYTES: usize = 4 << 10;

fn footer_by_trailer<F: DiskFile>(
    scanner: &mut Scanner<'_, F>,
    trailer_at: u64,
) -> Result<Option<(Footer, u64)>, OpenError> {
    let id = scanner.segment;
    let trailer = scanner.probe(trailer_at).map_err(io_at("read", id, trailer_at))?;
    let Probe::Good(Record { content: Content::Trailer(at), .. }) = trailer else { return Ok(None) };
    if at < OPENING_BYTES || at >= trailer_at {
        return Ok(None);
    }
    match scanner.probe(at).map_err(io_at("read", id, at))? {
        Probe::Good(Record { content: Content::Footer(footer), end, .. }) => Ok(Some((footer, end))),
        _ => Ok(None),
    }
}

/// Walks from a point to an entry of the log; damage before it is passed over, damage in its place is an error.
fn walk_to<F: DiskFile>(scanner: &mut Scanner<'_, F>, from: u64, index: u64) -> Result<Option<LogBase>, OpenError> {
    let (mut at, id) = (from, scanner.segment);
    let mut broken = None;
    loop {
        match scanner.probe(at).map_err(io_at("read", id, at))? {
            Probe::Good(Record { content: Content::Frame(header), .. }) if header.index == index => {
                return Ok(Some(LogBase::after(&header)));
            }
            Probe::Good(Record { content: Content::Frame(header), .. }) if header.index > index => break,
            Probe::Good(Record { content: Content::Footer(_), .. }) => break,
            Probe::Good(record) => at = record.end,
            _ => {
                let behind = scanner.behind(at).map_err(io_at("read", id, at))?;
                let to = behind.next.unwrap_or(behind.used_to);
                broken = Some((at, to));
                match behind.next {
                    Some(next) => at = next,
                    None => break,
                }
            }
        }
    }
    let what = "an entry that a later one continues cannot be read";
    let damage = |(from, to)| Damage { segment: SegmentId(id), from, to, first_index: index, last_index: index, what };
    broken.map_or(Ok(None), |range| Err(OpenError::Damaged(damage(range))))
}
