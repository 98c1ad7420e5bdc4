//! `Award`: one order given to one seat. The same kind lives on both sides.
//!
//! At home (side Home) it belongs to the Job and carries the certificate; on the winner (side Host) it lives in a
//! namespace of its own and the controller turns it into a running workload.
//! Writers: `vendue-auction/bridge` (`spec`), `vendue-controller/award` (host `status`, but for the conditions
//! HandedOver and Delivered), `vendue-auction/relay` (home `status`; on the host HandedOver and Delivered).
//! Invariant: a workload starts only after Held was True and HandedOver is True.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Decimal, FailureStatus, UsageStatus};

/// An Award gives one order to one provider, at a price, until a time.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "vendue.dev",
    version = "v1alpha1",
    kind = "Award",
    plural = "awards",
    shortname = "vaward",
    category = "vendue",
    namespaced,
    status = "AwardStatus",
    derive = "PartialEq",
    cel,
    doc = "An Award gives one order to one provider, at a price. At home it belongs to the Job and carries the certificate; on the winner it is what the controller runs.",
    printcolumn(name = "Side", type_ = "string", json_path = ".spec.side"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".spec.provider"),
    printcolumn(name = "Price", type_ = "string", json_path = ".spec.price"),
    printcolumn(name = "Round", type_ = "integer", json_path = ".spec.round", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AwardSpec {
    /// side says which end of the award this object is.
    #[x_kube(validation = Rule::new("self == oldSelf").message("side is immutable"))]
    pub side: AwardSide,
    /// id of the award, the same on both sides, 16 hex digits.
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("id is immutable"))]
    pub id: String,
    /// marketId of the market whose seats signed the certificate, 64 hex digits.
    #[schemars(length(max = 64))]
    pub market_id: String,
    /// round of the award.
    pub round: i64,
    /// orderDigest identifies the signed order, 64 hex digits.
    #[schemars(length(max = 64))]
    pub order_digest: String,
    /// job that the award serves.
    pub job: JobReference,
    /// provider that won (after a refusal: the stand-by that took over).
    #[schemars(length(max = 63))]
    pub provider: String,
    /// seat of the provider in the market record.
    pub seat: i32,
    /// price per GPU-hour.
    pub price: Decimal,
    /// standBys are the seats that take over, in this order, when the winner refuses or does not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub stand_bys: Vec<StandBy>,
    /// expiresAt is when the award stops binding anybody, unless the workload was handed over before.
    pub expires_at: Time,
    /// requirements of the order.
    pub requirements: AwardRequirements,
    /// devicesCommitment is what the certified bid of the seat binds its devices by, 64 hex digits: a hash over market,
    /// round, seat and the fingerprint of the node. It is absent when the bid did not bind any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub devices_commitment: Option<String>,
    /// provision that the bid was made for; host side only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub provision: Option<String>,
    /// provisionNamespace is the namespace of that Provision; host side only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub provision_namespace: Option<String>,
    /// workloadSecret names the Secret with the workload; host side only, set at the hand-over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub workload_secret: Option<String>,
    /// handedOverAt is when the workload arrived; the run deadline counts from here. Host side only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed_over_at: Option<Time>,
    /// certificate proves the award to anybody who has the market record; home side only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateData>,
    /// close ends the award.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close: Option<AwardClose>,
}

/// Which end of an award an object is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum AwardSide {
    /// In the cluster of the user.
    Home,
    /// In the cluster of the provider.
    Host,
}

/// The Job that an award serves, at home.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobReference {
    /// home is the name of the user's cluster in the market record.
    #[schemars(length(max = 63))]
    pub home: String,
    /// namespace of the Job; empty on the host, which does not need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// name of the Job; empty on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub name: Option<String>,
    /// uid of the Job.
    #[schemars(length(max = 63))]
    pub uid: String,
    /// attempt is the order's attempt.
    pub attempt: i32,
}

/// A seat that takes over when those before it do not.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StandBy {
    /// provider of the seat.
    #[schemars(length(max = 63))]
    pub provider: String,
    /// seat in the market record.
    pub seat: i32,
    /// price per GPU-hour of its own bid.
    pub price: Decimal,
}

/// What the order requires, as the matcher reads it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AwardRequirements {
    /// workers is the number of workers.
    pub workers: i32,
    /// gpusPerWorker is the number of GPUs of each.
    pub gpus_per_worker: i32,
    /// gpuModels lists the accepted models; empty accepts any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    pub gpu_models: Vec<String>,
    /// minGpuMemoryMib is the least memory of each GPU, in MiB.
    #[serde(default)]
    pub min_gpu_memory_mib: i64,
    /// cpuMillisPerWorker is the CPU of each worker, thousandths of a core.
    pub cpu_millis_per_worker: i64,
    /// memoryMibPerWorker is the memory of each worker, MiB.
    pub memory_mib_per_worker: i64,
    /// diskMibPerWorker is the scratch disk of each worker, MiB.
    #[serde(default)]
    pub disk_mib_per_worker: i64,
    /// runDeadlineSeconds bounds the run.
    pub run_deadline_seconds: i32,
    /// image that will run.
    #[schemars(length(max = 512))]
    pub image: String,
}

/// Proof of an award, each part as hex or JSON text. `kubectl vendue verify` reads it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CertificateData {
    /// certificate: the multi-signature over the round's award root, as the JSON of a certificate file.
    #[schemars(length(max = 65_536))]
    pub certificate: String,
    /// award: the leaf of this award with its Merkle path and the signed order, as the JSON of an award file.
    #[schemars(length(max = 131_072))]
    pub award: String,
}

/// Why an award is to end.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The user deleted the Job.
    UserClosed,
    /// The reservation was not taken up.
    NotTaken,
}

/// A request to end an award.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AwardClose {
    /// reason of the close.
    pub reason: CloseReason,
    /// at is when it was asked for.
    pub at: Time,
}

/// What became of an award.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AwardStatus {
    /// conditions: Held, HandedOver, Provisioned, Running, Finished, Delivered, Released, DevicesAsBid, DevicesChanged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// observedGeneration is the generation of spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// state is one word for people; programs read conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub state: Option<String>,
    /// devices that are held, by node; host side only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".into()]))]
    pub devices: Vec<HeldDevices>,
    /// fingerprint of the devices of the node that holds the award, as it was when they were held (or first known).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub fingerprint: Option<String>,
    /// fingerprintChanges are the other fingerprints that were seen while the devices were held, in the order of time;
    /// after the first 16 no more are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub fingerprint_changes: Vec<FingerprintChange>,
    /// runtime is how the workload runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<AwardRuntimeStatus>,
    /// usage is what was used so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
    /// failure holds the last log lines of a run that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureStatus>,
}

/// Other devices than before under a running award.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FingerprintChange {
    /// at is when the controller saw it.
    pub at: Time,
    /// fingerprint that the node had from then on.
    #[schemars(length(max = 64))]
    pub fingerprint: String,
}

/// GPUs of one node that an award holds.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HeldDevices {
    /// node that has them.
    #[schemars(length(max = 253))]
    pub node: String,
    /// model of the GPUs.
    #[schemars(length(max = 63))]
    pub model: String,
    /// workers that run on the node.
    pub workers: i32,
    /// gpus held on the node.
    pub gpus: i32,
}

/// How the workload of an award runs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AwardRuntimeStatus {
    /// backend that runs it: "native" (own Ray Pods).
    #[schemars(length(max = 32))]
    pub backend: String,
    /// attempt counts the starts of the entry point, from 1.
    pub attempt: i32,
    /// submissionId is Ray's id of the attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub submission_id: Option<String>,
    /// session is Ray's session name; it changes when the head restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub session: Option<String>,
    /// rayStatus is the state of Ray's job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub ray_status: Option<String>,
    /// workersReady counts the workers that are ready.
    #[serde(default)]
    pub workers_ready: i32,
    /// workerRestarts counts the restarts of workers.
    #[serde(default)]
    pub worker_restarts: i32,
    /// startedAt is when the entry point started for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// endedAt is when it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
}
