//! Which membership may follow which.
//!
//! A membership is in force from the moment it stands in the log and until it is truncated (Raft paper 6). One change at a
//! time: the entry before must be committed in the leader's own term, so that C-new never follows a joint membership that
//! could still vanish, and no two changes overlap (thesis 4.1, and the erratum of 2015 on single-server changes).

use crate::errors::ProposeError;
use crate::types::Membership;

/// Judges `next` as the successor of `current`.
///
/// | current | next    | allowed when |
/// |---------|---------|---|
/// | plain   | plain   | at most one voter comes or goes (thesis 4.1: any two majorities meet); learners come and go freely |
/// | plain   | joint   | outgoing = current voters |
/// | joint   | plain   | same voters |
/// | joint   | joint   | never |
///
/// A learner may stand among the outgoing voters: it is one that votes until the joint membership is left.
pub(crate) fn judge(current: &Membership, next: &Membership) -> Result<(), ProposeError> {
    let refuse = |reason| Err(ProposeError::MembershipUnsafe { reason });
    if next.voters.is_empty() {
        return refuse("it has no voters");
    }
    if next.learners.iter().any(|&learner| next.voters.contains(&learner)) {
        return refuse("a node is voter and learner at once");
    }
    match (current.is_joint(), next.is_joint()) {
        (false, false) if next.voters.symmetric_difference(&current.voters).count() > 1 => {
            refuse("several voters change without a joint membership")
        }
        (true, false) if next.voters != current.voters => refuse("it leaves the joint membership with other voters"),
        (false, true) if next.outgoing != current.voters => refuse("the outgoing voters are not those in force"),
        (true, true) => refuse("a change is under way already"),
        (false, _) | (true, false) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    fn membership(voters: &[u64], outgoing: &[u64]) -> Membership {
        Membership {
            voters: voters.iter().map(|&id| NodeId(id)).collect(),
            outgoing: outgoing.iter().map(|&id| NodeId(id)).collect(),
            ..Membership::default()
        }
    }

    #[test]
    fn several_voters_change_only_through_a_joint_membership() {
        let old = membership(&[1, 2, 3], &[]);
        let joint = membership(&[1, 2, 4], &[1, 2, 3]);
        let new = membership(&[1, 2, 4], &[]);
        assert!(judge(&old, &new).is_err());
        assert!(judge(&old, &joint).is_ok());
        assert!(judge(&joint, &new).is_ok());
        assert!(judge(&joint, &old).is_err());
        assert!(judge(&joint, &joint).is_err());
        assert!(judge(&old, &membership(&[1, 2, 4], &[1, 2])).is_err());
        assert!(judge(&old, &membership(&[], &[1, 2, 3])).is_err());
        assert!(judge(&old, &membership(&[1, 2, 3, 4], &[])).is_ok());
        assert!(judge(&old, &membership(&[1, 3], &[])).is_ok());
    }
}
