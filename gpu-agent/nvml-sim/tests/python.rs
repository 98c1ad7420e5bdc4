//! NVIDIA's Python bindings, gpustat and nvitop read the built library; each value must be what the simulated machine says.
//!
//! Needs Python with `tests/python/requirements.txt` installed: `cargo verify` installs it and runs this test. By hand,
//! `VENDUE_SIM_PYTHON` names the interpreter (default: `python3`) for
//! `cargo test -p vendue-nvml-sim --test python -- --ignored`.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

mod common;
#[path = "python/machine.rs"]
mod simulated;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use vendue_nvml_sim::machine::{Machine, Moment, Running};
use vendue_nvml_sim::telemetry;

fn processes(running: impl Iterator<Item = Running>) -> Value {
    let row = |p: Running| json!([p.pid, p.memory_bytes, p.gpu_instance.unwrap_or(u32::MAX)]);
    Value::Array(running.map(row).collect())
}

fn expected(moment: &Moment<'_>) -> Value {
    let (t, c) = (telemetry::read(moment), moment.condition());
    let part = |i: &vendue_nvml_sim::state::MigInstance| {
        let kind = moment.profile.mig_profile(&i.profile).expect("instance profile");
        let own = moment.processes().into_iter().filter(|p| p.gpu_instance == Some(i.gpu_instance_id));
        json!({
            "uuid": i.uuid,
            "memory": kind.memory_mib << 20,
            "multiprocessors": kind.multiprocessors,
            "instance": i.gpu_instance_id,
            "processes": processes(own),
        })
    };
    let idle = u64::from(c.busy == 0);
    json!({
        "name": moment.profile.product_name,
        "uuid": &*c.uuid,
        "pci": moment.device.pci.long(),
        "memory": [t.memory_total_bytes, t.memory_reserved_bytes, t.memory_used_bytes, t.memory_free_bytes],
        "utilisation":
            if c.mig.enabled { json!("NVMLError_NotSupported") } else { json!([t.gpu_percent, t.memory_percent]) },
        "power": t.power_milliwatts,
        "powerLimit": moment.profile.power_limit_milliwatts,
        "energy": t.energy_millijoules,
        "temperature": t.temperature_celsius,
        "smClock": t.sm_clock_mhz,
        "reasons": c.throttle_reasons | idle,
        "ecc": [c.ecc.corrected, c.ecc.uncorrected],
        "rows": if moment.profile.row_remapping && c.mig.instances.is_empty() {
            json!([c.rows.correctable, c.rows.uncorrectable, u32::from(c.rows.pending), u32::from(c.rows.failed)])
        } else {
            json!("NVMLError_NotSupported")
        },
        "fields": [[0, t.energy_millijoules], [0, t.memory_temperature_celsius]],
        "processes": processes(moment.processes().into_iter()),
        "mig": c.mig.instances.iter().map(part).collect::<Vec<_>>(),
    })
}

fn watched(moment: &Moment<'_>) -> Value {
    let t = telemetry::read(moment);
    let load = if moment.condition().mig.enabled { Value::Null } else { json!(t.gpu_percent) };
    json!([
        moment.device.index,
        &*moment.condition().uuid,
        t.temperature_celsius,
        load,
        t.power_milliwatts / 1000,
        t.memory_used_bytes >> 20,
        t.memory_total_bytes >> 20,
    ])
}

fn topped(moment: &Moment<'_>) -> Value {
    let t = telemetry::read(moment);
    let load = if moment.condition().mig.enabled { json!("N/A") } else { json!(t.gpu_percent) };
    json!([
        &*moment.condition().uuid,
        t.temperature_celsius,
        load,
        t.power_milliwatts,
        t.memory_used_bytes,
        t.memory_total_bytes,
    ])
}

fn now(machine: &Machine) -> u64 {
    machine.at_real(0)
}

#[test]
#[ignore = "needs Python with tests/python/requirements.txt"]
fn the_python_tools_agree_on_each_value() {
    let dir = tempfile::tempdir().expect("dir");
    let fleet = simulated::fleet(dir.path()).expect("fleet");
    fleet.install(&common::library()).expect("install");
    let python = std::env::var("VENDUE_SIM_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/read.py");
    let output =
        Command::new(&python).arg(script).env("LD_LIBRARY_PATH", dir.path()).output().unwrap_or_else(|e| {
            panic!("run {python}: {e}; install python3, or let VENDUE_SIM_PYTHON name one")
        });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");

    let machine = fleet.machine().expect("machine");
    let at = now(&machine);
    assert_eq!(answer["driver"], machine.state().driver.version.as_str());
    for (moment, seen) in machine.devices(at).zip(answer["devices"].as_array().expect("devices")) {
        let expected = expected(&moment);
        for (name, value) in expected.as_object().expect("object") {
            assert_eq!(&seen[name], value, "device {} {name}", moment.device.index);
        }
    }
    assert_eq!(answer["devices"].as_array().map(Vec::len), Some(simulated::DEVICES));
    let gpustat: Vec<Value> = machine.devices(at).map(|m| watched(&m)).collect();
    assert_eq!(answer["gpustat"], Value::Array(gpustat));
    let nvitop: Vec<Value> = machine.devices(at).map(|m| topped(&m)).collect();
    assert_eq!(answer["nvitop"], Value::Array(nvitop));
}
