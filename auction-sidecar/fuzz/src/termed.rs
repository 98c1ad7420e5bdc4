//! A round of orders that use every term, among four seats that hear each other at once and log all that they hear.
//!
//! Inputs: the market of the fixture. Outputs: the orders, what each seat was told, and what each seat wrote to its log.
//! Invariant: the same in every process. One order has a sealed ceiling and is paid the second price, one names the only
//! seat that may serve it, one can be interrupted in a window of time, one wants what no seat has; one seat's bids have
//! terms.

use crate::fixture::{fixture, offers};
use std::collections::VecDeque;
use std::sync::OnceLock;
use vendue_auction_core::log::LogRecord;
use vendue_auction_core::wire::{Body, OrderMsg};
use vendue_auction_core::{Peer, Seat, SeatCrypto, SeatInput, SeatKeys, SeatOutput, seal_ceiling};
use vendue_market::{BidTerms, Order, Price, Terms};
use vendue_sealed_bid::BidKey;

/// The round: late enough that nothing else happens at the time.
pub const ROUND: u64 = 40;

/// The round.
pub struct Termed {
    /// The orders, each with other terms.
    pub orders: Vec<Order>,
    /// The same as messages of the home.
    pub told: Vec<Vec<u8>>,
    /// What seat 0 heard from others, in order.
    pub heard: Vec<(u16, Vec<u8>)>,
    /// What each seat wrote.
    pub logs: Vec<Vec<LogRecord>>,
    /// When the orders were told.
    pub told_ms: u64,
}

/// Terms that do not exclude each other, every one but pinned and second price.
pub fn all_terms() -> Terms {
    Terms {
        regions: vec!["eu-1".into(), "us-2".into()],
        min_attestation: 1,
        start_ms: 30_000,
        end_ms: 90_000_000,
        min_standing: 5,
        interruptible: true,
        ..Terms::default()
    }
}

fn orders() -> Vec<Order> {
    let record = &fixture().record;
    let of = |job: &str, terms: Terms| Order {
        job: job.into(),
        first_round: ROUND,
        expires_ms: record.params.expiry(ROUND),
        after: None,
        terms: Box::new(terms),
        ..fixture().order.0.clone()
    };
    let sealed = |job: &str, micros, terms: Terms| {
        let plain = of(job, terms.clone());
        let price = Price::from_micros(micros).expect("a price");
        let ceiling = seal_ceiling(record, &plain, price, &BidKey::from_bytes(&[6; 32])).expect("a key");
        of(job, Terms { sealed_ceiling: Some(ceiling), ..terms })
    };
    let pinned = Some("provider-2".to_owned());
    vec![
        of("plain", Terms::default()),
        sealed("second", 2_150_000, Terms { second_price: true, ..Terms::default() }),
        of("pinned", Terms { pinned: pinned.clone(), ..Terms::default() }),
        of("window", Terms { interruptible: true, end_ms: 90_000_000, start_ms: 30_000, ..Terms::default() }),
        of("nobody", all_terms()),
        sealed("all", 2_500_000, Terms { pinned, ..all_terms() }),
    ]
}

fn seat(index: u16) -> Seat<SeatCrypto> {
    let f = fixture();
    let keys = SeatKeys::from_json(&f.seat_keys[usize::from(index)]).expect("the seat's keys");
    let mut seat = Seat::fresh(f.record.clone(), index, SeatCrypto::new(f.record.clone(), keys), 0);
    seat.log_received(true);
    seat
}

/// What seat `index` sells; the offers of seat 1 have terms.
fn sold(index: u16) -> SeatInput {
    let mut offers = offers(index);
    if index == 1 {
        let terms = BidTerms { start_ms: 1_000, duration_s: 90_000, may_interrupt: true };
        offers.iter_mut().for_each(|offer| offer.terms = terms);
    }
    SeatInput::Offers { offers, models: vec![] }
}

/// A round that is under way.
struct Bus {
    now: u64,
    seats: Vec<Seat<SeatCrypto>>,
    inputs: VecDeque<(u16, SeatInput)>,
    made: Termed,
    decided: usize,
}

impl Bus {
    fn handle(&mut self, to: u16, input: SeatInput) {
        if let (0, SeatInput::Message { from: Peer::Seat(from), bytes }) = (to, &input) {
            self.made.heard.push((*from, bytes.clone()));
        }
        let from = Peer::Seat(to);
        for output in self.seats[usize::from(to)].handle(self.now, input) {
            match output {
                SeatOutput::Persist(record) => self.made.logs[usize::from(to)].push(*record),
                SeatOutput::Broadcast(bytes) => {
                    let others = (0..4).filter(|other| *other != to);
                    let give = |other| (other, SeatInput::Message { from, bytes: bytes.clone() });
                    self.inputs.extend(others.map(give));
                }
                SeatOutput::Send { to: Peer::Seat(other), bytes } => {
                    self.inputs.push_back((other, SeatInput::Message { from, bytes }));
                }
                SeatOutput::Decided(_) => self.decided += 1,
                _ => {}
            }
        }
    }

    fn run(&mut self) {
        while self.decided < 4 {
            while let Some((to, input)) = self.inputs.pop_front() {
                self.handle(to, input);
            }
            let wake = self.seats.iter().filter_map(Seat::next_wake).min();
            self.now = wake.expect("a round is open").max(self.now + 1);
            self.inputs.extend((0..4).map(|seat| (seat, SeatInput::Tick)));
        }
    }
}

impl Termed {
    fn new() -> Self {
        let orders = orders();
        let say = |order: &Order| fixture().say(0, 0, Body::Order(OrderMsg { order: order.clone() }));
        let told: Vec<Vec<u8>> = orders.iter().map(say).collect();
        let told_ms = fixture().record.params.t0(ROUND) - 300;
        let made = Self { orders, told: told.clone(), heard: vec![], logs: vec![vec![]; 4], told_ms };
        let mut bus = Bus {
            now: told_ms,
            seats: (0..4).map(seat).collect(),
            inputs: (0..4).map(|seat| (seat, sold(seat))).collect(),
            made,
            decided: 0,
        };
        for message in told {
            let give = |to| (to, SeatInput::Message { from: Peer::Home(0), bytes: message.clone() });
            bus.inputs.extend((0..4).map(give));
        }
        bus.run();
        bus.made
    }
}

/// The round, made once.
pub fn termed() -> &'static Termed {
    static TERMED: OnceLock<Termed> = OnceLock::new();
    TERMED.get_or_init(Termed::new)
}
