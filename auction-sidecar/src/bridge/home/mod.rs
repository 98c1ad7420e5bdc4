//! The home's side: Jobs become orders, certificates become Awards, the workload goes out, status and outputs come in.
//!
//! Inputs: Jobs and Awards of this cluster, events of the home's state machine, requests of seats. Outputs:
//! `Job.status.auction`, Awards, messages. Invariants: an Award is written before anybody is asked for devices that it
//! names, and the choice of seat is in it before the workload leaves; a choice that is stored is never changed.
//!
//! ```text
//!  Job (Accepted) -> Submit -> rounds -> Awarded -> Award -> Choose -> Award.spec, Held=True -> Stored
//!  HandOver -> workload to that seat -> HandedOver=True -> status of the winner -> Award.status
//!  spec.close -> CLOSE to the seat, until it says that nothing is left
//! ```

mod awards;
mod handover;
mod jobs;
mod order;
mod persist;
mod receipts;
mod server;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use tokio::sync::mpsc;
use vendue_auction_core::evidence::EvidenceKey;
use vendue_auction_core::{HomeInput, HomeOutput, MarketRecord};
use vendue_crds::{AuctionStatus, Award};
use vendue_market::Digest;

use super::cluster::Cluster;
use super::stores::Guarded;
use crate::engine::EngineCommand;
use crate::metrics::Metrics;
use crate::net::{Handle, MemberId};
use crate::store::Store;

pub use awards::{award_error_policy, reconcile_award};
pub use jobs::{job_error_policy, reconcile_job};
pub use receipts::Puller;
pub use server::{serve, serve_bulk};

/// Longest wait for the state machine; it may be busy with a round.
const ENGINE_WAIT: Duration = Duration::from_secs(5);
/// Reads of the API server that one seat may cause in a second by speaking of awards that the watch does not know.
const MAX_READS: u32 = 10;
/// Objects whose failures are counted.
const MAX_FAILURES: usize = 4096;
/// Places in an order's queue that only events may take which are not repeated.
const RESERVED_PLACES: usize = 32;

/// A Job as its order needs it.
#[derive(Debug, Clone)]
pub struct JobKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// For Events.
    pub reference: ObjectReference,
    /// For what the Job owns.
    pub owner: OwnerReference,
    /// Secret with salt and workload.
    pub secret: String,
    /// What its status said of this attempt before a restart.
    pub auction: Option<AuctionStatus>,
}

/// Orders that are in work.
#[derive(Default)]
struct Book {
    /// Submitted, by Job uid and attempt.
    jobs: BTreeMap<(String, u32), JobKey>,
    /// Made, by digest.
    orders: BTreeMap<Digest, Entry>,
}

struct Entry {
    job: (String, u32),
    events: mpsc::Sender<HomeOutput>,
}

/// What the tasks of the home share.
pub struct HomeContext {
    /// The API server.
    pub cluster: Cluster,
    /// The market.
    pub record: Arc<MarketRecord>,
    /// Position of this home in the record.
    pub home: u16,
    /// Signs closes.
    user: Arc<EvidenceKey>,
    /// The way to the seats.
    pub net: Handle,
    /// The way to the state machine.
    pub engine: mpsc::Sender<EngineCommand>,
    /// Awards of this cluster, as the watch last saw them.
    pub awards: Guarded<Award>,
    /// Outputs and logs.
    pub store: Arc<Store>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    book: Mutex<Book>,
    /// Last status of each award, and what guards its writes.
    versions: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<u64>>>>,
    failures: Mutex<BTreeMap<String, u32>>,
    /// Reads of the API server that seats caused in this second.
    reads: Mutex<(u64, BTreeMap<MemberId, u32>)>,
}

impl HomeContext {
    /// A context without orders.
    #[allow(clippy::too_many_arguments)] // One argument per field.
    pub fn new(
        cluster: Cluster,
        record: Arc<MarketRecord>,
        (home, user): (u16, Arc<EvidenceKey>),
        net: Handle,
        engine: mpsc::Sender<EngineCommand>,
        awards: Guarded<Award>,
        store: Arc<Store>,
    ) -> Self {
        let metrics = cluster.metrics.clone();
        Self {
            cluster,
            record,
            home,
            user,
            net,
            engine,
            awards,
            store,
            metrics,
            book: Mutex::default(),
            versions: Mutex::default(),
            failures: Mutex::default(),
            reads: Mutex::default(),
        }
    }

    fn book<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut book);
        self.metrics.orders_open.set(i64::try_from(book.jobs.len()).unwrap_or(i64::MAX));
        result
    }

    fn name(&self) -> String {
        self.record.home(self.home).map(|h| h.name.clone()).unwrap_or_default()
    }

    fn api(&self, namespace: &str) -> Api<Award> {
        Api::namespaced(self.cluster.client.clone(), namespace)
    }

    /// Gives the state machine an input, waiting while it is busy; says whether it took it.
    async fn tell(&self, input: HomeInput) -> bool {
        let command = EngineCommand::Home(Box::new(input));
        let taken = self.engine.send_timeout(command, ENGINE_WAIT).await.is_ok();
        if !taken {
            self.metrics.dropped("engine_full");
        }
        taken
    }

    /// The lock of an award with the version of the last status that was taken.
    fn version(&self, id: &str) -> Arc<tokio::sync::Mutex<u64>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).entry(id.to_owned()).or_default().clone()
    }

    fn forget_version(&self, id: &str) {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Failures in a row of an object, after this one; zero resets.
    fn failed(&self, key: &str, failed: bool) -> u32 {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if !failed {
            failures.remove(key);
            return 0;
        }
        // Of objects that failed last and are gone nobody says so; without memory a failure counts as the first.
        if failures.len() >= MAX_FAILURES {
            failures.clear();
        }
        let count = failures.entry(key.to_owned()).or_default();
        *count = count.saturating_add(1);
        *count
    }

    /// Whether a seat may cause one more read of the API server in this second.
    fn may_read(&self, from: MemberId, now_ms: u64) -> bool {
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        if reads.0 != now_ms / 1000 {
            *reads = (now_ms / 1000, BTreeMap::new());
        }
        let count = reads.1.entry(from).or_default();
        *count = count.saturating_add(1);
        *count <= MAX_READS
    }

    /// Whether `from` is the seat of that number, also when the cluster is known as something else.
    fn is_seat(&self, from: MemberId, seat: i32) -> bool {
        let Ok(seat) = u16::try_from(seat) else { return false };
        from == MemberId::Seat(seat)
    }

    /// An order goes on under the digest of its next body.
    fn rename(&self, order: &Digest, now: Digest) {
        self.book(|book| {
            if let Some(entry) = book.orders.remove(order) {
                book.orders.insert(now, entry);
            }
        });
    }

    /// Takes the orders of a Job's attempt out of the book, whatever they are called by now, which ends their tasks.
    fn drop_job(&self, job: &(String, u32)) -> Vec<Digest> {
        self.book(|book| {
            book.jobs.remove(job);
            let found: Vec<_> = book.orders.iter().filter(|(_, e)| &e.job == job).map(|(d, _)| *d).collect();
            book.orders.retain(|_, entry| &entry.job != job);
            found
        })
    }

    /// Whether an order of a Job's attempt is in work.
    fn in_work(&self, job: &(String, u32)) -> bool {
        self.book(|book| book.jobs.contains_key(job))
    }

    /// Forgets the orders of a Job's attempt that are closed, at home and in the state machine.
    async fn forget(&self, job: &(String, u32)) {
        for order in self.drop_job(job) {
            self.tell(HomeInput::Forget { order }).await;
        }
    }
}

/// Notes that a Job was submitted.
pub(crate) fn submitted(context: &HomeContext, job: JobKey, attempt: u32) {
    context.book(|book| book.jobs.insert((job.uid.clone(), attempt), job));
}

/// Passes what the state machine says to the task of the order.
pub fn on_event(context: &Arc<HomeContext>, event: HomeOutput) {
    if let HomeOutput::Ordered { digest, order, signature, starts_ms } = event {
        order::started(context, digest, *order, signature, starts_ms);
        return;
    }
    if let HomeOutput::Relisted { order, digest } = event {
        context.rename(&order, digest);
        return;
    }
    let Some(digest) = digest_of(&event) else { return };
    let sender = context.book(|book| book.orders.get(&digest).map(|entry| entry.events.clone()));
    let Some(sender) = sender else {
        tracing::debug!(order = %hex::encode(digest), "event of an order that is not in work");
        return;
    };
    // What comes again, or says less than what comes next, leaves room for what comes once.
    let can_wait =
        matches!(event, HomeOutput::Choose(_) | HomeOutput::Received { .. } | HomeOutput::Delayed { .. });
    if can_wait && sender.capacity() <= RESERVED_PLACES {
        return;
    }
    if sender.try_send(event).is_err() {
        context.metrics.dropped("order_full");
    }
}

fn digest_of(event: &HomeOutput) -> Option<Digest> {
    match event {
        HomeOutput::Received { order, .. }
        | HomeOutput::Awarded { order, .. }
        | HomeOutput::NotAwarded { order, .. }
        | HomeOutput::Delayed { order, .. }
        | HomeOutput::RoundMissed { order, .. }
        | HomeOutput::Reserving { order, .. }
        | HomeOutput::PassedOver { order, .. }
        | HomeOutput::Unserved { order, .. }
        | HomeOutput::HandOver { order, .. }
        | HomeOutput::GivenUp { order } => Some(*order),
        HomeOutput::Choose(choice) => Some(choice.order),
        _ => None,
    }
}
