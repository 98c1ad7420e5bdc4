//! Time to the certificate in an emulated network of ten regions.
//!
//! All seats run the real state machine with the real cryptography. Time is virtual: a message takes half the measured
//! round trip between the regions of its sender and receiver, with jitter. A seat has one core: it works on one message
//! at a time, in the order of arrival, and each takes as long as the real call took in CPU time on this machine; what the
//! call says leaves when it is done. So CPU and network add up where they follow each other and overlap where they do
//! not. Bandwidth is not emulated, nor the work of a transport.
//!
//! Inputs: a latency matrix, how many seats there are and which are silent. Output: when each seat had the awards and the
//! certificate.

use super::round::{CLOCK, Stage};
use super::{BenchError, Plan, Report, Spread, timed};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_auction_core::wire::{Kind, peek_kind};
use vendue_auction_core::{Peer, Seat, SeatCrypto, SeatInput, SeatOutput};

/// Orders in the round.
const ORDERS: usize = 10;
/// Jitter, in thousandths of the delay, up and down.
const JITTER: u64 = 40;

/// Round trips between regions.
#[derive(Debug, Clone, Deserialize)]
pub struct Matrix {
    /// Where the numbers come from.
    pub source: String,
    /// The regions.
    pub regions: Vec<String>,
    round_trip_ms: Vec<Vec<f64>>,
}

impl Matrix {
    /// Ten regions of one cloud provider, all over the world.
    pub fn global() -> Result<Self, BenchError> {
        let matrix: Self = serde_json::from_str(include_str!("../../data/aws-10-regions.json"))?;
        let n = matrix.regions.len();
        let square = matrix.round_trip_ms.len() == n && matrix.round_trip_ms.iter().all(|row| row.len() == n);
        if square && n > 0 {
            Ok(matrix)
        } else {
            Err(BenchError::Missing("the latency matrix is not square"))
        }
    }

    /// One-way delay between two seats, which are spread over the regions in turn.
    fn one_way_us(&self, from: u16, to: u16) -> u64 {
        let region = |seat: u16| usize::from(seat) % self.regions.len();
        let row = self.round_trip_ms.get(region(from));
        let round_trip = row.and_then(|row| row.get(region(to))).copied().unwrap_or_default();
        (round_trip * 500.0) as u64
    }
}

/// Something that reaches a seat.
enum Due {
    Tick,
    Message(u16, Arc<Vec<u8>>),
}

/// A seat in its region.
struct Node {
    seat: Seat<SeatCrypto>,
    /// When its core is free.
    free_us: u64,
    /// For when it is to be woken.
    wake_us: Option<u64>,
}

/// One round in the emulated network.
pub struct Emulated<'a> {
    matrix: &'a Matrix,
    nodes: BTreeMap<u16, Node>,
    seats: u16,
    start_us: u64,
    queue: BTreeMap<(u64, u64), (u16, Due)>,
    serial: u64,
    rng: ChaCha20Rng,
    /// Microseconds from the start of the round until a seat knew its awards.
    pub awarded_us: BTreeMap<u16, u64>,
    /// The same until it had the certificate.
    pub certified_us: BTreeMap<u16, u64>,
}

impl<'a> Emulated<'a> {
    /// The round of a stage, in which these seats are silent.
    pub fn new(
        matrix: &'a Matrix,
        stage: &Stage,
        silent: &BTreeSet<u16>,
        seed: u64,
    ) -> Result<Self, BenchError> {
        let start_us = CLOCK.t0(stage.round) * 1000;
        let mut nodes = BTreeMap::new();
        for index in (0..stage.seats()).filter(|i| !silent.contains(i)) {
            nodes.insert(index, Node { seat: stage.seat(index)?, free_us: start_us, wake_us: None });
        }
        let mut emulated = Self {
            matrix,
            seats: stage.seats(),
            start_us,
            queue: BTreeMap::new(),
            serial: 0,
            rng: ChaCha20Rng::seed_from_u64(seed),
            awarded_us: BTreeMap::new(),
            certified_us: BTreeMap::new(),
            nodes,
        };
        let indices: Vec<u16> = emulated.nodes.keys().copied().collect();
        indices.into_iter().for_each(|index| emulated.at(start_us, index, Due::Tick));
        Ok(emulated)
    }

    fn at(&mut self, us: u64, seat: u16, due: Due) {
        self.serial += 1;
        self.queue.insert((us, self.serial), (seat, due));
    }

    /// Runs until every seat that speaks has the certificate, or voting has stopped.
    pub fn run(&mut self) -> Result<(), BenchError> {
        let end_us = self.start_us + 40 * CLOCK.delay_ms * 1000;
        while let Some(((at_us, _), (to, due))) = self.queue.pop_first() {
            if at_us > end_us || self.certified_us.len() == self.nodes.len() {
                break;
            }
            let Some(node) = self.nodes.get_mut(&to) else { continue };
            let input = match due {
                Due::Tick if node.wake_us.is_some_and(|wake| wake != at_us) => continue,
                Due::Tick => SeatInput::Tick,
                Due::Message(from, bytes) => {
                    SeatInput::Message { from: Peer::Seat(from), bytes: bytes.to_vec() }
                }
            };
            let begun_us = at_us.max(node.free_us);
            let (said, ms) = timed(|| node.seat.handle(begun_us / 1000, input))?;
            let done_us = begun_us + (ms * 1e3) as u64;
            node.free_us = done_us;
            let wake_us = node.seat.next_wake().map(|ms| (ms * 1000).max(done_us));
            node.wake_us = wake_us;
            if let Some(wake_us) = wake_us {
                self.at(wake_us, to, Due::Tick);
            }
            self.carry(to, done_us, said);
        }
        if self.certified_us.is_empty() { Err(BenchError::Missing("no certificate in time")) } else { Ok(()) }
    }

    fn carry(&mut self, from: u16, done_us: u64, said: Vec<SeatOutput>) {
        let since = done_us - self.start_us;
        for output in said {
            match output {
                SeatOutput::Broadcast(bytes) => {
                    if peek_kind(&bytes) == Some(Kind::Award) {
                        self.awarded_us.entry(from).or_insert(since);
                    }
                    let bytes = Arc::new(bytes);
                    for to in (0..self.seats).filter(|to| *to != from) {
                        self.send(from, to, done_us, bytes.clone());
                    }
                }
                SeatOutput::Send { to: Peer::Seat(to), bytes } => {
                    self.send(from, to, done_us, Arc::new(bytes));
                }
                SeatOutput::Decided(_) => {
                    self.certified_us.entry(from).or_insert(since);
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, from: u16, to: u16, at_us: u64, bytes: Arc<Vec<u8>>) {
        let delay = self.matrix.one_way_us(from, to);
        let jitter = 1000 - JITTER + self.rng.next_u64() % (2 * JITTER + 1);
        self.at(at_us + delay * jitter / 1000, to, Due::Message(from, bytes));
    }
}

fn milliseconds(us: &BTreeMap<u16, u64>) -> Result<Spread, BenchError> {
    Spread::of(us.values().map(|us| *us as f64 / 1e3).collect())
}

pub(super) fn measure(plan: &Plan, report: &mut Report) -> Result<(), BenchError> {
    let matrix = Matrix::global()?;
    let stage = Stage::new(plan.large, ORDERS)?;
    let f = plan.large.saturating_sub(1) / 3;
    for (name, silent) in [("all_up", 0), ("f_silent", f)] {
        let mut emulated = Emulated::new(&matrix, &stage, &(0..silent).collect(), 5)?;
        emulated.run()?;
        report.spread(&format!("certificate_ms_n100_global_{name}"), milliseconds(&emulated.certified_us)?);
        report.detail(format!("awards known ms, {name}"), milliseconds(&emulated.awarded_us)?.median);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_far_apart_and_alike_in_both_directions() {
        let matrix = Matrix::global().unwrap();
        assert_eq!(matrix.regions.len(), 10);
        assert!(matrix.source.contains("cloudping"));
        for from in 0..10 {
            for to in 0..10 {
                let (there, back) = (matrix.one_way_us(from, to), matrix.one_way_us(to, from));
                assert!(there.abs_diff(back) < 5_000, "{from} {to}");
                assert!(from == to || (5_000..160_000).contains(&there), "{from} {to} {there}");
            }
        }
    }
}
