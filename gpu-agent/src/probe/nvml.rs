//! Reads devices through NVIDIA's management library: its life, and the devices one by one (`reading`).
//!
//! The library is loaded and initialised at the first reading and kept; a failed initialisation, a lost driver and a
//! machine without devices are tried afresh at the next reading. What is known of a device is remembered by index, so that
//! one that falls off the bus can still be named, and what changes slowly is read every ten seconds only: of each device at
//! another time, so that no look takes long.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::driver::Driver;
use super::events::{EventSink, EventThread};
use super::gpm::Gpm;
use super::numa::PciDevices;
use super::reading::{self, Slow};
use super::{DeviceProbe, ProbeError};
use crate::inventory::{DeviceFault, DeviceIdentity, DeviceReading, NodeInventory, UnknownDevice};

/// What the loader is asked for when no path is given.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// How old what changes slowly may get: links, MIG instances, memory errors.
pub const SLOW: Duration = Duration::from_secs(10);

/// A device that was read.
struct Known {
    identity: DeviceIdentity,
    slow: Slow,
    slow_turn: u128,
}

/// The library, samples in it, and the thread that waits for its events. Dropped in this order, the thread's is the last hold
/// of it.
struct Library {
    gpm: Gpm,
    nvml: Arc<Nvml>,
    events: Option<EventThread>,
}

/// Reads through NVML.
pub struct NvmlProbe {
    library: PathBuf,
    loaded: Option<Library>,
    known: BTreeMap<u32, Known>,
    sink: Option<EventSink>,
    driver: Driver,
    began: Instant,
    wants: Wants,
}

/// How devices are read.
struct Wants {
    /// How often what changes slowly is read.
    slow: Duration,
    /// Whether processes are.
    processes: bool,
    pci_devices: PciDevices,
}

impl NvmlProbe {
    /// A probe that loads `library`, or what the loader finds.
    #[must_use]
    pub fn new(library: Option<PathBuf>) -> Self {
        let library = library.unwrap_or_else(|| LIBRARY.into());
        let wants = Wants { slow: SLOW, processes: false, pci_devices: PciDevices::default() };
        let (driver, began) = (Driver::default(), Instant::now());
        Self { library, loaded: None, known: BTreeMap::new(), sink: None, driver, began, wants }
    }

    /// The same, and what changes slowly is read so often.
    #[must_use]
    pub fn with_slow(self, slow: Duration) -> Self {
        Self { wants: Wants { slow, ..self.wants }, ..self }
    }

    /// The same, and events of the devices go to `sink`.
    #[must_use]
    pub fn with_events(self, sink: EventSink) -> Self {
        Self { sink: Some(sink), ..self }
    }

    /// The same, and the processes of each device are read with what changes slowly.
    #[must_use]
    pub fn with_processes(self, processes: bool) -> Self {
        Self { wants: Wants { processes, ..self.wants }, ..self }
    }

    /// The same, and the kernel lists PCI devices there.
    #[must_use]
    pub fn with_pci_devices(self, pci_devices: PciDevices) -> Self {
        Self { wants: Wants { pci_devices, ..self.wants }, ..self }
    }

    fn initialise(&self) -> Result<Library, ProbeError> {
        let nvml =
            Nvml::builder().lib_path(self.library.as_os_str()).init().map_err(|error| match error {
                NvmlError::LibloadingError(error) => self.missing(error.to_string()),
                NvmlError::FailedToLoadSymbol(error) => self.missing(format!("is no NVML: {error}")),
                NvmlError::DriverNotLoaded => ProbeError::DriverNotLoaded,
                NvmlError::LibRmVersionMismatch => ProbeError::DriverMismatch,
                other => call("initialise NVML")(other),
            })?;
        let nvml = Arc::new(nvml);
        Ok(Library { gpm: Gpm::new(Arc::clone(&nvml)), nvml, events: None })
    }

    fn missing(&self, detail: String) -> ProbeError {
        ProbeError::LibraryMissing { library: self.library.clone(), detail }
    }

    /// Waits for events of the devices that answer.
    fn watch(&self, library: &mut Library, inventory: &NodeInventory) -> Result<(), ProbeError> {
        let Some(sink) = &self.sink else { return Ok(()) };
        let answer = |d: &&DeviceReading| d.fault != Some(DeviceFault::Lost);
        let uuids: Vec<String> =
            inventory.devices.iter().filter(answer).map(|d| d.identity.uuid.clone()).collect();
        if uuids.is_empty()
            || library.events.as_ref().is_some_and(|events| events.watches(&uuids, Instant::now()))
        {
            return Ok(());
        }
        let started = EventThread::start(Arc::clone(&library.nvml), uuids, sink.clone());
        let failed = |error: std::io::Error| ProbeError::Call {
            operation: "start the thread that waits for events",
            detail: error.to_string(),
        };
        library.events = Some(started.map_err(failed)?);
        Ok(())
    }
}

impl DeviceProbe for NvmlProbe {
    fn read(&mut self) -> Result<NodeInventory, ProbeError> {
        let mut library = match self.loaded.take() {
            Some(library) => library,
            None => self.initialise()?,
        };
        let since = self.began.elapsed();
        let inventory = read_all(&library.nvml, &mut library.gpm, &mut self.known, since, &self.wants)?;
        self.driver.check(&self.library, &inventory.driver_version, Instant::now())?;
        // The driver counts devices when it is initialised: with none, look again from the start.
        if !inventory.devices.is_empty() || !inventory.unknown.is_empty() {
            self.watch(&mut library, &inventory)?;
            self.loaded = Some(library);
        }
        Ok(inventory)
    }
}

fn call(operation: &'static str) -> impl Fn(NvmlError) -> ProbeError {
    move |error| match error {
        NvmlError::DriverNotLoaded => ProbeError::DriverNotLoaded,
        NvmlError::LibRmVersionMismatch => ProbeError::DriverMismatch,
        other => ProbeError::Call { operation, detail: other.to_string() },
    }
}

fn read_all(
    nvml: &Nvml,
    gpm: &mut Gpm,
    known: &mut BTreeMap<u32, Known>,
    since: Duration,
    wants: &Wants,
) -> Result<NodeInventory, ProbeError> {
    let mut inventory = NodeInventory {
        driver_version: nvml.sys_driver_version().map_err(call("read driver version"))?,
        cuda_version: nvml.sys_cuda_driver_version().ok().map(cuda_version),
        ..NodeInventory::default()
    };
    let count = nvml.device_count().map_err(call("count devices"))?;
    known.retain(|index, _| *index < count);
    gpm.begin();
    for index in 0..count {
        let turn = slow_turn((index, count), since, wants.slow);
        match read_device(nvml, gpm, (index, turn), known.get(&index), wants) {
            Ok((reading, now_known)) => {
                known.insert(index, now_known);
                inventory.devices.push(reading);
            }
            Err(error) => match known.get(&index) {
                Some(known) => inventory.devices.push(broken(known, &error)),
                None => inventory.unknown.push(UnknownDevice { index, error: error.to_string() }),
            },
        }
    }
    Ok(inventory)
}

/// Which reading of what changes slowly is the one of now: turns change every `slow`, of each device at another time.
fn slow_turn((index, count): (u32, u32), since: Duration, slow: Duration) -> u128 {
    let offset = slow.as_nanos() * u128::from(index) / u128::from(count.max(1));
    (since.as_nanos() + offset) / slow.as_nanos().max(1)
}

/// NVML encodes 13.0 as 13000.
fn cuda_version(code: i32) -> String {
    format!("{}.{}", code / 1000, code % 1000 / 10)
}

/// A split card stays split: what befalls it befalls its instances.
fn broken(known: &Known, error: &NvmlError) -> DeviceReading {
    let fault = match error {
        NvmlError::GpuLost => DeviceFault::Lost,
        other => DeviceFault::Unreadable(other.to_string()),
    };
    let (mig_enabled, mig) = known.slow.split();
    DeviceReading { fault: Some(fault), mig_enabled, mig, ..DeviceReading::of(known.identity.clone()) }
}

fn read_device(
    nvml: &Nvml,
    gpm: &mut Gpm,
    (index, slow_turn): (u32, u128),
    before: Option<&Known>,
    wants: &Wants,
) -> Result<(DeviceReading, Known), NvmlError> {
    let device = nvml.device_by_index(index)?;
    let (identity, memory) = reading::identity(nvml, &device, index)?;
    let before = before.filter(|known| known.identity == identity);
    let slow = match before.filter(|known| known.slow_turn == slow_turn) {
        Some(known) => known.slow.clone(),
        None => {
            let (before, pci) = (before.map(|k| &k.slow), (&wants.pci_devices, &*identity.pci_bus_id));
            reading::slow(nvml, &device, before, pci, wants.processes)?
        }
    };
    let reading = reading::fast(nvml, gpm, &device, identity.clone(), memory, &slow);
    Ok((reading, Known { identity, slow, slow_turn }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_its_slow_turn_and_no_look_has_many() {
        for count in [1, 2, 8, 64] {
            let turns = |second: u64| {
                (0..count).map(move |index| slow_turn((index, count), Duration::from_secs(second), SLOW))
            };
            for second in 1..100 {
                let due = turns(second - 1).zip(turns(second)).filter(|(before, now)| before != now).count();
                assert!(
                    due <= usize::try_from(count).unwrap_or(0).div_ceil(10),
                    "{due} of {count} at {second} s"
                );
                assert!(turns(second).zip(turns(second + 10)).all(|(now, later)| later == now + 1));
            }
        }
        // Each look is a turn of its own.
        let turn = |nanoseconds| slow_turn((0, 1), Duration::from_nanos(nanoseconds), Duration::ZERO);
        assert_ne!(turn(1), turn(2));
    }
}
