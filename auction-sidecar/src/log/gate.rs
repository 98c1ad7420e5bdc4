//! Between the seat and the network: what a seat puts out waits here until the records that it rests on are durable.
//!
//! Inputs: the outputs of one call of the seat. Outputs: what may be carried out, in order. The thread that writes takes
//! all that waits in one go, so the engine never waits for the disk, and one sync serves many calls. Invariants: nothing of
//! a call, or of a later one, passes before the records of that call are durable; after a failed write nothing passes; a
//! bundle or SET that the disk has kept too long does not pass at all: others might hold it against the seat.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use vendue_auction_core::log::LogRecord;
use vendue_auction_core::wire::{Body, Header, Kind, decode};
use vendue_auction_core::{Params, SeatOutput};
use vendue_market::encode::Reader;

use super::append::Appender;
use crate::engine::now_ms;
use crate::metrics::Metrics;

/// Calls whose records wait to be written. Above [`MANY`] there is room for what comes with no message: time and bridge.
const QUEUE: usize = 4096;
/// Most calls whose records are written at once.
const GROUP: usize = 256;
/// Calls that wait for the disk before the seat is given no more messages.
const MANY: u64 = 1024;
/// Bytes of messages that wait for the disk before the seat is given no more messages.
const MANY_BYTES: usize = 32 << 20;
/// What an output takes beside its message.
const OUTPUT_BYTES: usize = 256;

/// How far the log has come.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Calls whose records are durable.
    pub durable: u64,
    /// Why there is no progress any more.
    pub failed: Option<String>,
}

struct Batch {
    number: u64,
    records: Vec<LogRecord>,
}

struct Log {
    queue: mpsc::Sender<Batch>,
    progress: watch::Receiver<Progress>,
    params: Params,
    metrics: Arc<Metrics>,
}

/// What a call put out.
struct Held {
    output: SeatOutput,
    /// After this moment it is better not said.
    until_ms: Option<u64>,
}

impl Held {
    fn bytes(&self) -> usize {
        OUTPUT_BYTES + message(&self.output).map_or(0, <[u8]>::len)
    }
}

fn message(output: &SeatOutput) -> Option<&[u8]> {
    match output {
        SeatOutput::Broadcast(bytes) | SeatOutput::Send { bytes, .. } => Some(bytes),
        _ => None,
    }
}

fn header(output: &SeatOutput) -> Option<Header> {
    Header::read(&mut Reader::new(message(output)?)).ok()
}

/// Messages that were not said because they had come too late: what is said again must have been said before.
#[derive(Default)]
struct Withheld(BTreeSet<(u64, Kind)>);

impl Withheld {
    fn add(&mut self, output: &SeatOutput, params: &Params, now_ms: u64) {
        self.0.retain(|(round, _)| params.expiry(*round) >= now_ms);
        self.0.extend(header(output).map(|header| (header.round, header.kind)));
    }

    fn has(&self, output: &SeatOutput) -> bool {
        !self.0.is_empty() && header(output).is_some_and(|h| self.0.contains(&(h.round, h.kind)))
    }
}

/// The gate. Without a log everything passes at once.
#[derive(Default)]
pub struct Gate {
    log: Option<Log>,
    /// What waits, with the number of the last call before it, or of itself, that had records.
    held: VecDeque<(u64, Held)>,
    held_bytes: usize,
    withheld: Withheld,
    /// The last call that had records.
    number: u64,
    /// The last call whose records are known to be durable.
    durable: u64,
    failed: Option<String>,
}

/// Until when a message that is said for the first time is worth saying.
///
/// Who gets a bundle after T1 lists it nowhere, and with f + 1 such SETs it is a proof that its seat bid too late. D bounds
/// all that lies between T0 and the moment at which every seat has taken the bundle in: what its seat needs to seal and
/// store it, the way, the difference of the clocks, and what the receiver needs. A bundle that leaves at T0 is there by
/// T1; one that leaves later is there only if the rest takes less than its bound. So the seat's own part, the disk
/// included, may take half of D, and half of D stays for the rest. What is held back is no evidence, it only does not count.
///
/// A bundle that names no order is nobody's evidence, for nothing is lost with it. It may leave until T1: a seat that the
/// bundles of others wake is later than they are by a way and a disk, and without its bundle no round is final at once.
///
/// A SET after view 0 has no vote to follow, and the seat's NEWVIEW shows it.
fn deadline(params: &Params, records: &[LogRecord], output: &SeatOutput) -> Option<u64> {
    let SeatOutput::Broadcast(bytes) = output else { return None };
    let is_new = records.iter().any(|r| matches!(r, LogRecord::Said { bytes: said, .. } if said == bytes));
    let header = is_new.then(|| header(output)).flatten()?;
    match header.kind {
        Kind::Bundle if names_no_order(bytes) => Some(params.t1(header.round)),
        Kind::Bundle => Some(params.t0(header.round).saturating_add(params.delay_ms / 2)),
        Kind::Set => Some(params.t3(header.round)),
        _ => None,
    }
}

fn names_no_order(bundle: &[u8]) -> bool {
    // How many seats there are is nothing to a bundle.
    let body = decode(bundle, u16::MAX).map(|message| message.body);
    matches!(body, Ok(Body::Bundle(bundle)) if bundle.order_view.is_empty())
}

impl Gate {
    /// A gate that waits for this log; its thread ends with the gate.
    pub fn new(log: Appender, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (queue, batches) = mpsc::channel(QUEUE);
        let (report, progress) = watch::channel(Progress::default());
        let (params, counters) = (log.params(), metrics.clone());
        std::thread::Builder::new()
            .name("seat-log".into())
            .spawn(move || write(log, batches, &report, &counters))?;
        Ok(Self { log: Some(Log { queue, progress, params, metrics }), ..Self::default() })
    }

    /// Takes the outputs of one call of the seat; gives what may be carried out now.
    pub fn pass(&mut self, outputs: Vec<SeatOutput>) -> Vec<SeatOutput> {
        if self.failed.is_some() {
            return vec![];
        }
        let (mut records, mut rest) = (vec![], vec![]);
        for output in outputs {
            match output {
                SeatOutput::Persist(record) => records.push(*record),
                other => rest.push(other),
            }
        }
        let Some(log) = &self.log else { return rest };
        rest.retain(|output| !self.withheld.has(output));
        if records.is_empty() && self.durable >= self.number {
            return rest;
        }
        let params = log.params;
        let until: Vec<_> = rest.iter().map(|output| deadline(&params, &records, output)).collect();
        if !records.is_empty() {
            self.number += 1;
            let batch = Batch { number: self.number, records };
            if log.queue.try_send(batch).is_err() {
                let failed = log.progress.borrow().failed.clone();
                self.fail(failed.unwrap_or_else(|| "the disk does not keep up".to_owned()));
                return vec![];
            }
        }
        for (output, until_ms) in rest.into_iter().zip(until) {
            let held = Held { output, until_ms };
            self.held_bytes += held.bytes();
            self.held.push_back((self.number, held));
        }
        vec![]
    }

    fn fail(&mut self, why: String) {
        self.failed = Some(why);
        self.held.clear();
        self.held_bytes = 0;
    }

    /// Waits until the log has come further.
    pub async fn changed(&mut self) {
        let open = match &mut self.log {
            Some(log) => log.progress.changed().await.is_ok(),
            None => false,
        };
        if !open {
            std::future::pending().await
        }
    }

    /// What may be carried out since the log has come further.
    pub fn released(&mut self, now_ms: u64) -> Vec<SeatOutput> {
        let Some(log) = &mut self.log else { return vec![] };
        let Progress { durable, failed } = log.progress.borrow_and_update().clone();
        self.durable = durable;
        let mut out = vec![];
        while let Some((_, held)) = self.held.pop_front_if(|(number, _)| *number <= durable) {
            self.held_bytes = self.held_bytes.saturating_sub(held.bytes());
            if held.until_ms.is_some_and(|until_ms| now_ms > until_ms) {
                log.metrics.dropped("log_late");
                self.withheld.add(&held.output, &log.params, now_ms);
            } else if !self.withheld.has(&held.output) {
                out.push(held.output);
            }
        }
        if let Some(failed) = failed {
            self.fail(failed);
        }
        out
    }

    /// Why nothing passes any more.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Whether so much waits for the disk that the seat is better told nothing.
    pub fn is_full(&self) -> bool {
        self.number.saturating_sub(self.durable) >= MANY || self.held_bytes >= MANY_BYTES
    }
}

/// A disk that does what a test says.
#[cfg(test)]
pub(crate) struct TestDisk {
    _batches: mpsc::Receiver<Batch>,
    report: watch::Sender<Progress>,
}

#[cfg(test)]
impl TestDisk {
    /// Has the records of calls up to this one durable.
    pub(crate) fn sync(&self, durable: u64) {
        self.report.send_replace(Progress { durable, failed: None });
    }
}

#[cfg(test)]
impl Gate {
    /// A gate before a disk that does what a test says.
    pub(crate) fn before_test_disk(params: Params, metrics: Arc<Metrics>) -> (Self, TestDisk) {
        let (queue, batches) = mpsc::channel(QUEUE);
        let (report, progress) = watch::channel(Progress::default());
        let gate = Self { log: Some(Log { queue, progress, params, metrics }), ..Self::default() };
        (gate, TestDisk { _batches: batches, report })
    }

    /// Lets as much wait as makes the gate full.
    pub(crate) fn fill(&mut self) {
        while !self.is_full() {
            let record = LogRecord::Freed { order: [0; 32] };
            let _ = self.pass(vec![SeatOutput::Persist(Box::new(record))]);
        }
    }
}

/// Writes what comes until nobody is left who sends, or until a write fails.
fn write(
    mut log: Appender,
    mut batches: mpsc::Receiver<Batch>,
    report: &watch::Sender<Progress>,
    metrics: &Metrics,
) {
    while let Some(first) = batches.blocking_recv() {
        let (mut number, mut records) = (first.number, first.records);
        for _ in 1..GROUP {
            let Ok(next) = batches.try_recv() else { break };
            number = next.number;
            records.extend(next.records);
        }
        let start = Instant::now();
        match log.append(&records, now_ms()) {
            Ok(bytes) => {
                metrics.log_sync.observe(start.elapsed().as_secs_f64());
                metrics.log_records.inc_by(records.len() as u64);
                metrics.log_written.inc_by(bytes);
                metrics.log_bytes.set(i64::try_from(log.bytes()).unwrap_or(i64::MAX));
                report.send_replace(Progress { durable: number, failed: None });
            }
            Err(error) => {
                report.send_modify(|progress| progress.failed = Some(error.to_string()));
                return;
            }
        }
    }
}
