//! `graven wal`: what a data directory holds, and whether it still is what was written there.
//!
//! `inspect`, `verify` and a `repair` without consent read through [`Watched`], which cannot change a byte.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use graven_wal::inspect::{self, Consent, EntryInfo, Inspection, RepairPlan, SegmentInfo, SegmentState, repair};
use graven_wal::mend::{Hole, holes_of};
use graven_wal::{Damage, OpenError, RealDisk};
use serde_json::{Value, json};

use self::watched::Watched;
use super::Global;
use super::error::{CliResult, ErrorCode, Failure};
use super::out::{self, Out};
use super::status::human_size;
use crate::replica::restore::CUT_CHECKPOINTS;

mod watched;

/// Arguments of `graven wal`.
#[derive(Debug, Args)]
pub(crate) struct WalArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show the segments and what is in them; also of a running node
    #[command(
        after_help = "Example: graven wal inspect graven-dev/n1/data\n\nWith --json a line for the log, then one for each entry. Of a running node the end may be seen in the middle of a write."
    )]
    Inspect {
        /// The data directory
        #[arg(value_name = "DATADIR")]
        dir: PathBuf,
        /// A line for each entry too, in the order they were written, with those that others replaced
        #[arg(long)]
        entries: bool,
    },
    /// Read everything and check it; the node must be stopped
    #[command(after_help = "Example: graven wal verify graven-dev/n1/data\n\nWrites nothing. Damage is exit 6.")]
    Verify {
        /// The data directory
        #[arg(value_name = "DATADIR")]
        dir: PathBuf,
    },
    /// End a damaged log before its damage; the node must be stopped
    #[command(
        after_help = "Example: graven wal repair graven-dev/n1/data\n\nWithout --accept-data-loss it changes nothing and says what it would do (exit 6 when there is damage). With it, what is cut is\nmoved into a directory beside the log; no byte is deleted. A node that has peers may find the entries there."
    )]
    Repair {
        /// The data directory
        #[arg(value_name = "DATADIR")]
        dir: PathBuf,
        /// Only say what would be done (the default)
        #[arg(long, conflicts_with = "accept_data_loss")]
        dry_run: bool,
        /// Do it: entries that this node acknowledged are lost here
        #[arg(long)]
        accept_data_loss: bool,
    },
}

/// Runs the command.
pub(crate) fn run(args: &WalArgs, global: &Global) -> CliResult {
    match &args.what {
        What::Inspect { dir, entries } => {
            let disk = Watched::new(RealDisk::open(dir), global);
            let found = scan(&disk);
            disk.done();
            let found = found.map_err(|error| failure(&error, dir))?;
            show(&found, global)?;
            if *entries {
                list(dir, global)?;
            }
            verdict(&found, dir)
        }
        What::Verify { dir } => verify(dir, global),
        What::Repair { dir, dry_run: _, accept_data_loss } => mend(dir, *accept_data_loss, global),
    }
}

fn verify(dir: &Path, global: &Global) -> CliResult {
    let origin = crate::replica::restore::origin(&RealDisk::open(dir));
    let disk = Watched::new(RealDisk::open(dir), global);
    let found = inspect::verify(&disk);
    disk.done();
    match found {
        Ok(found) => {
            show(&found, global)?;
            let first_missing = origin.is_some_and(|origin| origin.index < found.base.index);
            if found.damage.is_empty() && !first_missing {
                check_checkpoints(dir, found.base.index)?;
                check_released(dir)?;
                if !global.json {
                    let entries = found.tail.index - found.base.index;
                    out::print_line(&format!("verified: {entries} entries are what was written"))?;
                }
                return Ok(());
            }
        }
        Err(OpenError::Damaged(_) | OpenError::MissingSegment { .. } | OpenError::WrongChain { .. }) => {}
        Err(error) => return Err(failure(&error, dir)),
    }
    // Once more, as far as anything can be read: all of it is named.
    let disk = Watched::new(RealDisk::open(dir), global);
    let holes = holes_of(&disk, origin);
    disk.done();
    let holes = holes.map_err(|error| failure(&error, dir))?;
    if !global.json {
        for hole in &holes {
            out::print_line(&format!("hole: {hole}"))?;
        }
    }
    Err(with_holes(&holes, dir))
}

/// The checkpoints with which a node would begin: every byte of them.
fn check_checkpoints(dir: &Path, base: u64) -> CliResult {
    let disk = RealDisk::open(dir);
    let unread = |cause: graven_snapshot::CheckpointError| Failure::internal(format!("{}: {cause}", dir.display()));
    for index in graven_snapshot::stored(&disk).map_err(unread)?.into_iter().filter(|index| *index >= base) {
        match graven_snapshot::load(&disk, index) {
            Err(error @ graven_snapshot::CheckpointError::Flawed { .. }) => {
                let name = graven_snapshot::name_of(index);
                let message = format!("{}: the checkpoint is damaged: {error}; {}", dir.display(), next_step(dir));
                return Err(Failure::new(ErrorCode::Damaged, message).with("checkpoint", name));
            }
            loaded => drop(loaded.map_err(unread)?),
        }
    }
    Ok(())
}

/// The record of how far the log was let go of, which is kept twice.
fn check_released(dir: &Path) -> CliResult {
    let found = graven_snapshot::released(&RealDisk::open(dir));
    let found = found.map_err(|cause| Failure::internal(format!("{}: {cause}", dir.display())))?;
    let what = match found.damaged {
        0 => return Ok(()),
        1 => "one of the two records in the file `released` is damaged; start the node: it writes it again".to_owned(),
        _ => format!("both records in the file `released` are damaged; {}", next_step(dir)),
    };
    Err(Failure::new(ErrorCode::Damaged, format!("{}: {what}", dir.display())))
}

/// Damage, with every place of it.
fn with_holes(holes: &[Hole], dir: &Path) -> Failure {
    let mut named: Vec<&Hole> = holes.iter().filter(|hole| hole.needs_frames()).collect();
    if named.is_empty() {
        named = holes.iter().collect();
    }
    let shown: Vec<String> = named.iter().take(MOST_NAMED).map(ToString::to_string).collect();
    let more = named.len().saturating_sub(MOST_NAMED);
    let more = if more > 0 { format!("; and {more} more places") } else { String::new() };
    let message = format!("{} is damaged: {}{more}; {}", dir.display(), shown.join("; "), next_step(dir));
    let failure = Failure::new(ErrorCode::Damaged, message);
    let failure = match named.first() {
        Some(hole) => failure.with("damage", hole_json(hole)),
        None => failure,
    };
    failure.with("holes", holes.iter().map(hole_json).collect::<Vec<_>>())
}

/// Places that are named in the sentence; all of them stand in the lines before it.
const MOST_NAMED: usize = 3;

fn hole_json(hole: &Hole) -> Value {
    let lost = hole.needs_frames();
    json!({
        "segment": hole.segment.to_string(),
        "from": hole.from,
        "to": hole.to,
        "first_index": lost.then_some(hole.first),
        "last_index": hole.last.filter(|_| lost),
        "places": hole.places.iter().map(|place| json!({
            "segment": place.segment.to_string(),
            "from": place.from,
            "to": place.to,
        })).collect::<Vec<_>>(),
        "what": hole.what,
    })
}

/// What to do about damage.
fn next_step(dir: &Path) -> String {
    format!(
        "next: `graven start` fetches what is missing from the other nodes; a node that has no others ends its log before the damage with `graven wal repair --accept-data-loss {}`",
        dir.display()
    )
}

fn mend(dir: &Path, accept_data_loss: bool, global: &Global) -> CliResult {
    let plan = if accept_data_loss {
        repair(&RealDisk::open(dir), Consent::AcceptDataLoss)
    } else {
        let disk = Watched::new(RealDisk::open(dir), global);
        let plan = repair(&disk, Consent::DryRun);
        disk.done();
        plan
    };
    let plan = plan.map_err(|error| failure(&error, dir))?;
    if accept_data_loss && let Some((_, last)) = plan.keeps {
        // A checkpoint of entries that are gone would vouch for them. A crash before this is made up for by repairing again.
        let aside = plan.quarantine.clone().unwrap_or_else(|| CUT_CHECKPOINTS.to_owned());
        graven_snapshot::move_above(&RealDisk::open(dir), last, &aside)
            .map_err(|error| Failure::internal(format!("{}: {error}", dir.display())))?;
    }
    if global.json {
        out::print_line(&plan_json(&plan).to_string())?;
    } else {
        out::print(&plan_text(&plan))?;
    }
    match &plan.reason {
        Some(reason) if !plan.done => {
            let message = format!(
                "{}: {reason}; `graven wal repair --accept-data-loss` does what is listed, keeping every byte aside",
                dir.display()
            );
            Err(Failure::new(ErrorCode::Damaged, message).with("plan", plan_json(&plan)))
        }
        _ => Ok(()),
    }
}

fn plan_json(plan: &RepairPlan) -> Value {
    let range =
        |range: Option<(u64, u64)>| range.map(|(first, last)| json!({"first_index": first, "last_index": last}));
    json!({
        "reason": plan.reason,
        "keeps": range(plan.keeps),
        "loses": range(plan.loses),
        "term": plan.hard_state.term,
        "vote": plan.hard_state.vote,
        "cut": plan.cut.map(|(segment, from)| json!({"segment": segment.to_string(), "from": from})),
        "moved": plan.moved.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "quarantine": plan.quarantine,
        "done": plan.done,
    })
}

fn plan_text(plan: &RepairPlan) -> String {
    let range = |range: Option<(u64, u64)>| {
        range.map_or_else(|| "no entries".to_owned(), |(first, last)| format!("entries {first}..{last}"))
    };
    if plan.reason.is_none() {
        return format!("nothing to repair: {} are what was written\n", range(plan.keeps));
    }
    let mut text = format!("{}:\n", if plan.done { "repaired" } else { "a repair would do this" });
    text.push_str(&format!("  keep {}\n  lose {}\n", range(plan.keeps), range(plan.loses)));
    if let Some((segment, from)) = plan.cut {
        text.push_str(&format!("  cut segment {segment} at byte {from}\n"));
    }
    plan.moved.iter().for_each(|segment| text.push_str(&format!("  move segment {segment} away\n")));
    if let Some(quarantine) = &plan.quarantine {
        text.push_str(&format!("  keep what is cut and moved in {quarantine}\n"));
    }
    let vote = plan.hard_state.vote.map_or_else(|| "nobody".to_owned(), |node| format!("node {node}"));
    text.push_str(&format!("  keep term {}, vote for {vote}\n", plan.hard_state.term));
    text
}

/// Looks at a log that somebody may be writing to: between two reads a record may have come, or a segment gone, so only
/// what is seen again counts as wrong.
fn scan(disk: &Watched) -> Result<Inspection, OpenError> {
    let mut before: Vec<Damage> = Vec::new();
    let mut looks = 0;
    loop {
        looks += 1;
        match inspect::scan(disk) {
            Ok(found) if found.damage.is_empty() || found.damage == before || looks == MOST_LOOKS => return Ok(found),
            Ok(found) => before = found.damage,
            Err(error @ (OpenError::Missing | OpenError::Empty | OpenError::NotALog { .. })) => return Err(error),
            Err(error) if looks == MOST_LOOKS => return Err(error),
            Err(_) => {}
        }
    }
}

/// A writer would have to meet each of this many looks at the very same place.
const MOST_LOOKS: u32 = 5;

fn show(found: &Inspection, global: &Global) -> CliResult {
    if global.json { out::print_line(&as_json(found).to_string()) } else { out::print(&as_text(found)) }
}

fn verdict(found: &Inspection, dir: &Path) -> CliResult {
    match found.damage.first() {
        Some(damage) => Err(damaged(damage, found.damage.len(), dir)),
        None => Ok(()),
    }
}

/// One line an entry.
fn list(dir: &Path, global: &Global) -> CliResult {
    let entries = inspect::entries(&RealDisk::open(dir)).map_err(|error| failure(&error, dir))?;
    let mut out = Out::stdout()?;
    for entry in entries {
        let line = match (entry, global.json) {
            (Ok(entry), true) => entry_json(&entry).to_string(),
            (Ok(entry), false) => entry_text(&entry),
            (Err(OpenError::Damaged(damage)), true) => json!({ "damage": damage_json(&damage) }).to_string(),
            (Err(OpenError::Damaged(damage)), false) => format!("damaged: {damage}"),
            // A running node may have removed the segment in between.
            (Err(OpenError::Io { cause, .. }), _) if cause.kind() == std::io::ErrorKind::NotFound => continue,
            (Err(error), _) => return Err(failure(&error, dir)),
        };
        out.buffer().extend_from_slice(line.as_bytes());
        out.buffer().push(b'\n');
        out.maybe_flush()?;
    }
    out.flush()
}

fn kind(entry: &EntryInfo) -> String {
    format!("{:?}", entry.header.kind).to_lowercase()
}

fn entry_json(entry: &EntryInfo) -> Value {
    let header = &entry.header;
    json!({
        "index": header.index,
        "term": header.term,
        "kind": kind(entry),
        "first_offset": header.base_offset,
        "next_offset": header.next_offset(),
        "body_bytes": header.body_len,
        "timestamp": header.timestamp_ms,
        "segment": entry.segment.to_string(),
        "at": entry.at,
    })
}

fn entry_text(entry: &EntryInfo) -> String {
    let header = &entry.header;
    let offsets = if header.count > 0 {
        format!(" offsets {}..{}", header.base_offset, header.next_offset())
    } else {
        String::new()
    };
    format!(
        "entry {} term {} {}{offsets}, {} at byte {} of segment {}",
        header.index,
        header.term,
        kind(entry),
        human_size(header.body_len.into()),
        entry.at,
        entry.segment
    )
}

fn failure(error: &OpenError, dir: &Path) -> Failure {
    let dir = dir.display();
    match error {
        OpenError::Locked { pid } => {
            Failure::usage(format!("{dir} is in use by process {pid}; stop that node first")).with("pid", *pid)
        }
        OpenError::Damaged(damage) => damaged(damage, 1, Path::new(&dir.to_string())),
        OpenError::WrongChain { .. } | OpenError::MissingSegment { .. } => {
            let next = next_step(Path::new(&dir.to_string()));
            Failure::new(ErrorCode::Damaged, format!("{dir}: {error}; {next}"))
        }
        OpenError::Io { cause, .. } => Failure::internal(format!("{dir}: {error}: {cause}")),
        _ => Failure::usage(format!("{dir}: {error}")),
    }
}

fn damaged(damage: &Damage, places: usize, dir: &Path) -> Failure {
    let more = if places > 1 { format!(", and {} more places", places - 1) } else { String::new() };
    let message = format!("{} is damaged: {damage}{more}; {}", dir.display(), next_step(dir));
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

/// The offsets of the records in each segment, by where it and the next one were opened.
fn offsets(found: &Inspection) -> Vec<Option<(u64, u64)>> {
    let begun = |segment: &&SegmentInfo| segment.state != SegmentState::Prepared;
    let nexts = found.segments.iter().filter(begun).skip(1).map(|segment| segment.opened_at.next_offset);
    let mut nexts = nexts.chain([found.tail.next_offset]);
    let range = |segment: &SegmentInfo| match segment.state {
        SegmentState::Prepared => None,
        _ => nexts.next().map(|next| (segment.opened_at.next_offset, next)),
    };
    found.segments.iter().map(range).collect()
}

fn as_json(found: &Inspection) -> Value {
    let segments = found.segments.iter().zip(offsets(found)).map(|(segment, offsets)| {
        json!({
            "segment": segment.id.to_string(),
            "state": state(segment),
            "file_bytes": segment.file_bytes,
            "written": segment.written,
            "proven": segment.proven,
            "first_index": segment.entries.map(|(first, _)| first),
            "last_index": segment.entries.map(|(_, last)| last),
            "first_offset": offsets.map(|(first, _)| first),
            "next_offset": offsets.map(|(_, next)| next),
            "opened_at_index": segment.opened_at.index,
            "opened_at_term": segment.hard_state.term,
            "salt": format!("{:016x}", segment.salt),
        })
    });
    let runs = found.term_runs.iter().map(|run| json!({"term": run.term, "first_index": run.first_index}));
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
        "terms": runs.collect::<Vec<_>>(),
        "torn_bytes": found.torn_bytes,
        "stale_bytes": found.stale_bytes,
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
    for (segment, offsets) in found.segments.iter().zip(offsets(found)) {
        text.push_str(&segment_text(segment, offsets));
    }
    if found.torn_bytes > 0 {
        text.push_str(&format!("unfinished write at the end: {} bytes, cut at the next start\n", found.torn_bytes));
    }
    if found.stale_bytes > 0 {
        text.push_str(&format!(
            "behind the end: {} bytes left over from before the segment was used again, ignored\n",
            found.stale_bytes
        ));
    }
    found.healed.iter().for_each(|damage| text.push_str(&format!("damaged without loss: {damage}\n")));
    found.damage.iter().for_each(|damage| text.push_str(&format!("damaged: {damage}\n")));
    text
}

fn segment_text(segment: &SegmentInfo, offsets: Option<(u64, u64)>) -> String {
    let size = human_size(segment.file_bytes);
    let (Some((first_offset, next_offset)), false) = (offsets, segment.state == SegmentState::Prepared) else {
        return format!("segment {} prepared: {size}\n", segment.id);
    };
    let entries =
        segment.entries.map_or_else(|| "no entries".to_owned(), |(first, last)| format!("entries {first}..{last}"));
    format!(
        "segment {} {}: {entries}, offsets {first_offset}..{next_offset}, written to byte {}, proven durable to {}, of {size}\n",
        segment.id,
        state(segment),
        segment.written,
        segment.proven
    )
}
