//! Makes the directory of one more node of a cluster that exists.
//!
//! Its log is empty: it gets everything, the members included, from the leader that takes it in. Ids are given once and in
//! order, so the authority's directory remembers the newest one; it is written before the certificate is made, so that a crash in
//! between wastes an id and gives none twice.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use graven_net::tls::{self, Authority, CertReport};
use graven_wal::Identity;

use super::{InitError, NewNode, Setting, is_free, stage_node, sync_dir, sync_tree};

/// In the authority's directory: the highest id that was ever given, in decimal.
pub(super) const NEWEST_FILE: &str = "newest-node";
/// Sections of a configuration that all nodes of a cluster should share.
const SHARED_SECTIONS: [&str; 4] = ["raft", "wal", "limits", "log"];

/// A node to be made for a cluster that exists.
#[derive(Debug, Clone)]
pub struct JoiningNode {
    /// The directory that `graven init` or `graven dev` made, the authority in it.
    pub dir: PathBuf,
    /// The node.
    pub node: NewNode,
    /// Settings for its configuration; what is not among them is taken from another node's configuration in `dir`.
    pub settings: Vec<Setting>,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinFiles {
    /// The node's id.
    pub id: u64,
    /// Its configuration.
    pub node_file: PathBuf,
}

impl JoiningNode {
    /// Makes its directory, `DIR/NAME`.
    ///
    /// # Errors
    /// [`InitError`]; nothing that existed before was changed, except that an id may have been used up.
    pub fn create(&self) -> Result<JoinFiles, InitError> {
        let home = self.dir.join(&self.node.name);
        if !is_free(&home).map_err(InitError::io("look at", &home))? {
            return Err(InitError::Exists { path: home });
        }
        let ca = self.dir.join("ca");
        if !ca.is_dir() {
            return Err(InitError::NoAuthority { dir: self.dir.clone() });
        }
        let authority = Authority::load(&ca)?;
        let id = self.take_id(&ca)?;
        let staging = self.dir.join(format!(".graven-join-{}", self.node.name));
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(InitError::io("remove", &staging)(error));
            }
            _ => {}
        }
        let identity = Identity { cluster: authority.cluster(), node: id, incarnation: rand::random() };
        let mut settings = self.shared_settings();
        settings.extend(self.settings.iter().cloned());
        stage_node(&staging, &authority, &self.node, identity, &settings, &[])?;
        sync_tree(&staging)?;
        if home.is_dir() {
            // Found empty above.
            fs::remove_dir(&home).map_err(InitError::io("replace", &home))?;
        }
        fs::rename(&staging, &home).map_err(InitError::io("move into place", &home))?;
        sync_dir(&self.dir)?;
        Ok(JoinFiles { id, node_file: home.join("graven.toml") })
    }

    /// An id that was never given, and is not given again.
    fn take_id(&self, ca: &Path) -> Result<u64, InitError> {
        let file = ca.join(NEWEST_FILE);
        let written = match fs::read_to_string(&file) {
            Ok(text) => text.trim().parse::<u64>().map_err(|_| {
                InitError::Request(format!(
                    "{} does not hold a number; write the highest id of `graven member list` into it",
                    file.display()
                ))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(InitError::io("read", &file)(error)),
        };
        let id = written.max(self.highest_id()) + 1;
        let fresh = file.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut out = fs::File::create(&fresh)?;
            writeln!(out, "{id}")?;
            out.sync_all()?;
            fs::rename(&fresh, &file)
        };
        write().map_err(InitError::io("write", &file))?;
        sync_dir(ca)?;
        Ok(id)
    }

    /// The highest id among the certificates that lie in the cluster's directory: what there is for a cluster that was made
    /// before ids were counted.
    fn highest_id(&self) -> u64 {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let reports = entries.filter_map(|entry| tls::check([&entry.path().join("node.crt")]).ok()).flatten();
        reports.filter_map(|report: CertReport| report.node()).max().unwrap_or(0)
    }

    /// What another node of the cluster has set, if one is here to look at.
    fn shared_settings(&self) -> Vec<Setting> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path().join("graven.toml")).collect();
        files.sort();
        let tables = files.iter().filter_map(|file| fs::read_to_string(file).ok()?.parse::<toml::Table>().ok());
        let Some(table) = tables.into_iter().next() else { return Vec::new() };
        let sections = SHARED_SECTIONS.iter().filter_map(|name| Some((name, table.get(*name)?.as_table()?)));
        let pairs = sections.flat_map(|(name, section)| {
            section.iter().map(move |(key, value)| Setting { key: format!("{name}.{key}"), value: value.clone() })
        });
        pairs.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;
    use crate::init::NewCluster;

    #[test]
    fn a_joining_node_gets_the_next_id_and_the_settings_of_the_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let setting = Setting::parse("wal.segment_bytes=64K").expect("good");
        let node = |text: &str| NewNode::parse(text).expect("good");
        let nodes = vec![node("n1=127.0.0.1:7000"), node("n2=127.0.0.1:7010")];
        let cluster = NewCluster { dir: dir.path().to_owned(), nodes, settings: vec![setting] };
        cluster.create().expect("made");
        let join = |text: &str| JoiningNode { dir: dir.path().to_owned(), node: node(text), settings: Vec::new() };
        let files = join("n3=127.0.0.1:7020").create().expect("made");
        assert_eq!(files.id, 3);
        let config = NodeConfig::load(&files.node_file).expect("valid");
        assert_eq!(config.wal.segment_bytes, 64 << 10);
        assert!(matches!(join("n3=127.0.0.1:7030").create(), Err(InitError::Exists { .. })));
        // Not even when its directory is gone is an id given again.
        fs::remove_dir_all(dir.path().join("n3")).expect("removed");
        assert_eq!(join("n3=127.0.0.1:7020").create().expect("made").id, 4);
        fs::remove_file(dir.path().join("ca").join(NEWEST_FILE)).expect("removed");
        assert_eq!(join("n5=127.0.0.1:7040").create().expect("made").id, 5);
    }

    #[test]
    fn a_directory_without_an_authority_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let node = NewNode::parse("n4=127.0.0.1:7000").expect("good");
        let join = JoiningNode { dir: dir.path().to_owned(), node, settings: Vec::new() };
        assert!(matches!(join.create(), Err(InitError::NoAuthority { .. })));
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
    }
}
