//! The snapshot lab of MIT 6.5840, 3D, each test under its own name: servers take a snapshot every ten commands, and the log goes behind them.
//!
//! Commands have some kilobytes here, so that who is away for one round lacks a segment that is gone when it comes back.

use graven_tests::check::{Checked, Violation};
use graven_tests::lab::{Lab, MS, Pace, Setting, run};

/// Commands between two snapshots of a server.
const EVERY: u64 = 10;
/// Seeds of a test that takes most of a simulated minute.
const SEEDS: u64 = 4;
/// So many of them fill a simulated segment of 32 KiB, and a checkpoint comes every 16 KiB.
const COMMAND_BYTES: usize = 3_000;

fn setting(reliable: bool) -> Setting {
    Setting { servers: 3, reliable, pace: Pace::Default, states: EVERY, seeds: SEEDS }
}

fn agree(lab: &mut Lab, expected: u64) -> Checked {
    let command = lab.long_command(COMMAND_BYTES);
    lab.one(&command, expected, true).map(|_| ())
}

/// What becomes of one server in each round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Away {
    Never,
    Disconnected,
    Crashed,
}

/// Thirty rounds: somebody is away, who leads is given enough commands for a snapshot, whoever was away comes back and applies all.
fn rounds(lab: &mut Lab, away: Away) -> Checked {
    agree(lab, 3)?;
    let mut leader = lab.check_one_leader()?;
    for round in 0..30 {
        let next = lab.after(leader, 1);
        let (victim, sender) = if round % 3 == 1 { (leader, next) } else { (next, leader) };
        match away {
            Away::Never => {}
            Away::Disconnected => lab.disconnect(victim),
            Away::Crashed => lab.shut_down(victim),
        }
        let there = if away == Away::Never { 3 } else { 2 };
        agree(lab, there)?;
        // Enough for several snapshots, and the time in which the log goes behind them.
        for _ in 0..3 {
            for _ in 0..EVERY + lab.rng().below(EVERY) {
                let command = lab.long_command(COMMAND_BYTES);
                lab.start(sender, &command)?;
            }
            agree(lab, there)?;
            lab.sleep(150 * MS)?;
        }
        match away {
            Away::Never => continue,
            Away::Disconnected => lab.connect(victim),
            Away::Crashed => lab.restart(victim)?,
        }
        agree(lab, 3)?;
        leader = lab.check_one_leader()?;
    }
    let (states, releases, installs) = lab.snapshots();
    // Each server has saved its state many times, and logs did not grow for ever; who was away needed a state.
    if states < 30 || releases < 10 || (away != Away::Never && installs == 0) {
        let detail = format!("{states} states, {releases} releases, {installs} installs");
        return Err(Violation { property: "snapshots", detail });
    }
    Ok(())
}

/// 3D, snapshots basic.
#[test]
fn snapshot_basic() {
    run("snapshot_basic", setting(true), |lab| rounds(lab, Away::Never));
}

/// 3D, install snapshots (disconnect).
#[test]
fn snapshot_install() {
    run("snapshot_install", setting(true), |lab| rounds(lab, Away::Disconnected));
}

/// 3D, install snapshots (disconnect, unreliable).
#[test]
fn snapshot_install_unreliable() {
    run("snapshot_install_unreliable", setting(false), |lab| rounds(lab, Away::Disconnected));
}

/// 3D, install snapshots (crash).
#[test]
fn snapshot_install_crash() {
    run("snapshot_install_crash", setting(true), |lab| rounds(lab, Away::Crashed));
}

/// 3D, install snapshots (unreliable, crash).
#[test]
fn snapshot_install_unreliable_crash() {
    run("snapshot_install_unreliable_crash", setting(false), |lab| rounds(lab, Away::Crashed));
}

/// 3D, crash and restart all servers: each round something new is agreed on behind what was.
#[test]
fn snapshot_all_crash() {
    run("snapshot_all_crash", setting(false), |lab| {
        agree(lab, 3)?;
        for _ in 0..5 {
            let leader = lab.check_one_leader()?;
            for _ in 0..EVERY / 2 + lab.rng().below(EVERY) {
                let command = lab.long_command(COMMAND_BYTES);
                lab.start(leader, &command)?;
            }
            let command = lab.command();
            let before = lab.one(&command, 3, true)?;
            (1..=3).for_each(|server| lab.shut_down(server));
            for server in 1..=3 {
                lab.restart(server)?;
            }
            let command = lab.command();
            let after = lab.one(&command, 3, true)?;
            if after <= before {
                let detail = format!("agreed at {after} after {before}");
                return Err(Violation { property: "order", detail });
            }
        }
        Ok(())
    });
}

/// 3D, snapshot initialization after a crash: what a restart found in a snapshot is there after a second one, too.
#[test]
fn snapshot_init() {
    run("snapshot_init", setting(false), |lab| {
        agree(lab, 3)?;
        let leader = lab.check_one_leader()?;
        for _ in 0..=EVERY {
            let command = lab.long_command(COMMAND_BYTES);
            lab.start(leader, &command)?;
        }
        agree(lab, 3)?;
        for _ in 0..2 {
            (1..=3).for_each(|server| lab.shut_down(server));
            for server in 1..=3 {
                lab.restart(server)?;
            }
            agree(lab, 3)?;
        }
        Ok(())
    });
}
