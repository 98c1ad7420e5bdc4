//! The clock of one seat, set ahead or back.
//!
//! Inputs: a cluster on which Vendue is installed, and by how much. Outputs: a new Pod of the seat that sees the shifted
//! clock. Invariant: only that Pod is moved; the machine has one clock, and no namespace for it. A preloaded library
//! answers for the C library.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::client::call;
use crate::cluster::Cluster;
use crate::command::{command, run};
use crate::deploy::NAMESPACE;
use crate::error::{Error, IoContext as _, Result};
use crate::files;
use crate::wait::{self, Poll};

const SOURCE: &str = include_str!("../tools/clock/shift.c");
const LIBRARY: &str = "libclockshift.so";
/// Folder of the library, on the node and in the Pod.
const FOLDER: &str = "/var/lib/vendue/clock";
const SEAT: &str = "vendue-auction";
const CONTAINER: &str = "auction";
const VOLUME: &str = "clock-shift";
const VARIABLE: &str = "VENDUE_CLOCK_SHIFT_MS";
const RESTARTED: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);
/// What a shift may be at most: a day.
const MOST: i32 = 86_400;

impl Cluster {
    /// Sets the clock of the cluster's seat ahead (or back, below 0) by this many seconds; 0 sets it right. Restarts
    /// the seat and returns when its new process runs; it is ready later, or never.
    pub async fn shift_clock(&self, seconds: i32) -> Result<()> {
        if !(-MOST..=MOST).contains(&seconds) {
            return Err(Error::Invalid(format!("a clock is shifted by at most {MOST} s, not {seconds}")));
        }
        let node = self.own()?.layout.node();
        if seconds != 0 {
            build(&node.join("clock")).await?;
        }
        let api: Api<Deployment> = Api::namespaced(self.client(), NAMESPACE);
        let patch = Patch::Strategic(patch(seconds));
        let what = format!("shift the clock of {}'s seat (is Vendue installed there?)", self.name());
        call(&what, api.patch(SEAT, &PatchParams::default(), &patch)).await?;
        self.wait_for_clock(seconds).await
    }

    async fn wait_for_clock(&self, seconds: i32) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client(), NAMESPACE);
        let list = ListParams::default().labels("app.kubernetes.io/name=vendue-auction");
        let what = format!("wait for the seat of {} to run with a clock {seconds} s off", self.name());
        wait::until(&what, RESTARTED, LOOK, || async {
            let found = call("list pods", pods.list(&list)).await?.items;
            let off: Vec<_> = found.iter().map(|p| format!("{} {:?}", p.name_any(), clock_of(p))).collect();
            Ok(match found.as_slice() {
                [pod] if is_running(pod) && clock_of(pod) == seconds => Poll::Ready(()),
                _ => Poll::Pending(off.join(", ")),
            })
        })
        .await
    }
}

/// Builds the library with the C compiler that Rust links with.
async fn build(folder: &Path) -> Result<PathBuf> {
    let library = folder.join(LIBRARY);
    let source = folder.join("shift.c");
    files::write(&source, SOURCE)?;
    let partial = files::with_suffix(&library, ".partial");
    let mut cc = command("cc", ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]);
    cc.arg(&partial).arg(&source);
    run("build the clock's library", Duration::from_secs(60), cc).await?;
    std::fs::rename(&partial, &library).io("rename to", &library)?;
    Ok(library)
}

/// What changes in the seat's Deployment.
fn patch(seconds: i32) -> Value {
    let library = format!("{FOLDER}/{LIBRARY}");
    let (env, mount, volume) = if seconds == 0 {
        (
            json!([{ "name": "LD_PRELOAD", "$patch": "delete" }, { "name": VARIABLE, "$patch": "delete" }]),
            json!({ "mountPath": FOLDER, "$patch": "delete" }),
            json!({ "name": VOLUME, "$patch": "delete" }),
        )
    } else {
        let shift = (i64::from(seconds) * 1000).to_string();
        (
            json!([{ "name": "LD_PRELOAD", "value": library }, { "name": VARIABLE, "value": shift }]),
            json!({ "name": VOLUME, "mountPath": FOLDER, "readOnly": true }),
            json!({ "name": VOLUME, "hostPath": { "path": FOLDER, "type": "Directory" } }),
        )
    };
    json!({ "spec": { "template": { "spec": {
        "containers": [{ "name": CONTAINER, "env": env, "volumeMounts": [mount] }], "volumes": [volume] } } } })
}

/// By how many seconds a Pod's clock is off.
fn clock_of(pod: &Pod) -> i32 {
    let containers = pod.spec.iter().flat_map(|s| &s.containers).filter(|c| c.name == CONTAINER);
    let value = containers.flat_map(|c| c.env.iter().flatten()).find(|e| e.name == VARIABLE);
    value.and_then(|e| e.value.as_deref()?.parse::<i32>().ok()).unwrap_or_default() / 1000
}

fn is_running(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let running = statuses.filter_map(|c| c.state.as_ref()?.running.as_ref()).count();
    pod.metadata.deletion_timestamp.is_none() && running > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds since 1970 as a program sees them.
    async fn date(library: &Path, shift: &str) -> i64 {
        let mut date = command("date", ["+%s"]);
        date.env("LD_PRELOAD", library).env(VARIABLE, shift);
        run("ask for the date", Duration::from_secs(5), date).await.unwrap().trim().parse().unwrap()
    }

    #[tokio::test]
    async fn a_program_sees_the_shifted_clock() {
        let folder = tempfile::tempdir().unwrap();
        let library = build(folder.path()).await.unwrap();
        let real = date(&library, "0").await;
        for (shift, seconds) in [("7200000", 7200), ("-7200000", -7200), ("-7199500", -7200)] {
            let seen = date(&library, shift).await;
            assert!((0..5).contains(&(seen - real - seconds)), "{shift}: {seen} at {real}");
        }
    }

    #[test]
    fn setting_it_right_takes_away_what_was_added() {
        let paths = ["/spec/template/spec/volumes/0", "/spec/template/spec/containers/0/volumeMounts/0"];
        let (ahead, right) = (patch(5), patch(0));
        for path in paths {
            assert_eq!(right.pointer(path).unwrap()["$patch"], "delete");
            assert!(ahead.pointer(path).unwrap().get("$patch").is_none());
        }
        let pod = |patch: &Value| -> Pod {
            serde_json::from_value(json!({ "spec": patch["spec"]["template"]["spec"] })).unwrap()
        };
        assert_eq!(clock_of(&pod(&patch(-5))), -5);
        assert_eq!(clock_of(&Pod::default()), 0);
    }
}
