//! Taking everything off a user's clusters that the demo put there.
//!
//! Inputs: the clusters. Outputs: nothing, or all that could not be removed. Invariant: only what carries the demo's mark
//! is touched; one failure does not keep the rest from being removed.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use super::Site;
use super::charts::{NAMESPACE, Profile};
use super::existing::MADE_BY_DEMO;
use crate::client::call;
use crate::error::{Error, Result};
use crate::wait::{self, Poll};

const CRDS: [&str; 5] = [
    "jobs.vendue.dev",
    "awards.vendue.dev",
    "provisions.vendue.dev",
    "bids.vendue.dev",
    "gpunodes.vendue.dev",
];
const AWARDS_GONE: Duration = Duration::from_secs(120);
const CRDS_GONE: Duration = Duration::from_secs(120);
/// Looks at the CRDs, half a second apart, between two changes of those that are still there.
const LOOKS_PER_TOUCH: u32 = 10;

/// Removes the demo's Job, then Vendue from every cluster.
pub(super) async fn all(sites: &[Site]) -> Result<()> {
    let mut left = Vec::new();
    let mut ours = Vec::new();
    for site in sites {
        match is_marked(site).await {
            Ok(true) => ours.push(site),
            Ok(false) => {}
            Err(error) => left.push(format!("{}: {error}", site.name)),
        }
    }
    // Homes first: with the Job goes what it holds on the providers.
    for site in ours.iter().filter(|s| s.profile == Profile::Home) {
        left.extend(job(site).await);
    }
    let providers = ours.iter().filter(|s| s.profile == Profile::Provider);
    left.extend(futures::future::join_all(providers.map(|s| awards(s))).await.into_iter().flatten());
    left.extend(futures::future::join_all(ours.iter().map(|s| release(s))).await.into_iter().flatten());
    if left.is_empty() {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "not everything could be removed; next: run the demo again with --remove\n  {}",
        left.join("\n  ")
    )))
}

async fn is_marked(site: &Site) -> Result<bool> {
    let api: Api<Namespace> = Api::all(site.client.clone());
    let found = call("look for the demo's namespace", api.get_opt(NAMESPACE)).await?;
    Ok(found.is_some_and(|ns| ns.labels().contains_key(MADE_BY_DEMO)))
}

async fn job(site: &Site) -> Vec<String> {
    let ns = crate::demo::NAMESPACE;
    let name = crate::demo::JOB;
    // Without the CRD there is no Job either.
    let there =
        site.tools.kubectl(&["get", "crd", "jobs.vendue.dev", "--ignore-not-found", "-o", "name"]).await;
    let mut steps: Vec<Vec<&str>> = vec![vec!["delete", "configmap", name, "-n", ns, "--ignore-not-found"]];
    if !there.as_ref().is_ok_and(|text| text.trim().is_empty()) {
        steps.push(vec!["delete", "jobs.vendue.dev", name, "-n", ns, "--ignore-not-found", "--timeout=90s"]);
    }
    kubectl_all(site, &steps).await
}

/// Waits until no award's namespace is left.
async fn awards(site: &Site) -> Option<String> {
    let api: Api<Namespace> = Api::all(site.client.clone());
    let gone = wait::until("wait for awards to end", AWARDS_GONE, Duration::from_millis(500), || async {
        let list = call("list namespaces", api.list(&ListParams::default())).await?;
        let left: Vec<_> =
            list.items.iter().map(|n| n.name_any()).filter(|n| n.starts_with("vendue-a-")).collect();
        Ok(if left.is_empty() { Poll::Ready(()) } else { Poll::Pending(left.join(", ")) })
    });
    gone.await.err().map(|e| format!("{}: {e}", site.name))
}

async fn release(site: &Site) -> Vec<String> {
    let mut left = Vec::new();
    for name in ["vendue", "vendue-crds"] {
        // Without hooks: what they ask was seen to above, and their image may be the one that cannot be pulled.
        let args = [
            "uninstall",
            name,
            "--namespace",
            NAMESPACE,
            "--ignore-not-found",
            "--no-hooks",
            "--wait",
            "--timeout=90s",
        ];
        left.extend(site.tools.helm(&args).await.err().map(|e| format!("{}: {e}", site.name)));
    }
    left.extend(crds(site).await);
    let namespace = vec!["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"];
    left.extend(kubectl_all(site, &[namespace]).await);
    left
}

/// Deletes the CRDs, and touches those that stay: the API server's finalizer (apiextensions-apiserver 1.37, `crd_finalizer.go`)
/// whose first try fails may lose the second to a conflict with its own write, and then waits for a change of the object
/// or for five minutes.
async fn crds(site: &Site) -> Option<String> {
    let delete = [&["delete", "crd", "--ignore-not-found", "--wait=false"][..], &CRDS].concat();
    if let Err(error) = site.tools.kubectl(&delete).await {
        return Some(format!("{}: {error}", site.name));
    }
    let api: Api<CustomResourceDefinition> = Api::all(site.client.clone());
    let looks = AtomicU32::new(0);
    let gone = wait::until("wait for the CRDs to go", CRDS_GONE, Duration::from_millis(500), || async {
        let list = call("list CRDs", api.list_metadata(&ListParams::default())).await?;
        let left: Vec<_> =
            list.iter().map(|crd| crd.name_any()).filter(|n| CRDS.contains(&n.as_str())).collect();
        let look = looks.fetch_add(1, Ordering::Relaxed);
        if look % LOOKS_PER_TOUCH == LOOKS_PER_TOUCH - 1 {
            futures::future::join_all(left.iter().map(|name| touch(&api, name, look))).await;
        }
        Ok(if left.is_empty() { Poll::Ready(()) } else { Poll::Pending(left.join(", ")) })
    });
    gone.await.err().map(|e| format!("{}: {e}", site.name))
}

async fn touch(api: &Api<CustomResourceDefinition>, name: &str, look: u32) {
    let note = json!({ "metadata": { "annotations": { "vendue.dev/looked-for": look.to_string() } } });
    // It may be gone by now; whatever else went wrong shows at the next look.
    let _ = call("touch a CRD", api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(note))).await;
}

async fn kubectl_all(site: &Site, steps: &[Vec<&str>]) -> Vec<String> {
    let mut left = Vec::new();
    for step in steps {
        left.extend(site.tools.kubectl(step).await.err().map(|e| format!("{}: {e}", site.name)));
    }
    left
}
