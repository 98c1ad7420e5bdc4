//! A provider's agents, what they say of their nodes' GPUs, and the way of their receipts.
//!
//! Inputs: objects of this cluster. Outputs: checks; what is in order is one line, however many nodes there are.
//! Invariant: the clock of this machine decides nothing: whether an agent is silent the controller says, on the Provisions.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use vendue_crds::conditions::{self, gpu_node};
use vendue_crds::{GpuNode, names};

use super::api::{Cluster, Seen};
use super::checks::{forbidden, said, upgrade_command};
use crate::error::CliError;
use crate::report::{Check, Level};

/// Name of the agents' DaemonSet and of their Pods' label.
const AGENT: &str = "vendue-gpu-agent";
/// Most nodes or Pods that are told of one by one.
const NAMED: usize = 20;

/// Reasons for which a GpuNode is not Ready, and what to do.
pub(super) const STEPS: [(&str, &str); 10] = [
    ("NoDevices", "on the node: `lspci | grep -i nvidia`, and the kernel's log: `dmesg | grep -i nvrm`"),
    (
        "LibraryMissing",
        "set gpuAgent.runtimeClassName (`kubectl get runtimeclasses` lists them), or install the driver on the node",
    ),
    ("DriverNotLoaded", "on the node: `modprobe nvidia`, and the kernel's log says why it is not loaded"),
    ("DriverMismatch", "reboot the node: its driver was updated, and the kernel has the old one"),
    (
        "DeviceLost",
        "reset the GPU (`nvidia-smi --gpu-reset`) or reboot the node; then the agent takes it back",
    ),
    ("DeviceFaulty", "the message names the device; docs/gpu-agent.md says what clears each fault"),
    ("Probing", "wait some seconds; for longer, the message says which Pod or process has the GPU"),
    ("Unmonitored", "a call into the driver hangs: reboot the node"),
    (
        "NotMetered",
        "make room under gpuAgent.stateDir: docs/gpu-agent.md#metering has what else keeps receipts from being stored",
    ),
    ("", "kubectl describe gpunodes"),
];

/// Looks at all of them.
pub async fn all(cluster: &Cluster) -> Result<Vec<Check>, CliError> {
    let mut checks = agents(cluster).await?;
    checks.push(receipts(cluster).await?);
    checks.extend(gpu_nodes(cluster).await?);
    Ok(checks)
}

/// How to ask an agent itself what it waits for.
pub(super) fn ask_the_agent(system: &str) -> String {
    format!(
        "kubectl get pods -n {system} -o wide -l app.kubernetes.io/name={AGENT}; of the one on that node: kubectl logs -n {system} POD, and \
         kubectl port-forward -n {system} POD 9470, then curl localhost:9470/readyz"
    )
}

async fn agents(cluster: &Cluster) -> Result<Vec<Check>, CliError> {
    let status = match cluster.daemon_set(AGENT).await? {
        Seen::Forbidden => return Ok(vec![forbidden(AGENT)]),
        Seen::Missing => {
            return Ok(vec![Check::fail(AGENT, "no DaemonSet", upgrade_command(&cluster.system, ""))]);
        }
        Seen::There(set) => set.status.unwrap_or_default(),
    };
    let (ready, wanted) = (status.number_ready, status.desired_number_scheduled);
    let detail = format!("{ready} of {wanted} nodes");
    if wanted == 0 {
        let next = "label the GPU nodes, or change the value";
        return Ok(vec![Check::fail(AGENT, "no node matches gpuAgent.nodeSelector", next)]);
    }
    if ready >= wanted {
        return Ok(vec![Check::ok(AGENT, detail)]);
    }
    let logs = format!("kubectl logs -n {} ds/{AGENT} --prefix", cluster.system);
    let mut checks = vec![Check::fail(AGENT, detail, logs)];
    if let Seen::There(pods) = cluster.pods(AGENT).await? {
        let troubled: Vec<(&Pod, String)> =
            pods.iter().filter_map(|pod| Some((pod, trouble(pod)?))).collect();
        checks.extend(troubled.iter().take(NAMED).map(|(pod, why)| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node yet");
            let name = pod.metadata.name.as_deref().unwrap_or("?");
            let next = format!("kubectl describe pod -n {} {name}", cluster.system);
            Check::fail(format!("agent on {node}"), why.clone(), next)
        }));
    }
    Ok(checks)
}

/// Why a Pod is not ready; none when it is.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.clone().unwrap_or_default();
    let is_ready = |c: &k8s_openapi::api::core::v1::PodCondition| c.type_ == "Ready" && c.status == "True";
    if status.conditions.iter().flatten().any(is_ready) {
        return None;
    }
    let waits = |container: &ContainerStatus| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let message = waiting.message.as_deref().and_then(|text| text.lines().next()).unwrap_or_default();
        Some(format!("{}: {message}", waiting.reason.as_deref()?))
    };
    let waiting = status.container_statuses.iter().flatten().find_map(waits);
    let unplaced = || {
        let placed =
            status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        placed.and_then(|c| c.message.clone())
    };
    let phase = status.phase.as_deref().unwrap_or("no phase yet");
    let plain = || format!("{phase}, not ready: what it waits for, /readyz on port 9470 says");
    Some(waiting.or_else(unplaced).unwrap_or_else(plain))
}

/// Where agents tell their receipts. Without it nothing accrues, and they fill their nodes' disks up to their limit.
async fn receipts(cluster: &Cluster) -> Result<Check, CliError> {
    const NAME: &str = "receipts";
    let service = names::RECEIPTS_SERVICE;
    match cluster.service(service).await? {
        Seen::Forbidden => return Ok(forbidden(NAME)),
        Seen::Missing => {
            let detail =
                format!("no Service {service}: agents keep receipts on their nodes, and nothing accrues");
            return Ok(Check::fail(NAME, detail, upgrade_command(&cluster.system, "")));
        }
        Seen::There(_) => {}
    }
    Ok(match cluster.endpoints(service).await? {
        Seen::Forbidden | Seen::Missing => forbidden(NAME),
        Seen::There(slices) if slices.iter().any(is_served) => {
            Check::ok(NAME, format!("Service {service} has an endpoint"))
        }
        Seen::There(_) => Check::fail(
            NAME,
            format!(
                "Service {service} has no ready endpoint: agents keep receipts on their nodes, and nothing accrues"
            ),
            format!("kubectl logs -n {} deploy/vendue-controller", cluster.system),
        ),
    })
}

fn is_served(slice: &EndpointSlice) -> bool {
    let ready = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
    };
    slice.endpoints.iter().any(ready)
}

async fn gpu_nodes(cluster: &Cluster) -> Result<Vec<Check>, CliError> {
    let nodes = match cluster.gpu_nodes().await? {
        Seen::There(nodes) => nodes,
        Seen::Missing => return Ok(vec![]),
        Seen::Forbidden => return Ok(vec![forbidden("gpu nodes")]),
    };
    if nodes.is_empty() {
        let look = format!("kubectl logs -n {} ds/{AGENT} --prefix", cluster.system);
        return Ok(vec![Check::fail("gpu nodes", "the agent has reported no node", look)]);
    }
    let found: Vec<Vec<Check>> = nodes.iter().map(|node| gpu_node(&cluster.system, node)).collect();
    let sound = nodes.iter().zip(&found).filter(|(_, checks)| checks.is_empty()).map(|(node, _)| node);
    let (mut count, mut gpus) = (0, 0);
    for node in sound {
        count += 1;
        gpus += node.status.as_ref().map_or(0, |status| i64::from(status.device_count));
    }
    let mut checks = vec![];
    if count > 0 {
        checks.push(Check::ok("gpu nodes", format!("{count} of {} in order, with {gpus} GPUs", nodes.len())));
    }
    let mut troubled = found.into_iter().filter(|checks| !checks.is_empty());
    checks.extend(troubled.by_ref().take(NAMED).flatten());
    let more = troubled.count();
    if more > 0 {
        checks.push(Check::fail(
            "gpu nodes",
            format!("{more} more are not in order"),
            "kubectl get gpunodes",
        ));
    }
    Ok(checks)
}

/// What is not in order on a node.
fn gpu_node(system: &str, node: &GpuNode) -> Vec<Check> {
    let plain = node.metadata.name.as_deref().unwrap_or("?");
    let name = format!("gpu node {plain}");
    let list = node.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let mut checks = vec![];
    let ready = conditions::find(list, gpu_node::READY);
    if ready.is_none_or(|c| c.status != "True") {
        let reason = ready.map(|c| c.reason.as_str()).unwrap_or_default();
        let next =
            STEPS.iter().find(|(known, _)| *known == reason || known.is_empty()).map_or("", |(_, next)| next);
        checks.push(Check::fail(&name, said(ready), next));
    }
    if let Some(metered) = conditions::find(list, gpu_node::METERED).filter(|c| c.status != "True") {
        let next = match metered.reason.as_str() {
            gpu_node::reasons::NOT_STORED => {
                "on the node: `df -h` of gpuAgent.stateDir; what is used meanwhile costs the user nothing"
                    .to_owned()
            }
            _ => format!("kubectl logs -n {system} deploy/vendue-controller | grep {plain}"),
        };
        checks.push(Check::fail(&name, format!("not metered: {}", said(Some(metered))), next));
    }
    let warned = [
        (conditions::find(list, gpu_node::PROBED).filter(|c| c.status != "True"), "not probed"),
        (conditions::find(list, gpu_node::SLICES_CONTRADICT).filter(|c| c.status == "True"), "contradicted"),
    ];
    let warned = warned.into_iter().filter_map(|(found, what)| found.map(|c| (c, what)));
    checks
        .extend(warned.map(|(c, what)| Check::new(Level::Warn, &name, format!("{what}: {}", said(Some(c))))));
    checks
}
