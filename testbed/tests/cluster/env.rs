//! The market that all scenarios share, and the few verbs that they are written in.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use vendue_crds::{Award, ComputeJob, Provision, conditions, names};
use vendue_testbed::deploy::{Deployment, NAMESPACE, Profile, Site};
use vendue_testbed::error::Error;
use vendue_testbed::progress::Progress;
use vendue_testbed::wait::{self, Poll};

use crate::jobs::job;

/// Why a scenario failed.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
/// What a scenario returns.
pub type Scenario = Result<(), Failure>;

/// Beginning of the names of awards' namespaces.
const AWARDS: &str = "vendue-a-";
const LOOK: Duration = Duration::from_millis(200);

/// The shared market.
pub struct Env {
    /// Clusters with Vendue on them.
    pub deployment: Deployment,
    /// Says what goes on.
    pub progress: Progress,
}

/// Processes of Vendue's that serve figures.
#[derive(Clone, Copy, Debug)]
pub enum Process {
    /// `vendue-auction`.
    Auction,
    /// `vendue-controller`.
    Controller,
}

/// What a program printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Env {
    /// The user's cluster.
    pub fn home(&self) -> &Site {
        self.deployment.home()
    }

    /// A cluster by name.
    pub fn site(&self, name: &str) -> &Site {
        self.deployment.site(name)
    }

    /// A fresh namespace at home.
    pub async fn namespace(&self, prefix: &str) -> Result<String, Failure> {
        let api: Api<Namespace> = Api::all(self.home().client.clone());
        let mut ns = Namespace::default();
        ns.metadata.generate_name = Some(format!("t-{prefix}-"));
        let made = api.create(&PostParams::default(), &ns).await?;
        Ok(made.metadata.name.unwrap_or_default())
    }

    /// Jobs of a namespace at home.
    pub fn jobs(&self, ns: &str) -> Api<ComputeJob> {
        Api::namespaced(self.home().client.clone(), ns)
    }

    /// Waits until `done` is satisfied with the Job; the error shows the Job's conditions.
    pub async fn job_until(
        &self,
        ns: &str,
        name: &str,
        what: &str,
        seconds: u64,
        done: impl Fn(&ComputeJob) -> bool,
    ) -> Result<ComputeJob, Failure> {
        let jobs = self.jobs(ns);
        let done = &done;
        let job = wait::until(&format!("{ns}/{name}: {what}"), Duration::from_secs(seconds), LOOK, || {
            let jobs = jobs.clone();
            async move {
                // A cluster that is cut off or restarting answers again later.
                Ok(match jobs.get(name).await {
                    Ok(job) if done(&job) => Poll::Ready(job),
                    Ok(job) => Poll::Pending(vendue_testbed::deploy::describe(&job)),
                    Err(error) => Poll::Pending(error.to_string()),
                })
            }
        })
        .await?;
        Ok(job)
    }

    /// Waits until a condition of the Job is True.
    pub async fn condition_true(
        &self,
        ns: &str,
        job: &str,
        type_: &str,
        seconds: u64,
    ) -> Result<ComputeJob, Failure> {
        self.job_until(ns, job, &format!("{type_} is True"), seconds, |job| {
            job.status.as_ref().is_some_and(|s| conditions::is_true(&s.conditions, type_))
        })
        .await
    }

    /// Waits until a condition of the Job is False and returns it.
    pub async fn condition_false(
        &self,
        ns: &str,
        job: &str,
        type_: &str,
        seconds: u64,
    ) -> Result<Condition, Failure> {
        let job = self
            .job_until(ns, job, &format!("{type_} is False"), seconds, |job| {
                job.status.as_ref().is_some_and(|s| conditions::is_false(&s.conditions, type_))
            })
            .await?;
        condition(&job, type_)
    }

    /// Waits until the Job is Finished and returns it.
    pub async fn finished(&self, ns: &str, job: &str, seconds: u64) -> Result<ComputeJob, Failure> {
        self.condition_true(ns, job, conditions::job::FINISHED, seconds).await
    }

    /// Deletes a Job and waits until it is gone.
    pub async fn delete_job(&self, ns: &str, name: &str, seconds: u64) -> Scenario {
        let jobs = self.jobs(ns);
        jobs.delete(name, &DeleteParams::default()).await?;
        wait::until(&format!("job {ns}/{name} is gone"), Duration::from_secs(seconds), LOOK, || {
            let jobs = jobs.clone();
            async move {
                Ok(match jobs.get_opt(name).await {
                    Ok(None) => Poll::Ready(()),
                    Ok(Some(job)) => Poll::Pending(vendue_testbed::deploy::describe(&job)),
                    Err(error) => Poll::Pending(error.to_string()),
                })
            }
        })
        .await?;
        Ok(())
    }

    /// Waits until no cluster holds anything for anybody: on providers no award namespaces, no volumes in use, all GPUs
    /// free; at home no Award and no order of a Job that is gone.
    pub async fn nothing_left(&self, seconds: u64) -> Scenario {
        try_join_all(self.deployment.sites.iter().map(async |site| {
            let what = format!("nothing is left on {}", site.name);
            wait::until(&what, Duration::from_secs(seconds), LOOK, || async move {
                Ok(match leftovers(site).await {
                    Ok(None) => Poll::Ready(()),
                    Ok(Some(found)) => Poll::Pending(found),
                    Err(error) => Poll::Pending(error.to_string()),
                })
            })
            .await
        }))
        .await?;
        Ok(())
    }

    /// Waits until two rounds were decided that began after this call.
    pub async fn two_rounds_pass(&self, ns: &str) -> Scenario {
        for name in ["round-one", "round-two"] {
            let wants = job(name, "print(1)").with("/train/workers/gpuModels", json!(["Z9000"]));
            self.home().apply(ns, &wants.manifest()).await?;
            self.job_until(ns, name, "was in a round", 20, |job| {
                job.status.as_ref().and_then(|s| s.auction.as_ref()).is_some_and(|a| a.rounds_tried > 0)
            })
            .await?;
            self.delete_job(ns, name, 30).await?;
        }
        Ok(())
    }

    /// A figure of one of Vendue's processes by the name and labels of its series; 0 before it was first counted.
    pub async fn metric(&self, site: &str, process: Process, series: &str) -> Result<f64, Failure> {
        let (deployment, port, prefix) = match process {
            Process::Auction => ("vendue-auction", 9472, "vendue_auction_"),
            Process::Controller => ("vendue-controller", 9471, "vendue_controller_"),
        };
        let pod = crate::faults::pod_name(self, site, deployment).await?;
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:{port}/proxy/metrics");
        let text = self.site(site).tools.kubectl(&["get", "--raw", &path]).await?;
        check(text.contains(prefix), || format!("no metrics of {deployment} on {site}: {text}"))?;
        let series = format!("{prefix}{series} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok());
        Ok(value.unwrap_or_default())
    }

    /// The sum of a figure over all providers.
    pub async fn of_all_providers(&self, process: Process, series: &str) -> Result<f64, Failure> {
        let all = self.deployment.providers().map(|site| self.metric(&site.name, process, series));
        Ok(try_join_all(all).await?.into_iter().sum())
    }

    /// The award that runs on a provider, once there is one.
    pub async fn host_award(&self, seconds: u64) -> Result<(String, Award), Failure> {
        let found =
            wait::until("an award on a provider", Duration::from_secs(seconds), LOOK, || async move {
                for site in self.deployment.providers() {
                    let list = Api::<Award>::all(site.client.clone()).list(&ListParams::default()).await;
                    if let Some(award) = list.ok().and_then(|l| l.items.into_iter().next()) {
                        return Ok(Poll::Ready((site.name.clone(), award)));
                    }
                }
                Ok(Poll::Pending("no Award on any provider".into()))
            })
            .await?;
        Ok(found)
    }

    /// Runs `kubectl vendue ARGS` as the administrator of home.
    pub async fn vendue(&self, args: &[&str]) -> Result<Ran, Failure> {
        self.vendue_as(&self.home().tools.kubeconfig.clone(), args).await
    }

    /// Runs `kubectl vendue ARGS` with a kubeconfig.
    pub async fn vendue_as(&self, kubeconfig: &PathBuf, args: &[&str]) -> Result<Ran, Failure> {
        let program = self.deployment.programs.join("kubectl-vendue");
        let mut command = tokio::process::Command::new(program);
        command.arg("--kubeconfig").arg(kubeconfig).args(args).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await??;
        Ok(Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Pods in a namespace of a cluster.
    pub fn pods(&self, site: &str, ns: &str) -> Api<Pod> {
        Api::namespaced(self.site(site).client.clone(), ns)
    }
}

/// A condition of a Job that must be there.
pub fn condition(job: &ComputeJob, type_: &str) -> Result<Condition, Failure> {
    job.status
        .as_ref()
        .and_then(|s| conditions::find(&s.conditions, type_))
        .cloned()
        .ok_or_else(|| format!("the Job has no condition {type_}").into())
}

/// Fails with `text` unless `holds`.
pub fn check(holds: bool, text: impl FnOnce() -> String) -> Scenario {
    if holds { Ok(()) } else { Err(text().into()) }
}

async fn leftovers(site: &Site) -> Result<Option<String>, Error> {
    if site.profile == Profile::Home { left_at_home(site).await } else { left_on_provider(site).await }
}

/// Awards and orders of Jobs that are gone.
async fn left_at_home(site: &Site) -> Result<Option<String>, Error> {
    let listing = |e| Error::kube(format!("list on {}", site.name), e);
    let of_jobs = ListParams::default().labels(names::JOB_NAME);
    let awards = Api::<Award>::all(site.client.clone()).list(&of_jobs).await.map_err(listing)?;
    let secrets = Api::<Secret>::all(site.client.clone()).list_metadata(&of_jobs).await.map_err(listing)?;
    // Listed last: a Job that is made in between is no leftover.
    let jobs =
        Api::<ComputeJob>::all(site.client.clone()).list(&ListParams::default()).await.map_err(listing)?;
    let jobs: BTreeSet<_> =
        jobs.items.into_iter().filter_map(|j| Some((j.metadata.namespace?, j.metadata.name?))).collect();
    let kept =
        awards.items.into_iter().map(|a| a.metadata).chain(secrets.items.into_iter().map(|s| s.metadata));
    let orphans: Vec<String> = kept
        .filter_map(|meta| {
            let (namespace, name) = (meta.namespace?, meta.name?);
            let job = meta.labels?.get(names::JOB_NAME)?.clone();
            (!jobs.contains(&(namespace.clone(), job))).then(|| format!("{namespace}/{name}"))
        })
        .collect();
    Ok((!orphans.is_empty()).then(|| format!("at home {}", orphans.join(", "))))
}

async fn left_on_provider(site: &Site) -> Result<Option<String>, Error> {
    let listing = |e| Error::kube(format!("list on {}", site.name), e);
    let namespaces =
        Api::<Namespace>::all(site.client.clone()).list(&ListParams::default()).await.map_err(listing)?;
    let awards: Vec<String> = namespaces
        .items
        .into_iter()
        .filter_map(|ns| ns.metadata.name)
        .filter(|name| name.starts_with(AWARDS))
        .collect();
    if !awards.is_empty() {
        return Ok(Some(format!("namespaces {}", awards.join(", "))));
    }
    let volumes = Api::<PersistentVolume>::all(site.client.clone())
        .list(&ListParams::default())
        .await
        .map_err(listing)?;
    for volume in volumes {
        let claim = volume.spec.and_then(|s| s.claim_ref).and_then(|c| c.namespace).unwrap_or_default();
        if claim.starts_with(AWARDS) {
            return Ok(Some(format!("a volume of {claim}")));
        }
    }
    let provisions =
        Api::<Provision>::all(site.client.clone()).list(&ListParams::default()).await.map_err(listing)?;
    for provision in provisions {
        let status = provision.status.unwrap_or_default();
        if status.free_gpus != status.total_gpus || !status.held.is_empty() {
            return Ok(Some(format!("{} of {} GPUs free", status.free_gpus, status.total_gpus)));
        }
    }
    Ok(None)
}

impl Env {
    /// After a failure: heals the network, wakes what was frozen and deletes what the scenario left, so that the next
    /// one starts on a market in order. The main job stays if it is done: other scenarios look at it.
    pub async fn reset(&self) {
        for site in &self.deployment.sites {
            // Healing what is not cut is no change; a failure shows in the next scenario.
            let _ = site.cluster.heal().await;
            let _ = site.cluster.empty_disk();
            crate::machine::mend(site).await;
            for name in ["vendue-controller", "vendue-auction"] {
                let pods = self.pods(&site.name, NAMESPACE).list(&ListParams::default()).await;
                for pod in pods.map(|l| l.items).unwrap_or_default() {
                    let pod = pod.metadata.name.unwrap_or_default();
                    if pod.starts_with(name) {
                        let _ = site.cluster.thaw_pod(NAMESPACE, &pod).await;
                    }
                }
            }
            let args = [
                "delete",
                "pod",
                "local-work",
                "-n",
                "default",
                "--ignore-not-found",
                "--grace-period=0",
                "--force",
            ];
            let _ = site.tools.kubectl(&args).await;
        }
        // Without home's auction no Job could be deleted in order.
        let _ = crate::restart::scale(self, 1).await;
        let jobs = Api::<ComputeJob>::all(self.home().client.clone()).list(&ListParams::default()).await;
        let left = jobs.map(|l| l.items).unwrap_or_default().into_iter().filter(|j| !crate::demo::is_done(j));
        for job in left {
            let (ns, name) =
                (job.metadata.namespace.unwrap_or_default(), job.metadata.name.unwrap_or_default());
            let _ = self.delete_job(&ns, &name, 60).await;
        }
    }
}
