//! The thread that waits for the driver's events: Xids, of each device.
//!
//! * Inputs: NVML, the devices. Output: [`DeviceEvent`]s through a bounded channel.
//! * Invariants: a wait ends often enough that the thread ends within half a second after it is asked to; events that find the channel
//!   full are counted, never waited with, for the driver keeps only the latest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

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
}

impl EventSink {
    /// A sink, and where its events come out.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<DeviceEvent>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { sender, dropped: Arc::default() }, receiver)
    }

    /// Events that found no room.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
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
        let _ = is_registered.recv();
        Ok(Self { stop, watched, thread: Some(thread) })
    }

    /// Whether it waits for events of exactly these devices.
    #[must_use]
    pub fn watches(&self, uuids: &[String]) -> bool {
        self.watched == uuids
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
    (stop, registered): (&AtomicBool, std::sync::mpsc::Sender<()>),
) {
    let set = match register(nvml, uuids) {
        Ok(set) => set,
        Err(error) => {
            tracing::warn!(%error, "no events of the driver: Xids are not seen");
            return;
        }
    };
    drop(registered);
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
}

fn only(uuids: &[String]) -> Option<String> {
    match uuids {
        [one] => Some(one.clone()),
        _ => None,
    }
}

/// A set with the Xids of all devices that have them.
fn register<'a>(nvml: &'a Nvml, uuids: &[String]) -> Result<EventSet<'a>, NvmlError> {
    let mut set = nvml.create_event_set()?;
    for uuid in uuids {
        let Ok(device) = nvml.device_by_uuid(uuid.as_str()) else { continue };
        let supported = device.supported_event_types().unwrap_or(EventTypes::empty());
        if supported.contains(EventTypes::CRITICAL_XID_ERROR) {
            set =
                device.register_events(EventTypes::CRITICAL_XID_ERROR, set).map_err(|failed| failed.error)?;
        }
    }
    Ok(set)
}
