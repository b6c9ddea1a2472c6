//! `graven bench quic`: what QUIC does between two processes on this machine, with graven's sockets, certificates and profiles and no Raft.
//!
//! The ceiling of everything that graven sends. The other process is this executable again; it says its port on standard output and ends with
//! its standard input.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::Args;
use graven_net::peer::WINDOW_BYTES;
use graven_net::raw::{RawConnection, RawListener, RawSettings};
use graven_net::tls::{Authority, TlsFiles, TlsIdentity};
use graven_net::transport::{MTU_MAX, Mtu};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::cli::Global;
use crate::cli::context::{self, Signals, note};
use crate::cli::error::{CliResult, Failure};
use crate::cli::out;
use crate::cli::status::human_size;

/// Arguments of `graven bench quic`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example: graven bench quic --mtu 1452,6500 --window 256K,1M\n\nThe first line of the default settings is what graven uses between nodes. Figures are medians of the rounds, which visit all settings in turn."
)]
pub(super) struct QuicBench {
    /// Largest datagrams to try, in bytes of UDP payload
    #[arg(long, value_name = "B", value_delimiter = ',', default_value = "6500,1452", value_parser = clap::value_parser!(u16).range(1200..=i64::from(MTU_MAX)))]
    mtu: Vec<u16>,
    /// Bytes under way at most
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "1M,256K,4M", value_parser = parse_window)]
    window: Vec<u64>,
    /// Bytes sent each way in each round
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = crate::config::parse_size)]
    bytes: u64,
    /// Time for round trips in each round
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = super::parse_seconds)]
    seconds: f64,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

/// Arguments of the other process.
#[derive(Debug, Clone, Args)]
pub(super) struct QuicListener {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    mtu: u16,
    #[arg(long)]
    window: u64,
}

fn parse_window(text: &str) -> Result<u64, String> {
    let bytes = crate::config::parse_size(text)?;
    if (64 << 10..=64 << 20).contains(&bytes) { Ok(bytes) } else { Err("a window has 64K to 64M".to_owned()) }
}

/// What goes round: a message of Raft without entries.
const ECHO_BYTES: usize = 64;
/// Sent before anything is timed: the path's datagram size and the congestion window are found by then.
const WARM_UP_BYTES: u64 = 32 << 20;
/// The other process says its port at once.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// The longest round trip that is told apart.
const ROUND_TRIP_MAX_US: u64 = 10_000_000;
const NAME: &str = "n1";
const HEAD: [&str; 6] = ["DATAGRAMS", "WINDOW", "64 B THERE AND BACK", "P99", "SENT", "RECEIVED"];

/// What one round saw.
#[derive(Debug, Clone, Copy)]
struct Seen {
    p50_us: f64,
    p99_us: f64,
    send_mb: f64,
    receive_mb: f64,
    datagram_bytes: u16,
}

/// Runs the command.
pub(super) fn run(bench: &QuicBench, global: &Global) -> CliResult {
    context::block_on(global, async {
        let mut signals = Signals::install()?;
        let dir = std::env::temp_dir().join(format!("graven-quic-{:016x}", rand::random::<u64>()));
        let made = certificates(&dir);
        let measured = tokio::select! {
            measured = async { measure(bench, &dir, &made?).await } => measured,
            () = signals.recv() => Err(Failure::internal("interrupted")),
        };
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            note(global, &format!("cannot remove {}: {error}", dir.display()));
        }
        show(&measured?, bench, global)
    })
}

/// The other process: serves one connection after the other until its standard input ends.
pub(super) fn listen(listener: &QuicListener, global: &Global) -> CliResult {
    context::block_on(global, async {
        let settings = RawSettings { mtu: Mtu::AtMost(listener.mtu), window_bytes: listener.window };
        let tls = TlsIdentity::load(files(&listener.dir)).map_err(failed)?;
        let raw = RawListener::bind(settings, &tls).map_err(failed)?;
        out::print_line(&raw.address().map_err(failed)?.port().to_string())?;
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
        let serving = async {
            loop {
                raw.serve_one().await;
            }
        };
        tokio::select! {
            _ = ended => Ok(()),
            () = serving => Ok(()),
        }
    })
}

fn failed(cause: impl std::fmt::Display) -> Failure {
    Failure::internal(cause.to_string())
}

fn files(dir: &Path) -> TlsFiles {
    TlsFiles { ca: dir.join("ca.crt"), certificate: dir.join("n1.crt"), key: dir.join("n1.key") }
}

/// An authority and a certificate that live as long as the measurement.
fn certificates(dir: &Path) -> CliResult<TlsIdentity> {
    std::fs::create_dir(dir).map_err(failed)?;
    let authority = Authority::create(rand::random()).map_err(failed)?;
    let files = files(dir);
    let issued = authority.issue_node(NAME, 1, ["127.0.0.1"]).map_err(failed)?;
    issued.save(&files.certificate, &files.key).map_err(failed)?;
    std::fs::write(&files.ca, authority.certificate_pem()).map_err(failed)?;
    TlsIdentity::load(files).map_err(failed)
}

/// The settings in the order of the options: datagrams with the first window, then windows with the first datagrams.
fn settings(bench: &QuicBench) -> Vec<(u16, u64)> {
    let first = |all: &[u64]| all.first().copied().unwrap_or(WINDOW_BYTES);
    let (window, mtu) = (first(&bench.window), bench.mtu.first().copied().unwrap_or(MTU_MAX));
    let mtus = bench.mtu.iter().map(|mtu| (*mtu, window));
    mtus.chain(bench.window.iter().skip(1).map(|window| (mtu, *window))).collect()
}

/// A setting with what each of its rounds saw.
type Rounds = ((u16, u64), Vec<Seen>);

async fn measure(bench: &QuicBench, dir: &Path, tls: &TlsIdentity) -> CliResult<Vec<Rounds>> {
    let mut all: Vec<Rounds> = settings(bench).into_iter().map(|setting| (setting, Vec::new())).collect();
    for _ in 0..bench.rounds {
        for ((mtu, window), rounds) in &mut all {
            rounds.push(one_round(bench, dir, tls, *mtu, *window).await?);
        }
    }
    Ok(all)
}

async fn one_round(bench: &QuicBench, dir: &Path, tls: &TlsIdentity, mtu: u16, window: u64) -> CliResult<Seen> {
    let (mut other, port) = start_listener(dir, mtu, window).await?;
    let settings = RawSettings { mtu: Mtu::AtMost(mtu), window_bytes: window };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let connection = RawConnection::dial(address, NAME, settings, tls).await.map_err(failed)?;
    connection.send(WARM_UP_BYTES).await.map_err(failed)?;
    connection.receive(WARM_UP_BYTES).await.map_err(failed)?;
    let mut trips = Histogram::<u64>::new_with_bounds(1, ROUND_TRIP_MAX_US * 10, 3).map_err(failed)?;
    let end = Instant::now() + Duration::from_secs_f64(bench.seconds);
    // In tenths of a microsecond: a round trip has tens of them.
    let count =
        |took: Duration| trips.saturating_record(u64::try_from(took.as_nanos() / 100).unwrap_or(u64::MAX).max(1));
    connection.echo(ECHO_BYTES, end, count).await.map_err(failed)?;
    let rate = |took: Duration| bench.bytes as f64 / 1e6 / took.as_secs_f64();
    let send_mb = rate(connection.send(bench.bytes).await.map_err(failed)?);
    let receive_mb = rate(connection.receive(bench.bytes).await.map_err(failed)?);
    let datagram_bytes = connection.datagram_bytes();
    connection.close();
    drop(other.stdin.take());
    other.wait().await.map_err(failed)?;
    let at = |quantile| trips.value_at_quantile(quantile) as f64 / 10.0;
    Ok(Seen { p50_us: at(0.5), p99_us: at(0.99), send_mb, receive_mb, datagram_bytes })
}

async fn start_listener(dir: &Path, mtu: u16, window: u64) -> CliResult<(Child, u16)> {
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["bench", "quic-listener", "--mtu", &mtu.to_string(), "--window", &window.to_string(), "--dir"]);
    command.arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let Some(stdout) = child.stdout.take() else { return Err(failed("the other process has no output")) };
    let mut line = String::new();
    let mut lines = BufReader::new(stdout);
    let read = tokio::time::timeout(START_PATIENCE, lines.read_line(&mut line)).await;
    read.map_err(|_| failed("the other process did not say where it listens"))?.map_err(failed)?;
    let port = line.trim().parse().map_err(|_| failed(format!("the other process said {line:?}, not a port")))?;
    Ok((child, port))
}

fn median(rounds: &[Seen], of: impl Fn(&Seen) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

fn show(all: &[Rounds], bench: &QuicBench, global: &Global) -> CliResult {
    let row = |((mtu, window), rounds): &Rounds| {
        let of = |get: fn(&Seen) -> f64| (median(rounds, get) * 10.0).round() / 10.0;
        json!({
            "mtu": mtu,
            "datagram_bytes": rounds.last().map(|seen| seen.datagram_bytes),
            "window_bytes": window,
            "p50_us": of(|seen| seen.p50_us),
            "p99_us": of(|seen| seen.p99_us),
            "send_mb_per_second": of(|seen| seen.send_mb),
            "receive_mb_per_second": of(|seen| seen.receive_mb),
        })
    };
    let rows: Vec<Value> = all.iter().map(row).collect();
    if global.json {
        let value = json!({ "echo_bytes": ECHO_BYTES, "bytes": bench.bytes, "rounds": bench.rounds, "settings": rows });
        return out::print_line(&value.to_string());
    }
    let cells = |row: &Value| {
        let micros = |key: &str| format!("{} us", row[key]);
        let rate = |key: &str| format!("{:.0} MB/s", row[key].as_f64().unwrap_or_default());
        vec![
            row["datagram_bytes"].to_string(),
            human_size(row["window_bytes"].as_u64().unwrap_or_default()),
            micros("p50_us"),
            micros("p99_us"),
            rate("send_mb_per_second"),
            rate("receive_mb_per_second"),
        ]
    };
    out::print_line(&super::table(&HEAD, 0, rows.iter().map(cells)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_is_varied_with_the_first_of_the_other() {
        let bench = QuicBench { mtu: vec![6500, 1452], window: vec![1, 2, 3], bytes: 1, seconds: 1.0, rounds: 1 };
        assert_eq!(settings(&bench), [(6500, 1), (1452, 1), (6500, 2), (6500, 3)]);
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        let seen = |send_mb| Seen { p50_us: 0.0, p99_us: 0.0, send_mb, receive_mb: 0.0, datagram_bytes: 0 };
        assert_eq!(median(&[seen(3.0), seen(1.0), seen(9.0)], |seen| seen.send_mb), 3.0);
        assert_eq!(median(&[seen(3.0), seen(1.0)], |seen| seen.send_mb), 2.0);
    }
}
