//! Which members may follow which: the pure half of a membership change.
//!
//! A change of voters goes through a joint membership (Raft paper 6; thesis 4.3): the members that [`Members::changed`] gives
//! have members who join or leave; when they are committed the leader goes on to [`Members::settled`]. A node always begins
//! as a learner and votes when it has caught up, so that it never counts before it holds the log (thesis 4.2.1). Whether
//! it has caught up, and whether enough of the new voters are alive, is for the leader to judge, who sees them.

pub use graven_net::protocol::{MemberChange, NewMember};

use super::{Member, MemberRole, Members};

/// Why a change cannot be made; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeRefused {
    /// Nobody is called so.
    #[error("no member is called {name}; the members are {}", .known.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// Who there is.
        known: Vec<String>,
    },
    /// Another node has the name.
    #[error("a member is called {name} already, with id {id}; make the new node's directory with another name")]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        id: u64,
    },
    /// Two nodes at one address.
    #[error("{address} is the address of {name}; each node needs its own")]
    AddressTaken {
        /// The address.
        address: String,
        /// Whose it is.
        name: String,
    },
    /// Ids are given once, in order: by an id a node knows whether it is told of somebody newer, or of somebody removed.
    #[error(
        "id {id} is not above {newest}, the newest id of this cluster; make the node's directory again with `graven init --join`"
    )]
    IdUsed {
        /// The id.
        id: u64,
        /// The newest id.
        newest: u64,
    },
    /// Only learners are promoted.
    #[error("{name} is {role} and not a learner; add a new node first with `graven member add`")]
    NotALearner {
        /// The member.
        name: String,
        /// What it is.
        role: &'static str,
    },
    /// A cluster without voters decides nothing any more.
    #[error("{name} is the only voter; promote another member first")]
    LastVoter {
        /// The member.
        name: String,
    },
    /// A vote for a node that lacks entries would make appends wait for it.
    #[error("{name} is {entries} entries behind{}; it gets a vote when it has caught up", if *.alive { "" } else { " and does not answer" })]
    Behind {
        /// The learner.
        name: String,
        /// Entries that are missing there.
        entries: u64,
        /// Whether it was heard of lately.
        alive: bool,
    },
    /// The voters that would be left could not decide.
    #[error(
        "only {alive} of the {voters} voters there would be are alive, {needed} are needed; start or remove a dead one first"
    )]
    NoQuorum {
        /// Voters that were heard of lately.
        alive: usize,
        /// Voters after the change.
        voters: usize,
        /// Their majority.
        needed: usize,
    },
    /// The members do not fit into an entry.
    #[error("the members cannot be stored: {reason}")]
    Encoding {
        /// Why not.
        reason: String,
    },
    /// A wish of a newer version.
    #[error("this node does not know that change; upgrade it first")]
    NotKnown,
    /// More than [`VOTERS_MAX`] or [`MEMBERS_MAX`].
    #[error("the cluster would have {count} {what}, the limit is {limit}; remove a member first")]
    TooMany {
        /// Voters or members.
        what: &'static str,
        /// How many.
        count: usize,
        /// At most.
        limit: usize,
    },
}

/// Voters at most: more only make every append slower.
pub const VOTERS_MAX: usize = 7;
/// Members at most: the voters, and as many learners, as when all nodes of a cluster are replaced.
pub const MEMBERS_MAX: usize = 2 * VOTERS_MAX;

impl Members {
    /// The members after `change`, or as far on the way as one entry goes. Equal to these when the change is made already.
    ///
    /// # Errors
    /// [`ChangeRefused`]. These members must not be joint: one change at a time.
    pub fn changed(&self, change: &MemberChange) -> Result<Members, ChangeRefused> {
        let mut next = self.clone();
        match change {
            MemberChange::Add(new) => next.add(new, None)?,
            MemberChange::AddInPlace { old, new } => next.add(new, Some(old))?,
            MemberChange::Promote { name } => next.promote(name)?,
            MemberChange::Remove { name } => {
                // Who is not there any more was removed, maybe by this very wish: its answer was lost.
                let Some(member) = self.by_name(name) else { return Err(self.unknown(name)) };
                next.remove(member)?;
            }
            MemberChange::Replace { old, new } => {
                let is_done = self.by_name(old).is_none() && self.by_name(new).is_some_and(Member::votes);
                if !is_done {
                    let Some(old) = self.by_name(old) else { return Err(self.unknown(old)) };
                    next.promote(new)?;
                    next.remove(old)?;
                }
            }
            _ => return Err(ChangeRefused::NotKnown),
        }
        next.check_size()?;
        Ok(next)
    }

    /// What follows a joint membership: who joins is a voter, who leaves is gone.
    #[must_use]
    pub fn settled(&self) -> Members {
        let mut next = self.clone();
        for member in &mut next.nodes {
            member.role = match member.role {
                MemberRole::Joining => MemberRole::Voter,
                MemberRole::Leaving => MemberRole::Removed,
                role => role,
            };
        }
        next.forget_removed();
        next
    }

    /// `in_place_of`: a member whose address it may have, because it runs where that one ran.
    fn add(&mut self, new: &NewMember, in_place_of: Option<&str>) -> Result<(), ChangeRefused> {
        if let Some(known) = self.by_id(new.id) {
            if known.is(new) {
                return Ok(());
            }
            return Err(ChangeRefused::IdUsed { id: new.id, newest: self.newest_id() });
        }
        if let Some(other) = self.by_name(&new.name) {
            return Err(ChangeRefused::NameTaken { name: new.name.clone(), id: other.id });
        }
        for address in [&new.peer_address, &new.client_address] {
            let mut others = self.present().filter(|other| in_place_of != Some(other.name.as_str()));
            if let Some(other) = others.find(|other| [&other.peer_address, &other.client_address].contains(&address)) {
                return Err(ChangeRefused::AddressTaken { address: address.clone(), name: other.name.clone() });
            }
        }
        if new.id <= self.newest_id() {
            return Err(ChangeRefused::IdUsed { id: new.id, newest: self.newest_id() });
        }
        self.nodes.push(Member {
            id: new.id,
            name: new.name.clone(),
            peer_address: new.peer_address.clone(),
            client_address: new.client_address.clone(),
            incarnation: new.incarnation,
            role: MemberRole::Learner,
        });
        self.forget_removed();
        Ok(())
    }

    fn promote(&mut self, name: &str) -> Result<(), ChangeRefused> {
        let Some(member) =
            self.nodes.iter_mut().find(|member| member.name == name && member.role != MemberRole::Removed)
        else {
            return Err(self.unknown(name));
        };
        match member.role {
            MemberRole::Learner => member.role = MemberRole::Joining,
            MemberRole::Voter => {}
            role => return Err(ChangeRefused::NotALearner { name: name.to_owned(), role: role.as_str() }),
        }
        Ok(())
    }

    fn remove(&mut self, gone: &Member) -> Result<(), ChangeRefused> {
        for member in self.nodes.iter_mut().filter(|member| member.id == gone.id) {
            member.role = if member.role == MemberRole::Learner { MemberRole::Removed } else { MemberRole::Leaving };
        }
        if !self.nodes.iter().any(|member| matches!(member.role, MemberRole::Voter | MemberRole::Joining)) {
            return Err(ChangeRefused::LastVoter { name: gone.name.clone() });
        }
        self.forget_removed();
        Ok(())
    }

    /// Who is gone stays in the list only while no newer node is in it.
    fn forget_removed(&mut self) {
        let newest = self.newest_id();
        self.nodes.retain(|member| member.role != MemberRole::Removed || member.id == newest);
    }

    fn check_size(&self) -> Result<(), ChangeRefused> {
        let (voters, members) = (self.membership().voters.len(), self.present().count());
        let too_many = |what, count, limit| Err(ChangeRefused::TooMany { what, count, limit });
        match (voters > VOTERS_MAX, members > MEMBERS_MAX) {
            (true, _) => too_many("voters", voters, VOTERS_MAX),
            (_, true) => too_many("members", members, MEMBERS_MAX),
            _ => Ok(()),
        }
    }

    fn unknown(&self, name: &str) -> ChangeRefused {
        let known = self.present().map(|member| member.name.clone()).collect();
        ChangeRefused::Unknown { name: name.to_owned(), known }
    }
}

impl Member {
    /// Whether it has a vote that stays.
    #[must_use]
    pub fn votes(&self) -> bool {
        matches!(self.role, MemberRole::Voter | MemberRole::Joining)
    }

    fn is(&self, new: &NewMember) -> bool {
        self.id == new.id
            && self.name == new.name
            && self.incarnation == new.incarnation
            && self.peer_address == new.peer_address
            && self.client_address == new.client_address
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn new_member(id: u64) -> NewMember {
        NewMember {
            id,
            name: format!("n{id}"),
            peer_address: format!("h{id}:1"),
            client_address: format!("h{id}:2"),
            incarnation: [id as u8; 16],
        }
    }

    fn voters(count: u64) -> Members {
        let mut members = Members::default();
        for id in 1..=count {
            members.add(&new_member(id), None).expect("new");
            members.nodes.last_mut().expect("just added").role = MemberRole::Voter;
        }
        members
    }

    fn promote(name: &str) -> MemberChange {
        MemberChange::Promote { name: name.to_owned() }
    }

    fn remove(name: &str) -> MemberChange {
        MemberChange::Remove { name: name.to_owned() }
    }

    fn replace(old: &str, new: &str) -> MemberChange {
        MemberChange::Replace { old: old.to_owned(), new: new.to_owned() }
    }

    fn roles(members: &Members) -> Vec<(u64, MemberRole)> {
        members.nodes.iter().map(|member| (member.id, member.role)).collect()
    }

    #[test]
    fn a_node_comes_as_a_learner_and_votes_through_a_joint_membership() {
        let with = voters(3).changed(&MemberChange::Add(new_member(4))).expect("new");
        assert!(!with.is_joint());
        assert_eq!(with.by_id(4).map(|member| member.role), Some(MemberRole::Learner));
        let joint = with.changed(&promote("n4")).expect("a learner");
        assert_eq!(joint.membership().voters.len(), 4);
        assert_eq!(joint.membership().outgoing.len(), 3);
        assert!(!joint.settled().is_joint());
        assert_eq!(joint.settled().membership().voters.len(), 4);
    }

    #[test]
    fn a_replacement_swaps_in_one_step() {
        let with = voters(3).changed(&MemberChange::Add(new_member(4))).expect("new");
        let joint = with.changed(&replace("n1", "n4")).expect("a learner");
        let both = joint.membership();
        assert_eq!((both.voters.len(), both.outgoing.len()), (3, 3));
        let settled = joint.settled();
        assert_eq!(roles(&settled), [(2, MemberRole::Voter), (3, MemberRole::Voter), (4, MemberRole::Voter)]);
    }

    #[test]
    fn a_wish_that_is_done_already_changes_nothing() {
        let with = voters(3).changed(&MemberChange::Add(new_member(4))).expect("new");
        assert_eq!(with.changed(&MemberChange::Add(new_member(4))).expect("the same"), with);
        assert_eq!(with.changed(&promote("n1")).expect("votes"), with);
        let replaced = with.changed(&replace("n1", "n4")).expect("a learner").settled();
        assert_eq!(replaced.changed(&replace("n1", "n4")).expect("done"), replaced);
    }

    #[test]
    fn an_id_is_never_given_twice() {
        let with = voters(3).changed(&MemberChange::Add(new_member(9))).expect("new");
        let without = with.changed(&remove("n9")).expect("a learner");
        assert!(without.by_name("n9").is_none());
        assert_eq!(without.newest_id(), 9);
        let again = NewMember { name: "n9b".into(), ..new_member(9) };
        assert!(matches!(without.changed(&MemberChange::Add(again)), Err(ChangeRefused::IdUsed { newest: 9, .. })));
        let newer = without.changed(&MemberChange::Add(new_member(10))).expect("new");
        assert_eq!(newer.nodes.len(), 4, "the newest id speaks for the older one");
    }

    #[test]
    fn a_node_may_take_over_the_address_of_the_one_that_it_replaces_and_of_nobody_else() {
        let at_n2 = NewMember { id: 4, name: "n2-2".into(), ..new_member(2) };
        let in_place_of =
            |old: &str| voters(3).changed(&MemberChange::AddInPlace { old: old.to_owned(), new: at_n2.clone() });
        assert!(matches!(
            voters(3).changed(&MemberChange::Add(at_n2.clone())),
            Err(ChangeRefused::AddressTaken { .. })
        ));
        assert!(matches!(in_place_of("n3"), Err(ChangeRefused::AddressTaken { .. })));
        let with = in_place_of("n2").expect("its own host");
        let settled = with.changed(&replace("n2", "n2-2")).expect("a learner").settled();
        assert_eq!(roles(&settled), [(1, MemberRole::Voter), (3, MemberRole::Voter), (4, MemberRole::Voter)]);
    }

    #[test]
    fn names_addresses_and_sizes_are_checked() {
        let cluster = voters(3);
        let add = |new| cluster.changed(&MemberChange::Add(new));
        assert!(matches!(add(NewMember { name: "n1".into(), ..new_member(4) }), Err(ChangeRefused::NameTaken { .. })));
        let address = NewMember { peer_address: "h2:2".into(), ..new_member(4) };
        assert!(matches!(add(address), Err(ChangeRefused::AddressTaken { .. })));
        assert!(matches!(cluster.changed(&promote("n7")), Err(ChangeRefused::Unknown { .. })));
        assert!(matches!(cluster.changed(&remove("n7")), Err(ChangeRefused::Unknown { .. })));
        assert!(matches!(voters(1).changed(&remove("n1")), Err(ChangeRefused::LastVoter { .. })));
        let full = voters(VOTERS_MAX as u64).changed(&MemberChange::Add(new_member(8))).expect("a learner");
        assert!(matches!(full.changed(&promote("n8")), Err(ChangeRefused::TooMany { .. })));
        assert!(full.changed(&replace("n1", "n8")).is_ok());
    }

    proptest! {
        /// Thesis 4.1, 4.3: whatever is asked for, each membership shares a voter of every majority with the one before.
        #[test]
        fn every_step_is_one_that_the_core_allows(wishes in proptest::collection::vec((0u8..4, 1u64..9, 1u64..9), 0..40)) {
            let mut members = voters(3);
            for (kind, a, b) in wishes {
                let (old, new) = (format!("n{a}"), format!("n{b}"));
                let change = match kind {
                    0 => MemberChange::Add(new_member(a)),
                    1 => promote(&new),
                    2 => remove(&old),
                    _ => replace(&old, &new),
                };
                let newest = members.newest_id();
                let Ok(next) = members.changed(&change) else { continue };
                prop_assert!(next.newest_id() >= newest);
                let (before, after) = (members.membership(), next.membership());
                prop_assert!(!after.voters.is_empty());
                if before.voters != after.voters {
                    prop_assert_eq!(&after.outgoing, &before.voters);
                }
                members = if next.is_joint() { next.settled() } else { next };
                prop_assert!(!members.is_joint());
                prop_assert_eq!(&members.membership().voters, &after.voters);
            }
        }
    }
}
