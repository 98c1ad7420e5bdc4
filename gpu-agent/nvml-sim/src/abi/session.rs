//! What lives between `nvmlInit` and `nvmlShutdown`: the state file and this process's view of it.
//!
//! Invariant: every device call runs on one consistent snapshot; the lock is never held while a simulated hang waits.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Outcome, code, handle_index, sys};
use crate::profile::Profile;
use crate::source::{self, Source};
use crate::state::{Device, DeviceHealth, DriverHealth, State};
use crate::telemetry::{self, Telemetry};
use crate::visible::{self, Visibility};
use sys::{nvmlDevice_t, nvmlReturn_t};

/// How often a hung call looks whether the hang is over.
const HANG_POLL: Duration = Duration::from_millis(20);

struct Session {
    inits: u32,
    source: Source,
    visibility: Visibility,
}

static SESSION: Mutex<Option<Session>> = Mutex::new(None);

/// One consistent view of the simulated machine.
pub(super) struct Snapshot {
    pub(super) state: Arc<State>,
    /// Bus indexes of the devices that this process may see.
    pub(super) visible: Vec<u32>,
}

/// One device in a snapshot.
pub(super) struct View<'a> {
    pub(super) device: &'a Device,
    pub(super) profile: &'a Profile,
    /// The index under which this process sees it.
    pub(super) index: u32,
}

impl View<'_> {
    pub(super) fn telemetry(&self) -> Telemetry {
        telemetry::read(self.device, self.profile, source::now_unix_ms())
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
    let state = current(&mut source).ok_or(code::DRIVER_NOT_LOADED)?;
    driver_check(&state)?;
    let visibility = Visibility::from_env_value(std::env::var(visible::ENV).ok().as_deref());
    *session = Some(Session { inits: 1, source, visibility });
    Ok(())
}

/// `nvmlShutdown`: the last one forgets everything.
pub(super) fn shutdown() -> Outcome {
    let mut guard = lock();
    let session = guard.as_mut().ok_or(code::UNINITIALIZED)?;
    session.inits -= 1;
    if session.inits == 0 {
        *guard = None;
    }
    Ok(())
}

/// The state as it is now; a file that cannot be read leaves the last good one.
fn current(source: &mut Source) -> Option<Arc<State>> {
    // The error is for people who run the command line; a C library has nobody to tell.
    drop(source.refresh());
    source.state().cloned()
}

fn driver_check(state: &State) -> Outcome {
    match state.driver.health {
        DriverHealth::Loaded => Ok(()),
        DriverHealth::NotLoaded => Err(code::DRIVER_NOT_LOADED),
        DriverHealth::Mismatch => Err(code::LIB_RM_VERSION_MISMATCH),
    }
}

/// A fresh snapshot.
pub(super) fn snapshot() -> Result<Snapshot, nvmlReturn_t> {
    let mut guard = lock();
    let session = guard.as_mut().ok_or(code::UNINITIALIZED)?;
    let state = current(&mut session.source).ok_or(code::UNINITIALIZED)?;
    driver_check(&state)?;
    let visible = session.visibility.apply(&state);
    Ok(Snapshot { state, visible })
}

/// Runs `body` on the device behind a handle; a lost device says so, a hung one waits until it is not.
pub(super) fn on_device(device: nvmlDevice_t, body: impl FnOnce(&View<'_>) -> Outcome) -> Outcome {
    let index = handle_index(device)?;
    loop {
        let snapshot = snapshot()?;
        let position = snapshot.visible.iter().position(|i| *i == index).ok_or(code::INVALID_ARGUMENT)?;
        let (device, profile) = snapshot.state.device(index).ok_or(code::GPU_IS_LOST)?;
        match device.health {
            DeviceHealth::Lost => return Err(code::GPU_IS_LOST),
            DeviceHealth::Hung => std::thread::sleep(HANG_POLL),
            DeviceHealth::Healthy | DeviceHealth::EccFailed => {
                let index = u32::try_from(position).map_err(|_| code::UNKNOWN)?;
                return body(&View { device, profile, index });
            }
        }
    }
}

/// As [`on_device`], for calls that answer with one number.
pub(super) unsafe fn answer<T>(
    device: nvmlDevice_t,
    out: *mut T,
    body: impl FnOnce(&View<'_>) -> Result<T, nvmlReturn_t>,
) -> Outcome {
    if out.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: the caller's pointer is not NULL and, by NVML's contract, has room for one T.
    on_device(device, |view| unsafe { super::put(out, body(view)?) })
}
