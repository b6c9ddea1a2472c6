//! `graven restore`: a new cluster from a backup.

use std::path::PathBuf;

use clap::Args;
use graven_wal::AppendError;
use serde_json::json;

use super::Global;
use super::backup::{self, Bar};
use super::context::{note, quoted};
use super::error::{CliResult, ErrorCode, Failure};
use super::{init, out};
use crate::init::restore::{Restoration, RestoreError};
use crate::init::{NewCluster, NewNode, Setting};

/// Arguments of `graven restore`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  graven restore /backup/2026-11-25 --dir cluster --node n1=10.0.0.1:5470 \\\n      --node n2=10.0.0.2:5470 --node n3=10.0.0.3:5470\n\nIt makes what `graven init` makes, with every record at its offset and with its time, cursors too. It is a new cluster with an authority of its own: clients\nneed new certificates, and sessions of before have expired. Every byte of the backup is checked before anything is made."
)]
pub(crate) struct RestoreArgs {
    /// The backup
    #[arg(value_name = "BACKUP")]
    backup: PathBuf,
    /// Where to make the new cluster's files: a new or an empty directory
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// A node and where its peers reach it; clients use PORT+1, PORT+2 is kept for HTTP
    #[arg(long = "node", value_name = "NAME=HOST:PORT", required = true)]
    nodes: Vec<String>,
    /// A setting for every node's graven.toml, for example wal.segment_bytes=16M
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = Setting::parse)]
    settings: Vec<Setting>,
}

/// Runs the command.
pub(crate) fn run(args: &RestoreArgs, global: &Global) -> CliResult {
    let usage = |why: String| Failure::usage(format!("--node: {why}"));
    let nodes: Vec<NewNode> =
        args.nodes.iter().map(|text| NewNode::parse(text).map_err(usage)).collect::<CliResult<_>>()?;
    let local = nodes.iter().all(NewNode::is_local);
    let cluster = NewCluster { dir: args.dir.clone(), nodes, settings: args.settings.clone() };
    // A wrong name or a directory in the way is told before gigabytes are read.
    let restoration = Restoration::prepare(cluster).map_err(failure)?;
    let (backup, fold) = backup::verified(&args.backup, global)?;
    let manifest = backup.manifest().clone();
    let size = manifest.bytes * args.nodes.len() as u64;
    let mut bar = Bar::new(global, size, "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}");
    let made = restoration.restore(&backup, fold, |bytes| bar.show(bytes, || "written".to_owned())).map_err(failure);
    bar.clear();
    let made = made?;
    if global.json {
        let nodes: Vec<_> = made.node_files.iter().map(|file| file.display().to_string()).collect();
        let value = json!({
            "cluster_id": format!("{:032x}", made.cluster),
            "client": made.client_file.display().to_string(),
            "nodes": nodes,
            "backup": backup::json_of(&args.backup, &manifest),
        });
        return out::print_line(&value.to_string());
    }
    note(
        global,
        &format!(
            "made cluster {:032x} with {} records; the next one gets offset {}; {}",
            made.cluster,
            manifest.records(),
            manifest.next_offset,
            if local { init::HERE } else { init::COPY }
        ),
    );
    let lines: String =
        made.node_files.iter().map(|file| format!("graven start --config {}\n", quoted(file))).collect();
    out::print(&lines)?;
    note(global, &format!("then `graven status --client {}` shows them", quoted(&made.client_file)));
    note(global, if local { init::TWICE } else { init::ONCE });
    backup::skipped(&manifest, global);
    Ok(())
}

fn failure(error: RestoreError) -> Failure {
    let full = |dir: &str| {
        let message = format!("the disk has no room for {dir}; nothing was made; name a directory with more room");
        Failure::new(ErrorCode::DiskFull, message)
    };
    match error {
        RestoreError::Files(error) => init::failure(error),
        RestoreError::Backup(error) => backup::failure(error),
        RestoreError::Append { name, cause: AppendError::DiskFull { .. } } => full(&name),
        RestoreError::FeatureLevel { .. } | RestoreError::NoMembers => Failure::usage(error.to_string()),
        error if error.is_full() => full("the new cluster"),
        error => Failure::internal(error.to_string()),
    }
}
