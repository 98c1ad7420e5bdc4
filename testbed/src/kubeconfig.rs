//! Kubeconfig files: one per component and client of a cluster, one merged file per market.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::pki::Pki;

/// One cluster as a kubeconfig entry.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Name of cluster, user and context.
    pub name: &'a str,
    /// URL of the API server.
    pub server: &'a str,
    /// The cluster's certificates.
    pub pki: &'a Pki,
    /// Which client certificate to present.
    pub client: &'a str,
}

/// Writes a kubeconfig with a context per entry; the first is current. Certificates are embedded, so that
/// the file can be moved.
pub fn write(path: &Path, entries: &[Entry<'_>]) -> Result<PathBuf> {
    let mut clusters = Vec::new();
    let mut users = Vec::new();
    let mut contexts = Vec::new();
    for entry in entries {
        let user = format!("{}-{}", entry.name, entry.client);
        clusters.push(json!({"name": entry.name, "cluster": {
            "server": entry.server, "certificate-authority-data": embed(&entry.pki.crt("ca"))?}}));
        users.push(json!({"name": user, "user": {
            "client-certificate-data": embed(&entry.pki.crt(entry.client))?,
            "client-key-data": embed(&entry.pki.key(entry.client))?}}));
        contexts.push(json!({"name": entry.name, "context": {"cluster": entry.name, "user": user}}));
    }
    let current = entries.first().map_or("", |e| e.name);
    let value: Value = json!({"apiVersion": "v1", "kind": "Config", "clusters": clusters, "users": users,
        "contexts": contexts, "current-context": current});
    // JSON is YAML, and every reader of a kubeconfig reads YAML.
    let text =
        serde_json::to_string_pretty(&value).map_err(|e| Error::Invalid(format!("write kubeconfig: {e}")))?;
    files::write_private(path, text)?;
    Ok(path.to_path_buf())
}

fn embed(path: &Path) -> Result<String> {
    Ok(base64::engine::general_purpose::STANDARD.encode(std::fs::read(path).io("read", path)?))
}
