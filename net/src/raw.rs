//! QUIC alone, for measurements: graven's sockets, profiles and certificates, and nothing of what graven does with them.
//!
//! One side listens, the other asks on one stream at a time: for an echo, or to swallow or to give so many bytes. What these take is the
//! ceiling of everything that graven sends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{RecvStream, SendStream};

use crate::tls::{TlsIdentity, server_name};
use crate::transport::{self, Mtu, Profile, WRITE_CHUNK_BYTES};

/// Nobody else speaks it.
const ALPN_RAW: &[u8] = b"graven-raw/1";
/// The longest message echoed; what is measured is the way, not the copying.
pub const ECHO_BYTES_MAX: usize = 1 << 10;
/// A run that moves nothing for so long has failed.
const STALL: Duration = Duration::from_secs(10);

/// What is asked of the listener: a byte of these, and a number of 8 bytes, little-endian.
const ECHO: u8 = 1;
const SWALLOW: u8 = 2;
const GIVE: u8 = 3;

/// How one connection is set up, on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawSettings {
    /// The largest datagrams to try.
    pub mtu: Mtu,
    /// What is under way at most, in bytes, as peers' append lanes have it.
    pub window_bytes: u64,
}

impl RawSettings {
    fn profile(self) -> Profile {
        let mut profile = Profile { mtu: self.mtu, ..Profile::peer_append(self.window_bytes) };
        (profile.streams.bidirectional, profile.streams.unidirectional) = (4, 0);
        profile
    }
}

/// Serves whoever dials, one connection after the other, until it is dropped.
#[derive(Debug)]
pub struct RawListener {
    endpoint: quinn::Endpoint,
}

impl RawListener {
    /// Binds a port of the system's choice on loopback.
    ///
    /// # Errors
    /// What the system says, or that the certificate is not a node's.
    pub fn bind(settings: RawSettings, tls: &TlsIdentity) -> io::Result<RawListener> {
        let crypto = tls.current().quic_server(ALPN_RAW).map_err(io::Error::other)?;
        let mut config = quinn::ServerConfig::with_crypto(crypto);
        config.transport_config(settings.profile().build());
        let bound = transport::bind((Ipv4Addr::LOCALHOST, 0).into(), transport::SOCKET_BUFFER_BYTES)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint =
            quinn::Endpoint::new(transport::endpoint(settings.mtu, None), Some(config), bound.socket, runtime)?;
        Ok(RawListener { endpoint })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Serves one connection until the other side closes it, or breaks the rules, which are few.
    ///
    /// # Cancel safety
    /// Dropped, the connection ends.
    pub async fn serve_one(&self) {
        let Some(incoming) = self.endpoint.accept().await else { return };
        let Ok(connection) = incoming.await else { return };
        while let Ok((send, recv)) = connection.accept_bi().await {
            if answer(send, recv).await.is_none() {
                connection.close(1_u32.into(), b"not understood");
            }
        }
    }
}

async fn answer(mut send: SendStream, mut recv: RecvStream) -> Option<()> {
    let mut head = [0; 9];
    recv.read_exact(&mut head).await.ok()?;
    let [what, count @ ..] = head;
    let count = u64::from_le_bytes(count);
    match what {
        ECHO => echo(&mut send, &mut recv, usize::try_from(count).ok().filter(|len| *len <= ECHO_BYTES_MAX)?).await,
        SWALLOW => {
            swallow(&mut recv, count).await?;
            send.write_all(&[1]).await.ok()?;
        }
        GIVE => give(&mut send, count).await?,
        _ => return None,
    }
    let _ = send.finish();
    Some(())
}

/// Gives back messages of `len` bytes until there are no more.
async fn echo(send: &mut SendStream, recv: &mut RecvStream, len: usize) {
    let mut message = vec![0; len];
    while recv.read_exact(&mut message).await.is_ok() {
        if send.write_all(&message).await.is_err() {
            return;
        }
    }
}

async fn swallow(recv: &mut RecvStream, count: u64) -> Option<()> {
    let mut left = count;
    let mut chunks: [Bytes; 32] = std::array::from_fn(|_| Bytes::new());
    while left > 0 {
        let read = recv.read_chunks(&mut chunks).await.ok()??;
        let bytes: usize = chunks[..read].iter().map(Bytes::len).sum();
        left = left.checked_sub(bytes as u64)?;
    }
    Some(())
}

async fn give(send: &mut SendStream, count: u64) -> Option<()> {
    // The bytes are the same again and again: nothing between here and there looks at them but the cipher.
    let piece = Bytes::from(vec![0x5a; WRITE_CHUNK_BYTES]);
    let mut left = count;
    while left > 0 {
        let len = left.min(piece.len() as u64);
        send.write_chunk(piece.slice(..usize::try_from(len).ok()?)).await.ok()?;
        left -= len;
    }
    Some(())
}

/// The asking side.
#[derive(Debug)]
pub struct RawConnection {
    connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
}

impl RawConnection {
    /// Dials the listener of the node `name` at `address`.
    ///
    /// # Errors
    /// What the system, TLS or the other side says.
    ///
    /// # Cancel safety
    /// Dropped, nothing is left.
    pub async fn dial(
        address: SocketAddr,
        name: &str,
        settings: RawSettings,
        tls: &TlsIdentity,
    ) -> io::Result<RawConnection> {
        let mut config = quinn::ClientConfig::new(tls.current().quic_client(ALPN_RAW).map_err(io::Error::other)?);
        config.transport_config(settings.profile().build());
        let endpoint = transport::dialling(address, settings.mtu)?;
        let connecting = endpoint.connect_with(config, address, &server_name(name)).map_err(io::Error::other)?;
        let connection = tokio::time::timeout(STALL, connecting).await.map_err(io::Error::other)??;
        Ok(RawConnection { connection, _endpoint: endpoint })
    }

    async fn ask(&self, what: u8, count: u64) -> io::Result<(SendStream, RecvStream)> {
        let (mut send, recv) = self.connection.open_bi().await?;
        let mut head = [what; 9];
        head[1..].copy_from_slice(&count.to_le_bytes());
        send.write_all(&head).await?;
        Ok((send, recv))
    }

    /// Sends messages of `len` bytes, at most [`ECHO_BYTES_MAX`], each when the one before is back, until `end`. Tells `seen` how long each took.
    ///
    /// # Errors
    /// The connection is lost, or `len` is too long.
    ///
    /// # Cancel safety
    /// Dropped, the stream ends.
    pub async fn echo(&self, len: usize, end: Instant, mut seen: impl FnMut(Duration)) -> io::Result<()> {
        let (mut send, mut recv) = self.ask(ECHO, len as u64).await?;
        let mut message = vec![0x5a; len];
        while Instant::now() < end {
            let begin = Instant::now();
            send.write_all(&message).await?;
            let back = tokio::time::timeout(STALL, recv.read_exact(&mut message)).await.map_err(io::Error::other)?;
            back.map_err(io::Error::other)?;
            seen(begin.elapsed());
        }
        let _ = send.finish();
        Ok(())
    }

    /// Sends `count` bytes and waits until the other side has read them all; how long that took.
    ///
    /// # Errors
    /// The connection is lost.
    ///
    /// # Cancel safety
    /// Dropped, the stream ends.
    pub async fn send(&self, count: u64) -> io::Result<Duration> {
        let begin = Instant::now();
        let (mut send, mut recv) = self.ask(SWALLOW, count).await?;
        let lost = || io::Error::from(io::ErrorKind::ConnectionAborted);
        give(&mut send, count).await.ok_or_else(lost)?;
        let mut done = [0];
        recv.read_exact(&mut done).await.map_err(io::Error::other)?;
        Ok(begin.elapsed())
    }

    /// Asks for `count` bytes and reads them; how long that took.
    ///
    /// # Errors
    /// The connection is lost.
    ///
    /// # Cancel safety
    /// Dropped, the stream ends.
    pub async fn receive(&self, count: u64) -> io::Result<Duration> {
        let begin = Instant::now();
        let (_send, mut recv) = self.ask(GIVE, count).await?;
        swallow(&mut recv, count).await.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        Ok(begin.elapsed())
    }

    /// Bytes in the largest datagrams that the path carries, as far as it was probed by now.
    #[must_use]
    pub fn datagram_bytes(&self) -> u16 {
        self.connection.stats().path.current_mtu
    }

    /// Says goodbye; a listener serves the next one then.
    pub fn close(self) {
        self.connection.close(0_u32.into(), b"");
    }
}
