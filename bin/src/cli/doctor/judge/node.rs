//! What is wrong with one node: as it tells about itself, and as its files are.

use super::super::facts::{FileFacts, LogIs, NodeFacts};
use super::{Found, Level};
use crate::cli::status::human_size;

/// A node as it tells.
pub(super) fn judge_node(name: &str, node: &NodeFacts, found: &mut Found) {
    let (health, who) = (&node.health, Some(name));
    match &health.place {
        Some(place) => found.place(name, place, Some((health.written_bytes, health.uptime_ms))),
        None => {
            let what = "its disk did not say within half a second how it is";
            found.add(
                Level::Warning,
                "disk_stalled",
                who,
                what,
                "look at the disk (dmesg, iostat); `graven transfer` moves the leadership away",
            );
        }
    }
    // The authority is the same for all; it is told once, for whoever asks.
    found.syncs(name, &health.syncs);
    found.open_files(name, health.open_files);
    let socket = &health.socket;
    if socket.receive < socket.wanted || socket.send < socket.wanted {
        let what = format!(
            "its peers' socket was granted {} to receive and {} to send, {} are wanted: bursts lose packets",
            human_size(socket.receive),
            human_size(socket.send),
            human_size(socket.wanted)
        );
        let advice = format!(
            "sysctl -w net.core.rmem_max={} net.core.wmem_max={}, then restart it",
            socket.wanted, socket.wanted
        );
        found.add(Level::Warning, "socket_buffers", who, what, advice);
    }
    let hours = health.uptime_ms.div_ceil(3_600_000).max(1);
    if health.elections >= ELECTIONS_MIN && health.elections / hours >= ELECTIONS_PER_HOUR {
        let what = format!("it won {} elections in {hours} hours", health.elections);
        let advice =
            "look for pauses of its peers' hosts, disks and network; raft.election_ms can be raised on all nodes";
        found.add(Level::Warning, "elections", who, what, advice);
    }
}

/// A node as its files are.
pub(super) fn judge_files(files: &FileFacts, now_ms: u64, found: &mut Found) {
    let (name, who) = (files.name.as_str(), Some(files.name.as_str()));
    let start = format!("`graven start --config {}` names the lines that put a new node in its place", files.config);
    match &files.log {
        LogIs::Running => {}
        LogIs::Whole { torn_bytes } => {
            let start = format!("graven start --config {}", files.config);
            found.add(Level::Note, "not_running", who, "it is stopped; every byte of its log is whole", start);
            if *torn_bytes > 0 {
                let what = format!("its log ends with an unfinished write of {torn_bytes} bytes");
                found.add(Level::Note, "torn", who, what, "nothing: the next start cuts it and keeps a copy");
            }
        }
        LogIs::Damaged(damage) => {
            for what in damage {
                let advice = "start it: what its peers have it fetches from them; keep the directory, and see \"Rot\" in docs/operations.md";
                found.add(Level::Error, "damaged", who, format!("{}: {what}", files.data_dir), advice);
            }
        }
        LogIs::NotOurs(what) => {
            found.add(Level::Error, "data_directory", who, format!("{}: {what}", files.data_dir), start);
        }
        LogIs::Newer(what) => {
            found.add(
                Level::Error,
                "newer_format",
                who,
                format!("{}: {what}", files.data_dir),
                "start it with the newer graven",
            );
        }
        LogIs::Unreadable(what) => {
            let advice = "look at the permissions, and at the disk (dmesg, SMART)";
            found.add(Level::Error, "unreadable", who, format!("{}: {what}", files.data_dir), advice);
        }
    }
    found.place(name, &files.place, None);
    if let Some(syncs) = &files.syncs {
        found.syncs(name, syncs);
    }
    let renew = format!("make a new one with `graven certs node {name}`");
    found.credentials(who, name, &files.credentials, now_ms, &renew);
    found.open_files(name, files.open_files);
}

/// A restart and an upgrade make a few elections; more, and more than that an hour, is a leadership that does not settle.
const ELECTIONS_MIN: u64 = 5;
const ELECTIONS_PER_HOUR: u64 = 2;
