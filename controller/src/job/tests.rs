//! Jobs against a scripted API server.

use serde_json::json;

use super::*;
use crate::testing::{applied, context, created, event, found, job_json, missing, script};

const AWARD: &str = "/apis/vendue.dev/v1alpha1/namespaces/team/awards/digits-1";
const JOB: &str = "/apis/vendue.dev/v1alpha1/namespaces/team/jobs/digits";
const SECRETS: &str = "/api/v1/namespaces/team/secrets";
const SECRET: &str = "/api/v1/namespaces/team/secrets/digits-order-1";

fn job() -> ComputeJob {
    serde_json::from_value(job_json()).unwrap()
}

#[tokio::test]
async fn accepts_a_job_secret_first() {
    let (client, server) = script(vec![
        missing(AWARD),
        missing(SECRET),
        applied(
            JOB,
            names::MANAGER_JOB,
            vec![
                ("/metadata/finalizers", json!(["vendue.dev/remote-work"])),
                ("/metadata/uid", json!("uid-job")),
            ],
        ),
        created(
            SECRETS,
            names::MANAGER_JOB,
            vec![("/immutable", json!(true)), ("/metadata/ownerReferences/0/uid", json!("uid-job"))],
        ),
        applied(
            &format!("{JOB}/status"),
            names::MANAGER_JOB,
            vec![
                ("/kind", json!("Job")),
                ("/metadata/uid", json!("uid-job")),
                ("/status/order/secretName", json!("digits-order-1")),
                ("/status/state", json!("Bidding")),
                ("/status/conditions/0/type", json!("Accepted")),
                ("/status/conditions/0/status", json!("True")),
            ],
        ),
        event("team", "Valid"),
        event("team", "AuctionPending"),
    ]);
    reconcile(job(), context("job", client)).await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn a_secret_of_somebody_else_is_left_alone() {
    let theirs = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "digits-order-1", "namespace": "team" } });
    let message = "the Secret \"digits-order-1\" is there and is not this Job's order; next: delete it, or give the Job another name";
    let (client, server) = script(vec![
        missing(AWARD),
        found(SECRET, theirs),
        applied(JOB, names::MANAGER_JOB, vec![]),
        applied(
            &format!("{JOB}/status"),
            names::MANAGER_JOB,
            vec![
                ("/status/conditions/0/reason", json!("NameTaken")),
                ("/status/conditions/0/message", json!(message)),
            ],
        ),
        event("team", "NameTaken"),
    ]);
    reconcile(job(), context("job", client)).await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn rejects_a_job_without_touching_anything_else() {
    let mut bad = job();
    bad.spec.max_price = vendue_crds::Decimal("0".into());
    let message = "spec.maxPrice is \"0\"; accepted: a decimal above zero, at most 1000000, with at most six places, for example \"2.50\"";
    let (client, server) = script(vec![
        missing(AWARD),
        applied(
            &format!("{JOB}/status"),
            names::MANAGER_JOB,
            vec![("/status/conditions/0/message", json!(message))],
        ),
        event("team", "InvalidSpec"),
    ]);
    reconcile(bad, context("job", client)).await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn closes_the_award_of_a_deleted_job_and_waits() {
    let mut award = crate::testing::award_json("a1");
    award["metadata"] = json!({ "name": "digits-1", "namespace": "team", "uid": "uid-award" });
    award["spec"]["side"] = json!("Home");
    award["spec"]["job"]["uid"] = json!("uid-job");
    let mut deleted = job_json();
    deleted["metadata"]["deletionTimestamp"] = json!("2026-11-22T15:00:00Z");
    deleted["metadata"]["finalizers"] = json!([names::FINALIZER_REMOTE_WORK]);
    deleted["status"] = json!({ "order": { "attempt": 1, "commitment": "", "secretName": "digits-order-1", "expiresAt": "2026-11-22T15:00:00Z" } });
    let (client, server) = script(vec![
        found(AWARD, award),
        applied(
            AWARD,
            names::MANAGER_JOB,
            vec![("/spec/close/reason", json!("UserClosed")), ("/metadata/uid", json!("uid-award"))],
        ),
        applied(
            &format!("{JOB}/status"),
            names::MANAGER_JOB,
            vec![("/status/state", json!("Closing")), ("/status/conditions/0/status", json!("False"))],
        ),
        event("team", "Closed"),
    ]);
    reconcile(serde_json::from_value(deleted).unwrap(), context("job", client)).await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn an_award_of_an_earlier_job_of_the_same_name_is_not_ours() {
    let mut award = crate::testing::award_json("a1");
    award["spec"]["job"]["uid"] = json!("uid-of-another");
    let mut deleted = job_json();
    deleted["metadata"]["deletionTimestamp"] = json!("2026-11-22T15:00:00Z");
    deleted["metadata"]["finalizers"] = json!([names::FINALIZER_REMOTE_WORK]);
    let (client, server) = script(vec![
        found(AWARD, award),
        applied(&format!("{JOB}/status"), names::MANAGER_JOB, vec![]),
        applied(JOB, names::MANAGER_JOB, vec![("/metadata/finalizers", json!([]))]),
    ]);
    reconcile(serde_json::from_value(deleted).unwrap(), context("job", client)).await.unwrap();
    server.await.unwrap();
}
