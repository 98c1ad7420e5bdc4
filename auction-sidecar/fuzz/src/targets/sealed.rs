//! Points, shares, votes and sealed payloads. Signatures are unique here, so whatever verifies is what was signed.

use super::Cost::{Bytes, Pairing};
use super::{Target, target};
use crate::bounds::bounded;
use crate::fixture::{Sealing, sealing};
use blst::{min_pk, min_sig};
use vendue_sealed_bid::{
    CryptoError, MultiVote, Sealed, SignerSet, aggregate_votes, bad_shares, check_seal_key, check_vote_key,
    combine, open, verify_combined, verify_share, verify_vote,
};

pub(super) const TARGETS: &[Target] = &[
    target("seal_key", Pairing, seal_key),
    target("vote_key", Pairing, vote_key),
    target("vote", Pairing, vote),
    target("share", Pairing, share),
    target("shares", Pairing, shares),
    target("combined", Pairing, combined),
    target("sealed", Pairing, sealed),
    target("signer_set", Bytes, signer_set),
    target("multi_vote", Bytes, multi_vote),
    target("multi_vote_verify", Pairing, multi_vote_verify),
];

/// A point that is accepted is one that blst accepts and writes in the same way.
fn seal_key(bytes: &[u8]) -> bool {
    let Ok(key) = <[u8; 48]>::try_from(bytes) else { return false };
    let point = min_pk::PublicKey::key_validate(&key);
    assert_eq!(check_seal_key(&key).is_ok(), point.is_ok());
    point.map(|p| assert_eq!(p.to_bytes(), key, "a point has two encodings")).is_ok()
}

/// A vote key and its proof: without its secret nobody proves another key.
fn vote_key(bytes: &[u8]) -> bool {
    let Some((key, proof)) = bytes.split_first_chunk::<96>() else { return false };
    let Ok(proof) = <[u8; 48]>::try_from(proof) else { return false };
    let Sealing { vote_claims, contexts, .. } = sealing();
    let accepted = check_vote_key(key, &proof, &contexts[0]);
    let point = min_sig::PublicKey::key_validate(key);
    assert_eq!(accepted == Err(CryptoError::Point("vote key")), point.is_err());
    assert!(accepted.is_err() || (*key, proof) == vote_claims[0], "a forged proof of possession");
    accepted.is_ok()
}

fn vote(bytes: &[u8]) -> bool {
    let Ok(vote) = <[u8; 48]>::try_from(bytes) else { return false };
    if let Some(aggregate) = aggregate_votes(&[vote]) {
        assert_eq!(aggregate, vote, "a vote has two encodings");
    }
    let Sealing { vote_claims, message, votes, .. } = sealing();
    let accepted = verify_vote(&vote_claims[0].0, message, &vote);
    assert_eq!(accepted, vote == votes[0], "a forged vote");
    accepted
}

fn share(bytes: &[u8]) -> bool {
    let Ok(share) = <[u8; 96]>::try_from(bytes) else { return false };
    let Sealing { id, deal, shares, .. } = sealing();
    let accepted = verify_share(id, &deal.verification_keys[0], &share);
    assert_eq!(accepted, share == shares[0], "a forged share");
    accepted
}

/// Seats with shares: whichever make a combination make the same, and bad ones are named.
fn shares(bytes: &[u8]) -> bool {
    let items = bytes.chunks_exact(97).take(8);
    let list: Vec<(u16, [u8; 96])> =
        items.filter_map(|c| Some((u16::from(*c.first()?), c.get(1..)?.try_into().ok()?))).collect();
    let Sealing { id, deal, shares, combined, .. } = sealing();
    let key = |seat: u16| deal.verification_keys.get(usize::from(seat));
    let bad = bad_shares(id, &list, key);
    for (seat, share) in &list {
        let first = list.iter().find(|(s, _)| s == seat).map(|(_, share)| share) == Some(share);
        let good = shares.get(usize::from(*seat)) == Some(share);
        assert!(!first || good != bad.contains(seat), "seat {seat} is judged wrongly");
    }
    match combine(id, &deal.seal_key, 3, &list, key) {
        Ok(found) => {
            assert_eq!(&found, combined, "two combinations of one round");
            true
        }
        Err(_) => false,
    }
}

fn combined(bytes: &[u8]) -> bool {
    let Ok(bytes) = <[u8; 96]>::try_from(bytes) else { return false };
    let Sealing { id, deal, combined, .. } = sealing();
    let accepted = verify_combined(id, &deal.seal_key, &bytes);
    assert_eq!(accepted.is_some(), combined.to_bytes() == bytes, "a forged combination");
    accepted.is_some()
}

/// A sealed payload opens to what was sealed, and does not open when anything of it is changed.
fn sealed(bytes: &[u8]) -> bool {
    let Some((u, rest)) = bytes.split_first_chunk::<48>() else { return false };
    let Some((v, payload)) = rest.split_first_chunk::<32>() else { return false };
    let changed = Sealed { u: *u, v: *v, payload: payload.to_vec() };
    let Sealing { sealed, header, plain, combined, .. } = sealing();
    let opened = open(combined, header, &changed);
    assert_eq!(opened.as_ref(), (changed == *sealed).then_some(plain), "a changed payload opens");
    opened.is_some()
}

fn size(selector: u8) -> u16 {
    super::SIZES[usize::from(selector) % super::SIZES.len()]
}

fn signer_set(bytes: &[u8]) -> bool {
    let Some((selector, bitmap)) = bytes.split_first() else { return false };
    let n = size(*selector);
    let Ok(set) = bounded(bytes.len(), n, || SignerSet::from_bytes(n, bitmap)) else { return false };
    assert_eq!(set.as_bytes(), bitmap);
    assert_eq!(SignerSet::from_seats(n, set.iter()), Ok(set.clone()));
    assert_eq!(set.len() + set.missing().count(), usize::from(n));
    true
}

fn multi_vote(bytes: &[u8]) -> bool {
    let Some((selector, rest)) = bytes.split_first() else { return false };
    let n = size(*selector);
    let Ok(vote) = bounded(bytes.len(), n, || MultiVote::from_bytes(n, rest)) else { return false };
    assert_eq!(vote.to_bytes(), rest);
    true
}

/// What counts as the vote of a quorum is the sum of the votes of exactly these seats.
fn multi_vote_verify(bytes: &[u8]) -> bool {
    let Ok(multi) = MultiVote::from_bytes(4, bytes) else { return false };
    let Sealing { vote_keys, message, votes, .. } = sealing();
    if multi.verify(vote_keys, 3, message).is_err() {
        return false;
    }
    let cast: Vec<_> = multi.signers.iter().filter_map(|s| votes.get(usize::from(s)).copied()).collect();
    assert!(cast.len() >= 3 && aggregate_votes(&cast) == Some(multi.aggregate), "a forged quorum");
    true
}
