//! Bugs that can be switched on, so that tests can show that they see them.
//!
//! Off, and nothing but a test switches one on, in its own thread.

use std::cell::Cell;

/// One planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Behind a snapshot the stream goes on one record late.
    SeamOffByOne,
    /// A client says a digest of its snapshot that is not its own.
    DigestWrong,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Switches `bug` on in this thread, in place of any other.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether `bug` is switched on in this thread.
#[must_use]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
