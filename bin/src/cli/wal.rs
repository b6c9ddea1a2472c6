//! `graven wal inspect` and `graven wal verify`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

use super::Global;
use super::error::{CliResult, Failure};

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
pub(crate) fn run(args: &WalArgs, _global: &Global) -> CliResult {
    let (What::Inspect { dir } | What::Verify { dir }) = &args.what;
    Err(Failure::usage(format!("cannot inspect {}", dir.display())))
}
