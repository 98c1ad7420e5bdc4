//! TLS of the aggregated API: own certificate, and client certificates of the front proxy.
//!
//! Invariant: a client certificate is optional (probes have none), but one that is presented must be signed by the
//! authority of the front proxy.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or parsed.
    #[error("read {file}: {reason}")]
    File {
        /// Its name.
        file: String,
        /// Why.
        reason: String,
    },
    /// The front proxy's authority is unusable.
    #[error("authority of the front proxy: {0}")]
    Authority(String),
    /// Certificate and key do not go together.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
}

/// The server's configuration from `tls.crt` and `tls.key` in `folder` and the front proxy's authority.
pub(super) fn config(folder: &Path, ca_pem: &str) -> Result<Arc<ServerConfig>, TlsError> {
    let file = |name: &str| folder.join(name);
    let fail = |name: &str, e: rustls::pki_types::pem::Error| TlsError::File {
        file: file(name).display().to_string(),
        reason: e.to_string(),
    };
    let chain = CertificateDer::pem_file_iter(file("tls.crt"))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| fail("tls.crt", e))?;
    let key = PrivateKeyDer::from_pem_file(file("tls.key")).map_err(|e| fail("tls.key", e))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|e| TlsError::Authority(e.to_string()))?;
        roots.add(certificate).map_err(|e| TlsError::Authority(e.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()
        .map_err(|e| TlsError::Authority(e.to_string()))?;
    let mut config =
        ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
