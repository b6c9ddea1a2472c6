//! `graven wal inspect` and `graven wal verify`: what a data directory holds, without changing a byte of it.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use graven_wal::inspect::{self, Inspection, SegmentInfo, SegmentState};
use graven_wal::{Damage, OpenError, RealDisk};
use serde_json::{Value, json};

use super::Global;
use super::error::{CliResult, ErrorCode, Failure};
use super::out;
use super::status::human_size;

/// Arguments of `graven wal`.
#[derive(Debug, Args)]
pub(crate) struct WalArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show the segments and what is in them; also of a running node
    #[command(after_help = "Example: graven wal inspect graven-dev/n1/data")]
    Inspect {
        /// The data directory
        #[arg(value_name = "DATADIR")]
        dir: PathBuf,
    },
    /// Read everything and check it; the node must be stopped
    #[command(after_help = "Example: graven wal verify graven-dev/n1/data\n\nWrites nothing. Damage is exit 6.")]
    Verify {
        /// The data directory
        #[arg(value_name = "DATADIR")]
        dir: PathBuf,
    },
}

/// Runs the command.
pub(crate) fn run(args: &WalArgs, global: &Global) -> CliResult {
    let (dir, found) = match &args.what {
        What::Inspect { dir } => (dir, inspect::scan(&RealDisk::open(dir))),
        What::Verify { dir } => (dir, inspect::verify(&RealDisk::open(dir))),
    };
    let found = found.map_err(|error| failure(&error, dir))?;
    if global.json {
        out::print_line(&as_json(&found).to_string())?;
    } else {
        out::print(&as_text(&found))?;
    }
    match found.damage.first() {
        Some(damage) => Err(damaged(damage, found.damage.len(), dir)),
        None => Ok(()),
    }
}

fn failure(error: &OpenError, dir: &Path) -> Failure {
    let dir = dir.display();
    match error {
        OpenError::Locked { pid } => {
            Failure::usage(format!("{dir} is in use by process {pid}; stop that node first")).with("pid", *pid)
        }
        OpenError::Damaged(damage) => damaged(damage, 1, Path::new(&dir.to_string())),
        OpenError::WrongChain { .. } | OpenError::MissingSegment { .. } => {
            Failure::new(ErrorCode::Damaged, format!("{dir}: {error}"))
        }
        OpenError::Io { cause, .. } => Failure::internal(format!("{dir}: {error}: {cause}")),
        _ => Failure::usage(format!("{dir}: {error}")),
    }
}

fn damaged(damage: &Damage, places: usize, dir: &Path) -> Failure {
    let more = if places > 1 { format!(", and {} more places", places - 1) } else { String::new() };
    let message = format!("{} is damaged: {damage}{more}; its peers have the entries", dir.display());
    Failure::new(ErrorCode::Damaged, message).with("damage", damage_json(damage))
}

fn damage_json(damage: &Damage) -> Value {
    json!({
        "segment": damage.segment.to_string(),
        "from": damage.from,
        "to": damage.to,
        "first_index": damage.first_index,
        "last_index": damage.last_index,
        "what": damage.what,
    })
}

fn state(segment: &SegmentInfo) -> &'static str {
    match segment.state {
        SegmentState::Sealed => "sealed",
        SegmentState::Active => "active",
        SegmentState::Prepared => "prepared",
    }
}

fn as_json(found: &Inspection) -> Value {
    let segments = found.segments.iter().map(|segment| {
        json!({
            "segment": segment.id.to_string(),
            "state": state(segment),
            "file_bytes": segment.file_bytes,
            "written": segment.written,
            "proven": segment.proven,
            "first_index": segment.entries.map(|(first, _)| first),
            "last_index": segment.entries.map(|(_, last)| last),
        })
    });
    json!({
        "cluster_id": format!("{:032x}", found.identity.cluster),
        "node": found.identity.node,
        "incarnation": format!("{:032x}", found.identity.incarnation),
        "term": found.hard_state.term,
        "vote": found.hard_state.vote,
        "first_index": found.base.index + 1,
        "last_index": found.tail.index,
        "last_term": found.tail.term,
        "first_offset": found.base.next_offset,
        "next_offset": found.tail.next_offset,
        "known_commit": found.known_commit,
        "torn_bytes": found.torn_bytes,
        "segments": segments.collect::<Vec<_>>(),
        "damage": found.damage.iter().map(damage_json).collect::<Vec<_>>(),
        "healed": found.healed.iter().map(damage_json).collect::<Vec<_>>(),
    })
}

fn as_text(found: &Inspection) -> String {
    let (identity, tail) = (&found.identity, &found.tail);
    let vote = found.hard_state.vote.map_or_else(|| "nobody".to_owned(), |node| format!("node {node}"));
    let mut text = format!(
        "cluster {:032x}, node {}, incarnation {:032x}\nterm {}, vote for {vote}\nentries {}..{} (last of term {}), offsets {}..{}, committed at least to {}\n",
        identity.cluster,
        identity.node,
        identity.incarnation,
        found.hard_state.term,
        found.base.index + 1,
        tail.index,
        tail.term,
        found.base.next_offset,
        tail.next_offset,
        found.known_commit,
    );
    for segment in &found.segments {
        let entries =
            segment.entries.map_or_else(|| "no entries".to_owned(), |(first, last)| format!("entries {first}..{last}"));
        text.push_str(&format!(
            "segment {} {}: {entries}, {} of {} written\n",
            segment.id,
            state(segment),
            human_size(segment.written),
            human_size(segment.file_bytes)
        ));
    }
    if found.torn_bytes > 0 {
        text.push_str(&format!("unfinished write at the end: {} bytes, cut at the next start\n", found.torn_bytes));
    }
    found.healed.iter().for_each(|damage| text.push_str(&format!("damaged without loss: {damage}\n")));
    found.damage.iter().for_each(|damage| text.push_str(&format!("damaged: {damage}\n")));
    text
}
