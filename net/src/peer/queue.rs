//! What waits to be sent on a lane: bounded, empty while the lane is down, filled without ever waiting.
//!
//! A message queued for a lane that is down would be stale when it comes up, so there is none: the driver is told, and Raft sends what
//! is true then. The driver's side never waits; the lane's writer takes what is there and waits for more.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use graven_frame::Frame;
use graven_raft::NodeId;
use tokio::sync::Notify;

use super::SendError;

/// Encoded control messages, one behind the other, so that all that wait leave in one write.
#[derive(Default)]
pub(super) struct ControlQueue {
    state: Mutex<Control>,
    more: Notify,
}

#[derive(Default)]
struct Control {
    up: bool,
    bytes: BytesMut,
    messages: u64,
}

impl ControlQueue {
    pub(super) fn push(&self, to: NodeId, message: &[u8]) -> Result<(), SendError> {
        let mut state = lock(&self.state);
        if !state.up {
            return Err(SendError::Disconnected { node: to });
        }
        if state.bytes.len() + message.len() > CONTROL_QUEUE_BYTES {
            return Err(SendError::Full { node: to, queued: state.bytes.len() });
        }
        let len = u32::try_from(message.len()).unwrap_or(u32::MAX); // Encoded under a limit of 64 KiB.
        state.bytes.extend_from_slice(&len.to_le_bytes());
        state.bytes.extend_from_slice(message);
        state.messages += 1;
        drop(state);
        self.more.notify_one();
        Ok(())
    }

    /// Opens or closes the queue; either way it is empty then.
    pub(super) fn set_up(&self, up: bool) {
        *lock(&self.state) = Control { up, ..Control::default() };
    }

    /// All that waits, and how many messages that is.
    pub(super) async fn next(&self) -> (Bytes, u64) {
        loop {
            {
                let mut state = lock(&self.state);
                if !state.bytes.is_empty() {
                    return (state.bytes.split().freeze(), std::mem::take(&mut state.messages));
                }
            }
            self.more.notified().await;
        }
    }
}

/// Appends, with the frames they carry.
#[derive(Default)]
pub(super) struct AppendQueue {
    state: Mutex<Appends>,
    more: Notify,
}

#[derive(Default)]
struct Appends {
    up: bool,
    waiting: VecDeque<Append>,
    /// Of everything not yet handed to quinn, the append being written included.
    bytes: usize,
    /// Grows with every reset: what was taken before it must not be finished.
    generation: u64,
}

pub(super) struct Append {
    pub(super) head: Bytes,
    pub(super) frames: Vec<Frame>,
    pub(super) bytes: usize,
}

/// What the writer is to do next.
pub(super) enum Next {
    /// Write these, then report [`AppendQueue::written`].
    Write { appends: Vec<Append>, generation: u64 },
    /// Give up the stream and go on with a new one.
    Reset { generation: u64 },
}

impl AppendQueue {
    pub(super) fn push(&self, to: NodeId, limit: usize, append: Append) -> Result<(), SendError> {
        let mut state = lock(&self.state);
        if !state.up {
            return Err(SendError::Disconnected { node: to });
        }
        // An empty queue takes any append, or the largest would never be sent.
        let full = state.bytes > 0 && state.bytes.saturating_add(append.bytes) > limit;
        if full || state.waiting.len() >= APPEND_QUEUE_MESSAGES {
            return Err(SendError::Full { node: to, queued: state.bytes });
        }
        state.bytes += append.bytes;
        state.waiting.push_back(append);
        drop(state);
        self.more.notify_one();
        Ok(())
    }

    pub(super) fn set_up(&self, up: bool) {
        let mut state = lock(&self.state);
        let generation = state.generation + 1;
        *state = Appends { up, generation, ..Appends::default() };
    }

    pub(super) fn generation(&self) -> u64 {
        lock(&self.state).generation
    }

    pub(super) fn reset(&self) {
        let mut state = lock(&self.state);
        state.waiting.clear();
        state.bytes = 0;
        state.generation += 1;
        drop(state);
        self.more.notify_one();
    }

    pub(super) fn queued_bytes(&self) -> usize {
        lock(&self.state).bytes
    }

    /// The next thing for a writer whose stream is of `generation`.
    pub(super) async fn next(&self, generation: u64) -> Next {
        loop {
            if let Some(next) = self.try_next(generation) {
                return next;
            }
            self.more.notified().await;
        }
    }

    fn try_next(&self, generation: u64) -> Option<Next> {
        let mut state = lock(&self.state);
        if state.generation != generation {
            return Some(Next::Reset { generation: state.generation });
        }
        let mut appends = Vec::new();
        let mut bytes = 0;
        while let Some(next) = state.waiting.front() {
            if !appends.is_empty() && bytes + next.bytes > WRITE_TOGETHER_BYTES {
                break;
            }
            bytes += next.bytes;
            appends.extend(state.waiting.pop_front());
        }
        (!appends.is_empty()).then_some(Next::Write { appends, generation })
    }

    /// Waits until the stream of `generation` is to be given up.
    pub(super) async fn outdated(&self, generation: u64) {
        while self.generation() == generation {
            self.more.notified().await;
        }
    }

    /// `bytes` taken in `generation` are with quinn now.
    pub(super) fn written(&self, generation: u64, bytes: usize) {
        let mut state = lock(&self.state);
        if state.generation == generation {
            state.bytes = state.bytes.saturating_sub(bytes);
        }
    }
}

/// The state is whole after every statement, so a panic elsewhere leaves nothing half done behind a poisoned lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Control messages that wait: some thousand acks and heartbeats. More means that the peer has not read for seconds.
const CONTROL_QUEUE_BYTES: usize = 256 << 10;
/// Appends that wait, whatever their size: each costs an allocation or two beside its bytes.
const APPEND_QUEUE_MESSAGES: usize = 1024;
/// Small appends leave together up to this.
const WRITE_TOGETHER_BYTES: usize = 256 << 10;
