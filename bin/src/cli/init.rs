//! `graven init`: the files of a new cluster.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::context::{note, quoted};
use super::error::{CliResult, Failure};
use super::out;
use crate::init::join::JoiningNode;
use crate::init::{InitError, NewCluster, NewNode, Setting};

/// Arguments of `graven init`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  graven init --dir cluster --node n1=10.0.0.1:5470 --node n2=10.0.0.2:5470 \\\n      --node n3=10.0.0.3:5470\n\nThen copy cluster/n1 to its host and run `graven start --config n1/graven.toml` there; the same for the others. Never start a copy of a data directory in a second place.\n\nKeep cluster/ca: its key makes further certificates."
)]
pub(crate) struct InitArgs {
    /// Where to make the files
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// A node and where its peers reach it; clients use PORT+1, PORT+2 is kept for HTTP
    #[arg(long = "node", value_name = "NAME=HOST:PORT")]
    nodes: Vec<String>,
    /// The address of a single --node that is given by name only
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// A setting for every node's graven.toml, for example wal.segment_bytes=16M
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = Setting::parse)]
    settings: Vec<Setting>,
    /// Make the directory of one more node of the cluster in DIR, for `graven member add`
    #[arg(long, value_name = "NAME=HOST:PORT", conflicts_with_all = ["nodes", "address"])]
    join: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &InitArgs, global: &Global) -> CliResult {
    if let Some(node) = &args.join {
        return join(args, node, global);
    }
    let cluster = NewCluster { dir: args.dir.clone(), nodes: nodes(args)?, settings: args.settings.clone() };
    let created = cluster.create().map_err(failure)?;
    if global.json {
        let nodes: Vec<_> = created.node_files.iter().map(|file| file.display().to_string()).collect();
        let value = serde_json::json!({
            "cluster_id": format!("{:032x}", created.cluster),
            "client": created.client_file.display().to_string(),
            "nodes": nodes,
        });
        return out::print_line(&value.to_string());
    }
    // Nothing to copy when all of them are to run here.
    let copied = !cluster.nodes.iter().all(NewNode::is_local);
    note(global, &format!("made cluster {:032x}; {}", created.cluster, if copied { COPY } else { HERE }));
    let lines: String =
        created.node_files.iter().map(|file| format!("graven start --config {}\n", quoted(file))).collect();
    out::print(&lines)?;
    let client = quoted(&created.client_file);
    note(global, &format!("then `graven status --client {client}` shows them"));
    note(global, if copied { ONCE } else { TWICE });
    Ok(())
}

/// The directory of one more node.
fn join(args: &InitArgs, node: &str, global: &Global) -> CliResult {
    let node = NewNode::parse(node).map_err(|why| Failure::usage(format!("--join: {why}")))?;
    let (name, address, is_local) = (node.name.clone(), node.peer_address(), node.is_local());
    let joining = JoiningNode { dir: args.dir.clone(), node, settings: args.settings.clone() };
    let made = joining.create().map_err(failure)?;
    if global.json {
        let value = serde_json::json!({"id": made.id, "name": name, "node": made.node_file.display().to_string()});
        return out::print_line(&value.to_string());
    }
    note(global, &format!("made node {name}, id {}; {}", made.id, if is_local { "run it:" } else { COPY }));
    out::print(&format!("graven start --config {}\n", quoted(&made.node_file)))?;
    note(global, &format!("then `graven member add {name} --address {address}` takes it in"));
    note(global, if is_local { TWICE } else { ONCE });
    Ok(())
}

pub(super) const COPY: &str = "copy each node's directory to its host and run there, with the path it has there:";
pub(super) const HERE: &str = "run each of these, in a terminal or service of its own:";
pub(super) const TWICE: &str = "never start a copy of a data directory: two nodes of one identity lose records";
pub(super) const ONCE: &str =
    "a node's data must never be started in two places: once copied, remove the `data` directories left here";

fn nodes(args: &InitArgs) -> CliResult<Vec<NewNode>> {
    let usage = |why: String| Failure::usage(format!("--node: {why}"));
    match (&args.address, args.nodes.as_slice()) {
        (_, []) => Err(Failure::usage("no node given; name each with --node NAME=HOST:PORT")),
        (Some(address), [name]) if !name.contains('=') => Ok(vec![NewNode::at(name, address).map_err(usage)?]),
        (Some(_), _) => Err(Failure::usage("--address goes with one --node NAME; write the others as NAME=HOST:PORT")),
        (None, nodes) => nodes.iter().map(|text| NewNode::parse(text).map_err(usage)).collect(),
    }
}

/// What a user can mend is exit 2, a disk that does not let us write is exit 1.
pub(crate) fn failure(error: InitError) -> Failure {
    match &error {
        InitError::Io { cause, .. } if cause.kind() != std::io::ErrorKind::NotADirectory => {
            Failure::internal(error.to_string())
        }
        InitError::Data { .. } | InitError::Members(_) => Failure::internal(error.to_string()),
        InitError::Setting(_) => Failure::config(error),
        _ => Failure::usage(error.to_string()),
    }
}
