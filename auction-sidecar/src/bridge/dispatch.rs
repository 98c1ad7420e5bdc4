//! Requests of members, each to the side that answers it.
//!
//! Inputs: requests. Outputs: responses. Invariants: at most a fixed number of each kind, and so many bytes, is worked on
//! at a time, in all and of each member, so that neither a slow kind nor a member can keep the others out; what cannot
//! be parsed is counted and not answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::home::{self, HomeContext};
use super::host::{self, HostContext};
use crate::metrics::Metrics;
use crate::net::{Inbound, MemberId, Protocol, Reply};
use crate::wire::{Bulk, BulkReply, Handover, HandoverReply, decode, decode_bulk, encode, encode_bulk};

const LONGEST: Duration = Duration::from_secs(38);
/// A request of so many bytes takes one slot more.
const SLOT_BYTES: usize = 512 << 10;

/// The sides that this process has.
#[derive(Clone)]
pub struct Sides {
    /// The host.
    pub host: Option<Arc<HostContext>>,
    /// The home.
    pub home: Option<Arc<HomeContext>>,
}

/// Kinds of requests that do not wait for one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    /// Decisions and status.
    Handover,
    /// Pieces of outputs.
    Put,
    /// Reads of the log, which may wait half a minute.
    ReadLog,
    /// Reads of receipts.
    Receipts,
}

impl Lane {
    /// Slots in all and of one member. A small request takes one.
    fn limits(self) -> (usize, usize) {
        match self {
            Self::Handover => (128, 24),
            // More than one window of a sender, which may leave one behind and begin another.
            Self::Put => (64, 24),
            Self::ReadLog => (96, 24),
            // A home asks one thing after another.
            Self::Receipts => (32, 4),
        }
    }
}

/// Who is being served.
#[derive(Default)]
struct Lanes {
    all: BTreeMap<Lane, Arc<Semaphore>>,
    /// As many as there are members.
    members: BTreeMap<(Lane, MemberId), Arc<Semaphore>>,
}

struct Slot {
    _all: OwnedSemaphorePermit,
    _member: OwnedSemaphorePermit,
}

impl Lanes {
    fn enter(&mut self, lane: Lane, member: MemberId, bytes: usize) -> Option<Slot> {
        let (all, of_member) = lane.limits();
        let size = u32::try_from(1 + bytes / SLOT_BYTES).unwrap_or(u32::MAX);
        let slots = |limit| move || Arc::new(Semaphore::new(limit));
        let of_member = self.members.entry((lane, member)).or_insert_with(slots(of_member)).clone();
        let _member = of_member.try_acquire_many_owned(size).ok()?;
        let all = self.all.entry(lane).or_insert_with(slots(all)).clone();
        let _all = all.try_acquire_many_owned(size).ok()?;
        Some(Slot { _all, _member })
    }
}

/// Answers requests until the network is gone.
pub async fn run(sides: Sides, mut requests: mpsc::Receiver<Inbound>, metrics: Arc<Metrics>) {
    let mut lanes = Lanes::default();
    while let Some(Inbound { from, protocol, body, reply }) = requests.recv().await {
        let bytes = body.len();
        let request = match protocol {
            Protocol::Handover => Request::Handover(body),
            Protocol::Bulk => match decode_bulk::<Bulk>("bulk request", &body) {
                Ok((header, data)) => Request::Bulk(header, data),
                Err(error) => {
                    metrics.dropped("garbage");
                    tracing::warn!(%from, %error, "request dropped");
                    continue;
                }
            },
        };
        let Some(slot) = lanes.enter(request.lane(), from, bytes) else {
            metrics.dropped("busy");
            request.refuse(reply);
            continue;
        };
        let (sides, metrics) = (sides.clone(), metrics.clone());
        tokio::spawn(async move {
            let answer = async {
                match request {
                    Request::Handover(body) => handover(&sides, from, body, reply, &metrics).await,
                    Request::Bulk(header, data) => bulk(&sides, from, header, data, reply).await,
                }
            };
            if tokio::time::timeout(LONGEST, answer).await.is_err() {
                tracing::warn!("a request took too long");
            }
            drop(slot);
        });
    }
}

/// A request as far as it is read before it has a slot.
enum Request {
    Handover(Bytes),
    Bulk(Bulk, Bytes),
}

impl Request {
    fn lane(&self) -> Lane {
        match self {
            Self::Handover(_) => Lane::Handover,
            Self::Bulk(Bulk::Put { .. }, _) => Lane::Put,
            Self::Bulk(Bulk::ReadLog { .. }, _) => Lane::ReadLog,
            Self::Bulk(Bulk::ListReceipts { .. } | Bulk::ReadReceipts { .. }, _) => Lane::Receipts,
        }
    }

    /// Says that there is no slot, so that nobody waits for an answer.
    fn refuse(&self, reply: Reply) {
        let reason = "too many requests at a time".to_owned();
        reply.send(match self {
            Self::Handover(_) => encode(&HandoverReply::Later { reason }),
            Self::Bulk(..) => encode_bulk(&BulkReply::Failed { reason, retry: true }, &[]),
        });
    }
}

async fn handover(sides: &Sides, from: MemberId, body: Bytes, reply: Reply, metrics: &Metrics) {
    let message = match decode::<Handover>("hand-over request", &body) {
        Ok(message) => message,
        Err(error) => {
            metrics.dropped("garbage");
            return tracing::warn!(%from, %error, "request dropped");
        }
    };
    drop(body);
    let answer = match (message.is_for_host(), &sides.host, &sides.home) {
        (true, Some(host), _) => host::serve(host, from, message).await,
        (false, _, Some(home)) => home::serve(home, from, message).await,
        _ => None,
    };
    reply.send(encode(&answer.unwrap_or(HandoverReply::Unknown)));
}

async fn bulk(sides: &Sides, from: MemberId, header: Bulk, data: Bytes, reply: Reply) {
    let answer = match (header.is_for_host(), &sides.host, &sides.home) {
        (true, Some(host), _) => host::serve_bulk(host, from, header, &data).await,
        (false, _, Some(home)) => home::serve_bulk(home, from, header, data).await,
        _ => None,
    };
    if let Some(answer) = answer {
        reply.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(lanes: &mut Lanes, lane: Lane, member: MemberId) -> Vec<Slot> {
        std::iter::from_fn(|| lanes.enter(lane, member, 100)).collect()
    }

    #[test]
    fn a_large_request_takes_the_place_of_many_and_always_fits_alone() {
        let mut lanes = Lanes::default();
        let home = MemberId::Home(0);
        let large = lanes.enter(Lane::Handover, home, crate::net::MAX_HANDOVER);
        assert!(large.is_some());
        let left = Lane::Handover.limits().1 - (1 + crate::net::MAX_HANDOVER / SLOT_BYTES);
        assert_eq!(fill(&mut lanes, Lane::Handover, home).len(), left);
    }

    #[test]
    fn a_member_fills_neither_other_lanes_nor_the_others_slots() {
        let mut lanes = Lanes::default();
        let (all, of_member) = Lane::ReadLog.limits();
        let first = fill(&mut lanes, Lane::ReadLog, MemberId::Home(0));
        assert_eq!(first.len(), of_member);
        let second = fill(&mut lanes, Lane::ReadLog, MemberId::Home(1));
        assert_eq!(second.len(), of_member);
        let more: Vec<_> = (2..9).map(|n| fill(&mut lanes, Lane::ReadLog, MemberId::Home(n))).collect();
        assert_eq!(first.len() + second.len() + more.iter().map(Vec::len).sum::<usize>(), all);
        // Followers of logs everywhere: the hand-over of each of them goes on.
        for n in 0..2 {
            assert_eq!(fill(&mut lanes, Lane::Handover, MemberId::Home(n)).len(), Lane::Handover.limits().1);
        }
        drop(first);
        assert_eq!(fill(&mut lanes, Lane::ReadLog, MemberId::Home(8)).len(), of_member);
    }
}
