//! What becomes of fault proofs: each is counted, told in the log, and kept as a file.
//!
//! Inputs: proofs that the seat made. Outputs: files `seat-<seat>-<fault>.<number>.json` in the folder `proofs` of the log.
//! Invariant: the number of files is bounded, in all and for each seat and fault; the first ones stay, for one is enough.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;
use vendue_auction_core::MarketRecord;
use vendue_auction_core::proof::{Fault, FaultProof, Verdict, verify};

use super::files::{self, LogDirError, fail};
use crate::metrics::Metrics;

/// Proofs that wait.
const QUEUE: usize = 64;
/// Most files in all.
const MAX_FILES: usize = 1024;
/// Most files for one seat and fault.
const MAX_OF_ONE: usize = 8;

/// Every fault.
const FAULTS: [Fault; 11] = [
    Fault::TwoBundles,
    Fault::TwoSets,
    Fault::TwoVotes,
    Fault::AgainstLock,
    Fault::HiddenSet,
    Fault::TwoAwards,
    Fault::Absent,
    Fault::Garbage,
    Fault::BadShare,
    Fault::Unjustified,
    Fault::WrongAward,
];

/// A fault in one word, for metrics, logs and names of files.
pub fn fault_name(fault: Fault) -> &'static str {
    match fault {
        Fault::TwoBundles => "two_bundles",
        Fault::TwoSets => "two_sets",
        Fault::TwoVotes => "two_votes",
        Fault::AgainstLock => "against_lock",
        Fault::HiddenSet => "hidden_set",
        Fault::TwoAwards => "two_awards",
        Fault::Absent => "absent",
        Fault::Garbage => "garbage",
        Fault::BadShare => "bad_share",
        Fault::Unjustified => "unjustified",
        Fault::WrongAward => "wrong_award",
    }
}

/// Hands proofs to the thread that keeps them.
#[derive(Clone)]
pub struct ProofKeeper {
    queue: mpsc::Sender<FaultProof>,
    metrics: Arc<Metrics>,
}

impl ProofKeeper {
    /// Keeps proofs in the folder of the log; without one they are counted and told only.
    pub fn start(
        dir: Option<PathBuf>,
        record: Arc<MarketRecord>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, LogDirError> {
        for fault in FAULTS {
            metrics.fault_proofs.with_label_values(&[fault_name(fault)]);
        }
        let mut shelf = dir.map(|dir| Shelf::open(&dir.join("proofs"))).transpose()?;
        let (queue, mut proofs) = mpsc::channel(QUEUE);
        let counted = metrics.clone();
        let thread = std::thread::Builder::new().name("fault-proofs".into());
        let keep = move || {
            while let Some(proof) = proofs.blocking_recv() {
                keep(&proof, &record, shelf.as_mut(), &counted);
            }
        };
        thread.spawn(keep).map_err(fail("start thread for", Path::new("proofs")))?;
        Ok(Self { queue, metrics })
    }

    /// Takes a proof; never waits.
    pub fn keep(&self, proof: FaultProof) {
        if self.queue.try_send(proof).is_err() {
            self.metrics.dropped("proofs_full");
        }
    }
}

/// Whom and what a proof is about is found by judging it, which may be costly: clearing a round again.
fn keep(proof: &FaultProof, record: &MarketRecord, shelf: Option<&mut Shelf>, metrics: &Metrics) {
    let Verdict::Guilty { seats, fault } = verify(proof, record) else { return };
    let fault = fault_name(fault);
    metrics.fault_proofs.with_label_values(&[fault]).inc();
    let kept = shelf.map(|shelf| shelf.put(&seats, fault, proof));
    match kept {
        Some(Err(error)) => tracing::error!(?seats, fault, %error, "fault proven; the proof is not kept"),
        Some(Ok(Some(path))) => {
            tracing::warn!(?seats, fault, proof = %path.display(), "fault proven");
        }
        Some(Ok(None)) | None => tracing::warn!(?seats, fault, "fault proven"),
    }
}

/// The folder of proofs.
struct Shelf {
    dir: PathBuf,
    /// Files by seat and fault.
    counts: BTreeMap<String, usize>,
}

impl Shelf {
    fn open(dir: &Path) -> Result<Self, LogDirError> {
        std::fs::create_dir_all(dir).map_err(fail("create folder", dir))?;
        let mut counts = BTreeMap::new();
        for entry in std::fs::read_dir(dir).map_err(fail("list", dir))? {
            let name = entry.map_err(fail("list", dir))?.file_name();
            if let Some(key) =
                name.to_str().and_then(|n| n.strip_suffix(".json")?.split_once('.')).map(|p| p.0)
            {
                *counts.entry(key.to_owned()).or_default() += 1;
            }
        }
        Ok(Self { dir: dir.to_owned(), counts })
    }

    /// Stores a proof if there is room for it.
    fn put(
        &mut self,
        seats: &[u16],
        fault: &str,
        proof: &FaultProof,
    ) -> Result<Option<PathBuf>, LogDirError> {
        let seats: Vec<String> = seats.iter().take(8).map(ToString::to_string).collect();
        let key = format!("seat-{}-{fault}", seats.join("-"));
        let all: usize = self.counts.values().sum();
        let count = self.counts.entry(key.clone()).or_default();
        if *count >= MAX_OF_ONE || all >= MAX_FILES {
            return Ok(None);
        }
        let path = self.dir.join(format!("{key}.{count}.json"));
        files::create(&self.dir, &path, proof.to_json().as_bytes())?;
        *count += 1;
        Ok(Some(path))
    }
}
