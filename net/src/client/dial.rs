//! One connection to one node: dialling it, learning who it is, and telling apart why that failed.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use quinn::ConnectionError;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::protocol::{
    ALPN, CLOSE_UNAUTHENTICATED, ErrorCode, FEATURE_LEVEL, Failure, Hello, HelloReply, LeaderView, MAX_MESSAGE_BYTES,
    OLDEST_VERSION, Request, Response, StreamKind, VERSION, Welcome,
};
use crate::tls::{self, TlsError, TlsIdentity, server_name};
use crate::transport::{self, Mtu, Profile};
use crate::wire;

/// An established connection whose hellos were exchanged.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) connection: quinn::Connection,
    /// Who leads, as this node said last.
    pub(super) view: watch::Sender<LeaderView>,
    /// The largest record the node takes.
    pub(super) max_record_bytes: u32,
    /// The highest feature level that the node knows.
    pub(super) feature_level: u32,
    /// It is being asked who the members are.
    pub(super) asking_members: AtomicBool,
}

impl Link {
    /// Whether the connection has not ended as far as we know.
    pub(super) fn is_live(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Sends a request and waits for its answer, however long that takes.
    ///
    /// # Errors
    /// A sentence, when the connection was lost: whether the node took the request is then not known.
    pub(super) async fn unary(&self, request: &Request) -> Result<Response, String> {
        let request = wire::encode::<MAX_MESSAGE_BYTES>(request).map_err(|cause| cause.to_string())?;
        exchange(&self.connection, StreamKind::Unary, request).await.map_err(|cause| self.lost(&cause))
    }

    /// The sentence for a connection that was lost.
    pub(super) fn lost(&self, cause: &str) -> String {
        format!("lost node {} at {}: {cause}", self.name, self.address)
    }
}

/// Dials a node at all addresses its host name has, at the same time, and takes the first that answers.
pub(super) async fn dial(
    endpoint: &quinn::Endpoint,
    tls: &TlsIdentity,
    mtu: Mtu,
    name: &str,
    address: &str,
) -> Result<Link, Failure> {
    let unavailable = |cause: &str| {
        let message = format!("node {name} at {address} cannot be reached: {cause}");
        Failure::refused(ErrorCode::Unavailable, message).with("node", name).with("address", address)
    };
    let config = client_config(tls, mtu).map_err(tls_failure)?;
    let addresses = tokio::net::lookup_host(address).await.map_err(|cause| unavailable(&cause.to_string()))?;
    let mut attempts = JoinSet::new();
    for socket in addresses.take(ADDRESSES_MAX) {
        attempts.spawn(greet(endpoint.clone(), config.clone(), socket, name.to_owned()));
    }
    let mut failure = unavailable("its host name has no address");
    while let Some(attempt) = attempts.join_next().await {
        match attempt.unwrap_or_else(|cause| Err(DialError::Other(cause.to_string()))) {
            Ok((connection, welcome)) if welcome.name == name => {
                let view = watch::Sender::new(LeaderView::default());
                return Ok(Link {
                    name: name.to_owned(),
                    address: address.to_owned(),
                    max_record_bytes: welcome.max_record_bytes,
                    feature_level: welcome.feature_level,
                    connection,
                    view,
                    asking_members: AtomicBool::new(false),
                });
            }
            Ok((_, welcome)) => failure = unavailable(&format!("it calls itself {}", welcome.name)),
            // Another host may be behind another address of the name; if none of them answers, this is what to tell.
            Err(DialError::Unauthenticated(sentence)) => {
                let message = format!("node {name} at {address}: {sentence}");
                failure = Failure::refused(ErrorCode::Unauthenticated, message).with("node", name);
            }
            Err(DialError::Refused(refused)) => return Err(refused),
            Err(DialError::Other(cause)) if failure.code != ErrorCode::Unauthenticated => {
                failure = unavailable(&cause);
            }
            Err(DialError::Other(_)) => {}
        }
    }
    Err(failure)
}

/// A certificate that is no good is told as if the node had refused it: that is what would happen.
pub(super) fn tls_failure(cause: TlsError) -> Failure {
    let code = match cause {
        TlsError::Expired { .. } | TlsError::NotYetValid { .. } | TlsError::NotSigned { .. } => {
            ErrorCode::Unauthenticated
        }
        TlsError::Config(_) => ErrorCode::Internal,
        _ => ErrorCode::Config,
    };
    Failure::refused(code, cause.to_string())
}

enum DialError {
    /// One side refused the other's certificate.
    Unauthenticated(String),
    /// The node said no.
    Refused(Failure),
    /// It may work another time.
    Other(String),
}

fn client_config(tls: &TlsIdentity, mtu: Mtu) -> Result<quinn::ClientConfig, TlsError> {
    let mut config = quinn::ClientConfig::new(tls.current().quic_client(ALPN)?);
    let mut profile = Profile::client(CONNECTION_WINDOW_BYTES);
    profile.mtu = mtu;
    // A node opens one stream towards us: the leader's name.
    profile.streams.bidirectional = 0;
    profile.streams.unidirectional = 1;
    config.transport_config(profile.build());
    Ok(config)
}

async fn greet(
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    address: SocketAddr,
    name: String,
) -> Result<(quinn::Connection, Welcome), DialError> {
    let greet = async {
        let connecting = endpoint
            .connect_with(config, address, &server_name(&name))
            .map_err(|cause| DialError::Other(cause.to_string()))?;
        let connection = connecting.await.map_err(|cause| classify(&cause))?;
        let hello = Hello {
            oldest: OLDEST_VERSION,
            newest: VERSION,
            feature_level: FEATURE_LEVEL,
            software: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let hello = wire::encode::<MAX_MESSAGE_BYTES>(&hello).map_err(|cause| DialError::Other(cause.to_string()))?;
        match exchange(&connection, StreamKind::Hello, hello).await {
            Ok(HelloReply::Welcome(welcome)) => Ok((connection, welcome)),
            Ok(HelloReply::Refused(failure)) => Err(DialError::Refused(failure)),
            // In TLS 1.3 our handshake is done before the node has looked at our certificate: a refusal of it arrives
            // here, as the reason why the connection was closed.
            Err(cause) => Err(connection.close_reason().map_or(DialError::Other(cause), |cause| classify(&cause))),
        }
    };
    let timed_out = || DialError::Other(format!("no answer from {address} within {} ms", DIAL_TIMEOUT.as_millis()));
    tokio::time::timeout(DIAL_TIMEOUT, greet).await.unwrap_or_else(|_| Err(timed_out()))
}

/// Whether a connection failed because one side refused the other's certificate.
fn classify(cause: &ConnectionError) -> DialError {
    let (code, sentence) = match cause {
        ConnectionError::TransportError(error) => {
            (u64::from(error.code), format!("its certificate is refused: {}", tls::sentence(&error.reason)))
        }
        ConnectionError::ConnectionClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            (u64::from(close.error_code), format!("it refuses this client's certificate: {}", tls::sentence(&reason)))
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_UNAUTHENTICATED.into() => {
            return DialError::Unauthenticated(String::from_utf8_lossy(&close.reason).into_owned());
        }
        other => return DialError::Other(other.to_string()),
    };
    if transport::is_certificate_alert(code) {
        return DialError::Unauthenticated(sentence);
    }
    DialError::Other(cause.to_string())
}

/// One message on a stream of its own, answered by one message.
async fn exchange<T: serde::de::DeserializeOwned>(
    connection: &quinn::Connection,
    kind: StreamKind,
    message: Vec<u8>,
) -> Result<T, String> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|cause| cause.to_string())?;
    let mut chunks = [Bytes::copy_from_slice(&[kind as u8]), message.into()];
    send.write_all_chunks(&mut chunks).await.map_err(|cause| cause.to_string())?;
    // Fails only when the node has stopped the stream; the read below tells why.
    let _ = send.finish();
    let answer = recv.read_to_end(MAX_MESSAGE_BYTES).await.map_err(|cause| cause.to_string())?;
    wire::decode::<MAX_MESSAGE_BYTES, T>(&answer).map_err(|cause| cause.to_string())
}

/// A node on the other side of the world answers a handshake and a hello within this; after it we try the next one.
const DIAL_TIMEOUT: Duration = Duration::from_millis(1500);
/// Addresses of one host name that are tried.
const ADDRESSES_MAX: usize = 8;
/// In flight to quinn, per connection: enough for a data centre's round trip. More makes quinn slower, not faster, because it
/// walks what is in flight for every packet.
const CONNECTION_WINDOW_BYTES: u64 = 1 << 20;
