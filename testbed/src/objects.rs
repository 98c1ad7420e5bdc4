//! What every cluster has from the start: DNS, its rights, the storage class and the pre-made volumes.

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use crate::client::call;
use crate::config::Layout;
use crate::error::Result;
use crate::spec::{DNS_ADDRESS, STORAGE_CLASS};

/// Field manager of the test bed.
pub const MANAGER: &str = "vendue-testbed";

/// Applies all of a new cluster's objects.
pub async fn apply_all(client: &Client, layout: &Layout) -> Result<()> {
    for (plural, object) in dns(layout) {
        apply(client, plural, &object).await?;
    }
    apply(client, "storageclasses", &storage_class()).await
}

/// Server-side apply of one object given as JSON.
pub async fn apply(client: &Client, plural: &str, object: &Value) -> Result<()> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = object["kind"].as_str().unwrap_or_default();
    let gvk = GroupVersionKind::gvk(group, version, kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let params = PatchParams::apply(MANAGER).force();
    call(&format!("apply {kind} {name}"), api.patch(name, &params, &Patch::Apply(object))).await.map(|_| ())
}

fn dns(layout: &Layout) -> Vec<(&'static str, Value)> {
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"});
    let rbac = "rbac.authorization.k8s.io/v1";
    let ports = |target: bool| {
        let one = |name: &str, protocol: &str| {
            let mut port = json!({"name": name, "port": 53, "protocol": protocol});
            if target {
                port["targetPort"] = 53.into();
            }
            port
        };
        json!([one("dns", "UDP"), one("dns-tcp", "TCP")])
    };
    vec![
        (
            "clusterroles",
            json!({"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": "system:coredns"}, "rules": [
            {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}]}),
        ),
        (
            "clusterrolebindings",
            json!({"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": "system:coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}]}),
        ),
        (
            "services",
            json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
            "spec": {"clusterIP": DNS_ADDRESS, "ports": ports(true)}}),
        ),
        // CoreDNS runs on the node, not in a Pod: the Service has no selector and its endpoint is written here.
        (
            "endpointslices",
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {
                "kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": MANAGER}},
            "endpoints": [{"addresses": [layout.place.address()], "conditions": {"ready": true}}],
            "ports": ports(false)}),
        ),
    ]
}

fn storage_class() -> Value {
    json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "kubernetes.io/no-provisioner", "reclaimPolicy": "Retain",
        "volumeBindingMode": "WaitForFirstConsumer"})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_waits_for_the_first_consumer() {
        assert_eq!(storage_class()["volumeBindingMode"], "WaitForFirstConsumer");
    }
}
