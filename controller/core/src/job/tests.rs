//! Jobs: what is rejected and how, and the life of an order.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use vendue_crds::conditions::{award, condition, find, job as cond, reasons, set};
use vendue_crds::{
    AuctionOutcome, AuctionStatus, Award, AwardStatus, CloseReason, ComputeJob, Decimal, EnvVar, FileSource,
    JobSpec, Pricing, SecretKey, TrainSpec, WorkerSpec, workload,
};

use super::*;
use crate::FinalizerStep;
use crate::fixtures::{at, mk_award};

fn mk_job() -> ComputeJob {
    ComputeJob {
        metadata: ObjectMeta {
            name: Some("digits".into()),
            namespace: Some("team".into()),
            uid: Some("uid-job".into()),
            generation: Some(1),
            creation_timestamp: Some(Time(at(0))),
            ..ObjectMeta::default()
        },
        spec: JobSpec {
            max_price: Decimal("2.50".into()),
            run_deadline_seconds: 600,
            search_seconds: 120,
            suspend: None,
            managed_by: None,
            pricing: Pricing::FirstPrice,
            regions: vec![],
            providers: None,
            train: Some(TrainSpec {
                image: "ray:1".into(),
                entrypoint: "python train.py".into(),
                files: Some(FileSource { config_map_name: "code".into() }),
                env: vec![
                    EnvVar { name: "A".into(), value: Some("1".into()), secret_key_ref: None },
                    EnvVar {
                        name: "KEY".into(),
                        value: None,
                        secret_key_ref: Some(SecretKey { name: "keys".into(), key: "k".into() }),
                    },
                ],
                workers: WorkerSpec {
                    replicas: 2,
                    gpus: 1,
                    gpu_models: vec!["H100".into()],
                    min_gpu_memory_mib: 0,
                    cpu_millis: 500,
                    memory_mib: 1536,
                    shared_memory_mib: 256,
                    disk_mib: 1024,
                },
                retries: 1,
                volume_mib: 64,
            }),
        },
        status: None,
    }
}

fn mk_references() -> References {
    let data = BTreeMap::from([("train.py".to_owned(), "print(1)".to_owned())]);
    let key = Secret {
        data: Some(BTreeMap::from([("k".to_owned(), ByteString(b"s3cret".to_vec()))])),
        ..Secret::default()
    };
    References {
        config_map: Some(ConfigMap { data: Some(data), ..ConfigMap::default() }),
        secrets: BTreeMap::from([("keys".to_owned(), key)]),
    }
}

fn mk_observed() -> Observed {
    Observed { references: mk_references(), fresh_salt: [7; 32], ..Observed::default() }
}

fn mk_home_award(conditions: &[(&str, bool, &str)]) -> Award {
    let mut object = mk_award("a1");
    object.metadata.name = Some("digits-1".into());
    object.spec.side = vendue_crds::AwardSide::Home;
    let list =
        conditions.iter().map(|(t, s, r)| condition(t, *s, r, "told by the host", None, at(5))).collect();
    object.status = Some(AwardStatus { conditions: list, ..AwardStatus::default() });
    object
}

fn mk_auction(attempt: i32, outcome: AuctionOutcome) -> AuctionStatus {
    AuctionStatus { outcome, round: Some(3), rounds_tried: 1, receipts: 4, ..AuctionStatus::new(attempt) }
}

fn says(plan: &Plan, type_: &str) -> Option<(String, String)> {
    let status = plan.status.as_ref()?;
    find(&status.conditions, type_).map(|c| (c.status.clone(), c.reason.clone()))
}

fn is(status: &str, reason: &str) -> Option<(String, String)> {
    Some((status.to_owned(), reason.to_owned()))
}

fn accepted() -> ComputeJob {
    let mut job = mk_job();
    let plan = plan(&job, &mk_observed(), at(1));
    assert!(plan.secret.is_some());
    job.status = plan.status;
    job
}

#[test]
fn every_error_names_field_value_and_what_is_accepted() {
    type Change = fn(&mut ComputeJob);
    let cases: [(Change, &str); 10] = [
        (
            |j| j.spec.max_price = Decimal("-1".into()),
            "spec.maxPrice is \"-1\"; accepted: a decimal above zero, at most 1000000, with at most six places, for example \"2.50\"",
        ),
        (
            |j| j.spec.max_price = Decimal("1.0000001".into()),
            "spec.maxPrice is \"1.0000001\"; accepted: a decimal above zero, at most 1000000, with at most six places, for example \"2.50\"",
        ),
        (|j| j.spec.train = None, "spec is without a workload; accepted: train"),
        (
            |j| j.metadata.name = Some("x".repeat(48)),
            "metadata.name is 48 characters long; accepted: at most 47 characters",
        ),
        (|j| train(j).workers.gpus = 0, "spec.train.workers.gpus is 0; accepted: a number from 1 up"),
        (
            |j| train(j).workers.gpu_models = vec!["no/model".into()],
            "spec.train.workers.gpuModels is \"no/model\"; accepted: a letter or digit, then at most 62 of letters, digits, '.', '_', '-'",
        ),
        (
            |j| train(j).workers.shared_memory_mib = 4096,
            "spec.train.workers.sharedMemoryMib is 4096; accepted: less than memoryMib, which is 1536",
        ),
        (
            |j| train(j).env[0].name = "RAY_AUTH_TOKEN".into(),
            "spec.train.env[RAY_AUTH_TOKEN] is set by Vendue; accepted: names other than RAY_AUTH_MODE, RAY_AUTH_TOKEN, POD_IP and those that begin with VENDUE_",
        ),
        (
            |j| train(j).env[0].value = None,
            "spec.train.env[A] is without a value; accepted: exactly one of value and secretKeyRef",
        ),
        (
            |j| train(j).image = "two words".into(),
            "spec.train.image is \"two words\"; accepted: a container image without spaces",
        ),
    ];
    for (change, expected) in cases {
        let mut job = mk_job();
        change(&mut job);
        let plan = plan(&job, &mk_observed(), at(1));
        assert_eq!(says(&plan, cond::ACCEPTED), is("False", reasons::INVALID_SPEC), "{expected}");
        let status = plan.status.unwrap();
        assert_eq!(find(&status.conditions, cond::ACCEPTED).unwrap().message, expected);
        assert_eq!(status.order, None);
        assert_eq!(plan.finalizer, FinalizerStep::Keep);
    }
}

fn train(job: &mut ComputeJob) -> &mut TrainSpec {
    job.spec.train.as_mut().unwrap()
}

#[test]
fn makes_the_order_once() {
    let first = plan(&mk_job(), &mk_observed(), at(1));
    assert_eq!(first.finalizer, FinalizerStep::Add);
    let secret = first.secret.clone().unwrap();
    let order = first.status.clone().unwrap().order.unwrap();
    assert_eq!(order.secret_name, "digits-order-1");
    assert_eq!(order.expires_at.0, at(121));
    let made = OrderSecret::read(&secret).unwrap();
    assert_eq!(made.salt, [7; 32]);
    assert_eq!(order.commitment, hex::encode(vendue_market::commitment(&made.salt, &made.workload)));
    let decoded = workload::Workload::decode(&made.workload).unwrap().train;
    assert_eq!(decoded.secret_env["KEY"], "s3cret");
    assert_eq!(decoded.files["train.py"], "print(1)");
    assert_eq!(says(&first, cond::ACCEPTED), is("True", reasons::VALID));
    assert_eq!(says(&first, cond::AWARDED), is("False", reasons::AUCTION_PENDING));

    // The Secret was made, the status was lost: the same order comes out, whatever the salt drawn this time.
    let seen = Observed { secret: Some(made), fresh_salt: [9; 32], ..mk_observed() };
    let again = plan(&mk_job(), &seen, at(1));
    assert_eq!(again.secret, None);
    assert_eq!(again.status, first.status);

    // Its own result changes nothing.
    let job = accepted();
    let idle = plan(&job, &Observed::default(), at(50));
    assert_eq!(idle.status, job.status);
    assert!(idle.transitions.is_empty() && idle.secret.is_none());
}

#[test]
fn waits_for_what_is_missing_and_refuses_what_cannot_be() {
    let missing = plan(&mk_job(), &Observed::default(), at(1));
    assert_eq!(says(&missing, cond::ACCEPTED), is("False", reasons::REFERENCE_NOT_FOUND));
    let message = &find(&missing.status.unwrap().conditions, cond::ACCEPTED).unwrap().message.clone();
    assert_eq!(message, "spec.train.files.configMapName names ConfigMap \"code\", which does not exist");

    let mut large = mk_observed();
    let data = BTreeMap::from([("big".to_owned(), "x".repeat((1 << 20) + 1))]);
    large.references.config_map = Some(ConfigMap { data: Some(data), ..ConfigMap::default() });
    let refused = plan(&mk_job(), &large, at(1));
    assert_eq!(says(&refused, cond::ACCEPTED), is("False", reasons::INVALID_SPEC));
    let message = &find(&refused.status.unwrap().conditions, cond::ACCEPTED).unwrap().message.clone();
    assert_eq!(
        message,
        "spec.train.files.configMapName is \"code\", which has 1048577 bytes; accepted: at most 1048576 bytes in all"
    );
}

#[test]
fn shows_why_nobody_bid_and_gives_up_in_time() {
    let mut job = accepted();
    job.status.as_mut().unwrap().auction = Some(AuctionStatus {
        message: Some("0 of 4 providers: 2 model, 1 memory, 1 free GPUs".into()),
        known_models: vec!["A100".into(), "H100".into()],
        ..mk_auction(1, AuctionOutcome::NoFeasibleBid)
    });
    let shown = plan(&job, &Observed::default(), at(5));
    assert_eq!(says(&shown, cond::AWARDED), is("False", reasons::NO_FEASIBLE_BID));
    let status = shown.status.unwrap();
    assert_eq!(status.auction, None, "the auction's part is the auction's");
    assert_eq!(
        find(&status.conditions, cond::AWARDED).unwrap().message,
        "0 of 4 providers: 2 model, 1 memory, 1 free GPUs; models that the market knows: A100, H100"
    );
    job.status.as_mut().unwrap().conditions = status.conditions;
    let over = plan(&job, &Observed::default(), at(121));
    assert_eq!(says(&over, cond::FINISHED), is("True", reasons::SEARCH_TIME_OVER));
    assert_eq!(over.status.as_ref().unwrap().state.as_deref(), Some("Expired"));
}

#[test]
fn folds_what_the_winner_reports() {
    let mut job = accepted();
    let fold = |job: &mut ComputeJob, list: &[(&str, bool, &str)], second: i64| {
        let seen = Observed { award: Some(mk_home_award(list)), ..Observed::default() };
        let plan = plan(job, &seen, at(second));
        job.status.clone_from(&plan.status);
        plan
    };
    let asked = fold(&mut job, &[], 3);
    assert_eq!(says(&asked, cond::AWARDED), is("False", reasons::RESERVING));
    let held = [(award::HELD, true, reasons::DEVICES_HELD)];
    let won = fold(&mut job, &held, 4);
    assert_eq!(says(&won, cond::AWARDED), is("True", reasons::CERTIFIED));
    let status = won.status.as_ref().unwrap();
    assert_eq!(
        find(&status.conditions, cond::AWARDED).unwrap().message,
        "alpha at 1.80 per GPU-hour, round 7"
    );
    assert_eq!(status.award.as_ref().unwrap().provider, "alpha");
    let run =
        [held[0], (award::PROVISIONED, true, reasons::CREATED), (award::RUNNING, true, reasons::RUNNING)];
    let runs = fold(&mut job, &run, 5);
    assert_eq!(says(&runs, cond::RUNNING), is("True", reasons::RUNNING));
    assert_eq!(runs.status.unwrap().state.as_deref(), Some("Running"));
    let end = [
        run[0],
        run[1],
        (award::RUNNING, false, reasons::SUCCEEDED),
        (award::FINISHED, true, reasons::SUCCEEDED),
    ];
    let done = fold(&mut job, &end, 6);
    assert_eq!(says(&done, cond::FINISHED), is("True", reasons::SUCCEEDED));
    assert_eq!(done.status.unwrap().state.as_deref(), Some("Succeeded"));
    // What became of the outputs is told even when it is known later than the end.
    let mut lost = end.to_vec();
    lost.push((award::DELIVERED, false, reasons::OUTPUTS_TOO_LARGE));
    let told = fold(&mut job, &lost, 7);
    assert_eq!(says(&told, cond::DELIVERED), is("False", reasons::OUTPUTS_TOO_LARGE));
    let after = fold(&mut job, &lost, 700);
    assert!(after.transitions.is_empty());
    assert_eq!(after.status.unwrap().state.as_deref(), Some("Succeeded"));
}

#[test]
fn an_award_that_nobody_took_does_not_hold_the_job() {
    let job = accepted();
    let see = |list: &[(&str, bool, &str)], second| {
        plan(&job, &Observed { award: Some(mk_home_award(list)), ..Observed::default() }, at(second))
    };
    // The search is over at 121 s, the award could be taken until 60 s and its grace is over at 120 s.
    let waiting = see(&[], 30);
    assert_eq!(says(&waiting, cond::AWARDED), is("False", reasons::RESERVING));
    assert_eq!(waiting.requeue, Some(Duration::from_secs(90)));
    assert_eq!(says(&see(&[], 120), cond::AWARDED), is("False", reasons::AUCTION_PENDING));
    assert_eq!(says(&see(&[], 121), cond::FINISHED), is("True", reasons::SEARCH_TIME_OVER));
    let held = see(&[(award::HELD, true, reasons::DEVICES_HELD)], 130);
    assert_eq!(
        (says(&held, cond::FINISHED), says(&held, cond::AWARDED)),
        (None, is("True", reasons::CERTIFIED))
    );
}

#[test]
fn work_that_was_released_without_a_result_has_failed() {
    let list = [
        (award::HELD, true, "x"),
        (award::HANDED_OVER, true, "x"),
        (award::RELEASED, true, reasons::AWARD_EXPIRED),
    ];
    let seen = Observed { award: Some(mk_home_award(&list)), ..Observed::default() };
    let ended = plan(&accepted(), &seen, at(30));
    assert_eq!(says(&ended, cond::FINISHED), is("True", reasons::RUNTIME_ERROR));
    assert_eq!(ended.status.unwrap().state.as_deref(), Some("Failed"));
}

#[test]
fn a_refused_order_is_made_again_with_the_same_workload() {
    let job = accepted();
    let fell = mk_home_award(&[(award::HELD, false, reasons::CAPACITY_GONE), (award::RELEASED, true, "x")]);
    assert_eq!(order_attempt(&job, Some(&fell)), (2, true));
    let old = OrderSecret { salt: [7; 32], workload: b"old".to_vec() };
    let seen =
        Observed { award: Some(fell), previous: Some(old), fresh_salt: [8; 32], ..Observed::default() };
    let again = plan(&job, &seen, at(20));
    let made = OrderSecret::read(again.secret.as_ref().unwrap()).unwrap();
    assert_eq!((made.salt, made.workload.as_slice()), ([8; 32], b"old".as_slice()));
    let order = again.status.unwrap().order.unwrap();
    assert_eq!((order.attempt, order.secret_name.as_str()), (2, "digits-order-2"));
    assert_eq!(order.expires_at.0, at(121), "the search time goes on");
}

#[test]
fn suspended_jobs_stay_out_of_the_market() {
    let mut job = mk_job();
    job.spec.suspend = Some(true);
    let held_back = plan(&job, &mk_observed(), at(1));
    assert_eq!(says(&held_back, cond::ACCEPTED), is("False", reasons::SUSPENDED));
    assert!(held_back.secret.is_none());

    let mut later = accepted();
    later.spec.suspend = Some(true);
    later.status = plan(&later, &Observed::default(), at(10)).status;
    later.spec.suspend = Some(false);
    let resumed = plan(&later, &Observed::default(), at(500));
    assert_eq!(says(&resumed, cond::ACCEPTED), is("True", reasons::VALID));
    assert_eq!(resumed.status.unwrap().order.unwrap().expires_at.0, at(620));
    // One that was awarded is not affected.
    let mut running = accepted();
    running.spec.suspend = Some(true);
    let award = Some(mk_home_award(&[(award::HELD, true, reasons::DEVICES_HELD)]));
    let kept = plan(&running, &Observed { award, ..Observed::default() }, at(10));
    assert_eq!(says(&kept, cond::ACCEPTED), is("True", reasons::VALID));
}

#[test]
fn jobs_managed_elsewhere_are_not_touched() {
    let mut job = mk_job();
    job.spec.managed_by = Some("kueue.x-k8s.io/multikueue".into());
    let none = plan(&job, &mk_observed(), at(1));
    assert_eq!((none.status, none.finalizer), (None, FinalizerStep::Keep));
}

#[test]
fn deletion_waits_for_the_winner_or_its_deadline() {
    let mut job = accepted();
    job.metadata.deletion_timestamp = Some(Time(at(30)));
    let see = |award: Option<Award>| Observed { award, ..Observed::default() };
    // No award: the order stands until the auction says otherwise, or cannot say anything.
    assert_eq!(plan(&job, &see(None), at(54)).finalizer, FinalizerStep::Keep);
    assert_eq!(plan(&job, &see(None), at(55)).finalizer, FinalizerStep::Remove);
    for (outcome, attempt, finalizer) in [
        (AuctionOutcome::Withdrawn, 1, FinalizerStep::Remove),
        (AuctionOutcome::Withdrawn, 0, FinalizerStep::Keep),
        (AuctionOutcome::Undecided, 1, FinalizerStep::Keep),
        (AuctionOutcome::Expired, 1, FinalizerStep::Remove),
    ] {
        let mut said = job.clone();
        said.status.as_mut().unwrap().auction = Some(mk_auction(attempt, outcome));
        assert_eq!(plan(&said, &see(None), at(31)).finalizer, finalizer, "{outcome:?}");
    }
    // An award that runs.
    let mut object = mk_home_award(&[(award::HELD, true, "x"), (award::HANDED_OVER, true, "x")]);
    let first = plan(&job, &see(Some(object.clone())), at(31));
    let (name, close) = first.close.clone().unwrap();
    assert_eq!((name.as_str(), close.reason), ("digits-1", CloseReason::UserClosed));
    assert_eq!(first.finalizer, FinalizerStep::Keep);
    assert_eq!(first.status.as_ref().unwrap().state.as_deref(), Some("Closing"));
    assert_eq!(says(&first, cond::FINISHED), is("False", reasons::CLOSED));
    object.spec.close = Some(close);
    assert_eq!(plan(&job, &see(Some(object.clone())), at(40)).close, None);
    // Handed over at 5, deadline 600, grace 600.
    assert_eq!(plan(&job, &see(Some(object.clone())), at(1204)).finalizer, FinalizerStep::Keep);
    assert_eq!(plan(&job, &see(Some(object.clone())), at(1205)).finalizer, FinalizerStep::Remove);
    set(
        &mut object.status.as_mut().unwrap().conditions,
        condition(award::RELEASED, true, reasons::TORN_DOWN, "", None, at(41)),
    );
    assert_eq!(plan(&job, &see(Some(object)), at(42)).finalizer, FinalizerStep::Remove);
    // Never accepted: nothing can be out there.
    let mut fresh = mk_job();
    fresh.metadata.deletion_timestamp = Some(Time(at(1)));
    assert_eq!(plan(&fresh, &see(None), at(1)).finalizer, FinalizerStep::Remove);
}
