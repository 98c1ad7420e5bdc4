//! Seats that ask while home's watch is behind.

use kube::core::DeserializeGuard;
use kube::runtime::{reflector, watcher};
use serde_json::{Value, json};

use super::*;
use crate::bridge::stores::Guarded;
use crate::bridge::tests::{
    Fixture, RELAY, apply, event_of, fixture, get, held_award, ordered_job, play, reference, user_key,
};

const LIST: &str = "/apis/vendue.dev/v1alpha1/awards";
const AWARD: &str = "/apis/vendue.dev/v1alpha1/namespaces/team/awards/digits-1";

/// Home's Award as it names this seat.
fn served_by(seat: i32) -> Value {
    let mut award = held_award("0011223344556677", &"ab".repeat(32), "");
    award["metadata"] = json!({ "name": "digits-1", "namespace": "team", "uid": "award-uid" });
    award["spec"]["side"] = json!("Home");
    award["spec"]["seat"] = json!(seat);
    award["spec"]["job"] =
        json!({ "home": "home", "namespace": "team", "name": "digits", "uid": "u-1", "attempt": 1 });
    award
}

fn list(items: &[Value]) -> Option<Value> {
    Some(json!({ "kind": "AwardList", "apiVersion": "vendue.dev/v1alpha1", "metadata": {}, "items": items }))
}

const JOB: &str = "/apis/vendue.dev/v1alpha1/namespaces/team/jobs/digits";

/// A home whose watch last saw seat 0.
fn behind(f: &Fixture) -> (Arc<HomeContext>, reflector::store::Writer<DeserializeGuard<Award>>) {
    let (awards, mut writer) = Guarded::empty();
    let award: Award = serde_json::from_value(served_by(0)).unwrap();
    writer.apply_watcher_event(&watcher::Event::Apply(DeserializeGuard(Ok(award))));
    let store = Arc::new(Store::open(&f.dir.path().join("store"), 10).unwrap());
    let (record, net, engine) = (f.record.clone(), f.net.clone(), f.engine.clone());
    let home = (0, user_key(f));
    (Arc::new(HomeContext::new(f.cluster.clone(), record, home, net, engine, awards, store)), writer)
}

fn status() -> Handover {
    let status = json!({ "state": "Running" });
    Handover::Status { award: reference(), version: 1, status: serde_json::from_value(status).unwrap() }
}

#[tokio::test]
async fn the_api_server_decides_when_the_watch_knows_another_seat() {
    let f = fixture();
    let (context, _writer) = behind(&f);
    let script = vec![
        get(LIST, list(&[served_by(1)])),
        get(AWARD, Some(served_by(1))),
        apply(&format!("{AWARD}/status"), RELAY, vec![("/status/state", json!("Running"))]),
        // The seat of before is found in the watch, and is refused by the Award as it is now.
        get(AWARD, Some(served_by(1))),
        // Nobody's seat.
        get(LIST, list(&[served_by(1)])),
    ];
    let requests = async {
        let new = serve(&context, MemberId::Seat(1), status()).await;
        let old = serve(&context, MemberId::Seat(0), status()).await;
        let foreign = serve(&context, MemberId::Seat(2), status()).await;
        [new, old, foreign].map(Option::unwrap)
    };
    let (replies, ()) = tokio::join!(requests, play(f.server, script));
    assert_eq!(replies, [HandoverReply::Ok, HandoverReply::Unknown, HandoverReply::Unknown]);
    assert_eq!(context.metrics.dropped_count("foreign_award"), 1);
}

#[tokio::test]
async fn home_says_whether_the_devices_are_those_that_were_bid() {
    let f = fixture();
    let (context, _writer) = behind(&f);
    let mut award = served_by(0);
    let fingerprint = "ab".repeat(32);
    let commitment = vendue_market::commit_devices(&[1; 32], 3, 0, &[0xab; 32]);
    award["spec"]["marketId"] = json!("01".repeat(32));
    award["spec"]["round"] = json!(3);
    award["spec"]["devicesCommitment"] = json!(hex::encode(commitment));
    let changed = json!({ "type": "DevicesChanged", "status": "True", "reason": "FingerprintChanged", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z" });
    let status = json!({ "state": "Running", "fingerprint": fingerprint, "conditions": [changed] });
    let request =
        Handover::Status { award: reference(), version: 1, status: serde_json::from_value(status).unwrap() };
    let written = vec![
        ("/status/fingerprint", json!(fingerprint)),
        ("/status/conditions/0/type", json!("DevicesChanged")),
        ("/status/conditions/2/type", json!("DevicesAsBid")),
        ("/status/conditions/2/status", json!("True")),
        ("/status/conditions/2/reason", json!("AsBid")),
    ];
    let status = apply(&format!("{AWARD}/status"), RELAY, written);
    let script = vec![get(AWARD, Some(award)), status, event_of("Warning"), event_of("Normal")];
    let (reply, ()) = tokio::join!(serve(&context, MemberId::Seat(0), request), play(f.server, script));
    assert_eq!(reply, Some(HandoverReply::Ok));
}

#[tokio::test]
async fn outputs_that_fit_later_are_not_refused() {
    let f = fixture();
    let (context, _writer) = behind(&f);
    let file = |size: u64| FileEntry { path: "model".into(), size, sha256: format!("{size:064}") };
    context.store.begin("other", vec![file(8)]).unwrap();
    let found = || [get(LIST, list(&[served_by(1)])), get(JOB, Some(ordered_job(1)))];
    let script = found().into_iter().chain(found()).collect();
    let ask = |size: u64| {
        let request = Handover::Manifest { award: reference(), files: vec![file(size)] };
        serve(&context, MemberId::Seat(1), request)
    };
    let requests = async { (ask(9).await, ask(11).await) };
    let (replies, ()) = tokio::join!(requests, play(f.server, script));
    assert!(matches!(replies.0, Some(HandoverReply::Later { .. })), "{replies:?}");
    assert!(matches!(replies.1, Some(HandoverReply::Refused { .. })), "{replies:?}");
}

#[tokio::test]
async fn more_outputs_than_the_volume_holds_make_nobody_elses_be_forgotten() {
    let f = fixture();
    let (context, _writer) = behind(&f);
    let file = |path: &str, size: u64| FileEntry { path: path.into(), size, sha256: format!("{size:064}") };
    let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into();
    context.store.begin("other", vec![FileEntry { sha256, ..file("model", 0) }]).unwrap();
    context.store.complete("other").unwrap();
    let found = || [get(LIST, list(&[served_by(1)])), get(JOB, Some(ordered_job(1)))];
    let script = found().into_iter().chain(found()).collect();
    let ask = |path: &str, size: u64| {
        let request = Handover::Manifest { award: reference(), files: vec![file(path, size)] };
        serve(&context, MemberId::Seat(1), request)
    };
    let requests = async { (ask("model", (1 << 20) + 1).await, ask(LOG_PATH, MAX_LOG + 1).await) };
    let (replies, ()) = tokio::join!(requests, play(f.server, script));
    let reason = |reply| match reply {
        Some(HandoverReply::Refused { reason }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason(replies.0).contains("raise spec.train.volumeMib, which is 1"));
    assert!(reason(replies.1).contains("at most 67108864"));
    assert!(context.store.job("other").unwrap().complete);
}

#[tokio::test]
async fn a_status_that_comes_after_the_last_one_changes_nothing() {
    let f = fixture();
    let (context, _writer) = behind(&f);
    let with = |conditions: &[&str]| {
        let list: Vec<_> = conditions
            .iter()
            .map(|type_| {
                json!({ "type": type_, "status": "True", "reason": "R", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z" })
            })
            .collect();
        json!({ "state": "Running", "conditions": list })
    };
    let status = |conditions: &[&str], version: u64| {
        let status = serde_json::from_value(with(conditions)).unwrap();
        Handover::Status { award: reference(), version, status }
    };
    let mut ended = served_by(0);
    ended["status"] = with(&["HandedOver", "Released"]);
    let script = vec![get(AWARD, Some(ended.clone())), get(AWARD, Some(ended))];
    let requests = async {
        let last = serve(&context, MemberId::Seat(0), status(&["HandedOver", "Released"], 9)).await;
        let late = serve(&context, MemberId::Seat(0), status(&["HandedOver"], 8)).await;
        [last, late].map(Option::unwrap)
    };
    let (replies, ()) = tokio::join!(requests, play(f.server, script));
    assert_eq!(replies, [HandoverReply::Ok, HandoverReply::Ok]);
    assert!(context.versions.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_seat_that_makes_ids_up_does_not_keep_the_api_server_busy() {
    let f = fixture();
    let (context, _writer) = behind(&f);
    let now = now_ms();
    let seat = |n| MemberId::Seat(n);
    assert_eq!((0..100).filter(|_| context.may_read(seat(1), now)).count(), 10);
    assert!(context.may_read(seat(2), now) && context.may_read(seat(1), now + 1000));
}
