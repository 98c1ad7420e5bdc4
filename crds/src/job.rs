//! `Job`: what a user wants to have run, and what became of it.
//!
//! Writers: the user (`spec`), `vendue-controller/job` (all of `status` but `auction`), `vendue-auction/bridge`
//! (`status.auction`). Invariant: `spec` is immutable but for `suspend`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::{Message, Rule};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Decimal;

// Messages that join numbers into text exceed the API server's cost budget for a rule, and it then refuses the whole CRD;
// only those over a short string are expressions.

fn positive_decimal(field: &str) -> Rule {
    Rule::new("self.matches('^(0|[1-9][0-9]{0,5})([.][0-9]{1,6})?$') && self.matches('[1-9]')").message(
        Message::Expression(format!(
            "'{field} is \"' + self + '\"; accepted: a decimal above zero and below 1000000 with at most six places, for example \"2.50\"'"
        )),
    )
}

/// A Job asks the market for GPUs and says what to run on them.
///
/// The clusters that own GPUs bid for it in a sealed auction; the cheapest that fits runs it. `jobs.vendue.dev` is the
/// full name, because `jobs` alone means batch/v1.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "vendue.dev",
    version = "v1alpha1",
    kind = "Job",
    root = "ComputeJob",
    plural = "jobs",
    shortname = "vjob",
    category = "vendue",
    namespaced,
    status = "JobStatus",
    derive = "PartialEq",
    cel,
    doc = "A Job asks the market for GPUs and says what to run on them. The clusters that own GPUs bid for it in a sealed auction; the cheapest that fits runs it.",
    validation = Rule::new("size(self.metadata.name) <= 47")
        .message("metadata.name is too long; accepted: at most 47 characters"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".status.award.provider"),
    printcolumn(name = "Price", type_ = "string", json_path = ".status.award.price"),
    printcolumn(name = "Spent", type_ = "string", json_path = ".status.usage.cost"),
    printcolumn(name = "Ceiling", type_ = "string", json_path = ".spec.maxPrice", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[-1].reason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.train)").message("spec needs exactly one workload; accepted: train"))]
#[x_kube(validation = Rule::new("!has(oldSelf.train) || (has(self.train) && self.train == oldSelf.train)")
    .message("spec.train is immutable; delete the Job and apply a new one"))]
// A field's own rule says nothing about a field that comes or goes.
#[x_kube(validation = Rule::new("has(self.providers) == has(oldSelf.providers)")
    .message("spec.providers is immutable; delete the Job and apply a new one"))]
#[x_kube(validation = Rule::new("has(self.managedBy) == has(oldSelf.managedBy)")
    .message("spec.managedBy is immutable; delete the Job and apply a new one"))]
pub struct JobSpec {
    /// maxPrice is the highest price per GPU-hour that you pay: a decimal above zero with at most six places, for
    /// example "2.50". The award's price is at most this.
    #[x_kube(validation = positive_decimal("maxPrice"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("maxPrice is immutable; delete the Job and apply a new one"))]
    pub max_price: Decimal,

    /// runDeadlineSeconds ends the run that many seconds after the workload was handed to the winner, whatever it is
    /// doing. It bounds what the Job can cost.
    #[schemars(range(min = 10, max = 2_592_000))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("runDeadlineSeconds is immutable; delete the Job and apply a new one"))]
    pub run_deadline_seconds: i32,

    /// searchSeconds is how long to look for a provider. Each round of the market until then is tried.
    #[serde(default = "default_search_seconds")]
    #[schemars(range(min = 5, max = 604_800))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("searchSeconds is immutable; delete the Job and apply a new one"))]
    pub search_seconds: i32,

    /// suspend keeps the Job out of the market until it is false. A Job that was awarded is not affected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// managedBy names the controller that takes care of the Job. Unset or "vendue.dev/controller" is Vendue's own;
    /// a queueing system that dispatches the Job elsewhere sets its own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("managedBy is immutable; delete the Job and apply a new one"))]
    pub managed_by: Option<String>,

    /// pricing says what the winner is paid per GPU-hour: with FirstPrice its own bid, with SecondPrice (Vickrey) the next
    /// bid that could have served the Job, or maxPrice where there is no other.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("pricing is immutable; delete the Job and apply a new one"))]
    pub pricing: Pricing,

    /// regions lists the only regions whose providers may serve the Job, as the market record names them; empty means
    /// any. A provider of which the market record says no region serves only Jobs without this list.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9-]+$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("regions is immutable; delete the Job and apply a new one"))]
    pub regions: Vec<String>,

    /// providers restricts who may serve the Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("providers is immutable; delete the Job and apply a new one"))]
    pub providers: Option<ProviderFilter>,

    /// train runs a Ray program on a Ray cluster of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<TrainSpec>,
}

fn default_search_seconds() -> i32 {
    600
}

/// What the winner of a Job is paid.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pricing {
    /// Its own bid.
    #[default]
    FirstPrice,
    /// The next bid that could have served the Job, or maxPrice where there is no other.
    SecondPrice,
}

/// Who may serve a Job, by provider name.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProviderFilter {
    /// include lists the only providers that may serve the Job; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub include: Vec<String>,
    /// exclude lists providers that may not serve the Job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub exclude: Vec<String>,
}

/// A Ray program and the workers that it runs on.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TrainSpec {
    /// image is the container image of head and workers. It needs Ray 2.52 or later, Python and /bin/bash.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// entrypoint is the command line that Ray runs on the head, in the folder with the files, for example
    /// "python train.py --epochs 20".
    #[schemars(length(min = 1, max = 4096))]
    pub entrypoint: String,
    /// files are put into the working directory of the entry point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FileSource>,
    /// env sets environment variables on head and workers. Values from Secrets are read in this cluster and reach only
    /// the winner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,
    /// workers says how many workers run and what each needs.
    pub workers: WorkerSpec,
    /// retries is how often a failed entry point is started again, on the same award. Checkpoints are kept.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10))]
    pub retries: i32,
    /// volumeMib is the size of the volume that head and workers share at /vendue: checkpoints go to
    /// /vendue/checkpoints, outputs to /vendue/outputs. The outputs are copied to this cluster before the winner
    /// deletes anything.
    #[serde(default = "default_volume_mib")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub volume_mib: i32,
}

fn default_volume_mib() -> i32 {
    1024
}

/// Where files come from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FileSource {
    /// configMapName names a ConfigMap in the Job's namespace; each key becomes a file. At most 1 MiB in all.
    #[schemars(length(min = 1, max = 253))]
    pub config_map_name: String,
}

/// One environment variable: a value, or a key of a Secret.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.value) != has(self.secretKeyRef)")
    .message("exactly one of value and secretKeyRef must be set"))]
pub struct EnvVar {
    /// name of the variable.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// value, as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32_768))]
    pub value: Option<String>,
    /// secretKeyRef takes the value from a Secret in the Job's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKey>,
}

/// A key of a Secret.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// key in the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// How many workers, and what each needs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.sharedMemoryMib < self.memoryMib")
    .field_path(".sharedMemoryMib")
    .message("sharedMemoryMib must be less than memoryMib, which includes it"))]
pub struct WorkerSpec {
    /// replicas is the number of workers. Each runs on one node; several may share a node.
    #[schemars(range(min = 1, max = 256))]
    pub replicas: i32,
    /// gpus is the number of GPUs of each worker.
    #[schemars(range(min = 1, max = 64))]
    pub gpus: i32,
    /// gpuModels lists the models that are accepted, for example ["H100", "A100"]; empty accepts any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub gpu_models: Vec<String>,
    /// minGpuMemoryMib is the least memory of each GPU, in MiB.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4_194_304))]
    pub min_gpu_memory_mib: i32,
    /// cpuMillis is the CPU of each worker in thousandths of a core.
    #[serde(default = "default_cpu_millis")]
    #[schemars(range(min = 10, max = 1_024_000))]
    pub cpu_millis: i32,
    /// memoryMib is the memory of each worker in MiB, shared memory included.
    #[serde(default = "default_memory_mib")]
    #[schemars(range(min = 64, max = 67_108_864))]
    pub memory_mib: i32,
    /// sharedMemoryMib is the size of /dev/shm of each worker in MiB, which holds Ray's object store.
    #[serde(default = "default_shared_memory_mib")]
    #[schemars(range(min = 16, max = 33_554_432))]
    pub shared_memory_mib: i32,
    /// diskMib is the scratch disk of each worker in MiB.
    #[serde(default = "default_disk_mib")]
    #[schemars(range(min = 0, max = 67_108_864))]
    pub disk_mib: i32,
}

fn default_cpu_millis() -> i32 {
    500
}
fn default_memory_mib() -> i32 {
    1536
}
fn default_shared_memory_mib() -> i32 {
    256
}
fn default_disk_mib() -> i32 {
    1024
}

/// What became of a Job.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// conditions: Accepted, Awarded, Provisioned, Running, Finished.
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
    /// order is what the market is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderStatus>,
    /// auction is how the last rounds went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auction: Option<AuctionStatus>,
    /// award says who won and at what price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub award: Option<AwardSummary>,
    /// usage is what was used and what it costs so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
    /// failure holds the last log lines of a run that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureStatus>,
}

/// An order as it was put to the market.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OrderStatus {
    /// attempt counts the orders made for this Job, from 1.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub attempt: i32,
    /// commitment binds the workload: SHA-256 over salt and workload, 64 hex digits.
    #[schemars(length(max = 64))]
    pub commitment: String,
    /// secretName names the Secret with the salt and the workload.
    #[schemars(length(max = 253))]
    pub secret_name: String,
    /// expiresAt is when the search for a provider ends.
    pub expires_at: Time,
}

/// How an order fared in a round.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuctionOutcome {
    /// The order is on its way to the seats, or its round is open.
    Pending,
    /// No seat could serve the order.
    NoFeasibleBid,
    /// The round did not decide.
    Undecided,
    /// A seat won.
    Awarded,
    /// The search time is over.
    Expired,
    /// The order was taken back; no seat will award it.
    Withdrawn,
}

/// What the auction process knows of the order.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AuctionStatus {
    /// attempt is the order's attempt that this speaks of.
    pub attempt: i32,
    /// orderDigest identifies the signed order, 64 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub order_digest: Option<String>,
    /// outcome of the last round that the order was in.
    pub outcome: AuctionOutcome,
    /// round is the number of that round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<i64>,
    /// roundsTried counts the rounds that the order was in.
    #[serde(default)]
    pub rounds_tried: i32,
    /// receipts counts the seats that acknowledged the order.
    #[serde(default)]
    pub receipts: i32,
    /// message says in one sentence how it went, for example "0 of 4 providers: 2 model, 1 memory, 1 free GPUs".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// exclusions counts the providers that could not serve the order, by reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["reason".into()]))]
    pub exclusions: Vec<ExclusionCount>,
    /// knownModels lists the GPU models that were offered in the round.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub known_models: Vec<String>,
    /// insecureKeys is true when one dealer made the keys of all seats: it could read every bid, so the market is for
    /// development only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure_keys: bool,
}

impl AuctionStatus {
    /// The status of an order that was just made.
    pub fn new(attempt: i32) -> Self {
        Self {
            attempt,
            order_digest: None,
            outcome: AuctionOutcome::Pending,
            round: None,
            rounds_tried: 0,
            receipts: 0,
            message: None,
            exclusions: Vec::new(),
            known_models: Vec::new(),
            insecure_keys: false,
        }
    }
}

/// How many providers were excluded for a reason.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ExclusionCount {
    /// reason in plain words, for example "model".
    #[schemars(length(max = 63))]
    pub reason: String,
    /// providers is their number.
    pub providers: i32,
}

/// Who won and at what price.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AwardSummary {
    /// name of the Award object in the Job's namespace.
    #[schemars(length(max = 253))]
    pub name: String,
    /// provider that runs the Job.
    #[schemars(length(max = 63))]
    pub provider: String,
    /// price per GPU-hour.
    pub price: Decimal,
    /// round of the award.
    pub round: i64,
}

/// What was used so far.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UsageStatus {
    /// gpus held.
    pub gpus: i32,
    /// seconds of the run for which receipts say that a GPU was in use, retries included.
    pub seconds: i64,
    /// gpuSeconds is the sum over all GPUs of the seconds that receipts say.
    pub gpu_seconds: i64,
    /// cost = price x GPU time / 3600, added up receipt by receipt. What no receipt says costs nothing.
    pub cost: Decimal,
    /// restarts counts how often the entry point was started again.
    #[serde(default)]
    pub restarts: i32,
    /// energyJoules that the GPUs used.
    #[serde(default)]
    pub energy_joules: i64,
    /// gapSeconds of the run in which a GPU was not observed; they cost nothing.
    #[serde(default)]
    pub gap_seconds: i64,
    /// complete says that the receipts of the whole run are in: nothing will be added.
    #[serde(default)]
    pub complete: bool,
    /// receipts that this was added up from, by node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".into()]))]
    pub receipts: Vec<NodeReceipts>,
}

/// The receipts of one node for an award.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeReceipts {
    /// node that signed them.
    #[schemars(length(max = 253))]
    pub node: String,
    /// publicKey that verifies them, 66 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 66))]
    pub public_key: Option<String>,
    /// head is the digest of the last one, 64 hex digits; it stands for all before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub head: Option<String>,
    /// records counts them.
    #[serde(default)]
    pub records: i64,
}

/// Why a run failed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FailureStatus {
    /// logTail holds the last lines of the log.
    #[schemars(length(max = 8192))]
    pub log_tail: String,
}
