//! The socket, the handshakes, and the going down.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quinn::ConnectionError;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::Service;
use super::connection::{self, Shared, feature_level};
use crate::bulk::server::Bulk;
use crate::bulk::{self, BulkSource};
use crate::protocol::budget::Budget;
use crate::protocol::{ALPN, CLOSE_BUSY, CLOSE_SHUTDOWN, VERSION, Welcome};
use crate::tls::{self, ALPN_BULK, Credentials, Identity, TlsError, TlsIdentity};
use crate::transport::{self, Mtu, Profile, ResetKey};

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
    /// Handshakes at the same time; clients beyond prove their address first, far beyond are ignored.
    pub max_handshakes: usize,
    /// How long a handshake and the hello may take.
    pub handshake_timeout: Duration,
    /// What QUIC may hold of a stream that is not being read.
    pub window_bytes: u64,
    /// Streams a connection may have open: appends, subscriptions and requests together.
    pub max_streams: u32,
    /// Bytes of append groups a connection may have received but not answered. A larger group passes alone.
    pub connection_bytes: usize,
    /// The same for all connections together.
    pub total_bytes: usize,
    /// The largest record taken; a group with a larger one is refused.
    pub max_record_bytes: usize,
    /// The most bytes a second given to other nodes' fetches, all together; 0 sets no bound.
    pub bulk_bytes_per_second: u64,
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
            max_handshakes: 128,
            handshake_timeout: Duration::from_secs(5),
            window_bytes: 1 << 20,
            max_streams: 256,
            connection_bytes: 16 << 20,
            total_bytes: 128 << 20,
            max_record_bytes: 1 << 20,
            bulk_bytes_per_second: 0,
        }
    }
}

/// A running listener. Dropping it closes every connection at once; [`Server::close`] lets them finish first.
#[derive(Debug)]
pub struct Server {
    endpoint: quinn::Endpoint,
    address: SocketAddr,
    draining: watch::Sender<bool>,
    connections: Arc<AtomicUsize>,
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
        let endpoint = quinn::Endpoint::new(
            transport::endpoint(config.mtu, config.reset_key.as_ref()),
            Some(quic),
            bound.socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(unbound)?;
        let address = endpoint.local_addr().map_err(unbound)?;
        let (draining, drains) = watch::channel(false);
        let budget = Budget::new(config.total_bytes);
        let shared = Arc::new(Shared {
            service,
            welcome,
            budget: budget.clone(),
            connection_bytes: config.connection_bytes,
            max_record_bytes: config.max_record_bytes,
            handshake_timeout: config.handshake_timeout,
            draining: drains.clone(),
        });
        let bulk = source.map(|source| {
            let timeout = config.handshake_timeout;
            Arc::new(Bulk::new(source, config.bulk_bytes_per_second, timeout, drains))
        });
        let connections = Arc::new(AtomicUsize::new(0));
        let accepting = tokio::spawn(accept(endpoint.clone(), config, renewals, shared, bulk, connections.clone()));
        Ok(Server { endpoint, address, draining, connections, budget, accepting })
    }

    /// Where it listens; tells the port when it was bound to port 0.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// What it holds now.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        ServerStats { connections: self.connections.load(Ordering::Relaxed), unanswered_bytes: self.budget.used() }
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
        let address = self.address;
        drop(self);
        // quinn's own task holds the socket, and ends some time after the endpoint was let go.
        let freed = async {
            while std::net::UdpSocket::bind(address).is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_DELIVERY, freed).await;
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
    quic.transport_config(profile.build()).max_incoming(config.max_handshakes * 2);
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
    connections: Arc<AtomicUsize>,
) {
    let mut draining = shared.draining.clone();
    let handshakes = Arc::new(Semaphore::new(config.max_handshakes));
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
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            // Many handshakes are open: make the next one prove its address first, which costs us no state. One that has
            // proved it waits for its client to try again.
            if incoming.remote_address_validated() {
                incoming.ignore();
            } else if let Err(cause) = incoming.retry() {
                cause.into_incoming().ignore();
            }
            continue;
        };
        let (shared, connections, timeout) = (shared.clone(), connections.clone(), config.handshake_timeout);
        let (max_connections, bulk) = (config.max_connections, bulk.clone());
        tasks.spawn(async move {
            let address = incoming.remote_address();
            let Ok(connecting) = incoming.accept() else { return };
            let handshake = tokio::time::timeout(timeout, connecting).await;
            drop(permit);
            match handshake {
                Ok(Ok(connection)) => {
                    // Other nodes have bounds of their own: a crowd of clients does not keep a node from healing.
                    if let Some(bulk) = bulk
                        && tls::agreed_alpn(&connection).is_some_and(|name| name == ALPN_BULK)
                    {
                        return bulk::server::serve(bulk, connection).await;
                    }
                    let Some(_counted) = Counted::take(&connections, max_connections) else {
                        connection.close(
                            CLOSE_BUSY.into(),
                            b"the node has all the client connections it takes (max_connections)",
                        );
                        return;
                    };
                    connection::serve(shared, connection).await;
                }
                Ok(Err(cause)) => match refused(&cause) {
                    Some(sentence) => tracing::info!(%address, "{sentence}"),
                    None => tracing::debug!(%address, "handshake with a client failed: {cause}"),
                },
                Err(_) => tracing::debug!("handshake with a client did not finish in time"),
            }
        });
    }
    while tasks.join_next().await.is_some() {}
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

/// One of the connections allowed.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn take(count: &Arc<AtomicUsize>, limit: usize) -> Option<Counted> {
        let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now < limit).then_some(now + 1));
        taken.is_ok().then(|| Counted(count.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long the close may take to reach clients.
const CLOSE_DELIVERY: Duration = Duration::from_millis(500);
