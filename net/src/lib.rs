//! graven over QUIC: TLS identity, peer lanes, the client protocol and the client library.
//!
//! | module | what it is |
//! |---|---|
//! | [`tls`] | the cluster's authority, certificates of nodes and clients, who the other side of a connection is |
//! | [`transport`] | sockets and quinn profiles that peers and clients share |
//! | [`wire`] | the one place where control messages become bytes, with a size limit |
//! | [`protocol`] | messages between clients and nodes |
//! | [`client`] | the client library |
//! | `bulk` (feature `peer`) | fetching frames and checkpoints from another node |
//! | `peer` (feature `peer`) | lanes between nodes: control messages and appends |
//! | `server` (feature `peer`) | the node's listener for clients |
//! | `raw` (feature `peer`) | QUIC alone, for measurements |
//!
//! quinn stays behind these modules: no type of it is part of what the rest of graven calls.

#[cfg(feature = "peer")]
mod admission;
#[cfg(feature = "peer")]
pub mod bulk;
pub mod client;
#[cfg(feature = "peer")]
mod drivers;
#[cfg(feature = "peer")]
pub mod fuzzing;
#[cfg(feature = "peer")]
pub mod peer;
#[doc(hidden)]
pub mod planted;
#[doc = include_str!("../PROTOCOL.md")]
pub mod protocol;
#[cfg(feature = "peer")]
pub mod raw;
#[cfg(feature = "peer")]
pub mod server;
pub mod tls;
pub mod transport;
pub mod wire;
