//! The handlers' view of the real cluster and network.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use vendue_crds::conditions::{self, award as condition, job};
use vendue_crds::{Award, AwardSide, ComputeJob, names};
use vendue_receipts::{FileAward, FileJob};

use super::backend::{AccessError, Backend, Located, LogChunk, Place};
use super::identity::User;
use super::{GROUP, VERSION};
use crate::bridge::cluster::{Cluster, ClusterError};
use crate::bridge::objects::{award_ref, conditions_of};
use crate::net::{Handle, MemberId, NetError, Protocol};
use crate::wire::{AwardRef, Bulk, BulkReply, decode_bulk, encode_bulk};

/// Time of a request to the provider beyond what it may wait.
const ROUND_TRIP: Duration = Duration::from_secs(10);

/// The real cluster and network.
pub struct KubeBackend {
    /// The API server.
    pub cluster: Cluster,
    /// The way to the providers.
    pub net: Handle,
}

/// What the file of receipts says of an award.
fn file_award(award: &Award) -> FileAward {
    let runtime = award.status.as_ref().and_then(|status| status.runtime.as_ref());
    let time = |time: Option<&Time>| time.map(|time| time.0.to_string());
    // A provider that never said when it ended is believed to have stopped when it was found to know nothing.
    let over = |type_: &str| {
        let over = conditions::find(conditions_of(award), type_).filter(|c| c.status == "True");
        over.map(|c| &c.last_transition_time)
    };
    let over = over(condition::FINISHED).or(over(condition::RELEASED));
    FileAward {
        id: award.spec.id.clone(),
        name: award.name_any(),
        provider: award.spec.provider.clone(),
        seat: award.spec.seat,
        price: award.spec.price.0.clone(),
        started_at: time(runtime.and_then(|runtime| runtime.started_at.as_ref())),
        ended_at: time(runtime.and_then(|runtime| runtime.ended_at.as_ref()).or(over)),
        ..FileAward::default()
    }
}

fn unavailable(error: &ClusterError) -> AccessError {
    AccessError::Unavailable(error.to_string())
}

impl Backend for KubeBackend {
    async fn authorize(
        &self,
        user: &User,
        namespace: &str,
        name: &str,
        subresource: &'static str,
    ) -> Result<bool, AccessError> {
        let attributes = ResourceAttributes {
            group: Some(GROUP.to_owned()),
            version: Some(VERSION.to_owned()),
            resource: Some("jobs".to_owned()),
            subresource: Some(subresource.to_owned()),
            verb: Some("get".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ResourceAttributes::default()
        };
        let extra: BTreeMap<_, _> = user.extra.clone().into_iter().collect();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(user.groups.clone()),
                extra: Some(extra).filter(|e| !e.is_empty()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.cluster.client.clone());
        let answer =
            self.cluster.create("subjectaccessreview", &api, &review).await.map_err(|e| unavailable(&e))?;
        Ok(answer.status.is_some_and(|s| s.allowed && !s.denied.unwrap_or(false)))
    }

    async fn locate(&self, namespace: &str, name: &str) -> Result<Located, AccessError> {
        let missing = || AccessError::NoJob(name.to_owned());
        let jobs: Api<ComputeJob> = Api::namespaced(self.cluster.client.clone(), namespace);
        let found =
            self.cluster.get("job", &jobs, name).await.map_err(|e| unavailable(&e))?.ok_or_else(missing)?;
        let uid = found.metadata.uid.clone().ok_or_else(missing)?;
        let status = found.status.unwrap_or_default();
        let ended = conditions::is_true(&status.conditions, job::FINISHED);
        let state = status.state.unwrap_or_else(|| "Pending".to_owned());
        let nowhere = || Place::Nowhere(format!("its state is {state}"));
        let Some(order) = status.order else { return Ok(Located { uid, place: nowhere(), ended }) };
        let awards: Api<Award> = Api::namespaced(self.cluster.client.clone(), namespace);
        let award = self
            .cluster
            .get("award", &awards, &names::home_award(name, order.attempt))
            .await
            .map_err(|e| unavailable(&e))?;
        let place = match award {
            Some(award) => {
                let list = award.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
                let has_log = conditions::is_true(list, condition::HANDED_OVER)
                    && !conditions::is_true(list, condition::RELEASED);
                match (has_log, award_ref(&award), u16::try_from(award.spec.seat)) {
                    (true, Some(award), Ok(seat)) => Place::Provider { award, seat },
                    _ => nowhere(),
                }
            }
            None => nowhere(),
        };
        Ok(Located { uid, place, ended })
    }

    async fn awards(&self, namespace: &str, name: &str) -> Result<(FileJob, Vec<FileAward>), AccessError> {
        let missing = || AccessError::NoJob(name.to_owned());
        let jobs: Api<ComputeJob> = Api::namespaced(self.cluster.client.clone(), namespace);
        let found = self.cluster.get("job", &jobs, name).await.map_err(|e| unavailable(&e))?;
        let uid = found.and_then(|job| job.metadata.uid).ok_or_else(missing)?;
        let awards: Api<Award> = Api::namespaced(self.cluster.client.clone(), namespace);
        let params = ListParams::default().labels(&format!("{}={name}", names::JOB_NAME));
        let mut awards = self.cluster.list("awards", &awards, &params).await.map_err(|e| unavailable(&e))?;
        let handed_over = |award: &Award| conditions::is_true(conditions_of(award), condition::HANDED_OVER);
        awards.retain(|award| {
            award.spec.side == AwardSide::Home && award.spec.job.uid == uid && handed_over(award)
        });
        awards.sort_by_key(|award| award.spec.job.attempt);
        let job = FileJob { namespace: namespace.to_owned(), name: name.to_owned(), uid };
        Ok((job, awards.iter().map(file_award).collect()))
    }

    async fn live_log(
        &self,
        award: &AwardRef,
        seat: u16,
        offset: u64,
        wait: Duration,
    ) -> Result<LogChunk, AccessError> {
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(0);
        let request = encode_bulk(&Bulk::ReadLog { award: award.clone(), offset, wait_ms }, &[]);
        let answer = self
            .net
            .request(MemberId::Seat(seat), Protocol::Bulk, request, wait + ROUND_TRIP)
            .await
            .map_err(|e: NetError| AccessError::Unavailable(e.to_string()))?;
        let (reply, data) =
            decode_bulk::<BulkReply>("log", &answer).map_err(|e| AccessError::Unavailable(e.to_string()))?;
        match reply {
            BulkReply::Log { size, ended } => Ok(LogChunk { data, size, ended }),
            BulkReply::Unknown => Err(AccessError::Gone),
            BulkReply::Failed { reason, .. } => Err(AccessError::Unavailable(reason)),
            BulkReply::Stored { .. } | BulkReply::Receipts => {
                Err(AccessError::Unavailable("an answer of another kind".to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::tests::{fixture, get, play};
    use crate::testing::receipts::{AWARD, T, mk_award};

    #[tokio::test]
    async fn the_awards_of_a_job_that_were_handed_over_the_latest_last() {
        let f = fixture();
        let award = |attempt: i32, uid: &str, conditions: &[(&str, u64)]| {
            let mut award = mk_award(AWARD, 2, conditions);
            (award.spec.job.attempt, award.spec.job.uid) = (attempt, uid.into());
            award.metadata.name = Some(names::home_award("digits", attempt));
            award
        };
        let mut ran = award(2, "u-1", &[("HandedOver", T), ("Running", T)]);
        let runtime =
            serde_json::json!({ "backend": "native", "attempt": 1, "startedAt": "2027-01-15T08:00:00Z" });
        ran.status.as_mut().unwrap().runtime = serde_json::from_value(runtime).unwrap();
        let items = [
            ran,
            award(1, "u-1", &[("HandedOver", T), ("Released", T + 9_000)]),
            award(3, "u-1", &[("Released", T)]),
            award(4, "of an earlier Job", &[("HandedOver", T)]),
        ];
        let list = serde_json::json!({ "kind": "AwardList", "apiVersion": "vendue.dev/v1alpha1", "metadata": {}, "items": items });
        let base = "/apis/vendue.dev/v1alpha1/namespaces/team";
        let job = crate::bridge::tests::ordered_job(1);
        let script = vec![
            get(&format!("{base}/jobs/digits"), Some(job)),
            get(&format!("{base}/awards"), Some(list)),
            get(&format!("{base}/jobs/none"), None),
        ];
        let backend = KubeBackend { cluster: f.cluster.clone(), net: f.net.clone() };
        let asked = async { (backend.awards("team", "digits").await, backend.awards("team", "none").await) };
        let ((found, none), ()) = tokio::join!(asked, play(f.server, script));
        let (job, awards) = found.unwrap();
        assert_eq!((job.uid.as_str(), job.name.as_str()), ("u-1", "digits"));
        let times = |a: &FileAward| (a.name.clone(), a.started_at.clone(), a.ended_at.clone());
        let some = |time: &str| Some(time.to_owned());
        let expected = [
            ("digits-1".to_owned(), None, some("2027-01-15T08:00:09Z")),
            ("digits-2".to_owned(), some("2027-01-15T08:00:00Z"), None),
        ];
        assert_eq!(awards.iter().map(times).collect::<Vec<_>>(), expected);
        assert_eq!((awards[1].price.as_str(), awards[1].seat, awards[1].id.as_str()), ("3.60", 2, AWARD));
        assert_eq!(none, Err(AccessError::NoJob("none".to_owned())));
    }
}
