//! What must be on disk before a word leaves, and what a report from the disk is worth.

use graven_raft::*;

use crate::harness::*;

fn position(outputs: &[Output], wanted: impl Fn(&Output) -> bool) -> usize {
    outputs.iter().position(wanted).unwrap_or_else(|| panic!("not among {outputs:?}"))
}

/// Raft paper, figure 2 ("updated on stable storage before responding to RPCs"): an acknowledgement in a new term leaves after that
/// term is durable, even when it brings no entry.
#[test]
fn a_new_term_is_durable_before_the_first_acknowledgement_in_it() {
    let mut core = core_of(3, &[1], hard(1));
    core.receive_append(Tick(1), n(2), head(4, id(1, 1), 0), vec![]);
    let outputs = drain(&mut core);
    let term = Some(HardState { term: Term(4), vote: None });
    let persist = position(&outputs, |output| matches!(output, Output::Persist(write) if write.hard_state == term));
    let reply = position(&outputs, |output| {
        matches!(output, Output::SendAfterPersist { message: Message::AppendReply { success: true, .. }, .. })
    });
    assert!(persist < reply);
    assert!(
        !outputs
            .iter()
            .any(|output| matches!(output, Output::Send { message: Message::AppendReply { success: true, .. }, .. }))
    );
}

/// Term and entries of one append are in one order: the term is on disk no later than the entries that carry it.
#[test]
fn a_term_is_written_no_later_than_the_entries_of_it() {
    let mut core = core_of(3, &[1], hard(1));
    core.receive_append(Tick(1), n(2), head(4, id(1, 1), 0), vec![entry(2, 4)]);
    let outputs = drain(&mut core);
    let writes: Vec<&Write> = outputs
        .iter()
        .filter_map(|output| if let Output::Persist(write) = output { Some(write) } else { None })
        .collect();
    let term = writes.iter().position(|write| write.hard_state.is_some()).expect("the term is written");
    let entries = writes.iter().position(|write| write.entries.is_some()).expect("the entry is written");
    assert!(term <= entries, "{writes:?}");
}

/// A vote that is repeated because its reply was lost waits for the disk like the first one.
#[test]
fn a_vote_given_again_still_waits_for_the_disk() {
    let mut core = core_of(3, &[1], hard(1));
    let ask = Message::Vote { term: Term(2), last: id(1, 1), transfer: false };
    for _ in 0..2 {
        core.receive(Tick(1), n(2), ask.clone());
    }
    let outputs = drain(&mut core);
    let given = |output: &&Output| {
        matches!(output, Output::SendAfterPersist { message: Message::VoteReply { granted: true, .. }, .. })
    };
    assert_eq!(outputs.iter().filter(given).count(), 2);
    assert!(
        !outputs
            .iter()
            .any(|output| matches!(output, Output::Send { message: Message::VoteReply { granted: true, .. }, .. }))
    );
}

/// A write of term and vote alone is reported like any other, with the term and the end of the log at that moment; the candidate's
/// own vote, and its leadership, rest on that report.
#[test]
fn a_write_of_hard_state_alone_is_reported_and_counts() {
    let mut core = core_of(3, &[1, 1], hard(1));
    core.tick(Tick(400 * MS));
    core.receive(Tick(400 * MS), n(2), Message::PreVoteReply { term: Term(1), campaign: Term(2), granted: true });
    let vote = Some(HardState { term: Term(2), vote: Some(n(1)) });
    let write = Write { hard_state: vote, entries: None, term: Term(2), last: Index(2) };
    assert!(drain(&mut core).contains(&Output::Persist(write)));
    assert_eq!(core.oldest_unsynced(), Some(Tick(400 * MS)));
    for voter in [2, 3] {
        core.receive(Tick(401 * MS), n(voter), Message::VoteReply { term: Term(2), granted: true });
    }
    assert_eq!(core.role(), Role::Candidate, "two of three voted for it, and its own vote is not durable");
    core.durable(Tick(402 * MS), Term(2), Index(2));
    assert_eq!((core.role(), core.oldest_unsynced()), (Role::Leader, Some(Tick(402 * MS))), "the no-op is next");
}

/// While a write of term and vote is under way nobody stands for election, whatever its timer says.
#[test]
fn no_candidacy_while_a_vote_is_not_durable() {
    let mut core = core_of(3, &[1], hard(1));
    core.receive(Tick(1), n(2), Message::Vote { term: Term(2), last: id(1, 1), transfer: false });
    for step in 1..10 {
        core.tick(Tick(step * 90 * MS));
        assert_eq!((core.role(), core.term()), (Role::Follower, Term(2)));
    }
}

/// Reports are taken in the order of the writes. One that comes out of order vouches for nothing.
#[test]
fn reports_are_taken_in_order_only() {
    let mut core = core_of(3, &[1], hard(2));
    core.receive_append(Tick(1), n(2), head(2, id(1, 1), 0), vec![entry(2, 2)]);
    core.receive_append(Tick(1), n(2), head(2, id(2, 2), 0), vec![entry(3, 2)]);
    let _ = drain(&mut core);
    core.durable(Tick(2), Term(2), Index(3));
    assert_eq!(core.durable_index(), Index(1), "the write of entry 2 is still under way");
    assert!(matches!(drain(&mut core)[..], [Output::Alarm(Alarm::Malformed { .. })]));
    core.durable(Tick(3), Term(2), Index(2));
    core.durable(Tick(4), Term(2), Index(3));
    assert_eq!(core.durable_index(), Index(3));
}

/// What a leader wrote, lost to the next leader, and was told of late: a leader again, it counts none of it.
#[test]
fn a_leader_of_a_later_term_does_not_count_a_report_of_an_earlier_one() {
    let mut core = core_of(3, &[1], hard(1));
    lead(&mut core, Tick(400 * MS));
    let outputs = drain(&mut core);
    sync(&mut core, Tick(400 * MS), &outputs);
    core.propose(Tick(401 * MS), records()).unwrap();
    let _ = drain(&mut core);
    // Entry 3 of term 2 is being written when the leader of term 3 puts another in its place.
    core.receive_append(Tick(402 * MS), n(3), head(3, id(2, 2), 0), vec![entry(3, 3)]);
    assert_eq!(core.last_id(), id(3, 3));
    core.durable(Tick(403 * MS), Term(2), Index(3));
    assert_eq!(core.durable_index(), Index(2));
}
