//! The chains of all nodes, and what they add up to for an award.
//!
//! Inputs: records of a node; prices and times of awards. Outputs: what is stored; bills. Invariants: each node has a
//! folder of its own, and one that is damaged stops that node only; a bill is counted from records that are durable.
//!
//! Everything here blocks on the disk: call it from a blocking task.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vendue_controller_core::award::usage::{NodeBill, Run};
use vendue_receipts::delivery::BookId;
use vendue_receipts::{
    AwardId, Bill, Chain, ChainName, Record, SignedHour, Tree, hour_leaves, hour_of, keys_of_node,
};
use vendue_receipts_store::{Chains, Options, StoreError, Taken};

const DAY_MS: u64 = 86_400_000;
/// Chains that are over are kept for 30 days.
const RETAIN_MS: u64 = 30 * DAY_MS;
/// When there is no room, they go after so many days, the longest first.
const SHORTER_DAYS: [u64; 5] = [15, 7, 3, 1, 0];
/// Files of a node together: two months of 8 GPUs.
const MAX_BYTES: u64 = 1 << 30;
/// What a new file takes beside its records, at most.
const NEW_FILE: u64 = 4 << 10;
/// Records that are read at once.
const READ: usize = 4_096;
/// Most bytes of an answer with records.
const MAX_ANSWER: usize = 256 << 10;
/// Folder for two stories of one key.
const EVIDENCE: &str = "evidence";
/// Folder for statements of hours.
const HOURS: &str = "hours";
const HOUR_MS: u64 = 3_600_000;
/// Most of them that are kept for a node.
const MAX_EVIDENCE: usize = 64;
/// Most statements of hours that are kept for a node: those of 30 days, and some of keys that were in force before.
const MAX_HOURS: usize = 1_024;

/// Why the book does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// No folder can have this name.
    #[error(
        "node {0:?} is no name of a node: 1 to 253 of a-z, 0-9, '-' and '.', with a letter or digit first"
    )]
    Node(String),
    /// The folder cannot be read.
    #[error("receipts: read folder {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The kernel gives no random bytes.
    #[error("receipts: draw the id of the book: {0}")]
    Random(getrandom::Error),
    /// Records cannot be kept or do not verify.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no room for more.
    #[error("receipts: {} holds {bytes} bytes of awards that go on; at most {max_bytes} are kept; next: raise controller.receipts.size", dir.display())]
    Full {
        /// The folder.
        dir: PathBuf,
        /// What is there.
        bytes: u64,
        /// What may be there.
        max_bytes: u64,
    },
    /// The same key signed two records for one place.
    #[error(
        "chain {name}: record {sequence} was told before with another content; both are kept as evidence"
    )]
    Equivocation {
        /// The chain.
        name: ChainName,
        /// The place.
        sequence: u64,
    },
}

impl BookError {
    /// Whether what was told is wrong, and not what is here.
    pub fn is_senders(&self) -> bool {
        match self {
            Self::Node(_) | Self::Equivocation { .. } => true,
            Self::Store(error) => matches!(error, StoreError::Chain { .. } | StoreError::Name { .. }),
            Self::Folder { .. } | Self::Full { .. } | Self::Random(_) => false,
        }
    }
}

/// What is kept of a node.
struct Node {
    dir: PathBuf,
    chains: Chains,
    counted: BTreeMap<ChainName, Counted>,
}

/// A bill as far as it was counted.
struct Counted {
    run: Run,
    next: u64,
    bill: Bill,
}

/// A chain as others are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its node.
    pub node: String,
    /// Its name.
    pub name: ChainName,
    /// As it is here.
    pub chain: Chain,
}

/// The chains of all nodes.
pub struct Book {
    id: BookId,
    dir: PathBuf,
    max_bytes: u64,
    nodes: Mutex<BTreeMap<String, Arc<Mutex<Node>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a folder may be called so: a name of a Node.
fn is_node_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 253
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|b| plain(b) || b == b'-' || b == b'.')
}

impl Book {
    /// A book in this folder, of at most so many bytes. Nodes that are there already are opened; one that is damaged is told and left for its
    /// owner, and its agent gets the same answer.
    ///
    /// # Errors
    /// When the folder cannot be made or listed.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<Self, BookError> {
        let failed = |source| BookError::Folder { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(BookError::Random)?;
        let book = Self { id: BookId(id), dir: dir.to_owned(), max_bytes, nodes: Mutex::default() };
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if is_node_name(&name)
                && let Err(error) = book.node(&name)
            {
                tracing::error!(node = name, %error, "receipts of a node cannot be read");
            }
        }
        Ok(book)
    }

    /// Another one each time that the book is opened: what it holds may be less than it once was.
    pub fn id(&self) -> BookId {
        self.id
    }

    fn node(&self, name: &str) -> Result<Arc<Mutex<Node>>, BookError> {
        if !is_node_name(name) {
            return Err(BookError::Node(name.to_owned()));
        }
        let mut nodes = lock(&self.nodes);
        if let Some(node) = nodes.get(name) {
            return Ok(node.clone());
        }
        let dir = self.dir.join(name);
        let options = Options {
            dir: dir.clone(),
            segment_bytes: 1 << 20,
            retain_ms: RETAIN_MS,
            max_bytes: MAX_BYTES,
            delivers: false,
        };
        let (chains, opened) = Chains::open(options, None)?;
        if opened.torn > 0 {
            tracing::warn!(
                node = name,
                bytes = opened.torn,
                "ends of receipt files that were never durable are dropped"
            );
        }
        let node = Arc::new(Mutex::new(Node { dir, chains, counted: BTreeMap::new() }));
        nodes.insert(name.to_owned(), node.clone());
        Ok(node)
    }

    fn all(&self) -> Vec<(String, Arc<Mutex<Node>>)> {
        lock(&self.nodes).iter().map(|(name, node)| (name.clone(), node.clone())).collect()
    }

    /// Takes records of one chain from its node. The answer is the sequence from which to go on; `None` when the chain is
    /// over and gone.
    ///
    /// # Errors
    /// When they do not continue the chain, contradict it, cannot be stored, or there is no room.
    pub fn take(&self, node: &str, name: ChainName, records: &[Record]) -> Result<Option<u64>, BookError> {
        if !records.is_empty() {
            self.make_room(records)?;
        }
        let node = self.node(node)?;
        let mut node = lock(&node);
        match node.chains.take(name, records)? {
            Taken::UpTo(next) => Ok(Some(next)),
            Taken::Gone => Ok(None),
            Taken::Equivocation(both) => {
                let sequence = both.first.sequence;
                node.keep_evidence(name, sequence, &both)?;
                Err(BookError::Equivocation { name, sequence })
            }
        }
    }

    /// Removes old chains while these records have no room. Their own time stands for now: what is old is so by the nodes'
    /// clocks.
    fn make_room(&self, records: &[Record]) -> Result<(), BookError> {
        let coming: u64 = records.iter().map(|record| record.encode().len() as u64).sum();
        let coming = coming.saturating_add(NEW_FILE);
        let fits = || self.size().1.saturating_add(coming) <= self.max_bytes;
        if fits() {
            return Ok(());
        }
        let now_ms = records.iter().map(|record| record.body.time_ms()).max().unwrap_or_default();
        for days in SHORTER_DAYS {
            for (_, node) in self.all() {
                lock(&node).chains.prune_older(now_ms, days * DAY_MS)?;
            }
            if fits() {
                tracing::warn!(days, "receipts that are over are kept for fewer days: there is no room");
                return Ok(());
            }
        }
        Err(BookError::Full { dir: self.dir.clone(), bytes: self.size().1, max_bytes: self.max_bytes })
    }

    /// Takes statements of hours. The answer is the hours that need not be told again.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn take_hours(&self, name: &str, said: &[SignedHour]) -> Result<Vec<u64>, BookError> {
        let node = self.node(name)?;
        let node = lock(&node);
        let mut heard = vec![];
        for said in said {
            if let Err(what) = node.take_hour(said)? {
                tracing::error!(
                    node = name,
                    hour = said.statement.hour,
                    what,
                    "a statement of an hour is refused"
                );
            }
            heard.push(said.statement.hour);
        }
        Ok(heard)
    }

    /// The chains of a node that are not closed.
    ///
    /// # Errors
    /// When the node's folder cannot be read.
    pub fn open_chains(&self, node: &str) -> Result<Vec<Chain>, BookError> {
        let node = self.node(node)?;
        let node = lock(&node);
        Ok(node
            .chains
            .iter()
            .filter(|(_, chain)| !chain.is_closed())
            .map(|(_, chain)| chain.clone())
            .collect())
    }

    /// The chains of an award on all nodes.
    pub fn of_award(&self, award: AwardId) -> Vec<Told> {
        let mut all = vec![];
        for (name, node) in self.all() {
            let node = lock(&node);
            let told = |(chain_name, chain): (ChainName, &Chain)| Told {
                node: name.clone(),
                name: chain_name,
                chain: chain.clone(),
            };
            all.extend(node.chains.of_award(award).map(told));
        }
        all
    }

    /// Records of a chain from a sequence on, encoded, as many as an answer has.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn records(&self, name: ChainName, from: u64) -> Result<Vec<u8>, BookError> {
        for (_, node) in self.all() {
            let node = lock(&node);
            if node.chains.get(name).is_none() {
                continue;
            }
            let mut bytes = vec![];
            for record in node.chains.records(name, from, READ)? {
                let encoded = record.encode();
                if bytes.len() + encoded.len() > MAX_ANSWER {
                    break;
                }
                bytes.extend(encoded);
            }
            return Ok(bytes);
        }
        Ok(vec![])
    }

    /// What the receipts of an award add up to on these nodes, over one run.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn bills(&self, award: AwardId, run: Run, nodes: &[String]) -> Result<Vec<NodeBill>, BookError> {
        let mut bills = vec![];
        for (name, node) in self.all().into_iter().filter(|(name, _)| nodes.contains(name)) {
            let mut node = lock(&node);
            let chains: Vec<ChainName> = node.chains.of_award(award).map(|(name, _)| name).collect();
            for chain in chains {
                if let Some(bill) = node.bill(&name, chain, run)? {
                    bills.push(bill);
                }
            }
        }
        Ok(bills)
    }

    /// Removes what is older than it is kept.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn prune(&self, now_ms: u64) -> Result<(), BookError> {
        for (_, node) in self.all() {
            let mut node = lock(&node);
            node.chains.prune(now_ms)?;
            node.prune_hours(now_ms)?;
            let Node { chains, counted, .. } = &mut *node;
            counted.retain(|name, _| chains.get(*name).is_some());
        }
        Ok(())
    }

    /// Nodes and bytes that are kept.
    pub fn size(&self) -> (usize, u64) {
        let all = self.all();
        (all.len(), all.iter().map(|(_, node)| lock(node).chains.bytes()).sum())
    }
}

impl Node {
    /// Keeps a statement that is true of the records that are here; the inner error says why one is not. One that
    /// contradicts an earlier one is kept beside it.
    fn take_hour(&self, said: &SignedHour) -> Result<Result<(), &'static str>, BookError> {
        let (hour, key) = (said.statement.hour, said.statement.public_key);
        if said.verify().is_err() {
            return Ok(Err("its signature is not that of the key that it names"));
        }
        if !self.chains.iter().any(|(_, chain)| chain.keys().contains(&key)) {
            return Ok(Err("its key signs no chain of the node"));
        }
        let (from, to) = (hour.saturating_mul(HOUR_MS), hour.saturating_add(1).saturating_mul(HOUR_MS));
        let mut records = vec![];
        // In the hour of a rotation some chains were closed by the key before.
        let keys = keys_of_node(key, self.chains.iter().map(|(_, chain)| chain));
        for (name, chain) in self.chains.iter() {
            if chain.keys().iter().any(|key| keys.contains(key)) {
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
        let dir = self.dir.join(folder);
        let failed = |source| BookError::Folder { path: dir.clone(), source };
        std::fs::create_dir_all(&dir).map_err(failed)?;
        let path = dir.join(format!("{hour}-{key}.json"));
        if !path.exists() && std::fs::read_dir(&dir).map_err(failed)?.count() < most {
            let text = serde_json::to_vec_pretty(said).map_err(|error| failed(error.into()))?;
            whole(&path, &text).map_err(failed)?;
        }
        Ok(if is_true { Ok(()) } else { Err("the records that it told say something else") })
    }

    fn prune_hours(&self, now_ms: u64) -> Result<(), BookError> {
        let dir = self.dir.join(HOURS);
        let failed = |source| BookError::Folder { path: dir.clone(), source };
        if !dir.exists() {
            return Ok(());
        }
        let oldest = hour_of(now_ms.saturating_sub(RETAIN_MS));
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let hour = name.split_once('-').and_then(|(hour, _)| hour.parse::<u64>().ok());
            if hour.is_some_and(|hour| hour < oldest) {
                std::fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Counts on from where it was counted before, or anew when the run is another.
    fn bill(&mut self, node: &str, name: ChainName, run: Run) -> Result<Option<NodeBill>, BookError> {
        let Some(chain) = self.chains.get(name) else { return Ok(None) };
        let (head, end, key) = (chain.head(), chain.next_sequence(), chain.opening_key());
        let (closed, first) = (chain.is_closed(), self.chains.first_kept(name).unwrap_or_default());
        let fresh = || Counted { run, next: first, bill: run.bill() };
        let counted = self.counted.entry(name).or_insert_with(fresh);
        if counted.run != run {
            *counted = fresh();
        }
        while counted.next < end {
            let records = self.chains.records(name, counted.next, READ)?;
            let Some(last) = records.last() else { break };
            counted.next = last.sequence + 1;
            records.iter().for_each(|record| counted.bill.add(record));
        }
        let sums = counted.bill.sums();
        let public_key = key.map(|key| key.to_string()).unwrap_or_default();
        Ok(Some(NodeBill { node: node.to_owned(), public_key, head, records: end, closed, sums }))
    }

    fn keep_evidence(
        &self,
        name: ChainName,
        sequence: u64,
        both: &vendue_receipts::Equivocation,
    ) -> Result<(), BookError> {
        let dir = self.dir.join(EVIDENCE);
        let failed = |source| BookError::Folder { path: dir.clone(), source };
        std::fs::create_dir_all(&dir).map_err(failed)?;
        let path = dir.join(format!("{name}-{sequence}.json"));
        if path.exists() || std::fs::read_dir(&dir).map_err(failed)?.count() >= MAX_EVIDENCE {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(both).map_err(|error| failed(error.into()))?;
        whole(&path, &text).map_err(failed)
    }
}

/// Writes a file that is whole or not there.
fn whole(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = std::fs::File::create(&unfinished)?;
    std::io::Write::write_all(&mut file, text)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)
}
