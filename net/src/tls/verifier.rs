//! Certificate verification by rustls' own verifiers, with reasons that name the certificate.
//!
//! What rustls says about a certificate it refuses ("UnknownIssuer", a time in seconds) is sent to the other side as the reason of the
//! close, and is all an operator gets to see. These wrappers decide nothing by themselves except that the certificate must carry an
//! identity of our cluster; they put a name, a date and a next step to what the verifier below decided.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{Identity, TlsError, credentials};

/// Verifies whoever dials us: signed by the authority for use as a client, valid now, of our cluster.
pub(super) fn of_clients(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    cluster: u128,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let inner = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|cause| TlsError::Config(Error::General(cause.to_string())))?;
    Ok(Arc::new(Clients { inner, cluster }))
}

/// Verifies whom we dial: signed by the authority for use as a server, valid now, of our cluster, and the name we meant.
pub(super) fn of_servers(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    cluster: u128,
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let inner = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|cause| TlsError::Config(Error::General(cause.to_string())))?;
    Ok(Arc::new(Servers { inner, cluster }))
}

/// The sentence in an error of these verifiers.
pub(super) fn reason(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.to_string(),
        other => other.to_string(),
    }
}

/// The sentence in the reason of a connection that a certificate ended, on one line: it goes to a log or a terminal.
///
/// QUIC carries what rustls prints for the error, and rustls prints the errors of verifiers like ours with their wrappers.
pub(crate) fn sentence(reason: &str) -> String {
    let line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_CHARS_MAX).collect();
    let line = line.strip_prefix("invalid peer certificate: ").unwrap_or(&line);
    // The end is missing where the reason was cut to fit into a packet.
    let unwrapped = line.strip_prefix(WRAPPED.0).map(|rest| rest.strip_suffix(WRAPPED.1).unwrap_or(rest));
    let line = unwrapped.unwrap_or(line).trim();
    if line.is_empty() { "certificate refused without a reason".to_owned() } else { line.to_owned() }
}

/// What rustls puts around [`Refused`].
const WRAPPED: (&str, &str) = ("Other(OtherError(", "))");
/// Our sentences are shorter; the other side may write what it likes.
const REASON_CHARS_MAX: usize = 300;

#[derive(Debug)]
struct Clients {
    inner: Arc<dyn ClientCertVerifier>,
    cluster: u128,
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(|cause| named(cause, end_entity, self.cluster))?;
        wants_cluster(end_entity, self.cluster)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct Servers {
    inner: Arc<WebPkiServerVerifier>,
    cluster: u128,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(|cause| named(cause, end_entity, self.cluster))?;
        wants_cluster(end_entity, self.cluster)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Two authorities of one name: the signature is good and the cluster is still not ours.
fn wants_cluster(der: &CertificateDer<'_>, cluster: u128) -> Result<(), Error> {
    match Identity::of_certificate(der) {
        Ok(identity) if identity.cluster() == cluster => Ok(()),
        Ok(identity) => Err(refused(of_another(&identity, cluster))),
        Err(cause) => Err(refused(cause.to_string())),
    }
}

/// The refusal `cause`, with the holder, the date and the next step in it. The certificate is not verified: what it says is only told.
fn named(cause: Error, der: &CertificateDer<'_>, cluster: u128) -> Error {
    let Error::InvalidCertificate(kind) = &cause else { return cause };
    let identity = match Identity::of_certificate(der) {
        Ok(identity) => identity,
        Err(unnamed) => return refused(unnamed.to_string()),
    };
    let dates = credentials::validity(der).ok();
    match (kind, dates) {
        (CertificateError::Expired | CertificateError::ExpiredContext { .. }, Some((_, not_after))) => {
            refused(format!(
                "certificate of {identity} expired at {not_after}; issue a new one with `graven certs {}`",
                identity.kind()
            ))
        }
        (CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }, Some((not_before, _))) => {
            refused(format!(
                "certificate of {identity} is valid from {not_before} on; compare the clocks of both hosts"
            ))
        }
        _ if identity.cluster() != cluster => refused(of_another(&identity, cluster)),
        (CertificateError::UnknownIssuer | CertificateError::BadSignature, _) => refused(format!(
            "certificate of {identity} was not signed by this cluster's authority; use one that its ca.key signed"
        )),
        (CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. }, _) => refused(format!(
            "certificate of {identity} is not for this use: a client's certificate cannot stand for a node"
        )),
        (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }, _) => {
            refused(format!("certificate is of {identity}, another one was expected at this address"))
        }
        (other, _) => refused(format!("certificate of {identity} is refused: {other}")),
    }
}

fn of_another(identity: &Identity, cluster: u128) -> String {
    format!("certificate is of {identity}, this is cluster {cluster:032x}; check the address and whose files are used")
}

fn refused(sentence: String) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Refused(sentence)))))
}

#[derive(thiserror::Error)]
#[error("{0}")]
struct Refused(String);

/// rustls prints it this way into the reason of a close, which [`sentence`] reads: no quotes, nothing escaped.
impl std::fmt::Debug for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_of_a_refusal_is_read_back_as_its_sentence() {
        let said = "certificate of node n1 (1) expired; issue a new one with `graven certs node`";
        let reason = refused(said.to_owned()).to_string();
        assert_eq!(sentence(&reason), said, "{reason}");
        assert_eq!(sentence(&reason[..reason.len() - 10]), said[..said.len() - 8]);
        assert_eq!(sentence("invalid peer certificate: UnknownIssuer"), "UnknownIssuer");
        assert_eq!(sentence("two\nlines"), "two lines");
        assert_eq!(sentence(""), "certificate refused without a reason");
    }
}
