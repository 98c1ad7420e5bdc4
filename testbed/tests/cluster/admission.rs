//! What the API server refuses, and the words in which it does.

use serde_json::json;
use vendue_crds::conditions::{job as types, reasons};

use crate::env::{Env, Scenario, check};
use crate::jobs::job;

/// Every bad field is refused at the apply, and the error names the field, the value and what is accepted.
pub async fn bad_jobs_are_refused(env: &Env) -> Scenario {
    let ns = env.namespace("admission").await?;
    let fine = || job("bad", "print(1)");
    let cases = [
        ("negative price", fine().with("/maxPrice", json!("-1")), vec!["spec.maxPrice", "-1", "accepted"]),
        ("zero price", fine().with("/maxPrice", json!("0")), vec!["spec.maxPrice", "\"0\"", "accepted"]),
        (
            "zero price with decimals",
            fine().with("/maxPrice", json!("0.000")),
            vec!["spec.maxPrice", "accepted"],
        ),
        (
            "seven decimals",
            fine().with("/maxPrice", json!("1.1234567")),
            vec!["spec.maxPrice", "1.1234567", "accepted"],
        ),
        ("no GPUs", fine().with("/train/workers/gpus", json!(0)), vec!["spec.train.workers.gpus", "0", "1"]),
        (
            "too many GPUs",
            fine().with("/train/workers/gpus", json!(65)),
            vec!["spec.train.workers.gpus", "65", "64"],
        ),
        (
            "a pricing that is none",
            fine().with("/pricing", json!("ThirdPrice")),
            vec!["spec.pricing", "ThirdPrice", "SecondPrice"],
        ),
        (
            "a region that is none",
            fine().with("/regions", json!(["EU"])),
            vec!["spec.regions", "EU", "a-z0-9-"],
        ),
        ("two workload kinds", fine().with("/serve", json!({})), vec!["\"serve\"", "Job.spec"]),
        ("no workload", fine().without("/train"), vec!["spec", "accepted: train"]),
        (
            "no run deadline",
            fine().without("/runDeadlineSeconds"),
            vec!["Job.spec", "missing required field", "runDeadlineSeconds"],
        ),
        (
            "shared memory above memory",
            fine().with("/train/workers/sharedMemoryMib", json!(4096)),
            vec!["sharedMemoryMib", "less than memoryMib"],
        ),
        (
            "value and reference",
            fine().with(
                "/train/env",
                json!([{ "name": "A", "value": "1", "secretKeyRef": { "name": "s", "key": "k" } }]),
            ),
            vec!["spec.train.env", "exactly one"],
        ),
    ];
    for (what, bad, words) in cases {
        let error = match env.home().apply(&ns, &bad.manifest()).await {
            Ok(_) => return Err(format!("{what} was accepted").into()),
            Err(error) => error.to_string(),
        };
        for word in words {
            if !error.contains(word) {
                return Err(format!("{what}: the error does not say {word:?}: {error}").into());
            }
        }
    }
    Ok(())
}

/// A field that may not change is refused with a message that says what to do.
pub async fn immutable_fields_stay(env: &Env) -> Scenario {
    let ns = env.namespace("immutable").await?;
    let first = job("fixed", "print(1)").with("/suspend", json!(true));
    env.home().apply(&ns, &first.manifest()).await?;
    for changed in [
        first.clone().with("/maxPrice", json!("3.00")),
        first.clone().with("/train/workers/gpus", json!(2)),
        first.clone().with("/runDeadlineSeconds", json!(700)),
        first.clone().with("/pricing", json!("SecondPrice")),
        first.clone().with("/regions", json!(["north"])),
        first.clone().with("/providers", json!({ "include": ["alpha"] })),
    ] {
        let error = match env.home().apply(&ns, &changed.manifest()).await {
            Ok(_) => return Err("an immutable field was changed".into()),
            Err(error) => error.to_string(),
        };
        if !error.contains("immutable") || !error.contains("delete the Job and apply a new one") {
            return Err(format!("the error does not say what to do: {error}").into());
        }
    }
    Ok(())
}

/// What a schema cannot say is said at once by a condition: files over the limit, a missing Secret.
pub async fn what_a_schema_cannot_say(env: &Env) -> Scenario {
    let ns = env.namespace("accepted").await?;
    let missing = job("nosecret", "print(1)").with(
        "/train/env",
        json!([{ "name": "TOKEN", "secretKeyRef": { "name": "absent", "key": "token" } }]),
    );
    env.home().apply(&ns, &missing.manifest()).await?;
    let condition = env.condition_false(&ns, "nosecret", "Accepted", 5).await?;
    for word in ["absent", "TOKEN"] {
        if !condition.message.contains(word) {
            return Err(format!("the condition does not name {word:?}: {}", condition.message).into());
        }
    }
    let absent = job("nofiles", "").with("/train/files", json!({ "configMapName": "nothing-here" }));
    env.home().apply(&ns, &absent.manifest()).await?;
    let condition = env.condition_false(&ns, "nofiles", "Accepted", 5).await?;
    if !condition.message.contains("nothing-here") {
        return Err(format!("the condition does not name the ConfigMap: {}", condition.message).into());
    }
    Ok(())
}

/// Files that a ConfigMap can just hold, and that with all the rest are too many for an order: the Job is not accepted,
/// with the field, its size and the limit. More than that Kubernetes itself refuses to store.
pub async fn oversized_files_are_refused(env: &Env) -> Scenario {
    let ns = env.namespace("files").await?;
    store_file(env, &ns, "full", 1 << 20).await?;
    let wants = job("overfull", "").with("/train/files", json!({ "configMapName": "full" }));
    env.home().apply(&ns, &wants.manifest()).await?;
    let condition = env.condition_false(&ns, "overfull", types::ACCEPTED, 5).await?;
    check(condition.reason == reasons::INVALID_SPEC, || format!("the reason is {}", condition.reason))?;
    for word in
        ["spec.train (files and environment, encoded)", "bytes long", "accepted: at most 1047552 bytes"]
    {
        check(condition.message.contains(word), || {
            format!("the condition lacks {word:?}: {}", condition.message)
        })?;
    }
    match store_file(env, &ns, "big", (1 << 20) + 1).await {
        Ok(()) => Err("a ConfigMap above 1 MiB was stored".into()),
        Err(error) => check(error.to_string().contains("1048576"), || {
            format!("the error does not name the limit: {error}")
        }),
    }
}

/// A ConfigMap with a file of this size; created, since `apply` would store it a second time in an annotation.
async fn store_file(env: &Env, ns: &str, name: &str, size: usize) -> Scenario {
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name },
                      "data": { "main.py": "x".repeat(size) } });
    env.home().tools.kubectl_with_input(&["create", "-n", ns, "-f", "-"], &map.to_string()).await?;
    Ok(())
}
