//! From the hand-over to the end of the run.
//!
//! Invariant: the run deadline is judged before anything else; Pods are only ever created, never changed; Ray is asked
//! to start something only when head and all workers were ready once.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use vendue_crds::AwardRequirements;
use vendue_crds::conditions::{self, award as cond, reasons};
use vendue_crds::names;
use vendue_crds::workload::{TrainWorkload, Workload};

use super::status::Draft;
use super::{Observed, PodSeen, RayAction, current_submission};
use crate::award::objects::{self, Child, ChildKey, Env, HEAD_POD, Parts, Terms, worker_pod};
use crate::award::ray_job::{self, Outcome, RayState, Track};
use crate::{FinalizerStep, after, until};

/// Seconds that a Pod may be in trouble that does not pass by itself (image, placement) before the run is given up.
const TROUBLE_SECONDS: i64 = 60;
/// Seconds from the hand-over to ready Pods; pulling a large image takes minutes.
const PROVISION_SECONDS: i64 = 1800;
/// Replacements of workers before the run is given up.
const MAX_WORKER_RESTARTS: i32 = 50;
/// Restarts of a head that was never ready before the run is given up.
const MAX_HEAD_STARTS: i32 = 4;
/// Seconds from ready Pods to the moment from which the run is charged, whatever the head says: the head is the tenant's, and
/// it takes seconds to start an entry point.
const START_SECONDS: i64 = 60;
/// Trouble of a Pod that waiting does not cure.
const LASTING: [&str; 8] = [
    "Unschedulable",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// Plans one step of the run.
pub(super) fn work(draft: &mut Draft<'_>, observed: &Observed, env: &Env) {
    draft.plan.finalizer = FinalizerStep::Add;
    let need = &draft.award.spec.requirements;
    let handed_over = draft.award.spec.handed_over_at.as_ref().map_or(draft.now, |t| t.0);
    let deadline = after(handed_over, need.run_deadline_seconds.into());
    if draft.now >= deadline {
        if draft.is(cond::PROVISIONED) {
            draft.plan.ray = RayAction::Stop { id: current_submission(draft.award) };
        }
        let text = format!("the run deadline of {} s after the hand-over passed", need.run_deadline_seconds);
        return draft.finish(reasons::DEADLINE_EXCEEDED, &text, "", Some(deadline));
    }
    let train = match &observed.workload {
        None => return draft.plan.requeue = Some(Duration::from_secs(1)),
        Some(Err(error)) => return draft.finish(reasons::RUNTIME_ERROR, error, "", None),
        Some(Ok(workload)) => match mismatch(workload, need) {
            Some(text) => return draft.finish(reasons::INVALID_SPEC, &text, "", None),
            None => &workload.train,
        },
    };
    let Some(terms) = &observed.terms else {
        if !draft.is(cond::PROVISIONED) {
            return draft.finish(reasons::RUNTIME_ERROR, "the Provision that was bid is gone", "", None);
        }
        // What runs and is paid for goes on without it; only new Pods would need its terms.
        follow(draft, observed, train);
        let left = until(draft.now, deadline);
        return draft.plan.requeue = draft.plan.requeue.map(|wait| wait.min(left));
    };
    if let Some(text) = trouble(draft, &observed.pods, after(handed_over, PROVISION_SECONDS)) {
        return draft.finish(reasons::RUNTIME_ERROR, &text, "", None);
    }
    pods(draft, observed, train, terms, env);
    provisioned(draft, observed, train);
    if draft.is(cond::PROVISIONED) {
        follow(draft, observed, train);
    } else {
        draft.state("Provisioning");
        draft.plan.requeue = Some(Duration::from_secs(1));
    }
    let left = until(draft.now, deadline);
    draft.plan.requeue = draft.plan.requeue.map(|wait| wait.min(left));
}

/// A home runs what it bought: the workload must ask for what the order asked for.
fn mismatch(workload: &Workload, need: &AwardRequirements) -> Option<String> {
    let train = &workload.train;
    let pairs = [
        ("workers", i64::from(train.workers), i64::from(need.workers)),
        ("gpusPerWorker", i64::from(train.gpus_per_worker), i64::from(need.gpus_per_worker)),
        ("cpuMillisPerWorker", signed(train.cpu_millis_per_worker), need.cpu_millis_per_worker),
        ("memoryMibPerWorker", signed(train.memory_mib_per_worker), need.memory_mib_per_worker),
        ("diskMibPerWorker", signed(train.disk_mib_per_worker), need.disk_mib_per_worker),
        ("runDeadlineSeconds", i64::from(train.run_deadline_seconds), i64::from(need.run_deadline_seconds)),
    ];
    if let Some((field, got, ordered)) = pairs.iter().find(|(_, got, ordered)| got != ordered) {
        return Some(format!("the workload's {field} is {got}; accepted: {ordered}, as ordered"));
    }
    (train.image != need.image).then(|| {
        format!("the workload's image is \"{}\"; accepted: \"{}\", as ordered", train.image, need.image)
    })
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Why the run is to be given up, if it is. A run that was provisioned once is not given up for the trouble of a Pod: a
/// node that restarts comes back, and the run deadline bounds the wait.
fn trouble(draft: &mut Draft<'_>, pods: &[PodSeen], provision_until: Timestamp) -> Option<String> {
    let now = draft.now;
    if draft.is(cond::PROVISIONED) {
        return worn_out(draft);
    }
    for pod in pods.iter().filter(|p| !p.deleting) {
        if let Some((reason, message)) = &pod.trouble
            && LASTING.contains(&reason.as_str())
            && now >= after(pod.created, TROUBLE_SECONDS)
        {
            return Some(format!("Pod {}: {reason}: {message}", pod.name));
        }
    }
    let failing_head = pods.iter().find(|p| p.head && !p.ready && p.restarts >= MAX_HEAD_STARTS);
    if let Some(head) = failing_head {
        return Some(format!(
            "the Ray head started {} times and was never ready; the image needs Ray 2.52 or later and /bin/bash",
            head.restarts
        ));
    }
    if now >= provision_until {
        return Some(format!("Pods were not ready {PROVISION_SECONDS} s after the hand-over"));
    }
    worn_out(draft)
}

fn worn_out(draft: &mut Draft<'_>) -> Option<String> {
    let restarts = draft.runtime().worker_restarts;
    (restarts > MAX_WORKER_RESTARTS).then(|| format!("workers were replaced {restarts} times"))
}

/// Creates what is missing and removes Pods that ended.
fn pods(draft: &mut Draft<'_>, observed: &Observed, train: &TrainWorkload, terms: &Terms, env: &Env) {
    let node = draft.plan.status.devices.first().map(|d| d.node.clone()).unwrap_or_default();
    let parts = Parts { award: draft.award, train, terms, env, node: &node };
    let mut children: Vec<Child> = Vec::new();
    if let Some(present) = &observed.present {
        let mut wanted = objects::foundation(parts);
        wanted.extend(observed.fresh_tokens.as_ref().map(|t| objects::tokens(draft.award, t)));
        children.extend(wanted.into_iter().filter(|c| !present.contains(&c.key())));
    }
    let there: BTreeSet<&str> = observed.pods.iter().map(|p| p.name.as_str()).collect();
    if !there.contains(HEAD_POD) {
        children.push(objects::head(parts));
    }
    let missing: Vec<u32> = (0..train.workers).filter(|i| !there.contains(worker_pod(*i).as_str())).collect();
    children.extend(missing.iter().map(|i| objects::worker(parts, *i)));
    if draft.is(cond::PROVISIONED) {
        let replaced = i32::try_from(missing.len()).unwrap_or(i32::MAX);
        draft.runtime().worker_restarts += replaced;
    }
    let ended = observed.pods.iter().filter(|p| matches!(p.phase.as_str(), "Failed" | "Succeeded"));
    draft.plan.deletions =
        ended.filter(|p| !p.deleting).map(|p| ChildKey { kind: "Pod", name: p.name.clone() }).collect();
    draft.plan.children = children;
}

/// Counts ready Pods and says whether all were ready at once. Once True it stays: a worker that is replaced later is
/// counted in the runtime's status.
fn provisioned(draft: &mut Draft<'_>, observed: &Observed, train: &TrainWorkload) {
    let ready = observed.pods.iter().filter(|p| p.ready && !p.deleting);
    let (head, workers): (Vec<_>, Vec<_>) = ready.partition(|p| p.head);
    let count = workers.len();
    draft.runtime().workers_ready = i32::try_from(count).unwrap_or(i32::MAX);
    if draft.is(cond::PROVISIONED) {
        return;
    }
    let wanted = train.workers as usize;
    if head.len() == 1 && count == wanted {
        let text = format!("Ray head and {wanted} workers are ready");
        draft.set(cond::PROVISIONED, true, reasons::CREATED, text);
        draft.state("Provisioned");
        return;
    }
    let stuck = observed.pods.iter().find_map(|p| {
        let (reason, message) = p.trouble.as_ref()?;
        (!matches!(reason.as_str(), "ContainerCreating" | "PodInitializing"))
            .then(|| format!("; {}: {reason} {message}", p.name))
    });
    let text = format!(
        "ready: head {} of 1, workers {count} of {wanted}{}",
        head.len(),
        stuck.unwrap_or_default().trim_end()
    );
    draft.set(cond::PROVISIONED, false, reasons::CREATING, text);
}

/// Submits and follows the Ray job.
fn follow(draft: &mut Draft<'_>, observed: &Observed, train: &TrainWorkload) {
    let uid = draft.award.metadata.uid.clone().unwrap_or_default();
    let runtime = draft.runtime();
    let track =
        Track { attempt: u32::try_from(runtime.attempt).unwrap_or(1), session: runtime.session.clone() };
    let next = ray_job::step(&track, &observed.ray, train.retries);
    let attempt = i32::try_from(next.track.attempt).unwrap_or(i32::MAX);
    runtime.attempt = attempt;
    runtime.session.clone_from(&next.track.session);
    runtime.submission_id = Some(names::submission_id(&uid, attempt));
    if let Some(state) = next.state {
        runtime.ray_status = Some(state.word().to_owned());
    }
    started(draft, &observed.ray);
    let of = format!("attempt {attempt} of {}", train.retries + 1);
    // Until the first answer every moment is waiting time that the user sees.
    let silent_start = next.track.session.is_none();
    draft.plan.requeue = Some(Duration::from_millis(if silent_start { 300 } else { 2000 }));
    if let Some(outcome) = next.outcome {
        return finished(draft, observed, outcome, &of);
    }
    if next.submit.is_some() {
        draft.runtime().ray_status = Some(RayState::Pending.word().to_owned());
        draft.plan.ray = RayAction::Submit {
            id: names::submission_id(&uid, attempt),
            entrypoint: format!("cd {} || exit 1\n{}", names::FILES_DIR, train.entrypoint),
        };
        let text = match &next.retried {
            None => format!("{of} was submitted"),
            Some(detail) if detail.message.is_empty() => format!("the Ray head was lost; {of} was submitted"),
            Some(detail) => {
                format!("attempt {} failed: {}; {of} was submitted", attempt - 1, detail.message)
            }
        };
        draft.set(cond::RUNNING, false, reasons::SUBMITTED, text);
        draft.plan.requeue = Some(Duration::from_millis(500));
    } else if next.state == Some(RayState::Running) {
        let restarts = draft.runtime().worker_restarts;
        let again = attempt > 1 || restarts > 0;
        let reason = if again { reasons::RESTARTED } else { reasons::RUNNING };
        let text = match restarts {
            0 => format!("{of} runs"),
            n => format!("{of} runs; workers were replaced {n} times"),
        };
        draft.set(cond::RUNNING, true, reason, text);
        draft.state("Running");
    } else if next.state == Some(RayState::Pending) {
        draft.plan.requeue = Some(Duration::from_millis(500));
    }
    draft.meter(observed.bills.as_deref());
}

/// Records the first start, by the head's clock as far as that is plausible, and no later than [`START_SECONDS`] after the
/// Pods were ready: from the start on the run is charged.
fn started(draft: &mut Draft<'_>, seen: &ray_job::Seen) {
    let now = draft.now;
    let earliest = draft.award.spec.handed_over_at.as_ref().map_or(now, |t| t.0);
    let said = match seen {
        ray_job::Seen::Job { state, times, .. } if *state != RayState::Pending => {
            Some(times.started.filter(|t| (earliest..=now).contains(t)).unwrap_or(now))
        }
        _ => None,
    };
    let ready = conditions::find(&draft.plan.status.conditions, cond::PROVISIONED);
    let latest = ready.map(|c| after(c.last_transition_time.0, START_SECONDS)).filter(|at| *at <= now);
    if let Some(at) = [said, latest].into_iter().flatten().min() {
        draft.runtime().started_at.get_or_insert(Time(at));
    }
}

/// When the run ended by the head's clock; not before it was last seen to run, for the head is the tenant's.
fn ended(draft: &Draft<'_>, observed: &Observed) -> Option<Timestamp> {
    let ray_job::Seen::Job { times, .. } = &observed.ray else { return None };
    let running = conditions::find(&draft.plan.status.conditions, cond::RUNNING);
    let running = running.filter(|c| c.status == "True").map(|c| c.last_transition_time.0);
    times.ended.map(|at| [observed.seen_running, running].into_iter().flatten().fold(at, Timestamp::max))
}

fn finished(draft: &mut Draft<'_>, observed: &Observed, outcome: Outcome, of: &str) {
    let ended = ended(draft, observed);
    match outcome {
        Outcome::Succeeded => {
            draft.finish(reasons::SUCCEEDED, &format!("{of} ended with success"), "", ended);
        }
        Outcome::Failed(detail) => {
            let first = detail.message.lines().next().unwrap_or_default();
            draft.finish(reasons::FAILED, &format!("{of} failed: {first}"), &detail.log_tail, ended);
        }
        Outcome::Lost => {
            let text = format!("the Ray head was lost while {of} ran, and no retry is left");
            draft.finish(reasons::RUNTIME_ERROR, &text, "", None);
        }
    }
    draft.plan.requeue = Some(Duration::from_millis(200));
}
