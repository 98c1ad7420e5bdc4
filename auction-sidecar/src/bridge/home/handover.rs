//! The workload on its way to the seat that was chosen, and to no other.
//!
//! Invariant: tried until that seat has it or says for good that it does not take it; never sent to a second one.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use vendue_crds::conditions::{self, award as condition, reasons};
use vendue_crds::{Award, names};
use zeroize::Zeroizing;

use super::HomeContext;
use super::order::OrderTask;
use crate::bridge::cluster::ClusterError;
use crate::bridge::objects;
use crate::engine::now_ms;
use crate::net::{MemberId, Protocol};
use crate::wire::{AwardRef, Handover, HandoverReply, decode, encode};

const TIMEOUT: Duration = Duration::from_secs(10);
/// How long after the award's expiry a seat that does not answer is asked whether it has the workload.
const PATIENCE_MS: u64 = 24 * 3_600_000;

/// Why a try did not settle it.
#[derive(Debug, thiserror::Error)]
enum HandoverError {
    /// The order's Secret is not there or incomplete.
    #[error("Secret {0} lacks {1}")]
    Secret(String, &'static str),
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The seat did not answer.
    #[error("{0}")]
    Seat(String),
}

/// Sends the workload to the chosen seat.
pub(super) async fn hand_over(task: &OrderTask, seat: u16) {
    let Some(facts) = task.facts() else { return };
    let reference = AwardRef {
        id: facts.id(),
        order: hex::encode(task.digest),
        job: task.order.job.clone(),
        attempt: task.order.attempt,
    };
    let (expires, provider, context) = (facts.expires_ms, facts.seat.1.clone(), &task.context);
    let mut pause = Duration::from_millis(100);
    loop {
        let outcome = attempt(task, seat, &reference).await;
        match outcome {
            Ok(HandoverReply::Ok) => {
                let message = format!("the workload is at provider {provider}");
                record(context, task, &reference, Ok(&message)).await;
                context.metrics.awards.with_label_values(&["home", "handed_over"]).inc();
                task.event(false, "HandedOver", message);
                return;
            }
            // The seat says itself that it has nothing: the order may be made again.
            Ok(HandoverReply::Unknown) => {
                return fail(task, &reference, End::NotTaken, "the provider does not know the award").await;
            }
            Ok(HandoverReply::Refused { reason }) => {
                return fail(task, &reference, End::NotTaken, &reason).await;
            }
            Ok(other) => tracing::info!(job = task.job.uid, ?other, "workload not taken yet"),
            Err(error) => tracing::warn!(job = task.job.uid, %error, "workload not handed over yet"),
        }
        if now_ms() > expires.saturating_add(PATIENCE_MS) {
            return fail(task, &reference, End::Unknown, "the provider did not answer").await;
        }
        if closed(context, &task.job.namespace, &task.job.name, task.order.attempt).await {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Whether the Award is to end, so that the hand-over is nobody's wish any more.
async fn closed(context: &HomeContext, namespace: &str, job: &str, attempt: u32) -> bool {
    let name = names::home_award(job, i32::try_from(attempt).unwrap_or(i32::MAX));
    match context.cluster.get("award", &context.api(namespace), &name).await {
        Ok(Some(award)) => award.spec.close.is_some() || award.metadata.deletion_timestamp.is_some(),
        Ok(None) => true,
        Err(_) => false,
    }
}

async fn attempt(task: &OrderTask, seat: u16, reference: &AwardRef) -> Result<HandoverReply, HandoverError> {
    let (workload, salt) = read_secret(task).await?;
    let request = Handover::Workload {
        award: reference.clone(),
        workload: workload.as_str().to_owned(),
        salt: salt.as_str().to_owned(),
    };
    let answer =
        task.context.net.request(MemberId::Seat(seat), Protocol::Handover, encode(&request), TIMEOUT).await;
    let bytes = answer.map_err(|e| HandoverError::Seat(e.to_string()))?;
    decode::<HandoverReply>("reply", &bytes).map_err(|e| HandoverError::Seat(e.to_string()))
}

async fn read_secret(task: &OrderTask) -> Result<(Zeroizing<String>, Zeroizing<String>), HandoverError> {
    let name = &task.job.secret;
    let secrets: Api<Secret> = Api::namespaced(task.context.cluster.client.clone(), &task.job.namespace);
    let secret = task
        .context
        .cluster
        .get("order_secret", &secrets, name)
        .await?
        .ok_or_else(|| HandoverError::Secret(name.clone(), "everything: it does not exist"))?;
    let mut data = secret.data.unwrap_or_default();
    let mut text = |key: &'static str| {
        let bytes = data.remove(key).ok_or_else(|| HandoverError::Secret(name.clone(), key))?;
        String::from_utf8(bytes.0).map(Zeroizing::new).map_err(|_| HandoverError::Secret(name.clone(), key))
    };
    let salt = Zeroizing::new(text(names::SALT_KEY)?.trim().to_owned());
    Ok((text(names::WORKLOAD_KEY)?, salt))
}

/// How a hand-over that failed ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The seat has nothing; another award may follow.
    NotTaken,
    /// Nobody knows whether the seat has the workload; no other may get it.
    Unknown,
}

/// The chosen seat will not run it, and no other may under this award.
async fn fail(task: &OrderTask, reference: &AwardRef, end: End, why: &str) {
    tracing::error!(job = task.job.uid, award = reference.id, why, "hand-over failed");
    let message = format!("the workload was not taken: {why}");
    record(&task.context, task, reference, Err((end, &message))).await;
    task.event(true, "HandoverFailed", message);
}

/// Writes how the hand-over ended into the Award's status, until that works.
async fn record(
    context: &HomeContext,
    task: &OrderTask,
    reference: &AwardRef,
    result: Result<&str, (End, &str)>,
) {
    let mut pause = Duration::from_millis(100);
    while let Err(error) = try_record(context, task, reference, result).await {
        tracing::warn!(job = reference.job, %error, "hand-over not recorded yet");
        if error.is_final() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

async fn try_record(
    context: &HomeContext,
    task: &OrderTask,
    reference: &AwardRef,
    result: Result<&str, (End, &str)>,
) -> Result<(), ClusterError> {
    let version = context.version(&reference.id);
    let _guard = version.lock().await;
    let name = names::home_award(&task.job.name, i32::try_from(reference.attempt).unwrap_or(i32::MAX));
    let api: Api<Award> = context.api(&task.job.namespace);
    let found = context.cluster.get("award", &api, &name).await?;
    let Some(award) = found.filter(|a| a.spec.id == reference.id) else { return Ok(()) };
    let mut status = award.status.unwrap_or_default();
    let mut set = |type_: &str, value: bool, reason: &str, message: &str| {
        let new = conditions::condition(type_, value, reason, message, None, Timestamp::now());
        conditions::set(&mut status.conditions, new);
    };
    match result {
        Ok(message) => set(condition::HANDED_OVER, true, reasons::VALID, message),
        Err((end, message)) => {
            set(condition::HELD, false, reasons::AWARD_EXPIRED, message);
            set(condition::HANDED_OVER, false, reasons::AWARD_EXPIRED, message);
            if end == End::Unknown {
                set(condition::FINISHED, true, reasons::RUNTIME_ERROR, message);
            }
            set(condition::RELEASED, true, reasons::AWARD_EXPIRED, message);
        }
    }
    status.state = Some(objects::state_word(&status.conditions).to_owned());
    let body = objects::status_patch(&status);
    let manager = names::MANAGER_RELAY;
    context.cluster.apply_status::<Award>("award_status", &api, manager, &name, &body).await.map(drop)
}
