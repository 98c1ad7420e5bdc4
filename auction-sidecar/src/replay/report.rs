//! Replayed rounds in words and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use vendue_auction_core::MarketRecord;
use vendue_auction_core::log::{Decision, Explained, Replayed, Step};
use vendue_auction_core::wire::{Commit, Listed};
use vendue_market::{Cleared, Digest, Outcome, SeatVerdict};

use super::ReplayFailure;

/// What the rounds of a log come to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    market: String,
    seat: u16,
    provider: String,
    /// Bytes at the end of the log that were never durable; they count for nothing.
    torn_bytes: usize,
    /// Epochs of rounds in the log of which no market record is given.
    epochs_without_record: BTreeSet<u32>,
    /// The rounds, ascending.
    pub rounds: Vec<RoundReport>,
}

/// What a round came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoundReport {
    /// The round.
    pub round: u64,
    /// The epoch that it is of.
    epoch: u32,
    /// When it began, in milliseconds since 1970.
    starts_ms: u64,
    /// Why it cannot be replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
    /// Whether that is because there is no market record of its epoch.
    #[serde(skip)]
    needs_record: bool,
    /// The first thing that the seat signed and that does not follow from what it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<String>,
    #[serde(flatten)]
    result: Option<RoundResult>,
}

/// What a round that was replayed came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RoundResult {
    set: Option<String>,
    /// Providers whose bundles were admitted.
    admitted: Vec<String>,
    commit: Option<String>,
    beacon: Option<String>,
    award_root: Option<String>,
    certified_by: Vec<String>,
    /// Signed messages that are bit for bit those in the log.
    statements: usize,
    /// Signed messages that were never written, so never sent.
    unwritten: usize,
    restarts: usize,
    decisions: Vec<DecisionReport>,
    orders: Vec<OrderReport>,
}

/// A step of the seat.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DecisionReport {
    /// Milliseconds after the start of the round.
    after_ms: i64,
    what: String,
}

/// One order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OrderReport {
    order: String,
    home: String,
    job: String,
    /// Its turn in the round, from 1.
    turn: usize,
    outcome: String,
    /// Price per GPU-hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<String>,
    /// The ceiling in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    ceiling: Option<String>,
    /// By provider: why it has the order, or why not.
    providers: BTreeMap<String, ProviderReport>,
}

/// One provider and one order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProviderReport {
    /// Its own price.
    #[serde(skip_serializing_if = "Option::is_none")]
    bid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stand_by: Option<u8>,
    why: String,
}

fn provider(record: &MarketRecord, seat: u16) -> String {
    record.seat(seat).map_or_else(|| format!("seat {seat}"), |s| s.provider.clone())
}

/// Enough of a digest to tell it from others.
fn short(digest: &Digest) -> String {
    hex::encode(digest.get(..6).unwrap_or_default())
}

impl Report {
    /// A report of no round yet.
    pub fn new(record: &MarketRecord, seat: u16, torn: usize) -> Self {
        let (market, provider) = (record.name.clone(), provider(record, seat));
        let epochs_without_record = BTreeSet::new();
        Self { market, seat, provider, torn_bytes: torn, epochs_without_record, rounds: vec![] }
    }

    /// Adds what the next round came to.
    pub fn add(&mut self, round: RoundReport) {
        self.epochs_without_record.extend(round.needs_record.then_some(round.epoch));
        self.rounds.push(round);
    }

    /// Whether every round that could be replayed came out as it was signed, and there was one.
    pub fn verdict(&self) -> Result<(), ReplayFailure> {
        let differing = self.rounds.iter().filter(|r| r.difference.is_some());
        let differing: Vec<String> = differing.map(|r| format!("round {}", r.round)).collect();
        if !differing.is_empty() {
            return Err(ReplayFailure::Differs { rounds: differing.join(", ") });
        }
        if self.rounds.iter().any(|r| !r.is_skipped()) {
            return Ok(());
        }
        let first = self.rounds.iter().find_map(|r| r.skipped.clone());
        Err(ReplayFailure::NoRound(first.unwrap_or_else(|| "it has no record of any".to_owned())))
    }
}

impl RoundReport {
    fn of(record: &MarketRecord, round: u64) -> Self {
        let starts_ms = record.params.t0(round);
        let (epoch, needs_record) = (record.epoch, false);
        Self { round, epoch, starts_ms, skipped: None, needs_record, difference: None, result: None }
    }

    /// A round of an epoch whose record is not there; `record` is that of another one.
    pub fn without_record(record: &MarketRecord, round: u64, epoch: u32) -> Self {
        let why =
            format!("it is of epoch {epoch}; give the record of that epoch as one more --market-record");
        Self { epoch, needs_record: true, ..Self::skipped(record, round, why) }
    }

    /// A round that cannot be replayed.
    pub fn skipped(record: &MarketRecord, round: u64, why: String) -> Self {
        Self { skipped: Some(why), ..Self::of(record, round) }
    }

    /// A round that does not come out as it was signed.
    pub fn differs(record: &MarketRecord, round: u64, difference: String) -> Self {
        Self { difference: Some(difference), ..Self::of(record, round) }
    }

    /// A round that comes out as it was signed.
    pub fn new(record: &MarketRecord, replayed: &Replayed) -> Self {
        Self { result: Some(RoundResult::new(record, replayed)), ..Self::of(record, replayed.round) }
    }

    /// Whether it could not be replayed.
    pub fn is_skipped(&self) -> bool {
        self.skipped.is_some()
    }
}

impl RoundResult {
    fn new(record: &MarketRecord, replayed: &Replayed) -> Self {
        let name = |seat: u16| provider(record, seat);
        let signers = replayed.certificate.iter().flat_map(|c| c.quorum.signers.iter());
        let t0 = record.params.t0(replayed.round);
        let both = replayed.cleared.iter().zip(&replayed.explained);
        Self {
            set: replayed.commit.as_ref().map(|(set, _)| hex::encode(set)),
            admitted: admitted(record, &replayed.admitted),
            commit: replayed.commit.as_ref().map(|(_, commit)| reason(record, commit)),
            beacon: replayed.beacon.map(hex::encode),
            award_root: replayed.root.map(hex::encode),
            certified_by: signers.map(name).collect(),
            statements: replayed.equal,
            unwritten: replayed.unwritten,
            restarts: replayed.restarts,
            decisions: replayed.decisions.iter().map(|d| decision(record, t0, d)).collect(),
            orders: both.map(|(c, e)| OrderReport::new(record, replayed, c, e)).collect(),
        }
    }
}

/// The admitted bundles' providers; one of whom there are two versions is named twice.
fn admitted(record: &MarketRecord, list: &[Listed]) -> Vec<String> {
    list.iter().map(|l| provider(record, l.seat)).collect()
}

fn reason(record: &MarketRecord, commit: &Commit) -> String {
    match commit {
        Commit::Fast { .. } => "all seats had the same complete set".to_owned(),
        Commit::Locked { view, quorum } => {
            let seats: Vec<String> = quorum.signers.iter().map(|seat| provider(record, seat)).collect();
            format!("locked in view {view} by {}", seats.join(", "))
        }
    }
}

fn decision(record: &MarketRecord, t0: u64, Decision { at_ms, step }: &Decision) -> DecisionReport {
    let n = record.n();
    let what = match step {
        Step::Restart => "the process was started anew".to_owned(),
        Step::Bundle { orders, bids } => {
            format!("sealed its bundle: bids on {bids} of {orders} listed orders")
        }
        Step::Set { listed, full: true } => {
            format!("had all {listed} of {n} bundles in time, and votes for them at once")
        }
        Step::Set { listed, full: false } => format!("had {listed} of {n} bundles in time"),
        Step::NewView { view } => format!("went on to view {view}"),
        Step::Propose { view, set } => format!("proposed set {} in view {view}", short(set)),
        Step::Admit { view, set } => format!("voted to admit set {} in view {view}", short(set)),
        Step::Lock { view, set } => format!("locked set {} in view {view}", short(set)),
        Step::Committed { set, commit } => {
            format!("set {} is final: {}", short(set), reason(record, commit))
        }
        Step::Share => "sent its share of the round's key".to_owned(),
        Step::Opened { beacon } => format!("opened the round: beacon {}", short(beacon)),
        Step::Award { root } => format!("voted for the awards under root {}", short(root)),
        Step::Certified { root } => format!("the awards under root {} are certified", short(root)),
    };
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    DecisionReport { after_ms: signed(*at_ms).saturating_sub(signed(t0)), what }
}

impl OrderReport {
    fn new(record: &MarketRecord, replayed: &Replayed, cleared: &Cleared, explained: &Explained) -> Self {
        let order = replayed.orders.get(&cleared.order);
        let home = order.and_then(|o| record.home(record.home_of_key(&o.user_key)?));
        let verdict = |v: &SeatVerdict| {
            let bid = v.bid.map(|price| price.to_string());
            let why = ProviderReport { bid, stand_by: v.stand_by, why: v.verdict.to_string() };
            (provider(record, v.seat), why)
        };
        let (outcome, price) = match &cleared.outcome {
            Outcome::Award(award) => {
                (format!("awarded to {}", provider(record, award.seat)), Some(award.price.to_string()))
            }
            Outcome::None(histogram) => (format!("served by none: {histogram}"), None),
        };
        Self {
            order: hex::encode(cleared.order),
            home: home.map(|h| h.name.clone()).unwrap_or_default(),
            job: order.map(|o| o.job.clone()).unwrap_or_default(),
            turn: explained.why.turn,
            outcome,
            price,
            ceiling: explained.ceiling.map(|c| c.to_string()),
            providers: explained.why.seats.iter().map(verdict).collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "log of seat {} ({}) of market {}", self.seat, self.provider, self.market)?;
        if self.torn_bytes > 0 {
            writeln!(f, "the last {} bytes were never durable and count for nothing", self.torn_bytes)?;
        }
        self.rounds.iter().try_for_each(|round| write!(f, "\n{round}"))?;
        for epoch in &self.epochs_without_record {
            let count = self.rounds.iter().filter(|r| r.needs_record && r.epoch == *epoch).count();
            writeln!(f, "\nrounds not replayed for want of the market record of epoch {epoch}: {count}")?;
        }
        Ok(())
    }
}

impl fmt::Display for RoundReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.skipped {
            return writeln!(f, "round {}: not replayed: {why}", self.round);
        }
        if let Some(difference) = &self.difference {
            return writeln!(f, "round {}: DIFFERS: {difference}", self.round);
        }
        writeln!(f, "round {} of epoch {}, from {} ms", self.round, self.epoch, self.starts_ms)?;
        self.result.as_ref().map_or(Ok(()), |result| write!(f, "{result}"))
    }
}

impl fmt::Display for RoundResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
        writeln!(f, "  set          {}", or(&self.set))?;
        writeln!(f, "  admitted     {}", self.admitted.join(", "))?;
        writeln!(f, "  final        {}", or(&self.commit))?;
        writeln!(f, "  beacon       {}", or(&self.beacon))?;
        writeln!(f, "  award root   {}", or(&self.award_root))?;
        writeln!(f, "  certified by {}", self.certified_by.join(", "))?;
        write!(f, "  replay       {} signed messages are bit for bit those in the log", self.statements)?;
        if self.unwritten > 0 {
            write!(f, ", {} more were not written before it ends", self.unwritten)?;
        }
        writeln!(f, "\n  decisions")?;
        for DecisionReport { after_ms, what } in &self.decisions {
            writeln!(f, "    {after_ms:>+6} ms  {what}")?;
        }
        self.orders.iter().try_for_each(|order| write!(f, "{order}"))
    }
}

impl fmt::Display for OrderReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  order {} of {} (job {}), turn {}", self.order, self.home, self.job, self.turn)?;
        let price = self.price.as_ref().map(|p| format!(" at {p}")).unwrap_or_default();
        let ceiling = self.ceiling.as_ref().map(|c| format!(", ceiling {c}")).unwrap_or_default();
        writeln!(f, "    {}{price}{ceiling}", self.outcome)?;
        let width = self.providers.keys().map(String::len).max().unwrap_or_default();
        for (provider, ProviderReport { bid, stand_by, why }) in &self.providers {
            let bid = bid.as_ref().map(|b| format!("bid {b}; ")).unwrap_or_default();
            let rank = stand_by.map(|r| format!("stand-by {r}; ")).unwrap_or_default();
            writeln!(f, "    {provider:width$}  {bid}{rank}{why}")?;
        }
        Ok(())
    }
}
