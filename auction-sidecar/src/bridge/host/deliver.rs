//! Outputs and log on their way home, when a run has ended.
//!
//! Inputs: the courier's manifest and pieces. Outputs: pieces at home, then the condition Delivered. Invariant: home
//! counts what it has and the sender goes on from there, so a repeat after a crash sends only what is missing.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use vendue_crds::Award;
use vendue_crds::conditions::{self, award as condition, reasons};

use super::courier::{Courier, CourierError};
use super::reconcile::DELIVERY_TIME;
use super::{HostContext, reserve};
use crate::bridge::cluster::ClusterError;
use crate::bridge::objects::{award_ref, conditions_of, ms_of};
use crate::engine::now_ms;
use crate::net::{CHUNK, MemberId, NetError, Protocol};
use crate::wire::{
    AwardRef, Bulk, BulkReply, FileEntry, Handover, HandoverReply, LOG_PATH, WireError, decode, decode_bulk,
    encode, encode_bulk,
};

const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest log that is brought home; the end of a longer one is cut off.
const MAX_LOG: u64 = 64 << 20;

/// How often a courier that does not answer is asked: about three quarters of a minute.
const COURIER_TRIES: u32 = 12;

/// Why a delivery did not work.
#[derive(Debug, thiserror::Error)]
enum DeliverError {
    /// The courier.
    #[error(transparent)]
    Courier(#[from] CourierError),
    /// The network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Home's answer does not parse.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Home does not want it now.
    #[error("home: {0}")]
    Later(String),
    /// Home does not want it at all.
    #[error("home refuses: {0}")]
    Refused(String),
    /// A file changed while it was sent.
    #[error("output {0:?} changed while it was sent")]
    Changed(String),
}

/// Starts the delivery of an Award, unless it is under way.
pub(super) fn start(context: &Arc<HostContext>, award: &Award) {
    let id = award.spec.id.clone();
    if context.memory(&id, |m| std::mem::replace(&mut m.delivering, true)) {
        return;
    }
    let (context, award) = (context.clone(), award.clone());
    tokio::spawn(async move {
        deliver(&context, &award).await;
        context.memory(&award.spec.id, |m| m.delivering = false);
    });
}

async fn deliver(context: &Arc<HostContext>, award: &Award) {
    let (Some(home), Some(reference)) = (context.home_of(award), award_ref(award)) else { return };
    let job = reference.job.clone();
    let ended = conditions::find(conditions_of(award), condition::FINISHED)
        .map_or_else(now_ms, |c| ms_of(&c.last_transition_time));
    let deadline = ended.saturating_add(u64::try_from(DELIVERY_TIME.as_millis()).unwrap_or(u64::MAX));
    let mut pause = Duration::from_millis(500);
    let mut courier_failures = 0u32;
    let result = loop {
        match attempt(context, home, &reference).await {
            Ok(bytes) => break Ok(bytes),
            Err(error @ DeliverError::Refused(_)) => break Err(error.to_string()),
            Err(error) if now_ms() >= deadline => break Err(error.to_string()),
            // Without its courier the outputs are lost, and waiting longer only holds the devices.
            Err(error @ DeliverError::Courier(_)) if courier_failures >= COURIER_TRIES => {
                break Err(error.to_string());
            }
            Err(error) => {
                courier_failures += u32::from(matches!(error, DeliverError::Courier(_)));
                tracing::warn!(job, award = reference.id, %error, "outputs not delivered yet");
            }
        }
        // Somebody else may have ended it: the award closed or deleted.
        match context.fetch(&reference.id).await {
            Ok(None) => return,
            Ok(Some(now)) if conditions::is_true(conditions_of(&now), condition::RELEASED) => return,
            _ => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    };
    let (status, reason, message) = match &result {
        Ok(bytes) => (true, reasons::STORED, format!("{bytes} bytes are stored at home")),
        Err(why) => (false, reasons::DELIVERY_TIMEOUT, why.clone()),
    };
    tracing::info!(job, award = reference.id, delivered = status, message, "delivery ends");
    context
        .metrics
        .awards
        .with_label_values(&["host", if status { "delivered" } else { "undelivered" }])
        .inc();
    while let Err(error) = report(context, &reference.id, status, reason, &message).await {
        tracing::warn!(award = reference.id, %error, "Delivered not written yet");
        tokio::time::sleep(Duration::from_secs(1)).await;
        if error.is_final() {
            return;
        }
    }
}

async fn report(
    context: &HostContext,
    id: &str,
    status: bool,
    reason: &str,
    message: &str,
) -> Result<(), ClusterError> {
    let lock = context.memory(id, |m| m.lock.clone());
    let _guard = lock.lock().await;
    let Some(award) = context.fetch(id).await? else { return Ok(()) };
    reserve::set_condition(context, &award, (condition::DELIVERED, status), reason, message).await.map(drop)
}

/// One try; returns how many bytes home has.
async fn attempt(context: &HostContext, home: MemberId, award: &AwardRef) -> Result<u64, DeliverError> {
    let courier = context.courier.of(&award.id).await?;
    let log = whole_log(&courier).await?;
    let mut files = courier.manifest().await?;
    files.push(FileEntry {
        path: LOG_PATH.to_owned(),
        size: log.len() as u64,
        sha256: hex::encode(Sha256::digest(&log)),
    });
    let total = files.iter().map(|f| f.size).sum();
    let manifest = Handover::Manifest { award: award.clone(), files: files.clone() };
    let offsets = match ask(context, home, &manifest).await? {
        HandoverReply::Have { offsets } if offsets.len() == files.len() => offsets,
        other => return Err(unexpected(other)),
    };
    for (number, (file, have)) in files.iter().zip(offsets).enumerate() {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let source =
            if file.path == LOG_PATH { Source::Log(&log) } else { Source::File(&courier, &file.path) };
        send_file(context, home, award, (number, file), have, source).await?;
    }
    match ask(context, home, &Handover::Delivered { award: award.clone() }).await? {
        HandoverReply::Ok => Ok(total),
        other => Err(unexpected(other)),
    }
}

enum Source<'a> {
    Log(&'a Bytes),
    File(&'a Courier, &'a str),
}

async fn send_file(
    context: &HostContext,
    home: MemberId,
    award: &AwardRef,
    (number, file): (u32, &FileEntry),
    mut offset: u64,
    source: Source<'_>,
) -> Result<(), DeliverError> {
    while offset < file.size {
        let data = match &source {
            Source::Log(log) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(log.len());
                log.slice(start..log.len().min(start + CHUNK))
            }
            Source::File(courier, path) => courier.file(path, offset).await?,
        };
        let left = usize::try_from(file.size - offset).unwrap_or(usize::MAX);
        let data = data.slice(..data.len().min(left));
        if data.is_empty() {
            return Err(DeliverError::Changed(file.path.clone()));
        }
        let header = Bulk::Put { award: award.clone(), file: number, offset };
        let answer = context.net.request(home, Protocol::Bulk, encode_bulk(&header, &data), TIMEOUT).await?;
        match decode_bulk::<BulkReply>("reply", &answer)?.0 {
            BulkReply::Stored { offset: now } if now > offset => offset = now,
            BulkReply::Stored { .. } => return Err(DeliverError::Changed(file.path.clone())),
            BulkReply::Failed { reason, retry: false } => return Err(DeliverError::Refused(reason)),
            BulkReply::Failed { reason, .. } => return Err(DeliverError::Later(reason)),
            BulkReply::Unknown | BulkReply::Log { .. } => {
                return Err(DeliverError::Refused("the job is not known any more".to_owned()));
            }
        }
    }
    Ok(())
}

async fn whole_log(courier: &Courier) -> Result<Bytes, DeliverError> {
    let mut log = BytesMut::new();
    loop {
        let (data, size) = courier.log(log.len() as u64).await?;
        let done = data.is_empty() || log.len() as u64 + data.len() as u64 >= size.min(MAX_LOG);
        log.extend_from_slice(&data);
        if done {
            return Ok(log.freeze());
        }
    }
}

async fn ask(
    context: &HostContext,
    home: MemberId,
    request: &Handover,
) -> Result<HandoverReply, DeliverError> {
    let answer = context.net.request(home, Protocol::Handover, encode(request), TIMEOUT).await?;
    Ok(decode::<HandoverReply>("reply", &answer)?)
}

fn unexpected(reply: HandoverReply) -> DeliverError {
    match reply {
        HandoverReply::Later { reason } => DeliverError::Later(reason),
        HandoverReply::Refused { reason } => DeliverError::Refused(reason),
        HandoverReply::Unknown => DeliverError::Refused("the job is not known any more".to_owned()),
        HandoverReply::Ok | HandoverReply::Have { .. } => {
            DeliverError::Later("an answer of another kind".to_owned())
        }
    }
}
