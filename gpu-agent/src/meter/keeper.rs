//! The thread that meters: takes ticks, signs and stores what follows, for disks may be slow.
//!
//! * Inputs: ticks and the receiver's answers through a bounded channel. Outputs: the store; batches for the receiver;
//!   [`Kept`] for whoever tells of it.
//! * Invariants: a tick that finds the channel full is dropped and counted, and the meter sees a gap; when the agent ends, open
//!   windows end and are stored first; a key whose receipts are gone signs nothing before the receiver has said where its
//!   chains stand, so that no place in a chain is signed twice; nothing is metered while only some chains are rotated.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use vendue_receipts::delivery::{Answer, Batch};
use vendue_receipts::{Chain, ChainName, NodeKey, PublicKey, hour_of};
use vendue_receipts_store::{Options, StoreError};

use super::hours::Hours;
use super::key::{self, KeyError, Keys};
use super::rules::{Meter, Resume, Settings};
use super::store::{Appended, Store, options};
use super::tally::Tally;
use super::telling::Telling;
use super::tick::Tick;

/// Ticks that may wait for the disk.
const QUEUE: usize = 1024;

/// Beside the chains: whether those that the receiver has were taken over, where that was needed.
const ADOPTED_FILE: &str = "adopted";
const NOT_YET: &[u8] = b"not yet\n";
const DONE: &[u8] = b"done\n";

/// What is between two removals of old records, in milliseconds of chain time.
const PRUNE_MS: u64 = 600_000;

/// Why nothing is stored while the receiver is asked.
const ADOPTING: &str = "the receipts of this node's key are gone; metering goes on when the controller has said where its chains stand";

/// Why nothing is stored while ticks find no room.
const BEHIND: &str =
    "the disk does not keep up: looks at the devices wait, and those that find no room are gaps";

/// Why nothing is stored once the thread is gone.
const ENDED: &str = "the metering thread has ended; restart the agent and see its log";

/// Why metering does not begin.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The key cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
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
    /// What they say.
    pub tally: Arc<Tally>,
    /// Ticks that found no room.
    pub dropped_ticks: u64,
    /// Why nothing can be stored at present.
    pub error: Option<String>,
    /// Records that the receiver does not have.
    pub undelivered: u64,
    /// Chains of which the receiver refuses records.
    pub stuck_chains: u64,
    /// Chains of which the receiver lost what is not here any more: it takes no more of them.
    pub lost_chains: u64,
}

/// What the thread is asked.
enum Order {
    Tick(Tick),
    /// Whether chains are to be adopted before anything else, or what the receiver may not have.
    Next(oneshot::Sender<Next>),
    Answered(Answer),
    Adopt(Vec<Chain>),
    End,
}

/// What the receiver is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Where do the chains of this key stand?
    Adopt,
    /// These records; none when it has all.
    Batch(Batch),
}

/// Handle of the thread. Dropping it ends the thread, after what waits is stored.
#[derive(Debug)]
pub struct Keeper {
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
    kept: Arc<Mutex<Kept>>,
    public_key: Arc<Mutex<PublicKey>>,
}

/// The receiver's side of the thread.
#[derive(Clone)]
pub struct Counter(SyncSender<Order>);

impl Keeper {
    /// Opens the store in `dir`, with the key that is kept beside it; a node without one gets one. Where there is a
    /// receiver, a key without receipts is asked after first.
    ///
    /// # Errors
    /// When key or store cannot be had: then nothing is metered, and nothing invented.
    pub fn start(dir: &Path, has_receiver: bool) -> Result<Self, KeeperError> {
        let Keys { current, is_new, next } = Keys::open(dir)?;
        let public_key = Arc::new(Mutex::new(current.public()));
        let (mut store, found) = Store::open(kept_as(dir.join("receipts"), has_receiver), current)?;
        if found.torn > 0 {
            tracing::warn!(bytes = found.torn, "ends of receipt files that were never durable are dropped");
        }
        let begun = store.chains().read_beside(ADOPTED_FILE)?.is_some_and(|text| text == NOT_YET);
        let adopting = has_receiver && (begun || (found.fresh && !is_new));
        if adopting {
            store.chains_mut().replace_beside(ADOPTED_FILE, NOT_YET)?;
        }
        let (orders, inbox) = sync_channel(QUEUE);
        let kept = Arc::new(Mutex::new(Kept::default()));
        let hours = Hours::open(store.chains())?;
        let rotation = next.map(|next| Rotation { next, dir: dir.to_owned() });
        let told = (Arc::clone(&kept), Arc::clone(&public_key));
        let work = Work::new(store, hours, adopting, rotation, told);
        let thread = std::thread::Builder::new()
            .name("metering".to_owned())
            .spawn(move || work.run(&inbox))
            .map_err(KeeperError::Thread)?;
        Ok(Self { orders: Some(orders), thread: Some(thread), kept, public_key })
    }

    /// The node's key, by which its receipts are verified; the next one once every open chain is rotated to it.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        *lock(&self.public_key)
    }

    /// What the thread has done so far.
    #[must_use]
    pub fn kept(&self) -> Kept {
        let mut kept = lock(&self.kept).clone();
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            kept.error = Some(ENDED.to_owned());
        }
        kept
    }

    /// Hands a tick over.
    pub fn put(&self, tick: Tick) {
        let taken = self.orders.as_ref().is_some_and(|orders| orders.try_send(Order::Tick(tick)).is_ok());
        if !taken {
            let mut kept = lock(&self.kept);
            kept.dropped_ticks += 1;
            // The next tick that is stored says otherwise.
            kept.error.get_or_insert_with(|| BEHIND.to_owned());
        }
    }

    /// Where the receiver's records are had; of no use once the keeper has ended.
    #[must_use]
    pub fn counter(&self) -> Option<Counter> {
        self.orders.clone().map(Counter)
    }
}

impl Counter {
    /// What the receiver is to be told next; `None` while the thread is behind, or has ended.
    pub async fn next(&self) -> Option<Next> {
        let (reply, next) = oneshot::channel();
        self.0.try_send(Order::Next(reply)).ok()?;
        next.await.ok()
    }

    /// What the receiver answered. What is lost on the way is asked and answered again.
    pub fn answered(&self, answer: Answer) -> bool {
        self.0.try_send(Order::Answered(answer)).is_ok()
    }

    /// Where the receiver says that the chains of this node stand.
    pub fn adopt(&self, chains: Vec<Chain>) -> bool {
        self.0.try_send(Order::Adopt(chains)).is_ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Others may still hold the other end.
        if let Some(orders) = self.orders.take() {
            // A thread that has ended hears nothing.
            let _ = orders.send(Order::End);
        }
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended too.
            drop(thread.join());
        }
    }
}

/// Where nobody is told, everything stays for as long as there is room.
fn kept_as(dir: PathBuf, has_receiver: bool) -> Options {
    let options = options(dir);
    let retain_ms = if has_receiver { options.retain_ms } else { u64::MAX };
    Options { delivers: has_receiver, retain_ms, ..options }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A key to go over to, and the folder with its file.
struct Rotation {
    next: NodeKey,
    dir: PathBuf,
}

/// What the thread works with.
struct Work {
    store: Store,
    /// None before chains are adopted, and before they are rotated.
    meter: Option<Meter>,
    /// Chains are to be adopted first.
    adopting: bool,
    /// Records were lost with their disk.
    disk_lost: bool,
    rotation: Option<Rotation>,
    kept: Arc<Mutex<Kept>>,
    public_key: Arc<Mutex<PublicKey>>,
    telling: Telling,
    /// The first hour after an adoption is not stated: what was lost may be of it.
    adopted: bool,
    pruned_ms: u64,
    hours: Hours,
}

impl Work {
    fn new(
        store: Store,
        hours: Hours,
        adopting: bool,
        rotation: Option<Rotation>,
        (kept, public_key): (Arc<Mutex<Kept>>, Arc<Mutex<PublicKey>>),
    ) -> Self {
        let mut work = Self {
            store,
            meter: None,
            adopting,
            disk_lost: false,
            rotation,
            kept,
            public_key,
            telling: Telling::default(),
            adopted: false,
            pruned_ms: 0,
            hours,
        };
        if adopting {
            tell(&work.kept, Some(ADOPTING.to_owned()));
        } else {
            work.begin();
        }
        work
    }

    /// Begins to meter, unless there is a key to go over to and that does not work.
    fn begin(&mut self) {
        if let Err(error) = self.rotate() {
            tell(&self.kept, Some(format!("go over to the next key: {error}")));
            return;
        }
        let resume = Resume { disk_lost: self.disk_lost, ..self.store.resume() };
        self.meter = Some(Meter::new(Settings::new(self.store.public_key()), resume));
    }

    /// Goes over to the next key, if there is one: first the chains, then the file. What was done before a crash is not
    /// done again.
    fn rotate(&mut self) -> Result<(), KeeperError> {
        let Some(Rotation { next, dir }) = &self.rotation else { return Ok(()) };
        // Not before anything that is told, nor in an hour that is stated; chain time is past both.
        let time_ms = self.store.resume().not_before_ms.max(self.hours.open_from_ms());
        self.store.take_over(next, time_ms)?;
        key::promote(dir, next.public())?;
        if let Some(Rotation { next, .. }) = self.rotation.take() {
            *lock(&self.public_key) = next.public();
            tracing::warn!(public_key = %next.public(), before = %self.store.public_key(), "the key is rotated");
            self.store.set_key(next);
        }
        Ok(())
    }

    fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            match order {
                Order::Tick(tick) => self.tick(&tick),
                // Whoever asked may have gone.
                Order::Next(reply) => _ = reply.send(self.next()),
                Order::Answered(answer) => self.answered(answer),
                Order::Adopt(chains) => self.adopt(chains),
                Order::End => break,
            }
        }
        let Some(meter) = &mut self.meter else { return };
        let drafts = meter.stop().map(<[_]>::to_vec).unwrap_or_default();
        let appended = self.store.append(&drafts);
        meter.settle(&appended.failed);
        let error = note(&self.kept, &appended, self.store.tally());
        tell(&self.kept, error);
    }

    fn tick(&mut self, tick: &Tick) {
        if self.meter.is_none() && !self.adopting {
            self.begin();
        }
        let Some(meter) = &mut self.meter else {
            lock(&self.kept).dropped_ticks += 1;
            return;
        };
        let error = match self.store.step(meter, tick) {
            Ok(appended) => note(&self.kept, &appended, self.store.tally()),
            Err(error) => Some(error.to_string()),
        };
        let now_ms = meter.time_ms();
        let is_stored = error.is_none();
        tell(&self.kept, error);
        self.count();
        if self.adopted {
            match self.hours.forgo(hour_of(now_ms), self.store.chains_mut()) {
                Ok(()) => self.adopted = false,
                Err(error) => tracing::warn!(%error, "which hours are stated is not noted yet"),
            }
        }
        let is_stored = is_stored && !self.adopted;
        if let Some(hour) = self.hours.due(now_ms).filter(|_| is_stored)
            && let Err(error) = self.store.state(&mut self.hours, hour)
        {
            tracing::warn!(hour, %error, "an hour is not stated yet");
        }
        if now_ms >= self.pruned_ms.saturating_add(PRUNE_MS) {
            self.pruned_ms = now_ms;
            if let Err(error) = self.store.chains_mut().prune(now_ms) {
                tracing::warn!(%error, "old receipts are not removed");
            }
        }
    }

    fn count(&self) {
        let chains = self.store.chains();
        let behind = chains
            .undelivered()
            .map(|(name, from)| chains.get(name).map_or(0, Chain::next_sequence).saturating_sub(from));
        let mut kept = lock(&self.kept);
        kept.undelivered = behind.sum();
        (kept.stuck_chains, kept.lost_chains) = self.telling.counts();
    }

    fn now_ms(&self) -> u64 {
        self.meter.as_ref().map_or(0, Meter::time_ms)
    }

    fn next(&mut self) -> Next {
        if self.adopting {
            return Next::Adopt;
        }
        let now_ms = self.now_ms();
        Next::Batch(self.telling.batch(self.store.chains_mut(), &self.hours, now_ms))
    }

    /// Notes what the receiver has, and where it wants to be told again.
    fn answered(&mut self, answer: Answer) {
        if let Err(error) = self.hours.told(&answer.hours, self.store.chains_mut()) {
            tracing::warn!(%error, "statements of hours will be told again");
        }
        let now_ms = self.now_ms();
        self.telling.answered(answer, self.store.chains_mut(), now_ms);
        self.count();
    }

    /// Goes on with the chains of this key as the receiver has them.
    fn adopt(&mut self, chains: Vec<Chain>) {
        if !self.adopting {
            return;
        }
        let ours = self.store.public_key();
        let here = |chain: &Chain| {
            let name = chain.opening_key().map(|key| ChainName::new(chain.award(), key));
            name.is_none_or(|name| self.store.chains().get(name).is_some())
        };
        let open = |chain: &Chain| chain.key() == Some(ours) && !chain.is_closed() && !here(chain);
        let missing: Vec<Chain> = chains.into_iter().filter(open).collect();
        let count = missing.len();
        let adopted = missing.into_iter().try_for_each(|chain| self.store.adopt(chain));
        match adopted.and_then(|()| self.store.chains_mut().replace_beside(ADOPTED_FILE, DONE)) {
            Ok(()) => {
                tracing::warn!(
                    chains = count,
                    "receipts were lost; their chains go on where the controller has them"
                );
                (self.adopting, self.disk_lost, self.adopted) = (false, true, true);
                self.begin();
                if self.meter.is_some() {
                    tell(&self.kept, None);
                }
            }
            Err(error) => tell(&self.kept, Some(error.to_string())),
        }
    }
}

fn note(kept: &Mutex<Kept>, appended: &Appended, tally: &Tally) -> Option<String> {
    if appended.records > 0 {
        let mut kept = lock(kept);
        kept.records += appended.records;
        kept.tally = Arc::new(tally.clone());
    }
    appended.errors.first().map(ToString::to_string)
}

fn tell(kept: &Mutex<Kept>, error: Option<String>) {
    let mut kept = lock(kept);
    match &error {
        Some(error) if kept.error.is_none() => {
            tracing::error!(%error, "receipts cannot be stored: what is used now is not metered");
        }
        None if kept.error.is_some() => tracing::info!("receipts can be stored again"),
        _ => {}
    }
    kept.error = error;
}

#[cfg(test)]
mod tests {
    use vendue_receipts::BootId;

    use super::*;

    fn tick() -> Tick {
        let (steady_ns, suspended_ns, system_ms) = (0, 0, 1_800_000_000_000);
        let (boot, devices, ended) = (BootId([1; 16]), vec![], vec![]);
        Tick { steady_ns, suspended_ns, system_ms, boot, devices, ended }
    }

    #[test]
    fn a_thread_that_is_behind_or_gone_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::start(dir.path(), false).unwrap();
        assert_eq!(keeper.kept().error, None);
        let (orders, inbox) = sync_channel(0);
        let ours = keeper.orders.replace(orders);
        keeper.put(tick());
        let Kept { dropped_ticks, error, .. } = keeper.kept();
        assert_eq!((dropped_ticks, error.as_deref()), (1, Some(BEHIND)));
        drop(inbox);
        let ours = ours.unwrap();
        ours.send(Order::Tick(tick())).unwrap();
        let (reply, _next) = oneshot::channel();
        ours.send(Order::Next(reply)).unwrap();
        ours.send(Order::End).unwrap();
        keeper.thread.take().unwrap().join().unwrap();
        assert_eq!(lock(&keeper.kept).error, None, "what was stored again is told");
        assert_eq!(keeper.kept().error.as_deref(), Some(ENDED));
    }

    #[test]
    fn without_a_receiver_the_oldest_goes_only_for_room() {
        let dir = PathBuf::from("/receipts");
        let Options { delivers, retain_ms, .. } = kept_as(dir.clone(), false);
        assert_eq!((delivers, retain_ms), (false, u64::MAX));
        let Options { delivers, retain_ms, .. } = kept_as(dir, true);
        assert_eq!((delivers, retain_ms), (true, 86_400_000));
    }
}
