//! `graven dev`: a whole cluster on this machine, made of the same processes that run on real hosts.

mod cluster;
mod home;
mod log;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::Global;
use super::context::{self, Signals, note, quoted};
use super::error::{CliResult, Failure};
use super::out;
use crate::init::Setting;
pub(crate) use cluster::Cluster;
use cluster::Event;
pub(crate) use home::{Home, Wish};

/// Arguments of `graven dev`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: graven dev --nodes 5 --set raft.election_ms=300\n\nNode K listens on 127.0.0.1, UDP ports base+10(K-1) for peers and the next one for clients; its log is DIR/nK/graven.log.\n\nA second start on the same directory goes on with the cluster, its ports and its data. Ctrl-C stops all nodes."
)]
pub(crate) struct DevArgs {
    /// The cluster's directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    dir: PathBuf,
    /// How many nodes [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: Option<u16>,
    /// The first UDP port [default: 5470]
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    /// A setting for every node's graven.toml
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = Setting::parse)]
    settings: Vec<Setting>,
}

/// Where clients look by themselves.
const DEFAULT_DIR: &str = "./graven-dev";

/// Runs the command.
pub(crate) fn run(args: &DevArgs, global: &Global) -> CliResult {
    let wish =
        Wish { dir: args.dir.clone(), nodes: args.nodes, base_port: args.base_port, settings: args.settings.clone() };
    context::block_on(global, dev(&wish, global))
}

async fn dev(wish: &Wish, global: &Global) -> CliResult {
    // From the first moment: a signal while nodes start must stop them too.
    let mut signals = Signals::install()?;
    let home = Home::open(wish)?;
    if home.restored {
        note(global, &format!("files for clients were missing and are made again: {}", home.client_file().display()));
    }
    let mut cluster = Cluster::start(home).await?;
    let ended = tokio::select! {
        ended = serve(&mut cluster, wish, global) => Some(ended),
        () = signals.recv() => None,
    };
    cluster.terminate();
    loop {
        tokio::select! {
            () = cluster.stopped() => break,
            // A second signal ends a node at once.
            () = signals.recv() => cluster.terminate(),
        }
    }
    match ended {
        // Whoever waited for `ready` has gone; the nodes are stopped and nobody is told.
        None | Some(Err(Failure::StdoutClosed)) => Ok(()),
        Some(result) => result,
    }
}

/// Gets the cluster up, then tells what happens to its nodes, for good.
async fn serve(cluster: &mut Cluster, wish: &Wish, global: &Global) -> CliResult {
    cluster.wait_ready().await?;
    let leader = cluster.leader().await?;
    let client = cluster.home().client_file();
    let count = cluster.alive();
    let line = if global.json {
        serde_json::json!({"nodes": count, "leader": leader, "client": client.display().to_string()}).to_string()
    } else {
        format!("ready: {count} nodes, leader {leader}, client {}", client.display())
    };
    out::print_line(&line)?;
    if !global.quiet {
        let _ = std::io::stderr().write_all(hints(wish, &client).as_bytes());
    }
    loop {
        if let (at, Event::Exited(status)) = cluster.event().await {
            let name = home::node_name(at);
            let config = cluster.home().config_file(at);
            let text = format!(
                "graven: {name} ended ({status}); start it again with\n  graven start --config {}\n",
                quoted(&config)
            );
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
    }
}

/// Three commands to paste.
fn hints(wish: &Wish, client: &Path) -> String {
    let option =
        if wish.dir == Path::new(DEFAULT_DIR) { String::new() } else { format!(" --client {}", quoted(client)) };
    format!("  graven append{option} /etc/services\n  graven read{option} --from -3\n  graven status{option}\n")
}
