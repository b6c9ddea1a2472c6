//! Checkpoint files: what a node must know of the entries that its log no longer has.
//!
//! A [`Checkpoint`] is a place in the log and the state there, as bytes whose meaning is the node's. [`save`] makes one
//! durable under its name or not at all; [`load`] gives back what was saved, or says what is wrong with the file. The same
//! bytes ([`Checkpoint::encode`], [`Checkpoint::decode`]) go to a node that has fallen behind the beginning of a log.
//!
//! ```
//! use graven_snapshot::{Checkpoint, load, save, stored};
//! use graven_wal::{LogBase, sim::SimDisk};
//!
//! let disk = SimDisk::new(42);
//! let base = LogBase { index: 7, term: 2, next_offset: 40, ..LogBase::default() };
//! let checkpoint = Checkpoint { cluster: 1, base, state: vec![1, 2, 3] };
//! save(&disk, &checkpoint)?;
//! assert_eq!(stored(&disk)?, [7]);
//! assert_eq!(load(&disk, 7)?, checkpoint);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![doc = "\n\n"]
#![doc = include_str!("../FORMAT.md")]

pub mod body;
mod format;
mod released;
mod store;

pub use format::{Checkpoint, FORMAT_VERSION, Flaw, STATE_BYTES_MAX, file_bytes_max};
pub use released::{Released, note_released, released, renew_released, reserve};
pub use store::{
    CheckpointError, forget, load, move_above, name_of, read_base, save, set_aside, settle, stage, stored,
};
