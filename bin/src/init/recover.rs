//! Makes the survivor of a lost majority the first node of a new cluster.
//!
//! What it holds is kept, all of it, the entries that were not known to be committed too: alone, it is the majority. The new cluster has an
//! id and an authority of its own, so no member of the old one, and none of its clients, is taken for one of the new. One
//! more membership entry says who is left, and voids the sessions: an append that was sent to the old cluster and is sent again is told
//! that its session expired, because nobody knows any more whether it was acknowledged from entries that are lost.
//!
//! A crash anywhere is gone on with when it is done again. The order: the new authority and certificates in a staging directory; the log's new
//! identity ([`graven_wal::adopt`]), whose journal keeps everybody else out from here on; the checkpoints; the membership entry; the node's
//! certificates; the staging directory in its place, `recovered-<n>` beside the configuration; the journal's removal.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use graven_net::protocol::FEATURE_LEVEL;
use graven_net::tls::{Authority, Role};
use graven_snapshot::CheckpointError;
use graven_wal::mend::{Marker, MarkerError};
use graven_wal::{AppendError, Identity, OpenError, Options, RealDisk, adopt, inspect};

use super::join::NEWEST_FILE;
use super::survivor::{self, SurvivorLog};
use super::{CLIENT_FILE, InitError, NewNode, client_toml, make_dir, now_ms, sync_dir, sync_tree, write_file};
use crate::config::{NodeConfig, split_address};
use crate::members::{Member, MemberRole, MembersError};
use crate::replica::restore::RestoreError;

/// What the survivor has, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivor {
    /// Whose log it is.
    pub identity: Identity,
    /// The first entry there.
    pub first_index: u64,
    /// The last entry there.
    pub last_index: u64,
    /// Its term.
    pub last_term: u64,
    /// Offset of the record behind the last one.
    pub next_offset: u64,
    /// The highest entry that is known here to be committed.
    pub known_commit: u64,
    /// The highest entry that may have stood in an end of the log that was cut because it was damaged.
    pub was_cut: Option<u64>,
    /// Whether an earlier run was interrupted: this one goes on with it.
    pub interrupted: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredCluster {
    /// The new cluster's id.
    pub cluster: u128,
    /// The directory with the new authority and the admin's client file, as `graven init --join --dir` takes it.
    pub dir: PathBuf,
    /// The admin's client file.
    pub client_file: PathBuf,
    /// The certificates that were replaced.
    pub kept_files: PathBuf,
    /// The index of the membership entry that says that this node is alone.
    pub index: u64,
}

/// Why a survivor was not recovered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The log cannot be used, or is in use.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// Bytes of the log are not what was written; nothing was changed.
    #[error("the log is damaged: {0}")]
    Damaged(graven_wal::Damage),
    /// With the checkpoints beside it, the log is nothing to start from.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A checkpoint could not be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The membership entry could not be written.
    #[error("the membership entry cannot be written: {0}")]
    Append(#[from] AppendError),
    /// The word that the log was cut cannot be used.
    #[error(transparent)]
    Marker(#[from] MarkerError),
    /// The membership does not fit an entry.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// A certificate or file could not be made.
    #[error(transparent)]
    Files(#[from] InitError),
    /// There is nothing to recover from.
    #[error("this node is the only voter of its cluster and needs no other: start it with `graven start`")]
    Alone,
    /// Nobody is named in the log.
    #[error("the log names no members: this node was never part of a cluster, so there is nothing to recover")]
    NoMembers,
    /// The cluster is ahead of this software.
    #[error(
        "the cluster is at feature level {in_force}, this software knows levels up to {FEATURE_LEVEL}; use a newer graven"
    )]
    FeatureLevel {
        /// The level in force.
        in_force: u32,
    },
}

/// Where everything is made.
const STAGING: &str = ".recover-staging";
/// Where it is kept, with a number.
const PLACE: &str = "recovered-";
/// In there: the node's certificates of before. No node has such a name: beside it is a directory that has the node's.
const BEFORE: &str = "certificates.before";

/// Says what the survivor has. Changes nothing.
///
/// # Errors
/// [`RecoverError`]: it runs, or its log is damaged.
pub fn survey(config: &NodeConfig) -> Result<Survivor, RecoverError> {
    let disk = RealDisk::open(&config.data_dir);
    if let Some(change) = adopt::pending(&disk)? {
        let nothing = Survivor {
            identity: change.from,
            first_index: 0,
            last_index: 0,
            last_term: 0,
            next_offset: 0,
            known_commit: 0,
            was_cut: None,
            interrupted: true,
        };
        return Ok(nothing);
    }
    let found = inspect::verify(&disk)?;
    if let Some(damage) = found.damage.first() {
        return Err(RecoverError::Damaged(damage.clone()));
    }
    Ok(Survivor {
        identity: found.identity,
        first_index: found.base.index + 1,
        last_index: found.tail.index,
        last_term: found.tail.term,
        next_offset: found.tail.next_offset,
        known_commit: found.known_commit.min(found.tail.index),
        was_cut: cut_mark(&disk)?,
        interrupted: false,
    })
}

/// How far the log may once have reached, when its end was cut.
fn cut_mark(disk: &RealDisk) -> Result<Option<u64>, RecoverError> {
    match Marker::read(disk) {
        Ok(marker) => Ok(marker.map(|marker| marker.highest_index)),
        // What it says of votes is of no interest in a new cluster.
        Err(MarkerError::Damaged) => Ok(Some(0)),
        Err(error) => Err(error.into()),
    }
}

/// Makes the survivor the first node of a new cluster, or goes on with that.
///
/// # Errors
/// [`RecoverError`]. What was begun is gone on with by the next call; a refusal changed nothing.
pub fn recover(config: &NodeConfig) -> Result<RecoveredCluster, RecoverError> {
    let disk = RealDisk::open(&config.data_dir);
    let home = config.file.parent().unwrap_or(Path::new(".")).to_owned();
    let options = Options { segment_bytes: config.wal.segment_bytes, ..Options::default() };
    let wanted = match adopt::pending(&disk)? {
        Some(change) => change.to,
        None => survivor::new_identity(&disk, &options, rand::random())?,
    };
    let place = Place::prepare(&home, config, wanted)?;
    let log = SurvivorLog::adopt(disk, options, wanted, |identity| member_of(config, identity), now_ms())?;
    place.note_newest(log.newest_id)?;
    log.forget_lost_end()?;
    place.install(config)?;
    let dir = place.settle()?;
    let index = log.settle()?;
    // The node's own copy is in use; a second one of its key only lies around.
    let _ = fs::remove_file(dir.join(&config.name).join("node.key"));
    Ok(RecoveredCluster {
        cluster: wanted.cluster,
        client_file: dir.join(CLIENT_FILE),
        kept_files: dir.join(BEFORE),
        dir,
        index,
    })
}

/// This node, as the only member of its new cluster.
fn member_of(config: &NodeConfig, identity: &Identity) -> Member {
    Member {
        id: identity.node,
        name: config.name.clone(),
        peer_address: config.advertise.peer.clone(),
        client_address: config.advertise.client.clone(),
        incarnation: identity.incarnation.to_le_bytes(),
        role: MemberRole::Voter,
    }
}

/// The directory that gets the new authority and keeps the old certificates.
struct Place {
    home: PathBuf,
    /// Where it is now.
    at: PathBuf,
}

impl Place {
    /// Everything that is made of files, durable: what an interrupted run made for this cluster, or made now.
    fn prepare(home: &Path, config: &NodeConfig, identity: Identity) -> Result<Place, RecoverError> {
        let staging = home.join(STAGING);
        let made = places(home).into_iter().map(|(_, path)| path).chain([staging.clone()]);
        // The authority is put there last: with it, all of it is there.
        let is_ours =
            |path: &PathBuf| Authority::load(path.join("ca")).is_ok_and(|ca| ca.cluster() == identity.cluster);
        let home = home.to_owned();
        if let Some(at) = made.into_iter().find(is_ours) {
            return Ok(Place { home, at });
        }
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(InitError::io("remove", &staging)(error).into());
            }
            _ => {}
        }
        let place = Place { home, at: staging };
        place.fill(config, identity)?;
        Ok(place)
    }

    fn fill(&self, config: &NodeConfig, identity: Identity) -> Result<(), InitError> {
        let at = &self.at;
        let (before, node) = (at.join(BEFORE), at.join(&config.name));
        for dir in [at, &at.join("ca"), &before, &node] {
            make_dir(dir, 0o700)?;
        }
        let authority = Authority::create(identity.cluster)?;
        let public = authority.certificate_pem().as_bytes();
        write_file(&at.join("ca.crt"), public)?;
        authority.issue_client("admin", Role::Admin)?.save(at.join("client.crt"), at.join("client.key"))?;
        write_file(&at.join(CLIENT_FILE), client_toml(&[new_node(config)?]).as_bytes())?;
        let host = split_address(&config.advertise.peer).map_err(InitError::Request)?.0;
        write_file(&node.join("ca.crt"), public)?;
        authority
            .issue_node(&config.name, identity.node, [host])?
            .save(node.join("node.crt"), node.join("node.key"))?;
        // As beside any authority: settings of further nodes are taken from there, and the node's id when its certificate is renewed.
        copy(&config.file, &node.join("graven.toml"))?;
        for (name, path) in files(config) {
            // A certificate that is lost is no reason to stay without a cluster.
            if path.exists() {
                copy(path, &before.join(name))?;
            }
        }
        sync_tree(at)?;
        authority.save(at.join("ca"))?;
        sync_tree(at)?;
        sync_dir(&self.home)
    }

    /// Remembers beside the authority which ids were given, as long as nobody can have asked it for another one.
    fn note_newest(&self, newest: u64) -> Result<(), InitError> {
        if !self.is_staging() {
            return Ok(());
        }
        let ca = self.at.join("ca");
        let file = ca.join(NEWEST_FILE);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(InitError::io("remove", &file)(error)),
            _ => {}
        }
        write_file(&file, newest.to_string().as_bytes())?;
        sync_dir(&ca)
    }

    fn is_staging(&self) -> bool {
        self.at.file_name().is_some_and(|name| name == STAGING)
    }

    /// Puts the node's new certificates where its configuration has them.
    fn install(&self, config: &NodeConfig) -> Result<(), InitError> {
        for (name, path) in files(config) {
            let fresh = path.with_extension("recover-new");
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(InitError::io("remove", &fresh)(error));
                }
                _ => {}
            }
            copy(&self.at.join(&config.name).join(name), &fresh)?;
            fs::rename(&fresh, path).map_err(InitError::io("replace", path))?;
            if let Some(dir) = path.parent() {
                sync_dir(dir)?;
            }
        }
        Ok(())
    }

    /// Gives it its name.
    fn settle(self) -> Result<PathBuf, InitError> {
        if !self.is_staging() {
            return Ok(self.at);
        }
        let number = places(&self.home).iter().map(|(number, _)| *number).max().unwrap_or(0) + 1;
        let place = self.home.join(format!("{PLACE}{number}"));
        fs::rename(&self.at, &place).map_err(InitError::io("move into place", &place))?;
        sync_dir(&self.home)?;
        Ok(place)
    }
}

/// The certificates of a node: the names they are kept under, and where they are.
fn files(config: &NodeConfig) -> [(&'static str, &Path); 3] {
    let tls = &config.tls;
    [("node.key", tls.key.as_path()), ("node.crt", &tls.certificate), ("ca.crt", &tls.ca)]
}

fn new_node(config: &NodeConfig) -> Result<NewNode, InitError> {
    let (host, port) = split_address(&config.advertise.client).map_err(InitError::Request)?;
    Ok(NewNode { name: config.name.clone(), host: host.to_owned(), port: port.saturating_sub(1) })
}

/// The directories of earlier recoveries beside a node's configuration, and their numbers.
fn places(home: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(home).into_iter().flatten().flatten();
    let numbered = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.strip_prefix(PLACE)?.parse().ok()?;
        Some((number, entry.path()))
    });
    numbered.collect()
}

/// The directory with the authority of the newest recovery of the node at `home`, if there was one.
#[must_use]
pub fn newest_place(home: &Path) -> Option<PathBuf> {
    places(home).into_iter().max_by_key(|(number, _)| *number).map(|(_, path)| path)
}

/// Copies a file with its rights, durably but for its name.
fn copy(from: &Path, to: &Path) -> Result<(), InitError> {
    fs::copy(from, to).map_err(InitError::io("copy", from))?;
    fs::File::open(to).and_then(|file| file.sync_all()).map_err(InitError::io("sync", to))
}
