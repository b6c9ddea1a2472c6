//! `graven bench`: what this machine's disk and a cluster on it really do.

use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};

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

fn parse_seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.001..=3600.0).contains(seconds))
        .ok_or_else(|| format!("{text:?} is not a number of seconds from 0.001 to 3600"))
}

/// A table whose columns from `numbers` on are numbers.
fn table(head: &[&str], numbers: usize, rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(head);
    rows.for_each(|row| {
        table.add_row(row);
    });
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if at >= numbers {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
