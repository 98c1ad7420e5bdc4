//! Fault time-lines from a seed. Pure: the same plan gives the same events on any machine.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::fault::{Event, Fault, ThrottleReason};
use crate::state::DeviceHealth;

/// What a time-line is to cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everything derives from it.
    pub seed: u64,
    /// Number of devices.
    pub devices: u32,
    /// Begin, on the simulated clock.
    pub from_ns: u64,
    /// Length.
    pub length_ns: u64,
    /// Mean time between two faults of one device; gaps lie between half and one and a half of it.
    pub mean_gap_ns: u64,
}

/// Xids that applications cause, by NVIDIA's Xid catalogue.
const APPLICATION_XIDS: [u64; 5] = [13, 31, 43, 45, 68];

const SECOND: u64 = 1_000_000_000;

/// Makes the events, in order of time. A device that fell off the bus has no more of them.
#[must_use]
pub fn generate(plan: &Plan) -> Vec<Event> {
    let mut events = Vec::new();
    let end = plan.from_ns.saturating_add(plan.length_ns);
    for device in 0..plan.devices {
        // One generator per device: more devices leave the fate of the others as it was.
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        rng.set_stream(u64::from(device));
        let mut at = plan.from_ns;
        loop {
            let gap = plan.mean_gap_ns.max(2);
            at = at.saturating_add(gap / 2 + rng.next_u64() % gap);
            if at >= end || !happen(&mut rng, device, at, &mut events) {
                break;
            }
        }
    }
    events.sort_by_key(|e| (e.at_ns, e.device));
    events
}

/// Adds what happens at one moment; `false` says that the device is lost by it.
fn happen(rng: &mut ChaCha8Rng, device: u32, at_ns: u64, events: &mut Vec<Event>) -> bool {
    let mut add = |fault| events.push(Event { at_ns, device: Some(device), fault });
    let roll = rng.next_u32() % 100;
    let duration = Some(SECOND * (1 + u64::from(rng.next_u32() % 60)));
    match roll {
        0..40 => {
            let pick = usize::try_from(rng.next_u32()).unwrap_or_default() % APPLICATION_XIDS.len();
            add(Fault::Xid { code: APPLICATION_XIDS[pick] });
        }
        40..60 => add(Fault::Ecc { corrected: 1 + rng.next_u64() % 8, uncorrected: 0, sram: false }),
        60..72 => {
            // A double-bit error: the driver reports Xid 48, then 63 for the row that it will replace.
            add(Fault::Ecc { corrected: 0, uncorrected: 1, sram: false });
            add(Fault::Xid { code: 48 });
            add(Fault::RowRemap { correctable: 0, uncorrectable: 1, pending: true, failed: false });
            add(Fault::Xid { code: 63 });
        }
        72..88 => {
            let reason = if rng.next_u32().is_multiple_of(2) {
                ThrottleReason::HwThermal
            } else {
                ThrottleReason::SwThermal
            };
            add(Fault::Throttle { reason, clock_percent: 30 + rng.next_u32() % 60, for_ns: duration });
        }
        88..95 => add(Fault::Hang { for_ns: duration }),
        95..98 => {
            add(Fault::RowRemap { correctable: 0, uncorrectable: 0, pending: false, failed: true });
            add(Fault::Xid { code: 64 });
        }
        _ => {
            add(Fault::Xid { code: 79 });
            add(Fault::Health { health: DeviceHealth::Lost });
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan =
        Plan { seed: 7, devices: 8, from_ns: 1_000, length_ns: 36_000 * SECOND, mean_gap_ns: 600 * SECOND };

    #[test]
    fn the_same_seed_gives_the_same_events() {
        let events = generate(&PLAN);
        assert_eq!(events, generate(&PLAN));
        assert_ne!(events, generate(&Plan { seed: 8, ..PLAN }));
        assert!(events.len() > 100, "{}", events.len());
        assert!(events.is_sorted_by_key(|e| e.at_ns));
        let end = PLAN.from_ns + PLAN.length_ns;
        assert!(events.iter().all(|e| (PLAN.from_ns..end).contains(&e.at_ns)));
        let first_four = |events: Vec<Event>| -> Vec<Event> {
            events.into_iter().filter(|e| e.device.is_some_and(|d| d < 4)).collect()
        };
        let fewer = generate(&Plan { devices: 4, ..PLAN });
        assert_eq!(first_four(events), fewer, "more devices change nothing for the others");
    }

    #[test]
    fn a_lost_device_has_no_more_faults() {
        let events = generate(&PLAN);
        let mut lost = std::collections::BTreeSet::new();
        for event in &events {
            assert!(!lost.contains(&event.device), "{event:?}");
            if matches!(event.fault, Fault::Health { .. }) {
                lost.insert(event.device);
            }
        }
        assert!(!lost.is_empty(), "the plan is long enough to lose one");
    }
}
