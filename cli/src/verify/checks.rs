//! The checks, in the order in which they build on each other.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use vendue_auction_core::verify::VerifyError;
use vendue_auction_core::{
    AwardFile, Certificate, CertificateFile, KeyOrigin, MarketRecord, SignedMarketRecord, verify,
};
use vendue_crds::{Award, ComputeJob, Pricing};
use vendue_market::{Outcome, Price};

use super::devices::{self, Claim};
use super::evidence::Evidence;
use crate::cluster::time;
use crate::report::{Check, Level};

/// What the award must belong to; `None` is not checked.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Binding {
    /// UID of the Job.
    pub job_uid: Option<String>,
    /// Attempt of the order.
    pub attempt: Option<u32>,
    /// Commitment to the workload, hex.
    pub commitment: Option<String>,
    /// The Job's price ceiling.
    pub max_price: Option<String>,
    /// What the Job's winner is to be paid, and the regions that it accepts.
    pub terms: Option<(Pricing, Vec<String>)>,
    /// Who the cluster says has the award: provider, seat, price.
    pub holder: Option<(String, i32, String)>,
    /// The devices that it is to be bound to.
    pub devices: Option<Claim>,
}

impl Binding {
    /// What the objects in the cluster claim.
    pub fn of(job: &ComputeJob, award: &Award) -> Self {
        let order = job.status.as_ref().and_then(|s| s.order.as_ref());
        Self {
            job_uid: Some(job.metadata.uid.clone().unwrap_or_default()),
            attempt: order.and_then(|o| u32::try_from(o.attempt).ok()),
            commitment: order.map(|o| o.commitment.clone()),
            max_price: Some(job.spec.max_price.0.clone()),
            terms: Some((job.spec.pricing, job.spec.regions.clone())),
            holder: Some((award.spec.provider.clone(), award.spec.seat, award.spec.price.0.clone())),
            devices: Claim::of(award),
        }
    }
}

/// What a verified award says.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Name of the market.
    pub market: String,
    /// Round of the award.
    pub round: u64,
    /// UID of the Job.
    pub job_uid: String,
    /// Name of the home cluster that signed the order.
    pub home: String,
    /// The winner.
    pub provider: String,
    /// Price per GPU-hour.
    pub price: String,
    /// Seats that take over, in this order: provider and price.
    pub stand_bys: Vec<(String, String)>,
    /// When the award stops binding, unless the workload was handed over before.
    pub expires_at: String,
    /// Whether one dealer made all the market's keys: for development only.
    pub insecure_keys: bool,
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} won round {} of market {:?} at {} per GPU-hour",
            self.provider, self.round, self.market, self.price
        )
    }
}

/// Runs the checks until one fails.
pub fn all(evidence: &Evidence, issuer: Option<&str>) -> (Vec<Check>, Option<Facts>) {
    let mut checks = vec![];
    let facts = run(evidence, issuer, &mut checks);
    (checks, facts)
}

fn run(evidence: &Evidence, issuer: Option<&str>, checks: &mut Vec<Check>) -> Option<Facts> {
    let record = market(evidence, issuer, checks)?;
    let certificate = certificate(evidence, &record, checks)?;
    let file: AwardFile = match serde_json::from_str(&evidence.award) {
        Ok(file) => file,
        Err(error) => return fail(checks, "award", format!("is not an award file: {error}")),
    };
    let home = match verify::order(&record, &file.order, &file.order_signature) {
        Ok(home) => record.home(home).map(|h| h.name.clone()).unwrap_or_default(),
        Err(error) => return fail(checks, "order", error.to_string()),
    };
    checks.push(Check::ok("order", format!("signed by home {home:?} for Job {}", file.order.job)));
    let award = match verify::award(&record, &certificate, &file) {
        Ok(award) => award,
        Err(error) => return fail(checks, "award", error.to_string()),
    };
    let name = |seat: u16| record.seat(seat).map(|s| s.provider.clone()).unwrap_or_default();
    let facts = Facts {
        market: record.name.clone(),
        round: certificate.round,
        job_uid: file.order.job.clone(),
        home,
        provider: name(award.seat),
        price: award.price.to_string(),
        stand_bys: award.stand_bys.iter().map(|s| (name(s.seat), s.price.to_string())).collect(),
        expires_at: time(file.proof.leaf.expires_ms),
        insecure_keys: record.key_origin == KeyOrigin::InsecureDealer,
    };
    let detail = format!(
        "certified: {} at {} per GPU-hour; ceiling {}",
        facts.provider, facts.price, file.order.requirements.max_price
    );
    checks.push(Check::ok("award", detail));
    binding(&evidence.binding, &file, &facts, checks)?;
    let holder = evidence.binding.holder.as_ref().map(|(_, seat, _)| *seat);
    let place = (record.market, certificate.round, holder);
    if let Some(check) = devices::check(evidence.binding.devices.as_ref(), &award, place) {
        let failed = check.level == Level::Fail;
        checks.push(check);
        if failed {
            return None;
        }
    }
    Some(facts)
}

fn fail<T>(checks: &mut Vec<Check>, name: &str, detail: impl Into<String>) -> Option<T> {
    let next = match name {
        "market" => "get the market record from its issuer, and give it with --market FILE",
        "certificate" | "award" => {
            "do not trust this award; ask any seat of the market for the round's certificate"
        }
        _ => "do not trust this award; it was made for something else",
    };
    checks.push(Check::fail(name, detail, next));
    None
}

fn market(evidence: &Evidence, issuer: Option<&str>, checks: &mut Vec<Check>) -> Option<MarketRecord> {
    let signed = match SignedMarketRecord::from_json(&evidence.record) {
        Ok(signed) => signed,
        Err(error) => return fail(checks, "market", format!("{}: {error}", evidence.record_source)),
    };
    let key = hex::encode(signed.issuer_key);
    if let Some(expected) = issuer.filter(|e| !e.eq_ignore_ascii_case(&key)) {
        return fail(
            checks,
            "market",
            format!("{} is signed by {key}, not by {expected}", evidence.record_source),
        );
    }
    let record = signed.record;
    let detail =
        format!("{:?}, {} seats, from {}, issuer {key}", record.name, record.n(), evidence.record_source);
    checks.push(Check::ok("market", detail));
    if evidence.record_from_cluster {
        checks.push(Check::warn(
            "trust root",
            "the record is this cluster's own; to trust nobody: --market FILE",
        ));
    }
    if record.key_origin == KeyOrigin::InsecureDealer {
        checks.push(Check::warn("keys", "one dealer made all keys of this market: for development only"));
    }
    Some(record)
}

fn certificate(evidence: &Evidence, record: &MarketRecord, checks: &mut Vec<Check>) -> Option<Certificate> {
    let file: CertificateFile = match serde_json::from_str(&evidence.certificate) {
        Ok(file) => file,
        Err(error) => return fail(checks, "certificate", format!("is not a certificate file: {error}")),
    };
    let certificate = match file.certificate(record.n()) {
        Ok(certificate) => certificate,
        Err(error) => return fail(checks, "certificate", error.to_string()),
    };
    match verify::certificate(record, &certificate) {
        Ok(()) => {}
        Err(error @ VerifyError::Epoch { found, .. }) => {
            let next = format!(
                "give the market record of epoch {found} with --market FILE; seats change their keys with each epoch"
            );
            checks.push(Check::fail("certificate", error.to_string(), &next));
            return None;
        }
        Err(error) => return fail(checks, "certificate", error.to_string()),
    }
    let signers: Vec<_> = certificate
        .quorum
        .signers
        .iter()
        .filter_map(|s| record.seat(s))
        .map(|s| s.provider.as_str())
        .collect();
    let detail = format!(
        "round {}, signed by {} of {} seats: {}",
        certificate.round,
        signers.len(),
        record.n(),
        signers.join(", ")
    );
    checks.push(Check::ok("certificate", detail));
    Some(certificate)
}

/// Whether the award is the one that is asked about.
fn binding(binding: &Binding, file: &AwardFile, facts: &Facts, checks: &mut Vec<Check>) -> Option<()> {
    let order = &file.order;
    let told = |what: &str, found: &str, expected: &str| {
        format!("{what} is {found:?} in the order, {expected:?} in the Job")
    };
    if let Some(uid) = binding.job_uid.as_ref().filter(|u| **u != order.job) {
        return fail(checks, "job", format!("the order is of Job {:?}, not of {uid:?}", order.job));
    }
    if let Some(attempt) = binding.attempt.filter(|a| *a != order.attempt) {
        return fail(checks, "job", told("attempt", &order.attempt.to_string(), &attempt.to_string()));
    }
    let commitment = hex::encode(order.commitment);
    if let Some(expected) = binding.commitment.as_ref().filter(|c| **c != commitment) {
        return fail(checks, "job", told("commitment", &commitment, expected));
    }
    let ceiling = order.requirements.max_price;
    if let Some(text) = binding.max_price.as_ref().filter(|p| p.parse::<Price>().ok() != Some(ceiling)) {
        return fail(checks, "job", told("maxPrice", &ceiling.to_string(), text));
    }
    let pricing = if order.terms.second_price { Pricing::SecondPrice } else { Pricing::FirstPrice };
    if let Some((expected, _)) = binding.terms.as_ref().filter(|(p, _)| *p != pricing) {
        return fail(checks, "job", told("pricing", &format!("{pricing:?}"), &format!("{expected:?}")));
    }
    // A list of the kind `set` may come back in another order.
    let set = |regions: &[String]| regions.iter().cloned().collect::<BTreeSet<_>>();
    let other = |(_, r): &&(Pricing, Vec<String>)| set(r) != set(&order.terms.regions);
    if let Some((_, expected)) = binding.terms.as_ref().filter(other) {
        return fail(checks, "job", told("regions", &order.terms.regions.join(","), &expected.join(",")));
    }
    if binding.job_uid.is_some() {
        checks.push(Check::ok("job", "the order is this Job's"));
    }
    if let Some(holder) = &binding.holder {
        self::holder(holder, file, facts, checks)?;
    }
    Some(())
}

/// Whether the cluster's Award names the certified winner or one of its stand-bys, each at its own price.
fn holder(
    (provider, seat, price): &(String, i32, String),
    file: &AwardFile,
    facts: &Facts,
    checks: &mut Vec<Check>,
) -> Option<()> {
    let Outcome::Award(award) = &file.proof.leaf.outcome else { return None };
    let named = price.parse::<Price>().ok();
    let winner = std::iter::once((award.seat, award.price, &facts.provider));
    let stand_bys =
        award.stand_bys.iter().zip(&facts.stand_bys).map(|(s, (name, _))| (s.seat, s.price, name));
    let rank = winner
        .chain(stand_bys)
        .position(|(s, p, name)| i32::from(s) == *seat && Some(p) == named && name == provider);
    match rank {
        Some(0) => checks.push(Check::ok("holder", format!("{provider} holds the award: the winner"))),
        Some(rank) => {
            checks.push(Check::ok("holder", format!("{provider} holds the award: stand-by {rank}")))
        }
        None => {
            let detail =
                format!("the Award names {provider} (seat {seat}) at {price}, which is not certified");
            return fail(checks, "holder", detail);
        }
    }
    Some(())
}
