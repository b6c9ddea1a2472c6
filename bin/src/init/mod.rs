//! Makes a new cluster's files: the authority, and for each node certificate, configuration and data directory.
//!
//! Everything is made in a staging directory, `DIR/.graven-init`, and moved to its place when it is complete, the client's file last.
//! An interrupted run that moved nothing is repeated from the start; one that was interrupted while moving is refused by name,
//! because what it left behind may already be in use.

pub mod join;
pub mod recover;
pub mod restore;
pub mod restored;
pub mod survivor;

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use graven_frame::{Body, Chain, Frame, HeaderSpec, Kind};
use graven_net::tls::{Authority, AuthorityError, Role};
use graven_wal::{CreateError, Identity, Options, RealDisk, Wal};

use crate::config::{ConfigError, NodeConfig, check_name, split_address};
use crate::members::{Member, MemberRole, Members, MembersError, NEWEST_LEVEL};

/// One node of the cluster to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNode {
    /// Its name.
    pub name: String,
    /// The host others reach it at.
    pub host: String,
    /// The port for peers; clients use the next one.
    pub port: u16,
}

impl NewNode {
    /// Reads `NAME=HOST:PORT`.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> Result<NewNode, String> {
        let (name, address) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=HOST:PORT"))?;
        NewNode::at(name, address)
    }

    /// The node `name` at `HOST:PORT`.
    ///
    /// # Errors
    /// A sentence.
    pub fn at(name: &str, address: &str) -> Result<NewNode, String> {
        check_name(name).map_err(|why| format!("the name {why}"))?;
        let (host, port) = split_address(address).map_err(|why| format!("the address {why}"))?;
        if port == 0 || port > u16::MAX - 2 {
            return Err(format!("port {port} cannot be used: PORT is for peers, PORT+1 for clients, PORT+2 for HTTP"));
        }
        Ok(NewNode { name: name.to_owned(), host: host.to_owned(), port })
    }

    /// Where peers reach it.
    #[must_use]
    pub fn peer_address(&self) -> String {
        join(&self.host, self.port)
    }

    /// Where clients reach it.
    #[must_use]
    pub fn client_address(&self) -> String {
        join(&self.host, self.port + 1)
    }

    /// Whether it is reached from its own host only.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The address to bind for `port`: a loopback host itself, else all addresses.
    fn listen(&self, port: u16) -> String {
        match (self.host.as_str(), self.host.parse::<IpAddr>()) {
            ("localhost", _) => join("127.0.0.1", port),
            (host, Ok(ip)) if ip.is_loopback() => join(host, port),
            (_, Ok(IpAddr::V6(_))) => join("::", port),
            _ => join("0.0.0.0", port),
        }
    }
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// What to make.
#[derive(Debug, Clone)]
pub struct NewCluster {
    /// Where.
    pub dir: PathBuf,
    /// The nodes; their ids are 1, 2, ... in this order.
    pub nodes: Vec<NewNode>,
    /// Settings that go into every node's configuration: `wal.segment_bytes` and its value.
    pub settings: Vec<Setting>,
}

/// A setting for every node's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// `section.key`.
    pub key: String,
    /// Its value.
    pub value: toml::Value,
}

impl Setting {
    /// Reads `KEY=VALUE`; the value is TOML, or else a plain string.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> Result<Setting, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
        let key = key.trim();
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !plain(section) || !plain(name) {
            return Err(format!("{key:?} is not a setting; write it as SECTION.KEY, for example raft.election_ms"));
        }
        if ["listen", "advertise", "tls"].contains(&section) {
            return Err(format!("{key} differs from node to node, so it cannot be set for all"));
        }
        let plain_text = toml::Value::String(value.to_owned());
        let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
        let value = parsed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
        let value = value.unwrap_or(plain_text);
        Ok(Setting { key: key.to_owned(), value })
    }
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The cluster's id.
    pub cluster: u128,
    /// The file clients need, with an admin's certificate beside it.
    pub client_file: PathBuf,
    /// The configuration of each node, in the order given.
    pub node_files: Vec<PathBuf>,
}

/// Why a cluster could not be made. Nothing that existed before was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// The request makes no cluster.
    #[error("{0}")]
    Request(String),
    /// Something is there already.
    #[error("{} exists already; take another directory, or move it away if it is not needed", path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// A file or directory could not be made.
    #[error("cannot {what} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// An earlier run was interrupted while it moved files into place.
    #[error("an earlier init of {} was interrupted half-way; remove that directory and run it again", dir.display())]
    Interrupted {
        /// The cluster's directory.
        dir: PathBuf,
    },
    /// A setting makes no valid configuration.
    #[error("a setting cannot be used: {0}")]
    Setting(#[source] ConfigError),
    /// There is no cluster to make a node for.
    #[error("{} has no authority in it: name the directory that `graven init` or `graven dev` made, with its ca", dir.display())]
    NoAuthority {
        /// The directory.
        dir: PathBuf,
    },
    /// No certificate could be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The membership is too large.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// A data directory could not be made.
    #[error("cannot make the data directory of {name}: {cause}")]
    Data {
        /// The node.
        name: String,
        /// Why.
        #[source]
        cause: CreateError,
    },
}

impl InitError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InitError {
        move |cause| InitError::Io { what, path: path.to_owned(), cause }
    }
}

/// The most nodes a cluster is made with; more voters only make every append slower.
pub const MAX_NODES: usize = 7;
/// Where everything is made before it is moved into place.
const STAGING: &str = ".graven-init";
/// In the staging directory: moving has begun.
const MOVING: &str = "moving";
/// The client file; there once a cluster is complete.
const CLIENT_FILE: &str = "client.toml";

impl NewCluster {
    /// Makes all files.
    ///
    /// # Errors
    /// [`InitError`]; nothing that existed before was changed.
    pub fn create(&self) -> Result<Created, InitError> {
        self.create_with(|staging, cluster| self.stage(staging, cluster))
    }

    /// The same, with `stage` putting all files of a cluster of this id into the staging directory.
    fn create_with<E: From<InitError>>(&self, stage: impl FnOnce(&Path, u128) -> Result<(), E>) -> Result<Created, E> {
        self.check()?;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).create(&self.dir).map_err(InitError::io("make", &self.dir))?;
        let staging = self.staging()?;
        let cluster = rand::random::<u128>();
        stage(&staging, cluster)?;
        Ok(self.put_in_place(&staging, cluster)?)
    }

    /// Moves what was staged to where it belongs.
    fn put_in_place(&self, staging: &Path, cluster: u128) -> Result<Created, InitError> {
        sync_tree(staging)?;
        // Crash before this mark: the next run throws the staging directory away. Crash after it: the next run refuses.
        write_file(&staging.join(MOVING), b"")?;
        sync_dir(staging)?;
        for name in self.entries() {
            let (from, to) = (staging.join(&name), self.dir.join(&name));
            if to.is_dir() {
                // Found empty by `check`.
                fs::remove_dir(&to).map_err(InitError::io("replace", &to))?;
            }
            fs::rename(&from, &to).map_err(InitError::io("move into place", &to))?;
        }
        sync_dir(&self.dir)?;
        fs::remove_dir_all(staging).map_err(InitError::io("remove", staging))?;
        sync_dir(&self.dir)?;
        Ok(Created {
            cluster,
            client_file: self.dir.join(CLIENT_FILE),
            node_files: self.nodes.iter().map(|node| self.dir.join(&node.name).join("graven.toml")).collect(),
        })
    }

    /// All entries in the cluster's directory, in the order in which they are moved there.
    fn entries(&self) -> Vec<String> {
        let fixed = ["ca", "ca.crt", "client.crt", "client.key"].map(str::to_owned);
        let nodes = self.nodes.iter().map(|node| node.name.clone());
        fixed.into_iter().chain(nodes).chain([CLIENT_FILE.to_owned()]).collect()
    }

    fn check(&self) -> Result<(), InitError> {
        let fail = |why: String| Err(InitError::Request(why));
        if self.nodes.is_empty() || self.nodes.len() > MAX_NODES {
            return fail(format!("a cluster has 1 to {MAX_NODES} nodes, {} were given", self.nodes.len()));
        }
        for (at, node) in self.nodes.iter().enumerate() {
            let others = &self.nodes[..at];
            if others.iter().any(|other| other.name.eq_ignore_ascii_case(&node.name)) {
                return fail(format!("two nodes are called {}; each needs its own name", node.name));
            }
            if others.iter().any(|other| other.host == node.host && other.port.abs_diff(node.port) < 3) {
                return fail(format!("{} overlaps with another node; each needs three ports", node.peer_address()));
            }
        }
        for name in self.entries() {
            let path = self.dir.join(name);
            if !is_free(&path).map_err(InitError::io("look at", &path))? {
                return Err(match self.dir.join(STAGING).join(MOVING).exists() {
                    true => InitError::Interrupted { dir: self.dir.clone() },
                    false => InitError::Exists { path },
                });
            }
        }
        Ok(())
    }

    /// The staging directory, empty.
    fn staging(&self) -> Result<PathBuf, InitError> {
        let staging = self.dir.join(STAGING);
        if staging.join(MOVING).exists() {
            return Err(InitError::Interrupted { dir: self.dir.clone() });
        }
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(InitError::io("remove", &staging)(error));
            }
            _ => {}
        }
        make_dir(&staging, 0o700)?;
        Ok(staging)
    }

    fn stage(&self, staging: &Path, cluster: u128) -> Result<(), InitError> {
        let members = self.members(1, NEWEST_LEVEL);
        let first = first_entry(&members)?;
        self.stage_nodes(staging, cluster, &members, std::slice::from_ref(&first))
    }

    /// Authority, client files, and each node's directory with a log that holds `first`.
    fn stage_nodes(&self, staging: &Path, cluster: u128, members: &Members, first: &[Frame]) -> Result<(), InitError> {
        let authority = Authority::create(cluster)?;
        make_dir(&staging.join("ca"), 0o700)?;
        authority.save(staging.join("ca"))?;
        let public = authority.certificate_pem().as_bytes();
        write_file(&staging.join("ca.crt"), public)?;
        authority.issue_client("admin", Role::Admin)?.save(staging.join("client.crt"), staging.join("client.key"))?;
        write_file(&staging.join(CLIENT_FILE), client_toml(&self.nodes).as_bytes())?;

        write_file(&staging.join("ca").join(join::NEWEST_FILE), members.newest_id().to_string().as_bytes())?;
        for (node, member) in self.nodes.iter().zip(&members.nodes) {
            let identity = Identity { cluster, node: member.id, incarnation: member.incarnation() };
            let dir = staging.join(&node.name);
            stage_node(&dir, &authority, node, identity, &self.settings, first)?;
        }
        Ok(())
    }

    /// All nodes as voters, with ids from `first_id` on.
    fn members(&self, first_id: u64, feature_level: u32) -> Members {
        let nodes = self.nodes.iter().zip(first_id..).map(|(node, id)| Member {
            id,
            name: node.name.clone(),
            peer_address: node.peer_address(),
            client_address: node.client_address(),
            incarnation: rand::random(),
            role: MemberRole::Voter,
        });
        // All nodes are made by this software: nothing older is among them.
        Members { nodes: nodes.collect(), feature_level }
    }
}

/// Makes one node's directory: certificates, configuration, and a log that holds `first`.
fn stage_node(
    dir: &Path,
    authority: &Authority,
    node: &NewNode,
    identity: Identity,
    settings: &[Setting],
    first: &[Frame],
) -> Result<(), InitError> {
    make_dir(dir, 0o700)?;
    write_file(&dir.join("ca.crt"), authority.certificate_pem().as_bytes())?;
    let issued = authority.issue_node(&node.name, identity.node, [&node.host])?;
    issued.save(dir.join("node.crt"), dir.join("node.key"))?;
    let text = node.toml(settings);
    let config = NodeConfig::parse(&text, &dir.join("graven.toml")).map_err(InitError::Setting)?;
    write_file(&dir.join("graven.toml"), text.as_bytes())?;
    make_dir(&config.data_dir, 0o700)?;
    let options = Options { segment_bytes: config.wal.segment_bytes, ..Options::default() };
    Wal::create(RealDisk::open(&config.data_dir), identity, options, first)
        .map_err(|cause| InitError::Data { name: node.name.clone(), cause })
}

impl NewNode {
    /// The text of its `graven.toml`.
    fn toml(&self, settings: &[Setting]) -> String {
        let node = self;
        let text = |value: &str| toml::Value::String(value.to_owned());
        let entry = |key: &str, value: toml::Value| (key.to_owned(), value);
        let mut sections: Vec<(String, Vec<(String, toml::Value)>)> = vec![
            (
                String::new(),
                vec![
                    entry("version", toml::Value::Integer(1)),
                    entry("name", text(&node.name)),
                    entry("data_dir", text("data")),
                ],
            ),
            (
                "listen".to_owned(),
                vec![entry("peer", text(&node.listen(node.port))), entry("client", text(&node.listen(node.port + 1)))],
            ),
            (
                "advertise".to_owned(),
                vec![entry("peer", text(&node.peer_address())), entry("client", text(&node.client_address()))],
            ),
            (
                "tls".to_owned(),
                vec![
                    entry("ca", text("ca.crt")),
                    entry("certificate", text("node.crt")),
                    entry("key", text("node.key")),
                ],
            ),
        ];
        for setting in settings {
            let (section, key) = setting.key.split_once('.').unwrap_or(("", &setting.key));
            let at = sections.iter().position(|(name, _)| name == section).unwrap_or_else(|| {
                sections.push((section.to_owned(), Vec::new()));
                sections.len() - 1
            });
            let entries = &mut sections[at].1;
            entries.retain(|(name, _)| name != key);
            entries.push(entry(key, setting.value.clone()));
        }
        let mut out = format!("# Node {} of a graven cluster. Relative paths are relative to this file.\n", node.name);
        for (name, entries) in sections {
            if !name.is_empty() {
                out.push_str(&format!("\n[{name}]\n"));
            }
            entries.iter().for_each(|(key, value)| out.push_str(&format!("{key} = {value}\n")));
        }
        out
    }
}

/// What a client needs to know of these nodes; names the certificate beside it.
fn client_toml(nodes: &[NewNode]) -> String {
    let endpoints = nodes.iter().map(|node| format!("{} = \"{}\"", node.name, node.client_address()));
    format!(
        "# Where graven's clients find this cluster; the certificate beside it is an admin's.\nendpoints = {{ {} }}\nca = \"ca.crt\"\ncertificate = \"client.crt\"\nkey = \"client.key\"\n",
        endpoints.collect::<Vec<_>>().join(", ")
    )
}

/// Makes again what clients need and is missing in a cluster's directory. `false` when all of it is there.
///
/// # Errors
/// When the authority in `DIR/ca` is needed for it and is gone too, or the directory cannot be written.
pub fn restore_client_files(dir: &Path, nodes: &[NewNode]) -> Result<bool, InitError> {
    let [authority, certificate, key, file] =
        ["ca.crt", "client.crt", "client.key", CLIENT_FILE].map(|name| dir.join(name));
    if [&authority, &certificate, &key, &file].iter().all(|path| path.exists()) {
        return Ok(false);
    }
    if !authority.exists() {
        write_file(&authority, Authority::load(dir.join("ca"))?.certificate_pem().as_bytes())?;
    }
    if !certificate.exists() || !key.exists() {
        // One without the other is of no use to anybody.
        for path in [&certificate, &key] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(InitError::io("remove", path)(error));
                }
                _ => {}
            }
        }
        Authority::load(dir.join("ca"))?.issue_client("admin", Role::Admin)?.save(&certificate, &key)?;
    }
    if !file.exists() {
        write_file(&file, client_toml(nodes).as_bytes())?;
    }
    Ok(true)
}

/// Entry 1 of every node's log, byte for byte the same: the membership.
fn first_entry(members: &Members) -> Result<Frame, InitError> {
    let body = Body::from_chunks(vec![members.encode()?.into()]);
    let crc = body.crc();
    let spec =
        HeaderSpec { kind: Kind::Membership, term: 1, index: 1, base_offset: 0, count: 0, timestamp_ms: now_ms() };
    Ok(Frame::seal(spec, Chain::START, body, crc))
}

/// Nothing there, or an empty directory.
fn is_free(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => Ok(fs::read_dir(path)?.next().is_none()),
        Ok(_) => Ok(false),
    }
}

/// Writes a new file that everybody may read, and syncs it.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), InitError> {
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(InitError::io("write", path))
}

fn make_dir(path: &Path, mode: u32) -> Result<(), InitError> {
    fs::DirBuilder::new().mode(mode).create(path).map_err(InitError::io("make", path))
}

fn sync_dir(path: &Path) -> Result<(), InitError> {
    fs::File::open(path).and_then(|dir| dir.sync_all()).map_err(InitError::io("sync", path))
}

/// Syncs a directory and those within it, two levels deep: that is as deep as staging goes.
fn sync_tree(staging: &Path) -> Result<(), InitError> {
    for entry in fs::read_dir(staging).map_err(InitError::io("list", staging))? {
        let path = entry.map_err(InitError::io("list", staging))?.path();
        if path.is_dir() {
            sync_dir(&path)?;
        }
    }
    sync_dir(staging)
}

/// The time of day, in milliseconds since 1970.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_toml_or_plain_strings() {
        let value = |text: &str| Setting::parse(text).expect("good").value;
        assert_eq!(value("raft.election_ms=300"), toml::Value::Integer(300));
        assert_eq!(value("wal.segment_bytes=64K"), toml::Value::String("64K".to_owned()));
        assert_eq!(value("wal.sync=\"dsync\""), toml::Value::String("dsync".to_owned()));
        assert_eq!(value("log.level=a=b"), toml::Value::String("a=b".to_owned()));
        for wrong in ["raft.election_ms", "=3", "election_ms=3", "tls.ca=x", "a.b.c=1", "raft.=1"] {
            assert!(Setting::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn loopback_hosts_are_listened_on_alone() {
        let listen = |address: &str| NewNode::at("n1", address).expect("good").listen(7000);
        assert_eq!(listen("127.0.0.1:5470"), "127.0.0.1:7000");
        assert_eq!(listen("localhost:5470"), "127.0.0.1:7000");
        assert_eq!(listen("[::1]:5470"), "[::1]:7000");
        assert_eq!(listen("10.0.0.7:5470"), "0.0.0.0:7000");
        assert_eq!(listen("log-1.example:5470"), "0.0.0.0:7000");
        assert_eq!(listen("[fd00::7]:5470"), "[::]:7000");
    }

    #[test]
    fn node_specifications_are_checked() {
        let node = NewNode::parse("n1=host:5470").expect("good");
        assert_eq!((node.peer_address().as_str(), node.client_address().as_str()), ("host:5470", "host:5471"));
        for wrong in ["n1", "n1=host", "=host:1", "n 1=host:1", "ca=host:1", "n1=host:0", "n1=host:65535"] {
            assert!(NewNode::parse(wrong).is_err(), "{wrong}");
        }
    }
}
