//! Who may see a Job's logs and outputs, and what verification finds; both look at the main job.

use std::path::{Path, PathBuf};

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use vendue_crds::conditions::job as types;
use vendue_testbed::deploy::NAMESPACE;

use crate::demo::digits;
use crate::env::{Env, Failure, Ran, Scenario, check};
use crate::jobs::job;

/// A user without rights on the namespace is refused by the API server; one with rights is not.
pub async fn strangers_are_refused(env: &Env) -> Scenario {
    digits(env).await?;
    let ns = env.namespace("stranger").await?;
    let dir = tempfile::tempdir()?;
    let kubeconfig = user(env, &ns, "mallory", &dir.path().join("mallory")).await?;
    for command in ["logs", "outputs"] {
        let ran = env.vendue_as(&kubeconfig, &["-n", "default", command, "job/digits"]).await?;
        check(ran.code != 0, || format!("{command} of another's Job was allowed: {ran:?}"))?;
        check(ran.stderr.contains("forbidden"), || {
            format!("{command}: the refusal does not say why: {ran:?}")
        })?;
    }
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": "mallory-views" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
        "subjects": [{ "kind": "ServiceAccount", "name": "mallory", "namespace": ns }],
    });
    env.home().apply("default", &binding.to_string()).await?;
    let ran = env.vendue_as(&kubeconfig, &["-n", "default", "logs", "job/digits"]).await;
    env.home().tools.kubectl(&["delete", "rolebinding", "mallory-views", "-n", "default"]).await?;
    let ran = ran?;
    check(ran.code == 0 && ran.stdout.contains("accuracy"), || format!("a viewer was refused: {ran:?}"))
}

/// A kubeconfig with the token of a fresh service account.
async fn user(env: &Env, ns: &str, name: &str, path: &PathBuf) -> Result<PathBuf, Failure> {
    let accounts: Api<ServiceAccount> = Api::namespaced(env.home().client.clone(), ns);
    let mut account = ServiceAccount::default();
    account.metadata.name = Some(name.into());
    accounts.create(&PostParams::default(), &account).await?;
    let token = accounts.create_token_request(name, &PostParams::default(), &TokenRequest::default()).await?;
    let token = token.status.map(|s| s.token).unwrap_or_default();
    let text = std::fs::read_to_string(&env.home().tools.kubeconfig)?;
    std::fs::write(path, text)?;
    let path = path.clone();
    let mut kubectl = tokio::process::Command::new(&env.home().tools.kubectl);
    kubectl.arg("--kubeconfig").arg(&path).args(["config", "set-credentials", "stranger", "--token", &token]);
    check(kubectl.output().await?.status.success(), || "set credentials".into())?;
    let mut kubectl = tokio::process::Command::new(&env.home().tools.kubectl);
    kubectl.arg("--kubeconfig").arg(&path).args(["config", "set-context", "--current", "--user", "stranger"]);
    check(kubectl.output().await?.status.success(), || "set context".into())?;
    Ok(path)
}

/// The agent of one node cannot speak for another: whoever takes over a node cannot say what others have.
pub async fn agents_write_only_their_own_node(env: &Env) -> Scenario {
    let tools = &env.site("alpha").tools;
    let node = env.site("alpha").cluster.node().ok_or("alpha has no node")?;
    let agent = format!("--as=system:serviceaccount:{NAMESPACE}:vendue-gpu-agent");
    let on = format!("--as-user-extra=authentication.kubernetes.io/node-name={node}");
    let write = async |name: &str, who: &[&str]| {
        let object = json!({ "apiVersion": "vendue.dev/v1alpha1", "kind": "GpuNode", "metadata": { "name": name }, "spec": {} });
        let args = [&["apply", "--server-side", "--dry-run=server", "-f", "-"], who].concat();
        tools.kubectl_with_input(&args, &object.to_string()).await
    };
    write(&node, &[&agent, &on]).await?;
    for (name, who) in [("other-node", &[agent.as_str(), &on][..]), (&node, &[&agent])] {
        let error = match write(name, who).await {
            Ok(_) => return Err(format!("an agent wrote {name} as {who:?}").into()),
            Err(error) => error.to_string(),
        };
        check(error.contains("only the GpuNode of its own node"), || format!("another refusal: {error}"))?;
    }
    agents_change_only_their_own_taints(env, &[&agent, &on]).await
}

/// Of a Node an agent may change its own taints, of its own node only.
async fn agents_change_only_their_own_taints(env: &Env, who: &[&str]) -> Scenario {
    let tools = &env.site("alpha").tools;
    let node = env.site("alpha").cluster.node().ok_or("alpha has no node")?;
    // A Node without a machine; it goes at once, before anybody waits for a heartbeat.
    let other = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "other-node" } });
    tools.kubectl_with_input(&["create", "-f", "-"], &other.to_string()).await?;
    let patch = async |name: &str, change: Value| {
        let change = change.to_string();
        let args =
            [&["patch", "node", name, "--type=merge", "--dry-run=server", "-p", &change], who].concat();
        tools.kubectl(&args).await
    };
    let taints = |key: &str| json!({ "spec": { "taints": [{ "key": key, "effect": "NoSchedule" }] } });
    let allowed = patch(&node, taints("vendue.dev/xid")).await;
    let mut refusals = vec![];
    for (name, change, words) in [
        ("other-node", taints("vendue.dev/xid"), "taints only its own node"),
        (&node, taints("example.com/mine"), "changes only taints with the keys"),
        (&node, json!({ "spec": { "unschedulable": true } }), "nothing of a node but its taints"),
        (&node, json!({ "metadata": { "labels": { "zone": "here" } } }), "nothing of a node but its taints"),
        // Labels of feature discovery only where gpuAgent.gfdLabels is on.
        (
            &node,
            json!({ "metadata": { "labels": { "nvidia.com/gpu.count": "9" } } }),
            "nothing of a node but its taints",
        ),
    ] {
        let found =
            patch(name, change).await.map_or_else(|error| error.to_string(), |_| "it was allowed".into());
        refusals.push((words, found));
    }
    tools.kubectl(&["delete", "node", "other-node", "--wait=false"]).await?;
    allowed?;
    for (words, found) in refusals {
        check(found.contains(words), || format!("expected {words:?}, found: {found}"))?;
    }
    Ok(())
}

/// What `verify` needs, as files that can be tampered with.
struct Proof {
    dir: tempfile::TempDir,
}

impl Proof {
    async fn of(env: &Env, ns: &str, job: &str) -> Result<Self, Failure> {
        let dir = tempfile::tempdir()?;
        let selector = format!("vendue.dev/job-name={job}");
        let args = ["get", "awards.vendue.dev", "-n", ns, "-l", &selector, "-o", "json"];
        let list: Value = serde_json::from_str(&env.home().tools.kubectl(&args).await?)?;
        let data = &list["items"][0]["spec"]["certificate"];
        for (name, key) in [("certificate.json", "certificate"), ("award.json", "award")] {
            let text = data[key].as_str().ok_or_else(|| format!("the Award of {ns}/{job} has no {key}"))?;
            std::fs::write(dir.path().join(name), text)?;
        }
        std::fs::copy(env.deployment.deal.record(), dir.path().join("market.json"))?;
        Ok(Self { dir })
    }

    async fn verify(&self, env: &Env) -> Result<Ran, Failure> {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let (market, certificate, award) = (at("market.json"), at("certificate.json"), at("award.json"));
        // No cluster: an empty kubeconfig must do.
        let none = self.dir.path().join("no-kubeconfig");
        env.vendue_as(
            &none,
            &["verify", "--market", &market, "--certificate", &certificate, "--award", &award],
        )
        .await
    }

    /// Changes one character of the first long hex string below a place in a file.
    fn tamper(&self, name: &str, place: &str) -> Scenario {
        let path = self.dir.path().join(name);
        let mut value: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        let part = value.pointer_mut(place).ok_or_else(|| format!("{name} has no {place}"))?;
        check(flip(part), || format!("{name} has no long hex string at {place}"))?;
        std::fs::write(&path, value.to_string())?;
        Ok(())
    }

    /// Takes a file from elsewhere in the place of its own.
    fn replace(&self, name: &str, by: &Path) -> Scenario {
        std::fs::copy(by, self.dir.path().join(name))?;
        Ok(())
    }

    /// Fails unless `verify` fails at this check, and says so.
    async fn fails_at(&self, env: &Env, what: &str, name: &str) -> Scenario {
        let ran = self.verify(env).await?;
        let told = ran.stderr.contains(&format!("not verified: {name}: "));
        check(ran.code == 1 && told, || format!("{what} should fail at {name}: {ran:?}"))
    }
}

fn flip(value: &mut Value) -> bool {
    match value {
        Value::String(text) if text.len() >= 64 && text.chars().all(|c| c.is_ascii_hexdigit()) => {
            let last = if text.ends_with('0') { '1' } else { '0' };
            text.pop();
            text.push(last);
            true
        }
        Value::Array(list) => list.iter_mut().any(flip),
        Value::Object(map) => map.values_mut().any(flip),
        _ => false,
    }
}

/// A good award verifies offline. A tampered certificate, award or record, another market's record and another Job's
/// certificate or award do not: exit code 1, and the name of the check.
pub async fn tampering_is_found(env: &Env) -> Scenario {
    digits(env).await?;
    let mine = async || Proof::of(env, "default", "digits").await;
    let good = mine().await?.verify(env).await?;
    check(good.code == 0, || format!("a good award does not verify: {good:?}"))?;
    for (file, place, name) in [
        ("certificate.json", "", "certificate"),
        ("award.json", "/order", "order"),
        ("award.json", "/proof", "award"),
        ("market.json", "", "market"),
    ] {
        let proof = mine().await?;
        proof.tamper(file, place)?;
        proof.fails_at(env, &format!("a tampered {file}"), name).await?;
    }
    other_job(env).await?;
    other_market(env).await
}

/// Two good awards of the same market, with their certificates exchanged.
async fn other_job(env: &Env) -> Scenario {
    let ns = env.namespace("other").await?;
    env.home().apply(&ns, &job("other", "print(1)").manifest()).await?;
    env.condition_true(&ns, "other", types::AWARDED, 30).await?;
    let other = Proof::of(env, &ns, "other").await?;
    env.delete_job(&ns, "other", 60).await?;
    let good = other.verify(env).await?;
    check(good.code == 0, || format!("the other Job's award does not verify: {good:?}"))?;
    for file in ["certificate.json", "award.json"] {
        let proof = Proof::of(env, "default", "digits").await?;
        proof.replace(file, &other.dir.path().join(file))?;
        proof.fails_at(env, &format!("another Job's {file}"), "award").await?;
    }
    env.nothing_left(60).await
}

async fn other_market(env: &Env) -> Scenario {
    let proof = Proof::of(env, "default", "digits").await?;
    let other = tempfile::tempdir()?;
    let program = env.deployment.programs.join("vendue-auction");
    let mut deal = tokio::process::Command::new(program);
    deal.args(["deal", "--market", "other", "--home", "home", "--out"]).arg(other.path());
    for name in ["alpha", "bravo", "charlie", "delta"] {
        deal.arg("--seat").arg(format!("{name}=/ip4/127.0.0.1/udp/1/quic-v1"));
    }
    check(deal.output().await?.status.success(), || "deal another market".into())?;
    proof.replace("market.json", &other.path().join("market.json"))?;
    proof.fails_at(env, "another market's record", "certificate").await
}
