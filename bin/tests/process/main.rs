//! Tests that start the `graven` binary, one module a subject.

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod cli;
mod cluster;
mod dev;
mod disk;
mod heal;
mod member;
mod wal;
