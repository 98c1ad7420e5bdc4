//! The discovery documents of the group.

use axum::Json;
use serde_json::{Value, json};

use super::{GROUP, VERSION};

fn group() -> Value {
    let version = json!({ "groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION });
    json!({ "kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": [version], "preferredVersion": version })
}

/// `/apis`
pub(super) async fn groups() -> Json<Value> {
    Json(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [group()] }))
}

/// `/apis/stream.vendue.dev`
pub(super) async fn one_group() -> Json<Value> {
    Json(group())
}

/// `/apis/stream.vendue.dev/v1alpha1`
pub(super) async fn resources() -> Json<Value> {
    let resource = |name: &str, kind: &str| json!({ "name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["get"] });
    Json(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [
            resource("jobs/log", "JobLog"),
            resource("jobs/outputs", "JobOutputs"),
            resource("jobs/receipts", "JobReceipts"),
        ],
    }))
}
