//! What client commands share: finding the cluster, a runtime, connecting, signals, notes on stderr.

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};

use graven_net::client::{Client, ClientConfig};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Global;
use super::error::{CliResult, ErrorCode, Failure};

/// Where clients look when nothing is given.
const DEV_CLIENT_FILE: &str = "graven-dev/client.toml";

/// The client file to use: `--client`, `$GRAVEN_CLIENT`, `./graven-dev/client.toml`, `$XDG_CONFIG_HOME/graven/client.toml`.
pub(crate) fn client_file(given: Option<&Path>) -> CliResult<PathBuf> {
    if let Some(file) = given {
        return existing(file, "--client");
    }
    if let Some(file) = std::env::var_os("GRAVEN_CLIENT").filter(|value| !value.is_empty()) {
        return existing(Path::new(&file), "$GRAVEN_CLIENT");
    }
    let user = user_config_dir().map(|dir| dir.join("graven/client.toml"));
    for file in [Some(PathBuf::from(DEV_CLIENT_FILE)), user.clone()].into_iter().flatten() {
        if file.is_file() {
            return Ok(file);
        }
    }
    let user = user.map(|file| format!(" nor {}", file.display())).unwrap_or_default();
    Err(Failure::config(format!(
        "no cluster known: neither ./{DEV_CLIENT_FILE}{user} is there; run `graven dev`, or name one with --client FILE or $GRAVEN_CLIENT"
    )))
}

fn existing(file: &Path, by: &str) -> CliResult<PathBuf> {
    match std::fs::metadata(file) {
        Ok(found) if found.is_file() => Ok(file.to_owned()),
        Ok(_) => Err(Failure::config(format!("{} (from {by}) is not a file; name a client.toml", file.display()))),
        Err(error) => Err(Failure::config(format!(
            "cannot read {} (from {by}): {error}; name the client.toml that `graven init` or `graven dev` made",
            file.display()
        ))),
    }
}

fn user_config_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))
}

/// Reads the client file that [`client_file`] finds and applies the global options.
pub(crate) fn client_config(global: &Global) -> CliResult<ClientConfig> {
    let file = client_file(global.client.as_deref())?;
    let mut config = ClientConfig::load(&file).map_err(|error| Failure::config(error.to_string()))?;
    config.timeout = global.timeout;
    Ok(config)
}

/// Connects to the cluster.
pub(crate) async fn connect(global: &Global) -> CliResult<Client> {
    Ok(Client::connect(client_config(global)?).await?)
}

/// Runs a client command to its end. Its threads are not waited for: what matters was waited for by the command.
pub(crate) fn block_on<T>(global: &Global, work: impl Future<Output = CliResult<T>>) -> CliResult<T> {
    if global.verbose {
        log_to_stderr();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::internal(format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// One for the connections, one for the command's own tasks beside its main one.
const RUNTIME_THREADS: usize = 2;

fn log_to_stderr() {
    let level = tracing::level_filters::LevelFilter::DEBUG;
    // A closed stderr must not become a panic, so internal errors stay silent.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .try_init();
}

/// A note for people.
pub(crate) fn note(global: &Global, text: &str) {
    if !global.quiet {
        let _ = writeln!(std::io::stderr(), "graven: {text}");
    }
}

/// SIGINT and SIGTERM, for commands that end well by them.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on both signals are ours; call inside a runtime.
    pub(crate) fn install() -> CliResult<Signals> {
        let take =
            |kind| signal(kind).map_err(|error| Failure::internal(format!("cannot listen for signals: {error}")));
        Ok(Signals { interrupt: take(SignalKind::interrupt())?, terminate: take(SignalKind::terminate())? })
    }

    /// The next one of them.
    pub(crate) async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// An error of the client library, as this command tells it.
pub(crate) fn unknown_node(name: &str, known: &[String]) -> Failure {
    Failure::new(
        ErrorCode::Usage,
        format!("there is no node {name:?} in this cluster; its nodes are {}", known.join(", ")),
    )
}

/// A path as a shell takes it.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+:@%".contains(&b)) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}
