//! Writes of one order's task: the Award and the auction's part of the Job's status.
//!
//! Invariant: an Award that holds a choice is never deleted nor replaced here; one that holds none makes room for the
//! next round's. A status goes only to the object that it was made for.

use std::time::Duration;

use kube::{Api, ResourceExt};
use serde_json::json;
use vendue_crds::conditions::{self, award as condition};
use vendue_crds::{AuctionStatus, Award, AwardStatus, CertificateData, ComputeJob, names};

use super::HomeContext;
use super::order::OrderTask;
use crate::bridge::cluster::ClusterError;
use crate::bridge::objects::{self, AwardFacts, conditions_of};
use crate::engine::now_ms;

/// An Award's spec as it was written.
#[derive(Debug, Clone)]
pub(super) struct Written {
    id: String,
    seat: u16,
    uid: Option<String>,
}

/// What became of an Award that was to be removed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// It is not there.
    Gone,
    /// It holds a choice and stays.
    Held {
        /// Id of the award.
        id: String,
        /// The seat that was chosen.
        seat: i32,
    },
}

/// Whether a choice is stored in the Award.
fn holds_choice(award: &Award) -> bool {
    let is = |type_| conditions::is_true(conditions_of(award), type_);
    is(condition::HELD) || is(condition::HANDED_OVER)
}

impl OrderTask {
    fn award_name(&self) -> String {
        names::home_award(&self.job.name, self.auction.attempt)
    }

    /// Writes the Award, and its status when one is given, until it is written or the award has expired.
    pub(super) async fn persist_award(&mut self, status: Option<AwardStatus>) -> bool {
        let Some((facts, data)) = self.award.clone() else { return false };
        let mut pause = Duration::from_millis(100);
        let mut made_room = false;
        loop {
            let error = match self.write_award(&facts, &data, status.as_ref()).await {
                Ok(()) => return true,
                Err(error) => error,
            };
            // Whatever went wrong, the next try begins with the spec.
            self.written = None;
            // The Award of an earlier round is in the way: its id never changes.
            if error.is_invalid() && !made_room {
                made_room = true;
                match self.remove_award().await {
                    Ok(Removal::Gone) => continue,
                    Ok(Removal::Held { .. }) => {}
                    Err(error) => tracing::warn!(job = self.job.uid, %error, "Award not replaced"),
                }
            }
            if error.is_final() || now_ms() > facts.expires_ms {
                tracing::error!(job = self.job.uid, %error, "Award not written");
                return false;
            }
            tracing::warn!(job = self.job.uid, %error, "Award not written yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn write_award(
        &mut self,
        facts: &AwardFacts,
        data: &CertificateData,
        status: Option<&AwardStatus>,
    ) -> Result<(), ClusterError> {
        let name = self.award_name();
        let api: Api<Award> = self.context.api(&self.job.namespace);
        let (id, seat) = (facts.id(), facts.seat.0);
        let uid = match self.written.take().filter(|w| w.id == id && w.seat == seat) {
            Some(written) => written.uid,
            None => {
                let job = (self.job.namespace.as_str(), self.job.name.as_str());
                let award = objects::home_award(facts, job, self.job.owner.clone(), data.clone());
                let manager = names::MANAGER_AUCTION;
                let written: Award =
                    self.context.cluster.apply("award", &api, manager, &name, &award).await?;
                written.uid()
            }
        };
        if let Some(status) = status {
            let mut body = objects::status_patch(status);
            if let Some(uid) = &uid {
                body["metadata"] = json!({ "uid": uid });
            }
            let manager = names::MANAGER_RELAY;
            let _: Award =
                self.context.cluster.apply_status("award_status", &api, manager, &name, &body).await?;
        }
        self.written = Some(Written { id, seat, uid });
        Ok(())
    }

    /// Removes the Award unless it holds a choice.
    pub(super) async fn remove_award(&self) -> Result<Removal, ClusterError> {
        let api: Api<Award> = self.context.api(&self.job.namespace);
        let (cluster, name) = (&self.context.cluster, self.award_name());
        let Some(award) = cluster.get("award", &api, &name).await? else { return Ok(Removal::Gone) };
        if holds_choice(&award) {
            return Ok(Removal::Held { id: award.spec.id, seat: award.spec.seat });
        }
        cluster.delete_as_read("award", &api, &award.metadata).await?;
        self.context.forget_version(&award.spec.id);
        Ok(Removal::Gone)
    }

    /// Removes the Award of a round that came to nothing, for as long as somebody waits for the order.
    pub(super) async fn clear_award(&mut self) {
        self.written = None;
        if self.award.take().is_none() {
            return;
        }
        let mut pause = Duration::from_millis(100);
        while let Err(error) = self.remove_award().await {
            tracing::warn!(job = self.job.uid, %error, "Award of an unserved order not deleted yet");
            if error.is_final() || !self.is_wanted() {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    fn is_wanted(&self) -> bool {
        self.context.in_work(&(self.order.job.clone(), self.order.attempt))
    }

    pub(super) async fn write_auction(&self) {
        let job = (self.job.namespace.as_str(), self.job.name.as_str(), self.job.uid.as_str());
        for _ in 0..3 {
            match write_auction_status(&self.context, job, &self.auction).await {
                Ok(()) => return,
                Err(error) if error.is_not_found() || error.is_final() => return,
                Err(error) => tracing::warn!(job = self.job.uid, %error, "Job status not written yet"),
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Writes the auction's part of the status of a Job, given by namespace, name and uid.
pub(super) async fn write_auction_status(
    context: &HomeContext,
    (namespace, name, uid): (&str, &str, &str),
    auction: &AuctionStatus,
) -> Result<(), ClusterError> {
    let api: Api<ComputeJob> = Api::namespaced(context.cluster.client.clone(), namespace);
    let body = json!({
        "apiVersion": format!("{}/{}", vendue_crds::GROUP, vendue_crds::VERSION),
        "kind": "Job",
        "metadata": { "uid": uid },
        "status": { "auction": auction },
    });
    context.cluster.apply_status("job_status", &api, names::MANAGER_AUCTION, name, &body).await.map(drop)
}
