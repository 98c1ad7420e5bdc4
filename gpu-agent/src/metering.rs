//! Metering in the agent's loop: looks and answers in, ticks to the keeper out.
//!
//! Inputs: readings, Xids, kubelet's answers. Output: receipts on disk ([`Keeper`]). Invariant: what cannot be attributed or
//! stored is a gap, told by metrics and log, and billed to nobody.

use std::collections::BTreeMap;
use std::path::Path;

use tokio::sync::watch;
use tokio::time::Instant;
use vendue_receipts::PublicKey;

use crate::inventory::NodeInventory;
use crate::meter::{Keeper, KeeperError, Kept, Sights, clocks};
use crate::pods::watcher::Seen;

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
}

impl Metering {
    /// Begins, or goes on with what is stored in `dir`.
    ///
    /// # Errors
    /// When key or store cannot be had.
    pub fn start(dir: &Path, boot_id: &str, pods: watch::Receiver<Seen>) -> Result<Self, MeteringError> {
        let boot = clocks::boot(boot_id).ok_or_else(|| MeteringError::Boot(boot_id.to_owned()))?;
        let (keeper, sights) = (Keeper::start(dir)?, Sights::new(boot));
        Ok(Self { keeper, sights, pods, answered: None, xids: BTreeMap::new() })
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
        self.sights.answer(inventory, &attribution).into_iter().for_each(|tick| self.keeper.put(tick));
    }
}
