//! Keeps the chains that this node signs: records are signed, written and synced before they count.
//!
//! Inputs: drafts of the meter, acknowledgements of the receiver. Outputs: which chains were stored, records to deliver,
//! what a meter goes on from after a restart. Invariants: those of [`Chains`]; a place in a chain is signed with one content
//! only, unless what was signed before never left this machine.
//!
//! Beside the chains: `anchor.json`, where chain time and the steady clock met.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use vendue_receipts::{AwardId, Body, Chain, ChainName, NodeKey, PublicKey, Record, Rotated, keys_of_node};
use vendue_receipts_store::{Chains, Disk, Files, Options, StoreError};

use super::clock::Anchor;
use super::hours::Hours;
use super::rules::{Draft, Meter, Resume, TickError};
use super::tally::Tally;
use super::tick::Tick;

const ANCHOR: &str = "anchor.json";

/// Files of 1 MiB, a day of delivered records, 256 MiB in all: about two weeks of 8 GPUs.
pub fn options(dir: impl Into<PathBuf>) -> Options {
    Options {
        dir: dir.into(),
        segment_bytes: 1 << 20,
        retain_ms: 86_400_000,
        max_bytes: 256 << 20,
        delivers: true,
    }
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
    chains: Chains<F>,
    key: NodeKey,
    anchor: Option<Anchor>,
    tally: Tally,
}

impl Store<Disk> {
    /// Opens the folder.
    ///
    /// # Errors
    /// When it cannot be read, another process has it, or a file in it is damaged.
    pub fn open(options: Options, key: NodeKey) -> Result<(Self, Found), StoreError> {
        let files = Disk::open(&options.dir)?;
        Self::open_with(options, key, files)
    }
}

impl<F: Files> Store<F> {
    /// Opens a folder by these operations.
    ///
    /// # Errors
    /// When it cannot be read, or a file in it is damaged.
    pub fn open_with(options: Options, key: NodeKey, files: F) -> Result<(Self, Found), StoreError> {
        let ours = key.public();
        let path = options.dir.join(ANCHOR);
        let (chains, opened) = Chains::open_with(options, Some(ours), files)?;
        let damaged = |error: serde_json::Error| {
            let (offset, what) = (error.column(), error.to_string());
            StoreError::Damaged { path: path.clone(), offset, what }
        };
        let text = chains.read_beside(ANCHOR)?;
        let anchor = text.map(|text| serde_json::from_slice(&text)).transpose().map_err(damaged)?;
        let foreign = chains.iter().filter(|(_, c)| !c.is_closed() && c.key().is_some_and(|k| k != ours));
        let foreign = foreign.count() as u64;
        let found = Found { fresh: opened.is_empty && anchor.is_none(), torn: opened.torn, foreign };
        Ok((Self { chains, key, anchor, tally: Tally::default() }, found))
    }

    /// What a meter goes on from.
    #[must_use]
    pub fn resume(&self) -> Resume {
        let key = self.key.public();
        let keys = keys_of_node(key, self.chains.iter().map(|(_, chain)| chain));
        // What a key before this one closed is over, and what its devices did then is told.
        let of_node = |chain: &Chain| chain.is_closed() && chain.key().is_some_and(|key| keys.contains(&key));
        let ours = self.chains.iter().filter(|(_, chain)| chain.key() == Some(key) || of_node(chain));
        Resume {
            anchor: self.anchor,
            chains: ours.map(|(_, chain)| chain.clone()).collect(),
            // The idle chain of a lost key goes, idle time does not.
            removed: self.chains.removed().iter().map(|n| n.award).filter(|award| !award.is_idle()).collect(),
            not_before_ms: self.chains.iter().map(|(_, chain)| chain.end_ms()).max().unwrap_or_default(),
            disk_lost: false,
        }
    }

    /// The key that signs now.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    /// States an hour with the key in force.
    ///
    /// # Errors
    /// When records cannot be read or the statement cannot be stored.
    pub fn state(&mut self, hours: &mut Hours, hour: u64) -> Result<(), StoreError> {
        hours.state(hour, &mut self.chains, &self.key)
    }

    /// The chains as they are kept.
    #[must_use]
    pub fn chains(&self) -> &Chains<F> {
        &self.chains
    }

    /// The chains, to note what the receiver has.
    pub fn chains_mut(&mut self) -> &mut Chains<F> {
        &mut self.chains
    }

    /// What the records say that were stored since it was opened.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Stores where chain time and the steady clock met, if that is new.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep_anchor(&mut self, anchor: Option<Anchor>) -> Result<(), StoreError> {
        let Some(new) = anchor.filter(|_| anchor != self.anchor) else { return Ok(()) };
        let fail = |error: serde_json::Error| StoreError::Io {
            operation: "encode",
            path: ANCHOR.into(),
            source: error.into(),
        };
        self.chains.replace_beside(ANCHOR, &serde_json::to_vec(&new).map_err(fail)?)?;
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
                Ok(()) => {
                    appended.records += bodies.len() as u64;
                    bodies.iter().for_each(|body| self.tally.add(award, body));
                }
                Err(error) => appended.fail(award, error),
            }
        }
        appended
    }

    /// The name under which the key in force keeps an award's chain.
    fn name_of(&self, award: AwardId) -> ChainName {
        let ours = Some(self.key.public());
        let found = self.chains.of_award(award).find(|(_, chain)| chain.key() == ours);
        found.map_or_else(|| ChainName::new(award, self.key.public()), |(name, _)| name)
    }

    fn append_to(&mut self, award: AwardId, bodies: &[&Body]) -> Result<(), StoreError> {
        let name = self.name_of(award);
        let mut chain = self.chains.get(name).cloned().unwrap_or_else(|| Chain::new(award, 0));
        let sign = |body: &&Body| chain.sign((*body).clone(), &self.key);
        let records: Result<Vec<Record>, _> = bodies.iter().map(sign).collect();
        let records = records.map_err(|error| StoreError::Chain { award, error })?;
        self.chains.extend(name, chain, &records)
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
        self.chains.adopt(name, chain)
    }

    /// Signs with another key from now on, to which every open chain is rotated.
    pub fn set_key(&mut self, next: NodeKey) {
        self.chains.set_in_force(Some(next.public()));
        self.key = next;
    }

    /// Rotates every open chain of the key in force to `next`, for [`Store::set_key`]. Until that nothing else is to be
    /// appended. May be called again until it works.
    ///
    /// # Errors
    /// When a chain cannot be written; those before it are rotated.
    pub fn take_over(&mut self, next: &NodeKey, time_ms: u64) -> Result<(), StoreError> {
        // Neither the chains of the one key nor those of the other may go meanwhile.
        self.chains.set_in_force(None);
        let (ours, next_key) = (self.key.public(), next.public());
        let of_ours = |chain: &Chain| !chain.is_closed() && chain.key() == Some(ours);
        let all = self.chains.iter().filter(|(_, chain)| of_ours(chain));
        let rotated = all.map(|(name, chain)| {
            let mut chain = chain.clone();
            let body = Body::Rotated(Rotated { time_ms: time_ms.max(chain.end_ms()), next_key });
            let record = chain.sign(body, &self.key);
            let record = record.map_err(|error| StoreError::Chain { award: name.award, error })?;
            Ok((name, chain, record))
        });
        // A key that one chain refuses is given to none.
        let rotated: Vec<(ChainName, Chain, Record)> = rotated.collect::<Result<_, StoreError>>()?;
        rotated.into_iter().try_for_each(|(name, chain, record)| self.chains.extend(name, chain, &[record]))
    }
}
