//! The log of a survivor becomes the beginning of another cluster's: the part of [`super::recover`] that knows a log and no files beside it.

use graven_frame::{Body, Frame, HeaderSpec, Kind};
use graven_net::protocol::FEATURE_LEVEL;
use graven_snapshot::{Checkpoint, CheckpointError, Flaw};
use graven_wal::mend::Marker;
use graven_wal::{Disk, HardState, Identity, Options, Recovered, Wal, adopt};

use super::recover::RecoverError;
use crate::members::{Member, MemberRole, Members};
use crate::replica::restore;

/// A survivor's log under its new identity; nobody else opens it before [`SurvivorLog::settle`].
#[derive(Debug)]
pub struct SurvivorLog<D: Disk> {
    wal: Wal<D>,
    /// The highest id that the old cluster gave, as far as its log says.
    pub newest_id: u64,
    index: u64,
}

impl<D: Disk> SurvivorLog<D> {
    /// Gives the log the identity `wanted`, or the one that was begun with before a crash, and appends the entry that says that the node
    /// it names, which `me` describes, is alone. `now_ms` is the time of day, in milliseconds since 1970. A crash anywhere is gone on with by the next
    /// call.
    ///
    /// # Errors
    /// [`RecoverError`].
    pub fn adopt(
        disk: D,
        options: Options,
        wanted: Identity,
        me: impl FnOnce(&Identity) -> Member,
        now_ms: u64,
    ) -> Result<SurvivorLog<D>, RecoverError> {
        let (mut wal, recovered) = adopt::adopt(disk, options, wanted)?;
        rename_checkpoints(wal.disk(), recovered.identity.cluster)?;
        let (members, index) = found_cluster(&mut wal, &recovered, me(&recovered.identity), now_ms)?;
        Ok(SurvivorLog { wal, newest_id: members.newest_id(), index })
    }

    /// The word that the log lost its end, if there is one, means nothing any more: alone, the node is the majority.
    ///
    /// # Errors
    /// The disk's.
    pub fn forget_lost_end(&self) -> Result<(), RecoverError> {
        Ok(Marker::remove(self.wal.disk())?)
    }

    /// Opens the log to everybody, durably, and closes it. Returns the index of the entry that says that the node is alone.
    ///
    /// # Errors
    /// The disk's.
    pub fn settle(mut self) -> Result<u64, RecoverError> {
        adopt::settle(&mut self.wal)?;
        self.wal.close()?;
        Ok(self.index)
    }
}

/// Whether the log can become that of another cluster, `cluster`; the identity it gets. Changes nothing but what an open settles.
///
/// # Errors
/// [`RecoverError`]: there is nothing to recover, or the log cannot be opened.
pub fn new_identity<D: Disk>(disk: &D, options: &Options, cluster: u128) -> Result<Identity, RecoverError> {
    let (wal, recovered) = Wal::open(disk.clone(), options.clone())?;
    let members = members_of(&wal, &recovered)?;
    wal.close()?;
    if members.feature_level > FEATURE_LEVEL {
        return Err(RecoverError::FeatureLevel { in_force: members.feature_level });
    }
    if is_alone(&members, recovered.identity.node) {
        return Err(RecoverError::Alone);
    }
    let identity = recovered.identity;
    // It stays the node that its log names: a new node that is given this log meets its old memberships first, and must not take the one
    // that gives it for an impostor. Whoever comes with a directory of before is of the old cluster, whatever its incarnation.
    Ok(Identity { cluster, ..identity })
}

/// Whether this node decides alone.
fn is_alone(members: &Members, node: u64) -> bool {
    let membership = members.membership();
    membership.outgoing.is_empty() && membership.voters.into_iter().map(|voter| voter.0).eq([node])
}

/// The members that the log names last.
fn members_of<D: Disk>(wal: &Wal<D>, recovered: &Recovered) -> Result<Members, RecoverError> {
    let reader = wal.reader();
    let (restored, _) = restore::restore(wal.disk(), recovered, &reader)?;
    restore::newest_members(recovered, &reader, &restored)?.ok_or(RecoverError::NoMembers)
}

/// Writes the checkpoints anew, as the new cluster's. One that is damaged stays as it is, and is set aside by a start as ever.
fn rename_checkpoints<D: Disk>(disk: &D, cluster: u128) -> Result<(), RecoverError> {
    for index in graven_snapshot::stored(disk)? {
        match graven_snapshot::load(disk, index) {
            Ok(found) if found.cluster == cluster => {}
            Ok(found) => graven_snapshot::save(disk, &Checkpoint { cluster, ..found })?,
            Err(CheckpointError::Flawed { flaw, .. }) if !matches!(flaw, Flaw::Newer { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Appends the entry that says that this node is alone, unless it is there, and makes it durable. Returns the members of before, and its index.
fn found_cluster<D: Disk>(
    wal: &mut Wal<D>,
    recovered: &Recovered,
    me: Member,
    now_ms: u64,
) -> Result<(Members, u64), RecoverError> {
    let before = members_of(wal, recovered)?;
    let identity = recovered.identity;
    if is_alone(&before, identity.node) {
        // By the run that was interrupted.
        return Ok((before, recovered.memberships.last().copied().unwrap_or(recovered.last_index)));
    }
    // The newest id is remembered beside the authority, but a lost directory must not give an old one again.
    let newest = before.nodes.iter().max_by_key(|member| member.id).filter(|member| member.id != me.id).cloned();
    let removed = newest.map(|member| Member { role: MemberRole::Removed, ..member });
    let nodes: Vec<Member> = std::iter::once(me).chain(removed).collect();
    let mut members = Members { nodes, feature_level: before.feature_level };
    members.nodes.sort_by_key(|member| member.id);
    let term = recovered.hard_state.term.max(recovered.last_term) + 1;
    wal.set_hard_state(HardState { term, vote: Some(identity.node) })?;
    let body = Body::from_chunks(vec![members.encode_voiding_sessions()?.into()]);
    let crc = body.crc();
    let spec = HeaderSpec {
        kind: Kind::Membership,
        term,
        index: recovered.last_index + 1,
        base_offset: recovered.next_offset,
        count: 0,
        timestamp_ms: now_ms.max(recovered.last_timestamp_ms),
    };
    wal.append(&[Frame::seal(spec, recovered.last_chain, body, crc)])?;
    wal.sync()?;
    Ok((members, spec.index))
}
