//! Keeps the chains of a node: records are signed, written and synced before they count.
//!
//! Inputs: drafts of the meter, acknowledgements of the receiver. Outputs: which chains were stored, records to deliver,
//! what a meter goes on from after a restart. Invariants: what was reported stored is read back after a crash at any byte;
//! a place in a chain is signed with one content only, unless what was signed before never left this machine; nothing goes
//! before it was delivered.
//!
//! Files: `<award>-<key>-<first sequence>.segment` (see `segment`), `<award>-<key>.delivered` (how many records of the
//! chain the receiver has), `removed` (awards whose chains are gone), `anchor.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use vendue_receipts::{AwardId, Body, Chain, ChainError, NodeKey, PublicKey, Record, Rotated};

use super::clock::Anchor;
use super::files::{Disk, Files, UNFINISHED};
use super::load::{self, Loaded};
use super::rules::{Draft, Meter, Resume, TickError};
use super::segment;
use super::tick::Tick;

const REMOVED: &str = "removed";
const ANCHOR: &str = "anchor.json";
/// Most chains that are gone and remembered; older ones are forgotten.
const MAX_REMOVED: usize = 65_536;

/// How chains are kept.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The folder.
    pub dir: PathBuf,
    /// A file ends when it is longer than this.
    pub segment_bytes: u64,
    /// For how long delivered records are kept, in milliseconds of chain time.
    pub retain_ms: u64,
    /// All files together are not longer than this: delivered records go earlier, then nothing more is stored.
    pub max_bytes: u64,
}

impl StoreOptions {
    /// Files of 1 MiB, a day of delivered records, 256 MiB in all: about two weeks of 8 GPUs.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), segment_bytes: 1 << 20, retain_ms: 86_400_000, max_bytes: 256 << 20 }
    }
}

/// Why the store cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("receipts: {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another process has the folder.
    #[error("receipts: {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A file is not what was stored.
    #[error(
        "receipts: {} is damaged at byte {offset}: {what}. Move the folder away for inspection; with an empty one the \
         chains go on from what was delivered",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: usize,
        /// What is wrong.
        what: String,
    },
    /// There is no room.
    #[error("receipts: {} holds {bytes} bytes that were not delivered; at most {max_bytes} are kept", dir.display())]
    Full {
        /// The folder.
        dir: PathBuf,
        /// What is there.
        bytes: u64,
        /// What may be there.
        max_bytes: u64,
    },
    /// A draft does not continue its chain.
    #[error("receipts: chain of award {award}: {error}")]
    Chain {
        /// The award.
        award: AwardId,
        /// What is wrong.
        error: ChainError,
    },
    /// The chain was closed, delivered and removed.
    #[error("receipts: chain {0} is closed and gone")]
    Removed(ChainName),
    /// Something else is wrong with a chain.
    #[error("receipts: chain {name}: {what}")]
    Name {
        /// The chain.
        name: ChainName,
        /// What is wrong.
        what: &'static str,
    },
}

/// A chain by its award and the key that opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainName {
    /// The award.
    pub award: AwardId,
    /// The first bytes of the key's x coordinate.
    pub key: [u8; 8],
}

impl ChainName {
    /// The name of an award's chain under the key that opens it.
    #[must_use]
    pub fn new(award: AwardId, opening_key: PublicKey) -> Self {
        let mut key = [0; 8];
        key.iter_mut().zip(opening_key.0.iter().skip(1)).for_each(|(to, from)| *to = *from);
        Self { award, key }
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.award, u64::from_be_bytes(self.key))
    }
}

/// A file of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub path: PathBuf,
    /// Sequence of its first record.
    pub first: u64,
    pub bytes: u64,
    /// Chain time of its last record.
    pub end_ms: u64,
}

/// A chain that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub chain: Chain,
    pub parts: Vec<Part>,
    /// How many of its records the receiver has.
    pub delivered: u64,
}

/// What opening found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// There was nothing: a new node, or one that lost its disk.
    pub fresh: bool,
    /// Bytes at ends of files that were never durable.
    pub torn: u64,
    /// Chains that are not closed and that the key does not sign.
    pub foreign: u64,
}

/// What became of drafts.
#[derive(Debug, Default)]
pub struct Appended {
    /// Records that are durable.
    pub records: u64,
    /// Chains of which nothing was stored, for [`Meter::settle`].
    pub failed: BTreeSet<AwardId>,
    /// Why.
    pub errors: Vec<StoreError>,
}

impl Appended {
    fn fail(&mut self, award: AwardId, error: StoreError) {
        self.failed.insert(award);
        self.errors.push(error);
    }
}

/// The chains of a node.
pub struct Store<F: Files = Disk> {
    options: StoreOptions,
    files: F,
    key: NodeKey,
    chains: BTreeMap<ChainName, Kept>,
    removed: Vec<ChainName>,
    anchor: Option<Anchor>,
}

impl Store<Disk> {
    /// Opens the folder.
    ///
    /// # Errors
    /// When it cannot be read, another process has it, or a file in it is damaged.
    pub fn open(options: StoreOptions, key: NodeKey) -> Result<(Self, Found), StoreError> {
        let files = Disk::open(&options.dir)?;
        Self::open_with(options, key, files)
    }
}

impl<F: Files> Store<F> {
    /// Opens a folder by these operations.
    ///
    /// # Errors
    /// When it cannot be read, or a file in it is damaged.
    pub fn open_with(options: StoreOptions, key: NodeKey, files: F) -> Result<(Self, Found), StoreError> {
        let dir = &options.dir;
        let removed = load::removed(&files, &dir.join(REMOVED))?;
        let anchor = load::anchor(&files, &dir.join(ANCHOR))?;
        let Loaded { chains, torn, leftover } = load::chains(&files, dir, &removed)?;
        let ours = key.public();
        let foreign =
            chains.values().filter(|k| !k.chain.is_closed() && k.chain.key().is_some_and(|k| k != ours));
        let fresh = chains.is_empty() && removed.is_empty() && anchor.is_none();
        let found = Found { fresh, torn, foreign: foreign.count() as u64 };
        let mut store = Self { options, files, key, chains, removed, anchor };
        for path in leftover.into_iter().chain([store.options.dir.join(UNFINISHED)]) {
            store.remove(&path)?;
        }
        Ok((store, found))
    }

    /// What a meter goes on from.
    #[must_use]
    pub fn resume(&self) -> Resume {
        let ours = self.chains.values().filter(|k| k.chain.key() == Some(self.key.public()));
        Resume {
            anchor: self.anchor,
            chains: ours.map(|kept| kept.chain.clone()).collect(),
            // The idle chain of a lost key goes, idle time does not.
            removed: self.removed.iter().map(|name| name.award).filter(|award| !award.is_idle()).collect(),
            not_before_ms: self.chains.values().map(|k| k.chain.end_ms()).max().unwrap_or_default(),
            disk_lost: false,
        }
    }

    /// The chains that are kept.
    pub fn chains(&self) -> impl Iterator<Item = (ChainName, &Chain)> {
        self.chains.iter().map(|(name, kept)| (*name, &kept.chain))
    }

    /// Bytes of all chains.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.chains.values().flat_map(|kept| &kept.parts).map(|part| part.bytes).sum()
    }

    /// Stores where chain time and the steady clock met, if that is new.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep_anchor(&mut self, anchor: Option<Anchor>) -> Result<(), StoreError> {
        let Some(new) = anchor.filter(|_| anchor != self.anchor) else { return Ok(()) };
        let path = self.options.dir.join(ANCHOR);
        let text = serde_json::to_vec(&new).map_err(|error| io("write", &path)(error.into()))?;
        self.files.replace(&path, &text).map_err(io("write", &path))?;
        self.anchor = Some(new);
        Ok(())
    }

    /// Lets the meter take a tick and stores what it says.
    ///
    /// # Errors
    /// When the meter refuses the tick. A store that fails is no error here: the meter knows, and the result says so.
    pub fn step(&mut self, meter: &mut Meter, tick: &Tick) -> Result<Appended, TickError> {
        let drafts = meter.tick(tick)?.to_vec();
        // Records that are stored without their clock would make the next agent believe in a reboot.
        let appended = match self.keep_anchor(meter.anchor()) {
            Ok(()) => self.append(&drafts),
            Err(error) => {
                let failed = drafts.iter().map(|draft| draft.award).collect();
                Appended { records: 0, failed, errors: vec![error] }
            }
        };
        meter.settle(&appended.failed);
        Ok(appended)
    }

    /// Signs and stores drafts, chain by chain. Of each chain all drafts are stored, or none.
    pub fn append(&mut self, drafts: &[Draft]) -> Appended {
        let mut of_award: BTreeMap<AwardId, Vec<&Body>> = BTreeMap::new();
        drafts.iter().for_each(|draft| of_award.entry(draft.award).or_default().push(&draft.body));
        let mut appended = Appended::default();
        for (award, bodies) in of_award {
            match self.append_to(award, &bodies) {
                Ok(()) => appended.records += bodies.len() as u64,
                Err(error) => appended.fail(award, error),
            }
        }
        appended
    }

    /// The name under which the key in force keeps an award's chain.
    fn name_of(&self, award: AwardId) -> ChainName {
        let from = ChainName { award, key: [0; 8] };
        let to = ChainName { award, key: [0xff; 8] };
        let ours = Some(self.key.public());
        let found = self.chains.range(from..=to).find(|(_, kept)| kept.chain.key() == ours);
        found.map_or_else(|| ChainName::new(award, self.key.public()), |(name, _)| *name)
    }

    fn append_to(&mut self, award: AwardId, bodies: &[&Body]) -> Result<(), StoreError> {
        let name = self.name_of(award);
        if self.removed.contains(&name) {
            return Err(StoreError::Removed(name));
        }
        let kept = self.chains.get(&name);
        let mut chain = kept.map_or_else(|| Chain::new(award, 0), |kept| kept.chain.clone());
        let before = chain.clone();
        let mut batch = vec![];
        for body in bodies {
            let record = chain.sign((*body).clone(), &self.key);
            let record = record.map_err(|error| StoreError::Chain { award, error })?;
            batch.extend(record.encode());
        }
        self.write(name, &before, chain, &batch)
    }

    /// Writes a batch into the last file of the chain, or into a new one.
    fn write(
        &mut self,
        name: ChainName,
        before: &Chain,
        chain: Chain,
        batch: &[u8],
    ) -> Result<(), StoreError> {
        let (framed, end_ms) = (frame(name, batch)?, chain.end_ms());
        let last = self.chains.get(&name).and_then(|kept| kept.parts.last()).cloned();
        let part = match last.filter(|part| part.bytes < self.options.segment_bytes) {
            Some(part) => {
                self.make_room(framed.len() as u64, end_ms)?;
                self.files.append(&part.path, part.bytes, &framed).map_err(io("append to", &part.path))?;
                Part { bytes: part.bytes + framed.len() as u64, end_ms, ..part }
            }
            None => self.begin(name, before, &framed, end_ms)?,
        };
        let new = Kept { chain: before.clone(), parts: vec![], delivered: 0 };
        let kept = self.chains.entry(name).or_insert(new);
        kept.chain = chain;
        match kept.parts.last_mut().filter(|last| last.first == part.first) {
            Some(last) => *last = part,
            None => kept.parts.push(part),
        }
        Ok(())
    }

    /// A new file that begins with the chain as it is.
    fn begin(
        &mut self,
        name: ChainName,
        before: &Chain,
        framed: &[u8],
        end_ms: u64,
    ) -> Result<Part, StoreError> {
        let first = before.next_sequence();
        let path = self.options.dir.join(format!("{name}-{first:016x}.segment"));
        let head = serde_json::to_vec(before).map_err(|error| io("write", &path)(error.into()))?;
        let content = [&frame(name, &head)?[..], framed].concat();
        let bytes = content.len() as u64;
        self.make_room(bytes, end_ms)?;
        self.files.replace(&path, &content).map_err(io("write", &path))?;
        Ok(Part { path, first, bytes, end_ms })
    }

    /// Takes delivered files away, the oldest first, until there is room for so many bytes.
    fn make_room(&mut self, coming: u64, now_ms: u64) -> Result<(), StoreError> {
        let max_bytes = self.options.max_bytes;
        if self.bytes() + coming <= max_bytes {
            return Ok(());
        }
        self.drop_delivered(now_ms, 0)?;
        let bytes = self.bytes();
        let dir = || self.options.dir.clone();
        if bytes + coming <= max_bytes {
            Ok(())
        } else {
            Err(StoreError::Full { dir: dir(), bytes, max_bytes })
        }
    }

    /// Removes what was delivered and is older than the store keeps it; of an open chain never the last file. A chain of
    /// another key than the one in force counts as closed: rotate before.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn prune(&mut self, now_ms: u64) -> Result<(), StoreError> {
        self.drop_delivered(now_ms, self.options.retain_ms)
    }

    fn drop_delivered(&mut self, now_ms: u64, retain_ms: u64) -> Result<(), StoreError> {
        let old = |end_ms: u64| end_ms.saturating_add(retain_ms) <= now_ms;
        let ours = self.key.public();
        let over = self.chains.iter().filter(|(_, kept)| kept.is_over(ours) && old(kept.chain.end_ms()));
        let over: Vec<ChainName> = over.map(|(name, _)| *name).collect();
        self.remember_removed(&over)?;
        for name in over {
            if let Some(kept) = self.chains.remove(&name) {
                kept.parts.iter().try_for_each(|part| self.remove(&part.path))?;
                self.remove(&self.delivered_path(name))?;
            }
        }
        let names: Vec<ChainName> = self.chains.keys().copied().collect();
        for name in names {
            while let Some(path) = self.chains.get(&name).and_then(|kept| kept.oldest_delivered(old)) {
                self.remove(&path)?;
                self.chains.entry(name).and_modify(|kept| _ = kept.parts.remove(0));
            }
        }
        Ok(())
    }

    /// Before the files of a chain go, it is noted that they may not begin again.
    fn remember_removed(&mut self, names: &[ChainName]) -> Result<(), StoreError> {
        if names.is_empty() {
            return Ok(());
        }
        let mut all = [&self.removed[..], names].concat();
        all.drain(..all.len().saturating_sub(MAX_REMOVED));
        let text: String = all.iter().map(|name| format!("{name}\n")).collect();
        let path = self.options.dir.join(REMOVED);
        self.files.replace(&path, text.as_bytes()).map_err(io("write", &path))?;
        self.removed = all;
        Ok(())
    }

    fn delivered_path(&self, name: ChainName) -> PathBuf {
        self.options.dir.join(format!("{name}.delivered"))
    }

    fn remove(&mut self, path: &Path) -> Result<(), StoreError> {
        self.files.remove(path).map_err(io("remove", path))
    }

    fn kept(&self, name: ChainName) -> Result<&Kept, StoreError> {
        self.chains.get(&name).ok_or(StoreError::Name { name, what: "there is no such chain" })
    }

    /// Chains with records that the receiver does not have, and how many.
    pub fn undelivered(&self) -> impl Iterator<Item = (ChainName, u64)> {
        let left = |kept: &Kept| kept.chain.next_sequence().saturating_sub(kept.delivered);
        self.chains.iter().map(move |(name, kept)| (*name, left(kept))).filter(|(_, left)| *left > 0)
    }

    /// The next records that the receiver does not have, from one file, at most so many.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn next_to_deliver(&self, name: ChainName, most: usize) -> Result<Vec<Record>, StoreError> {
        let kept = self.kept(name)?;
        let Some(part) = kept.parts.iter().rfind(|part| part.first <= kept.delivered) else {
            return Ok(vec![]);
        };
        let segment = load::part(&self.files, &part.path, part.bytes)?;
        let records = segment.records.into_iter().map(|(_, record)| record);
        Ok(records.skip_while(|record| record.sequence < kept.delivered).take(most).collect())
    }

    /// The receiver has all records of a chain below `next`. Saying less than before changes nothing.
    ///
    /// # Errors
    /// When there are no such records, or the file cannot be written.
    pub fn acknowledge(&mut self, name: ChainName, next: u64) -> Result<(), StoreError> {
        let kept = self.kept(name)?;
        if next > kept.chain.next_sequence() {
            return Err(StoreError::Name { name, what: "more records are acknowledged than there are" });
        }
        if next <= kept.delivered {
            return Ok(());
        }
        let path = self.delivered_path(name);
        self.files.replace(&path, format!("{next}\n").as_bytes()).map_err(io("write", &path))?;
        self.chains.entry(name).and_modify(|kept| kept.delivered = next);
        Ok(())
    }

    /// Goes on with a chain of this key as the receiver has it: the files were lost with the disk. To be called for every
    /// open chain that the receiver knows before anything is appended; the meter is then told that the disk was lost.
    ///
    /// # Errors
    /// When the chain is of another key or is here already, or the file cannot be written.
    pub fn adopt(&mut self, chain: Chain) -> Result<(), StoreError> {
        let (award, key) = (chain.award(), chain.opening_key().unwrap_or(self.key.public()));
        let name = ChainName::new(award, key);
        if chain.key() != Some(self.key.public()) {
            return Err(StoreError::Name { name, what: "is signed by another key than this node's" });
        }
        if self.chains.contains_key(&name) {
            return Err(StoreError::Name { name, what: "is here already" });
        }
        let (delivered, end_ms) = (chain.next_sequence(), chain.end_ms());
        let part = self.begin(name, &chain, &[], end_ms)?;
        self.chains.insert(name, Kept { chain, parts: vec![part], delivered: 0 });
        self.acknowledge(name, delivered)
    }

    /// Signs with another key from now on, and gives the old one for [`Store::take_over`].
    pub fn set_key(&mut self, next: NodeKey) -> NodeKey {
        std::mem::replace(&mut self.key, next)
    }

    /// Rotates every open chain that `old` signs to the key in force. May be called again until it works.
    ///
    /// # Errors
    /// When a chain cannot be written; those before it are rotated.
    pub fn take_over(&mut self, old: &NodeKey, time_ms: u64) -> Result<(), StoreError> {
        let next_key = self.key.public();
        let of_old = |kept: &&Kept| !kept.chain.is_closed() && kept.chain.key() == Some(old.public());
        let chains: Vec<Chain> = self.chains.values().filter(of_old).map(|kept| kept.chain.clone()).collect();
        for before in chains {
            let (award, mut chain) = (before.award(), before.clone());
            let body = Body::Rotated(Rotated { time_ms: time_ms.max(chain.end_ms()), next_key });
            let record = chain.sign(body, old).map_err(|error| StoreError::Chain { award, error })?;
            let name = ChainName::new(award, before.opening_key().unwrap_or(old.public()));
            self.write(name, &before, chain, &record.encode())?;
        }
        Ok(())
    }
}

impl Kept {
    /// Closed, or of a key that is not in force any more, and the receiver has it all.
    fn is_over(&self, ours: PublicKey) -> bool {
        let ended = self.chain.is_closed() || self.chain.key().is_some_and(|key| key != ours);
        ended && self.delivered >= self.chain.next_sequence()
    }

    /// The first file, if it is not the last, the receiver has all of it, and it is old.
    fn oldest_delivered(&self, old: impl Fn(u64) -> bool) -> Option<PathBuf> {
        let [first, next, ..] = self.parts.as_slice() else { return None };
        (next.first <= self.delivered && old(first.end_ms)).then(|| first.path.clone())
    }
}

fn frame(name: ChainName, payload: &[u8]) -> Result<Vec<u8>, StoreError> {
    segment::frame(payload).ok_or(StoreError::Name { name, what: "more at once than one batch may have" })
}

pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { operation, path, source }
}
