//! Transcripts: those of this tree always, those of a folder from outside when one is named. And the checker can fail.

use std::path::{Path, PathBuf};
use std::{env, fs};

use graven_tests::transcript::{FileReport, Kind, Report, run_folder, run_text};

fn show(report: &Report) {
    for file in &report.files {
        println!("{file}");
        file.skipped.iter().for_each(|(line, rule)| println!("  line {line} skipped: {rule}"));
        file.different.iter().for_each(|difference| println!("{difference}"));
    }
    for kind in [Kind::Pure, Kind::Interaction] {
        let (compared, skipped) = report.counts(kind);
        println!("{kind:?}: compared={compared} skipped={skipped}");
    }
}

fn own_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/transcripts")
}

/// `GRAVEN_TRANSCRIPTS=DIR cargo test -p graven-tests --test transcripts -- --nocapture`
#[test]
fn transcripts_of_a_folder_from_outside_hold() {
    let Some(folder) = env::var_os("GRAVEN_TRANSCRIPTS") else {
        println!("SKIPPED: GRAVEN_TRANSCRIPTS names no folder of transcripts");
        assert_ne!(env::var("GRAVEN_NO_SKIP").as_deref(), Ok("1"), "GRAVEN_NO_SKIP=1: nothing may be skipped");
        return;
    };
    let report = run_folder(Path::new(&folder)).expect("GRAVEN_TRANSCRIPTS names a folder that can be read");
    show(&report);
    if let Some(failure) = report.failure() {
        panic!("{failure}");
    }
}

#[test]
fn transcripts_of_this_tree_hold() {
    let report = run_folder(&own_folder()).expect("the folder is part of the tree");
    show(&report);
    assert_eq!(report.failure(), None);
    let (pure, interaction) = (report.counts(Kind::Pure), report.counts(Kind::Interaction));
    assert!(pure.0 >= 20 && interaction.0 >= 50, "{pure:?} {interaction:?} steps");
    assert_eq!((pure.1, interaction.1), (0, 0), "none of them needs a rule");
}

/// Every digit and every word of what is compared matters: with another one in its place some step differs.
#[test]
fn a_wrong_expectation_is_reported() {
    let mut tried = 0;
    for file in run_folder(&own_folder()).expect("the folder is part of the tree").files {
        let text = fs::read_to_string(own_folder().join(&file.name)).expect("it was read just now");
        for wrong in wrong_expectations(&text) {
            let report = run_text(&file.name, &wrong);
            assert!(!report.different.is_empty(), "not noticed in {}:\n{wrong}", file.name);
            tried += 1;
        }
    }
    assert!(tried > 500, "{tried} wrong expectations");
}

/// The text, each time with one digit raised or one role changed in a line that is compared: all expected text of a pure file,
/// of an interaction file what `raft-log`, `raft-state` and `status` print and the last word about each node.
fn wrong_expectations(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut compared = vec![false; lines.len()];
    let (mut command, mut expected) = ("", false);
    for (at, line) in lines.iter().enumerate() {
        let starts = at == 0 || lines[at - 1].is_empty() || lines[at - 1].starts_with('#');
        if starts && !line.starts_with('#') {
            (command, expected) = (line.split(' ').next().unwrap_or_default(), false);
        }
        let prints = ["raft-log", "raft-state", "status", "committed", "vote", "simple", "enter-joint", "leave-joint"];
        compared[at] =
            expected && prints.contains(&command) && !line.is_empty() && !line.starts_with('#') && *line != "ok";
        expected |= *line == "----";
    }
    mark_last_words(&lines, &mut compared);
    let mut wrong = Vec::new();
    for at in (0..lines.len()).filter(|&at| compared[at]) {
        for (byte, c) in lines[at].char_indices() {
            let other = match c {
                '0'..='8' => char::from(c as u8 + 1),
                '9' => '0',
                'L' | 'F' | 'C' | 'R' | 'V' | 'x' | '?' => 'P',
                _ => continue,
            };
            let mut changed = lines.clone();
            let line = format!("{}{other}{}", &lines[at][..byte], &lines[at][byte + 1..]);
            changed[at] = &line;
            // A label is not what is compared, only what stands behind it.
            let label = lines[at][byte..].starts_with("Lead:") || lines[at][byte..].starts_with("Vote:");
            let label =
                label || lines[at][byte..].starts_with("Commit:") || lines[at].trim().starts_with("Lead:") && byte < 9;
            if !label {
                wrong.push(changed.join("\n"));
            }
        }
    }
    wrong
}

/// The last `HardState` and `State:` lines about each node.
fn mark_last_words(lines: &[&str], compared: &mut [bool]) {
    let mut node = "";
    let mut last = std::collections::BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        if let Some(id) = line.strip_prefix("> ").or(line.strip_prefix("process-ready ")) {
            node = id.split(' ').next().unwrap_or_default();
        }
        if line.contains("HardState ") || line.contains(" State:") {
            last.insert((node, line.contains("HardState ")), at);
        }
    }
    last.into_values().for_each(|at| compared[at] = true);
}

fn report_of(files: Vec<FileReport>) -> Report {
    Report { files }
}

fn file(kind: Kind, compared: usize, skipped: usize) -> FileReport {
    let skipped = vec![(1, "a rule"); skipped];
    FileReport { name: "some.txt".to_owned(), kind, compared, skipped, different: Vec::new() }
}

#[test]
fn an_empty_folder_fails() {
    let folder = tempfile::tempdir().expect("a folder for a moment");
    fs::write(folder.path().join("notes.md"), "no transcript").expect("it can be written");
    let report = run_folder(folder.path()).expect("it can be read");
    assert!(report.failure().is_some_and(|failure| failure.contains("no transcript")));
    assert!(run_folder(&folder.path().join("missing")).is_err());
}

#[test]
fn a_file_with_nothing_compared_fails() {
    let report =
        report_of(vec![file(Kind::Pure, 9, 0), run_text("empty.txt", "add-nodes 1 voters=(1) index=2\n----\nok\n")]);
    assert!(report.failure().is_some_and(|failure| failure.contains("empty.txt: nothing was compared")));
}

#[test]
fn more_than_a_fifth_skipped_fails_for_each_kind_by_itself() {
    assert_eq!(report_of(vec![file(Kind::Interaction, 8, 2), file(Kind::Pure, 4, 1)]).failure(), None);
    // Much that was compared in files of the other kind does not help.
    for (kind, other) in [(Kind::Interaction, Kind::Pure), (Kind::Pure, Kind::Interaction)] {
        let failure = report_of(vec![file(kind, 79, 20), file(other, 1_000, 0)]).failure();
        assert!(failure.is_some_and(|failure| failure.contains(&format!("{kind:?}: 20 of 99 steps were skipped"))));
    }
}

#[test]
fn what_cannot_be_read_or_run_is_different() {
    for text in ["raft-log 1\n----\nok\n", "dance 1\n----\nok\n", "add-nodes (1\n----\nok\n", "add-nodes 1\nno rule\n"]
    {
        assert_eq!(run_text("odd.txt", text).different.len(), 1, "{text}");
    }
    let pure = run_text("odd.txt", "vote cfg=(1) votes=(y)\n----\nVoteWon\n\ncampaign 1\n----\nok\n");
    assert_eq!((pure.compared, pure.different.len()), (2, 1));
}

/// A leader removes itself. Ours stops with the change committed by the new voters alone; the transcript's goes on.
const REMOVED_LEADER: &str = "add-nodes 3 voters=(1,2,3) index=2\n----\nok\n\ncampaign 1\n----\nok\n\nstabilize\n----\nok\n\n\
    propose-conf-change 1 v1=true\nr1\n----\nok\n\nstabilize\n----\nok\n\nraft-state\n----\n\
    1: StateLeader (Non-Voter) Term:1 Lead:1\n2: StateFollower (Voter) Term:1 Lead:1\n3: StateFollower (Voter) Term:1 Lead:1\n";

#[test]
fn a_rule_excuses_one_line_in_one_way_only() {
    let report = run_text("removed.txt", REMOVED_LEADER);
    assert_eq!((report.skipped.as_slice(), report.different.len()), (&[(22, "removed-leader")][..], 0), "{report:?}");
    for (right, wrong) in [
        ("1: StateLeader (Non-Voter) Term:1 Lead:1", "1: StateLeader (Non-Voter) Term:2 Lead:1"),
        ("1: StateLeader (Non-Voter) Term:1 Lead:1", "1: StateLeader (Voter) Term:1 Lead:1"),
        ("1: StateLeader (Non-Voter) Term:1 Lead:1", "1: StateCandidate (Non-Voter) Term:1 Lead:1"),
        ("2: StateFollower (Voter) Term:1 Lead:1", "2: StateLeader (Voter) Term:1 Lead:1"),
        ("3: StateFollower (Voter) Term:1 Lead:1\n", ""),
    ] {
        let report = run_text("removed.txt", &REMOVED_LEADER.replace(right, wrong));
        assert_eq!((report.skipped.len(), report.different.len()), (0, 1), "{wrong}");
    }
    // The same words about a leader that was not removed are no excuse.
    let stays = REMOVED_LEADER.replace("\nr1\n", "\nl4\n");
    assert_eq!(run_text("stays.txt", &stays).different.len(), 1);
}

/// `setup` with voters 1 to `voters`, led by 1; then one of them is removed.
fn removal(voters: u64, removed: u64, then: &str) -> String {
    let all: Vec<String> = (1..=voters).map(|id| id.to_string()).collect();
    format!(
        "add-nodes {voters} voters=({}) index=2\n----\nok\n\ncampaign 1\n----\nok\n\nstabilize\n----\nok\n\n\
         propose-conf-change 1 v1=true\nr{removed}\n----\nok\n\n{then}",
        all.join(",")
    )
}

/// Four voters, of whom two hold the entry that removes one of them: two of three are enough for ours, not two of four for theirs.
#[test]
fn a_membership_that_decides_sooner_is_excused_as_far_as_it_decides() {
    let state = |voter| {
        format!(
            "stabilize 1 2\n----\n> 1 handling Ready\n  HardState Term:1 Vote:1 Commit:3\n\nraft-state\n----\n\
             1: StateLeader (Voter) Term:1 Lead:1\n2: StateFollower ({voter}) Term:1 Lead:1\n\
             3: StateFollower (Voter) Term:1 Lead:1\n4: StateFollower (Voter) Term:1 Lead:1\n"
        )
    };
    let report = run_text("sooner.txt", &removal(4, 4, &state("Voter")));
    assert_eq!((report.compared, report.skipped.len(), report.different.len()), (1, 1, 0), "{report:?}");
    for (right, wrong) in
        [("Commit:3", "Commit:2"), ("4: StateFollower (V", "4: StateFollower (Non-V"), ("Vote:1", "Vote:2")]
    {
        let report = run_text("sooner.txt", &removal(4, 4, &state("Voter").replace(right, wrong)));
        assert_eq!(report.different.len(), 1, "{wrong}: {report:?}");
    }
}

/// The node that is removed hears in theirs that it is.
#[test]
fn a_removed_node_is_excused_for_what_it_was_not_told() {
    let state = "stabilize\n----\n> 3 handling Ready\n  HardState Term:1 Vote:1 Commit:4\n\nraft-state\n----\n\
        1: StateLeader (Voter) Term:1 Lead:1\n2: StateFollower (Voter) Term:1 Lead:1\n\
        3: StateFollower (Non-Voter) Term:1 Lead:1\n";
    let report = run_text("told.txt", &removal(3, 3, state));
    let rules: Vec<_> = report.skipped.iter().map(|skipped| skipped.1).collect();
    assert_eq!((rules, report.different.len()), (vec!["removed-node"; 2], 0), "{report:?}");
    for (right, wrong) in
        [("Commit:4", "Commit:5"), ("2: StateFollower (V", "2: StateFollower (Non-V"), ("Vote:1", "Vote:2")]
    {
        let report = run_text("told.txt", &removal(3, 3, &state.replace(right, wrong)));
        assert_eq!(report.different.len(), 1, "{wrong}: {report:?}");
    }
}

/// A follower has a snapshot that ends at 9; the leader's log begins after 8, so ours compares 8 and theirs believes 9.
#[test]
fn what_an_install_counts_for_is_excused_between_the_first_entry_and_the_snapshot() {
    let steps = [
        "add-nodes 2 voters=(1,2,3) index=8",
        "add-nodes 1 voters=(1,2,3) index=4",
        "campaign 1",
        "process-ready 1",
        "stabilize 3",
        "stabilize 1 2",
        "send-snapshot 1 3",
        "propose 1 more",
        "stabilize 1 2",
        "deliver-msgs 3 type=MsgApp",
        "process-ready 3",
        "deliver-msgs 3",
        "stabilize 1",
        "deliver-msgs drop=(3)",
        "stabilize 3",
        "stabilize 1",
    ];
    let setup: String = steps.iter().map(|step| format!("{step}\n----\nok\n\n")).collect();
    let run = |line: &str| {
        let others = "1: StateReplicate match=10 next=11\n2: StateReplicate match=10 next=11\n";
        run_text("installed.txt", &format!("{setup}status 1\n----\n{others}{line}\n"))
    };
    let report = run("3: StateReplicate match=9 next=11 inflight=1");
    assert_eq!((report.skipped.len(), report.different.len()), (1, 0), "{report:?}");
    assert_eq!(report.skipped[0].1, "compared-after-install");
    for wrong in
        ["match=10 next=11 inflight=1", "match=7 next=11 inflight=1", "match=9 next=10 inflight=1", "match=9 next=11"]
    {
        let report = run(&format!("3: StateReplicate {wrong}"));
        assert_eq!((report.skipped.len(), report.different.len()), (0, 1), "{wrong}");
    }
}
