//! Reads what a Job's plan depends on.
//!
//! Invariant: Secrets and ConfigMaps are read only while an order is to be made from them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, ResourceExt};
use vendue_controller_core::job::{
    Observed, OrderSecret, References, belongs_to_us, order_attempt, references, validate,
};
use vendue_crds::{Award, ComputeJob, names};

use crate::context::Context;
use crate::io::{IoError, ReadError, get_opt};

/// Reads.
pub async fn dereference(job: &ComputeJob, context: &Context) -> Result<Observed, ReadError> {
    let mut observed = Observed::default();
    if !belongs_to_us(job) {
        return Ok(observed);
    }
    let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
    let (current, _) = order_attempt(job, None);
    let awards: Api<Award> = Api::namespaced(context.client.clone(), &namespace);
    observed.award = get_opt("read the Job's Award", &awards, &names::home_award(&name, current)).await?;
    // An Award of an earlier Job of the same name that is on its way out is not this Job's.
    let uid = job.uid().unwrap_or_default();
    observed.award = observed.award.filter(|a| a.spec.job.uid == uid);

    let (attempt, make) = order_attempt(job, observed.award.as_ref());
    let Ok(valid) = validate(job) else { return Ok(observed) };
    if !make || valid.suspended || job.metadata.deletion_timestamp.is_some() {
        return Ok(observed);
    }
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    (observed.secret, observed.secret_taken) = order_secret(&secrets, job, attempt).await?;
    if attempt > current {
        (observed.previous, _) = order_secret(&secrets, job, current).await?;
    }
    if observed.secret.is_none() {
        getrandom::fill(&mut observed.fresh_salt).map_err(ReadError::Random)?;
    }
    if observed.secret.is_none() && observed.previous.is_none() {
        let (config_map, wanted) = references(&valid);
        let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
        let mut found = References { config_map: None, secrets: BTreeMap::new() };
        if let Some(name) = config_map {
            found.config_map = get_opt("read the Job's ConfigMap", &maps, &name).await?;
        }
        for name in wanted {
            let secret = get_opt("read a Secret of the Job", &secrets, &name).await?;
            found.secrets.extend(secret.map(|s| (name, s)));
        }
        observed.references = found;
    }
    Ok(observed)
}

/// The order in the Secret, and whether a Secret of that name is something else.
async fn order_secret(
    secrets: &Api<Secret>,
    job: &ComputeJob,
    attempt: i32,
) -> Result<(Option<OrderSecret>, bool), IoError> {
    let name = names::order_secret(&job.name_any(), attempt);
    let secret = get_opt("read the order's Secret", secrets, &name).await?;
    let is_there = secret.is_some();
    // A Secret that is left from an earlier Job of the same name goes with that Job; it must not be used.
    let ours = |s: &Secret| s.owner_references().iter().any(|o| Some(&o.uid) == job.metadata.uid.as_ref());
    let order = secret.filter(ours).as_ref().and_then(OrderSecret::read);
    let taken = is_there && order.is_none();
    Ok((order, taken))
}
