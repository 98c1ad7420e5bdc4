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

/// An error that names what there is, if a context is missing.
pub fn check_contexts<'a>(path: &Path, wanted: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let file = kube::config::Kubeconfig::read_from(path)
        .map_err(|e| Error::Invalid(format!("kubeconfig {}: {e}", path.display())))?;
    let there: Vec<&str> = file.contexts.iter().map(|c| c.name.as_str()).collect();
    match wanted.into_iter().find(|context| !there.contains(context)) {
        Some(missing) => Err(Error::Invalid(format!(
            "kubeconfig {} has no context {missing:?}; next: choose from {}",
            path.display(),
            there.join(", ")
        ))),
        None => Ok(()),
    }
}

fn embed(path: &Path) -> Result<String> {
    Ok(base64::engine::general_purpose::STANDARD.encode(std::fs::read(path).io("read", path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_context_is_named_with_those_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let error = check_contexts(&path, ["a"]).unwrap_err().to_string();
        assert!(error.contains("kubeconfig"), "{error}");
        let text = json!({"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [],
            "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}]});
        std::fs::write(&path, text.to_string()).unwrap();
        check_contexts(&path, ["one"]).unwrap();
        let error = check_contexts(&path, ["one", "two"]).unwrap_err().to_string();
        assert!(error.contains("\"two\"") && error.contains("choose from one"), "{error}");
    }
}
