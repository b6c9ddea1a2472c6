//! `graven recover`: a new cluster from the survivor of a lost majority.

use std::path::PathBuf;

use clap::Args;
use graven_wal::OpenError;
use serde_json::{Value, json};

use super::Global;
use super::context::{note, quoted};
use super::error::{CliResult, ErrorCode, Failure};
use super::out;
use crate::config::NodeConfig;
use crate::init::recover::{self, RecoverError, RecoveredCluster, Survivor};

/// Arguments of `graven recover`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: graven recover --config n1/graven.toml --accept-data-loss\n\nFor the day on which a majority of the voters is gone for good, with its disks. The node must be stopped. Without --accept-data-loss\nit says what would be done and what may be lost, and changes nothing (exit 2)."
)]
pub(crate) struct RecoverArgs {
    /// The surviving node's graven.toml
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Do it: records that the lost nodes acknowledged and this one does not have are gone
    #[arg(long)]
    accept_data_loss: bool,
}

/// Runs the command.
pub(crate) fn run(args: &RecoverArgs, global: &Global) -> CliResult {
    let config = NodeConfig::load(&args.config).map_err(Failure::config)?;
    let survivor = recover::survey(&config).map_err(|error| failure(&error, &config))?;
    if !args.accept_data_loss {
        if !global.json {
            out::print(&plan(&survivor, &config, false))?;
        }
        let command = format!("graven recover --config {} --accept-data-loss", quoted(&args.config));
        let message = match survivor.interrupted {
            false => format!("nothing was changed; `{command}` does what is listed"),
            true => format!(
                "a recovery of this node was interrupted, and nothing else may use its log; `{command}` goes on with it"
            ),
        };
        return Err(Failure::usage(message).with("plan", plan_json(&survivor)));
    }
    let made = recover::recover(&config).map_err(|error| failure(&error, &config))?;
    if global.json {
        let value = json!({
            "cluster_id": format!("{:032x}", made.cluster),
            "dir": made.dir.display().to_string(),
            "client": made.client_file.display().to_string(),
            "before": made.kept_files.display().to_string(),
            "membership_index": made.index,
            "plan": plan_json(&survivor),
        });
        return out::print_line(&value.to_string());
    }
    if !survivor.interrupted {
        out::print(&plan(&survivor, &config, true))?;
    }
    told(args, &made, global)
}

fn told(args: &RecoverArgs, made: &RecoveredCluster, global: &Global) -> CliResult {
    out::print(&format!(
        "made\n  cluster {:032x}, whose only member is this node (entry {})\n  authority and client files in {}\n  certificates of before in {}\n",
        made.cluster,
        made.index,
        made.dir.display(),
        made.kept_files.display()
    ))?;
    let (dir, client) = (quoted(&made.dir), quoted(&made.client_file));
    note(global, "start it, and then make and add two new nodes, each with:");
    out::print(&format!(
        "graven start --config {}\ngraven init --join NAME=HOST:PORT --dir {dir}\ngraven member add NAME --address HOST:PORT --client {client}\ngraven member promote NAME --client {client}\n",
        quoted(&args.config)
    ))?;
    note(
        global,
        "nodes and client files of the old cluster are refused from now on; give clients new ones with `graven certs client --dir`",
    );
    Ok(())
}

/// What is kept, what may be lost and what is made, for people.
fn plan(survivor: &Survivor, config: &NodeConfig, done: bool) -> String {
    if survivor.interrupted {
        return String::new();
    }
    let Survivor { identity, first_index, last_index, last_term, next_offset, known_commit, .. } = survivor;
    let mut text = format!(
        "survivor\n  node {} ({}) of cluster {:032x}\n  last entry: index {last_index}, term {last_term}; next offset {next_offset}\n",
        identity.node, config.name, identity.cluster
    );
    text.push_str(&format!(
        "keeps\n  entries {first_index}..{last_index}, every record below offset {next_offset} that was not trimmed\n"
    ));
    let behind = last_index - known_commit;
    if behind > 0 {
        text.push_str(&format!(
            "  entries up to {known_commit} are known here to be committed; the {behind} behind them become committed too, be they acknowledged or not\n"
        ));
    }
    text.push_str("may lose\n");
    text.push_str(
        "  records that the lost nodes acknowledged and this one never received; nothing here can tell how many\n",
    );
    if let Some(cut) = survivor.was_cut {
        text.push_str(&format!(
            "  entries behind {last_index}, up to {} or more, that stood in a damaged end of this log, which was cut\n",
            cut.max(last_index + 1)
        ));
    }
    if !done {
        let data = quoted(&config.data_dir);
        text.push_str(&format!(
            "  so compare with every other survivor first: `graven wal inspect {data}` here, the same with its data directory there;\n  recover the one whose last entry has the highest term and, in that term, the highest index, and no other\n"
        ));
        text.push_str("does\n  a new cluster id and authority: nodes, certificates and client files of the old cluster are refused\n  this node becomes its only member; every session ends (session_expired), outcomes of what was in flight stay unknown\n");
    }
    text
}

fn plan_json(survivor: &Survivor) -> Value {
    if survivor.interrupted {
        return json!({"interrupted": true});
    }
    json!({
        "interrupted": false,
        "cluster_id": format!("{:032x}", survivor.identity.cluster),
        "node": survivor.identity.node,
        "first_index": survivor.first_index,
        "last_index": survivor.last_index,
        "last_term": survivor.last_term,
        "next_offset": survivor.next_offset,
        "known_commit_index": survivor.known_commit,
        "was_cut_below": survivor.was_cut,
    })
}

fn failure(error: &RecoverError, config: &NodeConfig) -> Failure {
    let dir = quoted(&config.data_dir);
    let damaged = || {
        let next = format!("nothing was changed; list the damage with `graven wal verify {dir}`");
        Failure::new(ErrorCode::Damaged, format!("{dir}: {error}; {next}"))
    };
    match error {
        RecoverError::Log(OpenError::Locked { pid }) => {
            Failure::usage(format!("{dir} is in use by process {pid}; stop that node first")).with("pid", *pid)
        }
        RecoverError::Log(
            OpenError::Damaged(_)
            | OpenError::MissingSegment { .. }
            | OpenError::WrongChain { .. }
            | OpenError::Journal { .. },
        )
        | RecoverError::Damaged(_) => damaged(),
        RecoverError::Restore(_) => Failure::new(ErrorCode::Damaged, format!("{dir}: {error}")),
        RecoverError::Log(OpenError::Io { cause, .. }) => Failure::internal(format!("{dir}: {error}: {cause}")),
        RecoverError::Checkpoint(_) | RecoverError::Append(_) | RecoverError::Members(_) => {
            Failure::internal(format!("{dir}: {error}; run the same command again when the disk is well"))
        }
        RecoverError::Files(_) => {
            Failure::internal(format!("{error}; run the same command again when that is possible"))
        }
        _ => Failure::usage(format!("{dir}: {error}")),
    }
}
