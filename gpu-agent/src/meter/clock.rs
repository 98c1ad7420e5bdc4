//! Chain time: one clock for all chains of a node, which nobody can set.
//!
//! Inputs: the steady clock, the boot, and the system clock where there is nothing else to go by. Output: nanoseconds
//! since 1970. Invariant: it never runs backwards, over restarts and reboots too, and within a boot it runs like the
//! steady clock.

use serde::{Deserialize, Serialize};
use vendue_receipts::BootId;

use super::tick::Tick;

pub(super) const MS: u64 = 1_000_000;

/// Where chain time and the steady clock met. Stored once a boot, so that an agent that is started again goes on exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    /// The boot in which the steady clock says this.
    pub boot: BootId,
    /// The steady clock.
    pub steady_ns: u64,
    /// Chain time.
    pub chain_ns: u64,
}

impl Anchor {
    /// Begins chain time anew at the system clock, or where it was if the system clock is behind.
    pub(super) fn begin(tick: &Tick, not_before_ns: u64) -> Self {
        let chain_ns = tick.system_ms.saturating_mul(MS).max(not_before_ns);
        Self { boot: tick.boot, steady_ns: tick.steady_ns, chain_ns }
    }

    /// Chain time at a tick of the same boot, unless the steady clock is behind what it was.
    pub(super) fn at(&self, tick: &Tick) -> Option<u64> {
        let since = tick.steady_ns.checked_sub(self.steady_ns)?;
        self.chain_ns.checked_add(since).filter(|_| tick.boot == self.boot)
    }
}
