//! The chains of a folder.
//!
//! Inputs: chains with the records that extend them, acknowledgements of a receiver. Outputs: which records there are.
//! Invariants: of a batch everything is stored or nothing; a chain that went is never begun again; nothing that a
//! receiver still needs goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use vendue_receipts::{AwardId, Chain, ChainName, Equivocation, PublicKey, Record};

use crate::compare;
use crate::error::{StoreError, io};
use crate::files::{Disk, Files, UNFINISHED};
use crate::load::{self, Loaded, Reads};
use crate::segment;

const REMOVED: &str = "removed";
/// Most chains that are gone and remembered; older ones are forgotten.
const MAX_REMOVED: usize = 65_536;

/// How chains are kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder.
    pub dir: PathBuf,
    /// A file ends when it is longer than this.
    pub segment_bytes: u64,
    /// For how long chains that are over are kept, and what is old of idle chains, in milliseconds.
    pub retain_ms: u64,
    /// All files of chains together are not longer than this: what may go goes earlier, then nothing more is stored.
    pub max_bytes: u64,
    /// Whether somebody else must have the records before they may go. Who delivers signs them, and judges their age by chain
    /// time; who keeps those of others judges it by the system clock that the chains say.
    pub delivers: bool,
}

/// A file of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub path: PathBuf,
    /// Sequence of its first record.
    pub first: u64,
    /// Chain time of the record before that.
    pub begins_ms: u64,
    pub bytes: u64,
    /// Chain time of its last record.
    pub end_ms: u64,
}

/// A chain that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub chain: Chain,
    pub parts: Vec<Part>,
    /// How many of its records the receiver has.
    pub delivered: u64,
}

/// What opening found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opened {
    /// There was nothing.
    pub is_empty: bool,
    /// Bytes at ends of files that were never durable.
    pub torn: u64,
}

/// What became of records of somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// Everything below this sequence is here.
    UpTo(u64),
    /// The chain was closed and is gone; nothing of it is needed.
    Gone,
    /// The signer told another story before. Nothing was stored.
    Equivocation(Box<Equivocation>),
}

/// The chains of a folder.
pub struct Chains<F: Files = Disk> {
    options: Options,
    files: F,
    /// Signs the chains of this folder; chains of other keys are over. `None` where others sign.
    in_force: Option<PublicKey>,
    chains: BTreeMap<ChainName, Kept>,
    removed: Vec<ChainName>,
    /// Chains of which the receiver refuses what it lacks.
    refused: BTreeSet<ChainName>,
    /// Chain time of the last record that is not here any more.
    gone_ms: Option<u64>,
}

impl Chains<Disk> {
    /// Opens the folder; it is made when it is not there.
    ///
    /// # Errors
    /// When it cannot be read, another process has it, or a file in it is damaged.
    pub fn open(options: Options, in_force: Option<PublicKey>) -> Result<(Self, Opened), StoreError> {
        let files = Disk::open(&options.dir)?;
        Self::open_with(options, in_force, files)
    }

    /// Opens a folder whose records were checked when they were taken: of each chain only the last file is read, and how the
    /// chain stood at the beginning of the others. What is damaged in those is found when they are read.
    ///
    /// # Errors
    /// When it cannot be read, another process has it, or what is read is damaged.
    pub fn open_at_ends(options: Options) -> Result<(Self, Opened), StoreError> {
        let files = Disk::open(&options.dir)?;
        Self::open_reading(options, None, files, Reads::Ends)
    }
}

impl<F: Files> Chains<F> {
    /// Opens a folder by these operations.
    ///
    /// # Errors
    /// When it cannot be read, or a file in it is damaged.
    pub fn open_with(
        options: Options,
        in_force: Option<PublicKey>,
        files: F,
    ) -> Result<(Self, Opened), StoreError> {
        Self::open_reading(options, in_force, files, Reads::All)
    }

    fn open_reading(
        options: Options,
        in_force: Option<PublicKey>,
        files: F,
        reads: Reads,
    ) -> Result<(Self, Opened), StoreError> {
        let dir = &options.dir;
        let removed = load::removed(&files, &dir.join(REMOVED))?;
        let Loaded { chains, torn, leftover } = load::chains(&files, dir, &removed, reads)?;
        let opened = Opened { is_empty: chains.is_empty() && removed.is_empty(), torn };
        let begins = chains.values().filter_map(|kept| kept.parts.first()).filter(|part| part.first > 0);
        let gone_ms = begins.map(|part| part.begins_ms).max();
        let refused = BTreeSet::new();
        let mut all = Self { options, files, in_force, chains, removed, refused, gone_ms };
        for path in leftover.into_iter().chain([all.options.dir.join(UNFINISHED)]) {
            all.remove(&path)?;
        }
        Ok((all, opened))
    }

    /// The chains that are kept.
    pub fn iter(&self) -> impl Iterator<Item = (ChainName, &Chain)> {
        self.chains.iter().map(|(name, kept)| (*name, &kept.chain))
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, name: ChainName) -> Option<&Chain> {
        self.chains.get(&name).map(|kept| &kept.chain)
    }

    /// The chains of an award, one for each key that opened one.
    pub fn of_award(&self, award: AwardId) -> impl Iterator<Item = (ChainName, &Chain)> {
        let (from, to) = (ChainName { award, key: [0; 8] }, ChainName { award, key: [0xff; 8] });
        self.chains.range(from..=to).map(|(name, kept)| (*name, &kept.chain))
    }

    /// Chains that are closed and gone.
    #[must_use]
    pub fn removed(&self) -> &[ChainName] {
        &self.removed
    }

    /// Bytes of all chains.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.chains.values().flat_map(|kept| &kept.parts).map(|part| part.bytes).sum()
    }

    /// Bytes of one chain.
    #[must_use]
    pub fn bytes_of(&self, name: ChainName) -> u64 {
        self.chains.get(&name).map_or(0, |kept| kept.parts.iter().map(|part| part.bytes).sum())
    }

    /// Another key signs from now on; `None` while one takes over from another: until then no chain is over by its key.
    pub fn set_in_force(&mut self, key: Option<PublicKey>) {
        self.in_force = key;
    }

    /// Reads a file beside the chains.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_beside(&self, file: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.options.dir.join(file);
        self.files.read(&path).map_err(io("read", &path))
    }

    /// Puts a whole file beside the chains.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn replace_beside(&mut self, file: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.options.dir.join(file);
        self.files.replace(&path, bytes).map_err(io("write", &path))
    }

    /// Stores records with the chain that they lead to from the one that is here.
    ///
    /// # Errors
    /// When they cannot be written, or the chain is gone. Then nothing has changed.
    pub fn extend(&mut self, name: ChainName, chain: Chain, records: &[Record]) -> Result<(), StoreError> {
        if self.removed.contains(&name) {
            return Err(StoreError::Removed(name));
        }
        let before = self.get(name).cloned().unwrap_or_else(|| Chain::new(name.award, 0));
        let batch: Vec<u8> = records.iter().flat_map(Record::encode).collect();
        self.write(name, &before, chain, &batch)
    }

    /// Takes records of one chain from who signed them: those that are here already are compared, the others checked and
    /// stored. Records that begin after what is here are left; the answer says where to begin.
    ///
    /// # Errors
    /// When a record does not continue the chain, or they cannot be written.
    pub fn take(&mut self, name: ChainName, records: &[Record]) -> Result<Taken, StoreError> {
        if self.removed.contains(&name) {
            return Ok(Taken::Gone);
        }
        let next = self.get(name).map_or(0, Chain::next_sequence);
        let known = records.iter().filter(|record| record.sequence < next).count();
        let (known, new) = records.split_at(known);
        if let Some(found) = self.contradiction(name, known)? {
            return Ok(Taken::Equivocation(Box::new(found)));
        }
        if new.first().is_none_or(|record| record.sequence > next) {
            return Ok(Taken::UpTo(next));
        }
        let mut chain = self.get(name).cloned().unwrap_or_else(|| Chain::new(name.award, 0));
        for record in new {
            chain.push(record).map_err(|error| StoreError::Chain { award: name.award, error })?;
        }
        if chain.opening_key().map(|key| ChainName::new(name.award, key)) != Some(name) {
            return Err(StoreError::Name { name, what: "is opened by another key than its name says" });
        }
        let next = chain.next_sequence();
        self.extend(name, chain, new)?;
        Ok(Taken::UpTo(next))
    }

    /// Two different records of one signer for one place: one that is here, and one that is told now.
    fn contradiction(&self, name: ChainName, told: &[Record]) -> Result<Option<Equivocation>, StoreError> {
        let kept_from = self.first_kept(name).unwrap_or_default();
        let kept = told.get(told.partition_point(|record| record.sequence < kept_from)..);
        compare::contradiction(kept.unwrap_or_default(), |from, most| self.records(name, from, most))
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
                self.make_room(framed.len() as u64)?;
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
        self.make_room(bytes)?;
        self.files.replace(&path, &content).map_err(io("write", &path))?;
        Ok(Part { path, first, begins_ms: before.end_ms(), bytes, end_ms })
    }

    /// Takes away what may go, the oldest first, until there is room for so many bytes; what the receiver refuses goes last.
    fn make_room(&mut self, coming: u64) -> Result<(), StoreError> {
        let max_bytes = self.options.max_bytes;
        loop {
            let bytes = self.bytes();
            if bytes + coming <= max_bytes {
                return Ok(());
            }
            match self.next_to_go() {
                Some((name, true)) => self.abandon(&[name])?,
                Some((name, false)) => _ = self.drop_first(name)?,
                None => return Err(StoreError::Full { dir: self.options.dir.clone(), bytes, max_bytes }),
            }
        }
    }

    /// What goes next when there is no room: a whole chain, or the first file of one that goes on.
    fn next_to_go(&self) -> Option<(ChainName, bool)> {
        let may_go = |(name, kept): (&ChainName, &Kept)| {
            let refused = self.refused.contains(name);
            let is_whole = self.has_ended(kept) && (refused || self.is_told(kept));
            let next = kept.parts.get(1).map(|part| part.first);
            let is_told = next.is_some_and(|next| next <= self.delivered(kept));
            if !(is_whole || is_told || (refused && next.is_some())) {
                return None;
            }
            let end_ms =
                kept.parts.first().filter(|_| !is_whole).map_or(kept.chain.end_ms(), |part| part.end_ms);
            let is_untold = if is_whole { !self.is_told(kept) } else { !is_told };
            Some((is_untold, end_ms, *name, is_whole))
        };
        self.chains.iter().filter_map(may_go).min().map(|(_, _, name, is_whole)| (name, is_whole))
    }

    /// Removes the oldest file of a chain, unless it is the last one: then false.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn drop_first(&mut self, name: ChainName) -> Result<bool, StoreError> {
        let parts = self.chains.get(&name).map(|kept| kept.parts.as_slice());
        let Some([first, next, ..]) = parts else { return Ok(false) };
        let (path, end_ms, first_left) = (first.path.clone(), first.end_ms, next.first);
        self.remove(&path)?;
        self.gone_ms = self.gone_ms.max(Some(end_ms));
        self.chains.entry(name).and_modify(|kept| {
            kept.parts.remove(0);
            kept.delivered = kept.delivered.max(first_left);
        });
        Ok(true)
    }

    /// Removes what is older than it is kept: chains that are over, and of idle chains all but the last file. A chain of
    /// another key than the one in force counts as closed: rotate before.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn prune(&mut self, now_ms: u64) -> Result<(), StoreError> {
        self.drop_old(now_ms, self.options.retain_ms)
    }

    /// Removes what is older than this, in the same way, because room is needed; with 0 whatever its clock says.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn prune_older(&mut self, now_ms: u64, retain_ms: u64) -> Result<(), StoreError> {
        self.drop_old(now_ms, retain_ms.min(self.options.retain_ms))
    }

    /// Removes chains, over or not. They are never begun again.
    ///
    /// # Errors
    /// When a file cannot be written or removed.
    pub fn abandon(&mut self, names: &[ChainName]) -> Result<(), StoreError> {
        self.remember_removed(names)?;
        for name in names {
            self.refused.remove(name);
            if let Some(kept) = self.chains.remove(name) {
                self.gone_ms = self.gone_ms.max(Some(kept.chain.end_ms()));
                kept.parts.iter().try_for_each(|part| self.remove(&part.path))?;
                self.remove(&self.delivered_path(*name))?;
            }
        }
        Ok(())
    }

    /// Of chains of awards that go on everything is kept while there is room: a receiver that lost its disk asks for it.
    fn drop_old(&mut self, now_ms: u64, retain_ms: u64) -> Result<(), StoreError> {
        let is_old = |end_ms: u64| retain_ms == 0 || end_ms.saturating_add(retain_ms) <= now_ms;
        let is_over = |kept: &Kept| self.has_ended(kept) && self.is_told(kept);
        let end_ms = |kept: &Kept| self.age_from_ms(kept, kept.chain.end_ms());
        let over = self.chains.iter().filter(|(_, kept)| is_over(kept) && is_old(end_ms(kept)));
        let over: Vec<ChainName> = over.map(|(name, _)| *name).collect();
        self.abandon(&over)?;
        let idle: Vec<ChainName> = self.chains.keys().copied().filter(|name| name.award.is_idle()).collect();
        for name in idle {
            while self.chains.get(&name).is_some_and(|kept| self.begins_old(kept, is_old)) {
                self.drop_first(name)?;
            }
        }
        Ok(())
    }

    /// The first file is not the last, nobody else needs it, and it is old.
    fn begins_old(&self, kept: &Kept, is_old: impl Fn(u64) -> bool) -> bool {
        let [first, next, ..] = kept.parts.as_slice() else { return false };
        next.first <= self.delivered(kept) && is_old(self.age_from_ms(kept, first.end_ms))
    }

    /// From when a time of a chain counts as old.
    fn age_from_ms(&self, kept: &Kept, time_ms: u64) -> u64 {
        let offset_ms = if self.options.delivers { 0 } else { kept.chain.clock_offset_ms() };
        time_ms.saturating_add_signed(offset_ms)
    }

    /// How many records of a chain are needed by nobody but this folder.
    fn delivered(&self, kept: &Kept) -> u64 {
        if self.options.delivers { kept.delivered } else { kept.chain.next_sequence() }
    }

    /// Closed, or of a key that is not in force any more.
    fn has_ended(&self, kept: &Kept) -> bool {
        let foreign = self.in_force.is_some_and(|ours| kept.chain.key().is_some_and(|key| key != ours));
        kept.chain.is_closed() || foreign
    }

    /// The receiver has it all.
    fn is_told(&self, kept: &Kept) -> bool {
        self.delivered(kept) >= kept.chain.next_sequence()
    }

    /// Before the files of a chain go, it is noted that they may not begin again.
    fn remember_removed(&mut self, names: &[ChainName]) -> Result<(), StoreError> {
        if names.is_empty() {
            return Ok(());
        }
        let mut all = [&self.removed[..], names].concat();
        all.drain(..all.len().saturating_sub(MAX_REMOVED));
        let text: String = all.iter().map(|name| format!("{name}\n")).collect();
        self.replace_beside(REMOVED, text.as_bytes())?;
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

    /// Records of a chain from this sequence on, at most so many, and at most those of one file. None when there is no
    /// such record (any more).
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn records(&self, name: ChainName, from: u64, most: usize) -> Result<Vec<Record>, StoreError> {
        let kept = self.kept(name)?;
        let Some(part) = kept.parts.iter().rfind(|part| part.first <= from) else {
            return Ok(vec![]);
        };
        let segment = load::part(&self.files, &part.path, part.bytes)?;
        let records = segment.records.into_iter().map(|(_, record)| record);
        Ok(records.skip_while(|record| record.sequence < from).take(most).collect())
    }

    /// Records of a chain whose time is from `from_ms` on and before `to_ms`.
    ///
    /// # Errors
    /// When a file cannot be read or is damaged.
    pub fn records_between(
        &self,
        name: ChainName,
        from_ms: u64,
        to_ms: u64,
    ) -> Result<Vec<Record>, StoreError> {
        let kept = self.kept(name)?;
        let mut found = vec![];
        let mut begins_ms = kept.chain.started_ms();
        for part in &kept.parts {
            let outside = part.end_ms < from_ms || begins_ms >= to_ms;
            begins_ms = part.end_ms;
            if outside {
                continue;
            }
            let segment = load::part(&self.files, &part.path, part.bytes)?;
            let records = segment.records.into_iter().map(|(_, record)| record);
            found.extend(records.filter(|record| (from_ms..to_ms).contains(&record.body.time_ms())));
        }
        Ok(found)
    }

    /// The files of a chain, the oldest first.
    pub fn files_of(&self, name: ChainName) -> impl Iterator<Item = &Path> {
        self.chains.get(&name).into_iter().flat_map(|kept| kept.parts.iter().map(|part| part.path.as_path()))
    }

    /// Sequence of the first record of a chain that is still here.
    #[must_use]
    pub fn first_kept(&self, name: ChainName) -> Option<u64> {
        self.chains.get(&name)?.parts.first().map(|part| part.first)
    }

    /// Chain time of the last record that is not here any more.
    #[must_use]
    pub fn gone_ms(&self) -> Option<u64> {
        self.gone_ms
    }

    /// The chains of which the receiver refuses what it lacks: without room those records go too, for else one chain that nobody
    /// takes would end all others. An open one that goes on again keeps the rest.
    pub fn set_refused(&mut self, names: BTreeSet<ChainName>) {
        self.refused = names;
    }

    /// Chains with records that the receiver does not have, and from where.
    pub fn undelivered(&self) -> impl Iterator<Item = (ChainName, u64)> {
        let from = |kept: &Kept| (kept.delivered < kept.chain.next_sequence()).then_some(kept.delivered);
        self.chains.iter().filter_map(move |(name, kept)| Some((*name, from(kept)?)))
    }

    /// How many records of a chain the receiver has.
    #[must_use]
    pub fn delivered_up_to(&self, name: ChainName) -> Option<u64> {
        self.chains.get(&name).map(|kept| kept.delivered)
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
        self.set_delivered(name, next)
    }

    /// The receiver lost what it had and has the records below `next`. Those that are not here any more cannot be told
    /// again: false then, and nothing changes.
    ///
    /// # Errors
    /// When there is no such chain, or the file cannot be written.
    pub fn rewind(&mut self, name: ChainName, next: u64) -> Result<bool, StoreError> {
        let kept = self.kept(name)?;
        if kept.parts.first().is_none_or(|part| next < part.first) {
            return Ok(false);
        }
        if next < kept.delivered {
            self.set_delivered(name, next)?;
        }
        Ok(true)
    }

    fn set_delivered(&mut self, name: ChainName, next: u64) -> Result<(), StoreError> {
        let path = self.delivered_path(name);
        self.files.replace(&path, format!("{next}\n").as_bytes()).map_err(io("write", &path))?;
        self.chains.entry(name).and_modify(|kept| kept.delivered = next);
        Ok(())
    }

    /// Goes on with a chain as somebody else has it: the files were lost with the disk.
    ///
    /// # Errors
    /// When it is here already, or the file cannot be written.
    pub fn adopt(&mut self, name: ChainName, chain: Chain) -> Result<(), StoreError> {
        if self.chains.contains_key(&name) {
            return Err(StoreError::Name { name, what: "is here already" });
        }
        let (delivered, end_ms) = (chain.next_sequence(), chain.end_ms());
        let part = self.begin(name, &chain, &[], end_ms)?;
        self.gone_ms = self.gone_ms.max(Some(end_ms).filter(|_| delivered > 0));
        self.chains.insert(name, Kept { chain, parts: vec![part], delivered: 0 });
        self.acknowledge(name, delivered)
    }
}

fn frame(name: ChainName, payload: &[u8]) -> Result<Vec<u8>, StoreError> {
    segment::frame(payload).ok_or(StoreError::Name { name, what: "more at once than one batch may have" })
}
