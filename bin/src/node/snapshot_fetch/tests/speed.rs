//! How fast a snapshot comes to another process, beside QUIC alone and beside the disk alone. Nothing is judged here; the figures are in
//! `docs/decisions/snapshots.md`.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use graven_net::raw::{RawConnection, RawListener, RawSettings};
use graven_net::transport::Mtu;
use graven_wal::{DIRECT_BYTES, Disk as _, DiskFile as _, WriteMode};

use super::*;

/// What tells [`a_receiver_that_is_timed`] that it is one: the house's directory, where to dial, and how many bytes to take of QUIC
/// alone; 0 for the snapshot.
const DIRECTORY: &str = "GRAVEN_TEST_TIMED_DIR";
const ADDRESS: &str = "GRAVEN_TEST_TIMED_FROM";
const RAW_BYTES: &str = "GRAVEN_TEST_TIMED_RAW";
/// Before what it says.
const TOOK: &str = "microseconds taken: ";
/// As between nodes.
const RAW: RawSettings = RawSettings { mtu: Mtu::Auto, window_bytes: 1 << 20 };

/// The other process of the test below; nothing when it is run by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_timed() {
    let (Some(dir), Ok(address)) = (std::env::var_os(DIRECTORY), std::env::var(ADDRESS)) else { return };
    let dir = PathBuf::from(dir);
    let tls = TlsIdentity::load(tls_files(&dir, SELF)).unwrap();
    let raw: u64 = std::env::var(RAW_BYTES).unwrap().parse().unwrap();
    let took = if raw > 0 {
        let connection = RawConnection::dial(address.parse().unwrap(), "n1", RAW, &tls).await.unwrap();
        let took = connection.receive(raw).await.unwrap();
        connection.close();
        took
    } else {
        let fetcher = fetcher(RealDisk::open(dir.join(format!("n{SELF}"))), tls, 0);
        let peers = move || vec![Peer { name: "n1".to_owned(), id: 1, address: address.clone() }];
        let begin = Instant::now();
        fetcher.fetch(SnapshotWanted::Id(77), &peers, ANY).await.unwrap();
        begin.elapsed()
    };
    println!("{TOOK}{}", took.as_micros());
}

async fn timed(house: &House, address: SocketAddr, raw: u64) -> f64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "node::snapshot_fetch::tests::speed::a_receiver_that_is_timed", "--nocapture"]);
    command.env(DIRECTORY, house.dir.path()).env(ADDRESS, address.to_string()).env(RAW_BYTES, raw.to_string());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let read = move || {
        let said: Vec<String> = lines.map_while(Result::ok).collect();
        assert!(child.wait().unwrap().success(), "{said:?}");
        said.iter().find_map(|line| line.strip_prefix(TOOK)?.parse::<f64>().ok()).unwrap()
    };
    tokio::task::spawn_blocking(read).await.unwrap() / 1e6
}

/// The same bytes to the disk alone: blocks of 1 MiB past the page cache, one after the other, and a sync.
fn disk_alone(disk: &RealDisk, size: u64) -> f64 {
    let file = disk.create("ceiling", WriteMode::Direct).unwrap();
    file.allocate(size).unwrap();
    let memory = vec![0x5a; (1 << 20) + DIRECT_BYTES as usize];
    let from = memory.as_ptr().align_offset(DIRECT_BYTES as usize);
    let block = &memory[from..from + (1 << 20)];
    let begin = Instant::now();
    for at in (0..size).step_by(block.len()) {
        file.write_at(at, block).unwrap();
    }
    file.sync_data().unwrap();
    let took = begin.elapsed().as_secs_f64();
    disk.remove("ceiling").unwrap();
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_speed_of_a_transfer_is_told() {
    let long = std::env::var_os("GRAVEN_LONG").is_some();
    let (size, rounds) = if long { (2 << 30, 5) } else { (8 * MIB, 1) };
    let house = House::new();
    let info = house.put(&[1], name(), size);
    house.tls(SELF);
    let (server, _) = house.serve(1, None, &Arc::default()).await;
    let raw = RawListener::bind(RAW, &house.tls(1)).unwrap();
    let raw_address = raw.address().unwrap();
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let (took, ()) = tokio::join!(timed(&house, raw_address, size), raw.serve_one());
        all[0].push(took);
        let ceiling = house.disk(SELF);
        all[1].push(tokio::task::spawn_blocking(move || disk_alone(&ceiling, size)).await.unwrap());
        all[2].push(timed(&house, server.local_address(), 0).await);
        house.check(&info);
        body::remove(&house.disk(SELF), &body::file_of(77)).unwrap();
    }
    let [raw, disk, transfer] = all.map(|mut times| {
        times.sort_by(f64::total_cmp);
        size as f64 / 1e6 / times[times.len() / 2]
    });
    println!(
        "{size} bytes: QUIC alone {raw:.0} MB/s, disk alone {disk:.0} MB/s, a snapshot {transfer:.0} MB/s ({:.2} of QUIC, {:.2} of the disk)",
        transfer / raw,
        transfer / disk
    );
    server.close().await;
}
