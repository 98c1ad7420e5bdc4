//! `Bid`: what the seat of this cluster bid in a round, and how it went. Written after the round was opened, never
//! before: a clear bid does not leave the process until then.
//!
//! Writer: `vendue-auction/bridge`. Invariant: bounded in number; the oldest are deleted.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Decimal;

/// A Bid is the record of one bid of this cluster's seat, written after the round.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "vendue.dev",
    version = "v1alpha1",
    kind = "Bid",
    plural = "bids",
    shortname = "vbid",
    category = "vendue",
    namespaced,
    status = "BidStatus",
    derive = "PartialEq",
    cel,
    doc = "A Bid is the record of one bid of this cluster's seat in one round, written after the round was opened.",
    printcolumn(name = "Round", type_ = "integer", json_path = ".spec.round"),
    printcolumn(name = "Price", type_ = "string", json_path = ".spec.price"),
    printcolumn(name = "Outcome", type_ = "string", json_path = ".status.outcome"),
    printcolumn(name = "Winner", type_ = "string", json_path = ".status.winner"),
    printcolumn(name = "WinningPrice", type_ = "string", json_path = ".status.winningPrice"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct BidSpec {
    /// round that the bid was made in.
    pub round: i64,
    /// orderDigest identifies the order, 64 hex digits.
    #[schemars(length(max = 64))]
    pub order_digest: String,
    /// provision that was offered.
    #[schemars(length(max = 253))]
    pub provision: String,
    /// price per GPU-hour that was bid.
    pub price: Decimal,
    /// gpus that were offered.
    pub gpus: i32,
}

/// How a bid went.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum BidOutcome {
    /// The bid won.
    Won,
    /// The bid is a stand-by.
    StandBy,
    /// The bid lost.
    Lost,
}

/// How a bid went.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BidStatus {
    /// conditions: Won, Lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// observedGeneration is the generation of spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// outcome in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<BidOutcome>,
    /// winner of the order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub winner: Option<String>,
    /// winningPrice per GPU-hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub winning_price: Option<Decimal>,
}
