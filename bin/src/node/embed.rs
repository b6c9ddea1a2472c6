//! A node inside your program, with a state machine of your own.
//!
//! The state machine runs on its own thread and is given committed records in order; what it answers goes to whoever
//! proposed the record. Nothing it does holds up the protocol: a slow machine lags behind, visibly (`applied_index`).

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use graven_frame::{GroupBuilder, GroupHeaderSpec};
use graven_net::client::{Client, ClientConfig, ConfigError, ConnectError, Consistency, Item, Record, Records, Start};
use graven_net::server::{ErrorCode, Failure, Feed as Source, FeedItem, Server};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::daemon::{start_server, stop};
use super::divergence;
use super::engine::{Engine, Fatal, Shared, StartError};
use super::failure::failure;
use super::input::{Input, Waiter, Waiting, Who};
use super::machine;
use super::mending;
use super::service::{NodeFeed, read_index};
use crate::config::NodeConfig;
use crate::replica::sessions::Placed;
use crate::replica::{Rejection, View};

/// A record's position in the log: dense from 0.
pub type Offset = u64;

/// What an application does with committed records.
///
/// All nodes apply the same records in the same order, so `apply` must depend on nothing but them: no clock, no randomness.
pub trait StateMachine: Send + 'static {
    /// What `apply` answers for each record.
    type Response: Send + 'static;
    /// A picture of the state, cheap to take, written in the background.
    type Snapshot: WriteSnapshot;

    /// Applies `batch`, in order, and pushes one response a record to `out`.
    ///
    /// # Errors
    /// An [`ApplyError`] stops the node: a machine that cannot go on must not skip a record. So does a panic, and a wrong
    /// number of responses.
    fn apply(&mut self, batch: &[Record], out: &mut Vec<Self::Response>) -> Result<(), ApplyError>;

    /// The first offset that a machine with its own durable store has not applied. `None`: it has no store of its own; a restart goes on from
    /// the newest snapshot, and applies again what came after it.
    ///
    /// Such a machine is given a state of another node ([`StateMachine::restore`]) only when records that it lacks are gone everywhere.
    fn applied(&self) -> Option<Offset> {
        None
    }

    /// A picture of the state now, after the last record applied. Called on the machine's thread between two batches, so it should be cheap:
    /// a copy-on-write clone, a handle. It is written in the background. When: the `[snapshot]` section of the configuration.
    ///
    /// Behind what a majority of the voters has in snapshots the log is trimmed, so a snapshot holds all that the records did.
    fn snapshot(&mut self) -> Self::Snapshot;

    /// The machine that [`WriteSnapshot::write`] wrote.
    ///
    /// # Errors
    /// When the bytes are not what was written.
    fn restore(reader: &mut dyn std::io::Read) -> std::io::Result<Self>
    where
        Self: Sized;
}

/// A picture of a state machine that can be written while the machine goes on.
pub trait WriteSnapshot: Send + 'static {
    /// Writes it.
    ///
    /// # Errors
    /// What `out` returned.
    fn write(self, out: &mut dyn std::io::Write) -> std::io::Result<()>;
}

/// The state machine cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ApplyError(pub String);

/// Why [`Node::client`] has no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Its `client.toml` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No node answers, or the certificate is refused.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// Why a proposal or a query has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Refused or unknown, as the failure's `outcome` says.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// Refused: this node holds as many unanswered proposals as `limits.queue_bytes` allows. Retry when some are answered.
    #[error("too many proposals are waiting; await some of them first")]
    Busy,
    /// Refused: the record is too large.
    #[error("record has {size} bytes, the limit is {limit} (max_record_bytes)")]
    RecordTooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The record is committed and applied, in a state that this node was given by another one: the response is not known here.
    #[error("the record is committed, and this node took over a state that holds it: its response is not known")]
    Skipped,
    /// Unknown: the node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

/// A running node with its state machine.
///
/// Dropping it stops it at once, as a crash would; [`Node::shutdown`] hands the leadership over first.
#[derive(Debug)]
pub struct Node<M: StateMachine> {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command<M>>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    engine: Engine,
    server: Server,
    machine: std::thread::JoinHandle<()>,
}

/// Proposals and queries that may wait for the state machine's thread; beyond that their callers wait.
const COMMANDS_MAX: usize = 65_536;
/// Somebody's look at the state machine.
pub(super) type Query<M> = Box<dyn FnOnce(&M) + Send>;

pub(super) enum Command<M: StateMachine> {
    /// The record at this offset was proposed here: its response goes there.
    Expect(Offset, oneshot::Sender<Result<M::Response, NodeError>>),
    /// Run this once everything below the offset is applied.
    Query(Offset, Query<M>),
}

impl<M: StateMachine> Node<M> {
    /// Starts the node whose directory `config` names; `graven init` made it. Returns when it is recovered and listening. A damaged log
    /// is mended before: that takes until a node that has what is missing was reached, and the listener says `recovering` meanwhile.
    ///
    /// # Errors
    /// [`StartError`], as `graven start` would print it. [`StartError::Unmendable`]: the log is damaged, every other node has answered,
    /// and none has what is missing; nothing was deleted. [`StartError::InDoubt`]: a vote may be lost, replace the node.
    ///
    /// # Cancel safety
    /// Dropped while it mends, what is in place is mended and the rest as it was; call it again.
    pub async fn start(config: NodeConfig, machine: M) -> Result<Node<M>, StartError> {
        if config.retention.is_set() {
            return Err(StartError::Retention { file: config.file });
        }
        let engine = mending::start(config, true, || {}).await?;
        let shared = Arc::clone(&engine.shared);
        let server = match start_server(&shared).await {
            Ok(server) => server,
            Err(cause) => {
                stop(engine).await;
                return Err(cause);
            }
        };
        let (commands, commands_end) = mpsc::channel(COMMANDS_MAX);
        let (for_thread, fatal) = (Arc::clone(&shared), engine.fatal_sender.clone());
        let machine = std::thread::Builder::new()
            .name("graven-apply".to_owned())
            .spawn(move || machine::run(machine, &for_thread, commands_end, &fatal))
            .map_err(StartError::Thread)?;
        Ok(Node { shared, commands, running: Some(Running { engine, server, machine }) })
    }

    /// Proposes a record. It is on its way when this returns; await the [`Proposal`] for the machine's response.
    ///
    /// # Errors
    /// [`NodeError::Busy`], [`NodeError::RecordTooLarge`]; everything else comes from the proposal.
    pub fn propose(&self, record: impl Into<Bytes>) -> Result<Proposal<M::Response>, NodeError> {
        let record = record.into();
        let limit = self.shared.config.limits.max_record_bytes;
        if record.len() > limit {
            return Err(NodeError::RecordTooLarge { size: record.len(), limit });
        }
        let mut builder = GroupBuilder::new();
        builder.push(&[], &record).map_err(|_| NodeError::RecordTooLarge { size: record.len(), limit })?;
        let group = builder.finish(GroupHeaderSpec::default());
        let permit = self.shared.budget.take(group.body().len()).ok_or(NodeError::Busy)?;
        let (offset, placed) = oneshot::channel();
        let (response, responded) = oneshot::channel();
        let waiting = Proposed::<M> { commands: self.commands.clone(), offset, response };
        let input = Input::Append(group, Waiter { who: Who::Embedded(Box::new(waiting)), permit });
        self.shared.inputs.try_send(input).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NodeError::Busy,
            mpsc::error::TrySendError::Closed(_) => NodeError::Stopped,
        })?;
        Ok(Proposal { placed: Some(placed), offset: None, responded })
    }

    /// Looks at the state machine. With [`Consistency::Linearizable`] it has applied everything acknowledged before the call.
    ///
    /// # Errors
    /// No leader confirmed the read, or the node stopped.
    ///
    /// # Cancel safety
    /// Dropping the future may or may not stop `look` from running.
    pub async fn query<T, F>(&self, consistency: Consistency, look: F) -> Result<T, NodeError>
    where
        T: Send + 'static,
        F: FnOnce(&M) -> T + Send + 'static,
    {
        let from = match consistency {
            Consistency::Linearizable => read_index(&self.shared).await?,
            Consistency::Local => 0,
        };
        let (answer, answered) = oneshot::channel();
        let run = Box::new(move |machine: &M| {
            // Whoever asked may have gone away.
            let _ = answer.send(look(machine));
        });
        self.commands.send(Command::Query(from, run)).await.map_err(|_| NodeError::Stopped)?;
        answered.await.map_err(|_| NodeError::Stopped)
    }

    /// Where the node stands.
    #[must_use]
    pub fn status(&self) -> View {
        *self.shared.view.borrow()
    }

    /// Whether this node leads, as far as it knows: proposals go to the node that does.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.status().role == graven_raft::Role::Leader
    }

    /// The name of the node that leads, as far as this one knows.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        self.shared.leader.borrow().leader.clone()
    }

    /// What the node has counted since its start.
    #[must_use]
    pub fn counters(&self) -> &super::Counters {
        &self.shared.counters
    }

    /// The committed records from `start` on, read from this node's own log.
    ///
    /// # Errors
    /// The start is trimmed, out of range, or needs a leader and there is none.
    pub async fn subscribe(&self, start: Start) -> Result<LocalStream, NodeError> {
        LocalStream::open(&self.shared, start).await
    }

    /// A client of this node's cluster, with the `client.toml` that `graven init` wrote beside the node's directory.
    ///
    /// # Errors
    /// The file is missing or wrong, or no node answers.
    pub async fn client(&self) -> Result<Client, ClientError> {
        let file = self.shared.config.file.parent().and_then(|dir| dir.parent());
        let file = file.map_or_else(|| PathBuf::from("client.toml"), |dir| dir.join("client.toml"));
        Ok(Client::connect(ClientConfig::load(file)?).await?)
    }

    /// Resolves when the node had to stop: its log failed, its state machine failed, or an alarm says so.
    ///
    /// # Cancel safety
    /// Cancel-safe; once it has resolved it does not again.
    pub async fn failed(&mut self) -> Fatal {
        match &mut self.running {
            Some(running) => match running.engine.fatal.recv().await {
                Some(fatal) => {
                    divergence::note(&self.shared.config.data_dir, &fatal);
                    fatal
                }
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Stops in order: hands the leadership over, answers what was taken, syncs and closes the log.
    pub async fn shutdown(mut self) {
        let Some(Running { engine, server, machine }) = self.running.take() else { return };
        engine.step_down().await;
        server.close().await;
        stop(engine).await;
        drop(self);
        if tokio::task::spawn_blocking(move || machine.join()).await.is_err() {
            error!("the thread of the state machine cannot be joined");
        }
    }
}

impl<M: StateMachine> Drop for Node<M> {
    fn drop(&mut self) {
        if self.running.is_some() {
            // A full channel is read by a thread that lives; when it ended there is nothing to stop.
            let _ = self.shared.inputs.try_send(Input::Stop);
        }
    }
}

/// A record on its way. Await it for the state machine's response.
///
/// Dropping it changes nothing: the record still goes its way.
#[derive(Debug)]
pub struct Proposal<R> {
    placed: Option<oneshot::Receiver<Offset>>,
    offset: Option<Offset>,
    responded: oneshot::Receiver<Result<R, NodeError>>,
}

impl<R> Proposal<R> {
    /// Its offset, once it is committed.
    pub fn offset(&mut self) -> Option<Offset> {
        if let Some(placed) = &mut self.placed
            && let Ok(offset) = placed.try_recv()
        {
            self.offset = Some(offset);
            self.placed = None;
        }
        self.offset
    }
}

impl<R> Future for Proposal<R> {
    type Output = Result<R, NodeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.responded).poll(cx).map(|received| received.unwrap_or(Err(NodeError::Stopped)))
    }
}

/// Carries the answer of an append to the thread of the state machine.
struct Proposed<M: StateMachine> {
    commands: mpsc::Sender<Command<M>>,
    offset: oneshot::Sender<Offset>,
    response: oneshot::Sender<Result<M::Response, NodeError>>,
}

impl<M: StateMachine> std::fmt::Debug for Proposed<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proposed")
    }
}

impl<M: StateMachine> std::fmt::Debug for Command<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Command::Expect(offset, _) => write!(f, "Expect({offset})"),
            Command::Query(offset, _) => write!(f, "Query({offset})"),
        }
    }
}

impl<M: StateMachine> Waiting for Proposed<M> {
    /// Called on the protocol thread before the entry becomes visible to the machine's thread, which looks at its commands
    /// before it applies what is visible: so the machine always knows who waits for a record.
    fn done(self: Box<Self>, answer: Result<Placed, Rejection>) {
        match answer {
            Ok(placed) => {
                let _ = self.offset.send(placed.first);
                if let Err(error) = self.commands.try_send(Command::Expect(placed.first, self.response))
                    && let Command::Expect(_, response) = error.into_inner()
                {
                    // The record is committed; only its response cannot be told.
                    let _ = response.send(Err(NodeError::Busy));
                }
            }
            Err(rejection) => {
                let _ = self.response.send(Err(failure(rejection).into()));
            }
        }
    }
}

/// The committed records of a node in this process; see [`Node::subscribe`].
#[derive(Debug)]
pub struct LocalStream {
    feed: NodeFeed,
    from: Offset,
    frames: std::vec::IntoIter<graven_frame::Frame>,
}

/// Bytes of frames read at a time by a [`LocalStream`], about.
const LOCAL_READ_BYTES: usize = 256 << 10;

impl LocalStream {
    async fn open(shared: &Arc<Shared>, start: Start) -> Result<LocalStream, NodeError> {
        let from = super::service::start_offset(shared, &start, false).await?;
        Ok(LocalStream { feed: NodeFeed::new(shared, from, None), from, frames: Vec::new().into_iter() })
    }

    /// The next item; waits for it. `None` when the node stopped.
    ///
    /// # Errors
    /// This node cannot read its log there.
    ///
    /// # Cancel safety
    /// Cancel-safe: what was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Result<Item, NodeError>> {
        loop {
            if let Some(frame) = self.frames.next() {
                match Records::of_frame(frame, self.from) {
                    Ok(Some(records)) => return Some(Ok(Item::Records(records))),
                    Ok(None) => continue,
                    Err(cause) => return Some(Err(damaged(&cause).into())),
                }
            }
            return match self.feed.next(LOCAL_READ_BYTES).await {
                FeedItem::Frames(frames) => {
                    self.frames = frames.into_iter();
                    continue;
                }
                FeedItem::Trimmed { from, to } => Some(Ok(Item::Trimmed { from, to })),
                FeedItem::Progress { next_offset } => Some(Ok(Item::Progress { next_offset })),
                FeedItem::CaughtUp { next_offset } => Some(Ok(Item::CaughtUp { next_offset })),
                FeedItem::Done => None,
                FeedItem::End(failure) if failure.code == ErrorCode::Unavailable => None,
                FeedItem::End(failure) => Some(Err(failure.into())),
            };
        }
    }
}

fn damaged(cause: &graven_frame::FrameError) -> Failure {
    Failure::refused(ErrorCode::Damaged, cause.to_string())
}
