//! What each client holds, by the name in its certificates: its share of connections and subscriptions, how often it opens a
//! session, and how much of QUIC's windows its connections get.
//!
//! Whoever has a certificate is not a stranger, and may still mean harm or have a bug. One client can have most of what there is,
//! because a cluster with one program is common, but a quarter is left for the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::admission::Bucket;
use crate::protocol::budget::Budget;

/// What all clients together may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections whose handshake is done.
    pub(super) connections: usize,
    /// Subscriptions.
    pub(super) subscriptions: usize,
    /// Bytes of windows above the smallest ones.
    pub(super) window_bytes: u64,
    /// Bytes of append groups of one client that were begun and not answered.
    pub(super) append_bytes: usize,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Accounts {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connections: usize,
    subscriptions: usize,
    window_bytes: u64,
    /// Names come from certificates that the cluster's authority signed. Whoever holds nothing and asked for nothing lately is
    /// forgotten.
    clients: HashMap<Arc<str>, Client>,
    /// How many clients were numbered.
    numbered: u64,
}

impl State {
    fn client(&mut self, name: &Arc<str>, limits: &Limits) -> &mut Client {
        let numbered = &mut self.numbered;
        self.clients.entry(name.clone()).or_insert_with(|| {
            *numbered += 1;
            Client::new(*numbered, limits)
        })
    }
}

#[derive(Debug)]
struct Client {
    number: u64,
    connections: usize,
    subscriptions: usize,
    sessions: Bucket,
    asking: Bucket,
    /// Its share of append groups. A group counts from its first byte on, so whoever begins many and ends none has all there is of it.
    appends: Arc<Budget>,
    requests: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
}

impl Client {
    fn new(number: u64, limits: &Limits) -> Client {
        let sessions = Bucket::new(SESSIONS_PER_SECOND, SESSIONS_AT_ONCE, Instant::now());
        let asking = Bucket::new(REQUESTS_PER_SECOND, REQUESTS_PER_SECOND, Instant::now());
        let (appends, requests) = (Budget::new(limits.append_bytes), Arc::new(Semaphore::new(REQUESTS_AT_ONCE)));
        let downloads = Arc::new(Semaphore::new(DOWNLOADS_SHARE));
        Client { number, connections: 0, subscriptions: 0, sessions, asking, appends, requests, downloads }
    }
}

/// Why a client gets no more: the words for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Full {
    /// All clients together have what there is.
    All { limit: usize },
    /// This client has its share.
    Share { limit: usize },
}

impl Accounts {
    pub(super) fn new(limits: Limits) -> Arc<Accounts> {
        Arc::new(Accounts { limits, state: Mutex::default() })
    }

    /// Counts a connection of the client called `name`, until it is dropped.
    pub(super) fn connect(self: &Arc<Self>, name: &Arc<str>) -> Result<Held, Full> {
        let mut state = self.lock();
        if state.clients.len() >= CLIENTS_REMEMBERED {
            let now = Instant::now();
            state.clients.retain(|_, client| client.connections > 0 || !client.sessions.is_full(now));
        }
        let all = state.connections;
        let client = state.client(name, &self.limits);
        check(all, client.connections, self.limits.connections)?;
        client.connections += 1;
        state.connections += 1;
        Ok(self.held(name, What::Connection))
    }

    /// Counts a subscription. The client has a connection.
    pub(super) fn subscribe(self: &Arc<Self>, name: &Arc<str>) -> Result<Held, Full> {
        let mut state = self.lock();
        let all = state.subscriptions;
        let client = state.client(name, &self.limits);
        check(all, client.subscriptions, self.limits.subscriptions)?;
        client.subscriptions += 1;
        state.subscriptions += 1;
        Ok(self.held(name, What::Subscription))
    }

    /// The number of the client, and the bound on append groups of the client called `name`. It has a connection.
    pub(super) fn appends(&self, name: &Arc<str>) -> (u64, Arc<Budget>) {
        let mut state = self.lock();
        let client = state.client(name, &self.limits);
        (client.number, client.appends.clone())
    }

    /// Takes the right to make one request while other clients are connected, or says how long to wait for it.
    pub(super) fn request(&self, name: &Arc<str>) -> Result<(), Duration> {
        let now = Instant::now();
        let mut state = self.lock();
        let all = state.connections;
        let client = state.client(name, &self.limits);
        if client.connections == all || client.asking.take(now) { Ok(()) } else { Err(client.asking.wait(now)) }
    }

    /// The requests of the client called `name` that may be worked on at once. It has a connection.
    pub(super) fn requests(&self, name: &Arc<str>) -> Arc<Semaphore> {
        self.lock().client(name, &self.limits).requests.clone()
    }

    /// The snapshots that the client called `name` may be given at once. It has a connection.
    pub(super) fn downloads(&self, name: &Arc<str>) -> Arc<Semaphore> {
        self.lock().client(name, &self.limits).downloads.clone()
    }

    /// Takes `bytes` of windows, if they are left.
    pub(super) fn widen(self: &Arc<Self>, name: &Arc<str>, bytes: u64) -> Option<Held> {
        let mut state = self.lock();
        let taken = state.window_bytes.saturating_add(bytes);
        (taken <= self.limits.window_bytes).then(|| {
            state.window_bytes = taken;
            self.held(name, What::Window(bytes))
        })
    }

    /// Takes the right to open one session, or says how long to wait for it.
    pub(super) fn open_session(&self, name: &Arc<str>) -> Result<(), Duration> {
        let now = Instant::now();
        let mut state = self.lock();
        let client = state.client(name, &self.limits);
        if client.sessions.take(now) { Ok(()) } else { Err(client.sessions.wait(now)) }
    }

    /// Connections held.
    pub(super) fn connections(&self) -> usize {
        self.lock().connections
    }

    /// Subscriptions held.
    pub(super) fn subscriptions(&self) -> usize {
        self.lock().subscriptions
    }

    fn held(self: &Arc<Self>, name: &Arc<str>, what: What) -> Held {
        Held { accounts: self.clone(), name: name.clone(), what }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(all: usize, own: usize, limit: usize) -> Result<(), Full> {
    let share = share(limit);
    if all >= limit {
        return Err(Full::All { limit });
    }
    if own >= share {
        return Err(Full::Share { limit: share });
    }
    Ok(())
}

/// What one client can have of what all can have. At least one: a node that takes one connection takes it from whoever comes.
fn share(limit: usize) -> usize {
    (limit - limit / 4).max(1)
}

/// Something counted, given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    accounts: Arc<Accounts>,
    name: Arc<str>,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Connection,
    Subscription,
    Window(u64),
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.accounts.lock();
        match self.what {
            What::Connection => state.connections -= 1,
            What::Subscription => state.subscriptions -= 1,
            What::Window(bytes) => state.window_bytes -= bytes,
        }
        if let Some(client) = state.clients.get_mut(&self.name) {
            match self.what {
                What::Connection => client.connections -= 1,
                What::Subscription => client.subscriptions -= 1,
                What::Window(_) => {}
            }
        }
    }
}

/// Sessions one client opens in each second after a burst: a script that runs a command for each record stays below. The cluster
/// keeps some thousands of sessions in all, and forgets the idlest for a new one.
const SESSIONS_PER_SECOND: u32 = 64;
/// And at once: a program with many appenders starts.
const SESSIONS_AT_ONCE: u32 = 512;
/// Requests that one client makes in each second while others are connected, and at once: a request costs this thread some 50 us with its
/// stream, so one client gets a tenth of it for requests. Alone it may take what there is.
const REQUESTS_PER_SECOND: u32 = 2048;
/// Requests of one client that are worked on at the same time, on all its connections. A node answers one in some 20 us, so those of others
/// wait for a millisecond at most.
const REQUESTS_AT_ONCE: usize = 64;
/// Snapshots given to one client at the same time, on all its connections: three quarters of what the node gives to all.
pub(super) const DOWNLOADS_SHARE: usize = super::snapshot::DOWNLOADS_MAX * 3 / 4;
/// Names kept before those are looked for that may be forgotten.
const CLIENTS_REMEMBERED: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_gets_three_quarters_and_the_others_the_rest() {
        let accounts = Accounts::new(Limits { connections: 8, subscriptions: 4, window_bytes: 100, append_bytes: 8 });
        let (greedy, other): (Arc<str>, Arc<str>) = ("greedy".into(), "other".into());
        let mut held: Vec<Held> = (0..6).map(|_| accounts.connect(&greedy).unwrap()).collect();
        assert_eq!(accounts.connect(&greedy).unwrap_err(), Full::Share { limit: 6 });
        held.extend((0..2).map(|_| accounts.connect(&other).unwrap()));
        assert_eq!(accounts.connect(&other).unwrap_err(), Full::All { limit: 8 });
        held.extend((0..3).map(|_| accounts.subscribe(&greedy).unwrap()));
        assert_eq!(accounts.subscribe(&greedy).unwrap_err(), Full::Share { limit: 3 });
        let wide = accounts.widen(&greedy, 60).unwrap();
        assert!(accounts.widen(&other, 60).is_none());
        drop(wide);
        assert!(accounts.widen(&other, 60).is_some());
        held.remove(0);
        assert!(accounts.connect(&greedy).is_ok());
        drop(held);
        assert_eq!((accounts.connections(), accounts.subscriptions()), (0, 0));
    }

    #[test]
    fn sessions_are_held_back_by_client() {
        let accounts = Accounts::new(Limits { connections: 1, subscriptions: 1, window_bytes: 0, append_bytes: 8 });
        let (greedy, other): (Arc<str>, Arc<str>) = ("greedy".into(), "other".into());
        let opened = (0..2 * SESSIONS_AT_ONCE).filter(|_| accounts.open_session(&greedy).is_ok()).count();
        assert!((SESSIONS_AT_ONCE as usize..SESSIONS_AT_ONCE as usize + 20).contains(&opened), "{opened}");
        assert!(accounts.open_session(&greedy).is_err_and(|wait| wait <= Duration::from_secs(1)));
        assert!(accounts.open_session(&other).is_ok());
    }

    #[test]
    fn requests_are_held_back_while_others_are_connected() {
        let accounts = Accounts::new(Limits { connections: 4, subscriptions: 1, window_bytes: 0, append_bytes: 8 });
        let (greedy, other): (Arc<str>, Arc<str>) = ("greedy".into(), "other".into());
        let _own = accounts.connect(&greedy).unwrap();
        let many = 4 * REQUESTS_PER_SECOND;
        assert!((0..many).all(|_| accounts.request(&greedy).is_ok()), "alone it may take what there is");
        let _others = accounts.connect(&other).unwrap();
        let made = (0..many).filter(|_| accounts.request(&greedy).is_ok()).count() as u32;
        assert!((REQUESTS_PER_SECOND..REQUESTS_PER_SECOND * 3 / 2).contains(&made), "{made}");
        assert!(accounts.request(&greedy).is_err_and(|wait| wait <= Duration::from_millis(1)));
        assert!(accounts.request(&other).is_ok());
    }

    #[test]
    fn names_that_hold_nothing_are_forgotten() {
        let accounts = Accounts::new(Limits { connections: 1, subscriptions: 1, window_bytes: 0, append_bytes: 8 });
        for number in 0..2 * CLIENTS_REMEMBERED {
            drop(accounts.connect(&format!("c{number}").into()).unwrap());
        }
        assert!(accounts.lock().clients.len() <= CLIENTS_REMEMBERED);
    }
}
