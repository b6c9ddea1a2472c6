//! The `graven` command: arguments, and one module a command.
//!
//! stdout is for data, stderr for people. A command is a function from its arguments to [`CliResult`]; what is told about a
//! failure, and the exit status, are decided here and in `error` alone.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind as ClapKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use error::{CliResult, Failure};

mod append;
mod backup;
mod bench;
mod certs;
mod context;
mod cursor;
mod dev;
mod doctor;
mod error;
mod init;
mod input;
mod member;
mod out;
mod read;
mod recover;
mod render;
mod restore;
mod snapshot;
mod start;
mod status;
mod trim;
mod wal;

/// A persistent replicated log.
#[derive(Debug, Parser)]
#[command(
    name = "graven",
    version = VERSION,
    about = "A persistent replicated log: Raft over QUIC on checksummed segments",
    after_help = "First steps:\n  graven dev                     makes and runs a cluster on this machine\n  graven append /etc/services    in a second terminal, in the same directory\n  graven read --from -3\n\nClients find their cluster by --client, else $GRAVEN_CLIENT, else ./graven-dev/client.toml, else ~/.config/graven/client.toml.",
    // Lines are broken where the terminal ends, and not beyond what is read easily.
    max_term_width = 100,
    propagate_version = false
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The cluster to talk to
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    pub(crate) client: Option<PathBuf>,
    /// For programs: data and errors as JSON
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,
    /// Give up after this time without progress: 500ms, 10s, 2m
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = parse_timeout, help_heading = "Everywhere")]
    pub(crate) timeout: Duration,
    /// No notes on stderr, only errors
    #[arg(short, long, global = true, help_heading = "Everywhere", conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Tell on stderr what happens
    #[arg(short, long, global = true, help_heading = "Everywhere")]
    pub(crate) verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster on this machine
    Dev(dev::DevArgs),
    /// Make certificates, configurations and data directories of a new cluster
    Init(init::InitArgs),
    /// Run one node in the foreground
    Start(start::StartArgs),
    /// Append lines of files or of stdin
    Append(append::AppendArgs),
    /// Print records, and follow new ones
    Read(read::ReadArgs),
    /// Show the nodes and who leads
    Status(status::StatusArgs),
    /// List what is wrong with a cluster or a node, or soon will be, and what to do
    Doctor(doctor::DoctorArgs),
    /// Hand leadership to a node
    Transfer(status::TransferArgs),
    /// Let go of all records before an offset
    Trim(trim::TrimArgs),
    /// Keep states of applications, so that the log before them may go
    Snapshot(snapshot::SnapshotArgs),
    /// Show and move named cursors: where consumers stand in the log
    Cursor(cursor::CursorArgs),
    /// Show and change who belongs to the cluster
    Member(member::MemberArgs),
    /// Copy the whole log of a running cluster into a directory, or check such a copy
    Backup(backup::BackupArgs),
    /// Make a new cluster from a backup
    Restore(restore::RestoreArgs),
    /// Make a new cluster from the survivor of a lost majority
    Recover(recover::RecoverArgs),
    /// Make and check certificates
    Certs(certs::CertsArgs),
    /// Look into a data directory
    Wal(wal::WalArgs),
    /// Measure
    Bench(bench::BenchArgs),
    /// Print completions for a shell
    #[command(after_help = "Example: graven completions bash > /etc/bash_completion.d/graven")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `graven --version`: the program's version, then those of the bytes it reads and speaks.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\nlog format 1, client protocol graven-client/1, peer protocol graven-peer/1, configuration 1"
);

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let wants_json = arguments.iter().skip(1).take_while(|a| *a != "--").any(|a| a == "--json");
    let result = match Cli::try_parse_from(&arguments) {
        Ok(cli) => run(cli),
        Err(error) => parse_failed(&error),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            if let Failure::Error(error) = &failure {
                error::report(error, wants_json);
            }
            ExitCode::from(failure.status())
        }
    }
}

fn run(cli: Cli) -> CliResult<u8> {
    let global = cli.global;
    match cli.command {
        Command::Dev(args) => dev::run(&args, &global).map(|()| 0),
        Command::Init(args) => init::run(&args, &global).map(|()| 0),
        Command::Start(args) => start::run(&args, &global).map(|()| 0),
        Command::Append(args) => append::run(args, &global).map(|()| 0),
        Command::Read(args) => read::run(&args, &global).map(|()| 0),
        Command::Status(args) => status::run(&args, &global),
        Command::Doctor(args) => doctor::run(&args, &global),
        Command::Transfer(args) => status::transfer(&args, &global).map(|()| 0),
        Command::Trim(args) => trim::run(&args, &global).map(|()| 0),
        Command::Snapshot(args) => snapshot::run(&args, &global).map(|()| 0),
        Command::Cursor(args) => cursor::run(&args, &global).map(|()| 0),
        Command::Member(args) => member::run(&args, &global).map(|()| 0),
        Command::Backup(args) => backup::run(&args, &global).map(|()| 0),
        Command::Restore(args) => restore::run(&args, &global).map(|()| 0),
        Command::Recover(args) => recover::run(&args, &global).map(|()| 0),
        Command::Certs(args) => certs::run(&args, &global).map(|()| 0),
        Command::Wal(args) => wal::run(&args, &global).map(|()| 0),
        Command::Bench(args) => bench::run(&args, &global).map(|()| 0),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "graven", &mut script);
            out::print(&String::from_utf8_lossy(&script)).map(|()| 0)
        }
    }
}

/// Help and version are data; anything else clap says is a usage error, made into one sentence.
fn parse_failed(error: &clap::Error) -> CliResult<u8> {
    let text = error.render().to_string();
    match error.kind() {
        ClapKind::DisplayHelp | ClapKind::DisplayVersion => out::print(&text).map(|()| 0),
        ClapKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            use std::io::Write;
            let _ = std::io::stderr().write_all(text.as_bytes());
            Ok(2)
        }
        _ => {
            let first = text.split("\n\n").next().unwrap_or_default();
            let first = first.strip_prefix("error: ").unwrap_or(first);
            let sentence = first.split_whitespace().collect::<Vec<_>>().join(" ");
            let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
            let tip = tip.map(|tip| format!("; {tip}")).unwrap_or_default();
            Err(Failure::usage(format!("{sentence}{tip}; see --help")))
        }
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let time = crate::config::parse_duration(text)?;
    if time.is_zero() { Err("no time at all; give at least 1ms".to_owned()) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_all_arguments_is_consistent() {
        Cli::command().debug_assert();
    }
}
