//! Each planted bug is found by a checker of the ordinary suite, with the sizes it runs with.

use std::panic::{AssertUnwindSafe, catch_unwind};

use graven_wal::planted::{Bug, plant};

use crate::crashes::{Effort, every_crash, every_crash_of_creation};
use crate::damage::{Specimen, every_flip, every_sector};
use crate::script::Script;
use crate::{adopt, faults, mend, rows, stale};

/// Switches the bug off again, also when the test fails.
struct Planted;

impl Drop for Planted {
    fn drop(&mut self) {
        plant(None);
    }
}

/// Runs a checker with the bug and wants it to find something; without, nothing.
fn is_found(bug: Bug, checker: impl Fn() -> Result<(), String>) {
    checker().unwrap_or_else(|error| panic!("found without a bug: {error}"));
    let off = Planted;
    plant(Some(bug));
    // An assertion of the product that fails is a finding as well.
    let found = catch_unwind(AssertUnwindSafe(&checker));
    drop(off);
    match found {
        Ok(Ok(())) => panic!("{bug:?} goes unseen"),
        Ok(Err(error)) => println!("{bug:?}: {error}"),
        Err(_) => println!("{bug:?}: an assertion failed"),
    }
}

fn crashes_of(name: &str) -> impl Fn() -> Result<(), String> {
    let script = Script::all().into_iter().find(|script| script.name == name).expect("a script of that name");
    move || every_crash(&script, 1, Effort { exhaustive: 5, samples: 12, again_every: 30 }).map(drop)
}

#[test]
fn skipped_directory_sync_is_found() {
    is_found(Bug::DirectorySyncSkipped, crashes_of("rotate"));
}

#[test]
fn first_segment_named_before_it_is_durable_is_found() {
    is_found(Bug::FirstSegmentUnsynced, || every_crash_of_creation().map(drop));
}

#[test]
fn opening_synced_before_it_is_written_is_found() {
    is_found(Bug::SyncBeforeWrite, crashes_of("rotate"));
}

#[test]
fn segment_that_was_synced_and_lost_its_opening_is_found_when_cut() {
    let specimen = Specimen::plain();
    is_found(Bug::LostOpeningCut, move || every_sector(&specimen).map(drop));
}

#[test]
fn seal_ahead_that_is_believed_is_found() {
    is_found(Bug::SealAheadBelieved, crashes_of("seal ahead"));
}

#[test]
fn block_that_was_begun_and_is_not_written_again_is_found() {
    is_found(Bug::TailBlockSkipped, crashes_of("append and vote, direct"));
}

#[test]
fn length_trusted_before_the_sum_is_found() {
    is_found(Bug::LengthBeforeCrc, crashes_of("append and vote"));
}

#[test]
fn failed_sync_tried_again_is_found() {
    is_found(Bug::SyncRetried, faults::failed_sync_is_final);
}

#[test]
fn failed_sync_tried_again_loses_what_was_acknowledged() {
    let script = Script::all().swap_remove(0);
    is_found(Bug::SyncRetried, move || faults::every_failing_call(&script).map(drop));
}

#[test]
fn page_cache_trusted_after_a_failed_sync_is_found() {
    is_found(Bug::PageCacheTrusted, faults::failed_sync_is_final);
}

#[test]
fn forgotten_salt_is_found() {
    is_found(Bug::SaltForgotten, || stale::no_old_life_comes_back(300));
}

#[test]
fn damaged_middle_that_is_cut_is_found() {
    let specimen = Specimen::plain();
    is_found(Bug::DamagedMiddleCut, move || every_sector(&specimen).map(drop));
}

#[test]
fn cut_bytes_left_standing_are_found() {
    is_found(Bug::CutLeftStanding, rows::cut_records_are_not_met_again);
}

#[test]
fn hard_state_that_goes_with_a_trim_is_found() {
    is_found(Bug::HardStateTrimmed, crashes_of("rotate"));
}

#[test]
fn seal_without_a_sync_is_found() {
    is_found(Bug::SealWithoutSync, crashes_of("rotate"));
}

#[test]
fn watermark_that_does_not_advance_is_found() {
    // Without the bug the specimen is a closed log; with it, one that was written without watermarks.
    is_found(Bug::WatermarkStuck, || every_flip(&Specimen::plain(), &[0], 13, 997).map(drop));
}

#[test]
fn superseding_entry_whose_chain_nobody_checks_is_found() {
    is_found(Bug::SupersedeUnchecked, rows::frame_that_continues_nothing_is_named);
}

#[test]
fn superseding_entry_that_replaces_a_settled_one_is_found() {
    is_found(Bug::SettledReplaced, rows::settled_entry_is_not_replaced);
}

#[test]
fn removals_in_any_order_are_found() {
    is_found(Bug::RemovalUnsynced, crashes_of("trim"));
}

#[test]
fn segment_used_again_while_it_is_read_is_found() {
    is_found(Bug::RecycledWhileRead, stale::borrowed_bytes_never_change);
}

#[test]
fn missing_end_marks_are_found() {
    is_found(Bug::EndMarkOmitted, stale::end_in_a_used_file_is_clean);
}

#[test]
fn reserve_that_records_take_is_found() {
    is_found(Bug::ReserveSpent, faults::full_disk_keeps_room_for_votes);
}

#[test]
fn entries_that_do_not_lead_to_the_end_of_a_hole_are_found() {
    is_found(Bug::MendEndUnchecked, mend::other_history_is_refused);
}

#[test]
fn end_that_is_cut_without_a_word_is_found() {
    is_found(Bug::MarkerNotWritten, || mend::every_crash_of_a_cut().map(drop));
}

#[test]
fn replacement_in_place_before_it_is_durable_is_found() {
    is_found(Bug::ReplacementUnsynced, || mend::every_crash_of_mending().map(drop));
}

#[test]
fn damaged_segment_that_is_removed_first_is_found() {
    is_found(Bug::OriginalRemovedFirst, || mend::every_crash_of_mending().map(drop));
}

#[test]
fn identity_changed_before_its_journal_is_durable_is_found() {
    is_found(Bug::JournalUnsynced, adopt::every_crash_of_a_change);
}

#[test]
fn journal_that_is_removed_before_the_identity_is_durable_is_found() {
    is_found(Bug::IdentityUnsynced, adopt::every_crash_of_a_change);
}

/// Every bug there is has a test here: a new one without would go unseen.
#[test]
fn every_planted_bug_has_a_test() {
    let source = include_str!("planted.rs");
    for bug in Bug::ALL {
        assert!(source.contains(&format!("is_found(Bug::{bug:?},")), "{bug:?} is planted, and nothing looks for it");
    }
}
