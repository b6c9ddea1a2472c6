//! What clients want in the log, until the disk is free for it.
//!
//! Self-clocking: while this leader's last write is in flight, appends gather here; the moment it ends they become the next
//! frames. No timer, no waiting for company: a lone append on an idle disk leaves at once, a thousand share one sync.

use graven_frame::{Body, Frame, Group, HeaderSpec, Kind, combine_crc};
use graven_raft::{ProposeError, Role};

use super::Replica;
use super::effect::{Answer, Now, Rejection, RequestId};
use super::entry::{entry_meta, placed};
use super::planted::{Bug, is_planted};
use super::sessions::Verdict;
use super::turns::Turns;

/// A frame is closed at this size: a quarter of the replication window, so that several are on their way to a follower.
const FRAME_BYTES: usize = 256 << 10;
/// What one round of writing takes at most: more would make those who come next wait longer than the disk needs.
const ROUND_BYTES: usize = 1 << 20;
/// Proposed but not yet readable bytes above which nothing more is proposed: the rest of the cluster or this node's disk is
/// behind. Four rounds keep all windows of followers full; what is more costs memory, and a disk that fills up must have
/// prepared room for all of it, so that the trim behind it finds its place.
const TAIL_BYTES_MAX: usize = 4 << 20;

/// Something that wants to be in the log.
#[derive(Debug)]
pub(super) enum Wanted {
    /// Records.
    Append(RequestId, Group),
    /// A session.
    Session(RequestId),
}

/// Appends that wait for the disk. Its bound is the driver's: it takes no more than its budget of bytes at a time.
#[derive(Debug, Default)]
pub(super) struct Intake {
    queue: Turns<Wanted>,
}

impl Intake {
    /// Puts it behind what `client` has waiting.
    pub(super) fn push(&mut self, client: u64, wanted: Wanted) {
        let bytes = match &wanted {
            Wanted::Append(_, group) => group.body().len(),
            Wanted::Session(_) => 0,
        };
        self.queue.push(client, wanted, bytes);
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn drain_requests(&mut self) -> impl Iterator<Item = RequestId> + '_ {
        self.queue.drain().map(|wanted| match wanted {
            Wanted::Append(request, _) | Wanted::Session(request) => request,
        })
    }
}

/// A frame in the making.
#[derive(Default)]
struct Draft {
    chunks: Vec<bytes::Bytes>,
    bytes: usize,
    crc: u32,
    count: u32,
    waiting: Vec<(RequestId, Answer)>,
    judged: Vec<(RequestId, Result<Answer, Rejection>)>,
}

impl Draft {
    fn take(&mut self, group: &Group) {
        self.crc = if self.bytes == 0 { group.crc() } else { combine_crc(self.crc, group.crc(), group.body().len()) };
        self.bytes += group.body().len();
        self.count += group.header().count;
        self.chunks.extend(group.body().chunks().iter().cloned());
    }
}

impl Replica {
    /// Proposes what waits, if this node leads and its last write is done. Returns whether anything was proposed.
    pub(super) fn propose_waiting(&mut self, now: Now) -> bool {
        self.maybe_refuse_waiting(now);
        self.pace.look(now.tick);
        // Beside appends, not before or after them: whoever goes first would keep the other waiting for a write each time.
        let mut proposed = if self.may_propose(now, 0) { self.propose_moves(now) } else { 0 };
        while proposed < self.round_bytes(now) && self.intake.len() > 0 && self.may_propose(now, proposed) {
            let Some(bytes) = self.propose_one(now) else { continue };
            proposed += bytes;
            // The persist of this frame goes out before the next is judged, so that the log's end is where we think it is.
            while let Some(output) = self.core.poll() {
                self.on_output(now, output);
            }
        }
        proposed > 0
    }

    /// Refuses what waits: there is no room for it. The answers keep their place behind what is in the log already.
    pub(super) fn refuse_waiting(&mut self, now: Now) {
        let requests = self.intake.drain_requests().chain(self.moves.drain_requests());
        let refused = requests.map(|request| (request, Err(Rejection::DiskFull))).collect();
        self.hold(now, self.log.last().index, refused);
    }

    fn round_bytes(&self, now: Now) -> usize {
        self.pace.limit(now.tick).map_or(ROUND_BYTES, |limit| limit.min(ROUND_BYTES))
    }

    fn may_propose(&self, now: Now, proposed: usize) -> bool {
        let writing = proposed == 0 && self.jobs.iter().any(|job| job.first.is_some());
        let tail_max = self.pace.limit(now.tick).unwrap_or(TAIL_BYTES_MAX);
        let keeps_pace = !self.is_backed_up() && self.core.room_keeps_pace();
        self.core.role() == Role::Leader && !writing && self.log.tail_bytes() < tail_max && keeps_pace
    }

    /// Makes one entry of what waits. `None` when nothing of it may enter the log.
    fn propose_one(&mut self, now: Now) -> Option<usize> {
        let last = self.log.last();
        let index = last.index + 1;
        let term = self.core.term().0;
        let timestamp_ms = self.stamp(now);
        let mut spec =
            HeaderSpec { kind: Kind::Records, term, index, base_offset: last.next_offset, count: 0, timestamp_ms };
        let mut draft = Draft::default();
        if let Some(Wanted::Session(_)) = self.intake.queue.front() {
            if let Some(Wanted::Session(request)) = self.intake.queue.pop() {
                spec.kind = Kind::Session;
                self.sessions.open(index);
                draft.waiting.push((request, Answer::SessionOpened { session: index }));
            }
        } else {
            self.gather(&mut draft, &spec, self.round_bytes(now).min(FRAME_BYTES));
            spec.count = draft.count;
        }
        if draft.waiting.is_empty() {
            self.hold(now, last.index, draft.judged);
            return None;
        }
        let frame = Frame::seal(spec, last.chain, Body::from_chunks(draft.chunks), draft.crc);
        match self.core.propose(now.tick, entry_meta(spec.kind, frame.encoded_len(), None)) {
            Ok(id) => assert_eq!(id.index.0, index, "the core's log and the replica's differ"),
            Err(error) => {
                self.sessions.truncate(index);
                let rejection = match error {
                    ProposeError::Transferring { .. } => Rejection::Transferring,
                    _ => Rejection::NotLeader { leader: self.core.leader() },
                };
                let requests = draft.waiting.into_iter().map(|(request, _)| request);
                let judged = draft.judged.into_iter().map(|(request, _)| request);
                self.ready.extend(requests.chain(judged).map(|request| (request, Err(rejection.clone()))));
                return None;
            }
        }
        let bytes = frame.encoded_len();
        self.pace.proposed(index, now.tick);
        self.stash.clear();
        self.stash.push_back(frame);
        for (request, answer) in draft.waiting {
            if is_planted(Bug::AckBeforeCommit) {
                self.ready.push((request, Ok(answer)));
                continue;
            }
            self.acks.on_commit(index, request, answer);
        }
        self.hold(now, index, draft.judged);
        Some(bytes)
    }

    /// Judges waiting appends in order and takes those that may enter, until the frame is full.
    fn gather(&mut self, draft: &mut Draft, spec: &HeaderSpec, most: usize) {
        while let Some(Wanted::Append(_, group)) = self.intake.queue.front() {
            if draft.bytes > 0 && draft.bytes + group.body().len() > most {
                return;
            }
            let Some(Wanted::Append(request, group)) = self.intake.queue.pop() else { return };
            let first = spec.base_offset + u64::from(draft.count);
            let verdict = match self.sessions.judge(group.header(), first) {
                Verdict::Duplicate(_) if is_planted(Bug::DuplicateLands) => Verdict::Accept,
                verdict => verdict,
            };
            let rejection = match verdict {
                Verdict::Accept => {
                    let placed = placed(group.header(), spec.index, first, spec.term, spec.timestamp_ms);
                    self.sessions.append(group.header(), placed);
                    draft.take(&group);
                    draft.waiting.push((request, Answer::Appended(placed)));
                    continue;
                }
                Verdict::Duplicate(placed) => Ok(Answer::Appended(placed)),
                Verdict::Expired => Err(Rejection::SessionExpired),
                Verdict::Gap { expected } => Err(Rejection::Gap { expected }),
                Verdict::Conflict { next_offset } => Err(Rejection::Conflict { next_offset }),
                Verdict::Fenced { fence } => Err(Rejection::Fenced { fence }),
            };
            draft.judged.push((request, rejection));
        }
    }

    /// Holds answers that rest on the log up to `index` until that is certain: all of it committed, and the leadership
    /// confirmed by a round that began now. The commit alone proves nothing about now: it may come about by acknowledgements
    /// that were on their way while another leader was elected.
    pub(super) fn hold(&mut self, now: Now, index: u64, judged: Vec<(RequestId, Result<Answer, Rejection>)>) {
        if judged.is_empty() {
            return;
        }
        let is_committed = index <= self.core.commit().0;
        if is_planted(Bug::JudgedTooEarly) || (is_planted(Bug::DeposedJudges) && is_committed) {
            return self.ready.extend(judged);
        }
        if is_planted(Bug::DeposedJudges) {
            return judged.into_iter().for_each(|ready| self.acks.hold_until(index, ready));
        }
        let round = self.fresh_round();
        if self.core.read(now.tick, round).is_err() {
            let rejection = Rejection::LostLeadership { leader: self.core.leader() };
            self.ready.extend(judged.into_iter().map(|(request, _)| (request, Err(rejection.clone()))));
            return;
        }
        for ready in judged {
            self.acks.hold_for_round(round, index, ready);
        }
    }
}
