//! Pre-made volumes on the node's disk, made anew after release.
//!
//! There is no provisioner in the test bed. A released volume is emptied and offered again by [`recycle`],
//! which runs beside the market.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, DeleteParams, ListParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::client::call;
use crate::config::Layout;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::objects::apply;
use crate::spec::STORAGE_CLASS;
use crate::wait::{self, Poll};

/// How often released volumes are looked for.
const PERIOD: Duration = Duration::from_secs(2);

/// Makes the volumes of a cluster and offers them.
pub async fn create(client: &Client, layout: &Layout, count: u32) -> Result<()> {
    for i in 0..count {
        offer(client, layout, &format!("{}-{i}", layout.place.cluster)).await?;
    }
    Ok(())
}

async fn offer(client: &Client, layout: &Layout, name: &str) -> Result<()> {
    let folder = layout.volumes().join(name);
    make_folder(&folder)?;
    apply(client, "persistentvolumes", &volume(name, &folder, &layout.place.node())).await
}

/// An empty folder that any user may write to, as a fresh disk with a mode set by its administrator.
fn make_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    files::remove_dir(folder)?;
    files::create_dir(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o1777)).io("set mode of", folder)
}

fn volume(name: &str, folder: &Path, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
        "capacity": {"storage": "20Gi"}, "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
        "persistentVolumeReclaimPolicy": "Retain", "storageClassName": STORAGE_CLASS,
        "local": {"path": folder.display().to_string()},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}})
}

/// Empties released volumes and offers them again, until dropped. Errors are tried again: a cluster may be
/// down on purpose.
pub async fn recycle(client: Client, layout: Layout) {
    loop {
        let _ = recycle_once(&client, &layout).await;
        tokio::time::sleep(PERIOD).await;
    }
}

/// One round of [`recycle`]; returns how many volumes were made anew.
pub async fn recycle_once(client: &Client, layout: &Layout) -> Result<usize> {
    let api: Api<PersistentVolume> = Api::all(client.clone());
    let mut count = 0;
    for pv in call("list volumes", api.list(&ListParams::default())).await? {
        let phase = pv.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let ours = layout.volumes().join(pv.name_any()).exists();
        if phase == "Released" && ours {
            renew(client, layout, &api, &pv.name_any()).await?;
            count += 1;
        }
    }
    Ok(count)
}

async fn renew(client: &Client, layout: &Layout, api: &Api<PersistentVolume>, name: &str) -> Result<()> {
    match call("delete released volume", api.delete(name, &DeleteParams::default())).await {
        Err(Error::Kube { source, .. }) if matches!(&*source, kube::Error::Api(s) if s.is_not_found()) => {}
        other => {
            other?;
        }
    }
    wait::until(
        "wait for the released volume to go",
        Duration::from_secs(20),
        Duration::from_millis(100),
        || async {
            let left = call("look for volume", api.get_opt(name)).await?;
            Ok(if left.is_some() { Poll::Pending("still there".into()) } else { Poll::Ready(()) })
        },
    )
    .await?;
    offer(client, layout, name).await
}
