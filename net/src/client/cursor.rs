//! Named cursors: where a consumer stands in the log, kept by the cluster.

use super::error::RequestError;
use super::{Client, unexpected};
use crate::protocol::{Request, Response};

/// A position in the log under a name, kept by the cluster: the offset of the record that its consumer wants next.
///
/// It survives whatever the log survives. It holds no trim back, and a trim does not move it: a subscription from one that lies before the
/// first offset ends with `trimmed`, or begins with [`Item::Trimmed`](super::Item::Trimmed). Whoever handles a record and advances
/// the cursor afterwards sees each record at least once.
///
/// ```no_run
/// # use graven_net::client::{Client, Item, Start};
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let cursor = client.cursor("billing");
/// let start = cursor.get().await?.map_or(Start::Beginning, Start::Offset);
/// let mut stream = client.subscribe(start).await?;
/// while let Some(item) = stream.next().await {
///     if let Item::Records(batch) = item? {
///         let Some(last) = batch.iter().last() else { continue };
///         // .. handle the batch, then:
///         cursor.advance(last.offset + 1).await?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Cursor {
    client: Client,
    name: String,
}

impl Cursor {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it stands; `None` when there is no cursor of this name. Linearizable: every move acknowledged before the call is in
    /// it. Needs the role read.
    ///
    /// # Errors
    /// `unavailable` or `timeout` when there is no leader; `forbidden`.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on the cursor.
    pub async fn get(&self) -> Result<Option<u64>, RequestError> {
        match self.ask(Request::Cursor { name: self.name.clone() }).await? {
            Response::Cursor { offset } => Ok(offset),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Moves it forward to `offset`, and makes it when it is not there. Returns where it stands when that is committed and
    /// fsynced on a majority: `offset`, or further when it stood there already, because it never goes back so. Safe to repeat. Needs the
    /// role read, so that whoever may follow the log may keep its place in it.
    ///
    /// # Errors
    /// `out_of_range` for an offset behind the end of the log, with the detail `next_offset`; `conflict` when it is new and there are 1,024
    /// cursors; `usage` for a name that is none: 1 to 64 letters, digits, `.`, `_` and `-`, the first of them no dot and
    /// no dash. `unavailable` or `timeout` when there is no leader, or a node does not know cursors yet; it may have moved then
    /// if the outcome is unknown. `forbidden`.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting, not the move.
    pub async fn advance(&self, offset: u64) -> Result<u64, RequestError> {
        self.moved(Request::AdvanceCursor { name: self.name.clone(), offset }).await
    }

    /// Puts it at `offset`, be it back, and makes it when it is not there. Needs the role admin.
    ///
    /// # Errors
    /// As [`Cursor::advance`].
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting, not the move. A leader change may make it happen twice: an advance of somebody else that came in between
    /// is taken back then.
    pub async fn set(&self, offset: u64) -> Result<u64, RequestError> {
        self.moved(Request::SetCursor { name: self.name.clone(), offset }).await
    }

    /// Takes it away. Returns where it stood; `None` when it was not there, or when a repetition after a leader change found it gone. Needs
    /// the role admin.
    ///
    /// # Errors
    /// `unavailable` or `timeout` when there is no leader; `usage` for a name that is none; `forbidden`.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting, not the drop.
    pub async fn remove(&self) -> Result<Option<u64>, RequestError> {
        match self.ask(Request::DropCursor { name: self.name.clone() }).await? {
            Response::CursorDropped { offset } => Ok(offset),
            other => Err(unexpected(&other).into()),
        }
    }

    async fn moved(&self, request: Request) -> Result<u64, RequestError> {
        match self.ask(request).await? {
            Response::Cursor { offset: Some(offset) } => Ok(offset),
            other => Err(unexpected(&other).into()),
        }
    }

    async fn ask(&self, request: Request) -> Result<Response, RequestError> {
        Ok(self.client.inner.network.ask_leader(&request).await?)
    }
}

impl Client {
    /// The cursor of this name, which need not be there yet. Asks nobody.
    #[must_use]
    pub fn cursor(&self, name: impl Into<String>) -> Cursor {
        Cursor { client: self.clone(), name: name.into() }
    }

    /// All cursors, by name, ascending, and where they stand. Fetched in pieces of some hundred, each of them linearizable for
    /// itself. Needs the role read.
    ///
    /// # Errors
    /// `unavailable` or `timeout` when there is no leader; `forbidden`.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on the cursors.
    pub async fn cursors(&self) -> Result<Vec<(String, u64)>, RequestError> {
        let mut all: Vec<(String, u64)> = Vec::new();
        loop {
            let after = all.last().map(|(name, _)| name.clone()).unwrap_or_default();
            match self.inner.network.ask_leader(&Request::Cursors { after: after.clone() }).await? {
                // Names that do not ascend would go on for ever.
                Response::Cursors { cursors, more } => {
                    let ends = !more || cursors.last().is_none_or(|(name, _)| *name <= after);
                    all.extend(cursors);
                    if ends {
                        return Ok(all);
                    }
                }
                other => return Err(unexpected(&other).into()),
            }
        }
    }
}
