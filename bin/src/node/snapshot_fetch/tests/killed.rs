//! A receiver that is a process of its own, killed again and again; every byte that its sender puts on the wire passes through here.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::*;

/// What tells [`a_receiver_in_a_process_of_its_own`] that it is one: the house's directory, and where the relay listens.
const DIRECTORY: &str = "GRAVEN_TEST_RECEIVER_DIR";
const ADDRESS: &str = "GRAVEN_TEST_RECEIVER_FROM";
const KILLS: u64 = 10;
/// What a kill costs at most: one chunk that is being written, one that waits for that, and QUIC's window of half a chunk that nobody
/// has read; and a tenth for headers and packets sent twice.
const LOST_BYTES_MAX: u64 = 5 * MIB / 2 + MIB / 4;

/// Passes datagrams on between one listener and whoever dials, and counts those that come from the listener.
struct Relay {
    address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Relay {
    /// For one dialling side: each life of the receiver has its own.
    fn start(listener: SocketAddr, sent: Arc<AtomicU64>) -> Relay {
        let (front, back) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        back.connect(listener).unwrap();
        let address = front.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let dialler = Arc::new(OnceLock::new());
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        }
        let (to_listener, to_dialler) = (back.try_clone().unwrap(), front.try_clone().unwrap());
        let (known, ended) = (dialler.clone(), over.clone());
        std::thread::spawn(move || {
            let mut datagram = vec![0; 1 << 16];
            while !ended.load(Ordering::SeqCst) {
                let Ok((len, from)) = front.recv_from(&mut datagram) else { continue };
                let _ = known.set(from);
                let _ = to_listener.send(&datagram[..len]);
            }
        });
        let ended = over.clone();
        std::thread::spawn(move || {
            let mut datagram = vec![0; 1 << 16];
            while !ended.load(Ordering::SeqCst) {
                let Ok(len) = back.recv(&mut datagram) else { continue };
                sent.fetch_add(len as u64, Ordering::SeqCst);
                if let Some(to) = dialler.get() {
                    let _ = to_dialler.send_to(&datagram[..len], to);
                }
            }
        });
        Relay { address, over }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Killed when it is dropped: a test that fails leaves no process.
struct Receiver(Child);

impl Receiver {
    fn start(house: &House, from: SocketAddr) -> Receiver {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([
            "--exact",
            "node::snapshot_fetch::tests::killed::a_receiver_in_a_process_of_its_own",
            "--nocapture",
        ]);
        command.env(DIRECTORY, house.dir.path()).env(ADDRESS, from.to_string()).stdout(Stdio::null());
        Receiver(command.spawn().unwrap())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The other process of the test below; nothing when it is run by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_in_a_process_of_its_own() {
    let (Some(dir), Ok(address)) = (std::env::var_os(DIRECTORY), std::env::var(ADDRESS)) else { return };
    let dir = PathBuf::from(dir);
    let tls = TlsIdentity::load(tls_files(&dir, SELF)).unwrap();
    let fetcher = fetcher(RealDisk::open(dir.join(format!("n{SELF}"))), tls, 0);
    let peers = move || vec![Peer { name: "n1".to_owned(), id: 1, address: address.clone() }];
    fetcher.fetch(SnapshotWanted::Id(77), &peers, ANY).await.unwrap();
}

/// A receiver whose process is killed ten times, each time in the middle: all that its sender puts on the wire, headers and packets sent twice
/// included, is the size and a bounded loss for each kill, which is less than 1.1 times a snapshot of 256 MiB or more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_ten_times_in_a_transfer_is_sent_little_twice() {
    let long = std::env::var_os("GRAVEN_LONG").is_some();
    let size = if long { 256 * MIB } else { 44 * MIB } + 17;
    let house = House::new();
    let info = house.put(&[1], name(), size);
    // What the other process finds: its certificate and an empty directory.
    house.tls(SELF);
    house.disk(SELF);
    let (server, _) = house.serve(1, None, &Arc::default()).await;
    let sent: Arc<AtomicU64> = Arc::default();
    let listener = server.local_address();
    for life in 1..=KILLS {
        let relay = Relay::start(listener, sent.clone());
        // Equal shares: the last life has something left to do.
        let target = sent.load(Ordering::SeqCst) + size / (KILLS + 2);
        let mut receiver = Receiver::start(&house, relay.address);
        let until = Instant::now() + Duration::from_secs(120);
        while sent.load(Ordering::SeqCst) < target {
            assert!(receiver.0.try_wait().unwrap().is_none(), "the receiver ended in life {life}");
            assert!(Instant::now() < until, "{} bytes of {target} in life {life}", sent.load(Ordering::SeqCst));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(receiver);
    }
    let relay = Relay::start(listener, sent.clone());
    let mut receiver = Receiver::start(&house, relay.address);
    let waited = tokio::task::spawn_blocking(move || receiver.0.wait().unwrap().success()).await.unwrap();
    assert!(waited, "the last life did not end well");
    house.check(&info);
    let sent = sent.load(Ordering::SeqCst);
    let times = sent as f64 / size as f64;
    println!("{sent} bytes sent for {size}, {times:.3} times, {} a kill", sent.saturating_sub(size) / KILLS);
    assert!(sent <= size + KILLS * LOST_BYTES_MAX, "{sent} bytes for {size}");
    assert!(!long || times < 1.1, "{times:.3} times");
    server.close().await;
}
