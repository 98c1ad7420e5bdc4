//! Each admission rule, once with an object that it accepts and once with one that it refuses, and the sentence that the
//! user then reads. The last test counts the rules, so that a new one cannot come without its case here.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use serde_json::{Value, json};
use vendue_crds::{Award, ComputeJob, Provision};

fn job() -> Value {
    json!({
        "apiVersion": "vendue.dev/v1alpha1", "kind": "Job", "metadata": {"name": "digits", "namespace": "default"},
        "spec": {
            "maxPrice": "2.50", "runDeadlineSeconds": 600, "searchSeconds": 60, "managedBy": "vendue.dev/controller",
            "providers": {"include": ["bravo"]},
            "train": {
                "image": "ray:1", "entrypoint": "python train.py",
                "env": [{"name": "A", "value": "1"}],
                "workers": {"replicas": 2, "gpus": 1, "memoryMib": 1024, "sharedMemoryMib": 256},
            },
        },
    })
}

fn provision() -> Value {
    json!({
        "apiVersion": "vendue.dev/v1alpha1", "kind": "Provision", "metadata": {"name": "a100", "namespace": "default"},
        "spec": {"price": "1.80", "storageClassName": "local"},
    })
}

fn award() -> Value {
    json!({
        "apiVersion": "vendue.dev/v1alpha1", "kind": "Award", "metadata": {"name": "digits-1", "namespace": "default"},
        "spec": {
            "side": "Home", "id": "0123456789abcdef", "marketId": "00", "round": 1, "orderDigest": "00",
            "job": {"home": "home", "uid": "u", "attempt": 1}, "provider": "bravo", "seat": 1, "price": "1.80",
            "expiresAt": "2026-01-01T00:00:00Z",
            "requirements": {"workers": 1, "gpusPerWorker": 1, "cpuMillisPerWorker": 1, "memoryMibPerWorker": 1,
                "runDeadlineSeconds": 60, "image": "ray:1"},
        },
    })
}

/// `object` with the field at `pointer` set (the parent must exist).
fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').expect("pointer");
    object.pointer_mut(parent).expect("parent")[field] = value;
    object
}

fn without(mut object: Value, pointer: &str) -> Value {
    let (parent, field) = pointer.rsplit_once('/').expect("pointer");
    object.pointer_mut(parent).and_then(Value::as_object_mut).expect("parent").remove(field);
    object
}

/// What the API server would answer to a create, or to an update of `old`.
fn answer(new: &Value, old: Option<&Value>) -> Result<(), String> {
    macro_rules! check {
        ($kind:ty) => {{
            let new: $kind = serde_json::from_value(new.clone()).expect("object parses");
            match old {
                Some(old) => {
                    let old: $kind = serde_json::from_value(old.clone()).expect("old object parses");
                    new.validate_cel_update(&old).map_err(|e| e.to_string())
                }
                None => new.validate_cel().map_err(|e| e.to_string()),
            }
        }};
    }
    match new["kind"].as_str() {
        Some("Job") => check!(ComputeJob),
        Some("Provision") => check!(Provision),
        Some("Award") => check!(Award),
        other => panic!("no case for {other:?}"),
    }
}

#[track_caller]
fn refused(new: &Value, old: Option<&Value>, sentence: &str) {
    let error = answer(new, old).expect_err("must be refused");
    assert!(error.contains(sentence), "the answer was: {error}\nexpected in it: {sentence}");
}

#[test]
fn plain_objects_are_accepted() {
    for object in [job(), provision(), award()] {
        assert_eq!(answer(&object, None), Ok(()), "{object}");
        assert_eq!(answer(&object, Some(&object)), Ok(()), "unchanged {object}");
    }
}

#[test]
fn prices() {
    for good in ["0.000001", "2", "2.5", "2.50", "999999.999999", "0.10"] {
        assert_eq!(answer(&with(job(), "/spec/maxPrice", json!(good)), None), Ok(()), "{good}");
        assert_eq!(answer(&with(provision(), "/spec/price", json!(good)), None), Ok(()), "{good}");
    }
    for bad in
        ["0", "0.00", "-1", "+1", "1.2345678", "1,5", "1.", ".5", "01", "1e3", "1000000", "", " 1", "free"]
    {
        let sentence = format!(
            "maxPrice is \"{bad}\"; accepted: a decimal above zero and below 1000000 with at most six places"
        );
        refused(&with(job(), "/spec/maxPrice", json!(bad)), None, &sentence);
        let sentence = format!(
            "price is \"{bad}\"; accepted: a decimal above zero and below 1000000 with at most six places"
        );
        refused(&with(provision(), "/spec/price", json!(bad)), None, &sentence);
    }
}

#[test]
fn names_leave_room_for_what_is_made_from_them() {
    assert_eq!(answer(&with(job(), "/metadata/name", json!("x".repeat(47))), None), Ok(()));
    let long = with(job(), "/metadata/name", json!("x".repeat(48)));
    refused(&long, None, "metadata.name is too long; accepted: at most 47 characters");
}

#[test]
fn a_job_has_one_workload() {
    refused(&without(job(), "/spec/train"), None, "spec needs exactly one workload; accepted: train");
}

#[test]
fn environment_variables_have_one_source() {
    let key = json!([{"name": "A", "secretKeyRef": {"name": "s", "key": "k"}}]);
    assert_eq!(answer(&with(job(), "/spec/train/env", key), None), Ok(()));
    let sentence = "exactly one of value and secretKeyRef must be set";
    let both = json!([{"name": "A", "value": "1", "secretKeyRef": {"name": "s", "key": "k"}}]);
    refused(&with(job(), "/spec/train/env", both), None, sentence);
    refused(&with(job(), "/spec/train/env", json!([{"name": "A"}])), None, sentence);
}

#[test]
fn shared_memory_is_part_of_memory() {
    let workers = |shared: i32| with(job(), "/spec/train/workers/sharedMemoryMib", json!(shared));
    assert_eq!(answer(&workers(1023), None), Ok(()));
    refused(&workers(1024), None, "sharedMemoryMib must be less than memoryMib, which includes it");
}

#[test]
fn immutable_fields_of_a_job() {
    for (pointer, value, field) in [
        ("/spec/maxPrice", json!("2.51"), "maxPrice"),
        ("/spec/runDeadlineSeconds", json!(601), "runDeadlineSeconds"),
        ("/spec/searchSeconds", json!(61), "searchSeconds"),
        ("/spec/managedBy", json!("kueue.x-k8s.io/multikueue"), "managedBy"),
        ("/spec/providers", json!({"exclude": ["bravo"]}), "providers"),
        ("/spec/pricing", json!("SecondPrice"), "pricing"),
        ("/spec/regions", json!(["north"]), "regions"),
        ("/spec/train/entrypoint", json!("python other.py"), "spec.train"),
    ] {
        let sentence = format!("{field} is immutable; delete the Job and apply a new one");
        refused(&with(job(), pointer, value), Some(&job()), &sentence);
    }
    assert_eq!(
        answer(&with(job(), "/spec/suspend", json!(true)), Some(&job())),
        Ok(()),
        "suspend may change"
    );
}

#[test]
fn fields_of_a_job_that_come_or_go_are_a_change() {
    for field in ["managedBy", "providers"] {
        let bare = without(job(), &format!("/spec/{field}"));
        let sentence = format!("spec.{field} is immutable; delete the Job and apply a new one");
        refused(&bare, Some(&job()), &sentence);
        refused(&job(), Some(&bare), &sentence);
    }
}

#[test]
fn immutable_fields_of_an_award() {
    refused(&with(award(), "/spec/side", json!("Host")), Some(&award()), "side is immutable");
    refused(&with(award(), "/spec/id", json!("00")), Some(&award()), "id is immutable");
    assert_eq!(
        answer(&with(award(), "/spec/provider", json!("alpha")), Some(&award())),
        Ok(()),
        "a stand-by takes over"
    );
}

#[test]
fn every_rule_has_a_case_above() {
    let mut rules = vec![];
    for crd in vendue_crds::crds() {
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).expect("schema serialises");
        collect(&crd.spec.names.kind, &schema["openAPIV3Schema"], &mut rules);
    }
    rules.sort();
    assert_eq!(
        rules,
        [
            "Award.spec.id: 1",
            "Award.spec.side: 1",
            "Job.spec.managedBy: 1",
            "Job.spec.maxPrice: 2",
            "Job.spec.pricing: 1",
            "Job.spec.providers: 1",
            "Job.spec.regions: 1",
            "Job.spec.runDeadlineSeconds: 1",
            "Job.spec.searchSeconds: 1",
            "Job.spec.train.env[]: 1",
            "Job.spec.train.workers: 1",
            "Job.spec: 4",
            "Job: 1",
            "Provision.spec.price: 1",
        ],
        "a rule came or went: add or remove its case in this file"
    );
}

fn collect(path: &str, schema: &Value, rules: &mut Vec<String>) {
    if let Some(list) = schema["x-kubernetes-validations"].as_array() {
        rules.push(format!("{path}: {}", list.len()));
        for rule in list {
            assert!(
                rule["message"].is_string() || rule["messageExpression"].is_string(),
                "{path}: no message"
            );
        }
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        collect(&format!("{path}.{name}"), field, rules);
    }
    if schema["items"].is_object() {
        collect(&format!("{path}[]"), &schema["items"], rules);
    }
}
