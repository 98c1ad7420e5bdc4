//! Clearing on its own: microseconds for each order on which all seats bid, and how that grows with the orders; and a round
//! that is made to cost much, in which nothing fits.

use super::{BenchError, Plan, Report, Spread, timed};
use crate::requirements;
use std::collections::{BTreeMap, BTreeSet};
use vendue_market::{
    BidTerms, ClearingInput, ClearingRules, Digest, ListedOrder, MAX_NODES, NodeCapacity, OfferCapacity,
    OpenedBundle, Price, RecordKind, Requirements, Terms, clear, tagged_hash,
};

/// So many orders: each one's digest and what it needs, ascending.
fn orders(count: usize) -> Option<BTreeMap<Digest, Requirements>> {
    let one = |i: usize| {
        let requirements = requirements(1 + u32::from(i.is_multiple_of(4)), 100_000_000)?;
        Some((tagged_hash("bench", &[&i.to_be_bytes()]), requirements))
    };
    (0..count).map(one).collect()
}

/// What a round in which nothing fits is called, before its number of orders.
pub const UNFIT: &str = "clear_unfit_ms_n100 of";

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
            capacity: vec![OfferCapacity::of(vec![node; NODES])],
            records: (0..orders).map(record).collect::<Option<_>>()?,
        })
    }

    /// Bids the lowest price on so many orders, with an offer of as many kinds of nodes as there may be and no room.
    fn unfit(seat: u16, orders: usize) -> Option<Self> {
        let mut bundle = Self::new(seat, orders)?;
        let node = bundle.capacity.first()?.nodes.first()?.clone();
        let kind = |i: usize| {
            let model = format!("seat-{seat}-kind-{}", i * 7 % MAX_NODES).parse().ok()?;
            Some(NodeCapacity { model, cpu_millis: 0, ..node.clone() })
        };
        bundle.capacity = vec![OfferCapacity::of((0..MAX_NODES).map(kind).collect::<Option<_>>()?)];
        let price = Price::from_micros(1)?;
        bundle.records = vec![RecordKind::Bid { price, spec: 0, terms: BidTerms::default() }; orders];
        Some(bundle)
    }

    fn opened<'a>(&'a self, orders: &'a [Digest]) -> OpenedBundle<'a> {
        let Self { seat, provider, capacity, records } = self;
        OpenedBundle { seat: *seat, provider, capacity, orders, records }
    }
}

/// The CPU time in milliseconds that clearing such a round takes, once for each beacon.
fn cleared(
    orders: &BTreeMap<Digest, Requirements>,
    bundles: &[Bundle],
    runs: usize,
) -> Result<Spread, BenchError> {
    let (rules, terms) = (ClearingRules::default(), Terms::default());
    let view: Vec<Digest> = orders.keys().copied().collect();
    let bundles: Vec<OpenedBundle<'_>> = bundles.iter().map(|b| b.opened(&view)).collect();
    let listed: Vec<ListedOrder<'_>> = orders
        .iter()
        .map(|(digest, requirements)| {
            let ceiling = Some(requirements.max_price);
            ListedOrder { digest: *digest, requirements, terms: &terms, ceiling }
        })
        .collect();
    let once = |run: usize| {
        let beacon = tagged_hash("bench", &[&run.to_be_bytes()]);
        let input = ClearingInput {
            rules: &rules,
            beacon: &beacon,
            expires_ms: 0,
            seats: u16::try_from(bundles.len()).unwrap_or(u16::MAX),
            orders: &listed,
            bundles: &bundles,
            garbage: &BTreeSet::new(),
        };
        let (cleared, ms) = timed(|| clear(&input))?;
        if cleared.len() != orders.len() {
            return Err(BenchError::Missing("orders got no outcome"));
        }
        Ok(ms)
    };
    Spread::of((0..runs).map(once).collect::<Result<_, _>>()?)
}

pub(super) fn measure(plan: &Plan, report: &mut Report) -> Result<(), BenchError> {
    let runs = plan.runs.clamp(1, 5);
    let mut per_order = Vec::new();
    for count in &plan.cleared {
        let orders = orders(*count).ok_or(BenchError::Missing("no orders"))?;
        let bundles: Option<Vec<_>> = (0..plan.large).map(|seat| Bundle::new(seat, *count)).collect();
        let bundles = bundles.ok_or(BenchError::Missing("no bundles"))?;
        let spread = cleared(&orders, &bundles, runs)?.map(|ms| ms * 1e3 / *count as f64);
        report.detail(format!("clear_us_per_order_n100 of {count}"), spread.median);
        per_order.push((*count, spread));
    }
    let (Some((least, first)), Some((most, last))) = (per_order.first(), per_order.last()) else {
        return Err(BenchError::Missing("no orders to clear"));
    };
    let middle = per_order.get(per_order.len() / 2).map_or(*first, |(_, spread)| *spread);
    report.spread("clear_us_per_order_n100", middle);
    report.key("clear_us_per_order_n100_growth", last.median / first.median);
    report.detail("clear growth: from orders", *least as f64);
    report.detail("clear growth: to orders", *most as f64);
    unfit(plan, report)
}

/// A third of the seats offer nodes of very many kinds on which no order of one home fits, and each order needs something
/// else.
fn unfit(plan: &Plan, report: &mut Report) -> Result<(), BenchError> {
    let count = plan.unfit;
    let mut orders = orders(count).ok_or(BenchError::Missing("no orders"))?;
    for (requirements, cpu) in orders.values_mut().zip(1_000_000..) {
        requirements.cpu_millis_per_worker = cpu;
    }
    let bundle = |seat| match seat % 3 {
        0 => Bundle::unfit(seat, count),
        _ => Bundle::new(seat, count),
    };
    let bundles: Option<Vec<_>> = (0..plan.large).map(bundle).collect();
    let bundles = bundles.ok_or(BenchError::Missing("no bundles"))?;
    let spread = cleared(&orders, &bundles, plan.runs.clamp(1, 5))?;
    report.detail(format!("{UNFIT} {count}"), spread.median);
    Ok(())
}
