//! Raft as a pure state machine.

mod candidate;
mod config;
mod core;
mod errors;
mod follower;
pub mod invariants;
mod leader;
mod log;
mod membership;
mod message;
mod output;
mod persist;
mod progress;
mod quorum;
mod read_index;
mod replicate;
mod transfer;
mod types;

pub use config::{Config, Restored};
pub use core::Core;
pub use errors::{ProposeError, ReadError, TransferError};
pub use message::{AppendHead, ConflictHint, Message};
pub use output::{Alarm, Output, Write};
pub use progress::{Follower, ProgressState};
pub use types::{Entry, EntryKind, EntryMeta, HardState, Index, LogId, Membership, NodeId, Role, Term, Tick};
