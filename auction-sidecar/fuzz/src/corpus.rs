//! Inputs that targets begin with: what was said in simulated rounds, in the form that each target reads.
//!
//! Nothing of it is stored in the repository; the program `fuzz-corpus` writes it to a folder for libFuzzer. Invariant:
//! every target has inputs, and accepts each of them.

mod outside;
mod receipts;
mod rounds;

pub use outside::close;

use crate::fixture::{fixture, generation, sealing};
use crate::targets::SIZES;
use crate::termed::termed;
use std::collections::BTreeMap;
use vendue_auction_core::award::CertificateFile;
use vendue_auction_core::keygen::Generation;
use vendue_auction_core::wire::*;
use vendue_auction_core::{AwardProof, KeyOrigin, MarketRecord, Plaintext};
use vendue_market::encode::Canonical;
use vendue_market::{
    AcceptRules, BidTerms, Cost, Digest, NodeCapacity, Offer, OfferCapacity, OfferNode, Order, Outcome,
    Price, Reason, RecordKind, Unserved,
};
use vendue_sealed_bid::{MultiVote, SignerSet};

type Inputs = Vec<Vec<u8>>;

/// Records with and without tables, and with word of how the keys were made.
fn market_records() -> Inputs {
    let record = &*fixture().record;
    let certificate = fixture().decided.first().map(|decided| CertificateFile::from(&decided.certificate));
    let generated = certificate.map(|certificate| Generation {
        start_ms: 1,
        notice_ms: 3_600_000,
        refresh: false,
        proofs_epoch: record.epoch,
        first_round: 9,
        set: [1; 32],
        certificate,
    });
    let with_generation =
        MarketRecord { generation: generated, key_origin: KeyOrigin::Distributed, ..record.clone() };
    vec![json(record), json(&fixture().signed_with_tables.record), json(&with_generation)]
}

/// Inputs of the target with this name; none for a name that is no target's.
pub fn seeds(target: &str) -> Inputs {
    if let Some(name) = target.strip_prefix("wire_") {
        return of_kind(name)
            .into_iter()
            .map(|m| sized(4, m.get(HEADER_LEN..).unwrap_or_default()))
            .collect();
    }
    match target {
        "message" => Kind::ALL.into_iter().flat_map(|k| of_kind(k.name())).map(|m| sized(4, &m)).collect(),
        "header" => vec![fixture().round[0].1[..HEADER_LEN].to_vec()],
        "signers" => SIZES.iter().map(|n| sized(*n, &Signers::all(*n).bitmap())).collect(),
        "order_leaf" => proofs().map(|p| p.leaf.to_bytes()).collect(),
        "plaintext" => plaintexts(),
        "certificate_file" | "certificate_verify" => certificates(),
        "award_file" => fixture().award_files().iter().map(json).collect(),
        "market_record" => vec![json(&fixture().signed), json(&fixture().signed_with_tables)],
        "market_record_keys" => market_records(),
        "fault_proof" => fixture().proofs.iter().map(json).collect(),
        "fault_proof_message" => agreement().collect(),
        "fault_proof_double" => doubles(),
        "evidence_signature" => vec![[[3; 32].as_slice(), &fixture().order.1].concat()],
        "seat_key_file" => fixture().seat_keys.iter().map(|k| k.clone().into_bytes()).collect(),
        "home_key_file" => vec![fixture().home_key.clone().into_bytes()],
        "secret_scalars" => vec![[1; 32].to_vec(), [0x22; 32].to_vec()],
        "seat" => vec![a_round(), rounds::a_round_with_terms()],
        "home" => vec![a_hand_over()],
        other => {
            let of_values = || market(other).or_else(|| receipts::seeds(other));
            let of_parts = || of_values().or_else(|| sealed(other)).or_else(|| dkg(other));
            of_parts().or_else(|| rounds::seeds(other)).or_else(|| outside::seeds(other)).unwrap_or_default()
        }
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a value with a JSON form")
}

/// An input of a market of `n` seats.
fn sized(n: u16, rest: &[u8]) -> Vec<u8> {
    let selector = SIZES.iter().position(|s| *s == n).unwrap_or_default();
    [&[selector as u8], rest].concat()
}

fn proofs() -> impl Iterator<Item = AwardProof> {
    fixture().decided.iter().flat_map(|d| d.table.proofs())
}

fn market(target: &str) -> Option<Inputs> {
    let order = &fixture().order.0;
    let needs = &order.requirements;
    let outcomes = || proofs().map(|p| p.leaf.outcome).flat_map(|o| [bound(&o), o]);
    let histograms =
        outcomes().filter_map(|o| if let Outcome::None(h) = o { Some(h.to_bytes()) } else { None });
    let node = crate::fixture::offers(0).into_iter().flat_map(|o| o.nodes).map(|n| n.capacity);
    let nodes: Vec<_> = node.collect();
    let bytes = |texts: &[&str]| texts.iter().map(|t| t.as_bytes().to_vec()).collect();
    Some(match target {
        "order" => orders().iter().map(Canonical::to_bytes).collect(),
        "requirements" => vec![needs.to_bytes(), rich_order().requirements.to_bytes()],
        "outcome" => outcomes().map(|o| o.to_bytes()).collect(),
        "histogram" => histograms.collect(),
        "gpu_model" => nodes.iter().map(|n| n.model.to_bytes()).collect(),
        "price" => vec![needs.max_price.to_bytes()],
        "node_capacity" => nodes.iter().map(|n| n.to_bytes()).collect(),
        "offer_capacity" => offer_capacities(&nodes).iter().map(Canonical::to_bytes).collect(),
        "offer_capacity_json" => offer_capacities(&nodes).iter().map(json).collect(),
        "offer_json" => {
            crate::fixture::offers(0).into_iter().flat_map(|o| [json(&o), json(&limited(o))]).collect()
        }
        "order_json" => orders().iter().map(json).collect(),
        "outcome_json" => outcomes().map(|o| json(&o)).collect(),
        "price_text" => bytes(&["2.50", "1000000", "0.000001"]),
        "cost" => [0, 1, 1_234_500, i64::MAX].map(|micros: i64| micros.to_be_bytes().to_vec()).to_vec(),
        "cost_text" => [0, 1_234_500, i64::MAX]
            .into_iter()
            .filter_map(|micros| Some(Cost::from_micros(micros)?.to_string().into_bytes()))
            .collect(),
        "gpu_model_text" => bytes(&["H100", "A100-SXM4-80GB", "x.y_z"]),
        "hex_text" => bytes(&["", "00ff10", "0123456789abcdef"]),
        "image_pattern" => {
            bytes(&["registry.example/*:1\nregistry.example/train:1", "a\na", "*\n", "a*b*c\na-b-c"])
        }
        _ => return None,
    })
}

/// An order of each version, with each of the terms.
fn orders() -> Vec<Order> {
    let plain = [fixture().order.0.clone(), again().0, rich_order()];
    // The next body of an order with terms has them too.
    let both = Order { after: again().0.after, terms: Box::new(crate::termed::all_terms()), ..again().0 };
    plain.into_iter().chain([both]).chain(termed().orders.iter().cloned()).collect()
}

/// An order that uses every field of its requirements.
fn rich_order() -> Order {
    let mut order = fixture().order.0.clone();
    let needs = &mut order.requirements;
    needs.gpu_models = ["H100", "A100-SXM4-80GB"].iter().filter_map(|m| m.parse().ok()).collect();
    needs.include_providers = vec!["provider-0".into(), "provider-1".into()];
    needs.exclude_providers = vec!["provider-3".into()];
    order
}

/// Capacity of nodes that nobody vouches for, and of one whose devices are bound.
fn offer_capacities(nodes: &[NodeCapacity]) -> [OfferCapacity; 2] {
    let plain = OfferCapacity::of(nodes.first().into_iter().cycle().take(3).cloned().collect());
    let one = nodes.iter().take(1).cloned().collect();
    [plain, OfferCapacity { devices: Some([0xd5; 32]), ..OfferCapacity::of(one) }]
}

/// An outcome in which winner and last stand-by bind their devices.
fn bound(outcome: &Outcome) -> Outcome {
    let mut outcome = outcome.clone();
    if let Outcome::Award(award) = &mut outcome {
        award.devices = Some([0xd5; 32]);
        award.stand_bys.last_mut().into_iter().for_each(|s| s.devices = Some([0xd6; 32]));
    }
    outcome
}

/// An offer with terms, that accepts some only.
fn limited(offer: Offer) -> Offer {
    let terms = BidTerms { start_ms: 1_000, duration_s: 3_600, may_interrupt: true };
    let rules = AcceptRules { homes: vec!["home".into()], ..offer.rules };
    let bound = |node| OfferNode { fingerprint: Some([0xf1; 32]), ..node };
    let nodes = offer.nodes.into_iter().map(bound).collect();
    Offer { terms, rules, nodes, ..offer }
}

fn plaintexts() -> Inputs {
    let nodes = crate::fixture::offers(0).into_iter().flat_map(|o| o.nodes).map(|n| n.capacity);
    let nodes: Vec<NodeCapacity> = nodes.collect();
    let capacity = offer_capacities(&nodes).to_vec();
    let limited = BidTerms { start_ms: 1_000, duration_s: 3_600, may_interrupt: true };
    let bid = |terms| Price::from_micros(2_000_000).map(|price| RecordKind::Bid { price, spec: 0, terms });
    let bids = [BidTerms::default(), limited].into_iter().filter_map(bid);
    let records: Vec<RecordKind> = bids.chain([RecordKind::NoBid(Reason::Model)]).collect();
    let many =
        Plaintext { capacity: capacity.clone(), records: records.iter().cycle().take(40).copied().collect() };
    let few = Plaintext { capacity, records };
    let none = Plaintext { capacity: vec![], records: vec![] };
    [few, many, none].iter().map(|p| [&[p.records.len() as u8], p.to_padded().as_slice()].concat()).collect()
}

fn certificates() -> Inputs {
    fixture().certificates().iter().map(|c| json(&CertificateFile::from(c))).collect()
}

/// Signed messages of seats about a round.
fn agreement() -> impl Iterator<Item = Vec<u8>> {
    let kinds = [
        Kind::Set,
        Kind::Admit,
        Kind::Lock,
        Kind::Open,
        Kind::Commit,
        Kind::Award,
        Kind::NewView,
        Kind::Propose,
    ];
    kinds.into_iter().flat_map(|k| fixture().of_kind(k)).cloned()
}

fn doubles() -> Inputs {
    let all: Vec<Vec<u8>> = agreement().collect();
    let pair = |w: &[Vec<u8>]| [&(w[0].len() as u16).to_be_bytes(), w[0].as_slice(), &w[1]].concat();
    all.windows(2).map(pair).collect()
}

/// Messages of a kind: those that were sent, and those between homes and seats, which say what was certified.
fn of_kind(name: &str) -> Inputs {
    let Some(kind) = Kind::ALL.into_iter().find(|k| k.name() == name) else { return vec![] };
    let made = spoken().remove(&kind).unwrap_or_default();
    let mut all: Inputs = fixture().of_kind(kind).cloned().chain(made).collect();
    // A few of each kind show all forms; more make no other.
    all.truncate(64);
    all
}

fn proof_of(want: impl Fn(&Outcome) -> bool) -> Proof {
    let found = fixture().decided.iter().find_map(|d| {
        let proof = d.table.proofs().into_iter().find(|p| want(&p.leaf.outcome))?;
        Some(Proof { certificate: d.certificate.clone(), proof })
    });
    found.expect("the runs award an order and leave another to nobody")
}

/// The next body of an order that a round gave to nobody, the body before, and the proof.
fn again() -> (Order, Order, Proof) {
    let proof = proof_of(|o| matches!(o, Outcome::None(_)));
    let before = fixture().order.0.clone();
    let after = Some(Unserved {
        order: before.digest(),
        round: proof.certificate.round,
        root: proof.certificate.root,
    });
    (Order { first_round: proof.certificate.round + 1, after, ..before.clone() }, before, proof)
}

fn spoken() -> BTreeMap<Kind, Inputs> {
    let (order, order_signature) = fixture().order.clone();
    let digest = order.digest();
    let award = proof_of(|o| matches!(o, Outcome::Award(_)));
    let round = award.certificate.round;
    let (next, before, none) = again();
    let bundle = fixture().of_kind(Kind::Bundle).next().cloned().unwrap_or_default();
    let listed: Vec<Listed> = (0..3).map(|seat| Listed { seat, d: [seat as u8 + 1; 32] }).collect();
    let ordered = fixture().say(0, 0, Body::Order(OrderMsg { order: order.clone() }));
    let models = ["A100", "H100"].iter().filter_map(|m| m.parse().ok()).collect();
    let cert = Cert { root: award.certificate.root, quorum: award.certificate.quorum.clone() };
    let bodies = [
        Body::Cert(cert),
        Body::Order(OrderMsg { order: order.clone() }),
        Body::Again(Box::new(Again { order: next, before, proof: none.clone() })),
        Body::Receipt(Receipt { order: digest, from_round: 1, models }),
        Body::Taken(Taken { order: digest, seat: 3 }),
        Body::Cancel(Cancel { order: digest }),
        Body::Withdraw(Withdraw { job: "job".into(), attempt: 1, round: 3, except: [0; 32] }),
        Body::Reserve(Box::new(Reserve { proof: award.clone(), order, order_signature })),
        Body::Accept(Accept { order: digest }),
        Body::Refuse(Refuse { order: digest, reason: Reason::FreeGpus }),
        Body::Proof(Box::new(award)),
        Body::Proof(Box::new(none)),
        Body::Fetch(Fetch::Bundles(listed.clone())),
        Body::Fetch(Fetch::Orders(vec![[0; 32], digest])),
        Body::Fetch(Fetch::Set([1; 32])),
        Body::Fetch(Fetch::Proof(digest)),
        Body::Reply(Reply::Bundle(bundle)),
        Body::Reply(Reply::Order(ordered)),
        Body::Reply(Reply::Set(listed)),
        Body::Reply(Reply::TwoBundles { seat: 1, versions: [([1; 32], [2; 65]), ([3; 32], [4; 65])] }),
        Body::Propose(crowded_proposal()),
        Body::DealKey(DealKeyMsg { key: [1; 48], commitment: [2; 32] }),
        Body::Deal(Deal { dealing: vec![1, 2, 3] }),
        Body::Acks(Acks { held: (0..4).map(|seat| [seat; 32]).collect() }),
    ];
    let orders = orders().into_iter().skip(1).map(|order| Body::Order(OrderMsg { order }));
    let mut all: BTreeMap<Kind, Inputs> = BTreeMap::new();
    for body in bodies.into_iter().chain(orders) {
        all.entry(body.kind()).or_default().push(fixture().say(0, round, body));
    }
    all
}

/// A proposal over SETs of an owner who has signed many: two are shown, others by their hash.
fn crowded_proposal() -> Propose {
    let set = |d: u8| SetMsg { held: vec![[d; 32], [0; 32], [9; 32], [0; 32]], full: None };
    let shown = |d: u8| ShownSet { seat: 3, set: set(d), signature: [d; 65] };
    let view = |d: u8| (NewView { view: 1, admitted: None, sets: vec![shown(d)] }, [d; 65]);
    let views = (0..4u16).map(|seat| (seat, view(seat as u8 + 1))).collect();
    let hash = |s: &ShownSet| -> Digest { s.set.held.first().copied().unwrap_or_default() };
    Propose::new(1, [6; 32], &views, hash)
}

/// One step of the targets of members.
fn step(who: u8, wait: u8, message: &[u8]) -> Vec<u8> {
    [&[who, wait], &(message.len() as u16).to_be_bytes()[..], message].concat()
}

/// What seat 0 hears in an honest round: the order, then the others' messages.
fn a_round() -> Vec<u8> {
    let order = fixture().say(0, 0, Body::Order(OrderMsg { order: fixture().order.0.clone() }));
    let mut steps = step(crate::targets::HOME, 0, &order);
    steps.extend(step(crate::targets::HOME, 30, &order));
    for kind in [Kind::Bundle, Kind::Set, Kind::Open, Kind::Award] {
        let said = fixture().round.iter().filter(|(from, m)| *from > 0 && peek_kind(m) == Some(kind)).take(3);
        said.for_each(|(from, m)| steps.extend(step(*from as u8 - 1, 1, m)));
    }
    steps
}

/// What a home hears about its order: receipts, the award, the winner's word.
fn a_hand_over() -> Vec<u8> {
    let order = fixture().order.0.digest();
    let award = proof_of(|o| matches!(o, Outcome::Award(_)));
    let round = award.certificate.round;
    let receipt =
        |seat| fixture().say(seat, 0, Body::Receipt(Receipt { order, from_round: 0, models: vec![] }));
    let mut steps: Vec<u8> = (0..4).flat_map(|seat| step(seat as u8, 1, &receipt(seat))).collect();
    steps.extend(step(0, 100, &fixture().say(0, 0, Body::Proof(Box::new(award)))));
    steps.extend(step(0, 1, &fixture().say(0, round, Body::Accept(Accept { order }))));
    steps.extend(step(
        0,
        1,
        &fixture().say(0, round, Body::Refuse(Refuse { order, reason: Reason::FreeGpus })),
    ));
    steps
}

fn sealed(target: &str) -> Option<Inputs> {
    let s = sealing();
    let multi = || {
        let votes: Vec<_> = (0u16..).zip(s.votes.iter().copied()).take(3).collect();
        MultiVote::new(4, &votes).map(|v| v.to_bytes()).unwrap_or_default()
    };
    let share = |seat: usize| [&[seat as u8][..], &s.shares[seat]].concat();
    Some(match target {
        "seal_key" => s.deal.verification_keys.iter().chain([&s.deal.seal_key]).map(|k| k.to_vec()).collect(),
        "vote_key" => {
            s.vote_claims.first().map(|(key, proof)| [&key[..], proof].concat()).into_iter().collect()
        }
        "vote" => vec![s.votes.first()?.to_vec()],
        "share" => vec![s.shares.first()?.to_vec()],
        "shares" => vec![[share(0), share(1), share(2)].concat(), [share(3), share(0), share(1)].concat()],
        "combined" => vec![s.combined.to_bytes().to_vec()],
        "sealed" => vec![[&s.sealed.u[..], &s.sealed.v, &s.sealed.payload].concat()],
        "signer_set" => SIZES
            .iter()
            .filter_map(|n| Some(sized(*n, SignerSet::from_seats(*n, 0..*n).ok()?.as_bytes())))
            .collect(),
        "multi_vote" => vec![sized(4, &multi())],
        "multi_vote_verify" => vec![multi()],
        _ => return None,
    })
}

fn dkg(target: &str) -> Option<Inputs> {
    let g = generation();
    Some(match target {
        "dkg_dealing" => g.dealings.clone(),
        "dkg_contribution" => g.contributions.clone(),
        "dkg_word" => words(&g.contributions),
        "dkg_recipient_key" => g.deals.iter().filter_map(|d| Some(d.public_key().ok()?.to_vec())).collect(),
        "dkg_key_set" => vec![g.keys.to_bytes()],
        "dkg_split" => g.splits.clone(),
        "dkg_part" => g.parts.clone(),
        _ => return None,
    })
}

/// Contributions of seats that voted for no key before, and of ones that did.
fn words(contributions: &[Vec<u8>]) -> Inputs {
    let attempt = 2u64.to_be_bytes();
    let commit = |m: &Vec<u8>| m.get(HEADER_LEN..m.len() - SIGNATURE_LEN).unwrap_or_default().to_vec();
    let voted = of_kind(Kind::Commit.name()).into_iter().map(|m| [&[1], &attempt[..], &commit(&m)].concat());
    let before = [vec![0]].into_iter().chain(voted);
    before.zip(contributions).map(|(before, said)| [before, said.clone()].concat()).collect()
}
