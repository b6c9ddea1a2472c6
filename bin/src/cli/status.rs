//! `graven status` and `graven transfer`.

use std::time::Duration;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use graven_net::client::Client;
use graven_net::protocol::{Behind, ClusterStatus, NodeStatus};
use jiff::Timestamp;

use super::Global;
use super::context::{self, Signals};
use super::error::{CliResult, ErrorCode, Failure};
use super::out::{self, Out};

/// Arguments of `graven status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: graven status --json | jq .leader\n\nExits with 0 when a leader is known, else with 3."
)]
pub(crate) struct StatusArgs {
    /// Again every second, until a signal
    #[arg(short, long)]
    watch: bool,
}

/// Arguments of `graven transfer`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: graven transfer n2\n\nReturns when the node leads; a node that is behind or dead is exit 4."
)]
pub(crate) struct TransferArgs {
    /// The node that shall lead
    #[arg(value_name = "NAME")]
    node: String,
}

/// Asking a node takes at most this long; `status` is what people type when something hangs.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often `--watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Runs `graven status`.
pub(crate) fn run(args: &StatusArgs, global: &Global) -> CliResult<u8> {
    context::block_on(global, async {
        if !args.watch {
            let status = cluster_status(global, &mut None).await?;
            let mut out = Out::stdout()?;
            show(&mut out, &status, global)?;
            return Ok(exit_status(&status));
        }
        watch(global).await
    })
}

fn exit_status(status: &ClusterStatus) -> u8 {
    if status.leader.is_some() { 0 } else { ErrorCode::Unavailable.exit_code() }
}

async fn watch(global: &Global) -> CliResult<u8> {
    use std::io::IsTerminal;
    let mut signals = Signals::install()?;
    let mut out = Out::stdout()?;
    let closed = out.watch();
    let clear = std::io::stdout().is_terminal() && !global.json;
    let mut client = None;
    loop {
        tokio::select! {
            status = cluster_status(global, &mut client) => {
                let status = status?;
                if clear {
                    out.buffer().extend_from_slice(b"\x1b[H\x1b[2J");
                }
                show(&mut out, &status, global)?;
            }
            () = signals.recv() => return Ok(0),
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_EVERY) => {}
            () = signals.recv() => return Ok(0),
            () = out::closed(closed.as_ref()) => return Err(Failure::StdoutClosed),
        }
    }
}

/// What the nodes say; when none answers, that is what is shown.
pub(super) async fn cluster_status(global: &Global, client: &mut Option<Client>) -> CliResult<ClusterStatus> {
    if client.is_none() {
        let mut config = context::client_config(global)?;
        config.timeout = config.timeout.min(PATIENCE);
        let endpoints = config.endpoints.clone();
        match Client::connect(config).await.map_err(Failure::from) {
            Ok(connected) => *client = Some(connected),
            Err(Failure::Error(error)) if matches!(error.code, ErrorCode::Unavailable | ErrorCode::Timeout) => {
                let nodes = endpoints.into_iter().map(|(name, address)| NodeStatus::unreachable(name, Some(address)));
                return Ok(ClusterStatus { cluster_id: None, leader: None, nodes: nodes.collect() });
            }
            Err(failure) => return Err(failure),
        }
    }
    match client {
        Some(client) => Ok(client.status().await),
        None => Err(Failure::internal("no connection")),
    }
}

fn show(out: &mut Out, status: &ClusterStatus, global: &Global) -> CliResult {
    if global.json {
        let line = serde_json::to_string(status).map_err(|error| Failure::internal(error.to_string()))?;
        return out.line(&line);
    }
    let id = status.cluster_id.as_deref().unwrap_or("unknown");
    let leader = status.leader.as_deref().unwrap_or("none");
    let head = format!("cluster {id}, leader {leader}\n");
    let (stalls, ends) = (stalls(&status.nodes), expiries(&status.nodes, Timestamp::now()));
    let falling = falling(&status.nodes);
    out.line(&format!("{head}{}{stalls}{falling}{ends}", table(&status.nodes)))
}

/// A line for each disk that does not answer.
fn stalls(nodes: &[NodeStatus]) -> String {
    let hangs = |node: &&NodeStatus| node.disk_stalled_ms.is_some_and(|ms| ms >= STALL_WORTH_TELLING_MS);
    let line = |node: &NodeStatus| {
        let waits = human_time(node.disk_stalled_ms.unwrap_or(0));
        format!("\ndisk of {} has not finished a write for {waits}; look at it before the node gives up", node.name)
    };
    nodes.iter().filter(hangs).map(line).collect()
}

/// A write that takes longer is worth a line: as long as a leader waits before it hands over.
const STALL_WORTH_TELLING_MS: u64 = 1000;

/// A line for each follower that keeps falling behind.
fn falling(nodes: &[NodeStatus]) -> String {
    let line = |node: &NodeStatus| {
        let words = node.behind.as_ref().and_then(falling_words)?;
        Some(format!("\n{} keeps falling behind: {words}; `graven doctor` says what to look at", node.name))
    };
    nodes.iter().filter_map(line).collect()
}

/// How one keeps falling behind; `None` when it does not.
pub(super) fn falling_words(behind: &Behind) -> Option<String> {
    let Behind { lag_entries, checkpoints, growing_ms } = *behind;
    behind.keeps_falling().then(|| {
        let grows =
            if growing_ms > 0 { format!(", for {} more and more", human_time(growing_ms)) } else { String::new() };
        format!("it lacks {lag_entries} entries{grows}, and was offered {checkpoints} checkpoints by this leader")
    })
}

/// A line for each certificate that ends before long; `--json` has all of them.
fn expiries(nodes: &[NodeStatus], now: Timestamp) -> String {
    let mut lines = String::new();
    for node in nodes {
        let Some(ends) = node.certificate_expires.as_ref().and_then(|ends| ends.parse::<Timestamp>().ok()) else {
            continue;
        };
        let left = ends.as_second().saturating_sub(now.as_second());
        if left < EXPIRY_NEAR_SECONDS {
            let name = &node.name;
            lines.push_str(&format!(
                "\ncertificate of {name} expires {ends}; make another with `graven certs node {name}`"
            ));
        }
    }
    lines
}

/// From when on a certificate's end is worth a line: as long before as nodes warn in their logs.
const EXPIRY_NEAR_SECONDS: i64 = 30 * 86_400;

fn table(nodes: &[NodeStatus]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
        .set_header(["NAME", "ROLE", "STATE", "TERM", "COMMIT", "DURABLE", "OFFSETS", "SIZE", "FREE", "UP", "CLIENTS"]);
    for node in nodes {
        let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let size = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), human_size);
        let offsets = match (node.first_offset, node.next_offset) {
            (Some(first), Some(next)) => format!("{first}..{next}"),
            _ => "-".to_owned(),
        };
        table.add_row([
            node.name.clone(),
            word(&node.role),
            if node.reachable {
                node.state.as_ref().map_or_else(|| "-".to_owned(), word)
            } else {
                "unreachable".to_owned()
            },
            number(node.term),
            number(node.commit_index),
            number(node.durable_index),
            offsets,
            size(node.bytes),
            size(node.disk_free_bytes),
            node.uptime_ms.map_or_else(|| "-".to_owned(), human_time),
            node.address.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if (3..=9).contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// The word that JSON uses.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "-".to_owned(),
    }
}

/// `1.5G`: for people, three digits are enough.
pub(crate) fn human_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes >> shift > 0 {
            let tenths = (bytes >> (shift - 10)) * 10 / 1024;
            return if tenths < 100 {
                format!("{}.{}{unit}", tenths / 10, tenths % 10)
            } else {
                format!("{}{unit}", tenths / 10)
            };
        }
    }
    format!("{bytes}B")
}

fn human_time(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds @ 7200..=172_799 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Runs `graven transfer`.
pub(crate) fn transfer(args: &TransferArgs, global: &Global) -> CliResult {
    context::block_on(global, async {
        let client = context::connect(global).await?;
        client.transfer(&args.node).await?;
        if global.json {
            return out::print_line(&serde_json::json!({"leader": args.node}).to_string());
        }
        context::note(global, &format!("{} leads", args.node));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_at_most_three_digits() {
        let cases = [(0, "0B"), (1023, "1023B"), (1024, "1.0K"), (1536, "1.5K"), (10 << 20, "10M"), (3 << 40, "3.0T")];
        for (bytes, expected) in cases {
            assert_eq!(human_size(bytes), expected);
        }
    }

    #[test]
    fn certificate_is_told_of_when_it_ends_within_a_month() {
        let mut node = NodeStatus::unreachable("n2", None);
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().expect("a time");
        let mut told = |ends: Option<&str>| {
            node.certificate_expires = ends.map(str::to_owned);
            expiries(std::slice::from_ref(&node), now)
        };
        assert_eq!(told(None), "");
        assert_eq!(told(Some("2030-01-31T00:00:00Z")), "");
        let line = told(Some("2030-01-30T23:59:59Z"));
        assert!(line.starts_with("\ncertificate of n2 expires 2030-01-30T23:59:59Z; "), "{line}");
        assert!(!told(Some("2029-12-31T00:00:00Z")).is_empty());
    }

    #[test]
    fn table_has_a_line_for_every_node() {
        let text = table(&[NodeStatus::unreachable("n1", Some("127.0.0.1:5471".to_owned()))]);
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().all(|line| !line.ends_with(' ')));
        assert!(text.contains("unreachable"), "{text}");
    }
}
