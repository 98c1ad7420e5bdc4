//! What becomes of fault proofs: each is counted, told in the log, and kept as a file.
//!
//! Inputs: proofs that the seat made. Outputs: files `seat-<seat>-<fault>.<number>.json` in the folder `proofs` of the log.
//! Invariants: number and bytes of the files are bounded, in all and for each seat and fault, for they share the log's
//! volume; the first ones stay, for one is enough; a file under a name of a proof is whole.

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
/// Most bytes in all. The chart keeps as much of the log's volume free.
pub(super) const MAX_BYTES: u64 = 64 << 20;
/// Of proofs longer than this one is kept for a seat and fault: they hold whole rounds.
const LARGE: u64 = 1 << 20;

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
    /// Keeps proofs in the folder of the log; without one they are counted and told only. `records` are those of the
    /// epochs that the process knows.
    pub fn start(
        dir: Option<PathBuf>,
        records: Vec<Arc<MarketRecord>>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, LogDirError> {
        for fault in FAULTS {
            metrics.fault_proofs.with_label_values(&[fault_name(fault)]);
        }
        let mut shelf = dir.map(|dir| Shelf::open(&dir.join("proofs"), MAX_BYTES)).transpose()?;
        let (queue, mut proofs) = mpsc::channel(QUEUE);
        let counted = metrics.clone();
        let thread = std::thread::Builder::new().name("fault-proofs".into());
        let keep = move || {
            while let Some(proof) = proofs.blocking_recv() {
                keep(&proof, &records, shelf.as_mut(), &counted);
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

/// Whom and what a proof is about is found by judging it, which may be costly: clearing a round again. A proof is of one
/// epoch, and holds by the record of that one only.
fn keep(proof: &FaultProof, records: &[Arc<MarketRecord>], shelf: Option<&mut Shelf>, metrics: &Metrics) {
    let verdict = records.iter().find_map(|record| match verify(proof, record) {
        Verdict::Guilty { seats, fault } => Some((seats, fault)),
        Verdict::Unproven(_) => None,
    });
    let Some((seats, fault)) = verdict else { return };
    let fault = fault_name(fault);
    metrics.fault_proofs.with_label_values(&[fault]).inc();
    let kept = shelf.map(|shelf| shelf.put(&seats, fault, proof.to_json().as_bytes()));
    match kept {
        Some(Err(error)) => tracing::error!(?seats, fault, %error, "fault proven; the proof is not kept"),
        Some(Ok(Some(path))) => {
            tracing::warn!(?seats, fault, proof = %path.display(), "fault proven");
        }
        Some(Ok(None)) | None => tracing::warn!(?seats, fault, "fault proven"),
    }
}

/// The folder of proofs.
pub(super) struct Shelf {
    dir: PathBuf,
    /// Files by seat and fault.
    counts: BTreeMap<String, usize>,
    /// Bytes of all files.
    bytes: u64,
    max_bytes: u64,
}

impl Shelf {
    pub(super) fn open(dir: &Path, max_bytes: u64) -> Result<Self, LogDirError> {
        std::fs::create_dir_all(dir).map_err(fail("create folder", dir))?;
        files::remove(&dir.join(files::UNFINISHED))?;
        let (mut counts, mut bytes) = (BTreeMap::new(), 0);
        for entry in std::fs::read_dir(dir).map_err(fail("list", dir))? {
            let entry = entry.map_err(fail("list", dir))?;
            bytes += entry.metadata().map_err(fail("inspect", &entry.path()))?.len();
            let name = entry.file_name();
            if let Some(key) =
                name.to_str().and_then(|n| n.strip_suffix(".json")?.split_once('.')).map(|p| p.0)
            {
                *counts.entry(key.to_owned()).or_default() += 1;
            }
        }
        Ok(Self { dir: dir.to_owned(), counts, bytes, max_bytes })
    }

    /// Stores a proof if there is room for it.
    pub(super) fn put(
        &mut self,
        seats: &[u16],
        fault: &str,
        proof: &[u8],
    ) -> Result<Option<PathBuf>, LogDirError> {
        let seats: Vec<String> = seats.iter().take(8).map(ToString::to_string).collect();
        let key = format!("seat-{}-{fault}", seats.join("-"));
        let (len, all) = (proof.len() as u64, self.counts.values().sum::<usize>());
        let count = self.counts.entry(key.clone()).or_default();
        let most = if len > LARGE { 1 } else { MAX_OF_ONE };
        if *count >= most || all >= MAX_FILES || self.bytes.saturating_add(len) > self.max_bytes {
            return Ok(None);
        }
        // Somebody may have taken files away.
        let names = (0..MAX_OF_ONE).map(|number| self.dir.join(format!("{key}.{number}.json")));
        let Some(path) = names.into_iter().find(|path| !path.exists()) else { return Ok(None) };
        files::create_whole(&self.dir, &path, proof)?;
        *count += 1;
        self.bytes += len;
        Ok(Some(path))
    }
}
