//! Objects: what Pod security, quota and policies say.

use super::*;
use crate::fixtures::{mk_award, mk_env, mk_terms, mk_workload};

fn json(child: &Child) -> serde_json::Value {
    match child {
        Child::Quota(o) => serde_json::to_value(o),
        Child::Limits(o) => serde_json::to_value(o),
        Child::Policy(o) => serde_json::to_value(o),
        Child::Account(o) => serde_json::to_value(o),
        Child::Secret(o) => serde_json::to_value(o),
        Child::Claim(o) => serde_json::to_value(o),
        Child::Service(o) => serde_json::to_value(o),
        Child::Pod(o) => serde_json::to_value(o),
    }
    .unwrap()
}

fn with_parts<T>(terms: &Terms, f: impl FnOnce(Parts<'_>) -> T) -> T {
    let (award, workload, env) = (mk_award("a1"), mk_workload(), mk_env());
    f(Parts { award: &award, train: &workload.train, terms, env: &env, node: "n1" })
}

#[test]
fn pods_meet_the_level_restricted() {
    with_parts(&mk_terms(), |parts| {
        for pod in [head(parts), worker(parts, 0)] {
            let pod = json(&pod);
            let spec = &pod["spec"];
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
            assert_eq!(spec["securityContext"]["runAsUser"], 1000);
            assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            assert_eq!(spec["automountServiceAccountToken"], false);
            for container in spec["containers"].as_array().unwrap() {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false);
                assert_eq!(context["capabilities"]["drop"][0], "ALL");
                assert!(container["resources"]["limits"]["memory"].is_string());
            }
            for volume in spec["volumes"].as_array().unwrap() {
                let kinds: Vec<&String> =
                    volume.as_object().unwrap().keys().filter(|k| *k != "name").collect();
                assert_eq!(kinds.len(), 1);
                assert!(
                    ["emptyDir", "secret", "persistentVolumeClaim"].contains(&kinds[0].as_str()),
                    "{kinds:?}"
                );
            }
            let text = pod.to_string();
            assert!(!text.contains("hostPath") && !text.contains("privileged"), "{text}");
        }
    });
}

#[test]
fn only_workers_get_gpus_and_all_are_on_the_node() {
    with_parts(&mk_terms(), |parts| {
        let (head, worker) = (json(&head(parts)), json(&worker(parts, 1)));
        assert!(!head.to_string().contains("\"nvidia.com/gpu\":\"1\""));
        let resources = &worker["spec"]["containers"][0]["resources"];
        assert_eq!(resources["requests"]["nvidia.com/gpu"], "1");
        assert_eq!(resources["limits"]["nvidia.com/gpu"], "1");
        assert_eq!(worker["metadata"]["name"], "ray-worker-1");
        for pod in [head, worker] {
            let term = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
                ["nodeSelectorTerms"][0]["matchFields"][0];
            assert_eq!(term["values"][0], "n1");
        }
    });
}

/// A Pod that is made anew after the agent has tainted the node has to get to the devices that its award holds.
#[test]
fn pods_tolerate_what_the_agent_says_of_its_node() {
    with_parts(&mk_terms(), |parts| {
        for pod in [json(&head(parts)), json(&worker(parts, 0))] {
            let expected = serde_json::json!([
                { "key": "nvidia.com/gpu", "operator": "Exists" },
                { "key": "vendue.dev/ecc", "operator": "Exists", "effect": "NoSchedule" },
                { "key": "vendue.dev/thermal", "operator": "Exists", "effect": "NoSchedule" },
                { "key": "vendue.dev/xid", "operator": "Exists", "effect": "NoSchedule" },
            ]);
            assert_eq!(pod["spec"]["tolerations"], expected);
        }
    });
}

#[test]
fn secrets_are_not_in_the_pods() {
    with_parts(&mk_terms(), |parts| {
        let tokens_text = Tokens { ray: "ray-secret".into(), courier: "courier-secret".into() };
        assert_eq!(format!("{tokens_text:?}"), "Tokens(..)");
        let pods = format!("{}{}", json(&head(parts)), json(&worker(parts, 0)));
        assert!(pods.contains(r#""name":"RAY_AUTH_MODE","value":"token""#));
        assert!(!pods.contains("ray-secret"));
        assert!(pods.contains(r#""secretKeyRef":{"key":"ray","name":"vendue-tokens"}"#), "{pods}");
        // The user's environment is in its Secret and nowhere else.
        assert!(!pods.contains(r#""name":"B""#));
        let all = foundation(parts);
        let environment = json(all.iter().find(|c| c.key().name == "vendue-env").unwrap());
        assert_eq!(environment["metadata"]["name"], "vendue-env");
        assert_eq!(environment["data"].as_object().unwrap().len(), 2);
    });
}

#[test]
fn the_order_of_creation_is_bounds_first() {
    with_parts(&mk_terms(), |parts| {
        let kinds: Vec<&str> = foundation(parts).iter().map(|c| c.key().kind).collect();
        assert_eq!(
            kinds,
            [
                "ResourceQuota",
                "LimitRange",
                "NetworkPolicy",
                "NetworkPolicy",
                "NetworkPolicy",
                "NetworkPolicy",
                "ServiceAccount",
                "Secret",
                "Secret",
                "PersistentVolumeClaim",
                "Service"
            ]
        );
        for child in foundation(parts) {
            let object = json(&child);
            assert_eq!(object["metadata"]["labels"]["vendue.dev/award-id"], "a1");
            assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "uid-a1");
            assert_eq!(object["metadata"]["namespace"], "vendue-a-a1");
        }
    });
}

#[test]
fn the_quota_is_what_was_sold() {
    with_parts(&mk_terms(), |parts| {
        let quota = json(&foundation(parts)[0]);
        let hard = &quota["spec"]["hard"];
        assert_eq!(hard["requests.nvidia.com/gpu"], "2");
        assert_eq!(hard["pods"], "3");
        assert_eq!(hard["requests.cpu"], "1220m");
        assert_eq!(hard["services.nodeports"], "0");
    });
}

#[test]
fn egress_never_reaches_metadata_addresses() {
    let mut terms = mk_terms();
    terms.isolation.allowed_egress =
        ["0.0.0.0/0", "::/0", "10.0.0.0/8", "169.254.169.254/32", "nonsense"].map(Into::into).into();
    with_parts(&terms, |parts| {
        let all = foundation(parts);
        let policy = all.iter().find(|c| c.key().name == "vendue-allow-egress").unwrap();
        let to = &json(policy)["spec"]["egress"][0]["to"];
        let expected = serde_json::json!([
            { "ipBlock": { "cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"] } },
            { "ipBlock": { "cidr": "::/0", "except": ["fd00:ec2::254/128"] } },
            { "ipBlock": { "cidr": "10.0.0.0/8" } },
        ]);
        assert_eq!(*to, expected);
    });
    with_parts(&mk_terms(), |parts| {
        assert!(foundation(parts).iter().all(|c| c.key().name != "vendue-allow-egress"));
        let deny = json(&foundation(parts)[2]);
        assert_eq!(
            deny["spec"],
            serde_json::json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] })
        );
    });
}
