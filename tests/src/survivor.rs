//! Clusters that begin with the log of another one.
//!
//! A majority is lost for good, and the survivor becomes the first node of a new cluster, as `graven recover` does it: power fails between the
//! calls of that, and it is done again. Everything that the survivor held is in the new cluster, at the same offsets; nodes are added to it;
//! sessions of before are void.
//!
//! Or a node's log is copied while the cluster goes on, as `graven backup` does it, and a new cluster is made of that, as `graven restore` does it.

use graven::backup;
use graven::init::recover::RecoverError;
use graven::init::restored::{End, RestoredLog};
use graven::init::survivor::{SurvivorLog, new_identity};
use graven::members::change::MemberChange;
use graven::members::{Member, MemberRole, Members};
use graven::replica::Rejection;
use graven::replica::fold::Fold;
use graven_frame::{Frame, Group};
use graven_snapshot::Checkpoint;
use graven_wal::planted as wal;
use graven_wal::sim::SimDisk;
use graven_wal::{OpenError, Options, Wal, adopt};

use crate::check::liveness::{self, Left};
use crate::check::{Checked, Violation};
use crate::client::Writer;
use crate::cluster::{Cluster, Event};
use crate::faults::newcomer;
use crate::node::Node;
use crate::profile::Profile;
use crate::rng::Rng;
use crate::trace::{Trace, TraceTo};

/// Members change, by hand; nothing else happens to the new cluster.
const AFTER: Profile = Profile { name: "after", member_us: 1, ..Profile::CALM };
/// The new cluster.
const CLUSTER: u128 = 8;
/// Events before the majority is lost.
const STEPS: u64 = 3_000;
/// More than there are calls of the disk in a recovery: the last attempt is left alone.
const CRASHES: u64 = 4;

/// What is in a log: where its files begin, and the frames behind that.
struct Held {
    base: u64,
    frames: Vec<Frame>,
}

fn violated(property: &'static str, detail: String) -> Violation {
    Violation { property, detail }
}

/// Everything in the log on `disk`.
fn held(disk: &SimDisk, options: Options) -> Result<Held, Violation> {
    let fail = |error: String| violated("recovery", error);
    let (wal, found) = Wal::open(disk.clone(), options).map_err(|error| fail(error.to_string()))?;
    let reader = wal.reader();
    let read = |index| reader.frame(index).map_err(|error| fail(format!("entry {index}: {error}")));
    let frames = (found.first_index..=found.last_index).map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(Held { base: found.base.index, frames })
}

fn alone(id: u64) -> Member {
    let new = newcomer(id);
    Member {
        id,
        name: new.name,
        peer_address: new.peer_address,
        client_address: new.client_address,
        incarnation: new.incarnation,
        role: MemberRole::Voter,
    }
}

/// Recovers the log on `disk`, on which power fails again and again. Returns the disk as it is then.
fn recover(mut disk: SimDisk, node: u64, options: &Options, rng: &mut Rng) -> Result<SimDisk, Violation> {
    let fail = |error: String| violated("recovery", format!("node {node} is not recovered: {error}"));
    for attempt in 0..=CRASHES {
        if attempt < CRASHES {
            disk.power_off_after(rng.below(40));
        }
        let done = (|| {
            let wanted = match adopt::pending(&disk)? {
                Some(change) => change.to,
                None => new_identity(&disk, options, CLUSTER)?,
            };
            let log = SurvivorLog::adopt(disk.clone(), options.clone(), wanted, |identity| alone(identity.node), 0)?;
            log.forget_lost_end()?;
            log.settle()
        })();
        match done {
            Ok(_) => {
                disk = disk.crash(rng.draw());
                let settled = adopt::pending(&disk).map_err(|error| fail(error.to_string()))?;
                return settled
                    .map_or(Ok(disk), |_| Err(fail("it is done, and begins again after a crash".to_owned())));
            }
            // The crash came behind the last call that mattered: there is nothing left to do, and it says so.
            Err(RecoverError::Alone) if attempt > 0 => return Ok(disk.crash(rng.draw())),
            Err(error) if attempt == CRASHES => return Err(fail(error.to_string())),
            Err(_) => disk = disk.crash(rng.draw()),
        }
        // A log that is half another one's is nobody's.
        let opened = Wal::open(disk.copy(), options.clone()).map(|(wal, found)| (wal.close(), found.identity.cluster));
        match (adopt::pending(&disk), opened) {
            (Ok(Some(_)), Err(OpenError::ChangingIdentity)) | (Ok(None), Ok(_)) => {}
            (pending, opened) => {
                return Err(fail(format!("after a crash {pending:?} is pending, and it opens as {opened:?}")));
            }
        }
    }
    Err(fail("no attempt was left alone".to_owned()))
}

/// Whether the members in force have one of this name in this role.
fn has(cluster: &Cluster, name: &str, role: MemberRole) -> bool {
    let settled = cluster.members().filter(|members| !members.is_joint());
    settled.and_then(|members| members.by_name(name)).is_some_and(|member| member.role == role)
}

/// Asks until it is so.
fn ask(cluster: &mut Cluster, change: &MemberChange, name: &str, role: MemberRole) -> Checked {
    let began = cluster.now_us;
    while !has(cluster, name, role) {
        liveness::progress(cluster.now_us - began, &Left { changing: true, ..Left::default() })?;
        cluster.run_while(|cluster| cluster.leader().is_none())?;
        if let Some(leader) = cluster.leader() {
            cluster.ask_change(leader, change.clone());
        }
        let until = cluster.stats.steps + 400;
        cluster.run_while(|cluster| !has(cluster, name, role) && cluster.stats.steps < until)?;
    }
    Ok(())
}

/// Runs a cluster of three under `before`, of which one node is left; then the cluster that it becomes.
fn survive(seed: u64, before: Profile) -> Checked {
    let mut old = Cluster::new(seed, 3, before, Trace::new(TraceTo::Hash));
    old.schedule_faults();
    while old.stats.steps < STEPS {
        old.step()?;
    }
    let survivor = old.rng.between(1, 4);
    old.stop(survivor, true);
    let mut rng = old.rng.fork();
    let mut node = old.nodes.remove(survivor as usize - 1);
    // Without the faults that were ordered for it.
    node.disk = node.disk.copy();
    let options = node.options();
    let had = held(&node.disk, options.clone())?;
    if had.frames.is_empty() && had.base == 0 {
        return Ok(());
    }
    node.disk = recover(node.disk, survivor, &options, &mut rng)?;
    node.join_cluster(CLUSTER);
    let has_now = held(&node.disk, options)?;
    let same = had.frames.iter().zip(&has_now.frames).take_while(|(one, other)| one == other).count();
    if has_now.base != had.base || same != had.frames.len() || has_now.frames.len() != had.frames.len() + 1 {
        let detail = format!("node {survivor} had {} entries and has {same} of them", had.frames.len());
        return Err(violated("P1", detail));
    }
    let sessions: Vec<Group> = old.writers.iter().filter_map(Writer::unsettled).collect();
    let mut log = old.checkers_log()[..had.base as usize].to_vec();
    log.extend(has_now.frames);
    // What the survivor let go of, it let go of because of entries that were committed.
    let committed = old.checkers_log().iter().zip(&log).take_while(|(one, other)| one == other).count() as u64;
    let (base, commit) = (had.base, committed.max(had.base));
    let mut cluster = begin(seed, Beginning { nodes: vec![node], log: &log, base, commit, void: &sessions })?;
    for id in [4, 5] {
        let name = format!("n{id}");
        ask(&mut cluster, &MemberChange::Add(newcomer(id)), &name, MemberRole::Learner)?;
        ask(&mut cluster, &MemberChange::Promote { name: name.clone() }, &name, MemberRole::Voter)?;
    }
    cluster.stop(survivor, true);
    cluster.schedule(cluster.now_us + 500_000, Event::Start { node: survivor });
    end(cluster, &log)
}

/// How a new cluster begins.
struct Beginning<'a> {
    /// Who is there, each with the same log.
    nodes: Vec<Node>,
    /// From entry 1 on.
    log: &'a [Frame],
    /// Its files hold what is behind this entry.
    base: u64,
    /// So much of it is committed.
    commit: u64,
    /// Appends of sessions of before.
    void: &'a [Group],
}

/// The new cluster, before anything happened in it.
fn begin(seed: u64, beginning: Beginning<'_>) -> Result<Cluster, Violation> {
    let Beginning { nodes, log, base, commit, void } = beginning;
    let mut cluster = Cluster::new(seed, 3, AFTER, Trace::new(TraceTo::Hash));
    let there: Vec<u64> = nodes.iter().map(|node| node.id).collect();
    cluster.forget_starts(|id| id <= 3 && !there.contains(&id));
    for id in 1..=cluster.nodes.len() as u64 {
        *cluster.node_mut(id) = Node::of_cluster(CLUSTER, id, seed ^ id, None);
    }
    for node in nodes {
        let id = node.id;
        *cluster.node_mut(id) = node;
        cluster.checkers.inherits(id, log, base, commit)?;
    }
    // With the daemon's windows: one append at a time never catches up with writers that go on.
    cluster.nodes.iter_mut().for_each(|node| node.configure = Some(|_| {}));
    cluster.run_while(|cluster| cluster.checkers_log().len() <= log.len())?;
    for group in void {
        cluster.run_while(|cluster| cluster.leader().is_none())?;
        let Some(leader) = cluster.leader() else { continue };
        let asked = cluster.append_from_outside(leader, group.clone())?;
        cluster.run_while(|cluster| !cluster.answered.contains_key(&asked))?;
        let answer = cluster.answered.remove(&asked);
        if !matches!(answer, Some(Err(Rejection::SessionExpired))) {
            let detail = format!("an append of a session of the old cluster was answered with {answer:?}");
            return Err(violated("P7", detail));
        }
    }
    Ok(cluster)
}

/// Ends the work in a new cluster, whose log must begin with `log`.
fn end(mut cluster: Cluster, log: &[Frame]) -> Checked {
    cluster.finish_writers();
    cluster.run_until_done()?;
    let kept = cluster.checkers_log().iter().zip(log).take_while(|(one, other)| one == other).count();
    if kept != log.len() {
        let detail = format!("{} entries were to be kept, the new cluster has {kept} of them", log.len());
        return Err(violated("P1", detail));
    }
    let voters = cluster.members().map(|members| members.membership().voters.len());
    assert_eq!(voters, Some(3), "as many as there were made");
    Ok(())
}

/// Copies the log of `node` while it runs. Returns the checkpoint that it begins with, and the frames.
fn copy(cluster: &Cluster, node: u64) -> Result<(Option<Checkpoint>, Vec<Frame>), Violation> {
    let fail = |error: String| violated("backup", format!("node {node}: {error}"));
    let Some(process) = &cluster.node(node).process else { return Ok((None, Vec::new())) };
    let (view, base) = (process.replica.view(), process.reader.first_index() - 1);
    let (disk, last) = (&cluster.node(node).disk, view.readable_index);
    let found = match base {
        0 => None,
        base => {
            let found = backup::beginning(disk, base, view.first_offset, last);
            let found = found.map_err(|error| fail(error.to_string()))?;
            if found.is_none() {
                // It says so; somebody else is asked.
                return Ok((None, Vec::new()));
            }
            found
        }
    };
    let first = found.as_ref().map_or(0, |found| found.base.index) + 1;
    let read = |index| process.reader.frame(index).map_err(|error| fail(format!("entry {index}: {error}")));
    Ok((found, (first..=last).map(read).collect::<Result<_, _>>()?))
}

/// Makes nodes of a copy, and a cluster of them.
fn restore(seed: u64, before: Profile) -> Result<bool, Violation> {
    let fail = |error: String| violated("restore", error);
    let mut old = Cluster::new(seed, 3, before, Trace::new(TraceTo::Hash));
    old.schedule_faults();
    while old.stats.steps < STEPS {
        old.step()?;
    }
    // Whoever gives a copy has everything that is committed when it is asked for.
    let committed = old.checkers_log().len() as u64;
    let gives = |node: &&Node| node.process.as_ref().is_some_and(|it| it.replica.view().readable_index >= committed);
    let able: Vec<u64> = old.nodes.iter().filter(gives).map(|node| node.id).collect();
    if able.is_empty() {
        return Ok(false);
    }
    let from = *old.rng.pick(&able);
    let (checkpoint, frames) = copy(&old, from)?;
    if frames.is_empty() {
        return Ok(false);
    }
    let mut fold = Fold::new(checkpoint.as_ref()).map_err(|error| fail(error.to_string()))?;
    for frame in &frames {
        fold.push(frame).map_err(|error| fail(format!("entry {}: {error}", frame.header().index)))?;
    }
    let ids = [4, 5, 6];
    let level = fold.members().map_or(0, |members| members.feature_level);
    let members = Members { nodes: ids.map(alone).to_vec(), feature_level: level };
    let end_of_log = End::of(fold, &members, CLUSTER, 0).map_err(|error| fail(error.to_string()))?;
    let base = checkpoint.as_ref().map_or(0, |found| found.base.index);
    let found = checkpoint.map(|found| Checkpoint { cluster: CLUSTER, ..found });
    let mut nodes = Vec::new();
    for id in ids {
        let mut node = Node::of_cluster(CLUSTER, id, seed ^ id, None);
        let log = RestoredLog::open(&format!("n{id}"), node.disk.clone(), node.options());
        let whole = frames.iter().cloned().map(Ok);
        let filled = log.and_then(|log| log.fill(whole, found.as_ref(), &end_of_log, |_| {}));
        filled.map_err(|error| fail(error.to_string()))?;
        // All of it is durable before any of them starts.
        node.disk = node.disk.crash(old.rng.draw());
        nodes.push(node);
    }
    let mut log = old.checkers_log()[..base as usize].to_vec();
    log.extend(frames);
    if !old.checkers_log().starts_with(&log) {
        return Err(violated("P1", format!("{} entries were copied, and they are not what is committed", log.len())));
    }
    log.extend(end_of_log.entries);
    let void: Vec<Group> = old.writers.iter().filter_map(Writer::unsettled).collect();
    let beginning = Beginning { nodes, log: &log, base, commit: log.len() as u64, void: &void };
    end(begin(seed, beginning)?, &log)?;
    Ok(true)
}

#[test]
fn an_identity_that_changes_before_that_is_durable_is_seen() {
    for bug in [wal::Bug::JournalUnsynced, wal::Bug::IdentityUnsynced] {
        wal::plant(Some(bug));
        let found = (0..200).find_map(|seed| survive(seed, Profile::CRASHES).err());
        wal::plant(None);
        let violation = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
        println!("{bug:?} is found: {violation:?}");
        assert_eq!(violation.property, "recovery", "{bug:?}: {violation:?}");
    }
}

#[test]
fn a_survivor_brings_everything_that_it_held_into_its_new_cluster() {
    let seeds = if std::env::var_os("GRAVEN_LONG").is_some() { 2_000 } else { 60 };
    for seed in 0..seeds {
        for before in [Profile::CRASHES, Profile::TRIMS] {
            if let Err(violation) = survive(seed, before) {
                panic!("seed {seed}, {}: {violation:?}", before.name);
            }
        }
    }
}

#[test]
fn a_cluster_made_of_a_copy_has_every_record_at_its_offset() {
    let seeds = if std::env::var_os("GRAVEN_LONG").is_some() { 2_000 } else { 60 };
    let mut made = 0;
    for seed in 0..seeds {
        for before in [Profile::CRASHES, Profile::TRIMS, Profile::SNAPSHOTS] {
            match restore(seed, before) {
                Ok(was_made) => made += u64::from(was_made),
                Err(violation) => panic!("seed {seed}, {}: {violation:?}", before.name),
            }
        }
    }
    println!("{made} of {} were made", 3 * seeds);
    assert!(made > 2 * seeds, "{made} of {}", 3 * seeds);
}
