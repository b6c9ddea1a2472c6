//! The client library.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use graven_net::client::{Client, ClientConfig, Item, Start};
//!
//! let client = Client::connect(ClientConfig::load("graven-dev/client.toml")?).await?;
//! let ack = client.append(["hello", "world"]).await?;
//! let mut stream = client.subscribe(Start::Offset(ack.first)).await?;
//! while let Some(item) = stream.next().await {
//!     if let Item::Records(batch) = item? {
//!         for record in batch.iter() {
//!             println!("{} {:?}", record.offset, record.payload);
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - [`Client::append`] and [`Appender`] ride out leader changes under a session: nothing is lost, nothing doubled.
//! - [`Subscription`] resumes at the next offset on any node: nothing twice, nothing skipped.
//! - Every error tells its [`ErrorCode`] and its [`Outcome`]: *refused*, it did not and will not happen, or *unknown*.
//!
//! Inside: `network` holds connections and knows who leads, `courier` carries the append groups of all `session`s to the leader,
//! each subscription is a task of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

pub use self::appender::{AckStream, AppendSender, Appender};
pub use self::backup::{BackupHead, BackupStream};
pub use self::batch::{Batch, IntoBatch};
pub use self::config::{ClientConfig, ConfigError};
pub use self::cursor::Cursor;
pub use self::error::{AppendError, ConnectError, RequestError, StreamError, SubscribeError};
pub use self::snapshot::{SnapshotItem, SnapshotReader};
pub use self::subscription::{Item, Record, Records, RecordsIter, SubscribeOptions, Subscription};
pub use crate::protocol::append::Ack;
pub use crate::protocol::feed::Start;
pub use crate::protocol::{
    Bounds, ClusterStatus, Detail, ErrorCode, Failure, MemberChange, MemberEntry, MemberList, MemberRole, NewMember,
    NodeHealth, NodeRole, NodeState, NodeStats, NodeStatus, Outcome, SnapshotEntry, SnapshotInfo, SnapshotState,
};
pub use graven_frame::RecordError;

use self::courier::Lanes;
use self::network::Network;
use self::session::Session;
pub use crate::protocol::NodeReport;
use crate::protocol::{Behind, Request, Response};

mod appender;
mod backup;
mod batch;
mod config;
mod courier;
mod cursor;
mod dial;
mod error;
mod network;
mod session;
mod snapshot;
mod subscription;

/// A connection to a cluster. Clones share it; the last one dropped closes it.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// Conditions of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AppendOptions {
    /// Only if the first record gets this offset, else it fails with `conflict`, naming `next_offset`.
    pub expect: Option<u64>,
    /// Only if no higher fence was seen, else it fails with `fenced`. From 1.
    pub fence: Option<u64>,
}

/// How sure an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Covers every append acknowledged before the request, on any node. Needs a majority.
    Linearizable,
    /// What the asked node knows.
    Local,
}

#[derive(Debug)]
struct Inner {
    network: Arc<Network>,
    lanes: Arc<Lanes>,
    max_record_bytes: usize,
    window_bytes: usize,
    /// The session of plain appends, and that of conditional ones, which go one at a time.
    plain: AsyncMutex<Shared>,
    conditional: AsyncMutex<Shared>,
    tasks: [AbortHandle; 2],
}

impl Inner {
    fn max_record_bytes(&self) -> usize {
        self.max_record_bytes.min(self.network.record_limit())
    }
}

/// A session that calls share. Its lock keeps their order.
#[derive(Debug, Default)]
struct Shared {
    session: Option<Arc<Session>>,
    /// When opening a session failed last: callers who waited meanwhile share the failure.
    failed: Option<(Instant, Failure)>,
}

impl Client {
    /// Connects: done as soon as one node answers.
    ///
    /// # Errors
    /// `unauthenticated` when either side refuses the other's certificate, `config` when the files are no good,
    /// `unavailable` when no node answers within the timeout.
    pub async fn connect(config: ClientConfig) -> Result<Client, ConnectError> {
        let client = Client::lazy(config)?;
        let network = &client.inner.network;
        let deadline = Instant::now() + network.timeout;
        loop {
            let attempt = tokio::time::timeout_at(deadline, network.any_link(None)).await;
            if let Ok(Ok(_)) = attempt {
                return Ok(client);
            }
            if let Some(failure) = network.verdict() {
                return Err(failure.into());
            }
            if Instant::now() >= deadline {
                let waited = network.timeout.as_secs_f32();
                let message = format!("no node was reached within {waited} s: {}", network.trouble());
                return Err(Failure::refused(ErrorCode::Unavailable, message).into());
            }
            network.pause().await;
        }
    }

    /// A client that connects when it is first used, and in the background. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// `config` or `unauthenticated` when the certificate files are no good.
    pub fn lazy(config: ClientConfig) -> Result<Client, ConnectError> {
        let network = Network::new(&config)?;
        let lanes = Arc::new(Lanes::default());
        let tasks = [
            tokio::spawn(network.clone().keep()).abort_handle(),
            tokio::spawn(courier::run(network.clone(), lanes.clone())).abort_handle(),
        ];
        let inner = Inner {
            network,
            lanes,
            max_record_bytes: config.max_record_bytes.min(graven_frame::MAX_RECORD_BYTES),
            window_bytes: config.window_bytes,
            plain: AsyncMutex::default(),
            conditional: AsyncMutex::default(),
            tasks,
        };
        Ok(Client { inner: Arc::new(inner) })
    }

    /// The largest record that may be appended, in bytes: what the cluster takes, or [`ClientConfig::max_record_bytes`] when
    /// that is less. Known once connected; before, the default of 1 MiB is assumed.
    #[must_use]
    pub fn max_record_bytes(&self) -> usize {
        self.inner.max_record_bytes()
    }

    /// Appends `records` as one batch: contiguous offsets, all or nothing.
    ///
    /// Returns when the batch is committed and fsynced on a majority. Records may be empty; each is at most
    /// [`ClientConfig::max_record_bytes`], the batch at most 16 MiB. Calls on clones of one client are pipelined in the order
    /// in which they are made. A leader change that ends within the timeout is ridden out; nothing is stored twice.
    ///
    /// # Errors
    /// See [`AppendError::code`] and [`AppendError::outcome`].
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting, not an append that was sent.
    pub async fn append(&self, records: impl IntoBatch) -> Result<Ack, AppendError> {
        self.append_with(records, AppendOptions::default()).await
    }

    /// [`Client::append`] with conditions. Conditional appends of one client go one at a time.
    ///
    /// # Errors
    /// As [`Client::append`]; `conflict` and `fenced` are always *refused*.
    ///
    /// # Cancel safety
    /// As [`Client::append`].
    pub async fn append_with(&self, records: impl IntoBatch, options: AppendOptions) -> Result<Ack, AppendError> {
        let mut batch = records.into_batch().check(self.max_record_bytes())?;
        let mut attempts = 0;
        loop {
            let lost = if options == AppendOptions::default() {
                self.inner.append_plain(&mut batch).await?
            } else {
                self.inner.append_conditional(&mut batch, options).await?
            };
            let lost = match lost {
                Ok(ack) => return Ok(ack),
                Err(lost) => lost,
            };
            attempts += 1;
            // A client that was idle for long finds its session expired: a new one takes the batch, which was never sent
            // anywhere else.
            let expired = lost.failure.code == ErrorCode::SessionExpired && lost.failure.outcome == Outcome::Refused;
            if !expired || attempts == SESSIONS_TRIED {
                return Err(lost.failure.into());
            }
            batch = Batch::of_group(&lost.group);
        }
    }

    /// An appender with a session of its own.
    ///
    /// # Errors
    /// When no session could be opened: no leader within the timeout, or not allowed.
    pub async fn appender(&self) -> Result<Appender, AppendError> {
        let session = self.inner.open_session().await?;
        Ok(Appender::new(self.inner.clone(), session))
    }

    /// Follows the log from `start`, for as long as the subscription is read.
    ///
    /// # Errors
    /// See [`Client::subscribe_with`].
    pub async fn subscribe(&self, start: Start) -> Result<Subscription, SubscribeError> {
        self.subscribe_with(SubscribeOptions::new(start)).await
    }

    /// Follows the log as `options` say.
    ///
    /// # Errors
    /// `out_of_range` for a start beyond the end, `trimmed` for one below the first record, `usage` for an unknown node,
    /// `unavailable` when no node (or not the pinned one) is reached within the timeout, `forbidden`.
    pub async fn subscribe_with(&self, options: SubscribeOptions) -> Result<Subscription, SubscribeError> {
        Ok(subscription::open(self.inner.clone(), options).await?)
    }

    /// Where the committed log begins and ends, asked at `node` or at any.
    ///
    /// # Errors
    /// `unavailable` or `timeout`: for [`Consistency::Linearizable`] also when there is no leader. `usage`: unknown node.
    pub async fn bounds(&self, how: Consistency, node: Option<&str>) -> Result<Bounds, RequestError> {
        let request = Request::Bounds { linearizable: how == Consistency::Linearizable };
        match self.inner.ask(node, &request).await? {
            Response::Bounds(bounds) => Ok(bounds),
            other => Err(unexpected(&other).into()),
        }
    }

    /// What every node says about itself. Nodes that do not answer within a second are listed as not reachable.
    pub async fn status(&self) -> ClusterStatus {
        let mut reports: BTreeMap<String, Option<NodeReport>> = BTreeMap::new();
        // The second round asks members that only the first round's answers named.
        for _ in 0..2 {
            let mut asked = JoinSet::new();
            for name in self.nodes().into_iter().filter(|name| !reports.contains_key(name)) {
                let inner = self.inner.clone();
                asked.spawn(async move { (inner.report_of(&name).await, name) });
            }
            while let Some(answer) = asked.join_next().await {
                let Ok((report, name)) = answer else { continue };
                reports.insert(name, report);
            }
        }
        let known = |name: &str| self.inner.network.address(name);
        let best =
            reports.values().flatten().filter(|report| report.leader.is_some()).max_by_key(|report| report.status.term);
        let cluster_id = reports.values().flatten().map(|report| report.cluster_id.clone()).next();
        let leader = best.and_then(|report| report.leader.clone());
        let members: BTreeMap<_, _> = reports
            .values()
            .flatten()
            .flat_map(|report| &report.members)
            .map(|member| (member.name.clone(), member.clone()))
            .collect();
        let mut nodes: BTreeMap<String, NodeStatus> = BTreeMap::new();
        for (name, member) in &members {
            let mut status = NodeStatus::unreachable(name.clone(), member.address.clone().or_else(|| known(name)));
            (status.id, status.peer_address) = (Some(member.id), member.peer_address.clone());
            nodes.insert(name.clone(), status);
        }
        for (name, report) in reports {
            let unreachable = || NodeStatus::unreachable(name.clone(), known(&name));
            let status = nodes.entry(name.clone()).or_insert_with(unreachable);
            if let Some(report) = report {
                *status = NodeStatus { reachable: true, ..report.status };
            }
        }
        if let Some(leader) = &leader {
            for (id, behind) in self.inner.followers_of(leader).await {
                let of = nodes.values_mut().find(|node| node.id == Some(id));
                of.into_iter().for_each(|node| node.behind = Some(behind));
            }
        }
        ClusterStatus { cluster_id, leader, nodes: nodes.into_values().collect() }
    }

    /// Hands the leadership to `node`; returns when it leads, also if it does already.
    ///
    /// # Errors
    /// Whatever the leader says against it; `unavailable` or `timeout` when there is no leader; `forbidden`.
    pub async fn transfer(&self, node: &str) -> Result<(), RequestError> {
        match self.inner.network.ask_leader(&Request::Transfer { node: node.to_owned() }).await? {
            Response::Transferred => Ok(()),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Lets go of all records before the offset `before`, on all nodes at once; returns the first offset when that is committed:
    /// `before`, or a higher one if more was trimmed already. Needs the role admin. What the records took on the disks is freed soon
    /// after, by whole segments. There is no way back.
    ///
    /// # Errors
    /// `out_of_range` for an offset behind the end of the log, with the detail `next_offset`; nothing was trimmed then.
    /// `unavailable` or `timeout` when there is no leader; `forbidden`.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting, not the trim.
    pub async fn trim(&self, before: u64) -> Result<u64, RequestError> {
        match self.inner.network.ask_leader(&Request::Trim { before }).await? {
            Response::Trimmed { first_offset } => Ok(first_offset),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Who belongs to the cluster, as the leader has it.
    ///
    /// # Errors
    /// `unavailable` or `timeout` when there is no leader.
    pub async fn members(&self) -> Result<MemberList, RequestError> {
        match self.inner.network.ask_leader(&Request::Members).await? {
            Response::Members(list) => Ok(list),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Changes who belongs to the cluster; returns when the change is committed, both its steps when it has two. Needs the
    /// role admin. The same change may be asked for again: what is done already is answered as done.
    ///
    /// # Errors
    /// `usage` for a name that no member has; `conflict` for what is against the rules, for a learner that has not caught up
    /// (with the detail `behind_bytes`) and for a change that would leave no majority of voters alive; `unavailable` or
    /// `timeout` when there is no leader, or another change does not end; `forbidden`.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting, not the change.
    pub async fn change_members(&self, change: &MemberChange) -> Result<(), RequestError> {
        match self.inner.network.ask_leader(&Request::ChangeMembers(change.clone())).await? {
            Response::MembersChanged => Ok(()),
            other => Err(unexpected(&other).into()),
        }
    }

    /// What the node `node` says about itself.
    ///
    /// # Errors
    /// `usage` for an unknown node, `unavailable` or `timeout`.
    pub async fn node_report(&self, node: &str) -> Result<NodeReport, RequestError> {
        match self.inner.ask(Some(node), &Request::NodeStatus).await? {
            Response::NodeStatus(report) => Ok(*report),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Counters of one node's process.
    ///
    /// # Errors
    /// `usage` for an unknown node, `unavailable` or `timeout`.
    pub async fn node_stats(&self, node: &str) -> Result<NodeStats, RequestError> {
        match self.inner.ask(Some(node), &Request::NodeStats).await? {
            Response::NodeStats(stats) => Ok(stats),
            other => Err(unexpected(&other).into()),
        }
    }

    /// The condition and surroundings of one node: facts about its disk, clock, sockets and peers.
    ///
    /// # Errors
    /// `usage` for an unknown node, `unavailable` or `timeout`.
    pub async fn node_health(&self, node: &str) -> Result<NodeHealth, RequestError> {
        match self.inner.ask(Some(node), &Request::NodeHealth).await? {
            Response::NodeHealth(health) => Ok(*health),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Names of all nodes known: those configured, and those learnt from answers.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        self.inner.network.names()
    }

    /// The node that leads, as far as known.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        self.inner.network.view().borrow().leader.clone()
    }

    /// Closes all connections and waits until the nodes know. Whatever is in flight is abandoned.
    pub async fn close(&self) {
        self.inner.network.close();
        self.inner.network.closed().await;
    }
}

impl Inner {
    async fn open_session(&self) -> Result<Arc<Session>, Failure> {
        match self.network.ask_leader(&Request::OpenSession).await {
            Ok(Response::SessionOpened { session }) => {
                let session = Arc::new(Session::new(session, self.window_bytes));
                self.lanes.add(&session);
                Ok(session)
            }
            Ok(other) => Err(unexpected(&other)),
            // A session that may have been opened holds no record: what was to be appended was never sent.
            Err(failure) => Err(Failure { outcome: Outcome::Refused, ..failure }),
        }
    }

    /// The session in `shared`, or a new one.
    async fn shared_session(&self, shared: &mut Shared, called: Instant) -> Result<Arc<Session>, Failure> {
        if let Some(session) = &shared.session {
            if session.is_open() {
                return Ok(session.clone());
            }
            session.finish();
            self.lanes.remove(session);
            shared.session = None;
        }
        match &shared.failed {
            Some((at, failure)) if *at > called => return Err(failure.clone()),
            _ => {}
        }
        match self.open_session().await {
            Ok(session) => Ok(shared.session.insert(session).clone()),
            Err(failure) => {
                shared.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    async fn append_plain(&self, batch: &mut Batch) -> Result<Result<Ack, session::Lost>, Failure> {
        let called = Instant::now();
        let answer = {
            let mut shared = self.plain.lock().await;
            let (mut waiter, answer) = waiter();
            loop {
                let session = self.shared_session(&mut shared, called).await?;
                // It fails when another call's failure closed the session while this one waited for room: this one was
                // not sent, and goes on under the next session.
                let Ok(announce) = session.push(batch, None, None, &mut waiter).await else { continue };
                if announce {
                    self.lanes.announce(&session);
                }
                break answer;
            }
        };
        answer.await.map_err(|_| closed())
    }

    async fn append_conditional(
        &self,
        batch: &mut Batch,
        options: AppendOptions,
    ) -> Result<Result<Ack, session::Lost>, Failure> {
        let called = Instant::now();
        let mut shared = self.conditional.lock().await;
        let session = self.shared_session(&mut shared, called).await?;
        let (mut waiter, answer) = waiter();
        let sequence = session.next_sequence();
        if session.push(batch, options.expect, options.fence, &mut waiter).await? {
            self.lanes.announce(&session);
        }
        let answer = answer.await.map_err(|_| closed())?;
        if let Err(lost) = &answer
            && matches!(lost.failure.code, ErrorCode::Conflict | ErrorCode::Fenced)
        {
            session.reopen(sequence);
        }
        Ok(answer)
    }

    /// Asks one node, or any, until there is an answer or the timeout has passed. For requests that may be repeated.
    async fn ask(&self, node: Option<&str>, request: &Request) -> Result<Response, Failure> {
        let network = &self.network;
        let deadline = Instant::now() + network.timeout;
        let (mut asked, mut avoid, mut passing) = (false, None, None);
        loop {
            let attempt = async {
                let link = match node {
                    Some(node) => network.link_to(node).await?,
                    None => network.any_link(avoid.as_deref()).await?,
                };
                asked = true;
                // A node that died a moment ago looks alive: with a choice, another one is asked before long.
                let patience = if node.is_some() { network.timeout } else { PATIENCE };
                let answer = tokio::time::timeout(patience, link.unary(request)).await;
                answer.unwrap_or_else(|_| Err(link.lost("no answer"))).map_err(|sentence| {
                    avoid = Some(link.name.clone());
                    Failure::refused(ErrorCode::Unavailable, sentence)
                })
            };
            let failure = match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Ok(Response::Failed(failure)) | Err(failure)) => Some(failure),
                Ok(Ok(Response::NotLeader(view))) => {
                    network.merge_view(&view);
                    None
                }
                Ok(Ok(response)) => return Ok(response),
                Err(_) => None,
            };
            match failure {
                Some(failure) if failure.code == ErrorCode::Unavailable => passing = Some(failure),
                // Without a node in mind, one that refuses our certificate does not speak for the others.
                Some(failure) if failure.code == ErrorCode::Unauthenticated && node.is_none() => {
                    passing = Some(failure)
                }
                Some(failure) => return Err(failure),
                None => {}
            }
            if let Some(failure) = network.verdict() {
                return Err(failure);
            }
            if Instant::now() >= deadline {
                return Err(passing.unwrap_or_else(|| network.gave_up(asked)));
            }
            network.pause().await;
        }
    }

    /// How the others keep up with this leader; nothing when it does not say.
    async fn followers_of(&self, leader: &str) -> Vec<(u64, Behind)> {
        let ask = async { self.network.link_to(leader).await.ok()?.unary(&Request::Followers).await.ok() };
        match tokio::time::timeout(STATUS_TIMEOUT, ask).await {
            Ok(Some(Response::Followers(followers))) => followers,
            // An older node does not know the question.
            _ => Vec::new(),
        }
    }

    async fn report_of(&self, name: &str) -> Option<NodeReport> {
        let ask = async { self.network.link_to(name).await.ok()?.unary(&Request::NodeStatus).await.ok() };
        let Ok(Some(Response::NodeStatus(report))) = tokio::time::timeout(STATUS_TIMEOUT, ask).await else {
            return None;
        };
        for member in &report.members {
            if let Some(address) = &member.address {
                self.network.learn(&member.name, address);
            }
        }
        let mut report = *report;
        if matches!(report.status.state, Some(NodeState::Recovering | NodeState::Damaged)) {
            let ask = async { self.network.link_to(name).await.ok()?.unary(&Request::Damage).await.ok() };
            if let Ok(Some(Response::Damage(range))) = tokio::time::timeout(STATUS_TIMEOUT, ask).await {
                report.status.recovering = range;
            }
        }
        Some(report)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.network.close();
    }
}

fn waiter() -> (Option<session::Waiter>, oneshot::Receiver<Result<Ack, session::Lost>>) {
    let (waiter, answer) = oneshot::channel();
    (Some(waiter), answer)
}

fn closed() -> Failure {
    Failure::unknown(ErrorCode::Unavailable, "the client was closed")
}

fn unexpected(response: &Response) -> Failure {
    Failure::unknown(ErrorCode::Internal, format!("the node gave an answer of another kind: {response:?}"))
}

/// Sessions an append is tried under: the second was opened a moment ago, and expires only under absurd load.
const SESSIONS_TRIED: usize = 3;
/// How long any node is waited for when another one could be asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a node may take to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
