//! The simulated CUDA driver without its pointers: devices, contexts, allocations, simulated time and events.
//!
//! Invariant: an allocation lies within what the card really has; every access lies within one allocation.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use vendue_gpu_sim::machine::{Machine, Moment};
use vendue_gpu_sim::source::{self, Source};
use vendue_gpu_sim::state::{DeviceHealth, DriverHealth};
use vendue_gpu_sim::visible::{self, Visibility};

use crate::memory::Memory;

/// Kernels that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// `vendue_spin_cycles(cycles)`: keeps the SMs busy for so many cycles of their clock.
    Spin,
    /// `vendue_copy_units(to, from, count)`: copies units of 16 bytes.
    Copy,
}

/// Bytes of a unit that [`Kernel::Copy`] copies.
const UNIT: u64 = 16;

/// Allocations begin at multiples of this.
const ALIGNMENT: u64 = 2 << 20;

/// Where the first allocation is.
const FIRST_ADDRESS: u64 = 0x7f00_0000_0000;

/// Share of the data sheet's bandwidth that copies reach, in percent.
const BANDWIDTH_PERCENT: u64 = 92;

/// What a launch or a copy takes apart from its work, in nanoseconds.
const OVERHEAD_NS: u64 = 2_000;

/// `CUresult` values.
pub(crate) mod code {
    pub(crate) const INVALID_VALUE: u32 = 1;
    pub(crate) const OUT_OF_MEMORY: u32 = 2;
    pub(crate) const NOT_INITIALIZED: u32 = 3;
    pub(crate) const DEVICE_UNAVAILABLE: u32 = 46;
    pub(crate) const NO_DEVICE: u32 = 100;
    pub(crate) const INVALID_DEVICE: u32 = 101;
    pub(crate) const INVALID_IMAGE: u32 = 200;
    pub(crate) const INVALID_CONTEXT: u32 = 201;
    pub(crate) const INVALID_HANDLE: u32 = 400;
    pub(crate) const NOT_FOUND: u32 = 500;
    pub(crate) const NOT_SUPPORTED: u32 = 801;
    pub(crate) const DRIVER_MISMATCH: u32 = 803;
    pub(crate) const UNKNOWN: u32 = 999;
}

pub(crate) type Result<T> = std::result::Result<T, u32>;

/// The driver of one process.
pub(crate) struct Driver {
    source: Source,
    visibility: Visibility,
    next_id: usize,
    next_address: u64,
    contexts: BTreeMap<usize, Context>,
    allocations: BTreeMap<u64, Allocation>,
    events: BTreeMap<usize, Event>,
    modules: BTreeMap<usize, usize>,
    /// Functions: their module, and what they are.
    functions: BTreeMap<usize, (usize, Kernel)>,
    memory: Memory,
}

struct Context {
    device: u32,
    /// Simulated time that its work took so far.
    busy_ns: u64,
}

struct Allocation {
    context: usize,
    device: u32,
    bytes: u64,
}

struct Event {
    context: usize,
    at_ns: Option<u64>,
}

impl Driver {
    /// Reads environment and state file.
    pub(crate) fn open(library_dir: Option<PathBuf>) -> Result<Self> {
        let path =
            source::default_path(std::env::var_os(source::ENV).map(PathBuf::from), library_dir.as_deref());
        let mut driver = Self {
            source: Source::new(path),
            visibility: Visibility::from_env_value(std::env::var(visible::ENV).ok().as_deref()),
            next_id: 0,
            next_address: FIRST_ADDRESS,
            contexts: BTreeMap::new(),
            allocations: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            memory: Memory::default(),
        };
        if driver.devices()?.is_empty() { Err(code::NO_DEVICE) } else { Ok(driver) }
    }

    fn machine(&mut self) -> Result<(Arc<Machine>, u64)> {
        // A file that cannot be read leaves the last good state; the error is for people at the command line.
        drop(self.source.refresh());
        let machine = Arc::clone(self.source.machine().ok_or(code::NO_DEVICE)?);
        let now = machine.at_real(source::now_unix_ns());
        match machine.driver(now).health {
            DriverHealth::Loaded => Ok((machine, now)),
            DriverHealth::NotLoaded => Err(code::NO_DEVICE),
            DriverHealth::Mismatch => Err(code::DRIVER_MISMATCH),
        }
    }

    /// Bus indexes of the devices that this process sees, in its own order.
    pub(crate) fn devices(&mut self) -> Result<Vec<u32>> {
        let (machine, _) = self.machine()?;
        Ok(self.visibility.apply(machine.state()))
    }

    /// Answers about a device by the number that this process gives it.
    pub(crate) fn on_device<T>(
        &mut self,
        number: i32,
        body: impl FnOnce(&Moment<'_>) -> Result<T>,
    ) -> Result<T> {
        let devices = self.devices()?;
        let index = usize::try_from(number).ok().and_then(|n| devices.get(n));
        let index = *index.ok_or(code::INVALID_DEVICE)?;
        self.at(index, body)
    }

    fn at<T>(&mut self, index: u32, body: impl FnOnce(&Moment<'_>) -> Result<T>) -> Result<T> {
        let (machine, now) = self.machine()?;
        body(&machine.device(index, now).ok_or(code::INVALID_DEVICE)?)
    }

    /// CUDA's version as the driver gives it.
    pub(crate) fn cuda_version(&mut self) -> Result<i32> {
        Ok(self.machine()?.0.state().driver.cuda_version)
    }

    fn id(&mut self) -> usize {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn create_context(&mut self, number: i32) -> Result<usize> {
        let device = self.on_device(number, |m| usable(m).map(|()| m.device.index))?;
        let id = self.id();
        self.contexts.insert(id, Context { device, busy_ns: 0 });
        Ok(id)
    }

    /// Ends a context with all that belongs to it.
    pub(crate) fn destroy_context(&mut self, id: usize) -> Result<()> {
        self.contexts.remove(&id).ok_or(code::INVALID_CONTEXT)?;
        let own: Vec<u64> =
            self.allocations.iter().filter(|(_, a)| a.context == id).map(|(at, _)| *at).collect();
        for address in own {
            self.free(address)?;
        }
        self.events.retain(|_, e| e.context != id);
        self.modules.retain(|_, context| *context != id);
        let modules = &self.modules;
        self.functions.retain(|_, (module, _)| modules.contains_key(module));
        Ok(())
    }

    /// Whether a context is there, and on which device.
    pub(crate) fn context_device(&self, id: usize) -> Result<u32> {
        self.contexts.get(&id).map(|c| c.device).ok_or(code::INVALID_CONTEXT)
    }

    /// Free and claimed memory, in bytes.
    pub(crate) fn memory_info(&mut self, context: usize) -> Result<(u64, u64)> {
        let device = self.context_device(context)?;
        let held = self.held(device);
        self.at(device, |m| {
            let claimed = claimed_bytes(m);
            Ok((claimed.saturating_sub(held.saturating_add(mib(m.condition().memory_mib))), claimed))
        })
    }

    fn held(&self, device: u32) -> u64 {
        self.allocations.values().filter(|a| a.device == device).map(|a| a.bytes).sum()
    }

    /// Allocates, if the card really has the room.
    pub(crate) fn allocate(&mut self, context: usize, bytes: u64) -> Result<u64> {
        if bytes == 0 {
            return Err(code::INVALID_VALUE);
        }
        let device = self.context_device(context)?;
        let held = self.held(device);
        self.at(device, |m| {
            usable(m)?;
            let room = real_bytes(m).saturating_sub(mib(m.condition().memory_mib));
            if held.checked_add(bytes).is_some_and(|all| all <= room) {
                Ok(())
            } else {
                Err(code::OUT_OF_MEMORY)
            }
        })?;
        let address = self.next_address;
        // Lies within the card's memory, so neither sum can overflow.
        self.next_address += bytes.next_multiple_of(ALIGNMENT);
        self.allocations.insert(address, Allocation { context, device, bytes });
        Ok(address)
    }

    pub(crate) fn free(&mut self, address: u64) -> Result<()> {
        let allocation = self.allocations.remove(&address).ok_or(code::INVALID_VALUE)?;
        self.memory.clear(address, address + allocation.bytes);
        Ok(())
    }

    /// An error unless the range lies within one allocation.
    fn check_range(&self, address: u64, bytes: u64) -> Result<()> {
        let (start, allocation) =
            self.allocations.range(..=address).next_back().ok_or(code::INVALID_VALUE)?;
        let end = address.checked_add(bytes).ok_or(code::INVALID_VALUE)?;
        if end <= start + allocation.bytes { Ok(()) } else { Err(code::INVALID_VALUE) }
    }

    /// Lets a context's work take the time that moving bytes through its memory takes.
    fn move_bytes(&mut self, context: usize, bytes: u64) -> Result<()> {
        let device = self.context_device(context)?;
        // Megabytes per second are bytes per microsecond.
        let rate = self.at(device, |m| {
            usable(m)?;
            Ok((m.real_profile().memory_bandwidth_mbps.saturating_mul(BANDWIDTH_PERCENT) / 100).max(1))
        })?;
        let time = u128::from(bytes) * 1_000 / u128::from(rate);
        self.spend(context, u64::try_from(time).unwrap_or(u64::MAX))
    }

    fn spend(&mut self, context: usize, nanoseconds: u64) -> Result<()> {
        let context = self.contexts.get_mut(&context).ok_or(code::INVALID_CONTEXT)?;
        context.busy_ns = context.busy_ns.saturating_add(nanoseconds).saturating_add(OVERHEAD_NS);
        Ok(())
    }

    pub(crate) fn fill(&mut self, context: usize, address: u64, word: u32, bytes: u64) -> Result<()> {
        self.check_range(address, bytes)?;
        self.move_bytes(context, bytes)?;
        self.memory.fill(address, bytes, word);
        Ok(())
    }

    /// Copies within devices: each byte is read and written.
    pub(crate) fn copy(&mut self, context: usize, to: u64, from: u64, bytes: u64) -> Result<()> {
        self.check_range(from, bytes)?;
        self.check_range(to, bytes)?;
        self.move_bytes(context, bytes.saturating_mul(2))?;
        self.memory.copy(from, to, bytes);
        Ok(())
    }

    pub(crate) fn write(&mut self, context: usize, to: u64, data: &[u8]) -> Result<()> {
        let bytes = u64::try_from(data.len()).map_err(|_| code::INVALID_VALUE)?;
        self.check_range(to, bytes)?;
        self.over_pcie(context, bytes)?;
        self.memory.write(to, data);
        Ok(())
    }

    pub(crate) fn read(&mut self, context: usize, from: u64, out: &mut [u8]) -> Result<()> {
        let bytes = u64::try_from(out.len()).map_err(|_| code::INVALID_VALUE)?;
        self.check_range(from, bytes)?;
        self.over_pcie(context, bytes)?;
        self.memory.read(from, out);
        Ok(())
    }

    fn over_pcie(&mut self, context: usize, bytes: u64) -> Result<()> {
        let device = self.context_device(context)?;
        let rate = self.at(device, |m| {
            usable(m)?;
            // A lane moves about 985 MB/s in generation 3 and twice as much with each later one.
            let lane = 985_u64 << m.profile.pcie_generation.saturating_sub(3).min(8);
            Ok(lane.saturating_mul(u64::from(m.profile.pcie_width)).max(1))
        })?;
        self.spend(context, bytes.saturating_mul(1_000) / rate)
    }

    /// Any image will do: there is no hardware to run it.
    pub(crate) fn load_module(&mut self, context: usize) -> Result<usize> {
        self.context_device(context)?;
        let id = self.id();
        self.modules.insert(id, context);
        Ok(id)
    }

    pub(crate) fn unload_module(&mut self, module: usize) -> Result<()> {
        self.modules.remove(&module).ok_or(code::INVALID_HANDLE)?;
        self.functions.retain(|_, (owner, _)| *owner != module);
        Ok(())
    }

    pub(crate) fn function(&mut self, module: usize, name: &str) -> Result<usize> {
        if !self.modules.contains_key(&module) {
            return Err(code::INVALID_HANDLE);
        }
        let kernel = match name {
            "vendue_spin_cycles" => Kernel::Spin,
            "vendue_copy_units" => Kernel::Copy,
            _ => return Err(code::NOT_FOUND),
        };
        let id = self.id();
        self.functions.insert(id, (module, kernel));
        Ok(id)
    }

    /// What a function is.
    pub(crate) fn kernel(&self, function: usize) -> Result<Kernel> {
        self.functions.get(&function).map(|(_, kernel)| *kernel).ok_or(code::INVALID_HANDLE)
    }

    /// Copies units within a device.
    pub(crate) fn copy_units(&mut self, context: usize, to: u64, from: u64, count: u64) -> Result<()> {
        self.copy(context, to, from, count.checked_mul(UNIT).ok_or(code::INVALID_VALUE)?)
    }

    /// Keeps the SMs busy for a number of cycles of their true clock.
    pub(crate) fn spin(&mut self, context: usize, cycles: u64) -> Result<()> {
        let device = self.context_device(context)?;
        let mhz = self.at(device, |m| {
            usable(m)?;
            let percent = m.device.disguise.clock_percent.unwrap_or(100).min(m.condition().clock_percent);
            Ok((u64::from(m.real_profile().max_sm_clock_mhz) * u64::from(percent) / 100).max(1))
        })?;
        let time = u128::from(cycles) * 1_000 / u128::from(mhz);
        self.spend(context, u64::try_from(time).unwrap_or(u64::MAX))
    }

    pub(crate) fn create_event(&mut self, context: usize) -> Result<usize> {
        self.context_device(context)?;
        let id = self.id();
        self.events.insert(id, Event { context, at_ns: None });
        Ok(id)
    }

    pub(crate) fn destroy_event(&mut self, event: usize) -> Result<()> {
        self.events.remove(&event).map(drop).ok_or(code::INVALID_HANDLE)
    }

    pub(crate) fn record_event(&mut self, event: usize) -> Result<()> {
        let event = self.events.get_mut(&event).ok_or(code::INVALID_HANDLE)?;
        let context = self.contexts.get(&event.context).ok_or(code::INVALID_CONTEXT)?;
        event.at_ns = Some(context.busy_ns);
        Ok(())
    }

    /// Work is done as soon as it is ordered, so a recorded event has happened.
    pub(crate) fn event_happened(&self, event: usize) -> Result<()> {
        self.events.get(&event).map(|_| ()).ok_or(code::INVALID_HANDLE)
    }

    /// Milliseconds of simulated time between two recorded events of one context.
    pub(crate) fn elapsed_ms(&self, start: usize, end: usize) -> Result<f32> {
        let event = |id| self.events.get(&id).ok_or(code::INVALID_HANDLE);
        let (start, end) = (event(start)?, event(end)?);
        if start.context != end.context {
            return Err(code::INVALID_HANDLE);
        }
        let (Some(from), Some(to)) = (start.at_ns, end.at_ns) else { return Err(code::INVALID_HANDLE) };
        Ok((to as f64 - from as f64) as f32 / 1e6)
    }
}

/// A lost card cannot be used; a hung one never answers, which here is an error and not a wait; a card in MIG mode is
/// used through its instances, which are not simulated for CUDA.
fn usable(moment: &Moment<'_>) -> Result<()> {
    match moment.condition().health {
        DeviceHealth::Lost | DeviceHealth::Hung => Err(code::DEVICE_UNAVAILABLE),
        DeviceHealth::Healthy | DeviceHealth::EccFailed if moment.condition().mig.enabled => {
            Err(code::NOT_SUPPORTED)
        }
        DeviceHealth::Healthy | DeviceHealth::EccFailed => Ok(()),
    }
}

/// Memory that programs may use, by what the card says.
pub(crate) fn claimed_bytes(moment: &Moment<'_>) -> u64 {
    let total = moment.device.disguise.memory_mib.unwrap_or(moment.profile.memory_mib);
    mib(total.saturating_sub(moment.profile.reserved_memory_mib))
}

/// Memory that is really there. A card that only lies about its size has its profile's.
fn real_bytes(moment: &Moment<'_>) -> u64 {
    let real = moment.real_profile();
    mib(real.memory_mib.saturating_sub(real.reserved_memory_mib))
}

/// Bytes in so many MiB; a state file may hold absurd numbers.
fn mib(count: u64) -> u64 {
    count.saturating_mul(1 << 20)
}
