//! What one seat computes in a key generation in which all take part.
//!
//! The others' dealings and logs are made as the seats would make them; only their acknowledgements are signed straight
//! from the format, because each of n x n would cost a whole check of a dealing. Measured for the first seat: its
//! polynomial and dealings, the check of all dealings to it and its acknowledgements, the acknowledgements that it gets
//! and its log, the check of all logs, and the key with its share. Not counted: the proofs of possession of the vote keys,
//! which come with the market record.

use super::{BenchError, Plan, Report, Spread, timed};
use blst::min_sig::SecretKey;
use sha2::{Digest, Sha256};
use vendue_sealed_bid::dkg::{DealKey, Dealer, DealerSeed, Log, Player, Purpose, Setup};
use vendue_sealed_bid::{CryptoError, DKG_DOMAIN, VoteKey, VoteKeySet};

const MARKET: [u8; 32] = [4; 32];

/// The seats' secrets.
struct Seats {
    votes: Vec<VoteKey>,
    deals: Vec<DealKey>,
    seeds: Vec<DealerSeed>,
}

fn secret(label: &str, seat: u16) -> [u8; 32] {
    Sha256::new().chain_update(label).chain_update(seat.to_be_bytes()).finalize().into()
}

impl Seats {
    fn new(n: u16) -> Result<Self, BenchError> {
        let votes = (0..n).map(|s| VoteKey::generate(&secret("vote", s))).collect::<Result<_, _>>()?;
        let deals = (0..n).map(|s| DealKey::generate(&secret("deal", s))).collect::<Result<_, _>>()?;
        let seeds = (0..n).map(|s| DealerSeed::from_bytes(&secret("seed", s))).collect();
        Ok(Self { votes, deals, seeds })
    }

    fn setup(&self) -> Result<Setup, BenchError> {
        let votes: Vec<[u8; 96]> = self.votes.iter().map(VoteKey::public_key).collect();
        let deals: Vec<[u8; 48]> = self.deals.iter().map(DealKey::public_key).collect::<Result<_, _>>()?;
        Ok(Setup::new(Purpose::Key, &MARKET, 0, 0, VoteKeySet::from_checked(&votes)?, &deals)?)
    }

    /// All acknowledgements of a dealer's commitment, which is part of each of its dealings.
    fn acks(&self, setup: &Setup, dealer: u16, dealing: &[u8]) -> Result<Vec<(u16, [u8; 48])>, BenchError> {
        let points = usize::from(setup.quorum()) * 48;
        let missing = BenchError::Missing("a dealing is too short");
        let commitment = dealing.get(37..37 + points).ok_or(missing)?;
        let named = [setup.digest().as_slice(), &dealer.to_be_bytes()].concat();
        let digest = Sha256::new()
            .chain_update(b"VENDUE-V1-DKG-COMMITMENT")
            .chain_update(&named)
            .chain_update(commitment)
            .finalize();
        let message = [[2].as_slice(), &named, &digest].concat();
        let sign = |(seat, key): (u16, &VoteKey)| {
            let key = SecretKey::from_bytes(key.to_bytes().as_slice());
            let key = key.map_err(|_| CryptoError::Secret("vote key"))?;
            Ok((seat, key.sign(&message, DKG_DOMAIN, &[]).to_bytes()))
        };
        (0u16..).zip(&self.votes).map(sign).collect()
    }
}

/// What the first seat gets from the others.
struct Received {
    dealings: Vec<Vec<u8>>,
    logs: Vec<Vec<u8>>,
    acks: Vec<(u16, [u8; 48])>,
}

impl Seats {
    fn dealer<'a>(&'a self, setup: &'a Setup, seat: u16) -> Result<Dealer<'a>, BenchError> {
        let at = usize::from(seat);
        match (self.seeds.get(at), self.votes.get(at)) {
            (Some(seed), Some(vote)) => Ok(Dealer::new(setup, seat, seed, vote)?),
            _ => Err(BenchError::Missing("no such seat")),
        }
    }

    fn received(&self, setup: &Setup) -> Result<Received, BenchError> {
        let mut received = Received { dealings: vec![], logs: vec![], acks: vec![] };
        for seat in 0..setup.seats() {
            let mut dealer = self.dealer(setup, seat)?;
            let dealing = dealer.dealing(0)?;
            let acks = self.acks(setup, seat, &dealing)?;
            if !dealer.acknowledge_all(&acks)?.is_empty() {
                return Err(BenchError::Missing("an acknowledgement does not verify"));
            }
            received.dealings.push(dealing);
            received.logs.push(dealer.log()?);
            if seat == 0 {
                received.acks = acks;
            }
        }
        Ok(received)
    }

    /// All that the first seat does, in milliseconds by step.
    fn first(&self, setup: &Setup, received: &Received) -> Result<[(&'static str, f64); 5], BenchError> {
        let (Some(vote), Some(deal)) = (self.votes.first(), self.deals.first()) else {
            return Err(BenchError::Missing("no seats"));
        };
        let (dealer, deals) = timed(|| {
            let dealer = self.dealer(setup, 0)?;
            (0..setup.seats()).try_for_each(|player| dealer.dealing(player).map(drop))?;
            Ok::<_, BenchError>(dealer)
        })?;
        let mut dealer = dealer?;
        let mut player = Player::new(setup, 0, vote, deal)?;
        let (taken, receives) =
            timed(|| received.dealings.iter().try_for_each(|dealing| player.receive(dealing).map(drop)))?;
        taken?;
        let (logged, acknowledges) = timed(|| {
            dealer.acknowledge_all(&received.acks)?;
            dealer.log()
        })?;
        logged?;
        let read = || received.logs.iter().map(|log| player.verify_log(log)).collect();
        let (logs, verifies): (Result<Vec<Log>, _>, _) = timed(read)?;
        let logs = logs?;
        let (made, finishes) = timed(|| player.share(&logs))?;
        made?;
        Ok([
            ("dealings made", deals),
            ("dealings checked", receives),
            ("acknowledgements and log", acknowledges),
            ("logs checked", verifies),
            ("key and share", finishes),
        ])
    }
}

pub(super) fn measure(plan: &Plan, report: &mut Report) -> Result<(), BenchError> {
    let seats = Seats::new(plan.large)?;
    let setup = seats.setup()?;
    let received = seats.received(&setup)?;
    let mut totals = Vec::new();
    for _ in 0..plan.runs.clamp(1, 3) {
        let steps = seats.first(&setup, &received)?;
        totals.push(steps.iter().map(|(_, ms)| ms).sum());
        steps.iter().for_each(|(name, ms)| report.detail(format!("dkg ms: {name}"), *ms));
    }
    report.spread("dkg_cpu_ms_per_node_n100", Spread::of(totals)?);
    Ok(())
}
