//! `graven doctor`: what is wrong with a cluster or a node, or soon will be, and what to do about each.
//!
//! Three parts: what is looked at ([`facts`], gathered in [`gather`]), what it means ([`judge`], pure), and how it is told (here).

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use self::facts::Facts;
use self::judge::{Finding, Level};
use super::Global;
use super::error::{CliResult, Failure};
use super::out;

mod facts;
mod gather;
mod judge;

/// Arguments of `graven doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  graven doctor                                          the cluster that clients find\n  graven doctor --config /srv/graven/n1/graven.toml      a node's files, on its host, also while it is stopped\n\nExits with 0 when no finding is an error; else 6 for damage, 3 without a leader or with a node that does not answer,\n5 for certificates, 4 for full disks, 2 for how a node is set up, the first of these that is there."
)]
pub(crate) struct DoctorArgs {
    /// Look at this node's files instead of a cluster
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Between the two looks at a cluster: what was committed at the first should be everywhere at the second.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Runs the command.
pub(crate) fn run(args: &DoctorArgs, global: &Global) -> CliResult<u8> {
    let facts = match &args.config {
        Some(file) => gather::files(file)?,
        None => gather::cluster(global)?,
    };
    let findings = judge::judge(&facts);
    show(&facts, &findings, global)?;
    Ok(judge::exit_code(&findings))
}

fn show(facts: &Facts, findings: &[Finding], global: &Global) -> CliResult {
    if global.json {
        return out::print_line(&json!({"findings": findings, "checked": checked(facts)}).to_string());
    }
    let mut text: String = findings.iter().map(line).collect();
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let looked = checked(facts).join(", ");
    text.push_str(&match (count(Level::Error), count(Level::Warning)) {
        (0, 0) => format!("nothing is wrong; looked at {looked}\n"),
        (errors, warnings) => format!("errors: {errors}, warnings: {warnings}; looked at {looked}\n"),
    });
    out::print(&text)
}

fn line(finding: &Finding) -> String {
    let node = finding.node.as_deref().unwrap_or("-");
    format!("{:<7}  {node}  {}: {}; to do: {}\n", finding.level.as_str(), finding.code, finding.what, finding.advice)
}

/// What was looked at.
fn checked(facts: &Facts) -> Vec<String> {
    let mut checked = Vec::new();
    if let Some(cluster) = &facts.cluster {
        let here = ["leader", "client certificate"].map(str::to_owned);
        checked.extend(here);
        checked.extend(cluster.members.iter().map(|_| "members".to_owned()));
        let nodes = cluster.status.nodes.iter().filter(|node| node.reachable);
        checked.extend(nodes.map(|node| match cluster.nodes.get(&node.name) {
            Some(_) => format!("{} (state, lag, clock, disk, syncs, socket, peers, files, versions)", node.name),
            None => format!("{} (state, lag)", node.name),
        }));
    }
    if let Some(files) = &facts.files {
        let log =
            if files.log == facts::LogIs::Running { "the log was not read, because the node runs" } else { "log" };
        checked.push(format!("{} (configuration, certificates, keys, disk, syncs, {log})", files.name));
    }
    checked
}

/// A directory or a file that cannot be looked at at all.
fn unusable(error: impl std::fmt::Display) -> Failure {
    Failure::config(error)
}
