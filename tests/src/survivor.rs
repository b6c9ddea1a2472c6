//! A majority is lost for good, and the survivor becomes the first node of a new cluster, as `graven recover` does it: power fails between the
//! calls of that, and it is done again. Everything that the survivor held is in the new cluster, at the same offsets; nodes are added to it;
//! sessions of before are void.

use graven::init::recover::RecoverError;
use graven::init::survivor::{SurvivorLog, new_identity};
use graven::members::change::MemberChange;
use graven::members::{Member, MemberRole};
use graven::replica::Rejection;
use graven_frame::{Frame, Group};
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
    live_on(seed, node, &log, (had.base, committed.max(had.base)), &sessions)
}

/// The new cluster: `node` has `log`, files of what is behind `base` of it, and is joined by two.
fn live_on(seed: u64, node: Node, log: &[Frame], (base, commit): (u64, u64), void: &[Group]) -> Checked {
    let (survivor, inherited) = (node.id, log.len());
    let mut cluster = Cluster::new(seed, 3, AFTER, Trace::new(TraceTo::Hash));
    cluster.forget_starts(|id| id <= 3 && id != survivor);
    for at in 0..cluster.nodes.len() as u64 {
        *cluster.node_mut(at + 1) = Node::of_cluster(CLUSTER, at + 1, seed ^ at, None);
    }
    *cluster.node_mut(survivor) = node;
    // With the daemon's windows: one append at a time never catches up with writers that go on.
    cluster.nodes.iter_mut().for_each(|node| node.configure = Some(|_| {}));
    cluster.checkers.inherits(survivor, log, base, commit)?;
    cluster.run_while(|cluster| cluster.checkers_log().len() <= inherited)?;
    for group in void {
        let Some(leader) = cluster.leader() else { continue };
        let asked = cluster.append_from_outside(leader, group.clone())?;
        cluster.run_while(|cluster| !cluster.answered.contains_key(&asked))?;
        let answer = cluster.answered.remove(&asked);
        if !matches!(answer, Some(Err(Rejection::SessionExpired))) {
            let detail = format!("an append of a session of the old cluster was answered with {answer:?}");
            return Err(violated("P7", detail));
        }
    }
    for id in [4, 5] {
        let name = format!("n{id}");
        ask(&mut cluster, &MemberChange::Add(newcomer(id)), &name, MemberRole::Learner)?;
        ask(&mut cluster, &MemberChange::Promote { name: name.clone() }, &name, MemberRole::Voter)?;
    }
    cluster.stop(survivor, true);
    cluster.schedule(cluster.now_us + 500_000, Event::Start { node: survivor });
    cluster.finish_writers();
    cluster.run_until_done()?;
    let kept = cluster.checkers_log().iter().zip(log).take_while(|(one, other)| one == other).count();
    if kept != inherited {
        return Err(violated(
            "P1",
            format!("the survivor had {inherited} entries, the new cluster has {kept} of them"),
        ));
    }
    let voters = cluster.members().map(|members| members.membership().voters.len());
    assert_eq!(voters, Some(3), "the survivor and two more");
    Ok(())
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
