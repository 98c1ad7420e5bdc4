//! Receipts on their way home: asked for from the seats that run this home's awards, verified, kept.
//!
//! Inputs: Awards of this cluster, what seats answer, the time. Outputs: records on the shelf; an Event and evidence when a
//! seat sends something else than the chain that it began. Invariant: one award of a seat at a time, a bounded number of
//! seats, bounded pieces; what a seat says is believed only as far as signatures go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;
use tokio::task::{Id, JoinError, JoinSet};
use vendue_auction_core::AwardFile;
use vendue_crds::Award;
use vendue_market::encode::Canonical;
use vendue_receipts::{AwardId, ChainName, Evidence};

use super::HomeContext;
use crate::bridge::objects::award_ref;
use crate::net::{MemberId, NetError, Protocol};
use crate::receipts::plan::{self, Progress, Subject};
use crate::receipts::{Kept, Shelf, ShelfError};
use crate::wire::{AwardRef, Bulk, BulkReply, ChainHead, ChainList, FrameError, decode_bulk, encode_bulk};

/// Awards that are asked about at a time.
const AT_A_TIME: usize = 64;
/// How often it is looked which are due.
const TICK: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for one award before others of its seat have their turn, and most bytes.
const TURN: Duration = Duration::from_secs(120);
const TURN_BYTES: usize = 16 << 20;
/// How often old receipts are removed.
const PRUNE_MS: u64 = 600_000;

/// Why an award's receipts were not brought home this time.
#[derive(Debug, thiserror::Error)]
enum PullError {
    /// The Award's own data cannot be used.
    #[error("the Award cannot be used: {0}")]
    Award(String),
    /// The seat was not reached.
    #[error(transparent)]
    Net(#[from] NetError),
    /// It says nothing that can be read.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It does not answer.
    #[error("the provider: {0}")]
    Provider(String),
    /// The receipts cannot be kept.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// It took too long.
    #[error("the provider trickles")]
    Slow,
}

/// What one time brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pulled {
    /// New records.
    new: u64,
    /// Nothing more can come.
    is_whole: bool,
}

/// Brings receipts home.
pub struct Puller {
    context: Arc<HomeContext>,
    shelf: Arc<Shelf>,
    clock: fn() -> u64,
    progress: BTreeMap<AwardId, Progress>,
    pruned_ms: u64,
}

impl Puller {
    /// One that has asked nobody yet.
    pub fn new(context: Arc<HomeContext>, shelf: Arc<Shelf>, clock: fn() -> u64) -> Self {
        Self { context, shelf, clock, progress: BTreeMap::new(), pruned_ms: 0 }
    }

    /// Asks for ever.
    pub async fn run(mut self) {
        if !self.context.awards.ready().await {
            return;
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut turns = JoinSet::new();
        let mut busy: HashMap<Id, Subject> = HashMap::new();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    self.prune().await;
                    for subject in self.due(busy.values().map(|subject| subject.seat).collect()) {
                        let turn = turn(self.context.clone(), self.shelf.clone(), subject.clone(), (self.clock)());
                        busy.insert(turns.spawn(turn).id(), subject);
                    }
                }
                Some(done) = turns.join_next_with_id() => {
                    let (id, result) = read_turn(done);
                    if let Some(subject) = busy.remove(&id) {
                        self.finished(&subject, result);
                    }
                }
            }
        }
    }

    /// The awards whose turn it is.
    fn due(&mut self, busy: BTreeSet<u16>) -> Vec<Subject> {
        let subjects: BTreeMap<AwardId, Subject> =
            self.context.awards.collect(Subject::of).into_iter().map(|s| (s.id, s)).collect();
        self.progress.retain(|id, _| subjects.contains_key(id));
        let progress = |id| self.progress.get(id).copied().unwrap_or_default();
        let all = subjects.iter().map(|(id, subject)| (subject, progress(id)));
        let due = plan::due(all, &busy, (self.clock)(), AT_A_TIME);
        due.into_iter().filter_map(|id| subjects.get(&id).cloned()).collect()
    }

    fn finished(&mut self, subject: &Subject, result: Result<Pulled, PullError>) {
        let (now_ms, id) = ((self.clock)(), subject.id);
        let progress = self.progress.entry(id).or_default();
        let metrics = &self.context.metrics;
        match result {
            Ok(Pulled { new, is_whole }) => {
                progress.answered(subject, now_ms, new, is_whole);
                metrics.receipts.with_label_values(&["stored"]).inc_by(new);
            }
            Err(error) => {
                progress.failed(now_ms);
                metrics.receipts.with_label_values(&["failed"]).inc();
                tracing::warn!(award = %id, seat = subject.seat, %error, "receipts not at home yet");
            }
        }
    }

    async fn prune(&mut self) {
        let (now_ms, shelf) = ((self.clock)(), self.shelf.clone());
        if now_ms < self.pruned_ms.saturating_add(PRUNE_MS) {
            return;
        }
        self.pruned_ms = now_ms;
        match on_disk(shelf, move |shelf| shelf.prune(now_ms).map(|()| shelf.bytes())).await {
            Ok(bytes) => self.context.metrics.receipts_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX)),
            Err(error) => tracing::error!(%error, "old receipts not removed"),
        }
    }
}

fn read_turn(done: Result<(Id, Result<Pulled, PullError>), JoinError>) -> (Id, Result<Pulled, PullError>) {
    done.unwrap_or_else(|error| (error.id(), Err(ShelfError::Task(error.to_string()).into())))
}

async fn on_disk<T: Send + 'static>(
    shelf: Arc<Shelf>,
    work: impl FnOnce(&Shelf) -> Result<T, ShelfError> + Send + 'static,
) -> Result<T, ShelfError> {
    let done = tokio::task::spawn_blocking(move || work(&shelf)).await;
    done.unwrap_or_else(|error| Err(ShelfError::Task(error.to_string())))
}

/// One time for one award.
async fn turn(
    context: Arc<HomeContext>,
    shelf: Arc<Shelf>,
    subject: Subject,
    now_ms: u64,
) -> Result<Pulled, PullError> {
    let id = subject.id.to_string();
    let award = context.awards.find(|award| award.spec.id == id && Subject::of(award).is_some());
    let Some(award) = award else { return Ok(Pulled { new: 0, is_whole: false }) };
    let pull = Pull { claim: Claim::of(&award)?, context, shelf, award, subject, now_ms };
    tokio::time::timeout(TURN, pull.all()).await.unwrap_or(Err(PullError::Slow))
}

/// What tells a seat whose an award is.
struct Claim {
    award: AwardRef,
    round: u64,
    order: Vec<u8>,
}

impl Claim {
    fn of(award: &Award) -> Result<Self, PullError> {
        let damaged = |what: &str| PullError::Award(what.to_owned());
        let data = award.spec.certificate.as_ref().ok_or_else(|| damaged("it has no certificate"))?;
        let file: AwardFile =
            serde_json::from_str(&data.award).map_err(|e| PullError::Award(format!("its order: {e}")))?;
        let reference = award_ref(award).ok_or_else(|| damaged("its names are malformed"))?;
        let round = u64::try_from(award.spec.round).map_err(|_| damaged("spec.round is negative"))?;
        // A body that was listed again names the award by its own digest.
        let order = hex::encode(file.order.digest());
        Ok(Self { award: AwardRef { order, ..reference }, round, order: file.order.to_bytes() })
    }
}

struct Pull {
    context: Arc<HomeContext>,
    shelf: Arc<Shelf>,
    award: Award,
    subject: Subject,
    claim: Claim,
    now_ms: u64,
}

impl Pull {
    async fn all(&self) -> Result<Pulled, PullError> {
        let listed = self.list().await?;
        let (mut new, mut left) = (0, TURN_BYTES);
        for head in &listed {
            match head.name.parse::<ChainName>().ok().filter(|name| name.award == self.subject.id) {
                Some(name) => new += self.chain(name, head, &mut left).await?,
                None => {
                    tracing::warn!(award = %self.subject.id, chain = head.name, "no name of a chain of it")
                }
            }
        }
        let subject = self.subject.clone();
        let is_whole = on_disk(self.shelf.clone(), move |shelf| {
            Ok(plan::is_whole(&subject, &listed, |name| shelf.here(name), shelf.of_award(subject.id).1))
        });
        Ok(Pulled { new, is_whole: is_whole.await? })
    }

    /// Brings one chain here as far as it goes; answers how many records were new.
    async fn chain(&self, name: ChainName, head: &ChainHead, left: &mut usize) -> Result<u64, PullError> {
        let (first, gone) = on_disk(self.shelf.clone(), move |shelf| Ok(shelf.here(name))).await?;
        let mut next = first;
        while !gone && next < head.next && *left > 0 {
            let bytes = self.read(name, next).await?;
            if bytes.is_empty() {
                break;
            }
            *left = left.saturating_sub(bytes.len());
            match self.keep(name, head, bytes).await? {
                Kept::New(_, up_to) if up_to > next => next = up_to,
                // Something else than what was asked for.
                Kept::New(..) => break,
                Kept::Refused(evidence) => {
                    self.refused(name, head, next, evidence).await?;
                    break;
                }
            }
        }
        Ok(next.saturating_sub(first))
    }

    async fn keep(&self, name: ChainName, head: &ChainHead, bytes: Bytes) -> Result<Kept, ShelfError> {
        let (node, bound) = (head.node.clone(), (self.subject.most_records(self.now_ms), self.now_ms));
        let provider = self.award.spec.provider.clone();
        on_disk(self.shelf.clone(), move |shelf| shelf.take(&provider, (name, &node), &bytes, bound)).await
    }

    /// Says that something came that does not continue the chain. If that is because the record before it is now another
    /// one, both together are a proof.
    async fn refused(
        &self,
        name: ChainName,
        head: &ChainHead,
        next: u64,
        evidence: Evidence,
    ) -> Result<(), PullError> {
        let mut evidence = evidence;
        if let (Evidence::Refused { .. }, Some(before)) = (&evidence, next.checked_sub(1)) {
            let bytes = self.read(name, before).await?;
            match self.keep(name, head, bytes).await? {
                Kept::Refused(both @ Evidence::Equivocation { .. }) => evidence = both,
                // Asked again it sends what continues the chain.
                Kept::New(_, up_to) if up_to > next => return Ok(()),
                Kept::Refused(_) | Kept::New(..) => {}
            }
        }
        let (word, reason, note) = match &evidence {
            Evidence::Equivocation { records, .. } => {
                let at = records.first.sequence;
                let note =
                    format!("{} signed two different records {at} of chain {name}", self.award.spec.provider);
                ("equivocation", "ReceiptsContradict", note)
            }
            Evidence::Refused { reason, .. } => {
                let note = format!(
                    "receipts of {} are not accepted: chain {name}: {reason}",
                    self.award.spec.provider
                );
                ("refused", "ReceiptsRefused", note)
            }
        };
        let kept = evidence.clone();
        if on_disk(self.shelf.clone(), move |shelf| shelf.accuse(name, &kept)).await? {
            tracing::error!(award = %self.subject.id, seat = self.subject.seat, note, "evidence kept");
            self.context.metrics.receipts.with_label_values(&[word]).inc();
            self.context.cluster.event(&job_of(&self.award), true, "Receipts", reason, note);
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ChainHead>, PullError> {
        let (award, round) = (self.claim.award.clone(), self.claim.round);
        // Of an award that nobody metered yet the provider knows nothing.
        let Some(bytes) = self.ask(Bulk::ListReceipts { award, round }).await? else { return Ok(vec![]) };
        Ok(ChainList::decode(&bytes)?.chains)
    }

    async fn read(&self, name: ChainName, from: u64) -> Result<Bytes, PullError> {
        let (award, round, chain) = (self.claim.award.clone(), self.claim.round, name.to_string());
        Ok(self.ask(Bulk::ReadReceipts { award, round, chain, from }).await?.unwrap_or_default())
    }

    async fn ask(&self, request: Bulk) -> Result<Option<Bytes>, PullError> {
        let (to, body) = (MemberId::Seat(self.subject.seat), encode_bulk(&request, &self.claim.order));
        let answer = self.context.net.request(to, Protocol::Bulk, body, TIMEOUT).await?;
        match decode_bulk::<BulkReply>("reply", &answer)? {
            (BulkReply::Receipts, data) => Ok(Some(data)),
            (BulkReply::Unknown, _) => Ok(None),
            (BulkReply::Failed { reason, .. }, _) => Err(PullError::Provider(reason)),
            (BulkReply::Log { .. } | BulkReply::Stored { .. }, _) => {
                Err(PullError::Provider("an answer of another kind".to_owned()))
            }
        }
    }
}

/// The Job of an Award, for Events.
fn job_of(award: &Award) -> ObjectReference {
    let owner = award.owner_references().iter().find(|owner| owner.kind == "Job");
    ObjectReference {
        api_version: owner.map(|owner| owner.api_version.clone()),
        kind: Some("Job".to_owned()),
        name: award.spec.job.name.clone(),
        namespace: award.namespace(),
        uid: Some(award.spec.job.uid.clone()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
#[path = "receipts_tests.rs"]
mod tests;
