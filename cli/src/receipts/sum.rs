//! What a file of receipts proves, and what it adds up to. Pure.
//!
//! Inputs: a file of anybody. Outputs: sums of what verified, and every fault. Invariant: a chain that does not verify adds
//! nothing to any sum.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use vendue_crds::UsageStatus;
use vendue_market::{Cost, Price};
use vendue_receipts::{
    ActivitySource, AwardId, Bill, Billed, Body, Chain, ChainName, Evidence, FILE_VERSION, FileAward,
    FileChain, Gap, GapReason, ReceiptsFile, Used, verify,
};

/// Between two writes of a Job's usage, and between two times that receipts are brought home.
const LAG_SECONDS: u64 = 60;
const SECOND_NS: u64 = 1_000_000_000;

/// What a device did, or all devices of a chain in a gap that names none.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The node, as the provider calls it.
    pub node: String,
    /// The device; none for gaps of all devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Nanoseconds of use, before and after the run too.
    pub used_ns: u64,
    /// Energy in windows of use, in millijoules; none where no record has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_mj: Option<u64>,
    /// Mean activity over the time for which it is known, by what is averaged.
    pub activity: BTreeMap<&'static str, f64>,
    /// The most memory in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// Xid events by code.
    pub xids: BTreeMap<u32, u64>,
    /// Milliseconds of gaps by reason.
    pub gaps_ms: BTreeMap<&'static str, u64>,
    /// Millionths times nanoseconds, and nanoseconds, by what is averaged.
    #[serde(skip)]
    pub(super) weights: BTreeMap<&'static str, (u128, u128)>,
}

/// A chain that verifies.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChainSums {
    /// The node, as the provider calls it.
    pub node: String,
    /// The key that opened it; that of the node's GpuNode, unless that was rotated since.
    pub public_key: String,
    /// Digest of the last record: it stands for all of them.
    pub head: String,
    /// Number of records.
    pub records: u64,
    /// Whether no record is to come.
    pub closed: bool,
}

/// What one award adds up to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AwardSums {
    /// Its id.
    pub id: String,
    /// Name of the Award object.
    pub name: String,
    /// Who runs it.
    pub provider: String,
    /// Price of a GPU-hour.
    pub price: String,
    /// Whether the run has ended.
    pub ended: bool,
    /// Whether every chain is closed: no record of it is to come.
    pub closed: bool,
    /// The chains that verify.
    pub chains: Vec<ChainSums>,
    /// Up to when there are records, in milliseconds since 1970; 0 without any.
    pub until_ms: u64,
    /// What is charged: what lies within the run.
    pub billed: Billed,
    /// By node and device.
    pub devices: Vec<Row>,
    /// What does not verify.
    pub faults: Vec<String>,
}

/// What a file adds up to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sums {
    /// Whether nothing is wrong with it.
    pub verified: bool,
    /// By award.
    pub awards: Vec<AwardSums>,
    /// All awards together.
    pub total: Billed,
    /// What is wrong.
    pub faults: Vec<String>,
}

impl Sums {
    /// Whether nothing more is to come: every award has ended and each of its chains is closed.
    pub fn is_whole(&self) -> bool {
        !self.awards.is_empty() && self.awards.iter().all(|award| award.ended && award.closed)
    }

    /// Notes one more fault.
    pub fn blame(&mut self, fault: String) {
        self.verified = false;
        self.faults.push(fault);
    }
}

/// Verifies and adds up a file.
pub fn sums(file: &ReceiptsFile) -> Sums {
    let mut spans = Spans::default();
    let awards: Vec<AwardSums> = file.awards.iter().map(|award| award_sums(award, &mut spans)).collect();
    let mut faults: Vec<String> = awards
        .iter()
        .flat_map(|award| award.faults.iter().map(|f| format!("award {}: {f}", award.id)))
        .collect();
    if file.version != FILE_VERSION {
        faults.push(format!("the file has version {}; accepted is {FILE_VERSION}", file.version));
    }
    faults.extend(spans.overlaps());
    let total = awards.iter().map(|award| award.billed).fold(Billed::default(), |sum, billed| Billed {
        // Awards of a job follow one another.
        used_ns: sum.used_ns.saturating_add(billed.used_ns),
        ..sum.and(billed)
    });
    Sums { verified: faults.is_empty(), awards, total, faults }
}

fn award_sums(award: &FileAward, spans: &mut Spans) -> AwardSums {
    let mut faults: Vec<String> = award.evidence.iter().filter_map(|e| told(e, &award.id)).collect();
    let terms = terms(award).unwrap_or_else(|fault| {
        faults.push(fault);
        Terms::default()
    });
    let (mut billed, mut rows, mut names) = (Billed::default(), Rows::default(), BTreeSet::new());
    let (mut chains, mut until_ms) = (vec![], 0);
    for found in &award.chains {
        let fail = |why: String| format!("chain of node {}: {why}", printable(&found.node));
        let chain = match verified(&award.id, found) {
            Ok(chain) => chain,
            Err(why) => {
                faults.push(fail(why));
                continue;
            }
        };
        let name = chain.opening_key().map(|key| ChainName::new(chain.award(), key));
        if !names.insert(name) {
            faults.push(fail("is there twice".to_owned()));
            continue;
        }
        let mut bill = Bill::new(terms.price_micros, terms.from_ms, terms.until_ms);
        found.records.iter().for_each(|record| bill.add(record));
        found.records.iter().for_each(|record| rows.add(&found.node, &record.body));
        spans.add(&award.id, found);
        billed = billed.and(bill.sums());
        chains.push(ChainSums {
            node: printable(&found.node),
            public_key: chain.opening_key().map(|key| key.to_string()).unwrap_or_default(),
            head: hex::encode(chain.head()),
            records: chain.totals().records,
            closed: chain.is_closed(),
        });
        until_ms = until_ms.max(chain.end_ms().saturating_add_signed(chain.clock_offset_ms()));
    }
    AwardSums {
        id: printable(&award.id),
        name: printable(&award.name),
        provider: printable(&award.provider),
        price: printable(&award.price),
        ended: award.ended_at.is_some(),
        closed: !chains.is_empty() && chains.iter().all(|chain| chain.closed),
        chains,
        until_ms,
        billed,
        devices: rows.finish(),
        faults,
    }
}

/// What evidence says. Two stories of one key are checked here, and are none if they do not prove it.
fn told(evidence: &Evidence, award: &str) -> Option<String> {
    match evidence {
        Evidence::Equivocation { records, .. } if records.first.award.to_string() == award => {
            let (key, at) = (records.verify().ok()?, records.first.sequence);
            Some(format!("key {key} signed two different records {at} of one chain"))
        }
        Evidence::Equivocation { .. } => None,
        Evidence::Refused { chain, sequence, reason } => Some(format!(
            "what the provider sent as record {sequence} of chain {} was refused: {}",
            printable(chain),
            printable(reason)
        )),
    }
}

/// What an award is charged by.
#[derive(Default)]
struct Terms {
    price_micros: u64,
    from_ms: u64,
    until_ms: Option<u64>,
}

fn terms(award: &FileAward) -> Result<Terms, String> {
    let price = award.price.parse::<Price>().map_err(|e| format!("price {:?}: {e}", award.price))?;
    let time = |what: &str, text: &Option<String>| {
        let ms = |text: &String| {
            let time = text.parse::<Timestamp>().map_err(|e| format!("{what} {text:?}: {e}"))?;
            u64::try_from(time.as_millisecond()).map_err(|_| format!("{what} {text:?} is before 1970"))
        };
        text.as_ref().map(ms).transpose()
    };
    let (from, until_ms) = (time("startedAt", &award.started_at)?, time("endedAt", &award.ended_at)?);
    // Before the start nothing is charged.
    Ok(Terms { price_micros: micros(price), from_ms: from.unwrap_or(u64::MAX), until_ms })
}

fn micros(price: Price) -> u64 {
    u64::try_from(price.micros()).unwrap_or_default()
}

fn verified(award: &str, chain: &FileChain) -> Result<Chain, String> {
    let award: AwardId = award.parse().map_err(|e: vendue_receipts::NameError| e.to_string())?;
    if chain.records.is_empty() {
        return Err("has no records".to_owned());
    }
    verify(award, None, 0, &chain.records).map_err(|e| e.to_string())
}

/// Text of others without what would steer a terminal.
pub fn printable(text: &str) -> String {
    if text.contains(char::is_control) { text.escape_default().to_string() } else { text.to_owned() }
}

#[derive(Default)]
struct Rows(BTreeMap<(String, Option<String>), Row>);

impl Rows {
    fn row(&mut self, node: &str, device: Option<&str>) -> &mut Row {
        let (node, device) = (printable(node), device.map(str::to_owned));
        let new = || Row { node: node.clone(), device: device.clone(), ..Row::default() };
        self.0.entry((node.clone(), device.clone())).or_insert_with(new)
    }

    fn add(&mut self, node: &str, body: &Body) {
        match body {
            Body::Used(used) => self.row(node, Some(used.device.as_str())).used(used),
            Body::Gap(gap) => self.row(node, gap.device.as_ref().map(|d| d.as_str())).gap(gap),
            Body::Opened(_) | Body::Clock(_) | Body::Rotated(_) | Body::Closed(_) => {}
        }
    }

    fn finish(self) -> Vec<Row> {
        let mean = |(sum, weight): (u128, u128)| sum as f64 / weight as f64 / 1e6;
        self.0
            .into_values()
            .map(|mut row| {
                let known = row.weights.iter().filter(|(_, (_, weight))| *weight > 0);
                row.activity = known.map(|(source, sums)| (*source, mean(*sums))).collect();
                row
            })
            .collect()
    }
}

impl Row {
    fn used(&mut self, used: &Used) {
        self.used_ns = self.used_ns.saturating_add(used.wall_ns);
        if let Some(energy) = used.energy {
            self.energy_mj = Some(self.energy_mj.unwrap_or(0).saturating_add(energy.used_mj));
        }
        if let Some(activity) = used.activity {
            let source = match activity.source {
                ActivitySource::SmActive => "smActive",
                ActivitySource::Utilization => "utilization",
            };
            let (sum, weight) = self.weights.entry(source).or_default();
            *sum = sum.saturating_add(u128::from(activity.average_millionths) * u128::from(used.wall_ns));
            *weight = weight.saturating_add(u128::from(used.wall_ns));
        }
        self.memory_peak_bytes = self.memory_peak_bytes.max(used.memory_peak_bytes);
        self.xids(used.xids.as_slice());
    }

    fn gap(&mut self, gap: &Gap) {
        let sum = self.gaps_ms.entry(word(gap.reason)).or_default();
        *sum = sum.saturating_add(gap.t1_ms.saturating_sub(gap.t0_ms));
        self.xids(gap.xids.as_slice());
    }

    fn xids(&mut self, xids: &[vendue_receipts::Xid]) {
        for xid in xids {
            *self.xids.entry(xid.code).or_default() += u64::from(xid.count);
        }
    }
}

/// A reason as records name it.
fn word(reason: GapReason) -> &'static str {
    match reason {
        GapReason::AgentDown => "agent_down",
        GapReason::Reboot => "reboot",
        GapReason::DeviceLost => "device_lost",
        GapReason::DeviceNotReadable => "device_not_readable",
        GapReason::CounterReset => "counter_reset",
        GapReason::StoreFailed => "store_failed",
        GapReason::DiskLost => "disk_lost",
        GapReason::Clock => "clock",
        GapReason::Suspend => "suspend",
    }
}

/// Windows of use by device over all chains: a device is in one place at a time. Chains of different nodes have different
/// clocks, but a device has one node.
#[derive(Default)]
struct Spans(BTreeMap<String, Vec<(u64, u64, String)>>);

impl Spans {
    fn add(&mut self, award: &str, chain: &FileChain) {
        for record in &chain.records {
            if let Body::Used(used) = &record.body {
                let place =
                    format!("record {} of node {} in award {award}", record.sequence, printable(&chain.node));
                let spans = self.0.entry(used.device.to_string()).or_default();
                spans.push((used.t0_ms, used.t1_ms, place));
            }
        }
    }

    /// The first overlap of each device.
    fn overlaps(self) -> Vec<String> {
        let overlap = |(device, mut spans): (String, Vec<(u64, u64, String)>)| {
            spans.sort();
            let found = spans.windows(2).find_map(|pair| match pair {
                [(_, end, first), (start, _, second)] if start < end => Some((first.clone(), second.clone())),
                _ => None,
            });
            found.map(|(first, second)| format!("device {device}: {second} overlaps {first}"))
        };
        self.0.into_iter().filter_map(overlap).collect()
    }
}

/// How what the Job's status says contradicts the receipts of the award that it speaks of, if it does. A status may be behind
/// them for a while, and for good when the run is over; while the rest of the receipts is on its way it may be ahead.
pub fn contradiction(award: &AwardSums, usage: &UsageStatus) -> Option<String> {
    let gpus = u64::try_from(usage.gpus).unwrap_or_default().max(1);
    let said_seconds = u64::try_from(usage.gpu_seconds).unwrap_or_default();
    let proven_seconds = award.billed.gpu_ns / SECOND_NS;
    let lag_seconds = gpus.saturating_mul(LAG_SECONDS);
    // Sums are rounded down to a second, and so is the end of the run for each GPU.
    let ahead = if award.ended && award.closed { gpus.saturating_add(1) } else { lag_seconds };
    let price = award.price.parse::<Price>().map(micros).unwrap_or_default();
    let cost_of = |seconds: u64| {
        let micros = u128::from(price) * u128::from(seconds) / 3_600;
        u64::try_from(micros).unwrap_or(u64::MAX).saturating_add(1)
    };
    let said_cost = usage.cost.0.parse::<Cost>().ok()?.micros();
    let said_cost = u64::try_from(said_cost).unwrap_or_default();
    let proven_cost = award.billed.cost_micros;
    let status = format!("the Job's status says {said_seconds} GPU-seconds and cost {}", usage.cost.0);
    let receipts = format!("the receipts prove {proven_seconds} and {}", decimal(proven_cost));
    let more = said_seconds > proven_seconds.saturating_add(ahead)
        || said_cost > proven_cost.saturating_add(cost_of(ahead));
    let behind = said_seconds.saturating_add(lag_seconds) < proven_seconds
        || said_cost.saturating_add(cost_of(lag_seconds)) < proven_cost;
    // What a node tells too long after the end is not charged.
    let less = behind && !award.ended;
    (more || less).then(|| format!("{status}; {receipts}"))
}

/// How the heads of chains in the Job's status contradict the chains, if they do: a head stands for all records up to it. Records
/// that the status knows of may still be on their way, unless the chains are closed.
pub fn other_heads(award: &FileAward, closed: bool, usage: &UsageStatus) -> Option<String> {
    let opened_by = |chain: &FileChain| match &chain.records.first()?.body {
        Body::Opened(opened) => Some(opened.public_key.to_string()),
        _ => None,
    };
    usage.receipts.iter().find_map(|told| {
        let (key, head) = (told.public_key.as_ref()?, told.head.as_ref()?);
        let last = usize::try_from(told.records).ok()?.checked_sub(1)?;
        let chain = award.chains.iter().find(|chain| opened_by(chain).as_ref() == Some(key));
        let node = printable(&told.node);
        match chain.and_then(|chain| chain.records.get(last)) {
            Some(record) if hex::encode(record.digest()) == *head => None,
            Some(_) => {
                Some(format!("record {last} of node {node} is another one than the Job's status names"))
            }
            None if closed => {
                Some(format!("the Job's status names {} records of node {node}, more than came", last + 1))
            }
            None => None,
        }
    })
}

/// Millionths as a decimal number.
pub fn decimal(micros: u64) -> String {
    i64::try_from(micros)
        .ok()
        .and_then(Cost::from_micros)
        .map_or_else(|| format!("{micros}e-6"), |c| c.to_string())
}

#[cfg(test)]
#[path = "sum_tests.rs"]
mod tests;
