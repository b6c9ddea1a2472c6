//! Bounds on bytes held: received and not answered at a node, received and not taken by the user at a client.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A bound on bytes held.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: Mutex<usize>,
    freed: Notify,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Budget> {
        Arc::new(Budget { limit, used: Mutex::new(0), freed: Notify::new() })
    }

    #[cfg(any(test, feature = "peer"))]
    pub(crate) fn used(&self) -> usize {
        *self.lock()
    }

    /// Waits until `bytes` fit, or nothing else is there: a group larger than the bound passes alone.
    pub(crate) async fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Registered before the look, so that room made between the look and the wait is not missed.
            freed.as_mut().enable();
            {
                let mut used = self.lock();
                if *used == 0 || *used + bytes <= self.limit {
                    *used += bytes;
                    return Charge { budget: self.clone(), bytes };
                }
            }
            freed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        *self.budget.lock() -= self.bytes;
        self.budget.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn budget_lets_one_too_large_group_pass_alone() {
        let budget = Budget::new(100);
        let large = budget.charge(1000).await;
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.charge(1).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(large);
        drop(waiting.await.unwrap());
        assert_eq!(budget.used(), 0);
    }
}
