//! The host's side: reservations become Awards, the controller's answers go back, the workload comes in, status goes
//! out, outputs are delivered.
//!
//! Inputs: events of the seat, Awards of this cluster, requests of homes. Outputs: namespaces, Awards, Secrets, messages.
//! Invariant: everything that must survive a restart is in the Award; an Award is worked on by one task at a time, and
//! nothing here ends a running workload but a close from its own home.
//!
//! ```text
//!  Hold -> namespace + Award -> (controller: Held) -> Reserved -> ACCEPT
//!  workload -> Secret -> spec.workloadSecret, HandedOver=True -> (controller: runs)
//!  Award.status -> home, at each change until home has the last one
//!  Finished=True -> outputs and log -> home -> Delivered=True -> (controller: tears down) -> Released=True -> namespace deleted
//! ```

mod courier;
mod deliver;
mod receipts;
mod reconcile;
mod relay;
mod reserve;
mod server;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Api;
use tokio::sync::mpsc;
use tokio::time::Instant;
use vendue_auction_core::{MarketRecord, SeatInput, SeatOutput};
use vendue_crds::{Award, names};
use vendue_market::Digest;
use vendue_market::encode::from_hex;

use super::bids::BidWriter;
use super::cluster::{Cluster, ClusterError};
use super::stores::{Guarded, Seller};
use crate::engine::EngineCommand;
use crate::metrics::Metrics;
use crate::net::{Handle, MemberId};

use turns::Turns;

pub use courier::{CourierClient, CourierError};
#[cfg(test)]
pub(super) use receipts::is_of;
pub use receipts::{ReceiptsClient, ReceiptsError, ReceiptsOptions};
pub use reconcile::{error_policy, reconcile};

/// How often memory of Awards that are gone is dropped.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// What the tasks of the host share.
pub struct HostContext {
    /// The API server.
    pub cluster: Cluster,
    /// The market.
    pub record: Arc<MarketRecord>,
    /// This cluster's seat.
    pub seat: u16,
    /// The way to the homes.
    pub net: Handle,
    /// The way to the seat.
    pub engine: mpsc::Sender<EngineCommand>,
    /// Awards of this cluster, as the watch last saw them.
    pub awards: Guarded<Award>,
    /// Reader of logs and outputs.
    pub courier: CourierClient,
    /// Reader of receipts, where the controller has some.
    pub receipts: Option<ReceiptsClient>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Writer of Bids.
    pub bids: BidWriter,
    /// Tells the seat what it can offer.
    pub seller: Arc<Seller>,
    deliveries: Turns,
    memory: Mutex<BTreeMap<String, AwardMemory>>,
    /// The award that the seat asked for last, by order. The same order may have had others in earlier rounds.
    asked: Mutex<BTreeMap<Digest, String>>,
}

/// What is known of an Award beside the object; lost at a restart, and then only done again.
#[derive(Clone)]
pub(super) struct AwardMemory {
    /// When this memory began.
    since: Instant,
    /// Guards writes of spec and status.
    pub(super) lock: Arc<tokio::sync::Mutex<()>>,
    /// The controller's answer that the seat was told.
    pub(super) told: Option<bool>,
    /// Whether home said last that it does not know the award.
    pub(super) unknown_at_home: bool,
    /// Hash of the status that home has.
    pub(super) relayed: Option<u64>,
    /// The status that is to go home next; the latest counts.
    pub(super) to_relay: Option<Arc<Award>>,
    /// Whether a task brings it there.
    pub(super) relaying: bool,
    /// Whether a delivery is under way.
    pub(super) delivering: bool,
    /// Failures in a row.
    pub(super) failures: u32,
}

impl Default for AwardMemory {
    fn default() -> Self {
        Self {
            unknown_at_home: false,
            since: Instant::now(),
            lock: Arc::default(),
            told: None,
            relayed: None,
            to_relay: None,
            relaying: false,
            delivering: false,
            failures: 0,
        }
    }
}

impl HostContext {
    /// A context without memory.
    #[allow(clippy::too_many_arguments)] // One argument per field.
    pub fn new(
        cluster: Cluster,
        record: Arc<MarketRecord>,
        seat: u16,
        net: Handle,
        engine: mpsc::Sender<EngineCommand>,
        awards: Guarded<Award>,
        (courier, receipts): (CourierClient, Option<ReceiptsClient>),
        bids: BidWriter,
        seller: Arc<Seller>,
    ) -> Self {
        let metrics = cluster.metrics.clone();
        Self {
            cluster,
            record,
            seat,
            net,
            engine,
            awards,
            courier,
            receipts,
            metrics,
            bids,
            seller,
            deliveries: Turns::default(),
            memory: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    /// Awards of one namespace.
    pub(super) fn api(&self, id: &str) -> Api<Award> {
        Api::namespaced(self.cluster.client.clone(), &names::award_namespace(id))
    }

    /// Reads or changes what is remembered of an Award. Callers know that there is such an Award.
    pub(super) fn memory<T>(&self, id: &str, change: impl FnOnce(&mut AwardMemory) -> T) -> T {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        change(memory.entry(id.to_owned()).or_default())
    }

    /// Changes what is remembered of an Award, unless nothing is.
    pub(super) fn remembered<T>(&self, id: &str, change: impl FnOnce(&mut AwardMemory) -> T) -> Option<T> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id).map(change)
    }

    /// Forgets Awards that the watch does not have (any more); new ones may not have come by yet.
    fn sweep(&self) {
        let known: BTreeSet<String> = self.awards.items().into_iter().map(|a| a.spec.id).collect();
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.retain(|id, m| known.contains(id) || m.since.elapsed() < SWEEP_EVERY);
    }

    /// The home of an Award, by its name in the market record.
    pub(super) fn home_of(&self, award: &Award) -> Option<MemberId> {
        let position = self.record.homes.iter().position(|h| h.name == award.spec.job.home)?;
        u16::try_from(position).ok().map(MemberId::Home)
    }

    /// The Award with this id, from the API server.
    pub(super) async fn fetch(&self, id: &str) -> Result<Option<Award>, ClusterError> {
        self.cluster.get("award", &self.api(id), names::HOST_AWARD).await
    }

    /// Passes an input to the seat's state machine. `false` when it was not taken, so that the caller tells it again.
    #[must_use]
    pub(super) fn tell_seat(&self, input: SeatInput) -> bool {
        let told = self.engine.try_send(EngineCommand::Seat(input)).is_ok();
        if !told {
            self.metrics.dropped("engine_full");
        }
        told
    }

    /// The Awards of an order that have no workload, as the watch last saw them.
    pub(super) fn reservations_of(&self, order: &Digest) -> Vec<Award> {
        let own = i32::from(self.seat);
        let mut all = self.awards.items();
        all.retain(|a| {
            a.spec.side == vendue_crds::AwardSide::Host
                && a.spec.seat == own
                && a.spec.workload_secret.is_none()
                && digest_of(a).as_ref() == Some(order)
        });
        all
    }

    /// Notes which award the seat waits for.
    pub(super) fn ask(&self, order: Digest, id: &str) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(order, id.to_owned());
    }

    /// Whether the seat waits for this award.
    pub(super) fn is_asked(&self, order: &Digest, id: &str) -> bool {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(order).is_some_and(|asked| asked == id)
    }

    /// Nobody waits for the order any more.
    pub(super) fn answered(&self, order: &Digest) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(order);
    }
}

/// Forgets Awards that are gone, from time to time, for ever.
pub async fn sweep(context: Arc<HostContext>) {
    if !context.awards.ready().await {
        return;
    }
    let mut tick = tokio::time::interval(SWEEP_EVERY);
    loop {
        tick.tick().await;
        context.sweep();
    }
}

/// The digest of an Award's order.
pub(super) fn digest_of(award: &Award) -> Option<Digest> {
    from_hex(&award.spec.order_digest)?.try_into().ok()
}

/// Does what the seat's state machine says. Each event gets a task of its own, so that none waits for another's API calls.
pub fn on_event(context: &Arc<HostContext>, event: SeatOutput) {
    let context = context.clone();
    match event {
        SeatOutput::Hold(request) => {
            tokio::spawn(async move { reserve::hold(&context, *request).await });
        }
        SeatOutput::Released { order, cause } => {
            tokio::spawn(async move { reserve::release(&context, order, cause).await });
        }
        SeatOutput::Taken { order, home } => {
            context.answered(&order);
            tracing::info!(order = %hex::encode(order), home, "the user chose this seat");
        }
        SeatOutput::Decided(decided) => context.bids.decided(&decided),
        SeatOutput::Expired { .. } | SeatOutput::Broadcast(_) | SeatOutput::Send { .. } => {}
        _ => {}
    }
}

pub use server::{serve, serve_bulk};
