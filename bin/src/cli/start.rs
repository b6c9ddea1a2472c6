//! `graven start`: one node in the foreground.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use graven_wal::{OpenError, RealDisk, adopt};

use super::Global;
use super::context::quoted;
use super::error::{CliResult, ErrorCode, Failure};
use crate::config::{LogFormat, LogSection, NodeConfig};
use crate::init::recover::newest_place;
use crate::node::daemon::{self, DaemonError};
use crate::node::{Fatal, StartError};
use crate::replica::Alarm;

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
    // Its certificates may be half replaced: told before they are looked at.
    if matches!(adopt::pending(&RealDisk::open(&config.data_dir)), Ok(Some(_))) {
        let again = format!("graven recover --config {} --accept-data-loss", quoted(&args.config));
        let dir = config.data_dir.display();
        return Err(Failure::config(format!("{dir}: a recovery of this node did not end; run `{again}` again")));
    }
    let (data_dir, replacement) = (config.data_dir.clone(), Replacement::of(&config));
    let options = daemon::Options { exit_with_stdin: args.exit_with_stdin };
    daemon::run(config, options).map_err(|error| failure(&error, &data_dir, &replacement))
}

fn failure(error: &DaemonError, data_dir: &Path, replacement: &Replacement) -> Failure {
    match error {
        DaemonError::Start(StartError::Log { dir, source }) => log_failure(source, dir, replacement),
        DaemonError::Start(StartError::Tls(_)) => Failure::config(error),
        DaemonError::Start(StartError::WrongCertificate { .. }) => {
            let dir = data_dir.display();
            replacement.told(&format!("{error}; if {dir} is what is foreign"))
        }
        // A restart changes neither: a copy stays a copy, and old software stays old. Supervisors leave exit 2 alone.
        DaemonError::Start(StartError::FeatureLevel { .. }) => Failure::config(error),
        DaemonError::Fatal(Fatal::FeatureLevel { .. } | Fatal::Disowned { .. }) => Failure::config(error),
        // A socket that cannot be bound: the address is somebody else's or not this host's.
        DaemonError::Start(StartError::Peers(_) | StartError::Clients(_)) => Failure::config(error),
        DaemonError::Start(StartError::Read { .. } | StartError::Restore { .. }) => {
            replacement.told_of_damage(&error.to_string())
        }
        DaemonError::Start(StartError::Unmendable { dir, alone: true, .. }) => {
            let dir = dir.display();
            let way = format!(
                "`graven wal repair {dir} --accept-data-loss` cuts it before the damage and keeps the rest aside"
            );
            Failure::new(ErrorCode::Damaged, format!("{error}; {way}"))
        }
        // A restart would only find it again, and serve meanwhile what nobody else has.
        DaemonError::Fatal(Fatal::Alarm(Alarm::Diverged { .. }))
        | DaemonError::Start(
            StartError::Unmendable { .. } | StartError::InDoubt { .. } | StartError::Diverged { .. },
        ) => replacement.told_of_damage(&error.to_string()),
        _ => Failure::internal(format!("{error} (data directory {})", data_dir.display())),
    }
}

/// The way out when a node has no data directory of its own: a new node at its address, made and swapped in by three lines that can be
/// pasted as they are where the authority lies beside the node's directory, as `graven init` and `graven dev` leave it.
struct Replacement {
    commands: [String; 3],
    /// Whether `DIR` stands for a directory that only the operator knows.
    needs_dir: bool,
}

impl Replacement {
    fn of(config: &NodeConfig) -> Replacement {
        // After a recovery the authority beside the node's directory is the old cluster's.
        let recovered = config.file.parent().and_then(newest_place);
        let beside = || config.file.parent().and_then(Path::parent).map(Path::to_owned);
        let cluster = recovered.or_else(beside).filter(|dir| dir.join("ca").is_dir());
        let cluster = cluster.as_deref();
        let (old, address) = (&config.name, &config.advertise.peer);
        let new = fresh_name(old, |name| cluster.is_some_and(|dir| dir.join(name).exists()));
        let dir = cluster.map_or_else(|| "DIR".to_owned(), quoted);
        let client = match cluster.map(|dir| dir.join("client.toml")).filter(|file| file.is_file()) {
            Some(file) => format!(" --client {}", quoted(&file)),
            None => String::new(),
        };
        let file =
            cluster.map_or_else(|| format!("DIR/{new}/graven.toml"), |dir| quoted(&dir.join(&new).join("graven.toml")));
        let commands = [
            format!("graven init --join {new}={address} --dir {dir}"),
            format!("graven start --config {file}"),
            format!("graven member replace {old} {new} --address {address}{client}"),
        ];
        Replacement { commands, needs_dir: cluster.is_none() }
    }

    /// The failure: what is wrong, and the lines that put it right.
    fn told(&self, what: &str) -> Failure {
        let way = self.way();
        let then = if what.ends_with('?') { "" } else { ";" };
        let message = format!(
            "{what}{then} a data directory is made by `graven init` only, so if this node's own is lost, {way}"
        );
        Failure::config(message).with("commands", self.commands.to_vec())
    }

    /// The same where the directory is the node's own, and is of no use any more.
    fn told_of_damage(&self, what: &str) -> Failure {
        let message = format!("{what}; {}", self.way());
        Failure::new(ErrorCode::Damaged, message).with("commands", self.commands.to_vec())
    }

    fn way(&self) -> String {
        let dir = match self.needs_dir {
            true => {
                " (DIR is the directory that `graven init` made, with the authority in its ca; copy DIR/NEW here before it is started)"
            }
            false => "",
        };
        let lines: String = self.commands.iter().map(|line| format!("\n  {line}")).collect();
        format!("put a new node in its place with these lines, the second of them where this node ran{dir}:{lines}")
    }
}

/// A name like `old` that is not taken: `n2-2`, then `n2-3`.
fn fresh_name(old: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let (stem, number) = match old.rsplit_once('-') {
        Some((stem, number)) if !stem.is_empty() => match number.parse::<u32>() {
            Ok(number) => (stem, number),
            Err(_) => (old, 1),
        },
        _ => (old, 1),
    };
    // Names are ASCII and at most 40 bytes; this leaves room for any number.
    let stem = stem.get(..NAME_STEM_MAX).unwrap_or(stem).trim_end_matches(['-', '_']);
    let names = (number.saturating_add(1)..=u32::MAX).map(|number| format!("{stem}-{number}"));
    names.into_iter().find(|name| !is_taken(name)).unwrap_or_else(|| "NEW".to_owned())
}

/// 40 bytes less a hyphen and ten digits.
const NAME_STEM_MAX: usize = 29;

fn log_failure(error: &OpenError, dir: &Path, replacement: &Replacement) -> Failure {
    let dir = dir.display();
    match error {
        OpenError::Missing => replacement.told(&format!("{dir} does not exist; is its disk mounted?")),
        OpenError::Empty => replacement.told(&format!("{dir} holds no log; is its disk mounted?")),
        OpenError::NotALog { .. } | OpenError::WrongCluster { .. } => replacement.told(&format!("{dir}: {error}")),
        OpenError::Locked { pid } => {
            Failure::usage(format!("{dir} is in use by process {pid}; this node runs already")).with("pid", *pid)
        }
        OpenError::Config { .. }
        | OpenError::NewerVersion { .. }
        | OpenError::ChangingIdentity
        | OpenError::Journal { .. } => Failure::config(format!("{dir}: {error}")),
        OpenError::Damaged(damage) => {
            let what = format!("{dir}: the log is damaged: {damage}; nothing was changed");
            replacement.told_of_damage(&format!("{what}; list the damage with `graven wal verify {dir}`"))
        }
        OpenError::WrongChain { .. } | OpenError::MissingSegment { .. } => {
            replacement.told_of_damage(&format!("{dir}: {error}; list the damage with `graven wal verify {dir}`"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_name_is_a_name_and_is_not_taken() {
        let free = |old: &str| fresh_name(old, |_| false);
        assert_eq!((free("n2").as_str(), free("n2-2").as_str(), free("log-a").as_str()), ("n2-2", "n2-3", "log-a-2"));
        assert_eq!(fresh_name("n2", |name| name == "n2-2"), "n2-3");
        let long = free(&"x".repeat(40));
        assert!(crate::config::check_name(&long).is_ok(), "{long}");
    }
}
