//! A persistent log of frames in preallocated segments, written by positional writes and read through a memory map.
//!
//! - [`Wal`] is the one writer. It starts no thread, looks at no clock and knows no rule of Raft.
//! - [`LogReader`] reads beside it, on any thread, without copying.
//! - [`Disk`] is what both ask of the world; [`RealDisk`] a directory, [`sim::SimDisk`] one that can lose power.
//!
//! What it promises: what a [`Wal::sync`] that returned covers is there after any crash, byte for byte; what was not
//! synced is there or not, but nothing is invented; bytes that change on the medium are named as damage and never
//! shorten the log silently; after the first write or sync error nothing more is written by this object.
//!
//! ```
//! use graven_wal::{HardState, Identity, Options, Wal, sim::SimDisk};
//! # use graven_frame::{Body, Chain, Frame, HeaderSpec, Kind};
//! # let spec = |index| HeaderSpec { kind: Kind::Noop, term: 1, index, base_offset: 0, count: 0, timestamp_ms: 0 };
//! # let first = Frame::seal(spec(1), Chain::START, Body::default(), Body::default().crc());
//! # let second = Frame::seal(spec(2), first.header().chain, Body::default(), Body::default().crc());
//! let disk = SimDisk::new(42);
//! let options = Options { segment_bytes: 64 << 10, ..Options::default() };
//! Wal::create(disk.clone(), Identity { cluster: 7, node: 1, incarnation: 9 }, options.clone(), &[first])?;
//! let (mut wal, recovered) = Wal::open(disk, options)?;
//! assert_eq!(recovered.last_index, 1);
//! wal.append(&[second])?;
//! wal.set_hard_state(HardState { term: 2, vote: Some(3) })?;
//! wal.sync()?;
//! assert_eq!(wal.reader().frame(2)?.header().index, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![doc = "\n\n"]
#![doc = include_str!("../FORMAT.md")]

pub mod adopt;
mod create;
mod cut;
mod disk;
mod error;
mod format;
#[doc(hidden)]
pub mod fuzzing;
mod index;
pub mod inspect;
mod log;
mod map;
pub mod mend;
mod open;
mod plan;
#[doc(hidden)]
pub mod planted;
mod pool;
#[doc(hidden)]
pub mod raw;
mod reader;
mod recovery;
mod repair;
mod replay;
mod room;
mod rotate;
mod scan;
mod scrub;
pub mod sim;
mod types;
mod walk;

pub use disk::{DIRECT_BYTES, Disk, DiskFile, DiskMap, Lease, LockError, RealDisk, RealFile, RealLock, WriteMode};
pub use error::{AppendError, CreateError, Damage, OpenError, ReadError, SegmentId};
pub use log::Wal;
pub use reader::LogReader;
pub use room::Room;
pub use scrub::{ScrubError, ScrubPosition, ScrubStep};
pub use types::{
    Counters, HardState, Identity, LogBase, Options, PrepareState, ReaderStats, Recovered, RecoveryReport, SyncMethod,
    TermRun, WalStats, Waypoint,
};
