//! Raft as a pure state machine.

mod config;
mod core;
mod errors;
mod message;
mod output;
mod types;

pub use config::{Config, Restored};
pub use core::{Core, Follower, ProgressState};
pub use errors::{ProposeError, ReadError, TransferError};
pub use message::{AppendHead, ConflictHint, Message};
pub use output::{Alarm, Output, Write};
pub use types::{
    Entry, EntryKind, EntryMeta, HardState, Index, LogId, Membership, NodeId, Role, Term, Tick,
};
