//! The dialling side: one node asked for frames or its checkpoint, everything checked on arrival.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use graven_frame::{Chain, Frame, FrameError};
use quinn::{ConnectionError, RecvStream};

use super::wire::{
    BLOCK_HEAD_BYTES, CheckpointHead, HELLO_BYTES_MAX, Hello, REQUEST_BYTES_MAX, Reply, Request, Tag,
    decode_block_head, read_prefixed, write_hello, write_message,
};
use super::{BulkIdentity, CLOSE_DONE, META_BYTES_MAX, Pace, Refusal, STREAMS_MAX, Wanted};
use crate::peer;
use crate::protocol::{CLOSE_PROTOCOL, CLOSE_UNAUTHENTICATED};
use crate::tls::{self, ALPN_BULK, TlsError, TlsIdentity, server_name};
use crate::transport::{self, Mtu, Profile};
use crate::wire;

/// Whom to dial, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BulkConfig {
    /// `HOST:PORT` of its listener for clients.
    pub address: String,
    /// The name its certificate must carry.
    pub name: String,
    /// The id it must have.
    pub node: u64,
    /// Who asks.
    pub local: BulkIdentity,
    /// The largest datagrams to try.
    pub mtu: Mtu,
    /// The most bytes taken in a second; 0 sets no bound.
    pub bytes_per_second: u64,
    /// How long dialling and the hello may take.
    pub dial_timeout: Duration,
    /// A fetch that brings nothing for so long is given up.
    pub stall_timeout: Duration,
}

impl BulkConfig {
    /// The defaults, for the node `node` called `name` at `address`.
    #[must_use]
    pub fn new(address: impl Into<String>, name: impl Into<String>, node: u64, local: BulkIdentity) -> BulkConfig {
        BulkConfig {
            address: address.into(),
            name: name.into(),
            node,
            local,
            mtu: Mtu::Auto,
            bytes_per_second: 0,
            dial_timeout: Duration::from_secs(3),
            stall_timeout: Duration::from_secs(10),
        }
    }
}

/// Why a fetch did not give what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError {
    /// Nobody answers there, or the connection was lost. Worth another try.
    #[error("node {name} at {address} cannot be reached: {reason}")]
    Unreachable {
        /// The node.
        name: String,
        /// Where.
        address: String,
        /// Why not.
        reason: String,
    },
    /// One side refused the other's certificate, or the hello.
    #[error("node {name} at {address} and this node refuse each other: {reason}")]
    Unwelcome {
        /// The node.
        name: String,
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// It answered, and does not have it or does not give it.
    #[error("node {name} does not give it: {refusal}")]
    Refused {
        /// The node.
        name: String,
        /// Why.
        refusal: Refusal,
    },
    /// What it sent is not what was asked for, or not whole. Nothing of it was handed on.
    #[error("node {name} sent what cannot be used: {reason}")]
    Malformed {
        /// The node.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A connection to one node. Dropping it ends its fetches.
#[derive(Debug)]
pub struct BulkClient {
    name: Arc<str>,
    address: Arc<str>,
    connection: quinn::Connection,
    endpoint: quinn::Endpoint,
    pace: Arc<Pace>,
    stall_timeout: Duration,
}

impl BulkClient {
    /// Dials the node, proves who we are and makes sure who it is.
    ///
    /// # Errors
    /// [`BulkError::Unreachable`], [`BulkError::Unwelcome`].
    ///
    /// # Cancel safety
    /// Dropped, nothing is left.
    pub async fn connect(config: BulkConfig, tls: &TlsIdentity) -> Result<BulkClient, BulkError> {
        let failed = |reason: String| Dial::Unreachable(reason).named(&config);
        let quic = quic_config(&config, tls).map_err(|cause| Dial::Unwelcome(cause.to_string()).named(&config))?;
        let addresses = tokio::time::timeout(config.dial_timeout, tokio::net::lookup_host(&config.address)).await;
        let addresses = addresses.map_err(|_| failed("its name was not resolved in time".to_owned()))?;
        let mut last = failed("its host name has no address".to_owned());
        for address in addresses.map_err(|cause| failed(cause.to_string()))?.take(ADDRESSES_MAX) {
            let attempt = tokio::time::timeout(config.dial_timeout, dial(&config, quic.clone(), address)).await;
            match attempt {
                Ok(Ok((endpoint, connection))) => {
                    return Ok(BulkClient {
                        name: config.name.as_str().into(),
                        address: config.address.as_str().into(),
                        connection,
                        endpoint,
                        pace: Arc::new(Pace::new(config.bytes_per_second)),
                        stall_timeout: config.stall_timeout,
                    });
                }
                Ok(Err(cause)) => last = cause.named(&config),
                Err(_) => last = failed(format!("no answer within {} ms", config.dial_timeout.as_millis())),
            }
        }
        Err(last)
    }

    /// Asks for frames. They come in order, verified, each following the one before it; after about `max_bytes`, or when the
    /// last one was given, the stream ends.
    ///
    /// # Errors
    /// [`BulkError::Unreachable`]; what the node has to say against the request comes with the first item.
    pub async fn frames(&self, wanted: Wanted, max_bytes: u64) -> Result<FrameStream, BulkError> {
        let blocks = self.ask(&Request::Frames { wanted, max_bytes }).await?;
        Ok(FrameStream { blocks, next: wanted.first, last: wanted.last, chain: None })
    }

    /// Asks for the newest checkpoint; with `resume`, the meta and the number of bytes one already has, for the rest of that one
    /// if it is still the newest.
    ///
    /// # Errors
    /// As [`CheckpointStream::next`].
    pub async fn checkpoint(&self, resume: Option<(&[u8], u64)>) -> Result<CheckpointStream, BulkError> {
        let (meta, at) = resume.unwrap_or((&[], 0));
        let mut blocks = self.ask(&Request::Checkpoint { meta: meta.to_vec(), at }).await?;
        let Some((Tag::Checkpoint, bytes)) = blocks.next().await? else {
            return Err(blocks.malformed("a checkpoint without its head"));
        };
        let head = wire::decode::<{ META_BYTES_MAX + 32 }, CheckpointHead>(&bytes);
        let head = head.map_err(|cause| blocks.malformed(&cause.to_string()))?;
        if head.at > head.size || (head.at != 0 && (head.at != at || head.meta != meta)) {
            return Err(blocks.malformed("a checkpoint that goes on where nothing was asked for"));
        }
        Ok(CheckpointStream { blocks, meta: head.meta, size: head.size, at: head.at })
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) async fn ask(&self, request: &Request) -> Result<Blocks, BulkError> {
        let lost = |reason: String| BulkError::Unreachable {
            name: self.name.to_string(),
            address: self.address.to_string(),
            reason,
        };
        let opened = tokio::time::timeout(self.stall_timeout, self.connection.open_bi()).await;
        let opened = opened.map_err(|_| lost("it lets no request through".to_owned()))?;
        let (mut send, receive) = opened.map_err(|cause| lost(cause.to_string()))?;
        write_message::<REQUEST_BYTES_MAX>(&mut send, request).await.map_err(lost)?;
        Ok(Blocks {
            name: self.name.clone(),
            address: self.address.clone(),
            receive,
            buffer: BytesMut::new(),
            ended: false,
            pace: self.pace.clone(),
            owed: 0,
            stall_timeout: self.stall_timeout,
        })
    }
}

impl Drop for BulkClient {
    fn drop(&mut self) {
        self.connection.close(CLOSE_DONE.into(), b"done");
        self.endpoint.close(CLOSE_DONE.into(), b"done");
    }
}

/// Frames on their way from one node.
#[derive(Debug)]
pub struct FrameStream {
    blocks: Blocks,
    next: u64,
    last: u64,
    /// Of the frame before.
    chain: Option<Chain>,
}

impl FrameStream {
    /// The next frame: whole, with the next number, and following the one before it by chain. `None` when all that was asked for
    /// is there.
    ///
    /// # Errors
    /// Any [`BulkError`]; nothing follows it. What came before it may be used.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Frame, BulkError>> {
        match self.blocks.next().await {
            Ok(Some((Tag::Frame, bytes))) => Some(self.take(bytes)),
            Ok(Some((tag, _))) => Some(Err(self.blocks.malformed(&format!("{tag:?} among frames")))),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn take(&mut self, bytes: Bytes) -> Result<Frame, BulkError> {
        let len = bytes.len();
        let parsed = Frame::parse(bytes).and_then(|(frame, used)| match used == len {
            true => frame.verify(self.chain).map(|()| frame),
            false => Err(FrameError::Malformed { what: "bytes behind the frame", at: used }),
        });
        let frame = parsed.map_err(|cause| self.blocks.malformed(&cause.to_string()))?;
        let index = frame.header().index;
        if index != self.next || index > self.last {
            let words = format!("entry {index}, where entry {} of at most {} was due", self.next, self.last);
            return Err(self.blocks.malformed(&words));
        }
        self.next += 1;
        self.chain = Some(frame.header().chain);
        Ok(frame)
    }
}

/// A checkpoint on its way from one node.
#[derive(Debug)]
pub struct CheckpointStream {
    blocks: Blocks,
    meta: Vec<u8>,
    size: u64,
    at: u64,
}

impl CheckpointStream {
    /// What it is of.
    #[must_use]
    pub fn meta(&self) -> &[u8] {
        &self.meta
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The byte at which the next piece begins; 0 at first, unless a fetch was resumed.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next piece of the file; `None` when all of it is there.
    ///
    /// # Errors
    /// Any [`BulkError`]; go on later with [`BulkClient::checkpoint`] from [`CheckpointStream::at`].
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Bytes, BulkError>> {
        match self.blocks.next().await {
            Ok(Some((Tag::Bytes, bytes))) if bytes.len() as u64 <= self.size - self.at => {
                self.at += bytes.len() as u64;
                Some(Ok(bytes))
            }
            Ok(Some((tag, _))) => Some(Err(self.blocks.malformed(&format!("{tag:?} inside a checkpoint")))),
            Ok(None) if self.at < self.size => Some(Err(self.blocks.malformed("a checkpoint that is cut short"))),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// The blocks of one answer.
#[derive(Debug)]
pub(super) struct Blocks {
    name: Arc<str>,
    address: Arc<str>,
    receive: RecvStream,
    /// Received and not handed on: at most one block and what arrived with its end.
    buffer: BytesMut,
    ended: bool,
    pace: Arc<Pace>,
    /// Bytes received and not yet paced.
    owed: usize,
    stall_timeout: Duration,
}

impl Blocks {
    /// The next block; `None` behind the last one, and after an error. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<(Tag, Bytes)>, BulkError> {
        if self.ended {
            return Ok(None);
        }
        loop {
            let head = self.buffer.first_chunk::<BLOCK_HEAD_BYTES>().copied();
            if let Some(head) = head {
                let (tag, len) = decode_block_head(head).map_err(|words| self.malformed(&words))?;
                if self.buffer.len() >= BLOCK_HEAD_BYTES + len {
                    let block = self.buffer.split_to(BLOCK_HEAD_BYTES + len).freeze();
                    return self.block(tag, block.slice(BLOCK_HEAD_BYTES..));
                }
                // At once: a buffer that grows with what comes is copied again and again. Blocks are bounded where their heads are read.
                self.buffer.reserve(
                    BLOCK_HEAD_BYTES + len - self.buffer.len() + READ_CHUNKS * usize::from(transport::MTU_MAX),
                );
            }
            self.fill().await?;
        }
    }

    fn block(&mut self, tag: Tag, bytes: Bytes) -> Result<Option<(Tag, Bytes)>, BulkError> {
        match tag {
            Tag::End => {
                self.ended = true;
                Ok(None)
            }
            Tag::Refused => {
                let refusal = wire::decode::<REFUSAL_LIMIT, Refusal>(&bytes);
                let refusal = refusal.map_err(|cause| self.malformed(&cause.to_string()))?;
                self.ended = true;
                Err(BulkError::Refused { name: self.name.to_string(), refusal })
            }
            other => Ok(Some((other, bytes))),
        }
    }

    async fn fill(&mut self) -> Result<(), BulkError> {
        if self.owed > 0 {
            self.pace.pass(self.owed).await;
            self.owed = 0;
        }
        let mut chunks: [Bytes; READ_CHUNKS] = std::array::from_fn(|_| Bytes::new());
        match tokio::time::timeout(self.stall_timeout, self.receive.read_chunks(&mut chunks)).await {
            Ok(Ok(Some(count))) => {
                for chunk in &chunks[..count] {
                    self.owed += chunk.len();
                    self.buffer.extend_from_slice(chunk);
                }
                Ok(())
            }
            Ok(Ok(None)) => Err(self.lost("it ended the answer half-way".to_owned())),
            Ok(Err(cause)) => Err(self.lost(cause.to_string())),
            Err(_) => Err(self.lost(format!("it sent nothing for {} s", self.stall_timeout.as_secs_f32()))),
        }
    }

    fn lost(&mut self, reason: String) -> BulkError {
        self.ended = true;
        BulkError::Unreachable { name: self.name.to_string(), address: self.address.to_string(), reason }
    }

    /// The bytes are not what they should be: nothing more is read.
    pub(super) fn malformed(&mut self, reason: &str) -> BulkError {
        self.ended = true;
        // A stream that is closed already needs no refusal.
        let _ = self.receive.stop(CLOSE_PROTOCOL.into());
        BulkError::Malformed { name: self.name.to_string(), reason: reason.to_owned() }
    }
}

/// Why dialling failed, before it has the node's name.
enum Dial {
    Unreachable(String),
    Unwelcome(String),
}

impl Dial {
    fn named(self, config: &BulkConfig) -> BulkError {
        let (name, address) = (config.name.clone(), config.address.clone());
        match self {
            Dial::Unreachable(reason) => BulkError::Unreachable { name, address, reason },
            Dial::Unwelcome(reason) => BulkError::Unwelcome { name, address, reason },
        }
    }
}

fn quic_config(config: &BulkConfig, tls: &TlsIdentity) -> Result<quinn::ClientConfig, TlsError> {
    let mut quic = quinn::ClientConfig::new(tls.current().quic_client(ALPN_BULK)?);
    let mut profile = Profile::peer_append(WINDOW_BYTES);
    profile.mtu = config.mtu;
    // The other side opens nothing towards us.
    (profile.streams.bidirectional, profile.streams.unidirectional) = (0, 0);
    let mut transport = profile.build();
    if let Some(transport) = Arc::get_mut(&mut transport) {
        // Answers that are not read must not use up what the others on this connection need, a refusal of one too many included.
        transport
            .stream_receive_window(quinn::VarInt::from_u32(STREAM_WINDOW_BYTES))
            .receive_window(quinn::VarInt::from_u32(STREAM_WINDOW_BYTES * (STREAMS_MAX as u32 + 1)));
    }
    quic.transport_config(transport);
    Ok(quic)
}

async fn dial(
    config: &BulkConfig,
    quic: quinn::ClientConfig,
    address: SocketAddr,
) -> Result<(quinn::Endpoint, quinn::Connection), Dial> {
    let endpoint = transport::dialling(address, config.mtu).map_err(|cause| Dial::Unreachable(cause.to_string()))?;
    let connecting = endpoint.connect_with(quic, address, &server_name(&config.name));
    let connection =
        connecting.map_err(|cause| Dial::Unreachable(cause.to_string()))?.await.map_err(|cause| classify(&cause))?;
    match greet(config, &connection).await {
        Ok(Reply::Welcome(welcome)) if welcome.node == config.node => Ok((endpoint, connection)),
        Ok(Reply::Welcome(welcome)) => {
            Err(Dial::Unwelcome(format!("it is node {}, node {} was meant", welcome.node, config.node)))
        }
        Ok(Reply::Refused(refusal)) => Err(Dial::Unwelcome(refusal.to_string())),
        // In TLS 1.3 our side of the handshake is done before the other one has looked at our certificate: its refusal is the
        // reason why the connection was closed.
        Err(words) => Err(connection.close_reason().map_or(Dial::Unreachable(words), |cause| classify(&cause))),
    }
}

async fn greet(config: &BulkConfig, connection: &quinn::Connection) -> Result<Reply, String> {
    let BulkIdentity { cluster, node, incarnation } = config.local;
    let (mut send, mut receive) = connection.open_bi().await.map_err(|cause| cause.to_string())?;
    write_hello(&mut send, &Hello { cluster, from: node, to: config.node, incarnation }).await?;
    let reply: Reply = read_prefixed::<HELLO_BYTES_MAX, _>(&mut receive).await?;
    if let Reply::Refused(peer::Refusal::Malformed(words)) = &reply {
        return Err(words.clone());
    }
    Ok(reply)
}

/// Whether a connection failed because one side refuses the other, or for reasons that pass.
fn classify(cause: &ConnectionError) -> Dial {
    let (code, sentence) = match cause {
        ConnectionError::TransportError(error) => (u64::from(error.code), tls::sentence(&error.reason)),
        ConnectionError::ConnectionClosed(close) => {
            (u64::from(close.error_code), tls::sentence(&String::from_utf8_lossy(&close.reason)))
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_UNAUTHENTICATED.into() => {
            return Dial::Unwelcome(String::from_utf8_lossy(&close.reason).into_owned());
        }
        other => return Dial::Unreachable(other.to_string()),
    };
    if transport::is_certificate_alert(code) { Dial::Unwelcome(sentence) } else { Dial::Unreachable(cause.to_string()) }
}

/// Addresses of one host name that are tried.
const ADDRESSES_MAX: usize = 8;
/// What we may have in flight towards the other side: requests of a few bytes.
const WINDOW_BYTES: u64 = 64 << 10;
/// What may be received of one answer and not read: bandwidth times round trip of a data centre many times over, and of
/// all together no more than 2.5 MiB.
const STREAM_WINDOW_BYTES: u32 = 512 << 10;
/// What is taken from quinn at a time: chunks of one datagram each.
const READ_CHUNKS: usize = 32;
/// As large as the block allows.
const REFUSAL_LIMIT: usize = 1024;
