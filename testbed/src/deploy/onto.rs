//! Vendue onto clusters that the user has, and off them again.
//!
//! Inputs: [`Existing`]. Outputs: a [`Deployment`] like that on the test bed's own clusters. Invariant: a cluster is
//! changed only after all were looked at and found usable; what fails half-way is taken off again.

use std::path::PathBuf;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::charts::{NAMESPACE, Profile, Release, install};
use super::deal::{Deal, deal};
use super::existing::{Existing, MADE_BY_DEMO};
use super::preflight::{self, Found};
use super::reach::{self, Seat};
use super::{Deployment, Site, build, offer_text, pull, remove};
use crate::client::call;
use crate::error::{Error, Result};
use crate::files;
use crate::market::Market;
use crate::paths::Paths;
use crate::progress::Progress;
use crate::setup::Setup;
use crate::tools;

/// Looks at the clusters, installs Vendue and waits until the providers offer GPUs.
pub(super) async fn up(paths: &Paths, existing: &Existing, progress: &Progress) -> Result<Deployment> {
    let (setup, market, sites) = connect(paths, existing, progress).await?;
    let found = progress.step("look at the clusters", preflight::examine(&sites, existing)).await?;
    let programs = build(paths, progress).await?;
    let clusters_ready = progress.elapsed().as_secs_f64();
    let installing = install_all(paths, existing, &sites, &found, &programs, progress);
    let deal = match pull::unless_unpullable(&sites, installing).await {
        Ok(deal) => deal,
        Err(error) => {
            let error = Error::Invalid(format!("{error}{}", why_not_ready(&sites).await));
            let removing = progress.step("take Vendue off the clusters", remove(paths, existing, &sites));
            // What went wrong first is what counts.
            if let Err(left) = removing.await {
                progress.say(format!("clean up: {left}; try the same command with --remove"));
            }
            return Err(error);
        }
    };
    let charts_ready = progress.elapsed().as_secs_f64();
    let existing = Some(existing.clone());
    Ok(Deployment { setup, market, sites, deal, programs, existing, clusters_ready, charts_ready })
}

/// Takes off what an earlier run left.
pub async fn remove_earlier(paths: &Paths, existing: &Existing, progress: &Progress) -> Result<()> {
    let (_, _, sites) = connect(paths, existing, progress).await?;
    progress.step("take Vendue off the clusters", remove(paths, existing, &sites)).await
}

async fn connect(
    paths: &Paths,
    existing: &Existing,
    progress: &Progress,
) -> Result<(Setup, Market, Vec<Site>)> {
    existing.validate()?;
    let members: Vec<_> = existing.members.iter().map(|m| (m.name.as_str(), m.context.as_str())).collect();
    let market = Market::existing(&existing.kubeconfig, &members).await?;
    let programs = tools::clients(paths, progress).await?;
    let setup = Setup { paths: paths.clone(), programs, images: Vec::new() };
    let sites = market.clusters().iter().map(|c| Site::new(c, &setup)).collect();
    Ok((setup, market, sites))
}

/// Takes Vendue off the clusters, and the keys off this machine.
pub(super) async fn remove(paths: &Paths, existing: &Existing, sites: &[Site]) -> Result<()> {
    remove::all(sites).await?;
    files::remove_dir(&keys_folder(paths, existing))
}

/// Keys of the market on these clusters.
fn keys_folder(paths: &Paths, existing: &Existing) -> PathBuf {
    let parts: Vec<String> = existing.members.iter().map(|m| format!("{}={}", m.name, m.context)).collect();
    let file = existing.kubeconfig.to_string_lossy().into_owned();
    let all = std::iter::once(file.as_str()).chain(parts.iter().map(String::as_str));
    paths.cache().join("existing").join(files::key(all.map(|part| (part, &b""[..]))))
}

async fn install_all(
    paths: &Paths,
    existing: &Existing,
    sites: &[Site],
    found: &[Found],
    programs: &std::path::Path,
    progress: &Progress,
) -> Result<Deal> {
    let marked = json!({ "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": NAMESPACE, "labels": { MADE_BY_DEMO: "true" } } })
    .to_string();
    try_join_all(sites.iter().map(|s| s.tools.kubectl_with_input(&["apply", "-f", "-"], &marked))).await?;
    let providers = || sites.iter().zip(found).filter(|(s, _)| s.profile == Profile::Provider);
    let seats = try_join_all(providers().map(|(s, f)| reach::seat(s, &f.nodes, existing))).await?;
    for seat in &seats {
        progress.say(format!("  the seat of {} is reached at {}", seat.name, seat.multiaddr));
    }
    let deal = deal_keys(paths, existing, &seats, programs).await?;
    let charts = paths.checkout().join("charts");
    let install_one = async |site: &Site, found: &Found| {
        let is_provider = site.profile == Profile::Provider;
        let release = Release {
            charts: &charts,
            record: &deal.record(),
            keys: &deal.keys(&site.name),
            profile: site.profile,
            nvml: existing.simulated_nvml.as_deref().filter(|_| is_provider),
            storage_class: &found.storage_class,
            more: values(existing, found, seats.iter().find(|s| s.name == site.name)),
        };
        install(&site.tools, &release).await
    };
    let installs = sites.iter().zip(found).map(|(site, found)| install_one(site, found));
    progress.step("install the charts", try_join_all(installs)).await?;
    let offers = providers().map(async |(site, found)| {
        offer_text(site, &existing.provision(&site.name, &found.storage_class, NAMESPACE).to_string()).await
    });
    progress.step("offer GPUs", try_join_all(offers)).await?;
    Ok(deal)
}

/// Deals keys; those of an earlier run are used again while the addresses are the same.
async fn deal_keys(
    paths: &Paths,
    existing: &Existing,
    seats: &[Seat],
    programs: &std::path::Path,
) -> Result<Deal> {
    let dir = keys_folder(paths, existing);
    let addresses: String = seats.iter().map(|s| format!("{} {}\n", s.name, s.multiaddr)).collect();
    let written = dir.join("addresses");
    if !written.exists() || files::read(&written)? != addresses {
        files::remove_dir(&dir)?;
        files::write(&written, &addresses)?;
    }
    let seats: Vec<_> = seats.iter().map(|s| (s.name.clone(), s.multiaddr.clone())).collect();
    deal(&programs.join("vendue-auction"), "demo", &seats, &[], &[super::HOME.to_owned()], &dir.join("deal"))
        .await
}

/// Values of the chart that follow from the options.
fn values(existing: &Existing, found: &Found, seat: Option<&Seat>) -> Value {
    let mut values = json!({
        "image": { "repository": existing.image.repository, "tag": existing.image.tag },
        "auction": { "p2p": { "nodePort": existing.node_port, "serviceType": existing.reach.service_type() } },
    });
    if let Some(class) = &existing.runtime_class {
        values["gpuAgent"]["runtimeClassName"] = json!(class);
    }
    // Elsewhere an agent would have nothing to say, and NVIDIA's runtime class would not start it.
    if found.gpus_labelled {
        values["gpuAgent"]["nodeSelector"] = json!({ preflight::GPU_LABEL: "true" });
    }
    if let Some(node) = seat.and_then(|s| s.node.as_ref()) {
        values["auction"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    }
    values
}

/// Which of Vendue's Pods are not ready, one a line: seats that do not find each other say so by this.
async fn why_not_ready(sites: &[Site]) -> String {
    let mut text = String::new();
    for site in sites {
        let api: Api<Pod> = Api::namespaced(site.client.clone(), NAMESPACE);
        // A cluster that does not answer was the failure itself.
        let pods =
            call("list pods", api.list(&ListParams::default())).await.map(|l| l.items).unwrap_or_default();
        for pod in pods.iter().filter(|p| !is_ready(p)) {
            let name = pod.name_any();
            let log =
                site.tools.kubectl(&["logs", "-n", NAMESPACE, &name, "--tail=3"]).await.unwrap_or_default();
            text.push_str(&format!(
                "\n  {}: Pod {name} is not ready: {}",
                site.name,
                log.trim().replace('\n', " | ")
            ));
        }
    }
    if !text.is_empty() {
        text.push_str(
            "\n  next: if seats do not reach each other, let UDP through between the clusters, or give --seat-address",
        );
    }
    text
}

fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::super::existing::tests::two_clusters;
    use super::*;

    #[test]
    fn the_pod_of_a_seat_goes_to_the_node_of_its_address() {
        let seat = Seat {
            name: "alpha".into(),
            multiaddr: "/ip4/1.2.3.4/udp/1/quic-v1".into(),
            node: Some("n".into()),
        };
        let found = |gpus_labelled| Found { gpus_labelled, ..Found::default() };
        let with = values(&two_clusters(), &found(true), Some(&seat));
        assert_eq!(with["gpuAgent"]["nodeSelector"]["nvidia.com/gpu.present"], "true");
        assert_eq!(with["auction"]["nodeSelector"]["kubernetes.io/hostname"], "n");
        assert_eq!(with["image"]["tag"], "0.1");
        let home =
            values(&Existing { runtime_class: Some("nvidia".into()), ..two_clusters() }, &found(false), None);
        assert!(home["auction"].get("nodeSelector").is_none());
        assert_eq!(home["gpuAgent"], json!({ "runtimeClassName": "nvidia" }));
    }

    #[test]
    fn keys_belong_to_clusters_not_to_names_alone() {
        let paths = Paths::new("/cache".into(), "/".into()).unwrap();
        let other = Existing {
            members: vec!["home=mine".parse().unwrap(), "alpha=others".parse().unwrap()],
            ..two_clusters()
        };
        assert_ne!(keys_folder(&paths, &two_clusters()), keys_folder(&paths, &other));
    }
}
