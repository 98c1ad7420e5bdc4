//! The agent beside the tools that users have: NVIDIA's Python bindings (`nvidia-ml-py`), gpustat and nvitop read the same
//! simulated machine, and each value that they show is compared with what the agent prints and serves.
//!
//! Input: a Python that has them. Output: the pairs of values. Invariant: a value that one side lacks is a difference, unless
//! both say that the device does not offer it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::node::http::{Connection, value};
use crate::node::{Node, NodeError, Programs, io, wrong};

#[path = "../nvml-sim/tests/python/machine.rs"]
#[allow(dead_code)]
mod simulated;

/// One value, as a tool and the agent have it.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Which value, of which device, read by which tool.
    pub what: String,
    /// What the tool says.
    pub theirs: Value,
    /// What the agent says.
    pub ours: Value,
}

impl Pair {
    /// Whether both say the same.
    #[must_use]
    pub fn agrees(&self) -> bool {
        match (self.theirs.as_f64(), self.ours.as_f64()) {
            (Some(theirs), Some(ours)) => theirs == ours,
            _ => self.theirs == self.ours,
        }
    }
}

/// A Python that can import the tools: the one that `VENDUE_SIM_PYTHON` names, or `python3`.
///
/// # Errors
/// Why there is none, and what to do.
pub fn python() -> Result<PathBuf, String> {
    let python = std::env::var_os("VENDUE_SIM_PYTHON").filter(|path| !path.is_empty());
    let python = PathBuf::from(python.unwrap_or_else(|| "python3".into()));
    let hint =
        "set VENDUE_SIM_PYTHON to a Python with gpu-agent/nvml-sim/tests/python/requirements.txt installed";
    let output = Command::new(&python).args(["-c", "import pynvml, gpustat, nvitop"]).output();
    match output {
        Ok(output) if output.status.success() => Ok(python),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().last().unwrap_or("import failed");
            Err(format!("{}: {last}; {hint}", python.display()))
        }
        Err(error) => Err(format!("run {}: {error}; {hint}", python.display())),
    }
}

/// Lets the tools and the agent read the same machine.
///
/// # Errors
/// When one of them fails.
pub fn compare(programs: &Programs, python: &Path) -> Result<Vec<Pair>, NodeError> {
    let node = Node::start()?;
    node.install(&programs.library)?;
    simulated::fleet(&node.path("gpus")).map_err(wrong("make the simulated machine"))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("nvml-sim/tests/python/read.py");
    let mut tools = Command::new(python);
    let theirs = json_of(tools.arg(script).env("LD_LIBRARY_PATH", node.path("gpus")), "the Python tools")?;
    let mut inventory = Command::new(&programs.agent);
    inventory.args(["inventory", "-o", "json", "--nvml-library"]).arg(node.library());
    let ours = json_of(inventory.env_remove("VENDUE_NVML_STATE"), "inventory of the agent")?;
    let agent = node.agent(&programs.agent)?;
    let metrics =
        agent.metrics_when("metrics of the devices", |text| text.contains("vendue_gpu_power_watts{"))?;
    let dcgm = Connection::open(agent.compatible)?.get("/metrics")?.1;
    Ok(pairs(&theirs, &ours, &Texts { metrics, dcgm }))
}

fn json_of(command: &mut Command, what: &str) -> Result<Value, NodeError> {
    let output = command.output().map_err(io(format!("run {what}")))?;
    if !output.status.success() {
        return Err(wrong(what)(String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(wrong(what))
}

/// What the agent serves.
struct Texts {
    metrics: String,
    dcgm: String,
}

/// What a tool says of something that the device does not offer is none, as with the agent.
fn plain(value: &Value) -> Value {
    match value.as_str() {
        Some(text) if text.starts_with("NVMLError_") || text == "N/A" => Value::Null,
        _ => value.clone(),
    }
}

fn pairs(theirs: &Value, ours: &Value, texts: &Texts) -> Vec<Pair> {
    let mut pairs = vec![pair("driver", &theirs["driver"], &ours["driverVersion"])];
    let cuda = theirs["cuda"].as_u64().unwrap_or_default();
    let cuda = json!(format!("{}.{}", cuda / 1000, cuda % 1000 / 10));
    pairs.push(pair("CUDA version", &cuda, &ours["cudaVersion"]));
    let none = vec![];
    let (theirs_of, ours_of) = (theirs["devices"].as_array(), ours["devices"].as_array());
    let (theirs_of, ours_of) = (theirs_of.unwrap_or(&none), ours_of.unwrap_or(&none));
    pairs.push(pair("number of devices", &json!(theirs_of.len()), &json!(ours_of.len())));
    for (index, (seen, device)) in theirs_of.iter().zip(ours_of).enumerate() {
        let mut named = |what: &str, theirs: &Value, ours: &Value| {
            pairs.push(pair(&format!("GPU {index} {what}"), theirs, ours));
        };
        of_inventory(seen, device, &mut named);
        of_metrics(seen, texts, &mut named);
        of_others(&theirs["gpustat"][index], &theirs["nvitop"][index], device, &mut named);
    }
    pairs
}

fn pair(what: &str, theirs: &Value, ours: &Value) -> Pair {
    Pair { what: what.to_owned(), theirs: plain(theirs), ours: ours.clone() }
}

/// The bindings and the agent's inventory.
fn of_inventory(seen: &Value, device: &Value, named: &mut impl FnMut(&str, &Value, &Value)) {
    let (identity, sensors) = (&device["identity"], &device["sensors"]);
    let rows = &seen["rows"];
    let fault = &device["fault"]["kind"];
    let is_hot = seen["reasons"].as_u64().unwrap_or_default() & 0x60 != 0;
    let temperature = &seen["fields"][1];
    let memory_temperature = if temperature[0] == 0 { &temperature[1] } else { &Value::Null };
    let is_set = |row: &Value| json!(row.as_u64().is_some_and(|row| row > 0));
    for (what, theirs, ours) in [
        ("name", &seen["name"], &identity["productName"]),
        ("UUID", &seen["uuid"], &identity["uuid"]),
        ("PCI address", &seen["pci"], &identity["pciBusId"]),
        ("minor", &seen["minor"], &identity["minor"]),
        ("memory", &seen["memory"][0], &identity["memoryBytes"]),
        ("memory reserved", &seen["memory"][1], &sensors["memoryReservedBytes"]),
        ("memory used", &seen["memory"][2], &sensors["memoryUsedBytes"]),
        ("memory free", &seen["memory"][3], &sensors["memoryFreeBytes"]),
        ("utilisation", &seen["utilisation"][0], &sensors["gpuUtilizationPercent"]),
        ("memory utilisation", &seen["utilisation"][1], &sensors["memoryUtilizationPercent"]),
        ("encoder", &seen["coders"][0], &sensors["encoderUtilizationPercent"]),
        ("decoder", &seen["coders"][1], &sensors["decoderUtilizationPercent"]),
        ("power", &seen["power"], &sensors["powerMilliwatts"]),
        ("energy", &seen["energy"], &sensors["energyMillijoules"]),
        ("energy as a field", &seen["fields"][0][1], &sensors["energyMillijoules"]),
        ("temperature", &seen["temperature"], &sensors["temperatureCelsius"]),
        ("memory temperature", memory_temperature, &sensors["memoryTemperatureCelsius"]),
        ("SM clock", &seen["smClock"], &sensors["smClockMhz"]),
        ("memory clock", &seen["memoryClock"], &sensors["memoryClockMhz"]),
        ("thermal slowdown", &json!(is_hot), &device["thermalSlowdown"]),
        ("ECC corrected", &seen["ecc"][0], &sensors["eccCorrected"]),
        ("ECC uncorrected", &seen["ecc"][1], &sensors["eccUncorrected"]),
        ("rows corrected", &rows[0], &sensors["rowsRemappedCorrected"]),
        ("rows uncorrected", &rows[1], &sensors["rowsRemappedUncorrected"]),
        ("rows pending", &is_set(&rows[2]), &json!(fault == "rowRemapPending")),
        ("rows failed", &is_set(&rows[3]), &json!(fault == "rowRemapFailed")),
        ("PCIe replays", &seen["replays"], &sensors["pcieReplays"]),
        ("PCIe generation", &seen["pcie"][0], &device["pcie"]["generation"]),
        ("PCIe width", &seen["pcie"][1], &device["pcie"]["width"]),
        ("highest PCIe generation", &seen["pcie"][2], &device["pcie"]["maxGeneration"]),
        ("highest PCIe width", &seen["pcie"][3], &device["pcie"]["maxWidth"]),
    ] {
        named(what, theirs, ours);
    }
    let none = vec![];
    let parts = |value: &Value| value["mig"].as_array().unwrap_or(&none).clone();
    let (theirs, ours) = (parts(seen), parts(device));
    named("number of MIG devices", &json!(theirs.len()), &json!(ours.len()));
    for (theirs, ours) in theirs.iter().zip(&ours) {
        named("MIG UUID", &theirs["uuid"], &ours["uuid"]);
        named("MIG memory", &theirs["memory"], &ours["memoryBytes"]);
        named("MIG GPU instance", &theirs["instance"], &ours["gpuInstance"]);
    }
}

/// A number by a factor; none of none.
fn scaled(value: &Value, by: impl Fn(f64) -> f64) -> Value {
    plain(value).as_f64().map_or(Value::Null, |value| json!(by(value)))
}

/// The bindings and what Prometheus gets from the agent.
fn of_metrics(seen: &Value, texts: &Texts, named: &mut impl FnMut(&str, &Value, &Value)) {
    let uuid = seen["uuid"].as_str().unwrap_or_default();
    let mib = |bytes: f64| (bytes / 1_048_576.0).floor();
    let own =
        |name: &str, more: &str| json!(value(&texts.metrics, name, &[&format!("gpu_uuid=\"{uuid}\""), more]));
    for (name, label, theirs) in [
        ("vendue_gpu_memory_bytes", "", scaled(&seen["memory"][0], |b| b)),
        ("vendue_gpu_memory_used_bytes", "", scaled(&seen["memory"][2], |b| b)),
        ("vendue_gpu_utilization_ratio", "", scaled(&seen["utilisation"][0], |p| p / 100.0)),
        ("vendue_gpu_memory_utilization_ratio", "", scaled(&seen["utilisation"][1], |p| p / 100.0)),
        ("vendue_gpu_power_watts", "", scaled(&seen["power"], |mw| mw / 1e3)),
        ("vendue_gpu_energy_joules_total", "", scaled(&seen["energy"], |mj| mj / 1e3)),
        ("vendue_gpu_temperature_celsius", "", scaled(&seen["temperature"], |c| c)),
        ("vendue_gpu_sm_clock_hertz", "", scaled(&seen["smClock"], |mhz| mhz * 1e6)),
        ("vendue_gpu_memory_clock_hertz", "", scaled(&seen["memoryClock"], |mhz| mhz * 1e6)),
        ("vendue_gpu_ecc_errors_total", "kind=\"corrected\"", scaled(&seen["ecc"][0], |n| n)),
        ("vendue_gpu_ecc_errors_total", "kind=\"uncorrected\"", scaled(&seen["ecc"][1], |n| n)),
    ] {
        named(&format!("{name}{label}"), &theirs, &own(name, label));
    }
    // Of a card in MIG mode dcgm-exporter's names tell of the instances.
    if seen["mig"].as_array().is_some_and(|parts| !parts.is_empty()) {
        return;
    }
    for (name, theirs) in [
        ("DCGM_FI_DEV_SM_CLOCK", scaled(&seen["smClock"], |mhz| mhz)),
        ("DCGM_FI_DEV_MEM_CLOCK", scaled(&seen["memoryClock"], |mhz| mhz)),
        ("DCGM_FI_DEV_GPU_TEMP", scaled(&seen["temperature"], |c| c)),
        ("DCGM_FI_DEV_POWER_USAGE", scaled(&seen["power"], |mw| mw / 1e3)),
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", scaled(&seen["energy"], |mj| mj)),
        ("DCGM_FI_DEV_GPU_UTIL", scaled(&seen["utilisation"][0], |p| p)),
        ("DCGM_FI_DEV_MEM_COPY_UTIL", scaled(&seen["utilisation"][1], |p| p)),
        ("DCGM_FI_DEV_FB_RESERVED", scaled(&seen["memory"][1], mib)),
        ("DCGM_FI_DEV_FB_USED", scaled(&seen["memory"][2], mib)),
        ("DCGM_FI_DEV_FB_FREE", scaled(&seen["memory"][3], mib)),
    ] {
        named(name, &theirs, &json!(value(&texts.dcgm, name, &[&format!("UUID=\"{uuid}\"")])));
    }
}

/// gpustat and nvitop, and the agent's inventory.
fn of_others(gpustat: &Value, nvitop: &Value, device: &Value, named: &mut impl FnMut(&str, &Value, &Value)) {
    let (identity, sensors) = (&device["identity"], &device["sensors"]);
    let whole = |value: &Value, by: u64| value.as_u64().map_or(Value::Null, |value| json!(value / by));
    let gpustat_of = [
        ("index", identity["index"].clone()),
        ("UUID", identity["uuid"].clone()),
        ("temperature", sensors["temperatureCelsius"].clone()),
        ("utilisation", sensors["gpuUtilizationPercent"].clone()),
        ("power", whole(&sensors["powerMilliwatts"], 1_000)),
        ("memory used", whole(&sensors["memoryUsedBytes"], 1 << 20)),
        ("memory", whole(&identity["memoryBytes"], 1 << 20)),
    ];
    for (place, (what, ours)) in gpustat_of.iter().enumerate() {
        named(&format!("{what} (gpustat)"), &gpustat[place], ours);
    }
    let nvitop_of = [
        ("UUID", &identity["uuid"]),
        ("temperature", &sensors["temperatureCelsius"]),
        ("utilisation", &sensors["gpuUtilizationPercent"]),
        ("power", &sensors["powerMilliwatts"]),
        ("memory used", &sensors["memoryUsedBytes"]),
        ("memory", &identity["memoryBytes"]),
    ];
    for (place, (what, ours)) in nvitop_of.iter().enumerate() {
        named(&format!("{what} (nvitop)"), &nvitop[place], ours);
    }
}
