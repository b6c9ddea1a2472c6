//! graven: a persistent replicated log.
//!
//! Nodes agree by Raft on one append-only sequence of records, write it to checksummed, memory-mapped segments, and hand
//! the committed records to whoever follows the stream. This crate is what a program uses of it:
//!
//! - [`Client`] appends to a cluster and follows its records (feature `client`);
//! - [`Node`](node::Node) embeds a node with a state machine of your own (feature `node`);
//! - the `graven` command (feature `cli`, the default).

pub use graven_net::client::*;
#[cfg(feature = "node")]
pub use node::{ApplyError, Node, Offset, StateMachine, WriteSnapshot};

#[cfg(feature = "node")]
pub mod backup;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "node")]
pub mod config;
#[cfg(feature = "node")]
#[doc(hidden)]
pub mod health;
#[cfg(feature = "node")]
pub mod init;
#[cfg(feature = "node")]
pub mod members;
#[cfg(feature = "node")]
pub mod node;
#[cfg(feature = "node")]
#[doc(hidden)]
pub mod replica;
