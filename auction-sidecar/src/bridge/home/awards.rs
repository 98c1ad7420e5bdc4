//! What each Award of this home needs: taken up after a restart, closed when its Job goes.
//!
//! Invariant: level-triggered; the provider's answer, not a timer, says that nothing is left there.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use vendue_auction_core::{AwardFile, CertificateFile, Choice, HomeInput};
use vendue_crds::conditions::{self, award as condition, reasons};
use vendue_crds::{Award, AwardSide, ComputeJob, names};
use vendue_market::Digest;
use vendue_market::encode::from_hex;

use super::order::{OrderTask, facts};
use super::{HomeContext, JobKey};
use crate::bridge::cluster::ClusterError;
use crate::bridge::objects::{self, award_ref, conditions_of};
use crate::net::{MemberId, Protocol};
use crate::wire::{AwardRef, Handover, HandoverReply, decode, encode};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a step is to be repeated.
#[derive(Debug, thiserror::Error)]
pub enum AwardError {
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The provider was not reached.
    #[error("provider not reached: {0}")]
    Provider(String),
    /// The state machine takes nothing.
    #[error("the state machine is busy")]
    Busy,
    /// The Award's own data cannot be used.
    #[error("Award cannot be taken up: {0}")]
    Damaged(String),
}

/// What to do for an Award.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    Close { not_taken: bool },
    Resume,
    Forget,
}

fn plan(award: &Award, in_work: bool) -> Plan {
    let list = conditions_of(award);
    let handed_over = conditions::is_true(list, condition::HANDED_OVER);
    if conditions::is_true(list, condition::RELEASED) {
        return Plan::Forget;
    }
    if award.spec.close.is_some() || award.metadata.deletion_timestamp.is_some() {
        return Plan::Close { not_taken: !handed_over };
    }
    if handed_over || in_work { Plan::Nothing } else { Plan::Resume }
}

/// One step for one Award.
pub async fn reconcile_award(
    object: Arc<DeserializeGuard<Award>>,
    context: Arc<HomeContext>,
) -> Result<Action, AwardError> {
    let award = match &object.0 {
        Ok(award) if award.spec.side == AwardSide::Home => award,
        Ok(_) => return Ok(Action::await_change()),
        Err(error) => {
            tracing::error!(name = ?error.metadata.name, %error, "Award skipped: it does not parse");
            return Ok(Action::await_change());
        }
    };
    let Some(digest) = from_hex(&award.spec.order_digest).and_then(|d| Digest::try_from(d).ok()) else {
        return Err(AwardError::Damaged("spec.orderDigest is not 64 hex digits".to_owned()));
    };
    // Under any name: an order that was listed again has another digest than its Award.
    let attempt = u32::try_from(award.spec.job.attempt).unwrap_or(u32::MAX);
    let key = (award.spec.job.uid.clone(), attempt);
    let in_work = context.in_work(&key);
    let action = match plan(award, in_work) {
        Plan::Nothing => Action::await_change(),
        Plan::Forget => {
            context.forget(&key).await;
            Action::await_change()
        }
        Plan::Close { not_taken } => {
            if not_taken && !context.tell(HomeInput::Withdraw { job: key.0.clone(), attempt }).await {
                return Err(AwardError::Busy);
            }
            close(&context, award, not_taken).await?;
            Action::requeue(Duration::from_secs(2))
        }
        Plan::Resume => {
            resume(&context, award, digest).await?;
            Action::requeue(Duration::from_secs(30))
        }
    };
    context.failed(&award.spec.id, false);
    Ok(action)
}

/// Tells the provider that the award ends.
async fn close(context: &Arc<HomeContext>, award: &Award, not_taken: bool) -> Result<(), AwardError> {
    let reference =
        award_ref(award).ok_or_else(|| AwardError::Damaged("its names are malformed".to_owned()))?;
    let seat = u16::try_from(award.spec.seat).map_err(|_| AwardError::Damaged("spec.seat".to_owned()))?;
    let request = Handover::close(&context.record.market, reference.clone(), not_taken, &context.user)
        .ok_or_else(|| AwardError::Damaged("spec.orderDigest".to_owned()))?;
    let request = encode(&request);
    let answer = context.net.request(MemberId::Seat(seat), Protocol::Handover, request, TIMEOUT).await;
    let bytes = answer.map_err(|e| AwardError::Provider(e.to_string()))?;
    match decode::<HandoverReply>("reply", &bytes).map_err(|e| AwardError::Provider(e.to_string()))? {
        HandoverReply::Ok => {
            tracing::info!(
                job = reference.job,
                award = reference.id,
                "close sent to {}",
                award.spec.provider
            );
            Ok(())
        }
        HandoverReply::Unknown => Ok(nothing_left(context, award, &reference).await?),
        HandoverReply::Later { reason } | HandoverReply::Refused { reason } => {
            Err(AwardError::Provider(reason))
        }
        HandoverReply::Have { .. } => Err(AwardError::Provider("an answer of another kind".to_owned())),
    }
}

/// The provider knows nothing of the award: it is released.
async fn nothing_left(
    context: &Arc<HomeContext>,
    award: &Award,
    reference: &AwardRef,
) -> Result<(), ClusterError> {
    let version = context.version(&reference.id);
    let _guard = version.lock().await;
    let api = context.api(&award.namespace().unwrap_or_default());
    let name = award.name_any();
    let Some(now) = context.cluster.get("award", &api, &name).await? else { return Ok(()) };
    let mut status = now.status.unwrap_or_default();
    let message = "nothing of the award is left at the provider";
    let mut set = |type_: &str, reason: &str| {
        let new = conditions::condition(type_, true, reason, message, None, Timestamp::now());
        conditions::set(&mut status.conditions, new);
    };
    set(condition::FINISHED, reasons::CLOSED);
    set(condition::RELEASED, reasons::TORN_DOWN);
    status.state = Some(objects::state_word(&status.conditions).to_owned());
    let body = objects::status_patch(&status);
    let manager = names::MANAGER_RELAY;
    let _: Award = context.cluster.apply_status("award_status", &api, manager, &name, &body).await?;
    context.cluster.event(&award.object_ref(&()), false, "Close", reasons::TORN_DOWN, message.to_owned());
    Ok(())
}

/// Gives an Award that was written before a restart back to the state machine.
async fn resume(context: &Arc<HomeContext>, award: &Award, digest: Digest) -> Result<(), AwardError> {
    let damaged = |e: &dyn std::fmt::Display| AwardError::Damaged(e.to_string());
    let data = award.spec.certificate.clone().ok_or_else(|| damaged(&"it has no certificate"))?;
    let file: AwardFile = serde_json::from_str(&data.award).map_err(|e| damaged(&e))?;
    let certificate: CertificateFile = serde_json::from_str(&data.certificate).map_err(|e| damaged(&e))?;
    let certificate = certificate.certificate(context.record.n()).map_err(|e| damaged(&e))?;
    let mut facts =
        facts(context, &file.order, &certificate, &file.proof).ok_or_else(|| damaged(&"no winner"))?;
    let seat = u16::try_from(award.spec.seat).map_err(|e| damaged(&e))?;
    let price = award.spec.price.price().map_err(|e| damaged(&e))?;
    let rank = match facts.stand_bys.iter().position(|(s, _, _)| *s == seat) {
        Some(position) => u8::try_from(position + 1).unwrap_or(u8::MAX),
        None => 0,
    };
    facts.seat = (seat, award.spec.provider.clone(), price);
    let held = conditions::is_true(conditions_of(award), condition::HELD);
    let Some(job) = job_key(context, award).await? else { return Ok(()) };
    tracing::info!(
        job = job.uid,
        award = award.spec.id,
        round = award.spec.round,
        held,
        "award taken up after a restart"
    );
    let choice = held.then_some(Choice { order: digest, seat, rank, price, certificate, proof: file.proof });
    OrderTask::new(context, job, digest, file.order.clone(), file.order_signature)
        .resumed(facts, data)
        .spawn(false);
    if !context.tell(HomeInput::Resume { order: Box::new(file.order), choice }).await {
        context.drop_job(&(
            award.spec.job.uid.clone(),
            u32::try_from(award.spec.job.attempt).unwrap_or(u32::MAX),
        ));
        return Err(AwardError::Busy);
    }
    Ok(())
}

async fn job_key(context: &HomeContext, award: &Award) -> Result<Option<JobKey>, ClusterError> {
    let namespace = award.namespace().unwrap_or_default();
    let Some(name) = award.spec.job.name.clone() else { return Ok(None) };
    let jobs: Api<ComputeJob> = Api::namespaced(context.cluster.client.clone(), &namespace);
    let Some(job) = context.cluster.get("job", &jobs, &name).await? else { return Ok(None) };
    if job.metadata.uid.as_deref() != Some(award.spec.job.uid.as_str()) {
        return Ok(None);
    }
    let Some(owner) = job.controller_owner_ref(&()) else { return Ok(None) };
    let secret = job
        .status
        .as_ref()
        .and_then(|s| s.order.as_ref())
        .map_or_else(|| names::order_secret(&name, award.spec.job.attempt), |o| o.secret_name.clone());
    let (uid, reference) = (award.spec.job.uid.clone(), job.object_ref(&()));
    let auction = job.status.and_then(|s| s.auction).filter(|a| a.attempt == award.spec.job.attempt);
    Ok(Some(JobKey { namespace, name, uid, reference, owner, secret, auction }))
}

/// Soon at first, then less often: a provider may be cut off for long.
pub fn award_error_policy(
    object: Arc<DeserializeGuard<Award>>,
    error: &AwardError,
    context: Arc<HomeContext>,
) -> Action {
    let Ok(award) = &object.0 else { return Action::await_change() };
    let failures = context.failed(&award.spec.id, true);
    tracing::warn!(job = award.spec.job.uid, award = award.spec.id, failures, %error, "tried again later");
    Action::requeue(Duration::from_millis(250 << failures.min(4)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mk_award(close: bool, conditions: &[&str]) -> Award {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|type_| {
                json!({ "type": type_, "status": "True", "reason": "R", "message": "",
                                 "lastTransitionTime": "1970-01-01T00:00:10Z" })
            })
            .collect();
        let mut award: Award = serde_json::from_value(json!({
            "apiVersion": "vendue.dev/v1alpha1", "kind": "Award",
            "metadata": { "name": "digits-1", "namespace": "default" },
            "spec": {
                "side": "Home", "id": "0011223344556677", "marketId": "", "round": 1, "orderDigest": "00",
                "provider": "alpha", "seat": 0, "job": { "home": "home", "uid": "u", "attempt": 1 }, "price": "1",
                "expiresAt": "1970-01-01T00:00:20Z",
                "requirements": { "workers": 1, "gpusPerWorker": 1, "cpuMillisPerWorker": 1, "memoryMibPerWorker": 1,
                    "runDeadlineSeconds": 60, "image": "i" },
            },
            "status": { "conditions": conditions },
        }))
        .unwrap();
        if close {
            let at = objects::time_of(1);
            award.spec.close =
                Some(vendue_crds::AwardClose { reason: vendue_crds::CloseReason::UserClosed, at });
        }
        award
    }

    #[test]
    fn plans() {
        assert_eq!(plan(&mk_award(false, &[]), true), Plan::Nothing);
        assert_eq!(plan(&mk_award(false, &[]), false), Plan::Resume);
        assert_eq!(plan(&mk_award(false, &["Held"]), false), Plan::Resume);
        assert_eq!(plan(&mk_award(false, &["Held", "HandedOver"]), false), Plan::Nothing);
        assert_eq!(plan(&mk_award(true, &["Held"]), true), Plan::Close { not_taken: true });
        assert_eq!(plan(&mk_award(true, &["Held", "HandedOver"]), false), Plan::Close { not_taken: false });
        assert_eq!(plan(&mk_award(true, &["HandedOver", "Released"]), false), Plan::Forget);
    }
}
