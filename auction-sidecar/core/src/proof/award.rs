//! A vote for awards that do not follow from what was admitted: the round is opened and cleared again.

use super::{Fault, Judged, Signed, Unproven, open};
use crate::award::CertificateFile;
use crate::clearing::{Clearing, Held};
use crate::crypto::Scheme;
use crate::justify::{self, ByRecord};
use crate::record::MarketRecord;
use crate::verify;
use crate::wire::{Body, Listed};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use vendue_market::encode::hex_array;
use vendue_market::{Digest, Order};
use vendue_sealed_bid::RoundId;

/// Who voted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Accused {
    /// The sender of an AWARD.
    Message(Signed),
    /// All signers of a certificate.
    Certificate(CertificateFile),
}

/// All that a round's awards follow from, and a vote for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrongAward {
    /// The vote.
    pub accused: Accused,
    /// A COMMIT or OPEN of any seat, which shows that the set is final.
    pub commit: Signed,
    /// The admitted set.
    pub admitted: Vec<Listed>,
    /// The round's combined signature.
    #[serde(with = "hex_array")]
    pub combined: [u8; 96],
    /// The BUNDLEs of the admitted set, in its order.
    pub bundles: Vec<Signed>,
    /// The orders that f + 1 of them list, ascending by digest.
    pub orders: Vec<Order>,
}

impl WrongAward {
    pub(super) fn judge<S: Scheme>(&self, record: &MarketRecord) -> Judged {
        let (round, root, seats) = self.vote::<S>(record)?;
        let set = self.final_set::<S>(record, round)?;
        if justify::set_digest(record, round, &self.admitted) != set {
            return Err(Unproven::NotCertified);
        }
        let id = RoundId { market: record.market, epoch: record.epoch, round };
        let combined =
            S::verify_combined(&id, &record.seal_key, &self.combined).ok_or(Unproven::Certificate)?;
        let bundles = self.held::<S>(record, round)?;
        let orders: BTreeMap<Digest, Arc<Order>> =
            self.orders.iter().map(|o| (o.digest(), Arc::new(o.clone()))).collect();
        let clearing = Clearing {
            record,
            round,
            set,
            list: &self.admitted,
            bundles: &bundles,
            known: None,
            orders: &orders,
        };
        let candidates = clearing.candidates();
        if !candidates.iter().eq(self.orders.iter().map(Order::digest).collect::<Vec<_>>().iter()) {
            return Err(Unproven::NotCertified);
        }
        let (table, _) = clearing
            .run(&candidates, &S::beacon(&combined), |header, sealed| S::open(&combined, header, sealed));
        if table.root() == root { Err(Unproven::Innocent) } else { Ok((seats, Fault::WrongAward)) }
    }

    /// Round, root and voters.
    fn vote<S: Scheme>(&self, record: &MarketRecord) -> Result<(u64, Digest, Vec<u16>), Unproven> {
        match &self.accused {
            Accused::Message(signed) => {
                let message = open::<S>(record, signed)?;
                let Body::Award(vote) = &message.body else { return Err(Unproven::Malformed) };
                Ok((message.header.round, vote.root, vec![message.header.seat]))
            }
            Accused::Certificate(file) => {
                let certificate = file.certificate(record.n()).map_err(|_| Unproven::Malformed)?;
                verify::certificate_by::<S>(record, &certificate).map_err(|_| Unproven::Certificate)?;
                Ok((certificate.round, certificate.root, certificate.quorum.signers.iter().collect()))
            }
        }
    }

    fn final_set<S: Scheme>(&self, record: &MarketRecord, round: u64) -> Result<Digest, Unproven> {
        let message = open::<S>(record, &self.commit)?;
        let (set, commit) = match &message.body {
            Body::Commit(c) => (c.set, &c.commit),
            Body::Open(o) => (o.set, &o.commit),
            _ => return Err(Unproven::Malformed),
        };
        if message.header.round != round {
            return Err(Unproven::Unrelated);
        }
        if !justify::commit(&ByRecord::<S>::new(record), round, &set, commit) {
            return Err(Unproven::Certificate);
        }
        Ok(set)
    }

    fn held<S: Scheme>(&self, record: &MarketRecord, round: u64) -> Result<BTreeMap<Listed, Held>, Unproven> {
        let mut held = BTreeMap::new();
        for signed in &self.bundles {
            let message = open::<S>(record, signed)?;
            let Body::Bundle(bundle) = message.body else { return Err(Unproven::Malformed) };
            let listed = Listed { seat: message.header.seat, d: bundle.digest(&message.header) };
            held.insert(listed, Held { header: message.header, bundle, bytes: signed.0.clone() });
            if message.header.round != round {
                return Err(Unproven::Unrelated);
            }
        }
        let same = held.len() == self.bundles.len() && held.keys().eq(self.admitted.iter());
        if same { Ok(held) } else { Err(Unproven::NotCertified) }
    }
}
