//! Two processes of one node: which of them is heard.
//!
//! A data directory that was copied, certificate and all, makes a second process that is the node as far as any proof goes. What tells
//! the two apart is that each start of a process draws a number of its own (`boot` in the hello), and that both are there at once.
//! A node that was restarted has another number too, and must be heard at once, so the number alone decides nothing:
//!
//! | the life that says hello | is heard |
//! |---|---|
//! | no connection of another life of that node stands here | yes |
//! | stands at the address at which the membership has the node, or is the one we reached there | yes |
//! | comes from the very address of the other life: one socket has one process, so the other is gone | yes |
//! | the other life sends nothing for [`SILENCE`], or its connections end meanwhile | yes |
//! | else: a packet of the other life arrived after this hello | no, [`Refusal::OtherLife`] |
//!
//! Whoever is heard takes the place of every other life. A mistake in either direction passes by itself: a refused node dials
//! again within two seconds, and one that is silent for the idle timeout has no connection left that could speak against another.
//! [`Verdicts`] is the refused side: a process to which a peer has said for [`FINAL_AFTER`] that it is not the node gives up.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use graven_raft::NodeId;
use quinn::Connection;

use super::{CLOSE_REFUSED, Refusal, Shared, hello::Hello, incoming::Registry};

/// A connection that stands, and the life of the peer it belongs to.
pub(super) struct Seen {
    pub(super) connection: Connection,
    pub(super) boot: u64,
    /// We dialled it, at the address that the membership has.
    pub(super) dialled: bool,
}

impl Seen {
    fn stands(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    fn look(&self) -> Look {
        Look { boot: self.boot, dialled: self.dialled, address: self.connection.remote_address() }
    }

    fn packets(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }
}

/// Whether the life that said `hello` from `address` is the node's one; then, the lives whose place it takes.
pub(super) async fn judge(shared: &Shared, hello: &Hello, address: SocketAddr) -> Result<Vec<u64>, Refusal> {
    let all = seen(shared, hello.from);
    let is_heard = |all: &[Seen]| {
        let looks: Vec<Look> = all.iter().map(Seen::look).collect();
        at_once(&looks, hello.boot, address, shared.member_address(hello.from))
    };
    let is_heard_now = is_heard(&all);
    let others: Vec<Seen> = all.into_iter().filter(|it| it.boot != hello.boot).collect();
    let boots: Vec<u64> = others.iter().map(|it| it.boot).collect();
    if is_heard_now {
        return Ok(boots);
    }
    let before: Vec<u64> = others.iter().map(Seen::packets).collect();
    let until = Instant::now() + SILENCE;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if is_heard(&seen(shared, hello.from)) {
            return Ok(boots);
        }
        let speaks = |(other, before): &(&Seen, &u64)| other.stands() && other.packets() > **before;
        if let Some((other, _)) = others.iter().zip(&before).find(speaks) {
            return Err(other_life(hello.from, &other.connection));
        }
        if Instant::now() >= until || !others.iter().any(Seen::stands) {
            return Ok(boots);
        }
    }
}

/// What a connection that stands says about the life it belongs to.
#[derive(Debug, Clone, Copy)]
struct Look {
    boot: u64,
    dialled: bool,
    address: SocketAddr,
}

/// Whether the life `boot` at `address` is heard without waiting for what other lives do: the rows of the table that need no time.
fn at_once(standing: &[Look], boot: u64, address: SocketAddr, member_address: Option<SocketAddr>) -> bool {
    let is_reached = standing.iter().any(|it| it.dialled && it.boot == boot);
    let is_gone = |other: u64| standing.iter().any(|it| it.boot == other && it.address == address);
    let all_gone = standing.iter().all(|it| it.boot == boot || is_gone(it.boot));
    is_reached || all_gone || member_address == Some(address)
}

pub(super) fn other_life(node: NodeId, living: &Connection) -> Refusal {
    Refusal::OtherLife { node: node.0, address: living.remote_address().to_string() }
}

/// What is said to a connection whose life was judged to be over, or not the node's.
pub(super) fn close_displaced(connection: &Connection) {
    super::refusals::close(connection, CLOSE_REFUSED, "another process of this node took its place");
}

fn seen(shared: &Shared, node: NodeId) -> Vec<Seen> {
    let mut all = shared.incoming.seen(node);
    if let Ok(peer) = shared.peer(node) {
        all.extend(peer.seen());
    }
    all.retain(Seen::stands);
    all
}

impl Registry {
    /// Whether a life of `node` stands here that is neither `boot` nor in `over`.
    pub(super) fn unjudged(&self, node: NodeId, boot: u64, over: &[u64]) -> Option<Seen> {
        self.seen(node).into_iter().find(|it| it.stands() && it.boot != boot && !over.contains(&it.boot))
    }
}

/// What peers say about this process, on the way to giving up.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    told: AtomicBool,
}

impl Verdicts {
    /// Takes in that a peer disowned us once more; whether that should be told as final, which it is once for the life of the plane.
    pub(super) fn is_final(&self, peer: &mut Option<Disowned>) -> bool {
        let now = Instant::now();
        let known = peer.filter(|known| now.duration_since(known.last) < FINAL_AFTER);
        let disowned = Disowned { last: now, ..known.unwrap_or(Disowned { since: now, last: now }) };
        *peer = Some(disowned);
        now.duration_since(disowned.since) >= FINAL_AFTER && !self.told.swap(true, Ordering::Relaxed)
    }
}

/// How long a peer has disowned us. Attempts that came to nothing in between, on a busy host, say neither yes nor no.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disowned {
    since: Instant,
    last: Instant,
}

/// A living peer sends at least a keep-alive a second on each connection.
const SILENCE: Duration = Duration::from_millis(1300);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Twice the idle timeout and a dial: whatever could make a peer mistake a dead process for a living one is over by then.
pub(super) const FINAL_AFTER: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn look(boot: u64, port: u16, dialled: bool) -> Look {
        Look { boot, dialled, address: at(port) }
    }

    /// The life 2 says hello from port 2; the membership has the node at port 1.
    fn is_heard(standing: &[Look]) -> bool {
        at_once(standing, 2, at(2), Some(at(1)))
    }

    #[test]
    fn nobody_is_in_the_way_of_the_only_life() {
        assert!(is_heard(&[]));
        assert!(is_heard(&[look(2, 2, false)]));
    }

    #[test]
    fn another_life_elsewhere_is_waited_for() {
        assert!(!is_heard(&[look(1, 1, true)]));
        assert!(!is_heard(&[look(1, 1, false), look(2, 2, false)]));
        assert!(!at_once(&[look(1, 1, true)], 2, at(2), None));
    }

    #[test]
    fn one_socket_has_one_process() {
        assert!(is_heard(&[look(1, 2, false), look(1, 1, true)]));
        assert!(!is_heard(&[look(1, 2, false), look(3, 1, true)]), "a third life is not over with the first");
    }

    #[test]
    fn the_life_at_the_member_address_is_the_node() {
        assert!(at_once(&[look(1, 3, false)], 2, at(1), Some(at(1))));
        assert!(is_heard(&[look(1, 3, false), look(2, 1, true)]), "reached there, though it dials from elsewhere");
    }

    #[test]
    fn a_refusal_is_final_when_it_was_repeated_for_long_and_is_told_once() {
        let verdicts = Verdicts::default();
        let ago = |since: u64, last: u64| {
            let before = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
            Some(Disowned { since: before(since), last: before(last) })
        };
        assert!(!verdicts.is_final(&mut None));
        assert!(!verdicts.is_final(&mut ago(5, 1)));
        let mut over = ago(60, 30);
        assert!(!verdicts.is_final(&mut over), "the last one is long ago: it begins anew");
        assert!(!verdicts.is_final(&mut over));
        assert!(verdicts.is_final(&mut ago(9, 2)));
        assert!(!verdicts.is_final(&mut ago(9, 2)), "told already");
    }
}
