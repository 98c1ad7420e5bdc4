//! Clearing on its own: microseconds for each order on which all seats bid, and how that grows with the orders.

use super::{BenchError, Plan, Report, Spread, timed};
use crate::requirements;
use std::collections::{BTreeMap, BTreeSet};
use vendue_market::{
    BidTerms, ClearingInput, ClearingRules, Digest, ListedOrder, NodeCapacity, OfferCapacity, OpenedBundle,
    Price, RecordKind, Requirements, Terms, clear, tagged_hash,
};

/// So many orders: each one's digest and what it needs, ascending.
fn orders(count: usize) -> Option<BTreeMap<Digest, Requirements>> {
    let one = |i: usize| {
        let requirements = requirements(1 + u32::from(i.is_multiple_of(4)), 100_000_000)?;
        Some((tagged_hash("bench", &[&i.to_be_bytes()]), requirements))
    };
    (0..count).map(one).collect()
}

/// Nodes of a seat, of eight GPUs each: a hundred seats have enough for the largest round.
const NODES: usize = 25;

/// What a seat says of all orders.
struct Bundle {
    seat: u16,
    provider: String,
    capacity: Vec<OfferCapacity>,
    records: Vec<RecordKind>,
}

impl Bundle {
    /// Bids on so many orders.
    fn new(seat: u16, orders: usize) -> Option<Self> {
        let node = NodeCapacity {
            model: "H100".parse().ok()?,
            gpu_memory_mib: 81_920,
            free_gpus: 8,
            cpu_millis: 128_000,
            memory_mib: 1_000_000,
            disk_mib: 1_000_000,
        };
        let record = |i: usize| {
            // Another seat is the cheapest for each order.
            let price = Price::from_micros(1_000_000 + (i as i64 * 31 + i64::from(seat) * 7_919) % 100_003)?;
            Some(RecordKind::Bid { price, spec: 0, terms: BidTerms::default() })
        };
        Some(Self {
            seat,
            provider: format!("provider-{seat}"),
            capacity: vec![OfferCapacity { nodes: vec![node; NODES] }],
            records: (0..orders).map(record).collect::<Option<_>>()?,
        })
    }

    fn opened<'a>(&'a self, orders: &'a [Digest]) -> OpenedBundle<'a> {
        let Self { seat, provider, capacity, records } = self;
        OpenedBundle { seat: *seat, provider, capacity, orders, records }
    }
}

pub(super) fn measure(plan: &Plan, report: &mut Report) -> Result<(), BenchError> {
    let missing = BenchError::Missing("no orders to clear");
    let rules = ClearingRules::default();
    let mut per_order = Vec::new();
    for count in &plan.cleared {
        let orders = orders(*count).ok_or(BenchError::Missing("no orders"))?;
        let bundles: Option<Vec<_>> = (0..plan.large).map(|seat| Bundle::new(seat, *count)).collect();
        let bundles = bundles.ok_or(BenchError::Missing("no bundles"))?;
        let view: Vec<Digest> = orders.keys().copied().collect();
        let bundles: Vec<OpenedBundle<'_>> = bundles.iter().map(|b| b.opened(&view)).collect();
        let terms = Terms::default();
        let listed: Vec<ListedOrder<'_>> = orders
            .iter()
            .map(|(digest, requirements)| {
                let ceiling = Some(requirements.max_price);
                ListedOrder { digest: *digest, requirements, terms: &terms, ceiling }
            })
            .collect();
        let mut times = Vec::new();
        for run in 0..plan.runs.clamp(1, 5) {
            let beacon = tagged_hash("bench", &[&run.to_be_bytes()]);
            let input = ClearingInput {
                rules: &rules,
                beacon: &beacon,
                expires_ms: 0,
                seats: plan.large,
                orders: &listed,
                bundles: &bundles,
                garbage: &BTreeSet::new(),
            };
            let (cleared, ms) = timed(|| clear(&input))?;
            if cleared.len() != *count {
                return Err(BenchError::Missing("orders got no outcome"));
            }
            times.push(ms * 1e3 / *count as f64);
        }
        let spread = Spread::of(times)?;
        report.detail(format!("clear_us_per_order_n100 of {count}"), spread.median);
        per_order.push((*count, spread));
    }
    let (Some((least, first)), Some((most, last))) = (per_order.first(), per_order.last()) else {
        return Err(missing);
    };
    let middle = per_order.get(per_order.len() / 2).map_or(*first, |(_, spread)| *spread);
    report.spread("clear_us_per_order_n100", middle);
    report.key("clear_us_per_order_n100_growth", last.median / first.median);
    report.detail("clear growth: from orders", *least as f64);
    report.detail("clear growth: to orders", *most as f64);
    Ok(())
}
