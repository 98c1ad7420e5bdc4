//! Requests of members, each to the side that answers it.
//!
//! Invariant: at most a fixed number is worked on at a time; what cannot be parsed is counted and not answered.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::home::{self, HomeContext};
use super::host::{self, HostContext};
use crate::metrics::Metrics;
use crate::net::{Inbound, Protocol};
use crate::wire::{Bulk, Handover, HandoverReply, decode, decode_bulk, encode};

const CONCURRENT: usize = 64;
const LONGEST: Duration = Duration::from_secs(38);

/// The sides that this process has.
#[derive(Clone)]
pub struct Sides {
    /// The host.
    pub host: Option<Arc<HostContext>>,
    /// The home.
    pub home: Option<Arc<HomeContext>>,
}

/// Answers requests until the network is gone.
pub async fn run(sides: Sides, mut requests: mpsc::Receiver<Inbound>, metrics: Arc<Metrics>) {
    let slots = Arc::new(Semaphore::new(CONCURRENT));
    while let Some(request) = requests.recv().await {
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            metrics.dropped("busy");
            continue;
        };
        let (sides, metrics) = (sides.clone(), metrics.clone());
        tokio::spawn(async move {
            let answer = async {
                match request.protocol {
                    Protocol::Handover => handover(&sides, request, &metrics).await,
                    Protocol::Bulk => bulk(&sides, request, &metrics).await,
                }
            };
            if tokio::time::timeout(LONGEST, answer).await.is_err() {
                tracing::warn!("a request took too long");
            }
            drop(slot);
        });
    }
}

async fn handover(sides: &Sides, request: Inbound, metrics: &Metrics) {
    let message = match decode::<Handover>("hand-over request", &request.body) {
        Ok(message) => message,
        Err(error) => {
            metrics.dropped("garbage");
            return tracing::warn!(from = %request.from, %error, "request dropped");
        }
    };
    let reply = match (message.is_for_host(), &sides.host, &sides.home) {
        (true, Some(host), _) => host::serve(host, request.from, message).await,
        (false, _, Some(home)) => home::serve(home, request.from, message).await,
        _ => None,
    };
    request.reply.send(encode(&reply.unwrap_or(HandoverReply::Unknown)));
}

async fn bulk(sides: &Sides, request: Inbound, metrics: &Metrics) {
    let (header, data) = match decode_bulk::<Bulk>("bulk request", &request.body) {
        Ok(decoded) => decoded,
        Err(error) => {
            metrics.dropped("garbage");
            return tracing::warn!(from = %request.from, %error, "request dropped");
        }
    };
    let reply = match (header.is_for_host(), &sides.host, &sides.home) {
        (true, Some(host), _) => host::serve_bulk(host, request.from, header).await,
        (false, _, Some(home)) => home::serve_bulk(home, request.from, header, data).await,
        _ => None,
    };
    if let Some(reply) = reply {
        request.reply.send(reply);
    }
}
