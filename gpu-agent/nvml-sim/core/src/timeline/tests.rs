//! Each rule of a device's history.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::fault::ThrottleReason;
use crate::load::Work;
use crate::machine::Machine;
use crate::state::{DriverHealth, State};

const SECOND: u64 = 1_000_000_000;

fn state(profile: &str) -> State {
    State::generate(&[(profile.to_owned(), 1)], "t", 0).expect("state")
}

fn load(id: u64, intensity: u32, start: u64, end: Option<u64>) -> Load {
    let work = Work { pid: u32::try_from(id).expect("small"), intensity, memory_mib: 100, ..Work::default() };
    Load { id, work, start_ns: start * SECOND, end_ns: end.map(|e| e * SECOND), watched: None }
}

fn event(at: u64, fault: Fault) -> Event {
    Event { at_ns: at * SECOND, device: Some(0), fault }
}

fn machine(profile: &str, events: Vec<Event>, loads: &[Load]) -> Machine {
    let state = State { events, ..state(profile) };
    state.check().expect("consistent");
    Machine::new(Arc::new(state), loads)
}

fn counter(machine: &Machine, at: u64) -> u64 {
    machine.timeline(0).expect("device").counter(at * SECOND).millijoules()
}

#[test]
fn a_reload_resets_what_the_driver_counts_and_keeps_what_the_card_does() {
    let ecc = |n| Fault::Ecc { corrected: n, uncorrected: 1, sram: false };
    let rows = Fault::RowRemap { correctable: 0, uncorrectable: 1, pending: true, failed: false };
    let reload =
        Event { at_ns: 10 * SECOND, device: None, fault: Fault::DriverReload { for_ns: 5 * SECOND } };
    let m = machine("H100", vec![event(2, ecc(3)), event(2, rows), reload], &[load(1, 100, 0, None)]);
    let at = |seconds| m.device(0, seconds * SECOND).expect("device");
    assert_eq!((counter(&m, 10), counter(&m, 15), counter(&m, 16)), (7_000_000, 0, 70_000));
    assert_eq!((at(9).condition().ecc.corrected, at(9).processes().len()), (3, 1));
    assert!(at(9).condition().rows.pending);
    let after = at(16);
    assert_eq!((after.condition().ecc.corrected, after.condition().ecc_aggregate.corrected), (0, 3));
    assert_eq!((after.condition().rows.uncorrectable, after.condition().rows.pending), (1, false));
    assert!(after.processes().is_empty(), "no process outlives the driver that it uses");
    assert_eq!(m.driver(12 * SECOND).health, DriverHealth::NotLoaded);
    assert_eq!((m.driver(9 * SECOND).epoch, m.driver(15 * SECOND).epoch), (0, 1));
    let truth = m.timeline(0).expect("device").used_between(0, 16 * SECOND).expect("known");
    assert_eq!(truth.millijoules(), 7_000_000 + 420_000, "energy was used whether or not it was counted");
}

#[test]
fn heat_cuts_clocks_and_power_for_its_time() {
    let throttle =
        Fault::Throttle { reason: ThrottleReason::HwThermal, clock_percent: 50, for_ns: Some(10 * SECOND) };
    let m = machine("H100", vec![event(5, throttle)], &[load(1, 100, 0, None)]);
    let read = |seconds| crate::telemetry::read(&m.device(0, seconds * SECOND).expect("device"));
    assert_eq!((read(4).sm_clock_mhz, read(4).power_milliwatts), (1980, 700_000));
    let hot = read(5);
    assert_eq!((hot.sm_clock_mhz, hot.power_milliwatts, hot.temperature_celsius), (990, 385_000, 87));
    assert_eq!(m.device(0, 5 * SECOND).expect("device").condition().throttle_reasons, 0x48);
    assert_eq!(read(15), Telemetry15::at(&read(4), read(15).energy_millijoules));
    let timeline = m.timeline(0).expect("device");
    assert_eq!(timeline.time_throttled(0x40, 8 * SECOND), 3 * SECOND);
    assert_eq!(timeline.time_throttled(u64::MAX, 100 * SECOND), 10 * SECOND);
    assert_eq!(timeline.time_throttled(0x20, 100 * SECOND), 0);
}

/// Readings as before, but for the counter.
struct Telemetry15;

impl Telemetry15 {
    fn at(before: &crate::telemetry::Telemetry, energy: u64) -> crate::telemetry::Telemetry {
        crate::telemetry::Telemetry { energy_millijoules: energy, ..*before }
    }
}

#[test]
fn a_lost_card_stays_lost_and_a_hang_ends() {
    let lost = Fault::Health { health: DeviceHealth::Lost };
    let hang = Fault::Hang { for_ns: Some(3 * SECOND) };
    let reload = Event { at_ns: 30 * SECOND, device: None, fault: Fault::DriverReload { for_ns: 0 } };
    let m = machine("L40S", vec![event(1, hang), event(20, lost), reload, event(40, Fault::Recover)], &[]);
    let health = |seconds| m.device(0, seconds * SECOND).expect("device").condition().health;
    assert_eq!(
        [health(0), health(1), health(4)],
        [DeviceHealth::Healthy, DeviceHealth::Hung, DeviceHealth::Healthy]
    );
    assert_eq!(
        [health(20), health(35), health(40)],
        [DeviceHealth::Lost, DeviceHealth::Lost, DeviceHealth::Healthy]
    );
    let timeline = m.timeline(0).expect("device");
    assert_eq!(timeline.used_between(20 * SECOND, 40 * SECOND), Some(Energy::default()));
}

#[test]
fn a_mig_device_runs_only_its_own_loads() {
    let profile = crate::profile::built_in("A100").expect("profile").1;
    let instances = crate::mig::layout(&profile, &["3g.40gb", "1g.10gb"], "x").expect("layout");
    let (large, small) = (instances[0].gpu_instance_id, instances[1].gpu_instance_id);
    let split = Fault::Mig { enabled: true, instances };
    let on = |id, gpu_instance| {
        let mut l = load(id, 100, 0, None);
        l.work.gpu_instance = gpu_instance;
        l
    };
    let loads = [on(1, None), on(2, Some(large)), on(3, Some(small)), on(4, Some(13))];
    let m = machine(
        "A100",
        vec![event(5, split), event(9, Fault::Mig { enabled: false, instances: Vec::new() })],
        &loads,
    );
    let busy = |seconds| m.device(0, seconds * SECOND).expect("device").condition().busy;
    // 42 and 14 of 108 SMs; instance 13 does not exist.
    assert_eq!([busy(4), busy(5), busy(9)], [10_000, 3_888 + 1_296, 10_000]);
    let pids = |seconds: u64| -> Vec<u32> {
        m.device(0, seconds * SECOND).expect("device").processes().iter().map(|p| p.pid).collect()
    };
    assert_eq!((pids(4), pids(5)), (vec![1], vec![2, 3]));
    let average = |instance| m.busy_percent(0, instance, 4 * SECOND..6 * SECOND);
    assert!((average(Some(small)) - 100.0).abs() < 1e-9);
    assert!((average(None) - (100.0 + 51.84) / 2.0).abs() < 1e-9);
}

#[test]
fn more_work_than_the_card_has_is_shared_out() {
    let m = machine("H100", Vec::new(), &[load(1, 100, 0, None), load(2, 60, 0, None)]);
    let moment = m.device(0, 1).expect("device");
    let shares: Vec<u32> = moment.processes().iter().map(|p| p.sm_percent).collect();
    assert_eq!((moment.condition().busy, shares), (10_000, vec![62, 37]));
    assert_eq!(moment.condition().memory_mib, 200);
}

#[test]
fn a_mark_in_the_future_stops_the_counter_but_not_the_card() {
    let mut still = state("H100");
    still.devices[0].energy.at_ns = u64::MAX;
    let m = Machine::new(Arc::new(still), &[load(1, 100, 0, None)]);
    assert_eq!((counter(&m, 1), counter(&m, 1_000)), (0, 0));
    assert_eq!(m.device(0, SECOND).expect("device").segment.power_milliwatts, 700_000);
    assert_eq!(m.timeline(0).expect("device").used_between(0, SECOND), None, "and nothing is claimed");
}

proptest! {
    /// Whatever the loads, energy is the sum of power times time, taken second by second.
    #[test]
    fn energy_is_the_integral_of_power(
        spans in prop::collection::vec((0_u32..=100, 0_u64..50, 0_u64..50), 0..12),
        throttles in prop::collection::vec((0_u64..50, 1_u64..20, 0_u32..=100), 0..4),
    ) {
        let loads: Vec<Load> = spans
            .iter()
            .zip(1..)
            .map(|((intensity, start, length), id)| load(id, *intensity, *start, Some(start + length)))
            .collect();
        let events = throttles
            .iter()
            .map(|(at, length, percent)| event(*at, Fault::Throttle {
                reason: ThrottleReason::SwPowerCap,
                clock_percent: *percent,
                for_ns: Some(length * SECOND),
            }))
            .collect();
        let m = machine("B200", events, &loads);
        let timeline = m.timeline(0).expect("device");
        let mut sum = Energy::default();
        let mut last = 0;
        for second in 0..110 {
            prop_assert_eq!(timeline.counter(second * SECOND), sum);
            prop_assert!(timeline.counter(second * SECOND).millijoules() >= last, "never falls");
            last = timeline.counter(second * SECOND).millijoules();
            sum = sum.plus(Energy::of(timeline.at(second * SECOND).power_milliwatts, SECOND));
        }
        let parts = timeline.used_between(0, 33 * SECOND).expect("known")
            .plus(timeline.used_between(33 * SECOND, 110 * SECOND).expect("known"));
        prop_assert_eq!(parts, sum, "parts make the whole");
    }
}
