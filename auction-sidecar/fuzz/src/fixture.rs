//! The market that targets judge against: simulated rounds of four seats, and what was said in them.
//!
//! Inputs: none but fixed seeds. Outputs: keys, messages, certificates, awards and fault proofs. Invariant: the same in
//! every process, so that a corpus made by one fits another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use vendue_auction_core::evidence::{EvidenceKey, message_hash, record_hash};
use vendue_auction_core::proof::FaultProof;
use vendue_auction_core::wire::{Kind, Message};
use vendue_auction_core::{
    AwardFile, Certificate, Decided, HomeInput, HomeKeys, HomeOutput, MarketRecord, NewOrder, SeatKeys,
    SeatOutput, SignedMarketRecord,
};
use vendue_auction_sim::{Config, Deviation, Event, Hold, KindName, World, offer, requirements};
use vendue_market::{ClearingRules, Digest, Offer, Order, ScoreWeights, SeatFacts};
use vendue_sealed_bid::dkg::{
    DealKey, Dealer, DealerSeed, Dealing, KeySet, Members, Part, Player, Purpose, RecipientKey, Recovery,
    Setup, Split,
};
use vendue_sealed_bid::{
    BidKey, Combined, Deal, PossessionContext, RoundId, SealShare, Sealed, VoteKey, VoteKeyClaim, VoteKeySet,
};

/// Seed of the simulated market.
const SEED: u64 = 7;
/// When the home places its orders, in virtual time.
const SUBMITTED_MS: u64 = 500;

/// The market and all that was said in it.
pub struct Fixture {
    /// The market.
    pub record: Arc<MarketRecord>,
    /// The record with its issuer's signature.
    pub signed: SignedMarketRecord,
    /// The same market with tables of what it knows of its seats.
    pub signed_with_tables: SignedMarketRecord,
    /// Key files of the seats.
    pub seat_keys: Vec<String>,
    /// Key file of the home.
    pub home_key: String,
    /// The order that a home has placed in the target of homes.
    pub new_order: NewOrder,
    /// When it was placed.
    pub submitted_ms: u64,
    /// Shortly before the order's first round.
    pub starts_ms: u64,
    /// The order and the user's signature.
    pub order: (Order, [u8; 65]),
    /// Messages of an honest round among seats, as they were sent, once each.
    pub round: Vec<(u16, Vec<u8>)>,
    /// Messages of all other runs.
    pub messages: BTreeSet<Vec<u8>>,
    /// What was certified.
    pub decided: Vec<Decided>,
    /// What was proven.
    pub proofs: Vec<FaultProof>,
    certificates: Vec<Certificate>,
    award_files: Vec<AwardFile>,
    evidence: Vec<EvidenceKey>,
    user: EvidenceKey,
}

/// What seat `i` sells.
pub fn offers(i: u16) -> Vec<Offer> {
    offer(&format!("p{i}"), 2_000_000 + 100_000 * i64::from(i), 8).into_iter().collect()
}

fn new_order(job: &str, workers: u32) -> NewOrder {
    NewOrder {
        terms: Box::default(),
        job: job.into(),
        attempt: 1,
        requirements: requirements(workers, 5_000_000).expect("a price"),
        commitment: [9; 32],
        expires_ms: 60_000,
    }
}

/// A run: who deviates how, and what the network holds back.
fn world(deviations: &[(u16, Deviation)], holds: Vec<Hold>) -> World {
    let mut world = World::new(Config::four(SEED), (0..4).map(offers).collect()).expect("a market");
    for (seat, deviation) in deviations {
        world.deviate(*seat, *deviation).expect("a seat");
    }
    world.holds = holds;
    world.run_until(SUBMITTED_MS);
    world.tell_home(HomeInput::Submit(Box::new(new_order("job", 2))));
    world
}

fn said(world: &mut World, until_ms: u64) -> Vec<(u16, Vec<u8>)> {
    let mut seen = vec![];
    world.tap(&mut seen, until_ms);
    let mut known = BTreeSet::new();
    seen.retain(|(_, bytes)| known.insert(bytes.clone()));
    seen
}

/// The ways to go wrong of which other seats make proofs, and those that make seats speak in later views.
fn runs() -> Vec<World> {
    let all = || (0..4).collect::<BTreeSet<u16>>();
    let hold = |kind| Hold { kind, from: all(), to: all(), from_ms: 0, until_ms: 1_600 };
    let late_votes = || vec![hold(KindName::Admit), hold(KindName::Set)];
    use Deviation::*;
    vec![
        world(&[], late_votes()),
        world(&[(3, TwoSets)], late_votes()),
        world(&[(3, TwoBundles)], vec![]),
        world(&[(3, TwoAdmits), (3, Omit(0))], vec![]),
        world(&[(3, MauledBundle(2))], vec![]),
        world(&[(3, LateBundle(150))], vec![]),
        world(&[(3, WrongShare)], vec![]),
        world(&[(3, WrongAward)], vec![]),
        world(&[(3, ForgedCommit)], vec![]),
    ]
}

impl Fixture {
    fn new() -> Self {
        let mut honest = world(&[], vec![]);
        // Nobody can serve this one, so that its round certifies that and it is listed again.
        honest.tell_home(HomeInput::Submit(Box::new(new_order("large", 100))));
        let round = said(&mut honest, 6_000);
        let record = honest.record.clone();
        let seat_keys: Vec<String> =
            (0..4).filter_map(|s| honest.keys().seat_file(s).map(str::to_owned)).collect();
        let home_key = honest.keys().home_file().to_owned();
        let (mut decided, mut proofs, mut messages) = (vec![], vec![], BTreeSet::new());
        take_events(&honest, &mut decided, &mut proofs);
        for mut world in runs() {
            messages.extend(said(&mut world, 4_000).into_iter().map(|(_, bytes)| bytes));
            take_events(&world, &mut decided, &mut proofs);
        }
        let order = honest.events.iter().find_map(|(_, e)| match e {
            Event::Home(HomeOutput::Ordered { order, signature, .. }) => {
                Some(((**order).clone(), *signature))
            }
            _ => None,
        });
        let order = order.expect("the home has ordered");
        let evidence = seat_keys.iter().map(|k| SeatKeys::from_json(k).expect("keys").evidence).collect();
        let user = HomeKeys::from_json(&home_key).expect("a key").user.to_bytes();
        let mut fixture = Self {
            signed: issued((*record).clone()),
            signed_with_tables: issued(with_tables(&record)),
            starts_ms: record.params.t0(order.0.first_round) - 300,
            record,
            seat_keys,
            home_key,
            new_order: new_order("job", 2),
            submitted_ms: SUBMITTED_MS,
            order,
            round,
            messages,
            certificates: decided.iter().map(|d| d.certificate.clone()).collect(),
            award_files: vec![],
            decided,
            proofs,
            evidence,
            user: EvidenceKey::from_bytes(&user).expect("a key"),
        };
        fixture.award_files = fixture.files();
        fixture
    }

    /// Certificates of all runs.
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    /// Awards of the order in all runs.
    pub fn award_files(&self) -> &[AwardFile] {
        &self.award_files
    }

    fn files(&self) -> Vec<AwardFile> {
        let (order, order_signature) = &self.order;
        let proofs = self.decided.iter().filter_map(|d| d.table.proof(&order.digest()));
        let file = |proof| AwardFile { order: order.clone(), order_signature: *order_signature, proof };
        proofs.map(file).collect()
    }

    /// Texts of secrets, which no error may quote.
    pub fn secret_texts(&self) -> impl Iterator<Item = &str> {
        self.seat_keys.iter().map(String::as_str).chain([self.home_key.as_str()])
    }

    /// The message as its sender signs it; what is unsigned, or of nobody, stays as it is.
    pub fn sign(&self, mut message: Message) -> Message {
        let hash = message_hash(&self.record.market, &message.header, &message.body);
        let from_home = message.header.kind.is_from_home();
        let key =
            if from_home { Some(&self.user) } else { self.evidence.get(usize::from(message.header.seat)) };
        if let (Some(signature), Some(key)) = (&mut message.signature, key) {
            *signature = key.sign(&hash);
        }
        message
    }

    /// A message of a sender that has said something else or nothing.
    pub fn say(&self, seat: u16, round: u64, body: vendue_auction_core::wire::Body) -> Vec<u8> {
        let header = vendue_auction_core::wire::Header {
            kind: body.kind(),
            market: self.record.short_id(),
            epoch: self.record.epoch,
            round,
            seat,
        };
        let signature = header.kind.is_signed().then_some([0; 65]);
        self.sign(Message { header, body, signature }).encode()
    }

    /// Messages of a kind, of all runs.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Vec<u8>> {
        let honest = self.round.iter().map(|(_, bytes)| bytes);
        let is = move |bytes: &&Vec<u8>| vendue_auction_core::wire::peek_kind(bytes) == Some(kind);
        honest.chain(&self.messages).filter(is)
    }
}

/// A record as its issuer signs it.
fn issued(record: MarketRecord) -> SignedMarketRecord {
    let issuer = EvidenceKey::from_bytes(&[8; 32]).expect("a key");
    let signature = issuer.sign(&record_hash(&record));
    SignedMarketRecord { record, issuer_key: issuer.public_key(), signature }
}

/// The rules of clearing with a table for four seats, and weights.
pub fn rules_with_tables() -> ClearingRules {
    let facts = |seat: u32| SeatFacts {
        region: ["eu-1", "us-2", "", "ap-south-1"].get(seat as usize).copied().unwrap_or_default().into(),
        attestation: seat as u8,
        standing: 10 * seat,
    };
    let score = ScoreWeights { standing: 3, attestation: 100 };
    ClearingRules { seats: (0..4).map(facts).collect(), score, ..ClearingRules::latest() }
}

fn with_tables(record: &MarketRecord) -> MarketRecord {
    MarketRecord { clearing: rules_with_tables(), ..record.clone() }
}

fn take_events(world: &World, decided: &mut Vec<Decided>, proofs: &mut Vec<FaultProof>) {
    for (_, event) in &world.events {
        match event {
            Event::Seat(0, SeatOutput::Decided(d)) => decided.push((**d).clone()),
            Event::Seat(_, SeatOutput::Evidence(p)) => proofs.push((**p).clone()),
            _ => {}
        }
    }
}

/// The market, made once.
pub fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(Fixture::new)
}

/// Vote keys with proofs of possession, by seat.
pub type VoteClaims = Vec<([u8; 96], [u8; 48])>;

/// Four seats with a dealt seal key, what they sign and what is sealed to them.
pub struct Sealing {
    /// The round.
    pub id: RoundId,
    /// The dealt key.
    pub deal: Deal,
    /// Shares of the round by seat.
    pub shares: Vec<[u8; 96]>,
    /// What any three of them make.
    pub combined: Combined,
    /// What is bound to the sealed payload.
    pub header: Vec<u8>,
    /// What is sealed.
    pub plain: Vec<u8>,
    /// The sealed payload.
    pub sealed: Sealed,
    /// Vote keys with proofs, by seat.
    pub vote_claims: VoteClaims,
    /// What the proofs hold for.
    pub contexts: Vec<Vec<u8>>,
    /// The same keys, checked.
    pub vote_keys: VoteKeySet,
    /// What is voted on.
    pub message: Vec<u8>,
    /// Votes on it by seat.
    pub votes: Vec<[u8; 48]>,
}

const MARKET: Digest = [1; 32];

fn vote_keys(keys: &[VoteKey]) -> (VoteClaims, Vec<Vec<u8>>, VoteKeySet) {
    let context = |seat| PossessionContext { market: MARKET, epoch: 2, seat, address: "a" }.to_bytes();
    let contexts: Vec<Vec<u8>> = (0..keys.len() as u16).map(context).collect();
    let claims: VoteClaims = keys.iter().zip(&contexts).map(|(k, c)| (k.public_key(), k.prove(c))).collect();
    let named: Vec<_> =
        claims.iter().map(|(key, proof)| VoteKeyClaim { key: *key, proof: *proof, address: "a" }).collect();
    let set = VoteKeySet::new(&MARKET, 2, &named).expect("proven keys");
    (claims, contexts, set)
}

fn secret(label: u8, seat: u8) -> [u8; 32] {
    let mut bytes = [label; 32];
    bytes[0] = seat + 1;
    bytes
}

impl Sealing {
    fn new() -> Self {
        let id = RoundId { market: MARKET, epoch: 2, round: 3 };
        let mut rng = <rand_chacha::ChaCha20Rng as rand_core::SeedableRng>::seed_from_u64(SEED);
        let deal = vendue_sealed_bid::deal(4, 3, &mut rng).expect("a key");
        let shares: Vec<[u8; 96]> = deal.shares.iter().map(|s| s.sign(&id)).collect();
        let numbered: Vec<_> = (0u16..).zip(shares.iter().copied()).collect();
        let keys = |seat: u16| deal.verification_keys.get(usize::from(seat));
        let combined = vendue_sealed_bid::combine(&id, &deal.seal_key, 3, &numbered, keys).expect("a quorum");
        let (header, plain) = (b"header".to_vec(), vec![5; 64]);
        let bid = BidKey::from_bytes(&secret(3, 0));
        let sealed = vendue_sealed_bid::seal(&id, &deal.seal_key, &header, &plain, &bid).expect("a key");
        let votes: Vec<VoteKey> = (0..4).map(|s| VoteKey::generate(&secret(1, s)).expect("a key")).collect();
        let (vote_claims, contexts, vote_keys) = vote_keys(&votes);
        let message = b"message".to_vec();
        let votes = votes.iter().map(|k| k.sign(&message)).collect();
        Self {
            id,
            deal,
            shares,
            combined,
            header,
            plain,
            sealed,
            vote_claims,
            contexts,
            vote_keys,
            message,
            votes,
        }
    }
}

/// The sealing, made once.
pub fn sealing() -> &'static Sealing {
    static SEALING: OnceLock<Sealing> = OnceLock::new();
    SEALING.get_or_init(Sealing::new)
}

/// A key generation among four seats, and the recovery of seat 0's share.
pub struct Generation {
    /// The setup.
    pub setup: Arc<Setup>,
    /// Vote keys by seat.
    pub votes: Vec<VoteKey>,
    /// Deal keys by seat.
    pub deals: Vec<DealKey>,
    /// Who they are.
    pub members: Members,
    /// Dealings by dealer; seat 3 gets no value.
    pub dealings: Vec<Vec<u8>>,
    /// Contributions by seat; each reveals seat 3's value.
    pub contributions: Vec<Vec<u8>>,
    /// The key.
    pub keys: KeySet,
    /// Splits of the helpers 1 to 3.
    pub splits: Vec<Vec<u8>>,
    /// Their parts.
    pub parts: Vec<Vec<u8>>,
}

impl Generation {
    fn new() -> Self {
        let votes: Vec<VoteKey> = (0..4).map(|s| VoteKey::generate(&secret(1, s)).expect("a key")).collect();
        let deals: Vec<DealKey> = (0..4).map(|s| DealKey::generate(&secret(4, s)).expect("a key")).collect();
        let seeds: Vec<DealerSeed> = (0..4).map(|s| DealerSeed::from_bytes(&secret(5, s))).collect();
        let public: Vec<[u8; 48]> = deals.iter().map(|k| k.public_key().expect("a key")).collect();
        let setup = Arc::new(Setup::new(Purpose::Key, &MARKET, 4).expect("a setup"));
        let members = Members::new(vote_keys(&votes).2, &public).expect("members");
        let mut to: Vec<Option<RecipientKey>> =
            public.iter().map(|k| Some(RecipientKey::from_bytes(k).expect("a key"))).collect();
        to[3] = None;
        let dealer = |(seat, seed)| Dealer::new(&setup, seat, seed).expect("a dealer");
        let dealers: Vec<Dealer> = (0u16..4).zip(&seeds).map(dealer).collect();
        let dealings: Vec<Dealing> = dealers.iter().map(|d| d.dealing(&to).expect("a dealing")).collect();
        let (mut players, mut contributions) = (vec![], BTreeMap::new());
        for (seat, (dealer, deal)) in (0u16..4).zip(dealers.iter().zip(&deals)) {
            let mut player = Player::new(&setup, seat, deal).expect("a player");
            for (of, dealer) in (0u16..4).zip(&dealers) {
                assert!(player.announce(of, dealer.digest()));
            }
            player.deals();
            for dealing in &dealings {
                assert_eq!(player.receive(dealing.clone(), deal).is_ok(), seat < 3);
            }
            assert!(player.check(deal).expect("a check").is_empty());
            let said = dealer.contribution(player.acks(), &[3].into()).expect("a contribution");
            contributions.insert(seat, said);
            players.push(player);
        }
        let finished: Vec<_> =
            players.iter().map(|p| p.finish(&contributions, None).expect("a share")).collect();
        let keys = finished[0].0.keys.clone();
        let shares: Vec<SealShare> = finished.into_iter().map(|(_, share)| share).collect();
        let dealings = dealings.iter().map(Dealing::to_bytes).collect();
        let contributions = contributions.values().map(|c| c.to_bytes(&setup)).collect();
        let (splits, parts) = (vec![], vec![]);
        let mut made = Self { setup, votes, deals, members, dealings, contributions, keys, splits, parts };
        made.recover(&shares, &seeds);
        made
    }

    fn recover(&mut self, shares: &[SealShare], seeds: &[DealerSeed]) {
        let recovery = self.recovery();
        let split =
            |s: usize| recovery.split(s as u16, &shares[s], &seeds[s], &self.votes[s]).expect("a split");
        let splits: Vec<Vec<u8>> = (1..4).map(split).collect();
        let read: Vec<Split> = splits.iter().map(|s| recovery.read_split(s).expect("a good split")).collect();
        let part = |s: usize| {
            recovery.part(s as u16, &read, &self.deals[s], &seeds[s], &self.votes[s]).expect("a part")
        };
        let parts: Vec<Vec<u8>> = (1..4).map(part).collect();
        let opened: Vec<Part> =
            parts.iter().map(|p| recovery.read_part(&read, p).expect("a good part")).collect();
        let found = recovery.finish(&read, &opened, &self.deals[0]).expect("the share");
        assert!(found.same_as(&shares[0]));
        (self.splits, self.parts) = (splits, parts);
    }

    /// The recovery of seat 0's share.
    pub fn recovery(&self) -> Recovery<'_> {
        Recovery::new(&self.setup, &self.members, &self.keys, 0, 0, &[1, 2, 3]).expect("a recovery")
    }

    /// The splits, read.
    pub fn read_splits(&self, recovery: &Recovery<'_>) -> Vec<Split> {
        self.splits.iter().map(|s| recovery.read_split(s).expect("a good split")).collect()
    }
}

/// The key generation, made once.
pub fn generation() -> &'static Generation {
    static GENERATION: OnceLock<Generation> = OnceLock::new();
    GENERATION.get_or_init(Generation::new)
}
