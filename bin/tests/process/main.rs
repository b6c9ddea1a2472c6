//! Tests that start the `graven` binary, one module a subject.

#[path = "../../../net/tests/common/attacker.rs"]
mod attacker;
#[path = "../common/mod.rs"]
mod common;

mod bench;
mod cli;
mod cluster;
mod dev;
mod disk;
mod hostile;
mod member;
mod wal;
