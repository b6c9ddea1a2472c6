//! What clients did and were told, and what must be true of it in the end.
//!
//! One process, one monotonic clock: every call is noted before it is made and after it has returned. A call that failed with an
//! outcome of *unknown*, or that was abandoned, may take effect at any time after its call, or never. When all is healed the
//! whole log is read, and [`check`] compares the two:
//!
//! | property | what is looked for |
//! |---|---|
//! | P1 | an acknowledged append that is not there |
//! | P2 | one that is there at other offsets than it was told; a record that nobody appended, or with other bytes |
//! | P3 | an append whose records are not together, in order, all there |
//! | P7 | an append that is there twice |
//! | P8 | a history without a linearization: [`linearizability`](crate::check::linearizability) |
//! | P10 | an append that was refused and is there; a condition that was not kept |
//!
//! P4 and the equality of all nodes are looked at as records arrive: [`Journal::delivered`]. What every record was is kept then, so
//! that the log may be trimmed meanwhile, up to where somebody has read it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use graven::{Ack, AppendError, Detail, ErrorCode, Outcome};
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::payload::Landed;
use crate::check::Violation;
use crate::check::linearizability::{History, Read};

/// Violations that are kept; what broke often broke for one reason.
const VIOLATIONS_MAX: usize = 20;

/// One append call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Append {
    /// Which client made it.
    pub client: u32,
    /// When, in nanoseconds of the run.
    pub called: u64,
    /// When it returned, if it did.
    pub returned: Option<u64>,
    /// Its records.
    pub parts: u32,
    /// The offset it was to land at, if it had one in mind.
    pub expect: Option<u64>,
    /// What the client was told.
    pub end: End,
}

/// What a client was told about an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum End {
    /// Nothing yet.
    Pending,
    /// It stands at these offsets.
    Acknowledged {
        /// Of its first record.
        first: u64,
        /// Of its last record.
        last: u64,
    },
    /// It did not happen and will not.
    Refused,
    /// It may have happened, or the client stopped waiting.
    Unknown,
}

/// The notes of a run, shared by everybody who makes calls.
#[derive(Debug)]
pub struct Journal {
    began: Instant,
    notes: Mutex<Notes>,
    /// Every record that any reader was given, by offset.
    seen: Mutex<Vec<Seen>>,
    /// Records given to subscriptions.
    pub subscription_records: AtomicU64,
    /// Clients make no more calls.
    pub closing: AtomicBool,
    /// Subscriptions end here.
    pub until: AtomicU64,
}

/// A record as the first reader was given it.
#[derive(Debug, Clone, Copy)]
struct Seen {
    print: u64,
    landed: Option<Landed>,
}

#[derive(Debug, Default)]
struct Notes {
    appends: Vec<Append>,
    reads: Vec<Read>,
    violations: Vec<Violation>,
    /// When an append was acknowledged last, and the longest time without one.
    last_ack: u64,
    longest_gap: u64,
    /// The latest call that was acknowledged.
    latest_call: u64,
    /// Terms of leaders that acknowledged something.
    terms: BTreeSet<u64>,
    /// Where the log was asked to begin, and the latest of those that were acknowledged.
    trims: BTreeSet<u64>,
    trimmed: u64,
    trims_ok: u64,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal {
            began: Instant::now(),
            notes: Mutex::default(),
            seen: Mutex::default(),
            subscription_records: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            until: AtomicU64::new(u64::MAX),
        }
    }
}

impl Journal {
    /// Nanoseconds since the run began.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// An append is about to be made; its number.
    pub fn call(&self, client: u32, parts: u32, expect: Option<u64>) -> u64 {
        let mut notes = self.lock();
        // The clock is read under the lock: no later call gets an earlier moment.
        let append = Append { client, called: self.now(), returned: None, parts, expect, end: End::Pending };
        notes.appends.push(append);
        notes.appends.len() as u64 - 1
    }

    /// The append of this number has returned.
    pub fn answer(&self, append: u64, answer: &Result<Ack, AppendError>) {
        let now = self.now();
        match answer {
            Ok(ack) => {
                self.end(append, now, End::Acknowledged { first: ack.first, last: ack.last });
                self.lock().terms.insert(ack.term);
            }
            Err(error) if error.outcome() == Outcome::Refused => self.end(append, now, End::Refused),
            Err(_) => self.end(append, now, End::Unknown),
        }
        if let Err(error) = answer
            && error.code() == ErrorCode::Conflict
            && let Some(Detail::Number(length)) = error.failure().details.get("next_offset")
        {
            // Such a refusal tells the length of the log as it was judged: as good as a read.
            let called = self.lock().appends[append as usize].called;
            self.read(Read { called, answered: now, length: *length });
        }
    }

    /// Nobody waits for the append of this number any more.
    pub fn give_up(&self, append: u64) {
        let now = self.now();
        self.end(append, now, End::Unknown);
    }

    /// It was refused before it was sent, or because one before it was.
    pub fn refuse(&self, append: u64) {
        let now = self.now();
        self.end(append, now, End::Refused);
    }

    fn end(&self, append: u64, now: u64, end: End) {
        let mut notes = self.lock();
        let Some(note) = notes.appends.get_mut(append as usize) else { return };
        (note.returned, note.end) = (Some(now), end);
        let called = note.called;
        if matches!(end, End::Acknowledged { .. }) {
            notes.longest_gap = notes.longest_gap.max(now.saturating_sub(notes.last_ack));
            notes.last_ack = notes.last_ack.max(now);
            notes.latest_call = notes.latest_call.max(called);
        }
    }

    /// A linearizable read was answered.
    pub fn read(&self, read: Read) {
        self.lock().reads.push(read);
    }

    /// Whether an append that was called after `moment` was acknowledged.
    #[must_use]
    pub fn acknowledged_since(&self, moment: u64) -> bool {
        self.lock().latest_call > moment
    }

    /// From now on, or from the end of an earlier measurement, gaps between acknowledgements count.
    pub fn begin_gaps(&self) {
        let now = self.now();
        let mut notes = self.lock();
        (notes.last_ack, notes.longest_gap) = (now, 0);
    }

    /// When an append was acknowledged last.
    #[must_use]
    pub fn last_ack(&self) -> u64 {
        self.lock().last_ack
    }

    /// The longest time without an acknowledgement since [`Journal::begin_gaps`], in milliseconds.
    #[must_use]
    pub fn longest_gap_ms(&self) -> u64 {
        self.lock().longest_gap / 1_000_000
    }

    /// A reader was given the record at `offset`. The first to get it says what it is; all others must get the same.
    ///
    /// # Errors
    /// They did not, or a record before it was given to nobody.
    pub fn delivered(&self, who: &str, offset: u64, meta: &[u8], payload: &[u8]) -> Result<(), Violation> {
        let print = xxh3_64(payload) ^ xxh3_64(meta).rotate_left(1);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.len() as u64;
        match usize::try_from(offset).ok().and_then(|at| seen.get(at)) {
            Some(first) if first.print == print => Ok(()),
            Some(_) => {
                let detail = format!("{who} is given other bytes at offset {offset} than another reader was");
                Err(Violation { property: "P2", detail })
            }
            None if offset == known => {
                seen.push(Seen { print, landed: Landed::read(meta, payload) });
                Ok(())
            }
            None => {
                let detail = format!("{who} is given offset {offset}, and the records from {known} on were not given");
                Err(Violation { property: "P4", detail })
            }
        }
    }

    /// How many records somebody was given: all before this offset may be trimmed.
    #[must_use]
    pub fn known(&self) -> u64 {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    /// What each record is that anybody was given, by offset.
    #[must_use]
    pub fn log(&self) -> Vec<Option<Landed>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().map(|seen| seen.landed).collect()
    }

    /// The log is about to be asked to begin at `before`.
    pub fn trim(&self, before: u64) {
        self.lock().trims.insert(before);
    }

    /// A trim was acknowledged: the log begins at `first`.
    ///
    /// # Errors
    /// Nobody wanted that.
    pub fn trimmed(&self, before: u64, first: u64) -> Result<(), Violation> {
        self.begins_exactly(&format!("the trim before {before}"), first)?;
        let mut notes = self.lock();
        notes.trims_ok += 1;
        notes.trimmed = notes.trimmed.max(first);
        if first >= before {
            return Ok(());
        }
        let detail = format!("a trim before {before} is acknowledged, and the log begins at {first}");
        Err(Violation { property: "P2", detail })
    }

    /// `who` was told that the log begins at `first`. A node that was given a checkpoint may begin there for a while, before it comes to
    /// the trim that let go of what was before it.
    ///
    /// # Errors
    /// Nobody trimmed that much.
    pub fn begins(&self, who: &str, first: u64) -> Result<(), Violation> {
        if self.lock().trims.last().copied().unwrap_or(0) >= first {
            return Ok(());
        }
        let detail = format!("{who}: the log begins at offset {first}, and nobody trimmed that much");
        Err(Violation { property: "P4", detail })
    }

    /// `who` has all that is committed, and was told that the log begins at `first`.
    ///
    /// # Errors
    /// Nobody trimmed it there.
    pub fn begins_exactly(&self, who: &str, first: u64) -> Result<(), Violation> {
        if first == 0 || self.lock().trims.contains(&first) {
            return Ok(());
        }
        let detail = format!("{who}: the log begins at offset {first}, and nobody trimmed it there");
        Err(Violation { property: "P4", detail })
    }

    /// Where the log begins at least, by what was acknowledged; and how many trims were.
    #[must_use]
    pub fn trims(&self) -> (u64, u64) {
        let notes = self.lock();
        (notes.trimmed, notes.trims_ok)
    }

    /// Terms in which something was acknowledged.
    #[must_use]
    pub fn terms(&self) -> BTreeSet<u64> {
        self.lock().terms.clone()
    }

    /// Something that must not be was seen.
    pub fn violated(&self, violation: Violation) {
        let mut notes = self.lock();
        if notes.violations.len() < VIOLATIONS_MAX {
            notes.violations.push(violation);
        }
    }

    /// What was seen so far that must not be.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    /// Appends acknowledged, refused, of unknown outcome; reads answered.
    #[must_use]
    pub fn counts(&self) -> [u64; 4] {
        let notes = self.lock();
        let count = |wanted: fn(&End) -> bool| notes.appends.iter().filter(|append| wanted(&append.end)).count() as u64;
        [
            count(|end| matches!(end, End::Acknowledged { .. })),
            count(|end| *end == End::Refused),
            count(|end| matches!(end, End::Unknown | End::Pending)),
            notes.reads.len() as u64,
        ]
    }

    /// All calls.
    #[must_use]
    pub fn calls(&self) -> (Vec<Append>, Vec<Read>) {
        let notes = self.lock();
        (notes.appends.clone(), notes.reads.clone())
    }

    /// Whether the run is over for clients.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compares all calls with the whole log, which is given as what each record says it is, by offset.
#[must_use]
pub fn check(appends: &[Append], reads: &[Read], log: &[Option<Landed>]) -> Vec<Violation> {
    let mut found = Vec::new();
    let landed = groups(appends, log, &mut found);
    for (number, (append, first)) in (0u64..).zip(appends.iter().zip(&landed)) {
        if let Err(violation) = told_the_truth(number, append, *first) {
            found.push(violation);
        }
    }
    let mut history = History::default();
    for (number, (append, first)) in (0u64..).zip(appends.iter().zip(&landed)) {
        history.append_called((number, 0), append.called, u64::from(append.parts));
        if let Some(first) = first {
            history.append_landed((number, 0), *first);
        }
        if let (End::Acknowledged { .. }, Some(returned)) = (append.end, append.returned) {
            history.append_answered((number, 0), returned);
        }
    }
    reads.iter().for_each(|read| history.read(*read));
    found.extend(history.check().err());
    found.truncate(VIOLATIONS_MAX);
    found
}

/// Where each append landed; what is not whole, doubled or nobody's is found.
fn groups(appends: &[Append], log: &[Option<Landed>], found: &mut Vec<Violation>) -> Vec<Option<u64>> {
    let mut landed = vec![None; appends.len()];
    let mut wanted: Option<Landed> = None;
    for (offset, record) in (0u64..).zip(log) {
        let Some(record) = record
            .filter(|record| appends.get(record.append as usize).is_some_and(|append| append.parts == record.parts))
        else {
            found.push(Violation { property: "P2", detail: format!("the record at offset {offset} is nobody's") });
            wanted = None;
            continue;
        };
        let begins = Landed { part: 0, ..record };
        if record != wanted.unwrap_or(begins) {
            let detail = format!("offset {offset} holds {record:?}, after the one before it comes {wanted:?}");
            found.push(Violation { property: "P3", detail });
        }
        if record.part == 0
            && let Some(earlier) = landed[record.append as usize].replace(offset)
        {
            let detail = format!("append {} stands at offset {earlier} and at {offset}", record.append);
            found.push(Violation { property: "P7", detail });
            landed[record.append as usize] = Some(earlier);
        }
        wanted = (record.part + 1 < record.parts).then(|| Landed { part: record.part + 1, ..record });
    }
    if let Some(wanted) = wanted {
        found.push(Violation { property: "P3", detail: format!("the log ends before {wanted:?}") });
    }
    landed
}

/// What the client was told agrees with where the append is, or is not.
fn told_the_truth(number: u64, append: &Append, first: Option<u64>) -> Result<(), Violation> {
    let wrong = |property, detail| Err(Violation { property, detail });
    let last = |first: u64| first + u64::from(append.parts) - 1;
    match (append.end, first) {
        (End::Acknowledged { .. }, None) => {
            wrong("P1", format!("append {number} was acknowledged and is not there: {append:?}"))
        }
        (End::Acknowledged { first: told, last: to }, Some(at)) if told != at || to != last(at) => {
            wrong("P2", format!("append {number} stands at offset {at}: {append:?}"))
        }
        (End::Refused, Some(at)) => {
            wrong("P10", format!("append {number} was refused and stands at offset {at}: {append:?}"))
        }
        (_, Some(at)) if append.expect.is_some_and(|expected| expected != at) => {
            wrong("P10", format!("append {number} was to land elsewhere and stands at offset {at}: {append:?}"))
        }
        _ => Ok(()),
    }
}
