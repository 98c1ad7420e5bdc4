//! A seat gets its lost share back from q others, none of whom shows its own.
//!
//! The lost share is a weighted sum of the helpers' shares (Lagrange). Each helper splits its weighted share into
//! random parts that add up to it, one for each helper ([`Split`]); each helper adds the parts that it was given and
//! sends the sum to the seat ([`Part`]); the seat adds the sums. As in Herzberg et al. 1995, what the seat receives is
//! blinded by every honest helper: with fewer than q seats on its side it learns its own share and nothing else. All
//! parts are committed to, so a helper that cheats is named; the recovery is then begun again, with another attempt
//! number and without that helper.
//!
//! Inputs: the setup and keys of the shares, q helpers, their shares, bytes. Outputs: bytes, the share. Invariant: a
//! share is given out only when it belongs to the seat's verification key, and the group key stays as it is.

use super::envelope::{self, DealKey, ENVELOPE};
use super::key_set::KeySet;
use super::key_set::read_points;
use super::poly::DealerSeed;
use super::{DkgError, Members, Setup, VERSION, Word, signed};
use crate::raw::{G1, G1Sum, Scalar, Weight, WeightBits, lagrange};
use crate::{CryptoError, DKG_DOMAIN, SealShare, VoteKey};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Version, recovery and seat, which every message begins with.
const HEAD: usize = 1 + 32 + 2;

/// The beginning of a message.
fn head(session: &[u8; 32], seat: u16) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend(session);
    out.extend(seat.to_be_bytes());
    out
}

/// Checks the beginning of a message and gives the seat and the rest.
fn read_head<'b>(
    what: &'static str,
    session: &[u8; 32],
    bytes: &'b [u8],
) -> Result<(u16, &'b [u8]), DkgError> {
    let short = DkgError::Length { what, found: bytes.len(), expected: HEAD };
    let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(short)?;
    let [version, middle @ .., high, low] = head;
    if *version != VERSION || middle != session {
        return Err(DkgError::Foreign(what));
    }
    Ok((u16::from_be_bytes([*high, *low]), rest))
}

/// One recovery: whose share, by whom.
pub struct Recovery<'a> {
    members: &'a Members,
    keys: &'a KeySet,
    target: u16,
    /// Helpers in ascending order, each with the weight of its share.
    helpers: Vec<(u16, Weight)>,
    digest: [u8; 32],
}

/// A helper's weighted share in parts, committed to and encrypted; verified.
pub struct Split {
    helper: u16,
    points: Vec<G1>,
    envelopes: Vec<[u8; ENVELOPE]>,
    digest: [u8; 32],
}

/// A helper's sum of the parts that it was given, encrypted to the seat; its signature is verified.
pub struct Part {
    helper: u16,
    envelope: [u8; ENVELOPE],
}

impl<'a> Recovery<'a> {
    /// The recovery of `target`'s share by `helpers`, exactly q other seats. `setup` and `keys` are those
    /// that the shares were made with, `members` the seats.
    pub fn new(
        setup: &Setup,
        members: &'a Members,
        keys: &'a KeySet,
        attempt: u32,
        target: u16,
        helpers: &[u16],
    ) -> Result<Self, DkgError> {
        setup.check_seat(target)?;
        if members.seats() != setup.seats() {
            return Err(DkgError::Seats(usize::from(members.seats())));
        }
        let mut sorted = BTreeSet::new();
        for helper in helpers {
            setup.check_seat(*helper)?;
            if *helper == target || !sorted.insert(*helper) {
                return Err(DkgError::Duplicate(*helper));
            }
        }
        let (found, needed) = (sorted.len(), usize::from(setup.quorum()));
        if keys.seats() != setup.seats() || found > needed {
            return Err(DkgError::Seats(found));
        }
        if found < needed {
            return Err(DkgError::TooFewDealings { found, needed });
        }
        let mut hash = Sha256::new().chain_update(b"VENDUE-V1-DKG-RECOVERY").chain_update(setup.digest());
        hash.update(members.digest());
        hash.update(keys.digest());
        hash.update(attempt.to_be_bytes());
        hash.update(target.to_be_bytes());
        sorted.iter().for_each(|helper| hash.update(helper.to_be_bytes()));
        let sorted: Vec<u16> = sorted.into_iter().collect();
        let weights = lagrange(&sorted, target + 1);
        let helpers = sorted.into_iter().zip(weights).collect();
        Ok(Self { members, keys, target, helpers, digest: hash.finalize().into() })
    }

    /// What every message of the recovery binds.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    fn position(&self, helper: u16) -> Result<usize, DkgError> {
        self.helpers.iter().position(|(seat, _)| *seat == helper).ok_or(DkgError::UnknownSeat(helper))
    }

    /// What the envelope from one helper to a seat binds.
    fn context(&self, from: u16, to: u16, splits: &[u8; 32]) -> Vec<u8> {
        [self.digest.as_slice(), &from.to_be_bytes(), &to.to_be_bytes(), splits].concat()
    }

    /// A helper's split, for all helpers and the seat: version, recovery 32, helper u16, for each helper in order the
    /// part's commitment (48), then for each its envelope (96), signature 48.
    pub fn split(
        &self,
        helper: u16,
        share: &SealShare,
        seed: &DealerSeed,
        vote: &VoteKey,
    ) -> Result<Vec<u8>, DkgError> {
        self.members.check_owner(helper, vote)?;
        if !self.keys.fits(helper, share) {
            return Err(DkgError::NotOurs("share"));
        }
        let parts = self.parts(helper, share, seed)?;
        let mut body = head(&self.digest, helper);
        for part in &parts {
            body.extend(G1::generator_mul(part).ok_or(CryptoError::Generation)?.to_bytes());
        }
        for ((to, _), part) in self.helpers.iter().zip(&parts) {
            let ephemeral = seed.scalar(b"SPLIT-EPHEMERAL", &self.digest, helper, *to)?;
            let context = self.context(helper, *to, &[0; 32]);
            body.extend(envelope::seal(self.members.deal_key(*to)?, &ephemeral, &context, part)?);
        }
        let message = signed(Word::Split, &self.digest, helper, &[&Sha256::digest(&body)]);
        body.extend(vote.sign_in(DKG_DOMAIN, &message));
        Ok(body)
    }

    /// Random parts that add up to the helper's weighted share: all but the last from the seed.
    fn parts(&self, helper: u16, share: &SealShare, seed: &DealerSeed) -> Result<Vec<Scalar>, DkgError> {
        let (_, weight) = self.helpers.get(self.position(helper)?).ok_or(DkgError::UnknownSeat(helper))?;
        let zero = CryptoError::Generation;
        // The first helper's part is what remains. Room for all from the start, so that no secret is left behind where
        // the list was before.
        let mut parts = Vec::with_capacity(self.helpers.len());
        parts.push(weight.to_scalar().and_then(|w| w.times(&share.0)).ok_or(zero.clone())?);
        for (to, _) in self.helpers.iter().skip(1) {
            let part = seed.scalar(b"SPLIT", &self.digest, helper, *to)?;
            if let Some(rest) = parts.first_mut() {
                *rest = rest.minus(&part).ok_or(zero.clone())?;
            }
            parts.push(part);
        }
        Ok(parts)
    }

    /// Reads a split: its parts add up, in the exponent, to the helper's weighted verification key.
    pub fn read_split(&self, bytes: &[u8]) -> Result<Split, DkgError> {
        let what = "split";
        let points_len = self.helpers.len() * 48;
        let expected = HEAD + points_len + self.helpers.len() * ENVELOPE + 48;
        let length = DkgError::Length { what, found: bytes.len(), expected };
        if bytes.len() != expected {
            return Err(length);
        }
        let (helper, rest) = read_head(what, &self.digest, bytes)?;
        let (_, weight) = self.helpers.get(self.position(helper)?).ok_or(DkgError::UnknownSeat(helper))?;
        let (body, signature) = bytes.split_last_chunk::<48>().ok_or(length.clone())?;
        let message = signed(Word::Split, &self.digest, helper, &[&Sha256::digest(body)]);
        self.members.verify(what, helper, &message, signature)?;
        let (points, rest) = rest.split_at_checked(points_len).ok_or(length)?;
        let points = read_points(what, self.helpers.len(), points)?;
        let total = points.iter().fold(G1Sum::identity(), |sum, p| sum.plus(&p.to_sum()));
        let key =
            self.keys.share_key(helper).and_then(G1::from_bytes).ok_or(DkgError::UnknownSeat(helper))?;
        if !total.equals(&G1Sum::weighted(&[(*weight, key)], WeightBits::Scalar)) {
            return Err(DkgError::Split(helper));
        }
        let envelopes = rest.as_chunks::<ENVELOPE>().0.iter().take(self.helpers.len()).copied().collect();
        Ok(Split { helper, points, envelopes, digest: Sha256::digest(bytes).into() })
    }

    /// The splits in order of helpers, and a digest of all of them.
    fn complete<'s>(&self, splits: &'s [Split]) -> Result<(Vec<&'s Split>, [u8; 32]), DkgError> {
        let mut sorted = BTreeMap::new();
        for split in splits {
            self.position(split.helper)?;
            if sorted.insert(split.helper, split).is_some() {
                return Err(DkgError::Duplicate(split.helper));
            }
        }
        let (found, needed) = (sorted.len(), self.helpers.len());
        if found < needed {
            return Err(DkgError::TooFewDealings { found, needed });
        }
        let mut hash = Sha256::new().chain_update(b"VENDUE-V1-DKG-SPLITS");
        sorted.values().for_each(|split| hash.update(split.digest));
        Ok((sorted.into_values().collect(), hash.finalize().into()))
    }

    /// A helper's sum of the parts given to it, for the seat: version, recovery 32, helper u16, digest of the splits 32,
    /// envelope 96, signature 48.
    pub fn part(
        &self,
        helper: u16,
        splits: &[Split],
        deal: &DealKey,
        seed: &DealerSeed,
        vote: &VoteKey,
    ) -> Result<Vec<u8>, DkgError> {
        self.members.check_owner(helper, vote)?;
        let column = self.position(helper)?;
        let (splits, digest) = self.complete(splits)?;
        let mut parts = Vec::with_capacity(splits.len());
        for split in splits {
            let wrong = DkgError::Share { from: split.helper, to: helper };
            let (Some(point), Some(sealed)) = (split.points.get(column), split.envelopes.get(column)) else {
                return Err(wrong);
            };
            let part = envelope::open(deal, &self.context(split.helper, helper, &[0; 32]), sealed)
                .filter(|part| G1::generator_mul(part).is_some_and(|own| own.to_bytes() == point.to_bytes()));
            parts.push(part.ok_or(wrong)?);
        }
        let total = Scalar::sum(&parts.iter().collect::<Vec<_>>()).ok_or(CryptoError::Generation)?;
        let ephemeral = seed.scalar(b"PART-EPHEMERAL", &digest, helper, self.target)?;
        let context = self.context(helper, self.target, &digest);
        let sealed = envelope::seal(self.members.deal_key(self.target)?, &ephemeral, &context, &total)?;
        let mut body = head(&self.digest, helper);
        body.extend(digest);
        body.extend(sealed);
        let message = signed(Word::Part, &self.digest, helper, &[&digest, &sealed]);
        body.extend(vote.sign_in(DKG_DOMAIN, &message));
        Ok(body)
    }

    /// Reads a part that was made from these splits.
    pub fn read_part(&self, splits: &[Split], bytes: &[u8]) -> Result<Part, DkgError> {
        let what = "part";
        let (_, expected_digest) = self.complete(splits)?;
        let expected = HEAD + 32 + ENVELOPE + 48;
        let length = DkgError::Length { what, found: bytes.len(), expected };
        if bytes.len() != expected {
            return Err(length);
        }
        let (helper, rest) = read_head(what, &self.digest, bytes)?;
        self.position(helper)?;
        let (rest, signature) = rest.split_last_chunk::<48>().ok_or(length.clone())?;
        let (digest, sealed) = rest.split_first_chunk::<32>().ok_or(length.clone())?;
        let envelope: [u8; ENVELOPE] = sealed.try_into().map_err(|_| length)?;
        self.members.verify(
            what,
            helper,
            &signed(Word::Part, &self.digest, helper, &[digest, sealed]),
            signature,
        )?;
        if *digest != expected_digest {
            return Err(DkgError::Foreign(what));
        }
        Ok(Part { helper, envelope })
    }

    /// The seat's share, from all splits and all parts.
    pub fn finish(&self, splits: &[Split], parts: &[Part], deal: &DealKey) -> Result<SealShare, DkgError> {
        let (splits, digest) = self.complete(splits)?;
        let mut sums = BTreeMap::new();
        for part in parts {
            let column = self.position(part.helper)?;
            let points = splits.iter().filter_map(|split| split.points.get(column));
            let expected = points.fold(G1Sum::identity(), |sum, p| sum.plus(&p.to_sum()));
            let context = self.context(part.helper, self.target, &digest);
            let opened = envelope::open(deal, &context, &part.envelope)
                .filter(|s| G1::generator_mul(s).is_some_and(|own| own.to_sum().equals(&expected)))
                .ok_or(DkgError::Share { from: part.helper, to: self.target })?;
            if sums.insert(part.helper, opened).is_some() {
                return Err(DkgError::Duplicate(part.helper));
            }
        }
        let (found, needed) = (sums.len(), self.helpers.len());
        if found < needed {
            return Err(DkgError::TooFewDealings { found, needed });
        }
        let share =
            Scalar::sum(&sums.values().collect::<Vec<_>>()).map(SealShare).ok_or(CryptoError::Generation)?;
        if self.keys.fits(self.target, &share) { Ok(share) } else { Err(DkgError::NotOurs("share")) }
    }
}
