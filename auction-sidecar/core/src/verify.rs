//! Verification of awards by anybody who holds the market record, without a network and without trusting anybody.
//!
//! The record is the trust root: keys that come with a certificate prove nothing and are never looked at.

use crate::award::{AwardFile, AwardProof, Certificate};
use crate::crypto::{Curves, Scheme};
use crate::evidence::named_order_hash_by;
use crate::record::MarketRecord;
use crate::wire::{VoteWord, vote_bytes};
use vendue_market::{Award, Digest, Order, Outcome};

/// Which check failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The certificate is of another market.
    #[error("certificate is of another market than the record")]
    CertificateMarket,
    /// The certificate is of another key epoch.
    #[error("certificate is of epoch {found}, the record of epoch {expected}")]
    Epoch {
        /// In the certificate.
        found: u32,
        /// In the record.
        expected: u32,
    },
    /// Too few seats signed.
    #[error("{found} seats signed, {needed} are needed")]
    Quorum {
        /// Signers.
        found: usize,
        /// The quorum.
        needed: usize,
    },
    /// A signer that is not a seat.
    #[error("signer {0} is not a seat of the market")]
    UnknownSigner(u16),
    /// The aggregated vote does not verify.
    #[error("signature of the seats does not verify: root, round or signers were changed")]
    Aggregate,
    /// The outcome is not under the certified root.
    #[error("award is not part of what the certificate certifies")]
    Leaf,
    /// The certificate is of another round than the award.
    #[error("award is of round {award}, the certificate of round {certificate}")]
    AnotherRound {
        /// The round that the award's expiry names.
        award: u64,
        /// The certificate's round.
        certificate: u64,
    },
    /// The award's expiry is not that of the round.
    #[error("award expires at {found}, its round's awards at {expected}")]
    Expiry {
        /// In the award.
        found: u64,
        /// By the record.
        expected: u64,
    },
    /// The award is of another order.
    #[error("award is of another order")]
    OrderMismatch,
    /// The order is of another market.
    #[error("order is of another market than the record")]
    OrderMarket,
    /// The order's key is of no home.
    #[error("order is signed by a key that is of no home in the record")]
    UnknownHome,
    /// The order's signature is not by the user's key.
    #[error("order's signature does not verify")]
    OrderSignature,
    /// The order may not be listed in this round.
    #[error("round {0} is not one of the order's rounds")]
    OrderRound(u64),
    /// The winner or a stand-by does not exist.
    #[error("award names seat {0}, which is not in the record")]
    UnknownSeat(u16),
    /// The order's time was over when the round began.
    #[error("order expired before the round began")]
    OrderExpired,
    /// The body does not come after the round and the body that are shown.
    #[error("order does not name this round and this body before it")]
    NotAfter,
    /// Two bodies differ in more than their rounds.
    #[error("order differs from the body before it in more than its rounds")]
    OtherOrder,
    /// The round that is shown gave the order to somebody.
    #[error("the round gave the order to a seat")]
    WasAwarded,
    /// The body's first round is not an early one.
    #[error("order is to be listed in round {first}; accepted after round {after} and before round {until}")]
    NotEarly {
        /// The body's first round.
        first: u64,
        /// The round that gave it to nobody.
        after: u64,
        /// The next round of the body before it.
        until: u64,
    },
    /// A seat is named twice.
    #[error("award names seat {0} twice")]
    RepeatedSeat(u16),
    /// The price is above the order's ceiling.
    #[error("price is above the order's ceiling")]
    Price,
    /// The order got no award.
    #[error("the round gave the order to nobody: {0}")]
    NotAwarded(String),
}

/// Checks a certificate against the record.
pub fn certificate(record: &MarketRecord, certificate: &Certificate) -> Result<(), VerifyError> {
    certificate_by::<Curves>(record, certificate)
}

/// [`certificate`] with the signatures of a scheme.
pub fn certificate_by<S: Scheme>(
    record: &MarketRecord,
    certificate: &Certificate,
) -> Result<(), VerifyError> {
    if certificate.market != record.market {
        return Err(VerifyError::CertificateMarket);
    }
    if certificate.epoch != record.epoch {
        return Err(VerifyError::Epoch { found: certificate.epoch, expected: record.epoch });
    }
    let signers: Vec<u16> = certificate.quorum.signers.iter().collect();
    let needed = usize::from(record.q());
    if signers.len() < needed {
        return Err(VerifyError::Quorum { found: signers.len(), needed });
    }
    let mut keys = Vec::new();
    for signer in signers {
        keys.push(&record.seat(signer).ok_or(VerifyError::UnknownSigner(signer))?.vote_key);
    }
    let Certificate { market, epoch, round, root, quorum } = certificate;
    let message = vote_bytes(VoteWord::Award, market, *epoch, *round, 0, root);
    if S::verify_aggregate(&keys, &message, &quorum.aggregate) { Ok(()) } else { Err(VerifyError::Aggregate) }
}

/// Checks that an outcome is what a (verified) certificate certifies for an order.
pub fn outcome(
    record: &MarketRecord,
    certificate: &Certificate,
    proof: &AwardProof,
    order: &Order,
) -> Result<(), VerifyError> {
    named_outcome(record, certificate, proof, order, &order.digest())
}

/// [`outcome`] where the order's digest is known.
pub(crate) fn named_outcome(
    record: &MarketRecord,
    certificate: &Certificate,
    proof: &AwardProof,
    order: &Order,
    digest: &Digest,
) -> Result<(), VerifyError> {
    if order.market != record.market {
        return Err(VerifyError::OrderMarket);
    }
    if proof.leaf.order != *digest {
        return Err(VerifyError::OrderMismatch);
    }
    if !order.may_be_listed_in(certificate.round, record.params.order_step()) {
        return Err(VerifyError::OrderRound(certificate.round));
    }
    if order.expires_ms <= record.params.t0(certificate.round) {
        return Err(VerifyError::OrderExpired);
    }
    let leaf = crate::award::Leaf::Order(proof.leaf.clone()).to_bytes();
    if proof.path.root(&leaf) != Some(certificate.root) {
        let award = record.params.round_of_expiry(proof.leaf.expires_ms);
        let another = award.filter(|round| *round != certificate.round);
        return Err(another.map_or(VerifyError::Leaf, |award| VerifyError::AnotherRound {
            award,
            certificate: certificate.round,
        }));
    }
    let expected = record.params.expiry(certificate.round);
    if proof.leaf.expires_ms != expected {
        return Err(VerifyError::Expiry { found: proof.leaf.expires_ms, expected });
    }
    if let Outcome::Award(award) = &proof.leaf.outcome {
        let winner = (award.seat, award.price);
        let mut named = std::collections::BTreeSet::new();
        for (seat, price) in std::iter::once(winner).chain(award.stand_bys.iter().map(|s| (s.seat, s.price)))
        {
            record.seat(seat).ok_or(VerifyError::UnknownSeat(seat))?;
            if !named.insert(seat) {
                return Err(VerifyError::RepeatedSeat(seat));
            }
            if price > order.requirements.max_price {
                return Err(VerifyError::Price);
            }
        }
    }
    Ok(())
}

/// Checks that a (verified) certificate permits `order` to be listed early: it gave the body `before` to nobody, the
/// new body names it, asks for the same and starts before `before` could be listed again. A sealed ceiling is another
/// ciphertext in each body, because it is sealed to the body's first round.
pub fn again(
    record: &MarketRecord,
    order: &Order,
    before: &Order,
    cert: &Certificate,
    proof: &AwardProof,
) -> Result<(), VerifyError> {
    let after = order.after.ok_or(VerifyError::NotAfter)?;
    if (after.order, after.round, after.root) != (before.digest(), cert.round, cert.root) {
        return Err(VerifyError::NotAfter);
    }
    let mut same = Order { first_round: before.first_round, after: before.after, ..order.clone() };
    if let (Some(new), Some(old)) = (&mut same.terms.sealed_ceiling, &before.terms.sealed_ceiling) {
        new.clone_from(old);
    }
    if *before != same {
        return Err(VerifyError::OtherOrder);
    }
    outcome(record, cert, proof, before)?;
    if matches!(proof.leaf.outcome, Outcome::Award(_)) {
        return Err(VerifyError::WasAwarded);
    }
    let (first, until) = (order.first_round, cert.round.saturating_add(record.params.order_step()));
    if !(after.round < first && first < until) {
        return Err(VerifyError::NotEarly { first, after: after.round, until });
    }
    Ok(())
}

/// Checks that an order is signed by a home of the record, and says which.
pub fn order(record: &MarketRecord, order: &Order, signature: &[u8; 65]) -> Result<u16, VerifyError> {
    order_by::<Curves>(record, order, signature)
}

/// [`order`] with the signatures of a scheme.
pub fn order_by<S: Scheme>(
    record: &MarketRecord,
    order: &Order,
    signature: &[u8; 65],
) -> Result<u16, VerifyError> {
    named_order_by::<S>(record, order, &order.digest(), signature)
}

/// [`order_by`] where the order's digest is known.
pub(crate) fn named_order_by<S: Scheme>(
    record: &MarketRecord,
    order: &Order,
    digest: &Digest,
    signature: &[u8; 65],
) -> Result<u16, VerifyError> {
    if order.market != record.market {
        return Err(VerifyError::OrderMarket);
    }
    let home = record.home_of_key(&order.user_key).ok_or(VerifyError::UnknownHome)?;
    let good =
        S::verify_signature(&named_order_hash_by::<S>(&record.market, digest), signature, &order.user_key);
    if good { Ok(home) } else { Err(VerifyError::OrderSignature) }
}

/// Everything about an award: certificate, order, outcome. The record must have been checked before.
///
/// Whether the award is still binding is another question: it is until `expires_ms` of its leaf, and for ever once
/// the workload was handed over.
pub fn award(record: &MarketRecord, cert: &Certificate, file: &AwardFile) -> Result<Award, VerifyError> {
    certificate(record, cert)?;
    order(record, &file.order, &file.order_signature)?;
    outcome(record, cert, &file.proof, &file.order)?;
    match &file.proof.leaf.outcome {
        Outcome::Award(award) => Ok(award.clone()),
        Outcome::None(histogram) => Err(VerifyError::NotAwarded(histogram.to_string())),
    }
}

#[cfg(test)]
mod tests;
