//! What lives between `nvmlInit` and `nvmlShutdown`: the state file, the loads, and this process's view of them.
//!
//! Invariant: every device call runs on one consistent snapshot; the lock is never held while a simulated hang waits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Handle, Outcome, code, sys};
use crate::energy::EnergyMark;
use crate::machine::{DriverMoment, Machine, Moment, Running};
use crate::profile::{MigProfile, Profile};
use crate::source::{self, Source};
use crate::state::{Device, DeviceHealth, DriverHealth, MigInstance};
use crate::telemetry::{self, Telemetry};
use crate::timeline::Condition;
use crate::visible::{self, Visibility};
use sys::{nvmlDevice_t, nvmlReturn_t};

/// How often a waiting call looks whether the wait is over.
pub(super) const POLL: Duration = Duration::from_millis(20);

struct Session {
    inits: u32,
    source: Source,
    visibility: Visibility,
    /// The driver that the session was opened with.
    epoch: usize,
    /// Last energy shown per device, with the books that it belongs to: a load that another process registered a
    /// moment ago must not make a counter fall.
    shown: BTreeMap<u32, (EnergyMark, u32, u64)>,
}

static SESSION: Mutex<Option<Session>> = Mutex::new(None);

/// One consistent view of the simulated machine.
pub(super) struct Snapshot {
    pub(super) machine: Arc<Machine>,
    /// Time on the simulated clock.
    pub(super) now_ns: u64,
    /// Bus indexes of the devices that this process may see.
    pub(super) visible: Vec<u32>,
}

/// One device, or one MIG device, in a snapshot.
pub(super) struct View<'a> {
    pub(super) device: &'a Device,
    pub(super) profile: &'a Profile,
    pub(super) moment: Moment<'a>,
    pub(super) snapshot: &'a Snapshot,
    /// The index under which this process sees the device.
    pub(super) index: u32,
    /// The MIG device, if the handle was one.
    pub(super) instance: Option<(&'a MigInstance, &'a MigProfile)>,
}

impl<'a> View<'a> {
    pub(super) fn condition(&self) -> &'a Condition {
        self.moment.condition()
    }

    /// Readings; the energy counter never falls while the driver stays.
    pub(super) fn telemetry(&self) -> Telemetry {
        let mut reading = telemetry::read(&self.moment);
        if let Some(session) = lock().as_mut() {
            let books = (self.device.energy, self.condition().epoch);
            let shown = session.shown.entry(self.device.index).or_insert((books.0, books.1, 0));
            if (shown.0, shown.1) != books {
                *shown = (books.0, books.1, 0);
            }
            shown.2 = shown.2.max(reading.energy_millijoules);
            reading.energy_millijoules = shown.2;
        }
        reading
    }

    /// Processes of the device, or of the MIG device.
    pub(super) fn processes(&self) -> Vec<Running> {
        let mut processes = self.moment.processes();
        if let Some((instance, _)) = self.instance {
            processes.retain(|p| p.gpu_instance == Some(instance.gpu_instance_id));
        }
        processes
    }

    /// Time on the simulated clock, in microseconds.
    pub(super) fn now_us(&self) -> u64 {
        self.moment.now_ns / 1_000
    }

    /// An error on a device in MIG mode, where the driver measures instances, if anything.
    pub(super) fn without_mig(&self) -> Outcome {
        if self.condition().mig.enabled { Err(code::NOT_SUPPORTED) } else { Ok(()) }
    }
}

fn lock() -> MutexGuard<'static, Option<Session>> {
    // A panic under the lock leaves nothing half-written: the session is read-mostly.
    SESSION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `nvmlInit`: counts, as the real library does; the first call reads the environment and the file.
pub(super) fn init() -> Outcome {
    let mut session = lock();
    if let Some(session) = session.as_mut() {
        session.inits += 1;
        return Ok(());
    }
    let path = source::default_path(
        std::env::var_os(source::ENV).map(PathBuf::from),
        super::system::library_dir().as_deref(),
    );
    let mut source = Source::new(path);
    let (_, driver) = current(&mut source).ok_or(code::DRIVER_NOT_LOADED)?;
    driver_check(driver)?;
    let visibility = Visibility::from_env_value(std::env::var(visible::ENV).ok().as_deref());
    *session = Some(Session { inits: 1, source, visibility, epoch: driver.epoch, shown: BTreeMap::new() });
    Ok(())
}

/// `nvmlShutdown`: the last one forgets everything.
pub(super) fn shutdown() -> Outcome {
    let mut guard = lock();
    let session = guard.as_mut().ok_or(code::UNINITIALIZED)?;
    session.inits -= 1;
    if session.inits == 0 {
        *guard = None;
        super::events::forget();
    }
    Ok(())
}

/// The machine as it is now; a file that cannot be read leaves the last good one.
fn current(source: &mut Source) -> Option<(Arc<Machine>, DriverMoment)> {
    // The error is for people who run the command line; a C library has nobody to tell.
    drop(source.refresh());
    let machine = Arc::clone(source.machine()?);
    let driver = machine.driver(machine.at_real(source::now_unix_ns()));
    Some((machine, driver))
}

fn driver_check(driver: DriverMoment) -> Outcome {
    match driver.health {
        DriverHealth::Loaded => Ok(()),
        DriverHealth::NotLoaded => Err(code::DRIVER_NOT_LOADED),
        DriverHealth::Mismatch => Err(code::LIB_RM_VERSION_MISMATCH),
    }
}

/// An error unless `nvmlInit` was called.
pub(super) fn initialised() -> Outcome {
    if lock().is_some() { Ok(()) } else { Err(code::UNINITIALIZED) }
}

/// A fresh snapshot.
pub(super) fn snapshot() -> Result<Snapshot, nvmlReturn_t> {
    let mut guard = lock();
    let session = guard.as_mut().ok_or(code::UNINITIALIZED)?;
    let (machine, driver) = current(&mut session.source).ok_or(code::UNINITIALIZED)?;
    driver_check(driver)?;
    if driver.epoch != session.epoch {
        // The kernel module that the session talked to is gone; only a new session reaches the new one.
        return Err(code::UNKNOWN);
    }
    let now_ns = machine.at_real(source::now_unix_ns());
    let visible = session.visibility.apply(machine.state());
    Ok(Snapshot { machine, now_ns, visible })
}

/// Runs `body` on the device behind a handle; a lost device says so, a hung one waits until it is not.
pub(super) fn on_device(device: nvmlDevice_t, body: impl FnOnce(&View<'_>) -> Outcome) -> Outcome {
    on_any(device, |view| match view.instance {
        None => body(view),
        Some(_) => Err(code::INVALID_ARGUMENT),
    })
}

/// As [`on_device`], also on MIG devices.
pub(super) fn on_any(device: nvmlDevice_t, body: impl FnOnce(&View<'_>) -> Outcome) -> Outcome {
    initialised()?;
    let handle = Handle::of(device)?;
    loop {
        let snapshot = snapshot()?;
        let position = snapshot.visible.iter().position(|i| *i == handle.device);
        let index = position.and_then(|p| u32::try_from(p).ok()).ok_or(code::INVALID_ARGUMENT)?;
        let moment = snapshot.machine.device(handle.device, snapshot.now_ns).ok_or(code::GPU_IS_LOST)?;
        match moment.condition().health {
            DeviceHealth::Lost => return Err(code::GPU_IS_LOST),
            DeviceHealth::Hung => std::thread::sleep(POLL),
            DeviceHealth::Healthy | DeviceHealth::EccFailed => {
                let instance = handle.instance.map(|id| mig_device(&moment, id)).transpose()?;
                let (device, profile) = (moment.device, moment.profile);
                return body(&View { device, profile, moment, snapshot: &snapshot, index, instance });
            }
        }
    }
}

fn mig_device<'a>(moment: &Moment<'a>, id: u32) -> Result<(&'a MigInstance, &'a MigProfile), nvmlReturn_t> {
    // The instance may be gone since the handle was given out.
    let instance = moment.instance(id).ok_or(code::NOT_FOUND)?;
    let profile = moment.profile.mig_profile(&instance.profile).ok_or(code::NOT_FOUND)?;
    Ok((instance, profile))
}

/// As [`on_device`], for calls that answer with one value.
pub(super) unsafe fn answer<T>(
    device: nvmlDevice_t,
    out: *mut T,
    body: impl FnOnce(&View<'_>) -> Result<T, nvmlReturn_t>,
) -> Outcome {
    initialised()?;
    if out.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: the caller's pointer is not NULL and, by NVML's contract, has room for one T.
    on_device(device, |view| unsafe { super::put(out, body(view)?) })
}

/// As [`on_any`], for calls that answer with one value.
pub(super) unsafe fn answer_any<T>(
    device: nvmlDevice_t,
    out: *mut T,
    body: impl FnOnce(&View<'_>) -> Result<T, nvmlReturn_t>,
) -> Outcome {
    initialised()?;
    if out.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: as in `answer`.
    on_any(device, |view| unsafe { super::put(out, body(view)?) })
}

/// As [`answer`], for calls that take a struct whose `version` field, its first, says which layout the caller has.
pub(super) unsafe fn answer_versioned<T>(
    device: nvmlDevice_t,
    out: *mut T,
    version: u32,
    body: impl FnOnce(&View<'_>) -> Result<T, nvmlReturn_t>,
) -> Outcome {
    initialised()?;
    // SAFETY: as in `answer`; the struct begins with its version.
    unsafe {
        super::check_version(out.cast(), version)?;
        answer(device, out, body)
    }
}
