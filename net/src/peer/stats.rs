//! What the peer plane counts. Plain atomics inside, plain numbers outside.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use graven_raft::NodeId;

use crate::transport::SocketBuffers;

/// The peer plane at one moment. Counters start at zero with the plane.
#[derive(Debug, Clone, Default)]
pub struct PeerStats {
    /// Buffers the system granted to the peers' socket.
    pub socket: SocketBuffers,
    /// Handshakes and hellos that were refused, by either side.
    pub refused: u64,
    /// Connections turned away because too many handshakes were begun, unheard or in the middle.
    pub turned_away: u64,
    /// Each peer of the roster.
    pub peers: BTreeMap<NodeId, LinkStats>,
}

/// What one peer exchanged with us.
#[derive(Debug, Clone, Default)]
pub struct LinkStats {
    /// Both lanes towards it are up.
    pub up: bool,
    /// The feature level it told when it was last reached.
    pub feature_level: u32,
    /// Control messages handed to quinn.
    pub messages_sent: u64,
    /// Control messages received.
    pub messages_received: u64,
    /// Appends handed to quinn.
    pub appends_sent: u64,
    /// Appends received.
    pub appends_received: u64,
    /// Bytes of both lanes handed to quinn.
    pub bytes_sent: u64,
    /// Bytes of both lanes received.
    pub bytes_received: u64,
    /// Sends that found their queue full.
    pub queue_full: u64,
    /// Bytes of appends that wait for quinn to take them.
    pub queued_bytes: u64,
    /// Connections towards it that were made after the first of each lane.
    pub reconnects: u64,
    /// The control lane, while it is up.
    pub control: Option<LaneStats>,
    /// The append lane, while it is up.
    pub append: Option<LaneStats>,
}

/// What quinn measured on one connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct LaneStats {
    /// Smoothed round trip.
    pub rtt: Duration,
    /// Congestion window in bytes.
    pub congestion_window: u64,
    /// Packets declared lost.
    pub lost_packets: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Times the window was cut back.
    pub congestion_events: u64,
    /// UDP payload of a full packet.
    pub mtu: u16,
}

impl LaneStats {
    pub(super) fn of(connection: &quinn::Connection) -> Self {
        let path = connection.stats().path;
        Self {
            rtt: path.rtt,
            congestion_window: path.cwnd,
            lost_packets: path.lost_packets,
            sent_packets: path.sent_packets,
            congestion_events: path.congestion_events,
            mtu: path.current_mtu,
        }
    }
}

/// A number that only grows, read for statistics only: no other memory is ordered by it.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    pub(super) fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What is counted for each peer.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) messages_sent: Counter,
    pub(super) messages_received: Counter,
    pub(super) appends_sent: Counter,
    pub(super) appends_received: Counter,
    pub(super) bytes_sent: Counter,
    pub(super) bytes_received: Counter,
    pub(super) queue_full: Counter,
    pub(super) connections: Counter,
}
