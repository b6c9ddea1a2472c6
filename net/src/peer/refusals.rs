//! Refusals are retried for as long as it takes; this is what keeps each from being told a thousand times.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use graven_raft::NodeId;
use quinn::{ConnectionError, VarInt};
use quinn_proto::TransportErrorCode;

use super::{CLOSE_REFUSED, Refusal, RefusedBy, stats::Counter};
use crate::{admission::Lines, tls::sentence, transport::is_alert};

/// The refusals that were told lately.
#[derive(Default)]
pub(super) struct Told {
    recent: Mutex<VecDeque<Entry>>,
    count: Counter,
    /// Bounds what is told in all: a stranger can be refused in more ways than anybody remembers.
    lines: Lines,
}

#[derive(PartialEq, Eq)]
struct Entry {
    /// A known peer, or the host of an unknown one: its port is another one at each attempt.
    who: Result<NodeId, std::net::IpAddr>,
    by: RefusedBy,
    refusal: Refusal,
}

impl Told {
    /// Counts the refusal and says whether it should be told.
    pub(super) fn is_new(&self, node: Option<NodeId>, address: SocketAddr, by: RefusedBy, refusal: &Refusal) -> bool {
        self.count.add(1);
        let entry = Entry { who: node.ok_or(address.ip()), by, refusal: refusal.clone() };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.contains(&entry) || self.lines.may_write().is_none() {
            return false;
        }
        if recent.len() >= TOLD_MAX {
            recent.pop_front();
        }
        recent.push_back(entry);
        true
    }

    /// `node` connected: the next refusal is news again.
    pub(super) fn forget(&self, node: NodeId, by: RefusedBy) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|entry| entry.who != Ok(node) || entry.by != by);
    }

    /// Whether another line about what a peer did wrong may be written, and how many were left out before it.
    pub(super) fn may_write(&self) -> Option<u64> {
        self.lines.may_write()
    }

    pub(super) fn refused(&self) -> u64 {
        self.count.value()
    }
}

/// Six peers with a few reasons each.
const TOLD_MAX: usize = 64;

/// Which side refused a certificate, if that is how a connection ended.
pub(super) fn refused_certificate(error: &ConnectionError) -> Option<(RefusedBy, Refusal)> {
    let no_protocol =
        || Refusal::Malformed("the two sides speak different protocols; clients use the client port".to_owned());
    match error {
        ConnectionError::TransportError(local) if is_no_protocol(local.code) => Some((RefusedBy::Us, no_protocol())),
        ConnectionError::ConnectionClosed(close) if is_no_protocol(close.error_code) => {
            Some((RefusedBy::Them, no_protocol()))
        }
        ConnectionError::TransportError(local) if is_alert(local.code.into()) => {
            Some((RefusedBy::Us, Refusal::Certificate(sentence(&local.reason))))
        }
        ConnectionError::ConnectionClosed(close) if is_alert(close.error_code.into()) => {
            Some((RefusedBy::Them, Refusal::Certificate(sentence(&String::from_utf8_lossy(&close.reason)))))
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_REFUSED => {
            Some((RefusedBy::Them, Refusal::Malformed(sentence(&String::from_utf8_lossy(&close.reason)))))
        }
        _ => None,
    }
}

/// The handshake found no common ALPN name.
fn is_no_protocol(code: TransportErrorCode) -> bool {
    u64::from(code) == 0x100 + 120
}

/// A close must fit beside everything else in one small packet.
const REASON_BYTES_MAX: usize = 300;

/// A close reason that fits beside everything else in one small packet.
pub(super) fn close(connection: &quinn::Connection, code: VarInt, reason: &str) {
    connection.close(code, reason.as_bytes().get(..REASON_BYTES_MAX).unwrap_or(reason.as_bytes()));
}
