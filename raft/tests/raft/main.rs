//! The protocol, tested from outside: one file a subject, and a seeded random run over all of them. Which test proves which
//! claim of the paper and the thesis stands in `raft/tests/README.md`.

#[cfg(test)]
mod durability;
#[cfg(test)]
mod election;
#[cfg(test)]
mod figures;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod joint;
#[cfg(test)]
mod membership;
#[cfg(test)]
mod paper;
#[cfg(test)]
mod random;
#[cfg(test)]
mod read_index;
#[cfg(test)]
mod repair;
#[cfg(test)]
mod replication;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod room;
#[cfg(test)]
mod snapshot;
#[cfg(test)]
mod transfer;
