//! A node's or client's own certificate and key: loaded from files, replaced while running, turned into rustls configurations.

use std::{
    any::Any,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::NoServerSessionStorage,
    sign::CertifiedKey,
};
use tokio::sync::watch;
use x509_parser::prelude::FromDer;

use super::{ClientIdentity, Identity, IdentityError, verifier};

/// The three files a node or client proves itself with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// Our certificate, signed by the authority.
    pub certificate: PathBuf,
    /// Our private key.
    pub key: PathBuf,
}

/// Our own identity, loaded from [`TlsFiles`] and replaced when they change. Clones share it.
#[derive(Clone)]
pub struct TlsIdentity {
    shared: Arc<Shared>,
}

struct Shared {
    files: TlsFiles,
    current: watch::Sender<Arc<Credentials>>,
    /// What was read last, good or bad: a bad pair is reported once, not at every look.
    seen: Mutex<Contents>,
}

impl TlsIdentity {
    /// Loads and checks the three files.
    ///
    /// # Errors
    /// When a file cannot be read or parsed, certificate and key do not belong together, the certificate was not signed by the
    /// authority, carries no identity, or is not valid today. The error names the file.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let contents = Contents::read(&files)?;
        let credentials = Credentials::parse(&files, &contents, UnixTime::now())?;
        let current = watch::Sender::new(Arc::new(credentials));
        Ok(Self { shared: Arc::new(Shared { files, current, seen: Mutex::new(contents) }) })
    }

    /// Takes in new files if there are any. Cheap enough to be called every few seconds: three small files are read and compared.
    ///
    /// # Errors
    /// When the files changed and cannot be used. The pair in use stays in use; the same bad files are reported once. Files that
    /// cannot be read at all are reported each time.
    pub fn reload_if_changed(&self) -> Result<Reload, TlsError> {
        let contents = Contents::read(&self.shared.files)?;
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == contents {
            return Ok(Reload::Unchanged);
        }
        let parsed = Credentials::parse(&self.shared.files, &contents, UnixTime::now());
        *seen = contents;
        let credentials = parsed?;
        let ours = self.current();
        if credentials.identity != ours.identity {
            return Err(TlsError::OtherIdentity {
                file: self.shared.files.certificate.clone(),
                ours: Box::new(ours.identity.clone()),
                theirs: Box::new(credentials.identity),
            });
        }
        self.shared.current.send_replace(Arc::new(credentials));
        Ok(Reload::Replaced)
    }

    /// What is in use now.
    #[must_use]
    pub fn current(&self) -> Arc<Credentials> {
        self.shared.current.borrow().clone()
    }

    /// Tells when what is in use was replaced.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Credentials>> {
        self.shared.current.subscribe()
    }

    /// The files it was loaded from.
    #[must_use]
    pub fn files(&self) -> &TlsFiles {
        &self.shared.files
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").field("identity", &self.current().identity).finish_non_exhaustive()
    }
}

/// What [`TlsIdentity::reload_if_changed`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// The files are what they were.
    Unchanged,
    /// The files changed and are in use; new handshakes are made with them.
    Replaced,
}

/// One loaded set of authority, certificate and key.
pub struct Credentials {
    identity: Identity,
    not_after: UnixTime,
    roots: Arc<RootCertStore>,
    key: Arc<CertifiedKey>,
}

impl Credentials {
    /// Who we are.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The last moment at which our certificate is valid.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// The accepting side of a QUIC handshake that agrees on `alpn` and wants a certificate of this cluster from the other side.
    ///
    /// # Errors
    /// [`TlsError::Config`] if rustls refuses the combination, which would be a defect.
    pub fn quic_server(&self, alpn: &[u8]) -> Result<Arc<QuicServerConfig>, TlsError> {
        self.quic_server_of(&[alpn])
    }

    /// The same for a port that several protocols share; [`agreed_alpn`] tells which one a connection is for.
    ///
    /// # Errors
    /// As [`Credentials::quic_server`].
    pub fn quic_server_of(&self, alpn: &[&[u8]]) -> Result<Arc<QuicServerConfig>, TlsError> {
        let verifier = verifier::of_clients(&self.roots, &provider(), self.identity.cluster())?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Config)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(CertifiedKey::clone(&self.key))));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let quic = QuicServerConfig::try_from(config).map_err(|_| TlsError::Config(no_initial_suite()))?;
        Ok(Arc::new(quic))
    }

    /// The dialling side of a QUIC handshake that agrees on `alpn` and proves who we are.
    ///
    /// # Errors
    /// [`TlsError::Config`] if rustls refuses the combination, which would be a defect.
    pub fn quic_client(&self, alpn: &[u8]) -> Result<Arc<QuicClientConfig>, TlsError> {
        let verifier = verifier::of_servers(&self.roots, &provider(), self.identity.cluster())?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Config)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(CertifiedKey::clone(&self.key))));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        let quic = QuicClientConfig::try_from(config).map_err(|_| TlsError::Config(no_initial_suite()))?;
        Ok(Arc::new(quic))
    }

    fn parse(files: &TlsFiles, contents: &Contents, now: UnixTime) -> Result<Self, TlsError> {
        let roots = Arc::new(parse_roots(&files.ca, &contents.ca)?);
        let chain = parse_certificates(&files.certificate, &contents.certificate)?;
        let leaf = chain.first().ok_or_else(|| TlsError::Empty { file: files.certificate.clone() })?;
        let identity = Identity::of_certificate(leaf)
            .map_err(|cause| TlsError::Identity { file: files.certificate.clone(), cause })?;
        let (not_before, not_after) =
            validity(leaf).map_err(|cause| TlsError::Identity { file: files.certificate.clone(), cause })?;
        if now < not_before {
            return Err(TlsError::NotYetValid { file: files.certificate.clone(), not_before });
        }
        if now > not_after {
            return Err(TlsError::Expired { file: files.certificate.clone(), identity, not_after });
        }
        verifier::of_clients(&roots, &provider(), identity.cluster())?
            .verify_client_cert(leaf, &[], now.into())
            .map_err(|cause| TlsError::NotSigned {
                certificate: files.certificate.clone(),
                ca: files.ca.clone(),
                reason: verifier::reason(&cause),
            })?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|cause| TlsError::Parse { file: files.key.clone(), what: cause.to_string() })?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|cause| match cause {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::KeyMismatch { certificate: files.certificate.clone(), key: files.key.clone() }
            }
            other => TlsError::Parse { file: files.key.clone(), what: other.to_string() },
        })?;
        Ok(Self { identity, not_after, roots, key: Arc::new(key) })
    }
}

/// The protocol name that an established connection agreed on.
#[must_use]
pub fn agreed_alpn(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    data.protocol
}

/// The other side of a connection, as its verified certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Who it is.
    pub identity: Identity,
    /// Until when its certificate is valid.
    pub not_after: UnixTime,
}

impl Verified {
    /// Reads who the other side of an established connection is. The handshake verified the authority's signature.
    ///
    /// # Errors
    /// When the certificate names nobody.
    pub fn of(connection: &quinn::Connection) -> Result<Self, IdentityError> {
        Self::of_peer_identity(connection.peer_identity())
    }

    /// The client it is.
    ///
    /// # Errors
    /// [`IdentityError::NotAClient`]: a node's certificate does not open the port for clients.
    pub fn client(self) -> Result<ClientIdentity, IdentityError> {
        match self.identity {
            Identity::Client(client) => Ok(client),
            other => Err(IdentityError::NotAClient(other.to_string())),
        }
    }

    fn of_peer_identity(found: Option<Box<dyn Any>>) -> Result<Self, IdentityError> {
        let chain =
            found.and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok()).ok_or(IdentityError::NoUri)?;
        let leaf = chain.first().ok_or(IdentityError::NoUri)?;
        let (_, not_after) = validity(leaf)?;
        Ok(Self { identity: Identity::of_certificate(leaf)?, not_after })
    }
}

/// Seconds since 1970, printed as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub i64);

impl UnixTime {
    /// Now, by this host's clock.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
    }
}

impl From<UnixTime> for rustls::pki_types::UnixTime {
    fn from(time: UnixTime) -> Self {
        Self::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(time.0).unwrap_or(0)))
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days to a civil date, counted in 400-year eras that begin on the first of March of year 0.
        let (days, seconds) = (self.0.div_euclid(86_400), self.0.rem_euclid(86_400));
        let shifted = days.saturating_add(719_468);
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Why our own certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {cause}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A file is larger than any certificate or key.
    #[error("{} has more than {FILE_BYTES_MAX} bytes: that is no certificate or key", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// A file holds no certificate.
    #[error("{} holds no PEM certificate; make one with `graven certs`", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// A file cannot be parsed.
    #[error("{} cannot be parsed: {what}; make a new pair with `graven certs`", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A certificate names nobody.
    #[error("{}: {cause}", file.display())]
    Identity {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        #[source]
        cause: IdentityError,
    },
    /// The file given as authority is somebody else's.
    #[error("{} is the certificate of a {found}, not of an authority; `ca` must be the ca.crt that `graven init` made", file.display())]
    NotAuthority {
        /// The file.
        file: PathBuf,
        /// Whose it is.
        found: &'static str,
    },
    /// The certificate's time has passed.
    #[error("{}: the certificate of {identity} expired at {not_after}; issue a new one with `graven certs {}`", file.display(), identity.kind())]
    Expired {
        /// The file.
        file: PathBuf,
        /// Whose it is.
        identity: Identity,
        /// Its last moment.
        not_after: UnixTime,
    },
    /// The certificate's time has not come.
    #[error("{} is valid from {not_before} on; set this host's clock, or issue a new one with `graven certs`", file.display())]
    NotYetValid {
        /// The file.
        file: PathBuf,
        /// Its first moment.
        not_before: UnixTime,
    },
    /// The authority does not vouch for the certificate.
    #[error("{} is not vouched for by {}: {reason}", certificate.display(), ca.display())]
    NotSigned {
        /// The certificate file.
        certificate: PathBuf,
        /// The authority's file.
        ca: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The key is not the certificate's.
    #[error("{} is not the key of {}; use the pair `graven certs` made together", key.display(), certificate.display())]
    KeyMismatch {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// Reloaded files are somebody else's.
    #[error("{} is now of {theirs}, but this is {ours}: not taken; restart with it if that is what you want", file.display())]
    OtherIdentity {
        /// The certificate file.
        file: PathBuf,
        /// Who we are.
        ours: Box<Identity>,
        /// Whom the new certificate names.
        theirs: Box<Identity>,
    },
    /// rustls refuses the configuration.
    #[error("TLS cannot be configured: {0}; please report this")]
    Config(#[source] rustls::Error),
}

/// What the three files held.
#[derive(PartialEq, Eq)]
struct Contents {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self {
            ca: read_small(&files.ca)?,
            certificate: read_small(&files.certificate)?,
            key: read_small(&files.key)?,
        })
    }
}

/// A chain of several certificates fits; somebody's disk image does not.
const FILE_BYTES_MAX: usize = 256 << 10;

pub(super) fn read_small(file: &Path) -> Result<Vec<u8>, TlsError> {
    use io::Read;
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::File::open(file)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|cause| TlsError::Read { file: file.to_owned(), cause })?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(TlsError::TooLarge { file: file.to_owned() });
    }
    Ok(bytes)
}

pub(super) fn parse_certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let parsed = parsed.map_err(|cause| TlsError::Parse { file: file.to_owned(), what: cause.to_string() })?;
    if parsed.is_empty() {
        return Err(TlsError::Empty { file: file.to_owned() });
    }
    Ok(parsed)
}

fn parse_roots(file: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for der in parse_certificates(file, pem)? {
        let identity =
            Identity::of_certificate(&der).map_err(|cause| TlsError::Identity { file: file.to_owned(), cause })?;
        if !matches!(identity, Identity::Authority { .. }) {
            return Err(TlsError::NotAuthority { file: file.to_owned(), found: identity.kind() });
        }
        roots.add(der).map_err(|cause| TlsError::Parse { file: file.to_owned(), what: cause.to_string() })?;
    }
    Ok(roots)
}

pub(super) fn validity(der: &CertificateDer<'_>) -> Result<(UnixTime, UnixTime), IdentityError> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(der)
        .map_err(|cause| IdentityError::Certificate(cause.to_string()))?;
    let found = parsed.validity();
    Ok((UnixTime(found.not_before.timestamp()), UnixTime(found.not_after.timestamp())))
}

/// ring, named and not found: with two providers in one build rustls cannot choose and panics. AES-128-GCM first: it is the
/// cheapest per byte on every machine that has AES instructions, and as safe here.
pub(super) fn provider() -> Arc<CryptoProvider> {
    use ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    Arc::new(CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256],
        ..ring::default_provider()
    })
}

fn no_initial_suite() -> rustls::Error {
    rustls::Error::General("QUIC needs TLS13_AES_128_GCM_SHA256".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_print_as_calendars_do() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(UnixTime(seconds).to_string(), text);
        }
    }
}
