//! `cargo demo`: the main job. Starts a market of five clusters, buys GPUs at auction, trains a model on them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use vendue_testbed::deploy::{Deployment, Source};
use vendue_testbed::error::Result;
use vendue_testbed::paths::Paths;
use vendue_testbed::progress::Progress;
use vendue_testbed::spec::MarketSpec;
use vendue_testbed::{cleanup, demo, signals};

/// Runs one training Job on a market of five Kubernetes clusters, from set-up to verified result.
#[derive(Parser)]
#[command(
    name = "demo",
    version,
    after_help = "Without options the clusters are stopped at the end, also on failure and on Ctrl-C."
)]
struct Args {
    /// Leave the market running and say how to look around; a later run uses it again.
    #[arg(long)]
    keep: bool,
    /// Write what was measured to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Use clusters that you have: their kubeconfig. Vendue's images must be pullable there.
    #[arg(long, value_name = "FILE", requires = "contexts")]
    kubeconfig: Option<PathBuf>,
    /// Contexts in that kubeconfig; name them home and the providers alpha, bravo, charlie, delta.
    #[arg(long, value_name = "A,B,C,D,E", value_delimiter = ',', requires = "kubeconfig")]
    contexts: Vec<String>,
}

fn source(args: &Args) -> Source {
    match &args.kubeconfig {
        Some(kubeconfig) => Source::Existing(kubeconfig.clone(), args.contexts.clone()),
        None => Source::Own(MarketSpec::demo()),
    }
}

async fn work(args: &Args, progress: &Progress) -> Result<()> {
    let paths = Paths::from_env()?;
    let mut deployment = Deployment::up(&paths, &source(args), progress).await?;
    let result = show(&deployment, args, progress).await;
    if result.is_err() {
        let dump = paths.cache().join("failed/demo");
        // The failure is what counts; the dump is a help only.
        let _ = vendue_testbed::dump::market(&deployment.market, &dump).await;
    }
    if args.keep {
        deployment.market.keep().await?;
        progress.say(demo::look_around(&deployment));
    } else {
        progress.step("stop the clusters", deployment.stop()).await?;
    }
    result
}

async fn show(deployment: &Deployment, args: &Args, progress: &Progress) -> Result<()> {
    let mut report = demo::run_job(deployment, progress).await?;
    demo::look_at_results(deployment, &mut report, progress).await?;
    println!("{}", report.timeline());
    if let Some(path) = &args.report {
        report.write(path)?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let progress = Progress::stderr();
    let Err(error) = signals::until_interrupted(work(&args, &progress)).await else {
        return ExitCode::SUCCESS;
    };
    eprintln!("demo failed: {error}");
    if let (Source::Own(spec), false) = (source(&args), args.keep) {
        // The market's handle went with the work: what it left is found by its name.
        let cleaned = async { cleanup::market(&Paths::from_env()?, &spec.name).await };
        if let Err(error) = cleaned.await {
            eprintln!("clean up: {error}; the next start tries again");
        }
    }
    ExitCode::FAILURE
}
