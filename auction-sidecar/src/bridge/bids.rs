//! `Bid` objects: what this seat bid and how it went, written after a round is decided.
//!
//! Inputs: decided rounds. Outputs: at most [`KEEP`] Bids in the process's own namespace. Invariant: a Bid is written
//! only from a certified round, when its prices are open to all seats anyway.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use vendue_auction_core::{BidResult, Decided, MarketRecord, OwnResult};
use vendue_crds::conditions::{self, bid as condition};
use vendue_crds::{Bid, BidOutcome, names};
use vendue_market::Outcome;
use vendue_market::encode::to_hex;

use super::cluster::{Cluster, ClusterError};
use super::stores::Seller;

/// Most Bids that are kept.
pub const KEEP: usize = 200;
const MANAGED: &str = "app.kubernetes.io/managed-by=vendue";

struct Record {
    round: u64,
    own: OwnResult,
    winner: Option<(String, String)>,
}

/// Takes decided rounds; a task writes them.
#[derive(Clone)]
pub struct BidWriter {
    records: mpsc::Sender<Record>,
    record: Arc<MarketRecord>,
    seller: Arc<Seller>,
}

impl BidWriter {
    /// Starts the task that writes.
    pub fn start(
        cluster: Cluster,
        namespace: String,
        record: Arc<MarketRecord>,
        seller: Arc<Seller>,
    ) -> Self {
        let (records, receiver) = mpsc::channel(KEEP);
        tokio::spawn(write_all(cluster, namespace, receiver));
        Self { records, record, seller }
    }

    /// Notes the results of a round; more than can be written are dropped.
    pub fn decided(&self, decided: &Decided) {
        for own in &decided.own {
            if let BidResult::NoBid(reason) = own.result {
                self.seller.count_exclusion(reason.name());
                continue;
            }
            let outcome = decided.outcomes.iter().find(|(order, _)| order == &own.order).map(|(_, o)| o);
            let winner = match outcome {
                Some(Outcome::Award(award)) => {
                    self.record.seat(award.seat).map(|seat| (seat.provider.clone(), award.price.to_string()))
                }
                _ => None,
            };
            let record = Record { round: decided.certificate.round, own: own.clone(), winner };
            if self.records.try_send(record).is_err() {
                tracing::debug!("Bid not written: too many at once");
            }
        }
    }
}

/// Name of the Bid of one order in one round.
fn name(record: &Record) -> String {
    let digest = to_hex(&record.own.order);
    format!("{}-{}", record.round, digest.get(..12).unwrap_or_default())
}

fn objects(record: &Record) -> (Value, Value) {
    let api_version = format!("{}/{}", vendue_crds::GROUP, vendue_crds::VERSION);
    let offer = record.own.offer.clone().unwrap_or_default();
    let provision = offer.split_once('/').map_or(offer.as_str(), |(_, name)| name);
    let price = record.own.price.map(|p| p.to_string()).unwrap_or_default();
    let object = json!({
        "apiVersion": api_version,
        "kind": "Bid",
        "metadata": { "name": name(record), "labels": { names::MANAGED_BY: names::VENDUE } },
        "spec": {
            "round": record.round, "orderDigest": to_hex(&record.own.order), "provision": provision,
            "price": price, "gpus": record.own.gpus,
        },
    });
    let (outcome, won, reason, message) = match record.own.result {
        BidResult::Won => (BidOutcome::Won, true, "Won", "the bid won its order".to_owned()),
        BidResult::StandBy { rank } => {
            (BidOutcome::StandBy, false, "StandBy", format!("stand-by number {rank}"))
        }
        _ => (BidOutcome::Lost, false, "Outbid", "another bid was lower".to_owned()),
    };
    let mut status = json!({ "outcome": outcome });
    let now = Timestamp::now();
    let list = [
        conditions::condition(condition::WON, won, reason, message.clone(), None, now),
        conditions::condition(condition::LOST, outcome == BidOutcome::Lost, reason, message, None, now),
    ];
    if let Some(map) = status.as_object_mut() {
        map.insert("conditions".to_owned(), json!(list));
        if let Some((winner, price)) = &record.winner {
            map.insert("winner".to_owned(), json!(winner));
            map.insert("winningPrice".to_owned(), json!(price));
        }
    }
    (object, json!({ "apiVersion": api_version, "kind": "Bid", "status": status }))
}

async fn write_all(cluster: Cluster, namespace: String, mut records: mpsc::Receiver<Record>) {
    let api: Api<Bid> = Api::namespaced(cluster.client.clone(), &namespace);
    let mut written = 0usize;
    while let Some(record) = records.recv().await {
        let (object, status) = objects(&record);
        let name = name(&record);
        let result = async {
            let manager = names::MANAGER_AUCTION;
            cluster.apply::<Bid>("bid", &api, manager, &name, &object).await?;
            cluster.apply_status::<Bid>("bid_status", &api, manager, &name, &status).await.map(drop)
        };
        if let Err(error) = result.await {
            tracing::warn!(round = record.round, %error, "Bid not written");
            // Bids are for people: one that cannot be written must not hold up the others.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        written += 1;
        if written % 20 == 1
            && let Err(error) = prune(&cluster, &api).await
        {
            tracing::warn!(%error, "old Bids not deleted");
        }
    }
}

/// Deletes the oldest Bids beyond the bound.
async fn prune(cluster: &Cluster, api: &Api<Bid>) -> Result<(), ClusterError> {
    let mut bids = cluster.list("bids", api, &ListParams::default().labels(MANAGED)).await?;
    bids.sort_by_key(|b| b.spec.round);
    for old in bids.iter().take(bids.len().saturating_sub(KEEP)) {
        cluster.delete("bid", api, &old.name_any()).await?;
    }
    Ok(())
}
