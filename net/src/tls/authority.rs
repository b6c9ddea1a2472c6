//! The cluster's certificate authority: makes itself once, then signs nodes and clients.

use std::{
    fs,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    IdentityError, Role,
    identity::{ClientIdentity, Identity, NodeIdentity, check_name, server_name},
};

/// A cluster's authority: its certificate and its private key.
///
/// Whoever holds the key can make nodes and clients; it is needed for `graven certs` and `graven init --join` only and
/// need not be on any node.
pub struct Authority {
    cluster: u128,
    certificate_pem: String,
    key: KeyPair,
    validity: Option<Validity>,
}

impl Authority {
    /// Makes the authority of a new cluster, valid for ten years.
    ///
    /// # Errors
    /// [`AuthorityError::Generate`] when the system gives no random bytes.
    pub fn create(cluster: u128) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Generate)?;
        let validity = Validity::from_now(AUTHORITY_LIFE);
        let mut params = parameters(&Identity::Authority { cluster }, format!("graven {cluster:032x}"), validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(AuthorityError::Generate)?;
        Ok(Self { cluster, certificate_pem: certificate.pem(), key, validity: None })
    }

    /// Reads `ca.crt` and `ca.key` from `dir`.
    ///
    /// # Errors
    /// When a file cannot be read, or is not the authority [`Authority::save`] wrote.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, AuthorityError> {
        let read = |name: &str| {
            let file = dir.as_ref().join(name);
            fs::read_to_string(&file)
                .map(|text| (file.clone(), text))
                .map_err(|cause| AuthorityError::Read { file, cause })
        };
        let (certificate_file, certificate_pem) = read(AUTHORITY_CERTIFICATE)?;
        let (key_file, key_pem) = read(AUTHORITY_KEY)?;
        let damaged = |file: &Path, what: String| AuthorityError::Damaged { file: file.to_owned(), what };
        let key = KeyPair::from_pem(&key_pem).map_err(|cause| damaged(&key_file, cause.to_string()))?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|cause| damaged(&certificate_file, cause.to_string()))?;
        let cluster = match Identity::of_certificate(&der) {
            Ok(Identity::Authority { cluster }) => cluster,
            Ok(other) => {
                return Err(damaged(&certificate_file, format!("it is the certificate of a {}", other.kind())));
            }
            Err(cause) => return Err(damaged(&certificate_file, cause.to_string())),
        };
        if !holds_key(&der, &key) {
            return Err(AuthorityError::Mismatch { certificate: certificate_file, key: key_file });
        }
        Ok(Self { cluster, certificate_pem, key, validity: None })
    }

    /// Writes `ca.crt` and `ca.key` into `dir`, the key readable by its owner only. Existing files are left alone.
    ///
    /// # Errors
    /// [`AuthorityError::Write`] when a file exists already or cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<(), AuthorityError> {
        let dir = dir.as_ref();
        write_new(&dir.join(AUTHORITY_KEY), self.key.serialize_pem().as_bytes(), Secrecy::Secret)?;
        write_new(&dir.join(AUTHORITY_CERTIFICATE), self.certificate_pem.as_bytes(), Secrecy::Public)
    }

    /// The cluster it signs for.
    #[must_use]
    pub fn cluster(&self) -> u128 {
        self.cluster
    }

    /// Its certificate: what every node and client needs as `ca`.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The same authority, issuing certificates for `validity` instead of two years from now.
    #[must_use]
    pub fn with_validity(mut self, validity: Validity) -> Self {
        self.validity = Some(validity);
        self
    }

    /// Signs a new key for node `id`, called `name`. `addresses` (host names or IPs, a port is cut off) are noted in the
    /// certificate for people and foreign tools; graven itself verifies the name, so a node may move.
    ///
    /// # Errors
    /// When `name` is no name for a node, `id` is zero, or an address is not ASCII.
    pub fn issue_node<A: AsRef<str>>(
        &self,
        name: &str,
        id: u64,
        addresses: impl IntoIterator<Item = A>,
    ) -> Result<Issued, AuthorityError> {
        if id == 0 {
            return Err(AuthorityError::NodeZero);
        }
        let identity = Identity::Node(NodeIdentity { cluster: self.cluster, node: id, name: name.to_owned() });
        let mut sans = vec![dns(&server_name(name))?];
        for address in addresses {
            let san = match host(address.as_ref()) {
                Host::Ip(ip) => SanType::IpAddress(ip),
                Host::Name(host) => dns(&host)?,
            };
            if !sans.contains(&san) {
                sans.push(san);
            }
        }
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(name, &identity, sans, usages)
    }

    /// Signs a new key for a client called `name`, which may do what `role` allows.
    ///
    /// # Errors
    /// When `name` is no name for a client.
    pub fn issue_client(&self, name: &str, role: Role) -> Result<Issued, AuthorityError> {
        let identity = Identity::Client(ClientIdentity { cluster: self.cluster, name: name.to_owned(), role });
        self.issue(name, &identity, Vec::new(), vec![ExtendedKeyUsagePurpose::ClientAuth])
    }

    fn issue(
        &self,
        name: &str,
        identity: &Identity,
        sans: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
    ) -> Result<Issued, AuthorityError> {
        check_name(name)?;
        let validity = self.validity.unwrap_or_else(|| Validity::from_now(CERTIFICATE_LIFE));
        let mut params = parameters(identity, name.to_owned(), validity)?;
        params.subject_alt_names.extend(sans);
        params.extended_key_usages = usages;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate_pem, &self.key).map_err(AuthorityError::Generate)?;
        let key = KeyPair::generate().map_err(AuthorityError::Generate)?;
        let certificate = params.signed_by(&key, &issuer).map_err(AuthorityError::Generate)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

/// A certificate and its private key, fresh from the authority and not written anywhere yet.
pub struct Issued {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// The private key, PEM (PKCS 8).
    pub key_pem: String,
}

impl Issued {
    /// Writes both files, the key readable by its owner only. Existing files are left alone.
    ///
    /// # Errors
    /// [`AuthorityError::Write`] when a file exists already or cannot be written.
    pub fn save(&self, certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<(), AuthorityError> {
        write_new(key.as_ref(), self.key_pem.as_bytes(), Secrecy::Secret)?;
        write_new(certificate.as_ref(), self.certificate_pem.as_bytes(), Secrecy::Public)
    }
}

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// Valid for `life` from now, and already an hour ago: hosts' clocks differ.
    #[must_use]
    pub fn from_now(life: Duration) -> Self {
        let now = SystemTime::now();
        Self { not_before: now - CLOCK_SLACK, not_after: now + life }
    }
}

/// Why the authority could not be made, read, or would not sign.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The name or the identity in a certificate is no good.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Node ids start at 1.
    #[error("node id 0 is no node; ids start at 1")]
    NodeZero,
    /// Not a host name or IP address.
    #[error("{0:?} is no host name or IP address")]
    Address(String),
    /// Key or certificate generation failed.
    #[error("cannot generate a key or certificate: {0}")]
    Generate(#[source] rcgen::Error),
    /// A file of the authority cannot be read.
    #[error("cannot read {}: {cause}; point at the directory in which `graven init` made ca.crt and ca.key", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A file of the authority is not what it should be.
    #[error("{} is not the authority's: {what}; restore it from where `graven init` was run", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Certificate and key are of two different authorities.
    #[error("{} and {} do not belong together; restore both from where `graven init` was run", certificate.display(), key.display())]
    Mismatch {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {cause}; existing keys and certificates are never overwritten, move it away first", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

/// The authority's certificate in its directory.
pub const AUTHORITY_CERTIFICATE: &str = "ca.crt";
/// The authority's private key in its directory.
pub const AUTHORITY_KEY: &str = "ca.key";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3652);
/// Two years: long enough that nobody is woken for it, short enough that replacing is practised.
const CERTIFICATE_LIFE: Duration = DAY.saturating_mul(730);
/// Hosts whose clocks are up to this far behind the issuing one take a new certificate at once.
const CLOCK_SLACK: Duration = Duration::from_secs(60 * 60);

enum Secrecy {
    Secret,
    Public,
}

fn parameters(
    identity: &Identity,
    common_name: String,
    validity: Validity,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    let uri = identity.uri();
    let uri = uri.as_str().try_into().map_err(|_| AuthorityError::Address(uri.clone()))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    Ok(params)
}

fn dns(name: &str) -> Result<SanType, AuthorityError> {
    let bad = || AuthorityError::Address(name.to_owned());
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(bad());
    }
    Ok(SanType::DnsName(name.try_into().map_err(|_| bad())?))
}

enum Host {
    Ip(IpAddr),
    Name(String),
}

/// The host part of `host`, `host:port`, `1.2.3.4:port`, `::1` or `[::1]:port`.
fn host(address: &str) -> Host {
    let bare = match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, _)) => inside,
        None if address.matches(':').count() == 1 => address.split(':').next().unwrap_or(address),
        None => address,
    };
    bare.parse().map_or_else(|_| Host::Name(bare.to_owned()), Host::Ip)
}

fn holds_key(der: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use x509_parser::prelude::FromDer;
    x509_parser::certificate::X509Certificate::from_der(der)
        .is_ok_and(|(_, parsed)| parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}

fn write_new(file: &Path, bytes: &[u8], secrecy: Secrecy) -> Result<(), AuthorityError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // The mode is set at creation: a key that is readable for a moment is a key that was readable.
        options.mode(match secrecy {
            Secrecy::Secret => 0o600,
            Secrecy::Public => 0o644,
        });
    }
    let write = || -> io::Result<()> {
        let mut out = options.open(file)?;
        out.write_all(bytes)?;
        out.sync_all()
    };
    write().map_err(|cause| AuthorityError::Write { file: file.to_owned(), cause })
}
