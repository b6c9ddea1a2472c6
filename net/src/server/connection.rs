//! One client connection: who it is, hello, the leader's name pushed, and its streams.

use std::sync::Arc;
use std::time::Duration;

use quinn::ReadError;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::accounts::{Accounts, Full, Held};

use super::append::{self, Appends};
use super::{
    BackupRequest, Caller, ErrorCode, Failure, LeaderView, Rejection, Request, Response, Service, SubscribeRequest,
    backup, snapshot, subscribe,
};
use crate::admission::Lines;
use crate::protocol::budget::Budget;
use crate::protocol::snapshot::GetRequest;
use crate::protocol::{
    Action, CLOSE_BUSY, CLOSE_PROTOCOL, CLOSE_SHUTDOWN, CLOSE_UNAUTHENTICATED, FEATURE_LEVEL, Hello, HelloReply,
    MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES, OLDEST_VERSION, StreamKind, VERSION, Welcome, role_needed,
};
use crate::tls::{Identity, UnixTime, Verified};
use crate::transport::var_int;
use crate::wire;

/// What all connections of a server share.
pub(super) struct Shared<S> {
    pub(super) service: S,
    pub(super) welcome: Welcome,
    pub(super) budget: Arc<Budget>,
    pub(super) connection_bytes: usize,
    pub(super) max_record_bytes: usize,
    pub(super) handshake_timeout: Duration,
    /// A snapshot of which nothing comes for so long is given up.
    pub(super) upload_idle: Duration,
    /// Places of those who get one.
    pub(super) downloads: Semaphore,
    pub(super) draining: watch::Receiver<bool>,
    pub(super) accounts: Arc<Accounts>,
    /// What a connection gets beyond the smallest windows, while there is enough: to receive and to send.
    pub(super) wide: Windows,
    /// Lines about clients that were refused or broke the protocol.
    pub(super) lines: Lines,
}

/// A connection's windows in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Windows {
    /// Received and not read.
    pub(super) receive: u64,
    /// Sent and not acknowledged.
    pub(super) send: u64,
}

impl Windows {
    /// What every connection has: a request fits, and several packets are under way.
    pub(super) const SMALLEST: Windows = Windows { receive: 64 << 10, send: 128 << 10 };
}

impl<S> Shared<S> {
    /// Runs `write` when another line about clients may be written, with what to say of those left out.
    pub(super) fn say(&self, write: impl FnOnce(&str)) {
        match self.lines.may_write() {
            Some(0) => write(""),
            Some(count) => write(&format!(" ({count} lines like this were left out before it)")),
            None => {}
        }
    }
}

/// Serves a connection whose handshake is done until it ends.
pub(super) async fn serve<S: Service>(shared: Arc<Shared<S>>, connection: quinn::Connection) {
    let (caller, not_after) = match caller_of(&connection, &shared.welcome) {
        Ok(found) => found,
        Err(sentence) => {
            let address = connection.remote_address();
            shared.say(|more| tracing::info!(%address, "client refused: {sentence}{more}"));
            connection.close(CLOSE_UNAUTHENTICATED.into(), sentence.as_bytes());
            return;
        }
    };
    let _counted = match shared.accounts.connect(&caller.name) {
        Ok(held) => held,
        Err(full) => {
            let sentence = full_sentence(&full, "client connections", "max_connections");
            shared.say(|more| tracing::warn!(client = %caller.name, "connection refused: {sentence}{more}"));
            connection.close(CLOSE_BUSY.into(), sentence.as_bytes());
            return;
        }
    };
    match tokio::time::timeout(shared.handshake_timeout, greet(&shared, &connection)).await {
        Ok(Ok(())) => {}
        Ok(Err(sentence)) => {
            // Whoever closed it by himself had no need of it any more: another node answered earlier.
            if connection.close_reason().is_some() {
                tracing::debug!(client = %caller.name, "connection lost before the hello: {sentence}");
            } else {
                shared.say(|more| tracing::info!(client = %caller.name, "connection closed: {sentence}{more}"));
            }
            connection.close(CLOSE_PROTOCOL.into(), sentence.as_bytes());
            return;
        }
        Err(_) => {
            connection.close(CLOSE_PROTOCOL.into(), b"no hello in time");
            return;
        }
    }
    let _wide = widen(&shared, &caller, &connection);
    tracing::debug!(client = %caller.name, role = %caller.role, address = %connection.remote_address(), "client connected");
    let mut draining = shared.draining.clone();
    tokio::select! {
        () = push_leader(shared.service.leader(), &connection) => {}
        sentence = accept_streams(&shared, &caller, &connection) => {
            if let Some(sentence) = sentence {
                shared.say(|more| tracing::warn!(client = %caller.name, "connection closed: {sentence}{more}"));
                connection.close(CLOSE_PROTOCOL.into(), sentence.as_bytes());
            }
        }
        () = expiry(not_after) => {
            connection.close(CLOSE_UNAUTHENTICATED.into(), b"the client's certificate expired; issue a new one with `graven certs client`");
        }
    }
    if *draining.borrow_and_update() {
        connection.close(CLOSE_SHUTDOWN.into(), b"the node is shutting down");
    }
}

/// Gives a connection the windows that fast transfers need, while there are enough; it works without them, only slower.
///
/// Whoever may not append has nothing large to say.
fn widen<S>(shared: &Shared<S>, caller: &Caller, connection: &quinn::Connection) -> Option<Held> {
    let appends = caller.role >= role_needed(Action::Append);
    let receive = if appends { shared.wide.receive } else { Windows::SMALLEST.receive };
    let more = receive.saturating_add(shared.wide.send);
    let held = shared.accounts.widen(&caller.name, more)?;
    connection.set_receive_window(var_int(receive));
    connection.set_send_window(shared.wide.send);
    Some(held)
}

/// Why there is no more of `what`, and where the bound stands.
fn full_sentence(full: &Full, what: &str, key: &str) -> String {
    match full {
        Full::All { limit } => format!("the node has all the {limit} {what} it takes ({key}); use another node"),
        Full::Share { limit } => {
            format!("the client has the {limit} {what} that one client gets of this node ({key}); use another node")
        }
    }
}

fn caller_of(connection: &quinn::Connection, welcome: &Welcome) -> Result<(Caller, UnixTime), String> {
    let verified = Verified::of(connection).map_err(|cause| cause.to_string())?;
    match verified.identity {
        Identity::Client(client) if client.cluster == welcome.cluster => {
            Ok((Caller { name: client.name.into(), role: client.role }, verified.not_after))
        }
        other => Err(format!("{other} is no client of this cluster; use a certificate made by `graven certs client`")),
    }
}

/// Resolves when a certificate has expired. Wakes once a day, because timers do not reach years ahead.
async fn expiry(not_after: UnixTime) {
    loop {
        let Ok(left) = u64::try_from(not_after.0.saturating_sub(UnixTime::now().0)) else { return };
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(left.min(24 * 60 * 60))).await;
    }
}

/// Exchanges hellos on the first stream.
async fn greet<S: Service>(shared: &Shared<S>, connection: &quinn::Connection) -> Result<(), String> {
    let (mut send, mut recv) = connection.accept_bi().await.map_err(|cause| cause.to_string())?;
    if kind_of(&mut recv).await != Some(StreamKind::Hello as u8) {
        return Err("the first stream is no hello".to_owned());
    }
    let hello: Hello = read_message(&mut recv).await?.ok_or("the hello was given up")?;
    let common = hello.oldest <= VERSION && hello.newest >= OLDEST_VERSION;
    let reply = if common {
        HelloReply::Welcome(Welcome { version: hello.newest.min(VERSION), ..shared.welcome.clone() })
    } else {
        HelloReply::Refused(Failure::refused(
            ErrorCode::Config,
            format!(
                "client speaks versions {} to {} of the client protocol, node {} speaks {OLDEST_VERSION} to {VERSION}; upgrade the older one",
                hello.oldest, hello.newest, shared.welcome.name
            ),
        ))
    };
    write_message(&mut send, &reply).await;
    if common { Ok(()) } else { Err("no common protocol version".to_owned()) }
}

/// Tells the client who leads, now and whenever it changes.
async fn push_leader(mut views: watch::Receiver<LeaderView>, connection: &quinn::Connection) {
    let push = async {
        let mut send = connection.open_uni().await.ok()?;
        send.write_all(&[StreamKind::Leader as u8]).await.ok()?;
        loop {
            let view = views.borrow_and_update().clone();
            let bytes = wire::encode::<MAX_MESSAGE_BYTES>(&view).ok()?;
            // The limit fits into the length.
            let mut message = (bytes.len() as u32).to_le_bytes().to_vec();
            message.extend_from_slice(&bytes);
            send.write_all(&message).await.ok()?;
            views.changed().await.ok()?;
        }
    };
    let _: Option<()> = push.await;
    // Views can no longer be pushed: the connection is closing, or the service is. Its streams go on until they end.
    connection.closed().await;
}

/// Accepts streams until the connection ends or the node drains. A sentence when the client broke the protocol.
async fn accept_streams<S: Service>(
    shared: &Arc<Shared<S>>,
    caller: &Caller,
    connection: &quinn::Connection,
) -> Option<String> {
    let (number, client) = shared.accounts.appends(&caller.name);
    let appends = Arc::new(Appends {
        connection: Budget::new(shared.connection_bytes),
        client,
        number,
        server: shared.budget.clone(),
        streams: Semaphore::new(append::STREAMS_MAX),
        max_record_bytes: shared.max_record_bytes,
        draining: shared.draining.clone(),
    });
    let hearing = Arc::new(Semaphore::new(HEARD_AT_ONCE));
    let mut draining = shared.draining.clone();
    // Streams run as tasks that end with this set; their number is bounded by the transport's stream limit.
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => {
                let (send, recv) = accepted.ok()?;
                let (shared, caller) = (shared.clone(), caller.clone());
                let (appends, hearing) = (appends.clone(), hearing.clone());
                streams.spawn(async move { serve_stream(&shared, caller, &appends, &hearing, send, recv).await });
            }
            Some(ended) = streams.join_next() => {
                if let Ok(Err(sentence)) = ended {
                    return Some(sentence);
                }
            }
            _ = draining.wait_for(|draining| *draining) => break,
        }
    }
    drain(&appends, &mut streams).await;
    None
}

/// Waits until the append streams have delivered their answers; other streams are cut.
async fn drain(appends: &Appends, streams: &mut JoinSet<Result<(), String>>) {
    let answered = async {
        while appends.connection.used() > 0 && streams.join_next().await.is_some() {}
        // Answers were given; a moment for them to arrive before the close throws away what has not.
        tokio::time::timeout(DELIVERY, async { while streams.join_next().await.is_some() {} }).await
    };
    let _ = tokio::time::timeout(DRAIN, answered).await;
}

async fn serve_stream<S: Service>(
    shared: &Shared<S>,
    caller: Caller,
    appends: &Appends,
    hearing: &Semaphore,
    send: quinn::SendStream,
    mut recv: quinn::RecvStream,
) -> Result<(), String> {
    // A stream that says nothing, or was reset before it did, is nothing.
    let Ok(Some(kind)) = tokio::time::timeout(shared.handshake_timeout, kind_of(&mut recv)).await else {
        return Ok(());
    };
    match StreamKind::from_u8(kind) {
        Some(StreamKind::Unary) => {
            if let Some(request) = heard(shared, hearing, recv).await? {
                serve_request(shared, caller, request, send).await;
            }
            Ok(())
        }
        Some(StreamKind::Append) => match check(&caller, Action::Append) {
            Ok(()) => append::serve(&shared.service, appends, send, recv).await,
            Err(failure) => {
                append::refuse(Rejection::Failed(failure), send).await;
                Ok(())
            }
        },
        Some(StreamKind::Subscribe) => {
            if let Some(request) = heard(shared, hearing, recv).await? {
                serve_subscription(shared, caller, request, send).await;
            }
            Ok(())
        }
        Some(StreamKind::PutSnapshot) => snapshot::put(shared, caller, send, recv).await,
        Some(StreamKind::GetSnapshot) => {
            if let Some(request) = heard(shared, hearing, recv).await? {
                serve_snapshot(shared, caller, request, send).await;
            }
            Ok(())
        }
        Some(StreamKind::Backup) => {
            if let Some(request) = heard(shared, hearing, recv).await? {
                serve_backup(shared, caller, request, send).await;
            }
            Ok(())
        }
        Some(StreamKind::Hello | StreamKind::Leader) => Err("a stream of this kind is not expected here".to_owned()),
        None => Err(format!("a stream of the unknown kind {kind}")),
    }
}

/// Hears the one message that a stream brings, a few of a connection at a time and each for a limited time. `None` when the client
/// gave the stream up.
async fn heard<S, T: DeserializeOwned>(
    shared: &Shared<S>,
    hearing: &Semaphore,
    mut recv: quinn::RecvStream,
) -> Result<Option<T>, String> {
    // Never closed.
    let _turn = hearing.acquire().await;
    let message = tokio::time::timeout(shared.handshake_timeout, read_message(&mut recv)).await;
    message.unwrap_or_else(|_| Err(format!("a request did not end within {:?}", shared.handshake_timeout)))
}

async fn serve_request<S: Service>(shared: &Shared<S>, caller: Caller, request: Request, mut send: quinn::SendStream) {
    // A client that gives up stops the stream: its request is dropped with it.
    let stopped = send.stopped();
    let answer = async {
        if let Err(failure) = check(&caller, Action::Unary(&request)) {
            return Response::Failed(failure);
        }
        if request == Request::OpenSession {
            while let Err(wait) = shared.accounts.open_session(&caller.name) {
                tokio::time::sleep(wait).await;
            }
        }
        while let Err(wait) = shared.accounts.request(&caller.name) {
            tokio::time::sleep(wait).await;
        }
        let requests = shared.accounts.requests(&caller.name);
        // Never closed.
        let _turn = requests.acquire().await;
        shared.service.unary(caller, request).await
    };
    let response = tokio::select! {
        response = answer => response,
        _ = stopped => return,
    };
    write_message(&mut send, &response).await;
}

async fn serve_subscription<S: Service>(
    shared: &Shared<S>,
    caller: Caller,
    request: SubscribeRequest,
    mut send: quinn::SendStream,
) {
    // A feed waits for records without writing: only this tells that the client has gone.
    let stopped = send.stopped();
    let serve = async {
        let counted = check(&caller, Action::Subscribe).and_then(|()| {
            shared.accounts.subscribe(&caller.name).map_err(|full| {
                let sentence = full_sentence(&full, "subscriptions", "twice max_connections");
                Failure::refused(ErrorCode::Unavailable, sentence)
            })
        });
        let served = match counted {
            Ok(_held) => subscribe::serve(&shared.service, caller, request, &mut send).await,
            Err(failure) => subscribe::fail(failure, &mut send).await,
        };
        if served.is_ok() && send.finish().is_ok() {
            let _ = send.stopped().await;
        }
    };
    tokio::select! {
        () = serve => {}
        _ = stopped => {}
    }
}

async fn serve_snapshot<S: Service>(
    shared: &Shared<S>,
    caller: Caller,
    request: GetRequest,
    mut send: quinn::SendStream,
) {
    let stopped = send.stopped();
    let serve = async {
        snapshot::get(shared, caller, request, &mut send).await;
        if send.finish().is_ok() {
            let _ = send.stopped().await;
        }
    };
    tokio::select! {
        () = serve => {}
        _ = stopped => {}
    }
}

/// Counted as a subscription: it costs as much, and more of the disk.
async fn serve_backup<S: Service>(
    shared: &Shared<S>,
    caller: Caller,
    request: BackupRequest,
    mut send: quinn::SendStream,
) {
    let stopped = send.stopped();
    let serve = async {
        let counted = check(&caller, Action::Backup).and_then(|()| {
            shared.accounts.subscribe(&caller.name).map_err(|full| {
                let sentence = full_sentence(&full, "subscriptions", "twice max_connections");
                Failure::refused(ErrorCode::Unavailable, sentence)
            })
        });
        let name = caller.name.clone();
        let served = match counted {
            Ok(_held) => backup::serve(&shared.service, caller, request, &mut send).await,
            Err(failure) => backup::refuse(failure, &mut send).await,
        };
        match served {
            Ok(()) if send.finish().is_ok() => {
                let _ = send.stopped().await;
            }
            Err(backup::Ended::Stalled) => {
                shared.say(|more| tracing::warn!(client = %name, "a backup ended: its client reads nothing{more}"));
                let _ = send.reset(CLOSE_PROTOCOL.into());
            }
            _ => {}
        }
    };
    tokio::select! {
        () = serve => {}
        _ = stopped => {}
    }
}

pub(super) fn check(caller: &Caller, action: Action<'_>) -> Result<(), Failure> {
    let needed = role_needed(action);
    if caller.role >= needed {
        return Ok(());
    }
    let message = format!(
        "client {} has the role {}, this needs {needed}; use a certificate made by `graven certs client NAME --role {needed}`",
        caller.name, caller.role
    );
    Err(Failure::refused(ErrorCode::Forbidden, message)
        .with("role", caller.role.as_str())
        .with("needed", needed.as_str()))
}

async fn kind_of(recv: &mut quinn::RecvStream) -> Option<u8> {
    let mut kind = [0];
    recv.read_exact(&mut kind).await.ok()?;
    Some(kind[0])
}

/// The one message that a stream brings; `None` when the client gave the stream up.
///
/// Its bytes are copied out of the packets they come in: a few of them must not keep many packets.
async fn read_message<T: DeserializeOwned>(recv: &mut quinn::RecvStream) -> Result<Option<T>, String> {
    let mut bytes = Vec::new();
    loop {
        match recv.read_chunk(MAX_REQUEST_BYTES, true).await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.bytes),
            Ok(None) => break,
            Err(ReadError::Reset(_)) => return Ok(None),
            Err(cause) => return Err(cause.to_string()),
        }
        if bytes.len() > MAX_REQUEST_BYTES {
            return Err(format!("a client's message has more than {MAX_REQUEST_BYTES} bytes"));
        }
    }
    wire::decode::<MAX_REQUEST_BYTES, T>(&bytes).map(Some).map_err(|cause| cause.to_string())
}

async fn write_message<T: serde::Serialize>(send: &mut quinn::SendStream, message: &T) {
    let Ok(bytes) = wire::encode::<MAX_MESSAGE_BYTES>(message) else {
        tracing::error!("an answer exceeds {MAX_MESSAGE_BYTES} bytes and was not sent");
        return;
    };
    if send.write_chunk(bytes.into()).await.is_ok() && send.finish().is_ok() {
        let _ = send.stopped().await;
    }
}

/// The cluster feature level a node starts with.
pub(super) const fn feature_level() -> u32 {
    FEATURE_LEVEL
}

/// Requests of one connection that are read at the same time: each may hold its bytes while it is incomplete.
const HEARD_AT_ONCE: usize = 8;
/// How long a node that goes down waits for its service to answer what it took.
const DRAIN: Duration = Duration::from_secs(3);
/// How long it waits for answers to arrive.
const DELIVERY: Duration = Duration::from_millis(500);
