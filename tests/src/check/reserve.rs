//! The reserve of a full disk: a segment that records never take, so that votes and control entries find room.

use graven::replica::DiskJob;
use graven_frame::Kind;

use super::{Checked, violated};

/// `node` ran `jobs`; there was a segment in reserve before, and whether there is one `after`.
///
/// # Errors
/// Records alone took it.
pub fn kept(node: u64, before: bool, after: bool, jobs: &[DiskJob]) -> Checked {
    let is_records = |job: &DiskJob| {
        job.hard_state.is_none()
            && job.frames.iter().all(|frame| matches!(frame.header().kind, Kind::Records | Kind::Cursor))
    };
    if before && !after && jobs.iter().all(is_records) {
        return violated(
            "reserve",
            format!("node {node} has no segment left for votes and trims, for the sake of records"),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use graven_raft::{HardState, Term};

    use super::super::testing::{frame, group};
    use super::*;

    #[test]
    fn records_that_take_the_reserve_are_seen() {
        let frames = vec![frame(None, 1, &[group(9, 1, &["a"])])];
        let records = DiskJob { sequence: 1, commit: 0, hard_state: None, frames, chore: None };
        let vote = DiskJob { hard_state: Some(HardState { term: Term(2), vote: None }), ..records.clone() };
        kept(1, true, true, std::slice::from_ref(&records)).expect("it is there");
        kept(1, false, false, std::slice::from_ref(&records)).expect("it was gone before");
        kept(1, true, false, &[records.clone(), vote]).expect("a vote may take it");
        kept(1, true, false, &[records]).expect_err("records may not");
    }
}
