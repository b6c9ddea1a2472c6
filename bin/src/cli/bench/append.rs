//! `graven bench append`: what a cluster really does, with every append fsynced on a majority.
//!
//! K connections, C clients spread over them, each with its own session and F calls in flight. One second of warm-up is not counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use graven_net::client::{Appender, Batch, Client, ClientConfig};
use graven_net::protocol::NodeStats;
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::task::JoinSet;

use crate::cli::Global;
use crate::cli::context::{self, Signals, note};
use crate::cli::dev::{Cluster, Home, Wish};
use crate::cli::error::{CliResult, Failure};
use crate::cli::out;
use crate::cli::status::human_size;

/// Arguments of `graven bench append`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example: graven bench append --dev --clients 16 --in-flight 4 --size 256 --batch 16 --seconds 10\n\nThe records stay in the log."
)]
pub(super) struct AppendBench {
    /// Measure a temporary cluster made for this, not the one that clients find
    #[arg(long)]
    dev: bool,
    /// Appending clients, each with a session of its own
    #[arg(long, value_name = "C", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Connections they share
    #[arg(long, value_name = "K", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
    /// Calls each client has in flight
    #[arg(long, value_name = "F", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    in_flight: u32,
    /// Bytes in a record
    #[arg(long, value_name = "S", default_value = "256", value_parser = parse_size)]
    size: usize,
    /// Records in a call
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// How long to measure
    #[arg(long, value_name = "T", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Calls a second over all clients, instead of as many as possible
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
}

fn parse_size(text: &str) -> Result<usize, String> {
    let size = crate::config::parse_size(text)?;
    usize::try_from(size)
        .ok()
        .filter(|size| *size <= graven_frame::MAX_RECORD_BYTES)
        .ok_or_else(|| "a record has at most 16M".to_owned())
}

/// Connections, caches and the leader's batching settle within this time.
const WARM_UP: Duration = Duration::from_secs(1);
/// The longest latency that is told apart.
const MAX_LATENCY_US: u64 = 600_000_000;

/// Runs the command.
pub(super) fn run(bench: &AppendBench, global: &Global) -> CliResult {
    context::block_on(global, async {
        let mut signals = Signals::install()?;
        if !bench.dev {
            return append(bench, context::client_config(global)?, global, &mut signals).await;
        }
        let (mut cluster, dir) = temporary_cluster().await?;
        let result = async {
            cluster.wait_ready().await?;
            cluster.leader().await?;
            let mut config =
                ClientConfig::load(cluster.home().client_file()).map_err(|error| Failure::config(error.to_string()))?;
            config.timeout = global.timeout;
            append(bench, config, global, &mut signals).await
        }
        .await;
        cluster.terminate();
        cluster.stopped().await;
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            note(global, &format!("cannot remove {}: {error}", dir.display()));
        }
        result
    })
}

/// A three-node cluster in a directory and on ports of its own.
async fn temporary_cluster() -> CliResult<(Cluster, std::path::PathBuf)> {
    // In the working directory rather than in /tmp, which is often in memory, where a sync means nothing.
    let dir = std::env::current_dir()
        .map_err(|error| Failure::usage(format!("cannot use the working directory: {error}")))?
        .join(format!("graven-bench-{:08x}", rand::random::<u32>()));
    for attempt in 1.. {
        let base_port = 20_000 + rand::random::<u16>() % 10_000;
        let wish = Wish { dir: dir.clone(), nodes: Some(3), base_port: Some(base_port), settings: Vec::new() };
        match Home::open(&wish) {
            Ok(home) => return Ok((Cluster::start(home).await?, dir)),
            Err(failure) if attempt == PORT_ATTEMPTS => return Err(failure),
            Err(_) => {}
        }
    }
    Err(Failure::internal("no ports found"))
}

/// Six free ports in a row of three are found at once nearly always.
const PORT_ATTEMPTS: u32 = 20;

/// What one client saw.
struct Seen {
    latencies: Histogram<u64>,
    records: u64,
    errors: u64,
}

impl Seen {
    fn new() -> CliResult<Seen> {
        let latencies = Histogram::new_with_bounds(1, MAX_LATENCY_US, 3);
        let latencies = latencies.map_err(|error| Failure::internal(error.to_string()))?;
        Ok(Seen { latencies, records: 0, errors: 0 })
    }
}

async fn append(bench: &AppendBench, config: ClientConfig, global: &Global, signals: &mut Signals) -> CliResult {
    let mut connections = Vec::new();
    for _ in 0..bench.connections.min(bench.clients) {
        connections.push(Client::connect(config.clone()).await?);
    }
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs(bench.seconds);
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..bench.clients {
        let client = &connections[number as usize % connections.len()];
        let appender = client.appender().await?;
        let load = Load { bench: bench.clone(), begin, end, stop: Arc::clone(&stop) };
        clients.spawn(load.run(appender));
    }
    tokio::time::sleep_until(begin.into()).await;
    let before = stats(&connections[0]).await;
    tokio::select! {
        () = tokio::time::sleep_until(end.into()) => {}
        () = signals.recv() => stop.store(true, Ordering::Relaxed),
    }
    // Records count until `end`, however long it took to hear of it.
    let measured = begin.elapsed().as_secs_f64().min(bench.seconds as f64);
    let after = stats(&connections[0]).await;
    let mut total = Seen::new()?;
    while let Some(seen) = clients.join_next().await {
        let seen = seen.map_err(|error| Failure::internal(format!("a client task ended: {error}")))??;
        total.records += seen.records;
        total.errors += seen.errors;
        total.latencies.add(&seen.latencies).map_err(|error| Failure::internal(error.to_string()))?;
    }
    report(bench, &total, measured, &before, &after, global)
}

/// One client's work.
struct Load {
    bench: AppendBench,
    begin: Instant,
    end: Instant,
    stop: Arc<AtomicBool>,
}

impl Load {
    async fn run(self, mut appender: Appender) -> CliResult<Seen> {
        let mut seen = Seen::new()?;
        let payload: Vec<u8> = (0..self.bench.size).map(|_| rand::random()).collect();
        let every = self.bench.rate.map(|rate| Duration::from_secs_f64(f64::from(self.bench.clients) / rate as f64));
        // Clients that begin together would go on together, and their calls share one sync each time.
        let mut due = Instant::now() + every.unwrap_or_default().mul_f64(rand::random());
        let mut sent_at = std::collections::VecDeque::new();
        loop {
            let more = Instant::now() < self.end && !self.stop.load(Ordering::Relaxed);
            if more && sent_at.len() < self.bench.in_flight as usize && every.is_none_or(|_| Instant::now() >= due) {
                let mut batch = Batch::new();
                for _ in 0..self.bench.batch {
                    batch.push(&payload).map_err(|error| Failure::usage(format!("--size times --batch: {error}")))?;
                }
                // With a rate, a call is late from the moment it was due: waiting for room is latency too.
                sent_at.push_back(every.map_or_else(Instant::now, |_| due));
                due += every.unwrap_or_default();
                if let Err(error) = appender.send(batch).await {
                    return failed(seen, error.into());
                }
                continue;
            }
            // Acknowledgements are taken when they come, whether or not the next call is due.
            let waits_for_due = more && every.is_some() && sent_at.len() < self.bench.in_flight as usize;
            let ack = tokio::select! {
                ack = appender.next_ack(), if !sent_at.is_empty() => ack,
                () = tokio::time::sleep_until(due.into()), if waits_for_due => continue,
                else => break,
            };
            let Some(ack) = ack else { break };
            let ack = match ack {
                Ok(ack) => ack,
                Err(error) => return failed(seen, error.into()),
            };
            let now = Instant::now();
            if let Some(sent) = sent_at.pop_front()
                && (self.begin..self.end).contains(&now)
            {
                seen.records += ack.records;
                let us = u64::try_from((now - sent).as_micros()).unwrap_or(u64::MAX);
                seen.latencies.saturating_record(us.max(1));
            }
        }
        Ok(seen)
    }
}

/// An error ends this client and is counted; one that no other run would be without ends the measurement.
fn failed(mut seen: Seen, failure: Failure) -> CliResult<Seen> {
    match &failure {
        Failure::Error(error) if matches!(error.code.exit_code(), 2 | 5) => Err(failure),
        _ => {
            seen.errors += 1;
            Ok(seen)
        }
    }
}

async fn stats(client: &Client) -> BTreeMap<String, NodeStats> {
    let asked = client.nodes().into_iter().map(|name| async move {
        let stats = tokio::time::timeout(STATS_PATIENCE, client.node_stats(&name)).await;
        Some((name, stats.ok()?.ok()?))
    });
    futures_util::future::join_all(asked).await.into_iter().flatten().collect()
}

/// A node that is up answers in a millisecond; one that is not is left out, and must not stretch the measurement.
const STATS_PATIENCE: Duration = Duration::from_secs(1);

fn report(
    bench: &AppendBench,
    total: &Seen,
    seconds: f64,
    before: &BTreeMap<String, NodeStats>,
    after: &BTreeMap<String, NodeStats>,
    global: &Global,
) -> CliResult {
    let since = |name: &String, of: fn(&NodeStats) -> u64| {
        let then = before.get(name).map_or(0, of);
        after.get(name).map_or(0, of).saturating_sub(then)
    };
    let elections = after.keys().map(|name| since(name, |stats| stats.elections)).max().unwrap_or(0);
    let per_second = total.records as f64 / seconds;
    let mb_per_second = per_second * bench.size as f64 / 1e6;
    let at = |quantile| total.latencies.value_at_quantile(quantile);
    if global.json {
        let nodes: Vec<_> = after
            .iter()
            .map(|(name, stats)| {
                json!({
                    "name": name,
                    "rss_anon_bytes": stats.rss_anon_bytes,
                    "cpu_seconds": since(name, |stats| stats.cpu_us) as f64 / 1e6,
                    "syncs": since(name, |stats| stats.syncs),
                    "frames": since(name, |stats| stats.frames),
                })
            })
            .collect();
        let value = json!({
            "records_per_second": per_second,
            "mb_per_second": mb_per_second,
            "p50_us": at(0.5),
            "p99_us": at(0.99),
            "p999_us": at(0.999),
            "max_us": total.latencies.max(),
            "records": total.records,
            "errors": total.errors,
            "elections": elections,
            "nodes": nodes,
        });
        return out::print_line(&value.to_string());
    }
    let mut text = format!(
        "{per_second:.0} records/s, {mb_per_second:.1} MB/s over {seconds:.1} s ({} records of {} bytes, {} errors, {elections} elections)\n\
         latency of a call of {} records: p50 {} us, p99 {} us, p99.9 {} us, max {} us\n",
        total.records,
        bench.size,
        total.errors,
        bench.batch,
        at(0.5),
        at(0.99),
        at(0.999),
        total.latencies.max()
    );
    for (name, stats) in after {
        text.push_str(&format!(
            "{name}: {} syncs, {} frames, {:.1} s of CPU, {} of memory\n",
            since(name, |stats| stats.syncs),
            since(name, |stats| stats.frames),
            since(name, |stats| stats.cpu_us) as f64 / 1e6,
            human_size(stats.rss_anon_bytes)
        ));
    }
    out::print(&text)
}
