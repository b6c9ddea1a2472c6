//! What a node gives other nodes that mend or begin a log, and the check that stands before every frame that leaves it.

use std::sync::Arc;

use bytes::Bytes;
use graven_frame::Frame;
use graven_net::bulk::{
    BulkIdentity, BulkSource, CheckpointReader, Only, Refusal, SnapshotReader, SnapshotWanted, Wanted,
};
use graven_net::peer::Roster;
use graven_net::server::{DamagedRange, NodeState};
use graven_wal::{Damage, ReadError, RealDisk};
use tokio::sync::mpsc;

use super::checkpoints::{open_checkpoint, wanted_from};
use super::engine::{Shared, roster_of};
use super::input::Input;
use super::snapshot_source::SnapshotSource;

/// How whole a node's log is, as far as it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) state: NodeState,
    /// The first damage.
    pub(super) range: Option<DamagedRange>,
}

impl Health {
    pub(super) fn whole() -> Health {
        Health { state: NodeState::Ok, range: None }
    }

    pub(super) fn mending(damage: &Damage) -> Health {
        Health { state: NodeState::Recovering, range: Some(range_of(damage)) }
    }
}

fn range_of(damage: &Damage) -> DamagedRange {
    DamagedRange {
        first: damage.first_index,
        last: Some(damage.last_index),
        segment: damage.segment.to_string(),
        from: damage.from,
        to: damage.to,
    }
}

/// The frames before the first one whose body is not what was written, and the index of that one.
pub(super) fn whole(mut frames: Vec<Frame>) -> (Vec<Frame>, Option<u64>) {
    let Some(at) = frames.iter().position(|frame| frame.verify(None).is_err()) else { return (frames, None) };
    let index = frames[at].header().index;
    frames.truncate(at);
    (frames, Some(index))
}

/// Tells the scrubber where to look first.
#[derive(Debug, Clone)]
pub(super) struct Suspects(mpsc::Sender<u64>);

impl Suspects {
    pub(super) fn new() -> (Suspects, mpsc::Receiver<u64>) {
        let (sender, receiver) = mpsc::channel(SUSPECTS_MAX);
        (Suspects(sender), receiver)
    }

    /// Notes that entry `index` cannot be read. More than it can remember it finds by itself.
    pub(super) fn tell(&self, index: u64) {
        let _ = self.0.try_send(index);
    }
}

/// Places that may wait for the scrubber. Readers run into the same one again and again; a second damage is found when the first
/// one is mended.
const SUSPECTS_MAX: usize = 16;

/// The log of a running node, for other nodes.
#[derive(Debug)]
pub(super) struct NodeBulk {
    shared: Arc<Shared>,
    snapshots: SnapshotSource,
}

impl NodeBulk {
    pub(super) fn new(shared: Arc<Shared>) -> NodeBulk {
        let inputs = shared.inputs.clone();
        // Called on threads that may wait; when the node ends, nobody needs to know.
        let lost = move |id| drop(inputs.blocking_send(Input::PictureLost(id)));
        let snapshots = SnapshotSource::new(RealDisk::open(&shared.config.data_dir), Box::new(lost));
        NodeBulk { shared, snapshots }
    }
}

impl BulkSource for NodeBulk {
    fn local(&self) -> BulkIdentity {
        let identity = self.shared.identity;
        BulkIdentity { cluster: identity.cluster, node: identity.node, incarnation: identity.incarnation }
    }

    fn roster(&self) -> Roster {
        roster_of(&self.shared.members.borrow())
    }

    fn frames(&self, wanted: Wanted, max_bytes: usize) -> Result<Vec<Frame>, Refusal> {
        let shared = &self.shared;
        let view = *shared.view.borrow();
        if view.diverged {
            return Err(Refusal::Busy);
        }
        let last = match wanted.only {
            Only::Committed => view.readable_index,
            Only::Durable => view.durable_index,
        };
        if wanted.first > last {
            // A log that lost its end cannot say what it never had.
            return Err(if view.recovering { Refusal::Busy } else { Refusal::NotYet { last } });
        }
        let frames = match shared.reader.frames(wanted.first, wanted.last.min(last), max_bytes) {
            Ok(frames) => frames,
            Err(ReadError::Trimmed { first, .. }) => return Err(Refusal::Trimmed { first }),
            Err(ReadError::Damaged(damage)) => {
                shared.suspects.tell(damage.first_index);
                return Err(Refusal::Damaged { index: wanted.first });
            }
            Err(ReadError::NotYet { last, .. }) => return Err(Refusal::NotYet { last }),
            Err(_) => return Err(Refusal::Damaged { index: wanted.first }),
        };
        let (frames, broken) = whole(frames);
        match broken {
            Some(index) => shared.suspects.tell(index),
            None => return Ok(frames),
        }
        if frames.is_empty() { Err(Refusal::Damaged { index: wanted.first }) } else { Ok(frames) }
    }

    fn checkpoint_from(&self, place: &[u8]) -> Result<Box<dyn CheckpointReader>, Refusal> {
        let base = self.shared.reader.first_index() - 1;
        let (found, flawed) = open_checkpoint(&self.shared.config.data_dir, wanted_from(place, base));
        for index in flawed {
            // A full channel: the next start finds it gone.
            let _ = self.shared.inputs.try_send(Input::CheckpointLost(index));
        }
        found.map_err(Refusal::from)
    }

    fn snapshots(&self) -> Result<Vec<Bytes>, Refusal> {
        self.snapshots.heads()
    }

    fn snapshot(&self, wanted: SnapshotWanted) -> Result<Box<dyn SnapshotReader>, Refusal> {
        self.snapshots.open(wanted)
    }
}
