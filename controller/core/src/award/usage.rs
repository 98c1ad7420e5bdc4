//! What a run used and costs: what receipts say, and nothing else.
//!
//! Inputs: start and end of the run, GPUs, price, bills of the nodes. Outputs: a [`UsageStatus`]. Invariants: without
//! receipts nothing accrues; no more is charged than all GPUs of the award over the whole run; usage shrinks twice at most:
//! to what the run can have when its end is known, and to what receipts prove when all of them are in.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use vendue_crds::{AwardRuntimeStatus, Decimal, NodeReceipts, UsageStatus};
use vendue_market::{Cost, Digest, Price};
use vendue_receipts::{Bill, Billed, DeviceId, cost_micros};

/// Seconds between two writes of usage while nothing else changes; each write reaches home over the network.
pub const WRITE_EVERY_SECONDS: i64 = 30;

/// Seconds from the moment that a run was found to be over, in which its last receipts are waited for: agents tell every few
/// seconds, and after an error within ten.
pub const RECEIPTS_GRACE_SECONDS: i64 = 25;

/// What clocks of a node and of this process may differ while a run goes on.
const SKEW: SignedDuration = SignedDuration::from_secs(5);

/// What of receipts is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Price of a GPU-hour in millionths.
    pub price_micros: u64,
    /// The start, in milliseconds since 1970.
    pub from_ms: u64,
    /// The end, once there is one.
    pub until_ms: Option<u64>,
}

/// What one chain of a node adds up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeBill {
    /// The node.
    pub node: String,
    /// The key that opened the chain.
    pub public_key: String,
    /// Digest of the last record.
    pub head: Digest,
    /// Records of the chain.
    pub records: u64,
    /// Whether the chain has ended.
    pub closed: bool,
    /// Up to when each device has records, in milliseconds since 1970.
    pub devices: BTreeMap<DeviceId, u64>,
    /// What of it is charged.
    pub sums: Billed,
}

impl Run {
    /// The run of an award; `None` before the entry point started.
    pub fn of(runtime: &AwardRuntimeStatus, price: Price) -> Option<Self> {
        // Whole seconds, as the status says them: who reads it comes to the same sums.
        let ms = |at: Timestamp| u64::try_from(at.as_second()).unwrap_or(0).saturating_mul(1_000);
        Some(Self {
            price_micros: u64::try_from(price.micros()).unwrap_or(0),
            from_ms: ms(runtime.started_at.as_ref()?.0),
            until_ms: runtime.ended_at.as_ref().map(|t| ms(t.0)),
        })
    }

    /// A bill over this run.
    pub fn bill(self) -> Bill {
        Bill::new(self.price_micros, self.from_ms, self.until_ms)
    }
}

/// Usage before the first receipt: the nodes whose receipts count.
pub fn begin<'a>(gpus: u32, nodes: impl IntoIterator<Item = &'a str>) -> UsageStatus {
    let receipts =
        nodes.into_iter().map(|node| NodeReceipts { node: node.to_owned(), ..NodeReceipts::default() });
    UsageStatus {
        gpus: i32::try_from(gpus).unwrap_or(i32::MAX),
        cost: Decimal::from(Cost::ZERO),
        receipts: receipts.collect(),
        ..UsageStatus::default()
    }
}

/// Usage with what receipts say now. Nodes that the award never had say nothing here.
pub fn usage(old: &UsageStatus, run: Run, bills: &[NodeBill], restarts: i32, now: Timestamp) -> UsageStatus {
    let of_award = |bill: &&NodeBill| old.receipts.iter().any(|r| r.node == bill.node);
    let bills: Vec<&NodeBill> = bills.iter().filter(of_award).collect();
    let sums = bills.iter().fold(Billed::default(), |sums, bill| sums.and(bill.sums));
    let gpu_ns = sums.gpu_ns.min(most(run, old.gpus, now));
    let cost = match gpu_ns == sums.gpu_ns {
        true => sums.cost_micros,
        false => cost_micros(run.price_micros, gpu_ns).unwrap_or(u64::MAX),
    };
    let receipts: Vec<NodeReceipts> = old.receipts.iter().map(|r| told(r, &bills)).collect();
    let complete = run.until_ms.is_some_and(|until_ms| is_complete(&receipts, old.gpus, &bills, until_ms));
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    UsageStatus {
        gpus: old.gpus,
        seconds: signed(sums.used_ns / 1_000_000_000),
        gpu_seconds: signed(gpu_ns / 1_000_000_000),
        cost: Decimal::from(Cost::from_micros(signed(cost)).unwrap_or_default()),
        restarts,
        energy_joules: signed(sums.energy_mj / 1_000),
        gap_seconds: signed(sums.gap_ns / 1_000_000_000),
        complete,
        receipts,
    }
}

/// Whether nothing of the run is to come: every chain is closed, or as many devices as the award held have told up to the end,
/// some on each node. A device that a worker left before the end tells no more, so not every one that was ever used has to.
fn is_complete(nodes: &[NodeReceipts], gpus: i32, bills: &[&NodeBill], until_ms: u64) -> bool {
    let (mut told, mut all_closed) = (0, true);
    for node in nodes {
        let of_node: Vec<&NodeBill> = bills.iter().copied().filter(|bill| bill.node == node.node).collect();
        let mut devices = BTreeSet::new();
        for bill in &of_node {
            let up_to_end = bill.devices.iter().filter(|(_, told_ms)| bill.closed || **told_ms >= until_ms);
            devices.extend(up_to_end.map(|(device, _)| device));
        }
        let closed = of_node.iter().all(|bill| bill.closed);
        if of_node.is_empty() || (devices.is_empty() && !closed) {
            return false;
        }
        told += devices.len();
        all_closed &= closed;
    }
    all_closed || told >= usize::try_from(gpus).unwrap_or(0)
}

/// Nanoseconds that all GPUs can have run by now.
fn most(run: Run, gpus: i32, now: Timestamp) -> u64 {
    let now = now.checked_add(SKEW).unwrap_or(now).as_millisecond();
    let until = run.until_ms.unwrap_or(u64::try_from(now).unwrap_or(0));
    let length_ns = until.saturating_sub(run.from_ms).saturating_mul(1_000_000);
    length_ns.saturating_mul(u64::try_from(gpus).unwrap_or(0))
}

/// The chain of a node that is told in the status: of several, the one with the most records.
fn told(old: &NodeReceipts, bills: &[&NodeBill]) -> NodeReceipts {
    let of_node = bills.iter().filter(|bill| bill.node == old.node);
    let Some(bill) = of_node.max_by_key(|bill| bill.records) else { return old.clone() };
    NodeReceipts {
        node: old.node.clone(),
        public_key: Some(bill.public_key.clone()),
        head: Some(hex::encode(bill.head)),
        records: i64::try_from(bill.records).unwrap_or(i64::MAX),
    }
}

/// The usage to write: the old one while it is fresh and the run goes on, or when the new one says less because a receiver lost
/// records. What is complete is what is charged, even if it is less: while the run went on its end was not known. After that
/// nothing changes.
pub fn throttled(old: &UsageStatus, new: UsageStatus, run: Run) -> UsageStatus {
    if old.complete {
        return old.clone();
    }
    let ended = run.until_ms.is_some();
    let less = new.gpu_seconds < old.gpu_seconds && !new.complete;
    let fresh = old.seconds > 0 && new.seconds - old.seconds < WRITE_EVERY_SECONDS;
    let same = old.restarts == new.restarts;
    if less || (!ended && same && fresh) { within(old, run) } else { new }
}

/// Usage without what lies beyond the end of the run, which was counted before the end was known.
pub fn within(usage: &UsageStatus, run: Run) -> UsageStatus {
    let Some(until_ms) = run.until_ms else { return usage.clone() };
    let seconds = |ns: u64| i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX);
    let length_ns = until_ms.saturating_sub(run.from_ms).saturating_mul(1_000_000);
    let most_ns = length_ns.saturating_mul(u64::try_from(usage.gpus).unwrap_or(0));
    let mut usage = usage.clone();
    usage.seconds = usage.seconds.min(seconds(length_ns));
    if usage.gpu_seconds > seconds(most_ns) {
        usage.gpu_seconds = seconds(most_ns);
        let cost = cost_micros(run.price_micros, most_ns).and_then(|micros| i64::try_from(micros).ok());
        usage.cost = Decimal::from(cost.and_then(Cost::from_micros).unwrap_or_default());
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    const START: i64 = 1_800_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(START + second).unwrap()
    }

    fn run(until: Option<i64>) -> Run {
        let runtime = AwardRuntimeStatus {
            started_at: Some(Time(at(0))),
            ended_at: until.map(|second| Time(at(second))),
            ..AwardRuntimeStatus::default()
        };
        Run::of(&runtime, "1.80".parse().unwrap()).unwrap()
    }

    /// Receipts of a node with two GPUs over so many seconds.
    fn bill(node: &str, seconds: u64) -> NodeBill {
        let ns = seconds * 1_000_000_000;
        NodeBill {
            node: node.to_owned(),
            public_key: "02".into(),
            head: [7; 32],
            records: seconds / 10,
            closed: false,
            devices: ["GPU-0", "GPU-1"]
                .map(|d| (d.parse().unwrap(), (START as u64 + seconds) * 1_000))
                .into(),
            sums: Billed {
                records: seconds / 10,
                used_ns: ns,
                gpu_ns: 2 * ns,
                gap_ns: 0,
                energy_mj: seconds * 700_000,
                cost_micros: seconds * 1_000,
                until_ms: (START as u64 + seconds) * 1_000,
            },
        }
    }

    #[test]
    fn no_receipt_no_accrual() {
        let old = begin(2, ["n1"]);
        assert_eq!(Run::of(&AwardRuntimeStatus::default(), "1.80".parse().unwrap()), None);
        let none = usage(&old, run(None), &[], 0, at(1_000));
        assert_eq!(none, old, "whatever time passes");
        let foreign = usage(&old, run(None), &[bill("n2", 100)], 0, at(1_000));
        assert_eq!(foreign, old, "a node that the award never had charges nothing");
        let some = usage(&old, run(None), &[bill("n1", 100)], 1, at(1_000));
        assert_eq!((some.seconds, some.gpu_seconds, some.cost.0.as_str()), (100, 200, "0.10"));
        assert_eq!((some.energy_joules, some.restarts, some.complete), (70_000, 1, false));
        let expected = NodeReceipts {
            node: "n1".into(),
            public_key: Some("02".into()),
            head: Some("07".repeat(32)),
            records: 10,
        };
        assert_eq!(some.receipts, [expected]);
    }

    #[test]
    fn it_is_complete_when_every_node_told_up_to_the_end() {
        let old = begin(4, ["n1", "n2"]);
        let complete = |bills: &[NodeBill], run: Run| usage(&old, run, bills, 0, at(200)).complete;
        let both = [bill("n1", 100), bill("n2", 110)];
        assert!(complete(&both, run(Some(100))));
        assert!(!complete(&both, run(Some(101))), "a node is behind");
        assert!(!complete(&both[..1], run(Some(100))), "a node never told");
        assert!(!complete(&both, run(None)), "it goes on");
        let closed = [NodeBill { closed: true, ..bill("n1", 100) }, bill("n2", 110)];
        assert!(complete(&closed, run(Some(101))));
    }

    #[test]
    fn it_is_complete_when_as_many_devices_as_were_held_told_up_to_the_end() {
        let old = begin(2, ["n1"]);
        let complete = |bill: NodeBill| usage(&old, run(Some(100)), &[bill], 0, at(200)).complete;
        let until = |devices: &[(&str, u64)]| NodeBill {
            devices: devices.iter().map(|(d, s)| (d.parse().unwrap(), (START as u64 + s) * 1_000)).collect(),
            ..bill("n1", 100)
        };
        assert!(!complete(until(&[("GPU-0", 110), ("GPU-1", 90)])), "one of two is behind");
        assert!(!complete(until(&[("GPU-0", 110)])), "one was never heard of");
        assert!(complete(until(&[("GPU-0", 110), ("GPU-1", 100)])));
        assert!(complete(until(&[("GPU-0", 110), ("GPU-1", 50), ("GPU-2", 110)])), "a worker was replaced");
        assert!(complete(NodeBill { closed: true, ..until(&[("GPU-0", 90)]) }), "nothing can come");
        // The same node told in two chains, because its key is another one now.
        let two =
            [until(&[("GPU-0", 110)]), NodeBill { public_key: "03".into(), ..until(&[("GPU-0", 110)]) }];
        assert!(!usage(&old, run(Some(100)), &two, 0, at(200)).complete, "a device counts once");
    }

    #[test]
    fn more_than_the_run_of_all_gpus_is_never_charged() {
        let old = begin(1, ["n1"]);
        let two_for_one = usage(&old, run(Some(100)), &[bill("n1", 100)], 0, at(200));
        assert_eq!((two_for_one.gpu_seconds, two_for_one.cost.0.as_str()), (100, "0.05"));
        let ahead = usage(&begin(2, ["n1"]), run(None), &[bill("n1", 104)], 0, at(100));
        assert_eq!(ahead.gpu_seconds, 208, "clocks differ a little");
    }

    #[test]
    fn writes_are_spaced_and_never_less_while_receipts_may_come() {
        let old = usage(&begin(2, ["n1"]), run(None), &[bill("n1", 100)], 0, at(100));
        let step = |seconds| usage(&old, run(None), &[bill("n1", seconds)], 0, at(seconds as i64));
        assert_eq!(throttled(&begin(2, ["n1"]), step(10), run(None)), step(10), "the first at once");
        assert_eq!(throttled(&old, step(129), run(None)), old);
        assert_eq!(throttled(&old, step(130), run(None)), step(130));
        assert_eq!(throttled(&old, step(101), run(Some(500))), step(101));
        assert_eq!(
            throttled(&old, step(99), run(Some(500))),
            old,
            "a receiver that lost records takes nothing back"
        );
        let restarted = UsageStatus { restarts: 1, ..step(101) };
        assert_eq!(throttled(&old, restarted.clone(), run(None)), restarted);
    }
    #[test]
    fn what_was_counted_beyond_the_end_is_taken_back() {
        let while_running = usage(&begin(2, ["n1"]), run(None), &[bill("n1", 128)], 0, at(130));
        // The head was silent; the run had ended at 100. Of the receipts up to then one device's are here.
        let part =
            NodeBill { sums: Billed { gpu_ns: 50_000_000_000, ..bill("n1", 50).sums }, ..bill("n1", 50) };
        let new = usage(&while_running, run(Some(100)), &[part], 0, at(131));
        let cut = throttled(&while_running, new, run(Some(100)));
        let told = |usage: &UsageStatus| (usage.seconds, usage.gpu_seconds, usage.cost.0.clone());
        assert_eq!(told(&cut), (100, 200, "0.10".to_owned()), "never more than the run of all GPUs");
        assert!(!cut.complete);
        // All records are in, and prove less: a gap of ten seconds.
        let proven = Billed {
            gpu_ns: 180_000_000_000,
            used_ns: 90_000_000_000,
            cost_micros: 90_000,
            ..bill("n1", 100).sums
        };
        let all = NodeBill { sums: proven, ..bill("n1", 100) };
        let last = throttled(&cut, usage(&cut, run(Some(100)), &[all], 0, at(132)), run(Some(100)));
        assert_eq!((told(&last), last.complete), ((90, 180, "0.09".to_owned()), true));
        let lost = usage(&last, run(Some(100)), &[], 0, at(140));
        assert_eq!(throttled(&last, lost, run(Some(100))), last, "once");
    }
}
