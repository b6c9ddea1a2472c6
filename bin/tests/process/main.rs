//! Tests that start the `graven` binary, one module a subject.

#[path = "../common/mod.rs"]
mod common;

mod cli;
mod cluster;
mod dev;
