//! One append session as its client sees it: what is in flight, in order, and what became of it.
//!
//! Invariants:
//! - the groups in flight have consecutive sequence numbers, and the first of them is the oldest unanswered one;
//! - groups before `next_unsent` were written to the current stream, those from it on were not;
//! - `taken` is set on a group as soon as some node may have it without our having an answer, and never cleared: it decides
//!   whether a failure is `unknown` or `refused`;
//! - a final refusal of one group waits, as `doomed`, until the groups before it are answered: a node may refuse at once what
//!   comes while what came is on its way to the disk, and an acknowledgement that is told must not be missing.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use graven_frame::{Group, GroupHeaderSpec};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::batch::Batch;
use crate::protocol::append::{Ack, Rejection, encode_prefix};
use crate::protocol::{ErrorCode, Failure, LeaderView, Outcome};
use crate::transport::WRITE_CHUNK_BYTES;

/// Groups of one session in flight. A node keeps the answers of the last 512, so that a group sent again is recognised.
pub(super) const WINDOW_GROUPS: usize = 256;
/// Acknowledgements not fetched that are kept for their user.
const UNREAD_ACKS: usize = 1024;
/// Groups smaller than this are copied into one chunk with their neighbours: quinn walks its chunks for every packet.
const SMALL_GROUP_BYTES: usize = 4096;

/// One session. Shared by its user, the courier that sends its groups, and whoever waits for an answer.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    window_bytes: usize,
    state: Mutex<State>,
    /// An answer came, or the session failed. One waiter: the one who reads acknowledgements.
    answered: Notify,
    /// Room in the window, or the session failed. One waiter: the one who sends.
    room: Notify,
}

#[derive(Debug)]
struct State {
    next_sequence: u64,
    in_flight: VecDeque<Flight>,
    bytes: usize,
    next_unsent: usize,
    /// On the courier's list.
    queued: bool,
    progress: Instant,
    failure: Option<Failure>,
    /// The first group that was refused for good, while earlier ones are unanswered. It and those behind it are not sent.
    doomed: Option<(u64, Failure)>,
    /// The failure was handed out by `next_ack`.
    failure_told: bool,
    acks: VecDeque<Ack>,
    last_ack: Option<Ack>,
    unread: Unread,
    /// The user sends no more.
    finished: bool,
}

/// What becomes of acknowledgements that nobody has fetched yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// The oldest are dropped when there are too many.
    Forget,
    /// The sender waits: somebody reads them in another task.
    Wait,
}

/// Where an acknowledgement goes.
pub(super) type Waiter = oneshot::Sender<Result<Ack, Lost>>;

/// A group that was not acknowledged, with the reason.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) failure: Failure,
    pub(super) group: Group,
}

#[derive(Debug)]
struct Flight {
    group: Group,
    sent: bool,
    taken: bool,
    ack: Option<Ack>,
    waiter: Option<Waiter>,
}

/// What an answer means for the stream it came on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    GoOn,
    /// The stream's node does not lead: leave it.
    Leave(LeaderView),
    /// Groups must be sent again, in order, on a new stream.
    Repeat,
}

impl Session {
    pub(super) fn new(id: u64, window_bytes: usize) -> Session {
        Session {
            id,
            window_bytes,
            state: Mutex::new(State {
                next_sequence: 1,
                in_flight: VecDeque::new(),
                bytes: 0,
                next_unsent: 0,
                queued: false,
                progress: Instant::now(),
                failure: None,
                doomed: None,
                failure_told: false,
                acks: VecDeque::new(),
                last_ack: None,
                unread: Unread::Forget,
                finished: false,
            }),
            answered: Notify::new(),
            room: Notify::new(),
        }
    }

    /// Puts a batch in flight, waiting for room. `true` when the courier must be told.
    ///
    /// # Cancel safety
    /// Dropped while it waits, nothing was put in flight.
    pub(super) async fn push(
        &self,
        batch: &mut Batch,
        expect: Option<u64>,
        fence: Option<u64>,
        waiter: &mut Option<Waiter>,
    ) -> Result<bool, Failure> {
        loop {
            {
                let mut state = self.lock();
                if let Some(failure) = state.closed_by() {
                    return Err(refused_by(failure));
                }
                if state.has_room(batch.len_bytes(), self.window_bytes) {
                    let spec = GroupHeaderSpec {
                        session: Some(self.id),
                        sequence: Some(state.next_sequence),
                        expected_offset: expect,
                        fence,
                    };
                    let group = batch.seal(spec);
                    // Summed up here and not while others wait for the courier.
                    let _ = group.crc();
                    return Ok(state.launch(Flight {
                        group,
                        sent: false,
                        taken: false,
                        ack: None,
                        waiter: waiter.take(),
                    }));
                }
            }
            self.room.notified().await;
        }
    }

    /// Takes groups to write next, up to about `budget` bytes: small ones are copied to `small`, large ones are shared.
    /// `true` when there is more.
    pub(super) fn take_unsent(&self, budget: &mut usize, out: &mut Outgoing) -> bool {
        let mut state = self.lock();
        let end = state.sendable();
        while *budget > 0
            && let at = state.next_unsent
            && at < end
            && let Some(flight) = state.in_flight.get_mut(at)
        {
            flight.sent = true;
            *budget = budget.saturating_sub(flight.group.body().len());
            out.push(&flight.group);
            state.next_unsent += 1;
        }
        let more = state.next_unsent < end;
        state.queued = more;
        more
    }

    /// Takes in the answer to one group.
    pub(super) fn on_answer(&self, sequence: u64, result: Result<Ack, Rejection>) -> Verdict {
        let mut state = self.lock();
        let Some(at) = state.position(sequence) else { return Verdict::GoOn };
        if state.doomed.as_ref().is_some_and(|(doomed, _)| sequence > *doomed) {
            // Whatever it says, an earlier group was refused for good: this one leaves a gap.
            return Verdict::GoOn;
        }
        let rejection = match result {
            Ok(ack) => {
                state.in_flight[at].ack = Some(ack);
                state.progress = Instant::now();
                state.deliver();
                state.maybe_fail();
                drop(state);
                self.wake();
                return Verdict::GoOn;
            }
            Err(rejection) => rejection,
        };
        match rejection {
            Rejection::NotLeader(view) => {
                state.not_taken_from(at);
                Verdict::Leave(view)
            }
            Rejection::Again | Rejection::Gap { .. } => {
                state.not_taken_from(at);
                Verdict::Repeat
            }
            Rejection::Unsure => Verdict::Repeat,
            Rejection::Failed(mut failure) => {
                // A group sent before may stand in the log. Only these two judgements come after the check for duplicates.
                let judged = matches!(failure.code, ErrorCode::Conflict | ErrorCode::Fenced);
                if !judged && state.in_flight[at].taken {
                    failure.outcome = Outcome::Unknown;
                }
                state.in_flight.range_mut(at..).for_each(|flight| flight.sent = false);
                state.doom(sequence, failure);
                drop(state);
                self.wake();
                Verdict::GoOn
            }
        }
    }

    /// The stream is gone. What was written to it and not answered may have been taken.
    pub(super) fn rewind(&self) -> bool {
        let mut state = self.lock();
        for flight in &mut state.in_flight {
            flight.taken |= flight.sent;
            flight.sent = false;
        }
        state.next_unsent = 0;
        state.queued = !state.in_flight.is_empty();
        state.queued
    }

    /// Fails what is in flight when nothing was answered for `timeout`.
    pub(super) fn expire(&self, now: Instant, timeout: Duration, trouble: impl FnOnce() -> String) {
        let mut state = self.lock();
        if state.in_flight.is_empty() || now.duration_since(state.progress) < timeout {
            return;
        }
        if let Some((sequence, failure)) = state.doomed.take() {
            // What came before the refused group was never answered.
            let at = state.position(sequence).unwrap_or(0);
            state.fail(at, Failure { outcome: Outcome::Unknown, ..failure });
            drop(state);
            return self.wake();
        }
        let waited = timeout.as_secs_f32();
        let failure = if state.in_flight.iter().any(|flight| flight.sent || flight.taken) {
            let message = format!("append was not acknowledged within {waited} s; it may have happened");
            Failure::unknown(ErrorCode::Timeout, message)
        } else {
            let message = format!("no leader was reached within {waited} s: {}", trouble());
            Failure::refused(ErrorCode::Unavailable, message)
        };
        state.fail(0, failure);
        drop(state);
        self.wake();
    }

    /// Fails all that is in flight.
    pub(super) fn abort(&self, failure: Failure) {
        let mut state = self.lock();
        let failure = if state.in_flight.iter().any(|flight| flight.sent || flight.taken) {
            Failure { outcome: Outcome::Unknown, ..failure }
        } else {
            failure
        };
        state.fail(0, failure);
        drop(state);
        self.wake();
    }

    /// After a single group was refused for good and nothing else is in flight, its sequence number is free again.
    pub(super) fn reopen(&self, sequence: u64) -> bool {
        let mut state = self.lock();
        let clean = state.failure.as_ref().is_some_and(|failure| failure.outcome == Outcome::Refused);
        if clean && state.in_flight.is_empty() && state.next_sequence == sequence + 1 {
            (state.failure, state.doomed, state.next_sequence) = (None, None, sequence);
        }
        state.failure.is_none()
    }

    /// The next acknowledgement in order; `None` when nothing is in flight and, with [`Unread::Wait`], no more will come.
    /// A failure is told once.
    pub(super) async fn next_ack(&self) -> Option<Result<Ack, Failure>> {
        loop {
            {
                let mut state = self.lock();
                if let Some(ack) = state.acks.pop_front() {
                    drop(state);
                    self.room.notify_one();
                    return Some(Ok(ack));
                }
                if let Some(failure) = state.failure.clone() {
                    let told = std::mem::replace(&mut state.failure_told, true);
                    return (!told).then_some(Err(failure));
                }
                if state.in_flight.is_empty() && (state.finished || state.unread == Unread::Forget) {
                    return None;
                }
            }
            self.answered.notified().await;
        }
    }

    /// Waits until nothing is in flight; the last acknowledgement, or the failure.
    pub(super) async fn drained(&self) -> Result<Option<Ack>, Failure> {
        loop {
            {
                let state = self.lock();
                if let Some(failure) = &state.failure {
                    return Err(failure.clone());
                }
                if state.in_flight.is_empty() {
                    return Ok(state.last_ack);
                }
            }
            self.answered.notified().await;
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.lock().in_flight.len()
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.lock().next_sequence
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().closed_by().is_none()
    }

    pub(super) fn set_unread(&self, unread: Unread) {
        self.lock().unread = unread;
        self.room.notify_one();
    }

    /// The user sends no more.
    pub(super) fn finish(&self) {
        self.lock().finished = true;
        self.answered.notify_one();
    }

    /// Whether nobody needs it any more: no user sends, nothing is in flight.
    pub(super) fn is_over(&self) -> bool {
        let state = self.lock();
        state.finished && state.in_flight.is_empty()
    }

    fn wake(&self) {
        self.answered.notify_one();
        self.room.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self, bytes: usize, window_bytes: usize) -> bool {
        let unread = self.unread == Unread::Forget || self.acks.len() < UNREAD_ACKS;
        // A batch larger than the window passes alone.
        unread && self.in_flight.len() < WINDOW_GROUPS && (self.bytes == 0 || self.bytes + bytes <= window_bytes)
    }

    fn launch(&mut self, flight: Flight) -> bool {
        if self.in_flight.is_empty() {
            self.progress = Instant::now();
        }
        self.next_sequence += 1;
        self.bytes += flight.group.body().len();
        self.in_flight.push_back(flight);
        !std::mem::replace(&mut self.queued, true)
    }

    /// Why nothing more may be put in flight.
    fn closed_by(&self) -> Option<&Failure> {
        self.failure.as_ref().or(self.doomed.as_ref().map(|(_, failure)| failure))
    }

    /// How many of the groups in flight may be sent: those before a doomed one.
    fn sendable(&self) -> usize {
        let doomed = self.doomed.as_ref().and_then(|(sequence, _)| self.position(*sequence));
        doomed.unwrap_or(self.in_flight.len())
    }

    /// The group with this sequence number was refused for good.
    fn doom(&mut self, sequence: u64, failure: Failure) {
        if self.doomed.as_ref().is_none_or(|(doomed, _)| sequence < *doomed) {
            self.doomed = Some((sequence, failure));
        }
        self.maybe_fail();
    }

    /// Closes the session once everything before the doomed group is answered.
    fn maybe_fail(&mut self) {
        if let Some((sequence, failure)) = self.doomed.clone()
            && self.position(sequence).is_none_or(|at| at == 0)
        {
            self.fail(0, failure);
        }
    }

    fn position(&self, sequence: u64) -> Option<usize> {
        let first = self.in_flight.front()?.group.header().sequence?;
        let at = usize::try_from(sequence.checked_sub(first)?).ok()?;
        (at < self.in_flight.len()).then_some(at)
    }

    /// A node refused the group at `at` for now. Those behind it on the same stream leave a gap and are refused as well,
    /// unless an earlier sending of this one was taken after all.
    fn not_taken_from(&mut self, at: usize) {
        let sure = !self.in_flight[at].taken;
        self.in_flight[at].sent = false;
        if sure {
            self.in_flight.range_mut(at..).for_each(|flight| flight.sent = false);
        }
    }

    /// Hands out the acknowledgements at the front.
    fn deliver(&mut self) {
        while let Some(ack) = self.in_flight.front().and_then(|flight| flight.ack) {
            let Some(flight) = self.in_flight.pop_front() else { return };
            self.bytes -= flight.group.body().len();
            self.next_unsent = self.next_unsent.saturating_sub(1);
            self.last_ack = Some(ack);
            match flight.waiter {
                // A user who stopped waiting does not mind.
                Some(waiter) => drop(waiter.send(Ok(ack))),
                None => {
                    if self.acks.len() >= UNREAD_ACKS && self.unread == Unread::Forget {
                        self.acks.pop_front();
                    }
                    self.acks.push_back(ack);
                }
            }
        }
    }

    /// Closes the session: the group at `at` and all behind it fail, and so do unanswered ones before it.
    fn fail(&mut self, at: usize, failure: Failure) {
        for (position, flight) in std::mem::take(&mut self.in_flight).into_iter().enumerate() {
            let unknown = flight.sent || flight.taken;
            // Groups behind a refused one were refused for leaving a gap.
            let outcome = match failure.outcome {
                Outcome::Refused if position >= at => Outcome::Refused,
                _ if unknown => Outcome::Unknown,
                _ => Outcome::Refused,
            };
            if let Some(waiter) = flight.waiter {
                let lost = || Lost { failure: Failure { outcome, ..failure.clone() }, group: flight.group };
                drop(waiter.send(flight.ack.ok_or_else(lost)));
            }
        }
        (self.bytes, self.next_unsent) = (0, 0);
        self.failure.get_or_insert(failure);
    }
}

/// The failure of a batch that came too late: the session had failed, so this one was not sent.
fn refused_by(failure: &Failure) -> Failure {
    Failure { outcome: Outcome::Refused, ..failure.clone() }
}

/// Chunks on their way to a stream.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    chunks: Vec<Bytes>,
    small: BytesMut,
}

impl Outgoing {
    fn push(&mut self, group: &Group) {
        let body = group.body();
        self.small.extend_from_slice(&encode_prefix(body.len(), group.crc()));
        if body.len() < SMALL_GROUP_BYTES {
            body.chunks().iter().for_each(|chunk| self.small.extend_from_slice(chunk));
            return;
        }
        self.flush_small();
        for chunk in body.chunks() {
            let mut rest = chunk.clone();
            while rest.len() > WRITE_CHUNK_BYTES {
                self.chunks.push(rest.split_to(WRITE_CHUNK_BYTES));
            }
            self.chunks.push(rest);
        }
    }

    /// The chunks to write, in order.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        self.flush_small();
        std::mem::take(&mut self.chunks)
    }

    fn flush_small(&mut self) {
        if !self.small.is_empty() {
            self.chunks.push(self.small.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn session_with(groups: usize) -> Session {
        let session = Session::new(7, 1 << 20);
        for number in 0..groups {
            let mut batch = [number.to_string()].into_iter().collect::<Batch>();
            session.push(&mut batch, None, None, &mut None).await.unwrap();
        }
        session.take_unsent(&mut (1 << 20), &mut Outgoing::default());
        session
    }

    fn ack(first: u64) -> Ack {
        Ack { first, last: first, records: 1, term: 1, timestamp: 0 }
    }

    fn disk_full() -> Result<Ack, Rejection> {
        Err(Rejection::Failed(Failure::refused(ErrorCode::DiskFull, "full")))
    }

    /// A full node refuses at once what comes, while what came is on its way to the disk.
    #[tokio::test]
    async fn refusal_that_overtakes_acknowledgements_waits_for_them() {
        let session = session_with(4).await;
        assert_eq!(session.on_answer(3, disk_full()), Verdict::GoOn);
        assert_eq!(session.on_answer(4, Err(Rejection::Gap { expected: 3 })), Verdict::GoOn);
        assert!(!session.is_open(), "nothing more is taken");
        assert_eq!(session.in_flight(), 4);
        session.on_answer(1, Ok(ack(10)));
        session.on_answer(2, Ok(ack(11)));
        assert_eq!(session.next_ack().await, Some(Ok(ack(10))));
        assert_eq!(session.next_ack().await, Some(Ok(ack(11))));
        let failure = session.next_ack().await.unwrap().unwrap_err();
        assert_eq!((failure.code, failure.outcome), (ErrorCode::DiskFull, Outcome::Refused));
        assert_eq!(session.next_ack().await, None);
    }

    #[tokio::test]
    async fn refusal_whose_predecessors_are_never_answered_is_unknown() {
        let session = session_with(2).await;
        session.on_answer(2, disk_full());
        assert!(session.rewind(), "the first is sent again");
        let mut out = Outgoing::default();
        assert!(!session.take_unsent(&mut (1 << 20), &mut out), "the refused one is not");
        session.expire(Instant::now() + Duration::from_secs(60), Duration::from_secs(10), String::new);
        let failure = session.next_ack().await.unwrap().unwrap_err();
        assert_eq!((failure.code, failure.outcome), (ErrorCode::DiskFull, Outcome::Unknown));
    }
}
