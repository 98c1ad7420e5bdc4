//! Reconciles Provisions: capacity from the caches, written into the status.
//!
//! Invariant: nothing is decided here; any change of a node, GPU, Pod or hold looks at all Provisions again.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use vendue_controller_core::provision::{Plan, plan};
use vendue_crds::conditions::provision as cond;
use vendue_crds::{Provision, ProvisionStatus, names};

use crate::award::Ledger;
use crate::context::{Category, Context, action, error_policy, log_failure};
use crate::io::{IoError, apply_status};

/// Changes within this time are looked at together: a Pod's start alone is several.
const SETTLE: Duration = Duration::from_millis(100);

/// Why a Provision's reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A write failed.
    #[error(transparent)]
    Write(#[from] IoError),
}

impl Category for Error {
    fn category(&self) -> &'static str {
        let Self::Write(error) = self;
        error.category()
    }
}

/// A controller's context and the ledger.
pub struct Provisions {
    /// Shared context.
    pub context: Arc<Context>,
    /// Capacity and holds.
    pub ledger: Arc<Ledger>,
}

/// Runs until a signal comes.
pub async fn run(provisions: Arc<Provisions>) {
    let api: Api<DeserializeGuard<Provision>> = Api::all(provisions.context.client.clone());
    let (changed, shared) = (provisions.ledger.changed(), provisions.context.clone());
    let changes = futures::stream::unfold(changed, |changed| async move {
        changed.notified().await;
        tokio::time::sleep(SETTLE).await;
        Some(((), changed))
    });
    Controller::new(api, watcher::Config::default())
        .reconcile_all_on(changes)
        .with_config(Config::default().concurrency(4))
        .shutdown_on_signal()
        .run(
            |object, all: Arc<Provisions>| async move {
                all.context.run(&object, |provision| reconcile(provision, all.clone())).await
            },
            |object, error: &Error, all| error_policy(object.as_ref(), error, &all.context),
            provisions,
        )
        .for_each(|result| log_failure(shared.clone(), result))
        .await;
}

/// Reconciles one Provision.
pub async fn reconcile(provision: Provision, all: Arc<Provisions>) -> Result<Action, Error> {
    let Some(snapshot) = all.ledger.snapshot() else {
        // The caches are still filling; half a view would free what is held.
        return Ok(action(Some(Duration::from_millis(300))));
    };
    let Plan { status, transitions } = plan(&provision, &snapshot, Timestamp::now());
    if normal(status.clone()) != normal(provision.status.clone().unwrap_or_default()) {
        let api: Api<Provision> =
            Api::namespaced(all.context.client.clone(), &provision.namespace().unwrap_or_default());
        let manager = names::MANAGER_PROVISION;
        apply_status("write the Provision's status", &api, manager, &provision, &status).await?;
    }
    all.context.publish(&provision, &transitions).await;
    Ok(Action::await_change())
}

/// The controller's part, in a fixed order: the API server keeps its own order of list entries.
fn normal(mut status: ProvisionStatus) -> ProvisionStatus {
    status.conditions.retain(|c| c.type_ != cond::ADVERTISED);
    status.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    status.free.sort_by(|a, b| (&a.node, &a.model).cmp(&(&b.node, &b.model)));
    status.held.sort_by(|a, b| a.award_id.cmp(&b.award_id));
    status.exclusions.clear();
    status
}
