//! Looking: at a cluster through a client, or at one node's files.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use graven_net::client::{Client, ClientConfig, ClusterStatus};
use graven_net::protocol::SyncHealth;
use graven_wal::inspect::verify;
use graven_wal::{OpenError, RealDisk};
use tokio::task::JoinSet;

use super::facts::{ClusterFacts, Credentials, Facts, FileFacts, LogIs, NodeFacts};
use super::{LOOK_AGAIN, unusable};
use crate::cli::Global;
use crate::cli::context::{block_on, client_config, quoted};
use crate::cli::error::{CliResult, ErrorCode, Failure};
use crate::cli::status::cluster_status;
use crate::config::NodeConfig;
use crate::health;

/// A cluster, as its nodes tell.
pub(super) fn cluster(global: &Global) -> CliResult<Facts> {
    let config = client_config(global)?;
    let cluster = block_on(global, look(&config, global))?;
    Ok(Facts { now_ms: now_ms(), cluster: Some(cluster), files: None })
}

async fn look(config: &ClientConfig, global: &Global) -> CliResult<ClusterFacts> {
    let credentials = Credentials {
        certificate_expires: health::expires(&config.certificate),
        ca_expires: health::expires(&config.ca),
        readable_keys: health::readable_keys([config.key.as_path()]),
    };
    let mut client = None;
    let earlier = match cluster_status(global, &mut client).await {
        Ok(status) => status,
        Err(Failure::Error(error)) if error.code == ErrorCode::Unauthenticated => {
            let nothing = ClusterStatus { cluster_id: None, leader: None, nodes: Vec::new() };
            return Ok(ClusterFacts {
                earlier: nothing.clone(),
                status: nothing,
                nodes: [].into(),
                members: None,
                client: credentials,
                refused: Some(error.message),
            });
        }
        Err(failure) => return Err(failure),
    };
    tokio::time::sleep(LOOK_AGAIN).await;
    let status = cluster_status(global, &mut client).await?;
    let mut facts =
        ClusterFacts { earlier, status, nodes: [].into(), members: None, client: credentials, refused: None };
    let Some(client) = client else { return Ok(facts) };
    if facts.status.leader.is_some() {
        facts.members = client.members().await.ok();
    }
    let mut asked = JoinSet::new();
    for node in facts.status.nodes.iter().filter(|node| node.reachable) {
        asked.spawn(ask(client.clone(), node.name.clone()));
    }
    while let Some(answer) = asked.join_next().await {
        let Ok(Some((name, node))) = answer else { continue };
        facts.nodes.insert(name, node);
    }
    Ok(facts)
}

async fn ask(client: Client, name: String) -> Option<(String, NodeFacts)> {
    // The connection may have to be made: only the second answer is timed.
    client.node_health(&name).await.ok()?;
    let asked_ms = now_ms();
    let health = client.node_health(&name).await.ok()?;
    Some((name, NodeFacts { health, asked_ms, answered_ms: now_ms() }))
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// One node's files.
pub(super) fn files(file: &Path) -> CliResult<Facts> {
    if file.is_dir() {
        let dir = file.display();
        return Err(Failure::config(format!("{dir} is a directory; name the node's graven.toml in it")));
    }
    let config = NodeConfig::load(file).map_err(unusable)?;
    let log = log_of(&config);
    let pid = fs::read_to_string(config.pid_file()).ok().and_then(|text| text.trim().parse().ok());
    let open_files = pid.filter(|_| log == LogIs::Running).and_then(health::open_files);
    let syncs = measured(&config.data_dir);
    let files = FileFacts {
        name: config.name.clone(),
        config: quoted(file),
        data_dir: config.data_dir.display().to_string(),
        // Looked at after the syncs were measured: the file they were measured with is gone.
        place: health::place(&config),
        syncs,
        credentials: Credentials {
            certificate_expires: health::expires(&config.tls.certificate),
            ca_expires: health::expires(&config.tls.ca),
            // The node's own is among the facts about its place.
            readable_keys: Vec::new(),
        },
        log,
        open_files,
    };
    Ok(Facts { now_ms: now_ms(), cluster: None, files: Some(files) })
}

fn log_of(config: &NodeConfig) -> LogIs {
    let found = match verify(&RealDisk::open(&config.data_dir)) {
        Ok(found) => found,
        Err(OpenError::Locked { .. }) => return LogIs::Running,
        Err(error @ (OpenError::Missing | OpenError::Empty | OpenError::NotALog { .. })) => {
            return LogIs::NotOurs(error.to_string());
        }
        Err(error @ OpenError::NewerVersion { .. }) => return LogIs::Newer(error.to_string()),
        Err(error @ OpenError::WrongCluster { .. }) => return LogIs::NotOurs(error.to_string()),
        Err(OpenError::Damaged(damage)) => return LogIs::Damaged(vec![damage.to_string()]),
        Err(error @ (OpenError::WrongChain { .. } | OpenError::MissingSegment { .. })) => {
            return LogIs::Damaged(vec![error.to_string()]);
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            return LogIs::Unreadable(format!("{error}{cause}"));
        }
    };
    if let Some(foreign) = foreign(config, &found.identity) {
        return LogIs::NotOurs(foreign);
    }
    match found.damage.is_empty() {
        true => LogIs::Whole { torn_bytes: found.torn_bytes },
        false => LogIs::Damaged(found.damage.iter().map(ToString::to_string).collect()),
    }
}

/// Whose log it is, when the certificate is not of the same node.
fn foreign(config: &NodeConfig, identity: &graven_wal::Identity) -> Option<String> {
    let reports = graven_net::tls::check([&config.tls.certificate]).ok()?;
    let own = reports.iter().find(|report| report.node().is_some())?;
    let is_own = own.node() == Some(identity.node) && own.cluster() == Some(identity.cluster);
    let certificate = config.tls.certificate.display();
    (!is_own).then(|| {
        format!(
            "it is the log of node {} of cluster {:032x}, and {certificate} is of another",
            identity.node, identity.cluster
        )
    })
}

/// How long a few syncs of a small file take in `dir`. `None` where it cannot be written.
fn measured(dir: &Path) -> Option<SyncHealth> {
    let path = dir.join(format!(".graven-doctor-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&path).ok()?;
    let took = sync_times(&mut file);
    // Left behind it would be harmless: the log looks at its own files only.
    let _ = fs::remove_file(&path);
    took.ok().map(SyncHealth::of)
}

fn sync_times(file: &mut fs::File) -> std::io::Result<Vec<u64>> {
    let mut took = Vec::with_capacity(SYNCS);
    let until = Instant::now() + SYNCS_MAX;
    while took.len() < SYNCS && Instant::now() < until {
        file.write_all(&[0; 512])?;
        let began = Instant::now();
        file.sync_data()?;
        took.push(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok(took)
}

/// A disk that is well does these in a moment.
const SYNCS: usize = 16;
/// One that is not shall not hold up whoever asks what is wrong.
const SYNCS_MAX: Duration = Duration::from_secs(3);
