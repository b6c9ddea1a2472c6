//! graven

#[cfg(feature = "node")]
pub mod config;
#[cfg(feature = "node")]
pub mod members;
