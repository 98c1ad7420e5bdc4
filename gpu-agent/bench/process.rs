//! Numbers of the agent as a process: start, memory, CPU, scrapes, Xids, energy.

use std::time::{Duration, Instant};

use serde_json::Value;
use vendue_gpu_sim::clock::Clock;
use vendue_gpu_sim::fault::Fault;
use vendue_gpu_sim::fleet::Fleet;
use vendue_gpu_sim::load::Work;
use vendue_receipts::{Body, Record};

use crate::node::agent::Agent;
use crate::node::http::Connection;
use crate::node::kubelet::Kubelet;
use crate::node::receipts::Chains;
use crate::node::{LIMIT, Node, NodeError, Programs, condition, wrong};
use crate::report::{Report, quantile, say};

/// A Prometheus that asks often.
const SCRAPE_EVERY: u32 = 5;

/// A megabyte.
const MB: f64 = 1e6;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Starts of the agent.
    pub starts: usize,
    /// Seconds of ordinary work in which CPU time is measured.
    pub seconds: u32,
    /// Scrapes.
    pub scrapes: usize,
    /// Xids.
    pub xids: u32,
}

/// A node with GPUs of one model, half of them an award's, a quarter another's, and one a local Pod's.
struct Busy {
    node: Node,
    fleet: Fleet,
    _kubelet: Kubelet,
}

impl Busy {
    fn start(programs: &Programs, devices: usize) -> Result<Self, NodeError> {
        let node = Node::start()?;
        let fleet = node.gpus(&[("H100", devices)], Clock::default())?;
        node.install(&programs.library)?;
        let kubelet = node.kubelet()?;
        let state = fleet.machine()?.state().clone();
        let uuids: Vec<&str> = state.devices.iter().map(|device| device.uuid.as_str()).collect();
        let (first, rest) = uuids.split_at(devices / 2);
        let (second, rest) = rest.split_at(devices / 4);
        let local = rest.get(..1).unwrap_or_default();
        kubelet.give(&[
            ("vendue-a-0000000000000001", first),
            ("vendue-a-0000000000000002", second),
            ("default", local),
        ]);
        Ok(Self { node, fleet, _kubelet: kubelet })
    }

    /// Starts the agent, and says how long it takes to the GpuNode with all devices.
    fn agent(&self, programs: &Programs, devices: usize) -> Result<(Agent, f64), NodeError> {
        let agent = self.node.agent(&programs.agent)?;
        let written = self.node.api.wait(LIMIT, |status| status["deviceCount"] == devices);
        let (_, at) = written.ok_or_else(|| agent.late("first GpuNode"))?;
        let took = at.saturating_duration_since(agent.started);
        Ok((agent, took.as_secs_f64()))
    }
}

/// Times of scrapes in milliseconds, and the bytes of one.
fn scrapes(agent: &Agent, count: usize) -> Result<(Vec<f64>, usize), NodeError> {
    let (mut connection, mut times, mut bytes) = (Connection::open(agent.address)?, vec![], 0);
    for _ in 0..count {
        let asked = Instant::now();
        let (code, text) = connection.get("/metrics")?;
        times.push(asked.elapsed().as_secs_f64() * 1e3);
        if code != 200 {
            return Err(wrong("GET /metrics")(format!("code {code}")));
        }
        bytes = text.len();
        // So that the scrapes meet every moment of the agent's second.
        std::thread::sleep(Duration::from_micros(3_700));
    }
    Ok((times, bytes))
}

fn tell_scrapes(report: &mut Report, key: &'static str, times: &[f64], bytes: usize) {
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        if let Some(value) = quantile(times, share) {
            report.detail(format!("{key}: {name} of {} (ms)", times.len()), value);
        }
    }
    report.detail(format!("{key}: bytes of a scrape"), bytes as f64);
    if let Some(p99) = quantile(times, 0.99) {
        report.key(key, p99);
    }
}

/// Ordinary work: loads change every two seconds, Prometheus asks every five. Tells the share of a core that was used.
fn work(busy: &Busy, agent: &Agent, seconds: u32, report: &mut Report) -> Result<(), NodeError> {
    let (mut connection, mut loads) = (Connection::open(agent.address)?, vec![]);
    let (began, before, threads) = (Instant::now(), agent.cpu()?, agent.cpu_of_threads()?);
    for second in 0..seconds {
        if second % 2 == 0 {
            for load in loads.drain(..) {
                busy.fleet.end(load)?;
            }
            for device in 0..6 {
                let intensity = (second * 7 + device * 13) % 101;
                let work =
                    Work { pid: 100 + device, device, intensity, memory_mib: 40_000, ..Work::default() };
                loads.push(busy.fleet.load(work)?);
            }
        }
        if second % SCRAPE_EVERY == 0 {
            connection.get("/metrics")?;
        }
        let due = began + Duration::from_secs(u64::from(second) + 1);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let share = |used: Duration, before: Duration| {
        used.saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64()
    };
    report.key("cpu_core_share_8gpu", share(agent.cpu()?, before));
    for (name, used) in agent.cpu_of_threads()? {
        let before = threads.get(&name).copied().unwrap_or_default();
        report.detail(format!("ordinary work: share of a core, thread {name}"), share(used, before));
    }
    Ok(())
}

/// Seconds from an Xid to the GpuNode that says so, one on each of the first devices.
fn xids(busy: &Busy, agent: &Agent, count: u32) -> Result<Vec<f64>, NodeError> {
    let mut times = vec![];
    for device in 0..count {
        let happened = Instant::now();
        busy.fleet.inject(Some(device), Fault::Xid { code: 119 })?;
        let is_told = |status: &Value| {
            status["devices"][device as usize]["health"] == "Failed"
                && condition(status, "Ready")["status"] == "False"
        };
        let told = busy.node.api.wait(LIMIT, is_told);
        let (_, at) = told.ok_or_else(|| agent.late(format!("condition after the Xid of GPU {device}")))?;
        times.push(at.saturating_duration_since(happened).as_secs_f64());
    }
    Ok(times)
}

/// The largest difference, over the devices, between the energy in the receipts and what the simulator knows, as a share.
fn energy_error(busy: &Busy, report: &mut Report) -> Result<f64, NodeError> {
    let chains = Chains::read(&busy.node.state_dir())?;
    let totals = chains.verify()?;
    report.detail("receipts: records of the work", chains.count() as f64);
    let mut worst: f64 = 0.0;
    for device in &busy.fleet.machine()?.state().devices {
        let of_device: Vec<(u64, u64)> = chains.all().filter_map(|r| span(r, &device.uuid)).collect();
        let ends = of_device.iter().map(|s| s.0).min().zip(of_device.iter().map(|s| s.1).max());
        let sums = totals.iter().find(|(name, _)| name.as_str() == device.uuid).map(|(_, sums)| *sums);
        let (Some((from, to)), Some(sums)) = (ends, sums) else {
            return Err(wrong("receipts of the work")(format!("none of {}", device.uuid)));
        };
        let metered = sums.awards_mj + sums.idle_mj + sums.gap_mj;
        let truth = busy.fleet.energy_between(device.index, from * 1_000_000, to * 1_000_000)?.millijoules();
        worst = worst.max(metered.abs_diff(truth) as f64 / truth.max(1) as f64);
    }
    Ok(worst)
}

/// Begin and end of a window or gap of a device.
pub fn span(record: &Record, uuid: &str) -> Option<(u64, u64)> {
    match &record.body {
        Body::Used(used) if used.device.as_str() == uuid => Some((used.t0_ms, used.t1_ms)),
        Body::Gap(gap) if gap.device.as_ref().is_some_and(|d| d.as_str() == uuid) => {
            Some((gap.t0_ms, gap.t1_ms))
        }
        _ => None,
    }
}

/// Everything about an agent with eight GPUs.
///
/// # Errors
/// When anything does not go as it should.
pub fn eight(programs: &Programs, plan: &Plan, report: &mut Report) -> Result<(), NodeError> {
    let mut starts = vec![];
    say("start to first GpuNode");
    for _ in 1..plan.starts {
        starts.push(Busy::start(programs, 8)?.agent(programs, 8)?.1);
    }
    let busy = Busy::start(programs, 8)?;
    let (agent, took) = busy.agent(programs, 8)?;
    starts.push(took);
    report.key("start_to_gpunode_s", quantile(&starts, 1.0).unwrap_or(f64::NAN));
    report.detail("start to first GpuNode: median (s)", quantile(&starts, 0.5).unwrap_or(f64::NAN));
    // What happens once is over when Pods are known and the first receipts are stored.
    agent.metrics_when("first receipts", |text| {
        crate::node::http::value(text, "vendue_agent_receipts_stored_total", &[]).is_some_and(|n| n > 0.0)
    })?;
    say("memory and CPU of ordinary work");
    let writes = busy.node.api.writes();
    work(&busy, &agent, plan.seconds, report)?;
    report.detail("ordinary work: seconds", f64::from(plan.seconds));
    report.detail("ordinary work: writes of the GpuNode", (busy.node.api.writes() - writes) as f64);
    report.detail("ordinary work: resident memory (MB)", agent.memory("VmRSS")? as f64 / MB);
    report.detail("ordinary work: of which not of files (MB)", agent.memory("RssAnon")? as f64 / MB);
    say("scrapes");
    let (times, bytes) = scrapes(&agent, plan.scrapes)?;
    tell_scrapes(report, "scrape_ms_8gpu_p99", &times, bytes);
    say("Xids");
    let times = xids(&busy, &agent, plan.xids.min(8))?;
    report.key("xid_to_condition_s", quantile(&times, 1.0).unwrap_or(f64::NAN));
    report.detail("Xid to condition: median (s)", quantile(&times, 0.5).unwrap_or(f64::NAN));
    report.key("rss_mb_8gpu", agent.memory("VmHWM")? as f64 / MB);
    let status = agent.stop()?;
    if !status.success() {
        return Err(wrong("end of the agent")(status));
    }
    let error = energy_error(&busy, report)?;
    report.key("energy_integral_error", error);
    Ok(())
}

/// An agent with 64 GPUs on which 500 processes work.
///
/// # Errors
/// When anything does not go as it should.
pub fn sixty_four(programs: &Programs, plan: &Plan, report: &mut Report) -> Result<(), NodeError> {
    say("64 GPUs, 500 processes");
    let busy = Busy::start(programs, 64)?;
    for pid in 0..500 {
        let device = pid % 64;
        busy.fleet.load(Work {
            pid: 1_000 + pid,
            device,
            intensity: 10,
            memory_mib: 100,
            ..Work::default()
        })?;
    }
    let (agent, took) = busy.agent(programs, 64)?;
    report.detail("64 GPUs: start to first GpuNode (s)", took);
    let (began, before) = (Instant::now(), agent.cpu()?);
    let (times, bytes) = scrapes(&agent, plan.scrapes)?;
    tell_scrapes(report, "scrape_ms_64gpu_p99", &times, bytes);
    let share = agent.cpu()?.saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64();
    report.detail("64 GPUs: share of a core while scraped without end", share);
    let (began, before) = (Instant::now(), agent.cpu()?);
    std::thread::sleep(Duration::from_secs(u64::from(plan.seconds / 3)));
    let share = agent.cpu()?.saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64();
    report.detail("64 GPUs: share of a core otherwise", share);
    report.detail("64 GPUs: peak of resident memory (MB)", agent.memory("VmHWM")? as f64 / MB);
    Ok(())
}
