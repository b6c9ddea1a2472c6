//! `graven trim`: the log begins later.

use clap::Args;

use super::error::CliResult;
use super::{Global, context, out};

/// Arguments of `graven trim`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: graven trim --before 1000000\n\nThe first offset becomes exactly that, on all nodes at once; a log that begins later already stays as it is. The space is freed soon after, by whole segments. What is trimmed is gone for good."
)]
pub(crate) struct TrimArgs {
    /// The first offset that stays; at most the offset that the next record gets
    #[arg(long, value_name = "OFFSET")]
    before: u64,
}

/// Runs the command.
pub(crate) fn run(args: &TrimArgs, global: &Global) -> CliResult {
    context::block_on(global, async {
        let client = context::connect(global).await?;
        let first_offset = client.trim(args.before).await?;
        if global.json {
            return out::print_line(&serde_json::json!({"first_offset": first_offset}).to_string());
        }
        context::note(global, &format!("the log begins at offset {first_offset}"));
        Ok(())
    })
}
