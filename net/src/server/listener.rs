//! The socket, the handshakes, and the going down.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::ConnectionError;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Service;
use super::accounts::{Accounts, Limits};
use super::connection::{self, Shared, Windows, feature_level};
use crate::admission::{self, Admission, Lines, Place, Verdict};
use crate::bulk::server::Bulk;
use crate::bulk::{self, BulkSource};
use crate::drivers::Drivers;
use crate::protocol::budget::Budget;
use crate::protocol::{ALPN, CLOSE_SHUTDOWN, VERSION, Welcome};
use crate::tls::{self, ALPN_BULK, Credentials, Identity, TlsError, TlsIdentity};
use crate::transport::{self, Mtu, Profile, ResetKey, var_int};

/// How a node listens for clients. Every number is a bound on memory (P11).
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The largest datagrams to try.
    pub mtu: Mtu,
    /// Lets clients of an earlier life of this node notice at once that it ended.
    pub reset_key: Option<ResetKey>,
    /// Connections at the same time; one more is closed with a reason.
    pub max_connections: usize,
    /// Subscriptions at the same time.
    pub max_subscriptions: usize,
    /// Handshakes at the same time. From half of them on clients prove their address first; when all places are taken, the host
    /// that holds most of them loses its oldest.
    pub max_handshakes: usize,
    /// Handshakes begun in each second, after a burst of as many as there may be connections. A host gets half of that.
    pub handshakes_per_second: u32,
    /// How long a handshake and the hello may take.
    pub handshake_timeout: Duration,
    /// What QUIC may hold of a stream that is not being read.
    pub window_bytes: u64,
    /// What all connections together may have in such windows, received or sent. A connection that comes when they are used up
    /// gets the smallest ones (64 KiB to receive, 128 KiB to send), and one that may not append receives little in any case.
    pub total_window_bytes: u64,
    /// Streams a connection may have open: appends, subscriptions and requests together.
    pub max_streams: u32,
    /// Bytes of append groups a connection may have received but not answered. A larger group passes alone.
    pub connection_bytes: usize,
    /// The same for all connections together; Four times the largest group, so that
    /// one that is begun and never ended leaves room for others.
    pub total_bytes: usize,
    /// What one client can have of them, three quarters at most. Less than what the service takes, so that it never has all of it.
    pub client_bytes: usize,
    /// The largest record taken; a group with a larger one is refused.
    pub max_record_bytes: usize,
    /// The most bytes a second given to other nodes' fetches, all together; 0 sets no bound.
    pub bulk_bytes_per_second: u64,
    /// A snapshot of which no whole chunk comes for so long is given up.
    pub upload_idle: Duration,
}

impl ServerConfig {
    /// The defaults, listening on `listen`.
    #[must_use]
    pub fn new(listen: SocketAddr) -> ServerConfig {
        ServerConfig {
            listen,
            mtu: Mtu::Auto,
            reset_key: None,
            max_connections: 1024,
            max_subscriptions: 2048,
            max_handshakes: 128,
            handshakes_per_second: 256,
            handshake_timeout: Duration::from_secs(5),
            window_bytes: 1 << 20,
            total_window_bytes: 128 << 20,
            max_streams: 256,
            // As much as a client of ours has in flight by itself.
            connection_bytes: 4 << 20,
            total_bytes: 128 << 20,
            client_bytes: 96 << 20,
            max_record_bytes: 1 << 20,
            bulk_bytes_per_second: 0,
            upload_idle: UPLOAD_IDLE,
        }
    }
}

/// A running listener. Dropping it closes every connection at once; [`Server::close`] lets them finish first.
#[derive(Debug)]
pub struct Server {
    endpoint: quinn::Endpoint,
    drivers: Arc<Drivers>,
    address: SocketAddr,
    draining: watch::Sender<bool>,
    accounts: Arc<Accounts>,
    budget: Arc<Budget>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Binds the socket and begins to accept, on the runtime that calls.
    ///
    /// # Errors
    /// When the certificate is not a node's, or the address cannot be bound.
    pub async fn start<S: Service>(config: ServerConfig, tls: TlsIdentity, service: S) -> Result<Server, StartError> {
        Server::start_with(config, tls, service, None).await
    }

    /// The same, and gives other nodes what `bulk` has for them, on the same port under a protocol name of its own.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_with_bulk<S: Service>(
        config: ServerConfig,
        tls: TlsIdentity,
        service: S,
        bulk: Arc<dyn BulkSource>,
    ) -> Result<Server, StartError> {
        Server::start_with(config, tls, service, Some(bulk)).await
    }

    async fn start_with<S: Service>(
        config: ServerConfig,
        tls: TlsIdentity,
        service: S,
        source: Option<Arc<dyn BulkSource>>,
    ) -> Result<Server, StartError> {
        // Watched from before the first use: a replacement in between is seen as a change.
        let renewals = tls.watch();
        let credentials = tls.current();
        let Identity::Node(node) = credentials.identity().clone() else {
            return Err(StartError::NotANode(credentials.identity().clone()));
        };
        let welcome = Welcome {
            version: VERSION,
            feature_level: feature_level(),
            cluster: node.cluster,
            node: node.node,
            name: node.name,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            max_record_bytes: u32::try_from(config.max_record_bytes).unwrap_or(u32::MAX),
        };
        let quic = quic_config(&config, &credentials, source.is_some())?;
        let unbound = |cause| StartError::Bind { address: config.listen, cause };
        let bound = transport::bind(config.listen, transport::SOCKET_BUFFER_BYTES).map_err(unbound)?;
        let drivers = Arc::new(Drivers::default());
        let endpoint = quinn::Endpoint::new(
            transport::endpoint(config.mtu, config.reset_key.as_ref()),
            Some(quic),
            bound.socket,
            drivers.clone(),
        )
        .map_err(unbound)?;
        let address = endpoint.local_addr().map_err(unbound)?;
        let (draining, drains) = watch::channel(false);
        let budget = Budget::new(config.total_bytes);
        let accounts = Accounts::new(Limits {
            connections: config.max_connections,
            subscriptions: config.max_subscriptions,
            window_bytes: config.total_window_bytes,
            append_bytes: config.client_bytes.min(config.total_bytes - config.total_bytes / 4),
        });
        let profile = Profile::client(config.window_bytes);
        let shared = Arc::new(Shared {
            service,
            welcome,
            budget: budget.clone(),
            connection_bytes: config.connection_bytes,
            max_record_bytes: config.max_record_bytes,
            handshake_timeout: config.handshake_timeout,
            upload_idle: config.upload_idle,
            downloads: tokio::sync::Semaphore::new(super::snapshot::DOWNLOADS_MAX),
            draining: drains.clone(),
            accounts: accounts.clone(),
            wide: Windows { receive: profile.receive_window_bytes(), send: profile.send_window_bytes() },
            lines: Lines::default(),
        });
        let bulk = source.map(|source| {
            let timeout = config.handshake_timeout;
            Arc::new(Bulk::new(source, config.bulk_bytes_per_second, timeout, drains))
        });
        let accepting = tokio::spawn(accept(endpoint.clone(), config, renewals, shared, bulk));
        Ok(Server { endpoint, drivers, address, draining, accounts, budget, accepting })
    }

    /// Where it listens; tells the port when it was bound to port 0.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// What it holds now.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        ServerStats {
            connections: self.accounts.connections(),
            subscriptions: self.accounts.subscriptions(),
            unanswered_bytes: self.budget.used(),
        }
    }

    /// Goes down in order: takes no new connection, stream or group, waits a few seconds until what was taken is answered
    /// and the answers have arrived, then closes every connection with the reason and gives the port back.
    pub async fn close(mut self) {
        self.endpoint.set_server_config(None);
        self.draining.send_replace(true);
        // Each connection bounds its own draining.
        let _ = (&mut self.accepting).await;
        self.endpoint.close(CLOSE_SHUTDOWN.into(), b"the node is shutting down");
        let _ = tokio::time::timeout(CLOSE_DELIVERY, self.endpoint.wait_idle()).await;
        let drivers = self.drivers.clone();
        drop(self);
        drivers.end().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
        self.endpoint.close(CLOSE_SHUTDOWN.into(), b"the node is shutting down");
    }
}

/// What a [`Server`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerStats {
    /// Connections.
    pub connections: usize,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Bytes of append groups received but not answered.
    pub unanswered_bytes: usize,
}

/// Why a listener did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A node's certificate is needed.
    #[error(
        "the certificate is of {0}; a node listens with a node's certificate, made by `graven init` or `graven certs node`"
    )]
    NotANode(Identity),
    /// TLS refused the certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be bound.
    #[error("cannot listen for clients on {address}: {cause}; stop what listens there, or change `listen.client`")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

fn quic_config(config: &ServerConfig, credentials: &Credentials, bulk: bool) -> Result<quinn::ServerConfig, TlsError> {
    let names: &[&[u8]] = if bulk { &[ALPN, ALPN_BULK] } else { &[ALPN] };
    let mut quic = quinn::ServerConfig::with_crypto(credentials.quic_server_of(names)?);
    let mut profile = Profile::client(config.window_bytes);
    profile.mtu = config.mtu;
    profile.streams.bidirectional = config.max_streams;
    let mut transport = profile.build();
    if let Some(transport) = Arc::get_mut(&mut transport) {
        // Wider ones are given to whom they are of use, when it is known who it is.
        transport.receive_window(var_int(Windows::SMALLEST.receive)).send_window(Windows::SMALLEST.send);
    }
    quic.transport_config(transport)
        .max_incoming(WAITING_MAX)
        .incoming_buffer_size(WAITING_BYTES_MAX)
        .incoming_buffer_size_total(WAITING_BYTES_MAX * WAITING_MAX as u64);
    // A client whose address changes redials and resumes; a moving connection is more often an attack than a laptop.
    quic.migration(false);
    Ok(quic)
}

async fn accept<S: Service>(
    endpoint: quinn::Endpoint,
    config: ServerConfig,
    mut renewals: watch::Receiver<Arc<Credentials>>,
    shared: Arc<Shared<S>>,
    bulk: Option<Arc<Bulk>>,
) {
    let mut draining = shared.draining.clone();
    let admission = Admission::new(admission::Limits {
        places: config.max_handshakes,
        per_second: config.handshakes_per_second,
        burst: u32::try_from(config.max_connections).unwrap_or(u32::MAX),
    });
    let mut tasks = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            Some(incoming) = endpoint.accept() => incoming,
            Some(_) = tasks.join_next() => continue,
            Ok(()) = renewals.changed() => {
                match quic_config(&config, &renewals.borrow_and_update(), bulk.is_some()) {
                    Ok(quic) => endpoint.set_server_config(Some(quic)),
                    Err(cause) => tracing::error!("new certificate not used for clients: {cause}"),
                }
                continue;
            }
            _ = draining.wait_for(|draining| *draining) => break,
        };
        let place =
            match admission.judge(incoming.remote_address(), incoming.remote_address_validated(), Instant::now()) {
                Verdict::Begin(place) => place,
                Verdict::Prove => {
                    if let Err(cause) = incoming.retry() {
                        cause.into_incoming().ignore();
                    }
                    continue;
                }
                Verdict::Ignore => {
                    incoming.ignore();
                    continue;
                }
            };
        let (shared, bulk) = (shared.clone(), bulk.clone());
        tasks.spawn(async move {
            let Some(connection) = shake_hands(&shared, incoming, place).await else { return };
            match bulk.filter(|_| tls::agreed_alpn(&connection).is_some_and(|name| name == ALPN_BULK)) {
                // Other nodes have bounds of their own: a crowd of clients does not keep a node from healing.
                Some(bulk) => {
                    connection.set_send_window(shared.wide.send);
                    bulk::server::serve(bulk, connection).await;
                }
                None => connection::serve(shared, connection).await,
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Finishes a handshake, while it has its place. Leaving it closes the connection.
async fn shake_hands<S>(shared: &Shared<S>, incoming: quinn::Incoming, place: Place) -> Option<quinn::Connection> {
    let address = incoming.remote_address();
    let connecting = incoming.accept().ok()?;
    let mut draining = shared.draining.clone();
    let handshake = tokio::select! {
        handshake = tokio::time::timeout(shared.handshake_timeout, connecting) => handshake,
        _ = draining.wait_for(|draining| *draining) => return None,
        () = place.evicted() => {
            tracing::debug!(%address, "handshake with a client gave its place to another");
            return None;
        }
    };
    match handshake {
        Ok(Ok(connection)) => return Some(connection),
        Ok(Err(cause)) => match refused(&cause) {
            Some(sentence) => shared.say(|more| tracing::info!(%address, "{sentence}{more}")),
            None => tracing::debug!(%address, "handshake with a client failed: {cause}"),
        },
        Err(_) => tracing::debug!(%address, "handshake with a client did not finish in time"),
    }
    None
}

/// The line for a handshake that one side ended because of the other's certificate or protocol; anything else is a client that
/// went away, as one does that asked several nodes and was answered by another.
fn refused(cause: &ConnectionError) -> Option<String> {
    match cause {
        ConnectionError::TransportError(error) if transport::is_alert(error.code.into()) => {
            Some(format!("client refused: {}", tls::sentence(&error.reason)))
        }
        ConnectionError::ConnectionClosed(close) if transport::is_certificate_alert(close.error_code.into()) => {
            let reason = String::from_utf8_lossy(&close.reason);
            Some(format!("a client refuses this node's certificate: {}", tls::sentence(&reason)))
        }
        _ => None,
    }
}

/// A client that reads its snapshot from a pipe may wait for whoever fills it, and one that hangs must not hold a place and a file for ever.
const UPLOAD_IDLE: Duration = Duration::from_secs(30);
/// How long the close may take to reach clients.
const CLOSE_DELIVERY: Duration = Duration::from_millis(500);
/// First packets that wait for a decision, before `accept` sees them.
const WAITING_MAX: usize = 256;
/// What one of them may have buffered: a client's first flight.
const WAITING_BYTES_MAX: u64 = 16 << 10;
