//! The life of an award, step by step, and what must hold at every step.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use vendue_crds::conditions::{condition, find, set};
use vendue_crds::{AwardClose, AwardRuntimeStatus, CloseReason};
use vendue_receipts::{AwardId, Body, Record, Used, Version, Xids};

use super::*;
use crate::award::ray_job::{Detail, RayState, Seen, Times};
use crate::fixtures::{at, mk_award, mk_devices, mk_env, mk_terms, mk_workload};

fn write(award: &mut Award, plan: &Plan) {
    let relayed: Vec<Condition> = award
        .status
        .iter()
        .flat_map(|s| &s.conditions)
        .filter(|c| matches!(c.type_.as_str(), cond::HANDED_OVER | cond::DELIVERED))
        .cloned()
        .collect();
    let mut status = plan.status.clone();
    status.conditions.extend(relayed);
    award.status = Some(status);
}

fn reason(plan: &Plan, type_: &str) -> Option<(String, String)> {
    find(&plan.status.conditions, type_).map(|c| (c.status.clone(), c.reason.clone()))
}

fn says(status: &str, reason: &str) -> Option<(String, String)> {
    Some((status.to_owned(), reason.to_owned()))
}

fn pod(name: &str, ready: bool) -> PodSeen {
    PodSeen {
        name: name.into(),
        head: name == "ray-head",
        phase: "Running".into(),
        ready,
        deleting: false,
        created: at(10),
        trouble: None,
        restarts: 0,
    }
}

fn pods(ready: bool) -> Vec<PodSeen> {
    ["ray-head", "ray-worker-0", "ray-worker-1"].map(|n| pod(n, ready)).to_vec()
}

fn observed(pods: Vec<PodSeen>, present: Option<BTreeSet<ChildKey>>, ray: Seen) -> Observed {
    Observed {
        allocation: None,
        terms: Some(mk_terms()),
        workload: Some(Ok(mk_workload())),
        pods,
        present,
        ray,
        seen_running: None,
        bills: None,
        fresh_tokens: Some(Tokens { ray: "r".into(), courier: "c".into() }),
        fingerprint: None,
    }
}

/// Receipts of two GPUs over the run of [`running`], from and until these times.
fn billed(from: i64, until: i64) -> NodeBill {
    let award = running();
    let runtime = AwardRuntimeStatus {
        started_at: Some(Time(at(20))),
        ended_at: Some(Time(at(120))),
        ..AwardRuntimeStatus::default()
    };
    let mut bill = Run::of(&runtime, award.spec.price.price().unwrap()).unwrap().bill();
    let ms = |second| u64::try_from(at(second).as_millisecond()).unwrap();
    for device in ["GPU-0", "GPU-1"] {
        let (t0_ms, t1_ms) = (ms(from), ms(until));
        bill.add(&Record {
            version: Version,
            award: AwardId([1; 8]),
            sequence: 1,
            previous: [0; 32],
            body: Body::Used(Used {
                device: device.parse().unwrap(),
                t0_ms,
                t1_ms,
                wall_ns: (t1_ms - t0_ms) * 1_000_000,
                energy: None,
                activity: None,
                memory_peak_bytes: None,
                xids: Xids::default(),
                driver: "580.1".parse().unwrap(),
            }),
            signature: [0; 65],
        });
    }
    let (node, public_key) = ("n1".to_owned(), "02".to_owned());
    let (devices, sums) = (bill.devices().clone(), bill.sums());
    NodeBill { node, public_key, head: [7; 32], records: 3, closed: false, devices, sums }
}

fn job(state: RayState) -> Seen {
    let detail = Detail { message: "exit code 1".into(), log_tail: "Traceback\nValueError: boom".into() };
    let times = Times { started: Some(at(20)), ended: None };
    Seen::Job { session: "s1".into(), state, detail, times }
}

/// An award with devices.
fn held() -> Award {
    let mut award = mk_award("a1");
    let seen = Observed { allocation: Some(Allocation::Held(mk_devices())), ..Observed::default() };
    let plan = plan(&award, &seen, &mk_env(), at(0));
    assert_eq!(plan.finalizer, FinalizerStep::Add);
    assert_eq!(reason(&plan, cond::HELD), says("True", reasons::DEVICES_HELD));
    write(&mut award, &plan);
    award
}

/// An award whose workload arrived at second 10.
fn handed_over() -> Award {
    let mut award = held();
    award.spec.workload_secret = Some("vendue-workload".into());
    award.spec.handed_over_at = Some(Time(at(10)));
    let relay = condition(cond::HANDED_OVER, true, "Stored", "", None, at(10));
    set(&mut award.status.as_mut().unwrap().conditions, relay);
    award
}

/// An award whose entry point runs.
fn running() -> Award {
    let mut award = handed_over();
    for (seen, now) in [
        (observed(pods(true), Some(BTreeSet::new()), Seen::Silent), 18),
        (observed(pods(true), None, Seen::Unknown { session: "s1".into() }), 19),
        (observed(pods(true), None, job(RayState::Running)), 21),
    ] {
        let plan = plan(&award, &seen, &mk_env(), at(now));
        write(&mut award, &plan);
    }
    assert!(conditions::is_true(&award.status.as_ref().unwrap().conditions, cond::RUNNING));
    award
}

#[test]
fn other_devices_under_an_award_are_written_down_for_good() {
    let (old, new) = ("aa".repeat(32), "bb".repeat(32));
    let mut award = running();
    let step = |award: &mut Award, fingerprint: Option<&String>, second| {
        let seen = Observed {
            fingerprint: fingerprint.cloned(),
            ..observed(pods(true), None, job(RayState::Running))
        };
        let plan = plan(award, &seen, &mk_env(), at(second));
        write(award, &plan);
        plan
    };
    assert_eq!(step(&mut award, Some(&old), 30).status.fingerprint, Some(old.clone()));
    assert_eq!(reason(&step(&mut award, Some(&old), 32), cond::DEVICES_CHANGED), None);
    let changed = step(&mut award, Some(&new), 34);
    assert_eq!(reason(&changed, cond::DEVICES_CHANGED), says("True", reasons::FINGERPRINT_CHANGED));
    let told: Vec<_> = changed.transitions.iter().map(|t| (t.condition.as_str(), t.warning)).collect();
    assert_eq!(told, [(cond::DEVICES_CHANGED, true)]);
    let message = find(&changed.status.conditions, cond::DEVICES_CHANGED).unwrap().message.clone();
    assert!(
        message.contains(&old) && message.contains(&new) && message.contains(&at(34).to_string()),
        "{message}"
    );
    // What follows takes nothing back, and the run goes on.
    for (fingerprint, second) in [(Some(&new), 36), (None, 38)] {
        let after = step(&mut award, fingerprint, second);
        assert_eq!(find(&after.status.conditions, cond::DEVICES_CHANGED).unwrap().message, message);
        assert_eq!(after.status.fingerprint, Some(old.clone()));
        assert!(after.transitions.is_empty() && conditions::is_true(&after.status.conditions, cond::RUNNING));
    }
}

#[test]
fn an_award_says_when_the_devices_of_its_bid_are_gone() {
    let mut award = mk_award("a1");
    award.spec.market_id = "01".repeat(32);
    let commitment = vendue_market::commit_devices(&[1; 32], 7, 0, &[0xaa; 32]);
    award.spec.devices_commitment = Some(hex::encode(commitment));
    for (fingerprint, other) in [("aa", false), ("bb", true)] {
        let seen = Observed {
            allocation: Some(Allocation::Held(mk_devices())),
            fingerprint: Some(fingerprint.repeat(32)),
            ..Observed::default()
        };
        let plan = plan(&award, &seen, &mk_env(), at(0));
        let message = &find(&plan.status.conditions, cond::HELD).unwrap().message;
        assert_eq!(message.contains("other devices than those that the bid is bound to"), other, "{message}");
        assert_eq!(plan.status.fingerprint, seen.fingerprint);
    }
}

#[test]
fn refuses_with_the_reason() {
    let award = mk_award("a1");
    let seen = Observed { allocation: Some(Allocation::Refused("taken".into())), ..Observed::default() };
    let plan = plan(&award, &seen, &mk_env(), at(0));
    assert_eq!(reason(&plan, cond::HELD), says("False", reasons::CAPACITY_GONE));
    assert_eq!(plan.finalizer, FinalizerStep::Keep);
    assert_eq!(plan.transitions.len(), 1);
}

#[test]
fn expires_when_no_workload_comes() {
    let mut award = held();
    let seen = Observed { present: Some(BTreeSet::new()), ..Observed::default() };
    // A workload that was taken just before second 60 may be seen a moment later.
    assert_eq!(phase(&award, at(64)), Phase::Waiting);
    assert_eq!(plan(&award, &seen, &mk_env(), at(61)).requeue, Some(Duration::from_secs(4)));
    let plan_ = plan(&award, &seen, &mk_env(), at(65));
    assert_eq!(reason(&plan_, cond::RELEASED), says("True", reasons::AWARD_EXPIRED));
    assert!(plan_.status.devices.is_empty());
    assert_eq!(plan_.finalizer, FinalizerStep::Remove);
    write(&mut award, &plan_);
    assert_eq!(phase(&award, at(66)), Phase::Released);
    // Never held at all.
    let late = plan(&mk_award("a2"), &Observed::default(), &mk_env(), at(61));
    assert_eq!(reason(&late, cond::HELD), says("False", reasons::AWARD_EXPIRED));
}

#[test]
fn a_workload_that_arrives_while_the_award_is_given_up_ends_at_once() {
    let mut award = held();
    let seen = Observed { present: Some(BTreeSet::new()), ..Observed::default() };
    let given_up = plan(&award, &seen, &mk_env(), at(65));
    write(&mut award, &given_up);
    let idle = plan(&award, &Observed::default(), &mk_env(), at(66));
    assert_eq!(reason(&idle, cond::FINISHED), None, "nothing was handed over");
    award.spec.workload_secret = Some("vendue-workload".into());
    award.spec.handed_over_at = Some(Time(at(59)));
    let end = plan(&award, &Observed::default(), &mk_env(), at(66));
    assert_eq!(reason(&end, cond::FINISHED), says("True", reasons::RUNTIME_ERROR));
    assert_eq!(reason(&end, cond::RELEASED), says("True", reasons::AWARD_EXPIRED));
    assert!(end.children.is_empty() && end.status.state.as_deref() == Some("Failed"));
    write(&mut award, &end);
    let again = plan(&award, &Observed::default(), &mk_env(), at(67));
    assert!(again.transitions.is_empty(), "it ends once");
}

#[test]
fn creates_everything_once_then_submits() {
    let mut award = handed_over();
    assert_eq!(look(&award, at(11)), Look::All);
    let first = plan(&award, &observed(vec![], Some(BTreeSet::new()), Seen::Silent), &mk_env(), at(11));
    let names: Vec<String> = first.children.iter().map(|c| c.key().name).collect();
    assert_eq!(names.last().map(String::as_str), Some("ray-worker-1"));
    assert!(names.contains(&"vendue-tokens".to_owned()));
    assert_eq!(reason(&first, cond::PROVISIONED), says("False", reasons::CREATING));
    write(&mut award, &first);

    let present: BTreeSet<ChildKey> = first.children.iter().map(Child::key).collect();
    let again = plan(&award, &observed(pods(false), Some(present.clone()), Seen::Silent), &mk_env(), at(12));
    assert!(again.children.is_empty(), "nothing is made twice");
    assert_eq!(again.ray, RayAction::None);

    let ready = plan(&award, &observed(pods(true), Some(present), Seen::Silent), &mk_env(), at(18));
    assert_eq!(reason(&ready, cond::PROVISIONED), says("True", reasons::CREATED));
    assert_eq!(ready.status.runtime.as_ref().unwrap().workers_ready, 2);
    write(&mut award, &ready);
    assert_eq!(look(&award, at(18)), Look::Pods);

    let unknown = Seen::Unknown { session: "s1".into() };
    let submit = plan(&award, &observed(pods(true), None, unknown), &mk_env(), at(19));
    assert_eq!(
        submit.ray,
        RayAction::Submit {
            id: "vendue-uid-a1-1".into(),
            entrypoint: "cd /vendue/files || exit 1\npython train.py".into()
        }
    );
    assert_eq!(reason(&submit, cond::RUNNING), says("False", reasons::SUBMITTED));
}

#[test]
fn a_plan_of_its_own_result_changes_nothing() {
    let award = running();
    let seen = observed(pods(true), None, job(RayState::Running));
    let again = plan(&award, &seen, &mk_env(), at(22));
    assert!(again.transitions.is_empty() && again.children.is_empty() && again.deletions.is_empty());
    assert_eq!(again.ray, RayAction::None);
    let mut expected = award.status.clone().unwrap();
    expected.conditions.retain(|c| c.type_ != cond::HANDED_OVER);
    assert_eq!(again.status, expected);
}

#[test]
fn success_is_metered_delivered_and_torn_down() {
    let mut award = running();
    let end = plan(&award, &observed(pods(true), None, job(RayState::Succeeded)), &mk_env(), at(120));
    assert_eq!(reason(&end, cond::FINISHED), says("True", reasons::SUCCEEDED));
    assert_eq!(reason(&end, cond::RUNNING), says("False", reasons::SUCCEEDED));
    let usage = end.status.usage.clone().unwrap();
    assert_eq!((usage.gpus, usage.seconds, usage.cost.0.as_str()), (2, 0, "0.00"), "no receipt, no accrual");
    let nodes: Vec<&str> = usage.receipts.iter().map(|r| r.node.as_str()).collect();
    assert_eq!(nodes, ["n1"]);
    assert!(end.deletions.is_empty(), "the head serves outputs");
    write(&mut award, &end);

    assert_eq!(phase(&award, at(121)), Phase::Delivering);
    let workers = plan(&award, &observed(pods(true), None, Seen::Silent), &mk_env(), at(121));
    let gone: Vec<&str> = workers.deletions.iter().map(|k| k.name.as_str()).collect();
    assert_eq!(gone, ["ray-worker-0", "ray-worker-1"]);
    assert!(!workers.status.devices.is_empty(), "devices are held while worker Pods live");
    let freed = plan(&award, &observed(vec![pod("ray-head", true)], None, Seen::Silent), &mk_env(), at(122));
    assert!(freed.status.devices.is_empty());
    write(&mut award, &freed);

    set(
        &mut award.status.as_mut().unwrap().conditions,
        condition(cond::DELIVERED, true, reasons::STORED, "", None, at(123)),
    );
    assert_eq!(look(&award, at(124)), Look::All);
    let keys = BTreeSet::from([
        ChildKey { kind: "NetworkPolicy", name: "p".into() },
        ChildKey { kind: "Service", name: "s".into() },
    ]);
    let seen = observed(vec![pod("ray-head", true)], Some(keys.clone()), Seen::Silent);
    let first: Vec<_> = plan(&award, &seen, &mk_env(), at(124)).deletions;
    let kinds: Vec<&str> = first.iter().map(|k| k.kind).collect();
    assert_eq!(kinds, ["Pod", "Service"], "policies stay until the Pods are gone");
    let rest = plan(&award, &observed(vec![], Some(keys), Seen::Silent), &mk_env(), at(125));
    assert_eq!(rest.deletions.len(), 2);
    let gone = observed(vec![], Some(BTreeSet::new()), Seen::Silent);
    let waits = plan(&award, &gone, &mk_env(), at(126));
    assert_eq!(reason(&waits, cond::RELEASED), None, "the last receipts are on their way");
    assert_eq!(waits.requeue, Some(Duration::from_secs(1)));
    let waits = plan(&award, &gone, &mk_env(), at(144));
    assert_eq!(reason(&waits, cond::RELEASED), None);
    let silent = plan(&award, &gone, &mk_env(), at(145));
    assert_eq!(reason(&silent, cond::RELEASED), says("True", reasons::TORN_DOWN), "not for ever");
    let all = Observed { bills: Some(vec![billed(20, 121)]), ..gone };
    let last = plan(&award, &all, &mk_env(), at(126));
    let usage = last.status.usage.clone().unwrap();
    let told = (usage.seconds, usage.gpu_seconds, usage.cost.0.as_str(), usage.complete);
    assert_eq!(told, (100, 200, "0.10", true));
    assert_eq!(reason(&last, cond::RELEASED), says("True", reasons::TORN_DOWN));
    assert_eq!((last.finalizer, last.status.state.as_deref()), (FinalizerStep::Remove, Some("Succeeded")));
}

/// What the head says of a job, with the times that it tells.
fn told(state: RayState, started: Option<i64>, ended: Option<i64>) -> Seen {
    let times = Times { started: started.map(at), ended: ended.map(at) };
    Seen::Job { session: "s1".into(), state, detail: Detail::default(), times }
}

#[test]
fn the_last_receipts_are_waited_for_from_when_the_end_was_seen() {
    // The controller was away for eight minutes; the run had ended long before it came back.
    let mut award = running();
    let end = plan(
        &award,
        &observed(pods(true), None, told(RayState::Succeeded, Some(20), Some(120))),
        &mk_env(),
        at(600),
    );
    assert_eq!(end.status.runtime.as_ref().unwrap().ended_at.as_ref().unwrap().0, at(120));
    write(&mut award, &end);
    award.spec.close = Some(AwardClose { reason: CloseReason::UserClosed, at: Time(at(601)) });
    let gone = observed(vec![], Some(BTreeSet::new()), Seen::Silent);
    for (second, released) in [(602, None), (624, None), (625, says("True", reasons::TORN_DOWN))] {
        assert_eq!(reason(&plan(&award, &gone, &mk_env(), at(second)), cond::RELEASED), released, "{second}");
    }
}

#[test]
fn a_run_is_charged_from_a_minute_after_ready_pods_whatever_the_head_says() {
    let started = |award: &Award| {
        award.status.as_ref().unwrap().runtime.as_ref().and_then(|r| r.started_at.as_ref()).map(|t| t.0)
    };
    let unknown = || Seen::Unknown { session: "s1".into() };
    // Pods are ready at 18.
    for head in [
        Seen::Silent,
        unknown(),
        told(RayState::Pending, None, None),
        told(RayState::Running, Some(600), None),
    ] {
        let mut award = handed_over();
        let ready =
            plan(&award, &observed(pods(true), Some(BTreeSet::new()), Seen::Silent), &mk_env(), at(18));
        write(&mut award, &ready);
        for second in [30, 77] {
            let quiet = plan(&award, &observed(pods(true), None, unknown()), &mk_env(), at(second));
            write(&mut award, &quiet);
            assert_eq!(started(&award), None, "{second}");
        }
        let late = plan(&award, &observed(pods(true), None, head.clone()), &mk_env(), at(600));
        write(&mut award, &late);
        assert_eq!(started(&award), Some(at(78)), "{head:?}");
    }
    assert_eq!(started(&running()), Some(at(20)), "an honest head's word counts");
}

#[test]
fn a_run_ends_no_earlier_than_it_was_last_seen_to_run() {
    let award = running();
    let ended = |seen_running: Option<i64>, said| {
        let seen = Observed {
            seen_running: seen_running.map(at),
            ..observed(pods(true), None, told(RayState::Succeeded, Some(20), Some(said)))
        };
        plan(&award, &seen, &mk_env(), at(300)).status.runtime.unwrap().ended_at.unwrap().0
    };
    assert_eq!(ended(Some(298), 21), at(298), "the head took back what it had said");
    assert_eq!(ended(Some(298), 299), at(299));
    assert_eq!(ended(None, 100), at(100), "a controller that was restarted has the head's word");
    assert_eq!(ended(None, 20), at(21), "but for when the status says that it ran");
}

#[test]
fn delivery_has_a_grace() {
    let mut award = running();
    let end = plan(&award, &observed(pods(true), None, job(RayState::Succeeded)), &mk_env(), at(120));
    write(&mut award, &end);
    assert_eq!(phase(&award, at(719)), Phase::Delivering);
    assert_eq!(phase(&award, at(720)), Phase::Teardown);
}

#[test]
fn failure_carries_the_last_lines() {
    let award = running();
    let end = plan(&award, &observed(pods(true), None, job(RayState::Failed)), &mk_env(), at(30));
    assert_eq!(reason(&end, cond::FINISHED), says("True", reasons::FAILED));
    let message = &find(&end.status.conditions, cond::FINISHED).unwrap().message;
    assert_eq!(message, "attempt 1 of 1 failed: exit code 1; last lines:\nTraceback\nValueError: boom");
    assert_eq!(end.status.failure.unwrap().log_tail, "Traceback\nValueError: boom");
    assert_eq!(end.status.state.as_deref(), Some("Failed"));
}

#[test]
fn the_deadline_ends_the_run_whatever_happens() {
    let award = running();
    let seen = observed(pods(true), None, job(RayState::Running));
    let wait = plan(&award, &seen, &mk_env(), at(609)).requeue;
    assert_eq!(wait, Some(Duration::from_secs(1)));
    let end = plan(&award, &seen, &mk_env(), at(610));
    assert_eq!(reason(&end, cond::FINISHED), says("True", reasons::DEADLINE_EXCEEDED));
    assert_eq!(end.ray, RayAction::Stop { id: "vendue-uid-a1-1".into() });
    assert_eq!(end.status.runtime.unwrap().ended_at.unwrap().0, at(610));
    assert!(end.children.is_empty());
}

#[test]
fn close_stops_and_removes_at_once() {
    let mut award = running();
    award.spec.close = Some(AwardClose { reason: CloseReason::UserClosed, at: Time(at(30)) });
    let end = plan(&award, &observed(pods(true), Some(BTreeSet::new()), Seen::Silent), &mk_env(), at(31));
    assert_eq!(reason(&end, cond::FINISHED), says("True", reasons::CLOSED));
    assert_eq!(end.ray, RayAction::Stop { id: "vendue-uid-a1-1".into() });
    assert_eq!(end.deletions.len(), 3);
    write(&mut award, &end);
    let gone = observed(vec![], Some(BTreeSet::new()), Seen::Silent);
    let waits = plan(&award, &gone, &mk_env(), at(33));
    assert_eq!(reason(&waits, cond::RELEASED), None, "what was used is still to be told");
    assert!(waits.status.devices.is_empty(), "the GPUs are free all the same");
    let last = plan(&award, &gone, &mk_env(), at(56));
    assert_eq!(reason(&last, cond::RELEASED), says("True", reasons::TORN_DOWN));

    // Before the workload came.
    let mut early = held();
    early.metadata.deletion_timestamp = Some(Time(at(5)));
    let seen = Observed { present: Some(BTreeSet::new()), ..Observed::default() };
    let end = plan(&early, &seen, &mk_env(), at(6));
    assert_eq!(reason(&end, cond::RELEASED), says("True", reasons::CLOSED));
    assert_eq!(reason(&end, cond::FINISHED), None);
}

#[test]
fn a_lost_worker_is_replaced_and_counted() {
    let mut award = running();
    let mut broken = pods(true);
    broken[1].phase = "Failed".into();
    broken[1].ready = false;
    let removed = plan(&award, &observed(broken, None, job(RayState::Running)), &mk_env(), at(30));
    assert_eq!(removed.deletions, [ChildKey { kind: "Pod", name: "ray-worker-0".into() }]);
    assert!(removed.children.is_empty());
    write(&mut award, &removed);
    let two = vec![pod("ray-head", true), pod("ray-worker-1", true)];
    let made = plan(&award, &observed(two, None, job(RayState::Running)), &mk_env(), at(31));
    assert_eq!(made.children.len(), 1);
    let runtime = made.status.runtime.as_ref().unwrap();
    assert_eq!((runtime.worker_restarts, runtime.workers_ready), (1, 1));
    assert_eq!(reason(&made, cond::RUNNING), says("True", reasons::RESTARTED));
    assert_eq!(reason(&made, cond::PROVISIONED), says("True", reasons::CREATED));
}

#[test]
fn trouble_that_does_not_pass_ends_the_run() {
    let award = handed_over();
    let mut stuck = pods(false);
    stuck[2].trouble = Some(("ImagePullBackOff".into(), "no such image".into()));
    let seen = observed(stuck, Some(BTreeSet::new()), Seen::Silent);
    let early = plan(&award, &seen, &mk_env(), at(30));
    assert_eq!(reason(&early, cond::FINISHED), None);
    assert!(find(&early.status.conditions, cond::PROVISIONED).unwrap().message.contains("ImagePullBackOff"));
    let late = plan(&award, &seen, &mk_env(), at(70));
    assert_eq!(reason(&late, cond::FINISHED), says("True", reasons::RUNTIME_ERROR));
}

#[test]
fn what_runs_outlives_pod_trouble_and_the_provision() {
    let award = running();
    let mut stuck = pods(true);
    stuck[2].ready = false;
    stuck[2].trouble = Some(("Unschedulable".into(), "the node restarts".into()));
    let waits = plan(&award, &observed(stuck, None, job(RayState::Running)), &mk_env(), at(300));
    assert_eq!(reason(&waits, cond::FINISHED), None);
    let mut orphan = observed(pods(true), None, job(RayState::Running));
    orphan.terms = None;
    let goes_on = plan(&award, &orphan, &mk_env(), at(300));
    assert_eq!(reason(&goes_on, cond::FINISHED), None);
    assert_eq!(reason(&goes_on, cond::RUNNING), says("True", reasons::RUNNING));
    assert!(goes_on.requeue.is_some());
}

#[test]
fn a_workload_other_than_ordered_does_not_run() {
    let award = handed_over();
    let mut seen = observed(vec![], Some(BTreeSet::new()), Seen::Silent);
    let mut greedy = mk_workload();
    greedy.train.gpus_per_worker = 8;
    seen.workload = Some(Ok(greedy));
    let end = plan(&award, &seen, &mk_env(), at(12));
    assert_eq!(reason(&end, cond::FINISHED), says("True", reasons::INVALID_SPEC));
    assert!(end.children.is_empty());
    let message = &find(&end.status.conditions, cond::FINISHED).unwrap().message;
    assert_eq!(message, "the workload's gpusPerWorker is 8; accepted: 1, as ordered");
}

fn arbitrary_seen() -> impl Strategy<Value = (Vec<PodSeen>, Seen)> {
    let some_pods = prop::collection::vec((0usize..3, any::<bool>(), any::<bool>()), 0..4).prop_map(|list| {
        let mut seen: Vec<PodSeen> = Vec::new();
        for (index, ready, failed) in list {
            let mut one = pods(ready).swap_remove(index);
            if failed {
                one.phase = "Failed".into();
                one.ready = false;
            }
            if seen.iter().all(|p| p.name != one.name) {
                seen.push(one);
            }
        }
        seen
    });
    let ray = prop_oneof![
        Just(Seen::Silent),
        Just(Seen::Unknown { session: "s1".into() }),
        Just(Seen::Unknown { session: "s2".into() }),
        Just(job(RayState::Running)),
        Just(job(RayState::Failed)),
        Just(job(RayState::Succeeded)),
    ];
    (some_pods, ray)
}

proptest! {
    #[test]
    fn ends_once_and_in_time(steps in prop::collection::vec(arbitrary_seen(), 1..40)) {
        let mut award = handed_over();
        let mut finished = None;
        for (index, (pods, ray)) in steps.into_iter().enumerate() {
            let now = at(12 + index as i64 * 20);
            let present = (look(&award, now) == Look::All).then(BTreeSet::new);
            let plan = plan(&award, &observed(pods.clone(), present, ray), &mk_env(), now);
            // Made again on its own result, with the same view, it says the same.
            if plan.status.conditions.iter().any(|c| c.type_ == cond::FINISHED && c.status == "True") {
                let end = find(&plan.status.conditions, cond::FINISHED).cloned();
                prop_assert!(finished.is_none() || finished == end, "the end changed");
                finished = end;
                prop_assert!(plan.children.is_empty(), "something is made after the end");
                prop_assert!(!matches!(plan.ray, RayAction::Submit { .. }), "something is started after the end");
            }
            // Devices are never given back while worker Pods are there.
            let had = award.status.as_ref().is_some_and(|s| !s.devices.is_empty());
            if had && pods.iter().any(|p| !p.head) {
                prop_assert!(!plan.status.devices.is_empty());
            }
            write(&mut award, &plan);
            if phase(&award, now) == Phase::Released {
                break;
            }
        }
        prop_assert!(phase(&award, at(700)) != Phase::Working || !award.status.unwrap().conditions.iter().any(|c| c.type_ == cond::FINISHED));
    }
}
