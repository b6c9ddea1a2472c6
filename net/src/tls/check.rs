//! What stands in certificate files: `graven certs check`.

use std::path::{Path, PathBuf};

use rustls::{RootCertStore, pki_types::CertificateDer};

use super::{
    Identity, Role, TlsError, UnixTime,
    credentials::{parse_certificates, provider, read_small, validity},
    verifier,
};

/// One certificate found in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertReport {
    /// The file it stands in.
    pub file: PathBuf,
    /// Its holder, or why it names none.
    pub identity: Result<Identity, String>,
    /// Its first moment.
    pub not_before: UnixTime,
    /// Its last moment.
    pub not_after: UnixTime,
    /// Its last moment has passed.
    pub expired: bool,
    /// Whether an authority among the files vouches for it, and why not; `None` when no authority was among them.
    pub chain: Option<Result<(), String>>,
}

impl CertReport {
    /// `authority`, `node`, `client`, or `unknown`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.identity.as_ref().map_or("unknown", Identity::kind)
    }

    /// The cluster it belongs to.
    #[must_use]
    pub fn cluster(&self) -> Option<u128> {
        self.identity.as_ref().ok().map(Identity::cluster)
    }

    /// The node's or client's name.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self.identity.as_ref().ok()? {
            Identity::Authority { .. } => None,
            Identity::Node(it) => Some(&it.name),
            Identity::Client(it) => Some(&it.name),
        }
    }

    /// The client's role.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        match self.identity.as_ref().ok()? {
            Identity::Client(it) => Some(it.role),
            _ => None,
        }
    }

    /// The node's id.
    #[must_use]
    pub fn node(&self) -> Option<u64> {
        match self.identity.as_ref().ok()? {
            Identity::Node(it) => Some(it.node),
            _ => None,
        }
    }

    /// Whether it can be used now: it names a holder, is within its time, and no authority given denies it.
    #[must_use]
    pub fn usable(&self, now: UnixTime) -> bool {
        let vouched = self.chain.as_ref().is_none_or(Result::is_ok);
        self.identity.is_ok() && !self.expired && self.not_before <= now && vouched
    }
}

/// Reads every certificate in `files` and says whose it is, until when it is valid, and whether an authority among them vouches
/// for it. Private keys are not looked at.
///
/// # Errors
/// When a file cannot be read or holds no certificate; what is wrong inside a certificate is part of its report.
pub fn check<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Result<Vec<CertReport>, CheckError> {
    let now = UnixTime::now();
    let mut found = Vec::new();
    let mut roots = RootCertStore::empty();
    for file in files {
        let file = file.as_ref();
        for der in parse_certificates(file, &read_small(file)?)? {
            let identity = Identity::of_certificate(&der).map_err(|cause| cause.to_string());
            if matches!(identity, Ok(Identity::Authority { .. })) {
                // One that rustls cannot use vouches for nobody, and each certificate below says so.
                let _unusable = roots.add(der.clone());
            }
            found.push((file.to_owned(), der, identity));
        }
    }
    let roots = std::sync::Arc::new(roots);
    let judged = found.into_iter().map(|(file, der, identity)| {
        let (not_before, not_after) = validity(&der).unwrap_or((UnixTime(0), UnixTime(0)));
        let chain = match &identity {
            Ok(Identity::Node(_) | Identity::Client(_)) if !roots.is_empty() => {
                // Judged at a moment of its own life: whether that has passed is told apart.
                let moment = now.clamp(not_before, not_after.max(not_before));
                Some(vouched(&roots, &der, identity.as_ref().map_or(0, Identity::cluster), moment))
            }
            _ => None,
        };
        CertReport { file, identity, not_before, not_after, expired: now > not_after, chain }
    });
    Ok(judged.collect())
}

/// Why certificate files could not be checked.
pub type CheckError = TlsError;

fn vouched(
    roots: &std::sync::Arc<RootCertStore>,
    der: &CertificateDer<'_>,
    cluster: u128,
    moment: UnixTime,
) -> Result<(), String> {
    let verifier = verifier::of_clients(roots, &provider(), cluster).map_err(|cause| cause.to_string())?;
    verifier.verify_client_cert(der, &[], moment.into()).map(|_| ()).map_err(|cause| verifier::reason(&cause))
}
