//! `vendue-controller`: reconciles Jobs (home), Provisions and Awards (provider) of `vendue.dev`.
//!
//! Inputs: API objects. Outputs: API objects, and requests to Ray's Jobs API of each award's head.
//! Invariant: all state is in API objects; the process can be stopped and started at any moment without disturbing
//! work that runs.
//!
//! # Rights that it needs
//! All profiles: `events.k8s.io` events create, patch. `awards.vendue.dev` get, list, watch, patch.
//!
//! Home: `jobs.vendue.dev` get, list, watch, patch; `jobs/status` patch; `jobs/finalizers` update; configmaps get;
//! secrets get, create (the order's Secret, in the Job's namespace).
//!
//! Provider: `awards/status` patch; `awards/finalizers` update; `provisions`, `gpunodes` get, list, watch;
//! `provisions/status` patch; nodes, storageclasses, runtimeclasses, resourceclaims list, watch; pods get, list, watch, create, patch, delete; services,
//! persistentvolumeclaims, serviceaccounts, resourcequotas, limitranges, networkpolicies list, create, patch, delete;
//! tokenreviews create; secrets create, and get, patch, delete for `vendue-workload`, `vendue-tokens`, `vendue-env`, `vendue-files`.

mod agents;
mod args;
mod award;
mod backoff;
mod cache;
mod context;
mod io;
mod job;
mod metrics;
mod provision;
mod ray;
mod receipts;
mod runtime;
mod server;
#[cfg(test)]
mod testing;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use kube::Client;
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;
use vendue_controller_core::award::objects::Env;

use args::{Args, LogFormat};
use award::{Awards, Ledger};
use context::Context;
use metrics::Metrics;
use provision::Provisions;
use receipts::{Book, BookError, Desk, Door, ReceiptsError};

/// Why the process does not start or ends.
#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error("install the TLS provider: another one is installed")]
    Tls,
    #[error("log filter: {0}")]
    Log(#[from] tracing_subscriber::filter::ParseError),
    #[error("make metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("find the cluster: {0}")]
    Config(#[from] kube::config::InferConfigError),
    #[error("make a client: {0}")]
    Client(#[from] kube::Error),
    #[error("make an HTTP client: {0}")]
    Http(#[from] reqwest::Error),
    #[error(transparent)]
    Server(#[from] server::ServerError),
    #[error(transparent)]
    Book(#[from] BookError),
    #[error(transparent)]
    Receipts(#[from] ReceiptsError),
    #[error("a task ended that runs for ever: {0}")]
    Task(tokio::task::JoinError),
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match start(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the controller ends");
            eprintln!("vendue-controller: {error}");
            ExitCode::FAILURE
        }
    }
}

fn log(args: &Args) -> Result<(), MainError> {
    // kube's own spans repeat on each line what the lines say already; a filter that names it still gets them.
    let logs = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(format!("kube_runtime=warn,{}", args.log))?)
        .with_ansi(std::io::stdout().is_terminal());
    match args.log_format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}

async fn start(args: Args) -> Result<(), MainError> {
    // Two providers in one process panic at the first TLS use; this one is used everywhere.
    rustls::crypto::aws_lc_rs::default_provider().install_default().map_err(|_| MainError::Tls)?;
    log(&args)?;
    let mut config = kube::Config::infer().await?;
    // Each request has its own timeout and each object its own back-off; retries below them would hide both.
    config.default_retry = false;
    let client = Client::try_from(config)?;
    let metrics = Metrics::new()?;
    tracing::info!(profile = ?args.profile, listen = %args.listen, "the controller starts");

    let context = |name| Arc::new(Context::new(name, client.clone(), metrics.clone(), &args.pod_name));
    let ledger = args.profile.provider().then(|| Arc::new(Ledger::default()));
    let book = book(&args)?;
    let mut controllers = JoinSet::new();
    let mut feeds = JoinSet::new();
    let jobs_listed = args.profile.home().then(|| Arc::new(AtomicBool::new(false)));
    if let Some(listed) = jobs_listed.clone() {
        let jobs = context("job");
        controllers.spawn(job::run(jobs.clone()));
        tokio::spawn(async move {
            job::until_listed(&jobs).await;
            listed.store(true, Ordering::Release);
        });
    }
    if let Some(ledger) = &ledger {
        let provisions = Provisions { context: context("provision"), ledger: ledger.clone() };
        controllers.spawn(provision::run(Arc::new(provisions)));
        let env = Env {
            namespace: args.namespace.clone(),
            image: args.image.clone(),
            image_pull_policy: args.image_pull_policy.clone(),
        };
        let runtime = runtime::Native::new(client.clone());
        let http = ray::http_client()?;
        let domain = &args.cluster_domain;
        let awards = Awards::new(context("award"), ledger.clone(), runtime, http, env, book.clone(), domain);
        controllers.spawn(award::run(Arc::new(awards)));
        let (ledger, client) = (ledger.clone(), client.clone());
        feeds.spawn(async move { ledger.feed(client).await });
    }
    let desk = book.clone().zip(ledger.clone()).map(|(book, ledger)| {
        Desk::new(book, Door::new(client.clone(), &args.namespace), ledger, metrics.clone())
    });
    let shown = server::Shown { metrics: metrics.clone(), ledger, book, jobs_listed };
    tokio::select! {
        taken = take_receipts(&args, desk) => taken?,
        served = server::serve(args.listen, shown) => served?,
        ended = all_end(controllers) => ended?,
        // Caches are fed for ever: without them the controllers would go on with what they last saw.
        Some(ended) = feeds.join_next() => ended.map_err(MainError::Task)?,
    }
    tracing::info!("the controller ends on a signal");
    Ok(())
}

/// The receipts of this provider's nodes, where they are taken.
fn book(args: &Args) -> Result<Option<Arc<Book>>, BookError> {
    let takes = args.profile.provider() && args.receipts_tls.is_some();
    if args.profile.provider() && !takes {
        tracing::warn!("--receipts-tls is not set: no receipts are taken, and nothing accrues");
    }
    let max_bytes = args.receipts_max_mib.saturating_mul(1 << 20);
    takes.then(|| Book::open(&args.receipts_dir, max_bytes, receipts::system_ms).map(Arc::new)).transpose()
}

async fn take_receipts(args: &Args, desk: Option<Desk>) -> Result<(), ReceiptsError> {
    match (&args.receipts_tls, desk) {
        (Some(tls), Some(desk)) => receipts::serve(args.receipts_listen, tls, desk).await,
        _ => std::future::pending().await,
    }
}

/// Waits until every controller has ended, as they do on a signal; one that panics ends the process.
async fn all_end(mut controllers: JoinSet<()>) -> Result<(), MainError> {
    while let Some(ended) = controllers.join_next().await {
        ended.map_err(MainError::Task)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_controller_that_panics_ends_the_process() {
        let mut controllers = JoinSet::new();
        controllers.spawn(std::future::pending());
        controllers.spawn(async { panic!("gone") });
        assert!(matches!(all_end(controllers).await, Err(MainError::Task(_))));
        let mut controllers = JoinSet::new();
        controllers.spawn(std::future::ready(()));
        assert!(all_end(controllers).await.is_ok());
    }
}
