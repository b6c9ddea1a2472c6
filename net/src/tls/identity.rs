//! Who a certificate says its holder is.
//!
//! One URI among the subject alternative names carries it: `graven://<cluster>/authority`, `graven://<cluster>/node/<id>/<name>` or
//! `graven://<cluster>/client/<name>/<role>`, the cluster as 32 hex digits. A certificate with no such URI, or with two, is nobody's:
//! rules that pick one of several are how a client becomes a node.

use std::fmt;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

/// The holder of a certificate, as the cluster's authority signed it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The authority itself.
    Authority {
        /// The cluster whose certificates it signs.
        cluster: u128,
    },
    /// A node.
    Node(NodeIdentity),
    /// A client.
    Client(ClientIdentity),
}

/// A node, as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeIdentity {
    /// The cluster it belongs to.
    pub cluster: u128,
    /// Its id, from 1.
    pub node: u64,
    /// Its name.
    pub name: String,
}

/// A client, as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientIdentity {
    /// The cluster it may talk to.
    pub cluster: u128,
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// What a client may do; each role may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Follow and read the log, ask for status.
    Read,
    /// Append to the log as well.
    Append,
    /// Trim, transfer, change membership as well.
    Admin,
}

impl Role {
    /// The role's name as it stands in a certificate and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Append => "append",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        match text {
            "read" => Ok(Self::Read),
            "append" => Ok(Self::Append),
            "admin" => Ok(Self::Admin),
            _ => Err(IdentityError::Role(text.to_owned())),
        }
    }
}

impl Identity {
    /// The cluster whose authority signed it.
    #[must_use]
    pub fn cluster(&self) -> u128 {
        match self {
            Self::Authority { cluster } => *cluster,
            Self::Node(node) => node.cluster,
            Self::Client(client) => client.cluster,
        }
    }

    /// The kind of holder, for a sentence: `authority`, `node` or `client`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Authority { .. } => "authority",
            Self::Node(_) => "node",
            Self::Client(_) => "client",
        }
    }

    /// The URI that stands in the certificate.
    #[must_use]
    pub fn uri(&self) -> String {
        match self {
            Self::Authority { cluster } => format!("{SCHEME}{cluster:032x}/authority"),
            Self::Node(it) => format!("{SCHEME}{:032x}/node/{}/{}", it.cluster, it.node, it.name),
            Self::Client(it) => format!("{SCHEME}{:032x}/client/{}/{}", it.cluster, it.name, it.role),
        }
    }

    /// Reads the identity out of a certificate. Whether an authority vouches for it is not asked here.
    ///
    /// # Errors
    /// When the certificate cannot be parsed, or does not carry exactly one well-formed graven URI.
    pub fn of_certificate(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der)
            .map_err(|cause| IdentityError::Certificate(cause.to_string()))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|cause| IdentityError::Certificate(cause.to_string()))?
            .ok_or(IdentityError::NoUri)?;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        });
        let uri = uris.next().ok_or(IdentityError::NoUri)?;
        if uris.next().is_some() {
            return Err(IdentityError::SeveralUris);
        }
        Self::parse(uri)
    }

    fn parse(uri: &str) -> Result<Self, IdentityError> {
        let malformed = || IdentityError::Uri(uri.chars().take(NAME_BYTES_MAX * 2).collect());
        let path = uri.strip_prefix(SCHEME).ok_or_else(malformed)?;
        let parts: Vec<&str> = path.splitn(5, '/').collect();
        let hex = parts.first().copied().unwrap_or_default();
        if hex.len() != 32 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(malformed());
        }
        let cluster = u128::from_str_radix(hex, 16).map_err(|_| malformed())?;
        let identity = match parts.get(1..).unwrap_or_default() {
            ["authority"] => Self::Authority { cluster },
            ["node", id, name] => {
                check_name(name)?;
                let node: u64 = id.parse().map_err(|_| malformed())?;
                Self::Node(NodeIdentity { cluster, node, name: (*name).to_owned() })
            }
            ["client", name, role] => {
                check_name(name)?;
                Self::Client(ClientIdentity { cluster, name: (*name).to_owned(), role: role.parse()? })
            }
            _ => return Err(malformed()),
        };
        // One identity has one spelling: "007" or "+7" would be a second one for node 7.
        if identity.uri() != uri || matches!(&identity, Self::Node(it) if it.node == 0) {
            return Err(malformed());
        }
        Ok(identity)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority { cluster } => write!(f, "authority of cluster {cluster:032x}"),
            Self::Node(it) => write!(f, "node {} (id {}) of cluster {:032x}", it.name, it.node, it.cluster),
            Self::Client(it) => write!(f, "client {} (role {}) of cluster {:032x}", it.name, it.role, it.cluster),
        }
    }
}

/// Checks that `name` can name a node or a client: 1 to 40 of `a-z A-Z 0-9 - _`, with a letter or digit at both ends.
///
/// A name is part of a host name in certificates, of a URI, of paths and of command lines; this is what all of them take.
///
/// # Errors
/// [`IdentityError::Name`].
pub fn check_name(name: &str) -> Result<(), IdentityError> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    if bytes.len() <= NAME_BYTES_MAX && bytes.iter().all(|b| inner(*b)) && ends(bytes.first()) && ends(bytes.last()) {
        return Ok(());
    }
    Err(IdentityError::Name(name.chars().take(NAME_BYTES_MAX).collect()))
}

/// The host name under which a node's certificate is verified, whatever address it is reached at.
#[must_use]
pub fn server_name(node_name: &str) -> String {
    format!("{node_name}{NODE_DOMAIN}")
}

/// Why a certificate names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Not a certificate.
    #[error("certificate cannot be parsed: {0}")]
    Certificate(String),
    /// No graven URI in it.
    #[error("certificate was not made by graven: it carries no {SCHEME} name; make one with `graven certs`")]
    NoUri,
    /// Two identities in one certificate.
    #[error("certificate carries several {SCHEME} names; make one for each with `graven certs`")]
    SeveralUris,
    /// A graven URI this version cannot read.
    #[error("certificate names {0:?}, which is no identity of graven")]
    Uri(String),
    /// A role this version does not know.
    #[error("{0:?} is no role; roles are read, append and admin")]
    Role(String),
    /// Not a client's certificate, where only clients talk.
    #[error("{0} is on the port for clients; use a client's certificate, made with `graven certs client`")]
    NotAClient(String),
    /// A name that cannot name a node or a client.
    #[error(
        "{0:?} is no name: 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, '-' and '_', beginning and ending with a letter or digit"
    )]
    Name(String),
}

const SCHEME: &str = "graven://";
/// Where the host names in node certificates live: under a name the public DNS will never answer for.
const NODE_DOMAIN: &str = ".node.graven.internal";
/// Leaves room in the 63 bytes of a host name label, and in a 108-byte socket path, for what others put around it.
const NAME_BYTES_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identity_reads_back_from_its_uri() {
        let cluster = 0x0123_4567_89ab_cdef_0011_2233_4455_6677;
        let all = [
            Identity::Authority { cluster },
            Identity::Node(NodeIdentity { cluster, node: 3, name: "n3".into() }),
            Identity::Client(ClientIdentity { cluster, name: "loader-1".into(), role: Role::Append }),
        ];
        for identity in all {
            assert_eq!(Identity::parse(&identity.uri()).unwrap(), identity);
        }
    }

    #[test]
    fn other_spellings_of_an_identity_are_refused() {
        let hex = format!("{:032x}", 7);
        for uri in [
            format!("graven://{hex}/node/03/n3"),
            format!("graven://{hex}/node/+3/n3"),
            format!("graven://{hex}/node/0/n3"),
            format!("graven://{hex}/node/3/n3/"),
            format!("graven://{hex}/node/3"),
            format!("graven://{hex}/node/3/a.b"),
            format!("graven://{hex}/client/c/root"),
            format!("graven://{hex}/client//read"),
            format!("graven://{hex}/"),
            format!("graven://{}/authority", "F".repeat(32)),
            "graven://7/authority".to_owned(),
            "graven:///authority".to_owned(),
        ] {
            assert!(Identity::parse(&uri).is_err(), "{uri} was taken");
        }
    }

    #[test]
    fn names_that_would_break_paths_or_host_names_are_refused() {
        for name in ["", "-a", "a-", "a/b", "a.b", "a b", "\u{e9}", "a\n", &"x".repeat(41)] {
            assert!(check_name(name).is_err(), "{name:?} was taken");
        }
        for name in ["a", "n1", "rack-7_b", "N1", &"x".repeat(40)] {
            assert!(check_name(name).is_ok(), "{name:?} was refused");
        }
    }
}
