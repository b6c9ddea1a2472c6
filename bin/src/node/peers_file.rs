//! `peers.toml` beside `graven.toml`: where the other nodes were reached last, for a node that cannot read it in its own log.
//!
//! It is a hint and nothing more: a certificate proves who answers at an address, and what is fetched there is checked by its
//! chain. A file that is missing or wrong costs a damaged node the help of those it names, no more.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

use crate::config::NodeConfig;
use crate::members::Members;

/// Another node, and where its listener for clients is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) id: u64,
    pub(super) address: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    #[serde(default)]
    node: Vec<Peer>,
}

/// Everybody in `members` but the node `id`.
pub(super) fn others(members: &Members, id: u64) -> Vec<Peer> {
    let peer = |member: &crate::members::Member| Peer {
        name: member.name.clone(),
        id: member.id,
        address: member.client_address.clone(),
    };
    members.present().filter(|member| member.id != id).map(peer).collect()
}

/// What the file says; nothing when it is missing or cannot be read.
pub(super) fn read(config: &NodeConfig) -> Vec<Peer> {
    let path = path(config);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) if text.len() <= FILE_BYTES_MAX => text,
        _ => return Vec::new(),
    };
    let file: File = toml::from_str(&text).unwrap_or_else(|cause| {
        warn!("{} is not used: {}", path.display(), cause.message());
        File::default()
    });
    file.node.into_iter().take(PEERS_MAX).collect()
}

/// Writes the file now and whenever the members change, until the node ends.
pub(super) async fn keep(mut members: watch::Receiver<Members>, config: NodeConfig, id: u64) {
    loop {
        let peers = others(&members.borrow_and_update(), id);
        let path = path(&config);
        // Not on the runtime's own threads: the disk may hang.
        let written = tokio::task::spawn_blocking(move || write(&path, peers).map_err(|cause| (path, cause)));
        if let Ok(Err((path, cause))) = written.await {
            warn!("cannot write {}: {cause}; a node whose log is damaged looks there for the others", path.display());
        }
        if members.changed().await.is_err() {
            return;
        }
    }
}

fn write(path: &Path, peers: Vec<Peer>) -> std::io::Result<()> {
    let text = toml::to_string(&File { node: peers }).map_err(std::io::Error::other)?;
    let text = format!("{HEAD}{text}");
    if std::fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let beside = path.with_extension("toml.new");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    std::fs::rename(&beside, path)
}

fn path(config: &NodeConfig) -> PathBuf {
    config.file.with_file_name("peers.toml")
}

const HEAD: &str =
    "# Where the other nodes were last. Written by graven; a hint for a node that cannot read its own log.\n";
/// A cluster has at most seven voters and some learners.
const PEERS_MAX: usize = 64;
const FILE_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_wrong_is_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("graven.toml");
        let text = "version = 1\nname = \"n1\"\ndata_dir = \"data\"\n[listen]\npeer = \"127.0.0.1:1\"\nclient = \"127.0.0.1:2\"\n[tls]\nca = \"a\"\ncertificate = \"b\"\nkey = \"c\"\n";
        let config = NodeConfig::parse(text, &file).expect("a configuration");
        assert_eq!(read(&config), []);
        let peers = vec![Peer { name: "n2".to_owned(), id: 2, address: "host:5471".to_owned() }];
        write(&path(&config), peers.clone()).expect("written");
        assert_eq!(read(&config), peers);
        write(&path(&config), Vec::new()).expect("written");
        assert_eq!(read(&config), []);
        std::fs::write(path(&config), "node = 7").expect("written");
        assert_eq!(read(&config), []);
    }
}
