//! Which Pod uses which device: processes of devices, grouped by the Pods that they belong to.
//!
//! * Inputs: the processes of each device as the driver lists them, cgroup files, what kubelet gave to whom.
//! * Output: [`DeviceUse`] of each device, for metrics.
//! * Invariants: a process whose Pod cannot be found counts as unknown, never as somebody's; at most [`MAX_PODS`] Pods of a
//!   device are named; a device counts as used without being given only when two looks in succession say so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::attribution::Attribution;
use super::cgroup;
use crate::inventory::{DeviceProcess, NodeInventory};
use crate::model;

/// Pods of a device that are named; the rest, those with the least memory, share the name [`OTHER_PODS`].
pub const MAX_PODS: usize = 32;

/// Name of the Pods for which there is no room.
pub const OTHER_PODS: &str = "other";

/// Name of what belongs to no Pod.
pub const NO_POD: &str = "";

/// The processes of a device.
#[derive(Clone, Debug)]
pub struct Listed {
    /// UUID of the device.
    pub uuid: String,
    /// Its model.
    pub model: String,
    /// UUIDs of its MIG instances.
    pub mig: Vec<String>,
    /// Its processes.
    pub processes: Arc<[DeviceProcess]>,
}

/// What processes of one Pod use of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodUse {
    /// Processes.
    pub processes: u32,
    /// Their memory, of those whose memory the driver tells.
    pub memory_bytes: Option<u64>,
    /// Share of time in which their kernels ran, in percent, of those of which the driver tells.
    pub utilization_percent: Option<u32>,
}

/// What processes use of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceUse {
    /// UUID of the device.
    pub uuid: String,
    /// Its model.
    pub model: String,
    /// By UID of the Pod.
    pub pods: BTreeMap<String, PodUse>,
    /// Processes that are not to be found: gone by now, or named by the driver as another namespace knows them.
    pub unknown: u32,
    /// Processes of Pods while kubelet has given the device to nobody; `None` while it is not known who has it.
    pub unassigned: Option<u32>,
}

/// The lists of a reading; devices of which the driver lists none are left out.
#[must_use]
pub fn listed(inventory: &NodeInventory) -> Vec<Listed> {
    let of = |device: &crate::inventory::DeviceReading| {
        Some(Listed {
            uuid: device.identity.uuid.clone(),
            model: model::from_product_name(&device.identity.product_name),
            mig: device.mig.iter().map(|instance| instance.uuid.clone()).collect(),
            processes: Arc::clone(device.processes.as_ref()?),
        })
    };
    inventory.devices.iter().filter_map(of).collect()
}

/// Whether the driver was asked again since.
#[must_use]
pub fn is_same(before: &[Listed], now: &[Listed]) -> bool {
    let same = |(a, b): (&Listed, &Listed)| Arc::ptr_eq(&a.processes, &b.processes) && a.uuid == b.uuid;
    before.len() == now.len() && before.iter().zip(now).all(same)
}

/// Groups processes by Pod; reads one file for each process, so it may take a while. Processes of this one's own Pod,
/// which measures devices, are no Pod's.
#[must_use]
pub fn group(devices: &[Listed], proc: &Path, own: Option<&str>) -> Vec<DeviceUse> {
    // A process that uses several devices is looked up once, so that it is the same Pod's on each.
    let mut pods: BTreeMap<u32, Option<String>> = BTreeMap::new();
    let mut pod_of = |pid: u32| {
        let found = pods.entry(pid).or_insert_with(|| find(proc, pid));
        found.as_ref().map(|uid| if Some(uid.as_str()) == own { NO_POD } else { uid }.to_owned())
    };
    devices.iter().map(|device| group_device(device, &mut pod_of)).collect()
}

/// The Pod of a process, or that it has none; `None` when it is not to be found.
fn find(proc: &Path, pid: u32) -> Option<String> {
    // The driver says 0 for processes that this namespace does not see.
    let pid = Some(pid).filter(|pid| *pid != 0)?;
    cgroup::pod_of(proc, pid).ok().map(Option::unwrap_or_default)
}

fn group_device(device: &Listed, mut pod_of: impl FnMut(u32) -> Option<String>) -> DeviceUse {
    let (mut pods, mut unknown) = (BTreeMap::<String, PodUse>::new(), 0);
    for process in device.processes.iter() {
        match pod_of(process.pid) {
            Some(uid) => add(pods.entry(uid).or_default(), PodUse::of(process)),
            None => unknown += 1,
        }
    }
    let (uuid, model) = (device.uuid.clone(), device.model.clone());
    DeviceUse { uuid, model, pods: bounded(pods), unknown, unassigned: None }
}

impl PodUse {
    fn of(process: &DeviceProcess) -> Self {
        let DeviceProcess { memory_bytes, sm_percent, .. } = *process;
        Self { processes: 1, memory_bytes, utilization_percent: sm_percent }
    }
}

fn add(sum: &mut PodUse, more: PodUse) {
    sum.processes = sum.processes.saturating_add(more.processes);
    if let Some(bytes) = more.memory_bytes {
        sum.memory_bytes = Some(sum.memory_bytes.unwrap_or_default().saturating_add(bytes));
    }
    if let Some(percent) = more.utilization_percent {
        sum.utilization_percent = Some(sum.utilization_percent.unwrap_or_default().saturating_add(percent));
    }
}

/// Names the Pods with the most memory, and puts the others together.
fn bounded(mut pods: BTreeMap<String, PodUse>) -> BTreeMap<String, PodUse> {
    let mut named: Vec<(String, PodUse)> =
        pods.iter().filter(|(uid, _)| *uid != NO_POD).map(|(uid, used)| (uid.clone(), *used)).collect();
    named.sort_by(|(a, of_a), (b, of_b)| of_b.memory_bytes.cmp(&of_a.memory_bytes).then_with(|| a.cmp(b)));
    for (uid, used) in named.drain(MAX_PODS.min(named.len())..) {
        pods.remove(&uid);
        add(pods.entry(OTHER_PODS.to_owned()).or_default(), used);
    }
    pods
}

/// What was suspected at the last look: a Pod that comes or goes between two questions is nobody's fault.
#[derive(Debug, Default)]
pub struct Suspects {
    once: BTreeSet<String>,
    /// Found at two looks in succession, and told.
    told: BTreeSet<String>,
}

impl Suspects {
    /// Notes processes of Pods on devices that kubelet gave to nobody; gives the devices of which that is news.
    pub fn judge(
        &mut self,
        devices: &[Listed],
        uses: &mut [DeviceUse],
        given: Option<&Attribution>,
    ) -> Vec<String> {
        // A claim whose device is not known may be of any of these.
        let Some(given) = given.filter(|given| given.unresolved.is_empty()) else {
            *self = Self::default();
            return vec![];
        };
        let (mut once, mut told, mut news) = (BTreeSet::new(), BTreeSet::new(), vec![]);
        for (device, used) in devices.iter().zip(uses) {
            let is_given =
                std::iter::once(&device.uuid).chain(&device.mig).any(|uuid| !given.holders(uuid).is_empty());
            let of_pods = used.pods.iter().filter(|(uid, _)| *uid != NO_POD);
            let count = if is_given { 0 } else { of_pods.map(|(_, used)| used.processes).sum() };
            used.unassigned = Some(0);
            if count == 0 {
                continue;
            }
            once.insert(device.uuid.clone());
            if self.once.contains(&device.uuid) {
                used.unassigned = Some(count);
                told.insert(device.uuid.clone());
                news.extend((!self.told.contains(&device.uuid)).then(|| device.uuid.clone()));
            }
        }
        *self = Self { once, told };
        news
    }
}

#[cfg(test)]
mod tests;
