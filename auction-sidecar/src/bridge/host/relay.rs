//! The status of an Award on its way home.
//!
//! Inputs: Awards whose status changed. Outputs: messages; what home has is remembered. Invariant: one task per Award;
//! it sends the latest status until home has it or the Award is forgotten, so nobody else waits for a home.

use std::sync::Arc;
use std::time::Duration;

use vendue_crds::Award;

use super::HostContext;
use super::reconcile::status_hash;
use crate::bridge::objects::{award_ref, relayed_status};
use crate::net::{MemberId, Protocol};
use crate::wire::{AwardRef, Handover, HandoverReply, decode, encode};

const TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_secs(4);
/// Longest pause while home does not know the award: its watch may be behind, or the award may be gone for good.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(60);

/// Brings the status home; a task that does so already takes the newer one.
pub(super) fn start(context: &Arc<HostContext>, award: &Award) {
    let id = award.spec.id.clone();
    let (Some(home), Some(reference)) = (context.home_of(award), award_ref(award)) else {
        // There is nobody to tell.
        let hash = status_hash(award);
        return context.memory(&id, |m| m.relayed = Some(hash));
    };
    let latest = Arc::new(award.clone());
    let running = context.memory(&id, |m| {
        m.to_relay = Some(latest);
        std::mem::replace(&mut m.relaying, true)
    });
    if !running {
        let context = context.clone();
        tokio::spawn(async move { relay(&context, home, reference).await });
    }
}

async fn relay(context: &HostContext, home: MemberId, reference: AwardRef) {
    let id = reference.id.clone();
    let mut connected = context.net.connected();
    let mut pause = FIRST_PAUSE;
    loop {
        let next = context.remembered(&id, |m| {
            m.relaying = m.to_relay.is_some();
            m.to_relay.clone()
        });
        let Some(Some(award)) = next else { return };
        let sent = send(context, home, &reference, &award).await;
        context.remembered(&id, |m| match sent {
            Sent::Acked => m.unknown_at_home = false,
            Sent::Unknown => m.unknown_at_home = true,
            Sent::Failed => {}
        });
        match sent {
            Sent::Acked => {
                let hash = status_hash(&award);
                context.remembered(&id, |m| {
                    m.relayed = Some(hash);
                    // A newer one may have come meanwhile.
                    m.to_relay.take_if(|waiting| Arc::ptr_eq(waiting, &award));
                });
                pause = FIRST_PAUSE;
                continue;
            }
            Sent::Unknown => pause = (pause * 2).min(UNKNOWN_PAUSE),
            Sent::Failed => pause = (pause * 2).min(PAUSE),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Soon again when the home comes back.
            Ok(_) = connected.wait_for(|up| up.contains(&home)), if !context.net.is_connected(home) => {
                pause = FIRST_PAUSE;
            }
        }
    }
}

enum Sent {
    Acked,
    Unknown,
    Failed,
}

async fn send(context: &HostContext, home: MemberId, reference: &AwardRef, award: &Award) -> Sent {
    let version = award.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
    let status = Box::new(relayed_status(award));
    let request = Handover::Status { award: reference.clone(), version, status };
    let answer = context.net.request(home, Protocol::Handover, encode(&request), TIMEOUT).await;
    let reply = answer
        .map_err(|e| e.to_string())
        .and_then(|bytes| decode::<HandoverReply>("reply", &bytes).map_err(|e| e.to_string()));
    let (result, sent, why) = match reply {
        Ok(HandoverReply::Ok) => ("acked", Sent::Acked, String::new()),
        Ok(HandoverReply::Unknown) => ("unknown", Sent::Unknown, "home does not know the award".to_owned()),
        Ok(HandoverReply::Refused { reason }) => ("unknown", Sent::Unknown, reason),
        Ok(HandoverReply::Later { reason }) => ("later", Sent::Failed, reason),
        Ok(HandoverReply::Have { .. }) => ("failed", Sent::Failed, "an answer of another kind".to_owned()),
        Err(reason) => ("failed", Sent::Failed, reason),
    };
    context.metrics.relays.with_label_values(&[result]).inc();
    if !matches!(sent, Sent::Acked) {
        tracing::debug!(award = reference.id, result, why, "status not at home yet");
    }
    sent
}
