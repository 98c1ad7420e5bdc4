//! RESERVE on the host: namespace and Award; and their end when the order is no longer this seat's business.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Resource};
use vendue_auction_core::{HoldRequest, ReleaseCause, SeatInput};
use vendue_crds::conditions::{self, award as condition, reasons};
use vendue_crds::{Award, AwardClose, CloseReason, names};
use vendue_market::{Digest, Outcome, Reason};

use super::HostContext;
use crate::bridge::cluster::ClusterError;
use crate::bridge::devices::bound_devices;
use crate::bridge::objects::{self, AwardFacts, conditions_of};
use crate::bridge::offers::parse_offer_name;
use crate::engine::now_ms;

/// Why a reservation was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum HoldError {
    /// The proof does not give the order to anybody, or names nobody known.
    #[error("the proof names no winner of this market")]
    NoWinner,
    /// The offer is not a Provision of this cluster.
    #[error("offer {0:?} is not a Provision")]
    NoProvision(String),
    /// An Award of that id is there for another order.
    #[error("the namespace of the award is taken by another order")]
    Taken,
    /// The Provision does not serve this home.
    #[error("the Provision does not serve home {0:?}")]
    HomeNotServed(String),
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// What the Award says, from the verified request.
pub(super) fn facts(context: &HostContext, request: &HoldRequest) -> Result<AwardFacts, HoldError> {
    let Outcome::Award(award) = &request.proof.leaf.outcome else { return Err(HoldError::NoWinner) };
    let own = context.record.seat(context.seat).ok_or(HoldError::NoWinner)?;
    let home = context.record.home(request.home).ok_or(HoldError::NoWinner)?;
    Ok(AwardFacts {
        market: context.record.market,
        round: request.certificate.round,
        order: request.order.clone(),
        winner: award.seat,
        seat: (context.seat, own.provider.clone(), request.price),
        stand_bys: Vec::new(),
        devices: bound_devices(award),
        expires_ms: request.expires_ms,
        home: home.name.clone(),
    })
}

/// Makes the namespace and the Award; the controller answers by the condition Held. Tried until the request expires.
pub(super) async fn hold(context: &Arc<HostContext>, request: HoldRequest) {
    let (order, round) = (request.order.digest(), request.certificate.round);
    let span = tracing::info_span!("hold", job = %request.order.job, round = request.certificate.round);
    let mut pause = Duration::from_millis(100);
    loop {
        match try_hold(context, &request).await {
            Ok((id, known)) => {
                // The request came again, after a restart or a lost answer: the controller's word is there already.
                if let Some(award) = known
                    && !super::reconcile::answer_known(context, &award)
                    && now_ms() < request.expires_ms
                {
                    tokio::time::sleep(pause).await;
                    continue;
                }
                tracing::info!(parent: &span, award = id, rank = request.rank, price = %request.price, "award reserved");
                context.metrics.awards.with_label_values(&["host", "reserved"]).inc();
                return;
            }
            Err(HoldError::Cluster(error)) if !error.is_final() && now_ms() < request.expires_ms => {
                tracing::warn!(parent: &span, %error, "award not written yet");
            }
            Err(error) => {
                tracing::error!(parent: &span, %error, "award refused");
                let reason = match error {
                    HoldError::HomeNotServed(_) => Reason::Home,
                    _ => Reason::NoOffer,
                };
                if facts(context, &request).is_ok_and(|f| context.is_asked(&order, &f.id())) {
                    context.answered(&order);
                }
                // The home waits for this answer until the request expires.
                while !context.tell_seat(SeatInput::Reserved { order, round, result: Err(reason) })
                    && now_ms() < request.expires_ms
                {
                    tokio::time::sleep(pause).await;
                }
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

async fn try_hold(
    context: &HostContext,
    request: &HoldRequest,
) -> Result<(String, Option<Award>), HoldError> {
    let facts = facts(context, request)?;
    let provision =
        parse_offer_name(&request.offer).ok_or_else(|| HoldError::NoProvision(request.offer.clone()))?;
    check_home(context, provision, &facts.home).await?;
    let id = facts.id();
    context.ask(facts.order.digest(), &id);
    let lock = context.memory(&id, |m| m.lock.clone());
    let _guard = lock.lock().await;
    if let Some(old) = context.fetch(&id).await? {
        // The Award may have moved on, so it is not written again.
        let same =
            super::digest_of(&old) == Some(facts.order.digest()) && old.metadata.deletion_timestamp.is_none();
        return if same { Ok((id, Some(old))) } else { Err(HoldError::Taken) };
    }
    // An earlier Award of this id is gone, and what was said of it.
    context.memory(&id, |m| m.told = None);
    // First the namespace with its labels, so that no Pod can ever be in it without them.
    let namespaces: Api<Namespace> = Api::all(context.cluster.client.clone());
    let name = names::award_namespace(&id);
    let body = objects::host_namespace(&id);
    context.cluster.apply("namespace", &namespaces, names::MANAGER_AUCTION, &name, &body).await?;
    let award = objects::host_award(&facts, provision);
    let written: Award = context
        .cluster
        .apply("award", &context.api(&id), names::MANAGER_AUCTION, names::HOST_AWARD, &award)
        .await?;
    let note = format!("asked to hold {} GPUs for home {}", request.order.requirements.gpus(), facts.home);
    context.cluster.event(&written.object_ref(&()), false, "Reserve", reasons::RESERVING, note);
    Ok((id, None))
}

async fn check_home(context: &HostContext, provision: (&str, &str), home: &str) -> Result<(), HoldError> {
    let api: Api<vendue_crds::Provision> = Api::namespaced(context.cluster.client.clone(), provision.0);
    let found = context.cluster.get("provision", &api, provision.1).await?;
    let found = found.ok_or_else(|| HoldError::NoProvision(provision.1.to_owned()))?;
    let homes = &found.spec.accept.homes;
    if homes.is_empty() || homes.iter().any(|h| h == home) {
        return Ok(());
    }
    Err(HoldError::HomeNotServed(home.to_owned()))
}

/// Ends the reservations of an order that are not taken up. An Award with a workload is not touched: only its home
/// closes it.
pub(super) async fn release(context: &Arc<HostContext>, order: Digest, cause: ReleaseCause) {
    context.answered(&order);
    let now = now_ms();
    let mut ids: Vec<String> = context
        .reservations_of(&order)
        .into_iter()
        // A later round may have given the order to this seat again.
        .filter(|a| cause != ReleaseCause::Expired || objects::ms_of(&a.spec.expires_at) <= now + 1000)
        .map(|a| a.spec.id)
        .collect();
    for _ in 0..10 {
        let mut left = Vec::new();
        for id in ids {
            if let Err(error) = try_release(context, &id, cause).await {
                tracing::warn!(award = id, %error, "reservation not closed yet");
                left.push(id);
            }
        }
        if left.is_empty() {
            return;
        }
        ids = left;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn try_release(context: &HostContext, id: &str, cause: ReleaseCause) -> Result<(), ClusterError> {
    let lock = context.memory(id, |m| m.lock.clone());
    let _guard = lock.lock().await;
    let Some(award) = context.fetch(id).await? else { return Ok(()) };
    if award.spec.workload_secret.is_some() {
        return Ok(());
    }
    tracing::info!(award = id, ?cause, "reservation ends");
    let reason = match cause {
        ReleaseCause::Cancelled => CloseReason::UserClosed,
        ReleaseCause::TakenElsewhere | ReleaseCause::Expired => CloseReason::NotTaken,
    };
    close(context, &award, reason).await
}

/// Sets `spec.close`. The caller holds the Award's lock and has read it from the API server.
pub(super) async fn close(
    context: &HostContext,
    award: &Award,
    reason: CloseReason,
) -> Result<(), ClusterError> {
    if award.spec.close.is_some() || award.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let mut closed = objects::reapply(award);
    closed.spec.close = Some(AwardClose { reason, at: objects::time_of(now_ms()) });
    let written: Award = context
        .cluster
        .apply("award", &context.api(&award.spec.id), names::MANAGER_AUCTION, names::HOST_AWARD, &closed)
        .await?;
    let note = match reason {
        CloseReason::UserClosed => "the user closed the award",
        CloseReason::NotTaken => "the reservation was not taken up",
    };
    context.cluster.event(&written.object_ref(&()), false, "Close", reasons::CLOSED, note.to_owned());
    Ok(())
}

/// Deletes the namespace of an Award, and all that is in it.
pub(super) async fn delete(context: &HostContext, id: &str) -> Result<(), ClusterError> {
    let namespaces: Api<Namespace> = Api::all(context.cluster.client.clone());
    context.cluster.delete("namespace", &namespaces, &names::award_namespace(id)).await?;
    context.metrics.awards.with_label_values(&["host", "deleted"]).inc();
    Ok(())
}

/// Sets conditions that the auction process owns on the host (HandedOver, Delivered), keeping the other one.
pub(super) async fn set_condition(
    context: &HostContext,
    award: &Award,
    (type_, status): (&str, bool),
    reason: &str,
    message: &str,
) -> Result<Award, ClusterError> {
    let mut own: Vec<_> = conditions_of(award)
        .iter()
        .filter(|c| c.type_ == condition::HANDED_OVER || c.type_ == condition::DELIVERED)
        .cloned()
        .collect();
    let generation = award.metadata.generation;
    conditions::set(
        &mut own,
        conditions::condition(type_, status, reason, message, generation, Timestamp::now()),
    );
    let written = context
        .cluster
        .apply_status(
            "award_status",
            &context.api(&award.spec.id),
            names::MANAGER_RELAY,
            names::HOST_AWARD,
            &objects::conditions_patch(&own),
        )
        .await?;
    context.cluster.event(&award.object_ref(&()), !status, type_, reason, message.to_owned());
    Ok(written)
}
