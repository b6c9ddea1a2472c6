//! TLS identity: the cluster's authority, the certificates it signs, and who the other side of a connection is.
//!
//! Every connection is mutually authenticated TLS 1.3 under the cluster's own authority; nothing is trusted because of an address.
//! Who the other side is stands in its certificate ([`Identity`]), is read after the authority's signature was verified
//! ([`Verified::of`]), and is bound to the connection: what a message claims about its sender is compared with it, never believed.
//!
//! - [`Authority`] makes a cluster's authority and issues certificates (`graven init`, `graven certs`).
//! - [`TlsIdentity`] is a node's or client's own certificate, loaded from files and replaced while running.
//! - [`check`] reports on certificate files (`graven certs check`).
//!
//! There is no session resumption anywhere: a resumed session skips the verification of the client's certificate, so one that was
//! taken away would go on working.

mod authority;
mod check;
mod credentials;
mod identity;
mod verifier;

pub use authority::{AUTHORITY_CERTIFICATE, AUTHORITY_KEY, Authority, AuthorityError, Issued, Validity};
pub use check::{CertReport, CheckError, check};
pub use credentials::{Credentials, Reload, TlsError, TlsFiles, TlsIdentity, UnixTime, Verified, agreed_alpn};
pub use identity::{ClientIdentity, Identity, IdentityError, NodeIdentity, Role, check_name, server_name};
pub(crate) use verifier::sentence;

/// The protocol name peers agree on in the handshake.
pub const ALPN_PEER: &[u8] = b"graven-peer/1";
/// The protocol name clients and nodes agree on in the handshake.
pub const ALPN_CLIENT: &[u8] = b"graven-client/1";
/// The protocol name under which a node fetches frames and checkpoints from another one, on the port for clients.
pub const ALPN_BULK: &[u8] = b"graven-bulk/1";
