use super::*;
use crate::pods::api::{ContainerDevices, ContainerResources, ListPodResourcesResponse, PodResources};
use crate::pods::attribution::{Claim, Known, attribute};
use crate::pods::slices::DeviceNames;

fn uid(n: usize) -> String {
    format!("{n:08x}-0011-4455-8899-aabbccddeeff")
}

fn process(pid: u32, memory: Option<u64>, sm_percent: Option<u32>) -> DeviceProcess {
    DeviceProcess { pid, gpu_instance: None, memory_bytes: memory, sm_percent }
}

fn device(n: usize, processes: Vec<DeviceProcess>) -> Listed {
    let (uuid, model) = (format!("GPU-{n}"), "H100".to_owned());
    Listed { uuid, model, mig: vec![format!("MIG-{n}")], processes: processes.into() }
}

/// A folder like /proc, with a process of each of these Pods; `None` for one of the node itself.
fn proc(pods: &[(u32, Option<usize>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("dir");
    for (pid, pod) in pods {
        let path = dir.path().join(pid.to_string());
        std::fs::create_dir(&path).expect("dir");
        let unit = pod.map_or("/system.slice/x.service".to_owned(), |n| format!("/kubepods/pod{}/c", uid(n)));
        std::fs::write(path.join("cgroup"), format!("0::{unit}\n")).expect("file");
    }
    dir
}

#[test]
fn processes_are_added_up_by_pod_and_what_is_not_found_is_unknown() {
    let dir = proc(&[(1, Some(1)), (2, Some(1)), (3, Some(2)), (4, None), (6, Some(9))]);
    let first = vec![
        process(1, Some(10), Some(30)),
        process(2, Some(5), None),
        process(3, None, None),
        process(4, Some(7), Some(1)),
        // Gone, and of a namespace that is not ours.
        process(5, Some(100), Some(9)),
        process(0, Some(100), Some(9)),
        // Of the agent's own Pod.
        process(6, Some(2), None),
    ];
    let devices = [device(0, first), device(1, vec![process(1, Some(1), None)]), device(2, vec![])];
    let uses = group(&devices, dir.path(), Some(&uid(9)));
    let used = |processes, memory_bytes, utilization_percent| PodUse {
        processes,
        memory_bytes,
        utilization_percent,
    };
    let expected = BTreeMap::from([
        (NO_POD.to_owned(), used(2, Some(9), Some(1))),
        (uid(1), used(2, Some(15), Some(30))),
        (uid(2), used(1, None, None)),
    ]);
    assert_eq!((&uses[0].pods, uses[0].unknown), (&expected, 2));
    assert_eq!(uses[1].pods, BTreeMap::from([(uid(1), used(1, Some(1), None))]));
    assert_eq!((uses[2].pods.len(), uses[2].unknown), (0, 0));
}

#[test]
fn pods_beyond_the_bound_share_a_name_and_nothing_is_lost() {
    let count = MAX_PODS + 3;
    let pids: Vec<(u32, Option<usize>)> = (1..=count).map(|n| (n as u32, Some(n))).collect();
    let dir = proc(&[&pids[..], &[(900, None)]].concat());
    let mut processes: Vec<_> = (1..=count).map(|n| process(n as u32, Some(n as u64), None)).collect();
    processes.push(process(900, Some(1), None));
    let uses = group(&[device(0, processes)], dir.path(), None);
    let pods = &uses[0].pods;
    assert_eq!(pods.len(), MAX_PODS + 2, "with those of no Pod and the rest");
    let other = PodUse { processes: 3, memory_bytes: Some(1 + 2 + 3), utilization_percent: None };
    assert_eq!(pods[OTHER_PODS], other, "those with the least memory");
    assert_eq!(pods.values().map(|used| used.processes).sum::<u32>() as usize, count + 1);
}

fn given(uuids: &[&str]) -> Attribution {
    let container = ContainerResources {
        name: "c".to_owned(),
        devices: vec![ContainerDevices {
            resource_name: "nvidia.com/gpu".to_owned(),
            device_ids: uuids.iter().map(|uuid| (*uuid).to_owned()).collect(),
        }],
        dynamic_resources: vec![],
    };
    let pod = PodResources { name: "w".to_owned(), namespace: "n".to_owned(), containers: vec![container] };
    let known = uuids.iter().map(|uuid| Known { uuid: (*uuid).to_owned(), minor: None });
    let list = ListPodResourcesResponse { pod_resources: vec![pod] };
    attribute(&list, &known.collect::<Vec<_>>(), &DeviceNames::default())
}

#[test]
fn a_pod_on_a_device_that_nobody_was_given_is_told_once_and_only_at_the_second_look() {
    let dir = proc(&[(1, Some(1)), (2, Some(1)), (3, None)]);
    let two = || vec![process(1, None, None), process(2, None, None), process(3, None, None)];
    let devices =
        [device(0, two()), device(1, two()), device(2, two()), device(3, vec![process(3, None, None)])];
    let mut suspects = Suspects::default();
    let mut look = |given: Option<&Attribution>| {
        let mut uses = group(&devices, dir.path(), None);
        let news = suspects.judge(&devices, &mut uses, given);
        (news, uses.iter().map(|used| used.unassigned).collect::<Vec<_>>())
    };
    // The second by a slice of it; the fourth has processes of no Pod only.
    let known = given(&["GPU-1", "MIG-2"]);
    let found = vec![Some(2), Some(0), Some(0), Some(0)];
    assert_eq!(look(Some(&known)), (vec![], vec![Some(0); 4]), "it may have just come or gone");
    assert_eq!(look(Some(&known)), (vec!["GPU-0".to_owned()], found.clone()));
    assert_eq!(look(Some(&known)), (vec![], found.clone()), "told once");
    assert_eq!(look(None), (vec![], vec![None; 4]), "kubelet says nothing");
    let text = || String::from("x");
    let claim = Claim { name: text(), namespace: text(), driver: text(), pool: text(), device: text() };
    let mut unsure = known.clone();
    unsure.unresolved = vec![claim];
    assert_eq!(look(Some(&unsure)), (vec![], vec![None; 4]), "somebody has a device, but which");
    assert_eq!(look(Some(&known)), (vec![], vec![Some(0); 4]));
    assert_eq!(look(Some(&known)).0, ["GPU-0"], "and again when it was over");
    let all = given(&["GPU-0", "GPU-1", "MIG-2"]);
    assert_eq!(look(Some(&all)), (vec![], vec![Some(0); 4]));
}

#[test]
fn lists_are_the_same_until_the_driver_is_asked_again() {
    let one = [device(0, vec![process(1, None, None)])];
    let again = [Listed { processes: one[0].processes.to_vec().into(), ..one[0].clone() }];
    assert!(is_same(&one, &one.clone()));
    assert!(!is_same(&one, &again));
    assert!(!is_same(&one, &[]));
}
