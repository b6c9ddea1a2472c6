//! What connects the nodes: a Linux network namespace each, or plain loopback.
//!
//! Everything hangs on namespaces without names. The program enters one of its own (`unshare --net`, with a user namespace where
//! it is not root), and in there makes one for a router and one for each node, held by processes that end with the program.
//! So nothing can collide with the machine's own network or with another run, and nothing has to be removed: the kernel does
//! that when the last process is gone, however it went.
//!
//! Each node has a link to the router and reaches all others through it. A cut is a rule of the router which drops what comes in
//! from one node for another (`ip rule iif .. to .. blackhole`): silently, one direction at a time, with nothing that
//! either side could notice but the silence. Clients live in the program's own namespace, behind the router as node 0.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The number under which cuts name the place where the clients are.
pub const CLIENTS: u64 = 0;
/// How long a datagram may take through two links of one machine that is busy with other things.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Where the holders of namespaces listen; nobody else is in there.
const HOLDER_PORT: u16 = 9;
/// Where `ip` lives on systems that hide it from users.
const SYSTEM_PATHS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// Ways into a namespace of one's own, in the order in which they are tried.
const ENTRANCES: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];

/// What connects the nodes.
#[derive(Debug)]
pub enum Wires {
    /// A namespace for each node; every direction of every link can be cut.
    Spaces(Spaces),
    /// The loopback interface: nothing can be cut.
    Loopback {
        /// The first port of node 1; each node has ten.
        base_port: u16,
    },
}

impl Wires {
    /// Loopback, on ports that are free now.
    ///
    /// # Errors
    /// No such ports are found.
    pub fn loopback(nodes: u64, mut random: impl FnMut() -> u64) -> Result<Wires, String> {
        /// Far from the range from which the system gives out ports by itself.
        const PORTS: std::ops::Range<u64> = 10_000..30_000;
        for _ in 0..100 {
            let base = PORTS.start + random() % (PORTS.end - PORTS.start);
            let mut ports = (0..nodes).flat_map(|node| [0, 1].map(|port| base + 10 * node + port));
            if ports.all(|port| UdpSocket::bind(format!("127.0.0.1:{port}")).is_ok()) {
                return u16::try_from(base)
                    .map(|base_port| Wires::Loopback { base_port })
                    .map_err(|cause| cause.to_string());
            }
        }
        Err("no free ports on 127.0.0.1 after 100 tries".to_owned())
    }

    /// Where peers reach `node`, `HOST:PORT`; clients use the next port.
    #[must_use]
    pub fn address(&self, node: u64) -> String {
        match self {
            Wires::Spaces(_) => format!("{}:5470", host(node)),
            Wires::Loopback { base_port } => format!("127.0.0.1:{}", u64::from(*base_port) + 10 * (node - 1)),
        }
    }

    /// A command that runs this program where `node` is.
    ///
    /// # Errors
    /// There is no such node.
    pub fn program_at(&self, node: u64) -> Result<Command, String> {
        match self {
            Wires::Spaces(spaces) => spaces.holder(node).map(|holder| holder.inside(program())),
            Wires::Loopback { .. } => Ok(Command::new(program())),
        }
    }

    /// Whether links can be cut.
    #[must_use]
    pub fn can_be_cut(&self) -> bool {
        matches!(self, Wires::Spaces(_))
    }

    /// Whether the way `from` one node `to` another is cut.
    #[must_use]
    pub fn is_cut(&self, from: u64, to: u64) -> bool {
        matches!(self, Wires::Spaces(spaces) if spaces.cuts.contains_key(&(from, to)))
    }

    /// Cuts the way `from` one node `to` another once more; the way back stays.
    ///
    /// # Errors
    /// The system refuses.
    pub fn cut(&mut self, from: u64, to: u64) -> Result<(), String> {
        match self {
            Wires::Spaces(spaces) => spaces.cut(from, to),
            Wires::Loopback { .. } => Err("loopback cannot be cut".to_owned()),
        }
    }

    /// Takes back one [`Wires::cut`] of this way.
    ///
    /// # Errors
    /// The system refuses.
    pub fn mend(&mut self, from: u64, to: u64) -> Result<(), String> {
        match self {
            Wires::Spaces(spaces) => spaces.mend(from, to),
            Wires::Loopback { .. } => Ok(()),
        }
    }
}

/// A router and nodes behind it, each in a namespace.
#[derive(Debug)]
pub struct Spaces {
    router: Holder,
    nodes: Vec<Holder>,
    /// How many faults want each way cut.
    cuts: BTreeMap<(u64, u64), u32>,
}

impl Spaces {
    /// Makes the namespaces and links of `nodes` nodes. The program must be in a namespace of its own.
    ///
    /// # Errors
    /// What the system refused.
    pub fn open(nodes: u64) -> Result<Spaces, String> {
        let router = Holder::start()?;
        let nodes = (1..=nodes).map(|_| Holder::start()).collect::<Result<Vec<_>, _>>()?;
        let spaces = Spaces { router, nodes, cuts: BTreeMap::new() };
        // A sysctl of the namespace it is written from.
        spaces.router.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        run(Command::new("ip").args(["link", "add", "up0", "type", "veth", "peer", "name", "h0"]))?;
        run(Command::new("ip").args(["link", "set", "h0", "netns", &spaces.router.pid()]))?;
        for (node, holder) in (1..).zip(&spaces.nodes) {
            let (ours, theirs) = (format!("h{node}"), format!("up{node}"));
            spaces.router.run("ip", &["link", "add", &ours, "type", "veth", "peer", "name", &theirs])?;
            spaces.router.run("ip", &["link", "set", &theirs, "netns", &holder.pid()])?;
        }
        for node in 0..=spaces.nodes.len() as u64 {
            let (ours, theirs) = (format!("h{node}"), format!("up{node}"));
            spaces.router.run("ip", &["address", "add", &format!("{}/24", gateway(node)), "dev", &ours])?;
            spaces.router.run("ip", &["link", "set", &ours, "up"])?;
            spaces.at(node, &["link", "set", "lo", "up"])?;
            spaces.at(node, &["address", "add", &format!("{}/24", host(node)), "dev", &theirs])?;
            spaces.at(node, &["link", "set", &theirs, "up"])?;
            spaces.at(node, &["route", "add", "default", "via", &gateway(node)])?;
        }
        Ok(spaces)
    }

    /// Proves with datagrams that a cut cuts one way and no other, and that it heals.
    ///
    /// # Errors
    /// What did not arrive, or arrived all the same.
    pub fn prove(&mut self) -> Result<(), String> {
        let [one, two, three] = [1, 2, 3];
        self.say(one, two, "open")?;
        self.hears(two, "open")?;
        self.cut(one, two)?;
        self.say(one, two, "lost")?;
        self.say(two, one, "back")?;
        self.hears(one, "back")?;
        self.say(three, two, "around")?;
        self.hears(two, "around")?;
        self.say(one, three, "elsewhere")?;
        self.hears(three, "elsewhere")?;
        self.mend(one, two)?;
        // Datagrams of one link do not overtake each other: if the lost one were still on its way, it would be heard first.
        self.say(one, two, "healed")?;
        self.hears(two, "healed")
    }

    fn cut(&mut self, from: u64, to: u64) -> Result<(), String> {
        let count = self.cuts.entry((from, to)).or_insert(0);
        *count += 1;
        if *count == 1 { self.rule("add", from, to) } else { Ok(()) }
    }

    fn mend(&mut self, from: u64, to: u64) -> Result<(), String> {
        match self.cuts.get_mut(&(from, to)) {
            Some(1) => {
                self.cuts.remove(&(from, to));
                self.rule("del", from, to)
            }
            Some(count) => {
                *count -= 1;
                Ok(())
            }
            None => Err(format!("the way from {from} to {to} is not cut")),
        }
    }

    fn rule(&self, what: &str, from: u64, to: u64) -> Result<(), String> {
        self.router.run("ip", &["rule", what, "iif", &format!("h{from}"), "to", &host(to), "blackhole"])
    }

    fn at(&self, node: u64, arguments: &[&str]) -> Result<(), String> {
        if node == CLIENTS {
            return run(Command::new("ip").args(arguments));
        }
        self.holder(node)?.run("ip", arguments)
    }

    fn holder(&self, node: u64) -> Result<&Holder, String> {
        let at = usize::try_from(node).ok().and_then(|node| node.checked_sub(1));
        at.and_then(|at| self.nodes.get(at)).ok_or_else(|| format!("there is no node {node}"))
    }

    fn say(&mut self, from: u64, to: u64, word: &str) -> Result<(), String> {
        let line = format!("{} {word}\n", host(to));
        let at = usize::try_from(from).unwrap_or(0).saturating_sub(1);
        let told = self.nodes[at].stdin.write_all(line.as_bytes());
        told.map_err(|cause| format!("the holder of node {from} is gone: {cause}"))
    }

    fn hears(&self, node: u64, word: &str) -> Result<(), String> {
        match self.holder(node)?.lines.recv_timeout(ARRIVAL) {
            Ok(heard) if heard == word => Ok(()),
            Ok(heard) => Err(format!("node {node} was to hear {word:?} and heard {heard:?}")),
            Err(_) => Err(format!("node {node} was to hear {word:?} and heard nothing")),
        }
    }
}

/// The process that keeps a namespace, and tells what datagrams arrive in it.
#[derive(Debug)]
struct Holder {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Holder {
    fn start() -> Result<Holder, String> {
        let mut command = Command::new("unshare");
        command.arg("--net").arg(program()).args(["hold", "--parent", &std::process::id().to_string()]);
        command.env("PATH", path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|cause| format!("cannot run unshare: {cause}"))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a holder without pipes".to_owned());
        };
        let (told, lines) = mpsc::channel();
        std::thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| told.send(l)));
        let holder = Holder { child, stdin, lines };
        match holder.lines.recv_timeout(ARRIVAL) {
            Ok(line) if line == "holding" => Ok(holder),
            other => Err(format!("a network namespace could not be made: {other:?}")),
        }
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// A command that runs `program` in the namespace, as the process that this starts.
    fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.env("PATH", path()).arg(format!("--net=/proc/{}/ns/net", self.pid())).arg("--").arg(program);
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<(), String> {
        run(self.inside(program).args(arguments))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It holds nothing but the namespace.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a holder does: says what it hears, sends what it is told, and ends with the program.
///
/// # Errors
/// No socket, or the program is gone already.
pub fn hold(parent: u32) -> Result<(), String> {
    super::nodes::end_with(parent)?;
    let socket = UdpSocket::bind(("0.0.0.0", HOLDER_PORT)).map_err(|cause| format!("no socket: {cause}"))?;
    let ears = socket.try_clone().map_err(|cause| cause.to_string())?;
    println!("holding");
    std::thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok(len) = ears.recv(&mut datagram) {
            println!("{}", String::from_utf8_lossy(&datagram[..len]));
        }
    });
    for line in std::io::stdin().lines().map_while(Result::ok) {
        if let Some((host, word)) = line.split_once(' ') {
            // A datagram that cannot be sent is one that does not arrive; the program waits for its arrival.
            let _ = socket.send_to(word.as_bytes(), (host, HOLDER_PORT));
        }
    }
    Ok(())
}

/// Tries every way into a namespace in which links can be made and cut: what to put before the program's own command line.
///
/// # Errors
/// Why none works, in a sentence.
pub fn entrance() -> Result<Vec<&'static str>, String> {
    // Not by the link in `/proc`: who has entered a user namespace may not look at processes outside of it.
    let program = std::env::current_exe().map_err(|cause| format!("this program does not find itself: {cause}"))?;
    let mut reasons = Vec::new();
    for entrance in ENTRANCES {
        let mut command = Command::new("unshare");
        command.env("PATH", path()).args(entrance).arg(&program).arg("probe").stdin(Stdio::null());
        match command.output() {
            Ok(output) if output.status.success() => return Ok([&["unshare"], entrance].concat()),
            Ok(output) => {
                let told = String::from_utf8_lossy(&output.stderr);
                let line = told.lines().next().unwrap_or("no reason was given");
                reasons.push(format!("unshare {}: {line}", entrance.join(" ")));
            }
            Err(cause) => reasons.push(format!("unshare: {cause}")),
        }
    }
    Err(format!("no network namespaces here: {}", reasons.join("; ")))
}

/// Makes namespaces, and proves that they can be cut.
///
/// # Errors
/// What does not work.
pub fn probe() -> Result<(), String> {
    Spaces::open(3)?.prove()
}

/// This program. The link in `/proc` stays right when the file is replaced by a newer build during the run.
fn program() -> PathBuf {
    let link = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    if link.exists() { link } else { std::env::current_exe().unwrap_or(link) }
}

/// Where system commands are looked for.
#[must_use]
pub fn path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    if path.is_empty() { SYSTEM_PATHS.to_owned() } else { format!("{path}:{SYSTEM_PATHS}") }
}

fn host(node: u64) -> String {
    format!("10.0.{node}.2")
}

fn gateway(node: u64) -> String {
    format!("10.0.{node}.1")
}

/// Runs a command of the system to its end.
fn run(command: &mut Command) -> Result<(), String> {
    let words = |command: &Command| {
        let program = Path::new(command.get_program()).display().to_string();
        let arguments = command.get_args().map(|word| word.to_string_lossy().into_owned());
        std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ")
    };
    let output = command.env("PATH", path()).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{}: {}", words(command), String::from_utf8_lossy(&output.stderr).trim())),
        Err(cause) => Err(format!("{}: {cause}", words(command))),
    }
}
