//! `cargo market-bench`: the figures of a whole market on this machine, as JSON.
//!
//! Inputs: a market of its own with enough GPUs for all Jobs. Outputs: latencies from apply to award over twenty Jobs
//! applied at once and one after the other, from award to a running Ray program, and the memory of Vendue's processes.
//! Invariant: measures through the API, as a user sees it; nothing is asserted, the figures are for
//! `docs/benchmarks.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use futures::{StreamExt as _, future};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};
use vendue_crds::conditions::{self, job as types};
use vendue_crds::{ComputeJob, Provision};
use vendue_testbed::deploy::{Deployment, Follower, NAMESPACE, Site, Source};
use vendue_testbed::error::{Error, IoContext as _, Result};
use vendue_testbed::paths::Paths;
use vendue_testbed::progress::Progress;
use vendue_testbed::spec::{ClusterSpec, MarketSpec};
use vendue_testbed::wait::{self, Poll};
use vendue_testbed::{cleanup, process, signals};

const MARKET: &str = "bench";
/// The image is accepted by every Provision and present nowhere: the award is real, the Ray cluster never starts, and
/// twenty of them fit on a small machine.
const ABSENT_IMAGE: &str = "vendue.local/ray:absent";
const LIMIT: Duration = Duration::from_secs(120);
const RAY_IMAGE: &str = "vendue.local/ray:2.60.0";

/// Measures a market of five clusters on this machine.
#[derive(Parser)]
#[command(name = "market-bench", version)]
struct Args {
    /// Write the figures to this file; otherwise to standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Jobs whose award is timed.
    #[arg(long, default_value_t = 20)]
    jobs: usize,
    /// Jobs that really run, for the time from award to running.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

fn spec() -> MarketSpec {
    let provider = |name: &str, profile: &str| ClusterSpec::new(name).with_gpus(profile, 8);
    MarketSpec {
        name: MARKET.into(),
        clusters: vec![
            ClusterSpec::new("home"),
            provider("alpha", "h100"),
            provider("bravo", "a100"),
            provider("charlie", "l40s"),
            provider("delta", "h100"),
        ],
    }
}

fn job(name: &str, image: &str, entrypoint: &str) -> Value {
    json!({
        "apiVersion": "vendue.dev/v1alpha1", "kind": "Job", "metadata": { "name": name },
        "spec": { "maxPrice": "9.00", "runDeadlineSeconds": 600, "searchSeconds": 120, "train": {
            "image": image, "entrypoint": entrypoint, "volumeMib": 16,
            "workers": { "replicas": 1, "gpus": 1, "cpuMillis": 20, "memoryMib": 1024, "sharedMemoryMib": 128, "diskMib": 0 },
        } },
    })
}

/// Seconds until each of the Jobs had its award, each from its own apply. All are applied at the same time.
async fn time_awards(home: &Site, names: &[String]) -> Result<Vec<f64>> {
    let api: Api<ComputeJob> = Api::namespaced(home.client.clone(), "default");
    let mut changes = watcher(api.clone(), watcher::Config::default()).applied_objects().boxed();
    let apply = |name: &String| {
        let (api, name, started) = (api.clone(), name.clone(), Instant::now());
        async move {
            let params = PatchParams::apply("market-bench");
            let body = Patch::Apply(job(&name, ABSENT_IMAGE, "true"));
            let applied = api.patch(&name, &params, &body).await;
            applied.map(|_| (name, started)).map_err(|e| Error::kube("apply a Job", e))
        }
    };
    let started: BTreeMap<String, Instant> =
        future::try_join_all(names.iter().map(apply)).await?.into_iter().collect();
    let mut awarded: BTreeMap<String, f64> = BTreeMap::new();
    while awarded.len() < names.len() {
        let late = |_| {
            let detail = format!("{} of {} awarded", awarded.len(), names.len());
            Error::timeout("wait for awards", LIMIT, detail)
        };
        let Some(change) = tokio::time::timeout(LIMIT, changes.next()).await.map_err(late)? else { break };
        // A watch that broke starts again by itself.
        let Ok(job) = change else { continue };
        let (name, status) = (job.metadata.name.unwrap_or_default(), job.status.unwrap_or_default());
        if let Some(start) = started.get(&name)
            && conditions::is_true(&status.conditions, types::AWARDED)
        {
            awarded.entry(name).or_insert(start.elapsed().as_secs_f64());
        }
    }
    Ok(awarded.into_values().collect())
}

async fn delete_jobs(home: &Site) -> Result<()> {
    home.tools
        .kubectl(&["delete", "jobs.vendue.dev", "--all", "--namespace", "default", "--timeout", "180s"])
        .await?;
    Ok(())
}

/// Waits until every GPU of every provider is free again.
async fn all_free(deployment: &Deployment) -> Result<()> {
    for site in deployment.providers() {
        let api: Api<Provision> = Api::all(site.client.clone());
        wait::until(
            &format!("all GPUs of {} are free", site.name),
            LIMIT,
            Duration::from_millis(100),
            || async {
                let list =
                    api.list(&ListParams::default()).await.map_err(|e| Error::kube("list Provisions", e))?;
                let held: i32 =
                    list.items.into_iter().filter_map(|p| p.status).map(|s| s.total_gpus - s.free_gpus).sum();
                Ok(if held == 0 { Poll::Ready(()) } else { Poll::Pending(format!("{held} GPUs are held")) })
            },
        )
        .await?;
    }
    Ok(())
}

/// Seconds from the award to the running program of one Job.
async fn time_run(deployment: &Deployment, progress: &Progress, name: &str) -> Result<f64> {
    let home = deployment.home();
    let mut follower = Follower::new(home.client.clone(), "default", name);
    home.apply("default", &job(name, RAY_IMAGE, "python -c 'import time; time.sleep(600)'").to_string())
        .await?;
    follower.until_true(types::RUNNING, LIMIT, progress).await?;
    let at = |step: &str| follower.reached().get(step).copied().unwrap_or_default();
    Ok(at(types::RUNNING) - at(types::AWARDED))
}

/// Resident memory of each of Vendue's processes, by program, the largest over the clusters, in MB.
async fn memory(deployment: &Deployment) -> Result<BTreeMap<String, f64>> {
    let mut largest: BTreeMap<String, f64> = BTreeMap::new();
    for site in &deployment.sites {
        let api: Api<Pod> = Api::namespaced(site.client.clone(), NAMESPACE);
        let pods = api.list(&ListParams::default()).await.map_err(|e| Error::kube("list Pods", e))?;
        for pod in pods.items.into_iter().filter_map(|p| p.metadata.name) {
            for process in site.cluster.pod_processes(NAMESPACE, &pod).await? {
                let line = process::command_line(process.pid);
                let program = line.split(' ').next().and_then(|p| p.rsplit('/').next()).unwrap_or_default();
                if program.starts_with("vendue-") {
                    let megabytes = process::resident_bytes(process.pid) as f64 / 1e6;
                    let entry = largest.entry(program.to_owned()).or_default();
                    *entry = entry.max(megabytes);
                }
            }
        }
    }
    Ok(largest)
}

fn percentile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

fn summary(values: &[f64]) -> Value {
    json!({ "count": values.len(), "p50": percentile(values, 0.5), "p95": percentile(values, 0.95),
            "max": percentile(values, 1.0) })
}

async fn measure(deployment: &Deployment, args: &Args, progress: &Progress) -> Result<Value> {
    let home = deployment.home();
    let names: Vec<String> = (0..args.jobs).map(|i| format!("burst-{i}")).collect();
    let burst = progress.step("awards, all Jobs at once", time_awards(home, &names)).await?;
    progress.step("delete the Jobs", delete_jobs(home)).await?;
    progress.step("wait until all GPUs are free", all_free(deployment)).await?;
    let one_by_one = progress.step("awards, one Job after the other", async {
        let mut seconds = Vec::new();
        for i in 0..args.jobs {
            seconds.extend(time_awards(home, &[format!("single-{i}")]).await?);
            delete_jobs(home).await?;
        }
        Ok(seconds)
    });
    let one_by_one = one_by_one.await?;
    all_free(deployment).await?;
    let mut running = Vec::new();
    for i in 0..args.runs {
        let name = format!("run-{i}");
        running.push(progress.step(&format!("start {name}"), time_run(deployment, progress, &name)).await?);
        delete_jobs(home).await?;
        all_free(deployment).await?;
    }
    Ok(json!({
        "hardware": hardware(),
        "profile": if cfg!(debug_assertions) { "dev" } else { "release" },
        "clusters_ready_s": deployment.clusters_ready,
        "charts_ready_s": deployment.charts_ready,
        "apply_to_award_s": { "burst": summary(&burst), "one_by_one": summary(&one_by_one) },
        "award_to_running_s": summary(&running),
        "resident_mb": memory(deployment).await?,
    }))
}

fn hardware() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} cores, {}", cores, model.trim_start_matches(['\t', ' ', ':']))
}

async fn work(args: &Args, progress: &Progress) -> Result<()> {
    let paths = Paths::from_env()?;
    let deployment = Deployment::up(&paths, &Source::Own(spec()), false, progress).await?;
    let result = measure(&deployment, args, progress).await;
    progress.step("stop the clusters", deployment.stop()).await?;
    let text =
        serde_json::to_string_pretty(&result?).map_err(|e| Error::Invalid(format!("encode figures: {e}")))?;
    match &args.json {
        Some(path) => std::fs::write(path, text + "\n").io("write", path),
        None => {
            println!("{text}");
            Ok(())
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let progress = Progress::stderr();
    let Err(error) = signals::until_interrupted(work(&args, &progress)).await else {
        return ExitCode::SUCCESS;
    };
    eprintln!("market-bench failed: {error}");
    let cleaned = async { cleanup::own(&Paths::from_env()?, MARKET).await };
    if let Err(error) = cleaned.await {
        eprintln!("clean up: {error}; the next start tries again");
    }
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.95), 19.0);
        assert_eq!(percentile(&values, 0.5), 10.0);
        assert_eq!(percentile(&values, 1.0), 20.0);
    }
}
