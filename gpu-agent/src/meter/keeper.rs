//! The thread that meters: takes ticks, signs and stores what follows, for disks may be slow.
//!
//! * Inputs: ticks through a bounded channel. Outputs: the store; [`Kept`] for whoever tells of it.
//! * Invariants: a tick that finds the channel full is dropped and counted, and the meter sees a gap; when the agent ends, open
//!   windows end and are stored first.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use vendue_receipts::{NodeKey, PublicKey, SignatureError};
use vendue_receipts_store::StoreError;

use super::rules::{Meter, Settings};
use super::store::{Store, options};
use super::tick::Tick;

/// Name of the key's file.
const KEY_FILE: &str = "node.key";

/// Ticks that may wait for the disk.
const QUEUE: usize = 1024;

/// Why metering does not begin.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The key cannot be read or made.
    #[error("{operation} {}: {source}", path.display())]
    Key {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is there and holds no key.
    #[error("read {}: it holds no key of 64 hexadecimal digits; move it away to begin with a new key", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// What was drawn is no key, which happens to one in 2^127.
    #[error("make a key: {0}")]
    Draw(#[from] SignatureError),
    /// The receipts cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system starts no thread.
    #[error("start the metering thread: {0}")]
    Thread(std::io::Error),
}

/// What the thread has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Records that are durable.
    pub records: u64,
    /// Ticks that found no room.
    pub dropped_ticks: u64,
    /// Why nothing can be stored at present.
    pub error: Option<String>,
}

/// Handle of the thread. Dropping it ends the thread, after what waits is stored.
#[derive(Debug)]
pub struct Keeper {
    ticks: Option<SyncSender<Tick>>,
    thread: Option<JoinHandle<()>>,
    kept: Arc<Mutex<Kept>>,
    public_key: PublicKey,
}

impl Keeper {
    /// Opens the store in `dir`, with the key that is kept beside it; a node without one gets one.
    ///
    /// # Errors
    /// When key or store cannot be had: then nothing is metered, and nothing invented.
    pub fn start(dir: &Path) -> Result<Self, KeeperError> {
        let key = node_key(&dir.join(KEY_FILE))?;
        let public_key = key.public();
        let (store, found) = Store::open(options(dir.join("receipts")), key)?;
        if found.torn > 0 {
            tracing::warn!(bytes = found.torn, "ends of receipt files that were never durable are dropped");
        }
        let meter = Meter::new(Settings::new(public_key), store.resume());
        let (ticks, inbox) = sync_channel(QUEUE);
        let kept = Arc::new(Mutex::new(Kept::default()));
        let told = Arc::clone(&kept);
        let thread = std::thread::Builder::new()
            .name("metering".to_owned())
            .spawn(move || work(store, meter, &inbox, &told))
            .map_err(KeeperError::Thread)?;
        Ok(Self { ticks: Some(ticks), thread: Some(thread), kept, public_key })
    }

    /// The node's key, by which its receipts are verified.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// What the thread has done so far.
    #[must_use]
    pub fn kept(&self) -> Kept {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hands a tick over.
    pub fn put(&self, tick: Tick) {
        let taken = self.ticks.as_ref().is_some_and(|ticks| ticks.try_send(tick).is_ok());
        if !taken {
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).dropped_ticks += 1;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.ticks.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended too.
            drop(thread.join());
        }
    }
}

fn work(mut store: Store, mut meter: Meter, ticks: &Receiver<Tick>, kept: &Mutex<Kept>) {
    while let Ok(tick) = ticks.recv() {
        let error = match store.step(&mut meter, &tick) {
            Ok(appended) => note(kept, appended.records, appended.errors.first()),
            Err(error) => Some(error.to_string()),
        };
        tell(kept, error);
    }
    let drafts = meter.stop().map(<[_]>::to_vec).unwrap_or_default();
    let appended = store.append(&drafts);
    meter.settle(&appended.failed);
    let error = note(kept, appended.records, appended.errors.first());
    tell(kept, error);
}

fn note(kept: &Mutex<Kept>, records: u64, error: Option<&StoreError>) -> Option<String> {
    kept.lock().unwrap_or_else(PoisonError::into_inner).records += records;
    error.map(ToString::to_string)
}

fn tell(kept: &Mutex<Kept>, error: Option<String>) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    match &error {
        Some(error) if kept.error.is_none() => {
            tracing::error!(%error, "receipts cannot be stored: what is used now is not metered");
        }
        None if kept.error.is_some() => tracing::info!("receipts can be stored again"),
        _ => {}
    }
    kept.error = error;
}

/// The key in the file; the file is made when it is not there, whole or not at all.
fn node_key(path: &Path) -> Result<NodeKey, KeeperError> {
    let failed = |operation| move |source| KeeperError::Key { operation, path: path.to_owned(), source };
    let bytes = match std::fs::read_to_string(path) {
        Ok(text) => digits(text.trim()).ok_or_else(|| KeeperError::NoKey { path: path.to_owned() })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut drawn = [0; 32];
            std::fs::File::open("/dev/urandom")
                .and_then(|mut random| random.read_exact(&mut drawn))
                .map_err(failed("draw a key for"))?;
            store_key(path, &drawn).map_err(failed("write"))?;
            drawn
        }
        Err(source) => return Err(failed("read")(source)),
    };
    Ok(NodeKey::from_bytes(&bytes)?)
}

fn digits(text: &str) -> Option<[u8; 32]> {
    let pairs: Vec<&[u8]> = text.as_bytes().chunks(2).collect();
    let byte = |pair: &&[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

fn store_key(path: &Path, key: &[u8; 32]) -> std::io::Result<()> {
    let mut text = String::with_capacity(65);
    for byte in key {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    let temporary = path.with_extension("key.new");
    let options = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
    let mut file = options.open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
