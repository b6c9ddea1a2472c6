//! Raft as a pure state machine: no I/O, no clock, no task, no entropy of its own.
//!
//! A [`Core`] is one node's share of the protocol. Inputs (a message, an append, a proposal, a report) change its state;
//! what is to be done about it is fetched with [`Core::poll`]. Entries are known by term, kind and size only; their bytes are the
//! driver's. The same inputs at the same ticks always give the same outputs, which is what the simulator rests on.
//!
//! # The driver's duties, in order
//!
//! 1. Recover the log, sync what is kept, and only then call [`Core::new`] with what was found ([`Restored`]) and a seed that is
//!    new in every life ([`Config::seed`]). Drain the outputs once: the first may be a [`Output::Commit`].
//! 2. Give one input at a time, each with the time now, and **drain [`Core::poll`] to `None` after each**, before the next.
//!    Call [`Core::tick`] by [`Core::next_deadline`], asked again after every input.
//! 3. Perform outputs in the order they come:
//!    - [`Output::Persist`]: write hard state, then entries, in one ordered queue; sync; then call [`Core::durable`] with
//!      the write's `term` and `last`: exactly one report for each, in order, several may be under way. The entries named
//!      are those of the proposal, the [`Output::Noop`] or the [`Core::receive_append`] that was the last input.
//!    - [`Output::Truncated`] stands before the `Persist` that supersedes: what lies from there on leaves the view of the log,
//!      its session overlay, its ring of recent frames.
//!    - [`Output::Send`] leaves at once. [`Output::SendAfterPersist`] leaves once every `Persist` before it is reported
//!      durable: hold it with the last one, or send it when none is under way. After a failed write nothing that is held
//!      leaves any more. Messages may be dropped, never altered.
//!    - [`Output::Append`]: attach frames from `first` up to `last`, at least one if there are any, else within `max_bytes`;
//!      build the [`AppendHead`] from the output; hand it to the lane; call [`Core::sent`] exactly once, at the
//!      latest when bytes that had to be fetched are there. `sent` with `last = prev.index` says that nothing went.
//!    - [`Output::Commit`]: apply, acknowledge, then call [`Core::applied`]. Until what was known to be committed at the start
//!      is applied, this node does not stand for election.
//!    - [`Output::ReadReady`]: answer the read once `index` is applied. [`Output::ReadFailed`]: tell the asker to try again.
//!    - [`Output::SnapshotNeeded`]: offer the follower a checkpoint by [`Core::offer_install`], and again until it is answered.
//!      [`Output::InstallOffered`], on the follower: fetch it; [`Core::abstain`] while the log is replaced; then
//!      [`Core::installed`] once it is durable, and [`Core::answer_install`].
//!    - [`Output::Alarm`]: as its variant says; [`Alarm::Diverged`], [`Alarm::TwoLeaders`] and [`Alarm::DiskDead`] end the process.
//! 4. On the receiving side of an append, verify the frames and `prev_chain` first, list their entries, and keep the frames
//!    at hand until the outputs are drained.
//! 5. Report lanes: [`Core::unreachable`] when one is lost, [`Core::reachable`] when one stands.
//! 6. Tell [`Core::trimmed`] before the files of applied entries go.
//! 7. Tell [`Core::set_disk_full`] when the disk has no room for records, and when it has again. A disk that refuses what waits is no
//!    disk that hangs: [`Core::disk_has_no_room`]. Of an append, leave out the entries that find no room, and all behind them.
//!
//! # Rooms
//!
//! `core` (state, clockwork, rules of every role), `follower`, `candidate`, `leader`, `replicate` (feeding followers), `progress`
//! (one follower as its leader sees it), `log` (term runs), `persist` (what is under way to the disk), `quorum`, `membership`,
//! `change` (who joins and leaves, as pure functions), `read_index`, `transfer`, `room` (full disks), and [`invariants`], which tests and the simulator
//! run after every step.

mod candidate;
mod change;
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
#[doc(hidden)]
pub mod planted;
mod progress;
pub mod quorum;
mod read_index;
mod replicate;
mod room;
mod transfer;
mod types;

pub use change::{Change, ChangeError};
pub use config::{Config, Restored};
pub use core::Core;
pub use errors::{ProposeError, ReadError, TransferError};
pub use message::{AppendHead, ConflictHint, Message, Report};
pub use output::{Alarm, Output, Write};
pub use progress::{Follower, ProgressState};
pub use room::Room;
pub use types::{Entry, EntryKind, EntryMeta, HardState, Index, LogId, Membership, NodeId, Role, Term, Tick};
