//! Who is waiting for what: appends for their commit, judgements for certainty, reads for their index.
//!
//! Nothing is answered `Appended` before its entry is committed. Any other answer that rests on the session table or on the
//! log's end (duplicate, conflict, fenced, expired, gap) leaves only after everything up to the judged index is committed in
//! this leader's term, and a quorum confirmed the leadership in a round that began after the judgement: a deposed leader may
//! have judged against entries that never happened, or without those of the leader after it. When leadership is lost first, the
//! outcome is unknown.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::effect::{Answer, Rejection, RequestId};
use super::planted::{Bug, is_planted};

/// An answer that is ready, for the driver.
pub(super) type Ready = (RequestId, Result<Answer, Rejection>);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Acks {
    /// Appends in the log, by index.
    placed: VecDeque<(u64, Vec<(RequestId, Answer)>)>,
    /// Answers held until `index` is committed.
    held: VecDeque<(u64, Ready)>,
    /// Answers held until a read round ends, by its id, and the index they rest on. Ordered, because it is drained: equal
    /// inputs, equal outputs.
    rounds: BTreeMap<u64, Vec<(u64, Ready)>>,
    /// Linearizable reads: round id to request; then index to wait for.
    reads: HashMap<u64, RequestId>,
    reads_at: VecDeque<(u64, RequestId)>,
}

impl Acks {
    /// `request` will be answered with `answer` once the entry at `index` is committed.
    pub(super) fn on_commit(&mut self, index: u64, request: RequestId, answer: Answer) {
        match self.placed.back_mut() {
            Some((at, list)) if *at == index => list.push((request, answer)),
            _ => self.placed.push_back((index, vec![(request, answer)])),
        }
    }

    /// `ready` rests on the log up to `index`, which is not committed yet.
    pub(super) fn hold_until(&mut self, index: u64, ready: Ready) {
        self.held.push_back((index, ready));
    }

    /// `ready` rests on the log up to `index`; round `id` confirms that it is still the log of the leader.
    pub(super) fn hold_for_round(&mut self, id: u64, index: u64, ready: Ready) {
        self.rounds.entry(id).or_default().push((index, ready));
    }

    /// `request` is a linearizable read whose index round `id` will tell.
    pub(super) fn read(&mut self, id: u64, request: RequestId) {
        self.reads.insert(id, request);
    }

    /// Everything up to `index` is committed: what may be answered now.
    pub(super) fn committed(&mut self, index: u64, out: &mut Vec<Ready>) {
        while let Some((at, _)) = self.placed.front()
            && *at <= index
        {
            let Some((_, list)) = self.placed.pop_front() else { break };
            out.extend(list.into_iter().map(|(request, answer)| (request, Ok(answer))));
        }
        while let Some((at, _)) = self.held.front()
            && *at <= index
        {
            let Some((_, ready)) = self.held.pop_front() else { break };
            out.push(ready);
        }
    }

    /// Round `id` confirmed the leadership at `index`, everything up to `committed` being committed. What rests on more goes on
    /// waiting: rounds end in order and indexes never fall, so it goes behind what waits already.
    pub(super) fn round_confirmed(&mut self, id: u64, index: u64, committed: u64, out: &mut Vec<Ready>) {
        for (at, ready) in self.rounds.remove(&id).into_iter().flatten() {
            if at <= committed {
                out.push(ready);
            } else {
                self.held.push_back((at, ready));
            }
        }
        if let Some(request) = self.reads.remove(&id) {
            self.reads_at.push_back((index, request));
        }
    }

    /// Round `id` will not end: this leadership is over or has no quorum.
    pub(super) fn round_failed(&mut self, id: u64, out: &mut Vec<Ready>) {
        for (_, (request, _)) in self.rounds.remove(&id).into_iter().flatten() {
            out.push((request, Err(Rejection::LostLeadership { leader: None })));
        }
        if let Some(request) = self.reads.remove(&id) {
            out.push((request, Err(Rejection::ReadFailed)));
        }
    }

    /// Everything up to `index` is readable here: confirmed reads at or below it are answered.
    pub(super) fn readable(&mut self, index: u64, next_offset: u64, out: &mut Vec<Ready>) {
        self.reads_at.retain(|(at, request)| {
            let ready = *at <= index || is_planted(Bug::ReadNotAwaited);
            if ready {
                out.push((*request, Ok(Answer::ReadIndex { next_offset })));
            }
            !ready
        });
    }

    /// Leadership is lost: what was waiting for a commit may or may not happen.
    pub(super) fn deposed(&mut self, rejection: &Rejection, out: &mut Vec<Ready>) {
        for (_, list) in self.placed.drain(..) {
            out.extend(list.into_iter().map(|(request, _)| (request, Err(rejection.clone()))));
        }
        out.extend(self.held.drain(..).map(|(_, (request, _))| (request, Err(rejection.clone()))));
        for (_, list) in std::mem::take(&mut self.rounds) {
            out.extend(list.into_iter().map(|(_, (request, _))| (request, Err(rejection.clone()))));
        }
    }

    /// How many requests are waiting.
    pub(super) fn waiting(&self) -> usize {
        self.placed.iter().map(|(_, list)| list.len()).sum::<usize>()
            + self.held.len()
            + self.rounds.len()
            + self.reads.len()
    }
}
