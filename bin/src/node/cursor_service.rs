//! What clients are answered about named cursors.

use graven_net::server::{ErrorCode, Failure, Response};
use tokio::sync::oneshot;

use super::failure::failure;
use super::input::Input;
use super::service::{NodeService, ask};
use crate::replica::cursors::Move;
use crate::replica::{Answer, Rejection};

/// Cursors in one answer: with the longest names, 38 KiB of the 64 that a message may have.
const PAGE: usize = 512;

impl NodeService {
    pub(super) async fn move_cursor(&self, wanted: Move) -> Response {
        match ask(&self.shared, |reply| Input::MoveCursor(wanted, reply)).await {
            Ok(Ok(Answer::CursorAt { offset })) => Response::Cursor { offset: Some(offset) },
            Ok(Ok(Answer::CursorDropped { offset })) => Response::CursorDropped { offset },
            Ok(Err(Rejection::NotLeader { .. } | Rejection::Transferring)) => self.not_leader(),
            Ok(Err(rejection)) => Response::Failed(failure(rejection)),
            Ok(Ok(_)) => {
                Response::Failed(Failure::refused(ErrorCode::Internal, "a cursor was answered with something else"))
            }
            Err(gone) => Response::Failed(gone),
        }
    }

    pub(super) async fn cursor(&self, name: String) -> Response {
        match self.look(|reply| Input::Cursor(name, reply)).await {
            Ok(offset) => Response::Cursor { offset },
            Err(failure) => Response::Failed(failure),
        }
    }

    pub(super) async fn cursors(&self, after: String) -> Response {
        match self.look(|reply| Input::Cursors(after, PAGE + 1, reply)).await {
            Ok(mut cursors) => {
                let more = cursors.len() > PAGE;
                cursors.truncate(PAGE);
                Response::Cursors { cursors, more }
            }
            Err(failure) => Response::Failed(failure),
        }
    }

    /// What the replica shows, once it shows everything that was acknowledged before.
    async fn look<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Failure> {
        self.read_index().await?;
        let stopping = || Failure::refused(ErrorCode::Unavailable, "the node is stopping; ask another one");
        let (reply, answer) = oneshot::channel();
        self.shared.inputs.send(input(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}
