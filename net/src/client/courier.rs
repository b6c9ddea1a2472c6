//! Carries the append groups of all sessions of a client to the leader, over one stream, and brings the answers back.
//!
//! One task a client. It finds the leader, opens an append stream, writes what the sessions have, and hands out answers as
//! they come. When the leader changes or the connection is lost, it opens a stream to the new leader and sends again, in
//! order, whatever has no answer. A node that has a group already recognises it by session and sequence.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::dial::Link;
use super::network::Network;
use super::session::{Outgoing, Session, Verdict};
use crate::protocol::append::{Answer, Rejection, decode_answer};
use crate::protocol::{ErrorCode, Failure, LeaderView, StreamKind};

/// What sessions and courier share.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    sessions: Mutex<HashMap<u64, Arc<Session>>>,
    /// Sessions with groups to write.
    ready: Mutex<VecDeque<Arc<Session>>>,
    /// Something is ready.
    work: Notify,
    /// Something is in flight: timeouts must be watched.
    watch: Notify,
}

impl Lanes {
    /// Takes in a new session.
    pub(super) fn add(&self, session: &Arc<Session>) {
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, session| !session.is_over());
        sessions.insert(session.id, session.clone());
    }

    /// Takes out a session that failed or is over.
    pub(super) fn remove(&self, session: &Session) {
        lock(&self.sessions).remove(&session.id);
    }

    /// A session has groups to write.
    pub(super) fn announce(&self, session: &Arc<Session>) {
        lock(&self.ready).push_back(session.clone());
        self.work.notify_one();
        self.watch.notify_one();
    }

    /// Chunks to write next; sessions take turns.
    fn collect(&self, out: &mut Outgoing) {
        let mut budget = WRITE_BYTES;
        while budget > 0 {
            let Some(session) = lock(&self.ready).pop_front() else { return };
            if session.take_unsent(&mut budget, out) {
                lock(&self.ready).push_back(session);
            }
        }
    }

    /// Everything unanswered is to be sent again, on another stream.
    fn rewind(&self) {
        let mut ready = lock(&self.ready);
        ready.clear();
        ready.extend(lock(&self.sessions).values().filter(|session| session.rewind()).cloned());
    }

    fn all(&self) -> Vec<Arc<Session>> {
        lock(&self.sessions).values().cloned().collect()
    }

    fn abort(&self, failure: &Failure) {
        self.all().into_iter().for_each(|session| session.abort(failure.clone()));
    }

    fn has_work(&self) -> bool {
        !lock(&self.ready).is_empty()
    }
}

/// Runs as long as the client.
pub(super) async fn run(network: Arc<Network>, lanes: Arc<Lanes>) {
    tokio::join!(carry(&network, &lanes), watch(&network, &lanes));
}

/// Fails what made no progress within the timeout.
async fn watch(network: &Network, lanes: &Lanes) {
    loop {
        let sessions = lanes.all();
        if sessions.iter().all(|session| session.in_flight() == 0) {
            lanes.watch.notified().await;
        }
        let now = Instant::now();
        sessions.iter().for_each(|session| session.expire(now, network.timeout, || network.trouble()));
        tokio::time::sleep(WATCH).await;
    }
}

async fn carry(network: &Arc<Network>, lanes: &Lanes) {
    loop {
        // No stream is open here: whatever has no answer is to be sent, an answer comes on the next stream.
        lanes.rewind();
        while !lanes.has_work() {
            lanes.work.notified().await;
        }
        if let Some(failure) = network.leader_verdict() {
            lanes.abort(&failure);
            continue;
        }
        let leader = network.view().borrow().leader.clone();
        let link = match leader {
            Some(leader) => network.link_to(&leader).await.ok(),
            // Nobody leads as far as we know: a connection to anybody will tell when that changes.
            None => network.any_link(None).await.ok().and(None),
        };
        let Some(link) = link else {
            network.pause().await;
            continue;
        };
        match serve(network, lanes, &link).await {
            End::Superseded => {}
            End::Lost => network.pause().await,
            End::NotLeader(view) => {
                network.merge_view(&view);
                if network.view().borrow().leader.as_ref() == Some(&link.name) {
                    network.pause().await;
                }
            }
            End::Repeat => network.pause().await,
            End::Refused(failure) => lanes.abort(&failure),
        }
    }
}

/// Why an append stream was left.
enum End {
    /// Another node leads now.
    Superseded,
    /// The stream or its connection broke.
    Lost,
    /// The node says that it does not lead.
    NotLeader(LeaderView),
    /// Groups must be sent again.
    Repeat,
    /// The node refuses the whole stream.
    Refused(Failure),
}

/// Serves one append stream until it must be left.
async fn serve(network: &Network, lanes: &Lanes, link: &Link) -> End {
    let Ok((mut send, recv)) = link.connection.open_bi().await else { return End::Lost };
    if send.write_all(&[StreamKind::Append as u8]).await.is_err() {
        return End::Lost;
    }
    let pulse = Pulse::new();
    let end = tokio::select! {
        () = write(lanes, &mut send) => End::Lost,
        end = read(lanes, &pulse, recv) => end,
        () = superseded(network, &pulse, link) => End::Superseded,
    };
    // Groups half-written must not be taken for whole; a stream that broke is reset already.
    let _ = send.reset(0u32.into());
    end
}

async fn write(lanes: &Lanes, send: &mut quinn::SendStream) {
    let mut out = Outgoing::default();
    loop {
        lanes.collect(&mut out);
        let mut chunks = out.take();
        if chunks.is_empty() {
            lanes.work.notified().await;
            continue;
        }
        if send.write_all_chunks(&mut chunks).await.is_err() {
            return;
        }
    }
}

async fn read(lanes: &Lanes, pulse: &Pulse, mut recv: quinn::RecvStream) -> End {
    let mut bytes = BytesMut::new();
    let mut answers = Vec::new();
    loop {
        match recv.read_chunk(READ_BYTES, true).await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.bytes),
            Ok(None) | Err(_) => return End::Lost,
        }
        loop {
            match decode_answer(&mut bytes) {
                Ok(Some(answer)) => answers.push(answer),
                Ok(None) => break,
                Err(sentence) => return End::Refused(Failure::refused(ErrorCode::Internal, sentence)),
            }
        }
        if let Some(end) = hand_out(lanes, &mut answers) {
            return end;
        }
        pulse.answered();
    }
}

/// Gives answers to their sessions; an end when the stream must be left.
fn hand_out(lanes: &Lanes, answers: &mut Vec<Answer>) -> Option<End> {
    let mut end = None;
    let sessions = lock(&lanes.sessions);
    for Answer { session, sequence, result } in answers.drain(..) {
        let verdict = match (sessions.get(&session), result) {
            (Some(session), result) => session.on_answer(sequence, result),
            (None, Err(Rejection::Failed(failure))) if session == 0 => return Some(End::Refused(failure)),
            // A session whose user has gone.
            (None, _) => Verdict::GoOn,
        };
        match verdict {
            Verdict::GoOn => {}
            Verdict::Leave(view) => end = Some(End::NotLeader(view)),
            Verdict::Repeat if end.is_none() => end = Some(End::Repeat),
            Verdict::Repeat => {}
        }
    }
    end
}

/// Resolves when another node leads and this one is silent about what it was sent.
async fn superseded(network: &Network, pulse: &Pulse, link: &Link) {
    network.superseded(link).await;
    while let Some(left) = UNANSWERED.checked_sub(pulse.silent_for()).filter(|left| !left.is_zero()) {
        tokio::time::sleep(left).await;
    }
}

/// When an answer last came on a stream. Leaving a stream too early costs a repetition, never a record.
#[derive(Debug)]
struct Pulse(Mutex<Instant>);

impl Pulse {
    fn new() -> Pulse {
        Pulse(Mutex::new(Instant::now()))
    }

    fn answered(&self) {
        *lock(&self.0) = Instant::now();
    }

    fn silent_for(&self) -> Duration {
        lock(&self.0).elapsed()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Written at a time: small enough that sessions take turns, large enough to fill the window in a few turns.
const WRITE_BYTES: usize = 256 << 10;
/// Read at a time: some hundred answers.
const READ_BYTES: usize = 64 << 10;
/// How often timeouts are looked at: they are seconds.
const WATCH: Duration = Duration::from_millis(50);
/// A group unanswered for so long, while another node is known to lead, was sent to a leader of the past.
const UNANSWERED: Duration = Duration::from_millis(100);
