//! Receipts from a fake cluster and from files, and files that somebody changed.

use std::path::PathBuf;

use serde_json::{Value, json};
use vendue_receipts::{
    Activity, ActivitySource, AwardId, Body, BootId, Chain, Closed, Energy, Equivocation, Evidence,
    FileAward, FileChain, Gap, GapReason, NodeKey, Opened, Record, Used, Xids,
};

use super::*;
use crate::cluster::tests::{fake, status};

/// 2026-06-01 12:00:00 UTC.
pub const T: u64 = 1_780_315_200_000;
pub const AWARD: &str = "0011223344556677";

pub fn key(n: u8) -> NodeKey {
    NodeKey::from_bytes(&[n; 32]).unwrap()
}

/// A window of ten seconds that begins so many seconds after `T`.
pub fn used(gpu: &str, second: u64) -> Body {
    let mut xids = Xids::default();
    xids.add(79);
    Body::Used(Used {
        device: gpu.parse().unwrap(),
        t0_ms: T + second * 1_000,
        t1_ms: T + (second + 10) * 1_000,
        wall_ns: 10_000_000_000,
        energy: Some(Energy { used_mj: 3_600_000, counter_mj: 3_600_000 * (second + 10) }),
        activity: Some(Activity { source: ActivitySource::SmActive, average_millionths: 750_000 }),
        memory_peak_bytes: Some(80 << 30),
        xids: if second == 0 { xids } else { Xids::default() },
        driver: "580.95.05".parse().unwrap(),
    })
}

/// A chain of the award: an opening at `T`, these bodies, a close at this second if any.
pub fn chain(by: &NodeKey, bodies: Vec<Body>, closed: Option<u64>) -> Vec<Record> {
    let mut chain = Chain::new(AWARD.parse().unwrap(), 0);
    let opened = Body::Opened(Opened { public_key: by.public(), boot: BootId([1; 16]), time_ms: T });
    let end = closed.map(|second| Body::Closed(Closed { time_ms: T + second * 1_000 }));
    let all = [opened].into_iter().chain(bodies).chain(end);
    all.map(|body| chain.sign(body, by).unwrap()).collect()
}

/// A gap of all devices.
pub fn gap(from: u64, to: u64) -> Body {
    let (device, reason, energy) = (None, GapReason::AgentDown, None);
    let (t0_ms, t1_ms) = (T + from * 1_000, T + to * 1_000);
    Body::Gap(Gap { device, t0_ms, t1_ms, reason, energy, xids: Xids::default() })
}

/// Half a minute of one GPU on each of two nodes, the second with a gap; the run began five seconds late.
pub fn file() -> ReceiptsFile {
    let one = chain(&key(1), vec![used("GPU-1", 0), used("GPU-1", 10), used("GPU-1", 20)], Some(30));
    let two = chain(&key(2), vec![used("GPU-2", 0), gap(10, 20), used("GPU-2", 20)], Some(30));
    let award = FileAward {
        id: AWARD.into(),
        name: "digits-1".into(),
        provider: "alpha".into(),
        price: "3.60".into(),
        started_at: Some("2026-06-01T12:00:05Z".into()),
        ended_at: Some("2026-06-01T12:00:30Z".into()),
        chains: [("n1", one), ("n2", two)]
            .map(|(node, records)| FileChain { node: node.into(), records })
            .into(),
        ..FileAward::default()
    };
    let job = FileJob { namespace: "team".into(), name: "digits".into(), uid: "u-1".into() };
    ReceiptsFile { version: 1, job, awards: vec![award] }
}

fn usage(gpu_seconds: i64, cost: &str) -> Value {
    json!({ "gpus": 2, "seconds": gpu_seconds / 2, "gpuSeconds": gpu_seconds, "cost": cost })
}

/// A cluster with this file and a Job whose status says this usage.
fn cluster(file: &ReceiptsFile, usage: Value) -> Target {
    let file = serde_json::to_vec(file).unwrap();
    let job = json!({
        "apiVersion": "vendue.dev/v1alpha1", "kind": "Job", "metadata": { "name": "digits", "namespace": "team" },
        "spec": { "maxPrice": "4", "runDeadlineSeconds": 60 },
        "status": {
            "award": { "name": "digits-1", "provider": "alpha", "price": "3.60", "round": 7 },
            "usage": usage,
        },
    });
    let answer = move |uri: &str| {
        (200, if uri.contains("stream.") { file.clone() } else { serde_json::to_vec(&job).unwrap() })
    };
    fake(Box::new(answer)).0
}

fn options() -> ReceiptOptions {
    ReceiptOptions { job: Some("digits".into()), ..ReceiptOptions::default() }
}

#[tokio::test]
async fn a_status_that_agrees_passes_and_the_file_is_saved_as_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("receipts.json");
    let target = cluster(&file(), usage(40, "0.04"));
    let options = ReceiptOptions { save: Some(path.clone()), ..options() };
    run(&target, &options, Output::Json).await.unwrap();
    assert_eq!(parse(&fs::read(&path).unwrap(), "f").unwrap(), file());
    run_file(&path, Output::Text).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_status_that_says_more_than_the_receipts_is_told() {
    for usage in [usage(44, "0.04"), usage(40, "0.05")] {
        let error = run(&cluster(&file(), usage), &options(), Output::Text).await.unwrap_err();
        assert!(error.to_string().contains("the receipts prove 40 and 0.04"), "{error}");
        assert_eq!(error.exit_code(), 1);
        assert!(error.next_step().is_some());
    }
}

#[tokio::test]
async fn what_the_server_says_is_told() {
    let (target, seen) = fake(Box::new(|_| status(403, "user \"eve\" cannot get jobs/receipts")));
    let error = run(&target, &options(), Output::Text).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "read the receipts of Job team/digits: user \"eve\" cannot get jobs/receipts"
    );
    assert_eq!(error.exit_code(), 3);
    let path = "GET /apis/stream.vendue.dev/v1alpha1/namespaces/team/jobs/digits/receipts";
    assert_eq!(*seen.lock().unwrap(), [path]);
    let none = ReceiptsFile { awards: vec![], ..file() };
    let error = run(&cluster(&none, usage(0, "0")), &options(), Output::Text).await.unwrap_err();
    assert!(error.to_string().contains("was not handed over") && error.next_step().is_some(), "{error}");
}

#[tokio::test]
async fn who_waits_asks_how_far_they_are_and_fetches_them_twice() {
    let mut running = file();
    running.awards[0].chains[1].records.pop();
    let heads = |closed: bool| {
        let chain = |node: &str, closed| json!({ "name": node, "node": node, "records": 5, "untilMs": T, "closed": closed });
        let award = json!({ "id": AWARD, "endedAt": "2026-06-01T12:00:30Z", "chains": [chain("n1", true), chain("n2", closed)] });
        json!({ "version": 1, "job": running.job, "awards": [award] })
    };
    let answers = [
        serde_json::to_vec(&running).unwrap(),
        serde_json::to_vec(&heads(false)).unwrap(),
        serde_json::to_vec(&heads(false)).unwrap(),
        serde_json::to_vec(&heads(true)).unwrap(),
        serde_json::to_vec(&file()).unwrap(),
    ];
    let answers = std::sync::Mutex::new(answers.into_iter());
    let (target, seen) = fake(Box::new(move |_| (200, answers.lock().unwrap().next().unwrap())));
    let (_, found, sums) = whole(&target, Some(Duration::from_secs(600)), Duration::ZERO).await.unwrap();
    assert!(sums.is_whole() && found == file());
    let asked: Vec<bool> = seen.lock().unwrap().iter().map(|uri| uri.ends_with("?heads=true")).collect();
    assert_eq!(asked, [false, true, true, true, false]);
    let line = table::progress(&serde_json::from_value(heads(false)).unwrap());
    assert!(line.contains("the Job has ended; 10 records") && line.contains("1 of 2 chains"), "{line}");
}

#[tokio::test]
async fn who_waits_gets_the_last_records_or_is_told_that_they_are_missing() {
    let mut running = file();
    running.awards[0].chains[1].records.pop();
    let waiting = |wait| ReceiptOptions { wait: Some(wait), ..options() };
    let error = run(&cluster(&running, usage(40, "0.04")), &waiting(0), Output::Text).await.unwrap_err();
    assert!(error.to_string().contains("more records may still come"), "{error}");
    run(&cluster(&running, usage(40, "0.04")), &options(), Output::Text).await.unwrap();
    run(&cluster(&file(), usage(40, "0.04")), &waiting(0), Output::Text).await.unwrap();
    // What does not verify is not waited for.
    running.awards[0].chains[0].records[1].signature[3] ^= 1;
    let error = run(&cluster(&running, usage(40, "0.04")), &waiting(600), Output::Text).await.unwrap_err();
    assert!(error.to_string().starts_with("not verified"), "{error}");
}

#[test]
fn people_read_devices_gaps_keys_and_cost() {
    let file = file();
    let text = table::text(&file.job, &sum::sums(&file));
    let key = key(1).public();
    for line in [
        "award 0011223344556677 of alpha at 3.60 per GPU-hour",
        "n1    GPU-1  30s   3.00 Wh  75 % of SMs  80.0 GiB     79 x1  -",
        "n2    all    0s    -        -            -            -      10s agent_down",
        "charged: 40.000 GPU-seconds in 25s, 4.00 Wh, cost 0.04, 10s of gaps, which cost nothing",
        &format!("5 records of node n1 by key {key}"),
        "all verified, up to 2026-06-01 12:00:30 UTC; closed: no record is missing at the end",
    ] {
        assert!(text.contains(line), "{line:?} is missing in\n{text}");
    }
    let mut running = file.clone();
    running.awards[0].ended_at = None;
    running.awards[0].chains[0].records.pop();
    assert!(table::text(&running.job, &sum::sums(&running)).contains("the Job runs"));
}

fn verify_text(text: &str) -> Result<(), CliError> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("receipts.json");
    fs::write(&path, text).unwrap();
    run_file(&path, Output::Text)
}

#[test]
fn a_file_in_which_any_digit_of_a_record_was_changed_is_found() {
    let text = serde_json::to_string(&file()).unwrap();
    verify_text(&text).unwrap();
    let start = text.find("\"records\"").unwrap();
    let of_record = |at: usize| !text[..at].ends_with("\"node\":\"n");
    let digits = text.char_indices().skip(start).filter(|(at, c)| c.is_ascii_digit() && of_record(*at));
    let digits: Vec<usize> = digits.map(|(at, _)| at).collect();
    assert!(digits.len() > 1_000);
    // One of many, everywhere in the records.
    for at in digits.iter().step_by(23) {
        let mut bytes = text.clone().into_bytes();
        // A digit stays a digit: its last bit is another one.
        bytes[*at] ^= 1;
        let changed = String::from_utf8(bytes).unwrap();
        let error = verify_text(&changed).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error} at {at}");
    }
}

#[test]
fn files_that_are_none_are_told() {
    for bad in ["", "{}", "[]", "{\"version\":1}"] {
        let error = verify_text(bad).unwrap_err();
        assert!(error.to_string().contains("no file of receipts"), "{error}");
        assert!(error.next_step().unwrap().contains("--save"));
    }
    let other = ReceiptsFile { version: 2, ..file() };
    let error = verify_text(&serde_json::to_string(&other).unwrap()).unwrap_err();
    assert!(error.to_string().contains("accepted is 1"), "{error}");
    assert!(
        run_file(Path::new("/nonexistent"), Output::Text).unwrap_err().to_string().contains("/nonexistent")
    );
}

#[test]
fn evidence_that_came_home_is_told_and_checked() {
    let mut accused = file();
    let two = chain(&key(1), vec![used("GPU-9", 0)], None);
    let records =
        Equivocation { first: accused.awards[0].chains[0].records[1].clone(), second: two[1].clone() };
    let evidence =
        |records: Equivocation| Evidence::Equivocation { chain: "c".into(), records: Box::new(records) };
    accused.awards[0].evidence = vec![evidence(records.clone())];
    let error = verify_text(&serde_json::to_string(&accused).unwrap()).unwrap_err();
    assert!(error.to_string().contains("signed two different records 1"), "{error}");
    // Two that are the same accuse nobody, and neither do those of another award.
    let same = Equivocation { second: records.first.clone(), ..records.clone() };
    accused.awards[0].evidence = vec![evidence(same)];
    verify_text(&serde_json::to_string(&accused).unwrap()).unwrap();
    let mut other = Chain::new(AwardId([1; 8]), 0);
    let opened =
        |boot| Body::Opened(Opened { public_key: key(1).public(), boot: BootId([boot; 16]), time_ms: T });
    let first = other.sign(opened(1), &key(1)).unwrap();
    let second = Chain::new(AwardId([1; 8]), 0).sign(opened(2), &key(1)).unwrap();
    accused.awards[0].evidence = vec![evidence(Equivocation { first, second })];
    verify_text(&serde_json::to_string(&accused).unwrap()).unwrap();
}
