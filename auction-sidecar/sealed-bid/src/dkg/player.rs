//! The player's part: dealings in, acknowledgements out, and the outcome of an agreed set of contributions.
//!
//! Inputs: announcements, dealings, contributions. Outputs: acknowledgements, the public keys, the seat's share. Invariants:
//! a player acknowledges one commitment per dealer, and only one that was announced before the player's own seat dealt, and
//! that it holds a good value of; the outcome depends on the set of contributions only. The caller stores the dealings
//! before it acknowledges them: taking them in again after a restart restores the player and gives the same
//! acknowledgements.

use super::contribution::{Contribution, NONE, wanted};
use super::dealing::{Dealing, context};
use super::envelope::{self, DealKey};
use super::key_set::KeySet;
use super::poly::derive;
use super::reveals::{self, Revealed};
use super::{DkgError, Purpose, Setup};
use crate::raw::{G1, G1Sum, Scalar, Weight, WeightBits, to_points};
use crate::{CryptoError, SealShare, SignerSet};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Dealings by dealer and digest of the commitment.
pub type Dealings = BTreeMap<(u16, [u8; 32]), Dealing>;

/// What an agreed set of contributions makes, as everybody sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The public keys.
    pub keys: KeySet,
    /// Whose dealings count, with the digest of their commitment.
    pub dealers: BTreeMap<u16, [u8; 32]>,
    /// Seats whose value every counted dealing reveals: their share is public, and as many fewer seats can open a round
    /// without the others. At most n - q.
    pub public: SignerSet,
}

/// What an agreed set of contributions makes. Anybody can compute it from them and the dealings that they want.
///
/// A dealer counts when it accounts for every player: the player acknowledges its commitment, or the dealer reveals the
/// player's value and it lies on the commitment.
pub fn outcome(
    setup: &Setup,
    contributions: &BTreeMap<u16, Contribution>,
    dealings: &Dealings,
) -> Result<Outcome, DkgError> {
    let mut sums = vec![G1Sum::identity(); usize::from(setup.quorum())];
    let mut public: BTreeSet<u16> = (0..setup.seats()).collect();
    let mut dealers = BTreeMap::new();
    let wanted = wanted(setup, contributions);
    let mut revealed = Vec::with_capacity(wanted.len());
    for (dealer, digest) in &wanted {
        let dealing = dealings.get(&(*dealer, *digest)).ok_or(DkgError::Missing(*dealer))?;
        let own = contributions.get(dealer).ok_or(DkgError::Missing(*dealer))?;
        revealed.push(Revealed { dealer: *dealer, commitment: &dealing.commitment, values: &own.reveals });
    }
    let good = reveals::good(setup, &revealed)?;
    for Revealed { dealer, commitment, values } in revealed.iter().filter(|r| good.contains(&r.dealer)) {
        commitment.add_to(&mut sums);
        public.retain(|seat| values.contains_key(seat));
        dealers.insert(*dealer, *commitment.digest());
    }
    let (found, needed) = (dealers.len(), usize::from(setup.quorum()));
    if found < needed {
        return Err(DkgError::TooFewDealings { found, needed });
    }
    let mut sums: Vec<G1Sum> = sums.iter().map(G1Sum::clear).collect();
    if let Purpose::Refresh(keys) = setup.purpose() {
        keys.add_to(&mut sums);
    }
    let keys = KeySet::from_sums(&sums, setup.seats())?;
    Ok(Outcome { keys, dealers, public: SignerSet::from_seats(setup.seats(), public)? })
}

/// A value that this player was sent, and whether it was found good.
struct Held {
    digest: [u8; 32],
    value: Scalar,
    good: bool,
}

/// A seat as player. No `Debug`; values are wiped when dropped.
pub struct Player {
    setup: Arc<Setup>,
    seat: u16,
    own: [u8; 48],
    /// The commitment that a dealer has announced.
    announced: BTreeMap<u16, [u8; 32]>,
    has_dealt: bool,
    dealings: Dealings,
    held: BTreeMap<u16, Held>,
}

impl Player {
    /// The player of a seat.
    pub fn new(setup: &Arc<Setup>, seat: u16, deal: &DealKey) -> Result<Self, DkgError> {
        setup.check_seat(seat)?;
        let own = deal.public_key()?;
        let (dealings, held, announced) = (Dealings::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { setup: setup.clone(), seat, own, announced, has_dealt: false, dealings, held })
    }

    /// Takes the digest of the commitment that a dealer is going to deal. The first of a dealer counts, and none that comes
    /// after this seat has dealt; whether it does.
    pub fn announce(&mut self, dealer: u16, commitment: [u8; 32]) -> bool {
        let counts = !self.has_dealt && !self.announced.contains_key(&dealer);
        if counts {
            self.announced.insert(dealer, commitment);
        }
        counts
    }

    /// This seat's own dealing is about to be sent. Whoever commits from now on may know it.
    pub fn deals(&mut self) {
        self.has_dealt = true;
    }

    /// Takes a dealing and opens this seat's envelope. A dealing whose envelope does not open is kept, for others may
    /// acknowledge it, but not acknowledged; then the dealer has to reveal the value.
    pub fn receive(&mut self, dealing: Dealing, deal: &DealKey) -> Result<(), DkgError> {
        let (dealer, digest) = (dealing.dealer, dealing.digest());
        if dealing.setup != self.setup.digest() {
            return Err(DkgError::Foreign("dealing"));
        }
        if self.dealings.contains_key(&(dealer, digest)) {
            return Err(DkgError::Duplicate(dealer));
        }
        let equivocates = self.dealings.range((dealer, [0; 32])..=(dealer, [0xff; 32])).next().is_some();
        let context = context(&dealing.setup, dealer, self.seat, &digest);
        let sealed = dealing.envelopes.get(usize::from(self.seat)).ok_or(DkgError::UnknownSeat(self.seat))?;
        let value = envelope::open_shared(deal, &self.own, &dealing.ephemeral, &context, sealed);
        self.dealings.insert((dealer, digest), dealing);
        if equivocates {
            return Err(DkgError::Equivocation(dealer));
        }
        let value = value.ok_or(DkgError::Share { from: dealer, to: self.seat })?;
        self.held.insert(dealer, Held { digest, value, good: false });
        Ok(())
    }

    /// Checks all values that were not checked yet, and forgets those that are wrong; gives their dealers. All at once
    /// with weights that nobody else knows (small exponents test); one by one when that fails.
    pub fn check(&mut self, deal: &DealKey) -> Result<Vec<u16>, DkgError> {
        let open: Vec<u16> = self.held.iter().filter(|(_, h)| !h.good).map(|(dealer, _)| *dealer).collect();
        if open.is_empty() {
            return Ok(vec![]);
        }
        let expected: BTreeMap<u16, G1Sum> = open
            .iter()
            .filter_map(|dealer| {
                let held = self.held.get(dealer)?;
                let dealing = self.dealings.get(&(*dealer, held.digest))?;
                Some((*dealer, dealing.commitment.evaluate(self.seat).clear()))
            })
            .collect();
        let mut bad = vec![];
        if !self.all_good(&expected, deal)? {
            let cofactor = Scalar::cofactor().ok_or(CryptoError::Generation)?;
            for (dealer, expected) in &expected {
                let own = self.held.get(dealer).and_then(|held| held.value.times(&cofactor));
                let own = own.and_then(|value| G1::generator_mul(&value));
                if !own.is_some_and(|own| own.to_sum().equals(expected)) {
                    bad.push(*dealer);
                }
            }
        }
        self.held.retain(|dealer, _| !bad.contains(dealer));
        self.held.values_mut().for_each(|held| held.good = true);
        Ok(bad)
    }

    /// Whether the weighted sum of the values is the weighted sum of what is expected.
    fn all_good(&self, expected: &BTreeMap<u16, G1Sum>, deal: &DealKey) -> Result<bool, DkgError> {
        let mut batch = Sha256::new().chain_update(self.setup.digest());
        for dealer in expected.keys() {
            batch.update(dealer.to_be_bytes());
            batch.update(self.held.get(dealer).map_or(NONE, |held| held.digest));
        }
        let secret = derive(b"VENDUE-V1-DKG-BATCH", deal.to_bytes().as_slice(), &[&batch.finalize()])?;
        let secret = secret.to_bendian();
        let sums: Vec<G1Sum> = expected.values().copied().collect();
        // A commitment that is zero here has no value, for zero is none.
        let Some(points) = to_points(&sums) else { return Ok(false) };
        let (mut weighted, mut values) = (vec![], Vec::with_capacity(expected.len()));
        for (dealer, point) in expected.keys().zip(points) {
            let hash = Sha256::new().chain_update(secret.as_slice()).chain_update(dealer.to_be_bytes());
            let weight = Weight::from_hash(&hash.finalize().into());
            let Some(held) = self.held.get(dealer) else { return Ok(false) };
            let value = weight.to_scalar().and_then(|weight| weight.times(&held.value));
            values.push(value.ok_or(CryptoError::Generation)?);
            weighted.push((weight, point));
        }
        let total = Scalar::sum(&values.iter().collect::<Vec<_>>()).ok_or(CryptoError::Generation)?;
        let total = Scalar::cofactor().and_then(|h| h.times(&total)).ok_or(CryptoError::Generation)?;
        let own = G1::generator_mul(&total).ok_or(CryptoError::Generation)?;
        Ok(own.to_sum().equals(&G1Sum::weighted(&weighted, WeightBits::Batch)))
    }

    /// By dealer, the digest of the commitment that was announced in time and that this player holds a good value of; zeros
    /// for none.
    pub fn acks(&self) -> Vec<[u8; 32]> {
        let is_due =
            |dealer: u16, held: &Held| held.good && self.announced.get(&dealer) == Some(&held.digest);
        let held = |dealer: u16| self.held.get(&dealer).filter(|held| is_due(dealer, held));
        let ack = |dealer| held(dealer).map_or(NONE, |held| held.digest);
        (0..self.setup.seats()).map(ack).collect()
    }

    /// The dealings that came in.
    pub fn dealings(&self) -> &Dealings {
        &self.dealings
    }

    /// What an agreed set of contributions makes, and this seat's share of it. For a refresh `old` is the share that is
    /// renewed; it is to be wiped once a quorum has its new ones.
    pub fn finish(
        &self,
        contributions: &BTreeMap<u16, Contribution>,
        old: Option<&SealShare>,
    ) -> Result<(Outcome, SealShare), DkgError> {
        self.check_old(old)?;
        let outcome = outcome(&self.setup, contributions, &self.dealings)?;
        let share = self.share(&outcome, contributions, old)?;
        Ok((outcome, share))
    }

    /// Whether there is a share to renew exactly where one is to be renewed, and it is this seat's.
    fn check_old(&self, old: Option<&SealShare>) -> Result<(), DkgError> {
        match (self.setup.purpose(), old) {
            (Purpose::Key, Some(_)) => Err(DkgError::Foreign("setup of a new key")),
            (Purpose::Refresh(_), None) => Err(DkgError::Foreign("setup of a refresh")),
            (Purpose::Refresh(keys), Some(old)) if !keys.fits(self.seat, old) => {
                Err(DkgError::NotOurs("old share"))
            }
            _ => Ok(()),
        }
    }

    /// This seat's share of an outcome of these contributions.
    pub fn share(
        &self,
        outcome: &Outcome,
        contributions: &BTreeMap<u16, Contribution>,
        old: Option<&SealShare>,
    ) -> Result<SealShare, DkgError> {
        self.check_old(old)?;
        let mut parts = Vec::with_capacity(outcome.dealers.len());
        for (dealer, digest) in &outcome.dealers {
            let held = self.held.get(dealer).filter(|held| held.good && held.digest == *digest);
            let revealed = contributions.get(dealer).and_then(|own| own.reveals.get(&self.seat));
            let part = match (held, revealed) {
                (Some(held), _) => held.value.copy(),
                (None, Some(value)) => Scalar::from_bendian(value),
                (None, None) => None,
            };
            parts.push(part.ok_or(DkgError::LostShare(*dealer))?);
        }
        let total = Scalar::sum(&parts.iter().collect::<Vec<_>>()).ok_or(CryptoError::Generation)?;
        let mut total = Scalar::cofactor().and_then(|h| h.times(&total)).ok_or(CryptoError::Generation)?;
        if let Some(old) = old {
            total = total.plus(&old.0).ok_or(CryptoError::Generation)?;
        }
        let share = SealShare(total);
        if outcome.keys.fits(self.seat, &share) { Ok(share) } else { Err(DkgError::NotOurs("share")) }
    }
}
