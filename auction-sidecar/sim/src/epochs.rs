//! The keys of the next epoch of a simulated market: its seats make them on a network without faults.
//!
//! Inputs: the real keys of the market, and a start. Output: the next record, and each seat's keys with its new share.

use crate::generation::{GenerationError, secrets};
use crate::keys::{Keys, RealKeys};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use vendue_auction_core::keygen::{
    Generated, KeyGeneration, KeyInput, KeyOutput, LEAST_NOTICE_MS, Terms, next_record,
};
use vendue_auction_core::{KeyError, MarketRecord, SeatCrypto, SeatKeys};
use vendue_sealed_bid::dkg::Purpose;

/// How long a message takes.
const HOP_MS: u64 = 10;
/// Seeds what the seats deal.
const SEED: u64 = 11;

/// The next epoch.
pub struct NextEpoch {
    /// Its record.
    pub record: Arc<MarketRecord>,
    /// The seats' keys in their file form.
    pub files: Vec<String>,
}

/// The seats and what is on its way.
struct Run {
    seats: Vec<KeyGeneration<SeatCrypto>>,
    queue: VecDeque<(u64, u16, u16, Vec<u8>)>,
    now: u64,
    done: BTreeMap<u16, Generated>,
}

impl Run {
    fn give(&mut self, to: u16, input: KeyInput) {
        let n = self.seats.len() as u16;
        let Some(seat) = self.seats.get_mut(usize::from(to)) else { return };
        let at = self.now + HOP_MS;
        for output in seat.handle(self.now, input) {
            match output {
                KeyOutput::Broadcast(bytes) => {
                    let others = (0..n).filter(|other| *other != to);
                    self.queue.extend(others.map(|other| (at, to, other, bytes.clone())));
                }
                KeyOutput::Send { to: other, bytes } => self.queue.push_back((at, to, other, bytes)),
                KeyOutput::Done(made) => {
                    self.done.insert(to, *made);
                }
                KeyOutput::Persist(_) | KeyOutput::Evidence(_) | KeyOutput::Fruitless { .. } => {}
            }
        }
    }

    /// Goes on until all seats are done, or nothing happens any more.
    fn run(&mut self) {
        let all = 0..self.seats.len() as u16;
        all.clone().for_each(|seat| self.give(seat, KeyInput::Tick));
        while self.done.len() < self.seats.len() {
            let wakes = self.seats.iter().filter_map(KeyGeneration::next_wake);
            let Some(next) = wakes.chain(self.queue.front().map(|sent| sent.0)).min() else { return };
            self.now = self.now.max(next);
            while let Some((_, from, to, bytes)) = self.queue.pop_front_if(|sent| sent.0 <= self.now) {
                self.give(to, KeyInput::Message { from, bytes });
            }
            all.clone().for_each(|seat| self.give(seat, KeyInput::Tick));
        }
    }
}

impl NextEpoch {
    /// Lets the seats of a market make it.
    pub fn generate(keys: &RealKeys, start_ms: u64) -> Result<Self, GenerationError> {
        let old = keys.record();
        let terms = Terms::new(&old, Purpose::Key, start_ms, LEAST_NOTICE_MS)?;
        let mut seats = vec![];
        for seat in 0..old.n() {
            let crypto = Arc::new(keys.seat(seat)?);
            seats.push(KeyGeneration::new(terms.clone(), seat, crypto, secrets(SEED, seat)?, start_ms)?);
        }
        let mut run = Run { seats, queue: VecDeque::new(), now: start_ms, done: BTreeMap::new() };
        run.run();
        let first = run.done.get(&0).ok_or(GenerationError::Unfinished)?;
        let record = next_record(&old, &terms, first.set, &first.outcome.keys, &first.certificate)?;
        let mut files = vec![];
        for (seat, made) in run.done {
            let file = keys.seat_file(seat).ok_or(KeyError::Mismatch("seat number"))?;
            let share = made.share.ok_or(GenerationError::Unfinished)?;
            files.push(SeatKeys { share, ..SeatKeys::from_json(file)? }.to_json().to_string());
        }
        Ok(Self { record: Arc::new(record), files })
    }
}
