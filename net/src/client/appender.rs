//! The pipelined form of appending: many batches in flight, acknowledgements in order, one session.

use std::sync::Arc;

use super::batch::IntoBatch;
use super::session::{Session, Unread};
use super::{AppendError, AppendOptions, Inner};
use crate::protocol::append::Ack;

/// Appends batches without waiting for each. Made by [`Client::appender`](super::Client::appender).
///
/// At most 256 batches and [`window_bytes`](super::ClientConfig::window_bytes) are in flight. A leader change or a lost
/// connection that ends within the timeout is ridden out: nothing is lost, nothing is stored twice. After an error the
/// appender is closed: everything behind the batch that failed was refused too.
///
/// Acknowledgements that are not fetched are kept up to 1024, then the oldest are dropped. Use [`Appender::split`] to read
/// all of them beside the sending. Dropping the appender stops nothing that is in flight; [`Appender::finish`] waits for it.
#[derive(Debug)]
pub struct Appender {
    sending: Sending,
}

/// The part both forms share. Ends the session when dropped.
#[derive(Debug)]
struct Sending {
    inner: Arc<Inner>,
    session: Arc<Session>,
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.session.finish();
    }
}

impl Sending {
    async fn send(&self, batch: impl IntoBatch, options: AppendOptions) -> Result<(), AppendError> {
        let mut batch = batch.into_batch().check(self.inner.max_record_bytes())?;
        if self.session.push(&mut batch, options.expect, options.fence, &mut None).await? {
            self.inner.lanes.announce(&self.session);
        }
        Ok(())
    }
}

impl Appender {
    pub(super) fn new(inner: Arc<Inner>, session: Arc<Session>) -> Appender {
        Appender { sending: Sending { inner, session } }
    }

    /// Puts a batch in flight; waits while the window is full.
    ///
    /// # Errors
    /// When the batch itself cannot be sent (too large, empty: the appender goes on), or an earlier one failed. Either way
    /// this batch was not sent.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the batch was not sent.
    pub async fn send(&mut self, batch: impl IntoBatch) -> Result<(), AppendError> {
        self.sending.send(batch, AppendOptions::default()).await
    }

    /// [`Appender::send`] with conditions.
    ///
    /// # Errors
    /// As [`Appender::send`].
    pub async fn send_with(&mut self, batch: impl IntoBatch, options: AppendOptions) -> Result<(), AppendError> {
        self.sending.send(batch, options).await
    }

    /// The next acknowledgement, in the order of sending; `None` when nothing is in flight. An error is told once.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next_ack(&mut self) -> Option<Result<Ack, AppendError>> {
        self.sending.session.next_ack().await.map(|ack| ack.map_err(AppendError::from))
    }

    /// Batches sent and not acknowledged.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.sending.session.in_flight()
    }

    /// Waits until everything sent is acknowledged, and gives the last acknowledgement.
    ///
    /// # Errors
    /// The error that closed the appender; what was acknowledged before stays so.
    pub async fn finish(self) -> Result<Option<Ack>, AppendError> {
        Ok(self.sending.session.drained().await?)
    }

    /// Splits it, so that one task sends and another reads every acknowledgement.
    ///
    /// The sender then waits while more than 1024 acknowledgements are unread.
    #[must_use]
    pub fn split(self) -> (AppendSender, AckStream) {
        let session = self.sending.session.clone();
        session.set_unread(Unread::Wait);
        let inner = self.sending.inner.clone();
        (AppendSender { sending: self.sending }, AckStream { _inner: inner, session })
    }
}

/// The sending half of an [`Appender`]. Drop it to say that nothing more comes.
#[derive(Debug)]
pub struct AppendSender {
    sending: Sending,
}

impl AppendSender {
    /// As [`Appender::send`].
    ///
    /// # Errors
    /// As [`Appender::send`].
    pub async fn send(&mut self, batch: impl IntoBatch) -> Result<(), AppendError> {
        self.sending.send(batch, AppendOptions::default()).await
    }

    /// As [`Appender::send_with`].
    ///
    /// # Errors
    /// As [`Appender::send`].
    pub async fn send_with(&mut self, batch: impl IntoBatch, options: AppendOptions) -> Result<(), AppendError> {
        self.sending.send(batch, options).await
    }

    /// Batches sent and not acknowledged.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.sending.session.in_flight()
    }
}

/// The acknowledgements of an [`Appender`], in the order of sending.
#[derive(Debug)]
pub struct AckStream {
    /// Keeps the client's connections while acknowledgements are awaited.
    _inner: Arc<Inner>,
    session: Arc<Session>,
}

impl AckStream {
    /// The next acknowledgement; `None` when the sender was dropped and all is acknowledged, or after an error.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Ack, AppendError>> {
        self.session.next_ack().await.map(|ack| ack.map_err(AppendError::from))
    }
}

impl Drop for AckStream {
    fn drop(&mut self) {
        // Nobody reads any more: the sender need not wait for it.
        self.session.set_unread(Unread::Forget);
    }
}
