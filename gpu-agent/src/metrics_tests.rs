//! What a scrape shows, and in which form.

use super::*;
use crate::health::judge::Times;
use crate::health::xid::Policy;
use crate::inventory::{DeviceIdentity, NodeInventory};
use crate::observe::Problem;

fn observation() -> Observation {
    let identity = DeviceIdentity {
        index: 0,
        uuid: "GPU-1".to_owned(),
        product_name: "NVIDIA L40S".to_owned(),
        memory_bytes: 46_068 << 20,
        pci_bus_id: "00000000:01:00.0".to_owned(),
        minor: None,
    };
    let sensors = Sensors {
        gpu_utilization_percent: Some(25),
        power_milliwatts: Some(33_000),
        energy_millijoules: Some(1_500),
        ecc_corrected: Some(2),
        ..Sensors::default()
    };
    let device = DeviceReading { sensors, ..DeviceReading::of(identity) };
    let inventory = NodeInventory { devices: vec![device], ..NodeInventory::default() };
    let at = Timestamp::from_second(10).expect("time");
    Observation { last_good: Some((inventory, at)), problem: None }
}

#[test]
fn names_and_types_follow_prometheus() {
    let metrics = Metrics::new("n1").expect("definitions");
    let judge = Judge::new(Policy::default(), Times::default(), vec![]);
    let mut observation = observation();
    let (inventory, _) = observation.last_good.as_mut().expect("inventory");
    inventory.devices[0].activity.sm_millionths = Some(500_000);
    metrics.show(&observation, &judge, &Probes::new(), true);
    metrics.count_xid(79, Class::Fatal);
    metrics.count_publish(true, Duration::ZERO, Timestamp::UNIX_EPOCH);
    metrics.count_read(&Outcome::Hung { since: Duration::ZERO }, Duration::ZERO);
    metrics.count_delivery(true);
    metrics.show_metering(&Kept { records: 3, ..Kept::default() }, 4);
    let text = metrics.render().expect("text");
    let types: Vec<(&str, &str)> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    assert!(types.len() >= 20, "{types:?}");
    for (name, kind) in types {
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert!(name.starts_with("vendue_gpu_") || name.starts_with("vendue_agent_"), "{name}");
        for unit in ["_percent", "_ms", "_milliseconds", "_mib", "_mhz", "_milliwatts", "_kilobytes"] {
            assert!(!name.contains(unit), "{name} is in no base unit");
        }
    }
    for line in [
        "vendue_agent_receipts_stored_total{node=\"n1\"} 3",
        "vendue_agent_metering_looks_lost_total{node=\"n1\"} 4",
    ] {
        assert!(text.contains(line), "{line}");
    }
}

#[test]
fn a_device_adds_a_fixed_number_of_series() {
    let series = |count: u32| {
        let metrics = Metrics::new("n1").expect("definitions");
        let judge = Judge::new(Policy::default(), Times::default(), vec![]);
        let mut observation = observation();
        let (inventory, _) = observation.last_good.as_mut().expect("inventory");
        let mut device = inventory.devices.remove(0);
        device.activity.sm_millionths = Some(1);
        device.sensors = Sensors {
            memory_used_bytes: Some(1),
            memory_utilization_percent: Some(1),
            temperature_celsius: Some(1),
            sm_clock_mhz: Some(1),
            memory_clock_mhz: Some(1),
            ecc_uncorrected: Some(1),
            ..device.sensors
        };
        let mut probes = Probes::new();
        for n in 0..count {
            device.identity.uuid = format!("GPU-{n}");
            inventory.devices.push(device.clone());
            let probe = GpuProbe {
                memory_mib: Some(1),
                bandwidth_megabytes_per_second: Some(1),
                sm_clock_mhz: Some(1),
                ..GpuProbe::without_figures(ProbeResult::Passed, "Passed", String::new())
            };
            probes.insert(device.identity.uuid.clone(), probe);
        }
        metrics.show(&observation, &judge, &probes, true);
        let text = metrics.render().expect("text");
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    // Nine gauges, four of the probe, health, energy, two kinds of memory errors.
    assert_eq!(series(64) - series(0), 64 * 17);
}

#[test]
fn a_scrape_sees_what_was_shown_before_or_after_and_nothing_in_between() {
    let metrics = Metrics::new("n1").expect("definitions");
    let judge = Judge::new(Policy::default(), Times::default(), vec![]);
    let shown = observation();
    metrics.show(&shown, &judge, &Probes::new(), true);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::Relaxed;
    let whole = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(order) {
                metrics.show(&shown, &judge, &Probes::new(), true);
            }
        });
        // A counter that is gone or at nothing for a moment counts whole again afterwards.
        let energy = r#"vendue_gpu_energy_joules_total{gpu_uuid="GPU-1",model="L40S",node="n1"} 1.5"#;
        let whole = (0..2_000).filter(|_| metrics.render().is_ok_and(|text| text.contains(energy))).count();
        is_over.store(true, order);
        whole
    });
    assert_eq!(whole, 2_000);
}

#[test]
fn a_probe_shows_what_it_measured_and_counts() {
    let metrics = Metrics::new("n1").expect("definitions");
    let judge = Judge::new(Policy::default(), Times::default(), vec![]);
    let probe = |result| GpuProbe {
        memory_mib: Some(2),
        bandwidth_megabytes_per_second: Some(3),
        sm_clock_mhz: Some(4),
        ..GpuProbe::without_figures(result, "R", String::new())
    };
    let show = |probe: GpuProbe| {
        metrics.show(&observation(), &judge, &Probes::from([("GPU-1".to_owned(), probe)]), true);
        let lines = device_lines(&metrics).into_iter();
        lines.filter(|l| l.contains("probe") || l.contains("healthy")).collect::<Vec<_>>()
    };
    let labels = r#"{gpu_uuid="GPU-1",model="L40S",node="n1"}"#;
    let expected = [
        format!("vendue_gpu_healthy{labels} 0"),
        format!("vendue_gpu_probe_memory_bandwidth_bytes_per_second{labels} 3000000"),
        format!("vendue_gpu_probe_memory_bytes{labels} 2097152"),
        format!("vendue_gpu_probe_passed{labels} 0"),
        format!("vendue_gpu_probe_sm_clock_hertz{labels} 4000000"),
    ];
    assert_eq!(show(probe(ProbeResult::Failed)), expected);
    let not_run = GpuProbe::without_figures(ProbeResult::NotRun, "NoCudaDriver", String::new());
    assert_eq!(show(not_run.clone()), [format!("vendue_gpu_healthy{labels} 1")]);
    metrics.count_probe(&not_run);
    let counted = r#"vendue_agent_probes_total{reason="NoCudaDriver",result="not_run",node="n1"} 1"#;
    assert!(metrics.render().expect("text").contains(counted));
}

fn device_lines(metrics: &Metrics) -> Vec<String> {
    let text = metrics.render().expect("text");
    text.lines().filter(|l| l.starts_with("vendue_gpu_")).map(str::to_owned).collect()
}

#[test]
fn device_metrics_are_in_base_units_and_go_when_reading_fails() {
    let metrics = Metrics::new("n1").expect("definitions");
    let mut observation = observation();
    let judge = Judge::new(Policy::default(), Times::default(), vec![]);
    for _ in 0..2 {
        metrics.show(&observation, &judge, &Probes::new(), true);
    }
    let labels = r#"{gpu_uuid="GPU-1",model="L40S",node="n1"}"#;
    let expected = [
        r#"vendue_gpu_ecc_errors_total{gpu_uuid="GPU-1",kind="corrected",model="L40S",node="n1"} 2"#
            .to_owned(),
        format!("vendue_gpu_energy_joules_total{labels} 1.5"),
        format!("vendue_gpu_healthy{labels} 1"),
        format!("vendue_gpu_memory_bytes{labels} 48305799168"),
        format!("vendue_gpu_power_watts{labels} 33"),
        format!("vendue_gpu_utilization_ratio{labels} 0.25"),
    ];
    assert_eq!(device_lines(&metrics), expected);

    observation.problem = Some(Problem::Hung);
    metrics.show(&observation, &judge, &Probes::new(), false);
    assert!(device_lines(&metrics).is_empty());
    assert!(metrics.render().expect("text").contains("vendue_agent_ready{node=\"n1\"} 0"));
}
