//! What the Ready blocks of an expected text say about each node: role, term, vote and commit index.

use std::collections::BTreeMap;
use std::fmt;

use graven_raft::NodeId;

use super::cluster::role_name;
use super::node::Facts;

/// What was last printed about one node; `None` where nothing was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Told {
    pub(crate) role: Option<String>,
    /// Term, vote (0: none), commit.
    pub(crate) hard: Option<[u64; 3]>,
}

impl Told {
    /// The same from one of our nodes.
    pub(crate) fn of(facts: &Facts) -> Told {
        let vote = facts.hard.vote.map_or(0, |vote| vote.0);
        Told { role: Some(role_name(facts.role).to_owned()), hard: Some([facts.hard.term.0, vote, facts.commit.0]) }
    }

    /// Takes over what `newer` tells.
    pub(crate) fn update(&mut self, newer: Told) {
        self.role = newer.role.or(self.role.take());
        self.hard = newer.hard.or(self.hard);
    }

    /// Only what `other` tells as well.
    pub(crate) fn like(mut self, other: &Told) -> Told {
        self.role = self.role.filter(|_| other.role.is_some());
        self.hard = self.hard.filter(|_| other.hard.is_some());
        self
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = self.role.as_deref().unwrap_or("(role not told)");
        match self.hard {
            Some([term, vote, commit]) => write!(f, "{role} Term:{term} Vote:{vote} Commit:{commit}"),
            None => write!(f, "{role} (term, vote, commit not told)"),
        }
    }
}

/// All that an expected text tells in its Ready blocks. `alone` is the node of a directive that names just one.
pub(crate) fn told(expected: &str, alone: Option<NodeId>) -> BTreeMap<NodeId, Told> {
    let mut all: BTreeMap<NodeId, Told> = BTreeMap::new();
    let mut node = alone;
    for line in expected.lines() {
        if let Some(header) = line.strip_prefix("> ") {
            let id = header.strip_suffix(" handling Ready").and_then(|id| id.parse().ok());
            node = id.map(NodeId);
            continue;
        }
        let (Some(node), Some(newer)) = (node, told_by(line.trim())) else { continue };
        all.entry(node).or_default().update(newer);
    }
    all
}

fn told_by(line: &str) -> Option<Told> {
    if let Some((lead, role)) = line.split_once(" State:") {
        let is_lead = lead.strip_prefix("Lead:").is_some_and(|id| id.parse::<u64>().is_ok());
        return is_lead.then(|| Told { role: Some(role.to_owned()), hard: None });
    }
    let fields = line.strip_prefix("HardState ")?;
    let mut hard = [0; 3];
    for field in fields.split(' ') {
        let (name, value) = field.split_once(':')?;
        let at = ["Term", "Vote", "Commit"].iter().position(|known| *known == name)?;
        hard[at] = value.parse().ok()?;
    }
    Some(Told { role: None, hard: Some(hard) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_about_each_node_is_found() {
        let text = "> 2 handling Ready\n  Ready MustSync=true:\n  Lead:0 State:StateCandidate\n  HardState Term:3 Vote:2 Commit:7\n\
                    > 1 receiving messages\n  2->1 MsgVote Term:3 Log:1/7\n> 2 handling Ready\n  HardState Term:3 Commit:8\n";
        let all = told(text, None);
        let want = Told { role: Some("StateCandidate".to_owned()), hard: Some([3, 0, 8]) };
        assert_eq!(all, BTreeMap::from([(NodeId(2), want)]));
        let alone = told("Ready MustSync=false:\nHardState Term:1 Vote:1 Commit:2\n", Some(NodeId(5)));
        assert_eq!(alone[&NodeId(5)], Told { role: None, hard: Some([1, 1, 2]) });
    }
}
