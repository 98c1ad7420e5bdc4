//! Event sets.
//!
//! Invariant: each event is delivered once to each set that registered for it before it happened; a wait without an
//! event takes as long as the caller allowed.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{c_uint, c_ulonglong};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::session::{self, POLL, Snapshot, answer, on_device, snapshot};
use super::{code, exports, handle, put, sys};
use crate::fault::SUPPORTED_EVENTS;
use crate::machine::Announced;
use sys::{nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlReturn_t};

/// Says that an event belongs to no MIG instance.
const NO_INSTANCE: c_uint = c_uint::MAX;

/// More sets than any program needs; a program that leaks them is told.
const MAX_SETS: usize = 1024;

/// Marks handles of event sets, so that a stray pointer is noticed.
const SET_TAG: usize = 0x5644_4553 << 16;

#[derive(Default)]
struct Sets {
    last: usize,
    sets: BTreeMap<usize, EventSet>,
}

#[derive(Default)]
struct EventSet {
    /// Per device: types asked for, and since when.
    registered: BTreeMap<u32, (u64, u64)>,
    delivered: HashSet<Announced>,
}

impl EventSet {
    /// The first event that is due, which counts as delivered from then on.
    fn take(&mut self, snapshot: &Snapshot) -> Option<Announced> {
        let since = self.registered.values().map(|(_, since)| *since).min()?;
        let due = snapshot.machine.announced(since, snapshot.now_ns).into_iter().find(|a| {
            let wanted =
                |(types, since): &(u64, u64)| types & a.occurrence.kind.bit() != 0 && *since <= a.at_ns;
            self.registered.get(&a.device).is_some_and(wanted) && !self.delivered.contains(a)
        })?;
        self.delivered.insert(due);
        Some(due)
    }
}

static SETS: Mutex<Sets> = Mutex::new(Sets { last: 0, sets: BTreeMap::new() });

fn lock() -> MutexGuard<'static, Sets> {
    // A panic under the lock leaves nothing half-written.
    SETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops all sets, with the session that they belong to.
pub(super) fn forget() {
    lock().sets.clear();
}

fn set_id(set: nvmlEventSet_t) -> Result<usize, nvmlReturn_t> {
    let address = set.addr();
    if address & !0xFFFF_usize != SET_TAG { Err(code::INVALID_ARGUMENT) } else { Ok(address & 0xFFFF) }
}

exports! {
    /// A new, empty set.
    fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) {
        snapshot()?;
        if set.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        let mut sets = lock();
        if sets.sets.len() >= MAX_SETS {
            return Err(code::INSUFFICIENT_RESOURCES);
        }
        let mut id = sets.last;
        while sets.sets.contains_key(&id) {
            id = (id + 1) & 0xFFFF;
        }
        sets.last = (id + 1) & 0xFFFF;
        sets.sets.insert(id, EventSet::default());
        put(set, std::ptr::without_provenance_mut(SET_TAG | id))
    }

    /// Types of events that a device reports.
    fn nvmlDeviceGetSupportedEventTypes(device: nvmlDevice_t, types: *mut c_ulonglong) {
        answer(device, types, |_| Ok(SUPPORTED_EVENTS))
    }

    /// Adds a device's events to a set, from now on.
    fn nvmlDeviceRegisterEvents(device: nvmlDevice_t, types: c_ulonglong, set: nvmlEventSet_t) {
        session::initialised()?;
        let id = set_id(set)?;
        if types & !SUPPORTED_EVENTS != 0 {
            return Err(code::NOT_SUPPORTED);
        }
        on_device(device, |v| {
            let mut sets = lock();
            let set = sets.sets.get_mut(&id).ok_or(code::INVALID_ARGUMENT)?;
            let now = v.moment.now_ns;
            if !set.registered.contains_key(&v.device.index) {
                // On a clock that stands still, what happened before has the same time as what comes next.
                let before = v.snapshot.machine.announced(now, now);
                set.delivered.extend(before.into_iter().filter(|a| a.device == v.device.index));
            }
            set.registered.entry(v.device.index).or_insert((0, now)).0 |= types;
            Ok(())
        })
    }

    /// Waits for the next event.
    fn nvmlEventSetWait_v2(set: nvmlEventSet_t, data: *mut nvmlEventData_t, timeout_ms: c_uint) {
        let event = wait(set, data, timeout_ms)?;
        put(data, nvmlEventData_t {
            device: handle(event.device),
            eventType: event.occurrence.kind.bit(),
            eventData: event.occurrence.data,
            gpuInstanceId: NO_INSTANCE,
            computeInstanceId: NO_INSTANCE,
        })
    }

    /// The same for callers whose struct ends before the MIG instance: nothing is written there.
    fn nvmlEventSetWait(set: nvmlEventSet_t, data: *mut nvmlEventData_t, timeout_ms: c_uint) {
        let event = wait(set, data, timeout_ms)?;
        put(&raw mut (*data).device, handle(event.device))?;
        put(&raw mut (*data).eventType, event.occurrence.kind.bit())?;
        put(&raw mut (*data).eventData, event.occurrence.data)
    }

    /// Ends a set.
    fn nvmlEventSetFree(set: nvmlEventSet_t) {
        session::initialised()?;
        let id = set_id(set)?;
        lock().sets.remove(&id).map(drop).ok_or(code::INVALID_ARGUMENT)
    }
}

/// The next event that the set is to hear of.
fn wait(
    set: nvmlEventSet_t,
    data: *const nvmlEventData_t,
    timeout_ms: c_uint,
) -> Result<Announced, nvmlReturn_t> {
    session::initialised()?;
    let id = set_id(set)?;
    if data.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    let end = Instant::now() + Duration::from_millis(timeout_ms.into());
    loop {
        // The lock is not held while waiting: other threads use other sets, and may free this one.
        let snapshot = snapshot()?;
        if let Some(event) = lock().sets.get_mut(&id).ok_or(code::INVALID_ARGUMENT)?.take(&snapshot) {
            return Ok(event);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(code::TIMEOUT);
        }
        std::thread::sleep(left.min(POLL));
    }
}
