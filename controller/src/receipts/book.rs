//! The chains of all nodes, and what they add up to for an award.
//!
//! Inputs: records of a node; prices and times of awards. Outputs: what is stored; bills. Invariants: each node has a
//! folder of its own, which is opened when it is first asked for and closed when nobody asks any more; one that is damaged
//! stops that node only; no node takes more than its share of the room.
//!
//! Everything here blocks on the disk: call it from a blocking task.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vendue_controller_core::award::usage::{NodeBill, Run};
use vendue_receipts::delivery::BookId;
use vendue_receipts::{AwardId, Chain, ChainName, Record, SignedHour};

use super::error::{BookError, failed};
use super::files;
use super::held::Held;
use super::node::{self, MAX_CHAINS, Node, RETAIN_MS, Told};

const DAY_MS: u64 = 86_400_000;
/// When there is no room, chains that are over go after so many days, the longest first.
const SHORTER_DAYS: [u64; 5] = [15, 7, 3, 1, 0];
/// A node may have this part of what all may have, and no more than this: two months of 8 GPUs.
const SHARE: u64 = 4;
const MAX_NODE_BYTES: u64 = 1 << 30;
/// What a new file takes beside its records, at most.
const NEW_FILE: u64 = 4 << 10;
/// For so long after nothing could be removed it is not tried again: each try opens every node.
const FULL_MS: u64 = 60_000;
/// A folder that nobody asks for is closed after this.
const IDLE_MS: u64 = 15 * 60_000;
/// Most folders that are open, each with a file descriptor and its chains in memory.
const MAX_OPEN: usize = 512;
/// Most chains of an award that are told.
const MAX_TOLD: usize = 64;
/// Statements of hours that are judged at once; each reads the records of its hour.
const MAX_HOURS: usize = 48;
/// Folder of what is noted about awards. No node can have its name.
const HELD: &str = ".held";
/// What a folder is called while it is removed.
const GONE: &str = ".gone-";

/// The folder of a node.
struct Folder {
    name: String,
    dir: PathBuf,
    /// Bytes of chains; `UNKNOWN` until somebody wants to know.
    bytes: AtomicU64,
    /// When it was last asked for.
    used_ms: AtomicU64,
    /// Until when it is not tried again to make room in it.
    full_until_ms: AtomicU64,
    node: Mutex<Option<Node>>,
}

const UNKNOWN: u64 = u64::MAX;

impl Folder {
    /// Bytes of chains. What cannot be listed counts as nothing: it is told elsewhere.
    fn bytes(&self) -> u64 {
        match self.bytes.load(Ordering::Relaxed) {
            UNKNOWN => {
                let bytes = node::bytes_in(&self.dir).unwrap_or(0);
                self.bytes.store(bytes, Ordering::Relaxed);
                bytes
            }
            bytes => bytes,
        }
    }
}

/// The chains of all nodes.
pub struct Book {
    id: BookId,
    dir: PathBuf,
    max_bytes: u64,
    clock: fn() -> u64,
    nodes: Mutex<BTreeMap<String, Arc<Folder>>>,
    held: Held,
    full_until_ms: AtomicU64,
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
    /// A book in this folder, of at most so many bytes. Folders of nodes are listed and not read: who starts can listen at
    /// once, however much there is.
    ///
    /// # Errors
    /// When the folder cannot be made or listed.
    pub fn open(dir: &Path, max_bytes: u64, clock: fn() -> u64) -> Result<Self, BookError> {
        std::fs::create_dir_all(dir).map_err(failed("make folder", dir))?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(BookError::Random)?;
        let (held, nodes) = (Held::new(dir.join(HELD)), Mutex::default());
        let book = Self {
            id: BookId(id),
            dir: dir.to_owned(),
            max_bytes,
            clock,
            nodes,
            held,
            full_until_ms: AtomicU64::new(0),
        };
        for path in files::list(dir)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(GONE) {
                std::fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            } else if is_node_name(&name) && path.is_dir() {
                book.folder(&name)?;
            }
        }
        Ok(book)
    }

    /// Another one each time that the book is opened: what it holds may be less than it once was.
    pub fn id(&self) -> BookId {
        self.id
    }

    /// The folder of a node; it is made when records are stored.
    fn folder(&self, name: &str) -> Result<Arc<Folder>, BookError> {
        if !is_node_name(name) {
            return Err(BookError::Node(name.to_owned()));
        }
        let new = || {
            Arc::new(Folder {
                name: name.to_owned(),
                dir: self.dir.join(name),
                bytes: AtomicU64::new(UNKNOWN),
                used_ms: AtomicU64::new(0),
                full_until_ms: AtomicU64::new(0),
                node: Mutex::default(),
            })
        };
        Ok(lock(&self.nodes).entry(name.to_owned()).or_insert_with(new).clone())
    }

    /// The folder of a node that has told something.
    fn known(&self, name: &str) -> Option<Arc<Folder>> {
        lock(&self.nodes).get(name).cloned()
    }

    fn all(&self) -> Vec<Arc<Folder>> {
        lock(&self.nodes).values().cloned().collect()
    }

    /// Does something with a node, opened if it is not.
    fn with<T>(
        &self,
        folder: &Folder,
        work: impl FnOnce(&mut Node) -> Result<T, BookError>,
    ) -> Result<T, BookError> {
        let mut slot = lock(&folder.node);
        folder.used_ms.store((self.clock)(), Ordering::Relaxed);
        let node = match &mut *slot {
            Some(node) => node,
            None => slot.insert(Node::open(&folder.name, &folder.dir)?),
        };
        let done = work(node);
        folder.bytes.store(node.bytes(), Ordering::Relaxed);
        done
    }

    /// Takes records of one chain from its node. The answer is the sequence from which to go on; `None` when the chain is
    /// over and gone.
    ///
    /// # Errors
    /// When they do not continue the chain, contradict it, cannot be stored, or there is no room.
    pub fn take(&self, node: &str, name: ChainName, records: &[Record]) -> Result<Option<u64>, BookError> {
        let folder = self.folder(node)?;
        self.make_room(&folder, name, records)?;
        self.with(&folder, |node| node.take(name, records))
    }

    /// Removes old chains while these records have no room: those of the node itself when it has its share, else those of
    /// all.
    fn make_room(&self, folder: &Folder, name: ChainName, records: &[Record]) -> Result<(), BookError> {
        let max_bytes = (self.max_bytes / SHARE).min(MAX_NODE_BYTES);
        let now_ms = (self.clock)();
        let is_tried = now_ms < folder.full_until_ms.load(Ordering::Relaxed);
        let many = |node: &Node| node.is_new(name) && node.count() >= MAX_CHAINS;
        let coming = self.with(folder, |node| {
            // What is told again takes no room.
            let new = records.iter().filter(|record| record.sequence >= node.next(name));
            let coming: u64 = new.map(|record| record.encode().len() as u64).sum();
            if coming == 0 {
                return Ok(0);
            }
            let coming = coming.saturating_add(NEW_FILE);
            let fits = |node: &Node| node.bytes().saturating_add(coming) <= max_bytes && !many(node);
            for days in SHORTER_DAYS.into_iter().filter(|_| !is_tried) {
                if fits(node) {
                    return Ok(coming);
                }
                node.shorten(now_ms, days * DAY_MS)?;
            }
            if fits(node) {
                return Ok(coming);
            }
            if !is_tried {
                folder.full_until_ms.store(now_ms.saturating_add(FULL_MS), Ordering::Relaxed);
            }
            let dir = folder.dir.clone();
            Err(match many(node) {
                true => BookError::Chains { dir, chains: node.count(), max_chains: MAX_CHAINS },
                false => BookError::Full { dir, bytes: node.bytes(), max_bytes },
            })
        })?;
        if coming > 0 { self.make_room_of_all(coming, now_ms) } else { Ok(()) }
    }

    fn make_room_of_all(&self, coming: u64, now_ms: u64) -> Result<(), BookError> {
        let fits = || self.size().1.saturating_add(coming) <= self.max_bytes;
        if fits() {
            return Ok(());
        }
        let is_tried = now_ms < self.full_until_ms.load(Ordering::Relaxed);
        for days in SHORTER_DAYS.into_iter().filter(|_| !is_tried) {
            for folder in self.all() {
                if let Err(error) =
                    self.with_closed_again(&folder, |node| node.shorten(now_ms, days * DAY_MS))
                {
                    tracing::error!(node = folder.name, %error, "receipts of a node make no room");
                }
            }
            if fits() {
                tracing::warn!(days, "receipts that are over are kept for fewer days: there is no room");
                return Ok(());
            }
        }
        if !is_tried {
            self.full_until_ms.store(now_ms.saturating_add(FULL_MS), Ordering::Relaxed);
        }
        Err(BookError::Full { dir: self.dir.clone(), bytes: self.size().1, max_bytes: self.max_bytes })
    }

    /// Does something with a node, and leaves it as open as it was.
    fn with_closed_again<T>(
        &self,
        folder: &Folder,
        work: impl FnOnce(&mut Node) -> Result<T, BookError>,
    ) -> Result<T, BookError> {
        let was_open = lock(&folder.node).is_some();
        let used_ms = folder.used_ms.load(Ordering::Relaxed);
        let done = self.with(folder, work);
        if !was_open {
            *lock(&folder.node) = None;
            folder.used_ms.store(used_ms, Ordering::Relaxed);
        }
        done
    }

    /// Takes statements of hours. The answer is the hours that need not be told again.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn take_hours(&self, name: &str, said: &[SignedHour]) -> Result<Vec<u64>, BookError> {
        let (Some(folder), now_ms) = (self.known(name), (self.clock)()) else { return Ok(vec![]) };
        let mut heard = vec![];
        for said in said.iter().take(MAX_HOURS) {
            let hour = said.statement.hour;
            if let Err(what) = self.with(&folder, |node| node.take_hour(said, now_ms))? {
                tracing::error!(node = name, hour, what, "a statement of an hour is refused");
            }
            heard.push(hour);
        }
        Ok(heard)
    }

    /// The chains of a node that are not closed.
    ///
    /// # Errors
    /// When the node's folder cannot be read.
    pub fn open_chains(&self, node: &str) -> Result<Vec<Chain>, BookError> {
        let Some(folder) = self.known(node) else { return Ok(vec![]) };
        self.with(&folder, |node| Ok(node.open_chains()))
    }

    /// Awards of which a node has chains that are not closed.
    ///
    /// # Errors
    /// When the node's folder cannot be read.
    pub fn open_awards(&self, node: &str) -> Result<Vec<AwardId>, BookError> {
        let Some(folder) = self.known(node) else { return Ok(vec![]) };
        self.with(&folder, |node| Ok(node.open_awards()))
    }

    /// Whether it is noted that these nodes hold devices of an award; no look at the disk.
    pub fn knows(&self, award: AwardId, nodes: &[String]) -> bool {
        self.held.knows(award, nodes)
    }

    /// Notes that these nodes hold devices of an award: what others tell of it counts nowhere.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn note_held(&self, award: AwardId, nodes: &[String]) -> Result<(), BookError> {
        self.held.note(award, nodes)
    }

    /// The folders of the nodes that held devices of an award: those that are noted and these.
    fn folders_of(&self, award: AwardId, nodes: &[String]) -> Result<Vec<Arc<Folder>>, BookError> {
        let mut all = self.held.nodes(award)?;
        all.extend(nodes.iter().filter(|node| !all.contains(node)).cloned().collect::<Vec<_>>());
        Ok(all.iter().filter_map(|name| self.known(name)).collect())
    }

    /// The chains of an award on the nodes that held its devices, as far as these are known here or named. A node that
    /// cannot be read is left out.
    ///
    /// # Errors
    /// When it cannot be read which nodes these are.
    pub fn of_award(&self, award: AwardId, nodes: &[String]) -> Result<Vec<Told>, BookError> {
        let mut all = vec![];
        for folder in self.folders_of(award, nodes)? {
            match self.with(&folder, |node| Ok(node.of_award(award).collect::<Vec<_>>())) {
                Ok(told) => all.extend(told),
                Err(error) => {
                    tracing::error!(node = folder.name, %error, "receipts of a node cannot be read")
                }
            }
        }
        // Those with the most records first: whoever opens chain after chain pushes out none that was told for long.
        all.sort_by(|a, b| b.next.cmp(&a.next).then(a.name.cmp(&b.name)));
        all.truncate(MAX_TOLD);
        Ok(all)
    }

    /// Records of a chain of an award from a sequence on, encoded, as many as an answer has.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn records(&self, name: ChainName, nodes: &[String], from: u64) -> Result<Vec<u8>, BookError> {
        for folder in self.folders_of(name.award, nodes)? {
            if let Some(bytes) = self.with(&folder, |node| node.records(name, from))? {
                return Ok(bytes);
            }
        }
        Ok(vec![])
    }

    /// What the receipts of an award add up to on these nodes, over one run.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn bills(&self, award: AwardId, run: Run, nodes: &[String]) -> Result<Vec<NodeBill>, BookError> {
        let mut bills = vec![];
        for folder in nodes.iter().filter_map(|name| self.known(name)) {
            let chains = self
                .with(&folder, |node| Ok(node.of_award(award).map(|told| told.name).collect::<Vec<_>>()))?;
            for chain in chains {
                // The node is free in between: its agent may be telling.
                while !self.with(&folder, |node| node.count_on(chain, run))? {}
                bills.extend(self.with(&folder, |node| Ok(node.bill(chain)))?);
            }
        }
        Ok(bills)
    }

    /// Removes what is older than it is kept, also of nodes that do not tell any more. A node of which that fails holds up
    /// no other; how many did is the answer.
    pub fn prune(&self, now_ms: u64) -> usize {
        let mut failed = 0;
        for folder in self.all() {
            if let Err(error) = self.prune_node(&folder, now_ms) {
                failed += 1;
                tracing::error!(node = folder.name, %error, "old receipts of a node are not removed");
            }
        }
        let is_left = |award: AwardId, nodes: &[String]| {
            // What cannot be listed may be there.
            let has = |folder: Arc<Folder>| node::has_chain_in(&folder.dir, award).unwrap_or(true);
            nodes.iter().filter_map(|name| self.known(name)).any(has)
        };
        if let Err(error) = self.held.prune((now_ms, now_ms.saturating_sub(RETAIN_MS)), is_left) {
            failed += 1;
            tracing::error!(%error, "old notes of awards are not removed");
        }
        failed
    }

    fn prune_node(&self, folder: &Arc<Folder>, now_ms: u64) -> Result<(), BookError> {
        let is_old = |at_ms: u64| at_ms.saturating_add(RETAIN_MS) <= now_ms;
        match node::written_in(&folder.dir, now_ms)? {
            None => self.forget(folder),
            Some((_, last)) if is_old(last) => self.forget(folder),
            Some((first, _)) if is_old(first) => self.with_closed_again(folder, |node| {
                node.shorten(now_ms, RETAIN_MS)?;
                node.prune_beside(now_ms)
            }),
            Some(_) => Ok(()),
        }
    }

    /// Removes the folder of a node of which nothing is left, unless somebody has just asked for it.
    fn forget(&self, folder: &Arc<Folder>) -> Result<(), BookError> {
        let gone = self.dir.join(format!("{GONE}{}", folder.name));
        let mut nodes = lock(&self.nodes);
        // The map has one, the caller another.
        if Arc::strong_count(folder) > 2 {
            return Ok(());
        }
        *lock(&folder.node) = None;
        match std::fs::rename(&folder.dir, &gone) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                nodes.remove(&folder.name);
                return Ok(());
            }
            renamed => renamed.map_err(failed("remove", &folder.dir))?,
        }
        nodes.remove(&folder.name);
        drop(nodes);
        tracing::info!(node = folder.name, "receipts of a node are forgotten: it said nothing for 30 days");
        std::fs::remove_dir_all(&gone).map_err(failed("remove", &gone))
    }

    /// Closes folders that nobody asked for in a while, and the longest unused while too many are open. One that is in use
    /// stays.
    pub fn close_idle(&self) {
        let (mut all, now_ms) = (self.all(), (self.clock)());
        let used_ms = |folder: &Arc<Folder>| folder.used_ms.load(Ordering::Relaxed);
        all.sort_by_key(|folder| std::cmp::Reverse(used_ms(folder)));
        let mut open = 0;
        for folder in &all {
            let Ok(mut slot) = folder.node.try_lock() else { continue };
            open += usize::from(slot.is_some());
            if open > MAX_OPEN || used_ms(folder).saturating_add(IDLE_MS) <= now_ms {
                *slot = None;
            }
        }
    }

    /// Nodes and bytes that are kept.
    pub fn size(&self) -> (usize, u64) {
        let all = self.all();
        (all.len(), all.iter().map(|folder| folder.bytes()).sum())
    }

    /// How many folders are open.
    #[cfg(test)]
    pub fn open_folders(&self) -> usize {
        self.all().iter().filter(|folder| lock(&folder.node).is_some()).count()
    }
}
