//! Metering in the agent's loop: looks and answers in, ticks to the keeper out.
//!
//! Inputs: readings, Xids, kubelet's answers. Output: receipts on disk ([`Keeper`]). Invariant: what cannot be attributed or
//! stored is a gap, told by metrics and log, and billed to nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use vendue_crds::GpuNodeStatus;
use vendue_crds::conditions::{condition, find, gpu_node};
use vendue_receipts::{AwardId, PublicKey};

use crate::inventory::NodeInventory;
use crate::meter::{Counter, Keeper, KeeperError, Kept, Sights, clocks};
use crate::pods::watcher::Seen;

/// Longest message of a condition; ours stay far below.
const MAX_MESSAGE: usize = 256;

/// Why nothing is metered.
#[derive(Debug, thiserror::Error)]
pub enum MeteringError {
    /// Key or store cannot be had.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The kernel gives no id of the boot.
    #[error("read the id of the boot: {0:?} is no UUID")]
    Boot(String),
}

/// Everything that metering needs in the loop.
pub struct Metering {
    keeper: Keeper,
    sights: Sights,
    pods: watch::Receiver<Seen>,
    /// When the last answer that was taken came.
    answered: Option<Instant>,
    xids: BTreeMap<String, Vec<u32>>,
    /// Awards of which the controller says that they are over.
    ended: watch::Receiver<BTreeSet<AwardId>>,
    ended_tx: watch::Sender<BTreeSet<AwardId>>,
}

impl Metering {
    /// Begins, or goes on with what is stored in `dir`.
    ///
    /// # Errors
    /// When key or store cannot be had.
    pub fn start(
        dir: &Path,
        boot_id: &str,
        pods: watch::Receiver<Seen>,
        has_receiver: bool,
    ) -> Result<Self, MeteringError> {
        let boot = clocks::boot(boot_id).ok_or_else(|| MeteringError::Boot(boot_id.to_owned()))?;
        let (keeper, sights) = (Keeper::start(dir, has_receiver)?, Sights::new(boot));
        let (ended_tx, ended) = watch::channel(BTreeSet::new());
        Ok(Self { keeper, sights, pods, answered: None, xids: BTreeMap::new(), ended, ended_tx })
    }

    /// Where the receiver of receipts works: with the records, and with the awards that it says are over.
    #[must_use]
    pub fn counter(&self) -> Option<(Counter, watch::Sender<BTreeSet<AwardId>>)> {
        Some((self.keeper.counter()?, self.ended_tx.clone()))
    }

    /// The condition that says whether devices are metered.
    #[must_use]
    pub fn condition(
        &self,
        previous: Option<&GpuNodeStatus>,
        generation: Option<i64>,
        now: Timestamp,
    ) -> Condition {
        let kept = self.keeper.kept();
        let (metered, reason, message) = match kept.error {
            Some(error) => (false, gpu_node::reasons::NOT_STORED, error),
            None if kept.stuck_chains > 0 => {
                let text =
                    format!("the controller does not take the receipts of {} chains", kept.stuck_chains);
                (false, gpu_node::reasons::NOT_DELIVERED, text)
            }
            None if kept.lost_chains > 0 => {
                let text = format!(
                    "receipts are signed and stored; of {} chains the controller lost what is not here any more, and takes no more",
                    kept.lost_chains
                );
                (true, gpu_node::reasons::METERED, text)
            }
            None => (true, gpu_node::reasons::METERED, "receipts are signed and stored".to_owned()),
        };
        let message = message.chars().take(MAX_MESSAGE).collect::<String>();
        let mut condition = condition(gpu_node::METERED, metered, reason, message, generation, now);
        let before = previous.and_then(|status| find(&status.conditions, gpu_node::METERED));
        if let Some(before) = before.filter(|before| before.status == condition.status) {
            condition.last_transition_time = before.last_transition_time.clone();
        }
        condition
    }

    /// The key by which the receipts of this node are verified.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.keeper.public_key()
    }

    /// What was stored so far, and sights that kubelet's silence outlasted.
    #[must_use]
    pub fn kept(&self) -> (Kept, u64) {
        (self.keeper.kept(), self.sights.dropped())
    }

    /// Takes an Xid; it belongs to the next look.
    pub fn xid(&mut self, uuid: &str, code: u64) {
        let code = u32::try_from(code).unwrap_or(u32::MAX);
        self.xids.entry(uuid.to_owned()).or_default().push(code);
    }

    /// Takes a look at the devices: what they show, or that they cannot be read, when they are those of the last look.
    pub fn see(&mut self, inventory: &NodeInventory, is_good: bool) {
        match clocks::now() {
            Ok(now) => self.sights.see(now, inventory, is_good, std::mem::take(&mut self.xids)),
            Err(error) => tracing::error!(%error, "read the clocks: nothing is metered"),
        }
        let seen = self.pods.borrow_and_update().clone();
        let Some((attribution, at)) = seen.attribution.filter(|(_, at)| Some(*at) != self.answered) else {
            return;
        };
        self.answered = Some(at);
        let mut ticks = self.sights.answer(inventory, &attribution);
        // The last of them sees the devices as they are now: no end is believed while a device serves the award.
        if let Some(last) = ticks.last_mut() {
            let serves = |award: &AwardId| last.devices.iter().any(|device| device.award == *award);
            let over = self.ended.borrow().iter().copied().filter(|award| !serves(award)).collect();
            last.ended = over;
        }
        ticks.into_iter().for_each(|tick| self.keeper.put(tick));
    }
}
