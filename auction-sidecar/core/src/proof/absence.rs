//! A seat that bid, but whose bundle too few seats got in time: it could have chosen later whether it counts.
//!
//! A SET that lacks f + 1 or more of the seats in the certified set is that of a seat which the network starved; it
//! says nothing about others and does not count.

use super::garbage::certified;
use super::{Fault, Judged, Signed, Unproven, open};
use crate::award::{CertificateFile, Leaf};
use crate::crypto::Scheme;
use crate::evidence;
use crate::justify::set_digest;
use crate::merkle::{HexDigest, Path};
use crate::record::MarketRecord;
use crate::wire::{Body, Header, Kind, Listed, bundle_digest, view_digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use vendue_market::Digest;
use vendue_market::encode::hex_array;

/// A signed bundle without its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleHead {
    /// The seat.
    pub seat: u16,
    /// Orders that it knew, ascending.
    pub order_view: Vec<HexDigest>,
    /// Key encapsulation.
    #[serde(with = "hex_array")]
    pub u: [u8; 48],
    /// Masked seed.
    #[serde(with = "hex_array")]
    pub v: [u8; 32],
    /// Digest of the encrypted payload.
    #[serde(with = "hex_array")]
    pub payload: Digest,
    /// The seat's signature.
    #[serde(with = "hex_array")]
    pub signature: [u8; 65],
}

/// A bundle that f + 1 owners' SETs do not list and that was not admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absence {
    /// The bundle.
    pub bundle: BundleHead,
    /// SETs of f + 1 distinct owners without it, ascending by owner.
    pub sets: Vec<Signed>,
    /// The round's certificate.
    pub certificate: CertificateFile,
    /// The path of the admitted set's digest.
    pub path: Path,
    /// The admitted set.
    pub admitted: Vec<Listed>,
}

impl Absence {
    pub(super) fn judge<S: Scheme>(&self, record: &MarketRecord) -> Judged {
        let (bundle, round) = (&self.bundle, self.certificate.round);
        let header = Header {
            kind: Kind::Bundle,
            market: record.short_id(),
            epoch: record.epoch,
            round,
            seat: bundle.seat,
        };
        let orders: Vec<Digest> = bundle.order_view.iter().map(|d| d.0).collect();
        let d = bundle_digest(&header, &view_digest(&orders), &bundle.u, &bundle.v, &bundle.payload);
        let key = record.seat(bundle.seat).ok_or(Unproven::Signature)?.evidence_key;
        let hash = evidence::bundle_hash_by::<S>(&record.market, &header, &d);
        if !S::verify_signature(&hash, &bundle.signature, &key) {
            return Err(Unproven::Signature);
        }
        let set = Leaf::Set(set_digest(record, round, &self.admitted));
        certified::<S>(record, &self.certificate, &set, &self.path)?;
        let listed = Listed { seat: bundle.seat, d };
        if orders.is_empty() || self.admitted.contains(&listed) {
            return Err(Unproven::Innocent);
        }
        let mut owners = vec![];
        for signed in &self.sets {
            let message = open::<S>(record, signed)?;
            let Body::Set(set) = &message.body else { return Err(Unproven::Malformed) };
            if message.header.round != round {
                return Err(Unproven::Unrelated);
            }
            if !speaks_against(record, &listed, &set.held, &self.admitted) {
                return Err(Unproven::Innocent);
            }
            owners.push(message.header.seat);
        }
        let distinct = owners.windows(2).all(|w| matches!(w, [a, b] if a < b));
        // Exactly as many as are needed: one proof has one form.
        if !distinct || owners.len() != usize::from(record.f()) + 1 {
            return Err(Unproven::Unrelated);
        }
        Ok((vec![bundle.seat], Fault::Absent))
    }
}

/// Whether a SET counts against a bundle: it does not list it, and its owner was not starved.
pub(crate) fn speaks_against(
    record: &MarketRecord,
    bundle: &Listed,
    held: &[Digest],
    admitted: &[Listed],
) -> bool {
    let lists = |l: &Listed| held.get(usize::from(l.seat)) == Some(&l.d);
    let has: BTreeSet<u16> = admitted.iter().filter(|l| lists(l)).map(|l| l.seat).collect();
    let all: BTreeSet<u16> = admitted.iter().map(|l| l.seat).collect();
    !lists(bundle) && all.len() - has.len() <= usize::from(record.f())
}
