//! Requests of seats: status, manifests, pieces of outputs.
//!
//! Invariant: only the seat that the Award names is heard about it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt};
use vendue_crds::conditions::{self, award as condition};
use vendue_crds::{Award, AwardSide, AwardStatus, ComputeJob, names};

use super::HomeContext;
use crate::bridge::cluster::ClusterError;
use crate::bridge::devices;
use crate::bridge::objects::{self, award_ref, conditions_of};
use crate::engine::now_ms;
use crate::net::MemberId;
use crate::store::{Store, StoreError};
use crate::wire::{
    AwardRef, Bulk, BulkReply, FileEntry, Handover, HandoverReply, LOG_PATH, MAX_LOG, check_manifest,
    encode_bulk,
};

/// How long a piece waits for those before it.
const EARLY: Duration = Duration::from_secs(5);

/// Answers a request of the hand-over protocol; `None` when it is not for a home.
pub async fn serve(context: &Arc<HomeContext>, from: MemberId, request: Handover) -> Option<HandoverReply> {
    let result = match request {
        Handover::Status { award, version, status } => {
            take_status(context, from, &award, version, *status).await
        }
        Handover::Manifest { award, files } => take_manifest(context, from, &award, files).await,
        Handover::Delivered { award } => take_delivered(context, from, &award).await,
        Handover::Workload { .. } | Handover::Close { .. } => return None,
    };
    Some(result.unwrap_or_else(|error| {
        tracing::warn!(%from, %error, "request of a seat not served");
        HandoverReply::Later { reason: "home's API server does not answer".to_owned() }
    }))
}

/// The Award, when it is there and the seat that asks serves it. The watch may be behind, so that only the API server's
/// word is taken for a no.
async fn own_award(
    context: &HomeContext,
    from: MemberId,
    reference: &AwardRef,
) -> Result<Option<Award>, ClusterError> {
    if !reference.is_sound() {
        return Ok(None);
    }
    let is_it = |a: &Award| a.spec.side == AwardSide::Home && a.spec.id == reference.id;
    if let Some(award) = context.awards.find(|a| is_it(a) && is_own(context, from, reference, a)) {
        return Ok(Some(award));
    }
    if !context.may_read(from, now_ms()) {
        return Err(ClusterError::Busy("awards"));
    }
    let api: Api<Award> = Api::all(context.cluster.client.clone());
    let params = ListParams::default().labels(&format!("{}={}", names::AWARD_ID, reference.id));
    let found = context.cluster.list("awards", &api, &params).await?.into_iter().find(is_it);
    let own = found.filter(|award| is_own(context, from, reference, award));
    if own.is_none() {
        tracing::warn!(%from, award = reference.id, "a seat speaks of an award that is not its own");
        context.metrics.dropped("foreign_award");
    }
    Ok(own)
}

fn is_own(context: &HomeContext, from: MemberId, reference: &AwardRef, award: &Award) -> bool {
    award_ref(award).as_ref() == Some(reference) && context.is_seat(from, award.spec.seat)
}

async fn take_status(
    context: &HomeContext,
    from: MemberId,
    reference: &AwardRef,
    version: u64,
    status: AwardStatus,
) -> Result<HandoverReply, ClusterError> {
    let Some(award) = own_award(context, from, reference).await? else { return Ok(HandoverReply::Unknown) };
    let last = context.version(&reference.id);
    let mut last = last.lock().await;
    if version < *last {
        return Ok(HandoverReply::Ok);
    }
    let api: Api<Award> = context.api(&award.namespace().unwrap_or_default());
    let name = award.name_any();
    // The watch may be behind this process's own last write.
    let now = context.cluster.get("award", &api, &name).await?;
    let Some(now) = now.filter(|now| is_own(context, from, reference, now)) else {
        return Ok(HandoverReply::Unknown);
    };
    let ended = |list: &[Condition]| {
        conditions::is_true(list, condition::HANDED_OVER) && conditions::is_true(list, condition::RELEASED)
    };
    if ended(conditions_of(&now)) && !ended(&status.conditions) {
        // An older one that comes late.
        context.forget_version(&reference.id);
        return Ok(HandoverReply::Ok);
    }
    let old = now.status.clone().unwrap_or_default();
    let mut merged = objects::merged_status(&old, status);
    devices::judge_devices(&now.spec, &old, &mut merged, Timestamp::now());
    if merged.state.is_none() {
        merged.state = Some(objects::state_word(&merged.conditions).to_owned());
    }
    if merged != old {
        let body = objects::status_patch(&merged);
        let manager = names::MANAGER_RELAY;
        let _: Award = context.cluster.apply_status("award_status", &api, manager, &name, &body).await?;
        announce(context, &now, &merged);
    }
    *last = version;
    if ended(&merged.conditions) {
        // What comes late is told by the Award itself from now on.
        context.forget_version(&reference.id);
    }
    Ok(HandoverReply::Ok)
}

/// An Event for each condition that changed.
fn announce(context: &HomeContext, before: &Award, after: &AwardStatus) {
    for new in &after.conditions {
        let old = conditions::find(conditions_of(before), &new.type_);
        if old.is_some_and(|o| o.status == new.status && o.reason == new.reason) {
            continue;
        }
        let bad = if new.type_ == condition::DEVICES_CHANGED { "True" } else { "False" };
        let warning = new.status == bad && new.type_ != condition::RUNNING;
        let note = format!("{}={}: {}", new.type_, new.status, new.message);
        tracing::info!(
            job = before.spec.job.uid,
            award = before.spec.id,
            round = before.spec.round,
            condition = new.type_,
            status = new.status,
            reason = new.reason,
            "award"
        );
        context.cluster.event(&before.object_ref(&()), warning, &new.type_, &new.reason, note);
    }
}

/// Runs work that waits for the disk.
async fn on_disk<T: Send + 'static>(
    context: &HomeContext,
    work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let store = context.store.clone();
    match tokio::task::spawn_blocking(move || work(&store)).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Protocol(error.to_string())),
    }
}

/// The Job of an award; none when it was deleted.
async fn job_of(context: &HomeContext, award: &Award) -> Result<Option<ComputeJob>, ClusterError> {
    let name = award.spec.job.name.clone().unwrap_or_default();
    let api: Api<ComputeJob> =
        Api::namespaced(context.cluster.client.clone(), &award.namespace().unwrap_or_default());
    let job = context.cluster.get("job", &api, &name).await?;
    Ok(job.filter(|job| job.metadata.uid.as_deref() == Some(award.spec.job.uid.as_str())))
}

/// Outputs come from the Job's volume. The store forgets what it has longest to make room for announced outputs, so a
/// winner must not announce more than there can be.
fn fits_its_volume(job: &ComputeJob, files: &[FileEntry]) -> Result<(), String> {
    let volume_mib = job.spec.train.as_ref().map_or(0, |train| train.volume_mib);
    let max = u64::try_from(volume_mib).unwrap_or(0) << 20;
    let sum = |log: bool| {
        let sizes = files.iter().filter(|f| (f.path == LOG_PATH) == log).map(|f| f.size);
        sizes.fold(0u64, u64::saturating_add)
    };
    let (outputs, log) = (sum(false), sum(true));
    if outputs > max {
        return Err(format!(
            "{outputs} bytes of outputs do not fit into the job's volume; next: raise spec.train.volumeMib, which is {volume_mib}"
        ));
    }
    if log > MAX_LOG {
        return Err(format!("the log is {log} bytes long; accepted: at most {MAX_LOG}"));
    }
    Ok(())
}

async fn take_manifest(
    context: &HomeContext,
    from: MemberId,
    reference: &AwardRef,
    files: Vec<FileEntry>,
) -> Result<HandoverReply, ClusterError> {
    if let Err(error) = check_manifest(&files) {
        context.metrics.dropped("malformed");
        return Ok(HandoverReply::Refused { reason: error.to_string() });
    }
    let Some(award) = own_award(context, from, reference).await? else { return Ok(HandoverReply::Unknown) };
    let Some(job) = job_of(context, &award).await? else { return Ok(HandoverReply::Unknown) };
    if let Err(reason) = fits_its_volume(&job, &files) {
        tracing::error!(job = reference.job, reason, "outputs not accepted");
        return Ok(HandoverReply::Refused { reason });
    }
    let uid = reference.job.clone();
    let begun = on_disk(context, move |store| {
        let offsets = store.begin(&uid, files)?;
        Ok((offsets, store.used()))
    });
    Ok(match begun.await {
        Ok((offsets, used)) => {
            context.metrics.store_bytes.set(i64::try_from(used).unwrap_or(i64::MAX));
            HandoverReply::Have { offsets }
        }
        Err(error) if error.is_final() => {
            tracing::error!(job = reference.job, %error, "outputs not accepted");
            HandoverReply::Refused { reason: error.to_string() }
        }
        Err(error) => HandoverReply::Later { reason: error.to_string() },
    })
}

async fn take_delivered(
    context: &HomeContext,
    from: MemberId,
    reference: &AwardRef,
) -> Result<HandoverReply, ClusterError> {
    if own_award(context, from, reference).await?.is_none() {
        return Ok(HandoverReply::Unknown);
    }
    let uid = reference.job.clone();
    Ok(match on_disk(context, move |store| store.complete(&uid)).await {
        Ok(()) => {
            tracing::info!(job = reference.job, award = reference.id, "outputs are stored");
            HandoverReply::Ok
        }
        Err(error) => HandoverReply::Later { reason: error.to_string() },
    })
}

/// Answers a piece of a file; `None` when the request is not for a home.
pub async fn serve_bulk(
    context: &Arc<HomeContext>,
    from: MemberId,
    request: Bulk,
    data: Bytes,
) -> Option<Bytes> {
    let Bulk::Put { award, file, offset } = request else { return None };
    let failed = |reason: String| encode_bulk(&BulkReply::Failed { reason, retry: true }, &[]);
    match own_award(context, from, &award).await {
        Ok(Some(_)) => {}
        Ok(None) => return Some(encode_bulk(&BulkReply::Unknown, &[])),
        Err(error) => return Some(failed(error.to_string())),
    }
    let file = usize::try_from(file).unwrap_or(usize::MAX);
    let stored = put(context, &award.job, file, offset, data).await;
    Some(match stored {
        Ok(offset) => encode_bulk(&BulkReply::Stored { offset }, &[]),
        Err(error) => {
            tracing::warn!(job = award.job, %error, "piece of an output not stored");
            failed(error.to_string())
        }
    })
}

/// Stores a piece, after those before it: pieces overtake each other on their way.
async fn put(
    context: &HomeContext,
    job: &str,
    file: usize,
    offset: u64,
    data: Bytes,
) -> Result<u64, StoreError> {
    let mut arrivals = context.store.arrivals();
    let deadline = tokio::time::Instant::now() + EARLY;
    loop {
        let (uid, piece) = (job.to_owned(), data.clone());
        let there = on_disk(context, move |store| store.put(&uid, file, offset, &piece)).await?;
        if there >= offset {
            return Ok(there);
        }
        match tokio::time::timeout_at(deadline, arrivals.changed()).await {
            Ok(Ok(())) => {}
            // The one before it is lost: the sender goes on from what is there.
            Ok(Err(_)) | Err(_) => return Ok(there),
        }
    }
}

#[cfg(test)]
mod tests;
