//! The room for checkpoint and snapshot files, over the log's [`Disk`](graven_wal::Disk) trait.
//!
//! Empty in this version: a node keeps its whole log, and a state machine replays it. What will stand here: a checkpoint
//! at each segment's border, which lets the log begin later than at its first record, and snapshots of state machines, in
//! chunks, resumable, verified whole before they replace anything.
