//! `graven bench`: what this machine's disk and a cluster on it really do.

use clap::{Args, Subcommand};

use super::Global;
use super::error::CliResult;

mod append;
mod fsync;

/// Arguments of `graven bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measure what this disk's syncs cost, raw and through graven's log
    Fsync(fsync::FsyncBench),
    /// Append as fast as the cluster takes it
    Append(append::AppendBench),
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs, global: &Global) -> CliResult {
    match &args.what {
        What::Fsync(bench) => fsync::run(bench, global),
        What::Append(bench) => append::run(bench, global),
    }
}
