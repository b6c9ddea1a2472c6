//! Commands about membership changes: `simple`, `enter-joint` and `leave-joint`, answered by the functions that leaders propose by.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use graven_raft::{Change, ChangeError, Membership, NodeId};

use super::parse::Directive;

/// A membership that changes step by step, and when each member's progress began.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    membership: Membership,
    auto_leave: bool,
    /// Where each member's log is first looked at: the number of steps before it came, at least 1.
    next: BTreeMap<NodeId, u64>,
    steps: u64,
}

impl Changes {
    /// Runs one command; `None` when it is none of these.
    pub(crate) fn run(&mut self, directive: &Directive) -> Option<String> {
        if !["simple", "enter-joint", "leave-joint"].contains(&directive.command.as_str()) {
            return None;
        }
        let answer = self.change(directive);
        self.steps += 1;
        Some(match answer {
            Ok(()) => format!("{}\n{}", describe(&self.membership, self.auto_leave), self.describe_progress()),
            Err(error) => format!("{error}\n"),
        })
    }

    fn change(&mut self, directive: &Directive) -> Result<(), String> {
        let changes = parse_changes(&directive.input)?;
        let entering = directive.command == "enter-joint";
        let next = match directive.command.as_str() {
            "simple" => self.membership.simple(&changes),
            "enter-joint" => self.membership.enter_joint(&changes),
            _ if !changes.is_empty() => return Err("this command takes no input".to_owned()),
            _ => self.membership.leave_joint(),
        };
        let next = next.map_err(|error| words_of(error, entering))?;
        // A node that leaves and comes back within one list starts over, unless its old say kept it.
        for change in changes {
            match change {
                Change::Voter(node) | Change::Learner(node) => {
                    self.next.entry(node).or_insert(self.steps.max(1));
                }
                Change::Remove(node) if next.outgoing.contains(&node) => {}
                Change::Remove(node) => {
                    self.next.remove(&node);
                }
            }
        }
        self.auto_leave = entering && directive.value("autoleave") == Some("true");
        self.membership = next;
        let members = self.membership.members();
        self.next.retain(|node, _| members.contains(node));
        Ok(())
    }

    fn describe_progress(&self) -> String {
        let mut text = String::new();
        for node in self.membership.members() {
            // A member without an entry here would be one that the list of changes does not explain.
            let next = self.next.get(&node).map_or("?".to_owned(), u64::to_string);
            let learner = if self.membership.is_voter(node) { "" } else { " learner" };
            let _ = writeln!(text, "{node}: StateProbe match=0 next={next}{learner}");
        }
        text
    }
}

/// `v1 l2 r3`: voter, learner, removed. `u4` tells something about a node that no membership holds, and a node numbered zero
/// is a change that was taken back: neither changes anything.
pub(crate) fn parse_changes(text: &str) -> Result<Vec<Change>, String> {
    let mut changes = Vec::new();
    for token in text.split_whitespace() {
        let Some(id) = token.get(1..).filter(|rest| !rest.is_empty()) else {
            return Err(format!("unknown token {token}"));
        };
        if !token.starts_with(['v', 'l', 'r', 'u']) {
            return Err(format!("unknown input: {token}"));
        }
        let id: u64 = id.parse().map_err(|_| format!("strconv.ParseUint: parsing {id:?}: invalid syntax"))?;
        let node = NodeId(id);
        match &token[..1] {
            _ if id == 0 => {}
            "v" => changes.push(Change::Voter(node)),
            "l" => changes.push(Change::Learner(node)),
            "r" => changes.push(Change::Remove(node)),
            _ => {}
        }
    }
    Ok(changes)
}

fn words_of(error: ChangeError, entering: bool) -> String {
    let words = match error {
        ChangeError::Joint if entering => "config is already joint",
        ChangeError::Joint => "can't apply simple config change in joint config",
        ChangeError::NotJoint => "can't leave a non-joint config",
        ChangeError::NoVoters => "removed all voters",
        ChangeError::NoVotersYet => "can't make a zero-voter config joint",
        ChangeError::SeveralVoters { .. } => "more than one voter changed without entering joint config",
        other => return other.to_string(),
    };
    words.to_owned()
}

/// `voters=(1 2)&&(1) learners=(3) learners_next=(1) autoleave`.
fn describe(membership: &Membership, auto_leave: bool) -> String {
    let list = |ids: Vec<NodeId>| ids.iter().map(|id| format!("{:x}", id.0)).collect::<Vec<_>>().join(" ");
    let all = |ids: &BTreeSet<NodeId>| list(ids.iter().copied().collect());
    let mut text = format!("voters=({})", all(&membership.voters));
    if membership.is_joint() {
        let _ = write!(text, "&&({})", all(&membership.outgoing));
    }
    // A learner that still has its old say becomes one for good only when the joint membership is left.
    let (later, now): (Vec<_>, Vec<_>) =
        membership.learners.iter().partition(|&learner| membership.outgoing.contains(learner));
    for (name, ids) in [("learners", now), ("learners_next", later)] {
        if !ids.is_empty() {
            let _ = write!(text, " {name}=({})", list(ids));
        }
    }
    if auto_leave {
        text += " autoleave";
    }
    text
}
