//! Outputs and log on their way home, when a run has ended.
//!
//! Inputs: Awards whose run ended. Outputs: pieces at home, then the condition Delivered. Invariant: a delivery sends
//! only while it has its turn, and gives the turn on when others wait; home counts what it has and the sender goes on
//! from there, so a repeat after a crash, a cut or a turn sends only what is missing.

mod send;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use vendue_crds::Award;
use vendue_crds::conditions::{self, award as condition, reasons};

use self::send::{DeliverError, Delivered, Sender};
use super::reconcile::DELIVERY_TIME;
use super::{HostContext, reserve};
use crate::bridge::cluster::ClusterError;
use crate::bridge::objects::{award_ref, conditions_of, ms_of};
use crate::engine::now_ms;
use crate::net::MemberId;
use crate::wire::AwardRef;

/// How long a turn lasts when others wait for theirs.
const TURN: Duration = Duration::from_secs(30);
/// Longest turn whoever waits.
const LONGEST_TURN: Duration = Duration::from_secs(90);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a courier that does not answer is asked: about three quarters of a minute.
const COURIER_TRIES: u32 = 12;

/// Starts the delivery of an Award, unless it is under way.
pub(super) fn start(context: &Arc<HostContext>, award: &Award) {
    let id = award.spec.id.clone();
    if context.memory(&id, |m| std::mem::replace(&mut m.delivering, true)) {
        return;
    }
    let (context, award) = (context.clone(), award.clone());
    tokio::spawn(async move {
        deliver(&context, &award).await;
        context.remembered(&award.spec.id, |m| m.delivering = false);
    });
}

async fn deliver(context: &Arc<HostContext>, award: &Award) {
    let (Some(home), Some(reference)) = (context.home_of(award), award_ref(award)) else { return };
    let ended = conditions::find(conditions_of(award), condition::FINISHED)
        .map_or_else(now_ms, |c| ms_of(&c.last_transition_time));
    let deadline = ended.saturating_add(u64::try_from(DELIVERY_TIME.as_millis()).unwrap_or(u64::MAX));
    let Some(result) = until_decided(context, home, &reference, deadline).await else { return };
    let (status, reason, message) = match result {
        Ok(Delivered::All(bytes)) => (true, reasons::STORED, format!("{bytes} bytes are stored at home")),
        Ok(Delivered::LogOnly(why)) => (false, reasons::OUTPUTS_TOO_LARGE, why),
        Err(why) => (false, reasons::DELIVERY_TIMEOUT, why),
    };
    let (job, award) = (&reference.job, &reference.id);
    tracing::info!(job, award, delivered = status, message, "delivery ends");
    let word = if status { "delivered" } else { "undelivered" };
    context.metrics.awards.with_label_values(&["host", word]).inc();
    while let Err(error) = report(context, &reference.id, status, reason, &message).await {
        tracing::warn!(award = reference.id, %error, "Delivered not written yet");
        tokio::time::sleep(Duration::from_secs(1)).await;
        if error.is_final() {
            return;
        }
    }
}

/// Tries until home has everything or there is no use in trying; `None` when the award ended otherwise meanwhile.
async fn until_decided(
    context: &Arc<HostContext>,
    home: MemberId,
    reference: &AwardRef,
    deadline: u64,
) -> Option<Result<Delivered, String>> {
    let mut pause = FIRST_PAUSE;
    let mut courier_failures = 0u32;
    loop {
        let turn = context.deliveries.take(home).await;
        let result = attempt(context, home, reference).await;
        drop(turn);
        match result {
            Ok(delivered) => return Some(Ok(delivered)),
            Err(error @ DeliverError::Refused(_)) => return Some(Err(error.to_string())),
            Err(error) if now_ms() >= deadline => return Some(Err(error.to_string())),
            // Without its courier the outputs are lost, and waiting longer only holds the devices.
            Err(error @ DeliverError::Courier(_)) if courier_failures >= COURIER_TRIES => {
                return Some(Err(error.to_string()));
            }
            Err(DeliverError::TurnOver) => (pause, courier_failures) = (FIRST_PAUSE, 0),
            Err(error) => {
                courier_failures += u32::from(matches!(error, DeliverError::Courier(_)));
                tracing::warn!(job = reference.job, award = reference.id, %error, "outputs not delivered yet");
            }
        }
        // Somebody else may have ended it: the award closed or deleted.
        match context.fetch(&reference.id).await {
            Ok(None) => return None,
            Ok(Some(now)) if conditions::is_true(conditions_of(&now), condition::RELEASED) => return None,
            _ => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One turn.
async fn attempt(
    context: &HostContext,
    home: MemberId,
    reference: &AwardRef,
) -> Result<Delivered, DeliverError> {
    let courier = context.courier.of(&reference.id).await?;
    let sender = Sender { net: &context.net, home, award: reference, courier: &courier };
    let started = Instant::now();
    let deliver = sender.deliver(|| started.elapsed() >= TURN && context.deliveries.are_wanted());
    // A courier that trickles would keep the turn; what is at home counts, wherever the turn is cut.
    tokio::time::timeout(LONGEST_TURN, deliver).await.unwrap_or(Err(DeliverError::TurnOver))
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
