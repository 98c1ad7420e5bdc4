//! What each Award of this host needs next: pure [`plan`], then the IO.
//!
//! Invariant: level-triggered: the plan follows from the object and a little memory, so a restart only repeats.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use vendue_auction_core::SeatInput;
use vendue_crds::conditions::{self, award as condition, reasons};
use vendue_crds::{Award, AwardSide};
use vendue_market::Reason;

use super::{AwardMemory, HostContext, deliver, digest_of, relay, reserve};
use crate::bridge::cluster::ClusterError;
use crate::bridge::objects::{award_ref, conditions_of, ms_of, relayed_status};
use crate::engine::now_ms;

/// How long outputs and the last status are tried to bring home after the end.
pub(super) const DELIVERY_TIME: Duration = Duration::from_secs(600);
/// How long an Award that took a workload is kept when its home cannot be told of the end. Home asks for a day whether
/// the workload arrived; as long as it does, "unknown" must mean that it never did.
const KEPT_TIME: Duration = Duration::from_secs(25 * 3600);
/// How long a namespace outlives a refusal, so that a repeated request finds the same answer.
const REFUSED_TIME: Duration = Duration::from_secs(2);

/// How often an award is looked at when nothing changes.
const IDLE: Duration = Duration::from_secs(60);

/// Why a reconcile is to be repeated.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The seat's state machine took no more inputs.
    #[error("the controller's answer was not passed to the seat")]
    Untold,
}

/// What to do now for an Award.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Tell the seat whether the devices are held.
    answer: Option<bool>,
    /// Bring the status home.
    relay: bool,
    /// Bring the outputs home.
    deliver: bool,
    /// Delete the namespace.
    delete: bool,
    /// Look again, milliseconds from now.
    again_ms: Option<u64>,
}

/// Decides from the object, what is remembered, and the time.
fn plan(award: &Award, memory: &AwardMemory, status_hash: u64, now_ms: u64) -> Plan {
    let list = conditions_of(award);
    let mut plan = Plan::default();
    let held = conditions::find(list, condition::HELD).map(|c| c.status == "True");
    let handed_over = conditions::is_true(list, condition::HANDED_OVER);
    if held.is_some() && held != memory.told && !handed_over {
        plan.answer = held;
    }
    let since = |type_: &str| {
        conditions::find(list, type_)
            .filter(|c| c.status != "Unknown")
            .map(|c| now_ms.saturating_sub(ms_of(&c.last_transition_time)))
    };
    let finished = conditions::is_true(list, condition::FINISHED);
    let released = conditions::is_true(list, condition::RELEASED);
    // A reservation's status is the seat's business until the workload is here.
    // The workload is there when the spec says so; a crash may have come before the condition.
    let taken = handed_over || award.spec.workload_secret.is_some();
    plan.relay = taken && memory.relayed != Some(status_hash);
    // Nobody waits for the outputs of an award that its user has closed.
    plan.deliver = finished
        && taken
        && award.spec.close.is_none()
        && !released
        && !memory.delivering
        && conditions::find(list, condition::DELIVERED).is_none();
    if held == Some(false) && !taken {
        let refused = u64::try_from(REFUSED_TIME.as_millis()).unwrap_or(0);
        match since(condition::HELD) {
            Some(age) if age >= refused => plan.delete = true,
            age => plan.again_ms = Some(refused.saturating_sub(age.unwrap_or(0)).max(100)),
        }
    }
    if released {
        // What was handed over ends in Finished, and home is to know.
        let settled = !plan.relay && (finished || !taken);
        let kept = if taken && !memory.unknown_at_home { KEPT_TIME } else { DELIVERY_TIME };
        let age = since(condition::RELEASED);
        plan.delete = settled || age.is_some_and(|age| u128::from(age) > kept.as_millis());
        if !plan.delete {
            // Soon at first, and less often when the home is away.
            plan.again_ms = age.map(|age| (age / 4).clamp(100, 60_000));
        }
    }
    plan
}

/// Hash of what home is to know.
pub(super) fn status_hash(award: &Award) -> u64 {
    let mut hasher = DefaultHasher::new();
    // The same status always serialises to the same text.
    serde_json::to_string(&relayed_status(award)).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

/// One step for one Award.
pub async fn reconcile(
    object: Arc<DeserializeGuard<Award>>,
    context: Arc<HostContext>,
) -> Result<Action, ReconcileError> {
    let award = match &object.0 {
        // Another seat's Award can only be here when several share a cluster.
        Ok(award) if award.spec.side == AwardSide::Host && award.spec.seat == i32::from(context.seat) => {
            award
        }
        Ok(_) => return Ok(Action::await_change()),
        Err(error) => {
            tracing::error!(name = ?error.metadata.name, %error, "Award skipped: it does not parse");
            return Ok(Action::await_change());
        }
    };
    let id = award.spec.id.as_str();
    context.seller.offer();
    if award.metadata.deletion_timestamp.is_some()
        && !conditions::is_true(conditions_of(award), condition::HANDED_OVER)
    {
        return Ok(Action::await_change());
    }
    let hash = status_hash(award);
    let memory = context.memory(id, |m| m.clone());
    let plan = plan(award, &memory, hash, now_ms());
    // Each part is started before any is waited for: no home makes another award wait.
    let told = plan.answer.is_none_or(|held| answer(&context, award, held));
    if plan.deliver {
        deliver::start(&context, award);
    }
    if plan.relay {
        relay::start(&context, award);
    }
    if plan.delete && award.metadata.deletion_timestamp.is_none() {
        reserve::delete(&context, id).await?;
        return Ok(Action::await_change());
    }
    if !told {
        return Err(ReconcileError::Untold);
    }
    context.remembered(id, |m| m.failures = 0);
    Ok(Action::requeue(plan.again_ms.map_or(IDLE, Duration::from_millis)))
}

/// Tells the seat what the controller said, when the seat waits for it; the seat answers the home. `false` when it is to
/// be told again.
fn answer(context: &HostContext, award: &Award, held: bool) -> bool {
    let (Some(order), Some(reference)) = (digest_of(award), award_ref(award)) else { return true };
    let id = award.spec.id.as_str();
    if !context.is_asked(&order, id) {
        context.memory(id, |m| m.told = Some(held));
        return true;
    }
    let condition = conditions::find(conditions_of(award), condition::HELD);
    let reason = condition.map(|c| c.reason.as_str()).unwrap_or_default();
    let result = match (held, reason) {
        (true, _) => Ok(()),
        (false, reasons::CAPACITY_GONE) => Err(Reason::FreeGpus),
        (false, _) => Err(Reason::NoOffer),
    };
    // Offers without the devices come first: the seat must not bid them again.
    context.seller.offer();
    let round = u64::try_from(award.spec.round).unwrap_or_default();
    if !context.tell_seat(SeatInput::Reserved { order, round, result }) {
        return false;
    }
    context.memory(id, |m| m.told = Some(held));
    if !held {
        context.answered(&order);
    }
    let (job, round) = (&reference.job, award.spec.round);
    tracing::info!(job, award = id, round, held, reason, "controller answered");
    context.metrics.awards.with_label_values(&["host", if held { "held" } else { "refused" }]).inc();
    true
}

/// Answers at once for an Award that the controller has judged before. `false` when the seat is to be told again.
pub(super) fn answer_known(context: &HostContext, award: &Award) -> bool {
    let list = conditions_of(award);
    let released = conditions::is_true(list, condition::RELEASED) || award.spec.close.is_some();
    match conditions::find(list, condition::HELD) {
        Some(held) => answer(context, award, held.status == "True" && !released),
        None if released => answer(context, award, false),
        None => true,
    }
}

/// When to try again: soon at first, and soon again whenever the home comes back.
pub fn error_policy(
    object: Arc<DeserializeGuard<Award>>,
    error: &ReconcileError,
    context: Arc<HostContext>,
) -> Action {
    let Ok(award) = &object.0 else { return Action::requeue(Duration::from_secs(3600)) };
    let failures = context.remembered(&award.spec.id, |m| {
        m.failures = m.failures.saturating_add(1);
        m.failures
    });
    let failures = failures.unwrap_or(1);
    tracing::debug!(award = award.spec.id, failures, %error, "tried again later");
    Action::requeue(Duration::from_millis(250 << failures.min(4)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mk_award(conditions: &[(&str, bool, &str)]) -> Award {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(type_, status, reason)| {
                json!({ "type": type_, "status": if *status { "True" } else { "False" }, "reason": reason,
                        "message": "", "lastTransitionTime": "1970-01-01T00:00:10Z" })
            })
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "vendue.dev/v1alpha1", "kind": "Award",
            "metadata": { "name": "award", "namespace": "vendue-a-0011223344556677" },
            "spec": {
                "side": "Host", "id": "0011223344556677", "marketId": "", "round": 1, "orderDigest": "00",
                "provider": "alpha", "seat": 0, "job": { "home": "home", "uid": "u", "attempt": 1 }, "price": "1",
                "expiresAt": "1970-01-01T00:00:20Z",
                "requirements": { "workers": 1, "gpusPerWorker": 1, "cpuMillisPerWorker": 1, "memoryMibPerWorker": 1,
                    "runDeadlineSeconds": 60, "image": "i" },
            },
            "status": { "conditions": conditions },
        }))
        .unwrap()
    }

    #[test]
    fn the_controllers_answer_is_passed_on_once() {
        let held = mk_award(&[("Held", true, "DevicesHeld")]);
        let mut memory = AwardMemory::default();
        assert_eq!(plan(&held, &memory, 1, 10_000), Plan { answer: Some(true), ..Plan::default() });
        memory.told = Some(true);
        assert_eq!(plan(&held, &memory, 1, 10_000), Plan::default());
    }

    #[test]
    fn a_refused_award_goes_a_moment_later() {
        let refused = mk_award(&[("Held", false, "CapacityGone")]);
        let memory = AwardMemory { told: Some(false), ..AwardMemory::default() };
        assert_eq!(plan(&refused, &memory, 1, 11_000), Plan { again_ms: Some(1000), ..Plan::default() });
        assert_eq!(plan(&refused, &memory, 1, 12_000), Plan { delete: true, ..Plan::default() });
    }

    #[test]
    fn the_end_is_delivered_relayed_and_then_forgotten() {
        let base = [("Held", true, ""), ("HandedOver", true, ""), ("Finished", true, "Succeeded")];
        let memory = AwardMemory { told: Some(true), ..AwardMemory::default() };
        let first = plan(&mk_award(&base), &memory, 1, 20_000);
        assert_eq!(first, Plan { relay: true, deliver: true, ..Plan::default() });
        let mut all = base.to_vec();
        all.push(("Delivered", true, "Stored"));
        assert_eq!(plan(&mk_award(&all), &memory, 1, 20_000), Plan { relay: true, ..Plan::default() });
        all.push(("Released", true, "TornDown"));
        let again = Plan { again_ms: Some(2_500), ..Plan::default() };
        assert_eq!(plan(&mk_award(&all), &memory, 1, 20_000), Plan { relay: true, ..again });
        let relayed = AwardMemory { relayed: Some(1), ..memory.clone() };
        assert_eq!(plan(&mk_award(&all), &relayed, 1, 20_000), Plan { delete: true, ..Plan::default() });
        // A home that knows nothing of it needs no more time; one that is away may ask for a day what became of it.
        let unknown = AwardMemory { unknown_at_home: true, ..memory.clone() };
        let late = plan(&mk_award(&all), &unknown, 1, 700_000);
        assert_eq!(late, Plan { relay: true, delete: true, ..Plan::default() });
        let away = plan(&mk_award(&all), &memory, 1, 86_400_000);
        assert_eq!(away, Plan { relay: true, again_ms: Some(60_000), ..Plan::default() });
        assert!(plan(&mk_award(&all), &memory, 1, 90_100_000).delete);
    }

    #[test]
    fn a_workload_that_is_there_counts_without_its_condition() {
        let mut award = mk_award(&[("Held", true, ""), ("Finished", true, "Succeeded")]);
        let memory = AwardMemory { told: Some(true), ..AwardMemory::default() };
        assert!(!plan(&award, &memory, 1, 20_000).relay, "a reservation is the seat's business");
        award.spec.workload_secret = Some("workload".into());
        let first = plan(&award, &memory, 1, 20_000);
        assert_eq!(first, Plan { relay: true, deliver: true, ..Plan::default() });
        let mut released =
            mk_award(&[("Held", true, ""), ("Finished", true, "Succeeded"), ("Released", true, "TornDown")]);
        released.spec.workload_secret = Some("workload".into());
        assert!(!plan(&released, &memory, 1, 20_000).delete, "home has not heard of it");
    }

    #[test]
    fn what_was_handed_over_stays_until_home_knows_its_end() {
        let mut list = vec![("Held", true, ""), ("HandedOver", true, ""), ("Released", true, "AwardExpired")];
        let memory = AwardMemory { told: Some(true), relayed: Some(1), ..AwardMemory::default() };
        let again = Plan { again_ms: Some(2_500), ..Plan::default() };
        assert_eq!(plan(&mk_award(&list), &memory, 1, 20_000), again);
        assert!(plan(&mk_award(&list), &memory, 1, 90_100_000).delete);
        list.push(("Finished", true, "RuntimeError"));
        assert_eq!(plan(&mk_award(&list), &memory, 1, 20_000), Plan { delete: true, ..Plan::default() });
    }
}
