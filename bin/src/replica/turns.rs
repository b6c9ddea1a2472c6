//! Whose turn it is: clients that want something take turns, each for about as many bytes (deficit round robin, Shreedhar and Varghese 1995, 3).
//!
//! Without turns a client with ten thousand appends under way stands before everybody else's next one. Within one client, order is
//! kept: its sessions count on it.

use std::collections::{BTreeMap, VecDeque};

/// Bytes of a turn. Small appends of many clients share a frame; a large one is paid off over many turns.
const TURN_BYTES: i64 = 16 << 10;
/// What a thing costs besides its bytes: its place in queues, its judgement and its answer. Without it, empty appends were free.
const OVERHEAD_BYTES: i64 = 512;

/// A queue in which clients take turns.
#[derive(Debug)]
pub(super) struct Turns<T> {
    lanes: BTreeMap<u64, Lane<T>>,
    /// The clients that have something waiting; the first one's turn it is.
    order: VecDeque<u64>,
    len: usize,
}

#[derive(Debug)]
struct Lane<T> {
    queue: VecDeque<(T, usize)>,
    /// What is left of its turn; below zero what it took too much.
    credit: i64,
}

impl<T> Default for Turns<T> {
    fn default() -> Turns<T> {
        Turns { lanes: BTreeMap::new(), order: VecDeque::new(), len: 0 }
    }
}

impl<T> Turns<T> {
    /// Puts something of `bytes` behind what `client` has waiting.
    pub(super) fn push(&mut self, client: u64, thing: T, bytes: usize) {
        let lane = self.lanes.entry(client).or_insert_with(|| {
            self.order.push_back(client);
            Lane { queue: VecDeque::new(), credit: TURN_BYTES }
        });
        lane.queue.push_back((thing, bytes));
        self.len += 1;
    }

    /// What comes next.
    pub(super) fn front(&self) -> Option<&T> {
        let lane = self.lanes.get(self.order.front()?)?;
        lane.queue.front().map(|(thing, _)| thing)
    }

    /// Takes what comes next.
    pub(super) fn pop(&mut self) -> Option<T> {
        let client = *self.order.front()?;
        let lane = self.lanes.get_mut(&client)?;
        let (thing, bytes) = lane.queue.pop_front()?;
        self.len -= 1;
        lane.credit -= i64::try_from(bytes).unwrap_or(i64::MAX / 2) + OVERHEAD_BYTES;
        if lane.queue.is_empty() {
            // Who has nothing waiting owes nothing: alone it waited for nobody, and beside others it was served last.
            self.lanes.remove(&client);
            self.order.pop_front();
        } else if lane.credit <= 0 {
            self.order.rotate_left(1);
        }
        self.settle();
        Some(thing)
    }

    /// Gives each client its next turn until one may go: a debt of 16 MiB is a thousand turns, each a few instructions.
    fn settle(&mut self) {
        let others = self.order.len() > 1;
        while let Some(lane) = self.order.front().and_then(|client| self.lanes.get_mut(client)) {
            if lane.credit > 0 {
                return;
            }
            lane.credit += TURN_BYTES;
            if !others {
                lane.credit = TURN_BYTES;
            } else if lane.credit <= 0 {
                self.order.rotate_left(1);
            }
        }
    }

    /// How many things wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes everything, client by client.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        let lanes = std::mem::take(&mut self.lanes);
        self.order.clear();
        self.len = 0;
        lanes.into_values().flat_map(|lane| lane.queue).map(|(thing, _)| thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_append_does_not_wait_behind_ten_thousand_of_somebody_else() {
        let mut turns = Turns::default();
        (0..10_000).for_each(|number| turns.push(1, (1, number), 0));
        turns.push(2, (2, 0), 0);
        let before = std::iter::from_fn(|| turns.pop()).position(|(client, _)| client == 2);
        assert!(
            before.is_some_and(|before| before <= (TURN_BYTES / OVERHEAD_BYTES) as usize),
            "{before:?} came before"
        );
    }

    #[test]
    fn each_clients_own_order_is_kept_and_nothing_is_lost() {
        let mut turns = Turns::default();
        for number in 0..300 {
            turns.push(number % 3, number, (number * 7919 % 40_000) as usize);
        }
        assert_eq!(turns.len(), 300);
        let mut last = [None; 3];
        let mut count = 0;
        while let Some(number) = turns.pop() {
            let before = last[(number % 3) as usize].replace(number);
            assert!(before.is_none_or(|before| before < number));
            count += 1;
        }
        assert_eq!((count, turns.len(), turns.front()), (300, 0, None));
    }

    #[test]
    fn large_and_small_clients_get_the_same_bytes() {
        let mut turns = Turns::default();
        (0..20).for_each(|_| turns.push(1, 1, 1 << 20));
        (0..4000).for_each(|_| turns.push(2, 2, 4096));
        let (mut large, mut small) = (0_i64, 0_i64);
        while turns.order.len() > 1 {
            match turns.pop() {
                Some(1) => large += (1 << 20) + OVERHEAD_BYTES,
                _ => small += 4096 + OVERHEAD_BYTES,
            }
        }
        assert!((large - small).abs() <= 2 << 20, "{large} and {small} bytes");
    }

    #[test]
    fn a_client_alone_goes_on_whatever_it_took() {
        let mut turns = Turns::default();
        (0..5).for_each(|number| turns.push(9, number, 16 << 20));
        assert_eq!(std::iter::from_fn(|| turns.pop()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        turns.push(9, 7, 1);
        assert_eq!(turns.drain().collect::<Vec<_>>(), [7]);
        assert_eq!((turns.len(), turns.front()), (0, None));
    }
}
