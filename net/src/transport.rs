//! Sockets and quinn profiles that peers and clients share.
//!
//! quinn's defaults are made for 100 Mbit/s over 100 ms. What is different here, and why, stands at each constant and in
//! `docs/decisions/transport.md`. The receiver's side matters as much as the sender's: an endpoint must be *able to receive* large
//! datagrams ([`endpoint`] sets that) before the other side's path discovery can find that it may send them.

#[cfg(feature = "peer")]
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{
    AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
    congestion::CubicConfig,
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::crypto::{hmac, tls13::OkmBlock};
use socket2::{Domain, Protocol, Socket, Type};

/// The largest datagrams to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mtu {
    /// Whatever the path carries, up to [`MTU_MAX`]; found by probing.
    #[default]
    Auto,
    /// Nothing above this many bytes of UDP payload is tried; brought into 1200 to [`MTU_MAX`].
    AtMost(u16),
}

impl Mtu {
    /// The bound in bytes of UDP payload.
    #[must_use]
    pub fn bytes(self) -> u16 {
        match self {
            Self::Auto => MTU_MAX,
            Self::AtMost(bytes) => bytes.clamp(MTU_MIN, MTU_MAX),
        }
    }
}

/// How one connection behaves. Start from the constructor for its use and change what must differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The largest datagrams to try.
    pub mtu: Mtu,
    /// What the connection must carry without waiting, in bytes: its bandwidth times (round trip plus the reader's own pauses). Windows
    /// are derived from it.
    pub window_bytes: u64,
    /// Without any packet for this long the connection is lost.
    pub idle_timeout: Duration,
    /// A silent connection sends a packet this often; `None` leaves that to the other side.
    pub keep_alive: Option<Duration>,
    /// Acknowledge every so many packets instead of every second one; `None` for lanes on which each answer is waited for.
    pub ack_every: Option<u32>,
    /// Streams the other side may have open towards us, each direction on its own.
    pub streams: Streams,
}

/// How many streams the other side may have open towards us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// Streams with an answer.
    pub bidirectional: u32,
    /// Streams without.
    pub unidirectional: u32,
}

impl Profile {
    /// A peer's control lane: small messages that must not wait.
    #[must_use]
    pub fn peer_control() -> Self {
        Self {
            mtu: Mtu::Auto,
            window_bytes: 256 << 10,
            idle_timeout: PEER_IDLE,
            keep_alive: Some(PEER_KEEP_ALIVE),
            ack_every: None,
            streams: PEER_STREAMS,
        }
    }

    /// A peer's append lane: `window_bytes` in flight above quinn.
    #[must_use]
    pub fn peer_append(window_bytes: u64) -> Self {
        Self { window_bytes, ack_every: Some(BULK_ACK_EVERY), ..Self::peer_control() }
    }

    /// A client's connection, or the node's end of one.
    #[must_use]
    pub fn client(window_bytes: u64) -> Self {
        Self {
            mtu: Mtu::Auto,
            window_bytes,
            idle_timeout: CLIENT_IDLE,
            keep_alive: Some(CLIENT_KEEP_ALIVE),
            ack_every: None,
            streams: Streams { bidirectional: 256, unidirectional: 0 },
        }
    }

    /// What a whole connection may have sent and not yet seen acknowledged.
    #[must_use]
    pub(crate) fn send_window_bytes(&self) -> u64 {
        let window = self.window_bytes.max(WINDOW_MIN);
        // quinn counts a chunk as retained until all of it is acknowledged: one window in flight, one being retired, one chunk over.
        window.saturating_mul(2).saturating_add(WRITE_CHUNK_BYTES as u64)
    }

    /// What a whole connection may have received that nobody has read.
    #[must_use]
    pub(crate) fn receive_window_bytes(&self) -> u64 {
        self.window_bytes.max(WINDOW_MIN).saturating_mul(2).saturating_add(RECEIVE_RESERVE)
    }

    /// The profile as quinn takes it.
    #[must_use]
    pub fn build(&self) -> Arc<TransportConfig> {
        let mut config = TransportConfig::default();
        let window = self.window_bytes.max(WINDOW_MIN);
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.mtu.bytes());
        let mut cubic = CubicConfig::default();
        cubic.initial_window(INITIAL_CONGESTION_WINDOW);
        config
            .send_window(self.send_window_bytes())
            .stream_receive_window(var_int(window.saturating_add(RECEIVE_RESERVE)))
            .receive_window(var_int(self.receive_window_bytes()))
            .max_concurrent_bidi_streams(VarInt::from_u32(self.streams.bidirectional))
            .max_concurrent_uni_streams(VarInt::from_u32(self.streams.unidirectional))
            .max_idle_timeout(IdleTimeout::try_from(self.idle_timeout).ok())
            .keep_alive_interval(self.keep_alive)
            .initial_rtt(INITIAL_RTT)
            .initial_mtu(MTU_INITIAL.min(self.mtu.bytes()))
            .mtu_discovery_config(Some(discovery))
            .congestion_controller_factory(Arc::new(cubic))
            .datagram_receive_buffer_size(None);
        if let Some(packets) = self.ack_every {
            let mut frequency = AckFrequencyConfig::default();
            frequency.ack_eliciting_threshold(VarInt::from_u32(packets)).max_ack_delay(Some(BULK_ACK_DELAY));
            config.ack_frequency_config(Some(frequency));
        }
        Arc::new(config)
    }
}

/// The endpoint's side of a profile: how large a datagram it can receive, and the key by which connections of an earlier life of this
/// process are told at once that they are dead.
///
/// With a `reset_key` that is kept across restarts, whoever still sends to the old life gets a reset it can recognise, and redials
/// without waiting for its idle timeout.
#[must_use]
pub fn endpoint(mtu: Mtu, reset_key: Option<&ResetKey>) -> EndpointConfig {
    let mut config = match reset_key {
        Some(key) => {
            let mut config = EndpointConfig::new(Arc::new(*key));
            // A packet for an unknown connection is answered by a reset only if its connection id could be ours, so the ids of every life
            // must look alike.
            let seal = key.connection_id_seal();
            config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(seal)));
            config
        }
        None => EndpointConfig::default(),
    };
    if config.max_udp_payload_size(mtu.bytes()).is_err() {
        // Only sizes below 1200 are refused, and `Mtu::bytes` has none.
        tracing::error!(mtu = mtu.bytes(), "datagram size refused, the default is used");
    }
    config
}

/// A key for stateless resets, kept in a node's data directory and told nobody.
#[derive(Clone, Copy)]
pub struct ResetKey(pub [u8; 32]);

impl fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey(..)")
    }
}

impl ResetKey {
    fn connection_id_seal(&self) -> u64 {
        let tag = self.tag(b"graven connection ids");
        tag.and_then(|tag| tag.as_ref().first_chunk().map(|bytes| u64::from_le_bytes(*bytes))).unwrap_or_default()
    }

    fn tag(&self, data: &[u8]) -> Option<hmac::Tag> {
        let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13()?;
        Some(suite.hkdf_provider.hmac_sign(&OkmBlock::new(&self.0), data))
    }
}

impl quinn_proto::crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        if let Some(tag) = self.tag(data) {
            signature_out.copy_from_slice(tag.as_ref());
        }
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), quinn_proto::crypto::CryptoError> {
        // Compared in full whatever differs: the time taken tells nothing about how much was right.
        let tag = self.tag(data).ok_or(quinn_proto::crypto::CryptoError)?;
        let differs = tag.as_ref().iter().zip(signature).fold(0, |acc, (a, b)| acc | (a ^ b));
        if differs == 0 && tag.as_ref().len() == signature.len() {
            Ok(())
        } else {
            Err(quinn_proto::crypto::CryptoError)
        }
    }
}

/// A bound UDP socket and the buffers the system really gave it.
#[derive(Debug)]
pub struct BoundSocket {
    /// The socket, ready for quinn.
    pub socket: std::net::UdpSocket,
    /// What the system granted.
    pub buffers: SocketBuffers,
}

/// Socket buffer sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketBuffers {
    /// What was asked for, each way.
    pub wanted: usize,
    /// Granted for receiving.
    pub receive: usize,
    /// Granted for sending.
    pub send: usize,
}

impl SocketBuffers {
    /// Less was granted than asked for: bursts will be dropped by the system, which looks like a lossy network.
    #[must_use]
    pub fn capped(&self) -> bool {
        self.receive < self.wanted || self.send < self.wanted
    }
}

/// Binds a UDP socket at `address` with buffers of `buffer_bytes`, and reads back what was granted.
///
/// An IPv6 wildcard address takes IPv4 too.
///
/// # Errors
/// What the system says about the address; a smaller buffer than asked for is told in the answer and is no error.
pub fn bind(address: SocketAddr, buffer_bytes: usize) -> io::Result<BoundSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Refusals are read back below: Linux grants what net.core.rmem_max allows without an error, others refuse.
    let _refused_receive = socket.set_recv_buffer_size(buffer_bytes);
    let _refused_send = socket.set_send_buffer_size(buffer_bytes);
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    let doubled = if cfg!(target_os = "linux") { 2 } else { 1 }; // Linux reports twice what may be used: the rest is its bookkeeping.
    let buffers = SocketBuffers {
        wanted: buffer_bytes,
        receive: socket.recv_buffer_size()? / doubled,
        send: socket.send_buffer_size()? / doubled,
    };
    Ok(BoundSocket { socket: socket.into(), buffers })
}

/// A socket of its own for dialling `address`, with no listener.
///
/// # Errors
/// What the system says.
#[cfg(feature = "peer")]
pub(crate) fn dialling(address: SocketAddr, mtu: Mtu) -> io::Result<quinn::Endpoint> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let bound = bind((any, 0).into(), SOCKET_BUFFER_BYTES)?;
    quinn::Endpoint::new(endpoint(mtu, None), None, bound.socket, Arc::new(quinn::TokioRuntime))
}

/// The largest UDP payload tried: ten segments of it, quinn's largest batch, still fit into one 64 KiB send. Above 6550 bytes transfers
/// stalled for good in our tests.
pub const MTU_MAX: u16 = 6500;
/// QUIC's own minimum.
const MTU_MIN: u16 = 1200;
/// What the first packets use, before probing: every path of today's internet and of any data centre carries it.
const MTU_INITIAL: u16 = 1200;
/// Socket buffers asked for: a few round trips of bursts of all peers. The Linux default of 208 KiB drops single bursts.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Bytes are handed to quinn in pieces of at most this: it keeps a piece until all of it is acknowledged, and searches pieces linearly
/// for every packet, so neither much larger nor much smaller is good.
pub const WRITE_CHUNK_BYTES: usize = 64 << 10;
/// Before the first round trip is measured: lost first packets are sent again after three of these. The default of 333 ms makes a
/// restarted node wait a second for its peers.
const INITIAL_RTT: Duration = Duration::from_millis(30);
/// Congestion window before anything is known, in bytes: hosts of one cluster share a network that carries this.
const INITIAL_CONGESTION_WINDOW: u64 = 256 << 10;
/// A window below this would make every packet wait for its acknowledgement.
const WINDOW_MIN: u64 = 64 << 10;
/// What may arrive while the reader hands over what it has.
const RECEIVE_RESERVE: u64 = 256 << 10;
/// A dead peer is noticed after this even if the driver has nothing to send; Raft's own timers are shorter.
const PEER_IDLE: Duration = Duration::from_secs(3);
const PEER_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A lane is one stream at a time, two around a reset, and the hello.
const PEER_STREAMS: Streams = Streams { bidirectional: 1, unidirectional: 4 };
const CLIENT_IDLE: Duration = Duration::from_secs(5);
const CLIENT_KEEP_ALIVE: Duration = Duration::from_millis(1500);
/// One acknowledgement for a batch of packets; each costs the sender a walk over what it has in flight.
const BULK_ACK_EVERY: u32 = 10;
/// The end of a burst is acknowledged within this.
const BULK_ACK_DELAY: Duration = Duration::from_millis(2);

/// Whether an error code of QUIC carries a TLS alert (RFC 9001, 4.8).
pub(crate) fn is_alert(code: u64) -> bool {
    (ALERTS..ALERTS + 0x100).contains(&code)
}

/// Whether it carries an alert that says something against the other side's certificate.
pub(crate) fn is_certificate_alert(code: u64) -> bool {
    is_alert(code) && CERTIFICATE_ALERTS.contains(&(code - ALERTS))
}

const ALERTS: u64 = 0x100;
/// bad, unsupported, revoked, expired, unknown certificate, unknown_ca, access_denied, decrypt_error (a signature that is
/// not the certificate's), certificate_required.
const CERTIFICATE_ALERTS: [u64; 9] = [42, 43, 44, 45, 46, 48, 49, 51, 116];

pub(crate) fn var_int(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}

#[cfg(test)]
mod tests {
    use quinn_proto::crypto::HmacKey;

    use super::*;

    #[test]
    fn reset_key_verifies_only_what_it_signed() {
        let (ours, other) = (ResetKey([7; 32]), ResetKey([8; 32]));
        let mut tag = [0; 32];
        ours.sign(b"connection", &mut tag);
        assert_ne!(tag, [0; 32]);
        assert!(ours.verify(b"connection", &tag).is_ok());
        assert!(ours.verify(b"another", &tag).is_err());
        assert!(ours.verify(b"connection", &tag[..31]).is_err());
        assert!(other.verify(b"connection", &tag).is_err());
    }

    #[test]
    fn socket_tells_the_buffers_it_was_granted() {
        let bound = bind("127.0.0.1:0".parse().unwrap(), 64 << 10).unwrap();
        assert!(bound.buffers.receive >= 64 << 10 && !bound.buffers.capped());
        assert_ne!(bound.socket.local_addr().unwrap().port(), 0);
        let greedy = bind("127.0.0.1:0".parse().unwrap(), 1 << 30).unwrap();
        assert!(greedy.buffers.capped());
    }

    #[test]
    fn datagram_sizes_are_brought_into_what_works() {
        assert_eq!(Mtu::AtMost(9000).bytes(), MTU_MAX);
        assert_eq!(Mtu::AtMost(10).bytes(), MTU_MIN);
        assert_eq!(Mtu::AtMost(1452).bytes(), 1452);
    }
}
