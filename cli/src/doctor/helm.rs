//! Takes back what Helm notes before it asks.
//!
//! `helm uninstall` writes "uninstalling" into its release Secret before the pre-delete hook runs and leaves it there
//! when the hook refuses; the next `helm upgrade` then fails with "has no deployed releases". So a refusal puts the
//! release back to "deployed". Inputs: the release Secret. Outputs: its data with another status.
//! Invariant: a release that does not read as expected is left as it is.

use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::Value;

/// Most bytes of a release; a Secret holds 1 MiB, which compresses well.
const MAX: u64 = 64 << 20;

/// Why a release was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Not base64.
    #[error("release is not base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// Not gzip.
    #[error("release is not gzip: {0}")]
    Gzip(#[from] std::io::Error),
    /// Not JSON.
    #[error("release is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// No such field.
    #[error("release has no info")]
    NoInfo,
    /// Another revision than the one that Helm takes away: after a rollback, the check knows the one that it came with.
    #[error("release is {0:?}, not uninstalling")]
    NotUninstalling(String),
}

/// The release with the status "deployed" and a description that says why.
pub fn reopened(release: &[u8], description: &str) -> Result<Vec<u8>, ReleaseError> {
    let mut text = Vec::new();
    GzDecoder::new(STANDARD.decode(release)?.as_slice()).take(MAX).read_to_end(&mut text)?;
    let mut value: Value = serde_json::from_slice(&text)?;
    let info = value.get_mut("info").and_then(Value::as_object_mut).ok_or(ReleaseError::NoInfo)?;
    let status = info.get("status").and_then(Value::as_str).unwrap_or_default();
    if status != "uninstalling" {
        return Err(ReleaseError::NotUninstalling(status.to_owned()));
    }
    info.insert("status".to_owned(), "deployed".into());
    info.insert("description".to_owned(), description.into());
    info.remove("deleted");
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&serde_json::to_vec(&value)?)?;
    Ok(STANDARD.encode(packed.finish()?).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pack(value: &Value) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(value.to_string().as_bytes()).unwrap();
        STANDARD.encode(packed.finish().unwrap()).into_bytes()
    }

    #[test]
    fn only_status_and_description_change() {
        let info = json!({"status": "uninstalling", "description": "Deletion in progress", "deleted": "now", "notes": "n"});
        let old = pack(&json!({"name": "vendue", "version": 3, "info": info}));
        let new = reopened(&old, "refused").unwrap();
        let mut text = Vec::new();
        GzDecoder::new(STANDARD.decode(&new).unwrap().as_slice()).read_to_end(&mut text).unwrap();
        let new: Value = serde_json::from_slice(&text).unwrap();
        let info = json!({"status": "deployed", "description": "refused", "notes": "n"});
        assert_eq!(new, json!({"name": "vendue", "version": 3, "info": info}));
    }

    #[test]
    fn what_does_not_read_is_refused() {
        assert!(matches!(reopened(b"***", ""), Err(ReleaseError::Base64(_))));
        assert!(matches!(reopened(STANDARD.encode("x").as_bytes(), ""), Err(ReleaseError::Gzip(_))));
        assert!(matches!(reopened(&pack(&json!({})), ""), Err(ReleaseError::NoInfo)));
        let rolled_back = pack(&json!({"info": {"status": "superseded"}}));
        let error = reopened(&rolled_back, "").unwrap_err();
        assert!(matches!(&error, ReleaseError::NotUninstalling(s) if s == "superseded"), "{error}");
    }
}
