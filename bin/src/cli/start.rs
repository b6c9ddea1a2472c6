//! `graven start`: one node in the foreground.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use graven_wal::OpenError;

use super::Global;
use super::error::{CliResult, ErrorCode, Failure};
use crate::config::{LogFormat, LogSection, NodeConfig};
use crate::node::StartError;
use crate::node::daemon::{self, DaemonError};

/// Arguments of `graven start`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: graven start --config cluster/n1/graven.toml\n\nPrints `ready` once recovered and listening, and logs to stderr. SIGTERM hands over leadership, syncs and exits; a second signal ends at once."
)]
pub(crate) struct StartArgs {
    /// The node's graven.toml
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Stop in order when stdin closes: how the nodes of `graven dev` notice that it is gone
    #[arg(long, hide = true)]
    exit_with_stdin: bool,
}

/// Runs the command.
pub(crate) fn run(args: &StartArgs, global: &Global) -> CliResult {
    if args.config.is_dir() {
        let dir = args.config.display();
        return Err(Failure::config(format!("{dir} is a directory; name the node's graven.toml in it")));
    }
    let config = NodeConfig::load(&args.config).map_err(Failure::config)?;
    log_to_stderr(&config.log, global);
    let (data_dir, name) = (config.data_dir.clone(), config.name.clone());
    let options = daemon::Options { exit_with_stdin: args.exit_with_stdin };
    daemon::run(config, options).map_err(|error| failure(&error, &data_dir, &name))
}

fn failure(error: &DaemonError, data_dir: &std::path::Path, name: &str) -> Failure {
    match error {
        DaemonError::Start(StartError::Log { dir, source }) => log_failure(source, dir, name),
        DaemonError::Start(StartError::Tls(_)) => Failure::config(error),
        DaemonError::Start(StartError::WrongCertificate { .. }) => {
            let dir = data_dir.display();
            Failure::config(format!("{error}; if {dir} is what is foreign, {}", replace(name)))
        }
        // A socket that cannot be bound: the address is somebody else's or not this host's.
        DaemonError::Start(StartError::Peers(_) | StartError::Clients(_)) => Failure::config(error),
        DaemonError::Start(StartError::Read { .. } | StartError::Restore { .. }) => {
            Failure::new(ErrorCode::Damaged, error.to_string())
        }
        _ => Failure::internal(format!("{error} (data directory {})", data_dir.display())),
    }
}

/// The way out when a node has no data directory of its own.
fn replace(name: &str) -> String {
    format!(
        "a data directory is made by `graven init` only; if the node's own is lost, make a new node with `graven init --join NEW=HOST:PORT --dir DIR`, start it, and put it in the place of this one with `graven member replace {name} NEW --address HOST:PORT`"
    )
}

/// What to do about damage. Whatever the log's own error hopes for, nothing repairs it in this version.
fn damaged(dir: &str) -> String {
    format!(
        "repair from peers is not in this version: keep {dir} as it is, list the damage with `graven wal verify {dir}`, leave this node stopped, and see \"Damage found at start\" in docs/operations.md"
    )
}

fn log_failure(error: &OpenError, dir: &std::path::Path, name: &str) -> Failure {
    let replace = replace(name);
    let dir = dir.display();
    match error {
        OpenError::Missing => Failure::config(format!("{dir} does not exist; is its disk mounted? {replace}")),
        OpenError::Empty => Failure::config(format!("{dir} holds no log; is its disk mounted? {replace}")),
        OpenError::NotALog { .. } | OpenError::WrongCluster { .. } => {
            Failure::config(format!("{dir}: {error}; {replace}"))
        }
        OpenError::Locked { pid } => {
            Failure::usage(format!("{dir} is in use by process {pid}; this node runs already")).with("pid", *pid)
        }
        OpenError::Config { .. } | OpenError::NewerVersion { .. } => Failure::config(format!("{dir}: {error}")),
        OpenError::Damaged(damage) => {
            let what = format!("{dir}: the log is damaged: {damage}; nothing was changed");
            Failure::new(ErrorCode::Damaged, format!("{what}; {}", damaged(&dir.to_string())))
        }
        OpenError::WrongChain { .. } | OpenError::MissingSegment { .. } => {
            Failure::new(ErrorCode::Damaged, format!("{dir}: {error}; {}", damaged(&dir.to_string())))
        }
        _ => Failure::internal(match std::error::Error::source(error) {
            Some(cause) => format!("{dir}: {error}: {cause}"),
            None => format!("{dir}: {error}"),
        }),
    }
}

fn log_to_stderr(section: &LogSection, global: &Global) {
    let level = match (global.verbose, global.quiet) {
        (true, _) => tracing::level_filters::LevelFilter::DEBUG,
        (_, true) => tracing::level_filters::LevelFilter::ERROR,
        _ => section.level.parse().unwrap_or(tracing::level_filters::LevelFilter::INFO),
    };
    // The standard format would report a failed write to stderr on stderr, which panics; a node outlives whoever reads its log.
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(|| Unfailing)
        .log_internal_errors(false);
    let _ = match section.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// stderr, whose failures are nobody's concern.
struct Unfailing;

impl Write for Unfailing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
