//! Who asks: the identity that the API server's front proxy vouches for.
//!
//! Inputs: the verified client certificate of the connection, the request's headers. Outputs: a [`User`] or nothing.
//! Invariant: without a certificate of an allowed name the headers are not looked at.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use rustls::pki_types::CertificateDer;

/// What the cluster says about its front proxy (ConfigMap `kube-system/extension-apiserver-authentication`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontProxy {
    /// Certificates of the authority that signs the proxy's client certificate, PEM.
    pub ca_pem: String,
    /// Accepted common names; empty accepts every certificate of that authority.
    pub allowed_names: Vec<String>,
    /// Headers with the user's name; the first that is there counts.
    pub username_headers: Vec<String>,
    /// Headers with the user's groups.
    pub group_headers: Vec<String>,
    /// Beginnings of headers with more about the user.
    pub extra_prefixes: Vec<String>,
}

/// Why the ConfigMap is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrontProxyError {
    /// A key is missing.
    #[error("extension-apiserver-authentication has no {0}")]
    Missing(&'static str),
    /// A key is not a JSON list of strings.
    #[error("{key} is not a list of strings: {reason}")]
    Malformed {
        /// The key.
        key: &'static str,
        /// Why.
        reason: String,
    },
}

impl FrontProxy {
    /// Reads the data of the ConfigMap.
    pub fn from_data(data: &BTreeMap<String, String>) -> Result<Self, FrontProxyError> {
        let list = |key: &'static str| match data.get(key) {
            None => Ok(Vec::new()),
            Some(text) => serde_json::from_str::<Vec<String>>(text)
                .map_err(|e| FrontProxyError::Malformed { key, reason: e.to_string() }),
        };
        const CA: &str = "requestheader-client-ca-file";
        let proxy = Self {
            ca_pem: data.get(CA).cloned().ok_or(FrontProxyError::Missing(CA))?,
            allowed_names: list("requestheader-allowed-names")?,
            username_headers: list("requestheader-username-headers")?,
            group_headers: list("requestheader-group-headers")?,
            extra_prefixes: list("requestheader-extra-headers-prefix")?,
        };
        if proxy.username_headers.is_empty() {
            return Err(FrontProxyError::Missing("requestheader-username-headers"));
        }
        Ok(proxy)
    }

    /// Whether a certificate, whose chain was verified against the authority, is the proxy's.
    pub fn accepts(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.allowed_names.is_empty() {
            return true;
        }
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
        parsed
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok())
            .any(|name| self.allowed_names.iter().any(|allowed| allowed == name))
    }

    /// The user that the headers name.
    pub fn user(&self, headers: &HeaderMap) -> Option<User> {
        let values = |name: &String| -> Vec<String> {
            headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
        };
        let name = self.username_headers.iter().flat_map(values).find(|n| !n.is_empty())?;
        let groups = self.group_headers.iter().flat_map(values).collect();
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (header, value) in headers {
            for prefix in &self.extra_prefixes {
                let prefix = prefix.to_ascii_lowercase();
                if let (Some(key), Ok(value)) = (header.as_str().strip_prefix(&prefix), value.to_str()) {
                    extra.entry(unescape(key)).or_default().push(value.to_owned());
                }
            }
        }
        Some(User { name, groups, extra })
    }
}

/// A user of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What else the authenticator said.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Header names carry characters that they may not have as `%xx`.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let rest = bytes.clone().take(2).collect::<Vec<_>>();
        match std::str::from_utf8(&rest).ok().and_then(|t| u8::from_str_radix(t, 16).ok()) {
            Some(value) if rest.len() == 2 => {
                out.push(value);
                bytes.nth(1);
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What a connection proved; an extension of each of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trusted(pub bool);
