//! Objects for tests.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use vendue_crds::workload::{TrainWorkload, Workload};
use vendue_crds::{
    Award, AwardRequirements, AwardSide, AwardSpec, Decimal, HeldDevices, JobReference, ProvisionSpec,
};
use vendue_market::tagged_hash;

use crate::award::objects::{Env, Terms};
use crate::provision::{Device, GpuNodeView, Known, NodeView, Snapshot};

/// A time of tests.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// A host Award that expires at second 60 and asks for two workers with a GPU each.
pub(crate) fn mk_award(id: &str) -> Award {
    Award {
        metadata: ObjectMeta {
            name: Some("award".into()),
            namespace: Some(format!("vendue-a-{id}")),
            uid: Some(format!("uid-{id}")),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: AwardSpec {
            side: AwardSide::Host,
            id: id.into(),
            market_id: String::new(),
            round: 7,
            order_digest: String::new(),
            job: JobReference { home: "home".into(), uid: "job".into(), attempt: 1, ..Default::default() },
            provider: "alpha".into(),
            seat: 0,
            price: Decimal("1.80".into()),
            stand_bys: vec![],
            expires_at: Time(at(60)),
            requirements: AwardRequirements {
                workers: 2,
                gpus_per_worker: 1,
                cpu_millis_per_worker: 500,
                memory_mib_per_worker: 1536,
                disk_mib_per_worker: 1024,
                run_deadline_seconds: 600,
                image: "ray:1".into(),
                ..AwardRequirements::default()
            },
            devices_commitment: None,
            provision: Some("gpus".into()),
            provision_namespace: Some("default".into()),
            workload_secret: None,
            handed_over_at: None,
            certificate: None,
            close: None,
        },
        status: None,
    }
}

/// The workload of [`mk_award`].
pub(crate) fn mk_workload() -> Workload {
    Workload {
        version: 1,
        train: TrainWorkload {
            image: "ray:1".into(),
            entrypoint: "python train.py".into(),
            files: BTreeMap::from([("train.py".into(), "print(1)".into())]),
            env: BTreeMap::from([("A".into(), "1".into())]),
            secret_env: BTreeMap::from([("B".into(), "2".into())]),
            workers: 2,
            gpus_per_worker: 1,
            cpu_millis_per_worker: 500,
            memory_mib_per_worker: 1536,
            shared_memory_mib_per_worker: 256,
            disk_mib_per_worker: 1024,
            volume_mib: 64,
            retries: 0,
            run_deadline_seconds: 600,
        },
    }
}

/// Devices for [`mk_award`].
pub(crate) fn mk_devices() -> Vec<HeldDevices> {
    vec![HeldDevices { node: "n1".into(), model: "H100".into(), workers: 2, gpus: 2 }]
}

pub(crate) fn mk_env() -> Env {
    Env {
        namespace: "vendue-system".into(),
        image: "vendue:1".into(),
        image_pull_policy: "IfNotPresent".into(),
    }
}

pub(crate) fn mk_terms() -> Terms {
    Terms { storage_class_name: "local".into(), isolation: Default::default() }
}

pub(crate) fn mk_provision_spec() -> ProvisionSpec {
    ProvisionSpec {
        price: Decimal("1.80".into()),
        gpu_models: vec![],
        node_selector: BTreeMap::new(),
        storage_class_name: "local".into(),
        accept: Default::default(),
        isolation: Default::default(),
        accept_unprobed: None,
        suspend: None,
    }
}

/// What the agent of a node says; the fingerprint is that of its name.
pub(crate) fn mk_known(node: &str, model: &str, gpus: u32) -> Known {
    let device = |n: u32| Device {
        uuid: format!("GPU-{node}-{n}"),
        product: format!("NVIDIA {model}"),
        memory_mib: 80 * 1024,
        sliced: false,
        healthy: true,
    };
    let fingerprint = hex::encode(tagged_hash("TEST", &[node.as_bytes()]));
    Known { fingerprint: Some(fingerprint), devices: (0..gpus).map(device).collect() }
}

/// A snapshot of nodes, each with so many GPUs of one model.
pub(crate) fn mk_snapshot(nodes: &[(&str, &str, u32)]) -> Snapshot {
    let mut snapshot = Snapshot { storage_classes: ["local".to_owned()].into(), ..Snapshot::default() };
    for (name, model, gpus) in nodes {
        let node = NodeView {
            labels: BTreeMap::new(),
            usable: true,
            gpus: *gpus,
            cpu_millis: 64_000,
            memory_mib: 256 * 1024,
            disk_mib: 1024 * 1024,
        };
        snapshot.nodes.insert((*name).to_owned(), node);
        let devices = vec![((*model).to_owned(), 80 * 1024); *gpus as usize];
        let known = mk_known(name, model, *gpus);
        let view = GpuNodeView { ready: true, devices, known, ..GpuNodeView::default() };
        snapshot.gpu_nodes.insert((*name).to_owned(), view);
    }
    snapshot
}
