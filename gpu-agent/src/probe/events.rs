//! The thread that waits for the driver's events: Xids, of each device.
//!
//! * Inputs: NVML, the devices. Output: [`DeviceEvent`]s through a bounded channel, and how many devices none is heard of.
//! * Invariants: a wait ends often enough that the thread ends within half a second after it is asked to; events that find the channel
//!   full are counted, never waited with, for the driver keeps only the latest; a device that refuses keeps nobody from hearing of
//!   the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use tokio::sync::mpsc;

/// Events that may wait for the agent's loop.
pub const QUEUE: usize = 1024;

/// Longest wait for an event, in milliseconds.
const WAIT_MS: u32 = 500;

/// Pause after a wait that failed at once, so that a driver in trouble is not asked in a circle.
const PAUSE: Duration = Duration::from_millis(200);

/// Failures in a row after which the driver counts as gone.
const MAX_FAILURES: u32 = 25;

/// A thread that has ended begins anew after so long.
pub const AGAIN: Duration = Duration::from_secs(30);

/// Devices that refused are asked again so often. Asking takes a thread of its own, and the old one's end half a second.
pub const ASK_AGAIN: Duration = Duration::from_secs(300);

/// What NVML gives for an Xid that the driver does not know.
const UNKNOWN_XID: u64 = 999;

/// Something that happened on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceEvent {
    /// The device.
    pub uuid: String,
    /// The Xid.
    pub xid: u64,
}

/// Where events go to.
#[derive(Clone, Debug)]
pub struct EventSink {
    sender: mpsc::Sender<DeviceEvent>,
    dropped: Arc<AtomicU64>,
    unheard: Arc<AtomicU64>,
}

impl EventSink {
    /// A sink, and where its events come out.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<DeviceEvent>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { sender, dropped: Arc::default(), unheard: Arc::default() }, receiver)
    }

    /// Events that found no room.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Devices of which no events are heard at present, though they should be.
    #[must_use]
    pub fn unheard(&self) -> u64 {
        self.unheard.load(Ordering::Relaxed)
    }

    fn hear_not(&self, devices: usize) {
        self.unheard.store(u64::try_from(devices).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn put(&self, event: DeviceEvent) {
        if self.sender.try_send(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Handle of the waiting thread. Dropping it ends the thread and waits for that, half a second at most: NVML counts how
/// often it was initialised, and a driver that was loaded anew is seen only after the last of the old ones has let go.
#[derive(Debug)]
pub struct EventThread {
    stop: Arc<AtomicBool>,
    watched: Vec<String>,
    began: Instant,
    /// Some device refused.
    is_partial: bool,
    thread: Option<JoinHandle<()>>,
}

impl EventThread {
    /// Waits for events of the devices with these UUIDs.
    ///
    /// # Errors
    /// When the system starts no thread.
    pub fn start(nvml: Arc<Nvml>, watched: Vec<String>, sink: EventSink) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ends, uuids) = (Arc::clone(&stop), watched.clone());
        let (registered, is_registered) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("nvml-events".to_owned())
            .spawn(move || watch(&nvml, &uuids, &sink, (&ends, registered)))?;
        // What happens after this call is heard. The other end goes with the thread, whatever becomes of it.
        let is_partial = is_registered.recv().unwrap_or(false);
        Ok(Self { stop, watched, began: Instant::now(), is_partial, thread: Some(thread) })
    }

    /// Whether it waits for events of exactly these devices, and need not begin anew.
    #[must_use]
    pub fn watches(&self, uuids: &[String], now: Instant) -> bool {
        let age = now.saturating_duration_since(self.began);
        let has_ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        let is_over = (has_ended && age >= AGAIN) || (self.is_partial && age >= ASK_AGAIN);
        self.watched == uuids && !is_over
    }
}

impl Drop for EventThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended too.
            drop(thread.join());
        }
    }
}

fn watch(
    nvml: &Nvml,
    uuids: &[String],
    sink: &EventSink,
    (stop, registered): (&AtomicBool, std::sync::mpsc::Sender<bool>),
) {
    let (set, refused) = match register(nvml, uuids) {
        Ok(set) => set,
        Err(error) => {
            sink.hear_not(uuids.len());
            tracing::warn!(%error, again_s = AGAIN.as_secs(), "no events of the driver: Xids are not seen");
            return;
        }
    };
    sink.hear_not(refused);
    // The other end is there until it has heard.
    let _ = registered.send(refused > 0);
    let mut failures = 0;
    while !stop.load(Ordering::Relaxed) && failures < MAX_FAILURES {
        match set.wait(WAIT_MS) {
            Ok(event) => {
                failures = 0;
                // Of a device that was just lost the name can no longer be asked.
                let uuid = event.device.uuid().ok().or_else(|| only(uuids));
                if let (Some(uuid), Some(xid)) = (uuid, event.event_data) {
                    let xid = match xid {
                        XidError::Value(code) => code,
                        XidError::Unknown => UNKNOWN_XID,
                    };
                    sink.put(DeviceEvent { uuid, xid });
                }
            }
            Err(NvmlError::Timeout) => failures = 0,
            // A set with a lost device fails for it, and may still have events of the others.
            Err(error) => {
                tracing::debug!(%error, "waiting for events of the driver failed");
                failures += 1;
                std::thread::sleep(PAUSE);
            }
        }
    }
    if failures >= MAX_FAILURES {
        sink.hear_not(uuids.len());
        tracing::warn!(
            again_s = AGAIN.as_secs(),
            "the driver tells of no events any more: Xids are not seen"
        );
    }
}

fn only(uuids: &[String]) -> Option<String> {
    match uuids {
        [one] => Some(one.clone()),
        _ => None,
    }
}

/// A set with the Xids of all devices that have them, and the number of devices that refuse.
fn register<'a>(nvml: &'a Nvml, uuids: &[String]) -> Result<(EventSet<'a>, usize), NvmlError> {
    let add = |uuid: &str, set: EventSet<'a>| {
        let device = nvml.device_by_uuid(uuid)?;
        let supported = match device.supported_event_types() {
            Ok(types) => types,
            // Cards and drivers without events have none to tell of.
            Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => EventTypes::empty(),
            Err(error) => return Err(error),
        };
        if !supported.contains(EventTypes::CRITICAL_XID_ERROR) {
            return Ok(set);
        }
        device.register_events(EventTypes::CRITICAL_XID_ERROR, set).map_err(|failed| failed.error)
    };
    let (set, refused) = all_that_accept(uuids, || nvml.create_event_set(), add)?;
    for (uuid, error) in &refused {
        tracing::warn!(gpu = uuid, %error, "no events of this GPU: its Xids are not seen");
    }
    Ok((set, refused.len()))
}

/// Adds each device to a set. What refuses a device takes the set with it, so that the others begin with a new one.
fn all_that_accept<S, E>(
    uuids: &[String],
    empty: impl Fn() -> Result<S, E>,
    add: impl Fn(&str, S) -> Result<S, E>,
) -> Result<(S, BTreeMap<String, E>), E> {
    let mut refused = BTreeMap::new();
    loop {
        let mut left = uuids.iter().filter(|uuid| !refused.contains_key(uuid.as_str()));
        let added =
            left.try_fold(empty()?, |set, uuid| add(uuid, set).map_err(|error| (uuid.clone(), error)));
        match added {
            Ok(set) => return Ok((set, refused)),
            Err((uuid, error)) => _ = refused.insert(uuid, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_refuses_is_left_out_and_the_others_are_heard() {
        let uuids: Vec<String> = (0..5).map(|n| format!("GPU-{n}")).collect();
        let with = |refusing: &[&str]| {
            let add = |uuid: &str, mut set: Vec<String>| {
                if refusing.contains(&uuid) {
                    return Err(format!("{uuid} refuses"));
                }
                set.push(uuid.to_owned());
                Ok(set)
            };
            all_that_accept(&uuids, || Ok(vec![]), add).expect("a set")
        };
        assert_eq!(with(&[]), (uuids.clone(), BTreeMap::new()));
        let (heard, refused) = with(&["GPU-0", "GPU-3"]);
        assert_eq!(heard, ["GPU-1", "GPU-2", "GPU-4"]);
        assert_eq!(
            refused.into_iter().collect::<Vec<_>>()[1],
            ("GPU-3".to_owned(), "GPU-3 refuses".to_owned())
        );
        let (heard, refused) = with(&["GPU-0", "GPU-1", "GPU-2", "GPU-3", "GPU-4"]);
        assert_eq!((heard.len(), refused.len()), (0, 5));
        let none = all_that_accept(&uuids, || Err::<Vec<String>, _>("no set"), |_, set| Ok(set));
        assert_eq!(none.map(|(set, _)| set), Err("no set"));
    }
}
