//! What goes on beside a lab's own steps: agreements and clients, each a small machine that says when it wants to go on.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;

use super::{Lab, MS};
use crate::check::Violation;

/// How long all attempts at one agreement may take.
const AGREEMENT_US: u64 = 10_000 * MS;
/// How long an attempt waits for those who are to apply it.
const ATTEMPT_US: u64 = 2_000 * MS;
/// Between two looks at who has applied it.
const LOOK_US: u64 = 20 * MS;
/// Before the servers are asked again when none of them led.
const AGAIN_US: u64 = 50 * MS;
/// A churn client's pauses between its looks at what became of its command.
const PATIENCE_US: [u64; 5] = [10 * MS, 20 * MS, 50 * MS, 100 * MS, 200 * MS];

/// Something in the background.
#[derive(Debug)]
pub enum Task {
    /// An agreement.
    Agreement(Agreement),
    /// A client that goes on until it is stopped.
    Client(Client),
}

impl Task {
    pub(super) fn wakes_at(&self) -> u64 {
        match self {
            Task::Agreement(agreement) => agreement.wakes_at(),
            Task::Client(client) => client.wakes_at,
        }
    }

    /// Whether it has come to its end.
    pub(super) fn go_on(&mut self, lab: &mut Lab) -> Result<bool, Violation> {
        match self {
            Task::Agreement(agreement) => Ok(agreement.go_on(lab)?.is_some()),
            Task::Client(client) => client.go_on(lab),
        }
    }
}

/// One command on its way to being applied by enough servers.
#[derive(Debug)]
pub struct Agreement {
    command: Bytes,
    expected: u64,
    retry: bool,
    began: u64,
    /// When the attempt under way began.
    attempt: Option<u64>,
    /// The server that is asked next.
    next: u64,
    wakes_at: u64,
}

impl Agreement {
    /// `command` is to be applied by `expected` servers; with `retry` it is given to a leader again when that takes long.
    #[must_use]
    pub fn new(lab: &Lab, command: Bytes, expected: u64, retry: bool) -> Agreement {
        let now = lab.now_us();
        Agreement { command, expected, retry, began: now, attempt: None, next: 1, wakes_at: now }
    }

    pub(super) fn wakes_at(&self) -> u64 {
        self.wakes_at
    }

    /// Goes as far as it can now; the offset once it is agreed on.
    pub(super) fn go_on(&mut self, lab: &mut Lab) -> Result<Option<u64>, Violation> {
        let now = lab.now_us();
        if self.attempt.is_none() {
            if now - self.began >= AGREEMENT_US {
                return Err(self.failed("within ten seconds"));
            }
            self.attempt = self.submit(lab)?.then_some(now);
        }
        let Some(attempt) = self.attempt else {
            self.wakes_at = now + AGAIN_US;
            return Ok(None);
        };
        if let Some((offset, count)) = lab.find(&self.command)?
            && count >= self.expected
        {
            return Ok(Some(offset));
        }
        if now - attempt >= ATTEMPT_US {
            if !self.retry {
                return Err(self.failed("at the first attempt"));
            }
            self.attempt = None;
        }
        self.wakes_at = now + LOOK_US;
        Ok(None)
    }

    /// Asks live servers in turn until one takes the command.
    fn submit(&mut self, lab: &mut Lab) -> Result<bool, Violation> {
        for _ in 0..lab.servers() {
            self.next = lab.after(self.next, 1);
            if lab.is_live(self.next) && lab.start(self.next, &self.command)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn failed(&self, when: &str) -> Violation {
        let detail = format!("{:?} is not applied by {} servers {when}", self.command, self.expected);
        Violation { property: "agreement", detail }
    }
}

/// A client of the churn tests: gives commands to whoever takes them and remembers those that it saw applied.
#[derive(Debug)]
pub struct Client {
    number: u64,
    shared: Shared,
    /// The command it waits for, and how often it has looked.
    waits: Option<(Bytes, usize)>,
    wakes_at: u64,
}

/// What clients saw applied, and whether they are to stop.
pub type Shared = Rc<RefCell<Seen>>;

/// See [`Shared`].
#[derive(Debug, Default)]
pub struct Seen {
    /// Commands that were applied by at least one server.
    pub applied: Vec<Bytes>,
    /// No new commands.
    pub stop: bool,
}

impl Client {
    /// Client `number`, from 0.
    #[must_use]
    pub fn new(lab: &Lab, number: u64, shared: Shared) -> Client {
        Client { number, shared, waits: None, wakes_at: lab.now_us() }
    }

    fn go_on(&mut self, lab: &mut Lab) -> Result<bool, Violation> {
        let now = lab.now_us();
        if let Some((command, looks)) = self.waits.take() {
            if lab.find(&command)?.is_some() {
                self.shared.borrow_mut().applied.push(command);
            } else if let Some(pause) = PATIENCE_US.get(looks) {
                self.waits = Some((command, looks + 1));
                self.wakes_at = now + pause;
                return Ok(false);
            }
        }
        if self.shared.borrow().stop {
            return Ok(true);
        }
        let command = lab.command();
        let mut taken = false;
        for server in 1..=lab.servers() {
            taken |= lab.start(server, &command)?.is_some();
        }
        if taken {
            self.waits = Some((command, 1));
            // The look at this very moment shows nothing: the first pause has begun.
            self.wakes_at = now + PATIENCE_US[0];
        } else {
            self.wakes_at = now + (79 + 17 * self.number) * MS;
        }
        Ok(false)
    }
}
