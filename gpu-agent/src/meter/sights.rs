//! From what was read and who had the devices to ticks of the meter. Pure.
//!
//! Readings come each second, kubelet's answers every two and sometimes not for a while. A device is an award's at a reading
//! only when the answer before it and the answer after it both say so: kubelet alone gives devices out, so nothing changes
//! while it is silent, and what changed between two answers changed at a moment that nobody saw.
//!
//! * Inputs: sights, answers. Outputs: ticks, in order, once the answer after them is there.
//! * Invariants: no tick says more than both answers; sights before the first answer, and those that kubelet's silence outlasts,
//!   are dropped, which the meter sees as a gap.

use std::collections::{BTreeMap, VecDeque};

use vendue_receipts::{ActivitySource, AwardId, BootId, DeviceId, DriverVersion};

use super::tick::{DeviceTick, Reading, Tick, Unreadable};
use crate::inventory::{Activity, DeviceFault, DeviceReading, MigInstance, NodeInventory};
use crate::pods::attribution::{Attribution, Serving};

/// Sights that may wait for an answer: ten minutes of them.
const MAX_WAITING: usize = 600;

/// The clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// `CLOCK_BOOTTIME`.
    pub steady_ns: u64,
    /// `CLOCK_BOOTTIME` less `CLOCK_MONOTONIC`.
    pub suspended_ns: u64,
    /// The system clock, in milliseconds since 1970.
    pub system_ms: u64,
}

/// One device, before it is known whom it serves.
type Seen = (DeviceId, Vec<u32>, Result<Reading, Unreadable>);

/// One look at all devices.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sight {
    clocks: Clocks,
    devices: Vec<Seen>,
}

/// Sights that wait for an answer.
#[derive(Debug)]
pub struct Sights {
    boot: BootId,
    before: Option<BTreeMap<DeviceId, AwardId>>,
    waiting: VecDeque<Sight>,
    /// Sights that were dropped.
    dropped: u64,
}

impl Sights {
    /// Sights of a boot.
    #[must_use]
    pub fn new(boot: BootId) -> Self {
        Self { boot, before: None, waiting: VecDeque::new(), dropped: 0 }
    }

    /// Sights that were dropped, because there was no answer before them or none came for too long.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes a look at the devices: a reading, or that there is none (`is_good`), when the devices are those of the last.
    pub fn see(
        &mut self,
        clocks: Clocks,
        inventory: &NodeInventory,
        is_good: bool,
        mut xids: BTreeMap<String, Vec<u32>>,
    ) {
        if self.before.is_none() {
            self.dropped += 1;
            return;
        }
        let devices = inventory.devices.iter().flat_map(|device| seen(device, inventory, is_good, &mut xids));
        let devices = devices.collect();
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.pop_front();
            self.dropped += 1;
        }
        self.waiting.push_back(Sight { clocks, devices });
    }

    /// Takes an answer of kubelet, and gives the ticks that it completes.
    pub fn answer(&mut self, inventory: &NodeInventory, attribution: &Attribution) -> Vec<Tick> {
        let after = assignment(inventory, attribution);
        let Some(before) = self.before.replace(after) else { return vec![] };
        let (boot, after) = (self.boot, self.before.as_ref());
        let award = |device: &DeviceId| {
            let now = after.and_then(|after| after.get(device)).copied().unwrap_or(AwardId::IDLE);
            if before.get(device) == Some(&now) { now } else { AwardId::IDLE }
        };
        let tick = |Sight { clocks, devices }: Sight| Tick {
            steady_ns: clocks.steady_ns,
            suspended_ns: clocks.suspended_ns,
            system_ms: clocks.system_ms,
            boot,
            devices: devices
                .into_iter()
                .map(|(device, xids, reading)| DeviceTick { award: award(&device), device, xids, reading })
                .collect(),
            ended: vec![],
        };
        self.waiting.drain(..).map(tick).collect()
    }
}

/// Whom each device serves; devices of several or of the cluster's own Pods are idle to the market.
fn assignment(inventory: &NodeInventory, attribution: &Attribution) -> BTreeMap<DeviceId, AwardId> {
    let whole = inventory.devices.iter().map(|d| d.identity.uuid.as_str());
    let slices = inventory.devices.iter().flat_map(|d| &d.mig).map(|m| m.uuid.as_str());
    whole
        .chain(slices)
        .filter_map(|uuid| {
            let award = match attribution.serving(uuid) {
                Serving::Award(id) => AwardId(id),
                Serving::Idle | Serving::Local | Serving::Several => AwardId::IDLE,
            };
            Some((uuid.parse().ok()?, award))
        })
        .collect()
}

/// What a device shows; of one in MIG mode, what its instances do.
fn seen(
    device: &DeviceReading,
    inventory: &NodeInventory,
    is_good: bool,
    xids: &mut BTreeMap<String, Vec<u32>>,
) -> Vec<Seen> {
    let happened = xids.remove(&device.identity.uuid).unwrap_or_default();
    let driver = inventory.driver_version.parse().ok();
    let trouble = match &device.fault {
        Some(DeviceFault::Lost) => Some(Unreadable::Lost),
        Some(DeviceFault::Unreadable(_)) => Some(Unreadable::NotReadable),
        _ if !is_good => Some(Unreadable::NotReadable),
        _ => None,
    };
    let reading = |driver: &Option<DriverVersion>, instance: Option<&MigInstance>| match (trouble, driver) {
        (None, Some(driver)) => Ok(reading(device, instance, driver.clone())),
        (trouble, _) => Err(trouble.unwrap_or(Unreadable::NotReadable)),
    };
    // A UUID that no receipt can hold is no NVIDIA device's.
    let one = |uuid: &str, instance| Some((uuid.parse().ok()?, happened.clone(), reading(&driver, instance)));
    if device.mig.is_empty() {
        one(&device.identity.uuid, None).into_iter().collect()
    } else {
        device.mig.iter().filter_map(|m| one(&m.uuid, Some(m))).collect()
    }
}

/// Of a MIG instance NVML tells memory and, by GPM, activity; energy and utilization are the whole card's.
fn reading(device: &DeviceReading, instance: Option<&MigInstance>, driver: DriverVersion) -> Reading {
    let sensors = &device.sensors;
    let measured =
        |activity: &Activity| activity.sm_millionths.map(|share| (ActivitySource::SmActive, share));
    let share = |percent: u32| (ActivitySource::Utilization, percent.min(100) * 10_000);
    match instance {
        Some(instance) => Reading {
            energy_mj: None,
            activity: measured(&instance.activity),
            memory_used_bytes: instance.memory_used_bytes,
            driver,
        },
        None => Reading {
            energy_mj: sensors.energy_millijoules,
            activity: measured(&device.activity).or_else(|| sensors.gpu_utilization_percent.map(share)),
            memory_used_bytes: sensors.memory_used_bytes,
            driver,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{DeviceIdentity, Sensors};
    use crate::pods::api::{ContainerDevices, ContainerResources, ListPodResourcesResponse, PodResources};
    use crate::pods::attribution::{Known, attribute};
    use crate::pods::slices::DeviceNames;

    const UUID: &str = "GPU-00000000-0000-0000-0000-000000000001";
    const FIRST: AwardId = AwardId([0, 0, 0, 0, 0, 0, 0, 1]);

    fn inventory() -> NodeInventory {
        let identity = DeviceIdentity {
            index: 0,
            uuid: UUID.to_owned(),
            product_name: "NVIDIA H100 80GB HBM3".to_owned(),
            memory_bytes: 1,
            pci_bus_id: String::new(),
            minor: None,
        };
        let sensors = Sensors {
            energy_millijoules: Some(5),
            gpu_utilization_percent: Some(25),
            memory_used_bytes: Some(7),
            ..Sensors::default()
        };
        let device = DeviceReading { sensors, ..DeviceReading::of(identity) };
        NodeInventory {
            driver_version: "580.95.05".to_owned(),
            devices: vec![device],
            ..NodeInventory::default()
        }
    }

    fn held_by(namespace: Option<&str>) -> Attribution {
        let pods = namespace.map(|namespace| PodResources {
            name: "w".to_owned(),
            namespace: namespace.to_owned(),
            containers: vec![ContainerResources {
                name: "c".to_owned(),
                devices: vec![ContainerDevices {
                    resource_name: "nvidia.com/gpu".to_owned(),
                    device_ids: vec![UUID.to_owned()],
                }],
                dynamic_resources: vec![],
            }],
        });
        let list = ListPodResourcesResponse { pod_resources: pods.into_iter().collect() };
        let known = [Known { uuid: UUID.to_owned(), minor: None }];
        attribute(&list, &known, &DeviceNames::default())
    }

    fn clocks(second: u64) -> Clocks {
        Clocks { steady_ns: second * 1_000_000_000, suspended_ns: 0, system_ms: second * 1_000 }
    }

    fn sights() -> Sights {
        Sights::new(BootId([1; 16]))
    }

    fn look(sights: &mut Sights, second: u64) {
        sights.see(clocks(second), &inventory(), true, BTreeMap::new());
    }

    fn awards(ticks: &[Tick]) -> Vec<(u64, AwardId)> {
        ticks.iter().map(|t| (t.system_ms / 1_000, t.devices[0].award)).collect()
    }

    #[test]
    fn a_reading_is_an_awards_when_both_answers_around_it_say_so() {
        let mut sights = sights();
        let (ours, idle) = (held_by(Some("vendue-a-0000000000000001")), held_by(None));
        look(&mut sights, 0);
        assert_eq!(sights.answer(&inventory(), &idle), [], "nobody knows who had it before");
        assert_eq!(sights.dropped(), 1);
        look(&mut sights, 1);
        look(&mut sights, 2);
        let ticks = sights.answer(&inventory(), &ours);
        assert_eq!(awards(&ticks), [(1, AwardId::IDLE), (2, AwardId::IDLE)]);
        look(&mut sights, 3);
        assert_eq!(awards(&sights.answer(&inventory(), &ours)), [(3, FIRST)]);
        // Kubelet was silent for a while, and says the same.
        (4..100).for_each(|second| look(&mut sights, second));
        let ticks = sights.answer(&inventory(), &ours);
        assert!(ticks.len() == 96 && ticks.iter().all(|t| t.devices[0].award == FIRST));
        look(&mut sights, 100);
        assert_eq!(awards(&sights.answer(&inventory(), &idle)), [(100, AwardId::IDLE)]);
        // Pods of the cluster itself are idle time to the market.
        let local = held_by(Some("default"));
        look(&mut sights, 101);
        assert_eq!(awards(&sights.answer(&inventory(), &local)), [(101, AwardId::IDLE)]);
    }

    #[test]
    fn a_silence_that_is_too_long_drops_the_oldest() {
        let mut sights = sights();
        let ours = held_by(Some("vendue-a-0000000000000001"));
        sights.answer(&inventory(), &ours);
        (0..700).for_each(|second| look(&mut sights, second));
        let ticks = sights.answer(&inventory(), &ours);
        assert_eq!((ticks.len(), ticks[0].system_ms, sights.dropped()), (600, 100_000, 100));
    }

    #[test]
    fn what_a_device_shows_and_why_it_shows_nothing() {
        let mut sights = sights();
        sights.answer(&inventory(), &held_by(None));
        let mut lost = inventory();
        lost.devices[0].fault = Some(DeviceFault::Lost);
        sights.see(clocks(1), &inventory(), true, [(UUID.to_owned(), vec![31])].into());
        sights.see(clocks(2), &inventory(), false, BTreeMap::new());
        sights.see(clocks(3), &lost, true, BTreeMap::new());
        let ticks = sights.answer(&inventory(), &held_by(None));
        let reading = Reading {
            energy_mj: Some(5),
            activity: Some((ActivitySource::Utilization, 250_000)),
            memory_used_bytes: Some(7),
            driver: "580.95.05".parse().expect("driver"),
        };
        let shown: Vec<_> = ticks.into_iter().flat_map(|t| t.devices).map(|d| (d.xids, d.reading)).collect();
        let expected = [
            (vec![31], Ok(reading)),
            (vec![], Err(Unreadable::NotReadable)),
            (vec![], Err(Unreadable::Lost)),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn instances_are_metered_in_place_of_their_card() {
        let mut sliced = inventory();
        let uuid = "MIG-00000000-0000-0000-0000-000000000002";
        sliced.devices[0].mig = vec![MigInstance {
            uuid: uuid.to_owned(),
            name: "NVIDIA H100 80GB HBM3 MIG 1g.10gb".to_owned(),
            gpu_instance: Some(1),
            compute_instance: Some(0),
            memory_bytes: None,
            memory_used_bytes: Some(3),
            memory_free_bytes: None,
            activity: Activity { sm_millionths: Some(70_000), ..Activity::default() },
        }];
        let mut sights = sights();
        sights.answer(&sliced, &Attribution::default());
        sights.see(clocks(1), &sliced, true, BTreeMap::new());
        let devices = sights.answer(&sliced, &Attribution::default()).remove(0).devices;
        let reading = devices[0].reading.clone().expect("reading");
        assert_eq!((devices.len(), devices[0].device.as_str()), (1, uuid));
        assert_eq!((reading.energy_mj, reading.memory_used_bytes), (None, Some(3)));
        assert_eq!(
            reading.activity,
            Some((ActivitySource::SmActive, 70_000)),
            "of the instance, not of the card"
        );
        sliced.devices[0].mig[0].activity = Activity::default();
        sights.see(clocks(2), &sliced, true, BTreeMap::new());
        let devices = sights.answer(&sliced, &Attribution::default()).remove(0).devices;
        assert_eq!(
            devices[0].reading.clone().expect("reading").activity,
            None,
            "the card's utilization is not its own"
        );
    }
}
