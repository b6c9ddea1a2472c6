//! The protocol, tested from outside: one file a subject, and a seeded random run over all of them.

mod election;
#[cfg(test)]
mod harness;
mod membership;
mod paper;
mod random;
mod read_index;
mod replication;
mod snapshot;
mod transfer;
