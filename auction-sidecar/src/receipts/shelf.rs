//! Where receipts are kept: the chains, what their nodes are called, evidence.
//!
//! Inputs: records that seats sent. Outputs: the same, verified, and evidence of what did not verify. Invariants: bounded
//! on disk, in all, for each provider and for each award; what is evidence is written once. Methods block on the disk: call them from a blocking task.
//!
//! ```text
//!  <chain>-<sequence>.segment, removed   the chains
//!  nodes.json                            the provider of each chain, and its node as the provider calls it
//!  evidence/<chain>-<sequence>.json      what was sent instead of what is here
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use vendue_receipts::{AwardId, Chain, ChainName, DeviceId, Evidence, Record, read_records};
use vendue_receipts_store::{Chains, Options, StoreError, Taken};

use super::plan::is_plausible;
use crate::new_file;

const NODES: &str = "nodes.json";
const EVIDENCE: &str = "evidence";
/// A chain that says nothing for so long may go like one that is closed.
const SILENT_MS: u64 = 24 * 3_600_000;
/// Most files of evidence, in all and of an award. One would be enough.
const MAX_EVIDENCE: usize = 1_024;
const MAX_OF_AWARD: usize = 8;
/// Most chains of an award: one for each node and key.
const MAX_CHAINS: usize = 64;

/// An award may have this part of what all may have, and a provider that.
const OF_AWARD: u64 = 4;
const OF_PROVIDER: u64 = 2;

/// How receipts are kept.
#[derive(Debug, Clone)]
pub struct ShelfOptions {
    /// The folder.
    pub dir: PathBuf,
    /// A file of a chain ends when it is longer than this.
    pub segment_bytes: u64,
    /// Most bytes of chains.
    pub max_bytes: u64,
    /// How long chains are kept after their last record, in milliseconds.
    pub retain_ms: u64,
}

/// Why the receipts cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// The chains.
    #[error(transparent)]
    Chains(#[from] StoreError),
    /// A file beside them.
    #[error("receipts: {operation} {path}: {reason}")]
    Beside {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        reason: String,
    },
    /// Nothing that may go is left.
    #[error("receipts: {bytes} bytes are kept, {max_bytes} may be; next: raise --receipts-max-mib")]
    Full {
        /// What is there.
        bytes: u64,
        /// What may be there.
        max_bytes: u64,
    },
    /// An award or a provider has its share.
    #[error("receipts: {of} has {bytes} bytes, its share is {max_bytes}; next: raise --receipts-max-mib")]
    Share {
        /// Of whom.
        of: String,
        /// What is there.
        bytes: u64,
        /// What may be there.
        max_bytes: u64,
    },
    /// The task that waits for the disk has ended.
    #[error("receipts: {0}")]
    Task(String),
}

/// What became of records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// So many were new, and everything below this sequence is here.
    New(u64, u64),
    /// Something is wrong with them.
    Refused(Evidence),
}

/// What is known of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainEntry {
    /// Its name.
    pub name: ChainName,
    /// Its node.
    pub node: String,
    /// How many records are here.
    pub next: u64,
    /// Up to when, by the clock of the node.
    pub until_ms: u64,
    /// Whether no record is to come.
    pub closed: bool,
}

/// Where a chain comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    node: String,
    provider: String,
}

/// An origin as it is written, or as it was before providers were noted.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Origin(Origin),
    Node(String),
}

impl From<Written> for Origin {
    fn from(written: Written) -> Self {
        match written {
            Written::Origin(origin) => origin,
            Written::Node(node) => Self { node, ..Self::default() },
        }
    }
}

struct State {
    chains: Chains,
    origins: BTreeMap<ChainName, Origin>,
    evidence: BTreeMap<(ChainName, u64), Evidence>,
}

/// The receipts of this home.
pub struct Shelf {
    options: ShelfOptions,
    state: Mutex<State>,
}

impl Shelf {
    /// Opens the folder.
    pub fn open(options: ShelfOptions) -> Result<Self, ShelfError> {
        let chains = Options {
            dir: options.dir.clone(),
            segment_bytes: options.segment_bytes,
            retain_ms: options.retain_ms,
            // Room is made here, one chain after another.
            max_bytes: u64::MAX,
            delivers: false,
        };
        // What is here was verified when it came.
        let (chains, opened) = Chains::open_at_ends(chains)?;
        if opened.torn > 0 {
            tracing::warn!(
                bytes = opened.torn,
                "ends of files of receipts that were never whole are dropped"
            );
        }
        let written = chains.read_beside(NODES)?.map_or(Ok(BTreeMap::new()), |bytes| {
            serde_json::from_slice::<BTreeMap<ChainName, Written>>(&bytes)
                .map_err(|e| beside("read", options.dir.join(NODES), e))
        })?;
        let origins = written.into_iter().map(|(name, written)| (name, written.into())).collect();
        let evidence = read_evidence(&options.dir.join(EVIDENCE))?;
        Ok(Self { options, state: Mutex::new(State { chains, origins, evidence }) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many records of a chain are here, and whether it was here once and is gone.
    pub fn here(&self, name: ChainName) -> (u64, bool) {
        let state = self.lock();
        let next = state.chains.get(name).map_or(0, |chain| chain.next_sequence());
        (next, state.chains.removed().contains(&name))
    }

    /// How many records of an award are here, and of how many devices.
    pub fn of_award(&self, award: AwardId) -> (u64, usize) {
        let state = self.lock();
        let chains = || state.chains.of_award(award).map(|(_, chain)| chain);
        let devices: BTreeSet<&DeviceId> = chains().flat_map(|chain| chain.devices().keys()).collect();
        (chains().map(|chain| chain.next_sequence()).sum(), devices.len())
    }

    /// Bytes of all chains.
    pub fn bytes(&self) -> u64 {
        self.lock().chains.bytes()
    }

    /// Takes encoded records that a seat sent of one chain; at most `most` records of its award are kept.
    pub fn take(
        &self,
        provider: &str,
        (name, node): (ChainName, &str),
        bytes: &[u8],
        (most, now_ms): (u64, u64),
    ) -> Result<Kept, ShelfError> {
        let mut state = self.lock();
        let next = state.chains.get(name).map_or(0, |chain| chain.next_sequence());
        let refused = |reason: String| {
            Ok(Kept::Refused(Evidence::Refused { chain: name.to_string(), sequence: next, reason }))
        };
        let records = match read_records(bytes) {
            Ok(records) => records,
            Err(error) => return refused(format!("of what was sent, {error}")),
        };
        let others: u64 = state.chains.of_award(name.award).map(|(_, chain)| chain.next_sequence()).sum();
        let end = records.last().map_or(0, |record| record.sequence + 1);
        if others.saturating_sub(next).saturating_add(end) > most {
            return refused(format!(
                "the award would have more than the {most} records that it can have by now"
            ));
        }
        if !records.last().is_none_or(|record| is_plausible(record.body.time_ms(), now_ms)) {
            return refused("the time of the last record is more than a day ahead".to_owned());
        }
        let chains = state.chains.of_award(name.award).count();
        if chains >= MAX_CHAINS && state.chains.get(name).is_none() {
            return refused(format!("the award has {MAX_CHAINS} chains, more than it can have"));
        }
        let new = records.iter().filter(|record| record.sequence >= next);
        let coming = new.map(|record| record.encode().len() as u64).sum();
        state.make_room((provider, name.award), coming, self.options.max_bytes, now_ms)?;
        match state.chains.take(name, &records) {
            Ok(Taken::UpTo(up_to)) => {
                state.call(name, node, provider)?;
                Ok(Kept::New(up_to - next.min(up_to), up_to))
            }
            Ok(Taken::Gone) => Ok(Kept::New(0, u64::MAX)),
            Ok(Taken::Equivocation(records)) => {
                Ok(Kept::Refused(Evidence::Equivocation { chain: name.to_string(), records }))
            }
            Err(StoreError::Chain { error, .. }) => refused(error.to_string()),
            Err(StoreError::Name { what, .. }) => refused(format!("the chain {what}")),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps evidence. False when it was known, or when there is no room for more.
    pub fn accuse(&self, name: ChainName, evidence: &Evidence) -> Result<bool, ShelfError> {
        let mut state = self.lock();
        let place = (name, evidence.sequence());
        let of_award = state.evidence.keys().filter(|(other, _)| other.award == name.award).count();
        let is_full = of_award >= MAX_OF_AWARD || state.evidence.len() >= MAX_EVIDENCE;
        if is_full || state.evidence.contains_key(&place) {
            return Ok(false);
        }
        let folder = self.options.dir.join(EVIDENCE);
        let path = self.evidence_path(place);
        let failed = |e: &dyn std::fmt::Display| beside("write", path.clone(), e);
        let json = serde_json::to_vec_pretty(evidence).map_err(|e| failed(&e))?;
        fs::create_dir_all(&folder).map_err(|e| failed(&e))?;
        new_file::write_new(&path, &json, 0o600).map_err(|e| failed(&e))?;
        state.evidence.insert(place, evidence.clone());
        Ok(true)
    }

    /// What speaks against the provider of an award.
    pub fn evidence(&self, award: AwardId) -> Vec<Evidence> {
        let state = self.lock();
        let of_award = state.evidence.iter().filter(|((name, _), _)| name.award == award);
        of_award.map(|(_, evidence)| evidence.clone()).collect()
    }

    /// The chains of an award that are here from their first record on.
    pub fn chains(&self, award: AwardId) -> Vec<ChainEntry> {
        let state = self.lock();
        let node = |name| state.origins.get(&name).map(|origin| origin.node.clone()).unwrap_or_default();
        let whole =
            state.chains.of_award(award).filter(|(name, _)| state.chains.first_kept(*name) == Some(0));
        let entry = |(name, chain): (ChainName, &Chain)| ChainEntry {
            name,
            node: node(name),
            next: chain.next_sequence(),
            until_ms: chain.end_ms().saturating_add_signed(chain.clock_offset_ms()),
            closed: chain.is_closed(),
        };
        whole.map(entry).collect()
    }

    /// Records of a chain from this sequence on, as many as one file has.
    pub fn records(&self, name: ChainName, from: u64) -> Result<Vec<Record>, ShelfError> {
        Ok(self.lock().chains.records(name, from, usize::MAX)?)
    }

    /// Removes what is older than it is kept, chains that were never closed too.
    pub fn prune(&self, now_ms: u64) -> Result<(), ShelfError> {
        let retain_ms = self.options.retain_ms;
        let mut state = self.lock();
        state.chains.prune(now_ms)?;
        let old = state.chains.iter().filter(|(_, c)| c.end_ms().saturating_add(retain_ms) <= now_ms);
        let old: Vec<ChainName> = old.map(|(name, _)| name).collect();
        state.chains.abandon(&old)?;
        let State { chains, origins, evidence } = &mut *state;
        origins.retain(|name, _| chains.get(*name).is_some());
        let is_old = |path: &Path| {
            let written = fs::metadata(path).and_then(|file| file.modified()).ok();
            let since = written.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            let written_ms = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
            written_ms.saturating_add(retain_ms) <= now_ms
        };
        for place in evidence.keys().copied().collect::<Vec<_>>() {
            let path = self.evidence_path(place);
            if is_old(&path) {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(beside("remove", path, e)),
                    _ => _ = evidence.remove(&place),
                }
            }
        }
        Ok(())
    }

    fn evidence_path(&self, (name, sequence): (ChainName, u64)) -> PathBuf {
        self.options.dir.join(EVIDENCE).join(format!("{name}-{sequence:016x}.json"))
    }
}

impl State {
    /// Removes chains of other awards that are over or silent for a day, the oldest first, until there is room: first those
    /// of the provider, when it has its share.
    fn make_room(
        &mut self,
        (provider, award): (&str, AwardId),
        coming: u64,
        max_bytes: u64,
        now_ms: u64,
    ) -> Result<(), ShelfError> {
        if coming == 0 {
            return Ok(());
        }
        let of_award = self.bytes_where(|name, _| name.award == award);
        if of_award.saturating_add(coming) > max_bytes / OF_AWARD {
            let (of, bytes, max_bytes) = (format!("award {award}"), of_award, max_bytes / OF_AWARD);
            return Err(ShelfError::Share { of, bytes, max_bytes });
        }
        let share = max_bytes / OF_PROVIDER;
        let is_of = |_: &ChainName, origin: &Origin| origin.provider == provider;
        while self.bytes_where(is_of).saturating_add(coming) > share {
            if !self.forget_oldest(award, now_ms, is_of)? {
                let (of, bytes) = (format!("provider {provider}"), self.bytes_where(is_of));
                return Err(ShelfError::Share { of, bytes, max_bytes: share });
            }
        }
        while self.chains.bytes().saturating_add(coming) > max_bytes {
            if !self.forget_oldest(award, now_ms, |_, _| true)? {
                return Err(ShelfError::Full { bytes: self.chains.bytes(), max_bytes });
            }
        }
        Ok(())
    }

    /// Bytes of chains that are so. Of a chain whose origin is not known none is anybody's.
    fn bytes_where(&self, is: impl Fn(&ChainName, &Origin) -> bool) -> u64 {
        let unknown = Origin::default();
        let names = self.chains.iter().map(|(name, _)| name);
        let found = names.filter(|name| is(name, self.origins.get(name).unwrap_or(&unknown)));
        found.map(|name| self.chains.bytes_of(name)).sum()
    }

    /// Removes the oldest chain that is so, is over or silent for a day, and is of another award. False when there is none.
    fn forget_oldest(
        &mut self,
        award: AwardId,
        now_ms: u64,
        is: impl Fn(&ChainName, &Origin) -> bool,
    ) -> Result<bool, ShelfError> {
        let unknown = Origin::default();
        let others = self
            .chains
            .iter()
            .filter(|(name, _)| name.award != award && is(name, self.origins.get(name).unwrap_or(&unknown)));
        let over = others.filter(|(_, c)| c.is_closed() || c.end_ms().saturating_add(SILENT_MS) <= now_ms);
        let oldest = over.min_by_key(|(_, chain)| chain.end_ms()).map(|(name, _)| name);
        let Some(oldest) = oldest else { return Ok(false) };
        tracing::warn!(chain = %oldest, "receipts forgotten: there is no room for newer ones");
        self.chains.abandon(&[oldest])?;
        Ok(true)
    }

    /// Notes where a chain comes from.
    fn call(&mut self, name: ChainName, node: &str, provider: &str) -> Result<(), ShelfError> {
        let known = self.origins.get(&name).is_some_and(|origin| !origin.provider.is_empty());
        if self.chains.get(name).is_none() || known {
            return Ok(());
        }
        let mut origins = self.origins.clone();
        let origin = Origin { node: node.to_owned(), provider: provider.to_owned() };
        origins.entry(name).or_insert(origin).provider = provider.to_owned();
        let json = serde_json::to_vec(&origins).map_err(|e| beside("write", PathBuf::from(NODES), e))?;
        self.chains.replace_beside(NODES, &json)?;
        self.origins = origins;
        Ok(())
    }
}

fn beside(operation: &'static str, path: PathBuf, reason: impl ToString) -> ShelfError {
    ShelfError::Beside { operation, path, reason: reason.to_string() }
}

/// The evidence in a folder. A file that cannot be read is logged and stays.
fn read_evidence(folder: &Path) -> Result<BTreeMap<(ChainName, u64), Evidence>, ShelfError> {
    let mut found = BTreeMap::new();
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(beside("list", folder.to_owned(), error)),
    };
    for file in files {
        let path = file.map_err(|e| beside("list", folder.to_owned(), e))?.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let read = fs::read(&path).map_err(|e| e.to_string());
        let evidence = read.and_then(|b| serde_json::from_slice::<Evidence>(&b).map_err(|e| e.to_string()));
        let name = |e: &Evidence| e.chain().parse::<ChainName>().map_err(|e| e.to_string());
        match evidence.and_then(|e| Ok(((name(&e)?, e.sequence()), e))) {
            Ok((place, evidence)) => _ = found.insert(place, evidence),
            Err(reason) => tracing::error!(path = %path.display(), reason, "evidence skipped"),
        }
    }
    Ok(found)
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
mod tests;
