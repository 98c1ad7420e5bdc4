//! The status of an Award on its way home.

use std::time::Duration;

use vendue_crds::Award;

use super::HostContext;
use crate::bridge::objects::{award_ref, relayed_status};
use crate::net::Protocol;
use crate::wire::{Handover, HandoverReply, decode, encode};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends the status once; remembered when home has it. The latest counts, so what is in between may be lost.
pub(super) async fn send(context: &HostContext, award: &Award, hash: u64) -> Result<(), String> {
    let (Some(home), Some(reference)) = (context.home_of(award), award_ref(award)) else {
        context.memory(&award.spec.id, |m| m.unknown_at_home = true);
        return Ok(());
    };
    let id = reference.id.clone();
    let version = award.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
    let request = Handover::Status { award: reference, version, status: Box::new(relayed_status(award)) };
    let answer = context.net.request(home, Protocol::Handover, encode(&request), TIMEOUT).await;
    let count = |result: &str| context.metrics.relays.with_label_values(&[result]).inc();
    let reply = answer
        .map_err(|e| e.to_string())
        .and_then(|bytes| decode::<HandoverReply>("reply", &bytes).map_err(|e| e.to_string()));
    match reply {
        Ok(HandoverReply::Ok) => {
            count("acked");
            context.memory(&id, |m| m.relayed = Some(hash));
            Ok(())
        }
        Ok(HandoverReply::Unknown | HandoverReply::Refused { .. }) => {
            count("unknown");
            tracing::warn!(award = id, "home does not know the award; its status stays here");
            context.memory(&id, |m| m.unknown_at_home = true);
            Ok(())
        }
        Ok(HandoverReply::Later { reason }) => {
            count("later");
            Err(reason)
        }
        Ok(HandoverReply::Have { .. }) => Err("an answer of another kind".to_owned()),
        Err(reason) => {
            count("failed");
            Err(reason)
        }
    }
}
