//! The loop: read, believe, show, meter, and say what is to be at the API server.
//!
//! Invariant: nothing here waits for anybody but the driver, whose calls have a watchdog: looks at the devices go on each second
//! whatever becomes of the API server ([`writer`](crate::writer)).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use vendue_crds::GpuNodeStatus;

use crate::health::hold::Hold;
use crate::health::judge::{Judge, Times};
use crate::health::memory::Memory;
use crate::health::xid;
use crate::inventory::NodeInventory;
use crate::lateness::Lateness;
use crate::metering::Metering;
use crate::metrics::Metrics;
use crate::observe::{Observation, Problem};
use crate::pods::attribution::Known;
use crate::probe::events::{DeviceEvent, EventSink};
use crate::probe::thread::ProbeThread;
use crate::server::Pulse;
use crate::status;
use crate::synthetic::Probes;
use crate::taints;
use crate::writer::{Good, Wish};

/// For so long after the start the GpuNode keeps what it says while the only news is that results of probes are awaited: those
/// on the disk are told as soon as the devices were read and kubelet was asked, and a node that was Ready stays so.
const SETTLE: Duration = Duration::from_secs(5);

/// For so long a driver that worked may differ from its library: while it is upgraded it does.
const MISMATCH: Duration = Duration::from_secs(30);

/// What the loop hears of the devices, and who judges them.
pub struct Devices {
    /// Reads them.
    pub probe: ProbeThread,
    /// What happens on them between two readings.
    pub events: mpsc::Receiver<DeviceEvent>,
    /// Where those come from.
    pub sink: EventSink,
    /// Judges them.
    pub judge: Judge,
    /// How long trouble with reading must be away.
    pub times: Times,
    /// Keeps the faults that outlast this process.
    pub memory: Memory,
    /// What measuring them found.
    pub probes: watch::Receiver<Probes>,
}

/// What the loop tells others of this process.
pub struct Outlets {
    /// The devices, by the names under which they are handed out.
    pub known: watch::Sender<Vec<Known>>,
    /// What the devices say now.
    pub view: watch::Sender<View>,
    /// What they are used for.
    pub metering: Metering,
    /// What is to be at the API server.
    pub wishes: watch::Sender<Option<Wish>>,
}

/// What the devices say now.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The last reading; `None` while there is no good one.
    pub inventory: Option<Arc<NodeInventory>>,
    /// The last Xid of each device that had one.
    pub xids: BTreeMap<String, u64>,
}

/// Everything that the loop needs.
pub struct Agent {
    every: Duration,
    probe: ProbeThread,
    events: mpsc::Receiver<DeviceEvent>,
    sink: EventSink,
    judge: Judge,
    memory: Memory,
    probes: watch::Receiver<Probes>,
    began: Instant,
    outlets: Outlets,
    metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
    observation: Observation,
    /// What is told of trouble with reading, which may be over by now.
    trouble: Hold<Problem>,
    times: Times,
    mismatch_since: Option<Duration>,
    lateness: Lateness,
    /// What was believed last, for the times of its conditions.
    last: Option<GpuNodeStatus>,
}

impl Agent {
    /// An agent that has not read yet, and reads so often.
    #[must_use]
    pub fn new(
        every: Duration,
        devices: Devices,
        outlets: Outlets,
        metrics: Arc<Metrics>,
        pulse: Arc<Pulse>,
    ) -> Self {
        let Devices { probe, events, sink, judge, times, memory, probes } = devices;
        Self {
            every,
            probe,
            events,
            sink,
            judge,
            memory,
            probes,
            began: Instant::now(),
            outlets,
            metrics,
            pulse,
            observation: Observation::default(),
            trouble: Hold::default(),
            times,
            mismatch_since: None,
            lateness: Lateness::default(),
            last: None,
        }
    }

    /// Runs until `stop`, or until the driver was replaced; then it says what has happened.
    pub async fn run(mut self, stop: CancellationToken) -> Option<String> {
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                _ = ticks.tick() => None,
                // Ends when no probe tells of events; the ticks go on.
                Some(event) = self.events.recv() => Some(event),
                () = stop.cancelled() => return None,
            };
            tokio::select! {
                () = self.turn(event) => {}
                () = stop.cancelled() => return None,
            }
            if let Some(what) = self.replaced() {
                tracing::error!(detail = what, "the driver was replaced: this process ends");
                return Some(what);
            }
        }
    }

    /// One turn of the loop: after an event what follows from it is told at once, else the devices are read first.
    async fn turn(&mut self, event: Option<DeviceEvent>) {
        match event {
            Some(event) => self.hear(&event),
            None => self.read().await,
        }
        // Whatever else waits belongs to the same turn, so that many events make one write.
        while let Ok(event) = self.events.try_recv() {
            self.hear(&event);
        }
        if let Err(error) = self.memory.remember(self.judge.lasting(), self.began.elapsed()) {
            tracing::warn!(%error, "faults of GPUs will not outlast this process");
        }
        self.wish();
        self.pulse.turned();
    }

    /// Says what is believed now.
    fn wish(&mut self) {
        let now = Timestamp::now();
        let previous = self.last.as_ref();
        let probes = self.probes.borrow().clone();
        let told = self.observation.telling(self.trouble.told());
        let mut next = status::build(&told, &self.judge, &probes, previous, None, now);
        let metering = &self.outlets.metering;
        let metered = metering.condition(previous, None, now);
        status::hold_back(&mut next, &metered, previous, now);
        next.conditions.push(metered);
        next.public_key = Some(metering.public_key().to_string());
        self.metrics.show_unheard(self.sink.unheard());
        self.metrics.show(&self.observation, &self.judge, &probes, status::is_ready(&next));
        let good = self.outlets.view.borrow().inventory.clone().map(|inventory| {
            let taints = taints::wanted(&inventory, &self.judge);
            Good { inventory, taints }
        });
        let settles = self.began.elapsed() < SETTLE && status::is_probing(&next);
        let status = (!settles).then_some(next);
        self.last = status.clone().or_else(|| self.last.take());
        self.outlets.wishes.send_replace(Some(Wish { status, good }));
    }

    /// What has happened to the driver, if only another process can go on with what is there now. One that did not fit from the
    /// start is waited for: another process would not get anything else.
    fn replaced(&mut self) -> Option<String> {
        let now = self.began.elapsed();
        match &self.observation.problem {
            Some(Problem::Replaced(text)) => return Some(text.clone()),
            Some(Problem::DriverMismatch(text)) if self.observation.last_good.is_some() => {
                let since = *self.mismatch_since.get_or_insert(now);
                return (now.saturating_sub(since) >= MISMATCH).then(|| text.clone());
            }
            _ => self.mismatch_since = None,
        }
        None
    }

    async fn read(&mut self) {
        let started = Instant::now();
        let outcome = self.probe.read().await;
        let took = started.elapsed();
        self.metrics.count_read(&outcome, took);
        let before = self.observation.problem.clone();
        self.observation = std::mem::take(&mut self.observation).after(outcome, Timestamp::now());
        self.trouble.see(self.observation.problem.clone(), self.began.elapsed(), &self.times);
        if before != self.observation.problem {
            match &self.observation.problem {
                Some(problem) => tracing::warn!(?problem, "devices cannot be read"),
                None => tracing::info!("devices can be read again"),
            }
        }
        if let (None, Some((inventory, _))) = (&self.observation.problem, &self.observation.last_good) {
            let now = self.began.elapsed();
            inventory.devices.iter().for_each(|device| self.judge.reading(device, now));
        }
        let is_late = self.lateness.is_late(took);
        self.tell(before == Some(Problem::Hung) || is_late);
    }

    /// Old values are not told as new: where reading fails, there are none, and a late one is not metered.
    fn tell(&mut self, is_late: bool) {
        if let Some((inventory, _)) = &self.observation.last_good {
            self.outlets.metering.see(inventory, self.observation.problem.is_none() && !is_late);
        }
        let (kept, dropped) = self.outlets.metering.kept();
        self.metrics.show_metering(&kept, dropped);
        let good = self.observation.last_good.as_ref().filter(|_| self.observation.problem.is_none());
        let inventory = good.map(|(inventory, _)| Arc::new(inventory.clone()));
        if let Some(inventory) = &inventory {
            let known = known(inventory);
            self.outlets.known.send_if_modified(|old| {
                let changed = *old != known;
                *old = known;
                changed
            });
        }
        self.outlets.view.send_modify(|view| view.inventory = inventory);
    }

    fn hear(&mut self, event: &DeviceEvent) {
        let class = self.judge.xid(&event.uuid, event.xid, self.began.elapsed());
        self.metrics.count_xid(event.xid, class);
        self.outlets.metering.xid(&event.uuid, event.xid);
        self.outlets.view.send_modify(|view| _ = view.xids.insert(event.uuid.clone(), event.xid));
        let meaning = xid::meaning(event.xid).unwrap_or("not in the catalogue");
        tracing::warn!(gpu = event.uuid, xid = event.xid, class = class.name(), meaning, "Xid");
    }
}

/// The names under which devices and their MIG instances are handed out.
fn known(inventory: &NodeInventory) -> Vec<Known> {
    let whole = inventory
        .devices
        .iter()
        .map(|d| Known { uuid: d.identity.uuid.clone(), minor: d.identity.minor.or(Some(d.identity.index)) });
    let slices = inventory.devices.iter().flat_map(|d| &d.mig);
    whole.chain(slices.map(|m| Known { uuid: m.uuid.clone(), minor: None })).collect()
}
