//! From simulated GPUs to receipts that somebody else verifies: what is metered is what the cards used.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used)]

#[path = "../bench/node/mod.rs"]
#[allow(dead_code)]
mod node;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use node::kubelet::pods;
use node::receipts::Chains;
use vendue_gpu_agent::inventory::NodeInventory;
use vendue_gpu_agent::meter::{Clocks, Keeper, Sights};
use vendue_gpu_agent::metrics::Metrics;
use vendue_gpu_agent::pods::attribution::{Attribution, Known, attribute};
use vendue_gpu_agent::pods::slices::DeviceNames;
use vendue_gpu_agent::probe::DeviceProbe;
use vendue_gpu_agent::probe::nvml::NvmlProbe;
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::fault::Fault;
use vendue_nvml_sim::fleet::{Fleet, FleetError};
use vendue_nvml_sim::load::Work;
use vendue_nvml_sim::profile::Architecture;
use vendue_nvml_sim::state::DeviceHealth;
use vendue_nvml_sim::{mig, profile};
use vendue_receipts::{Activity, ActivitySource, AwardId, Body, BootId, Gap, GapReason, Used, verify};

const SECOND: u64 = 1_000_000_000;
const AWARD: AwardId = AwardId([0, 0, 0, 0, 0, 0, 0, 1]);

fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    let name = "libvendue_nvml_sim.so";
    exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists()).expect("built library")
}

/// Who has the first device, or its first instance where it is split.
fn held(inventory: &NodeInventory, namespace: Option<&str>) -> Attribution {
    let first = &inventory.devices[0];
    let uuid = first.mig.first().map_or(&first.identity.uuid, |instance| &instance.uuid).clone();
    let devices = [uuid.as_str()];
    let held: Vec<(&str, &[&str])> =
        namespace.map(|namespace| (namespace, devices.as_slice())).into_iter().collect();
    attribute(&pods(&held), &[Known { uuid: uuid.clone(), minor: None }], &DeviceNames::default())
}

/// Two simulated cards and what meters them; nothing happens but what a test says.
struct Metered {
    dir: tempfile::TempDir,
    fleet: Fleet,
    probe: NvmlProbe,
    keeper: Keeper,
    sights: Sights,
    last: Option<NodeInventory>,
    /// System clock less simulated clock.
    step_ms: i64,
}

const START: u64 = 1_800_000_000 * SECOND;

impl Metered {
    fn new() -> Self {
        Self::of("H100")
    }

    fn of(model: &str) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("gpus/state.json");
        let fleet = Fleet::create(&path, &[(model, 2)], "meter", Clock::stopped(START)).expect("fleet");
        let probe = NvmlProbe::new(Some(fleet.install(&library()).expect("install")));
        let keeper = Keeper::start(dir.path(), false).expect("keeper");
        let sights = Sights::new(BootId([7; 16]));
        Self { dir, fleet, probe, keeper, sights, last: None, step_ms: 0 }
    }

    /// A second later the agent looks, and kubelet says who has the first device. Gives the time.
    fn second(&mut self, namespace: Option<&str>) -> u64 {
        self.fleet.advance(Duration::from_secs(1)).expect("advance");
        let read = self.probe.read();
        let is_good = read.is_ok();
        let inventory = read.ok().or_else(|| self.last.clone()).expect("inventory");
        let now = self.fleet.now_ns().expect("time");
        let system_ms = (now / 1_000_000).checked_add_signed(self.step_ms).expect("time");
        let clocks = Clocks { steady_ns: now - START, suspended_ns: 0, system_ms };
        self.sights.see(clocks, &inventory, is_good, BTreeMap::new());
        let pods = held(&inventory, namespace);
        self.sights.answer(&inventory, &pods).into_iter().for_each(|tick| self.keeper.put(tick));
        self.last = Some(inventory);
        now
    }

    fn seconds(&mut self, count: u32, namespace: Option<&str>) -> u64 {
        (0..count).map(|_| self.second(namespace)).last().expect("some seconds")
    }

    /// Splits the first card before anybody looked.
    fn split(&self, profiles: &[&str]) {
        let instances =
            mig::layout(&profile::built_in("H100").expect("profile").1, profiles, "m").expect("layout");
        self.fleet.inject(Some(0), Fault::Mig { enabled: true, instances }).expect("split");
    }

    /// The driver's performance monitoring works from now on, or does not.
    fn monitoring(&self, works: bool) {
        let changed = self.fleet.update::<FleetError>(|state, _| {
            let profile = state.profiles.get_mut("H100").expect("profile");
            profile.architecture = if works { Architecture::Hopper } else { Architecture::Ampere };
            Ok(())
        });
        changed.expect("update");
    }

    fn truth(&self, from: u64, to: u64) -> u64 {
        self.fleet.energy_between(0, from, to).expect("energy").millijoules()
    }

    /// Ends the agent; what it has stored, and that it verifies.
    fn end(self) -> Chains {
        let key = self.keeper.public_key();
        drop(self.keeper);
        let chains = Chains::read(self.dir.path()).expect("receipts");
        assert_eq!(chains.key, key);
        chains.verify().expect("no window of a device is in two chains");
        chains
    }
}

fn windows(chains: &Chains) -> Vec<Used> {
    let used = |body: &Body| if let Body::Used(used) = body { Some(used.clone()) } else { None };
    chains.records[&AWARD].iter().filter_map(|record| used(&record.body)).collect()
}

fn gaps(chains: &Chains) -> Vec<Gap> {
    let gap = |body: &Body| if let Body::Gap(gap) = body { Some(gap.clone()) } else { None };
    chains.records[&AWARD].iter().filter_map(|record| gap(&record.body)).collect()
}

const NAMESPACE: Option<&str> = Some("vendue-a-0000000000000001");

fn work() -> Work {
    Work { pid: 1, device: 0, intensity: 80, memory_mib: 1_000, ..Work::default() }
}

#[test]
fn receipts_hold_the_energy_and_the_time_that_the_simulator_knows() {
    let mut node = Metered::new();
    node.seconds(20, None);
    let load = node.fleet.load(work()).expect("load");
    // Awarded at the first answer that names it; the reading of that moment is not its own yet.
    node.second(NAMESPACE);
    let first = node.second(NAMESPACE);
    let last = node.seconds(60, NAMESPACE);
    node.fleet.end(load).expect("end");
    node.seconds(20, None);
    let truth = node.truth(first, last);
    let chains = node.end();

    let chain = verify(AWARD, Some(chains.key), 3_600_000_000, &chains.records[&AWARD]).expect("chain");
    let totals = chain.totals();
    assert_eq!(totals.gpu_ns, last - first);
    assert_eq!(totals.cost_micros, (last - first) / SECOND * 1_000_000, "3600 per GPU-hour is 1 per second");
    assert!(totals.energy_mj.abs_diff(truth) <= 1, "{} {truth}", totals.energy_mj);
}

#[test]
fn a_device_that_is_lost_while_it_is_metered_is_a_gap_until_it_was_reset() {
    let mut node = Metered::new();
    node.second(None);
    node.fleet.load(work()).expect("load");
    node.second(NAMESPACE);
    let first = node.second(NAMESPACE);
    let seen = node.seconds(4, NAMESPACE);
    node.fleet.inject(Some(0), Fault::Health { health: DeviceHealth::Lost }).expect("lose");
    node.seconds(8, NAMESPACE);
    // A reset finds the card again; its counter begins anew, so nobody knows what the time cost.
    node.fleet.inject(Some(0), Fault::Recover).expect("find");
    node.fleet.inject(Some(0), Fault::DriverReload { for_ns: 0 }).expect("reset");
    let back = node.seconds(3, NAMESPACE);
    let last = node.seconds(5, NAMESPACE);
    let before = node.truth(first, seen);
    let chains = node.end();

    let (windows, gaps) = (windows(&chains), gaps(&chains));
    let sum = |from: u64, to: u64| -> u64 {
        let within = windows.iter().filter(|w| w.t0_ms * 1_000_000 >= from && w.t1_ms * 1_000_000 <= to);
        within.map(|w| w.wall_ns).sum()
    };
    assert_eq!(sum(first, seen), seen - first, "all up to the last look at which it was there");
    assert_eq!(sum(first, last), windows.iter().map(|w| w.wall_ns).sum::<u64>());
    let lost: Vec<&Gap> = gaps.iter().filter(|gap| gap.reason == GapReason::DeviceLost).collect();
    assert_eq!(lost.first().map(|gap| gap.t0_ms * 1_000_000), Some(seen));
    assert!(gaps.iter().all(|gap| gap.energy.is_none()), "{gaps:?}");
    let until = gaps.iter().map(|gap| gap.t1_ms * 1_000_000).max().expect("gaps");
    assert!(seen < until && until <= back, "{gaps:?}");
    assert_eq!(sum(until, last), last - until, "metered again from the first look at which it was back");
    let energy: u64 = windows
        .iter()
        .filter(|w| w.t1_ms * 1_000_000 <= seen)
        .filter_map(|w| w.energy)
        .map(|e| e.used_mj)
        .sum();
    assert!(energy.abs_diff(before) <= 1, "{energy} {before}");
}

#[test]
fn a_step_of_the_system_clock_by_an_hour_changes_no_window() {
    let hour = 3_600_000;
    let mut node = Metered::new();
    node.second(None);
    node.second(NAMESPACE);
    let first = node.second(NAMESPACE);
    for step_ms in [hour, 0, -hour, 0] {
        node.step_ms = step_ms;
        node.seconds(7, NAMESPACE);
    }
    let last = node.second(NAMESPACE);
    let chains = node.end();
    let windows = windows(&chains);
    assert_eq!(windows.iter().map(|w| w.wall_ns).sum::<u64>(), last - first);
    assert_eq!(windows.first().map(|w| w.t0_ms * 1_000_000), Some(first));
    assert!(windows.windows(2).all(|pair| pair[0].t1_ms == pair[1].t0_ms) && gaps(&chains).is_empty());
    let steps = chains.records[&AWARD].iter().filter_map(|record| match &record.body {
        Body::Clock(clock) => Some(clock.system_ms as i64 - clock.time_ms as i64),
        _ => None,
    });
    assert_eq!(steps.collect::<Vec<_>>(), [hour, 0, -hour, 0]);
}

/// A load that always runs a kernel, on some of the SMs.
fn small_kernels(intensity: u32) -> Work {
    Work { intensity, time_percent: 100, ..work() }
}

fn activity(source: ActivitySource, average_millionths: u32) -> Option<Activity> {
    Some(Activity { source, average_millionths })
}

#[test]
fn activity_is_that_of_the_sms_where_the_card_has_performance_monitoring() {
    for (model, source) in [
        ("H100", ActivitySource::SmActive),
        ("B200", ActivitySource::SmActive),
        ("L40S", ActivitySource::Utilization),
        ("T4", ActivitySource::Utilization),
    ] {
        let mut node = Metered::of(model);
        node.seconds(7, NAMESPACE);
        let first = node.fleet.load(small_kernels(30)).expect("load");
        // The fourth of them is the look at the tenth second.
        node.seconds(7, NAMESPACE);
        node.fleet.end(first).expect("end");
        node.fleet.load(small_kernels(80)).expect("load");
        node.seconds(6, NAMESPACE);
        let seen = node.last.as_ref().expect("inventory").devices[0].sensors.gpu_utilization_percent;
        assert_eq!(seen, Some(100), "{model}: some kernel always ran");
        let windows = windows(&node.end());
        let last = windows.last().expect("a window");
        assert_eq!((last.wall_ns, windows.len()), (10 * SECOND, 2), "{model}");
        // Four seconds at 30 % and six at 80 %.
        let average = if source == ActivitySource::SmActive { 600_000 } else { 1_000_000 };
        assert_eq!(last.activity, activity(source, average), "{model}");
    }
}

#[test]
fn a_window_has_one_source_of_activity_also_when_monitoring_fails_for_a_while() {
    let mut node = Metered::new();
    node.fleet.load(small_kernels(30)).expect("load");
    node.seconds(10, NAMESPACE);
    let before = node.seconds(3, NAMESPACE);
    node.monitoring(false);
    node.second(NAMESPACE);
    node.monitoring(true);
    // Left alone for a minute; the first sample after it has nothing to compare with.
    let rest = node.seconds(61, NAMESPACE);
    let last = node.seconds(10, NAMESPACE);
    let chains = node.end();

    let windows = windows(&chains);
    let of = |source| windows.iter().filter(move |w| w.activity.map(|a| a.source) == Some(source));
    assert!(of(ActivitySource::SmActive).all(|w| w.activity == activity(ActivitySource::SmActive, 300_000)));
    let fallen_back: Vec<&Used> = of(ActivitySource::Utilization).collect();
    let at = |ns: u64| ns / 1_000_000;
    assert_eq!(fallen_back.first().map(|w| w.t0_ms), Some(at(before)), "from the look that failed");
    assert_eq!(fallen_back.last().map(|w| w.t1_ms), Some(at(rest)));
    assert!(fallen_back.iter().all(|w| w.activity == activity(ActivitySource::Utilization, 1_000_000)));
    assert!(of(ActivitySource::SmActive).any(|w| w.t0_ms == at(rest)) && gaps(&chains).is_empty());
    assert_eq!(windows.last().map(|w| w.t1_ms), Some(at(last)));
    assert!(windows.len() < 14, "a source that fails does not cut each second: {}", windows.len());
}

#[test]
fn an_instance_is_metered_by_its_own_activity_and_without_the_cards_energy() {
    let mut node = Metered::new();
    node.split(&["3g.40gb", "1g.10gb"]);
    node.second(NAMESPACE);
    let ids: Vec<Option<u32>> =
        node.last.as_ref().expect("inventory").devices[0].mig.iter().map(|m| m.gpu_instance).collect();
    // The tenant's instance is the first; another one's work is not its own.
    node.fleet.load(Work { gpu_instance: ids[0], ..small_kernels(30) }).expect("load");
    node.fleet.load(Work { gpu_instance: ids[1], pid: 2, ..small_kernels(90) }).expect("load");
    node.seconds(20, NAMESPACE);
    let windows = windows(&node.end());
    assert!(!windows.is_empty() && windows.iter().all(|w| w.device.as_str().starts_with("MIG-")));
    assert!(windows.iter().all(|w| w.energy.is_none()), "energy is the whole card's");
    let last = windows.last().expect("a window");
    assert_eq!(last.activity, activity(ActivitySource::SmActive, 300_000));
}

#[test]
fn a_split_card_that_is_lost_is_a_gap_of_its_instances() {
    let mut node = Metered::new();
    node.split(&["3g.40gb"]);
    node.seconds(3, NAMESPACE);
    let seen = node.second(NAMESPACE);
    let card = node.last.as_ref().expect("inventory").devices[0].identity.uuid.clone();
    node.fleet.inject(Some(0), Fault::Health { health: DeviceHealth::Lost }).expect("lose");
    node.seconds(70, NAMESPACE);
    let chains = node.end();
    let gaps = gaps(&chains);
    assert!(gaps.iter().all(|gap| gap.reason == GapReason::DeviceLost), "{gaps:?}");
    assert_eq!(gaps.first().map(|gap| gap.t0_ms * 1_000_000), Some(seen));
    assert!(gaps.len() > 1, "told while it lasts");
    let of_card = |body: &Body| match body {
        Body::Used(used) => used.device.as_str() == card,
        Body::Gap(gap) => gap.device.as_ref().is_some_and(|device| device.as_str() == card),
        _ => false,
    };
    assert!(!chains.all().any(|record| of_card(&record.body)), "it is not a device beside its instances");
}

#[tokio::test]
async fn metrics_of_metering_are_the_totals_of_the_chains() {
    let mut node = Metered::new();
    node.second(None);
    node.fleet.load(work()).expect("load");
    node.seconds(24, NAMESPACE);
    node.fleet.inject(Some(0), Fault::Health { health: DeviceHealth::Lost }).expect("lose");
    node.seconds(8, NAMESPACE);
    node.fleet.inject(Some(0), Fault::Recover).expect("find");
    node.seconds(20, NAMESPACE);
    // At a full tenth second no window is open, so that all is told.
    node.seconds(17, None);
    let counter = node.keeper.counter().expect("keeper");
    // The answer comes after all that was put before.
    assert!(counter.next().await.is_some());
    drop(counter);
    let metrics = Metrics::new("n1").expect("definitions");
    metrics.show_metering(&node.keeper.kept(), 0);
    let text = metrics.render().expect("text");
    let chains = node.end();

    let mut seconds = 0.0;
    for (award, records) in &chains.records {
        let name = if award.is_idle() { "idle".to_owned() } else { award.to_string() };
        let name = format!("award=\"{name}\"");
        let mut devices: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        let mut gaps: BTreeMap<String, u64> = BTreeMap::new();
        for record in records {
            match &record.body {
                Body::Used(used) => {
                    let sums = devices.entry(used.device.as_str()).or_default();
                    sums.0 += used.wall_ns;
                    sums.1 += used.energy.map_or(0, |energy| energy.used_mj);
                }
                Body::Gap(gap) => {
                    let reason = serde_json::to_value(gap.reason).expect("json");
                    *gaps.entry(format!("reason={reason}")).or_default() += gap.t1_ms - gap.t0_ms;
                }
                _ => {}
            }
        }
        for (device, (wall_ns, energy_mj)) in devices {
            let shown = |metric: &str| node::http::value(&text, metric, &[&name, device]).expect("a series");
            assert!((shown("vendue_metered_gpu_seconds_total") * 1e9 - wall_ns as f64).abs() < 1.0, "{text}");
            assert!(
                (shown("vendue_metered_energy_joules_total") * 1e3 - energy_mj as f64).abs() < 1e-6,
                "{text}"
            );
            seconds += wall_ns as f64 / 1e9;
        }
        for (reason, ms) in gaps {
            let shown = node::http::value(&text, "vendue_metering_gap_seconds_total", &[&name, &reason]);
            assert_eq!(shown.map(|s| (s * 1e3).round()), Some(ms as f64), "{reason} {text}");
        }
    }
    // Two devices; ten seconds of the first are a gap.
    let lost =
        r#"vendue_metering_gap_seconds_total{award="0000000000000001",reason="device_lost",node="n1"} "#;
    assert!(text.contains(lost) && seconds > 120.0, "{seconds} {text}");
}
