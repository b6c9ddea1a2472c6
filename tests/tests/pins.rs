//! A follower that is fed slowly, in a cluster that trims all the time: the log that it needs next is kept until it has it.

use graven::replica::planted::{Bug, plant};
use graven_tests::check::{Checked, Violation};
use graven_tests::lab::{Lab, MS, Pace, Setting, first_violation, run};

/// Commands between two snapshots of a server.
const EVERY: u64 = 4;
/// A simulated segment has 32 KiB, and a checkpoint comes every 16 KiB.
const COMMAND_BYTES: usize = 4_000;

const SETTING: Setting = Setting { servers: 3, reliable: true, pace: Pace::TinyWindows, states: EVERY, seeds: 4 };

fn load(lab: &mut Lab, commands: u64) -> Checked {
    for _ in 0..commands {
        let command = lab.long_command(COMMAND_BYTES);
        let leader = (1..=lab.servers()).find(|server| lab.leads(*server)).unwrap_or(1);
        lab.start(leader, &command)?;
        lab.sleep(2 * MS)?;
    }
    Ok(())
}

/// It is given a checkpoint, and is fed more slowly than the others append for a while.
fn a_slow_one_comes_back(lab: &mut Lab) -> Checked {
    lab.agree(3, true)?;
    let leader = lab.check_one_leader()?;
    let away = lab.after(leader, 1);
    lab.disconnect(away);
    load(lab, 60)?;
    lab.connect(away);
    lab.slow_down(away, 3 * MS);
    for _ in 0..200 {
        if lab.snapshots().2 > 0 {
            break;
        }
        load(lab, 1)?;
    }
    load(lab, 30)?;
    lab.sleep(2_000 * MS)?;
    lab.agree(3, true)?;
    let (_, releases, installs) = lab.snapshots();
    println!("{releases} releases, {installs} installs");
    if installs != 1 || releases < 10 {
        let detail = format!("{installs} installs of one follower, {releases} releases");
        return Err(Violation { property: "pins", detail });
    }
    Ok(())
}

#[test]
fn a_slow_follower_that_comes_back_is_given_one_checkpoint() {
    run("a_slow_follower_that_comes_back", SETTING, a_slow_one_comes_back);
}

#[test]
fn without_the_pin_it_is_given_one_after_the_other() {
    plant(Some(Bug::TransferUnpinned));
    let found = first_violation(SETTING, a_slow_one_comes_back);
    plant(None);
    let (seed, violation) = found.expect("it is found");
    println!("seed {seed}: {violation:?}");
    assert_eq!(violation.property, "pins");
}
