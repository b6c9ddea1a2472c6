//! `graven start`: one node in the foreground, until a signal or a failure ends it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use graven_net::server::{Server, ServerConfig};
use graven_net::tls::Reload;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use super::bulk::NodeBulk;
use super::engine::{Engine, Fatal, STOP_MAX, Shared, StartError};
use super::mending;
use super::service::NodeService;
use crate::config::NodeConfig;

/// How often the certificate files are looked at.
const RELOAD_EVERY: Duration = Duration::from_secs(5);
/// A certificate that ends within this time is warned of, once a day.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);

/// How `graven start` was called.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// End in order when stdin is closed: `graven dev` holds the other end.
    pub exit_with_stdin: bool,
}

/// Why the daemon ended with an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The runtime or a signal handler could not be set up.
    #[error("the system refused a runtime or a signal handler: {0}")]
    System(#[source] std::io::Error),
    /// The pid file could not be written.
    #[error("cannot write {}: {cause}", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// It ran, and had to stop.
    #[error("{0}")]
    Fatal(Fatal),
}

/// Runs a node until SIGTERM or SIGINT (then in order, with `Ok`) or until it fails.
///
/// # Errors
/// [`DaemonError`].
pub fn run(config: NodeConfig, options: Options) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("graven-clients")
        .enable_all()
        .build()
        .map_err(DaemonError::System)?;
    let result = runtime.block_on(serve(config, options));
    // Reads of stdin and page faults may be in flight on helper threads; the log is closed, so nothing is lost with them.
    runtime.shutdown_background();
    result
}

async fn serve(config: NodeConfig, options: Options) -> Result<(), DaemonError> {
    let mut term = signal(SignalKind::terminate()).map_err(DaemonError::System)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::System)?;
    let pid_file = PidFile::beside(&config.file);
    let mut ready = Ready { pid_file: &pid_file, said: false };
    let healed = tokio::select! {
        started = start_healing(config, &mut ready) => started,
        _ = term.recv() => Ok(None),
        _ = interrupt.recv() => Ok(None),
        () = stdin_closed(), if options.exit_with_stdin => Ok(None),
    };
    let mut engine = match healed {
        Ok(Some(engine)) => engine,
        // A signal before the node was one: there is nothing to hand over, and what was half mended is as it was.
        Ok(None) => {
            ready.take_back();
            return Ok(());
        }
        Err(cause) => {
            ready.take_back();
            return Err(cause.into());
        }
    };
    let server = match start_server(&engine.shared).await {
        Ok(server) => server,
        Err(cause) => {
            stop(engine).await;
            ready.take_back();
            return Err(cause.into());
        }
    };
    info!(
        peers = %engine.shared.config.listen.peer,
        clients = %server.local_address(),
        "ready in {} ms",
        engine.shared.started.elapsed().as_millis()
    );
    ready.say()?;
    let reloading = tokio::spawn(reload(Arc::clone(&engine.shared)));
    let ended = tokio::select! {
        _ = term.recv() => None,
        _ = interrupt.recv() => None,
        () = stdin_closed(), if options.exit_with_stdin => None,
        fatal = engine.fatal.recv() => fatal,
    };
    reloading.abort();
    if let Some(fatal) = ended {
        // What is not acknowledged by now never is; there is nothing to hand over in order.
        pid_file.remove();
        return Err(DaemonError::Fatal(fatal));
    }
    info!("stopping");
    let in_order = async {
        engine.step_down().await;
        server.close().await;
        stop(engine).await;
    };
    tokio::select! {
        () = in_order => {}
        () = tokio::time::sleep(STOP_MAX) => warn!("stopping took too long; the log recovers at the next start"),
        _ = term.recv() => warn!("second signal: ending at once"),
        _ = interrupt.recv() => warn!("second signal: ending at once"),
    }
    pid_file.remove();
    Ok(())
}

/// Starts the node; a log that is damaged is mended first, and the listener answers meanwhile.
async fn start_healing(config: NodeConfig, ready: &mut Ready<'_>) -> Result<Option<Engine>, StartError> {
    for _ in 0..HEALS_MAX {
        match Engine::start(config.clone(), false).await {
            Ok(engine) => return Ok(Some(engine)),
            Err(cause) if mending::may_help(&cause) => {
                error!("the log needs mending: {cause}");
                // Without a pid file the node is harder to find, and heals all the same.
                mending::heal(&config, || ready.say().unwrap_or_else(|cause| warn!("{cause}"))).await?;
            }
            Err(cause) => return Err(cause),
        }
    }
    Engine::start(config, false).await.map(Some)
}

/// One heal closes every hole that was found. A second one is for what broke meanwhile; more would go around in circles.
const HEALS_MAX: usize = 2;

/// What tells the world that the listener answers: the pid file and a line, once.
struct Ready<'a> {
    pid_file: &'a PidFile,
    said: bool,
}

impl Ready<'_> {
    fn say(&mut self) -> Result<(), DaemonError> {
        if std::mem::replace(&mut self.said, true) {
            return Ok(());
        }
        self.pid_file.write()?;
        // Whoever started this node may not listen; that is no reason to stop.
        let _ = writeln!(std::io::stdout(), "ready");
        Ok(())
    }

    /// The node ends before it ran.
    fn take_back(&self) {
        if self.said {
            self.pid_file.remove();
        }
    }
}

pub(super) async fn start_server(shared: &Arc<Shared>) -> Result<Server, StartError> {
    let mut config = ServerConfig::new(shared.config.listen.client);
    config.reset_key = shared.reset_key;
    config.max_record_bytes = shared.config.limits.max_record_bytes;
    config.max_connections = shared.config.limits.connections;
    config.max_subscriptions = 2 * config.max_connections;
    // Beside what the replica may hold, as much again that is on its way to it or back.
    config.client_bytes = shared.config.limits.queue_bytes / 4 * 3;
    config.total_bytes = (2 * shared.config.limits.queue_bytes).max(4 * graven_frame::MAX_GROUP_BYTES);
    let bulk = Arc::new(NodeBulk::new(Arc::clone(shared)));
    Ok(Server::start_with_bulk(config, shared.tls.clone(), NodeService::new(Arc::clone(shared)), bulk).await?)
}

pub(super) async fn stop(engine: Engine) {
    // Joining blocks for as long as the last sync takes.
    if tokio::task::spawn_blocking(move || engine.stop()).await.is_err() {
        error!("a thread of the node panicked while stopping");
    }
}

async fn stdin_closed() {
    let mut stdin = tokio::io::stdin();
    let mut byte = [0; 64];
    while matches!(stdin.read(&mut byte).await, Ok(count) if count > 0) {}
}

/// Takes in new certificates as they are written; keeps the last good pair.
async fn reload(shared: Arc<Shared>) {
    let mut warned = None::<tokio::time::Instant>;
    loop {
        tokio::time::sleep(RELOAD_EVERY).await;
        match shared.tls.reload_if_changed() {
            Ok(Reload::Replaced) => info!("new certificate in use"),
            Ok(_) => {}
            Err(cause) => warn!("new certificate not used, the last good one stays: {cause}"),
        }
        let left = shared.tls.current().not_after().0 - graven_net::tls::UnixTime::now().0;
        let due = warned.is_none_or(|at| at.elapsed() > Duration::from_secs(24 * 3600));
        if due && left < i64::try_from(EXPIRY_WARNING.as_secs()).unwrap_or(i64::MAX) {
            warned = Some(tokio::time::Instant::now());
            warn!(
                "this node's certificate ends on {}; make a new one with `graven certs node`",
                shared.tls.current().not_after()
            );
        }
    }
}

/// `graven.pid` beside the configuration file.
struct PidFile(PathBuf);

impl PidFile {
    fn beside(config: &Path) -> PidFile {
        PidFile(config.with_file_name("graven.pid"))
    }

    fn write(&self) -> Result<(), DaemonError> {
        let written = std::fs::write(&self.0, format!("{}\n", std::process::id()));
        let no_room = |cause: &std::io::Error| {
            matches!(cause.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        };
        match written {
            // A full disk keeps no node from starting. An empty file, or the number of an earlier process, would mislead.
            Err(cause) if no_room(&cause) => {
                warn!("cannot write {}: {cause}; the node runs without it", self.0.display());
                self.remove();
                Ok(())
            }
            written => written.map_err(|cause| DaemonError::PidFile { path: self.0.clone(), cause }),
        }
    }

    fn remove(&self) {
        if let Err(cause) = std::fs::remove_file(&self.0) {
            warn!("cannot remove {}: {cause}", self.0.display());
        }
    }
}
