//! What the facts mean: a pure function from what was seen to what is wrong, or soon will be, and what to do about it.
//!
//! | code | level | about |
//! |---|---|---|
//! | `no_leader` | error | nobody leads |
//! | `unreachable` | error | a member does not answer here |
//! | `certificate_refused` | error | the cluster and this client do not take each other's certificate |
//! | `damaged`, `recovering` | error, warning | a log with a hole |
//! | `disk_full` | error | only the reserve is left |
//! | `disowned` | error | peers do not take the process for their peer |
//! | `data_directory`, `newer_format`, `unreadable` | error | a start would be refused |
//! | `memory_disk`, `no_sync` | error | nothing survives a power cut |
//! | `certificate` | error when over, warning 30 days (authority: 90 days) before | |
//! | `clock` | error from 5 s, warning from 0.5 s | a node's clock and this host's |
//! | `disk_space` | error below the reserve, warning below 5 % or a day of writing | |
//! | `disk_stalled`, `slow_sync` | warning | the disk did not answer; 1 of 100 syncs takes longer than 50 ms |
//! | `lag` | warning | a member lacks what was committed half a second ago |
//! | `falling_behind` | warning | a member lacks more and more, or needs one checkpoint after the other |
//! | `few_voters`, `even_voters` | warning, note | one more loss, or one node more than is of use |
//! | `versions`, `feature_level` | warning, note | nodes differ |
//! | `elections` | warning | leadership does not settle |
//! | `peer_down` | warning | two members that both answer do not reach each other |
//! | `socket_buffers`, `open_files`, `readable_keys`, `network_disk`, `quarantine` | warning | |
//! | `cut_files`, `torn`, `not_running`, `changing`, `no_health` | note | |

mod cluster;
mod node;

use graven_net::protocol::{PlaceHealth, SyncHealth, Usage};
use jiff::Timestamp;
use serde::Serialize;

use super::facts::{Credentials, Facts};
use crate::cli::status::human_size;

/// How bad it is; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Error,
    Warning,
    Note,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        }
    }
}

/// One thing that is wrong, or soon will be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) code: &'static str,
    /// Whom it is about; `None`: the cluster, or this host.
    pub(super) node: Option<String>,
    /// What is so.
    pub(super) what: String,
    /// What to do about it.
    #[serde(rename = "do")]
    pub(super) advice: String,
}

/// All findings, worst first.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut found = Found::default();
    if let Some(cluster) = &facts.cluster {
        cluster::judge(cluster, facts.now_ms, &mut found);
    }
    if let Some(files) = &facts.files {
        node::judge_files(files, facts.now_ms, &mut found);
    }
    let mut findings = found.findings;
    findings.sort_by(|a, b| (a.level, &a.node, a.code).cmp(&(b.level, &b.node, b.code)));
    findings
}

/// The exit status that the findings come to: that of the first of these kinds which has an error among them.
pub(super) fn exit_code(findings: &[Finding]) -> u8 {
    const KINDS: [(u8, &[&str]); 4] = [
        (6, &["damaged"]),
        (3, &["no_leader", "unreachable", "disk_stalled"]),
        (5, &["certificate", "certificate_refused", "disowned"]),
        (4, &["disk_full", "disk_space"]),
    ];
    let errors: Vec<&Finding> = findings.iter().filter(|finding| finding.level == Level::Error).collect();
    let of_kind = |codes: &[&str]| errors.iter().any(|finding| codes.contains(&finding.code));
    match KINDS.iter().find(|(_, codes)| of_kind(codes)) {
        Some((status, _)) => *status,
        // What is left is the way the node is set up.
        None => u8::from(!errors.is_empty()) * 2,
    }
}

/// Collects findings.
#[derive(Debug, Default)]
struct Found {
    findings: Vec<Finding>,
}

impl Found {
    fn add(
        &mut self,
        level: Level,
        code: &'static str,
        node: Option<&str>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let node = node.map(str::to_owned);
        self.findings.push(Finding { level, code, node, what: what.into(), advice: advice.into() });
    }

    /// A certificate that is over, or ends before long.
    fn certificate(
        &mut self,
        node: Option<&str>,
        whose: &str,
        ends: Option<&str>,
        near_days: i64,
        now_ms: u64,
        advice: &str,
    ) {
        let Some(at) = ends.and_then(|ends| ends.parse::<Timestamp>().ok()) else { return };
        let left = at.as_second() - i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
        if left < 0 {
            self.add(Level::Error, "certificate", node, format!("{whose} expired at {at}"), advice);
        } else if left < near_days * DAY_SECONDS {
            let days = left / DAY_SECONDS;
            self.add(Level::Warning, "certificate", node, format!("{whose} expires in {days} days, at {at}"), advice);
        }
    }

    fn readable_keys(&mut self, node: Option<&str>, keys: &[String]) {
        for key in keys {
            self.add(
                Level::Warning,
                "readable_keys",
                node,
                format!("{key} can be read by everybody on its host, who can then be its holder"),
                format!("chmod 600 {key}, and make a new certificate if somebody may have read it"),
            );
        }
    }

    fn credentials(&mut self, node: Option<&str>, whose: &str, own: &Credentials, now_ms: u64, renew: &str) {
        let what = format!("the certificate of {whose}");
        self.certificate(node, &what, own.certificate_expires.as_deref(), NEAR_DAYS, now_ms, renew);
        self.authority(node, own.ca_expires.as_deref(), now_ms);
        self.readable_keys(node, &own.readable_keys);
    }

    fn authority(&mut self, node: Option<&str>, ends: Option<&str>, now_ms: u64) {
        let advice = "plan to move the records to a new cluster with an authority of its own";
        self.certificate(node, "the authority's certificate", ends, AUTHORITY_NEAR_DAYS, now_ms, advice);
    }

    /// `growth`: bytes that the log grew by, and the milliseconds it took.
    fn place(&mut self, node: &str, place: &PlaceHealth, growth: Option<(u64, u64)>) {
        let who = Some(node);
        match place.filesystem.as_str() {
            "tmpfs" | "ramfs" => self.add(
                Level::Error,
                "memory_disk",
                who,
                format!("its data directory is in memory ({}): a power cut takes all of it", place.filesystem),
                "put data_dir on a disk, by replacing the node",
            ),
            "nfs" | "cifs" | "smb2" | "9p" | "fuse" | "ceph" => self.add(
                Level::Warning,
                "network_disk",
                who,
                format!(
                    "its data directory is on {}: whether a sync reaches a disk is up to the other side",
                    place.filesystem
                ),
                "put data_dir on a local disk, by replacing the node",
            ),
            _ => {}
        }
        if place.sync == "none" {
            let what = "wal.sync is \"none\": a power cut loses acknowledged records";
            self.add(
                Level::Error,
                "no_sync",
                who,
                what,
                "remove wal.sync and wal.unsafe_no_sync from its graven.toml, and restart it",
            );
        }
        self.space(node, place, growth);
        self.readable_keys(who, &place.readable_keys);
        if !place.quarantined.is_empty() {
            let what = format!("damaged files were put aside in {}", place.quarantined.join(", "));
            self.add(
                Level::Warning,
                "quarantine",
                who,
                what,
                "look at the disk (dmesg, SMART); remove the directory when it is not needed as evidence",
            );
        }
        if place.cut_files > 0 {
            let what =
                format!("{} cut files keep {} of unfinished writes", place.cut_files, human_size(place.cut_bytes));
            self.add(
                Level::Note,
                "cut_files",
                who,
                what,
                "they may be removed: nothing in them was ever acknowledged by this node",
            );
        }
    }

    fn space(&mut self, node: &str, place: &PlaceHealth, growth: Option<(u64, u64)>) {
        if place.total_bytes == 0 {
            return;
        }
        let (free, who) = (place.free_bytes, Some(node));
        let advice =
            "enlarge the file system, remove other things from it (never from the data directory), or `graven trim`";
        let left = format!("{} of {} are free", human_size(free), human_size(place.total_bytes));
        if free < place.reserve_bytes {
            let what = format!("{left}, the log's next segments need {}", human_size(place.reserve_bytes));
            self.add(Level::Error, "disk_space", who, what, advice);
            return;
        }
        let hours = growth.filter(|(bytes, ms)| *ms >= GROWTH_SEEN_MS && *bytes > 0).map(|(bytes, ms)| {
            let hours = u128::from(free) * u128::from(ms) / u128::from(bytes) / 3_600_000;
            u64::try_from(hours).unwrap_or(u64::MAX)
        });
        if let Some(hours) = hours.filter(|hours| *hours < SPACE_HOURS) {
            let what = format!("{left}, which lasts for {hours} hours of writing as it was since the start");
            self.add(Level::Warning, "disk_space", who, what, advice);
        } else if free < place.total_bytes / SPACE_PART {
            self.add(Level::Warning, "disk_space", who, left, advice);
        }
    }

    fn syncs(&mut self, node: &str, syncs: &SyncHealth) {
        if syncs.count >= SYNCS_SEEN && syncs.p99_us >= SLOW_SYNC_US {
            let ms = |us: u64| us as f64 / 1000.0;
            let what = format!(
                "1 of 100 syncs takes {:.1} ms or longer (half of them {:.1} ms, the longest of {} took {:.1} ms)",
                ms(syncs.p99_us),
                ms(syncs.p50_us),
                syncs.count,
                ms(syncs.max_us)
            );
            self.add(
                Level::Warning,
                "slow_sync",
                Some(node),
                what,
                "see what else uses the disk; `graven bench fsync --dir DIR` tells what it can do",
            );
        }
    }

    fn open_files(&mut self, node: &str, open: Option<Usage>) {
        let Some(open) = open.filter(|open| open.limit < FILES_MIN || open.used > open.limit / 5 * 4) else { return };
        let what = format!("the process has {} files open and may have {}", open.used, open.limit);
        let advice = format!("raise the limit to {FILES_WANTED} (LimitNOFILE in its unit, ulimit -n), and restart it");
        self.add(Level::Warning, "open_files", Some(node), what, advice);
    }
}

const DAY_SECONDS: i64 = 86_400;
/// As long before as nodes warn in their logs.
const NEAR_DAYS: i64 = 30;
/// Moving to another authority takes longer than making a certificate.
const AUTHORITY_NEAR_DAYS: i64 = 90;
/// Growth that was seen for less than ten minutes says little about the next day.
const GROWTH_SEEN_MS: u64 = 600_000;
/// Somebody should look before the day is over.
const SPACE_HOURS: u64 = 24;
/// A file system with less than 1/20 free is slow, and filled by an accident.
const SPACE_PART: u64 = 20;
/// A third of the shortest election timeout: syncs that take longer make leaders change.
const SLOW_SYNC_US: u64 = 50_000;
/// Fewer syncs say little about the slowest of a hundred.
const SYNCS_SEEN: u64 = 10;
/// What shells give by default: enough for a node with a few clients.
const FILES_MIN: u64 = 1024;
/// What the unit in docs/operations.md has.
const FILES_WANTED: u64 = 65_536;

#[cfg(test)]
mod tests;
