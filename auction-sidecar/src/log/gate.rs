//! Between the seat and the network: what a seat puts out waits here until the records that it rests on are durable.
//!
//! Inputs: the outputs of one call of the seat. Outputs: what may be carried out, in order. The thread that writes takes
//! all that waits in one go, so the engine never waits for the disk, and one sync serves many calls. Invariant: nothing of
//! a call, or of a later one, passes before the records of that call are durable; after a failed write nothing passes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use vendue_auction_core::SeatOutput;
use vendue_auction_core::log::LogRecord;

use super::append::Appender;
use crate::engine::now_ms;
use crate::metrics::Metrics;

/// Calls whose records wait to be written.
const QUEUE: usize = 4096;
/// Most calls whose records are written at once.
const GROUP: usize = 256;
/// Calls that wait for the disk before the seat is given no more messages.
const MANY: usize = 1024;

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
}

/// The gate. Without a log everything passes at once.
#[derive(Default)]
pub struct Gate {
    log: Option<Log>,
    held: VecDeque<(u64, Vec<SeatOutput>)>,
    number: u64,
    failed: Option<String>,
}

impl Gate {
    /// A gate that waits for this log; its thread ends with the gate.
    pub fn new(log: Appender, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (queue, batches) = mpsc::channel(QUEUE);
        let (report, progress) = watch::channel(Progress::default());
        std::thread::Builder::new()
            .name("seat-log".into())
            .spawn(move || write(log, batches, &report, &metrics))?;
        Ok(Self { log: Some(Log { queue, progress }), ..Self::default() })
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
        if !records.is_empty() {
            self.number += 1;
            let batch = Batch { number: self.number, records };
            if log.queue.try_send(batch).is_err() {
                let why = match &log.progress.borrow().failed {
                    Some(failed) => failed.clone(),
                    None => "the disk does not keep up".to_owned(),
                };
                self.failed = Some(why);
                self.held.clear();
                return vec![];
            }
        } else if self.held.is_empty() {
            return rest;
        }
        self.held.push_back((self.number, rest));
        vec![]
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
    pub fn released(&mut self) -> Vec<SeatOutput> {
        let Some(log) = &mut self.log else { return vec![] };
        let Progress { durable, failed } = log.progress.borrow_and_update().clone();
        let mut out = vec![];
        while let Some((number, _)) = self.held.front()
            && *number <= durable
        {
            out.extend(self.held.pop_front().into_iter().flat_map(|(_, outputs)| outputs));
        }
        if let Some(failed) = failed {
            self.failed = Some(failed);
            self.held.clear();
        }
        out
    }

    /// Why nothing passes any more.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Whether so much waits for the disk that the seat is better told nothing.
    pub fn is_full(&self) -> bool {
        self.held.len() >= MANY
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
