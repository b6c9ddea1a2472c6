//! All nodes of a transcript, the messages between them, and what each directive does to them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use graven_raft::{Change, Index, LogId, Membership, NodeId, ProgressState, Role, Term};

use super::changes::parse_changes;
use super::node::{ELECTION_TICKS, Node, Options};
use super::parse::{Directive, number};
use super::wire::{Body, Payload, Snapshot, Wire};

/// More rounds than any transcript needs to get quiet; past it something goes round in circles.
const MOST_ROUNDS: usize = 200;

/// A transcript's nodes and what is under way between them.
#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    messages: Vec<Wire>,
    quiet: bool,
    /// Who led each term.
    leaders: BTreeMap<Term, NodeId>,
    /// The term of each entry that a node held to be committed.
    committed: BTreeMap<Index, Term>,
    /// What no cluster may do, and this one did.
    pub(crate) broken: Vec<String>,
}

/// What a directive printed, as far as it is compared.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Printed {
    /// The text, to be compared.
    Text(String),
    /// Nothing that is compared by itself.
    Nothing,
}

impl Cluster {
    /// Runs one directive.
    ///
    /// # Errors
    /// It cannot be run: an unknown command, a node that there is not, an argument that makes no sense.
    pub(crate) fn run(&mut self, directive: &Directive) -> Result<Printed, String> {
        match directive.command.as_str() {
            "raft-state" => return self.print(|cluster| Ok(cluster.describe_states())),
            "raft-log" => {
                let node = directive.first()?;
                return self.print(|cluster| Ok(cluster.node(node)?.disk.describe()));
            }
            "status" => {
                let node = directive.first()?;
                return self.print(|cluster| Ok(describe_progress(cluster.node(node)?)));
            }
            "_breakpoint" => {}
            "log-level" => self.quiet = directive.bare().any(|level| level.eq_ignore_ascii_case("none")),
            "add-nodes" => self.add_nodes(directive)?,
            "campaign" => self.node_mut(directive.first()?)?.campaign(),
            "propose" => self.propose(directive)?,
            "propose-conf-change" => self.propose_change(directive)?,
            "process-ready" => self.each(directive, Cluster::process_ready)?,
            "process-append-thread" => self.each(directive, Cluster::process_append)?,
            "process-apply-thread" => self.each(directive, Cluster::process_apply)?,
            "deliver-msgs" => self.deliver_msgs(directive)?,
            "stabilize" => self.stabilize(&directive.ids()?)?,
            "tick-election" => (0..ELECTION_TICKS).try_for_each(|_| self.tick(directive.first()?))?,
            "tick-heartbeat" => self.tick(directive.first()?)?,
            "set-randomized-election-timeout" => {
                let ticks = number(directive.value("timeout").unwrap_or_default())?;
                self.node_mut(directive.first()?)?.pin_timeout(ticks);
            }
            "transfer-leadership" => {
                let id = |key| number(directive.value(key).unwrap_or_default());
                self.node_mut(id("from")?)?.transfer(NodeId(id("to")?));
            }
            "forget-leader" => {
                if !self.node_mut(directive.first()?)?.forget_leader() {
                    return Err("a node forgets its leader while it writes: not supported".to_owned());
                }
            }
            "report-unreachable" => {
                let (at, of) = pair(directive)?;
                self.node_mut(at)?.report_unreachable(NodeId(of));
            }
            "send-snapshot" => {
                let (from, to) = pair(directive)?;
                let wire = self.node_mut(from)?.snapshot_for(NodeId(to));
                self.messages.push(wire);
            }
            "compact" => {
                let (node, last) = pair(directive)?;
                self.node_mut(node)?.compact(Index(last));
            }
            other => return Err(format!("unknown command {other:?}")),
        }
        Ok(Printed::Nothing)
    }

    /// What must hold between nodes (Raft paper, figure 3): one leader a term, one entry at each committed index.
    pub(crate) fn look(&mut self) {
        for node in &self.nodes {
            let (term, id) = (node.core.term(), node.id);
            if node.core.role() == Role::Leader {
                let first = *self.leaders.entry(term).or_insert(id);
                if first != id {
                    self.broken.push(format!("nodes {first} and {id} lead term {term}"));
                }
            }
            for index in (node.core.base().index.0..=node.core.commit().0).map(Index) {
                let Some(held) = node.core.term_at(index) else { continue };
                let first = *self.committed.entry(index).or_insert(held);
                if first != held {
                    self.broken.push(format!("entry {index} was committed in term {first}; node {id} has {held}"));
                }
            }
        }
    }

    fn print(&self, what: impl FnOnce(&Cluster) -> Result<String, String>) -> Result<Printed, String> {
        if self.quiet { Ok(Printed::Nothing) } else { what(self).map(Printed::Text) }
    }

    pub(crate) fn node(&self, id: u64) -> Result<&Node, String> {
        let at = id.checked_sub(1).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.nodes.get(at)).ok_or_else(|| format!("there is no node {id}"))
    }

    fn node_mut(&mut self, id: u64) -> Result<&mut Node, String> {
        let at = id.checked_sub(1).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.nodes.get_mut(at)).ok_or_else(|| format!("there is no node {id}"))
    }

    fn each(
        &mut self,
        directive: &Directive,
        mut act: impl FnMut(&mut Cluster, u64) -> Result<(), String>,
    ) -> Result<(), String> {
        directive.ids()?.into_iter().try_for_each(|id| act(self, id))
    }

    fn add_nodes(&mut self, directive: &Directive) -> Result<(), String> {
        let set = |key: &str| -> Result<_, String> {
            let ids = directive.values(key).unwrap_or_default().into_iter().map(number);
            ids.map(|id| id.map(NodeId)).collect::<Result<_, _>>()
        };
        let flag = |key: &str| directive.value(key) == Some("true");
        let options = Options {
            inflight: match directive.value("inflight") {
                Some(most) => usize::try_from(number(most)?).map_err(|error| error.to_string())?,
                None => 1 << 30,
            },
            async_writes: flag("async-storage-writes"),
            pre_vote: flag("prevote"),
            check_quorum: flag("checkquorum"),
            one_commit_per_ready: directive.value("max-committed-size-per-ready").is_some_and(|size| size != "0"),
            unchecked_changes: flag("disable-conf-change-validation"),
            lease_reads: directive.value("read-only") == Some("lease-based"),
        };
        let index = Index(directive.value("index").map_or(Ok(0), number)?);
        let bootstrapped = index != Index(0);
        let snapshot = Snapshot {
            id: LogId { term: Term(u64::from(bootstrapped)), index },
            data: directive.value("content").unwrap_or_default().to_owned(),
            membership: Membership { voters: set("voters")?, learners: set("learners")?, ..Membership::default() },
            since: index,
            auto_leave: false,
        };
        let told = !snapshot.membership.members().is_empty() || !snapshot.data.is_empty() || bootstrapped;
        if told && index <= Index(1) {
            // Theirs refuses it: a log that does not begin at 1 needs an entry before it.
            return Ok(());
        }
        for _ in 0..directive.first()? {
            let id = NodeId(self.nodes.len() as u64 + 1);
            self.nodes.push(Node::new(id, options.clone(), snapshot.clone()));
        }
        Ok(())
    }

    fn propose(&mut self, directive: &Directive) -> Result<(), String> {
        let token = directive.bare().nth(1).ok_or("propose needs a node and a token")?.to_owned();
        // Refused proposals are dropped, and the transcript says so in words that are not compared.
        let _ = self.node_mut(directive.first()?)?.propose(Body::Data(token));
        Ok(())
    }

    fn propose_change(&mut self, directive: &Directive) -> Result<(), String> {
        let legacy = directive.value("v1") == Some("true");
        let changes = parse_changes(&directive.input)?;
        let text = directive.input.split_whitespace().collect::<Vec<_>>().join(" ");
        let transition = directive.value("transition").unwrap_or("auto");
        let joint = transition != "auto" || changes.len() > 1;
        let node = self.node_mut(directive.first()?)?;
        let current = node.core.membership();
        let auto_leave = joint && transition != "explicit";
        let next = next_membership(current, &changes, joint && !(changes.is_empty() && transition == "auto"));
        let empty = Body::Data(String::new());
        let body = match next {
            Some(membership) => Body::Change { legacy, text, auto_leave, membership: Some(membership) },
            None if node.options.unchecked_changes => Body::Change { legacy, text, auto_leave, membership: None },
            None => empty,
        };
        let _ = node.propose(body);
        Ok(())
    }

    fn tick(&mut self, id: u64) -> Result<(), String> {
        self.node_mut(id)?.tick();
        Ok(())
    }

    fn process_ready(&mut self, id: u64) -> Result<(), String> {
        let leaving = self.node_mut(id)?.process_ready();
        self.messages.extend(leaving);
        Ok(())
    }

    fn process_append(&mut self, id: u64) -> Result<(), String> {
        let answers = self.node_mut(id)?.process_append();
        self.messages.extend(answers.into_iter().flatten());
        Ok(())
    }

    fn process_apply(&mut self, id: u64) -> Result<(), String> {
        let answers = self.node_mut(id)?.process_apply();
        self.messages.extend(answers.into_iter().flatten());
        Ok(())
    }

    fn deliver_msgs(&mut self, directive: &Directive) -> Result<(), String> {
        let kind = directive.value("type").map(str::to_owned);
        for id in directive.ids()? {
            self.deliver_to(NodeId(id), kind.as_deref())?;
        }
        for id in directive.values("drop").unwrap_or_default() {
            let to = NodeId(number(id)?);
            self.messages
                .retain(|wire| wire.to != to || wire.from == to || kind.as_deref().is_some_and(|k| k != wire.kind));
        }
        Ok(())
    }

    fn deliver_to(&mut self, to: NodeId, kind: Option<&str>) -> Result<usize, String> {
        let ours = |wire: &Wire| wire.to == to && kind.is_none_or(|kind| kind == wire.kind);
        let (now, later) = std::mem::take(&mut self.messages).into_iter().partition::<Vec<_>, _>(ours);
        self.messages = later;
        let count = now.len();
        for wire in now {
            self.deliver(wire)?;
        }
        Ok(count)
    }

    fn deliver(&mut self, wire: Wire) -> Result<(), String> {
        if let Payload::Installed(term) = wire.payload {
            return self.deliver_installed(wire.to, wire.from, term);
        }
        // A proposal that is refused on arrival is dropped there.
        let _ = self.node_mut(wire.to.0)?.deliver(wire);
        Ok(())
    }

    /// Our leader asks a follower what it has after an install; theirs takes its word. The question and its answer travel in no time.
    fn deliver_installed(&mut self, leader: NodeId, follower: NodeId, term: Term) -> Result<(), String> {
        let Some(probe) = self.node_mut(leader.0)?.on_installed(follower, term) else { return Ok(()) };
        self.node_mut(follower.0)?.deliver(probe)?;
        if let Some(answer) = self.node_mut(follower.0)?.take_answer(leader) {
            self.node_mut(leader.0)?.deliver(answer)?;
        }
        Ok(())
    }

    /// Four phases, again and again until nothing happens: each node's Ready, messages, storage, state machine.
    fn stabilize(&mut self, ids: &[u64]) -> Result<(), String> {
        let all: Vec<u64> = (1..=self.nodes.len() as u64).collect();
        let ids = if ids.is_empty() { &all } else { ids };
        for _ in 0..MOST_ROUNDS {
            let mut busy = false;
            for &id in ids {
                if self.node(id)?.has_ready() {
                    self.process_ready(id)?;
                    busy = true;
                }
            }
            for &id in ids {
                busy |= self.deliver_to(NodeId(id), None)? > 0;
            }
            for &id in ids {
                while !self.node(id)?.append_work.is_empty() {
                    self.process_append(id)?;
                    busy = true;
                }
            }
            for &id in ids {
                while !self.node(id)?.apply_work.is_empty() {
                    self.process_apply(id)?;
                    busy = true;
                }
            }
            if !busy {
                return Ok(());
            }
        }
        Err(format!("not quiet after {MOST_ROUNDS} rounds"))
    }

    fn describe_states(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let voter = if node.disk.newest().membership.is_voter(node.id) { "(Voter)" } else { "(Non-Voter)" };
            let (role, leader) = (role_name(node.facts().role), node.core.leader().map_or(0, |leader| leader.0));
            let _ = writeln!(text, "{}: {role} {voter} Term:{} Lead:{leader}", node.id, node.core.term());
        }
        text
    }
}

fn pair(directive: &Directive) -> Result<(u64, u64), String> {
    match directive.ids()?[..] {
        [first, second] => Ok((first, second)),
        _ => Err(format!("{} needs two numbers", directive.command)),
    }
}

/// The membership that `changes` make of `current`, by the functions that leaders propose by; none at all leave a joint one.
fn next_membership(current: &Membership, changes: &[Change], joint: bool) -> Option<Membership> {
    let next = match (changes.is_empty(), joint) {
        (true, false) => current.leave_joint(),
        (_, true) => current.enter_joint(changes),
        (false, false) => current.simple(changes),
    };
    next.ok()
}

pub(crate) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Follower => "StateFollower",
        Role::PreCandidate => "StatePreCandidate",
        Role::Candidate => "StateCandidate",
        Role::Leader => "StateLeader",
    }
}

/// A leader's view of everybody, itself included; `ok` from anybody else.
fn describe_progress(node: &Node) -> String {
    if node.core.role() != Role::Leader {
        return "ok\n".to_owned();
    }
    let mut text = String::new();
    let membership = &node.disk.newest().membership;
    for member in membership.members() {
        let learner = if membership.is_voter(member) { "" } else { " learner" };
        let Some(one) = node.core.progress().find(|one| one.node == member) else {
            let matched = node.core.durable_index();
            let _ = writeln!(text, "{member}: StateReplicate match={matched} next={}{learner}", matched.next());
            continue;
        };
        let outstanding = one.inflight_bytes;
        let full = usize::try_from(outstanding).is_ok_and(|count| count >= node.options.inflight);
        let pending = node.sent_snapshots.get(&member).copied().unwrap_or_default();
        let (state, next, paused) = match one.state {
            ProgressState::Probe => ("StateProbe", one.next, outstanding > 0),
            ProgressState::Snapshot => ("StateSnapshot", pending.next(), true),
            ProgressState::Replicate => ("StateReplicate", one.next, full),
        };
        let _ = write!(text, "{member}: {state} match={} next={next}{learner}", one.matched);
        if paused {
            text += " paused";
        }
        if one.state == ProgressState::Snapshot {
            let _ = write!(text, " pendingSnap={pending}");
        }
        if one.heard <= node.active_since {
            text += " inactive";
        }
        if one.state == ProgressState::Replicate && outstanding > 0 {
            let _ = write!(text, " inflight={outstanding}{}", if full { "[full]" } else { "" });
        }
        text.push('\n');
    }
    text
}
