//! Capacity: what is free, what is given out, and that nothing is given out twice.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::prelude::*;
use vendue_crds::conditions::{find, provision as cond, reasons};
use vendue_crds::{Decimal, GpuNode, HeldCapacity, Provision, ProvisionSpec};

use super::*;
use crate::award::allocate::{Allocation, allocate, hold};
use crate::award::sizes;
use crate::fixtures::{at, mk_award, mk_devices, mk_known, mk_provision_spec, mk_snapshot};

fn pod_of(node: &str, award: Option<&str>, gpus: u32) -> PodUse {
    PodUse {
        node: node.into(),
        award_id: award.map(Into::into),
        gpus,
        cpu_millis: 1000,
        memory_mib: 1024,
        ..PodUse::default()
    }
}

fn free_gpus(snapshot: &Snapshot) -> i32 {
    free_nodes(snapshot, &mk_provision_spec()).iter().map(|n| n.gpus).sum()
}

#[test]
fn counts_holds_once_and_other_pods_by_themselves() {
    let mut snapshot = mk_snapshot(&[("n1", "H100", 8)]);
    assert_eq!(free_gpus(&snapshot), 8);
    let empty = &free_nodes(&snapshot, &mk_provision_spec())[0];
    assert_eq!(empty.cpu_millis, 64_000 - sizes::HEAD_CPU_MILLIS as i64);
    snapshot.pods.push(pod_of("n1", None, 3));
    assert_eq!(free_gpus(&snapshot), 5);
    let award = mk_award("a1");
    snapshot.holds.push(hold(&award, mk_devices()));
    snapshot.pods.push(pod_of("n1", Some("a1"), 1));
    assert_eq!(free_gpus(&snapshot), 3);
    // A Pod that outlived its award's hold counts by itself.
    snapshot.pods.push(pod_of("n1", Some("gone"), 1));
    let free = &free_nodes(&snapshot, &mk_provision_spec())[0];
    assert_eq!(free.gpus, 2);
    let taken = 2 * 1000 + (2 * 500 + sizes::HEAD_CPU_MILLIS as i64);
    assert_eq!(free.cpu_millis, 64_000 - sizes::HEAD_CPU_MILLIS as i64 - taken);
}

#[test]
fn claims_count_once_and_one_that_is_not_known_blocks_its_node() {
    let mut snapshot = mk_snapshot(&[("n1", "H100", 8), ("n2", "H100", 8)]);
    let with_claims = |claims: &[&str], gpus| PodUse {
        claims: claims.iter().map(|name| (*name).to_owned()).collect(),
        ..pod_of("n1", None, gpus)
    };
    let free = |snapshot: &Snapshot| -> Vec<i32> {
        free_nodes(snapshot, &mk_provision_spec()).iter().map(|n| n.gpus).collect()
    };
    snapshot.claims.insert("ns/two".into(), ClaimedGpus::Devices(2));
    snapshot.claims.insert("ns/nic".into(), ClaimedGpus::Devices(0));
    // Two Pods share a claim; one has GPUs from the device plugin too.
    snapshot.pods.push(with_claims(&["ns/two", "ns/nic"], 0));
    snapshot.pods.push(with_claims(&["ns/two"], 1));
    assert_eq!(free(&snapshot), [5, 8]);
    let known = snapshot.clone();
    let metadata = ObjectMeta::default();
    for (claims, unnamed, view) in [
        (&["ns/late"][..], false, Some(ClaimedGpus::Unknown)),
        (&["ns/late"][..], false, None),
        (&[][..], true, None),
    ] {
        let mut snapshot = known.clone();
        snapshot.claims.extend(view.map(|view| ("ns/late".to_owned(), view)));
        snapshot.pods.push(PodUse { unnamed_claim: unnamed, ..with_claims(claims, 0) });
        assert_eq!(free(&snapshot), [0, 8], "{claims:?} {view:?}");
        let provision = Provision { metadata: metadata.clone(), spec: mk_provision_spec(), status: None };
        let status = plan(&provision, &snapshot, at(1)).status;
        let text = "16 GPUs on 2 nodes; nothing is free where the devices of a Pod's claim are not known: n1";
        assert_eq!(find(&status.conditions, cond::READY).unwrap().message, text);
    }
}

#[test]
fn sells_only_what_works_and_what_kubelet_advertises() {
    let mut snapshot = mk_snapshot(&[("n1", "H100", 4), ("n2", "H100", 4), ("n3", "H100", 4)]);
    snapshot.nodes.get_mut("n1").unwrap().gpus = 1;
    snapshot.nodes.get_mut("n2").unwrap().usable = false;
    snapshot.gpu_nodes.get_mut("n3").unwrap().ready = false;
    assert_eq!(free_gpus(&snapshot), 1);
    // Two models on one node: a Pod could get either.
    let devices = &mut snapshot.gpu_nodes.get_mut("n1").unwrap().devices;
    devices.push(("L40S".into(), 48 * 1024));
    assert_eq!(select(&snapshot, &mk_provision_spec()).mixed, ["n1"]);
    let mut spec = mk_provision_spec();
    spec.gpu_models = vec!["A100".into()];
    assert!(free_nodes(&snapshot, &spec).is_empty());
    spec.gpu_models.clear();
    spec.node_selector.insert("pool".into(), "gpu".into());
    assert!(free_nodes(&snapshot, &spec).is_empty());
}

#[test]
fn devices_that_were_not_probed_count_only_where_that_is_accepted() {
    let mut snapshot = mk_snapshot(&[("n1", "H100", 4)]);
    snapshot.nodes.get_mut("n1").unwrap().gpus = 8;
    let gpus = snapshot.gpu_nodes.get_mut("n1").unwrap();
    gpus.unprobed = vec![("H100".into(), 40 * 1024); 4];
    gpus.known = mk_known("n1", "H100", 8);
    let spec = mk_provision_spec();
    let accepts = ProvisionSpec { accept_unprobed: Some(true), ..mk_provision_spec() };
    let free = |snapshot: &Snapshot, spec: &ProvisionSpec| {
        let nodes = free_nodes(snapshot, spec);
        nodes.first().map(|n| (n.gpus, n.gpu_memory_mib))
    };
    assert_eq!(free(&snapshot, &spec), Some((4, 80 * 1024)));
    assert_eq!(free(&snapshot, &accepts), Some((8, 40 * 1024)));
    // A Pod may have any of them, so that each one taken is one fewer.
    snapshot.pods.push(pod_of("n1", None, 3));
    assert_eq!(free(&snapshot, &spec).unwrap().0, 1);
    // Known to be Pods': their three are among the four that were not probed.
    snapshot.gpu_nodes.get_mut("n1").unwrap().unprobed_allocated = 4;
    assert_eq!(free(&snapshot, &spec).unwrap().0, 4);
    snapshot.pods.push(pod_of("n1", None, 3));
    assert_eq!(free(&snapshot, &spec).unwrap().0, 2);
    assert_eq!(free(&snapshot, &accepts).unwrap().0, 2);

    let metadata = ObjectMeta::default();
    let message = |spec: &ProvisionSpec, snapshot: &Snapshot| {
        let provision = Provision { metadata: metadata.clone(), spec: spec.clone(), status: None };
        let status = plan(&provision, snapshot, at(1)).status;
        (status.total_gpus, find(&status.conditions, cond::READY).unwrap().message.clone())
    };
    let left_out = "4 GPUs were not probed, and spec.acceptUnprobed is not true";
    assert_eq!(message(&spec, &snapshot), (4, format!("4 GPUs on 1 nodes; {left_out}")));
    assert_eq!(message(&accepts, &snapshot), (8, "8 GPUs on 1 nodes".into()));
    // Nothing but such devices: the Provision says why it has none.
    snapshot.gpu_nodes.get_mut("n1").unwrap().devices.clear();
    assert_eq!(free(&snapshot, &spec), None);
    let none = format!("no node reports a healthy GPU that spec selects; {left_out}");
    assert_eq!(message(&spec, &snapshot), (0, none));
    // Of another model: a Pod could get one of them, whatever is counted.
    let gpus = snapshot.gpu_nodes.get_mut("n1").unwrap();
    gpus.devices = vec![("L40S".into(), 48 * 1024)];
    assert_eq!(select(&snapshot, &spec).mixed, ["n1"]);
}

#[test]
fn only_devices_that_passed_their_probe_are_probed() {
    let device = |n: i32, health: &str, probe: serde_json::Value| {
        serde_json::json!({
            "uuid": format!("GPU-{n}"), "index": n, "model": "H100", "productName": "NVIDIA H100 80GB HBM3",
            "memoryMib": 81_559, "pciBusId": "0", "migMode": "Disabled", "health": health, "probe": probe,
        })
    };
    let probe = |result: &str, reason: &str| serde_json::json!({ "result": result, "reason": reason });
    let node: GpuNode = serde_json::from_value(serde_json::json!({
        "metadata": { "name": "n1" }, "spec": {},
        "status": {
            "conditions": [], "deviceCount": 6,
            "devices": [
                device(0, "Healthy", probe("Passed", "Passed")),
                device(1, "Healthy", probe("NotRun", "NoCudaDriver")),
                device(2, "Healthy", probe("NotRun", "Busy")),
                device(3, "Healthy", serde_json::Value::Null),
                device(4, "Failed", probe("Failed", "ClockLow")),
                device(5, "Healthy", probe("Failed", "ClockLow")),
                device(6, "Unknown", probe("Passed", "Passed")),
                device(7, "Healthy", probe("NotRun", "Allocated")),
            ],
        },
    }))
    .unwrap();
    let view = gpu_node_view(&node);
    assert_eq!((view.devices.len(), view.unprobed.len(), view.unprobed_allocated), (1, 4, 1));
    // One that works in slices is not sold, probed or not.
    let mut sliced = node;
    sliced
        .status
        .as_mut()
        .unwrap()
        .devices
        .iter_mut()
        .for_each(|d| d.mig_mode = vendue_crds::MigMode::Enabled);
    let view = gpu_node_view(&sliced);
    assert_eq!((view.devices.len(), view.unprobed.len(), view.unprobed_allocated), (0, 0, 0));
}

/// Time slicing makes many of one GPU, and so does MIG where each slice is called a GPU.
#[test]
fn shares_and_slices_of_gpus_are_not_sold_as_gpus() {
    let mut snapshot = mk_snapshot(&[("n1", "H100", 4), ("n2", "H100", 4)]);
    snapshot.nodes.get_mut("n1").unwrap().gpus = 16;
    assert_eq!(free_gpus(&snapshot), 4);
    snapshot.gpu_nodes.get_mut("n2").unwrap().known.devices[3].sliced = true;
    let provision = Provision { metadata: ObjectMeta::default(), spec: mk_provision_spec(), status: None };
    let status = plan(&provision, &snapshot, at(1)).status;
    let text = "8 GPUs on 2 nodes; nothing is free where kubelet has more GPUs to give than there are: n1; 1 GPUs are in MIG mode, and \
                only whole ones are sold";
    assert_eq!(find(&status.conditions, cond::READY).unwrap().message, text);
}

#[test]
fn devices_that_strangers_use_are_not_taken_for_those_that_pods_have() {
    let mut snapshot = mk_snapshot(&[("n1", "H100", 4)]);
    snapshot.nodes.get_mut("n1").unwrap().gpus = 8;
    let gpus = snapshot.gpu_nodes.get_mut("n1").unwrap();
    gpus.known.devices.extend_from_within(..);
    // Four passed; two are a Pod's and were never probed; two are used outside Kubernetes.
    gpus.unprobed = vec![("H100".into(), 80 * 1024); 4];
    gpus.unprobed_allocated = 2;
    let free = |snapshot: &Snapshot| free_nodes(snapshot, &mk_provision_spec())[0].gpus;
    snapshot.pods.push(pod_of("n1", None, 2));
    assert_eq!(free(&snapshot), 4, "the Pod's two are those that were not probed");
    snapshot.pods.push(pod_of("n1", None, 1));
    assert_eq!(free(&snapshot), 3, "another Pod has one that passed");
    snapshot.pods.push(pod_of("n1", None, 3));
    assert_eq!(free(&snapshot), 0);
    // All four are used outside Kubernetes: the Pod's are among those that passed.
    snapshot.pods.truncate(1);
    snapshot.gpu_nodes.get_mut("n1").unwrap().unprobed_allocated = 0;
    assert_eq!(free(&snapshot), 2);
}

#[test]
fn gives_small_nodes_first_and_one_node_only() {
    let snapshot = mk_snapshot(&[("big", "H100", 8), ("small", "H100", 2), ("tiny", "H100", 1)]);
    let Allocation::Held(devices) = allocate(&snapshot, &mk_provision_spec(), &mk_award("a1")) else {
        panic!("refused")
    };
    assert_eq!((devices[0].node.as_str(), devices[0].gpus, devices[0].workers), ("small", 2, 2));
    let scattered = mk_snapshot(&[("a", "H100", 1), ("b", "H100", 1)]);
    assert_eq!(
        allocate(&scattered, &mk_provision_spec(), &mk_award("a1")),
        Allocation::Refused(
            "2 GPUs are free only on several nodes together; the workers share a volume that one node mounts"
                .into()
        )
    );
    let mut award = mk_award("a1");
    award.spec.requirements.gpu_models = vec!["B200".into()];
    assert_eq!(
        allocate(&scattered, &mk_provision_spec(), &award),
        Allocation::Refused("2 GPUs are wanted; what is free now fails on: model".into())
    );
    award.spec.requirements.workers = -1;
    assert!(matches!(allocate(&scattered, &mk_provision_spec(), &award), Allocation::Refused(_)));
}

#[test]
fn the_node_that_was_bid_is_given_while_it_fits() {
    let mut snapshot = mk_snapshot(&[("big", "H100", 8), ("small", "H100", 2)]);
    let mut award = mk_award("a1");
    let fingerprint = snapshot.gpu_nodes["big"].known.fingerprint.clone().unwrap();
    let digest = vendue_crds::parse_fingerprint(&fingerprint).unwrap();
    award.spec.market_id = "01".repeat(32);
    let commitment = vendue_market::commit_devices(&[1; 32], 7, 0, &digest);
    award.spec.devices_commitment = Some(hex::encode(commitment));
    let given = |snapshot: &Snapshot| match allocate(snapshot, &mk_provision_spec(), &award) {
        Allocation::Held(devices) => devices[0].node.clone(),
        Allocation::Refused(why) => why,
    };
    assert_eq!(given(&snapshot), "big");
    let free = free_nodes(&snapshot, &mk_provision_spec());
    assert_eq!(free[0].fingerprint, Some(fingerprint));
    snapshot.pods.push(pod_of("big", None, 7));
    assert_eq!(given(&snapshot), "small", "better than none");
}

#[test]
fn the_status_says_it_all() {
    let mut snapshot = mk_snapshot(&[("n1", "H100", 4)]);
    snapshot.holds.push(hold(&mk_award("a1"), mk_devices()));
    let metadata = ObjectMeta {
        name: Some("gpus".into()),
        namespace: Some("default".into()),
        generation: Some(3),
        ..ObjectMeta::default()
    };
    let mut provision = Provision { metadata, spec: mk_provision_spec(), status: None };
    let first = plan(&provision, &snapshot, at(1));
    assert_eq!((first.status.total_gpus, first.status.free_gpus), (4, 2));
    assert_eq!(first.status.held, [HeldCapacity { award_id: "a1".into(), gpus: 2 }]);
    let leased = find(&first.status.conditions, cond::LEASED).unwrap();
    assert_eq!((leased.reason.as_str(), leased.message.as_str()), (reasons::IN_USE, "1 awards hold 2 GPUs"));
    assert_eq!(find(&first.status.conditions, cond::READY).unwrap().message, "4 GPUs on 1 nodes");
    provision.status = Some(first.status.clone());
    let again = plan(&provision, &snapshot, at(2));
    assert_eq!((again.status, again.transitions), (first.status, vec![]));

    provision.spec.isolation.allowed_egress = vec!["10.0.0.1/8".into()];
    let bad = plan(&provision, &snapshot, at(3));
    assert_eq!(find(&bad.status.conditions, cond::READY).unwrap().reason, reasons::INVALID_SPEC);
    provision.spec = mk_provision_spec();
    provision.spec.price = Decimal("0".into());
    assert_eq!(
        find(&plan(&provision, &snapshot, at(3)).status.conditions, cond::READY).unwrap().status,
        "False"
    );
    let none = plan(&provision, &Snapshot::default(), at(3));
    assert_eq!(none.status.total_gpus, 0);
}

/// A list of a thousand nodes that are full would keep the next ones from being sold.
#[test]
fn of_many_nodes_those_with_free_gpus_are_listed() {
    let names: Vec<String> = (0..1500).map(|n| format!("n{n:04}")).collect();
    let nodes: Vec<(&str, &str, u32)> = names.iter().map(|n| (n.as_str(), "H100", 8)).collect();
    let mut snapshot = mk_snapshot(&nodes);
    for name in &names[..1100] {
        snapshot.pods.push(pod_of(name, None, if name == "n0007" { 7 } else { 8 }));
    }
    let provision = Provision { metadata: ObjectMeta::default(), spec: mk_provision_spec(), status: None };
    let status = plan(&provision, &snapshot, at(1)).status;
    assert_eq!((status.total_gpus, status.free_gpus, status.free.len()), (12_000, 3201, 1024));
    assert_eq!(status.free.iter().map(|node| node.gpus).sum::<i32>(), 3201);
    assert!(status.free.is_sorted_by(|a, b| a.node < b.node), "in the order of their names");
    assert!(
        status.free.iter().any(|node| node.node == "n0007") && status.free.last().unwrap().node == "n1499"
    );
}

#[test]
fn what_an_award_cannot_run_with_is_not_sold() {
    let mut snapshot = mk_snapshot(&[("n1", "H100", 4)]);
    let mut provision =
        Provision { metadata: ObjectMeta::default(), spec: mk_provision_spec(), status: None };
    let ready = |provision: &Provision, snapshot: &Snapshot| {
        let status = plan(provision, snapshot, at(1)).status;
        let found = find(&status.conditions, cond::READY).unwrap();
        (found.status.clone(), found.reason.clone(), found.message.clone())
    };
    provision.spec.storage_class_name = "fast".into();
    let (status, reason, message) = ready(&provision, &snapshot);
    assert_eq!((status.as_str(), reason.as_str()), ("False", reasons::STORAGE_CLASS_MISSING));
    assert_eq!(message, "spec.storageClassName is \"fast\", which this cluster does not have; it has: local");
    snapshot.storage_classes.insert("fast".into());
    provision.spec.isolation.runtime_class_name = Some("kata".into());
    let (status, reason, message) = ready(&provision, &snapshot);
    assert_eq!((status.as_str(), reason.as_str()), ("False", reasons::RUNTIME_CLASS_MISSING));
    assert_eq!(
        message,
        "spec.isolation.runtimeClassName is \"kata\", which this cluster does not have; it has: none"
    );
    snapshot.runtime_classes.insert("kata".into());
    assert_eq!(ready(&provision, &snapshot).0, "True");
}

#[test]
fn views_read_what_kubernetes_writes() {
    let node: Node = serde_json::from_value(serde_json::json!({
        "metadata": { "name": "n1", "labels": { "pool": "gpu" } },
        "spec": { "unschedulable": false },
        "status": {
            "allocatable": { "cpu": "1930m", "memory": "8000Mi", "ephemeral-storage": "10Gi", "nvidia.com/gpu": "4" },
            "conditions": [{ "type": "Ready", "status": "True" }]
        }
    }))
    .unwrap();
    let view = node_view(&node);
    assert_eq!((view.usable, view.gpus, view.cpu_millis, view.memory_mib), (true, 4, 1930, 8000));
    let tainted = |key: &str, effect: &str| {
        let mut node = node.clone();
        let taint = serde_json::json!({ "key": key, "effect": effect });
        node.spec.get_or_insert_default().taints = Some(vec![serde_json::from_value(taint).unwrap()]);
        node_view(&node).usable
    };
    // Pods of awards tolerate what the agent says of its node, and the taint of GPU nodes.
    assert!(tainted("vendue.dev/xid", "NoSchedule") && tainted("nvidia.com/gpu", "NoSchedule"));
    assert!(!tainted("dedicated", "NoSchedule") && !tainted("dedicated", "NoExecute"));
    assert!(tainted("dedicated", "PreferNoSchedule"));
}

proptest! {
    #[test]
    fn never_gives_out_more_than_there_is(
        nodes in prop::collection::vec((1u32..9, 0usize..2), 1..5),
        orders in prop::collection::vec((1i32..4, 1i32..4, 0usize..3), 1..20),
    ) {
        let named: Vec<(String, &str, u32)> = nodes.iter().enumerate()
            .map(|(i, (gpus, kind))| (format!("n{i}"), ["H100", "L40S"][*kind], *gpus)).collect();
        let refs: Vec<(&str, &str, u32)> = named.iter().map(|(n, m, g)| (n.as_str(), *m, *g)).collect();
        let mut snapshot = mk_snapshot(&refs);
        for (index, (workers, gpus, kind)) in orders.into_iter().enumerate() {
            let mut award = mk_award(&format!("a{index}"));
            award.spec.requirements.workers = workers;
            award.spec.requirements.gpus_per_worker = gpus;
            award.spec.requirements.gpu_models =
                [vec![], vec!["H100".to_owned()], vec!["L40S".to_owned()]][kind].clone();
            let allocation = allocate(&snapshot, &mk_provision_spec(), &award);
            prop_assert_eq!(&allocation, &allocate(&snapshot, &mk_provision_spec(), &award));
            if let Allocation::Held(devices) = allocation {
                snapshot.holds.push(hold(&award, devices));
            }
        }
        for (name, _, gpus) in &named {
            let held: i32 = snapshot.holds.iter().flat_map(|h| &h.devices)
                .filter(|d| d.node == *name).map(|d| d.gpus).sum();
            prop_assert!(held <= *gpus as i32, "{held} of {gpus} on {name}");
        }
    }
}
