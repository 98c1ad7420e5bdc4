//! A seat and a home that are told whatever others say, in whatever order.
//!
//! An input is a list of steps: who speaks, how long nobody spoke before, and the message behind its length. Messages
//! that decode are signed anew by the keys of who is said to have sent them, so that changed ones get past the signature.

use super::Cost::Signature;
use super::wire::message;
use super::{Target, target};
use crate::fixture::{fixture, offers};
use vendue_auction_core::wire::decode;
use vendue_auction_core::{
    Home, HomeInput, HomeKeys, HomeOutput, Peer, Seat, SeatCrypto, SeatInput, SeatKeys, SeatOutput,
};

pub(super) const TARGETS: &[Target] = &[target("seat", Signature, seat), target("home", Signature, home)];

/// Most steps that are taken of an input.
const STEPS: usize = 64;
/// Who speaks as the home.
pub const HOME: u8 = 3;
/// What one unit of waiting is, in milliseconds.
pub const UNIT_MS: u64 = 10;

/// Who, waiting, message.
type Step<'a> = (u8, u64, &'a [u8]);

fn steps(mut bytes: &[u8]) -> Vec<Step<'_>> {
    let mut steps = vec![];
    while let Some(([who, wait, high, low], rest)) = bytes.split_first_chunk::<4>() {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (message, next) = rest.split_at(len);
        steps.push((who % 4, u64::from(*wait) * UNIT_MS, message));
        bytes = next;
        if steps.len() == STEPS {
            break;
        }
    }
    steps
}

/// The message, signed by its sender, or the bytes where they are none.
fn signed(bytes: &[u8]) -> Vec<u8> {
    match decode(bytes, fixture().record.n()) {
        Ok(message) => fixture().sign(message).encode(),
        Err(_) => bytes.to_vec(),
    }
}

/// Whatever seat 0 is told: it drops it and counts why, or uses it; what it says is well formed.
fn seat(bytes: &[u8]) -> bool {
    let f = fixture();
    let keys = SeatKeys::from_json(&f.seat_keys[0]).expect("the keys of seat 0");
    let mut seat = Seat::fresh(f.record.clone(), 0, SeatCrypto::new(f.record.clone(), keys), 0);
    let mut now = f.starts_ms;
    seat.handle(now, SeatInput::Offers { offers: offers(0), models: vec![] });
    let steps = steps(bytes);
    for (who, wait, bytes) in &steps {
        now += wait;
        let from = if *who == HOME { Peer::Home(0) } else { Peer::Seat(u16::from(*who) + 1) };
        let before = seat.dropped().total();
        for output in seat.handle(now, SeatInput::Message { from, bytes: signed(bytes) }) {
            if let SeatOutput::Broadcast(said) | SeatOutput::Send { bytes: said, .. } = output {
                assert!(message(&said, f.record.n()), "the seat says what nobody reads");
            }
        }
        assert!(seat.next_wake().is_none_or(|at| at > now));
        assert!(seat.dropped().total() <= before + 8, "one message is counted many times");
    }
    (seat.dropped().total() as usize) < steps.len()
}

/// Whatever a home is told about the order that it has placed.
fn home(bytes: &[u8]) -> bool {
    let f = fixture();
    let mut home = Home::new(f.record.clone(), 0, HomeKeys::from_json(&f.home_key).expect("the home's key"));
    let mut now = f.submitted_ms;
    home.handle(now, HomeInput::Submit(Box::new(f.new_order.clone())));
    let steps = steps(bytes);
    for (who, wait, bytes) in &steps {
        now += wait;
        let from = u16::from(*who);
        for output in home.handle(now, HomeInput::Message { from, bytes: signed(bytes) }) {
            if let HomeOutput::Broadcast(said) | HomeOutput::Send { bytes: said, .. } = output {
                assert!(message(&said, f.record.n()), "the home says what nobody reads");
            }
        }
        assert!(home.next_wake().is_none_or(|at| at > now));
    }
    (home.dropped().total() as usize) < steps.len()
}
