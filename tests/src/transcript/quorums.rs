//! Commands about quorums: `committed` and `vote`, answered by the functions that the core itself decides with.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use graven_raft::quorum::{self, Verdict};
use graven_raft::{Index, Membership, NodeId};

use super::parse::{Directive, number};

/// Runs one command; `None` when it is none of these.
pub(crate) fn run(directive: &Directive) -> Option<String> {
    let answer = match directive.command.as_str() {
        "committed" => committed(directive),
        "vote" => vote(directive),
        _ => return None,
    };
    Some(answer.unwrap_or_else(|error| format!("error: {error}\n")))
}

/// Two sets of voters; the second is asked about only when it was named.
struct Halves {
    first: Vec<u64>,
    second: Option<Vec<u64>>,
}

impl Halves {
    fn of(directive: &Directive) -> Result<Halves, String> {
        let ids = |values: Vec<&str>| values.into_iter().map(number).collect::<Result<Vec<_>, _>>();
        let first = ids(directive.values("cfg").unwrap_or_default())?;
        let second = match directive.values("cfgj") {
            Some(values) if values == ["zero"] => Some(Vec::new()),
            values => values.map(ids).transpose()?,
        };
        Ok(Halves { first, second })
    }

    fn everybody(&self) -> BTreeSet<u64> {
        self.first.iter().chain(self.second.iter().flatten()).copied().collect()
    }

    /// What was told of each voter, in the order in which the voters first appear. The place-holder `_` tells nothing.
    fn told<'a>(&self, values: &[&'a str]) -> Result<BTreeMap<u64, &'a str>, String> {
        let everybody = self.everybody();
        if everybody.len() != values.len() {
            let voters: Vec<_> = everybody.iter().map(|id| format!("{id}:{{}}")).collect();
            return Err(format!("mismatched input (explicit or _) for voters map[{}]: {values:?}", voters.join(" ")));
        }
        let mut seen = BTreeSet::new();
        let order = self.first.iter().chain(self.second.iter().flatten()).filter(|&&id| seen.insert(id));
        Ok(order.copied().zip(values.iter().copied()).filter(|told| told.1 != "_").collect())
    }
}

/// A membership whose decisions need both sets. A set without voters puts no condition: it is no half of anything, and a membership
/// never has such a half, so the other one stands alone.
fn joint(first: &[u64], second: &[u64]) -> Membership {
    let (voters, outgoing) = if first.is_empty() { (second, first) } else { (first, second) };
    let outgoing = outgoing.iter().map(|&id| NodeId(id)).collect();
    Membership { outgoing, ..Membership::of_voters(voters.iter().map(|&id| NodeId(id))) }
}

fn committed(directive: &Directive) -> Result<String, String> {
    let halves = Halves::of(directive)?;
    let told = halves.told(&directive.values("idx").unwrap_or_default())?;
    let told: BTreeMap<u64, u64> =
        told.into_iter().map(|(id, value)| Ok((id, number(value)?))).collect::<Result<_, String>>()?;
    let reached = |membership: &Membership, told: &BTreeMap<u64, u64>| {
        let index = quorum::reached(membership, |node| Index(told.get(&node.0).copied().unwrap_or(0)));
        // Without voters there is no bound.
        index.map_or("∞".to_owned(), |index| index.to_string())
    };
    let first = &halves.first;
    let mut text = chart(&halves.everybody(), &told);
    let Some(second) = &halves.second else {
        let index = reached(&joint(first, &[]), &told);
        for (other, how) in [(joint(&[], first), "zero-joint"), (joint(first, first), "self-joint")] {
            note_if_other(&mut text, &index, &reached(&other, &told), how);
        }
        // A voter above the committed index may fall below it without changing it only if it was not needed: lower it to see.
        for (&id, &at) in told.iter().filter(|told| index.parse().is_ok_and(|index: u64| index > *told.1)) {
            for lower in [at - 1, 0] {
                let mut lowered = told.clone();
                lowered.insert(id, lower);
                note_if_other(&mut text, &index, &reached(&joint(first, &[]), &lowered), &format!("lowering {id}"));
            }
        }
        return Ok(format!("{text}{index}\n"));
    };
    let index = reached(&joint(first, second), &told);
    note_if_other(&mut text, &index, &reached(&joint(second, first), &told), "symmetry");
    Ok(format!("{text}{index}\n"))
}

fn note_if_other(text: &mut String, want: &str, got: &str, how: &str) {
    if want != got {
        let _ = writeln!(text, "{got} <-- via {how}");
    }
}

/// One bar a voter: the further its index, the longer; `?` when nothing is known of it.
fn chart(voters: &BTreeSet<u64>, told: &BTreeMap<u64, u64>) -> String {
    if voters.is_empty() {
        return "<empty majority quorum>".to_owned();
    }
    let width = voters.len();
    let index = |id: &u64| told.get(id).copied().unwrap_or(0);
    let mut text = format!("{}    idx\n", " ".repeat(width));
    for id in voters {
        // As long as there are voters that are behind.
        let bar = voters.iter().filter(|other| index(other) < index(id)).count();
        let bar = if told.contains_key(id) {
            format!("{}>{}", "x".repeat(bar), " ".repeat(width - bar))
        } else {
            format!("?{}", " ".repeat(width))
        };
        let _ = writeln!(text, "{bar} {:>5}    (id={id:x})", index(id));
    }
    text
}

fn vote(directive: &Directive) -> Result<String, String> {
    let halves = Halves::of(directive)?;
    let told = halves.told(&directive.values("votes").unwrap_or_default())?;
    if let Some(other) = told.values().find(|value| !["y", "n"].contains(value)) {
        return Err(format!("{other:?} is no vote"));
    }
    let verdict = |first: &[u64], second: &[u64]| {
        let answer = |node: NodeId| told.get(&node.0).map(|&value| value == "y");
        match quorum::verdict(&joint(first, second), answer) {
            // The transcripts let an election without voters be won; for a core it is no election.
            Some(Verdict::Won) | None => "VoteWon",
            Some(Verdict::Pending) => "VotePending",
            Some(Verdict::Lost) => "VoteLost",
        }
    };
    let second = halves.second.as_deref().unwrap_or_default();
    let (straight, turned) = (verdict(&halves.first, second), verdict(second, &halves.first));
    let mut text = String::new();
    note_if_other(&mut text, straight, turned, "symmetry");
    Ok(format!("{text}{straight}\n"))
}
