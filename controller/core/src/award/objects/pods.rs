//! Head and worker Pods of the native Ray backend.
//!
//! Invariants: Pod security `restricted`; only workers request GPUs; every Pod is bound to the node whose devices are
//! held; the head restarts in place (its logs stay), a worker that ends is replaced by the controller, which counts.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, EmptyDirVolumeSource, EnvFromSource, EnvVar, EnvVarSource,
    HTTPGetAction, KeyToPath, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    ObjectFieldSelector, PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretEnvSource, SecretKeySelector, SecretVolumeSource,
    SecurityContext, TCPSocketAction, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use vendue_crds::names;
use vendue_crds::workload::TrainWorkload;

use super::data::{ENV_SECRET, FILES_SECRET, VOLUME_CLAIM};
use super::policy::SERVICE_ACCOUNT;
use super::{Parts, meta};
use crate::award::sizes;
use crate::award::taints::tolerations;
use crate::provision::GPU_RESOURCE;

/// Name of the head Pod.
pub const HEAD_POD: &str = "ray-head";
/// Role of the head.
pub(super) const HEAD_ROLE: &str = "head";
/// Role of a worker.
const WORKER_ROLE: &str = "worker";
/// Port of Ray's control store.
pub(super) const GCS_PORT: i32 = 6379;
/// Port of Ray's dashboard, which serves the Jobs API.
pub(super) const DASHBOARD_PORT: i32 = 8265;
/// Port of the agent that every Ray node has; its health answer needs no token.
const AGENT_PORT: i32 = 52365;
/// User and group of every process; Ray's images use it.
const UID: i64 = 1000;
const MIB: u64 = 1 << 20;

/// Name of a worker Pod.
pub fn worker_pod(index: u32) -> String {
    format!("ray-worker-{index}")
}

/// Scratch disk that a worker may fill before kubelet evicts it: what was bought, and room for Ray's logs.
pub(super) fn worker_disk_limit_mib(train: &TrainWorkload) -> u64 {
    train.disk_mib_per_worker.saturating_add(1024)
}

/// The head: control store, dashboard, driver; and the courier, which serves logs and outputs.
pub(super) fn head(parts: Parts<'_>) -> Pod {
    let store = sizes::MIN_OBJECT_STORE_BYTES;
    // Dead workers are noticed within about 10 s instead of the default minute.
    let script = format!(
        "mkdir -p {out} {ckpt} && exec ray start --head --block --node-ip-address=\"$POD_IP\" --port={GCS_PORT} \
         --dashboard-host=0.0.0.0 --dashboard-port={DASHBOARD_PORT} --dashboard-agent-listen-port={AGENT_PORT} \
         --num-cpus=0 --num-gpus=0 --object-store-memory={store} --disable-usage-stats",
        out = names::OUTPUTS_DIR,
        ckpt = names::CHECKPOINTS_DIR,
    );
    let resources = ResourceRequirements {
        requests: resources(sizes::RAY_HEAD_CPU_MILLIS, sizes::RAY_HEAD_MEMORY_MIB, sizes::RAY_HEAD_DISK_MIB),
        limits: limits(sizes::RAY_HEAD_MEMORY_LIMIT_MIB, sizes::RAY_HEAD_DISK_LIMIT_MIB),
        claims: None,
    };
    let ray = ray_container(parts, "head", script, resources);
    let mut volumes = volumes(sizes::HEAD_SHARED_MEMORY_MIB);
    volumes.push(courier_token());
    pod(parts, HEAD_POD, HEAD_ROLE, "Always", vec![ray, courier(parts)], volumes)
}

/// A worker: waits until the head listens, then joins.
pub(super) fn worker(parts: Parts<'_>, index: u32) -> Pod {
    let train = parts.train;
    let shared = train.shared_memory_mib_per_worker.max(96);
    let store = (shared * MIB / 10 * 9).max(sizes::MIN_OBJECT_STORE_BYTES);
    let cpus = train.cpu_millis_per_worker.div_ceil(1000).max(1);
    let script = format!(
        "until (exec 3<>/dev/tcp/{head}/{GCS_PORT}) 2>/dev/null; do sleep 0.2; done; \
         exec ray start --block --address={head}:{GCS_PORT} --node-ip-address=\"$POD_IP\" \
         --dashboard-agent-listen-port={AGENT_PORT} --num-cpus={cpus} --num-gpus={gpus} \
         --object-store-memory={store} --disable-usage-stats",
        head = names::HEAD_SERVICE,
        gpus = train.gpus_per_worker,
    );
    let mut resources = ResourceRequirements {
        requests: resources(
            train.cpu_millis_per_worker,
            train.memory_mib_per_worker,
            train.disk_mib_per_worker,
        ),
        limits: limits(train.memory_mib_per_worker, worker_disk_limit_mib(train)),
        claims: None,
    };
    // An extended resource is requested and limited at the same number.
    for map in [&mut resources.requests, &mut resources.limits].into_iter().flatten() {
        map.insert(GPU_RESOURCE.to_owned(), Quantity(train.gpus_per_worker.to_string()));
    }
    let ray = ray_container(parts, "worker", script, resources);
    pod(parts, &worker_pod(index), WORKER_ROLE, "Never", vec![ray], volumes(shared))
}

fn pod(
    parts: Parts<'_>,
    name: &str,
    role: &str,
    restart: &str,
    containers: Vec<Container>,
    volumes: Vec<Volume>,
) -> Pod {
    let spec = PodSpec {
        containers,
        volumes: Some(volumes),
        restart_policy: Some(restart.to_owned()),
        service_account_name: Some(SERVICE_ACCOUNT.to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        runtime_class_name: parts.terms.isolation.runtime_class_name.clone(),
        affinity: Some(on_node(parts.node)),
        tolerations: Some(tolerations()),
        // Checkpoints are on the volume; nothing needs a long farewell.
        termination_grace_period_seconds: Some(2),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(UID),
            run_as_group: Some(UID),
            fs_group: Some(UID),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    };
    Pod { metadata: meta(parts.award, name, Some(role)), spec: Some(spec), status: None }
}

/// Binds to the node by its name; a label such as the hostname may differ from it.
fn on_node(node: &str) -> Affinity {
    let term = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
        match_expressions: None,
    };
    let required = NodeSelector { node_selector_terms: vec![term] };
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(required),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn ray_container(parts: Parts<'_>, name: &str, script: String, resources: ResourceRequirements) -> Container {
    let train = parts.train;
    let from = |name: &str| EnvFromSource {
        secret_ref: Some(SecretEnvSource { name: name.to_owned(), optional: None }),
        ..EnvFromSource::default()
    };
    Container {
        name: name.to_owned(),
        image: Some(train.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec!["/bin/bash".to_owned(), "-c".to_owned(), script]),
        env: Some(ray_env(train)),
        env_from: Some(vec![from(ENV_SECRET)]),
        resources: Some(resources),
        readiness_probe: Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some("/api/healthz".to_owned()),
                port: IntOrString::Int(AGENT_PORT),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(1),
            timeout_seconds: Some(2),
            failure_threshold: Some(10),
            ..Probe::default()
        }),
        security_context: Some(confined(false)),
        volume_mounts: Some(vec![
            mount("award", names::AWARD_MOUNT, false),
            mount("files", names::FILES_DIR, true),
            mount("shared-memory", "/dev/shm", false),
            mount("ray", "/tmp/ray", false),
        ]),
        ..Container::default()
    }
}

/// Environment that Vendue sets; it wins over the user's, because the token and the timeouts must hold.
fn ray_env(train: &TrainWorkload) -> Vec<EnvVar> {
    let value = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        value_from: None,
    };
    let mut env = vec![
        EnvVar {
            name: "POD_IP".to_owned(),
            value: None,
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    field_path: "status.podIP".to_owned(),
                    api_version: None,
                }),
                ..EnvVarSource::default()
            }),
        },
        value("RAY_AUTH_MODE", "token"),
        EnvVar {
            name: "RAY_AUTH_TOKEN".to_owned(),
            value: None,
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector {
                    name: names::TOKENS_SECRET.to_owned(),
                    key: names::RAY_TOKEN_KEY.to_owned(),
                    optional: None,
                }),
                ..EnvVarSource::default()
            }),
        },
        value("RAY_health_check_initial_delay_ms", "2000"),
        value("RAY_health_check_period_ms", "2000"),
        value("RAY_health_check_timeout_ms", "5000"),
        value("RAY_health_check_failure_threshold", "3"),
        // A worker whose head is gone ends after this long and is replaced.
        value("RAY_gcs_rpc_server_reconnect_timeout_s", "20"),
        value("RAY_USAGE_STATS_ENABLED", "0"),
        value("VENDUE_OUTPUTS", names::OUTPUTS_DIR),
        value("VENDUE_CHECKPOINTS", names::CHECKPOINTS_DIR),
    ];
    // Workers import the user's modules from the same folder as the entry point.
    if !train.env.contains_key("PYTHONPATH") && !train.secret_env.contains_key("PYTHONPATH") {
        env.push(value("PYTHONPATH", names::FILES_DIR));
    }
    env
}

fn courier(parts: Parts<'_>) -> Container {
    let text = |list: &[&str]| Some(list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
    let port = names::COURIER_PORT;
    Container {
        name: "courier".to_owned(),
        image: Some(parts.env.image.clone()),
        image_pull_policy: Some(parts.env.image_pull_policy.clone()),
        command: text(&[
            "vendue-auction",
            "courier",
            "--volume",
            names::AWARD_MOUNT,
            "--ray-logs",
            "/tmp/ray",
        ]),
        env: Some(vec![EnvVar {
            name: "VENDUE_COURIER_LISTEN".to_owned(),
            value: Some(format!("0.0.0.0:{port}")),
            value_from: None,
        }]),
        resources: Some(ResourceRequirements {
            requests: resources(
                sizes::COURIER_CPU_MILLIS,
                sizes::COURIER_MEMORY_MIB,
                sizes::COURIER_DISK_MIB,
            ),
            limits: limits(sizes::COURIER_MEMORY_LIMIT_MIB, sizes::COURIER_DISK_MIB),
            claims: None,
        }),
        readiness_probe: Some(Probe {
            tcp_socket: Some(TCPSocketAction { port: IntOrString::Int(i32::from(port)), host: None }),
            period_seconds: Some(1),
            ..Probe::default()
        }),
        security_context: Some(confined(true)),
        volume_mounts: Some(vec![
            mount("award", names::AWARD_MOUNT, true),
            mount("ray", "/tmp/ray", true),
            mount("tokens", "/etc/vendue/tokens", true),
        ]),
        ..Container::default()
    }
}

fn confined(read_only_root: bool) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(read_only_root),
        ..SecurityContext::default()
    }
}

fn resources(cpu_millis: u64, memory_mib: u64, disk_mib: u64) -> Option<BTreeMap<String, Quantity>> {
    let mut map = limits(memory_mib, disk_mib)?;
    map.insert("cpu".to_owned(), Quantity(format!("{cpu_millis}m")));
    Some(map)
}

/// No limit on CPU: shares keep the order among neighbours, and throttling would only slow starts.
fn limits(memory_mib: u64, disk_mib: u64) -> Option<BTreeMap<String, Quantity>> {
    let mib = |n: u64| Quantity(format!("{n}Mi"));
    Some(BTreeMap::from([
        ("memory".to_owned(), mib(memory_mib)),
        ("ephemeral-storage".to_owned(), mib(disk_mib)),
    ]))
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// The courier's token alone: Ray's is in the environment of the Ray containers.
fn courier_token() -> Volume {
    let key = names::COURIER_TOKEN_KEY.to_owned();
    Volume {
        name: "tokens".to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(names::TOKENS_SECRET.to_owned()),
            default_mode: Some(0o440),
            items: Some(vec![KeyToPath { key: key.clone(), path: key, mode: None }]),
            optional: None,
        }),
        ..Volume::default()
    }
}

fn volumes(shared_memory_mib: u64) -> Vec<Volume> {
    let secret = |volume: &str, secret: &str| Volume {
        name: volume.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    let empty = |name: &str, source: EmptyDirVolumeSource| Volume {
        name: name.to_owned(),
        empty_dir: Some(source),
        ..Volume::default()
    };
    let shared = EmptyDirVolumeSource {
        medium: Some("Memory".to_owned()),
        size_limit: Some(Quantity(format!("{shared_memory_mib}Mi"))),
    };
    vec![
        Volume {
            name: "award".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: VOLUME_CLAIM.to_owned(),
                read_only: None,
            }),
            ..Volume::default()
        },
        secret("files", FILES_SECRET),
        empty("shared-memory", shared),
        empty("ray", EmptyDirVolumeSource::default()),
    ]
}
