//! `graven cursor`: where consumers stand in the log.

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::context::{self, note};
use super::error::{CliResult, ErrorCode, Failure};
use super::{Global, out};

/// Arguments of `graven cursor`.
#[derive(Debug, Args)]
#[command(
    after_help = "A cursor is a name and the offset of the record that its consumer wants next. Consumers advance it through the client library; it never goes back so. It holds no trim back.\n\nExample: graven read --from $(graven cursor get billing)"
)]
pub(crate) struct CursorArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show the cursors and where they stand
    List,
    /// Print where a cursor stands
    #[command(after_help = "Example: graven cursor get billing\n\nNo cursor of that name: exit 4.")]
    Get {
        /// The cursor
        name: String,
    },
    /// Put a cursor anywhere in the log, be it back; makes it when it is not there
    #[command(after_help = "Example: graven cursor set billing 1000000\n\nAn offset beyond the end: exit 4.")]
    Set {
        /// The cursor
        name: String,
        /// The record that is wanted next
        offset: u64,
    },
    /// Forget a cursor
    #[command(after_help = "Example: graven cursor drop billing\n\nNo cursor of that name: exit 4.")]
    Drop {
        /// The cursor
        name: String,
    },
}

/// Runs the command.
pub(crate) fn run(args: &CursorArgs, global: &Global) -> CliResult {
    context::block_on(global, async {
        let client = context::connect(global).await?;
        match &args.what {
            What::List => show(&client.cursors().await?, global),
            What::Get { name } => {
                let offset = client.cursor(name).get().await?.ok_or_else(|| missing(name))?;
                let line = if global.json { one(name, offset).to_string() } else { offset.to_string() };
                out::print_line(&line)
            }
            What::Set { name, offset } => {
                let offset = client.cursor(name).set(*offset).await?;
                said(global, name, offset, "stands at")
            }
            What::Drop { name } => {
                let offset = client.cursor(name).remove().await?.ok_or_else(|| missing(name))?;
                said(global, name, offset, "is gone; it stood at")
            }
        }
    })
}

fn one(name: &str, offset: u64) -> Value {
    json!({"name": name, "offset": offset})
}

fn said(global: &Global, name: &str, offset: u64, what: &str) -> CliResult {
    if global.json {
        return out::print_line(&one(name, offset).to_string());
    }
    note(global, &format!("the cursor {name} {what} {offset}"));
    Ok(())
}

fn missing(name: &str) -> Failure {
    Failure::new(
        ErrorCode::OutOfRange,
        format!("no cursor is named {name}; `graven cursor list` shows those that are there"),
    )
}

fn show(cursors: &[(String, u64)], global: &Global) -> CliResult {
    if global.json {
        let cursors: Vec<Value> = cursors.iter().map(|(name, offset)| one(name, *offset)).collect();
        return out::print_line(&json!({"cursors": cursors}).to_string());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["name", "offset"]);
    for (name, offset) in cursors {
        table.add_row([name.clone(), offset.to_string()]);
    }
    out::print_line(&table.to_string())
}
