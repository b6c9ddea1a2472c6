//! Snapshots that clients put and get: their bytes between the client plane and this node's disk.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use graven_net::server::{
    ErrorCode, Failure, GetRequest, OpenedSnapshot, PutAnswer, PutRequest, Response, SnapshotBody, SnapshotEntry,
    SnapshotInfo, SnapshotSink, SnapshotState,
};
use graven_raft::Role;
use graven_snapshot::body::{self, BodyError, BodyReader, BodyWriter, Header, Info, Name, Options};
use graven_wal::RealDisk;
use tracing::{error, info, warn};

use super::engine::Shared;
use super::failure::failure;
use super::input::Input;
use super::service::{ask, read_index};
use super::snapshot_fetch::SnapshotFetcher;
use crate::replica::names::{Directory, Picture, is_name};
use crate::replica::snapshots::UPLOADS_MAX;
use crate::replica::{Answer, Rejection};

/// The names of which a snapshot is being put here. Each holds a file and a few chunks, so there are [`UPLOADS_MAX`] at most.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<BTreeSet<String>>);

/// A place among [`Uploads`], given back when dropped.
#[derive(Debug)]
struct Place {
    uploads: Arc<Uploads>,
    name: String,
}

impl Uploads {
    fn take(self: &Arc<Self>, name: &str) -> Result<Place, Rejection> {
        let mut names = self.lock();
        if names.contains(name) {
            return Err(Rejection::SnapshotComing);
        }
        if names.len() >= UPLOADS_MAX {
            return Err(Rejection::TooManySnapshots);
        }
        names.insert(name.to_owned());
        Ok(Place { uploads: Arc::clone(self), name: name.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.uploads.lock().remove(&self.name);
    }
}

/// Takes a snapshot in, if it is one that may come.
pub(super) async fn put(
    shared: &Arc<Shared>,
    uploads: &Arc<Uploads>,
    request: PutRequest,
) -> Result<Box<dyn SnapshotSink>, PutAnswer> {
    let PutRequest { name, offset, bytes } = request;
    let not_leader = || PutAnswer::NotLeader(shared.leader.borrow().clone());
    let Some(of) = Name::new(&name).ok().filter(|_| is_name(&name)) else {
        return Err(PutAnswer::Failed(no_name()));
    };
    if shared.view.borrow().role != Role::Leader {
        return Err(not_leader());
    }
    // What was acknowledged before this call is readable here behind it: no offset is called too large that a client was told of.
    read_index(shared).await.map_err(PutAnswer::Failed)?;
    match ask(shared, |reply| Input::MayOffer(name.clone(), offset, reply)).await.map_err(PutAnswer::Failed)? {
        Ok(_) => {}
        Err(Rejection::NotLeader { .. } | Rejection::Transferring) => return Err(not_leader()),
        Err(rejection) => return Err(PutAnswer::Failed(failure(rejection))),
    }
    let place = uploads.take(&name).map_err(|rejection| PutAnswer::Failed(failure(rejection)))?;
    let header = Header {
        cluster: shared.identity.cluster,
        id: rand::random_range(1..=u64::MAX),
        name: of,
        offset,
        timestamp_ms: timestamp_before(shared, offset),
    };
    let options = Options {
        keep_free_bytes: SnapshotFetcher::of(shared).keep_free_bytes,
        expected_bytes: bytes,
        pace: pace(shared.config.snapshot.transfer_rate),
        ..Options::default()
    };
    let disk = RealDisk::open(&shared.config.data_dir);
    let made = tokio::task::spawn_blocking(move || BodyWriter::create(&disk, header, options)).await;
    let writer = match made {
        Ok(Ok(writer)) => writer,
        Ok(Err(error)) => return Err(PutAnswer::Failed(not_written(shared, &error))),
        Err(cause) => return Err(PutAnswer::Failed(Failure::refused(ErrorCode::Internal, cause.to_string()))),
    };
    Ok(Box::new(Upload { shared: Arc::clone(shared), place, writer: Some(writer) }))
}

fn no_name() -> Failure {
    let message =
        "a snapshot's name has 1 to 64 letters, digits, `.`, `_` and `-`, and does not begin with a dot or a dash";
    Failure::refused(ErrorCode::Usage, message)
}

/// When the last record was taken that a snapshot of this offset covers; 0 for none, or one that was trimmed.
fn timestamp_before(shared: &Shared, offset: u64) -> u64 {
    let index = offset.checked_sub(1).and_then(|last| shared.reader.index_of_offset(last).ok().flatten());
    index.and_then(|index| shared.reader.header(index).ok()).map_or(0, |header| header.timestamp_ms)
}

/// Holds a writer to a rate; 0 sets none.
fn pace(bytes_per_second: u64) -> Option<body::Pace> {
    if bytes_per_second == 0 {
        return None;
    }
    let (begun, mut written) = (Instant::now(), 0_u64);
    Some(Box::new(move |bytes| {
        written = written.saturating_add(bytes as u64);
        let due = Duration::from_secs_f64(written as f64 / bytes_per_second as f64);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }))
}

/// Why a snapshot was not written, for its client.
fn not_written(shared: &Shared, error: &BodyError) -> Failure {
    let node = &shared.config.name;
    if error.is_full() {
        let message = format!(
            "node {node} has no room for the snapshot; nothing of it was kept, free space on its disk or drop a snapshot that nobody needs"
        );
        return Failure::refused(ErrorCode::DiskFull, message).with("node", node.as_str());
    }
    match error {
        BodyError::Length { have, expected, .. } => {
            let message = format!("the snapshot has {have} bytes, {expected} were announced; nothing of it was kept");
            Failure::refused(ErrorCode::Usage, message)
        }
        error => {
            warn!("a snapshot was not taken: {error}");
            let message =
                format!("node {node} cannot write the snapshot, nothing of it was kept; look at its disk: {error}");
            Failure::refused(ErrorCode::Internal, message).with("node", node.as_str())
        }
    }
}

/// A snapshot that is being put.
struct Upload {
    shared: Arc<Shared>,
    place: Place,
    /// Until it is finished.
    writer: Option<BodyWriter<RealDisk>>,
}

impl SnapshotSink for Upload {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let closed = || Failure::refused(ErrorCode::Internal, "the snapshot is closed");
        let writer = self.writer.as_mut().ok_or_else(closed)?;
        writer.put(bytes).map_err(|error| not_written(&self.shared, &error))
    }

    fn finish(self: Box<Self>) -> Pin<Box<dyn Future<Output = PutAnswer> + Send>> {
        Box::pin(async move {
            // A client that goes away does not stop it half-way between the file and the log.
            match tokio::spawn(commit(self)).await {
                Ok(answer) => answer,
                Err(cause) => PutAnswer::Failed(Failure::unknown(ErrorCode::Internal, cause.to_string())),
            }
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // A file of gigabytes takes its time to go.
        if let (Some(writer), Ok(runtime)) = (self.writer.take(), tokio::runtime::Handle::try_current()) {
            drop(runtime.spawn_blocking(move || drop(writer)));
        }
    }
}

/// Makes the file durable, offers it, and waits until it is committed.
async fn commit(mut upload: Box<Upload>) -> PutAnswer {
    let shared = Arc::clone(&upload.shared);
    let name = upload.place.name.clone();
    let Some(writer) = upload.writer.take() else {
        return PutAnswer::Failed(Failure::refused(ErrorCode::Internal, "the snapshot is closed"));
    };
    let Info { header, bytes, digest } = match tokio::task::spawn_blocking(move || writer.finish()).await {
        Ok(Ok(info)) => info,
        Ok(Err(error)) => return PutAnswer::Failed(not_written(&shared, &error)),
        Err(cause) => return PutAnswer::Failed(Failure::refused(ErrorCode::Internal, cause.to_string())),
    };
    let Header { id, offset, timestamp_ms, .. } = header;
    let picture = Picture { id, offset, bytes, digest: u128::from(digest), timestamp_ms };
    let patience = SPREAD_MIN + Duration::from_secs(bytes / SPREAD_RATE);
    // From here on the name is the replica's to guard.
    let offered = ask(&shared, |reply| Input::Offer(name.clone(), picture, reply));
    let answer = match tokio::time::timeout(patience, offered).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(gone)) => return PutAnswer::Failed(gone),
        Err(_) => {
            let message = format!(
                "the snapshot is on node {} and after {} s on no majority of the nodes; it is committed when it is, see \
                 `graven snapshot list`",
                shared.config.name,
                patience.as_secs()
            );
            return PutAnswer::Failed(Failure::unknown(ErrorCode::Timeout, message));
        }
    };
    match answer {
        Ok(Answer::SnapshotNamed { .. }) => {
            info!(name, offset, bytes, "a snapshot was put");
            let names = shared.names.borrow().clone();
            let current = names.get(&name).and_then(|named| named.current).filter(|current| current.id == id);
            PutAnswer::Done(info_of(&name, &current.unwrap_or(picture)))
        }
        Ok(_) => {
            PutAnswer::Failed(Failure::unknown(ErrorCode::Internal, "a snapshot was answered with something else"))
        }
        Err(Rejection::NotLeader { .. } | Rejection::Transferring) => {
            PutAnswer::NotLeader(shared.leader.borrow().clone())
        }
        Err(rejection) => PutAnswer::Failed(failure(rejection)),
    }
}

fn info_of(name: &str, picture: &Picture) -> SnapshotInfo {
    let Picture { id, offset, bytes, digest, timestamp_ms } = *picture;
    // A body's digest has 64 bits; the log has room for more.
    SnapshotInfo { name: name.to_owned(), id, offset, bytes, digest: digest as u64, timestamp: timestamp_ms }
}

/// The names as of now, or as this node knows them when nobody leads.
async fn names(shared: &Shared) -> Arc<Directory> {
    // Whoever is cut off gives what it has, as with records; a client that follows the log finds out.
    let _ = tokio::time::timeout(NAMES_PATIENCE, read_index(shared)).await;
    shared.names.borrow().clone()
}

/// The snapshots there are.
pub(super) async fn list(shared: &Shared) -> Response {
    let names = names(shared).await;
    let entries = names.iter().flat_map(|(name, named)| {
        let of = move |picture: Option<Picture>, state| {
            picture.map(|picture| SnapshotEntry { info: info_of(name, &picture), state })
        };
        [of(named.current, SnapshotState::Committed), of(named.offered, SnapshotState::Spreading)].into_iter().flatten()
    });
    Response::Snapshots(entries.collect())
}

/// Ends a name.
pub(super) async fn drop_name(shared: &Shared, name: String) -> Response {
    if !is_name(&name) {
        return Response::Failed(no_name());
    }
    match ask(shared, |reply| Input::DropSnapshot(name, reply)).await {
        Ok(Ok(_)) => Response::SnapshotDropped,
        Ok(Err(Rejection::NotLeader { .. } | Rejection::Transferring)) => {
            Response::NotLeader(shared.leader.borrow().clone())
        }
        Ok(Err(rejection)) => Response::Failed(failure(rejection)),
        Err(gone) => Response::Failed(gone),
    }
}

/// Opens the snapshot that a client wants.
pub(super) async fn get(shared: &Arc<Shared>, request: &GetRequest) -> Result<OpenedSnapshot, Failure> {
    let GetRequest { name, id, .. } = request;
    if !is_name(name) {
        return Err(no_name());
    }
    let names = names(shared).await;
    let Some(picture) = names.get(name).and_then(|named| named.current) else {
        if let Some(id) = id {
            return Err(replaced(name, *id));
        }
        return Err(failure(Rejection::NoSuchSnapshot));
    };
    if let Some(id) = id.filter(|id| *id != picture.id) {
        return Err(replaced(name, id));
    }
    let file = body::file_of(picture.id);
    let disk = RealDisk::open(&shared.config.data_dir);
    let (own, shared) = (file.clone(), Arc::clone(shared));
    let info = info_of(name, &picture);
    let opened = tokio::task::spawn_blocking(move || match BodyReader::open(&disk, &own) {
        Ok(reader) => {
            let chunks = reader.info().chunks();
            let body = Stored { shared, reader, file: own, id: picture.id };
            Ok(OpenedSnapshot { info, chunks, body: Box::new(body) })
        }
        Err(error) => Err(unreadable(&shared, &own, picture.id, &error)),
    });
    opened.await.map_err(|cause| Failure::refused(ErrorCode::Internal, cause.to_string()))?
}

fn replaced(name: &str, id: u64) -> Failure {
    let message =
        format!("the snapshot {name} was dropped or replaced by a newer one while it was being read; get it again");
    Failure::refused(ErrorCode::Conflict, message).with("id", id)
}

/// A stored snapshot, open for a client.
struct Stored {
    shared: Arc<Shared>,
    reader: BodyReader<RealDisk>,
    file: String,
    id: u64,
}

impl SnapshotBody for Stored {
    fn chunk(&mut self, number: u64) -> Result<Bytes, Failure> {
        self.reader.read_chunk(number).map_err(|error| unreadable(&self.shared, &self.file, self.id, &error))
    }
}

/// Sees to a file that cannot be read, and says so to the client that wanted it. Waits for the disk.
pub(super) fn unreadable(shared: &Shared, file: &str, id: u64, cause: &BodyError) -> Failure {
    let node = &shared.config.name;
    if cause.is_missing() {
        // Not fetched yet, or removed since the look at the names.
        let message = format!("node {node} does not hold the snapshot yet; ask another node");
        return Failure::refused(ErrorCode::Unavailable, message).with("node", node.as_str());
    }
    lose(shared, file, id, cause);
    let message = format!("node {node} cannot read its copy of the snapshot; ask another node: {cause}");
    Failure::refused(ErrorCode::Damaged, message).with("node", node.as_str())
}

/// Sets a damaged file aside and lets a good one be fetched. Waits for the disk.
pub(super) fn lose(shared: &Shared, file: &str, id: u64, cause: &BodyError) {
    let disk = RealDisk::open(&shared.config.data_dir);
    warn!("a snapshot cannot be read: {cause}");
    // Somebody else may have found it before, and what has the name by now be a good one.
    if !cause.is_damage() || !body::verify(&disk, file).is_err_and(|error| error.is_damage()) {
        return;
    }
    match body::set_aside(&disk, file) {
        Ok(aside) => error!("the snapshot {file} is damaged; it is kept as {aside} and fetched from another node"),
        Err(error) if error.is_missing() => {}
        Err(error) => error!("the snapshot {file} is damaged and cannot be set aside: {error}"),
    }
    // When the node ends, the next start finds out by itself.
    let _ = shared.inputs.blocking_send(Input::PictureLost(id));
}

/// How long a snapshot may take at least to be on a majority of the nodes.
const SPREAD_MIN: Duration = Duration::from_secs(60);
/// And how many bytes are given a second more: far below what any network of a cluster carries.
const SPREAD_RATE: u64 = 1 << 20;
/// How long it may take to make sure that the names are the newest.
const NAMES_PATIENCE: Duration = Duration::from_secs(2);
