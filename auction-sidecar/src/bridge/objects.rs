//! From the market's values to API objects and back. Pure.
//!
//! Invariant: what is applied is complete: every field that a manager owns is in every apply of it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use vendue_crds::conditions::{self, award as condition};
use vendue_crds::{
    Award, AwardRequirements, AwardSide, AwardSpec, AwardStatus, Decimal, JobReference, Pricing, StandBy,
    WorkerSpec, names,
};
use vendue_market::encode::to_hex;
use vendue_market::{Digest, GpuModel, Requirements, Terms};

use super::devices;
use crate::wire::AwardRef;

/// Annotation of a host's Award: the commitment to the workload, hex.
pub const COMMITMENT: &str = "vendue.dev/commitment";

/// The time of milliseconds since 1970.
pub fn time_of(ms: u64) -> Time {
    Time(i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX))
}

/// Milliseconds since 1970.
pub fn ms_of(time: &Time) -> u64 {
    u64::try_from(time.0.as_millisecond()).unwrap_or(0)
}

/// What messages say of an Award; `None` when the object is not well formed.
pub fn award_ref(award: &Award) -> Option<AwardRef> {
    let found = AwardRef {
        id: award.spec.id.clone(),
        order: award.spec.order_digest.clone(),
        job: award.spec.job.uid.clone(),
        attempt: u32::try_from(award.spec.job.attempt).ok()?,
    };
    found.is_sound().then_some(found)
}

/// The conditions of an Award.
pub fn conditions_of(award: &Award) -> &[Condition] {
    award.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default()
}

/// A Job's spec in the market's words. Errors name field and value.
pub fn requirements(spec: &vendue_crds::JobSpec) -> Result<Requirements, String> {
    let train = spec.train.as_ref().ok_or("spec.train is missing")?;
    let workers: &WorkerSpec = &train.workers;
    let unsigned = |field: &str, value: i32| {
        u64::try_from(value).map_err(|_| format!("{field} is {value}; accepted: zero or more"))
    };
    let small = |field: &str, value: i32| {
        u32::try_from(value).map_err(|_| format!("{field} is {value}; accepted: zero or more"))
    };
    let models = workers.gpu_models.iter().map(|m| m.parse::<GpuModel>().map_err(|e| e.to_string()));
    let filter = spec.providers.clone().unwrap_or_default();
    let requirements = Requirements {
        gpu_models: models.collect::<Result<_, _>>()?,
        min_gpu_memory_mib: unsigned("minGpuMemoryMib", workers.min_gpu_memory_mib)?,
        workers: small("replicas", workers.replicas)?,
        gpus_per_worker: small("gpus", workers.gpus)?,
        cpu_millis_per_worker: unsigned("cpuMillis", workers.cpu_millis)?,
        memory_mib_per_worker: unsigned("memoryMib", workers.memory_mib)?,
        disk_mib_per_worker: unsigned("diskMib", workers.disk_mib)?,
        max_price: spec.max_price.price().map_err(|e| format!("maxPrice: {e}"))?,
        run_seconds: small("runDeadlineSeconds", spec.run_deadline_seconds)?,
        image: train.image.clone(),
        include_providers: filter.include,
        exclude_providers: filter.exclude,
    };
    requirements.validate().map_err(|e| e.to_string())?;
    Ok(requirements)
}

/// What a Job's spec asks for beyond its requirements.
pub fn terms(spec: &vendue_crds::JobSpec) -> Result<Terms, String> {
    let second_price = spec.pricing == Pricing::SecondPrice;
    let mut regions = spec.regions.clone();
    regions.sort();
    regions.dedup();
    let terms = Terms { regions, second_price, ..Terms::default() };
    terms.validate().map_err(|e| e.to_string())?;
    Ok(terms)
}

fn signed64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn signed32(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// The requirements as an Award carries them.
pub fn award_requirements(r: &Requirements) -> AwardRequirements {
    AwardRequirements {
        workers: signed32(r.workers),
        gpus_per_worker: signed32(r.gpus_per_worker),
        gpu_models: r.gpu_models.iter().map(|m| m.as_str().to_owned()).collect(),
        min_gpu_memory_mib: signed64(r.min_gpu_memory_mib),
        cpu_millis_per_worker: signed64(r.cpu_millis_per_worker),
        memory_mib_per_worker: signed64(r.memory_mib_per_worker),
        disk_mib_per_worker: signed64(r.disk_mib_per_worker),
        run_deadline_seconds: signed32(r.run_seconds),
        image: r.image.clone(),
    }
}

/// What both sides' Awards have in common.
#[derive(Debug, Clone)]
pub struct AwardFacts {
    /// The market.
    pub market: Digest,
    /// The round.
    pub round: u64,
    /// The order.
    pub order: vendue_market::Order,
    /// The seat that won; the id is made from it, on both sides, whoever takes over later.
    pub winner: u16,
    /// The seat that serves, its provider and its price.
    pub seat: (u16, String, vendue_market::Price),
    /// Who takes over, best first.
    pub stand_bys: Vec<(u16, String, vendue_market::Price)>,
    /// What winner and stand-bys bind their devices by, as certified.
    pub devices: BTreeMap<u16, Digest>,
    /// When the award stops binding anybody.
    pub expires_ms: u64,
    /// Name of the home in the market record.
    pub home: String,
}

impl AwardFacts {
    /// Id of the award.
    pub fn id(&self) -> String {
        names::award_id(
            &to_hex(&self.market),
            self.round,
            &to_hex(&self.order.digest()),
            u32::from(self.winner),
        )
    }

    /// A spec with everything but what only one side has.
    pub fn spec(&self, side: AwardSide) -> AwardSpec {
        let (seat, provider, price) = &self.seat;
        AwardSpec {
            side,
            id: self.id(),
            market_id: to_hex(&self.market),
            round: signed64(self.round),
            order_digest: to_hex(&self.order.digest()),
            job: JobReference {
                home: self.home.clone(),
                namespace: None,
                name: None,
                uid: self.order.job.clone(),
                attempt: signed32(self.order.attempt),
            },
            provider: provider.clone(),
            seat: i32::from(*seat),
            price: Decimal::from(*price),
            stand_bys: self
                .stand_bys
                .iter()
                .map(|(seat, provider, price)| StandBy {
                    provider: provider.clone(),
                    seat: i32::from(*seat),
                    price: Decimal::from(*price),
                })
                .collect(),
            expires_at: time_of(self.expires_ms),
            requirements: award_requirements(&self.order.requirements),
            devices_commitment: self.devices.get(seat).map(|digest| to_hex(digest)),
            provision: None,
            provision_namespace: None,
            workload_secret: None,
            handed_over_at: None,
            certificate: None,
            close: None,
        }
    }
}

fn labels(id: &str) -> BTreeMap<String, String> {
    [(names::MANAGED_BY, names::VENDUE), (names::AWARD_ID, id)]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into_iter()
        .collect()
}

/// The namespace of an award, for `restricted` Pods only.
pub fn host_namespace(id: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": names::award_namespace(id),
            "labels": {
                names::MANAGED_BY: names::VENDUE,
                names::AWARD_ID: id,
                "pod-security.kubernetes.io/enforce": "restricted",
                "pod-security.kubernetes.io/warn": "restricted",
            },
        },
    })
}

/// The Award on the host.
pub fn host_award(facts: &AwardFacts, provision: (&str, &str)) -> Award {
    let id = facts.id();
    let mut spec = facts.spec(AwardSide::Host);
    spec.provision_namespace = Some(provision.0.to_owned());
    spec.provision = Some(provision.1.to_owned());
    spec.stand_bys.clear();
    let commitment = (COMMITMENT.to_owned(), to_hex(&facts.order.commitment));
    let metadata = ObjectMeta {
        name: Some(names::HOST_AWARD.to_owned()),
        namespace: Some(names::award_namespace(&id)),
        labels: Some(labels(&id)),
        annotations: Some([commitment].into_iter().collect()),
        ..ObjectMeta::default()
    };
    Award { metadata, spec, status: None }
}

/// An Award read from the API server in the form in which its one manager applies it again.
pub fn reapply(award: &Award) -> Award {
    let metadata = ObjectMeta {
        name: award.metadata.name.clone(),
        namespace: award.metadata.namespace.clone(),
        labels: award.metadata.labels.clone(),
        annotations: award.metadata.annotations.clone(),
        owner_references: award.metadata.owner_references.clone(),
        ..ObjectMeta::default()
    };
    Award { metadata, spec: award.spec.clone(), status: None }
}

/// The Award at home, owned by its Job.
pub fn home_award(
    facts: &AwardFacts,
    job: (&str, &str),
    owner: OwnerReference,
    certificate: vendue_crds::CertificateData,
) -> Award {
    let id = facts.id();
    let mut spec = facts.spec(AwardSide::Home);
    let (namespace, name) = job;
    spec.job.namespace = Some(namespace.to_owned());
    spec.job.name = Some(name.to_owned());
    spec.certificate = Some(certificate);
    let mut labels = labels(&id);
    labels.insert(names::JOB_NAME.to_owned(), name.to_owned());
    let metadata = ObjectMeta {
        name: Some(names::home_award(name, spec.job.attempt)),
        namespace: Some(namespace.to_owned()),
        labels: Some(labels),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    Award { metadata, spec, status: None }
}

/// An apply of an Award's status with these conditions only (the host's HandedOver and Delivered).
pub fn conditions_patch(conditions: &[Condition]) -> Value {
    json!({
        "apiVersion": format!("{}/{}", vendue_crds::GROUP, vendue_crds::VERSION),
        "kind": "Award",
        "status": { "conditions": conditions },
    })
}

/// An apply of the whole status of a home's Award.
pub fn status_patch(status: &AwardStatus) -> Value {
    json!({
        "apiVersion": format!("{}/{}", vendue_crds::GROUP, vendue_crds::VERSION),
        "kind": "Award",
        "status": status,
    })
}

/// The host's status as home may see it: without the names of nodes and sessions.
pub fn relayed_status(award: &Award) -> AwardStatus {
    let mut status = award.status.clone().unwrap_or_default();
    status.devices.clear();
    status.observed_generation = None;
    for condition in &mut status.conditions {
        condition.observed_generation = None;
    }
    if let Some(runtime) = &mut status.runtime {
        runtime.session = None;
    }
    status
}

/// What becomes of home's status when the host's arrives: the host's conditions win, those that only home has stay.
pub fn merged_status(at_home: &AwardStatus, relayed: AwardStatus) -> AwardStatus {
    let mut merged = relayed;
    // What home judges by itself no host can say.
    merged.conditions.retain(|c| c.type_ != condition::DEVICES_AS_BID);
    devices::keep_evidence(at_home, &mut merged);
    for own in &at_home.conditions {
        if conditions::find(&merged.conditions, &own.type_).is_none() {
            merged.conditions.push(own.clone());
        }
    }
    merged.devices.clear();
    merged.observed_generation = None;
    for condition in &mut merged.conditions {
        // A peer's text is bounded before it is stored.
        condition.message = condition.message.chars().take(4096).collect();
        condition.reason = condition.reason.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
        condition.observed_generation = None;
    }
    if let Some(failure) = &mut merged.failure {
        failure.log_tail = failure.log_tail.chars().take(8192).collect();
    }
    merged
}

/// Order in which the conditions of an Award come true.
const STEPS: [(&str, &str); 7] = [
    (condition::RELEASED, "Released"),
    (condition::DELIVERED, "Delivered"),
    (condition::FINISHED, "Finished"),
    (condition::RUNNING, "Running"),
    (condition::PROVISIONED, "Provisioned"),
    (condition::HANDED_OVER, "HandedOver"),
    (condition::HELD, "Held"),
];

/// One word for people.
pub fn state_word(conditions: &[Condition]) -> &'static str {
    STEPS
        .into_iter()
        .find(|(type_, _)| conditions::is_true(conditions, type_))
        .map_or("Reserving", |(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cond(type_: &str, status: bool, reason: &str) -> Condition {
        conditions::condition(type_, status, reason, "m", Some(3), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn home_keeps_what_the_host_does_not_say_and_bounds_the_rest() {
        let at_home = AwardStatus {
            conditions: vec![cond("Held", true, "DevicesHeld"), cond("HandedOver", true, "HandedOver")],
            ..AwardStatus::default()
        };
        let mut running = cond("Running", true, "Run\nning");
        running.message = "x".repeat(5000);
        let held = cond("Held", true, "Other");
        let relayed = AwardStatus { conditions: vec![held, running], ..AwardStatus::default() };
        let merged = merged_status(&at_home, relayed);
        let seen: Vec<_> = merged.conditions.iter().map(|c| (c.type_.as_str(), c.reason.as_str())).collect();
        assert_eq!(seen, [("Held", "Other"), ("Running", "Running"), ("HandedOver", "HandedOver")]);
        assert_eq!(merged.conditions[1].message.len(), 4096);
        assert_eq!(state_word(&merged.conditions), "Running");
    }

    #[test]
    fn times() {
        assert_eq!(ms_of(&time_of(1_790_000_000_123)), 1_790_000_000_123);
    }
}
