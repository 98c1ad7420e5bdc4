//! Simulated GPUs as a Rust program handles them: the command line, and tests of other crates.
//!
//! Input: a state file's path. Output: changes to it and to the register of loads beside it, and the truth about energy
//! that sensors may hide. Invariant: changes of many programs at once are made one after the other, under a lock beside
//! the state file; readers of the library need no lock.
//!
//! ```no_run
//! # use vendue_gpu_sim::{clock::Clock, fault::Fault, fleet::Fleet, load::Work};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fleet = Fleet::create("/tmp/sim/state.json".as_ref(), &[("H100", 8)], "seed", Clock::stopped(0))?;
//! let load = fleet.load(Work { pid: 4711, device: 0, intensity: 80, memory_mib: 60_000, ..Work::default() })?;
//! fleet.advance(std::time::Duration::from_secs(60))?;
//! fleet.inject(Some(0), Fault::Xid { code: 79 })?;
//! fleet.end(load)?;
//! let joules = fleet.energy_between(0, 0, fleet.now_ns()?)?.millijoules() / 1000;
//! # let _ = joules;
//! # Ok(())
//! # }
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::Clock;
use crate::energy::Energy;
use crate::fault::{Event, Fault};
use crate::load::{self, LoadError, Register, Watched, Work};
use crate::machine::Machine;
use crate::source::{self, SourceError};
use crate::state::{State, StateError};

/// Why something could not be done to a fleet.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The state file could not be read or written.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The state would contradict itself.
    #[error(transparent)]
    State(#[from] StateError),
    /// The register of loads could not be written.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The lock could not be had, or the library not copied.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// There is no such device.
    #[error("device is {device}, but there are {count} devices")]
    NoDevice {
        /// The index asked for.
        device: u32,
        /// How many there are.
        count: usize,
    },
    /// The device was set by hand since then, which starts its books anew.
    #[error(
        "energy of device {device} from {from_ns}: known is only what was used after the device was last set"
    )]
    Forgotten {
        /// The index asked for.
        device: u32,
        /// The time asked for.
        from_ns: u64,
    },
}

/// The simulated GPUs of one state file.
#[derive(Clone, Debug)]
pub struct Fleet {
    path: PathBuf,
}

impl Fleet {
    /// New, healthy, idle devices without loads. The same seed gives the same devices.
    ///
    /// # Errors
    /// When a profile is unknown, there are too many devices, or the folder cannot be written.
    pub fn create(
        path: &Path,
        groups: &[(&str, usize)],
        seed: &str,
        clock: Clock,
    ) -> Result<Self, FleetError> {
        let groups: Vec<_> = groups.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let mut state = State::generate(&groups, seed, 0)?;
        let start = clock.at(source::now_unix_ns());
        state.clock = clock;
        for device in &mut state.devices {
            device.energy.at_ns = start;
        }
        Self::replace(path, &state)
    }

    /// Writes a state as it is and forgets all loads.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn replace(path: &Path, state: &State) -> Result<Self, FleetError> {
        let fleet = Self { path: path.to_path_buf() };
        // State first: it makes the folder.
        source::store(path, state)?;
        let loads = load::path_beside(path);
        match std::fs::remove_file(&loads) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(FleetError::File { operation: "remove", path: loads, source })
            }
            _ => Ok(fleet),
        }
    }

    /// Devices that exist already.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    /// The state file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the built library beside the state file, where it needs no environment to find it.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn install(&self, library: &Path) -> Result<PathBuf, FleetError> {
        let copy = self.path.with_file_name("libnvidia-ml.so.1");
        let error = |source| FleetError::File { operation: "copy", path: library.into(), source };
        std::fs::copy(library, &copy).map_err(error)?;
        Ok(copy)
    }

    /// State and loads as they are.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn machine(&self) -> Result<Machine, FleetError> {
        let state = source::load(&self.path)?;
        let mut register = Register::new(load::path_beside(&self.path));
        register.refresh();
        Ok(Machine::new(state.into(), register.loads()))
    }

    /// What the simulated clock shows.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn now_ns(&self) -> Result<u64, FleetError> {
        Ok(source::load(&self.path)?.clock.at(source::now_unix_ns()))
    }

    /// Changes the state under the lock; `change` is told the time on the simulated clock.
    ///
    /// # Errors
    /// When the file cannot be read or written, or `change` fails.
    pub fn update<E: From<FleetError>>(
        &self,
        change: impl FnOnce(&mut State, u64) -> Result<(), E>,
    ) -> Result<State, E> {
        let mut name = self.path.file_name().unwrap_or_default().to_os_string();
        name.push(".lock");
        let path = self.path.with_file_name(name);
        let error = |operation| {
            let path = path.clone();
            move |source| FleetError::File { operation, path, source }
        };
        let lock = File::create(&path).map_err(error("open"))?;
        lock.lock().map_err(error("lock"))?;
        let mut state = source::load(&self.path).map_err(FleetError::from)?;
        let now = state.clock.at(source::now_unix_ns());
        change(&mut state, now)?;
        state.check().map_err(FleetError::from)?;
        source::store(&self.path, &state).map_err(FleetError::from)?;
        Ok(state)
    }

    /// As [`Fleet::update`], for changes of what devices are and do: the energy used so far is kept, and time from now
    /// on counts by the new figures.
    ///
    /// # Errors
    /// As [`Fleet::update`].
    pub fn set<E: From<FleetError>>(
        &self,
        change: impl FnOnce(&mut State) -> Result<(), E>,
    ) -> Result<State, E> {
        let before = self.machine()?;
        self.update(|state, now| {
            for device in &mut state.devices {
                let Some(timeline) = before.timeline(device.index) else { continue };
                // A clock that was set back, or a mark in the future: nothing is counted before the mark.
                if now > device.energy.at_ns {
                    device.energy.counter = timeline.counter(now);
                    device.energy.used = timeline.used(now);
                    device.energy.at_ns = now;
                }
            }
            change(state)
        })
    }

    /// Sets the simulated clock forward.
    ///
    /// # Errors
    /// When the state file cannot be read or written.
    pub fn advance(&self, by: Duration) -> Result<u64, FleetError> {
        let state = self.update::<FleetError>(|state, _| {
            state.clock = state.clock.advanced(by);
            Ok(())
        })?;
        Ok(state.clock.at(source::now_unix_ns()))
    }

    /// Lets the simulated clock run at another rate; 0 stops it.
    ///
    /// # Errors
    /// When the state file cannot be read or written.
    pub fn set_rate(&self, rate: u32) -> Result<(), FleetError> {
        let change = |state: &mut State, _| {
            state.clock = state.clock.rebased(source::now_unix_ns(), rate);
            Ok(())
        };
        self.update::<FleetError>(change).map(drop)
    }

    /// Registers work from now on; returns the load's id.
    ///
    /// # Errors
    /// When there is no such device, or the register cannot be written.
    pub fn load(&self, work: Work) -> Result<u64, FleetError> {
        self.register(work, None)
    }

    /// As [`Fleet::load`], until the process with this id, of our own PID namespace, ends.
    ///
    /// # Errors
    /// As [`Fleet::load`], and when there is no such process.
    pub fn load_of_process(&self, pid: u32, work: Work) -> Result<u64, FleetError> {
        self.register(work, Some(load::watch(pid)?))
    }

    fn register(&self, work: Work, watched: Option<Watched>) -> Result<u64, FleetError> {
        let state = source::load(&self.path)?;
        if state.device(work.device).is_none() {
            return Err(FleetError::NoDevice { device: work.device, count: state.devices.len() });
        }
        let now = || state.clock.at(source::now_unix_ns());
        Ok(load::start(&load::path_beside(&self.path), work, watched, now)?)
    }

    /// Ends a load.
    ///
    /// # Errors
    /// When the register cannot be written.
    pub fn end(&self, load: u64) -> Result<(), FleetError> {
        let clock = source::load(&self.path)?.clock;
        Ok(load::end(&load::path_beside(&self.path), load, || clock.at(source::now_unix_ns()))?)
    }

    /// Makes something happen now, on one device or on all.
    ///
    /// # Errors
    /// When the state file cannot be read or written, or there is no such device.
    pub fn inject(&self, device: Option<u32>, fault: Fault) -> Result<(), FleetError> {
        let add = |state: &mut State, now| {
            state.events.push(Event { at_ns: now, device, fault });
            Ok(())
        };
        self.update::<FleetError>(add).map(drop)
    }

    /// Adds events to the script.
    ///
    /// # Errors
    /// As [`Fleet::inject`].
    pub fn script(&self, events: Vec<Event>) -> Result<(), FleetError> {
        let add = |state: &mut State, _| {
            state.events.extend(events);
            Ok(())
        };
        self.update::<FleetError>(add).map(drop)
    }

    /// What a device really used between two times on the simulated clock, whatever its sensors show.
    ///
    /// # Errors
    /// When the state file cannot be read, or there is no such device.
    pub fn energy_between(&self, device: u32, from_ns: u64, to_ns: u64) -> Result<Energy, FleetError> {
        let machine = self.machine()?;
        let count = machine.state().devices.len();
        let timeline = machine.timeline(device).ok_or(FleetError::NoDevice { device, count })?;
        timeline.used_between(from_ns, to_ns).ok_or(FleetError::Forgotten { device, from_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn fleet(dir: &tempfile::TempDir, groups: &[(&str, usize)]) -> Fleet {
        Fleet::create(&dir.path().join("state.json"), groups, "fleet", Clock::stopped(1_000 * SECOND))
            .expect("fleet")
    }

    #[test]
    fn the_truth_about_energy_is_the_integral_of_loads() {
        let dir = tempfile::tempdir().expect("dir");
        let fleet = fleet(&dir, &[("H100", 2)]);
        let start = fleet.now_ns().expect("now");
        let first = fleet.load(Work { pid: 1, intensity: 50, ..Work::default() }).expect("load");
        fleet.advance(Duration::from_secs(10)).expect("advance");
        let second = fleet.load(Work { pid: 2, intensity: 80, ..Work::default() }).expect("load");
        fleet.advance(Duration::from_millis(1_500)).expect("advance");
        fleet.end(first).expect("end");
        fleet.advance(Duration::from_secs(4)).expect("advance");
        fleet.end(second).expect("end");
        let now = fleet.advance(Duration::from_secs(1)).expect("advance");
        // 10 s at 50 %, 1.5 s at 130 % of which a card has 100, 4 s at 80 %, 1 s idle.
        let expected = 385_000 * 10 + 700_000 * 3 / 2 + 574_000 * 4 + 70_000;
        assert_eq!(fleet.energy_between(0, start, now).expect("energy").millijoules(), expected);
        let idle = fleet.energy_between(1, start, now).expect("energy").millijoules();
        assert_eq!(idle, 70 * 16_500);
        let counter = fleet.machine().expect("machine").timeline(0).expect("device").counter(now);
        assert_eq!(counter.millijoules(), expected, "an honest counter shows the truth");
        let error = fleet.load(Work { device: 2, ..Work::default() }).expect_err("no such device");
        assert_eq!(error.to_string(), "device is 2, but there are 2 devices");
    }

    #[test]
    fn setting_a_device_keeps_what_was_used() {
        let dir = tempfile::tempdir().expect("dir");
        let fleet = fleet(&dir, &[("H100", 1)]);
        let start = fleet.now_ns().expect("now");
        fleet.advance(Duration::new(1, 1)).expect("advance");
        let state = fleet.set::<FleetError>(|s| {
            s.devices[0].gpu_utilization_percent = 100;
            Ok(())
        });
        assert_eq!(state.expect("set").devices[0].energy.counter, Energy::of(70_000, SECOND + 1));
        let now = fleet.advance(Duration::from_secs(1)).expect("advance");
        let counter = fleet.machine().expect("machine").timeline(0).expect("device").counter(now);
        assert_eq!(counter, Energy(70_000_000_070_000 + 700_000_000_000_000));
        let error = fleet.energy_between(0, start, now).expect_err("its books began anew");
        assert!(matches!(error, FleetError::Forgotten { .. }));
    }

    #[test]
    fn writers_at_once_lose_no_change() {
        let dir = tempfile::tempdir().expect("dir");
        let fleet = fleet(&dir, &[("T4", 4)]);
        std::thread::scope(|scope| {
            for device in 0..4 {
                let fleet = &fleet;
                scope.spawn(move || {
                    for code in 0..5 {
                        fleet.inject(Some(device), Fault::Xid { code }).expect("inject");
                    }
                });
            }
        });
        assert_eq!(fleet.machine().expect("machine").state().events.len(), 20);
        let error = fleet.inject(Some(4), Fault::Recover).expect_err("no such device");
        assert_eq!(error.to_string(), "check state: events[20].device is 4, but there are 4 devices");
    }

    #[test]
    fn the_clock_runs_at_any_rate() {
        let dir = tempfile::tempdir().expect("dir");
        let fleet = fleet(&dir, &[("T4", 1)]);
        let stopped = fleet.now_ns().expect("now");
        assert_eq!(fleet.now_ns().expect("now"), stopped);
        fleet.set_rate(1_000_000).expect("rate");
        assert!(fleet.now_ns().expect("now") > stopped, "a microsecond is a second");
    }
}
