//! A node's storage in a transcript: what was written of the log, and the state machine at every entry it applied.

use std::collections::BTreeMap;

use graven_raft::{Index, LogId, Membership, Term};

use super::wire::{Body, Item, Snapshot};

/// What one node has on stable storage.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    /// The entry before the first one held.
    base: LogId,
    entries: BTreeMap<Index, (Term, Body)>,
    /// One snapshot an applied entry, and the one it began with.
    history: Vec<Snapshot>,
}

impl Disk {
    pub(crate) fn new(bootstrap: Snapshot) -> Disk {
        Disk { base: bootstrap.id, entries: BTreeMap::new(), history: vec![bootstrap] }
    }

    /// The newest state of the state machine.
    pub(crate) fn newest(&self) -> &Snapshot {
        self.history.last().expect("it begins with one")
    }

    /// The memberships of all states there were, with their indexes.
    pub(crate) fn memberships(&self) -> impl Iterator<Item = (Index, &Membership)> {
        self.history.iter().map(|snapshot| (snapshot.since, &snapshot.membership))
    }

    /// Writes entries; whatever stood from the first of them on is gone.
    pub(crate) fn write(&mut self, items: &[Item]) {
        if let Some(first) = items.first() {
            self.entries.split_off(&first.id.index);
        }
        let held = items.iter().filter(|item| item.id.index > self.base.index);
        self.entries.extend(held.map(|item| (item.id.index, (item.id.term, item.body.clone()))));
    }

    /// Starts over with a snapshot from elsewhere.
    pub(crate) fn install(&mut self, snapshot: Snapshot) {
        self.base = snapshot.id;
        self.entries.clear();
        self.history.push(snapshot);
    }

    /// Gives up entries up to `last`, if it is held.
    pub(crate) fn compact(&mut self, last: Index) {
        if let Some((term, _)) = self.entries.get(&last) {
            self.base = LogId { term: *term, index: last };
            self.entries = self.entries.split_off(&last.next());
        }
    }

    /// Applies one entry: its token is added to the state, its membership comes in force.
    pub(crate) fn apply(&mut self, item: &Item) {
        let mut next = self.newest().clone();
        next.id = item.id;
        match &item.body {
            Body::Data(data) => next.data += data,
            Body::Change { membership: Some(membership), auto_leave, .. } => {
                next.membership = membership.clone();
                next.since = item.id.index;
                next.auto_leave = *auto_leave;
            }
            Body::Change { membership: None, .. } => {}
        }
        self.history.push(next);
    }

    /// The log as transcripts print it.
    pub(crate) fn describe(&self) -> String {
        if self.entries.is_empty() {
            let base = self.base.index;
            return format!("log is empty: first index={}, last index={base}\n", base.next());
        }
        let item = |(&index, (term, body)): (&Index, &(Term, Body))| {
            format!("{}\n", Item { id: LogId { term: *term, index }, body: body.clone() })
        };
        self.entries.iter().map(item).collect()
    }
}
