//! One seat's CPU in a whole round: a market is run once and what one seat hears is recorded; then fresh seats with the
//! same keys hear the same, and their time is taken.
//!
//! Inputs: a plan. Outputs: a recording, and times by kind of message. What counts: everything from the start of the
//! round on, that is the own bids and bundle, the checks of all messages, set, commit, share, combination, the opening of
//! all bundles, clearing, vote, certificate, and the proofs for the homes. Taking in orders happens before the round and
//! is a number of its own.

use super::{BenchError, Plan, Report, Spread, timed};
use crate::{offer, requirements};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use vendue_auction_core::wire::{Body, Cert, Header, Kind, Message, peek_kind};
use vendue_auction_core::{
    Certificate, DealSpec, Home, HomeInput, HomeOutput, MarketRecord, MemberSpec, NewOrder, Params, Peer,
    Seat, SeatCrypto, SeatInput, SeatKeys, SeatOutput, deal,
};
use vendue_market::{Offer, OfferNode};

/// Orders of one home: below what a seat keeps of one.
const PER_HOME: usize = 500;
/// Nodes of each seat and GPUs of each node.
const NODES: usize = 8;
const GPUS: u32 = 8;

/// D = 250 ms, a round every 1.5 s.
pub(super) const CLOCK: Params =
    Params { delay_ms: 250, period_ms: 1_500, genesis_ms: 10_000, handover_ms: 5_000 };

/// A market whose seats all bid on all orders of one round.
pub struct Stage {
    /// The market.
    pub record: Arc<MarketRecord>,
    /// The round.
    pub round: u64,
    keys: Vec<String>,
    orders: Vec<(u16, Vec<u8>)>,
    count: usize,
}

impl Stage {
    /// A market of `seats` seats and `orders` orders.
    pub fn new(seats: u16, orders: usize) -> Result<Self, BenchError> {
        let member = |name: String| MemberSpec { peer_id: format!("peer-{name}"), name, addresses: vec![] };
        let homes = orders.div_ceil(PER_HOME);
        let spec = DealSpec {
            name: "bench".into(),
            params: CLOCK,
            seats: (0..seats).map(|i| member(format!("provider-{i}"))).collect(),
            homes: (0..homes).map(|i| member(format!("home-{i}"))).collect(),
        };
        let dealt = deal(&spec, &mut ChaCha20Rng::seed_from_u64(11))?;
        let record = Arc::new(dealt.record.record);
        let mut sent = Vec::new();
        for (index, keys) in (0u16..).zip(dealt.homes) {
            let mut home = Home::new(record.clone(), index, keys);
            let of_home = (usize::from(index) * PER_HOME..orders).take(PER_HOME);
            let new = of_home.filter_map(new_order).map(|order| HomeInput::Submit(Box::new(order)));
            for output in new.flat_map(|input| home.handle(0, input)) {
                if let HomeOutput::Broadcast(bytes) = output {
                    sent.push((index, bytes));
                }
            }
        }
        let keys = dealt.seats.iter().map(|k| k.to_json().to_string()).collect();
        Ok(Self { round: CLOCK.first_round(0), record, keys, orders: sent, count: orders })
    }

    /// How many seats there are.
    pub fn seats(&self) -> u16 {
        self.record.n()
    }

    /// A seat that knows all orders and sells enough for any of them.
    pub fn seat(&self, index: u16) -> Result<Seat<SeatCrypto>, BenchError> {
        let text = self.keys.get(usize::from(index)).ok_or(BenchError::Missing("no such seat"))?;
        let keys = SeatKeys::from_json(text)?;
        let mut seat = Seat::fresh(self.record.clone(), index, SeatCrypto::new(self.record.clone(), keys), 0);
        let offer = sold(index).ok_or(BenchError::Missing("no offer"))?;
        let models = offer.nodes.iter().map(|n| n.capacity.model.clone()).collect();
        seat.handle(0, SeatInput::Offers { offers: vec![offer], models });
        for (home, bytes) in &self.orders {
            seat.handle(0, SeatInput::Message { from: Peer::Home(*home), bytes: bytes.clone() });
        }
        if seat.open_orders() == self.count {
            Ok(seat)
        } else {
            Err(BenchError::Missing("orders were refused"))
        }
    }

    /// Runs the round among all seats and writes down what the first one hears.
    pub fn record(&self) -> Result<Recording, BenchError> {
        let mut seats: Vec<Seat<SeatCrypto>> =
            (0..self.seats()).map(|i| self.seat(i)).collect::<Result<_, _>>()?;
        let now = CLOCK.t0(self.round);
        let mut recording =
            Recording { heard: vec![], uploaded: 0, to_homes: 0, certificate: None, awarded: 0 };
        let mut queue: VecDeque<(u16, u16, Arc<Vec<u8>>)> = VecDeque::new();
        for (index, seat) in (0u16..).zip(&mut seats) {
            let said = seat.handle(now, SeatInput::Tick);
            recording.spread(self.seats(), index, said, &mut queue);
        }
        while let Some((from, to, bytes)) = queue.pop_front() {
            if to == 0 {
                recording.heard.push((from, bytes.to_vec()));
            }
            let Some(seat) = seats.get_mut(usize::from(to)) else { continue };
            let input = SeatInput::Message { from: Peer::Seat(from), bytes: bytes.to_vec() };
            let said = seat.handle(now + 10, input);
            recording.spread(self.seats(), to, said, &mut queue);
        }
        if recording.certificate.is_some() {
            Ok(recording)
        } else {
            Err(BenchError::Missing("the round has no certificate"))
        }
    }

    /// Lets a fresh first seat hear a recording.
    pub fn replay(&self, recording: &Recording) -> Result<Timed, BenchError> {
        let mut seat = self.seat(0)?;
        let now = CLOCK.t0(self.round);
        let (_, bidding) = timed(|| seat.handle(now, SeatInput::Tick))?;
        let mut out = Timed { total_ms: bidding, by_step: BTreeMap::from([("own bundle", bidding)]) };
        let mut decided = false;
        for (from, bytes) in &recording.heard {
            let name = peek_kind(bytes).map_or("unknown", Kind::name);
            let input = SeatInput::Message { from: Peer::Seat(*from), bytes: bytes.clone() };
            let (said, ms) = timed(|| seat.handle(now + 10, input))?;
            // The message that completes a quorum pays for what follows from it.
            let votes = said.iter().any(|o| said_kind(o) == Some(Kind::Award));
            decided |= said.iter().any(|o| matches!(o, SeatOutput::Decided(_)));
            let step = if votes { "combine, open, clear" } else { name };
            *out.by_step.entry(step).or_default() += ms;
            out.total_ms += ms;
        }
        if decided { Ok(out) } else { Err(BenchError::Missing("the seat did not decide")) }
    }
}

fn said_kind(output: &SeatOutput) -> Option<Kind> {
    match output {
        SeatOutput::Broadcast(bytes) => peek_kind(bytes),
        _ => None,
    }
}

/// An order of one of four sizes that every seat can serve.
fn new_order(index: usize) -> Option<NewOrder> {
    let workers = 1 + u32::from(index.is_multiple_of(4));
    let mut requirements = requirements(workers, 100_000_000)?;
    requirements.memory_mib_per_worker += 1_000 * (index as u64 % 2);
    Some(NewOrder {
        terms: Box::default(),
        job: format!("0b7f4c52-94d1-4c1e-8a5e-{index:012}"),
        attempt: 1,
        requirements,
        commitment: [9; 32],
        expires_ms: 600_000,
    })
}

/// What a seat sells; prices differ, and the cheapest seats sell out first.
fn sold(seat: u16) -> Option<Offer> {
    let price = 2_000_000 + i64::from(seat) * 7_919 % 1_000 * 1_000;
    let mut offer = offer("offer", price, GPUS)?;
    let node = offer.nodes.first()?.capacity.clone();
    offer.nodes = (0..NODES).map(|i| OfferNode::of(format!("node-{i}"), node.clone())).collect();
    Some(offer)
}

/// What the first seat of a market heard in a round.
pub struct Recording {
    heard: Vec<(u16, Vec<u8>)>,
    /// Bytes that the first seat sent to seats.
    pub uploaded: usize,
    /// Bytes that it sent to homes.
    pub to_homes: usize,
    /// Orders that were awarded.
    pub awarded: usize,
    certificate: Option<Certificate>,
}

impl Recording {
    fn spread(
        &mut self,
        seats: u16,
        from: u16,
        said: Vec<SeatOutput>,
        queue: &mut VecDeque<(u16, u16, Arc<Vec<u8>>)>,
    ) {
        for output in said {
            let (to, bytes): (Vec<u16>, Vec<u8>) = match output {
                SeatOutput::Broadcast(bytes) => ((0..seats).filter(|to| *to != from).collect(), bytes),
                SeatOutput::Send { to: Peer::Seat(to), bytes } => (vec![to], bytes),
                SeatOutput::Send { to: Peer::Home(_), bytes } => {
                    self.to_homes += if from == 0 { bytes.len() } else { 0 };
                    continue;
                }
                SeatOutput::Decided(decided) if from == 0 => {
                    let awards = decided.outcomes.iter();
                    let is_award = |o: &vendue_market::Outcome| matches!(o, vendue_market::Outcome::Award(_));
                    self.awarded = awards.filter(|(_, outcome)| is_award(outcome)).count();
                    self.certificate = Some(decided.certificate);
                    continue;
                }
                _ => continue,
            };
            if from == 0 {
                self.uploaded += to.len() * bytes.len();
            }
            let bytes = Arc::new(bytes);
            queue.extend(to.into_iter().map(|to| (from, to, bytes.clone())));
        }
    }

    /// Bytes of the CERT message.
    pub fn certificate_bytes(&self) -> usize {
        let Some(c) = &self.certificate else { return 0 };
        let body = Body::Cert(Cert { root: c.root, quorum: c.quorum.clone() });
        let mut market = [0; 8];
        market.iter_mut().zip(c.market).for_each(|(to, from)| *to = from);
        let header = Header { kind: Kind::Cert, market, epoch: c.epoch, round: c.round, seat: 0 };
        Message { header, body, signature: None }.encode().len()
    }
}

/// One seat's CPU in one round.
pub struct Timed {
    /// All of it.
    pub total_ms: f64,
    /// By kind of the message that led to it.
    pub by_step: BTreeMap<&'static str, f64>,
}

/// Times of several replays.
fn rounds(stage: &Stage, recording: &Recording, runs: usize) -> Result<(Spread, Timed), BenchError> {
    // The first fills caches and tables that live as long as the process.
    stage.replay(recording)?;
    let mut all = (0..runs.max(1)).map(|_| stage.replay(recording)).collect::<Result<Vec<_>, _>>()?;
    let spread = Spread::of(all.iter().map(|t| t.total_ms).collect())?;
    all.sort_by(|a, b| a.total_ms.total_cmp(&b.total_ms));
    let middle = all.len() / 2;
    Ok((spread, all.swap_remove(middle)))
}

pub(super) fn measure(plan: &Plan, report: &mut Report) -> Result<(), BenchError> {
    let (many, one) = (plan.orders, 1);
    for (name, seats, orders) in
        [("n100_k1000", plan.large, many), ("n16_k1000", plan.small, many), ("n100_k1", plan.large, one)]
    {
        let stage = Stage::new(seats, orders)?;
        let recording = stage.record()?;
        let (spread, middle) = rounds(&stage, &recording, plan.runs)?;
        if orders == one && seats == plan.large {
            report.spread("single_auction_ms_n100", spread);
        } else {
            let per_s = spread.map(|ms| orders as f64 / ms * 1e3);
            report.spread(&format!("auctions_per_s_core_{name}"), per_s);
        }
        if name == "n100_k1000" {
            let each = |bytes: usize| bytes as f64 / orders as f64;
            report.key("upload_bytes_per_auction_per_seat_n100_k1000", each(recording.uploaded));
            report.detail("upload_bytes_per_auction_to_homes_n100_k1000", each(recording.to_homes));
            report.key("certificate_bytes_n100", recording.certificate_bytes() as f64);
            let (_, ms) = timed(|| stage.seat(0))?;
            report.detail("order_intake_us", ms * 1e3 / orders as f64);
        }
        report.detail(format!("{name} awarded"), recording.awarded as f64);
        report.detail(format!("{name} ms"), middle.total_ms);
        for (step, ms) in middle.by_step {
            report.detail(format!("{name} ms: {step}"), ms);
        }
    }
    Ok(())
}
