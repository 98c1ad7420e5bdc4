//! The whole simulated machine, worked out once per version of state and loads. Pure.
//!
//! Input: [`State`] and [`Load`]s. Output: each device at any moment ([`Moment`]), and the driver. Invariant: asking
//! about the same moment twice gives the same answer; asking costs a binary search.

use std::ops::Range;
use std::sync::Arc;

use crate::fault::{Fault, Occurrence, occurrences};
use crate::load::{Load, Work};
use crate::profile::Profile;
use crate::state::{Device, DriverHealth, MigInstance, State};
use crate::timeline::{Cards, Condition, Segment, Timeline};

/// State and loads with everything that follows from them.
#[derive(Clone, Debug)]
pub struct Machine {
    state: Arc<State>,
    loads: Vec<Load>,
    timelines: Vec<Timeline>,
}

/// The driver at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverMoment {
    /// Whether it answers.
    pub health: DriverHealth,
    /// How often it was loaded again; a session of an earlier epoch is stale.
    pub epoch: usize,
}

/// Something that event sets hear of, with its place in the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Announced {
    /// When.
    pub at_ns: u64,
    /// On which device.
    pub device: u32,
    /// Number among what is announced at that time on that device.
    pub nth: u32,
    /// What.
    pub occurrence: Occurrence,
}

/// One device at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// The device as the state file has it.
    pub device: &'a Device,
    /// The card that it says it is.
    pub profile: &'a Profile,
    /// The stretch of its history that the moment lies in.
    pub segment: &'a Segment,
    /// The moment, on the simulated clock.
    pub now_ns: u64,
    real: &'a Profile,
    timeline: &'a Timeline,
    loads: &'a [Load],
}

/// A process in a device's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Process id.
    pub pid: u32,
    /// Device memory that it holds, in bytes.
    pub memory_bytes: u64,
    /// Its share of the SMs of its device or instance, in percent.
    pub sm_percent: u32,
    /// The GPU instance that it runs on.
    pub gpu_instance: Option<u32>,
    /// When it began.
    pub start_ns: u64,
}

impl Machine {
    /// Works out all histories.
    #[must_use]
    pub fn new(state: Arc<State>, loads: &[Load]) -> Self {
        let timeline = |device: &Device| {
            let (claimed, real) = (state.profiles.get(&device.profile)?, state.real_profile(device)?);
            Some(Timeline::new(device, Cards { claimed, real }, &state.events, loads))
        };
        // A checked state names profiles that are there, so no device is left out.
        let timelines = state.devices.iter().filter_map(timeline).collect();
        Self { state, loads: loads.to_vec(), timelines }
    }

    /// The state as written.
    #[must_use]
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// What the simulated clock shows at a moment of real time.
    #[must_use]
    pub fn at_real(&self, real_ns: u64) -> u64 {
        self.state.clock.at(real_ns)
    }

    /// A device's history.
    #[must_use]
    pub fn timeline(&self, device: u32) -> Option<&Timeline> {
        self.timelines.get(usize::try_from(device).ok()?)
    }

    /// A device at one moment.
    #[must_use]
    pub fn device(&self, index: u32, now_ns: u64) -> Option<Moment<'_>> {
        let (device, profile) = self.state.device(index)?;
        let (real, timeline) = (self.state.real_profile(device)?, self.timeline(index)?);
        let segment = timeline.at(now_ns);
        Some(Moment { device, profile, segment, now_ns, real, timeline, loads: &self.loads })
    }

    /// All devices at one moment.
    pub fn devices(&self, now_ns: u64) -> impl Iterator<Item = Moment<'_>> {
        self.state.devices.iter().filter_map(move |d| self.device(d.index, now_ns))
    }

    /// The driver at one moment.
    #[must_use]
    pub fn driver(&self, now_ns: u64) -> DriverMoment {
        let reload = |event: &crate::fault::Event| match event.fault {
            Fault::DriverReload { for_ns } if event.device.is_none() && event.at_ns <= now_ns => {
                Some(event.at_ns.saturating_add(for_ns))
            }
            _ => None,
        };
        let reloads: Vec<u64> = self.state.events.iter().filter_map(reload).collect();
        let absent = reloads.iter().any(|back| now_ns < *back);
        let health = if absent { DriverHealth::NotLoaded } else { self.state.driver.health };
        DriverMoment { health, epoch: reloads.len() }
    }

    /// Share of the SMs of a device or GPU instance that was busy in a span of time, in percent.
    #[must_use]
    pub fn busy_percent(&self, device: u32, gpu_instance: Option<u32>, span: Range<u64>) -> f64 {
        self.mean_percent(device, gpu_instance, span, |c| c.busy, |work| work.intensity)
    }

    /// Share of a span of time in which any kernel ran on a device or GPU instance, in percent.
    #[must_use]
    pub fn kernel_percent(&self, device: u32, gpu_instance: Option<u32>, span: Range<u64>) -> f64 {
        self.mean_percent(device, gpu_instance, span, |c| c.kernel_time, Work::kernel_percent)
    }

    /// The mean over a span of time: of a device from its history, of a GPU instance from its loads.
    fn mean_percent(
        &self,
        device: u32,
        gpu_instance: Option<u32>,
        span: Range<u64>,
        of_device: fn(&Condition) -> u32,
        of_load: fn(&Work) -> u32,
    ) -> f64 {
        let Some(timeline) = self.timeline(device) else { return 0.0 };
        let length = span.end.saturating_sub(span.start).max(1);
        let overlap = |start: u64, end: u64| end.min(span.end).saturating_sub(start.max(span.start));
        let share = |part: u128| part as f64 / length as f64;
        let Some(id) = gpu_instance else {
            let segments = timeline.segments();
            let ends = segments.iter().skip(1).map(|s| s.start_ns).chain([u64::MAX]);
            let busy = |(s, end): (&Segment, u64)| {
                u128::from(of_device(&s.condition)) * u128::from(overlap(s.start_ns, end))
            };
            return share(segments.iter().zip(ends).map(busy).sum()) / 100.0;
        };
        let here = self.loads.iter().filter(|l| l.work.device == device && l.work.gpu_instance == Some(id));
        let work = here.map(|l| {
            let time = overlap(l.start_ns, l.end_ns.unwrap_or(u64::MAX));
            u128::from(of_load(&l.work)) * u128::from(time)
        });
        share(work.sum()).min(100.0)
    }

    /// What event sets can hear of that happened from one moment to another, both included, in order of time.
    #[must_use]
    pub fn announced(&self, from_ns: u64, until_ns: u64) -> Vec<Announced> {
        let mut list: Vec<Announced> = Vec::new();
        let due = self.state.events.iter().filter(|e| (from_ns..=until_ns).contains(&e.at_ns));
        for event in due {
            for device in self.state.devices.iter().filter(|d| event.concerns(d.index)) {
                for occurrence in occurrences(&event.fault) {
                    let same = |a: &&Announced| a.at_ns == event.at_ns && a.device == device.index;
                    let nth = u32::try_from(list.iter().filter(same).count()).unwrap_or(u32::MAX);
                    list.push(Announced { at_ns: event.at_ns, device: device.index, nth, occurrence });
                }
            }
        }
        list.sort_by_key(|a| (a.at_ns, a.device, a.nth));
        list
    }

    /// The state with what events and loads make of it at one moment, for people and for kubelet.
    #[must_use]
    pub fn flattened(&self, now_ns: u64) -> State {
        let mut state = State::clone(&self.state);
        for device in &mut state.devices {
            let Some(moment) = self.device(device.index, now_ns) else { continue };
            let condition = moment.condition();
            device.health = condition.health;
            device.uuid = condition.uuid.to_string();
            device.mig_enabled = condition.mig.enabled;
            device.mig_instances.clone_from(&condition.mig.instances);
        }
        state.driver.health = self.driver(now_ns).health;
        state
    }
}

impl<'a> Moment<'a> {
    /// How it fares.
    #[must_use]
    pub fn condition(&self) -> &'a Condition {
        &self.segment.condition
    }

    /// The card that it really is.
    #[must_use]
    pub fn real_profile(&self) -> &'a Profile {
        self.real
    }

    /// Its history.
    #[must_use]
    pub fn timeline(&self) -> &'a Timeline {
        self.timeline
    }

    /// The MIG instance with this GPU instance id.
    #[must_use]
    pub fn instance(&self, gpu_instance_id: u32) -> Option<&'a MigInstance> {
        self.condition().mig.instances.iter().find(|i| i.gpu_instance_id == gpu_instance_id)
    }

    /// Its processes: those that the state file lists, then those that registered.
    #[must_use]
    pub fn processes(&self) -> Vec<Running> {
        let condition = self.condition();
        let fixed = self.device.processes.iter().map(|p| Running {
            pid: p.pid,
            memory_bytes: p.memory_mib.saturating_mul(1 << 20),
            sm_percent: p.sm_percent.min(100),
            gpu_instance: None,
            start_ns: 0,
        });
        let live = |l: &&Load| {
            l.work.device == self.device.index
                && (condition.since_ns..=self.now_ns).contains(&l.start_ns)
                && l.end_ns.is_none_or(|end| self.now_ns < end)
                && l.work.gpu_instance.is_some() == condition.mig.enabled
                && l.work.gpu_instance.is_none_or(|id| self.instance(id).is_some())
        };
        // More than the device has is shared out: each gets its part of 100 %.
        let part = |intensity: u32| match condition.demand {
            demand if demand > 10_000 && !condition.mig.enabled => {
                u32::try_from(u64::from(intensity) * 10_000 / u64::from(demand)).unwrap_or(100)
            }
            _ => intensity,
        };
        let registered = self.loads.iter().filter(live).map(|l| Running {
            pid: l.work.pid,
            memory_bytes: l.work.memory_mib.saturating_mul(1 << 20),
            sm_percent: part(l.work.intensity).min(100),
            gpu_instance: l.work.gpu_instance,
            start_ns: l.start_ns,
        });
        fixed.chain(registered).collect()
    }
}
