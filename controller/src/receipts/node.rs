//! What is kept of one node: its chains, statements of hours, evidence, and bills as far as they were counted.
//!
//! Inputs: records and statements of the node. Outputs: what is stored, bills. Invariants: a bill is counted from records
//! that are durable; chains and files of a node are bounded; how old something is says the clock of this machine, which
//! wrote it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vendue_controller_core::award::usage::{NodeBill, Run};
use vendue_receipts::{
    AwardId, Chain, ChainName, Equivocation, Record, SignedHour, Tree, hour_leaves, hour_of, keys_of_node,
};
use vendue_receipts_store::{Chains, Options, Taken};

use super::count::Counted;
use super::error::{BookError, failed};
use super::files;

/// Chains that are over are kept for 30 days, and so are those of nodes that say nothing any more.
pub const RETAIN_MS: u64 = 30 * 24 * HOUR_MS;
/// Most chains of a node. Each is a file at least, and a part of the memory while the node tells.
pub const MAX_CHAINS: usize = 8_192;
/// Most chains of one award on a node: its key is another one only when it lost its disk.
pub const MAX_KEYS: usize = 16;
const HOUR_MS: u64 = 3_600_000;
/// A file of a chain is not longer than this and one batch.
const SEGMENT_BYTES: u64 = 1 << 20;
/// Records that are read at once.
const READ: usize = 4_096;
/// Most bytes of an answer with records.
const MAX_ANSWER: usize = 256 << 10;
/// Folder for two stories of one key.
const EVIDENCE: &str = "evidence";
/// Most files of it.
const MAX_EVIDENCE: usize = 64;
/// Folder for statements of hours.
const HOURS: &str = "hours";
/// Most files of it: 31 days, and as many once more for a key that was changed.
const MAX_HOURS: usize = 2 * 31 * 24;
/// What keeps other processes out; it is not written again.
const LOCK: &str = "LOCK";

/// A chain as others are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its node.
    pub node: String,
    /// Its name.
    pub name: ChainName,
    /// Sequence of the next record.
    pub next: u64,
    /// Whether it has ended.
    pub closed: bool,
}

/// What is kept of a node.
pub struct Node {
    name: String,
    dir: PathBuf,
    chains: Chains,
    counted: BTreeMap<ChainName, Counted>,
}

impl Node {
    /// Opens the folder of a node.
    pub fn open(name: &str, dir: &Path) -> Result<Self, BookError> {
        let options = Options {
            dir: dir.to_owned(),
            segment_bytes: SEGMENT_BYTES,
            retain_ms: RETAIN_MS,
            // Room is made by the book, which knows the others.
            max_bytes: u64::MAX,
            delivers: false,
        };
        let (chains, opened) = Chains::open_at_ends(options)?;
        if opened.torn > 0 {
            tracing::warn!(
                node = name,
                bytes = opened.torn,
                "ends of receipt files that were never durable are dropped"
            );
        }
        Ok(Self { name: name.to_owned(), dir: dir.to_owned(), chains, counted: BTreeMap::new() })
    }

    /// Bytes of all chains.
    pub fn bytes(&self) -> u64 {
        self.chains.bytes()
    }

    /// How many chains there are.
    pub fn count(&self) -> usize {
        self.chains.iter().count()
    }

    /// Sequence of the record of a chain that comes next.
    pub fn next(&self, name: ChainName) -> u64 {
        self.chains.get(name).map_or(0, Chain::next_sequence)
    }

    /// Whether a chain of this name is not here yet.
    pub fn is_new(&self, name: ChainName) -> bool {
        self.chains.get(name).is_none()
    }

    /// Takes records of one chain. The answer is the sequence from which to go on; `None` when it is over and gone.
    pub fn take(&mut self, name: ChainName, records: &[Record]) -> Result<Option<u64>, BookError> {
        if self.is_new(name) && self.chains.of_award(name.award).count() >= MAX_KEYS {
            return Err(BookError::Keys { award: name.award, max_chains: MAX_KEYS });
        }
        let before = self.next(name);
        match self.chains.take(name, records)? {
            Taken::UpTo(next) => {
                // Only what was checked just now: what was known is here, and may be told in another form.
                if let Some(counted) = self.counted.get_mut(&name).filter(|counted| counted.next() == before)
                {
                    let new = records.iter().filter(|record| (before..next).contains(&record.sequence));
                    new.for_each(|record| counted.add(record));
                }
                Ok(Some(next))
            }
            Taken::Gone => Ok(None),
            Taken::Equivocation(both) => {
                let sequence = both.first.sequence;
                self.keep_evidence(name, sequence, &both)?;
                Err(BookError::Equivocation { name, sequence })
            }
        }
    }

    /// The chains that are not closed.
    pub fn open_chains(&self) -> Vec<Chain> {
        self.chains.iter().filter(|(_, chain)| !chain.is_closed()).map(|(_, chain)| chain.clone()).collect()
    }

    /// Awards of chains that are not closed.
    pub fn open_awards(&self) -> Vec<AwardId> {
        let open = self.chains.iter().filter(|(_, chain)| !chain.is_closed());
        open.map(|(name, _)| name.award).filter(|award| !award.is_idle()).collect()
    }

    /// The chains of an award.
    pub fn of_award(&self, award: AwardId) -> impl Iterator<Item = Told> + '_ {
        self.chains.of_award(award).map(|(name, chain)| Told {
            node: self.name.clone(),
            name,
            next: chain.next_sequence(),
            closed: chain.is_closed(),
        })
    }

    /// Records of a chain from a sequence on, encoded, as many as an answer has; `None` when there is no such chain.
    pub fn records(&self, name: ChainName, from: u64) -> Result<Option<Vec<u8>>, BookError> {
        if self.is_new(name) {
            return Ok(None);
        }
        let mut bytes = vec![];
        for record in self.chains.records(name, from, READ)? {
            let encoded = record.encode();
            if bytes.len() + encoded.len() > MAX_ANSWER {
                break;
            }
            bytes.extend(encoded);
        }
        Ok(Some(bytes))
    }

    /// Counts some of the records of a chain that were not counted yet; whether all are counted now.
    pub fn count_on(&mut self, name: ChainName, run: Run) -> Result<bool, BookError> {
        let Some(chain) = self.chains.get(name) else { return Ok(true) };
        let (end, first) = (chain.next_sequence(), self.chains.first_kept(name).unwrap_or_default());
        let counted = self.counted.remove(&name).unwrap_or_else(|| Counted::new(run, first));
        let mut counted = counted.over(run, first);
        let before = counted.next();
        let records = if before < end { self.chains.records(name, before, READ) } else { Ok(vec![]) };
        records.as_ref().into_iter().flatten().for_each(|record| counted.add(record));
        let next = counted.next();
        self.counted.insert(name, counted);
        records?;
        Ok(next >= end || next == before)
    }

    /// What a chain adds up to as far as it was counted.
    pub fn bill(&self, name: ChainName) -> Option<NodeBill> {
        let (chain, counted) = (self.chains.get(name)?, self.counted.get(&name)?);
        Some(NodeBill {
            node: self.name.clone(),
            public_key: chain.opening_key().map(|key| key.to_string()).unwrap_or_default(),
            head: chain.head(),
            records: chain.next_sequence(),
            closed: chain.is_closed(),
            devices: counted.bill().devices().clone(),
            sums: counted.bill().sums(),
        })
    }

    /// Removes chains that are closed and were last written so long ago, files of idle chains that are as old but for the
    /// last, and whatever is silent for 30 days.
    pub fn shorten(&mut self, now_ms: u64, keep_ms: u64) -> Result<(), BookError> {
        let mut over = vec![];
        let names: Vec<(ChainName, bool)> =
            self.chains.iter().map(|(name, c)| (name, c.is_closed())).collect();
        for (name, is_closed) in names {
            let Some(last) = self.chains.files_of(name).last() else { continue };
            if is_old(last, now_ms, if is_closed { keep_ms } else { RETAIN_MS })? {
                over.push(name);
            } else if name.award.is_idle() {
                self.shorten_idle(name, now_ms, keep_ms)?;
            }
        }
        self.chains.abandon(&over)?;
        over.iter().for_each(|name| _ = self.counted.remove(name));
        Ok(())
    }

    fn shorten_idle(&mut self, name: ChainName, now_ms: u64, keep_ms: u64) -> Result<(), BookError> {
        loop {
            let first = self.chains.files_of(name).next().map(Path::to_owned);
            let Some(first) = first else { return Ok(()) };
            if !is_old(&first, now_ms, keep_ms)? || !self.chains.drop_first(name)? {
                return Ok(());
            }
        }
    }

    /// Removes statements and evidence that are older than they are kept.
    pub fn prune_beside(&self, now_ms: u64) -> Result<(), BookError> {
        for folder in [HOURS, EVIDENCE] {
            for path in files::list(&self.dir.join(folder))? {
                if is_old(&path, now_ms, RETAIN_MS)? {
                    files::remove(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Keeps a statement that is true of the records that are here; the inner error says why one is not. One that
    /// contradicts an earlier one is kept beside it.
    pub fn take_hour(&self, said: &SignedHour, now_ms: u64) -> Result<Result<(), &'static str>, BookError> {
        let (hour, key) = (said.statement.hour, said.statement.public_key);
        if said.verify().is_err() {
            return Ok(Err("its signature is not that of the key that it names"));
        }
        if hour > hour_of(now_ms).saturating_add(24) {
            return Ok(Err("its hour is more than a day ahead"));
        }
        if !self.chains.iter().any(|(_, chain)| chain.keys().contains(&key)) {
            return Ok(Err("its key signs no chain of the node"));
        }
        let (from, to) = (hour.saturating_mul(HOUR_MS), hour.saturating_add(1).saturating_mul(HOUR_MS));
        let mut records = vec![];
        // In the hour of a rotation some chains were closed by the key before.
        let keys = keys_of_node(key, self.chains.iter().map(|(_, chain)| chain));
        for (name, chain) in self.chains.iter() {
            let within = chain.started_ms() < to && chain.end_ms() >= from;
            if within && chain.keys().iter().any(|key| keys.contains(key)) {
                records.extend(self.chains.records_between(name, from, to)?);
            }
        }
        let tree = Tree::new(&hour_leaves(hour, records.iter()));
        if said.statement.count > tree.count() {
            // Of what was not told, or is not here any more, nothing can be judged.
            return Ok(Err("it counts more records than are here"));
        }
        let is_true = (tree.count(), tree.root()) == (said.statement.count, said.statement.root);
        let (folder, most) = if is_true { (HOURS, MAX_HOURS) } else { (EVIDENCE, MAX_EVIDENCE) };
        self.keep(folder, &format!("{hour}-{key}.json"), most, said)?;
        Ok(if is_true { Ok(()) } else { Err("the records that it told say something else") })
    }

    fn keep_evidence(&self, name: ChainName, sequence: u64, both: &Equivocation) -> Result<(), BookError> {
        self.keep(EVIDENCE, &format!("{name}-{sequence}.json"), MAX_EVIDENCE, both)
    }

    /// Writes a file once, unless there are too many.
    fn keep(
        &self,
        folder: &str,
        file: &str,
        most: usize,
        content: &impl serde::Serialize,
    ) -> Result<(), BookError> {
        let dir = self.dir.join(folder);
        let path = dir.join(file);
        if path.exists() || files::list(&dir)?.len() >= most {
            return Ok(());
        }
        std::fs::create_dir_all(&dir).map_err(failed("make folder", &dir))?;
        let text =
            serde_json::to_vec_pretty(content).map_err(|error| failed("write", &path)(error.into()))?;
        files::write_whole(&path, &text)
    }
}

fn is_old(path: &Path, now_ms: u64, keep_ms: u64) -> Result<bool, BookError> {
    Ok(files::written_ms(path, now_ms)?.saturating_add(keep_ms) <= now_ms)
}

/// Bytes of the chains in a folder that is not open.
pub fn bytes_in(dir: &Path) -> Result<u64, BookError> {
    let chains =
        files::list(dir)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "segment"));
    // One that goes meanwhile has no bytes.
    Ok(chains.map(|path| std::fs::metadata(path).map_or(0, |file| file.len())).sum())
}

/// When the first and the last file of a folder were written, without opening it; `None` when there are none.
pub fn written_in(dir: &Path, now_ms: u64) -> Result<Option<(u64, u64)>, BookError> {
    let mut paths = files::list(dir)?;
    paths.extend(files::list(&dir.join(HOURS))?);
    paths.extend(files::list(&dir.join(EVIDENCE))?);
    let mut span: Option<(u64, u64)> = None;
    for path in paths.iter().filter(|path| !path.is_dir() && !path.ends_with(LOCK)) {
        let at = files::written_ms(path, now_ms)?;
        span = Some(span.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
    }
    Ok(span)
}

/// Whether a folder has a chain of this award, without opening it.
pub fn has_chain_in(dir: &Path, award: AwardId) -> Result<bool, BookError> {
    let start = format!("{award}-");
    let is_of = |path: PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|n| n.starts_with(&start))
    };
    Ok(files::list(dir)?.into_iter().any(is_of))
}
