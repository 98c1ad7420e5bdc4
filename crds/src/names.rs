//! Names, labels, finalizers, field managers and ports that more than one process must agree on.
//!
//! Invariant: every name is a function of the object that it belongs to, so that a repeat after a crash finds what the
//! first try made.

use sha2::{Digest, Sha256};

/// Label on everything that Vendue creates.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const VENDUE: &str = "vendue";
/// Label: the Job that an object at home belongs to.
pub const JOB_NAME: &str = "vendue.dev/job-name";
/// Label: the award that an object on a host belongs to.
pub const AWARD_ID: &str = "vendue.dev/award-id";
/// Label: the part that a Pod of an award plays (`head` or `worker`).
pub const ROLE: &str = "vendue.dev/role";

/// Finalizer of a Job: the remote work is stopped first.
pub const FINALIZER_REMOTE_WORK: &str = "vendue.dev/remote-work";
/// Finalizer of an Award on a host: its namespace and devices are released first.
pub const FINALIZER_HELD_DEVICES: &str = "vendue.dev/held-devices";

/// Field manager of the controller's Job reconciler.
pub const MANAGER_JOB: &str = "vendue-controller/job";
/// Field manager of the controller's Provision reconciler.
pub const MANAGER_PROVISION: &str = "vendue-controller/provision";
/// Field manager of the controller's Award reconciler.
pub const MANAGER_AWARD: &str = "vendue-controller/award";
/// Field manager of the auction process for orders, bids and awards.
pub const MANAGER_AUCTION: &str = "vendue-auction/bridge";
/// Field manager of the auction process for what it relays from the winner.
pub const MANAGER_RELAY: &str = "vendue-auction/relay";
/// Field manager of the agent.
pub const MANAGER_AGENT: &str = "vendue-gpu-agent";
/// Keys of the taints that the agent puts on its node while a GPU is in trouble, in order; their effect is [`TAINT_EFFECT`]. Pods
/// of awards tolerate them, and the admission policy of the chart lets the agent change no others.
pub const TAINTS: [&str; 3] = ["vendue.dev/ecc", "vendue.dev/thermal", "vendue.dev/xid"];
/// What becomes of Pods that do not tolerate one of [`TAINTS`]: they are not placed there, and those that run go on.
pub const TAINT_EFFECT: &str = "NoSchedule";
/// NVIDIA's driver of dynamic resource allocation: each of its devices is a GPU or a slice of one.
pub const NVIDIA_DRA_DRIVER: &str = "gpu.nvidia.com";
/// Service account of the agent on the nodes.
pub const AGENT_ACCOUNT: &str = "vendue-gpu-agent";
/// Service account of the auction sidecar.
pub const AUCTION_ACCOUNT: &str = "vendue-auction";
/// Service at which the controller takes receipts.
pub const RECEIPTS_SERVICE: &str = "vendue-receipts";
/// Audience of tokens for receipts.
pub const RECEIPTS_AUDIENCE: &str = "vendue-controller";
/// Port at which the controller takes receipts.
pub const RECEIPTS_PORT: u16 = 9473;

/// Key in an order's or award's Secret: the workload, canonical JSON.
pub const WORKLOAD_KEY: &str = "workload.json";
/// Key in an order's Secret: the 32-byte salt of the commitment, hex.
pub const SALT_KEY: &str = "salt";
/// Name of the Secret with the workload in an award's namespace.
pub const WORKLOAD_SECRET: &str = "vendue-workload";
/// Name of the Secret with the Ray and courier tokens in an award's namespace.
pub const TOKENS_SECRET: &str = "vendue-tokens";
/// Key in [`TOKENS_SECRET`]: Ray's token.
pub const RAY_TOKEN_KEY: &str = "ray";
/// Key in [`TOKENS_SECRET`]: the courier's token.
pub const COURIER_TOKEN_KEY: &str = "courier";
/// Port of the courier, the container beside the Ray head that serves logs and outputs.
pub const COURIER_PORT: u16 = 8466;
/// Name of the Service of an award's Ray head (dashboard 8265, courier 8466).
pub const HEAD_SERVICE: &str = "ray-head";
/// Name of the Award object in an award's namespace on the host.
pub const HOST_AWARD: &str = "award";
/// Where the award's volume is mounted in every container of the workload.
pub const AWARD_MOUNT: &str = "/vendue";
/// Folder for outputs; the environment variable `VENDUE_OUTPUTS` names it too.
pub const OUTPUTS_DIR: &str = "/vendue/outputs";
/// Folder for checkpoints; the environment variable `VENDUE_CHECKPOINTS` names it too.
pub const CHECKPOINTS_DIR: &str = "/vendue/checkpoints";
/// Folder with the Job's files, the working directory of the entry point.
pub const FILES_DIR: &str = "/vendue/files";

/// Name of the Secret that holds an order's salt and workload.
pub fn order_secret(job: &str, attempt: i32) -> String {
    format!("{job}-order-{attempt}")
}

/// Name of the Award at home.
pub fn home_award(job: &str, attempt: i32) -> String {
    format!("{job}-{attempt}")
}

/// Short id of an award: the first 16 hex digits of the hash over market, round, order digest and seat.
pub fn award_id(market_id: &str, round: u64, order_digest: &str, seat: u32) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("award/{market_id}/{round}/{order_digest}/{seat}"));
    hex::encode(&hash.finalize()[..8])
}

/// How the namespaces of awards begin.
pub const AWARD_NAMESPACE_PREFIX: &str = "vendue-a-";

/// Namespace of an award on the host.
pub fn award_namespace(award_id: &str) -> String {
    format!("{AWARD_NAMESPACE_PREFIX}{award_id}")
}

/// Ray's submission id of one attempt; the same for every retry of the same submission.
pub fn submission_id(award_uid: &str, attempt: i32) -> String {
    format!("vendue-{award_uid}-{attempt}")
}
