//! Images that a cluster cannot pull, noticed while something else is waited for.
//!
//! Inputs: the Pods in Vendue's namespaces. Outputs: an error that names cluster, image and the next step. Invariant:
//! a first failure is not yet a verdict, because the kubelet tries again; what it backs off from is.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};

use super::Site;
use super::charts::NAMESPACE;
use crate::client::call;
use crate::error::{Error, Result};

const PERIOD: Duration = Duration::from_secs(2);
/// Reasons of a waiting container that will not end by themselves.
const HOPELESS: [&str; 3] = ["ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"];

/// Does the work, unless a cluster turns out to be unable to pull an image.
pub(super) async fn unless_unpullable<T>(sites: &[Site], work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        error = watch(sites) => Err(error),
    }
}

async fn watch(sites: &[Site]) -> Error {
    loop {
        tokio::time::sleep(PERIOD).await;
        for site in sites {
            let api: Api<Pod> = Api::all(site.client.clone());
            // A cluster that does not answer is the work's trouble to report.
            let pods = call("list pods", api.list(&ListParams::default())).await.map(|l| l.items);
            if let Some(trouble) = pods.unwrap_or_default().iter().find_map(trouble) {
                return Error::Invalid(format!(
                    "{} cannot pull an image: {trouble}; next: push it to a registry that the cluster reaches and name it \
                     with --image or --ray-image",
                    site.name
                ));
            }
        }
    }
}

/// Image and reason of a container of Vendue's that cannot be pulled.
fn trouble(pod: &Pod) -> Option<String> {
    let namespace = pod.namespace().unwrap_or_default();
    if namespace != NAMESPACE && !namespace.starts_with("vendue-a-") {
        return None;
    }
    let status = pod.status.as_ref()?;
    let all = [&status.init_container_statuses, &status.container_statuses];
    all.into_iter().flatten().flatten().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|r| HOPELESS.contains(r))?;
        let message = waiting.message.as_deref().unwrap_or_default();
        Some(format!("{} in {namespace}: {reason}: {message}", container.image))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(namespace: &str, reason: &str) -> Pod {
        serde_json::from_value(
            json!({ "metadata": { "namespace": namespace }, "status": { "containerStatuses": [{
            "name": "c", "image": "reg/vendue:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": reason, "message": "no such host" } } }] } }),
        )
        .unwrap()
    }

    #[test]
    fn only_lasting_trouble_of_vendues_own_pods_counts() {
        let text = trouble(&pod("vendue-a-1", "ImagePullBackOff")).unwrap();
        assert!(text.contains("reg/vendue:1") && text.contains("no such host"), "{text}");
        assert!(trouble(&pod(NAMESPACE, "InvalidImageName")).is_some());
        assert!(trouble(&pod(NAMESPACE, "ErrImagePull")).is_none(), "it is tried again");
        assert!(trouble(&pod("default", "ImagePullBackOff")).is_none(), "not ours");
    }
}
