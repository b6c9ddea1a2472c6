//! `graven bench`: what this machine's disk and a cluster on it really do.

use clap::{Args, Subcommand};

use super::Global;
use super::error::CliResult;

mod append;
mod fsync;
mod quic;

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
    /// Measure QUIC alone between two processes, with graven's own settings
    Quic(quic::QuicBench),
    /// The other process of `graven bench quic`
    #[command(hide = true)]
    QuicListener(quic::QuicListener),
    /// Append as fast as the cluster takes it
    Append(append::AppendBench),
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs, global: &Global) -> CliResult {
    match &args.what {
        What::Fsync(bench) => fsync::run(bench, global),
        What::Quic(bench) => quic::run(bench, global),
        What::QuicListener(listener) => quic::listen(listener, global),
        What::Append(bench) => append::run(bench, global),
    }
}
