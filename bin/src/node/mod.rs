//! A running node: threads and sockets around a [`crate::replica`].

mod backup_service;
mod bulk;
mod bulk_fetch;
mod checkpoints;
mod counters;
mod cursor_service;
pub mod daemon;
mod divergence;
mod embed;
mod engine;
mod failure;
mod input;
mod load_thread;
mod log_thread;
mod machine;
mod mending;
mod mending_service;
mod peers_file;
mod pictures;
mod protocol;
mod scrub;
mod service;
mod snapshot_fetch;
mod snapshot_service;
mod snapshot_source;
mod states;

pub use counters::{Counter, Counters};
pub use embed::{ApplyError, ClientError, LocalStream, Node, NodeError, Offset, Proposal, StateMachine, WriteSnapshot};
pub use engine::{Fatal, StartError};
