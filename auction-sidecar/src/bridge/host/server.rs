//! Requests of homes: the workload, a close, and reads of the log.
//!
//! Invariant: a home is answered only about awards that it placed itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Resource};
use serde_json::json;
use tokio::sync::OwnedMutexGuard;
use vendue_auction_core::{HomeRecord, MarketRecord};
use vendue_crds::conditions::{self, award as condition, reasons};
use vendue_crds::{Award, CloseReason, names, workload};
use vendue_market::encode::from_hex;

use super::courier::{Courier, CourierError};
use super::{HostContext, receipts, reserve};
use crate::bridge::cluster::ClusterError;
use crate::bridge::objects::{self, COMMITMENT, conditions_of, ms_of};
use crate::engine::now_ms;
use crate::net::MemberId;
use crate::wire::{AwardRef, Bulk, BulkReply, Handover, HandoverReply, encode_bulk};

/// A workload is refused from so long before the expiry on, milliseconds: the write must be seen before the controller
/// gives the award up.
const LAST_MOMENT_MS: u64 = 1_000;
const POLL: Duration = Duration::from_millis(400);
const LONGEST_WAIT: Duration = Duration::from_secs(25);

/// Answers a request of the hand-over protocol; `None` when it is not for a host.
pub async fn serve(context: &Arc<HostContext>, from: MemberId, request: Handover) -> Option<HandoverReply> {
    let result = match request {
        Handover::Workload { award, workload, salt } => {
            take_workload(context, from, &award, &workload, &salt).await
        }
        Handover::Close { award, not_taken, signature } => {
            if !is_signed(context, from, &award, not_taken, &signature) {
                tracing::warn!(%from, award = award.id, "a close that its home did not sign");
                context.metrics.dropped("unsigned_close");
                return Some(refused("the close is not signed by the key of its home"));
            }
            take_close(context, from, &award, not_taken).await
        }
        Handover::Status { .. } | Handover::Manifest { .. } | Handover::Delivered { .. } => return None,
    };
    Some(result.unwrap_or_else(|error| {
        tracing::warn!(%from, %error, "request of a home not served");
        HandoverReply::Later { reason: "the provider's API server does not answer".to_owned() }
    }))
}

/// The Award, when it is there and belongs to the home that asks.
async fn own_award(
    context: &HostContext,
    from: MemberId,
    reference: &AwardRef,
) -> Result<Option<Award>, ClusterError> {
    if !reference.is_sound() {
        return Ok(None);
    }
    let award = context.fetch(&reference.id).await?;
    Ok(award.filter(|a| {
        let owner = context.home_of(a);
        let same = objects::award_ref(a).as_ref() == Some(reference);
        let is_owner = owner == Some(from) || is_same_cluster(context, owner, from);
        if !(same && is_owner) {
            tracing::warn!(%from, award = reference.id, "a home asks for an award that is not its own");
            context.metrics.dropped("foreign_award");
        }
        same && is_owner
    }))
}

/// A cluster that is seat and home is known to the network as the seat.
fn is_same_cluster(context: &HostContext, owner: Option<MemberId>, from: MemberId) -> bool {
    let peer = |id: MemberId| match id {
        MemberId::Seat(seat) => context.record.seat(seat).map(|s| s.peer_id.clone()),
        MemberId::Home(home) => context.record.home(home).map(|h| h.peer_id.clone()),
    };
    owner.and_then(peer).is_some_and(|owner| peer(from) == Some(owner))
}

/// Whether the home behind `from` signed the close; whether the award is that home's is another question.
fn is_signed(
    context: &HostContext,
    from: MemberId,
    award: &AwardRef,
    not_taken: bool,
    signature: &str,
) -> bool {
    let record = &context.record;
    let home = home_behind(record, from);
    home.is_some_and(|h| award.is_closed_by(&record.market, not_taken, signature, &h.user_key))
}

/// The home that a member is. A cluster that is seat and home is known to the network as the seat.
pub(super) fn home_behind(record: &MarketRecord, from: MemberId) -> Option<&HomeRecord> {
    match from {
        MemberId::Home(home) => record.home(home),
        MemberId::Seat(seat) => {
            record.seat(seat).and_then(|s| record.homes.iter().find(|h| h.peer_id == s.peer_id))
        }
    }
}

fn refused(reason: &str) -> HandoverReply {
    HandoverReply::Refused { reason: reason.to_owned() }
}

const ENDED: &str = "the award has ended";
const EXPIRED: &str = "the award has expired";

fn is_expired(award: &Award) -> bool {
    now_ms().saturating_add(LAST_MOMENT_MS) >= ms_of(&award.spec.expires_at)
}

/// The Award under its lock, read while the lock is held. Nothing is remembered for who asks about another's award.
async fn locked(
    context: &HostContext,
    from: MemberId,
    reference: &AwardRef,
) -> Result<Option<(Award, OwnedMutexGuard<()>)>, ClusterError> {
    if own_award(context, from, reference).await?.is_none() {
        return Ok(None);
    }
    let guard = context.memory(&reference.id, |m| m.lock.clone()).lock_owned().await;
    Ok(own_award(context, from, reference).await?.map(|award| (award, guard)))
}

async fn take_workload(
    context: &HostContext,
    from: MemberId,
    reference: &AwardRef,
    workload: &str,
    salt: &str,
) -> Result<HandoverReply, ClusterError> {
    let id = reference.id.as_str();
    let Some((award, _guard)) = locked(context, from, reference).await? else {
        return Ok(HandoverReply::Unknown);
    };
    let list = conditions_of(&award);
    let is_here = award.spec.workload_secret.is_some();
    if is_here && conditions::is_true(list, condition::HANDED_OVER) {
        return Ok(HandoverReply::Ok);
    }
    // Spec first, condition second: a crash in between is mended by the repeat, whatever became of the award by then. To
    // say that it ended would let home give the order to somebody else.
    if !is_here {
        let gone = award.spec.close.is_some() || award.metadata.deletion_timestamp.is_some();
        if gone || conditions::is_true(list, condition::RELEASED) {
            return Ok(refused(ENDED));
        }
        if !conditions::is_true(list, condition::HELD) {
            return Ok(HandoverReply::Later { reason: "the devices are not held".to_owned() });
        }
        if is_expired(&award) {
            return Ok(refused(EXPIRED));
        }
        if !matches_commitment(&award, workload, salt) {
            reserve::close(context, &award, CloseReason::NotTaken).await?;
            return Ok(refused("the workload does not match the order's commitment"));
        }
        if let Some(reason) = store_workload(context, &award, workload).await? {
            return Ok(refused(reason));
        }
    }
    let message = "the workload arrived and matches the order's commitment";
    let reason = reasons::VALID;
    reserve::set_condition(context, &award, (condition::HANDED_OVER, true), reason, message).await?;
    tracing::info!(job = reference.job, award = id, round = award.spec.round, "workload taken");
    context.metrics.awards.with_label_values(&["host", "handed_over"]).inc();
    Ok(HandoverReply::Ok)
}

fn matches_commitment(award: &Award, workload: &str, salt: &str) -> bool {
    let expected =
        award.metadata.annotations.as_ref().and_then(|a| a.get(COMMITMENT)).and_then(|c| from_hex(c));
    let salt: Option<[u8; 32]> = from_hex(salt).and_then(|s| s.try_into().ok());
    let (Some(expected), Some(salt)) = (expected, salt) else { return false };
    vendue_market::commitment(&salt, workload.as_bytes()).as_slice() == expected.as_slice()
        && workload::Workload::decode(workload.as_bytes()).is_ok()
}

/// First the Secret, then the Award's word that it is there. Returns why the workload came too late, if it did.
async fn store_workload(
    context: &HostContext,
    award: &Award,
    workload: &str,
) -> Result<Option<&'static str>, ClusterError> {
    let id = award.spec.id.as_str();
    let namespace = names::award_namespace(id);
    let secrets: Api<Secret> = Api::namespaced(context.cluster.client.clone(), &namespace);
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names::WORKLOAD_SECRET,
            "labels": { names::MANAGED_BY: names::VENDUE, names::AWARD_ID: id },
            "ownerReferences": award.controller_owner_ref(&()).into_iter().collect::<Vec<_>>(),
        },
        "type": "Opaque",
        "stringData": { names::WORKLOAD_KEY: workload },
    });
    let manager = names::MANAGER_AUCTION;
    context
        .cluster
        .apply::<Secret>("secret", &secrets, manager, names::WORKLOAD_SECRET, &Hidden(secret))
        .await?;
    // The Secret alone is nothing: it goes with the namespace.
    if is_expired(award) {
        return Ok(Some(EXPIRED));
    }
    let mut taken = objects::reapply(award);
    taken.spec.workload_secret = Some(names::WORKLOAD_SECRET.to_owned());
    taken.spec.handed_over_at = Some(objects::time_of(now_ms()));
    let written: Award =
        context.cluster.apply("award", &context.api(id), manager, names::HOST_AWARD, &taken).await?;
    let released = conditions::is_true(conditions_of(&written), condition::RELEASED);
    Ok(released.then_some(ENDED))
}

/// A body that must not be printed.
#[derive(serde::Serialize)]
#[serde(transparent)]
struct Hidden(serde_json::Value);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hidden")
    }
}

async fn take_close(
    context: &HostContext,
    from: MemberId,
    reference: &AwardRef,
    not_taken: bool,
) -> Result<HandoverReply, ClusterError> {
    let Some((award, _guard)) = locked(context, from, reference).await? else {
        return Ok(HandoverReply::Unknown);
    };
    let reason = if not_taken { CloseReason::NotTaken } else { CloseReason::UserClosed };
    tracing::info!(
        job = reference.job,
        award = reference.id,
        round = award.spec.round,
        ?reason,
        "close of its home"
    );
    reserve::close(context, &award, reason).await?;
    Ok(HandoverReply::Ok)
}

/// Answers a read of the log or of receipts; `None` when the request is not for a host.
pub async fn serve_bulk(
    context: &Arc<HostContext>,
    from: MemberId,
    request: Bulk,
    data: &[u8],
) -> Option<Bytes> {
    match request {
        Bulk::ReadLog { award, offset, wait_ms } => {
            Some(read_log(context, from, award, offset, wait_ms).await)
        }
        Bulk::ListReceipts { .. } | Bulk::ReadReceipts { .. } => {
            Some(receipts::serve(context, from, &request, data).await)
        }
        Bulk::Put { .. } => None,
    }
}

async fn read_log(
    context: &Arc<HostContext>,
    from: MemberId,
    reference: AwardRef,
    offset: u64,
    wait_ms: u32,
) -> Bytes {
    let failed = |reason: String| encode_bulk(&BulkReply::Failed { reason, retry: true }, &[]);
    let award = match own_award(context, from, &reference).await {
        Ok(Some(award)) => award,
        Ok(None) => return encode_bulk(&BulkReply::Unknown, &[]),
        Err(error) => return failed(error.to_string()),
    };
    let list = conditions_of(&award);
    if conditions::is_true(list, condition::RELEASED) {
        return encode_bulk(&BulkReply::Unknown, &[]);
    }
    if conditions::find(list, condition::PROVISIONED).is_none_or(|c| c.status != "True") {
        tokio::time::sleep(POLL.min(Duration::from_millis(u64::from(wait_ms)))).await;
        return encode_bulk(&BulkReply::Log { size: 0, ended: false }, &[]);
    }
    let ended = has_ended(&award);
    let wait =
        if ended { Duration::ZERO } else { Duration::from_millis(u64::from(wait_ms)).min(LONGEST_WAIT) };
    let read = async {
        let courier = context.courier.of(&reference.id).await?;
        let over = || {
            let is_over = |a: &Award| a.spec.id == reference.id && has_ended(a);
            context.awards.find(is_over).is_some()
        };
        poll_log(&courier, offset, wait, over).await
    };
    match read.await {
        Ok((data, size)) => encode_bulk(&BulkReply::Log { size, ended }, &data),
        Err(CourierError::NoToken) => encode_bulk(&BulkReply::Unknown, &[]),
        Err(error) => failed(error.to_string()),
    }
}

fn has_ended(award: &Award) -> bool {
    conditions::is_true(conditions_of(award), condition::FINISHED)
}

/// Reads the log, waiting for bytes at `offset` while the job is not over.
async fn poll_log(
    courier: &Courier,
    offset: u64,
    wait: Duration,
    over: impl Fn() -> bool,
) -> Result<(Bytes, u64), CourierError> {
    let started = Instant::now();
    loop {
        let (data, size) = courier.log(offset).await?;
        if !data.is_empty() || started.elapsed() >= wait || over() {
            return Ok((data, size));
        }
        tokio::time::sleep(POLL).await;
    }
}
