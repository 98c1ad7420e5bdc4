//! What files add up to, and what is wrong with them.

use vendue_crds::{Decimal, NodeReceipts};

use super::super::tests::{AWARD, T, chain, file, gap, key, used};
use super::*;

fn faults(file: &ReceiptsFile) -> String {
    let sums = sums(file);
    assert_eq!(sums.verified, sums.faults.is_empty());
    sums.faults.join("\n")
}

#[test]
fn devices_gaps_and_what_is_charged() {
    let sums = sums(&file());
    assert_eq!((sums.faults.clone(), sums.is_whole()), (vec![], true));
    let award = &sums.awards[0];
    let chains: Vec<_> = award.chains.iter().map(|c| (c.node.as_str(), c.records, c.closed)).collect();
    assert_eq!((chains, award.until_ms), (vec![("n1", 5, true), ("n2", 5, true)], T + 30_000));
    assert_eq!(award.chains[0].public_key, key(1).public().to_string());
    assert_eq!(award.chains[0].head, hex::encode(file().awards[0].chains[0].records[4].digest()));
    // Of one node 25 seconds of the run, of the other 15 and a gap of 10.
    let billed = Billed {
        records: 5,
        used_ns: 25 * SECOND_NS,
        gpu_ns: 40 * SECOND_NS,
        gap_ns: 10 * SECOND_NS,
        energy_mj: 4 * 3_600_000,
        cost_micros: 40_000,
        until_ms: T + 30_000,
    };
    assert_eq!((award.billed, sums.total), (billed, billed));
    let rows: Vec<_> =
        award.devices.iter().map(|r| (r.node.as_str(), r.device.as_deref(), r.used_ns)).collect();
    let expected =
        [("n1", Some("GPU-1"), 30 * SECOND_NS), ("n2", None, 0), ("n2", Some("GPU-2"), 20 * SECOND_NS)];
    assert_eq!(rows, expected);
    let [one, all, _] = &award.devices[..] else { panic!("three rows") };
    assert_eq!((one.energy_mj, one.memory_peak_bytes), (Some(3 * 3_600_000), Some(80 << 30)));
    assert_eq!(
        (&one.activity, &one.xids),
        (&BTreeMap::from([("smActive", 0.75)]), &BTreeMap::from([(79, 1)]))
    );
    assert_eq!(all.gaps_ms, BTreeMap::from([("agent_down", 10_000)]));
}

#[test]
fn a_job_that_runs_is_charged_so_far_and_one_that_has_not_begun_is_not() {
    let mut running = file();
    running.awards[0].ended_at = None;
    running.awards[0].chains[0].records.pop();
    let found = sums(&running);
    assert!(found.verified && !found.is_whole() && !found.awards[0].closed);
    assert_eq!(found.total.gpu_ns, 40 * SECOND_NS);
    running.awards[0].started_at = None;
    assert_eq!(sums(&running).total.cost_micros, 0);
}

#[test]
fn chains_that_do_not_verify_add_nothing() {
    let mut bad = file();
    bad.awards[0].chains[0].records.remove(2);
    let found = sums(&bad);
    assert!(found.faults[0].contains("chain of node n1: record 2: has sequence 3"), "{:?}", found.faults);
    assert_eq!(found.total.gpu_ns, 15 * SECOND_NS);
    let mut foreign = file();
    foreign.awards[0].id = "ffffffffffffffff".into();
    assert!(faults(&foreign).contains(&format!("is of award {AWARD}")));
    let mut twice = file();
    let copy = twice.awards[0].chains[0].clone();
    twice.awards[0].chains.push(copy);
    assert!(faults(&twice).contains("is there twice"));
    assert_eq!(sums(&twice).total.gpu_ns, 40 * SECOND_NS);
    let mut empty = file();
    empty.awards[0].chains[0].records.clear();
    assert!(faults(&empty).contains("has no records"));
}

#[test]
fn a_device_that_is_metered_twice_at_a_time_is_found() {
    let mut double = file();
    double.awards[0].chains[1].records = chain(&key(2), vec![used("GPU-1", 15)], Some(30));
    let text = faults(&double);
    assert!(text.contains("device GPU-1: record") && text.contains("overlaps"), "{text}");
    let mut touching = file();
    touching.awards[0].chains[1].records = chain(&key(2), vec![gap(0, 30), used("GPU-1", 30)], Some(40));
    assert_eq!(faults(&touching), "");
}

#[test]
fn words_of_the_cluster_are_read_or_told() {
    let with = |change: &dyn Fn(&mut FileAward)| {
        let mut file = file();
        change(&mut file.awards[0]);
        faults(&file)
    };
    assert!(with(&|a| a.price = "free".into()).contains("price \"free\""));
    assert!(with(&|a| a.started_at = Some("noon".into())).contains("startedAt \"noon\""));
    assert!(with(&|a| a.ended_at = Some("1969-01-01T00:00:00Z".into())).contains("before 1970"));
    assert!(
        !with(&|a| a.evidence =
            vec![Evidence::Refused { chain: "c\x1b[2J".into(), sequence: 1, reason: "r".into() }])
        .contains('\x1b')
    );
}

#[test]
fn a_status_may_lag_but_not_lead() {
    let usage = |gpu_seconds: i64, cost: &str| UsageStatus {
        gpus: 2,
        gpu_seconds,
        cost: Decimal(cost.into()),
        ..UsageStatus::default()
    };
    let closed = sums(&file()).awards[0].clone();
    let open = AwardSums { closed: false, ..closed.clone() };
    assert_eq!(contradiction(&closed, &usage(40, "0.04")), None);
    assert_eq!(contradiction(&closed, &usage(0, "0.00")), None, "two minutes of GPU time behind at most");
    assert_eq!(contradiction(&closed, &usage(43, "0.043")), None, "a second of each GPU and one of rounding");
    assert!(contradiction(&closed, &usage(44, "0.04")).is_some());
    assert!(contradiction(&closed, &usage(40, "0.043002")).is_some());
    assert_eq!(contradiction(&open, &usage(160, "0.16")), None, "the rest is on its way");
    assert!(contradiction(&open, &usage(161, "0.16")).is_some());
    let long = AwardSums { billed: Billed { gpu_ns: 200 * SECOND_NS, ..closed.billed }, ..closed };
    assert_eq!(contradiction(&long, &usage(79, "0.04")), None, "told too late to be charged");
    let running = AwardSums { ended: false, closed: false, ..long };
    assert_eq!(contradiction(&running, &usage(80, "0.04")), None);
    assert!(contradiction(&running, &usage(79, "0.04")).is_some(), "far behind");
}

#[test]
fn a_status_that_names_another_record_is_told() {
    let award = file().awards[0].clone();
    let told = |by: u8, records: i64, head: String| NodeReceipts {
        node: "n1".into(),
        public_key: Some(key(by).public().to_string()),
        head: Some(head),
        records,
    };
    let usage = |told: NodeReceipts| UsageStatus { receipts: vec![told], ..UsageStatus::default() };
    let digest = |at: usize| hex::encode(award.chains[0].records[at].digest());
    let check = |closed, told| other_heads(&award, closed, &usage(told));
    assert_eq!(check(true, told(1, 5, digest(4))), None);
    assert_eq!(check(true, told(1, 2, digest(1))), None, "an earlier head");
    assert_eq!(check(true, NodeReceipts { node: "n1".into(), ..NodeReceipts::default() }), None, "none yet");
    assert!(check(true, told(1, 2, digest(2))).unwrap().contains("record 1 of node n1 is another one"));
    assert_eq!(check(false, told(1, 6, "00".repeat(32))), None, "it is on its way");
    assert!(check(true, told(1, 6, "00".repeat(32))).unwrap().contains("more than came"));
    assert!(
        check(true, told(3, 1, digest(0))).unwrap().contains("more than came"),
        "of a chain that did not come"
    );
}
