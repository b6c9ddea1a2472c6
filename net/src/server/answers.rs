//! What an append stream still owes its client: answers ready to be written, and bytes received but not answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

use crate::protocol::append::{ANSWER_BYTES, Ack, Answer, Rejection, encode_answer};
use crate::protocol::budget::Charge;

/// The place where the answer to one group goes. Cheap: no task, no allocation, one wake-up for many answers.
#[derive(Debug)]
pub struct AppendReply {
    answers: Arc<Answers>,
    /// Given back when the group is answered.
    _charges: [Charge; 3],
    client: u64,
    session: u64,
    sequence: u64,
    answered: bool,
}

impl AppendReply {
    /// Gives the answer. It leaves with all others that are ready by then.
    pub fn done(mut self, result: Result<Ack, Rejection>) {
        self.answer(result);
    }

    /// The number of the client, by the name in its certificate: from 1, the same for all its connections while it has any.
    #[must_use]
    pub fn client(&self) -> u64 {
        self.client
    }

    /// The group's session.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.session
    }

    /// The group's sequence number.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    fn answer(&mut self, result: Result<Ack, Rejection>) {
        self.answered = true;
        self.answers.push(&Answer { session: self.session, sequence: self.sequence, result });
    }
}

impl Drop for AppendReply {
    fn drop(&mut self) {
        if !self.answered {
            // The service lost the group: it went down, or dropped its queue. Whether the group was taken is not known
            // here; under its session the client repeats it safely.
            self.answer(Err(Rejection::Unsure));
        }
    }
}

/// The answers of one append stream, in the order in which they were given.
#[derive(Debug, Default)]
pub(super) struct Answers {
    state: Mutex<State>,
    ready: Notify,
    /// Answers were taken to be written.
    taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Encoded answers.
    buffer: BytesMut,
    /// Groups handed to the service and not answered.
    owed: usize,
    /// No more groups will come.
    last: bool,
    /// The stream is gone: nobody reads answers.
    closed: bool,
}

impl State {
    fn has_room(&self) -> bool {
        self.buffer.len() + self.owed * ANSWER_BYTES < UNREAD_BYTES_MAX
    }
}

/// Answers that may be ready or owed on a stream: 20,000 of the usual ones, more than all sessions of a busy client have in
/// flight. A client that sends and does not read stops here.
const UNREAD_BYTES_MAX: usize = 1 << 20;

impl Answers {
    /// A reply for one group.
    pub(super) fn reply(
        self: &Arc<Self>,
        client: u64,
        (session, sequence): (u64, u64),
        charges: [Charge; 3],
    ) -> AppendReply {
        self.lock().owed += 1;
        AppendReply { answers: self.clone(), _charges: charges, client, session, sequence, answered: false }
    }

    /// An answer that belongs to no group: for the whole stream.
    pub(super) fn push_for_stream(&self, rejection: Rejection) {
        self.lock().owed += 1;
        self.push(&Answer { session: 0, sequence: 0, result: Err(rejection) });
    }

    /// No more groups will come: [`Answers::next`] ends when all are answered.
    pub(super) fn finish(&self) {
        self.lock().last = true;
        self.ready.notify_one();
    }

    /// Nobody reads answers any more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.buffer = BytesMut::new();
    }

    /// Waits until the client has read enough of its answers to be owed another one.
    pub(super) async fn room(&self) {
        while !self.lock().has_room() {
            self.taken.notified().await;
        }
    }

    /// All answers that are ready; waits for at least one. `None` when all groups are answered and no more will come.
    pub(super) async fn next(&self) -> Option<BytesMut> {
        loop {
            {
                let mut state = self.lock();
                if !state.buffer.is_empty() {
                    self.taken.notify_one();
                    return Some(std::mem::take(&mut state.buffer));
                }
                if state.last && state.owed == 0 {
                    return None;
                }
            }
            self.ready.notified().await;
        }
    }

    fn push(&self, answer: &Answer) {
        let mut state = self.lock();
        state.owed = state.owed.saturating_sub(1);
        if state.closed {
            return;
        }
        let first = state.buffer.is_empty();
        encode_answer(answer, &mut state.buffer);
        drop(state);
        if first {
            self.ready.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::append::decode_answer;
    use crate::protocol::budget::Budget;

    fn decoded(mut bytes: BytesMut) -> Vec<(u64, bool)> {
        std::iter::from_fn(|| decode_answer(&mut bytes).unwrap())
            .map(|answer| (answer.sequence, answer.result.is_ok()))
            .collect()
    }

    #[tokio::test]
    async fn answers_that_are_ready_leave_together_and_dropped_replies_are_answered() {
        let (answers, budget) = (Arc::new(Answers::default()), Budget::new(100));
        let mut replies = Vec::new();
        for sequence in 1..=3 {
            let charges = [budget.charge(10).await, budget.charge(10).await, budget.charge(10).await];
            replies.push(answers.reply(1, (7, sequence), charges));
        }
        assert_eq!(budget.used(), 90);
        answers.finish();
        let ack = Ack { first: 0, last: 0, records: 1, term: 1, timestamp: 1 };
        let lost = replies.pop();
        replies.into_iter().for_each(|reply| reply.done(Ok(ack)));
        assert_eq!(decoded(answers.next().await.unwrap()), [(1, true), (2, true)]);
        drop(lost);
        assert_eq!(decoded(answers.next().await.unwrap()), [(3, false)]);
        assert!(answers.next().await.is_none());
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn answers_nobody_reads_hold_back_what_comes_next() {
        let (answers, budget) = (Arc::new(Answers::default()), Budget::new(1 << 20));
        let waits = |answers: &Arc<Answers>| {
            let answers = answers.clone();
            async move { tokio::time::timeout(std::time::Duration::from_millis(1), answers.room()).await.is_err() }
        };
        let mut sequence = 0;
        while !waits(&answers).await {
            for _ in 0..1000 {
                sequence += 1;
                let charges = [budget.charge(1).await, budget.charge(1).await, budget.charge(1).await];
                answers.reply(1, (7, sequence), charges).done(Err(Rejection::Again));
            }
        }
        assert_eq!(sequence, (UNREAD_BYTES_MAX / ANSWER_BYTES).next_multiple_of(1000) as u64);
        assert_eq!(decoded(answers.next().await.unwrap()).len() as u64, sequence);
        assert!(!waits(&answers).await, "there is room when they are on their way");
    }
}
