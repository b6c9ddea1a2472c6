//! Transcripts from outside, run against our core.

use std::path::Path;

use graven_tests::transcript::{Kind, Report, run_folder};

fn show(report: &Report) {
    for file in &report.files {
        println!("{file}");
        for (line, rule) in &file.skipped {
            println!("  skipped line {line}: {rule}");
        }
        for difference in &file.different {
            println!("{difference}");
        }
    }
    for kind in [Kind::Pure, Kind::Interaction] {
        let (compared, skipped) = report.counts(kind);
        println!("{kind:?}: compared={compared} skipped={skipped}");
    }
}

/// `GRAVEN_TRANSCRIPTS=DIR cargo test -p graven-tests --test transcripts -- --nocapture`
#[test]
fn transcripts_of_a_folder_from_outside_hold() {
    let Some(folder) = std::env::var_os("GRAVEN_TRANSCRIPTS") else {
        println!("SKIPPED: GRAVEN_TRANSCRIPTS names no folder with transcripts");
        assert!(
            std::env::var_os("GRAVEN_NO_SKIP").is_none_or(|set| set != "1"),
            "GRAVEN_NO_SKIP=1: nothing may be skipped"
        );
        return;
    };
    let report = run_folder(Path::new(&folder)).expect("the folder can be read");
    show(&report);
    assert!(report.failure().is_none(), "see above");
}
