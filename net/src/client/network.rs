//! The nodes a client knows, its connections to them, and who leads.
//!
//! A client holds connections to the leader and to one more node: when the leader dies, the other one says who follows it.
//! Nodes are learnt from the configuration, from pushed leader views, and from status reports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ClientConfig;
use super::dial::{Link, dial, tls_failure};
use crate::protocol::{ErrorCode, Failure, LeaderView, MAX_MESSAGE_BYTES, Request, Response, StreamKind};
use crate::tls::{TlsFiles, TlsIdentity};
use crate::transport::{self, Mtu};
use crate::wire;

/// Nodes, connections, leader.
#[derive(Debug)]
pub(super) struct Network {
    endpoint: quinn::Endpoint,
    tls: TlsIdentity,
    mtu: Mtu,
    pub(super) timeout: Duration,
    nodes: Mutex<BTreeMap<String, Node>>,
    /// The best view so far: the highest term in which somebody is known to lead.
    view: watch::Sender<LeaderView>,
    /// A connection was made or lost, or a node was learnt.
    changed: Notify,
    closed: AtomicBool,
    /// The largest record the cluster takes, as the node connected last told.
    record_limit: AtomicU32,
}

#[derive(Debug)]
struct Node {
    address: String,
    /// Another address under which nodes know it; tried in turn with the first.
    learnt: Option<String>,
    link: Option<Arc<Link>>,
    /// Held while dialling: one dials, the others wait for the result.
    dialling: Arc<AsyncMutex<()>>,
    failures: u32,
    next_try: Instant,
    failure: Option<Failure>,
    /// Since when, and how often in a row, one side has refused the other's certificate.
    refused: Option<(Instant, u32)>,
}

impl Network {
    pub(super) fn new(config: &ClientConfig) -> Result<Arc<Network>, Failure> {
        let files =
            TlsFiles { ca: config.ca.clone(), certificate: config.certificate.clone(), key: config.key.clone() };
        let tls = TlsIdentity::load(files).map_err(tls_failure)?;
        let network = Network {
            endpoint: open_endpoint(config.mtu)?,
            tls,
            mtu: config.mtu,
            timeout: config.timeout,
            nodes: Mutex::default(),
            view: watch::Sender::new(LeaderView::default()),
            changed: Notify::new(),
            closed: AtomicBool::new(false),
            record_limit: AtomicU32::new(RECORD_LIMIT_UNTOLD),
        };
        config.endpoints.iter().for_each(|(name, address)| network.learn(name, address));
        Ok(Arc::new(network))
    }

    /// The largest record the cluster takes.
    pub(super) fn record_limit(&self) -> usize {
        self.record_limit.load(Ordering::Relaxed) as usize
    }

    /// Names of all nodes known.
    pub(super) fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// The address under which a node is known.
    pub(super) fn address(&self, name: &str) -> Option<String> {
        self.lock().get(name).map(|node| node.address.clone())
    }

    /// Takes in that a node exists. The address that was configured goes first: only it is known to be meant for this client.
    pub(super) fn learn(&self, name: &str, address: &str) {
        let mut nodes = self.lock();
        let full = nodes.len() >= NODES_MAX;
        match nodes.get_mut(name) {
            Some(node) if node.address == address => {}
            Some(node) => node.learnt = Some(address.to_owned()),
            None if !full => {
                nodes.insert(name.to_owned(), Node::new(address));
                self.changed.notify_one();
            }
            None => {}
        }
    }

    /// Who leads, and changes of it.
    pub(super) fn view(&self) -> watch::Receiver<LeaderView> {
        self.view.subscribe()
    }

    /// Takes in what a node says about the leader.
    pub(super) fn merge_view(&self, seen: &LeaderView) {
        let (Some(leader), address) = (&seen.leader, &seen.address) else { return };
        if let Some(address) = address {
            self.learn(leader, address);
        }
        self.view.send_if_modified(|view| {
            let newer = seen.term > view.term || (seen.term == view.term && view.leader.is_none());
            if newer {
                view.clone_from(seen);
            }
            newer
        });
    }

    /// Resolves when another node than `link`'s is known to lead. Views only move to newer terms.
    pub(super) async fn superseded(&self, link: &Link) {
        let mut views = self.view();
        // Ends only when the network does, and it outlives its users.
        let _ = views.wait_for(|view| view.leader.as_ref().is_some_and(|leader| *leader != link.name)).await;
    }

    /// A connection to the node of this name: the one there is, or a new one. While a node was unreachable a moment ago, it
    /// is not tried again and the last failure is given.
    pub(super) async fn link_to(self: &Arc<Self>, name: &str) -> Result<Arc<Link>, Failure> {
        let unknown = |nodes: &BTreeMap<String, Node>| {
            let names: Vec<&str> = nodes.keys().map(String::as_str).collect();
            Failure::refused(ErrorCode::Usage, format!("no node is called {name}; nodes: {}", names.join(", ")))
        };
        let dialling = {
            let nodes = self.lock();
            let node = nodes.get(name).ok_or_else(|| unknown(&nodes))?;
            match node.live() {
                Some(link) => return Ok(link),
                None => node.dialling.clone(),
            }
        };
        let _one = dialling.lock().await;
        let address = {
            let nodes = self.lock();
            let node = nodes.get(name).ok_or_else(|| unknown(&nodes))?;
            match (node.live(), &node.failure) {
                (Some(link), _) => return Ok(link),
                (None, Some(failure)) if Instant::now() < node.next_try => return Err(failure.clone()),
                _ => node.next_address(),
            }
        };
        // Long-lived clients take in renewed certificates like nodes do. Files that are bad now leave the old pair in use.
        if let Err(cause) = self.tls.reload_if_changed() {
            tracing::warn!("certificate files changed and cannot be used: {cause}");
        }
        let dialled = dial(&self.endpoint, &self.tls, self.mtu, name, &address).await;
        let mut nodes = self.lock();
        // Nodes are never forgotten.
        let Some(node) = nodes.get_mut(name) else { return Err(unknown(&nodes)) };
        match dialled {
            Ok(link) => {
                self.record_limit.store(link.max_record_bytes, Ordering::Relaxed);
                let link = Arc::new(link);
                (node.link, node.failure, node.failures, node.refused) = (Some(link.clone()), None, 0, None);
                drop(nodes);
                tokio::spawn(follow(Arc::downgrade(self), link.clone()));
                self.changed.notify_one();
                Ok(link)
            }
            Err(failure) => {
                node.next_try = Instant::now() + backoff(node.failures);
                node.failures += 1;
                node.refused = (failure.code == ErrorCode::Unauthenticated).then(|| {
                    let (since, times) = node.refused.unwrap_or((Instant::now(), 0));
                    (since, times.saturating_add(1))
                });
                node.failure = Some(failure.clone());
                Err(failure)
            }
        }
    }

    /// A connection to the same node for nothing but a snapshot: what its reader, or a slow disk, leaves standing fills the windows of the
    /// whole connection, and appends and subscriptions must not wait behind that.
    pub(super) async fn apart(&self, link: &Link) -> Result<Arc<Link>, Failure> {
        dial(&self.endpoint, &self.tls, self.mtu, &link.name, &link.address).await.map(Arc::new)
    }

    /// A connection to any node, the best informed first: `avoid` is taken only when there is no other.
    pub(super) async fn any_link(self: &Arc<Self>, avoid: Option<&str>) -> Result<Arc<Link>, Failure> {
        self.any_link_but(|name| avoid == Some(name)).await
    }

    /// The same with more than one to avoid.
    pub(super) async fn any_link_but(self: &Arc<Self>, avoid: impl Fn(&str) -> bool) -> Result<Arc<Link>, Failure> {
        let leader = self.view.borrow().leader.clone();
        let rank = |link: &Arc<Link>| {
            let leads = leader.as_ref() == Some(&link.name);
            (!avoid(&link.name), link.view.borrow().term, leads)
        };
        let best = self.lock().values().filter_map(Node::live).max_by_key(rank);
        if let Some(link) = best.filter(|link| !avoid(&link.name)) {
            return Ok(link);
        }
        let mut attempts = JoinSet::new();
        for name in self.names() {
            let network = self.clone();
            attempts.spawn(async move { network.link_to(&name).await });
        }
        let mut avoided = None;
        let mut failure = Failure::refused(ErrorCode::Unavailable, "no node is known");
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                Ok(Ok(link)) if avoid(&link.name) => avoided = Some(link),
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(cause)) if failure.code != ErrorCode::Unauthenticated => failure = cause,
                _ => {}
            }
        }
        avoided.ok_or(failure)
    }

    /// The failure to give up with at once, without waiting for the timeout: the client was closed; or every node was tried,
    /// none is connected, and certificates were refused.
    pub(super) fn verdict(&self) -> Option<Failure> {
        if self.closed.load(Ordering::Relaxed) {
            return Some(Failure::refused(ErrorCode::Unavailable, "the client was closed"));
        }
        let nodes = self.lock();
        if nodes.values().any(|node| node.live().is_some() || node.failure.is_none()) {
            return None;
        }
        let mut failures = nodes.values().filter_map(|node| node.failure.as_ref());
        failures.find(|failure| failure.code == ErrorCode::Unauthenticated).cloned()
    }

    /// As [`Network::verdict`], for what only the leader can do: also when certificates were refused on every way to the
    /// leader and no other node took over.
    pub(super) fn leader_verdict(&self) -> Option<Failure> {
        self.verdict().or_else(|| self.leader_refused(LEADER_REFUSED))
    }

    /// Why the leader cannot be used, when certificates have been refused for `least` on every way to it.
    fn leader_refused(&self, least: Duration) -> Option<Failure> {
        let leader = self.view.borrow().leader.clone()?;
        let nodes = self.lock();
        let node = nodes.get(&leader).filter(|node| node.live().is_none())?;
        let (since, times) = node.refused?;
        let ways = 1 + u32::from(node.learnt.is_some());
        if times < ways || since.elapsed() < least {
            return None;
        }
        let failure = node.failure.clone()?;
        Some(Failure { message: format!("{leader} leads and cannot be used: {}", failure.message), ..failure })
    }

    /// Why there is no leader to talk to, for a message: what the nodes that failed said last, and what the others know.
    pub(super) fn trouble(&self) -> String {
        let nodes = self.lock();
        let told = nodes.iter().filter_map(|(name, node)| match node.live() {
            None => Some(node.failure.as_ref()?.message.clone()),
            Some(link) => Some(match &link.view.borrow().leader {
                None => format!("node {name} at {} answers and knows no leader", link.address),
                Some(leader) if leader == name => format!("node {name} at {} leads and does not answer", link.address),
                Some(leader) => format!("node {name} at {} says that {leader} leads", link.address),
            }),
        });
        let told: Vec<String> = told.collect();
        if told.is_empty() { "no node says that it leads".to_owned() } else { told.join("; ") }
    }

    /// Asks the leader, and goes on asking whoever leads then, until there is an answer or `timeout` has passed. Only for
    /// requests that may be repeated.
    pub(super) async fn ask_leader(self: &Arc<Self>, request: &Request) -> Result<Response, Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut asked = false;
        let mut passing = None;
        loop {
            if let Some(failure) = self.leader_verdict() {
                return Err(failure);
            }
            let attempt = async {
                let leader = self.view.borrow().leader.clone();
                let link = match leader {
                    Some(leader) => self.link_to(&leader).await.ok(),
                    None => self.any_link(None).await.ok().and(None),
                }?;
                asked = true;
                tokio::select! {
                    response = link.unary(request) => response.ok(),
                    () = self.superseded_for_a_while(&link) => None,
                }
            };
            match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Some(Response::NotLeader(view))) => self.merge_view(&view),
                // It passes by itself, says the node.
                Ok(Some(Response::Failed(failure))) if failure.code == ErrorCode::Unavailable => {
                    passing = Some(failure)
                }
                Ok(Some(Response::Failed(failure))) => return Err(failure),
                Ok(Some(response)) => return Ok(response),
                Ok(None) | Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(passing.unwrap_or_else(|| self.gave_up(asked)));
            }
            self.pause().await;
        }
    }

    /// Resolves when a node was silent for a while and another one is known to lead.
    pub(super) async fn superseded_for_a_while(&self, link: &Link) {
        tokio::time::sleep(UNANSWERED).await;
        self.superseded(link).await;
    }

    /// Waits a little, for the leader to change or for another try.
    pub(super) async fn pause(&self) {
        let mut views = self.view();
        views.borrow_and_update();
        let _ = tokio::time::timeout(Duration::from_millis(rand::random_range(20..50)), views.changed()).await;
    }

    /// The failure of a request that ran out of time.
    pub(super) fn gave_up(&self, asked: bool) -> Failure {
        let waited = self.timeout.as_secs_f32();
        if asked {
            return Failure::unknown(ErrorCode::Timeout, format!("no answer within {waited} s; see `graven status`"));
        }
        if let Some(failure) = self.leader_refused(Duration::ZERO) {
            return failure;
        }
        let trouble = self.trouble();
        Failure::refused(ErrorCode::Unavailable, format!("no leader was reached within {waited} s: {trouble}"))
    }

    /// Keeps a connection to the leader and one to a second node. Runs as long as the client.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut views = self.view();
        loop {
            views.borrow_and_update();
            let satisfied = self.connect_enough().await;
            let again = if satisfied { Duration::MAX } else { Duration::from_millis(rand::random_range(100..300)) };
            tokio::select! {
                _ = views.changed() => {}
                () = self.changed.notified() => {}
                () = tokio::time::sleep(again) => {}
            }
        }
    }

    async fn connect_enough(self: &Arc<Self>) -> bool {
        let leader = self.view.borrow().leader.clone();
        let (live, mut dead): (Vec<_>, Vec<_>) = {
            let nodes = self.lock();
            nodes.iter().map(|(name, node)| (name.clone(), node.live().is_some())).partition(|(_, live)| *live)
        };
        let has_leader = leader.as_ref().is_none_or(|leader| live.iter().any(|(name, _)| name == leader));
        // The last leader heard of may lead no more, and nodes that know no leader may be cut off, removed, or not taken in
        // yet: then every node is worth asking.
        let is_sure = leader.as_ref().is_some_and(|leader| self.says_it_leads(leader));
        let all = live.len() + dead.len();
        let wanted = if is_sure { CONNECTIONS.min(all) } else { all };
        if has_leader && live.len() >= wanted {
            return is_sure;
        }
        // The leader first, then whoever answers: all are tried at the same time because dead ones answer late.
        dead.sort_by_key(|(name, _)| leader.as_ref() != Some(name));
        if live.len() >= wanted {
            dead.truncate(1);
        }
        let mut attempts = JoinSet::new();
        for (name, _) in dead {
            let network = self.clone();
            attempts.spawn(async move { network.link_to(&name).await.is_ok() });
        }
        while let Some(attempt) = attempts.join_next().await {
            if attempt.is_ok_and(|connected| connected) {
                // The loop looks again; those still dialling go on in vain, which is why they are not many.
                return false;
            }
        }
        false
    }

    /// Whether the node of this name is connected and says itself that it leads.
    fn says_it_leads(&self, name: &str) -> bool {
        let link = self.lock().get(name).and_then(Node::live);
        link.is_some_and(|link| link.view.borrow().leader.as_deref() == Some(name))
    }

    /// Closes all connections.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.endpoint.close(crate::protocol::CLOSE_DONE.into(), b"done");
    }

    /// Waits until the close has been delivered, or cannot be.
    pub(super) async fn closed(&self) {
        let _ = tokio::time::timeout(CLOSE_DELIVERY, self.endpoint.wait_idle()).await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    fn new(address: &str) -> Node {
        Node {
            address: address.to_owned(),
            learnt: None,
            link: None,
            dialling: Arc::default(),
            failures: 0,
            next_try: Instant::now(),
            failure: None,
            refused: None,
        }
    }

    fn next_address(&self) -> String {
        let learnt = self.learnt.as_ref().filter(|_| self.failures % 2 == 1);
        learnt.unwrap_or(&self.address).clone()
    }

    fn live(&self) -> Option<Arc<Link>> {
        self.link.clone().filter(|link| link.is_live())
    }
}

/// Takes in the leader views a node pushes, until its connection ends.
async fn follow(network: std::sync::Weak<Network>, link: Arc<Link>) {
    let views = async {
        let mut recv = link.connection.accept_uni().await.ok()?;
        let mut kind = [0];
        recv.read_exact(&mut kind).await.ok()?;
        if StreamKind::from_u8(kind[0]) != Some(StreamKind::Leader) {
            return None;
        }
        loop {
            let mut len = [0; 4];
            recv.read_exact(&mut len).await.ok()?;
            let len = usize::try_from(u32::from_le_bytes(len)).ok().filter(|len| *len <= MAX_MESSAGE_BYTES)?;
            let mut bytes = vec![0; len];
            recv.read_exact(&mut bytes).await.ok()?;
            let view = wire::decode::<MAX_MESSAGE_BYTES, LeaderView>(&bytes).ok()?;
            link.view.send_replace(view.clone());
            let known = network.upgrade()?;
            known.merge_view(&view);
            // Whoever led and says so no more leaves its clients to look for another one.
            known.changed.notify_one();
            // Pushed when the leader changed or the members did.
            tokio::spawn(learn_members(network.clone(), link.clone()));
        }
    };
    let _: Option<()> = views.await;
    let reason = link.connection.closed().await;
    tracing::debug!("{}", link.lost(&reason.to_string()));
    if let Some(network) = network.upgrade() {
        network.changed.notify_one();
    }
}

/// Asks a node who the members are: all whom this client knows may be replaced while it is connected. After a moment, so that
/// the many clients of one node do not ask in the middle of an election.
async fn learn_members(network: std::sync::Weak<Network>, link: Arc<Link>) {
    if link.asking_members.swap(true, Ordering::AcqRel) {
        return;
    }
    tokio::time::sleep(Duration::from_millis(rand::random_range(20..200))).await;
    // What changes from here on is worth another question.
    link.asking_members.store(false, Ordering::Release);
    let answer = tokio::time::timeout(MEMBERS_TIMEOUT, link.unary(&Request::NodeStatus)).await;
    let (Some(network), Ok(Ok(Response::NodeStatus(report)))) = (network.upgrade(), answer) else { return };
    for member in &report.members {
        if let Some(address) = &member.address {
            network.learn(&member.name, address);
        }
    }
}

fn open_endpoint(mtu: Mtu) -> Result<quinn::Endpoint, Failure> {
    // One socket for both families where the system can; else IPv4.
    let bound = transport::bind((std::net::Ipv6Addr::UNSPECIFIED, 0).into(), transport::SOCKET_BUFFER_BYTES)
        .or_else(|_| transport::bind((std::net::Ipv4Addr::UNSPECIFIED, 0).into(), transport::SOCKET_BUFFER_BYTES));
    let failed = |cause: std::io::Error| {
        Failure::refused(ErrorCode::Unavailable, format!("cannot open a UDP socket: {cause}; allow this process one"))
    };
    let socket = bound.map_err(failed)?.socket;
    quinn::Endpoint::new(transport::endpoint(mtu, None), None, socket, Arc::new(quinn::TokioRuntime)).map_err(failed)
}

/// How long a node that failed so often is left alone, with jitter so that many clients do not come back together.
fn backoff(failures: u32) -> Duration {
    let base = BACKOFF_MIN.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
    base.mul_f32(rand::random_range(0.5..1.5))
}

/// Connections a client holds at least, where there are as many nodes.
const CONNECTIONS: usize = 2;
/// Assumed until a node has told: what a node takes unless it is configured otherwise.
const RECORD_LIMIT_UNTOLD: u32 = 1 << 20;
/// Nodes a client remembers: more than any cluster has, so that old names do not pile up.
const NODES_MAX: usize = 64;
const BACKOFF_MIN: Duration = Duration::from_millis(25);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A request unanswered for so long, while another node is known to lead, was sent to a leader of the past.
const UNANSWERED: Duration = Duration::from_millis(100);
/// How long a node may take to say who the members are.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(2);
const CLOSE_DELIVERY: Duration = Duration::from_millis(500);
/// A leader whose certificate expires loses its peers within a second, and with them the leadership: so long the others get
/// to elect another one before its refusal counts.
const LEADER_REFUSED: Duration = Duration::from_secs(3);
