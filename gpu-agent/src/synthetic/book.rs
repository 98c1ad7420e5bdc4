//! What is known of each device, and which is to be probed next. Pure: readings, holders and the time come in.
//!
//! A result holds for as long as the device is the same (UUID, name, memory), under the same driver, and was not reset:
//! its energy counter has not begun anew. NVLinks, which are part of a node's fingerprint too, are no part of what is
//! measured.
//!
//! Invariants: a probe that takes longer than one should holds up no other device; a device that somebody has, or may have, is never next; one that passed is next only when its result no longer
//! holds; the others are tried again after a pause that grows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vendue_crds::{GpuProbe, ProbeResult};

use super::{Probes, reasons};
use crate::health::times::Times;
use crate::inventory::{DeviceReading, NodeInventory};
use crate::pods::attribution::Attribution;

/// Memory in use on a device that nobody uses; drivers keep a few MiB.
const IDLE_BYTES: u64 = 256 << 20;

/// Pause after a probe that found the device in use.
const BUSY_PAUSE: Duration = Duration::from_secs(10);

/// A probe takes a second or two; after so long the next device is probed beside it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most probes at a time; each takes some hundred MiB of the host's memory, of which the container has 1 GiB.
const MAX_RUNNING: usize = 3;

/// Results of devices that are gone are kept, for they may come back, up to so many in all.
const MAX_ENTRIES: usize = 128;

/// What a result is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subject {
    driver_version: String,
    product_name: String,
    memory_bytes: u64,
}

impl Subject {
    fn of(device: &DeviceReading, driver_version: &str) -> Self {
        Self {
            driver_version: driver_version.to_owned(),
            product_name: device.identity.product_name.clone(),
            memory_bytes: device.identity.memory_bytes,
        }
    }
}

/// A result, and what it holds for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry {
    subject: Subject,
    /// The energy counter when the device was probed; lower later means that it was reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    energy_millijoules: Option<u64>,
    probe: GpuProbe,
}

/// Results by UUID.
pub type Entries = BTreeMap<String, Entry>;

#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Duration,
    next: Duration,
}

/// The results, and what waits.
#[derive(Debug, Default)]
pub struct Book {
    entries: Entries,
    /// Energy counters of the last look.
    energy: BTreeMap<String, u64>,
    pauses: BTreeMap<String, Pause>,
    /// The devices that are being probed, and since when.
    running: BTreeMap<String, Duration>,
    times: Times,
}

impl Book {
    /// A book with results of before.
    #[must_use]
    pub fn new(entries: Entries) -> Self {
        Self { entries, ..Self::default() }
    }

    /// The same, and these are the pauses after probes that did not pass.
    #[must_use]
    pub fn with_times(self, times: Times) -> Self {
        Self { times, ..self }
    }

    /// The results, for keeping.
    #[must_use]
    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Takes a look at the devices: results that no longer hold go.
    pub fn see(&mut self, inventory: &NodeInventory) {
        for device in &inventory.devices {
            let uuid = &device.identity.uuid;
            let now = device.sensors.energy_millijoules;
            let before =
                self.entries.get(uuid).and_then(|e| e.energy_millijoules).max(self.energy.get(uuid).copied());
            let was_reset = now.zip(before).is_some_and(|(now, before)| now < before);
            let subject = Subject::of(device, &inventory.driver_version);
            if was_reset || self.entries.get(uuid).is_some_and(|entry| entry.subject != subject) {
                self.entries.remove(uuid);
                self.pauses.remove(uuid);
            }
            if let Some(now) = now {
                self.energy.insert(uuid.clone(), now);
            }
        }
        if self.entries.len().max(self.energy.len()) > MAX_ENTRIES {
            let present: BTreeSet<_> = inventory.devices.iter().map(|d| d.identity.uuid.as_str()).collect();
            self.entries.retain(|uuid, _| present.contains(uuid.as_str()));
            self.energy.retain(|uuid, _| present.contains(uuid.as_str()));
            self.pauses.retain(|uuid, _| present.contains(uuid.as_str()));
        }
    }

    /// The device to probe now, if there is one; it counts as being probed until [`Book::take`]. Those that were never probed come
    /// first.
    ///
    /// `holders` is `None` while it is not known who has which device.
    pub fn next(
        &mut self,
        inventory: &NodeInventory,
        holders: Option<&Attribution>,
        now: Duration,
    ) -> Option<String> {
        // Probes share the host's links and memory: one at a time, but for those that seem to hang.
        let is_held_up = self.running.values().any(|began| now.saturating_sub(*began) < PATIENCE);
        if is_held_up || self.running.len() >= MAX_RUNNING {
            return None;
        }
        let is_due = |device: &&DeviceReading| {
            let uuid = &device.identity.uuid;
            let passed = self.entries.get(uuid).is_some_and(|e| e.probe.result == ProbeResult::Passed);
            let rests = self.pauses.get(uuid).is_some_and(|pause| now < pause.until);
            let runs = self.running.contains_key(uuid);
            !passed && !rests && !runs && obstacle(device, holders).is_none()
        };
        let due = inventory.devices.iter().filter(is_due).map(|device| device.identity.uuid.clone());
        let next = due.min_by_key(|uuid| self.entries.contains_key(uuid))?;
        self.running.insert(next.clone(), now);
        Some(next)
    }

    /// Takes what the probe of a device found.
    pub fn take(
        &mut self,
        inventory: &NodeInventory,
        uuid: &str,
        probe: GpuProbe,
        now: Duration,
        at: Timestamp,
    ) {
        self.running.remove(uuid);
        let (first, longest) = (self.times.probe_pause, self.times.probe_longest_pause);
        match (probe.result, probe.reason.as_str()) {
            (ProbeResult::Passed, _) => _ = self.pauses.remove(uuid),
            (_, reasons::BUSY | reasons::ALLOCATED) => {
                let next = self.pauses.get(uuid).map_or(first, |pause| pause.next);
                self.pauses.insert(uuid.to_owned(), Pause { until: now + BUSY_PAUSE, next });
            }
            _ => {
                let pause = self.pauses.get(uuid).map_or(first, |pause| pause.next);
                let next = pause.saturating_mul(2).min(longest);
                self.pauses.insert(uuid.to_owned(), Pause { until: now + pause, next });
            }
        }
        let Some(device) = inventory.devices.iter().find(|d| d.identity.uuid == uuid) else { return };
        // Whole seconds, as the API and the file have them.
        let at = Timestamp::from_second(at.as_second()).unwrap_or(at);
        let entry = Entry {
            subject: Subject::of(device, &inventory.driver_version),
            energy_millijoules: self.energy.get(uuid).copied(),
            probe: GpuProbe { at: Some(Time(at)), ..probe },
        };
        self.entries.insert(uuid.to_owned(), entry);
    }

    /// What is known of each device.
    #[must_use]
    pub fn probes(&self, inventory: &NodeInventory, holders: Option<&Attribution>) -> Probes {
        let of = |device: &DeviceReading| {
            let uuid = &device.identity.uuid;
            (uuid.clone(), self.probe_of(device, holders))
        };
        inventory.devices.iter().map(of).collect()
    }

    fn probe_of(&self, device: &DeviceReading, holders: Option<&Attribution>) -> GpuProbe {
        let not_run = |(reason, message)| GpuProbe::without_figures(ProbeResult::NotRun, reason, message);
        if device.mig_enabled == Some(true) {
            return not_run(mig());
        }
        let uuid = &device.identity.uuid;
        match self.entries.get(uuid) {
            // A device that was in use and still is says so in today's words, once kubelet has said whose it is.
            Some(entry) if !was_in_use(&entry.probe) || holders.is_none() => entry.probe.clone(),
            // While the probe runs, the process and the memory are the probe's.
            _ if self.running.contains_key(uuid) => pending("the probe runs"),
            Some(entry) => obstacle(device, holders).map_or_else(|| entry.probe.clone(), not_run),
            None => obstacle(device, holders).map_or_else(|| pending("the probe is about to run"), not_run),
        }
    }
}

/// Whether a probe did not run because somebody had the device.
fn was_in_use(probe: &GpuProbe) -> bool {
    matches!(probe.reason.as_str(), reasons::BUSY | reasons::ALLOCATED)
}

fn pending(message: &str) -> GpuProbe {
    GpuProbe::without_figures(ProbeResult::NotRun, reasons::PENDING, message.to_owned())
}

fn mig() -> (&'static str, String) {
    (reasons::MIG_ENABLED, "MIG is on: a slice is not measured".to_owned())
}

/// Why a device cannot be probed now.
fn obstacle(device: &DeviceReading, holders: Option<&Attribution>) -> Option<(&'static str, String)> {
    let Some(holders) = holders else {
        return Some((reasons::PENDING, "kubelet has not said who has the device".to_owned()));
    };
    if let Some(holder) = holders.holders(&device.identity.uuid).first() {
        return Some((reasons::ALLOCATED, format!("Pod {}/{} has the device", holder.namespace, holder.pod)));
    }
    if let Some(claim) = holders.unresolved.first() {
        let message = format!("claim {}/{} has a GPU that cannot be named", claim.namespace, claim.name);
        return Some((reasons::BUSY, message));
    }
    unfit(device)
}

/// Why a device cannot be probed by its own word.
pub(super) fn unfit(device: &DeviceReading) -> Option<(&'static str, String)> {
    if device.mig_enabled == Some(true) {
        return Some(mig());
    }
    if let Some(fault) = &device.fault {
        return Some((reasons::FAULTY, format!("the device has a fault: {fault:?}")));
    }
    if let Some(count) = device.compute_processes.filter(|count| *count > 0) {
        return Some((reasons::BUSY, format!("{count} processes use the device")));
    }
    let used = device.sensors.memory_used_bytes.unwrap_or(0);
    (used > IDLE_BYTES).then(|| (reasons::BUSY, format!("{} MiB of its memory are in use", used >> 20)))
}

#[cfg(test)]
mod tests;
