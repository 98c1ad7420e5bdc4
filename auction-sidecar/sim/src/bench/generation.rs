//! What one seat computes in a key generation in which all take part.
//!
//! Measured for the last seat, whose point of the polynomials costs most: the others' deal keys taken in and its own dealing
//! made, all dealings to it read and checked, its contribution made and all others' read, the evidence signatures of the
//! four messages that each seat sends, and the key with its share. Not counted: the agreement on the contributions, which
//! is that of a round without its opening and clearing. As a detail, the key where f seats are absent and all others reveal
//! the values that these cannot have.

use super::{BenchError, Plan, Report, Spread, timed};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_auction_core::evidence::{self, EvidenceKey};
use vendue_sealed_bid::dkg::{
    Contribution, DealKey, Dealer, DealerSeed, Dealing, Player, Purpose, RecipientKey, Setup, outcome,
};

/// Messages of a seat outside of the agreement: deal key, dealing, acknowledgements, contribution.
const MESSAGES: usize = 4;

fn secret(label: &str, seat: u16) -> [u8; 32] {
    Sha256::new().chain_update(label).chain_update(seat.to_be_bytes()).finalize().into()
}

/// What the last seat gets from all.
struct Received {
    deal_keys: Vec<[u8; 48]>,
    announced: Vec<[u8; 32]>,
    dealings: Vec<Vec<u8>>,
    contributions: Vec<Vec<u8>>,
    signed: Vec<([u8; 32], [u8; 65], [u8; 33])>,
}

impl Received {
    fn new(setup: &Arc<Setup>) -> Result<Self, BenchError> {
        let seats = 0..setup.seats();
        let deals: Vec<DealKey> =
            seats.clone().map(|s| DealKey::generate(&secret("deal", s))).collect::<Result<_, _>>()?;
        let deal_keys: Vec<[u8; 48]> = deals.iter().map(DealKey::public_key).collect::<Result<_, _>>()?;
        let recipients = recipients(&deal_keys)?;
        let dealer = |seat| Dealer::new(setup, seat, &DealerSeed::from_bytes(&secret("seed", seat)));
        let dealers: Vec<Dealer> = seats.clone().map(dealer).collect::<Result<_, _>>()?;
        let acks: Vec<[u8; 32]> = dealers.iter().map(Dealer::digest).collect();
        let (mut dealings, mut contributions, mut signed) = (vec![], vec![], vec![]);
        for (seat, dealer) in seats.zip(&dealers) {
            dealings.push(dealer.dealing(&recipients)?.to_bytes());
            let contribution = dealer.contribution(acks.clone(), &BTreeSet::new())?;
            contributions.push(contribution.to_bytes(setup));
            let missing = |_| BenchError::Missing("an evidence key");
            let key = EvidenceKey::from_bytes(&secret("evidence", seat)).map_err(missing)?;
            for message in 0..MESSAGES {
                let hash = secret("message", seat * 8 + message as u16);
                signed.push((hash, key.sign(&hash), key.public_key()));
            }
        }
        Ok(Self { deal_keys, announced: acks, dealings, contributions, signed })
    }
}

fn recipients(keys: &[[u8; 48]]) -> Result<Vec<Option<RecipientKey>>, BenchError> {
    Ok(keys.iter().map(|key| RecipientKey::from_bytes(key).map(Some)).collect::<Result<_, _>>()?)
}

/// All that the last seat does, in milliseconds by step.
fn last(setup: &Arc<Setup>, received: &Received) -> Result<[(&'static str, f64); 5], BenchError> {
    let seat = setup.seats().saturating_sub(1);
    let deal = DealKey::generate(&secret("deal", seat))?;
    let (dealer, deals) = timed(|| {
        let dealer = Dealer::new(setup, seat, &DealerSeed::from_bytes(&secret("seed", seat)))?;
        dealer.dealing(&recipients(&received.deal_keys)?)?;
        Ok::<_, BenchError>(dealer)
    })?;
    let dealer = dealer?;
    let mut player = Player::new(setup, seat, &deal)?;
    (0u16..).zip(&received.announced).for_each(|(dealer, digest)| {
        player.announce(dealer, *digest);
    });
    player.deals();
    let (bad, checks) = timed(|| {
        for dealing in &received.dealings {
            player.receive(Dealing::read(setup, dealing)?, &deal)?;
        }
        player.check(&deal)
    })?;
    if !bad?.is_empty() {
        return Err(BenchError::Missing("a dealing is bad"));
    }
    let (read, contributes) = timed(|| {
        dealer.contribution(player.acks(), &BTreeSet::new())?.to_bytes(setup);
        let read = (0u16..).zip(&received.contributions);
        read.map(|(seat, c)| Ok((seat, Contribution::read(setup, c)?)))
            .collect::<Result<BTreeMap<_, _>, BenchError>>()
    })?;
    let read = read?;
    let (good, verifies) = timed(|| {
        received.signed.iter().all(|(hash, signature, key)| evidence::verify(hash, signature, key).is_ok())
    })?;
    if !good {
        return Err(BenchError::Missing("an evidence signature is bad"));
    }
    let (made, finishes) = timed(|| player.finish(&read, None))?;
    made?;
    Ok([
        ("deal keys and own dealing", deals),
        ("dealings checked", checks),
        ("contributions", contributes),
        ("evidence signatures", verifies),
        ("key and share", finishes),
    ])
}

/// Milliseconds of the key where the first f seats neither deal nor acknowledge.
fn key_without_f(setup: &Arc<Setup>, received: &Received) -> Result<f64, BenchError> {
    let f = setup.seats().saturating_sub(1) / 3;
    let mut acks = received.announced.clone();
    acks.iter_mut().take(usize::from(f)).for_each(|ack| *ack = [0; 32]);
    let (mut dealings, mut contributions) = (BTreeMap::new(), BTreeMap::new());
    for (seat, dealing) in (0u16..).zip(&received.dealings).skip(usize::from(f)) {
        let dealer = Dealer::new(setup, seat, &DealerSeed::from_bytes(&secret("seed", seat)))?;
        contributions.insert(seat, dealer.contribution(acks.clone(), &(0..f).collect())?);
        dealings.insert((seat, dealer.digest()), Dealing::read(setup, dealing)?);
    }
    let (made, ms) = timed(|| outcome(setup, &contributions, &dealings))?;
    let counts = made?.dealers.len() == contributions.len();
    counts.then_some(ms).ok_or(BenchError::Missing("a dealer does not count"))
}

pub(super) fn measure(plan: &Plan, report: &mut Report) -> Result<(), BenchError> {
    let setup = Arc::new(Setup::new(Purpose::Key, &[4; 32], plan.large)?);
    let received = Received::new(&setup)?;
    let mut totals = Vec::new();
    for _ in 0..plan.runs.clamp(1, 3) {
        let steps = last(&setup, &received)?;
        totals.push(steps.iter().map(|(_, ms)| ms).sum());
        steps.iter().for_each(|(name, ms)| report.detail(format!("dkg ms: {name}"), *ms));
    }
    report.detail("dkg ms: key, f absent", key_without_f(&setup, &received)?);
    report.spread("dkg_cpu_ms_per_node_n100", Spread::of(totals)?);
    Ok(())
}
