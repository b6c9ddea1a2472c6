//! `client.toml`: where a client finds its cluster and how it proves who it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::protocol::{ErrorCode, Outcome};
use crate::tls::check_name;
use crate::transport::Mtu;

/// How a [`Client`](super::Client) reaches its cluster. Made by [`ClientConfig::load`], then changed as needed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Nodes by name, each `host:port` where it listens for clients. The others are learnt from those that answer.
    pub endpoints: BTreeMap<String, String>,
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The client's certificate.
    pub certificate: PathBuf,
    /// The client's private key.
    pub key: PathBuf,
    /// How long a call waits without any progress. Default 10 s.
    pub timeout: Duration,
    /// The largest record sent, in bytes; less than the cluster takes has an effect. Default: what the cluster takes.
    pub max_record_bytes: usize,
    /// Bytes of unacknowledged records an appender keeps in flight. Default 4 MiB.
    pub window_bytes: usize,
    /// The largest datagrams to try.
    pub mtu: Mtu,
}

impl ClientConfig {
    /// A configuration with the defaults.
    #[must_use]
    pub fn new(endpoints: BTreeMap<String, String>, ca: PathBuf, certificate: PathBuf, key: PathBuf) -> ClientConfig {
        ClientConfig {
            endpoints,
            ca,
            certificate,
            key,
            timeout: Duration::from_secs(10),
            max_record_bytes: graven_frame::MAX_RECORD_BYTES,
            window_bytes: 4 << 20,
            mtu: Mtu::Auto,
        }
    }

    /// Reads a `client.toml`. Relative paths in it are relative to its directory.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, has an unknown or a missing key (named with its line), or names no node.
    pub fn load(path: impl AsRef<Path>) -> Result<ClientConfig, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        let file: File = toml::from_str(&text).map_err(|cause| {
            let before = cause.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            ConfigError::Parse { path: path.to_owned(), line, message: cause.message().to_owned() }
        })?;
        let wrong = |what: String| ConfigError::Endpoint { path: path.to_owned(), what };
        if file.endpoints.is_empty() {
            return Err(wrong("it names no node".to_owned()));
        }
        for (name, address) in &file.endpoints {
            check_name(name).map_err(|cause| wrong(cause.to_string()))?;
            let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
            if port.is_none_or(|port| port.parse::<u16>().is_err()) {
                return Err(wrong(format!("{name} = {address:?} is not HOST:PORT")));
            }
        }
        let dir = path.parent().unwrap_or(Path::new(""));
        Ok(ClientConfig::new(file.endpoints, dir.join(file.ca), dir.join(file.certificate), dir.join(file.key)))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    endpoints: BTreeMap<String, String>,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

/// Why a `client.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}: {cause}; `graven init` and `graven dev` write it, and `graven certs client NAME --role ROLE --dir DIR` makes another one", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{}, line {line}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Its `endpoints` are not usable.
    #[error("{}: endpoints: {what}", path.display())]
    Endpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl ConfigError {
    /// Always [`ErrorCode::Config`].
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        ErrorCode::Config
    }

    /// Always [`Outcome::Refused`]: nothing was done.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::Refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<ClientConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        std::fs::write(&path, text).unwrap();
        let loaded = ClientConfig::load(&path)?;
        assert_eq!(loaded.ca, dir.path().join("ca.crt"));
        Ok(loaded)
    }

    const FILES: &str = "ca = 'ca.crt'\ncertificate = 'c.crt'\nkey = '/abs/c.key'\n";

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = load(&format!("endpoints = {{ n1 = '127.0.0.1:5471' }}\n{FILES}")).unwrap();
        assert_eq!(config.key, Path::new("/abs/c.key"));
        assert_eq!(config.endpoints["n1"], "127.0.0.1:5471");
        assert_eq!(config.max_record_bytes, graven_frame::MAX_RECORD_BYTES);
    }

    #[test]
    fn unknown_key_is_named_with_its_line() {
        let error = load(&format!("endpoints = {{ n1 = 'a:1' }}\n{FILES}colour = 1\n")).unwrap_err().to_string();
        assert!(error.contains("line 5") && error.contains("colour"), "{error}");
    }

    #[test]
    fn endpoints_that_cannot_be_dialled_are_refused() {
        for endpoints in ["{}", "{ n1 = 'nowhere' }", "{ n1 = ':5' }", "{ n1 = 'a:99999' }", "{ 'n 1' = 'a:1' }"] {
            assert!(load(&format!("endpoints = {endpoints}\n{FILES}")).is_err(), "{endpoints}");
        }
    }
}
