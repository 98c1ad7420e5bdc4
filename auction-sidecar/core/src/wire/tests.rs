use super::*;
use crate::award::{AwardProof, Certificate, OrderLeaf};
use crate::merkle::{HexDigest, Path};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use vendue_market::{
    Award, Digest, Histogram, Order, Outcome, Price, Reason, Requirements, StandBy, Unserved,
};

const N: u16 = 4;

pub(crate) fn mk_order() -> Order {
    Order {
        market: [1; 32],
        job: "job-uid".into(),
        attempt: 1,
        requirements: Requirements {
            gpu_models: vec!["A100".parse().unwrap(), "H100".parse().unwrap()],
            min_gpu_memory_mib: 40_960,
            workers: 2,
            gpus_per_worker: 1,
            cpu_millis_per_worker: 1_500,
            memory_mib_per_worker: 2_048,
            disk_mib_per_worker: 10,
            max_price: Price::from_micros(2_500_000).unwrap(),
            run_seconds: 600,
            image: "registry.example/train:1".into(),
            include_providers: vec!["alpha".into()],
            exclude_providers: vec![],
        },
        commitment: [2; 32],
        first_round: 7,
        expires_ms: 1_000_000,
        user_key: [3; 33],
        after: None,
        terms: Box::default(),
    }
}

fn mk_proof(outcome: Outcome) -> Proof {
    let quorum = Quorum { signers: Signers::new(N, [0, 2, 3]), aggregate: [4; 48] };
    Proof {
        certificate: Certificate { market: [1; 32], epoch: 0, round: 7, root: [5; 32], quorum },
        proof: AwardProof {
            leaf: OrderLeaf { order: [6; 32], outcome, bundle: [7; 32], expires_ms: 99 },
            path: Path { index: 1, count: 3, siblings: vec![HexDigest([8; 32]), HexDigest([9; 32])] },
        },
    }
}

fn mk_award() -> Outcome {
    let price = Price::from_micros(2_000_000).unwrap();
    let stand_bys = vec![StandBy { seat: 1, price, spec: 3, devices: None }];
    Outcome::Award(Award { seat: 2, price, spec: 0, devices: None, stand_bys })
}

/// One message of every kind, and of every form that a kind has.
fn every_body() -> Vec<Body> {
    let quorum = Quorum { signers: Signers::new(N, [0, 1, 3]), aggregate: [4; 48] };
    let locked = Commit::Locked { view: 2, quorum: quorum.clone() };
    let mut histogram = Histogram::new(4);
    histogram.add(Reason::Model);
    let listed = Listed { seat: 1, d: [2; 32] };
    vec![
        Body::Bundle(Bundle {
            order_view: vec![[1; 32], [2; 32]].into(),
            u: [3; 48],
            v: [4; 32],
            payload: vec![5; 40],
        }),
        Body::Bundle(Bundle { order_view: vec![].into(), u: [0; 48], v: [0; 32], payload: vec![] }),
        Body::Set(SetMsg { held: vec![[1; 32], [2; 32], [3; 32], [4; 32]], full: Some([5; 48]) }),
        Body::Set(SetMsg { held: vec![[1; 32], [0; 32], [3; 32], [4; 32]], full: None }),
        Body::Admit(Admit { view: 0, set: [1; 32], proposal: [0; 32], vote: [2; 48] }),
        Body::Lock(Lock { view: 0, set: [1; 32], quorum: quorum.clone(), vote: [2; 48] }),
        Body::Open(OpenShare { set: [1; 32], commit: Commit::Fast { aggregate: [2; 48] }, share: [3; 96] }),
        Body::Open(OpenShare { set: [1; 32], commit: locked.clone(), share: [3; 96] }),
        Body::Commit(CommitMsg { set: [1; 32], commit: locked }),
        Body::Award(AwardVote { root: [1; 32], vote: [2; 48] }),
        Body::Cert(Cert { root: [1; 32], quorum }),
        Body::Order(OrderMsg { order: mk_order() }),
        Body::Receipt(Receipt { order: [1; 32], from_round: 7, models: vec!["H100".parse().unwrap()] }),
        Body::Taken(Taken { order: [1; 32], seat: 3 }),
        Body::Cancel(Cancel { order: [1; 32] }),
        Body::Reserve(Box::new(Reserve {
            proof: mk_proof(mk_award()),
            order: mk_order(),
            order_signature: [6; 65],
        })),
        Body::Accept(Accept { order: [1; 32] }),
        Body::Refuse(Refuse { order: [1; 32], reason: Reason::FreeGpus }),
        Body::Proof(Box::new(mk_proof(Outcome::None(histogram)))),
        Body::Fetch(Fetch::Bundles(vec![listed])),
        Body::Fetch(Fetch::Orders(vec![[1; 32], [2; 32]])),
        Body::Fetch(Fetch::Set([1; 32])),
        Body::Fetch(Fetch::Proof([1; 32])),
        Body::Reply(Reply::Bundle(vec![1, 2, 3])),
        Body::Reply(Reply::Order(vec![1, 2, 3])),
        Body::Reply(Reply::Set(vec![listed, Listed { seat: 2, d: [0; 32] }])),
        Body::Reply(Reply::TwoBundles { seat: 1, versions: [([1; 32], [2; 65]), ([3; 32], [4; 65])] }),
    ]
}

/// The messages of key generation.
fn every_key_body() -> Vec<Body> {
    let listed = Listed { seat: 1, d: [2; 32] };
    vec![
        Body::DealKey(DealKeyMsg { key: [1; 48], commitment: [2; 32] }),
        Body::Deal(Deal { dealing: vec![1, 2, 3] }),
        Body::Acks(Acks { held: vec![[1; 32], [0; 32], [2; 32], [3; 32]] }),
        Body::Fetch(Fetch::Dealings(vec![listed])),
        Body::Reply(Reply::Dealing(vec![1, 2, 3])),
    ]
}

/// An award whose offers bind their devices.
fn every_bound_body() -> Vec<Body> {
    let price = Price::from_micros(2_000_000).unwrap();
    let stand_by = |seat, devices| StandBy { seat, price, spec: 3, devices };
    let stand_bys = vec![stand_by(1, None), stand_by(3, Some([0xd3; 32]))];
    let award = Award { seat: 2, price, spec: 0, devices: Some([0xd2; 32]), stand_bys };
    vec![Body::Proof(Box::new(mk_proof(Outcome::Award(award))))]
}

/// What was added to the protocol's first form: earlier members drop it, and nothing else reads differently.
fn every_later_body() -> Vec<Body> {
    let mut histogram = Histogram::new(4);
    histogram.add(Reason::Home);
    let before = mk_order();
    let after = Some(Unserved { order: before.digest(), round: 7, root: [5; 32] });
    let order = Order { first_round: 9, after, ..before.clone() };
    vec![
        Body::Order(OrderMsg { order: order.clone() }),
        Body::Again(Box::new(Again { order, before, proof: mk_proof(Outcome::None(histogram)) })),
        Body::Withdraw(Withdraw { job: "j".into(), attempt: 2, round: 9, except: [6; 32] }),
    ]
}

/// The messages of the views after the first.
fn every_view_body() -> Vec<Body> {
    let quorum = Quorum { signers: Signers::new(N, [0, 1, 3]), aggregate: [4; 48] };
    let admitted = Some(Admitted { view: 1, set: [7; 32], quorum });
    let whole = SetMsg { held: vec![[1; 32], [2; 32], [3; 32], [4; 32]], full: Some([5; 48]) };
    let part = SetMsg { held: vec![[1; 32], [0; 32], [3; 32], [5; 32]], full: None };
    let show = |seat, set: &SetMsg| ShownSet { seat, set: set.clone(), signature: [8; 65] };
    let third_set = SetMsg { held: vec![[9; 32], [0; 32], [0; 32], [0; 32]], full: None };
    let first = NewView { view: 2, admitted: None, sets: vec![show(0, &whole), show(3, &part)] };
    let second = NewView { view: 2, admitted, sets: vec![show(0, &whole), show(3, &whole)] };
    let third = NewView { view: 2, admitted: None, sets: vec![] };
    let fourth = NewView { view: 2, admitted: None, sets: vec![show(3, &third_set)] };
    let propose = |views: &[&NewView]| {
        let views = (0u16..).zip(views).map(|(seat, v)| (seat, ((*v).clone(), [seat as u8; 65])));
        Propose::new(2, [6; 32], &views.collect(), hash_of)
    };
    vec![
        Body::Propose(propose(&[&first, &second, &third])),
        Body::Propose(propose(&[&first, &second, &third, &fourth])),
        Body::Propose(Propose { view: 1, set: [6; 32], sets: vec![], others: vec![], views: vec![] }),
        Body::NewView(first),
        Body::NewView(second),
        Body::NewView(third),
        Body::NewView(fourth),
    ]
}

/// Stands for the hash of a SET.
fn hash_of(shown: &ShownSet) -> Digest {
    shown.set.held[0]
}

fn all_bodies() -> Vec<Body> {
    every_body()
        .into_iter()
        .chain(every_later_body())
        .chain(every_view_body())
        .chain(every_key_body())
        .chain(every_bound_body())
        .collect()
}

#[test]
fn a_proposal_shows_the_new_views_as_they_were_sent_and_of_an_owner_two_sets() {
    let bodies = every_view_body();
    let sent: Vec<NewView> =
        bodies.iter().filter_map(|b| if let Body::NewView(v) = b { Some(v.clone()) } else { None }).collect();
    let Some(Body::Propose(propose)) = bodies.get(1) else { panic!("no proposal") };
    let shown: Vec<u16> = propose.sets.iter().map(|s| s.seat).collect();
    assert_eq!((shown, propose.others.len()), (vec![0, 3, 3], 1));
    let brought = propose.brought(hash_of);
    assert_eq!(brought.len(), 4);
    for ((seat, admitted, hashes, signature), sent) in brought.into_iter().zip(&sent) {
        let sent_hashes: Vec<Digest> = sent.sets.iter().map(hash_of).collect();
        assert_eq!((admitted, &hashes), (sent.admitted.as_ref(), &sent_hashes));
        assert_eq!(signature, &[seat as u8; 65]);
    }
    // Other encodings of nothing: a SET that no NEWVIEW carries, two of one owner in one NEWVIEW, a hash where not two
    // are shown.
    let mut unused = propose.clone();
    unused.views.iter_mut().for_each(|v| v.sets.retain(|at| *at == 0));
    let mut two = propose.clone();
    two.views[0].sets = vec![0, 1, 2];
    let mut unshown = propose.clone();
    unshown.others[0].seat = 2;
    let mut unordered = propose.clone();
    unordered.views.swap(0, 1);
    for bad in [unused, two, unshown, unordered] {
        assert!(decode(&mk_message(Body::Propose(bad)).encode(), N).is_err());
    }
}

#[test]
fn views_of_a_hundred_seats_are_small() {
    let held: Vec<Digest> = (1..=100u8).map(|d| [d; 32]).collect();
    let show =
        |seat| ShownSet { seat, set: SetMsg { held: held.clone(), full: Some([5; 48]) }, signature: [8; 65] };
    let view = NewView { view: 1, admitted: None, sets: (0..100).map(show).collect() };
    let views = (0..67).map(|seat| (seat, (view.clone(), [9; 65]))).collect();
    let size = |body| mk_message(body).encode().len();
    assert_eq!(size(Body::Propose(Propose::new(1, [1; 32], &views, hash_of))), 21_769);
    assert_eq!(size(Body::NewView(view)), 16_303);
}

/// A message of every kind and form.
pub(crate) fn all_messages() -> Vec<Message> {
    all_bodies().into_iter().map(mk_message).collect()
}

fn mk_message(body: Body) -> Message {
    let header = Header { kind: body.kind(), market: [1; 8], epoch: 2, round: 7, seat: 3 };
    let signature = header.kind.is_signed().then_some([9; 65]);
    Message { header, body, signature }
}

#[test]
fn every_message_reads_back_and_has_one_encoding() {
    for body in all_bodies() {
        let message = mk_message(body);
        let bytes = message.encode();
        assert_eq!(decode(&bytes, N).unwrap(), message);
        assert_eq!(peek_kind(&bytes), Some(message.header.kind));
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode(&longer, N).is_err(), "{:?}", message.header.kind);
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], N).is_err(), "{:?} cut at {cut}", message.header.kind);
        }
    }
}

#[test]
fn every_kind_is_covered() {
    let seen: std::collections::BTreeSet<Kind> = all_bodies().iter().map(Body::kind).collect();
    assert_eq!(seen, Kind::ALL.into_iter().collect());
}

/// The wire format in one number. It changes only with the protocol's version.
#[test]
fn wire_format_is_frozen() {
    let mut hasher = Sha256::new();
    for body in every_body() {
        hasher.update(mk_message(body).encode());
    }
    let hash = hex::encode(hasher.finalize());
    assert_eq!(hash, FROZEN, "the encoding of a message has changed");
    let mut hasher = Sha256::new();
    for body in every_later_body() {
        hasher.update(mk_message(body).encode());
    }
    let hash = hex::encode(hasher.finalize());
    assert_eq!(hash, FROZEN_LATER, "the encoding of a message has changed");
    let mut hasher = Sha256::new();
    for body in every_view_body() {
        hasher.update(mk_message(body).encode());
    }
    let hash = hex::encode(hasher.finalize());
    assert_eq!(hash, FROZEN_VIEWS, "the encoding of a message has changed");
    let mut hasher = Sha256::new();
    for body in every_key_body() {
        hasher.update(mk_message(body).encode());
    }
    let hash = hex::encode(hasher.finalize());
    assert_eq!(hash, FROZEN_KEYS, "the encoding of a message has changed");
    let mut hasher = Sha256::new();
    for body in every_bound_body() {
        hasher.update(mk_message(body).encode());
    }
    let hash = hex::encode(hasher.finalize());
    assert_eq!(hash, FROZEN_BOUND, "the encoding of a message has changed");
}

const FROZEN_BOUND: &str = "23bf047333abad4feaeb03b34703f543a807819a156862cbbd76b93416a63dee";

const FROZEN_KEYS: &str = "6f1dde907e42981150f02ff86f25f6801cc06cc796012ea2d806a9a2ad48900f";

const FROZEN_VIEWS: &str = "eb4288f32f95781ad14e6c95baa5a9baa24ea5ac26b788ef9d25a43932848e7c";

const FROZEN_LATER: &str = "1e09c14cba77737d89de2f71b3fd29f669e9def67ab83b0b9a9941a00e5517a3";
const FROZEN: &str = "95f4260e90ba48275a85b5b837e0f16da1ed43be89bd9ed9b928800ea4ed420a";

#[test]
fn header_is_25_bytes_and_strict() {
    let bytes = mk_message(Body::Cancel(Cancel { order: [1; 32] })).encode();
    assert_eq!(bytes.len(), HEADER_LEN + 32 + SIGNATURE_LEN);
    for (at, value) in [(0, 2), (1, 11), (1, 27), (1, 0), (1, 255), (2, 1)] {
        let mut bad = bytes.clone();
        bad[at] = value;
        assert!(decode(&bad, N).is_err(), "byte {at} = {value}");
    }
}

#[test]
fn sets_and_lists_have_one_form() {
    // A bitmap with a bit beyond the last seat, an unsorted order view, a set of another market's size.
    assert!(Signers::from_bitmap(&[0b0001_0000], N).is_err());
    assert!(Signers::from_bitmap(&[0b0000_1111, 0], N).is_err());
    assert_eq!(Signers::from_bitmap(&[0b0000_1011], N), Ok(Signers::new(N, [0, 1, 3])));
    let unsorted =
        Bundle { order_view: vec![[2; 32], [1; 32]].into(), u: [3; 48], v: [4; 32], payload: vec![] };
    assert!(decode(&mk_message(Body::Bundle(unsorted)).encode(), N).is_err());
    let twice = Bundle { order_view: vec![[1; 32], [1; 32]].into(), u: [3; 48], v: [4; 32], payload: vec![] };
    assert!(decode(&mk_message(Body::Bundle(twice)).encode(), N).is_err());
    let set = SetMsg { held: vec![[1; 32]; 5], full: Some([5; 48]) };
    assert!(decode(&mk_message(Body::Set(set)).encode(), N).is_err());
    // The FULL vote must be there exactly if no entry is zero.
    let missing = SetMsg { held: vec![[1; 32]; 4], full: None };
    assert!(decode(&mk_message(Body::Set(missing)).encode(), N).is_err());
}

#[test]
fn sizes_are_those_of_the_design() {
    let size = |body| mk_message(body).encode().len();
    let quorum = Quorum { signers: Signers::all(100), aggregate: [4; 48] };
    let cert = Cert { root: [1; 32], quorum };
    assert_eq!(size(Body::Cert(cert)), 118);
    assert_eq!(size(Body::Award(AwardVote { root: [1; 32], vote: [2; 48] })), 170);
}

proptest! {
    #[test]
    fn any_bytes_decode_to_themselves_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..300), n in 1u16..20) {
        if let Ok(message) = decode(&bytes, n) {
            prop_assert_eq!(message.encode(), bytes);
        }
    }

    #[test]
    fn changed_messages_decode_to_themselves_or_fail(which in 0usize..40, at in any::<usize>(), value in any::<u8>()) {
        let bodies = all_bodies();
        let mut bytes = mk_message(bodies[which % bodies.len()].clone()).encode();
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(message) = decode(&bytes, N) {
            prop_assert_eq!(message.encode(), bytes);
        }
    }

    /// Bytes behind a header of each kind, so that every body's decoder sees them.
    #[test]
    fn any_bytes_after_a_header_decode_to_themselves_or_fail(
        which in 0usize..Kind::ALL.len(), bytes in prop::collection::vec(any::<u8>(), 0..400), n in 1u16..300,
    ) {
        let header = Header { kind: Kind::ALL[which], market: [1; 8], epoch: 2, round: 7, seat: 3 };
        let bytes = [header.to_bytes(), bytes].concat();
        if let Ok(message) = decode(&bytes, n) {
            prop_assert_eq!(message.encode(), bytes);
        }
    }

    /// Pieces of messages put together: counts and lengths that are right somewhere else.
    #[test]
    fn spliced_messages_decode_to_themselves_or_fail(
        (a, b) in (0usize..35, 0usize..35), (cut, from) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
    ) {
        let bodies = all_bodies();
        let bytes = |which: usize| mk_message(bodies[which % bodies.len()].clone()).encode();
        let (head, tail) = (bytes(a), bytes(b));
        let bytes = [&head[..cut.index(head.len())], &tail[from.index(tail.len())..]].concat();
        if let Ok(message) = decode(&bytes, N) {
            prop_assert_eq!(message.encode(), bytes);
        }
    }

    /// What messages and files are made of, each decoded on its own.
    #[test]
    fn any_bytes_are_at_most_one_order_or_outcome(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        use vendue_market::encode::Canonical;
        for version in 0..4 {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            if let Ok(order) = Order::from_bytes(&bytes) {
                prop_assert_eq!(order.to_bytes(), bytes.clone());
            }
            if let Ok(outcome) = Outcome::from_bytes(&bytes) {
                prop_assert_eq!(outcome.to_bytes(), bytes.clone());
            }
        }
    }
}
