//! A server's certificate and key from PEM files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Protocols offered, the preferred first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Largest PEM file, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificate and key are no pair that TLS can be spoken with.
    #[error("{} and {}: {reason}", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

/// What a TLS server needs: the certificate chain (leaf first) and the private key (PKCS #8, PKCS #1 or SEC 1),
/// offering HTTP/2 and HTTP/1.1 over TLS 1.2 and 1.3.
pub fn tls_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let refuse =
        |path: &Path, reason: &str| TlsError::File { path: path.to_owned(), reason: reason.to_owned() };
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| refuse(certificate, &said(&error)))?;
    if chain.is_empty() {
        return Err(refuse(certificate, "has no certificate (-----BEGIN CERTIFICATE-----)"));
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            refuse(key, "has no private key that is not encrypted (-----BEGIN PRIVATE KEY-----)")
        }
        error => refuse(key, &said(&error)),
    })?;
    let pair = |error: rustls::Error| TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        reason: error.to_string(),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(pair)?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(Arc::new(config))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let unreadable = |reason: String| TlsError::File { path: path.to_owned(), reason };
    let file = std::fs::File::open(path).map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| unreadable(error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(unreadable(format!("is larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

fn said(error: &pem::Error) -> String {
    format!("is no PEM file: {error}")
}
