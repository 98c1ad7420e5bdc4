//! An admitted bundle that could not be read.

use super::{Fault, Judged, Unproven};
use crate::award::{CertificateFile, Leaf};
use crate::crypto::Scheme;
use crate::merkle::Path;
use crate::record::MarketRecord;
use crate::verify;
use crate::wire::Listed;
use serde::{Deserialize, Serialize};

/// A garbage leaf under a certified root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Garbage {
    /// The certificate.
    pub certificate: CertificateFile,
    /// The bundle.
    pub bundle: Listed,
    /// The leaf's path.
    pub path: Path,
}

impl Garbage {
    pub(super) fn judge<S: Scheme>(&self, record: &MarketRecord) -> Judged {
        certified::<S>(record, &self.certificate, &Leaf::Garbage(self.bundle), &self.path)?;
        record.seat(self.bundle.seat).ok_or(Unproven::NotCertified)?;
        Ok((vec![self.bundle.seat], Fault::Garbage))
    }
}

/// Checks that a leaf is under the root of a valid certificate.
pub(super) fn certified<S: Scheme>(
    record: &MarketRecord,
    certificate: &CertificateFile,
    leaf: &Leaf,
    path: &Path,
) -> Result<(), Unproven> {
    let certificate = certificate.certificate(record.n()).map_err(|_| Unproven::Malformed)?;
    verify::certificate_by::<S>(record, &certificate).map_err(|_| Unproven::Certificate)?;
    if path.root(&leaf.to_bytes()) != Some(certificate.root) {
        return Err(Unproven::NotCertified);
    }
    Ok(())
}
