//! Tests that start the `graven` binary, one module a subject.

#[path = "../../../net/tests/common/attacker.rs"]
mod attacker;
#[path = "../common/mod.rs"]
mod common;

mod backup;
mod bare;
mod bench;
mod cli;
mod cluster;
mod cursor;
mod dev;
mod disk;
mod doctor;
mod full;
mod heal;
mod hostile;
mod identity;
mod member;
mod recover;
mod retention;
mod rot;
mod snapshot;
mod stall;
mod states;
mod trim;
mod upgrade;
mod wal;
