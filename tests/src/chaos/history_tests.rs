//! Bad histories, each seen by the property it breaks.

use super::history::{Append, End, Journal, check};
use super::payload::Landed;
use crate::check::linearizability::Read;

fn acknowledged(called: u64, returned: u64, first: u64, parts: u32) -> Append {
    let end = End::Acknowledged { first, last: first + u64::from(parts) - 1 };
    Append { client: 0, called, returned: Some(returned), parts, expect: None, end }
}

fn ended(end: End) -> Append {
    Append { client: 0, called: 1, returned: Some(2), parts: 1, expect: None, end }
}

fn whole(append: u64, parts: u32) -> Vec<Option<Landed>> {
    (0..parts).map(|part| Some(Landed { append, part, parts })).collect()
}

fn properties(appends: &[Append], reads: &[Read], log: &[Option<Landed>]) -> Vec<&'static str> {
    check(appends, reads, log).into_iter().map(|violation| violation.property).collect()
}

#[test]
fn a_good_history_is_good() {
    let appends = [acknowledged(1, 5, 0, 2), ended(End::Refused), ended(End::Unknown), acknowledged(6, 9, 3, 1)];
    let log = [whole(0, 2), whole(2, 1), whole(3, 1)].concat();
    assert_eq!(properties(&appends, &[Read { called: 5, answered: 6, length: 3 }], &log), [""; 0]);
    let lost = [whole(0, 2), whole(3, 1)].concat();
    let appends = [appends[0], appends[1], appends[2], acknowledged(6, 9, 2, 1)];
    assert_eq!(properties(&appends, &[], &lost), [""; 0], "an unknown one need not be there");
}

#[test]
fn an_acknowledged_append_that_is_lost_is_seen() {
    assert!(properties(&[acknowledged(1, 2, 0, 1)], &[], &[]).contains(&"P1"));
}

#[test]
fn an_append_elsewhere_than_told_is_seen() {
    let appends = [acknowledged(1, 9, 1, 1), acknowledged(1, 9, 0, 1)];
    let log = [whole(0, 1), whole(1, 1)].concat();
    assert_eq!(properties(&appends, &[], &log), ["P2", "P2"]);
}

#[test]
fn a_record_that_nobody_appended_is_seen() {
    assert!(properties(&[], &[], &[None]).contains(&"P2"), "not ours");
    assert!(properties(&[], &[], &whole(0, 1)).contains(&"P2"), "never called");
    assert!(properties(&[ended(End::Unknown)], &[], &whole(0, 2)).contains(&"P2"), "another number of records");
}

#[test]
fn an_append_that_is_torn_or_mixed_is_seen() {
    let appends = [acknowledged(1, 2, 0, 3)];
    assert!(properties(&appends, &[], &whole(0, 3)[..2]).contains(&"P3"), "cut short");
    assert!(properties(&appends, &[], &whole(0, 3)[1..]).contains(&"P3"), "without its beginning");
    let mut mixed = whole(0, 3);
    mixed.insert(1, whole(1, 1)[0]);
    assert!(properties(&[appends[0], ended(End::Unknown)], &[], &mixed).contains(&"P3"), "one in between");
    let swapped = [whole(0, 3)[0], whole(0, 3)[2], whole(0, 3)[1]];
    assert!(properties(&appends, &[], &swapped).contains(&"P3"), "out of order");
}

#[test]
fn an_append_that_stands_there_twice_is_seen() {
    let twice = [whole(0, 1), whole(0, 1)].concat();
    assert!(properties(&[acknowledged(1, 2, 0, 1)], &[], &twice).contains(&"P7"));
    assert!(properties(&[ended(End::Unknown)], &[], &twice).contains(&"P7"));
}

#[test]
fn a_refused_append_that_is_there_is_seen() {
    assert_eq!(properties(&[ended(End::Refused)], &[], &whole(0, 1)), ["P10"]);
}

#[test]
fn a_condition_that_was_not_kept_is_seen() {
    let conditional = Append { expect: Some(4), ..acknowledged(1, 2, 0, 1) };
    assert_eq!(properties(&[conditional], &[], &whole(0, 1)), ["P10"]);
    let unknown = Append { expect: Some(4), ..ended(End::Unknown) };
    assert_eq!(properties(&[unknown], &[], &whole(0, 1)), ["P10"]);
}

#[test]
fn reads_and_appends_out_of_order_are_seen() {
    let appends = [acknowledged(1, 2, 0, 1), acknowledged(3, 4, 1, 1)];
    let log = [whole(0, 1), whole(1, 1)].concat();
    assert_eq!(properties(&appends, &[Read { called: 5, answered: 6, length: 1 }], &log), ["P8"], "stale");
    let appends = [acknowledged(3, 4, 0, 1), acknowledged(1, 2, 1, 1)];
    assert_eq!(properties(&appends, &[], &log), ["P8"], "acknowledged before the one below it was called");
}

#[test]
fn readers_who_skip_or_differ_are_seen() {
    let journal = Journal::default();
    journal.delivered("a", 0, b"", b"x").expect("the first");
    journal.delivered("b", 0, b"", b"x").expect("the same");
    assert_eq!(journal.delivered("b", 0, b"", b"y").expect_err("other bytes").property, "P2");
    assert_eq!(journal.delivered("b", 0, b"m", b"x").expect_err("other bytes beside it").property, "P2");
    assert_eq!(journal.delivered("a", 2, b"", b"z").expect_err("skipped").property, "P4");
    journal.delivered("a", 1, b"", b"y").expect("the second");
}

#[test]
fn gaps_are_measured_between_acknowledgements() {
    let journal = Journal::default();
    journal.begin_gaps();
    let moment = journal.now();
    assert!(!journal.acknowledged_since(moment));
    let append = journal.call(1, 1, None);
    std::thread::sleep(std::time::Duration::from_millis(3));
    let ack = graven::Ack { first: 0, last: 0, records: 1, term: 1, timestamp: 0 };
    journal.answer(append, &Ok(ack));
    assert!(journal.acknowledged_since(moment) && journal.longest_gap_ms() >= 3);
    assert_eq!(journal.counts(), [1, 0, 0, 0]);
}

#[test]
fn a_log_that_begins_where_nobody_trimmed_it_is_seen() {
    let journal = Journal::default();
    journal.begins("a", 0).expect("as it began");
    assert_eq!(journal.begins("a", 7).expect_err("not asked for").property, "P4");
    journal.trim(7);
    journal.begins_exactly("a", 7).expect("asked for");
    journal.begins("a", 5).expect("on the way there");
    assert_eq!(journal.begins_exactly("a", 5).expect_err("not there").property, "P4");
    journal.trimmed(7, 7).expect("done");
    journal.trim(9);
    assert_eq!(journal.trimmed(9, 7).expect_err("acknowledged and not done").property, "P2");
    assert_eq!(journal.trimmed(9, 8).expect_err("another place").property, "P4");
    journal.trim(8);
    journal.trimmed(8, 9).expect("more was trimmed before");
    assert_eq!(journal.trims().0, 9);
}
