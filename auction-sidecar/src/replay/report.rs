//! A replayed round in words and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use vendue_auction_core::MarketRecord;
use vendue_auction_core::log::Replayed;
use vendue_auction_core::wire::Commit;
use vendue_market::{Cleared, Order, Outcome};

/// What a round came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    round: u64,
    set: Option<String>,
    commit: Option<String>,
    beacon: Option<String>,
    award_root: Option<String>,
    certified_by: Vec<String>,
    /// Signed messages that are bit for bit those in the log.
    statements: usize,
    restarts: usize,
    orders: Vec<OrderReport>,
}

/// One order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OrderReport {
    order: String,
    home: String,
    job: String,
    outcome: String,
    /// Price per GPU-hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<String>,
    /// By provider: why it has the order, or why not.
    providers: BTreeMap<String, String>,
}

impl Report {
    /// What a replay came to, with the market's names.
    pub fn new(record: &MarketRecord, replayed: &Replayed) -> Self {
        let name = |seat: u16| provider(record, seat);
        let commit = replayed.commit.as_ref().map(|(_, commit)| match commit {
            Commit::Fast { .. } => "all seats had the same complete set".to_owned(),
            Commit::Locked { view, quorum } => {
                let seats: Vec<String> = quorum.signers.iter().map(name).collect();
                format!("locked in view {view} by {}", seats.join(", "))
            }
        });
        let signers = replayed.certificate.iter().flat_map(|c| c.quorum.signers.iter());
        Self {
            round: replayed.round,
            set: replayed.commit.as_ref().map(|(set, _)| hex::encode(set)),
            commit,
            beacon: replayed.beacon.map(hex::encode),
            award_root: replayed.root.map(hex::encode),
            certified_by: signers.map(name).collect(),
            statements: replayed.equal,
            restarts: replayed.restarts,
            orders: replayed
                .cleared
                .iter()
                .map(|c| OrderReport::new(record, c, replayed.orders.get(&c.order)))
                .collect(),
        }
    }
}

fn provider(record: &MarketRecord, seat: u16) -> String {
    record.seat(seat).map_or_else(|| format!("seat {seat}"), |s| s.provider.clone())
}

impl OrderReport {
    fn new(record: &MarketRecord, cleared: &Cleared, order: Option<&Order>) -> Self {
        let home = order.and_then(|o| record.home(record.home_of_key(&o.user_key)?));
        let mut providers = BTreeMap::new();
        for seat in &record.seats {
            providers.insert(seat.provider.clone(), "bid, but others were cheaper".to_owned());
        }
        for (seat, reason) in &cleared.no_bids {
            providers.insert(provider(record, *seat), reason.to_string());
        }
        let (outcome, price) = match &cleared.outcome {
            Outcome::Award(award) => {
                for (rank, by) in (1..).zip(&award.stand_bys) {
                    let words = format!("stand-by {rank} at {}", by.price);
                    providers.insert(provider(record, by.seat), words);
                }
                let winner = provider(record, award.seat);
                providers.insert(winner.clone(), "won: the cheapest that serves it".to_owned());
                (format!("awarded to {winner}"), Some(award.price.to_string()))
            }
            Outcome::None(histogram) => (format!("served by none: {histogram}"), None),
        };
        Self {
            order: hex::encode(cleared.order),
            home: home.map(|h| h.name.clone()).unwrap_or_default(),
            job: order.map(|o| o.job.clone()).unwrap_or_default(),
            outcome,
            price,
            providers,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = || "none".to_owned();
        writeln!(f, "round        {}", self.round)?;
        writeln!(f, "set          {}", self.set.clone().unwrap_or_else(none))?;
        writeln!(f, "commit       {}", self.commit.clone().unwrap_or_else(none))?;
        writeln!(f, "beacon       {}", self.beacon.clone().unwrap_or_else(none))?;
        writeln!(f, "award root   {}", self.award_root.clone().unwrap_or_else(none))?;
        writeln!(f, "certified by {}", self.certified_by.join(", "))?;
        writeln!(f, "replay       {} signed messages equal, {} restarts", self.statements, self.restarts)?;
        for order in &self.orders {
            let price = order.price.as_ref().map(|p| format!(" at {p}")).unwrap_or_default();
            writeln!(f, "\norder {} of {} (job {})", order.order, order.home, order.job)?;
            writeln!(f, "  {}{price}", order.outcome)?;
            for (provider, why) in &order.providers {
                writeln!(f, "  {provider}: {why}")?;
            }
        }
        Ok(())
    }
}
