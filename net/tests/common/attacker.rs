//! Somebody who means harm: speaks QUIC and writes whatever he likes, with any certificate or none, and believes every node.
//!
//! Shared by the tests of this crate and those that start real nodes; so it knows nothing of either's scenes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use graven_net::protocol::{Hello, StreamKind};
use graven_net::wire;
use quinn::crypto::rustls::QuicClientConfig;
use quinn_proto::DatagramEvent;
use rustls::DigitallySignedStruct;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// Longer than any answer takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A host of its own on loopback, numbered from 1.
pub(crate) fn host(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, number))
}

/// TLS for `alpn` with this certificate and key in PEM, or with none.
pub(crate) fn crypto(alpn: &[u8], holder: Option<(&str, &str)>) -> Arc<QuicClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match holder {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>().expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(QuicClientConfig::try_from(config).expect("a suite for QUIC"))
}

/// Believes whatever certificate it is shown.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// One socket to attack from.
pub(crate) struct Attacker {
    endpoint: quinn::Endpoint,
    crypto: Arc<QuicClientConfig>,
    /// What it lets the other side send: little, where it does not mean to read.
    pub(crate) window_bytes: u32,
}

impl Attacker {
    pub(crate) fn new(from: IpAddr, crypto: Arc<QuicClientConfig>) -> Attacker {
        let endpoint = quinn::Endpoint::client(SocketAddr::new(from, 0)).expect("a socket");
        Attacker { endpoint, crypto, window_bytes: 1 << 20 }
    }

    /// Dials whatever listens there.
    pub(crate) async fn dial(&self, to: SocketAddr) -> Result<quinn::Connection, quinn::ConnectionError> {
        let mut config = quinn::ClientConfig::new(self.crypto.clone());
        let mut transport = quinn::TransportConfig::default();
        transport
            .stream_receive_window(self.window_bytes.into())
            .receive_window(self.window_bytes.into())
            .keep_alive_interval(Some(Duration::from_secs(1)));
        config.transport_config(Arc::new(transport));
        let connecting = self.endpoint.connect_with(config, to, "any.node.graven.internal").expect("can be dialled");
        tokio::time::timeout(PATIENCE, connecting).await.expect("no end of the handshake")
    }

    /// Dials a node's port for clients and says hello.
    pub(crate) async fn client(&self, to: SocketAddr) -> Result<quinn::Connection, quinn::ConnectionError> {
        let connection = self.dial(to).await?;
        let reply = exchange(&connection, &hello()).await;
        match connection.close_reason() {
            // The hello may be answered and the connection closed after it all the same.
            Some(reason) => Err(reason),
            None if reply.is_empty() => Err(connection.closed().await),
            None => Ok(connection),
        }
    }
}

/// A client's hello, with the byte that tells its kind.
pub(crate) fn hello() -> Vec<u8> {
    let hello = Hello { oldest: 1, newest: 1, feature_level: 1, software: "attacker".to_owned() };
    [vec![StreamKind::Hello as u8], wire::encode::<1024>(&hello).expect("encodes")].concat()
}

/// Says `bytes` on a stream of their own, ends it, and returns what comes back; nothing when the stream or the connection is cut.
pub(crate) async fn exchange(connection: &quinn::Connection, bytes: &[u8]) -> Vec<u8> {
    let talk = async {
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        // Whoever is being thrown out may not get to the end of it.
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        recv.read_to_end(1 << 20).await.ok()
    };
    tokio::time::timeout(PATIENCE, talk).await.ok().flatten().unwrap_or_default()
}

/// What handshakes that were begun and left came to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Begun {
    /// First packets sent.
    pub(crate) sent: u64,
    /// Times the node wanted a proof of the address, and got it.
    pub(crate) proven: u64,
}

/// Begins `count` handshakes from one socket and finishes none, at most one in each `pace`. Proves its address when asked, so that
/// it is no stranger to take for a forger. Ends early when `stop` is set. Blocks.
pub(crate) fn begin_handshakes(
    from: IpAddr,
    to: SocketAddr,
    crypto: &Arc<QuicClientConfig>,
    count: u64,
    pace: Duration,
    stop: &AtomicBool,
) -> Begun {
    let socket = UdpSocket::bind(SocketAddr::new(from, 0)).expect("a socket");
    socket.set_nonblocking(true).expect("a socket");
    let mut endpoint = quinn_proto::Endpoint::new(Arc::default(), None, false, None);
    let mut connections = HashMap::new();
    let (mut begun, mut packet, mut received) = (Begun::default(), Vec::new(), [0; 2048]);
    let started = Instant::now();
    while begun.sent < count && !stop.load(Ordering::Relaxed) {
        let config = quinn_proto::ClientConfig::new(crypto.clone());
        let dialled = endpoint.connect(Instant::now(), config, to, "any.node.graven.internal");
        let Ok((handle, mut connection)) = dialled else { break };
        send_next(&socket, to, &mut connection, &mut packet);
        connections.insert(handle, connection);
        begun.sent += 1;
        let wait = started + pace.saturating_mul(u32::try_from(begun.sent).unwrap_or(u32::MAX));
        std::thread::sleep(wait.saturating_duration_since(Instant::now()));
        while let Ok((len, _)) = socket.recv_from(&mut received) {
            // Only a Retry is answered; what would go on with the handshake is left.
            if received[0] & 0xF0 != 0xF0 {
                continue;
            }
            let (data, mut scratch) = (BytesMut::from(&received[..len]), Vec::new());
            let event = endpoint.handle(Instant::now(), to, None, None, data, &mut scratch);
            if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event
                && let Some(mut connection) = connections.remove(&handle)
            {
                connection.handle_event(event);
                send_next(&socket, to, &mut connection, &mut packet);
                begun.proven += 1;
            }
        }
    }
    begun
}

fn send_next(socket: &UdpSocket, to: SocketAddr, connection: &mut quinn_proto::Connection, packet: &mut Vec<u8>) {
    packet.clear();
    if let Some(transmit) = connection.poll_transmit(Instant::now(), 1, packet) {
        // A full buffer loses it, as networks do.
        let _ = socket.send_to(&packet[..transmit.size], to);
    }
}

/// Resident memory of a process that belongs to no file, in bytes.
pub(crate) fn rss_anon(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux tells");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}
