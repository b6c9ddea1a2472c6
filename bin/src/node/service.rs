//! What a node does for its clients: the bridge from the client plane to the replica.
//!
//! Runs on the client plane's runtime. Appends go to the protocol thread through a bounded channel, under a budget of bytes;
//! records are read from the log's map here, never on the protocol thread.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use graven_frame::{Frame, Group};
use graven_net::server::{
    AppendReply, BackupRequest, Bounds, Busy, Caller, ErrorCode, Failure, Feed as Source, FeedItem, GetRequest,
    LeaderView, MemberChange, MemberEntry, MemberList, MemberReport, MemberRole as Say, NodeHealth, NodeReport,
    NodeRole, NodeState, NodeStats, NodeStatus, Opened, OpenedBackup, OpenedSnapshot, PutAnswer, PutRequest, Request,
    Response, Service, SnapshotSink, Start, SubscribeRequest,
};
use graven_raft::Role;
use graven_wal::ReadError;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::backup_service::BACKUPS_MAX;
use super::bulk::whole;
use super::counters::process_usage;
use super::engine::Shared;
use super::failure::failure;
use super::input::{Input, Waiter, Who};
use super::snapshot_service::{self, Uploads};
use crate::health;
use crate::members::{Member, MemberRole};
use crate::replica::cursors::Move;
use crate::replica::feed::{Feed, Step};
use crate::replica::{Answer, Rejection, View};

/// A reader with nothing new is told where it stands this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How long the disk may take to say how it is.
const PLACE_PATIENCE: Duration = Duration::from_millis(500);

/// This host's clock, in milliseconds since 1970.
fn wall_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct NodeService {
    pub(super) shared: Arc<Shared>,
    uploads: Arc<Uploads>,
    /// One for each backup that may be given at the same time.
    pub(super) backups: Arc<Semaphore>,
}

impl NodeService {
    pub(super) fn new(shared: Arc<Shared>) -> NodeService {
        NodeService { shared, uploads: Arc::default(), backups: Arc::new(Semaphore::new(BACKUPS_MAX)) }
    }

    pub(super) async fn read_index(&self) -> Result<u64, Failure> {
        read_index(&self.shared).await
    }

    pub(super) fn not_leader(&self) -> Response {
        Response::NotLeader(self.shared.leader.borrow().clone())
    }

    async fn bounds(&self, linearizable: bool) -> Result<Bounds, Failure> {
        let confirmed = if linearizable { Some(self.read_index().await?) } else { None };
        let view = *self.shared.view.borrow();
        Ok(Bounds {
            first_offset: view.first_offset,
            next_offset: confirmed.unwrap_or(view.next_offset),
            term: view.term.0,
            leader: self.shared.leader.borrow().leader.clone(),
            node: self.shared.config.name.clone(),
        })
    }

    async fn transfer(&self, node: &str) -> Response {
        let member = self.shared.members.borrow().by_name(node).map(|member| member.id);
        let Some(id) = member else {
            let message = format!("no node is named {node}; `graven status` lists them");
            return Response::Failed(Failure::refused(ErrorCode::Usage, message));
        };
        match ask(&self.shared, |reply| Input::Transfer(id, reply)).await {
            Ok(Ok(_)) => Response::Transferred,
            Ok(Err(Rejection::NotLeader { .. })) => self.not_leader(),
            Ok(Err(rejection)) => Response::Failed(failure(rejection)),
            Err(gone) => Response::Failed(gone),
        }
    }

    async fn trim(&self, before: u64) -> Response {
        match ask(&self.shared, |reply| Input::Trim(before, reply)).await {
            Ok(Ok(Answer::Trimmed { first_offset })) => Response::Trimmed { first_offset },
            Ok(Err(Rejection::NotLeader { .. } | Rejection::Transferring)) => self.not_leader(),
            Ok(Err(rejection)) => Response::Failed(failure(rejection)),
            Ok(Ok(_)) => {
                Response::Failed(Failure::refused(ErrorCode::Internal, "a trim was answered with something else"))
            }
            Err(gone) => Response::Failed(gone),
        }
    }

    async fn change_members(&self, change: MemberChange) -> Response {
        match ask(&self.shared, |reply| Input::ChangeMembers(change, reply)).await {
            Ok(Ok(_)) => Response::MembersChanged,
            Ok(Err(Rejection::NotLeader { .. })) => self.not_leader(),
            Ok(Err(rejection)) => Response::Failed(failure(rejection)),
            Err(gone) => Response::Failed(gone),
        }
    }

    fn members(&self) -> MemberList {
        let members = self.shared.members.borrow();
        let entry = |member: &Member| MemberEntry {
            name: member.name.clone(),
            id: member.id,
            role: match member.role {
                MemberRole::Voter => Say::Voter,
                MemberRole::Joining => Say::Joining,
                MemberRole::Leaving => Say::Leaving,
                MemberRole::Learner | MemberRole::Removed => Say::Learner,
            },
            address: member.client_address.clone(),
            peer_address: member.peer_address.clone(),
            incarnation: format!("{:032x}", member.incarnation()),
        };
        MemberList { members: members.present().map(entry).collect(), changing: members.is_joint() }
    }

    fn report(&self) -> NodeReport {
        let members = self.shared.members.borrow().clone();
        let leader = self.shared.leader.borrow().leader.clone();
        let report = |member: &Member| MemberReport {
            name: member.name.clone(),
            id: member.id,
            address: Some(member.client_address.clone()),
            peer_address: Some(member.peer_address.clone()),
        };
        NodeReport {
            cluster_id: format!("{:032x}", self.shared.identity.cluster),
            leader,
            members: members.present().map(report).collect(),
            status: self.status(&members),
        }
    }

    fn status(&self, members: &crate::members::Members) -> NodeStatus {
        let shared = &self.shared;
        let view = *shared.view.borrow();
        let health = shared.health.borrow().clone();
        let files = shared.reader.stats();
        let me = members.by_id(shared.identity.node);
        NodeStatus {
            name: shared.config.name.clone(),
            id: Some(shared.identity.node),
            address: Some(me.map_or(shared.config.advertise.client.clone(), |me| me.client_address.clone())),
            peer_address: Some(me.map_or(shared.config.advertise.peer.clone(), |me| me.peer_address.clone())),
            reachable: true,
            role: role_of(view.role, me.map(|me| me.role)),
            state: Some(match health.state {
                NodeState::Ok => state_of(&view),
                state => state,
            }),
            term: Some(view.term.0),
            commit_index: Some(view.commit_index),
            last_index: Some(view.last_index),
            durable_index: Some(view.durable_index),
            applied_index: Some(view.applied_index),
            first_offset: Some(view.first_offset),
            next_offset: Some(view.next_offset),
            segments: Some(files.segments),
            bytes: Some(files.bytes),
            disk_free_bytes: free_bytes(&shared.config.data_dir),
            incarnation: Some(format!("{:032x}", shared.identity.incarnation)),
            pid: Some(std::process::id()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            uptime_ms: Some(u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX)),
            certificate_expires: Some(shared.tls.current().not_after().to_string()),
            disk_stalled_ms: Some(stalled_ms(&view, shared.started.elapsed())),
            clock_ms: Some(wall_ms()),
            feature_level: Some(members.feature_level),
            trouble: shared.counters.peers_seen().trouble,
            recovering: health.range,
            behind: None,
        }
    }

    async fn health(&self) -> NodeHealth {
        let shared = Arc::clone(&self.shared);
        // A disk that hangs must not keep the node from saying how it is otherwise.
        let look = move || (health::place(&shared.config), health::expires(&shared.config.tls.ca));
        let looked = tokio::time::timeout(PLACE_PATIENCE, tokio::task::spawn_blocking(look)).await;
        let (place, ca_expires) = match looked {
            Ok(Ok((place, ca_expires))) => (Some(place), ca_expires),
            _ => (None, None),
        };
        let shared = &self.shared;
        let seen = shared.counters.peers_seen();
        NodeHealth {
            clock_ms: wall_ms(),
            feature_level: shared.members.borrow().feature_level,
            feature_level_known: shared.config.feature_level,
            uptime_ms: u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            elections: shared.counters.elections.now(),
            written_bytes: shared.counters.written_bytes.now(),
            socket: seen.socket,
            syncs: shared.counters.sync_times.health(),
            peers: seen.peers,
            ca_expires,
            open_files: health::open_files(std::process::id()),
            place,
            trouble: seen.trouble,
        }
    }

    fn counters(&self) -> NodeStats {
        let counters = &self.shared.counters;
        let (rss_anon_bytes, cpu_us) = process_usage();
        NodeStats {
            rss_anon_bytes,
            cpu_us,
            syncs: counters.syncs.now(),
            frames: counters.frames.now(),
            written_bytes: counters.written_bytes.now(),
            elections: counters.elections.now(),
            appends_acked: counters.appends_acked.now(),
            records_acked: counters.records_acked.now(),
        }
    }
}

impl Service for NodeService {
    type Feed = NodeFeed;

    fn append(&self, group: Group, reply: AppendReply) -> Result<(), Busy> {
        let Some(permit) = self.shared.budget.take(group.body().len()) else {
            return Err(Busy(Box::new((group, reply))));
        };
        match self.shared.inputs.try_send(Input::Append(group, Waiter { who: Who::Client(reply), permit })) {
            Err(mpsc::error::TrySendError::Full(Input::Append(group, Waiter { who: Who::Client(reply), .. }))) => {
                Err(Busy(Box::new((group, reply))))
            }
            // A closed channel drops the reply, which tells the client that nothing is sure.
            _ => Ok(()),
        }
    }

    async fn ready(&self) {
        self.shared.budget.room().await;
        // A closed channel makes the next append fail for good, which is what should happen.
        let _ = self.shared.inputs.reserve().await;
    }

    async fn unary(&self, _caller: Caller, request: Request) -> Response {
        let failed = Response::Failed;
        match request {
            Request::OpenSession => match ask(&self.shared, Input::OpenSession).await {
                Ok(Ok(Answer::SessionOpened { session })) => Response::SessionOpened { session },
                Ok(Err(Rejection::NotLeader { .. } | Rejection::LostLeadership { .. } | Rejection::Transferring)) => {
                    self.not_leader()
                }
                Ok(Err(rejection)) => failed(failure(rejection)),
                Ok(Ok(_)) => {
                    failed(Failure::refused(ErrorCode::Internal, "a session was answered with something else"))
                }
                Err(gone) => failed(gone),
            },
            Request::NodeStatus => Response::NodeStatus(Box::new(self.report())),
            Request::Bounds { linearizable } => match self.bounds(linearizable).await {
                Ok(bounds) => Response::Bounds(bounds),
                Err(why) => failed(why),
            },
            Request::Transfer { node } => self.transfer(&node).await,
            Request::NodeStats => Response::NodeStats(self.counters()),
            Request::NodeHealth => Response::NodeHealth(Box::new(self.health().await)),
            Request::Followers => Response::Followers(self.shared.counters.peers_seen().followers),
            Request::Damage => Response::Damage(self.shared.health.borrow().range.clone()),
            // What a node that was cut off knows may be long over: only the leader is asked.
            Request::Members if self.shared.view.borrow().role != Role::Leader => self.not_leader(),
            Request::Members => Response::Members(self.members()),
            Request::ChangeMembers(change) => self.change_members(change).await,
            Request::Trim { before } => self.trim(before).await,
            Request::Cursor { name } => self.cursor(name).await,
            Request::Cursors { after } => self.cursors(after).await,
            Request::AdvanceCursor { name, offset } => self.move_cursor(Move::Advance(name, offset)).await,
            Request::SetCursor { name, offset } => self.move_cursor(Move::Set(name, offset)).await,
            Request::DropCursor { name } => self.move_cursor(Move::Drop(name)).await,
            Request::Snapshots => snapshot_service::list(&self.shared).await,
            Request::DropSnapshot { name } => snapshot_service::drop_name(&self.shared, name).await,
            _ => failed(Failure::refused(ErrorCode::Usage, "this node does not know the request; upgrade it first")),
        }
    }

    async fn subscribe(&self, _caller: Caller, request: SubscribeRequest) -> Result<Opened<NodeFeed>, Failure> {
        let from = start_offset(&self.shared, &request.start, request.skip_trimmed || request.resume).await?;
        // A node that lags must not call an offset too large that others have.
        let next_offset = self.shared.view.borrow().next_offset;
        if from > next_offset && !request.resume {
            // One that is cut off does not know: the caller is told so, and may ask another node.
            let next_offset = self.read_index().await?.max(next_offset);
            if from > next_offset {
                let message = format!("offset {from} is beyond the end; the next record gets offset {next_offset}");
                return Err(Failure::refused(ErrorCode::OutOfRange, message).with("next_offset", next_offset));
            }
        }
        let feed = NodeFeed::new(&self.shared, from, request.until);
        Ok(Opened { from, feed })
    }

    async fn put_snapshot(&self, _caller: Caller, request: PutRequest) -> Result<Box<dyn SnapshotSink>, PutAnswer> {
        snapshot_service::put(&self.shared, &self.uploads, request).await
    }

    async fn get_snapshot(&self, _caller: Caller, request: GetRequest) -> Result<OpenedSnapshot, Failure> {
        snapshot_service::get(&self.shared, &request).await
    }

    async fn backup(&self, _caller: Caller, request: BackupRequest) -> Result<OpenedBackup, Failure> {
        self.open_backup(request).await
    }

    fn leader(&self) -> watch::Receiver<LeaderView> {
        self.shared.leader.clone()
    }
}

/// The offset at which a subscription starts.
pub(super) async fn start_offset(shared: &Shared, start: &Start, below_first: bool) -> Result<u64, Failure> {
    let end = match start {
        Start::End | Start::Last(_) => read_index(shared).await?,
        _ => 0,
    };
    let view = *shared.view.borrow();
    let from = match start {
        Start::Beginning => view.first_offset,
        Start::End => end,
        Start::Last(count) => end.saturating_sub(*count).max(view.first_offset),
        Start::Offset(offset) => *offset,
        Start::Time(ms) => offset_of_time(shared, *ms, &view).map_err(|cause| unreadable(&cause))?,
        _ => return Err(Failure::refused(ErrorCode::Usage, "this node does not know that kind of start")),
    };
    if from < view.first_offset && !below_first {
        let message = format!("offset {from} was trimmed; the first record is at {}", view.first_offset);
        return Err(Failure::refused(ErrorCode::Trimmed, message).with("first_offset", view.first_offset));
    }
    Ok(from)
}

fn offset_of_time(shared: &Shared, ms: u64, view: &View) -> Result<u64, ReadError> {
    let Some(index) = shared.reader.index_of_time(ms)?.filter(|index| *index <= view.readable_index) else {
        return Ok(view.next_offset);
    };
    Ok(shared.reader.frame(index)?.header().base_offset.max(view.first_offset))
}

pub(super) fn unreadable(cause: &ReadError) -> Failure {
    Failure::refused(ErrorCode::Damaged, format!("this node cannot read its log: {cause}; read from another node"))
}

/// Asks the protocol thread; the error means that the node is stopping.
pub(super) async fn ask(
    shared: &Shared,
    input: impl FnOnce(super::input::Reply) -> Input,
) -> Result<Result<Answer, Rejection>, Failure> {
    let stopping = || Failure::unknown(ErrorCode::Unavailable, "the node is stopping; ask another one");
    let (reply, answer) = oneshot::channel();
    shared.inputs.send(input(reply)).await.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())
}

/// An offset past every append acknowledged before the call, readable on this node when it returns.
pub(super) async fn read_index(shared: &Shared) -> Result<u64, Failure> {
    match ask(shared, Input::ReadIndex).await?.map_err(failure)? {
        Answer::ReadIndex { next_offset } => {
            // The answer may be a moment ahead of what the protocol thread has published.
            let mut view = shared.view.clone();
            let _ = view.wait_for(|view| view.next_offset >= next_offset).await;
            Ok(next_offset)
        }
        other => Err(Failure::refused(ErrorCode::Internal, format!("a read was answered {other:?}"))),
    }
}

/// What a node does; one that is no member, not yet or not any more, does nothing that has a name.
fn role_of(role: Role, member: Option<MemberRole>) -> NodeRole {
    match role {
        Role::Leader => NodeRole::Leader,
        _ if member.is_none() => NodeRole::Unknown,
        _ if member == Some(MemberRole::Learner) => NodeRole::Learner,
        Role::Follower => NodeRole::Follower,
        _ => NodeRole::Candidate,
    }
}

/// What is worst about a node.
fn state_of(view: &View) -> NodeState {
    match view {
        View { diverged: true, .. } => NodeState::Damaged,
        View { recovering: true, .. } => NodeState::Recovering,
        View { disk_full: true, .. } => NodeState::DiskFull,
        _ => NodeState::Ok,
    }
}

/// How long the oldest unfinished write has been waiting, at `now` after the start.
fn stalled_ms(view: &View, now: Duration) -> u64 {
    let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    view.unsynced_since.map_or(0, |since| now_us.saturating_sub(since.0) / 1000)
}

pub(super) fn free_bytes(dir: &std::path::Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A subscription's source of frames.
#[derive(Debug)]
pub(super) struct NodeFeed {
    shared: Arc<Shared>,
    view: watch::Receiver<View>,
    feed: Feed,
    until: Option<u64>,
    /// Whether records that were trimmed are wanted all the same, as long as the files have them.
    trimmed_too: bool,
    /// Damage behind the frames given last: the index before it, and what to say of it.
    broken: Option<(u64, Failure)>,
}

impl NodeFeed {
    pub(super) fn new(shared: &Arc<Shared>, from: u64, until: Option<u64>) -> NodeFeed {
        let (shared, view) = (Arc::clone(shared), shared.view.clone());
        NodeFeed { shared, view, feed: Feed::new(from), until, trimmed_too: false, broken: None }
    }

    /// The feed of a state machine that starts with the record `from`. A node with a state machine keeps its files: what is trimmed
    /// for readers is still what its state is made of.
    pub(super) fn of_machine(shared: &Arc<Shared>, from: u64) -> NodeFeed {
        NodeFeed { trimmed_too: true, ..NodeFeed::new(shared, from, None) }
    }

    /// Everything up to this index was given, or holds no record.
    pub(super) fn passed(&self) -> u64 {
        self.broken.as_ref().map_or(self.feed.passed(), |(before, _)| *before)
    }

    /// Reads what is owed next, up to the first frame whose bytes are not what was written: no wrong byte leaves a node.
    fn read(&mut self, view: &View, max_bytes: usize) -> Result<Vec<Frame>, Failure> {
        let shared = &self.shared;
        let frames = self.feed.read(&shared.reader, view, max_bytes).map_err(|cause| {
            if let ReadError::Damaged(damage) = &cause {
                shared.suspects.tell(damage.first_index);
            }
            match cause {
                ReadError::Trimmed { .. } => Failure::refused(ErrorCode::Trimmed, cause.to_string()),
                cause => unreadable(&cause),
            }
        })?;
        let (frames, broken) = whole(frames);
        let Some(index) = broken else { return Ok(frames) };
        shared.suspects.tell(index);
        let message = format!("entry {index} of this node's log is not what was written; read from another node");
        let failure = Failure::refused(ErrorCode::Damaged, message).with("index", index);
        if frames.is_empty() {
            self.broken = Some((index.saturating_sub(1), failure.clone()));
            return Err(failure);
        }
        self.broken = Some((index.saturating_sub(1), failure));
        Ok(frames)
    }
}

impl Source for NodeFeed {
    async fn next(&mut self, max_bytes: usize) -> FeedItem {
        loop {
            if self.until.is_some_and(|until| self.feed.next_offset() >= until) {
                return FeedItem::Done;
            }
            if let Some((_, failure)) = &self.broken {
                return FeedItem::End(failure.clone());
            }
            let mut view = *self.view.borrow_and_update();
            if view.diverged {
                let message = "this node's log differs from the others'; read from another node";
                return FeedItem::End(Failure::refused(ErrorCode::Damaged, message));
            }
            if self.trimmed_too {
                view.first_offset = 0;
            }
            match self.feed.step(&view) {
                Step::Read => match self.read(&view, max_bytes) {
                    Ok(frames) if frames.is_empty() => {}
                    // Trimmed since the view was looked at: the next one says so.
                    Err(failure)
                        if failure.code == ErrorCode::Trimmed
                            && !self.trimmed_too
                            && self.feed.next_offset() < self.view.borrow().first_offset =>
                    {
                        continue;
                    }
                    Ok(frames) => return FeedItem::Frames(frames),
                    Err(failure) => return FeedItem::End(failure),
                },
                Step::Trimmed { from, to } => return FeedItem::Trimmed { from, to },
                Step::CaughtUp { next_offset } => return FeedItem::CaughtUp { next_offset },
                Step::Wait => {}
            }
            match tokio::time::timeout(PROGRESS_EVERY, self.view.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    let message = "the node is stopping; the stream goes on at another one";
                    return FeedItem::End(Failure::refused(ErrorCode::Unavailable, message));
                }
                Err(_) => return FeedItem::Progress { next_offset: self.feed.next_offset() },
            }
        }
    }
}
