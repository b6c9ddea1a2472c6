//! Transcripts of another implementation, run against ours: what nobody who wrote this core wrote down about Raft.
//!
//! A transcript is a file of directives, each with what the other implementation printed ([`parse`] has the grammar). Two kinds are
//! told apart by their commands:
//!
//! - pure files ask functions: `quorums` (`committed`, `vote`) and `changes` (`simple`, `enter-joint`, `leave-joint`).
//!   Every step counts, and is compared as text.
//! - interaction files drive a cluster of real [`graven_raft::Core`]s (`cluster`, `node`). Each `raft-log`, `raft-state` and
//!   `status` counts, and at the end of the file what was last printed about each node: role, term, vote, commit. All other
//!   directives are run, and show in what is counted.
//!
//! Where our protocol differs by intent, a rule of `rules` excuses one line and names why; a step with an excused line counts as
//! skipped, and its other lines must match all the same. [`Report::failure`] says what does not hold: anything different, nothing
//! compared, or more than a fifth skipped of either kind.

mod changes;
mod cluster;
mod disk;
mod facts;
mod node;
pub mod parse;
mod quorums;
mod rules;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::{fs, io};

use graven_raft::NodeId;

use cluster::{Cluster, Printed};
use facts::Told;
use parse::Directive;
use rules::Excuse;

/// Of each kind of file at most one step in so many may be skipped.
const SKIPPED_AT_MOST_ONE_IN: usize = 5;

/// The two kinds of transcripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Questions to functions.
    Pure,
    /// A cluster.
    Interaction,
}

/// A step that came out otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its line in the file.
    pub line: usize,
    /// The command, or what was compared at the end of the file.
    pub what: String,
    /// What the transcript says.
    pub expected: String,
    /// What came out.
    pub got: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "line {}: {}", self.line, self.what)?;
        for (name, text) in [("expected", &self.expected), ("got", &self.got)] {
            writeln!(f, "  {name}:")?;
            text.lines().try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        Ok(())
    }
}

/// What came of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReport {
    /// Its path below the folder.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// Steps that were compared in full, those that differ included.
    pub compared: usize,
    /// Steps of which a rule excused a line, with the rule's name.
    pub skipped: Vec<(usize, &'static str)>,
    /// Steps that differ.
    pub different: Vec<Difference>,
}

impl FileReport {
    fn new(name: &str) -> FileReport {
        let (kind, name) = (Kind::Interaction, name.to_owned());
        FileReport { name, kind, compared: 0, skipped: Vec::new(), different: Vec::new() }
    }
}

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (skipped, different) = (self.skipped.len(), self.different.len());
        write!(f, "{} compared={} skipped={skipped} different={different}", self.name, self.compared)
    }
}

/// What came of a folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// One a file, by name.
    pub files: Vec<FileReport>,
}

impl Report {
    /// What does not hold, for a person; `None` when all is well.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if self.files.is_empty() {
            return Some("there is no transcript in this folder".to_owned());
        }
        let mut wrong: Vec<String> = Vec::new();
        for file in &self.files {
            wrong.extend(file.different.iter().map(|one| format!("{} {one}", file.name)));
            if file.compared == 0 {
                wrong.push(format!("{}: nothing was compared", file.name));
            }
        }
        for kind in [Kind::Pure, Kind::Interaction] {
            let (compared, skipped) = self.counts(kind);
            if skipped * SKIPPED_AT_MOST_ONE_IN > compared + skipped {
                wrong.push(format!(
                    "{kind:?}: {skipped} of {} steps were skipped, more than a fifth",
                    compared + skipped
                ));
            }
        }
        if wrong.is_empty() { None } else { Some(wrong.join("\n")) }
    }

    /// Steps compared and steps skipped in all files of a kind.
    #[must_use]
    pub fn counts(&self, kind: Kind) -> (usize, usize) {
        let files = self.files.iter().filter(|file| file.kind == kind);
        files.fold((0, 0), |(compared, skipped), file| (compared + file.compared, skipped + file.skipped.len()))
    }
}

/// Runs all transcripts (`*.txt`) in a folder and below.
///
/// # Errors
/// A folder or file that cannot be read.
pub fn run_folder(folder: &Path) -> io::Result<Report> {
    let mut paths = Vec::new();
    collect(folder, &mut paths)?;
    paths.sort();
    let mut report = Report::default();
    for path in paths {
        let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
        report.files.push(run_text(&name, &fs::read_to_string(&path)?));
    }
    Ok(report)
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            paths.push(path);
        }
    }
    Ok(())
}

/// Runs one transcript. A panic in it, which would be an assertion of the core, is a difference.
#[must_use]
pub fn run_text(name: &str, text: &str) -> FileReport {
    catch_unwind(|| run_parsed(name, text)).unwrap_or_else(|panic| {
        let mut report = FileReport::new(name);
        let (what, expected, got) = ("a panic".to_owned(), "none".to_owned(), super::words_of(panic.as_ref()));
        report.different.push(Difference { line: 0, what, expected, got });
        report
    })
}

fn run_parsed(name: &str, text: &str) -> FileReport {
    let mut report = FileReport::new(name);
    match parse::parse(text) {
        Err(malformed) => {
            let what = "the file does not follow the grammar".to_owned();
            let (line, got) = (malformed.line, malformed.what);
            report.different.push(Difference { line, what, expected: String::new(), got });
        }
        Ok(directives) if directives.iter().any(|one| is_pure(&one.command)) => {
            report.kind = Kind::Pure;
            run_pure(&directives, &mut report);
        }
        Ok(directives) => run_interaction(&directives, &mut report),
    }
    report
}

fn is_pure(command: &str) -> bool {
    ["committed", "vote", "simple", "enter-joint", "leave-joint"].contains(&command)
}

fn run_pure(directives: &[Directive], report: &mut FileReport) {
    let mut changes = changes::Changes::default();
    for directive in directives {
        let answer = quorums::run(directive).or_else(|| changes.run(directive));
        let got = answer.unwrap_or_else(|| format!("unknown command {:?}\n", directive.command));
        report.compared += 1;
        if got != directive.expected {
            report.different.push(difference(directive, got));
        }
    }
}

fn difference(directive: &Directive, got: String) -> Difference {
    let Directive { line, command, expected, .. } = directive;
    Difference { line: *line, what: command.clone(), expected: expected.clone(), got }
}

fn run_interaction(directives: &[Directive], report: &mut FileReport) {
    let mut cluster = Cluster::default();
    let mut last: BTreeMap<NodeId, LastTold> = BTreeMap::new();
    for directive in directives {
        match cluster.run(directive) {
            // Nothing after it could be trusted.
            Err(error) => return report.different.push(difference(directive, format!("cannot be run: {error}\n"))),
            Ok(Printed::Nothing) => {}
            Ok(Printed::Text(got)) => compare(directive, got, &cluster, report),
        }
        cluster.look();
        let alone = directive.ids().ok().filter(|ids| ids.len() == 1 && directive.command == "process-ready");
        for (node, told) in facts::told(&directive.expected, alone.map(|ids| NodeId(ids[0]))) {
            let Ok(ours) = cluster.node(node.0) else {
                report.different.push(difference(directive, format!("there is no node {node}\n")));
                continue;
            };
            let ours = Told::of(&ours.printed).like(&told);
            let mut entry = last.remove(&node).unwrap_or_default();
            entry.line = directive.line;
            entry.expected.update(told);
            entry.got.update(ours);
            let told_of = |other| last.get(&other).and_then(|told| told.expected.hard).map(|hard| hard[2]);
            entry.excuse = rules::excuse_told(node, &entry.expected, &entry.got, &cluster, told_of);
            last.insert(node, entry);
        }
    }
    for (node, told) in last {
        compare_last(node, &told, report);
    }
    let alarms = cluster.nodes.iter().flat_map(|node| &node.alarms).chain(&cluster.broken);
    for alarm in alarms {
        let what = "an invariant, or an alarm of the core".to_owned();
        report.different.push(Difference { line: 0, what, expected: "none".to_owned(), got: alarm.clone() });
    }
}

/// What was last printed about a node, there and here.
#[derive(Default)]
struct LastTold {
    line: usize,
    expected: Told,
    got: Told,
    /// The rule that excused a difference at that moment.
    excuse: Option<Excuse>,
}

/// Compares line by line: what a rule excuses may differ, all else may not.
fn compare(directive: &Directive, got: String, cluster: &Cluster, report: &mut FileReport) {
    if got == directive.expected {
        report.compared += 1;
        return;
    }
    let (expected, ours): (Vec<_>, Vec<_>) = (directive.expected.lines().collect(), got.lines().collect());
    let same_length = expected.len() == ours.len();
    let differing = expected.iter().zip(&ours).filter(|(expected, ours)| expected != ours);
    let excuses: Option<Vec<Excuse>> =
        differing.map(|(expected, ours)| rules::excuse_line(&directive.command, expected, ours, cluster)).collect();
    match excuses.filter(|excuses| same_length && !excuses.is_empty()) {
        Some(excuses) => report.skipped.push((directive.line, excuses[0].name)),
        None => {
            report.compared += 1;
            report.different.push(difference(directive, got));
        }
    }
}

fn compare_last(node: NodeId, told: &LastTold, report: &mut FileReport) {
    if told.expected == told.got {
        report.compared += 1;
    } else if let Some(excuse) = told.excuse {
        report.skipped.push((told.line, excuse.name));
    } else {
        report.compared += 1;
        report.different.push(Difference {
            line: told.line,
            what: format!("last printed about node {node}"),
            expected: told.expected.to_string(),
            got: told.got.to_string(),
        });
    }
}
