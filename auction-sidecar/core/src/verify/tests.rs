use super::*;
use crate::award::{AwardTable, CertificateFile, Leaf, OrderLeaf};
use crate::evidence::{EvidenceKey, order_hash};
use crate::keys::{DealSpec, Dealt, MemberSpec, deal};
use crate::params::Params;
use crate::wire::{Quorum, Signers};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use vendue_market::{Histogram, Price, SealedCeiling};

struct Case {
    dealt: Dealt,
    record: MarketRecord,
    cert: Certificate,
    file: AwardFile,
}

fn mk_dealt(seed: u64) -> Dealt {
    let member = |name: String| MemberSpec { peer_id: name.clone(), name, addresses: vec![] };
    let spec = DealSpec {
        name: "m".into(),
        params: Params { delay_ms: 100, period_ms: 600, genesis_ms: 0, handover_ms: 5000 },
        seats: (0..4).map(|i| member(format!("p{i}"))).collect(),
        homes: vec![member("home".into())],
    };
    deal(&spec, &mut ChaCha20Rng::seed_from_u64(seed)).unwrap()
}

/// Signs a root by the given seats.
fn certify(dealt: &Dealt, round: u64, root: [u8; 32], seats: &[u16]) -> Certificate {
    let record = &dealt.record.record;
    let message = vote_bytes(VoteWord::Award, &record.market, record.epoch, round, 0, &root);
    let votes: Vec<_> = seats.iter().map(|s| dealt.seats[usize::from(*s)].vote.sign(&message)).collect();
    let aggregate = vendue_sealed_bid::aggregate_votes(&votes).unwrap();
    let quorum = Quorum { signers: Signers::new(record.n(), seats.iter().copied()), aggregate };
    Certificate { market: record.market, epoch: record.epoch, round, root, quorum }
}

/// A true award of the order in round 7, with a second order beside it.
fn mk_case(change: impl FnOnce(&mut OrderLeaf)) -> Case {
    let dealt = mk_dealt(1);
    let record = dealt.record.record.clone();
    let mut order = crate::wire::tests::mk_order();
    order.market = record.market;
    order.user_key = dealt.homes[0].user.public_key();
    let order_signature = dealt.homes[0].user.sign(&order_hash(&record.market, &order));
    let price = Price::from_micros(2_000_000).unwrap();
    let mut leaf = OrderLeaf {
        order: order.digest(),
        outcome: Outcome::Award(Award { seat: 2, price, spec: 0, devices: None, stand_bys: vec![] }),
        bundle: [7; 32],
        expires_ms: record.params.expiry(7),
    };
    change(&mut leaf);
    let other = OrderLeaf { order: [0; 32], ..leaf.clone() };
    let digest = leaf.order;
    let leaves = vec![Leaf::Set([1; 32]), Leaf::Beacon([2; 32]), Leaf::Order(other), Leaf::Order(leaf)];
    let table = AwardTable { leaves };
    let cert = certify(&dealt, 7, table.root(), &[0, 1, 3]);
    let file = AwardFile { order, order_signature, proof: table.proof(&digest).unwrap() };
    Case { dealt, record, cert, file }
}

fn mk_true() -> Case {
    mk_case(|_| {})
}

#[test]
fn a_true_award_verifies_also_through_its_files() {
    let c = mk_true();
    assert_eq!(award(&c.record, &c.cert, &c.file).unwrap().seat, 2);
    let cert = serde_json::to_string(&CertificateFile::from(&c.cert)).unwrap();
    let cert: CertificateFile = serde_json::from_str(&cert).unwrap();
    let file: AwardFile = serde_json::from_str(&serde_json::to_string(&c.file).unwrap()).unwrap();
    assert_eq!((&cert.certificate(4).unwrap(), &file), (&c.cert, &c.file));
    assert!(award(&c.record, &cert.certificate(4).unwrap(), &file).is_ok());
    assert!(cert.certificate(9).is_err(), "a bitmap of another market's size");
}

#[test]
fn certificate_checks() {
    let c = mk_true();
    let check = |cert: &Certificate| certificate(&c.record, cert).unwrap_err();
    assert_eq!(check(&Certificate { market: [9; 32], ..c.cert.clone() }), VerifyError::CertificateMarket);
    assert_eq!(
        check(&Certificate { epoch: 5, ..c.cert.clone() }),
        VerifyError::Epoch { found: 5, expected: 0 }
    );
    assert_eq!(check(&Certificate { round: 8, ..c.cert.clone() }), VerifyError::Aggregate);
    assert_eq!(check(&Certificate { root: [0; 32], ..c.cert.clone() }), VerifyError::Aggregate);
    assert_eq!(
        check(&certify(&c.dealt, 7, c.cert.root, &[0, 1])),
        VerifyError::Quorum { found: 2, needed: 3 }
    );
    let with = |signers| {
        let quorum = Quorum { signers, aggregate: c.cert.quorum.aggregate };
        Certificate { quorum, ..c.cert.clone() }
    };
    assert_eq!(check(&with(Signers::new(4, [0, 1, 2]))), VerifyError::Aggregate);
    assert_eq!(check(&with(Signers::all(4))), VerifyError::Aggregate);
    assert_eq!(check(&with(Signers::new(9, [0, 1, 3, 7]))), VerifyError::UnknownSigner(7));
}

#[test]
fn another_market_s_record_does_not_verify_it() {
    let c = mk_true();
    let mut other = mk_dealt(2).record.record;
    assert_eq!(certificate(&other, &c.cert), Err(VerifyError::CertificateMarket));
    // Even with the right id: keys come from the record, never from the certificate.
    other.market = c.record.market;
    assert_eq!(certificate(&other, &c.cert), Err(VerifyError::Aggregate));
}

#[test]
fn order_and_leaf_checks() {
    let c = mk_true();
    let check = |change: &dyn Fn(&mut AwardFile)| {
        let mut file = c.file.clone();
        change(&mut file);
        award(&c.record, &c.cert, &file).unwrap_err()
    };
    assert_eq!(check(&|f| f.order.attempt = 2), VerifyError::OrderSignature);
    assert_eq!(check(&|f| f.order.market = [9; 32]), VerifyError::OrderMarket);
    assert_eq!(check(&|f| f.order_signature[5] ^= 1), VerifyError::OrderSignature);
    let stranger = EvidenceKey::from_bytes(&[8; 32]).unwrap();
    let by_stranger = |f: &mut AwardFile| {
        f.order.user_key = stranger.public_key();
        f.order_signature = stranger.sign(&order_hash(&c.record.market, &f.order));
    };
    assert_eq!(check(&by_stranger), VerifyError::UnknownHome);
    let another = |f: &mut AwardFile| {
        f.order.attempt = 2;
        f.order_signature = c.dealt.homes[0].user.sign(&order_hash(&c.record.market, &f.order));
    };
    assert_eq!(check(&another), VerifyError::OrderMismatch);
    let cheaper = |f: &mut AwardFile| {
        if let Outcome::Award(a) = &mut f.proof.leaf.outcome {
            a.price = Price::from_micros(1).unwrap();
        }
    };
    assert_eq!(check(&cheaper), VerifyError::Leaf);
    let winner = |f: &mut AwardFile| {
        if let Outcome::Award(a) = &mut f.proof.leaf.outcome {
            a.seat = 1;
        }
    };
    assert_eq!(check(&winner), VerifyError::Leaf);
    assert_eq!(check(&|f| f.proof.path.index = 2), VerifyError::Leaf);
    assert_eq!(check(&|f| f.proof.leaf.expires_ms += 1), VerifyError::Leaf);
}

#[test]
fn each_way_in_which_a_certificate_does_not_fit_has_its_own_error() {
    let c = mk_true();
    let step = c.record.params.order_step();
    let by = |seats: &[u16]| certify(&c.dealt, 7, c.cert.root, seats);
    let with = |bits: Vec<u16>, seats: &[u16]| {
        let quorum = Quorum { signers: Signers::new(9, bits), ..by(seats).quorum };
        Certificate { quorum, ..c.cert.clone() }
    };
    let mut another_leaf = c.file.clone();
    another_leaf.proof.leaf.bundle = [9; 32];
    let cases = [
        ("another network", Certificate { market: [9; 32], ..c.cert.clone() }, &c.file),
        ("another epoch", Certificate { epoch: 1, ..c.cert.clone() }, &c.file),
        ("a round that is not the order's", certify(&c.dealt, 8, [3; 32], &[0, 1, 2]), &c.file),
        ("another of the order's rounds", certify(&c.dealt, 7 + step, [3; 32], &[0, 1, 2]), &c.file),
        ("one vote counted twice", with(vec![0, 1, 2], &[0, 1, 1]), &c.file),
        ("an unknown signer", with(vec![0, 1, 2, 8], &[0, 1, 2]), &c.file),
        ("below quorum", by(&[0, 1]), &c.file),
        ("another leaf", c.cert.clone(), &another_leaf),
    ];
    let mut said = std::collections::BTreeSet::new();
    for (what, cert, file) in cases {
        let error = award(&c.record, &cert, file).expect_err(what).to_string();
        assert!(said.insert(error.clone()), "{what}: {error}");
    }
    assert!(said.iter().any(|e| *e == format!("award is of round 7, the certificate of round {}", 7 + step)));
    // In a file: too long for the market, a bit that is no seat's, not the one form of hex.
    let file = |signers: &str| CertificateFile { signers: signers.into(), ..CertificateFile::from(&c.cert) };
    let said = ["0b00", "1b", "0B"].map(|s| file(s).certificate(4).unwrap_err().to_string());
    assert!(said[0] != said[1] && said[1] != said[2] && said[0] != said[2], "{said:?}");
}

#[test]
fn what_a_quorum_must_not_certify() {
    let fails = |change: &dyn Fn(&mut OrderLeaf)| {
        let c = mk_case(|leaf| change(leaf));
        award(&c.record, &c.cert, &c.file).unwrap_err()
    };
    assert!(matches!(fails(&|l| l.expires_ms += 1), VerifyError::Expiry { .. }));
    let with = |f: fn(&mut Award)| {
        move |l: &mut OrderLeaf| {
            if let Outcome::Award(a) = &mut l.outcome {
                f(a);
            }
        }
    };
    assert_eq!(fails(&with(|a| a.seat = 4)), VerifyError::UnknownSeat(4));
    assert_eq!(fails(&with(|a| a.price = Price::from_micros(2_500_001).unwrap())), VerifyError::Price);
    let none = |l: &mut OrderLeaf| l.outcome = Outcome::None(Histogram::new(4));
    assert!(matches!(fails(&none), VerifyError::NotAwarded(_)));
    let c = mk_true();
    let cert = certify(&c.dealt, 8, c.cert.root, &[0, 1, 2]);
    assert_eq!(award(&c.record, &cert, &c.file), Err(VerifyError::OrderRound(8)));
}

#[test]
fn a_round_without_an_award_permits_an_early_body_and_nothing_else_does() {
    let none = || Outcome::None(Histogram::new(4));
    let c = mk_case(|leaf| (leaf.outcome, leaf.bundle) = (none(), [0; 32]));
    let before = c.file.order.clone();
    let after = Some(vendue_market::Unserved { order: before.digest(), round: 7, root: c.cert.root });
    let order = Order { first_round: 8, after, ..before.clone() };
    let judge = |order: &Order, before: &Order, cert: &Certificate, proof: &AwardProof| {
        again(&c.record, order, before, cert, proof)
    };
    let proof = &c.file.proof;
    assert_eq!(judge(&order, &before, &c.cert, proof), Ok(()));
    assert_eq!(judge(&before, &before, &c.cert, proof), Err(VerifyError::NotAfter));
    assert_eq!(judge(&order, &order, &c.cert, proof), Err(VerifyError::NotAfter));
    let cheaper = Order { attempt: 2, ..order.clone() };
    assert_eq!(judge(&cheaper, &before, &c.cert, proof), Err(VerifyError::OtherOrder));
    let mut sealed = order.clone();
    sealed.terms.sealed_ceiling = Some(SealedCeiling { u: [0; 48], v: [0; 32], payload: [0; 24] });
    assert_eq!(judge(&sealed, &before, &c.cert, proof), Err(VerifyError::OtherOrder), "a ceiling more");
    let until = 7 + c.record.params.order_step();
    for first in [0, 7, until, u64::MAX] {
        let order = Order { first_round: first, ..order.clone() };
        let expected = VerifyError::NotEarly { first, after: 7, until };
        assert_eq!(judge(&order, &before, &c.cert, proof), Err(expected));
    }
    let mut moved = proof.clone();
    moved.path.index ^= 1;
    assert_eq!(judge(&order, &before, &c.cert, &moved), Err(VerifyError::Leaf));

    let c = mk_true();
    let after = after.map(|a| vendue_market::Unserved { root: c.cert.root, ..a });
    let order = Order { after, ..order };
    assert_eq!(again(&c.record, &order, &before, &c.cert, &c.file.proof), Err(VerifyError::WasAwarded));
}
